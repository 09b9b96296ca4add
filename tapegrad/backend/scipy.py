"""SciPy's special functions, which are imported when the first is called: SciPy is optional."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import UnsupportedError


@functools.cache
def special_function(package: str, name: str) -> Any:
    """A function of SciPy, or of CuPy's copy of it. Raises UnsupportedError where it is not there."""
    try:
        module = import_module({"scipy": "scipy.special", "cupy": "cupyx.scipy.special"}[package])
    except ImportError as error:
        raise UnsupportedError(
            f"{name}: {package} computes it, and is not installed.\n  pip install {package}"
        ) from error
    if not hasattr(module, name):
        raise UnsupportedError(
            f"{name}: CuPy has no such function.\n"
            f'  Compute it on the host, and bring the result back: tg.asarray(v, device="cpu").'
        )
    return getattr(module, name)


def by_scipy(xp: Any, name: str, *operands: Any) -> Any:
    """SciPy's function `name`, its result in NumPy's dtype for the operands: SciPy computes float16 in float32."""
    package = "cupy" if getattr(xp, "__name__", "") == "cupy" else "scipy"
    y = special_function(package, name)(*operands)
    if y.dtype == getattr(operands[-1], "dtype", None):  # the common case, 2 µs quicker
        return y
    dtype = np.result_type(*(getattr(a, "dtype", a) for a in operands))
    return y if dtype == y.dtype or dtype.kind != "f" else y.astype(dtype)
