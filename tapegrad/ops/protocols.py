"""NumPy's own functions on Variables: `np.tanh(v)`, `np.sum(v, axis=0)` and `array @ v` record.

NumPy asks `__array_ufunc__` (NEP 13) and `__array_function__` (NEP 18) before it touches a Variable. A
function is recorded, or it is constant by nature and returns a plain array, or it is refused by name
(the tables are in `names.py`): it never returns an array that has quietly lost its gradient.

What a function means here is found when it is first called on a Variable, and remembered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import snapshot
from ..core.refusals import INSTEAD
from ..core.variable import Variable
from ..errors import ArgumentError, UnsupportedError
from . import elementwise, names
from .dispatch import behind_signature, neutral, signature_of
from .shape import reshape

# What answers a ufunc called without keywords, a method of one (or a call with keywords), any other function.
UFUNCS: dict[Any, Callable[..., Any]] = {}
METHODS: dict[tuple[Any, str], Callable[..., Any]] = {}
FUNCTIONS: dict[Any, Callable[..., Any]] = {}


def array_ufunc(self: Variable, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """NEP 13: a ufunc, or a method of one, with a Variable among the inputs (or as `out`)."""
    if kwargs or method != "__call__":
        return (METHODS.get((ufunc, method)) or found_method(ufunc, method))(*inputs, **kwargs)
    return (UFUNCS.get(ufunc) or found_ufunc(ufunc))(*inputs)


def array_function(self: Variable, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
    """NEP 18: any other NumPy function that was given a Variable."""
    return (FUNCTIONS.get(function) or found_function(function))(*args, **kwargs)


# -- ufuncs ------------------------------------------------------------------------------------------------


def found_ufunc(ufunc: Any) -> Callable[..., Any]:
    """What answers a call of `ufunc` without keywords."""
    where, kind = origin(ufunc)
    name = ufunc_name(ufunc)
    answer: Callable[..., Any]
    if kind == "recorded":
        table = names.NUMPY if where == "numpy" else names.SPECIAL
        answer = names.function_at(table[ufunc.__name__.removeprefix("_")])
    elif kind == "constant":
        answer = lambda *inputs: ufunc(*[v._array if isinstance(v, Variable) else v for v in inputs])
    else:
        return refusal(name)
    UFUNCS[ufunc] = answer
    return answer


def origin(ufunc: Any) -> tuple[str, str]:
    """The module whose ufunc it is (empty: the user's own), and whether it is recorded, constant or refused."""
    name = ufunc.__name__
    if getattr(np, name, None) is ufunc or ufunc is CLIP:
        return "numpy", names.kind_of(name)
    special = sys.modules.get("scipy.special")
    if special is not None and getattr(special, name, None) is ufunc:
        return "scipy.special", "recorded" if name in names.SPECIAL else "refused"
    if special is not None and getattr(special._ufuncs, name, None) is ufunc:  # behind a function in Python
        return "scipy.special", "recorded" if name.removeprefix("_") in names.SPECIAL else "refused"
    return "numpy" if getattr(UMATH, name, None) is ufunc else "", "refused"


def ufunc_name(ufunc: Any) -> str:
    """A ufunc's name as the user writes it."""
    return f"{origin(ufunc)[0]}.{ufunc.__name__}".removeprefix(".")


UMATH = getattr(getattr(np, "_core", None), "umath", np)
CLIP = UMATH.clip  # a ufunc that np.clip itself calls


def with_keywords(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` as the ufunc `name` is called with keywords: those that it has, and those that make no difference."""
    code = op.__code__
    has = frozenset(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
    return lambda *inputs, **kwargs: op(*inputs, **own_keywords(name, kwargs, has))


def own_keywords(name: str, kwargs: dict[str, Any], has: frozenset[str]) -> dict[str, Any]:
    """The keywords that an op has, without those that change nothing. Any other is refused."""
    if any(out is not None for out in kwargs.get("out") or ()):
        raise UnsupportedError(
            f"{name}: the result of a recorded op cannot be written into an array (out=, or y += v on an array y).\n"
            f"  Write y = y + v, or use the return value."
        )
    given = {k: v for k, v in kwargs.items() if k in has or (k != "out" and not neutral(k, v, None))}
    others = [k for k in given if k not in has]
    if others:
        raise UnsupportedError(
            f"{name}: {', '.join(others)} cannot be recorded on a Variable.\n"
            f"  Leave it out, or apply the function to v.value if no gradient is wanted."
        )
    return given


def found_method(ufunc: Any, method: str) -> Callable[..., Any]:
    """What answers a call with keywords, `ufunc.reduce`, `accumulate` and `outer`; other methods are refused."""
    where, kind = origin(ufunc)
    name = ufunc_name(ufunc) + ("" if method == "__call__" else f".{method}")
    table = {"reduce": names.REDUCE, "accumulate": names.ACCUMULATE}.get(method, {})
    if kind == "constant" and method != "at":
        answer = constant_call(name, getattr(ufunc, method))
    elif kind == "recorded" and method == "__call__":
        answer = with_keywords(name, found_ufunc(ufunc))
    elif where == "numpy" and ufunc.__name__ in table:
        answer = along_the_first(name, names.function_at(table[ufunc.__name__]))
    elif kind == "recorded" and method == "outer" and ufunc.nout == 1 and ufunc.signature is None:
        answer = outer(found_ufunc(ufunc))
    else:
        return refusal(name)
    METHODS[ufunc, method] = answer
    return answer


def along_the_first(name: str, op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` along one axis, the first if none is named, as methods of ufuncs have it."""
    has = frozenset({"axis", "keepdims", "initial", "where"}.intersection(op.__code__.co_varnames))

    # NumPy hands on by name what was given by position.
    def answer(a: Any, *, axis: Any = 0, **kwargs: Any) -> Any:
        return op(a, axis=axis, **own_keywords(name, kwargs, has))

    return answer


def outer(call: Callable[..., Any]) -> Callable[..., Any]:
    """A binary ufunc over all pairs of an element of `a` and one of `b`."""

    def answer(a: Any, b: Any) -> Any:
        return call(reshape(a, (*np.shape(a), *(1,) * np.ndim(b))), b)

    return answer


# -- other functions -----------------------------------------------------------------------------------------


def found_function(function: Any) -> Callable[..., Any]:
    """What answers a call of NumPy's `function`."""
    name = name_of(function)
    if name in names.RECORDED:
        answer = behind_signature(name, function, names.function_at(names.RECORDED[name]))
    elif name in names.CREATED:
        answer = created(name, function)
    elif name in names.CONSTANT:
        answer = constant_call(f"numpy.{name}", function, position_of_out(function))
    else:
        return refusal(f"numpy.{name}")
    FUNCTIONS[function] = answer
    return answer


def name_of(function: Any) -> str:
    """A NumPy function's name as the tables have it: without `numpy.`."""
    module = function.__module__.replace("._scimath_impl", ".scimath")  # as NumPy before 2.1 has it
    return f"{module}.{function.__name__}".removeprefix("numpy.")


def constant_call(name: str, function: Any, out_position: int | None = None) -> Callable[..., Any]:
    """A function that is constant by nature, on the arrays of Variables."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        by_position = args[out_position : out_position + 1] if out_position else ()
        if has_variables((kwargs.get("out"), by_position)):
            raise UnsupportedError(f"{name}: a Variable is never written into (out=). Use the return value.")
        return function(*bare(args), **bare(kwargs))

    return answer


def position_of_out(function: Any) -> int | None:
    """Which argument is the array to write into, if it may be given by position."""
    try:
        parameters = [*signature_of(function).parameters.values()]
    except KeyError:  # written in C, of an older NumPy: none of those that are constants has one
        return None
    return next(
        (i for i, p in enumerate(parameters) if p.name == "out" and p.kind is not p.KEYWORD_ONLY), None
    )


def created(name: str, function: Any) -> Callable[..., Any]:
    """A function that makes an array of numbers, asked with `like=v`: a plain array."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        if has_variables((args, kwargs)):
            raise UnsupportedError(
                f"numpy.{name}: a Variable among the numbers would lose its gradient.\n"
                f"  Use tg.stack([v, ...]) to build an array from Variables, or v.value if no gradient is wanted."
            )
        return function(*args, **kwargs)

    return answer


def where_as_numpy(condition: Any, x: Any = None, y: Any = None) -> Any:
    """`np.where`: a choice, or with the condition alone the indices at which it holds (a constant)."""
    if x is None and y is None:
        return np.where(bare(condition))
    if x is None or y is None:
        raise ArgumentError("numpy.where: either both or neither of x and y should be given.")
    return elementwise.where(condition, x, y)


def clip_as_numpy(
    a: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None, **others: Any
) -> Any:
    """`np.clip`, which has two names for each limit, and the keywords of a ufunc."""
    own_keywords("numpy.clip", others, frozenset())
    if not (a_min is None and a_max is None) and not (min is None and max is None):
        raise ArgumentError("numpy.clip: give `a_min` and `a_max`, or `min` and `max`.")
    return elementwise.clip(a, min if a_min is None else a_min, max if a_max is None else a_max)


# -- refused ---------------------------------------------------------------------------------------------------


def refusal(name: str) -> Callable[..., Any]:
    """What answers a function that is not recorded: an error that says why, what is near, and what to do."""
    short = name.removeprefix("numpy.")

    def answer(*args: Any, **kwargs: Any) -> Any:
        if short in names.IN_PLACE:
            raise UnsupportedError(
                f"{name} writes into its argument, and a Variable is never written into.\n"
                f"  Use {names.IN_PLACE[short]}, or v.value.copy() if no gradient is wanted."
            )
        why = names.reason(short)
        raise UnsupportedError(
            f"{name} is not recorded on a Variable, and would lose its gradient.\n"
            f"  {f'{why}. ' if why else near(name)}"
            f"Apply it to v.value if no gradient is wanted, or declare an op with tg.primitive."
        )

    return answer


def near(name: str) -> str:
    """A sentence that names the recorded functions whose names are like this one's."""
    import difflib  # here, for an error message is the only use

    if name.endswith(".at"):
        return "Use tg.index_add(a, index, values). "
    prefix, known = ("scipy.special.", names.SPECIAL) if name.startswith("scipy") else ("np.", names.NUMPY)
    found = difflib.get_close_matches(name.split(".")[-1], known, 3, 0.5)
    return f"Near it: {', '.join(prefix + n for n in found)}. " if found else ""


def has_variables(value: Any) -> bool:
    """Whether there is a Variable in `value`, or in a list, tuple or dict that it is."""
    if isinstance(value, dict):
        return any(has_variables(v) for v in value.values())
    if isinstance(value, (list, tuple)):
        return any(has_variables(v) for v in value)
    return isinstance(value, Variable)


def bare(value: Any) -> Any:
    """`value` with Variables replaced by their arrays, also inside lists, tuples and dicts."""
    if isinstance(value, Variable):
        return value._array
    if isinstance(value, (list, tuple)):
        return type(value)(bare(v) for v in value)
    return {k: bare(v) for k, v in value.items()} if isinstance(value, dict) else value


Variable.__array_ufunc__ = array_ufunc  # type: ignore[attr-defined]
Variable.__array_function__ = array_function  # type: ignore[attr-defined]
INSTEAD.update({f"scipy.special.{name}": f"tg.special.{name}" for name in names.NO_UFUNCS})
snapshot.late_ops = names.import_all
