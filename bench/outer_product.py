"""Why does the gradient of a weight, for a batch of one, go through np.dot and not through np.matmul?

python bench/outer_product.py
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np


def repeated(product, x, ct, repeats: int) -> None:
    for _ in range(repeats):
        product(x, ct)


def main(rounds: int = 60, repeats: int = 200) -> None:
    results = {}
    for n, m in [(64, 256), (128, 256), (256, 1024)]:
        rng = np.random.default_rng(0)
        x, ct = (rng.standard_normal((1, k)).astype(np.float32) for k in (n, m))
        assert np.array_equal(x.T @ ct, np.dot(x.T, ct))
        contenders = {
            "dot": lambda x=x, ct=ct: repeated(np.dot, x.T, ct, repeats),
            "matmul": lambda x=x, ct=ct: repeated(np.matmul, x.T, ct, repeats),
        }
        taken = paired.seconds_of(contenders, rounds)
        microseconds = {name: round(float(np.median(t)) / repeats * 1e6, 2) for name, t in taken.items()}
        results[f"{n} x {m}"] = {"us": microseconds, "dot_over_matmul": paired.ratio(taken, "dot", "matmul")}
    paired.show(
        "outer product of two float32 rows, µs",
        ["", "dot", "matmul", "dot over matmul"],
        [[k, r["us"]["dot"], r["us"]["matmul"], r["dot_over_matmul"]["median"]] for k, r in results.items()],
    )
    paired.write("outer_product", results)


if __name__ == "__main__":
    main()
