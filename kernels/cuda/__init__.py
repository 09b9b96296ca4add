"""Recurrent steps and their backward as CUDA C++, for one NVIDIA GPU, in float32.

`forward.cu` holds a step in one launch, `backward.cu` the sweep of a window, `deposit.cu` what brings steps that ops
have run into a ring; `plan.py` says how they are divided over a GPU, and which sizes do not fit; `source.py` compiles
them through CuPy; `steps.py` launches a step, `rings.py` has the arrays of a window and launches the rest. `model.py`
chooses between them and what else steps and sweeps, by constants (`costs.py`) that `calibrate.py` measures. Nothing
here imports CuPy before something is to run: `available()` says whether it can.
"""

from .source import available as available
