"""Exceptions that say what was expected, what came, and what to do about it.

Every error that a caller can cause is a `TapegradError`, and also the built-in exception that a
NumPy user would look for (`ValueError` for a shape, `TypeError` for a dtype).
"""

from __future__ import annotations

import sys

import numpy as np


class TapegradError(Exception):
    """Anything that tapegrad refuses to do."""


class ArgumentError(TapegradError, ValueError):
    """An argument whose value makes no sense here (a window of 0, a label out of range)."""


class ShapeError(ArgumentError):
    """Arrays whose shapes do not fit together."""


class OutOfRangeError(ShapeError, IndexError):
    """An index or an axis that an array does not have."""


class MatrixError(ArgumentError, np.linalg.LinAlgError):
    """A matrix that has no inverse, or no factors of the kind asked for."""


class DtypeError(TapegradError, TypeError):
    """An array of a type that cannot be differentiated or used here."""


class DeviceError(TapegradError, TypeError):
    """Arrays on different devices in one op, or a device that is not there."""


class UnsupportedError(TapegradError, TypeError):
    """A NumPy function or keyword that would lose the recording, refused by name."""


class RecordingError(TapegradError, RuntimeError):
    """A tape used out of order: nothing recorded, begun twice, stopped without a beginning ..."""


class EvictedError(RecordingError):
    """A value whose segment has left the window."""


class CaptureError(TapegradError, RuntimeError):
    """Something in a step that a CUDA graph cannot repeat."""


class NonFiniteError(TapegradError, FloatingPointError):
    """A NaN or an infinity where it would have spoilt the weights."""


class GradientError(TapegradError):
    """A gradient is not what differences say."""


class WindowWarning(UserWarning):
    """The window of a capacitor is much longer than its adjoints live, or they still grow where it cuts."""


class GradientStopsWarning(UserWarning):
    """A gradient ends at a place where the author of the loop may not expect it to."""


def describe(value: object) -> str:
    """`value` in the words of an error message: dtype and shape of an array, else its type and repr."""
    array = getattr(value, "_array", value)
    cupy = sys.modules.get("cupy")
    if isinstance(array, (np.ndarray, np.generic)) or (cupy is not None and isinstance(array, cupy.ndarray)):
        return f"{array.dtype} {array.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"
