"""Ops on axes: broadcasting and its transpose, reshaping, exchanging axes, joining and splitting along them.

What moves elements within an axis (roll, flip, pad) or repeats them is in `arrange.py`; joining and splitting
by NumPy's other names (vstack, block, hsplit) in `join.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.primitive import Case, linear, primitive
from ..core.variable import Variable
from ..errors import OutOfRangeError, ShapeError, UnsupportedError, describe
from .elementwise import positive
from .operands import arrayed, axis_of


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
    a=lambda ct, a_shape, order: reshape(ct, a_shape, order),
    cases=[
        Case((2, 3), shape=(3, 2)),
        Case((2, 3), shape=-1),
        Case((4,), shape=(2, -1)),
        Case((1,), shape=()),
        Case((2, 3, 4), shape=(4, 6), order="F"),
    ],
)
def reshape(xp, a, *, shape, order="C"):
    r"""The elements of `a` in another shape; one axis may be -1.

    `order` "C" counts them with the last axis running fastest, "F" with the first.
    Raises UnsupportedError for the orders "A" and "K", which depend on where the elements lie in memory.
    """
    if order == "C":
        return xp.reshape(a, shape)
    if order != "F":
        raise UnsupportedError(f"reshape: `order` must be 'C' or 'F', and {order!r} came.")
    return xp.reshape(a, shape, order="F")


@linear(
    a=lambda ct, axes: transpose(ct, None if axes is None else inverse_permutation(axes)),
    cases=[Case((2, 3)), Case((2, 3, 4), axes=(1, 2, 0)), Case((2, 3, 4), axes=(-1, 0, 1)), Case(())],
)
def transpose(xp, a, *, axes=None):
    r"""`a` with its axes in another order; reversed for None."""
    return xp.transpose(a, axes)


def inverse_permutation(axes: tuple[int, ...]) -> tuple[int, ...]:
    """The order of axes that undoes `axes`."""
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


@linear(
    a=lambda ct, axis1, axis2: swapaxes(ct, axis1, axis2),
    cases=[Case((2, 3, 4), axis1=0, axis2=-1), Case((2, 3), axis1=1, axis2=1)],
)
def swapaxes(xp, a, *, axis1, axis2):
    r"""`a` with two of its axes exchanged."""
    return xp.swapaxes(a, axis1, axis2)


@linear(
    a=lambda ct, source, destination: moveaxis(ct, destination, source),
    cases=[
        Case((2, 3, 4), source=0, destination=-1),
        Case((2, 3, 4), source=(0, -1), destination=(1, 0)),
        Case((2, 0), source=-1, destination=0),
    ],
)
def moveaxis(xp, a, *, source, destination):
    r"""`a` with the axes `source` (an int or several) at the positions `destination`; the others keep their order."""
    return xp.moveaxis(a, source, destination)


def rollaxis(a: Any, axis: int, start: int = 0) -> Any:
    """`a` with one axis moved before the one that was at `start`. `moveaxis` says the same more plainly."""
    a = arrayed(a)
    axis = axis_of(a, axis, "rollaxis")
    before = start + a.ndim if start < 0 else start
    if not 0 <= before <= a.ndim:
        raise OutOfRangeError(
            f"rollaxis: `start` must be in {-a.ndim} … {a.ndim}, and {start} came.\n  a: {describe(a)}"
        )
    return moveaxis(a, axis, before - (axis < before))


def ravel(a: Any, order: str = "C") -> Any:
    """The elements of `a` on one axis."""
    return reshape(a, -1, order)


def copy(a: Any) -> Any:
    """A copy of `a`, through which gradients pass."""
    return positive(a) if isinstance(a, Variable) else arrayed(a).copy()


def each(arrays: Sequence[Any], function: Callable[[Any], Any]) -> Any:
    """`function` of one array, or of several as a tuple."""
    made = tuple(function(arrayed(a)) for a in arrays)
    return made[0] if len(made) == 1 else made


def atleast_1d(*arys: Any) -> Any:
    """Each array with at least one axis: () -> (1,). One is returned as it is, several as a tuple."""
    return each(arys, lambda a: a if a.ndim else reshape(a, (1,)))


def atleast_2d(*arys: Any) -> Any:
    """Each array with at least two axes: () -> (1, 1), (n,) -> (1, n)."""
    return each(arys, lambda a: a if a.ndim > 1 else reshape(a, (1, a.size)))


def atleast_3d(*arys: Any) -> Any:
    """Each array with at least three axes: () -> (1, 1, 1), (n,) -> (1, n, 1), (m, n) -> (m, n, 1)."""
    return each(arys, lambda a: a if a.ndim > 2 else expand_dims(atleast_2d(a), -1))


def broadcast_arrays(*args: Any) -> tuple[Any, ...]:
    """The arrays broadcast against each other, as a tuple."""
    arrays = [arrayed(a) for a in args]
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError as error:
        raise ShapeError(
            f"broadcast_arrays: the shapes do not broadcast.\n  args: [{', '.join(map(describe, arrays))}]"
        ) from error
    return tuple(a if a.shape == shape else broadcast_to(a, shape) for a in arrays)


# -- diagonals -------------------------------------------------------------------------------------


@linear(
    a=lambda ct, a_shape, offset, axis1, axis2: put_diagonal(ct, a_shape, offset, axis1, axis2),
    cases=[
        Case((3, 4)),
        Case((3, 4), offset=2),
        Case((4, 2), offset=-1),
        Case((2, 3, 4), offset=1, axis1=-1, axis2=0),
        Case((2, 3), offset=5),
        Case((0, 3)),
    ],
)
def diagonal(xp, a, *, offset=0, axis1=0, axis2=1):
    r"""The diagonal of two axes, $y_{\ldots i} = a_{\ldots i, i + \mathrm{offset}}$, as a new last axis."""
    return xp.diagonal(a, offset, axis1, axis2).copy()  # a view would keep all of `a` alive


@linear(
    a=lambda ct, offset, axis1, axis2: diagonal(ct, offset, axis1, axis2),
    cases=[
        Case((3,), shape=(3, 4)),
        Case((3, 1), shape=(2, 3, 4), offset=1, axis1=-1, axis2=0),
        Case((0,), shape=(2, 3), offset=5),
    ],
)
def put_diagonal(xp, a, *, shape, offset=0, axis1=0, axis2=1):
    r"""Zeros of `shape` with `a` on a diagonal: the transpose of `diagonal`."""
    axes = (axis1 % len(shape), axis2 % len(shape))
    rest = [n for i, n in enumerate(shape) if i not in axes]
    m, n = (shape[i] for i in axes)
    # With the rows of each matrix one behind the other, a diagonal is every n + 1st element.
    y = xp.zeros((*rest, m * n), a.dtype)
    first = max(offset, 0) - min(offset, 0) * n
    y[..., first : first + a.shape[-1] * (n + 1) : n + 1] = a
    return xp.moveaxis(xp.reshape(y, (*rest, m, n)), (-2, -1), axes)


# -- joining and splitting -------------------------------------------------------------------------


@primitive(
    variadic="arrays",
    arrays=lambda ct, arrays_shape, axis: split(ct, borders(arrays_shape, axis), axis),
    cases=[Case([(2, 3), (1, 3)]), Case([(2, 3), (2, 1), (2, 2)], axis=-1), Case([(2,), (0,)])],
)
def concat(xp, arrays, *, axis=0):
    r"""The arrays joined along an existing axis."""
    if axis is None:
        raise ShapeError("concat: `axis` must be a number. concatenate(arrays, None) joins flattened arrays.")
    return xp.concatenate(arrays, axis=axis)


def concatenate(arrays: Any, axis: int | None = 0) -> Any:
    """The arrays joined along an existing axis, or flattened and then joined for None."""
    return concat([ravel(a) for a in arrays], 0) if axis is None else concat(arrays, axis)


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


def uneven(a: Any, indices_or_sections: Any, axis: int) -> str:
    """What is wrong with a cut."""
    if not -a.ndim <= axis < a.ndim:
        return f"`a` has no axis {axis}."
    if np.ndim(indices_or_sections) or not isinstance(indices_or_sections, int | np.integer):
        return "`indices_or_sections` must be an integer, or the positions of the cuts."
    return (
        f"{a.shape[axis]} elements do not make {indices_or_sections} equal parts.\n"
        f"array_split makes parts whose lengths differ by one."
    )


@primitive(
    outputs="parts",
    a=lambda ct, axis: concat(ct, axis),
    diagnose=uneven,
    cases=[
        Case((6, 2), indices_or_sections=3),
        Case((2, 5), indices_or_sections=(1, 4), axis=-1),
        Case((3,), indices_or_sections=(0, 2)),
        Case((4,), indices_or_sections=(-3, 9)),
    ],
)
def split(xp, a, *, indices_or_sections, axis=0):
    r"""`a` cut along `axis`: into equal parts, or at the given positions, which must ascend. Returns a tuple."""
    n = a.shape[axis]
    if isinstance(indices_or_sections, int | np.integer):
        length, left_over = divmod(n, indices_or_sections)
        if left_over or indices_or_sections < 1:
            raise ValueError
        cuts = range(length, n, length) if length else (0,) * (indices_or_sections - 1)
    else:
        cuts = indices_or_sections
    # Slices: np.split exchanges axes for each part, which takes twice as long.
    before = (slice(None),) * (axis % a.ndim)
    indices = [(*before, slice(i, j)) for i, j in itertools.pairwise((0, *cuts, n))]
    parts = tuple([a[index] for index in indices])
    if sum([part.shape[axis] for part in parts]) != n:
        raise ShapeError(
            f"split: `indices_or_sections` must ascend, and {indices_or_sections} came for length {n}.\n"
            f"  These parts overlap: take slices of `a` instead."
        )
    return parts


@primitive(outputs="parts", a=lambda ct, axis: stack(ct, axis), cases=[Case((3, 2)), Case((2, 3), axis=-1)])
def unstack(xp, a, *, axis=0):
    r"""The slices of `a` along `axis`, without that axis. Returns a tuple."""
    if not -a.ndim <= axis < a.ndim or a.shape[axis] == 0:
        raise ShapeError(f"unstack: `a` has nothing to take apart along axis {axis}.\n  a: {describe(a)}")
    return tuple(xp.moveaxis(a, axis, 0))
