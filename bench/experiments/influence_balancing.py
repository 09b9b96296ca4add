"""Influence balancing: a parameter whose short influence has one sign and whose long influence has the other.

    python bench/experiments/influence_balancing.py

s' = A s + θ v with n = 23 units: A_ii = A_{i,i+1} = 1/2, v = +1 for the first p = 10 units and -1 for the
rest, and the loss ½ (s_1 - 1)² at every step. In the long run ds_1/dθ is -6, and the best θ is -1/6. What θ
adds to the units nearest to s_1 arrives first, and is positive: a gradient that is cut too early points the
wrong way, with certainty, and no step size helps.

First part: the gradient that each schedule finds, on a loop with constant θ in its steady state. There every
loss has the same ∂l/∂s_1, so the gradient divided by it (and by the number of losses) is the ds_1/dθ that
the schedule works with: for Sliding(h) that of lag h; for Chunked(h) the mean over the h positions of a
loss in its chunk; for BPTT(2h; h) = Sliding(2h, stride=h) the mean over the h losses of a sweep, which see
h + 1 … 2h steps. Its sign is right when it is that of -6, negative.

Second part: training online from that steady state (loss 8), with the same step sizes for all.
Source: Tallec and Ollivier 2017, "Unbiasing truncated backpropagation through time" (sections on influence
balancing). θ = 0.5 at the start is from Vicol, Metz and Sohl-Dickstein's published code (2021, PES).
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS, POSITIVE = 23, 10
A = tg.constant(np.eye(UNITS) / 2 + np.eye(UNITS, k=1) / 2)
V = tg.constant(np.where(np.arange(UNITS) < POSITIVE, 1.0, -1.0))
START, BEST, LONG_RUN = 0.5, -1 / 6, -6.0


def step(theta: tg.Parameter, s):
    """The next state, and its loss."""
    s = A @ s + theta * V
    return s, (s[0] - 1.0) ** 2 * 0.5


# -- the gradient that a schedule finds ------------------------------------------------------------


def influence(schedule: tg.Schedule, segments: int, steady: np.ndarray) -> float:
    """ds_1/dθ as the last sweep of `segments` steps finds it, per loss."""
    theta, s, last = tg.Parameter(np.array(START)), steady, None
    tape = tg.CapacitorTape(schedule)
    for _ in range(segments):
        with tape:
            s, loss = step(theta, s)
        last = tape.backward(loss) or last
    return float(last.gradients[theta]) / last.losses / (float(steady[0]) - 1.0)


def steady_state(theta: float) -> np.ndarray:
    s = np.zeros(UNITS)
    for _ in range(2000):
        s = A @ s + theta * V
    return s


def sliding(h: int, steady) -> float:
    return influence(tg.Sliding(h), h, steady)


def chunked(h: int, steady) -> float:
    return influence(tg.Chunked(h), h, steady)


def double(h: int, steady) -> float:
    return influence(tg.Sliding(2 * h, stride=h), 4 * h, steady)


def untruncated(segments: int, steady) -> float:
    """The same for one loss at the end of `segments` steps, by a sweep over all of them."""
    theta, s, tape = tg.Parameter(np.array(START)), steady, tg.CapacitorTape(tg.Full())
    for _ in range(segments):
        with tape:
            s, loss = step(theta, s)
    tape.backward(loss)
    return float(tape.sweep().gradients[theta]) / (float(steady[0]) - 1.0)


def by_formula(longest: int) -> np.ndarray:
    """Element h - 1 is Σ_{j < h} (A^j v)_1, which truncation after h steps gives."""
    s, found = np.zeros(UNITS), []
    for _ in range(longest):
        s = A @ s + V
        found.append(s[0])
    return np.array(found)


def gradients(longest: int) -> dict:
    """The three families of schedules by window, and from which window on the sign is right."""
    steady, formula = steady_state(START), by_formula(2 * longest)
    means = np.cumsum(formula) / np.arange(1, len(formula) + 1)
    found = {}
    for name, measure, expected in [
        ("Sliding(h)", sliding, formula[:longest]),
        ("Chunked(h)", chunked, means[:longest]),
        ("Sliding(2h, stride=h)", double, [formula[h : 2 * h].mean() for h in range(1, longest + 1)]),
    ]:
        values = np.array([measure(h, steady) for h in range(1, longest + 1)])
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-9)
        wrong = np.flatnonzero(values >= 0)
        found[name] = {
            "by_window": [round(float(x), 6) for x in values],
            "right_sign_from": int(wrong[-1]) + 2,
            "first_right_sign": int(np.flatnonzero(values < 0)[0]) + 1,
        }
    found["full"] = untruncated(1000, steady)
    return found


# -- training --------------------------------------------------------------------------------------

CONTENDERS: dict[str, Callable[[int], tg.Schedule]] = {
    "Sliding(10)": lambda seed: tg.Sliding(10),
    "Sliding(20)": lambda seed: tg.Sliding(20),
    "Chunked(10)": lambda seed: tg.Chunked(10),
    "Chunked(100)": lambda seed: tg.Chunked(100),
    "Chunked(200)": lambda seed: tg.Chunked(200),
    "Sliding(58, stride=29)": lambda seed: tg.Sliding(58, stride=29),
    "Randomized(16, alpha=6)": lambda seed: tg.Randomized(16, alpha=6.0, seed=seed),
}
PAPER = {
    "Chunked(10)": "diverges",
    "Chunked(100)": "diverges",
    "Chunked(200)": "converges",
    "Randomized(16, alpha=6)": "converges",
}
RATES = [float(f"{m}e{e}") for e in range(-6, -1) for m in (1, 3)] + [0.1]
LAWS = {"constant": lambda t: 1.0, "1/sqrt(1+t)": lambda t: (1.0 + t) ** -0.5}
RUNAWAY = 1e6  # of s_1: it will not come back
SOLVED = 1e-3  # of the loss, which starts at 8


def train(schedule: tg.Schedule, rate: float, law: str, steps: int, bins: int = 100) -> dict:
    """One run: the mean loss in each bin of steps, and how it ended."""
    theta, s = tg.Parameter(np.array(START)), steady_state(START)
    tape, decay = tg.CapacitorTape(schedule), LAWS[law]
    losses, thetas = [], []
    for t in range(steps):
        with tape:
            s, loss = step(theta, s)
        if tape.backward(loss):
            theta.value = theta.value - rate * decay(t) * theta.grad
            theta.grad = None
        losses.append(float(loss))
        thetas.append(float(theta.value))
        if not abs(float(s.value[0])) < RUNAWAY:
            break
    per_bin = steps // bins
    whole = len(losses) // per_bin * per_bin
    curve = np.mean(np.reshape(losses[:whole], (-1, per_bin)), axis=1).tolist()
    late = float(np.mean(losses[-steps // 10 :]))
    # Where θ stays, the loss goes to ½ (6 θ + 1)²: as small as the loss itself, or the run only passes through.
    rest = float(np.mean([0.5 * (LONG_RUN * x - 1.0) ** 2 for x in thetas[-steps // 10 :]]))
    if len(losses) < steps or max(late, rest) > 8.0:
        outcome = "diverges"
    else:
        outcome = "converges" if max(late, rest) < SOLVED else "neither"
    return {"outcome": outcome, "steps": len(losses), "late_loss": late, "theta": thetas[-1], "curve": curve}


def search(steps: int, rates: list[float], seeds: int) -> list[dict]:
    """Every contender with every step size; randomised ones with several seeds."""
    found = []
    for name, make in CONTENDERS.items():
        for law in LAWS:
            for rate in rates:
                runs = [
                    train(make(seed), rate, law, steps)
                    for seed in range(seeds if name.startswith("Randomized") else 1)
                ]
                late = float(np.median([run["late_loss"] for run in runs]))
                found.append({"schedule": name, "law": law, "rate": rate, "late_loss": late, "runs": runs})
        print(f"  {name}: {time.process_time():.0f} s of processor time so far", flush=True)
    return found


def count(runs: list[dict], outcome: str) -> int:
    return sum(run["outcome"] == outcome for run in runs)


def summary(found: list[dict]) -> dict:
    """For each contender: outcomes over all step sizes, and its best step size."""
    by_name = {}
    for name in CONTENDERS:
        cells = [cell for cell in found if cell["schedule"] == name]
        best = max(cells, key=lambda cell: (count(cell["runs"], "converges"), -cell["late_loss"]))
        runs = [run for cell in cells for run in cell["runs"]]
        by_name[name] = {
            **{outcome: count(runs, outcome) for outcome in ("converges", "diverges", "neither")},
            "cells": len(cells),
            "cells_all_converge": sum(
                count(cell["runs"], "converges") == len(cell["runs"]) for cell in cells
            ),
            "cells_without_divergence": sum(count(cell["runs"], "diverges") == 0 for cell in cells),
            "best_law": best["law"],
            "best_rate": best["rate"],
            "best_converged": f"{count(best['runs'], 'converges')} of {len(best['runs'])}",
            "best_late_loss": best["late_loss"],
            "best_theta": float(np.median([run["theta"] for run in best["runs"]])),
            "paper": PAPER.get(name, ""),
        }
    return by_name


# -- showing ---------------------------------------------------------------------------------------


def plot(found: dict, cells: list[dict], shared: tuple[str, float], steps: int, path: pathlib.Path) -> None:
    """The gradients by window, and the loss curves of all for one `shared` (law, step size)."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name in ("Sliding(h)", "Chunked(h)", "Sliding(2h, stride=h)"):
        values = found[name]["by_window"]
        left.plot(
            range(1, len(values) + 1),
            values,
            label=f"{name}, right from h = {found[name]['right_sign_from']}",
        )
    left.axhline(LONG_RUN, color="k", ls=":", label="no truncation")
    left.axhline(0, color="k", lw=0.5)
    left.set(xlabel="h", ylabel="ds_1/dθ that the schedule finds")
    left.legend(fontsize=8)
    for i, name in enumerate(CONTENDERS):
        runs = next(c["runs"] for c in cells if (c["schedule"], c["law"], c["rate"]) == (name, *shared))
        for k, run in enumerate(runs):
            at = (np.arange(len(run["curve"])) + 0.5) * steps / 100
            label = None if k else name
            right.semilogy(at, np.clip(run["curve"], 1e-12, 1e6), color=f"C{i}", lw=1, label=label)
    right.set(xlabel="step", ylabel="loss", title=f"step size {shared[1]:g}, {shared[0]}", ylim=(1e-12, 1e14))
    right.legend(fontsize=7, ncols=2, loc="upper right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=68)
    print(f"plot: {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and step sizes; write to runs/")
    quick = parser.parse_args().quick

    longest = 130 if quick else 200
    found, formula = gradients(longest), by_formula(20)
    paired.show(
        "ds_1/dθ as the schedules find it (steady state, per loss)",
        ["h", "Sliding(h)", "Chunked(h)", "Sliding(2h, stride=h)"],
        [
            [h, *(f"{found[name]['by_window'][h - 1]:+.4f}" for name in list(found)[:3])]
            for h in (1, 10, 20, 28, 29, 40, 41, 100, 109, 110, 130, 200)
            if h <= longest
        ],
    )
    notes = {"Sliding(h)": 41, "Chunked(h)": 110, "Sliding(2h, stride=h)": 29}
    paired.show(
        "the sign is right from",
        ["schedule", "here", "notes"],
        [[name, f"h = {found[name]['right_sign_from']}", f"h = {h}"] for name, h in notes.items()],
    )
    print(
        f"\n  truncated at 20: {found['Sliding(h)']['by_window'][19]:+.6f} (formula {formula[19]:+.6f}, notes +16.5)"
    )
    print(f"  no truncation:   {found['full']:+.6f} (notes: tends to -6)")
    assert {name: found[name]["right_sign_from"] for name in notes} == notes
    assert all(found[name]["first_right_sign"] == h for name, h in notes.items())
    assert round(found["Sliding(h)"]["by_window"][19], 1) == 16.5

    steps, seeds = (4000, 2) if quick else (20_000, 5)
    rates = [1e-4, 1e-3, 1e-2] if quick else RATES
    print(f"\n{steps:,} steps of training, step sizes {rates[0]:g} … {rates[-1]:g}, {' and '.join(LAWS)}:")
    cells = search(steps, rates, seeds)
    best = summary(cells)
    paired.show(
        "runs by outcome over all step sizes (late loss: mean of the last tenth; the loss starts at 8)",
        [
            "schedule",
            "converge",
            "diverge",
            "neither",
            "best step size",
            "there",
            "late loss",
            "θ (-1/6)",
            "paper",
        ],
        [
            [
                name,
                row["converges"],
                row["diverges"],
                row["neither"],
                f"{row['best_rate']:g} {row['best_law']}",
                f"{row['best_converged']} converge",
                f"{row['best_late_loss']:.3g}",
                f"{row['best_theta']:+.5f}",
                row["paper"],
            ]
            for name, row in best.items()
        ],
    )
    compact = [
        {
            **{key: cell[key] for key in ("schedule", "law", "rate")},
            "late_loss": float(f"{cell['late_loss']:.4g}"),
            "outcomes": [run["outcome"] for run in cell["runs"]],
            "steps": [run["steps"] for run in cell["runs"]],
        }
        for cell in cells
    ]
    results = {
        "truncation": found,
        "notes": {"right_sign_from": notes, "truncated_at_20": 16.5, "long_run": LONG_RUN},
        "training": {
            "steps": steps,
            "start": {"theta": START, "s": "steady"},
            "rates": rates,
            "laws": list(LAWS),
            "seeds_of_randomized": seeds,
            "summary": best,
            "cells": compact,
        },
    }
    randomized = best["Randomized(16, alpha=6)"]
    shared = (randomized["best_law"], randomized["best_rate"])
    plot(found, cells, shared, steps, paired.figure_of("influence_balancing", quick))
    paired.write("influence_balancing", results, quick)


if __name__ == "__main__":
    main()
