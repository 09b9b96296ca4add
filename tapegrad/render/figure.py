"""Figures without pyplot: made here, saved here, and never left open anywhere."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ..errors import TapegradError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; the black one is left to the text.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442")
GREY = "#777777"
DPI = 100  # pixels per inch, of a saved bitmap


class MissingExtraError(TapegradError, ImportError):
    """A package that only some functions need is not installed."""


def figure(where: str, width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty Figure of `width` times `height` inches. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise MissingExtraError(
            f"{where}: drawing needs matplotlib, and it is not installed.\n"
            f"  pip install 'tapegrad[viz]' (or pip install matplotlib)."
        ) from missing
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def finish(drawn: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The Figure, saved if a `path` is given; its ending (.png, .svg, .pdf) says as what."""
    if path is not None:
        drawn.savefig(path)
    return drawn
