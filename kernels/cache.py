"""The folder that keeps what was compiled or measured on this machine, from one process to the next."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """TAPEGRAD_CACHE in the environment, or a folder of the user's."""
    named = os.environ.get("TAPEGRAD_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tapegrad"


def write(path: Path, text: str) -> None:
    """Make a file of it, and its folder. Another process sees all of it or nothing: it is renamed when it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    os.replace(file.name, path)
