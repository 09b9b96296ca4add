"""When a capacitor sweeps, how far back, and what it forgets: the truncation of backpropagation through time.

A schedule answers questions about the segments of a loop, which are counted from 1:

    window              how many segments are kept, and so how far back a sweep goes (None: all)
    due(index, swept)   is it time to sweep in segment `index`, the last sweep having been in segment `swept`?
    forgets(index)      after a sweep in segment `index`: up to which segment is everything dropped?

Those three make the schedules of this file. The estimators of `tapegrad.truncation` also answer others
of `Schedule`'s methods, and learn from what the sweeps find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from ..errors import ArgumentError, describe


class Schedule:
    """What a CapacitorTape asks of a schedule; see the top of this file. Subclass it to truncate in your own way."""

    window: int | None = None

    @property
    def reach(self) -> int | None:
        """How many segments a sweep goes back, if fewer than are kept."""
        return self.window

    def fresh(self) -> Schedule:
        """The schedule for one more tape: itself, unless it holds a state that tapes must not share."""
        return self

    def due(self, index: int, swept: int) -> bool:
        """Whether to sweep in segment `index`, when the last sweep was in segment `swept` (0: none yet)."""
        raise NotImplementedError

    def forgets(self, index: int) -> int:
        """The segment up to which a sweep in segment `index` forgets; 0 keeps all."""
        return 0

    def records(self, index: int) -> bool:
        """Whether segment `index` is recorded. One that is not only carries the state on."""
        return True

    def scale(self, index: int) -> float:
        """The factor on adjoints that cross the joint between segment `index` and the next one."""
        return 1.0

    def ends(self, norms: Sequence[float]) -> bool:
        """Whether a sweep that found adjoints of these `norms` at the joints, newest first, may end there."""
        return False

    def beyond(self, tape: Any, left_edge: Any) -> dict[int, Any]:
        """Gradients by leaf slot of what lies beyond the window, given the adjoints at its left edge."""
        return {}

    def closed(self, tape: Any, clock: Any) -> None:
        """A segment of `tape` has closed, and nothing was dropped yet; `clock.now` is its number."""

    def swept(self, tape: Any, clock: Any, sweep: Any) -> None:
        """`tape` has swept in segment `clock.now`, and nothing was forgotten yet."""

    def reset(self) -> None:
        """A new sequence begins with the next segment, which is number 1 again."""

    def state_dict(self) -> dict[str, Any]:
        """What a snapshot must hold to go on from here: numbers, strings, lists and dicts."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""


@dataclass(frozen=True)
class Full(Schedule):
    """Backpropagation through everything: sweeps only on `tape.sweep()`, and keeps every segment."""

    window: None = field(default=None, init=False)

    def due(self, index: int, swept: int) -> bool:
        return False


@dataclass(frozen=True)
class Sliding(Schedule):
    """BPTT(h; h') of Williams and Peng (1990): every `stride` segments, go back `window` segments.

    Each loss is backpropagated through at least window - stride + 1 segments (once there are so many),
    at a cost of window / stride backward steps per step. 1 <= stride <= window.
    """

    window: int
    stride: int = 1

    def __post_init__(self) -> None:
        require_count("Sliding", "window", self.window)
        require_count("Sliding", "stride", self.stride)
        if self.stride > self.window:
            raise ArgumentError(
                f"Sliding: `stride` must not exceed `window`: window is {self.window}, stride {self.stride}.\n"
                f"  Losses handed in between two sweeps would leave the window unswept. Use stride <= {self.window}."
            )

    def due(self, index: int, swept: int) -> bool:
        return index - swept >= self.stride


@dataclass(frozen=True)
class Chunked(Schedule):
    """Truncation at fixed borders: sweep every `window` segments and forget them ("detach every k steps")."""

    window: int

    def __post_init__(self) -> None:
        require_count("Chunked", "window", self.window)

    def due(self, index: int, swept: int) -> bool:
        return index - swept >= self.window

    def forgets(self, index: int) -> int:
        return index


def as_schedule(schedule: Schedule | int, where: str = "CapacitorTape") -> Schedule:
    """`schedule`, where an int h means Sliding(h)."""
    if isinstance(schedule, Schedule):
        return schedule.fresh()
    if isinstance(schedule, bool) or not isinstance(schedule, Integral):
        raise ArgumentError(
            f"{where}: `schedule` must be a number of segments or a schedule, and {describe(schedule)} came.\n"
            f"  Write CapacitorTape(20), or CapacitorTape(tg.Sliding(20, stride=5))."
        )
    return Sliding(int(schedule))


def require_count(where: str, name: str, count: object) -> None:
    """Raise unless `count` is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ArgumentError(f"{where}: `{name}` must be a whole number of at least 1, and {count!r} came.")
