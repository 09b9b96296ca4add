"""Determinants, and their derivative: the matrix of cofactors, which exists for singular matrices too."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend.namespace import namespace
from ..core.primitive import Case, primitive
from .elementwise import where
from .factor import on_the_diagonal, svd
from .matrix import computed, inv
from .operands import value_of
from .reduce import sum
from .shape import diagonal, expand_dims

# The third row is the second less twice the first. The cases below have both signs of det u and of det v.
RANK_TWO = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0], [2.0, 1.0, 1.0]])
DETERMINED = [
    Case((3, 3)),
    Case((2, 2, 2)),
    Case((1, 1)),
    Case((0, 0)),
    Case((0, 3, 3)),
    Case(RANK_TWO),
    Case(np.array([[1.0, 2.0], [3.0, 6.0]])),
    Case(np.stack([RANK_TWO[[1, 0, 2]], RANK_TWO[:, [2, 0, 1]], np.diag([1.0, -2.0, 3.0])])),
]


def is_regular(a: Any) -> bool:
    """Whether dividing by the determinants of `a` costs few digits."""
    a = value_of(a)
    return bool(np.all(namespace(a).linalg.cond(a.astype(np.float64)) < 1e6))


def orientation(u: Any, vh: Any) -> Any:
    """det u · det vh for orthogonal matrices: 1 or -1, a constant."""
    u, vh = value_of(u), value_of(vh)
    xp = namespace(u)
    return xp.sign(computed(xp, "det", u) * computed(xp, "det", vh))[..., None, None]


def products_of_others(values: Any, left_out: Any) -> Any:
    """The products of `values` (on the last axis) but for those that a row of `left_out` marks; no division.

    Shapes: (..., n), (*rows, n) -> (..., *rows).
    """
    spread = (None,) * (left_out.ndim - 1)
    product: Any = 1.0
    for k in range(left_out.shape[-1]):
        position = (..., k, *spread)
        product = product * where(left_out[..., k], 1.0, values[position])
    return product


def cofactors_pullback(ct: Any, a: Any, y: Any) -> Any:
    """The derivative of det a · a⁻ᵀ; of a nearly singular `a` by its singular values, whose products need no division."""
    if not a.size:
        return ct
    if is_regular(a):
        b = inv(a).mT
        return expand_dims(sum(ct * y, (-2, -1)), (-2, -1)) * b - y @ ct.mT @ b
    u, s, vh = svd(a)
    one = on_the_diagonal(a)
    of_pairs = products_of_others(s, one[:, None] | one)
    turned = u.mT @ ct @ vh.mT
    along = where(one, 0.0, of_pairs) @ expand_dims(diagonal(turned, 0, -2, -1), -1)
    return orientation(u, vh) * (u @ where(one, along, -of_pairs * turned.mT) @ vh)


@primitive(
    a=cofactors_pullback,
    cases=DETERMINED,
)
def cofactors(xp, a):
    r"""The cofactor of each element, $y_{ij} = \partial \det a / \partial a_{ij}$. Shapes: (..., n, n) -> (..., n, n)."""
    determinants = computed(xp, "det", a)
    if xp.all(determinants != 0):
        return determinants[..., None, None] * computed(xp, "inv", a).mT
    u, s, vh = computed(xp, "svd", a)
    others = products_of_others(s, on_the_diagonal(a))
    return orientation(u, vh) * ((u * others[..., None, :]) @ vh)


@primitive(
    a=lambda ct, a: expand_dims(ct, (-2, -1)) * cofactors(a),
    cases=DETERMINED,
)
def det(xp, a):
    r"""Determinant, $y = \det a$. Its derivatives are right for singular matrices too. Shapes: (..., n, n) -> (...)."""
    return computed(xp, "det", a)


class SlogdetResult(NamedTuple):
    """What `slogdet` returns."""

    sign: Any
    logabsdet: Any


@primitive(
    outputs=("sign", "logabsdet"),
    a=lambda ct, a: expand_dims(ct[1], (-2, -1)) * inv(a).mT,
    cases=[Case((3, 3)), Case((2, 2, 2)), Case((0, 0)), Case((0, 3, 3))],
)
def sign_and_logdet(xp, a):
    r"""The sign of the determinant, whose derivative is 0, and $y = \ln |\det a|$. Shapes: (..., n, n) -> (...), (...)."""
    return tuple(computed(xp, "slogdet", a))


def slogdet(a: Any) -> SlogdetResult:
    r"""The sign of the determinant and $\ln |\det a|$, which does not overflow.

    The derivative of the sign is 0, that of the logarithm $a^{-\top}$; a sweep raises MatrixError for a
    singular matrix. Shapes: (..., n, n) -> (...), (...).
    """
    return SlogdetResult(*sign_and_logdet(a))
