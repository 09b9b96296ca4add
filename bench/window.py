"""A window that slides over a stream: forward one step, backward through the last K, an SGD step. How long?

    python bench/window.py
    python bench/window.py --quick                       few rounds, written to runs/
    python bench/window.py --only "lstm, batch 1, hidden 64"
    TAPEGRAD_KERNELS=numpy python bench/window.py        without Numba, to window_numpy.json

Every peer runs at its best: of its variants the quickest is found first, and that one takes turns with the
others. Which weights the sweep reads is part of the question, so each contender names its policy: `replay`
computes the window again with today's weights, `current` sweeps what was computed with today's weights,
`recorded` with those of then. With a learning rate of 0 these are the same, and there all gradients
must agree; with the one that is used, the parameters of those that name the same policy must. The left edge
of tapegrad's replay is the state that the user's loop passed through, that of the peers the one of the last
re-run: they agree at 0, and are compared apart. For tinygrad set CC to a clang, if `clang` is not on the path.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np
from peers.work import Contender, Work, distance

WORKS = [
    Work("lstm", 1, 64, 20),
    Work("lstm", 1, 128, 20),
    Work("lstm", 16, 256, 20),
    Work("lstm", 32, 512, 35),
    Work("gru", 1, 64, 20),
    Work("lstm2", 1, 64, 20),
]
POLICIES = ["current", "recorded", "replay"]
# What a CapacitorTape is given for its programs; only what it knows is run.
COMPILE: dict[str, dict[str, Any]] = {
    "": {},
    ", NumPy programs": {"compile": "numpy"},
    ", Numba programs": {"compile": "numba"},
}
AT_LEAST = 0.03  # seconds that a contender's turn takes
AGREE = 2e-3  # float32, and a gradient that is read from a difference of parameters

Variants = dict[str, Callable[[], Contender]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="three rounds, written to runs/")
    parser.add_argument("--only", default="", help="works whose title holds this")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    results = {}
    for work in WORKS:
        if options.only in work.title:
            results[work.title] = measured(work, rounds, not options.no_compile)
            show(work.title, results[work.title])
    numpy_only = os.environ.get("TAPEGRAD_KERNELS") == "numpy"
    quick = options.quick or bool(options.only)
    paired.write("window_numpy" if numpy_only else "window", results, quick)


# -- who takes part --------------------------------------------------------------------------------


def ours(work: Work) -> Variants:
    """tapegrad: built-in and plain cells, the policies, and the ways to compile."""
    from peers import tapegrad_loops as tl

    variants: Variants = {}
    cells = {"plain ops": tl.plain_cell}
    if work.kind == "lstm":
        cells = {"built-in": tl.built_in_cell, **cells}
    for cell, make in cells.items():
        for policy in POLICIES:
            for how, setting in COMPILE.items():
                if tl.takes(**setting) and not (setting and policy == "replay"):
                    variants[f"tapegrad {cell}, {policy}{how}"] = lambda make=make, policy=policy, s=setting: (
                        tl.Window(work, make(work), weights=policy, **s)
                    )
    return variants


def peers(work: Work, with_compile: bool) -> dict[str, Variants]:
    """Of each peer that is installed, the ways to do it; `by hand` is NumPy's."""
    found: dict[str, Variants] = {}
    small = work.batch * work.hidden <= 64
    if paired.installed("torch"):
        from peers import pytorch

        found["PyTorch"] = {
            "nn.LSTM/GRU and optim.SGD, re-run": lambda: pytorch.RerunModule(work),
            "torch.lstm/gru and _foreach_add_, re-run": lambda: pytorch.RerunLayer(work),
            "lstm_cell/gru_cell loop, re-run": lambda: pytorch.RerunCells(work),
        }
        if with_compile:
            found["PyTorch"]["torch.compile of the step, re-run"] = lambda: pytorch.RerunCompiled(work)
        # A row of its own: it is the only one in PyTorch that does not compute the window again.
        found["PyTorch, forum's retained graphs"] = {"repaired": lambda: pytorch.Retained(work)}
    if paired.installed("jax"):
        from peers import jax_loops

        found["JAX"] = {
            f"jitted scan, unroll {unroll}{', inputs hoisted' if hoisted else ''}": (
                lambda unroll=unroll, hoisted=hoisted: jax_loops.Scan(work, unroll, hoisted)
            )
            for unroll, hoisted in [(1, False), (1, True), (5, True), (work.window - 1, True)]
        }
    if work.kind == "lstm":
        from peers import by_hand

        found["NumPy by hand"] = {"": lambda: by_hand.ByHand(work)}
    if work.kind == "lstm" and small:
        from peers import small as small_peers

        if paired.installed("autograd"):
            found["HIPS autograd"] = {"": lambda: small_peers.Autograd(work)}
        if paired.installed("mygrad"):
            found["MyGrad"] = {"": lambda: small_peers.MyGrad(work)}
        if paired.installed("tinygrad") and small_peers.tinygrad_can_run():
            found["tinygrad"] = {"TinyJit": lambda: small_peers.Tinygrad(work)}
    return found


# -- measuring -------------------------------------------------------------------------------------


def measured(work: Work, rounds: int, with_compile: bool) -> dict[str, Any]:
    """Milliseconds a step, ratios to every peer's best, errors."""
    variants_ms: dict[str, dict[str, float]] = {}
    makers: Variants = ours(work)
    families = dict.fromkeys(makers, "tapegrad")
    # The check comes first: a time is worth nothing unless the same thing was computed.
    check = GradientCheck(work)
    for name, make in makers.items():
        check.hand_in(name, make)
    for peer, variants in peers(work, with_compile).items():
        quickest, best = "", np.inf
        for variant, make in variants.items():
            contender = check.hand_in(f"{peer}: {variant}", make)
            ms = 1e3 * min(seconds_a_step(contender) for _ in range(3))
            variants_ms.setdefault(peer, {})[variant] = round(ms, 4)
            if ms < best:
                quickest, best, makers[peer], families[peer] = variant, ms, make, peer
        variants_ms[peer] = {f"best: {quickest}": round(best, 4), **variants_ms[peer]}
    check.all_agree()

    contenders, turns, weights, cores = {}, {}, {}, {}
    for name, make in makers.items():
        contender = make()
        contender.run(2)  # also compiles
        steps = max(1, round(AT_LEAST / seconds_a_step(contender)))
        contenders[name], turns[name] = (lambda c=contender, n=steps: c.run(n)), steps
        weights[name] = contender.weights
        cores[name] = cores_used(contenders[name])
    taken = paired.seconds_of(contenders, rounds)
    taken = {name: t / turns[name] for name, t in taken.items()}
    return {
        "rows": {
            name: {
                "weights": weights[name],
                "ms": round(float(np.median(t)) * 1e3, 4),
                "cores": cores[name],
                **(
                    {
                        "faster_than": {
                            peer: paired.ratio(taken, peer, name)
                            for peer in families
                            if families[peer] != "tapegrad"
                        }
                    }
                    if families[name] == "tapegrad"
                    else {}
                ),
            }
            for name, t in taken.items()
        },
        "variants_ms": variants_ms,
        "gradients": check.report(),
    }


def seconds_a_step(contender: Contender) -> float:
    """Of a run that is long enough to be timed."""
    steps = 1
    while True:
        started = time.perf_counter()
        contender.run(steps)
        taken = time.perf_counter() - started
        if taken > AT_LEAST / 3:
            return taken / steps
        steps *= 2


def cores_used(run: Callable[[], object]) -> float:
    """Processor seconds a second: above the threads that were promised, the comparison is unfair."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return round((time.process_time() - processor) / (time.perf_counter() - wall), 2)


class GradientCheck:
    """Every contender's gradient at learning rate 0, and where it has moved its parameters at the one that is used."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.at_rest: dict[str, np.ndarray] = {}
        self.moved: dict[str, np.ndarray] = {}
        self.weights: dict[str, str] = {}

    def hand_in(self, name: str, make: Callable[[], Contender]) -> Contender:
        """`make` it, run it, and note; returns a contender in its stride."""
        contender = make()
        contender.lr = 0.0
        contender.run(self.work.window + 3)
        self.at_rest[name] = contender.gradient()
        contender = make()
        start = contender.vector()
        contender.run(self.work.window + 3)
        self.moved[name] = contender.vector() - start
        edge = "" if "tapegrad" in name or contender.weights != "replay" else ", edge of the last re-run"
        self.weights[name] = contender.weights + edge
        return contender

    def all_agree(self) -> None:
        """Raise AssertionError that names whoever computes something else."""
        first = next(iter(self.at_rest))
        for name, gradient in self.at_rest.items():
            error = distance(gradient, self.at_rest[first])
            assert error < AGREE, f"at learning rate 0, {name} is {error:.2g} away from {first}"
        for name, error in self.within_policy().items():
            assert error < AGREE, f"{name} has moved elsewhere than others with its policy: {error:.2g}"

    def within_policy(self) -> dict[str, float]:
        """How far each has moved its parameters from where the first with its policy has."""
        firsts = {self.weights[name]: name for name in reversed(self.weights)}
        return {name: distance(moved, self.moved[firsts[self.weights[name]]])
                for name, moved in self.moved.items()}  # fmt: skip

    def report(self) -> dict[str, Any]:
        """For the results."""
        from peers.tapegrad_loops import errors_against_recorded

        first = next(iter(self.at_rest))
        steps = 20 if self.work.hidden < 512 else 3
        return {
            "learning_rate": self.work.lr,
            "policies": self.weights,
            "largest_difference_at_learning_rate_0": rounded(
                max(distance(g, self.at_rest[first]) for g in self.at_rest.values())
            ),
            "largest_difference_within_a_policy": rounded(max(self.within_policy().values())),
            "error_against_recorded": errors_against_recorded(self.work, steps),
        }


def rounded(number: float) -> float:
    return float(f"{number:.3g}")


# -- showing ---------------------------------------------------------------------------------------


def show(title: str, found: dict[str, Any]) -> None:
    """The table: every contender's time, and how many times faster ours are than each peer."""
    names = [name for name, row in found["rows"].items() if "faster_than" not in row]
    rows = []
    for name, row in found["rows"].items():
        ratios = [
            f"{r['median']:.2f} ({r['low']:.2f} … {r['high']:.2f})"
            for r in row.get("faster_than", {}).values()
        ]
        rows.append([name, row["weights"], f"{row['ms']:.3f}", row["cores"], *ratios])
    columns = ["", "weights", "ms a step", "cores", *(f"× {name}" for name in names)]
    paired.show(f"{title}: ms a step, and how many times faster than each peer", columns, rows)
    for peer, variants in found["variants_ms"].items():
        print(f"  {peer}: " + "; ".join(f"{variant or 'one way'} {ms}" for variant, ms in variants.items()))
    check = found["gradients"]
    print(
        f"  gradients: differ by {check['largest_difference_at_learning_rate_0']} at learning rate 0, "
        f"by {check['largest_difference_within_a_policy']} within a policy at {check['learning_rate']}; "
        f"from recorded: {check['error_against_recorded']}"
    )


if __name__ == "__main__":
    main()
