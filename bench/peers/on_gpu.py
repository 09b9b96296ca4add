"""What the contenders of gpu.py share, and tapegrad's: the loop on a CapacitorTape, captured or not.

Inputs and targets of the stream lie where the loop computes. A turn is timed by the wall's clock and, where a library
lets its stream be marked, by events on the device too.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import numpy as np
from tapegrad.kernels.cuda import model

import tapegrad as tg

from .tapegrad_loops import built_in_cell
from .work import DISTINCT, Contender, Work


@functools.lru_cache(maxsize=1)
def drawn(work: Work) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Parameters and stream of a Work: several contenders need them, and large ones take a second to draw."""
    return work.parameters(), work.stream()


class Timed(Contender):
    """A contender whose turns are timed. A subclass marks its stream and waits for it, if it has one."""

    def __init__(self, work: Work) -> None:
        self.work, self.lr, self.taken = work, work.lr, 0
        _, (self.xs, self.targets) = drawn(work)
        self.turns: list[float | None] = []  # seconds between the marks, by turn

    def run(self, steps: int) -> None:
        """As Contender has it; `turns` grows by the seconds that the device took."""
        start = self.mark()
        super().run(steps)
        self.turns.append(None if start is None else self.between(start, self.end))

    def finish(self) -> None:
        self.end = self.mark()
        self.wait()

    def calls(self, steps: int) -> list[float]:
        """Seconds of Python for each of `steps` steps, which the device finishes later."""
        found = []
        for _ in range(steps):
            started = time.perf_counter()
            self.step(self.taken % DISTINCT)
            found.append(time.perf_counter() - started)
            self.taken += 1
        self.finish()
        return found

    def mark(self) -> Any:
        """An event after all that is queued, or None."""

    def between(self, start: Any, end: Any) -> float:
        """Seconds from one event to another."""
        raise NotImplementedError

    def wait(self) -> None:
        """Until the device has done all that is queued."""


class Taped(Timed):
    """nn.LSTMCell, a CapacitorTape that sweeps with today's weights, optim.SGD.

    `captured`: tg.capture around the body. `way`: how windows are swept on a GPU, the model's choice unless it is given.
    """

    weights = "current"

    def __init__(self, work: Work, device: str, captured: bool, way: str = "auto") -> None:
        super().__init__(work)
        self.way = way
        self.cupy: Any = None
        if device != "cpu":
            import cupy

            self.cupy, self.stream = cupy, cupy.cuda.Stream(non_blocking=True)
        with self.on_stream():
            self.cell = built_in_cell(work).to(device)
            self.optimizer = tg.optim.SGD(self.cell.parameters(), self.lr)
            self.tape = tg.CapacitorTape(work.window, weights="current")
            self.state: Any = tuple(
                tg.constant(tg.asarray(np.zeros(shape, np.float32), device=device))
                for shape in work.state_shapes
            )
            self.xs, self.targets = (list(tg.asarray(a, device=device)) for a in (self.xs, self.targets))
        self.body: Any = tg.capture(self.learn) if captured else self.learn
        self.wait()

    def learn(self, x: Any, target: Any, state: Any) -> Any:
        """The loop's body: the state after `x`."""
        with self.tape:
            out, state = self.cell(x, state)
            loss = tg.mean((out - target) ** 2)
        if self.tape.backward(loss):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return state

    def step(self, k: int) -> None:
        if self.optimizer.lr != self.lr:
            self.optimizer.lr = self.lr
        self.state = self.body(self.xs[k], self.targets[k], self.state)

    def run(self, steps: int) -> None:
        before = model.use(self.way)
        try:
            with self.on_stream():
                super().run(steps)
        finally:
            model.use(before)

    def calls(self, steps: int) -> list[float]:
        with self.on_stream():
            return super().calls(steps)

    def parameters(self) -> dict[str, np.ndarray]:
        return {
            name: np.array(tg.asarray(getattr(self.cell, name).value, device="cpu"))
            for name in drawn(self.work)[0]
        }

    def on_stream(self) -> Any:
        """A capture needs a stream that is not the default one, and so all of it runs on one."""
        return contextlib.nullcontext() if self.cupy is None else self.stream

    def mark(self) -> Any:
        if self.cupy is None:
            return None
        event = self.cupy.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        return float(self.cupy.cuda.get_elapsed_time(start, end)) * 1e-3

    def wait(self) -> None:
        if self.cupy is not None:
            self.stream.synchronize()

    def fell_back(self) -> str:
        """Why steps are not launches of a graph though they should be, or nothing."""
        if self.cupy is None or self.body.graphs:
            return ""
        return self.body.reason or "the loop never became steady"

    def swept(self) -> str:
        """Which kernels sweep a window on a GPU; "generic" where rules do."""
        if self.cupy is None:
            return "the host"
        return (
            str(self.tape.program()).split()[-1] if "swept by kernels" in self.tape.program() else "generic"
        )

    def held(self) -> dict[str, int]:
        """Bytes of CuPy's pool that arrays have, bytes that it has got, and bytes of the device that are taken."""
        if self.cupy is None:
            return {}
        pool = self.cupy.get_default_memory_pool()
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return {"used": pool.used_bytes(), "got": pool.total_bytes(), "taken": total - free}
