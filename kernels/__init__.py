"""Fused loops of recurrent networks, losses and optimizers, on plain arrays. Nothing here knows of tapes.

`reference.py` says what each computes, step by step in float64; `cpu.py` does it fast in NumPy, `compiled.py`
faster in Numba, and `choice.py` says which of the two runs. `warmup()` compiles before the first use does;
`use("numpy")` and `use("auto")` switch.
"""

from .choice import use as use
from .choice import warmup as warmup
