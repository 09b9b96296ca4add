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
import sys
from typing import Any

import paired  # isort: skip (it pins the threads)
import contest
from contest import Variants
from peers.work import Work

WORKS = [
    Work("lstm", 1, 64, 20),
    Work("lstm", 1, 128, 20),
    Work("gru", 1, 64, 20),
    Work("lstm2", 1, 64, 20),
    Work("lstm", 16, 256, 20),
    Work("lstm", 32, 512, 35),
]
LARGE = 512  # hidden units from which a step takes 0.1 s: three rounds, without replay, the default programs
POLICIES = ["current", "recorded", "replay"]
# What a CapacitorTape is given for its programs; only what it knows is run.
COMPILE: dict[str, dict[str, Any]] = {
    "": {},
    ", NumPy programs": {"compile": "numpy"},
    ", Numba programs": {"compile": "numba"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="three rounds, written to runs/")
    parser.add_argument("--only", default="", help="works whose title holds this")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    parser.add_argument("--add", action="store_true", help="to the works that the results hold already")
    options = parser.parse_args()
    numpy_only = os.environ.get("TAPEGRAD_KERNELS") == "numpy"
    name = "window_numpy" if numpy_only else "window"
    results: dict[str, Any] = paired.written(name) if options.add else {}
    for work in WORKS:
        if options.only in work.title:
            rounds = 3 if options.quick or work.hidden >= LARGE else options.rounds
            found = contest.held(
                ours(work), peers(work, not options.no_compile), rounds, steps=work.window + 3
            )
            contest.show(work.title, found)
            results[work.title] = {**found, "error_against_recorded": error_of_policies(work)}
            quick = options.quick or (bool(options.only) and not options.add)
            paired.write(name, results, quick)  # what is done is written before the next begins
            if "torch._dynamo" in sys.modules:  # it compiles a function a few times only
                sys.modules["torch._dynamo"].reset()


# -- who takes part --------------------------------------------------------------------------------


def ours(work: Work) -> Variants:
    """tapegrad: built-in and plain cells, the policies, and the ways to compile."""
    from peers import tapegrad_loops as tl

    variants: Variants = {}
    cells = {"built-in": tl.built_in_cell, "plain ops": tl.plain_cell}
    for cell, make in cells.items():
        for policy in POLICIES if work.hidden < LARGE else POLICIES[:2]:
            for how, setting in COMPILE.items() if work.hidden < LARGE else [("", {})]:
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
            found["PyTorch, torch.compile"] = {"of the step, re-run": lambda: pytorch.RerunCompiled(work)}
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


def error_of_policies(work: Work) -> dict[str, Any]:
    """How far from the exact gradient the other policies are, at the learning rate of the contest."""
    from peers.tapegrad_loops import errors_against_recorded

    errors = errors_against_recorded(work, steps=20 if work.hidden < 512 else 3)
    print(f"  relative error of a gradient against recorded, at learning rate {work.lr}: {errors}")
    return {"learning_rate": work.lr, **errors}


if __name__ == "__main__":
    main()
