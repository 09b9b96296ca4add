"""What a tape shows of itself: the Wengert table, and how much memory its entries keep alive."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..types import Array
from .entry import OUT, SHAPE, SLOTS, Entry
from .variable import LEAVES


def wengert_table(title: str, entries: Sequence[Entry]) -> str:
    """One line per entry: value, op, inputs, what is kept, shape. A long table is cut in the middle."""
    names = Names(entries)
    rows = [
        (
            f"{names[e[OUT]]} = {e[0].name}({', '.join(names.inputs(e))})",
            f"keeps {', '.join(n for n, value in e[0].residuals(e).items() if holds_array(value)) or 'nothing'}",
            f"{e[SHAPE]}" if not e[SHAPE] or isinstance(e[SHAPE][0], int) else str([s for s, _ in e[SHAPE]]),
        )
        for e in entries
    ]
    if len(rows) > 60:
        rows = [*rows[:40], (f"... {len(rows) - 50} more", "", ""), *rows[-10:]]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    head = f"{title}: {len(entries)} entries, {kept_nbytes(entries)} bytes kept"
    return "\n".join([head, *(f"{a:<{widths[0]}}   {b:<{widths[1]}}   {c}".rstrip() for a, b, c in rows)])


class Names:
    """What the printout calls each slot: a leaf by its name, anything else v0, v1 ... in order of appearance."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._names: dict[int, str] = {}
        self._numbers = itertools.count()
        for entry in entries:
            for slot in entry[0].input_slots(entry).values():
                for s in slot if isinstance(slot, tuple) else (slot,):
                    self[s]
            self[entry[OUT]]

    def __getitem__(self, slot: int) -> str:
        if slot == 0:
            return "const"
        if slot not in self._names:
            leaf = LEAVES.get(slot)
            named = leaf.name if leaf is not None else None
            while named and named in self._names.values():
                named += "'"
            self._names[slot] = named or f"v{next(self._numbers)}"
        return self._names[slot]

    def inputs(self, entry: Entry) -> tuple[str, ...]:
        """The inputs of `entry` by name; a constant that is a number and is kept, as that number."""
        kept = entry[0].residuals(entry)
        shown = []
        for argument, slot in entry[0].input_slots(entry).items():
            if isinstance(slot, tuple):
                shown.append(f"[{', '.join(self[s] for s in slot)}]")
            elif slot == 0 and isinstance(kept.get(argument), (int, float)):
                shown.append(f"{kept[argument]:g}")
            else:
                shown.append(self[slot])
        return tuple(shown)


def holds_array(value: Any) -> bool:
    """Whether a residual is an array, or a sequence with one; statics and shapes are not."""
    return is_array(value) or (isinstance(value, tuple) and any(holds_array(v) for v in value))


def is_array(value: Any) -> bool:
    """Whether `value` is an array, on the host or on a device."""
    return isinstance(value, (np.ndarray, np.generic)) or on_device(value)


def kept_arrays(entries: Iterable[Entry]) -> Iterator[Array]:
    """Every array that `entries` hold."""
    for entry in entries:
        for value in entry[SLOTS:]:
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if is_array(item):
                    yield item


def arrays_read(entries: Iterable[Entry]) -> Iterator[Any]:
    """Arrays that say where `entries` computed: what each holds, and the leaves that it read."""
    for entry in entries:
        yield from kept_arrays([entry])
        for slot in entry[0].input_slots(entry).values():
            for s in slot if isinstance(slot, tuple) else (slot,):
                if s in LEAVES:
                    yield LEAVES[s]._array


def kept_buffers(entries: Iterable[Entry]) -> dict[int, int]:
    """Bytes of the buffers behind the arrays that `entries` hold, by the id of what owns each."""
    found = {}
    for array in kept_arrays(entries):
        owner: Any = array.base if is_array(array.base) else array
        found[id(owner)] = owner.nbytes
    return found


def kept_nbytes(entries: Iterable[Entry]) -> int:
    """Bytes of the buffers behind the arrays that `entries` hold, each counted once."""
    return sum(kept_buffers(entries).values())
