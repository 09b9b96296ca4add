"""How long does `import tapegrad` take, next to `import numpy`?

    python bench/import_time.py

Fresh interpreters, taking turns; the time is read inside, so the interpreter's own start is not in it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import paired

CODE = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"


def main(rounds: int = 40) -> None:
    # Bytecode is cached by the first round, as an installation does.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    taken = {name: np.zeros(rounds) for name in ("tapegrad", "numpy")}
    for k in range(-1, rounds):
        for name in sorted(taken, reverse=k % 2 == 0):
            command = [sys.executable, "-c", CODE.format(name)]
            found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            taken[name][k] = float(found.stdout)
    ratio = paired.ratio(taken, "tapegrad", "numpy")
    milliseconds = {name: round(float(np.median(t)) * 1e3, 1) for name, t in taken.items()}
    paired.show(
        "import, in fresh interpreters",
        ["", "ms", "over numpy", "middle half of the rounds"],
        [
            ["numpy", milliseconds["numpy"], "", ""],
            ["tapegrad", milliseconds["tapegrad"], ratio["median"], f"{ratio['low']} … {ratio['high']}"],
        ],
    )
    paired.write("import_time", {"milliseconds": milliseconds, "tapegrad_over_numpy": ratio})


if __name__ == "__main__":
    main()
