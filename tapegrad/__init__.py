"""tapegrad: differentiate the loop you wrote.

A `Tape` records ops as plain Python runs them and sweeps them in reverse. A `CapacitorTape` keeps a
window of a loop, so backpropagation through time needs no recomputation and no change to the loop.
"""

from os import path as _path

# Installed, the kernels lie in this folder; in a copy of the repository, beside it. Python started there
# finds this folder first, and must find them too.
if not _path.isdir(_path.join(_path.dirname(__file__), "kernels")):
    __path__.append(_path.dirname(_path.dirname(__file__)))

from . import data as data
from . import kernels as kernels
from . import nn as nn
from . import optim as optim
from .checkpoint import load as load
from .checkpoint import save as save
from .core.adjoints import Adjoints as Adjoints
from .core.capacitor import CapacitorTape as CapacitorTape
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
from .errors import DtypeError as DtypeError
from .errors import EvictedError as EvictedError
from .errors import GradientError as GradientError
from .errors import GradientStopsWarning as GradientStopsWarning
from .errors import NonFiniteError as NonFiniteError
from .errors import OutOfRangeError as OutOfRangeError
from .errors import RecordingError as RecordingError
from .errors import ShapeError as ShapeError
from .errors import TapegradError as TapegradError
from .errors import UnsupportedError as UnsupportedError
from .errors import WindowWarning as WindowWarning
from .gradcheck import GradientReport as GradientReport
from .gradcheck import check_gradients as check_gradients
from .ops import operators as operators
from .ops import protocols as protocols
from .ops.elementwise import absolute as absolute
from .ops.elementwise import add as add
from .ops.elementwise import astype as astype
from .ops.elementwise import clip as clip
from .ops.elementwise import cos as cos
from .ops.elementwise import divide as divide
from .ops.elementwise import equal as equal
from .ops.elementwise import exp as exp
from .ops.elementwise import expm1 as expm1
from .ops.elementwise import greater as greater
from .ops.elementwise import greater_equal as greater_equal
from .ops.elementwise import isfinite as isfinite
from .ops.elementwise import isnan as isnan
from .ops.elementwise import less as less
from .ops.elementwise import less_equal as less_equal
from .ops.elementwise import log as log
from .ops.elementwise import log1p as log1p
from .ops.elementwise import maximum as maximum
from .ops.elementwise import minimum as minimum
from .ops.elementwise import multiply as multiply
from .ops.elementwise import negative as negative
from .ops.elementwise import not_equal as not_equal
from .ops.elementwise import positive as positive
from .ops.elementwise import power as power
from .ops.elementwise import relu as relu
from .ops.elementwise import sigmoid as sigmoid
from .ops.elementwise import sign as sign
from .ops.elementwise import sin as sin
from .ops.elementwise import softplus as softplus
from .ops.elementwise import sqrt as sqrt
from .ops.elementwise import square as square
from .ops.elementwise import stop_gradient as stop_gradient
from .ops.elementwise import subtract as subtract
from .ops.elementwise import tanh as tanh
from .ops.elementwise import where as where
from .ops.index import getitem as getitem
from .ops.index import put_at as put_at
from .ops.index import take as take
from .ops.linalg import matmul as matmul
from .ops.recurrent import gru_sequence as gru_sequence
from .ops.recurrent import gru_step as gru_step
from .ops.recurrent import lstm_sequence as lstm_sequence
from .ops.recurrent import lstm_step as lstm_step
from .ops.recurrent import rnn_sequence as rnn_sequence
from .ops.recurrent import rnn_step as rnn_step
from .ops.reduce import logsumexp as logsumexp
from .ops.reduce import max as max
from .ops.reduce import mean as mean
from .ops.reduce import min as min
from .ops.reduce import sum as sum
from .ops.shape import broadcast_to as broadcast_to
from .ops.shape import concat as concat
from .ops.shape import expand_dims as expand_dims
from .ops.shape import matrix_transpose as matrix_transpose
from .ops.shape import ravel as ravel
from .ops.shape import reshape as reshape
from .ops.shape import split as split
from .ops.shape import squeeze as squeeze
from .ops.shape import stack as stack
from .ops.shape import sum_to as sum_to
from .ops.shape import transpose as transpose
from .ops.shape import unstack as unstack
from .ops.softmax import log_softmax as log_softmax
from .ops.softmax import softmax as softmax
from .ops.softmax import softmax_cross_entropy as softmax_cross_entropy
from .program import Programs as _Programs  # noqa: F401  (a CapacitorTape's programs register themselves)
from .truncation import Adaptive as Adaptive
from .truncation import BurnIn as BurnIn
from .truncation import ClipJoint as ClipJoint
from .truncation import Randomized as Randomized
from .truncation import RandomJoint as RandomJoint
from .truncation import RealTime as RealTime
from .truncation import Tolerance as Tolerance

abs = absolute
__version__ = "0.1.0"


# What few programs need, by the module that is imported when it is first asked for: all would wait for it.
_LATE = {
    "render": (".render", None),
    "compile": (".program.function", "compile"),
    "warmup": (".program.warm", "warmup"),
}


def __getattr__(name: str) -> object:
    """`tg.render`, `tg.compile` and `tg.warmup`, imported when they are first asked for."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, member = _LATE[name]
    found = import_module(module, __name__)
    return found if member is None else getattr(found, member)
