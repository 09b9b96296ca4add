"""The gradients of parameters, as products that were put off: rows of residuals times rows of cotangents.

    g  =  Σ leftᵀ @ delta        over the segments of the window, in one matrix product

The rings hold both factors until the next sweep. A gradient that nobody reads is never formed: plain
gradient descent adds the product straight to the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.variable import LEAVES
from ..types import Array


class Product(list[Any]):
    """Blocks (left rows or None for ones, delta rows) of one parameter's gradient, and the maps after the sum."""

    def __init__(self, blocks: Sequence[tuple[Array | None, Array]], chain: tuple[Any, ...]) -> None:
        super().__init__(blocks)
        self.chain = chain

    def formed(self) -> Array:
        """The gradient."""
        made = None
        for left, delta in self:
            part = np.add.reduce(delta, axis=0, keepdims=True) if left is None else np.dot(left.T, delta)
            made = part if made is None else np.add(made, part, out=made)
        assert made is not None
        for link in self.chain:
            if isinstance(link, float):
                made = made * link
            else:
                method, arguments = link
                made = made.reshape(*arguments) if method == "reshape" else made.transpose(*arguments)
        return made


class Settlement:
    """What one sweep found for the parameters: products by leaf slot, and arrays that were summed on the way."""

    def __init__(self) -> None:
        self.products: dict[int, list[Product]] = {}
        self.totals: dict[int, list[Array]] = {}
        self.formed: dict[int, Array] | None = None
        self.deferred: list[Deferred] = []

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

    def one(self, slot: int) -> Array:
        """The gradient of one leaf, for its `.grad`: an array that nobody else has."""
        if self.formed is not None:
            return np.array(self.formed[slot])
        made: Array | None = None
        for product in self.products.get(slot, ()):
            part = product.formed()
            made = part if made is None else made + part
        for total in self.totals.get(slot, ()):
            made = np.array(total) if made is None else made + total
        assert made is not None
        return made

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
        for deferred in self.deferred:
            leaf: Any = LEAVES.get(deferred.slot)
            if leaf is not None and leaf._grad is deferred:
                deferred.form()


class Deferred:
    """The `.grad` of a leaf that has not been formed."""

    __slots__ = ("settlement", "slot")

    def __init__(self, settlement: Settlement, slot: int) -> None:
        self.settlement, self.slot = settlement, slot

    def form(self) -> Array:
        """The gradient as an array of the leaf's dtype and shape, its owner's own."""
        leaf: Any = LEAVES[self.slot]
        leaf._grad = None
        leaf.accumulate_grad(self.settlement.one(self.slot))
        return leaf._grad  # type: ignore[no-any-return]

    def finite(self) -> bool:
        """Whether no factor of the products holds a NaN or an infinity, or is so large that a product could."""
        squares = 0.0
        for product in self.settlement.products[self.slot]:
            for left, delta in product:
                squares += float(np.vdot(delta, delta))
                squares += 0.0 if left is None else float(np.vdot(left, left))
        return math.isfinite(squares)

    def descend(self, value: Array, new: Array, lr: float) -> bool:
        """`new` = `value` - lr · gradient, without forming the gradient. False if it cannot be done so."""
        products = self.settlement.products[self.slot]
        add = gemm(value.dtype)
        if add is None or len(products) > 1 or products[0].chain or not new.flags.c_contiguous:
            return False
        np.copyto(new, value)
        for left, delta in products[0]:
            if left is None:
                return False
            add(-lr, delta.T, left.T, beta=1.0, c=new.T, trans_b=1, overwrite_c=1)
        return True


GEMM: dict[Any, Callable[..., Any] | None] = {}


def gemm(dtype: Any) -> Callable[..., Any] | None:
    """BLAS's C ← alpha A Bᵀ + beta C, in place, for Fortran-ordered arrays; None without SciPy."""
    if dtype not in GEMM:
        made = None
        if dtype in (np.float32, np.float64):
            try:
                from scipy.linalg import blas
            except ImportError:
                pass
            else:
                made = blas.sgemm if dtype == np.float32 else blas.dgemm
        GEMM[dtype] = made
    return GEMM[dtype]
