"""Estimators of a truncated gradient beyond the fixed windows of the core: schedules, and policies at a joint."""

from .adaptive import Adaptive as Adaptive
from .burn_in import BurnIn as BurnIn
from .joints import ClipJoint as ClipJoint
from .joints import RandomJoint as RandomJoint
from .randomized import Randomized as Randomized
from .real_time import RealTime as RealTime
from .tolerance import Tolerance as Tolerance
