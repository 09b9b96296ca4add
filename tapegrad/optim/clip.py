"""Limits on gradients, between a sweep and a step."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.variable import Parameter, Variable
from ..errors import ArgumentError, NonFiniteError, describe
from ..kernels import choice, cpu
from ..types import Array


def gradients(params: Iterable[Parameter], limit: float, where: str, name: str) -> list[Array]:
    if not isinstance(limit, (int, float, np.floating)) or not limit > 0:
        raise ArgumentError(f"{where}: `{name}` must be above 0, and {limit!r} came.")
    listed = (
        [params]
        if isinstance(params, Variable)
        else list(params)
        if isinstance(params, Iterable)
        else [params]
    )
    for p in listed:
        if not isinstance(p, Variable):
            raise ArgumentError(f"{where}: `params` must be Parameters, and {describe(p)} came.")
    return [p.grad for p in {id(p): p for p in listed}.values() if p.grad is not None]


def clip_by_norm(params: Iterable[Parameter], limit: float) -> Any:
    """Scale all gradients together so that their joint Euclidean norm is at most `limit`; returns the norm before.

    Raises NonFiniteError, and changes nothing, if the norm is NaN or infinite. Source: Pascanu et al. 2013.
    For gradients on a device the norm is a 0-d array there: the host does not wait for it unless it is read, and
    it is the optimizer that refuses a step that is not finite.
    """
    grads = gradients(params, limit, "clip_by_norm", "limit")
    if any(map(on_device, grads)):
        return clip_on_device(grads, limit)
    norm = math.sqrt(sum(map(choice.squared_norm, grads)))
    if not math.isfinite(norm):
        raise NonFiniteError(
            f"clip_by_norm: the norm of the gradients is {norm}, so no scale would help.\n"
            f"  Nothing was changed. Look for NaN in the data or the carried state, or lower lr."
        )
    if norm > limit:
        for grad in grads:
            grad *= limit / norm
    return norm


def clip_on_device(grads: list[Any], limit: float) -> Any:
    """`clip_by_norm` where the gradients are."""
    kernels = choice.beside(*grads)
    if kernels is not cpu and all(on_device(grad) and grad.flags.c_contiguous for grad in grads):
        return np.sqrt(kernels.norm_brought_down(grads, limit))
    norm = np.sqrt(functools.reduce(operator.add, [np.sum(np.square(g, dtype=np.float64)) for g in grads]))
    factor = np.minimum(limit / norm, 1.0)  # of no gradients at all 1: infinity is above it
    for grad in grads:
        grad *= factor.astype(grad.dtype)
    return norm


def clip_by_value(params: Iterable[Parameter], limit: float) -> None:
    """Limit every element of every gradient to ±`limit`, in place."""
    for grad in gradients(params, limit, "clip_by_value", "limit"):
        np.clip(grad, -limit, limit, out=grad)
