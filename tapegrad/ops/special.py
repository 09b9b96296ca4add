"""Special functions, by the names of `scipy.special`: error, gamma, beta, logistic and entropy functions.

SciPy computes them, and is imported when the first is called. `expit`, `log_expit`, `logit`, `xlogy`,
`xlog1py` and `entr` need NumPy alone. The slopes are closed under differentiation (gamma -> digamma ->
polygamma), so every function has every derivative.

Formulas: NIST Digital Library of Mathematical Functions, chapters 5 (gamma), 7 (error), 25 (zeta).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend.device import put_beside
from ..backend.scipy import by_scipy
from ..core.generate import PYTHON_NUMBERS
from ..core.primitive import Case, elementwise
from ..core.variable import Variable
from ..errors import ArgumentError, UnsupportedError
from .bessel import i0 as i0
from .bessel import i0e as i0e
from .bessel import i1 as i1
from .bessel import i1e as i1e
from .bessel import iv as iv
from .bessel import ive as ive
from .bessel import j0 as j0
from .bessel import j1 as j1
from .bessel import jv as jv
from .bessel import k0 as k0
from .bessel import k1 as k1
from .bessel import kv as kv
from .bessel import y0 as y0
from .bessel import y1 as y1
from .bessel import yv as yv
from .elementwise import cbrt as cbrt
from .elementwise import (
    equal,
    exp,
    less_equal,
    log,
    log1p,
    logical_and,
    negative,
    sigmoid,
    softplus,
    subtract,
    where,
)
from .elementwise import exp2 as exp2
from .elementwise import expm1 as expm1
from .operands import as_array
from .reduce import logsumexp as logsumexp
from .softmax import log_softmax as log_softmax
from .softmax import softmax as softmax
from .trigonometry import sinc as sinc

SQRT_PI = math.sqrt(math.pi)
SQRT_2PI = math.sqrt(2.0 * math.pi)


def of_one_dtype(a: Any, b: Any) -> tuple[Any, Any]:
    """`a` and `b`, of which a Python number becomes an array of the dtype of the other."""
    if type(a) in PYTHON_NUMBERS and hasattr(b, "dtype") and b.dtype.kind == "f":
        return put_beside(a, b).astype(b.dtype), b
    if type(b) in PYTHON_NUMBERS and hasattr(a, "dtype") and a.dtype.kind == "f":
        return a, put_beside(b, a).astype(a.dtype)
    return a, b


# -- error functions -------------------------------------------------------------------------------


@elementwise(a=lambda ct, a: ct * exp(-(a * a)) * (2.0 / SQRT_PI), special=(-30.0, 0.0, 30.0))
def erf(xp, a):
    r"""Error function, $y = \frac{2}{\sqrt\pi} \int_0^a e^{-t^2} dt$."""
    return by_scipy(xp, "erf", a)


@elementwise(a=lambda ct, a: ct * exp(-(a * a)) * (-2.0 / SQRT_PI), special=(-30.0, 0.0, 30.0))
def erfc(xp, a):
    r"""Complementary error function, $y = 1 - \mathrm{erf}\, a$, exact for large `a`."""
    return by_scipy(xp, "erfc", a)


@elementwise(a=lambda ct, y, a: ct * (y * a * 2.0 - 2.0 / SQRT_PI), special=(0.0, 30.0))
def erfcx(xp, a):
    r"""Scaled complementary error function, $y = e^{a^2} \mathrm{erfc}\, a$."""
    return by_scipy(xp, "erfcx", a)


@elementwise(a=lambda ct, y: ct * exp(y * y) * (SQRT_PI / 2.0), domain=(-0.9, 0.9), special=(0.0,))
def erfinv(xp, a):
    r"""Inverse error function, $\mathrm{erf}\, y = a$. The derivative at $\pm 1$ is infinite."""
    return by_scipy(xp, "erfinv", a)


@elementwise(a=lambda ct, y: ct * exp(y * y) * (-SQRT_PI / 2.0), domain=(0.1, 1.9), special=(1.0,))
def erfcinv(xp, a):
    r"""Inverse complementary error function, $\mathrm{erfc}\, y = a$. The derivative at 0 and 2 is infinite."""
    return by_scipy(xp, "erfcinv", a)


@elementwise(a=lambda ct, a: ct * exp(a * a * -0.5) * (1.0 / SQRT_2PI), special=(-40.0, 0.0, 40.0))
def ndtr(xp, a):
    r"""Distribution function of the standard normal, $y = \Phi(a)$."""
    return by_scipy(xp, "ndtr", a)


@elementwise(a=lambda ct, y: ct * exp(y * y * 0.5) * SQRT_2PI, domain=(0.1, 0.9), special=(0.5,))
def ndtri(xp, a):
    r"""Quantiles of the standard normal, $\Phi(y) = a$. The derivative at 0 and 1 is infinite."""
    return by_scipy(xp, "ndtri", a)


@elementwise(a=lambda ct, a: ct * inverse_mills(a), special=(-1000.0, 0.0, 1000.0))
def log_ndtr(xp, a):
    r"""Logarithm of the normal distribution function, $y = \ln \Phi(a)$, exact for very negative `a`."""
    return by_scipy(xp, "log_ndtr", a)


@elementwise(a=lambda ct, y, a: -(ct * y * (a + y)), special=(-1000.0, 0.0, 1000.0))
def inverse_mills(xp, a):
    r"""Inverse Mills ratio, the slope of `log_ndtr`, $y = \phi(a) / \Phi(a) = \sqrt{2/\pi} / \mathrm{erfcx}(-a / \sqrt 2)$."""
    return math.sqrt(2.0 / math.pi) / by_scipy(xp, "erfcx", a * -math.sqrt(0.5))


# -- logistic functions ----------------------------------------------------------------------------

expit = sigmoid


def log_expit(a: Any) -> Any:
    r"""Logarithm of the logistic function, $y = -\ln(1 + e^{-a})$, without overflow."""
    return negative(softplus(negative(a)))


@elementwise(a=lambda ct, a: ct / (a * (1.0 - a)), domain=(0.1, 0.9), special=(0.5,))
def logit(xp, a):
    r"""Inverse logistic function, $y = \ln \frac{a}{1 - a}$. The derivative at 0 and 1 is infinite."""
    return xp.log(a) - xp.log1p(-a)


# -- gamma and beta functions ----------------------------------------------------------------------


@elementwise(a=lambda ct, y, a: ct * y * digamma(a), domain=(0.5, 4.0))
def gamma(xp, a):
    r"""Gamma function, $y = \Gamma(a)$."""
    return by_scipy(xp, "gamma", a)


@elementwise(a=lambda ct, y, a: -(ct * y * digamma(a)), domain=(0.5, 4.0))
def rgamma(xp, a):
    r"""Reciprocal of the gamma function, $y = 1 / \Gamma(a)$. Its rule has no number at 0, -1, …: NaN."""
    return by_scipy(xp, "rgamma", a)


@elementwise(a=lambda ct, a: ct * digamma(a), domain=(0.5, 4.0))
def gammaln(xp, a):
    r"""Logarithm of the gamma function, $y = \ln |\Gamma(a)|$."""
    return by_scipy(xp, "gammaln", a)


@elementwise(a=lambda ct, a: ct * polygamma_of_order(a, 1), domain=(0.5, 4.0))
def digamma(xp, a):
    r"""Digamma function, $y = \psi(a) = \Gamma'(a) / \Gamma(a)$."""
    return by_scipy(xp, "psi", a)


def polygamma(n: Any, x: Any) -> Any:
    r"""Derivative of order `n` of the digamma function, $y = \psi^{(n)}(x)$; `n` is a whole number."""
    if isinstance(n, Variable) or np.ndim(n) or n != int(n) or not 0 <= n <= 170:
        raise ArgumentError(
            f"polygamma: `n` must be one whole number from 0 to 170, and {n!r} came.\n"
            "  The arguments are (n, x): the order first."
        )
    return polygamma_of_order(x, int(n)) if n else digamma(x)


@elementwise(
    a=lambda ct, a, n: ct * polygamma_of_order(a, n + 1),
    domain=(0.8, 4.0),
    cases=[Case((3, 4), n=1), Case((5,), n=2), Case((), n=3), Case((0,), n=1)],
)
def polygamma_of_order(xp, a, *, n):
    r"""Derivative of the digamma function of an order from 1 on, $y = (-1)^{n+1}\, n!\, \zeta(n + 1, a)$."""
    return by_scipy(xp, "zeta", n + 1.0, a) * ((-1.0) ** (n + 1) * math.factorial(n))


def multigammaln(a: Any, d: int) -> Any:
    r"""Logarithm of the multivariate gamma function, $\frac{d(d-1)}{4} \ln \pi + \sum_{i=1}^d \ln \Gamma(a - \frac{i-1}{2})$."""
    if isinstance(d, Variable) or np.ndim(d) or d != int(d) or d < 1:
        raise ArgumentError(f"multigammaln: `d` must be a whole number from 1 on, and {d!r} came.")
    total = gammaln(a)
    for i in range(1, int(d)):
        total = total + gammaln(subtract(a, i / 2))
    return total + d * (d - 1) / 4 * math.log(math.pi)


@elementwise(
    a=lambda ct, y, a, b: ct * y * (digamma(a) - digamma(a + b)),
    b=lambda ct, y, a, b: ct * y * (digamma(b) - digamma(a + b)),
    domain=(0.5, 4.0),
)
def beta(xp, a, b):
    r"""Beta function, $y = \Gamma(a) \Gamma(b) / \Gamma(a + b)$."""
    return by_scipy(xp, "beta", a, b)


@elementwise(
    a=lambda ct, a, b: ct * (digamma(a) - digamma(a + b)),
    b=lambda ct, a, b: ct * (digamma(b) - digamma(a + b)),
    domain=(0.5, 4.0),
)
def betaln(xp, a, b):
    r"""Logarithm of the beta function, $y = \ln |B(a, b)|$."""
    return by_scipy(xp, "betaln", a, b)


def parameter(value: Any, argument: Any, op: str, name: str) -> Any:
    """A constant in the dtype of the argument. Raises UnsupportedError for one that is differentiated."""
    if isinstance(value, Variable) and value._slot:
        raise UnsupportedError(
            f"{op}: its derivative in `{name}` has no closed form. Pass a number, or tg.stop_gradient({name})."
        )
    if type(value) in PYTHON_NUMBERS:
        return of_one_dtype(value, argument)[0]
    return as_array(value, op, name, [argument])


def zeta(x: Any, q: Any = 1.0) -> Any:
    r"""Hurwitz zeta function, $y = \sum_k (k + q)^{-x}$; Riemann's for $q = 1$. `x` is a constant."""
    return hurwitz_zeta(q, parameter(x, q, "zeta", "x"))


@elementwise(
    q=lambda ct, q, x: -(ct * (x * hurwitz_zeta(q, x + 1.0))),
    domain={"q": (0.8, 4.0), "x": (1.5, 3.0)},
)
def hurwitz_zeta(xp, q, x):
    r"""Hurwitz zeta function with its differentiated argument first, $y = \sum_k (k + q)^{-x}$."""
    return by_scipy(xp, "zeta", x, q)


def gammainc(a: Any, x: Any) -> Any:
    r"""Regularized lower incomplete gamma function, $y = \frac{1}{\Gamma(a)} \int_0^x t^{a-1} e^{-t} dt$.

    `a` is a constant.
    """
    return lower_gamma(x, parameter(a, x, "gammainc", "a"))


def gammaincc(a: Any, x: Any) -> Any:
    r"""Regularized upper incomplete gamma function, $y = 1 - \mathrm{gammainc}(a, x)$, exact for large `x`."""
    return upper_gamma(x, parameter(a, x, "gammaincc", "a"))


def betainc(a: Any, b: Any, x: Any) -> Any:
    r"""Regularized incomplete beta function, $y = \frac{1}{B(a, b)} \int_0^x t^{a-1} (1 - t)^{b-1} dt$.

    `a` and `b` are constants.
    """
    return lower_beta(x, parameter(a, x, "betainc", "a"), parameter(b, x, "betainc", "b"))


def gamma_density(x: Any, a: Any) -> Any:
    """The integrand of the incomplete gamma functions over Gamma(a), by logarithms: nothing overflows."""
    return exp(xlogy(a - 1.0, x) - x - gammaln(a))


def beta_density(x: Any, a: Any, b: Any) -> Any:
    """The integrand of the incomplete beta function over B(a, b)."""
    return exp(xlogy(a - 1.0, x) + xlog1py(b - 1.0, -x) - betaln(a, b))


@elementwise(x=lambda ct, x, a: ct * gamma_density(x, a), domain={"x": (0.2, 4.0), "a": (0.5, 3.0)})
def lower_gamma(xp, x, a):
    r"""`gammainc` with its differentiated argument first."""
    return by_scipy(xp, "gammainc", a, x)


@elementwise(x=lambda ct, x, a: -(ct * gamma_density(x, a)), domain={"x": (0.2, 4.0), "a": (0.5, 3.0)})
def upper_gamma(xp, x, a):
    r"""`gammaincc` with its differentiated argument first."""
    return by_scipy(xp, "gammaincc", a, x)


@elementwise(
    x=lambda ct, x, a, b: ct * beta_density(x, a, b),
    domain={"x": (0.1, 0.9), "a": (0.5, 3.0), "b": (0.5, 3.0)},
)
def lower_beta(xp, x, a, b):
    r"""`betainc` with its differentiated argument first."""
    return by_scipy(xp, "betainc", a, b, x)


# -- entropies -------------------------------------------------------------------------------------


def xlogy(x: Any, y: Any) -> Any:
    r"""$x \ln y$, and 0 where $x = 0$, also for $y = 0$; the gradient where both are 0 is taken as 0."""
    x, y = of_one_dtype(x, y)
    return x * log(where(logical_and(equal(x, 0), less_equal(y, 0)), 1.0, y))


def xlog1py(x: Any, y: Any) -> Any:
    r"""$x \ln(1 + y)$, and 0 where $x = 0$, also for $y = -1$; the gradient where both hold is taken as 0."""
    x, y = of_one_dtype(x, y)
    return x * log1p(where(logical_and(equal(x, 0), less_equal(y, -1)), 0.0, y))


@elementwise(a=lambda ct, a: -(ct * (log(a) + 1.0)), domain=(0.1, 2.0))
def entr(xp, a):
    r"""Entropy, $y = -a \ln a$; 0 where $a = 0$, and $-\infty$ where $a < 0$. The derivative at 0 is infinite."""
    return xp.where(a < 0, -math.inf, -a * xp.log(xp.where(a > 0, a, 1.0)))


@elementwise(
    a=lambda ct, a, b: ct * (log(a / b) + 1.0),
    b=lambda ct, a, b: -(ct * (a / b)),
    domain=(0.2, 2.0),
)
def rel_entr(xp, a, b):
    r"""Relative entropy, $y = a \ln(a / b)$; 0 where $a = 0 \le b$, and $\infty$ where an argument is negative."""
    return by_scipy(xp, "rel_entr", a, b)


def kl_div(x: Any, y: Any) -> Any:
    r"""$x \ln(x / y) - x + y$, the divergence whose terms are not negative."""
    return rel_entr(x, y) - x + y


# SciPy's other names.
psi = digamma
jn, yn, kn = jv, yv, kv
