"""One sweep by programs, from the newest segment to the oldest.

Which program a segment needs depends on which of its outputs carry cotangents. Where the same program follows
itself, the walk is a loop inside the program; where a segment has none, its own rules pull through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..core.adjoints import AdjointMap, Adjoints
from ..core.entry import OUT
from ..core.sweep import Joints, Sweep
from ..core.window import Clock, WindowSegment
from .emit_numpy import Bound
from .plan import Group
from .rings import Settled
from .settle import Product, Settlement
from .signature import position_of


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
        if losses is None or not segment.entries:
            return 0
        count = 1
        while count <= min(seat.run, at) and self.continues(window[at - count], losses):
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

    def continues(self, segment: WindowSegment, losses: tuple[int, ...]) -> bool:
        """Whether a loop over segments with plain losses at these positions goes on through this one."""
        # A dropped one lies between others as long as a loss waits in an older one.
        return bool(segment.entries) and self.plain_losses(segment) == losses

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
            # Under "current" the entries lack their leaves; nothing hoists those.
            bound.hoist(seat.place, segment.entries)
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
        for slot, ct in self.pending.items():
            if slot < 0:  # a leaf that is a root itself
                sweep.add(slot, ct)
            elif slot in sweep.kept:  # beyond the left edge
                self.kept[slot] = np.array(ct)
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
