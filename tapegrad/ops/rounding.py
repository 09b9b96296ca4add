"""Whole parts, remainders and repairs: functions that are smooth but for jumps.

A whole part is constant by nature. What is left, the remainder or the fraction, has the slope of what it
was taken from: $a = q b + r$ with a constant $q$ gives $dr = da - q\\, db$.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.namespace import namespace
from ..core.primitive import Case, elementwise
from ..core.variable import Variable
from ..errors import describe
from .elementwise import equal, isfinite, no_slope, piecewise_constant, rint, trunc, where
from .operands import as_array, value_of

# -- constants by nature ---------------------------------------------------------------------------

floor_divide = piecewise_constant(
    "floor_divide", "Whole quotient, rounded down: an array, not differentiated."
)
spacing = piecewise_constant(
    "spacing", "Distance to the next number of the dtype: an array, not differentiated."
)


def round(a: Any, decimals: int = 0) -> Any:
    """`a` rounded to `decimals` places, of two nearest to the even one: an array, not differentiated."""
    array = value_of(as_array(a, "round"))
    return namespace(array).round(array, decimals)


def angle(a: Any, deg: bool = False) -> Any:
    """The angle of real numbers in the complex plane, 0 or π (or 180 degrees): an array, not differentiated."""
    array = value_of(as_array(a, "angle"))
    return namespace(array).angle(array, deg)


# -- quotients and remainders ----------------------------------------------------------------------


def whole(a: Any, b: Any, y: Any) -> Any:
    """The whole number that `b` was multiplied by before it was subtracted from `a` to leave `y`."""
    return rint((a - y) / b)


@elementwise(
    a=lambda ct: ct,
    b=lambda ct, y, a, b: -(ct * whole(a, b, y)),
    domain={"a": (1.1, 1.45), "b": (0.5, 0.52)},
)
def remainder(xp, a, b):
    r"""Remainder with the sign of `b`, as Python's %, $y = a - b \lfloor a / b \rfloor$.

    Where `a` is a multiple of `b` it jumps; the derivatives there are those from above.
    """
    return xp.remainder(a, b)


@elementwise(
    a=lambda ct: ct,
    b=lambda ct, y, a, b: -(ct * whole(a, b, y)),
    domain={"a": (-1.45, -1.1), "b": (0.5, 0.52)},
)
def fmod(xp, a, b):
    r"""Remainder with the sign of `a`, as in C, $y = a - b\, \mathrm{trunc}(a / b)$."""
    return xp.fmod(a, b)


def divmod(a: Any, b: Any) -> tuple[Any, Any]:
    """Whole quotient and remainder. The quotient is an array, not differentiated."""
    return floor_divide(a, b), remainder(a, b)


@elementwise(a=lambda ct: ct, kinks=(-2.0, -1.0, 0.0, 1.0, 2.0), special=(0.0,))
def fraction(xp, a):
    r"""What is left of `a` without its whole part, with its sign, $y = a - \mathrm{trunc}\, a$."""
    return xp.modf(a)[0]


def modf(a: Any) -> tuple[Any, Any]:
    """Fraction and whole part, both with the sign of `a`. The whole part is an array, not differentiated."""
    return fraction(a), trunc(a)


# -- powers of two ---------------------------------------------------------------------------------


def whole_exponents(a: Any, exponent: Any) -> str:
    return f"`exponent` must be integers.\nFor others write a * 2.0**exponent; {describe(exponent)} came."


@elementwise(
    a=lambda ct, exponent: ldexp(ct, exponent),
    diagnose=whole_exponents,
    cases=[
        Case((3, 4), np.array([0, 1, -2, 3])),
        Case((2,), np.array([[1], [-1], [0]])),
        Case((), np.array(2)),
        Case((0,), np.array(3)),
    ],
)
def ldexp(xp, a, exponent):
    r"""$y = a\, 2^e$ for whole `exponent`, which are not differentiated."""
    return xp.ldexp(a, exponent)


def frexp(a: Any) -> tuple[Any, Any]:
    r"""Mantissa and exponent, $a = m\, 2^e$ with $\frac12 \le |m| < 1$. The exponent is an integer array.

    The mantissa has the derivative $2^{-e}$; it jumps at powers of two.
    """
    array = value_of(as_array(a, "frexp"))
    exponent = namespace(array).frexp(array)[1]
    return ldexp(a, -exponent), exponent


# -- steps and repairs -----------------------------------------------------------------------------


@elementwise(a=lambda ct: no_slope(ct), b=lambda ct, a: where(equal(a, 0), ct, 0.0), kinks=(0.0,))
def heaviside(xp, a, b):
    r"""Step, 0 where `a` is negative and 1 where it is positive; where it is 0, `b`.

    The derivative in `a` is 0, also at the step; that in `b` is 1 where `a` is 0.
    """
    return xp.heaviside(a, b)


def nan_to_num(a: Any, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    """`a` with numbers for NaN and infinities, by default 0 and the dtype's largest. They have the gradient 0."""
    array = value_of(as_array(a, "nan_to_num"))
    numbers = namespace(array).nan_to_num(array, nan=nan, posinf=posinf, neginf=neginf)
    return where(isfinite(array), a, numbers) if isinstance(a, Variable) else numbers


# NumPy's other names.
mod, around, fix = remainder, round, trunc
