"""Running a function once to learn what it computes: its forward pass, and the sweep over it, as a trace.

f runs on live arrays, and finds live arrays in the leaves that it closes over; other threads find what is
stored there. A tape of its own records the ops, and the sweep over that tape is traced by the rules of the ops.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core import generate
from ..core.active import ACTIVE
from ..core.entry import ITEM, OUT, SLOTS, Bundle, Entry
from ..core.primitive import REGISTRY
from ..core.tape import Tape
from ..core.variable import LEAVES, Variable, constant, next_slot, result
from ..errors import UnsupportedError
from ..ops import elementwise, names
from .live import Live, Recording
from .trace import Node, Traced, TracedBundle, Untraceable

# Recording changes the classes of leaves and what ops call: one thread at a time.
LOCK = threading.RLock()
# Of this thread: .graph, the recording for which f runs now; .stand_in, what it finds for the arrays of leaves.
NOW = threading.local()


class Output:
    """One array in what f returned: whether it is differentiated, which of those it is, and whether a Variable."""

    def __init__(self, live: bool, position: int, variable: bool) -> None:
        self.live, self.position, self.variable = live, position, variable


class Recorded:
    """What one run of a function was: a graph, and how results come out of arguments and leaves.

    inputs        nodes that calls give: the arguments, then one for each of `leaves`
    returned      what f returned, with an Output in the place of every array
    outputs       nodes of the results that are differentiated; `plain`: of the others
    cotangents    nodes of the cotangents of `outputs`
    adjoints      nodes of the adjoints of `inputs`, None where nothing arrives
    forward       the nodes of the forward pass, in order; `backward`: those that come after it
    """

    def __init__(self, graph: Recording) -> None:
        self.graph = graph
        self.inputs: list[Node] = []
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
    name: str, run: Callable[[list[Any]], Any], arrays: Sequence[Any], active: Sequence[bool]
) -> Recorded:
    """Run `run` on live arrays and trace the sweep over what it did.

    `active`: which arrays are those of a Variable. Raises UnsupportedError where elements leave the trace.
    """
    graph, tape = Recording(), Tape()
    slots: dict[int, Node] = {}  # of what is differentiated
    given: list[Any] = []
    arguments: list[Node] = []
    for i, (array, is_variable) in enumerate(zip(arrays, active, strict=True)):
        live = graph.input(("argument", i), array)
        arguments.append(live.node)
        given.append(result(live, next_slot()) if is_variable else live)
        if is_variable:
            slots[given[-1]._slot] = live.node
    leaves = Leaves(graph)
    with LOCK, closing(graph), ops_on_live_arrays(), leaves_as(leaves):
        try:
            returned = run_on(tape, run, given, graph)
        except Untraceable as error:
            raise UnsupportedError(refusal(name, graph.refused or str(error))) from error
        slots |= {slot: live.node for slot, (_, live) in leaves.live.items()}
        trace = Recorded(graph)
        if not graph.refused:
            refuse_values_from_outside(graph, tape._entries(), slots)
        if not graph.refused:
            sums = sweep(trace, tape._entries(), returned, slots)
            choose(trace, arguments, slots, [(leaf, live.node) for leaf, live in leaves.live.values()], sums)
    if graph.refused:
        raise UnsupportedError(refusal(name, graph.refused))
    return trace


def run_on(tape: Tape, run: Callable[[list[Any]], Any], given: list[Any], graph: Recording) -> Any:
    """`run(given)`, recorded on `tape` and on no other."""
    token = ACTIVE.set((tape,))
    NOW.graph = graph
    try:
        returned = run(given)
        mapped(lambda v: v._array, returned, Variable)  # a leaf that was but handed on is read, too
        return returned
    finally:
        ACTIVE.reset(token)
        NOW.graph, graph.running = None, False


def recording_now() -> bool:
    """Whether this thread runs a function to record it."""
    return getattr(NOW, "graph", None) is not None


def refusal(name: str, what: str) -> str:
    return (
        f"compile: {name} cannot be compiled: {what}.\n"
        f"  Compiled code computes with whatever arrays it is given. Comparisons in `if` and int() are fine; take\n"
        f"  elements out (float(), .value, printing) after the call, or leave {name} uncompiled."
    )


@contextlib.contextmanager
def closing(graph: Recording) -> Iterator[None]:
    """A scope after which live arrays are plain ones."""
    try:
        yield
    finally:
        graph.open = graph.running = False


# -- leaves ----------------------------------------------------------------------------------------------

STORED = Variable.__dict__["_array"]


def read(leaf: Any) -> Any:
    """The array of a leaf, for this thread: a live one while it records, else the one that is stored."""
    stand_in = getattr(NOW, "stand_in", None)
    return STORED.__get__(leaf) if stand_in is None else stand_in(leaf)


def write(leaf: Any, array: Any) -> None:
    """Store the array of a leaf, unless this thread records."""
    if recording_now():
        NOW.graph.refuse("it assigns to a leaf")
    STORED.__set__(leaf, array)


READ_THROUGH: dict[type[Variable], type[Variable]] = {}


def read_through(kind: type[Variable]) -> type[Variable]:
    """The class `kind`, but what holds its arrays is `read` and `write`."""
    if kind not in READ_THROUGH:
        members = {"__slots__": (), "__module__": kind.__module__, "_array": property(read, write)}
        READ_THROUGH[kind] = type(kind.__name__, (kind,), members)
    return READ_THROUGH[kind]


@contextlib.contextmanager
def leaves_as(stand_in: Callable[[Variable], Any]) -> Iterator[None]:
    """A scope in which this thread, and no other, finds `stand_in(leaf)` in the place of a leaf's array."""
    with LOCK:
        leaves = [(leaf, type(leaf)) for leaf in list(LEAVES.values())]
        before = getattr(NOW, "stand_in", None)
        NOW.stand_in = stand_in
        try:
            for leaf, kind in leaves:
                leaf.__class__ = read_through(kind)
            yield
        finally:
            NOW.stand_in = before
            for leaf, kind in leaves:
                leaf.__class__ = kind


class Leaves:
    """The leaves that were read: for each a live array, made when it is first asked for."""

    def __init__(self, graph: Recording) -> None:
        self.graph = graph
        self.live: dict[int, tuple[Variable, Live]] = {}

    def __call__(self, leaf: Variable) -> Live:
        slot = leaf._slot
        if slot not in self.live:
            self.live[slot] = leaf, self.graph.input(("leaf", slot), STORED.__get__(leaf))
        return self.live[slot][1]


# -- the sweep -------------------------------------------------------------------------------------------


def input_slots(entry: Entry) -> list[int]:
    """The slots that an entry reads, without those of constants."""
    slots = [entry[SLOTS]] if entry[0] is ITEM else entry[0].input_slots(entry).values()
    return [s for slot in slots for s in (slot if isinstance(slot, tuple) else (slot,)) if s]


def refuse_values_from_outside(graph: Recording, entries: Sequence[Entry], slots: Iterable[int]) -> None:
    """Note a Variable that was computed outside of f and is no argument: the next call could not find it."""
    known = {*slots, *(entry[OUT] for entry in entries)}
    for entry in entries:
        if any(s > 0 and s not in known for s in input_slots(entry)):
            graph.refused = f"in {entry[0].name} it reads a Variable that was computed outside of it. Pass that as an argument"


def sweep(trace: Recorded, entries: Sequence[Entry], returned: Any, slots: Iterable[int]) -> dict[int, Any]:
    """Trace the sweep from what f returned. The adjoints by slot."""
    graph = trace.graph
    sums: dict[int, Any] = {}
    reachable = {*slots}  # slots of what depends on something that is differentiated
    for entry in entries:
        if not reachable.isdisjoint(input_slots(entry)):
            reachable.add(entry[OUT])

    def add(slot: int, ct: Any) -> None:
        sums[slot] = sums[slot] + ct if slot in sums else ct

    def output(value: Any) -> Output:
        array = value._array if isinstance(value, Variable) else value
        node = graph.lift(array)
        if not isinstance(value, Variable) or value._slot not in reachable:
            trace.plain.append(node)
            return Output(False, len(trace.plain) - 1, isinstance(value, Variable))
        ct = graph.traced("cotangent", len(trace.outputs), (), node.shape, node.dtype)
        trace.outputs.append(node)
        trace.cotangents.append(ct.node)
        add(value._slot, ct)
        return Output(True, len(trace.outputs) - 1, True)

    trace.returned = mapped(output, returned, (Variable, Live, np.ndarray, np.generic))
    for entry in reversed(entries):
        ct = sums.pop(entry[OUT], None)
        if ct is not None:
            graph.label = entry[0].name
            for slot, contribution in pulled(graph, entry, ct):
                if slot in reachable:
                    add(slot, contribution)
    return sums


def choose(
    trace: Recorded,
    arguments: Sequence[Node],
    slots: dict[int, Node],
    leaves: Sequence[tuple[Variable, Node]],
    sums: dict[int, Any],
) -> None:
    """Say which nodes are needed: for the results and the guards, and then for the adjoints."""
    graph = trace.graph
    found = {node: graph.lift(cast(sums[slot], node)) for slot, node in slots.items() if slot in sums}
    forward = reached([*trace.results, *(guard.node for guard in graph.guards)])
    needed = reached([*found.values(), *forward])
    read = [(leaf, node) for leaf, node in leaves if node in needed]
    trace.leaves = [leaf for leaf, _ in read]
    trace.inputs = [*arguments, *(node for _, node in read)]
    trace.adjoints = [found.get(node) for node in trace.inputs]
    trace.forward = [n for n in graph.nodes if n in forward and n.kind != "input"]
    given = ("input", "cotangent")
    trace.backward = [n for n in graph.nodes if n in needed and n not in forward and n.kind not in given]


def cast(ct: Any, node: Node) -> Any:
    """An adjoint in the dtype of its value."""
    return ct.astype(node.dtype) if isinstance(ct, Traced) and ct.dtype != node.dtype else ct


def reached(roots: Iterable[Node]) -> set[Node]:
    """`roots`, and every node that they are computed from."""
    found: set[Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.inputs)
    return found


def mapped(function: Callable[[Any], Any], nest: Any, leaf: Any) -> Any:
    """`nest` (tuples, lists and dicts) with `function` applied to every instance of `leaf`."""
    if isinstance(nest, leaf):
        return function(nest)
    if isinstance(nest, (tuple, list)):
        parts = [mapped(function, part, leaf) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    if isinstance(nest, dict):
        return {k: mapped(function, v, leaf) for k, v in nest.items()}
    return nest


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


# -- ops on live arrays ------------------------------------------------------------------------------------


def passing(function: Callable[..., Any], wrap: Callable[[Any], Any]) -> Callable[..., Any]:
    """`function`, which makes a plain array of its first argument, except for a live one."""

    def passed(value: Any, *more: Any) -> Any:
        array = value._array if isinstance(value, Variable) else value
        return wrap(array) if isinstance(array, Live) else function(value, *more)

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


def refused(body: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The body of an op that cannot be compiled, for the function inside may read live arrays at every sweep."""

    def called(xp: Any, *arguments: Any, **statics: Any) -> Any:
        return NOW.graph.refuse(what) if recording_now() else body(xp, *arguments, **statics)

    return called


class Body:
    """The body of an op as a function of arrays alone."""

    def __init__(self, body: Callable[..., Any]) -> None:
        self.body, self.__name__ = body, body.__name__

    def __call__(self, *arguments: Any, **statics: Any) -> Any:
        return self.body(np, *arguments, **statics)


def standing_for(p: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    """What runs in the place of the body of an opaque op."""
    return refused(body, CALLS_BACK[p.name]) if p.name in CALLS_BACK else in_one_node(body)


@contextlib.contextmanager
def ops_on_live_arrays() -> Iterator[None]:
    """A scope in which ops take live arrays where they would make plain ones of them."""
    patches = [
        (generate.RUNTIME, "constant", passing(constant, lambda array: result(array, 0))),
        (generate.RUNTIME, "lift_constant", passing(generate.lift_constant, lambda array: array)),
    ]
    patches += [(vars(elementwise), "constant", patches[0][2])]
    names.import_all()  # what is imported within the scope would come as it is
    bodies = [(p, p.body) for p in REGISTRY.values() if opaque(p)]
    for p in REGISTRY.values():
        space = p.function.__globals__
        patches += [
            (space, name, patches[i][2])
            for i, name in enumerate(("constant", "lift_constant"))
            if name in space
        ]
    patches += [
        (p.function.__globals__, "body", standing_for(p, body))
        for p, body in bodies
        if "body" in p.function.__globals__
    ]
    before = [(space, name, space[name]) for space, name, _ in patches]
    for space, name, value in patches:
        space[name] = value
    for p, body in bodies:
        p.body = standing_for(p, body)
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
                space.update(body=p.body, constant=constant, lift_constant=generate.lift_constant)


# Ops that run a function of the caller's.
CALLS_BACK = {
    "recompute": "tg.checkpoint runs its function again in every sweep",
    "call_with_pullback": "tg.custom_vjp calls its functions in every sweep",
}

# Modules of ops whose bodies call what no trace has a node for: LAPACK, windows that are views by strides.
LIBRARY_CALLS = frozenset(f"tapegrad.ops.{name}" for name in ("convolve", "matrix", "factor", "determinant"))


def opaque(p: Any) -> bool:
    """Whether an op's body is a kernel, looks at elements, or is a user's: then it is one node."""
    return (
        p.reference is not None
        or p.name in ("take", "index_put", "scatter_along_axis")
        or p.body.__module__ in LIBRARY_CALLS
        or not (p.body.__module__ or "").startswith("tapegrad.ops.")
    )
