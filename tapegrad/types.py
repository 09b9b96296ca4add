"""Names for the arrays that pass through the engine."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
ArrayLike: TypeAlias = Any  # what np.asarray takes: arrays, numbers, nested lists of numbers
Shape: TypeAlias = tuple[int, ...]
