"""Ops that fold axes away: sums, means, largest values, log-sum-exp."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.primitive import Case, linear, primitive
from ..core.variable import Variable
from .elementwise import exp, multiply
from .shape import broadcast_to, reshape

REDUCTIONS = [
    Case((2, 3)),
    Case((2, 3), axis=0),
    Case((2, 3, 4), axis=(0, -1)),
    Case((2, 3), axis=1, keepdims=True),
    Case(()),
]


def kept_axes(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """`shape` with the reduced axes of length 1."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    reduced = {i % len(shape) for i in axes} if shape else set()
    return tuple(1 if i in reduced else n for i, n in enumerate(shape))


def reduced_count(shape: tuple[int, ...], axis: Any) -> int:
    """How many elements go into each result."""
    return math.prod(n for n, k in zip(shape, kept_axes(shape, axis), strict=True) if k == 1)


def spread(ct: Any, shape: tuple[int, ...], axis: Any) -> Any:
    """The transpose of a sum: a cotangent (or a result) repeated over the axes that were reduced."""
    return broadcast_to(reshape(ct, kept_axes(shape, axis)), shape)


# Where a mean is NumPy's sum over a count: np.mean divides in float64, which for float32 and as many elements as
# float32 can count comes out the same. It sums other dtypes in wider ones.
BARE = frozenset({np.dtype(np.float32), np.dtype(np.float64)})
LARGEST_COUNT = 2**24


def folded(xp: Any, a: Any, ufunc: Any, name: str, axis: Any, keepdims: Any) -> Any:
    """`a` folded by a ufunc: what NumPy's function `name` does for a plain array, after 1 µs of Python."""
    if type(a) is np.ndarray:
        return ufunc.reduce(a, axis=axis, keepdims=keepdims)
    return getattr(xp, name)(a, axis=axis, keepdims=keepdims)


@linear(a=lambda ct, a_shape, axis: spread(ct, a_shape, axis), cases=[*REDUCTIONS, Case((0, 3), axis=0)])
def sum(xp, a, *, axis=None, keepdims=False):
    r"""Sum over `axis` (an int, a tuple, or all for None), $y = \sum_i a_i$."""
    return folded(xp, a, np.add, "sum", axis, keepdims)


@linear(
    a=lambda ct, a_shape, axis: spread(ct, a_shape, axis) / float(reduced_count(a_shape, axis)),
    cases=REDUCTIONS,
)
def mean(xp, a, *, axis=None, keepdims=False):
    r"""Mean over `axis`, $y = \frac1n \sum_i a_i$."""
    if type(a) is not np.ndarray or a.dtype not in BARE or not 0 < a.size <= LARGEST_COUNT:
        return xp.mean(a, axis=axis, keepdims=keepdims)
    y = folded(xp, a, np.add, "sum", axis, keepdims)  # np.mean does the same, after 3 µs of Python
    y /= a.size // y.size
    return y


@primitive(
    a=lambda ct, a, axis: multiply(spread(ct, a.shape, axis), first_largest(a, axis)),
    cases=REDUCTIONS,
)
def max(xp, a, *, axis=None, keepdims=False):
    r"""Largest value over `axis`. A tie goes to the first."""
    return folded(xp, a, np.maximum, "max", axis, keepdims)


@primitive(
    a=lambda ct, a, axis: multiply(spread(ct, a.shape, axis), first_largest(-a, axis)),
    cases=REDUCTIONS,
)
def min(xp, a, *, axis=None, keepdims=False):
    r"""Smallest value over `axis`. A tie goes to the first."""
    return folded(xp, a, np.minimum, "min", axis, keepdims)


def first_largest(a: Any, axis: Any) -> Any:
    """1 at the first largest element of each reduced group, else 0: an array, constant by nature."""
    array = np.asarray(a._array if isinstance(a, Variable) else a)
    axes = tuple(range(array.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(i % array.ndim for i in axes) if array.ndim else ()
    rest = tuple(i for i in range(array.ndim) if i not in axes)
    if not array.size or not array.ndim:
        return np.ones_like(array)
    grouped = array.transpose(rest + axes)
    flat = grouped.reshape(*(array.shape[i] for i in rest), -1)
    mask = np.zeros(flat.shape, array.dtype)
    np.put_along_axis(mask, flat.argmax(axis=-1, keepdims=True), 1, axis=-1)
    return mask.reshape(grouped.shape).transpose(np.argsort(rest + axes))


@primitive(
    a=lambda ct, a, axis, y: spread(ct, a.shape, axis) * exp(a - spread(y, a.shape, axis)),
    special=(-1000.0, 1000.0),
    cases=REDUCTIONS,
)
def logsumexp(xp, a, *, axis=None, keepdims=False):
    r"""$y = \ln \sum_i e^{a_i}$ over `axis`, shifted by the largest so that nothing overflows."""
    top = xp.max(a, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    y = xp.log(xp.sum(xp.exp(a - top), axis=axis, keepdims=True)) + top
    return y if keepdims else xp.reshape(y, xp.sum(a, axis=axis).shape)
