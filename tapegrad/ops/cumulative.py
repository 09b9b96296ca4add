"""Ops that carry a result along an axis: running sums and products, and the linear recurrence behind their pullbacks.

The transpose of "from the start up to here" is "from here to the end": the same op on flipped arrays.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend.device import module_beside, on_device, surely_all
from ..core.primitive import Case, linear, primitive
from ..errors import ArgumentError, ShapeError, describe
from .elementwise import equal, exp, isnan, where
from .operands import as_array, value_of
from .shape import concat, reshape


def cut(a: Any, axis: int, *bounds: int | None) -> Any:
    """`a[start:stop:step]` along `axis`."""
    return a[(slice(None),) * (axis % a.ndim) + (slice(*bounds),)]


def flipped(a: Any, axis: int) -> Any:
    return cut(a, axis, None, None, -1)


def pushed(a: Any, axis: int, first: float) -> Any:
    """`a` moved on by one place along `axis`: `first` comes in at the start, the last elements fall out."""
    if not a.shape[axis]:
        return a
    return concat([filled_like(cut(a, axis, 0, 1), first), cut(a, axis, 0, -1)], axis)


def filled_like(a: Any, number: float) -> Any:
    return module_beside(value_of(a)).full(a.shape, number, a.dtype)


def accumulated(ufunc: Any, a: Any, axis: int) -> Any:
    """`ufunc.accumulate`. CuPy has that for sums and products alone, so on a device pairs are joined by doubling."""
    if not on_device(a):
        return ufunc.accumulate(a, axis=axis)
    y, reach = a.copy(), 1
    while reach < a.shape[axis]:
        later, earlier = cut(y, axis, reach, None), cut(y, axis, None, -reach)
        later[...] = ufunc(later, earlier)
        reach *= 2
    return y


def running_axis(a_shape: tuple[int, ...], axis: int | None) -> int:
    """The axis of the result: a running op lays out all elements on one axis for None, and a 0-d array."""
    return 0 if axis is None or not a_shape else axis


# -- sums ------------------------------------------------------------------------------------------


def sum_to_the_end(ct: Any, axis: int) -> Any:
    """The transpose of a running sum."""
    return flipped(cumsum(flipped(ct, axis), axis), axis)


@linear(
    a=lambda ct, a_shape, axis: reshape(sum_to_the_end(ct, running_axis(a_shape, axis)), a_shape),
    cases=[
        Case((2, 3)),
        Case((2, 3), axis=0),
        Case((2, 3, 2), axis=-2),
        Case(()),
        Case((), axis=0),
        Case((0, 3), axis=0),
        Case((1,)),
    ],
)
def cumsum(xp, a, *, axis=None):
    r"""Running sum along `axis` (over all elements in C order for None), $y_k = \sum_{i \le k} a_i$."""
    return xp.cumsum(a, axis=axis)


def cumulative_sum(x: Any, *, axis: int | None = None, include_initial: bool = False) -> Any:
    r"""Running sum, $y_k = \sum_{i \le k} x_i$; with `include_initial` a 0 comes before it.

    The array API's `cumsum`. Raises ArgumentError for several axes and no `axis`.
    """
    return cumulative(cumsum, x, axis, include_initial, 0.0, "cumulative_sum")


def cumulative_prod(x: Any, *, axis: int | None = None, include_initial: bool = False) -> Any:
    r"""Running product, $y_k = \prod_{i \le k} x_i$; with `include_initial` a 1 comes before it.

    The array API's `cumprod`. Raises ArgumentError for several axes and no `axis`.
    """
    return cumulative(cumprod, x, axis, include_initial, 1.0, "cumulative_prod")


def cumulative(running: Any, x: Any, axis: int | None, include_initial: bool, first: float, op: str) -> Any:
    """The op `running` with the parameters of the array API, `first` standing for nothing."""
    x = as_array(x, op, "x")
    if axis is None and x.ndim > 1:
        raise ArgumentError(
            f"{op}: `axis` must be given for an array of several axes.\n  x: {describe(x)}\n"
            f"  To run over all elements ravel it first."
        )
    axis = running_axis(x.shape, axis)
    y = running(x, axis)
    if not include_initial:
        return y
    shape = tuple(1 if i == axis % y.ndim else n for i, n in enumerate(y.shape))
    return concat([module_beside(value_of(y)).full(shape, first, y.dtype), y], axis)


def nancumsum(a: Any, axis: int | None = None) -> Any:
    r"""Running sum in which a NaN counts as 0, and gets no gradient."""
    return cumsum(where(isnan(a), 0, as_array(a, "nancumsum")), axis)


def nancumprod(a: Any, axis: int | None = None) -> Any:
    r"""Running product in which a NaN counts as 1, and gets no gradient."""
    return cumprod(where(isnan(a), 1, as_array(a, "nancumprod")), axis)


# -- recurrences -----------------------------------------------------------------------------------


def carried_back(ct: Any, a: Any, axis: int) -> Any:
    r"""$\lambda_k = ct_k + a_{k+1} \lambda_{k+1}$: the adjoint of a linear recurrence is one that runs backwards."""
    return flipped(linear_recurrence(pushed(flipped(a, axis), axis, 0.0), flipped(ct, axis), axis), axis)


def linear_recurrence_pullback(ct: Any, a: Any, y: Any, axis: int) -> tuple[Any, Any]:
    """b̄ by the recurrence that runs backwards, and ā_k = b̄_k y_{k-1}."""
    b_ct = carried_back(ct, a, axis)
    return b_ct * pushed(y, axis, 0.0), b_ct


@primitive(
    joint=linear_recurrence_pullback,
    differentiable=("a", "b"),
    cases=[
        Case((4,), (4,)),
        Case((3, 4), (3, 4)),
        Case((3, 4), (3, 4), axis=0),
        Case((2, 0), (2, 0)),
        Case((1,), (1,)),
    ],
)
def linear_recurrence(xp, a, b, *, axis=-1):
    r"""$y_k = a_k y_{k-1} + b_k$ along `axis`, from $y_{-1} = 0$.

    Shapes: `a` and `b` alike. One step of Python for each place along the axis.
    """
    if a.shape != b.shape:
        raise ShapeError(
            f"linear_recurrence: `a` and `b` must have one shape.\n  a: {describe(a)}      b: {describe(b)}"
        )
    y = xp.array(b, dtype=xp.result_type(a, b))
    rows, factors = xp.moveaxis(y, axis, 0), xp.moveaxis(a, axis, 0)
    for k in range(1, len(rows)):
        rows[k] += factors[k] * rows[k - 1]
    return y


# Lines without a zero, with one, with several.
ZEROS = np.array([[1.0, 2.0, -0.5, 1.5], [1.0, 0.0, 2.0, 3.0], [0.0, 2.0, 0.0, 0.5], [0.0, 0.0, 0.0, 2.0]])

# -- products --------------------------------------------------------------------------------------


def cumprod_pullback(ct: Any, a: Any, y: Any, axis: int | None) -> Any:
    """The sum over the later products, of which each has this factor taken out.

    Divides where it can. A zero cannot be taken out by dividing: the product of the factors before it is at hand,
    and those behind it follow the recurrence s_k = ct_k + a_{k+1} s_{k+1}.
    """
    along = running_axis(a.shape, axis)
    factors = reshape(a, y.shape)
    if surely_all(value_of(a)):
        return reshape(sum_to_the_end(ct * y, along) / factors, a.shape)
    return reshape(pushed(y, along, 1.0) * carried_back(ct, factors, along), a.shape)


@primitive(
    a=cumprod_pullback,
    special=(0.0,),
    cases=[
        Case((2, 3)),
        Case((2, 3), axis=0),
        Case((2, 3, 2), axis=-2),
        Case(()),
        Case((0, 3), axis=0),
        Case((1,)),
        Case(ZEROS, axis=1),
        Case(ZEROS),
    ],
)
def cumprod(xp, a, *, axis=None):
    r"""Running product along `axis` (over all elements in C order for None), $y_k = \prod_{i \le k} a_i$.

    Right at zeros too, to every order.
    """
    return xp.cumprod(a, axis=axis)


def logcumsumexp_pullback(ct: Any, a: Any, y: Any, axis: int | None) -> Any:
    """All exponents are differences that are not above 0, so that nothing overflows."""
    along = running_axis(a.shape, axis)
    top = where(equal(y, -math.inf), 0.0, y)
    later = carried_back(ct, exp(pushed(y, along, -math.inf) - top), along)
    return reshape(exp(reshape(a, y.shape) - top) * later, a.shape)


@primitive(
    a=logcumsumexp_pullback,
    special=(-1000.0, 1000.0),
    cases=[Case((2, 3)), Case((2, 3), axis=0), Case((2, 3, 2), axis=-2), Case(()), Case((0, 3), axis=0)],
)
def logcumsumexp(xp, a, *, axis=None):
    r"""$y_k = \ln \sum_{i \le k} e^{a_i}$ along `axis`, without overflow.

    Where all elements so far are -inf the gradient is taken as 0.
    """
    if axis is None or not a.ndim:
        a, axis = xp.reshape(a, (-1,)), 0
    return accumulated(np.logaddexp, a, axis)
