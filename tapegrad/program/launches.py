"""The graphs of a captured loop: compared with eager steps once, and then launched, one for each step of a period."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.capacitor import CapacitorTape
from ..core.entry import OUT
from ..core.variable import Result, Variable, result
from ..errors import CaptureError, NonFiniteError, describe
from ..nest import flat, rebuilt
from .arenas import ALIGNMENT
from .arguments import array_in
from .position import Leaves, Position, awaken, put_to_sleep
from .signature import position_of

# How far a graph may be from an eager step, relative to the largest element, by bytes of a float.
TOLERANCE = {4: 1e-6, 8: 1e-12}
ON_DEVICE = 3  # cudaMemcpyDeviceToDevice
LOOK_EVERY = 16  # launches between two questions whether a step was refused for its gradients
SPARSE = 1 << 16  # bytes beside results that are copied along with them in one go


class HandedOut(Result):
    """A Variable that a launch has returned: its slot is right as long as no later launch has returned another."""

    __slots__ = ("launch", "place")

    launch: int
    place: tuple[CapacitorTape, int] | None  # the tape, and the entry of its segment

    __hash__ = Variable.__hash__


class Copies:
    """Copies of what a step leaves in its memory: of all that lies in its place in one go, of the rest one by one."""

    def __init__(self, cupy: Any, place: tuple[int, int], arrays: dict[int, Any]) -> None:
        self.cupy = cupy
        begin, end = place
        within = {
            at: a
            for at, a in arrays.items()
            if begin <= a.data.ptr < end and a.flags.c_contiguous and a.nbytes
        }
        self.begin = min((a.data.ptr for a in within.values()), default=begin)
        self.begin -= (self.begin - begin) % ALIGNMENT  # what is on 16 bytes there is so in the copy
        self.nbytes = max((a.data.ptr + a.nbytes for a in within.values()), default=0) - self.begin
        if self.nbytes > SPARSE + sum(a.nbytes for a in within.values()):
            within, self.nbytes = {}, 0
        self.within = [(at, a.shape, a.dtype, a.data.ptr - self.begin) for at, a in within.items()]
        self.others = [(at, a) for at, a in arrays.items() if at not in within]

    def made(self, stream: Any) -> dict[int, Any]:
        """The copies, by position."""
        cupy, found = self.cupy, {}
        if self.within:
            memory = cupy.cuda.alloc(self.nbytes)
            cupy.cuda.runtime.memcpyAsync(memory.ptr, self.begin, self.nbytes, ON_DEVICE, stream.ptr)
            for at, shape, dtype, offset in self.within:
                found[at] = cupy.ndarray(shape, dtype, memory + offset)
        for at, array in self.others:
            found[at] = array.copy()
        return found


class Phase:
    """One step of a period: its graph, what it returned when it was captured, and where the tapes stand behind it."""

    def __init__(self, loop: Any, graph: Any, returned: Any, now: Any) -> None:
        tapes = loop.tapes
        self.graph, self.returned, self.flat = graph, returned, flat(returned)
        self.now = now  # holds what the graph reads
        self.positions = [Position(tape) for tape in tapes]
        self.kept = [kind_of(value) for value in self.flat]
        # Of what is returned twice there is one copy, where it stands first.
        self.first = [next(k for k, other in enumerate(self.flat) if other is value) for value in self.flat]
        own = {k: array_in(self.flat[k]) for k in set(self.first) if self.kept[k] != "itself"}
        self.copies = Copies(loop.cupy, loop.memory.bounds(), own)
        self.places = [place_of(value, tapes) for value in self.flat]


def kind_of(value: Any) -> str:
    """How a launch hands out a result: "recorded", as a "constant", as an "array", or "itself"."""
    if not on_device(array_in(value)):
        return "itself"
    if not isinstance(value, Variable):
        return "array"
    return "itself" if value._slot < 0 else "recorded" if value._slot else "constant"


def place_of(value: Any, tapes: list[CapacitorTape]) -> tuple[CapacitorTape, int] | None:
    """The tape whose newest segment recorded `value`, and the entry there."""
    slot = value._slot if isinstance(value, Variable) else 0
    for tape in tapes:
        at = position_of(tape._closed[-1].entries, slot) if slot > 0 and tape._closed else -1
        if at >= 0:
            return tape, at
    return None


class Graphs:
    """The graphs of one period of a loop, and what a launch needs. `leaving` is called when the loop leaves them."""

    def __init__(self, loop: Any) -> None:
        self.loop, self.cupy = loop, loop.cupy
        self.phases: list[Phase] = []
        self.verdicts: list[Any] = []
        self.next, self.count = 0, 0
        self.stream = loop.cupy.cuda.get_current_stream()  # of the last launch
        self.given: list[Any] = loop.given  # by the step before, flat
        self.handed_out: weakref.WeakSet[HandedOut] = weakref.WeakSet()
        self.leaving: Callable[[], None] = lambda: None

    def add(self, graph: Any, returned: Any, now: Any) -> None:
        self.phases.append(Phase(self.loop, graph, returned, now))
        self.verdicts += [verdict for verdict in now.verdicts if verdict not in self.verdicts]

    def begin(self) -> None:
        """All is captured: the tapes sleep from now on."""
        self.leaves = Leaves()
        for position in self.phases[0].positions:
            put_to_sleep(position.tape, self.leave)

    def accept(self, args: Any, kwargs: Any) -> list[Any]:
        """The arrays of a call's inputs. Raises NotSteady, and nothing has changed, if a graph cannot serve it."""
        inputs: list[Any] = self.loop.arguments.accept(args, kwargs, self.given)
        if self.loop.bring_in(self.leaves):
            self.leaves = Leaves()
        self.loop.push()
        return inputs

    def launch(self, inputs: list[Any]) -> Any:
        """One step: the inputs to their memory, the graph, and copies of what it returns."""
        cupy = self.cupy
        stream, copy = cupy.cuda.get_current_stream(), cupy.cuda.runtime.memcpyAsync
        if stream.ptr != self.stream.ptr:
            stream.wait_event(self.stream.record())
            self.stream = stream
        for to, array in zip(self.loop.arguments.inputs, inputs, strict=True):
            if array.flags.c_contiguous:
                copy(to.address, array.data.ptr, to.nbytes, ON_DEVICE, stream.ptr)
            else:
                cupy.copyto(to.array, array)
        phase = self.phases[self.next]
        phase.graph.launch(stream)
        self.next = self.next + 1 if self.next + 1 < len(self.phases) else 0
        self.count += 1
        self.given = self.results(phase, phase.copies.made(stream))
        if self.count % LOOK_EVERY == 0:
            self.look()
        return rebuilt(phase.returned, self.given)

    def results(self, phase: Phase, copies: dict[int, Any]) -> list[Any]:
        """What the caller gets, flat: memory of its own, connected to the window as what the step returned."""
        found: list[Any] = []
        for at, (value, kind) in enumerate(zip(phase.flat, phase.kept, strict=True)):
            if phase.first[at] < at:
                found.append(found[phase.first[at]])
            elif kind == "recorded":
                made = object.__new__(HandedOut)
                made._array, made._slot = copies[at], value._slot
                made.launch, made.place = self.count, phase.places[at]
                self.handed_out.add(made)
                found.append(made)
            else:
                copied = value if kind == "itself" else copies[at]
                found.append(result(copied, 0) if kind == "constant" else copied)
        return found

    def look(self) -> None:
        """Raise NonFiniteError if the host knows by now that a step was refused."""
        for verdict in self.verdicts:
            if verdict.failed():
                raise NonFiniteError(
                    "capture: a gradient on the device was NaN or infinite, a few steps ago.\n"
                    "  That step changed no parameter. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
                )

    def compare(self, before: Any, compared: Any, after: Any) -> None:
        """Run the graphs where the last eager steps began, on their inputs. Raises CaptureError for another result."""
        loop = self.loop
        loop.put_back(before, 2 * loop.period)
        for phase, (inputs, numbers, outputs) in zip(self.phases, compared, strict=True):
            loop.load(inputs)
            loop.put_numbers(numbers)
            phase.graph.launch()
            for value, expected in zip(phase.flat, outputs, strict=True):
                require_close(array_in(value), expected, "a result")
        _, homes, written = after
        for home, expected in zip(loop.homes.values(), homes, strict=True):
            require_close(home.array, expected, f"the value of {home.leaf.name or 'a parameter'}")
        for array, expected in zip(loop.written.values(), written, strict=True):
            require_close(array, expected, "an array that the step writes in place")

    def leave(self) -> None:
        """Python's view of the loop is that of the last launch, and the step is run by Python again."""
        for position in self.phases[0].positions:
            awaken(position.tape)
        for position in self.phases[self.next - 1].positions:
            position.restore()
        for v in list(self.handed_out):
            if v.launch < self.count and v.place is not None:
                v._slot = slot_then(*v.place, self.count - v.launch)
        self.leaving()


def slot_then(tape: CapacitorTape, at: int, age: int) -> int:
    """The slot of what entry `at` computed `age` segments ago: one from before the window, if that is gone."""
    index = tape._count - age
    found = next((segment for segment in tape._closed if segment.index == index), None)
    if found is not None and at < len(found.entries):
        return int(found.entries[at][OUT])
    return max(1, tape._closed[0].first - 1) if tape._closed else 1


def require_close(found: Any, expected: Any, what: str) -> None:
    """Raise CaptureError unless two arrays are equal to rounding."""
    if not on_device(found):
        if not (found == expected or (found != found and expected != expected)):
            raise CaptureError(f"capture: {what} is {found} in the graph and {expected} without it")
        return
    a, b = found.get(), expected.get()
    if a.dtype.kind != "f":
        close = bool(np.array_equal(a, b))
    else:
        largest = float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b)))
        allowed = TOLERANCE.get(a.dtype.itemsize, 1e-3) * max(largest, np.finfo(a.dtype).tiny)
        close = bool(np.all((np.abs(a - b) <= allowed) | (np.isnan(a) & np.isnan(b)) | (a == b)))
    if not close:
        with np.errstate(invalid="ignore"):
            off = float(np.max(np.abs(a - b), initial=0.0))
        raise CaptureError(
            f"capture: {what} ({describe(found)}) differs by {off:.3g} between graph and eager step"
        )
