"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.variable import Parameter
from ..errors import ArgumentError
from ..types import Array
from .optimizer import Optimizer


class SGD(Optimizer):
    """$v \\leftarrow \\mu v + g$, $w \\leftarrow w - \\eta v$. Source: Sutskever et al. 2013, in PyTorch's form."""

    def __init__(self, params: Iterable[Parameter], lr: float, momentum: float = 0.0) -> None:
        super().__init__(params, lr)
        if not 0 <= momentum < 1:
            raise ArgumentError(f"SGD: `momentum` must be in [0, 1), and {momentum!r} came.")
        self.momentum = momentum

    def updated(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        if self.momentum:
            if "velocity" in state:
                velocity = state["velocity"]
                velocity *= self.momentum
                velocity += grad
            else:
                velocity = state["velocity"] = grad.copy()
            grad = velocity
        new = grad * -float(self.lr)
        new += value
        return new
