"""Drawings of what a truncation does: norms by lag, blocks of a text, the spectrum of a linear RNN.

matplotlib is needed to draw (`pip install 'tapegrad[viz]'`) and imported when something is drawn;
`partition_text`, `lag_summary` and `decay` do without. Figures are plain `matplotlib.figure.Figure`s: pyplot
knows nothing of them, so there is nothing to close.
"""

from .blocks import partition as partition
from .blocks import partition_text as partition_text
from .blocks import reach as reach
from .figure import MissingExtraError as MissingExtraError
from .lags import LagSummary as LagSummary
from .lags import lag_profile as lag_profile
from .lags import lag_summary as lag_summary
from .spectrum import Decay as Decay
from .spectrum import decay as decay
from .spectrum import spectral_radius as spectral_radius
