"""A step of a recurrent cell in one launch: `forward_step`, for arrays and sizes that it takes.

step = fused("lstm", False, x, h, c, w_x, w_h, b)
if step is not None:
    step((x, h, c, w_x, w_h, b, None), (h_next, c_next, gates, tanh_c))
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import model, plan, source

Array = Any
LOG = logging.getLogger("tapegrad.kernels")
FLOAT32 = np.dtype(np.float32)
NOTHING = np.uintp(0)  # CuPy takes no None for a pointer
INT = np.int32


class Step:
    """What a cell of certain sizes computes, in one launch on CuPy's current stream; made, it is compiled.

    Arrays are float32, C-ordered and on 16 bytes, of the shapes in `kernels/cpu.py`; nothing here checks that.
    `compiled` is for tests.
    """

    def __init__(self, chosen: plan.Forward, compiled: Callable[..., Any] = source.compiled) -> None:
        self.grid, self.block, self.shared_bytes = chosen.grid, (chosen.threads,), chosen.shared_bytes
        self.kernel = compiled("forward.cu", chosen.expression, chosen.shared_bytes)
        self.sizes = INT(chosen.batch), INT(chosen.n_in), INT(chosen.hidden)

    def __call__(self, given: Sequence[Array], made: Sequence[Array]) -> None:
        """`given`: x, h, c, w_x, w_h, b, b_h. `made`: h', c', the gates, tanh c' or `inner`. None for what a cell has none of.

        Nothing that is made may share memory with what is given.
        """
        pointers = [NOTHING if array is None else array for array in (*given, *made)]
        self.kernel(self.grid, self.block, (*self.sizes, *pointers), shared_mem=self.shared_bytes)


def fused(cell: str, captured: bool, x: Array, h: Array, *others: Array) -> Step | None:
    """The launch for a step with these arrays of CuPy, alike in dtype; None where products and a pointwise kernel are
    to make it. `captured`: it will be part of a CUDA graph."""
    if h.dtype != FLOAT32:
        return None
    for array in (x, h, *others):
        # Rows are read 16 bytes at a time, and what is a part of another array may begin anywhere.
        if not array.flags.c_contiguous or array.data.ptr % 16:
            return None
    batch, hidden = h.shape
    return step_for(cell, x.shape[1], hidden, batch, h.device.id, captured, model.STEP)


@functools.lru_cache(1024)
def step_for(
    cell: str, n_in: int, hidden: int, batch: int, device: int, captured: bool, way: str
) -> Step | None:
    """The launch for these sizes on `device`, which is current, if it is the way to make the step. The log says why not
    where it does not compile."""
    if model.choose_step(cell, n_in, hidden, batch, captured=captured, way=way) != "fused":
        return None
    try:
        return Step(plan.forward_step(cell, n_in, hidden, batch))
    except Exception as error:  # whatever CuPy, NVRTC or the driver say: products serve
        LOG.warning("the kernel `forward_step` does not run on cuda:%s, products serve: %s", device, error)
        return None
