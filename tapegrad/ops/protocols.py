"""NumPy's own functions on Variables: `np.tanh(v)`, `np.sum(v, axis=0)` and `array @ v` record.

NumPy asks `__array_ufunc__` (NEP 13) and `__array_function__` (NEP 18) before it touches a Variable. A
function in the tables is recorded, or is constant by nature and returns a plain array. Any other is
refused by name: it never returns an array that has quietly lost its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..core.variable import Variable
from ..errors import UnsupportedError
from . import elementwise as e
from . import index, linalg, reduce, shape

UFUNCS: dict[Any, Callable[..., Any]] = {
    np.add: e.add,
    np.subtract: e.subtract,
    np.multiply: e.multiply,
    np.divide: e.divide,
    np.power: e.power,
    np.negative: e.negative,
    np.positive: e.positive,
    np.absolute: e.absolute,
    np.fabs: e.absolute,
    np.square: e.square,
    np.sqrt: e.sqrt,
    np.exp: e.exp,
    np.expm1: e.expm1,
    np.log: e.log,
    np.log1p: e.log1p,
    np.sin: e.sin,
    np.cos: e.cos,
    np.tanh: e.tanh,
    np.maximum: e.maximum,
    np.minimum: e.minimum,
    np.matmul: linalg.matmul,
}

REDUCTIONS = {np.add: reduce.sum, np.maximum: reduce.max, np.minimum: reduce.min}

CONSTANT_UFUNCS = {
    np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal,
    np.sign, np.signbit, np.isnan, np.isfinite, np.isinf,
    np.logical_and, np.logical_or, np.logical_not, np.logical_xor,
    np.floor, np.ceil, np.rint, np.trunc,
}  # fmt: skip

CONSTANT_FUNCTIONS = {
    np.shape, np.ndim, np.size, np.result_type,
    np.zeros_like, np.ones_like, np.empty_like, np.full_like,
    np.argmax, np.argmin, np.argsort, np.nonzero, np.count_nonzero, np.any, np.all,
    np.allclose, np.isclose, np.array_equal, np.array_repr, np.array_str, np.array2string,
}  # fmt: skip


def transpose_pair(a: Any, axis1: int, axis2: int) -> Any:
    order = list(range(a.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return shape.transpose(a, tuple(order))


def take_flat(a: Any, indices: Any, axis: int | None = None) -> Any:
    return index.take(shape.ravel(a), indices, 0) if axis is None else index.take(a, indices, axis)


def concatenate(arrays: Any, axis: int | None = 0) -> Any:
    return shape.concat([shape.ravel(a) for a in arrays], 0) if axis is None else shape.concat(arrays, axis)


def dot(a: Any, b: Any) -> Any:
    if np.ndim(a) == 0 or np.ndim(b) == 0:
        return e.multiply(a, b)
    if np.ndim(a) > 2 or np.ndim(b) > 2:
        raise UnsupportedError("numpy.dot: stacks of matrices are not recorded. Use tg.matmul.")
    return linalg.matmul(a, b)


def where(condition: Any, *choices: Any) -> Any:
    if len(choices) != 2:
        return np.where(bare(condition), *choices)
    return e.where(condition, *choices)


def clip(a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    return e.clip(a, min if a_min is None else a_min, max if a_max is None else a_max)


# A NumPy function, the op that it means, how many arguments it takes by position, and keywords.
FUNCTIONS: dict[Any, tuple[Callable[..., Any], int, tuple[str, ...]]] = {
    np.sum: (reduce.sum, 2, ("axis", "keepdims")),
    np.mean: (reduce.mean, 2, ("axis", "keepdims")),
    np.max: (reduce.max, 2, ("axis", "keepdims")),
    np.amax: (reduce.max, 2, ("axis", "keepdims")),
    np.min: (reduce.min, 2, ("axis", "keepdims")),
    np.amin: (reduce.min, 2, ("axis", "keepdims")),
    np.transpose: (shape.transpose, 2, ("axes",)),
    np.matrix_transpose: (shape.matrix_transpose, 1, ()),
    np.swapaxes: (transpose_pair, 3, ("axis1", "axis2")),
    np.reshape: (shape.reshape, 2, ("shape",)),
    np.ravel: (shape.ravel, 1, ()),
    np.expand_dims: (shape.expand_dims, 2, ("axis",)),
    np.squeeze: (shape.squeeze, 2, ("axis",)),
    np.broadcast_to: (shape.broadcast_to, 2, ("shape",)),
    np.concatenate: (concatenate, 2, ("axis",)),
    np.stack: (shape.stack, 2, ("axis",)),
    np.split: (shape.split, 3, ("axis",)),
    np.take: (take_flat, 3, ("axis",)),
    np.where: (where, 3, ()),
    np.clip: (clip, 3, ("a_min", "a_max", "min", "max")),
    np.dot: (dot, 2, ()),
}


def array_ufunc(self: Variable, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """NEP 13: a ufunc, or its `reduce`, with a Variable among the inputs (or as `out`)."""
    name = ufunc.__name__
    if kwargs.get("out") is not None:
        raise UnsupportedError(
            f"numpy.{name}: the result of a recorded op cannot be written into an array (out=, or y += v on an array y).\n"
            f"  Write y = y + v, or use the return value."
        )
    if method == "__call__":
        given = {k: v for k, v in kwargs.items() if k != "out"}
        if ufunc in UFUNCS and not given:
            return UFUNCS[ufunc](*inputs)
        if ufunc in CONSTANT_UFUNCS:
            return ufunc(*bare(inputs), **given)
        refuse(f"numpy.{name}", given if ufunc in UFUNCS else None)
    if method == "reduce" and ufunc in REDUCTIONS:
        given = {k: v for k, v in kwargs.items() if k not in ("out", "axis", "keepdims") and v is not None}
        refuse(f"numpy.{name}.reduce", given) if given or len(inputs) > 1 else None
        return REDUCTIONS[ufunc](
            *inputs, axis=kwargs.get("axis", 0), keepdims=bool(kwargs.get("keepdims", False))
        )
    return refuse(f"numpy.{name}.{method}")


def array_function(self: Variable, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """NEP 18: any other NumPy function that was given a Variable."""
    name = f"{function.__module__}.{function.__name__}"
    if function in CONSTANT_FUNCTIONS:
        return function(*bare(args), **bare(kwargs))
    if function not in FUNCTIONS:
        return refuse(name)
    op, positions, keywords = FUNCTIONS[function]
    if len(args) > positions:
        refuse(name, {f"argument {positions + 1}": args[positions]})
    unknown = {k: v for k, v in kwargs.items() if k not in keywords}
    if unknown:
        refuse(name, unknown)
    return op(*args, **kwargs)


def refuse(name: str, given: Mapping[str, Any] | None = None) -> Any:
    """Raise for a function that is not recorded, or for keywords of one that is."""
    if given:
        raise UnsupportedError(
            f"{name}: {', '.join(given)} cannot be recorded on a Variable.\n"
            f"  Leave it out, or apply the function to v.value if no gradient is wanted."
        )
    import difflib  # here, for an error message is the only use

    near = difflib.get_close_matches(name.split(".")[-1], [f.__name__ for f in [*UFUNCS, *FUNCTIONS]], 3, 0.5)
    raise UnsupportedError(
        f"{name} is not recorded on a Variable, and would lose its gradient.\n"
        + (f"  Near it: {', '.join('np.' + n for n in near)}. " if near else "  ")
        + "Apply it to v.value if no gradient is wanted, or declare an op with tg.primitive."
    )


def bare(value: Any) -> Any:
    """`value` with Variables replaced by their arrays, also inside lists, tuples and dicts."""
    if isinstance(value, Variable):
        return value._array
    if isinstance(value, (list, tuple)):
        return type(value)(bare(v) for v in value)
    return {k: bare(v) for k, v in value.items()} if isinstance(value, dict) else value


Variable.__array_ufunc__ = array_ufunc  # type: ignore[attr-defined]
Variable.__array_function__ = array_function  # type: ignore[attr-defined]
