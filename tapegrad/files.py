"""Arrays in a file: written whole or not at all, read without running anything from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from .backend.device import on_host
from .errors import ArgumentError, describe
from .types import Array


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write `arrays` (a state_dict; also numbers and strings) to `path` as an .npz file.

    The file appears complete: it is written beside its place, flushed to disk and then renamed. Arrays that lie
    on a device are brought to the host.
    """
    import tempfile  # here: these are 5 ms of `import tapegrad`
    import zipfile

    if not isinstance(arrays, Mapping):
        raise ArgumentError(
            f"save: `arrays` must be a dict of arrays, as state_dict() returns, and {describe(arrays)} came."
        )
    path = os.fspath(path)
    converted = {str(name): np.asanyarray(on_host(value)) for name, value in arrays.items()}
    for name, array in converted.items():
        if array.dtype.hasobject:
            raise ArgumentError(f"save: `{name}` is not an array of numbers or text, and cannot be stored.")
    try:
        handle, draft = tempfile.mkstemp(dir=os.path.dirname(path) or ".", suffix=".part")
    except OSError as error:
        raise ArgumentError(f"save: `path` cannot be written: {error}.") from error
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, array in converted.items():
                    with archive.open(name + ".npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.umask(mask := os.umask(0))
        os.chmod(draft, 0o666 & ~mask)  # a temporary file is its owner's alone
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
