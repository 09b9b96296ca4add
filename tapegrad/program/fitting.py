"""What is asked of a step that is to be captured: what it keeps, reads and leaves behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from ..backend.device import on_device
from ..core.capacitor import CapacitorTape
from ..core.printout import kept_arrays
from ..core.schedule import Schedule
from ..core.variable import Variable, result
from ..nest import flat
from .arenas import Block, Step, alive
from .arguments import array_in
from .record import input_slots

LONGEST_PERIOD = 64  # steps, and graphs


def newest_residuals(tape: CapacitorTape) -> Iterator[Any]:
    """The arrays that the newest segment of `tape` keeps."""
    return kept_arrays(tape._closed[-1].entries if tape._closed else [])


def lies_in(array: Any, wholes: Iterable[Any]) -> bool:
    """Whether `array` begins in the memory of one of `wholes`."""
    return on_device(array) and any(w.data.ptr <= array.data.ptr < w.data.ptr + w.nbytes for w in wholes)


def held_by(step: Any) -> list[Any]:
    """The arrays that a function finds in its closure, its globals and its object, and in what those hold.

    A graph reads them where they are, also when Python has put others in their place.
    """
    f = getattr(step, "__func__", step)
    code = getattr(f, "__code__", None)
    names = code.co_names if code is not None else ()
    seen = [
        step,
        getattr(step, "__self__", None),
        *(f.__globals__.get(name) for name in names if code is not None),
    ]
    for cell in getattr(f, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            seen.append(cell.cell_contents)
    inside = [value for one in seen for value in getattr(one, "__dict__", {}).values()]
    parts = [value for one in (*seen, *inside) if isinstance(one, (list, tuple, dict)) for value in flat(one)]
    return [value for value in map(array_in, (*seen, *inside, *parts)) if on_device(value)]


def stand(tape: CapacitorTape) -> Any:
    """Where a tape is in its loop, as numbers that its use changes."""
    return tape._count, [(clock.now, clock.swept, clock.forgotten) for clock in tape._clocks]


def copies_of(returned: list[Any]) -> list[Any]:
    """What the caller gets of what a step returned: later steps write to its memory. One copy of what stands there twice."""
    made: dict[int, Any] = {}
    for value in returned:
        if not on_device(array_in(value)) or (isinstance(value, Variable) and value._slot < 0):
            made[id(value)] = value
        elif id(value) not in made:
            copy = array_in(value).copy()
            made[id(value)] = result(copy, value._slot) if isinstance(value, Variable) else copy
    return [made[id(value)] for value in returned]


def reads_only(tape: Any, slots: set[int]) -> bool:
    """Whether the newest segment of `tape` reads no other values of earlier ones than those in `slots`."""
    if not tape._closed or tape._closed[-1].index != tape._count:
        return True
    segment = tape._closed[-1]
    read = {slot for entry in segment.entries for slot in input_slots(entry)}
    return {slot for slot in read if 0 < slot <= segment.first} <= slots


def left_over(blocks: list[Any], arrays: list[Any]) -> list[Block]:
    """Those of `blocks` that somebody holds, other than for `arrays`."""

    def found() -> list[Block]:
        return [block for block in alive(blocks) if not any(block.holds(array) for array in arrays)]

    if found():
        gc.collect()  # it may be a cycle that waits for the collector
    return found()


def is_made_by(step: Step, array: Any) -> bool:
    """Whether `array`, or None, lies in memory that `step` asked for."""
    return on_device(array) and any(block.holds(array) for block in alive(step.rest))


def period_of(schedule: Schedule) -> int | None:
    """After how many segments a schedule's sweeps repeat themselves, if that depends on nothing else."""
    kind = type(schedule)
    fixed = all(
        getattr(kind, name) is getattr(Schedule, name)
        for name in ("scale", "ends", "beyond", "closed", "swept")
    )
    if not fixed:
        return None
    swept, sweeps = 0, []
    for index in range(1, 3 * LONGEST_PERIOD + 1):
        if schedule.due(index, swept):
            sweeps.append(index)
            swept = index
    gaps = {b - a for a, b in itertools.pairwise(sweeps)}
    return gaps.pop() if len(gaps) == 1 else None
