"""What is aimed at on an H100, and whether a measurement reaches it. Times are in microseconds a step.

One layer of LSTM, as many inputs as hidden units, float32, an SGD step every step, weights="current".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OURS, EAGER = "tapegrad, captured", "tapegrad, eager"
CELLS, CELLS_IN_GRAPH = "LSTMCell, eager", "LSTMCell, CUDA graph"
CUDNN, CUDNN_IN_GRAPH = "cuDNN nn.LSTM, eager", "cuDNN nn.LSTM, CUDA graph"
JAX = "JAX, jitted scan"
# How a window may be swept, each asked for by name; OURS is the model's choice among them.
WAYS = {f"tapegrad, captured, {way}": way for way in ("persistent", "alternating", "generic")}

HIDDEN, BATCH, WINDOW = (256, 512, 1024), (1, 16, 64), (5, 20, 50)
# By hidden units and rows; windows of 5, 20 and 50 steps.
BUDGETS = {
    (256, 1): (40, 75, 140),  (256, 16): (45, 85, 175),    (256, 64): (55, 135, 300),
    (512, 1): (50, 90, 170),  (512, 16): (60, 140, 300),   (512, 64): (110, 330, 760),
    (1024, 1): (90, 135, 230), (1024, 16): (145, 385, 870), (1024, 64): (320, 1050, 2500),
}  # fmt: skip
# How many times faster than LSTMCell and than cuDNN, both eager and re-run over the window.
RATIOS = {1: (10.0, 4.0), 16: (6.0, 3.0), 64: (3.0, 1.5)}
RATIOS_OF_1024_BY_64 = (1.2, 1.0)
HOST_US = 25.0
REPLAYS = 10_000  # which allocate nothing

COLUMNS = [
    "hidden", "batch", "window", "weights, theirs", "swept by", "budget, µs", "measured", "reached",
    "× LSTMCell, goal", "measured", "reached", "× cuDNN, goal", "measured", "reached",
]  # fmt: skip


def budget(hidden: int, batch: int, window: int) -> float | None:
    """Microseconds a step, or None for sizes of which nothing was said."""
    row = BUDGETS.get((hidden, batch))
    return float(row[WINDOW.index(window)]) if row and window in WINDOW else None


def ratios(hidden: int, batch: int) -> tuple[float, float] | tuple[None, None]:
    """Times faster than LSTMCell and than cuDNN."""
    if (hidden, batch) not in BUDGETS:
        return None, None
    return RATIOS_OF_1024_BY_64 if (hidden, batch) == (1024, 64) else RATIOS[batch]


def verdict(measured: float | None, goal: float | None, at_most: bool) -> str:
    """yes, no, or a dash where one of the two is not there."""
    if measured is None or goal is None:
        return "–"
    return "yes" if (measured <= goal if at_most else measured >= goal) else "NO"


def row(found: Mapping[str, Any]) -> list[str]:
    """A line of the table of COLUMNS: `found` is what gpu.py has measured of one size."""
    hidden, batch, window = found["hidden"], found["batch"], found["window"]
    ours, aim = found["rows"].get(OURS, {}).get("us"), budget(hidden, batch, window)
    policies = [found["rows"].get(name, {}).get("weights", "–") for name in (OURS, CELLS)]
    cells = [str(hidden), str(batch), str(window), ", ".join(policies), found.get("swept", "–")]
    cells += [shown(aim), shown(ours), verdict(ours, aim, True)]
    for peer, least in zip((CELLS, CUDNN), ratios(hidden, batch), strict=True):
        times = found["faster_than"].get(peer, {}).get("median")
        cells += [shown(least), shown(times), verdict(times, least, False)]
    return cells


def host_row(found: Mapping[str, Any]) -> tuple[float | None, str]:
    """Microseconds of Python a captured step, and whether that is within the budget."""
    us = found["rows"].get(OURS, {}).get("host_us")
    return us, verdict(us, HOST_US, True)


def reached(sizes: list[Mapping[str, Any]]) -> tuple[int, int]:
    """How many of all verdicts over `sizes` are yes, and how many there are."""
    verdicts = [cell for found in sizes for cell in row(found) if cell in ("yes", "NO")]
    verdicts += [said for found in sizes if (said := host_row(found)[1]) != "–"]
    return verdicts.count("yes"), len(verdicts)


def shown(number: float | None) -> str:
    """A number of three digits."""
    if number is None:
        return "–"
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
