"""Arrays in a file: written whole or not at all, read without running anything from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ArgumentError
from .types import Array


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write `arrays` (a state_dict; also numbers and strings) to `path` as an .npz file.

    The file appears complete: it is written beside its place, flushed to disk and then renamed.
    """
    import tempfile  # here: 3 ms of `import tapegrad`

    path = os.fspath(path)
    converted = {name: np.asarray(value) for name, value in arrays.items()}
    for name, array in converted.items():
        if array.dtype.hasobject:
            raise ArgumentError(
                f"save: `{name}` is not an array of numbers or text, but {type(arrays[name]).__name__}."
            )
    folder = os.path.dirname(path) or "."
    handle, draft = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **converted)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def load(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The arrays that `save` wrote. Nothing in the file is executed. Raises ArgumentError if it is no such file."""
    import zipfile  # here: 2 ms of `import tapegrad`

    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not an .npz archive")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ArgumentError(f"load: {os.fspath(path)} is not a file that save() wrote: {error}.") from error
