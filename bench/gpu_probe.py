"""What the design for a GPU rests on, asked of the GPU at hand: `python bench/gpu.py --probe`.

Each question runs in a process of its own, for an error of CUDA spoils all that follows it. It either works, with
figures, or fails, with the error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (it pins the threads)
import numpy as np
from tapegrad.kernels import gpu as kernels
from tapegrad.kernels.cuda import blas, calibrate, plan
from tapegrad.kernels.cuda.rings import Launches, Rings

ROUNDS = 9
TIMES = 200  # of what is timed by the host
SIZES = [(256, 1), (1024, 64)]  # hidden units and rows of the cooperative launch
F32 = np.float32
Figures = dict[str, float]


def run(name: str) -> int:
    """Answer one question, or each in a process of its own."""
    if name != "all":
        print(json.dumps(answered(name)))
        return 0
    failed = []
    for question in PROBES:
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), question]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            said = done.stdout.strip().splitlines()
            found = json.loads(said[-1]) if said else {"error": done.stderr.strip()[-500:] or "said nothing"}
        except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        outcome = "FAILS: " + found["error"] if "error" in found else "works"
        figures = [[what, f"{value:.3g}"] for what, value in found.get("figures", {}).items()]
        paired.show(f"{question}: {outcome}", ["", ""], figures)
        failed += [question] if "error" in found else []
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall work")
    return 1 if failed else 0


def answered(name: str) -> dict[str, Any]:
    try:
        return {"figures": PROBES[name]()}
    except Exception as error:  # whatever it is, it is the answer
        return {"error": f"{type(error).__name__}: {error}"}


# -- the questions -----------------------------------------------------------------------------------------


def barriers() -> Figures:
    """Microseconds of a barrier of all blocks, by how many there are."""
    asked = calibrate.samples(calibrate.CupyStopwatch())
    names = [name for name in asked if name.startswith("barrier")]
    return {f"{name.removeprefix('barrier ')} blocks, µs": median(asked[name]) for name in names}


def gaps() -> Figures:
    """Microseconds from one empty kernel to the next in a graph, and of the host to launch one through CuPy."""
    asked = calibrate.samples(calibrate.CupyStopwatch())
    return {
        "in a graph, µs": median(asked["gap"]),
        "of the host, launched by CuPy, µs": median(asked["launch"]),
    }


def own_product() -> Figures:
    """A product by a cuBLAS handle of our own, captured and launched again on other numbers."""
    import cupy

    rng, stream = np.random.default_rng(0), cupy.cuda.Stream(non_blocking=True)
    host_a, host_b = rng.standard_normal((64, 256), F32), rng.standard_normal((256, 1024), F32)
    with stream:
        handle = blas.Handle(stream.ptr)
        a, b = cupy.asarray(host_a), cupy.asarray(host_b)
        out = cupy.empty((64, 1024), F32)
        handle.matmul(a, b, out)
        graph = captured(stream, lambda: handle.matmul(a, b, out))
        a *= 2
        out.fill(np.nan)
        graph.launch(stream)
        error = np.abs(out.get() - 2 * host_a.astype(float) @ host_b).max()
        assert error < 1e-3, f"a graph's product is wrong by {error:.2g}"
        many = captured(stream, lambda: [handle.matmul(a, b, out) for _ in range(20)])
        return {
            "64 x 256 by 1024 in a graph, µs": between(stream, lambda: many.launch(stream)) / 20,
            "of the host, eagerly, µs": of_host(stream, lambda: handle.matmul(a, b, out)),
        }


def cooperative() -> Figures:
    """A window's backward in one cooperative launch, captured: the same bits as eagerly."""
    import cupy

    rng, stream, found = np.random.default_rng(0), cupy.cuda.Stream(non_blocking=True), {}
    for hidden, batch in SIZES:
        with stream:
            rings = Rings(cupy, "lstm", 20, batch, hidden, hidden)
            rings.head[...] = cupy.asarray(np.array([4, 20], np.int32))
            for ring in (rings.inputs, rings.gates, rings.extra, rings.cs):
                ring[...] = cupy.asarray(rng.uniform(0, 1, ring.shape).astype(F32))
            w_h = cupy.asarray((rng.uniform(-1, 1, (hidden, 4 * hidden)) / hidden**0.5).astype(F32))
            seeds = cupy.asarray(rng.standard_normal((1, batch, hidden), F32))
            division = plan.persistent_backward("lstm", hidden, batch)
            launches, passed = Launches(rings, division), cupy.empty((2, 20, batch, hidden), F32)
            launches.backward(w_h, seeds, passed)
            eagerly = rings.deltas.get()
            assert np.isfinite(eagerly).all() and eagerly.any(), "the window's deltas are not numbers"
            graph = captured(stream, functools.partial(launches.backward, w_h, seeds, passed))
            rings.deltas.fill(np.nan)
            graph.launch(stream)
            np.testing.assert_array_equal(rings.deltas.get(), eagerly)
            took = between(stream, lambda g=graph: g.launch(stream))
            grid = f"{division.grid[0]} x {division.grid[1]} blocks"
            found[f"20 steps, hidden {hidden}, batch {batch} ({grid}), µs"] = took
    return found


def numbas() -> Figures:
    """A kernel of Numba's on CuPy's arrays, in a stream that captures."""
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        arrays = of_sgd(cupy)
        (value,), (grad,), _, lr, _ = arrays
        step = kernels.sgd.bind(*arrays, stream=stream.ptr)
        step()
        graph = captured(stream, step)
        lr.fill(2.0)
        for _ in range(3):
            graph.launch(stream)
        np.testing.assert_array_equal(value.get(), np.full(1000, 0.5 - 6.0, F32))
        return {
            "of the host, a bound launch, µs": of_host(stream, step),
            "of the host, an op of CuPy's, µs": of_host(
                stream, lambda: cupy.multiply(value, grad, out=value)
            ),
            "of the host, a graph's launch, µs": of_host(stream, lambda: graph.launch(stream)),
        }


def of_sgd(xp: Any) -> tuple[Any, ...]:
    """What the kernel of `numbas` takes: a parameter that is written in place, its gradient, a rate of 0.5, a verdict."""
    value, grad = xp.ones(1000, F32), xp.ones(1000, F32)
    return [value], [grad], [value], xp.full(1, 0.5, F32), xp.ones(1, np.int64)


PROBES: dict[str, Callable[[], Figures]] = {
    "grid barriers": barriers,
    "gaps between kernels": gaps,
    "a captured product of our own handle": own_product,
    "a captured cooperative launch": cooperative,
    "a captured launch of Numba's": numbas,
}


# -- times -------------------------------------------------------------------------------------------------


def captured(stream: Any, work: Callable[[], object]) -> Any:
    """The graph of `work`, which has run once before: what it compiles may not be compiled in a capture."""
    stream.synchronize()
    stream.begin_capture()
    try:
        work()
    except Exception:
        with contextlib.suppress(Exception):  # it would only say that the capture is void
            stream.end_capture()
        raise
    return stream.end_capture()


def between(stream: Any, work: Callable[[], object]) -> float:
    """Microseconds of `work` on the GPU, the median over rounds."""
    import cupy

    def once() -> float:
        start = stream.record()
        for _ in range(10):
            work()
        end = stream.record()
        end.synchronize()
        return 100.0 * cupy.cuda.get_elapsed_time(start, end)  # milliseconds of ten

    work()
    return median(once)


def of_host(stream: Any, work: Callable[[], object]) -> float:
    """Microseconds of the host to queue `work`."""

    def once() -> float:
        stream.synchronize()
        started = time.perf_counter()
        for _ in range(TIMES):
            work()
        return 1e6 * (time.perf_counter() - started) / TIMES

    work()
    return median(once)


def median(sample: Callable[[], float]) -> float:
    return float(statistics.median(sample() for _ in range(ROUNDS)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=list(PROBES))
    sys.exit(run(parser.parse_args().name))
