"""Different windows for different parts of one loop, and the do-block form of recording."""

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim

STEPS, BATCH, N_IN, N_SLOW, N_FAST = 17, 2, 3, 4, 5


class TwoTimescales(nn.Module):
    """A slow cell that reads the input, and a fast one that reads the input and the slow cell's output."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.slow = nn.GRUCell(N_IN, N_SLOW, dtype=np.float64, rng=rng)
        self.fast = nn.RNNCell(N_IN + N_SLOW, N_FAST, dtype=np.float64, rng=rng)
        self.readout = nn.Linear(N_FAST, 3, dtype=np.float64, rng=rng)


def stream(steps=STEPS):
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((BATCH, N_IN)), rng.integers(0, 3, BATCH)) for _ in range(steps)]


def gradients_with_parts(slow_schedule, fast_schedule, outer, lr=0.2, weights="recorded"):
    """The gradient of every parameter at every sweep, from a loop with two parts."""
    model, tape = TwoTimescales(), tg.CapacitorTape(outer, weights=weights)
    slow, fast = tape.capacitor(slow_schedule), tape.capacitor(fast_schedule)
    optimizer, found = optim.SGD(model.parameters(), lr), []
    s, f = model.slow.initial_state(BATCH), model.fast.initial_state(BATCH)
    for x, target in stream():
        with tape:
            with slow:
                context, s = model.slow(x, s)
            with fast:
                out, f = model.fast(tg.concat([x, context], axis=-1), f)
            loss = tg.softmax_cross_entropy(model.readout(out), target)
        sweep = tape.backward(loss)
        found.append(None if sweep is None else {n: sweep.gradients[p] for n, p in model.named_parameters()})
        if sweep:
            optimizer.step()
            optimizer.zero_grad()
    return found


def gradients_with_stop_gradient(slow_window, fast_window, lr=0.2):
    """The same with plain tapes: the newest 50 steps again, what is too old for a part cut by stop_gradient."""
    model, found, history = TwoTimescales(), [], []
    optimizer = optim.SGD(model.parameters(), lr)
    s, f = np.zeros((BATCH, N_SLOW)), np.zeros((BATCH, N_FAST))
    for x, target in stream():
        history.append((model.state_dict(), x, target, s, f))
        tape, now = tg.Tape(), len(history)
        today = model.state_dict()
        replayed_s = replayed_f = None
        with tape:
            for age, (weights, x_then, target_then, s_then, f_then) in zip(
                range(now, 0, -1), history, strict=True
            ):
                model.load_state_dict(weights)
                if age > slow_window or replayed_s is None:
                    replayed_s = tg.constant(s_then)
                if age > fast_window or replayed_f is None:
                    replayed_f = tg.constant(f_then)
                context, replayed_s = model.slow(x_then, replayed_s)
                if age > slow_window:
                    context, replayed_s = tg.stop_gradient(context), tg.stop_gradient(replayed_s)
                out, replayed_f = model.fast(tg.concat([x_then, context], axis=-1), replayed_f)
                if age > fast_window:
                    out, replayed_f = tg.stop_gradient(out), tg.stop_gradient(replayed_f)
                if age == 1:
                    loss = tg.softmax_cross_entropy(model.readout(out), target_then)
        sweep = tape.backward(loss)
        found.append({n: sweep.gradients[p] for n, p in model.named_parameters()})
        model.load_state_dict(today)
        s, f = replayed_s.value, replayed_f.value
        optimizer.step()
        optimizer.zero_grad()
    return found


@pytest.mark.parametrize(("slow", "fast"), [(50, 5), (6, 2), (1, 1), (3, 9)])
def test_parts_with_windows_of_their_own_equal_an_explicit_stop_gradient(slow, fast):
    found = gradients_with_parts(slow, tg.Sliding(fast), 1)
    expected = gradients_with_stop_gradient(slow, fast)
    for t, (a, b) in enumerate(zip(found, expected, strict=True)):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=1e-15, err_msg=f"{name} at {t}")
    full = gradients_with_parts(100, 100, 100)
    assert any(not np.allclose(a[n], b[n]) for a, b in zip(found, full, strict=True) for n in a)


@pytest.mark.parametrize("weights", ["recorded", "current", "replay"])
def test_parts_that_all_keep_as_much_equal_a_tape_without_parts(weights):
    def plain(compile):
        model, tape = TwoTimescales(), tg.CapacitorTape(4, weights=weights, compile=compile)
        optimizer, found = optim.SGD(model.parameters(), 0.2), []
        s, f = model.slow.initial_state(BATCH), model.fast.initial_state(BATCH)
        for x, target in stream():
            with tape:
                context, s = model.slow(x, s)
                out, f = model.fast(tg.concat([x, context], axis=-1), f)
                loss = tg.softmax_cross_entropy(model.readout(out), target)
            sweep = tape.backward(loss)
            found.append({n: sweep.gradients[p] for n, p in model.named_parameters()})
            optimizer.step()
            optimizer.zero_grad()
        return found

    for a, b, c in zip(
        gradients_with_parts(4, 4, 4, weights=weights), plain(False), plain(True), strict=True
    ):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            np.testing.assert_allclose(a[name], c[name], rtol=1e-11, atol=1e-15)


def chain(tape, parts, steps):
    """x = w x in every part in turn, one leaf each, from x = 1 with all leaves 1; the loss x at every step."""
    leaves, x, found = [tg.Parameter(np.array(1.0)) for _ in range(len(parts) + 1)], np.array(1.0), []
    for _ in range(steps):
        with tape:
            for part, w in zip(parts, leaves, strict=False):
                with part:
                    x = w * x
            x = leaves[-1] * x
        sweep = tape.backward(x)
        found.append(None if sweep is None else [float(sweep.gradients.get(w, 0.0)) for w in leaves])
    return found


def test_a_stride_of_its_own_says_when_a_part_collects():
    tape = tg.CapacitorTape(tg.Sliding(8, stride=2))
    slow = tape.capacitor(tg.Sliding(8, stride=4))
    found = chain(tape, [slow], 8)
    # every loss counts once for each part: 1 + 2 and then 3 + 4 for the tape, 1 + 2 + 3 + 4 at once for the part
    assert found[:4] == [None, [0, 3.0], None, [10.0, 7.0]]
    assert found[4:] == [None, [0, 11.0], None, [26.0, 15.0]]


def test_a_gradient_passes_through_a_part_that_is_not_due():
    tape = tg.CapacitorTape(4)
    late = tape.capacitor(tg.Sliding(4, stride=4))
    w, u, x = tg.Parameter(np.array(1.0)), tg.Parameter(np.array(1.0)), np.array(1.0)
    found = []
    for _ in range(4):
        with tape:
            x = u * x
            with late:
                x = w * x
            y = 1.0 * x
        sweep = tape.backward(y)
        found.append((float(sweep.gradients[u]), float(sweep.gradients[w])))
    assert found == [(1, 0), (2, 0), (3, 0), (4, 1 + 2 + 3 + 4)]


def test_a_part_in_chunks_forgets_what_it_swept_and_the_rest_does_not():
    tape = tg.CapacitorTape(100)
    chunks = tape.capacitor(tg.Chunked(3))
    w, u, x, y = tg.Parameter(np.array(1.0)), tg.Parameter(np.array(1.0)), np.array(1.0), np.array(1.0)
    found = []
    for _ in range(7):
        with tape:
            with chunks:
                x = w * x
            y = u * y
            loss = x + y
        sweep = tape.backward(loss)
        found.append((float(sweep.gradients[u]), float(sweep.gradients[w])))
    assert [u for u, _ in found] == [1, 2, 3, 4, 5, 6, 7]
    assert [w for _, w in found] == [0, 0, 1 + 2 + 3, 0, 0, 1 + 2 + 3, 0]


def test_a_part_may_be_randomised_or_burn_in():
    tape = tg.CapacitorTape(100)
    part = tape.capacitor(tg.Randomized(3, seed=1))
    twin = tg.Randomized(3, seed=1)
    alone, w, x = tg.CapacitorTape(twin), tg.Parameter(np.array(1.0)), np.array(1.0)
    expected = []
    for _ in range(30):
        with alone:
            x = w * x
        sweep = alone.backward(x)
        expected.append(0.0 if sweep is None else float(sweep.gradients[w]))
    assert [w for w, _ in chain(tape, [part], 30)] == expected
    tape = tg.CapacitorTape(100)
    assert [w for w, _ in chain(tape, [tape.capacitor(tg.BurnIn(1, 2))], 6)] == [0, 0, 3, 0, 0, 3]


def test_the_innermost_part_wins():
    tape = tg.CapacitorTape(1)
    outer, inner = tape.capacitor(3), tape.capacitor(2)
    w, v, x, y = tg.Parameter(np.array(1.0)), tg.Parameter(np.array(1.0)), np.array(1.0), np.array(1.0)
    for _ in range(6):
        with tape:
            with outer:
                x = w * x
                with inner:
                    y = v * y
                x = w * x
            loss = x + y
        sweep = tape.backward(loss)
    assert (float(sweep.gradients[w]), float(sweep.gradients[v])) == (6, 2)


def test_a_part_ages_by_segments_whether_it_runs_or_not():
    tape = tg.CapacitorTape(10)
    part = tape.capacitor(3)
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    for t in range(1, 8):
        with tape:
            if t % 2:
                with part:
                    x = w * x
            y = x * 1.0
        sweep = tape.backward(y)
    assert float(sweep.gradients[w]) == 2  # of segments 5 and 7; 1 and 3 are too old


def test_what_a_part_has_forgotten_is_at_the_left_edge_and_no_warning_is_due():
    tape = tg.CapacitorTape(10)
    part = tape.capacitor(2)
    w, u, x, kept = tg.Parameter(np.array(1.0)), tg.Parameter(np.array(1.0)), np.array(1.0), []
    for _ in range(4):
        with tape:
            with part:
                x = w * x
            kept.append(x)
            y = u * x
        sweep = tape.backward(y)
    assert kept[1] in sweep.left_edge and kept[0] not in sweep.left_edge
    assert float(sweep.gradients[w]) == 2
    with tape:
        z = u * kept[0]  # forgotten: a constant
    assert tape.backward(z).gradients[w] == 0.0


def test_memory_is_bounded_part_by_part():
    tape = tg.CapacitorTape(1)
    long, short = tape.capacitor(40), tape.capacitor(2)
    w, small, large, sizes = tg.Parameter(np.ones(10)), np.ones(10), np.ones(1000), []
    big = tg.Parameter(np.ones(1000))
    for _ in range(100):
        with tape:
            with long:
                small = w * small
            with short:
                large = big * large
            loss = tg.sum(small) + tg.sum(large)
        tape.backward(loss)
        sizes.append(tape.nbytes)
    assert len(set(sizes[60:])) == 1
    assert sizes[-1] < 45 * 2 * 80 + 3 * 2 * 8000 + 1000
    assert len(tape.segments) == 40


# -- the do-block form -------------------------------------------------------------------------------


def test_record_is_a_segment_and_part_record_a_part_of_it_or_one_of_its_own():
    def model(w, x):
        return w * x

    tape = tg.CapacitorTape(3)
    part = tape.capacitor(2)
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    for _ in range(5):
        x = tape.record(model, w, x)
    assert tape.backward(x).gradients[w] == 3
    for _ in range(5):
        x = part.record(model, w, x)  # no segment is open: it opens one
    assert len(tape.segments) == 2  # nothing ran outside the part
    assert tape.backward(x).gradients[w] == 2
    with tape:
        y = part.record(model, w, x) * w
    assert tape.backward(y).gradients[w] == 1 + 2


def test_an_exception_in_a_part_rolls_the_segment_back_and_the_part_closes():
    tape = tg.CapacitorTape(4)
    part = tape.capacitor(2)
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    with pytest.raises(ZeroDivisionError), tape, part:
        x = w * x
        1 / 0
    assert tape.segments == ()
    with tape:
        y = w * 2.0
    assert tape.backward(y).gradients[w] == 2.0
    assert tape._clocks[0].spans and not tape._clocks[1].spans


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (
            lambda tape, part: part.__enter__(),
            "Part: no segment is open. Write `with tape:` around `with part:`",
        ),
        (lambda tape, part: tape.begin() or tape.capacitor(3), "CapacitorTape.capacitor: a segment is open"),
        (
            lambda tape, part: (tape.begin(), part.__enter__(), tape.stop(), part.__exit__(None, None, None)),
            "Part: the segment in which this part was entered has ended.",
        ),
    ],
)
def test_misuse_of_a_part_names_the_fix(misuse, message):
    tape = tg.CapacitorTape(3)
    with pytest.raises(tg.RecordingError) as caught:
        misuse(tape, tape.capacitor(2))
    if tape.recording:
        tape.abort()
    assert message in str(caught.value)


def test_a_whole_tape_schedule_is_refused_for_a_part():
    with pytest.raises(
        tg.ArgumentError, match="looks beyond its window, and needs recorded weights, no joint and no parts"
    ):
        tg.CapacitorTape(3).capacitor(tg.RealTime())


def test_a_loss_that_a_part_would_drop_before_another_is_due_is_an_error():
    tape = tg.CapacitorTape(tg.Sliding(9, stride=9))
    part = tape.capacitor(2)
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    with pytest.raises(
        tg.EvictedError, match=r"It waits for Sliding\(window=9, stride=9\) of this tape or a part of it"
    ):
        for _ in range(3):
            with tape, part:
                x = w * x
            tape.backward(x)


# -- several passes in one sweep ---------------------------------------------------------------------


def test_a_second_pass_never_adds_in_place_to_an_array_that_it_borrowed():
    w, v = tg.Parameter(np.ones(2)), tg.Parameter(np.ones(2))
    tape = tg.CapacitorTape(tg.Sliding(2))
    part = tape.capacitor(tg.Sliding(2, stride=2))
    for _ in range(2):
        with tape, part:
            a, c = w * 1.0, v * 1.0
            d = a * 2.0
            b = a + c
            root = b * 1.0 + d
        tape.backward(root, seed=np.ones(2))
    assert w.grad.tolist() == [6, 6] and v.grad.tolist() == [2, 2]


def test_leaves_of_other_parts_are_set_aside_with_what_is_known_of_their_sums():
    def gradients(part_stride):
        w, b = tg.Parameter(np.ones(2)), tg.Parameter(np.full(2, 2.0))
        tape = tg.CapacitorTape(5)
        other = tape.capacitor(tg.Sliding(5, stride=part_stride))
        h, found = np.ones(2), []
        for _ in range(5):
            with tape:
                h = w * h + b
                with other:
                    h = h + b
                loss = tg.sum(h + b) + tg.sum(h * b)
            sweep = tape.backward(loss)
            found.append(sweep.gradients[w].tolist())
        return found

    assert gradients(1) == gradients(5)


def test_what_is_kept_of_a_sweep_counts_once_whatever_the_passes():
    w, x = tg.Parameter(np.array(2.0)), np.array(1.0)
    tape = tg.CapacitorTape(5)
    part = tape.capacitor(tg.Sliding(5, stride=2))
    for _ in range(4):
        with tape:
            with part:
                x = w * x
            loss = 3.0 * x
        sweep = tape.backward(loss, keep=[x])
    assert sweep[loss] == 1.0 and sweep[x] == 3.0


def test_a_pass_goes_no_further_back_than_the_part_that_collects():
    tape = tg.CapacitorTape(tg.Sliding(100, stride=100))
    fast = tape.capacitor(1)
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    for _ in range(30):
        with tape:
            with fast:
                x = w * x
            loss = 1.0 * x
        assert tape.backward(loss).segments == 1


def test_a_loss_computed_in_a_part_that_forgets_is_kept_for_the_one_that_is_due_later():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.Chunked(2))
    part = tape.capacitor(tg.Chunked(1))
    with tape:
        h = w * 3.0
        with part:
            loss = h * h
    tape.backward(loss)
    with tape:
        w * 1.0
    assert tape.sweep().gradients[w] == 36.0


def test_another_thread_cannot_enter_a_part():
    import threading

    tape, raised = tg.CapacitorTape(2), []
    part = tape.capacitor(2)

    def enter():
        try:
            part.__enter__()
        except tg.RecordingError as error:
            raised.append(str(error))

    with tape:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert raised == ["Part: the segment was begun in another thread or task, which alone can enter a part."]


def test_a_leaf_handed_in_beside_the_loss_counts_once():
    u, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(3)
    part = tape.capacitor(tg.Sliding(3, stride=3))
    for _ in range(6):
        with tape, part:
            loss = u * 1.0
        tape.backward([loss, u])
    assert u.grad == 6 + 6  # the losses that read it, and itself


def test_a_leaf_as_a_root_holds_no_span_of_a_part_that_has_swept_it():
    u, h = tg.Parameter(np.array(1.0)), np.array(1.0)
    tape = tg.CapacitorTape(tg.Sliding(10, stride=10))
    part = tape.capacitor(tg.Sliding(1))
    for _ in range(12):
        with tape:
            with part:
                h = u * 1.0
            loss = 1.0 * h
        tape.backward([loss, u])
    assert u.grad == 12 + 10  # the part has swept twelve losses, the tape ten times the leaf
