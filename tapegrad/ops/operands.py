"""What the functions of ops are given, made ready: something that has a shape, its bare elements, an axis counted from 0.

They take what NumPy's functions take: Variables, arrays, lists and numbers. What is wrong is said here in the
name of the function that was called, and of its argument.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..backend.device import put_beside
from ..core.generate import PYTHON_NUMBERS, lift
from ..core.variable import Variable
from ..errors import OutOfRangeError, describe


def arrayed(a: Any) -> Any:
    """`a`, or the array of a list or a number: something that has a shape, of any dtype."""
    return a if hasattr(a, "shape") else np.asarray(a)


def as_array(a: Any, op: str, argument: str = "a", beside: Any = ()) -> Any:
    """`a` as a Variable or a real array; numbers and lists go where `beside` are. Raises DtypeError for anything else."""
    if isinstance(a, Variable):
        return a
    if beside and isinstance(a, list | tuple):
        return lift(put_beside(lift(a, op, argument), beside), op, argument)
    return lift(put_beside(a, beside) if type(a) in PYTHON_NUMBERS else a, op, argument)


def value_of(a: Any) -> Any:
    """The elements of `a`, for what is constant by nature: an order, a mask, a position."""
    return a._array if isinstance(a, Variable) else a


def constant_like(a: Any, other: Any) -> Any:
    """`a`, in the dtype of `other` where it is a constant of integers: those would widen float32."""
    whole = not isinstance(a, Variable) and a.dtype.kind != "f" and other.dtype.kind == "f"
    return a.astype(other.dtype) if whole else a


def axis_of(a: Any, axis: int, op: str, argument: str = "a") -> int:
    """`axis` counted from 0. Raises OutOfRangeError where `a` has no such axis."""
    if not -a.ndim <= operator.index(axis) < a.ndim:
        raise OutOfRangeError(f"{op}: `{argument}` has no axis {axis}.\n  {argument}: {describe(a)}")
    return int(axis % a.ndim)
