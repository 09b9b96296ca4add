"""From a NumPy function and the op that records it to a function with NumPy's signature, as Python source.

    def handler(a, axis=default_axis, out=default_out, keepdims=default_keepdims):
        if out is not default_out:
            refuse_others('ptp', out=(out, default_out))
        return op(a, axis=axis, keepdims=own_keepdims if keepdims is absent else keepdims)

Python then binds a call the way NumPy does: by position and by name, with NumPy's defaults where the op's
differ. What the op has no parameter for may still be given as what it is by default, or as what makes no
difference to an op (`out=None`, `order="C"`); anything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnsupportedError

absent: Any = np._NoValue  # NumPy's default where None means something

# Values of parameters that no op has, and that make no difference to it: an op never writes into its
# argument and never returns a view that may be written into.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "out": (None,),
    "dtype": (None,),
    "where": (True,),
    "keepdims": (False,),
    "casting": ("same_kind", "safe", "unsafe"),
    "order": (None, "C", "K", "A"),
    "subok": (True, False),
    "copy": (None, True, False),
    "overwrite_input": (True, False),
    "optimize": (True, False, "greedy", "optimal"),
    "device": (None, "cpu"),
    "like": (None,),
    "writeable": (False,),
}

# NumPy before 2.4 does not tell the signatures of functions that are written in C.
SIGNATURES = {
    "bincount": "x, /, weights=None, minlength=0",
    "concatenate": "arrays, /, axis=0, out=None, *, dtype=None, casting='same_kind'",
    "dot": "a, b, out=None",
    "inner": "a, b, /",
    "vdot": "a, b, /",
    "where": "condition, x=None, y=None, /",
}


def behind_signature(name: str, function: Any, op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` as a function with the signature of NumPy's `function`."""
    source, defaults = handler_source(name, signature_of(function), op)
    space: dict[str, Any] = {"op": op, "absent": absent, "refuse_others": refuse_others, **defaults}
    exec(compile(source, f"<tapegrad handler of numpy.{name}>", "exec"), space)
    handler: Callable[..., Any] = space["handler"]
    return handler


def signature_of(function: Any) -> Any:
    from inspect import signature  # here: most programs call no function of NumPy's on a Variable

    try:
        return signature(function)
    except ValueError:
        space: dict[str, Any] = {}
        exec(f"def function({SIGNATURES[function.__name__]}): pass", space)
        return signature(space["function"])


class Name:
    """Stands for a default where a signature is written down."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def handler_source(name: str, theirs: Any, op: Callable[..., Any]) -> tuple[str, dict[str, Any]]:
    """The text of the function, and the defaults that it names."""
    from inspect import signature

    ours = signature(op).parameters
    parameters = theirs.parameters.values()
    optional = [p for p in parameters if p.default is not p.empty]
    defaults = {f"default_{p.name}": p.default for p in optional}
    defaults |= {f"own_{p.name}": ours[p.name].default for p in optional if p.name in ours}
    named = [p.replace(default=Name(f"default_{p.name}")) if p in optional else p for p in parameters]
    others = [p.name for p in optional if p.name not in ours]
    lines = [f"def handler{theirs.replace(parameters=named)}:"]
    if others:
        given = " or ".join(f"{n} is not default_{n}" for n in others)
        pairs = ", ".join(f"{n}=({n}, default_{n})" for n in others)
        lines += [f"    if {given}:", f"        refuse_others({name!r}, {pairs})"]
    passed = ", ".join(as_passed(p) for p in parameters if p.name not in others)
    return "\n".join([*lines, f"    return op({passed})"]), defaults


def as_passed(p: Any) -> str:
    """The expression for an argument of the op: what NumPy requires goes by position, the rest by name."""
    if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
        return ("*" if p.kind is p.VAR_POSITIONAL else "**") + str(p.name)
    if p.default is p.empty and p.kind is not p.KEYWORD_ONLY:
        return str(p.name)
    value = f"own_{p.name} if {p.name} is absent else {p.name}" if p.default is absent else p.name
    return f"{p.name}={value}"


def neutral(parameter: str, value: Any, default: Any) -> bool:
    """Whether giving `value` changes nothing."""
    if value is default or value is absent:
        return True
    if value is not None and not isinstance(value, (bool, int, float, str)):
        return False
    return value in NEUTRAL.get(parameter, ()) or (type(value) is type(default) and value == default)


def refuse_others(function: str, **parameters: tuple[Any, Any]) -> None:
    """Raise for the parameters among those that the op does not have which are not neutral."""
    given = [n for n, (value, default) in parameters.items() if not neutral(n, value, default)]
    if given:
        raise UnsupportedError(
            f"numpy.{function}: {', '.join(given)} cannot be recorded on a Variable.\n"
            f"  Leave it out, or apply the function to v.value if no gradient is wanted."
        )
