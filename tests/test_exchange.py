"""What other libraries ask for: the array API standard's namespace, and values by DLPack."""

import copy
import pickle

import numpy as np
import pytest

import tapegrad as tg

A = np.array([[0.5, 1.5, 1.05], [2.0, 0.25, 0.75]])


def standardised(x):
    """Code that does not say which library it computes with."""
    xp = x.__array_namespace__()
    return (x - xp.mean(x, axis=0)) / xp.std(x, axis=0, correction=0)


def test_code_for_the_array_api_records():
    v = tg.Variable(A)
    with tg.Tape() as tape:
        y = standardised(v)
    np.testing.assert_allclose(y.value, standardised(A), rtol=1e-14)
    ct = np.arange(6.0).reshape(2, 3)
    tape.backward(y, ct)
    d = np.cos(np.arange(6.0)).reshape(2, 3)
    h = 1e-6
    slope = np.sum(ct * (standardised(A + h * d) - standardised(A - h * d))) / (2 * h)
    np.testing.assert_allclose(np.sum(v.grad * d), slope, rtol=1e-6, atol=1e-8)


# The functions, constants and dtypes of the standard, version 2024.12, by its chapters.
STANDARD = {
    "constants": "e inf nan newaxis pi",
    "creation": """
        arange asarray empty empty_like eye from_dlpack full full_like linspace meshgrid ones ones_like tril triu zeros
        zeros_like
    """,
    "data types": """
        astype can_cast finfo iinfo isdtype result_type bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32
        float64 complex64 complex128
    """,
    "elementwise": """
        abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert bitwise_or
        bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp expm1 floor floor_divide
        greater greater_equal hypot imag isfinite isinf isnan less less_equal log log1p log2 log10 logaddexp logical_and
        logical_not logical_or logical_xor maximum minimum multiply negative nextafter not_equal positive pow real
        reciprocal remainder round sign signbit sin sinh square sqrt subtract tan tanh trunc
    """,
    "indexing": "take take_along_axis",
    "inspection": "__array_namespace_info__",
    "linear algebra": "matmul matrix_transpose tensordot vecdot",
    "manipulation": """
        broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape roll squeeze stack
        tile unstack
    """,
    "searching": "argmax argmin count_nonzero nonzero searchsorted where",
    "sets": "unique_all unique_counts unique_inverse unique_values",
    "sorting": "argsort sort",
    "statistics": "cumulative_prod cumulative_sum max mean min prod std sum var",
    "utility": "all any diff",
    "version": "__array_api_version__",
}
LINALG = """
    cholesky cross det diagonal eigh eigvalsh inv matmul matrix_norm matrix_power matrix_rank matrix_transpose outer pinv
    qr slogdet solve svd svdvals tensordot trace vecdot vector_norm
"""


def test_the_namespace_has_the_names_of_the_standard_and_no_other():
    xp = tg.Variable(A).__array_namespace__()
    wanted = {name for names in STANDARD.values() for name in names.split()}
    unknown = {n for n in wanted if not hasattr(xp, n)}
    assert not unknown or (unknown == {"__array_namespace_info__"} and np.__version__ < "2.1")
    assert set(dir(xp)) == wanted | {"linalg"}
    for name in LINALG.split():
        assert callable(getattr(xp.linalg, name))
    with pytest.raises(AttributeError, match="'vstack' is not a name of the array API standard"):
        xp.vstack
    assert not hasattr(xp, "fft")


def test_versions_of_the_standard():
    v = tg.Variable(A)
    xp = v.__array_namespace__(api_version="2023.12")
    assert xp is v.__array_namespace__(api_version=None)
    assert xp.__array_api_version__ == "2024.12"
    with pytest.raises(
        tg.ArgumentError, match=r"`api_version` must be one of 2021.12, .*, and '1999.12' came"
    ):
        v.__array_namespace__(api_version="1999.12")


UNARY = [
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "conj",
    "cos",
    "cosh",
    "exp",
    "expm1",
    "log",
    "log10",
    "log1p",
    "log2",
    "negative",
    "positive",
    "real",
    "reciprocal",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "tan",
    "tanh",
]
BINARY = [
    "add",
    "atan2",
    "copysign",
    "divide",
    "hypot",
    "logaddexp",
    "maximum",
    "minimum",
    "multiply",
    "pow",
    "remainder",
    "subtract",
]


@pytest.mark.parametrize("name", UNARY + BINARY)
def test_elementwise_functions_of_the_standard_record(name):
    xp = tg.Variable(A).__array_namespace__()
    x = A + 1.0 if name == "acosh" else A / 3 + 0.01
    operands = (x, x[::-1].copy()) if name in BINARY else (x,)
    with tg.Tape():
        y = getattr(xp, name)(*(tg.Variable(o) for o in operands))
    plain = getattr(xp, name)(*operands)
    assert isinstance(y, tg.Variable) and y._slot > 0 and type(plain) is np.ndarray
    np.testing.assert_allclose(y.value, plain, rtol=1e-13)


@pytest.mark.parametrize(
    "name",
    ["ceil", "floor", "round", "sign", "trunc", "isnan", "isfinite", "isinf", "signbit", "logical_not"],
)
def test_steps_are_constants(name):
    assert type(getattr(tg.Variable(A).__array_namespace__(), name)(tg.Variable(A))) is np.ndarray


def test_other_functions_of_the_standard_record():
    v, xp = tg.Variable(A), tg.Variable(A).__array_namespace__()
    with tg.Tape():
        for y, plain in [
            (xp.concat([v, A], axis=0), np.concatenate([A, A])),
            (xp.permute_dims(v, (1, 0)), A.T),
            (xp.matrix_transpose(v), A.T),
            (xp.take_along_axis(v, np.array([[2], [0]]), axis=1), np.array([[1.05], [2.0]])),
            (xp.take(v, np.array([1, 0]), axis=0), A[::-1]),
            (xp.vecdot(v, v), (A * A).sum(1)),
            (xp.linalg.vector_norm(v), np.sqrt((A * A).sum())),
            (xp.cumulative_sum(v, axis=1), A.cumsum(1)),
            (xp.cumulative_prod(v, axis=1), A.cumprod(1)),
            (xp.var(v, correction=1), A.var(ddof=1)),
            (xp.clip(v, 0.6, 1.2), A.clip(0.6, 1.2)),
            (xp.unstack(v)[1], A[1]),
            (xp.tile(v, (1, 2)), np.tile(A, (1, 2))),
            (xp.sort(v), np.sort(A)),
            (xp.sort(v, axis=0, descending=True), np.sort(A, axis=0)[::-1]),
            (xp.full((2,), v[0, 0]), np.full(2, 0.5)),
            (xp.full_like(A, v[0, 0], dtype=np.float32, device="cpu"), np.full_like(A, 0.5, np.float32)),
            (xp.astype(v, np.float32), A.astype(np.float32)),
            (xp.asarray(v, dtype=np.float32), A.astype(np.float32)),
            (xp.asarray(v, copy=True), A),
            (xp.where(A > 1, v, 0.0), np.where(A > 1, A, 0.0)),
            (xp.diff(v), np.diff(A)),
        ]:
            assert isinstance(y, tg.Variable) and y._slot > 0
            assert y.dtype == plain.dtype
            np.testing.assert_allclose(y.value, plain, rtol=1e-14)
    assert xp.asarray(v) is v
    assert xp.astype(v, np.float64, copy=False) is v


def test_constants_of_the_standard_are_plain():
    v, xp = tg.Variable(A), tg.Variable(A).__array_namespace__()
    for y in (
        xp.zeros((2,)), xp.ones_like(v), xp.asarray([1.0]), xp.full((2,), 3.0), xp.astype(v, xp.int32), xp.eye(2),
        xp.full_like(v, 2.0), xp.astype(A, xp.float32), xp.argsort(v), xp.argmax(v, axis=0), xp.sort(A, descending=True),
    ):  # fmt: skip
        assert type(y) is np.ndarray
    assert xp.isdtype(v.dtype, "real floating") and xp.finfo(v.dtype).bits == 64


def test_a_device_that_does_not_exist_is_refused_of_variables_and_constants():
    v, xp = tg.Variable(A), tg.Variable(A).__array_namespace__()
    for make in (
        lambda x: xp.asarray(x, device="nowhere"),
        lambda x: xp.astype(x, xp.float32, device="nowhere"),
        lambda x: xp.astype(x, xp.int32, device="nowhere"),
        lambda x: xp.full((2,), x[0, 0], device="nowhere"),
        lambda x: xp.full_like(x, x[0, 0], device="nowhere"),
    ):
        for x in (v, A):
            with pytest.raises(tg.ArgumentError, match="device: it must be"):
                make(x)


def test_descending_order_keeps_equal_elements_in_theirs():
    x = np.array([[2.0, 1.0, 2.0, 3.0, 1.0]])
    xp = tg.Variable(x).__array_namespace__()
    assert xp.argsort(x, descending=True).tolist() == [[3, 0, 2, 1, 4]]
    assert xp.argsort(tg.Variable(x), descending=True).tolist() == [[3, 0, 2, 1, 4]]
    assert xp.argsort(x).tolist() == [[1, 4, 0, 2, 3]]


# -- DLPack ------------------------------------------------------------------------------------------------


def test_a_constant_is_handed_out_without_a_copy_and_read_only():
    v = tg.stop_gradient(tg.Variable(A))
    taken = np.from_dlpack(v)
    np.testing.assert_array_equal(taken, A)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # before, NumPy could not read that it is read-only
        assert np.shares_memory(taken, v.value) and not taken.flags.writeable
    assert v.__dlpack_device__() == (1, 0)


def test_one_who_cannot_read_that_an_array_is_read_only_gets_a_copy():
    v = tg.constant(A)

    class Old:
        def __dlpack__(self, *, stream=None, **newer):
            return v.__dlpack__(stream=stream)

        def __dlpack_device__(self):
            return v.__dlpack_device__()

    taken = np.from_dlpack(Old())
    np.testing.assert_array_equal(taken, A)
    assert not np.shares_memory(taken, v.value)


@pytest.mark.parametrize("make", [tg.Variable, lambda a: tg.Variable(a) * 1.0])
def test_a_differentiated_variable_is_not_handed_out(make):
    with tg.Tape():
        v = make(A)
        for take in (np.from_dlpack, lambda v: v.__dlpack_device__()):
            with pytest.raises(
                tg.UnsupportedError, match=r"cannot be handed out by DLPack.*\n  Use tg.stop_gradient\(v\)"
            ):
                take(v)


def test_torch_takes_a_constant():
    torch = pytest.importorskip("torch")
    v = tg.constant(A)
    taken = torch.from_dlpack(v)
    assert taken.tolist() == A.tolist()
    taken += 1.0
    np.testing.assert_array_equal(v.value, A)  # torch knows nothing of read-only arrays
    with pytest.raises(tg.UnsupportedError, match="DLPack"):
        torch.from_dlpack(tg.Variable(A))


def test_a_function_is_pickled_and_copied_by_its_name():
    for f in (tg.tanh, tg.var, tg.linalg.solve, tg.special.erf, tg.sum):
        assert pickle.loads(pickle.dumps(f)) is f
        assert copy.deepcopy(f) is f
