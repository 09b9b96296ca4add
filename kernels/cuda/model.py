"""Which way a recurrent layer steps, and its window is swept, on a GPU: the one that a small model says takes least time.

A window:

    persistent   one launch for the whole window, a barrier of blocks for each step (`persistent_backward`)
    alternating  for each step a pointwise kernel, and a product (`step_backward`)
    generic      the rules of the ops, which make each step's part of the gradients by itself

Both of the first two end with one product for the weights' gradients. A step:

    fused        one launch, which reads the weights once for eight rows (`forward_step`)
    products     two products and a pointwise kernel

A kernel takes the gap between kernels, what
it waits for, and the time of its arithmetic or of its memory; in a graph that is all, outside it the host must also
launch each, and the slower of host and GPU counts. The constants are `Costs`: estimates, until
`python -m tapegrad doctor --calibrate` has measured them.

The user's word goes first: an argument of `choose` and `choose_step`, `use("persistent")` and `use_step("fused")`, or
TAPEGRAD_GPU_SWEEP and TAPEGRAD_GPU_STEP in the environment.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import NamedTuple

from . import costs as costs_of
from . import plan, source
from .costs import ESTIMATES, Costs
from .plan import FLOAT, H100, Gpu

WAYS = ("persistent", "alternating", "generic")
STEPS = ("fused", "products")
BIASES = {"lstm": 1, "gru": 2, "rnn": 1}


class Work(NamedTuple):
    """Kernels, and the microseconds that the GPU takes for all of them."""

    kernels: int
    time: float

    def times(self, count: int) -> Work:
        return Work(self.kernels * count, self.time * count)


def together(*works: Work) -> Work:
    """One after the other."""
    return Work(sum(w.kernels for w in works), sum(w.time for w in works))


# -- kernels -------------------------------------------------------------------------------------------


def streamed(bytes: float, costs: Costs) -> float:
    """Microseconds to move so much between memory and multiprocessors. What fits L2 with room to spare stays there."""
    return bytes / (costs.l2 if bytes <= costs.l2_bytes / 2 else costs.dram) / 1e3


def pointwise(bytes: float, costs: Costs) -> Work:
    # Three loads one after the other: where to read, what is read, and what came from the kernel before.
    return Work(1, costs.gap + 3 * costs.latency + streamed(bytes, costs))


def product(m: int, n: int, k: int, costs: Costs) -> Work:
    """(m, k) times (k, n)."""
    least, wide, long = sorted((m, n, k))
    # Whoever is slow with so few rows may fill them up to more, or take them in parts: the best of the classes,
    # and never less time for more rows.
    flops = min(2.0 * max(least, rows) * wide * long / rate for rows, rate in costs.gemm_rates) / 1e6
    moved = streamed(FLOAT * (m * k + k * n + m * n), costs)
    return Work(1, costs.gap + costs.gemm + max(flops, moved))


# -- ways ----------------------------------------------------------------------------------------------


def parts(
    way: str, cell: str, hidden: int, batch: int, window: int, costs: Costs = ESTIMATES, gpu: Gpu = H100
) -> dict[str, Work]:
    """What a sweep consists of, for as many inputs as hidden units. Raises ValueError if the way does not fit the sizes."""
    check(cell, hidden, batch, window)
    width = plan.CELLS[cell][1] * hidden
    state, wide, matrix = (FLOAT * n for n in (batch * hidden, batch * width, hidden * width))
    # What the newest step kept is copied to its slot: gates and four states.
    ring = pointwise(2 * wide + 8 * state, costs)
    if way == "persistent":
        division = planned(cell, hidden, batch, gpu, costs)
        return {
            "ring": ring,
            "weights on chip": Work(1, costs.gap + division.filling(costs)),
            "steps": Work(0, window * division.step(costs)),
            "gradients of weights": gradients(cell, hidden, batch, window, costs),
        }
    through = product(batch, hidden, width, costs)
    if way == "alternating":
        # Of gates and deltas three arrays, of seeds and states seven. What passes a GRU's z is added at the end.
        beside = [pointwise(3 * window * state, costs)] if cell == "gru" else []
        return {
            "ring": ring,
            "pointwise": pointwise(3 * wide + 7 * state, costs).times(window),
            "products": together(through.times(window), *beside),
            "gradients of weights": gradients(cell, hidden, batch, window, costs),
        }
    if way == "generic":
        biases = BIASES[cell]
        sums = together(
            pointwise(3 * matrix, costs).times(2),
            pointwise(wide, costs).times(biases),
            pointwise(3 * FLOAT * width, costs).times(biases),
        )
        return {
            "pullbacks": pointwise(2 * wide + 7 * state, costs).times(window),
            "products": together(through, product(hidden, width, batch, costs).times(2)).times(window),
            "sums": sums.times(window),
        }
    raise ValueError(f"no way to sweep a window is called {way!r}; there are {', '.join(WAYS)}.")


def gradients(cell: str, hidden: int, batch: int, window: int, costs: Costs) -> Work:
    """[x, h, 1] of the whole ring times the deltas; a GRU's are not the same for x, h and 1."""
    width, depth = plan.CELLS[cell][1] * hidden, (window + 1) * batch
    if cell == "gru":
        return together(product(hidden, width, depth, costs).times(2), product(1, width, depth, costs))
    return product(2 * hidden + 1, width, depth, costs)


def parts_of_step(
    way: str, cell: str, n_in: int, hidden: int, batch: int, costs: Costs = ESTIMATES, gpu: Gpu = H100
) -> dict[str, Work]:
    """What a step consists of. Raises ValueError if the way does not fit the sizes."""
    width = plan.CELLS[cell][1] * hidden
    state, wide = FLOAT * batch * hidden, FLOAT * batch * width
    if way == "fused":
        division, weights = plan.forward_step(cell, n_in, hidden, batch), FLOAT * (n_in + hidden) * width
        # Loads one after the other as of pointwise kernels, once the weights are there.
        time = max(streamed(weights, costs), division.time(gpu.multiprocessors, costs))
        return {"step": Work(1, pointwise(0, costs).time + time)}
    both = [product(batch, width, inputs, costs) for inputs in (n_in, hidden)]
    return {"products": together(*both), "pointwise": pointwise(3 * wide + 4 * state, costs)}


def window_cost(
    way: str,
    cell: str,
    hidden: int,
    batch: int,
    window: int,
    costs: Costs = ESTIMATES,
    captured: bool = False,
    gpu: Gpu = H100,
) -> float:
    """Microseconds of a sweep, as part of a CUDA graph (`captured`), or launched kernel by kernel."""
    return took(parts(way, cell, hidden, batch, window, costs, gpu), costs, captured)


def step_cost(
    way: str,
    cell: str,
    n_in: int,
    hidden: int,
    batch: int,
    costs: Costs = ESTIMATES,
    captured: bool = False,
    gpu: Gpu = H100,
) -> float:
    """Microseconds of a step, as `window_cost`."""
    return took(parts_of_step(way, cell, n_in, hidden, batch, costs, gpu), costs, captured)


def took(parts: dict[str, Work], costs: Costs, captured: bool) -> float:
    kernels, time = together(*parts.values())
    return time if captured else max(time, kernels * costs.launch)


def table(
    cell: str, hidden: int, batch: int, window: int, costs: Costs, captured: bool, gpu: Gpu
) -> Iterator[tuple[float, str]]:
    """The costs of the ways that fit, each with its name."""
    for way in WAYS:
        if way == "persistent" and why_not(cell, hidden, batch, gpu):
            continue
        yield window_cost(way, cell, hidden, batch, window, costs, captured, gpu), way


def why_not(cell: str, hidden: int, batch: int, gpu: Gpu = H100) -> str:
    """Why a window cannot be swept in one launch; "" if it can."""
    try:
        planned(cell, hidden, batch, gpu, ESTIMATES)
    except ValueError as error:
        return str(error)
    return ""


planned = functools.lru_cache(1024)(plan.persistent_backward)


def check(cell: str, hidden: int, batch: int, window: int) -> None:
    if cell not in plan.CELLS:
        raise ValueError(f"no cell is called {cell!r}; there are {', '.join(plan.CELLS)}.")
    for name, value in (("hidden", hidden), ("batch", batch), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1.\n  {name}: {value}")


# -- the choice ----------------------------------------------------------------------------------------


def choose(
    cell: str,
    hidden: int,
    batch: int,
    window: int,
    gpu: Gpu | None = None,
    *,
    captured: bool = False,
    costs: Costs | None = None,
    way: str = "auto",
) -> str:
    """The quickest way that fits: "persistent", "alternating" or "generic".

    `gpu` and `costs` are those of the current GPU unless given: the driver is asked, so ask for a loop, not for a
    step. A way that is asked for, by `way` or by `use`, is
    taken; ValueError, with the reason, if "persistent" is and does not fit.
    """
    check(cell, hidden, batch, window)
    wanted = known(way) if way != "auto" else WAY
    if wanted != "auto":
        if wanted == "persistent" and (reason := why_not(cell, hidden, batch, gpu or this_gpu())):
            raise ValueError(reason)
        return wanted
    gpu = gpu or this_gpu()
    return min(
        table(cell, hidden, batch, window, costs or these_costs(), captured, gpu),
        key=lambda row: (row[0], WAYS.index(row[1])),
    )[1]


def choose_step(
    cell: str,
    n_in: int,
    hidden: int,
    batch: int,
    gpu: Gpu | None = None,
    *,
    captured: bool = False,
    costs: Costs | None = None,
    way: str = "auto",
) -> str:
    """The quicker way to step that fits: "fused" or "products". `gpu`, `costs` and `way` as of `choose`.

    "fused" that is asked for is taken wherever it fits, and "products" elsewhere.
    """
    wanted = known_step(way) if way != "auto" else STEP
    try:
        plan.forward_step(cell, n_in, hidden, batch)
    except ValueError:
        return "products"
    if wanted != "auto":
        return wanted
    # Weights that are read again for each eight rows are what products are made for; where the one begins to take
    # longer than the other no estimate says well enough.
    if batch > plan.MOST_FORWARD_ROWS:
        return "products"
    gpu, costs = gpu or this_gpu(), costs or these_costs()
    return min(STEPS, key=lambda way: step_cost(way, cell, n_in, hidden, batch, costs, captured, gpu))


def use(way: str) -> str:
    """Sweep this way from now on; "auto" leaves it to the model. Returns what was in force."""
    global WAY
    before, WAY = WAY, known(way)
    return before


def use_step(way: str) -> str:
    """Step this way from now on, as `use`."""
    global STEP
    before, STEP = STEP, known_step(way)
    return before


def known(way: str) -> str:
    return one_of(way, WAYS, "a window is swept", "TAPEGRAD_GPU_SWEEP")


def known_step(way: str) -> str:
    return one_of(way, STEPS, "a step is made", "TAPEGRAD_GPU_STEP")


def one_of(way: str, ways: tuple[str, ...], what: str, variable: str) -> str:
    if way not in ("auto", *ways):
        raise ValueError(
            f"{what} by one of auto, {', '.join(ways)}; {way!r} came "
            f"(an argument, or {variable} in the environment)."
        )
    return way


def this_gpu() -> Gpu:
    """The current GPU; without one, an H100."""
    return source.this_gpu() if source.available() else H100


def these_costs() -> Costs:
    """Those that were measured on the current GPU; estimates, if none were."""
    return (source.available() and costs_of.measured(costs_of.this_origin())) or ESTIMATES


WAY = STEP = "auto"
use(os.environ.get("TAPEGRAD_GPU_SWEEP", "auto"))
use_step(os.environ.get("TAPEGRAD_GPU_STEP", "auto"))
