"""What do 10,000 operations on single numbers cost, forward and backward? Against XAD, PyTorch and HIPS autograd.

    python bench/scalar.py

Three programs of about 10,000 scalar ops, float64: `formula`, a chain of + - * / sin exp sqrt log over five inputs;
`oscillator`, Euler steps of a driven, damped pendulum; `options`, a portfolio of calls by Black and Scholes.
`tape` is tapegrad's Tape on the same code; `compiled` is tg.compile of it, which replays what it recorded at
its first call with the inputs of the moment. The peers have no replay: they run their Python and build their
graph each time. Times in µs per op, for the value and the gradient in all inputs.

`arrays` asks where instructions end to be worth it: y = tanh(y * w + b * y), 3 or 100 times, on vectors, as
instructions and as NumPy statements.
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import argparse
import math
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.program import function
from tapegrad.program.function import compile as compiled


class Counted:
    """A number that counts the operations on it: how long a program is."""

    count = 0

    def operation(self, *_: Any) -> Counted:
        Counted.count += 1
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = (
        operation
    )


def formula(m: Any, inputs: Sequence[Any], steps: int) -> Any:
    """A chain in which every step waits for the one before."""
    a, b, c, d, y = inputs
    for _ in range(steps):
        y = m.sin(y * a + b) + m.exp(-y * c) / (y * y + d)
        y = m.sqrt(y * y + 1.0) - m.log(y * y + d) * a
    return y


def oscillator(m: Any, inputs: Sequence[Any], steps: int) -> Any:
    """The angle of a pendulum after Euler steps, squared, as a function of five constants."""
    stiffness, friction, push, angle, speed = inputs
    h, t = 0.01, 0.0
    for _ in range(steps):
        force = push * math.cos(3.0 * t) - stiffness * m.sin(angle) - friction * speed
        angle, speed = angle + h * speed, speed + h * force
        t += h
    return angle * angle


def options(m: Any, inputs: Sequence[Any], steps: int) -> Any:
    """The value of a portfolio of call options: price, rate, volatility and two weights in, one number out."""
    spot, rate, volatility, one, other = inputs
    total = 0.0 * spot
    for i in range(steps):
        strike, years = 0.8 + 0.4 * i / steps, 0.25 + 2.0 * (i % 7) / 7
        spread = volatility * math.sqrt(years)
        d1 = (m.log(spot / strike) + (rate + volatility * volatility * 0.5) * years) / spread
        price = spot * normal(m, d1) - strike * m.exp(-rate * years) * normal(m, d1 - spread)
        total = total + price * (one if i % 2 else other)
    return total


def normal(m: Any, x: Any) -> Any:
    """The logistic approximation of the normal distribution function."""
    return 1.0 / (1.0 + m.exp(-x * (1.5976 + 0.070565992 * (x * x))))


# Steps that make about 10,000 operations, and where to start.
PROGRAMS: dict[str, tuple[Callable[..., Any], int, tuple[float, ...]]] = {
    "formula": (formula, 526, (0.9, 0.3, 0.7, 1.5, 0.2)),
    "oscillator": (oscillator, 1000, (4.0, 0.3, 1.0, 0.5, 0.0)),
    "options": (options, 384, (1.0, 0.03, 0.25, 0.6, 0.4)),
}


def operations(f: Callable[..., Any], steps: int) -> int:
    """How many operations `f` consists of."""
    Counted.count = 0
    number = Counted()
    functions = SimpleNamespace(**dict.fromkeys(("sin", "exp", "sqrt", "log"), lambda x: x.operation()))
    f(functions, [number] * 5, steps)
    return Counted.count


def contenders(f: Callable[..., Any], steps: int, start: Sequence[float]) -> dict[str, Callable[[], Any]]:
    """Functions that return the value and the gradient."""
    leaves = [tg.Variable(np.float64(x)) for x in start]
    program = compiled(lambda inputs: f(tg, inputs, steps))
    tape = tg.Tape()

    def gradient() -> list[float]:
        found = [float(v.grad) for v in leaves]
        for v in leaves:
            v.grad = None
        return found

    def by_tape() -> list[float]:
        with tape:
            y = f(tg, leaves, steps)
        tape.backward(y)
        return [float(y), *gradient()]

    def by_program() -> list[float]:
        y = program.backward(leaves)
        return [float(y), *gradient()]

    made = {"compiled": by_program, "tape": by_tape}
    if torch := imported("torch"):
        torch.set_num_threads(paired.THREADS)
        tensors = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in start]

        def by_torch() -> list[float]:
            for v in tensors:
                v.grad = None
            y = f(torch, tensors, steps)
            y.backward()
            return [y.item(), *(float(v.grad) for v in tensors)]

        made["PyTorch"] = by_torch
    if imported("xad"):
        import xad.adj_1st as adj
        import xad.math as xad_math

        def by_xad() -> list[float]:
            with adj.Tape() as tape:
                numbers = [adj.Real(x) for x in start]
                for x in numbers:
                    tape.registerInput(x)
                tape.newRecording()
                y = f(xad_math, numbers, steps)
                tape.registerOutput(y)
                y.derivative = 1.0
                tape.computeAdjoints()
                return [y.getValue(), *(x.derivative for x in numbers)]

        made["XAD"] = by_xad
    if imported("autograd"):
        import autograd.numpy as anp
        from autograd import value_and_grad

        both = value_and_grad(lambda inputs: f(anp, inputs, steps))

        def by_autograd() -> list[float]:
            y, grads = both(list(start))
            return [float(y), *map(float, grads)]

        made["autograd"] = by_autograd
    return made


def on_arrays(size: int, steps: int) -> dict[str, Callable[[], Any]]:
    """The same program of vectors as instructions and as statements."""
    rng = np.random.default_rng(0)
    leaves = [tg.Variable(rng.uniform(0.4, 0.6, size)) for _ in range(3)]

    def f(y: Any, w: Any, b: Any) -> Any:
        for _ in range(steps):
            y = tg.tanh(y * w + b * y)
        return tg.sum(y)

    made: dict[str, Callable[[], Any]] = {}
    before = function.worthwhile
    for name in ("instructions", "statements"):
        program = compiled(f)
        function.worthwhile = lambda nodes, name=name: name == "instructions"
        program.backward(*leaves)
        assert program.program().kind == name
        made[name] = lambda program=program: [program.backward(*leaves) for _ in range(20)]
    function.worthwhile = before
    return made


def imported(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        return None


def check_that_results_agree(made: dict[str, Callable[[], Any]]) -> None:
    """A time is worth nothing unless the same thing was computed."""
    expected = np.array(made["tape"]())
    for name, contender in made.items():
        error = np.max(np.abs(np.array(contender()) - expected) / np.maximum(np.abs(expected), 1e-3))
        assert error < 1e-8, f"{name} computes something else: relative difference {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="short programs, few rounds, nothing kept")
    options = parser.parse_args()
    rounds, shrink = (3, 20) if options.quick else (options.rounds, 1)
    results: dict[str, Any] = {}
    for name, (f, steps, start) in PROGRAMS.items():
        steps //= shrink
        ops = operations(f, steps)
        made = contenders(f, steps, start)
        started = time.perf_counter()
        made["compiled"]()
        first = time.perf_counter() - started
        check_that_results_agree(made)
        taken = paired.seconds_of(made, rounds)
        instructions = compiled(lambda inputs, f=f, n=steps: f(tg, inputs, n))
        instructions.backward([tg.Variable(np.float64(x)) for x in start])
        row = {
            "ops": ops,
            "instructions": len(instructions.program()),
            "us_per_op": {who: round(float(np.median(t)) / ops * 1e6, 4) for who, t in taken.items()},
            "first_call_ms": round(first * 1e3, 1),
            "over_compiled": {
                who: paired.ratio(taken, who, "compiled") for who in taken if who != "compiled"
            },
        }
        results[name] = row
        paired.show(
            f"{name} ({ops} ops, {row['instructions']} instructions; first call {row['first_call_ms']} ms)",
            ["", "µs per op", "its time over compiled", "middle half of the rounds"],
            [
                [
                    who,
                    t,
                    *(
                        [r["median"], f"{r['low']} … {r['high']}"]
                        if (r := row["over_compiled"].get(who))
                        else ["", ""]
                    ),
                ]
                for who, t in row["us_per_op"].items()
            ],
        )
    sizes = []
    for steps in (3, 100):
        for size in (1, 4, 16, 48, 64):
            taken = paired.seconds_of(on_arrays(size, steps), rounds)
            us = {who: round(float(np.median(t)) / 20 * 1e6, 1) for who, t in taken.items()}
            over = paired.ratio(taken, "statements", "instructions")
            sizes.append(
                {"ops": 4 * steps + 1, "elements": size, "us": us, "statements_over_instructions": over}
            )
    results["arrays"] = sizes
    paired.show(
        "arrays: µs for value and gradient",
        ["ops", "elements", "instructions", "statements", "ratio"],
        [
            [r["ops"], r["elements"], *r["us"].values(), r["statements_over_instructions"]["median"]]
            for r in sizes
        ],
    )
    paired.write("scalar", results, options.quick)


if __name__ == "__main__":
    main()
