"""The tables of figures in the pages, made of the benches' committed results.

    python docs/tables.py            writes them into README.md and docs/performance.md
    python docs/tables.py --check    exits with 1 if a page is not what the results say

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`; TABLES says which results it shows. Where a bench
has written no results yet, a line says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = [ROOT / "README.md", ROOT / "docs" / "performance.md"]
BETWEEN = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)

NAMES = {"python": "Python", "numpy": "NumPy", "numba": "Numba", "scipy": "SciPy", "torch": "PyTorch", "jax": "JAX",
         "mygrad": "MyGrad"}  # fmt: skip
NONE = "–"


# -- parts of a table ------------------------------------------------------------------------------------


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown's table."""
    lines = [[*columns], ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def ratio(found: dict[str, float] | None, digits: int = 2) -> str:
    """A median over the rounds, and their middle half."""
    if found is None:
        return NONE
    median, low, high = (rounded(found[key], digits) for key in ("median", "low", "high"))
    return f"**{median}** ({low} … {high})"


def rounded(number: float, digits: int = 2) -> str:
    """`number` with so many decimals, fewer if it is large; 1234 and not 1234.00."""
    if not number or not math.isfinite(number):
        return f"{number:g}"
    wanted = max(0, digits - max(0, math.floor(math.log10(abs(number)))))
    return f"{number:,.{wanted}f}"


def measured(found: dict[str, Any]) -> str:
    """When, on what, with which versions and by which command."""
    day = datetime.date.fromisoformat(found["date"])
    versions = ", ".join(f"{NAMES.get(name, name)} {v}" for name, v in found["versions"].items())
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    when = f"{day.day} {day:%B %Y}"
    return f"`{found['command']}`, {when}, {found['processor']}, {threads}; {versions}.\n"


# -- the tables --------------------------------------------------------------------------------------------


def per_op(results: dict[str, Any]) -> str:
    """Microseconds of each contender, and ours over theirs."""
    who = [*dict.fromkeys(name for row in results.values() for name in row["us_per_op"])]
    over = [name for name in who if name not in ("tapegrad", "bare")]
    rows = [
        [title, *(rounded(row["us_per_op"].get(name, 0)) if name in row["us_per_op"] else NONE for name in who),
         *(ratio(row["tapegrad_over"].get(name)) for name in over)]
        for title, row in results.items()
    ]  # fmt: skip
    return table(["µs an op", *who, *(f"over {name}" for name in over)], rows)


def outer_product(results: dict[str, Any]) -> str:
    rows = [
        [size, rounded(row["us"]["dot"]), rounded(row["us"]["matmul"]), ratio(row["dot_over_matmul"])]
        for size, row in results.items()
    ]
    return table(["µs, batch 1", "`np.dot`", "`np.matmul`", "dot over matmul"], rows)


def import_time(results: dict[str, Any]) -> str:
    ours, numpys = (results["milliseconds"][name] for name in ("tapegrad", "numpy"))
    row = ["`import tapegrad`", ours, numpys, ratio(results["tapegrad_over_numpy"])]
    return table(["", "ms, with NumPy", "ms, NumPy alone", "over `import numpy`"], [row])


def main_job(results: dict[str, Any]) -> str:
    """Bits per character of every setting, over the seeds."""
    rows = []
    for setting, reports in results.items():
        bits = [report["held_out_bits_per_char"] for report in reports]
        read = statistics.median(report["characters"] for report in reports) / 1e6
        rows.append(
            [f"`{setting}`", len(bits), f"**{statistics.median(bits):.3f}**", f"{min(bits):.3f}", f"{max(bits):.3f}",
             f"{read:.2f}"]
        )  # fmt: skip
    columns = ["", "seeds", "bits per character, median", "best", "worst", "million characters read"]
    return table(columns, rows)


def weights(results: dict[str, Any]) -> str:
    rows = []
    for loop, found in results.items():
        for policy, nbytes in found["nbytes"].items():
            errors = found["gradient_error_by_learning_rate"]
            told = "; ".join(
                f"{each[policy]:.1e} at {rate}" for rate, each in errors.items() if policy in each
            )
            rows.append(
                [loop if policy == "recorded" else "", f"`{policy}`", f"{nbytes / 1e6:.2f}",
                 ratio(found["time_to_recorded"][policy]), told or NONE]
            )  # fmt: skip
    return table(["loop", "weights", "MB kept", "time", "error of a gradient, at a learning rate"], rows)


# A contest (bench/contest.py): window and chunk


def contest(results: dict[str, Any]) -> str:
    """For every work, all contenders: ours with their ratios to the peers, and what was tried of each peer."""
    return "\n".join(f"### {title}\n\n{contenders(found)}" for title, found in results.items())


def contenders(found: dict[str, Any]) -> str:
    peers = [name for name, row in found["rows"].items() if "faster_than" not in row]
    rows = []
    for name, row in found["rows"].items():
        over = row.get("faster_than", {})
        variant = f": {row['variant']}" if row.get("variant") else ""
        rows.append(
            [f"{name}{variant}", f"`{row['weights']}`" if row["weights"] in POLICIES else row["weights"],
             rounded(row["ms"], 3), *(ratio(over[peer]) if peer in over else "" for peer in peers)]
        )  # fmt: skip
    return table(["", "weights", "ms a step", *(f"× {peer}" for peer in peers)], rows) + "\n" + checked(found)


POLICIES = ("recorded", "current", "replay")


def checked(found: dict[str, Any]) -> str:
    """How far gradients differ, and which variants of the peers were slower."""
    check, error = found["gradients"], found.get("error_against_recorded")
    lines = [
        f"Gradients differ by {check['largest_difference_at_learning_rate_0']:.1e} of their norm at most at learning rate 0, "
        f"and within a policy by {check['largest_difference_within_a_policy']:.1e} while learning."
    ]
    if error:
        told = ", ".join(f"`{policy}` {error[policy]:.1e}" for policy in POLICIES if policy in error)
        lines.append(f"Error against `recorded` at learning rate {error['learning_rate']}: {told}.")
    for peer, tried in found["variants_ms"].items():
        if len(tried) > 1:
            told = "; ".join(f"{variant} {rounded(ms, 3)}" for variant, ms in tried.items())
            lines.append(f"{peer}, ms: {told}.")
    return " ".join(lines) + "\n"


def quickest(found: dict[str, Any], family: str) -> str | None:
    """The peer of a family (all that is called PyTorch …) whose step is the shortest."""
    rows = {n: row for n, row in found["rows"].items() if "faster_than" not in row and n.startswith(family)}
    return min(rows, key=lambda name: rows[name]["ms"]) if rows else None


def glance(results: dict[str, Any]) -> str:
    """A line for each work: how many times faster than the best of PyTorch, and of JAX."""
    columns = ["ms a step, forward, backward through the window, SGD", "built-in cell, `current`", "× PyTorch's best",
               "× JAX's", "plain ops, `current`", "× PyTorch's best", "× JAX's"]  # fmt: skip
    rows = []
    for title, found in results.items():
        line: list[str] = [title]
        for cell in ("built-in", "plain ops"):
            row = found["rows"].get(f"tapegrad {cell}, current")
            line.append(rounded(row["ms"], 3) if row else NONE)
            for family in ("PyTorch", "JAX"):
                best = quickest(found, family)
                line.append(ratio(row["faster_than"][best]) if row and best else NONE)
        rows.append(line)
    return table(columns, rows)


def ways(results: dict[str, Any]) -> str:
    """How long a step takes by rules, policies and ways to compile, next to `current` as it comes."""
    names = [
        *dict.fromkeys(n for found in results.values() for n in found["rows"] if n.startswith("tapegrad"))
    ]
    rows = []
    for name in names:
        line = [name.removeprefix("tapegrad ")]
        line += [
            rounded(found["rows"][name]["ms"], 3) if name in found["rows"] else NONE
            for found in results.values()
        ]
        rows.append(line)
    return table(["ms a step", *results], rows)


# The others


def mlp(results: dict[str, Any]) -> str:
    over = results["compiled_over"]
    rows = [[name, rounded(us), ratio(over.get(name))] for name, us in results["us_per_step"].items()]
    left_out = "".join(f"\nLeft out: {name} ({why}).\n" for name, why in results["left_out"].items())
    return table(["", "µs a step", "`tg.compile`'s time over it"], rows) + left_out


def scalar(results: dict[str, Any]) -> str:
    """Microseconds an op, and how many times longer than the compiled program the others take."""
    programs = {name: row for name, row in results.items() if name != "arrays"}
    who = [*dict.fromkeys(name for row in programs.values() for name in row["us_per_op"])]
    others = [name for name in who if name != "compiled"]
    rows = [
        [name, f"{row['ops']:,}", f"{row['us_per_op']['compiled']:.4f}",
         *(ratio(row["over_compiled"].get(other)) for other in others), rounded(row["first_call_ms"], 0)]
        for name, row in programs.items()
    ]  # fmt: skip
    columns = ["", "ops", "compiled, µs an op", *(f"{other} takes ×" for other in others), "first call, ms"]
    return table(columns, rows)


def scalar_arrays(results: dict[str, Any]) -> str:
    rows = [
        [row["ops"], row["elements"], rounded(row["us"]["instructions"], 1), rounded(row["us"]["statements"], 1),
         ratio(row["statements_over_instructions"])]
        for row in results["arrays"]
    ]  # fmt: skip
    return table(["ops", "elements", "instructions, µs", "NumPy, µs", "NumPy over instructions"], rows)


def convolve(results: dict[str, Any]) -> str:
    rows = [
        [work, rounded(found["ms"]["tapegrad"]), rounded(found["ms"].get("PyTorch", math.nan)), ratio(found["over"].get("PyTorch"))]
        for work, found in results.items()
    ]  # fmt: skip
    return table(["forward and backward, ms", "tapegrad", "PyTorch", "time over PyTorch"], rows)


def stream(results: dict[str, Any]) -> str:
    keys = ["median_us", "p99_9_us", "worst_us", "mean_us"]
    rows = [
        [f"tenth {i + 1}", *(rounded(tenth[key], 1) for key in keys), f"{mb:.2f}"]
        for i, (tenth, mb) in enumerate(zip(results["tenths"], results["resident_mb"], strict=True))
    ]
    last = ["all but the first", *(rounded(results[key], 1) for key in keys), f"+{results['growth_mb']:.2f}"]
    columns = [f"{results['steps']:,} steps, {results['cell']}, hidden {results['hidden']}, window {results['window']}, "
               f"`{results['weights']}`", "median, µs", "99.9 %", "worst", "mean", "resident, MB"]  # fmt: skip
    return table(columns, [*rows, last])


def footprint(results: dict[str, Any]) -> str:
    rows = [
        [name, row["own_mb"], row["with_requirements_mb"], row["import"]["ms"], row["import"]["mb"]]
        for name, row in results["packages"].items()
    ]
    columns = ["", "own, MB", "with what it needs, MB", "import, ms", "import, MB resident"]
    return table(columns, rows)


def kept(results: dict[str, Any]) -> str:
    """Bytes that a window keeps for each step."""
    works = results["bytes_a_step"]
    names = [*dict.fromkeys(name for found in works.values() for name in found)]
    rows = [
        [name, *(f"{found[name]:,}" if name in found else NONE for found in works.values())] for name in names
    ]
    return table(["bytes a step", *works], rows)


def floor(results: dict[str, Any]) -> str:
    parts = [*next(iter(results.values()))["parts_ms"]]
    over = [*next(iter(results.values()))["over_the_floor"]]
    rows = [
        [title, *(rounded(found["parts_ms"][part], 3) for part in parts), rounded(found["floor_ms"], 3),
         *(ratio(found["over_the_floor"][name]) for name in over)]
        for title, found in results.items()
    ]  # fmt: skip
    return table(["ms a step", *parts, "the floor", *(f"{name}: × the floor" for name in over)], rows)


def tolerance(results: dict[str, Any]) -> str:
    rows = [
        [eps, f"**{row['fewer_steps']:.2f}**", f"{row['steps_swept_median']:g} of {results['window']}",
         f"{row['error_median']:.1e}", f"{row['error_99']:.1e}", f"{row['error_worst']:.1e}", ratio(row["faster_than_full"])]
        for eps, row in results["eps"].items()
    ]  # fmt: skip
    columns = ["eps", "× fewer backward steps", "swept, median", "error of the gradient, median", "99 %", "worst",
               "× faster a step, with forward"]  # fmt: skip
    return table(columns, rows)


def time_to_bits(results: dict[str, Any]) -> str:
    """Time of a sweep over that of each of PyTorch's ways, seconds to the target, bits at the end."""
    learners = results["learners"]
    theirs = [*next(iter(learners.values()))["time_over"]]
    rows = []
    for name, row in learners.items():
        reached = [s for s in row["seconds_to_target"] if s is not None]
        missed = len(row["seconds_to_target"]) - len(reached)
        seconds = (
            rounded(statistics.median(reached), 1) if reached and not missed else f"missed {missed} times"
        )
        over = [NONE if name == peer else ratio(row["time_over"][peer]) for peer in theirs]
        bits = f"{statistics.median(row['bits']):.3f} ({min(row['bits']):.3f} … {max(row['bits']):.3f})"
        rows.append([name, f"`{row['weights']}`", rounded(row["ms_a_sweep"]), *over, seconds, bits])
    columns = ["", "weights", "ms a sweep", *(f"time over {peer}" for peer in theirs), "s to 2.0 bits", "bits at the end"]  # fmt: skip
    return table(columns, rows)


def kernels(results: dict[str, Any]) -> str:
    """Numba's time over NumPy's: a line for each kernel, by size."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in results["kernels"]:
        size = " × ".join(f"{n:,}" for n in row["size"])
        told = f"{size}: {rounded(row['ratio']['median'])}"
        found.setdefault(row["kernel"], {}).setdefault(row["dtype"], []).append(told)
    dtypes = [*dict.fromkeys(row["dtype"] for row in results["kernels"])]
    rows = [
        [f"`{name}`", *("; ".join(by_dtype.get(dtype, [NONE])) for dtype in dtypes)]
        for name, by_dtype in found.items()
    ]
    return table(["Numba's time over NumPy's, by size", *dtypes], rows)


def kernels_compiling(results: dict[str, Any]) -> str:
    seconds = results["compiling"]
    dtypes = [*next(iter(seconds.values()))]
    return table(["seconds, all kernels", *dtypes], [[k, *v.values()] for k, v in seconds.items()])


def products(results: dict[str, Any]) -> str:
    who = [*dict.fromkeys(name for row in results["products"] for name in row["us"])]
    rows = [
        [row["n"], row["rows"], *(rounded(row["us"][name]) if name in row["us"] else NONE for name in who)]
        for row in results["products"]
    ]
    return table(["n", "rows", *(f"{name}, µs" for name in who)], rows)


# NAME of a table: the file of its results, and what makes it of them.
# The goals that the project set itself (against the best of each peer), and where the results say what came of them.
SIZES = ["lstm, batch 1, hidden 64, window 20", "lstm, batch 1, hidden 128, window 20",
         "lstm, batch 16, hidden 256, window 20", "lstm, batch 32, hidden 512, window 35"]  # fmt: skip
PYTORCHS = ["PyTorch", "PyTorch, torch.compile", "PyTorch, forum's retained graphs"]
BUILT_IN, PLAIN = "tapegrad built-in, current", "tapegrad plain ops, current"


def goals(results: dict[str, Any]) -> str:
    """What was aimed at, what was measured, and whether it was reached."""
    rows = []
    for what, sign, goal, found in reached(results):
        met = found is not None and (found >= goal if sign == "≥" else found <= goal)
        rows.append(
            [what, f"{sign} {goal:g}", NONE if found is None else rounded(found), "yes" if met else "**no**"]
        )
    return table(["", "goal", "measured", "reached"], rows)


def reached(results: dict[str, Any]) -> Iterable[tuple[str, str, float, float | None]]:
    """(what, ≥ or ≤, goal, measured) of every goal."""
    window, chunk, floors, ops = (results[name] for name in ("window", "chunk", "floor", "per_op"))

    def faster(work: str, contender: str, *peers: str) -> float | None:
        row = window[work]["rows"].get(contender, {}).get("faster_than", {})
        return min((row[p]["median"] for p in peers if p in row), default=None)

    small, wide = ops["chain, 64 float32"]["tapegrad_over"], ops["chain, 65536 float32"]["tapegrad_over"]
    yield "an op, 64 floats: time over PyTorch", "≤", 0.40, small["PyTorch"]["median"]
    yield "an op, 64 floats: time over HIPS autograd", "≤", 0.12, small["autograd"]["median"]
    yield "an op, 64 floats: time over NumPy by hand", "≤", 2.0, small["by hand"]["median"]
    yield "an op, 65,536 floats: time over PyTorch", "≤", 0.85, wide["PyTorch"]["median"]
    for work, torch, jax in zip(SIZES, (15, 7, 1.5, 1.8), (8, 6, 2.3, 2), strict=True):
        yield f"{work}, built-in: × PyTorch's best", "≥", torch, faster(work, BUILT_IN, *PYTORCHS)
        yield f"{work}, built-in: × JAX", "≥", jax, faster(work, BUILT_IN, "JAX")
    last = floors[SIZES[-1]]["over_the_floor"]["tapegrad built-in, current"]["median"]
    yield f"{SIZES[-1]}, built-in: time over the floor", "≤", 1.15, last
    for kind, aims in (("NumPy", (4, 3.5, 1.45)), ("Numba", (7, 4.5, 1.45))):
        for work, goal in zip(SIZES, aims, strict=False):
            contender = f"{PLAIN}, {kind} programs"
            yield (
                f"{work}, plain ops through {kind}: × PyTorch's best",
                "≥",
                goal,
                faster(work, contender, *PYTORCHS),
            )
    yield f"{SIZES[-1]}, plain ops: × PyTorch's best", "≥", 1.7, faster(SIZES[-1], PLAIN, *PYTORCHS)
    for work in ("gru, batch 1, hidden 64, window 20", "lstm2, batch 1, hidden 64, window 20"):
        yield f"{work}, plain ops: × PyTorch's best", "≥", 4, faster(work, PLAIN, *PYTORCHS)
    for work, goal in zip(SIZES, (0.5, 0.35, 0.75, 0.75), strict=True):
        times = [
            window[work]["rows"][f"tapegrad built-in, {policy}"]["ms"] for policy in ("current", "recorded")
        ]
        yield f"{work}: speed of `recorded` over `current`", "≥", goal, times[0] / times[1]
    for work, goal in (
        ("chunks of 35, batch 32, hidden 256", 1.0),
        ("chunks of 50, batch 1, hidden 128", 1.3),
    ):
        row = chunk[work]["rows"]["tapegrad, lstm_sequence"]["faster_than"]
        yield f"{work}, `lstm_sequence`: × nn.LSTM", "≥", goal, row["PyTorch"]["median"]
    mlp = results["mlp"]["compiled_over"]
    yield "an MLP's step of SGD, compiled: × PyTorch", "≥", 2.5, 1 / mlp["PyTorch"]["median"]
    yield "the same: time over NumPy by hand", "≤", 1.7, mlp["by hand"]["median"]
    scalars = [found["over_compiled"] for name, found in results["scalar"].items() if name != "arrays"]
    yield (
        "10,000 scalar ops, compiled: × XAD, the least of three",
        "≥",
        25,
        min(f["XAD"]["median"] for f in scalars),
    )
    yield "the same: × PyTorch", "≥", 250, min(f["PyTorch"]["median"] for f in scalars)
    learners = results["time_to_bits"]["learners"]
    ours = min(found["ms_a_sweep"] for name, found in learners.items() if name.startswith("tapegrad"))
    theirs = min(found["ms_a_sweep"] for name, found in learners.items() if name.startswith("PyTorch"))
    yield "the main job on 2 threads: × PyTorch's best", "≥", 1.5, theirs / ours
    yield "compiling all kernels, s", "≤", 10, results["kernels"]["compiling"]["cold"]["float32"]
    ends = results["tolerance"]["eps"]["0.001"]
    yield "`Tolerance(1e-3)`: × fewer backward steps", "≥", 3, ends["fewer_steps"]
    yield "the same: error of the gradient, 99 %, in thousandths", "≤", 1, ends["error_99"] * 1e3
    yield "the same: median error, in thousandths", "≤", 1, ends["error_median"] * 1e3


AIMED_AT = ("window", "chunk", "floor", "per_op", "mlp", "scalar", "time_to_bits", "kernels", "tolerance")

TABLES: dict[str, tuple[str | tuple[str, ...], Callable[[dict[str, Any]], str]]] = {
    "goals": (AIMED_AT, goals),
    "glance": ("window", glance),
    "glance_numpy": ("window_numpy", glance),
    "window_ways": ("window", ways),
    "window": ("window", contest),
    "chunk": ("chunk", contest),
    "chunk_numpy": ("chunk_numpy", ways),
    "per_op": ("per_op", per_op),
    "outer_product": ("outer_product", outer_product),
    "convolve": ("convolve", convolve),
    "import_time": ("import_time", import_time),
    "mlp": ("mlp", mlp),
    "scalar": ("scalar", scalar),
    "scalar_arrays": ("scalar", scalar_arrays),
    "time_to_bits": ("time_to_bits", time_to_bits),
    "main_job": ("main_job", main_job),
    "main_job_policies": ("main_job_policies", main_job),
    "weights": ("weights", weights),
    "tolerance": ("tolerance", tolerance),
    "stream": ("stream", stream),
    "footprint": ("footprint", footprint),
    "kept": ("footprint", kept),
    "floor": ("floor", floor),
    "kernels": ("kernels", kernels),
    "kernels_compiling": ("kernels", kernels_compiling),
    "products": ("products", products),
}


# -- pages -------------------------------------------------------------------------------------------------


def made(name: str, folder: pathlib.Path = RESULTS) -> str:
    """The table `name`, with what its figures cannot be read without; a line if nothing was measured."""
    source, make = TABLES[name]
    sources = (source,) if isinstance(source, str) else source
    paths = [folder / f"{s}.json" for s in sources]
    for path in paths:
        if not path.exists():
            return f"\nNot measured yet: there is no `bench/results/{path.name}`.\n\n"
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if isinstance(source, str):
        return f"\n{make(found[0]['results'])}\n{measured(found[0])}\n"
    by_source = {s: f["results"] for s, f in zip(sources, found, strict=True)}
    _, _, on = measured(found[0]).partition("`, ")
    return f"\n{make(by_source)}\nBy the commands of the tables below, {on}\n"


def filled(text: str, folder: pathlib.Path = RESULTS) -> str:
    """A page's text with the tables as the results have them."""
    return BETWEEN.sub(lambda found: found[1] + made(found[2], folder) + found[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; say which pages are out of date")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="the folder of the results")
    options = parser.parse_args()
    stale = False
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text, options.results)
        if new != text:
            stale = True
            print(f"{page.relative_to(ROOT)} {'is out of date' if options.check else 'written'}")
            if not options.check:
                page.write_text(new, encoding="utf-8")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
