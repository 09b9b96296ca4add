"""The tables that gpu.py prints of what it has measured."""

from __future__ import annotations

from typing import Any

import gpu_goals as goals
import paired

ORDER = [
    goals.OURS,
    *goals.WAYS,
    goals.EAGER,
    goals.CELLS,
    goals.CELLS_IN_GRAPH,
    goals.CUDNN,
    goals.CUDNN_IN_GRAPH,
    goals.JAX,
]
SIZE = ["hidden", "batch", "window"]
CLOCKS = {"us": "by the wall's clock", "device_us": "by events on the device", "host_us": "of Python"}


def at_a_glance(of_size: dict[str, Any], *names: str) -> str:
    """Microseconds of each, on a line."""
    rows = of_size["rows"]
    return "; ".join(f"{name} {rows[name]['us']:.1f}" for name in names or rows if name in rows) or "nothing"


def show(heading: str, results: dict[str, Any]) -> None:
    """The tables of one precision."""
    sizes = sorted(results["sizes"], key=lambda s: [s[name] for name in SIZE])
    policies = {name: s["rows"][name]["weights"] for s in sizes for name in ORDER if name in s["rows"]}
    names = [name for name in ORDER if name in policies]
    for key, clock in CLOCKS.items():
        paired.show(
            f"{heading}: µs a step, {clock}",
            [*SIZE, *names],
            [[*size(s), *(goals.shown(s["rows"].get(name, {}).get(key)) for name in names)] for s in sizes],
        )
    others = [name for name in names if name != goals.OURS]
    paired.show(
        f"{heading}: how many times faster {goals.OURS}, is than",
        [*SIZE, *others],
        [
            [*size(s), *(goals.shown(s["faster_than"].get(name, {}).get("median")) for name in others)]
            for s in sizes
        ],
    )
    paired.show(f"{heading}: goals", goals.COLUMNS, [goals.row(s) for s in sizes])
    yes, all_of_them = goals.reached(sizes)
    print(f"  {yes} of {all_of_them} reached, the host's {goals.HOST_US:.0f} µs a step among them")
    for policy in dict.fromkeys(policies.values()):
        print(f"  weights={policy}: {'; '.join(name for name in names if policies[name] == policy)}")
    notes(sizes, results)


def size(found: dict[str, Any]) -> list[Any]:
    return [found[name] for name in SIZE]


def notes(sizes: list[dict[str, Any]], results: dict[str, Any]) -> None:
    """What stands below the tables."""
    if differences := [d for s in sizes for d in s["gradients"]["differences"].values()]:
        print(f"  gradients at learning rate 0, of the norm, differ by at most {max(differences):.2g}")
    if "replays" in results:
        grown = results["replays"]["bytes_grown"] or "not counted on a CPU"
        print(f"  memory after {results['replays']['times']} captured steps, bytes more: {grown}")
    for name, why in results["missing"].items():
        print(f"  missing: {name}: {why}")
    for name in results["left_out"]:
        print(f"  left out, no time: {name}")
