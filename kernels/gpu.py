"""Kernels on a GPU, in Numba CUDA: what stands between the matrix products (`gpu_recurrent.py`), and behind them.
The optimizers are `gpu_optimizers.py`'s.

`cpu.py`'s functions by the same names, in arrays that the caller made: the sources in the same order, then what is
written. Numbers that a caller would pass (learning rates, the step's count, limits) lie in device memory, since a
captured graph keeps the numbers it was captured with. Nothing raises on a GPU: an index out of range gives NaN or
is counted, and a `verdict` of 0 (a gradient is not finite) makes an optimizer change nothing. All but
`embedding_gradient` compute the same bits each time they run. The truth is `reference.py`'s.

A literal would make float32 arithmetic float64 in Numba, 2 to 64 times slower: hence `real(1)` for a one. What
calls `block_sum` stands in its file: Numba's simulator confuses threads that go from a file to another.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .gpu_launch import InTurn, Kernel, cuda, device, kernel
from .gpu_optimizers import adam as adam
from .gpu_optimizers import adam_rates as adam_rates
from .gpu_optimizers import approve as approve
from .gpu_optimizers import disapprove as disapprove
from .gpu_optimizers import finite as finite
from .gpu_optimizers import momentum as momentum
from .gpu_optimizers import sgd as sgd
from .gpu_recurrent import gru_gates as gru_gates
from .gpu_recurrent import gru_step_pullback as gru_step_pullback
from .gpu_recurrent import lstm_gates as lstm_gates
from .gpu_recurrent import lstm_step_pullback as lstm_step_pullback
from .gpu_recurrent import rnn_gates as rnn_gates
from .gpu_recurrent import rnn_step_pullback as rnn_step_pullback

Array = Any
DOUBLE = np.dtype(np.float64)

# -- what a block finds together -----------------------------------------------------------------------
#
# By halves through shared memory. Shuffles within a warp would save a few barriers, and the simulator has none.


@device
def block_sum(value: float, space: Array) -> float:
    """The sum of all threads' values, for each of them; the order of the additions depends on their number alone."""
    t = cuda.threadIdx.x
    cuda.syncthreads()  # until now a slower thread may be reading the last result
    space[t] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half:
            space[t] += space[t + half]
        cuda.syncthreads()
        half //= 2
    return space[0]


@device
def block_largest(value: float, space: Array) -> float:
    """The largest of all threads' values, for each of them. NaN may be passed over."""
    t = cuda.threadIdx.x
    cuda.syncthreads()
    space[t] = value
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if t < half and space[t + half] > space[t]:
            space[t] = space[t + half]
        cuda.syncthreads()
        half //= 2
    return space[0]


# -- the loss: reference.softmax_cross_entropy ---------------------------------------------------------


@kernel("(rows, classes) (rows)i (rows, classes) (rows)", block="rows", across="classes")
def cross_entropy_of_rows(logits: Array, labels: Array, probabilities: Array, losses: Array) -> None:
    """Each row's -ln softmax(logits)[label] and softmax; NaN where the label is out of range."""
    rows, classes = logits.shape
    space = cuda.shared.array(0, logits.dtype)
    real = logits.dtype.type
    t, threads = cuda.threadIdx.x, cuda.blockDim.x
    for row in range(cuda.blockIdx.x, rows, cuda.gridDim.x):
        top = real(-math.inf)
        for j in range(t, classes, threads):
            if logits[row, j] > top:
                top = logits[row, j]
        top = block_largest(top, space)
        total = real(0)
        for j in range(t, classes, threads):
            e = math.exp(logits[row, j] - top)
            probabilities[row, j] = e
            total += e
        total = block_sum(total, space)
        share = real(1) / total
        for j in range(t, classes, threads):
            probabilities[row, j] *= share
        if t == 0:
            label = labels[row]
            if 0 <= label < classes:
                losses[row] = math.log(total) - (logits[row, label] - top)
            else:
                losses[row] = real(math.nan)


@kernel("(rows) (1)", block="1", across="rows")
def mean_loss(losses: Array, loss: Array) -> None:
    """The mean, summed in float64; NaN of none."""
    space = cuda.shared.array(0, DOUBLE)
    total = np.float64(0)
    for row in range(cuda.threadIdx.x, losses.size, cuda.blockDim.x):
        total += losses[row]
    total = block_sum(total, space)
    if cuda.threadIdx.x == 0:
        loss[0] = total / losses.size if losses.size > 0 else math.nan


softmax_cross_entropy = InTurn(
    "softmax_cross_entropy(logits, labels, probabilities, losses, loss)",
    cross_entropy_of_rows,
    mean_loss,
    doc="""`cpu.softmax_cross_entropy`: the probabilities, each row's loss, and their mean. A label out of range
    makes it NaN. `probabilities` must not be `logits`.""",
)


@kernel("(1) (rows)i (rows, classes) (rows, classes)", each="rows, classes")
def softmax_cross_entropy_pullback(ct: Array, labels: Array, probabilities: Array, ct_logits: Array) -> None:
    """`cpu.softmax_cross_entropy_pullback`; NaN where the label is out of range. `ct_logits` may be `probabilities`."""
    rows, classes = probabilities.shape
    real = ct.dtype.type
    scale = ct[0] / real(rows)
    for row in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
        label = labels[row]
        known = 0 <= label < classes
        for j in range(cuda.grid(1), classes, cuda.gridsize(1)):
            of_label = scale if j == label else real(0)
            ct_logits[row, j] = probabilities[row, j] * scale - of_label if known else real(math.nan)


# -- tables: reference.embedding_gradient --------------------------------------------------------------


@device
def row_of(index: int, count: int) -> int:
    """The row that an index names, counted from the end if it is negative; -1 if there is none."""
    row = index if index >= 0 else index + count
    return row if 0 <= row < count else -1


@kernel("(k, size) (k)i (count, size) (1)i", each="k, size")
def embedding_gradient(ct: Array, indices: Array, gradient: Array, faults: Array) -> None:
    """Adds each row of `ct` to the row of `gradient` that its index names, and to `faults` the indices out of range.

    In whatever order the additions come: sums of repeated indices may differ in the last bits from run to run.
    """
    for k in range(cuda.blockIdx.y, indices.size, cuda.gridDim.y):
        row = row_of(indices[k], gradient.shape[0])
        if row < 0:
            if cuda.grid(1) == 0:
                cuda.atomic.add(faults, 0, 1)
        else:
            for j in range(cuda.grid(1), gradient.shape[1], cuda.gridsize(1)):
                cuda.atomic.add(gradient, (row, j), ct[k, j])


@kernel("(k)i (count, size) (k)i", each="k")
def order_by_row(indices: Array, gradient: Array, order: Array) -> None:
    """The positions of `indices` by the row of `gradient` they name, those of one row as they came.

    Each position counts how many precede it: quadratic work, but without memory of its own, so that it may be
    captured, and for the few thousand indices of a step less than a sort's many launches. For more, sort the rows
    (not the indices: -1 and count - 1 are one row) and call `add_by_row`.
    """
    count = gradient.shape[0]
    for k in range(cuda.grid(1), indices.size, cuda.gridsize(1)):
        row, before = row_of(indices[k], count), 0
        for m in range(indices.size):
            other = row_of(indices[m], count)
            if other < row or (other == row and m < k):
                before += 1
        order[before] = k


@kernel("(k, size) (k)i (k)i (count, size) (1)i", each="k, size")
def add_by_row(ct: Array, indices: Array, order: Array, gradient: Array, faults: Array) -> None:
    """`embedding_gradient`, given `order`: who finds a row's first index adds all of that row, one after the other."""
    count, size = gradient.shape
    for first in range(cuda.blockIdx.y, indices.size, cuda.gridDim.y):
        row = row_of(indices[order[first]], count)
        if row < 0:
            if cuda.grid(1) == 0:
                cuda.atomic.add(faults, 0, 1)
        elif first == 0 or row_of(indices[order[first - 1]], count) != row:
            for j in range(cuda.grid(1), size, cuda.gridsize(1)):
                total, k = gradient[row, j], first
                while k < indices.size and row_of(indices[order[k]], count) == row:
                    total += ct[order[k], j]
                    k += 1
                gradient[row, j] = total


embedding_gradient_in_order = InTurn(
    "embedding_gradient_in_order(ct, indices, order, gradient, faults)",
    order_by_row,
    add_by_row,
    doc="""`embedding_gradient` with the additions in the indices' order, as `cpu.embedding_gradient` has them, so
    to the same bits. `order` is work space.""",
)


# -- norms ---------------------------------------------------------------------------------------------


def parts(size: int) -> int:
    """Into how many sums `squared_norm` parts `size` squares: how long its `partial` should be."""
    return max(1, min(-(-size // 4096), 1024))


@kernel("(size)* (parts)d", block="parts", across="size")
def squares(grads: Array, partial: Array) -> None:
    """The sums of squares of the elements, parted among `partial`, in float64, where float32's do not overflow."""
    space = cuda.shared.array(0, DOUBLE)
    count, t, threads = partial.size, cuda.threadIdx.x, cuda.blockDim.x
    # By `partial`, not by the grid: so the sums are the same however many blocks share them.
    for part in range(cuda.blockIdx.x, count, cuda.gridDim.x):
        total = np.float64(0)
        for k in range(len(grads)):
            grad = grads[k]
            for j in range(part * threads + t, grad.size, count * threads):
                g = np.float64(grad[j])
                total += g * g
        total = block_sum(total, space)
        if t == 0:
            partial[part] = total


@kernel("(parts)d (1)d", block="1", across="parts")
def added(partial: Array, squared: Array) -> None:
    """The sum of the partial sums."""
    space = cuda.shared.array(0, DOUBLE)
    total = np.float64(0)
    for part in range(cuda.threadIdx.x, partial.size, cuda.blockDim.x):
        total += partial[part]
    total = block_sum(total, space)
    if cuda.threadIdx.x == 0:
        squared[0] = total


@kernel("(1)d (1)d (1)", each="1")
def clip_factor(squared: Array, limit: Array, factor: Array) -> None:
    """What brings a norm down to `limit`: 1 for one that is not above it, and for one that is not finite."""
    if cuda.grid(1) == 0:
        norm = math.sqrt(squared[0])
        factor[0] = limit[0] / norm if norm > limit[0] and math.isfinite(norm) else np.float64(1)


@kernel("(size)* (1)", each="arrays, size")
def scale(grads: Array, factor: Array) -> None:
    """grad = factor grad."""
    by = factor[0]
    if by != type(by)(1):
        for k in range(cuda.blockIdx.y, len(grads), cuda.gridDim.y):
            grad = grads[k]
            for j in range(cuda.grid(1), grad.size, cuda.gridsize(1)):
                grad[j] *= by


squared_norm = InTurn(
    "squared_norm(grads, partial, squared)",
    squares,
    added,
    doc="`cpu.squared_norm` of all gradients together; `partial` is work space of `parts` sums.",
)
clip_by_norm = InTurn(
    "clip_by_norm(grads, partial, squared, limit, factor)",
    squares,
    added,
    clip_factor,
    scale,
    doc="scales `grads` so that their joint norm is at most `limit`.",
)


KERNELS = {name: made for name, made in list(globals().items()) if isinstance(made, Kernel)}


def warmup(dtypes: tuple[Any, ...] = (np.float32,)) -> None:
    """Compile every kernel for `dtypes`, and load it onto the GPU: neither may happen in a capture."""
    for dtype in dtypes:
        for made in KERNELS.values():
            made.dispatcher.compile(made.signature(dtype))
