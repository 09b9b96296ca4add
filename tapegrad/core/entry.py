"""What a tape holds: one flat tuple per op that ran.

An object per entry would cost 0.5 µs more. An op with several outputs has one entry for the whole and
an *item* per output; their cotangents meet again in a Bundle when a sweep reaches the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ..backend.device import flat, zeros_beside
from ..types import Array, Shape
from .variable import Result, next_slot, result

# (variant, out slot, output shape, output dtype, one slot per differentiable argument ..., residuals ...)
# An op with several outputs has their (shape, dtype) pairs for a shape, and None for a dtype.
Entry = tuple[Any, ...]
OUT, SHAPE, DTYPE, SLOTS = 1, 2, 3, 4


class Recorder(Protocol):
    """What a primitive needs of a tape."""

    append: Callable[[Entry], None]


class Bundle:
    """The cotangent (or tangent) of an op with several outputs: some of its parts, by position."""

    __slots__ = ("parts",)

    def __init__(self, parts: dict[int, Any]) -> None:
        self.parts = parts

    def __add__(self, other: Bundle) -> Bundle:
        parts = dict(self.parts)
        for i, part in other.parts.items():
            parts[i] = parts[i] + part if i in parts else part
        return Bundle(parts)

    def __iadd__(self, other: Bundle) -> Bundle:
        """The same in place, for a sum that a sweep owns: thousands of parts add up in linear time."""
        for i, part in other.parts.items():
            self.parts[i] = self.parts[i] + part if i in self.parts else part
        return self

    def filled(self, outputs: Sequence[tuple[Shape, Any]]) -> list[Any]:
        """Every part, zeros where nothing came."""
        parts = self.parts
        return [parts[i] if i in parts else self.nothing(*o) for i, o in enumerate(outputs)]

    def nothing(self, shape: Shape, dtype: Any) -> Any:
        """Zeros where the parts are."""
        return zeros_beside(next(flat(self.parts.values()), None), shape, dtype)


class Item:
    """The entry of one output of an op that has several: (ITEM, out, shape, dtype, slot of the whole, position)."""

    name = "item"
    values = ()
    kept = frozenset(["position"])

    @staticmethod
    def pull(entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
        return ((entry[SLOTS], Bundle({entry[SLOTS + 1]: ct})),)

    @staticmethod
    def residuals(entry: Entry) -> dict[str, Any]:
        return {"position": entry[SLOTS + 1]}

    @staticmethod
    def input_slots(entry: Entry) -> dict[str, Any]:
        return {"of": entry[SLOTS]}


ITEM = Item()


def record_outputs(arrays: Sequence[Array], whole: int, tapes: tuple[Recorder, ...]) -> tuple[Result, ...]:
    """One Variable per output, each an item of the entry `whole`."""
    made = []
    for position, array in enumerate(arrays):
        slot = next_slot()
        for tape in tapes:
            tape.append((ITEM, slot, array.shape, array.dtype, whole, position))
        made.append(result(array, slot))
    return tuple(made)
