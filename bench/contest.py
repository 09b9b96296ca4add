"""A contest: gradients are compared first, the best variant of each peer is found, and then all take turns.

Used by window.py and chunk.py. A time is worth nothing unless the same thing was computed, so a contender whose
gradients differ from the others' ends the contest with an error that names it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np
from peers.work import Contender, distance

AT_LEAST = 0.03  # seconds that a contender's turn takes
TRIALS = 5  # of every variant, before the quickest of each peer is chosen
AGREE = 2e-3  # float32, and a gradient that is read from a difference of parameters

Variants = dict[str, Callable[[], Contender]]


def held(ours: Variants, peers: Mapping[str, Variants], rounds: int, steps: int) -> dict[str, Any]:
    """Results as JSON: milliseconds of every row, ratios of ours to each peer's best, the gradients' differences.

    Gradients are compared after `steps` steps. Milliseconds are of one step.
    """
    makers, check = dict(ours), GradientCheck(steps)
    variants_ms: dict[str, dict[str, float]] = {}
    chosen: dict[str, str] = {}
    for name, make in ours.items():
        check.hand_in(name, make)
    for peer, variants in peers.items():
        tried = {variant: check.hand_in(f"{peer}: {variant}", make) for variant, make in variants.items()}
        # In turns, and the least of each: a machine that is busy for a while must not choose.
        turns_taken = [
            {v: paired.seconds_a_step(contender.run, AT_LEAST / 3) for v, contender in tried.items()}
            for _ in range(TRIALS)
        ]
        variants_ms[peer] = {v: round(1e3 * min(turn[v] for turn in turns_taken), 4) for v in tried}
        chosen[peer] = min(tried, key=lambda v: variants_ms[peer][v])
        makers[peer] = variants[chosen[peer]]
    check.all_agree()

    runs, turns, found = {}, {}, {}
    for name, make in makers.items():
        contender = make()
        contender.run(2)  # compiles what is compiled
        turns[name] = max(1, round(AT_LEAST / paired.seconds_a_step(contender.run, AT_LEAST / 3)))
        runs[name] = lambda c=contender, n=turns[name]: c.run(n)
        found[name] = {"weights": contender.weights, "cores": cores_used(runs[name])}
    taken = {name: t / turns[name] for name, t in paired.seconds_of(runs, rounds).items()}
    for name, t in taken.items():
        found[name]["ms"] = round(float(np.median(t)) * 1e3, 4)
        if name in ours:
            found[name]["faster_than"] = {peer: paired.ratio(taken, peer, name) for peer in peers}
        else:
            found[name]["variant"] = chosen[name]
    return {"rows": found, "variants_ms": variants_ms, "gradients": check.report()}


def cores_used(run: Callable[[], object]) -> float:
    """Processor seconds a second: above the threads that were promised, the comparison is unfair."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return round((time.process_time() - processor) / (time.perf_counter() - wall), 2)


class GradientCheck:
    """Every contender's gradient at learning rate 0, and where it has moved its parameters at the one that is used."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.at_rest: dict[str, np.ndarray] = {}
        self.moved: dict[str, np.ndarray] = {}
        self.weights: dict[str, str] = {}

    def hand_in(self, name: str, make: Callable[[], Contender]) -> Contender:
        """`make` it, run it, and note; returns a contender in its stride."""
        contender = make()
        contender.lr = 0.0
        contender.run(self.steps)
        self.at_rest[name] = contender.gradient()
        contender = make()
        start = contender.vector()
        contender.run(self.steps)
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
        first = next(iter(self.at_rest))
        return {
            "policies": self.weights,
            "largest_difference_at_learning_rate_0": rounded(
                max(distance(g, self.at_rest[first]) for g in self.at_rest.values())
            ),
            "largest_difference_within_a_policy": rounded(max(self.within_policy().values())),
        }


def rounded(number: float) -> float:
    return float(f"{number:.3g}")


def show(title: str, found: dict[str, Any]) -> None:
    """The table: every contender's time, and how many times faster ours are than each peer."""
    names = [name for name, row in found["rows"].items() if "faster_than" not in row]
    rows = []
    for name, row in found["rows"].items():
        over = row.get("faster_than", {})
        ratios = [
            f"{over[peer]['median']:.2f} ({over[peer]['low']:.2f} … {over[peer]['high']:.2f})" if over else ""
            for peer in names
        ]
        rows.append([name, row["weights"], f"{row['ms']:.3f}", row["cores"], *ratios])
    columns = ["", "weights", "ms a step", "cores", *(f"× {name}" for name in names)]
    paired.show(f"{title}: ms a step, and how many times faster than each peer", columns, rows)
    for peer, variants in found["variants_ms"].items():
        if len(variants) > 1:
            tried = "; ".join(f"{variant} {ms}" for variant, ms in variants.items())
            print(f"  {peer}, ways tried, ms: {tried}. Quickest: {found['rows'][peer]['variant']}")
    check = found["gradients"]
    print(
        f"  gradients: differ by {check['largest_difference_at_learning_rate_0']} at learning rate 0, "
        f"by {check['largest_difference_within_a_policy']} within a policy while learning"
    )
