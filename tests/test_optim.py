"""Optimizers rebind, all parameters or none; clipping; what NaN does."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import optim


def parameter(value=(1.0, 2.0), grad=(0.5, -1.0)):
    p = tg.Parameter(np.array(value), name="p")
    p.grad = None if grad is None else np.array(grad)
    return p


def test_sgd_is_its_formula():
    p = parameter()
    optim.SGD([p], lr=0.1).step()
    np.testing.assert_allclose(p.value, [0.95, 2.1])


def test_momentum_is_its_formula():
    p = parameter()
    optimizer, velocity, value = optim.SGD([p], lr=0.1, momentum=0.9), np.zeros(2), np.array([1.0, 2.0])
    for k in range(4):
        p.grad = np.array([0.5, -1.0]) * (k + 1)
        velocity = 0.9 * velocity + p.grad
        value = value - 0.1 * velocity
        optimizer.step()
        np.testing.assert_allclose(p.value, value, rtol=1e-14)


def test_adam_is_algorithm_1_of_its_paper():
    p = parameter()
    optimizer = optim.Adam([p], lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    m, v, value = np.zeros(2), np.zeros(2), np.array([1.0, 2.0])
    for t in range(1, 6):
        g = p.grad = np.array([0.5, -1.0]) * np.sin(t)
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        value = value - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        optimizer.step()
        np.testing.assert_allclose(p.value, value, rtol=1e-12)


@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.Adam(p, 0.1)]
)
def test_a_step_never_writes_into_the_old_array(make):
    p = parameter()
    old = p._array
    optimizer = make([p])
    for _ in range(3):
        optimizer.step()
    np.testing.assert_array_equal(old, [1, 2])
    assert p._array is not old
    np.testing.assert_array_equal(p.grad, [0.5, -1.0])


def test_parameters_without_a_gradient_are_left_alone():
    with_grad, without = parameter(), parameter(grad=None)
    optim.Adam([with_grad, without], 0.1).step()
    np.testing.assert_array_equal(without.value, [1, 2])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_updates_nothing(bad):
    fine, broken = parameter(), parameter(grad=(bad, 1.0))
    for optimizer in (optim.SGD([fine, broken], 0.1, 0.9), optim.Adam([fine, broken], 0.1)):
        with pytest.raises(tg.NonFiniteError) as caught:
            optimizer.step()
        assert str(caught.value) == (
            f"{type(optimizer).__name__}.step: the gradient of `p` has 1 of 2 elements that are NaN or infinite.\n"
            "  Nothing was updated. Look for NaN in the data or the carried state, lower lr, or clip the gradients."
        )
        assert optimizer.steps == 0
        assert optimizer.state == [{}, {}]
        np.testing.assert_array_equal(fine.value, [1, 2])


def test_huge_but_finite_gradients_pass():
    p = tg.Parameter(np.ones(4, np.float32))
    p.grad = np.full(4, 3e38, np.float32)
    with np.errstate(over="ignore"):
        optim.SGD([p], lr=0.0).step()
    np.testing.assert_array_equal(p.value, np.ones(4))


def test_nan_in_the_data_reaches_the_step_as_an_error_and_not_the_weights():
    lin, tape = tg.nn.Linear(2, 1, rng=0), tg.CapacitorTape(2)
    optimizer, before = optim.SGD(lin.parameters(), 0.1), lin.state_dict()
    with tape:
        loss = tg.mean(lin(np.array([[1.0, np.nan]], np.float32)) ** 2)
    tape.backward(loss)
    for check in (optimizer.step, lambda: optim.clip_by_norm(lin.parameters(), 1.0)):
        with pytest.raises(tg.NonFiniteError, match="NaN in the data"):
            check()
    for name, array in lin.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_an_optimizer_goes_on_from_its_state_dict():
    def steps(optimizer, p, count):
        for k in range(count):
            p.grad = np.array([0.5, -1.0]) * (optimizer.steps + k % 2)
            optimizer.step()

    for make in (lambda p: optim.SGD([p], 0.1, 0.9), lambda p: optim.Adam([p], 0.1)):
        whole, half = parameter(), parameter()
        steps(make(whole), whole, 6)
        first = make(half)
        steps(first, half, 4)
        second = make(half)
        second.load_state_dict(first.state_dict())
        steps(second, half, 2)
        np.testing.assert_array_equal(whole.value, half.value)
    with pytest.raises(tg.ArgumentError, match="1 parameters here, 0 there"):
        second.load_state_dict({"state": [], "steps": 0, "lr": 0.1})


def test_clipping_by_norm():
    a, b = parameter(grad=(3.0, 0.0)), parameter(grad=(0.0, 4.0))
    assert optim.clip_by_norm([a, b], 10.0) == 5
    np.testing.assert_array_equal(a.grad, [3, 0])
    assert optim.clip_by_norm([a, b, parameter(grad=None)], 1.0) == 5
    np.testing.assert_allclose([*a.grad, *b.grad], [0.6, 0, 0, 0.8])


def test_clipping_by_norm_survives_squares_that_overflow():
    p = tg.Parameter(np.ones(2, np.float32))
    p.grad = np.array([3e30, 4e30], np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(optim.clip_by_norm([p], 5.0), 5e30, rtol=1e-6)
    np.testing.assert_allclose(p.grad, [3, 4], rtol=1e-6)


def test_clipping_by_norm_refuses_what_is_not_finite_and_changes_nothing():
    fine, broken = parameter(grad=(30.0, 40.0)), parameter(grad=(np.inf, 1.0))
    with pytest.raises(tg.NonFiniteError, match="the norm of the gradients is inf"):
        optim.clip_by_norm([fine, broken], 1.0)
    np.testing.assert_array_equal(fine.grad, [30, 40])


def test_clipping_by_value():
    p = parameter(grad=(7.0, -0.5))
    optim.clip_by_value([p], 5.0)
    np.testing.assert_array_equal(p.grad, [5, -0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.SGD([], 0.1), "SGD: `params` is empty"),
        (lambda: optim.SGD([np.ones(2)], 0.1), r"SGD: `params` must be Parameters, and float64 \(2,\) came"),
        (lambda: optim.SGD([parameter() * 2.0], 0.1), "SGD: `params` must be Parameters"),
        (lambda: optim.SGD([parameter()], -0.1), "SGD: `lr` must be at least 0, and -0.1 came"),
        (lambda: optim.SGD([parameter()], float("nan")), "SGD: `lr` must be at least 0, and nan came"),
        (
            lambda: optim.SGD([parameter()], 0.1, momentum=1.0),
            r"SGD: `momentum` must be in \[0, 1\), and 1.0 came",
        ),
        (
            lambda: optim.Adam([parameter()], 0.1, betas=(0.9, 1.0)),
            r"Adam: `betas` must be two numbers in \[0, 1\)",
        ),
        (
            lambda: optim.clip_by_norm([parameter()], 0.0),
            "clip_by_norm: `limit` must be above 0, and 0.0 came",
        ),
        (
            lambda: optim.clip_by_value([parameter()], -5),
            "clip_by_value: `limit` must be above 0, and -5 came",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(tg.ArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.Adam(p, 0.1)]
)
def test_a_numpy_learning_rate_widens_nothing_and_scalars_are_parameters_too(make):
    for value in (np.ones(3, np.float32), np.float32(1.0)):
        p = tg.Parameter(value)
        optimizer = make([p])
        for _ in range(2):
            p.grad = np.full(p.shape, 0.5)
            optimizer.lr = np.float64(0.05)
            optimizer.step()
        assert p.dtype == np.float32
        assert p.shape == np.shape(value)
        assert p.value.max() < 1


def test_a_parameter_is_listed_once():
    lin = tg.nn.Linear(2, 2)
    flat, _ = lin.parameters(flat=True)
    with pytest.raises(tg.ArgumentError, match="holds a Parameter twice"):
        optim.SGD([lin.weight, lin.weight], 0.1)
    with pytest.raises(tg.ArgumentError, match="holds a vector and weight, which is a piece of it"):
        optim.SGD([flat, lin.weight], 0.1)
    p = parameter(grad=(3.0, 4.0))
    optim.clip_by_norm([p, p], 2.5)
    np.testing.assert_allclose(p.grad, [1.5, 2.0])


def test_a_state_of_other_shapes_is_refused():
    one, two = optim.SGD([parameter()], 0.1, 0.9), optim.SGD([tg.Parameter(np.ones(3))], 0.1, 0.9)
    one.step()
    with pytest.raises(tg.ShapeError, match="`0.velocity` is float64"):
        two.load_state_dict(one.state_dict())


def test_the_state_of_an_optimizer_can_be_saved(tmp_path):
    p = parameter()
    optimizer = optim.Adam([p], 0.1)
    optimizer.step()
    tg.save(tmp_path / "adam.npz", optimizer.state_dict())
    other = optim.Adam([p], 0.5)
    other.load_state_dict(tg.load(tmp_path / "adam.npz"))
    assert (other.steps, other.lr) == (1, 0.1)
    np.testing.assert_array_equal(other.state[0]["mean"], optimizer.state[0]["mean"])


# -- memory ------------------------------------------------------------------------------------------

LARGE = (32, 64)  # large enough to be laid on a border of 64 bytes


def matrix(shape=LARGE, dtype=np.float32):
    p = tg.Parameter(np.ones(shape, dtype))
    p.grad = np.full(shape, 0.5)
    return p


@pytest.mark.parametrize("shape", [(3,), LARGE, (4, 8, 64), ()])
@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, 0.9), lambda p: optim.Adam(p, 0.1)]
)
def test_what_anyone_holds_of_a_parameter_stays_as_it_was(make, shape):
    p = matrix(shape)
    optimizer, held = make([p]), []
    for k in range(12):
        optimizer.step()
        # in turn: nothing, the array, a view of it, a view of a view, a constant, a memoryview, and its bytes later
        value = p.value
        hold = [
            lambda v: None,
            lambda v: v,
            lambda v: v[...],
            lambda v: v.reshape(-1)[:1].reshape(-1),
            lambda v: tg.constant(v).value,
            lambda v: memoryview(v),
        ][k % 6](value)
        held.append((hold, None if hold is None else np.array(hold)))
        del value
    for hold, copy in held:
        if hold is not None:
            np.testing.assert_array_equal(np.array(hold), copy)
    assert len({np.array(h).tobytes() for h, _ in held if h is not None}) > 1


def test_an_array_that_nobody_has_any_more_is_used_again():
    p = matrix()
    optimizer, places = optim.SGD([p], 0.1), []
    for _ in range(8):
        optimizer.step()
        places.append(p._array.ctypes.data)
        assert places[-1] % 64 == 0
        assert p.value.flags.writeable is False
    assert len(set(places[2:])) == 2


def test_a_window_that_holds_the_weights_of_every_step_keeps_them():
    rng = np.random.default_rng(0)
    cell, tape = tg.nn.RNNCell(16, 64, dtype=np.float64, rng=0), tg.CapacitorTape(4)
    optimizer, state, used = optim.SGD(cell.parameters(), 0.1), cell.initial_state(1), []
    for _ in range(9):
        with tape:
            _, state = cell(rng.standard_normal((1, 16)), state)
            loss = tg.mean(state * state)
        used.append((cell.w_h._array, cell.w_h._array.copy()))
        del used[:-4]
        tape.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        for array, copy in used:
            np.testing.assert_array_equal(array, copy)


def test_the_pieces_of_a_vector_that_are_held_stay_as_they_were():
    lin = tg.nn.Linear(32, 64, rng=0)
    params, grads = lin.parameters(flat=True)
    optimizer, held = optim.SGD([params], 0.1), []
    for _ in range(6):
        grads[...] = 1
        optimizer.step()
        held.append((lin.weight.value, lin.weight.value.copy()))
        optimizer.zero_grad()
        assert not grads.any()
        assert lin.bias.grad is not None
    for array, copy in held:
        np.testing.assert_array_equal(array, copy)


def test_a_step_leaves_the_parameter_another_object_has_assigned():
    p = matrix()
    optimizer = optim.SGD([p], 0.1)
    for _ in range(3):
        optimizer.step()
        mine = np.full(LARGE, 7, np.float32)
        p.value = mine
        optimizer.step()
        np.testing.assert_allclose(p.value, 7 - 0.05)
        np.testing.assert_array_equal(mine, np.full(LARGE, 7))


def test_running_averages_in_another_order_are_read_right():
    one, two = matrix(dtype=np.float64), matrix(dtype=np.float64)
    one.grad = two.grad = np.random.default_rng(0).standard_normal(LARGE)
    first, second = optim.SGD([one], 0.1, 0.9), optim.SGD([two], 0.1, 0.9)
    first.step(), second.step()
    saved = first.state_dict()
    saved["0.velocity"] = np.asfortranarray(saved["0.velocity"])
    first.load_state_dict(saved)
    first.step(), second.step()
    np.testing.assert_array_equal(one.value, two.value)
