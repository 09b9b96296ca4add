"""What do convolutions and pools take, forward and backward? Against PyTorch, and with all columns written out at once.

    python bench/convolve.py
    python bench/convolve.py --quick

`conv2d` and `max_pool2d` of float32 images with the gradients of all that is differentiated. `at once` is tapegrad
with the columns of the whole batch as one array, instead of as many as a cache holds.
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import argparse

import numpy as np

import tapegrad as tg
from tapegrad.ops import convolve, pool

CONVOLUTIONS = {
    "28 x 28, 1 to 6 channels, 5 x 5, batch 32": ((32, 1, 28, 28), (6, 1, 5, 5), {"padding": 2}),
    "28 x 28, 16 to 32 channels, 3 x 3, batch 32": ((32, 16, 28, 28), (32, 16, 3, 3), {"padding": 1}),
    "56 x 56, 64 to 64 channels, 3 x 3, batch 8": ((8, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "28 x 28, 32 to 64 channels, 3 x 3, stride 2, batch 16": (
        (16, 32, 28, 28),
        (64, 32, 3, 3),
        {"padding": 1, "stride": 2},
    ),
    "28 x 28, 32 channels each alone, 3 x 3, batch 16": (
        (16, 32, 28, 28),
        (32, 1, 3, 3),
        {"padding": 1, "groups": 32},
    ),
    "64 x 64, 3 to 8 channels, 3 x 3, batch 1": ((1, 3, 64, 64), (8, 3, 3, 3), {}),
}
POOLS = {"28 x 28, 16 channels, 2 x 2, batch 32": (32, 16, 28, 28)}


def swept(f, arrays):
    """A forward and a backward pass of `f` by tapegrad; returns the gradients."""
    leaves, tape = [tg.Variable(a) for a in arrays], tg.Tape()
    ct = np.ones_like(f(*arrays))

    def run():
        for v in leaves:
            v.grad = None
        with tape:
            y = f(*leaves)
        tape.backward(y, ct)
        return [v.grad for v in leaves]

    return run


def at_once(run):
    """`run` with the columns of the whole batch as one array."""

    def whole():
        before, convolve.AT_ONCE = convolve.AT_ONCE, 1 << 62
        try:
            return run()
        finally:
            convolve.AT_ONCE = before

    return whole


def theirs(f, arrays):
    """The same passes by PyTorch."""
    import torch

    torch.set_num_threads(paired.THREADS)
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    ct = torch.ones_like(f(torch.nn.functional, *leaves))
    return lambda: [g.numpy() for g in torch.autograd.grad(f(torch.nn.functional, *leaves), leaves, ct)]


def contenders_of(ours, f, arrays) -> dict:
    contenders = {"tapegrad": swept(ours, arrays), "at once": at_once(swept(ours, arrays))}
    if paired.installed("torch"):
        contenders["PyTorch"] = theirs(f, arrays)
    right = contenders["tapegrad"]()
    for run in contenders.values():
        for a, b in zip(run(), right, strict=True):
            assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()
    return contenders


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    quick, rng = parser.parse_args().quick, np.random.default_rng(0)
    programs = {}
    for name, (x, w, options) in CONVOLUTIONS.items():
        arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (x, w)]
        programs[name] = contenders_of(
            lambda x, w, o=options: convolve.conv2d(x, w, **o),
            lambda F, x, w, o=options: F.conv2d(x, w, **o),
            arrays,
        )
    for name, x in POOLS.items():
        programs[f"largest of {name}"] = contenders_of(
            lambda x: pool.max_pool2d(x, 2),
            lambda F, x: F.max_pool2d(x, 2),
            [rng.standard_normal(x).astype(np.float32)],
        )
    results = {}
    for name, contenders in programs.items():
        taken = paired.seconds_of(contenders, 5 if quick else 40)
        results[name] = {
            "ms": {who: round(float(np.median(t)) * 1e3, 3) for who, t in taken.items()},
            "over": {who: paired.ratio(taken, "tapegrad", who) for who in taken if who != "tapegrad"},
        }
    names = list(next(iter(programs.values())))
    paired.show(
        "forward and backward, ms, and tapegrad's over each",
        ["", *names, *(f"over {who}" for who in names[1:])],
        [
            [name, *r["ms"].values(), *(round(o["median"], 2) for o in r["over"].values())]
            for name, r in results.items()
        ],
    )
    paired.write("convolve", results, quick)


if __name__ == "__main__":
    main()
