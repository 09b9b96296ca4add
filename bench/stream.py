"""A stream that does not end: is a step as quick, and the memory as small, after a million of them?

    python bench/stream.py                       a million steps
    python bench/stream.py --steps 20000
    python bench/stream.py --cell rnn --weights current

Forward, backward through a window of 20 and an SGD step, for a tiny network, batch 1. Times go into a histogram of fixed
size, so that what grows is the library's. Memory is the process's resident set, from /proc/self/statm, after
the first tenth of the steps and at the end. Times are also given for each tenth, to see a drift.
"""

from __future__ import annotations

import argparse
import gc
import os
import pathlib
import sys
import time
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

CELLS = {"lstm": nn.LSTMCell, "rnn": nn.RNNCell}
TENTHS = 10


class Histogram:
    """Durations in nanoseconds, counted in bins that are 1 % wide; nothing is allocated by `add`."""

    PER_OCTAVE = 64

    def __init__(self) -> None:
        self.counts = np.full(self.PER_OCTAVE * 40, 0, np.int64)  # filled: zeros() leaves pages for later
        self.worst, self.total, self.number = 0, 0, 0

    def add(self, nanoseconds: int) -> None:
        octave = nanoseconds.bit_length() - 1
        part = (nanoseconds << 6 >> octave) - 64 if octave >= 0 else 0
        self.counts[self.PER_OCTAVE * max(octave, 0) + part] += 1
        self.worst = max(self.worst, nanoseconds)
        self.total += nanoseconds
        self.number += 1

    def quantile(self, q: float) -> float:
        """Microseconds: the upper border of the bin that holds it."""
        rank = np.searchsorted(np.cumsum(self.counts), q * self.number)
        octave, part = divmod(int(rank), self.PER_OCTAVE)
        return 2.0**octave * (1 + (part + 1) / self.PER_OCTAVE) / 1e3

    def summary(self) -> dict[str, float]:
        """Microseconds a step."""
        return {
            "median_us": round(self.quantile(0.5), 1),
            "p99_9_us": round(self.quantile(0.999), 1),
            "worst_us": round(self.worst / 1e3, 1),
            "mean_us": round(self.total / self.number / 1e3, 1),
        }


def resident_bytes() -> int:
    """Of this process. Where /proc is not, the largest it has ever been."""
    try:
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Times of all steps after the first tenth, of each tenth, and how much memory has grown."""
    rng = np.random.default_rng(0)
    cell = CELLS[options.cell](options.hidden, options.hidden, rng=rng)
    optimizer = optim.SGD(cell.parameters(), 0.01)
    tape = tg.CapacitorTape(options.window, weights=options.weights)
    xs = rng.standard_normal((997, 1, options.hidden)).astype(np.float32)
    targets = np.roll(xs, 3, axis=0) / 2
    for array in (xs, targets):
        array.flags.writeable = False
    state = cell.initial_state(1)
    whole, tenths = Histogram(), [Histogram() for _ in range(TENTHS)]
    resident = np.full(TENTHS, 0)
    done, clock = 0, time.perf_counter_ns
    gc.collect()
    for tenth in tenths:
        for k in range(done, done + options.steps // TENTHS):
            started = clock()
            with tape:
                out, state = cell(xs[k % 997], state)
                loss = tg.mean((out - targets[k % 997]) ** 2)
            if tape.backward(loss):
                optimizer.step()
                optimizer.zero_grad()
            taken = clock() - started
            tenth.add(taken)
            if done:  # the first tenth compiles, and grows what stays
                whole.add(taken)
        done += options.steps // TENTHS
        resident[tenths.index(tenth)] = resident_bytes()
    return {
        "steps": done,
        "cell": options.cell,
        "hidden": options.hidden,
        "window": options.window,
        "weights": options.weights,
        **whole.summary(),
        "tenths": [tenth.summary() for tenth in tenths],
        "resident_mb": [round(r / 1e6, 3) for r in resident.tolist()],
        "growth_mb": round(float(resident[-1] - resident[0]) / 1e6, 3),
        "tape_kb": round(tape.nbytes / 1e3, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=8)
    parser.add_argument("--cell", choices=sorted(CELLS), default="lstm")
    parser.add_argument("--weights", choices=["recorded", "current"], default="recorded")
    parser.add_argument("--quick", action="store_true", help="20,000 steps, written to runs/")
    options = parser.parse_args()
    if options.quick:
        options.steps = min(options.steps, 20_000)
    found = measured(options)
    columns = ["", "median µs", "99.9 %", "worst", "mean"]
    names = [f"tenth {k + 1}" for k in range(TENTHS)]
    rows = [[name, *tenth.values()] for name, tenth in zip(names, found["tenths"], strict=True)]
    rows.append(["without the first", *(found[key] for key in found["tenths"][0])])
    paired.show(
        f"{found['steps']:,} steps, {options.cell}, hidden {options.hidden}, {options.weights}", columns, rows
    )
    print(f"  resident memory, MB, after each tenth: {found['resident_mb']}; growth {found['growth_mb']} MB")
    paired.write("stream", found, options.quick or options.steps < 1_000_000)


if __name__ == "__main__":
    main()
