"""What does the hardware allow? The products of a window's step alone, by BLAS, and the time to move its arrays.

    python bench/floor.py
    python bench/floor.py --quick

Counted for an LSTM, batch B, hidden = input = n, window K: the forward step's product [x, h, 1] W; K products that
carry a cotangent over a joint; the product over the window that settles all weights, with SGD in it (beta = 1, so it writes
into W). Each in the quickest of the layouts tried, on buffers that start on 64 bytes, called without a wrapper
around scipy.linalg.blas. `elementwise` is the least traffic of the rest: reading the factors of K steps and writing
their deltas, as one pass of NumPy; the forward step's gates come on top, with the tanh that they need. No
library can be quicker that computes the same by products of float32; `over the floor` is how many times longer
others take.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np
from contest import AT_LEAST
from peers.by_hand import ByHand, aligned
from peers.work import Work
from scipy.linalg import blas
from window import WORKS

LSTMS = [work for work in WORKS if work.kind == "lstm"]


def drawn(*shape: int) -> np.ndarray:
    """Aligned float32 of ordinary size: zeros may be quicker, denormal numbers are slower."""
    array = aligned(shape)
    array[...] = np.random.default_rng(0).standard_normal(shape) / 8
    return array


def forward_products(work: Work) -> dict[str, Callable[[], object]]:
    """[x, h, 1] W, (batch, 2n + 1) times (2n + 1, 4n)."""
    batch, n = work.batch, work.hidden
    inputs, w, z = drawn(batch, 2 * n + 1), drawn(2 * n + 1, 4 * n), drawn(batch, 4 * n)
    w_turned, z_turned = drawn(4 * n, 2 * n + 1), drawn(4 * n, batch)
    if batch == 1:
        return {
            "gemv, rows": lambda: blas.sgemv(1.0, w.T, inputs[0], y=z[0], overwrite_y=1),
            "gemv, columns": lambda: blas.sgemv(1.0, w_turned.T, inputs[0], y=z[0], overwrite_y=1, trans=1),
        }
    # BLAS counts by columns: what it calls A B is (Bᵀ Aᵀ)ᵀ here.
    return {
        "x W": lambda: blas.sgemm(1.0, w.T, inputs.T, c=z.T, overwrite_c=1),
        "(Wᵀ xᵀ)ᵀ": lambda: blas.sgemm(1.0, inputs.T, w.T, c=z_turned.T, overwrite_c=1, trans_a=1, trans_b=1),
        "Wᵀ xᵀ, W turned": lambda: blas.sgemm(
            1.0, inputs.T, w_turned.T, c=z_turned.T, overwrite_c=1, trans_a=1
        ),
    }


def joint_products(work: Work) -> dict[str, Callable[[], object]]:
    """delta W_hᵀ, (batch, 4n) times (4n, n), once."""
    batch, n = work.batch, work.hidden
    delta, w_h, ct = drawn(batch, 4 * n), drawn(n, 4 * n), drawn(batch, n)
    w_turned, ct_turned = drawn(4 * n, n), drawn(n, batch)
    if batch == 1:
        return {
            "gemv, rows": lambda: blas.sgemv(1.0, w_h.T, delta[0], y=ct[0], overwrite_y=1, trans=1),
            "gemv, columns": lambda: blas.sgemv(1.0, w_turned.T, delta[0], y=ct[0], overwrite_y=1),
        }
    return {
        "delta Wᵀ": lambda: blas.sgemm(1.0, w_h.T, delta.T, c=ct.T, overwrite_c=1, trans_a=1),
        "delta W', W' turned": lambda: blas.sgemm(1.0, w_turned.T, delta.T, c=ct.T, overwrite_c=1),
        "(W deltaᵀ)ᵀ": lambda: blas.sgemm(1.0, delta.T, w_h.T, c=ct_turned.T, overwrite_c=1, trans_a=1),
    }


def settling_products(work: Work) -> dict[str, Callable[[], object]]:
    """W -= lr [x, h, 1]ᵀ delta over all rows of the window."""
    n, rows = work.hidden, work.window * work.batch
    inputs, delta, w = drawn(rows, 2 * n + 1), drawn(rows, 4 * n), drawn(2 * n + 1, 4 * n)
    w_turned = drawn(4 * n, 2 * n + 1)
    return {
        "W": lambda: blas.sgemm(-1e-9, delta.T, inputs.T, beta=1.0, c=w.T, overwrite_c=1, trans_b=1),
        "W turned": lambda: blas.sgemm(
            -1e-9, inputs.T, delta.T, beta=1.0, c=w_turned.T, overwrite_c=1, trans_b=1
        ),
    }


def passes(work: Work) -> Callable[[], object]:
    """Reading six factors a unit and writing four deltas, for K steps; and the forward step's five tanh."""
    batch, n, window = work.batch, work.hidden, work.window
    factors, rest, deltas = (
        drawn(window, batch * 4 * n),
        drawn(window, batch * n),
        drawn(window, batch * 4 * n),
    )
    ct, gates = drawn(batch * n), drawn(5 * batch * n)

    def run() -> None:
        np.multiply(factors, 0.5, out=deltas)
        np.multiply(rest, ct, out=rest)
        np.multiply(rest, ct, out=rest)
        np.tanh(gates, out=gates)

    return run


def timed(run: Callable[[], object], rounds: int) -> float:
    """Milliseconds: the least of `rounds`, for a floor."""

    def repeated(steps: int) -> None:
        for _ in range(steps):
            run()

    return 1e3 * min(paired.seconds_a_step(repeated, AT_LEAST / 3) for _ in range(rounds))


def quickest(layouts: dict[str, Callable[[], object]], rounds: int) -> tuple[str, float]:
    """Which layout, and its milliseconds."""
    found = {name: timed(run, rounds) for name, run in layouts.items()}
    name = min(found, key=lambda name: found[name])
    return name, found[name]


def floor_of(work: Work, rounds: int) -> dict[str, Any]:
    """Milliseconds of every part, and who takes how many times the floor."""
    parts, layouts = {}, {}
    for name, products, times in [
        ("forward", forward_products, 1),
        ("joints", joint_products, work.window),
        ("settling", settling_products, 1),
    ]:
        layouts[name], ms = quickest(products(work), rounds)
        parts[name] = ms * times
    products_ms = sum(parts.values())
    parts["elementwise"] = timed(passes(work), rounds)
    return {
        "parts_ms": {name: round(ms, 4) for name, ms in parts.items()},
        "layouts": layouts,
        "products_ms": round(products_ms, 4),
        "floor_ms": round(sum(parts.values()), 4),
    }


def over_the_floor(work: Work, rounds: int) -> dict[str, dict[str, float]]:
    """Contenders, floor and contender taking turns: the median ratio, by products alone and with all passes."""
    from peers import tapegrad_loops as tl

    run_products = [
        products(work)[quickest(products(work), 1)[0]]
        for products in (forward_products, joint_products, settling_products)
    ]
    elementwise = passes(work)

    def floor() -> None:
        for _ in range(floor_steps):
            run_products[0]()
            for _ in range(work.window):
                run_products[1]()
            run_products[2]()
            elementwise()

    floor_steps = 1
    floor_steps = max(1, round(AT_LEAST / timed(floor, 1) * 1e3))
    contenders: dict[str, Any] = {"NumPy by hand, current": ByHand(work)}
    for policy in ("current", "recorded"):
        contenders[f"tapegrad built-in, {policy}"] = tl.Window(work, tl.built_in_cell(work), weights=policy)
    runs, steps = {"floor": floor}, {"floor": floor_steps}
    for name, contender in contenders.items():
        contender.run(2)
        steps[name] = max(1, round(AT_LEAST / paired.seconds_a_step(contender.run, AT_LEAST / 3)))
        runs[name] = lambda c=contender, n=steps[name]: c.run(n)
    taken = {name: t / steps[name] for name, t in paired.seconds_of(runs, rounds).items()}
    return {name: paired.ratio(taken, name, "floor") for name in contenders}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds, written to runs/")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    results, rows = {}, []
    for work in LSTMS:
        found = results[work.title] = floor_of(work, min(rounds, 9))
        found["over_the_floor"] = over_the_floor(work, rounds)
        ratios = [f"{r['median']:.2f}" for r in found["over_the_floor"].values()]
        rows.append(
            [work.title, *found["parts_ms"].values(), found["products_ms"], found["floor_ms"], *ratios]
        )
    columns = [
        "",
        *found["parts_ms"],
        "products",
        "floor",
        *(f"{name} / floor" for name in found["over_the_floor"]),
    ]
    paired.show("ms a step that the products and passes alone take", columns, rows)
    paired.write("floor", results, options.quick)


if __name__ == "__main__":
    main()
