"""Is this segment like one that was seen before? Its signature, and a function that recognises the next one.

The *signature* of a segment is everything on which its adjoint program depends: the ops and which of their
arguments are differentiated, how they are wired, shapes, dtypes, numbers and other statics; not the
elements of arrays. Values from before the segment are numbered in the order in which they are read.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from ..core.entry import DTYPE, ITEM, OUT, SHAPE, SLOTS, Entry

SIGHTINGS = 2  # how often a tape must have met a signature to compile it

# (slots of the values from before, in the order in which they were first read)
Before = tuple[int, ...]


class Wiring:
    """Names for the slots of a segment: ("local", position), ("before", number), "leaf-7" by slot, or ("none",)."""

    def __init__(self, entries: Sequence[Entry], first: int) -> None:
        self.first = first
        self.position = {entry[OUT]: at for at, entry in enumerate(entries)}
        self.before: dict[int, int] = {}

    def name(self, slot: Any) -> Hashable:
        if isinstance(slot, tuple):
            return tuple(map(self.name, slot))
        if slot == 0:
            return ("none",)
        if slot < 0:
            return f"leaf{slot}"
        if slot in self.position:
            return ("local", self.position[slot])
        return ("before", self.before.setdefault(slot, len(self.before)))


def slots_of(entry: Entry) -> tuple[Any, ...]:
    """The slot fields of an entry."""
    return (
        (entry[SLOTS],) if entry[0] is ITEM else entry[SLOTS : SLOTS + len(entry[0].primitive.differentiable)]
    )


def kept_by(entry: Entry) -> tuple[Any, ...]:
    """The fields behind the slots: residuals, or the position of an item."""
    return entry[SLOTS + 1 :] if entry[0] is ITEM else entry[SLOTS + len(entry[0].primitive.differentiable) :]


def signature(entries: Sequence[Entry], first: int) -> str:
    """What `entries` have in common with segments of the same program, as text; "" if that cannot be said.

    Text, so that a snapshot can hold it: ops stand in it by their names, and leaves as `leaf-7` by slot.
    """
    wiring = Wiring(entries, first)
    try:
        return repr([
            (named(entry[0]), entry[SHAPE], entry[DTYPE], [*map(wiring.name, slots_of(entry))], [*map(kind, kept_by(entry))])
            for entry in entries
        ])  # fmt: skip
    except TypeError:
        return ""


def named(variant: Any) -> str:
    """An op and which of its arguments are differentiated."""
    if variant is ITEM:
        return "item"
    return f"{variant.name}({', '.join(variant.live)}){'*' if variant.broadcast else ''}"


def kind(value: Any) -> Hashable:
    """What a program depends on of a residual: of an array its shape and dtype, of other things all."""
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.dtype)
    if isinstance(value, np.generic):
        return ("scalar", value.dtype)
    if isinstance(value, tuple | list):
        return (type(value), tuple(map(kind, value)))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if value is None or value is Ellipsis or isinstance(value, str | bool | int | float | np.dtype | type):
        return (type(value), value)
    raise TypeError(f"a {type(value).__name__} among the residuals")


def position_of(entries: Sequence[Entry], slot: int) -> int:
    """Where among `entries` the value in `slot` was computed, or -1."""
    at = bisect_left(entries, slot, key=itemgetter(OUT))
    return at if at < len(entries) and entries[at][OUT] == slot else -1


# -- recognising ---------------------------------------------------------------------------------------


class Matcher:
    """Recognises the segments of one signature.

    `match(entries, first)` returns the slots of the values from before, or None if this is another
    signature. It is generated: a comparison of each field that may differ, 0.1 µs an entry.
    """

    def __init__(self, entries: Sequence[Entry], first: int) -> None:
        writer = MatchWriter()
        self.source = writer.source(entries)
        exec(compile(self.source, "<tapegrad match>", "exec"), writer.space)
        self.match: Callable[[Sequence[Entry], int], Before | None] = writer.space["match"]


class MatchWriter:
    """Writes the matcher of a signature as Python source; `space` are the objects that it names."""

    def __init__(self) -> None:
        self.space: dict[str, Any] = {"ndarray": np.ndarray, "same": same_memory}
        self.named: dict[int, str] = {}
        self.known: dict[int, str] = {}  # variables that hold the slots of entries so far
        self.before: dict[int, str] = {}  # and of values from before
        self.seen: dict[int, str] = {}  # variables that hold the residuals of slots

    def name(self, value: Any, prefix: str) -> str:
        """`value` as a global of the matcher."""
        if id(value) not in self.named:
            self.named[id(value)] = f"{prefix}{len(self.named)}"
            self.space[self.named[id(value)]] = value
        return self.named[id(value)]

    def source(self, entries: Sequence[Entry]) -> str:
        """The function `match(entries, first)`."""
        every = range(len(entries))
        lines = [
            "def match(entries, first):",
            f"    if len(entries) != {len(entries)}:",
            "        return None",
        ]
        lines.append(f"    {', '.join(f'e{i}' for i in every)}, = entries")
        lines += unless([f"e{i}[0] is {self.name(entry[0], 'V')}" for i, entry in enumerate(entries)])
        for at, entry in enumerate(entries):
            lines += self.entry(at, entry)
        return "\n".join(
            [*lines, f"    return ({''.join(variable + ', ' for variable in self.before.values())})"]
        )

    def entry(self, at: int, entry: Entry) -> list[str]:
        """The comparisons of one entry."""
        slots, fields = slots_of(entry), ["_", f"o{at}", "s", "d"]
        checks = [f"s == {self.name(entry[SHAPE], 'S')}", f"d is {self.name(entry[DTYPE], 'D')}"]
        sequences: list[tuple[Any, str]] = []
        for i, slot in enumerate(slots):
            fields.append(f"x{at}_{i}")
            if isinstance(slot, tuple):
                checks.append(f"len({fields[-1]}) == {len(slot)}")
                sequences.append((slot, fields[-1]))
            else:
                checks += self.slot(slot, fields[-1])
        slot_of = dict(entry[0].values)
        for i, value in enumerate(kept_by(entry)):
            fields.append(f"r{at}_{i}")
            where = slot_of.get(SLOTS + len(slots) + i)
            checks += self.residual(value, entry[where] if where else 0, fields[-1])
        lines = [f"    {', '.join(fields)}, = e{at}", *unless(checks)]
        for slot, variable in sequences:
            parts = [f"{variable}_{i}" for i in range(len(slot))]
            lines.append(f"    {', '.join(parts)}, = {variable}")
            lines += unless(
                [check for s, part in zip(slot, parts, strict=True) for check in self.slot(s, part)]
            )
        self.known[entry[OUT]] = f"o{at}"
        return lines

    def slot(self, slot: int, variable: str) -> list[str]:
        """That `variable` names what `slot` names here."""
        if slot <= 0:
            return [f"{variable} == {slot}"]
        if slot in self.known or slot in self.before:
            return [f"{variable} == {self.known.get(slot) or self.before[slot]}"]
        others = [f"{variable} != {other}" for other in self.before.values()]
        self.before[slot] = variable
        return [f"0 < {variable} <= first", *others]

    def residual(self, value: Any, slot: Any, variable: str) -> list[str]:
        """That `variable` is of the kind of `value`. What has a slot is known by it, from its second time on."""
        if isinstance(slot, int) and slot and isinstance(value, np.ndarray | np.generic | None):
            if slot in self.seen:  # a leaf that was assigned to between two reads is two arrays
                first = self.seen[slot]
                return [f"({variable} is {first} or same({variable}, {first}))"] if slot < 0 else []
            self.seen[slot] = variable
            if slot < 0:
                return []
        if isinstance(value, np.ndarray):
            shape, dtype = self.name(value.shape, "S"), self.name(value.dtype, "D")
            return [
                f"type({variable}) is ndarray and {variable}.shape == {shape}",
                f"{variable}.dtype is {dtype}",
            ]
        if isinstance(value, np.generic):
            return [f"type({variable}) is {self.name(type(value), 'T')}"]
        if isinstance(value, tuple | list):
            checks = [f"type({variable}) is {type(value).__name__} and len({variable}) == {len(value)}"]
            for i, part in enumerate(value):
                checks += self.residual(part, slot[i] if isinstance(slot, tuple) else 0, f"{variable}[{i}]")
            return checks
        if value is None or value is Ellipsis:
            return [f"{variable} is {value}"]
        return [
            f"type({variable}) is {self.name(type(value), 'T')} and {variable} == {self.name(value, 'K')}"
        ]


def unless(checks: Sequence[str]) -> list[str]:
    """Lines that return None if a check fails."""
    return [f"    if not ({' and '.join(checks)}):", "        return None"] if checks else []


def same_memory(a: Any, b: Any) -> bool:
    """Whether two arrays are one, seen through two objects (as after a snapshot was loaded)."""
    return a is not None and b is not None and a.__array_interface__ == b.__array_interface__
