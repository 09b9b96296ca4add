"""The recurrent layers of a segment: does a window repeat one step of each, and how are its states linked?

What kernels can sweep is a window in which every segment runs the same layers once, each from the state that it left
in the segment before, with weights that are leaves. What lies between the layers (an embedding, a head, a loss) may
be anything that stays within its segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..backend.device import on_device
from ..core.entry import DTYPE, ITEM, OUT, SLOTS, Entry
from ..core.window import WindowSegment
from .signature import slots_of

# By op: the cell as kernels call it, how many arrays its state has, and how its residuals are called, as `deposit`
# takes them.
OPS = {
    "lstm_step": ("lstm", 2, {"x": "x", "h": "h", "c": "c", "gates": "gates", "extra": "tanh_c"}),
    "gru_step": ("gru", 1, {"x": "x", "h": "h", "gates": "gates", "extra": "inner"}),
    "rnn_step": ("rnn", 1, {"x": "x", "h": "h", "h_next": "y"}),
}


class Kind(NamedTuple):
    """What the steps of one layer have in common. `x` is the slot of a leaf, 0 for a constant, 1 for what is recorded."""

    op: str
    batch: int
    n_in: int
    hidden: int
    x: int
    weights: tuple[int, ...]  # slots of w_x, w_h, b (and b_h): leaves, or 0

    @property
    def cell(self) -> str:
        return OPS[self.op][0]


class Step(NamedTuple):
    """One layer's step in a segment: the position of its entry, and the slots of what it reads and makes."""

    at: int
    x: int
    before: tuple[int, ...]  # the state that it reads: h, or h and c
    after: tuple[int, ...]  # the state that it leaves


class Layers(NamedTuple):
    """The recurrent steps of a segment, in the order in which they ran. `kinds` is equal for segments of one window."""

    kinds: tuple[Kind, ...]
    steps: tuple[Step, ...]


def layers_of(segment: WindowSegment) -> Layers | None:
    """The layers of a segment whose arrays are on a device; None if kernels cannot sweep it."""
    first, known = segment.first, set()
    kinds: list[Kind] = []
    steps: list[Step] = []
    cells: set[int] = set()  # slots of c: of them kernels take no cotangents but the older step's
    for at, entry in enumerate(segment.entries):
        known.add(entry[OUT])
        if entry[0] is ITEM:
            continue
        found = OPS.get(entry[0].name)
        if found is None:
            if any(not within(slot, first, known) or slot in cells for slot in flat(slots_of(entry))):
                return None
            continue
        count = found[1]
        x, *rest = slots_of(entry)
        before, weights = tuple(rest[:count]), tuple(rest[count:])
        if not within(x, first, known) or x in cells or max(before) > first or max(weights) > 0:
            return None
        sizes = sizes_of(entry)
        if sizes is None:
            return None
        after = items_of(segment.entries, at) if count > 1 else (entry[OUT],)
        cells.update(after[1:])
        kinds.append(Kind(entry[0].name, *sizes, x if x <= 0 else 1, weights))
        steps.append(Step(at, x, before, after))
    return Layers(tuple(kinds), tuple(steps)) if steps else None


def within(slot: int, first: int, known: set[int]) -> bool:
    """Whether a value is a constant, a leaf, or was recorded in the segment."""
    return slot <= 0 or (slot > first and slot in known)


def flat(slots: Iterable[Any]) -> Iterable[int]:
    """Slots, those of sequences one by one."""
    for slot in slots:
        if isinstance(slot, tuple):
            yield from slot
        else:
            yield slot


def items_of(entries: Sequence[Entry], at: int) -> tuple[int, ...]:
    """The slots of the outputs of an entry that has several: the items behind it."""
    whole, slots = entries[at][OUT], []
    for entry in entries[at + 1 :]:
        if entry[0] is not ITEM or entry[SLOTS] != whole:
            break
        slots.append(entry[OUT])
    return tuple(slots)


def residual(entry: Entry, name: str) -> Any:
    """What an entry keeps under `name`."""
    variant = entry[0]
    return entry[SLOTS + len(variant.primitive.differentiable) + variant.layout.index(name)]


def kept_by(entry: Entry) -> dict[str, Any]:
    """What a step's entry keeps, as `deposit` takes it: C-ordered."""
    kept = {name: residual(entry, ours) for name, ours in OPS[entry[0].name][2].items()}
    for name, array in kept.items():
        if not array.flags.c_contiguous:
            kept[name] = array.copy(order="C")
    return kept


def sizes_of(entry: Entry) -> tuple[int, int, int] | None:
    """batch, n_in and n of a step; None unless all that it keeps is float32, on a device."""
    kept = [residual(entry, ours) for ours in OPS[entry[0].name][2].values()]
    if any(not on_device(array) or array.dtype != np.float32 for array in kept):
        return None
    (batch, n_in), hidden = kept[0].shape, kept[1].shape[1]
    return (batch, n_in, hidden) if batch and n_in and entry[DTYPE] in (None, np.float32) else None


def linked(layers: Sequence[Layers]) -> bool:
    """Whether the layers are the same in all segments, and each reads the state that it left in the segment before."""
    return all(
        older.kinds == newer.kinds
        and all(n.before == o.after for n, o in zip(newer.steps, older.steps, strict=True))
        for older, newer in pairwise(layers)
    )
