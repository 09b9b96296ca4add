"""Coefficients of polynomials that are differentiated."""

import numpy as np
import pytest

import tapegrad as tg

P, Q = np.array([0.7, 1.9, 1.2]), np.array([0.2, -0.9])


@pytest.mark.parametrize(
    ("p", "q"),
    [(P, Q), (Q, P), (0.0 * P, Q), (np.array([0.0, 0.0, 2.0]), np.array([0.0, 3.0, 1.0])), (2.5, P)],
    ids=str,
)
@pytest.mark.parametrize("name", ["polyadd", "polysub", "polymul"])
def test_values_are_numpys_leading_zeros_included(name, p, q):
    wanted = getattr(np, name)(p, q)
    for y in (getattr(tg, name)(p, q), getattr(np, name)(tg.Variable(p), q).value):
        np.testing.assert_allclose(y, wanted, rtol=1e-14)
        assert y.shape == wanted.shape


def test_a_derivative_undoes_an_integral():
    v = tg.Variable(P)
    np.testing.assert_allclose(tg.polyder(tg.polyint(v, 2, k=[1.0, 2.0]), 2).value, P, rtol=1e-14)
    assert tg.polyder(v, 4).shape == np.polyder(P, 4).shape == (0,)
    np.testing.assert_allclose(tg.polyint(v, 2, k=tg.Variable(Q)).value, np.polyint(P, 2, k=Q), rtol=1e-14)


def test_gradients_of_gradients():
    for f in (
        lambda p, q: np.polyval(np.polymul(p, q), np.polyadd(p, q)),
        lambda p, q: np.polyval(np.polyint(np.polysub(q, p), 2, k=q), np.polyder(p)),
    ):
        tg.check_gradients(lambda p, q, f=f: tg.sum(f(p, q)), P, Q, order=2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_dtype_is_kept(dtype):
    v = tg.Variable(P.astype(dtype))
    for y in (tg.polyadd(v, v[:2]), tg.polymul(v, v), tg.polyder(v), tg.polyint(v, 2)):
        assert y.dtype == dtype


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(tg.ArgumentError, match="polyder: `m` must not be negative, and -1 came"):
        tg.polyder(P, -1)
    with pytest.raises(
        tg.ShapeError, match=r"polyint: `k` must hold 1 or m = 3 constants, and float64 \(2,\) came"
    ):
        tg.polyint(P, 3, k=Q)
    with pytest.raises(tg.ShapeError, match="polyadd: `a2` must have one axis"):
        tg.polyadd(P, P[None])
