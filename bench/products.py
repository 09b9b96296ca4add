"""The product that carries a cotangent over a joint, dz Wᵀ: how is it quickest, from one row to many?

    python bench/products.py
    python bench/products.py --quick

dz is (rows, 4n) and W (n, 4n), float32 and C-ordered, as in an LSTM of n units; the result is (rows, n). Through NumPy as
`dz @ W.T` and as `W @ dz.T` copied back; inside a compiled program (`tapegrad/program/loops.py`) as loops, as one
call of BLAS either way round, and in pieces that are small enough for OpenBLAS's kernels for small matrices, with
which a program has it. µs, the median over the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest import mock

import paired  # isort: skip (it pins the threads)
import numpy as np

from tapegrad.program import emit_numba, loops
from tapegrad.program.rings import aligned

SIZES = (64, 128, 256, 512)
ROWS = (1, 2, 3, 4, 8, 16, 32, 64, 128)
MOST_BY_LOOPS = 8  # rows; beyond it takes long


def compiled(rows: int, n: int, repeats: int, **choices: Any) -> tuple[Callable[[], object], Any]:
    """The product inside a compiled function, `repeats` times, with the `choices` of loops.py; and its arrays."""
    made = loops.Loops()
    dz, w, out = (
        made.memory(name, shape, np.float32).whole
        for name, shape in {"dz0": (rows, 4 * n), "w0": (n, 4 * n), "out0": (rows, n)}.items()
    )
    with mock.patch.multiple(loops, **(choices or {"FEW_ROWS": loops.FEW_ROWS})):
        turned = w.seen("transpose", ((1, 0),))
        assert turned is not None
        made.matmul(out, dz, turned)
        body = made.lines()
    memories = made.used()
    lines = ["def hoist(t, arrays, k):", *emit_numba.header(made, memories), "    for _ in range(k):"]
    source = "\n".join([*lines, *("        " + line for line in body), "    return 0"])
    function, _ = emit_numba.compiled("hoist", source)
    arrays = {memory.name: aligned(memory.shape, memory.dtype) for memory in memories}
    rng = np.random.default_rng(0)
    for name in ("dz0", "w0"):
        arrays[name][...] = rng.standard_normal(arrays[name].shape) / 8
    table = emit_numba.Table([])
    table.fill([arrays[memory.name] for memory in memories], emit_numba.blas())
    return lambda: function(table.address, 0, repeats), (table, arrays)


def contenders(rows: int, n: int, repeats: int) -> dict[str, Callable[[], object]]:
    """Every way to compute the product, `repeats` times; they agree."""
    never = {"piece": lambda *a: 0, "small": lambda *a: True}
    ways: dict[str, dict[str, Any]] = {"as in a program": {}}
    if rows > 1:  # one row is never BLAS's
        turned = {**never, "small": lambda *a: False, "NARROW": 10**9}
        ways |= {"one call": {"FEW_ROWS": 0, **never}, "one call, turned": {"FEW_ROWS": 0, **turned}}
    if rows <= MOST_BY_LOOPS:
        ways["loops"] = {"FEW_ROWS": MOST_BY_LOOPS}
    made: dict[str, Callable[[], object]] = {}
    kept = {}
    for name, choices in ways.items():
        made[name], kept[name] = compiled(rows, n, repeats, **choices)
    arrays = kept["as in a program"][1]
    dz, w = arrays["dz0"], arrays["w0"]
    out, across = aligned((rows, n), np.float32), aligned((n, rows), np.float32)

    def by_numpy() -> None:
        for _ in range(repeats):
            np.dot(dz, w.T, out=out)

    def turned_by_numpy() -> None:
        for _ in range(repeats):
            np.dot(w, dz.T, out=across)
            np.copyto(out, across.T)

    made |= {"numpy": by_numpy, "numpy, turned": turned_by_numpy}
    by_numpy()
    for name in ways:
        made[name]()
        np.testing.assert_allclose(kept[name][1]["out0"], out, rtol=0, atol=1e-4 * np.abs(out).max())
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds; the result goes to runs/")
    quick = parser.parse_args().quick
    columns = [
        "n",
        "rows",
        "numpy",
        "numpy, turned",
        "one call",
        "one call, turned",
        "loops",
        "as in a program",
    ]
    found, table = [], []
    for n in SIZES[:2] if quick else SIZES:
        for rows in ROWS[:4] if quick else ROWS:
            repeats = max(3, 20_000_000 // (rows * 4 * n * n))
            taken = paired.seconds_of(contenders(rows, n, repeats), 3 if quick else 15)
            each = {name: round(float(np.median(times)) / repeats * 1e6, 2) for name, times in taken.items()}
            found.append({"n": n, "rows": rows, "us": each})
            table.append([n, rows, *(each.get(name, "") for name in columns[2:])])
    paired.show("dz Wᵀ, µs", columns, table)
    paired.write("products", {"small_kernels": loops.small_kernels(), "products": found}, quick)


if __name__ == "__main__":
    main()
