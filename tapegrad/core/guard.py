"""Has an array that a recording keeps been changed behind its back? For `Tape(guard=True)`."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np

from ..backend.device import on_device
from ..errors import RecordingError
from .entry import Entry


class Guarded(NamedTuple):
    """Where an entry was recorded, and a fingerprint of each array that it keeps."""

    line: str
    prints: dict[str, int]

    @classmethod
    def now(cls, entry: Entry) -> Guarded:
        return cls(where_called(), fingerprints(entry))

    def check(self, entry: Entry, tape: str) -> None:
        """Raise RecordingError if an array of `entry` is not what it was."""
        now = fingerprints(entry)
        for name, before in self.prints.items():
            if now.get(name, before) != before:  # a leaf's array may have been dropped
                raise RecordingError(
                    f"{tape}.backward: `{name}`, kept by {entry[0].name} at {self.line}, has been changed since.\n"
                    f"  Assign to .value instead of writing into an array, or pass a copy."
                )


def fingerprints(entry: Entry) -> dict[str, int]:
    """A hash of the bytes of each array that `entry` keeps, by name."""
    kept = entry[0].residuals(entry).items()
    return {
        name: hash(value.tobytes())
        for name, value in kept
        if isinstance(value, np.ndarray) or on_device(value)
    }


def where_called() -> str:
    """File and line of the nearest caller outside this package."""
    frame = sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and (
        frame.f_globals.get("__name__", "").partition(".")[0] == package or "generate" in frame.f_globals
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
