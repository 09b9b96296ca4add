"""Measures the `Costs` of the current GPU, in a few seconds.

Every constant is a slope: the same work is timed in two amounts, one right after the other, and the difference of
times is divided by the difference of amounts, so that neither a launch nor the pace of the moment is in it. What
counts is the median over rounds. `Stopwatch` times each kind of work; tests have another one, made of known costs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from . import costs as costs_of
from . import source
from .costs import ESTIMATES, Costs

LEAST_ROUNDS = 5
CHAINS = 8  # of `calibrate.cu`
THREADS = 256  # of a block
READERS = 512  # threads of a block that reads: more loads under way
QUADS = 4 * CHAINS * READERS  # of 16 bytes, read by a block in a turn: 256 KiB
MOST_COPIED = 512 << 20  # bytes: more than any L2 has, and a quarter of it too
# The product that a step of 1024 hidden units needs, for an LSTM; and one of no size, which is all latency.
WIDE, LONG, TINY = 1024, 4096, 64


class Stopwatch(Protocol):
    """Microseconds that amounts of work take on a GPU."""

    multiprocessors: int
    clock: float  # MHz
    l2_bytes: float

    def launches(self, kernels: int) -> float: ...  # of the host, to launch empty kernels
    def graph(self, kernels: int) -> float: ...  # of empty kernels in a graph
    def barriers(self, blocks: int, turns: int) -> float: ...
    def follow(self, steps: int) -> float: ...  # loads, each from where the one before says
    def read_l2(self, blocks: int, turns: int) -> float: ...  # QUADS of 16 bytes a block and turn
    def multiply_add(self, blocks: int, turns: int) -> float: ...  # 2 CHAINS THREADS flops a block and turn
    def copy(self, bytes: int) -> float: ...
    def product(self, m: int, n: int, k: int) -> float: ...


class Sample(NamedTuple):
    """Work in two amounts: `time(amount)` in microseconds."""

    time: Callable[[int], float]
    few: int
    many: int

    def slope(self) -> float:
        """Microseconds of one more."""
        return (self.time(self.many) - self.time(self.few)) / (self.many - self.few)


def samples(gpu: Stopwatch) -> dict[str, Callable[[], float]]:
    """What is asked in each round, by name."""
    all_blocks, rows = gpu.multiprocessors, [rows for rows, _ in ESTIMATES.gemm_rates]
    asked = {
        "launch": Sample(gpu.launches, 50, 250),
        "gap": Sample(gpu.graph, 100, 500),
        "latency": Sample(gpu.follow, 2000, 10000),
        "read by one": Sample(lambda n: gpu.read_l2(1, n), 20, 100),
        "read by all": Sample(lambda n: gpu.read_l2(all_blocks, n), 20, 100),
        "multiply": Sample(lambda n: gpu.multiply_add(all_blocks, n), 4000, 20000),
        "byte": Sample(gpu.copy, MOST_COPIED // 4, MOST_COPIED),
        **{
            f"barrier {blocks}": Sample(lambda n, b=blocks: gpu.barriers(b, n), 200, 1000)  # type: ignore[misc]
            for blocks in block_counts(all_blocks)
        },
    }
    return {
        **{name: sample.slope for name, sample in asked.items()},
        "tiny product": lambda: gpu.product(1, TINY, TINY),
        **{f"product {m}": lambda m=m: beyond(gpu, m) for m in rows},  # type: ignore[misc]
    }


def block_counts(most: int) -> list[int]:
    """How many blocks come to the barriers that are timed: a line goes through the medians."""
    return sorted({*(n for n in (1, 8, 32, 64, 128) if n < most), most})


def beyond(gpu: Stopwatch, rows: int) -> float:
    """Microseconds of a product with so many rows, beyond what one of no size takes."""
    return gpu.product(rows, WIDE, LONG) - gpu.product(1, TINY, TINY)


def measure(gpu: Stopwatch, seconds: float, clock: Callable[[], float] = time.perf_counter) -> Costs:
    """The costs of a GPU. Raises RuntimeError if a time is no positive number: something else was at work."""
    asked = samples(gpu)
    for sample in asked.values():
        sample()  # compiles, and wakes the GPU up
    found: dict[str, list[float]] = defaultdict(list)
    end = clock() + seconds
    while len(found["gap"]) < LEAST_ROUNDS or clock() < end:
        for name, sample in asked.items():
            found[name].append(sample())
    return fitted({name: statistics.median(values) for name, values in found.items()}, gpu)


def fitted(medians: dict[str, float], gpu: Stopwatch) -> Costs:
    """Costs from the medians of `samples`."""
    counts = block_counts(gpu.multiprocessors)
    barriers = [medians[f"barrier {blocks}"] for blocks in counts]
    of_block, barrier = np.polyfit(counts, barriers, 1) if len(counts) > 1 else (0.0, barriers[0])
    gemm = medians["tiny product"] - medians["gap"]
    for name, value in {**medians, "barrier": float(barrier), "gemm": gemm}.items():
        if not (math.isfinite(value) and value > 0):
            raise RuntimeError(
                f"calibrate: {name} came out as {value:.3g}, which no GPU has.\n"
                "  Is something else at work on it? Calibrate again when it is idle."
            )
    turn = 16e-3 * QUADS  # thousands of bytes: over microseconds, GB/s
    return Costs(
        launch=medians["launch"],
        gap=medians["gap"],
        barrier=float(barrier),
        # More blocks make no barrier quicker: if the line says so, its slope is noise.
        barrier_of_block=max(float(of_block), 1e-6),
        latency=medians["latency"],
        l2_of_block=turn / medians["read by one"],
        l2=turn * gpu.multiprocessors / medians["read by all"],
        l2_bytes=gpu.l2_bytes,
        dram=2e-3 / medians["byte"],  # each is read and written
        fp32_of_block=2e-3 * CHAINS * THREADS / medians["multiply"],
        clock=gpu.clock,
        gemm=gemm,
        gemm_rates=tuple(
            (rows, 2e-6 * rows * WIDE * LONG / medians[f"product {rows}"]) for rows, _ in ESTIMATES.gemm_rates
        ),
    )


def calibrate(seconds: float = 10.0) -> tuple[Costs, Path]:
    """Measure the current GPU and keep what was found: the costs, and the file that later processes read."""
    if not source.available():
        raise RuntimeError(
            "calibrate: there is no GPU that CuPy can use, and only a GPU can say what it costs.\n"
            "  Without one the model goes by estimates for an H100. `python -m tapegrad doctor` says what is missing."
        )
    import cupy

    costs = measure(CupyStopwatch(), seconds)
    runtime = cupy.cuda.runtime.runtimeGetVersion()
    versions = {"cupy": cupy.__version__, "cuda": str(runtime), "numpy": np.__version__}
    return costs, costs_of.keep(costs, costs_of.this_origin(), versions)


class CupyStopwatch:
    """Times on the current GPU, between events of CuPy.

    The host is slower to launch than small kernels are to run. So a kernel that only passes time goes first, and
    all that is timed is in the queue before it ends.
    """

    def __init__(self) -> None:
        import cupy

        self.cupy, self.runtime = cupy, cupy.cuda.runtime
        self.stream = cupy.cuda.Stream(non_blocking=True)
        device = self.runtime.getDevice()
        self.multiprocessors = self.runtime.deviceGetAttribute(MULTIPROCESSORS, device)
        self.clock = self.runtime.deviceGetAttribute(CLOCK_RATE, device) / 1e3
        self.l2_bytes = float(self.runtime.deviceGetAttribute(L2_CACHE_SIZE, device))
        self.start, self.end = cupy.cuda.Event(), cupy.cuda.Event()
        self.graphs: dict[int, Any] = {}
        with self.stream:
            self.counter = cupy.zeros(32, cupy.uint32)
            self.words = cupy.zeros((self.multiprocessors, 4), cupy.float32)
            self.sums = cupy.zeros((self.multiprocessors, READERS), cupy.float32)
            self.read = cupy.zeros((QUADS, 4), cupy.float32)
            self.ring = self.places()
            self.bytes = cupy.zeros((2, MOST_COPIED), cupy.uint8)
            self.matrices: dict[tuple[int, int, int], Any] = {}

    def places(self) -> Any:
        """A walk over all of `QUADS` places in steps that no prefetching foresees: (place + 4001) mod QUADS."""
        xp = self.cupy
        ring = xp.zeros((QUADS, 4), xp.float32)
        ring[:, 0] = (xp.arange(QUADS) + 4001) % QUADS  # exact in float32
        return ring

    def passing_time(self, launches: int) -> None:
        """Fills the queue for longer than the host takes to launch so many kernels: 0.3 µs a barrier, or more."""
        self._barriers(1, 2000 + 200 * launches)

    def between(self, work: Callable[[], Any], times: int = 1) -> float:
        """Microseconds of one `work`, on the GPU."""
        with self.stream:
            self.passing_time(times)
            self.start.record(self.stream)
            for _ in range(times):
                work()
            self.end.record(self.stream)
            self.end.synchronize()
        return 1e3 * float(self.cupy.cuda.get_elapsed_time(self.start, self.end)) / times

    def launches(self, kernels: int) -> float:
        with self.stream:
            self.stream.synchronize()
            self.passing_time(kernels)
            started = time.perf_counter()
            for _ in range(kernels):
                self._nothing()
            took = time.perf_counter() - started
            self.stream.synchronize()
        return 1e6 * took

    def graph(self, kernels: int) -> float:
        if kernels not in self.graphs:
            self.launches(1)  # compiles, which a capture does not allow
            with self.stream:
                self.stream.begin_capture()
                for _ in range(kernels):
                    self._nothing()
                self.graphs[kernels] = self.stream.end_capture()
        return self.between(lambda: self.graphs[kernels].launch(self.stream))

    def barriers(self, blocks: int, turns: int) -> float:
        return self.between(lambda: self._barriers(blocks, turns))

    def follow(self, steps: int) -> float:
        kernel = source.compiled("calibrate.cu", "follow")
        return self.between(lambda: kernel((1,), (1,), (self.ring, np.int32(steps), self.sums)))

    def read_l2(self, blocks: int, turns: int) -> float:
        kernel = source.compiled("calibrate.cu", "read_l2")
        args = (self.read, np.int32(QUADS), np.int32(turns), self.sums)
        return self.between(lambda: kernel((blocks,), (READERS,), args))

    def multiply_add(self, blocks: int, turns: int) -> float:
        kernel = source.compiled("calibrate.cu", "multiply_add")
        args = (np.int32(turns), np.float32(0.999), self.sums)
        return self.between(lambda: kernel((blocks,), (THREADS,), args))

    def copy(self, bytes: int) -> float:
        old, new = self.bytes[:, :bytes]
        return self.between(lambda: self.cupy.copyto(new, old))

    def product(self, m: int, n: int, k: int) -> float:
        if (m, n, k) not in self.matrices:
            with self.stream:
                shapes = ((m, k), (k, n), (m, n))
                self.matrices[m, n, k] = [self.cupy.ones(shape, self.cupy.float32) for shape in shapes]
        a, b, out = self.matrices[m, n, k]
        return self.between(lambda: self.cupy.dot(a, b, out=out), times=20)

    def _barriers(self, blocks: int, turns: int) -> None:
        kernel = source.compiled("calibrate.cu", "only_barriers", 0, True)
        kernel((blocks,), (THREADS,), (np.int32(turns), self.counter, self.words, self.sums))

    def _nothing(self) -> None:
        kernel = source.compiled("calibrate.cu", "nothing")
        kernel((1,), (THREADS,), (self.read, self.read, self.read, self.sums))


# Of cudaDeviceAttr. The properties of CUDA 13 have no clock any more; the attributes do.
CLOCK_RATE, MULTIPROCESSORS, L2_CACHE_SIZE = 13, 16, 38  # kHz, a count, bytes


def described(costs: Costs) -> Iterator[str]:
    """Each constant in a line."""
    for name, value in costs._asdict().items():
        if name == "gemm_rates":
            yield "gemm_rates " + ", ".join(f"{rows}: {rate:.3g}" for rows, rate in value)
        else:
            yield f"{name} {value:.4g}"
