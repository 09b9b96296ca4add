"""The first program: a forward pass that flips a coin, and its gradients.

    python examples/01_tape.py                     both sides of the coin
    python examples/01_tape.py --coin flip         one of them, by chance

It computes linear(x1) + x2 * sigmoid(x3), or the same with x3 itself in place of sigmoid(x3). The tape
notes every op that runs, in order (the *Wengert list*), so an `if` needs no special treatment: what did
not run is not on the list. Playing the list backwards gives the gradients. After autobw's first example.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import tapegrad as tg
from tapegrad import nn

add, mul, sigm = nn.Add(), nn.Mul(), nn.Sigmoid()


def run(tape: tg.Tape, lin: nn.Linear, x1, x2, x3, coin: float, seed) -> tg.Variable:
    """One forward pass, recorded, and its backward pass; the gradients are in the `.grad` of each leaf.

    `seed` is the cotangent of the result: a result that is not a scalar has no gradient of its own, and
    the sweep differentiates sum(seed * result) instead.
    """
    tape.begin()
    val1 = lin.forward(x1)
    if coin > 0.5:  # noqa: SIM108 (a plain `if` is what this example is about)
        maybe_sigmoid = sigm.forward(x3)
    else:
        maybe_sigmoid = x3
    result = add.forward([val1, mul.forward([x2, maybe_sigmoid])])
    tape.stop()

    tape.backward(result, seed=seed)
    return result


def show(coin: float, rng: np.random.Generator) -> None:
    """One run: the list, the list backwards, the gradients."""
    tape, lin = tg.Tape(), nn.Linear(5, 5, rng=rng)
    x1, seed = np.linspace(-1, 1, 5, dtype=np.float32), np.ones(5, np.float32)  # plain arrays are constants
    x2 = tg.Variable(rng.standard_normal(5).astype(np.float32), name="x2")
    x3 = tg.Variable(rng.standard_normal(5).astype(np.float32), name="x3")
    result = run(tape, lin, x1, x2, x3, coin, seed)

    print(tape)

    print("\nBackwards, each op hands the cotangent of its output on to its inputs:")
    for step in tape.walk(result, seed=seed):
        handed_on = ", ".join(f"{name} {ct.shape}" for name, ct in step.contributions)
        print(f"  {step.out} = {step.name}({', '.join(step.inputs)})  to  {handed_on}")

    print("\nGradients:")
    for leaf in (lin.weight, lin.bias, x2, x3):
        label = f"  {leaf.name + '.grad':<12} "
        print(label + np.array2string(leaf.grad, prefix=label, precision=3, suppress_small=True))


def main() -> int:
    options = parse_options()
    flipped = "heads" if np.random.default_rng(options.seed).random() > 0.5 else "tails"
    for side in {"both": ["heads", "tails"], "flip": [flipped]}.get(options.coin, [options.coin]):
        print(f"--- {side}: linear(x1) + x2 * {'sigmoid(x3)' if side == 'heads' else 'x3'} ---\n")
        show(1.0 if side == "heads" else 0.0, np.random.default_rng(options.seed))
        print()
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coin", choices=["heads", "tails", "flip", "both"], default="both")
    parser.add_argument("--seed", type=int, help="of weights, inputs and flip (default: by chance)")
    parser.add_argument("--quick", action="store_true", help="changes nothing: this example is always quick")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
