"""Ops that move elements without changing them: broadcast and its transpose, reshape, transpose, joining, splitting."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.primitive import Case, linear, primitive
from ..errors import ShapeError, describe


@linear(
    a=lambda ct, a_shape: sum_to(ct, a_shape),
    cases=[
        Case((3,), shape=(2, 3)),
        Case((2, 1), shape=(4, 2, 3)),
        Case((), shape=(2, 3)),
        Case((0, 1), shape=(0, 3)),
    ],
)
def broadcast_to(xp, a, *, shape):
    r"""`a` repeated to `shape` by NumPy's rules."""
    return xp.broadcast_to(a, shape)


@linear(
    a=lambda ct, a_shape: broadcast_to(ct, a_shape),
    cases=[
        Case((2, 3), shape=(3,)),
        Case((4, 2, 3), shape=(2, 1)),
        Case((2, 3), shape=()),
        Case((0, 3), shape=(1, 3)),
    ],
)
def sum_to(xp, a, *, shape):
    """`a` with the axes that broadcasting added summed away.

    Shapes: (..., *shape) -> shape.   Keeps nothing.
    """
    extra = a.ndim - len(shape)
    axes = (*range(extra), *(i for i, n in enumerate(shape, extra) if n == 1 and a.shape[i] != 1))
    return a.sum(axis=axes, keepdims=True).reshape(shape)


@linear(
    a=lambda ct, a_shape: reshape(ct, a_shape),
    cases=[
        Case((2, 3), shape=(3, 2)),
        Case((2, 3), shape=-1),
        Case((4,), shape=(2, -1)),
        Case((1,), shape=()),
    ],
)
def reshape(xp, a, *, shape):
    r"""The elements of `a`, in C order, in another shape; one axis may be -1."""
    return xp.reshape(a, shape)


@linear(
    a=lambda ct, axes: transpose(ct, None if axes is None else inverse_permutation(axes)),
    cases=[Case((2, 3)), Case((2, 3, 4), axes=(1, 2, 0)), Case((2, 3, 4), axes=(-1, 0, 1)), Case(())],
)
def transpose(xp, a, *, axes=None):
    r"""`a` with its axes in another order; reversed for None."""
    return xp.transpose(a, axes)


def inverse_permutation(axes: tuple[int, ...]) -> tuple[int, ...]:
    order = [axis % len(axes) for axis in axes]
    return tuple(order.index(i) for i in range(len(axes)))


@linear(
    a=lambda ct: matrix_transpose(ct),
    cases=[Case((2, 3)), Case((4, 2, 3))],
)
def matrix_transpose(xp, a):
    r"""`a` with its last two axes exchanged. Shapes: (..., m, n) -> (..., n, m)."""
    return xp.swapaxes(a, -1, -2)


@linear(
    a=lambda ct, a_shape: reshape(ct, a_shape),
    cases=[Case((2, 3), axis=0), Case((2, 3), axis=-1), Case((), axis=0), Case((2,), axis=(0, 2))],
)
def expand_dims(xp, a, *, axis):
    r"""`a` with a new axis of length 1 at `axis`."""
    return xp.expand_dims(a, axis)


@linear(
    a=lambda ct, a_shape: reshape(ct, a_shape),
    cases=[Case((2, 1, 3)), Case((1, 2), axis=0), Case((1, 2, 1), axis=(0, 2))],
)
def squeeze(xp, a, *, axis=None):
    r"""`a` without its axes of length 1, or without those named."""
    return xp.squeeze(a, axis=axis)


# -- joining and splitting -------------------------------------------------------------------------


@primitive(
    variadic="arrays",
    arrays=lambda ct, arrays_shape, axis: split(ct, borders(arrays_shape, axis), axis),
    cases=[Case([(2, 3), (1, 3)]), Case([(2, 3), (2, 1), (2, 2)], axis=-1), Case([(2,), (0,)])],
)
def concat(xp, arrays, *, axis=0):
    r"""The arrays joined along an existing axis."""
    if axis is None:
        raise ShapeError("concat: `axis` must be a number. To join flattened arrays, ravel them first.")
    return xp.concatenate(arrays, axis=axis)


def borders(shapes: list[tuple[int, ...]], axis: int) -> tuple[int, ...]:
    """Where the second and later of the joined arrays begin."""
    return tuple(np.cumsum([shape[axis] for shape in shapes])[:-1].tolist())


@primitive(
    variadic="arrays",
    arrays=lambda ct, axis: unstack(ct, axis),
    cases=[Case([(2, 3), (2, 3)]), Case([(2, 3), (2, 3), (2, 3)], axis=-1), Case([(), ()])],
)
def stack(xp, arrays, *, axis=0):
    r"""The arrays joined along a new axis."""
    return xp.stack(arrays, axis=axis)


@primitive(
    outputs="parts",
    a=lambda ct, axis: concat(ct, axis),
    cases=[
        Case((6, 2), indices_or_sections=3),
        Case((2, 5), indices_or_sections=(1, 4), axis=-1),
        Case((3,), indices_or_sections=(0, 2)),
    ],
)
def split(xp, a, *, indices_or_sections, axis=0):
    r"""`a` cut along `axis`: into equal parts, or at the given positions. Returns a tuple."""
    return tuple(xp.split(a, indices_or_sections, axis=axis))


@primitive(outputs="parts", a=lambda ct, axis: stack(ct, axis), cases=[Case((3, 2)), Case((2, 3), axis=-1)])
def unstack(xp, a, *, axis=0):
    r"""The slices of `a` along `axis`, without that axis. Returns a tuple."""
    if a.ndim == 0 or a.shape[axis] == 0:
        raise ShapeError(f"unstack: `a` has nothing to take apart along axis {axis}.\n  a: {describe(a)}")
    return tuple(xp.moveaxis(a, axis, 0))


def ravel(a: Any) -> Any:
    """The elements of `a` on one axis."""
    return reshape(a, -1)
