"""Cotangents by slot: what a sweep carries back, and what it leaves behind.

The *adjoint* of a value is the sum of the cotangents that reach it. The first one is borrowed (it may
be an array that someone else holds too); only their sum is owned, and added to in place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend.device import owned, refuse_to_mix, zeros_for
from ..errors import ArgumentError, describe
from ..types import Array
from .entry import OUT, Entry
from .variable import LEAVES, Variable, constant


class Adjoints:
    """The adjoints of one sweep: `adjoints[v]` for its roots, for leaves, and for what `keep` named.

    What `adjoints[v]` returns is yours: an array of the shape and dtype of `v`, zeros if nothing reached
    it. After `record=True` it is a Variable.
    """

    def __init__(self, keep: Iterable[Variable] = (), *, record: bool = False) -> None:
        self.sums: dict[int, Any] = {}
        self.owned: set[int] = set()  # in a recorded sweep nothing is: a sum may be a Variable
        self.kept: dict[int, Any] = {v._slot: None for v in keep} if keep else {}
        self.record = record

    def add(self, slot: int, contribution: Any) -> None:
        """Add one contribution to the adjoint of `slot`."""
        held = self.sums.get(slot)
        if held is None:
            self.sums[slot] = contribution
        elif slot in self.owned:
            held += contribution
            self.sums[slot] = held
        else:
            self.sums[slot] = held + contribution
            if not self.record:
                self.owned.add(slot)

    def sweep(self, entries: Iterable[Entry]) -> None:
        """Pull every cotangent back through `entries`, which come last to first.

        Entries were appended after everything they read, so reversed order is a topological order: when
        an entry's turn comes, every consumer of its output has already contributed.
        """
        sums, owned, kept, in_place = self.sums, self.owned, self.kept, not self.record
        held_by, take = sums.get, sums.pop
        entry: Any = None
        ct = None
        try:
            for entry in entries:
                ct = take(entry[OUT], None)
                if ct is None:
                    continue
                if kept and entry[OUT] in kept:
                    kept[entry[OUT]] = ct
                for slot, contribution in entry[0].pull(entry, ct):
                    # `add`, written out: a call for each contribution would cost a tenth of the sweep.
                    held = held_by(slot)
                    if held is None:
                        sums[slot] = contribution
                    elif slot in owned:
                        held += contribution
                        sums[slot] = held
                    else:
                        sums[slot] = held + contribution
                        if in_place:
                            owned.add(slot)
        except TypeError:
            if entry is not None and hasattr(entry[0], "residuals"):
                refuse_to_mix(f"backward of {entry[0].name}", {"ct": ct, **entry[0].residuals(entry)})
            raise

    def deliver(self) -> None:
        """Add the adjoints of the leaves to their `.grad`."""
        for slot, ct in self.sums.items():
            leaf = LEAVES.get(slot) if slot < 0 else None
            if leaf is not None:
                leaf.accumulate_grad(ct._array if isinstance(ct, Variable) else ct)

    @property
    def gradients(self) -> AdjointMap:
        """The adjoint of every leaf that the sweep reached, by leaf. Reading it does not touch `.grad`."""
        return AdjointMap({slot: ct for slot, ct in self.sums.items() if slot < 0}, self.record)

    def __getitem__(self, v: Variable) -> Any:
        if not isinstance(v, Variable) or v._slot == 0 or (v._slot > 0 and v._slot not in self.kept):
            raise ArgumentError(
                "Adjoints: only roots, leaves and values named in `keep` have their adjoint kept.\n"
                "  Ask for it before the sweep: tape.backward(root, keep=[v])[v]."
            )
        ct = self.kept.get(v._slot)
        if ct is None:
            ct = self.sums.get(v._slot)
        return owned_adjoint(ct, v, self.record)


class AdjointMap:
    """Some adjoints, by Variable: `m[v]` (the reader's own array), `v in m`, `m.get(v, default)`, `len(m)`.

    A leaf that no adjoint reached has zeros. `values()` gives all that arrived, also those of Variables
    that nobody holds any more.
    """

    __iter__ = None  # by Variable, and a Variable may be gone

    def __init__(self, by_slot: dict[int, Any], record: bool = False) -> None:
        self.by_slot = by_slot
        self._record = record

    def __getitem__(self, v: Variable) -> Any:
        if v not in self and not (isinstance(v, Variable) and v._slot < 0):  # of a leaf it is zero
            raise ArgumentError(
                "AdjointMap: no adjoint of this Variable arrived here. Ask `v in m` first, or m.get(v)."
            )
        return owned_adjoint(self.by_slot.get(v._slot), v, self._record)

    def __contains__(self, v: object) -> bool:
        return isinstance(v, Variable) and v._slot in self.by_slot

    def __len__(self) -> int:
        return len(self.by_slot)

    def get(self, v: Variable, default: Any = None) -> Any:
        """`m[v]`, or `default` if nothing arrived."""
        return self[v] if v in self else default  # noqa: SIM401 (this is what the advice would call)

    def values(self) -> list[Array]:
        """Every adjoint, as arrays of the reader's own."""
        return [owned(ct._array if isinstance(ct, Variable) else ct) for ct in self.by_slot.values()]

    @property
    def norm(self) -> float:
        """Euclidean norm of all of them together."""
        return float(np.sqrt(sum(np.sum(np.square(ct, dtype=np.float64)) for ct in self.values())))


def variables(values: Any, argument: str) -> list[Variable]:
    """`values` as a list of Variables, a lone one too, or the error that names `argument`."""
    listed = (
        [values] if isinstance(values, Variable) else list(values) if isinstance(values, Iterable) else [None]
    )
    if not all(isinstance(v, Variable) for v in listed):
        raise ArgumentError(
            f"backward: `{argument}` must be a list of Variables, and {describe(values)} came."
        )
    return listed  # type: ignore[return-value]


def owned_adjoint(ct: Any, v: Variable, record: bool = False) -> Any:
    """`ct` as the reader's own: in the dtype of `v`, zeros for None; a Variable if the sweep was recorded."""
    if ct is None:
        ct = zeros_for(v)
    if record:
        ct = ct if isinstance(ct, Variable) else constant(ct)
        return ct if ct.dtype == v.dtype else ct.astype(v.dtype)
    return owned(ct, v.dtype)
