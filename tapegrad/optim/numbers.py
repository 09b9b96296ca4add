"""What a step needs to know, in a device's memory: whether to step, how far, and how often it did.

A CUDA graph that repeats a step keeps the numbers it was captured with, and nobody waits for the device to hand one
over. So the learning rate and the counts of steps lie there, and the host writes a new learning rate when it has changed.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..backend import capture
from ..backend.device import Verdict, on_host

Array = Any  # of CuPy


class Numbers:
    """An optimizer's numbers on the device of one of its gradients.

    `agreed`: 1 if all gradients of the last step were finite, else 0; `finite`: the same as a boolean, in the same
    memory. `earlier`: how many steps before were taken. All are 0-d and written in place.
    """

    def __init__(self, beside: Array, lr: float) -> None:
        cupy = sys.modules["cupy"]
        self.cupy, self.device, self.lr = cupy, beside.device.id, lr
        self.verdict = Verdict(beside)
        with capture.lasting():
            self.counts = cupy.zeros((2,), np.int64)
        self.agreed, self.earlier = (self.counts[k : k + 1].reshape(()) for k in (0, 1))
        self.finite = self.counts.view(np.bool_)[:1].reshape(
            ()
        )  # the byte that says 1: CUDA's hosts are little-endian
        self._rates: dict[Any, tuple[Array, Array]] = {}

    def taken(self) -> int:
        """How many steps were taken; waits for the device."""
        return int(on_host(self.counts).sum())

    def forget(self) -> None:
        """Count from 0 on."""
        self.counts.fill(0)

    def rates(self, dtype: Any, *rest: float) -> Array:
        """The learning rate, and what follows it, as an array of `dtype` with one axis."""
        key = dtype, rest
        if key not in self._rates:
            with capture.lasting():
                made = self.cupy.empty((1 + len(rest),), dtype)
            for k, number in enumerate((self.lr, *rest)):
                made[k : k + 1].fill(number)
            self._rates[key] = made, made[:1]
        return self._rates[key][0]

    def arrays(self) -> list[Array]:
        """The arrays that hold the learning rate."""
        return [array for array, _ in self._rates.values()]

    def lr_as(self, dtype: Any) -> Array:
        """The learning rate as a 0-d array of `dtype`."""
        return self.rates(dtype).reshape(())

    def push(self, lr: float) -> None:
        """Write another learning rate: as the argument of a kernel, not a copy from memory that may change before.

        Not in a capture, whose graph would write the same at every launch: it is told before launches then.
        """
        step = capture.now()
        if lr != self.lr and (step is None or step.rehearsing):
            for _, first in self._rates.values():
                first.fill(lr)
            self.lr = lr
