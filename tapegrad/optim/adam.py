"""Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..core.variable import Parameter
from ..errors import ArgumentError
from ..kernels import choice, cpu
from ..types import Array
from .numbers import Numbers
from .optimizer import Optimizer, require_number


class Adam(Optimizer):
    """Steps of about `lr`, whatever the gradient's scale. Source: Kingma & Ba 2015, algorithm 1."""

    def __init__(
        self,
        params: Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr)
        if not isinstance(betas, tuple) or len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ArgumentError(f"Adam: `betas` must be two numbers in [0, 1), and {betas!r} came.")
        require_number(eps, "Adam", "eps")
        self.betas, self.eps = betas, eps

    def update(self, new: Array, value: Array, grad: Array, state: dict[str, Array]) -> None:
        beta1, beta2 = self.betas
        if not state:
            state["mean"], state["square"] = np.zeros_like(grad, order="C"), np.zeros_like(grad, order="C")
            state["steps"] = np.zeros((), np.int64)
        state["steps"] += 1
        steps = int(state["steps"])
        # w - lr m̂ / (√v̂ + ε), with both corrections for the start folded into two numbers.
        rate, unbias = float(self.lr) / (1 - beta1**steps), 1 / (1 - beta2**steps) ** 0.5
        choice.adam(value, grad, state["mean"], state["square"], new, rate, beta1, beta2, self.eps, unbias)

    def update_on_device(self, live: list[Any], numbers: Numbers, *, kernels: bool) -> list[Array]:
        beta1, beta2 = self.betas
        made: dict[int, Array] = {}
        for clock, members in self.clocks(live):
            for i, _, grad in members:
                self.average(i, "mean", grad), self.average(i, "square", grad)
            if kernels:
                news = self.by_kernels(members, numbers, clock)
            else:
                np.add(clock, numbers.agreed, out=clock)
                steps = np.maximum(clock, 1).astype(
                    np.float64
                )  # where no step was taken nothing will come of it
                rate = numbers.lr_as(np.float64) / (1 - beta1**steps)
                unbias = 1 / np.sqrt(1 - beta2**steps)
                news = [self.by_cupy(i, p, grad, numbers, rate, unbias) for i, p, grad in members]
            made |= {i: new for (i, _, _), new in zip(members, news, strict=True)}
        return [made[i] for i, _, _ in live]

    def by_kernels(self, live: list[Any], numbers: Numbers, clock: Array) -> list[Array]:
        """New values by Numba's kernels, averages in place."""
        grads = [grad for _, _, grad in live]
        where, dtype = choice.beside(grads[0]), grads[0].dtype
        news = [where.room(p.shape, dtype) for _, p, _ in live]
        where.adam(
            [where.in_order(p._array, dtype) for _, p, _ in live],
            [where.in_order(grad, dtype) for grad in grads],
            [self.state[i]["mean"] for i, _, _ in live],
            [self.state[i]["square"] for i, _, _ in live],
            news,
            numbers.rates(np.dtype(np.float64), *self.betas, self.eps),
            clock,
            numbers.agreed,
        )
        return news

    def by_cupy(self, i: int, p: Any, grad: Array, numbers: Numbers, rate: Any, unbias: Any) -> Array:
        """A new value by CuPy's functions, which cannot leave averages alone: they get copies."""
        new = numbers.cupy.empty(p.shape, p.dtype)
        mean, square = self.state[i]["mean"].copy(), self.state[i]["square"].copy()
        rate, unbias = rate.astype(grad.dtype), unbias.astype(grad.dtype)
        cpu.adam(p._array, grad, mean, square, new, rate, *self.betas, self.eps, unbias)
        return self.unless_refused(i, p, new, {"mean": mean, "square": square}, numbers)
