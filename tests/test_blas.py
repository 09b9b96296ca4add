"""Products by a cuBLAS handle of our own (`kernels/cuda/blas.py`), on a libcublas in Python. See `fake_cublas.py`."""

import ctypes
import os
import pathlib
import re
import shutil
import site
import sys

import numpy as np
import pytest
from tapegrad.kernels.cuda import blas

import fake_cublas
import strict_cupy

SEEDS = 300
TOLERANCE = {np.float16: 2e-3, np.float32: 1e-6, np.float64: 1e-13}


@pytest.fixture
def cupy():
    with strict_cupy.installed() as module:
        yield module


@pytest.fixture
def library(cupy):
    made = fake_cublas.Library()
    yield made
    assert not made.problems


@pytest.fixture
def handle(library):
    return blas.Handle(library=library)


def laid_out(cupy, rng, shape, dtype):
    """An array of the device of this shape in one of many layouts, and its elements on the host."""
    axes = rng.permutation(len(shape)) if rng.random() < 0.5 else np.arange(len(shape))
    wide = [shape[i] * int(rng.choice([1, 1, 2])) + int(rng.choice([0, 0, 3])) for i in axes]
    base = cupy.asarray(rng.uniform(-1, 1, wide).astype(dtype))
    index = []
    for i, n in zip(axes, wide, strict=True):
        step = 2 if n >= 2 * shape[i] and shape[i] and rng.random() < 0.5 else 1
        part = slice(None, step * shape[i], step)
        index.append(part)
    made = base[tuple(index)].transpose([int(i) for i in np.argsort(axes)])
    if len(shape) and rng.random() < 0.2:
        made = made[(*[slice(None)] * (len(shape) - 1), slice(None, None, -1))]
    if rng.random() < 0.2 and shape and shape[0] > 1:
        made = cupy.broadcast_to(made[:1], shape)
    assert made.shape == tuple(shape)
    return made, made.get()


def shapes(rng):
    """Of two operands and their product: vectors, matrices, stacks that broadcast; lengths of 0 and 1 among them."""
    m, n, k = (int(rng.choice([0, 1, 2, 3, 5])) for _ in range(3))
    stack = [int(rng.choice([1, 2, 3])) for _ in range(rng.integers(0, 4))]
    lead_a, lead_b = (
        [n if rng.random() < 0.7 else 1 for n in stack][rng.integers(0, len(stack) + 1) :] for _ in range(2)
    )
    a, b = (*lead_a, m, k), (*lead_b, k, n)
    if rng.random() < 0.15:
        a = (k,)
    if rng.random() < 0.15:
        b = (k,)
    return a, b


def product(a, b):
    return np.matmul(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_product_is_that_of_numpy_for_any_shapes_and_strides(cupy, handle, dtype):
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        (a, host_a), (b, host_b) = (laid_out(cupy, rng, shape, dtype) for shape in shapes(rng))
        expected = product(host_a, host_b)
        y = handle.matmul(a, b)
        assert y.dtype == dtype and y.shape == expected.shape
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(y.get(), expected, rtol=tolerance, atol=tolerance, err_msg=f"seed {seed}")


def test_a_product_is_added_to_what_out_holds_whatever_its_strides(cupy, handle):
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        (a, host_a), (b, host_b) = (laid_out(cupy, rng, shape, np.float64) for shape in shapes(rng))
        expected = product(host_a, host_b)
        out, before = laid_out(cupy, np.random.default_rng(seed + 1), expected.shape, np.float64)
        if 0 in out.strides:
            out = out.copy()
        alpha, beta = (float(x) for x in rng.choice([-0.5, 0.0, 1.0, 2.0], 2))
        assert handle.matmul(a, b, out, alpha, beta) is out
        np.testing.assert_allclose(
            out.get(), alpha * expected + beta * before, rtol=1e-12, atol=1e-13, err_msg=f"seed {seed}"
        )


def test_what_out_holds_is_not_read_without_beta(cupy, handle):
    out = cupy.full((2, 2), np.nan)
    handle.matmul(cupy.ones((2, 3)), cupy.ones((3, 2)), out)
    np.testing.assert_array_equal(out.get(), 3.0)
    empty = cupy.full((2, 2), np.nan)
    handle.matmul(cupy.ones((2, 0)), cupy.ones((0, 2)), empty)
    np.testing.assert_array_equal(empty.get(), 0.0)


@pytest.mark.parametrize(
    ("shapes", "call", "count"),
    [
        (((4, 3), (3, 2)), "cublasGemmEx", 1),
        (((1, 3), (3, 2)), "cublasGemmEx", 1),
        (((3,), (3, 2)), "cublasGemmEx", 1),
        (((5, 4, 3), (3, 2)), "cublasGemmEx", 1),  # the rows of all are rows of one
        (((5, 4, 3), (3,)), "cublasGemmEx", 1),
        (((5, 4, 3), (5, 3, 2)), "cublasGemmStridedBatchedEx", 1),
        (((4, 3), (5, 3, 2)), "cublasGemmStridedBatchedEx", 1),
        (((2, 5, 4, 3), (2, 5, 3, 2)), "cublasGemmStridedBatchedEx", 1),
        (((7, 1, 4, 3), (5, 3, 2)), "cublasGemmStridedBatchedEx", 5),
        (((0, 3), (3, 2)), None, 0),
        (((4, 0), (0, 2)), None, 0),
    ],
)
def test_a_stack_takes_as_few_calls_as_its_strides_allow(cupy, library, handle, shapes, call, count):
    a, b = (cupy.ones(shape) for shape in shapes)
    library.calls.clear()
    handle.matmul(a, b)
    assert library.calls == [call] * count


def test_transposed_operands_and_results_are_not_copied(cupy, handle, monkeypatch):
    monkeypatch.setattr(cupy, "ascontiguousarray", None)
    a, b = cupy.ones((3, 4)), cupy.ones((5, 3))
    out = cupy.zeros((5, 4)).T
    assert handle.matmul(a.T, b.T, out) is out
    np.testing.assert_array_equal(out.get(), 3.0)
    wide = cupy.ones((4, 9))
    np.testing.assert_array_equal(handle.matmul(wide[:, 2:5], b.T).get(), 3.0)


def test_float32_is_multiplied_in_float32_unless_tf32_is_asked_for(cupy, library):
    a = cupy.asarray(np.float32([[1 + 2**-12]]))
    one = cupy.ones((1, 1), np.float32)
    assert blas.Handle(library=library).matmul(a, one).get() == np.float32(1 + 2**-12)
    assert blas.Handle(library=library, tf32=True).matmul(a, one).get() == 1.0


def test_dtypes_meet_as_in_numpy(cupy, handle):
    y = handle.matmul(cupy.ones((2, 3), np.float32), cupy.ones((3, 2)))
    assert y.dtype == np.float64
    with pytest.raises(
        TypeError, match=r"^matmul: cuBLAS multiplies float16, float32 and float64, and int64 came\.$"
    ):
        handle.matmul(cupy.ones((2, 3), int), cupy.ones((3, 2), int))


@pytest.mark.parametrize(("a", "b"), [((2, 3), (2, 3)), ((), (3,)), ((2, 2, 3), (3, 3, 2))])
def test_shapes_that_do_not_fit_are_errors(cupy, handle, a, b):
    with pytest.raises(ValueError, match="matmul: |broadcast"):
        handle.matmul(cupy.ones(a), cupy.ones(b))


def test_out_must_have_the_shape_and_dtype_of_the_product(cupy, handle):
    a = cupy.ones((2, 2))
    for out in (cupy.ones((2, 3)), cupy.ones((2, 2), np.float32)):
        with pytest.raises(ValueError, match="`out` must be float64"):
            handle.matmul(a, a, out)


def test_a_product_is_captured_and_done_at_every_launch(cupy, library):
    stream = cupy.cuda.Stream(non_blocking=True)
    handle = blas.Handle(stream.ptr, library=library)
    a, b, out = cupy.ones((2, 3)), cupy.ones((3, 2)), cupy.zeros((2, 2))
    with stream:
        stream.begin_capture()
        handle.matmul(a, b, out, alpha=0.5)
        graph = stream.end_capture()
    np.testing.assert_array_equal(out.get(), 0.0)
    for factor in (1.0, 2.0):
        a[...] = factor
        graph.launch()
        np.testing.assert_array_equal(out.get(), 1.5 * factor)


def test_the_workspace_is_given_again_after_the_stream(cupy, library):
    """`cublasSetStream` brings cuBLAS's own back, which it would allocate in the capture."""
    handle = blas.Handle(library=library)
    for _ in range(2):
        stream = cupy.cuda.Stream(non_blocking=True)
        handle.bind(stream.ptr)
        (state,) = library.handles.values()
        assert state["stream"] == stream.ptr and state["workspace"][1] == 32 << 20
    calls = len(library.calls)
    handle.bind(stream.ptr)  # nothing to do
    assert len(library.calls) == calls


def test_an_error_names_the_function_and_what_cublas_says(cupy, library, handle):
    handle.close()
    assert not library.handles
    handle.close()
    with pytest.raises(
        RuntimeError, match=r"^cublasGemmEx: cuBLAS returned status 1, a status of the stand-in\.$"
    ):
        handle._handle = ctypes.c_void_p(5)
        handle.matmul(cupy.ones((2, 2)), cupy.ones((2, 2)))


def test_a_library_that_is_not_there_says_what_to_install(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 13000, raising=False)
    monkeypatch.setattr(blas, "by_name", lambda major: f"libnowhere.so.{major}")
    monkeypatch.setattr(blas, "find_library", lambda name: None)
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    blas.loaded_library.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"(?s)^libcublas of CUDA 13 was not found\.\n  pip install 'cupy-cuda13x\[ctk\]'"
    ):
        blas.loaded_library()
    blas.loaded_library.cache_clear()


# -- against NVIDIA's header -----------------------------------------------------------------------------------


def header():
    """cublas_api.h, of a toolkit or of a wheel, or None."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")]
    roots += [pathlib.Path(nvcc).resolve().parent.parent] if nvcc else []
    places = [pathlib.Path(root) / "include" for root in roots if root]
    for packages in site.getsitepackages():
        places += pathlib.Path(packages, "nvidia").glob("*/include")
    return next((at for place in places if (at := place / "cublas_api.h").exists()), None)


# What ctypes calls the types of C.
PLAIN = {"int": ctypes.c_int, "size_t": ctypes.c_size_t, "long long int": ctypes.c_longlong}
ENUMERATIONS = [
    "cublasOperation_t",
    "cudaDataType",
    "cublasComputeType_t",
    "cublasGemmAlgo_t",
    "cublasMath_t",
]
POINTERS = ["cublasHandle_t", "cudaStream_t"]


def type_of(declared):
    """The ctypes type of one argument of a prototype."""
    name = re.sub(r"\bconst\b|\w+$", "", declared.strip()).strip()
    if "*" in name or name in POINTERS:
        return ctypes.c_void_p
    return ctypes.c_int if name in ENUMERATIONS else PLAIN[name]


@pytest.mark.skipif(header() is None, reason="no cublas_api.h: CUDA_PATH or nvidia-cublas has it")
def test_the_functions_are_called_as_the_header_declares_them():
    text = header().read_text(errors="replace")
    for name, arguments in blas.SIGNATURES.items():
        found = re.search(rf"cublasStatus_t CUBLASWINAPI {name}\(([^)]*)\);", text)
        assert found, f"{name} is not in the header"
        assert [type_of(part) for part in found[1].split(",")] == arguments, name
    for name, value in {
        "CUBLAS_OP_N": blas.PLAIN,
        "CUBLAS_OP_T": blas.TRANSPOSED,
        "CUBLAS_GEMM_DEFAULT": blas.BEST,
        "CUBLAS_DEFAULT_MATH": blas.MATH & ~16,
        "CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION": blas.MATH,
        "CUBLAS_COMPUTE_32F": blas.KINDS["f"].compute,
        "CUBLAS_COMPUTE_64F": blas.KINDS["d"].compute,
        "CUBLAS_COMPUTE_32F_FAST_TF32": blas.TF32,
    }.items():
        assert int(re.search(rf"\b{name} = (-?\d+)", text)[1]) == value, name


def test_the_stand_in_has_the_same_types(library):
    for name, arguments in blas.SIGNATURES.items():
        theirs = type(getattr(fake_cublas.Library(), name))._argtypes_
        same = [ctypes.c_void_p if issubclass(t, ctypes._Pointer) else t for t in theirs]
        assert same == arguments, name


def test_every_layout_was_met():
    """The random tests would be worth little if they had missed one."""
    seen = set()
    with strict_cupy.installed() as cupy:
        for seed in range(SEEDS):
            rng = np.random.default_rng(seed)
            a, _ = laid_out(cupy, rng, shapes(rng)[0], np.float32)
            if a.ndim > 1 and a.size:
                found = blas.layout(a)
                seen.add(found and found[0])
                seen.add("broadcast" if 0 in a.strides else "stack" if a.ndim > 2 else "matrix")
    assert seen == {None, True, False, "broadcast", "stack", "matrix"}
