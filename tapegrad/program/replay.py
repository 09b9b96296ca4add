"""A CapacitorTape's sweep by programs: which segments are alike, which program each one needs, and the run.

A segment whose signature was seen before gets a *seat*: a place in the rings of its signature. A sweep
walks from seat to seat. Its programs differ by which outputs of a segment carry cotangents: the newest has
its loss, the others the state that the next one read. Where the same program follows itself, as in the
body of a window, the walk is a loop inside the program.

Whatever does not fit is left to the sweep by rules: nothing here changes what a sweep means.
"""

from __future__ import annotations

import re
import weakref
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from ..core.adjoints import AdjointMap
from ..core.schedule import Sliding
from ..core.sweep import Joints, Sweep
from ..core.variable import Result
from ..core.window import Clock, WindowSegment
from ..errors import ArgumentError
from .seats import TEMPLATES, Seat, TapeRings, Template
from .settle import Settlement
from .signature import SIGHTINGS, Before, signature
from .steady import Steady
from .walk import Pass, copied

SIGNATURES_KEPT = 256  # in the process, with their code
SHORTEST = 16  # places at first where the schedule names no window
ROUNDS = 3  # of seating a window: larger rings for one signature unseat what sat in the smaller ones
PATHS_KEPT = 16  # signatures that one tape holds rings for


class Replays:
    """The programs of one tape. `mode`: True, "numpy" or "numba"."""

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
        handed_in = {loss.slot for segment in window for loss in segment.losses if loss.seeds(clocks)}
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
        # Side by side and linked alike, all of them: the next sweep counts places back from the newest.
        if not inside or not complete or newest.seat.run < count:
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
        if steady is None or tape._owner is not None or tape._wanted or tape.joint is not None:
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
