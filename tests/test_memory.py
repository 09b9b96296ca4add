"""What a tape keeps alive, and what its sweep writes over: bytes now, bytes at most, temporaries."""

import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim
from tapegrad.core.generate import WIDE


def recur(tape, batches, *, n=8):
    """Train a cell in a loop whose batch changes as `batches` says; yields after every step."""
    cell = tg.nn.RNNCell(n, n, dtype=np.float64, rng=0)
    optimizer = tg.optim.SGD(cell.parameters(), lr=0.1)
    for batch in batches:
        x = np.ones((batch, n))
        with tape:
            out, _ = cell(x, cell.initial_state(batch))
            loss = tg.mean(tg.square(out))
        if tape.backward(loss):
            optimizer.step()
            optimizer.zero_grad()
        yield


SETTINGS = [
    {"compile": False},
    {"compile": "exact"},
    {"compile": "numpy"},
    {"weights": "current"},
    {"weights": "replay"},
    {"joint": 0.5, "compile": "numpy"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("schedule", [tg.Sliding(5), tg.Sliding(6, stride=2), tg.Chunked(4)], ids=str)
def test_the_peak_is_the_largest_number_of_bytes_that_a_sweep_has_found(settings, schedule):
    batches = [2] * 9 + [40] * 2 + [2] * 9 + [3] * 8
    silent, asked = tg.CapacitorTape(schedule, **settings), tg.CapacitorTape(schedule, **settings)
    assert silent.peak_nbytes == 0
    found = []
    asked._memory.look = lambda tape, window: found.append(tape.nbytes)  # every time
    for _ in recur(silent, batches):
        pass
    after = [asked.nbytes for _ in recur(asked, batches)]
    assert silent.peak_nbytes == max(found) > after[-1]
    if getattr(schedule, "stride", 1) == 1:  # else a window may hold more where none is due
        assert silent.peak_nbytes >= max(after)


def test_a_full_window_is_counted_although_nobody_asked_before_it_was_forgotten():
    tape = tg.CapacitorTape(tg.Full(), compile=False)
    w = tg.Variable(np.ones(100))
    for _ in range(7):
        with tape:
            loss = tg.sum(tg.square(w * 2.0))
        tape.backward(loss)
    full = tape.nbytes
    assert full >= 7 * w.value.nbytes
    assert tape.peak_nbytes == full
    tape.sweep()
    tape.reset()
    assert (tape.nbytes, tape.peak_nbytes) == (0, full)


def test_the_peak_of_a_loop_that_repeats_itself_stays_what_it_was_when_the_window_was_full():
    tape = tg.CapacitorTape(4, weights="current")
    peaks = [tape._memory.peak for _ in recur(tape, [2] * 40)]
    assert peaks[-1] == peaks[12] == tape.peak_nbytes >= tape.nbytes > 0


def test_a_steady_loop_is_not_counted_again():
    tape, counted = tg.CapacitorTape(4, compile=False), []
    now = tape._memory.now
    tape._memory.now = lambda tape: counted.append(1) or now(tape)
    for _ in recur(tape, [2] * 30):
        pass
    assert len(counted) == 4  # as the window filled


def test_the_memory_of_compiled_programs_is_part_of_nbytes():
    compiled, by_rules = tg.CapacitorTape(4, compile="numpy"), tg.CapacitorTape(4, compile=False)
    for tape in (compiled, by_rules):
        for _ in recur(tape, [2] * 12):
            pass
    assert compiled._programs.nbytes > 0
    assert compiled.nbytes == by_rules.nbytes + compiled._programs.nbytes


def test_what_is_counted_is_freed_with_its_segment():
    tape = tg.CapacitorTape(2, compile=False)
    steps = recur(tape, [2] * 5)
    next(steps)
    first = weakref.ref(tape.segments[0])
    for _ in steps:
        assert tape.nbytes
    assert first() is None


def test_a_segment_that_somebody_holds_is_empty_once_it_has_left_the_window():
    tape = tg.CapacitorTape(2, weights="current", compile=False)
    steps = recur(tape, [2] * 5)
    next(steps)
    held = tape.segments[0]
    assert len(held) > 0
    for _ in steps:
        pass
    assert (len(held), held.held, len(held._leaf_reads)) == (0, False, 0)


@pytest.mark.parametrize("asks", [True, False])
def test_what_is_counted_while_a_segment_is_open_is_counted_again_when_it_has_grown(asks):
    tape, w = tg.CapacitorTape(3, compile=False), tg.Variable(np.ones(10))
    with tape:
        y = tg.square(w * 2.0)
        assert not asks or tape.nbytes == 80
        loss = tg.sum(tg.square(y))
        assert not asks or tape.nbytes == 160
    assert (tape.nbytes, tape.peak_nbytes) == (160, 160)
    assert tape.backward(loss)


@pytest.mark.parametrize("asks", [True, False])
def test_what_a_part_has_dropped_is_not_counted(asks):
    tape, w = tg.CapacitorTape(4, compile=False), tg.Variable(np.ones(10))
    brief = tape.capacitor(1)
    for _ in range(4):
        with tape:
            y = tg.square(w * 2.0)
            with brief:
                z = tg.square(w * 3.0)
        assert not asks or tape.nbytes
        assert y.shape == z.shape
    assert tape.nbytes == 4 * 80 + 80


# -- temporaries that are written over -----------------------------------------------------------------

RNG = np.random.default_rng(0)
UNARY = ["tanh", "sigmoid", "square", "sqrt", "expm1", "exp", "log1p"]
WIDE_SHAPE = (2, WIDE)


def plain_contributions(variant, entry, ct):
    """What the rules themselves say, one temporary each."""
    p, named = variant.primitive, variant.residuals(entry)
    rules = {a: p.rules[a] for a in variant.live}
    return [
        rule(ct, *(named[n] for n in rule.__code__.co_varnames[1 : rule.__code__.co_argcount]))
        for rule in rules.values()
    ]


@pytest.mark.parametrize("op", [*UNARY, "divide", "multiply", "subtract"])
@pytest.mark.parametrize("ct_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dtypes", [(np.float32, np.float32), (np.float64, np.float32)], ids=str)
@pytest.mark.parametrize("layout", ["C", "F", "broadcast"])
def test_a_wide_pull_is_bit_for_bit_what_the_rules_say_and_changes_nothing(op, ct_dtype, dtypes, layout):
    count = 1 if op in UNARY else 2
    values = [tg.Variable(RNG.uniform(0.5, 1.5, WIDE_SHAPE).astype(t)) for t in dtypes[:count]]
    tape = tg.Tape()
    with tape:
        y = getattr(tg, op)(*values)
    ct = np.asarray(RNG.standard_normal(WIDE_SHAPE).astype(ct_dtype), order="F" if layout == "F" else "C")
    if layout == "broadcast":
        ct = np.broadcast_to(ct[:, :1], WIDE_SHAPE)
    (entry,) = tape._segment.entries
    before = [np.array(a) for a in (ct, y.value, *(v.value for v in values))]
    expected = plain_contributions(entry[0], entry, ct)
    found = [c for _, c in entry[0].pull(entry, ct)]
    for a, b in zip(found, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)
    for a, b in zip((ct, y.value, *(v.value for v in values)), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a in found:
        assert not any(np.shares_memory(a, v.value) for v in (y, *values))


@pytest.mark.parametrize("shapes", [((2, WIDE), (WIDE,)), ((2, 1), (2, WIDE)), ((2, WIDE), ())], ids=str)
def test_a_wide_pull_with_an_argument_that_was_broadcast_is_what_the_rules_say(shapes):
    a, b = (tg.Variable(RNG.uniform(0.5, 1.5, s)) for s in shapes)
    tape = tg.Tape()
    with tape:
        y = tg.divide(a, b)
        tg.sum(y)
    tape.backward()
    ct = np.ones(y.shape)
    for v, full in ((a, ct / b.value), (b, -ct * (y.value / b.value))):
        axes = tuple(range(2 - v.ndim)) + tuple(2 - v.ndim + i for i, n in enumerate(v.shape) if n == 1)
        np.testing.assert_allclose(v.grad, full.sum(axis=axes).reshape(v.shape), rtol=1e-12)


def test_a_wide_pull_that_is_recorded_can_be_differentiated():
    v = tg.Variable(RNG.standard_normal(WIDE))
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = tg.sum(tg.tanh(v))
        first = inner.backward(y, record=True)[v]
        total = tg.sum(first)
    v.grad = None
    outer.backward(total)
    t = np.tanh(v.value)
    np.testing.assert_allclose(v.grad, -2 * t * (1 - t * t), rtol=1e-10, atol=1e-14)


def test_a_wide_cotangent_that_two_consumers_share_is_not_written_over():
    v, u = (tg.Variable(RNG.standard_normal(WIDE)) for _ in range(2))
    tape = tg.Tape()
    with tape:
        total = tg.sum(tg.tanh(v) + tg.tanh(u))
    found = tape.backward(total, keep=[total])
    for leaf in (v, u):
        np.testing.assert_allclose(found[leaf], 1 - np.tanh(leaf.value) ** 2, rtol=1e-10)


def test_the_source_of_a_pull_shows_what_it_writes_over():
    tape, v = tg.Tape(), tg.Variable(np.ones(3))
    tape.record(lambda: tg.sum(tg.tanh(v)))
    tape.backward()
    source = tg.tanh.primitive.source()
    assert "subtract(ct, made_0, made_0)  # in place" in source
    assert "return (a_slot, (ct - ((ct * y) * y)))," in source


def a_loop_that_is_compiled(steps, on_gradient):
    cell = nn.LSTMCell(8, 16, rng=0)
    optimizer, tape, state = (
        optim.Adam(cell.parameters()),
        tg.CapacitorTape(5, weights="current"),
        cell.initial_state(2),
    )
    rng = np.random.default_rng(0)
    for k in range(steps):
        with tape:
            out, state = cell(rng.standard_normal((2, 8)).astype(np.float32), state)
            loss = tg.sum(out**2)
        tape.backward(loss)
        on_gradient(k, cell.parameters())
        optimizer.step()
        optimizer.zero_grad()


def test_a_gradient_that_somebody_holds_is_never_written_to():
    held = []

    def hold(k, params):
        if k % 3:  # sometimes the array, sometimes a view of it, sometimes nothing
            g = params[0].grad
            held.append((g if k % 2 else g[1:, ::2], np.array(g if k % 2 else g[1:, ::2])))

    a_loop_that_is_compiled(60, hold)
    for array, copy in held:
        np.testing.assert_array_equal(array, copy)


def test_gradients_are_formed_in_the_memory_of_the_last_ones():
    where = []
    a_loop_that_is_compiled(60, lambda k, params: where.append(params[0].grad.ctypes.data))
    assert len(set(where[20:])) <= 2
