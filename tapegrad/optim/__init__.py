"""Optimizers, by growing complexity, and limits on gradients."""

from .adam import Adam as Adam
from .clip import clip_by_norm as clip_by_norm
from .clip import clip_by_value as clip_by_value
from .optimizer import Optimizer as Optimizer
from .sgd import SGD as SGD
