"""tapegrad's way to slide a window over a stream: the loop without a window, on a CapacitorTape.

Built-in cells, and cells that a user would write in plain ops.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad import nn, optim

from .work import Chunks, Contender, Work


class PlainLSTM(nn.Module):
    """Layers of LSTM in plain ops, as in a textbook."""

    def __init__(self, arrays: dict[str, np.ndarray], n_hidden: int) -> None:
        self.n_hidden = n_hidden
        for name, array in arrays.items():
            setattr(self, name, tg.Parameter(array))
        self.layers = ["", "2"] if "w_x2" in arrays else [""]

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        n, after = self.n_hidden, []
        for k, layer in enumerate(self.layers):
            h, c = state[2 * k : 2 * k + 2]
            w_x, w_h, b = (getattr(self, f"{name}{layer}") for name in ("w_x", "w_h", "b"))
            z = x @ w_x + h @ w_h + b
            i, f, o = tg.sigmoid(z[:, :n]), tg.sigmoid(z[:, n : 2 * n]), tg.sigmoid(z[:, 3 * n :])
            c = f * c + i * tg.tanh(z[:, 2 * n : 3 * n])
            x = o * tg.tanh(c)
            after += [x, c]
        return x, tuple(after)


class PlainGRU(nn.Module):
    """A GRU in plain ops."""

    def __init__(self, arrays: dict[str, np.ndarray], n_hidden: int) -> None:
        self.n_hidden = n_hidden
        for name, array in arrays.items():
            setattr(self, name, tg.Parameter(array))

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        (h,) = state
        x_r, x_z, x_n = tg.split(x @ self.w_x + self.b, 3, -1)
        h_r, h_z, h_n = tg.split(h @ self.w_h + self.b_h, 3, -1)
        n = tg.tanh(x_n + tg.sigmoid(x_r + h_r) * h_n)
        h = n + tg.sigmoid(x_z + h_z) * (h - n)
        return h, (h,)


class StackedLSTM(PlainLSTM):
    """Layers of LSTM, each one fused op a step."""

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        after = []
        for k, layer in enumerate(self.layers):
            w_x, w_h, b = (getattr(self, f"{name}{layer}") for name in ("w_x", "w_h", "b"))
            x, c = tg.lstm_step(x, *state[2 * k : 2 * k + 2], w_x, w_h, b)
            after += [x, c]
        return x, tuple(after)


class FusedGRU(PlainGRU):
    """A GRU, one fused op a step, as nn.GRUCell has it."""

    def forward(self, x: Any, state: Any) -> tuple[Any, Any]:
        h = tg.gru_step(x, state[0], self.w_x, self.w_h, self.b, self.b_h)
        return h, (h,)


def built_in_cell(work: Work) -> Any:
    """nn.LSTMCell with the Work's parameters, or what is like it for other kinds."""
    if work.kind != "lstm":
        return (FusedGRU if work.kind == "gru" else StackedLSTM)(work.parameters(), work.hidden)
    cell = nn.LSTMCell(work.hidden, work.hidden)
    for name, array in work.parameters().items():
        getattr(cell, name).value = array
    return cell


def plain_cell(work: Work) -> Any:
    """The Work's network, written by a user."""
    return (PlainGRU if work.kind == "gru" else PlainLSTM)(work.parameters(), work.hidden)


def takes(**options: Any) -> bool:
    """Whether a CapacitorTape takes `options`, in this version."""
    try:
        tg.CapacitorTape(2, **options)
    except (TypeError, tg.ArgumentError):
        return False
    return True


class Window(Contender):
    """`tape_options` go to the CapacitorTape: weights, compile."""

    def __init__(self, work: Work, cell: Any, schedule: Any = None, **tape_options: Any) -> None:
        super().__init__(work)
        self.weights = tape_options.get("weights", "recorded")
        self.cell = cell
        self.tape = tg.CapacitorTape(schedule or work.window, **tape_options)
        self.optimizer = optim.SGD(cell.parameters(), self.lr)
        self.state: Any = tuple(tg.constant(np.zeros(shape, np.float32)) for shape in work.state_shapes)

    def step(self, k: int) -> None:
        with self.tape:
            out, self.state = self.cell(self.xs[k], self.state)
            loss = tg.mean((out - self.targets[k]) ** 2)
        if self.tape.backward(loss):
            self.optimizer.lr = self.lr
            self.optimizer.step()
            self.optimizer.zero_grad()

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: getattr(self.cell, name).value.copy() for name in self.work.parameters()}


class ChunkOfLoop(Chunks, Window):
    """The loop, step by step, on a CapacitorTape with tg.Chunked."""

    def __init__(self, work: Work, cell: Any, **tape_options: Any) -> None:
        super().__init__(work, cell, tg.Chunked(work.window), **tape_options)
        self.weights = Chunks.weights

    def chunk(self, xs: Any, targets: Any) -> None:
        for x, target in zip(xs, targets, strict=True):
            with self.tape:
                out, self.state = self.cell(x, self.state)
                loss = tg.mean((out - target) ** 2)
            if self.tape.backward(loss):
                self.optimizer.lr = self.lr
                self.optimizer.step()
                self.optimizer.zero_grad()


class ChunkOfSequence(Chunks):
    """The whole chunk as one op, tg.lstm_sequence, on a plain Tape."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.cell, self.tape = built_in_cell(work), tg.Tape()
        self.optimizer = optim.SGD(self.cell.parameters(), self.lr)
        self.state: Any = [np.zeros(shape, np.float32) for shape in work.state_shapes]

    def chunk(self, xs: Any, targets: Any) -> None:
        cell = self.cell
        with self.tape:
            outs, h, c = tg.lstm_sequence(xs, *self.state, cell.w_x, cell.w_h, cell.b)
            loss = tg.mean((outs - targets) ** 2) * float(self.work.window)
        self.tape.backward(loss)
        self.state = [h.value, c.value]
        self.optimizer.lr = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: getattr(self.cell, name).value.copy() for name in self.work.parameters()}


def errors_against_recorded(work: Work, steps: int) -> dict[str, float]:
    """Median of ‖g - g_recorded‖ / ‖g_recorded‖ over full windows of one loop that learns by `recorded`."""
    policies = ["recorded", "current", "replay"]
    loop = Window(work, plain_cell(work))
    tapes = [tg.CapacitorTape(work.window, weights=policy) for policy in policies]
    params, found = loop.cell.parameters(), {policy: [] for policy in policies[1:]}
    state = loop.state
    for t in range(work.window + steps):
        for tape in tapes:
            tape.begin()
        out, state = loop.cell(loop.xs[t % len(loop.xs)], state)
        loss = tg.mean((out - loop.targets[t % len(loop.xs)]) ** 2)
        for tape in reversed(tapes):
            tape.stop()
        sweeps = [tape.backward(loss) for tape in tapes]
        exact, *others = (np.concatenate([s.gradients[p].ravel() for p in params]) for s in sweeps)
        for p in params:  # each sweep has added to .grad: the first one's counts
            p.grad = sweeps[0].gradients[p]
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        if t >= work.window:
            for policy, gradient in zip(policies[1:], others, strict=True):
                found[policy].append(np.linalg.norm(gradient - exact) / np.linalg.norm(exact))
    return {policy: float(f"{np.median(values):.3g}") for policy, values in found.items()}
