"""Symbolic arrays: run the rules of a segment on them, and what they did is straight-line code.

A pullback is written in operators and ops. Given `Traced` arrays it computes nothing, and writes down a
*node* for each NumPy function it calls: the backward pass as a list of array operations, in which each
input is a residual of the segment, a cotangent that enters it, or a number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core.entry import ITEM, OUT, SHAPE, SLOTS, Bundle, Entry
from ..types import Shape


class Untraceable(Exception):
    """A rule did something with an array that has no node: it is then called as it is."""


class Node:
    """One array of a backward pass: how it comes out of others. Compared by identity.

    kind        detail                          inputs
    residual    (entry, field[, part])          what the segment keeps
    leaf        slot                            the array of a leaf that the segment kept
    cotangent   key                             what enters
    number      a Python number
    array       an array of this trace alone
    zeros
    ufunc       name (also `where`)             operands
    matmul                                      two operands
    reduce      (name, axes, keepdims)          one
    view        (method, arguments)             one: reshape, transpose, getitem, broadcast_to
    astype      dtype                           one
    put         index                           base, value: a copy of base with base[index] = value
    scatter     index                           base, value, index arrays: base.at[index] += value
    gather      index                           array, index arrays: array[index]
    join        axis                            parts
    call        function, keywords              operands: function(*operands, **keywords)
    pull        (entry, outputs)                cotangents, of the segment's entry, by its own rule
    part        position                        a pull: one of what it returns
    """

    __slots__ = ("dependent", "detail", "dtype", "inputs", "kind", "label", "shape")

    def __init__(
        self, kind: str, detail: Any, inputs: tuple[Node, ...], shape: Shape, dtype: Any, label: str = ""
    ) -> None:
        self.kind, self.detail, self.inputs = kind, detail, inputs
        self.shape, self.dtype, self.label = shape, dtype, label
        # Whether a cotangent goes into it.
        self.dependent: bool = kind == "cotangent" or any(n.dependent for n in inputs)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.detail} {self.dtype}{self.shape}>"


class Graph:
    """The nodes of one trace, in the order in which they were made; equal ones are one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.label = ""  # the op whose rule runs now
        self._known: dict[Any, Node] = {}

    def node(self, kind: str, detail: Any, inputs: Sequence[Node], shape: Shape, dtype: Any) -> Node:
        key = (kind, hashable(detail), tuple(map(id, inputs)), shape, dtype)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Node(kind, detail, tuple(inputs), shape, dtype, self.label)
            self.nodes.append(known)
        return known

    def traced(self, kind: str, detail: Any, inputs: Sequence[Node], shape: Shape, dtype: Any) -> Traced:
        return Traced(self, self.node(kind, detail, inputs, tuple(shape), np.dtype(dtype)))

    def lift(self, value: Any) -> Node:
        """The node of an operand: of a traced array, a number, or an array that belongs to no segment."""
        if isinstance(value, Traced):
            return value.node
        if type(value) in (bool, int, float):
            return self.node("number", (type(value), value), (), (), type(value))
        if isinstance(value, np.ndarray | np.generic | list | tuple):
            array = np.asarray(value)
            if array.dtype.kind in "fiub":
                if array.size and array.dtype.kind == "f" and not array.any() and array.strides.count(0) == 0:
                    return self.node("zeros", None, (), array.shape, array.dtype)
                return self.node("array", Fixed(array), (), array.shape, array.dtype)
        raise Untraceable(f"an operand is a {type(value).__name__}")


class Fixed:
    """An array inside a node's detail, compared by identity."""

    __slots__ = ("array",)

    def __init__(self, array: Any) -> None:
        self.array = array


def hashable(detail: Any) -> Any:
    """`detail` as a dictionary's key; 1, 1.0 and True stay apart."""
    if isinstance(detail, slice):
        return ("slice", detail.start, detail.stop, detail.step)
    if isinstance(detail, tuple | list):
        return tuple(map(hashable, detail))
    if isinstance(detail, dict):
        return tuple((k, hashable(v)) for k, v in detail.items())
    if isinstance(detail, np.ndarray):
        return ("array", id(detail))
    if isinstance(detail, float):
        return (float, detail, math.copysign(1.0, detail))
    return (type(detail), detail)


class Traced:
    """An array that is a node of a graph: it has a shape and a dtype, and no elements."""

    __slots__ = ("graph", "node")
    __array_priority__ = 2000
    __hash__ = object.__hash__
    # Defined below, one like the other.
    __add__: Any
    __radd__: Any
    __sub__: Any
    __rsub__: Any
    __mul__: Any
    __rmul__: Any
    __truediv__: Any
    __rtruediv__: Any

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node

    @property
    def namespace(self) -> Namespace:
        """The module that computes with it, for `backend.namespace`."""
        return Namespace(self.graph)

    @property
    def shape(self) -> Shape:
        return self.node.shape

    @property
    def dtype(self) -> Any:
        return self.node.dtype

    @property
    def ndim(self) -> int:
        return len(self.node.shape)

    @property
    def size(self) -> int:
        return self.node.size

    def __len__(self) -> int:
        return self.node.shape[0]

    def __bool__(self) -> bool:
        raise Untraceable("a rule branches on values")

    __float__ = __int__ = __index__ = item = __bool__

    def __iter__(self) -> Iterator[Traced]:
        return (self[i] for i in range(len(self)))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise Untraceable("a rule asks for elements")

    # -- operators ----------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if (
            method == "reduce"
            and ufunc is np.add
            and len(inputs) == 1
            and kwargs.keys() <= {"axis", "keepdims"}
        ):
            return self._reduce("sum", kwargs.get("axis", 0), kwargs.get("keepdims", False))
        if method != "__call__" or kwargs:
            raise Untraceable(f"numpy.{ufunc.__name__}.{method} with {sorted(kwargs)}")
        return apply(self.graph, ufunc.__name__, inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = getattr(Namespace(self.graph), function.__name__, None)
        if ours is None:
            raise Untraceable(f"numpy.{function.__name__}")
        return ours(*args, **kwargs)

    def __neg__(self) -> Traced:
        return apply(self.graph, "negative", (self,))

    # -- views --------------------------------------------------------------------------------------

    def _view(self, method: str, *arguments: Any) -> Traced:
        made = VIEWS[method](np.empty(self.shape, self.dtype), *arguments)
        if method == "reshape":
            arguments = (made.shape,)
        if made.shape == self.shape and method in ("reshape", "broadcast_to"):
            return self
        return self.graph.traced("view", (method, arguments), (self.node,), made.shape, self.dtype)

    @property
    def T(self) -> Traced:
        return self._view("transpose", tuple(range(self.ndim))[::-1])

    @property
    def mT(self) -> Traced:
        axes = tuple(range(self.ndim))
        return self._view("transpose", (*axes[:-2], axes[-1], axes[-2]))

    def transpose(self, *axes: Any) -> Traced:
        order = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes
        order = tuple(range(self.ndim))[::-1] if not order else tuple(a % self.ndim for a in order)
        return self._view("transpose", order)

    def reshape(self, *shape: Any) -> Traced:
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        return self._view("reshape", shape)

    def squeeze(self, axis: Any = None) -> Traced:
        return self._view("reshape", np.empty(self.shape, np.int8).squeeze(axis).shape)

    def ravel(self) -> Traced:
        return self._view("reshape", (self.size,))

    def __getitem__(self, index: Any) -> Traced:
        parts = index if isinstance(index, tuple) else (index,)
        if not any(isinstance(p, Traced | np.ndarray | list) for p in parts):
            return self._view("getitem", index)
        marked, arrays = marks(self.graph, parts)
        shape = np.empty(self.shape, np.int8)[tuple(example(p) for p in parts)].shape
        return self.graph.traced("gather", marked, (self.node, *arrays), shape, self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        """Functional: this name stands for the changed array from here on (a rule owns what it writes to)."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(p, Traced | np.ndarray | list) for p in parts):
            raise Untraceable("assignment at an array of positions")
        value = self.graph.lift(value)
        self.node = self.graph.node("put", index, (self.node, value), self.shape, self.dtype)

    # -- functions ----------------------------------------------------------------------------------

    def _reduce(self, name: str, axis: Any = None, keepdims: bool = False) -> Traced:
        axes = tuple(range(self.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        axes = tuple(sorted(a % self.ndim for a in axes)) if self.ndim else ()
        if not axes:
            return self
        kept = [1 if i in axes else n for i, n in enumerate(self.shape)]
        shape = kept if keepdims else [n for i, n in enumerate(self.shape) if i not in axes]
        dtype = np.add.reduce(np.empty(0, self.dtype)).dtype if name == "sum" else self.dtype
        return self.graph.traced("reduce", (name, axes, bool(keepdims)), (self.node,), tuple(shape), dtype)

    def sum(self, axis: Any = None, *, keepdims: bool = False) -> Traced:
        return self._reduce("sum", axis, keepdims)

    def max(self, axis: Any = None, *, keepdims: bool = False) -> Traced:
        return self._reduce("max", axis, keepdims)

    def copy(self) -> Traced:
        return type(self)(self.graph, self.node)

    def astype(self, dtype: Any, copy: bool = True) -> Traced:
        if self.dtype == dtype:
            return self
        return self.graph.traced("astype", np.dtype(dtype), (self.node,), self.shape, dtype)


def operator(name: str, swapped: bool = False) -> Any:
    def method(self: Traced, other: Any) -> Any:
        return apply(self.graph, name, (other, self) if swapped else (self, other))

    return method


for symbol, name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "matmul": "matmul",
}.items():  # fmt: skip
    setattr(Traced, f"__{symbol}__", operator(name))
    setattr(Traced, f"__r{symbol}__", operator(name, swapped=True))
for symbol, name in {
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(Traced, f"__{symbol}__", operator(name))


def item_view(a: Any, index: Any) -> Any:
    """`a[index]` for a basic index, as a view even where it is one element."""
    index = index if isinstance(index, tuple) else (index,)
    return a[index if any(part is Ellipsis for part in index) else (*index, ...)]


VIEWS: dict[str, Callable[..., Any]] = {
    "reshape": np.reshape,
    "transpose": np.transpose,
    "getitem": item_view,
    "broadcast_to": np.broadcast_to,
}


def view_shape(shape: Shape, method: str, arguments: tuple[Any, ...]) -> Shape:
    """The shape of a view of an array of `shape`."""
    return VIEWS[method](np.empty(shape, np.int8), *arguments).shape  # type: ignore[no-any-return]


def apply(graph: Graph, name: str, operands: Sequence[Any]) -> Traced:
    """The ufunc `name` of operands, some of them traced."""
    nodes = [graph.lift(value) for value in operands]
    if name == "matmul":
        a, b = (np.empty(n.shape, np.int8) for n in nodes)
        shape = matmul_shape(a.shape, b.shape)
        return graph.traced("matmul", None, nodes, shape, np.result_type(nodes[0].dtype, nodes[1].dtype))
    ufunc = getattr(np, name, None)
    if not isinstance(ufunc, np.ufunc) or ufunc.signature:
        raise Untraceable(f"{name} is no ufunc of NumPy's that acts on each element")
    kinds = [n.detail[0] if n.kind == "number" and n.detail[0] is not bool else n.dtype for n in nodes]
    *_, dtype = ufunc.resolve_dtypes((*kinds, None))
    return graph.traced("ufunc", name, nodes, np.broadcast_shapes(*(n.shape for n in nodes)), dtype)


def matmul_shape(a: Shape, b: Shape) -> Shape:
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *rows, *columns)


def marks(graph: Graph, parts: Iterable[Any]) -> tuple[tuple[Any, ...], list[Node]]:
    """An index with `Ellipsis`-like marks (None stays None) in the places of arrays, and those arrays' nodes."""
    arrays: list[Node] = []
    marked: list[Any] = []
    for part in parts:
        if isinstance(part, Traced | np.ndarray | list):
            marked.append(("array", len(arrays)))
            arrays.append(graph.lift(part))
        else:
            marked.append(part)
    return tuple(marked), arrays


def example(part: Any) -> Any:
    """An index of the same shape, within any bounds."""
    if not isinstance(part, Traced | np.ndarray | list):
        return part
    if not isinstance(part, list) and part.dtype.kind == "b":
        raise Untraceable("a mask selects a number of elements that depends on values")
    return np.zeros(np.shape(part) if isinstance(part, list) else part.shape, np.intp)


class Namespace:
    """NumPy for traced arrays: what rules and bodies of ops call as `xp`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Any:
        ufunc = getattr(np, name, None)
        if not isinstance(ufunc, np.ufunc) or ufunc.nout != 1 or (ufunc.signature and name != "matmul"):
            raise AttributeError(name)
        return Function(self._graph, name)

    def where(self, condition: Any, a: Any, b: Any) -> Traced:
        nodes = [self._graph.lift(v) for v in (condition, a, b)]
        kinds = [n.detail[0](0) if n.kind == "number" else n.dtype for n in nodes[1:]]
        shape = np.broadcast_shapes(*(n.shape for n in nodes))
        return self._graph.traced("ufunc", "where", nodes, shape, np.result_type(*kinds))

    def zeros(self, shape: Any, dtype: Any = np.float64) -> Traced:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._graph.traced("zeros", None, (), shape, dtype)

    def zeros_like(self, a: Any) -> Traced:
        return self.zeros(a.shape, a.dtype)

    def asarray(self, a: Any) -> Any:
        return a

    def reshape(self, a: Any, shape: Any, order: str = "C") -> Any:
        if order == "C":
            return self._of(a).reshape(shape)
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._of(a).transpose().reshape(shape[::-1]).transpose()

    def transpose(self, a: Any, axes: Any = None) -> Any:
        return self._of(a).transpose(*(() if axes is None else (axes,)))

    def swapaxes(self, a: Any, i: int, j: int) -> Any:
        order = list(range(a.ndim))
        order[i], order[j] = order[j], order[i]
        return self._of(a).transpose(tuple(order))

    def moveaxis(self, a: Any, source: Any, destination: Any) -> Any:
        numbered = np.empty(range(a.ndim), np.int8)  # axis i has length i
        return self._of(a).transpose(np.moveaxis(numbered, source, destination).shape)

    def flip(self, m: Any, axis: Any = None) -> Any:
        axes = range(m.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        turned = {i % m.ndim for i in axes}
        return self._of(m)[tuple(slice(None, None, -1 if i in turned else None) for i in range(m.ndim))]

    def roll(self, a: Any, shift: Any, axis: Any = None) -> Any:
        if axis is None:
            return self.roll(self._of(a).ravel(), shift, 0).reshape(a.shape)
        for by, at in np.broadcast(shift, axis):
            i, n = int(at) % a.ndim, a.shape[int(at)]
            cut = -int(by) % n if n else 0
            if cut:
                index, rest = ((*(slice(None),) * i, slice(*ends)) for ends in ((cut, n), (0, cut)))
                a = self.concatenate([a[index], a[rest]], i)
        return a

    def diagonal(self, a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
        matrices = self.moveaxis(a, (axis1, axis2), (-2, -1))
        *rest, m, n = matrices.shape
        first, count = max(offset, 0) - min(offset, 0) * n, np.empty((m, n), np.int8).diagonal(offset).size
        return matrices.reshape((*rest, m * n))[..., first : first + count * (n + 1) : n + 1]

    def tril(self, m: Any, k: int = 0) -> Any:
        return self.where(np.tril(np.ones(m.shape[-2:], bool), k), m, m.dtype.type(0))

    def triu(self, m: Any, k: int = 0) -> Any:
        return self.where(np.triu(np.ones(m.shape[-2:], bool), k), m, m.dtype.type(0))

    def broadcast_to(self, a: Any, shape: Any) -> Any:
        return self._of(a)._view("broadcast_to", tuple(shape))

    def expand_dims(self, a: Any, axis: Any) -> Any:
        return self._of(a)._view("reshape", np.expand_dims(np.empty(a.shape, np.int8), axis).shape)

    def squeeze(self, a: Any, axis: Any = None) -> Any:
        return self._of(a).squeeze(axis)

    def sum(self, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
        return self._of(a).sum(axis, keepdims=keepdims)

    def max(self, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
        return self._of(a).max(axis, keepdims=keepdims)

    def min(self, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
        return self._of(a)._reduce("min", axis, keepdims)

    def mean(self, a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
        total = self._of(a).sum(axis, keepdims=keepdims)
        return total / float(a.size / max(total.size, 1))

    def concatenate(self, arrays: Any, axis: int = 0) -> Any:
        nodes = [self._graph.lift(a) for a in arrays]
        shape = list(nodes[0].shape)
        axis %= len(shape)
        shape[axis] = sum([n.shape[axis] for n in nodes])
        dtype = np.result_type(*(n.dtype for n in nodes))
        return self._graph.traced("join", axis, nodes, tuple(shape), dtype)

    def stack(self, arrays: Any, axis: int = 0) -> Any:
        return self.concatenate([self.expand_dims(self._of(a), axis) for a in arrays], axis)

    def split(self, a: Any, indices_or_sections: Any, axis: int = 0) -> list[Any]:
        pieces = np.split(np.arange(a.shape[axis]), indices_or_sections)
        before = (slice(None),) * (axis % a.ndim)
        starts = np.cumsum([0, *(len(p) for p in pieces)]).tolist()
        indices = [(*before, slice(i, j)) for i, j in itertools.pairwise(starts)]
        return [a[index] for index in indices]

    def take(self, a: Any, indices: Any, axis: int = 0) -> Any:
        index = (*(slice(None),) * (axis % a.ndim), indices)
        return self._of(a)[index]

    def _of(self, a: Any) -> Traced:
        return a if isinstance(a, Traced) else Traced(self._graph, self._graph.lift(a))


class Function:
    """A ufunc of traced arrays, with the `at` that scatters."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __call__(self, *operands: Any) -> Traced:
        return apply(self.graph, self.name, operands)

    def at(self, a: Traced, index: Any, value: Any) -> None:
        """Functional, as `Traced.__setitem__`."""
        if self.name != "add":
            raise Untraceable(f"numpy.{self.name}.at")
        parts = index if isinstance(index, tuple) else (index,)
        marked, arrays = marks(self.graph, parts)
        for part in parts:
            example(part)
        inputs = (a.node, self.graph.lift(value), *arrays)
        a.node = self.graph.node("scatter", marked, inputs, a.shape, a.dtype)


# -- the backward pass of a segment -------------------------------------------------------------------


class TracedBundle(Bundle):
    """Cotangents of an op with several outputs; where nothing came a node of zeros."""

    graph: Graph

    def filled(self, outputs: Sequence[tuple[Shape, Any]]) -> list[Any]:
        xp = Namespace(self.graph)
        return [self.parts[i] if i in self.parts else xp.zeros(*o) for i, o in enumerate(outputs)]


class Trace:
    """The backward pass of a segment, for cotangents that enter at some of its outputs.

    `contributions`: what it hands to leaves and to values of other segments, as (slot, node), in the order
    of the sweep. `adjoints`: the node of each entry's whole cotangent, by the entry's position.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.contributions: list[tuple[int, Node]] = []
        self.adjoints: dict[int, Node] = {}


def trace_backward(
    entries: Sequence[Entry], first: int, entering: Iterable[int], residuals: Residuals
) -> Trace:
    """Run the rules of `entries` on symbols, for cotangents that enter at the entries in positions `entering`."""
    graph = residuals.graph
    residuals.by_slot.clear()  # another segment's slots mean other things
    made = Trace(graph)
    sums: dict[int, Any] = {}
    for at in entering:
        _, slot, shape, dtype = entries[at][:SLOTS]
        sums[slot] = graph.traced("cotangent", at, (), shape, dtype)
    for at in range(len(entries) - 1, -1, -1):
        entry = entries[at]
        ct = sums.pop(entry[OUT], None)
        if ct is None:
            continue
        graph.label = entry[0].name
        if isinstance(ct, Traced):
            made.adjoints[at] = ct.node
        for slot, contribution in pulled(graph, residuals, at, entry, ct):
            if not first < slot:  # a leaf, or a value from before
                made.contributions.append((slot, graph.lift(contribution)))
                continue
            held = sums.get(slot)
            sums[slot] = contribution if held is None else held + contribution
    return made


class Residuals:
    """The nodes of what a segment keeps. What has a slot is one node wherever it is kept.

    `where`: by node, the entry and the field that hold it.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.where: dict[Node, tuple[int, ...]] = {}
        self.by_slot: dict[int, Node] = {}

    def traced(self, entry: Entry, at: int) -> Entry:
        """`entry` with traced arrays for the arrays it keeps."""
        slots = dict(entry[0].values)
        start = SLOTS + len(entry[0].primitive.differentiable)
        fields = list(entry)
        for position in range(start, len(entry)):
            slot = entry[slots[position]] if position in slots else 0
            fields[position] = self._lifted(entry[position], slot, (at, position))
        return tuple(fields)

    def _lifted(self, value: Any, slot: Any, where: tuple[int, ...]) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            node = self.by_slot.get(slot) if slot else None
            if node is None:
                kind, detail = ("leaf", slot) if slot < 0 else ("residual", where)
                node = self.graph.node(kind, detail, (), value.shape, value.dtype)
                self.where.setdefault(node, where)
                if slot:
                    self.by_slot[slot] = node
            return Traced(self.graph, node)
        if isinstance(value, tuple):
            each = slot if isinstance(slot, tuple) else (0,) * len(value)
            return tuple(
                self._lifted(v, s, (*where, i)) for i, (v, s) in enumerate(zip(value, each, strict=True))
            )
        return value


def pulled(graph: Graph, residuals: Residuals, at: int, entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
    """The contributions of one entry, by its formula, its rule, or else as a call of its rule."""
    if entry[0] is ITEM:
        bundle = TracedBundle({entry[SLOTS + 1]: ct})
        bundle.graph = graph
        return ((entry[SLOTS], bundle),)
    try:
        traced = residuals.traced(entry, at)
        if entry[0].primitive.formula is not None:
            return by_formula(traced, ct)
        return list(entry[0].pull(traced, ct))
    except (Untraceable, AttributeError, TypeError):
        return called(graph, at, entry, ct)


def by_formula(entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
    """What the op's `formula` makes of symbols."""
    variant = entry[0]
    p = variant.primitive
    named = variant.residuals(entry)
    code = p.formula.__code__
    wanted = code.co_varnames[1 : code.co_argcount]
    active = tuple(a in variant.live for a in p.differentiable)
    arguments = [active if name == "active" else named[name] for name in wanted]
    cts = p.formula(ct.filled(entry[SHAPE]) if p.outputs else ct, *arguments)
    slots = variant.input_slots(entry)
    return [(slots[a], c) for a, c in zip(p.differentiable, cts, strict=True) if a in variant.live]


def called(graph: Graph, at: int, entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
    """A node that calls the entry's own pull, and one for each of what it returns."""
    if isinstance(ct, Bundle):
        inputs, parts = [graph.lift(part) for part in ct.parts.values()], tuple(ct.parts)
        example_ct: Any = Bundle({i: np.zeros(n.shape, n.dtype) for i, n in zip(parts, inputs, strict=True)})
    else:
        inputs, parts = [graph.lift(ct)], None
        example_ct = np.zeros(ct.shape, ct.dtype)
    with np.errstate(all="ignore"):
        returned = [(slot, np.asarray(c)) for slot, c in entry[0].pull(entry, example_ct)]
    pull = graph.node("pull", (at, parts), inputs, (), np.dtype(object))
    return [
        (slot, graph.traced("part", position, (pull,), c.shape, c.dtype))
        for position, (slot, c) in enumerate(returned)
    ]
