"""Curves given by a few numbers: piecewise linear ones through points, and polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import module_beside
from ..errors import ArgumentError, ShapeError, describe
from . import elementwise as e
from .index import getitem
from .operands import as_array, constant_like, value_of
from .order import take_along_axis
from .shape import concat, expand_dims, reshape


def interp(x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    r"""The piecewise linear curve through the points (xp, fp) at `x`: $y = f_j + t (f_{j+1} - f_j)$ with $t = (x - x_j) / (x_{j+1} - x_j)$.

    Shapes: x (...), xp (n,) increasing, fp (n,) -> (...). Differentiated in x, xp and fp. The slope at a point is that of the
    piece to its right (at the last, to its left), and 0 beyond the ends, where y is `left` and `right` (fp[0] and fp[-1] for
    None). With `period` x and xp are taken modulo it. Keeps the dtype, where NumPy gives float64.
    """
    xp, fp = as_array(xp, "interp", "xp", [fp, x]), as_array(fp, "interp", "fp", [xp, x])
    x = as_array(x, "interp", "x", [xp, fp])
    if xp.ndim != 1 or fp.shape != xp.shape or not xp.size:
        raise ShapeError(
            "interp: `xp` and `fp` must be one number each for at least one point.\n"
            f"  xp: {describe(xp)}      fp: {describe(fp)}"
        )
    if period is not None:
        x, xp, fp = once_around(x, xp, fp, period)
        left = right = None
    at, knots = value_of(x), value_of(xp)
    low = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, max(knots.size - 2, 0))
    high = np.minimum(low + 1, knots.size - 1)
    start, width = at_places(xp, low), e.subtract(at_places(xp, high), at_places(xp, low))
    # Beyond the ends x is the end itself, not a copy of it: an end that moves takes the value along.
    inside = e.minimum(e.maximum(x, getitem(xp, 0)), getitem(xp, -1))
    jump = e.equal(width, 0)
    t = e.where(jump, 1.0, e.divide(e.subtract(inside, start), e.where(jump, 1.0, width)))
    f_low, f_high = at_places(fp, low), at_places(fp, high)
    y = e.add(f_low, e.multiply(e.subtract(f_high, f_low), t))
    if left is not None:
        y = e.where(at < knots[0], left, y)
    return y if right is None else e.where(at > knots[-1], right, y)


def at_places(a: Any, places: Any) -> Any:
    """`a[places]` of a line."""
    return reshape(take_along_axis(a, np.ravel(places), 0), np.shape(places))


def once_around(x: Any, xp: Any, fp: Any, period: float) -> tuple[Any, Any, Any]:
    """x, and points that are ordered within a period with one more of each neighbouring period."""
    if not period:
        raise ArgumentError("interp: `period` must not be 0.")
    period = abs(float(period))
    x, xp = (e.subtract(v, np.floor(value_of(v) / period) * period) for v in (x, xp))
    order = np.argsort(value_of(xp), kind="stable")
    xp, fp = getitem(xp, order), getitem(fp, order)
    first, last = slice(0, 1), slice(-1, None)
    xp = concat([getitem(xp, last) - period, xp, getitem(xp, first) + period], 0)
    return x, xp, concat([getitem(fp, last), fp, getitem(fp, first)], 0)


def polyval(p: Any, x: Any) -> Any:
    r"""The polynomial with coefficients `p`, highest power first, at `x`: $y = \sum_i p_i x^{n-1-i}$, by Horner's rule.

    Shapes: p (n,), x (...) -> (...). Differentiated in both.
    """
    p, x = as_array(p, "polyval", "p", [x]), as_array(x, "polyval", "x", [p])
    if p.ndim != 1:
        raise ShapeError(f"polyval: `p` must have one axis.\n  p: {describe(p)}")
    p, x = constant_like(p, x), constant_like(x, p)
    y = module_beside(value_of(x)).zeros(x.shape, x.dtype)
    for coefficient in p:
        y = e.add(e.multiply(y, x), coefficient)
    return y


def vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    r"""The powers of each element as a row, $y_{ij} = x_i^{N-1-j}$ ($x_i^j$ if `increasing`).

    Shapes: x (n,) -> (n, N); N is n for None.
    """
    x = as_array(x, "vander", "x")
    if x.ndim != 1:
        raise ShapeError(f"vander: `x` must have one axis.\n  x: {describe(x)}")
    powers = module_beside(value_of(x)).arange(x.size if N is None else N)
    if x.dtype.kind == "f":
        powers = powers.astype(x.dtype)
    return e.power(expand_dims(x, 1), powers if increasing else powers[::-1])
