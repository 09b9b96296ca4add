"""A live capacitor as plain arrays, and back: a learner that is resumed goes on bit for bit.

Slots are issued once per process, so a snapshot holds them as numbers whose order matters, and loading
issues new ones in that order. Leaves are found by name. Arrays are kept with the layout in memory that
they had (views share a buffer as before), for the last bit of a matrix product may depend on it. They are stored as
the host's; where the leaves lie on a device, loading puts the others there too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np
from numpy.lib.array_utils import byte_bounds

from ..backend.device import freeze, moved, on_device, on_host
from ..errors import ArgumentError, RecordingError, ShapeError, UnsupportedError, describe
from ..types import Array
from .capacitor import CapacitorTape
from .entry import ITEM, OUT, SHAPE, SLOTS, Entry
from .guard import Guarded
from .primitive import REGISTRY
from .replay import Inputs, Leaf
from .variable import LEAVES, Variable, next_slot, result
from .window import Loss, Span, WindowSegment

FORMAT = 2
# Imports the modules of ops that nobody has asked for yet, for a snapshot may name theirs; set by `ops/protocols.py`.
late_ops: Callable[[], None] | None = None
PLAIN = (bool, int, float, str, type(None))
LARGE = 1 << 20  # bytes of a buffer above which a small view of it does not take all of it along


class Slot(int):
    """A slot in the state of a schedule: a snapshot stores it as one."""


def state_dict(tape: CapacitorTape, *, carry: Any = None, parameters: Any = None) -> dict[str, Any]:
    """Everything that `tape` holds, as arrays and one text: for `tg.save`, and `load_state_dict` elsewhere.

    Segments, pending losses, schedules with their random numbers, and `carry`: the Variables that the loop
    carries on (a state; any nest of tuples, lists and dicts). Parameters and optimizers have
    a state_dict of their own. Leaves are named by `parameters` (a module, or a dict by name), else by
    their own names. Not held: adjoints and sweeps that were handed out, and what `keep=` asked for.

    Raises RecordingError while a segment is open, UnsupportedError for an op that is not registered or
    a residual that is no array, ArgumentError for a leaf without a name.
    """
    import json  # here and below: 2 ms of `import tapegrad`

    if tape.recording:
        raise RecordingError(f"{tape._name}.state_dict: a segment is open. Call stop() first.")
    writer, joint = Writer(named(parameters)), cast("Any", tape.joint)
    clocks = {clock: i for i, clock in enumerate(tape._clocks)}
    segments = [segment_state(segment, clocks, writer) for segment in tape._closed]
    state = {
        "format": FORMAT,
        "weights": tape.weights,
        "policy": signature(joint),
        "inputs": tape._keeps_inputs,
        "count": tape._count,
        "warned": tape._warned,
        "watch": [tape._watch._sweeps, tape._watch._done, tape._watch._verdicts],
        "clocks": [
            [signature(c.schedule), c.swept, c.forgotten, writer(c.schedule.state_dict())] for c in clocks
        ],
        "joint": writer(joint.state_dict()) if hasattr(joint, "state_dict") else None,
        "segments": segments,
        "evicted": [list(dropped) for dropped in tape._evicted],
        "programs": tape._programs.state_dict(writer.slot),
        "carry": writer(carry),
        "leaves": writer.leaves,
    }
    return {"tape": json.dumps(state), **{f"array.{i}": array for i, array in enumerate(writer.arrays)}}


def load_state_dict(tape: CapacitorTape, saved: Mapping[str, Any], *, parameters: Any = None) -> Any:
    """Go on from where `state_dict` was taken; returns what was carried, still connected to the window.

    `tape` must be made as that one was: the same schedule, weights, joint and parts. Nothing is changed
    if anything does not fit. Raises ArgumentError, ShapeError or RecordingError, naming what.
    """
    import json

    where = f"{tape._name}.load_state_dict"
    if tape.recording:
        raise RecordingError(f"{where}: a segment is open. Call stop() or abort() first.")
    try:
        state = json.loads(str(saved["tape"]))
        known = state["format"] == FORMAT
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(
            f"{where}: this is not what CapacitorTape.state_dict returned: {error!r}."
        ) from error
    if not known:
        raise ArgumentError(
            f"{where}: the snapshot has format {state['format']}, and this is format {FORMAT}."
        )
    there = [state["weights"], state["policy"], state["inputs"], *(clock[0] for clock in state["clocks"])]
    here = [
        tape.weights,
        signature(tape.joint),
        tape._keeps_inputs,
        *(signature(clock.schedule) for clock in tape._clocks),
    ]
    if here != there:
        raise ArgumentError(
            f"{where}: the snapshot is of another kind of tape.\n  snapshot: {there}\n  here:     {here}\n"
            f"  Make the tape and its parts as they were made there."
        )
    reader = Reader(saved, state, named(parameters), where)
    segments = [segment_from(s, tape, reader) for s in state["segments"]]
    carry = reader(state["carry"])
    device, reader.device = reader.device, "cpu"  # schedules count, and draw their numbers, on the host
    schedules = [clock.schedule.fresh() for clock in tape._clocks]
    for schedule, clock in zip(schedules, state["clocks"], strict=True):
        schedule.load_state_dict(reader(clock[3]))
    if (joint := reader(state["joint"])) is not None:
        cast("Any", tape.joint).load_state_dict(joint)

    tape.reset()
    for clock, (_, swept, forgotten, _), schedule in zip(
        tape._clocks, state["clocks"], schedules, strict=True
    ):
        clock.now, clock.swept, clock.forgotten = state["count"], swept, forgotten
        clock.schedule = schedule
    tape._count, tape._warned = state["count"], state["warned"]
    tape._watch._sweeps, tape._watch._done, tape._watch._verdicts = state["watch"]
    tape._evicted.extend(
        (i, reader.slot(first), reader.slot(end), r) for i, first, end, r in state["evicted"]
    )
    for segment in segments:
        tape._closed.append(segment)
        for span in segment.spans:
            if span.held:
                span.clock.spans.append((segment, span))
        if tape._guard:
            segment.guarded = [Guarded.now(entry) for entry in segment.entries]
    # What was compiled for the host is of no use on a device.
    tape._programs.load_state_dict(state.get("programs") if device == "cpu" else None, reader.slot)
    return carry


def signature(policy: Any) -> str:
    """What tells one schedule or joint from another: its repr, or the name of its kind if that holds an address."""
    shown = repr(policy)
    return getattr(policy, "__name__", type(policy).__name__) if " at 0x" in shown else shown


def named(parameters: Any) -> dict[str, Variable]:
    """Leaves by the names that `parameters` gives them: a module, a dict or nothing."""
    if parameters is None:
        return {}
    pairs = parameters.named_parameters() if hasattr(parameters, "named_parameters") else parameters
    if not isinstance(pairs, Iterable):
        raise ArgumentError(
            f"parameters: it must be a module, or a dict of leaves by name, and {describe(pairs)} came."
        )
    return dict(pairs.items() if isinstance(pairs, Mapping) else pairs)


# -- writing ---------------------------------------------------------------------------------------


class Writer:
    """Turns values into what JSON can hold, with arrays and leaves by number."""

    def __init__(self, names: Mapping[str, Variable]) -> None:
        self.names = {v._slot: name for name, v in names.items()}
        self.arrays: list[Array] = []
        self.leaves: dict[str, Any] = {}  # by slot: [name, shape, dtype], or None if nobody holds the leaf
        self._buffers: dict[tuple[int, int, int], int] = {}
        self._held: list[Any] = []  # so that no id is used twice

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Slot):
            return {"slot": self.slot(int(value))}
        if type(value) in PLAIN:
            return value
        if type(value) in (tuple, list):
            return {"tuple" if isinstance(value, tuple) else "list": [self(v) for v in value]}
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            return {"dict": {k: self(v) for k, v in value.items()}}
        if isinstance(value, slice):
            return {"slice": [self(v) for v in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"ellipsis": True}
        if isinstance(value, Variable):
            return {
                "variable": self.slot(value._slot),
                "value": self(value._array) if value._slot >= 0 else None,
            }
        if on_device(value):
            value = on_host(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return self.array(value)
        if isinstance(value, np.generic):
            return {"scalar": self.array(np.asarray(value))}
        if isinstance(value, np.dtype) or (
            isinstance(value, type) and issubclass(value, (np.generic, float))
        ):
            return {"dtype": np.dtype(value).str}
        raise UnsupportedError(
            f"state_dict: {describe(value)} is held, which is no array, number or text, and cannot be stored.\n"
            f"  A call of tg.checkpoint or tg.custom_vjp holds its function: call the function itself on this tape."
        )

    def slot(self, slot: int) -> int:
        """`slot`, and if it is a leaf's, a note of whose."""
        if slot < 0 and str(slot) not in self.leaves:
            leaf = LEAVES.get(slot)
            name = self.names.get(slot, leaf.name if leaf is not None else None)
            taken = [other and other[0] for other in self.leaves.values()]
            if leaf is not None and (not name or name in taken):
                raise ArgumentError(
                    f"state_dict: a leaf that the window has read {f'shares its name {name!r}' if name else 'has no name'}: "
                    f"{describe(leaf)}.\n"
                    f"  A snapshot finds leaves by name: pass parameters=module, or parameters={{name: leaf}}."
                )
            self.leaves[str(slot)] = None if leaf is None else [name, list(leaf.shape), leaf.dtype.str]
        return slot

    def array(self, array: Array) -> dict[str, Any]:
        """A view of a stored buffer; the buffer is that of the array that owns the memory, stored once."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        low, high = byte_bounds(array)
        if owner.dtype.hasobject or not dense(owner) or high - low > max(LARGE, 4 * array.nbytes):
            owner = array = array.copy(order="K")
            if not dense(owner):
                owner = array = array.copy(order="C")
            low, high = byte_bounds(array)
        first, last = byte_bounds(owner)
        part = owner.nbytes > LARGE and owner.nbytes > 4 * (high - low)
        if not part:
            low, high = first, last
        key = (id(owner), low, high)
        if key not in self._buffers:
            self._buffers[key] = len(self.arrays)
            flat = owner.ravel(order="K")
            self.arrays.append(flat.view(np.uint8)[low - first : high - first].copy() if part else flat)
            self._held.append(owner)
        offset = array.__array_interface__["data"][0] - low
        return {
            "array": self._buffers[key],
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "strides": list(array.strides),
            "offset": offset,
        }


def dense(owner: Array) -> bool:
    """Whether the elements of `owner` fill its memory without gaps, in some order of the axes."""
    strides = sorted((s, n) for s, n in zip(owner.strides, owner.shape, strict=True) if n > 1)
    expected = owner.itemsize
    for stride, n in strides:
        if stride != expected:
            return False
        expected *= n
    return True


def segment_state(segment: WindowSegment, clocks: Mapping[Any, int], writer: Writer) -> dict[str, Any]:
    spans = [[clocks[s.clock], s.first, s.end, s.start, s.stop, s.recorded, s.held] for s in segment.spans]
    losses = [
        [writer.slot(loss.slot), writer(loss.seed), sorted(clocks[c] for c in loss.waiting)]
        for loss in segment.losses
    ]
    return {
        "index": segment.index,
        "first": segment.first,
        "spans": spans,
        "losses": losses,
        "entries": [entry_state(entry, writer) for entry in segment.entries],
        "inputs": [None if i is None else inputs_state(i, writer) for i in segment.inputs],
        "leaf_reads": [[*where, writer.slot(leaf._slot)] for *where, leaf in segment._leaf_reads],
    }


def entry_state(entry: Entry, writer: Writer) -> list[Any]:
    """[op, live, broadcast, layout, out, shape, dtype, slots, residuals]"""
    variant: Any = entry[0]
    if variant is ITEM:
        return ["", *entry[OUT : SLOTS - 2], *writer(entry[SHAPE:SLOTS])["tuple"], *entry[SLOTS:]]
    p: Any = variant.primitive
    registered: Any = REGISTRY.get(p.name)
    if registered is not p:
        raise UnsupportedError(
            f"state_dict: the op `{p.name}` is not registered under its name, so a snapshot cannot name it.\n"
            f"  Declare it with tg.primitive, tg.elementwise or tg.linear; a function that tg.compile made is none of\n"
            f"  these: call the function itself on this tape, whose programs compile what repeats."
        )
    first = SLOTS + len(p.differentiable)
    for slot in entry[SLOTS:first]:
        for s in slot if isinstance(slot, tuple) else (slot,):
            writer.slot(s)
    return [
        p.name, list(variant.live), variant.broadcast, list(variant.layout), entry[OUT],
        writer(entry[SHAPE]), writer(entry[SHAPE + 1]), writer(entry[SLOTS:first]), writer(entry[first:]),
    ]  # fmt: skip


def inputs_state(inputs: Inputs, writer: Writer) -> list[Any]:
    def noted(value: Any) -> Any:
        if isinstance(value, Leaf):
            return {"leaf": writer.slot(value.variable._slot), "value": writer(value.array)}
        return {"several": [noted(v) for v in value]} if isinstance(value, tuple) else writer(value)

    return [{a: noted(v) for a, v in inputs.arguments.items()}, writer(inputs.statics)]


# -- reading ---------------------------------------------------------------------------------------


class Reader:
    """The way back: buffers by number, new slots in the order of the old, leaves by name."""

    def __init__(
        self, saved: Mapping[str, Any], state: Any, names: Mapping[str, Variable], where: str
    ) -> None:
        self.where, self.buffers = where, {}
        for key, value in saved.items():
            if key.startswith("array."):
                self.buffers[int(key.removeprefix("array."))] = np.ascontiguousarray(value)
        self.leaves = {int(slot): self._leaf(leaf, names) for slot, leaf in state["leaves"].items()}
        # Of the leaves that the window reads; of a window that holds none, of those that were named.
        near = [*self.leaves.values()] or [*names.values()]
        self.device = next((v.device for v in near if v.device != "cpu"), "cpu")
        self._moved: dict[str, Any] = {}  # a view that is met again is one array on a device too
        self._new: dict[int, int] = {slot: v._slot for slot, v in self.leaves.items()}
        for slot in sorted(set(slots_in(state))):
            self._new[slot] = next_slot()

    def _leaf(self, leaf: Any, names: Mapping[str, Variable]) -> Variable:
        if leaf is None:  # nobody held it any more: its gradient went nowhere
            return Variable(0.0)
        name, shape, dtype = leaf
        found = [names[name]] if name in names else [v for v in LEAVES.values() if v.name == name]
        if len(found) != 1:
            raise ArgumentError(
                f"{self.where}: {'no leaf is' if not found else f'{len(found)} leaves are'} called {name!r}.\n"
                f"  Pass parameters=module, or parameters={{name: leaf}}, with the names of the snapshot."
            )
        if found[0].shape != tuple(shape) or found[0].dtype != np.dtype(dtype):
            raise ShapeError(
                f"{self.where}: leaf {name!r} is {describe(found[0])} here, and {dtype} {tuple(shape)} there."
            )
        return found[0]

    def slot(self, slot: int) -> int:
        return self._new[slot] if slot else 0

    def slots(self, slots: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(self.slots(s) if isinstance(s, tuple) else self.slot(s) for s in slots)

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind, content = next(iter(value.items()))
        if kind == "array":
            return self.array(value)
        if kind == "variable":
            leaf = self.leaves.get(content)
            return leaf if leaf is not None else result(self(value["value"]), self.slot(content))
        if kind == "leaf":
            return Leaf(self.leaves[content], self(value["value"]))
        readers: dict[str, Any] = {
            "slot": self.slot,
            "tuple": lambda c: tuple(map(self, c)),
            "several": lambda c: tuple(map(self, c)),
            "list": lambda c: [self(v) for v in c],
            "dict": lambda c: {k: self(v) for k, v in c.items()},
            "slice": lambda c: slice(*map(self, c)),
            "ellipsis": lambda c: Ellipsis,
            "scalar": self.scalar,
            "dtype": np.dtype,
        }
        return readers[kind](content)

    def array(self, view: Any) -> Array:
        buffer = self.buffers[view["array"]]
        made: Array = np.ndarray(view["shape"], view["dtype"], buffer, view["offset"], view["strides"])
        made.flags.writeable = False
        if self.device == "cpu":
            return made
        key = str(view)
        if key not in self._moved:
            self._moved[key] = freeze(moved(made, self.device))
        return self._moved[key]  # type: ignore[no-any-return]

    def scalar(self, view: Any) -> Any:
        """A number of NumPy's; on a device a real one is an array without axes."""
        found = self.array(view)
        return found if on_device(found) and found.dtype.kind == "f" else on_host(found)[()]


def slots_in(state: Any) -> Iterable[int]:
    """Every positive slot that a snapshot mentions."""
    for segment in state["segments"]:
        yield segment["first"]
        for _, first, end, *_ in segment["spans"]:
            yield from (first, end)
        yield from (loss[0] for loss in segment["losses"] if loss[0] > 0)
        for entry in segment["entries"]:
            if entry[0] == "":
                yield from (entry[1], entry[4])
            else:
                yield entry[4]
                yield from flat(entry[7])
    for _, first, end, _ in state["evicted"]:
        yield from (first, end)
    yield from marked([state["carry"], [clock[3] for clock in state["clocks"]]])


def flat(slots: Any) -> Iterable[int]:
    """The positive slots of a tuple of slots and tuples of slots, as JSON holds it."""
    if isinstance(slots, dict):
        for s in slots["tuple"]:
            yield from flat(s)
    elif slots > 0:
        yield slots


def marked(value: Any) -> Iterable[int]:
    """The positive slots that are marked as such anywhere in `value`."""
    if isinstance(value, dict):
        for key in ("slot", "variable"):
            if isinstance(value.get(key), int) and value[key] > 0:
                yield value[key]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from marked(item)


def segment_from(state: Any, tape: CapacitorTape, reader: Reader) -> WindowSegment:
    segment = WindowSegment(state["index"])
    segment.first = reader.slot(state["first"])
    for clock, first, end, start, stop, recorded, held in state["spans"]:
        span = Span(tape._clocks[clock], reader.slot(first), start, recorded)
        span.end, span.stop, span.held = reader.slot(end), stop, held
        segment.spans.append(span)
    segment.losses = [
        Loss(reader.slot(slot), reader(seed), {tape._clocks[c] for c in waiting})
        for slot, seed, waiting in state["losses"]
    ]
    segment.entries = [entry_from(entry, reader) for entry in state["entries"]]
    for inputs in state["inputs"]:
        if inputs is None:
            segment.inputs.append(None)
        else:
            segment.inputs.append(Inputs({a: reader(v) for a, v in inputs[0].items()}, reader(inputs[1])))
    segment._leaf_reads = [(*where, reader.leaves[slot]) for *where, slot in state["leaf_reads"]]
    return segment


def entry_from(state: Any, reader: Reader) -> Entry:
    if state[0] == "":
        _, out, shape, dtype, whole, position = state
        return (ITEM, reader.slot(out), reader(shape), reader(dtype), reader.slot(whole), position)
    name, live, broadcast, layout, out, shape, dtype, slots, residuals = state
    if name not in REGISTRY and late_ops is not None:
        late_ops()
    if name not in REGISTRY:
        raise ArgumentError(f"{reader.where}: no op `{name}` is declared here. Declare it before loading.")
    variant: Any = REGISTRY[name].variant(tuple(live), broadcast)
    if list(variant.layout) != layout:
        raise ArgumentError(
            f"{reader.where}: the op `{name}` keeps {list(variant.layout)} here, and kept {layout} in the snapshot.\n"
            f"  Load it with the version of the op that recorded it."
        )
    slots = reader.slots(reader(slots))
    return (variant, reader.slot(out), reader(shape), reader(dtype), *slots, *reader(residuals))


CapacitorTape.state_dict = state_dict
CapacitorTape.load_state_dict = load_state_dict
