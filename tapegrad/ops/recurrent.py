"""Whole recurrent steps, and whole sequences of them, as single ops.

Each has a kernel, for speed; a `reference` made of ops, which a recorded pass tapes instead; and the steps
have a `formula`, their pullback in ops, which a compiler can trace.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.primitive import Case, primitive
from ..errors import ShapeError, describe
from ..kernels import choice, cpu
from .elementwise import sigmoid, tanh
from .reduce import sum
from .shape import concat, split, stack, unstack

LSTM = ("x", "h", "c", "w_x", "w_h", "b")
GRU = ("x", "h", "w_x", "w_h", "b", "b_h")
RNN = ("x", "h", "w_x", "w_h", "b")
LSTM_SEQUENCE, GRU_SEQUENCE, RNN_SEQUENCE = (("xs", *names[1:]) for names in (LSTM, GRU, RNN))


def require_step(op: str, names: tuple[str, ...], arrays: tuple[Any, ...], gates: int) -> None:
    """Raise unless the arrays fit together as `names` say: an input, states, weights of `gates` parts, biases."""
    given = dict(zip(names, arrays, strict=True))
    x, h, w_x = arrays[0], given["h"], given["w_x"]
    leading = 2 if names[0] == "xs" else 1
    n, width = (h.shape[-1], gates * h.shape[-1]) if h.ndim else (0, 0)
    fits = (
        x.ndim == leading + 1
        and h.ndim == w_x.ndim == 2
        and x.shape[leading - 1] == h.shape[0]
        and given.get("c", h).shape == h.shape
        and w_x.shape == (x.shape[-1], width)
        and given["w_h"].shape == (n, width)
        and all(given[name].shape == (width,) for name in ("b", "b_h") if name in given)
    )
    if fits:
        return
    wide = f"{gates}n" if gates > 1 else "n"
    shapes = {
        "xs": "(steps, batch, n_in)", "x": "(batch, n_in)", "h": "(batch, n)", "c": "(batch, n)",
        "w_x": f"(n_in, {wide})", "w_h": f"(n, {wide})", "b": f"({wide},)", "b_h": f"({wide},)",
    }  # fmt: skip
    raise ShapeError(
        f"{op}: shapes must be " + ", ".join(f"{name} {shapes[name]}" for name in names) + ".\n  "
        + "      ".join(f"{name}: {describe(v)}" for name, v in given.items())
    )  # fmt: skip


def rows(a: Any) -> Any:
    """The steps of a sequence under each other: one product does for all."""
    return a.reshape(-1, a.shape[-1])


def weight_gradients(active: Any, xs: Any, h_before: Any, ct_z: Any) -> tuple[Any, Any, Any]:
    """The gradients of w_x, w_h and b (those of the three that are active), one product each."""
    ct_z = rows(ct_z)
    return (
        cpu.product(rows(xs).T, ct_z) if active[0] else None,
        cpu.product(rows(h_before).T, ct_z) if active[1] else None,
        ct_z.sum(axis=0) if active[2] else None,
    )


# -- the LSTM ------------------------------------------------------------------------------------------


def lstm_step_by_ops(x: Any, h: Any, c: Any, w_x: Any, w_h: Any, b: Any) -> tuple[Any, Any]:
    """What `lstm_step` computes, in ops."""
    i, f, g, o = split(x @ w_x + h @ w_h + b, 4, -1)
    c_next = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c_next), c_next


def lstm_step_pullback(ct, active, x, h, c, w_x, w_h, gates, tanh_c):
    ct_h, ct_c = ct
    ct_z, ct_c = choice.lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)
    return (
        cpu.transposed_product(ct_z, w_x) if active[0] else None,
        cpu.transposed_product(ct_z, w_h) if active[1] else None,
        ct_c,
        cpu.weight_gradient(x, ct_z) if active[3] else None,
        cpu.weight_gradient(h, ct_z) if active[4] else None,
        ct_z.sum(axis=0) if active[5] else None,
    )


def lstm_step_formula(ct, active, x, h, c, w_x, w_h, gates, tanh_c):
    """`lstm_step_pullback` in ops. What residuals alone make is in parentheses: it need not wait for `ct`."""
    ct_h, ct_c = ct
    i, f, g, o = split(gates, 4, -1)
    ct_c = ct_c + ct_h * (o - o * (tanh_c * tanh_c))
    ct_z = concat(
        [
            ct_c * (g * (i - i * i)),
            ct_c * (c * (f - f * f)),
            ct_c * (i - i * (g * g)),
            ct_h * (tanh_c * (o - o * o)),
        ],
        -1,
    )
    return (
        ct_z @ w_x.T if active[0] else None,
        ct_z @ w_h.T if active[1] else None,
        ct_c * f if active[2] else None,
        x.T @ ct_z if active[3] else None,
        h.T @ ct_z if active[4] else None,
        sum(ct_z, 0) if active[5] else None,
    )


@primitive(
    outputs=("h_next", "c_next"),
    hidden=("gates", "tanh_c"),
    joint=lstm_step_pullback,
    formula=lstm_step_formula,
    differentiable=LSTM,
    reference=lstm_step_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((2, 3), (2, 4), (2, 4), (3, 16), (4, 16), (16,)),
        Case((1, 9), (1, 5), (1, 5), (9, 20), (5, 20), (20,)),
        Case((1, 1), (1, 1), (1, 1), (1, 4), (1, 4), (4,)),
    ],
)
def lstm_step(xp, x, h, c, w_x, w_h, b):
    r"""One step of an LSTM: returns `(h, c)`.

    $i, f, o = \sigma(\cdot)$, $g = \tanh(\cdot)$ of $x W_x + h W_h + b$; $c' = f c + i g$; $h' = o \tanh c'$.
    Shapes: x (batch, n_in), h and c (batch, n), w_x (n_in, 4n), w_h (n, 4n), b (4n,); columns are i, f, g, o.
    Keeps the inputs, the gates and $\tanh c'$. Source: Hochreiter & Schmidhuber 1997, Gers et al. 2000.
    """
    outputs = choice.lstm_step_in_one_call(x, h, c, w_x, w_h, b)
    if outputs is not None:
        return outputs
    require_step("lstm_step", LSTM, (x, h, c, w_x, w_h, b), 4)
    return choice.lstm_step(x, h, c, w_x, w_h, b)


def lstm_sequence_by_ops(xs: Any, h: Any, c: Any, w_x: Any, w_h: Any, b: Any) -> tuple[Any, Any, Any]:
    """What `lstm_sequence` computes, in ops."""
    hs = []
    for x in unstack(xs):
        h, c = lstm_step_by_ops(x, h, c, w_x, w_h, b)
        hs.append(h)
    return stack(hs), h, c


def lstm_sequence_pullback(ct, active, xs, w_x, w_h, h_before, c_before, gates, tanh_cs):
    ct_hs, ct_h, ct_c = ct
    ct_z, ct_h, ct_c = choice.lstm_sequence_pullback(ct_hs, ct_h, ct_c, c_before, gates, tanh_cs, w_h)
    return (
        cpu.product(rows(ct_z), w_x.T).reshape(xs.shape) if active[0] else None,
        ct_h,
        ct_c,
        *weight_gradients(active[3:], xs, h_before, ct_z),
    )


@primitive(
    outputs=("hs", "h_last", "c_last"),
    hidden=("h_before", "c_before", "gates", "tanh_cs"),
    joint=lstm_sequence_pullback,
    differentiable=LSTM_SEQUENCE,
    reference=lstm_sequence_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((3, 2, 3), (2, 4), (2, 4), (3, 16), (4, 16), (16,)),
        Case((4, 1, 2), (1, 5), (1, 5), (2, 20), (5, 20), (20,)),
    ],
)
def lstm_sequence(xp, xs, h, c, w_x, w_h, b):
    r"""An LSTM over a whole sequence: returns `(hs, h, c)`, every step's h and the last state. See `lstm_step`.

    Shapes: xs (steps, batch, n_in), hs (steps, batch, n); the others as in `lstm_step`. At least one step.
    All steps' products with $W_x$, and each weight's gradient, are one matrix product.
    Keeps the inputs and, of every step, h, c, the gates and $\tanh c$.
    """
    require_step("lstm_sequence", LSTM_SEQUENCE, (xs, h, c, w_x, w_h, b), 4)
    require_steps("lstm_sequence", xs)
    return choice.lstm_sequence(xs, h, c, w_x, w_h, b)


def require_steps(op: str, xs: Any) -> None:
    """Raise for a sequence of no steps, which has no last state."""
    if not len(xs):
        raise ShapeError(f"{op}: `xs` must have at least one step.\n  xs: {describe(xs)}")


# -- the GRU -------------------------------------------------------------------------------------------


def gru_step_by_ops(x: Any, h: Any, w_x: Any, w_h: Any, b: Any, b_h: Any) -> Any:
    """What `gru_step` computes, in ops."""
    x_r, x_z, x_n = split(x @ w_x + b, 3, -1)
    h_r, h_z, h_n = split(h @ w_h + b_h, 3, -1)
    n = tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return n + sigmoid(x_z + h_z) * (h - n)


def gru_step_pullback(ct, active, x, h, w_x, w_h, gates, inner):
    ct_x, ct_h, through_z = choice.gru_step_pullback(ct, h, gates, inner)
    return (
        cpu.transposed_product(ct_x, w_x) if active[0] else None,
        np.add(through_z, cpu.transposed_product(ct_h, w_h), out=through_z) if active[1] else None,
        cpu.weight_gradient(x, ct_x) if active[2] else None,
        cpu.weight_gradient(h, ct_h) if active[3] else None,
        ct_x.sum(axis=0) if active[4] else None,
        ct_h.sum(axis=0) if active[5] else None,
    )


def gru_step_formula(ct, active, x, h, w_x, w_h, gates, inner):
    """`gru_step_pullback` in ops."""
    r, z, n = split(gates, 3, -1)
    slope = (n * n - 1.0) * (z - 1.0)
    ct_r = ct * (slope * inner * (r - r * r))
    ct_z = ct * ((h - n) * (z - z * z))
    ct_x = concat([ct_r, ct_z, ct * slope], -1)
    ct_h = concat([ct_r, ct_z, ct * (slope * r)], -1)
    return (
        ct_x @ w_x.T if active[0] else None,
        ct * z + ct_h @ w_h.T if active[1] else None,
        x.T @ ct_x if active[2] else None,
        h.T @ ct_h if active[3] else None,
        sum(ct_x, 0) if active[4] else None,
        sum(ct_h, 0) if active[5] else None,
    )


@primitive(
    hidden=("gates", "inner"),
    joint=gru_step_pullback,
    formula=gru_step_formula,
    differentiable=GRU,
    reference=gru_step_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((2, 3), (2, 4), (3, 12), (4, 12), (12,), (12,)),
        Case((1, 9), (1, 5), (9, 15), (5, 15), (15,), (15,)),
    ],
)
def gru_step(xp, x, h, w_x, w_h, b, b_h):
    r"""One step of a gated recurrent unit: returns h.

    $r, z = \sigma(x W_x + b + h W_h + b_h)$, $n = \tanh(x W_x + b + r (h W_h + b_h))$, $h' = n + z (h - n)$.
    Shapes: x (batch, n_in), h (batch, n), w_x (n_in, 3n), w_h (n, 3n), b and b_h (3n,); columns are r, z, n.
    Keeps the inputs, the gates, and what r multiplies. Source: Cho et al. 2014, in cuDNN's form.
    """
    outputs = choice.gru_step_in_one_call(x, h, w_x, w_h, b, b_h)
    if outputs is not None:
        return outputs
    require_step("gru_step", GRU, (x, h, w_x, w_h, b, b_h), 3)
    return choice.gru_step(x, h, w_x, w_h, b, b_h)


def gru_sequence_by_ops(xs: Any, h: Any, w_x: Any, w_h: Any, b: Any, b_h: Any) -> tuple[Any, Any]:
    """What `gru_sequence` computes, in ops."""
    hs = []
    for x in unstack(xs):
        h = gru_step_by_ops(x, h, w_x, w_h, b, b_h)
        hs.append(h)
    return stack(hs), h


def gru_sequence_pullback(ct, active, xs, w_x, w_h, h_before, gates, inner):
    ct_hs, ct_last = ct
    ct_x, ct_h, ct_first = choice.gru_sequence_pullback(ct_hs, ct_last, h_before, gates, inner, w_h)
    return (
        cpu.product(rows(ct_x), w_x.T).reshape(xs.shape) if active[0] else None,
        ct_first,
        cpu.product(rows(xs).T, rows(ct_x)) if active[2] else None,
        cpu.product(rows(h_before).T, rows(ct_h)) if active[3] else None,
        rows(ct_x).sum(axis=0) if active[4] else None,
        rows(ct_h).sum(axis=0) if active[5] else None,
    )


@primitive(
    outputs=("hs", "h_last"),
    hidden=("h_before", "gates", "inner"),
    joint=gru_sequence_pullback,
    differentiable=GRU_SEQUENCE,
    reference=gru_sequence_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((3, 2, 3), (2, 4), (3, 12), (4, 12), (12,), (12,)),
        Case((4, 1, 2), (1, 5), (2, 15), (5, 15), (15,), (15,)),
    ],
)
def gru_sequence(xp, xs, h, w_x, w_h, b, b_h):
    r"""A gated recurrent unit over a whole sequence: returns `(hs, h)`, every step's h and the last one.

    Shapes: xs (steps, batch, n_in), hs (steps, batch, n); the others as in `gru_step`. At least one step.
    Keeps the inputs and, of every step, h, the gates, and what r multiplies.
    """
    require_step("gru_sequence", GRU_SEQUENCE, (xs, h, w_x, w_h, b, b_h), 3)
    require_steps("gru_sequence", xs)
    return choice.gru_sequence(xs, h, w_x, w_h, b, b_h)


# -- Elman's network -----------------------------------------------------------------------------------


def rnn_step_by_ops(x: Any, h: Any, w_x: Any, w_h: Any, b: Any) -> Any:
    """What `rnn_step` computes, in ops."""
    return tanh(x @ w_x + h @ w_h + b)


def rnn_step_pullback(ct, active, y, x, h, w_x, w_h):
    ct_z = choice.rnn_step_pullback(ct, y)
    return (
        cpu.transposed_product(ct_z, w_x) if active[0] else None,
        cpu.transposed_product(ct_z, w_h) if active[1] else None,
        cpu.weight_gradient(x, ct_z) if active[2] else None,
        cpu.weight_gradient(h, ct_z) if active[3] else None,
        ct_z.sum(axis=0) if active[4] else None,
    )


def rnn_step_formula(ct, active, y, x, h, w_x, w_h):
    """`rnn_step_pullback` in ops."""
    ct_z = ct * (1.0 - y * y)
    return (
        ct_z @ w_x.T if active[0] else None,
        ct_z @ w_h.T if active[1] else None,
        x.T @ ct_z if active[2] else None,
        h.T @ ct_z if active[3] else None,
        sum(ct_z, 0) if active[4] else None,
    )


@primitive(
    joint=rnn_step_pullback,
    formula=rnn_step_formula,
    differentiable=RNN,
    reference=rnn_step_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((2, 3), (2, 4), (3, 4), (4, 4), (4,)),
        Case((1, 9), (1, 5), (9, 5), (5, 5), (5,)),
    ],
)
def rnn_step(xp, x, h, w_x, w_h, b):
    r"""One step of Elman's network, $h' = \tanh(x W_x + h W_h + b)$.

    Shapes: x (batch, n_in), h (batch, n), w_x (n_in, n), w_h (n, n), b (n,).   Keeps the inputs and h'.
    Source: Elman 1990.
    """
    h_next = choice.rnn_step_in_one_call(x, h, w_x, w_h, b)
    if h_next is not None:
        return h_next
    require_step("rnn_step", RNN, (x, h, w_x, w_h, b), 1)
    return choice.rnn_step(x, h, w_x, w_h, b)


def rnn_sequence_by_ops(xs: Any, h: Any, w_x: Any, w_h: Any, b: Any) -> tuple[Any, Any]:
    """What `rnn_sequence` computes, in ops."""
    hs = []
    for x in unstack(xs):
        h = rnn_step_by_ops(x, h, w_x, w_h, b)
        hs.append(h)
    return stack(hs), h


def rnn_sequence_pullback(ct, active, xs, w_x, w_h, hs, h_before):
    ct_hs, ct_last = ct
    ct_z, ct_first = choice.rnn_sequence_pullback(ct_hs, ct_last, hs, w_h)
    return (
        cpu.product(rows(ct_z), w_x.T).reshape(xs.shape) if active[0] else None,
        ct_first,
        *weight_gradients(active[2:], xs, h_before, ct_z),
    )


@primitive(
    outputs=("hs", "h_last"),
    hidden=("h_before",),
    joint=rnn_sequence_pullback,
    differentiable=RNN_SEQUENCE,
    reference=rnn_sequence_by_ops,
    domain=(-1.0, 1.0),
    cases=[
        Case((3, 2, 3), (2, 4), (3, 4), (4, 4), (4,)),
        Case((4, 1, 2), (1, 5), (2, 5), (5, 5), (5,)),
    ],
)
def rnn_sequence(xp, xs, h, w_x, w_h, b):
    r"""Elman's network over a whole sequence: returns `(hs, h)`, every step's h and the last one.

    Shapes: xs (steps, batch, n_in), hs (steps, batch, n); the others as in `rnn_step`. At least one step.
    Keeps the inputs and every step's h.
    """
    require_step("rnn_sequence", RNN_SEQUENCE, (xs, h, w_x, w_h, b), 1)
    require_steps("rnn_sequence", xs)
    return choice.rnn_sequence(xs, h, w_x, w_h, b)
