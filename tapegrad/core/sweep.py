"""One sweep over a window: segment by segment, across the joints between them.

Adjoints are local to a sweep: overlapping windows share the recorded segments, never their adjoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import numpy as np

from ..backend.device import owned
from ..errors import ArgumentError, GradientStopsWarning, ShapeError, describe
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
        # What a compiled sweep left in its own memory: read now, or before that is written to again.
        self.settlement: Any = None
        self.straight: Callable[..., bool] | None = None  # pulls through a segment in straight-line code
        self.lazy_joints: Callable[[], list[Pending]] | None = None
        self._forgotten: Pending = {}  # adjoints of values whose part of a segment is not held any more
        self._seeded: set[int] = set()
        self.stopped: Pending = {}  # adjoints that ended where nothing said that they should

    def keep_all(self) -> None:
        """Copy what a compiled sweep found out of its memory."""
        if self.lazy_joints is not None:
            copies = [{s: owned(ct) for s, ct in pending.items()} for pending in self.lazy_joints()]
            self._at_joints, self.lazy_joints = [AdjointMap(pending) for pending in copies], None
        if self.settlement is not None:
            for slot, ct in self.settlement.form().items():
                self.add(slot, ct)
            self.settlement = None

    def deliver(self) -> None:
        """Add the adjoints of the leaves to their `.grad`; products that were put off stay so where they can."""
        settlement = self.settlement
        if settlement is None or self.sums or self.record:
            self.keep_all()
            super().deliver()
        else:
            settlement.deliver()

    @property
    def gradients(self) -> AdjointMap:
        """The adjoint of every leaf that the sweep reached, by leaf. Reading it does not touch `.grad`."""
        self.keep_all()
        return super().gradients

    def __getitem__(self, v: Variable) -> Any:
        if self.settlement is not None and isinstance(v, Variable) and v._slot < 0:
            self.keep_all()
        return super().__getitem__(v)

    @property
    def left_edge(self) -> AdjointMap:
        """What arrived at the window's left edge: adjoints that a longer window would carry on."""
        self.keep_all()
        at_the_end = self._at_joints[-1].by_slot if self._at_joints else {}
        return AdjointMap({**self._forgotten, **at_the_end})

    @property
    def joint_norms(self) -> list[float]:
        """The lag profile: norm of the adjoints at every joint, newest first, before the joint's hook."""
        self.keep_all()
        return [pending.norm for pending in self._at_joints]

    def run(
        self,
        window: Sequence[WindowSegment],
        clocks: Sequence[Clock],
        joint: Joint,
        entries: Callable[[WindowSegment], list[Entry]],
    ) -> None:
        """Sweep once for the losses that the parts of `clocks` wait for, and collect those parts' gradients."""
        before, self._at_joints = self._at_joints, []
        kept_before, self.kept = self.kept, dict.fromkeys(self.kept)
        self.owned.intersection_update(self.sums)  # of the pass before, the leaves' sums alone are left
        joints = Joints(window, clocks, joint)
        window = [segment for segment in window if segment.index >= joints.last]
        losses_left = joints.may_end and sum(loss.seeds(clocks) for s in window for loss in s.losses)
        for segment, older in zip(reversed(window), [*reversed(window[:-1]), None], strict=True):
            losses_left -= self._enter(segment, clocks)
            self._pull(segment, entries(segment), clocks, joints)
            self._leave(segment, older, joints)
            if joints.may_end and joints.end(segment, self, self._at_joints[-1].norm, not losses_left):
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
                self.kept[slot] = ct  # from the pass with the longest window

    def _enter(self, segment: WindowSegment, clocks: Collection[Clock]) -> int:
        """Seed the segment's losses, after the joint. Returns how many."""
        seeds = [loss for loss in segment.losses if loss.seeds(clocks)]
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
        if joints.all_collected:
            if self.straight is None or not self.straight(self, segment, entries):
                self.sweep(reversed(entries))
            return
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
                owned = self.owned & leaves.keys()
                self.owned -= owned
                self.sweep(through)
                for slot in [s for s in self.sums if s < 0]:
                    del self.sums[slot]
                    self.owned.discard(slot)
                self.sums.update(leaves)
                self.owned |= owned

    def _leave(self, segment: WindowSegment, older: WindowSegment | None, joints: Joints) -> None:
        """Cross the joint below `segment`."""
        pending: Pending = {}
        for slot in [s for s in self.sums if s > 0]:
            ct = self.sums.pop(slot)
            if slot < segment.first:
                pending[slot] = ct
                continue
            if slot in self.kept:
                self.kept[slot] = ct
            span = segment.span_of(slot)
            if span is None or (span.held and joints.reach(segment, span)):
                self.stopped[slot] = ct
            else:
                self.end_at_edge(slot, ct)
        self._at_joints.append(AdjointMap(pending))
        self._share(self._at_joints[-1])
        self.sums.update(joints.cross(segment, older, pending))

    def end_at_edge(self, slot: int, ct: Any) -> None:
        """Note the adjoint of a value that is a constant to this sweep as one that a longer window would carry on."""
        self._forgotten[slot] = ct

    def _share(self, adjoints: AdjointMap) -> None:
        """Somebody else holds these arrays from now on: do not add to them in place."""
        self.owned.difference_update(adjoints.by_slot)


class Joints:
    """The borders between the segments of a window, for one pass that collects the gradients of `clocks`."""

    def __init__(self, window: Sequence[WindowSegment], clocks: Sequence[Clock], joint: Joint) -> None:
        self.joint, self.schedule = joint, clocks[0].schedule
        parts = {span.clock for segment in window for span in segment.spans}
        self.oldest = {clock: oldest_swept(clock, window) for clock in parts.union(clocks)}
        self.last = min(self.oldest[clock] for clock in clocks)
        # Whether the pass reaches and collects everything: most do.
        self.all_collected = parts <= set(clocks) and max(self.oldest.values()) <= window[0].index
        self.scaled = type(self.schedule).scale is not Schedule.scale
        self.may_end = type(self.schedule).ends is not Schedule.ends
        self.norms: list[float] = []

    def reach(self, segment: WindowSegment, span: Span) -> bool:
        """Whether the pass pulls back through `span`."""
        return segment.index >= self.oldest[span.clock]

    def factor(self, segment: WindowSegment, older: WindowSegment | None) -> float:
        """What the schedule makes of adjoints that go from `segment` on to `older`."""
        if not self.scaled or older is None:
            return 1.0
        return math.prod(map(self.schedule.scale, range(older.index, segment.index)))

    def cross(self, segment: WindowSegment, older: WindowSegment | None, pending: Pending) -> Pending:
        """What of `pending` goes on to the next older segment."""
        factor = self.factor(segment, older)
        if factor != 1.0:
            pending = {slot: ct * factor for slot, ct in pending.items()} if factor else {}
        return pending if self.joint is None else through(self.joint, pending)

    def end(self, segment: WindowSegment, sweep: Sweep, norm: float, seeded: bool) -> bool:
        """Whether the schedule ends the pass below `segment`, where adjoints of `norm` cross; all losses `seeded`."""
        if not seeded:
            return False
        self.norms.append(norm)
        remaining = segment.index - self.last
        if remaining < 1 or not self.schedule.ends(self.norms):
            return False
        sweep.saved += remaining
        sweep.left_out += remaining * self.norms[-1] / max(self.norms) if self.norms[-1] else 0.0
        return True


def oldest_swept(clock: Clock, window: Sequence[WindowSegment]) -> int:
    """The oldest segment that a sweep of `window` pulls back through: older ones too if a loss waits there."""
    waiting = (s.index for s in window if s.losses and s.awaits(clock))
    return min(clock.oldest(clock.schedule.reach), next(waiting, clock.now))


def in_step(due: Sequence[Clock], window: Sequence[WindowSegment]) -> list[list[Clock]]:
    """The clocks that are due, those for which the same losses wait together; the longest window first.

    A schedule that scales at joints or ends a sweep early has a pass to itself.
    """
    if len(due) == 1:
        return [list(due)]
    groups: dict[Any, list[Clock]] = {}
    for clock in due:
        waiting = frozenset(loss.slot for s in window for loss in s.losses if clock in loss.waiting)
        kind = type(clock.schedule)
        alone = kind.scale is not Schedule.scale or kind.ends is not Schedule.ends
        if waiting:
            groups.setdefault((waiting, clock if alone else None), []).append(clock)
    return sorted(groups.values(), key=lambda clocks: min(oldest_swept(clock, window) for clock in clocks))


def through(joint: Joint, pending: Pending) -> Pending:
    """The adjoints that a joint lets pass. A callable gets arrays of its own, to change as it likes."""
    if not callable(joint):
        return {slot: ct * joint for slot, ct in pending.items()} if joint else {}
    passed = joint({slot: owned(ct) for slot, ct in pending.items()})
    if not isinstance(passed, dict) or any(slot not in pending for slot in passed):
        raise ArgumentError(
            f"joint: it must return a dict of adjoints by slot, of those it was given, and {describe(passed)} came."
        )
    for slot, ct in passed.items():
        if not hasattr(ct, "dtype"):
            ct = np.asarray(ct)
        if ct.dtype.kind not in "fiu":
            raise ArgumentError(
                f"joint: an adjoint must be an array of real numbers, and {describe(ct)} came back."
            )
        if np.shape(ct) != np.shape(pending[slot]):
            raise ShapeError(
                f"joint: an adjoint must keep its shape: it was {np.shape(pending[slot])}, and {np.shape(ct)} came back."
            )
    return passed


def require_joint(joint: Joint) -> Joint:
    """`joint` if it is None, a finite number or callable."""
    number = isinstance(joint, (int, float)) and not isinstance(joint, bool) and math.isfinite(joint)
    if joint is None or number or (callable(joint) and not isinstance(joint, type)):
        return joint
    raise ArgumentError(
        f"CapacitorTape: `joint` must be None, a finite number, or a function of the pending adjoints, "
        f"and {describe(joint)} came."
    )


def warn_that_gradients_stop(tape: str) -> None:
    warnings.warn(
        f"{tape}: a segment read a value that was computed outside this tape's segments, and the "
        f"gradient stops there. Compute it inside `with tape:`, or say so with tg.stop_gradient.",
        GradientStopsWarning,
        stacklevel=4,  # the caller of backward
    )
