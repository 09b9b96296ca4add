"""Captured loops on the stand-in for CuPy, against the same loops on the host. See `strict_cupy.py` for what it plays.

During a capture the stand-in computes nothing; a launch computes what was queued, in the memory it was queued for.
So a graph that reads another step's memory, or memory that was given away, shows here as it would on a device.
"""

import contextlib
import gc
import warnings

import numpy as np
import pytest
from tapegrad.kernels.cuda import blas, model, source

import fake_cublas
import strict_cupy
import tapegrad as tg
from tapegrad.backend import capture
from tapegrad.program import arenas, graph
from tapegrad.program.fitting import period_of

F32, F64 = np.float32, np.float64
CELLS = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}
SCHEDULES = {
    "sliding": tg.Sliding(4),
    "every second": tg.Sliding(5, stride=2),
    "chunks": tg.Chunked(3),
    "one": tg.Sliding(1),
}


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    source.compiled.cache_clear()
    monkeypatch.setattr(model, "WAY", "generic")  # by rules; see test_device_window.py for the others
    with strict_cupy.installed() as module:
        library = fake_cublas.Library()
        monkeypatch.setattr(blas, "loaded_library", lambda: library)
        yield module
        capture.LATEST.clear()  # handles of this library
        gc.collect()
        assert not library.problems
    source.compiled.cache_clear()


class Loop:
    """A loop with a cell, a readout and a loss, on the host or on the device."""

    def __init__(
        self,
        device,
        cell="lstm",
        schedule="sliding",
        weights="current",
        optimizer="sgd",
        dtype=F64,
        captured=None,
    ):
        self.device, self.dtype = device, dtype
        self.cell = CELLS[cell](3, 4, rng=0, dtype=dtype).to(device)
        self.readout = tg.nn.Linear(4, 5, rng=1, dtype=dtype).to(device)
        self.parameters = parameters = [*self.cell.parameters(), *self.readout.parameters()]
        made = {"sgd": tg.optim.SGD, "adam": tg.optim.Adam}[optimizer]
        self.optimizer = made(parameters, 0.05)
        self.tape = tg.CapacitorTape(SCHEDULES.get(schedule, schedule), weights=weights)
        self.state = self.initial()
        captured = device != "cpu" if captured is None else captured
        self.step = tg.capture(self.body) if captured else self.body
        self.extra = None  # what else the body is to do

    def initial(self):
        return self.cell.initial_state(2)

    def body(self, x, target, state):
        with self.tape:
            out, state = self.cell(x, state)
            loss = tg.softmax_cross_entropy(self.readout(out), target)
        if self.extra:
            self.extra(self, x, loss)
        if self.tape.backward(loss):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, state

    def run(self, data):
        """The losses, as numbers of the host's."""
        losses = []
        for x, target in data:
            x, target = (tg.asarray(v, device=self.device) for v in (x, target))
            loss, self.state = self.step(x, target, self.state)
            losses.append(loss)
        return [float(on_host(loss)) for loss in losses]

    def weights(self):
        return [on_host(p) for p in self.parameters]


def on_host(v):
    array = getattr(v, "_array", v)
    return array.get() if hasattr(array, "get") else array


def stream(steps, dtype=F64, seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((2, 3)).astype(dtype), rng.integers(0, 5, 2)) for _ in range(steps)]


def both(steps=40, meanwhile=None, **how):
    """The loop on the device, after as many steps as the one on the host, with equal results."""
    data = stream(steps, how.get("dtype", F64))
    there, here = Loop("cuda", **how), Loop("cpu", **how)
    if meanwhile is None:
        found, expected = there.run(data), here.run(data)
    else:
        found, expected = meanwhile(there, data), meanwhile(here, data)
    close(found, expected, how.get("dtype", F64))
    for a, b in zip(there.weights(), here.weights(), strict=True):
        close(a, b, how.get("dtype", F64))
    return there


def close(found, expected, dtype=F64):
    np.testing.assert_allclose(
        found, expected, rtol=1e-5 if dtype is F32 else 1e-11, atol=1e-5 if dtype is F32 else 1e-12
    )


@pytest.mark.parametrize("weights", ["current", "recorded"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_loop_gives_what_the_host_gives(cell, schedule, weights):
    loop = both(cell=cell, schedule=schedule, weights=weights)
    assert loop.step.reason == "" and loop.step.launches > 5
    assert loop.step.graphs == period_of(SCHEDULES[schedule])


@pytest.mark.parametrize(("optimizer", "dtype"), [("sgd", F32), ("adam", F64)])
def test_in_single_precision_and_with_averages(optimizer, dtype):
    loop = both(optimizer=optimizer, dtype=dtype)
    assert loop.step.graphs == 1 and loop.step.reason == ""


def test_one_graph_serves_every_phase_of_the_window():
    loop = both(steps=60, schedule="sliding")
    assert loop.step.graphs == 1 and loop.step.launches > 40


def test_a_launch_takes_no_new_memory(cupy):
    loop = Loop("cuda")
    loop.run(stream(30))
    pool = cupy.get_default_memory_pool()
    data = [tuple(tg.asarray(v, device="cuda") for v in pair) for pair in stream(5)]

    def launched(times):
        for i in range(times):
            loss, loop.state = loop.step(*data[i % 5], loop.state)
        del loss
        return pool.used_bytes(), pool.total_bytes()

    assert launched(5) == launched(10_000)
    assert loop.step.launches > 10_000


def test_what_is_returned_stays_as_it_is():
    loop = Loop("cuda")
    data = [tuple(tg.asarray(v, device="cuda") for v in pair) for pair in stream(40)]
    losses, seen = [], []
    for x, target in data:
        loss, loop.state = loop.step(x, target, loop.state)
        losses.append(loss)
        seen.append(on_host(loss).copy())
    assert loop.step.launches > 20
    assert [float(on_host(loss)) for loss in losses] == [float(loss) for loss in seen]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_learning_rate_reaches_the_next_launch(optimizer):
    def changing(loop, data):
        losses = []
        for i, pair in enumerate(data):
            loop.optimizer.lr = 0.05 / (1 + i // 5)
            losses += loop.run([pair])
        return losses

    assert both(meanwhile=changing, optimizer=optimizer, steps=50).step.launches > 20


def test_a_state_that_is_new_begins_a_window_as_it_would_without_a_graph():
    def with_resets(loop, data):
        losses = []
        for i, pair in enumerate(data):
            if i in (25, 55):
                loop.tape.reset()
                loop.state = loop.initial()
            losses += loop.run([pair])
        return losses

    loop = both(meanwhile=with_resets, steps=90)
    assert loop.step.graphs == 1 and loop.step.reason == ""  # captured again


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_loop_leaves_its_graphs_in_any_phase_with_its_window_as_it_is(schedule):
    for extra in range(4):

        def leaving(loop, data, extra=extra):
            losses = loop.run(data[: 30 + extra])
            if loop.device == "cuda":
                assert loop.step.graphs
                loop.step.release()
                assert not loop.step.graphs
            return losses + loop.run(data[30 + extra :])

        assert both(meanwhile=leaving, schedule=schedule, steps=36).step.reason == ""


def test_shapes_and_settings_that_change_are_met_eagerly():
    def changing(loop, data):
        losses = loop.run(data[:25])
        loop.tape.reset()
        loop.state = loop.cell.initial_state(1)
        losses += loop.run([(x[:1], target[:1]) for x, target in data[25:30]])
        loop.tape.reset()
        loop.state = loop.initial()
        return losses + loop.run(data[30:])

    assert both(meanwhile=changing, steps=60).step.graphs == 1


def test_plain_arguments_stay_the_same_or_the_step_is_eager(cupy):
    calls = []

    @tg.capture
    def step(x, state, scale, mode="a"):
        calls.append(scale)
        with tape:
            state = tg.tanh(x * scale + state * w)
            loss = tg.sum(tg.square(state))
        if tape.backward(loss):
            optimizer.step()
            optimizer.zero_grad()
        return loss, state

    tape, w = tg.CapacitorTape(2, weights="current"), tg.Parameter(cupy.ones(3))
    optimizer = tg.optim.SGD([w], 0.1)
    state = tg.constant(cupy.zeros(3))
    for _ in range(20):
        _, state = step(cupy.ones(3), state, 0.5, mode="b")
    assert step.graphs == 1
    many = len(calls)
    _, state = step(cupy.ones(3), state, 0.25, mode="b")
    assert len(calls) == many + 1 and not step.graphs and step.reason == ""


def test_arguments_go_by_name_in_any_order_and_nest(cupy):
    tape, w = tg.CapacitorTape(2, weights="current"), tg.Parameter(cupy.ones(3))
    seen = []

    @tg.capture
    def step(batch, *, state, bias=None):
        with tape:
            new = tg.tanh(batch["x"] * w + batch["y"] + state["h"])
            loss = tg.sum(tg.square(new))
        tape.backward(loss)
        w.grad = None
        return {"loss": loss, "state": {"h": new}, "seen": new * 1.0, "none": None}

    def expected(x, y, h):
        return np.tanh(x + y + h)

    state, h = {"h": tg.constant(cupy.zeros(3))}, np.zeros(3)
    for i, x in enumerate(np.random.default_rng(0).standard_normal((40, 3))):
        x_there, y_there = cupy.asarray(x), cupy.asarray(-0.5 * x * i / 40)
        swapped = {"y": y_there, "x": x_there} if i % 3 else {"x": x_there, "y": y_there}
        returned = step(state=state, batch=swapped) if i % 2 else step(swapped, state=state)
        state, h = returned["state"], expected(x, -0.5 * x * i / 40, h)
        seen.append((returned["seen"], h))
        assert returned["none"] is None
    assert step.graphs == 0 and step.reason == ""  # by position and by name in turn: never the same twice
    for i in range(30):
        swapped = {"y": y_there, "x": x_there} if i % 3 else {"x": x_there, "y": y_there}
        returned = step(batch=swapped, state=state)
        state, h = returned["state"], expected(x, -0.5 * x * 39 / 40, h)
        seen.append((returned["seen"], h))
    assert step.graphs == 1
    for found, truth in seen:
        close(on_host(found), truth)


def test_an_argument_that_is_taken_as_a_constant_is_that_of_its_own_step():
    def run(device):
        w = tg.Parameter(np.ones(3))
        w._array = tg.asarray(w._array, device=device)
        tape, optimizer = tg.CapacitorTape(3, weights="current"), tg.optim.SGD([w], 0.1)

        @tg.capture
        def step(x, state):
            given = tg.reshape(tg.constant(x), (3,))
            with tape:
                state = tg.tanh(given * w + state)
                loss = tg.sum(tg.square(state))
            tape.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            return loss, state

        state = tg.constant(tg.asarray(np.zeros(3), device=device))
        for x in np.random.default_rng(0).standard_normal((30, 3)):
            _, state = step(tg.asarray(x, device=device), state)
        return step, on_host(w)

    step, w = run("cuda")
    close(w, run("cpu")[1])
    assert step.graphs == 1


# -- other loops ---------------------------------------------------------------------------------------------


def plain_cell(make):
    """An LSTM written in plain ops, with a readout and a limit on the gradients."""
    w, out = make((7, 16), 0), make((4, 5), 1)

    def forward(x, state):
        h, c = state
        i, f, g, o = tg.split(tg.concat([x, h], axis=1) @ w, 4, axis=1)
        c = tg.sigmoid(f) * c + tg.sigmoid(i) * tg.tanh(g)
        h = tg.sigmoid(o) * tg.tanh(c)
        return h @ out, (h, c)

    return [w, out], forward, lambda params: tg.optim.clip_by_norm(params, 0.5)


def two_layers(make):
    """Two layers of which the upper reads the lower, a bias and a residual connection."""
    a, b, u, v = make((3, 4), 0), make((4, 4), 1), make((4, 4), 2), make((4, 5), 3)

    def forward(x, state):
        lower, upper = state
        lower = tg.tanh(x @ a + lower @ b)
        upper = tg.tanh(lower @ u + 0.5 * upper) + lower
        return upper @ v, (lower, upper)

    return [a, b, u, v], forward, None


def delayed(make):
    """What a segment keeps is older than its window: the state of two steps ago."""
    w, u, v = make((3, 4), 0), make((4, 4), 1), make((4, 5), 2)

    def forward(x, state):
        last, before = state
        new = tg.tanh(x @ w + before @ u)
        return new @ v, (new, last)

    return [w, u, v], forward, None


def run(device, body, tape, steps=60):
    """The step and the weights after a loop of `body`."""

    def make(shape, seed):
        p = tg.Parameter(np.random.default_rng(seed).standard_normal(shape) * 0.4)
        p._array = tg.asarray(p._array, device=device)
        return p

    params, forward, limit = body(make)
    optimizer = tg.optim.Adam(params, 0.02)

    @tg.capture
    def step(x, target, state):
        with tape:
            y, state = forward(x, state)
            loss = tg.softmax_cross_entropy(y, target)
        if tape.backward(loss):
            if limit:
                limit(params)
            optimizer.step()
            optimizer.zero_grad()
        return loss, state

    state = tuple(tg.constant(tg.asarray(np.zeros((2, 4)), device=device)) for _ in range(2))
    losses = []
    for x, target in stream(steps):
        loss, state = step(*(tg.asarray(v, device=device) for v in (x, target)), state)
        losses.append(loss)
    return step, [float(on_host(loss)) for loss in losses], [on_host(p) for p in params]


@pytest.mark.parametrize("body", [plain_cell, two_layers])
@pytest.mark.parametrize(
    "how",
    [{}, {"weights": "current"}, {"joint": 0.5, "weights": "current"}, {"schedule": tg.Sliding(6, stride=4)}],
    ids=["recorded", "current", "halved at joints", "every fourth"],
)
def test_loops_of_any_ops_are_captured(body, how):
    (step, *found), (_, *expected) = (
        run(device, body, tg.CapacitorTape(**{"schedule": 5, **how})) for device in ("cuda", "cpu")
    )
    assert step.graphs and step.reason == ""
    close(found[0], expected[0])
    for a, b in zip(found[1], expected[1], strict=True):
        close(a, b)


def test_a_window_with_parts_is_captured():
    def with_parts(device):
        tape = tg.CapacitorTape(2, weights="current")
        slow, fast = tape.capacitor(6), tape.capacitor(tg.Sliding(4, stride=2))

        def body(make):
            params, _, limit = two_layers(make)
            a, b, u, v = params

            def forward(x, state):
                lower, upper = state
                with slow:
                    lower = tg.tanh(x @ a + lower @ b)
                with fast:
                    upper = tg.tanh(lower @ u + 0.5 * upper)
                return upper @ v, (lower, upper)

            return params, forward, limit

        return run(device, body, tape)

    (step, *found), (_, *expected) = with_parts("cuda"), with_parts("cpu")
    assert step.graphs == 2, step.reason
    close(found[0], expected[0])


def test_what_is_kept_longer_than_the_window_is_refused():
    (step, *found), (_, *expected) = (
        run(device, delayed, tg.CapacitorTape(3, weights="current")) for device in ("cuda", "cpu")
    )
    close(found[0], expected[0])
    assert not step.graphs and "longer than its window" in step.reason


@pytest.mark.parametrize("places", [0, 1, 2])
def test_a_move_that_leaves_places_out_is_noticed(monkeypatch, places):
    moved = arenas.Arenas.age
    monkeypatch.setattr(arenas.Arenas, "age", lambda self, n, by: moved(self, min(n, places), by))
    step, *found = run("cuda", two_layers, tg.CapacitorTape(4, weights="current"))
    _, *expected = run("cpu", two_layers, tg.CapacitorTape(4, weights="current"))
    close(found[0], expected[0])
    assert not step.graphs and "differs" in step.reason


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("at", range(1, 13, 2))
def test_a_step_that_breaks_off_leaves_the_window_as_it_would_without_capture(at, resets):
    def breaking(loop, data):
        losses, zero_grad = [], loop.optimizer.zero_grad

        def broken():
            zero_grad()
            raise RuntimeError("on purpose")

        for i, pair in enumerate(data):
            if i == at:
                loop.optimizer.zero_grad = broken
                with pytest.raises(RuntimeError, match="on purpose"):
                    loop.run([pair])
                loop.optimizer.zero_grad = zero_grad
                if resets:
                    loop.tape.reset()
                    loop.state = loop.initial()
            else:
                losses += loop.run([pair])
        return losses

    loop = both(meanwhile=breaking, schedule="every second", steps=60)
    assert loop.step.graphs == 2 and loop.step.reason == ""


# -- what happens between two calls -------------------------------------------------------------------------


def assign(loop, i):
    p = loop.parameters[1]
    p.value = tg.asarray(on_host(p) * 0.9, device=loop.device)


def assign_all(loop, i):
    for p in loop.parameters:
        assign_one = on_host(p) * (1 + 0.01 * i)
        p.value = tg.asarray(assign_one, device=loop.device)


def step_outside(loop, i):
    for p in loop.parameters:
        p.grad = tg.asarray(np.full(p.shape, 0.1), device=loop.device)
    loop.optimizer.step()
    loop.optimizer.zero_grad()


def reset_alone(loop, i):
    loop.tape.reset()  # and the state goes on, as a constant


def sweep_now(loop, i):
    if loop.tape.sweep():
        loop.optimizer.step()
        loop.optimizer.zero_grad()


def segment_outside(loop, i):
    x, target = (tg.asarray(v, device=loop.device) for v in stream(1, seed=i)[0])
    with loop.tape:
        out, loop.state = loop.cell(x, loop.state)
        loss = tg.softmax_cross_entropy(loop.readout(out), target)
    if loop.tape.backward(loss):
        loop.optimizer.step()
        loop.optimizer.zero_grad()


def rewind(loop, i):
    loop.state = loop.states[-4]


def look(loop, i):
    assert str(loop.tape) and loop.tape.nbytes + len(loop.tape.segments) >= 0
    assert loop.tape.schedule is not None


def other_momentum(loop, i):
    loop.optimizer.momentum = 0.5


@pytest.mark.parametrize("weights", ["current", "recorded"])
@pytest.mark.parametrize("schedule", ["sliding", "every second", "chunks"])
@pytest.mark.parametrize(
    "event",
    [assign, assign_all, step_outside, reset_alone, sweep_now, segment_outside, rewind, look, other_momentum],
)
def test_what_happens_between_calls_is_as_without_a_graph(event, schedule, weights):
    """In a rehearsal, and between launches in several phases."""

    def with_events(loop, data):
        losses, loop.states = [], []
        for i, pair in enumerate(data):
            if i in (9, 40, 41, 43, 75):
                with quiet():
                    event(loop, i)
            with quiet():
                losses += loop.run([pair])
            loop.states.append(loop.state)
        return losses

    loop = both(meanwhile=with_events, schedule=schedule, weights=weights, steps=110)
    assert loop.step.graphs and loop.step.reason == ""


@contextlib.contextmanager
def quiet():
    """Gradients that stop where a state is used again are told of on both sides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.GradientStopsWarning)
        yield


@pytest.mark.parametrize("at", [3, 4, 5, 8, 12, 30])
def test_a_new_state_at_any_call(at):
    def renewed(loop, data):
        losses = loop.run(data[:at])
        loop.state = loop.initial()
        return losses + loop.run(data[at:])

    with quiet():
        assert both(meanwhile=renewed, steps=60).step.graphs == 1


def test_a_state_that_is_returned_twice_stays_connected():
    class Twice(Loop):
        def body(self, x, target, state):
            loss, (h, c) = super().body(x, target, state)
            return loss, h, (h, c)

        def run(self, data):
            losses = []
            for x, target in data:
                x, target = (tg.asarray(v, device=self.device) for v in (x, target))
                loss, out, (_, c) = self.step(x, target, self.state)
                self.state = (out, c)
                losses.append(loss)
            return [float(on_host(loss)) for loss in losses]

    there, here = Twice("cuda"), Twice("cpu")
    close(there.run(stream(50)), here.run(stream(50)))
    for a, b in zip(there.weights(), here.weights(), strict=True):
        close(a, b)
    assert there.step.graphs == 1


def test_states_that_somebody_keeps_stay_as_they_are():
    there, here = Loop("cuda"), Loop("cpu")
    kept = [[], []]
    for states, loop in zip(kept, (there, here), strict=True):
        for pair in stream(40):
            loop.run([pair])
            states.append(loop.state)
    for found, expected in zip(*kept, strict=True):
        for a, b in zip(found, expected, strict=True):
            close(on_host(a), on_host(b))
    assert there.step.graphs == 1


def test_arrays_that_the_step_writes_in_place_are_named(cupy):
    totals = {"cuda": cupy.zeros(()), "cpu": np.zeros(())}

    def run(device):
        loop = Loop(device, captured=False)

        @tg.capture(writes=[totals[device]])
        def step(x, target, state):
            loss, state = loop.body(x, target, state)
            total = totals[device]
            total += loss._array
            return loss, state

        loop.step = step
        loop.run(stream(50))
        return step

    step = run("cuda")
    run("cpu")
    assert step.graphs == 1
    close(on_host(totals["cuda"]), totals["cpu"])


def test_a_joint_that_draws_is_refused(caplog):
    loop = Loop("cuda")
    loop.tape = tg.CapacitorTape(4, joint=tg.RandomJoint(0.5, seed=0))
    loop.run(stream(30))
    assert not loop.step.graphs and "draws" in loop.step.reason


@pytest.mark.parametrize("schedule", ["sliding", "every second"])
def test_a_state_that_a_closure_carries_is_refused(schedule):
    class Closed(Loop):
        def body(self, x, target):
            loss, self.state = super().body(x, target, self.state)
            return loss

        def run(self, data):
            return [float(on_host(self.step(*(tg.asarray(v, device=self.device) for v in p)))) for p in data]

    there, here = Closed("cuda", schedule=schedule), Closed("cpu", schedule=schedule)
    for loop in (there, here):
        loop.losses = loop.run(stream(43))
        if loop is there:
            assert loop.step.graphs == 0 and "not an argument" in loop.step.reason
        loop.losses += loop.run(stream(9, seed=1))
    close(there.losses, here.losses)


def test_the_loop_may_move_to_the_host_and_back():
    def moving(loop, data):
        losses = []
        for i, pair in enumerate(data):
            if (i in (30, 45) and loop.device != "cpu") or (i == 45 and hasattr(loop.step, "graphs")):
                loop.device = "cpu" if i == 30 else "cuda"
                loop.state = loop.tape.to(loop.device, carry=loop.state)
                loop.cell.to(loop.device)
                loop.readout.to(loop.device)
            losses += loop.run([pair])
        return losses

    assert both(meanwhile=moving, steps=90, weights="current").step.graphs == 1


def test_a_captured_step_inside_another_is_a_function_there():
    def run(device):
        loop = Loop(device)
        inner = loop.step

        @tg.capture
        def outer(x, target, state):
            return inner(x, target, state)

        loop.step = outer
        losses = loop.run(stream(40))
        loop.step = inner
        losses += loop.run(stream(40, seed=1))
        loop.step = outer
        return outer, inner, losses + loop.run(stream(40, seed=2))

    outer, inner, found = run("cuda")
    close(found, run("cpu")[2])
    assert outer.launches > 20 and inner.launches > 10


def test_two_captured_steps_share_a_tape_and_an_optimizer():
    def run(device):
        loop = Loop(device)
        first, second = loop.step, tg.capture(lambda *arguments: loop.body(*arguments))
        losses = []
        for i in range(6):
            loop.step = (first, second)[i % 2]
            losses += loop.run(stream(25 if i < 4 else 3, seed=i))
        return first, second, losses

    first, second, found = run("cuda")
    close(found, run("cpu")[2])
    assert first.launches and second.launches


# -- what cannot be captured ---------------------------------------------------------------------------------


def refused(extra, caplog, **how):
    """The loop with something more in its body: the reason why it has no graph. Its numbers are the host's."""
    data = stream(40)
    there, here = Loop("cuda", **how), Loop("cpu", **how)
    there.extra = here.extra = extra
    close(there.run(data), here.run(data))
    for a, b in zip(there.weights(), here.weights(), strict=True):
        close(a, b)
    assert not there.step.graphs and not there.step.launches
    assert there.step.reason and there.step.reason in caplog.text
    return there.step.reason


def test_numbers_that_are_read_in_the_step(caplog):
    assert "capturing" in refused(lambda loop, x, loss: loop.optimizer.check() or float(loss.value), caplog)


def test_data_that_comes_from_the_host_in_the_step(caplog):
    rng = np.random.default_rng(3)

    def noise(loop, x, loss):
        tg.asarray(rng.standard_normal(3), device=loop.device)

    assert "from the host" in refused(noise, caplog)


def test_an_optimizer_that_computes_with_numbers_of_the_host(caplog, monkeypatch):
    class Decaying(tg.optim.Optimizer):
        def update(self, new, value, grad, state):
            new[...] = value - self.lr * grad
            self.lr *= 0.999

    monkeypatch.setattr(tg.optim, "SGD", Decaying)
    assert "Decaying" in refused(None, caplog)


def test_an_array_that_outlives_the_step(caplog):
    kept = {}

    def remember(loop, x, loss):
        kept[loop.device] = x * 0.5 + kept.get(loop.device, 0.0)

    assert "outlives" in refused(remember, caplog)


def accumulating(device, zero_grad):
    """A captured loop without an optimizer, whose gradients go on; after `zero_grad` at the beginning of a step."""
    tape, w = tg.CapacitorTape(2, weights="current"), tg.Parameter(np.ones(3))
    w._array = tg.asarray(w._array, device=device)

    @tg.capture
    def step(x, state):
        if zero_grad:
            w.grad = None
        with tape:
            state = tg.tanh(x + state * w)
            loss = tg.sum(tg.square(state))
        tape.backward(loss)
        return loss, state

    state = tg.constant(tg.asarray(np.zeros(3), device=device))
    for x in np.random.default_rng(0).standard_normal((30, 3)):
        _, state = step(tg.asarray(x, device=device), state)
    return step, on_host(w.grad)


def test_gradients_may_be_added_up_over_all_steps():
    step, grad = accumulating("cuda", zero_grad=False)
    close(grad, accumulating("cpu", zero_grad=False)[1])
    assert step.graphs == 1


def test_gradients_that_a_step_leaves_behind(caplog):
    step, grad = accumulating("cuda", zero_grad=True)
    close(grad, accumulating("cpu", zero_grad=True)[1])
    assert not step.graphs and "zero_grad" in step.reason


@pytest.mark.parametrize(
    "schedule",
    [tg.Tolerance(1e-3, tg.Sliding(4)), tg.Randomized(2.0, longest=4, seed=0), tg.Sliding(90, stride=70)],
)
def test_schedules_that_do_not_repeat_themselves(schedule, caplog):
    assert "repeat" in refused(None, caplog, schedule=schedule)


def test_a_loop_that_is_never_steady_is_left_alone(monkeypatch, caplog):
    monkeypatch.setattr(graph, "ATTEMPTS", 5)

    def always_new(loop, data):
        losses = []
        for pair in data:
            loop.state = loop.initial()
            losses += loop.run([pair])
        return losses

    def changing(loop, data):
        return [loss for i, pair in enumerate(data) for loss in growing(loop, pair, i)]

    def growing(loop, pair, i):
        loop.tape.reset()
        x, target = (np.concatenate([v] * (1 + i % 3)) for v in pair)
        loop.state = loop.cell.initial_state(len(x))
        return loop.run([(x, target)])

    assert "5 times" in both(meanwhile=changing, steps=40).step.reason
    assert both(meanwhile=always_new, steps=40).step.graphs == 1  # a state that is always new is an argument


def test_windows_that_are_run_again(caplog):
    assert "replay" in refused(None, caplog, weights="replay")


def test_a_graph_that_does_something_else_is_not_used(monkeypatch, caplog):
    moved = arenas.Arenas.age
    monkeypatch.setattr(arenas.Arenas, "age", lambda self, places, by: moved(self, places - 1, by))
    assert "differs" in refused(None, caplog)


def test_a_gradient_that_is_not_finite_is_told_soon():
    loop = Loop("cuda")
    data = stream(60)
    loop.run(data[:30])
    weights = loop.weights()
    bad = data[30][0] * np.nan
    with pytest.raises(tg.NonFiniteError):
        for _ in range(40):
            loop.run([(bad, data[30][1])])
    for a, b in zip(weights, loop.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_on_the_host_the_step_is_the_function():
    loop = Loop("cpu", captured=True)
    plain = Loop("cpu")
    assert loop.run(stream(20)) == plain.run(stream(20))
    assert loop.step.graphs == 0 and loop.step.reason == "" and loop.step.__name__ == "body"


def test_what_is_no_function():
    with pytest.raises(tg.ArgumentError, match="capture: `step` must be a function"):
        tg.capture(3)


@pytest.mark.parametrize(
    ("schedule", "period"),
    [
        (tg.Sliding(5), 1),
        (tg.Sliding(5, stride=3), 3),
        (tg.Chunked(7), 7),
        (tg.Full(), None),
        (tg.BurnIn(3, 2), 5),
    ],
)
def test_the_period_of_a_schedule(schedule, period):
    assert period_of(schedule) == period


def test_a_loop_that_nobody_holds_gives_its_memory_back(cupy):
    pool = cupy.get_default_memory_pool()
    gc.collect()
    before = pool.used_bytes()
    loop = Loop("cuda")
    loop.run(stream(30))
    assert loop.step.graphs
    del loop
    gc.collect()
    capture.LATEST.clear()  # the last handles, with their workspaces, are kept for the next
    gc.collect()
    assert pool.used_bytes() == before
