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
from .numbers import Numbers
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

    def update_on_device(self, live: list[Any], numbers: Numbers, *, kernels: bool) -> list[Array]:
        dtype = live[0][2].dtype
        velocities = [self.average(i, "velocity", grad) for i, _, grad in live] if self.momentum else []
        if not kernels:
            return [self.by_cupy(i, p, grad, numbers) for i, p, grad in live]
        where = choice.beside(live[0][2])
        values = [where.in_order(p._array, dtype) for _, p, _ in live]
        grads = [where.in_order(grad, dtype) for _, _, grad in live]
        news = [where.room(p.shape, dtype) for _, p, _ in live]
        if self.momentum:
            rates = numbers.rates(dtype, self.momentum)
            where.momentum(values, grads, velocities, news, rates, numbers.agreed)
        else:
            where.sgd(values, grads, news, numbers.rates(dtype), numbers.agreed)
        return news

    def by_cupy(self, i: int, p: Any, grad: Array, numbers: Numbers) -> Array:
        """A new value by CuPy's functions, which cannot leave a velocity alone: they get a copy."""
        new, lr = numbers.cupy.empty(p.shape, p.dtype), numbers.lr_as(grad.dtype)
        if not self.momentum:
            cpu.descend(p._array, grad, new, lr)
            return self.unless_refused(i, p, new, {}, numbers)
        tried = {"velocity": self.state[i]["velocity"].copy()}
        cpu.momentum(p._array, grad, tried["velocity"], new, lr, self.momentum)
        return self.unless_refused(i, p, new, tried, numbers)
