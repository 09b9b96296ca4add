"""A CapacitorTape's sweep by programs: which segments are alike, which program each one needs, and the run.

A segment whose signature was seen before gets a *seat*: a place in the rings of its signature. A sweep
walks from seat to seat. Its programs differ by which outputs of a segment carry cotangents: the newest has
its loss, the others the state that the next one read. Where the same program follows itself, as in the
body of a window, the walk is a loop inside the program.

Whatever does not fit is left to the sweep by rules: nothing here changes what a sweep means.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..core.adjoints import AdjointMap
from ..core.capacitor import CapacitorTape
from ..core.entry import OUT, Entry
from ..core.schedule import Schedule
from ..core.sweep import Joints, Sweep
from ..core.window import Clock, WindowSegment
from .emit_numpy import Bound, NumpyProgram
from .plan import Planner
from .rings import Rings, aligned
from .signature import Before, Matcher, signature
from .trace import Graph, Residuals, Untraceable, trace_backward

SIGNATURES_KEPT = 256  # in the process, with their code
PATHS_KEPT = 16  # signatures that one tape holds rings for


class Template:
    """What all segments of one signature share: how to recognise them, their residuals' nodes, their programs.

    `links`: by the template of the next older segment, the positions there of the values read from before.
    """

    def __init__(self, key: Hashable, entries: Sequence[Entry], first: int) -> None:
        self.key = key
        self.matcher = Matcher(entries, first)
        self.match = self.matcher.match
        self.residuals = Residuals(Graph())
        self._programs: dict[Any, NumpyProgram] = {}

    def program(
        self, entries: Sequence[Entry], segment: WindowSegment, before: Before, pattern: Pattern, recorded: bool
    ) -> NumpyProgram:
        """The program for cotangents that enter as `pattern` says, made from a segment's whole `entries`."""
        key = (pattern, recorded)
        made = self._programs.get(key)
        if made is None:
            entering, feeds = pattern
            trace = trace_backward(entries, segment.first, entering, self.residuals)
            numbers = {slot: i for i, slot in enumerate(before)}
            plan = Planner(trace, numbers, recorded).plan
            made = self._programs[key] = NumpyProgram(
                plan, self.residuals.where, recorded, dict(feeds) if feeds else None
            )
        return made


# positions of the entries whose outputs carry cotangents; and what feeds them at the next segment, in a loop
Pattern = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]

TEMPLATES: OrderedDict[Hashable, Template] = OrderedDict()


class Seat:
    """A segment's place in the rings of its signature."""

    __slots__ = ("before", "entries", "hoisted", "link", "place", "rings", "segment")

    def __init__(self, segment: WindowSegment, rings: TapeRings, place: int, before: Before) -> None:
        self.segment, self.rings, self.place, self.before = segment, rings, place, before
        self.hoisted: set[Any] = set()  # programs whose factors are in place
        self.link: Any = None  # where the next older segment computed what this one read; see `linked`


class TapeRings(Rings):
    """The rings of one signature on one tape, and the programs bound to them."""

    def __init__(self, template: Template, capacity: int, recorded: bool) -> None:
        super().__init__(capacity)
        self.template, self.recorded = template, recorded
        self.bound: dict[Pattern, Bound] = {}
        self.joints: dict[Any, list[Any]] = {}

    def program(self, pattern: Pattern, seat: Seat) -> Bound:
        bound = self.bound.get(pattern)
        if bound is None:
            made = self.template.program(
                seat.segment.entries_today(), seat.segment, seat.before, pattern, self.recorded
            )
            bound = self.bound[pattern] = made.bind(self)
        return bound

    def buffers(self, bound: Bound, joint: int) -> tuple[Any, ...]:
        """Where the cotangents that leave a segment go: each joint of the window has its own."""
        held = self.joints.get((bound, joint))
        if held is None:
            held = self.joints[bound, joint] = tuple(aligned(*kind) for kind in bound.leaving_kinds)  # type: ignore[assignment]
        return held  # type: ignore[return-value]


class Replays:
    """The programs of one tape. `mode`: True, or "exact"."""

    def __init__(self, tape: Any, mode: Any) -> None:
        self.tape, self.mode = tape, mode
        self.rings: OrderedDict[Template, TapeRings] = OrderedDict()
        self.seen: dict[Hashable, None] = {}
        self.recorded = tape.weights == "recorded"

    def reset(self) -> None:
        """Forget which signatures were seen, and all memory."""
        self.rings.clear()
        self.seen.clear()

    # -- seats ---------------------------------------------------------------------------------------

    def seat(self, segment: WindowSegment) -> Seat | None:
        """The segment's seat, given now if its signature has been seen before."""
        seat = segment.seat
        if seat is not None:
            return seat  # type: ignore[no-any-return]
        entries, first = segment.entries, segment.first
        for template, rings in reversed(self.rings.items()):
            before = template.match(entries, first)
            if before is not None:
                return self.seated(segment, rings, before)
        key = signature(entries, first)
        if key is None:
            return None
        if key not in self.seen:
            self.seen[key] = None
            return None
        template = self.template(key, segment)
        rings = self.rings.get(template)
        if rings is None:
            rings = self.rings[template] = TapeRings(template, self.capacity, self.recorded)
            while len(self.rings) > PATHS_KEPT:
                self.rings.popitem(last=False)
        before = template.match(entries, first)
        return None if before is None else self.seated(segment, rings, before)

    @staticmethod
    def template(key: Hashable, segment: WindowSegment) -> Template:
        made = TEMPLATES.get(key)
        if made is None:
            made = TEMPLATES[key] = Template(key, segment.entries, segment.first)
            while len(TEMPLATES) > SIGNATURES_KEPT:
                TEMPLATES.popitem(last=False)
        return made

    @property
    def capacity(self) -> int:
        window = self.tape.schedule.window
        return (window or 64) + 1

    def seated(self, segment: WindowSegment, rings: TapeRings, before: Before) -> Seat | None:
        place = rings.take(segment)
        if place < 0:
            return None
        seat = segment.seat = Seat(segment, rings, place, before)
        return seat

    # -- the sweep -----------------------------------------------------------------------------------

    def run(self, sweep: Sweep, window: Sequence[WindowSegment], clocks: Sequence[Clock]) -> bool:
        """Sweep `window` by programs. False, and nothing has changed, if it has to be swept by rules."""
        if not self.mode or self.tape.recording or self.tape.weights == "replay":
            return False
        joints = Joints(window, clocks, self.tape.joint)
        window = [segment for segment in window if segment.index >= joints.last]
        if not joints.all_collected or any(len(s.spans) != 1 or s.guarded for s in window):
            return False
        lost = {loss.slot for segment in window for loss in segment.losses}
        if not lost.issuperset(sweep.kept):
            return False
        seats = [self.seat(segment) for segment in window]
        if None in seats:
            return False
        pass_ = Pass(self, sweep, clocks, joints)
        if not pass_.walk(seats):  # type: ignore[arg-type]
            sweep._at_joints, sweep.saved, sweep.left_out = [], 0, 0.0
            return False
        pass_.settle()
        return True


class Pass:
    """One sweep over seated segments."""

    def __init__(self, replays: Replays, sweep: Sweep, clocks: Sequence[Clock], joints: Joints) -> None:
        self.replays, self.sweep, self.clocks, self.joints = replays, sweep, clocks, joints
        self.pending: dict[int, Any] = {}
        self.written: dict[Any, tuple[Any, list[Seat]]] = {}  # by settled rings: their group, the seats
        self.totals: dict[int, list[Any]] = {}
        self.zeroed: set[int] = set()
        self.at_joints: list[dict[int, Any]] = []
        self.entered: list[tuple[WindowSegment, dict[int, Any]]] = []
        self.losses = 0

    def walk(self, seats: list[Seat]) -> bool:
        """From the newest segment to the oldest; False if a cotangent has no known place."""
        joints = self.joints
        left = joints.may_end and sum(loss.seeds(self.clocks) for seat in seats for loss in seat.segment.losses)
        for i in range(len(seats) - 1, -1, -1):
            seat = seats[i]
            segment = seat.segment
            seeds = [loss for loss in segment.losses if loss.seeds(self.clocks)]
            for loss in seeds:
                if not self.seed(loss):
                    return False
            left -= len(seeds)
            older = seats[i - 1].segment if i else None
            if not self.through(seat):
                return False
            crossed = dict(self.pending)
            self.at_joints.append(crossed)
            self.sweep._at_joints.append(AdjointMap(crossed))
            self.pending = dict(joints.cross(segment, older, crossed))
            if joints.may_end and not left and joints.end(segment, self.sweep):
                break
        return True

    def seed(self, loss: Any) -> bool:
        held = self.pending.get(loss.slot)
        self.pending[loss.slot] = loss.seed if held is None else held + loss.seed
        self.losses += 1
        return True

    def through(self, seat: Seat) -> bool:
        """Pull what is pending for a segment through it."""
        segment = seat.segment
        first, entries = segment.first, segment.entries
        here = {slot: ct for slot, ct in self.pending.items() if slot >= first or slot < 0}
        if not here:
            return True
        positions = {}
        for slot in here:
            at = bisect_left(entries, slot, key=itemgetter(OUT))
            if slot < 0 or at == len(entries) or entries[at][OUT] != slot:
                return False
            positions[at] = slot
        pattern: Pattern = (tuple(sorted(positions)), ())
        try:
            bound = seat.rings.program(pattern, seat)
        except Untraceable:
            return False
        if not bound.bare.issuperset(at for at, slot in positions.items() if slot in self.sweep.kept):
            return False  # somebody asks for an adjoint that is more than what enters
        self.entered.append((segment, here))
        ins = [self.pending.pop(positions[at]) for at in bound.entering]
        for slot in here:
            self.pending.pop(slot, None)
        self.prepare(seat, bound)
        outs = seat.rings.buffers(bound, len(self.at_joints))
        bound.sweep((seat.place,), bound.leaves(), ins, (outs,), lambda k: segment.entries_today())
        for number, ct in zip(bound.leaving, outs, strict=True):
            slot = seat.before[number]
            held = self.pending.get(slot)
            self.pending[slot] = ct if held is None else held + ct
        return True

    def prepare(self, seat: Seat, bound: Bound) -> None:
        """Factors into place, accumulators to zero; note what is to be settled."""
        if bound not in seat.hoisted:
            bound.hoist(seat.place, seat.segment.entries_today())
            seat.hoisted.add(bound)
        for rings, group in bound.groups:
            if rings.filled[seat.place] is not seat:
                bound.stack(seat.place)
                rings.filled[seat.place] = seat
            self.written.setdefault(id(rings), (rings, group, []))[2].append(seat.place)  # type: ignore[misc]
        for slot, total in bound.totals.items():
            if id(total) not in self.zeroed:
                self.zeroed.add(id(total))
                total.fill(0)
                self.totals.setdefault(slot, []).append(total)

    def settle(self) -> None:
        """One product for each group of parameters, and what it and the accumulators found."""
        sums: dict[int, Any] = {}

        def add(slot: int, ct: Any) -> None:
            held = sums.get(slot)
            sums[slot] = ct if held is None else held + ct

        for rings, group, places in self.written.values():  # type: ignore[misc]
            product = None
            for start, stop in blocks(places):
                rows = slice(start * rings.rows, stop * rings.rows)
                part = np.dot(rings.left_rows[rows].T, rings.delta_rows[rows])
                product = part if product is None else product + part
            starts = np.cumsum([0, *(n for _, n in group.lefts)]).tolist()
            for slot, number, chain in group.targets:
                add(slot, mapped(product[starts[number] : starts[number + 1]], chain))
        for slot, totals in self.totals.items():
            for total in totals:
                add(slot, total.copy())
        sweep = self.sweep
        for slot, ct in sums.items():
            sweep.add(slot, ct)
        for slot, ct in self.pending.items():
            if slot < 0:
                sweep.add(slot, ct)
        for segment, here in self.entered:
            segment.adjoints = AdjointMap({slot: np.array(ct) for slot, ct in here.items()})
            for slot, ct in here.items():
                sweep._seeded.update(loss.slot for loss in segment.losses if loss.seeds(self.clocks))
                if slot in sweep.kept:
                    sweep.kept[slot] = ct
        sweep._at_joints = [
            AdjointMap({slot: np.array(ct) for slot, ct in pending.items()}) for pending in self.at_joints
        ]
        sweep.losses = len(sweep._seeded)
        sweep.segments = max(sweep.segments, len(self.at_joints))


def blocks(places: list[int]) -> list[tuple[int, int]]:
    """Places as (start, stop) of consecutive ones."""
    made: list[tuple[int, int]] = []
    for place in sorted(places):
        if made and made[-1][1] == place:
            made[-1] = (made[-1][0], place + 1)
        else:
            made.append((place, place + 1))
    return made


def mapped(ct: Any, chain: tuple[Any, ...]) -> Any:
    """`ct` through the linear maps that were left for after the sum."""
    for link in chain:
        if isinstance(link, float):
            ct = ct * link
        else:
            method, arguments = link
            ct = ct.reshape(*arguments) if method == "reshape" else ct.transpose(*arguments)
    return ct


__all__ = ["CapacitorTape", "Replays", "Schedule"]
