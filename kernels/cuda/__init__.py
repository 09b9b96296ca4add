"""Recurrent steps and their backward as CUDA C++, for one NVIDIA GPU, in float32.

`backward.cu` and `forward.cu` hold the kernels, `deposit.cu` what brings steps that ops have run into a ring;
`plan.py` says how they are divided over a GPU, and which sizes do not fit; `source.py` compiles them through CuPy;
`rings.py` has the arrays and launches them. `model.py` chooses between them and what else sweeps a window, by
constants (`costs.py`) that `calibrate.py` measures. Nothing here imports CuPy before something is to run:
`available()` says whether it can.
"""

from .source import available as available
