"""An LSTM's sliding window written out in NumPy: what a patient person reaches without a library.

Every step keeps the factors by which its backward step multiplies, computed once; the sweep is six lines and one
product a step; the weights' gradients of all steps are one product at the end. Old activations, today's weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .work import Contender, Work


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros in float32 that start on a border of 64 bytes."""
    size = int(np.prod(shape))
    raw = np.zeros(size + 16, np.float32)
    start = -raw.ctypes.data % 64 // 4
    return raw[start : start + size].reshape(shape)


class ByHand(Contender):
    """One LSTM layer. Rings of the window's inputs and factors; their phase does not matter to the sum at the end."""

    weights = "current"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        batch, n, window = work.batch, work.hidden, work.window
        drawn = work.parameters()
        self.w = aligned((2 * n + 1, 4 * n))  # x, h and 1, stacked, times this are the gates
        self.w[:] = np.concatenate([drawn["w_x"], drawn["w_h"], drawn["b"][None]])
        self.w_h = self.w[n : 2 * n]
        self.inputs = aligned((window, batch, 2 * n + 1))
        self.inputs[..., -1] = 1
        self.factors = aligned((window, batch, 4, n))  # of the cotangents of i, f, g, o
        self.to_c, self.forgets = aligned((window, batch, n)), aligned((window, batch, n))
        self.deltas = aligned((window, batch, 4, n))
        self.gates = aligned((batch, 4, n))
        self.h, self.c, self.tanh_c = aligned((batch, n)), aligned((batch, n)), aligned((batch, n))
        self.ct_h, self.ct_c, self.work_h = aligned((batch, n)), aligned((batch, n)), aligned((batch, n))
        self.ct_h_turned = aligned((n, batch))
        self.change = aligned(self.w.shape)
        # sigmoid(z) = tanh(z / 2) / 2 + 1/2: one tanh for all four gates
        self.scale = np.array([0.5, 0.5, 1, 0.5], np.float32)[:, None]
        self.shift = np.array([0.5, 0.5, 0, 0.5], np.float32)[:, None]
        self.at = 0

    def forward(self, x: np.ndarray) -> None:
        """One step of the stream: the state moves on, and the slot keeps what the sweep multiplies by."""
        n, k, z = self.work.hidden, self.at, self.gates
        inputs, factors = self.inputs[k], self.factors[k]
        inputs[:, :n], inputs[:, n : 2 * n] = x, self.h
        np.dot(inputs, self.w, out=z.reshape(self.work.batch, 4 * n))
        z *= self.scale
        np.tanh(z, out=z)
        z *= self.scale
        z += self.shift
        i, f, g, o = (z[:, gate] for gate in range(4))
        # d tanh = 1 - tanh², d sigmoid = s (1 - s), each times what the gate is multiplied by
        np.multiply(z, z, out=factors)
        np.subtract(z, factors, out=factors)
        factors[:, 2] = 1 - g * g
        factors[:, 0] *= g
        factors[:, 1] *= self.c
        factors[:, 2] *= i
        self.forgets[k] = f
        self.c *= f
        self.c += i * g
        tanh_c = np.tanh(self.c, out=self.tanh_c)
        factors[:, 3] *= tanh_c
        np.multiply(o, tanh_c, out=self.h)
        to_c = self.to_c[k]
        np.multiply(self.h, tanh_c, out=to_c)
        np.subtract(o, to_c, out=to_c)
        self.at = (k + 1) % self.work.window

    def sweep(self, target: np.ndarray) -> None:
        """All deltas of the window, from the loss of the newest step."""
        window, batch, n = self.work.window, self.work.batch, self.work.hidden
        ct_h, ct_c, work = self.ct_h, self.ct_c, self.work_h
        np.subtract(self.h, target, out=ct_h)
        ct_h *= 2 / ct_h.size
        ct_c[:] = 0
        for age in range(window):
            k = (self.at - 1 - age) % window
            delta, factors = self.deltas[k], self.factors[k]
            np.multiply(ct_h, self.to_c[k], out=work)
            ct_c += work
            np.multiply(factors[:, :3], ct_c[:, None], out=delta[:, :3])
            np.multiply(factors[:, 3], ct_h, out=delta[:, 3])
            ct_c *= self.forgets[k]
            if age < window - 1:
                if batch == 1:
                    np.dot(self.w_h, delta.reshape(4 * n), out=ct_h.reshape(n))
                else:  # quicker than delta @ w_h.T
                    np.dot(self.w_h, delta.reshape(batch, 4 * n).T, out=self.ct_h_turned)
                    ct_h[:] = self.ct_h_turned.T

    def step(self, k: int) -> None:
        self.forward(self.xs[k])
        self.sweep(self.targets[k])
        rows = self.work.window * self.work.batch
        np.dot(self.inputs.reshape(rows, -1).T, self.deltas.reshape(rows, -1), out=self.change)
        self.change *= -self.lr
        self.w += self.change

    def parameters(self) -> dict[str, Any]:
        n = self.work.hidden
        return {"w_x": self.w[:n].copy(), "w_h": self.w_h.copy(), "b": self.w[2 * n].copy()}
