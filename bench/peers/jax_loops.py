"""JAX's way to slide a window over a stream: one jitted step that shifts the ring of inputs, scans the window again
from its left edge, takes the gradient and descends, with all its buffers donated.

`unroll` is lax.scan's. With `hoisted`, the inputs' share of all gates is one product before the scan.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import numpy as np

from .work import Chunks, Contender, Work

# Read when JAX starts: as many threads as the others get.
os.environ["NPROC"] = os.environ.get("BENCH_THREADS", "1")
if os.environ["NPROC"] == "1":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

import jax
import jax.numpy as jnp
from jax import lax

# Dispatching from another thread would be a second thread, and is slower for steps this short.
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))


def gates_of_x(p: Any, x: Any, hoisted: bool) -> Any:
    """The first layer's share from the input; `x` holds it already if it was hoisted."""
    return x if hoisted else x @ p["w_x"] + p["b"]


def lstm(p: Any, state: Any, x: Any, hoisted: bool, layers: int = 1) -> tuple[Any, Any]:
    """(state, output) after `x`."""
    after: list[Any] = []
    from_x = gates_of_x(p, x, hoisted)
    for layer in ["", "2"][:layers]:
        h, c = state[len(after) : len(after) + 2]
        if layer:
            from_x = after[0] @ p["w_x2"] + p["b2"]
        i, f, g, o = jnp.split(from_x + h @ p[f"w_h{layer}"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        after += [jax.nn.sigmoid(o) * jnp.tanh(c), c]
    return tuple(after), after[-2]


def gru(p: Any, state: Any, x: Any, hoisted: bool) -> tuple[Any, Any]:
    """(state, output) after `x`."""
    (h,) = state
    x_r, x_z, x_n = jnp.split(gates_of_x(p, x, hoisted), 3, -1)
    h_r, h_z, h_n = jnp.split(h @ p["w_h"] + p["b_h"], 3, -1)
    n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
    h = n + jax.nn.sigmoid(x_z + h_z) * (h - n)
    return (h,), h


CELLS = {"lstm": lstm, "gru": gru, "lstm2": partial(lstm, layers=2)}


class Scan(Contender):
    """The window again, with today's weights."""

    def __init__(self, work: Work, unroll: int = 1, hoisted: bool = True) -> None:
        super().__init__(work)
        self.cell, self.unroll, self.hoisted = CELLS[work.kind], unroll, hoisted
        self.p = {name: jnp.asarray(array) for name, array in work.parameters().items()}
        self.state = tuple(jnp.zeros(shape) for shape in work.state_shapes)
        self.ring = jnp.zeros((work.window, work.batch, work.hidden))
        self.advance = jax.jit(self.whole_step, donate_argnums=(0, 1, 2))

    def loss(self, p: Any, xs: Any, state: Any, target: Any) -> Any:
        """The newest step's, and the state after the first."""
        xs = xs @ p["w_x"] + p["b"] if self.hoisted else xs
        first, out = self.cell(p, state, xs[0], self.hoisted)
        last = first
        if len(xs) > 1:
            # What a scan does not carry it need not keep: only the last output is asked for.
            last, _ = lax.scan(
                lambda state, x: (self.cell(p, state, x, self.hoisted)[0], None),
                first,
                xs[1:],
                unroll=min(self.unroll, len(xs) - 1),
            )
        out = last[-2 if self.work.kind != "gru" else -1]
        return jnp.mean((out - target) ** 2), first

    def whole_step(self, p: Any, ring: Any, state: Any, x: Any, target: Any, lr: Any) -> Any:
        ring = jnp.concatenate([ring[1:], x[None]])
        gradients, first = jax.grad(self.loss, has_aux=True)(p, ring, state, target)
        return {name: p[name] - lr * gradients[name] for name in p}, ring, first

    def fill(self, k: int) -> None:
        self.ring = jnp.concatenate([self.ring[1:], self.xs[k][None]])

    def step(self, k: int) -> None:
        self.p, self.ring, self.state = self.advance(
            self.p, self.ring, self.state, self.xs[k], self.targets[k], self.lr
        )

    def parameters(self) -> dict[str, np.ndarray]:
        return {name: np.array(array) for name, array in self.p.items()}

    def finish(self) -> None:
        jax.block_until_ready(self.p)


class ChunkOfScan(Chunks, Scan):
    """A jitted scan over each chunk, gradient and descent in it; parameters and state donated."""

    def __init__(self, work: Work, unroll: int = 1, hoisted: bool = True) -> None:
        super().__init__(work, unroll, hoisted)
        self.advance = jax.jit(self.whole_chunk, donate_argnums=(0, 1))

    def whole_chunk(self, p: Any, state: Any, xs: Any, targets: Any, lr: Any) -> Any:
        def loss_of(p: Any) -> Any:
            from_x = xs @ p["w_x"] + p["b"] if self.hoisted else xs
            last, outs = lax.scan(
                lambda state, x: self.cell(p, state, x, self.hoisted), state, from_x, unroll=self.unroll
            )
            return jnp.mean((outs - targets) ** 2) * self.work.window, last

        gradients, last = jax.grad(loss_of, has_aux=True)(p)
        return {name: p[name] - lr * gradients[name] for name in p}, last

    def chunk(self, xs: Any, targets: Any) -> None:
        self.p, self.state = self.advance(self.p, self.state, xs, targets, self.lr)
