"""Fair timing: contenders take turns, so that a machine that changes its pace changes it for all of them.

A round runs every contender once, in an order that rotates. What counts is the ratio of two contenders
within a round, and the median of that over the rounds. Import this first: it pins every library to one
thread (or to BENCH_THREADS) before NumPy is imported.
"""

from __future__ import annotations

import os

THREADS = int(os.environ.get("BENCH_THREADS", "1"))
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = str(THREADS)

import datetime  # noqa: E402
import gc  # noqa: E402
import importlib.metadata  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import platform  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402

import numpy as np  # noqa: E402

PACKAGES = ["tapegrad", "numpy", "numba", "scipy", "torch", "jax", "autograd", "mygrad", "tinygrad"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def seconds_of(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each contender in each round. It runs twice at its turn, and the second time counts."""
    names = list(contenders)
    taken = {name: np.zeros(rounds) for name in names}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            gc.collect()
            contenders[name]()  # warms the caches that another contender, or the collector, has used
            started = time.perf_counter()
            contenders[name]()
            taken[name][k] = time.perf_counter() - started
    return taken


def seconds_a_step(run: Callable[[int], object], least: float) -> float:
    """Of the first run, of twice as many steps each time, that takes longer than `least` seconds."""
    steps = 1
    while True:
        started = time.perf_counter()
        run(steps)
        taken = time.perf_counter() - started
        if taken > least:
            return taken / steps
        steps *= 2


def ratio(taken: Mapping[str, np.ndarray], ours: str, theirs: str) -> dict[str, float]:
    """How long `ours` takes for each second of `theirs`: median over the rounds, and the middle half."""
    ratios = taken[ours] / taken[theirs]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"median": round(float(middle), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def installed(package: str) -> bool:
    """Whether `package` can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def environment() -> dict[str, object]:
    """What a figure cannot be read without."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", program(), *sys.argv[1:]]),
        "processor": processor(),
        "threads": THREADS,
        "versions": versions,
    }


def program() -> str:
    """The file that runs, from the repository's root."""
    path = pathlib.Path(sys.argv[0]).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def processor() -> str:
    """The processor's name, with what it can compute with."""
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = [flag for flag in ("avx2", "avx512f", "amx_tile") if flag in fields.get("flags", "").split()]
    model = f"family {fields.get('cpu family')}, model {fields.get('model')}"
    return f"{fields.get('model name', platform.processor())} ({model}, {', '.join(flags)})"


def show(title: str, columns: list[str], rows: list[list[object]]) -> None:
    """Print a table."""
    cells = [[str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for row in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write(name: str, results: object, quick: bool = False) -> None:
    """Write `results` with their environment to bench/results/NAME.json, or to runs/ if it was a `quick` look."""
    path = (ROOT / "runs" if quick else RESULTS) / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**environment(), "results": results}, indent=1) + "\n")
    print(f"\nwritten: {path.relative_to(ROOT)}")


def written(name: str) -> dict[str, object]:
    """The results that bench/results/NAME.json holds."""
    results: dict[str, object] = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    return results


def figure_of(name: str, quick: bool = False) -> pathlib.Path:
    """Where an experiment's plot goes."""
    path = ROOT / ("runs" if quick else "docs/figures") / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    return path
