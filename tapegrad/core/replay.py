"""Running a recorded window again: the same ops, in the same order, with today's weights.

A pullback's residuals do not suffice to run an op again (`add` keeps nothing). A tape that re-runs its
window notes what entered each op from outside its span: leaves, constants, values of other segments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend.namespace import namespace
from ..errors import ArgumentError
from .entry import ITEM, OUT, SLOTS, Entry
from .generate import keep
from .variable import LEAVES, Variable, result
from .window import WindowSegment


class Leaf(NamedTuple):
    """A leaf that an op read, and the array that it held (None where only today's is wanted)."""

    variable: Variable
    array: Any


class Inputs(NamedTuple):
    """What an op was given: per argument an array, a Leaf, None for a value of the same span, or a tuple of those."""

    arguments: dict[str, Any]
    statics: dict[str, Any]


def inputs_now(entry: Entry, first: int, recorded: bool) -> Inputs | None:
    """The inputs of the op that appends `entry` now; `first` lies below the slots of its span.

    They are read from the frame of the op's generated code, so that tapes which need them cost the
    others nothing. `recorded`: the arrays of leaves are noted as they are now.
    """
    variant = entry[0]
    if variant is ITEM:
        return None
    given, slots = sys._getframe(2).f_locals, variant.input_slots(entry)

    def noted(slot: Any, value: Any) -> Any:
        if isinstance(slot, tuple):
            return tuple(map(noted, slot, value))
        if slot < 0 and (leaf := LEAVES.get(slot)) is not None:
            return Leaf(leaf, value if recorded else None)
        return None if slot > first else value if slot else keep(value)

    arguments = {a: noted(slots.get(a, 0), given[f"{a}_value"]) for a in variant.primitive.arguments}
    return Inputs(arguments, {name: keep(given[name]) for name in variant.primitive.statics})


def strip(segment: WindowSegment) -> None:
    """Forget what the pullbacks keep: a re-run computes it again."""
    for at, entry in enumerate(segment.entries):
        if entry[0] is not ITEM:
            slots = SLOTS + len(entry[0].primitive.differentiable)
            segment.entries[at] = (*entry[:slots], *[None] * (len(entry) - slots))


class Rerun:
    """A window that has been run again: its entries by segment, and what every value came out as."""

    def __init__(
        self,
        window: Sequence[WindowSegment],
        leaf_value: Callable[[Leaf], Any] = lambda leaf: leaf.variable._array,
        crossing: Callable[[int, int, Any], Any] | None = None,
    ) -> None:
        """`leaf_value(leaf)` is the array of a leaf; `crossing(slot, index, value)` is what segment `index`
        reads for a value that was computed in an earlier one."""
        self.window = window
        self.leaf_value, self.crossing = leaf_value, crossing
        self.values: dict[int, Any] = {}
        self._entries: dict[int, list[Entry]] = {}
        for segment in window:
            pairs = zip(segment.entries, segment.inputs, strict=True)
            self._entries[segment.index] = [self._run(segment, entry, inputs) for entry, inputs in pairs]

    def entries(self, segment: WindowSegment) -> list[Entry]:
        return self._entries[segment.index]

    def _run(self, segment: WindowSegment, entry: Entry, inputs: Inputs | None) -> Entry:
        variant = entry[0]
        if inputs is None:
            self.values[entry[OUT]] = self.values[entry[SLOTS]][entry[SLOTS + 1]]
            return entry
        p, slots = variant.primitive, variant.input_slots(entry)
        given = {a: self._read(segment, slots.get(a, 0), noted) for a, noted in inputs.arguments.items()}
        first = next(iter(given.values()))
        xp = namespace(*first) if isinstance(first, tuple) else namespace(first)
        y = p.body(xp, *given.values(), **inputs.statics)
        self.values[entry[OUT]] = y[0] if p.hidden and not p.outputs else y
        names = () if isinstance(p.outputs, str) else (*(p.outputs or ["y"]), *p.hidden)
        made = dict(zip(names, y if p.outputs or p.hidden else [y], strict=False))
        named = {**given, **inputs.statics, **made, **{f"{a}_shape": shape_of(v) for a, v in given.items()}}
        residuals = [named[name] if name in variant.kept else None for name in variant.layout]
        return (*entry[: SLOTS + len(p.differentiable)], *residuals)

    def _read(self, segment: WindowSegment, slot: Any, noted: Any) -> Any:
        if isinstance(slot, tuple):
            return tuple(self._read(segment, s, n) for s, n in zip(slot, noted, strict=True))
        if isinstance(noted, Leaf):
            return self.leaf_value(noted)
        if slot <= 0 or slot not in self.values:
            return noted
        value = self.values[slot]
        return (
            value
            if slot > segment.first or self.crossing is None
            else self.crossing(slot, segment.index, value)
        )


class State:
    """The newest segment's values as a re-run found them: `state[v]` is `v` with its new array, still on the tape."""

    def __init__(self, rerun: Rerun) -> None:
        newest = rerun.window[-1].first if rerun.window else 0
        self._values = {slot: value for slot, value in rerun.values.items() if slot > newest}

    def __getitem__(self, v: Variable) -> Variable:
        if not isinstance(v, Variable) or v._slot not in self._values:
            raise ArgumentError(
                "Sweep.state: it holds the values that the newest segment computed, and this Variable is none of them."
            )
        return result(self._values[v._slot], v._slot)


def shape_of(value: Any) -> Any:
    return [np.shape(v) for v in value] if isinstance(value, tuple) else np.shape(value)
