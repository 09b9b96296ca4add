"""Every benchmark, each in a process of its own, one after the other.

    python bench/all.py                 hours: every figure again, to bench/results/
    python bench/all.py --quick         minutes: sees that all run, writes to runs/
    python bench/all.py window chunk    these alone

Each file answers one question and can be run alone. The machine should be quiet. With Numba installed, window and chunk run
a second time without it. tinygrad needs a clang: name it by CC if it is not called `clang`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

import paired

# Cheap ones first: a mistake shows early.
FILES = [
    "import_time",
    "footprint",
    "floor",
    "per_op",
    "scalar",
    "mlp",
    "kernels",
    "outer_product",
    "products",
    "convolve",
    "window",
    "chunk",
    "tolerance",
    "weights",
    "forum_loops",
    "documents",
    "stream",
    "time_to_bits",
    "main_job",
    "gpu",
]
WITHOUT_NUMBA = ["window", "chunk"]
NO_GPU = 2  # what gpu.py ends with where there is none
KNOWS_QUICK = "--quick"


def commands(names: list[str], quick: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(title, command, environment) of every process, in order."""
    found = []
    for name in names:
        path = paired.ROOT / "bench" / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        if quick and KNOWS_QUICK not in text:
            continue  # it has no short form
        command = [sys.executable, str(path), *([KNOWS_QUICK] if quick else [])]
        if quick and "--no-compile" in text:
            command.append("--no-compile")
        # time_to_bits and main_job choose their own number of threads
        environment = {k: v for k, v in os.environ.items() if k != "BENCH_THREADS"}
        found.append((name, command, environment))
        if name in WITHOUT_NUMBA and paired.installed("numba"):
            found.append((f"{name} without Numba", command, {**environment, "TAPEGRAD_KERNELS": "numpy"}))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(FILES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="short forms, written to runs/")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FILES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}. There are {', '.join(FILES)}.")
    names = [name for name in options.names or FILES if (paired.ROOT / "bench" / f"{name}.py").exists()]
    failed, left_out = [], []
    for title, command, environment in commands(names, options.quick):
        print(f"\n=== {title}", flush=True)
        started = time.monotonic()
        status = subprocess.run(command, env=environment).returncode
        if title == "gpu" and status == NO_GPU:
            left_out.append(title)
        elif status:
            failed.append(title)
        print(f"=== {title}: {time.monotonic() - started:.0f} s", flush=True)
    if left_out:
        print(f"\nleft out, there is no GPU: {', '.join(left_out)}")
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nall ran")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
