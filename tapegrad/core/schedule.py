"""When a capacitor sweeps, how far back, and what it forgets: the truncation of backpropagation through time.

A schedule answers three questions and holds no state of the loop:

    window        how many segments are kept, and so how far back a sweep goes (None: all)
    due(n)        is it time to sweep, n segments after the last sweep?
    forgets       are the segments dropped once they were swept?
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

from ..errors import ArgumentError, describe


class Schedule:
    """What a CapacitorTape asks of a schedule; see the top of this file."""

    window: int | None

    forgets: ClassVar[bool] = False

    def due(self, since: int) -> bool:
        """Whether to sweep `since` segments after the last sweep."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Schedule):
    """Backpropagation through everything: sweeps only on `tape.sweep()`, and keeps every segment."""

    window: None = field(default=None, init=False)

    def due(self, since: int) -> bool:
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

    def due(self, since: int) -> bool:
        return since >= self.stride


@dataclass(frozen=True)
class Chunked(Schedule):
    """Truncation at fixed borders: sweep every `window` segments and forget them ("detach every k steps")."""

    window: int
    forgets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_count("Chunked", "window", self.window)

    def due(self, since: int) -> bool:
        return since >= self.window


def as_schedule(schedule: Schedule | int) -> Schedule:
    """`schedule`, where an int h means Sliding(h)."""
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, bool) or not isinstance(schedule, Integral):
        raise ArgumentError(
            f"CapacitorTape: `schedule` must be a number of segments or a schedule, and {describe(schedule)} came.\n"
            f"  Write CapacitorTape(20), or CapacitorTape(tg.Sliding(20, stride=5))."
        )
    return Sliding(int(schedule))


def require_count(where: str, name: str, count: object) -> None:
    """Raise unless `count` is an int of at least 1."""
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ArgumentError(f"{where}: `{name}` must be a whole number of at least 1, and {count!r} came.")
