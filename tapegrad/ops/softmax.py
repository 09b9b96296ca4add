"""Distributions over classes, and the loss that compares them with labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import module_beside
from ..core.primitive import Case, primitive
from ..errors import DtypeError, ShapeError, describe
from ..kernels import choice, cpu
from .elementwise import equal, exp
from .index import getitem, require_indices
from .reduce import mean, sum
from .shape import reshape


@primitive(
    a=lambda ct, y, axis: y * (ct - sum(ct * y, axis, True)),
    special=(-1000.0, 1000.0),
    cases=[Case((2, 3)), Case((3,)), Case((2, 3, 4), axis=1), Case((2, 0))],
)
def softmax(xp, a, *, axis=-1):
    r"""$y_i = e^{a_i} / \sum_j e^{a_j}$ along `axis`, shifted so that nothing overflows."""
    if not a.size:  # of no elements there is no largest
        return a.copy()
    y = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    return y / xp.sum(y, axis=axis, keepdims=True)


@primitive(
    a=lambda ct, y, axis: ct - exp(y) * sum(ct, axis, True),
    special=(-1000.0, 1000.0),
    cases=[Case((2, 3)), Case((3,)), Case((2, 3, 4), axis=1), Case((2, 0))],
)
def log_softmax(xp, a, *, axis=-1):
    r"""$y_i = a_i - \ln \sum_j e^{a_j}$ along `axis`, without overflow."""
    if not a.size:
        return a.copy()
    shifted = a - xp.max(a, axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))


def cross_entropy_by_ops(logits: Any, labels: Any) -> Any:
    """What `softmax_cross_entropy` computes, in ops."""
    rows = log_softmax(logits).reshape((-1, logits.shape[-1]))
    return -mean(getitem(rows, (module_beside(labels).arange(labels.size), labels.ravel())))


def cross_entropy_pullback(ct: Any, labels: Any, probabilities: Any) -> Any:
    return (choice.softmax_cross_entropy_pullback(ct, labels, probabilities),)


def cross_entropy_formula(ct, labels, probabilities):
    """`cross_entropy_pullback` in ops: all but `ct` is made of residuals."""
    one_hot = equal(
        reshape(labels, (*labels.shape, 1)), module_beside(labels).arange(probabilities.shape[-1])
    )
    return (ct * ((probabilities - one_hot) / labels.size),)


@primitive(
    hidden=("probabilities",),
    joint=cross_entropy_pullback,
    formula=cross_entropy_formula,
    differentiable=("logits",),
    reference=cross_entropy_by_ops,
    special=(-1000.0, 1000.0),
    cases=[Case((3, 4), np.array([0, 3, 1])), Case((2, 2, 3), np.array([[0, 2], [1, 1]]))],
)
def softmax_cross_entropy(xp, logits, labels):
    r"""Mean over the batch of $-\ln \mathrm{softmax}(a)_{label}$, in nats, from integer labels.

    Shapes: logits (..., classes), labels (...) integers -> scalar.
    Raises DtypeError for labels that are not integers, ArgumentError for one out of range.
    """
    outputs = choice.softmax_cross_entropy_in_one_call(logits, labels)
    if outputs is not None:
        return outputs
    if labels.shape != logits.shape[:-1] or not logits.ndim:
        raise ShapeError(
            "softmax_cross_entropy: `labels` must have the shape of `logits` without its last axis.\n"
            f"  logits: {describe(logits)}      labels: {describe(labels)}"
        )
    if not labels.size:
        raise ShapeError(f"softmax_cross_entropy: the batch is empty.\n  logits: {describe(logits)}")
    if labels.dtype.kind not in "iu":
        raise DtypeError(
            f"softmax_cross_entropy: `labels` must be integers, and {describe(labels)} came.\n"
            "  For probabilities write -tg.mean(tg.sum(p * tg.log_softmax(logits), -1))."
        )
    require_indices(labels, logits.shape[-1], "softmax_cross_entropy", "labels")
    return cpu.softmax_cross_entropy(logits, labels)
