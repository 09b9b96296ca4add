"""Backpropagation through time as section 8.3 of Dive into Deep Learning teaches it, formula by formula.

What is expected comes from the lecture's formulas, written out in NumPy; the tape gets the same numbers.
Dicts are indexed by the lecture's t, which starts at 1. Source: Zhang et al. 2020.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import tapegrad as tg


def assert_close(ours, formula, tolerance=1e-10):
    """The largest difference is at most `tolerance` of the formula's largest element."""
    ours, formula = np.asarray(ours), np.asarray(formula)
    assert ours.shape == formula.shape
    assert ours.dtype == np.float64
    assert np.isfinite(formula).all()
    difference, scale = np.max(np.abs(ours - formula)), np.max(np.abs(formula))
    assert difference <= tolerance * scale, f"differs by {difference:.3g} of {scale:.3g}\n{ours}\n{formula}"


# -- the linear RNN --------------------------------------------------------------------------------


def draw(steps, *, n_x=3, n_h=4, n_q=2):
    """The weights, the state before the first step, the inputs and the targets of a linear RNN."""
    rng = np.random.default_rng(steps)
    return SimpleNamespace(
        T=steps,
        w_hx=rng.normal(size=(n_h, n_x)),
        w_hh=rng.normal(size=(n_h, n_h)) / 2,
        w_qh=rng.normal(size=(n_q, n_h)),
        h_0=rng.normal(size=n_h),
        x={t: rng.normal(size=n_x) for t in range(1, steps + 1)},
        y={t: rng.normal(size=n_q) for t in range(1, steps + 1)},
    )


def forward_by_the_lecture(p):
    """h_t = W_hx x_t + W_hh h_{t-1}, o_t = W_qh h_t, and dL/do_t of the squared error l = sum (o - y)²."""
    h, o = {0: p.h_0}, {}
    for t in range(1, p.T + 1):
        h[t] = p.w_hx @ p.x[t] + p.w_hh @ h[t - 1]
        o[t] = p.w_qh @ h[t]
    loss = sum(np.sum((o[t] - p.y[t]) ** 2) for t in o) / p.T
    return SimpleNamespace(h=h, o=o, L=loss, dL_do={t: 2 * (o[t] - p.y[t]) / p.T for t in o})


def by_the_lecture(p):
    """The forward pass, and the adjoints of the states by the recursion from t = T down."""
    e = forward_by_the_lecture(p)
    e.dL_dh = {p.T: p.w_qh.T @ e.dL_do[p.T]}
    for t in range(p.T - 1, 0, -1):
        e.dL_dh[t] = p.w_hh.T @ e.dL_dh[t + 1] + p.w_qh.T @ e.dL_do[t]
    return e


def by_tape(p):
    """The same forward pass on a tape, and one sweep from L that keeps the adjoints of every h_t and o_t."""
    m = SimpleNamespace(**{name: tg.Variable(getattr(p, name)) for name in ("w_hx", "w_hh", "w_qh", "h_0")})
    m.h, m.o, m.L = {0: m.h_0}, {}, 0.0
    tape = tg.Tape()
    with tape:
        for t in range(1, p.T + 1):
            m.h[t] = m.w_hx @ p.x[t] + m.w_hh @ m.h[t - 1]
            m.o[t] = m.w_qh @ m.h[t]
            m.L += tg.sum((m.o[t] - p.y[t]) ** 2)
        m.L = m.L / p.T
    m.tape, m.adjoints = tape, tape.backward(m.L, keep=[*m.h.values(), *m.o.values()])
    return m


@pytest.fixture(scope="module", params=[1, 2, 7, 20], ids="T={}".format)
def rnn(request):
    """(the numbers drawn, what the lecture says, what the tape says)."""
    p = draw(request.param)
    return p, by_the_lecture(p), by_tape(p)


def test_the_forward_pass_is_the_lecture_s(rnn):
    p, lecture, tape = rnn
    for t in range(1, p.T + 1):
        assert_close(tape.h[t].value, lecture.h[t])
        assert_close(tape.o[t].value, lecture.o[t])
    assert_close(tape.L.value, lecture.L)


def test_the_adjoint_of_an_output_is_the_loss_s_derivative_over_T(rnn):
    p, lecture, tape = rnn
    for t in range(1, p.T + 1):
        assert_close(tape.adjoints[tape.o[t]], lecture.dL_do[t])


def test_the_gradient_of_w_qh_sums_outer_products_of_output_adjoints_and_states(rnn):
    p, lecture, tape = rnn
    assert_close(tape.w_qh.grad, sum(np.outer(lecture.dL_do[t], lecture.h[t]) for t in range(1, p.T + 1)))


def test_the_last_state_is_reached_through_its_output_only(rnn):
    p, lecture, tape = rnn
    assert_close(tape.adjoints[tape.h[p.T]], p.w_qh.T @ lecture.dL_do[p.T])


def test_the_adjoints_of_the_states_obey_the_recursion(rnn):
    p, lecture, tape = rnn
    for t in range(1, p.T + 1):
        assert_close(tape.adjoints[tape.h[t]], lecture.dL_dh[t])


def test_the_adjoint_of_a_state_expands_into_powers_of_w_hh(rnn):
    p, lecture, tape = rnn
    T, power = p.T, np.linalg.matrix_power
    for t in range(1, T + 1):
        expansion = sum(power(p.w_hh.T, T - i) @ p.w_qh.T @ lecture.dL_do[T + t - i] for i in range(t, T + 1))
        assert_close(tape.adjoints[tape.h[t]], expansion)


def test_the_gradient_of_w_hx_sums_outer_products_of_state_adjoints_and_inputs(rnn):
    p, lecture, tape = rnn
    assert_close(tape.w_hx.grad, sum(np.outer(lecture.dL_dh[t], p.x[t]) for t in range(1, p.T + 1)))


def test_the_gradient_of_w_hh_sums_outer_products_of_state_adjoints_and_earlier_states(rnn):
    p, lecture, tape = rnn
    assert_close(tape.w_hh.grad, sum(np.outer(lecture.dL_dh[t], lecture.h[t - 1]) for t in range(1, p.T + 1)))


def test_the_first_state_is_one_more_step_of_the_recursion_away(rnn):
    p, lecture, tape = rnn
    assert_close(tape.h_0.grad, p.w_hh.T @ lecture.dL_dh[1])


def test_forward_mode_moves_the_loss_by_the_gradients_along_the_tangents(rnn):
    p, lecture, tape = rnn
    steps, rng = range(1, p.T + 1), np.random.default_rng(1)
    gradients = {
        tape.w_hx: sum(np.outer(lecture.dL_dh[t], p.x[t]) for t in steps),
        tape.w_hh: sum(np.outer(lecture.dL_dh[t], lecture.h[t - 1]) for t in steps),
        tape.w_qh: sum(np.outer(lecture.dL_do[t], lecture.h[t]) for t in steps),
    }
    tangents = {w: rng.normal(size=w.shape) for w in gradients}
    moved = sum(np.sum(gradients[w] * tangents[w]) for w in gradients)
    assert_close(tape.tape.pushforward(tangents, tape.L), moved)


@pytest.mark.parametrize("eigenvalue", [0.5, 0.99, 1.5])
def test_along_an_eigenvector_of_w_hh_the_adjoint_scales_by_its_eigenvalue_at_every_step(eigenvalue):
    """Below 1 it vanishes, above 1 it explodes: v·dL/dh_t = λ^(T-t) v·W_qhᵀ dL/do_T if only l_T counts."""
    rng, T = np.random.default_rng(0), 40
    eigenvectors = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    w_hh = eigenvectors @ np.diag([eigenvalue, 0.3, -0.4]) @ eigenvectors.T
    w_qh, v, target = rng.normal(size=(2, 3)), eigenvectors[:, 0], rng.normal(size=2)
    h = {0: tg.Variable(rng.normal(size=3))}
    tape = tg.Tape()
    with tape:
        for t in range(1, T + 1):
            h[t] = w_hh @ h[t - 1]
        o = w_qh @ h[T]
        loss = tg.sum((o - target) ** 2)
    adjoints = tape.backward(loss, keep=h.values())
    last = v @ w_qh.T @ (2 * (w_qh @ h[T].value - target))
    for t in range(T + 1):
        assert_close(v @ adjoints[h[t]], eigenvalue ** (T - t) * last)


# Each row: a schedule, and the oldest step that it lets the loss of step t reach.
REACHES = {
    "Sliding(1)": (tg.Sliding(1), lambda t: t),
    "Sliding(4)": (tg.Sliding(4), lambda t: t - 3),
    "Sliding(4, stride=3)": (tg.Sliding(4, stride=3), lambda t: min(3 * math.ceil(t / 3), 11) - 3),
    "Chunked(4)": (tg.Chunked(4), lambda t: t - (t - 1) % 4),
    "Full()": (tg.Full(), lambda t: 1),
}


@pytest.mark.parametrize(("schedule", "oldest"), REACHES.values(), ids=REACHES)
def test_a_schedule_keeps_the_terms_of_the_gradient_whose_step_its_window_still_holds(schedule, oldest):
    """dL/dW_hh = Σ_t Σ_i (W_hhᵀ)^(t-i) W_qhᵀ dL/do_t h_{i-1}ᵀ over i = oldest(t) … t; dL/dW_hx with x_i."""
    p = draw(11)
    w_hx, w_hh, w_qh = tg.Variable(p.w_hx), tg.Variable(p.w_hh), tg.Variable(p.w_qh)
    h = tg.constant(p.h_0)
    tape = tg.CapacitorTape(schedule)
    for t in range(1, p.T + 1):
        with tape:
            h = w_hx @ p.x[t] + w_hh @ h
            loss = tg.sum((w_qh @ h - p.y[t]) ** 2) / p.T
        tape.backward(loss)
    tape.sweep()

    e = forward_by_the_lecture(p)
    terms = [(t, i) for t in range(1, p.T + 1) for i in range(max(1, oldest(t)), t + 1)]
    reach = {(t, i): np.linalg.matrix_power(p.w_hh.T, t - i) @ p.w_qh.T @ e.dL_do[t] for t, i in terms}
    assert_close(w_hh.grad, sum(np.outer(ct, e.h[i - 1]) for (_, i), ct in reach.items()))
    assert_close(w_hx.grad, sum(np.outer(ct, p.x[i]) for (_, i), ct in reach.items()))
    assert_close(w_qh.grad, sum(np.outer(e.dL_do[t], e.h[t]) for t in e.o))


# -- one weight, one unit --------------------------------------------------------------------------

T = 9
W, H_0 = 0.7, 0.4
X = dict(enumerate(np.random.default_rng(3).normal(size=T), start=1))

# h_t = f(x_t, h_{t-1}, w) in NumPy or in ops, and its partial derivatives ∂f/∂w and ∂f/∂h by hand.
FUNCTIONS = {
    "tanh(w h + x)": (
        lambda xp, x, h, w: xp.tanh(w * h + x),
        lambda x, h, w: h / np.cosh(w * h + x) ** 2,
        lambda x, h, w: w / np.cosh(w * h + x) ** 2,
    ),
    "sin(w x) h + w²": (
        lambda xp, x, h, w: xp.sin(w * x) * h + w * w,
        lambda x, h, w: x * np.cos(w * x) * h + 2 * w,
        lambda x, h, w: np.sin(w * x),
    ),
    "w h + x": (lambda xp, x, h, w: w * h + x, lambda x, h, w: h, lambda x, h, w: w),
}


@pytest.fixture(params=FUNCTIONS)
def scalar(request):
    """f, and by the lecture: h_t, b_t = ∂f/∂w, c_t = ∂f/∂h, and a_t = dh_t/dw by a_t = b_t + c_t a_{t-1}."""
    f, df_dw, df_dh = FUNCTIONS[request.param]
    h, a, b, c = {0: H_0}, {0: 0.0}, {}, {}
    for t in range(1, T + 1):
        b[t], c[t] = df_dw(X[t], h[t - 1], W), df_dh(X[t], h[t - 1], W)
        h[t] = f(np, X[t], h[t - 1], W)
        a[t] = b[t] + c[t] * a[t - 1]
    return SimpleNamespace(f=f, h=h, a=a, b=b, c=c)


def closed_sum(s, t, first=1):
    """a_t = b_t + Σ_i (Π_{j=i+1}^t c_j) b_i over i = first … t - 1."""
    product = {i: math.prod(s.c[j] for j in range(i + 1, t + 1)) for i in range(max(1, first), t)}
    return s.b[t] + sum(product[i] * s.b[i] for i in product)


def recorded(s):
    """The loop on a tape, from a constant h_0: the tape, w, and the states."""
    w, h = tg.Variable(W), {0: H_0}
    tape = tg.Tape()
    with tape:
        for t in range(1, T + 1):
            h[t] = s.f(tg, X[t], h[t - 1], w)
    return tape, w, h


def test_b_t_is_the_derivative_with_the_last_state_held_constant_and_c_t_the_one_in_it(scalar):
    w, tape = tg.Variable(W), tg.Tape()
    for t in range(1, T + 1):
        h = tg.Variable(scalar.h[t - 1])
        b = tape.backward(tape.record(scalar.f, tg, X[t], tg.constant(scalar.h[t - 1]), w))
        assert_close(b[w], scalar.b[t])
        c = tape.backward(tape.record(scalar.f, tg, X[t], h, tg.constant(W)))
        assert_close(c[h], scalar.c[t])
        both = tape.backward(tape.record(scalar.f, tg, X[t], h, w))
        assert_close([both[w], both[h]], [scalar.b[t], scalar.c[t]])


def test_the_derivative_of_a_state_obeys_a_t_equals_b_t_plus_c_t_times_the_one_before(scalar):
    tape, w, h = recorded(scalar)
    for t in range(1, T + 1):
        assert_close(tape.backward(h[t])[w], scalar.a[t])


def test_the_derivative_of_a_state_is_the_closed_sum_of_products(scalar):
    tape, w, h = recorded(scalar)
    for t in range(1, T + 1):
        assert_close(tape.backward(h[t])[w], closed_sum(scalar, t))


def test_forward_mode_finds_the_same_derivatives_in_one_pass(scalar):
    tape, w, h = recorded(scalar)
    pushed = tape.pushforward({w: 1.0}, [h[t] for t in range(1, T + 1)])
    for t in range(1, T + 1):
        assert_close(pushed[t - 1], scalar.a[t])
        assert_close(pushed[t - 1], tape.backward(h[t])[w])


# -- truncation after τ steps ----------------------------------------------------------------------


def swept_at_every_step(s, tau):
    """For each t: the sweep of the loss h_t over the last τ steps, w, and h_{t-τ}, just beyond the window."""
    w, h = tg.Variable(W), {0: tg.constant(H_0)}
    tape = tg.CapacitorTape(tg.Sliding(tau))
    for t in range(1, T + 1):
        with tape:
            h[t] = s.f(tg, X[t], h[t - 1], w)
        sweep = tape.backward(h[t])
        yield t, sweep, w, h.get(t - tau)


every_tau = pytest.mark.parametrize("tau", [1, 2, 4, T - 1, T])


@every_tau
def test_a_window_of_tau_keeps_the_newest_tau_terms_of_the_sum(scalar, tau):
    """Those of i = t - τ + 1 … t, where b_t is that of i = t: the recursion started at a_{t-τ} = 0."""
    for t, sweep, w, _ in swept_at_every_step(scalar, tau):
        assert_close(sweep[w], closed_sum(scalar, t, first=t - tau + 1))
        a = 0.0
        for i in range(max(1, t - tau + 1), t + 1):
            a = scalar.b[i] + scalar.c[i] * a
        assert_close(sweep[w], a)


@every_tau
def test_what_a_window_leaves_out_is_its_left_edge_times_the_derivative_of_the_state_there(scalar, tau):
    """a_t = (the window's gradient) + (Π_{j=t-τ+1}^t c_j) a_{t-τ}; the product is the adjoint of h_{t-τ}."""
    for t, sweep, w, edge in swept_at_every_step(scalar, tau):
        if t <= tau:  # the window reaches h_0, which is a constant: nothing is left out
            assert len(sweep.left_edge) == 0
            assert_close(sweep[w], scalar.a[t])
        else:
            product = math.prod(scalar.c[j] for j in range(t - tau + 1, t + 1))
            assert_close(sweep.left_edge[edge], product)
            assert_close(sweep[w] + sweep.left_edge[edge] * scalar.a[t - tau], scalar.a[t])


def test_overlapping_windows_do_not_add_up_the_adjoints_of_shared_states():
    """x_t = w x_{t-1}: dx_3/dw = 3 w² x_0 = 0.108. With the adjoint of x_1 from step 2 added, 0.288."""
    w, x = tg.Variable(0.2), tg.constant(0.9)
    tape = tg.CapacitorTape(tg.Sliding(3, stride=1))
    gradients = []
    for _ in range(3):
        with tape:
            x = w * x
        tape.backward(x)
        gradients.append(w.grad.item())
        w.grad = None
    assert gradients == pytest.approx([0.9, 0.36, 0.108], rel=1e-10)
    assert abs(gradients[2] - 0.288) > 0.1


def test_beyond_the_window_the_weight_of_experiment_a_keeps_three_terms():
    """d x_t/dw = t w^(t-1) x_0 in full; a window of 3 keeps 3 of the t equal terms."""
    w, x = tg.Variable(0.2), tg.constant(0.9)
    tape = tg.CapacitorTape(3)
    for t in range(1, 9):
        with tape:
            x = w * x
        assert_close(tape.backward(x)[w], min(t, 3) * 0.2 ** (t - 1) * 0.9)
