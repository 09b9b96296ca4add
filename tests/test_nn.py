"""Modules: names, walks, states, cells as pure functions, and autobw's way of working."""

import copy

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim


class Block(nn.Module):
    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.layers = [nn.Linear(3, 4, rng=rng), nn.Linear(4, 2, bias=False, rng=rng)]
        self.by_name = {"cell": nn.RNNCell(3, 2, rng=rng)}
        self.scale = tg.Parameter(np.ones(2, np.float32))
        self.tied = self.layers[0]
        self.steps = 3

    def forward(self, x):
        return self.layers[1](tg.tanh(self.layers[0](x))) * self.scale


NAMES = [
    "layers.0.weight",
    "layers.0.bias",
    "layers.1.weight",
    "by_name.cell.w_x",
    "by_name.cell.w_h",
    "by_name.cell.b",
    "scale",
]


def test_parameters_are_walked_in_order_and_shared_ones_once():
    block = Block()
    assert [name for name, _ in block.named_parameters()] == NAMES
    assert [p.name for p in block.parameters()] == NAMES
    assert repr(block).splitlines()[1] == "  layers.0.weight: float32 (3, 4)"


def test_a_state_dict_goes_around():
    one, two = Block(1), Block(2)
    state = one.state_dict()
    x = np.ones((2, 3), np.float32)
    assert not np.array_equal(one(x).value, two(x).value)
    two.load_state_dict(state)
    np.testing.assert_array_equal(one(x).value, two(x).value)
    state["scale"][...] = 9
    np.testing.assert_array_equal(one.scale.value, [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("scale"), r"missing: \['scale'\]      unknown: \[\]"),
        (lambda s: s.update(extra=0), r"missing: \[\]      unknown: \['extra'\]"),
        (lambda s: s.update(scale=np.ones(3)), r"`scale` has another shape.\n  here: float32 \(2,\)"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    block = Block(1)
    before, state = block.state_dict(), Block(2).state_dict()
    change(state)
    with pytest.raises(tg.ArgumentError, match=message):
        block.load_state_dict(state)
    for name, array in block.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_copied_module_learns_alone():
    block = Block()
    other = copy.deepcopy(block)
    tape = tg.Tape()
    with tape:
        loss = tg.mean(other(np.ones((2, 3), np.float32)))
    tape.backward(loss)
    assert block.scale.grad is None
    assert other.scale.grad is not None
    assert other.tied is other.layers[0]


def test_one_module_called_at_every_step_gathers_all_its_gradients():
    lin, tape = nn.Linear(2, 2, dtype=np.float64, rng=0), tg.Tape()
    x = np.ones((1, 2))
    with tape:
        h = x
        for _ in range(3):
            h = lin.forward(h)
        y = tg.sum(h)
    tape.backward(y)
    w, ct, expected, hs = lin.weight.value, np.ones((1, 2)), np.zeros((2, 2)), [x]
    for _ in range(2):
        hs.append(hs[-1] @ w + lin.bias.value)
    for h in reversed(hs):
        expected += h.T @ ct
        ct = ct @ w.T
    np.testing.assert_allclose(lin.weight.grad, expected, rtol=1e-13)


def test_autobws_first_program():
    lin, add, mul, sigm, tape = nn.Linear(5, 5, rng=0), nn.Add(), nn.Mul(), nn.Sigmoid(), tg.Tape()
    rng = np.random.default_rng(1)
    x1, x2, x3 = (rng.standard_normal(5).astype(np.float32) for _ in range(3))
    tape.begin()
    y = add.forward([lin.forward(x1), mul.forward([x2, sigm.forward(x3)])])
    tape.stop()
    tape.backward(y, seed=np.ones(5))
    np.testing.assert_allclose(lin.weight.grad, np.outer(x1, np.ones(5)), rtol=1e-6)
    np.testing.assert_array_equal(lin.bias.grad, np.ones(5))


def test_flat_parameters_are_one_vector_and_one_gradient():
    block, tape = Block(), tg.Tape()
    params, grads = block.parameters(flat=True)
    assert params.shape == grads.shape == (sum(p.size for p in block.parameters()),)

    def sweep():
        with tape:
            loss = tg.mean(block(np.ones((2, 3), np.float32)))
        tape.backward(loss)

    sweep()
    np.testing.assert_array_equal(grads, np.concatenate([p.grad.ravel() for p in block.parameters()]))
    once = grads.copy()
    assert np.abs(once).max() > 0
    sweep()
    np.testing.assert_allclose(grads, 2 * once, rtol=1e-6)
    grads[:] = 0
    assert all(np.all(p.grad == 0) for p in block.parameters())
    sweep()
    block.zero_grad()
    assert np.all(grads == 0)
    sweep()
    np.testing.assert_array_equal(grads, once)


def test_assigning_the_flat_vector_rebinds_every_member_and_leaves_recordings_alone():
    block, tape = Block(), tg.Tape()
    params, _ = block.parameters(flat=True)
    with tape:
        loss = tg.mean(block(np.ones((2, 3), np.float32)) ** 2)
    first = tape.backward(loss).gradients[block.scale]
    params.value = params.value * 0.0
    assert all(np.all(p.value == 0) for p in block.parameters())
    np.testing.assert_array_equal(tape.backward(loss).gradients[block.scale], first)
    block.scale.value = np.full(2, 7.0)
    np.testing.assert_array_equal(params.value[-2:], [7, 7])  # a member's own assignment is seen
    params.value = params.value + 1
    np.testing.assert_array_equal(block.scale.value, [8, 8])
    assert [name for name, _ in block.named_parameters()] == NAMES


def test_an_optimizer_takes_the_flat_vector_as_one_parameter():
    one, two = Block(), Block()
    flat, _ = two.parameters(flat=True)
    for block, params in ((one, one.parameters()), (two, flat)):
        optimizer, tape = optim.Adam(params, lr=0.1), tg.Tape()
        for _ in range(5):
            with tape:
                loss = tg.mean(block(np.ones((2, 3), np.float32)) ** 2)
            tape.backward(loss)
            for p in block.by_name["cell"].parameters():  # which the loss does not reach
                p.grad = np.zeros(p.shape)
            optimizer.step()
            optimizer.zero_grad()
    for name, array in one.state_dict().items():
        np.testing.assert_allclose(array, two.state_dict()[name], rtol=1e-6)


def test_flattening_twice_gives_the_same_pair():
    block = Block()
    params, grads = block.parameters(flat=True)
    again, grads_again = block.parameters(flat=True)
    assert params is again
    assert grads is grads_again
    with pytest.raises(tg.ArgumentError, match="pieces of another vector already"):
        block.layers[0].parameters(flat=True)


def test_a_copied_flat_vector_has_members_of_its_own():
    block = Block()
    params, grads = block.parameters(flat=True)
    grads += 1
    other_block, other = copy.deepcopy((block, params))
    other.value = other.value * 0.0
    assert np.all(other_block.scale.value == 0)
    assert not np.all(params.value == 0)
    assert np.all(other.grad == 1)
    other.grad = None
    assert np.all(other_block.scale.grad == 0)
    assert np.all(grads == 1)


def test_a_name_that_a_user_chose_stays():
    class Named(nn.Module):
        def __init__(self):
            self.a = tg.Parameter(np.ones(1), name="temperature")

    assert [p.name for p in Named().parameters()] == ["temperature"]


def test_flat_parameters_need_parameters_of_one_dtype():
    class Mixed(nn.Module):
        def __init__(self):
            self.a, self.b = tg.Parameter(np.ones(1, np.float32)), tg.Parameter(np.ones(1))

    with pytest.raises(tg.ArgumentError, match="a: float32, b: float64"):
        Mixed().parameters(flat=True)
    with pytest.raises(tg.ArgumentError, match="there are none"):
        nn.Sigmoid().parameters(flat=True)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_cells_are_pure_state_in_state_out(kind):
    cell = kind(3, 4, dtype=np.float64, rng=0)
    state, x = cell.initial_state(2), np.ones((2, 3))
    one, two = cell(x, state), cell(x, state)
    np.testing.assert_array_equal(one[0].value, two[0].value)
    out, state = one
    assert out.shape == (2, 4)
    assert [s.shape for s in (state if isinstance(state, tuple) else [state])] == [(2, 4)] * (
        2 if kind is nn.LSTMCell else 1
    )
    assert out is (state[0] if isinstance(state, tuple) else state)
    assert {p.dtype for p in cell.parameters()} == {np.dtype(np.float64)}
    assert not np.array_equal(cell(x, state)[0].value, out.value)


def test_seeds_make_weights_repeatable():
    for make in (
        lambda rng: nn.Linear(2, 3, rng=rng),
        lambda rng: nn.Embedding(4, 2, rng=rng),
        lambda rng: nn.LSTMCell(2, 3, rng=rng),
    ):
        one, two, three = (make(rng).state_dict() for rng in (5, 5, 6))
        name = next(iter(one))
        np.testing.assert_array_equal(one[name], two[name])
        assert not np.array_equal(one[name], three[name])


def test_losses():
    logits, labels = tg.Variable(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])), np.array([2, 0])
    z = logits.value - np.log(np.exp(logits.value).sum(1, keepdims=True))
    np.testing.assert_allclose(nn.CrossEntropy().forward(logits, labels).item(), -(z[0, 2] + z[1, 0]) / 2)
    assert nn.MeanSquaredError()(logits, 1.0).item() == (0 + 1 + 4 + 3) / 6
    with pytest.raises(TypeError, match="Module has no forward"):
        nn.Module()()


def test_integer_parameters_are_refused():
    with pytest.raises(
        tg.DtypeError, match="Parameter: a differentiated value must be real floating point, and int64"
    ):
        tg.Parameter(np.arange(3))


def test_the_vector_follows_its_members_wherever_it_is_read():
    lin = nn.Linear(2, 2, bias=False, dtype=np.float64)
    params, _ = lin.parameters(flat=True)
    lin.weight.value = np.full((2, 2), 7.0)
    assert tg.sum(params).item() == 28
    assert "7., 7." in repr(params)
    optim.SGD([lin.weight], 1.0).step()
    assert tg.sum(params).item() == 28
    with pytest.raises(tg.ShapeError, match="grad"):
        lin.weight.grad = np.ones(3)


def test_a_state_with_something_else_than_numbers_changes_nothing():
    lin = nn.Linear(2, 2)
    before = lin.state_dict()
    for bad in (None, "text", np.ones(2) * 1j):
        with pytest.raises(tg.DtypeError, match="load_state_dict: bias"):
            lin.load_state_dict({"weight": np.zeros((2, 2)), "bias": bad})
        np.testing.assert_array_equal(lin.weight.value, before["weight"])


def test_modules_that_know_their_parent_can_be_walked():
    parent, child = nn.Module(), nn.Linear(2, 2)
    parent.child, child.parent = child, parent
    assert [name for name, _ in parent.named_parameters()] == ["child.weight", "child.bias"]


@pytest.mark.parametrize("state", [None, 1.0, np.ones((2, 4), np.float32)])
def test_an_lstm_takes_a_pair_for_a_state(state):
    with pytest.raises(tg.ArgumentError, match=r"LSTMCell: `state` must be a pair \(h, c\)"):
        nn.LSTMCell(3, 4)(np.ones((2, 3), np.float32), state)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Linear(-1, 2), "n_in"),
        (lambda: nn.Embedding(3, 0), "size"),
        (lambda: nn.LSTMCell(2, 3).initial_state("x"), "batch"),
    ],
)
def test_sizes_that_make_no_sense_are_named(make, name):
    with pytest.raises(tg.ArgumentError, match=f"`{name}` must be a whole number of at least 1"):
        make()


@pytest.mark.parametrize("sizes", [(-1, 4), (2.5, 4), (3, 0)])
def test_cells_have_sizes_of_at_least_1(sizes):
    with pytest.raises(tg.ArgumentError, match="GRUCell: `n_.*` must be a whole number of at least 1"):
        nn.GRUCell(*sizes)
