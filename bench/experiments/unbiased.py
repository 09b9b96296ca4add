"""Randomised truncation is unbiased: ARTBP and D2L's ξ on a scalar network, and what their variance is.

    python bench/experiments/unbiased.py

The network: h_t = tanh(w h_{t-1}) + x_t with w = 1, h_0 = 0, T = 30, x_t normal with mean 0.02 and deviation
0.05 (seed 0); the loss is Σ ½ (h_t - 1)² over all steps. Most of its gradient comes over lags that a chunk of
4 cannot see.

ARTBP: `Randomized(mean, alpha)`; many sequences, one gradient each. The mean must be the full gradient within
three standard errors, and the sample's deviation that of the exact law, computed by a recursion over the
number of steps since the last cut. (Standard errors are the law's: for short means and a large α rare long
chunks carry most of the variance, and a sample without one looks far too sure.)

ξ: `RandomJoint(alpha)`; z_t estimates ∂h_t/∂w. The mean must be ∂h_t/∂w within three standard errors for
every t, and the deviation that of the law: contributions of lag j and k have weights with covariance
α^-min(j, k) - 1.

The rest compares what the schedule says about itself with samples: `weight_variance(lag)`, the variance of
the weight with which a contribution over `lag` joints counts, and `variance`, the variance of the gradient
per segment as measured along a stream. There the network is in its steady state (x_t = 0.02 always), so that
all variance is the truncation's; sums over blocks of about 1,000 segments, each ended by a cut, are the sample.
Sources: Tallec and Ollivier 2017; Zhang et al., Dive into Deep Learning, section 9.7.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg

ROOT = pathlib.Path(__file__).resolve().parents[2]
T, W, TARGET = 30, 1.0, 1.0
X = 0.02 + 0.05 * np.random.default_rng(0).standard_normal(T)
STEADY_X, BLOCK = 0.02, 1000


def step(w: tg.Parameter, h, x: float):
    h = tg.tanh(w * h) + x
    return h, (h - TARGET) ** 2 * 0.5


def total(tape: tg.CapacitorTape, w: tg.Parameter) -> float:
    """The gradient of w over one sequence: the sum of all sweeps."""
    h, found = np.array(0.0), 0.0
    for x in X:
        with tape:
            h, loss = step(w, h, x)
        if sweep := tape.backward(loss):
            found += float(sweep.gradients[w])
    if sweep := tape.sweep():
        found += float(sweep.gradients[w])
    tape.reset()
    return found


def chain() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per step, by hand: ∂h_t/∂w with h_{t-1} held, ∂h_t/∂h_{t-1}, and ∂l_t/∂h_t."""
    h, rows = 0.0, []
    for x in X:
        y = math.tanh(W * h)
        rows.append(((1 - y * y) * h, (1 - y * y) * W, y + x - TARGET))
        h = y + x
    b, c, e = np.array(rows).T
    return b, c, e


def law(schedule: tg.Randomized) -> tuple[float, float]:
    """Exact mean and variance of ARTBP's gradient: moments of a_t and of the sum S, by steps since the cut.

    a_t = b_t + c_t ξ a_{t-1} and S_t = S_{t-1} + e_t a_t, where ξ is 0 at a cut and 1 / (1 - c_d) else.
    """
    b, c, e = chain()
    # d -> probability, and expectations restricted to it of a, S, a², aS, S²
    states = {0: np.array([1.0, 0, 0, 0, 0, 0])}
    for t in range(T):
        after: dict[int, np.ndarray] = {}
        for d, (p, a, s, aa, as_, ss) in states.items():
            cut = 1.0 if d == 0 else schedule.cut_probability(d)
            for to, chance, xi in ((1, cut, 0.0), (d + 1, 1 - cut, schedule.factor(d) if d else 0.0)):
                if not chance:
                    continue
                g = c[t] * xi
                now = np.array(
                    [
                        p,
                        b[t] * p + g * a,
                        s,
                        b[t] ** 2 * p + 2 * b[t] * g * a + g * g * aa,
                        b[t] * s + g * as_,
                        ss,
                    ]
                )
                p_, a_, s_, aa_, as__, ss_ = now
                moved = np.array(
                    [
                        p_,
                        a_,
                        s_ + e[t] * a_,
                        aa_,
                        as__ + e[t] * aa_,
                        ss_ + 2 * e[t] * as__ + e[t] ** 2 * aa_,
                    ]
                )
                after[to] = after.get(to, 0) + chance * moved
        states = after
    _, _, mean, _, _, square = sum(states.values())
    return float(mean), float(square - mean**2)


def artbp(mean: float, alpha: float, samples: int, seed: int) -> dict:
    w = tg.Parameter(np.array(W))
    tape = tg.CapacitorTape(tg.Randomized(mean, alpha=alpha, seed=seed))
    found = np.array([total(tape, w) for _ in range(samples)])
    exact_mean, exact_variance = law(tape.schedule)
    error = float(found.std(ddof=1)) / math.sqrt(samples)
    return {
        "mean_length": mean,
        "alpha": alpha,
        "samples": samples,
        "mean": float(found.mean()),
        "standard_error": error,
        "deviation": float(found.std(ddof=1)),
        "law_mean": exact_mean,
        "law_deviation": math.sqrt(exact_variance),
    }


def xi(alpha: float, samples: int, ts: tuple[int, ...]) -> list[dict]:
    """z_t for several t: one recording, swept again and again, each time with a draw at every joint."""
    w, h, rows = tg.Parameter(np.array(W)), np.array(0.0), []
    tape = tg.CapacitorTape(tg.Full(), joint=tg.RandomJoint(alpha, seed=2))
    b, c, _ = chain()
    for t, x in enumerate(X, 1):
        with tape:
            h, _ = step(w, h, x)
        if t not in ts:
            continue
        z = np.zeros(samples)
        for k in range(samples):
            tape.backward(h)
            z[k] = tape.sweep().gradients[w]
        # by lag: what the step `lag` before contributes to ∂h_t/∂w
        parts = b[t - 1 :: -1] * np.concatenate([[1.0], np.cumprod(c[t - 1 : 0 : -1])])
        lags = np.arange(t)
        covariance = alpha ** -np.minimum.outer(lags, lags).astype(float) - 1
        rows.append(
            {
                "alpha": alpha,
                "t": t,
                "samples": samples,
                "exact": float(parts.sum()),
                "mean": float(z.mean()),
                "standard_error": float(z.std(ddof=1)) / math.sqrt(samples),
                "deviation": float(z.std(ddof=1)),
                "law_deviation": float(math.sqrt(max(0.0, parts @ covariance @ parts))),
            }
        )
    return rows


def weights(mean: float, alpha: float, lags: tuple[int, ...], draws: int) -> list[dict]:
    """The variance of a contribution's weight: the schedule's, and of products over a stream of its scales."""
    schedule = tg.Randomized(mean, alpha=alpha, seed=3)
    scales = np.array([schedule.scale(i) for i in range(1, draws + 1)])
    rows = []
    for lag in lags:
        products = np.prod(np.lib.stride_tricks.sliding_window_view(scales, lag), axis=1)
        blocks = products[: len(products) // 100 * 100].reshape(100, -1)
        rows.append(
            {
                "lag": lag,
                "schedule": schedule.weight_variance(lag),
                "sample": float(products.var()),
                "sample_mean": float(products.mean()),
                "standard_error": float(np.square(blocks - 1).mean(axis=1).std(ddof=1)) / 10,
            }
        )
    return rows


def along_a_stream(mean: float, alpha: float, blocks: int) -> dict:
    """`variance` as the schedule reports it, and that of sums over blocks of segments, per segment."""
    w, h = tg.Parameter(np.array(W)), np.array(0.0)
    for _ in range(200):
        h, _ = step(w, h, STEADY_X)
    h = h.value
    tape = tg.CapacitorTape(tg.Randomized(mean, alpha=alpha, seed=4))
    sums, lengths, chunks = np.zeros(blocks), np.zeros(blocks), 0
    for block in range(blocks):
        while lengths[block] < BLOCK:
            with tape:
                h, loss = step(w, h, STEADY_X)
            if sweep := tape.backward(loss):
                sums[block] += sweep.gradients[w]
                lengths[block] += sweep.segments
                chunks += 1
    rate = sums.sum() / lengths.sum()
    rest = sums - rate * lengths  # what a block of its length does not explain
    spread = float(np.sum(rest**2)) / (blocks - 1) / float(lengths.mean())
    y = math.tanh(W * float(h))
    slope = (1 - y * y) * W
    exact = (float(h) - TARGET) * (1 - y * y) * float(h) / (1 - slope)
    return {
        "mean_length": mean,
        "alpha": alpha,
        "slope": slope,
        "gradient_per_segment": float(rate),
        "standard_error": math.sqrt(spread / float(lengths.sum())),
        "exact": exact,
        "mean_length_found": float(lengths.sum() / chunks),
        "schedule": float(tape.schedule.variance),
        "sample": spread,
        "sample_error": float(np.std(rest**2, ddof=1)) / math.sqrt(blocks) / float(lengths.mean()),
    }


def plot(results: dict, path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    rows = results["artbp"]
    for i, alpha in enumerate(sorted({r["alpha"] for r in rows})):
        mine = sorted((r for r in rows if r["alpha"] == alpha), key=lambda r: r["mean_length"])
        lengths = [r["mean_length"] * 1.03**i for r in mine]
        errors = [3 * r["standard_error"] for r in mine]
        left.errorbar(
            lengths, [r["mean"] for r in mine], errors, fmt=".", color=f"C{i}", label=f"α = {alpha:g}"
        )
        right.loglog([r["mean_length"] for r in mine], [r["law_deviation"] for r in mine], color=f"C{i}")
        right.loglog(
            [r["mean_length"] for r in mine], [r["deviation"] for r in mine], "o", ms=4, color=f"C{i}"
        )
    left.axhline(results["full"], color="k", lw=0.8, label="full")
    left.axhline(results["chunk_of_4"], color="C3", ls="--", label="chunk of 4")
    left.set(xscale="log", xlabel="mean length", ylabel="gradient", title="ARTBP: mean ± 3 standard errors")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.set_xticks([2, 4, 8, 16], ["2", "4", "8", "16"])
        axes.minorticks_off()
    right.set_yticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
    right.set(xlabel="mean length", title="deviation of one sample: law (line), found (dot)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"plot: {path.relative_to(ROOT)}")


def off(row: dict, exact: float) -> float:
    """How many standard errors, by the law, the mean is away from `exact`; 0 where they agree to rounding."""
    distance = row["mean"] - exact
    if abs(distance) <= 1e-9 * abs(exact):
        return 0.0
    return distance / row["law_deviation"] * math.sqrt(row["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples; write to runs/")
    quick = parser.parse_args().quick
    less = 10 if quick else 1

    w = tg.Parameter(np.array(W))
    full = total(tg.CapacitorTape(tg.Full()), w)
    chunk = total(tg.CapacitorTape(tg.Chunked(4)), w)
    grid = [(4, 6.0), *((m, a) for m in (2, 4, 8, 16) for a in (3.0, 6.0, 20.0) if (m, a) != (4, 6.0))]
    rows = [artbp(m, a, (3000 if k else 20_000) // less, seed=k) for k, (m, a) in enumerate(grid)]
    paired.show(
        f"ARTBP on the scalar network, T = {T}: full gradient {full:.3f}, chunk of 4 {chunk:.3f}",
        ["mean length", "α", "samples", "mean", "± by sample", "errors off", "deviation", "by the law"],
        [
            [
                r["mean_length"],
                f"{r['alpha']:g}",
                r["samples"],
                f"{r['mean']:.3f}",
                f"{r['standard_error']:.3f}",
                f"{off(r, full):+.2f}",
                f"{r['deviation']:.2f}",
                f"{r['law_deviation']:.2f}",
            ]
            for r in rows
        ],
    )
    print(
        f"  a chunk of 4 is {(chunk - full) / rows[0]['standard_error']:+.0f} of the first row's errors off"
    )
    print("  notes, on another scalar network: full -128.72, ARTBP -128.16 ± 0.71, chunk of 4 -42.4")

    z = [r for alpha in (0.8, 0.9) for r in xi(alpha, 20_000 // less, (1, 2, 5, 10, 20, 30))]
    paired.show(
        "ξ: z_t by RandomJoint(α), and ∂h_t/∂w",
        ["α", "t", "∂h_t/∂w", "mean of z_t", "± standard error", "errors off", "deviation", "by the law"],
        [
            [
                r["alpha"],
                r["t"],
                f"{r['exact']:.4f}",
                f"{r['mean']:.4f}",
                f"{r['standard_error']:.4f}",
                f"{off(r, r['exact']):+.2f}",
                f"{r['deviation']:.3f}",
                f"{r['law_deviation']:.3f}",
            ]
            for r in z
        ],
    )
    lags = weights(8, 6.0, (1, 2, 4, 8, 16, 32), 1_000_000 // less)
    paired.show(
        "variance of the weight of a contribution, Randomized(8, alpha=6)",
        ["lag", "schedule.weight_variance", "sample", "± standard error", "mean weight (1)"],
        [
            [r["lag"], *(f"{r[k]:.4f}" for k in ("schedule", "sample", "standard_error", "sample_mean"))]
            for r in lags
        ],
    )
    streams = [along_a_stream(m, a, 300 // less) for m, a in ((4, 6.0), (8, 6.0), (8, 3.0), (16, 6.0))]
    paired.show(
        f"variance of the gradient per segment along a stream, steady state, blocks of {BLOCK:,} segments",
        [
            "mean length",
            "α",
            "gradient",
            "exact",
            "found length",
            "schedule.variance",
            "sample",
            "± standard error",
        ],
        [
            [
                r["mean_length"],
                f"{r['alpha']:g}",
                f"{r['gradient_per_segment']:.4f} ± {r['standard_error']:.4f}",
                f"{r['exact']:.4f}",
                f"{r['mean_length_found']:.3f}",
                *(f"{r[k]:.4f}" for k in ("schedule", "sample", "sample_error")),
            ]
            for r in streams
        ],
    )
    largest = max(abs(x) for x in [*(off(r, full) for r in rows), *(off(r, r["exact"]) for r in z)])
    print(
        f"\n  largest distance from the exact value: {largest:.2f} standard errors, of {len(rows) + len(z)} rows"
    )
    assert all(abs(r["law_mean"] - full) < 1e-9 * abs(full) for r in rows), "the law itself is unbiased"
    assert abs(off(rows[0], full)) < 3
    assert abs(rows[0]["mean"] - chunk) > 10 * rows[0]["standard_error"]

    results = {
        "network": "h_t = tanh(w h_{t-1}) + x_t, w = 1, x_t = 0.02 + 0.05 N(0, 1), T = 30, loss sum of (h_t - 1)^2 / 2",
        "full": full,
        "chunk_of_4": chunk,
        "notes": {"full": -128.72, "artbp": -128.16, "standard_error": 0.71, "chunk_of_4": -42.4},
        "artbp": rows,
        "xi": z,
        "weight_variance": lags,
        "along_a_stream": streams,
        "largest_distance": round(largest, 2),
    }
    plot(results, paired.figure_of("unbiased", quick))
    paired.write("unbiased", rounded(results), quick)


def rounded(value):
    """Seven digits of every float."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
