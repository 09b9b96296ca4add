"""Bessel functions of real order, by the names of `scipy.special`, which computes them.

Each kind is one op whose order is a constant. Its derivative is a combination of the orders next to it
(NIST Digital Library of Mathematical Functions, 10.6.1 and 10.29.1), where nothing is divided by the
argument: all derivatives are right at 0, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.scipy import by_scipy
from ..core.primitive import Case, elementwise
from ..core.variable import Variable
from ..errors import ArgumentError
from .elementwise import sign

ORDERS = [
    Case((3, 4), order=0),
    Case((5,), order=1),
    Case((4,), order=2),
    Case((), order=1),
    Case((0,), order=0),
]


def computed(xp: Any, kind: str, order: Any, a: Any) -> Any:
    """SciPy's value. The orders 0 and 1 have functions of their own, which are quicker and more exact."""
    if order in (0, 1):
        name, scaled = kind[0], kind[2:]
        return by_scipy(xp, f"{name}{int(order)}{scaled}", a)
    return by_scipy(xp, kind, float(order), a)


def below(bessel: Any, a: Any, order: Any) -> Any:
    """The function of the order before; that of -1 by reflection: $J_{-1} = -J_1$, $I_{-1} = I_1$."""
    if order:
        return bessel(a, order - 1)
    return -bessel(a, 1) if bessel in (bessel_j, bessel_y) else bessel(a, 1)


@elementwise(
    a=lambda ct, a, order: ct * ((below(bessel_j, a, order) - bessel_j(a, order + 1)) * 0.5),
    special=(0.0,),
    cases=ORDERS,
)
def bessel_j(xp, a, *, order):
    r"""Bessel function of the first kind, $y = J_v(a)$; $J_v' = (J_{v-1} - J_{v+1}) / 2$."""
    return computed(xp, "jv", order, a)


@elementwise(
    a=lambda ct, a, order: ct * ((below(bessel_y, a, order) - bessel_y(a, order + 1)) * 0.5),
    domain=(0.5, 4.0),
    cases=ORDERS,
)
def bessel_y(xp, a, *, order):
    r"""Bessel function of the second kind, $y = Y_v(a)$ for $a > 0$; $Y_v' = (Y_{v-1} - Y_{v+1}) / 2$."""
    return computed(xp, "yv", order, a)


@elementwise(
    a=lambda ct, a, order: ct * ((below(bessel_i, a, order) + bessel_i(a, order + 1)) * 0.5),
    special=(0.0,),
    cases=ORDERS,
)
def bessel_i(xp, a, *, order):
    r"""Modified Bessel function of the first kind, $y = I_v(a)$; $I_v' = (I_{v-1} + I_{v+1}) / 2$."""
    return computed(xp, "iv", order, a)


@elementwise(
    a=lambda ct, y, a, order: (
        ct * ((below(bessel_i_scaled, a, order) + bessel_i_scaled(a, order + 1)) * 0.5 - sign(a) * y)
    ),
    kinks=(0.0,),
    special=(0.0, 1000.0),
    cases=ORDERS,
)
def bessel_i_scaled(xp, a, *, order):
    r"""Scaled modified Bessel function of the first kind, $y = e^{-|a|} I_v(a)$.

    The derivative of $e^{-|a|}$ at 0 is taken as 0.
    """
    return computed(xp, "ive", order, a)


@elementwise(
    a=lambda ct, a, order: ct * ((below(bessel_k, a, order) + bessel_k(a, order + 1)) * -0.5),
    domain=(0.5, 4.0),
    cases=ORDERS,
)
def bessel_k(xp, a, *, order):
    r"""Modified Bessel function of the second kind, $y = K_v(a)$ for $a > 0$; $K_v' = -(K_{v-1} + K_{v+1}) / 2$."""
    return computed(xp, "kv", order, a)


# -- by SciPy's names ------------------------------------------------------------------------------


def of_order(bessel: Any, name: str, doc: str) -> Any:
    """SciPy's function of the order and the argument, in this sequence."""

    def function(v: Any, z: Any) -> Any:
        if isinstance(v, Variable) or np.ndim(v):
            raise ArgumentError(
                f"{name}: `v` must be a number, for the derivative in it has no closed form; {v!r} came."
            )
        return bessel(z, v)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


jv = of_order(bessel_j, "jv", "Bessel function of the first kind and of order `v`, a constant.")
yv = of_order(bessel_y, "yv", "Bessel function of the second kind and of order `v`, a constant.")
iv = of_order(bessel_i, "iv", "Modified Bessel function of the first kind and of order `v`, a constant.")
ive = of_order(
    bessel_i_scaled, "ive", "Scaled modified Bessel function, exp(-|z|) iv(v, z); `v` is a constant."
)
kv = of_order(bessel_k, "kv", "Modified Bessel function of the second kind and of order `v`, a constant.")


def j0(a: Any) -> Any:
    """Bessel function of the first kind and of order 0."""
    return bessel_j(a, 0)


def j1(a: Any) -> Any:
    """Bessel function of the first kind and of order 1."""
    return bessel_j(a, 1)


def y0(a: Any) -> Any:
    """Bessel function of the second kind and of order 0."""
    return bessel_y(a, 0)


def y1(a: Any) -> Any:
    """Bessel function of the second kind and of order 1."""
    return bessel_y(a, 1)


def i0(a: Any) -> Any:
    """Modified Bessel function of the first kind and of order 0."""
    return bessel_i(a, 0)


def i1(a: Any) -> Any:
    """Modified Bessel function of the first kind and of order 1."""
    return bessel_i(a, 1)


def i0e(a: Any) -> Any:
    """Scaled modified Bessel function of order 0, exp(-|a|) i0(a)."""
    return bessel_i_scaled(a, 0)


def i1e(a: Any) -> Any:
    """Scaled modified Bessel function of order 1, exp(-|a|) i1(a)."""
    return bessel_i_scaled(a, 1)


def k0(a: Any) -> Any:
    """Modified Bessel function of the second kind and of order 0, for a > 0."""
    return bessel_k(a, 0)


def k1(a: Any) -> Any:
    """Modified Bessel function of the second kind and of order 1, for a > 0."""
    return bessel_k(a, 1)
