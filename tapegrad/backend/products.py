"""CuPy's module while a step is captured: products go through one function, and what no capture may hold is refused.

CuPy calls libraries for products (cuBLAS), for decompositions (cuSOLVER) and for random numbers (cuRAND), and refuses
to while a stream captures. `Namespace` looks like CuPy to an op. All its products are one `matmul`, given to it, and
axes that are put in the right order for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np

Array = Any


class Namespace:
    """The functions of CuPy, its products by `multiply(a, b)` and `multiply(a, b, out)`.

    `refuse(name)` is called before what cannot be captured.
    """

    def __init__(self, cupy: Any, multiply: Callable[..., Array], refuse: Callable[[str], None]) -> None:
        self._cupy, self._multiply = cupy, multiply
        self.linalg, self.random = (Refused(getattr(cupy, n), n, refuse) for n in ("linalg", "random"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cupy, name)

    # -- products of two ---------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array = None) -> Array:
        return self._multiply(a, b, out)

    def tensordot(self, a: Array, b: Array, axes: Any = 2) -> Array:
        of_a, of_b = (range(a.ndim - axes, a.ndim), range(axes)) if isinstance(axes, int) else axes
        of_a, of_b = ([i % x.ndim for i in np.atleast_1d(of)] for x, of in ((a, of_a), (b, of_b)))
        letters = iter(range(a.ndim + b.ndim))
        named_a = [next(letters) for _ in range(a.ndim)]
        shared = {j: named_a[i] for i, j in zip(of_a, of_b, strict=True)}
        named_b = [shared[j] if j in shared else next(letters) for j in range(b.ndim)]
        kept = [n for n in named_a if n not in shared.values()] + [n for n in named_b if n not in named_a]
        return self._pair(a, named_a, b, named_b, kept)

    def dot(self, a: Array, b: Array) -> Array:
        if not a.ndim or not b.ndim:
            return a * b
        return self.tensordot(a, b, ([-1], [max(b.ndim - 2, 0)]))

    def inner(self, a: Array, b: Array) -> Array:
        return self.tensordot(a, b, ([-1], [-1])) if a.ndim and b.ndim else a * b

    def vdot(self, a: Array, b: Array) -> Array:
        return self.matmul(a.ravel(), b.ravel())

    def outer(self, a: Array, b: Array) -> Array:
        return a.reshape(-1, 1) * b.ravel()

    def kron(self, a: Array, b: Array) -> Array:
        n = max(a.ndim, b.ndim)
        of_a, of_b = ((1,) * (n - x.ndim) + x.shape for x in (a, b))
        spaced = a.reshape([k for i in of_a for k in (i, 1)]) * b.reshape([k for i in of_b for k in (1, i)])
        return spaced.reshape([i * j for i, j in zip(of_a, of_b, strict=True)])

    def convolve(self, a: Array, v: Array, mode: str = "full") -> Array:
        if len(v) > len(a):
            a, v = v, a
        reach = {"full": len(v) - 1, "same": len(v) // 2, "valid": 0}[mode]
        # "same" keeps as many elements as the longer has, of which (k - 1) // 2 reach over the end.
        after = {"full": len(v) - 1, "same": (len(v) - 1) // 2, "valid": 0}[mode]
        return self.correlate(self._cupy.pad(a, (reach, after)), v[::-1], "valid")

    def correlate(self, a: Array, v: Array, mode: str = "valid") -> Array:
        if mode != "valid" or len(v) > len(a):
            return self.convolve(a, v[::-1], mode)
        windows = self._cupy.lib.stride_tricks.as_strided(a, (len(a) - len(v) + 1, len(v)), a.strides * 2)
        return self.matmul(windows, v)

    # -- products of several -----------------------------------------------------------------------------------

    def einsum(self, subscripts: str, *operands: Array, optimize: Any = False) -> Array:
        """Einstein summation of operands whose axes are all named, with "->"; an axis of length 1 broadcasts.

        `optimize` is not asked: three and more are multiplied two at a time, in an order that NumPy plans.
        """
        inputs, output = subscripts.split("->")
        work, length = [], dict.fromkeys(output, 1)
        for term, x in zip(inputs.split(","), operands, strict=True):
            x, named = self._plain(x, term)
            work.append((x, named))
            length.update(zip(named, x.shape, strict=True))
        kept = [letter for letter in output if length[letter] != 1]
        for together in order(subscripts, operands):
            parts, work = [work[i] for i in together], [x for i, x in enumerate(work) if i not in together]
            while len(parts) > 1:
                (a, of_a), (b, of_b), *parts = parts
                needed = {*kept, *(letter for _, named in (*work, *parts) for letter in named)}
                named = [n for n in dict.fromkeys([*of_a, *of_b]) if n in needed]
                parts.append((self._pair(a, of_a, b, of_b, named), named))
            work += parts
        ((y, named),) = work
        return arranged(*summed(y, named, kept), kept).reshape([length[letter] for letter in output])

    def _plain(self, x: Array, term: str) -> tuple[Array, list[Any]]:
        """`x` on the diagonals of letters that it has twice, without its axes of length 1, and the letters left."""
        letters: list[Any] = list(term)
        for letter in term:
            while letters.count(letter) > 1:
                i = letters.index(letter)
                j = letters.index(letter, i + 1)
                x = x.diagonal(0, i, j)
                letters = [n for at, n in enumerate(letters) if at not in (i, j)] + [letter]
        letters = [letter for letter, n in zip(letters, x.shape, strict=True) if n != 1]
        return x.reshape([n for n in x.shape if n != 1]), letters

    def _pair(self, a: Array, of_a: list[Any], b: Array, of_b: list[Any], kept: list[Any]) -> Array:
        """The product of two whose axes are named, summed over what is not kept, with axes as `kept` has them."""
        a, of_a = summed(a, of_a, {*of_b, *kept})
        b, of_b = summed(b, of_b, {*of_a, *kept})
        both = [n for n in of_a if n in of_b]
        stack, met = [n for n in both if n in kept], [n for n in both if n not in kept]
        left, right = ([n for n in of if n not in both] for of in (of_a, of_b))
        length = dict(zip([*of_a, *of_b], [*a.shape, *b.shape], strict=True))

        def grouped(x: Array, named: list[Any], *groups: list[Any]) -> Array:
            ordered = arranged(x, named, [n for group in (stack, *groups) for n in group])
            return ordered.reshape(
                [*(length[n] for n in stack), *(math.prod(length[n] for n in group) for group in groups)]
            )

        if met and (left or right or not stack):
            y = self.matmul(grouped(a, of_a, left, met), grouped(b, of_b, met, right))
        else:  # nothing to sum, or inner products of many short vectors: no work for BLAS
            y = grouped(a, of_a, left, [], met) * grouped(b, of_b, [], right, met)
            y = y.sum(axis=-1, dtype=y.dtype) if met else y.reshape(y.shape[:-1])
        named = [*stack, *left, *right]
        return arranged(y.reshape([length[n] for n in named]), named, kept)


class Refused:
    """A module of CuPy's whose functions call libraries, which refuse to while a stream captures."""

    def __init__(self, module: Any, name: str, refuse: Callable[[str], None]) -> None:
        self._module, self._name, self._refuse = module, name, refuse

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._refuse(f"{self._name}.{name}")
            return function(*args, **kwargs)

        return call


def summed(x: Array, named: list[Any], keep: Container[Any]) -> tuple[Array, list[Any]]:
    """`x` without the axes that are not in `keep`, and the names of those that are."""
    gone = tuple(i for i, n in enumerate(named) if n not in keep)
    return (x.sum(axis=gone, dtype=x.dtype) if gone else x), [n for n in named if n in keep]


def arranged(x: Array, named: list[Any], wanted: list[Any]) -> Array:
    """`x`, whose axes are `named`, with them in the order `wanted`."""
    return x if named == wanted else x.transpose([named.index(n) for n in wanted])


def order(subscripts: str, operands: Sequence[Array]) -> Sequence[tuple[int, ...]]:
    """Which operands are multiplied together, one time after the other; a product takes its place at the end."""
    if len(operands) < 3:
        return [(0, 1)][: len(operands) - 1]
    shapes = [np.broadcast_to(np.float32(0), x.shape) for x in operands]
    path: Sequence[tuple[int, ...]] = np.einsum_path(subscripts, *shapes, optimize="greedy")[0][1:]
    return path
