"""How many steps of a sweep can be left out when adjoints die away, and what does it cost the gradient?

    python bench/tolerance.py
    python bench/tolerance.py --quick

An LSTM is trained on the text of the main example; then it reads on, batch 1, its weights at rest, with a window of 100
that slides by 1, and each loss is swept twice: through the whole window, and with Tolerance(eps), which ends where
what is still to come, by the decline of the adjoints so far, has fallen below eps. Told are backward steps, the relative error of
the gradient, sweep by sweep, and the time of a step (with forward) of loops with one tape each.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np
from time_to_bits import example

import tapegrad as tg
from tapegrad import optim

WINDOW = 100
TOLERANCES = [1e-2, 1e-3, 1e-4]


def trained(hidden: int, chunks: int) -> tuple[Any, np.ndarray]:
    """The main example's model after `chunks` chunks of 50 characters, 32 streams; and the text's codes."""
    text = tg.data.english()
    vocabulary = tg.data.Vocabulary(text)
    codes = vocabulary.encode(text)
    model = example().CharacterModel(len(vocabulary), "lstm", hidden, np.random.default_rng(0))
    params, _ = model.parameters(flat=True)
    optimizer, tape = optim.Adam(params, lr=1e-2), tg.CapacitorTape(tg.Chunked(50))
    state = model.cell.initial_state(32)
    bits: list[float] = []
    for t, (x, target) in enumerate(tg.data.streams(codes, 32)):
        if t == 50 * chunks:
            break
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        bits.append(loss.item() / np.log(2))
        if tape.backward(loss):
            optim.clip_by_norm(params, 50.0)
            optimizer.lr = 1e-2 * (1 - t / (50 * chunks))
            optimizer.step()
            optimizer.zero_grad()
    print(f"trained on {32 * len(bits):,} characters: {np.mean(bits[-200:]):.2f} bits per character")
    fresh = example().CharacterModel(len(vocabulary), "lstm", hidden, np.random.default_rng(0))
    fresh.load_state_dict(model.state_dict())
    return fresh, codes[: 64 * WINDOW]


def reading(model: Any, codes: np.ndarray, schedule: Any) -> Callable[[], tg.Sweep]:
    """A function that reads the next character, sweeps, and returns the sweep."""
    tape, state, at = tg.CapacitorTape(schedule), model.cell.initial_state(1), 0

    def step() -> tg.Sweep:
        nonlocal state, at
        with tape:
            logits, state = model(codes[at : at + 1], state)
            loss = tg.softmax_cross_entropy(logits, codes[at + 1 : at + 2])
        sweep = tape.backward(loss)
        assert sweep is not None
        for p in model.parameters():
            p.grad = None
        at = (at + 1) % (len(codes) - 1)
        return sweep

    return step


def compared(model: Any, codes: np.ndarray, eps: float, steps: int) -> dict[str, Any]:
    """Errors and steps, sweep by sweep, over windows that are full."""
    params = model.parameters()
    full = reading(model, codes, tg.Sliding(WINDOW))
    ended = reading(model, codes, tg.Tolerance(eps, tg.Sliding(WINDOW)))
    errors, swept = [], []
    for t in range(WINDOW + steps):
        exact, short = full(), ended()
        if t >= WINDOW:
            a, b = (np.concatenate([s.gradients[p].ravel() for p in params]) for s in (short, exact))
            errors.append(float(np.linalg.norm(a - b) / np.linalg.norm(b)))
            swept.append(short.segments)
    return {
        "fewer_steps": round(WINDOW * len(swept) / sum(swept), 3),
        "steps_swept_median": float(np.median(swept)),
        "error_median": float(f"{np.median(errors):.3g}"),
        "error_99": float(f"{np.quantile(errors, 0.99):.3g}"),
        "error_worst": float(f"{max(errors):.3g}"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="a short training, few sweeps, written to runs/")
    options = parser.parse_args()
    rounds, chunks, steps = (3, 20, 60) if options.quick else (options.rounds, 250, 1000)
    model, codes = trained(options.hidden, chunks)
    results = {}
    loops = {"full window": reading(model, codes, tg.Sliding(WINDOW))}
    for eps in TOLERANCES:
        results[f"{eps:g}"] = compared(model, codes, eps, steps)
        loops[f"{eps:g}"] = reading(model, codes, tg.Tolerance(eps, tg.Sliding(WINDOW)))

    def some(step: Callable[[], tg.Sweep], count: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                step()

        return run

    for step in loops.values():
        some(step, WINDOW)()
    taken = paired.seconds_of({name: some(step, 10) for name, step in loops.items()}, rounds)
    for name, found in results.items():
        found["faster_than_full"] = paired.ratio(taken, "full window", name)
    paired.show(
        f"window {WINDOW}, trained LSTM of {options.hidden}, {steps} sweeps",
        ["eps", "× fewer steps", "steps, median", "error, median", "99 %", "worst", "× faster a step"],
        [
            [name, *list(found.values())[:5], found["faster_than_full"]["median"]]
            for name, found in results.items()
        ],
    )
    settings = {"window": WINDOW, "hidden": options.hidden, "sweeps": steps}
    paired.write("tolerance", {**settings, "eps": results}, options.quick)


if __name__ == "__main__":
    main()
