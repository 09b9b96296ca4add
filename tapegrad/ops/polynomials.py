"""Polynomials by their coefficients, the highest power first, as NumPy's `poly…` functions have them."""

from __future__ import annotations

from typing import Any

from ..backend.device import put_beside
from ..backend.namespace import namespace
from ..errors import ArgumentError, ShapeError, describe
from .convolve import convolve
from .elementwise import add, divide, multiply, negative
from .operands import value_of
from .shape import atleast_1d, concat


def polyadd(a1: Any, a2: Any) -> Any:
    r"""Coefficients of the sum, $y(x) = a_1(x) + a_2(x)$: the shorter list is aligned at the lowest power."""
    a1, a2 = coefficients(a1, "polyadd", "a1"), coefficients(a2, "polyadd", "a2")
    length = max(len(a1), len(a2))
    return add(led_by_zeros(a1, length), led_by_zeros(a2, length))


def polysub(a1: Any, a2: Any) -> Any:
    r"""Coefficients of the difference, $y(x) = a_1(x) - a_2(x)$."""
    return polyadd(a1, negative(coefficients(a2, "polysub", "a2")))


def polymul(a1: Any, a2: Any) -> Any:
    r"""Coefficients of the product, $y(x) = a_1(x)\, a_2(x)$, without those that are 0 because of leading zeros."""
    return convolve(without_zeros(a1, "a1"), without_zeros(a2, "a2"))


def polyder(p: Any, m: int = 1) -> Any:
    r"""Coefficients of the `m`-th derivative, $y(x) = p^{(m)}(x)$."""
    p = coefficients(p, "polyder", "p")
    for _ in range(order(m, "polyder")):
        p = multiply(p[:-1], powers(p, len(p) - 1))
    return p


def polyint(p: Any, m: int = 1, k: Any = None) -> Any:
    r"""Coefficients of the `m`-th integral, $y^{(m)}(x) = p(x)$, with the constants `k` (0 for None), the first integral's first."""
    p = coefficients(p, "polyint", "p")
    m = order(m, "polyint")
    constants = zeros(m, p) if k is None else atleast_1d(k if hasattr(k, "shape") else put_beside(k, p))
    if len(constants) not in (1, m):
        raise ShapeError(f"polyint: `k` must hold 1 or m = {m} constants, and {describe(constants)} came.")
    for i in range(m):
        at = min(i, len(constants) - 1)
        p = concat([divide(p, powers(p, len(p))), constants[at : at + 1]])
    return p


def coefficients(a: Any, op: str, argument: str) -> Any:
    """`a` as a list of coefficients: an array with one axis."""
    a = atleast_1d(a)
    if a.ndim != 1:
        raise ShapeError(f"{op}: `{argument}` must have one axis.\n  {argument}: {describe(a)}")
    return a


def order(m: int, op: str) -> int:
    """How often to differentiate or integrate. Raises ArgumentError below 0."""
    if m < 0:
        raise ArgumentError(f"{op}: `m` must not be negative, and {m} came.")
    return m


def powers(p: Any, count: int) -> Any:
    """count, …, 2, 1 in the dtype of `p`."""
    return namespace(value_of(p)).arange(count, 0, -1).astype(p.dtype)


def led_by_zeros(a: Any, length: int) -> Any:
    return a if len(a) == length else concat([zeros(length - len(a), a), a])


def zeros(count: int, like: Any) -> Any:
    return namespace(value_of(like)).zeros(count, like.dtype)


def without_zeros(a: Any, argument: str) -> Any:
    """The coefficients from the first that is not 0; of 0 itself the last."""
    a = coefficients(a, "polymul", argument)
    found = namespace(value_of(a)).flatnonzero(value_of(a))
    return a[int(found[0]) :] if len(found) else a[-1:]
