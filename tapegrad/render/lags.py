"""The lag profile: how large the adjoint still is, so many segments back from the newest.

It answers whether a window is too long (the adjoint died long before its edge) or too short (it did not).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.sweep import Sweep
from ..errors import ArgumentError, describe
from ..types import Array
from .figure import COLORS, GREY, figure, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEGLIGIBLE = 1e-6  # of the largest norm: what is below it is marked as gone
DRAWABLE = (1e-200, 1e200)  # beyond them the ticks of a logarithmic axis overflow


class LagSummary(NamedTuple):
    """Norms by lag over some sweeps; arrays of shape (lags,), NaN where no sweep has a finite norm.

    lags               1, 2, …: the joint below the newest segment is lag 1
    lowest … highest   minimum, quartile, median, quartile, maximum of the finite norms
    not_finite         how many norms were infinite or NaN; they count for nothing else
    largest            the lag of the largest median; None if all are 0 or nothing is finite
    negligible         the first lag beyond it whose median is below 1e-6 of that; None if there is none
    sweeps             how many sweeps crossed a joint
    """

    lags: Array
    lowest: Array
    lower: Array
    median: Array
    upper: Array
    highest: Array
    not_finite: Array
    largest: int | None
    negligible: int | None
    sweeps: int


def lag_summary(sweeps: Any) -> LagSummary:
    """What `lag_profile` draws, as numbers; see there for `sweeps`."""
    profiles = as_profiles(sweeps)
    lags = np.arange(1, 1 + max(len(norms) for norms in profiles))
    table = np.full((len(profiles), len(lags)), np.nan)
    for row, norms in zip(table, profiles, strict=True):
        row[: len(norms)] = norms
    not_finite = sum(
        np.pad(~np.isfinite(norms), (0, len(lags) - len(norms))).astype(int) for norms in profiles
    )
    spread = np.full((5, len(lags)), np.nan)
    for at, column in enumerate(table.T):
        finite = column[np.isfinite(column)]
        if finite.size:
            spread[:, at] = np.percentile(finite, [0, 25, 50, 75, 100])
    median = spread[2]
    largest = negligible = None
    if np.nanmax(median, initial=0.0) > 0:
        largest = int(lags[np.nanargmax(median)])
        gone = lags[(lags > largest) & (median < NEGLIGIBLE * median[largest - 1])]
        negligible = int(gone[0]) if gone.size else None
    least, low, _, high, most = spread
    return LagSummary(
        lags, least, low, median, high, most, np.asarray(not_finite), largest, negligible, len(profiles)
    )


def lag_profile(sweeps: Any, path: str | os.PathLike[str] | None = None, ax: Axes | None = None) -> Figure:
    """Draw the norm of the adjoints at every joint by lag, on a logarithmic axis: median and spread.

    `sweeps`: Sweeps, lists of norms as in `sweep.joint_norms`, or one of either; they may differ in length,
    and a None (`backward` had nothing to sweep) is passed over. Where a stream began inside a window there
    is no joint below its first segment, and a Sweep counts none.

    Marks the lag of the largest median, and the first beyond it that is below 1e-6 of that. A norm of 0 has
    no place on the axis: a median of 0 is marked at the bottom edge, and lags with norms that are
    infinite or NaN at the top edge.

    Draws into `ax` if given. Returns the Figure, saved to `path` if given. Raises ArgumentError for no
    sweep that crosses a joint, MissingExtraError without matplotlib.
    """
    summary = lag_summary(sweeps)
    if ax is None:
        drawn = figure("render.lag_profile", 7.0, 4.0)
        ax = drawn.add_subplot()
    elif hasattr(ax, "set_yscale"):
        drawn = ax.figure.canvas.figure  # `ax.figure` may be a part of it
    else:
        raise ArgumentError(
            f"render.lag_profile: `ax` must be Axes of matplotlib, and {describe(ax)} came.\n"
            f"  Write figure.add_subplot(), or leave `ax` out."
        )
    draw_lags(summary, ax)
    return finish(drawn, path)


def draw_lags(summary: LagSummary, ax: Any) -> None:
    lags, median = summary.lags, summary.median
    bottom, top = limits(summary)
    ax.set(yscale="log", ylim=(bottom, top), xlim=(lags[0] - 0.5, lags[-1] + 0.5))
    ax.set_xlabel("lag (segments back from the newest)")
    ax.set_ylabel("norm of the adjoint at the joint")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    count = "1 sweep" if summary.sweeps == 1 else f"{summary.sweeps} sweeps"
    ax.set_title(
        f"Lag profile of {count}, lags 1 to {lags[-1]}" if lags[-1] > 1 else f"Lag profile of {count}"
    )

    def visible(norms: Array) -> Array:
        return np.clip(norms, bottom, top)

    if summary.sweeps > 1:
        whole, half = (summary.lowest, summary.highest), (summary.lower, summary.upper)
        for (low, high), strength, label in ((whole, 0.15, "all sweeps"), (half, 0.3, "middle half")):
            ax.fill_between(
                lags, visible(low), visible(high), color=COLORS[0], alpha=strength, lw=0, label=label
            )
    name = "norm" if summary.sweeps == 1 else "median"
    ax.plot(lags, np.where(median > 0, visible(median), np.nan), "o-", ms=3, color=COLORS[0], label=name)
    if summary.largest is not None:
        peak = median[summary.largest - 1]
        ax.plot(summary.largest, peak, "D", color=COLORS[3], label=f"largest at lag {summary.largest}")
        if summary.negligible is not None:
            label = f"first below $10^{{-6}}$ of it at lag {summary.negligible}"
            ax.axvline(summary.negligible, ls="--", color=COLORS[3], label=label)
            ax.axhline(NEGLIGIBLE * peak, ls=":", color=GREY)
    else:
        ax.text(0.5, 0.5, "no finite norm above 0", transform=ax.transAxes, ha="center", color=GREY)
    at_edge = {"transform": ax.get_xaxis_transform(), "clip_on": False, "ls": "", "ms": 6}
    if (zero := lags[median == 0]).size:
        ax.plot(zero, np.zeros(zero.shape), marker="v", color=GREY, label=f"{name} is 0", **at_edge)
    if (wild := lags[summary.not_finite > 0]).size:
        label = f"infinite or NaN ({int(summary.not_finite.sum())} left out)"
        ax.plot(wild, np.ones(wild.shape), marker="^", color=COLORS[3], label=label, **at_edge)
    ax.legend(fontsize="small", framealpha=0.9)


def limits(summary: LagSummary) -> tuple[float, float]:
    """Where the axis of norms begins and ends: a third of what is above 0, and three times it."""
    norms = np.concatenate([summary.lowest, summary.median, summary.highest])
    norms = np.clip(norms[norms > 0], *DRAWABLE)
    if not norms.size:
        return 1e-1, 1e1
    return float(norms.min() / 3), float(norms.max() * 3)


def as_profiles(sweeps: Any) -> list[Array]:
    """`sweeps` as arrays of norms, newest joint first, without those that have none."""
    if isinstance(sweeps, Sweep) or is_norms(sweeps):
        sweeps = [sweeps]
    if not isinstance(sweeps, Iterable) or isinstance(sweeps, (str, bytes, dict)):
        raise wrong_sweeps(sweeps)
    sweeps = [sweep for sweep in sweeps if sweep is not None]
    profiles = []
    for sweep in sweeps:
        if isinstance(sweep, Sweep):
            norms = sweep.joint_norms if len(sweep.left_edge) else sweep.joint_norms[:-1]
        elif is_norms(sweep):
            norms = sweep
        else:
            raise wrong_sweeps(sweep)
        profiles.append(np.asarray(norms, np.float64))
        if np.any(profiles[-1] < 0):
            raise ArgumentError(
                f"render.lag_profile: a norm is at least 0, and {profiles[-1].min()} came.\n"
                f"  Give norms as in sweep.joint_norms, not their logarithms."
            )
    profiles = [norms for norms in profiles if norms.size]
    if not profiles:
        raise ArgumentError(
            f"render.lag_profile: `sweeps` holds {len(sweeps)} sweeps, and none that crosses a joint.\n"
            f"  Collect what tape.backward(loss) returns when it sweeps, over at least two segments."
        )
    return profiles


def is_norms(value: Any) -> bool:
    """Whether `value` is one list of numbers, with at least one number in it."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "fiu" and value.size > 0
    return isinstance(value, Sequence) and len(value) > 0 and all(isinstance(n, Real) for n in value)


def wrong_sweeps(value: Any) -> ArgumentError:
    return ArgumentError(
        f"render.lag_profile: `sweeps` must be Sweeps or lists of norms, and {describe(value)} came.\n"
        f"  Collect what tape.backward(loss) returns, or its sweep.joint_norms."
    )
