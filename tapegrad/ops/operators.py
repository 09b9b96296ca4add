"""Gives Variable its operators, its indexing and the methods that an array has.

A method means what it means on an ndarray, parameters included; one that would write into the array raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.variable import Variable
from ..errors import UnsupportedError
from . import elementwise as e
from . import names
from .dispatch import refuse_others
from .index import getitem
from .linalg import matmul
from .reduce import max, mean, min, sum
from .shape import matrix_transpose, ravel, reshape, squeeze, swapaxes, transpose, unstack
from .transfer import asarray

Method = Callable[..., Any]


# -- operators ---------------------------------------------------------------------------------------


def reflected(op: Method) -> Method:
    """`op` with its operands exchanged, for number + Variable."""
    return lambda self, other: op(other, self)


def raise_to(self: Any, exponent: Any) -> Any:
    """`self ** exponent`; a square is a multiplication."""
    return e.square(self) if type(exponent) in (int, float) and exponent == 2 else e.power(self, exponent)


def compared(op: Method) -> Method:
    """`op` as == or !=, which Python also asks about None, strings and whatever else."""
    numbers = (Variable, np.ndarray, np.generic, float, int, list, tuple)
    return lambda self, other: (
        op(self, other) if isinstance(other, numbers) or on_device(other) else NotImplemented
    )


def late(name: str) -> Method:
    """The op `name`, whose module is imported when the operator is first used."""
    found: list[Method] = []

    def operator(a: Any, b: Any) -> Any:
        if not found:
            found.append(names.function_at(names.PUBLIC[name]))
        return found[0](a, b)

    return operator


def rows(self: Any) -> Any:
    """The slices along the first axis, recorded as one op."""
    return iter(unstack(self) if len(self) else ())


def contains(self: Any, value: Any) -> bool:
    """Whether an element equals `value`."""
    return bool(np.any(e.equal(self, value)))


# -- methods -----------------------------------------------------------------------------------------


def folding(op: Method, function: Any) -> Method:
    """A method that folds axes away; `function` is NumPy's, for the parameters that `op` does not have."""

    def with_dtype(
        self: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False, **others: Any
    ) -> Any:
        if dtype is None and out is None and not others:
            return op(self, axis, keepdims)
        return function(self, axis, dtype, out, keepdims, **others)

    def without(self: Any, axis: Any = None, out: Any = None, keepdims: bool = False, **others: Any) -> Any:
        if out is None and not others:
            return op(self, axis, keepdims)
        return function(self, axis, out, keepdims, **others)

    return with_dtype if op in (sum, mean) else without


def through_numpy(function: Any) -> Method:
    """The method that does what NumPy's function of this name does; see `protocols.py`."""
    return lambda self, *args, **kwargs: function(self, *args, **kwargs)


def reshape_method(self: Any, *shape: Any, order: str = "C", copy: bool | None = None) -> Any:
    """The elements in another shape: v.reshape(2, 3) or v.reshape((2, 3))."""
    return reshape(self, shape[0] if len(shape) == 1 else shape, order)


def transpose_method(self: Any, *axes: Any) -> Any:
    """The axes in another order: v.transpose(), v.transpose(1, 0) or v.transpose((1, 0))."""
    return transpose(self, (axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes) or None)


def astype_method(
    self: Any, dtype: Any, order: str = "K", casting: Any = "unsafe", subok: bool = True, copy: bool = True
) -> Any:
    """The elements in another floating-point dtype."""
    refuse_others("astype", order=(order, "K"), subok=(subok, True), copy=(copy, True))
    if not np.can_cast(self.dtype, dtype, casting):
        raise UnsupportedError(
            f"astype: the casting {casting!r} does not allow {np.dtype(dtype)} for {self.dtype}. Leave it out."
        )
    return e.astype(self, dtype)


def clip_method(self: Any, min: Any = None, max: Any = None, out: Any = None) -> Any:
    """The elements limited to `min` … `max`; None is no limit."""
    return np.clip(self, min, max, out)


def tolist(self: Any) -> Any:
    """The values as Python numbers, in nested lists."""
    return self._array.tolist()


def to_device(self: Any, device: Any, *, stream: Any = None) -> Any:
    """This Variable on `device`, "cpu" or "cuda"; see `tg.asarray`."""
    refuse_others("to_device", stream=(stream, None))
    return asarray(self, device=device)


# What to do instead of a method of an ndarray that writes into it.
WRITES = {
    "byteswap": "v.value.byteswap()",
    "fill": "v.value = np.full(v.shape, x) on a leaf, or np.full_like(v, x)",
    "itemset": "tg.index_put(v, index, x)",
    "partition": "np.partition(v, kth), which returns a new one",
    "put": "tg.index_put(v, index, x)",
    "resize": "np.resize(v, shape), which returns a new one",
    "setfield": "tg.index_put(v, index, x)",
    "setflags": "v.value.copy(), a plain array of your own",
    "sort": "np.sort(v), which returns a new one",
}


def refused(name: str, instead: str) -> Method:
    """A method that would write into the array."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            f"{name}: a Variable is never written into: recordings share its array.\n  Use {instead}."
        )

    return method


METHODS: dict[str, Any] = {
    "__iter__": rows,
    "__contains__": contains,
    "__add__": e.add,
    "__radd__": reflected(e.add),
    "__sub__": e.subtract,
    "__rsub__": reflected(e.subtract),
    "__mul__": e.multiply,
    "__rmul__": reflected(e.multiply),
    "__truediv__": e.divide,
    "__rtruediv__": reflected(e.divide),
    "__mod__": late("remainder"),
    "__rmod__": reflected(late("remainder")),
    "__floordiv__": late("floor_divide"),
    "__rfloordiv__": reflected(late("floor_divide")),
    "__divmod__": late("divmod"),
    "__rdivmod__": reflected(late("divmod")),
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
    "astype": astype_method,
    "clip": clip_method,
    "flatten": ravel,
    "max": folding(max, np.max),
    "mean": folding(mean, np.mean),
    "min": folding(min, np.min),
    "ravel": ravel,
    "reshape": reshape_method,
    "squeeze": squeeze,
    "sum": folding(sum, np.sum),
    "swapaxes": swapaxes,
    "to_device": to_device,
    "tolist": tolist,
    "transpose": transpose_method,
    "T": property(transpose),
    "mT": property(matrix_transpose),
    "flat": property(ravel),
    "real": property(lambda self: self),
    "imag": property(lambda self: np.zeros_like(self._array)),
    "nbytes": property(lambda self: self._array.nbytes),
    "itemsize": property(lambda self: self._array.itemsize),
    "compress": lambda self, condition, *args, **kwargs: np.compress(condition, self, *args, **kwargs),
    **{
        name: through_numpy(getattr(np, name))
        for name in (
            "all", "any", "argmax", "argmin", "argpartition", "argsort", "conj", "conjugate", "copy", "cumprod",
            "cumsum", "diagonal", "dot", "nonzero", "prod", "repeat", "round", "searchsorted", "std", "take", "trace", "var",
        )
    },
    **{name: refused(name, instead) for name, instead in WRITES.items()},
}  # fmt: skip

for name, method in METHODS.items():
    setattr(Variable, name, method)
