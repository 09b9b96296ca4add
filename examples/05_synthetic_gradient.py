"""Bridging a short window with a synthetic gradient, as in decoupled neural interfaces (DNI).

    python examples/05_synthetic_gradient.py

Chunks of 4 steps cannot learn to remember a bit for 4: the gradient ends at the chunk's left edge. But what
arrives there is known, `sweep.left_edge`, and a small model can learn to predict it from the state: its
target at one chunk's right edge is what the next chunk's left edge found. The prediction is handed in
beside the losses, as the seed of the state. Source: Jaderberg et al. 2017, arXiv:1608.05343.
"""

from __future__ import annotations

import argparse

import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

CHUNK, DELAY, BATCH, HIDDEN = 4, 4, 32, 16


def train(bridge: bool, steps: int, seed: int = 0) -> float:
    """Mean cross-entropy (nats) of recalling the bit of DELAY steps ago, over the last fifth; log 2 is a guess."""
    rng = np.random.default_rng(seed)
    cell, readout = nn.RNNCell(1, HIDDEN, rng=rng), nn.Linear(HIDDEN, 2, rng=rng)
    synthetic = nn.Linear(HIDDEN, HIDDEN, rng=rng)  # state -> the gradient that would come back to it
    for p in synthetic.parameters():
        p.value = 0.0 * p.value  # nothing comes back, says a model that knows nothing
    learner = optim.Adam([*cell.parameters(), *readout.parameters()], lr=3e-3)
    teacher = optim.Adam(synthetic.parameters(), lr=1e-2)
    tape, pupil = tg.CapacitorTape(tg.Chunked(CHUNK)), tg.Tape()
    bits = rng.integers(0, 2, (steps, BATCH))
    state, entered, losses = cell.initial_state(BATCH), None, []
    for t in range(DELAY, steps):
        with tape:
            out, state = cell(2.0 * bits[t][:, None].astype(np.float32) - 1.0, state)
            loss = BATCH * tg.softmax_cross_entropy(readout(out), bits[t - DELAY])
        losses.append(loss.item() / BATCH)
        roots, seeds = [loss], [1.0]
        if bridge and (t - DELAY + 1) % CHUNK == 0:  # the chunk's right edge: what will come from beyond?
            roots, seeds = [loss, state], [1.0, synthetic(state.value)]
        if sweep := tape.backward(roots, seeds):
            learner.step()
            learner.zero_grad()
            if entered is not None:  # and what did come, at the left edge, to the state that entered
                with pupil:
                    error = tg.mean((synthetic(entered.value) - sweep.left_edge[entered]) ** 2)
                pupil.backward(error)
                teacher.step()
                teacher.zero_grad()
            entered = state
    return float(np.mean(losses[-len(losses) // 5 :]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a sixth of the steps")
    steps = 2_000 if parser.parse_args().quick else 12_000
    print(
        f"recalling a bit after {DELAY} steps through chunks of {CHUNK}; a guess costs {np.log(2):.3f} nats"
    )
    print(f"  cut at the border:          {train(False, steps):.3f} nats")
    print(f"  with a synthetic gradient:  {train(True, steps):.3f} nats")
