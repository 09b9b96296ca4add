"""One sweep over a window: segment by segment, across the joints between them.

Adjoints are local to a sweep: overlapping windows share the recorded segments, never their adjoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError, describe
from .adjoints import AdjointMap, Adjoints
from .entry import OUT, Entry
from .tape import Segment
from .variable import LEAVES, Variable

# At a joint: pass (None), scale by a number (0 drops), or any function of the pending adjoints by slot.
Pending = dict[int, Any]
Joint = Callable[[Pending], Pending] | float | None


class WindowSegment(Segment):
    """A segment on the deque: what was recorded, the losses handed in and not yet swept, its last adjoints."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.end: int = self.first  # the slot of its last value, once closed
        self.losses: list[tuple[int, Any]] = []
        self.adjoints: AdjointMap = AdjointMap({})
        self._leaf_reads: list[tuple[int, int, Variable]] = []

    def close(self) -> None:
        self.end = self.entries[-1][OUT] if self.entries else self.first

    def drop_leaves(self) -> None:
        """Forget the arrays of leaves (weights="current"), remembering where a sweep has to put today's."""
        for at, entry in enumerate(self.entries):
            fields = None
            for position, slot_position in entry[0].values:
                slot = entry[slot_position]
                leaf = LEAVES.get(slot) if isinstance(slot, int) and slot < 0 else None
                if leaf is not None:
                    fields = fields or list(entry)
                    fields[position] = None
                    self._leaf_reads.append((at, position, leaf))
            if fields:
                self.entries[at] = tuple(fields)

    def entries_today(self) -> list[Entry]:
        """The entries, with today's arrays for the leaves that were dropped."""
        if not self._leaf_reads:
            return self.entries
        entries: list[Any] = list(self.entries)
        for at, position, leaf in self._leaf_reads:
            entry = entries[at]
            entries[at] = (*entry[:position], leaf._array, *entry[position + 1 :])
        return entries


class Sweep(Adjoints):
    """What one sweep over the window found. Also an Adjoints: `sweep[v]`, `sweep.gradients`.

    `segments`: how many were swept. `losses`: how many were seeded. `left_edge`: the adjoints of values
    from before the window, first of all of the state that entered it.
    """

    def __init__(self, keep: Iterable[Variable] = ()) -> None:
        super().__init__(keep)
        self.segments = 0
        self.losses = 0
        self._at_joints: list[AdjointMap] = []

    @property
    def left_edge(self) -> AdjointMap:
        """What arrived at the window's left edge: adjoints that a longer window would carry on."""
        return self._at_joints[-1]

    @property
    def joint_norms(self) -> list[float]:
        """The lag profile: norm of the adjoints at every joint, newest first, before the joint's hook."""
        return [pending.norm for pending in self._at_joints]

    def enter(self, segment: WindowSegment) -> None:
        """Seed the segment's losses, after the joint."""
        for slot, seed in segment.losses:
            self.add(slot, seed)
            self.losses += 1
        segment.adjoints = AdjointMap({s: ct for s, ct in self.sums.items() if s >= segment.first})
        self._share(segment.adjoints)

    def leave(self, segment: WindowSegment, joint: Joint) -> list[int]:
        """Cross the joint below `segment`. Returns the slots of adjoints that end here for no declared reason."""
        self.segments += 1
        pending: Pending = {}
        stopped: list[int] = []
        for slot in [s for s in self.sums if s > 0]:
            ct = self.sums.pop(slot)
            if slot < segment.first:
                pending[slot] = ct
            else:
                stopped.append(slot)
                if slot in self.kept:
                    self.kept[slot] = ct
        self._at_joints.append(AdjointMap(pending))
        self._share(self._at_joints[-1])
        self.sums.update(pending if joint is None else through(joint, pending))
        return stopped

    def _share(self, adjoints: AdjointMap) -> None:
        """Somebody else holds these arrays from now on: do not add to them in place."""
        self.owned.difference_update(adjoints.by_slot)

    def finish(self) -> None:
        """Keep what was asked for, and drop what is pending beyond the left edge."""
        for slot in [s for s in self.sums if s > 0]:
            ct = self.sums.pop(slot)
            if slot in self.kept:
                self.kept[slot] = ct


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
