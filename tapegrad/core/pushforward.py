"""Forward mode over a recording: tangents pushed through the same entries that a sweep pulls back through.

No rule is written twice. A diagonal Jacobian is its own transpose, a linear op is its own derivative, and
for any other op the Jacobian is the transpose of its pullback, which a tape provides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..backend.device import flat, owned, zeros_beside, zeros_for
from ..backend.namespace import namespace
from ..errors import ArgumentError, describe
from ..types import ArrayLike
from .active import alone
from .entry import DTYPE, ITEM, OUT, SHAPE, SLOTS, Bundle, Entry
from .generate import residual_names
from .primitive import REGISTRY
from .revive import ByReference, revive
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
        moving[v._slot] = numbers(t, v.dtype, f"{tape._name}.pushforward", "tangent", v._array)
        require_shape(moving[v._slot], v, f"{tape._name}.pushforward", "tangent")
    with alone():
        push_through(tape._entries(), moving)
    out = [owned(moving.get(r._slot, zeros_for(r)), r.dtype) for r in roots]
    return out if isinstance(root, Sequence) else out[0]


def push_through(entries: Iterable[Entry], tangents: dict[int, Any], *, record: bool = False) -> None:
    """Add to `tangents` those of every value that `entries` computed and that moves.

    `record`: residuals are Variables again, and so the active tapes record what the rules compute.
    """
    for entry in entries:
        t = push(revive(entry) if record else entry, tangents, record)
        if t is not None:
            tangents[entry[OUT]] = t


def push(entry: Entry, tangents: Mapping[int, Any], record: bool) -> Any:
    """The tangent of an entry's output from those of its inputs, or None if none of them moves."""
    variant = entry[0]
    if variant is ITEM:
        whole = tangents.get(entry[SLOTS])
        return None if whole is None else whole.parts.get(entry[SLOTS + 1])
    if isinstance(variant, ByReference):
        variant = variant.variant
    slots = variant.input_slots(entry)
    if not any(
        s in tangents for slot in slots.values() for s in (slot if isinstance(slot, tuple) else (slot,))
    ):
        return None
    p, named = variant.primitive, variant.residuals(entry)
    if p.kind == "elementwise" and p.reference is None:
        # A diagonal Jacobian is its own transpose: the rules push as well as they pull.
        moved = [(a, tangents[slots[a]]) for a in variant.live if slots[a] in tangents]
        parts = [
            p.rules[a](spread(t, entry[SHAPE]), *(named[n] for n in residual_names(p.rules[a])))
            for a, t in moved
        ]
        return sum(parts[1:], start=parts[0])
    if p.kind == "linear":
        t = tangents[slots[p.arguments[0]]]
        statics = {s: named[s] for s in p.statics}
        return p.function(t, **statics) if record else p.body(namespace(t), t, **statics)
    return push_by_transposing(entry, tangents, record)


def push_by_transposing(entry: Entry, tangents: Mapping[int, Any], record: bool) -> Any:
    """J t as the gradient of ct -> <Jᵀ ct, t>: a pullback is linear in `ct`, so any ct will do."""
    revived, shapes = entry if record else revive(entry), entry[SHAPE]
    several = bool(shapes) and isinstance(shapes[0], tuple)
    beside = next((t for t in flat(tangents.values()) if not isinstance(t, Bundle)), None)
    cts = [Variable(zeros_beside(beside, *s)) for s in (shapes if several else [(shapes, entry[DTYPE])])]
    tape = Tape()
    with alone() if not record else contextlib.nullcontext(), tape:
        contributions = list(revived[0].pull(revived, Bundle(dict(enumerate(cts))) if several else cts[0]))
    moved = [
        (c, tangents[s]) for s, c in contributions if s in tangents and isinstance(c, Variable) and c._slot
    ]
    adjoints = tape._sweep([c for c, _ in moved], [t for _, t in moved], (), record=record)
    return Bundle({i: adjoints[ct] for i, ct in enumerate(cts)}) if several else adjoints[cts[0]]


def spread(t: Any, shape: Any) -> Any:
    """A tangent in the shape of the output, to which its argument was broadcast."""
    return t if t.shape == shape else REGISTRY["broadcast_to"].function(t, shape)


Tape.pushforward = pushforward
