"""A sweep that is recorded: the same pulls, on entries whose residuals are Variables again.

What an entry keeps are bare arrays. Put back into their old slots as Variables they make every rule a
piece of the program that a tape records, and so the gradient can be differentiated in turn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from .entry import ITEM, Bundle, Entry
from .tape import Tape
from .variable import result


def revive(entry: Entry) -> Entry:
    """`entry` with its residual arrays as Variables in their old slots: a rule run on it is recorded."""
    variant = entry[0]
    if variant is ITEM:
        return entry
    fields = list(entry)
    for position, slot_position in variant.values:
        slots, values = fields[slot_position], fields[position]
        if isinstance(slots, tuple):
            fields[position] = tuple(result(v, s) if s else v for v, s in zip(values, slots, strict=True))
        elif slots:
            fields[position] = result(values, slots)
    if variant.primitive.reference is not None:
        fields[0] = ByReference(variant)
    return tuple(fields)


class ByReference:
    """A fused op in a recorded pass: the pull of its `reference`, whose ops are taped."""

    def __init__(self, variant: Any) -> None:
        self.variant = variant
        self.name = variant.name

    def pull(self, entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
        p, named = self.variant.primitive, self.variant.residuals(entry)
        tape = Tape()
        with tape:
            y = p.reference(*(named[a] for a in p.arguments), **{s: named[s] for s in p.statics})
        ys, cts = (y, ct.parts) if isinstance(ct, Bundle) else ([y], {0: ct})
        sums = tape._sweep([ys[i] for i in cts], list(cts.values()), (), record=True).sums
        slots = self.variant.input_slots(entry)
        given = (slots[a] for a in self.variant.live)
        flat = itertools.chain.from_iterable(s if isinstance(s, tuple) else (s,) for s in given)
        once = dict.fromkeys(flat)  # one value may be given for two arguments
        return [(slot, sums[slot]) for slot in once if slot in sums]


Tape.revive = staticmethod(revive)
