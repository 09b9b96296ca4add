"""NumPy's own functions on Variables: recorded, constant by nature, or refused by name. Never a bare array."""

import numpy as np
import numpy.testing.overrides as overrides
import pytest

import tapegrad as tg
from tapegrad.ops.protocols import CONSTANT_FUNCTIONS, CONSTANT_UFUNCS, FUNCTIONS, UFUNCS


def name_of(function):
    return f"{function.__module__}.{function.__name__}"


def in_every_order(v, array, count):
    """Argument lists of `count` operands with a Variable in at least one place."""
    for mask in range(1, 2**count):
        yield [v if mask >> i & 1 else array for i in range(count)]


@pytest.mark.parametrize("ufunc", sorted(overrides.get_overridable_numpy_ufuncs(), key=str), ids=str)
def test_every_ufunc_is_recorded_constant_or_refused_in_every_operand_order(ufunc):
    v, array = tg.Variable(np.full((2, 2), 0.5)), np.full((2, 2), 0.5)
    for operands in in_every_order(v, array, ufunc.nin):
        with tg.Tape() as tape:
            if ufunc in UFUNCS:
                assert isinstance(ufunc(*operands), tg.Variable)
                assert len(tape) == 1
            elif ufunc in CONSTANT_UFUNCS:
                assert isinstance(ufunc(*operands), np.ndarray)
            else:
                with pytest.raises(tg.UnsupportedError, match=ufunc.__name__):
                    ufunc(*operands)


@pytest.mark.parametrize(
    "function", sorted(overrides.get_overridable_numpy_array_functions(), key=name_of), ids=name_of
)
def test_every_array_function_is_recorded_constant_or_refused(function):
    v = tg.Variable(np.full((2, 2), 0.5))
    if function in FUNCTIONS or function in CONSTANT_FUNCTIONS:
        assert (function in FUNCTIONS) != (function in CONSTANT_FUNCTIONS)
        return
    with pytest.raises(tg.UnsupportedError, match=function.__name__):
        v.__array_function__(function, (tg.Variable,), (v,), {})


A = np.array([[0.5, 1.5, 1.05], [2.0, 0.25, 0.75]])


@pytest.mark.parametrize(
    "f",
    [
        lambda a: np.add(a, A) * np.subtract(1.0, a) / np.multiply(a, 3),
        lambda a: A @ a.T,
        lambda a: a @ A.T,
        lambda a: np.matmul(A, np.transpose(a)),
        lambda a: 2.0**a + a**2 + np.power(a, A) + np.float64(3) ** a,
        lambda a: np.exp(a) + np.log(a) + np.sqrt(a) + np.square(a) + np.expm1(a) + np.log1p(a),
        lambda a: np.sin(a) * np.cos(a) * np.tanh(a) + np.negative(a) + np.abs(a),
        lambda a: np.maximum(a, A.mean()) + np.minimum(a, 1.1),
        lambda a: np.sum(a, axis=0) + np.mean(a, axis=0) + np.max(a, axis=0) + np.amin(a, 0),
        lambda a: np.sum(a, axis=(0, 1), keepdims=True) * a.sum(1, keepdims=True),
        lambda a: np.add.reduce(a) + np.maximum.reduce(a, axis=0) + np.minimum.reduce(a),
        lambda a: np.concatenate([a, A, a], axis=1),
        lambda a: np.concatenate([a, A], axis=None),
        lambda a: np.stack([a, A], axis=-1),
        lambda a: np.split(a, 3, axis=1)[1] * np.split(a, [1], axis=0)[0],
        lambda a: np.take(a, [5, 0, 5]) + np.take(a, [0, 2, 2], axis=1),
        lambda a: np.where(a > 1, a, 0.0) + np.where(A > 1, 0.0, a),
        lambda a: np.clip(a, 0.4, 1.2) + a.clip(0.4, 1.2) + np.clip(a, 0.3, None),
        lambda a: np.reshape(a, (3, 2)) @ np.ravel(a).reshape(2, 3),
        lambda a: np.broadcast_to(a, (4, 2, 3)) + np.expand_dims(a, 0),
        lambda a: np.squeeze(np.expand_dims(a, 0)) + np.swapaxes(np.swapaxes(a, 0, 1), 0, 1),
        lambda a: np.dot(a, A.T) + np.dot(2.0, A.T @ A)[:2, :2] + np.matrix_transpose(a)[:2],
        lambda a: [1.0, 2.0, 3.0] * a + a - [[1], [2]],
        lambda a: a[0] * a[:, ::-1] + a[..., None, 0] + a[np.array([1, 0])] + a[:, [True, True, True]],
        lambda a: sum(row for row in a) + abs(-a),
    ],
)  # fmt: skip
def test_plain_numpy_records_and_has_the_right_gradient(f):
    """The same text on an array and on a Variable: equal values, gradients by differences."""
    v = tg.Variable(A)
    with tg.Tape() as tape:
        y = f(v)
    np.testing.assert_allclose(y.value, f(A), rtol=1e-14)
    rng = np.random.default_rng(0)
    ct, direction = rng.standard_normal(y.shape), rng.standard_normal(A.shape)
    tape.backward(y, ct)
    h = 1e-6
    difference = np.sum(ct * (f(A + h * direction) - f(A - h * direction))) / (2 * h)
    np.testing.assert_allclose(np.sum(v.grad * direction), difference, rtol=1e-6)


def assign(y, index, v):
    y[index] = v


def test_assigning_to_one_element_raises_and_names_stack_as_the_cause():
    """NumPy puts its own error in front of ours, and shows ours as the cause."""
    v, y = tg.Variable(np.ones((2, 2))), np.ones((2, 2))
    with tg.Tape(), pytest.raises(ValueError, match="setting an array element") as caught:
        assign(y, (0, 0), v[0, 0])
    assert "tg.stack" in str(caught.value.__cause__)


@pytest.mark.parametrize(
    "lossy",
    [
        lambda v, y: np.array([v, v]),
        lambda v, y: np.asarray(v),
        lambda v, y: y.dot(v),
        lambda v, y: assign(y, 0, v[0]),
        lambda v, y: y.__iadd__(v),
        lambda v, y: np.add(v, v, out=y),
        lambda v, y: np.exp(v, where=y > 0),
        lambda v, y: np.exp(v, dtype=np.float32),
        lambda v, y: np.sum(v, 0, np.float32),
        lambda v, y: np.sum(v, initial=3.0),
        lambda v, y: np.add.reduce(v, where=y > 0),
        lambda v, y: np.add.at(y, 0, v),
        lambda v, y: np.add.accumulate(v),
        lambda v, y: np.multiply.outer(v, v),
        lambda v, y: np.linalg.inv(v),
        lambda v, y: np.einsum("ij->i", v),
        lambda v, y: np.fft.fft(v),
        lambda v, y: np.vstack([y, v]),
        lambda v, y: np.sort(v),
        lambda v, y: np.dot(v[None], v[None]),
    ],
)
def test_what_would_lose_the_recording_raises_and_says_what_to_do(lossy):
    v, y = tg.Variable(np.ones((2, 2))), np.ones((2, 2))
    with tg.Tape(), pytest.raises(tg.UnsupportedError) as caught:
        lossy(v * 1.0, y)
    assert any(way in str(caught.value) for way in ("Use", "Apply", "Leave it out", "Write"))
    np.testing.assert_array_equal(y, np.ones((2, 2)))


def test_a_number_may_be_taken_out_and_stored():
    y, found = np.zeros(2), {}
    with tg.Tape():
        v = tg.Variable(2.0) * 1.0
        y[0] = float(v)
        y[1] = v.item()
        found["loss"] = float(v)
    assert (y.tolist(), found) == ([2.0, 2.0], {"loss": 2.0})


def test_a_refusal_names_what_is_near():
    with pytest.raises(tg.UnsupportedError, match=r"numpy.arctan is not recorded .*\n.*np.tanh"):
        np.arctan(tg.Variable(1.0))


@pytest.mark.parametrize(
    "compare", [np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal]
)
def test_comparisons_are_boolean_arrays_and_record_nothing(compare):
    v = tg.Variable(A)
    with tg.Tape() as tape:
        for y in (compare(v, 1.0), compare(A, v), getattr(tg, compare.__name__)(v, np.float64(1))):
            assert y.dtype == bool
        assert type(v < 1) is type(v > 1) is np.ndarray
    assert len(tape) == 0


def test_shapes_and_likes_are_plain():
    v = tg.Variable(A)
    assert (np.shape(v), np.ndim(v), np.size(v)) == ((2, 3), 2, 6)
    assert type(np.zeros_like(v)) is np.ndarray
    assert np.argmax(v) == 3
    assert np.allclose(v, A)
    np.testing.assert_array_equal(np.where(v > 1), np.where(A > 1))
