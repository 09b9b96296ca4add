"""Reductions of some elements only: of those that a mask picks (`where=`), of those that are not NaN.

`sum`, `mean`, `max`, `min` and `prod` are NumPy's functions with all that they take; without `where` and
`initial` each is the op of that name in `reduce.py`. An element that is left out has gradient 0.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ..backend.device import on_device, surely_all
from ..core.generate import PYTHON_NUMBERS
from ..errors import ArgumentError, ShapeError, describe
from . import elementwise as e
from . import reduce
from .operands import arrayed, as_array, value_of


def mask_of(where: Any, a: Any, op: str) -> Any:
    """`where` as booleans in the shape of `a`."""
    mask = arrayed(value_of(where))
    try:
        return np.broadcast_to(mask if mask.dtype.kind == "b" else mask != 0, a.shape)
    except ValueError:
        raise ShapeError(
            f"{op}: `where` must broadcast to the shape of `a`.\n"
            f"  a: {describe(a)}      where: {describe(mask)}"
        ) from None


def picked(a: Any, where: Any, otherwise: Any, op: str) -> Any:
    """`a` with `otherwise` in place of what `where` leaves out."""
    return a if where is True else e.where(mask_of(where, a, op), a, otherwise)


def start_of(initial: Any, a: Any) -> Any:
    """`initial` in the dtype of `a`, which it does not widen; a Python number is of any."""
    if a.dtype.kind != "f" or type(initial) in PYTHON_NUMBERS or getattr(initial, "dtype", None) == a.dtype:
        return initial
    return e.astype(initial if hasattr(initial, "dtype") else np.asarray(initial), a.dtype)


def counts(a: Any, axis: Any, keepdims: bool, where: Any, op: str) -> Any:
    """How many elements go into each result, as a constant of the dtype that a mean of `a` has."""
    dtype = a.dtype if a.dtype.kind == "f" else np.float64
    return mask_of(where, a, op).sum(axis=axis, keepdims=keepdims, dtype=dtype)


def quotient(total: Any, count: Any, message: str) -> Any:
    """`total / count`; NaN, without a gradient and with a warning from the host, where `count` is not above 0."""
    if surely_all(count > 0):
        return e.divide(total, count)
    if not on_device(count):
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    return e.where(count > 0, e.divide(total, np.where(count > 0, count, 1).astype(count.dtype)), math.nan)


def sum(a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
    r"""Sum of the elements that `where` picks, $y = y_0 + \sum_{i : w_i} a_i$, with `initial` for $y_0$."""
    a = as_array(a, "sum")
    y = reduce.sum(picked(a, where, 0, "sum"), axis, keepdims)
    return y if initial is None else e.add(y, start_of(initial, y))


def prod(a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
    r"""Product of the elements that `where` picks, $y = y_0 \prod_{i : w_i} a_i$, with `initial` for $y_0$."""
    a = as_array(a, "prod")
    y = reduce.prod(picked(a, where, 1, "prod"), axis, keepdims)
    return y if initial is None else e.multiply(y, start_of(initial, y))


def mean(a: Any, axis: Any = None, *, keepdims: bool = False, where: Any = True) -> Any:
    r"""Mean of the elements that `where` picks; NaN, with a warning, of none."""
    a = as_array(a, "mean")
    if where is True:
        return reduce.mean(a, axis, keepdims)
    total = sum(a, axis, keepdims=keepdims, where=where)
    return quotient(total, counts(a, axis, keepdims, where, "mean"), "mean: of no element")


def max(a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
    r"""Largest of `initial` and of the elements that `where` picks. A tie goes to the first, last to `initial`."""
    return extreme(reduce.max, e.maximum, a, axis, keepdims, initial, where, "max")


def min(a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True) -> Any:
    r"""Smallest of `initial` and of the elements that `where` picks. A tie goes to the first, last to `initial`."""
    return extreme(reduce.min, e.minimum, a, axis, keepdims, initial, where, "min")


def extreme(
    fold: Any, pair: Any, a: Any, axis: Any, keepdims: bool, initial: Any, where: Any, op: str
) -> Any:
    """The op `fold` of what `where` picks, and its `pair` with `initial`."""
    a = as_array(a, op)
    if initial is None:
        if where is not True:
            raise ArgumentError(
                f"{op}: `where` may pick nothing, and then there is no {op}.\n  Give `initial` as well."
            )
        return fold(a, axis, keepdims)
    initial = start_of(initial, a)
    if not reduce.reduced_count(a.shape, axis):  # of nothing but `initial`
        return e.add(reduce.sum(a, axis, keepdims), initial)
    return pair(fold(picked(a, where, initial, op), axis, keepdims), initial)


# -- NaN as a missing value ------------------------------------------------------------------------


def present(a: Any, where: Any = True) -> Any:
    """Where an element is not NaN, and picked: a boolean array."""
    return ~e.isnan(a) & value_of(where)


def nansum(
    a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True
) -> Any:
    r"""Sum of the elements that are not NaN, $y = \sum_{i : a_i = a_i} a_i$. A NaN has gradient 0."""
    a = as_array(a, "nansum")
    return sum(a, axis, keepdims=keepdims, initial=initial, where=present(a, where))


def nanprod(
    a: Any, axis: Any = None, *, keepdims: bool = False, initial: Any = None, where: Any = True
) -> Any:
    r"""Product of the elements that are not NaN, $y = \prod_{i : a_i = a_i} a_i$. A NaN has gradient 0."""
    a = as_array(a, "nanprod")
    return prod(a, axis, keepdims=keepdims, initial=initial, where=present(a, where))


def nanmean(a: Any, axis: Any = None, *, keepdims: bool = False, where: Any = True) -> Any:
    r"""Mean of the elements that are not NaN, which have gradient 0; NaN, with a warning, where all are."""
    a = as_array(a, "nanmean")
    return mean(a, axis, keepdims=keepdims, where=present(a, where))


def nanmax(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    r"""Largest of the elements that are not NaN, which have gradient 0; NaN, with a warning, where all are."""
    return nan_extreme(reduce.max, a, axis, keepdims, -math.inf, "nanmax")


def nanmin(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    r"""Smallest of the elements that are not NaN, which have gradient 0; NaN, with a warning, where all are."""
    return nan_extreme(reduce.min, a, axis, keepdims, math.inf, "nanmin")


def nan_extreme(fold: Any, a: Any, axis: Any, keepdims: bool, otherwise: float, op: str) -> Any:
    """The op `fold` with `otherwise`, which loses against everything, in place of each NaN."""
    a = as_array(a, op)
    mask = present(a)
    if surely_all(mask):
        return fold(a, axis, keepdims)
    y = fold(e.where(mask, a, otherwise), axis, keepdims)
    some = np.any(mask, axis=axis, keepdims=keepdims)
    if surely_all(some):
        return y
    if not on_device(some):
        warnings.warn(f"{op}: all elements are NaN", RuntimeWarning, stacklevel=3)
    return e.where(some, y, math.nan)
