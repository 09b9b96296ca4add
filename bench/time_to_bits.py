"""How many seconds until the main example's model predicts English with 2.0 bits per character? Next to PyTorch.

    python bench/time_to_bits.py                 three seeds, two threads
    python bench/time_to_bits.py --seeds 1 --sweeps 600
    python bench/time_to_bits.py --quick         sees that all works, written to runs/

The model, text and settings of examples/03_char_lm.py: an LSTM of 128, 32 streams, window 32, a sweep and a step of
Adam after every 16 characters, each sweep with all 16 losses since the last one. The learning rate falls along a
cosine over a fixed number of sweeps, so that everybody takes the same steps. All start from the same
arrays and read in the same order; they take turns, some sweeps at a time, and only training is on the clock: the held-out
text is read by one evaluator for all, between the turns.

PyTorch has two ways. `re-run` computes the 16 characters before the newest 16 again, with today's weights, so that
the gradient reaches through 32 (`replay`). `graph kept` keeps the graph of the last 16 for one more sweep, and updates
the weights behind autograd's back (`current`): less to compute, and what PyTorch's check for
writes in place is there to prevent. Gradients are compared before the clock starts, at learning rate 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import statistics
import time
from typing import Any

os.environ.setdefault("BENCH_THREADS", "2")
import paired  # isort: skip (it reads BENCH_THREADS)
import numpy as np
from peers.work import distance

import tapegrad as tg
from tapegrad import optim

TARGET = 2.0
HIDDEN, STREAMS, STRIDE, LR, CLIP = 128, 32, 16, 1e-2, 1.0
NAMES = ["embedding.weight", "cell.w_x", "cell.w_h", "cell.b", "readout.weight", "readout.bias"]


def example() -> Any:
    """examples/03_char_lm.py as a module."""
    path = paired.ROOT / "examples" / "03_char_lm.py"
    spec = importlib.util.spec_from_file_location("char_lm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Task:
    """The text, divided and encoded, and the model's arrays for a seed."""

    def __init__(self, seed: int, characters: int) -> None:
        self.example = example()
        text = tg.data.english()
        cut = len(text) - len(text) // 10
        vocabulary = tg.data.Vocabulary(text[:cut])
        self.size = len(vocabulary)
        self.held_out = vocabulary.encode(text[cut - self.example.CONTEXT : cut + characters])
        self.seed = seed
        # Whole chunks of STRIDE alone: (chunks of an epoch, STRIDE, streams)
        steps = list(tg.data.streams(vocabulary.encode(text[:cut]), STREAMS))
        chunks = len(steps) // STRIDE
        self.xs, self.targets = (
            np.array([step[i] for step in steps[: chunks * STRIDE]]).reshape(chunks, STRIDE, STREAMS)
            for i in range(2)
        )

    def model(self) -> Any:
        """A fresh one, as the example draws it."""
        return self.example.CharacterModel(self.size, "lstm", HIDDEN, np.random.default_rng(self.seed))

    def bits(self, arrays: dict[str, np.ndarray]) -> float:
        """Held-out bits per character of a model with these parameters."""
        model = self.model()
        for name, p in zip(NAMES, named(model), strict=True):
            p.value = arrays[name]
        return self.example.evaluate(model, self.held_out, deadline=math.inf)[0]


def named(model: Any) -> list[Any]:
    """The parameters in the order of NAMES."""
    return [
        model.embedding.weight,
        model.cell.w_x,
        model.cell.w_h,
        model.cell.b,
        model.readout.weight,
        model.readout.bias,
    ]


class Learner:
    """Learns from one chunk after the other; `gradient` is that of the last sweep, before it was clipped."""

    weights = "replay"
    keeps_gradient = False

    def __init__(self, task: Task) -> None:
        self.task, self.taken = task, 0
        self.gradient = np.zeros(0)

    def learn(self, rates: list[float]) -> None:
        """A sweep and a step for every learning rate."""
        for rate in rates:
            k = self.taken % len(self.task.xs)
            if not k:
                self.begin_text()
            self.chunk(self.task.xs[k], self.task.targets[k], rate)
            self.taken += 1

    def begin_text(self) -> None:
        """A fresh state, and a window that holds nothing."""
        raise NotImplementedError

    def chunk(self, xs: np.ndarray, targets: np.ndarray, rate: float) -> None:
        """STRIDE steps, a sweep over the window, a step."""
        raise NotImplementedError

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters by name."""
        raise NotImplementedError


class Ours(Learner):
    """The example's loop."""

    def __init__(self, task: Task, weights: str) -> None:
        super().__init__(task)
        self.weights, self.model = weights, task.model()
        self.tape = tg.CapacitorTape(tg.Sliding(2 * STRIDE, stride=STRIDE), weights=weights)
        self.params, _ = self.model.parameters(flat=True)
        self.optimizer = optim.Adam(self.params, lr=LR)

    def begin_text(self) -> None:
        self.tape.reset()
        self.state = self.model.cell.initial_state(STREAMS)

    def chunk(self, xs: np.ndarray, targets: np.ndarray, rate: float) -> None:
        for x, target in zip(xs, targets, strict=True):
            with self.tape:
                logits, self.state = self.model(x, self.state)
                loss = tg.softmax_cross_entropy(logits, target)
            if self.tape.backward(loss):
                if self.keeps_gradient:
                    self.gradient = np.concatenate([p.grad.ravel() for p in named(self.model)])
                optim.clip_by_norm(self.params, CLIP * STRIDE)
                self.optimizer.lr = rate
                self.optimizer.step()
                self.optimizer.zero_grad()

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: p.value.copy() for name, p in zip(NAMES, named(self.model), strict=True)}


def torch_learners(task: Task) -> dict[str, Any]:
    """PyTorch's two ways."""
    import torch

    torch.set_num_threads(paired.THREADS)

    class Theirs(Learner):
        def __init__(self) -> None:
            super().__init__(task)
            model = task.model()
            # PyTorch's weights are (out, in); an embedding's table is not turned.
            self.leaves = [
                torch.tensor(p.value if "embedding" in name else np.ascontiguousarray(p.value.T))
                for name, p in zip(NAMES, named(model), strict=True)
            ]
            for leaf in self.leaves:
                leaf.requires_grad_()
            # Adam writes through aliases without a shared count of versions. One fused call is its quickest.
            self.aliases = [torch.nn.Parameter(leaf.data) for leaf in self.leaves]
            self.adam = torch.optim.Adam(self.aliases, lr=LR, fused=True)
            self.no_bias = torch.zeros(4 * HIDDEN)

        def begin_text(self) -> None:
            self.state = [torch.zeros(1, STREAMS, HIDDEN) for _ in range(2)]
            self.before: Any = None

        def forward(self, xs: Any, state: Any) -> Any:
            table, w_x, w_h, b, _, _ = self.leaves
            embedded = torch.nn.functional.embedding(xs, table)
            outs, h, c = torch.lstm(
                embedded, state, [w_x, w_h, b, self.no_bias], True, 1, 0.0, True, False, False
            )
            return outs, [h, c]

        def loss(self, outs: Any, targets: Any) -> Any:
            logits = torch.nn.functional.linear(outs.flatten(0, 1), *self.leaves[4:])
            return torch.nn.functional.cross_entropy(logits, targets.flatten()) * STRIDE

        def descend(self, rate: float) -> None:
            if self.keeps_gradient:
                self.gradient = np.concatenate(
                    [
                        (leaf.grad if i == 0 else leaf.grad.t()).numpy().ravel()
                        for i, leaf in enumerate(self.leaves)
                    ]
                )
            for alias, leaf in zip(self.aliases, self.leaves, strict=True):
                alias.grad, leaf.grad = leaf.grad, None
            torch.nn.utils.clip_grad_norm_(self.aliases, CLIP * STRIDE)
            self.adam.param_groups[0]["lr"] = rate
            self.adam.step()

        def arrays(self) -> dict[str, np.ndarray]:
            return {
                name: leaf.detach().numpy().copy() if "embedding" in name else leaf.detach().numpy().T.copy()
                for name, leaf in zip(NAMES, self.leaves, strict=True)
            }

    class Rerun(Theirs):
        """The chunk before the newest again; the state after it is the next left edge."""

        def chunk(self, xs: np.ndarray, targets: np.ndarray, rate: float) -> None:
            newest, wanted = torch.from_numpy(xs), torch.from_numpy(targets)
            state = self.state
            if self.before is not None:
                _, state = self.forward(self.before, state)
                self.state = [v.detach() for v in state]
            outs, _ = self.forward(newest, state)
            self.loss(outs, wanted).backward()
            self.before = newest
            self.descend(rate)

    class GraphKept(Theirs):
        """The newest chunk starts from a leaf, whose gradient then enters the graph of the chunk before."""

        weights = "current"

        def chunk(self, xs: np.ndarray, targets: np.ndarray, rate: float) -> None:
            entered = [v.detach().requires_grad_() for v in self.state]
            outs, left = self.forward(torch.from_numpy(xs), entered)
            self.loss(outs, torch.from_numpy(targets)).backward(retain_graph=True)
            if self.before is not None:
                torch.autograd.backward(self.before, [v.grad for v in entered])
            self.before = self.state = left
            self.descend(rate)

    return {"PyTorch, re-run": Rerun(), "PyTorch, graph kept": GraphKept()}


def learners(task: Task) -> dict[str, Any]:
    """Everybody, fresh."""
    found: dict[str, Any] = {
        f"tapegrad, {policy}": Ours(task, policy) for policy in ("recorded", "current", "replay")
    }
    if paired.installed("torch"):
        found |= torch_learners(task)
    return found


def check_gradients_agree(task: Task) -> float:
    """The largest difference at learning rate 0, after three sweeps, two of them with a full window."""
    gradients = {}
    for name, learner in learners(task).items():
        learner.keeps_gradient = True
        learner.learn([0.0] * 3)
        gradients[name] = learner.gradient
    first = next(iter(gradients.values()))
    errors = {name: distance(gradient, first) for name, gradient in gradients.items()}
    for name, error in errors.items():
        assert error < 1e-3, f"{name} computes another gradient: relative difference {error:.2g}"
    return max(errors.values())


def raced(task: Task, sweeps: int, turn: int, show: bool) -> dict[str, dict[str, Any]]:
    """Curves of (sweeps, seconds, held-out bits) of all, who take turns of `turn` sweeps."""
    contenders = learners(task)
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    curves: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    rates = [LR * (0.5 + 0.5 * math.cos(math.pi * t / sweeps)) for t in range(sweeps)]
    for first in range(0, sweeps, turn):
        at = first // turn
        for name in names[at % len(names) :] + names[: at % len(names)]:
            started = time.perf_counter()
            contenders[name].learn(rates[first : first + turn])
            seconds[name].append(time.perf_counter() - started)
        if at % 2 or first + turn >= sweeps:
            for name in names:
                bits = task.bits(contenders[name].arrays())
                curves[name].append((first + turn, sum(seconds[name]), bits))
        if show and at % 10 == 9:
            print(f"  {first + turn} sweeps: " + ", ".join(f"{n} {c[-1][2]:.3f}" for n, c in curves.items()))
    return {
        name: {
            "weights": contenders[name].weights,
            "seconds_to_target": crossing(curves[name]),
            "seconds": sum(seconds[name]),
            "turns": seconds[name],
            "bits": curves[name][-1][2],
            "curve": [(n, round(s, 2), round(b, 4)) for n, s, b in curves[name]],
        }
        for name in names
    }


def crossing(curve: list[tuple[int, float, float]]) -> float | None:
    """Seconds at which the bits reach TARGET, on a line between two evaluations; None if they never do."""
    for (_, s0, b0), (_, s1, b1) in itertools.pairwise(curve):
        if b1 <= TARGET:
            return s0 + (s1 - s0) * (b0 - TARGET) / (b0 - b1) if b0 > TARGET else s0
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sweeps", type=int, default=3000, help="over which the learning rate falls to 0")
    parser.add_argument("--quick", action="store_true", help="one seed, 40 sweeps, written to runs/")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.sweeps = 1, min(options.sweeps, 40)
    difference = check_gradients_agree(Task(0, 1000))
    runs = [
        raced(Task(seed, 500 if options.quick else 50_000), options.sweeps, 10 if options.quick else 50, True)
        for seed in range(options.seeds)
    ]
    results, rows = {}, []
    for name in runs[0]:
        mine = [run[name] for run in runs]
        to_target = [run["seconds_to_target"] for run in mine]
        # of the same sweeps, turn by turn: which way is quicker, whatever the bits
        turns = {peer: np.concatenate([run[peer]["turns"] for run in runs]) for peer in runs[0]}
        results[name] = {
            "weights": mine[0]["weights"],
            "seconds_to_target": to_target,
            "bits": [round(run["bits"], 4) for run in mine],
            "ms_a_sweep": round(float(np.median(turns[name])) / (10 if options.quick else 50) * 1e3, 3),
            "time_over": {peer: paired.ratio(turns, name, peer) for peer in turns if "PyTorch" in peer},
            "curves": [run["curve"] for run in mine],
        }
        reached = [s for s in to_target if s is not None]
        rows.append(
            [
                name,
                mine[0]["weights"],
                results[name]["ms_a_sweep"],
                *(r["median"] for r in results[name]["time_over"].values()),
                f"{statistics.median(reached):.1f}" if reached else "never",
                ", ".join(f"{run['bits']:.3f}" for run in mine),
            ]
        )
    over = [f"time / {peer}" for peer in next(iter(results.values()))["time_over"]]
    paired.show(
        f"{options.sweeps} sweeps, {options.seeds} seeds: seconds to {TARGET} bits, and bits at the end",
        ["", "weights", "ms a sweep", *over, f"s to {TARGET}", "bits at the end"],
        rows,
    )
    print(f"  gradients differ by {difference:.2g} at learning rate 0")
    settings = {
        "sweeps": options.sweeps,
        "seeds": options.seeds,
        "difference_at_learning_rate_0": difference,
    }
    paired.write("time_to_bits", {**settings, "learners": results}, options.quick)


if __name__ == "__main__":
    main()
