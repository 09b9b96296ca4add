"""What every optimizer shares: it rebinds parameters to new arrays, all of them or none."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, ShapeError, describe
from ..kernels import choice
from ..types import Array, Shape


class Optimizer:
    """Updates `params`, each a Parameter (or any leaf Variable), from their `.grad`.

    A step gives every parameter another array and never writes into the old one: recordings hold on to it.
    The array before that is used again if nobody has it any more, so an optimizer keeps one spare of each.
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
        # The array that each parameter was given last, and the one before: see `room`.
        self._arrays: list[tuple[Array | None, Array | None]] = [(None, None) for _ in self.params]

    def zero_grad(self) -> None:
        """Forget the gradients, so that the next sweep starts new ones."""
        for p in self.params:
            grad = p.grad if isinstance(p, Parameter) and p.flat is not None else None
            if grad is None:
                p.grad = None
            else:  # a vector's, which its pieces share
                grad.fill(0)

    def step(self) -> None:
        """Update every parameter. Raises NonFiniteError, and changes nothing, if a gradient is NaN or infinite."""
        live = [(i, p, p.grad) for i, p in enumerate(self.params) if p.grad is not None]
        for i, p, grad in live:
            require_finite(grad, f"{type(self).__name__}.step", p.name or f"params[{i}]")
        made = []
        for i, p, grad in live:
            new = self.room(i, p)
            self.update(new, p._array, grad, self.state[i])
            made.append((i, p, new))
        self.take(made)

    def update(self, new: Array, value: Array, grad: Array, state: dict[str, Array]) -> None:
        """Write the new value of one parameter into `new`; `state` is its own, to be changed in place."""
        raise NotImplementedError

    def room(self, i: int, p: Variable) -> Array:
        """An array for the next value of the `i`th parameter: the one before last if nobody else has it."""
        pair, value = self._arrays[i], p._array
        if unshared(pair):
            spare = pair[1]
            assert spare is not None
            spare.flags.writeable = True  # a user who looked at it has made it read-only
            return spare
        return aligned(value.shape, value.dtype)

    def take(self, made: list[tuple[int, Variable, Array]]) -> None:
        """Rebind every parameter to its new array."""
        self.steps += 1
        for i, p, new in made:
            ours, _ = self._arrays[i]
            self._arrays[i] = (new, ours if p._array is ours else None)
            p.rebind(new)

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
                array = np.array(value, order="C")
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
    """Raise if `grad` holds a NaN or an infinity."""
    if choice.finite(grad):
        return
    bad = int(np.size(grad) - np.isfinite(grad).sum())
    raise NonFiniteError(
        f"{where}: the gradient of `{name}` has {bad} of {np.size(grad)} elements that are NaN or infinite.\n"
        f"  Nothing was updated. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
    )


def aligned(shape: Shape, dtype: Any) -> Array:
    """An empty array; a large one begins on a 64-byte border, where reading weights takes up to a fifth less time."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < 4096:
        return np.empty(shape, dtype)
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    laid: Array = raw[start : start + nbytes].view(dtype).reshape(shape)
    return laid


def unshared(pair: tuple[Array | None, Array | None]) -> bool:
    """Whether there is a second array in `pair`, and nothing but `pair` can reach it or its memory."""
    if pair[1] is None or not COUNTS_REFERENCES or sys.getrefcount(pair[1]) > ALONE:
        return False
    return pair[1].base is None or sys.getrefcount(pair[1].base) <= BASE_ALONE


def alone(p: Variable) -> bool:
    """Whether nobody but `p` has its array, or can reach its memory: then it may be written to."""
    array = p._array
    if not COUNTS_REFERENCES or not array.flags.writeable or sys.getrefcount(array) > HELD:
        return False
    return array.base is None or sys.getrefcount(array.base) <= BASE_ALONE


# Python may count what is on its own stack or not; so these are what it says of arrays that nothing else has.
# Without a global lock another thread may be about to take a reference.
COUNTS_REFERENCES = hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)()
SAMPLE = (None, np.empty(8)[2:])
ALONE = sys.getrefcount(SAMPLE[1]) if COUNTS_REFERENCES else 0
BASE_ALONE = sys.getrefcount(SAMPLE[1].base) if COUNTS_REFERENCES else 0


def references() -> int:
    """What Python counts for an array that only a Variable has, as `alone` asks."""
    p = Variable(np.empty(0))
    array = p._array
    return sys.getrefcount(array)


HELD = references() if COUNTS_REFERENCES else 0
