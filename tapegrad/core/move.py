"""Moving leaves and live recordings between the host and a device: what a loop holds, with all its connections.

A slot says nothing of where its value lies, so a value that has moved is still on its tape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import freeze, moved, on_device
from ..errors import RecordingError
from .adjoints import AdjointMap
from .entry import ITEM, SLOTS, Entry
from .replay import Inputs, Leaf
from .tape import Tape
from .variable import Variable, result
from .window import WindowSegment

Move = Callable[[Any], Any]


def move_leaf(leaf: Variable, device: Any) -> None:
    """Move the value and the gradient of `leaf` to `device`; it is the same leaf there."""
    grad = leaf.grad
    leaf._array = moved(leaf._array, device)
    leaf._grad = None if grad is None else moved(grad, device)


def move_tape(tape: Tape, device: Any, carry: Any = None) -> Any:
    """Move what `tape` holds to `device`, "cpu" or "cuda"; returns `carry` there, still connected to the recording.

        model.to("cuda")
        state = tape.to("cuda", carry=state)

    `carry`: the Variables that the loop carries on (any nest of tuples, lists and dicts). A leaf among them moves as
    `model.to` moves it. Raises RecordingError while the tape records.
    """
    if tape.recording:
        raise RecordingError(f"{tape._name}.to: this tape is recording. Call stop() or abort() first.")
    move = remembering(device)
    segments = getattr(tape, "_closed", [tape._segment])
    for segment in segments:  # read before a program that knows them loses its segments
        if isinstance(segment, WindowSegment):
            segment.adjoints = AdjointMap({slot: move(ct) for slot, ct in segment.adjoints.by_slot.items()})
    for segment in segments:
        segment.entries[:] = [moved_entry(entry, move) for entry in segment.entries]
        if isinstance(segment, WindowSegment):
            move_segment(segment, move)
    programs = getattr(tape, "_programs", None)
    if programs is not None:  # they compute in memory of their own, which is where the segments were
        tape._programs = tape.programs(tape, programs.mode)  # type: ignore[attr-defined]
    return moved_nest(carry, move, device)


def remembering(device: Any) -> Move:
    """A function that moves arrays to `device`, one that is met again only once; other things pass."""
    known: dict[int, tuple[Any, Any]] = {}  # with the array itself, so that no id is used twice

    def move(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(move, value))
        if isinstance(value, list):
            return [move(v) for v in value]
        # NumPy's scalars are arrays of no axes on a device, but for integers: those are axes and positions.
        scalar = isinstance(value, np.floating) and device != "cpu"
        if not (scalar or isinstance(value, np.ndarray) or on_device(value)):
            return value
        if id(value) not in known:
            there = moved(value, device)
            known[id(value)] = value, there if there is value else freeze(there)
        return known[id(value)][1]

    return move


def moved_entry(entry: Entry, move: Move) -> Entry:
    """`entry` with what it keeps moved."""
    if entry[0] is ITEM:
        return entry
    first = SLOTS + len(entry[0].primitive.differentiable)
    return (*entry[:first], *map(move, entry[first:]))


def move_segment(segment: WindowSegment, move: Move) -> None:
    """The rest of what a segment of a window holds."""
    for loss in segment.losses:
        loss.seed = move(loss.seed)
    segment.inputs[:] = [None if inputs is None else moved_inputs(inputs, move) for inputs in segment.inputs]
    segment.swept_by = segment.seat = segment.signature = segment.buffers = segment.kind = None


def moved_inputs(inputs: Inputs, move: Move) -> Inputs:
    """What was noted for a re-run, moved."""

    def noted(value: Any) -> Any:
        if isinstance(value, Leaf):
            return Leaf(value.variable, move(value.array))
        return tuple(map(noted, value)) if isinstance(value, tuple) else move(value)

    statics = {name: move(value) for name, value in inputs.statics.items()}
    return Inputs({name: noted(value) for name, value in inputs.arguments.items()}, statics)


def moved_nest(nest: Any, move: Move, device: Any) -> Any:
    """A nest of Variables with each of them moved."""
    if isinstance(nest, dict):
        return {key: moved_nest(value, move, device) for key, value in nest.items()}
    if isinstance(nest, (tuple, list)):
        parts = [moved_nest(value, move, device) for value in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else type(nest)(parts)
    if not isinstance(nest, Variable):
        return move(nest)
    if nest._slot < 0:
        move_leaf(nest, device)
        return nest
    return result(move(nest._array), nest._slot)


Tape.to = move_tape
