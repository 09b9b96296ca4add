"""The memory of a loop whose step is to be captured: places by age for what a window keeps, a pool for the rest.

What is made while a tape records lives as long as its segment does. It goes into a *place*: all that one step
records, in the order in which it asks, so that every step's place has one layout. The places lie side by side:

    place 0    1    2    3  ...      before a period of two steps, the newest segment in place 0
           \\    \\    \\    \\
    place 0    1    2    3  ...      `age`: everything is two places older, and places 1 and 0 are for the two steps

So an address always holds the same age, whatever the phase of the window: a graph that was captured once reads and
writes the right segments for ever. What is made elsewhere in a step dies with it, and comes from a pool of its own.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.active import active_tapes
from ..core.capacitor import CapacitorTape
from ..kernels.cuda import plan, source

ALIGNMENT = 512  # bytes, as CuPy's pool rounds
QUAD = 16  # bytes that a thread moves at once
THREADS = 256


class Block:
    """Somebody holds memory of a step as long as this lives."""

    __slots__ = ("__weakref__", "at", "nbytes", "owner")

    def __init__(self, owner: Any, at: int, nbytes: int) -> None:
        self.owner, self.at, self.nbytes = owner, at, nbytes

    def holds(self, array: Any) -> bool:
        """Whether `array` begins in this memory."""
        return bool(self.at <= array.data.ptr < self.at + self.nbytes)


class Step:
    """What one step asked for: sizes and blocks of what it recorded, and blocks of the rest."""

    def __init__(self, place: int = -1) -> None:
        self.place = place  # -1: it is only being measured
        self.sizes: list[int] = []
        self.recorded: list[weakref.ref[Block]] = []
        self.rest: list[weakref.ref[Block]] = []
        self.nbytes = 0  # of what it recorded
        self.tapes: dict[int, CapacitorTape] = {}  # that recorded, by id


def alive(blocks: list[weakref.ref[Block]]) -> list[Block]:
    """Those of `blocks` that somebody still holds."""
    return [block for ref in blocks if (block := ref()) is not None]


class Arenas:
    """`places` of `nbytes` each, and a pool, on the current device. Without places every step is only measured."""

    def __init__(self, cupy: Any, places: int = 0, nbytes: int = 0) -> None:
        self.cupy = cupy
        self.places, self.stride = places, -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.pool = cupy.cuda.MemoryPool()
        # Zeros, for a place that no step has filled is moved too.
        self.memory = cupy.zeros(places * self.stride, np.uint8)
        self.step = Step()
        self.overflowed = False  # whether a step recorded more than there is room for
        self.age(0, 0)  # compiles and loads the kernel, which a capture should not
        self.records = False  # whether what is made now is recorded, though no tape is active

    def bounds(self) -> tuple[int, int]:
        """The addresses between which all places lie."""
        return self.memory.data.ptr, self.memory.data.ptr + self.memory.nbytes

    def holds(self, array: Any) -> bool:
        """Whether `array`, or None, lies in a place."""
        begin, end = self.bounds()
        return on_device(array) and begin <= array.data.ptr < end

    def provide(self, sizes: list[int]) -> None:
        """See to it that the pool has free blocks of these sizes, all at once."""
        blocks = [self.pool.malloc(nbytes) for nbytes in sizes]
        del blocks

    def begin(self, place: int) -> None:
        """A step begins, which records into `place`; -1: it is measured."""
        self.step = Step(place)

    def malloc(self, nbytes: int) -> Any:
        """CuPy's allocator for the step that has begun."""
        step = self.step
        if nbytes == 0:
            return self.pool.malloc(0)
        tapes = active_tapes()
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        recorded = bool(tapes) or self.records
        if recorded:
            step.tapes.update((id(tape), tape) for tape in tapes if isinstance(tape, CapacitorTape))
            offset, step.nbytes = step.nbytes, step.nbytes + size
            step.sizes.append(size)
            self.overflowed |= step.place >= 0 and offset + size > self.stride
            if step.place >= 0 and not self.overflowed:
                at = self.memory.data.ptr + step.place * self.stride + offset
                return self._given(step.recorded, at, nbytes, self.memory)
        given = self.pool.malloc(nbytes)
        return self._given(step.recorded if recorded else step.rest, given.ptr, nbytes, given)

    def _given(self, blocks: list[weakref.ref[Block]], at: int, nbytes: int, owner: Any) -> Any:
        """Memory at an address, and a note of who holds it."""
        block = Block(owner, at, nbytes)
        blocks.append(weakref.ref(block))
        memory = self.cupy.cuda.UnownedMemory(at, nbytes, block, self.memory.device.id)
        return self.cupy.cuda.MemoryPointer(memory, 0)

    def age(self, places: int, by: int) -> None:
        """Move what lies in the newest `places` places to those that are `by` older. May be captured."""
        quads = self.stride // QUAD
        if not quads:
            return
        assert places + by <= self.places, "beyond the oldest place"
        kernel = source.compiled("ages.cu", "move_ages")
        blocks = plan.blocks_for(quads, THREADS)
        kernel((blocks,), (THREADS,), (self.memory, np.uint64(quads), np.int32(places), np.int32(by)))

    def saved(self) -> Any:
        """A copy of all places, in CuPy's ordinary memory."""
        return self.memory.copy()

    def restore(self, saved: Any, younger: int = 0) -> None:
        """Put back what `saved` holds, everything `younger` places nearer."""
        begin = younger * self.stride
        self.memory[: len(saved) - begin] = saved[begin:]
