"""All parameters of a module as one vector, and all their gradients as another (Torch 7's getParameters)."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend.device import moved, zeros_for
from ..core.variable import Parameter
from ..errors import ArgumentError
from ..types import Array


class FlatParameter(Parameter):
    """A vector of which the members' values are consecutive pieces.

    Assigning to its `.value` rebinds every member to a view of the new vector; recordings keep the old
    one. Assigning to a member is seen here too. An optimizer takes it as one parameter.
    """

    __slots__ = ("_members",)

    def __init__(self, members: Sequence[Parameter]) -> None:
        self._members = tuple(members)
        super().__init__(joined(self._members))
        self.rebind(self._array)

    def rebind(self, array: Array) -> None:
        self._array = array
        for member, piece in zip(self._members, pieces(array, self._members), strict=True):
            member._array = piece

    def gather(self) -> None:
        """Take the members' values, after one of them was assigned."""
        self.rebind(joined(self._members))

    def to(self, device: Any) -> None:
        """Move the vectors of values and gradients to `device`, and the members' pieces with them."""
        self.rebind(moved(self._array, device))
        self._grad = moved(self._grad, device)
        for member, piece in zip(self._members, pieces(self._grad, self._members), strict=True):
            member._grad = piece

    def __reduce__(self) -> Any:
        return flattened, (self._members,)


def flatten(members: Sequence[Parameter]) -> tuple[FlatParameter, Array]:
    """One parameter and one gradient vector for `members`, whose `.grad` become views of the latter.

    The same members get the same pair again, as long as somebody holds it.
    """
    dtypes = {member.dtype for member in members}
    if len(dtypes) != 1:
        raise ArgumentError(
            "parameters(flat=True): there must be parameters, all of one dtype.\n  "
            + (", ".join(f"{m.name}: {m.dtype}" for m in members) or "there are none")
        )
    params = next((m.flat() for m in members if m.flat is not None and m.flat() is not None), None)
    if params is None:
        params = FlatParameter(members)
        params._grad = zeros_for(params)
        for member, piece in zip(members, pieces(params._grad, members), strict=True):
            piece[...] = 0 if member.grad is None else member.grad
            member._grad = piece
        for parameter in (*members, params):
            parameter.flat = weakref.ref(params)
    elif not isinstance(params, FlatParameter) or [*map(id, params._members)] != [*map(id, members)]:
        raise ArgumentError(
            "parameters(flat=True): some of these parameters are pieces of another vector already.\n"
            "  Flatten the outermost module once, and use its pair everywhere."
        )
    assert params._grad is not None
    return params, params._grad


def flattened(members: Sequence[Parameter]) -> FlatParameter:
    """The vector of `members`, for copies and pickles of one."""
    return flatten(members)[0]


def joined(members: Sequence[Parameter]) -> Array:
    return np.concatenate([member._array.ravel() for member in members])


def pieces(vector: Array, members: Sequence[Parameter]) -> list[Any]:
    ends = np.cumsum([member.size for member in members])
    return [vector[end - m.size : end].reshape(m.shape) for end, m in zip(ends, members, strict=True)]
