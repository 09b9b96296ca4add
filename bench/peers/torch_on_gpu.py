"""PyTorch's ways to slide a window on a GPU: the window once more from its left edge, with today's weights.

LSTMCell step by step or cuDNN's nn.LSTM, each queued by Python or as one CUDA graph. The left edge is the state that
the loop passed through: a step's last state is kept for as long as the window.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch

from .on_gpu import Timed, drawn
from .work import MirroredRing, Work

State = tuple[Any, Any]  # h and c


class Cells:
    """torch.lstm_cell, what nn.LSTMCell calls, for each of the inputs."""

    def __init__(self, work: Work, device: str) -> None:
        arrays, _ = drawn(work)
        self.leaves = [
            torch.tensor(np.ascontiguousarray(arrays[name].T), device=device, requires_grad=True)
            for name in ("w_x", "w_h", "b")
        ]
        self.zero_bias = torch.zeros(4 * work.hidden, device=device)  # ours has one bias, theirs two

    def __call__(self, xs: Any, state: State) -> State:
        for x in xs.unbind():
            state = torch.lstm_cell(x, state, *self.leaves, self.zero_bias)
        return state


class Layer:
    """nn.LSTM over all of the inputs: cuDNN's, on a GPU."""

    def __init__(self, work: Work, device: str) -> None:
        arrays, _ = drawn(work)
        self.module = module = torch.nn.LSTM(work.hidden, work.hidden).to(device)
        self.leaves = [module.weight_ih_l0, module.weight_hh_l0, module.bias_ih_l0]
        with torch.no_grad():
            for leaf, name in zip(self.leaves, ("w_x", "w_h", "b"), strict=True):
                leaf.copy_(torch.tensor(np.ascontiguousarray(arrays[name].T)))
            module.bias_hh_l0.zero_()
        module.bias_hh_l0.requires_grad = False

    def __call__(self, xs: Any, state: State) -> State:
        h, c = self.module(xs, (state[0][None], state[1][None]))[1]
        return h[0], c[0]


class Rerun(Timed):
    """Queued op by op. `network` is Cells or Layer."""

    weights = "replay"

    def __init__(self, work: Work, device: str, network: Any) -> None:
        super().__init__(work)
        self.device, self.network = device, network(work, device)
        self.leaves = self.network.leaves
        self.xs, self.targets = (
            list(torch.tensor(a, device=device).unbind()) for a in (self.xs, self.targets)
        )
        self.ring = MirroredRing(work.window, self.zeros(2 * work.window))
        self.edges: deque[State] = deque(maxlen=work.window)  # what each step of the window began with
        self.last: Any = (self.zeros(), self.zeros())

    def zeros(self, *shape: int) -> Any:
        return torch.zeros((*shape, self.work.batch, self.work.hidden), device=self.device)

    def fill(self, k: int) -> None:
        self.ring.push(self.xs[k])
        self.edges.append(self.last)
        with torch.no_grad():
            self.last = self.network(self.xs[k][None], self.last)

    def step(self, k: int) -> None:
        xs = self.ring.push(self.xs[k])
        self.edges.append(self.last)
        h, c = self.network(xs, self.edges[0])
        self.descend(h, self.targets[k])
        self.last = (h.detach(), c.detach())

    def descend(self, h: Any, target: Any) -> None:
        """An SGD step: one call for all parameters, quicker than torch.optim.SGD."""
        gradients = torch.autograd.grad(torch.nn.functional.mse_loss(h, target), self.leaves)
        with torch.no_grad():
            torch._foreach_add_(self.leaves, gradients, alpha=-self.lr)

    def parameters(self) -> dict[str, np.ndarray]:
        arrays = (leaf.detach().cpu().numpy().T.copy() for leaf in self.leaves)
        return dict(zip(("w_x", "w_h", "b"), arrays, strict=True))

    def mark(self) -> Any:
        if self.device == "cpu":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) * 1e-3

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()


class RerunInGraph(Rerun):
    """The same as one CUDA graph, with its rings in it: a step is two copies and a launch.

    The learning rate is a number of the graph, so another one means another graph. On a CPU, which has none, the
    work that it would hold is queued op by op.
    """

    def __init__(self, work: Work, device: str, network: Any) -> None:
        super().__init__(work, device, network)
        self.window = self.zeros(work.window)
        self.starts, self.last = self.zeros(work.window, 2), self.zeros(2)
        self.x, self.target = self.zeros(), self.zeros()
        self.graph: Any = None
        self.lr_of_graph: float | None = None

    def fill(self, k: int) -> None:
        with torch.no_grad():
            self.x.copy_(self.xs[k])
            self.push()
            self.last.copy_(torch.stack(self.network(self.x[None], tuple(self.last))))

    def push(self) -> None:
        """The rings move on by a step."""
        self.window.copy_(torch.cat([self.window[1:], self.x[None]]))
        self.starts.copy_(torch.cat([self.starts[1:], self.last[None]]))

    def whole_step(self) -> None:
        """What the graph holds."""
        self.push()
        h, c = self.network(self.window, tuple(self.starts[0]))
        self.descend(h, self.target)
        self.last.copy_(torch.stack([h.detach(), c.detach()]))

    def step(self, k: int) -> None:
        self.x.copy_(self.xs[k])
        self.target.copy_(self.targets[k])
        if self.device == "cpu":
            self.whole_step()
            return
        if self.lr != self.lr_of_graph:
            self.record()
        self.graph.replay()

    def record(self) -> None:
        """Make the graph. What it needs of libraries is made by steps before it, which are then undone."""
        written = [leaf.detach() for leaf in self.leaves] + [self.window, self.starts, self.last]
        before = [array.clone() for array in written]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.whole_step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph, self.lr_of_graph = torch.cuda.CUDAGraph(), self.lr
        with torch.cuda.graph(self.graph):
            self.whole_step()
        for array, old in zip(written, before, strict=True):
            array.copy_(old)


def settle(precision: str) -> str:
    """Let products use TF32 or not. Returns why nothing can run on a GPU, or nothing."""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no GPU"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return ""
