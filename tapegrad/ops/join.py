"""Joining and splitting by NumPy's other names: each is `concat` or `split` of arrays that were given axes first."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError, describe
from .operands import arrayed, axis_of
from .shape import atleast_1d, atleast_2d, atleast_3d, broadcast_arrays, concat, reshape, split


def vstack(tup: Any) -> Any:
    """The arrays joined along their first axis; a vector counts as a row."""
    return concat([atleast_2d(a) for a in tup], 0)


def hstack(tup: Any) -> Any:
    """The arrays joined along their second axis; vectors along the one that they have."""
    arrays = [atleast_1d(a) for a in tup]
    return concat(arrays, 0 if arrays and arrays[0].ndim == 1 else 1)


def dstack(tup: Any) -> Any:
    """The arrays joined along their third axis. Shapes: (n,) counts as (1, n, 1), (m, n) as (m, n, 1)."""
    return concat([atleast_3d(a) for a in tup], 2)


def column_stack(tup: Any) -> Any:
    """The arrays joined along their second axis; a vector counts as a column."""
    return concat([a if a.ndim > 1 else reshape(a, (a.size, 1)) for a in map(arrayed, tup)], 1)


def block(arrays: Any) -> Any:
    """An array put together from nested lists of blocks: the innermost are joined along the last axis.

    Lists one level further out are joined along the axis before it, and so on.
    Raises ShapeError if a list is empty, or if some are nested deeper than others.
    """
    depths: set[int] = set()
    leaves: list[Any] = []

    def visit(part: Any, depth: int) -> Any:
        if isinstance(part, tuple):
            raise ShapeError("block: blocks are nested in lists, and a tuple came. Write [a, b], not (a, b).")
        if isinstance(part, list):
            if not part:
                raise ShapeError("block: a list of blocks is empty.")
            return [visit(p, depth + 1) for p in part]
        depths.add(depth)
        leaves.append(arrayed(part))
        return leaves[-1]

    nested = visit(arrays, 0)
    if len(depths) > 1:
        raise ShapeError(f"block: every block must be nested equally deep, and depths {sorted(depths)} came.")
    axes = max(*depths, *(leaf.ndim for leaf in leaves))

    def join(part: Any, axis: int) -> Any:
        if isinstance(part, list):
            return concat([join(p, axis + 1) for p in part], axis)
        return part if part.ndim == axes else reshape(part, (*(1,) * (axes - part.ndim), *part.shape))

    return join(nested, -depths.pop())


def array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    """`ary` cut along `axis` at the given positions, or into parts of nearly equal length, longer ones first."""
    if not isinstance(indices_or_sections, int | np.integer):
        return split(ary, indices_or_sections, axis)
    ary = arrayed(ary)
    if indices_or_sections < 1:
        raise ShapeError(
            f"array_split: `indices_or_sections` must be positions, or at least 1, and {indices_or_sections} came."
        )
    length, longer = divmod(ary.shape[axis_of(ary, axis, "array_split", "ary")], int(indices_or_sections))
    lengths = [length + (i < longer) for i in range(indices_or_sections)]
    return split(ary, tuple(itertools.accumulate(lengths[:-1])), axis)


def hsplit(ary: Any, indices_or_sections: Any) -> Any:
    """`ary` cut along its second axis; a vector along its only one."""
    ary = with_axes(ary, 1, "hsplit")
    return split(ary, indices_or_sections, 1 if ary.ndim > 1 else 0)


def vsplit(ary: Any, indices_or_sections: Any) -> Any:
    """`ary` cut along its first axis. It must have two."""
    return split(with_axes(ary, 2, "vsplit"), indices_or_sections, 0)


def dsplit(ary: Any, indices_or_sections: Any) -> Any:
    """`ary` cut along its third axis."""
    return split(with_axes(ary, 3, "dsplit"), indices_or_sections, 2)


def with_axes(a: Any, count: int, op: str) -> Any:
    """`a` as an array. Raises ShapeError if it has fewer than `count` axes."""
    a = arrayed(a)
    if a.ndim < count:
        raise ShapeError(f"{op}: `ary` must have at least {count} axes.\n  ary: {describe(a)}")
    return a


def meshgrid(*xi: Any, sparse: bool = False, indexing: str = "xy") -> tuple[Any, ...]:
    """The coordinates of a grid from those along each axis, as a tuple; `sparse`: not broadcast to the grid.

    Shapes: (n0,), (n1,), (n2,), ... -> (n1, n0, n2, ...) each; with `indexing` "ij" (n0, n1, n2, ...).
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: `indexing` must be 'xy' or 'ij', and {indexing!r} came.")
    places = list(range(len(xi)))
    if indexing == "xy":
        places[:2] = places[1::-1]
    lines = [
        reshape(x, [x.size if j == i else 1 for j in range(len(xi))])
        for i, x in zip(places, map(arrayed, xi), strict=True)
    ]
    return tuple(lines) if sparse else broadcast_arrays(*lines)
