"""Chunks of random length whose gradient is that of full backpropagation in expectation: ARTBP."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import device_of, moved, owned
from ..core.schedule import Schedule, require_count
from ..core.snapshot import Slot
from ..errors import ArgumentError
from ..types import Array
from .joints import require_seed

TERMS = 1_000_000  # of the sums over positions in a chunk; the rest of a power law is small


class Randomized(Schedule):
    """Anticipated reweighted truncated backpropagation (ARTBP) of Tallec and Ollivier (2017).

    The joint behind the d-th segment since the last cut is cut with probability

        c_d = (α - 1) / ((α - 2) L + d),

    and what crosses a joint that is not cut is multiplied by 1 / (1 - c_d). A cut ends a chunk: the tape
    sweeps, and forgets the chunk. The mean length of a chunk is exactly L = `mean`; `alpha` > 2 is the
    exponent of its power law (large: nearly geometric). The gradient, summed over a sequence, is that of
    full backpropagation in expectation; its variance is the price.

    On a part of a tape it is the part's own gradient that is unbiased. To the sweeps of other parts, what
    this one has forgotten is a constant, as with any schedule, and nothing makes up for that.

    `longest` bounds the memory by cutting every chunk there at the latest. That is biased: a
    contribution over `lag` joints is lost in a fraction `lost(lag)` of all cases.

    `variance`: measured on the sweeps so far, see there. Source: Tallec & Ollivier, arXiv:1705.08209, eq. 7-9, 15.
    """

    def __init__(self, mean: float, alpha: float = 6.0, seed: int = 0, longest: int | None = None) -> None:
        for name, value, least in (("mean", mean, 1), ("alpha", alpha, 2)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not least < value < np.inf:
                raise ArgumentError(
                    f"Randomized: `{name}` must be a number above {least}, and {value!r} came."
                )
        if longest is not None:
            require_count("Randomized", "longest", longest)
        require_seed("Randomized", seed)
        self.mean, self.alpha, self.seed, self.longest = mean, alpha, seed, longest
        self.window = longest
        self._random = np.random.default_rng(seed)
        self._moments = Moments()
        self.reset()

    def __repr__(self) -> str:
        return f"Randomized(mean={self.mean}, alpha={self.alpha}, seed={self.seed}, longest={self.longest})"

    def fresh(self) -> Randomized:
        return Randomized(self.mean, self.alpha, self.seed, self.longest)

    # -- the law ---------------------------------------------------------------------------------

    def cut_probability(self, d: int) -> float:
        """c_d: how likely a chunk of `d` segments that is not cut yet ends there."""
        if self.longest is not None and d >= self.longest:
            return 1.0
        return min(1.0, (self.alpha - 1) / ((self.alpha - 2) * self.mean + d))

    def factor(self, d: int) -> float:
        """The compensation factor at a joint that is not cut: 1 / (1 - c_d)."""
        return 1.0 / (1.0 - self.cut_probability(d))

    def survival(self, d: int) -> float:
        """The probability that a chunk is longer than `d` segments."""
        return float(self._survival(d + 1)[d])

    def weight_variance(self, lag: int) -> float:
        """The variance of the weight (mean 1) with which a contribution over `lag` joints counts.

        Over all positions in a chunk, each as likely as it is in the long run.
        """
        ends, starts, share = self._pairs(lag)
        return float(np.sum(share * starts / ends)) - (1.0 - self.lost(lag)) ** 2

    def lost(self, lag: int) -> float:
        """The fraction of contributions over `lag` joints that `longest` leaves out: the bias. 0 without it."""
        return 0.0 if self.longest is None else float(1.0 - np.sum(self._pairs(lag)[2]))

    def _survival(self, count: int) -> Array:
        """P(length > d) for d = 0 … count - 1."""
        d = np.arange(1, count, dtype=np.float64)
        c = np.minimum(1.0, (self.alpha - 1) / ((self.alpha - 2) * self.mean + d))
        if self.longest is not None:
            c[d >= self.longest] = 1.0
        return np.concatenate([[1.0], np.cumprod(1.0 - c)])

    def _pairs(self, lag: int) -> tuple[Array, Array, Array]:
        """Per position p of the older end: survival to p + lag, to p, and how many of all segments are there."""
        count = self.longest if self.longest is not None else TERMS
        survival = self._survival(count + lag)
        starts, ends = survival[:count], survival[lag : count + lag]
        share = starts / np.sum(starts)
        return ends[ends > 0], starts[ends > 0], share[ends > 0]

    # -- what a tape asks ------------------------------------------------------------------------

    def reset(self) -> None:
        self._drawn, self._since, self._moments.at = 0, 0, 0
        self._scales: dict[int, float] = {}
        self._cuts = [0]  # an aborted segment's may lie ahead: it is drawn once, for when it is done again

    def _draw_up_to(self, index: int) -> None:
        while self._drawn < index:
            self._drawn += 1
            self._since += 1
            c = self.cut_probability(self._since)
            if self._random.random() < c:
                self._scales[self._drawn] = 0.0
                self._cuts.append(self._drawn)
                self._since = 0
            else:
                self._scales[self._drawn] = 1.0 / (1.0 - c)

    def due(self, index: int, swept: int) -> bool:
        return self.forgets(index) > swept

    def scale(self, index: int) -> float:
        self._draw_up_to(index)
        return self._scales.get(index, 0.0)  # older than the tape: behind a cut

    def forgets(self, index: int) -> int:
        self._draw_up_to(index)
        return next((cut for cut in reversed(self._cuts) if cut <= index), 0)

    def closed(self, tape: Any, clock: Any) -> None:
        cut = self.forgets(clock.now - 1)  # the newest segment's loss may still come
        if cut > clock.swept and not tape._waiting([clock]):
            clock.swept = clock.forgotten = cut  # a chunk without a loss

    def swept(self, tape: Any, clock: Any, sweep: Any) -> None:
        self._moments.add(sweep, clock.now)
        last = self.forgets(clock.now)
        oldest = min(last, tape._window()[0].index)
        self._scales = {i: scale for i, scale in self._scales.items() if i >= oldest}
        before = self.forgets(clock.now - 1)  # where this segment, if it is aborted, will have to look
        self._cuts = [cut for cut in self._cuts if cut >= before]

    @property
    def variance(self) -> float:
        """The variance of the gradient per segment, as measured: that of a sum over n segments is n times it.

        Of all elements together (the trace of the covariance); what the data and the moving weights
        contribute is in it. NaN before the second chunk.
        """
        return self._moments.variance

    def state_dict(self) -> dict[str, Any]:
        scales = {str(i): scale for i, scale in self._scales.items()}
        return {
            "random": self._random.bit_generator.state,
            "drawn": [self._drawn, self._since],
            "cuts": list(self._cuts),
            "scales": scales,
            "moments": self._moments.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._random.bit_generator.state = state["random"]
        self._drawn, self._since = state["drawn"]
        self._cuts = list(state["cuts"])
        self._scales = {int(i): scale for i, scale in state["scales"].items()}
        self._moments.load_state_dict(state["moments"])


class Moments:
    """Sums over sweeps from which the variance of a gradient per segment follows.

    Chunks of random length L with gradients G are a renewal process with reward: over n segments the sum
    of all G has variance n · E‖G - L g‖² / E L, where g = E G / E L.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.at = 0
        self.length = self.length_squared = 0.0
        self.norm_squared: Any = 0.0
        self.gradient: dict[int, Array] = {}  # the sum of G by leaf slot, and of L G
        self.weighted: dict[int, Array] = {}

    def add(self, sweep: Any, index: int) -> None:
        length, self.at = index - self.at if index > self.at else index, index
        self.chunks += 1
        self.length += length
        self.length_squared += length**2
        for slot, ct in sweep.gradients.by_slot.items():
            g = owned(ct, np.float64)
            self.norm_squared = self.norm_squared + np.sum(
                g * g
            )  # on a device a number there: it is not read
            if slot in self.gradient:
                place = device_of(g)
                self.gradient[slot] = moved(self.gradient[slot], place) + g
                self.weighted[slot] = moved(self.weighted[slot], place) + length * g
            else:
                self.gradient[slot], self.weighted[slot] = g, length * g

    def state_dict(self) -> dict[str, Any]:
        sums = [[Slot(slot), g, self.weighted[slot]] for slot, g in self.gradient.items()]
        numbers = [self.chunks, self.at, self.length, self.length_squared, float(self.norm_squared)]
        return {"sums": sums, "numbers": numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.chunks, self.at, self.length, self.length_squared, self.norm_squared = state["numbers"]
        self.gradient = {slot: np.array(g) for slot, g, _ in state["sums"]}
        self.weighted = {slot: np.array(g) for slot, _, g in state["sums"]}

    @property
    def variance(self) -> float:
        if self.chunks < 2:
            return float("nan")
        rate = {slot: g / self.length for slot, g in self.gradient.items()}
        crossed = sum(float(np.sum(r * self.weighted[slot])) for slot, r in rate.items())
        squared = sum(float(np.sum(r * r)) for r in rate.values())
        return max(0.0, float(self.norm_squared) - 2 * crossed + squared * self.length_squared) / self.length
