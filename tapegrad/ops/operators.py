"""Gives Variable its operators, its indexing and the methods that an array has."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.variable import Variable
from . import elementwise as e
from .index import getitem, take
from .linalg import matmul
from .reduce import max, mean, min, sum
from .shape import matrix_transpose, ravel, reshape, squeeze, transpose, unstack


def reflected(op: Any) -> Any:
    """`op` with its operands exchanged, for number + Variable."""
    return lambda self, other: op(other, self)


def raise_to(self: Any, exponent: Any) -> Any:
    """`self ** exponent`; a square is a multiplication."""
    return e.square(self) if type(exponent) in (int, float) and exponent == 2 else e.power(self, exponent)


def compared(op: Any) -> Any:
    """`op` as == or !=, which Python also asks about None, strings and whatever else."""
    numbers = (Variable, np.ndarray, np.generic, float, int, list, tuple)
    return lambda self, other: op(self, other) if isinstance(other, numbers) else NotImplemented


def reshape_method(self: Any, *shape: Any) -> Any:
    """The elements in another shape: v.reshape(2, 3) or v.reshape((2, 3))."""
    return reshape(self, shape[0] if len(shape) == 1 else shape)


def transpose_method(self: Any, *axes: Any) -> Any:
    """The axes in another order: v.transpose(), v.transpose(1, 0) or v.transpose((1, 0))."""
    return transpose(self, (axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes) or None)


def rows(self: Any) -> Any:
    """The slices along the first axis, recorded as one op."""
    return iter(unstack(self) if len(self) else ())


METHODS = {
    "__iter__": rows,
    "__add__": e.add,
    "__radd__": reflected(e.add),
    "__sub__": e.subtract,
    "__rsub__": reflected(e.subtract),
    "__mul__": e.multiply,
    "__rmul__": reflected(e.multiply),
    "__truediv__": e.divide,
    "__rtruediv__": reflected(e.divide),
    "__pow__": raise_to,
    "__rpow__": reflected(e.power),
    "__matmul__": matmul,
    "__rmatmul__": reflected(matmul),
    "__neg__": e.negative,
    "__pos__": e.positive,
    "__abs__": e.absolute,
    "__eq__": compared(e.equal),
    "__ne__": compared(e.not_equal),
    "__lt__": e.less,
    "__le__": e.less_equal,
    "__gt__": e.greater,
    "__ge__": e.greater_equal,
    "__getitem__": getitem,
    "astype": e.astype,
    "clip": e.clip,
    "max": max,
    "mean": mean,
    "min": min,
    "ravel": ravel,
    "reshape": reshape_method,
    "squeeze": squeeze,
    "sum": sum,
    "take": take,
    "transpose": transpose_method,
    "T": property(transpose),
    "mT": property(matrix_transpose),
}

for name, method in METHODS.items():
    setattr(Variable, name, method)
