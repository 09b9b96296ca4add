"""The truth that every kernel is held against: one element at a time, in float64, from the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = Any


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))


def lstm_step(x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, Array]:
    """One step of an LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000).

    Shapes: x (batch, n_in), h and c (batch, n), w_x (n_in, 4n), w_h (n, 4n), b (4n,) -> h', c' (batch, n).
    The columns of the weights are the input, forget, cell and output gates.
    """
    batch, n = h.shape
    h_next, c_next = np.zeros((batch, n)), np.zeros((batch, n))
    for row in range(batch):
        for unit in range(n):
            z = [float(b[g * n + unit]) for g in range(4)]
            for g in range(4):
                for k in range(x.shape[1]):
                    z[g] += float(x[row, k]) * float(w_x[k, g * n + unit])
                for k in range(n):
                    z[g] += float(h[row, k]) * float(w_h[k, g * n + unit])
            i, f, g_, o = sigmoid(z[0]), sigmoid(z[1]), math.tanh(z[2]), sigmoid(z[3])
            c_next[row, unit] = f * float(c[row, unit]) + i * g_
            h_next[row, unit] = o * math.tanh(c_next[row, unit])
    return h_next, c_next


def softmax_cross_entropy(logits: Array, labels: Array) -> float:
    """Mean of -ln softmax(logits)[label]. Shapes: (batch, classes), (batch,) -> scalar."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(float(z) for z in row)
        total += top + math.log(sum(math.exp(float(z) - top) for z in row)) - float(row[label])
    return total / len(labels)
