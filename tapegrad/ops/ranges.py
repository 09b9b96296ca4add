"""Evenly spaced numbers between two that are differentiated, and arrays filled with one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend.device import put_beside, surely_any
from ..backend.namespace import namespace
from ..core.variable import Variable
from ..errors import ArgumentError
from .elementwise import astype, exp, log, multiply, power, sign
from .operands import value_of
from .shape import broadcast_to, expand_dims, moveaxis


def linspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, retstep: bool = False, *, axis: int = 0
) -> Any:
    r"""`num` numbers at equal distances, $y_i = (1 - t_i)\, a + t_i\, b$ with $t_i = i / (n - 1)$.

    Without `endpoint` $t_i = i / n$, and `stop` is left out. `retstep`: the distance too. Shapes: `start` and `stop`
    broadcast; the new axis stands at `axis`.
    """
    if num < 0:
        raise ArgumentError(f"linspace: `num` must not be negative, and {num} came.")
    start, stop = both_ends(start, stop)
    dtypes = [x.dtype for x in (start, stop) if hasattr(x, "dtype")]  # numbers widen nothing
    dtype = np.result_type(*dtypes, np.float16) if dtypes else np.dtype(float)
    intervals = num - 1 if endpoint else num
    step = (stop - start) / intervals if intervals > 0 else (stop - start) * np.nan
    shape = np.shape(step)
    places = namespace(value_of(start), value_of(stop)).arange(num)
    t = (places / (intervals or 1)).astype(dtype).reshape(num, *(1,) * len(shape))
    # Both ends are met exactly, as a + i · step would not.
    y = multiply(1.0 - t, beside(start)) + multiply(t, beside(stop))
    y = y if axis == 0 else moveaxis(y, 0, axis)
    return (y, step) if retstep else y


def both_ends(start: Any, stop: Any) -> tuple[Any, ...]:
    """The ends, a list as an array beside the other. A Python number stays one, for it widens no dtype."""
    ends = (start, stop)
    return tuple(put_beside(x, *ends) if isinstance(x, (list, tuple)) else x for x in ends)


def beside(end: Any) -> Any:
    """An end with an axis for the numbers; a Python number as it is, for it widens no dtype."""
    return expand_dims(end, 0) if hasattr(end, "dtype") else end


def logspace(
    start: Any, stop: Any, num: int = 50, endpoint: bool = True, base: Any = 10.0, *, axis: int = 0
) -> Any:
    r"""`num` numbers at equal ratios, $y_i = \beta^{x_i}$ with $x$ the `linspace` of `start` and `stop`."""
    return power(base, linspace(start, stop, num, endpoint, axis=axis))


def geomspace(start: Any, stop: Any, num: int = 50, endpoint: bool = True, *, axis: int = 0) -> Any:
    r"""`num` numbers at equal ratios from `start` to `stop`, $y_i = e^{x_i}$, $x$ the `linspace` of the logarithms.

    Where both are negative, minus what it is of their absolute values. Raises ArgumentError for other signs, and for 0.
    """
    start, stop = both_ends(start, stop)
    if surely_any(value_of(start) * value_of(stop) <= 0):
        raise ArgumentError("geomspace: `start` and `stop` must have one sign, and neither may be 0.")
    if surely_any(value_of(start) < 0):  # the sign of each line, a constant
        signs = sign(start) if hasattr(start, "dtype") else -1.0
        y = multiply(signs, geomspace(signs * start, signs * stop, num, endpoint))
        return y if axis == 0 else moveaxis(y, 0, axis)
    start, stop = (math.log(x) if type(x) in (int, float) else log(x) for x in (start, stop))
    return exp(linspace(start, stop, num, endpoint, axis=axis))


def full_like(a: Any, fill_value: Any, shape: Any = None) -> Any:
    """An array like `a` (or of `shape`) filled with `fill_value`, which broadcasts. Only the filling is differentiated."""
    shape = np.shape(a) if shape is None else shape
    dtype = a.dtype if hasattr(a, "dtype") else np.asarray(a).dtype
    if not isinstance(fill_value, Variable):
        return namespace(value_of(a)).full(shape, fill_value, dtype)
    return broadcast_to(fill_value if fill_value.dtype == dtype else astype(fill_value, dtype), shape)
