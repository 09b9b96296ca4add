"""The CUDA C++ of this folder as one text, and compiled through CuPy."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Callable, Mapping

from .plan import Gpu

FOLDER = pathlib.Path(__file__).parent
INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
# A kernel as CuPy's RawKernel is called: grid, block, arguments, and `shared_mem` in bytes.
Launch = Callable[..., None]


def available() -> bool:
    """Whether a kernel could run: CuPy is installed, and sees a GPU."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


def this_gpu() -> Gpu:
    """The current GPU, as plans see it."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return Gpu(found["name"].decode(), found["multiProcessorCount"], found["sharedMemPerBlockOptin"])


def text(name: str, instead: Mapping[str, pathlib.Path] = {}) -> str:
    """A file with its includes in their places, each once. CuPy caches by text, and would miss a changed header.

    `instead` names other files for some.
    """
    seen = set()

    def included(match: re.Match[str]) -> str:
        if match[1] in seen:
            return ""
        seen.add(match[1])
        return read(match[1])

    def read(file: str) -> str:
        return INCLUDE.sub(included, instead.get(file, FOLDER / file).read_text(encoding="utf-8"))

    return read(name)


@functools.cache
def compiled(name: str, expression: str, shared_bytes: int = 0, cooperative: bool = False) -> Launch:
    """The kernel that `expression` names in a file, for the GPU that is current at the first call.

    CuPy keeps what it has compiled on disk. `cooperative`: all blocks are on the GPU at once, or the launch fails.
    """
    import cupy

    module = cupy.RawModule(
        code=text(name),
        options=("-std=c++17",),
        name_expressions=(expression,),
        enable_cooperative_groups=cooperative,
    )
    kernel = module.get_function(expression)
    if shared_bytes > 48 * 1024:  # more than a launch may have unasked
        kernel.max_dynamic_shared_size_bytes = shared_bytes
    return kernel
