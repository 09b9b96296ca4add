"""What a check of gradients moves: values in float64, and the places where an op was given them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from .backend.device import on_device
from .core.entry import Entry
from .core.replay import Inputs
from .errors import UnsupportedError
from .types import Array

# Where an op was given a value that is differentiated: its argument, and the position in one that is a sequence.
Place = tuple[str, int | None]


def places(entry: Entry) -> list[Place]:
    """The places of what `entry` differentiates, in the order in which a pull returns its contributions."""
    slots = entry[0].input_slots(entry)
    found: list[Place] = []
    for a in entry[0].live:
        if isinstance(slots[a], tuple):
            found += [(a, i) for i, slot in enumerate(slots[a]) if slot]
        else:
            found.append((a, None))
    return found


def value_at(given: dict[str, Any], place: Place) -> Any:
    a, i = place
    return given[a] if i is None else given[a][i]


def put_at(given: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """`given` with `value` at `place`."""
    a, i = place
    return {**given, a: value if i is None else (*given[a][:i], value, *given[a][i + 1 :])}


def place_name(place: Place) -> str:
    a, i = place
    return a if i is None else f"{a}[{i}]"


def op_name(entry: Entry, inputs: Inputs) -> str:
    """The op in the words of a message: of a function that was recorded as one op, that function."""
    return repr(inputs.statics["call"]) if "call" in inputs.statics else str(entry[0].name)


def of_ones_own(statics: dict[str, Any]) -> dict[str, Any]:
    """`statics` to run an op again: a call of a function notes what it finds, and the recorded one is to stay as it is."""
    return {**statics, "call": copy.copy(statics["call"])} if "call" in statics else statics


def wide(value: Any) -> Any:
    """`value` in float64, if it is floating point; integers and masks as they are."""
    if on_device(value):
        raise UnsupportedError(
            "check_gradients: it computes in float64 on the host, and an array of a device came.\n"
            '  Check a copy of the model there: copy.deepcopy(model).to("cpu").'
        )
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return np.asarray(value, np.float64) if kind == "f" or isinstance(value, float) else value


def scale_of(array: Array) -> Array:
    """The size of each element: how far a step of 1 moves it."""
    size = np.abs(wide(array))
    return np.asarray(np.where(size > 0, size, 1.0))
