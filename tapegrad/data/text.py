"""Text as integers: one number per character."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from ..errors import ArgumentError
from ..types import Array

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def english() -> str:
    """The Python reference that comes with CPython (`pydoc_data.topics`), about 465,000 characters of English.

    Topics in the order of their names, with blank lines between. Raises ArgumentError where a
    distribution left the module out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ArgumentError(
            "english: this Python has no `pydoc_data.topics` (some distributions leave it out).\n"
            "  Give a text of your own: read_text(path), or --text FILE for an example."
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(path: str | os.PathLike[str]) -> str:
    """The contents of a UTF-8 file. Raises ArgumentError if there is no such file, or it is not UTF-8."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ArgumentError(f"read_text: `path` cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"read_text: {os.fspath(path)} is not UTF-8 text ({error.reason} at byte {error.start}).\n"
            f"  Convert it first: iconv -t UTF-8."
        ) from error


class Vocabulary:
    """The characters of a text, numbered; number 0 stands for any other character."""

    def __init__(self, text: Iterable[str]) -> None:
        self.characters = UNKNOWN + "".join(sorted(set(text) - {UNKNOWN}))
        self._codes = np.zeros(0x110000, np.int32)
        self._codes[[ord(c) for c in self.characters]] = np.arange(len(self.characters))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Array:
        """The numbers of the characters. Shape (len(text),)."""
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        return self._codes[points].astype(np.int64)

    def decode(self, codes: Iterable[int]) -> str:
        """The text that the numbers stand for."""
        return "".join(self.characters[code] for code in codes)
