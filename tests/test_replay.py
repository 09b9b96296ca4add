"""Windows that are run again with today's weights."""

from importlib.util import find_spec

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim

CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
N_IN, N_HIDDEN, N_OUT, BATCH, STEPS = 3, 4, 5, 2, 11
WINDOWS = [(1, 1), (3, 1), (3, 3), (5, 2), (20, 20)]


class Model(nn.Module):
    def __init__(self, cell):
        rng = np.random.default_rng(0)
        self.cell = CELLS[cell](N_IN, N_HIDDEN, dtype=np.float64, rng=rng)
        self.readout = nn.Linear(N_HIDDEN, N_OUT, dtype=np.float64, rng=rng)


def stream():
    rng = np.random.default_rng(1)
    return [(rng.standard_normal((BATCH, N_IN)), rng.integers(0, N_OUT, BATCH)) for _ in range(STEPS)]


def values(state):
    return tuple(s.value.copy() for s in state) if isinstance(state, tuple) else state.value.copy()


def run(cell, window, stride, lr=0.3, weights="replay", take_state=False, compile=True):
    """Sweeps as (step, gradients, re-run state, weights), and for every step the state that entered it."""
    schedule = tg.Sliding(window, stride=stride)
    model, tape = Model(cell), tg.CapacitorTape(schedule, weights=weights, compile=compile)
    optimizer, state = optim.SGD(model.parameters(), lr), model.cell.initial_state(BATCH)
    sweeps, entered = [], []
    for t, (x, target) in enumerate(stream()):
        entered.append(values(state))
        with tape:
            out, state = model.cell(x, state)
            loss = tg.softmax_cross_entropy(model.readout(out), target)
        if sweep := tape.backward(loss):
            gradients = {name: sweep.gradients[p] for name, p in model.named_parameters()}
            rerun = None
            if weights == "replay":
                rerun = (
                    tuple(sweep.state[s] for s in state) if isinstance(state, tuple) else sweep.state[state]
                )
                if take_state:
                    state = rerun
            sweeps.append((t, gradients, rerun, model.state_dict()))
            optimizer.step()
            optimizer.zero_grad()
    return sweeps, entered


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_a_replayed_window_is_the_window_run_again_with_todays_weights(cell, window, stride):
    sweeps, entered = run(cell, window, stride)
    for t, gradients, rerun, weights in sweeps:
        model, tape, first = Model(cell), tg.Tape(), max(0, t + 1 - window)
        model.load_state_dict(weights)
        state = entered[first]
        state = tuple(map(tg.constant, state)) if isinstance(state, tuple) else tg.constant(state)
        losses = []
        with tape:
            for s in range(first, t + 1):
                x, target = stream()[s]
                out, state = model.cell(x, state)
                if s > t - stride:
                    losses.append(tg.softmax_cross_entropy(model.readout(out), target))
        tape.backward(losses)
        for name, p in model.named_parameters():
            np.testing.assert_array_equal(gradients[name], p.grad, err_msg=f"{name} at step {t}")
        for a, b in zip(np.atleast_1d(values(rerun)), np.atleast_1d(values(state)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("compile", [False, "exact", True])
def test_all_three_weights_agree_at_learning_rate_0_and_differ_while_learning(compile):
    rounding = {"rtol": 1e-11, "atol": 1e-16} if compile is True else {"rtol": 0, "atol": 0}
    for lr, agree in ((0.0, True), (0.3, False)):
        one, two, three = (
            run("lstm", 4, 1, lr=lr, weights=w, compile=compile)[0] for w in ("recorded", "current", "replay")
        )
        for other in (two, three):
            same = all(
                np.allclose(a[1][n], b[1][n], **rounding)
                for a, b in zip(one, other, strict=True)
                for n in a[1]
            )
            assert same is agree


def test_the_state_that_the_user_holds_is_unchanged_and_the_rerun_one_may_be_taken_instead():
    kept, taken = run("gru", 4, 2)[0], run("gru", 4, 2, take_state=True)[0]
    assert np.array_equal(kept[0][1]["readout.weight"], taken[0][1]["readout.weight"])
    assert not np.array_equal(kept[-1][1]["readout.weight"], taken[-1][1]["readout.weight"])


def test_branches_constants_and_masks_stay_as_recorded():
    w, tape, rng = (
        tg.Parameter(np.array([2.0, -1.0])),
        tg.CapacitorTape(2, weights="replay"),
        np.random.default_rng(0),
    )
    with tape:
        mask = rng.random(2) < 0.5  # a sample
        y = w * 3.0 if w[0] > 0 else w * 5.0  # a branch
        loss = tg.sum(tg.where(mask, y, tg.stop_gradient(w) * w))
    w.value = np.array([-2.0, 4.0])
    sweep = tape.backward(loss)
    np.testing.assert_array_equal(sweep.gradients[w], np.where(mask, 3.0, [2.0, -1.0]))
    np.testing.assert_array_equal(sweep.state[y].value, [-6.0, 12.0])
    np.testing.assert_array_equal(y.value, [6.0, -3.0])


def test_an_input_buffer_that_the_caller_reuses_is_replayed_as_it_was():
    w, tape, buffer = (
        tg.Parameter(np.array([1.0, 1.0])),
        tg.CapacitorTape(tg.Sliding(3, stride=3), weights="replay"),
        np.zeros(2),
    )
    for t in range(3):
        buffer[:] = t + 1
        with tape:
            loss = tg.sum(w * buffer)
        sweep = tape.backward(loss)
    assert sweep.gradients[w].tolist() == [6.0, 6.0]


@pytest.mark.parametrize("cell", CELLS)
def test_replay_keeps_what_enters_the_segments_and_nothing_else(cell):
    def held(weights):
        model, tape = Model(cell), tg.CapacitorTape(10, weights=weights)
        state = model.cell.initial_state(BATCH)
        for x, target in stream():
            with tape:
                out, state = model.cell(x, state)
                tg.softmax_cross_entropy(model.readout(out), target)
            for p in model.parameters():
                p.rebind(p._array + 0.0)
        return tape.nbytes

    assert held("replay") < 0.5 * held("current") < held("recorded")


def test_every_registered_op_can_be_run_again():
    """A window with one op in it is run again after its leaves have moved, and compared with the op itself."""
    from tapegrad.core.primitive import REGISTRY

    rng, ran = np.random.default_rng(0), 0
    for p in REGISTRY.values():
        if not (p.body.__module__ or "").startswith("tapegrad."):
            continue  # an op of another test
        if p.body.__module__ in ("tapegrad.ops.bessel", "tapegrad.ops.special") and not find_spec("scipy"):
            continue
        for case in p.cases or ():
            if p.variadic or any(not isinstance(shape, tuple) for shape in case.inputs):
                continue
            low, high = p.domain if isinstance(p.domain[0], float) else (-1.0, 1.0)
            arrays = [rng.uniform(low, high, shape) for shape in case.inputs]
            moved = [rng.uniform(low, high, shape) for shape in case.inputs]
            leaves = [tg.Variable(a) for a in arrays]
            tape = tg.CapacitorTape(1, weights="replay")
            with tape:
                given = [
                    v if name in p.differentiable else v.value
                    for name, v in zip(p.arguments, leaves, strict=True)
                ]
                y = p.function(*given, **case.statics)
                outputs = list(y) if isinstance(y, tuple) else [y]
                outputs = [o for o in outputs if isinstance(o, tg.Variable)]
            for v, a in zip(leaves, moved, strict=True):
                v.value = a
            sweep = tape.backward(outputs, [np.ones(o.shape) for o in outputs])
            fixed = [
                a if name in p.differentiable else b
                for name, a, b in zip(p.arguments, moved, arrays, strict=True)
            ]
            expected = p.function(*fixed, **case.statics)
            for o, e in zip(outputs, expected if isinstance(expected, tuple) else [expected], strict=False):
                np.testing.assert_array_equal(sweep.state[o].value, e)
            ran += 1
    assert ran >= 20


def test_a_value_computed_in_a_pause_is_noted_as_it_is():
    w, tape, outer = tg.Parameter(np.array(2.0)), tg.CapacitorTape(2, weights="replay"), tg.Tape()
    with outer, tape:
        with tape.pause():
            h = w * 3.0
        y = w * h
    with pytest.warns(tg.GradientStopsWarning):
        assert tape.backward(y).gradients[w] == 6.0


def test_an_open_segment_replays_what_its_windows_reach():
    found = []
    for stays_open in (False, True):
        w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.Sliding(3), weights="replay")
        part = tape.capacitor(1)
        with tape:
            h = part.record(tg.multiply, w, 3.0)
        w.value = np.array(5.0)
        tape.begin()
        y = h * w
        if not stays_open:
            tape.stop()
        found.append(float(tape.backward(y).gradients[w]))
        if stays_open:
            tape.stop()
    assert found == [6.0, 6.0]
