"""What a Variable refuses because its gradient would be lost in silence, or because its arrays lie apart."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ..backend.device import device_of, on_device, placed
from ..errors import DeviceError, DtypeError, UnsupportedError

# What to call instead of a function that takes elements out of its arguments; `ops/protocols.py` fills it.
INSTEAD: dict[str, str] = {}


def refuse_plain_array(array: Any, differentiated: bool) -> None:
    """Raise if a Variable with this array is not to become a NumPy array by itself."""
    if differentiated:
        name = who_asks()
        instead = f"  Use {INSTEAD[name]}(...) instead.\n" if name in INSTEAD else ""
        raise UnsupportedError(
            (f"{name}: " if name else "")
            + "a differentiated Variable cannot become a plain array: its gradient would be lost in silence.\n"
            + instead
            + "  Use v.value for the bare array, tg.stack([v, ...]) to build an array from Variables,\n"
            "  tg.index_put(y, mask, v) instead of y[mask] = v, and tg.where(mask, v, y) for a v of the shape of y."
        )
    if on_device(array):
        raise DeviceError(
            "a Variable on a device does not become a NumPy array by itself: the host would wait for the device.\n"
            '  Use v.value.get(), or tg.asarray(v, device="cpu").'
        )


def who_asks() -> str:
    """The function of NumPy's or SciPy's that was called and now asks for an array; empty where none is in Python."""
    frame, name = sys._getframe(3), ""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).split("._")[0]
        if module.split(".")[0] not in ("numpy", "scipy"):
            break
        called = frame.f_code.co_name
        if called.startswith("__"):  # a method of an object that is called, as np.vectorize(f)
            called = type(frame.f_locals.get("self")).__name__
        name = f"{module.removesuffix('.lib')}.{called}"
        frame = frame.f_back  # type: ignore[assignment]
    return name


def refuse_plain_number() -> None:
    """Raise if the Python statement that runs now is `... [index] = value`, or if NumPy's own code asks for a number."""
    from opcode import opmap  # here: 1 ms that most programs need not pay

    frame = sys._getframe(2)
    if str(frame.f_globals.get("__name__", "")).startswith(("numpy.", "scipy.")):
        raise UnsupportedError(
            f"{who_asks()}: a differentiated Variable cannot become a plain number: its gradient would be lost in silence.\n"
            f"  Use v.item() if no gradient is wanted."
        )
    if frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == opmap["STORE_SUBSCR"]:
        raise UnsupportedError(
            "a differentiated Variable was assigned to an element of an array: its gradient would be lost in silence.\n"
            "  Use y = tg.index_put(y, index, v), or tg.stack([v, ...]) to build the array;\n"
            "  y[i] = v.value if no gradient is wanted."
        )


def refuse_other_operators(value: np.ndarray[Any, Any], op: str, argument: str) -> None:
    """Raise for an array of a class whose operators mean something else: a masked one, np.matrix, one with units."""
    kind = type(value)
    if kind.__mul__ is not np.ndarray.__mul__ or kind.__array_ufunc__ is not np.ndarray.__array_ufunc__:
        raise DtypeError(
            f"{op}: `{argument}` is a {kind.__module__}.{kind.__name__}, whose operators are not an array's (of masked "
            f"elements, or of matrices).\n"
            f"  Use np.asarray({argument}), with np.where or `where=` for what is masked and @ for products of matrices."
        )


def refuse_moved_leaf(name: str | None, array: Any, ct: Any) -> None:
    """Raise if the gradient `ct` of a leaf lies on another device than its value `array`."""
    if on_device(ct) != on_device(array):
        raise DeviceError(
            f"backward: {name or 'a leaf'} was moved since it was recorded.\n"
            f"  its value: {placed(array)}      its gradient: {placed(ct)}\n"
            f'  Move what the tape keeps with the model: tape.to("{device_of(array)}", carry=state).'
        )
