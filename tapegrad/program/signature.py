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
        self.count = len(entries)
        self.source, space = match_source(entries, first)
        exec(compile(self.source, "<tapegrad match>", "exec"), space)
        self.match: Callable[[Sequence[Entry], int], Before | None] = space["match"]


def match_source(entries: Sequence[Entry], first: int) -> tuple[str, dict[str, Any]]:
    """The matcher of a signature as Python source, and the objects that it names."""
    space: dict[str, Any] = {"ndarray": np.ndarray, "same": same_memory}
    named: dict[int, str] = {}

    def name(value: Any, prefix: str) -> str:
        """`value` as a global of the matcher."""
        if id(value) not in named:
            named[id(value)] = f"{prefix}{len(named)}"
            space[named[id(value)]] = value
        return named[id(value)]

    known: dict[int, str] = {}
    before: dict[int, str] = {}
    seen: dict[int, str] = {}
    lines = ["def match(entries, first):", f"    if len(entries) != {len(entries)}:", "        return None"]
    lines.append(f"    {', '.join(f'e{i}' for i in range(len(entries)))}, = entries")
    lines.append(
        "    if not (" + " and ".join(f"e{i}[0] is {name(e[0], 'V')}" for i, e in enumerate(entries)) + "):"
    )
    lines.append("        return None")
    for at, entry in enumerate(entries):
        checks: list[str] = []

        def slot_check(slot: Any, variable: str, checks: list[str] = checks) -> None:
            if isinstance(slot, tuple):
                names = [f"{variable}_{i}" for i in range(len(slot))]
                checks.append(f"len({variable}) == {len(slot)}")
                after.append(f"{', '.join(names)}, = {variable}")
                later.extend(zip(slot, names, strict=True))
            elif slot <= 0:
                checks.append(f"{variable} == {slot}")
            elif slot in known or slot in before:
                checks.append(f"{variable} == {known.get(slot) or before[slot]}")
            else:
                before[slot] = variable
                checks.append(f"0 < {variable} <= first")
                distinct = [b for s, b in before.items() if s != slot]
                checks.extend(f"{variable} != {b}" for b in distinct)

        fields = ["_", f"o{at}", "s", "d"]
        after: list[str] = []
        later: list[tuple[Any, str]] = []
        checks += [f"s == {name(entry[SHAPE], 'S')}", f"d is {name(entry[DTYPE], 'D')}"]
        slots = slots_of(entry)
        for i, slot in enumerate(slots):
            fields.append(f"x{at}_{i}")
            slot_check(slot, fields[-1])
        slot_of = dict(entry[0].values)
        for i, value in enumerate(kept_by(entry)):
            variable = f"r{at}_{i}"
            fields.append(variable)
            where = slot_of.get(SLOTS + len(slots) + i)
            residual_checks(value, entry[where] if where else 0, variable, checks, seen, name)
        lines.append(f"    {', '.join(fields)}, = e{at}")
        lines += [f"    if not ({' and '.join(checks)}):", "        return None"]
        if later:
            lines += ["    " + line for line in after]
            more: list[str] = []
            for slot, variable in later:
                slot_check(slot, variable, more)
            lines += [f"    if not ({' and '.join(more)}):", "        return None"]
        known[entry[OUT]] = f"o{at}"
    lines.append(f"    return ({''.join(b + ', ' for b in before.values())})")
    return "\n".join(lines), space


def same_memory(a: Any, b: Any) -> bool:
    """Whether two arrays are one, seen through two objects (as after a snapshot was loaded)."""
    return a is not None and b is not None and a.__array_interface__ == b.__array_interface__


def residual_checks(
    value: Any,
    slot: Any,
    variable: str,
    checks: list[str],
    seen: dict[int, str],
    name: Callable[[Any, str], str],
) -> None:
    """Comparisons that make sure of a residual's kind. What has a slot is known by it, from its second time on."""
    if isinstance(slot, int) and slot and isinstance(value, np.ndarray | np.generic | None):
        if slot in seen:  # a leaf that was assigned to between two reads is two arrays
            checks.extend(
                [f"({variable} is {seen[slot]} or same({variable}, {seen[slot]}))"] if slot < 0 else []
            )
            return
        seen[slot] = variable
        if slot < 0:
            return
    if isinstance(value, np.ndarray):
        checks.append(f"type({variable}) is ndarray and {variable}.shape == {name(value.shape, 'S')}")
        checks.append(f"{variable}.dtype is {name(value.dtype, 'D')}")
    elif isinstance(value, np.generic):
        checks.append(f"type({variable}) is {name(type(value), 'T')}")
    elif isinstance(value, tuple | list):
        checks.append(f"type({variable}) is {type(value).__name__} and len({variable}) == {len(value)}")
        for i, part in enumerate(value):
            inner = slot[i] if isinstance(slot, tuple) else 0
            residual_checks(part, inner, f"{variable}[{i}]", checks, seen, name)
    elif value is None or value is Ellipsis:
        checks.append(f"{variable} is {value}")
    else:
        checks.append(f"type({variable}) is {name(type(value), 'T')} and {variable} == {name(value, 'K')}")
