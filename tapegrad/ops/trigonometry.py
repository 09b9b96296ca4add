"""Angles: the trigonometric and hyperbolic functions, their inverses, `hypot`, `sinc`, `unwrap`.

Slopes are written so that nothing cancels or overflows before the result does: (1 - a)(1 + a) and not
1 - a², hypot(a, 1) and not the root of a² + 1.
"""

from __future__ import annotations

import math
from typing import Any

from ..core.primitive import Case, elementwise
from ..errors import ArgumentError
from .elementwise import equal, sqrt, where

# -- trigonometric ---------------------------------------------------------------------------------


@elementwise(a=lambda ct, y: ct + ct * y * y, domain=(-1.3, 1.3), special=(0.0,))
def tan(xp, a):
    r"""Tangent, $y = \tan a$, of radians."""
    return xp.tan(a)


@elementwise(a=lambda ct, a: ct / sqrt((1.0 - a) * (a + 1.0)), domain=(-0.9, 0.9), special=(0.0,))
def arcsin(xp, a):
    r"""Inverse sine, $y = \arcsin a$, in radians. The derivative at $\pm 1$ is infinite."""
    return xp.arcsin(a)


@elementwise(a=lambda ct, a: -ct / sqrt((1.0 - a) * (a + 1.0)), domain=(-0.9, 0.9), special=(0.0,))
def arccos(xp, a):
    r"""Inverse cosine, $y = \arccos a$, in radians. The derivative at $\pm 1$ is infinite."""
    return xp.arccos(a)


@elementwise(a=lambda ct, a: ct / (a * a + 1.0), special=(-1000.0, 0.0, 1000.0))
def arctan(xp, a):
    r"""Inverse tangent, $y = \arctan a$, in radians."""
    return xp.arctan(a)


def or_one(a: Any) -> Any:
    """`a`, and 1 where it is 0: a divisor that leaves a dividend of 0 what it is."""
    return where(equal(a, 0), 1.0, a)


@elementwise(
    a=lambda ct, y, a: ct * (a / or_one(y)),
    b=lambda ct, y, b: ct * (b / or_one(y)),
    kinks=(0.0,),
    special=(0.0,),
)
def hypot(xp, a, b):
    r"""Length of the vector $(a, b)$, $y = \sqrt{a^2 + b^2}$, without overflow. The gradient at 0 is taken as 0."""
    return xp.hypot(a, b)


def divided_by_square(a: Any, r: Any) -> Any:
    """a / r², without overflow; 0 where `a` and `r` are 0."""
    return a / or_one(r) / or_one(r)


@elementwise(
    a=lambda ct, a, b: ct * divided_by_square(b, hypot(a, b)),
    b=lambda ct, a, b: -(ct * divided_by_square(a, hypot(a, b))),
    kinks=(0.0,),
    special=(0.0,),
)
def arctan2(xp, a, b):
    r"""Angle of the point whose ordinate is `a` and whose abscissa is `b`, in $[-\pi, \pi]$, $\tan y = a / b$.

    The gradient at the origin, where the angle jumps, is taken as 0.
    """
    return xp.arctan2(a, b)


# -- hyperbolic ------------------------------------------------------------------------------------


@elementwise(a=lambda ct, a: ct * cosh(a), special=(0.0,))
def sinh(xp, a):
    r"""Hyperbolic sine, $y = \sinh a$."""
    return xp.sinh(a)


@elementwise(a=lambda ct, a: ct * sinh(a), special=(0.0,))
def cosh(xp, a):
    r"""Hyperbolic cosine, $y = \cosh a$."""
    return xp.cosh(a)


@elementwise(a=lambda ct, a: ct / hypot(a, 1.0), special=(-1000.0, 0.0, 1000.0))
def arcsinh(xp, a):
    r"""Inverse hyperbolic sine, $y = \operatorname{arsinh} a$."""
    return xp.arcsinh(a)


@elementwise(a=lambda ct, a: ct / (sqrt(a - 1.0) * sqrt(a + 1.0)), domain=(1.2, 3.0))
def arccosh(xp, a):
    r"""Inverse hyperbolic cosine, $y = \operatorname{arcosh} a$. The derivative at 1 is infinite."""
    return xp.arccosh(a)


@elementwise(a=lambda ct, a: ct / ((1.0 - a) * (a + 1.0)), domain=(-0.9, 0.9), special=(0.0,))
def arctanh(xp, a):
    r"""Inverse hyperbolic tangent, $y = \operatorname{artanh} a$. The derivative at $\pm 1$ is infinite."""
    return xp.arctanh(a)


# -- degrees ---------------------------------------------------------------------------------------


@elementwise(a=lambda ct: degrees(ct), special=(0.0,))
def degrees(xp, a):
    r"""Radians as degrees, $y = 180\, a / \pi$."""
    return xp.degrees(a)


@elementwise(a=lambda ct: radians(ct), special=(0.0,))
def radians(xp, a):
    r"""Degrees as radians, $y = \pi a / 180$."""
    return xp.radians(a)


UNWRAPPED = [
    Case((6,)),
    Case((3, 4), axis=0),
    Case((2, 3, 2), axis=1, period=1.5),
    Case((3, 4), discont=3.5, axis=-1),
    Case((0, 3), axis=0),
]


@elementwise(a=lambda ct: ct, domain=(-8.0, 8.0), cases=UNWRAPPED)
def unwrap(xp, a, *, discont=None, axis=-1, period=2 * math.pi):
    r"""Angles without jumps: where neighbours differ by more than half a `period`, whole periods are added.

    `discont`: the least difference that is taken for a jump, if that is more than half a period.
    The periods are constants, so that the gradient passes unchanged.
    """
    return xp.unwrap(a, discont, axis, period=period)


# -- sinc ------------------------------------------------------------------------------------------


@elementwise(a=lambda ct, a: ct * sinc_derivative(a, 1), special=(0.0, 1.0))
def sinc(xp, a):
    r"""Normalized sine cardinal, $y = \sin(\pi a) / (\pi a)$, and 1 at 0. Right at 0 to every order."""
    return xp.sinc(a)


@elementwise(
    a=lambda ct, a, order: ct * sinc_derivative(a, order + 1),
    special=(0.0, 1.0),
    cases=[Case((3, 4), order=1), Case((7,), order=2), Case((7,), order=3), Case((), order=4)],
)
def sinc_derivative(xp, a, *, order):
    r"""The derivative of `sinc` of an order from 1 on, $y = \pi^n f^{(n)}(\pi a)$ of $f(z) = \sin(z) / z$.

    Differentiating $z f = \sin z$ gives $z f^{(n)} + n f^{(n-1)} = \sin(z + n \pi / 2)$, which is stable upward for
    $|z| > n$. Nearer to 0 the Taylor series converges quickly.
    """
    if order < 1:
        raise ArgumentError(f"sinc_derivative: `order` must be 1 or more, and {order} came.")
    z = a * math.pi
    near = xp.absolute(z) < order + 1.0
    by_series = near_zero(xp.where(near, z, 0.0), order)
    by_recurrence = outside(xp, xp.where(near, 1.0, z), order)
    return xp.where(near, by_series, by_recurrence) * math.pi**order


def near_zero(z: Any, order: int) -> Any:
    """The derivative of sin(z) / z as its Taylor series, with the terms that count for |z| < order + 1."""
    first = (order + 1) // 2
    last = first + 12 + 2 * order
    total = z * 0.0
    for m in range(last, first - 1, -1):  # Horner in z²
        total = total * z * z + (-1.0) ** m / ((2 * m + 1) * math.factorial(2 * m - order))
    return total * z if order % 2 else total


def outside(xp: Any, z: Any, order: int) -> Any:
    """The derivative of sin(z) / z by the recurrence from sin(z) / z on."""
    waves = [xp.sin(z), xp.cos(z)]
    y = waves[0] / z
    for n in range(1, order + 1):
        wave = waves[n % 2] if n % 4 < 2 else -waves[n % 2]
        y = (wave - y * float(n)) / z
    return y


# NumPy's and the array API's other names.
asin, acos, atan, atan2 = arcsin, arccos, arctan, arctan2
asinh, acosh, atanh = arcsinh, arccosh, arctanh
rad2deg, deg2rad = degrees, radians
