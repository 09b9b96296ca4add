"""Layers without memory: an affine map, a table of vectors, and the small modules of autobw's programs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from ..core.schedule import require_count
from ..core.variable import Parameter
from ..ops.elementwise import add, multiply, sigmoid, tanh
from ..ops.index import take
from ..types import Array, Shape
from .module import Module


def uniform(rng: Any, shape: Shape, fan_in: int, dtype: Any) -> Array:
    """Uniform in ±1/√fan_in, the usual start of affine and recurrent weights. `rng`: Generator, seed or None."""
    bound = 1.0 / max(fan_in, 1) ** 0.5
    return np.random.default_rng(rng).uniform(-bound, bound, shape).astype(dtype)


class Linear(Module):
    """`x @ weight + bias`. Shapes: (..., n_in) -> (..., n_out); weight (n_in, n_out), bias (n_out,)."""

    def __init__(
        self, n_in: int, n_out: int, *, bias: bool = True, dtype: Any = np.float32, rng: Any = None
    ) -> None:
        require_count("Linear", "n_in", n_in)
        require_count("Linear", "n_out", n_out)
        rng = np.random.default_rng(rng)
        self.weight = Parameter(uniform(rng, (n_in, n_out), n_in, dtype))
        self.bias = Parameter(uniform(rng, (n_out,), n_in, dtype)) if bias else None

    def forward(self, x: Any) -> Any:
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class Embedding(Module):
    """A vector for each of `count` symbols. Shapes: integers (...) -> (..., size); weight (count, size)."""

    def __init__(self, count: int, size: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        require_count("Embedding", "count", count)
        require_count("Embedding", "size", size)
        self.weight = Parameter(np.random.default_rng(rng).standard_normal((count, size)).astype(dtype))

    def forward(self, symbols: Any) -> Any:
        return take(self.weight, symbols)


class Sigmoid(Module):
    """The logistic function of its input."""

    def forward(self, x: Any) -> Any:
        return sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent of its input."""

    def forward(self, x: Any) -> Any:
        return tanh(x)


class Add(Module):
    """The sum of a list of inputs (Torch's CAddTable)."""

    def forward(self, inputs: Sequence[Any]) -> Any:
        return reduce(add, inputs)


class Mul(Module):
    """The product of a list of inputs (Torch's CMulTable)."""

    def forward(self, inputs: Sequence[Any]) -> Any:
        return reduce(multiply, inputs)
