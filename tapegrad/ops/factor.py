"""Factors of matrices and of stacks of them: Cholesky, eigenvalues of symmetric matrices, singular values, QR.

A rule may keep the one output of its op, so factors that a rule needs lie in one array, one below the
other (`eigh_packed` …); what a user calls takes them apart. Sources: Giles (2008, see matrix.py) and, where
named, others.

Where two eigenvalues (or singular values) are equal, their vectors are not determined, and have no
derivative. The rules then leave out the rotation of the two into each other, and stay finite. That is right
for the values, and for what does not depend on the choice of the vectors and treats equal values equally,
such as the projection onto all vectors of one value. It is wrong where a function of distinct values is
written out, as V f(w) Vᵀ, and for second derivatives: so a GradientStopsWarning says that it was done.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from warnings import warn

import numpy as np

from ..backend.device import module_beside, on_device
from ..core.primitive import Case, primitive
from ..core.variable import Variable
from ..errors import ArgumentError, GradientStopsWarning, ShapeError, UnsupportedError, describe
from .elementwise import equal, square, where
from .linalg import matmul
from .matrix import computed, pseudo_inverse, rounding, solve
from .operands import arrayed, value_of
from .reduce import sum
from .shape import concat, expand_dims, reshape

SYMMETRIC = np.array([[3.0, 0.4, -0.7], [0.4, 2.0, 0.5], [-0.7, 0.5, 1.2]])
SYMMETRIC_STACK = np.stack([SYMMETRIC, SYMMETRIC[::-1, ::-1] * 1.5])


def on_triangle(g: Any, lower: bool) -> Any:
    """The gradient of the triangle of a symmetric matrix that an op reads, from that of the whole matrix."""
    strict = below_the_diagonal(g)
    return where(strict if lower else strict.T, g + g.mT, where(on_the_diagonal(g), g, 0.0))


def below_the_diagonal(g: Any) -> Any:
    """Where an element of a square matrix lies below the diagonal; a constant, where `g` is."""
    return module_beside(value_of(g)).tri(g.shape[-1], k=-1, dtype=bool)


def on_the_diagonal(g: Any) -> Any:
    """Where an element of a square matrix lies on the diagonal."""
    return module_beside(value_of(g)).eye(g.shape[-1], dtype=bool)


def reciprocal(x: Any, zeros: int, ct: Any, op: str) -> Any:
    """1 / x, and 0 where x is 0. The host warns of more than `zeros` of those if there is a cotangent of the vectors."""
    zero = equal(x, 0)
    if not on_device(zero) and zero.sum() > zeros and np.any(value_of(ct)):
        warn(
            f"{op}: vectors of equal values, or of the singular value 0, have no derivative; their rotation is left out."
            f" The gradient is right if the loss does not depend on the choice of those vectors and treats them alike.",
            GradientStopsWarning,
            stacklevel=3,
        )
    return where(zero, 0.0, 1.0 / where(zero, 1.0, x))


# -- Cholesky ------------------------------------------------------------------------------------------


def cholesky_pullback(ct: Any, y: Any, upper: bool) -> Any:
    """By Murray, "Differentiation of the Cholesky decomposition" (2016): l⁻ᵀ Φ(lᵀ l̄) l⁻¹, Φ the lower triangle with half the diagonal."""
    transposed, ct = (y, ct.mT) if upper else (y.mT, ct)
    product = transposed @ ct
    half = where(below_the_diagonal(y), product, where(on_the_diagonal(y), product * 0.5, 0.0))
    return on_triangle(solve(transposed, solve(transposed, half).mT), not upper)


@primitive(
    a=cholesky_pullback,
    cases=[
        Case(SYMMETRIC),
        Case(SYMMETRIC_STACK),
        Case(SYMMETRIC, upper=True),
        Case((0, 3, 3)),
        Case((0, 0)),
    ],
)
def cholesky(xp, a, *, upper=False):
    r"""The lower triangular $y$ with $y y^\top = a$ (the upper with $y^\top y = a$ for `upper`).

    Only that triangle of `a` is read, and only it has a gradient. Shapes: (..., n, n) -> (..., n, n).
    Raises MatrixError if `a` is not positive definite.
    """
    return computed(xp, "cholesky", a.mT).mT if upper else computed(xp, "cholesky", a)


# -- eigenvalues ---------------------------------------------------------------------------------------


class EighResult(NamedTuple):
    """What `eigh` returns."""

    eigenvalues: Any
    eigenvectors: Any


def eigh_pullback(ct: Any, y: Any, UPLO: str) -> Any:
    """V (diag(w̄) + (Vᵀ V̄) / (w_j - w_i)) Vᵀ."""
    w, v = y[..., :1, :], y[..., 1:, :]
    turned = (v.mT @ ct[..., 1:, :]) * reciprocal(w - w.mT, w.size, ct[..., 1:, :], "eigh")
    middle = where(on_the_diagonal(turned), ct[..., :1, :], turned)
    return on_triangle(v @ middle @ v.mT, UPLO.upper() == "L")


@primitive(
    a=eigh_pullback,
    cases=[
        Case((3, 3)),
        Case((2, 4, 4)),
        Case((3, 3), UPLO="U"),
        Case((1, 1)),
        Case((0, 3, 3)),
        Case((0, 0)),
    ],
)
def eigh_packed(xp, a, *, UPLO="L"):
    r"""The eigenvalues $w$ in the first row and the eigenvectors $V$ below, $a = V \mathrm{diag}(w) V^\top$.

    Shapes: (..., n, n) -> (..., n + 1, n).
    """
    w, v = computed(xp, "eigh", a, UPLO=checked(UPLO, "eigh"))
    return xp.concatenate([w[..., None, :], v], axis=-2)


def eigh(a: Any, UPLO: str = "L") -> EighResult:
    r"""Eigenvalues $w$, ascending, and eigenvectors $V$ (its columns) of a symmetric matrix, $a = V \mathrm{diag}(w) V^\top$.

    Only the triangle `UPLO` of `a` is read, and only it has a gradient. Where eigenvalues are equal, the
    rotation of their vectors into each other is left out, with a GradientStopsWarning.
    Shapes: (..., n, n) -> (..., n), (..., n, n).
    """
    packed = eigh_packed(a, UPLO)
    return EighResult(packed[..., 0, :], packed[..., 1:, :])


def eigvalsh_pullback(ct: Any, a: Any, UPLO: str) -> Any:
    """V diag(w̄) Vᵀ. The op finds no vectors, so they are computed here."""
    v = eigh_packed(a, UPLO)[..., 1:, :]
    return on_triangle((v * expand_dims(ct, -2)) @ v.mT, UPLO.upper() == "L")


@primitive(
    a=eigvalsh_pullback,
    cases=[Case((3, 3)), Case((2, 4, 4)), Case((3, 3), UPLO="U"), Case((0, 3, 3))],
)
def eigvalsh(xp, a, *, UPLO="L"):
    r"""Eigenvalues of a symmetric matrix, ascending: $\bar a = V \mathrm{diag}(\bar y) V^\top$, finite where some are equal.

    Only the triangle `UPLO` of `a` is read, and only it has a gradient. Shapes: (..., n, n) -> (..., n).
    """
    return computed(xp, "eigvalsh", a, UPLO=checked(UPLO, "eigvalsh"))


def checked(triangle: str, op: str) -> str:
    """`triangle`, if it names one."""
    if triangle not in ("L", "U", "l", "u"):
        raise ArgumentError(f"{op}: `UPLO` must be 'L' or 'U', and {triangle!r} came.")
    return triangle


def eig(a: Any) -> Any:
    """Refused: eigenvalues of a matrix that is not symmetric are complex."""
    raise UnsupportedError(
        "eig: its results are complex. Use eigh for a symmetric matrix, or v.value if no gradient is wanted."
    )


def eigvals(a: Any) -> Any:
    """Refused: eigenvalues of a matrix that is not symmetric are complex."""
    raise UnsupportedError(
        "eigvals: its results are complex. Use eigvalsh for a symmetric matrix, or v.value if no gradient is wanted."
    )


# -- singular values -----------------------------------------------------------------------------------


class SVDResult(NamedTuple):
    """What `svd` returns."""

    U: Any
    S: Any
    Vh: Any


def svd_pullback(ct: Any, y: Any, a_shape: tuple[int, ...]) -> Any:
    """By Townsend, "Differentiating the singular value decomposition" (2016)."""
    m, n = a_shape[-2:]
    k = min(m, n)
    (u, s, v), (of_u, of_s, of_v) = unpacked(y, m), unpacked(ct, m)
    rotation_u, rotation_v = u.mT @ of_u, v.mT @ of_v
    either = concat([of_u, of_v], -2)
    inverse_gaps = reciprocal((s - s.mT) * (s + s.mT), s.size, either, "svd")
    turned_u = (rotation_u - rotation_u.mT) * inverse_gaps * s
    turned_v = (rotation_v - rotation_v.mT) * inverse_gaps * s.mT
    middle = where(on_the_diagonal(turned_u), of_s, turned_u + turned_v)
    g = u @ middle @ v.mT
    if m > k:  # what turns U out of its span
        g = g + ((of_u - u @ rotation_u) * reciprocal(s, 0, of_u, "svd")) @ v.mT
    if n > k:
        g = g + (u * reciprocal(s, 0, of_v, "svd")) @ (of_v - v @ rotation_v).mT
    return g


def unpacked(y: Any, m: int) -> tuple[Any, Any, Any]:
    """U, the singular values as a row, and V."""
    return y[..., :m, :], y[..., m : m + 1, :], y[..., m + 1 :, :]


FACTORED = [
    Case((3, 3)),
    Case((5, 3)),
    Case((3, 5)),
    Case((2, 3, 2)),
    Case((2, 2, 3)),
    Case((0, 3, 2)),
    Case((3, 0)),
    Case((1, 1)),
]


@primitive(a=svd_pullback, cases=FACTORED)
def svd_packed(xp, a):
    r"""The left singular vectors $U$, below them the singular values $s$, below those the right $V$; $a = U \mathrm{diag}(s) V^\top$.

    Shapes: (..., m, n) -> (..., m + 1 + n, min(m, n)).
    """
    u, s, vh = computed(xp, "svd", a, full_matrices=False)
    return xp.concatenate([u, s[..., None, :], xp.swapaxes(vh, -1, -2)], axis=-2)


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    r"""Singular value decomposition, $a = U \mathrm{diag}(s) V^\top$, with $s$ descending: (U, S, Vh), or only S.

    Shapes, for k = min(m, n): (..., m, n) -> (..., m, k), (..., k), (..., k, n). Where singular values are
    equal, the rotation of their vectors into each other is left out, and where one is 0 that out of their
    span, with a GradientStopsWarning. With `full_matrices` the further columns of U (rows of Vh) are any that
    are orthogonal to the rest: they have no derivative, so UnsupportedError is raised for a Variable that is
    not square.
    """
    a = arrayed(a)
    if not compute_uv:
        return svdvals(a)
    if full_matrices and a.ndim > 1 and a.shape[-1] != a.shape[-2]:
        if isinstance(a, Variable):
            raise UnsupportedError(
                f"svd: the further vectors of full matrices have no derivative. Write full_matrices=False.\n  a: {describe(a)}"
            )
        return SVDResult(*np.linalg.svd(a))
    y = svd_packed(a)
    m = a.shape[-2]
    return SVDResult(y[..., :m, :], y[..., m, :], y[..., m + 1 :, :].mT)


def svdvals_pullback(ct: Any, a: Any) -> Any:
    """U diag(ȳ) Vᵀ. The op finds no vectors, so they are computed here."""
    u, _, v = unpacked(svd_packed(a), a.shape[-2])
    return (u * expand_dims(ct, -2)) @ v.mT


@primitive(a=svdvals_pullback, cases=FACTORED)
def svdvals(xp, a):
    r"""Singular values, descending: $\bar a = U \mathrm{diag}(\bar y) V^\top$, finite where some are equal or 0.

    Shapes: (..., m, n) -> (..., min(m, n)).
    """
    return computed(xp, "svd", a, compute_uv=False)


# -- QR ------------------------------------------------------------------------------------------------


class QRResult(NamedTuple):
    """What `qr` returns."""

    Q: Any
    R: Any


def qr_pullback(ct: Any, y: Any, a_shape: tuple[int, ...]) -> Any:
    """For m ≥ n by Seeger et al., "Auto-differentiating linear algebra" (2017). For m < n by Roberts and Roberts,
    "QR and LQ decomposition matrix backpropagation algorithms" (2020): a = Q (R, S), with R square.
    """
    m, n = a_shape[-2:]
    q, r, of_q, of_r = y[..., :m, :], y[..., m:, :].mT, ct[..., :m, :], ct[..., m:, :].mT
    if m >= n:
        return square_pullback(q, r, of_q, of_r)
    of_s = of_r[..., m:]
    of_first = square_pullback(q, r[..., :m], of_q + q @ r[..., m:] @ of_s.mT, of_r[..., :m])
    return concat([of_first, q @ of_s], -1)


def square_pullback(q: Any, r: Any, of_q: Any, of_r: Any) -> Any:
    """(Q̄ + Q sym(R R̄ᵀ - Q̄ᵀ Q)) R⁻ᵀ, where sym copies the lower triangle to the upper."""
    m = r @ of_r.mT - of_q.mT @ q
    return solve(r, (of_q + q @ where(below_the_diagonal(r).T, m.mT, m)).mT).mT


@primitive(a=qr_pullback, cases=FACTORED)
def qr_packed(xp, a):
    r"""$Q$ and below it $R^\top$, with $a = Q R$. Shapes: (..., m, n) -> (..., m + n, min(m, n))."""
    q, r = computed(xp, "qr", a)
    return xp.concatenate([q, xp.swapaxes(r, -1, -2)], axis=-2)


def qr(a: Any, mode: str = "reduced") -> Any:
    r"""$a = Q R$ with orthonormal columns in $Q$ and $R$ upper triangular: (Q, R); only R for the mode "r".

    Shapes, for k = min(m, n): (..., m, n) -> (..., m, k), (..., k, n). The first k columns must be
    independent for a derivative. The mode "complete" adds columns to Q that any orthogonal ones could
    replace: UnsupportedError is raised for a Variable with more rows than columns.
    """
    a = arrayed(a)
    if mode not in ("reduced", "r", "complete"):
        raise UnsupportedError(f"qr: `mode` must be 'reduced', 'r' or 'complete', and {mode!r} came.")
    if mode == "complete" and a.ndim > 1 and a.shape[-2] > a.shape[-1]:
        if isinstance(a, Variable):
            raise UnsupportedError(
                f"qr: the further columns of the mode 'complete' have no derivative. Write mode='reduced'.\n  a: {describe(a)}"
            )
        return QRResult(*np.linalg.qr(a, "complete"))
    y = qr_packed(a)
    m = a.shape[-2]
    r = y[..., m:, :].mT
    return r if mode == "r" else QRResult(y[..., :m, :], r)


# -- least squares -------------------------------------------------------------------------------------


def lstsq(a: Any, b: Any, rcond: float | None = None) -> tuple[Any, Any, Any, Any]:
    r"""The shortest $y$ that minimises $\|a y - b\|$, as $y = a^+ b$: (y, residuals, rank, singular values).

    Residuals are the squares that remain, one for each column of `b`; none if `a` has dependent columns or
    no more rows than columns. Singular values up to `rcond` times the largest count as 0, for None up to the
    larger length times the rounding error. The rank is a constant.
    """
    a, b = arrayed(a), arrayed(b)
    if a.ndim != 2 or b.ndim not in (1, 2) or a.shape[0] != b.shape[0]:
        raise ShapeError(
            f"lstsq: `a` must be a matrix, and `b` a vector or a matrix with as many rows.\n"
            f"  a: {describe(a)}      b: {describe(b)}"
        )
    m, n = a.shape
    if rcond is None:
        rcond = rounding(a) * max(m, n)
    elif rcond < 0:
        rcond = rounding(a)
    values = svdvals(a)
    numbers = value_of(values)
    # It decides on the shape of the residuals, so the host has to know it.
    rank = int(np.count_nonzero(numbers > rcond * numbers.max())) if numbers.size else 0
    y = matmul(pseudo_inverse(a, rcond), b)
    left = sum(square(b - matmul(a, y)), 0) if m > n == rank else b[:0]
    return y, reshape(left, -1), rank, values
