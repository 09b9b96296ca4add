"""Three answers to "which weights?": what recorded, current and replay cost, keep, and how far apart they are.

    python bench/weights.py
    python bench/weights.py --quick

Gradients are compared while learning goes on: one loop, recorded on three tapes at once, trained by the
gradient of `recorded`; the error is ‖g - g_recorded‖ / ‖g_recorded‖ of each sweep, at the learning rates
that are named. Times are of loops with one tape each.
"""

from __future__ import annotations

import argparse

import paired  # isort: skip (first: it pins the threads)
import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

POLICIES = ["recorded", "current", "replay"]
# name: (batch, hidden, window, stride, learning rates, of which the second is a usual one)
LOOPS = {
    "batch 1, hidden 64, window 20, stride 1, SGD": (1, 64, 20, 1, (0.001, 0.01, 0.1)),
    "batch 16, hidden 256, window 20, stride 1, SGD": (16, 256, 20, 1, (0.001, 0.01, 0.1)),
    "main job: batch 32, hidden 128, window 32, stride 16, Adam": (32, 128, 32, 16, (0.001, 0.01, 0.03)),
}


class Loop:
    """The main example's model on its text; SGD or Adam steps after every sweep."""

    def __init__(
        self, batch: int, hidden: int, window: int, stride: int, lr: float, policies: list[str]
    ) -> None:
        rng = np.random.default_rng(0)
        text = tg.data.english()
        codes = tg.data.Vocabulary(text).encode(text)
        self.stream = tg.data.streams(codes, batch)
        size = int(codes.max()) + 1
        self.embedding = nn.Embedding(size, hidden // 2, rng=rng)
        self.cell, self.readout = nn.LSTMCell(hidden // 2, hidden, rng=rng), nn.Linear(hidden, size, rng=rng)
        self.params = [p for m in (self.embedding, self.cell, self.readout) for p in m.parameters()]
        self.optimizer = optim.Adam(self.params, lr) if stride > 1 else optim.SGD(self.params, lr)
        self.tapes = [tg.CapacitorTape(tg.Sliding(window, stride=stride), weights=p) for p in policies]
        self.state = self.cell.initial_state(batch)
        self.limit = 1.0 * stride

    def step(self) -> list[tg.Sweep] | None:
        x, target = next(self.stream)
        for tape in self.tapes:
            tape.begin()
        out, self.state = self.cell(self.embedding(x), self.state)
        loss = tg.softmax_cross_entropy(self.readout(out), target)
        for tape in reversed(self.tapes):
            tape.stop()
        sweeps = [tape.backward(loss) for tape in self.tapes]
        if sweeps[0] is None:
            return None
        if len(sweeps) > 1:  # each has added to .grad: only the first one's counts
            for p in self.params:
                p.grad = sweeps[0].gradients[p]
        optim.clip_by_norm(self.params, self.limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sweeps

    def gradient(self, sweep: tg.Sweep) -> np.ndarray:
        return np.concatenate([sweep.gradients[p].ravel() for p in self.params])


def errors(loop: Loop, steps: int) -> dict[str, float]:
    """Median relative error of each policy's gradient against that of `recorded`, over the sweeps of the second half."""
    found: dict[str, list[float]] = {policy: [] for policy in POLICIES[1:]}
    for t in range(steps):
        sweeps = loop.step()
        if sweeps is None or t < steps // 2:
            continue
        exact = loop.gradient(sweeps[0])
        for policy, sweep in zip(POLICIES[1:], sweeps[1:], strict=True):
            found[policy].append(float(np.linalg.norm(loop.gradient(sweep) - exact) / np.linalg.norm(exact)))
    return {policy: float(f"{np.median(values):.3g}") for policy, values in found.items()}


def measured(
    batch: int, hidden: int, window: int, stride: int, rates: tuple, rounds: int, steps: int
) -> dict:
    """Bytes kept, time against `recorded`, and error of the gradient by learning rate, for each policy."""
    loops = {p: Loop(batch, hidden, window, stride, rates[1], [p]) for p in POLICIES}
    for loop in loops.values():
        for _ in range(2 * window):
            loop.step()
    nbytes = {policy: loop.tapes[0].nbytes for policy, loop in loops.items()}
    contenders = {p: lambda loop=loop: [loop.step() for _ in range(2 * stride)] for p, loop in loops.items()}
    taken = paired.seconds_of(contenders, rounds)
    steps = steps if stride > 1 else steps // 4
    return {
        "nbytes": nbytes,
        "time_to_recorded": {p: paired.ratio(taken, p, "recorded") for p in POLICIES},
        "gradient_error_by_learning_rate": {
            f"{rate:g}": errors(Loop(batch, hidden, window, stride, rate, POLICIES), steps) for rate in rates
        },
    }


def rows_of(name: str, found: dict) -> list[list[str]]:
    errors_by_rate = found["gradient_error_by_learning_rate"].items()
    return [
        [
            name if policy == "recorded" else "",
            policy,
            f"{found['nbytes'][policy] / 1e6:.2f}",
            f"{found['time_to_recorded'][policy]['median']:.2f}",
            *(f"{errors.get(policy, 0):.2g} at {rate}" for rate, errors in errors_by_rate),
        ]
        for policy in POLICIES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rounds and steps, nothing written")
    options = parser.parse_args()
    rounds, steps = (3, 64) if options.quick else (15, 640)
    results, rows = {}, []
    for name, loop in LOOPS.items():
        found = results[name] = measured(*loop, rounds, steps)
        rows += rows_of(name, found)
    columns = [
        "loop",
        "weights",
        "MB kept",
        "time / recorded",
        "error of the gradient",
        "at learning rates",
        "",
    ]
    paired.show(
        "which weights? memory of the tape, time of a step, median relative error of a gradient",
        columns,
        rows,
    )
    if not options.quick:
        paired.write("weights", results)


if __name__ == "__main__":
    main()
