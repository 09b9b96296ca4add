"""Policies at a joint: what crosses the border between two segments, given to a tape as `joint=`."""

from __future__ import annotations

import functools
import operator
from numbers import Integral
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..errors import ArgumentError

Pending = dict[int, Any]


def require_seed(where: str, seed: object) -> None:
    """Raise unless `seed` is a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ArgumentError(f"{where}: `seed` must be a whole number of at least 0, and {seed!r} came.")


class RandomJoint:
    """Randomised truncation as "Dive into Deep Learning" writes it: every joint draws a ξ.

    ξ = 1/α with probability α, else 0, so that E[ξ] = 1. Adjoints at a joint are multiplied by its ξ: in
    expectation nothing changes, and where ξ = 0 the expansion terminates. A loss's contribution over k
    joints counts with a weight of mean 1 and variance α^-k - 1. Each crossing draws anew, in every sweep.
    Source: Zhang et al., Dive into Deep Learning, section 9.7 (z_t, with the recursion in place of ∂h).
    """

    def __init__(self, alpha: float, seed: int = 0) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
            raise ArgumentError(
                f"RandomJoint: `alpha` must be a probability above 0 and up to 1, and {alpha!r} came."
            )
        require_seed("RandomJoint", seed)
        self.alpha, self.seed = alpha, seed
        self._random = np.random.default_rng(seed)

    def __repr__(self) -> str:
        return f"RandomJoint({self.alpha}, seed={self.seed})"

    def __call__(self, pending: Pending) -> Pending:
        if self._random.random() >= self.alpha:
            return {}
        return {slot: ct / self.alpha for slot, ct in pending.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state of the random numbers."""
        return {"random": self._random.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was taken."""
        self._random.bit_generator.state = state["random"]


class ClipJoint:
    """Clipping per joint: adjoints that cross are scaled down so that together their norm is at most `norm`.

    An explosion is stopped where it happens, and the gradients of the newest steps stay as they are;
    clipping the gradient at the end would shrink them with the rest.
    """

    def __init__(self, norm: float) -> None:
        if isinstance(norm, bool) or not isinstance(norm, (int, float)) or not norm > 0:
            raise ArgumentError(f"ClipJoint: `norm` must be a number above 0, and {norm!r} came.")
        self.norm = norm

    def __repr__(self) -> str:
        return f"ClipJoint({self.norm})"

    def __call__(self, pending: Pending) -> Pending:
        if any(map(on_device, pending.values())):
            return self._without_reading(pending)
        largest = max((float(np.max(np.abs(ct), initial=0.0)) for ct in pending.values()), default=0.0)
        if not 0 < largest < np.inf:
            return pending  # nothing to clip, or nothing that scaling could mend
        # By the largest first: the square of an exploding adjoint would overflow.
        squares = sum(np.sum(np.square(ct / largest, dtype=np.float64)) for ct in pending.values())
        scale = self.norm / largest / np.sqrt(squares)
        if scale >= 1:
            return pending
        return {slot: (ct * scale).astype(ct.dtype) for slot, ct in pending.items()}

    def _without_reading(self, pending: Pending) -> Pending:
        """The same on a device, in float64 and without the host's knowing the norm. What is not finite stays so."""
        squares = [np.sum(np.square(ct, dtype=np.float64)) for ct in pending.values()]
        scale = np.minimum(self.norm / np.sqrt(functools.reduce(operator.add, squares)), 1.0)
        return {slot: (ct * scale).astype(ct.dtype) for slot, ct in pending.items()}
