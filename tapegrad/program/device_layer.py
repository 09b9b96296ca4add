"""One recurrent layer's window on a GPU: its ring, the launches that sweep it, and what their deltas give.

Everything is told by age: 0 is the newest step. So no argument depends on where the window is in its ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import capture as seam
from ..kernels import cpu
from ..kernels.cuda import model
from ..kernels.cuda.rings import Launches, Rings
from .layers import Kind

Array = Any
# What passed each joint, by age: the cotangents of h, and of c for an LSTM, each (steps, batch, n).
Passed = tuple[Array, ...]


class Layer:
    """The ring of one layer, and its sweep."""

    def __init__(self, xp: Any, kind: Kind, window: int, joint: float | None, way: str) -> None:
        self.xp, self.kind, self.way = xp, kind, way
        with seam.lasting():
            self.rings = Rings(xp, kind.cell, window, kind.batch, kind.n_in, kind.hidden)
            slots = self.rings.slots
            self.joints = None if joint is None else xp.full(slots, joint, np.float32)
        division = None
        if way == "persistent":
            sizes = kind.cell, kind.hidden, kind.batch
            division = model.planned(*sizes, model.this_gpu(), model.these_costs())
        self.launches = Launches(self.rings, division)
        self.empty = True

    @property
    def arrays(self) -> list[Array]:
        """What a step changes and the next one reads."""
        rings = self.rings
        every = (rings.inputs, rings.cs, rings.gates, rings.extra, rings.head)
        return [array for array in every if array is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the ring."""
        return sum(array.nbytes for array in vars(self.rings).values() if hasattr(array, "nbytes"))

    def restart(self) -> None:
        """From here on no step lies in the ring."""
        if self.empty:
            return
        rings, self.empty = self.rings, True
        # What lies in a slot without a step is multiplied by zeros, and so must be finite.
        rings.inputs[..., : rings.n_in + rings.hidden].fill(0)
        rings.head[:1].fill(rings.slots - 1)
        rings.head[1:].fill(0)

    def shorten(self, steps: int) -> None:
        """Leave out all but the newest `steps`."""
        self.rings.head[1:2].fill(steps)

    def deposit(self, kept: dict[str, Array]) -> None:
        """One more step, the newest, with what its op kept."""
        self.empty = False
        self.launches.deposit(**kept)

    # -- the sweep -------------------------------------------------------------------------------------------

    def sweep(self, seeds: dict[int, Array], steps: int, w_h: Sequence[Array]) -> Passed:
        """Fill the ring's deltas from the cotangents of h by age; `w_h` are the weights by age, or one for all."""
        values = self.stacked(seeds)
        if self.way == "persistent" and len(w_h) == 1:
            return self.in_one_launch(values, steps, aligned(w_h[0]))
        return self.step_by_step(values, steps, w_h)

    def stacked(self, seeds: dict[int, Array]) -> Array:
        """Cotangents by age as one array, zeros where there is none."""
        kind, ages = self.kind, max(seeds) + 1
        shape = (ages, kind.batch, kind.hidden)
        base = seeds[0].base if 0 in seeds else None
        if ages == 1:
            return self.xp.ascontiguousarray(seeds[0], np.float32).reshape(shape)
        if base is not None and base.shape == shape and all(ct.base is base for ct in seeds.values()):
            step = seeds[0].nbytes  # those of the layer above, as it made them
            if len(seeds) == ages and all(ct.data.ptr == base.data.ptr + a * step for a, ct in seeds.items()):
                return base
        values = (self.xp.zeros if len(seeds) < ages else self.xp.empty)(shape, np.float32)
        for age, ct in seeds.items():
            values[age] = ct
        return values

    def passed(self, steps: int) -> list[Array]:
        """Memory for what passes the joints."""
        shape = (steps, self.kind.batch, self.kind.hidden)
        return [self.xp.empty(shape, np.float32) for _ in range(1 if self.rings.cs is None else 2)]

    def in_one_launch(self, seeds: Array, steps: int, w_h: Array) -> Passed:
        passed = self.passed(steps)
        self.launches.backward(w_h, seeds, (*passed, None)[:2], joints=self.joints)
        return tuple(passed)

    def step_by_step(self, seeds: Array, steps: int, w_h: Sequence[Array]) -> Passed:
        rings, xp = self.rings, self.xp
        products, *cells = self.passed(steps)
        ct_h = xp.empty_like(products) if rings.cell == "gru" else None  # what passes beside the product
        deltas = xp.empty(rings.deltas.shape[1:], np.float32)
        arriving: tuple[Array, ...] = (None, None, None)
        for age in range(steps):
            leaving = (at_age(ct_h, age), at_age(cells[0] if cells else None, age))
            self.launches.step_backward(age, seeds, arriving, leaving, deltas, joints=self.joints)
            cpu.product(deltas, w_h[age if len(w_h) > 1 else 0].T, out=products[age])
            arriving = (leaving[0], products[age], leaving[1])
        if ct_h is not None:
            products += ct_h
        return (products, *cells)

    # -- what the deltas give --------------------------------------------------------------------------------

    def gradients(self) -> tuple[Array, ...]:
        """Those of w_x, w_h and b (a GRU: b_h too), summed over the window."""
        rings, n_in, n = self.rings, self.kind.n_in, self.kind.hidden
        inputs, deltas = rows(rings.inputs), rows(rings.deltas)
        if rings.deltas_x is None:
            made = cpu.product(inputs.T, deltas)
            return made[:n_in], made[n_in : n_in + n], made[n_in + n]
        made, deltas_x = cpu.product(inputs[:, n_in:].T, deltas), rows(rings.deltas_x)
        of_x = cpu.product(inputs[:, :n_in].T, deltas_x)
        return of_x, made[:n], cpu.product(inputs[:, n_in + n :].T, deltas_x)[0], made[n]

    def inputs(self, steps: int, w_x: Sequence[Array]) -> Array:
        """The cotangents of x by age, (steps, batch, n_in)."""
        rings, xp, kind = self.rings, self.xp, self.kind
        deltas = rings.deltas if rings.deltas_x is None else rings.deltas_x
        made = xp.empty((steps, kind.batch, kind.n_in), np.float32)
        if len(w_x) == 1:
            self.launches.by_age(cpu.product(rows(deltas), w_x[0].T), made)
            return made
        ages = xp.empty((steps, *deltas.shape[1:]), np.float32)
        self.launches.by_age(deltas, ages)
        for age in range(steps):
            cpu.product(ages[age], w_x[age].T, out=made[age])
        return made


def rows(ring: Array) -> Array:
    """A ring as one matrix."""
    return ring.reshape(-1, ring.shape[-1])


def at_age(ages: Array, age: int) -> Array:
    return None if ages is None else ages[age]


def aligned(w_h: Array) -> Array:
    """Weights as the persistent kernel reads them: in order, 16 bytes at a time."""
    return w_h if w_h.flags.c_contiguous and w_h.data.ptr % 16 == 0 else w_h.copy(order="C")
