"""The gradients of parameters, as products that were put off: rows of residuals times rows of cotangents.

    g  =  Σ leftᵀ @ delta        over the segments of the window, in one matrix product

The rings hold both factors until the next sweep. A gradient that nobody reads is never formed: plain
gradient descent adds the product straight to the weights.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.variable import LEAVES
from ..types import Array


class Product:
    """Σ leftᵀ @ delta over `blocks` of (left rows, delta rows), and the linear maps `chain` after the sum.

    A left with one axis holds ones: the sum of delta's rows.
    """

    __slots__ = ("blocks", "chain", "flats", "reshaped")

    def __init__(self, blocks: Sequence[tuple[Array, Array]], chain: tuple[Any, ...]) -> None:
        self.blocks, self.chain = blocks, chain
        self.flats = [rows.reshape(-1) for block in blocks for rows in block if rows.ndim > 1]
        self.reshaped = all(not isinstance(link, float) and link[0] == "reshape" for link in chain)

    def formed(self, spare: Array | None = None) -> Array:
        """The gradient, an array that nobody else has; in the memory of `spare` if that fits."""
        made: Any = None
        if spare is not None and not spare.flags.c_contiguous:  # the last was transposed, and then scaled
            spare = None
        for left, delta in self.blocks:
            if made is None and spare is not None and spare.dtype == delta.dtype and self.size == spare.size:
                made = np.dot(left.T, delta, out=spare.reshape(*left.shape[1:], *delta.shape[1:]))
            else:
                part = np.dot(left.T, delta)
                made = part if made is None else np.add(made, part, out=made)
        for link in self.chain:
            if isinstance(link, float):
                made = made * link
            else:
                method, arguments = link
                made = made.reshape(*arguments) if method == "reshape" else made.transpose(*arguments)
        return made  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        """How many elements the gradient has."""
        left, delta = self.blocks[0]
        return math.prod((*left.shape[1:], *delta.shape[1:]))

    def adds_to(self, dtype: Any) -> bool:
        """Whether BLAS can do `add_to` for an array of `dtype`."""
        return self.reshaped and dtype is self.blocks[0][1].dtype and blas_of(dtype) is not None

    def add_to(self, array: Array, scale: float) -> None:
        """`array` += scale · gradient, for a C-ordered array, without forming the gradient."""
        gemm, gemv = blas_of(array.dtype)  # type: ignore[misc]
        for left, delta in self.blocks:
            if left.ndim == 1:
                gemv(scale, delta.T, left, beta=1.0, y=array.reshape(-1), overwrite_y=1)
            else:
                flat = array if array.ndim == 2 else array.reshape(left.shape[1], -1)
                gemm(scale, delta.T, left.T, beta=1.0, c=flat.T, trans_b=1, overwrite_c=1)


class Settlement:
    """What one sweep found for the parameters: products by leaf slot, and arrays that were summed on the way."""

    def __init__(self, products: dict[int, list[Product]]) -> None:
        self.products = products
        self.totals: dict[int, list[Array]] = {}
        self.formed: dict[int, Array] | None = None
        self.deferred: list[Deferred] = []
        self._finite: bool | None = None

    def form(self) -> dict[int, Array]:
        """Every gradient by slot, as arrays of the sweep's own."""
        if self.formed is None:
            made: dict[int, Array] = {}
            for slot, products in self.products.items():
                for product in products:
                    part = product.formed()
                    made[slot] = part if slot not in made else made[slot] + part
            for slot, totals in self.totals.items():
                for total in totals:
                    made[slot] = np.array(total) if slot not in made else made[slot] + total
            self.formed = made
        return self.formed

    def one(self, slot: int, spare: Array | None = None) -> Array:
        """The gradient of one leaf, for its `.grad`: an array that nobody else has; in the memory of `spare` if that fits."""
        if self.formed is not None:
            return np.array(self.formed[slot])
        made: Array | None = None
        for product in self.products.get(slot, ()):
            part = product.formed(spare if made is None else None)
            made = part if made is None else made + part
        for total in self.totals.get(slot, ()):
            made = np.array(total) if made is None else made + total
        assert made is not None
        return made

    @property
    def finite(self) -> bool:
        """Whether all factors of the products are finite, and small enough for the products to be finite as well."""
        if self._finite is None:
            flats = {
                id(flat): flat for products in self.products.values() for p in products for flat in p.flats
            }
            self._finite = math.isfinite(sum([float(np.dot(flat, flat)) for flat in flats.values()]))
        return self._finite

    def deliver(self) -> None:
        """Give every leaf its gradient, put off where it has none yet."""
        for slot in (*self.products, *(s for s in self.totals if s not in self.products)):
            leaf: Any = LEAVES.get(slot)
            if leaf is None:
                continue
            if leaf._grad is None and slot not in self.totals:
                leaf._grad = deferred = Deferred(self, slot)
                self.deferred.append(deferred)
            else:
                leaf.accumulate_grad(self.one(slot))

    def release(self) -> None:
        """Form every gradient that was put off and that a leaf still has: the rings are to be written to."""
        put_off, self.deferred = self.deferred, []
        for deferred in put_off:
            leaf: Any = LEAVES.get(deferred.slot)
            if leaf is not None and leaf._grad is deferred:
                deferred.form()


# By the slot of a living leaf, the memory of the last gradient that was formed: while nobody else holds it, the
# next is formed there.
LAST: dict[int, Array] = {}


class Deferred:
    """The `.grad` of a leaf that has not been formed."""

    __slots__ = ("settlement", "slot")

    def __init__(self, settlement: Settlement, slot: int) -> None:
        self.settlement, self.slot = settlement, slot

    def form(self) -> Array:
        """The gradient as an array of the leaf's dtype and shape, its owner's own."""
        leaf: Any = LEAVES[self.slot]
        spare = LAST.get(self.slot)
        # Held by the dictionary, the local and the argument, and through no view: its reader has dropped it.
        made = self.settlement.one(self.slot, spare if sys.getrefcount(spare) == 3 else None)
        leaf._grad = None
        if made.dtype == leaf.dtype and made.shape == leaf.shape:
            leaf._grad = made
            if self.slot not in LAST:
                weakref.finalize(leaf, LAST.pop, self.slot, None)
            LAST[self.slot] = made if made.base is None else made.base
        else:
            leaf.accumulate_grad(made)
        return leaf._grad  # type: ignore[no-any-return]

    def descends(self, dtype: Any) -> bool:
        """Whether `descend` can be done: one product of finite factors, straight to the weights."""
        products = self.settlement.products[self.slot]
        return len(products) == 1 and products[0].adds_to(dtype) and self.settlement.finite

    def descend(self, array: Array, lr: float) -> None:
        """`array` -= lr · gradient, without forming the gradient."""
        self.settlement.products[self.slot][0].add_to(array, -lr)


# By dtype: BLAS's matrix and vector products in place, for Fortran-ordered arrays; None without SciPy.
BLAS: dict[Any, tuple[Callable[..., Any], Callable[..., Any]] | None] = {}


def blas_of(dtype: Any) -> tuple[Callable[..., Any], Callable[..., Any]] | None:
    """(gemm, gemv) for `dtype`."""
    if dtype not in BLAS:
        BLAS[dtype] = None
        if dtype in (np.float32, np.float64):
            try:
                from scipy.linalg import blas  # type: ignore[import-untyped]
            except ImportError:
                pass
            else:
                single = dtype == np.float32
                BLAS[dtype] = (blas.sgemm, blas.sgemv) if single else (blas.dgemm, blas.dgemv)
    return BLAS[dtype]
