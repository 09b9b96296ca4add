"""The sweep of a loop that goes on as it did: nothing about the window is looked at twice."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..core.entry import DTYPE, OUT
from ..core.sweep import Sweep
from ..core.variable import LEAVES
from ..core.window import Clock, WindowSegment
from .emit_numpy import Bound
from .plan import Group
from .rings import Settled
from .seats import Seat
from .settle import Product, Settlement
from .walk import add_products


class Steady:
    """The sweep of a loop that goes on as it did: a head for the newest segment's loss, a body for all others.

    Made when a sweep was a head and one loop over the whole window. As long as the next segments fit, a sweep
    is two calls, and nothing about the window is looked at again.
    """

    def __init__(self, replays: Any, segment: WindowSegment, position: int, head: Bound, body: Bound) -> None:
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
