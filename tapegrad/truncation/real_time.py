"""Real-time recurrent learning: the whole past's gradient, forward in time, from the taped segments."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import owned, zeros_beside
from ..core.adjoints import Adjoints
from ..core.printout import arrays_read
from ..core.schedule import Schedule
from ..core.snapshot import Slot
from ..core.variable import LEAVES
from ..types import Array

Sensitivity = dict[int, Array]  # by leaf slot: (size of the value, *shape of the leaf)


class RealTime(Schedule):
    """Exact RTRL (Williams and Zipser 1989): every loss sees the whole past, and one segment is kept.

    When a segment closes, the values that it has read from the segment before it (the state) get their
    sensitivities ∂state/∂leaf, by pulling every element of the state back through that one segment:
    S_t = ∂s_t/∂θ + ∂s_t/∂s_{t-1} S_{t-1}. A sweep covers the newest segment, and what arrives at its left
    edge is multiplied by S. That is the gradient of full backpropagation with the recorded weights, at
    each step, whatever the length of the past.

    Cost: per segment as many sweeps over one segment as the state has elements (batch × hidden, for an
    LSTM twice), and state × parameters numbers of memory: for small cells. The state must be passed on from
    segment to segment: the history of a value that skips one is not known. Joint hooks do not apply.
    """

    window = 1

    def __init__(self) -> None:
        self._known: dict[int, Sensitivity] = {}

    def fresh(self) -> RealTime:
        return RealTime()

    def __repr__(self) -> str:
        return "RealTime()"

    def due(self, index: int, swept: int) -> bool:
        return index > swept

    def closed(self, tape: Any, clock: Any) -> None:
        segments = tape.segments
        newest, before = segments[-1], segments[-2] if len(segments) > 1 else None
        self._known = {slot: self._sensitivity(slot, before) for slot in read_from_outside(newest)}

    def beyond(self, tape: Any, left_edge: Any) -> dict[int, Any]:
        before = tape.segments[-1] if tape.recording and tape.segments else None  # an open one is the newest
        found: dict[int, Any] = {}
        for slot, ct in left_edge.by_slot.items():
            for leaf, sensitivity in self._sensitivity(slot, before).items():
                part = np.tensordot(np.ravel(ct), sensitivity, 1)
                found[leaf] = found[leaf] + part if leaf in found else part
        return found

    def reset(self) -> None:
        self._known = {}

    def state_dict(self) -> dict[str, Any]:
        known = [
            [Slot(slot), [[Slot(leaf), s] for leaf, s in sensitivity.items()]]
            for slot, sensitivity in self._known.items()
        ]
        return {"known": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._known = {slot: {leaf: owned(s) for leaf, s in parts} for slot, parts in state["known"]}

    def _sensitivity(self, slot: int, segment: Any) -> Sensitivity:
        """∂value/∂leaf for the value in `slot`, which `segment` computed unless it is known already."""
        if slot in self._known or segment is None or not segment.holds(slot):
            return self._known.get(slot, {})
        entries = segment.entries_today()
        beside = next(arrays_read(reversed(entries)), None)
        shape, dtype = next((e[2], e[3]) for e in entries if e[1] == slot)
        size = int(np.prod(shape))
        total: Sensitivity = {}
        for i in range(size):
            ct = zeros_beside(beside, shape, dtype)
            ct.reshape(-1)[i] = 1
            adjoints = Adjoints()
            adjoints.add(slot, ct)
            adjoints.sweep(reversed(entries))
            for source, reached in adjoints.sums.items():
                if source < 0:
                    parts = (
                        {source: reached} if source in LEAVES else {}
                    )  # a leaf that nobody holds needs none
                else:
                    known = self._known.get(source, {}).items()
                    parts = {
                        leaf: np.tensordot(np.ravel(reached), s, 1) for leaf, s in known if leaf in LEAVES
                    }
                for leaf, part in parts.items():
                    if leaf not in total:
                        total[leaf] = zeros_beside(part, (size, *part.shape), dtype)
                    total[leaf][i] += part
        return total


def read_from_outside(segment: Any) -> set[int]:
    """The slots of older values that a segment has read."""
    slots = (s for entry in segment.entries for s in entry[0].input_slots(entry).values())
    flat = (s for slot in slots for s in (slot if isinstance(slot, tuple) else (slot,)))
    return {s for s in flat if 0 < s < segment.first}
