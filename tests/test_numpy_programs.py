"""Programs in plain NumPy, run on Variables: functions, operators and methods mean what they mean on an array."""

import numpy as np
import pytest

import tapegrad as tg

A = np.array([[0.5, 1.5, 1.05], [2.0, 0.25, 0.75]])


@pytest.mark.parametrize(
    "f",
    [
        lambda a: np.add(a, A) * np.subtract(1.0, a) / np.multiply(a, 3),
        lambda a: A @ a.T,
        lambda a: a @ A.T,
        lambda a: 2.0**a + a**2 + np.power(a, A) + np.float64(3) ** a,
        lambda a: np.maximum(a, A.mean()) + np.minimum(a, 1.1),
        lambda a: np.sum(a, axis=(0, 1), keepdims=True) * a.sum(1, keepdims=True),
        lambda a: np.split(a, 3, axis=1)[1] * np.split(a, [1], axis=0)[0],
        lambda a: np.where(a > 1, a, 0.0) + np.where(A > 1, 0.0, a),
        lambda a: np.clip(a, 0.4, 1.2) + a.clip(0.4, 1.2) + np.clip(a, 0.3, None) + a.clip(min=0.6),
        lambda a: np.reshape(a, (3, 2)) @ np.ravel(a).reshape(2, 3),
        lambda a: [1.0, 2.0, 3.0] * a + a - [[1], [2]],
        lambda a: a[0] * a[:, ::-1] + a[..., None, 0] + a[np.array([1, 0])] + a[:, [True, True, True]],
        lambda a: sum(row for row in a) + abs(-a),
        lambda a: a % 0.41 + 2.3 % a + divmod(a, 0.73)[1] * divmod(2.15, a)[0] + a // 0.37 * a + 3.1 // a * a,
        lambda a: a.std(0) + a.var(axis=0, ddof=1) + a.prod(0) + a.cumsum(1)[1] * a.cumprod(0)[1] + a.mean(0),
        lambda a: a.max(1, keepdims=True) * a.min(0) + a.flatten()[::2] + a.swapaxes(0, 1)[:, 0] + a.ravel()[:3],
        lambda a: a.dot(A.T) + a.repeat(2, axis=1)[:, :2] + a.take([3, 1]) + a.diagonal() + a.trace() + a.squeeze()[0, 0],
        lambda a: a.copy() + a.conj() + a.real + a.imag + a.conjugate() + a.compress([True, False, True], axis=1).sum(),
        lambda a: a.mT.T + a.transpose(1, 0).T + a.transpose().T + a.T.transpose((1, 0)) + a.astype(np.float64),
        lambda a: np.add.outer(a[0], a[1]) + np.subtract.outer(a[0], A[0]) * np.multiply.outer(A[1], a[1]),
        lambda a: np.tensordot(a, A.T, ([1, 0], [0, 1])) * a + np.tensordot(a.T, a, ([0, 1], [1, 0])) / a,
        lambda a: a.astype(np.float64, copy=False) * a.astype("f8", "K", "unsafe", True, False),
        lambda a: a * sum(a.flat) + a.flat[3] * len(a.flat),
        lambda a: np.median(a, axis=[0, 1]) * a + np.quantile(a, 0.3, axis=[1]).sum() + np.nanmedian(a, axis=[0]),
        lambda a: np.pad(a, 1, "reflect", reflect_type="even") + np.pad(a, 1, "symmetric", reflect_type="even"),
        lambda a: np.clip(a, 0.4, 1.2, where=True, casting="same_kind", dtype=None) + a,
        lambda a: np.geomspace(a[0], a[1], 4) - np.geomspace(-a[0], -a[1], 3)[1] + np.geomspace(-2, -a[1, 0], 3)[1],
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
        lambda v, y: np.add(y, y, out=v),
        lambda v, y: np.greater(v, 1.0, out=v),
        lambda v, y: np.cumsum(v, 0, None, y),
        lambda v, y: np.round(y, 1, v),
        lambda v, y: np.logical_and.reduce(y, 0, None, v[0]),
        lambda v, y: np.add.reduce(v, 0, None, y[0]),
        lambda v, y: np.exp(v, where=y > 0),
        lambda v, y: np.exp(v, dtype=np.float32),
        lambda v, y: np.sum(v, 0, np.float32),
        lambda v, y: v.sum(0, np.float32),
        lambda v, y: v.max(0, y[0]),
        lambda v, y: np.concatenate([v, v], dtype=np.float32),
        lambda v, y: np.add.at(y, 0, v),
        lambda v, y: np.add.reduceat(v, [0]),
        lambda v, y: np.divide.accumulate(v),
        lambda v, y: np.fft.fft(v),
        lambda v, y: np.full((2, 2), v[0, 0]),
        lambda v, y: np.copyto(y, v),
        lambda v, y: v.sort(),
        lambda v, y: v.fill(3.0),
        lambda v, y: v.put([0], 1.0),
        lambda v, y: v.partition(1),
        lambda v, y: v.resize((4,)),
        lambda v, y: v.setflags(write=True),
        lambda v, y: np.reshape(v, (4,), order="A"),
        lambda v, y: np.linalg.svd(v, hermitian=True),
        lambda v, y: np.quantile(v, 0.5, weights=y),
        lambda v, y: np.clip(v, 0.0, 1.0, where=y > 0),
        lambda v, y: np.clip(v, 0.0, 1.0, dtype=np.float32),
        lambda v, y: np.pad(v, 1, "reflect", reflect_type="odd"),
        lambda v, y: np.pad(v, 1, "mean", stat_length=1),
        lambda v, y: v.astype(np.float32, casting="safe"),
    ],
)
def test_what_would_lose_the_recording_raises_and_says_what_to_do(lossy):
    v, y = tg.Variable(np.ones((2, 2))), np.ones((2, 2))
    with tg.Tape(), pytest.raises(tg.UnsupportedError) as caught:
        lossy(v * 1.0, y)
    assert any(way in str(caught.value) for way in ("Use", "use", "Apply", "Leave it out", "Write", "'C'"))
    np.testing.assert_array_equal(y, np.ones((2, 2)))
    np.testing.assert_array_equal(v.value, np.ones((2, 2)))


def test_a_number_may_be_taken_out_and_stored():
    y, found = np.zeros(2), {}
    with tg.Tape():
        v = tg.Variable(2.0) * 1.0
        y[0] = float(v)
        y[1] = v.item()
        found["loss"] = float(v)
    assert (y.tolist(), found) == ([2.0, 2.0], {"loss": 2.0})
    assert (tg.Variable([1.0, 2.0]).tolist(), 2.0 in tg.Variable([1.0, 2.0]), 3.0 in tg.Variable(A)) == (
        [1.0, 2.0],
        True,
        False,
    )


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
    assert np.argmax(v) == 3 == v.argmax()
    assert v.argsort(1).tolist() == A.argsort(1).tolist()
    assert np.allclose(v, A) and v.all() and v.any() and len(v.nonzero()) == 2
    assert v.round(1).tolist() == A.round(1).tolist()
    np.testing.assert_array_equal(np.where(v > 1), np.where(A > 1))


def test_an_element_is_taken_out_as_of_an_array():
    v = tg.Variable(A)
    assert (v.item(3), v.item(0, 1), v[0, 0].item()) == (A.item(3), A.item(0, 1), A.item(0))


def test_a_number_is_formatted_as_python_does():
    loss = tg.Variable(2.0) ** 2
    assert f"{loss:.3f} {loss:8.1e}|{loss}" == f"4.000  4.0e+00|{loss!r}"
    with pytest.raises(TypeError, match="format"):
        f"{tg.Variable(A):.3f}"


@pytest.mark.parametrize("fold", [np.sum, np.prod, np.max, np.min])
def test_initial_does_not_widen(fold):
    v = tg.Variable(A.astype(np.float32))
    for initial in (np.float64(1.5), np.array(1.5), 1.5, 1):
        y = fold(v, axis=0, initial=initial)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.value, fold(v.value, axis=0, initial=initial))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("name", ["array", "matrix"])
def test_arrays_whose_operators_mean_something_else_are_refused(name):
    """NumPy's operators would leave masked elements out, and multiply matrices: here they would not."""
    other = np.ma.array(np.eye(2), mask=np.eye(2)) if name == "array" else np.asmatrix(np.eye(2))
    v = tg.Variable(np.ones((2, 2)))
    for call in (lambda: v * other, lambda: np.multiply(v, other), lambda: np.concatenate([v, other])):
        with pytest.raises(tg.DtypeError, match=r"Use np\.asarray\("):
            call()
    if name == "array":
        with pytest.raises(tg.DtypeError, match=r"Variable: .*masked"):
            tg.Variable(other)
        with pytest.raises(tg.DtypeError, match=r"grad: argument 0: .*masked"):
            tg.grad(np.sum)(other)
