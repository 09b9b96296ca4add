"""Ops that pick elements: slices and integers, rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.primitive import Case, linear
from ..core.variable import Variable
from ..errors import ArgumentError, DtypeError, ShapeError, describe

BASIC = frozenset({int, np.int64, slice, type(None), type(Ellipsis)})


def basic(index: Any) -> bool:
    """Whether `index` selects each element at most once: slices, integers, None and Ellipsis."""
    return BASIC.issuperset(map(type, index)) if type(index) is tuple else type(index) in BASIC


def checked(index: Any) -> Any:
    """`index` as NumPy takes it, without Variables: a position is not differentiated."""
    if basic(index):
        return index
    if isinstance(index, tuple):
        return tuple(checked(part) for part in index)
    if isinstance(index, Variable):
        raise DtypeError(
            f"getitem: `index` must be integers, slices or booleans, and a Variable came.\n"
            f"  index: {describe(index)}\n  Use plain integer arrays; (v > 0) is one of booleans."
        )
    return index


@linear(
    a=lambda ct, a_shape, index: put_at(ct, index, a_shape),
    cases=[
        Case((4, 3), index=1),
        Case((4, 3), index=(slice(None), 0)),
        Case((4, 3), index=(slice(3, 0, -2), None, Ellipsis)),
        Case((4, 3), index=np.array([2, 0, 2])),
        Case((4, 3), index=(np.array([2, 0, 2]), np.array([0, 1, 0]))),
        Case((4,), index=np.array([True, False, True, True])),
    ],
)
def getitem(xp, a, *, index):
    r"""`a[index]`: slices, integers, None, Ellipsis, integer and boolean arrays."""
    return a[checked(index)]


@linear(
    a=lambda ct, index: getitem(ct, index),
    cases=[
        Case((3,), index=1, shape=(4, 3)),
        Case((3, 3), index=np.array([2, 0, 2]), shape=(4, 3)),
        Case((2,), index=slice(1, 3), shape=(4,)),
    ],
)
def put_at(xp, a, *, index, shape):
    r"""Zeros of `shape` with `a` added at `index`, the transpose of `getitem`: $y_{i_k} = \sum_k a_k$."""
    y = xp.zeros(shape, a.dtype)
    if basic(index):
        y[index] = a
    else:
        xp.add.at(y, index, a)
    return y


@linear(
    a=lambda ct, a_shape, indices, axis: put_at(
        ct, (slice(None),) * (axis % len(a_shape)) + (indices,), a_shape
    ),
    cases=[
        Case((5, 2), indices=np.array([0, 3, 3]), axis=0),
        Case((2, 5), indices=np.array([[0, 3], [4, 0]]), axis=-1),
        Case((5, 2), indices=2, axis=0),
    ],
)
def take(xp, a, *, indices, axis=0):
    r"""Slices of `a` at integer `indices` along `axis`. An index out of range is an error."""
    if axis is None or not a.ndim:
        raise ShapeError(f"take: `axis` must be an axis of `a`, and {axis} came.\n  a: {describe(a)}")
    require_indices(indices, a.shape[axis], "take", "indices")
    return xp.take(a, indices, axis=axis)


def require_indices(indices: Any, length: int, op: str, argument: str) -> None:
    """Raise unless `indices` are integers in 0 … length - 1."""
    array = np.asarray(indices)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{op}: `{argument}` must be integers, and {describe(array)} came.")
    if array.size and (array.min() < 0 or array.max() >= length):
        worst = int(array.min() if array.min() < 0 else array.max())
        raise ArgumentError(
            f"{op}: `{argument}` must be in 0 … {length - 1}, and {worst} came.\n"
            f"  {argument}: {describe(array)}. Check the vocabulary or the number of classes."
        )
