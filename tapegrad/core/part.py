"""A part of a model with a window of its own: different truncations in one loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import RecordingError
from .active import current_context
from .schedule import Schedule
from .window import Clock

T = TypeVar("T")


class Part:
    """What runs under `with part:` inside a segment is kept, swept and forgotten by this part's schedule.

        tape = tg.CapacitorTape(1)
        slow, fast = tape.capacitor(50), tape.capacitor(tg.Sliding(5))
        with tape:
            with slow:
                ...
            with fast:
                ...

    Segments are counted for all parts together, whether a part runs in them or not; the innermost part
    wins. A sweep that a part's schedule calls for adds to the gradients of what ran in that part alone:
    each part counts each loss once. Made by `tape.capacitor(schedule)`.
    """

    def __init__(self, tape: Any, clock: Clock) -> None:
        self._tape, self._clock = tape, clock

    @property
    def schedule(self) -> Schedule:
        """This part's own schedule."""
        return self._clock.schedule

    def record(self, f: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`f(*args, **kwargs)`, recorded for this part; as a segment of its own if none is open."""
        if self._tape.recording:
            with self:
                return f(*args, **kwargs)
        with self._tape, self:
            return f(*args, **kwargs)

    def __enter__(self) -> Part:
        if not self._tape.recording:
            raise RecordingError(
                "Part: no segment is open. Write `with tape:` around `with part:`, or call part.record(f, *args)."
            )
        if self._tape._owner != current_context():
            raise RecordingError(
                "Part: the segment was begun in another thread or task, which alone can enter a part."
            )
        self._tape._inside.append(self._clock)
        self._tape._enter(self._clock)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        inside = self._tape._inside
        if not self._tape.recording or not inside:
            raise RecordingError(
                "Part: the segment in which this part was entered has ended. Leave `with part:` before stop()."
            )
        inside.pop()
        self._tape._enter(inside[-1] if inside else self._tape._clocks[0])
