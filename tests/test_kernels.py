"""Every kernel, NumPy's and Numba's, against its definition one element at a time, and against differences of it."""

import os
import pathlib
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from tapegrad.kernels import choice, cpu, reference

import tapegrad as tg
import tapegrad.ops.recurrent
from tapegrad.core.primitive import REGISTRY

RNG = np.random.default_rng(0)
F32, F64 = np.float32, np.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64])
BATCHES = pytest.mark.parametrize("batch", [1, 2, 5])
# Rounding of a few products of a few terms, in units of the dtype.
TOLERANCE = {F64: {"rtol": 1e-12, "atol": 1e-14}, F32: {"rtol": 5e-6, "atol": 1e-6}}


@pytest.fixture(params=["numpy", "numba"])
def mode(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    before = choice.use(request.param)
    yield request.param
    choice.use(before)


@pytest.fixture
def numba():
    pytest.importorskip("numba")
    before = choice.use("numba")
    yield
    choice.use(before)


def lstm_inputs(batch=3, n_in=3, n=5, dtype=F64, steps=None):
    """Arguments of a step, or of a sequence. Eight rows and more of a weight are multiplied another way than fewer."""
    leading = (batch,) if steps is None else (steps, batch)
    shapes = [(*leading, n_in), (batch, n), (batch, n), (n_in, 4 * n), (n, 4 * n), (4 * n,)]
    return [(0.5 * RNG.standard_normal(shape)).astype(dtype) for shape in shapes]


def gru_inputs(batch=3, n_in=3, n=5, dtype=F64, steps=None):
    leading = (batch,) if steps is None else (steps, batch)
    shapes = [(*leading, n_in), (batch, n), (n_in, 3 * n), (n, 3 * n), (3 * n,), (3 * n,)]
    return [(0.5 * RNG.standard_normal(shape)).astype(dtype) for shape in shapes]


def rnn_inputs(batch=3, n_in=3, n=5, dtype=F64, steps=None):
    leading = (batch,) if steps is None else (steps, batch)
    shapes = [(*leading, n_in), (batch, n), (n_in, n), (n, n), (n,)]
    return [(0.5 * RNG.standard_normal(shape)).astype(dtype) for shape in shapes]


INPUTS = {"lstm": lstm_inputs, "gru": gru_inputs, "rnn": rnn_inputs}
CELLS = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


def tuple_of(y):
    return y if isinstance(y, tuple) else (y,)


def values(ys):
    return [y.value if isinstance(y, tg.Variable) else y for y in tuple_of(ys)]


# -- steps and sequences -----------------------------------------------------------------------------


@CELLS
@BATCHES
@DTYPES
@pytest.mark.parametrize(("n_in", "n"), [(3, 5), (17, 9), (1, 1)])
def test_a_step_is_its_definition(mode, cell, batch, dtype, n_in, n):
    inputs = INPUTS[cell](batch, n_in, n, dtype)
    expected = tuple_of(getattr(reference, f"{cell}_step")(*inputs))
    found = tuple_of(getattr(tg.ops.recurrent, f"{cell}_step")(*inputs))
    for y, truth in zip(found, expected, strict=True):
        assert y.dtype == dtype
        np.testing.assert_allclose(y, truth, **TOLERANCE[dtype])


@CELLS
@BATCHES
@DTYPES
@pytest.mark.parametrize("steps", [1, 4])
def test_a_sequence_is_its_definition(mode, cell, batch, dtype, steps):
    inputs = INPUTS[cell](batch, 3, 9, dtype, steps)
    expected = getattr(reference, f"{cell}_sequence")(*inputs)
    found = getattr(tg.ops.recurrent, f"{cell}_sequence")(*inputs)
    for y, truth in zip(found, expected, strict=True):
        assert y.dtype == dtype
        np.testing.assert_allclose(y, truth, **TOLERANCE[dtype])


def gradients(function, inputs, cts):
    leaves, tape = [tg.Variable(x) for x in inputs], tg.Tape()
    with tape:
        ys = tuple_of(function(*leaves))
    tape.backward(list(ys), cts)
    return [v.grad for v in leaves]


@CELLS
@BATCHES
@DTYPES
@pytest.mark.parametrize("kind", ["step", "sequence"])
def test_a_pullback_is_the_gradient_of_the_same_thing_in_ops(mode, cell, batch, dtype, kind):
    inputs = INPUTS[cell](batch, 3, 9, dtype, 4 if kind == "sequence" else None)
    function = REGISTRY[f"{cell}_{kind}"]
    ys = tuple_of(function.function(*inputs))
    cts = [RNG.standard_normal(y.shape).astype(dtype) for y in ys]
    found = gradients(function.function, inputs, cts)
    exact = gradients(function.reference, [x.astype(F64) for x in inputs], [ct.astype(F64) for ct in cts])
    for ct, truth in zip(found, exact, strict=True):
        assert ct.dtype == dtype
        np.testing.assert_allclose(
            ct, truth, rtol=TOLERANCE[dtype]["rtol"] * 4, atol=4e-6 if dtype is F32 else 1e-13
        )


def test_the_lstm_steps_pullback_is_a_difference_quotient_of_its_definition(mode):
    x, h, c, w_x, w_h, b = lstm_inputs()
    ct_h, ct_c = RNG.standard_normal((2, 3, 5))
    _, _, gates, tanh_c = choice.lstm_step(x, h, c, w_x, w_h, b)
    ct_z, ct_c_in = choice.lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)

    def value(c, z):  # with the gates' inputs z given as the bias of a cell that reads nothing
        outs = [
            reference.lstm_step(x[i : i + 1] * 0, h[i : i + 1] * 0, c[i : i + 1], w_x, w_h, z[i])
            for i in range(3)
        ]
        return sum(np.sum(ct_h[i] * outs[i][0]) + np.sum(ct_c[i] * outs[i][1]) for i in range(3))

    z, step = x @ w_x + h @ w_h + b, 1e-6
    d_c, d_z = RNG.standard_normal(c.shape), RNG.standard_normal(z.shape)
    difference = (value(c + step * d_c, z + step * d_z) - value(c - step * d_c, z - step * d_z)) / (2 * step)
    np.testing.assert_allclose(np.sum(ct_z * d_z) + np.sum(ct_c_in * d_c), difference, rtol=1e-8)


@CELLS
def test_a_batch_of_none_has_none(mode, cell):
    for kind, steps in (("step", None), ("sequence", 2)):
        inputs = INPUTS[cell](0, 3, 5, F64, steps)
        function = REGISTRY[f"{cell}_{kind}"].function
        ys = tuple_of(function(*inputs))
        assert all(0 in y.shape for y in ys)
        grads = gradients(function, inputs, [np.zeros(y.shape) for y in ys])
        assert not any(g.any() for g in grads)


@CELLS
def test_arrays_may_be_read_only_strided_or_of_two_dtypes(mode, cell):
    for kind, steps in (("step", None), ("sequence", 2)):
        for batch in (1, 3):
            inputs = INPUTS[cell](batch, 3, 5, F32, steps)
            function = REGISTRY[f"{cell}_{kind}"].function
            expected = tuple_of(function(*inputs))
            for x in inputs:
                x.flags.writeable = False
            strided = [np.repeat(x, 2, axis=-1)[..., ::2] for x in inputs]
            wide = [inputs[0].astype(F64), *inputs[1:]]
            for given, dtype in (
                (inputs, F32),
                (strided, F32),
                ([x.T.copy().T for x in inputs], F32),
                (wide, F64),
            ):
                for y, same in zip(tuple_of(function(*given)), expected, strict=True):
                    assert y.dtype == dtype
                    np.testing.assert_allclose(y, same, rtol=2e-6, atol=1e-6)


@CELLS
def test_shapes_that_do_not_fit_are_refused_by_name(mode, cell):
    for kind, steps in (("step", None), ("sequence", 2)):
        for batch in (1, 2):
            good = INPUTS[cell](batch, 3, 5, F64, steps)
            for i, x in enumerate(good):
                for other in (x[..., :-1], x[None], np.ones(())):
                    wrong = [*good[:i], other, *good[i + 1 :]]
                    with pytest.raises(tg.ShapeError, match=f"{cell}_{kind}: shapes must be xs? "):
                        REGISTRY[f"{cell}_{kind}"].function(*wrong)
    with pytest.raises(tg.ShapeError, match=f"{cell}_sequence: `xs` must have at least one step"):
        REGISTRY[f"{cell}_sequence"].function(*INPUTS[cell](2, 3, 5, F64, 0))


def test_what_a_step_returns_is_its_own_memory(mode):
    inputs = lstm_inputs(1, 3, 5)
    for y in choice.lstm_step_in_one_call(*inputs) or choice.lstm_step(*inputs):
        assert y.base is None
        assert y.flags.owndata


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_weight_gradient_is_a_sum_of_outer_products(rows):
    x, ct = RNG.standard_normal((rows, 3)), RNG.standard_normal((rows, 4))
    np.testing.assert_allclose(cpu.weight_gradient(x, ct), sum(map(np.outer, x, ct)), rtol=1e-13)
    product = cpu.transposed_product(ct, w := RNG.standard_normal((3, 4)))
    np.testing.assert_allclose(
        product, [[sum(ct[i] * w[j]) for j in range(3)] for i in range(rows)], rtol=1e-13
    )
    assert product.flags.c_contiguous


FORMULAS = [p for p in REGISTRY.values() if p.formula is not None]


@pytest.mark.parametrize("primitive", FORMULAS, ids=lambda p: p.name)
def test_a_formula_is_its_joint(mode, primitive):
    for case in primitive.cases:
        inputs = [RNG.uniform(-1, 1, shape) if isinstance(shape, tuple) else shape for shape in case.inputs]
        leaves = [
            tg.Variable(x) if a in primitive.differentiable else x
            for a, x in zip(primitive.arguments, inputs, strict=True)
        ]
        tape = tg.Tape()
        with tape:
            ys = tuple_of(primitive.function(*leaves, **case.statics))
        entry = tape._segment.entries[0]
        kept = entry[0].residuals(entry)
        cts = [RNG.standard_normal(y.shape) for y in ys]
        answers = []
        for rule in (primitive.joint, primitive.formula):
            code = rule.__code__
            named = code.co_varnames[1 : code.co_argcount]
            active = (True,) * len(primitive.differentiable)
            ct = [ct.copy() for ct in cts] if primitive.outputs else cts[0].copy()
            answers.append(rule(ct, **{n: active if n == "active" else kept[n] for n in named}))
        for joint, formula in zip(*answers, strict=True):
            np.testing.assert_allclose(formula, joint, rtol=1e-12, atol=1e-14)


# -- losses and tables -------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 7), (3, 101)])
def test_cross_entropy_is_its_definition(mode, dtype, shape):
    logits = (RNG.standard_normal(shape) * 3).astype(dtype)
    labels = RNG.integers(0, shape[1], shape[0])
    truth = reference.softmax_cross_entropy(logits, labels)
    for given in (labels, labels.astype(np.int32), np.repeat(labels, 2)[::2]):
        loss = tg.softmax_cross_entropy(logits, given)
        assert loss.dtype == dtype
        np.testing.assert_allclose(
            loss, truth, rtol=1e-5 if dtype is F32 else 1e-13, atol=1e-6 if dtype is F32 else 0
        )
    v, tape = tg.Variable(logits), tg.Tape()
    with tape:
        loss = tg.softmax_cross_entropy(v, labels) * 2.0
    tape.backward(loss)
    exact = np.exp(logits - logits.max(-1, keepdims=True), dtype=F64)
    exact /= exact.sum(-1, keepdims=True)
    exact[np.arange(shape[0]), labels] -= 1
    np.testing.assert_allclose(
        v.grad,
        2 * exact / shape[0],
        rtol=1e-5 if dtype is F32 else 1e-12,
        atol=3e-7 if dtype is F32 else 1e-15,
    )


def test_cross_entropy_takes_labels_of_any_shape_and_refuses_those_out_of_range(mode):
    logits, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 4, (2, 3))
    flat = tg.softmax_cross_entropy(logits.reshape(6, 4), labels.ravel())
    np.testing.assert_allclose(tg.softmax_cross_entropy(logits, labels), flat, rtol=1e-14)
    for wrong in (-1, 4):
        with pytest.raises(tg.ArgumentError, match=f"`labels` must be in 0 … 3, and {wrong} came"):
            tg.softmax_cross_entropy(logits, np.where(labels == labels[0, 0], wrong, labels))
    with pytest.raises(tg.DtypeError, match="`labels` must be integers"):
        tg.softmax_cross_entropy(logits, labels * 1.0)
    for empty in (np.zeros((0, 4)), np.zeros((0, 0))):
        with pytest.raises(tg.ShapeError, match="the batch is empty"):
            tg.softmax_cross_entropy(empty, np.zeros(0, int))


def test_nan_and_infinity_in_the_logits_reach_the_loss(mode):
    for bad in (np.nan, np.inf):
        for position in range(5):
            logits = np.zeros((1, 5))
            logits[0, position] = bad
            with np.errstate(invalid="ignore"):
                assert np.isnan(tg.softmax_cross_entropy(logits, np.array([2])))
    logits = np.array([[0.0, -np.inf, 0.0]])
    np.testing.assert_allclose(tg.softmax_cross_entropy(logits, np.array([0])), np.log(2))


@DTYPES
def test_the_embedding_gradient_is_its_definition(mode, dtype):
    for count, size, k in ((4, 3, 9), (1, 1, 1), (5, 8, 0)):
        ct, indices = RNG.standard_normal((k, size)).astype(dtype), RNG.integers(0, count, k)
        found = choice.embedding_gradient(ct, indices, count)
        assert found.dtype == dtype
        np.testing.assert_allclose(
            found, reference.embedding_gradient(ct, indices, count), **TOLERANCE[dtype]
        )
    np.testing.assert_array_equal(choice.embedding_gradient(np.ones((1, 2)), np.array([-1]), 3)[2], [1, 1])
    with pytest.raises(IndexError):
        choice.embedding_gradient(np.ones((1, 2)), np.array([3]), 3)


# -- optimizers --------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
def test_the_optimizers_kernels_are_their_definitions(mode, dtype, size):
    value, grad, velocity, mean = RNG.standard_normal((4, size)).astype(dtype)
    square, new = np.abs(RNG.standard_normal(size)).astype(dtype), np.empty(size, dtype)
    near = {"rtol": 1e-12 if dtype is F64 else 2e-6, "atol": 1e-14 if dtype is F64 else 1e-6}
    assert choice.sgd(value, grad, new, 0.1)
    np.testing.assert_allclose(new, reference.sgd(value, grad, 0.1), **near)
    expected = reference.momentum(value, grad, velocity, 0.1, 0.9)
    choice.momentum(value, grad, velocity, new, 0.1, 0.9)
    for found, truth in zip((new, velocity), expected, strict=True):
        np.testing.assert_allclose(found, truth, **near)
    expected = reference.adam(value, grad, mean, square, 0.01, (0.8, 0.95), 1e-6, 3)
    choice.adam(value, grad, mean, square, new, 0.01 / (1 - 0.8**3), 0.8, 0.95, 1e-6, (1 - 0.95**3) ** -0.5)
    for found, truth in zip((new, mean, square), expected, strict=True):
        np.testing.assert_allclose(found, truth, **near)
    np.testing.assert_allclose(choice.squared_norm(grad), np.sum(grad.astype(F64) ** 2), rtol=1e-6)


@DTYPES
@pytest.mark.parametrize("size", [1, 7, 8, 64, 257])
def test_one_element_that_is_not_finite_is_found_wherever_it_is(mode, dtype, size):
    huge = np.full(size, np.finfo(dtype).max, dtype) * RNG.choice([-1, 1], size).astype(dtype)
    new = np.empty_like(huge)
    assert choice.finite(huge)
    assert choice.sgd(huge, huge, new, 0.0)
    for bad in (np.nan, np.inf, -np.inf):
        for position in range(size):
            grad = huge.copy()
            grad[position] = bad
            assert not choice.finite(grad)
            assert not choice.sgd(huge, grad, new, 0.0)


# -- sigmoid and tanh --------------------------------------------------------------------------------


def activated(z, gate):
    """sigmoid(z) or tanh(z) as the compiled LSTM computes them: the gate of a cell whose bias is z."""
    n = z.size
    zeros = np.zeros((1, n), z.dtype)
    b = np.concatenate([z if g == gate else zeros[0] for g in range(4)])
    gates = zeros.repeat(4, axis=1)
    choice.LSTM_GATES[z.dtype](zeros.repeat(4, axis=1), b, zeros, gates, *np.empty((3, 1, n), z.dtype))
    return gates[0, gate * n : (gate + 1) * n]


@DTYPES
def test_sigmoid_and_tanh_are_right_to_three_units_in_the_last_place(numba, dtype):
    reach = 80.0 if dtype is F32 else 700.0
    z = np.concatenate(
        [
            np.linspace(-reach, reach, 20_001),
            np.geomspace(1e-30, 20, 20_001),
            -np.geomspace(1e-30, 20, 20_001),
        ]
    )
    z = z.astype(dtype)
    wide = z.astype(np.longdouble)
    for gate, truth in ((0, 1 / (1 + np.exp(-wide))), (2, np.tanh(wide))):
        error = np.abs(activated(z, gate) - truth) / np.spacing(np.abs(truth).astype(dtype))
        assert error.max() < 3, z[error.argmax()]


@DTYPES
def test_sigmoid_and_tanh_of_special_values(numba, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    z = np.array([np.inf, -np.inf, np.nan, 0.0, tiny, -tiny, 1e4, -1e4], dtype)
    np.testing.assert_array_equal(activated(z, 0), [1, 0, np.nan, 0.5, 0.5, 0.5, 1, 0])
    np.testing.assert_array_equal(activated(z, 2), np.array([1, -1, np.nan, 0, tiny, -tiny, 1, -1], dtype))


# -- choosing ----------------------------------------------------------------------------------------


def test_kernels_change_none_of_their_inputs(mode):
    for batch in (1, 3):
        inputs = lstm_inputs(batch)
        copies = [x.copy() for x in inputs]
        h, c, gates, tanh_c = choice.lstm_step_in_one_call(*inputs) or choice.lstm_step(*inputs)
        kept = [h.copy(), c.copy(), gates.copy(), tanh_c.copy()]
        choice.lstm_step_pullback(h, c, inputs[2], gates, tanh_c)
        sequence = lstm_inputs(batch, steps=3)
        whole = choice.lstm_sequence(*sequence)
        copies += [x.copy() for x in (*sequence, *whole)]
        choice.lstm_sequence_pullback(*whole[:3], *whole[4:], sequence[4])
        found = [*inputs, *sequence, *whole, h, c, gates, tanh_c]
        for x, copy in zip(found, [*copies, *kept], strict=True):
            np.testing.assert_array_equal(x, copy)


def test_two_threads_may_be_the_first_to_call(numba):
    choice.use("numba")  # which forgets what was loaded
    inputs, found = lstm_inputs(1, 3, 5, F32), {}

    def work(k):
        for _ in range(200):
            found[k] = tg.lstm_step(*inputs)[0]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(4):
        np.testing.assert_array_equal(found[k], found[0])


def test_a_mode_is_numpy_numba_or_auto():
    before = choice.use("numpy")
    try:
        assert choice.LSTM_STEP[np.dtype(F32)] is None
        assert choice.lstm_step_in_one_call(*lstm_inputs(1, dtype=F32)) is None
        assert choice.warmup() == {}
    finally:
        assert choice.use(before) == "numpy"
    with pytest.raises(ValueError, match="`mode` must be one of auto, numpy, numba, and 'fast' came"):
        choice.use("fast")


def test_half_precision_is_numpys(numba):
    assert choice.LSTM_STEP[np.dtype(np.float16)] is None
    assert choice.LSTM_STEP[np.dtype(">f4")] is None


def python(code, **environment):
    """What a fresh Python prints that has run `code`."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(tg.__file__).anchor,
        env={**os.environ, **environment},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


STEP = (
    "import numpy as np, tapegrad as tg; "
    "h = tg.lstm_step(*(np.ones(s, np.float32) for s in [(1, 2), (1, 1), (1, 1), (2, 4), (1, 4), (4,)]))[0]; "
    "import sys; print(bool(sys.modules.get('numba')), h[0, 0])"
)


def step_of_ones():
    ones = [np.ones(shape) for shape in [(1, 2), (1, 1), (1, 1), (2, 4), (1, 4), (4,)]]
    return pytest.approx(reference.lstm_step(*ones)[0][0, 0], rel=1e-6)


def test_everything_works_where_numba_cannot_be_imported():
    blocked = "import sys; sys.modules['numba'] = None; " + STEP
    loaded, h = python(blocked)
    assert loaded == "False"
    assert float(h) == step_of_ones()


def test_the_environment_chooses():
    pytest.importorskip("numba")
    assert python(STEP, TAPEGRAD_KERNELS="numpy")[0] == "False"
    assert python(STEP, TAPEGRAD_KERNELS="numba")[0] == "True"


def test_a_folder_that_cannot_be_written_to_costs_only_time(tmp_path):
    pytest.importorskip("numba")
    copy = tmp_path / "copy"
    root = pathlib.Path(tg.__file__).parent
    shutil.copytree(root, copy / "tapegrad", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        pathlib.Path(choice.__file__).parent,
        copy / "tapegrad" / "kernels",
        ignore=shutil.ignore_patterns("__pycache__"),
        dirs_exist_ok=True,
    )
    # A file where the cache's folder would be: nobody, not even root, can make it.
    (copy / "tapegrad" / "kernels" / "__pycache__").write_text("")
    code = f"import sys; sys.path.insert(0, {str(copy)!r}); " + STEP + "; print(tg.kernels.choice.__file__)"
    loaded, h, where = python(code, NUMBA_CACHE_DIR="", HOME=os.devnull, XDG_CACHE_HOME=os.devnull)
    assert where.startswith(str(copy))
    assert loaded == "True"
    assert float(h) == step_of_ones()


def test_warming_up_reports_every_kernel_and_finds_it_on_the_disk_the_next_time(numba):
    report = choice.warmup()
    assert {f"{name} float32" for name in choice.ALL} == set(report)
    code = "from tapegrad.kernels import choice; r = choice.warmup(); print(all(k['from_cache'] for k in r.values()), sum(k['seconds'] for k in r.values()))"
    cached, seconds = python(code)
    assert cached == "True"
    assert float(seconds) < 3
