"""Where a tape stands in its loop, noted and put back: what Python knows of the window, not the arrays.

A graph that repeats a step repeats no Python, so a tape stays where it was when the step was captured. The arrays
that its segments name hold today's values (`arenas.py`): it can go on from there. Whoever touches it meanwhile
wakes it first, and finds it where the loop is.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

from ..backend.device import on_device
from ..core.capacitor import CapacitorTape
from ..core.variable import LEAVES, Variable
from ..core.window import WindowSegment


class Position:
    """What a CapacitorTape holds between two steps."""

    def __init__(self, tape: CapacitorTape) -> None:
        self.tape = tape
        self.segments = [copied(segment) for segment in tape._closed]
        self.losses = [[(loss, set(loss.waiting)) for loss in segment.losses] for segment in self.segments]
        self.spans = [
            [(span, span.start, span.stop, span.held) for span in segment.spans] for segment in self.segments
        ]
        self.clocks = [
            (clock, clock.now, clock.swept, clock.forgotten, clock.before, [span for _, span in clock.spans])
            for clock in tape._clocks
        ]
        self.counts = tape._count, tape._warned, list(tape._wanted), list(tape._evicted)

    def restore(self) -> None:
        """The tape is where it was."""
        tape, home = self.tape, {}
        tape._programs.reset()
        tape._closed.clear()
        for noted, losses, spans in zip(self.segments, self.losses, self.spans, strict=True):
            segment = copied(noted)  # the note may be needed again
            tape._closed.append(segment)
            for loss, waiting in losses:
                loss.waiting = set(waiting)
            segment.losses = [loss for loss, _ in losses]
            for span, start, stop, held in spans:
                span.start, span.stop, span.held = start, stop, held
                home[id(span)] = segment
        for clock, now, swept, forgotten, before, listed in self.clocks:
            clock.now, clock.swept, clock.forgotten, clock.before = now, swept, forgotten, before
            clock.spans = deque((home[id(span)], span) for span in listed)
        if tape._closed:
            tape._segment = tape._closed[-1]
        tape._count, tape._warned, wanted, evicted = self.counts
        tape._wanted = list(wanted)
        tape._evicted.clear()
        tape._evicted.extend(evicted)


def copied(segment: WindowSegment) -> WindowSegment:
    """`segment` with lists of its own."""
    made = copy.copy(segment)
    made.entries, made.inputs, made.spans = list(segment.entries), list(segment.inputs), list(segment.spans)
    made.losses = list(segment.losses)
    made.seat = made.swept_by = made.signature = None
    return made


class Leaves:
    """The values and gradients of all leaves on a device, noted and put back."""

    def __init__(self) -> None:
        self.noted = [
            (leaf, leaf._array, leaf._grad) for leaf in list(LEAVES.values()) if on_device(leaf._array)
        ]

    def changed(self) -> list[tuple[Variable, bool]]:
        """Those that have another value or another gradient now, and whether it is the gradient."""
        return [
            (leaf, leaf._grad is not grad)
            for leaf, array, grad in self.noted
            if leaf._array is not array or leaf._grad is not grad
        ]

    def restore(self) -> None:
        for leaf, array, grad in self.noted:
            leaf._array, leaf._grad = array, grad


# -- tapes whose loop goes on without them -----------------------------------------------------------------------
#
# Between two launches such a tape is asleep. Asking it for anything wakes it: Python's view of it is brought to where
# the loop is, and the graphs are left.

SAME = frozenset(["weights", "joint", "__class__"])  # what no step changes


def get(tape: CapacitorTape, name: str) -> Any:
    """`tape.name`, awake, unless no step changes that."""
    if name in SAME:
        return object.__getattribute__(tape, name)
    object.__getattribute__(tape, "_wake")()
    return getattr(tape, name)


def put(tape: CapacitorTape, name: str, value: Any) -> None:
    """`tape.name = value`, awake."""
    object.__getattribute__(tape, "_wake")()
    setattr(tape, name, value)


def put_to_sleep(tape: CapacitorTape, wake: Callable[[], None]) -> None:
    """Asking `tape` for anything calls `wake` first, which is to call `awaken`."""
    kind = type(tape)
    tape._wake = wake  # type: ignore[attr-defined]
    tape.__class__ = type(
        kind.__name__, (kind,), {"__slots__": (), "__getattribute__": get, "__setattr__": put}
    )


def awaken(tape: CapacitorTape) -> None:
    """`tape` is an ordinary one again."""
    if "_wake" in object.__getattribute__(tape, "__dict__"):
        object.__setattr__(tape, "__class__", type(tape).__bases__[0])
        del tape._wake  # type: ignore[attr-defined]
