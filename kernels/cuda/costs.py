"""What a GPU's time goes to, as a few constants: estimates, or what `calibrate.py` measured, kept in a file.

The file lies in the cache folder, one for each device and driver. One that cannot be read, or that was written
for another device, driver or format, is ignored with a warning.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..cache import cache_folder, write

FORMAT = 1  # of the file: a number for each meaning that its constants have had


class Costs(NamedTuple):
    """Microseconds, GB/s, GFLOP/s, TFLOP/s and MHz. The defaults are estimates for an H100; none was measured."""

    launch: float = 10.0  # µs of the host for a kernel outside a graph
    gap: float = 1.3  # µs from one kernel to the next in a graph, with nothing in them
    barrier: float = 0.66  # µs of a barrier of blocks
    barrier_of_block: float = 0.0025  # µs more for each block that comes to it
    latency: float = 0.35  # µs until a load from L2 is there
    l2_of_block: float = 79.0  # GB/s from L2 into one multiprocessor
    l2: float = 6300.0  # GB/s from L2 into all of them
    l2_bytes: float = 50 * 2.0**20
    dram: float = 3000.0  # GB/s
    fp32_of_block: float = 507.0  # GFLOP/s of one multiprocessor
    clock: float = 1980.0  # MHz
    gemm: float = 3.5  # µs of a product of small matrices, beyond the gap
    # TFLOP/s of products by the rows of the smaller matrix, which is the size that decides.
    gemm_rates: tuple[tuple[int, float], ...] = ((1, 1.7), (8, 9.0), (32, 22.0), (128, 38.0), (512, 50.0))


ESTIMATES = Costs()


class Origin(NamedTuple):
    """Which GPU costs belong to. `driver` is the newest CUDA that it serves, as 1000 major + 10 minor."""

    device: str
    driver: int
    multiprocessors: int


def this_origin() -> Origin:
    """The current GPU."""
    import cupy

    runtime = cupy.cuda.runtime
    found = runtime.getDeviceProperties(runtime.getDevice())
    return Origin(found["name"].decode(), runtime.driverGetVersion(), found["multiProcessorCount"])


def file_of(origin: Origin) -> Path:
    """Where its costs are kept."""
    name = re.sub(r"[^a-z0-9]+", "-", origin.device.lower()).strip("-")
    return cache_folder() / f"gpu-costs-{name}-{origin.driver}.json"


def keep(costs: Costs, origin: Origin, versions: Mapping[str, str]) -> Path:
    """Write measured costs to their file."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    content = {
        "format": FORMAT, "origin": origin._asdict(), "date": date, "versions": dict(versions), "costs": costs._asdict(),
    }  # fmt: skip
    path = file_of(origin)
    write(path, json.dumps(content, indent=1) + "\n")
    measured.cache_clear()
    return path


@functools.cache
def measured(origin: Origin) -> Costs | None:
    """What was measured on this GPU, by an earlier process too; None if nothing was, or its file is no good."""
    path = file_of(origin)
    try:
        return read(path, origin)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(
            f"{path} is ignored, and estimates are used: {type(error).__name__}: {error}\n"
            "  `python -m tapegrad doctor --calibrate` measures anew.",
            stacklevel=2,
        )
        return None


def read(path: Path, origin: Origin) -> Costs:
    """The costs in a file. Raises if it is of another GPU or format, or holds anything else."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, and {FORMAT} is read here")
    if content["origin"] != origin._asdict():
        raise ValueError(f"it is of {content['origin']}, and this is {origin._asdict()}")
    return checked(content["costs"])


def checked(content: Mapping[str, Any]) -> Costs:
    """`content` as Costs. Raises if a constant is missing, unknown, or no positive number."""
    if set(content) != set(Costs._fields):
        raise ValueError(f"constants {sorted(set(content) ^ set(Costs._fields))} are missing or unknown")
    rates = tuple((int(rows), float(rate)) for rows, rate in content["gemm_rates"])
    numbers = {name: float(value) for name, value in content.items() if name != "gemm_rates"}
    every = [*numbers.values(), *(number for row in rates for number in row)]
    if not rates or not all(math.isfinite(number) and number > 0 for number in every):
        raise ValueError("a constant is not a positive number")
    return Costs(**numbers, gemm_rates=rates)
