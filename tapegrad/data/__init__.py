"""Sequences to train on."""

from .streams import streams as streams
from .streams import windows as windows
from .text import Vocabulary as Vocabulary
from .text import english as english
from .text import read_text as read_text
