"""Compile before the loop begins, so that no step waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import ArgumentError, describe
from ..kernels import choice
from .seats import compiling_at_once

STEPS = (
    5  # the first has another signature, the third is the second sighting of the others, the fourth a loop
)


def warmup(
    step: Callable[[], Any] | None = None, *, steps: int = STEPS, dtypes: Any = None
) -> dict[str, Any]:
    """Compile the kernels, and with `step` the programs of the loop it is a step of; returns what took how long.

        tg.warmup()             # Numba's kernels; from their cache on disk where they have been compiled before
        tg.warmup(step)         # also calls step() a few times, and compiles every program at once

    `step` is called `steps` times and does what it does: it reads data, and it learns. Give it a copy of the
    model, or data that does no harm. `dtypes` of the kernels: float32 unless you say. Without Numba nothing is
    compiled but programs through NumPy. The report: seconds by kernel ("lstm_step float32": {"seconds": ...,
    "from_cache": ...}), "programs" (how many, and their seconds), "seconds" in all.

    Raises ArgumentError if `step` cannot be called.
    """
    if step is not None and not callable(step):
        raise ArgumentError(
            f"warmup: `step` must be a function without arguments, and {describe(step)} came."
        )
    started = time.perf_counter()
    report: dict[str, Any] = dict(choice.warmup(**({} if dtypes is None else {"dtypes": dtypes})))
    if step is not None:
        with compiling_at_once() as made:
            for _ in range(steps):
                step()
        report["programs"] = {"count": len(made), "seconds": sum(made)}
    report["seconds"] = time.perf_counter() - started
    return report
