"""A window that is as long as the gradient's bias needs: Aicher, Foti and Fox's adaptive truncation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend.device import on_host
from ..core.adjoints import Adjoints
from ..core.schedule import Schedule, require_count
from ..errors import ArgumentError
from ..types import Array


class Adaptive(Schedule):
    """BPTT(2K - 1; K) whose K is the smallest at which the gradient's relative bias is below `delta`.

    Every loss goes back at least K segments. `probes` times in every `every` segments a probe sweeps from the
    newest loss alone over the last `longest` segments, touching no gradient. Over these probes it measures by lag k

        φ_k = E ‖∂L_s/∂state_{s-k}‖                      and       g_K = ‖E Σ_{k ≤ K} ∂L_s/∂state_{s-k}‖.

    The decay rate β is fitted to log φ by least squares, and with τ at four fifths of the lags

        bias(K) = Σ_{k=K}^{τ} φ_k + φ_τ / (1 - β),     relative(K) = bias(K) / max_K (g_K - bias(K)).

    K becomes the smallest with relative(K) < delta, between `shortest` and `longest` (`longest` if there
    is none). Norms are per row (axis 0, the batch) and averaged where every state has two axes or more. A mean
    over few samples has a norm of its own, which makes g too large and K too small: hence several probes.
    `stride` other than K: BPTT(K + stride - 1; stride).

    `K` is today's, `history` the list of (segments seen, K) after each estimate, `profile` the last φ.
    Memory: up to max(longest, 2K - 1) segments. A snapshot and `tape.reset()` keep K.
    Source: Aicher, Foti & Fox, Adaptively Truncating Backpropagation Through Time to Control Gradient Bias
    (UAI 2019), equations 12-16, and the authors' programs for τ, the fit and the probe.
    """

    def __init__(
        self,
        delta: float,
        shortest: int = 2,
        longest: int = 100,
        start: int = 15,
        every: int = 1000,
        probes: int = 8,
        stride: int | None = None,
    ) -> None:
        if isinstance(delta, bool) or not isinstance(delta, (int, float)) or not delta > 0:
            raise ArgumentError(f"Adaptive: `delta` must be a relative bias above 0, and {delta!r} came.")
        counts = {"shortest": shortest, "longest": longest, "start": start, "every": every, "probes": probes}
        for name, count in counts.items() if stride is None else {**counts, "stride": stride}.items():
            require_count("Adaptive", name, count)
        if shortest > longest or longest < 10:
            raise ArgumentError(
                f"Adaptive: `shortest` must not exceed `longest`, nor `longest` be below 10 (the fit needs lags), "
                f"and shortest={shortest}, longest={longest} came."
            )
        self.delta, self.shortest, self.longest = delta, shortest, longest
        self.every, self.probes, self.stride, self.start = every, probes, stride, start
        self.K = min(max(start, shortest), longest)
        self.history: list[tuple[int, int]] = []
        self.profile: list[float] = []
        self._seen = self._probed = self._at = 0
        self._norms: list[Array] = []  # of the probes since the last estimate
        self._sums: list[Array] = []

    def __repr__(self) -> str:
        return (
            f"Adaptive({self.delta}, shortest={self.shortest}, longest={self.longest}, start={self.start}, "
            f"every={self.every}, probes={self.probes}, stride={self.stride})"
        )

    def fresh(self) -> Adaptive:
        return Adaptive(
            self.delta, self.shortest, self.longest, self.start, self.every, self.probes, self.stride
        )

    @property
    def window(self) -> int:  # type: ignore[override]
        return max(self.longest, self.reach)

    @property
    def reach(self) -> int:
        return self.K + (self.stride or self.K) - 1

    def due(self, index: int, swept: int) -> bool:
        return index - swept >= (self.stride or self.K)

    def swept(self, tape: Any, clock: Any, sweep: Any) -> None:
        window = tape._window()
        index = clock.now
        self._seen += index - self._at
        self._at = index
        while window and not window[-1].losses:  # the newest loss may have come late
            window.pop()
        if (self._seen - self._probed) * self.probes < self.every or len(window) < self.longest:
            return
        self._probed = self._seen
        entries, _ = tape._today(window, whole=True)
        norms, sums = probe(window[-self.longest :], entries)
        if len(norms) == self.longest and all(s.shape == sums.shape for s in self._sums):
            self._norms.append(norms)
            self._sums.append(sums)
        if len(self._norms) == self.probes:
            phi, g = np.mean(self._norms, axis=0), np.linalg.norm(np.mean(self._sums, axis=0), axis=1)
            self.K = min(max(shortest_window(phi, g, self.delta), self.shortest), self.longest)
            self.history.append((self._seen, self.K))
            self.profile = [float(norm) for norm in phi]
            self._norms, self._sums = [], []

    def reset(self) -> None:
        self._at = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "K": self.K,
            "history": [list(pair) for pair in self.history],
            "seen": [self._seen, self._probed, self._at],
            "profile": list(self.profile),
            "probes": [list(self._norms), list(self._sums)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.K = int(state["K"])
        self.history = [(int(seen), int(k)) for seen, k in state["history"]]
        self._seen, self._probed, self._at = state["seen"]
        self.profile = list(state["profile"])
        self._norms, self._sums = list(state["probes"][0]), list(state["probes"][1])


def probe(window: Any, entries: Any) -> tuple[Array, Array]:
    """Of the newest loss alone, by lag: the norm of the adjoint of the state, and its running sum. Rows are averaged."""
    adjoints = Adjoints()
    loss = window[-1].losses[-1]
    adjoints.add(loss.slot, loss.seed)
    norms: list[float] = []
    sums: list[Array] = []
    total = None
    for segment in reversed(window):
        adjoints.sweep(reversed(entries(segment)))
        adjoints.sums = {s: ct for s, ct in adjoints.sums.items() if 0 < s < segment.first}
        state = rows([adjoints.sums[s] for s in sorted(adjoints.sums)])
        if total is not None and total.shape != state.shape:
            break  # another state than before: lags cannot be compared
        total = state if total is None else total + state
        norms.append(float(np.mean(np.sqrt(np.sum(state * state, axis=1)))))
        sums.append(np.mean(total, axis=0))
    return np.array(norms), np.array(sums)


def rows(cts: list[Array]) -> Array:
    """All of `cts` side by side, a row per stream if they agree on axis 0, else in one row."""
    arrays = [np.asarray(on_host(ct), np.float64) for ct in cts]
    batch = {a.shape[0] if a.ndim > 1 else None for a in arrays}
    count = (batch.pop() if len(batch) == 1 else None) or 1
    return np.concatenate([a.reshape(count, -1) for a in arrays] or [np.zeros((1, 0))], axis=1)


def shortest_window(phi: Array, g: Array, delta: float) -> int:
    """The smallest K with relative bias below `delta`; the number of lags if there is none."""
    lags = np.arange(len(phi))
    tau = int(0.8 * len(phi))
    alive = phi > math.exp(-50)
    slope = float(np.polyfit(lags[alive], np.log(phi[alive]), 1)[0]) if alive.sum() > 1 else -math.inf
    beta = math.exp(slope)
    if beta >= 1:
        return len(phi)
    K = np.arange(1, len(phi) + 1)
    tails = np.concatenate([np.cumsum(phi[: tau + 1][::-1])[::-1], np.zeros(len(phi) - tau)])
    rest = phi[tau] / (1 - beta)
    bias = np.where(tau > K, tails[K] + rest, rest * beta ** np.maximum(K - tau, 0.0))
    floor = float(np.max(g - bias))
    small = K[bias < delta * floor] if floor > 0 else K[:0]
    return int(small[0]) if len(small) else len(phi)
