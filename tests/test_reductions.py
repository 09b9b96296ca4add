"""Reductions, running sums and products, order statistics, differences and curves: values, gradients and theirs."""

import itertools
import warnings

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import cumulative, curves, differences, masked, order, reduce, statistics

RNG = np.random.default_rng(7)
A34, A3, A5, A234 = (RNG.standard_normal(s) for s in [(3, 4), (3,), (5,), (2, 3, 4)])
W34 = RNG.uniform(0.5, 2.0, (3, 4))
MASK = np.array([[1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]], bool)
HOLES = np.where(MASK, A34, np.nan)
X5 = np.array([-1.0, 0.5, 0.75, 2.0, 3.5])
FINE = RNG.uniform(-1.5, 4.0, (2, 6))
AXES = [None, 0, 1, -1, (0, 1), (-1, 0)]


def call(function, theirs, *arrays, live=None, **kwargs):
    """One row of the table: differentiate in the arguments `live`, all arrays by default."""
    where = [i for i, a in enumerate(arrays) if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    shown = ", ".join(f"{k}={v if not isinstance(v, np.ndarray) else v.shape}" for k, v in kwargs.items())
    shapes = " ".join(str(a.shape) if isinstance(a, np.ndarray) else str(a) for a in arrays)
    name = f"{function.__name__} {shapes} {shown}"
    return pytest.param(
        function, theirs, list(arrays), where if live is None else live, kwargs, id=name.replace("\n", "")
    )


def over_axes(function, theirs, *arrays, axes=AXES, **kwargs):
    return [
        call(function, theirs, *arrays, axis=axis, keepdims=keepdims, **kwargs)
        for axis, keepdims in itertools.product(axes, [False, True])
    ]


def running(ufunc):
    """np.cumulative_sum and np.cumulative_prod, which NumPy 2.0 does not have."""

    def cumulative(a, axis=None, include_initial=False):
        y = ufunc.accumulate(np.atleast_1d(a), axis or 0)
        first = np.full_like(y.take([0], axis or 0), ufunc.identity)
        return np.concatenate([first, y], axis or 0) if include_initial else y

    return cumulative


METHODS = [
    "linear", "interpolated_inverted_cdf", "hazen", "weibull", "median_unbiased", "normal_unbiased", "lower", "higher",
    "nearest", "midpoint", "inverted_cdf", "averaged_inverted_cdf", "closest_observation",
]  # fmt: skip

CALLS = [
    # reductions
    *over_axes(reduce.prod, np.prod, A34),
    *over_axes(reduce.ptp, np.ptp, A34),
    *over_axes(reduce.amax, np.amax, A34, axes=[None, -1]),
    *over_axes(reduce.amin, np.amin, A34, axes=[None, -1]),
    *over_axes(masked.sum, np.sum, A34, where=MASK),
    *over_axes(masked.sum, np.sum, A34, where=MASK[0], initial=2.0, axes=[None, 1]),
    *over_axes(masked.mean, np.mean, A34, where=MASK),
    *over_axes(masked.prod, np.prod, A34, where=MASK, initial=2.0),
    *over_axes(masked.max, np.max, A34, where=MASK, initial=0.3),
    *over_axes(masked.min, np.min, A34, where=MASK, initial=-0.3),
    *over_axes(masked.max, np.max, A34, initial=0.3, axes=[None, 0]),
    call(masked.max, np.max, np.zeros((0, 3)), axis=0, initial=0.5),
    call(masked.sum, np.sum, np.zeros((0, 3)), axis=0, initial=0.5),
    call(reduce.bincount, np.bincount, np.array([0, 2, 2, 5, 0]), A5),
    call(reduce.bincount, np.bincount, np.array([0, 2, 2, 5, 0]), A5, minlength=9),
    # statistics
    *over_axes(statistics.var, np.var, A34),
    *over_axes(statistics.var, np.var, A34, ddof=1),
    *over_axes(statistics.var, np.var, A234, correction=1.5, axes=[(0, 2), 1]),
    *over_axes(statistics.var, np.var, A34, ddof=1, where=MASK, axes=[None, 1]),
    *over_axes(statistics.std, np.std, A34),
    *over_axes(statistics.std, np.std, A34, ddof=1),
    *over_axes(statistics.std, np.std, A34, where=MASK, axes=[None, 1]),
    call(statistics.var, np.var, A34, axis=1, mean=A34[:, :1]),
    call(statistics.average, np.average, A34),
    call(statistics.average, np.average, A34, 1, W34),
    call(statistics.average, np.average, A34, None, W34, keepdims=True),
    call(statistics.average, np.average, A34, -1, W34[0]),
    call(statistics.average, np.average, A34, 0, W34[:, 0], True),
    call(statistics.average, np.average, A234, (2, 0), W34[:2].T.copy()),
    call(statistics.average, np.average, A34, 0, None, True),
    call(statistics.average, np.average, A34, 1, np.array([1, 2, 0, 4]), live=[0]),
    call(statistics.cov, np.cov, A34),
    call(statistics.cov, np.cov, A5),
    call(statistics.cov, np.cov, A34, A34[::-1] * 2),
    call(statistics.cov, np.cov, A5, X5),
    call(statistics.cov, np.cov, A34, None, False),
    call(statistics.cov, np.cov, A34, None, True, True),
    call(statistics.cov, np.cov, A34, ddof=0),
    call(statistics.cov, np.cov, A34, fweights=np.array([1, 2, 1, 3])),
    call(statistics.cov, np.cov, A34, None, True, False, None, np.array([1, 2, 1, 3]), W34[0], live=[0, 6]),
    call(statistics.cov, np.cov, A34, None, True, False, 0, None, W34[0], live=[0, 6]),
    call(statistics.corrcoef, np.corrcoef, A34),
    call(statistics.corrcoef, np.corrcoef, A5, X5),
    call(statistics.corrcoef, np.corrcoef, A34, None, False),
    call(statistics.corrcoef, np.corrcoef, A5),
    # NaN as a missing value
    *over_axes(masked.nansum, np.nansum, HOLES),
    *over_axes(masked.nanprod, np.nanprod, HOLES),
    *over_axes(masked.nanmean, np.nanmean, HOLES),
    *over_axes(masked.nanmax, np.nanmax, HOLES),
    *over_axes(masked.nanmin, np.nanmin, HOLES),
    *over_axes(statistics.nanvar, np.nanvar, HOLES),
    *over_axes(statistics.nanstd, np.nanstd, HOLES, ddof=1, axes=[None, 0]),
    *over_axes(statistics.nanvar, np.nanvar, HOLES, where=np.arange(12).reshape(3, 4) != 3, axes=[None, 0]),
    *over_axes(masked.nansum, np.nansum, A34, where=MASK, axes=[None, 0]),
    *over_axes(order.nanmedian, np.nanmedian, HOLES),
    *over_axes(masked.nanmax, np.nanmax, A34, axes=[None, 0]),
    *[call(cumulative.nancumsum, np.nancumsum, HOLES, axis=axis) for axis in [None, 0, -1]],
    *[call(cumulative.nancumprod, np.nancumprod, HOLES, axis=axis) for axis in [None, 0, -1]],
    # running
    *[call(cumulative.cumsum, np.cumsum, A34, axis=axis) for axis in [None, 0, -1]],
    *[call(cumulative.cumprod, np.cumprod, A34, axis=axis) for axis in [None, 0, -1]],
    *[
        call(cumulative.cumulative_sum, running(np.add), A34, axis=a, include_initial=i)
        for a, i in [(0, True), (-1, True), (1, False)]
    ],
    *[
        call(cumulative.cumulative_prod, running(np.multiply), A34, axis=a, include_initial=i)
        for a, i in [(0, True), (-1, True), (1, False)]
    ],
    call(cumulative.cumulative_sum, running(np.add), A5, include_initial=True),
    call(cumulative.cumulative_sum, running(np.add), np.array(2.0), include_initial=True),
    *[call(cumulative.logcumsumexp, np.logaddexp.accumulate, A34, axis=axis) for axis in [0, -1]],
    *[call(order.cummax, np.maximum.accumulate, A234, axis=axis) for axis in [0, 1, -1]],
    *[call(order.cummin, np.minimum.accumulate, A234, axis=axis) for axis in [0, 1, -1]],
    # order
    *[call(order.sort, np.sort, A234, axis=axis) for axis in [None, 0, 1, -1]],
    call(order.sort, np.sort, A34, kind="stable"),
    *[call(order.partition, np.partition, A34, 2, axis=axis) for axis in [None, 0, -1]],
    call(order.partition, np.partition, A5, (1, 3)),
    call(order.unique, np.unique, np.array([2.0, 0.5, 3.0, -1.0])),
    call(order.unique_values, lambda a: np.sort(np.unique_values(a)), np.array([[2.0, 0.5], [3.0, -1.0]])),
    *over_axes(order.median, np.median, A34),
    *over_axes(order.median, np.median, A234, axes=[(0, 2), 1]),
    *[
        call(order.quantile, np.quantile, A34, q, axis=axis, keepdims=keepdims, live=[0])
        for q, axis, keepdims in itertools.product(
            [0.3, np.array([0.0, 0.4, 1.0]), np.array([[0.1], [0.7]])], [None, 0, (-1, 0)], [False, True]
        )
    ],
    *[
        call(order.quantile, np.quantile, A34, np.array([0.0, 0.2, 0.43, 0.5, 0.77, 1.0]), axis=1, method=m, live=[0])
        for m in METHODS
    ],
    *[
        call(order.nanquantile, np.nanquantile, HOLES, np.array([0.0, 0.2, 0.43, 0.5, 0.77, 1.0]), axis=1, method=m, live=[0])
        for m in METHODS
    ],
    *[call(order.quantile, np.quantile, A34, np.array([0.15, 0.47]), axis=1, method=m) for m in METHODS[:6]],
    call(order.quantile, np.quantile, A34, np.array(0.37)),
    call(order.nanquantile, np.nanquantile, HOLES, np.array([0.15, 0.47]), axis=1),
    call(order.percentile, np.percentile, A34, np.array([15.0, 47.0]), axis=0),
    call(order.percentile, np.percentile, A34, 30, axis=0),
    call(order.nanpercentile, np.nanpercentile, HOLES, 30.0, axis=1, keepdims=True),
    *[
        call(order.take_along_axis, np.take_along_axis, A34, np.argsort(A34, axis=axis), axis=axis)
        for axis in (0, -1)
    ],
    call(order.take_along_axis, np.take_along_axis, A34, np.array([3, -1, 3]), axis=None),
    # differences
    *[call(differences.diff, np.diff, A234, n=n, axis=axis) for n, axis in itertools.product([0, 1, 2], [0, 1, -1])],
    call(differences.diff, np.diff, A34, 1, -1, 0.5, A34[:, :2]),
    call(differences.diff, np.diff, A34, 2, 0, A34[:1], 3.0),
    call(differences.ediff1d, np.ediff1d, A34),
    call(differences.ediff1d, np.ediff1d, A34, A3, 2.0),
    *[
        call(differences.gradient, np.gradient, A34, *spacing, axis=axis, edge_order=edge)
        for spacing, axis, edge in [
            ((), None, 1), ((), 0, 2), ((), (1,), 2), ((0.5,), None, 1), ((0.5, 2.0), None, 2), ((2.0,), -1, 1),
            ((X5[:4],), 1, 1), ((X5[:4],), 1, 2), ((X5[:3], X5[:4]), None, 2), ((X5[:3], 0.5), None, 1),
            ((np.array([0.0, 0.5, 1.0]),), 0, 2),
        ]
    ],
    call(differences.gradient, np.gradient, A34[:2, :2].copy()),
    call(differences.gradient, np.gradient, A34, np.array(0.5)),
    call(differences.trapezoid, np.trapezoid, A34),
    call(differences.trapezoid, np.trapezoid, A34, dx=0.5, axis=0),
    call(differences.trapezoid, np.trapezoid, A34, X5[:4]),
    call(differences.trapezoid, np.trapezoid, A34, X5[:3], axis=0),
    call(differences.trapezoid, np.trapezoid, A34, W34.cumsum(1), axis=-1),
    # curves
    call(curves.interp, np.interp, FINE, X5, A5),
    call(curves.interp, np.interp, FINE, X5, A5, -7.0, 8.0),
    call(curves.interp, np.interp, FINE, X5, A5, period=3.1),
    call(curves.interp, np.interp, np.array(0.6), X5, A5),
    call(curves.interp, np.interp, FINE, X5[:1], A5[:1]),
    call(curves.polyval, np.polyval, A5, FINE),
    call(curves.polyval, np.polyval, A5[:1], FINE),
    call(curves.vander, np.vander, A5),
    call(curves.vander, np.vander, A5, 3, True),
    call(curves.vander, np.vander, np.array([0.0, 2.0, -1.0]), 4),
    call(curves.vander, np.vander, A3, 0),
]  # fmt: skip
every_call = pytest.mark.parametrize(("function", "theirs", "arrays", "live", "kwargs"), CALLS)


def parts(y):
    return list(y) if isinstance(y, tuple) else [y]


def evaluated(function, arrays, kwargs):
    return parts(function(*arrays, **kwargs))


def gradients(function, arrays, live, kwargs, cts, record=False):
    """The gradient of <y, ct> in each live argument."""
    tape = tg.Tape()
    with tape:
        ys = evaluated(function, arrays, kwargs)
    pairs = [(y, ct) for y, ct in zip(ys, cts, strict=True) if isinstance(y, tg.Variable)]
    adjoints = tape.backward([y for y, _ in pairs], [ct for _, ct in pairs], record=record)
    return [adjoints[arrays[i]] for i in live]


def moved(arrays, live, directions, step):
    return [a + step * directions[live.index(i)] if i in live else a for i, a in enumerate(arrays)]


def as_leaves(arrays, live):
    return [tg.Variable(a) if i in live else a for i, a in enumerate(arrays)]


@every_call
def test_values_are_those_of_numpy(function, theirs, arrays, live, kwargs):
    if kwargs.get("method") == "closest_observation" and np.__version__ < "2.1":
        pytest.skip("NumPy 2.0 takes the other of two elements that are equally near")
    expected = parts(theirs(*arrays, **kwargs))
    for ours in (arrays, as_leaves(arrays, live)):
        found = evaluated(function, ours, kwargs)
        assert len(found) == len(expected)
        for y, z in zip(found, expected, strict=True):
            assert np.shape(y) == np.shape(z)
            np.testing.assert_allclose(getattr(y, "value", y), z, rtol=1e-12, atol=1e-13)
        kinds = {isinstance(y, tg.Variable) for y in found}
        assert kinds == {ours is not arrays} or "returned" in str(kwargs) or len(found) == 2


@every_call
def test_gradients_are_what_differences_say(function, theirs, arrays, live, kwargs):
    cts = [RNG.standard_normal(np.shape(y)) for y in evaluated(function, arrays, kwargs)]
    directions = [RNG.standard_normal(np.shape(arrays[i])) for i in live]
    found = gradients(function, as_leaves(arrays, live), live, kwargs, cts)
    slope = sum(np.sum(g * d) for g, d in zip(found, directions, strict=True))

    def at(step):
        ys = evaluated(function, moved(arrays, live, directions, step), kwargs)
        return sum(np.sum(ct * y) for ct, y in zip(cts, ys, strict=True))

    h = 1e-6
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, (at(h) - at(-h)) / (2 * h), rtol=1e-6, atol=1e-7)


@every_call
def test_gradients_of_gradients_are_what_differences_say(function, theirs, arrays, live, kwargs):
    cts = [RNG.standard_normal(np.shape(y)) for y in evaluated(function, arrays, kwargs)]
    directions, us = ([RNG.standard_normal(np.shape(arrays[i])) for i in live] for _ in range(2))
    leaves, outer = as_leaves(arrays, live), tg.Tape()
    with outer:
        first = gradients(function, leaves, live, kwargs, cts, record=True)
        total = tg.sum(tg.stack([tg.sum(g * u) for g, u in zip(first, us, strict=True)]))
    second = outer.backward(total) if total._slot else None
    slope = (
        sum(np.sum(second[leaves[i]] * d) for i, d in zip(live, directions, strict=True)) if second else 0.0
    )

    def at(step):
        at_step = as_leaves(moved(arrays, live, directions, step), live)
        return sum(
            np.sum(g * u) for g, u in zip(gradients(function, at_step, live, kwargs, cts), us, strict=True)
        )

    h = 1e-5
    np.testing.assert_allclose(slope, (at(h) - at(-h)) / (2 * h), rtol=1e-5, atol=1e-6)


@every_call
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_and_gradients_keep_the_dtype(function, theirs, arrays, live, kwargs, dtype):
    def narrow(a):
        return a.astype(dtype) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a

    arrays, kwargs = [narrow(a) for a in arrays], {k: narrow(v) for k, v in kwargs.items()}
    leaves = as_leaves(arrays, live)
    ys = evaluated(function, leaves, kwargs)
    assert {np.asarray(getattr(y, "value", y)).dtype for y in ys} == {np.dtype(dtype)}
    cts = [np.ones(np.shape(y), dtype) for y in ys]
    assert {g.dtype for g in gradients(function, leaves, live, kwargs, cts)} == {np.dtype(dtype)}


def gradient(function, a, *args, ct=None, **kwargs):
    leaf, tape = tg.Variable(a), tg.Tape()
    with tape:
        y = function(leaf, *args, **kwargs)
    return tape.backward(y, np.ones(y.shape) if ct is None else ct)[leaf]


# -- conventions -------------------------------------------------------------------------------------


def test_a_standard_deviation_of_0_has_gradient_0():
    for function in (statistics.std, statistics.nanstd):
        a = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 4.0]])
        found = gradient(function, a, axis=1)
        np.testing.assert_array_equal(found[0], 0)
        np.testing.assert_allclose(found[1], (a[1] - a[1].mean()) / (3 * a[1].std()), rtol=1e-12)


def test_a_standard_deviation_of_0_has_a_second_derivative_of_0():
    leaf, inner, outer = tg.Variable(np.ones(3)), tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = statistics.std(leaf)
        g = inner.backward(y, record=True)[leaf]
        total = tg.sum(g * np.array([1.0, 2.0, 4.0]))
    np.testing.assert_array_equal(outer.backward(total)[leaf], 0)


def test_a_variance_without_degrees_of_freedom_is_nan_with_a_nan_gradient():
    with pytest.warns(RuntimeWarning):
        assert np.isnan(gradient(statistics.var, [1.0], ddof=1)).all()
    with pytest.warns(RuntimeWarning, match="var: n - ddof is not above 0"):
        np.testing.assert_array_equal(gradient(statistics.nanvar, [1.0, np.nan], ddof=1), 0)


def test_ties_go_to_the_first():
    a = np.array([1.0, 3.0, 3.0, 1.0])
    np.testing.assert_array_equal(gradient(reduce.ptp, a), [-1, 1, 0, 0])
    np.testing.assert_array_equal(gradient(order.sort, a, ct=np.array([1.0, 2, 3, 4])), [1, 3, 4, 2])
    np.testing.assert_array_equal(gradient(order.cummax, a), [1, 3, 0, 0])
    np.testing.assert_array_equal(gradient(order.cummin, a), [4, 0, 0, 0])
    np.testing.assert_array_equal(gradient(order.unique, a, ct=np.array([5.0, 7.0])), [5, 7, 0, 0])
    np.testing.assert_array_equal(gradient(order.median, [2.0, 2.0, 2.0]), [0, 1, 0])


def test_the_parts_of_unique_are_those_of_numpy():
    a = np.array([[2.0, 0.5, 2.0], [np.nan, -1.0, np.nan]])
    for name in ["unique_all", "unique_counts", "unique_inverse"]:
        found, expected = getattr(order, name)(tg.Variable(a)), getattr(np, name)(a)
        assert type(found) is type(expected)
        for y, z in zip(found, expected, strict=True):
            np.testing.assert_array_equal(getattr(y, "value", y), z)
    values, first, inverse, counts = order.unique(a, True, True, True)
    for y, z in zip((values, first, inverse, counts), np.unique(a, True, True, True), strict=True):
        np.testing.assert_array_equal(y, z)


def test_a_missing_element_has_gradient_0_and_spoils_no_other():
    a = np.array([[1.0, np.nan, 3.0], [np.nan, 2.0, 5.0]])
    for function in (
        masked.nansum, masked.nanmean, masked.nanprod, masked.nanmax, masked.nanmin, statistics.nanvar, statistics.nanstd,
        order.nanmedian, cumulative.nancumsum, cumulative.nancumprod,
    ):  # fmt: skip
        found = gradient(function, a)
        assert np.isfinite(found).all(), function.__name__
        np.testing.assert_array_equal(found[np.isnan(a)], 0)


@pytest.mark.parametrize("function", [masked.nanmean, masked.nanmax, masked.nanmin, order.nanmedian])
def test_a_line_of_which_all_is_missing_is_nan_and_says_so(function):
    a = np.array([[np.nan, np.nan], [1.0, 2.0]])
    with pytest.warns(RuntimeWarning, match="NaN|no element"):
        y = function(tg.Variable(a), axis=1)
    assert np.isnan(y.value).tolist() == [True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gradient(function, a, axis=1)
    np.testing.assert_array_equal(np.isfinite(found[1]), True)
    assert np.sum(found[1]) == 1


def test_a_nan_makes_a_median_and_a_quantile_nan():
    for function in (order.median, lambda a, axis: order.quantile(a, 0.25, axis)):
        y = function(tg.Variable(HOLES), axis=1)
        expected = np.isnan(HOLES).any(axis=1)
        np.testing.assert_array_equal(np.isnan(y.value), expected)


def test_a_running_extreme_stays_nan_from_the_first_on():
    a = np.array([1.0, np.nan, 3.0, np.nan])
    np.testing.assert_array_equal(order.cummax(a), np.maximum.accumulate(a))
    np.testing.assert_array_equal(order.cummin(a), np.minimum.accumulate(a))


def test_a_logcumsumexp_neither_overflows_nor_meets_minus_infinity():
    a = np.array([-np.inf, -np.inf, 1000.0, 999.0])
    found = gradient(cumulative.logcumsumexp, a, 0)
    share = 1 / (1 + np.exp(-1.0))
    np.testing.assert_allclose(found, [0, 0, 1 + share, 1 - share], rtol=1e-12)


def test_an_interpolated_curve_has_the_slope_of_the_piece_to_the_right_and_none_beyond_the_ends():
    knots, heights = np.array([0.0, 1.0, 3.0]), np.array([0.0, 2.0, 0.0])
    x = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(gradient(curves.interp, x, knots, heights), [0, 2, 2, -1, -1, -1, 0])


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1)], ids=str)
def test_odd_shapes_are_differentiated(shape):
    a = np.full(shape, 0.5)
    always = [reduce.prod, cumulative.cumsum, cumulative.cumprod, cumulative.logcumsumexp, masked.nansum,
              masked.nanprod, cumulative.nancumsum, differences.ediff1d]  # fmt: skip
    of_some = [reduce.ptp, statistics.var, statistics.std, order.median, statistics.average, masked.nanmean]
    for function in always + (of_some if a.size else []):
        assert gradient(function, a).shape == shape, function.__name__
    if shape:
        for function in [order.sort, differences.diff, differences.trapezoid, order.cummax]:
            assert gradient(function, a).shape == shape, function.__name__


def test_readonly_and_reversed_arrays_are_taken():
    a = A34[::-1, ::-2]
    for function in [order.sort, statistics.var, reduce.prod, cumulative.cumprod, differences.diff]:
        expected = gradient(function, np.ascontiguousarray(a))
        np.testing.assert_allclose(gradient(function, a), expected, rtol=1e-13)


def test_plain_arrays_lists_and_numbers_give_plain_arrays():
    assert statistics.var([1, 2, 3]) == np.var([1, 2, 3])
    assert order.median([3, 1, 2]) == 2
    assert order.quantile([1, 2, 3, 4], 0.5) == 2.5
    assert differences.diff([1, 4, 9]).tolist() == [3, 5]
    assert order.sort([3, 1, 2]).tolist() == [1, 2, 3]
    assert curves.interp(0.5, [0, 1], [0, 10]) == 5
    assert curves.polyval([1, 0, 2], 3) == 11
    assert masked.nanmax([1.0, np.nan]) == 1
    assert not isinstance(statistics.cov([[1.0, 2.0], [3.0, 5.0]]), tg.Variable)


def test_integers_that_are_constant_do_not_widen():
    v = tg.Variable(np.array([1.0, 2.0, 4.0], np.float32))
    for y in (
        statistics.average(v, weights=[1, 2, 3]),
        curves.polyval([1, 2], v),
        differences.diff(v, prepend=0),
        differences.gradient(v, [0, 1, 3]),
        order.quantile(v, [0.25, 0.5]),
        statistics.cov(v, fweights=[1, 2, 3]),
    ):
        assert y.dtype == np.float32


# -- zeros in products ---------------------------------------------------------------------------------

LINES = [[1.0, 2.0, 3.0], [1.0, 0.0, 3.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [-0.0, 2.0, 1.0]]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_derivatives_of_products_are_right_at_zeros_to_third_order(line):
    x, y, z = line

    def derivative(f):
        def df(*v):
            tape = tg.Tape()
            with tape:
                value = f(*v)
            return [g if isinstance(g, tg.Variable) else tg.constant(g) for g in
                    (tape.backward(value, record=True)[u] for u in v)]  # fmt: skip

        return df

    for f in (
        lambda *v: reduce.prod(tg.stack(v)),
        lambda *v: cumulative.cumprod(tg.stack(v))[2],
        lambda *v: masked.nanprod(tg.stack(v)),
    ):
        v = [tg.Variable(x) for x in line]
        outer = tg.Tape()
        with outer:
            gx, gy, gz = derivative(f)(*v)
            assert [g.item() for g in (gx, gy, gz)] == [y * z, x * z, x * y]
            gxx, gxy, gxz = derivative(lambda *u, f=f: derivative(f)(*u)[0])(*v)
            assert [g.item() for g in (gxx, gxy, gxz)] == [0, z, y]
            total = gxy
        assert outer.backward(total)[v[2]] == 1


# -- what is refused -----------------------------------------------------------------------------------


def test_messages_say_what_came_and_what_to_do():
    v = tg.Variable(A34)
    with pytest.raises(tg.ArgumentError, match="max: `where` may pick nothing"):
        masked.max(v, where=MASK)
    with pytest.raises(tg.ShapeError, match="sum: `where` must broadcast to the shape of `a`"):
        masked.sum(v, where=MASK[:2])
    with pytest.raises(tg.ArgumentError, match="std: `ddof` and `correction` are two names"):
        statistics.std(v, ddof=1, correction=1)
    with pytest.raises(tg.ArgumentError, match="cumulative_sum: `axis` must be given"):
        cumulative.cumulative_sum(v)
    with pytest.raises(tg.ArgumentError, match="quantile: `q` must be within 0 … 1"):
        order.quantile(v, 1.5)
    with pytest.raises(tg.ArgumentError, match="percentile: `q` must be within 0 … 100"):
        order.percentile(v, 101)
    with pytest.raises(tg.ArgumentError, match="quantile: `method` must be one of linear"):
        order.quantile(v, 0.5, method="cubic")
    with pytest.raises(tg.DtypeError, match="take_along_axis: `indices` must be integers"):
        order.take_along_axis(v, tg.Variable(A34))
    with pytest.raises(tg.ShapeError, match="average: `weights` must have the shape of `a`"):
        statistics.average(v, 0, W34[0])
    with pytest.raises(tg.ArgumentError, match="average: `weights` sum to 0"):
        statistics.average(v, weights=np.zeros((3, 4)))
    with pytest.raises(tg.ShapeError, match="gradient: edge_order 2 needs 3 samples along axis 0"):
        differences.gradient(tg.Variable(A34[:2]), edge_order=2)
    with pytest.raises(tg.ShapeError, match="gradient: coordinates must be one for each sample"):
        differences.gradient(v, A3, axis=1)
    with pytest.raises(tg.ArgumentError, match="diff: `n` must not be below 0"):
        differences.diff(v, -1)
    with pytest.raises(tg.ShapeError, match="interp: `xp` and `fp` must be one number each"):
        curves.interp(v, X5, A3)
    with pytest.raises(
        tg.ArgumentError, match="partition: `kth` must be a place among 4, or several, and 9 came"
    ):
        order.partition(A34, 9)
    with pytest.raises(tg.OutOfRangeError, match="median: `axis` is 2, which is out of range"):
        order.median(v, 2)
    for name, function in {
        "sort": order.sort,
        "diff": lambda v, i: differences.diff(v, 1, i),
        "cummin": order.cummin,
    }.items():
        with pytest.raises(tg.OutOfRangeError, match=f"{name}: `a` has no axis 2"):
            function(v, 2)
    with pytest.raises(tg.OutOfRangeError, match="trapezoid: `y` has no axis -1"):
        differences.trapezoid(tg.Variable(1.0))
    with pytest.raises(tg.OutOfRangeError, match="gradient: `axis` is 3"):
        differences.gradient(v, axis=3)
    with pytest.raises(tg.ShapeError, match="bincount: `x` and `weights` must have one shape"):
        reduce.bincount([0, 1], tg.Variable(A3))
    with pytest.raises(tg.OutOfRangeError, match="cumsum"):
        cumulative.cumsum(v, 2)
    with pytest.raises(tg.DtypeError, match="Complex numbers are not differentiated"):
        statistics.var(A34 + 1j)


# -- PyTorch -------------------------------------------------------------------------------------------


def torch_pairs(torch):
    """Ours, theirs and an array on which they must agree in values, gradients and gradients of gradients."""
    zeros = np.array([[1.0, 0.0, 2.0, 3.0], [0.0, 2.0, 0.0, 0.5], [1.0, 2.0, -1.0, 4.0]])
    flat = np.array([[2.0, 2.0, 2.0, 2.0], [1.0, 2.0, 3.0, 5.0], [0.0, -1.0, 1.0, 0.5]])
    for axis in (0, 1, -1):
        yield lambda a, i=axis: reduce.prod(a, i), lambda t, i=axis: t.prod(i), zeros
        yield lambda a, i=axis: cumulative.cumprod(a, i), lambda t, i=axis: t.cumprod(i), zeros
        yield lambda a, i=axis: cumulative.cumsum(a, i), lambda t, i=axis: t.cumsum(i), zeros
        yield lambda a, i=axis: statistics.var(a, i, ddof=1), lambda t, i=axis: t.var(i), flat
        yield lambda a, i=axis: cumulative.logcumsumexp(a, i), lambda t, i=axis: t.logcumsumexp(i), A34
        yield lambda a, i=axis: order.sort(a, i), lambda t, i=axis: t.sort(dim=i, stable=True).values, A34
        yield lambda a, i=axis: order.cummax(a, i), lambda t, i=axis: t.cummax(i).values, A34
        yield lambda a, i=axis: order.quantile(a, 0.3, i), lambda t, i=axis: t.quantile(0.3, i), A34
        yield lambda a, i=axis: differences.diff(a, 2, i), lambda t, i=axis: t.diff(2, i), A34
        yield lambda a, i=axis: masked.nansum(a, i), lambda t, i=axis: t.nansum(i), HOLES
        yield lambda a, i=axis: masked.nanmean(a, i), lambda t, i=axis: t.nanmean(i), HOLES
        yield (
            lambda a, i=axis: differences.trapezoid(a, axis=i),
            lambda t, i=axis: torch.trapezoid(t, dim=i),
            A34,
        )
        yield lambda a, i=axis: statistics.std(a, i), lambda t, i=axis: t.std(i, correction=0), A34
        yield lambda a, i=axis: reduce.logsumexp(a, i), lambda t, i=axis: t.logsumexp(i), A34
    yield lambda a: reduce.prod(a), lambda t: t.prod(), zeros[2:]
    yield lambda a: order.median(a[0, :3]), lambda t: t[0, :3].median(), A34
    yield lambda a: statistics.cov(a), lambda t: t.cov(), A34
    yield lambda a: statistics.corrcoef(a), lambda t: t.corrcoef(), A34
    yield lambda a: curves.vander(a[0]), lambda t: t[0][:, None] ** torch.arange(3, -1, -1), A34
    yield lambda a: differences.gradient(a)[1], lambda t: torch.gradient(t)[1], A34
    yield lambda a: order.quantile(a, [0.1, 0.9], 1, keepdims=True), lambda t: t.quantile(torch.tensor([0.1, 0.9], dtype=t.dtype), 1, keepdim=True), A34  # fmt: skip
    yield lambda a: statistics.cov(a, fweights=np.array([1, 2, 1, 3]), aweights=W34[0]), lambda t: t.cov(fweights=torch.tensor([1, 2, 1, 3]), aweights=torch.tensor(W34[0])), A34  # fmt: skip


def test_values_gradients_and_theirs_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    compared = 0
    for ours, theirs, a in torch_pairs(torch):
        leaf, inner, outer = tg.Variable(a), tg.Tape(), tg.Tape()
        t = torch.tensor(a, requires_grad=True)
        y, z = ours(leaf), theirs(t)
        np.testing.assert_allclose(y.value, z.detach().numpy(), rtol=1e-12, atol=1e-13)
        ct, u = RNG.standard_normal(y.shape), RNG.standard_normal(a.shape)
        with outer:
            with inner:
                y = ours(leaf)
            g = inner.backward(y, ct, record=True)[leaf]
            total = tg.sum(g * u)
        (h,) = torch.autograd.grad(z, t, torch.tensor(ct), create_graph=True)
        np.testing.assert_allclose(getattr(g, "value", g), h.detach().numpy(), rtol=1e-11, atol=1e-12)
        expected = np.zeros(a.shape)
        if h.requires_grad:
            (second,) = torch.autograd.grad((h * torch.tensor(u)).sum(), t, allow_unused=True)
            expected = expected if second is None else second.numpy()
        found = outer.backward(total)[leaf] if getattr(total, "_slot", 0) else np.zeros(a.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)
        compared += 1
    assert compared == 50


def test_a_standard_deviation_of_0_is_treated_as_in_pytorch():
    torch = pytest.importorskip("torch")
    t = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (theirs,) = torch.autograd.grad(t.std(), t)
    np.testing.assert_array_equal(gradient(statistics.std, np.ones(3), ddof=1), theirs.numpy())


# -- in a window -------------------------------------------------------------------------------------


STEPS = [
    lambda h: order.sort(h), lambda h: cumulative.cumsum(h, -1), lambda h: cumulative.cumprod(h, -1),
    lambda h: h - reduce.prod(h, -1, keepdims=True), lambda h: h / (statistics.std(h, -1, keepdims=True) + 1.0),
    lambda h: h - order.median(h, -1, keepdims=True), lambda h: h + differences.gradient(h, axis=-1),
    lambda h: curves.interp(h, X5, A5), lambda h: h - masked.nanmean(h, keepdims=True),
    lambda h: h * statistics.var(h, -1, keepdims=True), lambda h: order.cummax(h, -1),
]  # fmt: skip


@pytest.mark.parametrize("function", STEPS)
def test_a_compiled_window_gives_the_gradient_of_the_rules(function):
    found = []
    for compile in (True, False):
        w = tg.Parameter(np.linspace(0.2, 0.9, 4))
        tape = tg.CapacitorTape(3, compile=compile)
        h = tg.constant(np.random.default_rng(0).standard_normal((2, 4)))
        for _ in range(6):
            with tape:
                h = tg.tanh(function(h * w) + 0.1)
                loss = tg.sum(tg.square(h))
            tape.backward(loss)
        found.append(w.grad.copy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("function", STEPS)
def test_a_compiled_function_gives_the_gradient_of_the_tape(function):
    compiled = tg.compile(function)
    for shift in (0.0, 0.1, -0.2):
        found = []
        for f in (compiled, function):
            leaf, tape = tg.Variable(A34 + shift), tg.Tape()
            with tape:
                loss = tg.sum(tg.square(f(tg.tanh(leaf))))
            found.append(tape.backward(loss)[leaf])
        np.testing.assert_allclose(found[0], found[1], rtol=1e-12, atol=1e-13)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_log_sum_of_nothing_but_zeros_has_gradient_0():
    """A row of impossible states: the others' gradients must not be spoilt."""
    a = np.array([[-np.inf, -np.inf], [-np.inf, 1.0], [0.0, 0.0]])
    f = lambda a: np.sum(np.exp(np.logaddexp.reduce(a, axis=1)) * np.arange(1.0, 4.0))
    np.testing.assert_allclose(tg.grad(f)(a), [[0.0, 0.0], [0.0, 2 * np.e], [3.0, 3.0]])
    hessian = tg.hessian(f)(a)
    np.testing.assert_allclose(hessian[1, 1, 1, 1], 2 * np.e)
    assert np.all(hessian[0] == 0)
