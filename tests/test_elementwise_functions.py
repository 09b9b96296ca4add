"""What the sweep does not say of elementwise functions: conventions, agreement with NumPy, SciPy and PyTorch, errors."""

import importlib
import math
import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.backend import scipy as backend
from tapegrad.ops import elementwise, rounding, special, trigonometry

CONSTANTS = {
    elementwise: "isinf signbit logical_and logical_or logical_not logical_xor floor ceil trunc rint imag",
    rounding: "floor_divide spacing round around fix angle",
}
RECORDED = {
    elementwise: "reciprocal exp2 log2 log10 cbrt logaddexp logaddexp2 fmax fmin float_power pow copysign fabs real conjugate conj",
    trigonometry: "tan arcsin arccos arctan arctan2 hypot sinh cosh arcsinh arccosh arctanh sinc degrees radians "
    "acos acosh asin asinh atan atan2 atanh deg2rad rad2deg unwrap",
    rounding: "remainder mod fmod ldexp heaviside nan_to_num modf frexp divmod",
}
BOTH = [(m, n) for table in (RECORDED, CONSTANTS) for m, names in table.items() for n in names.split()]
PAIRS = {
    "logaddexp", "logaddexp2", "fmax", "fmin", "float_power", "pow", "copysign", "arctan2", "atan2", "hypot", "remainder",
    "mod", "fmod", "heaviside", "divmod", "floor_divide", "logical_and", "logical_or", "logical_xor",
}  # fmt: skip


def slope(function):
    """The derivative of an elementwise function, as a function of a Variable that can be differentiated again."""

    def derivative(v):
        tape = tg.Tape()
        with tape:
            total = tg.sum(function(v))
        return tape.backward(total, record=True)[v]

    return derivative


def derivatives(function, x, orders):
    """The values of the derivatives of an elementwise function of one argument, from order 1 on."""
    found = []
    for _ in range(orders):
        function = slope(function)
        found.append(function(tg.Variable(np.asarray(x))).value)
    return found


def gradients(function, *inputs):
    """The gradients of the sum of what a function returns."""
    leaves = [tg.Variable(np.asarray(x)) for x in inputs]
    tape = tg.Tape()
    with tape:
        y = function(*leaves)
    adjoints = tape.backward(y, np.ones(y.shape))
    return [adjoints[v] for v in leaves]


def arguments_of(name, dtype=np.float64):
    rng = np.random.default_rng(len(name))
    low, high = (1.1, 3.0) if "cosh" in name else (0.1, 0.9)
    a = rng.uniform(low, high, (3, 4)).astype(dtype)
    if name == "ldexp":
        return [a, np.array([0, 1, -2, 3])]
    return [a, rng.uniform(0.2, 0.7, 4).astype(dtype)] if name in PAIRS else [a]


def as_tuple(y):
    return y if isinstance(y, tuple) else (y,)


# -- NumPy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("module", "name"), BOTH, ids=lambda x: x if isinstance(x, str) else "")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_are_those_of_numpy_with_and_without_variables(module, name, dtype):
    theirs, ours = getattr(np, "trunc" if name == "fix" else name), getattr(module, name)
    for shape in [(3, 4), ()]:
        inputs = arguments_of(name, dtype)
        if shape == () and name == "unwrap":
            continue
        inputs = inputs if shape else [x.flat[0] for x in inputs]
        expected = as_tuple(theirs(*inputs))
        plain = as_tuple(ours(*inputs))
        recorded = as_tuple(ours(tg.Variable(inputs[0]), *inputs[1:]))
        for e, p, r in zip(expected, plain, recorded, strict=True):
            assert not isinstance(p, tg.Variable)
            value = r.value if isinstance(r, tg.Variable) else r
            # NumPy's float_power and power of float64 round differently.
            np.testing.assert_allclose(p, e, rtol=3e-16 if name == "float_power" else 0)
            np.testing.assert_array_equal(value, p)
            assert np.asarray(p).dtype == value.dtype == np.asarray(e).dtype
        is_recorded = [isinstance(r, tg.Variable) for r in recorded]
        assert any(is_recorded) == (name in RECORDED.get(module, "").split())


@pytest.mark.parametrize(
    "name", sorted(PAIRS - {"floor_divide", "logical_and", "logical_or", "logical_xor", "divmod"})
)
def test_a_python_number_widens_nothing(name):
    function = next(getattr(m, name) for m in RECORDED if hasattr(m, name))
    expected = np.float64 if name == "float_power" else np.float32
    v = tg.Variable(np.full(3, 0.7, np.float32))
    for call in (lambda: function(v, 0.3), lambda: function(0.3, v)):
        tape = tg.Tape()
        with tape:
            y = call()
        tape.backward(y, np.ones(3, expected))
        assert y.dtype == expected
        assert v.grad.dtype == np.float32


# -- conventions -----------------------------------------------------------------------------------


def test_a_tie_goes_to_the_first_and_a_nan_to_the_number():
    a, b = np.array([1.0, np.nan, 2.0, np.nan]), np.array([1.0, 2.0, np.nan, np.nan])
    for function in (elementwise.fmax, elementwise.fmin):
        da, db = gradients(function, a, b)
        np.testing.assert_array_equal(da, [1, 0, 1, 1])
        np.testing.assert_array_equal(db, [0, 1, 0, 0])


def test_lengths_and_angles_have_no_slope_at_the_origin():
    for function in (trigonometry.hypot, trigonometry.arctan2):
        np.testing.assert_array_equal(gradients(function, [0.0, 0.0], [0.0, 2.0])[0][0], 0.0)
        second = derivatives(lambda v, f=function: f(v, 2.0) + f(2.0, v), np.array(0.5), 2)[1]
        assert np.isfinite(second)


def test_angles_neither_overflow_nor_underflow():
    for scale in (1e-200, 1.0, 1e200):
        da, db = gradients(trigonometry.arctan2, 3.0 * scale, 4.0 * scale)
        np.testing.assert_allclose([da * scale, db * scale], [4 / 25, -3 / 25], rtol=1e-14)
    np.testing.assert_allclose(gradients(trigonometry.arcsinh, 1e200), [1e-200])
    np.testing.assert_allclose(gradients(trigonometry.arccosh, 1e200), [1e-200])


def test_copysign_is_flat_at_zero_and_in_the_sign():
    da, db = gradients(elementwise.copysign, [-2.0, 2.0, 0.0, -2.0], [1.0, -1.0, -1.0, -0.0])
    np.testing.assert_array_equal(da, [-1, -1, 0, 1])
    np.testing.assert_array_equal(db, np.zeros(4))


def test_a_step_moves_with_its_value_at_zero_alone():
    da, db = gradients(rounding.heaviside, [-1.0, 0.0, 1.0], 0.5)
    np.testing.assert_array_equal(da, np.zeros(3))
    assert db == 1.0


def test_a_log_sum_of_two_infinities_has_a_finite_gradient():
    inf = np.inf
    for function in (elementwise.logaddexp, elementwise.logaddexp2):
        da, db = gradients(function, [-inf, -inf, inf, inf, -inf, 0.0], [-inf, 0.0, inf, 0.0, 0.0, inf])
        np.testing.assert_allclose(da, [1, 0, 0, 1, 0, 0], atol=1e-300)
        np.testing.assert_allclose(db, [1, 1, 0, 0, 1, 1], atol=1e-300)


@pytest.mark.parametrize("name", ["remainder", "fmod"])
def test_a_remainder_has_the_slope_of_its_whole_quotient(name):
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-5, 5, 200), rng.uniform(0.5, 2, 200) * rng.choice([-1, 1], 200)
    da, db = gradients(getattr(rounding, name), a, b)
    np.testing.assert_array_equal(da, np.ones(200))
    np.testing.assert_array_equal(db, -(np.floor(a / b) if name == "remainder" else np.trunc(a / b)))
    # 1 / 0.1 rounds to 10, but 0.1 goes 9 times into 1 and leaves 0.09999999999999995.
    assert gradients(rounding.remainder, 1.0, 0.1)[1] == -9.0


def test_parts_of_a_number_have_the_slope_of_the_number():
    a = np.array([-2.5, 0.3, 0.0, 5.0])
    np.testing.assert_array_equal(gradients(lambda v: rounding.modf(v)[0], a)[0], np.ones(4))
    np.testing.assert_array_equal(gradients(lambda v: rounding.divmod(v, 2.0)[1], a)[0], np.ones(4))
    np.testing.assert_array_equal(gradients(lambda v: rounding.frexp(v)[0], a)[0], [0.25, 2.0, 1.0, 0.125])
    np.testing.assert_array_equal(rounding.modf(tg.Variable(np.array([np.inf, -0.5])))[1], [np.inf, -0.0])


def test_what_replaces_a_nan_or_an_infinity_has_no_gradient():
    a = np.array([1.0, np.nan, np.inf, -np.inf])
    function = lambda v: rounding.nan_to_num(v, nan=7.0, posinf=8.0, neginf=9.0) * 3.0
    np.testing.assert_array_equal(gradients(function, a)[0], [3, 0, 0, 0])
    np.testing.assert_array_equal(rounding.nan_to_num(tg.Variable(a)).value, np.nan_to_num(a))


@pytest.mark.parametrize("name", ["round", "angle", "imag", "nan_to_num", "frexp", "modf", "sign"])
def test_a_function_that_is_constant_by_nature_takes_a_number(name):
    np.testing.assert_array_equal(getattr(tg, name)(2.5), getattr(np, name)(2.5))


def test_the_cube_root_of_a_negative_number_has_a_slope():
    np.testing.assert_allclose(gradients(elementwise.cbrt, [-8.0, 8.0])[0], [1 / 12, 1 / 12], rtol=1e-15)


def test_sinc_has_every_derivative_near_and_at_zero():
    """Against the series of sin(pi a) / (pi a), which at 0 has the derivatives (-1)^m pi^2m / (2m + 1)."""
    at_zero = [0, -(math.pi**2) / 3, 0, math.pi**4 / 5, 0]
    np.testing.assert_allclose(derivatives(trigonometry.sinc, 0.0, 5), at_zero, rtol=1e-14)

    def series(a, order):
        terms = range((order + 1) // 2, 60)
        return math.pi**order * math.fsum(
            (-1) ** m * (math.pi * a) ** (2 * m - order) / ((2 * m + 1) * math.factorial(2 * m - order))
            for m in terms
        )

    for a in (1e-9, -1e-3, 0.1, 0.6366, 0.6367, 0.96, -1.27, 1.6, 2.5, 3.7):
        for order, found in enumerate(derivatives(trigonometry.sinc, a, 5), start=1):
            assert found == pytest.approx(
                series(a, order), rel=1e-11, abs=1e-11 * math.pi**order / (order + 1)
            )


def test_unwrapping_adds_constants():
    a = np.array([0.0, 3.0, 6.5, -3.0, 0.1])
    np.testing.assert_array_equal(trigonometry.unwrap(tg.Variable(a)).value, np.unwrap(a))
    np.testing.assert_array_equal(
        trigonometry.unwrap(tg.Variable(a), period=4.0).value, np.unwrap(a, period=4.0)
    )
    np.testing.assert_array_equal(gradients(trigonometry.unwrap, a)[0], np.ones(5))


# -- errors ----------------------------------------------------------------------------------------


def test_exponents_of_two_are_whole():
    with pytest.raises(tg.DtypeError, match="ldexp: `exponent` must be integers"):
        rounding.ldexp(tg.Variable(np.ones(2)), 0.5)


def test_complex_numbers_are_refused():
    for function in (trigonometry.sinc, elementwise.imag, rounding.angle, special.digamma, special.xlogy):
        with pytest.raises(tg.DtypeError, match="[Cc]omplex"):
            function(*[np.ones(2, complex)] * (2 if function is special.xlogy else 1))


def test_orders_are_constants():
    v = tg.Variable(np.ones(2))
    with pytest.raises(tg.ArgumentError, match="polygamma: `n` must be one whole number from 0 to 170"):
        special.polygamma(v, 1)
    with pytest.raises(tg.ArgumentError, match="polygamma: `n`"):
        special.polygamma(1.5, v)
    with pytest.raises(tg.ArgumentError, match="multigammaln: `d`"):
        special.multigammaln(v, 0)
    with pytest.raises(tg.ArgumentError, match="jv: `v` must be a number"):
        special.jv(v, 1.0)
    with pytest.raises(tg.UnsupportedError, match="zeta: its derivative in `x`"):
        special.zeta(v, 1.0)


def test_without_scipy_an_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    backend.special_function.cache_clear()
    try:
        v = tg.Variable(np.full(2, 0.5))
        for function in (special.erf, special.digamma, special.i0):
            with pytest.raises(tg.UnsupportedError, match="pip install scipy"):
                function(v)
        assert np.isfinite(special.expit(v).value + special.logit(v).value + special.log_expit(v).value).all()
        assert np.isfinite(
            special.xlogy(v, v).value + special.xlog1py(v, v).value + special.entr(v).value
        ).all()
    finally:
        backend.special_function.cache_clear()


# -- SciPy -----------------------------------------------------------------------------------------

# By name: where each argument is drawn from, and constants that go before them.
SPECIAL = {
    "erf": [(-3, 3)], "erfc": [(-3, 3)], "erfcx": [(-3, 3)], "erfinv": [(-0.9, 0.9)], "erfcinv": [(0.1, 1.9)],
    "expit": [(-30, 30)], "logit": [(0.01, 0.99)], "log_expit": [(-30, 30)],
    "gammaln": [(-3.9, 5)], "gamma": [(-3.9, 5)], "rgamma": [(-3.9, 5)], "digamma": [(-3.9, 5)], "psi": [(-3.9, 5)],
    "beta": [(0.1, 5), (0.1, 5)], "betaln": [(0.1, 5), (0.1, 5)],
    "i0": [(-9, 9)], "i0e": [(-30, 30)], "i1": [(-9, 9)], "i1e": [(-30, 30)],
    "j0": [(-20, 20)], "j1": [(-20, 20)], "y0": [(0.1, 20)], "y1": [(0.1, 20)], "k0": [(0.1, 9)], "k1": [(0.1, 9)],
    "xlogy": [(-2, 2), (0.1, 2)], "xlog1py": [(-2, 2), (-0.9, 2)], "entr": [(0.01, 3)], "rel_entr": [(0.1, 2), (0.1, 2)],
    "kl_div": [(0.1, 2), (0.1, 2)], "ndtr": [(-5, 5)], "ndtri": [(0.01, 0.99)], "log_ndtr": [(-50, 10)],
    "polygamma": [0, (0.5, 5)], "polygamma ": [1, (-3.9, 5)], "polygamma  ": [3, (0.5, 5)],
    "multigammaln": [(2, 5), 3], "zeta": [3.5, (0.5, 5)], "zeta ": [2.0, (0.5, 5)],
    "gammainc": [2.5, (0.01, 9)], "gammaincc": [0.5, (0.01, 9)], "betainc": [0.5, 2.5, (0.01, 0.99)],
    "jv": [2, (-9, 9)], "jn": [3, (-9, 9)], "yv": [1.5, (0.1, 9)], "iv": [0.5, (0.1, 5)], "ive": [2, (-9, 9)], "kv": [2, (0.1, 9)],
}  # fmt: skip


def drawn(name, dtype=np.float64):
    rng = np.random.default_rng(sum(map(ord, name)))
    return [rng.uniform(*x, 40).astype(dtype) if isinstance(x, tuple) else x for x in SPECIAL[name]]


def named(module, name):
    """The function of a module and, of its arguments, the arrays' positions."""
    return getattr(module, name.strip()), [i for i, x in enumerate(SPECIAL[name]) if isinstance(x, tuple)]


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_special_functions_agree_with_scipy(name, dtype):
    scipy_special = pytest.importorskip("scipy.special")
    inputs = drawn(name, dtype)
    ours, arrays = named(special, name)
    y = ours(*[tg.Variable(x) if i in arrays else x for i, x in enumerate(inputs)])
    wide = [x.astype(np.float64) if i in arrays else x for i, x in enumerate(inputs)]
    expected = getattr(scipy_special, name.strip())(*wide)
    eps = max(np.finfo(dtype).eps, 1e-14)
    assert y.dtype == dtype
    scale = 30 * np.abs(wide[arrays[0]]) + 30  # a rounding of the arguments moves the result by that much
    assert (np.abs(y.value - expected) <= eps * scale * (np.abs(expected) + 1)).all()
    plain = ours(*inputs)
    assert type(plain) is np.ndarray
    np.testing.assert_array_equal(plain, y.value)


@pytest.mark.parametrize("name", SPECIAL)
def test_slopes_of_special_functions_are_difference_quotients(name):
    """Outside the sweep's domains, too: negative arguments, large ones."""
    pytest.importorskip("scipy.special")
    inputs = drawn(name)
    ours, arrays = named(special, name)
    leaves = [tg.Variable(x) if i in arrays else x for i, x in enumerate(inputs)]
    tape = tg.Tape()
    with tape:
        y = ours(*leaves)
    adjoints = tape.backward(y, np.ones(40))
    for i in arrays:
        h = 1e-6
        ahead, behind = (ours(*[x + s if j == i else x for j, x in enumerate(inputs)]) for s in (h, -h))
        quotient = (ahead - behind) / (2 * h)
        near_a_pole = np.abs(y.value) > 50 if "gamma" in name or name == "psi" else np.zeros(40, bool)
        np.testing.assert_allclose(
            adjoints[leaves[i]][~near_a_pole], quotient[~near_a_pole], rtol=1e-5, atol=1e-8
        )


def test_the_derivatives_of_gammaln_are_the_polygammas():
    scipy_special = pytest.importorskip("scipy.special")
    x = np.array([0.3, 1.7, 4.2])
    for n, found in enumerate(derivatives(special.gammaln, x, 4)):
        np.testing.assert_allclose(found, scipy_special.polygamma(n, x), rtol=1e-13)


def test_bessel_functions_have_every_derivative_at_zero():
    pytest.importorskip("scipy.special")
    np.testing.assert_allclose(derivatives(special.i1, 0.0, 5), [1 / 2, 0, 3 / 8, 0, 5 / 16], atol=1e-15)
    np.testing.assert_allclose(derivatives(special.j1, 0.0, 5), [1 / 2, 0, -3 / 8, 0, 5 / 16], atol=1e-15)
    np.testing.assert_allclose(derivatives(special.i0, 0.0, 4), [0, 1 / 2, 0, 3 / 8], atol=1e-15)


def test_x_log_y_is_zero_where_x_is():
    for function, y in ((special.xlogy, 0.0), (special.xlog1py, -1.0)):
        np.testing.assert_array_equal(function(np.zeros(2), np.array([y, 0.5])), 0)
        dx, dy = gradients(function, [0.0, 0.0], [y, 0.5])
        np.testing.assert_array_equal(dx, [0.0, function(1.0, 0.5)])
        np.testing.assert_array_equal(dy, [0.0, 0.0])
        u = tg.Variable(np.array([y, 0.5]))
        mixed = slope(lambda v, f=function, u=u: slope(lambda w: f(v, w))(u))
        np.testing.assert_allclose(mixed(tg.Variable(np.zeros(2)))[1].value, 1 / (0.5 - y))
        assert np.isnan(function(0.0, np.nan))
        assert function(tg.Variable(np.ones(2, np.float32)), 0.5).dtype == np.float32


def test_the_log_of_a_small_normal_probability_has_two_derivatives():
    """ln Phi(a) falls as -a²/2 - ln -a: the slope tends to -a, its slope to -1."""
    pytest.importorskip("scipy.special")
    first, second = derivatives(special.log_ndtr, np.array([-1e4, 60.0]), 2)
    np.testing.assert_allclose(first, [1e4, 0.0], rtol=1e-7)
    np.testing.assert_allclose(second, [-1.0, 0.0], rtol=1e-4)


def test_incomplete_functions_are_flat_far_out():
    pytest.importorskip("scipy.special")
    with np.errstate(divide="ignore"):  # the slopes take logarithms of 0
        for function in (special.gammainc, special.gammaincc):
            np.testing.assert_array_equal(gradients(lambda x, f=function: f(2.5, x), [0.0, 1000.0])[0], 0.0)
        np.testing.assert_array_equal(gradients(lambda x: special.betainc(2.5, 3, x), [0.0, 1.0])[0], 0.0)
    with pytest.raises(tg.UnsupportedError, match="betainc: its derivative in `b` has no closed form"):
        special.betainc(1.0, tg.Variable(2.0), 0.5)


# -- PyTorch ---------------------------------------------------------------------------------------

PYTORCH = {
    "elementwise": "reciprocal exp2 log2 log10 logaddexp logaddexp2 fmax fmin pow copysign",
    "trigonometry": "tan arcsin arccos arctan arctan2 hypot sinh cosh arcsinh arccosh arctanh sinc deg2rad rad2deg",
    "rounding": "remainder fmod nan_to_num",
    "special": "erf erfc erfcx erfinv expit logit gammaln digamma psi i0 i0e i1 i1e xlogy xlog1py entr ndtr ndtri log_ndtr",
}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in PYTORCH.items() for n in names.split()])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 3), (1,)])
def test_values_gradients_and_their_gradients_are_those_of_pytorch(module, name, shape):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.special if module == "special" else torch, name)
    ours = getattr(importlib.import_module(f"tapegrad.ops.{module}"), name)
    rng = np.random.default_rng(len(name) + len(shape))
    domains = SPECIAL.get(name) or [(1.1, 3.0) if "cosh" in name else (0.1, 0.9)] * (
        2 if name in PAIRS else 1
    )
    inputs = [rng.uniform(*d, shape[i:] if i else shape) for i, d in enumerate(domains)]
    ct, us = rng.standard_normal(shape), [rng.standard_normal(x.shape) for x in inputs]

    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    y = theirs(*tensors)
    first = torch.autograd.grad(y, tensors, torch.tensor(ct), create_graph=True)
    product = sum((g * torch.tensor(u)).sum() for g, u in zip(first, us, strict=True))
    second = (
        torch.autograd.grad(product, tensors, allow_unused=True)
        if product.requires_grad
        else [None] * len(inputs)
    )

    leaves = [tg.Variable(x) for x in inputs]
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            v = ours(*leaves)
        adjoints = inner.backward([v], [tg.Variable(ct)], record=True)
        total = tg.sum(adjoints[leaves[0]] * us[0])
        for leaf, u in zip(leaves[1:], us[1:], strict=True):
            total = total + tg.sum(adjoints[leaf] * u)
    again = outer.backward(total)

    # PyTorch's trigamma is right to 5e-10: of 1.2345678 it is 1.2181555993, by mpmath 1.2181555987.
    exact = {"rtol": 1e-11, "atol": 1e-12}
    close = {"rtol": 1e-8, "atol": 1e-9} if name in ("digamma", "psi") else exact
    np.testing.assert_allclose(v.value, y.detach().numpy(), **exact)
    for leaf, g, h in zip(leaves, first, second, strict=True):
        np.testing.assert_allclose(adjoints[leaf].value, g.detach().numpy(), **close)
        np.testing.assert_allclose(again[leaf], 0.0 if h is None else h.numpy(), rtol=1e-8, atol=1e-10)
