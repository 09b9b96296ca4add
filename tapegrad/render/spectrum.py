"""Vanishing and exploding gradients of the linear RNN, measured against the spectral radius.

D2L 8.3: h_t = W_hx x_t + W_hh h_{t-1} and o_t = W_qh h_t. A loss at the last step T alone sends back

    dL/dh_{T-k} = (W_hhᵀ)^k W_qhᵀ dL/do_T

so its norm goes like rho^k in the end, rho the largest modulus of an eigenvalue of W_hh: below 1 it
vanishes, above 1 it explodes. A normal matrix follows that law wherever its largest eigenvalues lead; any other
one may grow first (https://d2l.ai/chapter_recurrent-neural-networks/bptt.html).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..core.capacitor import CapacitorTape
from ..core.schedule import Full, require_count
from ..core.variable import Parameter
from ..errors import ArgumentError, ShapeError, describe
from ..ops.elementwise import add, multiply
from ..ops.linalg import matmul
from ..ops.reduce import sum as total
from ..types import Array
from .figure import COLORS, GREY, figure, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Decay(NamedTuple):
    """What one sweep over the linear RNN measured.

    norms        (lags + 1,): norm of dL/dh_{T-k}, for k = 0 … lags
    rate         its growth factor per lag: geometric mean over the last quarter of the lags
    radius       the spectral radius of W_hh
    eigenvalues  (n,), complex
    """

    norms: Array
    rate: float
    radius: float
    eigenvalues: Array


def decay(W_hh: Any, *, lags: int = 100, seed: int = 0) -> Decay:
    """Norm of dL/dh by lag for the linear RNN with this recurrent matrix, from one sweep of a CapacitorTape.

    `W_hh`: (n, n), real. W_hx, W_qh, the inputs and dL/do_T are drawn from `seed`; the loss is linear in
    o_T. Computed in float64. Raises ShapeError for what is no square matrix, ArgumentError where the
    norms would overflow within `lags`.
    """
    require_count("render.decay", "lags", lags)
    matrix = as_matrix(W_hh)
    eigenvalues = np.linalg.eigvals(matrix)
    radius = float(np.max(np.abs(eigenvalues)))
    if radius > 1 and lags * math.log(radius) > 600:
        raise ArgumentError(
            f"render.decay: a spectral radius of {radius:.4g} overflows within {lags} lags.\n"
            f"  Use lags <= {int(600 / math.log(radius))}."
        )
    size, rng = len(matrix), np.random.default_rng(seed)
    W_hx, W_qh, direction = (rng.standard_normal(shape) for shape in ((size, 2), (2, size), 2))
    W = Parameter(matrix)
    h: Any = np.zeros(size)
    tape = CapacitorTape(Full())
    for _ in range(lags + 1):  # below the first segment there is no joint
        with tape:
            h = add(matmul(W_hx, rng.standard_normal(2)), matmul(W, h))
            loss = total(multiply(matmul(W_qh, h), direction))
    tape.backward(loss)
    sweep = tape.sweep(keep=[h])
    assert sweep is not None
    norms = np.array([np.linalg.norm(sweep[h]), *sweep.joint_norms[:-1]])
    quarter = -(-lags // 4)
    last = norms[-1] / norms[-1 - quarter] if norms[-1 - quarter] else 0.0
    return Decay(norms, float(last ** (1 / quarter)), radius, eigenvalues)


def spectral_radius(
    matrices: Any, path: str | os.PathLike[str] | None = None, *, lags: int = 100, seed: int = 0
) -> Figure:
    """Draw how dL/dh of the linear RNN vanishes or explodes by lag, beside the eigenvalues of W_hh.

    `matrices`: one W_hh (n, n), a list of them, or a dict by name. Left, the norms that `decay` measures,
    with radius^lag dashed, started where the norms start; right, the eigenvalues around the unit circle.

    Returns the Figure, saved to `path` if given. Raises as `decay`, and MissingExtraError without
    matplotlib.
    """
    measured = [(name, decay(matrix, lags=lags, seed=seed)) for name, matrix in as_pairs(matrices)]
    drawn = figure("render.spectral_radius", 10.0, 4.4)
    left, right = drawn.subplots(1, 2, width_ratios=(1.35, 1))
    for at, (name, found) in enumerate(measured):
        color = COLORS[at % len(COLORS)]
        label = f"{name + ', ' if name else ''}$\\rho$ = {found.radius:.4g}, measured {found.rate:.4g}"
        k = np.arange(lags + 1)
        left.plot(k, np.where(found.norms > 0, found.norms, np.nan), color=color, label=label)
        left.plot(k, found.norms[0] * found.radius**k, "--", color=color, lw=1)
        eigenvalues = found.eigenvalues
        right.plot(eigenvalues.real, eigenvalues.imag, "o", ms=4, color=color, alpha=0.8)
    left.plot([], [], "--", color=GREY, lw=1, label="$\\rho^{\\,\\mathrm{lag}}$")
    left.set(yscale="log", xlim=(0, lags), xlabel="lag k (steps back from the loss)")
    left.set(ylabel="norm of $\\partial L / \\partial h_{T-k}$", title="Adjoint of the state, by lag")
    left.grid(color="0.92")
    left.legend(fontsize="small", framealpha=0.9)
    angle = np.linspace(0, 2 * np.pi, 200)
    right.plot(np.cos(angle), np.sin(angle), color=GREY, lw=1, label="unit circle")
    right.set(xlabel="real part", ylabel="imaginary part", title="Eigenvalues of $W_{hh}$", aspect="equal")
    edge = 1.1 * max(1.0, *(found.radius for _, found in measured))
    right.set(xlim=(-edge, edge), ylim=(-edge, edge))
    right.grid(color="0.92")
    right.legend(fontsize="small", loc="upper right")
    return finish(drawn, path)


def as_pairs(matrices: Any) -> list[tuple[str, Any]]:
    """`matrices` with their names; a lone one, and those of a list, have none."""
    if isinstance(matrices, Mapping):
        pairs = [(str(name), matrix) for name, matrix in matrices.items()]
    elif isinstance(matrices, (list, tuple)) and np.ndim(matrices[0] if matrices else 0) != 1:
        pairs = [("", matrix) for matrix in matrices]  # rows of numbers are one matrix
    elif isinstance(matrices, np.ndarray) and matrices.ndim == 3:
        pairs = [("", matrix) for matrix in matrices]
    else:
        pairs = [("", matrices)]
    if not pairs:
        raise ArgumentError(
            "render.spectral_radius: `matrices` is empty.\n"
            "  Give one matrix W_hh (n, n), or a list or a dict of them."
        )
    return pairs


def as_matrix(W_hh: Any) -> Array:
    """`W_hh` in float64, if it is a square matrix of finite numbers."""
    value = getattr(W_hh, "value", W_hh)
    try:
        matrix = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"render.decay: `W_hh` must be a real matrix (n, n), and {describe(W_hh)} came.\n"
            f"  Write np.array([[...], ...]), rows and columns of one length n."
        ) from error
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ShapeError(
            f"render.decay: `W_hh` must be a square matrix (n, n), and {describe(matrix)} came.\n"
            f"  It takes a state h (n,) to the next one, as W_hh @ h."
        )
    if not np.isfinite(matrix).all():
        raise ArgumentError(
            "render.decay: `W_hh` holds an infinity or a NaN.\n  Check how it was computed; only finite numbers have a spectral radius."
        )
    return matrix
