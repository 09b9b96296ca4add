"""The add task: which window learns which of two dependencies, and why a carried state sees further.

    python bench/experiments/add_task.py

Input law: x_t is 0 or 1 with probability 1/2 (fed as -1, +1), and y_t is 1 with probability
½ + ½ x_{t-t1} - ¼ x_{t-t2}. A model that knows neither lag scores 0.6616 nats, one that knows t1 0.5192,
one that knows both 0.4545: the plateaus. Model: a tanh RNN of 32 units and a linear readout of two logits;
Adam, step size from 0.005 down a half cosine to 0, gradient norm clipped to 1, 64 streams of fresh data.
Scored on new streams of the same law.

Three ways to read the same stream:

    carried   Sliding(h): the state is carried from step to step, the gradient goes back over h segments
    chunked   Chunked(h): the same, forgotten every h segments
    readout   Sliding(1), and only the readout is trained: what a random network echoes
    fresh     every window of h inputs starts from a state of zeros, and only its last output is scored

A window of h segments reaches inputs of lag 0 … h - 1. So lag 4 needs h = 5, and lag 8 needs h = 9; that is
what `fresh` must show, where the gradient's reach is the information's reach. With a carried state a window
may do more. A network that uses lag t1 holds x_{t-h-t1} in its state at t - h, which a window of h segments
meets at its left edge: from there it can be carried on, and be reached at h = t2 - t1. For t1 = 4, t2 = 8
this is within the window of 5 that finds t1, so the carried rows are also run with t2 = 13, where t1 needs
5 and the relay 9.

`readout` is there because a window too short does worse than no training of the network at all: a random
network echoes its inputs, and a readout finds x_{t-4} in it. A window below 5 sees only that the inputs it
reaches disturb the output, and trains the network to forget them.

Source of the task: Pitis 2016, "Recurrent Neural Networks in TensorFlow I" (with t1 = 3, t2 = 8).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS, STREAMS, RATE, CLIP = 32, 64, 0.005, 1.0
PLATEAUS = {"nothing": 0.6616, "t1": 0.5192, "both": 0.4545}
NEAR = 0.01  # nats


def by_formula() -> dict[str, float]:
    """The plateaus: entropies of y given what is known."""

    def entropy(p: float) -> float:
        return -sum(q * math.log(q) for q in (p, 1 - p) if q)

    table = {(a, b): 0.5 + 0.5 * a - 0.25 * b for a in (0, 1) for b in (0, 1)}
    return {
        "nothing": entropy(sum(table.values()) / 4),
        "t1": sum(entropy((table[a, 0] + table[a, 1]) / 2) for a in (0, 1)) / 2,
        "t2": sum(entropy((table[0, b] + table[1, b]) / 2) for b in (0, 1)) / 2,
        "both": sum(map(entropy, table.values())) / 4,
    }


def draw(rng: np.random.Generator, steps: int, streams: int, t1: int, t2: int):
    """Inputs (steps, streams, 1) of -1 and +1, and labels (steps, streams). Before the start x is 0."""
    x = rng.integers(0, 2, (steps, streams))
    p = np.full((steps, streams), 0.5)
    p[t1:] += 0.5 * x[:-t1]
    p[t2:] -= 0.25 * x[:-t2]
    return (2 * x[..., None] - 1).astype(np.float32), (rng.random((steps, streams)) < p).astype(np.int64)


class Model(nn.Module):
    def __init__(self, rng: np.random.Generator) -> None:
        self.cell = nn.RNNCell(1, UNITS, rng=rng)
        self.readout = nn.Linear(UNITS, 2, rng=rng)


class Trainer:
    """Adam down a half cosine, with clipping."""

    def __init__(self, part: nn.Module, steps: int) -> None:
        self.params, self.steps = part.parameters(), steps
        self.optimizer = optim.Adam(self.params, lr=RATE)

    def step(self, t: int) -> None:
        optim.clip_by_norm(self.params, CLIP)
        self.optimizer.lr = RATE * (0.5 + 0.5 * math.cos(math.pi * t / self.steps))
        self.optimizer.step()
        self.optimizer.zero_grad()


def carried(
    model: Model, part: nn.Module, schedule: tg.Schedule, t2: int, rng, steps: int, t1: int = 4
) -> float:
    """Train `part` of the model on one stream under `schedule`; nats on new streams."""
    trainer, tape = Trainer(part, steps), tg.CapacitorTape(schedule)
    xs, ys = draw(rng, steps, STREAMS, t1, t2)
    state = model.cell.initial_state(STREAMS)
    for t in range(steps):
        with tape:
            out, state = model.cell(xs[t], state)
            loss = tg.softmax_cross_entropy(model.readout(out), ys[t])
        if tape.backward(loss):
            trainer.step(t)

    xs, ys = draw(rng, 800, 256, t1, t2)
    state, nats = model.cell.initial_state(256), []
    for t in range(len(xs)):
        out, state = model.cell(xs[t], state)
        nats.append(tg.softmax_cross_entropy(model.readout(out), ys[t]).item())
    return float(np.mean(nats[50:]))


def fresh(model: Model, h: int, t2: int, rng, steps: int, t1: int = 4) -> float:
    """Train on windows of h inputs, each from a state of zeros, and score the last output; nats on new ones."""
    trainer, tape, length = Trainer(model, steps), tg.CapacitorTape(tg.Chunked(h)), max(h, t2 + 1)

    def last_loss(xs, labels):
        state = model.cell.initial_state(xs.shape[1])
        for x in xs[:-1]:
            with tape:
                _, state = model.cell(x, state)
        with tape:
            out, _ = model.cell(xs[-1], state)
            return tg.softmax_cross_entropy(model.readout(out), labels)

    for t in range(steps):
        xs, ys = draw(rng, length, STREAMS, t1, t2)
        loss = last_loss(xs[-h:], ys[-1])
        tape.backward(loss)
        trainer.step(t)

    xs, ys = draw(rng, length, 200_000, t1, t2)
    return last_loss(xs[-h:], ys[-1]).item()


def train(way: str, h: int, t2: int, seed: int, steps: int) -> float:
    """One run from a seed; nats on new streams."""
    rng = np.random.default_rng(seed)
    model = Model(rng)
    if way == "fresh":
        return fresh(model, h, t2, rng, steps // 2)
    schedule = tg.Chunked(h) if way == "chunked" else tg.Sliding(h)
    return carried(model, model.readout if way == "readout" else model, schedule, t2, rng, steps)


def plateau(nats: float) -> str:
    """The plateau within `NEAR` of `nats`, or where between them it lies."""
    for name, level in PLATEAUS.items():
        if abs(nats - level) <= NEAR:
            return name
    if nats > PLATEAUS["nothing"]:
        return "above all"
    return (
        "nothing … t1" if nats > PLATEAUS["t1"] else "t1 … both" if nats > PLATEAUS["both"] else "below both"
    )


def expected(way: str, h: int, t2: int, t1: int = 4) -> str:
    """The plateau that the reach of the gradient, and for a carried state the relay, allows."""
    first, second = t1 + 1, t2 + 1
    if way == "carried":
        second = max(first, t2 - t1)
    return "nothing" if h < first else "t1" if h < second else "both"


def plot(rows: list[dict], path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, level in PLATEAUS.items():
        axes.axhline(level, color="k", lw=0.7, ls=":")
        axes.text(16.6, level + 0.003, f"knows {name}", fontsize=8, ha="right")
    for i, (way, t2) in enumerate(dict.fromkeys((row["way"], row["t2"]) for row in rows)):
        mine = [row for row in rows if (row["way"], row["t2"]) == (way, t2)]
        hs, mean = [row["h"] for row in mine], [np.mean(row["nats"]) for row in mine]
        axes.plot(hs, mean, "o-", ms=3, color=f"C{i}", label=f"{way}, t1 = 4, t2 = {t2}")
        for row in mine:
            axes.plot([row["h"]] * len(row["nats"]), row["nats"], "_", color=f"C{i}")
    axes.set(xlabel="window h (segments)", ylabel="nats on new streams", ylim=(0.44, 0.68))
    axes.legend(fontsize=8, loc=(0.6, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=85)
    print(f"plot: {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few windows; write to runs/")
    quick = parser.parse_args().quick

    formula = by_formula()
    paired.show(
        "plateaus, nats",
        ["knows", "formula", "notes"],
        [[name, f"{formula[name]:.4f}", PLATEAUS.get(name, "")] for name in formula],
    )
    assert all(abs(formula[name] - level) < 1e-4 for name, level in PLATEAUS.items())

    steps, seeds = (2000, 1) if quick else (12_000, 3)
    plan = [
        ("carried", 8, (1, 4, 5, 9) if quick else (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)),
        ("carried", 13, (4, 5, 9) if quick else (4, 5, 6, 7, 8, 9, 10, 13, 14)),
        ("chunked", 8, (4, 9) if quick else (4, 5, 8, 9, 16)),
        ("readout", 8, (1,)),
        ("fresh", 8, (4, 5, 8, 9) if quick else (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)),
    ]
    rows = []
    for way, t2, windows in plan:
        for h in windows:
            started = time.process_time()
            nats = [train(way, h, t2, seed, steps) for seed in range(seeds)]
            rows.append(
                {
                    "way": way,
                    "t2": t2,
                    "h": h,
                    "nats": [round(x, 4) for x in nats],
                    "plateaus": [plateau(x) for x in nats],
                    "expected": expected(way, h, t2) if way in ("carried", "fresh") else "",
                    "seconds": round(time.process_time() - started, 1),
                }
            )
            print(f"  {way} t2={t2} h={h}: {rows[-1]['nats']} {rows[-1]['plateaus']}", flush=True)
    paired.show(
        "t1 = 4: which window reaches which plateau (notes, t2 = 8: below 5 none, 5 … 8 t1, above 8 both)",
        ["way", "t2", "h", "nats, each seed", "mean", "plateau", "expected"],
        [
            [
                row["way"],
                row["t2"],
                row["h"],
                " ".join(f"{x:.4f}" for x in row["nats"]),
                f"{np.mean(row['nats']):.4f}",
                ", ".join(dict.fromkeys(row["plateaus"])),
                row["expected"],
            ]
            for row in rows
        ],
    )
    results = {
        "t1": 4,
        "plateaus": {name: round(level, 4) for name, level in formula.items()},
        "near": NEAR,
        "model": f"tanh RNN, {UNITS} units",
        "optimizer": f"Adam, {RATE} down a half cosine, norm clipped to {CLIP}",
        "streams": STREAMS,
        "steps": steps,
        "rows": rows,
    }
    plot(rows, paired.figure_of("add_task", quick))
    paired.write("add_task", results, quick)


if __name__ == "__main__":
    main()
