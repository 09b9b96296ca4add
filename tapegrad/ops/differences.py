"""Calculus on samples: differences, slopes and areas of functions that are known at points."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import surely_all
from ..core.variable import Variable
from ..errors import ArgumentError, ShapeError, describe
from . import elementwise as e
from .cumulative import cut
from .operands import as_array, axis_of, value_of
from .reduce import kept_axes, reduced_axes, sum
from .shape import broadcast_to, concat, ravel, reshape


def diff(a: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    r"""Differences of neighbours along `axis`, $y_k = a_{k+1} - a_k$, taken `n` times.

    Shapes: `axis` becomes shorter by n. `prepend` and `append` come before and after `a`: numbers, or arrays that
    differ from it in `axis` only.
    """
    a = as_array(a, "diff")
    if n < 0:
        raise ArgumentError(f"diff: `n` must not be below 0, and {n} came.")
    axis = axis_of(a, axis, "diff")
    if n == 0:
        return e.positive(a) if isinstance(a, Variable) else a
    before, behind = joinable(prepend, a, "diff", "prepend"), joinable(append, a, "diff", "append")
    a = joined(before, a, behind, axis)
    for _ in range(n):
        later, earlier = cut(a, axis, 1, None), cut(a, axis, None, -1)
        a = e.not_equal(later, earlier) if a.dtype.kind == "b" else e.subtract(later, earlier)
    return a


def ediff1d(ary: Any, to_end: Any = None, to_begin: Any = None) -> Any:
    r"""Differences of neighbours of the flattened array, $y_k = a_{k+1} - a_k$, between `to_begin` and `to_end`."""
    y = diff(ravel(as_array(ary, "ediff1d", "ary")))
    ends = joinable(to_begin, y, "ediff1d", "to_begin"), joinable(to_end, y, "ediff1d", "to_end")
    before, behind = (end if end is None else ravel(end) for end in ends)
    return joined(before, y, behind, 0)


def joinable(values: Any, a: Any, op: str, argument: str) -> Any:
    """What is to be joined to `a`, in its dtype if it is a constant: a number does not widen. None stays None."""
    if values is None:
        return None
    values = as_array(values, op, argument, [a])
    return values if isinstance(values, Variable) or a.dtype.kind != "f" else values.astype(a.dtype)


def joined(before: Any, a: Any, behind: Any, axis: int) -> Any:
    """`a` between what is there of the two ends; a number stands for one place along `axis`."""
    one = kept_axes(a.shape, axis)
    parts = [p if p.ndim else broadcast_to(p, one) for p in (before, a, behind) if p is not None]
    return concat(parts, axis) if len(parts) > 1 else a


# -- slopes ----------------------------------------------------------------------------------------


def gradient(f: Any, *varargs: Any, axis: Any = None, edge_order: int = 1) -> Any:
    r"""Slopes of samples by central differences, $y_k = (f_{k+1} - f_{k-1}) / 2h$; one-sided at the edges.

    Spacings as in NumPy: one number, or for each axis a number or an array of coordinates, for which the formula is
    the one of second order for uneven steps. Differentiated in `f` and in the spacings. Returns an array for one axis,
    a tuple for several. `edge_order` is 1 or 2. Raises ShapeError for an axis with fewer than edge_order + 1 samples.
    """
    f = as_array(f, "gradient", "f")
    if f.dtype.kind != "f":
        f = f.astype(np.float64)
    if edge_order not in (1, 2):
        raise ArgumentError(f"gradient: `edge_order` must be 1 or 2, and {edge_order} came.")
    axes = reduced_axes(f.ndim, axis, "gradient")
    slopes = [
        slope_along(f, i, spacing, edge_order)
        for i, spacing in zip(axes, spacings(f, axes, varargs), strict=True)
    ]
    return slopes[0] if len(slopes) == 1 else tuple(slopes)


def spacings(f: Any, axes: tuple[int, ...], given: tuple[Any, ...]) -> list[Any]:
    """For each axis the step: a number, or an array of the steps between neighbours laid along that axis."""
    if not given:
        return [1.0] * len(axes)
    if len(given) == 1 and not np.ndim(value_of(given[0])):
        given = given * len(axes)
    if len(given) != len(axes):
        raise ArgumentError(
            f"gradient: one spacing for each of {len(axes)} axes, or one number for all; {len(given)} came."
        )
    return [steps(f, i, spacing) for i, spacing in zip(axes, given, strict=True)]


def steps(f: Any, axis: int, spacing: Any) -> Any:
    """The steps along one axis: a number where they are even, else an array laid along that axis."""
    spacing = as_array(spacing, "gradient", "spacing", [f])
    if not spacing.ndim:
        return spacing if isinstance(spacing, Variable) else float(spacing)
    if spacing.shape != (f.shape[axis],):
        raise ShapeError(
            f"gradient: coordinates must be one for each sample along axis {axis}.\n"
            f"  f: {describe(f)}      coordinates: {describe(spacing)}"
        )
    if not isinstance(spacing, Variable):
        spacing = np.diff(spacing.astype(np.float64)).astype(f.dtype)
        if spacing.size and surely_all(spacing == spacing[0]):
            return float(spacing[0])
    else:
        spacing = diff(spacing)
    return laid_along(spacing, axis, f.ndim)


def laid_along(line: Any, axis: int, ndim: int) -> Any:
    """A vector in the shape in which it broadcasts along `axis` of an array of `ndim` axes."""
    return reshape(line, tuple(-1 if i == axis else 1 for i in range(ndim)))


def slope_along(f: Any, axis: int, h: Any, edge_order: int) -> Any:
    """The slopes of `f` along one axis, the steps being `h`."""
    if f.shape[axis] < edge_order + 1:
        raise ShapeError(
            f"gradient: edge_order {edge_order} needs {edge_order + 1} samples along axis {axis}.\n  f: {describe(f)}"
        )
    uneven = not isinstance(h, float) and h.ndim > 0

    def at(start: int | None, stop: int | None) -> Any:
        return cut(f, axis, start, stop)

    def step(start: int | None, stop: int | None) -> Any:
        return cut(h, axis, start, stop) if uneven else h

    if uneven:
        inside = mixed(CENTRAL_UNEVEN, step(None, -1), step(1, None), at(None, -2), at(1, -1), at(2, None))
    else:
        inside = (at(2, None) - at(None, -2)) / (2.0 * h)
    if edge_order == 1:
        first, last = (at(1, 2) - at(0, 1)) / step(0, 1), (at(-1, None) - at(-2, -1)) / step(-1, None)
    else:
        one, two = (step(0, 1), step(1, 2)) if uneven else (h, h)
        first = mixed(FIRST_UNEVEN, one, two, at(0, 1), at(1, 2), at(2, 3))
        one, two = (step(-2, -1), step(-1, None)) if uneven else (h, h)
        last = mixed(LAST_UNEVEN, one, two, at(-3, -2), at(-2, -1), at(-1, None))
    return concat([first, inside, last] if f.shape[axis] > 2 else [first, last], axis)


# Slope at the middle, first and last of three points, of the parabola through them; d and e are the steps between.
CENTRAL_UNEVEN = (
    lambda d, e: -e / (d * (d + e)),
    lambda d, e: (e - d) / (d * e),
    lambda d, e: d / (e * (d + e)),
)
FIRST_UNEVEN = (
    lambda d, e: -(d + d + e) / (d * (d + e)),
    lambda d, e: (d + e) / (d * e),
    lambda d, e: -d / (e * (d + e)),
)
LAST_UNEVEN = (
    lambda d, e: e / (d * (d + e)),
    lambda d, e: -(d + e) / (d * e),
    lambda d, e: (d + e + e) / (e * (d + e)),
)


def mixed(weights: Any, before: Any, behind: Any, *points: Any) -> Any:
    """Three points times their weights, which depend on the steps before and behind the middle one."""
    one, two, three = (weight(before, behind) * point for weight, point in zip(weights, points, strict=True))
    return one + two + three


# -- areas -----------------------------------------------------------------------------------------


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    r"""Area under samples along `axis` by the trapezoidal rule, $\sum_k (x_{k+1} - x_k) (y_{k+1} + y_k) / 2$.

    `x` are the coordinates, along `axis` alone or in the shape of `y`; without them steps of `dx`. Differentiated in all.
    """
    y = as_array(y, "trapezoid", "y")
    axis = axis_of(y, axis, "trapezoid", "y")
    width = dx
    if x is not None:
        x = as_array(x, "trapezoid", "x", [y])
        width = diff(x, axis=axis - y.ndim if x.ndim > 1 else -1)
        if x.ndim == 1:
            width = laid_along(width, axis, y.ndim)
    heights = e.add(cut(y, axis, 1, None), cut(y, axis, None, -1))
    return sum(e.multiply(heights, width) / 2.0, axis)
