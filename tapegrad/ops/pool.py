"""Pooling: the largest element or the mean of each window, by which images become smaller.

The largest is picked: an index, which is constant, says from where. The mean is a sum over windows, axis by axis.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..backend.device import freeze, module_beside, on_device, put_beside
from ..core.primitive import Case, linear
from ..errors import ArgumentError
from .index import getitem
from .operands import value_of
from .shape import ravel, reshape
from .windows import (
    Lengths,
    Numbers,
    Padding,
    Pairs,
    elements,
    lengths,
    paddings,
    places,
    require_windows,
    with_axes,
)


def max_pool1d(x: Any, size: Lengths, stride: Lengths | None = None, padding: Padding = 0) -> Any:
    r"""The largest of each window, $y_{b,c,i} = \max_k x_{b,c,si+k-p}$. A tie goes to the first; padding is never it.

    Shapes: (batch, channels, n) -> (batch, channels, m). `stride` is `size` by default; `padding` as in `conv1d`,
    below `size`. What does not fill a window at the end is left out.
    """
    return max_pool("max_pool1d", 1, x, size, stride, padding)


def max_pool2d(x: Any, size: Lengths, stride: Lengths | None = None, padding: Padding = 0) -> Any:
    r"""The largest of each window of rows and columns. A tie goes to the first in C order. As `max_pool1d`.

    Shapes: (batch, channels, n, m) -> (batch, channels, …). `size`, `stride` and `padding` may be pairs.
    """
    return max_pool("max_pool2d", 2, x, size, stride, padding)


def avg_pool1d(x: Any, size: Lengths, stride: Lengths | None = None, padding: Padding = 0) -> Any:
    r"""The mean of each window, $y_{b,c,i} = \frac1{\mathrm{size}} \sum_k x_{b,c,si+k-p}$, in which padding counts as zeros.

    Shapes and arguments as `max_pool1d`.
    """
    return avg_pool("avg_pool1d", 1, x, size, stride, padding)


def avg_pool2d(x: Any, size: Lengths, stride: Lengths | None = None, padding: Padding = 0) -> Any:
    r"""The mean of each window of rows and columns, in which padding counts as zeros. As `max_pool2d`."""
    return avg_pool("avg_pool2d", 2, x, size, stride, padding)


def geometry(
    op: str, axes: int, x: Any, size: Any, stride: Any, padding: Any
) -> tuple[Any, Numbers, Numbers, Pairs]:
    """The arguments of a pooling as arrays and tuples, if they make sense."""
    x, size = with_axes(op, "x", x, axes), lengths(op, "size", size, axes)
    stride = size if stride is None else lengths(op, "stride", stride, axes)
    padding = paddings(op, padding, x.shape[2:], size, stride)
    if any(max(p) >= n for p, n in zip(padding, size, strict=True)):
        raise ArgumentError(
            f"{op}: `padding` must be below `size`, or a window has nothing else.\n"
            f"  padding: {padding}      size: {size}"
        )
    require_windows(op, x, size, padding)
    return x, size, stride, padding


def max_pool(op: str, axes: int, x: Any, size: Any, stride: Any, padding: Any) -> Any:
    x, size, stride, padding = geometry(op, axes, x, size, stride, padding)
    at = first_largest(value_of(x), size, stride, padding)
    return reshape(getitem(ravel(x), at.ravel()), at.shape)


def first_largest(x: Any, size: Numbers, stride: Numbers, padding: Pairs) -> Any:
    """Where the first largest element of each window is, counted in C order: constant by nature."""
    # Padding repeats the elements at the edge, which a window that reaches over the edge has anyway.
    xp = module_beside(x)
    wide = np.pad(x, ((0, 0), (0, 0), *padding), mode="edge") if any(map(sum, padding)) else x
    count = places(x.shape[2:], size, stride, padding)
    offsets = list(itertools.product(*map(range, size)))
    best = wide[elements(offsets[0], count, stride)].copy()
    which = xp.zeros(best.shape, np.min_scalar_type(len(offsets)))
    has_nan = x.dtype.kind == "f" and x.size and (on_device(x) or np.isnan(np.max(x)))
    for k, offset in enumerate(offsets[1:], 1):
        candidate = wide[elements(offset, count, stride)]
        better = candidate > best
        if has_nan:  # NaN is the largest, as in max
            better |= np.isnan(candidate)
        np.copyto(best, candidate, where=better)
        np.copyto(which, k, where=better)
    at = xp.arange(x.shape[0] * x.shape[1]).reshape(x.shape[:2] + (1,) * len(size))
    for axis, (n, m, s, (before, after)) in enumerate(zip(x.shape[2:], count, stride, padding, strict=True)):
        starts = (xp.arange(m) * s - before).reshape((m,) + (1,) * (len(size) - 1 - axis))
        position = put_beside([offset[axis] for offset in offsets], x)[which] + starts
        if before or after:
            np.clip(position, 0, n - 1, out=position)
        at = at * n + position
    return freeze(at)  # a recording keeps it without a copy


def avg_pool(op: str, axes: int, x: Any, size: Any, stride: Any, padding: Any) -> Any:
    x, size, stride, padding = geometry(op, axes, x, size, stride, padding)
    for axis in range(axes):
        x = window_sum(x, axis + 2, size[axis], stride[axis], padding[axis])
    return x / float(math.prod(size))


@linear(
    a=lambda ct, a_shape, axis, size, stride, padding: window_spread(
        ct, a_shape[axis], axis, size, stride, padding
    ),
    cases=[
        Case((2, 7), axis=1, size=3, stride=2, padding=(1, 0)),
        Case((5, 2), axis=0, size=2, stride=2, padding=(0, 0)),
        Case((0, 4), axis=1, size=1, stride=3, padding=(0, 0)),
    ],
)
def window_sum(xp, a, *, axis, size, stride, padding):
    r"""$y_i = \sum_{k < \mathrm{size}} a_{si+k-p}$ along `axis`, with zeros before and after."""
    n, before = a.shape[axis], padding[0]
    count = (n + sum(padding) - size) // stride + 1
    y = xp.zeros((*a.shape[:axis], count, *a.shape[axis + 1 :]), a.dtype)
    for k in range(size):
        to, of = meeting(k - before, n, count, stride)
        y[(slice(None),) * axis + (to,)] += a[(slice(None),) * axis + (of,)]
    return y


@linear(
    a=lambda ct, axis, size, stride, padding: window_sum(ct, axis, size, stride, padding),
    cases=[
        Case((2, 3), length=7, axis=1, size=3, stride=2, padding=(1, 0)),
        Case((2, 2), length=5, axis=0, size=2, stride=2, padding=(0, 0)),
        Case((0, 2), length=4, axis=1, size=1, stride=3, padding=(0, 0)),
    ],
)
def window_spread(xp, a, *, length, axis, size, stride, padding):
    r"""$x_j = \sum_{si+k-p=j} a_i$ for $j <$ `length` along `axis`, the transpose of `window_sum`."""
    count, before = a.shape[axis], padding[0]
    x = xp.zeros((*a.shape[:axis], length, *a.shape[axis + 1 :]), a.dtype)
    for k in range(size):
        to, of = meeting(k - before, length, count, stride)
        x[(slice(None),) * axis + (of,)] += a[(slice(None),) * axis + (to,)]
    return x


def meeting(offset: int, length: int, count: int, stride: int) -> tuple[slice, slice]:
    """The windows that have their element at `offset` in 0 … length - 1, and those elements."""
    first = max(0, -(offset // stride))
    last = min(count - 1, (length - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + offset
    return slice(first, last + 1), slice(start, last * stride + offset + 1, stride)
