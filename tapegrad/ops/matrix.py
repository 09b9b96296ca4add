"""Inverses of matrices and of stacks of them, and systems of equations.

The rules are those of Giles, "An extended collection of matrix derivative results for forward and reverse
mode algorithmic differentiation" (2008), unless another source is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend.device import module_beside
from ..core.primitive import Case, primitive, unbroadcast
from ..errors import ArgumentError, MatrixError, ShapeError, describe
from .elementwise import positive, where
from .linalg import matmul
from .operands import arrayed, value_of
from .shape import expand_dims, moveaxis, ravel, reshape, squeeze

# What LAPACK says of a matrix, and what to do about it.
ADVICE = {
    "Singular matrix": "is singular: it has no inverse.\n  Use tg.linalg.pinv or lstsq, or add a small multiple of the identity.",
    "Matrix is not positive definite": "is not positive definite.\n  Add a small multiple of the identity, or use tg.linalg.eigh.",
    "Eigenvalues did not converge": "has no eigenvalues that could be found. Look for NaN or infinity in it.",
    "SVD did not converge": "has no singular values that could be found. Look for NaN or infinity in it.",
    "SVD did not converge in Linear Least Squares": "has no singular values that could be found. Look for NaN or infinity in it.",
}


ANY_SHAPE = ("svd", "qr", "pinv")


def computed(xp: Any, name: str, a: Any, *others: Any, **options: Any) -> Any:
    """What numpy.linalg's `name` gives, or the error that says what is wrong with `a`.

    LAPACK has no float16: it is computed in float32 and rounded.
    """
    arrays = (a, *others)
    half = all(x.dtype == np.float16 for x in arrays)
    if half:
        arrays = tuple(x.astype(np.float32) for x in arrays)
    try:
        y = getattr(xp.linalg, name)(*arrays, **options)
    except np.linalg.LinAlgError as error:
        if str(error) in ADVICE:
            raise MatrixError(f"{name}: `a` {ADVICE[str(error)]}\n  a: {describe(a)}") from error
        kind = "a matrix" if name in ANY_SHAPE else "a square matrix"
        raise ShapeError(f"{name}: `a` must be {kind}, or a stack of such.\n  a: {describe(a)}") from error
    if not half:
        return y
    return tuple(part.astype(np.float16) for part in y) if isinstance(y, tuple) else y.astype(np.float16)


# -- inverses ----------------------------------------------------------------------------------------

REGULAR = np.array([[2.0, 0.5, -0.3], [-0.4, 1.5, 0.7], [0.6, -0.2, -1.8]])
STACK = np.stack([REGULAR, REGULAR[::-1] * 1.5 + 0.1])


@primitive(
    a=lambda ct, y: -(y.mT @ ct @ y.mT),
    cases=[Case(REGULAR), Case(STACK), Case((0, 3, 3)), Case((2, 0, 0))],
)
def inv(xp, a):
    r"""Inverse, $y = a^{-1}$. Shapes: (..., n, n) -> (..., n, n). Raises MatrixError for a singular matrix."""
    return computed(xp, "inv", a)


def solve_pullback(ct: Any, active: tuple[bool, bool], a: Any, y: Any, b_shape: tuple[int, ...]) -> Any:
    """b̄ = a⁻ᵀ ȳ and ā = -b̄ yᵀ; a vector is a matrix of one column."""
    if len(b_shape) == 1:
        ct, y = expand_dims(ct, -1), expand_dims(y, -1)
    solved = solve(a.mT, ct)
    of_b = squeeze(solved, -1) if len(b_shape) == 1 else solved
    return (
        unbroadcast(-(solved @ y.mT), a.shape) if active[0] else None,
        unbroadcast(of_b, b_shape) if active[1] else None,
    )


def unequal_rows(a: Any, b: Any) -> str:
    """What is wrong with the arguments of `solve`, of which `a` is square."""
    rows = b.shape[-2 if b.ndim > 1 else 0] if b.ndim else 0
    if rows != a.shape[-1]:
        return f"`b` must have a row for each of `a`.\n{rows} != {a.shape[-1]}."
    return "the leading axes must broadcast, and the dtypes be float16, float32 or float64."


@primitive(
    joint=solve_pullback,
    diagnose=unequal_rows,
    differentiable=("a", "b"),
    cases=[
        Case(REGULAR, (3, 2)),
        Case(REGULAR, (3,)),
        Case(STACK, (3,)),
        Case(REGULAR[:1, :1], (1,)),
        Case(STACK, (3, 2)),
        Case(REGULAR, (2, 3, 1)),
        Case(STACK[:, None], (1, 4, 3, 2)),
        Case((0, 3, 3), (3, 2)),
    ],
)
def solve(xp, a, b):
    r"""The $y$ with $a y = b$. `b` is a vector if it has one axis, else a stack of matrices.

    Shapes: (..., n, n), (..., n, k) -> (..., n, k), and (..., n, n), (n,) -> (..., n).
    Raises MatrixError for a singular `a`.
    """
    return computed(xp, "solve", a, b)


def pinv_pullback(ct: Any, a: Any, y: Any) -> Any:
    """By Golub and Pereyra, "The differentiation of pseudo-inverses" (1973): right while the rank stays."""
    yt, back = y.mT, ct.mT
    left = back @ y @ yt
    right = yt @ y @ back
    return (left - a @ (y @ left)) + (right - right @ y @ a) - yt @ ct @ yt


@primitive(
    a=pinv_pullback,
    cases=[Case((3, 2)), Case((2, 4)), Case(REGULAR), Case((2, 4, 2)), Case((0, 3, 2)), Case((3, 0))],
)
def pseudo_inverse(xp, a, *, cutoff=1e-15):
    r"""Moore-Penrose inverse, $y = a^+$; singular values up to `cutoff` times the largest count as 0.

    The derivative is that of matrices of the rank which `a` has. Shapes: (..., m, n) -> (..., n, m).
    """
    return computed(xp, "pinv", a, rcond=cutoff)


def pinv(a: Any, rcond: Any = None, *, rtol: float | None = 1e-15) -> Any:
    r"""Moore-Penrose inverse, $y = a^+$; singular values up to `rcond` (or `rtol`) times the largest count as 0.

    None for `rtol` is NumPy's: the larger length times the rounding error. The derivative is that of
    matrices of the rank which `a` has. Shapes: (..., m, n) -> (..., n, m).
    """
    a = arrayed(a)
    if rcond is not None and rtol != 1e-15:
        raise ArgumentError("pinv: `rcond` and `rtol` are two names of one number. Give one.")
    cutoff = rtol if rcond is None else rcond
    return pseudo_inverse(a, rounding(a) * max(a.shape[-2:]) if cutoff is None else cutoff)


def rounding(a: Any) -> float:
    return float(np.finfo(a.dtype if a.dtype.kind == "f" else np.float64).eps)


def matrix_power(a: Any, n: int) -> Any:
    r"""Matrix multiplied with itself, $y = a^n$, by repeated squaring; of the inverse for a negative `n`."""
    a = arrayed(a)
    if not isinstance(n, (int, np.integer)):
        raise ArgumentError(f"matrix_power: `n` must be an integer, and {describe(n)} came.")
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ShapeError(f"matrix_power: `a` must be square.\n  a: {describe(a)}")
    if n == 0:  # recorded, with the derivative 0
        return where(False, a, module_beside(value_of(a)).eye(a.shape[-1], dtype=a.dtype))
    if n == 1:
        return positive(a)
    factor, n = (inv(a), -n) if n < 0 else (a, n)
    power: Any = None
    while n:
        if n % 2:
            power = factor if power is None else matmul(power, factor)
        n //= 2
        if n:
            factor = matmul(factor, factor)
    return power


def tensorsolve(a: Any, b: Any, axes: Sequence[int] | None = None) -> Any:
    r"""The $y$ with $\sum_j a_{ij} y_j = b_i$, where $i$ stands for the axes of `b` and $j$ for the other axes of `a`."""
    a, b = arrayed(a), arrayed(b)
    if axes is not None:
        a = moveaxis(a, tuple(axes), tuple(range(a.ndim - len(axes), a.ndim)))
    shape = a.shape[-(a.ndim - b.ndim) :] if a.ndim > b.ndim else ()
    n = math.prod(shape)
    if a.size != n * n:
        raise ShapeError(
            f"tensorsolve: the axes of `a` must fall into two groups with as many elements.\n"
            f"  a: {describe(a)}      b: {describe(b)}"
        )
    return reshape(solve(reshape(a, (n, n)), ravel(b)), shape)


def tensorinv(a: Any, ind: int = 2) -> Any:
    r"""The $y$ with $\sum_j y_{ij} a_{jk} = \delta_{ik}$, where $j$ stands for the first `ind` axes of `a`."""
    a = arrayed(a)
    if ind <= 0:
        raise ArgumentError(f"tensorinv: `ind` must be above 0, and {ind} came.")
    first, rest = a.shape[:ind], a.shape[ind:]
    if math.prod(first) != math.prod(rest):
        raise ShapeError(
            f"tensorinv: the first {ind} axes must have as many elements as the rest.\n  a: {describe(a)}"
        )
    return reshape(inv(reshape(a, (math.prod(first), math.prod(rest)))), (*rest, *first))
