"""The sliding window that a PyTorch user asked for, beside the recipe that is usually given for it.

    python bench/experiments/forum_window.py

The loop is x_t = w x_{t-1} with the loss x_t, w = 0.2, x_0 = 0.9, and a window of 3 that slides by 1.
Four columns: tapegrad's window; a fresh tape started 3 steps ago (the definition, computed the long way);
the formula, sum over the window of w^(lag) x_{t-1-lag}; and the recipe: detach at every step, keep the
graphs, walk back by hand and hand each state's `.grad` on. There the gradients of states are stored on
the states, and overlapping windows add to what the last window left behind.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# isort: off
import paired  # first of all: it pins the threads

# isort: on
import numpy as np

import tapegrad as tg

ROOT = pathlib.Path(__file__).resolve().parents[2]
W, X0, WINDOW, STEPS = 0.2, 0.9, 3, 8
NOTES = [0.9, 0.36, 0.108]  # what the first three steps must give
NOTES_RECIPE = 0.288  # what the recipe gives at the third


def by_tapegrad(w: float, x0: float, window: int, steps: int) -> list[float]:
    """The gradient of w at each step, from a window that slides by one."""
    tape, weight, x, grads = tg.CapacitorTape(window), tg.Parameter(np.array(w)), np.array(x0), []
    for _ in range(steps):
        with tape:
            x = weight * x
        grads.append(float(tape.backward(x).gradients[weight]))
    return grads


def by_fresh_tapes(w: float, x0: float, window: int, steps: int) -> list[float]:
    """The same by the definition: at each step, a tape started `window` steps ago from the state of then."""
    weight, states, grads = tg.Parameter(np.array(w)), [np.array(x0)], []
    for t in range(steps):
        x = states[max(0, t + 1 - window)]
        tape = tg.Tape()
        with tape:
            for _ in range(min(window, t + 1)):
                x = weight * x
        grads.append(float(tape.backward(x)[weight]))
        states.append(x.value)
    return grads


def by_formula(w: float, x0: float, window: int, steps: int) -> list[float]:
    """dx_t/dw over the window: the state of lag + 1 steps ago, carried forward by w^lag."""
    x = x0 * w ** np.arange(steps)
    return [
        float(sum(w**lag * x[t - lag] for lag in range(min(window, t + 1))))
        for t in range(steps)
    ]  # fmt: skip


def by_recipe(w: float, x0: float, window: int, steps: int) -> list[float]:
    """The recipe, by its definition: `adjoints[t]` is the `.grad` that state t keeps from window to window."""
    x, adjoints, grads = [x0], [0.0], []
    for t in range(steps):
        x.append(w * x[t])
        adjoints.append(0.0)
        seed, grad = 1.0, 0.0  # zero_grad clears the parameters, and nobody clears the states
        for lag in range(min(window, t + 1)):
            grad += seed * x[t - lag]
            adjoints[t - lag] += seed * w
            seed = adjoints[t - lag]
        grads.append(grad)
    return grads


def by_recipe_in_torch(w: float, x0: float, window: int, steps: int) -> list[float] | None:
    """The recipe in PyTorch; None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    weight = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    output, kept, grads = torch.tensor(x0, dtype=torch.float64), [], []
    for _ in range(steps):
        entering = output.detach().requires_grad_()
        output = weight * entering
        kept = [*kept, (entering, output)][-window:]
        weight.grad = None
        output.backward(retain_graph=True)
        for (_, older_output), (newer_input, _) in zip(reversed(kept[:-1]), reversed(kept[1:]), strict=True):
            older_output.backward(newer_input.grad, retain_graph=True)
        grads.append(weight.grad.item())
    return grads


def plot(results: dict, path: pathlib.Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    steps = np.arange(1, STEPS + 1)
    axes.semilogy(
        steps, results["recipe"], "s--", color="C3", label="the recipe: gradients left on the states"
    )
    axes.semilogy(steps, results["window"], "o-", color="C0", label="CapacitorTape(3): local adjoints")
    axes.semilogy(steps, results["full"], ":", color="k", label="no truncation")
    axes.set(xlabel="step", ylabel="gradient of w", title="x_t = 0.2 x_{t-1}, window of 3, stride of 1")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    print(f"plot: {path.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="write to runs/, the committed results stay")
    quick = parser.parse_args().quick

    problem = (W, X0, WINDOW, STEPS)
    results = {
        "w": W,
        "x_0": X0,
        "window_length": WINDOW,
        "window": by_tapegrad(*problem),
        "fresh_tape": by_fresh_tapes(*problem),
        "formula": by_formula(*problem),
        "full": by_tapegrad(W, X0, STEPS, STEPS),
        "recipe": by_recipe(*problem),
        "recipe_in_torch": by_recipe_in_torch(*problem),
        "notes": NOTES,
        "notes_recipe_at_step_3": NOTES_RECIPE,
    }
    torch_column = results["recipe_in_torch"] or [float("nan")] * STEPS
    paired.show(
        f"gradient of w in x_t = w x_{{t-1}}, w = {W}, x_0 = {X0}, sliding window of {WINDOW}",
        ["step", "tapegrad", "fresh tape", "formula", "notes", "recipe", "recipe, PyTorch", "notes"],
        [
            [
                t + 1,
                *(f"{results[column][t]:.6g}" for column in ("window", "fresh_tape", "formula")),
                NOTES[t] if t < len(NOTES) else "",
                f"{results['recipe'][t]:.6g}",
                f"{torch_column[t]:.6g}",
                NOTES_RECIPE if t == 2 else "",
            ]
            for t in range(STEPS)
        ],
    )
    assert results["window"] == results["fresh_tape"], "a window is a fresh tape, bit for bit"
    np.testing.assert_allclose(results["window"], results["formula"], rtol=1e-12)
    np.testing.assert_allclose(results["window"][:3], NOTES, rtol=1e-12)
    np.testing.assert_allclose(results["recipe"][2], NOTES_RECIPE, rtol=1e-12)
    if results["recipe_in_torch"]:
        np.testing.assert_allclose(results["recipe_in_torch"], results["recipe"], rtol=1e-12)

    plot(results, paired.figure_of("forum_window", quick))
    paired.write("forum_window", results, quick)


if __name__ == "__main__":
    main()
