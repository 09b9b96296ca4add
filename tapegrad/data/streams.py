"""One long sequence read at several places at once, or one window at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..core.schedule import require_count
from ..errors import ArgumentError, describe
from ..types import Array


def streams(sequence: Array, batch: int) -> Iterator[tuple[Array, Array]]:
    """`batch` parallel readers of `sequence`, each starting where the one before it ends.

    Yields `(x, target)` per step, target the element after x, both of shape (batch, ...). The state is the
    caller's to carry from step to step. What does not fill all streams (fewer than `batch` elements) is
    left out at the end. Raises ArgumentError for fewer than `batch` + 1 elements.
    """
    require_count("streams", "batch", batch)
    sequence = elements_of(sequence, "streams")
    length = (len(sequence) - 1) // batch
    if length < 1:
        raise ArgumentError(
            f"streams: {len(sequence)} elements cannot fill {batch} streams: each needs an input and a target.\n"
            f"  Give a longer sequence, or batch <= {max(len(sequence) - 1, 0)}."
        )
    starts = np.arange(batch) * length
    return ((sequence[starts + t], sequence[starts + t + 1]) for t in range(length))


def windows(sequence: Array, length: int, hop: int = 1) -> Iterator[tuple[Array, Array]]:
    """Windows of `length` elements of `sequence`, each `hop` elements after the one before it.

    Yields `(x, target)` per window, target the elements after those of x, both of shape (length, ...) and
    views of `sequence`. hop=1 shifts by one, hop=length does not overlap. Each window is a sequence of its own,
    for a fresh state: `for x, target in windows(...): state = cell.initial_state(1)`. What does not fill a window
    is left out at the end. Raises ArgumentError for fewer than `length` + 1 elements.
    """
    require_count("windows", "length", length)
    require_count("windows", "hop", hop)
    sequence = elements_of(sequence, "windows")
    if len(sequence) <= length:
        raise ArgumentError(
            f"windows: {len(sequence)} elements cannot fill a window of {length}: it needs {length} inputs and a target.\n"
            f"  Give a longer sequence, or length <= {max(len(sequence) - 1, 0)}."
        )
    starts = range(0, len(sequence) - length, hop)
    return ((sequence[i : i + length], sequence[i + 1 : i + 1 + length]) for i in starts)


def elements_of(sequence: Array, name: str) -> Array:
    """`sequence` as an array, whose first axis is the order of its elements."""
    array = np.asarray(sequence)
    if not array.ndim:
        raise ArgumentError(
            f"{name}: `sequence` must be an array of elements, and {describe(sequence)} came.\n"
            f"  Text has to be numbered first: data.Vocabulary(text).encode(text)."
        )
    return array
