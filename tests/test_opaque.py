"""Functions that are recorded as one op: the gradient is the same, what is kept is not."""

import threading

import numpy as np
import pytest

import tapegrad as tg

RNG = np.random.default_rng(0)
W0, X0 = RNG.standard_normal((3, 3)) * 0.7, RNG.standard_normal(3)


@pytest.fixture
def w():
    return tg.Parameter(W0, name="w")


def block_of(w):
    return lambda x: np.tanh(x @ w) * x + np.sin(x)


def swept(f, w):
    x = tg.Variable(X0)
    with tg.Tape() as tape:
        z = x * 2.0
        loss = tg.sum(f(f(z) + z) ** 2)
    nbytes = tape.nbytes
    w.grad = None
    tape.backward(loss)
    return w.grad, x.grad, nbytes


def test_a_checkpointed_function_has_the_same_gradient_and_keeps_less(w):
    plain, checkpointed = (swept(f, w) for f in (block_of(w), tg.checkpoint(block_of(w))))
    for a, b in zip(plain[:2], checkpointed[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)
    assert checkpointed[2] < plain[2]


def test_memory_of_a_long_loop_falls_to_its_checkpoints():
    def steps(x):
        for _ in range(50):
            x = tg.tanh(x) * 1.1
        return x

    def nbytes(f):
        x = tg.Variable(np.ones(1000))
        with tg.Tape() as tape:
            tg.sum(f(f(x)))
        return tape.nbytes

    assert nbytes(tg.checkpoint(steps)) * 20 < nbytes(steps)


def test_it_is_run_again_once_for_each_sweep(w):
    runs = []

    def f(x):
        runs.append(1)
        return block_of(w)(x)

    with tg.Tape() as tape:
        loss = tg.sum(tg.checkpoint(f)(tg.Variable(X0)))
    assert len(runs) == 1
    tape.backward(loss)
    assert len(runs) == 2


def test_values_read_from_outside_get_their_gradient(w):
    def loss(cp):
        x = tg.Variable(X0)
        with tg.Tape() as tape:
            z = x * 2.0
            f = cp(lambda y: (tg.sum(np.sin(z * y) @ w), z))
            (one, same), (two, _) = f(z * z), f(z)
            total = one + two + tg.sum(same)
        w.grad = None
        tape.backward(total)
        return x.grad, w.grad

    for a, b in zip(loss(lambda f: f), loss(tg.checkpoint), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


def test_it_is_run_again_with_the_weights_that_it_had(w):
    with tg.Tape() as tape:
        loss = tg.sum(tg.checkpoint(block_of(w))(tg.Variable(X0)))
    w.value = w.value * 3
    tape.backward(loss)
    np.testing.assert_array_equal(w.value, W0 * 3)
    found, w.grad, w.value = w.grad, None, W0
    with tg.Tape() as tape:
        loss = tg.sum(block_of(w)(tg.Variable(X0)))
    tape.backward(loss)
    np.testing.assert_allclose(found, w.grad, rtol=1e-13)


def test_nests_constants_and_keywords():
    def f(pair, n, *, scale, name="x"):
        assert name == "y"
        return {"y": pair[0] * n * scale, "c": np.arange(3), "n": n}

    a, s = tg.Variable(X0), tg.Variable(2.0)
    with tg.Tape() as tape:
        out = tg.checkpoint(f)((a, None), 3, scale=s, name="y")
        loss = tg.sum(out["y"])
    assert out["n"] == 3 and isinstance(out["c"], np.ndarray)
    tape.backward(loss)
    np.testing.assert_allclose(a.grad, 6.0)
    np.testing.assert_allclose(s.grad, 3 * np.sum(X0))


def test_outside_a_recording_it_is_the_function(w):
    assert isinstance(tg.checkpoint(np.tanh)(X0), np.ndarray)
    assert isinstance(tg.checkpoint(block_of(w))(tg.Variable(X0)), tg.Variable)


def test_a_checkpoint_in_a_checkpoint_and_to_any_order(w):
    block = block_of(w)
    plain = lambda x: tg.sum(block(block(x)) ** 2)
    nested = tg.checkpoint(lambda x: tg.sum(tg.checkpoint(block)(tg.checkpoint(block)(x)) ** 2))
    v = RNG.standard_normal(3)
    for transform in (
        tg.grad,
        tg.hessian,
        lambda f: lambda x: tg.jvp(f, (x,), (v,))[1],
        lambda f: lambda x: tg.hvp(f, (x,), (v,))[0],
        lambda f: tg.grad(lambda x: tg.sum(tg.grad(f)(x) ** 3)),
    ):
        np.testing.assert_allclose(transform(plain)(X0), transform(nested)(X0), rtol=1e-10)


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
@pytest.mark.parametrize("schedule", [tg.Sliding(4), tg.Chunked(4)])
def test_in_a_capacitor_it_keeps_less_and_gives_the_same(weights, schedule):
    def run(cp):
        w = tg.Parameter(W0 * 0.5)
        tape, state, found, nbytes = tg.CapacitorTape(schedule, weights=weights), np.zeros(3), [], 0
        for k in range(11):
            with tape:
                state = cp(lambda h, x: np.tanh(np.tanh(np.tanh(h @ w) * 2.0) + x))(
                    state, np.full(3, 0.1 * k)
                )
                loss = tg.sum(state**2)
            nbytes = max(nbytes, tape.nbytes)
            sweep = tape.backward(loss)
            if sweep:
                found.append(sweep.gradients[w])
                # run again under "current", even the activations are today's: equal where the weights stand still
                w.value = w.value - (0.0 if weights == "current" else 0.05) * found[-1]
        return found, nbytes

    (plain, more), (found, less) = run(lambda f: f), run(tg.checkpoint)
    np.testing.assert_allclose(found, plain, rtol=1e-11)
    assert less < more or weights == "replay"  # which keeps no activations anyway


def test_under_replay_and_in_a_check_values_from_outside_are_those_of_the_rerun():
    def step(h, cp, w):
        z, ys = np.tanh(h @ w), [h * 2.0, h]
        inner = cp(lambda x: x * z + tg.sum(tg.stack(ys) ** 2, 0))
        return np.sin(cp(lambda x: inner(x) @ w)(h) * 0.1)

    def run(cp):
        w, tape, h, found = tg.Parameter(W0), tg.CapacitorTape(3, weights="replay"), np.ones(3), []
        for _ in range(6):
            with tape:
                h = step(h, cp, w)
                loss = tg.sum(h)
            found.append(tape.backward(loss).gradients[w])
            w.value = w.value - 0.1 * found[-1]
        return found

    np.testing.assert_allclose(run(tg.checkpoint), run(lambda f: f), rtol=1e-11)

    def f(x):
        z = np.tanh(x)
        return tg.sum(tg.checkpoint(lambda y: y * z)(x * 2.0))

    tg.check_gradients(f, X0, order=2)


def test_a_function_that_binds_a_loops_variable_late_is_an_error(w):
    tape, h, z = tg.CapacitorTape(3), np.ones(3), np.ones(3)
    f = tg.checkpoint(lambda h: np.tanh(h @ w) * z)
    with pytest.raises(tg.RecordingError) as caught:
        for _ in range(2):
            with tape:
                z = np.sin(h @ w)
                h = f(h)
                loss = tg.sum(h)
            tape.backward(loss)
    assert str(caught.value) == (
        "checkpoint: run again, the function read a Variable that it did not read before: float64 (3,).\n"
        "  A function that is made in a loop sees the newest value of the loop's variables: pass them as arguments."
    )


def test_a_function_that_changes_its_mind_is_an_error():
    sizes = iter([3, 2])
    f = tg.checkpoint(lambda x: x[: next(sizes)])
    with tg.Tape() as tape:
        loss = tg.sum(f(tg.Variable(X0)))
    with pytest.raises(tg.ShapeError, match="run again, the function returned other shapes than before"):
        tape.backward(loss)


def test_what_a_function_differentiates_inside_is_not_read_from_outside():
    """Its leaves are made anew each time: "replay" may run it again, and custom_vjp has nothing to refuse."""
    cube = tg.grad(lambda x: tg.sum(x**3))
    w, tape, h = tg.Parameter(X0), tg.CapacitorTape(3, weights="replay"), np.ones(3)
    f = tg.checkpoint(lambda h: (h * w * cube(X0), cube(h)))
    for k in range(1, 4):
        with tape:
            h, _slope = f(h)
            loss = tg.sum(h)
        found = tape.backward(loss).gradients[w]
        np.testing.assert_allclose(found, k * X0 ** (k - 1) * (3 * X0**2) ** k)
    tg.check_gradients(lambda x: tg.sum(tg.checkpoint(lambda x: cube(x))(x) * w), X0)
    g = tg.custom_vjp(cube)
    g.defvjp(lambda x: (cube(x), x), lambda x, ct: (6 * x * ct,))
    np.testing.assert_allclose(tg.grad(lambda x: tg.sum(g(x)))(X0), 6 * X0)


def test_a_parameter_made_at_the_first_call_gets_its_gradient():
    made = {}

    def f(x):
        if not made:
            made["w"] = tg.Parameter(W0)
        return x @ made["w"]

    with tg.Tape() as tape:
        loss = tg.sum(tg.checkpoint(f)(tg.Variable(X0)))
    tape.backward(loss)
    np.testing.assert_allclose(made["w"].grad, np.outer(X0, np.ones(3)))


def test_arguments_may_be_written_to_after_the_call():
    index, mask, x = np.array([0, 1, 2]), {"m": np.array([True, False, True])}, X0.copy()
    v = tg.Variable(X0)
    product = tg.custom_vjp(lambda a, b: a * b)
    product.defvjp(lambda a, b: (a * b, (a, b)), lambda ab, ct: (ct * ab[1], ct * ab[0]))
    with tg.Tape() as tape:
        chosen = tg.checkpoint(lambda v, i, d, x: np.where(d["m"], v[i] * x, 0.0))(v, index, mask, x)
        loss = tg.sum(chosen) + tg.sum(product(v, x))
    index[:], mask["m"][:], x[:] = 0, False, 0.0
    tape.backward(loss)
    np.testing.assert_allclose(v.grad, X0 * [2.0, 1.0, 2.0])


def test_a_call_leaves_nothing_else_on_the_tape(w):
    with tg.Tape() as tape:
        tg.checkpoint(block_of(w))(tg.Variable(X0))
    assert len(tape) == 2  # the call and its one output


def test_a_weight_that_another_thread_assigns_during_a_sweep_stays_assigned(w):
    def f(x):
        if runs:
            thread = threading.Thread(target=lambda: setattr(w, "value", W0 * 2))
            thread.start()
            thread.join()
        runs.append(1)
        return x @ w

    runs = []
    with tg.Tape() as tape:
        loss = tg.sum(tg.checkpoint(f)(tg.Variable(X0)))
    tape.backward(loss)
    np.testing.assert_array_equal(w.value, W0 * 2)


# -- a pullback of one's own -------------------------------------------------------------------------


def declared():
    @tg.custom_vjp
    def log1p_exp(x):
        return tg.log(1 + tg.exp(x))

    def forward(x):
        e = tg.exp(x)
        return tg.log(1 + e), e

    log1p_exp.defvjp(forward, lambda e, ct: (ct * (1 - 1 / (1 + e)),))
    return log1p_exp


def test_the_pullback_given_is_the_one_used_to_any_order():
    f, plain = declared(), lambda x: tg.log(1 + tg.exp(x))
    for x in (0.3, -2.0):
        d, e = f, plain
        for _ in range(3):
            d, e = tg.grad(d), tg.grad(e)
            np.testing.assert_allclose(d(x), e(x), rtol=1e-11)
    assert tg.grad(f)(100.0) == 1.0  # where the rules of the ops give inf / inf
    with np.errstate(all="ignore"):
        assert np.isnan(tg.grad(plain)(1000.0))


def test_a_rule_that_is_wrong_on_purpose_is_followed():
    f = tg.custom_vjp(lambda x, n: x * n)
    f.defvjp(lambda x, n: (x * n, None), lambda _, ct: (tg.clip(ct, -1.0, 1.0), None))  # clips what passes
    x = tg.Variable(X0)
    with tg.Tape() as tape:
        loss = tg.sum(f(x, 3) * 5.0)
    tape.backward(loss)
    np.testing.assert_array_equal(x.grad, np.ones(3))


def test_nests_in_and_out():
    f = tg.custom_vjp(lambda d: (d["a"] * d["b"], d["a"]))
    f.defvjp(
        lambda d: ((d["a"] * d["b"], d["a"]), d),
        lambda d, cts: ({"a": cts[0] * d["b"] + cts[1], "b": cts[0] * d["a"]},),
    )
    a, b = X0, X0 + 1
    g = tg.grad(lambda d: tg.sum(f(d)[0]) + tg.sum(f(d)[1] ** 2))({"a": a, "b": b})
    np.testing.assert_allclose(g["a"], b + 2 * a)
    np.testing.assert_allclose(g["b"], a)


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
def test_a_pullback_of_ones_own_in_a_capacitor(weights):
    f = declared()

    def run(g):
        w, tape, state, found = tg.Parameter(W0), tg.CapacitorTape(3, weights=weights), np.zeros(3), []
        for _ in range(7):
            with tape:
                state = g(state @ w) - 1.0
                loss = tg.sum(state**2)
            found.append(tape.backward(loss).gradients[w])
        return found

    np.testing.assert_allclose(run(f), run(lambda x: tg.log(1 + tg.exp(x))), rtol=1e-11)


@pytest.mark.parametrize(
    ("backward", "error", "message"),
    [
        (lambda r, ct: ct, tg.ArgumentError, "must return a tuple of 1 cotangents"),
        (lambda r, ct: (ct, ct), tg.ArgumentError, "must return a tuple of 1 cotangents"),
        (lambda r, ct: (tg.sum(ct),), tg.ShapeError, "a cotangent of another shape than argument 0"),
        (
            lambda r, ct: (ct.value * 1j,),
            tg.DtypeError,
            "a cotangent of argument 0 that is not real: complex128 (3,)",
        ),
    ],
)
def test_a_pullback_that_returns_nonsense_is_an_error(backward, error, message):
    f = tg.custom_vjp(np.tanh)
    f.defvjp(lambda x: (np.tanh(x), None), backward)
    with pytest.raises(error) as caught:
        tg.grad(lambda x: tg.sum(f(x)))(X0)
    assert message in str(caught.value)


def test_misuse_of_custom_vjp():
    f = tg.custom_vjp(np.tanh)
    with pytest.raises(tg.ArgumentError, match="has no pullback yet"):
        f(X0)
    f.defvjp(lambda x: np.tanh(x), lambda r, ct: (ct,))
    with pytest.raises(tg.ArgumentError, match=r"must return \(value, residuals\)"):
        tg.grad(lambda x: tg.sum(f(x)))(X0)
    w = tg.Variable(X0)
    f.defvjp(lambda x: (x * w, None), lambda r, ct: (ct,))
    with pytest.raises(tg.ArgumentError, match="reads a Variable that is no argument of it"):
        tg.grad(lambda x: tg.sum(f(x)))(X0)
    with pytest.raises(tg.ArgumentError, match="custom_vjp: `f` must be a function"):
        tg.custom_vjp(3)
