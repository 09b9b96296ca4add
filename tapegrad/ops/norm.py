"""Norms of vectors and matrices, and what they say of a matrix: its condition, its rank.

At a kink (an element or a norm that is 0) the derivative is taken as 0, and of equal largest elements the
first counts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..core.primitive import Case, primitive
from ..errors import ArgumentError, ShapeError, describe
from .elementwise import absolute, divide, equal, not_equal, power, sign, where
from .factor import svdvals
from .matrix import inv
from .operands import arrayed, value_of
from .reduce import REDUCTIONS, kept_axes, max, min, spread, sum
from .shape import moveaxis, reshape

NORMED = [*REDUCTIONS, Case((0, 3), axis=-1)]


def share(ct: Any, y: Any) -> Any:
    """ct / y, and 0 where y is 0."""
    zero = equal(y, 0)
    return where(zero, 0.0, ct / where(zero, 1.0, y))


@primitive(
    a=lambda ct, a, axis, y: a * spread(share(ct, y), a.shape, axis),
    special=(0.0,),
    cases=NORMED,
)
def euclidean_norm(xp, a, *, axis=None, keepdims=False):
    r"""$y = \sqrt{\sum_i a_i^2}$ over `axis`. The derivative where it is 0 is taken as 0."""
    return xp.sqrt(xp.sum(xp.multiply(a, a), axis=axis, keepdims=keepdims))


def p_norm_pullback(ct: Any, a: Any, axis: Any, y: Any, ord: float) -> Any:
    """ā = ȳ sign(a) (|a| / y)^(p - 1), 0 where `a` or `y` is."""
    size = absolute(a)
    part = share(size, spread(y, a.shape, axis))
    nothing = equal(part, 0)
    slope = where(nothing, 0.0, power(where(nothing, 1.0, part), ord - 1.0))
    return sign(a) * slope * spread(ct, a.shape, axis)


@primitive(
    a=p_norm_pullback,
    special=(0.0,),
    kinks=(0.0,),
    cases=[
        *(Case(*c.inputs, **c.statics, ord=p) for c in REDUCTIONS for p in (3.0, 1.5)),
        Case((2, 3), axis=-1, ord=0.5),
        Case((2, 3), axis=-1, ord=-2.0),
    ],
)
def p_norm(xp, a, *, ord, axis=None, keepdims=False):
    r"""$y = (\sum_i |a_i|^p)^{1/p}$ over `axis`, with p = `ord`. The derivative at 0, of an element or in all, is taken as 0."""
    total = xp.sum(xp.power(xp.absolute(a), ord), axis=axis, keepdims=keepdims)
    return xp.power(total, 1.0 / ord)


# -- what a user calls ---------------------------------------------------------------------------------


def floating(x: Any) -> Any:
    """`x` as an array of floating point; integers as float64, of which NumPy takes norms too."""
    x = arrayed(x)
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def of_vectors(x: Any, ord: Any, axis: Any, keepdims: bool) -> Any:
    """The norm `ord` over one axis, or over several as one vector."""
    if ord is None or ord == 2:
        return euclidean_norm(x, axis, keepdims)
    if isinstance(ord, str):
        raise ArgumentError(f"norm: of a vector there is no norm {ord!r}. `ord` must be a number or None.")
    if ord == math.inf:
        return max(absolute(x), axis, keepdims)
    if ord == -math.inf:
        return min(absolute(x), axis, keepdims)
    if ord == 0:  # the number of elements that are not 0: a constant
        return sum(not_equal(x, 0).astype(x.dtype), axis, keepdims)
    if ord == 1:
        return sum(absolute(x), axis, keepdims)
    return p_norm(x, float(ord), axis, keepdims)


def of_matrices(x: Any, ord: Any, axes: tuple[int, int], keepdims: bool) -> Any:
    """The norm `ord` of the matrices on two axes."""
    rows, columns = (i % x.ndim if -x.ndim <= i < x.ndim else i for i in axes)
    if rows == columns:
        raise ShapeError(f"norm: a matrix has two axes, and {axes} came.\n  x: {describe(x)}")
    if ord in (None, "fro"):
        return euclidean_norm(x, axes, keepdims)
    if ord in ("nuc", 2, -2):
        values = svdvals(moveaxis(x, axes, (-2, -1)))
        y = {"nuc": sum, 2: max, -2: min}[ord](values, -1)
    elif ord in (1, -1, math.inf, -math.inf):
        first, last = (rows, columns) if abs(ord) == 1 else (columns, rows)
        y = (max if ord > 0 else min)(sum(absolute(x), first), last - (last > first))
    else:
        raise ArgumentError(
            f"norm: of a matrix there is no norm {ord!r}. `ord` must be one of None, 'fro', 'nuc', 1, -1, 2, -2, inf, -inf."
        )
    return reshape(y, kept_axes(x.shape, axes)) if keepdims else y


def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    r"""The norm `ord` of vectors (along an int `axis`) or of matrices (along two axes); by default $\sqrt{\sum_i x_i^2}$ of all.

    Vectors: any p, inf, -inf, and 0, the number of elements that are not 0, which is a constant. Matrices:
    "fro", "nuc" (the sum of the singular values), 2 and -2 (the largest and the smallest), 1 and -1 (of the
    sums of columns), inf and -inf (of rows). Where a norm is 0 or an element is, the derivative is taken as 0.
    """
    x = floating(x)
    if axis is None:
        if ord is None:
            return euclidean_norm(x, None, keepdims)
        if x.ndim not in (1, 2):
            raise ShapeError(
                f"norm: `ord` of an array that is no vector or matrix needs an `axis`.\n  x: {describe(x)}"
            )
        axis = tuple(range(x.ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    if not all(isinstance(i, (int, np.integer)) for i in axes):
        raise ArgumentError(f"norm: `axis` must be an integer or two in a tuple, and {describe(axis)} came.")
    if len(axes) == 1:
        return of_vectors(x, ord, axes[0], keepdims)
    if len(axes) != 2:
        raise ShapeError(f"norm: `axis` must be one axis or two, and {axis} came. See vector_norm for more.")
    return of_matrices(x, ord, axes, keepdims)


def vector_norm(x: Any, *, axis: Any = None, keepdims: bool = False, ord: Any = 2) -> Any:
    """The norm `ord` of `x` as one vector, or along `axis`, which may be several that are taken as one."""
    return of_vectors(floating(x), ord, axis, keepdims)


def matrix_norm(x: Any, *, keepdims: bool = False, ord: Any = "fro") -> Any:
    """The norm `ord` of the matrices on the last two axes, see `norm`."""
    return norm(x, ord, (-2, -1), keepdims)


def cond(x: Any, p: Any = None) -> Any:
    r"""Condition number, $y = \|x\|_p \, \|x^{-1}\|_p$: of the largest to the smallest singular value by default.

    Infinite for a singular matrix and p = None, 2; MatrixError for another p.
    """
    x = arrayed(x)
    if p not in (None, 2, -2):
        return norm(x, p, (-2, -1)) * norm(inv(x), p, (-2, -1))
    values = svdvals(x)
    if not values.shape[-1]:
        raise ShapeError(f"cond: an empty matrix has none.\n  x: {describe(x)}")
    largest, smallest = values[..., 0], values[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return divide(smallest, largest) if p == -2 else divide(largest, smallest)


def matrix_rank(A: Any, tol: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
    """How many singular values are not negligible: an array, not differentiated."""
    # CuPy has neither keyword: each is passed only where it says something.
    others = {"rtol": rtol} if rtol is not None else {}
    if hermitian:
        others["hermitian"] = True
    return np.linalg.matrix_rank(value_of(A), tol, **others)
