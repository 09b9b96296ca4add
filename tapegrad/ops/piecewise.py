"""Functions of the caller applied piece by piece: to the rows of an array, over axes in turn, where a condition holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend.device import flat, module_beside
from ..errors import ShapeError, describe
from .index import getitem, put_at
from .operands import arrayed, axis_of
from .shape import broadcast_to, expand_dims, moveaxis, reshape, stack, unstack


def apply_along_axis(func1d: Callable[..., Any], axis: int, arr: Any, *args: Any, **kwargs: Any) -> Any:
    """`func1d` of every vector along `axis`; its results stand in the place of that axis.

    Shapes: (..., n, ...) -> (..., *shape of a result, ...). Each call is recorded by itself, so an op that
    takes `axis=` does the same much sooner. Raises ShapeError if there is no vector to call it with.
    """
    arr = arrayed(arr)
    axis = axis_of(arr, axis, "apply_along_axis", "arr")
    rows = moveaxis(arr, axis, -1)
    rest = rows.shape[:-1]
    if 0 in rest:
        raise ShapeError(f"apply_along_axis: there is no vector along axis {axis}.\n  arr: {describe(arr)}")
    y = stack(
        [func1d(row, *args, **kwargs) for row in unstack(reshape(rows, (math.prod(rest), arr.shape[axis])))]
    )
    y = reshape(y, (*rest, *y.shape[1:]))
    made = y.ndim - len(rest)
    return moveaxis(y, tuple(range(len(rest), y.ndim)), tuple(range(axis, axis + made)))


def apply_over_axes(func: Callable[[Any, int], Any], a: Any, axes: Any) -> Any:
    """`func(a, axis)` for each of `axes` in turn, with the axes that it folds away kept at length 1."""
    y = arrayed(a)
    for axis in map(int, np.ravel(axes)):
        place = axis + y.ndim if axis < 0 else axis
        made = func(y, place)
        folded = made.ndim == y.ndim - 1
        if not folded and made.ndim != y.ndim:
            raise ShapeError(
                f"apply_over_axes: `func` must fold one axis of {describe(y)}, and gave {describe(made)}."
            )
        y = expand_dims(made, place) if folded else made
    return y


def piecewise(x: Any, condlist: Any, funclist: Sequence[Any], *args: Any, **kw: Any) -> Any:
    """$y_i = f_k(x_i)$ where condition $k$ holds: functions of the elements picked, or numbers.

    The last condition that holds decides; one function more than conditions is for the elements where
    none holds, and without it they give 0. Gradients pass only to the function that was picked, so none
    is evaluated where it is not defined.
    """
    x = arrayed(x)
    xp = module_beside(*flat([condlist]))
    conditions = condlist if hasattr(condlist, "ndim") or xp is np else xp.stack(condlist)
    conditions = xp.asarray(conditions, bool)
    if conditions.ndim == x.ndim:
        conditions = conditions[None]
    if len(funclist) == len(conditions) + 1:
        conditions = xp.concatenate([conditions, ~conditions.any(axis=0, keepdims=True)])
    if len(funclist) != len(conditions) or conditions.shape[1:] != x.shape:
        raise ShapeError(
            f"piecewise: each of `condlist` must have the shape of `x`, and a function.\n"
            f"  x: {describe(x)}      condlist: {describe(conditions)}      funclist: {len(funclist)} functions"
        )
    last = xp.full(x.shape, -1)
    for k, condition in enumerate(conditions):
        last[condition] = k
    nowhere = xp.zeros(x.shape, bool)
    y = put_at(getitem(x, nowhere), nowhere, x.shape)  # zeros, recorded as what comes of no element of x
    for k, function in enumerate(funclist):
        held, count = conditions[k], int(np.count_nonzero(conditions[k]))
        if not (last == k).any():
            continue
        made = function(getitem(x, held), *args, **kw) if callable(function) else function
        made = made if hasattr(made, "shape") else xp.asarray(made, x.dtype)
        made = made if made.shape == (count,) else broadcast_to(made, (count,))
        y = y + put_at(getitem(made, last[held] == k), last == k, x.shape)
    return y
