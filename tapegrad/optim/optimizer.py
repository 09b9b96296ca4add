"""What every optimizer shares: it rebinds parameters to new arrays, all of them or none.

On a device, whether a gradient is finite is decided there: if one is not, the step leaves values and averages as they
were. The host does not wait to be told; a later step raises the error.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..backend.device import Verdict, device_of, module_beside, moved, on_device, on_host
from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, ShapeError, describe
from ..kernels import choice
from ..types import Array, Shape

HOST: set[type] = {np.ndarray}


class Optimizer:
    """Updates `params`, each a Parameter (or any leaf Variable), from their `.grad`.

    A step gives every parameter another array and never writes into the old one: recordings hold on to it.
    The array before that is used again if nobody has it any more, so an optimizer keeps one spare of each.
    Parameters whose `.grad` is None are left alone. `lr` may be changed between steps. Averages are where their
    parameter is: they follow it to another device.
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
        self._verdict: Verdict | None = None  # of the gradients on a device
        self._kinds: set[type] = HOST  # the libraries whose arrays the gradients of the last step were
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
        kinds = {type(grad) for _, _, grad in live}
        if kinds != self._kinds:  # the parameters have been moved
            self._kinds = kinds
            for i, p in enumerate(self.params):
                self._bring_state(i, p)
        there = [] if kinds == HOST else [each for each in live if on_device(each[2])]
        here = [each for each in live if not on_device(each[2])] if there else live
        for i, p, grad in here:
            require_finite(grad, f"{type(self).__name__}.step", p.name or f"params[{i}]")
        made = self._tried_on_device(there) if there else []
        for i, p, grad in here:
            new = self.room(i, p)
            self.update(new, p._array, grad, self.state[i])
            made.append((i, p, new))
        self.take(made)

    def _tried_on_device(self, live: list[tuple[int, Variable, Any]]) -> list[tuple[int, Variable, Any]]:
        """New values that are the old ones unless all gradients are finite, which the host does not wait to learn."""
        self._raise_if_refused()
        grads = [grad for _, _, grad in live]
        finite = functools.reduce(operator.and_, [np.isfinite(grad).all() for grad in grads])
        if self._verdict is None:
            self._verdict = Verdict(grads[0])
        self._verdict.note(finite)
        made, refused = [], ~finite
        for i, p, grad in live:
            state = self.state[i]
            tried = {name: average.copy() for name, average in state.items()}
            new = module_beside(grad).empty(p.shape, p.dtype)
            self.update(new, p._array, grad, tried)
            np.copyto(new, p._array, where=refused)
            for name, average in tried.items():
                before = state.get(name)
                if on_device(average):
                    np.copyto(average, 0 if before is None else before, where=refused)
            self.state[i] = tried
            made.append((i, p, new))
        return made

    def _bring_state(self, i: int, p: Variable) -> None:
        """Move the averages of the `i`th parameter to where that is; steps are counted on the host."""
        for name, average in self.state[i].items():
            if name != "steps":
                self.state[i][name] = moved(average, device_of(p._array))

    def _raise_if_refused(self) -> None:
        """Raise NonFiniteError if the host knows by now of a step that was not taken."""
        if self._verdict is not None and self._verdict.failed():
            raise NonFiniteError(
                f"{type(self).__name__}.step: a gradient on the device was NaN or infinite, one step ago or a few.\n"
                f"  That step changed nothing. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
            )

    def check(self) -> None:
        """Wait for the device, and raise NonFiniteError if it has refused a step. On the host every step says so itself."""
        if self._verdict is not None:
            self._verdict.wait()
            self._raise_if_refused()

    def to(self, device: Any) -> Optimizer:
        """This optimizer, its running averages moved to `device`. A step moves them to their parameters, too."""
        for state in self.state:
            for name, average in state.items():
                if name != "steps":
                    state[name] = moved(average, device)
        self._kinds = set()
        self._arrays = [(None, None) for _ in self.params]
        return self

    def update(self, new: Array, value: Array, grad: Array, state: dict[str, Array]) -> None:
        """Write the new value of one parameter into `new`; `state` is its own, to be changed in place."""
        raise NotImplementedError

    def room(self, i: int, p: Variable) -> Array:
        """An array for the next value of the `i`th parameter: the one before last if nobody else has it."""
        pair, value = self._arrays[i], p._array
        if unshared(pair) and type(pair[1]) is np.ndarray:
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
        """Copies on the host of the running averages ("0.mean": of the first parameter), the count of steps, the learning rate."""
        averages = {
            f"{i}.{name}": np.array(on_host(v))
            for i, state in enumerate(self.state)
            for name, v in state.items()
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
                on = self.params[int(index)]._array
                state[int(index)][name] = array if name == "steps" else moved(array, device_of(on))
        self._kinds = set()
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
