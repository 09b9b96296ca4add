"""Where an array lies: in the host's memory, or on a CUDA device as an array of CuPy.

Nothing moves by itself. What an op makes it makes where its arguments are; arguments that lie apart are an
error that says where each is. Reading an element of a device's array makes the host wait for all that the
device has still to do, so nothing here reads one unless it is asked to.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import ArgumentError, DeviceError, describe
from . import capture

# Arrays on a device that nobody writes to, by id: CuPy has no flag for it.
FROZEN: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def on_device(value: Any) -> bool:
    """Whether `value` is an array of CuPy."""
    cupy = sys.modules.get("cupy")  # an array of it can exist only then
    return cupy is not None and isinstance(value, cupy.ndarray)


def in_use() -> bool:
    """Whether anybody has imported CuPy. Else there is no array of it, and no need to look."""
    return "cupy" in sys.modules


def device_of(array: Any) -> str:
    """The place of an array, as `tg.asarray` takes it: "cpu", "cuda:0"."""
    return f"cuda:{array.device.id}" if on_device(array) else "cpu"


def current_device() -> int:
    """The number of CuPy's current device."""
    return int(sys.modules["cupy"].cuda.runtime.getDevice())


def is_live(value: Any) -> bool:
    """Whether `value` is an array of a function that is compiled now: it has elements, and notes what happens to it."""
    return hasattr(type(value), "elements") and value.namespace is not np


# -- making and moving -------------------------------------------------------------------------------------


def asarray(x: Any, dtype: Any = None, *, device: Any = None) -> Any:
    """`x` as a plain array on `device`: "cpu", "cuda", "cuda:1"; None leaves it where it is.

    Copied only where it has to move or change. Raises DeviceError where there is no such device.
    """
    array = x if on_device(x) else np.asarray(x)
    if dtype is not None and array.dtype != dtype:
        array = array.astype(dtype)
    return array if device is None else moved(array, device)


def moved(array: Any, device: Any) -> Any:
    """`array` on `device`, itself if it is there already."""
    if is_on(array, device):
        return array
    number = device_number(device)
    if number is None:
        return on_host(array)
    cupy = cupy_with_a_device(device)
    with contextlib.nullcontext() if number == -1 else cupy.cuda.Device(number):
        step = capture.now()
        if step is None or on_device(array):
            return cupy.asarray(array)
        return step.number(array)


def is_on(array: Any, device: Any) -> bool:
    """Whether `array` lies on `device` already."""
    number = device_number(device)
    return number in (array.device.id, -1) if on_device(array) else number is None


def device_number(device: Any) -> int | None:
    """None for the host, the number of a CUDA device, or -1 for the one that is current."""
    if isinstance(device, str):
        kind, colon, number = device.partition(":")
        if device == "cpu":
            return None
        if kind == "cuda" and (number.isdecimal() if colon else True):
            return int(number) if colon else -1
    elif hasattr(device, "id"):  # CuPy's own
        return int(device.id)
    raise ArgumentError(f'device: it must be "cpu", "cuda" or "cuda:NUMBER", and {describe(device)} came.')


def cupy_with_a_device(device: Any) -> Any:
    """CuPy, or the error that says what is missing for `device`."""
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        raise DeviceError(
            f"device {device!r}: CuPy computes there, and is not installed.\n  pip install 'tapegrad[cuda13]'"
        ) from error
    if not cupy.cuda.is_available():
        raise DeviceError(
            f"device {device!r}: CuPy finds no CUDA device.\n  python -m tapegrad doctor says what is wrong."
        )
    return cupy


def on_host(array: Any) -> Any:
    """`array` as one of NumPy's; waits for the device if it lies on one."""
    if not on_device(array):
        return array
    capture.refuse(
        f"reading {describe(array)} on the host",
        "the host runs none of the steps that the graph repeats",
        "Return it from the captured function, and read what that returns.",
    )
    return array.get(order="A")


def owned(array: Any, dtype: Any = None) -> Any:
    """A copy of `array` where it lies."""
    if type(array) is np.ndarray or not (on_device(array) or is_live(array)):
        return np.array(array, dtype=dtype)
    return array.copy() if dtype is None else array.astype(dtype)


def zeros_beside(array: Any, shape: Any, dtype: Any) -> Any:
    """Zeros where `array` lies."""
    return module_beside(array).zeros(shape, dtype)


def zeros_for(v: Any) -> Any:
    """Zeros of the shape and dtype of a Variable, where its array lies."""
    return zeros_beside(v._array, v.shape, v.dtype)


def module_beside(*arrays: Any) -> Any:
    """The library that makes arrays where `arrays` are: one on a device decides."""
    if not in_use():
        return np
    return next((sys.modules["cupy"] for array in arrays if on_device(array)), np)


def put_beside(value: Any, *others: Any) -> Any:
    """A number, a list of some, or an array that the host made for an op, such as positions, where `others` are.

    `others`: arrays, Variables or sequences of them.
    """
    xp = module_beside(*flat(others))
    step = None if xp is np else capture.now()
    if step is None or any(map(on_device, flat([value]))):
        return xp.asarray(value)
    return step.constant(value)


def placed_beside(value: Any, array: Any, where: str, what: str) -> Any:
    """`value` where `array` lies: numbers and lists move there, an array that lies elsewhere is an error."""
    if type(value) is type(array) or on_device(value) == on_device(array):
        return value
    if isinstance(value, np.ndarray | np.generic) or on_device(value):
        raise DeviceError(
            f"{where}: the {what} and its Variable must be on one device.\n"
            f"  {what}: {placed(value)}      Variable: {placed(array)}\n"
            f'  Move it: tg.asarray(x, device="{device_of(array)}").'
        )
    return put_beside(value, array)


def flat(values: Any) -> Iterator[Any]:
    """Arrays in a nest of sequences and Variables."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from flat(value)
        else:
            yield getattr(value, "_array", value)


# -- what the host knows ---------------------------------------------------------------------------------------


def surely_all(mask: Any) -> bool:
    """Whether all elements hold, as far as the host knows: of a device's array it knows nothing, and does not ask."""
    return not on_device(mask) and bool(np.all(mask))


def surely_any(mask: Any) -> bool:
    """Whether an element holds, as far as the host knows."""
    return not on_device(mask) and bool(np.any(mask))


class Verdict:
    """Whether something held at every step of a loop, which the host learns some steps later without waiting.

    The device keeps the conjunction of all that it was told. A copy of it is on its way to the host at any time, and is
    looked at when it has arrived.
    """

    def __init__(self, beside: Any) -> None:
        cupy = sys.modules["cupy"]
        with beside.device, capture.lasting():
            self._held = cupy.ones((), bool)
            self._arrival = cupy.cuda.Event(disable_timing=True)
        # Only to memory that the system does not move can a device copy while the host goes on.
        self._copy = import_module("cupyx").empty_pinned((), bool)
        self._under_way = False

    def note(self, held: Any) -> None:
        """Note a 0-d boolean of the device. A captured step notes one at every launch."""
        self._held &= held
        step = capture.now()
        if step is not None and self not in step.verdicts:
            step.verdicts.append(self)

    def failed(self) -> bool:
        """Whether it is known by now that something did not hold. Then it starts again. In a captured step: not known."""
        if capture.now() is not None:
            return False
        if self._under_way and not self._arrival.done:
            return False
        if self._under_way and not self._copy:
            self._under_way = False
            self._held.fill(True)
            return True
        self._held.get(out=self._copy, blocking=False)
        self._arrival.record()
        self._under_way = True
        return False

    def wait(self) -> None:
        """Let the device catch up, so that `failed` knows of everything noted so far."""
        self._held.get(out=self._copy)
        self._under_way = True
        self._arrival.record()
        self._arrival.synchronize()


# -- arrays that stay as they are --------------------------------------------------------------------------


def freeze(array: Any) -> Any:
    """`array`, of which it is known from now on that nobody writes to it: a recording need not copy it.

    Not so on a device while a step is captured: its arguments, and what it makes, are written to by the next one.
    """
    if on_device(array):
        if capture.now() is None:
            FROZEN[id(array)] = array
    elif isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


def frozen_view(array: Any) -> Any:
    """A view of `array` through which nobody writes. What is being compiled is none that could."""
    if is_live(array):
        return array
    return freeze((array if on_device(array) else np.asarray(array)).view())


def is_frozen(array: Any) -> bool:
    """Whether `freeze` was told of this array of a device."""
    return FROZEN.get(id(array)) is array


# -- arrays that lie apart -----------------------------------------------------------------------------------


def refuse_to_mix(op: str, arguments: Mapping[str, Any]) -> None:
    """Raise DeviceError if the arrays among `arguments`, which `op` was given, lie on several devices."""
    given = {name: [a for a in flat([value]) if lies_somewhere(a)] for name, value in arguments.items()}
    places = [device_of(array) for arrays in given.values() for array in arrays]
    if len(set(places)) < 2:
        return
    shown = "      ".join(
        f"{name}: {', '.join(map(placed, arrays))}" for name, arrays in given.items() if arrays
    )
    there = next(place for place in places if place != "cpu")
    raise DeviceError(
        f"{op}: the arguments must be on one device.\n  {shown}\n"
        f'  Move one: tg.asarray(x, device="{there}"), model.to("{there}"), or tape.to("{there}", carry=state).'
    )


def lies_somewhere(value: Any) -> bool:
    """Whether `value` is an array, not a number: those go everywhere."""
    return isinstance(value, np.ndarray) or on_device(value)


def placed(array: Any) -> str:
    """An array in the words of an error message, with its device."""
    return f"{describe(array)} on {device_of(array)}"
