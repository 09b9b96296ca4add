"""The check for users: what is right passes, every kind of wrong is caught, and the message says where."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim
from tapegrad.core.primitive import REGISTRY
from tapegrad.core.sweep import Sweep


@pytest.fixture
def declare():
    """Declares ops for one test."""
    before = set(REGISTRY)
    yield tg.elementwise
    for name in set(REGISTRY) - before:
        del REGISTRY[name]


CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}


def loop_over(cell="rnn", lr=0.2, steps=9, dtype=np.float64, step=None):
    rng = np.random.default_rng(0)
    model, readout = CELLS[cell](2, 3, dtype=dtype, rng=rng), nn.Linear(3, 2, dtype=dtype, rng=rng)
    params = [*model.parameters(), *readout.parameters()]

    def loop(tape):
        optimizer, state, rng = optim.SGD(params, lr), model.initial_state(2), np.random.default_rng(1)
        for _ in range(steps):
            x, target = rng.standard_normal((2, 2)).astype(dtype), rng.integers(0, 2, 2)
            with tape:
                out, state = (step or model)(x, state)
                loss = tg.softmax_cross_entropy(readout(out), target)
            if tape.backward(loss):
                optimizer.step()
                optimizer.zero_grad()
        tape.sweep()

    loop.model = model
    return loop


TAPES = {
    "sliding": lambda: tg.CapacitorTape(4),
    "strided": lambda: tg.CapacitorTape(tg.Sliding(5, stride=3)),
    "chunked": lambda: tg.CapacitorTape(tg.Chunked(4)),
    "full": lambda: tg.CapacitorTape(tg.Full()),
    "replay": lambda: tg.CapacitorTape(4, weights="replay"),
    "randomized": lambda: tg.CapacitorTape(tg.Randomized(3, seed=1)),
    "burn-in": lambda: tg.CapacitorTape(tg.BurnIn(2, 3)),
    "tolerance": lambda: tg.CapacitorTape(tg.Tolerance(0.3, 8)),
    "adaptive": lambda: tg.CapacitorTape(tg.Adaptive(0.5, longest=10, start=3)),
    "scaled": lambda: tg.CapacitorTape(4, joint=0.5),
    "dropped": lambda: tg.CapacitorTape(4, joint=0),
    "clipped": lambda: tg.CapacitorTape(6, joint=tg.ClipJoint(0.05)),
    "xi": lambda: tg.CapacitorTape(tg.Sliding(6, stride=3), joint=tg.RandomJoint(0.6)),
    "randomized and clipped": lambda: tg.CapacitorTape(tg.Randomized(3, seed=1), joint=tg.ClipJoint(0.05)),
    "guarded": lambda: tg.CapacitorTape(4, guard=True),
}


@pytest.mark.parametrize("kind", TAPES)
def test_every_truncated_gradient_is_a_derivative(kind):
    report = tg.check_gradients(loop_over("gru" if "c" in kind else "lstm"), TAPES[kind]())
    assert report.worst < 1e-6
    assert report.sweeps >= 1 and report.leaves >= 5
    assert f"{report.sweeps} sweeps, {report.leaves} leaves" in str(report)


def test_the_check_leaves_the_run_as_it_is():
    plain, checked = loop_over(), loop_over()
    plain(tg.CapacitorTape(4))
    tape = tg.CapacitorTape(4)
    tg.check_gradients(checked, tape)
    for a, b in zip(plain.model.parameters(), checked.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.value, b.value)
    assert not tape._keeps_inputs and "_sweep_window" not in vars(tape)


def test_float32_is_checked_in_double_precision():
    assert tg.check_gradients(loop_over("lstm", dtype=np.float32), tg.CapacitorTape(4)).worst < 1e-4


def test_parts_are_checked_with_their_windows_and_strides():
    w, u, v = (tg.Parameter(np.array(x)) for x in (0.9, 1.1, 0.8))

    def loop(tape):
        slow, fast = tape.capacitor(6), tape.capacitor(tg.Sliding(4, stride=2))
        x, y = np.array(1.0), np.array(0.5)
        for _ in range(9):
            with tape:
                with slow:
                    x = tg.tanh(w * x) + 0.3
                with fast:
                    y = tg.tanh(u * y + x)
                loss = tg.square(v * y)
            tape.backward(loss)

    assert tg.check_gradients(loop, tg.CapacitorTape(3)).leaves == 3


def test_a_function_of_arrays_is_checked_for_its_arguments_and_the_leaves_that_it_reads():
    lin = nn.Linear(3, 2, dtype=np.float64, rng=0)
    report = tg.check_gradients(lambda x: tg.mean(np.tanh(lin(x)) ** 2), np.ones((4, 3)))
    assert (report.sweeps, report.leaves) == (1, 3)


# -- planted faults ----------------------------------------------------------------------------------


def test_a_wrong_rule_is_named_with_its_leaf_and_worst_element(declare):
    @declare(a=lambda ct, a: ct * (a + 0.01 * a))
    def almost_half_square(xp, a):
        return a * a / 2

    a = tg.Variable(np.array([0.1, 3.0, 0.2]), name="weights")
    with pytest.raises(tg.GradientError) as caught:
        tg.check_gradients(lambda a: tg.sum(tg.tanh(almost_half_square(a) * 0.1)), a)
    message = str(caught.value)
    assert "sweep 1: the gradient of weights is not what differences say" in message
    assert "worst element (1,): gradient" in message
    assert "the rule of `almost_half_square` for `a` is wrong by itself, in segment 1" in message


def test_a_fault_in_a_late_sweep_of_a_loop_is_found(declare):
    @declare(a=lambda ct, y: ct - ct * y)
    def wrong_tanh(xp, a):
        return xp.tanh(a)

    def step(x, state):
        w = loop.model.w_h
        h = wrong_tanh(x @ loop.model.w_x + state @ w) if x[0, 0] > 1 else tg.tanh(state @ w)
        return h, h

    loop = loop_over(step=step, steps=20)
    with pytest.raises(tg.GradientError, match="the rule of `wrong_tanh` for `a`"):
        tg.check_gradients(loop, tg.CapacitorTape(4))


@pytest.mark.parametrize("joint", [None, 0.5, tg.ClipJoint(0.2)])
def test_a_fault_in_the_sweep_itself_is_found(joint, monkeypatch):
    honest = Sweep._leave

    def leaves_a_tenth_behind(self, segment, older, joints):
        for slot in self.sums:
            if 0 < slot < segment.first:
                self.sums[slot] = self.sums[slot] * 0.9
        return honest(self, segment, older, joints)

    monkeypatch.setattr(Sweep, "_leave", leaves_a_tenth_behind)
    with pytest.raises(tg.GradientError):
        tg.check_gradients(loop_over(), tg.CapacitorTape(4, joint=joint))


def test_a_joint_that_is_not_applied_is_found(monkeypatch):
    from tapegrad.core.sweep import Joints

    monkeypatch.setattr(Joints, "cross", lambda self, segment, older, pending: pending)
    with pytest.raises(tg.GradientError, match="every op's rule is right by itself"):
        tg.check_gradients(loop_over(), tg.CapacitorTape(4, joint=0.5))


def test_a_window_that_is_one_segment_short_is_found(monkeypatch):
    from tapegrad.core import sweep

    honest = sweep.Joints.__init__

    def short(self, window, clocks, joint):
        honest(self, window, clocks, joint)
        self.last += len(window) > 2

    monkeypatch.setattr(sweep.Joints, "__init__", short)
    loop = loop_over()

    def checked(tape):
        # the check asks the same class how far a sweep reaches: let it ask an honest one
        import tapegrad.gradcheck as gradcheck

        class Honest(sweep.Joints):
            __init__ = honest

        monkeypatch.setattr(gradcheck, "Joints", Honest)
        loop(tape)

    with pytest.raises(tg.GradientError):
        tg.check_gradients(checked, tg.CapacitorTape(4))


def test_a_stopped_gradient_is_a_constant_and_not_a_fault():
    w = tg.Parameter(np.array([0.5, 2.0]))

    def loop(tape):
        x = np.ones(2)
        for _ in range(5):
            with tape:
                x = tg.tanh(w * x) + tg.stop_gradient(w * x)
                loss = tg.sum(x)
            tape.backward(loss)

    assert tg.check_gradients(loop, tg.CapacitorTape(3)).worst < 1e-6


# -- what cannot be checked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tg.CapacitorTape(3, weights="current"),
            'under weights="current" a sweep is not the derivative',
        ),
        (
            lambda: tg.CapacitorTape(tg.RealTime()),
            "RealTime() looks beyond its window, where nothing is frozen",
        ),
    ],
)
def test_what_is_no_derivative_is_refused(make, message):
    with pytest.raises(tg.ArgumentError) as caught:
        tg.check_gradients(loop_over(), make())
    assert message in str(caught.value)


def test_a_loop_that_sweeps_nothing_and_a_function_that_returns_an_array_are_refused():
    with pytest.raises(tg.ArgumentError, match="nothing was swept"):
        tg.check_gradients(lambda tape: None, tg.CapacitorTape(3))
    with pytest.raises(tg.ArgumentError, match="the root is not a scalar"):
        tg.check_gradients(lambda a: a * 2.0, np.ones(3))
    with pytest.raises(tg.ArgumentError, match="`f` must return a scalar Variable"):
        tg.check_gradients(lambda a: 3.0, np.ones(3))


def test_what_rounding_explains_is_no_fault():
    b = np.random.default_rng(0).standard_normal(50)
    for f in (
        lambda b: tg.sum(tg.softmax(b[0] + np.zeros(50)) * np.arange(50.0)),  # true gradient 0
        lambda b: 1e6 + tg.sum(b * 1e-3),
        lambda b: tg.sum(tg.astype(b, dtype=np.float32) * 3.0),
        lambda b: tg.sum(np.sqrt(tg.square(b) * 1e-16)),
        lambda b: tg.sum(np.log(tg.square(b) * np.logspace(-6, 6, 50))),
    ):
        tg.check_gradients(f, b)
    tg.check_gradients(lambda a: tg.sum(np.sqrt(a)), np.full(3, 1e-8))
    tg.check_gradients(lambda a: tg.sum(np.log(a)), np.array([1e6, 1e-2, 1.0]))


def test_a_function_is_checked_without_a_trace():
    lin, x = nn.Linear(3, 2, dtype=np.float64, rng=0), tg.Variable(np.ones((4, 3)))
    lin.weight.grad = np.full((3, 2), 7.0)
    tg.check_gradients(lambda x: tg.mean(np.tanh(lin(x)) ** 2), x)
    assert x.grad is None and lin.bias.grad is None
    assert (lin.weight.grad == 7.0).all()


def test_a_step_that_leaves_the_domain_and_an_integer_argument_are_told():
    with pytest.raises(tg.GradientError, match="a difference is not finite"):
        tg.check_gradients(lambda a: tg.sum(np.log(a - 0.999999)), np.ones(2))
    with pytest.raises(tg.ArgumentError, match="argument 1 of `f` is not differentiable"):
        tg.check_gradients(lambda a, i: a[i], np.ones(3), 2)


def test_small_elements_beside_large_ones_are_checked(declare):
    @declare(a=lambda ct, a: ct * (a + a) * 1.1)
    def wrongly_squared(xp, a):
        return a * a

    def f(a):
        return tg.sum(tg.square(a[:1])) * 1e-8 + tg.sum(wrongly_squared(a[1:]))

    with pytest.raises(tg.GradientError):
        tg.check_gradients(f, np.array([1e4, 1e-4, 2e-4]), directions=4)
    tg.check_gradients(lambda a: tg.sum(1.0 / a), np.array([1e4, 1e-4]))


def test_options_that_make_no_sense_are_refused():
    for options in ({"eps": 0}, {"tolerance": -1}, {"eps": "a"}):
        with pytest.raises(tg.ArgumentError, match="must be a number above 0"):
            tg.check_gradients(tg.sum, np.ones(2), **options)
    with pytest.raises(tg.ArgumentError, match="`directions` must be a whole number of at least 1"):
        tg.check_gradients(tg.sum, np.ones(2), directions=1.5)
    with pytest.raises(tg.ArgumentError, match="a loop is checked over a CapacitorTape"):
        tg.check_gradients(lambda tape: None, tg.Tape())
    with pytest.raises(tg.ArgumentError, match="`f` must be a function"):
        tg.check_gradients(3, np.ones(2))


def test_parts_of_different_reach_are_checked_with_a_callable_joint():
    w, u, v = (tg.Parameter(np.array(x)) for x in (0.9, 1.1, 0.8))

    def loop(tape):
        slow, fast, faster = (
            tape.capacitor(7),
            tape.capacitor(tg.Sliding(3, stride=3)),
            tape.capacitor(tg.Sliding(2, stride=2)),
        )
        x = y = z = np.array(0.5)
        for _ in range(12):
            with tape:
                with slow:
                    x = tg.tanh(w * x) + 0.3
                with fast:
                    y = tg.tanh(u * y + x)
                with faster:
                    z = tg.tanh(v * z + y)
                loss = tg.square(z)
            tape.backward(loss)

    assert tg.check_gradients(loop, tg.CapacitorTape(3, joint=tg.ClipJoint(0.05))).leaves == 3


# -- the likely cause ----------------------------------------------------------------------------------


def said(f, *args, **options):
    with pytest.raises(tg.GradientError) as caught:
        tg.check_gradients(f, *args, **options)
    return str(caught.value)


def test_the_argument_is_named_also_where_one_value_is_given_twice(declare):
    @declare(a=lambda ct, b: ct * b, b=lambda ct, a: -ct * a)
    def wrongly_multiplied(xp, a, b):
        return a * b

    x = np.array([1.0, 2.0])
    message = said(lambda a, b: tg.sum(wrongly_multiplied(a, b)), x, x + 1)
    assert "the gradient of argument 1 is not" in message
    for f in (lambda a: tg.sum(wrongly_multiplied(a, a)), lambda a: tg.sum(wrongly_multiplied(a * 2, a))):
        assert "the rule of `wrongly_multiplied` for `b` is wrong by itself" in said(f, x)


def test_a_wrong_pullback_of_ones_own_and_one_of_a_sequence_are_named(declare):
    cube = tg.custom_vjp(lambda x: x**3)
    cube.defvjp(lambda x: (x**3, x), lambda x, ct: (ct * 2 * x,))
    x = np.array([1.0, 2.0])
    message = said(lambda a, b: tg.sum(a * cube(b)), x, x)
    assert "the rule of `custom_vjp(<lambda>)` for `arrays[0]` is wrong by itself" in message

    @tg.primitive(variadic="arrays", arrays=lambda ct, arrays: [ct, *(2 * ct for _ in arrays[1:])])
    def wrongly_added(xp, arrays):
        return sum(arrays)

    message = said(lambda a, b: tg.sum(wrongly_added([a, 1.0, b])), x, x)
    assert "the rule of `wrongly_added` for `arrays[2]` is wrong by itself" in message


def test_a_pullback_of_ones_own_is_checked_in_overlapping_windows():
    f = tg.custom_vjp(np.tanh)
    f.defvjp(lambda x: (np.tanh(x), np.tanh(x)), lambda y, ct: (ct * (1 - y * y),))
    w = tg.Parameter(np.array([0.3, -0.6]))

    def loop(tape):
        h = np.ones(2)
        for _ in range(6):
            with tape:
                h = f(h * w)
                loss = tg.sum(h**2)
            tape.backward(loss)

    loop(tg.CapacitorTape(4))
    expected, w.grad = w.grad, None
    tg.check_gradients(loop, tg.CapacitorTape(4))
    np.testing.assert_array_equal(w.grad, expected)


def test_in_second_order_a_pullback_that_stops_its_residuals_is_named():
    square = tg.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2, x), lambda x, ct: (ct * 2 * tg.stop_gradient(x),))
    message = said(lambda a: tg.sum(square(a)), np.array([1.0, 2.0]), order=2)
    assert "a rule of `custom_vjp(<lambda>)` is no derivative that can be differentiated" in message


def test_in_second_order_steps_fit_the_values_and_nan_is_a_fault(declare):
    tg.check_gradients(lambda a: tg.sum(np.log(a)), np.array([1e-6, 1.0, 1e6]), order=2)
    tg.check_gradients(lambda a: tg.sum(np.sin(np.exp(a**2))), np.array([2.1, -2.1]), order=2)  # very curved

    @declare(
        a=lambda ct, a: ct * 2 * a + 0.0 * ct * np.sqrt(a - a)
    )  # whose own derivative is 0 times infinity
    def squared(xp, a):
        return a * a

    with np.errstate(all="ignore"):
        message = said(lambda a: tg.sum(squared(a)), np.array([1.0, 2.0]), order=2)
    assert "a rule of `squared` is no derivative that can be differentiated" in message
    with pytest.raises(tg.ArgumentError, match="`order=2` is for a function of arrays, and none was given"):
        tg.check_gradients(lambda: tg.Variable(1.0) * 2.0, order=2)
