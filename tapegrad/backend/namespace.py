"""From arrays to the module that computes with them: `xp` in every op is what `namespace` returns."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from . import capture


def namespace(*arrays: Any) -> Any:
    """The array module of `arrays`: `cupy` when one of them is a CuPy array, else `numpy`.

    CuPy is looked up among the modules already imported: an array of it can exist only then, and
    `import tapegrad` stays as light as `import numpy`. While a step is captured it is `capture.Capturing.namespace`.
    """
    own = next((array.namespace for array in arrays if hasattr(array, "namespace")), None)
    if own is not None:  # an array that is not of a library brings its functions: a traced one
        return own
    cupy = sys.modules.get("cupy")
    if cupy is not None and any(isinstance(array, cupy.ndarray) for array in arrays):
        return cupy if capture.NOW is None else capture.module(cupy)
    return np
