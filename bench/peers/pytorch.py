"""PyTorch's ways to slide a window over a stream.

Re-running: the window is computed again from the state at its left edge, with today's weights; the state after its
first step is the next left edge. Retaining: every step's graph is kept for as long as the window, and swept
link by link. An optimizer that writes into weights makes that an error, so the weights are updated
behind autograd's back (`.data`): what was computed with them is then swept with today's.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy as np
import torch

from .work import Chunks, Contender, MirroredRing, Work

torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "1")))

NAMES = {"w_x": "weight_ih", "w_h": "weight_hh", "b": "bias_ih", "b_h": "bias_hh"}


def leaves_of(work: Work) -> dict[str, Any]:
    """Parameters in PyTorch's layout, (gates · hidden, in). Ours have one bias where PyTorch adds two."""
    return {
        name: torch.tensor(np.ascontiguousarray(array.T), requires_grad=True)
        for name, array in work.parameters().items()
    }


class Torch(Contender):
    """What all share: leaves, SGD by one call for all parameters (quicker than torch.optim.SGD, fused or not)."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.named = leaves_of(work)
        self.leaves = list(self.named.values())
        self.xs, self.targets = torch.tensor(self.xs), torch.tensor(self.targets)
        self.zero_bias = torch.zeros(self.named["b"].shape)
        self.state = [torch.zeros(shape) for shape in work.state_shapes]

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: leaf.detach().numpy().T.copy() for name, leaf in self.named.items()}

    def descend(self, gradients: Any) -> None:
        """An SGD step."""
        with torch.no_grad():
            torch._foreach_add_(self.leaves, gradients, alpha=-self.lr)


class Rerun(Torch):
    """The window again, with today's weights."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.ring = MirroredRing(work.window, torch.zeros((2 * work.window, work.batch, work.hidden)))

    def fill(self, k: int) -> None:
        self.ring.push(self.xs[k])

    def step(self, k: int) -> None:
        xs = self.ring.push(self.xs[k])
        loss = torch.nn.functional.mse_loss(self.last_output(xs), self.targets[k])
        gradients = torch.autograd.grad(loss, self.leaves)
        self.move_left_edge(xs[0])
        self.descend(gradients)

    def last_output(self, xs: Any) -> Any:
        """The output of the last of `xs`, from the state at the left edge."""
        raise NotImplementedError

    def move_left_edge(self, x: Any) -> None:
        """Put the state after `x` at the left edge."""
        raise NotImplementedError


class RerunCells(Rerun):
    """torch.lstm_cell or gru_cell in a loop: what LSTMCell calls, without the module. Its first state is the next left edge."""

    def last_output(self, xs: Any) -> Any:
        state = self.state
        for i, x in enumerate(xs.unbind()):
            state = self.cell(x, state)
            if i == 0:
                self.after_first = state
        return state[-2 if self.work.kind != "gru" else -1]

    def cell(self, x: Any, state: list[Any]) -> list[Any]:
        p = self.named
        if self.work.kind == "gru":
            return [torch.gru_cell(x, state[0], p["w_x"], p["w_h"], p["b"], p["b_h"])]
        state_of_first = torch.lstm_cell(x, state[:2], p["w_x"], p["w_h"], p["b"], self.zero_bias)
        if self.work.kind == "lstm":
            return list(state_of_first)
        second = torch.lstm_cell(state_of_first[0], state[2:], p["w_x2"], p["w_h2"], p["b2"], self.zero_bias)
        return [*state_of_first, *second]

    def move_left_edge(self, x: Any) -> None:
        self.state = [v.detach() for v in self.after_first]


class RerunLayer(Rerun):
    """torch.lstm or torch.gru over the window: what nn.LSTM calls, without the module.

    It does not say which cell state follows the first step, so that step is taken once more, without a graph.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        p = self.named
        self.weights_of_layers = [p["w_x"], p["w_h"], p["b"], p.get("b_h", self.zero_bias)]
        if work.kind == "lstm2":
            self.weights_of_layers += [p["w_x2"], p["w_h2"], p["b2"], self.zero_bias]
        self.layers = 2 if work.kind == "lstm2" else 1

    def over(self, xs: Any) -> Any:
        options = (self.weights_of_layers, True, self.layers, 0.0, True, False, False)
        if self.work.kind == "gru":
            outs, h = torch.gru(xs, self.state[0][None], *options)
            return outs, [h[0]]
        h, c = (torch.stack(self.state[i::2]) for i in range(2))
        outs, h, c = torch.lstm(xs, (h, c), *options)
        return outs, [v[layer] for layer in range(self.layers) for v in (h, c)]

    def last_output(self, xs: Any) -> Any:
        return self.over(xs)[0][-1]

    def move_left_edge(self, x: Any) -> None:
        with torch.no_grad():
            self.state = self.over(x[None])[1]


class RerunModule(RerunLayer):
    """torch.nn.LSTM or GRU, and torch.optim.SGD: as most people write it."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        kind = torch.nn.GRU if work.kind == "gru" else torch.nn.LSTM
        self.module = kind(work.hidden, work.hidden, num_layers=self.layers)
        for name, leaf in self.named.items():
            layer = 1 if name.endswith("2") else 0
            with torch.no_grad():
                getattr(self.module, f"{NAMES[name.rstrip('2')]}_l{layer}").copy_(leaf)
        if work.kind != "gru":
            for layer in range(self.layers):
                bias = getattr(self.module, f"bias_hh_l{layer}")
                bias.requires_grad = False
                bias.data.zero_()
        self.named = {
            name: getattr(self.module, f"{NAMES[name.rstrip('2')]}_l{1 if name.endswith('2') else 0}")
            for name in self.named
        }
        self.leaves = list(self.named.values())
        self.optimizer = torch.optim.SGD(self.leaves, self.lr, foreach=True)

    def over(self, xs: Any) -> Any:
        if self.work.kind == "gru":
            outs, h = self.module(xs, self.state[0][None])
            return outs, [h[0]]
        outs, (h, c) = self.module(xs, tuple(torch.stack(self.state[i::2]) for i in range(2)))
        return outs, [v[layer] for layer in range(self.layers) for v in (h, c)]

    def descend(self, gradients: Any) -> None:
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class RerunCompiled(Rerun):
    """torch.compile of the whole step, unrolled over the window: forward, gradient and SGD in one program."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.names = list(self.named)
        # Without cpp_wrapper the program's Python calls take as long again as its arithmetic at batch 1.
        self.compiled = torch.compile(
            self.whole_step, fullgraph=True, dynamic=False, options={"cpp_wrapper": True}
        )

    def whole_step(self, leaves: Any, xs: Any, state: Any, target: Any, lr: Any) -> Any:
        def loss_of(leaves: Any) -> Any:
            state_now = state
            p = dict(zip(self.names, leaves, strict=True))
            # The first layer's share of all gates from the inputs is one product for the window.
            from_x = xs @ p["w_x"].T + p["b"]
            for i in range(self.work.window):
                state_now = self.cell(p, from_x[i], state_now)
                if i == 0:
                    first = [v.detach() for v in state_now]
            out = state_now[-2 if self.work.kind != "gru" else -1]
            return torch.nn.functional.mse_loss(out, target), first

        gradients, (_, first) = torch.func.grad_and_value(loss_of, has_aux=True)(leaves)
        return [w - lr * g for w, g in zip(leaves, gradients, strict=True)], first

    def cell(self, p: Any, from_x: Any, state: Any) -> Any:
        if self.work.kind == "gru":
            (h,) = state
            x_r, x_z, x_n = from_x.chunk(3, 1)
            h_r, h_z, h_n = (h @ p["w_h"].T + p["b_h"]).chunk(3, 1)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            return [n + torch.sigmoid(x_z + h_z) * (h - n)]
        state_now: list[Any] = []
        for layer in ["", "2"] if self.work.kind == "lstm2" else [""]:
            h, c = state[len(state_now) : len(state_now) + 2]
            if layer:
                from_x = state_now[0] @ p[f"w_x{layer}"].T + p[f"b{layer}"]
            i, f, g, o = (from_x + h @ p[f"w_h{layer}"].T).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            state_now += [torch.sigmoid(o) * torch.tanh(c), c]
        return state_now

    def step(self, k: int) -> None:
        xs = self.ring.push(self.xs[k])
        with torch.no_grad():
            leaves, self.state = self.compiled(
                self.leaves, xs, self.state, self.targets[k], torch.tensor(self.lr)
            )
        self.leaves = leaves
        self.named = dict(zip(self.names, leaves, strict=True))


class Retained(Torch):
    """The forum's recipe, repaired: the graphs of the window are kept, and swept link by link.

    As it is posted it leaves gradients of states on the states, where overlapping windows add them up, and it
    stops with an error at the first optimizer step in place.
    """

    weights = "current"

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.links: deque[tuple[list[Any], list[Any]]] = deque(maxlen=work.window)

    cell = RerunCells.cell

    def step(self, k: int) -> None:
        entered = [v.detach().requires_grad_() for v in self.state]
        left = self.cell(self.xs[k], entered)
        self.links.append((entered, left))
        loss = torch.nn.functional.mse_loss(left[-2 if self.work.kind != "gru" else -1], self.targets[k])
        roots: Any = [loss]
        cts: Any = None
        total: list[Any] = []
        for entered_then, left_then in reversed(self.links):
            found = torch.autograd.grad(
                roots if cts is None else left_then,
                [*entered_then, *self.leaves],
                cts,
                retain_graph=True,
                allow_unused=cts is None,
            )
            cts = [
                torch.zeros_like(v) if ct is None else ct for v, ct in zip(entered_then, found, strict=False)
            ]
            gradients = list(found[len(entered_then) :])
            if total:
                torch._foreach_add_(total, gradients)
            else:
                total = gradients
        with torch.no_grad():
            torch._foreach_add_([leaf.data for leaf in self.leaves], total, alpha=-self.lr)
        self.state = left


class ChunkOfLayer(Chunks, RerunLayer):
    """torch.lstm over each chunk: what nn.LSTM calls, without the module."""

    def chunk(self, xs: Any, targets: Any) -> None:
        outs, state = self.over(xs)
        loss = torch.nn.functional.mse_loss(outs, targets) * self.work.window
        self.descend(torch.autograd.grad(loss, self.leaves))
        self.state = [v.detach() for v in state]


class ChunkOfModule(ChunkOfLayer, RerunModule):
    """nn.LSTM over each chunk, and torch.optim.SGD."""


class ChunkCompiled(Chunks, RerunCompiled):
    """torch.compile of the whole step, unrolled over the chunk."""

    def whole_step(self, leaves: Any, xs: Any, state: Any, targets: Any, lr: Any) -> Any:
        def loss_of(leaves: Any) -> Any:
            state_now, outs = state, []
            p = dict(zip(self.names, leaves, strict=True))
            from_x = xs @ p["w_x"].T + p["b"]
            for i in range(self.work.window):
                state_now = self.cell(p, from_x[i], state_now)
                outs.append(state_now[-2])
            loss = torch.nn.functional.mse_loss(torch.stack(outs), targets) * self.work.window
            return loss, [v.detach() for v in state_now]

        gradients, (_, last) = torch.func.grad_and_value(loss_of, has_aux=True)(leaves)
        return [w - lr * g for w, g in zip(leaves, gradients, strict=True)], last

    def chunk(self, xs: Any, targets: Any) -> None:
        with torch.no_grad():
            self.leaves, self.state = self.compiled(
                self.leaves, xs, self.state, targets, torch.tensor(self.lr)
            )
        self.named = dict(zip(self.names, self.leaves, strict=True))
