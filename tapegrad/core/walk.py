"""The sweep one entry at a time, in plain Python, for people who want to watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .adjoints import Adjoints
from .entry import OUT
from .printout import Names
from .seeds import Roots, seeded
from .tape import Tape


class Step(NamedTuple):
    """One step of `Tape.walk`: an entry, the cotangent of its output, and what it hands to its inputs."""

    name: str
    out: str
    inputs: tuple[str, ...]
    residuals: dict[str, Any]
    ct: Any
    contributions: list[tuple[str, Any]]


def walk(tape: Tape, root: Roots = None, seed: Any = None) -> Iterator[Step]:
    """The sweep one entry at a time, in plain Python, for people who want to watch. Touches no `.grad`."""
    roots, seeds = seeded(tape, root, seed)
    adjoints, names = Adjoints(roots), Names(tape._entries())
    for r, s in zip(roots, seeds, strict=True):
        adjoints.add(r._slot, s)
    for entry in reversed(tape._entries()):
        ct = adjoints.sums.pop(entry[OUT], None)
        if ct is not None:
            contributions = list(entry[0].pull(entry, ct))
            for slot, contribution in contributions:
                adjoints.add(slot, contribution)
            shown = [(names[slot], contribution) for slot, contribution in contributions]
            kept = entry[0].residuals(entry)
            yield Step(entry[0].name, names[entry[OUT]], names.inputs(entry), kept, ct, shown)


Tape.walk = walk
