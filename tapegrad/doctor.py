"""What an installation has, what is wrong with it, and the fix: `python -m tapegrad doctor`.

Each examination looks at one thing and returns findings. A thing that is absent and optional is no fault. The last ones
train a small network for a moment on every backend, and compare its gradients with those of the rules.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST_PYTHON, LEAST_NUMPY = (3, 10), (2, 0)
SECONDS = 10.0  # a self-test may take


class Finding(NamedTuple):
    """One thing that was looked at. `fix` says what to do, and is empty if nothing is wrong."""

    what: str
    found: str
    fix: str = ""


Findings = Iterator[Finding]


# -- what is installed -----------------------------------------------------------------------------


def python() -> Findings:
    found = f"{platform.python_version()} ({platform.python_implementation()}), {platform.machine()}"
    recent = sys.version_info[:2] >= LEAST_PYTHON
    yield Finding(
        "Python", found, "" if recent else f"tapegrad needs Python {dotted(LEAST_PYTHON)} or newer."
    )


def numpy() -> Findings:
    fix = "" if release(np.__version__) >= LEAST_NUMPY else 'pip install "numpy>=2.0"'
    yield Finding("NumPy", np.__version__, fix)
    yield Finding("its BLAS", blas())


def blas() -> str:
    """The BLAS that NumPy was built with, by name and version."""
    try:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]  # type: ignore[index,call-overload]
        return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
    except (KeyError, TypeError):
        return "unknown"


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def threads() -> Findings:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    chosen = {name: os.environ[name] for name in THREADS if name in os.environ}
    said = ", ".join(f"{name}={value}" for name, value in chosen.items()) or "none of their variables is set"
    wrong = [
        name for name, value in chosen.items() if not value.isdigit() or not 0 < int(value) <= 4 * usable
    ]
    fix = f"Set {wrong[0]} to a number from 1 to {usable}, or unset it." if wrong else ""
    yield Finding("threads", f"{usable} processors may be used; {said}", fix)


def scipy() -> Findings:
    absent = "not installed: no special functions, no weights updated inside BLAS (tapegrad[jit])"
    yield Finding("SciPy", installed("scipy") or absent)


def numba() -> Findings:
    version = installed("numba")
    if version is None:
        yield Finding("Numba", "not installed: programs run through NumPy (tapegrad[jit])")
        return
    try:
        import numba  # noqa: F401
    except Exception as error:  # Numba raises several kinds for a NumPy that it does not know
        yield Finding("Numba", f"{version} cannot be imported: {error}", "pip install --upgrade numba numpy")
        return
    yield Finding("Numba", version)
    if (cuda := installed("numba-cuda")) is not None:
        yield Finding("numba-cuda", cuda)


def cache() -> Findings:
    """Where compiled programs are kept."""
    if installed("numba") is None:
        return
    from .kernels.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = "Make it writable, or set TAPEGRAD_CACHE to a folder that is. Programs are compiled anew in each process."
        yield Finding("kernel cache", f"{folder}: {error.strerror or error}", fix)
        return
    sizes = [f.stat().st_size for f in folder.rglob("*") if f.is_file()]
    found = f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
    full = "It may be deleted: what is needed is compiled again." if sum(sizes) > 2e9 else ""
    yield Finding("kernel cache", found, full)


# -- the GPU ---------------------------------------------------------------------------------------


def cupy_packages() -> Findings:
    """CuPy comes under a name for each CUDA, and two of them overwrite each other's files."""
    names = {(d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()}
    found = sorted(name for name in names if name.split("-")[0] == "cupy")
    if len(found) > 1:
        keep = next((name for name in reversed(found) if name != "cupy"), found[0])
        yield Finding(
            "CuPy", f"{len(found)} packages at once: {', '.join(found)}",
            f"pip uninstall -y {' '.join(found)}; pip install {keep}",
        )  # fmt: skip
    elif found == ["cupy"]:
        yield Finding(
            "CuPy",
            f"cupy {installed('cupy')}, built from source; wheels are tested",
            "pip uninstall -y cupy; pip install cupy-cuda13x (or 12x)",
        )
    elif found:
        yield Finding("CuPy", f"{found[0]} {installed(found[0])}")
    else:
        yield Finding(
            "CuPy", "not installed: arrays are computed by the CPU (tapegrad[cuda12] or tapegrad[cuda13])"
        )


def driver_version() -> int | None:
    """The newest CUDA that the driver can serve, as 1000 major + 10 minor; None without a driver, 0 if it does not answer."""
    for name in ("libcuda.so.1", "nvcuda.dll", "libcuda.dylib"):
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        version = ctypes.c_int()
        return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0
    return None


def gpu() -> Findings:
    """Driver, runtime, NVRTC, device: whether they fit each other."""
    version = driver_version()
    if version is None:
        yield Finding("driver", "none: no NVIDIA GPU can be used here")
    elif version == 0:
        yield Finding(
            "driver", "installed, and does not answer", "Restart the machine, or reinstall the NVIDIA driver."
        )
    else:
        yield Finding("driver", f"for CUDA up to {cuda(version)}")
    if importlib.util.find_spec("cupy") is None:
        if version:
            extra = f"cuda{max(12, min(13, version // 1000))}"
            yield Finding("device", "there is a driver and no CuPy", f"pip install 'tapegrad[{extra}]'")
        return
    try:
        import cupy
    except Exception as error:  # a broken installation raises what it likes
        found = f"{type(error).__name__}: {error}"
        yield Finding("CuPy's import", found, "Reinstall CuPy for the driver's CUDA version.")
        return
    yield from runtime(cupy, version)


def runtime(cupy: Any, driver: int | None) -> Findings:
    """What CuPy found of CUDA; `driver` is the newest that the driver can serve."""
    try:
        version = cupy.cuda.runtime.runtimeGetVersion()
    except Exception as error:
        fix = "Install the CUDA libraries that this CuPy was built for."
        yield Finding("CUDA runtime", f"does not answer: {error}", fix)
        return
    newer = driver is not None and version // 1000 > driver // 1000
    fix = f"Update the driver, or pip install cupy-cuda{driver // 1000}x." if newer and driver else ""
    yield Finding("CUDA runtime", cuda(version), fix)
    yield compiler(cupy, version // 1000)
    if cupy.cuda.is_available():
        yield device(cupy)
    else:
        fix = "" if driver is None else "Look at CUDA_VISIBLE_DEVICES, and at nvidia-smi."
        yield Finding("device", "none is visible", fix)


def compiler(cupy: Any, runtime: int) -> Finding:
    """NVRTC, which compiles kernels; it must be of the same CUDA as the runtime."""
    fix = f'pip install "nvidia-cuda-nvrtc=={runtime}.*"'
    try:
        major, minor = cupy.cuda.nvrtc.getVersion()
    except Exception as error:
        return Finding("NVRTC", f"does not answer: {error}", fix)
    return Finding("NVRTC", f"{major}.{minor}", "" if major == runtime else fix)


def device(cupy: Any) -> Finding:
    """The first device: what it is, and how much of its memory is free."""
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    free, total = cupy.cuda.runtime.memGetInfo()
    name = properties["name"].decode() if isinstance(properties["name"], bytes) else properties["name"]
    found = f"{name}, compute capability {properties['major']}.{properties['minor']}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return Finding("device", found, "" if free > 2**28 else "Its memory is full: end other programs on it.")


# -- sweeps on the GPU -----------------------------------------------------------------------------


SIZES = ((256, 1), (256, 64), (1024, 1), (1024, 64))  # units and batches that are shown
WINDOWS = (5, 20, 50)


def sweeps() -> Findings:
    """Which way a window of an LSTM, units x batch, is swept in a CUDA graph, and by whose figures."""
    from .kernels.cuda import model, source
    from .kernels.cuda.costs import ESTIMATES

    here = source.available()
    costs, gpu = model.these_costs(), model.this_gpu()
    measure = "`python -m tapegrad doctor --calibrate` measures"
    if not here:
        by = "by estimates for an H100: no GPU is here"
    elif costs == ESTIMATES:
        by = f"by estimates for an H100: {gpu.name} has not been calibrated; {measure}"
    else:
        by = f"by what was measured on {gpu.name}"
    asked = "" if model.WAY == "auto" else f"; but {model.WAY!r} is asked for, wherever it fits"
    yield Finding("choice of sweeps", by + asked)
    for hidden, batch in SIZES:
        quickest = [min(model.table("lstm", hidden, batch, window, costs, True, gpu)) for window in WINDOWS]
        # What estimates say in microseconds is nobody's time.
        times = [f"{way}, {cost:.0f} µs" if costs != ESTIMATES else way for cost, way in quickest]
        found = "; ".join(f"window {window}: {text}" for window, text in zip(WINDOWS, times, strict=True))
        yield Finding(f"lstm {hidden} x {batch}", found)


def calibration() -> Findings:
    """Measures the GPU, and says what came out."""
    from .kernels.cuda import calibrate

    try:
        costs, path = calibrate.calibrate()
    except Exception as error:  # CuPy, the driver and the disk have many kinds
        found, *fix = str(error).split("\n")
        yield Finding(
            "calibration", found, " ".join(fix).strip() or "Calibrate on an idle GPU that CuPy can use."
        )
        return
    yield Finding("calibration", f"written to {path}")
    for line in calibrate.described(costs):
        yield Finding("measured", line)


# -- self-tests ------------------------------------------------------------------------------------


def self_tests() -> Findings:
    """A small loop on every backend that is here, for the seconds it takes."""
    backends: dict[str, Callable[[], float]] = {"NumPy": lambda: compared("numpy")}
    if installed("numba") is not None and installed("scipy") is not None:
        backends["Numba"] = lambda: compared("numba")
    for name, test in backends.items():
        what, started = f"self-test, {name}", time.perf_counter()
        try:
            error = test()
        except Exception as failure:  # whatever it is, it is what the user wants to know
            yield Finding(what, f"{type(failure).__name__}: {failure}", "Report this with the whole output.")
            continue
        seconds, fix = time.perf_counter() - started, ""
        if not error < 1e-10:
            fix = "Gradients are wrong: do not use this backend; report this with the whole output."
        elif seconds > SECONDS:
            fix = "It took too long: is the kernel cache writable, and the machine busy?"
        yield Finding(what, f"gradients differ from the rules' by {error:.0e}; {seconds:.1f} s", fix)


def compared(compile: Any) -> float:
    """The largest relative difference between the gradients of a loop that is compiled so, and those by rules."""
    expected, found = trained(False), trained(compile)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in zip(expected, found, strict=True))


def trained(compile: Any) -> list[Any]:
    """The gradients of an LSTM over a sliding window, summed over a short stream, in float64."""
    from . import nn
    from .core.capacitor import CapacitorTape
    from .ops.softmax import softmax_cross_entropy

    rng = np.random.default_rng(0)
    cell, readout = (
        nn.LSTMCell(8, 16, dtype=np.float64, rng=0),
        nn.Linear(16, 4, dtype=np.float64, rng=1),
    )
    params = [*cell.parameters(), *readout.parameters()]
    tape, state = CapacitorTape(5, compile=compile), cell.initial_state(2)
    totals = [np.zeros(p.shape) for p in params]
    for _ in range(60):
        with tape:
            out, state = cell(rng.standard_normal((2, 8)), state)
            loss = softmax_cross_entropy(readout(out), rng.integers(0, 4, 2))
        sweep = tape.backward(loss)
        for total, p in zip(totals, params, strict=True):
            total += sweep.gradients[p]
    return totals


# -- the report ------------------------------------------------------------------------------------

EXAMINATIONS: Sequence[Callable[[], Findings]] = (
    python,
    numpy,
    threads,
    scipy,
    numba,
    cache,
    cupy_packages,
    gpu,
    sweeps,
)


def examine(self_test: bool = True) -> list[Finding]:
    """Everything that was found, in order."""
    wanted = [*EXAMINATIONS, self_tests] if self_test else EXAMINATIONS
    return [finding for examination in wanted for finding in examination()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the findings. Returns 1 if something is wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tapegrad doctor", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--json", action="store_true", help="for programs: a list of what, found, fix")
    parser.add_argument("--no-self-test", action="store_true", help="look only, compute nothing")
    parser.add_argument("--calibrate", action="store_true", help="first measure the GPU: ten seconds, once")
    options = parser.parse_args(arguments)
    findings = [*(calibration() if options.calibrate else ()), *examine(not options.no_self_test)]
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{'!!' if finding.fix else 'ok'}  {finding.what:{width}}  {finding.found}")
            if finding.fix:
                print(f"    {'':{width}}  fix: {finding.fix}")
        wrong = sum(bool(finding.fix) for finding in findings)
        print(f"\n{wrong} of {len(findings)} things need a fix." if wrong else "\nNothing is wrong.")
    return int(any(finding.fix for finding in findings))


def installed(name: str) -> str | None:
    """The version of a distribution, None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def release(version: str) -> tuple[int, ...]:
    """(2, 4) of "2.4.6"."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def cuda(version: int) -> str:
    """ "13.0" of 13000."""
    return f"{version // 1000}.{version % 1000 // 10}"
