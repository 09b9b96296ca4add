"""Is a gradient's own derivative right? Differences of that gradient say."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from .core.entry import ITEM, Entry
from .core.replay import Inputs
from .core.window import WindowSegment
from .errors import GradientError
from .ops.reduce import sum as total
from .places import of_ones_own, op_name, places, put_at, scale_of, value_at
from .transforms import grad
from .types import Array

# What an op was given, by argument, in float64.
Given = Callable[[Entry, Inputs], dict[str, Any]]


class SecondOrder:
    """The derivative of a function's gradient along a random direction, compared with differences of that gradient."""

    def __init__(
        self,
        f: Callable[..., Any],
        args: Sequence[Array],
        eps: float,
        limit: float,
        directions: int,
        seed: int,
    ) -> None:
        self.args, self.eps, self.limit, self.directions = list(args), eps, limit, directions
        self.rng = np.random.default_rng(seed)
        along = [self.rng.standard_normal(a.shape) for a in args]
        gradient = grad(f, tuple(range(len(args))))

        def slope(*xs: Any) -> Any:
            return reduce(operator.add, [total(g * d) for g, d in zip(gradient(*xs), along, strict=True)])

        self.slope = slope

    def check(self, window: Sequence[WindowSegment], given_to: Given) -> float:
        """The worst relative difference. Raises GradientError.

        `window` and `given_to`: what the function recorded, and what each op was given, for the message.
        """
        i, gradient, error = max(self.errors(), key=operator.itemgetter(2))
        if error > self.limit:
            raise GradientError(self.explained(i, gradient, error) + "\n  " + self.blame(window, given_to))
        return error

    def errors(self) -> list[tuple[int, Array, float]]:
        """For each argument and direction: position, the derivative that is checked, relative difference."""
        found = grad(self.slope, tuple(range(len(self.args))))(*self.args)
        errors = []
        for i, gradient in enumerate(found):
            for _ in range(self.directions):
                d = self.rng.standard_normal(gradient.shape) * scale_of(self.args[i])
                along = float(np.sum(gradient * d))
                error = self.error(along, *self.difference(i, d))
                if error > self.limit:  # maybe the step is too long for a gradient so curved
                    error = min(error, self.error(along, *self.difference(i, d, self.eps / 8)))
                errors.append((i, gradient, error))
        return errors

    def difference(self, i: int, d: Array, eps: float | None = None) -> tuple[float, float]:
        """The central difference when argument `i` moves along `d`, and what of it may be rounding."""
        eps, ends = eps or self.eps, []
        for step in (eps, -eps):
            moved = [a + step * d if i == j else a for j, a in enumerate(self.args)]
            with np.errstate(all="ignore"):
                ends.append(float(self.slope(*moved)))
        if not np.isfinite(ends).all():
            raise GradientError(
                f"check_gradients: a difference of gradients for argument {i} is not finite ({ends[0]:g} - {ends[1]:g}).\n"
                f"  A step of eps = {self.eps:g} leaves the domain of an op, or values overflow. Try a smaller eps."
            )
        noise = 50 * np.finfo(np.float64).eps * max(map(abs, ends)) / eps
        return (ends[0] - ends[1]) / (2 * eps), noise

    def error(self, found: float, expected: float, noise: float) -> float:
        """How far apart, relative to their size, beyond what rounding explains."""
        if not np.isfinite(found):
            return float("inf")
        return max(abs(found - expected) - noise, 0.0) / max(abs(found), abs(expected), 1e-4)

    def explained(self, i: int, gradient: Array, error: float) -> str:
        """The message: which argument, and which element."""
        lines = [
            f"check_gradients: the gradient is right, and the derivative of the gradient for argument {i} is not what "
            f"differences say: relative difference {error:.1e}."
        ]
        if gradient.size <= 2000:
            units = np.eye(gradient.size).reshape(-1, *gradient.shape)
            scale = scale_of(self.args[i])
            moved = np.array([self.difference(i, unit * scale)[0] for unit in units])
            differences = moved.reshape(gradient.shape) / scale
            worst = np.unravel_index(np.argmax(np.abs(differences - gradient)), gradient.shape)
            where = tuple(int(k) for k in worst)
            lines.append(
                f"worst element {where}: found {gradient[worst]:.8g}, difference {differences[worst]:.8g}."
            )
        return "\n  ".join(lines)

    def blame(self, window: Sequence[WindowSegment], given_to: Given) -> str:
        """The op that is wrong in second order by itself, if there is one."""
        for segment in window:
            for entry, inputs in zip(segment.entries, segment.inputs, strict=True):
                if entry[0] is ITEM:
                    continue
                p, given, live = entry[0].primitive, given_to(entry, inputs), places(entry)

                def alone(
                    *xs: Any, p: Any = p, given: Any = given, live: Any = live, inputs: Any = inputs
                ) -> Any:
                    for place, x in zip(live, xs, strict=True):
                        given = put_at(given, place, x)
                    y = p.function(*given.values(), **of_ones_own(inputs.statics))
                    return reduce(operator.add, [total(v * v) for v in (y if isinstance(y, tuple) else (y,))])

                of_op = SecondOrder(alone, [value_at(given, place) for place in live], self.eps, 1e-3, 1, 0)
                try:
                    wrong = max(error for _, _, error in of_op.errors()) > of_op.limit
                except GradientError:  # its domain ends here
                    continue
                if wrong:
                    return (
                        f"likely cause: a rule of `{op_name(entry, inputs)}` is no derivative that can be differentiated: it must be made "
                        f"of ops, of its residuals as they come (no .value); or its input is at a kink."
                    )
        return (
            "every op is right by itself in second order: an input lies near a kink, tg.stop_gradient holds something still "
            "that differences move, or eps does not fit."
        )
