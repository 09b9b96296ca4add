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


def gru_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> Array:
    """One step of a gated recurrent unit (Cho et al. 2014, with the reset gate behind the product, as in cuDNN).

    Shapes: x (batch, n_in), h (batch, n), w_x (n_in, 3n), w_h (n, 3n), b and b_h (3n,) -> h' (batch, n).
    The columns of the weights are the reset gate, the update gate and the candidate.
    """
    batch, n = h.shape
    h_next = np.zeros((batch, n))
    for row in range(batch):
        for unit in range(n):
            from_x, from_h = (
                [float(b[g * n + unit]) for g in range(3)],
                [float(b_h[g * n + unit]) for g in range(3)],
            )
            for g in range(3):
                for k in range(x.shape[1]):
                    from_x[g] += float(x[row, k]) * float(w_x[k, g * n + unit])
                for k in range(n):
                    from_h[g] += float(h[row, k]) * float(w_h[k, g * n + unit])
            r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
            candidate = math.tanh(from_x[2] + r * from_h[2])
            h_next[row, unit] = (1 - z) * candidate + z * float(h[row, unit])
    return h_next


def rnn_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> Array:
    """One step of Elman's network (1990). Shapes: x (batch, n_in), h (batch, n) -> h' (batch, n)."""
    batch, n = h.shape
    h_next = np.zeros((batch, n))
    for row in range(batch):
        for unit in range(n):
            z = float(b[unit])
            for k in range(x.shape[1]):
                z += float(x[row, k]) * float(w_x[k, unit])
            for k in range(n):
                z += float(h[row, k]) * float(w_h[k, unit])
            h_next[row, unit] = math.tanh(z)
    return h_next


def lstm_sequence(
    xs: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array
) -> tuple[Array, Array, Array]:
    """Step after step. Shapes: xs (steps, batch, n_in) -> every h (steps, batch, n), the last h and c."""
    hs = []
    for x in xs:
        h, c = lstm_step(x, h, c, w_x, w_h, b)
        hs.append(h)
    return np.array(hs), h, c


def gru_sequence(xs: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> tuple[Array, Array]:
    """Step after step: every h, and the last."""
    hs = []
    for x in xs:
        h = gru_step(x, h, w_x, w_h, b, b_h)
        hs.append(h)
    return np.array(hs), h


def rnn_sequence(xs: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, Array]:
    """Step after step: every h, and the last."""
    hs = []
    for x in xs:
        h = rnn_step(x, h, w_x, w_h, b)
        hs.append(h)
    return np.array(hs), h


def softmax_cross_entropy(logits: Array, labels: Array) -> float:
    """Mean of -ln softmax(logits)[label]. Shapes: (batch, classes), (batch,) -> scalar."""
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        top = max(float(z) for z in row)
        total += top + math.log(sum(math.exp(float(z) - top) for z in row)) - float(row[label])
    return total / len(labels)


def embedding_gradient(ct: Array, indices: Array, count: int) -> Array:
    """Each row of `ct` added to the row that its index names. Shapes: (k, size), (k,) -> (count, size)."""
    gradient = np.zeros((count, ct.shape[1]))
    for row, index in zip(ct, indices, strict=True):
        for j in range(ct.shape[1]):
            gradient[index, j] += float(row[j])
    return gradient


def sgd(value: Array, grad: Array, lr: float) -> Array:
    """w - lr g, element by element."""
    return np.array([float(w) - lr * float(g) for w, g in zip(value, grad, strict=True)])


def momentum(value: Array, grad: Array, velocity: Array, lr: float, mu: float) -> tuple[Array, Array]:
    """The new value and velocity v = mu v + g; w - lr v."""
    moved = np.array([mu * float(v) + float(g) for v, g in zip(velocity, grad, strict=True)])
    return sgd(value, moved, lr), moved


def adam(
    value: Array, grad: Array, mean: Array, square: Array, lr: float, betas: tuple[float, float], eps: float, t: int
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Step t (from 1) of algorithm 1 of Kingma & Ba 2015: the new value, and both running averages."""
    new, means, squares = [], [], []
    for w, g, m, s in zip(map(float, value), map(float, grad), mean, square, strict=True):
        means.append(betas[0] * float(m) + (1 - betas[0]) * g)
        squares.append(betas[1] * float(s) + (1 - betas[1]) * g * g)
        unbiased, spread = means[-1] / (1 - betas[0] ** t), squares[-1] / (1 - betas[1] ** t)
        new.append(w - lr * unbiased / (math.sqrt(spread) + eps))
    return np.array(new), np.array(means), np.array(squares)
