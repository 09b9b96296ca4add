"""From a trace to straight lines: what a program computes at each segment, what once, and what not at all."""

import re

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn
from tapegrad.core.entry import OUT
from tapegrad.program import replay as replay_module
from tapegrad.program.plan import Form, Planner, Ref, Term, Value, disjoint, last_slice, merged, runs_of
from tapegrad.program.signature import Matcher
from tapegrad.program.trace import Graph, Residuals, trace_backward

BATCH, WIDTH = 3, 4


def planned(tape, root, recorded=True):
    """The plan of the newest segment, for a cotangent of `root`."""
    segment = tape.segments[-1]
    entries, first = segment.entries, segment.first
    position = next(at for at, entry in enumerate(entries) if entry[OUT] == root._slot)
    trace = trace_backward(entries, first, [position], Residuals(Graph()))
    before = Matcher(entries, first).match(entries, first)
    return Planner(trace, {slot: i for i, slot in enumerate(before)}, recorded).plan


def loop(f, *leaves, steps=6, window=3, weights="recorded", start=None):
    """`x = f(x, *leaves)` as a loop with the loss sum(x); the tape, and the last x."""
    tape = tg.CapacitorTape(window, weights=weights, compile="numpy")
    x = tg.constant(np.full((BATCH, WIDTH), 0.5) if start is None else start)
    for _ in range(steps):
        with tape:
            x = f(x, *leaves)
            loss = tg.sum(x)
        tape.backward(loss)
    return tape, x


def body(tape):
    """The lines of the sweep over a window's body."""
    (rings,) = tape._programs._replays.rings.values()
    bodies = [bound.program.source for (_, feeds), bound in rings.bound.items() if feeds]
    assert bodies, "no loop"
    source = re.search(r"def sweep.*?(?=\n\n|\Z)", bodies[-1], re.DOTALL)[0]
    lines = source.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("for k"))
    return [line.strip() for line in lines[start + 1 :]]


def hoist(tape):
    (rings,) = tape._programs._replays.rings.values()
    return next(b.program.source for (_, feeds), b in rings.bound.items() if feeds).split("\n\n")[0]


def matrix(seed=0, shape=(WIDTH, WIDTH)):
    return tg.Variable(np.random.default_rng(seed).standard_normal(shape) * 0.5)


def kinds(plan):
    return [step.kind for step in plan.steps]


# -- hoisting --------------------------------------------------------------------------------------------


def test_what_is_made_of_residuals_alone_is_computed_once_for_a_segment():
    w = matrix()
    tape, _ = loop(lambda x, w: tg.tanh(x @ w) * 0.5, w)
    lines = body(tape)
    products = [line for line in lines if line.startswith(("dot", "matmul"))]
    assert len(products) == 1
    assert "subtract(" in hoist(tape)  # 1 - y²
    assert not any("subtract" in line for line in lines)
    assert sum(line.startswith("multiply") for line in lines) == 1  # the two factors are one


def test_a_chain_of_elementwise_rules_is_one_product():
    u = tg.Variable(np.full(WIDTH, 0.7))
    tape, _ = loop(lambda x, u: tg.sin(tg.exp(-tg.square(tg.tanh(x * u)))), u)
    multiplications = [line for line in body(tape) if line.startswith("multiply")]
    assert len(multiplications) <= 2  # one to the state, one to the sum for u


def test_an_lstm_is_a_handful_of_lines_with_one_product_for_the_state():
    cell = nn.LSTMCell(2, WIDTH, dtype=np.float64, rng=0)
    tape, state = tg.CapacitorTape(3, compile="numpy"), cell.initial_state(BATCH)
    rng = np.random.default_rng(0)
    for _ in range(7):
        with tape:
            out, state = cell(rng.standard_normal((BATCH, 2)), state)
            loss = tg.sum(out)
        tape.backward(loss)
    lines = body(tape)
    assert len(lines) <= 9, lines
    assert sum(line.startswith(("dot", "matmul")) for line in lines) == 1
    assert not any(name in line for line in lines for name in ("tanh(", "exp(", "subtract("))


def test_todays_weights_are_not_hoisted():
    u = tg.Variable(np.full(WIDTH, 0.7))
    for weights, hoisted in (("recorded", True), ("current", False)):
        tape, _ = loop(lambda x, u: tg.tanh(x * u), u, weights=weights)
        assert ("W0" in "".join(body(tape))) is not hoisted


# -- settling ---------------------------------------------------------------------------------------------


def test_a_product_with_a_weight_is_settled_after_the_sweep_and_other_gradients_are_summed_up():
    w, b, u = matrix(), tg.Variable(np.zeros(WIDTH)), tg.Variable(np.ones((BATCH, WIDTH)))
    tape = tg.CapacitorTape(2)
    with tape:
        y = tg.sum(tg.tanh(np.ones((BATCH, WIDTH)) @ w + b) * u)
    plan = planned(tape, y)
    settled = {slot for group in plan.groups for slot, *_ in group.targets}
    assert settled == {w._slot, b._slot}
    assert set(plan.totals) == {u._slot}
    (group,) = plan.groups  # both wait for one cotangent
    assert sorted(width for _, width in group.lefts) == [1, WIDTH]


@pytest.mark.parametrize(
    "product",
    [lambda x, w: x @ w, lambda x, w: (w @ x.T).T, lambda x, w: x @ w.T, lambda x, w: -(x @ w) / 3.0, lambda x, w: (x @ w) @ w],
    ids=["x w", "w x", "x wᵀ", "scaled", "twice"],
)  # fmt: skip
def test_every_orientation_of_a_product_waits(product):
    w, tape = matrix(), tg.CapacitorTape(2)
    with tape:
        y = tg.sum(product(np.ones((BATCH, WIDTH)), w))
    plan = planned(tape, y)
    assert not plan.totals
    assert {slot for group in plan.groups for slot, *_ in group.targets} == {w._slot}


def test_rows_of_a_large_embedding_are_added_in_place():
    e, tape = tg.Variable(np.ones((5000, WIDTH))), tg.CapacitorTape(2)
    with tape:
        y = tg.sum(tg.tanh(tg.take(e, np.array([3, 1, 3]))))
    plan = planned(tape, y)
    assert set(plan.totals) == {e._slot}
    assert "scatter" in kinds(plan)
    assert not any(step.kind == "zero" and step.dest.value.shape == e.shape for step in plan.steps)


def test_rows_of_a_small_embedding_wait_as_a_product_with_one_hot_rows():
    e, tape = tg.Variable(np.ones((50, WIDTH))), tg.CapacitorTape(2)
    with tape:
        y = tg.sum(tg.tanh(tg.take(e, np.array([3, 1, 3]))))
    plan = planned(tape, y)
    assert not plan.totals
    assert [
        (slot, width)
        for group in plan.groups
        for (slot, *_), (_, width) in zip(group.targets, group.lefts, strict=True)
    ] == [(e._slot, 50)]


@pytest.mark.parametrize("rows", [5, 5000])
@pytest.mark.parametrize(
    "index",
    [
        np.array([3, 1, 3]),
        np.array([-1, 0, -5]),
        np.array([[0, 1], [1, 4]]),
        np.array(2),
        np.array([2], np.uint8),
    ],
)
@pytest.mark.parametrize("by", ["take", "getitem", "both"])
def test_rows_that_are_taken_get_their_gradients_whatever_names_them(rows, index, by, monkeypatch):
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)
    if by != "getitem" and np.min(index) < 0:
        pytest.skip("take refuses it")
    value, found = np.random.default_rng(0).standard_normal((rows, WIDTH)), []
    for compile in (False, "numpy"):
        e, tape = tg.Variable(value), tg.CapacitorTape(4, compile=compile)
        for t in range(3):
            with tape:
                y = tg.tanh(tg.take(e, index)) if by != "getitem" else tg.tanh(e[index])
                if by == "both":
                    y = y * e[np.clip(index, 0, None)]
                total = tg.sum(y * (t + 1.0))
            sweep = tape.backward(total)
        found.append(sweep.gradients[e])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-14)


# -- what is not computed -----------------------------------------------------------------------------------


def test_what_nobody_asks_for_is_not_computed():
    w, x, tape = matrix(), np.ones((BATCH, WIDTH)), tg.CapacitorTape(2)
    with tape:
        h = tg.tanh(x @ w)  # x is a constant: its cotangent, a product, is nobody's
        y = tg.sum(h)
        tg.exp(h @ w)  # and this does not lead to the loss
    plan = planned(tape, y)
    assert "matmul" not in kinds(plan)
    assert not plan.leaving


def test_a_cotangent_that_nothing_reaches_is_zero_and_costs_nothing():
    w, tape = matrix(), tg.CapacitorTape(2)
    with tape:
        a, b = tg.split(np.ones((BATCH, WIDTH)) @ w, 2, axis=1)
        y = tg.sum(a * 0.0 + tg.stop_gradient(b))
    planned(tape, y)
    sweep = tape.backward(y)
    np.testing.assert_array_equal(sweep.gradients[w], np.zeros((WIDTH, WIDTH)))


# -- assembling ----------------------------------------------------------------------------------------------


def test_slices_that_cover_an_array_are_written_in_place_without_zeros():
    w, tape = matrix(shape=(WIDTH, 6)), tg.CapacitorTape(2)
    with tape:
        z = np.ones((BATCH, WIDTH)) @ w
        y = tg.sum(tg.tanh(z[:, :2]) * tg.sigmoid(z[:, 2:4]) + tg.sin(z[:, 4:]))
    assert "zero" not in kinds(planned(tape, y))


def test_slices_that_leave_gaps_are_written_onto_zeros():
    w, tape = matrix(shape=(WIDTH, 6)), tg.CapacitorTape(2)
    with tape:
        z = np.ones((BATCH, WIDTH)) @ w
        y = tg.sum(tg.tanh(z[:, :2]) * tg.sigmoid(z[:, 3:5]))
    assert kinds(planned(tape, y)).count("zero") == 1


@pytest.mark.parametrize(
    "f",
    [
        lambda z: z[:, :4] * z[:, 2:],
        lambda z: z[:, 1:5] * z[:, 1:5],
        lambda z: z[:, ::2] * z[:, 1::2],
        lambda z: z[:, ::-1] * z,
        lambda z: z[0] * z[1],
        lambda z: z[0] * z[:, 0].sum() + z[-1],
        lambda z: tg.concat([z[:, 3:], z[:, :3]], axis=1) * z,
        lambda z: tg.concat([z, z], axis=0)[1:4] * z[0],
        lambda z: z[None, 1:, ..., 2] * 2.0,
        lambda z: tg.stack([z[:, 0], z[:, 1]], axis=1) * z[:, 2:4],
        lambda z: z[:, :0].sum() + z[:, 5:],
        lambda z: tg.sum(z[:, 2:4], axis=0) * z[:, 2:4] + tg.tanh(z[:, 3:5]),
    ],
)
def test_slices_of_any_kind_give_what_the_rules_give(f, monkeypatch):
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)
    w, found, x = matrix(shape=(WIDTH, 6)), [], np.random.default_rng(1).standard_normal((BATCH, WIDTH))
    for compile in (False, "numpy"):
        tape = tg.CapacitorTape(2, compile=compile)
        with tape:
            y = tg.sum(tg.sin(f(tg.tanh(x @ w))))
        found.append(tape.backward(y).gradients[w])
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("index", "shape", "span"),
    [
        ((slice(None), slice(1, 3)), (2, 6), (1, 3)),
        ((..., slice(2, None)), (2, 6), (2, 6)),
        (slice(0, 2), (6,), (0, 2)),
        ((slice(None), slice(-2, None)), (2, 6), (4, 6)),
        ((slice(None), slice(None, None, 2)), (2, 6), None),
        ((slice(0, 1), slice(0, 2)), (2, 6), None),
        ((0, slice(0, 2)), (2, 6), None),
        ((None, slice(0, 2)), (6,), None),
        (slice(0, 1), (2, 6), None),
        (Ellipsis, (6,), (0, 6)),
    ],
)
def test_the_span_of_an_index_along_the_last_axis(index, shape, span):
    assert last_slice(index, shape) == span


def test_indices_that_are_not_slices_of_the_last_axis_are_never_taken_to_be_disjoint():
    assert disjoint([(..., slice(0, 2)), (..., slice(2, 4))], (3, 4))
    assert disjoint([(..., slice(2, 4)), (..., slice(0, 2))], (3, 4))
    assert not disjoint([(..., slice(0, 3)), (..., slice(2, 4))], (3, 4))
    assert not disjoint([0, 1], (3, 4))
    assert not disjoint([(..., slice(0, 2)), 1], (3, 4))


# -- forms ---------------------------------------------------------------------------------------------------


def test_terms_of_one_array_are_added_up():
    graph, value = Graph(), Value("entering", (2,), np.dtype(np.float64))
    factor = graph.node("residual", (0, 5), (), (2,), np.dtype(np.float64))
    ref = Ref(value)
    (term,) = merged([Term(ref, 2.0), Term(ref, -0.5)], graph)
    assert term.coefficient == 1.5 and term.factor is None
    (term,) = merged([Term(ref, 2.0, factor), Term(ref, -1.0, factor)], graph)
    assert term.coefficient == 1.0 and term.factor is factor
    (term,) = merged([Term(ref, 2.0, factor), Term(ref, 1.0)], graph)
    assert term.coefficient == 1.0 and term.factor.kind == "ufunc"
    other = Ref(Value("entering", (2,), np.dtype(np.float64)))
    assert len(merged([Term(ref), Term(other)], graph)) == 2
    assert len(merged([Term(ref), Term(ref.seen("reshape", (2, 1)))], graph)) == 2


def test_neighbours_of_equal_width_are_one_run():
    graph, dtype = Graph(), np.dtype(np.float64)
    ref = Ref(Value("entering", (3, 2), dtype))
    other = Ref(Value("entering", (3, 2), dtype))

    def piece(start, ref=ref, width=2):
        factor = graph.node("residual", (start, width), (), (3, width), dtype)
        return (
            (slice(None), slice(start, start + width)),
            Form((3, width), dtype, (Term(ref, 1.0, factor),)),
        )

    assert [len(run) for run in runs_of([piece(0), piece(2), piece(4)], (3, 6))] == [3]
    assert [len(run) for run in runs_of([piece(0), piece(4)], (3, 6))] == [1, 1]
    assert [len(run) for run in runs_of([piece(0), piece(2, other), piece(4)], (3, 6))] == [1, 1, 1]


# -- entrances and exits ---------------------------------------------------------------------------------------


def test_an_output_to_which_the_segment_adds_nothing_is_bare():
    w, tape = matrix(), tg.CapacitorTape(2)
    with tape:
        h = tg.tanh(np.ones((BATCH, WIDTH)) @ w)
        y = tg.sum(h)
        z = tg.sum(y * h)
    segment = tape.segments[-1]
    at = {entry[OUT]: i for i, entry in enumerate(segment.entries)}
    positions = [at[y._slot], at[z._slot]]
    trace = trace_backward(segment.entries, segment.first, positions, Residuals(Graph()))
    assert Planner(trace, {}, True).plan.bare == {at[z._slot]}


def test_two_values_from_before_leave_by_their_numbers_and_one_that_is_read_twice_leaves_once():
    a, b = tg.CapacitorTape(3), tg.Variable(np.ones(2))
    with a:
        p, q = b * 2.0, b * 3.0
    with a:
        y = tg.sum(q * p + tg.tanh(q))
    plan = planned(a, y)
    assert set(plan.leaving) == {0, 1}
    assert all(value.place == "leaving" for value in plan.leaving.values())
    assert plan.leaving[0] is not plan.leaving[1]


def test_one_cotangent_for_two_states_is_two_arrays():
    found = []
    for compile in (False, "numpy"):
        u, v = tg.Variable(np.ones(2)), tg.Variable(np.ones(2))
        p, q, tape = tg.Variable(np.ones(2)), tg.Variable(np.ones(2)), tg.CapacitorTape(3, compile=compile)
        for _ in range(6):
            with tape:
                s = p + q  # their cotangents are the same array
                p, q = tg.tanh(s * u), tg.sin(s * v)
                loss = tg.sum(s)
            sweep = tape.backward(loss)
        found.append([sweep.gradients[u], sweep.gradients[v], *sweep.left_edge.values()])
    for came, right in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(came, right, rtol=1e-13)


def test_a_buffer_is_not_used_again_while_a_view_of_it_is_wanted():
    """What a rule that is called as it is returns may be a view of the cotangent that it was given."""
    found = []
    for compile in (False, "numpy"):
        w, tape = matrix(), tg.CapacitorTape(4, compile=compile)
        for _ in range(3):
            with tape:
                y = tg.tanh(np.arange(12.0).reshape(BATCH, WIDTH) / 9 @ w)
                z = tg.stack([y, tg.square(y)])
                total = tg.sum(tg.sum(z, axis=0)) + tg.sum(tg.max(z, axis=0) * tg.stack([y, y])[1])
            sweep = tape.backward(total)
        found.append(sweep.gradients[w])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


@pytest.mark.parametrize("f", [
    lambda a: (a[..., -1:] - a[..., -2:-1]) / 3.0,
    lambda a: a[..., -3:-1] * a[..., -5:-3],
    lambda a: a[1:2, ...] - a[0:1, ...],
    lambda a: tg.concat([a[..., 1:2] - a[..., :1], (a[..., 2:] - a[..., :-2]) / 2.0, a[..., -1:] - a[..., -2:-1]], -1),
], ids=["ends", "pairs", "rows", "differences"])  # fmt: skip
@pytest.mark.parametrize("shape", [(6,), (2, 6)])
def test_neighbours_counted_from_the_end_stay_in_their_places(f, shape):
    v, found = tg.Variable(np.linspace(-1.0, 1.7, 6 * len(shape)).reshape(shape) ** 2), []
    for compile in (False, True):
        tape, carried, weight = tg.CapacitorTape(3, compile=compile), tg.constant(0.5), tg.Variable(1.5)
        for _ in range(5):
            with tape:
                carried = tg.tanh(0.01 * tg.sum(tg.tanh(f(v * 1.0))) * weight + carried)
            sweep = tape.backward(carried)
        found.append(sweep.gradients[v])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_pieces_without_elements_are_planned():
    """Differences of more steps than there are elements: slices of nothing from nothing."""
    v, found = tg.Variable(np.linspace(-1.0, 1.7, 6)), []
    for compile in (False, True):
        tape, carried = tg.CapacitorTape(3, compile=compile), tg.constant(0.5)
        for _ in range(4):
            with tape:
                empty = tg.tanh(tg.diff(v * 1.0, 9))
                carried = tg.tanh(tg.sum(empty) + tg.sum(v) * 0.1 + carried)
            sweep = tape.backward(carried)
        found.append(sweep.gradients[v])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)


# -- reading ---------------------------------------------------------------------------------------------------


def test_a_program_names_the_op_that_each_line_comes_from():
    tape, _ = loop(lambda x, w: tg.tanh(x @ w), matrix())
    source = str(tape.program())
    for name in ("# tanh", "# matmul"):
        assert name in source
    for line in source.splitlines():
        assert len(line) < 160


def test_the_same_segment_gives_the_same_program():
    sources = []
    for _ in range(2):
        replay_module.TEMPLATES.clear()
        tape, _ = loop(lambda x, w, u: tg.tanh(x @ w) * u + x, matrix(), tg.Variable(np.ones(WIDTH)))
        (rings,) = tape._programs._replays.rings.values()
        sources.append([re.sub(r"-\d+", "", bound.program.source) for bound in rings.bound.values()])
    assert sources[0] == sources[1]
