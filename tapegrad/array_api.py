"""The namespace that a Variable gives to code written for the array API standard.

    def standardised(x):
        xp = x.__array_namespace__()
        return (x - xp.mean(x)) / xp.std(x)

The names are the standard's. A function is NumPy's of that name, which records when it meets a Variable (see
`ops/protocols.py`); what makes an array of numbers makes a plain array, a constant. Plain arrays stay plain.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import device as places
from .core.variable import Variable
from .ops.elementwise import astype as cast
from .ops.elementwise import positive
from .ops.exchange import VERSIONS
from .ops.names import PUBLIC, function_at, words
from .ops.protocols import bare
from .ops.ranges import full_like as filled
from .ops.transfer import asarray as to_device

__array_api_version__ = VERSIONS[-1]

# What the standard names. fft is not among it: complex numbers are not differentiated.
STANDARD = words("""
    e inf nan newaxis pi
    bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 complex64 complex128
    astype can_cast finfo iinfo isdtype result_type
    arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu zeros zeros_like
    abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_invert bitwise_left_shift bitwise_or
    bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp expm1 floor floor_divide greater
    greater_equal hypot imag isfinite isinf isnan less less_equal log log10 log1p log2 logaddexp logical_and logical_not
    logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow real reciprocal remainder round
    sign signbit sin sinh sqrt square subtract tan tanh trunc
    take take_along_axis
    linalg matmul matrix_transpose tensordot vecdot
    broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack tile unstack
    argmax argmin count_nonzero nonzero searchsorted where
    unique_all unique_counts unique_inverse unique_values
    argsort sort
    cumulative_prod cumulative_sum max mean min prod std sum var
    all any diff
    __array_namespace_info__
""")  # fmt: skip

MADE_OF_NUMBERS = words("arange empty eye linspace ones zeros")


def __getattr__(name: str) -> Any:
    if name not in STANDARD:
        raise AttributeError(f"{name!r} is not a name of the array API standard that can be had here")
    if not hasattr(np, name) and name in PUBLIC:  # an older NumPy
        return function_at(PUBLIC[name])
    return made_by(getattr(np, name)) if name in MADE_OF_NUMBERS else getattr(np, name)


def __dir__() -> list[str]:
    return sorted(STANDARD | {"__array_api_version__"})


def made_by(function: Any) -> Any:
    """A function that makes an array of numbers, with the parameter that says on which device."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        return places.asarray(function(*args, **kwargs), device=device)

    return make


# -- where NumPy's function is not asked about Variables, or lacks a parameter of the standard's -------------


def asarray(obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any:
    """`obj` as an array; a Variable stays one."""
    if not isinstance(obj, Variable):
        array = obj if places.on_device(obj) else np.asarray(obj, dtype=dtype, copy=copy)
        return places.asarray(array, dtype, device=device)
    obj = to_device(obj, device=device)
    if dtype is not None and np.dtype(dtype) != obj.dtype:
        return astype(obj, dtype)
    return positive(obj) if copy else obj


def astype(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Any:
    """`x` in another dtype. Integers and booleans made of a Variable are a plain array: constants by nature."""
    if not isinstance(x, Variable):
        return places.asarray(x.astype(dtype, copy=copy), device=device)
    if np.dtype(dtype).kind in "iub":
        return places.asarray(x._array.astype(dtype), device=device)
    return to_device(x if not copy and np.dtype(dtype) == x.dtype else cast(x, dtype), device=device)


def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """An array filled with one value, which may be a Variable."""
    if isinstance(fill_value, Variable):
        like = np.empty((), dtype or fill_value.dtype)
        return filled(like, to_device(fill_value, device=device), shape)
    return places.asarray(np.full(shape, fill_value, dtype), device=device)


def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """An array of the shape of `x` filled with one value, which may be a Variable; where `x` lies, if nothing is said."""
    device = x.device if device is None else device
    return full(x.shape, fill_value, dtype=dtype or x.dtype, device=device)


def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """The elements in order along an axis, in the opposite order if `descending`."""
    y = np.sort(x, axis=axis, stable=stable)
    return np.flip(y, axis=axis) if descending else y


def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """The indices that sort along an axis; equal elements keep their order."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    # Sorted from the end, equal elements come in their own order when the result is turned around.
    back = np.flip(np.argsort(np.flip(bare(x), axis), axis=axis, kind="stable"), axis)
    return np.shape(x)[axis] - 1 - back
