"""The arrays of a recurrent layer's window on a GPU, and the launches that work on them.

No argument of a launch depends on where the window is in its ring, so that one captured graph serves every step.
A step that an op has run is brought there by `deposit`. When a sweep is due comes whatever makes the cotangents of h,
and `backward` (or `step_backward` and a product for each age). All launches go to CuPy's current stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import plan, source

Array = Any
NOTHING = np.uintp(0)  # CuPy takes no None for a pointer
INT = np.int32
THREADS = 256  # of a block, where each thread has an element


class Rings:
    """What a window of one layer keeps, and what its sweep makes, slot by slot.

    `inputs` (slots, batch, ...) has rows [x, h, 1, zeros]: x and h are what a step began with. `cs` is an LSTM's c.
    `deltas` (slots, batch, gates n) are the cotangents of h w_h, and of x w_x too; a GRU has `deltas_x` for those.
    After a sweep `inputs` times `deltas`, over all slots, is the gradient of the weights and of the bias. The state
    that the next step begins with lies in the slot behind the newest. Slots: at least one more than steps of the window.
    """

    def __init__(self, xp: Any, cell: str, window: int, batch: int, n_in: int, hidden: int) -> None:
        self.cell, self.window, self.batch, self.n_in, self.hidden = cell, window, batch, n_in, hidden
        self.slots = window + 1
        shape = (self.slots, batch)
        self.gates_count = plan.CELLS[cell][1]
        width = -(-(n_in + hidden + 1) // 4) * 4
        self.inputs = xp.zeros((*shape, width), np.float32)
        self.inputs[..., n_in + hidden] = 1.0
        self.deltas = xp.zeros((*shape, self.gates_count * hidden), np.float32)
        self.deltas_x = xp.zeros_like(self.deltas) if cell == "gru" else None
        self.cs = xp.zeros((*shape, hidden), np.float32) if cell == "lstm" else None
        self.gates = xp.zeros_like(self.deltas) if cell != "rnn" else None
        self.extra = xp.zeros((*shape, hidden), np.float32) if cell != "rnn" else None
        self.head = xp.array([self.slots - 1, 0], np.int32)  # slot of the newest step, steps in the window
        # Room for the counters of every plan: a group of rows has at least one row. A launch leaves them ready for
        # the next; after one that was broken off they must be zeros again.
        self.counters = xp.zeros(32 * batch, np.uint32)
        self.ticket = xp.zeros(1, np.uint32)  # of `deposit`, as the counters

    @property
    def hs(self) -> Array:
        """The h that each slot's step began with, (slots, batch, n), as part of `inputs`."""
        return self.inputs[..., self.n_in : self.n_in + self.hidden]


class Launches:
    """The kernels on the arrays of `rings`, for one GPU.

    Arrays are float32, C-ordered and on 16 bytes, of the shapes in `kernels/cpu.py`; nothing here checks that. The
    first launch of a kind compiles it. `division` is what `backward` needs; `compiled` is for tests.
    """

    def __init__(
        self, rings: Rings, division: plan.Backward | None = None, compiled: Any = source.compiled
    ) -> None:
        self.rings, self.division, self.compiled = rings, division, compiled

    def deposit(
        self,
        x: Array,
        h: Array,
        c: Array = None,
        gates: Array = None,
        extra: Array = None,
        h_next: Array = None,
    ) -> None:
        """A step that an op has run, with what it keeps, becomes the newest; `h_next` for Elman's network."""
        rings = self.rings
        width = rings.gates_count * rings.hidden
        # The widest array of a row takes a thread for each of four floats.
        blocks = plan.blocks_for(rings.batch * max(width, rings.n_in), 4 * THREADS)
        args = (
            rings.head, INT(rings.slots), INT(rings.window), INT(rings.batch), INT(rings.n_in), INT(rings.hidden),
            INT(width), x, h, *map(pointer, (c, gates, extra, h_next)), rings.inputs, INT(rings.inputs.shape[-1]),
            *map(pointer, (rings.cs, rings.gates, rings.extra)), rings.ticket,
        )  # fmt: skip
        self.compiled("deposit.cu", "deposit")((blocks,), (THREADS,), args)

    def by_age(self, ring: Array, ages: Array) -> None:
        """What a ring (slots, batch, ...) has of the newest steps, newest first: ages (steps, batch, ...)."""
        rings, size = self.rings, ring.size // self.rings.slots
        grid = (plan.blocks_for(size, 4 * THREADS), len(ages))
        self.compiled("deposit.cu", "by_age")(
            grid, (THREADS,), (rings.head, INT(rings.slots), INT(size), ring, ages)
        )

    def backward(self, w_h: Array, seeds: Array, passed: Any, *, joints: Array = None) -> None:
        """The whole window in one launch, as `division` says: fills `deltas`.

        `seeds` (ages, batch, n) are the cotangents of h of so many steps, the newest first. `passed`: two arrays
        (steps, batch, n) get those of the h and c that each step began with, newest first, before the factor; None
        for c but of an LSTM. `joints` (slots,): factors of what passes from a slot's step to the older one.
        """
        chosen, rings = self.division, self.rings
        assert chosen is not None, "who sweeps in one launch says how"
        kernel = self.compiled("backward.cu", chosen.expression, chosen.shared_bytes, True)
        args = (
            rings.head, INT(rings.slots), INT(rings.batch), w_h, *self._read(seeds, joints),
            pointer(rings.deltas_x), rings.deltas, *map(pointer, passed), rings.counters,
        )  # fmt: skip
        kernel(chosen.grid, (chosen.threads,), args, shared_mem=chosen.shared_bytes)

    def step_backward(
        self, age: int, seeds: Array, arriving: Any, passed: Any, deltas_now: Array, *, joints: Array = None
    ) -> None:
        """One step of it; then the product deltas_now @ w_h.T is the caller's. Ages 0, 1, ... of the whole window.

        `arriving`: h, the product and c that the younger step passed on, each may be None. `passed`: h and c get what
        this step does, None for h but of a GRU, and for c but of an LSTM.
        """
        rings = self.rings
        kernel = self.compiled("backward.cu", f"step_backward<{plan.CELLS[rings.cell][0]}>")
        args = (
            rings.head, INT(rings.slots), INT(age), INT(rings.batch), INT(rings.hidden), *self._read(seeds, joints),
            *map(pointer, arriving), pointer(rings.deltas_x), rings.deltas, *map(pointer, passed), deltas_now,
        )  # fmt: skip
        kernel((plan.blocks_for(rings.batch * rings.hidden, THREADS),), (THREADS,), args)

    def _read(self, seeds: Array, joints: Array) -> tuple[Any, ...]:
        rings = self.rings
        before = rings.hs if rings.cs is None else rings.cs
        stride = rings.hidden if rings.cs is not None else rings.inputs.shape[-1]
        return (
            seeds, INT(len(seeds)), pointer(joints), before, INT(stride), pointer(rings.gates), pointer(rings.extra)
        )  # fmt: skip


def pointer(array: Array) -> Any:
    """An optional array as a kernel takes it."""
    return NOTHING if array is None else array
