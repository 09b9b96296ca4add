"""tapegrad against PyTorch: the same weights, the same inputs, the same numbers, to 1e-12 in float64.

PyTorch is the independent witness for cells and ops, for windows (rebuilt there with clones of the weights
that each step ran with), for optimizers over many steps, and for derivatives of derivatives.
"""

from types import SimpleNamespace

import numpy as np
import pytest

import tapegrad as tg

torch = pytest.importorskip("torch")
F = torch.nn.functional
torch.set_num_threads(1)  # the tensors are tiny: a second thread only waits

TOLERANCE = 1e-12
N_IN, N_HIDDEN, N_OUT = 3, 5, 4

CELLS = {"RNN": tg.nn.RNNCell, "GRU": tg.nn.GRUCell, "LSTM": tg.nn.LSTMCell}
THEIR_CELLS = {"RNN": torch.nn.RNNCell, "GRU": torch.nn.GRUCell, "LSTM": torch.nn.LSTMCell}
# Ours are (in, out), theirs (out, in), the gates in the same order; where we have one bias they have two.
THEIR_NAMES = {"w_x": "weight_ih", "w_h": "weight_hh", "b": "bias_ih", "b_h": "bias_hh"}

every_cell = pytest.mark.parametrize("kind", CELLS)


def assert_close(ours, theirs, tolerance=TOLERANCE):
    """The largest difference is at most `tolerance` of their largest element."""
    theirs = np.asarray(theirs.detach() if isinstance(theirs, torch.Tensor) else theirs)
    ours = np.asarray(ours.value if isinstance(ours, tg.Variable) else ours)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.isfinite(theirs).all()
    difference, scale = np.max(np.abs(ours - theirs)), np.max(np.abs(theirs))
    assert difference <= tolerance * scale, f"differs by {difference:.3g} of {scale:.3g}\n{ours}\n{theirs}"


def tensor(array, requires_grad=True):
    """A leaf tensor with a copy of `array`, or of the value of a Variable."""
    array = array.value if isinstance(array, tg.Variable) else array
    return torch.tensor(np.array(array), requires_grad=requires_grad)


def turned(tensor):
    """Their weights or gradients in our orientation."""
    return tensor.detach().numpy().T


def drawn_cell(kind, rng):
    """One of our cells in float64, biases too drawn at random."""
    cell = CELLS[kind](N_IN, N_HIDDEN, dtype=np.float64, rng=rng)
    for p in cell.parameters():
        p.value = rng.normal(size=p.shape) / 2
    return cell


def their_weights(arrays):
    """Leaf tensors by PyTorch's names, from arrays by ours; the bias that we lack is zero."""
    weights = {THEIR_NAMES[name]: tensor(array.T) for name, array in arrays.items()}
    return weights if "bias_hh" in weights else weights | {"bias_hh": torch.zeros_like(weights["bias_ih"])}


def their_step(kind, weights, x, state):
    """(output, state) of one step of their cell run with `weights`."""
    shell = THEIR_CELLS[kind](N_IN, N_HIDDEN, device="meta", dtype=torch.float64)
    state = torch.func.functional_call(shell, weights, (x, state))
    return (state[0] if kind == "LSTM" else state), state


def parts(state):
    """The arrays of a state: (h, c) for an LSTM, else (h,)."""
    return state if isinstance(state, tuple) else (state,)


def like(state, values):
    """`values` in the form of `state`."""
    return tuple(values) if isinstance(state, tuple) else values[0]


def drawn_state(cell, batch, rng):
    """A state as leaf Variables."""
    state = cell.initial_state(batch)
    return like(state, [tg.Variable(rng.normal(size=v.shape)) for v in parts(state)])


# -- cells -----------------------------------------------------------------------------------------


@every_cell
@pytest.mark.parametrize("batch", [1, 4])
def test_a_cell_over_five_steps_has_their_outputs_states_and_gradients(kind, batch):
    rng = np.random.default_rng(batch)
    cell = drawn_cell(kind, rng)
    xs = [tg.Variable(rng.normal(size=(batch, N_IN))) for _ in range(5)]
    first = state = drawn_state(cell, batch, rng)
    seen_by_loss = rng.normal(size=(5, batch, N_HIDDEN))
    weights, their_xs = their_weights(cell.state_dict()), [tensor(x) for x in xs]
    their_first = their_state = like(first, [tensor(v) for v in parts(first)])

    tape, loss, their_loss = tg.Tape(), 0.0, 0.0
    with tape:
        for x, their_x, c in zip(xs, their_xs, seen_by_loss, strict=True):
            out, state = cell(x, state)
            their_out, their_state = their_step(kind, weights, their_x, their_state)
            assert_close(out, their_out)
            for ours, theirs in zip(parts(state), parts(their_state), strict=True):
                assert_close(ours, theirs)
            loss += tg.sum(out * c)
            their_loss += torch.sum(their_out * torch.tensor(c))
        for ours, theirs in zip(parts(state), parts(their_state), strict=True):
            loss += tg.sum(ours * ours)
            their_loss += torch.sum(theirs * theirs)
    tape.backward(loss)
    their_loss.backward()

    assert_close(loss, their_loss)
    for name, p in cell.named_parameters():
        assert_close(p.grad, turned(weights[THEIR_NAMES[name]].grad))
    for ours, theirs in zip([*xs, *parts(first)], [*their_xs, *parts(their_first)], strict=True):
        assert_close(ours.grad, theirs.grad)


LSTM_ARGUMENTS = {
    "x": (2, N_IN),
    "h": (2, N_HIDDEN),
    "c": (2, N_HIDDEN),
    "w_x": (N_IN, 4 * N_HIDDEN),
    "w_h": (N_HIDDEN, 4 * N_HIDDEN),
    "b": (4 * N_HIDDEN,),
}


@pytest.mark.parametrize("live", [*LSTM_ARGUMENTS, "x h c", "w_x w_h b", "x h c w_x w_h b"])
@pytest.mark.parametrize("used", ["h", "c", "h and c"])
def test_lstm_step_has_their_gradients_whatever_is_differentiated_and_whatever_is_used(live, used):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape) for name, shape in LSTM_ARGUMENTS.items()}
    ours = {name: tg.Variable(a) if name in live.split() else a for name, a in arrays.items()}
    seeds = [rng.normal(size=(2, N_HIDDEN)) for _ in "hc"]
    tape = tg.Tape()
    with tape:
        new = dict(zip("hc", tg.lstm_step(**ours), strict=True))
    roots = [new[name] for name in used.split(" and ")]
    tape.backward(roots, seeds[: len(roots)])

    theirs = {name: tensor(arrays[name], name in live.split()) for name in ("x", "h", "c")}
    weights = their_weights({name: arrays[name] for name in ("w_x", "w_h", "b")})
    _, their_state = their_step("LSTM", weights, theirs["x"], (theirs["h"], theirs["c"]))
    their_new = dict(zip("hc", their_state, strict=True))
    their_roots = [their_new[name] for name in used.split(" and ")]
    torch.autograd.backward(their_roots, [torch.tensor(s) for s in seeds[: len(roots)]])
    for name in "hc":
        assert_close(new[name], their_new[name])
    for name in live.split():
        expected = theirs[name].grad if name in theirs else turned(weights[THEIR_NAMES[name]].grad)
        assert_close(ours[name].grad, expected)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # their jvp loads its rules through it
@every_cell
def test_forward_mode_through_a_cell_is_their_jvp(kind):
    """The tangent of the last state when the weights, the first state and the inputs move together."""
    rng = np.random.default_rng(3)
    cell = drawn_cell(kind, rng)
    parameters = dict(cell.named_parameters())
    xs, first = [tg.Variable(rng.normal(size=(2, N_IN))) for _ in range(4)], drawn_state(cell, 2, rng)
    tape, state = tg.Tape(), first
    with tape:
        for x in xs:
            _, state = cell(x, state)
    leaves = [*parameters.values(), *xs, *parts(first)]
    tangents = [rng.normal(size=v.shape) for v in leaves]
    pushed = tape.pushforward(dict(zip(leaves, tangents, strict=True)), list(parts(state)))

    def last_state(*arrays):
        named = zip(parameters, arrays, strict=False)
        weights = {THEIR_NAMES[name]: a.T if a.ndim == 2 else a for name, a in named}
        weights.setdefault("bias_hh", torch.zeros_like(weights["bias_ih"]))
        state = like(first, arrays[len(parameters) + len(xs) :])
        for x in arrays[len(parameters) : len(parameters) + len(xs)]:
            _, state = their_step(kind, weights, x, state)
        return parts(state)

    their_arrays = tuple(torch.tensor(v.value) for v in leaves)
    _, their_pushed = torch.func.jvp(last_state, their_arrays, tuple(map(torch.tensor, tangents)))
    for ours, theirs in zip(pushed, their_pushed, strict=True):
        assert_close(ours, theirs)


# -- layers and ops --------------------------------------------------------------------------------


def test_linear_has_their_output_and_gradients_on_a_stack_of_rows():
    rng = np.random.default_rng(0)
    layer = tg.nn.Linear(N_IN, N_OUT, dtype=np.float64, rng=rng)
    theirs = torch.nn.Linear(N_IN, N_OUT, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(layer.weight.value.T))
        theirs.bias.copy_(torch.tensor(layer.bias.value))
    x, seed = tg.Variable(rng.normal(size=(2, 6, N_IN))), rng.normal(size=(2, 6, N_OUT))
    tape = tg.Tape()
    y = tape.record(layer, x)
    tape.backward(y, seed)
    their_x = tensor(x)
    their_y = theirs(their_x)
    their_y.backward(torch.tensor(seed))
    assert_close(y, their_y)
    assert_close(x.grad, their_x.grad)
    assert_close(layer.weight.grad, turned(theirs.weight.grad))
    assert_close(layer.bias.grad, theirs.bias.grad)


@pytest.mark.parametrize("symbols", [[0, 3, 3, 1, 3], [[2, 2], [2, 0]], [[6]]], ids=str)
def test_embedding_adds_up_the_gradients_of_a_row_that_is_read_more_than_once(symbols):
    rng, symbols = np.random.default_rng(0), np.array(symbols)
    table = tg.nn.Embedding(7, N_IN, dtype=np.float64, rng=rng)
    weight, seed = tensor(table.weight), rng.normal(size=(*symbols.shape, N_IN))
    tape = tg.Tape()
    y = tape.record(table, symbols)
    tape.backward(y, seed)
    their_y = F.embedding(torch.tensor(symbols), weight)
    their_y.backward(torch.tensor(seed))
    assert_close(y, their_y)
    assert_close(table.weight.grad, weight.grad)


LABELS = np.array([0, 3, 3, 2])
TIES = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, -1.0, 3.0]])
ZEROS = np.array([-2.0, 0.0, 1.0, 0.0])


def normal(*shapes, scale=1.0):
    return lambda rng: [rng.normal(size=shape) * scale for shape in shapes]


def positive(*shapes):
    return lambda rng: [rng.uniform(0.5, 2.0, shape) for shape in shapes]


def exactly(*arrays):
    return lambda rng: arrays


def by_chunks(xp, a):
    p, q, r = xp.split(a, 3, -1) if xp is tg else torch.chunk(a, 3, -1)
    return p * q + r * r


# Each row: ours, theirs, and how the inputs are drawn.
OPS = {
    "softmax_cross_entropy": (
        lambda a: tg.softmax_cross_entropy(a, LABELS),
        lambda a: F.cross_entropy(a, torch.tensor(LABELS)),
        normal((4, 5)),
    ),
    "softmax_cross_entropy, far apart": (
        lambda a: tg.softmax_cross_entropy(a, LABELS),
        lambda a: F.cross_entropy(a, torch.tensor(LABELS)),
        normal((4, 5), scale=1000.0),
    ),
    "softmax_cross_entropy, a stack": (
        lambda a: tg.softmax_cross_entropy(a, LABELS.reshape(2, 2)),
        lambda a: F.cross_entropy(a.reshape(4, 5), torch.tensor(LABELS)),
        normal((2, 2, 5)),
    ),
    "softmax": (tg.softmax, lambda a: F.softmax(a, -1), normal((4, 5))),
    "softmax, axis 0": (lambda a: tg.softmax(a, axis=0), lambda a: F.softmax(a, 0), normal((4, 5))),
    "log_softmax": (tg.log_softmax, lambda a: F.log_softmax(a, -1), normal((4, 5))),
    "log_softmax, far apart": (tg.log_softmax, lambda a: F.log_softmax(a, -1), normal((4, 5), scale=1000.0)),
    "log_softmax, axis 1": (lambda a: tg.log_softmax(a, 1), lambda a: F.log_softmax(a, 1), normal((2, 3, 4))),
    "logsumexp": (tg.logsumexp, lambda a: torch.logsumexp(a, (0, 1)), normal((3, 4))),
    "logsumexp, axis": (lambda a: tg.logsumexp(a, axis=1), lambda a: torch.logsumexp(a, 1), normal((3, 4))),
    "logsumexp, axes kept": (
        lambda a: tg.logsumexp(a, axis=(0, 2), keepdims=True),
        lambda a: torch.logsumexp(a, (0, 2), keepdim=True),
        normal((3, 4, 2), scale=1000.0),
    ),
    "softplus": (tg.softplus, lambda a: F.softplus(a, threshold=1e9), normal((3, 4), scale=10.0)),
    "matmul, matrices": (tg.matmul, torch.matmul, normal((2, 3), (3, 4))),
    "matmul, stack and matrix": (tg.matmul, torch.matmul, normal((5, 2, 3), (3, 4))),
    "matmul, matrix and stack": (tg.matmul, torch.matmul, normal((2, 3), (5, 3, 4))),
    "matmul, stacks that broadcast": (tg.matmul, torch.matmul, normal((5, 1, 2, 3), (4, 3, 2))),
    "matmul, vectors": (tg.matmul, torch.matmul, normal((3,), (3,))),
    "matmul, vector and stack": (tg.matmul, torch.matmul, normal((3,), (5, 3, 4))),
    "matmul, stack and vector": (tg.matmul, torch.matmul, normal((5, 2, 3), (3,))),
    "max, ties on an axis": (lambda a: tg.max(a, axis=1), lambda a: a.max(1).values, exactly(TIES)),
    "max, ties on axis 0, kept": (
        lambda a: tg.max(a, axis=0, keepdims=True),
        lambda a: a.max(0, keepdim=True).values,
        exactly(TIES),
    ),
    "min, ties on an axis": (lambda a: tg.min(a, axis=1), lambda a: a.min(1).values, exactly(-TIES)),
    "max of all": (tg.max, torch.max, normal((3, 4))),
    "relu, at 0 too": (tg.relu, torch.relu, exactly(ZEROS)),
    "absolute, at 0 too": (tg.absolute, torch.abs, exactly(ZEROS)),
    "clip, at its limits too": (
        lambda a: tg.clip(a, -2.0, 0.0),
        lambda a: torch.clamp(a, -2.0, 0.0),
        exactly(np.array([-3.0, -2.0, -1.0, 0.0, 1.0])),
    ),
    "maximum": (tg.maximum, torch.maximum, normal((3, 4), (4,))),
    "tanh": (tg.tanh, torch.tanh, normal((3, 4))),
    "sigmoid": (tg.sigmoid, torch.sigmoid, normal((3, 4))),
    "exp": (tg.exp, torch.exp, normal((3, 4))),
    "expm1": (tg.expm1, torch.expm1, normal((3, 4), scale=1e-6)),
    "log": (tg.log, torch.log, positive((3, 4))),
    "log1p": (tg.log1p, torch.log1p, positive((3, 4))),
    "sqrt": (tg.sqrt, torch.sqrt, positive((3, 4))),
    "sin and cos": (lambda a: tg.sin(a) * tg.cos(a), lambda a: torch.sin(a) * torch.cos(a), normal((3, 4))),
    "square": (tg.square, torch.square, normal((3, 4))),
    "power": (tg.power, torch.pow, positive((3, 4), (3, 1))),
    "divide": (tg.divide, torch.divide, positive((3, 4), (4,))),
    "subtract": (tg.subtract, torch.subtract, normal((3, 1), (2, 1, 4))),
    "mean, axes": (lambda a: tg.mean(a, axis=(0, -1)), lambda a: torch.mean(a, (0, -1)), normal((2, 3, 4))),
    "sum, axis": (lambda a: tg.sum(a, axis=1), lambda a: torch.sum(a, 1), normal((2, 3, 4))),
    "where": (
        lambda a, b: tg.where(TIES > 1, a, b),
        lambda a, b: torch.where(torch.tensor(TIES > 1), a, b),
        normal((3, 3), (3,)),
    ),
    "concat": (
        lambda a, b: tg.concat([a, b, a], axis=1),
        lambda a, b: torch.cat([a, b, a], 1),
        normal((2, 3), (2, 1)),
    ),
    "stack": (
        lambda a, b: tg.stack([a, b, a], axis=1),
        lambda a, b: torch.stack([a, b, a], 1),
        normal((2, 3), (2, 3)),
    ),
    "split": (lambda a: by_chunks(tg, a), lambda a: by_chunks(torch, a), normal((2, 6))),
    "getitem, repeated": (lambda a: a[LABELS], lambda a: a[torch.tensor(LABELS)], normal((5, 2))),
    "take, repeated": (
        lambda a: tg.take(a, LABELS, axis=1),
        lambda a: torch.index_select(a, 1, torch.tensor(LABELS)),
        normal((2, 5)),
    ),
    "transpose": (lambda a: a.transpose(1, 2, 0), lambda a: a.permute(1, 2, 0), normal((2, 3, 4))),
    "broadcast_to": (
        lambda a: tg.broadcast_to(a, (2, 3, 4)),
        lambda a: a.broadcast_to(2, 3, 4),
        normal((3, 1)),
    ),
}


@pytest.mark.parametrize(("op", "their_op", "draw"), OPS.values(), ids=OPS)
def test_an_op_has_their_value_and_gradients(op, their_op, draw):
    rng = np.random.default_rng(0)
    ours = [tg.Variable(a) for a in draw(rng)]
    theirs = [tensor(v) for v in ours]
    tape = tg.Tape()
    y, their_y = tape.record(op, *ours), their_op(*theirs)
    assert_close(y, their_y)
    seed = rng.normal(size=y.shape)
    tape.backward(y, seed)
    their_y.backward(torch.tensor(seed))
    for v, their_v in zip(ours, theirs, strict=True):
        assert_close(v.grad, their_v.grad)


def test_ties_that_they_share_out_go_to_the_first_here():
    """In `maximum`, and in `max` of all elements: each convention gives a subgradient."""
    a, b, tape = tg.Variable([1.0, 2.0]), tg.Variable([1.0, 2.0]), tg.Tape()
    tape.backward(tape.record(tg.maximum, a, b), np.ones(2))
    np.testing.assert_array_equal([a.grad, b.grad], [[1, 1], [0, 0]])
    their_a, their_b = tensor(np.array([1.0, 2.0])), tensor(np.array([1.0, 2.0]))
    torch.maximum(their_a, their_b).backward(torch.ones(2, dtype=torch.float64))
    np.testing.assert_array_equal([their_a.grad, their_b.grad], [[0.5, 0.5], [0.5, 0.5]])

    ties = tg.Variable(TIES)
    tape.backward(tape.record(tg.max, ties))
    np.testing.assert_array_equal(ties.grad, [[0, 0, 0], [0, 0, 0], [1, 0, 0]])
    their_ties = tensor(TIES)
    torch.amax(their_ties).backward()
    np.testing.assert_array_equal(their_ties.grad, [[0, 0, 0], [0, 0, 0], [0.5, 0, 0.5]])


# -- windows ---------------------------------------------------------------------------------------

STEPS, BATCH = 11, 2
WINDOWS = [(window, stride) for window in (1, 3, 5) for stride in range(1, window + 1)]


class Model(tg.nn.Module):
    """A cell and a readout."""

    def __init__(self, kind, rng):
        self.cell = drawn_cell(kind, rng)
        self.readout = tg.nn.Linear(N_HIDDEN, N_OUT, dtype=np.float64, rng=rng)

    def forward(self, x, label, state):
        out, state = self.cell(x, state)
        return tg.softmax_cross_entropy(self.readout(out), label), state


def their_names(kind, name):
    """PyTorch's name of our parameter `name`; a cell's weights stay apart from the readout's."""
    owner, _, own = name.partition(".")
    return f"cell.{THEIR_NAMES[own]}" if owner == "cell" else f"readout.{own}"


class TheirModel(torch.nn.Module):
    """The same in PyTorch, with copies of the weights. A bias that ours lacks is zero and stays so."""

    def __init__(self, kind, ours):
        super().__init__()
        self.cell = THEIR_CELLS[kind](N_IN, N_HIDDEN, dtype=torch.float64)
        self.readout = torch.nn.Linear(N_HIDDEN, N_OUT, dtype=torch.float64)
        if kind != "GRU":
            self.cell.bias_hh.requires_grad_(False).zero_()
        with torch.no_grad():
            for name, p in ours.named_parameters():
                self.get_parameter(their_names(kind, name)).copy_(torch.tensor(p.value.T))

    def forward(self, x, label, state):
        state = self.cell(x, state)
        out = state[0] if isinstance(state, tuple) else state
        return F.cross_entropy(self.readout(out), label), state


def drawn_stream(rng, steps=STEPS):
    return [(rng.normal(size=(BATCH, N_IN)), rng.integers(0, N_OUT, BATCH)) for _ in range(steps)]


def rebuilt_window(kind, model, steps, seeded):
    """(gradients by our names, adjoints of the entering state) of the losses of the last `seeded` `steps`.

    Each step is run again with its own clone of the weights that it ran with, the first from the recorded
    state that entered it, detached. A parameter's gradient is the sum over its clones.
    """
    names = {name: their_names(kind, name) for name, _ in model.named_parameters()}
    shell = TheirModel(kind, model)
    entered = state = like(steps[0].state, [tensor(v) for v in parts(steps[0].state)])
    clones, losses = [], []
    for step in steps:
        clone = {names[name]: tensor(step.weights[name].T) for name in names}
        x, label = torch.tensor(step.x), torch.tensor(step.label)
        loss, state = torch.func.functional_call(shell, clone, (x, label, state))
        clones.append(clone)
        losses.append(loss)
    sum(losses[-seeded:]).backward()

    def total(name):  # the readout's clones at steps before the losses have no gradient
        grads = [clone[names[name]].grad for clone in clones]
        return turned(sum(grad for grad in grads if grad is not None))

    return {name: total(name) for name in names}, [v.grad for v in parts(entered)]


def train_over_windows(kind, schedule, lr, **options):
    """Train on a stream. After each sweep, before the SGD step: model, Sweep, steps so far, losses swept."""
    rng = np.random.default_rng(5)
    model, tape, steps = Model(kind, rng), tg.CapacitorTape(schedule, **options), []
    optimizer = tg.optim.SGD(model.parameters(), lr)
    state, pending = drawn_state(model.cell, BATCH, rng), 0
    for x, label in drawn_stream(rng):
        weights = {name: p.value.copy() for name, p in model.named_parameters()}
        steps.append(SimpleNamespace(x=x, label=label, state=state, weights=weights))
        with tape:
            loss, state = model(x, label, state)
        sweep, pending = tape.backward(loss), pending + 1
        if sweep is None and len(steps) == STEPS:
            sweep = tape.sweep()
        if sweep:
            yield model, sweep, steps, pending
            optimizer.step()
            optimizer.zero_grad()
            pending = 0


@every_cell
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_a_window_s_gradient_is_theirs_rebuilt_from_the_state_that_entered_it(kind, window, stride):
    """Recorded weights, a step of SGD after each sweep: exact, although the window spans several versions."""
    sweeps, schedule = 0, tg.Sliding(window, stride)
    for model, sweep, steps, pending in train_over_windows(kind, schedule, lr=0.5, weights="recorded"):
        gradients, adjoints = rebuilt_window(kind, model, steps[-window:], pending)
        assert (sweep.segments, sweep.losses) == (min(window, len(steps)), pending)
        for name, p in model.named_parameters():
            assert_close(sweep.gradients[p], gradients[name])
            assert_close(p.grad, gradients[name])
        entered = parts(steps[-window:][0].state)
        for v, adjoint in zip(entered, adjoints, strict=True):
            assert_close(sweep[v] if len(steps) <= window else sweep.left_edge[v], adjoint)
        sweeps += 1
    assert sweeps == -(-STEPS // stride)


@every_cell
def test_a_window_that_spans_steps_of_sgd_tells_its_weights_from_today_s(kind):
    """Rebuilt with today's weights the gradient is another, so the test above can fail."""
    differences = []
    for model, sweep, steps, pending in train_over_windows(kind, tg.Sliding(3), lr=0.5):
        today = [SimpleNamespace(**{**vars(step), "weights": steps[-1].weights}) for step in steps[-3:]]
        other = rebuilt_window(kind, model, today, pending)[0]["cell.w_h"]
        differences.append(np.max(np.abs(sweep.gradients[model.cell.w_h] - other)) / np.max(np.abs(other)))
    assert differences[0] < TOLERANCE
    assert min(differences[1:]) > 1e-4


@every_cell
def test_with_a_learning_rate_of_0_today_s_weights_give_the_recorded_gradient(kind):
    for model, sweep, steps, pending in train_over_windows(kind, tg.Sliding(5, 2), lr=0.0, weights="current"):
        gradients, _ = rebuilt_window(kind, model, steps[-5:], pending)
        for name, p in model.named_parameters():
            assert_close(sweep.gradients[p], gradients[name])


@every_cell
@pytest.mark.parametrize("window", [1, 3, 5])
def test_chunked_trains_like_their_loop_that_detaches_every_k_steps(kind, window):
    rng = np.random.default_rng(window)
    model = Model(kind, rng)
    theirs = TheirModel(kind, model)
    optimizer = tg.optim.SGD(model.parameters(), 0.5)
    their_optimizer = torch.optim.SGD(theirs.parameters(), 0.5)
    stream = drawn_stream(rng, steps=4 * window)
    before = {name: p.value.copy() for name, p in model.named_parameters()}

    tape, state, sweeps = tg.CapacitorTape(tg.Chunked(window)), model.cell.initial_state(BATCH), 0
    for x, label in stream:
        with tape:
            loss, state = model(x, label, state)
        if tape.backward(loss):
            optimizer.step()
            optimizer.zero_grad()
            sweeps += 1
    assert sweeps == 4

    zeros, their_loss = torch.zeros(BATCH, N_HIDDEN, dtype=torch.float64), 0.0
    their_state = like(state, [zeros for _ in parts(state)])
    for t, (x, label) in enumerate(stream, start=1):
        loss, their_state = theirs(torch.tensor(x), torch.tensor(label), their_state)
        their_loss = their_loss + loss
        if t % window == 0:
            their_optimizer.zero_grad()
            their_loss.backward()
            their_optimizer.step()
            their_state, their_loss = like(their_state, [v.detach() for v in parts(their_state)]), 0.0

    for ours, their_part in zip(parts(state), parts(their_state), strict=True):
        assert_close(ours, their_part)
    for name, p in model.named_parameters():
        assert_close(p, turned(theirs.get_parameter(their_names(kind, name))))
        assert np.max(np.abs(p.value - before[name])) > 1e-3


def test_the_well_known_recipe_for_a_sliding_window_counts_some_paths_twice_and_a_capacitor_none():
    """x_t = w x_{t-1}, loss x_t, window 3. The recipe keeps the states' `.grad` from sweep to sweep."""
    w, states, recipe = tensor(np.array(0.2)), [(None, tensor(np.array(0.9)))], []
    for _ in range(3):
        entered = states[-1][1].detach().requires_grad_()
        states.append((entered, w * entered))
        w.grad = None
        states[-1][1].backward(retain_graph=True)
        for older, newer in zip(states[-2:0:-1], states[:1:-1], strict=True):
            older[1].backward(newer[0].grad, retain_graph=True)
        recipe.append(w.grad.item())
    assert recipe == pytest.approx([0.9, 0.36, 0.288], rel=TOLERANCE)

    ours, x, tape, exact = tg.Variable(0.2), tg.constant(0.9), tg.CapacitorTape(tg.Sliding(3)), []
    for _ in range(3):
        with tape:
            x = ours * x
        exact.append(tape.backward(x)[ours].item())
    assert exact == pytest.approx([0.9, 0.36, 0.108], rel=TOLERANCE)


# -- optimizers and limits -------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": (lambda params: tg.optim.SGD(params, 0.3), lambda params: torch.optim.SGD(params, 0.3)),
    "SGD with momentum": (
        lambda params: tg.optim.SGD(params, 0.1, momentum=0.9),
        lambda params: torch.optim.SGD(params, 0.1, momentum=0.9),
    ),
    "Adam": (lambda params: tg.optim.Adam(params, 0.01), lambda params: torch.optim.Adam(params, 0.01)),
    "Adam, other settings": (
        lambda params: tg.optim.Adam(params, 0.02, betas=(0.5, 0.9), eps=1e-3),
        lambda params: torch.optim.Adam(params, 0.02, betas=(0.5, 0.9), eps=1e-3),
    ),
}
every_optimizer = pytest.mark.parametrize(("ours", "theirs"), OPTIMIZERS.values(), ids=OPTIMIZERS)


class Fit:
    """A small network that both libraries fit to the same data, each with its own gradients."""

    def __init__(self):
        rng = np.random.default_rng(11)
        self.x, self.y = rng.normal(size=(6, N_IN)), rng.normal(size=(6, N_OUT))
        shapes = [(N_IN, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN, N_OUT)]
        self.ours = [tg.Parameter(rng.normal(size=shape)) for shape in shapes]
        self.theirs = [tensor(p) for p in self.ours]

    def sweep(self):
        """Put the gradients of the mean squared error into `.grad` on both sides."""
        v, b, w = self.ours
        tape = tg.Tape()
        with tape:
            loss = tg.mean(tg.square(tg.tanh(self.x @ v + b) @ w - self.y))
        tape.backward(loss)
        v, b, w = self.theirs
        F.mse_loss(torch.tanh(torch.tensor(self.x) @ v + b) @ w, torch.tensor(self.y)).backward()

    def assert_same(self, attribute):
        for ours, theirs in zip(self.ours, self.theirs, strict=True):
            assert_close(getattr(ours, attribute), theirs.data if attribute == "value" else theirs.grad)


def train(fit, optimizer, their_optimizer, limit=lambda: None, steps=20):
    for step in range(steps):
        if step == steps // 2:  # a schedule of learning rates
            optimizer.lr *= 0.5
            their_optimizer.param_groups[0]["lr"] *= 0.5
        optimizer.zero_grad()
        their_optimizer.zero_grad()
        fit.sweep()
        limit()
        fit.assert_same("grad")
        optimizer.step()
        their_optimizer.step()
        fit.assert_same("value")


@every_optimizer
def test_an_optimizer_takes_their_twenty_steps(ours, theirs):
    fit = Fit()
    train(fit, ours(fit.ours), theirs(fit.theirs))


@every_optimizer
def test_clipping_by_value_leaves_their_gradients(ours, theirs):
    fit, clipped = Fit(), []

    def limit():
        clipped.append(any(np.max(np.abs(p.grad)) > 0.1 for p in fit.ours))
        tg.optim.clip_by_value(fit.ours, 0.1)
        torch.nn.utils.clip_grad_value_(fit.theirs, 0.1)

    train(fit, ours(fit.ours), theirs(fit.theirs), limit)
    assert any(clipped)


@pytest.mark.parametrize("longest", [0.05, 0.5, 1e9])
@every_optimizer
def test_clipping_by_norm_is_theirs_but_for_the_1e_6_that_they_add_to_the_norm(ours, theirs, longest):
    """They scale by limit / (norm + 1e-6), a bit short; given a limit lower by that factor, ours agrees."""
    fit = Fit()

    def limit():
        their_norm = torch.nn.utils.clip_grad_norm_(fit.theirs, longest).item()
        norm = tg.optim.clip_by_norm(fit.ours, longest * their_norm / (their_norm + 1e-6))
        assert norm == pytest.approx(their_norm, rel=TOLERANCE)

    train(fit, ours(fit.ours), theirs(fit.theirs), limit)


def test_clipping_by_norm_reaches_the_limit_itself():
    fit = Fit()
    fit.sweep()
    before = [p.grad.copy() for p in fit.ours]
    norm = tg.optim.clip_by_norm(fit.ours, 0.01)
    torch.nn.utils.clip_grad_norm_(fit.theirs, 0.01)
    assert norm > 0.1
    assert np.sqrt(sum(np.sum(p.grad**2) for p in fit.ours)) == pytest.approx(0.01, rel=TOLERANCE)
    for p, grad, theirs in zip(fit.ours, before, fit.theirs, strict=True):
        assert_close(p.grad, grad * (0.01 / norm))
        assert_close(p.grad, theirs.grad, tolerance=1.1e-6 / norm)


# -- derivatives of derivatives --------------------------------------------------------------------


def along(adjoints, directions):
    """Σ <adjoint, direction>: a scalar to differentiate once more."""
    return sum((adjoint * d).sum() for adjoint, d in zip(adjoints, directions, strict=True))


def assert_three_orders_agree(loss, leaves, their_loss, their_leaves, rng):
    """The gradient g, the gradient of <g, d>, and that of <the gradient of <g, d>, e>, for random d and e.

    Ours sweeps twice with record=True; theirs is autograd.grad with create_graph.
    """
    d, e = ([rng.normal(size=v.shape) for v in leaves] for _ in range(2))
    tape = tg.Tape()
    with tape:
        first = tape.backward(loss(), record=True)
        once = [first[v] for v in leaves]
        second = tape.backward(along(once, d), record=True)
        twice = [second[v] for v in leaves]
        last = along(twice, e)
    third = tape.backward(last)
    their_once = torch.autograd.grad(their_loss(), their_leaves, create_graph=True)
    their_next = along(their_once, map(torch.tensor, d))
    their_twice = torch.autograd.grad(their_next, their_leaves, create_graph=True)
    their_thrice = torch.autograd.grad(along(their_twice, map(torch.tensor, e)), their_leaves)
    for i, v in enumerate(leaves):
        assert_close(once[i], their_once[i])
        assert_close(twice[i], their_twice[i])
        assert_close(third[v], their_thrice[i])


def test_a_tanh_rnn_swept_three_times_has_their_third_derivatives():
    rng = np.random.default_rng(0)
    leaves = [tg.Variable(rng.normal(size=shape) / 2) for shape in [(3, 4), (4, 4), (4,), (2, 4), (5, 2, 3)]]
    target = rng.normal(size=(2, 4))

    def loss(xp, w_x, w_h, b, h, xs, target):
        total = 0.0
        for t in range(5):
            h = xp.tanh(xs[t] @ w_x + h @ w_h + b)
            total = total + xp.mean((h - target) ** 2)
        return total

    their_leaves = [tensor(v) for v in leaves]
    assert_three_orders_agree(
        lambda: loss(tg, *leaves, target), leaves,
        lambda: loss(torch, *their_leaves, torch.tensor(target)), their_leaves, rng,
    )  # fmt: skip


@every_cell
def test_a_cell_swept_three_times_has_their_third_derivatives(kind):
    """For the LSTM this is tg.lstm_step, whose recorded pass runs its reference made of ops."""
    rng = np.random.default_rng(1)
    cell = drawn_cell(kind, rng)
    xs = [tg.Variable(rng.normal(size=(2, N_IN))) for _ in range(3)]
    first = drawn_state(cell, 2, rng)
    labels = rng.integers(0, N_HIDDEN, (3, 2))
    # Differentiated in our orientation, so that one direction serves both.
    parameters = dict(cell.named_parameters())
    their_parameters = {name: tensor(p) for name, p in parameters.items()}
    weights = {THEIR_NAMES[name]: p.T if p.ndim == 2 else p for name, p in their_parameters.items()}
    weights.setdefault("bias_hh", torch.zeros_like(weights["bias_ih"]))
    their_xs = [tensor(x) for x in xs]
    their_first = like(first, [tensor(v) for v in parts(first)])

    def loss():
        state, total = first, 0.0
        for x, label in zip(xs, labels, strict=True):
            out, state = cell(x, state)
            total = total + tg.softmax_cross_entropy(out, label)
        return total + sum(tg.sum(v**3) for v in parts(state))

    def their_loss():
        state, total = their_first, 0.0
        for x, label in zip(their_xs, labels, strict=True):
            out, state = their_step(kind, weights, x, state)
            total = total + F.cross_entropy(out, torch.tensor(label))
        return total + sum(torch.sum(v**3) for v in parts(state))

    leaves = [*parameters.values(), *xs, *parts(first)]
    their_leaves = [*their_parameters.values(), *their_xs, *parts(their_first)]
    assert_three_orders_agree(loss, leaves, their_loss, their_leaves, rng)


@pytest.mark.parametrize("used", ["h", "c", "h and c"])
def test_lstm_step_has_their_second_derivatives_whichever_output_is_used(used):
    rng = np.random.default_rng(2)
    leaves = [tg.Variable(rng.normal(size=shape)) for shape in LSTM_ARGUMENTS.values()]
    their_leaves = [tensor(v) for v in leaves]

    def loss():
        new = dict(zip("hc", tg.lstm_step(*leaves), strict=True))
        return sum(tg.sum(tg.sin(new[name])) for name in used.split(" and "))

    def their_loss():
        x, h, c, w_x, w_h, b = their_leaves
        weights = {"weight_ih": w_x.T, "weight_hh": w_h.T, "bias_ih": b, "bias_hh": torch.zeros_like(b)}
        new = dict(zip("hc", their_step("LSTM", weights, x, (h, c))[1], strict=True))
        return sum(torch.sum(torch.sin(new[name])) for name in used.split(" and "))

    assert_three_orders_agree(loss, leaves, their_loss, their_leaves, rng)
