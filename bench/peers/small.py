"""HIPS autograd, MyGrad and tinygrad: the window again from its left edge, for an LSTM; for small sizes."""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np

from .work import Contender, MirroredRing, Work


class Rerun(Contender):
    """The ring of inputs and the state at the left edge, in NumPy."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self.p = work.parameters()
        self.state = [np.zeros(shape, np.float32) for shape in work.state_shapes]
        self.ring = MirroredRing(
            work.window, np.zeros((2 * work.window, work.batch, work.hidden), np.float32)
        )

    def fill(self, k: int) -> None:
        self.ring.push(self.xs[k])

    def parameters(self) -> dict[str, np.ndarray]:
        return dict(self.p)


class Autograd(Rerun):
    """autograd.grad of a function of the parameters, which hands out the state after the first step on the side."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        from autograd import grad

        self.gradient_of = grad(self.loss)

    def loss(self, p: Any, xs: Any, target: Any) -> Any:
        import autograd.numpy as anp

        n, (h, c) = self.work.hidden, self.state
        from_x = anp.dot(xs, p["w_x"]) + p["b"]
        for t in range(len(xs)):
            z = from_x[t] + anp.dot(h, p["w_h"])
            gates = anp.tanh(z * self.scale) * self.scale + self.shift
            i, f, g, o = (gates[:, k * n : (k + 1) * n] for k in range(4))
            c = f * c + i * g
            h = o * anp.tanh(c)
            if t == 0:
                self.first = [getattr(v, "_value", v) for v in (h, c)]
        return anp.mean((h - target) ** 2)

    def step(self, k: int) -> None:
        gradients = self.gradient_of(self.p, self.ring.push(self.xs[k]), self.targets[k])
        self.state = self.first
        self.p = {name: p - np.float32(self.lr) * gradients[name] for name, p in self.p.items()}

    @property
    def scale(self) -> np.ndarray:
        """sigmoid(z) = tanh(z / 2) / 2 + 1/2."""
        return np.repeat(np.array([0.5, 0.5, 1, 0.5], np.float32), self.work.hidden)

    @property
    def shift(self) -> np.ndarray:
        """What is added after the tanh."""
        return np.repeat(np.array([0.5, 0.5, 0, 0.5], np.float32), self.work.hidden)


class MyGrad(Rerun):
    """MyGrad's tensors, with its guard against writing into arrays off, as its guide advises for speed."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        import mygrad
        from mygrad.nnet.activations import sigmoid

        mygrad.turn_memory_guarding_off()
        self.mg, self.sigmoid = mygrad, sigmoid

    def step(self, k: int) -> None:
        mg, sigmoid, n = self.mg, self.sigmoid, self.work.hidden
        xs = self.ring.push(self.xs[k])
        p = {name: mg.tensor(array, copy=False) for name, array in self.p.items()}
        h, c = self.state
        from_x = mg.matmul(xs, p["w_x"]) + p["b"]
        for t in range(len(xs)):
            z = from_x[t] + mg.matmul(h, p["w_h"])
            i, f, g, o = (z[:, gate * n : (gate + 1) * n] for gate in range(4))
            c = sigmoid(f) * c + sigmoid(i) * mg.tanh(g)
            h = sigmoid(o) * mg.tanh(c)
            if t == 0:
                self.state = [h.data, c.data]
        mg.mean((h - self.targets[k]) ** 2).backward()
        self.p = {name: v.data - np.float32(self.lr) * v.grad for name, v in p.items()}


def tinygrad_can_run() -> bool:
    """Its programs for a processor are compiled with clang."""
    return shutil.which(os.environ.get("CC", "clang")) is not None


class Tinygrad(Rerun):
    """A TinyJit of the whole step: it replays the kernels that its third call compiled."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        os.environ.setdefault("DEV", "CPU")
        os.environ.setdefault("CPU_COUNT", os.environ.get("BENCH_THREADS", "1"))
        from tinygrad import Tensor, TinyJit

        self.tensor = Tensor
        self.leaves = {name: Tensor(array).realize() for name, array in self.p.items()}
        self.edge = [Tensor(array).realize() for array in self.state]
        self.jitted = TinyJit(self.whole_step)

    def whole_step(self, xs: Any, target: Any, lr: Any) -> None:
        p, (h, c) = self.leaves, self.edge
        from_x = xs @ p["w_x"] + p["b"]
        for t in range(self.work.window):
            i, f, g, o = (from_x[t] + h @ p["w_h"]).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            if t == 0:
                first = [h.detach(), c.detach()]
        loss = ((h - target) ** 2).mean()
        gradients = loss.gradient(*p.values())
        moved = [(leaf - lr * ct).contiguous() for leaf, ct in zip(p.values(), gradients, strict=True)]
        first = [v.contiguous() for v in first]
        self.tensor.realize(*moved, *first)
        for old, new in zip([*p.values(), *self.edge], [*moved, *first], strict=True):
            old.assign(new)
        self.tensor.realize(*p.values(), *self.edge)

    def step(self, k: int) -> None:
        tensor = self.tensor
        xs = self.ring.push(self.xs[k])
        given = [
            tensor(a.copy()).realize() for a in (xs, self.targets[k], np.full((1,), self.lr, np.float32))
        ]
        self.jitted(*given)

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: leaf.numpy() for name, leaf in self.leaves.items()}
