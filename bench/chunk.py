"""An LSTM over chunks of a stream: forward, backward and an SGD step for each. How long, next to nn.LSTM?

    python bench/chunk.py
    python bench/chunk.py --quick                        few rounds, written to runs/
    TAPEGRAD_KERNELS=numpy python bench/chunk.py         without Numba, to chunk_numpy.json

A loss at every step's output; the state goes on to the next chunk, its gradient does not. tapegrad does it in a loop
over the steps on a CapacitorTape with tg.Chunked, and with one op for the chunk, tg.lstm_sequence.
"""

from __future__ import annotations

import argparse
import os

import paired  # isort: skip (it pins the threads)
import contest
from contest import Variants
from peers.work import Work

WORKS = [Work("lstm", 32, 256, 35), Work("lstm", 1, 128, 50)]


def ours(work: Work) -> Variants:
    """The loop with the built-in cell and with a plain one, and the op."""
    from peers import tapegrad_loops as tl

    import tapegrad as tg

    variants: Variants = {
        "tapegrad, loop of LSTMCell": lambda: tl.ChunkOfLoop(work, tl.built_in_cell(work)),
        "tapegrad, loop of plain ops": lambda: tl.ChunkOfLoop(work, tl.plain_cell(work)),
    }
    if hasattr(tg, "lstm_sequence"):
        variants["tapegrad, lstm_sequence"] = lambda: tl.ChunkOfSequence(work)
    return variants


def peers(work: Work, with_compile: bool) -> dict[str, Variants]:
    """Of each that is installed, the ways to do it."""
    found: dict[str, Variants] = {}
    if paired.installed("torch"):
        from peers import pytorch

        found["PyTorch"] = {
            "nn.LSTM and optim.SGD": lambda: pytorch.ChunkOfModule(work),
            "torch.lstm and _foreach_add_": lambda: pytorch.ChunkOfLayer(work),
        }
        if with_compile:
            found["PyTorch, torch.compile"] = {"": lambda: pytorch.ChunkCompiled(work)}
    if paired.installed("jax"):
        from peers import jax_loops

        found["JAX"] = {
            f"jitted scan, unroll {unroll}{', inputs hoisted' if hoisted else ''}": (
                lambda unroll=unroll, hoisted=hoisted: jax_loops.ChunkOfScan(work, unroll, hoisted)
            )
            for unroll, hoisted in [(1, False), (1, True), (5, True)]
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="three rounds, written to runs/")
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out torch.compile, which takes minutes"
    )
    options = parser.parse_args()
    rounds, results = 3 if options.quick else options.rounds, {}
    for work in WORKS:
        title = f"chunks of {work.window}, batch {work.batch}, hidden {work.hidden}"
        results[title] = contest.held(ours(work), peers(work, not options.no_compile), rounds, steps=3)
        contest.show(title, results[title])
    numpy_only = os.environ.get("TAPEGRAD_KERNELS") == "numpy"
    paired.write("chunk_numpy" if numpy_only else "chunk", results, options.quick)


if __name__ == "__main__":
    main()
