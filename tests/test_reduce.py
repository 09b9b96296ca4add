"""Reductions without NumPy's wrappers give what NumPy's functions give, to the bit, the dtype and the warning."""

import itertools
import warnings

import numpy as np
import pytest

import tapegrad as tg

RNG = np.random.default_rng(0)
DTYPES = ["f2", "f4", "f8", ">f4", "g", "i4", "i8", "u1", "?"]
SHAPES = [(), (1,), (7,), (3, 5), (1, 64), (2, 3, 129), (4, 0, 2), (0,), (1000, 37)]


def result_of(function, *args, **kwargs):
    """What a call gives: its value, or the kind of exception; and the warnings it gave."""
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            y = function(*args, **kwargs)
        except Exception as error:
            y = type(error)
    return y, [(w.category, str(w.message)) for w in given]


@pytest.mark.parametrize("op", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reduction_is_bit_for_bit_that_of_numpy(op, dtype):
    body, numpy_s = getattr(tg, op).primitive.body, getattr(np, op)
    for shape, axis, keepdims in itertools.product(SHAPES, [None, 0, -1, (0, 1), ()], [False, True]):
        a = (RNG.standard_normal(shape) * 10).astype(dtype)
        expected, warned = result_of(numpy_s, a, axis=axis, keepdims=keepdims)
        found, warned_here = result_of(body, np, a, axis=axis, keepdims=keepdims)
        assert warned_here == warned
        assert type(found) is type(expected)
        if not isinstance(expected, type):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert np.array(found).tobytes() == np.array(expected).tobytes(), (shape, axis, keepdims)
            assert not np.shares_memory(found, a)


def test_a_mean_is_rounded_like_that_of_numpy_at_every_magnitude():
    for _ in range(2000):
        a = RNG.standard_normal(RNG.integers(2, 700)).astype(np.float32) * np.float32(
            2.0 ** RNG.integers(-149, 100)
        )
        assert tg.mean(a).tobytes() == np.mean(a).tobytes()
        rows = a[: len(a) // 2 * 2].reshape(2, -1)
        assert tg.mean(rows, axis=1).tobytes() == np.mean(rows, axis=1).tobytes()


def test_a_mean_of_more_elements_than_float32_can_count_is_that_of_numpy():
    a = np.broadcast_to(np.float32(0.1), (2**24 + 1,))
    assert tg.mean(a).tobytes() == np.mean(a).tobytes()
