"""Arrays of CuPy reach Numba's kernels and the step in CUDA C++, and optimizers keep their numbers on the device.

On the stand-in for CuPy (`strict_cupy.py`). There Numba launches nothing, so that optimizers compute by CuPy's
functions; one test runs this file again with Numba's simulator, where kernels get their arrays at real addresses, from
the words that CuPy would hand to CUDA, and the step in one launch is made over fibres. `pytest -m gpu` runs what is marked so on CuPy itself.
"""

import ctypes
import functools
import logging
import math
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from tapegrad.kernels import choice, cpu, gpu_launch
from tapegrad.kernels.cuda import blas, model, plan, source
from tapegrad.kernels.cuda import steps as steps_of

import fake_cublas
import fibres
import strict_cupy
import tapegrad as tg
from tapegrad.backend import capture
from tapegrad.backend import device as places
from tapegrad.ops import index as _index
from tapegrad.ops import recurrent as _recurrent

F32, F64 = np.float32, np.float64
SIMULATED = gpu_launch.SIMULATED
REAL = pytest.mark.parametrize("dtype", [F32, F64])
TOLERANCE = {F32: {"rtol": 1e-5, "atol": 1e-6}, F64: {"rtol": 1e-12, "atol": 1e-13}}
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cupy(request):
    if request.node.get_closest_marker("gpu"):
        yield request.getfixturevalue("gpu")
        return
    with strict_cupy.installed() as module:
        yield module


def there(x):
    """`x` with every array of NumPy's on the device."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(there, x))
    return places.asarray(x, device="cuda") if isinstance(x, np.ndarray) else x


def here(x):
    x = x.value if isinstance(x, tg.Variable) else x
    return x.get() if places.on_device(x) else np.asarray(x)


def flat(x):
    return [part for each in x for part in flat(each)] if isinstance(x, (list, tuple)) else [x]


def normal(*shape, dtype=F64):
    return RNG.standard_normal(shape).astype(dtype)


# -- kernels in Numba's simulator, on the stand-in's memory --------------------------------------------------


class Pointer:
    """CuPy's CPointer: where an argument is that a kernel gets."""

    def __init__(self, address=0):
        self.address = address


def decoded(kernel, dtype, lists, words):
    """The arrays that Numba's kernel finds in the words it is given, eight bytes each."""
    words, found = iter(words), []

    def one(axes, letter):
        nothing, parent, size, itemsize, address = (next(words) for _ in range(5))
        shape, strides = (tuple(next(words) for _ in axes) for _ in range(2))
        kind = gpu_launch.OTHERS.get(letter, np.dtype(dtype))
        assert (nothing, parent, size, itemsize) == (0, 0, math.prod(shape), kind.itemsize), kernel.__name__
        memory = (ctypes.c_char * (size * itemsize)).from_address(address) if size else b""
        array = np.ndarray(shape, kind, memory)
        assert array.strides == strides or not size, kernel.__name__
        return array

    for (axes, letter), listed in zip(kernel.shapes, kernel.listed, strict=True):
        found.append(tuple(one(axes, letter) for _ in range(lists)) if listed else one(axes, letter))
    assert next(words, None) is None, "more words than the kernel takes"
    return found


@pytest.fixture
def kernels(monkeypatch, cupy):
    """The names of the kernels that are launched, in order."""
    if not SIMULATED:
        pytest.skip("Numba's simulator runs this in a test of its own")
    from tapegrad.kernels import gpu_cupy

    launched = []

    def loaded(kernel, dtype, lists):
        def run(grid, block, args, *, shared_mem=0):
            launched.append(kernel.__name__)
            words = [ctypes.c_int64.from_address(pointer.address).value for pointer in args]
            arrays = decoded(kernel, dtype, lists, words)
            assert grid[2] == block[1] == block[2] == 1
            configuration = grid[:2], block[0], 0, shared_mem
            strict_cupy.enqueue(lambda: kernel.dispatcher[configuration](*arrays))

        return run

    monkeypatch.setattr(gpu_cupy, "loaded", loaded)
    monkeypatch.setattr(gpu_cupy, "PREPARED", {})
    monkeypatch.setitem(sys.modules, "cupy.cuda.function", types.SimpleNamespace(CPointer=Pointer))
    gpu_cupy.works_on.cache_clear()
    yield launched
    gpu_cupy.works_on.cache_clear()


def lstm(batch=2, n_in=3, n=3, dtype=F64):
    shapes = (batch, n_in), (batch, n), (batch, n), (n_in, 4 * n), (n, 4 * n), (4 * n,)
    return [normal(*shape, dtype=dtype) for shape in shapes]


def gru(batch=2, n_in=3, n=3, dtype=F64):
    shapes = (batch, n_in), (batch, n), (n_in, 3 * n), (n, 3 * n), (3 * n,), (3 * n,)
    return [normal(*shape, dtype=dtype) for shape in shapes]


def rnn(batch=2, n_in=3, n=3, dtype=F64):
    shapes = (batch, n_in), (batch, n), (n_in, n), (n, n), (n,)
    return [normal(*shape, dtype=dtype) for shape in shapes]


def steps(inputs, steps=3):
    """The inputs of a step as those of a sequence."""
    return [normal(steps, *inputs[0].shape, dtype=inputs[0].dtype), *inputs[1:]]


LABELS, MANY_LABELS = np.array([2, 0, 1], np.int32), np.array([[0, 2], [1, 1]])
ROUTED = {
    # The op, its arguments, and what is launched by it and by its pullback.
    "lstm_step": (_recurrent.lstm_step, lambda t: lstm(dtype=t), ["lstm_gates"], ["lstm_step_pullback"]),
    "lstm_step of a row": (_recurrent.lstm_step, lambda t: lstm(1, dtype=t), ["lstm_gates"], ["lstm_step_pullback"]),
    "gru_step": (_recurrent.gru_step, lambda t: gru(dtype=t), ["gru_gates"], ["gru_step_pullback"]),
    "rnn_step": (_recurrent.rnn_step, lambda t: rnn(dtype=t), ["rnn_gates"], ["rnn_step_pullback"]),
    "lstm_sequence": (_recurrent.lstm_sequence, lambda t: steps(lstm(dtype=t)), ["lstm_gates"] * 3, ["lstm_step_pullback"] * 3),
    "gru_sequence": (_recurrent.gru_sequence, lambda t: steps(gru(dtype=t)), ["gru_gates"] * 3, ["gru_step_pullback"] * 3),
    "rnn_sequence": (_recurrent.rnn_sequence, lambda t: steps(rnn(dtype=t)), ["rnn_gates"] * 3, ["rnn_step_pullback"] * 3),
    "cross entropy": (tg.softmax_cross_entropy, lambda t: [normal(3, 4, dtype=t), LABELS], ["cross_entropy_of_rows", "mean_loss"], ["softmax_cross_entropy_pullback"]),
    "cross entropy of more axes": (tg.softmax_cross_entropy, lambda t: [normal(2, 2, 3, dtype=t), MANY_LABELS], ["cross_entropy_of_rows", "mean_loss"], ["softmax_cross_entropy_pullback"]),
    "cross entropy of strided logits": (tg.softmax_cross_entropy, lambda t: [normal(3, 4, dtype=t).T, np.array([0, 2, 1, 1])], ["cross_entropy_of_rows", "mean_loss"], ["softmax_cross_entropy_pullback"]),
    "embedding": (_index.take, lambda t: [normal(5, 3, dtype=t), np.array([4, 0, 4])], [], ["embedding_gradient"]),
    "embedding of more axes": (_index.take, lambda t: [normal(5, 3, dtype=t), np.array([[4, 0, 4], [1, 1, 1]])], [], ["embedding_gradient"]),
}  # fmt: skip


def pulled(op, inputs, cts, launched=()):
    """An op's outputs, how many kernels they took, and the gradients of its real arguments."""
    given = [tg.Variable(a) if a.dtype.kind == "f" else a for a in inputs]
    with tg.Tape() as tape:
        ys = flat([op(*given)])
    count = len(launched)
    cts += [normal(*y.shape).reshape(y.shape) for y in ys[len(cts) :]]
    cts = [ct.astype(y.dtype) for ct, y in zip(cts, ys, strict=True)]
    tape.backward(ys, there(cts) if places.on_device(ys[0].value) else cts)
    return [*map(here, ys), *(here(v.grad) for v in given if isinstance(v, tg.Variable))], count


@REAL
@pytest.mark.parametrize("name", ROUTED)
def test_what_kernels_compute_is_what_numpy_computes(kernels, name, dtype):
    op, make, forward, backward = ROUTED[name]
    inputs, cts = make(dtype), []
    truth, _ = pulled(op, [a.astype(F64) if a.dtype.kind == "f" else a for a in inputs], cts)
    found, count = pulled(op, there(inputs), cts, kernels)
    assert kernels[:count] == forward
    assert kernels[count:] == backward
    for array, exact in zip(found, truth, strict=True):
        assert array.dtype == dtype
        np.testing.assert_allclose(array, exact, **TOLERANCE[dtype])


@pytest.fixture
def prepared(cupy, monkeypatch):
    """The names of the kernels that were launched on a GPU."""
    from tapegrad.kernels import gpu_cupy

    monkeypatch.setattr(gpu_cupy, "PREPARED", {})
    assert gpu_cupy.works_on(0), "the log says why"
    return lambda: {key[0].__name__ for key in gpu_cupy.PREPARED}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ROUTED)
def test_what_kernels_compute_on_a_gpu_is_what_numpy_computes(prepared, name):
    op, make, forward, backward = ROUTED[name]
    inputs, cts = make(F32), []
    truth, _ = pulled(op, [a.astype(F64) if a.dtype.kind == "f" else a for a in inputs], cts)
    found, _ = pulled(op, there(inputs), cts)
    assert prepared() == {*forward, *backward}
    for array, exact in zip(found, truth, strict=True):
        np.testing.assert_allclose(array, exact, **TOLERANCE[F32])


def test_a_step_is_one_kernel_and_two_products(kernels, cupy, monkeypatch):
    """And memory. Any other function of CuPy would be a launch of its own, or time of the host's."""
    called = []

    def noted(name, call):
        def inner(*args, **kwargs):
            called.append(name)
            return call(*args, **kwargs)

        return inner

    inputs = there(lstm(dtype=F32))
    for name, call in [*vars(cupy).items()]:
        if isinstance(call, (types.FunctionType, strict_cupy.ufunc)):
            monkeypatch.setattr(cupy, name, noted(name, call))
    for name, call in [*vars(strict_cupy.ndarray).items()]:
        if callable(call) and name not in ("__init__", "__new__", "__init_subclass__", "__subclasshook__"):
            monkeypatch.setattr(strict_cupy.ndarray, name, noted(name, call))
    _recurrent.lstm_step(*inputs)
    assert sorted(called) == ["__matmul__", "__matmul__", "empty", "empty", "empty"]
    assert kernels == ["lstm_gates"]


@pytest.mark.parametrize("how", ["numpy", "float16", "mixed dtypes", "another device"])
def test_what_kernels_do_not_take_cupys_functions_compute(kernels, how, monkeypatch, cupy):
    inputs = lstm()
    if how == "numpy":
        monkeypatch.setattr(choice, "MODE", "numpy")
    elif how == "float16":
        inputs = [a.astype(np.float16) for a in inputs]
    elif how == "mixed dtypes":
        inputs[0] = inputs[0].astype(F32)
    else:
        monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 1)
    ys = _recurrent.lstm_step(*there(inputs))
    assert not kernels
    for y, expected in zip(ys, _recurrent.lstm_step(*inputs), strict=True):
        np.testing.assert_allclose(here(y), expected, rtol=1e-2 if how == "float16" else 1e-12, atol=1e-3)


def test_launches_are_prepared_once_for_their_shapes(kernels, monkeypatch):
    from tapegrad.kernels import gpu_cupy

    shapes = []
    prepare = gpu_cupy.prepare
    monkeypatch.setattr(
        gpu_cupy, "prepare", lambda k, given: shapes.append(given[0].shape) or prepare(k, given)
    )
    for n in (3, 3, 4, 3):
        z, y = there([normal(2, n), normal(2, n)])
        found = choice.rnn_step_pullback(z, y)
        np.testing.assert_allclose(here(found), cpu.rnn_step_pullback(here(z), here(y)), rtol=1e-14)
    assert shapes == [(2, 3), (2, 4)]
    assert kernels == ["rnn_step_pullback"] * 4


def test_arrays_that_do_not_fit_are_refused_however_often(kernels):
    from tapegrad.kernels import gpu_choice

    c, gates = there([normal(2, 3), normal(2, 13)])
    for _ in range(2):
        with pytest.raises(
            ValueError, match=re.escape("`gates` must be (batch, 4n), and float64 (2, 13) came.")
        ):
            gpu_choice.lstm_step_pullback(c, c, c, gates, c)
    with pytest.raises(ValueError, match="rnn_gates: takes C-ordered arrays, and strides"):
        gpu_choice.rnn_gates(there(normal(3, 3)).T, *there([normal(3), normal(3, 3)]))
    assert not kernels


# -- recurrent steps in one launch -----------------------------------------------------------------------------

MAKE = {"lstm": lstm, "gru": gru, "rnn": rnn}
EACH_CELL = pytest.mark.parametrize("cell", MAKE)
N_IN, HIDDEN = 8, 12


@pytest.fixture(scope="module")
def forward_library(tmp_path_factory):
    """`forward.cu` over fibres, and the expressions that it has: those of up to eight rows, and of more."""
    if not SIMULATED:
        pytest.skip("Numba's simulator runs this in a test of its own")
    expressions = [
        plan.forward_step(c, N_IN, HIDDEN, batch).expression for c in MAKE for batch in (1, 2, 4, 8)
    ]
    return fibres.built(tmp_path_factory.mktemp("fibres"), "forward.cu", expressions), expressions


@pytest.fixture
def one_launch(kernels, forward_library, monkeypatch):
    """The kernel over fibres, in the memory of the stand-in's arrays: its launches are among `kernels`."""
    library, expressions = forward_library

    def run(expression, grid, block, args, shared_mem):
        kernels.append("forward_step")
        fibres.in_place(library, expression, grid, block, args, shared_mem)

    for expression in expressions:
        monkeypatch.setitem(strict_cupy.KERNELS, expression, functools.partial(run, expression))
    for cache in (source.compiled, steps_of.step_for):
        cache.cache_clear()
    yield kernels
    for cache in (source.compiled, steps_of.step_for):
        cache.cache_clear()


def op_of(cell):
    return getattr(_recurrent, f"{cell}_step")


def exact(arrays):
    return [a.astype(F64) for a in arrays]


def near(found, truth):
    """Equal in float32, beside the largest element: a sum's last bits are those of its largest term."""
    np.testing.assert_allclose(here(found), truth, rtol=1e-5, atol=1e-6 * np.abs(truth).max())


@EACH_CELL
@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_few_rows_are_a_step_in_one_launch(one_launch, cell, batch):
    inputs, cts = MAKE[cell](batch, N_IN, HIDDEN, F32), []
    truth, _ = pulled(op_of(cell), exact(inputs), cts)
    found, count = pulled(op_of(cell), there(inputs), cts, one_launch)
    assert one_launch[:count] == ["forward_step"]
    assert one_launch[count:] == [f"{cell}_step_pullback"]
    for array, number in zip(found, truth, strict=True):
        assert array.dtype == F32
        near(array, number)


@EACH_CELL
def test_one_launch_makes_what_cpu_makes_and_nothing_besides(one_launch, cell, cupy, monkeypatch):
    """Also what only a pullback reads."""
    inputs, called = MAKE[cell](3, N_IN, HIDDEN, F32), []
    arrays = there(inputs)
    for name in ("empty", "empty_like", "zeros", "ascontiguousarray", "matmul"):
        make = getattr(cupy, name)
        monkeypatch.setattr(cupy, name, lambda *a, f=make, n=name, **k: called.append(n) or f(*a, **k))
    found = flat([getattr(choice, f"{cell}_step")(*arrays)])
    truth = flat([getattr(cpu, f"{cell}_step")(*exact(inputs))])
    assert one_launch == ["forward_step"] and called == ["empty"] * len(truth)
    for y, number in zip(found, truth, strict=True):
        assert y.shape == number.shape
        near(y, number)


def beginning(off, array):
    """`array` on the device, so many bytes behind where one would begin."""
    count = off // array.itemsize
    memory = strict_cupy.cupy.empty((array.size + count,), array.dtype)
    memory[count:] = there(array.reshape(-1))
    return memory[count:].reshape(array.shape)


def turned(array):
    """`array` on the device, by columns."""
    return there(np.ascontiguousarray(array.T)).T


# What the kernel does not take: sizes and dtype, and how an argument comes to the device.
OTHERS = {
    "float64": ((3, N_IN, HIDDEN, F64), {}),
    "seven inputs": ((3, 7, HIDDEN, F32), {}),
    "ten units": ((3, N_IN, 10, F32), {}),
    "nine rows": ((9, N_IN, HIDDEN, F32), {}),
    "x by columns": ((3, N_IN, HIDDEN, F32), {"x": turned}),
    "w_x by columns": ((3, N_IN, HIDDEN, F32), {"w_x": turned}),
    "w_h by columns": ((3, N_IN, HIDDEN, F32), {"w_h": turned}),
    "h off 16 bytes": ((3, N_IN, HIDDEN, F32), {"h": functools.partial(beginning, 4)}),
    "w_x off 16 bytes": ((3, N_IN, HIDDEN, F32), {"w_x": functools.partial(beginning, 8)}),
}


@EACH_CELL
@pytest.mark.parametrize("how", OTHERS)
def test_what_the_one_launch_does_not_take_is_products_and_a_kernel(one_launch, cell, how):
    sizes, moves = OTHERS[how]
    inputs, names = MAKE[cell](*sizes), getattr(_recurrent, cell.upper())
    arrays = [moves.get(name, there)(a) for name, a in zip(names, inputs, strict=True)]
    found = flat([op_of(cell)(*arrays)])
    assert one_launch == [f"{cell}_gates"]
    for y, number in zip(found, flat([op_of(cell)(*exact(inputs))]), strict=True):
        near(y, number)


def test_arrays_that_begin_on_16_bytes_inside_others_are_taken(one_launch):
    inputs = lstm(3, N_IN, HIDDEN, F32)
    found = op_of("lstm")(*(beginning(16, a) for a in inputs))
    assert one_launch == ["forward_step"]
    near(found[0], op_of("lstm")(*exact(inputs))[0])


def test_the_user_says_how_a_step_is_made(one_launch):
    few, many = there(lstm(3, N_IN, HIDDEN, F32)), there(lstm(19, N_IN, HIDDEN, F32))
    for way, launched in [
        ("auto", ["forward_step", "lstm_gates"]),
        ("products", ["lstm_gates", "lstm_gates"]),
        ("fused", ["forward_step", "forward_step"]),
    ]:
        one_launch.clear()
        before = model.use_step(way)
        try:
            found = [op_of("lstm")(*inputs)[0] for inputs in (few, many)]
        finally:
            assert model.use_step(before) == way
        assert one_launch == launched
        for y, inputs in zip(found, (few, many), strict=True):
            expected = op_of("lstm")(*(here(a).astype(F64) for a in inputs))[0]
            near(y, expected)


def test_a_launch_less_is_worth_nothing_in_a_graph(one_launch, monkeypatch):
    costs = model.ESTIMATES._replace(launch=1e6, l2_of_block=1e-3)
    monkeypatch.setattr(model, "these_costs", lambda: costs)
    inputs = there(lstm(3, N_IN, HIDDEN, F32))
    op_of("lstm")(*inputs)
    monkeypatch.setattr(cpu, "multiply", lambda a, b, out: a @ b)
    op_of("lstm")(*inputs)
    assert one_launch == ["forward_step", "lstm_gates"]


def test_a_kernel_that_does_not_compile_leaves_the_step_to_products_and_the_log_says_why(
    one_launch, monkeypatch, cupy, caplog
):
    def refuse(**kwargs):
        raise RuntimeError("NVRTC_ERROR_COMPILATION")

    inputs = lstm(3, N_IN, HIDDEN, F32)
    monkeypatch.setattr(cupy, "RawModule", refuse)
    with caplog.at_level(logging.WARNING, "tapegrad.kernels"):
        found = [op_of("lstm")(*there(inputs)) for _ in range(2)]
    assert one_launch == ["lstm_gates"] * 2
    near(found[1][0], op_of("lstm")(*exact(inputs))[0])
    (record,) = caplog.records
    assert record.name == "tapegrad.kernels"
    assert record.getMessage() == (
        "the kernel `forward_step` does not run on cuda:0, products serve: NVRTC_ERROR_COMPILATION"
    )


class Recurrent:
    """A loop of a cell, on the device its body captured."""

    def __init__(self, device, cell, batch, schedule):
        kinds = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}
        self.cell = kinds[cell](N_IN, HIDDEN, rng=0, dtype=F32 if device == "cuda" else F64).to(device)
        if device == "cpu":
            for p, q in zip(
                self.cell.parameters(), kinds[cell](N_IN, HIDDEN, rng=0, dtype=F32).parameters(), strict=True
            ):
                p.value = q.value.astype(F64)
        self.optimizer = tg.optim.SGD(self.cell.parameters(), 0.1)
        self.tape = tg.CapacitorTape(schedule, weights="current")
        self.state = self.cell.initial_state(batch)
        self.step = tg.capture(self.body) if device == "cuda" else self.body

    def body(self, x, state):
        with self.tape:
            out, state = self.cell(x, state)
            loss = tg.mean(tg.square(out - 0.5))
        if self.tape.backward(loss):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, state

    def run(self, data):
        losses = []
        for x in data:
            loss, self.state = self.step(x, self.state)
            losses.append(loss)
        return [*losses, *self.cell.parameters()]


@EACH_CELL
def test_a_graph_repeats_the_one_launch(one_launch, cell, monkeypatch):
    library = fake_cublas.Library()
    monkeypatch.setattr(blas, "loaded_library", lambda: library)
    monkeypatch.setattr(model, "WAY", "generic")
    data = [normal(2, N_IN, dtype=F32) for _ in range(30)]
    loop = Recurrent("cuda", cell, 2, 3)
    found = loop.run(there(data))
    assert loop.step.reason == "" and loop.step.launches > 10
    assert one_launch.count("forward_step") >= len(data) and f"{cell}_gates" not in one_launch
    for y, number in zip(found, Recurrent("cpu", cell, 2, 3).run(exact(data)), strict=True):
        near(y, number.value)
    capture.LATEST.clear()  # handles of this library
    assert not library.problems


@pytest.mark.gpu
@EACH_CELL
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_few_rows_on_a_gpu_are_a_step_in_one_launch(prepared, cell, batch):
    inputs, cts = MAKE[cell](batch, 64, 128, F32), []
    truth, _ = pulled(op_of(cell), exact(inputs), cts)
    found, _ = pulled(op_of(cell), there(inputs), cts)
    assert prepared() == {f"{cell}_step_pullback"}, "the log says why"
    for array, number in zip(found, truth, strict=True):
        near(array, number)


# -- optimizers ------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda params, lr=0.1: tg.optim.SGD(params, lr),
    "momentum": lambda params, lr=0.1: tg.optim.SGD(params, lr, momentum=0.9),
    "adam": lambda params, lr=0.1: tg.optim.Adam(params, lr, betas=(0.8, 0.95)),
}
EACH = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def averages(optimizer):
    return [state[name] for state in optimizer.state for name in sorted(state) if name != "steps"]


def pair(make, shapes, dtype, lr=0.1):
    """The same parameters, and an optimizer of them, on the host and on the device."""
    values = [normal(*shape, dtype=dtype) for shape in shapes]
    host, device = [tg.Variable(v.copy()) for v in values], [tg.Variable(there(v)) for v in values]
    return (host, make(host, lr)), (device, make(device, lr))


def step_both(both, grads):
    """One step on each side; on the device without waiting."""
    (host, on_host), (device, on_device) = both
    for params, move in ((host, lambda x: x), (device, there)):
        for p, grad in zip(params, grads, strict=True):
            p.grad = None if grad is None else move(grad)
    on_host.step()
    with strict_cupy.watched() as waits:
        on_device.step()
    assert not waits


def agree(both, dtype):
    limit = {"rtol": 2e-6, "atol": 1e-6} if dtype == F32 else {"rtol": 1e-12, "atol": 1e-13}
    (host, on_host), (device, on_device) = both
    for expected, found in zip(host, device, strict=True):
        np.testing.assert_allclose(here(found), here(expected), **limit)
    assert on_device.steps == on_host.steps
    for expected, found in zip(on_host.state, on_device.state, strict=True):
        assert expected.keys() == found.keys()
        for name, average in expected.items():
            np.testing.assert_allclose(here(found[name]), average, **limit)


def train(make, dtype):
    """Steps with a learning rate that changes, gradients that are missing, a state that is saved and loaded."""
    both = pair(make, [(2, 3), (5,), ()], dtype)
    before = None
    for t in range(6):
        grads = [normal(*shape, dtype=dtype) for shape in ((2, 3), (5,), ())]
        grads = [np.asarray(g, dtype) for g in grads]
        if t in (2, 3):
            grads[1] = None
        for _, optimizer in both:
            optimizer.lr = 0.1 / (1 + t // 2)
        step_both(both, grads)
        agree(both, dtype)
        addresses = [a.data.ptr for a in averages(both[1][1])]
        assert before is None or before == addresses[: len(before)] or t < 2
        before = addresses
    saved, again = both[1][1].state_dict(), make(both[1][0], 1.0)
    assert saved["steps"] == 6 and saved["lr"] == both[0][1].lr
    expected = both[0][1].state_dict()
    assert saved.keys() == expected.keys()
    again.load_state_dict(saved)
    both = both[0], (both[1][0], again)
    step_both(both, [np.ones((2, 3), dtype), np.ones(5, dtype), np.ones((), dtype)])
    agree(both, dtype)


@REAL
@EACH
def test_an_optimizer_on_a_device_is_that_of_the_host(make, dtype):
    train(make, dtype)


@REAL
@EACH
def test_an_optimizer_with_kernels_is_that_of_the_host(kernels, make, dtype):
    train(make, dtype)
    assert {"approve", "disapprove"} <= set(kernels)


@pytest.mark.gpu
@REAL
@EACH
def test_an_optimizer_on_a_gpu_is_that_of_the_host(prepared, make, dtype):
    train(make, dtype)
    assert {"approve", "disapprove"} <= prepared()


@pytest.mark.parametrize(
    ("name", "each"), [("sgd", ["sgd"]), ("momentum", ["momentum"]), ("adam", ["adam_rates", "adam"])]
)
def test_all_parameters_take_one_launch(kernels, name, each):
    both = pair(OPTIMIZERS[name], [(2, 3), (4,), (1, 1)], F32)
    grads = [np.ones(p.shape, F32) for p in both[0][0]]
    for _ in range(2):
        kernels.clear()
        step_both(both, grads)
        assert kernels == ["approve", "disapprove", *each]
    agree(both, F32)


def test_more_parameters_than_a_launch_takes_and_of_two_dtypes(kernels):
    both = (host, _), (device, _) = pair(OPTIMIZERS["adam"], [(3,)] * 16, F64)
    for params, move in ((host, lambda x: x), (device, there)):
        for p in params[:2]:
            p.rebind(move(here(p).astype(F32)))
    for _ in range(2):
        kernels.clear()
        step_both(both, [normal(3, dtype=p.dtype) for p in host])
        agree(both, F32)
    assert kernels == ["approve", *["disapprove"] * 3, "adam_rates", "adam", "adam_rates", "adam", "adam"]


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_refused_changes_nothing(make, bad):
    refuse(make, bad)


@EACH
def test_a_step_that_kernels_refuse_changes_nothing(kernels, make):
    refuse(make, np.nan)
    assert "disapprove" in kernels


def refuse(make, bad):
    both = _, (device, optimizer) = pair(make, [(3,), (2,)], F64)
    step_both(both, [normal(3), normal(2)])
    kept = [here(p).copy() for p in device] + [here(a).copy() for a in averages(optimizer)]
    addresses = [a.data.ptr for a in averages(optimizer)]
    for p, grad in zip(device, (np.ones(3), np.array([1.0, bad])), strict=True):
        p.grad = there(grad)
    with strict_cupy.watched() as waits:
        optimizer.step()
    assert not waits
    assert optimizer.steps == 1
    now = [here(p) for p in device] + [here(a) for a in averages(optimizer)]
    for found, expected in zip(now, kept, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(tg.NonFiniteError):
        optimizer.check()
    # As if it had not been: the next step is the host's second.
    step_both(both, [normal(3), normal(2)])
    agree(both, F64)
    assert addresses == [a.data.ptr for a in averages(optimizer)]


def test_a_first_step_that_is_refused_leaves_averages_of_nothing():
    both = pair(OPTIMIZERS["adam"], [(3,)], F64)
    device, optimizer = both[1]
    device[0].grad = there(np.full(3, np.nan))
    optimizer.step()
    assert optimizer.steps == 0 and not here(optimizer.state[0]["steps"])
    with pytest.raises(tg.NonFiniteError):
        optimizer.check()
    step_both(both, [normal(3)])
    agree(both, F64)


def test_parameters_that_step_together_share_a_count_until_they_do_not():
    both = pair(OPTIMIZERS["adam"], [(2,)] * 3, F64)
    states = both[1][1].state
    step_both(both, [normal(2)] * 3)
    assert states[0]["steps"] is states[1]["steps"] is states[2]["steps"]
    step_both(both, [normal(2), None, normal(2)])
    assert states[0]["steps"] is states[2]["steps"] is not states[1]["steps"]
    step_both(both, [normal(2)] * 3)
    agree(both, F64)
    assert [int(here(state["steps"])) for state in states] == [3, 2, 3]


def test_counts_go_to_the_host_and_back():
    both = pair(OPTIMIZERS["adam"], [(2,)] * 2, F64)
    (host, _), (device, optimizer) = both
    for place in ("cuda", "cpu", "cuda"):
        for p in device:
            p.grad = None
            p.rebind(places.asarray(here(p), device=place))
        for p, q in zip(host, device, strict=True):
            p.grad = np.ones(2)
            q.grad = places.asarray(np.ones(2), device=place)
        both[0][1].step()
        optimizer.step()
        agree(both, F64)
    assert optimizer.state[0]["steps"] is optimizer.state[1]["steps"]


def test_clipping_by_kernels_is_clipping_on_the_host(kernels):
    for limit in (1.0, 100.0):
        for dtype in (F32, F64):
            grads, found = [normal(2, 3, dtype=dtype), np.array([3.0, 4.0, 12.0], dtype)], []
            for move in (lambda x: x, there):
                params = [tg.Variable(move(np.zeros_like(g))) for g in grads]
                for p, g in zip(params, grads, strict=True):
                    p.grad = move(g.copy())
                kernels.clear()
                with strict_cupy.watched() as waits:
                    norm = tg.optim.clip_by_norm(params, limit)
                assert not waits
                found.append([np.asarray(float(norm)), *(here(p.grad) for p in params)])
            assert kernels == ["squares", "added", "clip_factor", "scale"]
            for a, b in zip(*found, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6 if dtype == F32 else 1e-13)


@EACH
def test_a_state_is_loaded_into_the_memory_that_is_there(make):
    """A graph would not see other arrays."""
    both = pair(make, [(3,), (2,)], F64)
    step_both(both, [normal(3), normal(2)])
    saved = [optimizer.state_dict() for _, optimizer in both], [here(p).copy() for p in both[0][0]]
    step_both(both, [normal(3), normal(2)])
    optimizer = both[1][1]
    kept = [a for state in optimizer.state for a in state.values()]
    for (params, loaded), state in zip(both, saved[0], strict=True):
        loaded.load_state_dict(state)
        for p, value in zip(params, saved[1], strict=True):
            p.value = there(value) if loaded is optimizer else value
    agree(both, F64)
    step_both(both, [normal(3), normal(2)])
    agree(both, F64)
    assert all(a is b for a, b in zip(kept, [a for s in optimizer.state for a in s.values()], strict=True))


# -- in a CUDA graph -------------------------------------------------------------------------------------------


@pytest.fixture
def no_products(monkeypatch):
    """Captures need a handle of cuBLAS. Steps of optimizers do not use it."""
    monkeypatch.setattr(blas, "Handle", lambda stream: types.SimpleNamespace(close=lambda: None))


def repeated(make, dtype, launches=5):
    """Steps of a graph against the host's, with a learning rate that changes and a gradient that is NaN once."""
    both = (host, on_host), (device, optimizer) = pair(make, [(2, 3), (4,)], dtype)
    cupy, stream = strict_cupy.cupy, strict_cupy.cuda.Stream(non_blocking=True)
    homes = [p._array for p in device]
    grads = [there(np.zeros(p.shape, dtype)) for p in device]

    def step():
        for p, home, grad in zip(device, homes, grads, strict=True):
            p.grad = grad
            p.rebind(home)
        optimizer.step()
        for p, home in zip(device, homes, strict=True):
            cupy.copyto(home, p._array)
            p.rebind(home)

    def fill(numbers):
        for grad, number, p in zip(grads, numbers, host, strict=True):
            grad.set(number)
            p.grad = number

    def on_both(t, run):
        fill([normal(*p.shape, dtype=dtype) for p in host])
        optimizer.lr = on_host.lr = 0.1 / (1 + t)
        on_host.step()
        run()

    for t in range(2):  # averages are made before the loop is looked at
        on_both(t, step)
    noted, pool = [], strict_cupy.cuda.MemoryPool()

    def rehearse():
        with strict_cupy.cuda.using_allocator(pool.malloc), capture.capturing(stream, True) as now:
            step()
        noted.append(now)
        assert not now.refused

    for t in range(2, 4):
        on_both(t, rehearse)
    assert noted[0].written.keys() == noted[1].written.keys()
    assert {id(a) for a in averages(optimizer)} <= noted[0].written.keys()
    (push,) = noted[0].before.values()
    optimizer.lr = on_host.lr = 0.07  # between the last rehearsal and the capture: launches will be told
    with strict_cupy.cuda.using_allocator(pool.malloc), capture.capturing(stream, False):
        stream.begin_capture()
        step()
        graph = stream.end_capture()

    def launch():
        push()
        graph.launch()

    for t in range(launches):
        on_both(t, launch)
    kept = [here(a).copy() for a in (*homes, *averages(optimizer))]
    for grad in grads:
        grad.fill(np.nan)
    launch()
    for found, expected in zip((*homes, *averages(optimizer)), kept, strict=True):
        np.testing.assert_array_equal(here(found), expected)
    on_both(1, launch)
    agree(both, dtype)
    assert optimizer.steps == 4 + launches + 1


@EACH
@pytest.mark.usefixtures("no_products")
def test_a_graph_that_repeats_a_step_goes_on_as_the_host_does(make):
    repeated(make, F64)


@EACH
@pytest.mark.usefixtures("no_products")
def test_a_graph_of_kernels_goes_on_as_the_host_does(kernels, make):
    repeated(make, F32)
    assert "disapprove" in kernels


@pytest.mark.usefixtures("no_products")
def test_a_learning_rate_that_the_step_itself_changes_is_refused():
    both = pair(OPTIMIZERS["sgd"], [(2,)], F64)
    step_both(both, [np.ones(2)])
    _, optimizer = both[1]
    stream = strict_cupy.cuda.Stream(non_blocking=True)
    with capture.capturing(stream, True) as now:
        optimizer.lr = 0.1
        assert not now.refused  # it is the same
        optimizer.lr = 0.2
        assert "capture: a change of the learning rate cannot be part" in str(now.refused[0])
    with (
        capture.capturing(stream, False),
        pytest.raises(tg.CaptureError, match="a change of the learning rate"),
    ):
        optimizer.lr = 0.3
    assert optimizer.lr == 0.2
    optimizer.lr = 0.4


# -- without Numba, or without a GPU ---------------------------------------------------------------------------


class Compiles:
    """Numba's compiler, as far as it is asked."""

    def __init__(self):
        self.asked = []

    def is_available(self):
        return True

    def compile_ptx(self, function, signature, cc):
        self.asked.append((function.__name__, len(signature), cc))
        return f".visible .entry _Z{function.__name__}_1(\n", None


class Module:
    """CuPy's RawModule of a file, and the kernel in it."""

    made = ()
    works = True

    def __init__(self, *, path):
        Module.made += (pathlib.Path(path).read_bytes(),)

    def get_function(self, name):
        self.name = name
        return self

    def compile(self):
        if not self.works:
            raise RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


class Linker:
    """NVIDIA's, in its package `cuda.core`."""

    def __init__(self, ptx, options):
        self.code = ptx + options

    def link(self, kind):
        assert kind == "cubin"
        return self


CORE = types.SimpleNamespace(
    Linker=Linker,
    LinkerOptions=lambda arch: arch.encode(),
    ObjectCode=types.SimpleNamespace(from_ptx=lambda ptx: b"code of " + ptx + b" for "),
)


@pytest.mark.skipif(SIMULATED, reason="the simulator does not compile")
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("linker", [True, False])
def test_cupy_loads_what_numba_compiles_or_the_log_says_why_not(works, linker, monkeypatch, cupy, caplog):
    pytest.importorskip("numba")
    from tapegrad.kernels import gpu, gpu_cupy

    for name, module in {"cuda": types.ModuleType("cuda"), "cuda.core": CORE if linker else None}.items():
        monkeypatch.setitem(sys.modules, name, module)
    compiles = Compiles()
    monkeypatch.setattr(gpu_launch, "cuda", compiles)
    monkeypatch.setattr(Module, "made", ())
    monkeypatch.setattr(Module, "works", works)
    monkeypatch.setattr(cupy, "RawModule", Module)
    monkeypatch.setattr(cupy.cuda.Device, "compute_capability", "90", raising=False)
    for cache in (gpu_cupy.works_on, gpu_cupy.compiled):
        cache.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert gpu_cupy.usable(there(np.ones(2))) is works
        assert bool(caplog.records) is not works
        if works:
            made = [gpu_cupy.loaded(gpu.rnn_gates, F32, 1) for _ in range(2)]
            assert made[0] is made[1] and made[0].name == "_Zrnn_gates_1"
            assert compiles.asked == [("approve", 2, (9, 0)), ("rnn_gates", 3, (9, 0))]
            ptx = b".visible .entry _Zrnn_gates_1("
            assert Module.made[1].strip() == (b"code of " + ptx + b"\n for sm_90" if linker else ptx)
        else:
            assert "UNSUPPORTED_PTX" in caplog.text
    finally:
        for cache in (gpu_cupy.works_on, gpu_cupy.compiled):
            cache.cache_clear()


@pytest.mark.skipif(SIMULATED, reason="this is the simulator")
def test_kernels_get_their_arrays_in_numbas_simulator():
    pytest.importorskip("numba")
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    found = subprocess.run(
        [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-ra", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTEST_ADDOPTS": ""},
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) > 60, found.stdout
