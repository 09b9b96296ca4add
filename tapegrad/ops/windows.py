"""Windows that slide over the last axes of an array: how many there are, where they lie, views of them.

Shapes here: (batch, channels, lengths…). A *stride* is how far a window moves, a *dilation* how far apart its
elements are, a *span* the length from its first element to its last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError, describe
from .operands import arrayed

# A number for each axis, or one for all.
Lengths = int | Sequence[int]
# For an axis also (before, after); for all "same" or "valid".
Padding = str | int | Sequence[Any]
Numbers = tuple[int, ...]
Pairs = tuple[tuple[int, int], ...]


def with_axes(op: str, argument: str, value: Any, axes: int) -> Any:
    """`value`, which must have two axes and `axes` more."""
    value = arrayed(value)
    if len(value.shape) != axes + 2:
        raise ShapeError(
            f"{op}: `{argument}` must have {axes + 2} axes, and {describe(value)} came.\n"
            f"  Of one image, or of one channel, make a batch or a stack: {argument}[None]."
        )
    return value


def lengths(op: str, argument: str, value: Any, axes: int, least: int = 1) -> Numbers:
    """An integer for each axis, from one for all or from one for each."""
    each = of_each(value, axes)
    if len(each) != axes or any(not is_integer(n) or n < least for n in each):
        raise ArgumentError(
            f"{op}: `{argument}` must be an integer from {least} on, or {axes} of them, and {value!r} came."
        )
    return tuple(map(int, each))


def paddings(op: str, value: Any, size: Numbers, spans: Numbers, stride: Numbers) -> Pairs:
    """How many elements are added (before, after) each axis of lengths `size`."""
    if isinstance(value, str) and value == "same":
        fitting = [(-(-n // s) - 1) * s + length for n, length, s in zip(size, spans, stride, strict=True)]
        missing = [max(wanted - n, 0) for wanted, n in zip(fitting, size, strict=True)]
        return tuple((m // 2, m - m // 2) for m in missing)
    axes = len(size)
    each = (0,) * axes if isinstance(value, str) and value == "valid" else of_each(value, axes)
    if axes == 1 and len(each) == 2:
        each = (each,)
    pairs = tuple(of_each(p, 2) for p in each)
    if len(pairs) != axes or any(len(p) != 2 or not all(is_integer(n) and n >= 0 for n in p) for p in pairs):
        raise ArgumentError(
            f"{op}: `padding` must be an integer from 0 on, {axes} of them or of pairs (before, after), "
            f'"same" or "valid", and {value!r} came.'
        )
    return tuple((int(before), int(after)) for before, after in pairs)


def of_each(value: Any, count: int) -> tuple[Any, ...]:
    """The items of a sequence; of anything else `count` times it."""
    return tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,) * count


def is_integer(value: Any) -> bool:
    return isinstance(value, (int, np.integer))


def span(kernel: Numbers, dilation: Numbers) -> Numbers:
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def places(size: Numbers, spans: Numbers, stride: Numbers, padding: Pairs) -> Numbers:
    """How many windows fit along each axis."""
    return tuple(
        (n + sum(p) - length) // s + 1 for n, p, length, s in zip(size, padding, spans, stride, strict=True)
    )


def require_windows(op: str, x: Any, spans: Numbers, padding: Pairs) -> None:
    """Raise unless a window fits."""
    for n, p, length in zip(x.shape[2:], padding, spans, strict=True):
        if length > n + sum(p) or not length:
            raise ShapeError(
                f"{op}: a window of {length} does not fit into {n} elements and {sum(p)} of padding.\n"
                f"  x: {describe(x)}. Use a smaller window, or a larger padding."
            )


def padded(xp: Any, x: Any, padding: Pairs) -> Any:
    """`x` with zeros around it; itself where none are wanted."""
    if not any(map(sum, padding)):
        return x
    size = [n + sum(p) for n, p in zip(x.shape[2:], padding, strict=True)]
    y = xp.zeros((*x.shape[:2], *size), x.dtype)
    y[inside(padding, x.shape[2:])] = x
    return y


def inside(padding: Pairs, size: Numbers) -> tuple[Any, ...]:
    """The index of what is not padding."""
    return (..., *(slice(before, before + n) for (before, _), n in zip(padding, size, strict=True)))


def elements(offset: Iterable[int], count: Numbers, stride: Numbers) -> tuple[Any, ...]:
    """The index of the element at `offset` of each window."""
    return (..., *(slice(k, k + (m - 1) * s + 1, s) for k, m, s in zip(offset, count, stride, strict=True)))


def views(x: Any, spans: Numbers, stride: Numbers, dilation: Numbers) -> Any:
    """Every window of `x`, without a copy. Shape: (batch, channels, places…, kernel…)."""
    axes = tuple(range(2, x.ndim))
    index: Any = (..., *(slice(None, None, step) for step in (*stride, *dilation)))
    return np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)[index]
