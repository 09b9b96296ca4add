"""The sweep of a segment as straight-line Python that calls the rules themselves: compile="exact".

The wiring is resolved once: which entry's cotangent goes where, and in which order the contributions add up.
Every rule runs as it stands, so the result is that of the sweep by rules, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..core.entry import ITEM, OUT, Entry
from ..core.sweep import Sweep
from ..core.window import WindowSegment
from .signature import SIGHTINGS, Matcher, position_of, signature, slots_of

PATHS_KEPT = 16  # signatures that one tape keeps code for


def exact_source(
    entries: Sequence[Entry], first: int, entering: frozenset[int]
) -> tuple[str, frozenset[int]]:
    """The source of `pull(e, take, add)` for cotangents that enter at the positions `entering`.

    `e` are the entries, `take(slot)` gives what entered, `add(slot, ct)` is for leaves and values from before.
    Also the entering positions to which the segment itself adds nothing.
    """
    position = {entry[OUT]: at for at, entry in enumerate(entries)}
    count = dict.fromkeys(entering, 1)  # contributions so far, by position
    owned: set[int] = set()
    lines = [f"c{at} = take(e[{at}][1])" for at in sorted(entering)]
    for at in range(len(entries) - 1, -1, -1):
        if at not in count:
            continue
        entry = entries[at]
        targets = contributions_of(entry)
        names = [f"p{i}" for i in range(len(targets))]
        if targets:
            lines.append(
                f"{', '.join(f'({n}s, {n})' for n in names)}, = e[{at}][0].pull(e[{at}], c{at})  # {entry[0].name}"
            )
        for slot, name in zip(targets, names, strict=True):
            to = position.get(slot) if slot > first else None
            if to is None:
                lines.append(f"add({name}s, {name})")
            elif to not in count:
                lines.append(f"c{to} = {name}")
            elif to in owned:
                lines.append(f"c{to} += {name}")
            else:  # the first is borrowed, their sum is owned
                lines.append(f"c{to} = c{to} + {name}")
                owned.add(to)
            if to is not None:
                count[to] = count.get(to, 0) + 1
    bare = frozenset(at for at in entering if count[at] == 1)
    return "\n".join(["def pull(e, take, add):", *("    " + line for line in lines or ["pass"])]), bare


def contributions_of(entry: Entry) -> list[int]:
    """The slots to which the pull of an entry contributes, in its order."""
    if entry[0] is ITEM:
        return list(slots_of(entry))
    variant = entry[0]
    slots = variant.input_slots(entry)
    if variant.primitive.variadic:
        return [slot for slot in slots[variant.primitive.variadic] if slot]
    return [slots[a] for a in variant.live]


class Straight:
    """The straight-line sweeps of one signature, by the positions at which cotangents enter."""

    def __init__(self, entries: Sequence[Entry], first: int) -> None:
        self.match = Matcher(entries, first).match
        self.sources: list[str] = []
        self._pulls: dict[frozenset[int], tuple[Callable[..., None], frozenset[int]]] = {}

    def pull(
        self, entries: Sequence[Entry], first: int, entering: frozenset[int]
    ) -> tuple[Callable[..., None], frozenset[int]]:
        """The function, and the positions whose adjoint is what enters and nothing more."""
        made = self._pulls.get(entering)
        if made is None:
            source, bare = exact_source(entries, first, entering)
            space: dict[str, Any] = {}
            exec(compile(source, "<tapegrad exact>", "exec"), space)
            made = self._pulls[entering] = space["pull"], bare
            self.sources.append(source)
        return made


class Exact:
    """What one tape sweeps by with compile="exact"."""

    def __init__(self) -> None:
        self.known: list[Straight] = []
        self.seen: dict[str, int] = {}

    def pull(self, sweep: Sweep, segment: WindowSegment, entries: Sequence[Entry]) -> bool:
        """Pull what `sweep` holds for the values of `segment` back through it. False if it is to be done by rules."""
        if len(segment.spans) != 1:  # a part that is dropped leaves other entries behind
            return False
        straight = segment.seat or self.of(segment)
        if straight is None:
            return False
        sums = sweep.sums
        slots = {position_of(entries, slot): slot for slot in sums if slot >= segment.first}
        if -1 in slots or not slots:
            return False
        pull, bare = straight.pull(entries, segment.first, frozenset(slots))
        kept = {at: slot for at, slot in slots.items() if slot in sweep.kept}
        if not bare.issuperset(kept) or any(segment.holds(s) for s in sweep.kept if s not in kept.values()):
            return False
        for slot in kept.values():
            sweep.kept[slot] = sums[slot]
        pull(entries, sums.pop, sweep.add)
        return True

    def source(self) -> str:
        """The straight lines as text."""
        return "\n\n".join(source for straight in self.known for source in straight.sources)

    def of(self, segment: WindowSegment) -> Straight | None:
        """What sweeps the segments that are like this one, from the second on."""
        entries, first = segment.entries, segment.first
        for straight in self.known:
            if straight.match(entries, first) is not None:
                segment.seat = straight
                return straight
        if segment.signature is None and entries:
            key = segment.signature = signature(entries, first)
            self.seen[key] = self.seen.get(key, 0) + 1
            if key and self.seen[key] >= SIGHTINGS:
                self.known = [Straight(entries, first), *self.known[: PATHS_KEPT - 1]]
                return self.of(segment)
        return None
