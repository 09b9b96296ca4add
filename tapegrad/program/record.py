"""Running a function once on arrays that know where they came from: how `compile` learns what it computes.

A `Live` array is a traced one that also has its elements. Ops on it compute, as on any array, and write down a
node; the sweep over the recording is then traced as for a segment of a window. What would take elements out
of the trace is noticed here, because every way out of an array is a method: a branch (`if v > 0`) becomes
a *guard*, the rest is refused.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core import generate
from ..core.active import ACTIVE
from ..core.entry import ITEM, OUT, SLOTS, Bundle, Entry
from ..core.generate import keep
from ..core.primitive import REGISTRY
from ..core.tape import Tape
from ..core.variable import LEAVES, Variable, next_slot, result
from ..errors import UnsupportedError
from ..ops import elementwise
from ..types import Shape
from .trace import VIEWS, Graph, Namespace, Node, Traced, TracedBundle, Untraceable

PACKAGE = str(pathlib.Path(__file__).resolve().parent.parent)
# Recording replaces the arrays of leaves: one thread at a time.
LOCK = threading.RLock()
# NumPy's functions whose results have a shape that depends on elements, or that write into an argument.
NOW = threading.local()  # .recording: whether this thread records
UNFIT = frozenset({
    "nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress", "trim_zeros", "histogram", "bincount",
    "copyto", "put", "place", "putmask", "put_along_axis", "fill_diagonal", "save", "savez", "savetxt",
    "fill", "sort", "partition", "resize", "setflags", "setfield", "byteswap", "itemset", "tofile", "dump",
})  # fmt: skip


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

    def input(self, name: Any, array: Any) -> Live:
        """An array that calls give."""
        node = self.node("input", name, (), array.shape, array.dtype)
        self.values[node] = array
        return Live(self, node)

    def node(self, kind: str, detail: Any, inputs: Sequence[Node], shape: Shape, dtype: Any) -> Node:
        made = super().node(kind, detail, inputs, shape, np.dtype(dtype))
        if self.running and kind != "input" and made not in self.values:
            self.values[made] = computed(made, [self.values[n] for n in inputs])
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
        if not self.running:
            raise Untraceable("a rule branches on elements")
        outcome = test(live.elements)
        self.guards.append(Guard(live.node, test, outcome))
        return outcome

    def refuse(self, what: str) -> Any:
        """Raise for a way out of the trace, also if f catches it."""
        if self.running:
            self.refused = self.refused or f"{what}{user_line()}"
            raise Untraceable(what)
        raise Untraceable("a rule asks for elements")

    def call(self, function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
        """A call of `function`, which computes arrays from arrays, as one node."""
        inputs: list[Node] = []

        def place(value: Any) -> Any:
            if isinstance(value, Traced):
                inputs.append(self.lift(value))
                return Place(len(inputs) - 1)
            if isinstance(value, (tuple, list)):
                return type(value)(place(v) for v in value)
            return keep(value)

        call = Call(function, tuple(place(a) for a in arguments), {k: place(v) for k, v in keywords.items()})
        return self.called(call, inputs, call(*(self.values[n] for n in inputs)))

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
    """A function with everything but its traced arrays; it returns a tuple, or one array."""

    def __init__(self, function: Callable[..., Any], arguments: Any, keywords: dict[str, Any]) -> None:
        self.function, self.arguments, self.keywords = function, arguments, keywords

    def __call__(self, *arrays: Any) -> Any:
        def fill(value: Any) -> Any:
            if isinstance(value, Place):
                return arrays[value.number]
            return type(value)(fill(v) for v in value) if type(value) in (tuple, list) else value

        return self.function(*map(fill, self.arguments), **{k: fill(v) for k, v in self.keywords.items()})

    def __str__(self) -> str:
        return getattr(self.function, "__name__", str(self.function))


class Pull:
    """The pull of an entry that cannot be traced, as a function of its cotangents and of the arrays it keeps."""

    def __init__(self, entry: Entry, fields: Sequence[tuple[int, Any]], parts: Sequence[int] | None) -> None:
        self.entry, self.fields, self.parts = entry, fields, parts

    def contributions(self, arrays: Sequence[Any]) -> list[tuple[int, Any]]:
        """What the pull returns for the cotangents (one, or those of `parts`) and the kept arrays."""
        count = 1 if self.parts is None else len(self.parts)
        entry = list(self.entry)
        for (position, inside), array in zip(self.fields, arrays[count:], strict=True):
            if inside is None:
                entry[position] = array
            else:
                entry[position] = (*entry[position][:inside], array, *entry[position][inside + 1 :])
        ct = arrays[0] if self.parts is None else Bundle(dict(zip(self.parts, arrays, strict=False)))
        return list(self.entry[0].pull(tuple(entry), ct))

    def __call__(self, *arrays: Any) -> tuple[Any, ...]:
        return tuple([c for _, c in self.contributions(arrays)])

    def __str__(self) -> str:
        return f"pull of {self.entry[0].name}"


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

    def __int__(self) -> int:
        return int(self.graph.guard(self, int) if self.graph.mine else self.elements)

    __index__ = __int__

    def __float__(self) -> float:
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

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return iter([self[i] for i in range(len(self))])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(x, Variable) for x in inputs):
            return NotImplemented
        if not self.graph.mine:
            return getattr(ufunc, method)(*map(bare, inputs), **kwargs)
        if kwargs.get("out") is not None or method == "at":
            return self.graph.refuse(f"numpy.{ufunc.__name__} that writes into an array")
        if method == "__call__" and not kwargs and ufunc.nout == 1:
            return super().__array_ufunc__(ufunc, method, *inputs)
        if not self.graph.running:
            raise Untraceable(f"numpy.{ufunc.__name__}.{method}")
        return self.graph.call(
            getattr(ufunc, method), inputs, {k: v for k, v in kwargs.items() if k != "out"}
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(issubclass(kind, Variable) for kind in types):
            return NotImplemented
        ours = getattr(LiveNamespace(self.graph), function.__name__, None)
        if ours is not None and not kwargs.keys() - {"axis", "keepdims", "axes", "shape"}:
            return ours(*args, **kwargs)
        return self._called(function, args, kwargs)

    def _called(self, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if not self.graph.running:
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
            if name in UNFIT or not callable(function) or not self._graph.running:
                raise
        return lambda *args, **kwargs: self._graph.call(function, args, kwargs)

    def asarray(self, a: Any) -> Any:
        return a if isinstance(a, Traced) else np.asarray(a)

    def _of(self, a: Any) -> Traced:
        return a if isinstance(a, Traced) else Live(self._graph, self._graph.lift(a))


def bare(value: Any) -> Any:
    """A live array's elements."""
    return value.elements if isinstance(value, Live) else value


def yielding(name: str) -> Any:
    """The operator of Traced, but a Variable on the other side records the op."""
    operator = getattr(Traced, name)

    def method(self: Live, other: Any) -> Any:
        return NotImplemented if isinstance(other, Variable) else operator(self, other)

    return method


for symbol in ("add", "sub", "mul", "truediv", "pow", "matmul"):
    setattr(Live, f"__{symbol}__", yielding(f"__{symbol}__"))
    setattr(Live, f"__r{symbol}__", yielding(f"__r{symbol}__"))
for symbol in ("gt", "ge", "lt", "le", "eq", "ne"):
    setattr(Live, f"__{symbol}__", yielding(f"__{symbol}__"))
Live.__hash__ = object.__hash__  # type: ignore[method-assign,assignment]
Live.__abs__ = lambda self: np.absolute(self)  # type: ignore[attr-defined]


# -- ops on live arrays ------------------------------------------------------------------------------------


def passing(function: Callable[[Any], Any], wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`function`, which makes a plain array of its argument, except for a live one."""

    def passed(value: Any) -> Any:
        array = value._array if isinstance(value, Variable) else value
        return wrap(array) if isinstance(array, Live) else function(value)

    return passed


def in_one_node(body: Callable[..., Any]) -> Callable[..., Any]:
    """The body of an op as one node: what a kernel does is not for a trace to see."""

    def called(xp: Any, *arguments: Any, **statics: Any) -> Any:
        flat = [
            a for argument in arguments for a in (argument if isinstance(argument, tuple) else (argument,))
        ]
        flat += statics.values()
        graph = next((a.graph for a in flat if isinstance(a, Live) and a.graph.mine), None)
        if graph is None:
            return body(xp, *arguments, **statics)
        return graph.call(Body(body), arguments, statics)

    return called


class Body:
    """The body of an op as a function of arrays alone."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body, self.__name__ = body, body.__name__

    def __call__(self, *arguments: Any, **statics: Any) -> Any:
        return self.body(np, *arguments, **statics)


@contextlib.contextmanager
def ops_on_live_arrays() -> Iterator[None]:
    """A scope in which ops take live arrays where they would make plain ones of them."""
    patches = [
        (generate.RUNTIME, "constant", passing(generate.constant, lambda array: result(array, 0))),
        (generate.RUNTIME, "lift_constant", passing(generate.lift_constant, lambda array: array)),
    ]
    patches += [(vars(elementwise), "constant", patches[0][2])]
    bodies = [(p, p.body) for p in REGISTRY.values() if opaque(p)]
    for p in REGISTRY.values():
        space = p.function.__globals__
        patches += [
            (space, name, patches[i][2])
            for i, name in enumerate(("constant", "lift_constant"))
            if name in space
        ]
    patches += [
        (p.function.__globals__, "body", in_one_node(body))
        for p, body in bodies
        if "body" in p.function.__globals__
    ]
    before = [(space, name, space[name]) for space, name, _ in patches]
    for space, name, value in patches:
        space[name] = value
    for p, body in bodies:
        p.body = in_one_node(body)
    try:
        yield
    finally:
        for p, body in bodies:
            p.body = body
        for space, name, value in before:
            space[name] = value
        for p in REGISTRY.values():  # met for the first time here
            space = p.function.__globals__
            if "body" in space:
                space.update(body=p.body, constant=generate.constant, lift_constant=generate.lift_constant)


def opaque(p: Any) -> bool:
    """Whether an op's body is a kernel, looks at elements, or is a user's: then it is one node."""
    return p.reference is not None or p.name in ("take",) or not p.body.__module__.startswith("tapegrad.ops.")


def user_line() -> str:
    """Where in the user's code this happened."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((PACKAGE, "<tapegrad")):
        frame = frame.f_back  # type: ignore[assignment]
    return f" ({pathlib.Path(frame.f_code.co_filename).name}, line {frame.f_lineno})" if frame else ""


# -- recording a function --------------------------------------------------------------------------------


class Recorded:
    """What one run of a function was: its graph, and how its results come out of its arguments.

    `inputs`: the nodes that calls give, arguments first (`arguments` of them), then one for each of `leaves`.
    `returned`: what f returned, a Live array for what it computed and a slot-bearing Variable for what is
    differentiated. `outputs`: the nodes of the latter; `cotangents` and `adjoints`: of outputs, of inputs.
    """

    def __init__(self, graph: Recording) -> None:
        self.graph = graph
        self.inputs: list[Node] = []
        self.arguments = 0
        self.leaves: list[Variable] = []
        self.returned: Any = None
        self.outputs: list[Node] = []
        self.plain: list[Node] = []
        self.cotangents: list[Node] = []
        self.adjoints: list[Node | None] = []
        self.forward: list[Node] = []
        self.backward: list[Node] = []

    @property
    def results(self) -> list[Node]:
        """All that is computed for the caller: what is differentiated, then the rest."""
        return [*self.outputs, *self.plain]


def record(
    name: str,
    run: Callable[[list[Any]], Any],
    arrays: Sequence[Any],
    active: Sequence[bool],
    leaves_of: Callable[..., Any],
) -> Recorded:
    """Run `run` on live arrays and trace the sweep over what it did.

    `active`: which arrays are those of a Variable. `leaves_of` maps a returned nest through a function
    of its leaves. Raises UnsupportedError where elements leave the trace.
    """
    graph = Recording()
    made = Recorded(graph)
    tape = Tape()
    given: list[Any] = []
    slots: dict[int, Node] = {}
    for i, (array, is_variable) in enumerate(zip(arrays, active, strict=True)):
        live = graph.input(("argument", i), array)
        made.inputs.append(live.node)
        if is_variable:
            given.append(result(live, next_slot()))
            slots[given[-1]._slot] = live.node
        else:
            given.append(live)
    made.arguments = len(given)
    with LOCK, ops_on_live_arrays(), leaves_live(graph) as leaves:
        token = ACTIVE.set((tape,))
        NOW.recording = True
        try:
            returned = run(given)
        except Untraceable as error:
            raise UnsupportedError(refusal(name, graph.refused or str(error))) from error
        except BaseException:
            graph.open = False
            raise
        finally:
            ACTIVE.reset(token)
            NOW.recording = graph.running = False
        if not graph.refused:
            try:
                swept(made, tape._entries(), returned, slots, leaves, leaves_of)
            finally:
                graph.open = False
    if graph.refused:
        raise UnsupportedError(refusal(name, graph.refused))
    return made


def recording_now() -> bool:
    """Whether this thread runs a function to record it."""
    return getattr(NOW, "recording", False)


def refusal(name: str, what: str) -> str:
    return (
        f"compile: {name} cannot be compiled: {what}.\n"
        f"  Compiled code computes with whatever arrays it is given. Comparisons in `if` and int() are fine; take\n"
        f"  elements out (float(), .value, printing) after the call, or leave {name} uncompiled."
    )


@contextlib.contextmanager
def leaves_live(graph: Recording) -> Iterator[dict[int, tuple[Variable, Node]]]:
    """A scope in which every leaf holds a live array."""
    held: dict[int, tuple[Variable, Node]] = {}
    before = []
    try:
        for slot, leaf in list(LEAVES.items()):
            array = leaf._array
            live = graph.input(("leaf", slot), array)
            held[slot] = (leaf, live.node)
            before.append((leaf, array, live))
            leaf._array = live
        yield held
    finally:
        assigned = [leaf for leaf, _, live in before if leaf._array is not live]
        for leaf, array, live in before:
            if leaf._array is live:
                leaf._array = array
        del before
        if assigned and sys.exc_info()[0] is None:
            graph.refused = graph.refused or "it assigns to a leaf"


def swept(
    made: Recorded,
    entries: Sequence[Entry],
    returned: Any,
    slots: dict[int, Node],
    leaves: dict[int, tuple[Variable, Node]],
    leaves_of: Callable[..., Any],
) -> None:
    """Trace the sweep from what was returned, and say what is needed of the graph."""
    graph = made.graph
    reachable = {*slots, *leaves}  # slots of values that depend on what is differentiated
    for entry in entries:
        of = entry[SLOTS] if entry[0] is ITEM else tuple(entry[0].input_slots(entry).values())
        if any(s in reachable for slot in (of if isinstance(of, tuple) else (of,)) for s in flat(slot)):
            reachable.add(entry[OUT])
    sums: dict[int, Any] = {}

    def leaf(value: Any) -> Any:
        """A returned Variable or Live array as (whether it is differentiated, position)."""
        array = value._array if isinstance(value, Variable) else value
        if not isinstance(array, Traced):
            array = Live(graph, graph.lift(array))
        if isinstance(value, Variable) and value._slot in reachable:
            ct = graph.traced("cotangent", len(made.outputs), (), array.shape, array.dtype)
            made.outputs.append(array.node)
            made.cotangents.append(ct.node)
            sums[value._slot] = sums[value._slot] + ct if value._slot in sums else ct
            return Output(True, len(made.outputs) - 1, True)
        made.plain.append(array.node)
        return Output(False, len(made.plain) - 1, isinstance(value, Variable))

    made.returned = leaves_of(leaf, returned)
    for entry in reversed(entries):
        ct = sums.pop(entry[OUT], None)
        if ct is None or entry[OUT] not in reachable:
            continue
        graph.label = entry[0].name
        for slot, contribution in pulled(graph, entry, ct):
            if slot in reachable:
                sums[slot] = sums[slot] + contribution if slot in sums else contribution
    conditions = [guard.node for guard in graph.guards]
    needed_forward = reached([*made.outputs, *made.plain, *conditions])
    found = {slot: graph.lift(cast(graph, sums[slot], node)) for slot, node in slots.items() if slot in sums}
    found |= {
        slot: graph.lift(cast(graph, sums[slot], node)) for slot, (_, node) in leaves.items() if slot in sums
    }
    needed = reached([*found.values(), *needed_forward])
    made.adjoints = [found.get(slot) for slot in by_position(made.inputs, slots)]
    for slot, (variable, node) in leaves.items():
        if node in needed:
            made.leaves.append(variable)
            made.inputs.append(node)
            made.adjoints.append(found.get(slot))
    made.forward = [n for n in graph.nodes if n in needed_forward and n.kind != "input"]
    of_forward = set(made.forward)
    made.backward = [
        n for n in graph.nodes if n in needed and n not in of_forward and n.kind not in ("input", "cotangent")
    ]


class Output:
    """One array in what f returned: whether it is differentiated, which of those it is, and whether a Variable."""

    def __init__(self, live: bool, position: int, variable: bool) -> None:
        self.live, self.position, self.variable = live, position, variable


def by_position(inputs: Sequence[Node], slots: dict[int, Node]) -> list[int]:
    """The slot of each input, 0 for one that is not differentiated."""
    of = {node: slot for slot, node in slots.items()}
    return [of.get(node, 0) for node in inputs]


def flat(slot: Any) -> tuple[Any, ...]:
    return slot if isinstance(slot, tuple) else (slot,)


def cast(graph: Recording, ct: Any, node: Node) -> Any:
    """An adjoint in the dtype of its value."""
    if isinstance(ct, Traced) and ct.dtype != node.dtype:
        return ct.astype(node.dtype)
    return ct


def reached(roots: Sequence[Node]) -> dict[Node, None]:
    """`roots`, and every node that they are computed from."""
    found: dict[Node, None] = {}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting.extend(node.inputs)
    return found


def pulled(graph: Recording, entry: Entry, ct: Any) -> Any:
    """The contributions of an entry: by its rules, or by a call of its pull where those cannot be traced."""
    if entry[0] is ITEM:
        bundle = TracedBundle({entry[SLOTS + 1]: ct})
        bundle.graph = graph
        return ((entry[SLOTS], bundle),)
    if not opaque(entry[0].primitive):
        try:
            return list(entry[0].pull(entry, ct))
        except (Untraceable, AttributeError, TypeError):
            pass
    return pulled_in_one_node(graph, entry, ct)


def pulled_in_one_node(graph: Recording, entry: Entry, ct: Any) -> list[tuple[int, Any]]:
    parts = tuple(ct.parts) if isinstance(ct, Bundle) else None
    inputs = [graph.lift(c) for c in (ct.parts.values() if isinstance(ct, Bundle) else [ct])]
    values = [np.zeros(n.shape, n.dtype) for n in inputs]
    fields: list[tuple[int, Any]] = []
    for position in range(SLOTS, len(entry)):
        field = entry[position]
        for inside, value in enumerate(field) if isinstance(field, tuple) else [(None, field)]:
            if isinstance(value, Live):
                fields.append((position, inside))
                inputs.append(value.node)
                values.append(value.elements)
    pull = Pull(entry, fields, parts)
    contributions = pull.contributions(values)  # run once, for the shapes
    made = graph.called(pull, inputs, tuple([c for _, c in contributions]))
    return list(zip([slot for slot, _ in contributions], made, strict=True))


__all__ = ["Guard", "Live", "Output", "Recorded", "Recording", "computed", "record"]
