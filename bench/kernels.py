"""NumPy's kernels against Numba's, by size, and what compiling them costs: the limits in kernels/choice.py come from here.

    python bench/kernels.py             every kernel, float32 and float64: the table, and bench/results/kernels.json
    python bench/kernels.py --quick     few rounds; the table is written to runs/

A ratio is Numba's time over NumPy's, within a round: below 1 Numba is faster. "one call" is the kernel that
multiplies row by row; where there is none the products are BLAS's on both sides. Every pair is compared first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (first: it pins the threads)
import numpy as np
from tapegrad.kernels import choice, cpu

RNG = np.random.default_rng(0)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
STEP_SIZES = [(1, 64), (1, 128), (1, 256), (2, 64), (2, 128), (2, 256), (16, 256), (32, 512)]
SEQUENCE_SIZES = [(50, 1, 128), (35, 32, 256)]
LOSS_SIZES = [(1, 100), (32, 100), (32, 1000)]
TABLE_SIZES = [(1, 100, 64), (32, 100, 64), (1000, 1000, 64)]
BUFFER_SIZES = [256, 33_024, 1_000_000]
Contender = Callable[[], Any]


def draws(dtype: Any, *shapes: tuple[int, ...]) -> list[Any]:
    return [RNG.standard_normal(shape).astype(dtype) for shape in shapes]


def step_inputs(cell: str, batch: int, n: int, dtype: Any) -> list[Any]:
    width = GATES[cell] * n
    shapes = [(batch, n), (batch, n), (n, width), (n, width), (width,)]
    extra = {"lstm": [(batch, n)], "gru": [(width,)], "rnn": []}[cell]
    x, h, w_x, w_h, b, *more = draws(dtype, *shapes, *extra)
    for w in (w_x, w_h):
        w *= 0.5 / n**0.5  # larger ones make a network that doubles every rounding
    return [x, h, *more, w_x, w_h, b] if cell == "lstm" else [x, h, w_x, w_h, b, *more]


def steps(cell: str, batch: int, n: int, dtype: Any) -> dict[str, tuple[Contender, Contender]]:
    """One step and its pullback: NumPy's and Numba's."""
    inputs = step_inputs(cell, batch, n, dtype)
    numpys, finished = getattr(cpu, f"{cell}_step"), getattr(choice, f"{cell}_step")
    pairs = {f"{cell}_step": (lambda: numpys(*inputs), lambda: finished(*inputs))}
    in_one_call = getattr(choice, f"{cell}_step_in_one_call")
    if batch == 1:
        pairs[f"{cell}_step, one call"] = (lambda: numpys(*inputs), lambda: in_one_call(*inputs))
    outputs, ct, ct_c = numpys(*inputs), *draws(dtype, (batch, n), (batch, n))
    kept = {
        "lstm": lambda: (ct, ct_c, inputs[2], *outputs[2:]),
        "gru": lambda: (ct, inputs[1], *outputs[1:]),
        "rnn": lambda: (ct, outputs),
    }[cell]()
    theirs, ours = getattr(cpu, f"{cell}_step_pullback"), getattr(choice, f"{cell}_step_pullback")
    pairs[f"{cell}_step_pullback"] = (lambda: theirs(*kept), lambda: ours(*kept))
    return pairs


def sequences(
    cell: str, count: int, batch: int, n: int, dtype: Any
) -> dict[str, tuple[Contender, Contender]]:
    """A sequence forward and back, by `choice` in either mode."""
    _, *rest = step_inputs(cell, batch, n, dtype)
    inputs = [*draws(dtype, (count, batch, n)), *rest]
    w_h = inputs[{"lstm": 4, "gru": 3, "rnn": 3}[cell]]
    forward, back = getattr(choice, f"{cell}_sequence"), getattr(choice, f"{cell}_sequence_pullback")
    outputs = forward(*inputs)
    cts = draws(dtype, (count, batch, n), *[(batch, n)] * (2 if cell == "lstm" else 1))
    kept = {"lstm": outputs[4:], "gru": outputs[2:], "rnn": outputs[:1]}[cell]

    def in_mode(mode: str, function: Callable[..., Any], *arguments: Any) -> Contender:
        def run() -> Any:
            before = choice.use(mode)
            try:
                return function(*arguments)
            finally:
                choice.use(before)

        return run

    return {
        f"{cell}_sequence": tuple(in_mode(mode, forward, *inputs) for mode in ("numpy", "numba")),
        f"{cell}_sequence_pullback": tuple(
            in_mode(mode, back, *cts, *kept, w_h) for mode in ("numpy", "numba")
        ),
    }  # type: ignore[return-value]


def losses(rows: int, classes: int, dtype: Any) -> dict[str, tuple[Contender, Contender]]:
    logits, labels = draws(dtype, (rows, classes))[0], RNG.integers(0, classes, rows)
    _, probabilities = cpu.softmax_cross_entropy(logits, labels)
    ct = dtype(1)
    return {
        "softmax_cross_entropy": (
            lambda: cpu.softmax_cross_entropy(logits, labels),
            lambda: choice.softmax_cross_entropy_in_one_call(logits, labels),
        ),
        "softmax_cross_entropy_pullback": (
            lambda: cpu.softmax_cross_entropy_pullback(ct, labels, probabilities),
            lambda: choice.softmax_cross_entropy_pullback(ct, labels, probabilities),
        ),
    }


def tables(rows: int, count: int, size: int, dtype: Any) -> dict[str, tuple[Contender, Contender]]:
    ct, indices = draws(dtype, (rows, size))[0], RNG.integers(0, count, rows)
    return {
        "embedding_gradient": (
            lambda: cpu.embedding_gradient(ct, indices, count),
            lambda: choice.embedding_gradient(ct, indices, count),
        )
    }


def buffers(size: int, dtype: Any) -> dict[str, tuple[Contender, Contender]]:
    """The optimizers, which change their running averages: each contender has its own."""
    value, grad = draws(dtype, (size,), (size,))

    def contender(module: Any, name: str, averages: int, *numbers: float) -> Contender:
        state, new = [np.zeros(size, dtype) for _ in range(averages)], np.empty(size, dtype)

        def run() -> Any:
            getattr(module, name)(value, grad, *state, new, *numbers)
            return new

        return run

    settings = {"sgd": (0, 0.1), "momentum": (1, 0.1, 0.9), "adam": (2, 0.01, 0.9, 0.999, 1e-8, 1.0)}
    made = {
        name: (contender(cpu, name, *numbers), contender(choice, name, *numbers))
        for name, numbers in settings.items()
    }
    for name in ("finite", "squared_norm"):
        theirs, ours = getattr(cpu, name), getattr(choice, name)
        made[name] = (lambda f=theirs: f(grad), lambda f=ours: f(grad))  # type: ignore[misc]
    return made


def compare(pair: tuple[Contender, Contender], rounds: int, dtype: Any) -> dict[str, Any]:
    """Microseconds of both, and their ratio; raises if they do not compute the same."""
    near = {"rtol": 1e-3, "atol": 1e-4} if dtype is np.float32 else {"rtol": 1e-9, "atol": 1e-11}
    first, second = (f() for f in pair)
    for a, b in zip(*(y if isinstance(y, tuple) else (y,) for y in (first, second)), strict=True):
        np.testing.assert_allclose(a, b, **near)

    def repeated(f: Contender, times: int) -> Contender:
        def run() -> None:
            for _ in range(times):
                f()

        return run

    once = float(np.median(paired.seconds_of({"f": pair[0]}, 3)["f"]))
    times = max(1, int(2e-3 / once))
    taken = paired.seconds_of({"numpy": repeated(pair[0], times), "numba": repeated(pair[1], times)}, rounds)
    us = {name: round(float(np.median(seconds)) / times * 1e6, 2) for name, seconds in taken.items()}
    return {**us, "ratio": paired.ratio(taken, "numba", "numpy")}


def compiling() -> dict[str, Any]:
    """Seconds to compile every kernel in a fresh process: with nothing on the disk, and then with all of it."""
    code = (
        "import json, numpy as np; from tapegrad.kernels import choice; "
        "print(json.dumps({d: sum(k['seconds'] for k in choice.warmup([d]).values()) for d in ('float32', 'float64')}))"
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "from disk"):
            environment = {**paired.os.environ, "NUMBA_CACHE_DIR": folder}
            run = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            found[name] = {dtype: round(s, 2) for dtype, s in json.loads(run.stdout).items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    choice.use("numba")
    results: list[dict[str, Any]] = []
    for dtype in (np.float32, np.float64):
        made = [
            *((size, steps(cell, *size, dtype)) for cell in GATES for size in STEP_SIZES),
            *((size, sequences(cell, *size, dtype)) for cell in GATES for size in SEQUENCE_SIZES),
            *((size, losses(*size, dtype)) for size in LOSS_SIZES),
            *((size, tables(*size, dtype)) for size in TABLE_SIZES),
            *(((size,), buffers(size, dtype)) for size in BUFFER_SIZES),
        ]
        for size, pairs in made:
            for name, pair in pairs.items():
                row = {"kernel": name, "size": list(size), "dtype": np.dtype(dtype).name}
                results.append({**row, **compare(pair, rounds, dtype)})
    columns = ["kernel", "size", "dtype", "numpy", "numba", "ratio"]
    rows = [
        [r["kernel"], r["size"], r["dtype"], r["numpy"], r["numba"], r["ratio"]["median"]] for r in results
    ]
    paired.show("microseconds, and Numba's time over NumPy's", columns, rows)
    seconds = compiling()
    paired.show(
        "seconds to compile", ["", "float32", "float64"], [[k, *v.values()] for k, v in seconds.items()]
    )
    paired.write("kernels", {"kernels": results, "compiling": seconds}, arguments.quick)


if __name__ == "__main__":
    main()
