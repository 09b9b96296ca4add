"""Products of vectors, matrices and stacks of them; sums over axes that two arrays share (contractions).

`matmul` is the primitive that nearly all of them are made of: its rule runs where BLAS does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend.capture import product
from ..core.primitive import Case, primitive, unbroadcast
from ..errors import ShapeError, describe
from .elementwise import multiply
from .operands import arrayed, axis_of
from .reduce import sum
from .shape import diagonal, expand_dims, moveaxis, ravel, reshape, squeeze, transpose


def left_pullback(ct: Any, b: Any, a_shape: tuple[int, ...]) -> Any:
    """The cotangent of `a` in `a @ b`: ct @ bᵀ, with the axes that matmul adds to vectors."""
    if b.ndim == 2 and ct.ndim == 2:  # the common case first: two matrices
        return product(ct, b.mT)
    if b.ndim == 1:
        return unbroadcast(multiply(expand_dims(ct, -1), b), a_shape)
    if len(a_shape) == 1:
        return unbroadcast(product(b, expand_dims(ct, -1)).squeeze(-1), a_shape)
    return unbroadcast(product(ct, b.mT), a_shape)


def right_pullback(ct: Any, a: Any, b_shape: tuple[int, ...]) -> Any:
    """The cotangent of `b` in `a @ b`: aᵀ @ ct, with the axes that matmul adds to vectors."""
    if a.ndim == 2 and ct.ndim == 2:
        if a.shape[0] == 1 and type(a) is type(ct) is np.ndarray:
            return np.dot(a.mT, ct)  # an outer product: matmul takes 38 µs for 128 x 256, dot 7
        return product(a.mT, ct)
    if len(b_shape) == 1:
        ct = expand_dims(ct, -1)
        if a.ndim == 1:
            return (ct * a).reshape(b_shape)
        return unbroadcast(product(a.mT, ct).squeeze(-1), b_shape)
    if a.ndim == 1:
        return unbroadcast(multiply(expand_dims(a, -1), expand_dims(ct, -2)), b_shape)
    return unbroadcast(product(a.mT, ct), b_shape)


def inner_lengths(a: Any, b: Any) -> str:
    """What is wrong with the shapes of `a @ b`."""
    if not a.ndim or not b.ndim:
        return "the operands must have at least one axis; use * for scalars."
    m, n = a.shape[-1], b.shape[-2 if b.ndim > 1 else 0]
    if m == n:
        return "the leading axes must broadcast."
    said = "the last axis of `a` and the next-to-last of `b` must agree."
    fits = b.ndim > 1 and b.shape[-1] == m
    return f"{said}\n{m} != {n}." + (
        " If `b` holds weights as (out, in), write matmul(a, b.T)." if fits else ""
    )


@primitive(
    a=left_pullback,
    b=right_pullback,
    diagnose=inner_lengths,
    cases=[
        Case((2, 3), (3, 4)),
        Case((1, 3), (3, 4)),
        Case((3,), (3,)),
        Case((3,), (3, 4)),
        Case((2, 3), (3,)),
        Case((5, 2, 3), (3, 4)),
        Case((2, 3), (5, 3, 4)),
        Case((5, 1, 2, 3), (4, 3, 2)),
        Case((3,), (5, 3, 4)),
        Case((5, 2, 3), (3,)),
        Case((0, 3), (3, 2)),
    ],
)
def matmul(xp, a, b):
    r"""Matrix product, $y = a b$, by NumPy's rules for vectors and stacks.

    Shapes: (..., m, k), (..., k, n) -> (..., m, n).
    """
    return xp.matmul(a, b)


# -- products of vectors -----------------------------------------------------------------------------


@primitive(
    a=lambda ct, b, a_shape: unbroadcast(multiply(expand_dims(ct, -1), b), a_shape),
    b=lambda ct, a, b_shape: unbroadcast(multiply(expand_dims(ct, -1), a), b_shape),
    cases=[Case((3,), (3,)), Case((2, 3), (3,)), Case((4, 1, 3), (2, 3)), Case((2, 0), (2, 0))],
)
def dot_last(xp, a, b):
    r"""Inner products of the vectors on the last axis, $y = \sum_i a_i b_i$.

    Shapes: (..., n), (..., n) -> (...).
    """
    if hasattr(xp, "vecdot"):
        return xp.vecdot(a, b)
    return xp.matmul(a[..., None, :], b[..., None])[..., 0, 0]  # CuPy does not have it


def vecdot(x1: Any, x2: Any, *, axis: int = -1) -> Any:
    r"""Inner products of the vectors on `axis` of both, $y = \sum_i a_i b_i$; other axes broadcast."""
    x1, x2 = moved_last(x1, axis, "vecdot", "x1"), moved_last(x2, axis, "vecdot", "x2")
    if x1.shape[-1] != x2.shape[-1]:
        raise ShapeError(
            f"vecdot: the vectors must have the same length.\n  x1: {describe(x1)}      x2: {describe(x2)}\n"
            f"  {x1.shape[-1]} != {x2.shape[-1]}."
        )
    return dot_last(x1, x2)


def moved_last(a: Any, axis: int, op: str, argument: str) -> Any:
    """`a` with `axis` as its last; nothing is recorded where it is."""
    a = arrayed(a)
    return a if axis_of(a, axis, op, argument) == a.ndim - 1 else moveaxis(a, axis, -1)


def matvec(x1: Any, x2: Any) -> Any:
    r"""Matrix times vector, for stacks of both, $y_i = \sum_j a_{ij} b_j$. Shapes: (..., m, n), (..., n) -> (..., m)."""
    return squeeze(matmul(x1, expand_dims(x2, -1)), -1)


def vecmat(x1: Any, x2: Any) -> Any:
    r"""Vector times matrix, for stacks of both, $y_j = \sum_i a_i b_{ij}$. Shapes: (..., m), (..., m, n) -> (..., n)."""
    return squeeze(matmul(expand_dims(x1, -2), x2), -2)


@primitive(
    a=lambda ct, b, a_shape: unbroadcast(cross_last(b, ct), a_shape),
    b=lambda ct, a, b_shape: unbroadcast(cross_last(ct, a), b_shape),
    cases=[Case((3,), (3,)), Case((2, 3), (3,)), Case((4, 1, 3), (2, 3)), Case((0, 3), (3,))],
)
def cross_last(xp, a, b):
    r"""Cross products of the vectors on the last axis, $y = a \times b$. Shapes: (..., 3), (..., 3) -> (..., 3).

    The three factors of $y^\top (a \times b)$ may be rotated, and so the pullbacks are cross products too.
    """
    return xp.cross(a, b)


def cross(a: Any, b: Any, axisa: int = -1, axisb: int = -1, axisc: int = -1, axis: int | None = None) -> Any:
    r"""Cross products, $y = a \times b$, of the vectors on `axisa` and `axisb`; the results lie on `axisc`.

    `axis` stands for all three. Raises ShapeError for vectors that do not have 3 elements.
    """
    if axis is not None:
        axisa = axisb = axisc = axis
    a, b = moved_last(a, axisa, "cross", "a"), moved_last(b, axisb, "cross", "b")
    if a.shape[-1] != 3 or b.shape[-1] != 3:
        raise ShapeError(
            f"cross: vectors must have 3 elements.\n  a: {describe(a)}      b: {describe(b)}\n"
            f"  For vectors of 2 write a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]."
        )
    y = cross_last(a, b)
    return y if axisc == -1 else moveaxis(y, -1, axisc)


# -- contractions ------------------------------------------------------------------------------------


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    r"""Sum over axes that `a` and `b` share, $y_{ij} = \sum_k a_{ik} b_{kj}$ with $k$ standing for all of them.

    `axes`: how many (the last of `a` with the first of `b`), or a pair of axes or of sequences of axes.
    """
    a, b = arrayed(a), arrayed(b)
    of_a, of_b = summed_axes(a, b, axes)
    rest_a = [i for i in range(a.ndim) if i not in of_a]
    rest_b = [i for i in range(b.ndim) if i not in of_b]
    length = math.prod(a.shape[i] for i in of_a)
    left = as_matrix(a, (*rest_a, *of_a), (math.prod(a.shape[i] for i in rest_a), length))
    right = as_matrix(b, (*of_b, *rest_b), (length, math.prod(b.shape[i] for i in rest_b)))
    shape = (*(a.shape[i] for i in rest_a), *(b.shape[i] for i in rest_b))
    y = matmul(left, right)
    return y if y.shape == shape else reshape(y, shape)


def summed_axes(a: Any, b: Any, axes: Any) -> tuple[list[int], list[int]]:
    """The axes of `a` and of `b` that are summed over, or the error that says why they do not fit."""
    if isinstance(axes, (int, np.integer)):
        pair: Any = (range(-axes, 0), range(axes))
    else:
        pair = tuple([i] if isinstance(i, (int, np.integer)) else list(i) for i in axes)
    try:
        of_a, of_b = ([range(x.ndim)[i] for i in p] for x, p in zip((a, b), pair, strict=True))
    except (IndexError, ValueError) as error:
        raise ShapeError(
            f"tensordot: `axes` must be a number of axes that both have, or a pair of them, and {axes} came.\n"
            f"  a: {describe(a)}      b: {describe(b)}"
        ) from error
    lengths = [[x.shape[i] for i in of] for x, of in ((a, of_a), (b, of_b))]
    if lengths[0] != lengths[1] or len(set(of_a)) < len(of_a) or len(set(of_b)) < len(of_b):
        raise ShapeError(
            f"tensordot: the axes that are summed must have the same lengths, and none may be named twice.\n"
            f"  a: {describe(a)}      b: {describe(b)}\n"
            f"  axes {tuple(of_a)} of `a` have {lengths[0]}, axes {tuple(of_b)} of `b` have {lengths[1]}."
        )
    return of_a, of_b


def as_matrix(a: Any, order: tuple[int, ...], shape: tuple[int, int]) -> Any:
    """`a` with its axes in `order`, as a matrix; nothing is recorded for what is so already."""
    if order == (1, 0) and a.shape[::-1] == shape:
        return a.mT
    if order != tuple(range(a.ndim)):
        a = transpose(a, order)
    return a if a.shape == shape else reshape(a, shape)


def dot(a: Any, b: Any) -> Any:
    r"""NumPy's dot: the last axis of `a` with the next-to-last of `b`, $y_{ij} = \sum_k a_{ik} b_{kj}$; a product for scalars.

    Unlike `matmul`, stacks are not paired: each matrix of `a` meets each of `b`.
    """
    a, b = arrayed(a), arrayed(b)
    if not a.ndim or not b.ndim:
        return multiply(a, b)
    return tensordot(a, b, (-1, -2)) if a.ndim > 1 and b.ndim > 2 else matmul(a, b)


def inner(a: Any, b: Any) -> Any:
    r"""The last axis of `a` with the last of `b`, $y_{ij} = \sum_k a_{ik} b_{jk}$; a product for scalars."""
    a, b = arrayed(a), arrayed(b)
    return tensordot(a, b, (-1, -1)) if a.ndim and b.ndim else multiply(a, b)


def outer(a: Any, b: Any) -> Any:
    r"""All products of an element of `a` with one of `b`, $y_{ij} = a_i b_j$, both flattened."""
    return multiply(expand_dims(ravel(a), 1), ravel(b))


def vdot(a: Any, b: Any) -> Any:
    r"""Inner product of all elements, $y = \sum_i a_i b_i$, both flattened."""
    return matmul(ravel(a), ravel(b))


def kron(a: Any, b: Any) -> Any:
    r"""Kronecker product: `b` repeated, once for each element of `a` and times it, $y_{(ik)(jl)} = a_{ij} b_{kl}$."""
    a, b = arrayed(a), arrayed(b)
    n = max(a.ndim, b.ndim)
    shape_a, shape_b = ((1,) * (n - x.ndim) + x.shape for x in (a, b))
    spaced_a = reshape(a, tuple(k for i in shape_a for k in (i, 1)))
    spaced_b = reshape(b, tuple(k for i in shape_b for k in (1, i)))
    return reshape(multiply(spaced_a, spaced_b), tuple(i * j for i, j in zip(shape_a, shape_b, strict=True)))


def trace(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    r"""Sum along a diagonal, $y = \sum_i a_{i,\,i+\mathrm{offset}}$, of the matrices on `axis1` and `axis2`."""
    return sum(diagonal(a, offset, axis1, axis2), -1)


# -- chains of products --------------------------------------------------------------------------------


def multi_dot(arrays: Sequence[Any]) -> Any:
    r"""Product of two or more matrices, $y = a_1 a_2 \cdots a_n$, in the order that multiplies least.

    The first and the last may be vectors. Raises ShapeError for stacks. Source of the order: Cormen et al.,
    "Introduction to Algorithms", the chain of matrices.
    """
    arrays = [arrayed(a) for a in arrays]
    ends = (0, len(arrays) - 1)
    if len(arrays) < 2 or any(a.ndim != 2 and not (a.ndim == 1 and i in ends) for i, a in enumerate(arrays)):
        raise ShapeError(
            f"multi_dot: expected two or more matrices, of which the first and the last may be vectors.\n"
            f"  arrays: [{', '.join(map(describe, arrays))}]"
        )
    rows = [a.shape[0] if a.ndim == 2 else 1 if i == 0 else a.shape[0] for i, a in enumerate(arrays)]
    last = arrays[-1]
    cuts = cheapest_cuts([*rows, last.shape[1] if last.ndim == 2 else 1])

    def product(i: int, j: int) -> Any:
        return arrays[i] if i == j else matmul(product(i, cuts[i, j]), product(cuts[i, j] + 1, j))

    return product(*ends)


def cheapest_cuts(sizes: Sequence[int]) -> dict[tuple[int, int], int]:
    """Where to cut each piece of a chain whose matrix `i` is sizes[i] by sizes[i + 1]."""
    count = len(sizes) - 1
    cost = {(i, i): 0 for i in range(count)}
    cuts: dict[tuple[int, int], int] = {}
    for span in range(1, count):
        for i in range(count - span):
            j = i + span
            cost[i, j], cuts[i, j] = min(
                (cost[i, k] + cost[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k) for k in range(i, j)
            )
    return cuts
