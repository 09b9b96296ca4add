"""Adam."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..core.variable import Parameter
from ..errors import ArgumentError
from ..types import Array
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

    def updated(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        beta1, beta2 = self.betas
        if not state:
            state["mean"], state["square"] = np.zeros_like(grad), np.zeros_like(grad)
            state["steps"] = np.zeros((), np.int64)
        mean, square = state["mean"], state["square"]
        state["steps"] += 1
        steps = int(state["steps"])
        work = np.multiply(grad, 1 - beta1, out=np.empty_like(grad))
        mean *= beta1
        mean += work
        np.multiply(grad, grad, out=work)
        work *= 1 - beta2
        square *= beta2
        square += work
        # w - lr m̂ / (√v̂ + ε), with both corrections for the start folded into two numbers.
        np.sqrt(square, out=work)
        work *= 1 / (1 - beta2**steps) ** 0.5
        work += self.eps
        np.divide(mean, work, out=work)
        work *= -float(self.lr) / (1 - beta1**steps)
        work += value
        return work
