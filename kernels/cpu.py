"""Kernels in NumPy: whole steps with few passes over memory.

Shapes are those of `reference.py`. A function named `..._gates` finishes a step after its matrix products, in
arrays that the caller made; Numba's kernels (`compiled.py`) have the same names and arguments.

Steps, losses and optimizers take CuPy's arrays as well: what NumPy's functions are given an array of CuPy
they hand on to CuPy. What makes an array does so from another one, or asks `module_of`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any


def module_of(array: Array) -> Any:
    """The library of `array`: NumPy, or CuPy."""
    if type(array) is np.ndarray or isinstance(array, np.generic):
        return np
    return sys.modules[type(array).__module__.partition(".")[0]]


# -- products ------------------------------------------------------------------------------------------

# What multiplies arrays instead of `@`, while that may not be used: CuPy's cannot be part of a CUDA graph.
multiply: Callable[..., Array] | None = None


def product(a: Array, b: Array, out: Array = None) -> Array:
    """a b, in `out` if it is given."""
    if multiply is not None:
        return multiply(a, b, out)
    return a @ b if out is None else np.matmul(a, b, out=out)


def transposed_product(ct: Array, w: Array) -> Array:
    """ct wᵀ, C-ordered. Shapes: (batch, m), (n, m) -> (batch, n)."""
    # From two rows on BLAS takes w ctᵀ in two thirds of the time: 154 µs, and 8 to copy it back, against 234.
    few = len(ct) == 1 or type(ct) is not np.ndarray
    return product(ct, w.T) if few else np.ascontiguousarray((w @ ct.T).T)


def transposed_products(w: Array, rows: int) -> Callable[[Array], Array]:
    """ct ↦ ct wᵀ, for many ct of `rows` rows."""
    # A transposed copy of a matrix that fits the cache pays for itself at the second use: 159 µs for 32 x 1024
    # by 1024 x 256, where w ctᵀ takes 300. Up to 16 rows both take as long.
    if rows > FEW_ROWS and w.nbytes <= CACHE and type(w) is np.ndarray:
        turned = np.ascontiguousarray(w.T)
        return lambda ct: ct @ turned
    return lambda ct: transposed_product(ct, w)


FEW_ROWS = 16
CACHE = 1 << 21  # bytes


def weight_gradient(x: Array, ct: Array) -> Array:
    """xᵀ ct. Shapes: (batch, n), (batch, m) -> (n, m)."""
    # For one row matmul takes a slow path: 38 µs for 128 x 256, where dot takes 7.
    return np.dot(x.T, ct) if len(x) == 1 and type(x) is np.ndarray else product(x.T, ct)


# -- the LSTM ------------------------------------------------------------------------------------------


def lstm_gates(
    from_h: Array, b: Array, c: Array, gates: Array, h_next: Array, c_next: Array, tanh_c: Array
) -> None:
    """A step after its products: `gates` holds x w_x and becomes [i, f, g, o], `from_h` is h w_h."""
    n = c.shape[-1]
    gates += from_h
    gates += b
    # sigmoid(z) = tanh(z / 2) / 2 + 1/2: halving three gates makes one tanh of all four.
    sigmoids = gates.reshape(*gates.shape[:-1], 4, n)
    for part in (sigmoids[..., :2, :], sigmoids[..., 3, :]):
        part *= 0.5
    np.tanh(gates, out=gates)
    for gate in (0, 1, 3):
        part = sigmoids[..., gate, :]
        part *= 0.5
        part += 0.5
    i, f, g, o = (sigmoids[..., gate, :] for gate in range(4))
    np.multiply(f, c, out=c_next)
    c_next += i * g
    np.tanh(c_next, out=tanh_c)
    np.multiply(o, tanh_c, out=h_next)


def lstm_step(x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """One LSTM step and what its pullback needs.

    Returns h', c', the activated gates (batch, 4n) as [i, f, g, o], and tanh c' (batch, n).
    """
    gates, from_h = product(x, w_x), product(h, w_h)
    dtype = np.result_type(gates.dtype, from_h.dtype, b.dtype, c.dtype)
    gates = gates.astype(dtype, copy=False)
    h_next, c_next, tanh_c = (np.empty_like(c, dtype) for _ in range(3))
    lstm_gates(from_h, b, c, gates, h_next, c_next, tanh_c)
    return h_next, c_next, gates, tanh_c


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


# -- the GRU -------------------------------------------------------------------------------------------


def gru_gates(
    from_h: Array, b: Array, b_h: Array, h: Array, gates: Array, inner: Array, h_next: Array
) -> None:
    """A step after its products: `gates` holds x w_x and becomes [r, z, n]; `inner` becomes the last part of
    h w_h + b_h, which r multiplies."""
    n = h.shape[-1]
    gates += b
    from_h = from_h + b_h
    rz, r, z, candidate = gates[..., : 2 * n], gates[..., :n], gates[..., n : 2 * n], gates[..., 2 * n :]
    rz += from_h[..., : 2 * n]
    rz *= 0.5
    np.tanh(rz, out=rz)
    rz *= 0.5
    rz += 0.5
    inner[...] = from_h[..., 2 * n :]
    candidate += r * inner
    np.tanh(candidate, out=candidate)
    np.subtract(h, candidate, out=h_next)
    h_next *= z
    h_next += candidate


def gru_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> tuple[Array, ...]:
    """One GRU step and what its pullback needs: h', the gates (batch, 3n) as [r, z, n], and `inner` (batch, n)."""
    gates, from_h = product(x, w_x), product(h, w_h)
    dtype = np.result_type(gates.dtype, from_h.dtype, b.dtype, b_h.dtype)
    gates = gates.astype(dtype, copy=False)
    h_next, inner = np.empty_like(h, dtype), np.empty_like(h, dtype)
    gru_gates(from_h, b, b_h, h, gates, inner, h_next)
    return h_next, gates, inner


def gru_step_pullback(ct: Array, h: Array, gates: Array, inner: Array) -> tuple[Array, Array, Array]:
    """From the cotangent of h' to those of x w_x and of h w_h (batch, 3n each), and of h itself through z."""
    n = h.shape[-1]
    r, z, candidate = (gates[..., k * n : (k + 1) * n] for k in range(3))
    ct_x = np.empty_like(gates)
    x_r, x_z, x_n = (ct_x[..., k * n : (k + 1) * n] for k in range(3))
    through_z = ct * z
    np.subtract(ct, through_z, out=x_n)
    x_n -= x_n * candidate * candidate
    np.multiply(gates[..., : 2 * n], gates[..., : 2 * n], out=ct_x[..., : 2 * n])
    np.subtract(gates[..., : 2 * n], ct_x[..., : 2 * n], out=ct_x[..., : 2 * n])
    x_r *= x_n * inner
    x_z *= ct * (h - candidate)
    ct_h = ct_x.copy()
    ct_h[..., 2 * n :] *= r
    return ct_x, ct_h, through_z


# -- Elman's network -----------------------------------------------------------------------------------


def rnn_gates(from_h: Array, b: Array, h_next: Array) -> None:
    """A step after its products: `h_next` holds x w_x and becomes h', `from_h` is h w_h."""
    h_next += from_h
    h_next += b
    np.tanh(h_next, out=h_next)


def rnn_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> Array:
    """One step of Elman's network: h'."""
    h_next = product(x, w_x) + product(h, w_h)
    h_next = h_next.astype(np.result_type(h_next.dtype, b.dtype), copy=False)
    h_next += b
    return np.tanh(h_next, out=h_next)


def rnn_step_pullback(ct: Array, y: Array) -> Array:
    """From the cotangent of h' = y to that of what tanh was applied to."""
    ct_z = ct * y
    ct_z *= y
    return np.subtract(ct, ct_z, out=ct_z)


# -- losses and tables ---------------------------------------------------------------------------------


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
    rows[module_of(rows).arange(labels.size), labels.ravel()] -= scale
    return ct_logits


def embedding_gradient(ct: Array, indices: Array, count: int) -> Array:
    """Row i is the sum of the rows of `ct` whose index is i. Shapes: (k, size), (k,) -> (count, size)."""
    xp = module_of(ct)
    gradient = xp.zeros((count, ct.shape[1]), ct.dtype)
    xp.add.at(gradient, indices, ct)
    return gradient


# -- optimizers, on one flat buffer --------------------------------------------------------------------


def sgd(value: Array, grad: Array, new: Array, lr: float) -> bool:
    """new = value - lr grad; False, with `new` unfinished, if not all of `grad` is finite."""
    if not finite(grad):
        return False
    descend(value, grad, new, lr)
    return True


def descend(value: Array, grad: Array, new: Array, lr: float) -> None:
    """new = value - lr grad."""
    np.multiply(grad, -lr, out=new)
    new += value


def momentum(value: Array, grad: Array, velocity: Array, new: Array, lr: float, mu: float) -> None:
    """velocity = mu velocity + grad; new = value - lr velocity."""
    velocity *= mu
    velocity += grad
    np.multiply(velocity, -lr, out=new)
    new += value


def adam(
    value: Array, grad: Array, mean: Array, square: Array, new: Array,
    rate: float, beta1: float, beta2: float, eps: float, unbias: float,
) -> None:  # fmt: skip
    """Adam's step with both corrections for the start folded into `rate` (lr / (1 - beta1^t)) and `unbias`
    (1 / √(1 - beta2^t))."""
    np.multiply(grad, 1 - beta1, out=new)
    mean *= beta1
    mean += new
    np.multiply(grad, grad, out=new)
    new *= 1 - beta2
    square *= beta2
    square += new
    np.sqrt(square, out=new)
    new *= unbias
    new += eps
    np.divide(mean, new, out=new)
    new *= -rate
    new += value


def finite(grad: Array) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves the usual case in one pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(grad)) or np.isfinite(grad).all())


def squared_norm(grad: Array) -> float:
    """The sum of squares, in float64 where float32 overflows."""
    flat = grad.ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        squared = float(np.dot(flat, flat))
    return squared if np.isfinite(squared) else float(np.sum(np.square(flat, dtype=np.float64)))
