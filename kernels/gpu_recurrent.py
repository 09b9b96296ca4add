"""Recurrent steps on a GPU, in Numba CUDA: what stands between their matrix products, forward and back.

`cpu.py`'s functions by the same names, in arrays that the caller made (`gpu.py` says more). A thread has one unit
of one row, all its gates, and reads all it needs before it writes: so what is written may be what was read,
where a docstring says so.

A literal would make float32 arithmetic float64 in Numba, 2 to 64 times slower: `type(z)(1)` is a one that does not.
"""

from __future__ import annotations

import math
from typing import Any

from .gpu_launch import cuda, device, kernel

Array = Any

# -- activations ---------------------------------------------------------------------------------------


@device
def sigmoid(z: float) -> float:
    """1 / (1 + e^-z). The exponential is of a number not above 0, and cannot overflow; NaN stays NaN."""
    one = type(z)(1)
    e = math.exp(-abs(z))
    return (one if z >= type(z)(0) else e) / (one + e)


# -- the LSTM: reference.lstm_step behind its products -------------------------------------------------


@kernel("(batch, 4n) (4n) (batch, n) (batch, 4n) (batch, n) (batch, n) (batch, n)", each="batch, n")
def lstm_gates(
    from_h: Array, b: Array, c: Array, gates: Array, h_next: Array, c_next: Array, tanh_c: Array
) -> None:
    """`cpu.lstm_gates`: `gates` holds x w_x and becomes [i, f, g, o], `from_h` is h w_h. `c_next` may be `c`."""
    batch, n = c.shape
    for row in range(cuda.blockIdx.y, batch, cuda.gridDim.y):
        for j in range(cuda.grid(1), n, cuda.gridsize(1)):
            i = sigmoid(gates[row, j] + from_h[row, j] + b[j])
            f = sigmoid(gates[row, n + j] + from_h[row, n + j] + b[n + j])
            g = math.tanh(gates[row, 2 * n + j] + from_h[row, 2 * n + j] + b[2 * n + j])
            o = sigmoid(gates[row, 3 * n + j] + from_h[row, 3 * n + j] + b[3 * n + j])
            new = f * c[row, j] + i * g
            bounded = math.tanh(new)
            gates[row, j], gates[row, n + j], gates[row, 2 * n + j], gates[row, 3 * n + j] = i, f, g, o
            h_next[row, j], c_next[row, j], tanh_c[row, j] = o * bounded, new, bounded


@kernel("(batch, n) (batch, n) (batch, n) (batch, 4n) (batch, n) (batch, 4n) (batch, n)", each="batch, n")
def lstm_step_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array, ct_z: Array, ct_c_in: Array
) -> None:
    """`cpu.lstm_step_pullback`. d sigmoid = s - s², d tanh = 1 - t². `ct_z` may be `gates`, `ct_c_in` may be `ct_c`."""
    batch, n = c.shape
    for row in range(cuda.blockIdx.y, batch, cuda.gridDim.y):
        for j in range(cuda.grid(1), n, cuda.gridsize(1)):
            i, f, g, o = gates[row, j], gates[row, n + j], gates[row, 2 * n + j], gates[row, 3 * n + j]
            bounded, ct = tanh_c[row, j], ct_h[row, j]
            through = ct * o
            ct_new = ct_c[row, j] + (through - through * bounded * bounded)
            ct_z[row, j] = ct_new * g * (i - i * i)
            ct_z[row, n + j] = ct_new * c[row, j] * (f - f * f)
            ct_z[row, 2 * n + j] = ct_new * (i - i * g * g)
            ct_z[row, 3 * n + j] = ct * bounded * (o - o * o)
            ct_c_in[row, j] = ct_new * f


# -- the GRU: reference.gru_step behind its products ---------------------------------------------------


@kernel("(batch, 3n) (3n) (3n) (batch, n) (batch, 3n) (batch, n) (batch, n)", each="batch, n")
def gru_gates(
    from_h: Array, b: Array, b_h: Array, h: Array, gates: Array, inner: Array, h_next: Array
) -> None:
    """`cpu.gru_gates`: `gates` holds x w_x and becomes [r, z, n], `from_h` is h w_h; `inner` is its last part
    with its bias, which r multiplies. `h_next` may be `h`."""
    batch, n = h.shape
    for row in range(cuda.blockIdx.y, batch, cuda.gridDim.y):
        for j in range(cuda.grid(1), n, cuda.gridsize(1)):
            r = sigmoid(gates[row, j] + b[j] + from_h[row, j] + b_h[j])
            z = sigmoid(gates[row, n + j] + b[n + j] + from_h[row, n + j] + b_h[n + j])
            within = from_h[row, 2 * n + j] + b_h[2 * n + j]
            candidate = math.tanh(gates[row, 2 * n + j] + b[2 * n + j] + r * within)
            gates[row, j], gates[row, n + j], gates[row, 2 * n + j] = r, z, candidate
            inner[row, j] = within
            h_next[row, j] = candidate + z * (h[row, j] - candidate)


@kernel("(batch, n) (batch, n) (batch, 3n) (batch, n) (batch, 3n) (batch, 3n) (batch, n)", each="batch, n")
def gru_step_pullback(
    ct: Array, h: Array, gates: Array, inner: Array, ct_x: Array, ct_h: Array, ct_in: Array
) -> None:
    """`cpu.gru_step_pullback`. `ct_x` or `ct_h` may be `gates`, `ct_in` may be `ct`."""
    batch, n = h.shape
    for row in range(cuda.blockIdx.y, batch, cuda.gridDim.y):
        for j in range(cuda.grid(1), n, cuda.gridsize(1)):
            r, z, candidate = gates[row, j], gates[row, n + j], gates[row, 2 * n + j]
            ct_new = ct[row, j]
            kept = ct_new * z
            through = ct_new - kept
            x_n = through - through * candidate * candidate
            x_r = x_n * inner[row, j] * (r - r * r)
            x_z = ct_new * (h[row, j] - candidate) * (z - z * z)
            ct_x[row, j], ct_x[row, n + j], ct_x[row, 2 * n + j] = x_r, x_z, x_n
            ct_h[row, j], ct_h[row, n + j], ct_h[row, 2 * n + j] = x_r, x_z, x_n * r
            ct_in[row, j] = kept


# -- Elman's network: reference.rnn_step behind its products -------------------------------------------


@kernel("(batch, n) (n) (batch, n)", each="batch, n")
def rnn_gates(from_h: Array, b: Array, h_next: Array) -> None:
    """`cpu.rnn_gates`: `h_next` holds x w_x and becomes h', `from_h` is h w_h."""
    batch, n = h_next.shape
    for row in range(cuda.blockIdx.y, batch, cuda.gridDim.y):
        for j in range(cuda.grid(1), n, cuda.gridsize(1)):
            h_next[row, j] = math.tanh(h_next[row, j] + from_h[row, j] + b[j])


@kernel("(size) (size) (size)", each="size")
def rnn_step_pullback(ct: Array, y: Array, ct_z: Array) -> None:
    """`cpu.rnn_step_pullback`, of any shape as one axis. `ct_z` may be `ct` or `y`."""
    for j in range(cuda.grid(1), ct.size, cuda.gridsize(1)):
        ct_z[j] = ct[j] - ct[j] * y[j] * y[j]
