"""Where a sweep starts: roots that a tape holds, and a cotangent for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend.device import module_beside, owned, placed_beside
from ..errors import ArgumentError, DtypeError, RecordingError, ShapeError, describe
from ..types import Array
from .entry import DTYPE, OUT, SHAPE
from .printout import arrays_read
from .variable import Variable, result

Roots = Variable | Sequence[Variable] | None


def roots_of(tape: Any, root: Roots) -> list[Variable]:
    """The Variables that `root` names; the last value recorded for None. Raises if the tape does not hold them."""
    if root is None:
        last = tape._last()
        if last is None:
            raise RecordingError(
                f"{tape._name}.backward: nothing was recorded.\n"
                f"  Compute with Variables between begin() and stop(): plain arrays leave no entry."
            )
        if last[SHAPE] != ():
            raise ArgumentError(
                f"{tape._name}.backward: the last value recorded is {last[0].name} of shape {last[SHAPE]}, not a scalar.\n"
                f"  Name the root, backward(loss); or end with tg.sum or tg.mean; or give a seed of its shape."
            )
        beside = next(arrays_read(reversed(tape._entries())), None)
        return [result(module_beside(beside).empty((), last[DTYPE]), last[OUT])]
    roots = list(root) if isinstance(root, Sequence) else [root]
    if not roots:
        raise ArgumentError(f"{tape._name}.backward: the list of roots is empty. Give at least one.")
    for r in roots:
        require_root(tape, r)
    return roots


def require_root(tape: Any, root: Any) -> None:
    """Raise unless `root` is a Variable that `tape` can sweep from."""
    if not isinstance(root, Variable):
        raise ArgumentError(
            f"{tape._name}.backward: `root` must be a Variable that was recorded, and {describe(root)} came.\n"
            f"  Keep the loss as a Variable: float(loss) and loss.value leave the tape."
        )
    if tape._holds(root._slot) or (root._slot < 0 and tape._entries()):
        return
    tape._refuse_root(root)


def seeded(tape: Any, root: Roots, seed: Any, record: bool = False) -> tuple[list[Variable], list[Any]]:
    """The roots, and for each the cotangent that the sweep starts from: a Variable only if it is recorded."""
    roots = roots_of(tape, root)
    if not isinstance(root, Sequence):
        given = [seed]
    elif seed is None:
        given = [None] * len(roots)
    else:
        given = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if len(given) != len(roots):
        raise ArgumentError(
            f"{tape._name}.backward: {len(roots)} roots need a list of as many seeds, and {len(given)} came."
        )
    return roots, [seed_for(tape, r, s, record) for r, s in zip(roots, given, strict=True)]


def seed_for(tape: Any, root: Variable, seed: Any, record: bool) -> Any:
    """The cotangent of `root`: ones for a scalar, else the seed given, of the root's shape."""
    if seed is None:
        if root.shape != ():
            raise ArgumentError(
                f"{tape._name}.backward: the root is not a scalar: {describe(root._array)}.\n"
                f"  Reduce it (tg.mean, tg.sum), or give its cotangent: backward(root, seed=array of shape {root.shape})."
            )
        return module_beside(root._array).ones((), root.dtype)
    if isinstance(seed, Variable):
        require_shape(seed, root, f"{tape._name}.backward", "seed")
        return seed if record else seed._array
    seed = numbers(seed, root.dtype, f"{tape._name}.backward", "seed", root._array)
    require_shape(seed, root, f"{tape._name}.backward", "seed")
    return seed


def require_shape(array: Any, v: Variable, where: str, what: str) -> None:
    if array.shape != v.shape:
        raise ShapeError(
            f"{where}: the {what} must have the shape of its Variable.\n  {what}: {array.shape}      Variable: {v.shape}"
        )


def numbers(values: Any, dtype: Any, where: str, what: str, beside: Any = None) -> Array:
    """`values` as a fresh real array of `dtype` on the device of `beside`, or the error that says what came."""
    try:
        array = owned(values if beside is None else placed_beside(values, beside, where, what))
    except ValueError:
        array = np.array(None)
    if array.dtype.kind not in "fiub":
        raise DtypeError(
            f"{where}: the {what} must be an array of real numbers, and {describe(values)} came."
        )
    return array.astype(dtype)  # type: ignore[no-any-return]
