"""A compiled function against the function itself on a tape, which is the oracle throughout."""

import random
import sys
import threading

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.program import function, interpreter
from tapegrad.program.function import compile
from tapegrad.program.interpreter import ScalarProgram
from tapegrad.program.statements import ArrayProgram


def by_tape(f, *args):
    """The value of `f(*args)`, and the adjoint of every leaf."""
    tape = tg.Tape()
    with tape:
        y = f(*args)
    return y, tape._sweep([y], [np.ones(y.shape, y.dtype)], (), False).gradients


def gradients_of(leaves):
    found = [v.grad for v in leaves]
    for v in leaves:
        v.grad = None
    return found


def assert_same(f, g, leaves, *args, tolerance=1e-12):
    """`g.backward(*args)` gives the value of `f` and its gradients."""
    y, expected = by_tape(f, *args)
    for v in leaves:
        v.grad = None
    ours = g.backward(*args, seed=None if y.shape == () else np.ones(y.shape))
    assert ours.dtype == y.dtype and ours.shape == y.shape
    np.testing.assert_allclose(ours.value, y.value, rtol=tolerance, atol=tolerance)
    for v in leaves:
        if v not in expected:
            assert v.grad is None or not v.grad.any()
            continue
        assert v.grad.dtype == v.dtype and v.grad.shape == v.shape
        np.testing.assert_allclose(v.grad, expected[v], rtol=tolerance, atol=tolerance)
        v.grad = None


@pytest.fixture(params=["instructions", "statements"])
def kind(request, monkeypatch):
    """Both ways to run a program."""
    monkeypatch.setattr(function, "worthwhile", lambda nodes: request.param == "instructions")
    return request.param


# -- random programs -----------------------------------------------------------------------------------

UNARY = [
    lambda a: tg.sin(a), lambda a: tg.cos(a), lambda a: tg.tanh(a), lambda a: tg.exp(-a * a), lambda a: tg.square(a) * 0.3,
    lambda a: tg.sqrt(a * a + 1.0), lambda a: tg.log(a * a + 0.5), lambda a: tg.log1p(a * a), lambda a: -a,
    lambda a: tg.expm1(a * 0.2), lambda a: tg.sigmoid(a), lambda a: tg.softplus(a), lambda a: tg.relu(a), lambda a: abs(a),
    lambda a: (a * a + 0.7) ** 1.5, lambda a: a**3 * 0.1, lambda a: 2.0 ** (a * 0.1), lambda a: 1.0 / (a * a + 1.0),
    lambda a: tg.stop_gradient(a) * a, lambda a: tg.clip(a, -0.8, 0.9), lambda a: 1.5 - a, lambda a: +a,
]  # fmt: skip
BINARY = [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: a / (b * b + 1.0), lambda a, b: tg.maximum(a, b),
    lambda a, b: tg.minimum(a, b), lambda a, b: tg.where(a > b, a * 0.5, b), lambda a, b: (a * a + 0.5) ** (b * 0.1),
    lambda a, b: a * 0.25 + b * b * 0.1, lambda a, b: tg.where((a <= b) | (b != b), b, a * a * 0.1),
]  # fmt: skip


def random_function(seed, length, shapes):
    """A function of three Variables, straight line, whose values stay small."""
    rng = random.Random(seed)
    plan = []
    for _ in range(length):
        if rng.random() < 0.5:
            plan.append((rng.choice(UNARY), (rng.random(),)))
        else:
            plan.append((rng.choice(BINARY), (rng.random(), rng.random())))

    def f(*values):
        values = list(values)
        for op, places in plan:
            newest = values[-6:]
            values.append(op(*(newest[int(p * len(newest))] for p in places)))
        return tg.sum(sum(tg.tanh(v).sum() for v in values[-4:]))

    return f


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_of_numbers_equal_the_tape(seed, kind):
    rng = np.random.default_rng(seed)
    shapes = [(), (), ()] if seed % 2 else [(3,), (2, 1), ()]
    f = random_function(seed, 25, shapes)
    g, leaves = compile(f), [tg.Variable(rng.standard_normal(s)) for s in shapes]
    for _ in range(3):
        assert_same(f, g, leaves, *leaves, tolerance=1e-10)
        for v in leaves:
            v.value = rng.standard_normal(v.shape)
    assert g.recordings == 1
    assert isinstance(g.program(), ScalarProgram if kind == "instructions" else ArrayProgram)


MATRIX = [
    lambda a, b: a @ b * 0.3, lambda a, b: a @ b.T * 0.3, lambda a, b: a * b, lambda a, b: a + b[0], lambda a, b: a - b[:, 1:2],
    lambda a, b: tg.tanh(a), lambda a, b: tg.softmax(a) * b, lambda a, b: a * tg.sum(b, axis=1, keepdims=True) * 0.3,
    lambda a, b: tg.concat([a[1:], b[:1]]), lambda a, b: tg.stack([a[0], b[1], a[2]]), lambda a, b: a * tg.mean(b),
    lambda a, b: a[np.array([2, 0, 2])] + b, lambda a, b: tg.maximum(a, b), lambda a, b: tg.where(a > b, a, 0.5),
    lambda a, b: a if a[0, 0] > b[1, 1] else b * 2.0, lambda a, b: a * 0.5 if tg.sum(a * b) < 0.0 else tg.sin(a),
    lambda a, b: tg.log_softmax(a, axis=0) * 0.2 + b, lambda a, b: a * tg.max(b, axis=0), lambda a, b: a / (b * b + 1.0),
    lambda a, b: tg.concat(tg.split(a, 3, axis=1)[::-1], axis=1) * b, lambda a, b: a - tg.logsumexp(b, axis=0),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_random_programs_of_matrices_with_branches_equal_the_tape(seed, kind):
    """Weights, data and with them the paths change between calls; no call may notice what came before."""
    rng, choices = np.random.default_rng(seed), random.Random(seed)
    plan = [(choices.choice(MATRIX), choices.random(), choices.random()) for _ in range(10)]
    w = tg.Parameter(rng.standard_normal((3, 3)))

    def f(x, v):
        values = [w, v, x * v]
        for op, one, other in plan:
            newest = values[-5:]
            values.append(op(newest[int(one * len(newest))], newest[int(other * len(newest))]))
        return tg.sum(tg.tanh(values[-1]) * x) + tg.sum(tg.tanh(values[-2]))

    g, v = compile(f), tg.Variable(rng.standard_normal((3, 3)))
    for _ in range(8):
        assert_same(f, g, [w, v], rng.standard_normal((3, 3)), v, tolerance=1e-9)
        w.value, v.value = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    assert g.recordings <= 8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_are_kept(dtype, kind):
    f = random_function(3, 30, [()])
    leaves = [tg.Variable(np.asarray(x, dtype)) for x in (0.3, -0.4, 0.5)]
    assert_same(f, compile(f), leaves, *leaves, tolerance=1e-10 if dtype is np.float64 else 1e-4)


W = np.random.default_rng(5).standard_normal
SHAPES = {
    "matmul": lambda a: tg.sum(a @ a.T @ a),
    "vector products": lambda a: (a @ a[0]) @ a[:, 1],
    "stack of matrices": lambda a: tg.sum(a.reshape(1, 3, 4) @ np.ones((2, 4, 2))),
    "slices": lambda a: tg.sum(a[1:, ::2] * a[:2, 1::2]) + a[0, 0] * a[-1, -1],
    "newaxis": lambda a: tg.sum(a[:, None, :] * a[None, :, :]),
    "reductions": lambda a: tg.sum(tg.mean(a, axis=0) * tg.sum(a, axis=(0,), keepdims=True)),
    "max": lambda a: tg.sum(tg.max(a, axis=1) * tg.min(a, axis=1)) * tg.max(a),
    "logsumexp": lambda a: tg.logsumexp(a) + tg.sum(tg.logsumexp(a, axis=-1)),
    "softmax": lambda a: tg.sum(tg.softmax(a) * a) + tg.sum(tg.log_softmax(a)[0]),
    "concat": lambda a: tg.sum(tg.concat([a, a * a, a[:1]]) ** 2),
    "stack": lambda a: tg.sum(tg.stack([a[0, 0], a[1, 1] * 2.0]) * tg.stack([a[2, 2], a[0, 1]])),
    "split": lambda a: sum(tg.sum(p * float(i)) for i, p in enumerate(tg.split(a, 2, 1))),
    "unstack": lambda a: sum((tg.sum(row) * row[0] for row in a), 0.0),
    "broadcast": lambda a: tg.sum(tg.broadcast_to(a[0], (2, 3, 4)) * a),
    "gather": lambda a: tg.sum(a[np.array([2, 0, 2])] * tg.take(a, np.array([0, 1, 1]), axis=0)),
    "transpose": lambda a: tg.sum(tg.transpose(a, (1, 0))[2] * a.T[1]) + tg.sum(tg.squeeze(a[:1])),
    "cross entropy": lambda a: tg.softmax_cross_entropy(a, np.array([0, 3, 1])),
    "numpy": lambda a: np.sum(np.tanh(a) * np.where(a > 0, a, 0.5)) + np.mean(np.concatenate([a, a])),
}


@pytest.mark.parametrize("name", SHAPES)
def test_ops_on_arrays_equal_the_tape(name, kind):
    f = SHAPES[name]
    g, a = compile(f), tg.Variable(W((3, 4)))
    for _ in range(2):
        assert_same(f, g, [a], a)
        a.value = W((3, 4))
    assert g.recordings == 1


def test_every_ufunc_has_the_values_of_numpy_on_special_numbers():
    xs = np.array([-np.inf, -1.5, -0.0, 0.0, 0.3, 1.0, np.inf, np.nan])
    for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum", "power"):
        op = getattr(tg, name)
        g = compile(lambda a, b, op=op: op(a, b))
        for x in xs:
            with np.errstate(all="ignore"):
                expected = getattr(np, name)(x, xs)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(function, "worthwhile", lambda nodes: True)
                with np.errstate(all="ignore"):
                    found = g(tg.Variable(np.full(8, x)), tg.Variable(xs)).value
            assert isinstance(g.program(), ScalarProgram)
            np.testing.assert_allclose(found, expected, rtol=1e-14, err_msg=f"{name}({x}, {xs})")
            if name not in ("maximum", "minimum"):  # of 0.0 and -0.0 NumPy itself takes either
                zeros = expected == 0
                assert (np.signbit(found[zeros]) == np.signbit(expected[zeros])).all()
    for name in (
        "sqrt",
        "exp",
        "log",
        "sin",
        "cos",
        "tanh",
        "expm1",
        "log1p",
        "absolute",
        "softplus",
        "sigmoid",
        "relu",
    ):
        op = getattr(tg, name)
        with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
            patch.setattr(function, "worthwhile", lambda nodes: True)
            g = compile(lambda a, op=op: op(a))
            found, expected = g(tg.Variable(xs)).value, op(tg.Variable(xs)).value
            assert isinstance(g.program(), ScalarProgram)
        np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-300, err_msg=name)


def test_the_loop_without_numba_runs_the_same_instructions(monkeypatch):
    f = random_function(8, 60, [()])
    leaves = [tg.Variable(x) for x in (0.3, -0.4, 0.5)]
    compiled = compile(f)
    y = compiled.backward(*leaves)
    expected = [float(y), *map(float, gradients_of(leaves))]
    monkeypatch.setitem(sys.modules, "numba", None)
    interpreter.interpreter.cache_clear()
    try:
        assert interpreter.interpreter() is interpreter.interpret_slowly
        y = compiled.backward(*leaves)
    finally:
        interpreter.interpreter.cache_clear()
    np.testing.assert_allclose([float(y), *map(float, gradients_of(leaves))], expected, rtol=1e-13)


def test_programs_with_more_registers_than_16_bits_can_name_are_wider(monkeypatch):
    f = random_function(8, 60, [()])
    leaves = [tg.Variable(x) for x in (0.3, -0.4, 0.5)]
    monkeypatch.setattr(interpreter, "NARROW", 8)
    g = compile(f)
    assert_same(f, g, leaves, *leaves)
    assert g.program().forward_code.dtype == np.uint32


def test_arrays_of_one_element_are_no_numbers(kind):
    a, b = tg.Variable([2.0]), tg.Variable(3.0)
    assert_same(lambda x, y: tg.sum(x * y) * y, compile(lambda x, y: tg.sum(x * y) * y), [a, b], a, b)


def test_a_program_of_instructions_reuses_registers_and_can_be_read():
    def f(x):
        for _ in range(300):
            x = x * 0.5 + 1.0
        return x

    g, x = compile(f), tg.Variable(2.0)
    g.backward(x)
    program = g.program()
    assert isinstance(program, ScalarProgram) and program.registers < 12
    assert len(program.forward_code) == 300  # a product and a sum are one instruction
    assert x.grad == 0.5**300
    assert "-- backward" in str(program) and "r6 = r4 * r3 + r0" in str(program)


def test_a_program_of_statements_can_be_read():
    w = tg.Parameter(np.ones((3, 2)))
    g = compile(lambda x: tg.sum(tg.tanh(x @ w)))
    g(np.ones((50, 3)))
    assert "dot(x0, x1)" in str(g.program()) and "def backward(saved, cts):" in str(g.program())
    assert len(g.program()) > 3


# -- paths ---------------------------------------------------------------------------------------------


def test_a_branch_on_elements_is_a_guard(kind):
    def f(x):
        y = x * x
        if y > 1.0:
            return tg.sin(y)
        if x < 0:
            return y * x
        return tg.exp(y)

    g, x = compile(f), tg.Variable(0.5)
    for value in (0.5, 2.0, -0.5, 0.4, -2.0, -0.1, 3.0):
        x.value = value
        assert_same(f, g, [x], x)
    assert g.recordings == 3


def test_a_branch_on_a_leaf_that_is_closed_over_is_a_guard(kind):
    p = tg.Parameter(np.array([1.0, 2.0]))

    def f(x):
        return tg.sum(p * x) if p[0] > p[1] else tg.sum(p * p)

    g = compile(f)
    for value in ([1.0, 2.0], [3.0, 2.0], [0.0, 2.0], [5.0, 1.0]):
        p.value = value
        assert_same(f, g, [p], np.array([0.5, 0.25]))
    assert g.recordings == 2


def test_a_branch_on_a_plain_argument_is_a_guard(kind):
    v = tg.Variable(3.0)
    g = compile(lambda x: v * v if x.sum() > 0 else v)
    assert [float(g(np.array([s, 1.0]))) for s in (1.0, -2.0, 0.0, -3.0)] == [9.0, 3.0, 9.0, 3.0]
    assert g.recordings == 2


def test_a_loop_whose_length_depends_on_a_value_is_recorded_for_each_length(kind):
    def f(x, n):
        for _ in range(int(n)):
            x = x * x
        return x

    def halve(x):
        while x > 1.0:
            x = x * 0.5
        return x

    x = tg.Variable(1.1)
    g, h = compile(f), compile(halve)
    for n in (1, 3, 2, 3, 1):
        assert_same(f, g, [x], x, np.array(n, np.float64))
    assert g.recordings == 3
    for value in (3.0, 0.5, 9.0, 2.5, 10.0):
        x.value = value
        assert_same(halve, h, [x], x)
    assert h.recordings == 3


def test_the_paths_that_are_remembered_are_few(monkeypatch):
    monkeypatch.setattr(function, "PATHS", 3)
    monkeypatch.setattr(function, "KEYS", 2)
    g = compile(lambda x, n: x * float(n) if x > n else x)
    x = tg.Variable(2.5)
    for n in range(6):
        assert float(g(x, n)) == (2.5 * n if n < 2.5 else 2.5)
    assert len(g._paths) == 2
    h = compile(lambda x: x * float(int(x)))
    for n in range(6):
        x.value = float(n)
        assert float(h(x)) == n * n
    assert len(next(iter(h._paths.values()))) == 3


def test_shapes_dtypes_and_python_values_choose_a_recording():
    w = tg.Parameter(np.ones(3))
    f = lambda x, axis=None, scale=1.0: tg.sum(tg.sum(x * w, axis=axis) * scale)
    g = compile(f)
    for x in (np.ones(3), np.ones((2, 3)), np.ones((2, 3), np.float32), 2 * np.ones((2, 3))):
        assert_same(f, g, [w], x)
    assert g.recordings == 3
    assert float(g(np.ones((2, 3)), scale=2.0)) == 12.0
    zeros = [float(g(np.ones((2, 3)), scale=zero)) for zero in (0.0, -0.0)]
    assert np.signbit(zeros).tolist() == [False, True]
    assert float(g(np.ones((2, 3)), axis=1)) == 6.0
    assert g.recordings == 7
    for _ in range(2):
        assert np.isnan(float(g(np.ones(3), scale=float("nan"))))
    assert g.recordings == 8


def test_a_constant_and_a_variable_are_arguments_of_two_kinds(kind):
    v, g = tg.Variable([1.0, 2.0]), compile(lambda a, b: tg.sum(a * b))
    assert float(g(tg.constant([3.0, 4.0]), np.ones(2))) == 7.0
    g.backward(v, np.array([5.0, 6.0]))
    assert v.grad.tolist() == [5.0, 6.0]
    g.backward(tg.constant([3.0, 4.0]), v)
    assert v.grad.tolist() == [8.0, 10.0]


def test_what_is_kept_through_a_view_is_not_written_to(kind):
    v, u = tg.Variable(W((3, 3))), tg.Variable(W((3, 3)))

    def f(x):
        y = x * 2.0
        z = y.T @ u
        return tg.sum(z) + tg.sum(tg.exp(y) * v)

    assert_same(f, compile(f), [v, u], W((3, 3)))


# -- arguments and results ---------------------------------------------------------------------------------


def test_arguments_and_results_may_be_nested(kind):
    def f(pair, *, options):
        a, b = pair
        return {"y": a * options["scale"] + b, "rest": [b, (a > b, 3, None)]}

    a, b, scale = tg.Variable([1.0, 2.0]), tg.Variable([3.0, 1.0]), np.array([2.0, 4.0])
    g = compile(f)
    for _ in range(2):
        y = g([a, b], options={"scale": scale})
        assert y["y"].value.tolist() == [5.0, 9.0] and y["rest"][0].value.tolist() == [3.0, 1.0]
        assert y["rest"][1][0].dtype == bool
        assert y["rest"][1][0].tolist() == [False, True] and y["rest"][1][1:] == (3, None)
    assert g.recordings == 1
    tape = tg.Tape()
    with tape:
        y = g([a, b], options={"scale": scale})
        loss = tg.sum(y["y"] * y["rest"][0])
    tape.backward(loss)
    assert a.grad.tolist() == [6.0, 4.0] and b.grad.tolist() == [8.0, 10.0]


def test_a_leaf_that_is_an_argument_and_closed_over_gets_both_gradients(kind):
    x = tg.Variable(3.0)
    g = compile(lambda v: v * v * x)
    g.backward(x)
    assert x.grad == 27.0
    x.grad, other = None, tg.Variable(2.0)
    g.backward(other)  # another leaf in the place of the argument: no new recording
    assert (x.grad, other.grad, g.recordings) == (4.0, 12.0, 1)


def test_a_value_that_depends_on_no_variable_is_a_constant(kind):
    p = tg.Parameter(2.0)
    g = compile(lambda x: (p * x, x * 2.0))
    y, twice = g(np.array(3.0))
    assert isinstance(y, tg.Variable) and not isinstance(twice, tg.Variable) and twice == 6.0
    with pytest.raises(tg.ArgumentError, match="nothing that <lambda> returns depends on a Variable"):
        compile(lambda x: x * 2.0).backward(np.array(3.0))


def test_arguments_that_are_arrays_of_integers_may_change(kind):
    table = tg.Parameter(W((5, 3)))
    f = lambda i, labels: tg.softmax_cross_entropy(tg.take(table, i) * table[i], labels)
    g = compile(f)
    for i, labels in (([0, 1], [2, 0]), ([4, 4], [1, 1]), ([3, 0], [0, 2])):
        assert_same(f, g, [table], np.array(i), np.array(labels))
    assert g.recordings == 1
    with pytest.raises(tg.ArgumentError, match=r"`labels` must be in 0 … 2, and 3 came"):
        g(np.array([0, 1]), np.array([3, 0]))
    with pytest.raises(tg.ArgumentError, match=r"`indices` must be in 0 … 4, and 5 came"):
        g(np.array([5, 1]), np.array([1, 0]))


def test_an_array_that_is_closed_over_is_frozen_as_it_was_recorded():
    a, v = np.array([1.0, 2.0]), tg.Variable([1.0, 1.0])
    g = compile(lambda: tg.sum(v * a))
    assert float(g()) == 3.0
    a[:] = 7.0
    assert float(g()) == 3.0


def test_random_numbers_drawn_inside_are_noticed():
    rng, v = np.random.default_rng(0), tg.Variable([1.0, 2.0])

    class Dropout(tg.nn.Module):
        def __init__(self):
            self.rng = np.random.default_rng(1)

        def forward(self, x):
            return x * (self.rng.random(2) < 0.5)

    layers = {"drop": [Dropout()]}
    for f in (
        lambda: tg.sum(v * rng.random(2)),
        lambda: tg.sum(layers["drop"][0](v)),
        lambda: tg.sum(v * np.random.rand(2)),  # noqa: NPY002
    ):
        with pytest.warns(UserWarning, match="drew random numbers, and will use the same ones in every call"):
            compile(f)()
    compile(lambda: tg.sum(v * 2.0))()


def test_a_python_number_that_changes_at_every_call_is_warned_of(monkeypatch):
    monkeypatch.setattr(function, "MANY", 4)
    g, v = compile(lambda scale: v * scale), tg.Variable(2.0)
    for n in range(3):
        g(float(n))
    with pytest.warns(
        UserWarning, match="recorded 4 times in 4 calls, which is slower than not compiling it"
    ):
        g(3.0)
    h = compile(lambda scale: v * scale)
    for n in range(8):
        for _ in range(4):
            assert float(h(float(n))) == 2.0 * n


def test_results_are_the_callers_own(kind):
    v = tg.Variable([1.0, 2.0])
    g = compile(lambda x: (v * x, x, x * 1.0, x[:1]))
    x = np.array([1.0, 2.0])
    y, same, copy, view = g(x)
    g(np.array([5.0, 5.0]))
    same[:], copy[:], view[:] = 9.0, 9.0, 9.0
    assert x.tolist() == [1.0, 2.0] and y.value.tolist() == [1.0, 4.0] and x.flags.writeable


def test_a_result_of_another_dtype_has_an_array_of_its_own(kind):
    v = tg.Variable(np.float32([1.0, 2.0]))
    g = compile(lambda x: (v * 1.0, x * 2.0 > 3.0, (v * 2.0).astype(np.float64) * x))
    y, mask, wide = g(np.array([1.0, 2.0]))
    assert (y.dtype, mask.dtype, wide.dtype) == (np.float32, bool, np.float64)
    assert mask.tolist() == [False, True] and wide.value.tolist() == [2.0, 8.0]


def test_a_function_without_arguments_and_one_that_returns_its_argument(kind):
    p = tg.Parameter([1.0, 2.0])
    g = compile(lambda: p)
    g.backward(seed=[1.0, 3.0])
    assert p.grad.tolist() == [1.0, 3.0]
    p.value = [5.0, 6.0]
    assert g().value.tolist() == [5.0, 6.0]


def test_a_compiled_method_and_a_compiled_module():
    class Net(tg.nn.Module):
        def __init__(self):
            self.w = tg.Parameter(np.array([2.0, 3.0]))

        @compile
        def loss(self, x):
            return tg.sum(self.w * x)

        def forward(self, x):
            return tg.sum(self.w * x * 2.0)

    one, two = Net(), Net()
    two.w.value = [10.0, 10.0]
    assert [float(net.loss(np.ones(2))) for net in (one, two, one)] == [5.0, 20.0, 5.0]
    g = compile(one)
    g.backward(np.array([1.0, 2.0]))
    assert one.w.grad.tolist() == [2.0, 4.0] and two.w.grad is None


# -- backward ----------------------------------------------------------------------------------------------


def test_backward_adds_to_grad_as_a_tape_does(kind):
    w = tg.Parameter([1.0, 2.0])
    g = compile(lambda x: tg.sum(w * w * x))
    for n in range(1, 4):
        assert float(g.backward(np.array([1.0, 3.0]))) == 13.0
        assert w.grad.tolist() == [2.0 * n, 12.0 * n]
    w.grad *= 0.0  # it is the user's own
    g.backward(np.array([1.0, 1.0]))
    assert w.grad.tolist() == [2.0, 4.0]


def test_gradients_of_two_leaves_are_two_arrays(kind):
    a, b = tg.Variable([1.0, 2.0]), tg.Variable([3.0, 4.0])
    for f in (lambda: tg.sum(a + b), lambda: tg.sum((a + b) * np.array([1.0, 1.0]))):
        a.grad, b.grad, g = None, None, compile(f)
        g.backward()
        a.grad[:] = 5.0
        assert b.grad.tolist() == [1.0, 1.0]
        g.backward()
        assert b.grad.tolist() == [2.0, 2.0] and a.grad.tolist() == [6.0, 6.0]


def test_a_seed_is_the_cotangent_of_the_result(kind):
    v = tg.Variable([1.0, 2.0])
    g = compile(lambda: (v * v, tg.sum(v)))
    g.backward(seed=[np.array([1.0, 10.0]), 100.0])
    assert v.grad.tolist() == [102.0, 140.0]
    with pytest.raises(tg.ArgumentError) as error:
        g.backward()
    assert str(error.value) == (
        "<lambda>.backward: <lambda> must return one scalar, and float64 (2,), float64 () came.\n"
        "  Reduce it (tg.sum, tg.mean), or give seed= with an array of each shape."
    )
    with pytest.raises(tg.ArgumentError, match="2 results need a list of as many seeds, and 1 came"):
        g.backward(seed=1.0)
    with pytest.raises(tg.ShapeError, match="the seed must have the shape of its Variable"):
        g.backward(seed=[np.ones(3), 1.0])


def test_an_optimizer_between_calls_is_seen(kind):
    def train(compiled):
        rng = np.random.default_rng(0)
        w, b = tg.Parameter(np.full((3, 2), 0.1)), tg.Parameter(np.zeros(2))
        f = lambda x, t: tg.mean((tg.tanh(x @ w + b) - t) ** 2)
        optimizer, tape, g = tg.optim.Adam([w, b], 0.05), tg.Tape(), compile(f)
        for _ in range(20):
            x, t = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
            if compiled:
                g.backward(x, t)
            else:
                tape.backward(tape.record(f, x, t))
            optimizer.step()
            optimizer.zero_grad()
        return [w.value, b.value]

    for ours, theirs in zip(train(True), train(False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_flat_parameters_share_their_gradient(kind):
    layer = tg.nn.Linear(3, 2, rng=0, dtype=np.float64)
    _, grads = layer.parameters(flat=True)
    g = compile(lambda x: tg.sum(tg.tanh(layer(x))))
    x = np.ones((2, 3))
    _, expected = by_tape(g.f, x)
    g.backward(x)
    np.testing.assert_allclose(layer.weight.grad, expected[layer.weight], rtol=1e-12)
    np.testing.assert_allclose(
        np.sort(grads), np.sort(np.concatenate([layer.weight.grad.ravel(), layer.bias.grad]))
    )


# -- on tapes ------------------------------------------------------------------------------------------------


def test_on_a_tape_a_call_is_one_entry_that_may_be_swept_again(kind):
    w = tg.Parameter([0.5, 0.25])
    g, tape, x = compile(lambda x: tg.tanh(w * x)), tg.Tape(), tg.Variable([1.0, 2.0])
    for _ in range(2):
        with tape:
            loss = tg.sum(g(x) * x)
        assert len(tape) == 3 and "compiled_lambda" in str(tape)
    for n in (1.0, 2.0):
        tape.backward(loss)
        _, expected = by_tape(lambda: tg.sum(g.f(x) * x))
        np.testing.assert_allclose(w.grad, n * expected[w], rtol=1e-12)
        np.testing.assert_allclose(x.grad, n * expected[x], rtol=1e-12)


def test_an_argument_that_is_written_to_later_does_no_harm(kind):
    w, buffer, tape = tg.Parameter([0.5, 0.25]), np.array([1.0, 2.0]), tg.Tape()
    g = compile(lambda x: tg.sum(w * w * x))
    with tape:
        loss = g(buffer)
    buffer[:] = 100.0
    w.value = [7.0, 7.0]
    tape.backward(loss)
    assert w.grad.tolist() == [1.0, 1.0]


def test_outside_of_recordings_the_result_is_a_constant():
    w, tape = tg.Parameter(2.0), tg.Tape()
    g = compile(lambda x: w * x)
    y = g(np.array(3.0))
    with tape:
        loss = y * w
    tape.backward(loss)
    assert w.grad == 6.0
    with tape, tape.pause():
        assert g(np.array(3.0))._slot == 0


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
@pytest.mark.parametrize("outputs", [1, 2])
def test_in_a_window_it_is_an_op_like_any_other(weights, outputs, kind):
    def run(compiled):
        rng = np.random.default_rng(0)
        w, u = tg.Parameter(rng.standard_normal((2, 2))), tg.Parameter(rng.standard_normal((2, 2)))

        def step(x, h):
            h = tg.tanh(x @ w + h @ u)
            if h[0, 0] > h[0, 1]:  # of a window that is run again the path stays as it was
                h = h * 0.7
            return h if outputs == 1 else (h, tg.sum(h * h))

        f = compile(step) if compiled else step
        tape, h, found = tg.CapacitorTape(4, weights=weights), np.zeros((1, 2)), []
        for _ in range(9):
            x = rng.standard_normal((1, 2))
            with tape:
                out = f(x, h)
                h, loss = (out, tg.sum(out * out)) if outputs == 1 else out
            assert tape.backward(loss)
            found += [w.grad, u.grad]
            if weights != "current":
                w.value, u.value = w.value - 0.5 * w.grad, u.value - 0.5 * u.grad
            w.grad = u.grad = None
        return found

    for ours, theirs in zip(run(True), run(False), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_every_active_tape_records(kind):
    w, outer, inner = tg.Parameter(2.0), tg.Tape(), tg.Tape()
    g = compile(lambda x: w * w * x)
    g(np.array(1.0))
    with outer:
        with inner:
            y = g(np.array(3.0))
        loss = y * y
    inner.backward(y)
    assert w.grad == 12.0
    w.grad = None
    outer.backward(loss)
    assert w.grad == 2 * 12.0 * 12.0


def test_a_recorded_sweep_differentiates_again(kind):
    x, w = tg.Variable(0.7), tg.Parameter(1.3)
    f = lambda v: tg.sin(v * w) * v

    def second(h):
        outer, inner = tg.Tape(), tg.Tape()
        with outer:
            with inner:
                y = h(x)
            first = inner.backward(y, keep=[x], record=True)[x]
        x.grad = w.grad = None
        outer.backward(first)
        return gradients_of([x, w])

    np.testing.assert_allclose(second(compile(f)), second(f), rtol=1e-12)


def test_a_recorded_sweep_uses_the_weights_of_the_recording():
    x, w, tape = tg.Variable(0.7), tg.Parameter(1.3), tg.Tape()
    g = compile(lambda v: v * v * w * w)
    with tape:
        y = g(x)
    w.value = 100.0
    first = tape.backward(y, record=True)[x]
    assert float(first) == pytest.approx(2 * 0.7 * 1.69)
    assert w.value == 100.0


def test_forward_mode_goes_through(kind):
    x, tape = tg.Variable([0.3, 0.4]), tg.Tape()
    g = compile(lambda v: tg.sin(v) * tg.sum(v))
    with tape:
        y = g(x)
        z = g.f(x)
    t = np.array([1.0, -2.0])
    np.testing.assert_allclose(tg.pushforward(tape, {x: t}, y), tg.pushforward(tape, {x: t}, z), rtol=1e-12)


def test_the_gradient_check_accepts_it(kind):
    g = compile(lambda x: tg.sum(tg.tanh(x) * x))
    assert tg.check_gradients(g, tg.Variable(np.array([0.3, -0.4]))).worst < 1e-6


def test_a_compiled_function_may_call_another(kind):
    inner = compile(lambda x: tg.sin(x) * x)
    outer = compile(lambda x: inner(x) + inner(x * x) if inner(x) > 0 else x)
    f = lambda x: inner.f(x) + inner.f(x * x) if inner.f(x) > 0 else x
    x = tg.Variable(0.8)
    assert_same(f, outer, [x], x)
    assert inner.recordings == 0
    with pytest.raises(tg.UnsupportedError, match="called inside of another compiled function"):
        compile(lambda x: inner.backward(x))(x)


# -- what is refused -----------------------------------------------------------------------------------------

ESCAPES = {
    "float": lambda x: x * float(x),
    "item": lambda x: x * x.item(),
    "value": lambda x: x * x.value,
    "asarray": lambda x: x * np.asarray(x * 1.0),
    "variable": lambda x: tg.Variable(x.value) * x,
    "print": lambda x: (print(x * 2.0), x)[1],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_elements_cannot_leave_a_compiled_function(name):
    x = tg.Variable(2.0)
    with pytest.raises(tg.TapegradError):
        compile(ESCAPES[name])(x)
    assert type(x._array) is not function.record and float(x) == 2.0


def test_the_refusal_says_where_and_cannot_be_caught_inside():
    def f(x):
        try:
            return x * float(x * 2.0)
        except Exception:
            return x

    with pytest.raises(tg.UnsupportedError) as error:
        compile(f)(tg.Variable(2.0))
    line = f.__code__.co_firstlineno + 2
    assert str(error.value) == (
        f"compile: f cannot be compiled: float() takes elements out of what is compiled (test_compile.py, line {line}).\n"
        f"  Compiled code computes with whatever arrays it is given. Comparisons in `if` and int() are fine; take\n"
        f"  elements out (float(), .value, printing) after the call, or leave f uncompiled."
    )


def test_assigning_to_leaves_and_arguments_is_refused():
    p = tg.Parameter([1.0, 2.0])

    def assign(x):
        p.value = np.zeros(2)
        return tg.sum(p * x)

    def write(x):
        x[0] = 1.0
        return tg.sum(p * x)

    def add(x):
        x += 1.0
        return tg.sum(p * x)

    for f, what in (
        (assign, "assigns to a leaf"),
        (write, "assigning to elements"),
        (add, "changing an argument in place"),
    ):
        with pytest.raises(tg.UnsupportedError, match=what):
            compile(f)(np.ones(2))
    assert isinstance(p._array, np.ndarray)


def test_a_variable_from_outside_must_be_an_argument():
    x, tape = tg.Variable(2.0), tg.Tape()
    with tape:
        y = x * x
        with pytest.raises(
            tg.UnsupportedError, match="in multiply it reads a Variable that was computed outside of it"
        ):
            compile(lambda v: v * y)(x)
        loss = compile(lambda v, y: v * y)(x, y)
    tape.backward(loss)
    assert x.grad == 12.0


def test_a_function_of_ones_own_runs_as_one_node(kind):
    @tg.primitive(a=lambda ct, y: -(y.mT @ ct @ y.mT), cases=[])
    def inverse_for_compile(xp, a):
        if np.linalg.det(a) == 0:
            raise tg.ArgumentError("singular")
        return np.linalg.inv(a)

    try:
        f = lambda a: tg.sum(inverse_for_compile(a @ a + np.eye(2)) * a)
        g, a = compile(f), tg.Variable(W((2, 2)))
        for _ in range(2):
            assert_same(f, g, [a], a)
            a.value = W((2, 2))
    finally:
        from tapegrad.core.primitive import REGISTRY

        del REGISTRY["inverse_for_compile"]


def test_numpy_on_plain_arguments_is_replayed(kind):
    v = tg.Variable([1.0, 2.0, 3.0])

    def f(x):
        order = np.argsort(x)
        scaled = (x - x.mean()) / np.maximum(x.std(), 1e-3)
        few = (
            (x > 0.5).sum() * x.max()
            + np.sum(x > 0.1)
            + x.min()
            + np.mean(x)
            + x.sum()
            + np.max(x)
            - np.prod(x)
        )
        y = tg.sum(v[order] * np.clip(scaled, -1, 1)) + tg.sum(v * np.outer(x, x)[0]) + tg.sum(v * (x > 0.5))
        return y * few + tg.sum(v * ~(x > 0.5) * (x // 0.3) * (x % 0.3))

    g = compile(f)
    for x in ([0.1, 0.2, 0.9], [0.9, 0.2, 0.1], [5.0, -1.0, 0.0]):
        assert_same(f, g, [v], np.array(x))
    assert g.recordings == 1


# -- nothing half-done ---------------------------------------------------------------------------------------


def test_an_exception_in_the_function_leaves_everything_as_it_was():
    p, tape = tg.Parameter([1.0, 2.0]), tg.Tape()
    fail = True

    def f(x):
        y = p * x
        if fail:
            raise KeyError("mine")
        return tg.sum(y)

    g = compile(f)
    before, body = p._array, tg.softmax_cross_entropy.primitive.body
    with tape:
        z = p * p
        with pytest.raises(KeyError, match="mine"):
            g(np.ones(2))
        with pytest.raises(tg.ShapeError, match="multiply"):
            g(np.ones(3))
        assert len(tape) == 1
    assert p._array is before and tg.softmax_cross_entropy.primitive.body is body and g.recordings == 0
    assert not function.recording_now()
    fail = False
    with tape:
        loss = g(np.ones(2)) * tg.sum(p * p)
    tape.backward(loss)
    assert p.grad.tolist() == [1 * 5 + 3 * 2.0, 5 + 3 * 4.0]
    assert z.value.tolist() == [1.0, 4.0]


def test_threads_call_and_record_at_once():
    w = tg.Parameter(np.array([0.5, 0.25]))
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        tape = tg.Tape()
        g = shared if seed % 2 else compile(f)
        for n in range(30):
            x = rng.standard_normal((2 + (seed + n) % 3, 2))
            with tape:
                y = g(x)
                z = tg.sum(tg.tanh(x * w) * x)
            found = [tape._sweep([v], [np.ones(())], (), False).gradients[w] for v in (y, z)]
            expected = ((1 - np.tanh(x * w0) ** 2) * x * x).sum(axis=0)
            if not all(np.allclose(each, expected, rtol=1e-10) for each in found):
                wrong.append((seed, n, found, expected))

    f = lambda x: tg.sum(tg.tanh(x * w) * x)
    shared, w0 = compile(f), w.value
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and isinstance(w._array, np.ndarray)


def test_other_threads_find_their_leaves_as_they_are_while_one_is_recording():
    mine, others = tg.Parameter([1.0, 2.0]), tg.Parameter([3.0, 4.0])
    here, there = threading.Event(), threading.Event()
    found = []

    def f(x):
        y = tg.sum(mine * x) + tg.sum(others * x)
        here.set()
        assert there.wait(10)
        return y * mine[0]

    def other():
        assert here.wait(10)
        found.append(type(others._array) is np.ndarray and float(others[0]) == 3.0)
        others.value = others.value + 1.0
        found.append(float(tg.softmax_cross_entropy(mine.reshape(1, 2), np.array([1]))))
        there.set()

    thread = threading.Thread(target=other)
    thread.start()
    g = compile(f)
    assert float(g(np.ones(2))) == 3.0 + 9.0  # computed with what is there when it is replayed
    thread.join()
    assert found == [True, pytest.approx(np.log(1 + np.exp(-1.0)))]
    assert type(mine) is type(others) is tg.Parameter and others.value.tolist() == [4.0, 5.0]


def test_a_function_whose_result_changes_its_shape_is_refused_when_it_does():
    v = tg.Variable([1.0, 2.0, 3.0])
    g = compile(lambda x: tg.sum(v * np.setdiff1d(x, np.array([9.0]))))
    assert float(g(np.array([3.0, 2.0, 1.0]))) == 14.0
    with pytest.raises(tg.UnsupportedError) as error:
        g(np.array([3.0, 3.0, 3.0]))
    assert str(error.value) == (
        "compile: setdiff1d returned arrays of shapes (1,), and of (3,) when it was recorded.\n"
        "  The shape of a result must not depend on elements. Leave the function that calls it uncompiled."
    )


def test_an_array_that_leaked_from_a_recording_is_a_plain_one_afterwards():
    kept = []
    g, x = compile(lambda v, a: (kept.extend([v * 2.0, a * 2.0]), v * v)[1]), tg.Variable([1.0, 2.0])
    g(x, np.array([1.0, 2.0]))
    leaked, array = kept
    assert float(tg.sum(leaked)) == 6.0 and float(tg.max(leaked)) == 4.0
    assert (leaked + 1.0).value.tolist() == [3.0, 5.0] and bool(leaked[0] > 1.0)
    assert leaked.value.tolist() == [2.0, 4.0]
    assert array.sum() == 6.0 and (array * array + 1.0).mean() == 11.0 and array.std() == 1.0
    assert array.tolist() == [2.0, 4.0] and float(array[1]) == 4.0 and np.asarray(array).sum() == 6.0


def test_what_is_not_a_function_is_refused():
    with pytest.raises(tg.ArgumentError, match="`f` must be a function, and int 3 came"):
        compile(3)
    with pytest.raises(tg.ArgumentError, match="nothing was recorded yet"):
        compile(lambda x: x).program()


M = np.random.default_rng(4).standard_normal((3, 3)) + 4 * np.eye(3)


@pytest.mark.parametrize(
    "f",
    [
        lambda v: tg.sum(np.linalg.inv(v) ** 2), lambda v: np.linalg.slogdet(v)[1], lambda v: np.linalg.det(v),
        lambda v: tg.sum(np.linalg.solve(v, np.ones(3)) ** 2), lambda v: tg.sum(np.linalg.eigvalsh(v @ v.T) ** 2),
        lambda v: tg.sum(np.linalg.svd(v)[1] ** 3), lambda v: tg.sum(np.linalg.cholesky(v @ v.T) ** 2),
        lambda v: tg.sum(np.linalg.qr(v)[1] ** 2), lambda v: tg.sum(tg.cumsum(v, 0) ** 2),
        lambda v: tg.sum(np.einsum("ij,kj->ik", v, v) ** 2), lambda v: tg.sum(np.sort(v, axis=None) * np.arange(9)),
    ],
)  # fmt: skip
def test_what_numpy_does_by_lapack_is_one_node(f):
    v, expected = tg.Variable(M), tg.grad(f)(M)
    compiled = tg.compile(f)
    for _ in range(3):
        with tg.Tape() as tape:
            y = compiled(v)
        v.grad = None
        tape.backward(y)
        np.testing.assert_allclose(v.grad, expected, rtol=1e-10, atol=1e-12)


def test_generalized_ufuncs_are_compiled():
    rng = np.random.default_rng(0)
    a, b = tg.Variable(rng.standard_normal((2, 3))), tg.Variable(rng.standard_normal(3))
    for f in (lambda a, b: np.vecdot(a, b), lambda a, b: np.sum(np.linalg.vecdot(a, b) * np.matvec(a, b))):
        assert_same(f, compile(f), [a, b], a, b)


def test_what_counts_elements_is_refused_by_name():
    a = tg.Variable(np.arange(3.0))
    with pytest.raises(tg.UnsupportedError, match=r"cannot be compiled: numpy\.where of a condition alone"):
        compile(lambda a: tg.sum(a[np.where(a > 0)]))(a)
    with pytest.raises(
        tg.UnsupportedError, match=r"cannot be compiled: numpy\.flatnonzero, whose result has a shape"
    ):
        compile(lambda a: tg.sum(np.polymul(a, a)))(a)


def test_transforms_are_compiled_also_of_plain_arguments():
    w, x = tg.Variable(np.array([0.5, -1.0, 2.0])), np.array([1.0, 3.0, 2.0])
    inner = lambda y: tg.sum(tg.sin(y * w) ** 2)
    for f in (
        lambda x: tg.sum(tg.grad(inner)(x) * x),
        lambda x: tg.sum(tg.grad(lambda y: tg.sum(tg.sort(y * w) * np.arange(3.0)))(x) ** 2),
        lambda x: tg.sum(tg.scatter_along_axis(x * w, np.array([1, 1, 0]), (3,), axis=0) ** 2),
        lambda x: tg.sum(tg.vjp(lambda y: y * w, x)[1](x)[0]),
        lambda x: tg.sum(tg.jvp(lambda y: (y * w, x), (x,), (x,))[1][0]),
        lambda x: tg.sum(tg.jvp(lambda y: tg.outer(y, w) @ y, (x,), (w,))[1]),
        lambda x: tg.sum(tg.jacobian(lambda y: tg.sin(y * w), mode="reverse")(x)),
        lambda x: tg.sum(tg.jacobian(lambda y: tg.sin(y * w), mode="forward")(x)),
        lambda x: tg.sum(tg.hessian(inner)(x) @ x),
        lambda x: tg.sum(tg.hvp(inner, (x,), (x,))[0]),
        lambda x: tg.sum(w) + tg.sum(tg.grad(lambda y: tg.sum(x))(x)),
    ):
        compiled = compile(f)
        for scale in (1.0, 0.7, 1.3):
            assert_same(f, compiled, [w], x * scale)


def test_checkpoints_and_pullbacks_of_ones_own_are_refused_by_name():
    w, x = tg.Variable(np.array([0.5, -1.0])), np.ones(2)
    square = tg.custom_vjp(lambda a: a * a)
    square.defvjp(lambda a: (a * a, a), lambda a, ct: (2 * a * ct,))
    for f in (square, lambda a: square(a * w), lambda a: square(x) * w):
        with pytest.raises(
            tg.UnsupportedError, match=r"cannot be compiled: tg\.custom_vjp calls its functions"
        ):
            compile(lambda a, f=f: tg.sum(f(a)))(x)
    for f in (np.sin, lambda a: a * w, lambda a: tg.grad(lambda b: tg.sum(b * b))(w)):
        with pytest.raises(
            tg.UnsupportedError, match=r"cannot be compiled: tg\.checkpoint runs its function"
        ):
            compile(lambda a, f=f: tg.sum(tg.checkpoint(f)(a)) + tg.sum(w))(x)
