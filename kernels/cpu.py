"""Kernels in NumPy: whole steps with few passes over memory."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any


def lstm_step(x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """One LSTM step and what its pullback needs. Shapes as in `reference.lstm_step`.

    Returns h', c', the activated gates (batch, 4n) as [i, f, g, o], and tanh c' (batch, n).
    """
    n = c.shape[-1]
    gates = x @ w_x
    gates += h @ w_h
    gates += b
    # sigmoid(z) = tanh(z / 2) / 2 + 1/2: halving three gates makes one tanh of all four.
    sigmoids = gates.reshape(*gates.shape[:-1], 4, n)
    sigmoids[..., (0, 1, 3), :] *= 0.5
    np.tanh(gates, out=gates)
    for gate in (0, 1, 3):
        part = sigmoids[..., gate, :]
        part *= 0.5
        part += 0.5
    i, f, g, o = (sigmoids[..., gate, :] for gate in range(4))
    c_next = f * c
    c_next += i * g
    tanh_c = np.tanh(c_next)
    return o * tanh_c, c_next, gates, tanh_c


def lstm_step_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array
) -> tuple[Array, Array]:
    """From the cotangents of h' and c' to those of the gates' inputs (batch, 4n) and of c (batch, n)."""
    n = c.shape[-1]
    i, f, g, o = (gates[..., k * n : (k + 1) * n] for k in range(4))
    ct_z = np.empty_like(gates)
    z_i, z_f, z_g, z_o = (ct_z[..., k * n : (k + 1) * n] for k in range(4))
    ct_c_next = ct_h * o
    ct_c_next -= ct_c_next * tanh_c * tanh_c
    ct_c_next += ct_c
    # d sigmoid = s - s², d tanh = 1 - t².
    np.multiply(gates, gates, out=ct_z)
    np.subtract(gates, ct_z, out=ct_z)
    np.multiply(g, g, out=z_g)
    np.subtract(1.0, z_g, out=z_g)
    z_i *= ct_c_next * g
    z_f *= ct_c_next * c
    z_g *= ct_c_next * i
    z_o *= ct_h * tanh_c
    ct_c_next *= f
    return ct_z, ct_c_next


def weight_gradient(x: Array, ct: Array) -> Array:
    """xᵀ ct. Shapes: (batch, n), (batch, m) -> (n, m)."""
    # For one row matmul takes a slow path: 38 µs for 128 x 256, where dot takes 7.
    return np.dot(x.T, ct) if len(x) == 1 else x.T @ ct


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """The mean loss over the batch, and softmax(logits)."""
    probabilities = logits - logits.max(axis=-1, keepdims=True)
    picked = np.take_along_axis(probabilities, labels[..., None], axis=-1)
    np.exp(probabilities, out=probabilities)
    total = probabilities.sum(axis=-1, keepdims=True)
    probabilities /= total
    return np.mean(np.log(total) - picked), probabilities


def softmax_cross_entropy_pullback(ct: Array, labels: Array, probabilities: Array) -> Array:
    """From the cotangent of the mean loss to that of the logits: (softmax - one-hot) ct / batch."""
    scale = ct / probabilities.dtype.type(labels.size)
    ct_logits = probabilities * scale
    rows = ct_logits.reshape(-1, ct_logits.shape[-1])
    rows[np.arange(labels.size), labels.ravel()] -= scale
    return ct_logits
