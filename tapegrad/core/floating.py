"""What may be a leaf: real floating-point numbers, in an array of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend.device import on_device
from ..errors import DtypeError, describe
from ..types import Array, ArrayLike


def floating(value: ArrayLike, name: str, dtype: Any = None) -> Array:
    """A fresh C-ordered floating-point array from `value`, where that lies, or the error that says why not."""
    value = getattr(value, "_array", value)  # of a Variable
    refuse_masked(value, name)
    try:
        array = value.copy(order="C") if on_device(value) else np.array(value, order="C")
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if dtype is not None and array.dtype.kind in "fiub":
        array = array.astype(dtype)
    if array.dtype.kind != "f":
        raise DtypeError(
            f"{name}: a differentiated value must be real floating point, and "
            f"{describe(array if array.dtype.kind != 'O' else value)} came.\n"
            f"  Write np.asarray(x, np.float32), or leave integers (labels, indices) as plain arrays."
        )
    return array


def refuse_masked(value: Any, name: str) -> None:
    """Raise for an array of `np.ma` that leaves elements out."""
    if isinstance(value, np.ndarray) and np.any(getattr(value, "mask", False)):
        raise DtypeError(
            f"{name}: elements of the array are masked, and a Variable has no mask.\n"
            f"  Write np.asarray(x) or x.filled(0.0), and pass ~x.mask to `where=`, or use NaN and the nan functions."
        )
