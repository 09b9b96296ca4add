"""Numbers between two that are differentiated."""

import numpy as np
import pytest

import tapegrad as tg

V, W = np.array([0.5, 2.0, 1.25]), np.array([[1.5], [0.75]])


@pytest.mark.parametrize("name", ["linspace", "logspace", "geomspace"])
@pytest.mark.parametrize("num", [0, 1, 2, 5])
@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize(
    "ends", [(V, W), (0.5, V), (V, 3), (np.array(0.25), 1.0), ([0.5, 1.0], V[:2])], ids=str
)
def test_values_are_numpys_whatever_the_ends(name, num, endpoint, ends):
    wanted = getattr(np, name)(*ends, num, endpoint)
    plain = getattr(tg, name)(*ends, num, endpoint)
    recorded = getattr(tg, name)(
        *(tg.Variable(x) if isinstance(x, np.ndarray) else x for x in ends), num, endpoint
    )
    assert type(plain) is np.ndarray and isinstance(recorded, tg.Variable)
    for y in (plain, recorded.value):
        np.testing.assert_allclose(y, wanted, rtol=1e-13)
        assert y.shape == wanted.shape


def test_both_ends_are_met_exactly():
    y = tg.linspace(tg.Variable(0.1), 0.7, 8).value
    assert (y[0], y[-1]) == (0.1, 0.7)


def test_the_axis_and_the_step():
    v = tg.Variable(V)
    y, step = np.linspace(v, 3.0, 4, axis=-1, retstep=True)
    wanted, wanted_step = np.linspace(V, 3.0, 4, axis=-1, retstep=True)
    np.testing.assert_allclose(y.value, wanted, rtol=1e-14)
    np.testing.assert_allclose(step.value, wanted_step, rtol=1e-14)


@pytest.mark.parametrize("name", ["linspace", "logspace", "geomspace"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_dtype_of_the_ends_is_kept(name, dtype):
    v = tg.Variable(np.asarray(V, dtype))
    with tg.Tape() as tape:
        y = getattr(tg, name)(v, 3.0, 4)
    tape.backward(y, np.ones_like(y.value))
    assert y.dtype == v.grad.dtype == dtype


@pytest.mark.parametrize("name", ["linspace", "logspace", "geomspace"])
def test_gradients_of_gradients(name):
    tg.check_gradients(lambda a, b: tg.sum(tg.sin(getattr(tg, name)(a, b, 3))), V, np.array(1.75), order=2)


def test_a_negative_number_of_them_is_an_error():
    with pytest.raises(tg.ArgumentError, match=r"linspace: `num` must not be negative, and -1 came\."):
        tg.linspace(tg.Variable(0.0), 1.0, -1)


def test_filled_arrays_are_like_the_first():
    v = tg.Variable(np.float64(2.0))
    with tg.Tape() as tape:
        y = tg.full_like(np.zeros((2, 3), np.float32), v)
        z = np.full_like(tg.Variable(V), v)
    assert (y.shape, y.dtype, z.shape, z.dtype) == ((2, 3), np.float32, (3,), np.float64)
    assert tape.backward(y, np.ones((2, 3), np.float32))[v] == 6.0
    assert type(tg.full_like(v, 3.0)) is np.ndarray
