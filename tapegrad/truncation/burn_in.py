"""Burn-in: some steps to warm the state, then some to learn from."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from ..core.schedule import Schedule, require_count
from ..errors import ArgumentError


@dataclass(frozen=True)
class BurnIn(Schedule):
    """Cycles of `k1` segments that are not recorded and `k2` that are; a sweep at each cycle's end.

    The state comes warm out of the first k1 segments, and its history is constant. Losses handed in
    there are passed over. What was swept is forgotten. Memory: k2 segments. k1 may be 0: Chunked(k2).
    """

    k1: int
    k2: int

    def __post_init__(self) -> None:
        require_count("BurnIn", "k2", self.k2)
        if isinstance(self.k1, bool) or not isinstance(self.k1, Integral) or self.k1 < 0:
            raise ArgumentError(f"BurnIn: `k1` must be a whole number of at least 0, and {self.k1!r} came.")

    @property
    def window(self) -> int:  # type: ignore[override]
        return (
            self.k1 + self.k2
        )  # of which k2 are recorded: a sweep may come late, while the next cycle warms up

    def records(self, index: int) -> bool:
        return (index - 1) % (self.k1 + self.k2) >= self.k1

    def due(self, index: int, swept: int) -> bool:
        return index // (self.k1 + self.k2) > swept // (self.k1 + self.k2)

    def forgets(self, index: int) -> int:
        return index
