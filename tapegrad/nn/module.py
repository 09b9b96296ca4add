"""Modules: named trees of parameters with a `forward`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..backend.device import moved, on_host
from ..core.floating import floating
from ..core.move import move_leaf
from ..core.variable import Parameter
from ..errors import ArgumentError, ShapeError, describe
from ..types import Array
from .flat import FlatParameter, flatten


class Module:
    """Owns parameters and other modules (as attributes, or in lists, tuples and dicts), and has a `forward`.

    Calling a module is calling its `forward`; one module may be called at every step of a loop, and the
    gradients of all its uses add up in its parameters.
    """

    def forward(self, *inputs: Any) -> Any:
        """What the module computes."""
        raise TypeError(f"{type(self).__name__} has no forward. Define forward(self, ...) in the class.")

    def __call__(self, *inputs: Any) -> Any:
        return self.forward(*inputs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        for path, parameter in walk(name, value, set()):
            if parameter.name is None or path.endswith("." + parameter.name):  # keep a name that a user chose
                parameter.name = path

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path ("cell.w_x"), in the order of definition; a shared one once."""
        seen: set[int] = set()
        for name, parameter in walk("", self, set()):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parameters(self, flat: bool = False) -> Any:
        """The parameters as a list; with `flat=True` as `(params, grads)`, one vector each.

        `grads` is an array into which every later `backward` adds; `params` is a Parameter:
        assign `params.value = params.value - lr * grads` to update all. Needs a single dtype.
        """
        members = [parameter for _, parameter in self.named_parameters()]
        return flatten(members) if flat else members

    def to(self, device: Any) -> Module:
        """This module, its parameters and their gradients moved to `device`: "cpu", "cuda", "cuda:1".

        They are the same leaves there. A window that was recorded before moves by `tape.to(device, carry=state)`.
        """
        for parameter in self.parameters():
            vector = parameter.flat() if parameter.flat is not None else None
            if vector is None:
                move_leaf(parameter, device)
            else:
                vector.to(device)
        return self

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Array]:
        """Copies of the parameters' values by path, on the host."""
        return {name: np.array(on_host(parameter._array)) for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values of `state_dict`, each to the device of its parameter.

        Raises, and changes nothing, unless names and shapes all fit.
        """
        own = dict(self.named_parameters())
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        if missing or unknown:
            raise ArgumentError(
                f"{type(self).__name__}.load_state_dict: names differ.\n  missing: {missing}      unknown: {unknown}"
            )
        arrays = {
            name: floating(state[name], f"load_state_dict: {name}", dtype=p.dtype) for name, p in own.items()
        }
        for name, parameter in own.items():
            if arrays[name].shape != parameter.shape:
                raise ShapeError(
                    f"{type(self).__name__}.load_state_dict: `{name}` has another shape.\n"
                    f"  here: {describe(parameter)}      there: {describe(arrays[name])}"
                )
        for name, parameter in own.items():
            parameter.value = moved(arrays[name], parameter.device)

    def __repr__(self) -> str:
        lines = [f"  {name}: {describe(parameter)}" for name, parameter in self.named_parameters()]
        return f"{type(self).__name__}(" + ("\n" + "\n".join(lines) + "\n" if lines else "") + ")"


def walk(path: str, owner: Any, met: set[int]) -> Iterator[tuple[str, Parameter]]:
    """Parameters below `owner`, depth first, with their paths; each module and container once."""
    if isinstance(owner, FlatParameter):  # a view of others, not one more
        return
    if isinstance(owner, Parameter):
        yield path, owner
        return
    if not isinstance(owner, Module | Mapping | list | tuple) or id(owner) in met:
        return
    met.add(id(owner))
    if isinstance(owner, Module | Mapping):
        for name, child in (owner if isinstance(owner, Mapping) else vars(owner)).items():
            yield from walk(f"{path}.{name}" if path else str(name), child, met)
    else:
        for i, child in enumerate(owner):
            yield from walk(f"{path}.{i}" if path else str(i), child, met)
