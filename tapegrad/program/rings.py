"""The memory of one signature on one tape: a ring of places, one for each segment in the window.

Nothing here is handed out: a `.value` that the user holds is never written to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import Array, Shape
from .plan import Group, Plan, Value

ALIGNMENT = 64  # bytes: a cache line, and the widest vector


def aligned(shape: Shape, dtype: Any) -> Array:
    """An array of zeros that starts on a 64-byte boundary."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    laid: Array = raw[start : start + count].view(dtype).reshape(shape)
    return laid


class Settled:
    """The rings of a group: `delta` (capacity, rows, n), and per left (capacity, rows, width), None for ones.

    `filled`: which seat's residuals are in each place of the lefts.
    """

    def __init__(self, delta: Array, lefts: list[Array | None]) -> None:
        self.delta, self.lefts = delta, lefts
        self.rows = delta.shape[1]
        self.delta_rows = delta.reshape(-1, delta.shape[-1])
        ones = np.ones(len(self.delta_rows), delta.dtype)
        self.left_rows = [ones if a is None else a.reshape(-1, a.shape[-1]) for a in lefts]
        self.filled: list[Any] = [None] * len(delta)


class Rings:
    """Places 0 … capacity - 1, and arrays with a first axis of that length.

    A segment takes a place when it is first swept and gives it back when it is dropped. Consecutive
    segments get consecutive places, so that a window is a block of the ring.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.arrays: dict[Any, Array] = {}
        self.lists: dict[Any, list[Any]] = {}  # residuals by place, by the expression that reads them
        self.settled: dict[Any, Settled] = {}
        self.holders: list[Any] = [None] * capacity
        self.next = 0

    def take(self, holder: Any) -> int:
        """A free place for `holder`, or -1 if there is none."""
        for step in range(self.capacity):
            place = (self.next + step) % self.capacity
            held = self.holders[place]
            if held is None or not held.held:
                self.holders[place] = holder
                self.next = (place + 1) % self.capacity
                return place
        return -1

    def entries_at(self, place: int) -> Any:
        """The entries of the segment in `place`, with today's leaves where it keeps none."""
        return self.holders[place].entries_today()

    def array(self, key: Any, shape: Shape, dtype: Any) -> Array:
        """The ring called `key`, made when it is first asked for. Shape (capacity, *shape)."""
        held = self.arrays.get(key)
        if held is None:
            held = self.arrays[key] = aligned((self.capacity, *shape), dtype)
        return held

    def of(self, value: Value, plan: Plan) -> Array:
        """The ring of a factor or of a cotangent that settles parameters. The programs of a signature share them."""
        if value.place == "factor":
            return self.array(value.key, value.shape, value.dtype)
        group = next((g for g in plan.groups if g.delta is value), None)
        key = ("delta", group.key) if group else ("delta", value)
        return self.array(key, value.shape, value.dtype)

    def group(self, group: Group) -> Settled:
        """The two rings of a group: what is multiplied, and with what."""
        key = group.key
        held = self.settled.get(key)
        if held is None:
            delta = self.array(("delta", key), group.delta.shape, group.delta.dtype)
            lefts = [
                None if node is None else self.array(("left", key, i), (group.rows, width), group.delta.dtype)
                for i, (node, width) in enumerate(group.lefts)
            ]
            held = self.settled[key] = Settled(delta, lefts)
        return held

    def joint(self, number: int, shape: Shape, dtype: Any) -> Array:
        """Cotangents of value `number` from before a segment, by how many joints were crossed before it."""
        key = ("joint", number, np.dtype(dtype))
        if key not in self.arrays:
            self.arrays[key] = aligned((self.capacity, *shape), dtype)
        return self.arrays[key]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())
