"""Arrays that know where they came from and have their elements: what a function is run on to record it.

A `Live` array is a traced one that also has its elements. Ops on it compute, as on any array, and write down a
node. What would take elements out of the trace is noticed here, because every way out of an array is a
method: a branch (`if v > 0`) becomes a *guard*, the rest is refused.
"""

from __future__ import annotations

import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core.generate import keep
from ..core.variable import Variable
from ..errors import UnsupportedError
from ..types import Shape
from .trace import VIEWS, Graph, Namespace, Node, Traced, Untraceable, operator

PACKAGE = str(pathlib.Path(__file__).resolve().parent.parent)
# NumPy's functions whose results have a shape that depends on elements, or that write into an argument.
UNFIT = frozenset({
    "nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "trim_zeros", "histogram", "bincount",
    "copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal", "save", "savez", "savetxt",
    "fill", "sort", "partition", "resize", "setflags", "setfield", "byteswap", "itemset", "tofile", "dump",
})  # fmt: skip
# These ask for no element.
OF_SHAPES = frozenset({np.shape, np.ndim, np.size, np.result_type})


class Guard:
    """A Python decision that depended on elements: `test` of the node was `outcome`."""

    def __init__(self, node: Node, test: Callable[[Any], Any], outcome: Any) -> None:
        self.node, self.test, self.outcome = node, test, outcome

    def found(self, value: Any) -> Any:
        """What the decision would be for `value`."""
        try:
            return self.test(value)
        except (ValueError, OverflowError):  # int(nan)
            return None


class PathChanged(Exception):
    """A guard came out otherwise than when the program was recorded: the `index`th, as `outcome`."""

    def __init__(self, index: int, outcome: Any) -> None:
        self.index, self.outcome = index, outcome


def check(index: int, outcome: Any, expected: Any) -> None:
    """Raise if a decision is another one than when the program was recorded."""
    if outcome is None or outcome != expected:
        raise PathChanged(index, outcome)


class Recording(Graph):
    """The trace of one run, with the elements of every node. See `record`."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[Node, Any] = {}
        self.guards: list[Guard] = []
        self.refused = ""
        self.open = True  # until all is traced
        self.running = True  # f runs now; later, its rules
        self.thread = threading.get_ident()

    @property
    def mine(self) -> bool:
        """Whether this is being recorded now, here: others who hold a Live array see a plain one."""
        return self.open and self.thread == threading.get_ident()

    @property
    def tracing(self) -> bool:
        """Whether rules run here, on arrays of which some have no elements."""
        return self.mine and not self.running

    def input(self, name: Any, array: Any) -> Live:
        """An array that calls give."""
        node = self.node("input", name, (), array.shape, array.dtype)
        self.values[node] = array
        return Live(self, node)

    def node(self, kind: str, detail: Any, inputs: Sequence[Node], shape: Shape, dtype: Any) -> Node:
        made = super().node(kind, detail, inputs, shape, np.dtype(dtype))
        if kind != "input" and made not in self.values and not self.tracing:
            value = self.values[made] = computed(made, [self.values[n] for n in inputs])
            assert kind == "number" or (value.shape, value.dtype) == (made.shape, made.dtype), made
        return made

    def traced(self, kind: str, detail: Any, inputs: Sequence[Node], shape: Shape, dtype: Any) -> Live:
        return Live(self, self.node(kind, detail, inputs, tuple(shape), dtype))

    def lift(self, value: Any) -> Node:
        if isinstance(value, Live) and value.graph is not self:
            value = value.elements
        if isinstance(value, np.ndarray):
            value = keep(value)  # frozen as it is now
        return super().lift(value)

    def guard(self, live: Live, test: Callable[[Any], Any]) -> Any:
        """The outcome of `test`, noted as something that the recorded path depends on."""
        if self.tracing:
            raise Untraceable("a rule branches on elements")
        outcome = test(live.elements)
        self.guards.append(Guard(live.node, test, outcome))
        return outcome

    def refuse(self, what: str) -> Any:
        """Raise for a way out of the trace, also if f catches it."""
        if self.running and self.mine:
            self.refused = self.refused or f"{what}{user_line()}"
            raise Untraceable(what)
        raise Untraceable("a rule asks for elements")

    def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """A call of `function`, which computes arrays from arrays, as one node."""
        if self.tracing:
            raise Untraceable(f"a rule calls {getattr(function, '__name__', function)}")
        inputs: list[Node] = []

        def place(value: Any) -> Any:
            if isinstance(value, Traced):
                inputs.append(self.lift(value))
                return Place(len(inputs) - 1)
            if isinstance(value, (tuple, list)):
                return type(value)(place(v) for v in value)
            return keep(value)

        call = Call(function, tuple(place(a) for a in arguments), {k: place(v) for k, v in keywords.items()})
        y = call(*(self.values[n] for n in inputs))
        call.shapes = shapes_of(y)
        return self.called(call, inputs, y)

    def called(self, call: Callable[..., Any], inputs: Sequence[Node], y: Any) -> Any:
        """The node of `call`, which returns arrays of the shapes of `y`."""
        several = isinstance(y, (tuple, list))
        arrays = list(y) if several else [y]
        if not all(isinstance(a, np.ndarray | np.generic | bool) for a in arrays):
            return self.refuse(f"{call} returns something that is no array")
        node = Node("call", call, tuple(inputs), (), np.dtype(object), self.label)
        self.nodes.append(node)
        self.values[node] = tuple(arrays)
        made = [
            self.traced("part", i, (node,), np.shape(a), np.asarray(a).dtype) for i, a in enumerate(arrays)
        ]
        return type(y)(made) if type(y) in (tuple, list) else tuple(made) if several else made[0]


class Place:
    """Where an array goes among the arguments of a call."""

    def __init__(self, number: int) -> None:
        self.number = number


class Call:
    """A function with everything but its traced arrays; it returns a tuple, or one array, of shapes that stay."""

    def __init__(self, function: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> None:
        self.function, self.arguments, self.keywords = function, arguments, keywords
        self.shapes: Any = None

    def __call__(self, *arrays: Any) -> Any:
        def fill(value: Any) -> Any:
            if isinstance(value, Place):
                return arrays[value.number]
            return type(value)(map(fill, value)) if type(value) in (tuple, list) else value

        y = self.function(*map(fill, self.arguments), **{k: fill(v) for k, v in self.keywords.items()})
        if self.shapes is not None and shapes_of(y) != self.shapes:
            raise UnsupportedError(
                f"compile: {self} returned arrays of shapes {shapes_of(y)}, and of {self.shapes} when it was recorded.\n"
                f"  The shape of a result must not depend on elements. Leave the function that calls it uncompiled."
            )
        return y

    def __str__(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


def shapes_of(y: Any) -> Any:
    """The shapes of the arrays that a function returned."""
    return [np.shape(a) for a in y] if isinstance(y, (tuple, list)) else np.shape(y)


def computed(node: Node, values: Sequence[Any]) -> Any:
    """The elements of a node, from those of its inputs."""
    kind, detail = node.kind, node.detail
    if kind == "ufunc":
        return getattr(np, detail)(*values)
    if kind == "number":
        return detail[1]
    if kind == "array":
        return detail.array
    if kind == "zeros":
        return np.zeros(node.shape, node.dtype)
    if kind == "matmul":
        return np.matmul(*values)
    if kind == "reduce":
        name, axes, keepdims = detail
        return getattr(np, name)(values[0], axis=axes, keepdims=keepdims)
    if kind == "view":
        return VIEWS[detail[0]](values[0], *detail[1])
    if kind == "astype":
        return values[0].astype(node.dtype)
    if kind == "join":
        return np.concatenate(values, detail)
    if kind == "part":
        return values[0][detail]
    if kind == "call":
        y = detail(*values)
        return y if isinstance(y, tuple) else tuple(y) if isinstance(y, list) else (y,)
    if kind in ("put", "scatter"):
        changed = np.array(values[0])
        if kind == "put":
            changed[detail] = values[1]
        else:
            np.add.at(changed, positions(detail, values[2:]), values[1])
        return changed
    if kind == "gather":
        return values[0][positions(detail, values[1:])]
    raise Untraceable(f"a node of kind {kind}")


def positions(marked: Sequence[Any], arrays: Sequence[Any]) -> tuple[Any, ...]:
    """An index with its arrays in their places."""
    return tuple(arrays[p[1]] if isinstance(p, tuple) else p for p in marked)


# -- live arrays -----------------------------------------------------------------------------------------


class Live(Traced):
    """A traced array that has its elements. A plain array to anyone but the recording it belongs to."""

    __slots__ = ()
    graph: Recording

    @property
    def elements(self) -> Any:
        return self.graph.values[self.node]

    @property
    def namespace(self) -> Any:
        return LiveNamespace(self.graph) if self.graph.mine else np

    def __bool__(self) -> bool:
        return bool(self.graph.guard(self, bool) if self.graph.mine else self.elements)

    def __int__(self) -> int:  # type: ignore[override]
        return int(self.graph.guard(self, int) if self.graph.mine else self.elements)

    __index__ = __int__  # type: ignore[assignment]

    def __float__(self) -> float:  # type: ignore[override]
        return float(self._bare("float()"))

    def item(self, *args: Any) -> Any:
        if self.dtype.kind in "iub" and not args:
            return bool(self) if self.dtype.kind == "b" else int(self)
        return self._bare(".item()").item(*args)

    def tolist(self) -> Any:
        return self._bare(".tolist()").tolist()

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array(self._bare("a plain array (.value, np.asarray, printing)"), dtype=dtype)

    def _bare(self, what: str) -> Any:
        if self.graph.mine:
            self.graph.refuse(f"{what} takes elements out of what is compiled")
        return np.asarray(self.elements)

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Variable) for x in inputs):
            return NotImplemented
        if not self.graph.mine:
            return getattr(ufunc, method)(*map(bare, inputs), **kwargs)
        if kwargs.get("out") is not None or method == "at":
            return self.graph.refuse(f"numpy.{ufunc.__name__} that writes into an array")
        whole_axes = ufunc.signature and ufunc is not np.matmul  # the one of those that a trace knows
        numpys = getattr(np, ufunc.__name__, None) is ufunc  # SciPy has ufuncs, too
        if method == "__call__" and not kwargs and ufunc.nout == 1 and numpys and not whole_axes:
            return super().__array_ufunc__(ufunc, method, *inputs)
        if self.graph.tracing:
            raise Untraceable(f"numpy.{ufunc.__name__}.{method}")
        return self.graph.call(
            getattr(ufunc, method), inputs, {k: v for k, v in kwargs.items() if k != "out"}
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(issubclass(kind, Variable) for kind in types):
            return NotImplemented
        if function in OF_SHAPES:
            return function(*map(bare, args), **kwargs)
        ours = getattr(LiveNamespace(self.graph), function.__name__, None)
        if ours is not None and not kwargs.keys() - {"axis", "keepdims", "axes", "shape"}:
            return ours(*args, **kwargs)
        return self._called(function, args, kwargs)

    def _called(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.graph.tracing:
            raise Untraceable(f"a rule calls {function}")
        if function.__name__ in UNFIT or kwargs.get("out") is not None:
            return self.graph.refuse(
                f"numpy.{function.__name__}, whose result has a shape of its own, or none,"
            )
        return self.graph.call(function, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """Methods of an array that a trace has no node for: calls."""
        method = getattr(np.ndarray, name, None)
        if name.startswith("_") or not callable(method):
            raise AttributeError(f"an array that is being compiled has no {name}")

        def called(*args: Any, **kwargs: Any) -> Any:
            return self._called(method, (self, *args), kwargs)

        return called

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.node.kind not in ("zeros", "put", "scatter"):
            self.graph.refuse("assigning to elements of an array")
        super().__setitem__(index, value)

    def _reduced(self, name: str, axis: Any, keepdims: bool, others: dict[str, Any]) -> Any:
        """A reduction of floats as a node of its own, any other as a call."""
        if not others and self.dtype.kind == "f":
            return getattr(LiveNamespace(self.graph), name)(
                Traced(self.graph, self.node), axis, keepdims=keepdims
            )
        # NumPy's function and not the method: what a comparison makes of 0-d arrays is no array.
        return self._called(getattr(np, name), (self,), {"axis": axis, "keepdims": keepdims, **others})

    def sum(self, axis: Any = None, keepdims: bool = False, **others: Any) -> Any:
        return self._reduced("sum", axis, keepdims, others)

    def max(self, axis: Any = None, keepdims: bool = False, **others: Any) -> Any:
        return self._reduced("max", axis, keepdims, others)

    def min(self, axis: Any = None, keepdims: bool = False, **others: Any) -> Any:
        return self._reduced("min", axis, keepdims, others)

    def mean(self, axis: Any = None, keepdims: bool = False, **others: Any) -> Any:
        return self._reduced("mean", axis, keepdims, others)

    def __invert__(self) -> Any:
        return np.invert(self)

    def __abs__(self) -> Any:
        return np.absolute(self)

    def __pos__(self) -> Any:
        return self

    def _in_place(self, other: Any) -> Any:
        if self.node.kind == "input":
            self.graph.refuse("changing an argument in place")
        return NotImplemented

    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = _in_place


class LiveNamespace(Namespace):
    """NumPy for live arrays: what has no node of its own is a call."""

    _graph: Recording

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            function = getattr(np, name, None)
            if not callable(function) or self._graph.tracing:
                raise
            if name in UNFIT:
                self._graph.refuse(f"numpy.{name}, whose result has a shape of its own, or none,")
        return lambda *args, **kwargs: self._graph.call(function, args, kwargs)

    def where(self, condition: Any, a: Any = None, b: Any = None) -> Any:
        if a is None or b is None:
            self._graph.refuse("numpy.where of a condition alone, whose result has a shape of its own,")
        return super().where(condition, a, b)

    def asarray(self, a: Any) -> Any:
        return a if isinstance(a, Traced) else np.asarray(a)

    def _of(self, a: Any) -> Traced:
        return a if isinstance(a, Traced) else Live(self._graph, self._graph.lift(a))


def bare(value: Any) -> Any:
    """A live array's elements; zeros for one that has none, of the cotangents."""
    if not isinstance(value, Live):
        return value
    elements = value.graph.values.get(value.node)
    return np.zeros(value.shape, value.dtype) if elements is None else elements


def yielding(name: str) -> Any:
    """The operator of Traced, but a Variable on the other side records the op."""
    of_arrays = getattr(Traced, name)

    def method(self: Live, other: Any) -> Any:
        return NotImplemented if isinstance(other, Variable) else of_arrays(self, other)

    return method


for symbol in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    setattr(Live, f"__{symbol}__", yielding(f"__{symbol}__"))
    setattr(Live, f"__r{symbol}__", yielding(f"__r{symbol}__"))
for symbol in ("gt", "ge", "lt", "le", "eq", "ne"):
    setattr(Live, f"__{symbol}__", yielding(f"__{symbol}__"))
for symbol, name in {
    "or": "bitwise_or", "and": "bitwise_and", "xor": "bitwise_xor", "floordiv": "floor_divide", "mod": "remainder",
}.items():  # fmt: skip
    setattr(Live, f"__{symbol}__", operator(name))
    setattr(Live, f"__r{symbol}__", operator(name, swapped=True))
Live.__hash__ = object.__hash__  # type: ignore[assignment]


def user_line() -> str:
    """Where in the user's code this happened."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((PACKAGE, "<tapegrad")):
        frame = frame.f_back  # type: ignore[assignment]
    return f" ({pathlib.Path(frame.f_code.co_filename).name}, line {frame.f_lineno})" if frame else ""
