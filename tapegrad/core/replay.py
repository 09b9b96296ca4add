"""Running a recorded window again: the same ops, in the same order, with today's weights.

A pullback's residuals do not suffice to run an op again (`add` keeps nothing). A tape that re-runs its
window notes what entered each op from outside its span: leaves, constants, values of other segments.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend.device import flat
from ..backend.namespace import namespace
from ..errors import ArgumentError
from .entry import ITEM, OUT, SLOTS, Entry
from .generate import keep
from .sweep import oldest_swept
from .variable import LEAVES, Variable, result
from .window import Span, WindowSegment


class Leaf(NamedTuple):
    """A leaf that an op read, and the array that it held (None where only today's is wanted)."""

    variable: Variable
    array: Any


class Inputs(NamedTuple):
    """What an op was given: per argument an array, a Leaf, None for a value of the same span, or a tuple of those."""

    arguments: dict[str, Any]
    statics: dict[str, Any]


def inputs_now(entry: Entry, segment: WindowSegment, recorded: bool) -> Inputs | None:
    """The inputs of the op that appends `entry` to `segment` now.

    They are read from the frame of the op's generated code, so that tapes which need them cost the
    others nothing. `recorded`: the arrays of leaves are noted as they are now.
    """
    variant = entry[0]
    if variant is ITEM:
        return None
    given, slots = sys._getframe(2).f_locals, variant.input_slots(entry)
    first = segment.spans[-1].first

    def noted(slot: Any, value: Any) -> Any:
        if isinstance(slot, tuple):
            return tuple(map(noted, slot, value))
        if slot < 0 and (leaf := LEAVES.get(slot)) is not None:
            return Leaf(leaf, value if recorded else None)
        if slot > first and segment.holds(slot):
            return None
        return value if slot else keep(value)

    arguments = {a: noted(slots.get(a, 0), given[f"{a}_value"]) for a in variant.primitive.arguments}
    return Inputs(arguments, {name: keep(given[name]) for name in variant.primitive.statics})


def held_arrays(inputs: Inputs | None) -> tuple[Any, ...]:
    """What was noted for one op, in the form of an entry that keeps nothing else."""
    if inputs is None:
        return ()
    return (None,) * SLOTS + tuple(v for v in inputs.arguments.values() if not isinstance(v, Leaf))


def strip(segment: WindowSegment) -> None:
    """Forget what the pullbacks keep: a re-run computes it again."""
    for at, entry in enumerate(segment.entries):
        if entry[0] is not ITEM:
            slots = SLOTS + len(entry[0].primitive.differentiable)
            segment.entries[at] = (*entry[:slots], *[None] * (len(entry) - slots))


class Rerun:
    """A window that has been run again: its entries by segment, and what every value came out as.

    Subclasses change what is read: the gradient check, to move a leaf a little.
    """

    def __init__(self, window: Sequence[WindowSegment], whole: bool = False) -> None:
        """Run again what a sweep of `window` reaches; `whole`: all that is kept."""
        self.window, self.whole = window, whole
        self.oldest = {s.clock: oldest_swept(s.clock, window) for segment in window for s in segment.spans}
        self.values: dict[int, Any] = {}
        self._entries: dict[int, list[Entry]] = {}
        for segment in window:
            made = self._entries[segment.index] = list(segment.entries)
            for span in segment.spans:
                for at in range(span.start, span.stop) if self.runs(segment, span) else ():
                    made[at] = self._run(segment, span, made[at], segment.inputs[at])

    def entries(self, segment: WindowSegment) -> list[Entry]:
        """The segment's entries, with what their ops keep today."""
        return self._entries[segment.index]

    def runs(self, segment: WindowSegment, span: Span) -> bool:
        """Whether to run `span` again."""
        return self.whole or segment.index >= self.oldest[span.clock]

    def leaf(self, leaf: Leaf, segment: WindowSegment, span: Span) -> Any:
        """The array of a leaf that `span` reads."""
        return leaf.variable._array

    def constant(self, value: Any) -> Any:
        """A constant, or a value from before the window, as it was noted."""
        return value

    def crossing(self, slot: int, value: Any, segment: WindowSegment) -> Any:
        """What `segment` reads for the value in `slot`, which an earlier segment computed."""
        return value

    def compute(self, p: Any, given: dict[str, Any], statics: dict[str, Any]) -> Any:
        """What the body of an op returns for these arguments."""
        first = next(iter(given.values()))
        xp = np if type(first) is np.ndarray else namespace(*flat(given.values()))
        return p.body(xp, *given.values(), **statics)

    def _run(self, segment: WindowSegment, span: Span, entry: Entry, inputs: Inputs | None) -> Entry:
        variant = entry[0]
        if inputs is None:
            self.values[entry[OUT]] = self.values[entry[SLOTS]][entry[SLOTS + 1]]
            return entry

        def read(slot: Any, noted: Any) -> Any:
            if isinstance(slot, tuple):
                return tuple(map(read, slot, noted))
            if isinstance(noted, Leaf):
                return self.leaf(noted, segment, span)
            if slot <= 0 or slot not in self.values:
                return self.constant(noted)
            value = self.values[slot]
            return value if slot > segment.first else self.crossing(slot, value, segment)

        p, slots = variant.primitive, variant.input_slots(entry)
        given = {a: read(slots.get(a, 0), noted) for a, noted in inputs.arguments.items()}
        y = self.compute(p, given, inputs.statics)
        self.values[entry[OUT]] = y[0] if p.hidden and not p.outputs else y
        return (*entry[: SLOTS + len(p.differentiable)], *residuals_of(variant, given, inputs.statics, y))


def residuals_of(variant: Any, given: dict[str, Any], statics: dict[str, Any], y: Any) -> list[Any]:
    """What an entry of `variant` keeps of a call, in the order in which it keeps it."""
    p = variant.primitive
    names = () if isinstance(p.outputs, str) else (*(p.outputs or ["y"]), *p.hidden)
    made = dict(zip(names, y if p.outputs or p.hidden else [y], strict=False))
    shapes = {f"{a}_shape": shape_of(v) for a, v in given.items()}
    named = {**given, **statics, **made, **shapes}
    return [named[name] if name in variant.kept else None for name in variant.layout]


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
