"""Optimizers on a GPU, in Numba CUDA: whether to step, and the step, of many parameters in one launch.

`cpu.py`'s functions by the same names, of lists of arrays with one axis each (`gpu.py` says more). All arrays of a launch are of one
dtype. `news` may be `values`. With a verdict of 0 they become `values`, and nothing else changes.

A literal would make float32 arithmetic float64 in Numba, 2 to 64 times slower; and a list's arrays are reached by
their number alone, so there is one thread's row of the grid for each array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .gpu_launch import InTurn, cuda, kernel

Array = Any

# -- whether to step -----------------------------------------------------------------------------------


@kernel("(1)i (1)i", each="1")
def approve(verdict: Array, steps: Array) -> None:
    """A verdict of 1: nothing has been found against a step. `steps` counts those that the verdicts before allowed."""
    if cuda.grid(1) == 0:
        steps[0] += verdict[0]
        verdict[0] = 1


@kernel("(size)* (1)i", each="arrays, size")
def disapprove(grads: Array, verdict: Array) -> None:
    """0 if an element is NaN or infinite; else as it was. Whoever writes writes the same."""
    for k in range(cuda.blockIdx.y, len(grads), cuda.gridDim.y):
        grad = grads[k]
        for j in range(cuda.grid(1), grad.size, cuda.gridsize(1)):
            if not math.isfinite(grad[j]):
                verdict[0] = 0


finite = InTurn(
    "finite(grads, verdict, steps)",
    approve,
    disapprove,
    doc="`cpu.finite`: 1, or 0 if an element is not. `steps` as `approve` says.",
)

# -- the steps: reference.sgd, momentum, adam ----------------------------------------------------------


@kernel("(size)* (size)* (size)* (1) (1)i", each="arrays, size")
def sgd(values: Array, grads: Array, news: Array, rates: Array, verdict: Array) -> None:
    """`cpu.sgd`. rates = [lr]."""
    lr, agreed = rates[0], verdict[0] != 0
    for k in range(cuda.blockIdx.y, len(values), cuda.gridDim.y):
        value, grad, new = values[k], grads[k], news[k]
        for j in range(cuda.grid(1), value.size, cuda.gridsize(1)):
            new[j] = value[j] - lr * grad[j] if agreed else value[j]


@kernel("(size)* (size)* (size)* (size)* (2) (1)i", each="arrays, size")
def momentum(
    values: Array, grads: Array, velocities: Array, news: Array, rates: Array, verdict: Array
) -> None:
    """`cpu.momentum`. rates = [lr, mu]."""
    lr, mu, agreed = rates[0], rates[1], verdict[0] != 0
    for k in range(cuda.blockIdx.y, len(values), cuda.gridDim.y):
        value, grad, velocity, new = values[k], grads[k], velocities[k], news[k]
        for j in range(cuda.grid(1), value.size, cuda.gridsize(1)):
            if agreed:
                v = mu * velocity[j] + grad[j]
                velocity[j] = v
                new[j] = value[j] - lr * v
            else:
                new[j] = value[j]


@kernel("(4)d (1)i (1)i (7)", each="1")
def adam_rates(settings: Array, verdict: Array, steps: Array, rates: Array) -> None:
    """Counts a step, and what `adam` needs of [lr, beta1, beta2, eps] at it, corrections for the start included.

    rates = [lr / (1 - beta1^t), beta1, 1 - beta1, beta2, 1 - beta2, eps, 1 / √(1 - beta2^t)]: computed once, in
    float64, since 1 - beta2 in float32 would keep four digits, and each element would pay for two powers.
    """
    if cuda.grid(1) == 0 and verdict[0] != 0:
        steps[0] += 1
        t = np.float64(steps[0])
        lr, beta1, beta2, eps = settings[0], settings[1], settings[2], settings[3]
        one = np.float64(1)
        rates[0] = lr / (one - math.pow(beta1, t))
        rates[1], rates[2], rates[3], rates[4], rates[5] = beta1, one - beta1, beta2, one - beta2, eps
        rates[6] = one / math.sqrt(one - math.pow(beta2, t))


@kernel("(size)* (size)* (size)* (size)* (size)* (7) (1)i", each="arrays, size")
def adam(
    values: Array, grads: Array, means: Array, squares: Array, news: Array, rates: Array, verdict: Array
) -> None:
    """`cpu.adam`. `rates` are `adam_rates`'."""
    rate, beta1, rest1, beta2, rest2, eps, unbias = (
        rates[0], rates[1], rates[2], rates[3], rates[4], rates[5], rates[6],
    )  # fmt: skip
    agreed = verdict[0] != 0
    for k in range(cuda.blockIdx.y, len(values), cuda.gridDim.y):
        value, grad, mean, square, new = values[k], grads[k], means[k], squares[k], news[k]
        for j in range(cuda.grid(1), value.size, cuda.gridsize(1)):
            if agreed:
                g = grad[j]
                m = beta1 * mean[j] + rest1 * g
                s = beta2 * square[j] + rest2 * (g * g)
                mean[j], square[j] = m, s
                new[j] = value[j] - rate * (m / (math.sqrt(s) * unbias + eps))
            else:
                new[j] = value[j]
