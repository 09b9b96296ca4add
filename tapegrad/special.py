"""SciPy's special functions that differentiate, under the names that they have in `scipy.special`.

A function whose value SciPy computes needs SciPy to be installed; `expit`, `logit`, `xlogy` and other combinations of
what NumPy has do not.
"""

from typing import Any

from .ops import special
from .ops.names import SPECIAL

__all__ = sorted(SPECIAL)


def __getattr__(name: str) -> Any:
    if name not in SPECIAL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(special, name)


def __dir__() -> list[str]:
    return __all__
