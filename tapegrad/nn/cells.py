"""Recurrent cells as pure functions: an input and a state in, an output and the next state out."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import zeros_beside
from ..core.schedule import require_count
from ..core.variable import Parameter, Variable, constant
from ..errors import ArgumentError, describe
from ..ops.recurrent import gru_step, lstm_step, rnn_step
from .layers import uniform
from .module import Module


class Cell(Module):
    """Weights of `gates` affine maps of the input and of the hidden state, side by side in columns."""

    gates = 1

    def __init__(self, n_in: int, n_hidden: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        require_count(type(self).__name__, "n_in", n_in)
        require_count(type(self).__name__, "n_hidden", n_hidden)
        rng = np.random.default_rng(rng)
        width = self.gates * n_hidden
        self.n_in, self.n_hidden, self.dtype = n_in, n_hidden, np.dtype(dtype)
        self.w_x = Parameter(uniform(rng, (n_in, width), n_hidden, dtype))
        self.w_h = Parameter(uniform(rng, (n_hidden, width), n_hidden, dtype))
        self.b = Parameter(np.zeros(width, dtype))

    def zeros(self, batch: int) -> Variable:
        """A state of zeros where the weights are, a constant. Shape (batch, n_hidden)."""
        require_count(type(self).__name__, "batch", batch)
        return constant(zeros_beside(self.w_h._array, (batch, self.n_hidden), self.dtype))

    def initial_state(self, batch: int) -> Any:
        """The state before the first input, in the form that `forward` takes and returns."""
        return self.zeros(batch)


class RNNCell(Cell):
    """Elman's network: $h' = \\tanh(x W_x + h W_h + b)$. State: h (batch, n_hidden). See `tg.rnn_step`."""

    def forward(self, x: Any, h: Any) -> tuple[Any, Any]:
        h = rnn_step(x, h, self.w_x, self.w_h, self.b)
        return h, h


class GRUCell(Cell):
    """Gated recurrent unit. State: h (batch, n_hidden). See `tg.gru_step`.

    It has two biases, b beside the input and b_h beside the state; the columns of the weights are r, z, n.
    """

    gates = 3

    def __init__(self, n_in: int, n_hidden: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        super().__init__(n_in, n_hidden, dtype=dtype, rng=rng)
        self.b_h = Parameter(np.zeros(3 * n_hidden, dtype))

    def forward(self, x: Any, h: Any) -> tuple[Any, Any]:
        h = gru_step(x, h, self.w_x, self.w_h, self.b, self.b_h)
        return h, h


class LSTMCell(Cell):
    """Long short-term memory. State: `(h, c)`, both (batch, n_hidden). See `tg.lstm_step`.

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015); the columns of the weights are i, f, g, o.
    """

    gates = 4

    def __init__(self, n_in: int, n_hidden: int, *, dtype: Any = np.float32, rng: Any = None) -> None:
        super().__init__(n_in, n_hidden, dtype=dtype, rng=rng)
        bias = np.zeros(4 * n_hidden, dtype)
        bias[n_hidden : 2 * n_hidden] = 1
        self.b.value = bias

    def initial_state(self, batch: int) -> tuple[Variable, Variable]:
        return self.zeros(batch), self.zeros(batch)

    def forward(self, x: Any, state: tuple[Any, Any]) -> tuple[Any, tuple[Any, Any]]:
        if not isinstance(state, tuple) or len(state) != 2:
            raise ArgumentError(
                f"LSTMCell: `state` must be a pair (h, c), and {describe(state)} came.\n"
                f"  Begin with cell.initial_state(batch), and pass on what the cell returns."
            )
        h, c = lstm_step(x, *state, self.w_x, self.w_h, self.b)
        return h, (h, c)
