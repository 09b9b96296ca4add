"""What every optimizer shares: it rebinds parameters to new arrays, all of them or none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, ShapeError, describe
from ..types import Array


class Optimizer:
    """Updates `params`, each a Parameter (or any leaf Variable), from their `.grad`.

    A step gives every parameter a new array and never writes into the old one: recordings hold on to it.
    Parameters whose `.grad` is None are left alone. `lr` may be changed between steps.
    """

    def __init__(self, params: Iterable[Parameter], lr: float) -> None:
        name = type(self).__name__
        if not isinstance(params, Iterable):
            raise ArgumentError(
                f"{name}: `params` must be a list of Parameters, and {describe(params)} came."
            )
        self.params = [params] if isinstance(params, Variable) else list(params)
        for p in self.params:
            if not isinstance(p, Variable) or p._slot >= 0:
                raise ArgumentError(
                    f"{type(self).__name__}: `params` must be Parameters, and {describe(p)} came.\n"
                    f"  Pass module.parameters()."
                )
        if not self.params:
            raise ArgumentError(f"{type(self).__name__}: `params` is empty. Pass module.parameters().")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ArgumentError(f"{name}: `params` holds a Parameter twice, which would be updated twice.")
        listed = {id(p) for p in self.params}
        for p in self.params:
            vector = p.flat() if isinstance(p, Parameter) and p.flat is not None else None
            if vector is not None and vector is not p and id(vector) in listed:
                raise ArgumentError(f"{name}: `params` holds a vector and {p.name}, which is a piece of it.")
        require_number(lr, name, "lr")
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
                p.rebind(np.asarray(self.updated(p.value, p.grad, state), p.dtype))

    def updated(self, value: Array, grad: Array, state: dict[str, Array]) -> Array:
        """The new value of one parameter, a fresh array; `state` is its own, to be changed in place."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Copies of the running averages ("0.mean": of the first parameter), the count of steps, the learning rate."""
        averages = {
            f"{i}.{name}": v.copy() for i, state in enumerate(self.state) for name, v in state.items()
        }
        return {**averages, "steps": self.steps, "lr": self.lr, "parameters": len(self.params)}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, with the same parameters in the same order."""
        count = int(saved.get("parameters", 0))
        if count != len(self.params):
            raise ArgumentError(
                f"{type(self).__name__}.load_state_dict: {len(self.params)} parameters here, {count} there."
            )
        state: list[dict[str, Array]] = [{} for _ in self.params]
        for key, value in saved.items():
            index, dot, name = key.partition(".")
            if dot:
                array = np.array(value)
                if array.shape not in ((), self.params[int(index)].shape):
                    raise ShapeError(
                        f"{type(self).__name__}.load_state_dict: `{key}` is {describe(array)}, "
                        f"and its parameter {describe(self.params[int(index)])}."
                    )
                state[int(index)][name] = array
        self.state, self.steps, self.lr = state, int(saved["steps"]), float(saved["lr"])


def require_number(value: Any, where: str, name: str, least: float = 0.0) -> None:
    """Raise unless `value` is a real number of at least `least`."""
    if not isinstance(value, (int, float, np.floating)) or not value >= least:
        raise ArgumentError(f"{where}: `{name}` must be at least {least:g}, and {value!r} came.")


def require_finite(grad: Array, where: str, name: str) -> None:
    """Raise if `grad` holds a NaN or an infinity. A finite sum proves the usual case in one pass."""
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(np.sum(grad)) or np.isfinite(grad).all():
            return
    bad = int(np.size(grad) - np.isfinite(grad).sum())
    raise NonFiniteError(
        f"{where}: the gradient of `{name}` has {bad} of {np.size(grad)} elements that are NaN or infinite.\n"
        f"  Nothing was updated. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
    )
