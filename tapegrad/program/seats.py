"""What segments of one signature share, and each segment's place in it.

A *template* belongs to the process: it recognises its segments and holds the programs for them. *Rings*
belong to one tape: the memory that those programs work in, with a place for each segment in the window. A
segment's *seat* is its place there, and what it reads from the segment before.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..core.entry import DTYPE, OUT, SHAPE, Entry
from ..core.window import WindowSegment
from ..kernels.choice import numba_serves
from .emit_numpy import Bound, NumpyProgram
from .plan import Planner
from .rings import Rings
from .signature import Before, Matcher, position_of
from .trace import Graph, Residuals, Trace, trace_backward

# After so many sweeps a signature's programs are Numba's, where that is installed and pays: compiling takes a second
# or two where its cache on disk is empty. A fixed number, so that a run repeats itself bit for bit.
NUMBA_AFTER = 32


class Template:
    """What all segments of one signature share: how to recognise them, their residuals' nodes, their programs."""

    def __init__(self, key: str, entries: Sequence[Entry], first: int) -> None:
        self.key = key
        self.match = Matcher(entries, first).match
        self.ops = ", ".join(f"{at} {entry[0].name}" for at, entry in enumerate(entries))
        self.residuals = Residuals(Graph())
        self._programs: dict[Any, NumpyProgram] = {}
        self._compiled: dict[Any, Any] = {}
        self._reach: dict[tuple[int, ...], frozenset[int]] = {}

    def program(self, segment: WindowSegment, pattern: Pattern, recorded: bool) -> NumpyProgram:
        """The program for cotangents that enter as `pattern` says, made from a segment that is whole."""
        key = (pattern, recorded)
        made = self._programs.get(key)
        if made is None:
            entering, feeds = pattern
            trace = self.trace(segment, entering)
            numbers = {slot: i for i, slot in enumerate(segment.seat.before)}
            plan = Planner(trace, numbers, recorded).plan
            made = self._programs[key] = NumpyProgram(
                plan, self.residuals.where, recorded, dict(feeds) or None
            )
        return made

    def compiled(self, pattern: Pattern, recorded: bool, insist: bool) -> Any:
        """The Numba program beside the one that `program` has made; None where it cannot be or would not pay."""
        key = (pattern, recorded, insist)
        if key not in self._compiled:
            from .emit_numba import numba_program

            plan, feeds = self._programs[pattern, recorded].plan, dict(pattern[1])
            self._compiled[key] = numba_program(plan, self.residuals.where, recorded, feeds or None, insist)
        return self._compiled[key]

    def trace(self, segment: WindowSegment, entering: Iterable[int]) -> Trace:
        """The backward pass of `segment`, on symbols."""
        return trace_backward(segment.entries_today(), segment.first, entering, self.residuals)

    def reach(self, segment: WindowSegment, entering: tuple[int, ...]) -> frozenset[int]:
        """Which leaves (by slot) and which values from before (by number) cotangents at `entering` come to."""
        if entering not in self._reach:
            numbers = {slot: i for i, slot in enumerate(segment.seat.before)}
            slots = (slot for slot, _ in self.trace(segment, entering).contributions)
            self._reach[entering] = frozenset(numbers.get(slot, slot) for slot in slots)
        return self._reach[entering]


# positions of the entries whose outputs carry cotangents; and what feeds them at the next segment, in a loop
Pattern = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]

TEMPLATES: OrderedDict[str, Template] = OrderedDict()


class Seat:
    """A segment's place in the rings of its signature.

    `before`: slots of the values from before, in the order in which the segment reads them. `link`: the
    positions of the entries of the next older segment that computed them, if all were computed there.
    `run`: through how many joints one goes back from here and finds the same link each time, and the places
    side by side: so far a sweep can be one loop.
    """

    __slots__ = ("before", "hoisted", "link", "place", "rings", "run")

    def __init__(self, rings: TapeRings, place: int, before: Before) -> None:
        self.rings, self.place, self.before = rings, place, before
        self.hoisted: set[Bound] = set()  # programs whose factors are in place
        self.link: tuple[int, ...] | None = None
        self.run = 0

    def follow(self, older: WindowSegment | None) -> None:
        """Find where what this segment reads was computed."""
        seat = older.seat if older is not None else None
        if older is None or seat is None or seat.rings is not self.rings or not self.before:
            return
        if not older.entries:  # it was dropped, and stays because a loss waits in a still older one
            return
        guess = self.rings.link
        entries = older.entries
        if guess is None or any(
            entries[at][OUT] != slot for at, slot in zip(guess, self.before, strict=True)
        ):
            guess = tuple(position_of(entries, slot) for slot in self.before)
            if -1 in guess:
                return
        self.rings.link = self.link = guess
        if self.place == (seat.place + 1) % self.rings.capacity:
            self.run = 1 + (seat.run if seat.link == guess else 0)


class TapeRings(Rings):
    """The rings of one signature on one tape, and the programs bound to them."""

    def __init__(self, template: Template, capacity: int, recorded: bool) -> None:
        super().__init__(capacity)
        self.sweeps = 0
        self.numba = ""  # how Numba is wanted, once it is
        self.template, self.recorded = template, recorded
        self.bound: dict[Pattern, Bound] = {}
        self.link: tuple[int, ...] | None = None  # the latest seat's
        self.bodies: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.nothing: dict[int, Any] = {}

    def program(self, pattern: Pattern, segment: WindowSegment) -> Bound:
        """The program for cotangents that enter as `pattern` says."""
        bound = self.bound.get(pattern)
        if bound is None:
            made = self.template.program(segment, pattern, self.recorded)
            fast = None
            if self.numba or EAGER:
                fast = self.template.compiled(pattern, self.recorded, self.numba == "insist")
                if fast is not None and EAGER:
                    fast.function("hoist"), fast.function("sweep")
                    EAGER[-1].append(fast.compiled_in)
            bound = self.bound[pattern] = (fast if fast is not None and self.numba else made).bind(self)
        return bound

    def count_sweep(self, mode: Any) -> bool:
        """Another sweep begins. Whether from now on programs are Numba's, where those pay."""
        self.sweeps += 1
        if (
            self.numba
            or mode == "numpy"
            or self.sweeps <= (0 if mode == "numba" else NUMBA_AFTER)
            or not numba_serves()
        ):
            return False
        self.numba = "insist" if mode == "numba" else "where it pays"
        self.bound.clear()
        self.bodies.clear()
        return True

    def body(self, link: tuple[int, ...], segment: WindowSegment) -> tuple[int, ...]:
        """The positions at which cotangents enter again and again where `link` repeats itself; () if they do not."""
        if link not in self.bodies:
            entering = tuple(sorted(set(link))) if len(set(link)) == len(link) else ()
            while entering:
                left = tuple(sorted({link[n] for n in self.program((entering, ()), segment).leaving}))
                if left == entering:
                    break
                entering = left if len(left) < len(entering) else ()
            self.bodies[link] = entering
        return self.bodies[link]

    def loop(self, entering: tuple[int, ...], link: tuple[int, ...], segment: WindowSegment) -> Bound | None:
        """The program that repeats itself over segments linked by `link`; other positions have one seed for all."""
        body = self.body(link, segment)
        if not body or not set(entering).issuperset(body):
            return None
        left = self.program((entering, ()), segment).leaving
        feeds = {link[n]: n for n in left}
        if tuple(sorted(feeds)) != body:
            return None
        return self.program((entering, tuple(sorted(feeds.items()))), segment)

    def alike(self, segment: WindowSegment, some: tuple[int, ...], more: tuple[int, ...]) -> bool:
        """Whether nothing else is reached when cotangents of zeros enter at `more` positions."""
        return self.template.reach(segment, some) == self.template.reach(segment, more)

    @staticmethod
    def one(entry: Entry) -> Any:
        """The cotangent of a scalar loss."""
        return np.ones((), entry[DTYPE])

    def zeros(self, position: int, entry: Entry) -> Any:
        """A cotangent of nothing for the output at `position`."""
        if position not in self.nothing:
            self.nothing[position] = np.zeros(entry[SHAPE], entry[DTYPE])
        return self.nothing[position]


EAGER: list[Any] = []  # not empty: whatever is made now is compiled now


@contextlib.contextmanager
def compiling_at_once() -> Iterator[list[Any]]:
    """A scope in which programs are compiled through Numba, too, as soon as they are made; yields the seconds that each took."""
    made: list[Any] = []
    EAGER.append(made)
    try:
        yield made
    finally:
        EAGER.remove(made)
