"""What does it weigh? On disk, when imported, and for each step that a window keeps.

    python bench/footprint.py
    python bench/footprint.py --quick

`own` is the distribution's files; `with what it needs` adds all distributions that it requires, without extras. Import
time and resident memory are of fresh interpreters that take turns, over a bare one. A window's memory, for tapegrad,
is the tape's own count; for PyTorch, the bytes of the storages that its graph has saved, each once, without
the parameters'.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import statistics
import subprocess
import sys
from typing import Any

import paired  # isort: skip (it pins the threads)
from peers.work import Work

PACKAGES = ["numpy", "tapegrad", "autograd", "mygrad", "tinygrad", "torch", "jax"]
WINDOWS = [Work("lstm", 1, 64, 20), Work("lstm", 16, 256, 20)]

IMPORTED = """
import os, pathlib, time
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
before, started = resident(), time.perf_counter()
import {}
print(time.perf_counter() - started, resident() - before)
"""


def size_of(distribution: str) -> int:
    """Bytes of its files on disk. A package that is installed from its folder is measured there."""
    files = importlib.metadata.files(distribution) or []
    paths = [str(path.locate()) for path in files]
    if distribution == "tapegrad" and not any(path.endswith("core/tape.py") for path in paths):
        return sum(
            p.stat().st_size for part in ("tapegrad", "kernels") for p in (paired.ROOT / part).rglob("*.py")
        )
    return sum(path.locate().stat().st_size for path in files if path.locate().is_file())  # type: ignore[attr-defined]


def needed(distribution: str, seen: set[str] | None = None) -> set[str]:
    """The distribution and all that it requires, without extras, as far as they are installed."""
    seen = set() if seen is None else seen
    name = re.sub(r"[-_.]+", "-", distribution).lower()
    if name in seen:
        return seen
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return seen
    seen.add(name)
    for requirement in requirements:
        if "extra ==" not in requirement:
            needed(re.split(r"[\s;<>=!~\[(]", requirement)[0], seen)
    return seen


def imports(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds and resident megabytes of an import, medians."""
    names = [name for name in PACKAGES if paired.installed(name)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for k in range(-1, rounds):  # the first fills the disk's cache
        for name in names:
            command = [sys.executable, "-c", IMPORTED.format(name)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            if k >= 0:
                found[name].append((float(out[0]) * 1e3, int(out[1]) / 1e6))
    return {
        name: {
            "ms": round(statistics.median(ms for ms, _ in values), 1),
            "mb": round(statistics.median(mb for _, mb in values), 1),
        }
        for name, values in found.items()
    }


def window_bytes(work: Work) -> dict[str, float]:
    """Bytes that one step of a full window keeps."""
    from peers import tapegrad_loops as tl

    found = {}
    for cell, make in {"built-in": tl.built_in_cell, "plain ops": tl.plain_cell}.items():
        for policy in ("recorded", "current", "replay"):
            loop = tl.Window(work, make(work), weights=policy)
            loop.run(2 * work.window)
            found[f"tapegrad {cell}, {policy}"] = loop.tape.nbytes / work.window
    if paired.installed("torch"):
        found |= saved_by_torch(work)
    return {name: round(size) for name, size in found.items()}


def saved_by_torch(work: Work) -> dict[str, float]:
    """What the graphs of a window save, by step."""
    import torch
    from peers import pytorch

    found = {}
    for name, kind in {
        "PyTorch torch.lstm, re-run": pytorch.RerunLayer,
        "PyTorch lstm_cell loop": pytorch.RerunCells,
    }.items():
        loop: Any = kind(work)
        loop.run(work.window)
        owned = {leaf.untyped_storage().data_ptr() for leaf in loop.leaves}
        saved: dict[int, int] = {}

        def note(tensor: Any, owned: set[int] = owned, saved: dict[int, int] = saved) -> Any:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            xs = loop.xs[: work.window].clone()
            kept = loop.last_output(xs)
        found[name] = sum(saved.values()) / work.window
        del kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="two rounds, written to runs/")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    imported, results, rows = imports(rounds), {}, []
    for name in imported:
        own, everything = size_of(name), sum(size_of(part) for part in needed(name))
        results[name] = {
            "own_mb": round(own / 1e6, 2),
            "with_requirements_mb": round(everything / 1e6, 1),
            "import": imported[name],
        }
        rows.append([name, f"{own / 1e6:.2f}", f"{everything / 1e6:.1f}", *imported[name].values()])
    paired.show(
        "installed, and imported in a fresh interpreter",
        ["", "own, MB", "with what it needs, MB", "import, ms", "import, MB resident"],
        rows,
    )
    windows = {work.title: window_bytes(work) for work in WINDOWS}
    for title, found in windows.items():
        paired.show(
            f"kept by each step of a window: {title}",
            ["", "bytes", "over the state's"],
            [
                [name, size, f"{size / (8 * work.batch * work.hidden):.1f}"]
                for work in WINDOWS
                if work.title == title
                for name, size in found.items()
            ],
        )
    paired.write("footprint", {"packages": results, "bytes_a_step": windows}, options.quick)


if __name__ == "__main__":
    main()
