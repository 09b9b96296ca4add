"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.variable import Parameter
from ..errors import ArgumentError
from ..kernels import choice, cpu
from ..program.settle import Deferred
from ..types import Array
from .optimizer import Optimizer, alone, require_finite


class SGD(Optimizer):
    """$v \\leftarrow \\mu v + g$, $w \\leftarrow w - \\eta v$. Source: Sutskever et al. 2013, in PyTorch's form."""

    def __init__(self, params: Iterable[Parameter], lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, lr)
        if not 0 <= momentum < 1:
            raise ArgumentError(f"SGD: `momentum` must be in [0, 1), and {momentum!r} came.")
        self.momentum = momentum

    def step(self) -> None:
        """Update every parameter. Raises NonFiniteError, and changes nothing, if a gradient is NaN or infinite."""
        if self.momentum or any(
            type(p._array) is not np.ndarray and on_device(p._array) for p in self.params
        ):
            super().step()
            return
        # Without a velocity nothing is changed before the end, so one pass can compute and check.
        lr, made, put_off = float(self.lr), [], []
        for i, p in enumerate(self.params):
            deferred: Any = p._grad
            if type(deferred) is Deferred and deferred.descends(p.dtype) and p._array.flags.c_contiguous:
                put_off.append((i, p, deferred))
                continue
            grad = p.grad
            if grad is not None:
                new = self.room(i, p)
                if not choice.sgd(p._array, grad, new, lr):
                    require_finite(grad, "SGD.step", p.name or f"params[{i}]")
                made.append((i, p, new))
        for i, p, deferred in put_off:  # the products go straight to the weights
            self._arrays[i] = (None, self._arrays[i][1])  # our own note of the array does not count
            if alone(p):
                deferred.descend(p._array, lr)
            else:
                new = self.room(i, p)
                np.copyto(new, p._array)
                deferred.descend(new, lr)
                made.append((i, p, new))
        self.take(made)

    def update(self, new: Array, value: Array, grad: Array, state: dict[str, Array]) -> None:
        if not self.momentum:
            cpu.descend(value, grad, new, float(self.lr))
            return
        if "velocity" not in state:
            state["velocity"] = np.zeros_like(grad, order="C")
        choice.momentum(value, grad, state["velocity"], new, float(self.lr), self.momentum)
