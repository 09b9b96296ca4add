"""tapegrad: differentiate the loop you wrote.

A `Tape` records ops as plain Python runs them and sweeps them in reverse. A `CapacitorTape` keeps a
window of a loop, so backpropagation through time needs no recomputation and no change to the loop.
"""

from importlib import import_module as _import_module
from os import path as _path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

# Installed, the kernels lie in this folder; in a copy of the repository, beside it. Python started there
# finds this folder first, and must find them too.
if not _path.isdir(_path.join(_path.dirname(__file__), "kernels")):
    __path__.append(_path.dirname(_path.dirname(__file__)))

from . import kernels as kernels
from .core.adjoints import Adjoints as Adjoints
from .core.capacitor import CapacitorTape as CapacitorTape
from .core.move import move_tape as _move_tape  # noqa: F401  (gives tapes their `to`)
from .core.part import Part as Part
from .core.primitive import Case as Case
from .core.primitive import elementwise as elementwise
from .core.primitive import linear as linear
from .core.primitive import primitive as primitive
from .core.pushforward import pushforward as pushforward
from .core.schedule import Chunked as Chunked
from .core.schedule import Full as Full
from .core.schedule import Schedule as Schedule
from .core.schedule import Sliding as Sliding
from .core.snapshot import Slot as Slot
from .core.sweep import Sweep as Sweep
from .core.tape import Tape as Tape
from .core.variable import Parameter as Parameter
from .core.variable import Variable as Variable
from .core.variable import constant as constant
from .core.walk import Step as Step
from .errors import ArgumentError as ArgumentError
from .errors import CaptureError as CaptureError
from .errors import DeviceError as DeviceError
from .errors import DtypeError as DtypeError
from .errors import EvictedError as EvictedError
from .errors import GradientError as GradientError
from .errors import GradientStopsWarning as GradientStopsWarning
from .errors import MatrixError as MatrixError
from .errors import NonFiniteError as NonFiniteError
from .errors import OutOfRangeError as OutOfRangeError
from .errors import RecordingError as RecordingError
from .errors import ShapeError as ShapeError
from .errors import TapegradError as TapegradError
from .errors import UnsupportedError as UnsupportedError
from .errors import WindowWarning as WindowWarning
from .ops import exchange as _exchange  # noqa: F401  (hands values to other libraries)
from .ops import names as _names
from .ops import operators as _operators  # noqa: F401  (gives Variable its operators)
from .ops import protocols as _protocols  # noqa: F401  (makes NumPy's functions record)
from .program import Programs as _Programs  # noqa: F401  (a CapacitorTape's programs register themselves)

if _TYPE_CHECKING:  # what is imported late, for those who read types
    from . import data as data
    from . import linalg as linalg
    from . import nn as nn
    from . import optim as optim
    from . import render as render
    from . import special as special
    from . import truncation as truncation
    from .files import load as load
    from .files import save as save
    from .gradcheck import GradientReport as GradientReport
    from .gradcheck import check_gradients as check_gradients
    from .opaque import checkpoint as checkpoint
    from .opaque import custom_vjp as custom_vjp
    from .ops.transfer import asarray as asarray
    from .program.function import compile as compile
    from .program.graph import capture as capture
    from .program.warm import warmup as warmup
    from .transforms import grad as grad
    from .transforms import hessian as hessian
    from .transforms import hvp as hvp
    from .transforms import jacobian as jacobian
    from .transforms import jvp as jvp
    from .transforms import linearize as linearize
    from .transforms import value_and_grad as value_and_grad
    from .transforms import vjp as vjp
    from .truncation import Adaptive as Adaptive
    from .truncation import BurnIn as BurnIn
    from .truncation import ClipJoint as ClipJoint
    from .truncation import Randomized as Randomized
    from .truncation import RandomJoint as RandomJoint
    from .truncation import RealTime as RealTime
    from .truncation import Tolerance as Tolerance

__version__ = "0.1.0"

# What few programs need, by the module that is imported when it is first asked for: all would wait for it. A
# name without a function is the module itself. Ops come in the same way: `ops/names.py` says from where.
_LATE = {
    "": "data linalg nn optim render special truncation",
    "files": "load save",
    "gradcheck": "GradientReport check_gradients",
    "opaque": "checkpoint custom_vjp",
    "ops.transfer": "asarray",
    "program.function": "compile",
    "program.graph": "capture",
    "program.warm": "warmup",
    "transforms": "grad hessian hvp jacobian jvp linearize value_and_grad vjp",
    "truncation": "Adaptive BurnIn ClipJoint RandomJoint Randomized RealTime Tolerance",
}
_WHERE = {name: module for module, text in _LATE.items() for name in text.split()}


def __getattr__(name: str) -> _Any:
    """`tg.NAME`, imported when it is first asked for."""
    if name in _WHERE:
        module = _import_module(f"{__name__}.{_WHERE[name] or name}")
        found = getattr(module, name) if _WHERE[name] else module
    elif name in _names.PUBLIC:
        found = _names.function_at(_names.PUBLIC[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*(n for n in globals() if not n.startswith("_")), *_WHERE, *_names.PUBLIC, "__version__"})
