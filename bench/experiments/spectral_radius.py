"""Do gradients of the linear RNN vanish and explode as the spectral radius of W_hh says (D2L, backpropagation through time)?

    python bench/experiments/spectral_radius.py

h_t = W_hx x_t + W_hh h_{t-1}, o_t = W_qh h_t, and a loss at the last step: one sweep of a CapacitorTape gives
the norm of dL/dh_{T-k} at every lag k, and so the factor by which it changes per lag. Three kinds of
W_hh (16, 16), each scaled to spectral radii below, at and above 1: normal (orthogonal eigenvectors), Gaussian
(independent entries, far from normal), and one Jordan block, whose norms go like rho^k times a polynomial.

Prints and writes bench/results/spectral_radius.json, and the drawings of docs/figures: spectral_radius.png,
partition.png (the strategies on the first words of The Time Machine), lag_profile.png (a small RNN in training).
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np
from PIL import Image

import tapegrad as tg

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE, LAGS, RADII = 16, 100, [0.8, 0.95, 1.0, 1.05, 1.2]
WORDS = ["the", "time", "machine", "by", "h", "g", "wells"]
STRATEGIES = {
    "randomised": tg.Randomized(3, seed=1),
    "regular": tg.Chunked(3),
    "full": tg.Full(),
    "sliding": tg.Sliding(3),
}


def matrices(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One matrix (SIZE, SIZE) of spectral radius 1 of each kind."""
    gaussian = rng.standard_normal((SIZE, SIZE))
    axes, _ = np.linalg.qr(rng.standard_normal((SIZE, SIZE)))
    spread = np.concatenate([[1.0], rng.uniform(-0.8, 0.8, SIZE - 1)])
    return {
        "normal": axes * spread @ axes.T,
        "gaussian": gaussian / np.abs(np.linalg.eigvals(gaussian)).max(),
        "jordan": np.eye(SIZE) + np.eye(SIZE, k=1),
    }


def measure(kind: str, matrix: np.ndarray, radius: float) -> dict[str, object]:
    # A Jordan block is scaled on its diagonal only, for the ones beside it are what makes it one.
    W_hh = matrix * radius if kind != "jordan" else matrix + (radius - 1) * np.eye(SIZE)
    found = tg.render.decay(W_hh, lags=LAGS)
    return {
        "matrix": kind,
        "radius": radius,
        "measured_rate": found.rate,
        "relative_error": abs(found.rate - radius) / radius,
        "norm_at_last_lag_over_lag_0": found.norms[-1] / found.norms[0],
        "radius_to_the_last_lag": radius**LAGS,
        "largest_difference_from_formula": formula_difference(W_hh, found.norms),
    }


def formula_difference(W_hh: np.ndarray, norms: np.ndarray) -> float:
    """Largest relative difference between the sweep's norms and those of (W_hhᵀ)^k dL/dh_T by NumPy alone."""
    rng = np.random.default_rng(0)  # draws what `decay` draws
    _, W_qh, direction = (rng.standard_normal(shape) for shape in ((SIZE, 2), (2, SIZE), 2))
    ct, largest = W_qh.T @ direction, 0.0
    for norm in norms:
        largest = max(largest, abs(norm / np.linalg.norm(ct) - 1))
        ct = W_hh.T @ ct
    return largest


def lag_sweeps(steps: int) -> list[tg.Sweep]:
    """Sweeps over a window of 40 of an RNN that learns to repeat the bit of three steps ago."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (steps, 16, 1)).astype(np.float32)
    cell, readout = tg.nn.RNNCell(1, 16, rng=0), tg.nn.Linear(16, 1, rng=1)
    optimizer = tg.optim.SGD([*cell.parameters(), *readout.parameters()], lr=0.1)
    tape, state, sweeps = tg.CapacitorTape(40), cell.initial_state(16), []
    for t in range(3, steps):
        with tape:
            out, state = cell(bits[t], state)
            loss = tg.mean((readout(out) - bits[t - 3]) ** 2)
        sweeps.append(tape.backward(loss))
        optimizer.step()
        optimizer.zero_grad()
    return sweeps[-100:]


def save(figure, path: pathlib.Path) -> None:
    """As PNG with a palette of 64 colours, a third of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    path.parent.mkdir(exist_ok=True)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
    print(f"written: {path.relative_to(ROOT)}, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the table only, and nothing is written")
    options = parser.parse_args()
    kinds = matrices(np.random.default_rng(0))
    results = [measure(kind, matrix, radius) for kind, matrix in kinds.items() for radius in RADII]
    paired.show(
        f"growth of |dL/dh| per lag, mean over the last quarter of {LAGS} lags",
        ["W_hh", "spectral radius", "measured", "relative error", "from the formula"],
        [
            [
                row["matrix"],
                row["radius"],
                f"{row['measured_rate']:.9f}",
                f"{row['relative_error']:.1e}",
                f"{row['largest_difference_from_formula']:.1e}",
            ]
            for row in results
        ],
    )
    if options.quick:
        return
    environment = {**paired.environment(), "command": "python bench/experiments/spectral_radius.py"}
    report = {**environment, "size": SIZE, "lags": LAGS, "results": results}
    (paired.RESULTS / "spectral_radius.json").write_text(json.dumps(report, indent=1) + "\n")
    figures = ROOT / "docs" / "figures"
    drawn = tg.render.spectral_radius([kinds["gaussian"] * radius for radius in RADII], lags=LAGS)
    save(drawn, figures / "spectral_radius.png")
    save(tg.render.partition(STRATEGIES, WORDS), figures / "partition.png")
    print(tg.render.partition_text(STRATEGIES, WORDS))
    save(tg.render.lag_profile(lag_sweeps(1000)), figures / "lag_profile.png")


if __name__ == "__main__":
    main()
