"""Nests: arrays inside tuples, lists and dicts, taken for one argument.

A transform differentiates for all arrays of a nest at once, and what it returns has the nest's form.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .backend.device import is_live, on_device
from .core.variable import Variable
from .errors import ArgumentError, describe

Path = str  # where in a nest an array stands, as one would write it: "[0]['w']"


def leaves(nest: Any, path: Path = "") -> Iterator[tuple[Path, Any]]:
    """Every array (or number, or whatever is no nest) of `nest` and where it stands; None holds nothing."""
    if isinstance(nest, dict):
        for key in nest:
            yield from leaves(nest[key], f"{path}[{key!r}]")
    elif isinstance(nest, (tuple, list)):
        for i, item in enumerate(nest):
            yield from leaves(item, f"{path}[{i}]")
    elif nest is not None:
        yield path, nest


def flat(nest: Any) -> list[Any]:
    """The leaves of `nest`."""
    if isinstance(nest, dict):
        nest = nest.values()
    elif not isinstance(nest, (tuple, list)):
        return [] if nest is None else [nest]
    found: list[Any] = []
    for item in nest:
        if isinstance(item, (dict, tuple, list)):
            found += flat(item)
        elif item is not None:
            found.append(item)
    return found


def rebuilt(nest: Any, values: Iterable[Any]) -> Any:
    """A nest of the same form, with `values` in the order of its leaves."""
    at = iter(values)
    made = _rebuilt(nest, at)
    assert next(at, at) is at, "more values than leaves"
    return made


def _rebuilt(nest: Any, values: Iterator[Any]) -> Any:
    if isinstance(nest, dict):
        made = copy.copy(nest)  # a defaultdict keeps its default
        for key in nest:
            made[key] = _rebuilt(nest[key], values)
        return made
    if isinstance(nest, (tuple, list)):
        items = [_rebuilt(item, values) for item in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)  # a named tuple
    return None if nest is None else next(values)


def mapped(f: Callable[[Any], Any], nest: Any) -> Any:
    """A nest of the same form, with f(leaf) in the place of each leaf."""
    return rebuilt(nest, [f(leaf) for _, leaf in leaves(nest)])


def alike(nest: Any, like: Any, where: str, what: str) -> list[Any]:
    """The leaves of `nest` in the order of `like`, whose form it must have. Raises ArgumentError that names the place."""
    found, expected = dict(leaves(nest)), dict(leaves(like))
    if found.keys() != expected.keys():
        path = next(p for p in [*expected, *found] if (p in found) != (p in expected))
        raise ArgumentError(
            f"{where}: {what} must be nested like what it belongs to; at {path or 'the top'} they part.\n"
            f"  expected: {outline(like)}      came: {outline(nest)}"
        )
    return [found[path] for path in expected]


def outline(nest: Any) -> str:
    """The form of a nest in one line, for messages: ({'w': float64 (3, 4)}, float64 ())."""
    if isinstance(nest, dict):
        return "{" + ", ".join(f"{key!r}: {outline(value)}" for key, value in nest.items()) + "}"
    if isinstance(nest, (tuple, list)):
        inside = ", ".join(map(outline, nest))
        return f"[{inside}]" if isinstance(nest, list) else f"({inside}{',' * (len(nest) == 1)})"
    return describe(nest)


def differentiable(leaf: Any) -> bool:
    """Whether a leaf is a real floating-point array or number."""
    return isinstance(leaf, (Variable, float)) or getattr(getattr(leaf, "dtype", None), "kind", "") == "f"


def array_of(leaf: Any) -> Any:
    """The array of a Variable, array or number."""
    if isinstance(leaf, Variable):
        return leaf._array
    return leaf if on_device(leaf) or is_live(leaf) else np.asarray(leaf)
