"""What does one op cost, forward and backward? Against PyTorch, HIPS autograd, MyGrad, JAX and NumPy by hand.

    python bench/per_op.py
    python bench/per_op.py --quick

Two programs: `chain`, 900 elementwise ops (300 times tanh(y * w + b)), on 64 to 65,536 floats; and `cell`,
50 steps of an LSTM in plain ops (matmul, slices, gates), batch 1, hidden 64. `bare` is NumPy doing the
forward pass alone; `by hand` is forward and backward written out in NumPy. `JAX, jitted` runs the chain as one
compiled loop: nothing is recorded any more, and it is no peer to a tape but to a compiler; JAX op by op takes
milliseconds for each. tinygrad fuses the whole chain likewise, and has no row. Times in µs per op.
"""

from __future__ import annotations

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import argparse

import numpy as np

import tapegrad as tg

LENGTH = 300


def chain_contenders(size: int, dtype: str) -> tuple[dict, int]:
    rng = np.random.default_rng(0)
    # Near the identity: cotangents that die out over 300 steps would be denormal numbers, which are slow.
    w, b, y0 = (
        rng.uniform(low, high, size).astype(dtype)
        for low, high in ((0.999, 1.001), (-1e-4, 1e-4), (-0.5, 0.5))
    )
    tape, variables = tg.Tape(), [tg.Variable(v) for v in (w, b, y0)]

    def tapegrad():
        w, b, y = variables
        tape.begin()
        for _ in range(LENGTH):
            y = tg.tanh(y * w + b)
        loss = tg.sum(y)
        tape.stop()
        for v in variables:
            v.grad = None
        tape.backward(loss)
        return [v.grad for v in variables]

    def bare():
        y = y0
        for _ in range(LENGTH):
            y = np.tanh(y * w + b)

    def by_hand():
        y, ys = y0, [y0]
        for _ in range(LENGTH):
            y = np.tanh(y * w + b)
            ys.append(y)
        ct, ct_w, ct_b = np.ones_like(y), np.zeros_like(w), np.zeros_like(b)
        for t in range(LENGTH, 0, -1):
            ct = ct - ct * ys[t] * ys[t]
            ct_b += ct
            ct_w += ct * ys[t - 1]
            ct = ct * w
        return [ct_w, ct_b, ct]

    contenders = {"tapegrad": tapegrad, "bare": bare, "by hand": by_hand}

    if torch := imported("torch"):
        torch.set_num_threads(paired.THREADS)
        leaves = [torch.tensor(v, requires_grad=True) for v in (w, b, y0)]

        def pytorch():
            w, b, y = leaves
            for _ in range(LENGTH):
                y = torch.tanh(y * w + b)
            for v in leaves:
                v.grad = None
            y.sum().backward()
            return [v.grad.numpy() for v in leaves]

        contenders["PyTorch"] = pytorch

    if imported("autograd"):
        import autograd.numpy as anp
        from autograd import grad

        def loss(leaves):
            w, b, y = leaves
            for _ in range(LENGTH):
                y = anp.tanh(y * w + b)
            return anp.sum(y)

        gradient = grad(loss)
        contenders["autograd"] = lambda: gradient((w, b, y0))

    if mg := imported("mygrad"):
        mg.turn_memory_guarding_off()  # as its guide advises for speed

        def mygrad():
            leaves = [mg.tensor(v, copy=False) for v in (w, b, y0)]
            mw, mb, y = leaves
            for _ in range(LENGTH):
                y = mg.tanh(y * mw + mb)
            y.sum().backward()
            return [v.grad for v in leaves]

        contenders["MyGrad"] = mygrad

    if dtype == "float32" and imported("jax"):  # it computes in float32 unless the process is told otherwise
        from peers.jax_loops import jax, jnp, lax

        def scanned(leaves):
            jw, jb, y = leaves
            y, _ = lax.scan(lambda y, _: (jnp.tanh(y * jw + jb), None), y, length=LENGTH)
            return jnp.sum(y)

        jitted, given = jax.jit(jax.grad(scanned)), tuple(jnp.asarray(v) for v in (w, b, y0))
        contenders["JAX, jitted"] = lambda: [np.asarray(v) for v in jitted(given)]

    return contenders, 3 * LENGTH


def cell_contenders(hidden: int = 64, steps: int = 50) -> tuple[dict, int]:
    rng = np.random.default_rng(0)
    w = rng.uniform(-0.1, 0.1, (2 * hidden, 4 * hidden)).astype(np.float32)
    b = np.zeros(4 * hidden, np.float32)
    xs = rng.standard_normal((steps, 1, hidden)).astype(np.float32)
    zero = np.zeros((1, hidden), np.float32)
    tape, variables = tg.Tape(), [tg.Variable(v) for v in (w, b)]
    gates = [slice(k * hidden, (k + 1) * hidden) for k in range(4)]

    def unroll(lib, concat, w, b, xs, h, c):
        for x in xs:
            z = concat([x, h]) @ w + b
            i, f, g, o = (z[:, gate] for gate in gates)
            c = lib.sigmoid(f) * c + lib.sigmoid(i) * lib.tanh(g)
            h = lib.sigmoid(o) * lib.tanh(c)
        return (h * h).sum()

    def tapegrad():
        for v in variables:
            v.grad = None
        with tape:
            loss = unroll(tg, lambda parts: tg.concat(parts, axis=1), *variables, xs, zero, zero)
        tape.backward(loss)
        return [v.grad for v in variables]

    contenders = {"tapegrad": tapegrad}
    if torch := imported("torch"):
        torch.set_num_threads(paired.THREADS)
        leaves = [torch.tensor(v, requires_grad=True) for v in (w, b)]
        inputs, start = torch.tensor(xs), torch.tensor(zero)

        def pytorch():
            for v in leaves:
                v.grad = None
            unroll(torch, lambda parts: torch.cat(parts, dim=1), *leaves, inputs, start, start).backward()
            return [v.grad.numpy() for v in leaves]

        contenders["PyTorch"] = pytorch
    tapegrad()
    return contenders, len(tape)


def imported(name: str):
    try:
        return __import__(name)
    except ImportError:
        return None


def check_gradients_agree(contenders: dict, tolerance: float) -> None:
    """A time is worth nothing unless the same thing was computed."""
    expected = contenders["tapegrad"]()
    for name, contender in contenders.items():
        found = contender()
        for ours, theirs in zip(expected, found or expected, strict=True):
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(ours)
            assert error < tolerance, f"{name} computes other gradients: relative difference {error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="five rounds, written to runs/")
    options = parser.parse_args()
    rounds = 5 if options.quick else options.rounds
    questions = [(f"chain, {n} {dtype}", chain_contenders(n, dtype)) for n, dtype in
                 [(64, "float32"), (64, "float64"), (4096, "float32"), (65536, "float32")]]  # fmt: skip
    questions.append(("LSTM cell in plain ops, batch 1, hidden 64, float32", cell_contenders()))
    results = {}
    for title, (contenders, ops) in questions:
        check_gradients_agree(contenders, 1e-9 if "float64" in title else 1e-3)
        taken = paired.seconds_of(contenders, rounds)
        row = {
            "us_per_op": {name: round(float(np.median(t)) / ops * 1e6, 3) for name, t in taken.items()},
            "tapegrad_over": {
                name: paired.ratio(taken, "tapegrad", name) for name in taken if name != "tapegrad"
            },
        }
        results[title] = row
        paired.show(
            f"{title} ({ops} ops)",
            ["", "µs per op", "tapegrad's time over it", "middle half of the rounds"],
            [
                [
                    name,
                    t,
                    *(
                        [r["median"], f"{r['low']} … {r['high']}"]
                        if (r := row["tapegrad_over"].get(name))
                        else ["", ""]
                    ),
                ]
                for name, t in row["us_per_op"].items()
            ],
        )
    paired.write("per_op", results, options.quick)


if __name__ == "__main__":
    main()
