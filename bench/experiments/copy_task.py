"""The copy task of Aicher, Foti and Fox (UAI 2019), table C.1: perplexity by truncation length.

A stream of blocks of 20 steps. Input: a marker, nine symbols out of four, ten blanks; target: ten blanks,
then marker and symbols again. What a target copies came in 10 steps before. With BPTT(2K - 1; K) the losses
see K - 1 to 2K - 2 steps back: from K = 6 on the newest of them sees it, from K = 11 on all do. One segment is one
time step; every K steps the window of 2K - 1 is swept with the losses of the last K.

What the paper leaves open is taken from the authors' programs (https://github.com/aicherc/adaptive_tbptt):
weights uniform in ±sqrt(3 / longest side), biases 0; the gradient is of the mean of K losses, clipped to the
norm 1 / K (that of their sum to 1), and the learning rate sqrt(K); every pass starts from a state of zeros;
parameters are those of the best validation perplexity; perplexity is exp(mean cross-entropy) over all steps.
Their cells add two biases which get the same gradient; --biases=2 counts it twice, --biases=1 is LSTMCell as it is.

Row "adaptive=0.9" is `tg.Adaptive(0.9)`, which estimates K after every 4,500 steps of the running stream, from 16 probes
over its last 100 steps. Row "probed=0.9" estimates it as the authors do, after every pass, from a piece at a random
place for each stream, by today's weights.

    --stream=clean      every stream of the batch starts at a random phase, and is blocks from there on
    --stream=published  the law of the data behind the paper's table. There all streams shift by up to 19 steps
                        each time one more is drawn, and what a shift opens at the end is filled with the same
                        few steps, so that a good part of it is blocks broken off at a random place

Run: python bench/experiments/copy_task.py [--rows 5 10 adaptive=0.5] [--seeds 0 1 2] [--quick]
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import paired  # noqa: I001  (pins threads before NumPy is imported)

import numpy as np

import tapegrad as tg

BLANK, MARKER, SYMBOLS = 0, 1, 6  # symbols 2 … 5 carry the message
BATCH, HIDDEN = 64, 50
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1.0, 1e-5, 1.0
PAPER = {  # test perplexity, and its standard deviation where it is at hand
    "5": (1.646, 0.012),
    "10": (1.036, None),
    "adaptive=0.9": (1.022, 0.006),
    "probed=0.9": (1.022, 0.006),
    "adaptive=0.5": (1.027, None),
    "probed=0.5": (1.027, None),
    "adaptive=0.1": (1.030, None),
}
FIRST_K, WARM, LAGS = 15, 20, 100
PROBES = 16  # averaged for an estimate
QUICK_PASSES = 30
RESULTS = paired.RESULTS / "copy_task.json"
FIGURE = paired.RESULTS.parent.parent / "docs" / "figures" / "copy_task.png"


Pair = tuple[np.ndarray, np.ndarray]


# -- data ----------------------------------------------------------------------------------------------


def blocks(rng: np.random.Generator, steps: int, length: int) -> Pair:
    """Inputs and targets of one stream from a block's beginning. Shapes (steps,) each."""
    count = -(-steps // (2 * length))
    messages = rng.integers(2, SYMBOLS, (count, length))
    messages[:, 0] = MARKER
    blank = np.full_like(messages, BLANK)
    x, y = np.hstack([messages, blank]).ravel(), np.hstack([blank, messages]).ravel()
    return x[:steps], y[:steps]


def clean(rng: np.random.Generator, steps: int, length: int) -> Pair:
    """Every stream starts at a random phase. Shapes (steps, BATCH)."""
    streams = []
    for phase in rng.integers(0, 2 * length, BATCH):
        x, y = blocks(rng, steps + phase, length)
        streams.append((x[phase:], y[phase:]))
    x, y = np.array(streams).transpose(1, 2, 0)
    return x, y


def published(rng: np.random.Generator, steps: int, length: int) -> Pair:
    """Whenever one more stream is drawn, all so far shift; the end refills from the same few steps beyond it."""
    drawn = [blocks(rng, steps + 2 * length, length) for _ in range(BATCH)]
    shifts = rng.integers(0, 2 * length, BATCH)
    streams = []
    for b, pair in enumerate(drawn):
        refilled = (np.concatenate([s[:steps], *(s[steps : steps + n] for n in shifts[b:])]) for s in pair)
        streams.append([sequence[-steps:] for sequence in refilled])
    x, y = np.array(streams).transpose(1, 2, 0)
    return x, y


STREAMS = {"clean": clean, "published": published}


# -- model ---------------------------------------------------------------------------------------------


class CopyModel(tg.nn.Module):
    """One-hot symbols → affine → two LSTM cells → affine; starts as the authors' does."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.encode = tg.nn.Linear(SYMBOLS, HIDDEN)
        self.lower, self.upper = tg.nn.LSTMCell(HIDDEN, HIDDEN), tg.nn.LSTMCell(HIDDEN, HIDDEN)
        self.decode = tg.nn.Linear(HIDDEN, SYMBOLS)
        for p in self.parameters():
            bound = math.sqrt(3 / max(p.shape)) if p.ndim > 1 else 0.0
            p.value = rng.uniform(-bound, bound, p.shape).astype(np.float32)

    def copies(self, parameter: tg.Parameter, biases: int) -> int:
        """How many vectors of theirs a parameter stands for: their cells add two biases, each with its own step."""
        return biases if parameter is self.lower.b or parameter is self.upper.b else 1

    def initial_state(self):
        return self.lower.initial_state(BATCH), self.upper.initial_state(BATCH)

    def forward(self, x, state):
        lower, upper = state
        h, lower = self.lower(self.encode(x), lower)
        h, upper = self.upper(h, upper)
        return self.decode(h), (lower, upper)


def perplexity(model: CopyModel, inputs: np.ndarray, targets: np.ndarray) -> float:
    """exp(mean cross-entropy) over a stream, from a state of zeros."""
    state, total = model.initial_state(), 0.0
    for x, y in zip(inputs, targets, strict=True):
        logits, state = model(x, state)
        total += float(tg.softmax_cross_entropy(logits, y))
    return math.exp(total / len(targets))


def uninformed(targets: np.ndarray) -> float:
    """The perplexity of knowing where in its block a stream is, but not the symbols. Paper: 1.866 = exp(9/20 ln 4)."""
    return math.exp(math.log(4) * float(np.mean(targets > MARKER)))


# -- training ------------------------------------------------------------------------------------------


def schedule_of(row: str) -> tg.core.schedule.Schedule:
    """Row "adaptive" lets the schedule probe the running stream, about as often as the authors did."""
    if row.startswith("adaptive="):
        return tg.Adaptive(delta_of(row), shortest=2, longest=LAGS, start=FIRST_K, every=4500, probes=PROBES)
    k = FIRST_K if row.startswith("probed=") else int(row)
    return tg.Sliding(2 * k - 1, stride=k)


def delta_of(row: str) -> float:
    return float(row.partition("=")[2])


def probed(
    delta: float, model: CopyModel, inputs: np.ndarray, targets: np.ndarray, rng: np.random.Generator
) -> int:
    """K as the authors estimate it: from the last loss of a piece of the data, another for each stream."""
    steps = rng.integers(0, len(inputs) - WARM - LAGS, BATCH) + np.arange(WARM + LAGS)[:, None]
    tape = tg.CapacitorTape(tg.Adaptive(delta, shortest=2, longest=LAGS, start=LAGS, every=LAGS, probes=1))
    state = model.initial_state()
    for x, y in zip(inputs[steps, np.arange(BATCH)], targets[steps, np.arange(BATCH)], strict=True):
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, y)
    tape.backward(loss)
    return tape.schedule.K


def passes(row: str, stream: str, seed: int, biases: int, size: dict[str, int], lr: float) -> Iterator[dict]:
    """Train, and yield the run so far after every pass."""
    data = np.random.default_rng(20190705)  # one data set for all rows and seeds, as in the paper
    one_hot = np.eye(SYMBOLS, dtype=np.float32)
    (train, train_y), (valid, valid_y), (test, test_y) = (
        (one_hot[x], y)
        for x, y in (STREAMS[stream](data, size[n], size["length"]) for n in ("train", "valid", "test"))
    )
    rng = np.random.default_rng(seed)
    model = CopyModel(rng)
    params, grads = model.parameters(flat=True)
    copies = np.concatenate(
        [np.full(p.size, model.copies(p, biases), np.float32) for p in model.parameters()]
    )
    tape = tg.CapacitorTape(schedule_of(row))
    run = {
        "row": row,
        "stream": stream,
        "seed": seed,
        "biases": biases,
        "lr": lr,
        "uninformed": round(uninformed(test_y), 4),
    }
    run |= {"validation": [], "K": []}
    while len(run["validation"]) < size["passes"]:
        state, counts = model.initial_state(), []
        tape.reset()
        for t in range(len(train)):
            with tape:
                logits, state = model(train[t], state)
                loss = tg.softmax_cross_entropy(logits, train_y[t])
            if sweep := tape.backward(loss):
                counts.append(sweep.losses)
                step(params, grads, copies, sweep.losses, lr * math.sqrt(sweep.losses))
        run["K"].append(round(float(np.mean(counts)), 1))
        run["validation"].append(round(perplexity(model, valid, valid_y), 4))
        if run["validation"][-1] == min(run["validation"]):
            run["test"] = round(perplexity(model, test, test_y), 4)
            run["best_pass"] = len(run["validation"])
        yield run
        if row.startswith("probed="):
            k = probed(delta_of(row), model, train, train_y, rng)
            grads[:] = 0  # the probe's
            tape = tg.CapacitorTape(tg.Sliding(2 * k - 1, stride=k))


def step(params, grads: np.ndarray, copies: np.ndarray, k: int, lr: float) -> None:
    """One step of SGD. `grads` is the gradient of the sum of k losses; the step is along that of their mean."""
    along = grads * copies
    norm = math.sqrt(float(grads @ along))
    if not math.isfinite(norm):
        raise FloatingPointError("the gradient is not finite")
    rate = lr / k * min(1.0, CLIP / max(norm, 1e-12))
    params.value = params.value * np.float32(1 - lr * WEIGHT_DECAY) - np.float32(rate) * along
    grads[:] = 0


# -- results -------------------------------------------------------------------------------------------


def keep(run: dict, size: dict[str, int]) -> None:
    """Put `run` into the results file, which another process may be writing too."""
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = [r for r in kept() if identity(r) != identity(run)]
        runs = sorted(
            [*runs, run],
            key=lambda r: (r["stream"] != "published", r["biases"], len(r["row"]), *identity(r)),
        )
        command = "python bench/experiments/copy_task.py --rows 5 10 adaptive=0.9 adaptive=0.5 probed=0.9"
        head = json.dumps({**paired.environment(), "command": command, "size": size})
        partial = RESULTS.with_suffix(".partial")
        lines = ",\n  ".join(json.dumps(r) for r in runs)
        partial.write_text(f'{head[:-1]},\n "results": [\n  {lines}\n ]}}\n')
        partial.replace(RESULTS)
    RESULTS.with_suffix(".lock").unlink(missing_ok=True)


def kept() -> list[dict]:
    return json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else []


def identity(run: dict) -> tuple:
    return run["stream"], run["biases"], run["row"], run["seed"], run["lr"]


def report(runs: list[dict], lr: float = LEARNING_RATE) -> None:
    """The table, beside the paper's figures: a line for each law of the stream and row."""
    lines = []
    for stream, biases in itertools.product(("published", "clean"), (1, 2)):
        for row, (figure, sd) in PAPER.items():
            found = [r for r in runs if identity(r) == (stream, biases, row, r["seed"], lr)]
            if not found:
                continue
            tests = [r["test"] for r in found]
            mean = float(np.mean(tests))
            late = [k for r in found for k in r["K"][len(r["K"]) // 2 :]]
            line = {
                "stream": stream,
                "uninformed": found[0]["uninformed"],
                "biases": biases,
                "row": label(row),
                "seeds": len(tests),
                "passes": min(len(r["validation"]) for r in found),
                "test": f"{mean:.4f}",
                "sd": f"{np.std(tests, ddof=1):.4f}" if len(tests) > 1 else "-",
                "paper": figure,
                "paper's sd": sd or "-",
                "sd away": f"{abs(mean - figure) / sd:.1f}" if sd else "-",
                "K, second half": f"{min(late):g} … {max(late):g}",
            }
            lines.append(line)
    if lines:
        paired.show("copy task, test perplexity", list(lines[0]), [list(line.values()) for line in lines])
    drawn = [uninformed(published(np.random.default_rng(i), 1000, 10)[1]) for i in range(100)]
    print(
        f"\nOf 100 published test streams the uninformed perplexity is {np.mean(drawn):.3f} "
        f"(sd {np.std(drawn):.3f}); of a clean one 1.866. The paper's figures are of one draw."
    )


def label(row: str) -> str:
    kind, _, delta = row.partition("=")
    return {"adaptive": f"delta = {delta}", "probed": f"delta = {delta}, probed apart"}.get(
        kind, f"K = {row}"
    )


def plot(runs: list[dict]) -> None:
    """Validation perplexity by pass, a line for each run, and the paper's figures; below it, K."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [r for r in runs if (r["stream"], r["lr"]) == ("published", LEARNING_RATE)]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(6.4, 4.8), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    colors = ("C3", "C0", "C2", "C1", "C4", "C5", "C6")
    for color, (row, (figure_there, _)) in zip(colors, PAPER.items(), strict=True):
        found = [r for r in runs if r["row"] == row]
        for i, run in enumerate(found):
            by_pass = np.arange(1, len(run["validation"]) + 1)
            style = {"color": color, "lw": 0.9, "ls": "-" if run["biases"] == 1 else "--"}
            top.plot(by_pass, run["validation"], label=None if i else label(row), **style)
            bottom.plot(by_pass, run["K"], **style)
        if found:
            top.axhline(figure_there, color=color, ls=":", lw=1)
    top.set(
        ylabel="validation perplexity",
        title="Copy task (dotted: the paper's test figures; dashed: two biases)",
    )
    top.legend(frameon=False)
    bottom.set(
        xlabel="pass over the training stream",
        ylabel="K",
        yscale="log",
        yticks=(2, 5, 10, 20),
        yticklabels=(2, 5, 10, 20),
    )
    bottom.minorticks_off()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=72)
    print(f"written: {FIGURE.relative_to(FIGURE.parent.parent.parent)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows",
        nargs="*",
        default=["5", "10", "adaptive=0.9", "adaptive=0.5"],
        help="K, adaptive=DELTA or probed=DELTA; none: report only",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the initial weights")
    parser.add_argument("--stream", choices=STREAMS, default="published")
    parser.add_argument("--biases", type=int, choices=(1, 2), default=1, help="of a cell, in steps")
    parser.add_argument("--passes", type=int, default=210)
    parser.add_argument("--lr", type=float, default=LEARNING_RATE)
    parser.add_argument(
        "--quick", action="store_true", help="messages of 4, rows 2, 4 and adaptive=0.5; no file"
    )
    options = parser.parse_args()
    size = {"length": 10, "train": 4000, "valid": 1000, "test": 1000, "passes": options.passes}
    if options.quick:
        quick(options)
        return
    for seed in options.seeds:
        for row in options.rows:
            for run in passes(row, options.stream, seed, options.biases, size, options.lr):
                n, validation, k = len(run["validation"]), run["validation"][-1], run["K"][-1]
                print(
                    f"{label(row)}, seed {seed}, pass {n}: K {k}, validation {validation}, test {run['test']}"
                )
                if n % 5 == 0 or n == size["passes"]:
                    keep(run, size)
    report(kept(), options.lr)
    plot(kept())


def quick(options: argparse.Namespace) -> None:
    """Messages of 4: K = 2 sees 2 or 3 steps back, K = 4 sees 4 to 7."""
    size = {"length": 4, "train": 1000, "valid": 200, "test": 200, "passes": QUICK_PASSES}
    lines = []
    for row in ("2", "4", "adaptive=0.5"):
        *_, run = passes(row, "clean", options.seeds[0], options.biases, size, options.lr)
        lines.append([label(row), run["test"], run["best_pass"], run["K"][-1]])
    title = f"messages of 4, {size['passes']} passes: test perplexity (uninformed: {run['uninformed']})"
    paired.show(title, ["row", "test", "best pass", "K"], lines)


if __name__ == "__main__":
    main()
