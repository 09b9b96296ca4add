"""Forward mode over a recording: tangents pushed through the same entries that a sweep pulls back through.

No rule is written twice. A diagonal Jacobian is its own transpose, a linear op is its own derivative, and
for any other op the Jacobian is the transpose of its pullback, which a tape provides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend.namespace import namespace
from ..errors import ArgumentError, describe
from ..types import ArrayLike
from .entry import DTYPE, ITEM, OUT, SHAPE, SLOTS, Bundle, Entry
from .revive import revive
from .seeds import Roots, numbers, require_shape, roots_of
from .tape import Tape
from .variable import Variable


def pushforward(tape: Tape, tangents: Mapping[Variable, ArrayLike], root: Roots = None) -> Any:
    """The tangent of `root` when leaves move along `tangents`: forward mode over this recording.

    `tangents` maps leaves (or any value that the recording read) to arrays of their shapes. Returns
    an array of the root's shape, zeros if no tangent reaches it; a list for a list of roots.
    """
    roots = roots_of(tape, root)
    moving: dict[int, Any] = {}
    for v, t in tangents.items():
        if not isinstance(v, Variable) or v._slot == 0:
            raise ArgumentError(
                f"{tape._name}.pushforward: `tangents` must map leaves to arrays, and {describe(v)} came for a leaf."
            )
        moving[v._slot] = numbers(t, v.dtype, f"{tape._name}.pushforward", "tangent")
        require_shape(moving[v._slot], v, f"{tape._name}.pushforward", "tangent")
    for entry in tape._entries():
        pushed = push(entry, moving)
        if pushed is not None:
            moving[entry[OUT]] = pushed
    out = [np.array(moving.get(r._slot, np.zeros(r.shape)), dtype=r.dtype) for r in roots]
    return out if isinstance(root, Sequence) else out[0]


def push(entry: Entry, tangents: Mapping[int, Any]) -> Any:
    """The tangent of an entry's output from those of its inputs, or None if none of them moves."""
    variant = entry[0]
    if variant is ITEM:
        whole = tangents.get(entry[SLOTS])
        return None if whole is None else whole.parts.get(entry[SLOTS + 1])
    slots = variant.input_slots(entry)
    if not any(
        s in tangents for slot in slots.values() for s in (slot if isinstance(slot, tuple) else (slot,))
    ):
        return None
    p, named = variant.primitive, variant.residuals(entry)
    if (
        p.kind == "elementwise"
    ):  # a diagonal Jacobian is its own transpose: the rules push as well as they pull
        moved = [(a, tangents[slots[a]]) for a in variant.live if slots[a] in tangents]
        parts = [
            p.rules[a](np.broadcast_to(t, entry[SHAPE]), *_residuals_of(p.rules[a], named)) for a, t in moved
        ]
        return sum(parts[1:], start=parts[0])
    if p.kind == "linear":
        t = tangents[slots[p.arguments[0]]]
        return p.body(namespace(t), t, **{s: named[s] for s in p.statics})
    return push_by_transposing(entry, tangents)


def push_by_transposing(entry: Entry, tangents: Mapping[int, Any]) -> Any:
    """J t as the gradient of ct -> <Jᵀ ct, t>: a pullback is linear in `ct`, so any ct will do."""
    revived, shapes = revive(entry), entry[SHAPE]
    several = bool(shapes) and isinstance(shapes[0], tuple)
    cts = [Variable(np.zeros(*s)) for s in shapes] if several else [Variable(np.zeros(shapes, entry[DTYPE]))]
    tape = Tape()
    with tape:
        contributions = list(revived[0].pull(revived, Bundle(dict(enumerate(cts))) if several else cts[0]))
    moved = [
        (c, tangents[s]) for s, c in contributions if s in tangents and isinstance(c, Variable) and c._slot
    ]
    adjoints = tape._sweep([c for c, _ in moved], [t for _, t in moved], (), record=False)
    return Bundle({i: adjoints[ct] for i, ct in enumerate(cts)}) if several else adjoints[cts[0]]


def _residuals_of(rule: Callable[..., Any], named: Mapping[str, Any]) -> list[Any]:
    code = rule.__code__
    return [named[n] for n in code.co_varnames[1 : code.co_argcount]]


Tape.pushforward = pushforward
