"""A window that slides over a stream, on a GPU: forward one step, backward through the last K, an SGD step. How long?

    python bench/gpu.py                         under six minutes on an H100 or H200: tables, bench/results/gpu.json
    python bench/gpu.py --quick                 a minute, to runs/
    python bench/gpu.py --only 256,1,20         hidden, batch, window; an empty field is any
    python bench/gpu.py --minutes 20            more time: nothing is left out
    python bench/gpu.py --ways                  besides, each way to sweep a window that the model chooses among
    python bench/gpu.py --probe                 what the design rests on: barriers, captures, gaps between kernels
    python bench/gpu.py --dry                   tiny sizes on the CPU: sees that this file works

tapegrad captured (tg.capture around the loop's body) and eager, against PyTorch's LSTMCell and cuDNN's nn.LSTM, each
re-run over the window eagerly and as a CUDA graph, and a jitted scan in JAX. tapegrad sweeps with weights="current"; who
re-runs computes the window again with today's weights. At learning rate 0 these are the same: there gradients are
compared before any clock starts. IEEE float32 on both sides, then TF32 on both. Contenders take turns; a time is the
median over rounds, by the wall's clock, and by events on the device where the library has them. Each precision runs in
a process of its own. JAX, which compiles for seconds, comes last, for as many sizes as the time allows.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import paired  # isort: skip (it pins the threads)
import gpu_goals as goals
import gpu_tables as tables
import numpy as np
from peers.work import Work, distance

NO_GPU = 2  # the exit status where there is none
PRECISIONS = {"ieee": 0.6, "tf32": 0.4}  # and their shares of the time
AGREE = {"ieee": 1e-3, "tf32": 2e-2}  # relative; TF32 keeps ten bits
AT_LEAST = 0.012  # seconds of a turn
ROUNDS = 5
CALLS = 20  # of a step, to see what the host pays
MINUTES = 5.4
DRY_WORKS = [(8, 1, 3), (8, 2, 4)]
QUICK_WORKS = [(hidden, batch, 5) for hidden in (256, 1024) for batch in (1, 64)]
# The corners first: what a short time leaves out lies between others.
WORKS = sorted(
    ((h, b, k) for h in goals.HIDDEN for b in goals.BATCH for k in goals.WINDOW),
    key=lambda size: sum(value in (16, 512, 20) for value in size),
)
DRY = "dry run: these are not GPU figures"
Makers = dict[str, Callable[[], Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of few sizes, written to runs/")
    parser.add_argument("--only", default="", help="H,B,K: sizes; an empty field is any")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which sizes are left out")
    parser.add_argument(
        "--ways", action="store_true", help="each way to sweep a window, as rows of their own"
    )
    parser.add_argument("--probe", nargs="?", const="all", help="what the design rests on, instead")
    parser.add_argument("--dry", action="store_true", help="on the CPU, to test this file")
    parser.add_argument("--child", nargs=3, metavar=("PRECISION", "UNTIL", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        precision, until, file = options.child
        found = measured(precision, options, float(until))
        pathlib.Path(file).write_text(json.dumps(found))
        return 0
    device = None if options.dry else the_gpu()
    if device is None and not options.dry:
        print(
            "gpu: CuPy is not installed or finds no GPU: nothing was measured. --dry tests this file without one."
        )
        return NO_GPU
    if options.probe:
        import gpu_probe

        return gpu_probe.run(options.probe)
    return run(options, device)


def run(options: argparse.Namespace, device: dict[str, Any] | None) -> int:
    """A process for each precision, then the tables. The exit status is 1 if contenders disagree or one broke off."""
    started, found = time.time(), {}
    for precision, share in PRECISIONS.items():
        if precision == "tf32" and (options.quick or options.dry):
            continue
        left = started + 60 * options.minutes - time.time()
        until = time.time() + (left if precision == "tf32" else max(60 * options.minutes * share, 1))
        found[precision] = in_a_process(precision, options, until)
    note = f" ({DRY})" if options.dry else f" on {device['name']}"
    for precision, results in found.items():
        tables.show(f"{precision.upper()} float32{note}", results)
    wrong = [line for results in found.values() for line in results["wrong"]]
    print(f"\n{time.time() - started:.0f} s")
    for line in wrong:
        print(f"WRONG: {line}")
    if options.dry:
        print(f"\n{DRY}; nothing is written")
    elif any(results["sizes"] for results in found.values()):
        paired.write("gpu", {"gpu": device, **found}, bool(options.quick or options.only))
    return 1 if wrong else 0


def in_a_process(precision: str, options: argparse.Namespace, until: float) -> dict[str, Any]:
    """What a Python of its own measures: libraries read their precision when they start, and a CUDA error ends one process."""
    flags = [f"--{name}" for name in ("dry", "quick", "ways") if getattr(options, name)]
    settings = {"CUPY_TF32": "1" if precision == "tf32" else "0"}
    if precision == "ieee":
        settings["NVIDIA_TF32_OVERRIDE"] = "0"  # whatever a library would choose
    if options.dry:
        settings["JAX_PLATFORMS"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "found.json"
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), *flags, "--only", options.only,
                   "--child", precision, str(until), str(file)]  # fmt: skip
        try:
            status = subprocess.run(
                command, env={**os.environ, **settings}, timeout=max(until - time.time(), 0) + 120
            ).returncode
        except subprocess.TimeoutExpired:
            status = "nothing two minutes after its time"
        if file.exists():
            return dict(json.loads(file.read_text()))
    return {
        "sizes": [],
        "missing": {},
        "left_out": [],
        "wrong": [f"{precision}: the process ended with {status}"],
    }


# -- measuring ---------------------------------------------------------------------------------------------


def measured(precision: str, options: argparse.Namespace, until: float) -> dict[str, Any]:
    """Everything of one precision that fits before `until`, the time of day in seconds."""
    works, rounds = chosen(options), 2 if options.quick or options.dry else ROUNDS
    makers, jax_makers, missing = contenders(precision, options.dry, options.ways)
    gc.collect()
    gc.freeze()  # the libraries' objects: a collection between turns, or in a capture, need not walk through them
    found: dict[str, Any] = {"sizes": [], "missing": missing, "left_out": [], "wrong": []}
    for size in works:
        work = Work("lstm", size[1], size[0], size[2])
        if time.time() > until - 0.25 * 60 * bool(jax_makers):
            found["left_out"].append(f"{title(work)}")
            continue
        of_size = held(work, makers(work), precision, rounds)
        if not found["sizes"]:
            found["replays"] = replays(makers(work)[goals.OURS](), 20 if options.dry else goals.REPLAYS)
        found["sizes"].append(of_size)
        print(f"  {precision} {title(work)}: {tables.at_a_glance(of_size)}", flush=True)
    for of_size in found["sizes"] if jax_makers else []:
        work = Work("lstm", of_size["batch"], of_size["hidden"], of_size["window"])
        if time.time() > until:
            found["left_out"].append(f"{goals.JAX}: {title(work)}")
            continue
        ours = {name: make for name, make in makers(work).items() if name == goals.OURS}
        add_row(of_size, held(work, {**ours, **jax_makers(work)}, precision, rounds))
        print(f"  {precision} {title(work)}: {tables.at_a_glance(of_size, goals.JAX)}", flush=True)
    found["wrong"] += [f"{precision}, {line}" for size in found["sizes"] for line in size.pop("wrong")]
    return found


def chosen(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Sizes as (hidden, batch, window)."""
    works = DRY_WORKS if options.dry else QUICK_WORKS if options.quick else WORKS
    wanted = [int(field) if field.strip() else None for field in options.only.split(",")]
    if options.only and not options.dry and all(wanted) and len(wanted) == 3:
        return [tuple(wanted)]  # type: ignore[list-item]
    return [size for size in works if all(w in (None, s) for w, s in zip(wanted, size, strict=False))]


def contenders(
    precision: str, dry: bool, ways: bool = False
) -> tuple[Callable[[Work], Makers], Any, dict[str, str]]:
    """(who takes part, JAX apart or None, why others do not), each by what it is called with a Work."""
    from peers import on_gpu

    device, missing = "cpu" if dry else "cuda", {}
    torch_peers, why = peer("torch", precision, dry)
    if torch_peers is None:
        missing |= dict.fromkeys((goals.CELLS, goals.CELLS_IN_GRAPH, goals.CUDNN, goals.CUDNN_IN_GRAPH), why)
    jax_peers, why = peer("jax", precision, dry)
    if jax_peers is None:
        missing[goals.JAX] = why

    def makers(work: Work) -> Makers:
        found: Makers = {
            goals.OURS: lambda: on_gpu.Taped(work, device, captured=True),
            goals.EAGER: lambda: on_gpu.Taped(work, device, captured=False),
        }
        for name, way in goals.WAYS.items() if ways else ():
            found[name] = lambda way=way: on_gpu.Taped(work, device, captured=True, way=way)
        if torch_peers:
            t = torch_peers
            found |= {
                goals.CELLS: lambda: t.Rerun(work, device, t.Cells),
                goals.CELLS_IN_GRAPH: lambda: t.RerunInGraph(work, device, t.Cells),
                goals.CUDNN: lambda: t.Rerun(work, device, t.Layer),
                goals.CUDNN_IN_GRAPH: lambda: t.RerunInGraph(work, device, t.Layer),
            }
        return found

    def with_jax(work: Work) -> Makers:
        return {goals.JAX: lambda: jax_peers.ScanOnGpu(work, unroll=5)}

    return makers, with_jax if jax_peers else None, missing


def peer(package: str, precision: str, dry: bool) -> tuple[Any, str]:
    """The module with a peer's contenders, or None and what is missing."""
    if not paired.installed(package):
        return None, "not installed"
    try:
        module = importlib.import_module(f"peers.{package}_on_gpu")
        why = module.settle(precision)
    except Exception as error:  # one that cannot be imported here is a missing one
        return None, f"{type(error).__name__}: {first_line(error)}"
    return (module, "") if dry or not why else (None, why)


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def held(work: Work, makers: Makers, precision: str, rounds: int) -> dict[str, Any]:
    """One size: gradients at learning rate 0 first, then turns. Who differs, or breaks off, is named and not timed."""
    found: dict[str, Any] = {"hidden": work.hidden, "batch": work.batch, "window": work.window, "wrong": []}
    taking_part, gradients, failed = {}, {}, {}
    for name, make in makers.items():
        try:
            contender = make()
            contender.lr = 0.0
            contender.run(steps_to_stride(work))
            gradients[name] = contender.gradient()
            if name == goals.OURS:  # to be asked wakes the tape, and the loop is captured again
                found["swept"] = contender.swept()
                contender.run(steps_to_stride(work))
            contender.lr = work.lr
            taking_part[name] = contender
            if name == goals.OURS and (why := contender.fell_back()):
                found["wrong"].append(f"{title(work)}: {name} ran eagerly: {why}")
        except Exception as error:  # a contender that cannot run must not end the others' contest
            failed[name] = f"{type(error).__name__}: {first_line(error)}"
            found["wrong"].append(f"{title(work)}: {name}: {failed[name]}")
    truth = next((name for name in (goals.CELLS, goals.EAGER, goals.OURS) if name in gradients), None)
    differences = {name: distance(g, gradients[truth]) for name, g in gradients.items()}
    for name, difference in differences.items():
        if not difference < AGREE[precision]:
            found["wrong"].append(f"{title(work)}: {name} is {difference:.2g} away from {truth}")
            del taking_part[name]
    found["gradients"] = {
        "compared_with": truth,
        "differences": {name: float(f"{d:.3g}") for name, d in differences.items()},
    }
    found["failed"] = failed
    runs, steps = {}, {}
    for name, contender in taking_part.items():
        steps[name] = max(1, round(AT_LEAST / paired.seconds_a_step(contender.run, AT_LEAST / 3)))
        runs[name] = lambda c=contender, n=steps[name]: c.run(n)
        contender.turns.clear()
    taken = paired.seconds_of(runs, rounds) if runs else {}
    found["rows"] = {name: row(c, taken[name] / steps[name], steps[name]) for name, c in taking_part.items()}
    found["faster_than"] = {}
    if goals.OURS in taken:
        per_step = {name: t / steps[name] for name, t in taken.items()}
        found["faster_than"] = {
            name: paired.ratio(per_step, name, goals.OURS) for name in taken if name != goals.OURS
        }
    return found


def steps_to_stride(work: Work) -> int:
    """Steps behind the first full window until a graph is made of the loop, and some more."""
    return work.window + 12


def row(contender: Any, seconds: np.ndarray, steps: int) -> dict[str, Any]:
    """A contender's figures, in microseconds a step."""
    counted = contender.turns[1::2]  # the first run of a turn warms up
    on_device = None if None in counted else round(1e6 * float(np.median(counted)) / steps, 2)
    low, middle, high = (round(1e6 * float(q), 2) for q in np.percentile(seconds, [25, 50, 75]))
    host = round(1e6 * float(np.median(contender.calls(CALLS))), 2)
    return {
        "weights": contender.weights,
        "us": middle,
        "low": low,
        "high": high,
        "device_us": on_device,
        "host_us": host,
    }


def replays(contender: Any, times: int) -> dict[str, Any]:
    """What the device's memory has grown by over many captured steps."""
    work = contender.work
    contender.run(steps_to_stride(work))
    before = contender.held()
    contender.run(times)
    after = contender.held()
    return {
        "size": title(work),
        "times": times,
        "bytes_grown": {name: after[name] - before[name] for name in before},
    }


def add_row(of_size: dict[str, Any], other: dict[str, Any]) -> None:
    """JAX's row, and its ratio within the rounds that it took part in."""
    of_size["wrong"] += other["wrong"]
    of_size["failed"] |= other["failed"]
    of_size["gradients"]["differences"] |= {
        name: d for name, d in other["gradients"]["differences"].items() if name == goals.JAX
    }
    for key in ("rows", "faster_than"):
        if goals.JAX in other[key]:
            of_size[key][goals.JAX] = other[key][goals.JAX]


def title(work: Work) -> str:
    return f"hidden {work.hidden}, batch {work.batch}, window {work.window}"


# -- the GPU -----------------------------------------------------------------------------------------------


def the_gpu() -> dict[str, Any] | None:
    """The device by its driver, and the versions of what runs on it; None where CuPy is missing or sees none."""
    if importlib.util.find_spec("cupy") is None:
        return None
    import cupy

    if not cupy.cuda.is_available():
        return None
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    versions = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower()
        if name.startswith(("cupy", "numba-cuda", "nvidia-cu", "torch", "jax")):
            versions[name] = distribution.version
    return {
        "name": properties["name"].decode(),
        "multiprocessors": properties["multiProcessorCount"],
        "driver": driver(),
        "cuda_of_driver": runtime.driverGetVersion(),
        "cuda_of_runtime": runtime.runtimeGetVersion(),
        "versions": dict(sorted(versions.items())),
    }


def driver() -> str:
    """The driver's version and the clock, as nvidia-smi says."""
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[0].strip()
        )
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return "unknown: no nvidia-smi"


if __name__ == "__main__":
    sys.exit(main())
