"""libcublas as far as `kernels/cuda/blas.py` calls it, in Python, on the memory of the stand-in for CuPy.

The functions are real C functions with the types of cublas_api.h. A product is done on the stream that was set: at
once, or at every launch of the graph that the stream captures. What cuBLAS would refuse, or what would go wrong on a
device, is a status that is not 0: leading dimensions that are too small, addresses that are not the device's, memory
that cuBLAS would have to take for itself while a stream captures.

    with fake_cublas.installed() as library:
        ...
    assert library.calls == ["cublasGemmEx"]
"""

import contextlib
import ctypes
from ctypes import CFUNCTYPE, c_int, c_longlong, c_size_t, c_void_p

import numpy as np

import strict_cuda

OK, NOT_INITIALIZED, ALLOC_FAILED, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 0, 1, 3, 7, 13, 15
TYPES = {0: np.float32, 1: np.float64, 2: np.float16}  # cudaDataType
# By cublasComputeType_t: what products are summed in, and what they may multiply.
COMPUTE = {
    68: (np.float32, {np.float32, np.float16}),
    70: (np.float64, {np.float64}),
    77: (np.float32, {np.float32}),
}


class Library:
    """The functions, and what was called."""

    def __init__(self):
        self.calls, self.problems, self.handles = [], [], {}
        pointer = c_void_p
        matrix, stacked = [pointer, c_int, c_int], [pointer, c_int, c_int, c_longlong]
        gemm = [pointer, c_int, c_int, c_int, c_int, c_int, pointer]
        for name, arguments, implementation in (
            ("cublasCreate_v2", [ctypes.POINTER(pointer)], self.create),
            ("cublasDestroy_v2", [pointer], self.destroy),
            ("cublasSetStream_v2", [pointer, pointer], self.set_stream),
            ("cublasSetWorkspace_v2", [pointer, pointer, c_size_t], self.set_workspace),
            ("cublasSetMathMode", [pointer, c_int], self.set_math_mode),
            ("cublasGemmEx", [*gemm, *matrix, *matrix, pointer, *matrix, c_int, c_int], self.gemm),
            (
                "cublasGemmStridedBatchedEx",
                [*gemm, *stacked, *stacked, pointer, *stacked, c_int, c_int, c_int],
                self.gemm_stacked,
            ),
        ):
            setattr(self, name, CFUNCTYPE(c_int, *arguments)(self.guarded(name, implementation)))
        self.cublasGetStatusString = lambda status: b"a status of the stand-in"

    def guarded(self, name, implementation):
        """An exception cannot cross C: it is kept, and a status says that there was one."""

        def call(*arguments):
            self.calls.append(name)
            try:
                return implementation(*arguments)
            except Exception as error:
                self.problems.append(error)
                return EXECUTION_FAILED

        return call

    # -- handles -------------------------------------------------------------------------------------------

    def create(self, handle):
        if any(stream.nodes is not None for stream in strict_cuda.State.captures):
            return ALLOC_FAILED
        handle[0] = 0xB1A5 + 16 * max((h - 0xB1A5) // 16 + 1 for h in [0xB1A5 - 16, *self.handles])
        self.handles[handle[0]] = {"stream": 0, "workspace": None, "math": 0}
        return OK

    def destroy(self, handle):
        return OK if self.handles.pop(handle, None) else NOT_INITIALIZED

    def set_stream(self, handle, stream):
        self.handles[handle].update(stream=stream or 0, workspace=None)
        return OK

    def set_workspace(self, handle, address, size):
        if (address or 0) % 256:
            return INVALID_VALUE
        strict_cuda.memory_at(address, size)
        self.handles[handle]["workspace"] = address, size
        return OK

    def set_math_mode(self, handle, mode):
        self.handles[handle]["math"] = mode
        return OK

    # -- products --------------------------------------------------------------------------------------------

    def gemm(self, handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, b, type_b, ldb, beta, c, type_c, ldc, compute, algo):  # fmt: skip
        return self.gemm_stacked(
            handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c, ldc, 0, 1, compute, algo
        )  # fmt: skip

    def gemm_stacked(
        self, handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, stride_a, b, type_b, ldb, stride_b,
        beta, c, type_c, ldc, stride_c, count, compute, algo,
    ):  # fmt: skip
        """C = alpha op(A) op(B) + beta C, all by columns."""
        state = self.handles.get(handle)
        if state is None:
            return NOT_INITIALIZED
        stream = strict_cuda.stream_of(state["stream"])
        if state["workspace"] is None and stream.nodes is not None:
            return ALLOC_FAILED
        sums, multiplies = COMPUTE[compute]
        types = TYPES[type_a], TYPES[type_b], TYPES[type_c]
        if len(set(types)) > 1 or types[0] not in multiplies or algo != -1:
            return NOT_SUPPORTED
        of_a, of_b = (k, m) if op_a else (m, k), (n, k) if op_b else (k, n)
        if min(m, n, k, count) < 1 or lda < of_a[0] or ldb < of_b[0] or ldc < m:
            return INVALID_VALUE
        scalar = ctypes.c_double if sums is np.float64 else ctypes.c_float
        alpha, beta = (ctypes.cast(p, ctypes.POINTER(scalar))[0] for p in (alpha, beta))

        def work():
            for i in range(count):
                size = np.dtype(types[0]).itemsize
                left = by_columns(a + i * stride_a * size, types[0], of_a, lda).astype(sums)
                right = by_columns(b + i * stride_b * size, types[1], of_b, ldb).astype(sums)
                if compute == 77:
                    left, right = rounded(left), rounded(right)
                target = by_columns(c + i * stride_c * size, types[2], (m, n), ldc)
                made = alpha * ((left.T if op_a else left) @ (right.T if op_b else right))
                target[...] = made + beta * target if beta else made  # what C holds is not read if beta is 0

        work_now = stream.nodes is None
        stream.put(work)
        if not work_now:  # addresses are checked at once
            for address, kind, shape, ld in (
                (a, types[0], of_a, lda),
                (b, types[1], of_b, ldb),
                (c, types[2], (m, n), ldc),
            ):
                by_columns(address, kind, shape, ld)
        return OK


def by_columns(address, dtype, shape, ld):
    """The matrix at an address, whose columns are `ld` elements apart."""
    size = np.dtype(dtype).itemsize
    memory = strict_cuda.memory_at(address, (ld * (shape[1] - 1) + shape[0]) * size)
    return np.ndarray(shape, dtype, memory, strides=(size, ld * size))


def rounded(x):
    """float32 to the 10 bits of TF32's mantissa."""
    bits = x.view(np.uint32)
    return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


@contextlib.contextmanager
def installed():
    """A scope in which new handles are of this library."""
    from tapegrad.kernels.cuda import blas

    from tapegrad.backend import capture

    library, before = Library(), blas.loaded_library
    capture.SUPPLIES.clear()
    capture.LATEST.clear()
    blas.loaded_library = lambda: library
    try:
        yield library
    finally:
        blas.loaded_library = before
        capture.SUPPLIES.clear()
        capture.LATEST.clear()
