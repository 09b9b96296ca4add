"""Losses, as modules: means over the batch."""

from __future__ import annotations

from typing import Any

from ..ops.elementwise import square
from ..ops.reduce import mean
from ..ops.softmax import softmax_cross_entropy
from .module import Module


class CrossEntropy(Module):
    """Mean of -ln softmax(logits)[label], in nats. Shapes: (..., classes), integers (...) -> scalar."""

    def forward(self, logits: Any, labels: Any) -> Any:
        return softmax_cross_entropy(logits, labels)


class MeanSquaredError(Module):
    """Mean of (y - target)². Shapes: any two that broadcast -> scalar."""

    def forward(self, y: Any, target: Any) -> Any:
        return mean(square(y - target))
