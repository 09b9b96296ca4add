"""What every optimizer shares: it rebinds parameters to new arrays, all of them or none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, describe
from ..types import Array


class Optimizer:
    """Updates `params`, each a Parameter (or any leaf Variable), from their `.grad`.

    A step gives every parameter a new array and never writes into the old one: recordings hold on to it.
    Parameters whose `.grad` is None are left alone. `lr` may be changed between steps.
    """

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
        self.params = [params] if isinstance(params, Variable) else list(params)
        for p in self.params:
            if not isinstance(p, Variable) or p._slot >= 0:
                raise ArgumentError(
                    f"{type(self).__name__}: `params` must be Parameters, and {describe(p)} came.\n"
                    f"  Pass module.parameters()."
                )
        if not self.params:
            raise ArgumentError(f"{type(self).__name__}: `params` is empty. Pass module.parameters().")
        if not lr >= 0:
            raise ArgumentError(f"{type(self).__name__}: `lr` must be at least 0, and {lr!r} came.")
        self.lr = lr
        self.state: list[dict[str, Array]] = [{} for _ in self.params]
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients, so that the next sweep starts new ones."""
        for p in self.params:
            p.grad = None

    def step(self) -> None:
        """Update every parameter. Raises NonFiniteError, and changes nothing, if a gradient is NaN or infinite."""
        for i, p in enumerate(self.params):
            if p.grad is not None:
                require_finite(p.grad, f"{type(self).__name__}.step", p.name or f"params[{i}]")
        self.steps += 1
        for p, state in zip(self.params, self.state, strict=True):
            if p.grad is not None:
                p.rebind(self.updated(p.value, p.grad, state))

    def updated(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        """The new value of one parameter, a fresh array; `state` is its own, to be changed in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Copies of the running averages, the count of steps and the learning rate."""
        state = [{k: v.copy() for k, v in s.items()} for s in self.state]
        return {"state": state, "steps": self.steps, "lr": self.lr}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken, with the same parameters in the same order."""
        if len(saved["state"]) != len(self.params):
            raise ArgumentError(
                f"{type(self).__name__}.load_state_dict: {len(self.params)} parameters here, {len(saved['state'])} there."
            )
        self.state = [{k: np.array(v) for k, v in s.items()} for s in saved["state"]]
        self.steps, self.lr = saved["steps"], saved["lr"]


def require_finite(grad: Array, where: str, name: str) -> None:
    """Raise if `grad` holds a NaN or an infinity. A finite sum proves the usual case in one pass."""
    if math.isfinite(np.sum(grad)) or np.isfinite(grad).all():
        return
    bad = int(np.size(grad) - np.isfinite(grad).sum())
    raise NonFiniteError(
        f"{where}: the gradient of `{name}` has {bad} of {np.size(grad)} elements that are NaN or infinite.\n"
        f"  Nothing was updated. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
    )
