"""What every optimizer shares: it rebinds parameters to new arrays, all of them or none.

On a device, whether a gradient is finite is decided there: if one is not, the step leaves values and averages as they
were. The host does not wait to be told; a later step raises the error. Averages are written in place there, so that a
CUDA graph can repeat a step.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ..backend import capture
from ..backend.device import device_of, module_beside, moved, on_device, on_host
from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, ShapeError, describe
from ..kernels import choice, cpu
from ..types import Array, Shape
from .numbers import Numbers

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
        self._counted = 0  # steps that the host knows of
        self._numbers: Numbers | None = None  # where gradients lie on a device
        self._kinds: set[type] = HOST  # the libraries whose arrays the gradients of the last step were
        # The array that each parameter was given last, and the one before: see `room`.
        self._arrays: list[tuple[Array | None, Array | None]] = [(None, None) for _ in self.params]

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        if lr != getattr(self, "_lr", lr):
            capture.refuse(
                "a change of the learning rate",
                "a graph repeats what the device does, and nothing of Python",
                "Change it between two calls of the captured function: it is read before each launch.",
            )
        self._lr = lr

    @property
    def steps(self) -> int:
        """How many steps were taken; waits for the device if there was one there."""
        return self._counted + (0 if self._numbers is None else self._numbers.taken())

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
            self._bring_states([device_of(p._array) for p in self.params], self.state)
        there = [] if kinds == HOST else [each for each in live if on_device(each[2])]
        here = [each for each in live if not on_device(each[2])] if there else live
        for i, p, grad in here:
            require_finite(grad, f"{type(self).__name__}.step", p.name or f"params[{i}]")
        made = self._made_on_device(there) if there else []
        for i, p, grad in here:
            new = self.room(i, p)
            self.update(new, p._array, grad, self.state[i])
            made.append((i, p, new))
        self.take(made, counted=not there)

    # -- on a device ---------------------------------------------------------------------------------------

    def _made_on_device(self, live: list[tuple[int, Variable, Any]]) -> list[tuple[int, Variable, Any]]:
        """New values that are the old ones unless all gradients are finite, which the host does not wait to learn."""
        self._raise_if_refused()
        grads = [grad for _, _, grad in live]
        numbers, groups = self._numbers_beside(grads[0]), by_dtype(live)
        kernels = all(served([grad, p._array]) for (_, p, grad), *_ in groups)
        if kernels:
            where = choice.beside(grads[0])
            where.approve(numbers.agreed, numbers.earlier)
            for group in groups:
                where.disapprove([where.in_order(grad, grad.dtype) for _, _, grad in group], numbers.agreed)
        else:
            np.add(numbers.earlier, numbers.agreed, out=numbers.earlier)
            finite = functools.reduce(operator.and_, [np.isfinite(grad).all() for grad in grads])
            np.copyto(numbers.agreed, finite)
        numbers.verdict.note(numbers.finite)
        made = [
            (i, p, new)
            for group in groups
            for (i, p, _), new in zip(
                group, self.update_on_device(group, numbers, kernels=kernels), strict=True
            )
        ]
        self._tell_capture(numbers, live)
        return made

    def _numbers_beside(self, grad: Any) -> Numbers:
        """The numbers on the device of `grad`, the learning rate as it is now."""
        lr, numbers = float(self.lr), self._numbers
        if numbers is None or numbers.device != grad.device.id:
            self._counted = self.steps
            numbers = self._numbers = Numbers(grad, lr)
        numbers.push(lr)
        return numbers

    def push_lr(self) -> None:
        """Tell the device of a learning rate that has changed. A step does so itself; before a launch somebody must."""
        if self._numbers is not None:
            self._numbers.push(float(self.lr))

    def _settings(self) -> dict[str, Any]:
        """What is written into a graph: the numbers that this optimizer was given, but for the learning rate."""
        kinds = (int, float, bool, str, tuple, type(None))
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, kinds) and name != "lr" and not name.startswith("_")
        }

    def _before_launch(self, settings: dict[str, Any]) -> None:
        """Tell the device of another learning rate. Raises NotSteady if anything else was set."""
        if self._settings() != settings:
            raise capture.NotSteady(f"a setting of {type(self).__name__} has changed")
        self.push_lr()

    def _tell_capture(self, numbers: Numbers, live: list[tuple[int, Variable, Any]]) -> None:
        """Name what this step has written in place, and what has to be done before a graph repeats it."""
        step = capture.now()
        if step is not None:
            kept = [array for i, _, _ in live for array in self.state[i].values() if on_device(array)]
            capture.writes(numbers.counts, *kept)
            step.before[id(self)] = functools.partial(self._before_launch, self._settings())
            step.numbers |= {id(array): array for array in numbers.arrays()}

    def update_on_device(self, live: list[Any], numbers: Numbers, *, kernels: bool) -> list[Array]:
        """New values for `live`, (number, parameter, gradient) each, all of one dtype on one device.

        Values and averages stay as they are where `numbers.finite` is false. `kernels`: Numba's may be launched. This one
        makes do with `update`, whose numbers are the host's: a graph would repeat them.
        """
        capture.refuse(
            f"a step of {type(self).__name__}",
            "its update() computes with numbers of the host, such as the learning rate",
            "Override update_on_device, as tg.optim.SGD and tg.optim.Adam do.",
        )
        news = []
        for i, p, grad in live:
            tried = {name: average.copy() for name, average in self.state[i].items()}
            new = module_beside(grad).empty(p.shape, p.dtype)
            self.update(new, p._array, grad, tried)
            news.append(self.unless_refused(i, p, new, tried, numbers))
        return news

    def unless_refused(
        self, i: int, p: Variable, new: Array, tried: dict[str, Array], numbers: Numbers
    ) -> Array:
        """`new`, or the old value; and the averages `tried` in the memory of those of the `i`th parameter, or not."""
        np.copyto(new, p._array, where=~numbers.finite)
        for name, average in tried.items():
            if not on_device(average):
                self.state[i][name] = average
            else:
                np.copyto(self.average(i, name, average), average, where=numbers.finite)
        return new

    def average(self, i: int, name: str, like: Array) -> Array:
        """A running average of the `i`th parameter, C-ordered zeros at first; on a device it keeps its memory."""
        state = self.state[i]
        if name not in state:
            with capture.lasting():
                state[name] = np.zeros_like(like, order="C")
        return state[name]

    def clocks(self, live: list[Any]) -> Iterator[tuple[Array, list[Any]]]:
        """Parameters by their count of steps, one array for all that have always stepped together.

        Each comes with those of `live` that it counts for.
        """
        groups: dict[int, list[Any]] = {}
        for each in live:
            groups.setdefault(id(self.state[each[0]].get("steps")), []).append(each)
        for members in groups.values():
            clock = self.state[members[0][0]].get("steps")
            shared = clock is not None and sum(state.get("steps") is clock for state in self.state)
            if clock is None or shared > len(members):
                with capture.lasting():
                    clock = (
                        module_beside(members[0][2]).zeros((), np.int64) if clock is None else clock.copy()
                    )
                for i, _, _ in members:
                    self.state[i]["steps"] = clock
            yield clock, members

    def _in_place(self, i: int, states: list[dict[str, Array]]) -> dict[str, Array]:
        """The averages of the `i`th parameter from `states`; on a device in the memory of those that it has."""
        made = {}
        for name, array in states[i].items():
            now = self.state[i].get(name)
            # A count of several parameters stays one only if the number that comes is of the same ones.
            alike = all(
                (a.get(name) is now) == (b.get(name) is array)
                for a, b in zip(self.state, states, strict=True)
            )
            if now is not None and on_device(now) and on_device(array) and alike:
                np.copyto(now, array)
                array = now
            made[name] = array
        return made

    def _bring_states(self, devices: list[Any], states: list[dict[str, Array]]) -> None:
        """Move the averages of each parameter to its device. What counts for several stays one, or becomes one there."""
        counts: dict[Any, Array] = {}
        for state, device in zip(states, devices, strict=True):
            for name, array in state.items():
                if name != "steps":
                    state[name] = moved(array, device)
                    continue
                key = id(array) if on_device(array) else int(array), str(device)
                if key not in counts or device == "cpu":  # on the host each has its own
                    counts[key] = moved(array, device)
                state[name] = counts[key]

    def _raise_if_refused(self) -> None:
        """Raise NonFiniteError if the host knows by now of a step that was not taken."""
        if self._numbers is not None and self._numbers.verdict.failed():
            raise NonFiniteError(
                f"{type(self).__name__}.step: a gradient on the device was NaN or infinite, one step ago or a few.\n"
                f"  That step changed nothing. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
            )

    def check(self) -> None:
        """Wait for the device, and raise NonFiniteError if it has refused a step. On the host every step says so itself."""
        if self._numbers is not None:
            self._numbers.verdict.wait()
            self._raise_if_refused()

    def to(self, device: Any) -> Optimizer:
        """This optimizer, its running averages moved to `device`. A step moves them to their parameters, too."""
        self._bring_states([device] * len(self.params), self.state)
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

    def take(self, made: list[tuple[int, Variable, Array]], counted: bool = True) -> None:
        """Rebind every parameter to its new array. Steps on a device are counted there."""
        self._counted += counted
        for i, p, new in made:
            ours, _ = self._arrays[i]
            self._arrays[i] = (None, None)
            if type(new) is np.ndarray:
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
                state[int(index)][name] = array
        self._kinds = set()
        self._bring_states([device_of(p._array) for p in self.params], state)
        self.state = [self._in_place(i, state) for i in range(count)]
        self.lr, self._counted = float(saved["lr"]), int(saved["steps"])
        if self._numbers is not None:
            self._numbers.forget()


def by_dtype(live: list[Any]) -> list[list[Any]]:
    """Parameters with their gradients, in lists of one dtype."""
    groups: dict[Any, list[Any]] = {}
    for each in live:
        groups.setdefault((each[1].dtype, each[2].dtype), []).append(each)
    return [*groups.values()]


def served(arrays: list[Array]) -> bool:
    """Whether Numba's kernels compute with these arrays of a device."""
    return choice.beside(*arrays) is not cpu


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
