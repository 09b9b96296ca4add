"""One long sequence read at several places at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..core.schedule import require_count
from ..errors import ArgumentError
from ..types import Array


def streams(sequence: Array, batch: int) -> Iterator[tuple[Array, Array]]:
    """`batch` parallel readers of `sequence`, each starting where the one before it ends.

    Yields `(x, target)` per step, target the element after x, both of shape (batch, ...). The state is the
    caller's to carry from step to step. What does not fill all streams (fewer than `batch` elements) is
    left out at the end. Raises ArgumentError for fewer than `batch` + 1 elements.
    """
    require_count("streams", "batch", batch)
    sequence = np.asarray(sequence)
    length = (len(sequence) - 1) // batch
    if length < 1:
        raise ArgumentError(
            f"streams: {len(sequence)} elements cannot fill {batch} streams: each needs an input and a target.\n"
            f"  Give a longer sequence, or batch <= {max(len(sequence) - 1, 0)}."
        )
    starts = np.arange(batch) * length
    return ((sequence[starts + t], sequence[starts + t + 1]) for t in range(length))
