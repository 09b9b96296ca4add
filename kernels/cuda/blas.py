"""Matrix products of CuPy's arrays by a cuBLAS handle of our own.

CuPy refuses to call its handle while a stream captures. This one may be called then: it works on the stream it was
bound to, in a workspace that it got before, and asks for no memory. cuBLAS counts by columns: to it, the memory of
a row-major matrix holds the transpose, and so C = A B is asked for as Cᵀ = Bᵀ Aᵀ.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from ctypes import c_char_p, c_double, c_float, c_int, c_longlong, c_size_t, c_void_p
from ctypes.util import find_library
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

Array = Any

# Arguments of the functions that are called, as cublas_api.h has them. An enumeration is an int; each returns one.
MATRICES = [c_void_p, c_int, c_int]  # address, type, leading dimension
STACKS = [*MATRICES, c_longlong]  # and the distance of one matrix from the next
SIGNATURES = {
    "cublasCreate_v2":            [c_void_p],
    "cublasDestroy_v2":           [c_void_p],
    "cublasSetStream_v2":         [c_void_p, c_void_p],
    "cublasSetWorkspace_v2":      [c_void_p, c_void_p, c_size_t],
    "cublasSetMathMode":          [c_void_p, c_int],
    "cublasGemmEx":               [c_void_p, *[c_int] * 5, c_void_p, *MATRICES, *MATRICES, c_void_p, *MATRICES, c_int, c_int],
    "cublasGemmStridedBatchedEx": [c_void_p, *[c_int] * 5, c_void_p, *STACKS, *STACKS, c_void_p, *STACKS, c_int, c_int, c_int],
}  # fmt: skip

PLAIN, TRANSPOSED = 0, 1  # CUBLAS_OP_N, CUBLAS_OP_T
BEST = -1  # CUBLAS_GEMM_DEFAULT: cuBLAS chooses the kernel
# CUBLAS_DEFAULT_MATH computes float32 in float32. With the flag, a sum that is split up is not rounded to float16 between.
MATH = 0 | 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
WORKSPACE = 32 << 20  # bytes: what NVIDIA recommends for Hopper
LARGEST = (1 << 31) - 1


class Kind(NamedTuple):
    """A dtype in cuBLAS's numbers: cudaDataType, cublasComputeType_t, and the type of alpha and beta."""

    data: int
    compute: int
    scalar: Any


KINDS = {
    "e": Kind(2, 68, c_float),  # CUDA_R_16F, CUBLAS_COMPUTE_32F
    "f": Kind(0, 68, c_float),  # CUDA_R_32F, CUBLAS_COMPUTE_32F
    "d": Kind(1, 70, c_double),  # CUDA_R_64F, CUBLAS_COMPUTE_64F
}
TF32 = 77  # CUBLAS_COMPUTE_32F_FAST_TF32


@functools.cache
def loaded_library() -> Any:
    """The libcublas that CuPy computes with. Raises RuntimeError where there is none."""
    import cupy

    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    with contextlib.suppress(ImportError):
        import_module("cupy_backends.cuda.libs.cublas")  # loads it; after that its name alone finds it
    tried = []
    for where in (by_name, by_pathfinder, by_search):
        try:
            return ctypes.CDLL(where(major))
        except (OSError, ImportError, RuntimeError) as error:
            tried.append(f"{where.__name__}: {error}")
    raise RuntimeError(
        f"libcublas of CUDA {major} was not found.\n  pip install 'cupy-cuda{major}x[ctk]'\n  "
        + "\n  ".join(tried)
    )


def by_name(major: int) -> str:
    return f"libcublas.so.{major}"


def by_pathfinder(major: int) -> str:
    return str(import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublas").abs_path)


def by_search(major: int) -> str:
    found = find_library("cublas")
    if found is None:
        raise OSError("the system has no library `cublas`")
    return found


class Handle:
    """A cuBLAS handle for the device that is current now, working on the stream whose address is `stream`.

    Made before a capture, for it allocates. Two streams that may run at once need two handles: a handle has one
    workspace. `tf32` lets float32 be multiplied with 10 bits of mantissa. `library` and `workspace`, a MemoryPointer
    of CuPy's, are for tests.
    """

    def __init__(
        self, stream: int = 0, *, tf32: bool = False, library: Any = None, workspace: Any = None
    ) -> None:
        self._library = declared(library if library is not None else loaded_library())
        self.tf32 = tf32
        if workspace is None:
            import cupy

            # From the pool itself: what allocates for a step takes its memory back with the step.
            workspace = cupy.get_default_memory_pool().malloc(WORKSPACE)
        self._workspace, self._stream = workspace, None
        self._handle = c_void_p()
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetMathMode", self._handle, MATH)
        self.bind(stream)

    def bind(self, stream: int) -> None:
        """Work on this stream from now on."""
        if stream != self._stream:
            self._call("cublasSetStream_v2", self._handle, stream)
            # After the stream: that brings cuBLAS's own workspace back, which it would allocate.
            self._call("cublasSetWorkspace_v2", self._handle, self._workspace.ptr, WORKSPACE)
            self._stream = stream

    def close(self) -> None:
        """Give the handle back. Not done at the end of the process: the driver may have gone before."""
        if self._handle:
            self._call("cublasDestroy_v2", self._handle)
            self._handle = c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            said = self._library.cublasGetStatusString(status).decode()
            hint = "\n  Is there a GPU, and memory left on it?" if name == "cublasCreate_v2" else ""
            raise RuntimeError(f"{name}: cuBLAS returned status {status}, {said}.{hint}")

    # -- products ----------------------------------------------------------------------------------------------

    def matmul(self, a: Array, b: Array, out: Array = None, alpha: float = 1.0, beta: float = 0.0) -> Array:
        """alpha a b + beta out, by NumPy's rules for vectors and stacks, in `out` if it is given.

        float16, float32 or float64. cuBLAS reads alpha and beta on the host: a graph repeats those of its capture.
        """
        xp = import_module(type(a).__module__.partition(".")[0])
        shape, stack, a, b, seen = as_matrices(a, b)
        dtype = np.result_type(a.dtype, b.dtype)
        if dtype.char not in KINDS:
            raise TypeError(f"matmul: cuBLAS multiplies float16, float32 and float64, and {dtype} came.")
        if out is not None and (out.shape != shape or out.dtype != dtype):
            raise ValueError(f"matmul: `out` must be {dtype} {shape}, and {out.dtype} {out.shape} came.")
        made = xp.empty(shape, dtype) if out is None else out
        y = made[seen]
        if not y.size:
            return made
        if not a.shape[-1]:  # a sum of nothing
            y[...] = y * dtype.type(beta) if beta else 0
            return made
        a, b = (in_layout(xp, x.astype(dtype, copy=False)) for x in (a, b))
        if stack and out is None and b.ndim == 2 and a.flags.c_contiguous:
            # One matrix for a stack: the rows of all are rows of one product.
            a, y, stack = a.reshape(-1, a.shape[-1]), y.reshape(-1, y.shape[-1]), ()
        target = in_layout(xp, y)
        self._multiply(target, a, b, stack, alpha, beta)
        if target is not y:
            y[...] = target
        return made

    def _multiply(
        self, y: Array, a: Array, b: Array, stack: tuple[int, ...], alpha: float, beta: float
    ) -> None:
        """y = alpha a b + beta y, for arrays that have a layout."""
        kind = KINDS[y.dtype.char]
        compute = TF32 if self.tf32 and y.dtype.char == "f" else kind.compute
        by_rows, of_y = layout(y)
        # A result by rows is to cuBLAS the transpose: the operands change places, and what lies by rows is transposed already.
        pair = [(x, *layout(x)) for x in ((b, a) if by_rows else (a, b))]
        ops = [PLAIN if rows == by_rows else TRANSPOSED for _, rows, _ in pair]
        m, n, k = *(y.shape[:-3:-1] if by_rows else y.shape[-2:]), a.shape[-1]
        if max(m, n, k) > LARGEST:
            raise ValueError(f"matmul: cuBLAS counts to {LARGEST}, and the product is {m} by {n} by {k}.")
        operands = [(x, ld) for x, _, ld in pair] + [(y, of_y)]
        (count, steps), outer = runs([x for x, _ in operands], stack)
        factors = [ctypes.byref(kind.scalar(factor)) for factor in (alpha, beta)]
        for offsets in outer:
            matrices = [
                [x.data.ptr + offset, kind.data, ld, *([step // y.itemsize] if count > 1 else [])]
                for (x, ld), offset, step in zip(operands, offsets, steps, strict=True)
            ]
            self._call(
                "cublasGemmStridedBatchedEx" if count > 1 else "cublasGemmEx",
                self._handle, *ops, m, n, k, factors[0], *matrices[0], *matrices[1], factors[1], *matrices[2],
                *([count] if count > 1 else []), compute, BEST,
            )  # fmt: skip


def as_matrices(a: Array, b: Array) -> tuple[tuple[int, ...], tuple[int, ...], Array, Array, Any]:
    """Shape and stack of `a @ b`, both as matrices, and the index that makes one of the result."""
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: the operands must have at least one axis; use * for scalars.")
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None] if row else a, b[:, None] if column else b
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: {a.shape[-1]} columns do not meet {b.shape[-2]} rows.")
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*stack, *(() if row else a.shape[-2:-1]), *(() if column else b.shape[-1:]))
    seen = (..., *([None] if row else []), *([] if column else [slice(None)]), *([None] if column else []))
    return shape, stack, a, b, seen if row or column else ...


def layout(x: Array) -> Any:
    """How the matrices of `x` lie: whether by rows, and how many elements the next row (or column) is away.

    None where cuBLAS could not read them: neither rows nor columns are in one piece, or they overlap.
    """
    size, (rows, columns), (down, across) = x.itemsize, x.shape[-2:], x.strides[-2:]
    if any(stride % size or abs(stride) // size > LARGEST for stride in x.strides):
        return None
    if (columns == 1 or across == size) and (rows == 1 or down >= columns * size):
        return True, columns if rows == 1 else down // size
    if (rows == 1 or down == size) and (columns == 1 or across >= rows * size):
        return False, rows if columns == 1 else across // size
    return None


def in_layout(xp: Any, x: Array) -> Array:
    """`x`, or a copy of it that cuBLAS can read."""
    return x if layout(x) is not None else xp.ascontiguousarray(x)


def runs(arrays: list[Array], stack: tuple[int, ...]) -> tuple[tuple[int, list[int]], list[list[int]]]:
    """How to go over the matrices of a stack: the longest run of equal steps, and where such runs start.

    Returns how many matrices a run has with the bytes between them in each array, and for each run the bytes from
    the start of each array. An axis that is broadcast has steps of 0.
    """
    axes: list[tuple[int, list[int]]] = []
    for i, length in enumerate(stack):
        if length == 1:
            continue
        steps = []
        for x in arrays:
            at = i - len(stack) - 2
            steps.append(x.strides[at] if -at <= x.ndim and x.shape[at] > 1 else 0)
        if axes and axes[-1][1] == [step * length for step in steps]:
            axes[-1] = (axes[-1][0] * length, steps)  # the outer axis goes on where this one ends
        else:
            axes.append((length, steps))
    axes.sort(key=lambda axis: axis[0])
    longest = axes.pop() if axes else (1, [0] * len(arrays))
    starts = [[0] * len(arrays)]
    for length, steps in axes:
        starts = [
            [at + i * step for at, step in zip(start, steps, strict=True)]
            for start in starts
            for i in range(length)
        ]
    return longest, starts


def declared(library: Any) -> Any:
    """`library` with the types of the functions that are called."""
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    library.cublasGetStatusString.argtypes, library.cublasGetStatusString.restype = [c_int], c_char_p
    return library
