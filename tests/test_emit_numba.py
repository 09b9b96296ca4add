"""Numba programs against the same plans through NumPy, and their statements against NumPy itself."""

import os
import subprocess
import sys
import textwrap
from bisect import bisect_left
from operator import itemgetter

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn
from tapegrad.core.entry import OUT
from tapegrad.errors import ShapeError
from tapegrad.program import emit_numba, loops
from tapegrad.program.emit_numba import (
    NumbaProgram,
    Table,
    at_table,
    blas,
    header,
    numba_program,
    pays,
    supports,
)
from tapegrad.program.emit_numpy import NumpyProgram
from tapegrad.program.loops import Loops, Number, Refused, View
from tapegrad.program.plan import Planner
from tapegrad.program.rings import Rings, aligned
from tapegrad.program.signature import Matcher
from tapegrad.program.trace import Graph, Residuals, trace_backward

pytest.importorskip("numba")

SEGMENTS = 6
has_scipy = pytest.mark.skipif(
    not emit_numba.find_spec("scipy"), reason="products of several rows need SciPy"
)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own."""
    before = os.environ.get("TAPEGRAD_CACHE")
    os.environ["TAPEGRAD_CACHE"] = str(tmp_path_factory.mktemp("programs"))
    yield
    if before is None:
        del os.environ["TAPEGRAD_CACHE"]
    else:
        os.environ["TAPEGRAD_CACHE"] = before


# -- loops ----------------------------------------------------------------------------------------------


def weights(rng, *shape, dtype):
    return tg.Parameter((0.4 * rng.standard_normal(shape)).astype(dtype))


def plain_lstm(rng, n, batch, dtype):
    w_x, w_h, b = (
        weights(rng, n, 4 * n, dtype=dtype),
        weights(rng, n, 4 * n, dtype=dtype),
        weights(rng, 4 * n, dtype=dtype),
    )

    def step(x, state):
        h, c = state
        z = x @ w_x + h @ w_h + b
        i, f, g, o = (z[:, k * n : (k + 1) * n] for k in range(4))
        c = tg.sigmoid(f) * c + tg.sigmoid(i) * tg.tanh(g)
        h = tg.sigmoid(o) * tg.tanh(c)
        return h, (h, c)

    zero = tg.constant(np.zeros((batch, n), dtype))
    return step, (zero, zero)


def cell(kind):
    def make(rng, n, batch, dtype):
        made = kind(n, n, dtype=dtype, rng=rng)
        return made, made.initial_state(batch)

    return make


def two_layers(rng, n, batch, dtype):
    (lower, first), (upper, second) = (make(rng, n, batch, dtype) for make in (plain_lstm, cell(nn.GRUCell)))

    def step(x, state):
        h, low = lower(x, state[0])
        h, high = upper(h, state[1])
        return h, (low, high)

    return step, (first, second)


def many_ops(rng, n, batch, dtype):
    """What the cells have not: weights from the other side, sums over axes, tables, conditions, views, functions."""
    w, u, gain, table = (weights(rng, *shape, dtype=dtype) for shape in ((n, n), (n, n), (n,), (7, n)))
    rows = np.arange(batch) % 5

    def step(x, h):
        a = tg.tanh(h @ w.T + x)
        mean = tg.mean(a, axis=-1, keepdims=True)
        a = (a - mean) / tg.sqrt(tg.mean((a - mean) ** 2, axis=-1, keepdims=True) + 0.1) * gain
        a = a + table[rows] * tg.softplus(a)
        a = tg.where(a.value > 0, a, 0.3 * tg.exp(-a * a))
        a = a + (u @ a.T).T + tg.softmax(a) + tg.log_softmax(a)
        h = tg.concat([a[:, n // 2 :], tg.sin(a[:, : n // 2])], -1) * 0.5 + tg.maximum(h, a) * 0.1
        return h, h

    return step, tg.constant(np.zeros((batch, n), dtype))


def scalar_state(rng, n, batch, dtype):
    w = weights(rng, dtype=dtype)

    def step(x, state):
        h, total = state
        h = tg.tanh(x * w + h * total)
        total = tg.sum(h) * 0.1 + total * w
        return h, (h, total)

    return step, (tg.constant(np.zeros((batch, n), dtype)), tg.constant(np.ones((), dtype)))


MAKERS = {
    "plain": plain_lstm, "lstm": cell(nn.LSTMCell), "gru": cell(nn.GRUCell), "rnn": cell(nn.RNNCell),
    "two layers": two_layers, "many ops": many_ops, "scalar": scalar_state,
}  # fmt: skip


class Recorded:
    """`SEGMENTS` segments of a loop, and the plans of their backward passes: a loss's, and the body's."""

    def __init__(self, kind, *, n=5, batch=1, dtype=np.float64, recorded=True):
        rng = np.random.default_rng(3)
        step, state = MAKERS[kind](rng, n, batch, dtype)
        tape = tg.CapacitorTape(SEGMENTS, weights="recorded" if recorded else "current", compile=False)
        for _ in range(SEGMENTS + 1):
            with tape:
                h, state = step(rng.standard_normal((batch, n)).astype(dtype), state)
                tg.mean(tg.square(h - rng.standard_normal((batch, n)).astype(dtype)))
        self.segments, self.recorded = tape.segments, recorded
        self.entries = [segment.entries_today() for segment in self.segments]
        newest, older = self.segments[-1], self.segments[-2]
        match = Matcher(newest.entries, newest.first).match
        self.before = match(newest.entries, newest.first)
        assert match(older.entries, older.first) is not None
        self.link = [bisect_left(older.entries, slot, key=itemgetter(OUT)) for slot in self.before]
        self.residuals = Residuals(Graph())
        self.head = self.plan((len(newest.entries) - 1,))
        entering = tuple(sorted({self.link[n] for n in self.head.leaving}))
        self.body = self.plan(entering)
        self.feeds = {self.link[n]: n for n in self.body.leaving}
        assert tuple(sorted(self.feeds)) == entering

    def plan(self, entering):
        segment = self.segments[-1]
        trace = trace_backward(self.entries[-1], segment.first, entering, self.residuals)
        return Planner(trace, {slot: i for i, slot in enumerate(self.before)}, self.recorded).plan

    def programs(self, kind):
        where = self.residuals.where
        return [
            kind(self.head, where, self.recorded, None),
            kind(self.body, where, self.recorded, self.feeds),
        ]

    def swept(self, programs, entries=None, seed=None, ins=list):
        """Every array that a sweep over the window leaves behind."""
        entries = entries or self.entries
        rings = Rings(SEGMENTS)
        head, body = (program.bind(rings) for program in programs)
        for bound in (head, body):
            for k, segment in enumerate(entries):
                if bound is body or k == SEGMENTS - 1:
                    bound.hoist(k, segment)
                    bound.stack(k)
            for total in bound.totals.values():
                total.fill(0)
        seed = np.ones((), self.head.entering[head.entering[0]].dtype) if seed is None else seed
        at = SEGMENTS - 1
        head.sweep(head.back(at, 1), 0, head.leaves(), (seed,), head.joints, entries.__getitem__)
        left = dict(zip(head.leaving, head.joints, strict=True))
        enters = ins(left[self.feeds[e]][0] for e in body.entering)
        body.sweep(body.back(at - 1, at), 1, body.leaves(), enters, body.joints, entries.__getitem__)
        found = [np.array(array) for bound in (head, body) for array in bound.stacked]
        for bound in (head, body):
            found += [bound.totals[slot].copy() for slot in sorted(bound.totals)]
            for settled, _ in bound.groups:
                last = slice(at, None) if bound is head else slice(0, at)
                found += [settled.delta[last].copy()]
                found += [left[last].copy() for left in settled.lefts if left is not None]
        return found


def assert_same(came, expected, tolerance=1e-12):
    assert len(came) == len(expected)
    for a, b in zip(came, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-300))


CASES = [
    pytest.param(kind, batch, recorded, id=f"{kind}-{batch}-{'recorded' if recorded else 'current'}",
                 marks=[has_scipy] if batch > 1 else [])
    for kind in MAKERS
    for batch, recorded in ((1, True), (1, False), (3, True), (20, False))
    if (batch == 1 and (recorded or kind != "many ops")) or kind in {3: ("plain", "gru"), 20: ("plain", "many ops")}.get(batch, ())
]  # fmt: skip


@pytest.mark.parametrize(("kind", "batch", "recorded"), CASES)
def test_a_numba_program_computes_what_the_numpy_program_computes(kind, batch, recorded):
    loop = Recorded(kind, batch=batch, recorded=recorded)
    expected = loop.swept(loop.programs(NumpyProgram))
    assert any(array.any() for array in expected)
    assert_same(loop.swept(loop.programs(NumbaProgram)), expected)


@pytest.mark.parametrize("kind", ["lstm", "many ops"])
def test_single_precision_stays_single(kind):
    loop = Recorded(kind, dtype=np.float32)
    assert_same(loop.swept(loop.programs(NumbaProgram)), loop.swept(loop.programs(NumpyProgram)), 2e-5)


@has_scipy
def test_products_in_pieces_are_the_whole_product():
    loop = Recorded("plain", n=48, batch=33)
    assert_same(loop.swept(loop.programs(NumbaProgram)), loop.swept(loop.programs(NumpyProgram)))


def test_the_elementwise_steps_of_a_cell_are_one_loop():
    loop = Recorded("plain", n=16)
    _, body = loop.programs(NumbaProgram)
    hoisted = [line for line in body.hoist_source.splitlines() if line.strip().startswith("for")]
    swept = [line for line in body.sweep_source.splitlines() if line.strip().startswith("for")]
    assert hoisted == ["    for j in range(16):"]
    # Over segments, two that fetch what enters, the one of the step; then the product with the weights.
    assert [line.strip() for line in swept[:4]] == ["for i in range(count):", *["for j in range(16):"] * 3]
    assert sum("plus(" in line for line in body.sweep_source.splitlines()) == 4
    assert "h0[" not in body.hoist_source and "w0[" not in body.sweep_source  # intermediates are scalars


# -- what is given ---------------------------------------------------------------------------------------


def strided(value):
    """The same elements, every other one of a larger array."""
    if isinstance(value, tuple):
        return tuple(map(strided, value))
    if not isinstance(value, np.ndarray) or not value.ndim:
        return value
    larger = np.full((*value.shape[:-1], 2 * value.shape[-1]), 1, value.dtype)
    larger[..., ::2] = value
    return larger[..., ::2]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "current"])
@pytest.mark.parametrize("kind", ["plain", "many ops"])
def test_arrays_that_are_not_contiguous_are_copied(kind, recorded, monkeypatch):
    loop = Recorded(kind, recorded=recorded)
    expected = loop.swept(loop.programs(NumpyProgram))
    entries = [[tuple(map(strided, entry)) for entry in segment] for segment in loop.entries]
    programs = loop.programs(NumbaProgram)
    ways = [emit_numba.NumbaBound.leaves, lambda bound: list(map(strided, ways[0](bound)))]
    monkeypatch.setattr(emit_numba.NumbaBound, "leaves", ways[1])
    assert_same(loop.swept(programs, entries, ins=lambda cts: tuple(map(strided, cts))), expected)


def test_a_copy_lives_as_long_as_the_program_reads_it():
    """Two programs of one segment each hold the copy that they read: one shared list let go of the first's."""
    loop = Recorded("plain", n=24)
    entries = [[tuple(map(strided, entry)) for entry in segment] for segment in loop.entries]
    assert_same(loop.swept(loop.programs(NumbaProgram), entries), loop.swept(loop.programs(NumpyProgram)))
    head, body = (program.bind(Rings(SEGMENTS)) for program in loop.programs(NumbaProgram))
    assert head.lists and head.lists[0] is not body.lists[0]


@pytest.mark.parametrize("seed", [np.float64(2.0), np.array(2.0), np.array(2.0, np.float32), 2.0])
def test_a_seed_may_be_a_number(seed):
    loop = Recorded("plain")
    expected = loop.swept(loop.programs(NumpyProgram), seed=np.array(2.0))
    assert_same(loop.swept(loop.programs(NumbaProgram), seed=seed), expected)


def test_where_objects_lie_otherwise_addresses_are_asked_for(monkeypatch):
    loop = Recorded("many ops")
    expected = loop.swept(loop.programs(NumpyProgram))
    assert (
        emit_numba.reads_objects()
        or sys.implementation.name != "cpython"
        or not getattr(sys, "_is_gil_enabled", bool)()
    )
    monkeypatch.setattr(emit_numba, "reads_objects", lambda: False)
    assert_same(loop.swept(loop.programs(NumbaProgram)), expected)


def test_places_may_be_a_list():
    loop = Recorded("lstm", recorded=False)
    _, body = (program.bind(Rings(SEGMENTS)) for program in loop.programs(NumbaProgram))
    enters = [np.ones((1, 5)), np.ones((1, 5))]
    found = []
    for places in (np.array([4, 3, 2]), [4, 3, 2]):
        for k in places:
            body.hoist(k, loop.entries[k])
        body.sweep(places, 0, body.leaves(), enters, body.joints)
        found.append([array.copy() for array in body.stacked])
    assert_same(found[0], found[1], 0.0)
    assert all(array[:3].any() and not array[3:].any() for array in found[0])


def test_a_leaf_of_another_shape_is_an_error():
    loop = Recorded("plain", recorded=False)
    head, _ = (program.bind(Rings(SEGMENTS)) for program in loop.programs(NumbaProgram))
    head.hoist(5, loop.entries[5])
    (leaf,) = head.leaves()
    message = (
        "CapacitorTape: an array has another shape than when its program was made.\n"
        "  expected: float64 (5, 20)      came: float64 (5, 21)"
    )
    with pytest.raises(ShapeError) as caught:
        head.sweep(head.back(5, 1), 0, [np.zeros((5, 21))], (np.array(1.0),), head.joints)
    assert str(caught.value) == message
    head.sweep(head.back(5, 1), 0, [leaf], (np.array(1.0),), head.joints)


def test_programs_of_one_signature_may_leave_cotangents_of_different_dtypes():
    rings = Rings(SEGMENTS)
    rings.joint(0, (1, 5), np.float32)
    loop = Recorded("plain")
    head, _ = (program.bind(rings) for program in loop.programs(NumbaProgram))
    assert [array.dtype for array in head.stacked] == [np.float64] * len(head.leaving)


def test_rows_beyond_the_joints_are_refused():
    loop = Recorded("plain")
    head, _ = (program.bind(Rings(SEGMENTS)) for program in loop.programs(NumbaProgram))
    head.hoist(5, loop.entries[5])
    with pytest.raises(AssertionError):
        head.sweep(head.back(5, 1), SEGMENTS, head.leaves(), (np.array(1.0),), head.joints)


# -- the choice ------------------------------------------------------------------------------------------


def test_without_numba_nothing_is_supported(monkeypatch):
    plan = Recorded("plain").body
    assert supports(plan) and pays(plan)
    monkeypatch.setattr(emit_numba, "find_spec", lambda name: None)
    assert not supports(plan) and not pays(plan)


def test_without_scipy_products_of_several_rows_are_left_to_numpy(monkeypatch):
    one, several = Recorded("plain").body, Recorded("plain", batch=3).body
    monkeypatch.setattr(emit_numba, "find_spec", lambda name: None if name == "scipy" else True)
    assert supports(one) and not supports(several)


def test_arrays_of_other_dtypes_are_left_to_numpy():
    loop = Recorded("rnn")
    for value in loop.body.values.values():
        value.dtype = np.dtype(">f8")
    assert not supports(loop.body)
    with pytest.raises(Refused, match="arrays of >f8"):
        loop.programs(NumbaProgram)


def exponentials(n):
    """A plan whose factors take `n` exponentials."""
    w = tg.Parameter(np.ones(n))
    tape = tg.Tape()
    with tape:
        tg.mean(tg.log_softmax(w * np.linspace(0.0, 1.0, n)))
    segment = tape._segment
    residuals = Residuals(Graph())
    trace = trace_backward(segment.entries, segment.first, (len(segment.entries) - 1,), residuals)
    return Planner(trace, {}, True).plan


def test_where_functions_of_many_elements_dominate_numba_does_not_pay():
    few, many = exponentials(100), exponentials(100_000)
    assert supports(few) and pays(few)
    assert supports(many) and not pays(many)
    assert numba_program(many, {}, True, None) is None and numba_program(many, {}, True, None, insist=True)


# -- what is kept on the disk ------------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    from test_emit_numba import NumbaProgram, NumpyProgram, Recorded, assert_same
    loop = Recorded("plain")
    programs = loop.programs(NumbaProgram)
    assert_same(loop.swept(programs), loop.swept(loop.programs(NumpyProgram)))
    print(*[p.from_cache for p in programs], *[p.compiled_in for p in programs])
    """
)


def start(folder):
    here = os.path.dirname(os.path.abspath(__file__))
    command = [sys.executable, "-c", SCRIPT, here]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TAPEGRAD_CACHE": str(folder)},
    )


def report(process):
    out, err = process.communicate()
    assert not process.returncode, err
    return out.split()


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    *hits, first, second = report(start(tmp_path))
    assert hits == ["False", "False"]
    compiling = float(first) + float(second)
    names = sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".py")
    assert [name.split("_")[0] for name in names] == ["hoist", "hoist", "sweep", "sweep"]
    *hits, first, second = report(start(tmp_path))
    assert hits == ["True", "True"]
    assert float(first) + float(second) < compiling / 2


def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(tmp_path):
    both = [start(tmp_path) for _ in range(2)]
    for process in both:
        report(process)
    assert not list(tmp_path.glob("*.tmp"))
    assert report(start(tmp_path))[:2] == ["True", "True"]


def test_without_a_place_for_a_cache_programs_are_compiled_in_each_process(tmp_path):
    file = tmp_path / "a file"
    file.write_text("")
    assert report(start(file / "below"))[:2] == ["False", "False"]
    assert report(start(file / "below"))[:2] == ["False", "False"]


def test_one_source_is_compiled_once_in_a_process():
    first, again = (Recorded("rnn", n=7).programs(NumbaProgram)[1] for _ in range(2))
    assert first.source == again.source and first.from_cache is None
    for program in (first, again):
        program.bind(Rings(SEGMENTS)).hoist(0, Recorded("rnn", n=7).entries[0])
    assert again.from_cache and again.compiled_in < 0.1


# -- statements --------------------------------------------------------------------------------------------


def computed(made, arrays):
    """Run the statements of `made` on arrays by name; every array that they use, by name."""
    lines = made.lines()
    memories = made.used()
    source = "\n".join(
        ["def hoist(t, arrays, k):", *header(made, memories), *("    " + x for x in lines), "    return 0"]
    )
    function, _ = emit_numba.compiled("hoist", source)
    table = Table([])
    held = {m.name: aligned(m.shape, m.dtype) for m in at_table(memories)}
    for name, array in arrays.items():
        if name in held:
            held[name][...] = array
    for memory in memories:
        if memory.source[0] == "literal":
            held[memory.name][...] = memory.source[1]
    table.fill(list(held.values()), blas() if made.calls_blas else (0, 0))
    assert function(table.address, 0, 0) == 0
    return held


UNUSUAL = [0.0, -0.0, 1.0, -1.0, 0.3, -2.5, 0.999, 30.0, -30.0, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_are_those_of_numpy(dtype):
    """Each at numbers of every kind, and at every pair of them."""
    a = np.repeat(np.array(UNUSUAL, dtype), len(UNUSUAL))
    b = np.tile(np.array(UNUSUAL, dtype), len(UNUSUAL))
    made, expected = Loops(), {}
    x, y = (made.memory(name, a.shape, dtype).whole for name in "ab")
    for name in sorted(loops.FUNCTIONS | set(loops.SYMBOLS)):
        ufunc = getattr(np, name)
        with np.errstate(all="ignore"):
            expected[name] = ufunc(*(a, b)[: ufunc.nin])
        out = made.memory(name, a.shape, expected[name].dtype).whole
        made.ufunc(out, name, [x, y][: ufunc.nin])
    made.ufunc(made.memory("less_", a.shape, bool).whole, "less", [x, Number(0.5)])
    made.ufunc(
        made.memory("where", a.shape, dtype).whole, "where", [made.memories["less_"].whole, x, Number(-7.0)]
    )
    expected |= {"less_": a < 0.5, "where": np.where(a < 0.5, a, dtype(-7.0))}
    found = computed(made, {"a": a, "b": b})
    tolerance = 1e-13 if dtype is np.float64 else 2e-6
    for name, wanted in expected.items():
        assert found[name].dtype == wanted.dtype
        np.testing.assert_allclose(found[name], wanted, rtol=tolerance, atol=1e-300, err_msg=name)
        if wanted.dtype.kind == "f" and name in loops.SYMBOLS:
            there = ~np.isnan(wanted)
            np.testing.assert_array_equal(
                np.signbit(found[name])[there], np.signbit(wanted)[there], err_msg=name
            )


def test_dtypes_are_those_of_numpy():
    """Mixed operands, numbers among them."""
    arrays = {
        "i": np.array([3, -2, 0]), "s": np.array([1, 2, 3], np.int8), "b": np.array([True, False, True]),
        "f": np.array([0.5, 2.0, -1.0], np.float32), "d": np.array([1.5, -0.1, 3.0]),
    }  # fmt: skip
    made, expected = Loops(), {}
    views = {name: made.memory(name, a.shape, a.dtype).whole for name, a in arrays.items()}
    for name in ("add", "multiply", "divide", "greater", "maximum"):
        for p in arrays:
            for q in (*arrays, 2, 0.25):
                other = Number(q) if not isinstance(q, str) else views[q]
                with np.errstate(all="ignore"):
                    wanted = getattr(np, name)(arrays[p], arrays[q] if isinstance(q, str) else q)
                label = f"{name}_{p}_{q}".replace(".", "_")
                expected[label] = wanted
                made.ufunc(made.memory(label, wanted.shape, wanted.dtype).whole, name, [views[p], other])
    found = computed(made, arrays)
    for label, wanted in expected.items():
        assert found[label].dtype == wanted.dtype
        np.testing.assert_array_equal(found[label], wanted, err_msg=label)


def test_sums_and_extremes_over_axes_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 4, 5))
    a[1, 2, 3] = np.nan
    made, expected = Loops(), {}
    view = made.memory("a", a.shape, a.dtype).whole
    for seen, array in (("", a), ("t", a.transpose(2, 0, 1))):
        value = view if not seen else view.seen("transpose", ((2, 0, 1),))
        for name in ("sum", "max") if seen else ("sum", "max", "min"):
            for axes in ((0,), (2,), (0, 1), (0, 2), (0, 1, 2)):
                for keepdims in (False,) if seen else (False, True):
                    wanted = getattr(np, name)(array, axis=axes, keepdims=keepdims)
                    label = f"{name}{seen}_{''.join(map(str, axes))}_{keepdims}"
                    expected[label] = wanted
                    made.reduce(made.memory(label, wanted.shape, a.dtype).whole, name, axes, value)
    found = computed(made, {"a": a})
    for label, wanted in expected.items():
        np.testing.assert_allclose(found[label], wanted, rtol=1e-14, atol=1e-14, err_msg=label)


def test_elements_at_indices_are_those_of_numpy():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 5, 6))
    one, two = np.array([[0, 3, -1], [2, 2, -4]]), np.array([1, -1, 0], np.int32)
    mark = [("array", 0), ("array", 1)]
    indices = [
        ((mark[0],), (one,)), ((slice(None), mark[0]), (one,)), ((mark[0], mark[1]), (one, two)),
        ((slice(None), mark[0], mark[1]), (one, two)), ((Ellipsis, mark[0]), (two,)), ((mark[0], slice(None), slice(1, 4)), (two,)),
    ]  # fmt: skip
    made, expected = Loops(), {}
    views = {id(x): made.memory(f"at{n}_", x.shape, x.dtype).whole for n, x in enumerate((one, two))}
    source = made.memory("a", a.shape, a.dtype).whole
    for number, (index, arrays) in enumerate(indices):
        real = tuple(arrays[part[1]] if loops.is_mark(part) else part for part in index)
        wanted = a[real]
        given = [views[id(x)] for x in arrays]
        made.gather(made.memory(f"gather{number}", wanted.shape, a.dtype).whole, source, index, given)
        into = made.memory(f"scatter{number}", a.shape, a.dtype).whole
        made.copy(into, Number(1.0))
        made.scatter(into, made.memory(f"gather{number}", wanted.shape, a.dtype).whole, index, given)
        summed = np.ones_like(a)
        np.add.at(summed, real, wanted)
        expected |= {f"gather{number}": wanted, f"scatter{number}": summed}
    into = made.memory("rows", (5, 3), a.dtype).whole
    made.copy(into, Number(0))
    made.scatter(into, Number(2.0), (mark[0],), [views[id(two)]])
    summed = np.zeros((5, 3))
    np.add.at(summed, two, 2.0)
    expected["rows"] = summed
    found = computed(made, {"a": a, "at0_": one, "at1_": two})
    for label, wanted in expected.items():
        np.testing.assert_allclose(found[label], wanted, rtol=1e-15, err_msg=label)


@has_scipy
@pytest.mark.parametrize(("dtype", "small_kernels"), [(np.float32, True), (np.float64, False)])
def test_products_are_those_of_numpy(dtype, small_kernels, monkeypatch):
    """Few rows and many, either operand transposed or cut out of a larger array, into whole arrays and slices."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(loops, "small_kernels", lambda: small_kernels)
    made, arrays, expected = Loops(), {}, {}
    sizes = [(1, 7, 9), (1, 16, 4), (2, 3, 5), (3, 40, 31), (5, 1, 4), (20, 300, 70), (70, 9, 33), (4, 6, 1)]
    for rows, k, columns in sizes:
        for way in range(6):
            label = f"_{rows}_{k}_{columns}_{way}"
            shape_a = (k, rows) if way in (1, 3) else (rows, k + 2) if way == 4 else (rows, k)
            shape_b = (columns, k) if way in (2, 3) else (k, 2 * columns) if way == 4 else (k, columns)
            a, b = rng.standard_normal(shape_a).astype(dtype), rng.standard_normal(shape_b).astype(dtype)
            arrays |= {f"a{label}": a, f"b{label}": b}
            x, y = (made.memory(f"{n}{label}", v.shape, dtype).whole for n, v in (("a", a), ("b", b)))
            if way in (1, 3):
                x, a = x.seen("transpose", ((1, 0),)), a.T
            if way in (2, 3):
                y, b = y.seen("transpose", ((1, 0),)), b.T
            if way == 4:
                cut = (slice(None), slice(1, 1 + k))
                x, a = x.seen("getitem", (cut,)), a[cut]
                cut = (slice(None), slice(None, None, 2))
                y, b = y.seen("getitem", (cut,)), b[cut]
            out = made.memory(f"d{label}", (rows, columns + 3) if way == 5 else (rows, columns), dtype).whole
            if way == 5:
                made.copy(out, Number(4.0))
                out = View(out.memory, out.at[:, 2 : 2 + columns])
            made.matmul(out, x, y)
            wanted = a.astype(np.float64) @ b.astype(np.float64)
            expected[f"d{label}"] = (
                np.pad(wanted, ((0, 0), (2, 1)), constant_values=4.0) if way == 5 else wanted
            )
    found = computed(made, arrays)
    for label, wanted in expected.items():
        tolerance = 1e-13 if dtype is np.float64 else 2e-5
        np.testing.assert_allclose(
            found[label], wanted, atol=tolerance * np.abs(wanted).max(), rtol=0, err_msg=label
        )


def test_statements_that_need_other_elements_are_not_fused():
    a = np.arange(6.0)
    made = Loops()
    x = made.memory("a", (6,), float).whole
    b, c = (made.memory(name, (6,), float).whole for name in "bc")
    made.ufunc(b, "multiply", [x, Number(2.0)])
    made.ufunc(c, "add", [made.seen(b, "getitem", ((slice(None, None, -1),),)), x])  # b backwards
    made.copy(b, x)
    made.ufunc(b, "multiply", [b, b])
    found = computed(made, {"a": a})
    np.testing.assert_array_equal(found["c"], 2.0 * a[::-1] + a)
    np.testing.assert_array_equal(found["b"], a * a)
    assert len(made.fused()) == 3


def test_a_statement_goes_up_to_a_loop_that_takes_it_past_what_it_does_not_touch():
    made = Loops()
    shapes = {"in0": (4,), "out0": (4,), "out1": (4,), "sum0": ()}
    x, y, z, total = (made.memory(name, shape, float).whole for name, shape in shapes.items())
    made.ufunc(y, "multiply", [x, x])
    made.reduce(total, "sum", (0,), x)
    made.ufunc(z, "add", [y, Number(1.0)])  # past the sum, into the first loop
    made.ufunc(y, "add", [z, total])  # not past the sum, which it reads
    assert [len(group.statements) for group in made.fused() if isinstance(group, loops.Loop)] == [2, 1]
    found = computed(made, {"in0": np.arange(4.0)})
    np.testing.assert_array_equal(found["out1"], np.arange(4.0) ** 2 + 1.0)
    np.testing.assert_array_equal(found["out0"], np.arange(4.0) ** 2 + 7.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda made, x: made.ufunc(x, "gcd", [x, x]), "numpy.gcd"),
        (lambda made, x: made.memory("c", (3,), complex), "arrays of complex128"),
        (lambda made, x: made.memory("e", (0, 3), float), "an array without elements"),
        (lambda made, x: made.gather(x, x, (None, ("array", 0)), [x]), "an index of arrays and numbers"),
        (lambda made, x: made.gather(x, x, (("array", 0),), [x]), "an index that is not of integers"),
    ],
)
def test_what_is_not_made_into_loops_is_refused_by_name(fault, message):
    made = Loops()
    with pytest.raises(Refused) as caught:
        fault(made, made.memory("x", (3,), float).whole)
    assert str(caught.value) == message
