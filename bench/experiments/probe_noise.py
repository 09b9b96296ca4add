"""How many probes does an estimate of the window need? K of the copy task's plateau, by the probes averaged.

    python bench/experiments/probe_noise.py

The mean over 64 streams of an adjoint has a norm of its own even where its expectation is 0. It is taken for signal, and K
comes out too small to leave the plateau, on which a window needs K >= 6 to see what there is to copy. The model of
copy_task.py is trained with K = 4, which cannot leave it, and probed after some passes.
"""

from __future__ import annotations

import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import paired  # noqa: I001  (pins threads before NumPy is imported)

import copy_task
import numpy as np

import tapegrad as tg
from tapegrad.truncation.adaptive import shortest_window

PASSES, PROBES, ESTIMATES, K = (1, 4, 8), (1, 4, 16), 16, 4


def probe(model, inputs, targets, rng) -> tuple[np.ndarray, np.ndarray]:
    """One probe at a random place for each stream: φ by lag, and the running sum's mean over the streams."""
    lags, warm = copy_task.LAGS, copy_task.WARM
    # Due once, at the last step's loss; two probes for an estimate, so that the first one is held and not used up.
    schedule = tg.Adaptive(0.9, longest=lags, start=lags, every=1, probes=2)
    tape, state = tg.CapacitorTape(schedule), model.initial_state()
    steps = rng.integers(0, len(inputs) - warm - lags, copy_task.BATCH) + np.arange(warm + lags)[:, None]
    streams = np.arange(copy_task.BATCH)
    for x, y in zip(inputs[steps, streams], targets[steps, streams], strict=True):
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, y)
    tape.backward(loss)
    held = tape.schedule.state_dict()["probes"]
    return held[0][-1], held[1][-1]


def main() -> None:
    one_hot = np.eye(copy_task.SYMBOLS, dtype=np.float32)
    x, targets = copy_task.published(np.random.default_rng(20190705), 4000, 10)
    inputs, rng = one_hot[x], np.random.default_rng(0)
    model = copy_task.CopyModel(rng)
    params, grads = model.parameters(flat=True)
    copies, found, rows = np.ones(params.size, np.float32), [], []
    for passed in range(1, max(PASSES) + 1):
        tape, state = tg.CapacitorTape(tg.Sliding(2 * K - 1, stride=K)), model.initial_state()
        for t in range(len(inputs)):
            with tape:
                logits, state = model(inputs[t], state)
                loss = tg.softmax_cross_entropy(logits, targets[t])
            if sweep := tape.backward(loss):
                copy_task.step(params, grads, copies, sweep.losses, math.sqrt(sweep.losses))
        if passed not in PASSES:
            continue
        for probes in PROBES:
            estimates = []
            for _ in range(ESTIMATES // probes if probes < ESTIMATES else 2):
                taken = [probe(model, inputs, targets, rng) for _ in range(probes)]
                phi = np.mean([norms for norms, _ in taken], axis=0)
                g = np.linalg.norm(np.mean([sums for _, sums in taken], axis=0), axis=1)
                estimates.append(shortest_window(phi, g, 0.9))
            grads[:] = 0  # the probes'
            found.append({"passes": passed, "probes": probes, "K": estimates})
            rows.append([passed, probes, f"{np.mean(estimates):.1f}", min(estimates), max(estimates)])
    paired.show("delta = 0.9 on the plateau", ["passes", "probes averaged", "mean K", "least", "most"], rows)
    paired.write("probe_noise", found)


if __name__ == "__main__":
    main()
