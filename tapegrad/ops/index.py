"""Ops that pick elements and put them: indexing of every kind, its functional writes, rows of a table.

Picking is *gather*, its transpose *scatter*: what was picked twice gets the sum of two cotangents. A Variable is
never written into; `index_put` and `index_add` return a changed copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device, on_host, put_beside
from ..core.primitive import Case, linear, primitive, unbroadcast
from ..core.variable import Variable
from ..errors import ArgumentError, DtypeError, OutOfRangeError, ShapeError, describe
from ..kernels import choice
from .elementwise import add, astype, equal, where
from .operands import arrayed, axis_of
from .shape import broadcast_to, concat, ravel, reshape, transpose

INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
BASIC = frozenset({int, slice, type(None), type(Ellipsis), *INTEGERS})


def basic(index: Any) -> bool:
    """Whether `index` selects a view: slices, integers, None and Ellipsis."""
    return BASIC.issuperset(map(type, index)) if type(index) is tuple else type(index) in BASIC


def selects_once(index: Any) -> bool:
    """Whether a checked `index` names each element at most once: basic, or masks."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(type(part) in BASIC or kind_of(part) == "b" for part in parts)


def kind_of(part: Any) -> str:
    return part.dtype.kind if hasattr(part, "dtype") else np.asarray(part).dtype.kind


def checked(index: Any, a: Any, op: str = "getitem") -> Any:
    """`index` of `a` as NumPy takes it, lists and the host's arrays put beside `a`.

    No Variables: a position is not differentiated.
    """
    if basic(index):
        return index
    if isinstance(index, tuple):
        return tuple(checked_part(part, a, op) for part in index)
    return checked_part(index, a, op)


def checked_part(part: Any, a: Any, op: str) -> Any:
    """One part of an index, see `checked`. Raises DtypeError for a Variable."""
    if isinstance(part, Variable):
        raise DtypeError(
            f"{op}: `index` must be integers, slices or booleans, and a Variable came.\n"
            f"  index: {describe(part)}\n  Use plain integer arrays; (v > 0) is one of booleans."
        )
    if isinstance(part, (list, tuple)):
        part = put_beside(part, a)
    if getattr(part, "size", 1) == 0 and kind_of(part) == "f":  # an empty list, which has no dtype of its own
        part = part.astype(np.intp)
    return put_beside(part, a) if isinstance(part, np.ndarray) and on_device(bare(a)) else part


@linear(
    a=lambda ct, a_shape, index: put_at(ct, index, a_shape),
    cases=[
        Case((4, 3), index=1),
        Case((4, 3), index=(slice(None), 0)),
        Case((4, 3), index=(slice(3, 0, -2), None, Ellipsis)),
        Case((4, 3), index=np.array([2, 0, 2])),
        Case((4, 3), index=(np.array([2, 0, 2]), np.array([0, 1, 0]))),
        Case((4,), index=np.array([True, False, True, True])),
        Case((4, 3, 2), index=([[3], [0]], slice(None), [1, 1, 0])),
        Case((4, 3), index=[]),
        Case((), index=(None, Ellipsis)),
    ],
)
def getitem(xp, a, *, index):
    r"""$y = a[\mathrm{index}]$: slices, integers, None, Ellipsis, integer and boolean arrays, by NumPy's rules.

    Raises DtypeError for a Variable as index: what is picked does not change smoothly with it.
    """
    return a[checked(index, a)]


@linear(
    a=lambda ct, a_shape, index: summed_to(getitem(ct, index), a_shape),
    cases=[
        Case((3,), index=1, shape=(4, 3)),
        Case((3, 3), index=np.array([2, 0, 2]), shape=(4, 3)),
        Case((2,), index=slice(1, 3), shape=(4,)),
        Case((3, 1), index=(Ellipsis, np.array([[0, 1, 1]] * 3)), shape=(2, 4)),
        Case((2,), index=np.array([True, False, True]), shape=(3,)),
    ],
)
def put_at(xp, a, *, index, shape):
    r"""Zeros of `shape` with `a` added at `index`, the transpose of `getitem`: $y_{i_k} = \sum_k a_k$."""
    if not basic(index):
        index = checked(index, a)
        if not selects_once(index):
            return scattered(xp, a, index, shape)
    y = xp.zeros(shape, a.dtype)
    y[index] = a
    return y


def scattered(xp: Any, a: Any, index: Any, shape: tuple[int, ...]) -> Any:
    """`put_at` where positions may be repeated."""
    rows = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if (
        type(a) is type(rows)
        and (a.size >= MANY if type(a) is np.ndarray else on_device(a))
        and a.shape == rows.shape + shape[1:] != rows.shape
    ):
        table = choice.embedding_gradient(
            a.reshape(rows.size, math.prod(shape[1:])), rows.reshape(-1), shape[0]
        )
        return table.reshape(shape)
    y = xp.zeros(shape, a.dtype)
    xp.add.at(y, index, a)
    return y


# From how many elements on a compiled loop over a table's rows repays calling it (`bench/kernels.py`).
MANY = 2048


# -- functional writes -----------------------------------------------------------------------------


def index_put(a: Any, index: Any, value: Any) -> Any:
    r"""A copy of `a` with `a[index] = value`: what an assignment is for an array that is never written into.

    `value` broadcasts to the shape of `a[index]`, in the dtype of `a`. Where `index` names a place twice the
    last value stays, and gets the whole cotangent. Any index of `getitem` will do. Differentiated in `a` and `value`.
    """
    a, value = in_one_dtype(a, value)
    return overwrite(a, value, index)


def index_add(a: Any, index: Any, value: Any) -> Any:
    r"""A copy of `a` with `value` added at `index`. Where `index` names a place twice both values are added.

    `value` broadcasts to the shape of `a[index]`, in the dtype of `a`. Differentiated in `a` and `value`.
    """
    a, value = in_one_dtype(a, value)
    return add(a, put_at(value, checked(index, a, "index_add"), a.shape))


def in_one_dtype(a: Any, value: Any) -> tuple[Any, Any]:
    """Both in the dtype of `a`, as an assignment has it; integers take floats by becoming floats."""
    a, value = (x if hasattr(x, "dtype") else put_beside(x, a, value) for x in (a, value))
    dtype = a.dtype if a.dtype.kind == "f" else np.result_type(a.dtype, value.dtype)
    return cast(a, dtype), cast(value, dtype)


def cast(x: Any, dtype: Any) -> Any:
    """`x` in another dtype, recorded only where it changes."""
    if x.dtype == dtype:
        return x
    return astype(x, dtype) if isinstance(x, Variable) else x.astype(dtype)


def written(xp, a, value, *, index):
    r"""A copy of `a` with $y_{i_k} = \mathrm{value}_k$; the last `k` of a place is the one that stays.

    Shapes: (…), one that broadcasts to a[index] -> (…). As an assignment is written: `tg.index_put(a, index, value)`.
    """
    index = checked(index, a, "index_put")
    y = xp.zeros(a.shape, a.dtype)
    y[...] = a
    if selects_once(index):
        y[index] = value
    else:  # on one axis, where NumPy assigns from first to last; on several the order is not promised
        places = places_of(a, index)
        values = xp.zeros(places.shape, a.dtype)
        values[...] = value
        if on_device(a):  # CuPy does not say which of several values stays: let each be the last
            values = values.ravel()[last_at(places, a.size)[places]]
        y.reshape(-1)[places.ravel()] = values.ravel()
    return y


def places_of(a: Any, index: Any) -> Any:
    """Where the elements of `a` are that a checked `index` selects, counted in C order."""
    return module_beside(bare(a)).arange(math.prod(a.shape)).reshape(a.shape)[index]


def last_at(places: Any, size: int) -> Any:
    """For each of `size` places the last position in `places` at which it is named."""
    xp = module_beside(places)
    last = xp.zeros(size, np.intp)
    xp.maximum.at(last, places.ravel(), xp.arange(places.size))
    return last


def not_written(ct: Any, index: Any) -> Any:
    """The cotangent of `a`: 0 where its elements were written over."""
    return overwrite(ct, 0.0, index)


def kept_ones(ct: Any, index: Any, value_shape: tuple[int, ...]) -> Any:
    """The cotangent of `value`: that of each place, for the value that stayed there."""
    whole, index = ct, checked(index, ct)
    ct = getitem(ct, index)
    if not selects_once(index):
        places = places_of(whole, index)
        order = module_beside(places).arange(places.size).reshape(places.shape)
        ct = where(equal(last_at(places, math.prod(whole.shape))[places], order), ct, 0.0)
    return summed_to(ct, value_shape)


def summed_to(ct: Any, shape: tuple[int, ...]) -> Any:
    """`ct` summed to the shape of what an assignment broadcast to it; leading axes of length 1 it leaves out."""
    extra = max(len(shape) - ct.ndim, 0)
    ct = unbroadcast(ct, shape[extra:])
    return reshape(ct, shape) if extra else ct


written.__name__ = "index_put"  # what errors and printouts call it
overwrite: Any = primitive(
    a=not_written,
    value=kept_ones,
    cases=[
        Case((4, 3), (3,), index=1),
        Case((4, 3), (1, 1, 3), index=1),
        Case((4, 3), (), index=(slice(None, None, -2), slice(1, None))),
        Case((4, 3), (3, 3), index=np.array([2, 0, 2])),
        Case((4, 3), (3, 1), index=(np.array([[0], [1], [0]]), np.array([1, -1, 1]))),
        Case((4, 3), (2, 1), index=np.array([True, False, True, False])),
        Case((), (), index=()),
        Case((4, 3), (0, 3), index=[]),
    ],
)(written)


# -- along one axis --------------------------------------------------------------------------------


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
    r"""Slices of `a` at integer `indices` along `axis`: rows of a table.

    Shapes: (..., n, ...), indices (i...) -> (..., i..., ...). Unlike `np.take`, which records all that NumPy does, it
    takes no index below 0, and 0 is the default of `axis`. Raises ArgumentError for an index that is not in 0 … n - 1,
    DtypeError for one that is no integer, ShapeError for the axis None.
    """
    if axis is None:
        raise ShapeError("take: `axis` must be a number. np.take(v, indices) takes from the flattened array.")
    require_indices(indices, a.shape[axis_of(a, axis, "take")], "take", "indices")
    return xp.take(a, indices, axis=axis)


def require_indices(indices: Any, length: int, op: str, argument: str) -> None:
    """Raise unless `indices` are integers in 0 … length - 1. Those on a device are not read: the host would wait."""
    array = indices if on_device(indices) else np.asarray(indices)
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{op}: `{argument}` must be integers, and {describe(array)} came.")
    if array.size and not on_device(array) and (array.min() < 0 or array.max() >= length):
        worst = int(array.min() if array.min() < 0 else array.max())
        raise OutOfRangeError(
            f"{op}: `{argument}` must be in 0 … {length - 1}, and {worst} came.\n"
            f"  {argument}: {describe(array)}. Check the vocabulary or the number of classes."
        )


def numpy_take(a: Any, indices: Any, axis: int | None = None, *, mode: str = "raise") -> Any:
    """`numpy.take`: from the flattened `a` for `axis=None`; an index below 0 counts from the end.

    `mode`: an index out of range is an error ("raise"), is taken modulo the length ("wrap"), or becomes the
    nearest in range ("clip", for which negative ones are out of range).
    """
    a, axis, length = along(a, axis, "take", "a")
    indices = integers(indices, "take", "indices", a)
    if mode == "raise":
        indices = np.where(indices < 0, indices + length, indices)
    return take(a, in_range(indices, length, mode, "take"), axis)


def along(a: Any, axis: int | None, op: str, argument: str) -> tuple[Any, int, int]:
    """`a` with the axis to work along and its length: all of `a` on one axis for None."""
    a, axis = (ravel(a), 0) if axis is None else (arrayed(a), axis)
    axis = axis_of(a, axis, op, argument)
    return a, axis, a.shape[axis]


def integers(value: Any, op: str, argument: str, a: Any = None) -> Any:
    """Positions as an integer array; numbers and lists go beside `a`."""
    if isinstance(value, Variable):
        raise DtypeError(
            f"{op}: `{argument}` must be integers, and a Variable came.\n"
            f"  {argument}: {describe(value)}. A position is not differentiated: use a plain integer array."
        )
    array = value if hasattr(value, "dtype") else put_beside(value, a)
    return array.astype(np.intp) if array.dtype.kind == "b" or not array.size else array


def in_range(indices: Any, length: int, mode: str, op: str) -> Any:
    """`indices` within 0 … length - 1 where `mode` brings them there."""
    if mode not in ("raise", "wrap", "clip"):
        raise ArgumentError(f"{op}: `mode` must be 'raise', 'wrap' or 'clip', and {mode!r} came.")
    if mode == "raise" or not length:
        return indices
    return indices % length if mode == "wrap" else np.clip(indices, 0, length - 1)


def compress(condition: Any, a: Any, axis: int | None = None) -> Any:
    """The slices of `a` along `axis` (the elements of all of `a` for None) for which `condition` holds."""
    a, axis, _ = along(a, axis, "compress", "a")
    holds = bare(condition, a)
    if holds.ndim != 1:
        raise ShapeError(f"compress: `condition` must have one axis, and {describe(holds)} came.")
    return take(a, np.flatnonzero(holds), axis)


def extract(condition: Any, arr: Any) -> Any:
    """The elements of `arr` for which `condition`, of the same size, holds."""
    return compress(bare(condition, arr).ravel(), arr)


def delete(arr: Any, obj: Any, axis: int | None = None) -> Any:
    """`arr` without the slices that `obj` (positions, a slice, a mask) names along `axis`."""
    arr, axis, length = along(arr, axis, "delete", "arr")
    return take(arr, put_beside(arranged("delete", np.delete, np.arange(length), obj), arr), axis)


def insert(arr: Any, obj: Any, values: Any, axis: int | None = None) -> Any:
    """`arr` with `values` before the positions `obj` along `axis`, in the dtype of `arr`.

    Differentiated in both. `values` broadcast as in `numpy.insert`: before one position any number is inserted.
    """
    arr, axis, length = along(arr, axis, "insert", "arr")
    arr, values = in_one_dtype(arr, values)
    before = np.arange(length)
    count = arranged("insert", np.insert, before, obj, 0).size - length
    if count == 1:
        values = reshape(values, (1,) * (arr.ndim - values.ndim) + values.shape)
        if not isinstance(obj, slice) and np.ndim(obj) == 0:  # what is inserted is a slice: one axis less
            values = transpose(values, (*range(1, axis + 1), 0, *range(axis + 1, values.ndim)))
        count = values.shape[axis]
    while values.ndim > arr.ndim and values.shape[0] == 1:
        values = getitem(values, 0)
    room = broadcast_to(values, (*arr.shape[:axis], count, *arr.shape[axis + 1 :]))
    order = arranged("insert", np.insert, before, obj, np.arange(length, length + count))
    return take(concat([arr, room], axis), put_beside(order, arr), axis)


def append(arr: Any, values: Any, axis: int | None = None) -> Any:
    """`arr` and then `values` along `axis`; both flattened for None. Python's numbers take the dtype of `arr`."""
    arr = arrayed(arr)
    if not hasattr(values, "shape"):
        values = put_beside(values, arr)
        values = values.astype(arr.dtype) if arr.dtype.kind == "f" else values
    return concat([ravel(arr), ravel(values)]) if axis is None else concat([arr, values], axis)


def arranged(op: str, function: Callable[..., Any], positions: Any, obj: Any, *rest: Any) -> Any:
    """What NumPy's `function` does to positions, which then says what it does to arrays of any kind.

    How long the result is depends on `obj`: one on a device is fetched.
    """
    if isinstance(obj, Variable):
        integers(obj, op, "obj")
    obj = on_host(obj)
    try:
        return function(positions, obj, *rest)
    except (ValueError, TypeError, IndexError) as error:
        kind = OutOfRangeError if isinstance(error, IndexError) else ArgumentError
        raise kind(f"{op}: {error}\n  obj: {describe(obj)}") from error


# -- one of several --------------------------------------------------------------------------------


def choose(a: Any, choices: Any, *, mode: str = "raise") -> Any:
    """Each element from the array of `choices` that the integer at its place in `a` names; all broadcast.

    `mode` as in `numpy_take`, but for "raise" an integer below 0 is an error.
    """
    which, choices = integers(a, "choose", "a"), list(choices)
    which = in_range(which, len(choices), mode, "choose")
    require_indices(which, len(choices), "choose", "a")
    y = choices[-1]
    for i in range(max(len(choices) - 2, 0), -1, -1):
        y = where(equal(which, i), choices[i], y)
    return y


def select(condlist: Any, choicelist: Any, default: Any = 0) -> Any:
    """Each element from the array in `choicelist` of the first condition that holds, or `default`; all broadcast."""
    conditions, choices = [bare(c) for c in condlist], list(choicelist)
    if not conditions or len(conditions) != len(choices):
        raise ArgumentError(
            f"select: `condlist` and `choicelist` must have one length above 0, and {len(conditions)} and {len(choices)} came."
        )
    if any(c.dtype.kind != "b" for c in conditions):
        raise DtypeError("select: `condlist` must be boolean arrays. Compare: v > 0, v != 0.")
    y = default
    for condition, value in zip(conditions[::-1], choices[::-1], strict=True):
        y = where(condition, value, y)
    return y


def bare(value: Any, a: Any = None) -> Any:
    """The array of a condition, which is not differentiated; that of a list beside `a`."""
    if isinstance(value, Variable):
        return value._array
    return value if hasattr(value, "dtype") else put_beside(value, a)
