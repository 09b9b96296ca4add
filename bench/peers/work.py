"""What the contenders of `window.py` and `chunk.py` are given, and what is asked of them.

A `Work` is a recurrent network, a stream of inputs and targets, and a window. A `Contender` takes steps of that
stream. Its gradient is read from its parameters: they are moved by one step with a known learning rate,
so it is the gradient that was used, whatever the library hides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

DISTINCT = 128  # steps of the stream before it repeats
PROBE_RATE = 64.0  # large, so that the difference of two float32 parameters is mostly gradient


@dataclasses.dataclass(frozen=True)
class Work:
    """A network `kind` of `hidden` units, as many inputs, a `window`. Losses are mean((h - target)²) of the newest step.

    kind: "lstm" (w_x, w_h, b: gates i, f, g, o), "gru" (and b_h: gates r, z, n), "lstm2" (two layers; w_x2, w_h2, b2).
    """

    kind: str
    batch: int
    hidden: int
    window: int
    lr: float = 0.1

    @property
    def title(self) -> str:
        """One line."""
        return f"{self.kind}, batch {self.batch}, hidden {self.hidden}, window {self.window}"

    def parameters(self) -> dict[str, np.ndarray]:
        """Fresh float32 arrays: weights (in, gates · hidden), uniform in ±1/√hidden; a forget gate's bias is 1."""
        rng, n = np.random.default_rng(0), self.hidden
        gates = 3 if self.kind == "gru" else 4
        drawn = {}
        for layer in ["", "2"] if self.kind == "lstm2" else [""]:
            drawn[f"w_x{layer}"], drawn[f"w_h{layer}"] = (
                rng.uniform(-1, 1, (n, gates * n)) / n**0.5 for _ in range(2)
            )
            drawn[f"b{layer}"] = rng.uniform(-1, 1, gates * n) / n**0.5
            if self.kind == "gru":
                drawn["b_h"] = rng.uniform(-1, 1, gates * n) / n**0.5
            else:
                drawn[f"b{layer}"][n : 2 * n] += 1
        return {name: array.astype(np.float32) for name, array in drawn.items()}

    def stream(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, both (DISTINCT, batch, hidden), float32, read-only."""
        rng = np.random.default_rng(1)
        xs, targets = rng.standard_normal((2, DISTINCT, self.batch, self.hidden)).astype(np.float32)
        for array in (xs, targets):
            array.flags.writeable = False
        return xs, targets * np.float32(0.5)

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        """Of h and c, of one layer after the other."""
        return [(self.batch, self.hidden)] * {"gru": 1, "lstm": 2, "lstm2": 4}[self.kind]


class Contender:
    """Takes steps of the stream of `work`; a subclass says how. `weights` is its policy, `lr` may be changed."""

    weights = "replay"

    def __init__(self, work: Work) -> None:
        self.work, self.lr, self.taken = work, work.lr, 0
        self.xs, self.targets = self.work.stream()

    def step(self, k: int) -> None:
        """Read input and target `k` of the stream, forward, backward through the window, and an SGD step."""
        raise NotImplementedError

    def parameters(self) -> dict[str, np.ndarray]:
        """Copies, named and shaped as those of the Work."""
        raise NotImplementedError

    def fill(self, k: int) -> None:
        """Read input `k` while the window is not full: nothing is learnt."""
        lr, self.lr = self.lr, 0.0
        self.step(k)
        self.lr = lr

    def run(self, steps: int) -> None:
        """The next `steps` steps, after filling the window if these are the first."""
        if not self.taken:
            for k in range(self.work.window - 1):
                self.fill(k)
            self.taken = self.work.window - 1
        for t in range(self.taken, self.taken + steps):
            self.step(t % DISTINCT)
        self.taken += steps
        self.finish()

    def finish(self) -> None:
        """Wait for what is still being computed."""

    def gradient(self) -> np.ndarray:
        """The gradient of the next step, all parameters in one vector. Takes that step."""
        before, lr = self.vector(), self.lr
        self.lr = PROBE_RATE
        self.run(1)
        self.lr = lr
        return (before - self.vector()) / PROBE_RATE

    def vector(self) -> np.ndarray:
        """All parameters, sorted by name, in one vector of float64."""
        return np.concatenate([p.ravel() for _, p in sorted(self.parameters().items())]).astype(np.float64)


class Chunks(Contender):
    """Takes a chunk of `work.window` steps at a time, with a loss at every step's output: their sum.

    The state goes on from chunk to chunk, its gradient does not. `recorded` and `current` are the same here.
    """

    weights = "one a chunk"

    def fill(self, k: int) -> None:
        """Nothing has to be filled."""

    def step(self, k: int) -> None:
        start = 31 * k % (DISTINCT - self.work.window + 1)
        chunk = slice(start, start + self.work.window)
        self.chunk(self.xs[chunk], self.targets[chunk])

    def chunk(self, xs: Any, targets: Any) -> None:
        """Forward and backward over the chunk, and an SGD step."""
        raise NotImplementedError


class MirroredRing:
    """The newest `length` arrays as one contiguous view, oldest first: each is written twice, `length` rows apart."""

    def __init__(self, length: int, buffer: Any) -> None:
        self.length, self.buffer, self.at = length, buffer, 0

    def push(self, x: Any) -> Any:
        """The view, with `x` as its newest."""
        self.buffer[self.at] = x
        self.buffer[self.at + self.length] = x
        self.at = (self.at + 1) % self.length
        return self.buffer[self.at : self.at + self.length]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of b's norm."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
