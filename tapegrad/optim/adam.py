"""Adam."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..core.variable import Parameter
from ..errors import ArgumentError
from ..kernels import choice
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
