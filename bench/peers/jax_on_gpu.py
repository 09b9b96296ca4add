"""JAX's way to slide a window on a GPU: the jitted scan of jax_loops.py, with the stream on the device."""

from __future__ import annotations

import os

# `jax_loops` keeps JAX to the CPU unless it is told otherwise; its memory is taken when it is needed.
os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp

from .jax_loops import Scan
from .on_gpu import Timed, drawn
from .work import Work


class ScanOnGpu(Timed, Scan):
    """`unroll` is lax.scan's. JAX has no events: its turns are timed by the wall's clock alone."""

    def __init__(self, work: Work, unroll: int) -> None:
        Scan.__init__(self, work, unroll, hoisted=True)
        self.turns = []
        _, stream = drawn(work)
        self.xs, self.targets = ([jnp.asarray(x) for x in array] for array in stream)
        self.rates: dict[float, jax.Array] = {}

    def step(self, k: int) -> None:
        if self.lr not in self.rates:
            self.rates[self.lr] = jnp.float32(self.lr)
        self.p, self.ring, self.state = self.advance(
            self.p, self.ring, self.state, self.xs[k], self.targets[k], self.rates[self.lr]
        )

    def wait(self) -> None:
        jax.block_until_ready((self.p, self.ring, self.state))


def settle(precision: str) -> str:
    """Let products use TF32 or not. Returns why nothing can run on a GPU, or nothing."""
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    try:
        return "" if jax.devices("gpu") else "JAX sees no GPU"
    except RuntimeError as error:
        return f"JAX {jax.__version__}: {str(error).splitlines()[0]}"
