"""What does the main example reach in a minute, for both weights policies, over seeds?

    python bench/main_job.py --seeds 3 --seconds 60
    python bench/main_job.py --seeds 2 --policies       the three weights policies alone

Runs examples/03_char_lm.py with its defaults, on all processors that there are, one run after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

os.environ["BENCH_THREADS"] = str(os.cpu_count())
import paired  # isort: skip (it reads BENCH_THREADS)

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "03_char_lm.py"
POLICIES = [["--weights", policy] for policy in ("recorded", "current", "replay")]
SETTINGS = [*POLICIES, ["--cell", "gru"], ["--cell", "rnn"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--policies", action="store_true", help="the weights policies alone, to a file of their own"
    )
    options = parser.parse_args()
    rows, results = [], {}
    for setting in POLICIES if options.policies else SETTINGS:
        reports = [
            run([*setting, "--seed", str(seed), "--seconds", str(options.seconds)])
            for seed in range(options.seeds)
        ]
        bits = [report["held_out_bits_per_char"] for report in reports]
        characters = statistics.median(report["characters"] for report in reports)
        after = max(report["evaluation_seconds"] for report in reports)
        rows.append(
            [
                " ".join(setting),
                statistics.median(bits),
                min(bits),
                max(bits),
                f"{characters / 1e6:.2f}",
                after,
            ]
        )
        results[" ".join(setting)] = reports
    paired.show(
        f"held-out bits per character after {options.seconds:.0f} s, {options.seeds} seeds",
        ["", "median", "best", "worst", "million characters read", "seconds for evaluation, sample, files"],
        rows,
    )
    paired.write("main_job_policies" if options.policies else "main_job", results)


def run(arguments: list[str]) -> dict:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(EXAMPLE), "--out", out, *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        report = json.loads(found.stdout.splitlines()[-1])
    report.pop("model")
    return report


if __name__ == "__main__":
    main()
