"""Rules that run on symbols: every op's backward pass as a program, against the same rules on arrays."""

import numpy as np
import pytest

import tapegrad as tg
import test_primitives as primitives
from tapegrad.core.entry import OUT
from tapegrad.core.primitive import REGISTRY
from tapegrad.program import replay as replay_module
from tapegrad.program.trace import Graph, Namespace, Residuals, Traced, Untraceable, trace_backward

# Rules that ask for elements of an array, or for functions that no program has: they are called as they are.
CALLED_AS_THEY_ARE = {
    "max": "which element is the largest",
    "min": "which element is the smallest",
    "lstm_sequence": "a loop over the steps",
    "gru_sequence": "a loop over the steps",
    "rnn_sequence": "a loop over the steps",
    "getitem": "a mask",
    "put_at": "a mask",
    "index_put": "an assignment at positions",
    "convolution": "windows, which are a view by strides",
    "convolution_input": "windows, which are a view by strides",
    "convolution_kernel": "windows, which are a view by strides",
    "convolve_full": "a sum over overlaps, of no node",
    "correlate_valid": "a sum over overlaps, of no node",
    "repeat": "as many copies as an array says",
    "overlap_add": "windows, which are a view by strides",
    **dict.fromkeys(["cumsum", "cumprod", "logcumsumexp", "linear_recurrence", "prod"], "sums and products so far"),
    **dict.fromkeys(["take_along_axis", "scatter_along_axis"], "positions along an axis"),
    "cross_last": "NumPy's cross product",
    "contract": "NumPy's einsum",
    **dict.fromkeys(
        ["solve", "cholesky", "eigh_packed", "eigvalsh", "svd_packed", "svdvals", "qr_packed", "cofactors", "det",
         "sign_and_logdet"],
        "LAPACK's",
    ),
    **dict.fromkeys(
        ["bessel_j", "bessel_y", "bessel_i", "bessel_i_scaled", "bessel_k", "log_ndtr", "gamma", "rgamma", "gammaln",
         "digamma", "polygamma_of_order", "beta", "betaln", "hurwitz_zeta", "lower_gamma", "upper_gamma", "lower_beta"],
        "SciPy's",
    ),
    **dict.fromkeys(["recompute", "call_with_pullback"], "a function of the caller's"),
}  # fmt: skip

# Segments with these are swept by rules: a signature does not say what a function does.
SWEPT_BY_RULES = {"recompute", "call_with_pullback"}


@pytest.fixture(autouse=True)
def at_first_sight(monkeypatch):
    """A signature is compiled when it is first met."""
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)


def traced(tape, roots):
    """The trace of the newest segment, for cotangents of `roots`."""
    segment = tape.segments[-1]
    slots = {root._slot for root in roots}
    positions = [at for at, entry in enumerate(segment.entries) if entry[OUT] in slots]
    return trace_backward(segment.entries, segment.first, positions, Residuals(Graph()))


def calls(trace):
    """The ops whose own rule is called."""
    return {node.label for node in trace.graph.nodes if node.kind == "pull"}


def with_leaves(primitive, case):
    rng = primitives.seeded(primitive, case)
    arguments = primitives.as_leaves(primitive, primitives.sample(primitive, case, rng))
    return arguments, primitives.leaves_of(arguments), rng


def compiled(tape):
    return bool(tape._programs._replays.rings)


def assert_same(came, right):
    for a, b in zip(came, right, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max(initial=0.0)))


# -- every op ----------------------------------------------------------------------------------------


@primitives.every_op_and_case
def test_the_program_of_an_op_gives_what_its_rule_gives(primitive, case):
    arguments, leaves, rng = with_leaves(primitive, case)
    if not leaves:
        pytest.skip("no argument is differentiated")
    found = []
    for compile in (False, True):
        tape = tg.CapacitorTape(2, compile=compile)
        with tape:
            ys = primitives.outputs_of(primitive.function(*arguments, **case.statics))
        if not found:
            cts = primitives.random_like(rng, ys)
        sweep = tape.backward(ys, cts)
        found.append([sweep.gradients[leaf] for leaf in leaves])
    assert compiled(tape) is (primitive.name not in SWEPT_BY_RULES)
    assert_same(found[1], found[0])


@primitives.every_op_and_case
def test_the_program_of_an_op_amid_others_gives_what_the_rules_give(primitive, case):
    """Its arguments are results, and what it returns is used twice; five segments, of which four are a loop."""
    arguments, leaves, _ = with_leaves(primitive, case)
    if not leaves:
        pytest.skip("no argument is differentiated")
    found = []
    for compile in (False, True):
        carried, tape, weight = tg.constant(0.5), tg.CapacitorTape(4, compile=compile), tg.Variable(1.5)
        for _ in range(5):
            with tape:
                given = [amid(a, carried) for a in arguments]
                ys = primitives.outputs_of(primitive.function(*given, **case.statics))
                totals = [tg.sum(y * (0.5 + i)) + tg.sum(y * y) for i, y in enumerate(ys)]
                total = sum(totals[1:], totals[0])
                carried = tg.tanh(0.1 * total * weight + carried)
            sweep = tape.backward(carried)
        found.append([sweep.gradients[leaf] for leaf in [*leaves, weight]] + [np.array(sweep.joint_norms)])
    assert compiled(tape) is (primitive.name not in SWEPT_BY_RULES)
    assert_same(found[1], found[0])


def amid(argument, carried):
    """An argument as a result that depends on the segment before, of nearly the same value."""
    if isinstance(argument, list):
        return [amid(part, carried) for part in argument]
    if not isinstance(argument, tg.Variable):
        return argument
    return argument * 0.999 + (carried - carried) * 0.5 + argument * 0.001


def test_only_these_ops_are_called_by_their_rules():
    fallen = set()
    for primitive, case in (parameters.values for parameters in primitives.OPS):
        arguments, leaves, _ = with_leaves(primitive, case)
        if leaves:
            tape = tg.CapacitorTape(1)
            with tape:
                ys = primitives.outputs_of(primitive.function(*arguments, **case.statics))
            fallen |= calls(traced(tape, ys))
    assert fallen == CALLED_AS_THEY_ARE.keys() & {p.name for p in primitives.DECLARED}


@pytest.mark.parametrize("mixed", [True, False])
def test_a_reshape_that_copies_is_made_anew_in_every_sweep(mixed):
    """Behind a transpose it is no view of the array that a sweep writes to."""
    rng = np.random.default_rng(5)
    v, w = tg.Variable(rng.standard_normal((2, 3, 4))), rng.standard_normal((4, 4))

    def gradient(compile):
        carried, tape = tg.constant(0.5), tg.CapacitorTape(4, compile=compile)
        for _ in range(6):
            with tape:
                y = tg.transpose(tg.reshape(tg.transpose(v * carried), (6, 4)))
                carried = tg.mean(tg.tanh(w @ y) if mixed else y * y) + 0.1
            sweep = tape.backward(carried)
        return sweep.gradients[v]

    assert np.abs(gradient(False)).max() > 1e-6
    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-12, atol=1e-16)


def test_getitem_is_called_by_its_rule_for_a_mask_alone():
    v = tg.Variable(np.arange(6.0).reshape(2, 3))
    indices = {
        "mask": np.array([True, False]),
        "positions": np.array([1, 0, 1]),
        "slice": (slice(None), slice(0, 2)),
        "both": (..., np.array([0, 2])),
    }
    for name, index in indices.items():
        tape = tg.CapacitorTape(1)
        with tape:
            y = v[index]
        assert calls(traced(tape, [y])) == ({"getitem"} if name == "mask" else set())


# -- ops of the user's own -----------------------------------------------------------------------------


@pytest.fixture
def declared():
    """Declares ops for one test."""
    before = set(REGISTRY)
    yield
    for name in set(REGISTRY) - before:
        del REGISTRY[name]


def gradients_of(f, *leaves):
    """By rules and by a program: the gradients of three segments of `x = f(x, *leaves)`; and the last trace."""
    found = []
    for compile in (False, True):
        tape, x = tg.CapacitorTape(3, compile=compile), tg.constant(np.full(3, 0.5))
        for _ in range(5):
            with tape:
                x = f(x, *leaves)
                loss = tg.sum(x)
            sweep = tape.backward(loss)
        found.append([sweep.gradients[leaf] for leaf in leaves])
    return *found, traced(tape, [loss])


def test_a_rule_of_the_users_own_is_traced(declared):
    @tg.elementwise(a=lambda ct, a, y: ct * y / (1.0 + a * a))
    def bump(xp, a):
        return xp.exp(xp.arctan(a))

    rules, program, trace = gradients_of(lambda x, w: bump(x * w), tg.Variable(np.array([0.3, 0.5, 0.7])))
    assert_same(program, rules)
    assert not calls(trace)


@pytest.mark.parametrize(
    "rule",
    [
        lambda ct, a: ct * (2.0 if a.sum() > 0 else 3.0),
        lambda ct, a: np.array([c * float(x) for c, x in zip(ct, a, strict=True)]),
        lambda ct, a: ct * np.interp(a, [0.0, 1.0], [0.0, 2.0]),
        lambda ct, a: np.multiply(ct, a, where=a > 0, out=np.zeros_like(a)),
        lambda ct, a: ct * np.asarray(a, np.float64).tolist()[0],
        lambda ct, a: ct * np.cumsum(a),
        lambda ct, a: ct * np.linalg.norm(a),
    ],
    ids=[
        "branches",
        "iterates",
        "interpolates",
        "writes where",
        "asks for numbers",
        "cumulates",
        "of another module",
    ],
)
def test_a_rule_that_cannot_be_traced_is_called_as_it_is(declared, rule):
    @tg.elementwise(a=rule)
    def odd(xp, a):
        return xp.sin(a)

    rules, program, trace = gradients_of(lambda x, w: odd(x * w), tg.Variable(np.array([0.3, 0.5, 0.7])))
    assert_same(program, rules)
    assert calls(trace) == {"odd"}


def test_a_rule_that_raises_raises_in_the_sweep_and_not_before(declared):
    @tg.elementwise(a=lambda ct, a: 1 / 0)
    def broken(xp, a):
        return xp.sin(a)

    w, tape = tg.Variable(np.ones(2)), tg.CapacitorTape(2)
    with tape:
        loss = tg.sum(broken(w))
    with pytest.raises(ZeroDivisionError):
        tape.backward(loss)


def test_a_rule_that_returns_its_cotangent_twice_shares_no_memory(declared):
    @tg.primitive(a=lambda ct, b: ct, b=lambda ct, a: ct)
    def both(xp, a, b):
        return a + b

    u, v = tg.Variable(np.ones(3)), tg.Variable(np.ones(3))
    rules, program, _ = gradients_of(lambda x, u, v: tg.tanh(both(x * u, x * v)), u, v)
    assert_same(program, rules)
    assert not np.shares_memory(*program)


# -- the graph -----------------------------------------------------------------------------------------


def graph_and_array(*shape):
    graph = Graph()
    return graph, graph.traced("cotangent", 0, (), shape, np.dtype(np.float64))


def test_equal_nodes_are_one():
    graph, a = graph_and_array(2, 3)
    assert (a * 2.0).node is (a * 2.0).node
    assert (a.T @ a).node is (a.T @ a).node
    assert a.sum(axis=-1).node is a.sum(axis=1).node
    assert a.reshape(3, 2).node is a.reshape((3, -1)).node
    assert a.reshape(2, 3).node is a.node
    count = len(graph.nodes)
    a * 2.0
    assert len(graph.nodes) == count


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (0.0, -0.0), (2, 2.0)])
def test_numbers_of_other_types_and_signs_are_others(one, other):
    _, a = graph_and_array(2)
    assert (a + one).node is not (a + other).node


def test_a_leaf_that_is_read_twice_is_one_node_and_an_input_that_is_not_a_leaf_is_one_each():
    w, x, tape = tg.Variable(np.ones((2, 2))), np.ones((2, 2)), tg.CapacitorTape(1)
    with tape:
        y = tg.sum((x @ w) @ w)
    nodes = traced(tape, [y]).graph.nodes
    assert [node.kind for node in nodes].count("leaf") == 1


@pytest.mark.parametrize(
    "ask",
    [bool, float, int, np.asarray, lambda a: a.item(), lambda a: np.cumsum(a), lambda a: np.add.reduce(a, out=1),
     lambda a: np.add.accumulate(a), lambda a: a[np.array([True, False])], lambda a: a.__setitem__(np.array([0]), 1.0),
     lambda a: np.multiply(a, a, where=True), lambda a: a + object(), lambda a: a * np.array(["x", "y"]),
     lambda a: Namespace(a.graph).multiply.at(a, 0, 1.0)],
)  # fmt: skip
def test_a_symbol_has_no_elements(ask):
    _, a = graph_and_array(2)
    with pytest.raises((Untraceable, TypeError)):
        ask(a)


def same_as_numpy(f):
    """Whether `f` gives a symbol of the shape and dtype of what it gives an array."""
    x = np.linspace(0.1, 1.0, 6).reshape(2, 3).astype(np.float32)
    graph = Graph()
    made = f(graph.traced("cotangent", 0, (), x.shape, x.dtype), Namespace(graph))
    right = f(x, np)
    pairs = [*zip(made, right, strict=True)] if isinstance(right, list) else [(made, right)]
    return all(isinstance(m, Traced) and (m.shape, m.dtype) == (r.shape, r.dtype) for m, r in pairs)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, xp: a + 1, lambda a, xp: 2.0 ** a, lambda a, xp: a / 3, lambda a, xp: -a, lambda a, xp: a > 0.5,
        lambda a, xp: a * np.float64(2), lambda a, xp: a * np.float32(2), lambda a, xp: a @ a.T, lambda a, xp: a @ a[0],
        lambda a, xp: a[0] @ a.T, lambda a, xp: a[0], lambda a, xp: a[..., 1:], lambda a, xp: a[:, None], lambda a, xp: a[::-1, -1],
        lambda a, xp: a[np.array([1, 0, 1])], lambda a, xp: a[:, [0, 2]], lambda a, xp: a.sum(axis=0), lambda a, xp: a.sum(),
        lambda a, xp: a.max(axis=1, keepdims=True), lambda a, xp: xp.mean(a, axis=(0, 1)), lambda a, xp: xp.min(a, axis=-1),
        lambda a, xp: a.transpose(), lambda a, xp: a.transpose(1, 0), lambda a, xp: a.transpose((0, 1)), lambda a, xp: xp.swapaxes(a, 0, 1),
        lambda a, xp: xp.moveaxis(a, 0, 1), lambda a, xp: xp.expand_dims(a, 0), lambda a, xp: xp.squeeze(a[:1]), lambda a, xp: a.ravel(),
        lambda a, xp: xp.broadcast_to(a, (4, 2, 3)), lambda a, xp: xp.reshape(a, (3, 2)), lambda a, xp: xp.where(a > 0, a, 0.0),
        lambda a, xp: xp.where(a > 0, a, a.astype(np.float64)), lambda a, xp: xp.concatenate([a, a], axis=1), lambda a, xp: xp.stack([a, a], axis=-1),
        lambda a, xp: xp.split(a, 3, axis=1), lambda a, xp: xp.split(a, [1], axis=1), lambda a, xp: xp.take(a, np.array([2, 0]), axis=1),
        lambda a, xp: a.astype(np.float64), lambda a, xp: xp.exp(a), lambda a, xp: xp.zeros_like(a) + a, lambda a, xp: np.tanh(a),
        lambda a, xp: np.where(a > 0, a, 1.0), lambda a, xp: np.sum(a, axis=0), lambda a, xp: np.maximum(a, 0.0), lambda a, xp: a.mT,
    ],
)  # fmt: skip
def test_a_symbol_has_the_shape_and_dtype_that_numpy_gives(f):
    assert same_as_numpy(f)
