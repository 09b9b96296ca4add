"""One training step of a small network: 64 inputs, 32 hidden units, 10 classes, batch 32, float32, plain SGD.

    python bench/mlp.py

Every contender computes the loss and its gradient (tanh, softmax cross-entropy) on a new batch and updates its
weights. `by hand` is forward, backward and update written out in NumPy. PyTorch runs eagerly, and compiled
where that works (it needs a C++ compiler); JAX runs one jitted step. Times in µs per step.
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import argparse
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.program.function import compile as compiled

BATCH, INPUTS, HIDDEN, CLASSES, RATE = 32, 64, 32, 10, 0.01
BATCHES, STEPS = 16, 20  # a turn is STEPS steps

Step = Callable[[np.ndarray, np.ndarray], Any]


def weights() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)]
    return [(rng.standard_normal(shape) / 8).astype(np.float32) for shape in shapes]


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((BATCH, INPUTS)).astype(np.float32), rng.integers(0, CLASSES, BATCH))
        for _ in range(BATCHES)
    ]


def by_hand() -> tuple[Step, Callable[[], list[np.ndarray]]]:
    w1, b1, w2, b2 = ours = weights()
    rows = np.arange(BATCH)

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        h = np.tanh(x @ w1 + b1)
        z = h @ w2 + b2
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total[:, 0]) - z[rows, labels])
        p /= total
        p[rows, labels] -= 1.0
        p /= BATCH
        dh = p @ w2.T
        dh *= 1.0 - h * h
        gradients = x.T @ dh, dh.sum(axis=0), h.T @ p, p.sum(axis=0)
        for w, g in zip(ours, gradients, strict=True):
            w -= RATE * g
        return loss

    return step, lambda: ours


def network(params: list[tg.Parameter]) -> Callable[[Any, Any], Any]:
    w1, b1, w2, b2 = params
    return lambda x, labels: tg.softmax_cross_entropy(tg.tanh(x @ w1 + b1) @ w2 + b2, labels)


def on_a_tape() -> tuple[Step, Callable[[], list[np.ndarray]]]:
    params = [tg.Parameter(w) for w in weights()]
    f, tape, optimizer = network(params), tg.Tape(), tg.optim.SGD(params, RATE)

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        with tape:
            loss = f(x, labels)
        tape.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, lambda: [p.value for p in params]


def as_program() -> tuple[Step, Callable[[], list[np.ndarray]]]:
    params = [tg.Parameter(w) for w in weights()]
    f, optimizer = compiled(network(params)), tg.optim.SGD(params, RATE)

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        loss = f.backward(x, labels)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step, lambda: [p.value for p in params]


def pytorch(compile_it: bool) -> tuple[Step, Callable[[], list[np.ndarray]]]:
    import torch

    torch.set_num_threads(paired.THREADS)
    params = [torch.tensor(w, requires_grad=True) for w in weights()]
    w1, b1, w2, b2 = params
    optimizer = torch.optim.SGD(params, RATE)

    def loss_of(x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(torch.tanh(x @ w1 + b1) @ w2 + b2, labels)

    f = torch.compile(loss_of) if compile_it else loss_of

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        loss = f(torch.from_numpy(x), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, lambda: [p.detach().numpy() for p in params]


def jax_jit() -> tuple[Step, Callable[[], list[np.ndarray]]]:
    import jax
    import jax.numpy as jnp

    params = [jnp.array(w) for w in weights()]

    def loss_of(params: Any, x: Any, labels: Any) -> Any:
        w1, b1, w2, b2 = params
        z = jax.nn.log_softmax(jnp.tanh(x @ w1 + b1) @ w2 + b2)
        return -jnp.mean(jnp.take_along_axis(z, labels[:, None], axis=1))

    @jax.jit
    def update(params: Any, x: Any, labels: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, x, labels)
        return loss, [p - RATE * g for p, g in zip(params, gradients, strict=True)]

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        nonlocal params
        loss, params = update(params, x, labels)
        return loss.block_until_ready()

    return step, lambda: [np.asarray(p) for p in params]


def autograd() -> tuple[Step, Callable[[], list[np.ndarray]]]:
    import autograd.numpy as anp
    from autograd import value_and_grad

    params = weights()
    rows = np.arange(BATCH)

    def loss_of(params: Any, x: Any, labels: Any) -> Any:
        w1, b1, w2, b2 = params
        z = anp.dot(anp.tanh(anp.dot(x, w1) + b1), w2) + b2
        z = z - anp.max(z, axis=1, keepdims=True)
        return anp.mean(anp.log(anp.sum(anp.exp(z), axis=1)) - z[rows, labels])

    both = value_and_grad(loss_of)

    def step(x: np.ndarray, labels: np.ndarray) -> Any:
        loss, gradients = both(params, x, labels)
        for w, g in zip(params, gradients, strict=True):
            w -= RATE * g
        return loss

    return step, lambda: params


CONTENDERS: dict[str, Callable[[], Any]] = {
    "compiled": as_program,
    "tape": on_a_tape,
    "by hand": by_hand,
    "PyTorch": lambda: pytorch(False),
    "PyTorch compiled": lambda: pytorch(True),
    "JAX jit": jax_jit,
    "autograd": autograd,
}


def turns() -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """A turn of each contender that runs here, after a check that all learn the same; why others do not."""
    data, made, left_out = batches(), {}, {}
    expected: list[np.ndarray] | None = None
    for name in ("by hand", *(n for n in CONTENDERS if n != "by hand")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                step, learned = CONTENDERS[name]()
                for x, labels in data:
                    step(x, labels)
        except Exception as error:  # a peer that is not installed, or has no compiler here
            if name in ("compiled", "tape", "by hand"):
                raise
            left_out[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
            )
            continue
        found = [np.array(w) for w in learned()]
        expected = found if expected is None else expected
        for ours, theirs in zip(expected, found, strict=True):
            error = np.max(np.abs(ours - theirs))
            assert error < 1e-5, f"{name} learns something else: difference {error}"

        def turn(step: Step = step) -> None:
            for k in range(STEPS):
                step(*data[k % BATCHES])

        made[name] = turn
    return made, left_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing kept")
    options = parser.parse_args()
    made, left_out = turns()
    taken = paired.seconds_of(made, 5 if options.quick else options.rounds)
    result = {
        "us_per_step": {name: round(float(np.median(t)) / STEPS * 1e6, 2) for name, t in taken.items()},
        "compiled_over": {
            name: paired.ratio(taken, "compiled", name) for name in taken if name != "compiled"
        },
        "left_out": left_out,
    }
    paired.show(
        "one step, batch 32, 64-32-10",
        ["", "µs per step", "compiled's time over it", "middle half of the rounds"],
        [
            [
                name,
                t,
                *(
                    [r["median"], f"{r['low']} … {r['high']}"]
                    if (r := result["compiled_over"].get(name))
                    else ["", ""]
                ),
            ]
            for name, t in result["us_per_step"].items()
        ],
    )
    for name, why in left_out.items():
        print(f"  left out: {name} ({why})")
    paired.write("mlp", result, options.quick)


if __name__ == "__main__":
    main()
