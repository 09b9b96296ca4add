"""Whole recurrent steps as single ops."""

from __future__ import annotations

from typing import Any

from ..core.primitive import Case, primitive
from ..errors import ShapeError, describe
from ..kernels import cpu
from .elementwise import sigmoid, tanh
from .shape import split

GATE_ARGUMENTS = ("x", "h", "c", "w_x", "w_h", "b")


def lstm_step_by_ops(x: Any, h: Any, c: Any, w_x: Any, w_h: Any, b: Any) -> tuple[Any, Any]:
    """What `lstm_step` computes, in ops."""
    i, f, g, o = split(x @ w_x + h @ w_h + b, 4, -1)
    c_next = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c_next), c_next


def lstm_step_pullback(ct, active, x, h, c, w_x, w_h, gates, tanh_c):
    ct_h, ct_c = ct
    ct_z, ct_c = cpu.lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)
    return (
        ct_z @ w_x.T if active[0] else None,
        ct_z @ w_h.T if active[1] else None,
        ct_c,
        cpu.weight_gradient(x, ct_z) if active[3] else None,
        cpu.weight_gradient(h, ct_z) if active[4] else None,
        ct_z.sum(axis=0) if active[5] else None,
    )


@primitive(
    outputs=("h_next", "c_next"),
    hidden=("gates", "tanh_c"),
    joint=lstm_step_pullback,
    differentiable=GATE_ARGUMENTS,
    reference=lstm_step_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((2, 3), (2, 4), (2, 4), (3, 16), (4, 16), (16,)),
        Case((1, 1), (1, 1), (1, 1), (1, 4), (1, 4), (4,)),
    ],
)
def lstm_step(xp, x, h, c, w_x, w_h, b):
    r"""One step of an LSTM: returns `(h, c)`.

    $i, f, o = \sigma(\cdot)$, $g = \tanh(\cdot)$ of $x W_x + h W_h + b$; $c' = f c + i g$; $h' = o \tanh c'$.
    Shapes: x (batch, n_in), h and c (batch, n), w_x (n_in, 4n), w_h (n, 4n), b (4n,); columns are i, f, g, o.
    Keeps the inputs, the gates and $\tanh c'$. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000.
    """
    n = h.shape[-1] if h.ndim else 0
    fits = (
        x.ndim == h.ndim == 2
        and h.shape == c.shape
        and x.shape[0] == h.shape[0]
        and w_x.shape == (x.shape[1], 4 * n)
        and w_h.shape == (n, 4 * n)
        and b.shape == (4 * n,)
    )
    if not fits:
        raise ShapeError(
            "lstm_step: shapes must be x (batch, n_in), h and c (batch, n), w_x (n_in, 4n), w_h (n, 4n), b (4n,).\n  "
            + "      ".join(
                f"{name}: {describe(v)}"
                for name, v in zip(GATE_ARGUMENTS, (x, h, c, w_x, w_h, b), strict=True)
            )
        )
    return cpu.lstm_step(x, h, c, w_x, w_h, b)
