"""The graphs of a captured loop: compared with eager steps once, and then launched, one for each step of a period."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.capacitor import CapacitorTape
from ..core.variable import Variable, result
from ..errors import CaptureError, NonFiniteError, describe
from ..nest import flat, rebuilt
from .arguments import array_in
from .position import Position

# How far a graph may be from an eager step, relative to the largest element, by bytes of a float.
TOLERANCE = {4: 1e-6, 8: 1e-12}
ON_DEVICE = 3  # cudaMemcpyDeviceToDevice
LOOK_EVERY = 16  # launches between two questions whether a step was refused for its gradients


class Phase:
    """One step of a period: its graph, what it returned when it was captured, and where the tapes stand behind it."""

    def __init__(self, graph: Any, returned: Any, now: Any, positions: list[Position]) -> None:
        self.graph, self.returned, self.flat, self.positions = graph, returned, flat(returned), positions
        self.now = now  # holds what the graph reads


class Graphs:
    """The graphs of one period of a loop, and what a launch needs."""

    def __init__(self, loop: Any) -> None:
        self.loop, self.cupy = loop, loop.cupy
        self.phases: list[Phase] = []
        self.verdicts: list[Any] = []
        self.next, self.count = 0, 0
        self.last = loop.last  # returned by the step before, flat

    def add(self, graph: Any, returned: Any, now: Any) -> None:
        positions = [Position(tape) for tape in self.loop.tapes if isinstance(tape, CapacitorTape)]
        self.phases.append(Phase(graph, returned, now, positions))
        self.verdicts += [verdict for verdict in now.verdicts if verdict not in self.verdicts]

    def accept(self, args: Any, kwargs: Any) -> list[Any]:
        return self.loop.arguments.accept(args, kwargs, self.last)  # type: ignore[no-any-return]

    def launch(self, inputs: list[Any]) -> Any:
        """One step: the inputs to their memory, the graph, and what it returns."""
        cupy, arguments = self.cupy, self.loop.arguments
        stream, copy = cupy.cuda.get_current_stream(), cupy.cuda.runtime.memcpyAsync
        for to, array in zip(arguments.inputs, inputs, strict=True):
            if array.flags.c_contiguous:
                copy(to.address, array.data.ptr, to.nbytes, ON_DEVICE, stream.ptr)
            else:
                cupy.copyto(to.array, array)
        self.loop.push()
        phase = self.phases[self.next]
        phase.graph.launch(stream)
        self.next = self.next + 1 if self.next + 1 < len(self.phases) else 0

        def copied(value: Any) -> Any:
            array = array_in(value)
            made = cupy.empty(array.shape, array.dtype)
            if array.flags.c_contiguous:
                copy(made.data.ptr, array.data.ptr, made.nbytes, ON_DEVICE, stream.ptr)
            else:
                cupy.copyto(made, array)
            return result(made, 0) if isinstance(value, Variable) else made

        self.last = arguments.handed_out(phase.flat, copied)
        self.count += 1
        if self.count % LOOK_EVERY == 0:
            self.look()
        return rebuilt(phase.returned, self.last)

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
        for phase, (inputs, numbers, outputs) in enumerate(compared):
            loop.load(inputs)
            loop.put_numbers(numbers)
            self.phases[phase].graph.launch()
            for value, expected in zip(self.phases[phase].flat, outputs, strict=True):
                require_close(array_in(value), expected, "a result")
        _, homes, written = after
        for home, expected in zip(loop.homes.values(), homes, strict=True):
            require_close(home.array, expected, f"the value of {home.leaf.name or 'a parameter'}")
        for array, expected in zip(loop.written.values(), written, strict=True):
            require_close(array, expected, "an array that the step writes in place")

    def leave(self) -> None:
        """Python's view of the loop is that of the last launch."""
        for position in self.phases[self.next - 1].positions:
            position.restore()


def require_close(found: Any, expected: Any, what: str) -> None:
    """Raise CaptureError unless two arrays are equal to rounding."""
    if not on_device(found):
        if found != expected:
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
