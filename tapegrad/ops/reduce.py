"""Ops that fold axes away: sums, means, products, largest values, log-sum-exp."""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device
from ..core.primitive import Case, linear, primitive
from ..core.variable import Variable
from ..errors import OutOfRangeError, ShapeError, describe
from .cumulative import ZEROS, cumprod, flipped, pushed
from .elementwise import equal, exp, multiply, subtract, where
from .index import put_at
from .operands import value_of
from .shape import broadcast_to, inverse_permutation, reshape, transpose

REDUCTIONS = [
    Case((2, 3)),
    Case((2, 3), axis=0),
    Case((2, 3, 4), axis=(0, -1)),
    Case((2, 3, 4), axis=0),
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


def reduced_axes(ndim: int, axis: Any, op: str = "reduce") -> tuple[int, ...]:
    """The reduced axes, counted from 0. Raises OutOfRangeError in the name of `op` for one that is not there."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    most = builtins.max(ndim, 1)  # a 0-d array counts as one of one axis here
    if any(not -most <= i < most for i in axes):
        raise OutOfRangeError(f"{op}: `axis` is {axis}, which is out of range for an array of {ndim} axes.")
    return tuple(i % ndim for i in axes) if ndim else ()


def in_lines(a: Any, axis: Any) -> Any:
    """`a` with the reduced axes joined into one, its last."""
    axes = reduced_axes(a.ndim, axis)
    rest = tuple(i for i in range(a.ndim) if i not in axes)
    moved = a if (*rest, *axes) == tuple(range(a.ndim)) else transpose(a, (*rest, *axes))
    return reshape(moved, (*(a.shape[i] for i in rest), math.prod(a.shape[i] for i in axes)))


def from_lines(lines: Any, shape: tuple[int, ...], axis: Any) -> Any:
    """The array of `shape` that `in_lines` made `lines` of."""
    axes = reduced_axes(len(shape), axis)
    order = (*(i for i in range(len(shape)) if i not in axes), *axes)
    moved = reshape(lines, tuple(shape[i] for i in order))
    return moved if order == tuple(range(len(shape))) else transpose(moved, inverse_permutation(order))


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
    r"""Sum over `axis` (an int, a tuple, or all for None), $y = \sum_i a_i$.

    `np.sum(v)` also takes `initial` and `where`.
    """
    return folded(xp, a, np.add, "sum", axis, keepdims)


@linear(
    a=lambda ct, a_shape, axis: spread(ct, a_shape, axis) / float(reduced_count(a_shape, axis)),
    cases=REDUCTIONS,
)
def mean(xp, a, *, axis=None, keepdims=False):
    r"""Mean over `axis`, $y = \frac1n \sum_i a_i$. `np.mean(v)` also takes `where`."""
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
    r"""Largest value over `axis`. A tie goes to the first. `np.max(v)` also takes `initial` and `where`."""
    return folded(xp, a, np.maximum, "max", axis, keepdims)


@primitive(
    a=lambda ct, a, axis: multiply(spread(ct, a.shape, axis), first_largest(-a, axis)),
    cases=REDUCTIONS,
)
def min(xp, a, *, axis=None, keepdims=False):
    r"""Smallest value over `axis`. A tie goes to the first. `np.min(v)` also takes `initial` and `where`."""
    return folded(xp, a, np.minimum, "min", axis, keepdims)


amax, amin = max, min


def ptp(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    r"""Range over `axis` ("peak to peak"), $y = \max_i a_i - \min_i a_i$. Ties go to the first."""
    return subtract(max(a, axis, keepdims), min(a, axis, keepdims))


def first_largest(a: Any, axis: Any) -> Any:
    """1 at the first largest element of each reduced group, else 0: an array, constant by nature."""
    array = value_of(a)
    array = array if on_device(array) else np.asarray(array)
    if not array.size:  # which has no largest, and no elements to say so of
        return array
    axes = reduced_axes(array.ndim, axis)
    rest = tuple(i for i in range(array.ndim) if i not in axes)
    grouped = array.transpose(rest + axes)
    flat = grouped.reshape(*(array.shape[i] for i in rest), -1)
    mask = module_beside(flat).zeros(flat.shape, array.dtype)
    np.put_along_axis(mask, flat.argmax(axis=-1, keepdims=True), 1, axis=-1)
    return mask.reshape(grouped.shape).transpose(inverse_permutation(rest + axes))


def logsumexp_pullback(ct: Any, a: Any, axis: Any, y: Any) -> Any:
    top = where(equal(y, -math.inf), 0.0, y)  # of nothing but -inf: -inf - -inf is NaN
    return spread(ct, a.shape, axis) * exp(a - spread(top, a.shape, axis))


@primitive(
    a=logsumexp_pullback,
    special=(-1000.0, 1000.0),
    cases=REDUCTIONS,
)
def logsumexp(xp, a, *, axis=None, keepdims=False):
    r"""$y = \ln \sum_i e^{a_i}$ over `axis`, shifted by the largest so that nothing overflows.

    Where all elements are $-\infty$ the gradient is taken as 0, as in PyTorch.
    """
    top = xp.max(a, axis=axis, keepdims=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    y = xp.log(xp.sum(xp.exp(a - top), axis=axis, keepdims=True)) + top
    return y if keepdims else xp.reshape(y, xp.sum(a, axis=axis).shape)


def others_multiplied(a: Any, axis: Any) -> Any:
    """For each element the product of the others of its group: of those before it with those behind it."""
    lines = in_lines(a, axis)
    before = pushed(cumprod(lines, -1), -1, 1.0)
    behind = flipped(pushed(cumprod(flipped(lines, -1), -1), -1, 1.0), -1)
    return from_lines(before * behind, a.shape, axis)


@primitive(
    a=lambda ct, a, axis: spread(ct, a.shape, axis) * others_multiplied(a, axis),
    special=(0.0,),
    cases=[*REDUCTIONS, Case((0, 3), axis=0), Case((0, 3), axis=1), Case(ZEROS, axis=1)],
)
def prod(xp, a, *, axis=None, keepdims=False):
    r"""Product over `axis`, $y = \prod_i a_i$. Right at zeros too, to every order: no rule divides."""
    return folded(xp, a, np.multiply, "prod", axis, keepdims)


def bincount(x: Any, weights: Any = None, minlength: int = 0) -> Any:
    r"""Sums of `weights` by group, $y_k = \sum_{i : x_i = k} w_i$; without weights how often each integer occurs.

    Shapes: x (n,) integers not below 0, weights (n,) -> (max(x) + 1,) or (minlength,), whichever is longer.
    The gradient of a weight is that of its sum. Raises ShapeError where x and weights differ in shape.
    """
    if not isinstance(weights, Variable):
        return np.bincount(value_of(x), weights, minlength)
    x = x if on_device(x) else np.asarray(x)
    length = np.bincount(x, minlength=minlength).size
    if weights.shape != x.shape:
        raise ShapeError(
            f"bincount: `x` and `weights` must have one shape.\n  x: {describe(x)}      weights: {describe(weights)}"
        )
    return put_at(weights, x, (length,))
