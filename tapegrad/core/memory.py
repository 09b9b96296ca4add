"""How much a capacitor keeps alive, in bytes: now, and at most so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from .entry import DTYPE, SHAPE
from .printout import kept_buffers
from .replay import held_arrays
from .window import WindowSegment

# Of an entry, what its size depends on: a loop that repeats itself is counted once.
KIND = itemgetter(0, SHAPE, DTYPE)


class Memory:
    """The bytes of a tape's window. `peak` is the largest number that `now` has found."""

    def __init__(self) -> None:
        self.peak = 0
        self._kinds: list[int] = []  # of the segments in the window, when it was looked at last

    def now(self, tape: Any) -> int:
        """Bytes of the buffers behind all arrays that `tape` holds, each counted once, and of its programs."""
        held: dict[int, int] = {}
        for segment in tape._window():
            if segment.buffers is None or segment.index > tape._count:  # the open one still grows
                noted = map(held_arrays, segment.inputs)
                segment.buffers = kept_buffers(itertools.chain(segment.entries, noted))
            held |= segment.buffers
        found: int = sum(held.values()) + tape._programs.nbytes
        self.peak = max(self.peak, found)
        return found

    def look(self, tape: Any, window: Sequence[WindowSegment]) -> None:
        """Note the peak at a sweep: it is counted again when other kinds of segments than before are there."""
        for segment in window:
            if segment.kind is None or segment.index > tape._count:
                segment.kind = hash(tuple(map(KIND, segment.entries)))
        kinds = sorted([segment.kind or 0 for segment in window])
        if kinds != self._kinds:
            self._kinds = kinds
            self.now(tape)
