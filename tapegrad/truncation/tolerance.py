"""Ending a sweep when what is still to come cannot matter any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..core.schedule import Schedule, as_schedule
from ..errors import ArgumentError
from .real_time import RealTime

LOOKED_AT = 10  # joints over which the decline is measured


class Tolerance(Schedule):
    """`schedule`, whose sweeps end where what is still to come has fallen below `eps` of the largest contribution.

    What is still to come is taken for a geometric series: norms at the joints that go on declining as they have
    over the last ten, Σ rⁿ |δ| = |δ| / (1 - r). It may be half of eps times the largest norm; the other half is for
    declines that slow down. Every loss of the sweep is seeded before that. `sweep.saved` says how many segments were left out, and
    `sweep.left_out` bounds what they could matter: the norm at the end by the largest, times their
    number, in units of the largest contribution that one segment makes. The bound holds as long as the
    adjoints do not grow again and older segments are no more sensitive to the parameters than the
    newest. The norms cost a pass over the state at each joint.
    """

    def __init__(self, eps: float, schedule: Schedule | int) -> None:
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
            raise ArgumentError(f"Tolerance: `eps` must be a number between 0 and 1, and {eps!r} came.")
        self.eps = eps
        self.schedule = as_schedule(schedule, "Tolerance")
        if isinstance(self.schedule, (Tolerance, RealTime)):
            raise ArgumentError(
                f"Tolerance: `schedule` is {self.schedule}, whose sweeps it cannot end. Wrap a schedule with a window."
            )

    def __repr__(self) -> str:
        return f"Tolerance({self.eps}, {self.schedule})"

    def fresh(self) -> Tolerance:
        return Tolerance(self.eps, self.schedule)

    def ends(self, norms: Sequence[float]) -> bool:
        largest, count = max(norms), min(LOOKED_AT, len(norms) - 1)
        if not count or not 0 < largest < math.inf or not norms[-1] < norms[-1 - count]:
            return largest == 0  # nothing has come, and nothing will
        r = (norms[-1] / norms[-1 - count]) ** (1 / count)
        return bool(norms[-1] / (1 - r) <= 0.5 * self.eps * largest)

    @property
    def window(self) -> int | None:  # type: ignore[override]
        return self.schedule.window

    @property
    def reach(self) -> int | None:
        return self.schedule.reach

    def due(self, index: int, swept: int) -> bool:
        return self.schedule.due(index, swept)

    def forgets(self, index: int) -> int:
        return self.schedule.forgets(index)

    def records(self, index: int) -> bool:
        return self.schedule.records(index)

    def scale(self, index: int) -> float:
        return self.schedule.scale(index)

    def closed(self, tape: Any, clock: Any) -> None:
        self.schedule.closed(tape, clock)

    def swept(self, tape: Any, clock: Any, sweep: Any) -> None:
        self.schedule.swept(tape, clock, sweep)

    def reset(self) -> None:
        self.schedule.reset()

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)
