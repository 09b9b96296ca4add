"""Functions on functions: gradients of nests, to any order, in both modes, inside each other and inside recordings."""

import collections
import math

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nest


def close(found, expected, rtol=1e-11, atol=1e-12):
    ours, theirs = list(nest.leaves(found)), list(nest.leaves(expected))
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (path, a), (_, b) in zip(ours, theirs, strict=True):
        assert np.shape(a) == np.shape(b), path
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=path)


def differences(f, x, h=1e-6):
    """The gradient of a scalar function of one array, element by element."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        found[i] = (f(x + step) - f(x - step)) / (2 * h)
    return found


RNG = np.random.default_rng(0)
W, X, B = RNG.standard_normal((3, 4)), RNG.standard_normal(4), RNG.standard_normal(3)


def network(params, x):
    return np.sum(np.tanh(params["w"] @ x + params["b"]) ** 2)


PARAMS = {"w": W, "b": B}


# -- reverse mode ------------------------------------------------------------------------------------


def test_a_gradient_has_the_form_of_its_argument():
    g = tg.grad(network)(PARAMS, X)
    assert list(g) == ["w", "b"] and isinstance(g["w"], np.ndarray)
    np.testing.assert_allclose(g["w"], differences(lambda w: network({"w": w, "b": B}, X), W), rtol=1e-7)
    np.testing.assert_allclose(g["b"], differences(lambda b: network({"w": W, "b": b}, X), B), rtol=1e-7)


def test_argnums_chooses_the_arguments():
    both = tg.grad(network, (0, 1))(PARAMS, X)
    assert isinstance(both, tuple)
    close(both[0], tg.grad(network)(PARAMS, X))
    close(both[1], tg.grad(network, 1)(PARAMS, X))
    close(both[1], tg.grad(network, -1)(PARAMS, X))


Pair = collections.namedtuple("Pair", "left right")


def test_nests_of_every_kind():
    argument = [Pair(np.float64(2.0), {"k": (np.arange(3.0), None)}), ()]
    g = tg.grad(lambda n: n[0].left ** 2 * tg.sum(n[0].right["k"][0] ** 3))(argument)
    assert isinstance(g, list) and isinstance(g[0], Pair) and g[1] == () and g[0].right["k"][1] is None
    close(g[0].left, np.asarray(4.0 * 9.0))
    close(g[0].right["k"][0], 12.0 * np.arange(3.0) ** 2)


def test_value_and_gradient_and_what_else_is_handed_back():
    value, g = tg.value_and_grad(network)(PARAMS, X)
    assert float(value) == network(PARAMS, X)
    (value, aux), g2 = tg.value_and_grad(lambda p, x: (network(p, x), {"x": x, "n": 3}), has_aux=True)(
        PARAMS, X
    )
    assert aux["n"] == 3 and aux["x"] is X
    close(g2, g)
    g3, aux = tg.grad(lambda p, x: (network(p, x), "said"), has_aux=True)(PARAMS, X)
    assert aux == "said"
    close(g3, g)


def test_a_pullback_may_be_called_again_and_takes_nests():
    y, pull = tg.vjp(lambda w, x: {"y": w @ x, "n": tg.sum(x**2)}, W, X)
    close(y, {"y": W @ X, "n": np.asarray(np.sum(X**2))})
    for k in (1.0, 2.0):
        w_ct, x_ct = pull({"y": k * B, "n": k})
        close(w_ct, k * np.outer(B, X))
        close(x_ct, k * (W.T @ B + 2 * X))


def test_what_an_argument_does_not_reach_is_zero():
    close(tg.grad(lambda a, b: tg.sum(a), 1)(X, W), np.zeros_like(W))
    close(tg.grad(lambda a: np.float64(3.0))(X), np.zeros_like(X))
    close(tg.jvp(lambda a: np.ones(2), (X,), (X,))[1], np.zeros(2))


@pytest.mark.parametrize("f", [lambda x: float(tg.sum(x)), lambda x: tg.sum(x).value * 2])
def test_a_number_that_has_left_the_tape_is_no_silent_zero(f):
    with pytest.warns(tg.GradientStopsWarning, match="returned a plain number"):
        g = tg.grad(f)(X)
    close(g, np.zeros_like(X))


def test_gradients_come_in_the_dtype_of_their_argument():
    x = X.astype(np.float32)
    for f in (tg.grad(lambda a: tg.sum(a**2)), tg.hessian(lambda a: tg.sum(a**3))):
        assert f(x).dtype == np.float32
    assert tg.jvp(lambda a: a * 2, (x,), (X,))[1].dtype == np.float32


def test_transforms_never_write_a_grad():
    w = tg.Parameter(W)
    tg.grad(lambda x: tg.sum(np.tanh(w @ x)))(X)
    g = tg.grad(lambda v: tg.sum(np.tanh(v @ X)))(w)
    assert w.grad is None and isinstance(g, np.ndarray)


# -- forward mode ------------------------------------------------------------------------------------


def test_a_pushforward_is_the_derivative_along_its_tangent():
    f = lambda w, x: (np.tanh(w @ x), tg.logsumexp(x))
    tangents = RNG.standard_normal((3, 4)), RNG.standard_normal(4)
    y, t = tg.jvp(f, (W, X), tangents)
    h = 1e-6
    ahead, behind = (f(W + s * tangents[0], X + s * tangents[1]) for s in (h, -h))
    close(y, f(W, X))
    close(t, tuple((a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)), rtol=1e-7, atol=1e-8)
    y, push = tg.linearize(f, W, X)
    close(push(*tangents), t)
    close(push(*(2 * t for t in tangents)), tuple(2 * p for p in t))


@pytest.mark.parametrize("mode", ["forward", "reverse", None])
def test_a_jacobian_is_the_same_in_both_modes(mode):
    f = lambda p: {"h": np.tanh(p["w"] @ X + p["b"]), "s": tg.sum(p["b"] ** 2)}
    j = tg.jacobian(f, mode=mode)(PARAMS)
    slope = 1 - np.tanh(W @ X + B) ** 2
    close(j["h"]["b"], np.diag(slope))
    close(j["h"]["w"], np.einsum("i,ij,k->ijk", slope, np.eye(3), X))
    close(j["s"], {"w": np.zeros((3, 4)), "b": 2 * B})


def test_a_hessian_and_its_products():
    f = lambda x: tg.sum(x**3) * x[0]
    x = np.array([1.0, 2.0, -1.0])
    expected = np.diag(6 * x * x[0])
    expected[0, :] += 3 * x**2
    expected[:, 0] += 3 * x**2
    close(tg.hessian(f)(x), expected)
    v = np.array([0.5, -1.0, 2.0])
    close(tg.hvp(f, (x,), (v,)), (expected @ v,))
    close(tg.grad(lambda x: tg.sum(tg.grad(f)(x) * v))(x), expected @ v)


def test_hessians_of_several_arguments_are_nests_of_blocks():
    h = tg.hessian(lambda a, b: tg.sum(a * b**2), (0, 1))(X, X + 1)
    close(h, ((np.zeros((4, 4)), np.diag(2 * (X + 1))), (np.diag(2 * (X + 1)), np.diag(2 * X))))


# -- inside each other -------------------------------------------------------------------------------


def test_any_order():
    f, expected = tg.sin, [math.sin, math.cos, lambda x: -math.sin(x), lambda x: -math.cos(x)]
    for order in range(1, 6):
        f = tg.grad(f)
        assert abs(float(f(0.7)) - expected[order % 4](0.7)) < 1e-14


D = {
    "reverse": tg.grad,
    "forward": lambda f: lambda x: tg.jvp(f, (x,), (1.0,))[1],
    "jacobian": tg.jacobian,
}


@pytest.mark.parametrize("outer", D)
@pytest.mark.parametrize("inner", D)
def test_perturbations_are_not_confused(outer, inner):
    """d/dx [x · d/dy (x y)] at y = x is 2x (Siskind and Pearlmutter 2005, "Perturbation confusion and referential
    transparency": there d/dx [x · d/dy (x + y)] at x = 1, which is 1; confused, 2)."""
    outer, inner = D[outer], D[inner]
    assert float(outer(lambda x: x * inner(lambda y: x + y)(1.0))(1.0)) == 1.0
    assert float(outer(lambda x: x * inner(lambda y: x * y)(x))(3.0)) == 6.0
    # the inner derivative at a point that moves: d/dx [d/dy (x y²) at y = x] = d/dx 2x² = 4x
    assert float(outer(lambda x: inner(lambda y: x * y * y)(x))(3.0)) == 12.0


@pytest.mark.parametrize("mode", D)
def test_a_derivative_through_a_shift_taken_twice_is_the_second(mode):
    """Manzyuk et al. 2019, "Confusion of tagged perturbations in forward AD of higher-order functions": the shift
    s(u)(f)(x) = f(x + u) differentiated at u = 0 is a derivative operator; applied twice it must give f''."""
    shift = lambda f: lambda x: D[mode](lambda u: f(x + u))(0.0)
    assert abs(float(shift(shift(tg.exp))(1.0)) - math.e) < 1e-14
    assert abs(float(shift(shift(lambda x: x**3))(2.0)) - 12.0) < 1e-12


def test_a_pushforward_of_a_pullback_and_the_other_way_round():
    f = lambda x: tg.sum(np.tanh(W @ x) * B)
    v = RNG.standard_normal(4)
    h = tg.hessian(f)(X)
    forward_over_reverse = tg.jvp(lambda x: tg.vjp(f, x)[1](1.0)[0], (X,), (v,))[1]
    reverse_over_forward = tg.vjp(lambda x: tg.jvp(f, (x,), (v,))[1], X)[1](1.0)[0]
    forward_over_forward = tg.jacobian(lambda x: tg.jvp(f, (x,), (v,))[1], mode="forward")(X)
    for found in (forward_over_reverse, reverse_over_forward, forward_over_forward):
        close(found, h @ v)


def test_the_gradient_of_a_function_that_takes_gradient_steps():
    """d loss(w - r loss'(w)) / dw, as in learning to learn."""
    loss = lambda w: tg.sum((W @ w - B) ** 2)
    step = lambda w: w - 0.1 * tg.grad(loss)(w)
    g = tg.grad(lambda w: loss(step(step(w))))(X)
    np.testing.assert_allclose(g, differences(lambda w: float(loss(step(step(w)))), X), rtol=1e-6)


def test_a_loop_and_a_branch_inside():
    def f(x):
        for _ in range(3):
            x = tg.sin(x) if x > 0.5 else x * x
        return x

    for x in (0.2, 0.8, 1.4):
        second = tg.grad(tg.grad(f))(x)
        h = 1e-5
        assert abs(second - (tg.grad(f)(x + h) - tg.grad(f)(x - h)) / (2 * h)) < 1e-8


@pytest.mark.parametrize("cell", [tg.lstm_step, None])
def test_fused_ops_and_ops_with_several_outputs_nest(cell):
    n = 3
    x, h, c = (RNG.standard_normal((2, n)) for _ in range(3))
    w, u, b = RNG.standard_normal((n, 4 * n)), RNG.standard_normal((n, 4 * n)), RNG.standard_normal(4 * n)

    def step(w):
        if cell is None:
            first, second = tg.split(x @ w, 2, axis=1)
            return tg.sum(first * tg.tanh(second))
        out, state = cell(x, h, c, w, u, b)[:2]
        return tg.sum(out * state)

    v = RNG.standard_normal(w.shape)
    product = tg.hvp(step, (w,), (v,))[0]
    k = 1e-5
    close(product, (tg.grad(step)(w + k * v) - tg.grad(step)(w - k * v)) / (2 * k), rtol=1e-6, atol=1e-7)


# -- inside recordings -------------------------------------------------------------------------------


def test_a_tape_around_records_a_transform():
    w = tg.Variable(X)
    with tg.Tape() as tape:
        value, g = tg.value_and_grad(lambda x: tg.sum(x**3))(w)
        penalty = tg.sum(g**2) + value
    tape.backward(penalty)
    close(w.grad, 36 * X**3 + 3 * X**2)


def test_a_gradient_penalty_in_a_window():
    w = tg.Parameter(np.array([0.5, -0.3]))

    def run(compile):
        tape, state, found = tg.CapacitorTape(3, compile=compile), np.zeros(2), []
        for k in range(8):
            with tape:
                state = tg.tanh(state * w + 0.1 * k)
                slope = tg.grad(lambda s: tg.sum(tg.tanh(s * w)))(state)
                loss = tg.sum(slope**2) + tg.sum(state)
            found.append(tape.backward(loss).gradients[w])
        return found

    close(run(True), run(False))
    last, _state = run(False)[2], None  # the window still holds everything

    def whole(w):
        state = np.zeros(2)
        for k in range(3):
            state = tg.tanh(state * w + 0.1 * k)
        slope = w * (1 - tg.tanh(state * w) ** 2)
        return tg.sum(slope**2) + tg.sum(state)

    close(last, tg.grad(whole)(w.value))


def test_what_a_transform_was_given_outside_is_a_constant_to_a_later_tape():
    _y, pull = tg.vjp(lambda x: tg.sum(x**2), X)
    with tg.Tape() as tape:
        z = tg.sum(pull(1.0)[0] * tg.Variable(X))
    assert np.isfinite(z.item()) and len(tape) > 0


def test_the_steps_of_a_transform_stay_on_its_own_tape():
    with tg.Tape() as tape:
        tg.grad(lambda x: tg.sum(x**2))(X)
    length = len(tape)
    _y, pull = tg.vjp(lambda x: tg.sum(x**2), X)
    before = [len(pull(1.0)) for _ in range(3)]
    assert before == [1, 1, 1] and len(tape) == length


# -- misuse ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tg.grad(3), tg.ArgumentError, "grad: `f` must be a function, and int 3 came."),
        (lambda: tg.grad(lambda x: x)(X), tg.ArgumentError, "must return a scalar, and float64 (4,) came"),
        (lambda: tg.grad(lambda x: (x, x))(1.0), tg.ArgumentError, "must return a scalar"),
        (lambda: tg.grad(tg.sum)(np.arange(3)), tg.DtypeError, "argument 0 must be real floating point, and int64 (3,) came"),
        (lambda: tg.vjp(tg.sum, 1), tg.DtypeError, "int 1 came.\n  Close over this one: lambda x: f(x, labels)."),
        (lambda: tg.grad(lambda d: 0.0)({"a": [1]}), tg.DtypeError, "argument 0['a'][0] must be"),
        (lambda: tg.grad(tg.sum, 1)(X), tg.ArgumentError, "`argnums` must name positional arguments, of which 1 were given"),
        (lambda: tg.grad(tg.sum, (0, 0))(X), tg.ArgumentError, "names an argument twice"),
        (lambda: tg.grad(tg.sum, has_aux=True)(X), tg.ArgumentError, "must return (scalar, anything)"),
        (lambda: tg.jvp(tg.sum, X, X), tg.ArgumentError, "`primals` must be a tuple with an entry for each argument"),
        (lambda: tg.jvp(tg.sum, (X,), (W,)), tg.ShapeError, "the tangent must have the shape"),
        (lambda: tg.jvp(tg.sum, (X,), ((X, X),)), tg.ArgumentError, "tangents must be nested like"),
        (lambda: tg.vjp(tg.tanh, X)[1](1.0), tg.ShapeError, "the cotangent must have the shape"),
        (lambda: tg.vjp(tg.tanh, X)[1]("no"), tg.DtypeError, "cotangent must be an array of real numbers"),
        (lambda: tg.vjp(lambda x: [x], X)[1](X), tg.ArgumentError, "the cotangent must be nested like"),
        (lambda: tg.jacobian(tg.tanh, mode="sideways"), tg.ArgumentError, '`mode` must be "reverse"'),
        (lambda: tg.grad(tg.sum)(np.ones(2, complex)), tg.DtypeError, "must be real floating point"),
    ],
)  # fmt: skip
def test_misuse_is_an_error_that_says_what_came(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_a_function_that_raises_leaves_nothing_behind():
    def bad(x):
        tg.sum(x)
        raise KeyError("mine")

    for transform in (tg.grad(bad), tg.jacobian(bad), tg.hessian(bad)):
        with pytest.raises(KeyError):
            transform(X)
    with tg.Tape() as tape:
        y = tg.sum(tg.Variable(X) ** 2)
    assert len(tape) == 2 and y.item() > 0


# -- what comes in and what goes out -------------------------------------------------------------------


def test_a_nest_may_be_a_dict_of_any_kind_and_in_any_order():
    given = collections.defaultdict(list, {"a": X, "b": X + 1})
    g = tg.grad(lambda d: tg.sum(d["a"] * d["b"]))(given)
    assert isinstance(g, collections.defaultdict) and g.default_factory is list
    close(g["a"], X + 1)
    _, aux = tg.grad(lambda x: (tg.sum(x), collections.Counter("aab")), has_aux=True)(X)
    assert aux == collections.Counter("aab")
    _, pull = tg.vjp(lambda x: {"a": x, "b": 2 * x}, X)
    close(pull({"b": X, "a": B[0] * X})[0], B[0] * X + 2 * X)
    with pytest.raises(tg.ArgumentError, match=r"nested like what it belongs to; at \['b'\] they part"):
        pull({"a": X, "c": X})


def test_what_comes_out_is_the_callers_own():
    t, square = tg.Variable(X), np.ones((2, 2))
    _, found = tg.jvp(lambda x: x, (X,), (t,))
    found[0] = 7.0
    assert t.value[0] == X[0]
    _, (first, second) = tg.jvp(lambda x: (x, x.T), (square,), (square,))
    first[0, 1] = 7.0
    assert second[1, 0] == 1.0
    _, found = tg.jvp(lambda x: x + np.zeros((2, 4)), (X,), (X,))
    found[0, 0] = 7.0  # not the read-only array that was broadcast
    assert found[1, 0] == X[0]
    x = X.copy()
    y, pull = tg.vjp(lambda x: x**2, x)
    x[:] = 0.0
    close(pull(np.ones(4))[0], 2 * X)
    close(y, X**2)


def test_a_tangent_has_the_dtype_of_its_value():
    narrow = X.astype(np.float32)
    y, t = tg.jvp(lambda x: x + np.zeros(4), (narrow,), (X,))
    assert y.dtype == t.dtype == np.float64
    with tg.Tape():
        y, t = tg.jvp(lambda x: x + np.zeros(4), (narrow,), (X,))
    assert y.dtype == t.dtype == np.float64
