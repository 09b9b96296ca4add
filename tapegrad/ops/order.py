"""Order statistics: sorted arrays, medians, quantiles, running extremes. All are gathers.

Which element comes where is piecewise constant: the order is found on the bare values, and what is
differentiated is a gather along an axis. Of equal elements the earlier counts as the smaller.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device, put_beside, surely_any
from ..core.primitive import Case, linear
from ..core.variable import Variable
from ..errors import ArgumentError, DtypeError, describe
from . import elementwise as e
from .cumulative import accumulated
from .index import getitem
from .masked import present
from .operands import as_array, axis_of, value_of
from .reduce import in_lines, kept_axes, mean, reduced_axes
from .shape import ravel, reshape, transpose

# -- gathers along an axis -------------------------------------------------------------------------


def places(indices: Any, op: str) -> Any:
    """`indices` as an array of integers."""
    if not hasattr(indices, "dtype"):
        indices = np.asarray(indices)
    if isinstance(indices, Variable) or indices.dtype.kind not in "iu":
        raise DtypeError(
            f"{op}: `indices` must be integers, and {describe(indices)} came.\n"
            f"  A position is not differentiated: give a plain array, like np.argsort(v.value)."
        )
    return indices


@linear(
    arr=lambda ct, arr_shape, indices, axis: scatter_along_axis(ct, indices, arr_shape, axis),
    cases=[
        Case((3, 4), indices=np.array([[1, 1], [0, 3], [-1, 2]])),
        Case((3, 4), indices=np.array([[1, 2, 0, 2]]), axis=0),
        Case((1, 4), indices=np.array([[1], [2]]), axis=-1),
        Case((2, 3), indices=np.array([5, 0, 0]), axis=None),
        Case((2, 0), indices=np.zeros((2, 0), int)),
    ],
)
def take_along_axis(xp, arr, *, indices, axis=-1):
    r"""Elements of `arr` at `indices` along `axis`, $y_{jk} = a_{j, i_{jk}}$; of the flattened array for None.

    Shapes: indices as arr, but for `axis`; other axes broadcast. An index that comes twice adds up in the gradient.
    """
    return xp.take_along_axis(arr, places(indices, "take_along_axis"), axis)


@linear(
    a=lambda ct, indices, axis: take_along_axis(ct, indices, axis),
    cases=[
        Case((3, 2), indices=np.array([[1, 1], [0, 3], [-1, 2]]), shape=(3, 4)),
        Case((1, 4), indices=np.array([[1, 2, 0, 2]]), shape=(3, 4), axis=0),
        Case((2, 1), indices=np.array([[1], [2]]), shape=(1, 4)),
        Case((3,), indices=np.array([5, 0, 0]), shape=(2, 3), axis=None),
    ],
)
def scatter_along_axis(xp, a, *, indices, shape, axis=-1):
    r"""Zeros of `shape` with `a` added at `indices` along `axis`, the transpose of `take_along_axis`."""
    indices = places(indices, "scatter_along_axis").astype(np.intp, copy=False)
    size = math.prod(shape)
    if axis is None:
        flat = indices
    else:
        # The place of each element in an array that is laid out flat. A count is three times as fast as add.at.
        grid = list(xp.ix_(*(xp.arange(n) for n in shape)))
        grid[axis] = indices % max(shape[axis], 1)
        flat = sum(g * step for g, step in zip(grid, steps_of(shape), strict=True))
    flat = xp.broadcast_to(flat % max(size, 1), a.shape)
    if on_device(a):  # there it is the count that waits, to learn the largest place
        y = xp.zeros(size, a.dtype)
        xp.add.at(y, xp.ravel(flat), xp.ravel(a))
        return y.reshape(shape)
    counted = xp.bincount(xp.ravel(flat), xp.ravel(a), size)
    return counted.astype(a.dtype, copy=False).reshape(shape)


def steps_of(shape: tuple[int, ...]) -> list[int]:
    """How far apart neighbours along each axis lie in an array that is laid out flat."""
    return [math.prod(shape[i + 1 :]) for i in range(len(shape))]


# -- sorting ---------------------------------------------------------------------------------------


def along_lines(a: Any, axis: int | None, op: str) -> tuple[Any, int]:
    """`a` and the axis to work along; all elements on one axis for None."""
    a = as_array(a, op)
    return (ravel(a), 0) if axis is None else (a, axis_of(a, axis, op))


def sort(a: Any, axis: int | None = -1, *, kind: str | None = None, stable: bool | None = None) -> Any:
    r"""`a` in ascending order along `axis` (flattened for None), NaN last: $y_k = a_{\pi(k)}$.

    Equal elements stay in their order, whatever the `kind`. Raises ArgumentError for another kind than NumPy's.
    """
    if kind not in (None, "quicksort", "mergesort", "heapsort", "stable"):
        raise ArgumentError(f"sort: `kind` must be one of NumPy's, and {kind!r} came.")
    a, axis = along_lines(a, axis, "sort")
    return take_along_axis(a, np.argsort(value_of(a), axis=axis, kind="stable"), axis)


def partition(a: Any, kth: Any, axis: int | None = -1, *, kind: str = "introselect") -> Any:
    r"""`a` rearranged along `axis` so that place `kth` holds what it holds in `sort(a)`, with nothing larger before it.

    The order of the others, and of equal elements, is unspecified.
    """
    if kind != "introselect":
        raise ArgumentError(f"partition: `kind` must be 'introselect', and {kind!r} came.")
    a, axis = along_lines(a, axis, "partition")
    try:
        order = np.argpartition(value_of(a), kth, axis=axis)
    except ValueError as error:
        raise ArgumentError(
            f"partition: `kth` must be a place among {a.shape[axis]}, or several, and {kth!r} came.\n  a: {describe(a)}"
        ) from error
    return take_along_axis(a, order, axis)


def unique(
    ar: Any,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    *,
    equal_nan: bool = True,
) -> Any:
    r"""The different elements of `ar` in ascending order; the gradient of each goes to where it occurs first.

    With `return_index`, `return_inverse` and `return_counts` also those integers, as in NumPy. Rows (`axis=`) are not
    compared: sort by a key of them.
    """
    ar = as_array(ar, "unique", "ar")
    find: Any = np.unique
    _, first, *rest = find(value_of(ar), True, return_inverse, return_counts, equal_nan=equal_nan)
    values = getitem(ravel(ar), first)
    more = [first, *rest] if return_index else rest
    return (values, *more) if more else values


def unique_values(x: Any) -> Any:
    r"""The different elements of `x` in ascending order; a NaN differs from another. The array API's `unique`."""
    return unique(x, equal_nan=False)


def unique_all(x: Any) -> Any:
    r"""(values, indices, inverse_indices, counts) of `unique_values`: where each occurs first, and how often."""
    x = as_array(x, "unique_all", "x")
    found = np.unique_all(value_of(x))
    return found._replace(values=getitem(ravel(x), found.indices))


def unique_counts(x: Any) -> Any:
    r"""(values, counts) of `unique_values`: how often each occurs."""
    found = unique_all(x)
    return np.unique_counts(found.counts)._replace(values=found.values, counts=found.counts)


def unique_inverse(x: Any) -> Any:
    r"""(values, inverse_indices) of `unique_values`: which of them each element is."""
    found = unique_all(x)
    return np.unique_inverse(found.counts)._replace(
        values=found.values, inverse_indices=found.inverse_indices
    )


# -- running extremes ------------------------------------------------------------------------------


def cummax(a: Any, axis: int = 0) -> Any:
    r"""Largest element so far along `axis`, $y_k = \max_{i \le k} a_i$, NaN from the first on. A tie goes to the first."""
    return running_extreme(np.maximum, np.greater, a, axis, "cummax")


def cummin(a: Any, axis: int = 0) -> Any:
    r"""Smallest element so far along `axis`, $y_k = \min_{i \le k} a_i$, NaN from the first on. A tie goes to the first."""
    return running_extreme(np.minimum, np.less, a, axis, "cummin")


def running_extreme(pair: Any, beats: Any, a: Any, axis: int, op: str) -> Any:
    """The extreme so far as a gather, from the last place whose element beat all before it."""
    a = as_array(a, op)
    if not a.ndim:
        return reshape(a, (1,))
    axis = axis_of(a, axis, op)
    values = np.moveaxis(value_of(a), axis, -1)
    xp, best = module_beside(values), accumulated(pair, values, -1)
    new, before = values[..., 1:], best[..., :-1]
    beaten = beats(new, before) | (np.isnan(new) & ~np.isnan(before))
    record = xp.concatenate([xp.ones((*values.shape[:-1], min(values.shape[-1], 1)), bool), beaten], axis=-1)
    held = accumulated(np.maximum, xp.where(record, xp.arange(values.shape[-1]), 0), -1)
    return take_along_axis(a, xp.moveaxis(held, -1, axis), axis)


# -- quantiles -------------------------------------------------------------------------------------

# Where in n sorted elements, counted from 0, quantile q lies: Hyndman and Fan, "Sample Quantiles in Statistical
# Packages", The American Statistician 50 (1996), and NumPy's additions.


def between(alpha: float, beta: float) -> Callable[[Any, Any], Any]:
    return lambda n, q: q * n + (q * (1.0 - alpha - beta) + alpha) - 1.0


# Between two elements in proportion to the fraction.
CONTINUOUS: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda n, q: q * (n - 1),
    "interpolated_inverted_cdf": between(0.0, 1.0),
    "hazen": between(0.5, 0.5),
    "weibull": between(0.0, 0.0),
    "median_unbiased": between(1 / 3, 1 / 3),
    "normal_unbiased": between(3 / 8, 3 / 8),
}
# One element, or the middle of two: of two positions.
STEPS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "lower": lambda n, q: twice(np.floor(q * (n - 1))),
    "higher": lambda n, q: twice(np.ceil(q * (n - 1))),
    "nearest": lambda n, q: twice(np.around(q * (n - 1))),
    "midpoint": lambda n, q: (np.floor(q * (n - 1)), np.ceil(q * (n - 1))),
    "inverted_cdf": lambda n, q: twice(np.ceil(q * n - 1)),
    "averaged_inverted_cdf": lambda n, q: (np.ceil(q * n - 1), np.floor(q * n - 1) + 1),
    "closest_observation": lambda n, q: twice(nearest_even(q * n - 1.5)),
}


def twice(position: Any) -> tuple[Any, Any]:
    return position, position


def nearest_even(position: Any) -> Any:
    """The element above `position`; of two equally far that with the even number, counted from 1."""
    below = np.floor(position)
    return np.where((position == below) & (below % 2 == 1), below, below + 1)


class Lines:
    """The lines that a quantile is taken of, the order of each, and how many of its elements count."""

    def __init__(self, a: Any, axis: Any, skip_nan: bool, op: str) -> None:
        reduced_axes(a.ndim, axis, op)
        self.lines = in_lines(a, axis)
        values = value_of(self.lines)
        self.length = values.shape[-1]
        self.order = np.argsort(values, axis=-1, kind="stable")  # NaN last
        self.counts: Any = self.length
        self.spoilt: Any = None
        if values.dtype.kind == "f":
            if skip_nan:
                self.counts = present(values).sum(axis=-1, keepdims=True)
                if surely_any(self.counts == 0):
                    warnings.warn(f"{op}: all elements are NaN", RuntimeWarning, stacklevel=4)
            else:
                self.spoilt = np.isnan(values).any(axis=-1, keepdims=True)

    def at(self, position: Any) -> Any:
        """The elements at `position` (..., k) of the order; where a NaN spoils a line, that NaN."""
        position = put_beside(position, self.order)
        position = np.clip(position, 0, np.maximum(self.counts - 1, 0)).astype(np.intp)
        if self.spoilt is not None:
            position = np.where(self.spoilt, self.length - 1, position)
        position = np.broadcast_to(position, (*self.order.shape[:-1], position.shape[-1]))
        return take_along_axis(self.lines, np.take_along_axis(self.order, position, -1))


def median(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    r"""Median over `axis`: the middle element, or the mean of the two in the middle. A NaN makes it NaN."""
    return middle(a, axis, keepdims, False, "median")


def nanmedian(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    r"""Median of the elements that are not NaN, which have gradient 0; NaN, with a warning, where all are."""
    return middle(a, axis, keepdims, True, "nanmedian")


def middle(a: Any, axis: Any, keepdims: bool, skip_nan: bool, op: str) -> Any:
    """The median of each line: the mean of two gathers, of the same element where the count is odd."""
    a, axis = as_array(a, op), tuple(axis) if isinstance(axis, list) else axis
    if not a.size:
        return mean(a, axis, keepdims)  # NaN, with NumPy's warning
    lines = Lines(a, axis, skip_nan, op)
    n = np.reshape(lines.counts, (*np.shape(lines.counts)[:-1], 1))
    y = mean(lines.at(np.concatenate([(n - 1) // 2, n // 2], axis=-1)), -1)
    return reshape(y, kept_axes(a.shape, axis)) if keepdims else y


def quantile(a: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Any:
    r"""Quantile `q` (0 … 1) over `axis`: $y = (1 - g) a_{(j)} + g a_{(j+1)}$, in sorted order, $j + g = q (n - 1)$.

    Shapes: q (...) in front of what a reduction of `a` leaves. All of NumPy's methods; a continuous one is differentiated
    in `q` too. A NaN makes it NaN. Keeps the dtype of `a`. Raises ArgumentError for q outside 0 … 1 or an unknown method.
    """
    return quantiles(a, q, axis, method, keepdims, False, "quantile")


def percentile(a: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Any:
    r"""`quantile` with `q` in percent, 0 … 100."""
    return quantiles(a, hundredth(q, a, "percentile"), axis, method, keepdims, False, "percentile")


def nanquantile(a: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Any:
    r"""`quantile` of the elements that are not NaN, which have gradient 0; NaN, with a warning, where all are."""
    return quantiles(a, q, axis, method, keepdims, True, "nanquantile")


def nanpercentile(a: Any, q: Any, axis: Any = None, *, method: str = "linear", keepdims: bool = False) -> Any:
    r"""`nanquantile` with `q` in percent, 0 … 100."""
    return quantiles(a, hundredth(q, a, "nanpercentile"), axis, method, keepdims, True, "nanpercentile")


def hundredth(q: Any, a: Any, op: str) -> Any:
    return e.divide(as_array(q, op, "q", [a]), 100)


def quantiles(a: Any, q: Any, axis: Any, method: str, keepdims: bool, skip_nan: bool, op: str) -> Any:
    """The quantiles `q`, here within 0 … 1, of the lines along `axis`. Shapes: those of `quantile`."""
    a, axis = as_array(a, op), tuple(axis) if isinstance(axis, list) else axis
    q = as_array(q, op, "q", [a])
    if surely_any((value_of(q) < 0) | (value_of(q) > 1) | np.isnan(value_of(q))):
        raise ArgumentError(f"{op}: `q` must be within {'0 … 100' if 'percentile' in op else '0 … 1'}.")
    if not a.size:
        raise ArgumentError(f"{op}: there is no quantile of an empty array.\n  a: {describe(a)}")
    lines = Lines(a, axis, skip_nan, op)
    y = interpolated(lines, ravel(q), method, op)
    kept = kept_axes(a.shape, axis)
    axes = reduced_axes(a.ndim, axis)
    left = kept if keepdims else tuple(n for i, n in enumerate(a.shape) if i not in axes)
    return reshape(transpose(y, (y.ndim - 1, *range(y.ndim - 1))), (*q.shape, *left))


def interpolated(lines: Lines, q: Any, method: str, op: str) -> Any:
    """The quantiles `q` of each line, on the last axis."""
    if method in STEPS:
        low, high = STEPS[method](lines.counts, value_of(q))
        y = lines.at(low)
        return y if low is high else (y + lines.at(high)) / 2.0
    if method not in CONTINUOUS:
        raise ArgumentError(
            f"{op}: `method` must be one of {', '.join([*CONTINUOUS, *STEPS])}, and {method!r} came."
        )
    n = lines.counts
    if isinstance(q, Variable) and not isinstance(n, int):
        n = n.astype(q.dtype)
    position = CONTINUOUS[method](n, q)
    below = np.floor(value_of(position))
    low, high = lines.at(below), lines.at(below + 1)
    fraction = e.subtract(position, below)
    if not isinstance(q, Variable) and low.dtype.kind == "f":
        fraction = fraction.astype(low.dtype)  # computed in float64, as NumPy does for an array
    return low + (high - low) * fraction
