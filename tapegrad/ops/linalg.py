"""Products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.primitive import Case, primitive, unbroadcast
from .elementwise import multiply
from .shape import expand_dims


def left_pullback(ct: Any, b: Any, a_shape: tuple[int, ...]) -> Any:
    """The cotangent of `a` in `a @ b`: ct @ bᵀ, with the axes that matmul adds to vectors."""
    if b.ndim == 2 and ct.ndim == 2:  # the common case first: two matrices
        return ct @ b.mT
    if b.ndim == 1:
        return unbroadcast(multiply(expand_dims(ct, -1), b), a_shape)
    if len(a_shape) == 1:
        return unbroadcast((b @ expand_dims(ct, -1)).squeeze(-1), a_shape)
    return unbroadcast(ct @ b.mT, a_shape)


def right_pullback(ct: Any, a: Any, b_shape: tuple[int, ...]) -> Any:
    """The cotangent of `b` in `a @ b`: aᵀ @ ct, with the axes that matmul adds to vectors."""
    if a.ndim == 2 and ct.ndim == 2:
        if a.shape[0] == 1 and type(a) is type(ct) is np.ndarray:
            return np.dot(a.mT, ct)  # an outer product: matmul takes 38 µs for 128 x 256, dot 7
        return a.mT @ ct
    if len(b_shape) == 1:
        ct = expand_dims(ct, -1)
        if a.ndim == 1:
            return (ct * a).reshape(b_shape)
        return unbroadcast((a.mT @ ct).squeeze(-1), b_shape)
    if a.ndim == 1:
        return unbroadcast(multiply(expand_dims(a, -1), expand_dims(ct, -2)), b_shape)
    return unbroadcast(a.mT @ ct, b_shape)


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
