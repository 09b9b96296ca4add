"""What Numba's kernels on a GPU compute for arrays of CuPy, and when they do: `choice.py` asks here.

They do for float32 and float64 on the device that is current, if Numba can compile for it; else CuPy's functions
serve, which `cpu.py` calls. A recurrent step of few rows is one kernel in CUDA C++ (`cuda/steps.py`), where that takes
less time than two products and Numba's. What is made is made by CuPy, so that it comes from CuPy's allocator.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import cpu, gpu, gpu_cupy
from .cuda import steps
from .gpu_cupy import launch
from .gpu_launch import REALS, Kernel

Array = Any
INT64 = np.dtype(np.int64)

# A launch's arguments have 4 KB, and each of Adam's five lists takes 56 bytes an array.
MOST_LISTED = 12


def serves(array: Array, *others: Array) -> bool:
    """Whether kernels here take these arrays of CuPy, whatever their strides: one real dtype, a device that is usable."""
    dtype = array.dtype
    return dtype in REALS and all(a.dtype is dtype for a in others) and gpu_cupy.usable(array)


def in_order(array: Array, dtype: Any) -> Array:
    """`array` of this dtype, C-ordered; itself if it is so already."""
    if array.dtype is dtype and array.flags.c_contiguous:
        return array
    return sys.modules["cupy"].ascontiguousarray(array, dtype)


def room(shape: tuple[int, ...], dtype: Any) -> Array:
    return sys.modules["cupy"].empty(shape, dtype)


# -- recurrent steps -----------------------------------------------------------------------------------

# What finishes a step after its products, or begins its pullback, in arrays that the caller made.
lstm_gates = functools.partial(launch, gpu.lstm_gates)
gru_gates = functools.partial(launch, gpu.gru_gates)
rnn_gates = functools.partial(launch, gpu.rnn_gates)
lstm_pullback_into = functools.partial(launch, gpu.lstm_step_pullback)


def product(a: Array, b: Array) -> Array:
    return in_order(cpu.product(a, b), a.dtype)


def fused(cell: str, *arrays: Array) -> steps.Step | None:
    """A whole step of the cell in one launch, if that is to make it."""
    # What multiplies is another function while a step is rehearsed for a CUDA graph, or captured in one.
    return steps.fused(cell, cpu.multiply is not None, *arrays)


def lstm_step(x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """`cpu.lstm_step`."""
    shape, dtype = c.shape, c.dtype
    h_next, c_next, tanh_c = room(shape, dtype), room(shape, dtype), room(shape, dtype)
    step = fused("lstm", x, h, c, w_x, w_h, b)
    if step is not None:
        gates = room((len(c), b.size), dtype)
        step((x, h, c, w_x, w_h, b, None), (h_next, c_next, gates, tanh_c))
        return h_next, c_next, gates, tanh_c
    gates, from_h = product(x, w_x), product(h, w_h)
    lstm_gates(from_h, in_order(b, dtype), in_order(c, dtype), gates, h_next, c_next, tanh_c)
    return h_next, c_next, gates, tanh_c


def lstm_step_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array
) -> tuple[Array, Array]:
    """`cpu.lstm_step_pullback`."""
    dtype = gates.dtype
    ct_z, ct_c_in = room(gates.shape, dtype), room(c.shape, dtype)
    lstm_pullback_into(*(in_order(a, dtype) for a in (ct_h, ct_c, c, gates, tanh_c)), ct_z, ct_c_in)
    return ct_z, ct_c_in


def gru_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> tuple[Array, ...]:
    """`cpu.gru_step`."""
    shape, dtype = h.shape, h.dtype
    h_next, inner = room(shape, dtype), room(shape, dtype)
    step = fused("gru", x, h, w_x, w_h, b, b_h)
    if step is not None:
        gates = room((len(h), b.size), dtype)
        step((x, h, None, w_x, w_h, b, b_h), (h_next, None, gates, inner))
        return h_next, gates, inner
    gates, from_h = product(x, w_x), product(h, w_h)
    gru_gates(from_h, *(in_order(a, dtype) for a in (b, b_h, h)), gates, inner, h_next)
    return h_next, gates, inner


def gru_step_pullback(ct: Array, h: Array, gates: Array, inner: Array) -> tuple[Array, Array, Array]:
    """`cpu.gru_step_pullback`."""
    dtype = gates.dtype
    ct_x, ct_h, through_z = room(gates.shape, dtype), room(gates.shape, dtype), room(h.shape, dtype)
    launch(gpu.gru_step_pullback, *(in_order(a, dtype) for a in (ct, h, gates, inner)), ct_x, ct_h, through_z)
    return ct_x, ct_h, through_z


def rnn_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> Array:
    """`cpu.rnn_step`."""
    step = fused("rnn", x, h, w_x, w_h, b)
    if step is not None:
        h_next = room(h.shape, h.dtype)
        step((x, h, None, w_x, w_h, b, None), (h_next, None, None, None))
        return h_next
    h_next, from_h = product(x, w_x), product(h, w_h)
    rnn_gates(from_h, in_order(b, h.dtype), h_next)
    return h_next


def rnn_step_pullback(ct: Array, y: Array) -> Array:
    """`cpu.rnn_step_pullback`."""
    ct_z = room(y.shape, y.dtype)
    launch(gpu.rnn_step_pullback, in_order(ct, y.dtype), in_order(y, y.dtype), ct_z)
    return ct_z


# -- losses and tables ---------------------------------------------------------------------------------


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """`cpu.softmax_cross_entropy`, of at least one row. A label out of range makes the loss NaN."""
    dtype = logits.dtype
    probabilities, losses, loss = room(logits.shape, dtype), room((labels.size,), dtype), room((), dtype)
    launch(gpu.cross_entropy_of_rows, in_order(logits, dtype), in_order(labels, INT64), probabilities, losses)
    launch(gpu.mean_loss, losses, loss)
    return loss, probabilities


def softmax_cross_entropy_pullback(ct: Array, labels: Array, probabilities: Array) -> Array:
    """`cpu.softmax_cross_entropy_pullback`, of a 0-d `ct`."""
    dtype = probabilities.dtype
    ct_logits = room(probabilities.shape, dtype)
    arrays = in_order(ct, dtype), in_order(labels, INT64), in_order(probabilities, dtype)
    launch(gpu.softmax_cross_entropy_pullback, *arrays, ct_logits)
    return ct_logits


def embedding_gradient(ct: Array, indices: Array, count: int) -> Array:
    """`cpu.embedding_gradient`, its sums in any order; an index out of range adds nothing."""
    dtype = ct.dtype
    gradient = sys.modules["cupy"].zeros((count, ct.shape[1]), dtype)
    faults = room((), INT64)  # counted, and of no use to a host that does not wait
    launch(gpu.embedding_gradient, in_order(ct, dtype), in_order(indices, INT64), gradient, faults)
    return gradient


# -- optimizers ----------------------------------------------------------------------------------------
#
# `verdict` and `steps` are 0-d arrays of int64, `rates` and `settings` one-dimensional, as the kernels say.


def approve(verdict: Array, steps: Array) -> None:
    """Counts the last step in `steps` if it was allowed, and allows the next."""
    launch(gpu.approve, verdict, steps)


def disapprove(grads: list[Array], verdict: Array) -> None:
    """A verdict of 0 if an element of `grads` is NaN or infinite."""
    for (some,) in parts(grads):
        launch(gpu.disapprove, some, verdict)


def listed(kernel: Kernel, lists: list[list[Array]], rates: Array, verdict: Array) -> None:
    """An optimizer's `kernel` over lists of arrays of any length."""
    for some in parts(*lists):
        launch(kernel, *some, rates, verdict)


def sgd(values: list[Array], grads: list[Array], news: list[Array], rates: Array, verdict: Array) -> None:
    listed(gpu.sgd, [values, grads, news], rates, verdict)


def momentum(
    values: list[Array], grads: list[Array], velocities: list[Array], news: list[Array],
    rates: Array, verdict: Array,
) -> None:  # fmt: skip
    listed(gpu.momentum, [values, grads, velocities, news], rates, verdict)


def adam(
    values: list[Array], grads: list[Array], means: list[Array], squares: list[Array], news: list[Array],
    settings: Array, steps: Array, verdict: Array,
) -> None:  # fmt: skip
    """Adam's step of parameters that have taken as many steps, which `steps` counts."""
    rates = room((7,), values[0].dtype)
    launch(gpu.adam_rates, settings, verdict, steps, rates)
    listed(gpu.adam, [values, grads, means, squares, news], rates, verdict)


def norm_brought_down(grads: list[Array], limit: float) -> Array:
    """Scale `grads` so that their joint norm is at most `limit`; the square of the norm before, 0-d float64."""
    begun = [some for (some,) in parts(grads)]
    counts = [gpu.parts(sum(a.size for a in some)) for some in begun]
    partial, squared, factor = (
        room((sum(counts),), np.float64),
        room((), np.float64),
        room((), grads[0].dtype),
    )
    for some, count, end in zip(begun, counts, itertools.accumulate(counts), strict=True):
        launch(gpu.squares, some, partial[end - count : end])
    launch(gpu.added, partial, squared)
    launch(gpu.clip_factor, squared, sys.modules["cupy"].full((), limit, np.float64), factor)
    for some in begun:
        launch(gpu.scale, some, factor)
    return squared


def parts(*lists: list[Array]) -> Iterator[list[list[Array]]]:
    """Lists of one length in parts that a launch takes."""
    for begin in range(0, len(lists[0]), MOST_LISTED):
        yield [each[begin : begin + MOST_LISTED] for each in lists]
