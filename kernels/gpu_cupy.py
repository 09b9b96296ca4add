"""Numba's kernels on arrays of CuPy: compiled by Numba, launched by CuPy on its current stream.

Numba could launch them too, but wraps each array in an object of its own first, in Python, at 6 µs an array without
what CUDA does. CuPy launches what it is given as addresses of arguments, and Numba's kernels expect of an array

    nothing, nothing, size, itemsize, address, shape..., strides...

in eight bytes each. All but the addresses are the same at each launch with arrays of the same shapes: they are laid
out once. A launch waits for nothing, allocates nothing, and may be captured if there was one like it before.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import math
import pathlib
import re
import sys
import tempfile
import threading
from typing import Any

import numpy as np

from . import gpu_launch, gpu_optimizers
from .gpu_launch import REALS, Kernel

Array = Any
LOG = logging.getLogger("tapegrad.kernels")
LOCK = threading.RLock()

# Launches by kernel, device, shapes and dtypes. Programs have few; what makes more of them starts again.
PREPARED: dict[Any, Prepared | None] = {}
MOST_PREPARED = 4096

# -- launching -----------------------------------------------------------------------------------------


def launch(kernel: Kernel, *given: Array) -> None:
    """`kernel` with arrays of CuPy, C-ordered, or lists of some where it takes these.

    An array may have more axes than the kernel says, whose first ones are then taken as one. Raises TypeError or
    ValueError for arrays that do not fit.
    """
    arrays = [a for each in given for a in (each if type(each) is list else (each,))]
    key = (kernel, arrays[0].device.id, *[a.shape for a in arrays], *[a.dtype for a in arrays])
    try:
        prepared = PREPARED[key]
    except KeyError:
        prepared = prepare(kernel, given)
        if len(PREPARED) >= MOST_PREPARED:
            PREPARED.clear()
        PREPARED[key] = prepared
    for a in arrays:
        if not a.flags.c_contiguous:
            raise ValueError(f"{kernel.__name__}: takes C-ordered arrays, and strides {a.strides} came.")
    if prepared is not None:
        prepared.launch(arrays)


class Prepared:
    """A launch but for the arrays' addresses."""

    def __init__(self, run: Any, configuration: Any, arguments: list[int], places: list[int]) -> None:
        from cupy.cuda.function import CPointer

        self.run, self.places, self.lock = run, places, threading.Lock()
        (x, y), threads, self.shared = configuration
        self.blocks, self.threads = (x, y, 1), (threads, 1, 1)
        self.memory = (ctypes.c_int64 * len(arguments))(*arguments)
        begin = ctypes.addressof(self.memory)
        self.arguments = tuple(CPointer(begin + 8 * k) for k in range(len(arguments)))

    def launch(self, arrays: list[Array]) -> None:
        with self.lock:  # CUDA copies the arguments before it returns
            for place, array in zip(self.places, arrays, strict=True):
                self.memory[place] = array.data.ptr
            self.run(self.blocks, self.threads, self.arguments, shared_mem=self.shared)


def prepare(kernel: Kernel, given: tuple[Array, ...]) -> Prepared | None:
    """The launch of `kernel` with arrays like these; None where there is nothing to do."""
    described = [
        tuple(like(a, len(axes)) for a in each) if listed else like(each, len(axes))
        for each, listed, (axes, _) in zip(given, kernel.listed, kernel.shapes, strict=True)
    ]
    configuration = kernel.configuration(described)
    if configuration is None:
        return None
    flat = [
        (a, letter)
        for each, listed, (_, letter) in zip(described, kernel.listed, kernel.shapes, strict=True)
        for a in (each if listed else [each])
    ]
    real = next((a.dtype for a, letter in flat if not letter), REALS[0])
    lists = [len(each) for each in described if type(each) is tuple]
    arguments: list[int] = []
    places = []
    for a, _ in flat:
        places.append(len(arguments) + 4)
        arguments += [0, 0, a.size, a.itemsize, 0, *a.shape, *c_strides(a)]
    return Prepared(loaded(kernel, real, lists[0] if lists else 1), configuration, arguments, places)


def like(array: Array, axes: int) -> np.ndarray:
    """An array of NumPy without memory, of the dtype and the shape that a kernel sees, with so many axes."""
    shape = tuple(array.shape)
    extra = len(shape) - axes + 1
    if extra >= 0 and axes:
        shape = (math.prod(shape[:extra]), *shape[extra:])
    return np.broadcast_to(np.empty((), array.dtype), shape)


def c_strides(array: np.ndarray) -> list[int]:
    """The strides in bytes of a C-ordered array of this shape."""
    sizes = [array.itemsize, *array.shape[:0:-1]]
    return list(itertools.accumulate(sizes, lambda a, b: a * b))[::-1] if array.ndim else []


# -- compiling -----------------------------------------------------------------------------------------


def loaded(kernel: Kernel, dtype: Any, arrays: int) -> Any:
    """`kernel` for `dtype` and lists of so many arrays, as CuPy's RawKernel, on the current device."""
    cupy = sys.modules["cupy"]
    with LOCK:
        return compiled(kernel, np.dtype(dtype), arrays, cupy.cuda.Device().compute_capability)


@functools.cache
def compiled(kernel: Kernel, dtype: Any, arrays: int, capability: str) -> Any:
    cupy = sys.modules["cupy"]
    signature = kernel.signature(dtype, arrays=arrays)
    cc = int(capability[:-1]), int(capability[-1])
    ptx, _ = gpu_launch.cuda.compile_ptx(kernel.function, signature, cc=cc)
    (name,) = re.findall(r"\.visible \.entry ([\w$]+)", ptx)
    file = pathlib.Path(folder().name) / f"{kernel.__name__}_{dtype}_{arrays}_{capability}"
    file.write_bytes(assembled(ptx, capability))
    made = cupy.RawModule(path=str(file)).get_function(name)
    made.compile()  # for this device; for another like it CuPy reads the file again
    return made


def assembled(ptx: str, capability: str) -> bytes:
    """The machine's code where NVIDIA's linker is there, which numba-cuda brings; else the PTX itself.

    A driver refuses PTX of a compiler that is newer than it is, and takes code.
    """
    try:
        from cuda.core import Linker, LinkerOptions, ObjectCode
    except ImportError:
        return ptx.encode()
    linker = Linker(ObjectCode.from_ptx(ptx.encode()), options=LinkerOptions(arch=f"sm_{capability}"))
    return bytes(linker.link("cubin").code)


@functools.cache
def folder() -> Any:
    """Where compiled kernels lie until the program ends: CuPy loads them from files."""
    return tempfile.TemporaryDirectory(prefix="tapegrad-kernels-")


def usable(array: Array) -> bool:
    """Whether kernels can be launched on the device of `array`: it is the current one, and Numba compiles for it."""
    device = array.device.id
    return device == sys.modules["cupy"].cuda.runtime.getDevice() and works_on(device)


@functools.cache
def works_on(device: int) -> bool:
    """Whether a small kernel compiles and loads on the current device, `device`. The log says why not."""
    if gpu_launch.cuda is None or not gpu_launch.cuda.is_available():
        return False
    try:
        loaded(gpu_optimizers.approve, np.float32, 1)
    except Exception as error:  # whatever Numba, NVVM, CuPy or the driver say: CuPy's own functions serve
        LOG.warning("Numba's kernels do not run on cuda:%s, CuPy's functions serve: %s", device, error)
        return False
    return True
