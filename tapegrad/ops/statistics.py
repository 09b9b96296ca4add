"""Spread and weighted means: variances, standard deviations, averages, covariances."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device, surely_any
from ..core.primitive import Case, primitive
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from . import elementwise as e
from . import masked
from .elementwise import equal, where
from .linalg import matmul
from .operands import as_array, constant_like, value_of
from .reduce import REDUCTIONS, mean, reduced_axes, reduced_count, spread, sum
from .shape import broadcast_to, concat, expand_dims, matrix_transpose, reshape, squeeze, transpose

SPREADS = [
    *REDUCTIONS[:-1],
    Case((3,), ddof=1),
    Case((2, 3), axis=-1, ddof=1),
    Case((2, 3), axis=0, ddof=0.5),
]


def degrees(shape: tuple[int, ...], axis: Any, ddof: float) -> float:
    """What a sum of squares is divided by; NaN where nothing is left."""
    left = reduced_count(shape, axis) - ddof
    return float(left) if left > 0 else math.nan


@primitive(
    a=lambda ct, a, axis, ddof: (
        spread(ct + ct, a.shape, axis) * (a - mean(a, axis, True)) / degrees(a.shape, axis, ddof)
    ),
    cases=[*SPREADS, Case(())],
)
def variance(xp, a, *, axis=None, ddof=0, keepdims=False):
    r"""Variance over `axis`, $y = \frac1{n - \mathrm{ddof}} \sum_i (a_i - \bar a)^2$."""
    return xp.var(a, axis=axis, ddof=ddof, keepdims=keepdims)


def deviation_pullback(ct: Any, a: Any, y: Any, axis: Any, ddof: float) -> Any:
    """ct (a - mean) / ((n - ddof) y), and 0 where y is."""
    still = equal(y, 0.0)
    slope = where(still, 0.0, ct / where(still, 1.0, y))
    return spread(slope, a.shape, axis) * (a - mean(a, axis, True)) / degrees(a.shape, axis, ddof)


@primitive(a=deviation_pullback, special=(1.0,), cases=SPREADS)
def deviation(xp, a, *, axis=None, ddof=0, keepdims=False):
    r"""Standard deviation over `axis`, $y = \sqrt{\mathrm{variance}}$. Its gradient is taken as 0 where it is 0."""
    return xp.std(a, axis=axis, ddof=ddof, keepdims=keepdims)


def var(
    a: Any,
    axis: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = True,
    mean: Any = None,
    correction: float | None = None,
) -> Any:
    r"""Variance over `axis`, $y = \frac1{n - \mathrm{ddof}} \sum_i (a_i - \bar a)^2$.

    `correction` is the array API's name of `ddof`. `where` picks elements; `mean` gives $\bar a$ where it is known,
    with the reduced axes kept. NaN, with a warning, where n - ddof is not above 0.
    """
    ddof = one_of(ddof, correction, "var")
    if where is True and mean is None:
        return variance(a, axis, ddof, keepdims)
    a = as_array(a, "var")
    center = masked.mean(a, axis, keepdims=True, where=where) if mean is None else mean
    # What is left out may be NaN: it is replaced before anything is computed from it, for 0 · NaN is NaN.
    squares = e.square(e.subtract(masked.picked(a, where, 0, "var"), center))
    total = masked.sum(squares, axis, keepdims=keepdims, where=where)
    count = masked.counts(a, axis, keepdims, where, "var") - ddof
    return masked.quotient(total, count, "var: n - ddof is not above 0")


def std(
    a: Any,
    axis: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = True,
    mean: Any = None,
    correction: float | None = None,
) -> Any:
    r"""Standard deviation, $y = \sqrt{\mathrm{var}}$, with the parameters of `var`.

    Its gradient is taken as 0 where it is 0, as in PyTorch (it has no limit there).
    """
    ddof = one_of(ddof, correction, "std")
    if where is True and mean is None:
        return deviation(a, axis, ddof, keepdims)
    return root(var(a, axis, ddof=ddof, keepdims=keepdims, where=where, mean=mean))


def one_of(ddof: float, correction: float | None, op: str) -> float:
    """The number, under whichever of its two names it was given."""
    if correction is not None and ddof != 0:
        raise ArgumentError(f"{op}: `ddof` and `correction` are two names of one number. Give one.")
    return ddof if correction is None else correction


def root(v: Any) -> Any:
    """The square root, with gradient 0 at 0."""
    zero = equal(v, 0.0)
    return where(zero, 0.0, e.sqrt(where(zero, 1.0, v)))


def nanvar(
    a: Any,
    axis: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = True,
    mean: Any = None,
    correction: float | None = None,
) -> Any:
    r"""Variance of the elements that are not NaN, with the parameters of `var`. A NaN has gradient 0."""
    a = as_array(a, "nanvar")
    ddof = one_of(ddof, correction, "nanvar")
    return var(a, axis, ddof=ddof, keepdims=keepdims, where=masked.present(a, where), mean=mean)


def nanstd(
    a: Any,
    axis: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    where: Any = True,
    mean: Any = None,
    correction: float | None = None,
) -> Any:
    r"""Standard deviation of the elements that are not NaN, with the parameters of `std`. A NaN has gradient 0."""
    a = as_array(a, "nanstd")
    ddof = one_of(ddof, correction, "nanstd")
    return root(nanvar(a, axis, ddof=ddof, keepdims=keepdims, where=where, mean=mean))


# -- weighted means ----------------------------------------------------------------------------------


def average(
    a: Any, axis: Any = None, weights: Any = None, returned: bool = False, *, keepdims: bool = False
) -> Any:
    r"""Weighted mean over `axis`, $y = \sum_i w_i a_i / \sum_i w_i$; the mean without weights.

    Shapes: weights as `a`, or as the reduced axes of `a`. With `returned` also the sum of the weights. Differentiated in
    `a` and in `weights`. Raises ShapeError for other weights, ArgumentError where they sum to 0.
    """
    a = as_array(a, "average")
    if weights is None:
        y = mean(a, axis, keepdims)
        count = module_beside(value_of(y)).full(y.shape, reduced_count(a.shape, axis), y.dtype)
        return (y, count) if returned else y
    weights = laid_out(constant_like(as_array(weights, "average", "weights", [a]), a), a, axis)
    total = sum(weights, axis, keepdims)
    if surely_any(value_of(total) == 0):
        raise ArgumentError("average: `weights` sum to 0, so there is no mean.")
    y = e.divide(sum(e.multiply(a, weights), axis, keepdims), total)
    return (y, broadcast_to(total, y.shape)) if returned else y


def laid_out(weights: Any, a: Any, axis: Any) -> Any:
    """Weights of the reduced axes in the shape of `a`."""
    if weights.shape == a.shape:
        return weights
    axes = reduced_axes(a.ndim, axis, "average")
    if axis is None or weights.shape != tuple(a.shape[i] for i in axes):
        raise ShapeError(
            "average: `weights` must have the shape of `a`, or of the axes that are averaged over.\n"
            f"  a: {describe(a)}      weights: {describe(weights)}      axis: {axis}"
        )
    ordered = transpose(weights, tuple(np.argsort(axes).tolist()))
    return broadcast_to(
        reshape(ordered, tuple(n if i in axes else 1 for i, n in enumerate(a.shape))), a.shape
    )


# -- covariance --------------------------------------------------------------------------------------


def cov(
    m: Any,
    y: Any = None,
    rowvar: bool = True,
    bias: bool = False,
    ddof: int | None = None,
    fweights: Any = None,
    aweights: Any = None,
) -> Any:
    r"""Covariances of variables, $C_{ij} = \frac1{n - \mathrm{ddof}} \sum_k (m_{ik} - \bar m_i)(m_{jk} - \bar m_j)$.

    Shapes: m (variables, samples), transposed without `rowvar`; y likewise, more variables -> (variables, variables), and
    0-d for one. ddof is 1 (0 with `bias`). `fweights`: how often each sample occurs, integers; `aweights`: how much
    each counts, which may be Variables. Keeps the dtype of `m`, where NumPy widens to float64.
    """
    x = variables(m, rowvar, "m")
    if y is not None:
        x = concat([x, variables(y, rowvar, "y")], 0)
    if not x.shape[0]:
        return matmul(x, matrix_transpose(x))
    if ddof is None:
        ddof = 0 if bias else 1
    if ddof != int(ddof):
        raise ArgumentError(f"cov: `ddof` must be a whole number, and {ddof} came.")
    frequencies = sample_weights(fweights, x, "fweights")
    importances = sample_weights(aweights, x, "aweights")
    if frequencies is not None and surely_any(value_of(frequencies) % 1):
        raise DtypeError(
            "cov: `fweights` say how often a sample occurs: whole numbers. Others are `aweights`."
        )
    w = importances if frequencies is None else frequencies
    if frequencies is not None and importances is not None:
        w = e.multiply(frequencies, importances)
    average_of_rows, total = average(x, 1, w, True, keepdims=True)
    left = degrees_left(total[0, 0], w, importances, ddof)
    centered = e.subtract(x, average_of_rows)
    weighted = centered if w is None else e.multiply(centered, w)
    return squeeze(matmul(centered, matrix_transpose(weighted)) / left)


def variables(m: Any, rowvar: bool, argument: str) -> Any:
    """One row for each variable, one column for each sample."""
    m = as_array(m, "cov", argument)
    if m.ndim > 2:
        raise ShapeError(f"cov: `{argument}` must have at most two axes.\n  {argument}: {describe(m)}")
    if m.ndim < 2:
        return reshape(m, (1, -1))
    return m if rowvar or (argument == "y" and m.shape[0] == 1) else matrix_transpose(m)


def sample_weights(weights: Any, x: Any, argument: str) -> Any:
    """The weights of samples as an array, if there are any. Raises for another shape, and for one below 0."""
    if weights is None:
        return None
    weights = constant_like(as_array(weights, "cov", argument), x)
    if weights.shape != x.shape[1:]:
        raise ShapeError(
            f"cov: `{argument}` must have one number for each of the {x.shape[1]} samples.\n"
            f"  {argument}: {describe(weights)}"
        )
    if surely_any(value_of(weights) < 0):
        raise ArgumentError(f"cov: `{argument}` must not be below 0.")
    return weights


def degrees_left(total: Any, w: Any, importances: Any, ddof: int) -> Any:
    """What the sums of products are divided by."""
    if importances is None or ddof == 0:
        left = total - ddof
    else:
        left = total - ddof * sum(e.multiply(w, importances)) / total
    if on_device(value_of(left)):
        return where(value_of(left) > 0, left, math.nan)
    if value_of(left) > 0:
        return left
    warnings.warn("cov: no degrees of freedom are left", RuntimeWarning, stacklevel=3)
    return math.nan


def corrcoef(x: Any, y: Any = None, rowvar: bool = True) -> Any:
    r"""Correlation coefficients, $R_{ij} = C_{ij} / \sqrt{C_{ii} C_{jj}}$ with the covariances of `cov`; within -1 … 1.

    NaN for a variable that is constant.
    """
    c = cov(x, y, rowvar)
    if not c.ndim:
        return c / c
    each = module_beside(value_of(c)).arange(c.shape[0])
    scale = e.sqrt(c[each, each])
    return e.clip(c / expand_dims(scale, 1) / expand_dims(scale, 0), -1.0, 1.0)
