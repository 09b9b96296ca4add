"""A CapacitorTape's sweep by programs: which segments are alike, which program each one needs, and the run.

A segment whose signature was seen before gets a *seat*: a place in the rings of its signature. A sweep
walks from seat to seat. Its programs differ by which outputs of a segment carry cotangents: the newest has
its loss, the others the state that the next one read. Where the same program follows itself, as in the
body of a window, the walk is a loop inside the program.

Whatever does not fit is left to the sweep by rules: nothing here changes what a sweep means.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ..core.adjoints import AdjointMap, Adjoints
from ..core.entry import DTYPE, OUT, SHAPE, Entry
from ..core.schedule import Sliding
from ..core.sweep import Joints, Sweep
from ..core.variable import LEAVES, Result
from ..core.window import Clock, WindowSegment
from ..errors import ArgumentError
from ..kernels.choice import numba_serves
from .emit_numpy import Bound, NumpyProgram
from .plan import Group, Planner
from .rings import Rings, Settled
from .settle import Product, Settlement
from .signature import SIGHTINGS, Before, Matcher, position_of, signature
from .trace import Graph, Residuals, Trace, trace_backward

SIGNATURES_KEPT = 256  # in the process, with their code
SHORTEST = 16  # places at first where the schedule names no window
ROUNDS = 3  # of seating a window: larger rings for one signature unseat what sat in the smaller ones
# After so many sweeps a signature's programs are Numba's, where that is installed and pays: compiling takes a second
# or two where its cache on disk is empty. A fixed number, so that a run repeats itself bit for bit.
NUMBA_AFTER = 32
PATHS_KEPT = 16  # signatures that one tape holds rings for


class Template:
    """What all segments of one signature share: how to recognise them, their residuals' nodes, their programs."""

    def __init__(self, key: str, entries: Sequence[Entry], first: int) -> None:
        self.key = key
        self.matcher = Matcher(entries, first)
        self.match = self.matcher.match
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
    """A scope in which programs are compiled through Numba, too, as soon as they are made; yields those."""
    made: list[Any] = []
    EAGER.append(made)
    try:
        yield made
    finally:
        EAGER.remove(made)


class Replays:
    """The programs of one tape. `mode`: True, or "exact"."""

    def __init__(self, tape: Any, mode: Any) -> None:
        self.tape, self.mode = tape, mode
        self.rings: OrderedDict[Template, TapeRings] = OrderedDict()
        self.seen: dict[str, int] = {}
        self.promised: dict[str, Any] = {}  # capacity, next place and sweeps of rings that a snapshot had
        self.outstanding: Settlement | None = None  # gradients that may still be products of rings
        self.latest: Callable[[], Sweep | None] = nobody  # the last sweep, if somebody holds it
        self.recorded = tape.weights == "recorded"
        self.steady: Steady | None = None  # how the last sweep can be repeated

    def reset(self) -> None:
        """No segment is left: every place is free."""
        self.release()
        self.steady = None
        for rings in self.rings.values():
            rings.holders, rings.next = [None] * rings.capacity, 0

    def source(self) -> str:
        """The programs as text."""
        texts = []
        for number, rings in enumerate(self.rings.values()):
            for (entering, feeds), bound in rings.bound.items():
                title = f"# signature {number}: {rings.template.ops}\n# cotangents enter at {', '.join(f'entry {at}' for at in entering)}"
                if feeds:
                    title += "; what leaves a segment enters the next one: " + ", ".join(
                        f"n{n} is c{at}" for at, n in feeds
                    )
                texts.append(f"{title}\n\n{bound.program.source}")
        return "\n\n\n".join(texts)

    @property
    def nbytes(self) -> int:
        """Bytes of all rings and buffers."""
        return sum(rings.nbytes for rings in self.rings.values())

    # -- snapshots -----------------------------------------------------------------------------------

    def state_dict(self, note: Callable[[int], Any]) -> dict[str, Any]:
        """Who sits where, so that a tape that is resumed adds up in the same order: text, numbers and lists.

        `note` is told the slots of leaves; a signature with a leaf of which it will not hear is left out.
        """

        def noted(key: str) -> bool:
            try:
                for found in re.findall(r"leaf(-\d+)", key):
                    note(int(found))
            except ArgumentError:
                return False
            return True

        return {
            "seen": [[key, count] for key, count in self.seen.items() if noted(key)],
            "rings": [[t.key, r.capacity, r.next, r.sweeps] for t, r in self.rings.items() if noted(t.key)],
            # A place, -1 for a segment that was counted and has none, None for one that was never looked at.
            "places": [
                s.seat.place if s.seat and s.entries else None if s.signature is None else -1
                for s in self.tape._closed
            ],
        }

    def load_state_dict(self, state: dict[str, Any], slots: Callable[[int], int]) -> None:
        """Seat the segments of the tape as `state_dict` says; `slots` turns the slots of then into those of now."""

        def now(key: str) -> str:
            return re.sub(r"leaf(-\d+)", lambda found: f"leaf{slots(int(found[1]))}", key)

        self.seen = {now(key): count for key, count in state["seen"]}
        self.promised = {now(key): numbers for key, *numbers in state["rings"]}
        for segment, place in zip(self.tape._closed, state["places"], strict=True):
            if place is None or not segment.entries:
                continue
            segment.signature = key = signature(segment.entries, segment.first)
            if place < 0:
                continue
            template = self.template(key, segment)
            if template not in self.rings:
                self.give_rings(template, 0)
            rings, before = self.rings[template], template.match(segment.entries, segment.first)
            assert before is not None, "an entry was not restored as it was"
            rings.holders[place] = segment
            segment.seat, segment.swept_by = Seat(rings, place, before), self
            segment.seat.follow(self.older(segment))

    # -- seats ---------------------------------------------------------------------------------------

    def seat(self, segment: WindowSegment) -> Seat | None:
        """The segment's seat, given now if its signature has been seen before."""
        seat = segment.seat
        if seat is not None:
            return seat  # type: ignore[no-any-return]
        known = self.known(segment)
        if known is not None:
            return self.seated(segment, *known)
        entries, first = segment.entries, segment.first
        key = self.sight(segment)
        if not key or self.seen.get(key, 0) < SIGHTINGS:
            return None
        template = self.template(key, segment)
        if template not in self.rings:
            self.give_rings(template, self.tape.schedule.window or SHORTEST)
        before = template.match(entries, first)
        return None if before is None else self.seated(segment, self.rings[template], before)

    def known(self, segment: WindowSegment) -> tuple[TapeRings, Before] | None:
        """The rings of the segment's signature, and what the segment reads from before."""
        for template, rings in reversed(self.rings.items()):
            before = template.match(segment.entries, segment.first)
            if before is not None:
                return rings, before
        return None

    def sight(self, segment: WindowSegment) -> str:
        """The segment's signature, counted once; "" if it has none."""
        key: str | None = segment.signature
        if key is None:
            key = segment.signature = signature(segment.entries, segment.first)
            self.seen[key] = self.seen.get(key, 0) + 1
            while len(self.seen) > SIGNATURES_KEPT:
                del self.seen[next(iter(self.seen))]
        return key

    @staticmethod
    def template(key: str, segment: WindowSegment) -> Template:
        made = TEMPLATES.get(key)
        if made is None:
            made = TEMPLATES[key] = Template(key, segment.entries, segment.first)
            while len(TEMPLATES) > SIGNATURES_KEPT:
                TEMPLATES.popitem(last=False)
        return made

    def give_rings(self, template: Template, capacity: int) -> None:
        """New rings for a signature; those that were used longest ago go where there are many."""
        before = self.rings.get(template)
        capacity, following, sweeps = self.promised.pop(
            template.key, (capacity, 0, before.sweeps if before else 0)
        )
        self.rings[template] = made = TapeRings(template, capacity, self.recorded)
        made.next, made.sweeps = following, sweeps
        while len(self.rings) > PATHS_KEPT:
            _, gone = self.rings.popitem(last=False)
            self.unseat(gone)

    def unseat(self, rings: TapeRings) -> None:
        """Nobody sits in `rings` any more."""
        for segment in rings.holders:
            if segment is not None and segment.seat is not None and segment.seat.rings is rings:
                segment.seat = None

    def seated(self, segment: WindowSegment, rings: TapeRings, before: Before) -> Seat | None:
        """A seat for `segment`, in larger rings if these are full."""
        place = rings.take(segment)
        if place < 0:
            self.release()
            self.give_rings(rings.template, 2 * rings.capacity)
            self.unseat(rings)
            rings = self.rings[rings.template]
            place = rings.take(segment)
        seat = segment.seat = Seat(rings, place, before)
        segment.swept_by = self
        seat.follow(self.older(segment))
        return seat

    def older(self, segment: WindowSegment) -> WindowSegment | None:
        """The segment before this one, if it is still kept."""
        closed = self.tape._closed
        if closed and closed[-1] is segment:  # as nearly always
            return closed[-2] if len(closed) > 1 else None
        at = bisect_left(closed, segment.index, key=attrgetter("index"))
        return closed[at - 1] if at else None

    # -- the sweep -----------------------------------------------------------------------------------

    def run(self, sweep: Sweep, window: Sequence[WindowSegment], clocks: Sequence[Clock]) -> bool:
        """Sweep `window` by programs. False, and nothing has changed, if it has to be swept by rules."""
        tape, steady = self.tape, self.steady
        if steady is not None:  # what it knows of the segments has to be noted in each
            self.steady = None
            for segment in steady.window():
                segment.adjoints = copied(steady.adjoints_of(segment) or {})
            self.release()  # it knows who sat where, and a seat may be given away now
        if tape.recording or tape.weights == "replay":
            return False
        joints = Joints(window, clocks, tape.joint)
        window = [segment for segment in window if segment.index >= joints.last]
        if not joints.all_collected or any(len(s.spans) != 1 or s.guarded for s in window):
            return False
        handed_in = {loss.slot for segment in window for loss in segment.losses}
        if any(segment.holds(slot) for slot in sweep.kept if slot not in handed_in for segment in window):
            return False  # somebody asks for an adjoint inside
        full = [segment for segment in window if segment.entries]
        unknown = [segment for segment in full if segment.seat is None and not self.known(segment)]
        for segment in unknown:
            self.sight(segment)
        # From the oldest to the newest, so that neighbours sit side by side. Rings may be replaced on the way.
        for _ in range(ROUNDS):
            seats = [self.seat(segment) for segment in full]
            if all(seat is segment.seat for seat, segment in zip(seats, full, strict=True)):
                break
        else:
            return False
        seated = [
            segment for segment in full if segment.seat is not None
        ]  # the others are pulled through by rules
        if not seated or any(segment.seat.rings.capacity < len(window) for segment in seated):
            return False
        self.release()
        for rings in {id(segment.seat.rings): segment.seat.rings for segment in seated}.values():
            rings.count_sweep(self.mode)
        found = Pass(sweep, clocks, joints)
        if not found.walk(window):
            return False
        found.settle()
        self.steady = self.settled_down(found, window, clocks)
        self.outstanding = sweep.settlement
        self.latest = weakref.ref(sweep)
        return True

    def settled_down(
        self, found: Pass, window: Sequence[WindowSegment], clocks: Sequence[Clock]
    ) -> Steady | None:
        """The way to repeat a sweep that was the newest segment's loss and one loop over all the others."""
        clock, tape = clocks[0], self.tape
        if len(tape._clocks) > 1 or found.looped is None or found.first is None or len(found.seeded) != 1:
            return None
        at, count, body = found.looped
        newest = window[-1]
        plain = type(clock.schedule) is Sliding and len(window) == len(tape._closed) == count + 1
        (position, *others), head = found.first
        if not plain or others or at != len(window) - 2 or found.plain_losses(newest) != (position,):
            return None
        inside = {id(rings) for rings, _ in body.groups} <= {id(rings) for rings, _ in head.groups}
        complete = set(dict(body.program.feeds or {}).values()) <= set(head.leaving)
        link = newest.seat.link
        if not inside or not complete or link is None or (count > 1 and window[-2].seat.link != link):
            return None
        made = Steady(self, newest, position, head, body)
        made.count = len(window)
        return made

    def adjoints_of(self, segment: WindowSegment) -> AdjointMap | None:
        """What entered `segment` in a steady sweep, if that was its last."""
        found = None if self.steady is None else self.steady.adjoints_of(segment)
        return None if found is None else copied(found)

    def again(self, root: Any) -> Sweep | None:
        """The sweep for the loss `root`, if it is due and all goes on as in the sweep before; else None."""
        tape, steady = self.tape, self.steady
        if steady is None or tape._owner is not None or tape._wanted:
            return None
        clock: Clock = tape._clocks[0]
        if not clock.schedule.due(clock.now, clock.swept) or tape._closed[-1].index != clock.now:
            return None
        if clock.now - clock.swept > 1 or type(root) is not Result:
            return None
        return steady.sweep(tape, root, clock)

    def release(self) -> None:
        """The rings are about to be written to: form what somebody may still read out of them."""
        if self.outstanding is not None:
            self.outstanding.release()
            self.outstanding = None
        sweep = self.latest()
        if sweep is not None:
            sweep.keep_all()
            self.latest = nobody


def nobody() -> None:
    """A weak reference to nothing."""


class Steady:
    """The sweep of a loop that goes on as it did: a head for the newest segment's loss, a body for all others.

    Made when a sweep was a head and one loop over the whole window. As long as the next segments fit, a sweep
    is two calls, and nothing about the window is looked at again.
    """

    def __init__(
        self, replays: Replays, segment: WindowSegment, position: int, head: Bound, body: Bound
    ) -> None:
        self.replays, self.rings, self.position = replays, segment.seat.rings, position
        self.head, self.body, self.count = head, body, 0
        feeds = dict(body.program.feeds or {})
        left = dict(zip(head.leaving, head.joints, strict=True))
        self.enters = [left[feeds[at]][0] for at in body.entering]
        self.seed = np.ones((), segment.entries[position][DTYPE])
        zeros = self.rings.zeros
        self.starts = [
            self.seed if at == position else zeros(at, segment.entries[at]) for at in head.entering
        ]
        self.settled: dict[tuple[int, int], dict[int, list[Product]]] = {}
        self.newest: Any = segment
        self.length, self.link = len(segment.entries), segment.seat.link
        self.totals = [*head.totals.values(), *body.totals.values()]
        self.stacked = [rings for rings, _ in head.groups]
        self.head_leaves, self.body_leaves = ([LEAVES[slot] for slot in b.leaf_slots] for b in (head, body))

    def sweep(self, tape: Any, root: Any, clock: Clock) -> Sweep | None:
        """The sweep for `root`, or None, and nothing has changed, if something is not as it was."""
        closed = tape._closed
        segment: WindowSegment = closed[-1]
        count, entries, rings = len(closed), segment.entries, self.rings
        older = self.newest
        if segment.losses or segment.seat is not None or count < 2 or closed[-2] is not older:
            return None
        if len(entries) != self.length or entries[self.position][OUT] != root._slot:
            return None
        before = rings.template.match(entries, segment.first)
        link, computed, previous = self.link, older.entries, older.seat
        if before is None or previous.run < count - 2 or (count > 2 and previous.link != link):
            return None
        for at, slot in zip(link, before, strict=True):
            if computed[at][OUT] != slot:
                return None
        place = previous.place + 1
        if place == rings.capacity:
            place = 0
        if (held := rings.holders[place]) is not None and held.held:
            return None
        if rings.count_sweep(self.replays.mode):
            self.replays.steady = None
            return None
        self.replays.release()
        seat = segment.seat = Seat(rings, place, before)
        seat.link, seat.run, segment.swept_by = link, previous.run + 1, self.replays
        rings.holders[place] = segment
        rings.next = place + 1 if place + 1 < rings.capacity else 0
        head, body, behind = self.head, self.body, previous.place
        if body not in previous.hoisted:
            body.hoist(behind, computed)
            previous.hoisted.add(body)
        head.hoist(place, entries)
        seat.hoisted.add(head)
        for settled in self.stacked:
            settled.filled[place] = seat
        head.stack(place)
        for total in self.totals:
            total.fill(0)
        head.sweep(
            head.back(place, 1),
            0,
            [v._array for v in self.head_leaves],
            self.starts,
            head.joints,
            rings.entries_at,
        )
        leaves = [v._array for v in self.body_leaves]
        body.sweep(body.back(behind, count - 1), 1, leaves, self.enters, body.joints, rings.entries_at)
        self.newest, self.count = segment, count
        return self.found(root, clock, place, count)

    def found(self, root: Any, clock: Clock, place: int, count: int) -> Sweep:
        """What the two calls left behind, as a Sweep."""
        products = self.settled.get((place, count))
        if products is None:
            products = self.settled[place, count] = self.products(place, count)
        settlement = Settlement(products)
        for slot, total in (*self.head.totals.items(), *self.body.totals.items()):
            settlement.totals.setdefault(slot, []).append(total)
        sweep = Sweep()
        sweep.kept = {root._slot: self.seed}
        sweep._seeded = {root._slot}
        sweep.losses, sweep.segments = 1, count
        sweep.settlement, sweep.lazy_joints = settlement, self.pending
        self.replays.outstanding = settlement
        self.replays.latest = weakref.ref(sweep)
        clock.swept = clock.now
        return sweep

    def products(self, place: int, count: int) -> dict[int, list[Product]]:
        """The parameters' gradients as products, for a window whose newest segment sits in `place`."""
        made: dict[int, list[Product]] = {}
        places: dict[int, tuple[Settled, Group, list[int]]] = {}
        for bound, seats in (
            (self.head, self.head.back(place, 1)),
            (self.body, self.body.back((place - 1) % self.rings.capacity, count - 1)),
        ):
            for rings, group in bound.groups:
                places.setdefault(id(rings), (rings, group, []))[2].extend(int(k) for k in seats)
        for rings, group, filled in places.values():
            add_products(made, rings, group, filled)
        return made

    def pending(self) -> list[dict[int, Any]]:
        """The cotangents at every joint of the latest sweep, newest first, by slot."""
        assert self.newest is not None
        found = []
        seats = [s.seat for s in reversed(self.window())]
        for p, seat in enumerate(seats):
            bound = self.body if p else self.head
            found.append({seat.before[n]: cts[p] for n, cts in zip(bound.leaving, bound.joints, strict=True)})
        return found

    def window(self) -> list[WindowSegment]:
        """The segments of the latest sweep, oldest first."""
        holders = self.rings.holders
        assert self.newest is not None
        places = self.newest.seat.place
        return [holders[(places - i) % self.rings.capacity] for i in range(self.count - 1, -1, -1)]

    def adjoints_of(self, segment: WindowSegment) -> dict[int, Any] | None:
        """What entered `segment` in the latest sweep, by slot; None if it was not part of it."""
        p = self.newest.index - segment.index if self.newest.seat.rings is segment.seat.rings else -1
        if not 0 <= p < self.count or not segment.held:
            return None
        if p == 0:
            return {segment.entries[self.position][OUT]: self.seed}
        return self.pending()[p - 1]


def add_products(made: dict[int, list[Product]], rings: Settled, group: Group, places: list[int]) -> None:
    """Note the products of one group over the rows in `places`, by leaf slot."""
    rows = [slice(start * rings.rows, stop * rings.rows) for start, stop in blocks_of(places)]
    lefts = [[left[r] for r in rows] for left in rings.left_rows]
    deltas = [rings.delta_rows[r] for r in rows]
    for slot, number, chain in group.targets:
        blocks = [*zip(lefts[number], deltas, strict=True)]
        made.setdefault(slot, []).append(Product(blocks, chain))


class Pass:
    """One sweep over seated segments, which leaves its findings in `sweep`."""

    def __init__(self, sweep: Sweep, clocks: Sequence[Clock], joints: Joints) -> None:
        self.sweep, self.clocks, self.joints = sweep, clocks, joints
        self.pending: dict[int, Any] = {}
        self.written: dict[int, tuple[Settled, Group, list[int]]] = {}  # by rings: the places
        self.totals: dict[int, tuple[int, Any]] = {}  # by accumulator: its leaf, and itself
        self.at_joints: list[dict[int, Any]] = []
        self.entered: list[tuple[WindowSegment, dict[int, Any]]] = []
        self.seeded: set[int] = set()
        self.kept: dict[int, Any] = {}
        self.ruled: list[tuple[int, Any]] = []  # what leaves got by rules
        self.looped: tuple[int, int, Bound] | None = None
        self.first: tuple[tuple[int, ...], Bound] | None = None  # the newest segment's positions and program

    def walk(self, window: Sequence[WindowSegment]) -> bool:
        """From the newest segment to the oldest; False if a cotangent has no known place."""
        joints, at = self.joints, len(window) - 1
        left = sum([loss.seeds(self.clocks) for segment in window for loss in segment.losses])
        plain = joints.joint is None and not joints.scaled and not joints.may_end
        while at >= 0:
            segment = window[at]
            count = self.loop(window, at) if plain and segment.seat is not None and segment.seat.run else 0
            if count:
                at -= count
                continue
            left -= self.seed(segment)
            if not self.through(segment):
                return False
            crossed = dict(self.pending)
            self.at_joints.append(crossed)
            self.pending = dict(joints.cross(segment, window[at - 1] if at else None, crossed))
            if joints.may_end and joints.end(segment, self.sweep, AdjointMap(crossed).norm, not left):
                break
            at -= 1
        return True

    def through(self, segment: WindowSegment) -> bool:
        """Pull what is pending for a segment through it."""
        here = {slot: ct for slot, ct in self.pending.items() if slot >= segment.first or slot < 0}
        self.entered.append((segment, here))
        if not here:
            return True
        positions = {position_of(segment.entries, slot): slot for slot in here if slot > 0}
        if -1 in positions or len(positions) < len(here):
            return False
        seat = segment.seat
        if seat is None:
            return self.by_rules(segment, here)
        bound = self.single(segment, positions)
        for at, slot in positions.items():
            if slot in self.sweep.kept:
                if at not in bound.bare:
                    return False  # somebody asks for an adjoint that is more than what enters
                self.kept[slot] = here[slot]
        if not self.at_joints:
            self.first = (tuple(positions), bound)
        ins = self.entering(bound, segment, positions)
        for slot in here:
            del self.pending[slot]
        self.prepare(segment, bound)
        joint = len(self.at_joints)
        bound.sweep(
            bound.back(seat.place, 1), joint, bound.leaves(), ins, bound.joints, seat.rings.entries_at
        )
        for number, cts in zip(bound.leaving, bound.joints, strict=True):
            slot = seat.before[number]
            held = self.pending.get(slot)
            self.pending[slot] = cts[joint] if held is None else held + cts[joint]
        return True

    def by_rules(self, segment: WindowSegment, here: dict[int, Any]) -> bool:
        """Pull cotangents through a segment that has no program; False if one stays inside."""
        adjoints = Adjoints()
        adjoints.sums.update(here)
        adjoints.kept.update(dict.fromkeys(slot for slot in here if slot in self.sweep.kept))
        adjoints.sweep(reversed(segment.entries_today()))
        self.kept.update(adjoints.kept)
        for slot in here:
            del self.pending[slot]
        for slot, ct in adjoints.sums.items():
            if slot >= segment.first:
                return False
            if slot < 0:
                self.ruled.append((slot, np.array(ct)))
            else:
                held = self.pending.get(slot)
                self.pending[slot] = ct if held is None else held + ct
        return True

    def single(self, segment: WindowSegment, positions: Iterable[int]) -> Bound:
        """The program for a segment. Where it can it has the entrances of the loop's body too, to share its factors."""
        rings, exactly = segment.seat.rings, tuple(sorted(positions))
        body = rings.body(rings.link, segment) if rings.link is not None else ()
        entering = tuple(sorted({*positions, *body}))
        same = entering == exactly or rings.alike(segment, exactly, entering)
        return rings.program((entering if same else exactly, ()), segment)  # type: ignore[no-any-return]

    def entering(self, bound: Bound, segment: WindowSegment, positions: dict[int, int]) -> list[Any]:
        """What enters a segment, in the program's order: nothing where nothing is pending."""
        zeros = segment.seat.rings.zeros
        return [
            self.pending[positions[at]] if at in positions else zeros(at, segment.entries[at])
            for at in bound.entering
        ]

    def seed(self, segment: WindowSegment) -> int:
        """Add the cotangents that were handed in for a segment's values to what is pending. Returns how many."""
        seeds = [loss for loss in segment.losses if loss.seeds(self.clocks)]
        for loss in seeds:
            held = self.pending.get(loss.slot)
            self.pending[loss.slot] = loss.seed if held is None else held + loss.seed
            self.seeded.add(loss.slot)
        return len(seeds)

    def loop(self, window: Sequence[WindowSegment], at: int) -> int:
        """Sweep as many segments as one program can; returns how many, 0 if it should be one by one.

        They are linked in one way, and each has a loss in the same position, or none has.
        """
        segment = window[at]
        seat = segment.seat
        losses = self.plain_losses(segment)
        if losses is None:
            return 0
        count = 1
        while count <= min(seat.run, at) and self.plain_losses(window[at - count]) == losses:
            count += 1
        slots = {position_of(segment.entries, slot): slot for slot in self.pending}
        body = seat.rings.body(seat.link, segment)
        entering, exactly = (tuple(sorted({*more, *losses})) for more in (body, slots))
        if count < 2 or -1 in slots or not set(slots).issubset(entering):
            return 0
        if not set(losses).isdisjoint(
            {*body, *slots}
        ):  # a loss that is also read on has more than its own cotangent
            return 0
        if exactly != entering and not seat.rings.alike(segment, exactly, entering):
            return 0
        bound = seat.rings.loop(entering, seat.link, segment)
        if (
            bound is None
            or not bound.bare.issuperset(losses)
            or any(s in self.sweep.kept for s in self.pending)
        ):
            return 0
        for i in range(count):
            self.prepare(window[at - i], bound)
            if losses:
                self.kept.update({loss.slot: loss.seed for loss in window[at - i].losses})
                self.seeded.update(loss.slot for loss in window[at - i].losses)
        self.pending.update(
            {segment.entries[position][OUT]: seat.rings.one(segment.entries[position]) for position in losses}
        )
        slots.update({position: segment.entries[position][OUT] for position in losses})
        joint = len(self.at_joints)
        ins = self.entering(bound, segment, slots)
        bound.sweep(
            bound.back(seat.place, count), joint, bound.leaves(), ins, bound.joints, seat.rings.entries_at
        )
        here = self.pending
        for i in range(count):
            swept = window[at - i]
            seeds = {loss.slot: loss.seed for loss in swept.losses} if losses else {}
            self.entered.append((swept, {**here, **seeds}))
            before = swept.seat.before
            here = {before[n]: cts[joint + i] for n, cts in zip(bound.leaving, bound.joints, strict=True)}
            self.at_joints.append(here)
        self.pending = dict(here)
        self.looped = (at, count, bound)
        return count

    def plain_losses(self, segment: WindowSegment) -> tuple[int, ...] | None:
        """The positions of a segment's losses, if all are scalars with a cotangent of 1 that wait for this sweep."""
        if not segment.losses:
            return ()
        found = []
        for loss in segment.losses:
            at = position_of(segment.entries, loss.slot)
            if at < 0 or loss.seed.shape != () or loss.seed != 1 or not loss.seeds(self.clocks):
                return None
            found.append(at)
        return tuple(sorted(found))

    def prepare(self, segment: WindowSegment, bound: Bound) -> None:
        """Factors into place, accumulators to zero; note what is to be settled."""
        seat = segment.seat
        if bound not in seat.hoisted:
            bound.hoist(
                seat.place, segment.entries
            )  # which lack leaves under "current", and nothing hoists those
            seat.hoisted.add(bound)
        for rings, group in bound.groups:
            if rings.filled[seat.place] is not seat:
                bound.stack(seat.place)
                rings.filled[seat.place] = seat
            written = self.written.get(id(rings))
            if written is None:
                written = self.written[id(rings)] = (rings, group, [])
            written[2].append(seat.place)
        for slot, total in bound.totals.items():
            if id(total) not in self.totals:
                total.fill(0)
                self.totals[id(total)] = (slot, total)

    def settle(self) -> None:
        """Note the products that give the parameters' gradients, and hand everything to the sweep."""
        products: dict[int, list[Product]] = {}
        for rings, group, places in self.written.values():
            add_products(products, rings, group, places)
        settlement = Settlement(products)
        for slot, total in (*self.totals.values(), *self.ruled):
            settlement.totals.setdefault(slot, []).append(total)
        sweep = self.sweep
        for slot, ct in self.pending.items():  # a leaf that is a root itself
            if slot < 0:
                sweep.add(slot, ct)
        sweep.kept.update({slot: ct for slot, ct in self.kept.items() if slot in sweep.kept})
        sweep._seeded |= self.seeded
        sweep.losses = len(sweep._seeded)
        sweep.segments = max(sweep.segments, len(self.at_joints))
        sweep.settlement = settlement
        sweep.lazy_joints = lambda at_joints=self.at_joints: at_joints
        for segment, here in self.entered:
            segment.adjoints = copied(here)


def copied(pending: dict[int, Any]) -> AdjointMap:
    """Cotangents by slot, out of memory that will be written to again."""
    return AdjointMap({slot: np.array(ct) for slot, ct in pending.items()})


def blocks_of(places: list[int]) -> list[tuple[int, int]]:
    """Places as (start, stop) of consecutive ones."""
    if len(places) == 1:
        return [(places[0], places[0] + 1)]
    low, high = min(places), max(places)
    if high - low == len(places) - 1:
        return [(low, high + 1)]
    made: list[tuple[int, int]] = []
    for place in sorted(places):
        if made and made[-1][1] == place:
            made[-1] = (made[-1][0], place + 1)
        else:
            made.append((place, place + 1))
    return made
