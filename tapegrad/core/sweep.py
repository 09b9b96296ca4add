"""One sweep over a window: segment by segment, across the joints between them.

Adjoints are local to a sweep: overlapping windows share the recorded segments, never their adjoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError, describe
from .adjoints import AdjointMap, Adjoints
from .entry import Entry
from .schedule import Schedule
from .variable import Variable
from .window import Clock, Span, WindowSegment

# At a joint: pass (None), scale by a number (0 drops), or any function of the pending adjoints by slot.
Pending = dict[int, Any]
Joint = Callable[[Pending], Pending] | float | None


class Sweep(Adjoints):
    """What one sweep over the window found. Also an Adjoints: `sweep[v]`, `sweep.gradients`.

    `segments`: how many were swept. `losses`: how many were seeded. `left_edge`: the adjoints of values
    from before the window, first of all of the state that entered it. `saved`: how many segments a
    schedule that may end a sweep early (Tolerance) has left out, and `left_out` what they could matter.
    `state`: under weights="replay", what the newest segment computed when it was re-run.
    """

    def __init__(self, keep: Iterable[Variable] = ()) -> None:
        super().__init__(keep)
        self.segments = 0
        self.losses = 0
        self.saved = 0
        self.left_out = 0.0
        self.state: Any = None
        self._at_joints: list[AdjointMap] = []
        self._forgotten: Pending = {}  # adjoints of values whose part of a segment is not held any more
        self._seeded: set[int] = set()

    @property
    def left_edge(self) -> AdjointMap:
        """What arrived at the window's left edge: adjoints that a longer window would carry on."""
        at_the_end = self._at_joints[-1].by_slot if self._at_joints else {}
        return AdjointMap({**self._forgotten, **at_the_end})

    @property
    def joint_norms(self) -> list[float]:
        """The lag profile: norm of the adjoints at every joint, newest first, before the joint's hook."""
        return [pending.norm for pending in self._at_joints]

    def run(
        self,
        window: Sequence[WindowSegment],
        clocks: Collection[Clock],
        joint: Joint,
        entries: Callable[[WindowSegment], list[Entry]],
    ) -> list[int]:
        """Sweep once for the losses that the parts of `clocks` wait for, and collect those parts' gradients.

        Returns the slots of adjoints that end where nothing says that they should.
        """
        before, self._at_joints = self._at_joints, []
        kept_before, self.kept = self.kept, dict.fromkeys(self.kept)
        joints, stopped = Joints(window, joint), []
        losses_left = sum(not loss.waiting.isdisjoint(clocks) for s in window for loss in s.losses)
        for segment, older in zip(reversed(window), [*reversed(window[:-1]), None], strict=True):
            losses_left -= self._enter(segment, clocks)
            self._pull(segment, entries(segment), clocks, joints)
            stopped += self._leave(segment, older, joints)
            if not losses_left and joints.may_end and joints.end(segment, self):
                break
        for slot in [s for s in self.sums if s > 0]:  # pending beyond the left edge
            ct = self.sums.pop(slot)
            if slot in self.kept:
                self.kept[slot] = ct
        self.segments = max(self.segments, len(self._at_joints))
        if len(before) > len(self._at_joints):
            self._at_joints = before
        for slot, ct in kept_before.items():
            if ct is not None:
                self.kept[slot] = ct if self.kept[slot] is None else ct + self.kept[slot]
        return stopped

    def _enter(self, segment: WindowSegment, clocks: Collection[Clock]) -> int:
        """Seed the segment's losses, after the joint. Returns how many."""
        seeds = [loss for loss in segment.losses if not loss.waiting.isdisjoint(clocks)]
        for loss in seeds:
            self.add(loss.slot, loss.seed)
            self._seeded.add(loss.slot)
        self.losses = len(self._seeded)
        segment.adjoints = AdjointMap({s: ct for s, ct in self.sums.items() if s >= segment.first})
        self._share(segment.adjoints)
        return len(seeds)

    def _pull(
        self, segment: WindowSegment, entries: list[Entry], clocks: Collection[Clock], joints: Joints
    ) -> None:
        """Pull the cotangents back through what is in reach of the segment; leaves of other parts get nothing."""
        spans = [span for span in segment.spans if span.stop > span.start]
        if all(span.clock in clocks and joints.reach(segment, span) for span in spans):
            self.sweep(reversed(entries))
            return
        for span in reversed(spans):
            if not joints.reach(segment, span):
                continue
            through = reversed(entries[span.start : span.stop])
            if span.clock in clocks:
                self.sweep(through)
            else:
                leaves = {s: self.sums.pop(s) for s in [s for s in self.sums if s < 0]}
                self.sweep(through)
                for slot in [s for s in self.sums if s < 0]:
                    del self.sums[slot]
                self.sums.update(leaves)

    def _leave(self, segment: WindowSegment, older: WindowSegment | None, joints: Joints) -> list[int]:
        """Cross the joint below `segment`. Returns the slots of adjoints that end here for no declared reason."""
        pending: Pending = {}
        stopped: list[int] = []
        for slot in [s for s in self.sums if s > 0]:
            ct = self.sums.pop(slot)
            if slot < segment.first:
                pending[slot] = ct
                continue
            if slot in self.kept:
                self.kept[slot] = ct
            span = segment.span_of(slot)
            if span is None or (span.held and joints.reach(segment, span)):
                stopped.append(slot)
            else:
                self._forgotten[slot] = ct
        self._at_joints.append(AdjointMap(pending))
        self._share(self._at_joints[-1])
        self.sums.update(joints.cross(segment, older, pending))
        return stopped

    def _share(self, adjoints: AdjointMap) -> None:
        """Somebody else holds these arrays from now on: do not add to them in place."""
        self.owned.difference_update(adjoints.by_slot)


class Joints:
    """The borders between the segments of a window: what crosses them, and how far each part reaches back."""

    def __init__(self, window: Sequence[WindowSegment], joint: Joint) -> None:
        self.window, self.joint = window, joint
        self.clocks = {span.clock for segment in window for span in segment.spans}
        self.oldest = {clock: oldest_swept(clock, window) for clock in self.clocks}
        self.scaled = any(type(c.schedule).scale is not Schedule.scale for c in self.clocks)
        self.norms: dict[Clock, list[float]] = {
            clock: [] for clock in self.clocks if type(clock.schedule).ends is not Schedule.ends
        }
        self.may_end = bool(self.norms)

    def reach(self, segment: WindowSegment, span: Span) -> bool:
        return segment.index >= self.oldest[span.clock]

    def clock_of(self, slot: int) -> Clock | None:
        """Whose part computed the value in `slot`; None if it is older than the window."""
        for segment in reversed(self.window):
            if slot >= segment.first:
                span = segment.span_of(slot)
                return span.clock if span else None
        return None

    def cross(self, segment: WindowSegment, older: WindowSegment | None, pending: Pending) -> Pending:
        """What of `pending` goes on to the next older segment."""
        if self.scaled and older is not None:
            pending = self._scaled(range(older.index, segment.index), pending)
        return pending if self.joint is None else through(self.joint, pending)

    def _scaled(self, crossed: range, pending: Pending) -> Pending:
        factors = {c: math.prod(map(c.schedule.scale, crossed)) for c in self.clocks}
        scaled = {}
        for slot, ct in pending.items():
            clock = self.clock_of(slot)
            factor = 1.0 if clock is None else factors[clock]
            if factor:
                scaled[slot] = ct if factor == 1.0 else ct * factor
        return scaled

    def end(self, segment: WindowSegment, sweep: Sweep) -> bool:
        """Let the schedules that may end a sweep do so below `segment`; True if nothing is left to sweep."""
        pending = sweep._at_joints[-1].by_slot
        for clock, norms in self.norms.items():
            if self.oldest[clock] > segment.index:
                continue
            alone = len(self.clocks) == 1
            part = {s: ct for s, ct in pending.items() if alone or self.clock_of(s) is clock}
            norms.append(AdjointMap(part).norm)
            remaining = segment.index - self.oldest[clock]
            if remaining and clock.schedule.ends(norms):
                self.oldest[clock] = segment.index
                sweep.saved += remaining
                sweep.left_out += remaining * norms[-1] / max(norms) if norms[-1] else 0.0
        return all(oldest >= segment.index for oldest in self.oldest.values())


def oldest_swept(clock: Clock, window: Sequence[WindowSegment]) -> int:
    """The oldest segment that a sweep of `window` pulls back through: older ones too if a loss waits there."""
    waiting = (s.index for s in window if s.losses and any(clock in loss.waiting for loss in s.losses))
    newest = window[-1].index
    return min(clock.oldest(newest, clock.schedule.reach), next(waiting, newest))


def in_step(due: Sequence[Clock], window: Sequence[WindowSegment]) -> list[list[Clock]]:
    """The clocks that are due, those for which the same losses wait together; the longest window first."""
    groups: dict[frozenset[int], list[Clock]] = {}
    for clock in due:
        waiting = frozenset(loss.slot for s in window for loss in s.losses if clock in loss.waiting)
        if waiting:
            groups.setdefault(waiting, []).append(clock)
    return sorted(groups.values(), key=lambda clocks: min(oldest_swept(clock, window) for clock in clocks))


def through(joint: Joint, pending: Pending) -> Pending:
    """The adjoints that a joint lets pass. A callable gets arrays of its own, to change as it likes."""
    if not callable(joint):
        return {slot: ct * joint for slot, ct in pending.items()} if joint else {}
    passed = joint({slot: np.array(ct) for slot, ct in pending.items()})
    if not isinstance(passed, dict) or any(slot not in pending for slot in passed):
        raise ArgumentError(
            f"joint: it must return a dict of adjoints by slot, of those it was given, and {describe(passed)} came."
        )
    for slot, ct in passed.items():
        if np.shape(ct) != np.shape(pending[slot]):
            raise ShapeError(
                f"joint: an adjoint must keep its shape: it was {np.shape(pending[slot])}, and {np.shape(ct)} came back."
            )
    return passed


def require_joint(joint: Joint) -> Joint:
    """`joint` if it is None, a finite number or callable."""
    number = isinstance(joint, (int, float)) and not isinstance(joint, bool) and math.isfinite(joint)
    if joint is None or number or callable(joint):
        return joint
    raise ArgumentError(
        f"CapacitorTape: `joint` must be None, a finite number, or a function of the pending adjoints, "
        f"and {describe(joint)} came."
    )
