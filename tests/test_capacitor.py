"""The window's exact meaning, and what a CapacitorTape does at its edges."""

import gc
import warnings
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
N_IN, N_HIDDEN, N_OUT, BATCH, STEPS = 3, 4, 5, 2, 11
WINDOWS = [(window, stride) for window in (1, 2, 3, 5) for stride in range(1, window + 1)]
MODES = [False, "exact", True]  # by rules; by code that calls them; by programs, which may reassociate


class Model(nn.Module):
    def __init__(self, cell, seed=0):
        rng = np.random.default_rng(seed)
        self.cell = CELLS[cell](N_IN, N_HIDDEN, dtype=np.float64, rng=rng)
        self.readout = nn.Linear(N_HIDDEN, N_OUT, dtype=np.float64, rng=rng)

    def forward(self, x, state):
        out, state = self.cell(x, state)
        return self.readout(out), state


def stream(steps=STEPS, seed=1):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((BATCH, N_IN)), rng.integers(0, N_OUT, BATCH)) for _ in range(steps)]


def arrays_of(state):
    return tuple(s.value.copy() for s in state) if isinstance(state, tuple) else state.value.copy()


def constants_of(state):
    return tuple(map(tg.constant, state)) if isinstance(state, tuple) else tg.constant(state)


def run(cell, schedule, weights="recorded", lr=0.3, steps=STEPS, **options):
    """Train over a stream. Returns every sweep as (step, gradients), and the full history of the run."""
    model = Model(cell)
    tape = tg.CapacitorTape(schedule, weights=weights, **options)
    optimizer = optim.SGD(model.parameters(), lr)
    state = model.cell.initial_state(BATCH)
    sweeps, history = [], []
    for t, (x, target) in enumerate(stream(steps)):
        history.append({"state": arrays_of(state), "weights": model.state_dict(), "x": x, "target": target})
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        if sweep := tape.backward(loss):
            gradients = {name: sweep.gradients[p] for name, p in model.named_parameters()}
            sweeps.append((t, gradients))
            optimizer.step()
            optimizer.zero_grad()
    return model, sweeps, history


def window_rebuilt(cell, history, first, last, losses_from):
    """The oracle: steps first … last again on a fresh Tape, from the recorded state, with the recorded weights."""
    model, tape = Model(cell), tg.Tape()
    state, losses = constants_of(history[first]["state"]), []
    tape.begin()
    for t in range(first, last + 1):
        model.load_state_dict(history[t]["weights"])
        logits, state = model(history[t]["x"], state)
        if t >= losses_from:
            losses.append(tg.softmax_cross_entropy(logits, history[t]["target"]))
    tape.stop()
    tape.backward(losses)
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("compile", MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_a_window_equals_a_fresh_tape_started_window_steps_ago(cell, window, stride, compile):
    _, sweeps, history = run(cell, tg.Sliding(window, stride=stride), compile=compile)
    assert [t for t, _ in sweeps] == list(range(stride - 1, STEPS, stride))
    for t, gradients in sweeps:
        expected = window_rebuilt(cell, history, max(0, t + 1 - window), t, losses_from=t + 1 - stride)
        for name, gradient in gradients.items():
            same(gradient, expected[name], compile, f"{name} at step {t}")


def same(gradient, expected, compile, where):
    """Bit for bit by rules, and to 1e-12 by programs."""
    if compile is True:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12 * scale, err_msg=where)
    else:
        np.testing.assert_array_equal(gradient, expected, err_msg=where)


# -- weights="current" -------------------------------------------------------------------------------


def product(x, then, today):
    """x @ w with the value that it had then, and the derivative that it has today."""
    return tg.stop_gradient(x @ tg.constant(then) - x @ tg.constant(today.value)) + x @ today


def step_by_products(cell, model, then, x, state):
    """The cells again, each from its formula, with every weight going through `product` or a sum."""

    def affine(a, b, bias):
        return (
            product(a, then["cell.w_x"], model.cell.w_x)
            + product(b, then["cell.w_h"], model.cell.w_h)
            + shifted(then[bias], getattr(model.cell, bias.removeprefix("cell.")))
        )

    def shifted(was, today):
        return today + tg.constant(was - today.value)

    if cell == "rnn":
        out = state = tg.tanh(affine(x, state, "cell.b"))
    elif cell == "gru":
        from_x = product(x, then["cell.w_x"], model.cell.w_x) + shifted(then["cell.b"], model.cell.b)
        from_h = product(state, then["cell.w_h"], model.cell.w_h) + shifted(then["cell.b_h"], model.cell.b_h)
        n = N_HIDDEN
        r = tg.sigmoid(from_x[:, :n] + from_h[:, :n])
        z = tg.sigmoid(from_x[:, n : 2 * n] + from_h[:, n : 2 * n])
        new = tg.tanh(from_x[:, 2 * n :] + r * from_h[:, 2 * n :])
        out = state = (1 - z) * new + z * state
    else:
        h, c = state
        i, f, g, o = (affine(x, h, "cell.b")[:, k * N_HIDDEN : (k + 1) * N_HIDDEN] for k in range(4))
        c = tg.sigmoid(f) * c + tg.sigmoid(i) * tg.tanh(g)
        out = tg.sigmoid(o) * tg.tanh(c)
        state = (out, c)
    logits = product(out, then["readout.weight"], model.readout.weight) + shifted(
        then["readout.bias"], model.readout.bias
    )
    return logits, state


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_current_weights_are_old_activations_swept_with_todays_weights(cell, window, stride, compile):
    _, sweeps, history = run(cell, tg.Sliding(window, stride=stride), weights="current", compile=compile)
    for t, gradients in sweeps:
        model, tape, losses = Model(cell), tg.Tape(), []
        model.load_state_dict(history[t]["weights"])
        first = max(0, t + 1 - window)
        state = constants_of(history[first]["state"])
        with tape:
            for s in range(first, t + 1):
                logits, state = step_by_products(cell, model, history[s]["weights"], history[s]["x"], state)
                if s >= t + 1 - stride:
                    losses.append(tg.softmax_cross_entropy(logits, history[s]["target"]))
        tape.backward(losses)
        for name, p in model.named_parameters():
            np.testing.assert_allclose(
                gradients[name], p.grad, rtol=1e-12, atol=1e-14, err_msg=f"{name} at {t}"
            )


@pytest.mark.parametrize("compile", MODES)
def test_recorded_and_current_weights_differ_while_learning_and_agree_at_learning_rate_0(compile):
    for lr, agree in ((0.3, False), (0.0, True)):
        one, two = (
            run("lstm", tg.Sliding(4), weights=w, lr=lr, compile=compile)[1] for w in ("recorded", "current")
        )
        rounding = {"rtol": 1e-12, "atol": 1e-16} if compile is True else {"rtol": 0, "atol": 0}
        equal = all(
            np.allclose(a[n], b[n], **rounding) for (_, a), (_, b) in zip(one, two, strict=True) for n in a
        )
        assert equal is agree


def test_current_weights_keep_one_copy_of_the_weights_and_recorded_one_per_version():
    for weights, alive in (("recorded", 5), ("current", 1)):
        w = tg.Parameter(np.ones(3))
        tape, versions = tg.CapacitorTape(5, weights=weights), []
        for _ in range(9):
            w.rebind(w._array + 1.0)
            versions.append(weakref.ref(w._array))
            with tape:
                tg.sum(w * w)
        assert sum(v() is not None for v in versions) == alive


# -- limits of the window ----------------------------------------------------------------------------


@pytest.mark.parametrize("compile", MODES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "schedule", [tg.Full(), tg.Sliding(50, stride=50), tg.Chunked(STEPS + 1), tg.Sliding(STEPS, STEPS)]
)
def test_a_window_longer_than_the_stream_equals_a_plain_tape(cell, schedule, compile):
    def loop(tape, model):
        state, losses = model.cell.initial_state(BATCH), []
        for x, target in stream():
            with tape:
                logits, state = model(x, state)
                losses.append(tg.softmax_cross_entropy(logits, target))
            tape.backward(losses[-1])
        tape.sweep()

    windowed, plain = Model(cell), Model(cell)
    loop(tg.CapacitorTape(schedule, compile=compile), windowed)
    tape, losses, state = tg.Tape(), [], plain.cell.initial_state(BATCH)
    with tape:
        for x, target in stream():
            logits, state = plain(x, state)
            losses.append(tg.softmax_cross_entropy(logits, target))
    tape.backward(losses)
    for (name, a), b in zip(windowed.named_parameters(), plain.parameters(), strict=True):
        same(a.grad, b.grad, compile, name)


def test_every_out_that_a_user_kept_is_unchanged_at_the_end():
    model, tape = Model("lstm"), tg.CapacitorTape(tg.Sliding(3, stride=2))
    optimizer, state, kept = optim.SGD(model.parameters(), 0.1), model.cell.initial_state(BATCH), []
    for x, target in stream(30):
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        kept += [(v, v.value.copy()) for v in (logits, loss, *state)]
        if tape.backward(loss):
            optimizer.step()
            optimizer.zero_grad()
    for v, copy in kept:
        np.testing.assert_array_equal(v.value, copy)


def test_an_input_buffer_that_the_caller_reuses_changes_nothing():
    def gradients(buffer):
        model, tape = Model("gru"), tg.CapacitorTape(tg.Sliding(4, stride=4))
        state, found = model.cell.initial_state(BATCH), []
        labels = np.zeros(BATCH, int)
        for x, target in stream(12):
            if buffer is None:
                given, given_labels = x, target
            else:
                buffer[...], labels[...] = x, target
                given, given_labels = buffer, labels
            with tape:
                logits, state = model(given, state)
                loss = tg.softmax_cross_entropy(logits, given_labels)
            if sweep := tape.backward(loss):
                found += [sweep.gradients[p] for p in model.parameters()]
        return found

    for a, b in zip(gradients(None), gradients(np.empty((BATCH, N_IN))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_evicted_state_is_a_constant():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(1)
    with tape:
        y = w * 3.0
    with tape:
        z = w * y
    tape.backward(z)
    assert w.grad == 6.0  # y, and not y + 3 w


# -- schedules ---------------------------------------------------------------------------------------


def powers(schedule, steps, lossy=lambda t: True, **options):
    """x_t = w x_{t-1} from x_0 = 1 with w = 1: a loss's gradient counts the steps it went back through."""
    w, x = tg.Parameter(np.array(1.0)), np.array(1.0)
    tape = tg.CapacitorTape(schedule, **options)
    found = []
    for t in range(steps):
        with tape:
            x = w * x
        sweep = tape.backward(x) if lossy(t) else None
        found.append(None if sweep is None else float(sweep.gradients.get(w, 0.0)))
    return found, tape, w


def test_every_loss_counts_exactly_once_whatever_the_stride():
    found, tape, _ = powers(tg.Sliding(10, stride=4), 10)
    # Losses of steps 1 2 3 4 go back 1 + 2 + 3 + 4 steps, those of 5 … 8 as far as the window allows.
    assert found == [None, None, None, 10.0, None, None, None, 26.0, None, None]
    assert tape.sweep().losses == 2
    assert tape.sweep() is None


def test_a_loss_goes_back_at_least_window_minus_stride_plus_1_steps():
    found, _, _ = powers(tg.Sliding(5, stride=3), 12)
    # At step 12: losses 10, 11, 12 over segments 8 … 12 go back 3, 4 and 5 steps.
    assert found[11] == 3 + 4 + 5


def test_the_first_loss_in_or_after_the_due_segment_sweeps():
    found, _, _ = powers(tg.Sliding(6, stride=2), 9, lossy=lambda t: t % 3 == 2)
    assert found == [None, None, 3.0, None, None, 6.0, None, None, 6.0]


def test_a_chunk_never_reaches_into_the_chunk_before_it():
    found, tape, w = powers(tg.Chunked(4), 10)
    assert found == [None, None, None, 10.0, None, None, None, 10.0, None, None]
    assert len(tape.segments) == 2
    assert float(tape.sweep().gradients[w]) == 1 + 2
    sliding, tape, w = powers(tg.Sliding(4, stride=4), 10)
    assert sliding == found
    assert float(tape.sweep().gradients[w]) == 3 + 4  # a sliding window does reach back


def test_full_sweeps_only_when_asked():
    found, tape, w = powers(tg.Full(), 5)
    assert found == [None] * 5
    assert len(tape.segments) == 5
    assert float(tape.sweep().gradients[w]) == 15


def test_an_int_is_a_sliding_window():
    assert tg.CapacitorTape(20).schedule == tg.Sliding(20, stride=1)


def test_a_segment_without_a_loss_still_counts():
    found, _, _ = powers(2, 5, lossy=lambda t: t == 4)
    assert found == [None, None, None, None, 2.0]


def test_several_losses_in_one_segment_and_seeds():
    w, tape = tg.Parameter(np.array([1.0, 2.0])), tg.CapacitorTape(3)
    with tape:
        a, b = w * w, tg.sum(w)
    tape.backward([a, b], [np.array([1.0, 10.0]), 5.0])
    np.testing.assert_array_equal(w.grad, [2 + 5, 40 + 5])


def test_a_second_loss_of_a_swept_segment_waits_for_the_next_sweep():
    w, tape = tg.Parameter(np.array(3.0)), tg.CapacitorTape(3)
    with tape:
        a, b = w * 2.0, w * 5.0
    assert tape.backward(a).gradients[w] == 2
    assert tape.backward(b) is None
    with pytest.raises(tg.ArgumentError, match="this loss was handed in before"):
        tape.backward(b)
    with tape:
        c = w * 1.0
    assert tape.backward(c).gradients[w] == 6
    assert w.grad == 8


def test_a_sweep_while_the_segment_is_open_covers_what_is_there():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(2)
    with tape:
        x = w * 1.0
    tape.begin()
    y = x * w
    assert tape.backward(y).gradients[w] == 4
    z = y * 1.0
    tape.stop()
    assert tape.backward(z) is None  # this segment has been swept; its second loss waits
    assert tape.sweep().gradients[w] == 4


def test_a_chunk_swept_while_open_is_forgotten_when_it_closes():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.Chunked(1))
    tape.begin()
    x = w * w
    assert tape.backward(x).gradients[w] == 4
    tape.stop()
    assert tape.segments == ()
    with tape:
        y = x * w
    assert tape.backward(y).gradients[w] == 4  # x, a constant now


# -- joints, edges, lags -----------------------------------------------------------------------------


def test_a_joint_scales_drops_or_maps_what_crosses_it():
    def last(joint):
        return powers(3, 3, joint=joint)[0][-1]

    assert last(None) == 3
    assert last(0) == 1
    assert last(0.5) == 1 + 0.5 + 0.25
    assert last(lambda pending: {s: ct * 0.5 for s, ct in pending.items()}) == 1.75
    assert last(lambda pending: {}) == 1


def test_a_value_that_skips_n_joints_passes_n_times():
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(4, joint=0.5)
    with tape:
        x = w * 1.0
    for _ in range(2):
        with tape:
            w * 1.0
    with tape:
        y = x * 1.0
    assert tape.backward(y).gradients[w] == 0.125


def test_a_joint_never_touches_a_loss():
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(tg.Sliding(2, stride=2), joint=0)
    for _ in range(2):
        with tape:
            loss = w * 1.0
        sweep = tape.backward(loss)
    assert sweep.gradients[w] == 2


def test_the_left_edge_is_the_adjoint_of_the_state_that_entered_the_window():
    w, x, states = tg.Parameter(np.array(0.5)), np.array(1.0), []
    tape = tg.CapacitorTape(3)
    for _ in range(6):
        with tape:
            x = w * x
        states.append(x)
        sweep = tape.backward(x)
    assert sweep.left_edge[states[2]] == 0.5**3
    assert list(sweep.left_edge.values()) == [0.125]
    assert states[1] not in sweep.left_edge
    assert sweep.joint_norms == [0.5, 0.25, 0.125]
    assert sweep.segments == 3
    assert sweep.losses == 1


def test_segments_carry_the_adjoints_of_their_last_sweep():
    w, x, states = tg.Parameter(np.array(0.5)), np.array(1.0), []
    tape = tg.CapacitorTape(3)
    for _ in range(3):
        with tape:
            x = w * x
        states.append(x)
        tape.backward(x)
    assert [s.adjoints[v] for s, v in zip(tape.segments, states, strict=True)] == [0.25, 0.5, 1.0]


def test_adjoints_of_overlapping_windows_do_not_accumulate():
    found, _, _ = powers(3, 6)
    assert found == [1, 2, 3, 3, 3, 3]


def test_kept_adjoints_of_a_sweep():
    w, x, states = tg.Parameter(np.array(0.5)), np.array(1.0), []
    tape = tg.CapacitorTape(tg.Full())
    for _ in range(3):
        with tape:
            x = w * x
        states.append(x)
    tape.backward(x)
    sweep = tape.sweep(keep=states[:2])
    assert [float(sweep[v]) for v in states[:2]] == [0.25, 0.5]
    with pytest.raises(tg.ArgumentError, match="keep"):
        sweep[tg.constant(1.0)]


@pytest.mark.parametrize("weights", ["recorded", "current"])
def test_a_window_can_be_walked_printed_and_pushed_forward_through(weights):
    w, x, tape = tg.Parameter(np.array(0.5), name="w"), np.array(1.0), tg.CapacitorTape(3, weights=weights)
    for _ in range(5):
        with tape:
            x = w * x
    assert tape.pushforward({w: 1.0}, x) == 3 * 0.5**4
    assert [step.inputs for step in tape.walk(x)] == [("w", "v2"), ("w", "v1"), ("w", "v0")]
    assert str(tape).splitlines()[1].startswith("v1 = multiply(w, v0)")
    assert len(tape) == 3


# -- misuse --------------------------------------------------------------------------------------------


def test_a_loss_from_an_evicted_segment_is_named_with_its_segment():
    w, tape, losses = tg.Parameter(np.array(1.0)), tg.CapacitorTape(8), []
    for _ in range(16):
        with tape:
            losses.append(w * 1.0)
    with pytest.raises(tg.EvictedError) as caught:
        tape.backward(losses[2])
    assert str(caught.value) == (
        "CapacitorTape.backward: the loss was recorded in segment 3, and the oldest segment kept is 9.\n"
        "  window is 8. Call backward within 8 segments of the loss, or raise the window."
    )


def test_a_loss_that_would_be_evicted_unswept_is_an_error_that_drops_nothing():
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(tg.Sliding(3, stride=3))
    with tape:
        loss = w * 1.0
    assert tape.backward(loss) is None
    for _ in range(2):
        with tape:
            w * 1.0
    with (
        pytest.raises(tg.EvictedError, match="segment 1 holds a loss that was handed in and never swept"),
        tape,
    ):
        last = w * 2.0
    assert tape.sweep().losses == 1
    assert w.grad == 1
    with tape:
        w * 1.0
    assert len(tape.segments) == 3
    tape.backward(last)


def test_a_root_from_another_tape_or_from_none_is_refused():
    w, tape, other = tg.Parameter(np.array(1.0)), tg.CapacitorTape(2), tg.Tape()
    with tape:
        w * 1.0
    with other:
        foreign = w * 1.0
    for root in (foreign, w.value * 1.0, tg.constant(1.0), w * 1.0):
        with pytest.raises(tg.TapegradError, match="backward"):
            tape.backward(root)
    assert w.grad is None


def test_nothing_recorded_is_an_error():
    with pytest.raises(tg.RecordingError, match="nothing was recorded"):
        tg.CapacitorTape(3).backward()


def test_an_exception_inside_a_segment_rolls_it_back():
    _, tape, w = powers(3, 3)
    before = tape.segments
    with pytest.raises(ZeroDivisionError), tape:
        w * 2.0
        1 / 0
    assert tape.segments == before
    assert not tape.recording
    with tape:
        y = w * 2.0
    assert tape.backward(y).gradients[w] == 2


def test_a_rule_that_fails_in_a_sweep_leaves_losses_and_gradients_as_they_were(monkeypatch):
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(3, joint=lambda pending: 1 / 0)
    with tape:
        loss = w * w
    with pytest.raises(ZeroDivisionError):
        tape.backward(loss)
    assert w.grad is None
    tape.joint = None
    assert tape.backward(loss).gradients[w] == 2  # as if it had not been handed in
    assert w.grad == 2


def test_a_value_computed_outside_the_segments_warns_once_where_the_gradient_stops():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(5)
    with tape:
        x = w * 1.0
    y = x * 3.0
    with pytest.warns(tg.GradientStopsWarning, match="computed outside this tape's segments"):
        with tape:
            z = y * w
        tape.backward(z)
    assert w.grad == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = x * 3.0
        with tape:
            z = y * w
        tape.backward(z)


@pytest.mark.parametrize("constant", ["paused", "stopped", "leaf"])
def test_a_constant_that_was_meant_warns_of_nothing(constant):
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(5)
    with tape:
        x = w * 1.0
        if constant == "paused":
            with tape.pause():
                y = x * 3.0
    if constant == "stopped":
        y = tg.stop_gradient(x) * 3.0
    if constant == "leaf":
        y = w * 3.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tape:
            z = y * w
        tape.backward(z)
    assert w.grad == 6


def test_record_true_is_refused_with_the_way_out():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(5)
    with tape:
        y = w * w
    with pytest.raises(tg.ArgumentError, match="plain Tape"):
        tape.backward(y, record=True)


def test_reset_forgets_everything():
    _, tape, w = powers(tg.Sliding(4, stride=4), 2)
    tape.reset()
    assert tape.segments == ()
    assert tape.sweep() is None
    assert powers(tape.schedule, 4)[0][-1] == 10
    with tape:
        y = w * 1.0
        with pytest.raises(tg.RecordingError, match="a segment is open"):
            tape.reset()
    assert tape.backward(y) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tg.Sliding(0), "Sliding: `window` must be a whole number of at least 1, and 0 came."),
        (lambda: tg.Sliding(2.5), "Sliding: `window` must be a whole number of at least 1, and 2.5 came."),
        (
            lambda: tg.Sliding(3, stride=0),
            "Sliding: `stride` must be a whole number of at least 1, and 0 came.",
        ),
        (lambda: tg.Chunked(-1), "Chunked: `window` must be a whole number of at least 1, and -1 came."),
        (
            lambda: tg.Sliding(3, stride=4),
            "Sliding: `stride` must not exceed `window`: window is 3, stride 4.\n"
            "  Losses handed in between two sweeps would leave the window unswept. Use stride <= 3.",
        ),
        (
            lambda: tg.CapacitorTape("20"),
            "CapacitorTape: `schedule` must be a number of segments or a schedule, and str '20' came.\n"
            "  Write CapacitorTape(20), or CapacitorTape(tg.Sliding(20, stride=5)).",
        ),
        (
            lambda: tg.CapacitorTape(3, weights="new"),
            "CapacitorTape: `weights` must be 'recorded', 'current' or 'replay', and str 'new' came.",
        ),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(tg.ArgumentError) as caught:
        make()
    assert str(caught.value) == message


# -- memory ----------------------------------------------------------------------------------------------


def test_the_memory_of_a_window_is_bounded_and_can_be_read():
    model, tape, sizes = Model("lstm"), tg.CapacitorTape(4), []
    state = model.cell.initial_state(BATCH)
    for x, target in stream(20):
        with tape:
            logits, state = model(x, state)
            loss = tg.softmax_cross_entropy(logits, target)
        tape.backward(loss)
        sizes.append(tape.nbytes)
    assert len(tape) == 4 * len(tape.segments[0])
    assert sizes[0] < sizes[1] < sizes[3]
    assert len(set(sizes[4:])) == 1


def test_an_evicted_segment_is_freed_at_once_without_the_collector():
    gc.disable()
    try:
        w, tape = tg.Parameter(np.ones(3)), tg.CapacitorTape(2)
        with tape:
            y = w * 2.0
        kept = weakref.ref(tape._closed[0])
        del y
        for _ in range(2):
            with tape:
                w * 2.0
        assert kept() is None
    finally:
        gc.enable()


# -- traps -----------------------------------------------------------------------------------------------


def test_a_loss_handed_in_after_its_chunk_was_swept_is_not_lost():
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(tg.Chunked(1))
    with tape:
        tape.backward(w * 2.0)
        tape.backward(w * 5.0)
    assert w.grad == 2
    assert tape.sweep().losses == 1
    assert w.grad == 7


def test_a_joint_may_work_in_place_without_touching_anything_else():
    def run(joint):
        w = tg.Parameter(np.array([1.0, 2.0]))
        tape = tg.CapacitorTape(3, joint=joint)
        with tape:
            a, b = w * 2.0, w * 3.0
        with tape:
            loss = tg.sum(a + b)  # one array is the adjoint of both
        sweep = tape.backward(loss)
        return sweep.gradients[w].tolist(), sweep.joint_norms

    def in_place(pending):
        for slot in pending:
            pending[slot] *= 0.5
        return pending

    assert run(in_place) == run(lambda pending: {s: ct * 0.5 for s, ct in pending.items()})
    assert run(in_place) == ([2.5, 2.5], [2.0, 0.0])


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (lambda pending: None, "joint: it must return a dict of adjoints by slot"),
        (lambda pending: {**pending, 10**9: np.ones(())}, "joint: it must return a dict of adjoints by slot"),
        (
            lambda pending: dict.fromkeys(pending, np.ones(5)),
            r"joint: an adjoint must keep its shape: it was \(\), and \(5,\)",
        ),
    ],
)
def test_a_joint_that_returns_nonsense_is_named(joint, message):
    with pytest.raises(tg.ArgumentError, match=message):
        powers(3, 3, joint=joint)


@pytest.mark.parametrize("joint", ["half", [1.0], True, float("nan"), np.ones(2)])
def test_a_joint_that_makes_no_sense_is_refused_at_once(joint):
    with pytest.raises(tg.ArgumentError, match="`joint` must be None, a finite number, or a function"):
        tg.CapacitorTape(3, joint=joint)


def test_the_adjoint_of_a_value_from_between_segments_can_be_kept_and_still_warns():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(5)
    with tape:
        x = w * 1.0
    y = x * 3.0
    with tape:
        z = y * w
    with pytest.warns(tg.GradientStopsWarning):
        sweep = tape.backward(z, keep=[y])
    assert sweep[y] == 2


def test_a_sweep_keeps_all_its_losses_and_what_earlier_calls_asked_for():
    w, x, tape, seen = (
        tg.Parameter(np.array(2.0)),
        np.array(1.0),
        tg.CapacitorTape(tg.Sliding(4, stride=3)),
        [],
    )
    for _ in range(3):
        with tape:
            state = w * x
            loss = state * 10.0
        seen.append((state, loss))
        x = state
        sweep = tape.backward(loss, keep=[state])
    assert [float(sweep[loss]) for _, loss in seen] == [1, 1, 1]
    assert [float(sweep[state]) for state, _ in seen] == [10 + 20 + 40, 10 + 20, 10]


def test_without_a_root_the_newest_segment_must_hold_it():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(3)
    with tape:
        w * w
    assert tape.backward().gradients[w] == 4
    with tape:
        pass
    with pytest.raises(tg.RecordingError, match="nothing was recorded"):
        tape.backward()
    assert w.grad == 4


def test_a_seed_that_is_a_variable_is_taken_as_an_array():
    w, tape, outer = tg.Parameter(np.array(3.0)), tg.CapacitorTape(3), tg.Tape()
    with tape:
        y = w * w
    with outer:
        sweep = tape.backward(y, tg.Variable(2.0), keep=[w])
    assert len(outer) == 0
    assert type(sweep[w]) is np.ndarray
    assert w.grad == 12


def test_a_leaf_is_no_root_of_an_empty_window():
    with pytest.raises(tg.RecordingError, match="nothing was recorded"):
        tg.CapacitorTape(2).backward(tg.Variable(1.0))


def test_a_loss_of_a_forgotten_chunk_is_named_with_its_segment():
    w, tape, losses = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.Chunked(2)), []
    for _ in range(3):
        with tape:
            losses.append(w * 1.0)
        tape.backward(losses[-1])
    with pytest.raises(tg.EvictedError, match="recorded in segment 1, which a sweep has forgotten"):
        tape.backward(losses[0])


def test_a_numpy_integer_is_a_window():
    assert tg.CapacitorTape(np.int64(3)).schedule == tg.Sliding(3)
    assert tg.Sliding(np.int32(4), stride=np.int64(2)).window == 4


def test_gradients_by_leaf_are_zero_where_nothing_arrived():
    w, other, tape = tg.Parameter(np.ones(2)), tg.Parameter(np.ones(3)), tg.CapacitorTape(2)
    with tape:
        loss = tg.sum(w)
    gradients = tape.backward(loss).gradients
    assert (w in gradients, other in gradients, len(gradients)) == (True, False, 1)
    np.testing.assert_array_equal(gradients[other], np.zeros(3))
    assert gradients.get(other) is None
    with pytest.raises(TypeError, match="not iterable"):
        iter(gradients)


def test_a_loss_from_before_the_window_handed_in_while_a_segment_is_open_is_named():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(1)
    with tape:
        y = w * w
    with tape:
        w * 3.0
        with pytest.raises(tg.EvictedError, match="the loss was recorded in segment 1"):
            tape.backward(y)


def test_one_loss_given_twice_in_a_call_is_an_error():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(2)
    with tape:
        y = w * w
    with pytest.raises(tg.ArgumentError, match="this loss was handed in before"):
        tape.backward([y, y])
    assert tape.backward(y).gradients[w] == 4.0


def test_a_warning_turned_into_an_error_counts_no_loss_twice():
    w, tape = tg.Parameter(np.array(1.0)), tg.CapacitorTape(3)
    with tape:
        x = w * 1.0
    y = x * 2.0  # outside
    with tape:
        z = y * w
    with pytest.raises(tg.GradientStopsWarning):
        tape.backward(z)
    assert tape.sweep() is None
    assert w.grad == 2.0


def test_a_schedule_of_ones_own_must_say_when_it_is_due_and_how_far_it_goes():
    class Silent(tg.Schedule):
        window = 3

    class Empty(tg.Schedule):
        window = 0

        def due(self, index, swept):
            return True

    class Every(tg.Schedule):
        def due(self, index, swept):
            return index % 3 == 0

    with pytest.raises(tg.ArgumentError, match=r"Silent: a schedule must define due\(index, swept\)"):
        tg.CapacitorTape(Silent())
    with pytest.raises(
        tg.ArgumentError, match="Empty: `window` must be a whole number of at least 1, and 0 came"
    ):
        tg.CapacitorTape(3).capacitor(Empty())
    assert powers(Every(), 6)[0] == [None, None, 6.0, None, None, 15.0]


def test_a_class_is_no_joint():
    with pytest.raises(tg.ArgumentError, match="`joint` must be None, a finite number, or a function"):
        tg.CapacitorTape(3, joint=tg.ClipJoint)
