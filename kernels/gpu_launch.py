"""How a kernel on a GPU is declared, fitted to its arrays, and launched.

A launch is asynchronous, allocates nothing and returns nothing, and every number it depends on lies in device
memory: so it may be captured in a graph and replayed. Importing this file needs neither Numba nor a GPU.

    @kernel("(size) (size) (1)", each="size")
    def scaled(source, target, factor):
        for j in range(cuda.grid(1), source.size, cuda.gridsize(1)):
            target[j] = source[j] * factor[0]

    scaled(x, y, factor)                    # checks the arrays, then launches
    again = scaled.bind(x, y, factor)       # checks and wraps them now, so that
    again()                                 # repeating it costs the launch alone
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

try:
    from numba import config, cuda
except ImportError:
    config = cuda = None

Array = Any

# Numba's simulator runs a Python thread for each of a block's, and one block after the other.
SIMULATED = bool(cuda and config.ENABLE_CUDASIM)

# A letter behind a shape: arrays that are not of the kernel's own dtype.
OTHERS = {"i": np.dtype(np.int64), "d": np.dtype(np.float64)}
REALS = (np.dtype(np.float32), np.dtype(np.float64))
DOUBLE_BYTES = 8


# -- how many blocks of how many threads ---------------------------------------------------------------

# None of these limits is measured yet. A warp has 32 threads. 128 a block spread the few elements of a recurrent
# step over more multiprocessors than 256 would. 2048 blocks are about 16 for each multiprocessor of an H100.
WARP, THREADS, MOST_THREADS, MOST_BLOCKS = (2, 8, 8, 3) if SIMULATED else (32, 128, 512, 2048)
MOST_BLOCKS_DOWN = 65535  # CUDA's limit along y


def grid(rows: int, columns: int, together: bool) -> tuple[tuple[int, int], int]:
    """Blocks (x, y), and threads in each, for rows of so many columns.

    A thread for each element, columns along x and rows along y; or, `together`, a block for each row, whose
    threads share its columns, and whose number is a power of two so that sums can be halved. Kernels step by the
    size of the grid, so no limit here cuts anything off.
    """
    most, per_thread = (MOST_THREADS, 4) if together else (THREADS, 1)
    threads = WARP
    while threads < most and threads * per_thread < columns:
        threads *= 2
    if together:
        return (max(1, min(rows, MOST_BLOCKS)), 1), threads
    return (min(-(-columns // threads), MOST_BLOCKS), min(rows, MOST_BLOCKS_DOWN)), threads


# -- declaring -----------------------------------------------------------------------------------------


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    return cuda.jit(device=True)(function) if cuda else function


def jit(function: Callable[..., Any]) -> Any:
    """`cuda.jit` as every kernel here has it: line numbers for profilers, except in the simulator, which refuses."""
    return cuda.jit(function) if SIMULATED else cuda.jit(lineinfo=True)(function)


def kernel(shapes: str, each: str = "", block: str = "", across: str = "") -> Callable[[Any], Kernel]:
    """Declare a kernel by the shapes of its arrays, in order, and what there is a thread for.

    `shapes` names sizes, "(batch, 4n) (4n) (rows)i (1)d": an array is of the kernel's dtype (float32 or float64,
    one for all), or of int64 (i) or float64 (d). A thread for `each` element of the named sizes, at most two, the
    last along x; or a block for each of the size `block`, its threads `across` another, with eight bytes of
    shared memory a thread.

    A shape with a star, "(size)*", is that of each array in a list. All lists are of one length, called `arrays`; a
    size that is only of listed arrays counts as their largest.
    """
    return lambda function: Kernel(function, shapes, each, block, across)


class Kernel:
    """A kernel, its arrays' shapes, and how it is launched."""

    def __init__(self, function: Any, shapes: str, each: str, block: str, across: str) -> None:
        self.function, self.__name__, self.__doc__ = function, function.__name__, function.__doc__
        self.arguments = list(inspect.signature(function).parameters)
        self.shapes = [
            ([re.fullmatch(r"(\d*)(\w*)", axis.strip()).groups() for axis in axes.split(",")], letter)  # type: ignore[union-attr]
            for axes, letter in re.findall(r"\(([^)]*)\)(\w?)", shapes)
        ]
        self.listed = [bool(star) for star in re.findall(r"\)\w?(\*?)", shapes)]
        assert len(self.shapes) == len(self.arguments), self.__name__
        self.block, self.per = block, [block, across] if block else each.split(", ")

    def __call__(self, *arrays: Array, stream: int = 0) -> None:
        """Launch on `stream`, the address of a CUDA stream (in CuPy: `get_current_stream().ptr`)."""
        self.bind(*arrays, stream=stream)()

    def bind(self, *arrays: Array, stream: int = 0) -> Launches:
        """The launch with these arrays: checked, and compiled for their strides, if it was not yet.

        Strides cost a little (rows apart as in [x, h, 1] hardly any). Raises TypeError or ValueError for arrays
        that do not fit.
        """
        if len(arrays) != len(self.arguments):
            raise TypeError(f"{self.__name__}: takes {', '.join(self.arguments)}; {len(arrays)} arrays came.")
        taken = [wrapped(array, self.__name__) for array in arrays]
        configuration = self.configuration(taken)
        if configuration is None:
            return Launches([])
        if not SIMULATED:
            self.dispatcher.compile(tuple(map(type_of, taken)))
        blocks, threads, shared = configuration
        return Launches([(configured(self.dispatcher, (blocks, threads, on(stream), shared)), taken)])

    def configuration(self, taken: list[Array]) -> tuple[tuple[int, int], int, int] | None:
        """Blocks, threads in each, and bytes that these share; None where there is nothing to do. Checks the arrays."""
        sizes, together = self.sizes(taken), bool(self.block)
        rows, columns = [1, *(sizes[name] for name in self.per)][-2:]
        if not rows * columns and not together:  # CUDA refuses an empty grid; but even no rows have a sum
            return None
        blocks, threads = grid(rows, columns, together)
        return blocks, threads, DOUBLE_BYTES * threads if together else 0

    @cached_property
    def dispatcher(self) -> Any:
        return jit(self.function)

    def sizes(self, taken: list[Array]) -> dict[str, int]:
        """What each named size is. Kernels check no bounds: an array too short here would be memory overwritten."""
        sizes, real = {"1": 1}, None
        for name, (axes, letter), listed, given in zip(
            self.arguments, self.shapes, self.listed, taken, strict=True
        ):
            if listed and len(given) != sizes.setdefault("arrays", len(given)):
                raise ValueError(
                    f"{self.__name__}: `{name}` must be {sizes['arrays']} arrays, and {len(given)} came."
                )
            for k, array in enumerate(given if listed else [given]):
                shape, dtype, mark = tuple(array.shape), np.dtype(array.dtype), f"[{k}]" if listed else ""
                words = f"{dtype} {shape}"
                if not letter and real is None and dtype in REALS:
                    real = dtype
                if dtype != (OTHERS[letter] if letter else real):
                    kind = OTHERS[letter] if letter else real or "float32 or float64"
                    raise TypeError(f"{self.__name__}: `{name}{mark}` must be {kind}, and {words} came.")
                fits = len(shape) == len(axes)
                for (times, of), size in zip(axes, shape, strict=False):
                    factor = int(times or 1)
                    of_one, rest = divmod(size, factor)
                    fits = fits and rest == 0 and of_one == sizes.setdefault(of + mark if of else "1", of_one)
                if not fits:
                    wanted = ", ".join(times + of for times, of in axes)
                    known = ", ".join(f"{of} = {size}" for of, size in sizes.items() if of != "1")
                    raise ValueError(
                        f"{self.__name__}: `{name}{mark}` must be ({wanted}), and {words} came. {known}"
                    )
        for of in self.per:
            sizes.setdefault(
                of, max((n for name, n in sizes.items() if name.startswith(f"{of}[")), default=0)
            )
        return sizes

    def signature(self, dtype: Any, layout: str = "C", arrays: int = 1) -> tuple[Any, ...]:
        """The arguments' types in Numba, for kernels of `dtype`: to compile without arrays. Layout "A" has strides.
        Lists have `arrays` elements."""
        from numba import from_dtype, types

        made = (
            types.Array(from_dtype(np.dtype(OTHERS.get(letter, dtype))), len(axes), layout)
            for axes, letter in self.shapes
        )
        return tuple(
            types.UniTuple(array, arrays) if listed else array
            for array, listed in zip(made, self.listed, strict=True)
        )


class InTurn:
    """Kernels one after the other, as one, called as `call` says: each takes the arrays that it names."""

    def __init__(self, call: str, *kernels: Kernel, doc: str) -> None:
        self.__name__, *self.arguments = re.findall(r"\w+", call)
        self.kernels, self.__doc__ = kernels, f"{call}: {doc}"

    def __call__(self, *arrays: Array, stream: int = 0) -> None:
        self.bind(*arrays, stream=stream)()

    def bind(self, *arrays: Array, stream: int = 0) -> Launches:
        """`Kernel.bind`, for all of them."""
        if len(arrays) != len(self.arguments):
            raise TypeError(f"{self.__name__}: takes {', '.join(self.arguments)}; {len(arrays)} arrays came.")
        named = dict(zip(self.arguments, arrays, strict=True))
        bound = [k.bind(*(named[name] for name in k.arguments), stream=stream) for k in self.kernels]
        return Launches([ready for launches in bound for ready in launches.ready])


class Launches:
    """Kernels with their arrays. It keeps the arrays alive: a captured graph does not."""

    def __init__(self, ready: list[tuple[Callable[..., None], list[Array]]]) -> None:
        self.ready = ready

    def __call__(self) -> None:
        for launch, arrays in self.ready:
            launch(*arrays)


def configured(dispatcher: Any, configuration: tuple[Any, ...]) -> Callable[..., None]:
    """What launches a kernel on a grid."""
    if SIMULATED:  # where all configurations of a kernel are one object, which the last one made has set
        return lambda *arrays: dispatcher[configuration](*arrays)
    # Numba warns of fewer than 128 blocks, here rather than at the launch. A recurrent step has no more to give.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dispatcher[configuration]  # type: ignore[no-any-return]


def require_numba(name: str) -> None:
    if cuda is None:
        raise ImportError(f"{name}: Numba is not installed. Run pip install 'tapegrad[cuda13]'.")


# -- arrays and streams --------------------------------------------------------------------------------


def wrapped(array: Array, name: str) -> Array:
    """`array`, or a list of some as a tuple, as Numba launches the kernel `name` with it."""
    require_numba(name)
    if isinstance(array, list | tuple):
        return tuple(wrapped(each, name) for each in array)
    # CuPy's are wrapped without waiting for their stream, which Numba would do each time, and may not in a capture.
    # NumPy's are for the simulator alone: elsewhere Numba would copy them to the device and back at every launch.
    return array if SIMULATED or hasattr(array, "copy_to_host") else cuda.as_cuda_array(array, sync=False)


def type_of(array: Array) -> Any:
    """The type in Numba of a wrapped array, or of a tuple of some."""
    if not isinstance(array, tuple):
        return array._numba_type_
    from numba import types

    return types.BaseTuple.from_types([type_of(each) for each in array])


def on(stream: int) -> Any:
    """Numba's stream for a CUDA stream's address."""
    return cuda.external_stream(stream) if stream and not SIMULATED else 0
