"""What a captured step is called with: arrays that each call gives anew, a state, and what stays the same."""

from __future__ import annotations

from typing import Any

from ..backend.capture import NotSteady
from ..backend.device import on_device
from ..core.variable import Variable, result
from ..errors import describe
from ..nest import flat, rebuilt


def array_in(value: Any) -> Any:
    """The array of a Variable, or the value itself."""
    return value._array if isinstance(value, Variable) else value


class Input:
    """An array on the device that each call gives anew: copied to a place of its own."""

    def __init__(self, value: Any, cupy: Any) -> None:
        self.array = array = cupy.empty(value.shape, value.dtype)
        self.given = result(array, 0) if isinstance(value, Variable) else array
        self.shape, self.dtype, self.address, self.nbytes = (
            array.shape,
            array.dtype,
            array.data.ptr,
            array.nbytes,
        )


class State:
    """A Variable on its way from a step to the next: the `at`th thing that a step returns."""

    def __init__(self) -> None:
        self.at = -1


class Arguments:
    """The form of a step's arguments: for each an Input, a State, or the thing itself, which stays the same."""

    def __init__(self, args: Any, kwargs: Any, cupy: Any) -> None:
        self.parts: list[Any] = []
        for value in flat((args, kwargs)):
            if isinstance(value, Variable) and value._slot > 0:
                self.parts.append(State())
            elif on_device(array_in(value)) and getattr(value, "_slot", 0) == 0:
                self.parts.append(Input(value, cupy))
            else:
                self.parts.append(value)
        self.form = rebuilt((args, kwargs), self.parts)
        self.inputs = [part for part in self.parts if type(part) is Input]
        self.states = [part for part in self.parts if type(part) is State]

    def accept(self, args: Any, kwargs: Any, returned: list[Any]) -> list[Any]:
        """The arrays of a call's inputs. Raises NotSteady if it is not like the first; `returned` by the call before."""
        inputs: list[Any] = []
        for part, value in zip(self.parts, along(self.form, (args, kwargs), []), strict=True):
            if type(part) is Input:
                array = value._array if isinstance(value, Variable) else value
                if isinstance(value, Variable) and value._slot:
                    raise NotSteady("a state came where an array did")
                if not on_device(array) or array.shape != part.shape or array.dtype != part.dtype:
                    raise NotSteady(
                        f"{describe(value)} came, and {describe(part.array)} on the device before"
                    )
                inputs.append(array)
            elif type(part) is State:
                if part.at < 0:
                    part.at = next((i for i, other in enumerate(returned) if other is value), -1)
                if not 0 <= part.at < len(returned) or returned[part.at] is not value:
                    raise NotSteady("a state is not what the last call returned")
            elif part is not value and not same(part, value):
                raise NotSteady(
                    f"{describe(value)} came, and {describe(part)} before; only arrays on the device may change"
                )
        return inputs

    def rebuilt(self, returned: list[Any]) -> Any:
        """(args, kwargs) with the inputs' own memory, and the state among `returned`."""
        values = [
            part.given if type(part) is Input else returned[part.at] if type(part) is State else part
            for part in self.parts
        ]
        return rebuilt(self.form, values)


def along(form: Any, nest: Any, found: list[Any]) -> list[Any]:
    """The leaves of `nest`, added to `found` in the order of `form`. Raises NotSteady if it is nested otherwise."""
    if isinstance(form, dict):
        if not isinstance(nest, dict) or nest.keys() != form.keys():
            raise NotSteady("its arguments are nested or named otherwise than before")
        for key, part in form.items():
            along(part, nest[key], found)
    elif isinstance(form, (tuple, list)):
        if not isinstance(nest, (tuple, list)) or len(nest) != len(form):
            raise NotSteady("its arguments are nested otherwise than before")
        for part, value in zip(form, nest, strict=True):
            along(part, value, found)
    elif (form is None) != (nest is None) or isinstance(nest, (dict, tuple, list)):
        raise NotSteady("its arguments are nested otherwise than before")
    elif nest is not None:
        found.append(nest)
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two plain things are equal."""
    return type(a) is type(b) and isinstance(a, (int, float, str, bool)) and a == b
