"""Arrays of CuPy: every op, a training loop, moves between devices. On a stand-in, see `strict_cupy.py`.

On a machine with a GPU the same tests run on CuPy itself:

    TAPEGRAD_TEST_CUPY=real pytest tests/test_cupy.py

The host's result is the truth: the same calls on the device must give the same numbers, as arrays of CuPy. A
training step must not wait for the device, but where its author reads a number.
"""

import copy
import os
import pickle
import sys

import numpy as np
import pytest

import numpy_calls
import strict_cupy
import tapegrad as tg
import test_primitives as ops
from tapegrad.backend import device as places
from tapegrad.core.primitive import REGISTRY
from tapegrad.ops import names, protocols

scipy = pytest.importorskip("scipy")

# CuPy's copy of SciPy has no functions of Bessel of any order; j0, j1, i0, i1, k0, k1, y0 and y1 it has.
NOT_IN_CUPY = {"bessel_j", "bessel_y", "bessel_i", "bessel_i_scaled", "bessel_k"}


REAL = os.environ.get("TAPEGRAD_TEST_CUPY") == "real"
asks_the_stand_in = pytest.mark.skipif(REAL, reason="only the stand-in can tell")


@pytest.fixture(autouse=True)
def cupy():
    if REAL:
        yield pytest.importorskip("cupy")
        return
    with strict_cupy.installed() as module:
        yield module


def there(x):
    """`x` with every array of NumPy's on the device."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(there, x))
    if isinstance(x, dict):
        return {key: there(value) for key, value in x.items()}
    return tg.asarray(x, device="cuda") if isinstance(x, np.ndarray) else x


def here(x):
    """An array on the host, for a comparison."""
    x = x.value if isinstance(x, tg.Variable) else x
    return x.get() if places.on_device(x) else np.asarray(x)


def same(found, expected, rtol=1e-12, atol=1e-13):
    assert places.on_device(found.value if isinstance(found, tg.Variable) else found), type(found)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(here(found), here(expected), rtol=rtol, atol=atol)


# -- the stand-in ------------------------------------------------------------------------------------------


@asks_the_stand_in
def test_the_stand_in_refuses_arrays_of_numpy(cupy):
    a, b = cupy.asarray(np.ones(3)), np.ones(3)
    for mix in (
        lambda: a + b, lambda: b + a, lambda: np.add(a, b), lambda: cupy.add(a, b), lambda: b @ a, lambda: np.asarray(a),
        lambda: cupy.concatenate([a, b]), lambda: np.where(b > 0, a, 1.0), lambda: a + np.ones(()), lambda: b[a.astype(int)],
        lambda: a[np.zeros(1, int)], lambda: cupy.sum(b),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            mix()
    for fit in (
        lambda: a + 1,
        lambda: np.float64(2) * a,
        lambda: np.add(a, a),
        lambda: np.sum(a),
        lambda: -a,
    ):
        assert type(fit()) is cupy.ndarray


@asks_the_stand_in
def test_the_stand_in_lacks_what_cupy_lacks(cupy):
    a = cupy.asarray(np.ones(3))
    assert not hasattr(cupy, "vecdot") and not hasattr(cupy.linalg, "svdvals") and not hasattr(a, "__index__")
    with pytest.raises(TypeError, match="initial"):
        cupy.sum(a, initial=1.0)
    with pytest.raises(NotImplementedError, match=r"logaddexp\.accumulate"):
        cupy.logaddexp.accumulate(a)
    with pytest.raises(AttributeError):
        a.flags.writeable = False


@asks_the_stand_in
def test_the_stand_in_counts_waits_and_forbids_them_in_a_capture(cupy):
    a, b = cupy.asarray(np.ones((3, 3))), cupy.asarray(np.ones((3, 3)))
    with strict_cupy.watched() as waits:
        float(a.sum()), bool(a[0, 0]), a[a > 0], cupy.unique(a), a.get()
    assert waits == ["float", "bool", "mask", "unique", "get"]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        cupy.multiply(a, 2.0, out=b)
        for forbidden in (
            lambda: a @ b,
            lambda: a + b,
            lambda: a.get(),
            lambda: float(a[0, 0]),
            lambda: cupy.zeros(3),
        ):
            with pytest.raises((RuntimeError, NotImplementedError, MemoryError)):
                forbidden()
        stream.end_capture()
    assert (a @ b).shape == (3, 3)


# -- every op ----------------------------------------------------------------------------------------------


def results_of(primitive, case, on_device):
    """Values, gradients, tangents, gradients of gradients and `.grad` of an op: once each, on the host or there."""
    move = there if on_device else lambda x: x
    rng = ops.seeded(primitive, case)
    arguments = ops.as_leaves(primitive, move(ops.sample(primitive, case, rng)))
    leaves, outer, tape = ops.leaves_of(arguments), tg.Tape(), tg.Tape()
    with outer:
        with tape:
            ys = ops.outputs_of(primitive.function(*arguments, **move(case.statics)))
        cts = move([rng.standard_normal(y.shape) for y in ys])
        along = move([rng.standard_normal(v.shape) for v in leaves])
        first = tape.backward(ys, cts)
        recorded = tape.backward(ys, cts, record=True)
        products = [tg.sum(recorded[v] * t) for v, t in zip(leaves, along, strict=True)]
        total = products[0]
        for product in products[1:]:
            total = total + product
    pushed = tape.pushforward(dict(zip(leaves, along, strict=True)), ys)
    second = outer.backward(total) if isinstance(total, tg.Variable) and total._slot else None
    found = [*ys, *(first[v] for v in leaves), *pushed, *(recorded[v] for v in leaves)]
    return [*found, *([] if second is None else [second[v] for v in leaves]), *(v.grad for v in leaves)]


@ops.every_op_and_case
def test_every_op_computes_on_a_device_what_it_does_on_the_host(primitive, case):
    if primitive.name == "transfer":
        pytest.skip("it moves; see the test of its own")
    if primitive.name in NOT_IN_CUPY:
        with pytest.raises(tg.UnsupportedError, match=r"CuPy has no such function"):
            results_of(primitive, case, on_device=True)
        return
    for found, expected in zip(
        results_of(primitive, case, True), results_of(primitive, case, False), strict=True
    ):
        same(found, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    "primitive",
    [p for p in REGISTRY.values() if p.name not in NOT_IN_CUPY | {"astype", "transfer"}],
    ids=lambda p: p.name,
)
def test_every_op_keeps_the_dtype_on_a_device(primitive, dtype):
    case = ops.cases_of(primitive)[0]
    inputs = there(ops.sample(primitive, case, ops.seeded(primitive, case), dtype))
    arguments = ops.as_leaves(primitive, inputs)
    tape = tg.Tape()
    with tape:
        ys = ops.outputs_of(primitive.function(*arguments, **there(case.statics)))
    tape.backward(ys, there([np.ones(y.shape, dtype) for y in ys]))
    assert {y.dtype for y in ys} == {np.dtype(dtype)}
    assert {v.grad.dtype for v in ops.leaves_of(arguments)} == {np.dtype(dtype)}


def calls():
    for name, several in numpy_calls.FUNCTIONS.items():
        if name in names.RECORDED:
            yield from (
                pytest.param(name, call, id=f"{name}-{i}")
                for i, call in enumerate(several)
                if not lists_of_numbers((call.args, call.kwargs))
            )


def lists_of_numbers(value):
    """Whether there is a list of floats: an array of the host, which does not go with one of a device."""
    if isinstance(value, numpy_calls.fixed):
        return lists_of_numbers(value.value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return (isinstance(value, list) and any(isinstance(part, float) for part in value)) or any(
        map(lists_of_numbers, parts)
    )


def placed_operands(value, move, leaves):
    """The arguments of a call, moved, with a leaf in the place of every floating-point array."""
    if isinstance(value, numpy_calls.fixed):
        return move(value.value)
    if isinstance(value, (list, tuple)):
        return type(value)(placed_operands(part, move, leaves) for part in value)
    if isinstance(value, dict):
        return {key: placed_operands(part, move, leaves) for key, part in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        leaves.append(tg.Variable(move(value)))
        return leaves[-1]
    return move(value)


def flat(result):
    return [x for part in result for x in flat(part)] if isinstance(result, (list, tuple)) else [result]


@pytest.mark.parametrize(("name", "call"), list(calls()))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_numpys_functions_compute_on_a_device_what_they_do_on_the_host(name, call):
    found = []
    function = {protocols.name_of(f): f for f in numpy_functions()}[name]
    for move in (there, lambda x: x):
        leaves, tape = [], tg.Tape()
        args, kwargs = placed_operands((call.args, call.kwargs), move, leaves)
        with tape:
            ys = [y for y in flat(function(*args, **kwargs)) if isinstance(y, tg.Variable) and y._slot > 0]
        if not ys:  # what came is handed on
            return
        cts = [np.cos(np.arange(y.size) + i).reshape(y.shape) for i, y in enumerate(ys)]
        adjoints = tape.backward(ys, move(cts))
        found.append([*ys, *(adjoints[v] for v in leaves)])
    for on_device, on_host in zip(*found, strict=True):
        same(on_device, on_host, 1e-11, 1e-12)


def numpy_functions():
    import numpy.testing.overrides as overrides

    return overrides.get_overridable_numpy_array_functions()


A, B = np.array([[0.5, 1.5, 1.05], [2.0, 0.25, 0.75]]), np.array([[1.25, 0.6, 0.9], [0.3, 1.7, 2.2]])
IMAGE, KERNEL = np.cos(np.arange(48.0)).reshape(1, 2, 4, 6), np.sin(np.arange(24.0)).reshape(2, 2, 3, 2)
OWN = {
    "around": lambda a, b: np.around(a, 1) * a, "floor_divide": lambda a, b: tg.floor_divide(a, b) * a,
    "sum_to": lambda a, b: tg.sum_to(a, (3,)), "logsumexp": lambda a, b: tg.logsumexp(a, axis=0),
    "index_put": lambda a, b: tg.index_put(a, [1, 1], b), "index_add": lambda a, b: tg.index_add(a, (0, [1, 1]), b[:, 0]),
    "cummax": lambda a, b: tg.cummax(a, 1), "cummin": lambda a, b: tg.cummin(a), "clip": lambda a, b: tg.clip(a, 0.6, b),
    "quantile": lambda a, b: tg.quantile(a, [0.2, 0.7], axis=1), "nanmedian": lambda a, b: tg.nanmedian(tg.where(a > 1.9, np.nan, a), 1),
    "var": lambda a, b: tg.var(a, 1, where=a.value < 1.9), "max": lambda a, b: np.max(a, axis=0, initial=0.7, where=b.value > 0.5),
    "interp": lambda a, b: tg.interp(a, tg.sort(b[1]), b[0]), "softmax": lambda a, b: tg.special.softmax(a, 1) * b,
    "log_softmax": lambda a, b: tg.log_softmax(a), "layer_norm": lambda a, b: (a - tg.mean(a, -1, True)) / tg.std(a, -1, keepdims=True),
    "take": lambda a, b: np.take(a, [0, -1], axis=1), "linspace": lambda a, b: tg.linspace(a, b, 4), "vander": lambda a, b: tg.vander(a[0]),
    "einsum": lambda a, b: tg.einsum("ij,kj->ik", a, b), "gradient": lambda a, b: tg.gradient(a, 0.5)[1],
    "minmax": lambda a, b: tg.maximum(a, 1.0) - tg.minimum(1.0, b), "compare": lambda a, b: tg.where((a > b) & (a != 2.0), a * 2, b),
    "loops": lambda a, b: tg.stack([row * row for row in a]), "norm": lambda a, b: tg.linalg.norm(a @ b.T, 2) + tg.linalg.norm(a),
    "solve": lambda a, b: tg.linalg.solve(a @ a.T, b), "det": lambda a, b: tg.linalg.det(a @ b.T) + tg.linalg.slogdet(a @ a.T)[1],
    "special": lambda a, b: tg.special.gammaln(a) + tg.special.polygamma(2, b) + tg.special.xlogy(a, b) + tg.special.betainc(1.5, 0.7, a / 3.0),
    "order 0": lambda a, b: tg.special.j0(a) + tg.special.i0(a) + tg.special.k0(b) + tg.special.y0(b),
    "polynomials": lambda a, b: tg.polyval(a[0], b) + np.polyint(a[1], 1, 0.5)[0],
}  # fmt: skip
IMAGES = {
    "conv1d": lambda x, k: tg.conv1d(x[:, :, 0], k[:, :, :, 0], padding=1),
    "conv2d": lambda x, k: tg.conv2d(x, k, stride=2, padding=(1, 0), dilation=(1, 2)),
    "conv_transpose2d": lambda x, k: tg.conv_transpose2d(x, k, stride=2),
    "max_pool2d": lambda x, k: tg.max_pool2d(x, 2, stride=1, padding=1),
    "avg_pool1d": lambda x, k: tg.avg_pool1d(x[0], 3, padding=1),
    "sliding_window_view": lambda x, k: tg.sliding_window_view(x[0, 0], (2, 2)),
}


@pytest.mark.parametrize("name", [*OWN, *IMAGES])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_made_of_ops_compute_on_a_device_what_they_do_on_the_host(name):
    function, arrays = (OWN[name], (A, B)) if name in OWN else (IMAGES[name], (IMAGE, KERNEL))
    found = []
    for move in (there, lambda x: x):
        tape, leaves = tg.Tape(), [tg.Variable(move(x)) for x in arrays]
        with tape:
            y = function(*leaves)
        adjoints = tape.backward(y, move(np.cos(np.arange(y.size)).reshape(y.shape)))
        found.append([y, *(adjoints[v] for v in leaves)])
    for on_device, on_host in zip(*found, strict=True):
        same(on_device, on_host, 1e-11, 1e-12)


# -- a training loop ---------------------------------------------------------------------------------------

CELLS = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}
OPTIMIZERS = {
    "sgd": lambda params: tg.optim.SGD(params, 0.1),
    "momentum": lambda params: tg.optim.SGD(params, 0.1, momentum=0.9),
    "adam": lambda params: tg.optim.Adam(params, 0.01),
}


class PlainCell(tg.nn.Module):
    """A recurrence in plain ops: slices, products, gates, a constant that is computed with."""

    def __init__(self, n_in, n_hidden, *, dtype, rng):
        self.inside, self.across = (
            tg.nn.Linear(n, 2 * n_hidden, dtype=dtype, rng=rng) for n in (n_in, n_hidden)
        )
        self.n = n_hidden

    def initial_state(self, batch):
        weight = self.across.weight.value
        return tg.constant(places.zeros_beside(weight, (batch, self.n), weight.dtype))

    def forward(self, x, h):
        z = self.inside(x) + self.across(h)
        gate = tg.sigmoid(z[:, : self.n])
        h = gate * h + (1.0 - gate) * tg.tanh(z[:, self.n :])
        return tg.where(h > 0, h, 0.5 * h) / tg.sqrt(1.0 + tg.mean(h * h, axis=-1, keepdims=True)), h


class Model(tg.nn.Module):
    def __init__(self, cell):
        self.embedding = tg.nn.Embedding(7, 4, dtype=np.float64, rng=2)
        self.cell = CELLS.get(cell, PlainCell)(4, 5, dtype=np.float64, rng=0)
        self.readout = tg.nn.Linear(5, 3, dtype=np.float64, rng=1)

    def forward(self, words, state):
        out, state = self.cell(self.embedding(words), state)
        return self.readout(out), state


def trained(cell, optimizer, moves, steps=24, batch=2, clip=True, **settings):
    """Losses, weights and waits of a loop that moves to a device when `moves` says so, by step."""
    model, rng = Model(cell), np.random.default_rng(3)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    tape = tg.CapacitorTape(settings.pop("schedule", 4), **settings)
    state, losses, waits = model.cell.initial_state(batch), [], []
    for t in range(steps):
        words, labels = rng.integers(0, 7, batch), rng.integers(0, 3, batch)
        if t in moves:
            model.to(moves[t])
            optimizer.to(moves[t])
            state = tape.to(moves[t], carry=state)
        device = model.readout.weight.device
        words, labels = tg.asarray(words, device=device), tg.asarray(labels, device=device)
        with strict_cupy.watched() as events:
            with tape:
                logits, state = model(words, state)
                loss = tg.softmax_cross_entropy(logits, labels)
            if tape.backward(loss):
                if clip:
                    tg.optim.clip_by_norm(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        waits += events
        losses.append(float(loss))
    return np.array(losses), model.state_dict(), waits


def agree(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-12)
    for name, value in expected[1].items():
        assert type(found[1][name]) is np.ndarray
        np.testing.assert_allclose(found[1][name], value, rtol=0, atol=1e-12)
    assert not found[2], found[2]


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", [*CELLS, "plain ops"])
def test_a_loop_on_a_device_trains_as_on_the_host_and_never_waits(cell, optimizer, weights):
    found = trained(cell, optimizer, {0: "cuda"}, weights=weights)
    agree(found, trained(cell, optimizer, {}, weights=weights))


@pytest.mark.parametrize("compile", [True, "exact", "numpy", False])
def test_a_tape_that_compiles_sweeps_a_device_by_rules(compile):
    agree(trained("lstm", "sgd", {0: "cuda"}, compile=compile), trained("lstm", "sgd", {}, compile=compile))


@pytest.mark.parametrize(
    "schedule",
    [1, tg.Sliding(6, stride=3), tg.Chunked(5), tg.BurnIn(3, 2), tg.Randomized(4, seed=0), tg.RealTime()],
)
def test_every_schedule_goes_on_a_device(schedule):
    agree(
        trained("gru", "adam", {0: "cuda"}, schedule=schedule), trained("gru", "adam", {}, schedule=schedule)
    )


@pytest.mark.parametrize("joint", [0.5, lambda pending: {slot: ct * 0.5 for slot, ct in pending.items()}])
def test_joints_go_on_a_device(joint):
    agree(trained("lstm", "sgd", {0: "cuda"}, joint=joint), trained("lstm", "sgd", {}, joint=joint))


def test_one_row_and_no_clipping():
    agree(
        trained("lstm", "adam", {0: "cuda"}, batch=1, clip=False),
        trained("lstm", "adam", {}, batch=1, clip=False),
    )


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
@pytest.mark.parametrize("cell", ["lstm", "plain ops"])
def test_a_loop_that_moves_to_a_device_and_back_goes_on_as_if_it_had_stayed(cell, weights):
    found = trained(cell, "adam", {9: "cuda", 17: "cpu"}, weights=weights)
    agree(found, trained(cell, "adam", {}, weights=weights))


def test_a_long_window_is_not_judged_where_that_would_wait():
    agree(
        trained("rnn", "sgd", {0: "cuda"}, steps=70, schedule=12),
        trained("rnn", "sgd", {}, steps=70, schedule=12),
    )


def test_sequences_and_documents_go_on_a_device():
    found = []
    for device in ("cuda", "cpu"):
        cell, embedding = (
            tg.nn.LSTMCell(4, 5, dtype=np.float64, rng=0),
            tg.nn.Embedding(7, 4, dtype=np.float64, rng=2),
        )
        head = tg.nn.PoolingLinear(5, 3, dtype=np.float64, rng=1)
        encoder = tg.nn.DocumentEncoder(cell, 3, 8, embedding)
        for module in (encoder, head):
            module.to(device)
        words = np.random.default_rng(0).integers(0, 7, (12, 2))
        tape = tg.Tape()
        with tape:
            loss = tg.softmax_cross_entropy(
                head(encoder(list(tg.asarray(words, device=device)))), tg.asarray([0, 2], device=device)
            )
        tape.backward(loss)
        found.append([loss, *(p.grad for p in (*encoder.parameters(), *head.parameters()))])
    for on_device, on_host in zip(*found, strict=True):
        same(on_device, on_host)


# -- state that is saved ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")])
@pytest.mark.parametrize("weights", ["recorded", "replay"])
def test_a_loop_goes_on_from_a_file_on_whatever_device(tmp_path, before, after, weights):
    def step(model, optimizer, tape, state, t):
        x = tg.asarray(np.cos(np.arange(8.0) + t).reshape(2, 4), device=model.device)
        with tape:
            out, state = model(x, state)
            loss = tg.mean(out * out)
        tape.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return state, float(loss)

    def make(device):
        model = tg.nn.LSTMCell(4, 5, dtype=np.float64, rng=0).to(device)
        model.device = device
        return model, tg.optim.Adam(model.parameters(), 0.01), tg.CapacitorTape(5, weights=weights)

    model, optimizer, tape = make(before)
    state = model.initial_state(2)
    for t in range(8):
        state, _ = step(model, optimizer, tape, state, t)
    for name, part in (
        ("model", model.state_dict()),
        ("optimizer", optimizer.state_dict()),
        ("tape", tape.state_dict(carry=state, parameters=model)),
    ):
        assert not any(map(places.on_device, part.values()))
        tg.save(tmp_path / f"{name}.npz", part)
    again, other, copied = make(after)
    again.load_state_dict(tg.load(tmp_path / "model.npz"))
    other.load_state_dict(tg.load(tmp_path / "optimizer.npz"))
    resumed = copied.load_state_dict(tg.load(tmp_path / "tape.npz"), parameters=again)
    assert {p.device for p in again.parameters()} == {"cpu" if after == "cpu" else "cuda:0"}
    for t in range(8, 14):
        state, expected = step(model, optimizer, tape, state, t)
        resumed, found = step(again, other, copied, resumed, t)
        assert found == pytest.approx(expected, abs=1e-13)


def test_save_brings_arrays_to_the_host(tmp_path):
    tg.save(tmp_path / "a.npz", {"a": there(np.arange(3.0))})
    np.testing.assert_array_equal(tg.load(tmp_path / "a.npz")["a"], np.arange(3.0))


# -- values and gradients ------------------------------------------------------------------------------------


def test_values_and_gradients_are_arrays_of_the_device(cupy):
    array = there(np.array([[1.0, 2.0], [3.0, 4.0]]))
    v = tg.Variable(array, name="v")
    assert type(v.value) is cupy.ndarray and v.value is not array and v.device == "cuda:0"
    tape = tg.Tape()
    with tape:
        y = tg.sum(v * v, axis=0)
        loss = tg.sum(y)
    adjoints = tape.backward(loss, keep=[y])
    assert {type(x) for x in (y.value, v.grad, adjoints[v], adjoints[y], loss.value)} == {cupy.ndarray}
    tape.backward(y, [1.0, 2.0])
    np.testing.assert_array_equal(here(v.grad), [[4.0, 12.0], [12.0, 24.0]])
    assert float(loss) == loss.item() == 30.0
    assert "keeps" in str(tape) and tape.nbytes == 32
    assert repr(v) == "Variable([[1., 2.],\n          [3., 4.]], dtype=float64, device='cuda:0')"
    assert adjoints.gradients.norm == pytest.approx(np.sqrt(4 + 16 + 36 + 64))


def test_a_value_is_assigned_where_the_leaf_is():
    v = tg.Variable(there(np.ones(3)))
    v.value = [1.0, 2.0, 3.0]
    v.value = v.value * 2.0
    v.grad = [1.0, 1.0, 1.0]
    assert places.on_device(v.value) and places.on_device(v.grad)
    np.testing.assert_array_equal(here(v.value), [2.0, 4.0, 6.0])
    for attribute in ("value", "grad"):
        with pytest.raises(
            tg.DeviceError, match=r"float64 \(3,\) on cpu      Variable: float64 \(3,\) on cuda:0"
        ):
            setattr(v, attribute, np.ones(3))


def test_the_last_value_recorded_is_a_root_on_a_device_too():
    v = tg.Variable(there(np.ones(3)))
    tape = tg.Tape()
    with tape:
        tg.sum(v)
    tape.backward()
    np.testing.assert_array_equal(here(v.grad), np.ones(3))


def test_copies_and_pickles_stay_on_the_device():
    v = tg.Variable(there(np.ones(3)), name="v")
    tape = tg.Tape()
    with tape:
        y = v * 2.0
    for made in (
        copy.deepcopy(v),
        pickle.loads(pickle.dumps(v)),
        copy.deepcopy(y),
        pickle.loads(pickle.dumps(y)),
    ):
        assert places.on_device(made.value) and made.shape == (3,)


def test_numbers_and_numpys_scalars_go_with_any_device():
    v = tg.Variable(there(np.ones(3)))
    tape = tg.Tape()
    with tape:
        y = tg.where(True, v, 0.0) * np.float64(2.0) + 1 - np.float32(0.5)
        z = tg.index_put(y, 0, 5.0)
        loss = tg.sum(tg.concatenate([z, tg.where(np.bool_(False), v, v)]))
    tape.backward(loss)
    np.testing.assert_array_equal(here(v.grad), [1.0, 3.0, 3.0])


def test_an_index_may_lie_on_the_host():
    v = tg.Variable(there(np.arange(4.0)))
    tape = tg.Tape()
    with tape:
        y = v[[3, 0, 3]] * v[np.array([True, True, False, True])] + tg.take(v, [1, 1, 1])
        loss = tg.sum(tg.index_put(y, np.array([0, 0]), [5.0, 6.0]))
    tape.backward(loss)
    np.testing.assert_array_equal(here(v.grad), [1.0, 2.0, 0.0, 6.0])
    assert float(loss) == 6.0 + 1.0 + 10.0


def test_arrays_of_the_device_and_variables_mix():
    v, a = tg.Variable(there(np.full(3, 2.0))), there(np.full(3, 3.0))
    tape = tg.Tape()
    with tape:
        for y in (a * v, v * a, a - v, np.multiply(a, v), np.maximum(v, a), a / v, a @ v):
            assert isinstance(y, tg.Variable)


def test_a_constant_that_is_overwritten_later_changes_nothing():
    v, x = tg.Variable(there(np.ones(3))), there(np.full(3, 2.0))
    tape = tg.Tape()
    with tape:
        loss = tg.sum(v * x)
    x.fill(100.0)
    tape.backward(loss)
    np.testing.assert_array_equal(here(v.grad), [2.0, 2.0, 2.0])


def test_constants_and_results_are_kept_without_a_copy():
    v, x = tg.Variable(there(np.ones(3))), tg.constant(there(np.full(3, 2.0)))
    outside = v * 2.0
    tape = tg.Tape()
    with tape:
        v * x
        v * tg.stop_gradient(outside)
    kept = [entry[0].residuals(entry)["b"] for entry in tape._entries()]
    assert kept[0] is x._array
    assert kept[1].base is outside._array or kept[1] is outside._array


def test_a_guarded_tape_names_an_array_of_the_device_that_was_changed():
    v = tg.Variable(there(np.ones(3)))
    tape = tg.Tape(guard=True)
    with tape:
        loss = tg.sum(v * v)
    v._array.fill(5.0)
    with pytest.raises(tg.RecordingError, match="kept by multiply"):
        tape.backward(loss)


# -- moving --------------------------------------------------------------------------------------------------


def test_asarray_moves_arrays_numbers_and_lists(cupy):
    x = np.arange(3.0)
    assert tg.asarray(x) is x and tg.asarray(x, device="cpu") is x
    on = tg.asarray(x, device="cuda")
    assert type(on) is cupy.ndarray and tg.asarray(on) is on and tg.asarray(on, device="cuda:0") is on
    assert type(tg.asarray(on, device="cpu")) is np.ndarray
    assert tg.asarray([1, 2], np.float32, device="cuda").dtype == np.float32
    assert tg.asarray(on, device=on.device) is on


def test_a_variable_is_moved_by_an_op_that_brings_its_gradient_back():
    v = tg.Variable(np.array([1.0, 2.0]))
    tape, outer = tg.Tape(), tg.Tape()
    with outer:
        with tape:
            there_too = tg.asarray(v, device="cuda")
            y = tg.sum(there_too * there_too * there_too)
        gradient = tape.backward(y, record=True)[v]
        total = tg.sum(gradient)
    assert there_too.device == "cuda:0" and gradient.device == "cpu" and type(v.grad) is np.ndarray
    np.testing.assert_array_equal(v.grad, [3.0, 12.0])
    np.testing.assert_array_equal(outer.backward(total)[v], [6.0, 12.0])
    assert tg.asarray(v, device="cpu") is v


def test_weights_are_drawn_on_the_host_and_are_the_same_everywhere():
    on_host = tg.nn.LSTMCell(3, 4, rng=7)
    on_device = tg.nn.LSTMCell(3, 4, rng=7).to("cuda")
    for a, b in zip(on_host.parameters(), on_device.parameters(), strict=True):
        assert b.device == "cuda:0"
        np.testing.assert_array_equal(a.value, here(b.value))


def test_moved_parameters_are_the_same_leaves_with_their_gradients():
    model = tg.nn.Linear(2, 1, rng=0)
    weight = model.weight
    tape = tg.Tape()
    with tape:
        loss = tg.sum(model(np.ones((1, 2), np.float32)))
    tape.backward(loss)
    assert model.to("cuda") is model and model.weight is weight
    assert places.on_device(weight.value) and places.on_device(weight.grad)
    model.to("cpu")
    np.testing.assert_array_equal(weight.grad, [[1.0], [1.0]])


def test_a_flat_vector_moves_with_its_pieces():
    model = tg.nn.Linear(2, 1, rng=0)
    params, _ = model.parameters(flat=True)
    model.to("cuda")
    tape = tg.Tape()
    with tape:
        loss = tg.sum(model(there(np.ones((1, 2), np.float32))))
    tape.backward(loss)
    assert params.device == "cuda:0"
    np.testing.assert_array_equal(here(params.grad), np.ones(3))
    params.value = params.value - 1.0 * params.grad
    assert model.weight.value.base is not None and places.on_device(model.weight.value)
    optimizer = tg.optim.SGD([params], 0.5)
    optimizer.step()
    optimizer.zero_grad()
    np.testing.assert_array_equal(here(params.grad), np.zeros(3))


def test_a_plain_tape_moves():
    v = tg.Variable(np.array([1.0, 2.0]), name="v")
    tape = tg.Tape()
    with tape:
        loss = tg.sum(v * v)
    v_there, loss = tape.to("cuda", carry=(v, loss))
    assert v_there is v and v.device == loss.device == "cuda:0"
    tape.backward(loss)
    np.testing.assert_array_equal(here(v.grad), [2.0, 4.0])


def test_one_optimizer_updates_parameters_on_both_sides():
    found = []
    for move in (there, lambda x: x):
        v, w = tg.Variable(np.ones(3)), tg.Variable(move(np.ones(2)))
        optimizer = tg.optim.Adam([v, w], 0.1)
        for _ in range(3):
            v.grad, w.grad = np.arange(3.0), move(np.arange(2.0))
            optimizer.step()
        assert optimizer.steps == 3
        found.append([here(v.value), here(w.value)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_averages_follow_their_parameters():
    model = tg.nn.Linear(2, 1, dtype=np.float64, rng=0)
    optimizer = tg.optim.Adam(model.parameters(), 0.1)
    for device in ("cpu", "cuda", "cpu"):
        model.to(device)
        for p in model.parameters():
            p.grad = places.asarray(np.ones(p.shape), device=device)
        optimizer.step()
    assert optimizer.steps == 3 and optimizer.state[0]["steps"] == 3
    assert type(optimizer.state[0]["mean"]) is np.ndarray


# -- errors --------------------------------------------------------------------------------------------------


def message(call, kind=tg.DeviceError):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_mixing_devices_names_the_op_the_arguments_and_both_devices():
    v, x = tg.Variable(there(np.ones((2, 3)))), np.ones((3, 4))
    for call in (lambda: v @ x, lambda: tg.matmul(v, tg.Variable(x))):
        assert message(call) == (
            "matmul: the arguments must be on one device.\n"
            "  a: float64 (2, 3) on cuda:0      b: float64 (3, 4) on cpu\n"
            '  Move one: tg.asarray(x, device="cuda:0"), model.to("cuda:0"), or tape.to("cuda:0", carry=state).'
        )


@pytest.mark.parametrize("call", [
    lambda v, a: v + a, lambda v, a: a * v, lambda v, a: tg.where(a > 0, v, 0.0), lambda v, a: tg.concatenate([v, a]),
    lambda v, a: tg.stack([a, v]), lambda v, a: tg.index_put(v, slice(0, 3), a), lambda v, a: tg.softmax_cross_entropy(v, np.array(1)),
    lambda v, a: np.hypot(a, v), lambda v, a: tg.take(v, a.astype(int)),
])  # fmt: skip
def test_every_op_refuses_arrays_that_lie_apart(call):
    v, a = tg.Variable(there(np.ones(3))), np.ones(3)
    with tg.Tape():
        text = message(lambda: call(v, a))
    assert "on cpu" in text and "on cuda:0" in text and "tg.asarray" in text


def test_a_seed_and_a_tangent_must_be_where_the_value_is():
    v = tg.Variable(there(np.ones(3)))
    tape = tg.Tape()
    with tape:
        y = v * 2.0
    for call in (lambda: tape.backward(y, np.ones(3)), lambda: tape.pushforward({v: np.ones(3)}, y)):
        text = message(call)
        assert "on cpu" in text and "on cuda:0" in text


def test_a_model_that_moved_without_its_tape_is_told_so():
    model = tg.nn.RNNCell(2, 3, dtype=np.float64, rng=0)
    for weights in ("recorded", "current"):
        tape = tg.CapacitorTape(5, weights=weights)
        model.to("cpu")
        with tape:
            out, _ = model(np.ones((1, 2)), model.initial_state(1))
            loss = tg.sum(out)
        model.to("cuda")
        text = message(lambda tape=tape, loss=loss: tape.backward(loss))
        assert "tape.to(" in text and "on cpu" in text and "on cuda:0" in text
        assert all(p.grad is None for p in model.parameters()[:1])


def test_what_computes_on_the_host_alone_says_so():
    model = tg.nn.Linear(2, 1, rng=0).to("cuda")
    x = there(np.ones((1, 2), np.float32))
    for call in (
        lambda: tg.compile(lambda x: tg.sum(model(x)))(x),
        lambda: tg.compile(lambda v: tg.sum(v))(tg.Variable(x)),
        lambda: tg.compile(lambda: tg.sum(model.weight * model.weight))(),
        lambda: tg.check_gradients(lambda v: tg.sum(v * v), x),
        lambda: tg.spacing(tg.Variable(x)),
    ):
        assert "host" in message(call, tg.UnsupportedError)


def test_comparisons_and_bare_arrays():
    v, x = tg.Variable(there(np.array([1.0, 2.0]))), there(np.array([1.0, 3.0]))
    np.testing.assert_array_equal(here(v != x), [False, True])
    np.testing.assert_array_equal(here(v == x), [True, False])
    assert tg.stop_gradient(x) is x
    assert 2.0 in v and [float(part) for part in v] == [1.0, 2.0]


def test_a_tape_that_records_does_not_move():
    tape = tg.CapacitorTape(5)
    with tape:
        assert "this tape is recording" in message(lambda: tape.to("cuda"), tg.RecordingError)


def test_a_device_that_is_not_there_or_not_known(cupy, monkeypatch):
    assert "it must be" in message(lambda: tg.asarray(1.0, device="tpu"), tg.ArgumentError)
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    assert "no CUDA device" in message(lambda: tg.asarray(1.0, device="cuda"))
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "is not installed" in message(lambda: tg.asarray(1.0, device="cuda"))


def test_a_constant_of_the_device_does_not_become_a_numpy_array():
    assert 'tg.asarray(v, device="cpu")' in message(lambda: np.asarray(tg.constant(there(np.ones(3)))))


# -- gradients that are not finite -----------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing_and_is_reported_without_waiting(optimizer):
    v, w = tg.Variable(there(np.ones(3)), name="v"), tg.Variable(there(np.ones(2)))
    optimizer = OPTIMIZERS[optimizer]([v, w])

    def step(number):
        v.grad, w.grad = there(np.array([1.0, number, 1.0])), there(np.ones(2))
        with strict_cupy.watched() as waits:
            optimizer.step()
        assert not waits

    step(1.0)
    before = [here(v.value), *(here(a) for n, a in optimizer.state[0].items() if n != "steps")]
    step(np.nan)
    after = [here(v.value), *(here(a) for n, a in optimizer.state[0].items() if n != "steps")]
    for b, a in zip(before, after, strict=True):
        np.testing.assert_array_equal(b, a)
    with pytest.raises(tg.NonFiniteError, match=r"step: a gradient on the device was NaN"):
        for _ in range(3):
            step(1.0)
    step(1.0)
    optimizer.check()
    step(np.inf)
    with pytest.raises(tg.NonFiniteError):
        optimizer.check()
    optimizer.check()


@asks_the_stand_in
def test_the_host_learns_of_a_refused_step_only_when_the_device_has_come_there(monkeypatch):
    v = tg.Variable(there(np.ones(3)))
    optimizer = tg.optim.SGD([v], 0.1)
    monkeypatch.setattr(strict_cupy.Event, "done", False)
    for number in (np.nan, 1.0, 1.0, 1.0):
        v.grad = there(np.full(3, number))
        optimizer.step()
    np.testing.assert_allclose(here(v.value), np.full(3, 0.7))
    monkeypatch.setattr(strict_cupy.Event, "done", True)
    with pytest.raises(tg.NonFiniteError):
        for _ in range(3):
            optimizer.step()


def test_clipping_on_a_device_is_clipping_on_the_host():
    for limit in (1.0, 100.0):
        found = []
        for move in (there, lambda x: x):
            v = tg.Variable(move(np.ones(3)))
            v.grad = move(np.array([3.0, 4.0, 12.0]))
            with strict_cupy.watched() as waits:
                norm = tg.optim.clip_by_norm([v], limit)
                tg.optim.clip_by_value([v], 10.0)
            assert not waits and float(norm) == 13.0
            found.append(here(v.grad))
        np.testing.assert_allclose(*found, rtol=1e-15)


# -- the array API ------------------------------------------------------------------------------------------------------------


def test_code_for_the_array_api_makes_its_arrays_on_the_device():
    v = tg.Variable(there(np.array([2.0, 1.0, 3.0])))
    xp = v.__array_namespace__()
    for made in (
        xp.zeros(3, device=v.device),
        xp.asarray([1.0], device=v.device),
        xp.full(2, 1.0, device=v.device),
        xp.arange(3, device=v.device),
        xp.full_like(v, 1.0),
        xp.astype(tg.Variable(1.0), np.float32, device=v.device)._array,
        xp.astype(tg.Variable(1.0), np.int32, device=v.device),
        xp.full(2, tg.Variable(1.0), device=v.device)._array,
    ):
        assert places.device_of(made) == v.device
    assert type(xp.ones(2)) is np.ndarray
    np.testing.assert_array_equal(here(xp.argsort(v, descending=True)), [2, 0, 1])
    np.testing.assert_array_equal(here(xp.sort(v)), [1.0, 2.0, 3.0])
    assert v.to_device("cpu").device == "cpu"


# -- transforms ------------------------------------------------------------------------------------------------


def test_transforms_go_on_a_device():
    x, t = np.array([0.3, -1.2, 0.7]), np.array([1.0, 0.5, -2.0])

    def f(x):
        return tg.sum(tg.tanh(x) * tg.exp(x * 0.5)) + tg.sum(x[:2] * x[1:])

    def g(x):
        return tg.stack([x[0] * x[1], tg.sin(x[2])])

    for run in (
        lambda move: tg.grad(f)(move(x)),
        lambda move: tg.value_and_grad(f)(move(x))[0],
        lambda move: tg.hessian(f)(move(x)),
        lambda move: tg.hvp(f, (move(x),), (move(t),))[0],
        lambda move: tg.jacobian(g)(move(x)),
        lambda move: tg.jvp(g, (move(x),), (move(t),))[1],
        lambda move: tg.vjp(g, move(x))[1](move(t[:2]))[0],
        lambda move: tg.grad(lambda x: tg.sum(tg.checkpoint(f)(x)))(move(x)),
    ):
        same(run(there), run(lambda a: a))
