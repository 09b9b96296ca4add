"""Did a function draw random numbers while it was recorded? They would be the same in every replay.

What can be watched is NumPy's global generator, and generators that the function closes over: in its cells,
its defaults, the globals it names, its object, and the modules and containers found there.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

DEPTH = 5  # of objects within objects


@contextlib.contextmanager
def watched_for_random_numbers(f: Callable[..., Any], name: str) -> Iterator[None]:
    """A scope that ends with a warning if a generator known to `f` has moved."""
    generators = [g.bit_generator for g in reachable(f)]
    before, of_numpy = [str(g.state) for g in generators], global_state()
    yield
    if of_numpy != global_state() or before != [str(g.state) for g in generators]:
        warnings.warn(
            f"compile: {name} drew random numbers, and will use the same ones in every call.\n"
            f"  Draw them outside, and pass them as an argument.",
            stacklevel=6,  # the caller of the function
        )


def global_state() -> tuple[Any, ...]:
    """Where NumPy's global generator is."""
    _, key, *rest = np.random.get_state()  # noqa: NPY002 (others use it)
    return (np.asarray(key).tobytes(), *rest)


def reachable(f: Callable[..., Any]) -> list[np.random.Generator]:
    """The generators that `f` closes over, as far as they are looked for."""
    found: dict[int, np.random.Generator] = {}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, np.random.Generator):
            found[id(value)] = value
        elif depth and id(value) not in seen:
            seen.add(id(value))
            for part in parts_of(value):
                visit(part, depth - 1)

    visit(f, DEPTH)
    return list(found.values())


def parts_of(value: Any) -> list[Any]:
    """What an object holds, if it is a function, a method, a container or an object of a class in Python."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value) if len(value) <= 1000 else []
    parts: list[Any] = [getattr(value, "__self__", None), getattr(value, "__wrapped__", None)]
    code = getattr(value, "__code__", None)
    if code is not None:
        names, of_module = code.co_names, getattr(value, "__globals__", {})
        parts += [
            of_module[name]
            for name in names
            if name in of_module and not hasattr(of_module[name], "__file__")
        ]
        parts += [cell.cell_contents for cell in value.__closure__ or () if not empty(cell)]
        parts += [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    elif not isinstance(value, type) and not hasattr(value, "__file__"):
        parts += getattr(value, "__dict__", {}).values()
        parts.append(getattr(type(value), "forward", None))
    return [part for part in parts if part is not None]


def empty(cell: Any) -> bool:
    """Whether nothing was assigned to a variable of the enclosing function yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
