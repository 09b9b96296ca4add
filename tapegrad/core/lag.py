"""Is a window much too long, or too short? What the adjoints' norms at the joints say, now and then."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

from ..backend.device import on_device
from ..errors import WindowWarning
from .schedule import Schedule
from .sweep import warn_that_gradients_stop

DEAD = 1e-7  # of the largest norm: below float32's resolution
AGREE = 3  # looks in a row that must say the same
SHORTEST = 10  # segments below which a window is not judged


class LagWatch:
    """Looks at a sweep's lag profile at sweeps 8, 16, 32, 64 …, and warns once, when several looks agree."""

    def __init__(self) -> None:
        self._sweeps, self._done = 0, False
        self._verdicts: list[str | None] = []

    def look(self, tape: Any, sweep: Any) -> None:
        """Warn of what `sweep` found: gradients that stop, and, if it is time, of the window's length."""
        if sweep.stopped and not tape._warned:
            tape._warned = True
            warn_that_gradients_stop(tape._name)
        self._sweeps += 1
        if self._done or self._sweeps < 8 or self._sweeps & (self._sweeps - 1):
            return
        schedule = tape.schedule
        window = schedule.window
        chosen = type(schedule).reach is Schedule.reach  # and not one that is adapted as the loop runs
        if not chosen or window is None or window < SHORTEST or sweep.segments < window:
            return
        if any(map(on_device, sweep.left_edge.by_slot.values())):  # norms are not read unless somebody asks
            return
        self._verdicts.append(verdict(sweep.joint_norms, sweep.losses))
        latest = self._verdicts[-AGREE:]
        if len(latest) == AGREE and latest[0] and len(set(latest)) == 1:
            self._done = True
            warnings.warn(
                f"{tape._name}: {ADVICE[latest[0]].format(window=window)}", WindowWarning, stacklevel=3
            )


ADVICE = {
    "long": (
        "the window of {window} segments is far too long: the adjoints are dead after a tenth of it.\n"
        "  A window of a few tenths gives the same gradients; tg.Tolerance(eps, schedule) ends such sweeps early."
    ),
    "short": (
        "the window of {window} segments is too short: the adjoints still grow at its left edge, where they are cut.\n"
        "  What is cut matters more than what is kept: raise the window, or tame the recurrence (clip, smaller weights)."
    ),
}


def verdict(norms: Sequence[float], losses: int) -> str | None:
    """'long' if the adjoints die within a tenth of the window, 'short' if they grow all the way; else None."""
    largest = max(norms)
    if not (0 < largest < math.inf):
        return None
    if max(norms[max(math.ceil(len(norms) / 10), losses) :], default=largest) < DEAD * largest:
        return "long"
    tail = norms[max(losses, len(norms) // 2) :]  # older than every loss: nothing is added there
    grows = len(tail) >= 4 and all(b > a for a, b in itertools.pairwise(tail)) and tail[-1] > 2 * tail[0]
    return "short" if grows and tail[-1] >= largest else None
