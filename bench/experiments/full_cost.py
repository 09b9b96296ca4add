"""What full backpropagation through time costs, up to 1,000 steps, beside windows over the same loop.

    python bench/experiments/full_cost.py

"For a sequence of 1000 characters the first symbol could potentially have significant influence on the symbol
at position 1000. This is not computationally feasible (it takes too long and requires too much memory). It
requires over 1000 matrix-vector products before we would arrive at that very elusive gradient": so the lecture
after Dive into Deep Learning, section 9.7. Here a tanh RNN of 128 units (batch 1, float32) reads T random
inputs; the loss is at the last step, and the sweep goes back to the first state. Measured: milliseconds of
the forward and of the sweep (processor time, fastest round: other work may share the machine), bytes that
the tape keeps, products with the recurrent matrix on the way back, counted on the tape, and the norm of the
adjoint that arrives at each lag. The recurrent matrix is orthogonal, so that adjoints keep their size; one
row repeats the longest with 0.9 of it, where float32 adjoints become denormal numbers on the way.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNITS, INPUTS, LONGEST = 128, 32, 1000


def milliseconds_of(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Processor time of each contender in its fastest round. They take turns, once warm."""
    fastest = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            started = time.process_time_ns()
            contender()
            fastest[name] = min(fastest[name], (time.process_time_ns() - started) / 1e6)
    return fastest


def swept(tape: tg.CapacitorTape, loss: tg.Variable) -> tg.Sweep:
    tape.backward(loss)
    return tape.sweep()


class Loop:
    """A tanh RNN whose recurrent matrix is `gain` times an orthogonal one."""

    def __init__(self, gain: float, dtype: type = np.float32) -> None:
        rng = np.random.default_rng(0)
        orthogonal = np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0]
        self.w_h = tg.Parameter((gain * orthogonal).astype(dtype))
        self.w_x = tg.Parameter((rng.standard_normal((INPUTS, UNITS)) / 2000).astype(dtype))
        self.xs = rng.standard_normal((LONGEST, 1, INPUTS)).astype(dtype)
        self.first = tg.Variable(np.zeros((1, UNITS), dtype))
        self.ct = (rng.standard_normal((1, UNITS)) / UNITS**0.5).astype(dtype)

    def step(self, t: int, h):
        return tg.tanh(self.xs[t] @ self.w_x + h @ self.w_h)

    def record(self, steps: int) -> tuple[tg.CapacitorTape, tg.Variable]:
        """All steps on one tape that forgets nothing, and the loss at the end."""
        tape, h = tg.CapacitorTape(tg.Full()), self.first
        for t in range(steps - 1):
            with tape:
                h = self.step(t, h)
        with tape:
            loss = tg.sum(self.step(steps - 1, h) * self.ct)
        return tape, loss

    def online(self, schedule: tg.Schedule, steps: int) -> Iterator[tg.CapacitorTape]:
        """A loss at every step under `schedule`. Yields the tape after each segment, before a sweep."""
        tape, h = tg.CapacitorTape(schedule), self.first
        for t in range(steps):
            with tape:
                h = self.step(t, h)
                loss = tg.sum(h * self.ct)
            yield tape
            tape.backward(loss)
        tape.sweep()


def most_kept(tapes: Iterator[tg.CapacitorTape], every: int = 10) -> int:
    """The most bytes that a tape kept, looked at in every 10th step."""
    return max(tape.nbytes for t, tape in enumerate(tapes, 1) if t % every == 0)


def products(tape: tg.CapacitorTape, loss: tg.Variable, weight: tg.Parameter) -> int:
    """How many times the sweep multiplies an adjoint by the recurrent matrix, counted while it walks."""
    return sum(
        step.name == "matmul"
        and "b" in step.residuals
        and np.shares_memory(step.residuals["b"], weight.value)
        for step in tape.walk(loss)
    )


def plot(results: dict, path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    rows = results["full"]
    left.plot([r["T"] for r in rows], [r["sweep_ms"] for r in rows], "o-", label="sweep, ms")
    left.plot([r["T"] for r in rows], [r["forward_ms"] for r in rows], "s-", label="forward, ms")
    left.plot([r["T"] for r in rows], [r["mebibytes"] for r in rows], "^-", label="kept by the tape, MiB")
    left.set(xlabel="T", title="full backpropagation through time")
    left.legend()
    for gain, norms in results["norm_by_lag"].items():
        right.semilogy(results["lags"], norms, label=f"W = {gain} × orthogonal")
    right.set(xlabel="lag", ylabel="norm of the state's adjoint", title="what arrives (float64)")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(f"plot: {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds; write to runs/")
    quick = parser.parse_args().quick
    rounds, lengths = (3 if quick else 15), [10, 20, 50, 100, 200, 500, 1000]
    loop = Loop(1.0)

    recorded = {str(T): loop.record(T) for T in lengths}
    faint = Loop(0.9)
    recorded["faint"] = faint.record(LONGEST)
    forward = milliseconds_of({str(T): (lambda T=T: loop.record(T)) for T in lengths}, rounds)
    back = milliseconds_of({name: (lambda r=r: swept(*r)) for name, r in recorded.items()}, rounds)
    rows = []
    for T in lengths:
        tape, loss = recorded[str(T)]
        count, sweep, sweep_ms = products(tape, loss, loop.w_h), swept(tape, loss), back[str(T)]
        rows.append(
            {
                "T": T,
                "forward_ms": round(forward[str(T)], 3),
                "sweep_ms": round(sweep_ms, 3),
                "sweep_us_per_step": round(sweep_ms / T * 1e3, 2),
                "mebibytes": round(tape.nbytes / 2**20, 4),
                "products": count,
                "first_state": float(np.linalg.norm(sweep.gradients[loop.first])),
            }
        )
        assert (count, sweep.segments) == (T, T)
    paired.show(
        f"full backpropagation through time, one loss at the end ({UNITS} units, batch 1)",
        ["T", "forward ms", "sweep ms", "µs a step", "MiB kept", "products with W", "|∂L/∂h_0|"],
        [[*(row[column] for column in list(row)[:6]), f"{row['first_state']:.3g}"] for row in rows],
    )
    Ts, ms = np.array(lengths, float), np.array([r["sweep_ms"] for r in rows])
    slope = float(np.sum(Ts * ms) / np.sum(Ts * Ts))  # a line through 0
    worst = float(np.max(np.abs(ms[Ts >= 100] / (slope * Ts[Ts >= 100]) - 1)))
    exponent = float(np.polyfit(np.log(Ts[Ts >= 50]), np.log(ms[Ts >= 50]), 1)[0])
    bytes_per_step, constant = np.polyfit(Ts, [r["mebibytes"] * 2**20 for r in rows], 1)
    print(f"\n  kept: {bytes_per_step:.0f} bytes × T, and {constant / 1024:.0f} KiB of weights")
    print(
        f"  sweep = {slope * 1e3:.2f} µs × T; from T = 100 on, at most {worst:.0%} off that line; exponent from T = 50 on {exponent:.3f}"
    )

    denormal_ms = round(back["faint"], 3)
    print(
        f"  with 0.9 of the matrix, T = {LONGEST}: {denormal_ms} ms, for adjoints turn into denormal numbers"
    )

    schedules = {
        "Full()": tg.Full(),
        "Sliding(20)": tg.Sliding(20),
        "Sliding(20, stride=10)": tg.Sliding(20, stride=10),
        "Chunked(20)": tg.Chunked(20),
        "Sliding(100)": tg.Sliding(100),
    }
    online_rounds = 2 if quick else 5
    taken = milliseconds_of(
        {name: (lambda s=schedule: list(loop.online(s, LONGEST))) for name, schedule in schedules.items()},
        online_rounds,
    )
    online = [
        {
            "schedule": name,
            "us_per_step": round(taken[name] / LONGEST * 1e3, 1),
            "over_full": round(taken[name] / taken["Full()"], 3),
            "mebibytes": round(most_kept(loop.online(schedule, LONGEST)) / 2**20, 4),
        }
        for name, schedule in schedules.items()
    ]
    paired.show(
        f"a loss at every one of {LONGEST:,} steps, forward and sweeps together",
        ["schedule", "µs a step", "time over Full", "MiB kept at most"],
        [[r["schedule"], r["us_per_step"], r["over_full"], r["mebibytes"]] for r in online],
    )

    lags = [1, *range(10, LONGEST + 1, 10)]
    norms = {}
    for gain in (0.9, 1.0, 1.1):
        exact = Loop(gain, np.float64)
        sweep = swept(*exact.record(LONGEST))
        by_lag = [*sweep.joint_norms[:-1], float(np.linalg.norm(sweep.gradients[exact.first]))]
        norms[str(gain)] = [float(f"{by_lag[lag - 1]:.4g}") for lag in lags]
    at = (1, 10, 100, 300, 1000)
    paired.show(
        "norm of the state's adjoint by lag (float64)",
        ["W", *at],
        [[f"{g} × orthogonal", *(f"{n[lags.index(lag)]:.3g}" for lag in at)] for g, n in norms.items()],
    )
    results = {
        "units": UNITS,
        "full": rows,
        "line": {"us_per_step": round(slope * 1e3, 2), "worst_from_100": round(worst, 4)},
        "bytes_per_step": round(float(bytes_per_step), 1),
        "exponent": round(exponent, 4),
        "sweep_ms_with_denormals": denormal_ms,
        "online": online,
        "lags": lags,
        "norm_by_lag": norms,
    }
    plot(results, paired.figure_of("full_cost", quick))
    paired.write("full_cost", results, quick)


if __name__ == "__main__":
    main()
