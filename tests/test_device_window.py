"""Windows on a device that are swept by kernels, against the sweep by rules on the host in float64.

The device is the stand-in (`strict_cupy.py`). The kernels are those of `strict_kernels.py`, and for some tests the
CUDA C++ itself, run by g++ over fibres.
"""

import functools
import gc

import numpy as np
import pytest
from tapegrad.kernels.cuda import blas, model, plan, source

import fake_cublas
import fibres
import strict_cupy
import strict_kernels
import tapegrad as tg
from tapegrad.backend import capture
from tapegrad.core.schedule import Schedule

F32, F64 = np.float32, np.float64
CELLS = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}
WAYS = ("persistent", "alternating")


@pytest.fixture(autouse=True)
def cupy():
    source.compiled.cache_clear()
    with strict_cupy.installed() as module:
        yield module
    source.compiled.cache_clear()


@pytest.fixture(params=WAYS)
def way(request):
    before = model.use(request.param)
    yield request.param
    model.use(before)


@pytest.fixture
def one_launch():
    before = model.use("persistent")
    yield
    model.use(before)


class Model(tg.nn.Module):
    """An embedding, recurrent layers, and a readout."""

    def __init__(self, cell, depth, dtype, n=8):
        rng = np.random.default_rng(0)
        self.embedding = tg.nn.Embedding(7, 6, dtype=dtype, rng=1)
        self.cells = [CELLS[cell](6 if i == 0 else n, n, dtype=dtype, rng=2 + i) for i in range(depth)]
        for c in self.cells:  # weights that do not forget within a window
            c.w_h.value = (1.2 / n**0.5 * rng.uniform(-1, 1, c.w_h.shape)).astype(F32).astype(dtype)
            c.w_x.value = rng.uniform(-0.8, 0.8, c.w_x.shape).astype(F32).astype(dtype)
        self.readout = tg.nn.Linear(n, 7, dtype=dtype, rng=9)
        for p in self.parameters():
            p.value = p.value.astype(F32).astype(dtype)

    def initial_state(self, batch):
        return [c.initial_state(batch) for c in self.cells]


class Loop:
    """A loop on the host in float64, swept by rules, or on the device in float32."""

    def __init__(
        self, device, schedule, cell="lstm", depth=1, batch=3, words=True, lr=0.0, model=Model, **how
    ):
        self.device, self.words, self.batch = device, words, batch
        self.dtype = F64 if device == "cpu" else F32
        self.model = model(cell, depth, self.dtype).to(device)
        self.tape = tg.CapacitorTape(schedule, compile=device != "cpu", **how)
        self.rng, self.lr = np.random.default_rng(4), lr
        self.state = self.model.initial_state(batch)
        self.leaves = {}  # that a test has beside the model's
        self.found = []  # of each sweep: gradients by name, left edge, norms at joints

    def there(self, array):
        return tg.asarray(
            array.astype(F32).astype(self.dtype) if array.dtype.kind == "f" else array, device=self.device
        )

    def input(self):
        if self.words:
            words = self.there(self.rng.integers(0, 7, self.batch))
            return lambda: self.model.embedding(words)
        x = self.there(self.rng.standard_normal((self.batch, 6)))
        return lambda: x

    def output(self, x):
        """One step of the model: logits."""
        for i, cell in enumerate(self.model.cells):
            x, self.state[i] = cell(x, self.state[i])
        return self.model.readout(x)

    def step(self, losses=True, keep=()):
        make, labels = self.input(), self.there(self.rng.integers(0, 7, self.batch))
        with self.tape:
            logits = self.output(make())
            loss = tg.softmax_cross_entropy(logits, labels)
        if losses:
            self.note(self.tape.backward(loss))

    def note(self, sweep):
        if sweep is None:
            return
        named = {**dict(self.model.named_parameters()), **self.leaves}
        grads = {name: here(p.grad) for name, p in named.items()}
        edge = in_order(sweep.left_edge)
        adjoints = [in_order(segment.adjoints) for segment in self.tape.segments]
        grads = {name: g for name, g in grads.items() if g is not None}
        self.found.append((grads, edge, sweep.joint_norms, adjoints, sweep.segments, sweep.losses))
        for p in named.values():
            if self.lr and p.grad is not None:
                p.value = p.value - self.lr * p.grad
            p.grad = None

    @property
    def sweeps(self):
        return self.tape._programs.on_device.sweeps

    @property
    def rings(self):
        return self.tape._programs.on_device.rings


def in_order(adjoints):
    return [here(adjoints.by_slot[slot]) for slot in sorted(adjoints.by_slot)]


def here(array):
    return None if array is None else np.asarray(array.get() if hasattr(array, "get") else array)


def close(found, expected, what, rtol=1e-5):
    size, error = np.linalg.norm(expected), np.linalg.norm(found.astype(F64) - expected)
    assert found.shape == expected.shape and error <= rtol * size, (
        f"{what}: relative error {error / size:.2g}"
    )


def compare(there, host):
    assert len(there.found) == len(host.found) > 0
    for t, (a, b) in enumerate(zip(there.found, host.found, strict=True)):
        assert a[0].keys() == b[0].keys()
        for name in a[0]:
            close(a[0][name], b[0][name], f"sweep {t}: {name}")
        assert len(a[1]) == len(b[1]), f"sweep {t}"
        for x, y in zip(a[1], b[1], strict=True):
            close(x, y, f"sweep {t}: the left edge")
        np.testing.assert_allclose(a[2], b[2], rtol=1e-5)
        for s, (xs, ys) in enumerate(zip(a[3], b[3], strict=True)):
            assert len(xs) == len(ys), f"sweep {t}: segment {s}"
            for x, y in zip(xs, ys, strict=True):
                close(x, y, f"sweep {t}: the adjoints of segment {s}")
        assert a[4:] == b[4:], f"sweep {t}: segments and losses"


def both(schedule, run=None, steps=12, sweeps=None, **how):
    """The loop on the device, after it has found what the one on the host found; `sweeps` of it went by kernels."""
    loops = [Loop(device, schedule, **how) for device in ("cuda", "cpu")]
    for loop in loops:
        if run is not None:
            run(loop)
        else:
            for _ in range(steps):
                loop.step()
    compare(*loops)
    there = loops[0]
    assert there.sweeps == (len(there.found) if sweeps is None else sweeps)
    return there


@pytest.mark.parametrize("weights", ["recorded", "current"])
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_sliding_window_is_swept_by_kernels_from_its_first_step_on(way, cell, words, weights):
    both(4, cell=cell, words=words, weights=weights)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "schedule",
    [1, 2, tg.Sliding(5, stride=2), tg.Sliding(4, stride=4), tg.Chunked(4), tg.BurnIn(2, 3), tg.Chunked(1)],
)
def test_every_schedule_of_a_fixed_window(way, cell, schedule):
    both(schedule, cell=cell, steps=17)


class Breathing(Schedule):
    """Looks back two segments and four in turn."""

    window = 4

    def __init__(self):
        self.reach_now = 4

    @property
    def reach(self):
        return self.reach_now

    def due(self, index, swept):
        return True

    def swept(self, tape, clock, sweep):
        self.reach_now = 6 - self.reach_now


@pytest.mark.parametrize("cell", CELLS)
def test_a_schedule_that_looks_back_now_less_far_now_farther(way, cell):
    loops = [Loop(device, Breathing(), cell=cell) for device in ("cuda", "cpu")]
    for loop in loops:
        for _ in range(11):
            loop.step()
    compare(*loops)
    assert [found[4] for found in loops[0].found] == [1, 2, 3, 2, 4, 2, 4, 2, 4, 2, 4]
    assert loops[0].sweeps == 11


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("weights", ["recorded", "current"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers_on_top_of_each_other(way, cell, depth, weights):
    both(tg.Sliding(4, stride=2), cell=cell, depth=depth, weights=weights)
    both(3, cell=cell, depth=depth, words=False, joint=0.7, steps=7)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("joint", [0.5, 1, -2.0])
def test_a_joint_scales_what_crosses_it(way, cell, joint):
    both(5, cell=cell, joint=joint)


@pytest.mark.parametrize("weights", ["recorded", "current"])
@pytest.mark.parametrize("cell", CELLS)
def test_weights_that_change_with_every_sweep(way, cell, weights):
    both(4, cell=cell, weights=weights, lr=0.1)
    both(tg.Chunked(4), cell=cell, weights=weights, lr=0.1)


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
def test_a_stream_that_ends_between_two_sweeps(way, steps):
    def run(loop):
        for _ in range(steps):
            loop.step()
        loop.note(loop.tape.sweep())

    both(tg.Sliding(4, stride=4), run, depth=2)


def test_a_tape_that_is_reset_begins_anew(way):
    def run(loop):
        for t in range(15):
            if t in (3, 9, 10):
                loop.tape.reset()
                loop.state = loop.model.initial_state(3)
            loop.step()

    both(4, run)


def test_a_recording_that_is_rolled_back_leaves_no_step(way):
    def run(loop):
        for t in range(10):
            if t in (1, 5, 6):
                with pytest.raises(ZeroDivisionError), loop.tape:
                    loop.model.cells[0](loop.input()(), loop.state[0])
                    raise ZeroDivisionError
            loop.step()

    both(4, run)


def test_a_state_that_begins_anew_within_the_window_goes_by_rules(way):
    def run(loop):
        for t in range(12):
            if t == 4:
                loop.state = loop.model.initial_state(3)
            loop.step()

    # Sweeps 5 to 7 have the break inside their window; then the rings are filled again.
    both(4, run, sweeps=9)


def test_losses_of_some_steps_and_of_older_ones(way):
    def run(loop):
        losses = []
        for t in range(14):
            with loop.tape:
                logits = loop.output(loop.input()())
                losses.append(tg.softmax_cross_entropy(logits, loop.there(np.array([1, 2, 3]))))
            if t % 3 == 0:
                loop.note(loop.tape.backward(losses[-1]))
            if t == 7:  # of two segments at once, the older first; the newest has none
                loop.note(loop.tape.backward([losses[5], losses[6]]))
            if t == 10:
                loop.note(loop.tape.backward(losses[8]))

    both(4, run, depth=2)


class Odd(Model):
    def __init__(self, cell, depth, dtype):
        super().__init__(cell, depth, dtype, n=7)


def test_sizes_that_no_persistent_kernel_has_go_step_by_step(monkeypatch):
    calls = count_launches(monkeypatch)
    for cell in CELLS:
        assert {layer.way for layer in both(4, cell=cell, model=Odd).rings} == {"alternating"}
    assert calls.keys() == {"deposit", "by_age", "step_backward"}


def test_constants_and_leaves_where_there_may_be_some(way):
    """Weights that are not trained, a state and an input that are leaves."""

    def run(loop):
        cell, shapes = loop.model.cells[0], {"h": (3, 8), "c": (3, 8), "x": (3, 6)}
        cell.w_x, cell.b = (tg.constant(p.value.copy()) for p in (cell.w_x, cell.b))
        for name, shape in shapes.items():
            loop.leaves[name] = tg.Parameter(loop.there(loop.rng.standard_normal(shape)))
        loop.state[0] = loop.leaves["h"], loop.leaves["c"]
        loop.input = lambda: lambda: loop.leaves["x"]
        for _ in range(7):
            loop.step()

    loop = both(4, run)
    assert loop.found[0][0].keys() >= {"h", "c", "x", "cells.0.w_h"}
    assert "h" in loop.found[3][0] and "h" not in loop.found[4][0]  # it has left the window


def test_adjoints_that_somebody_asked_for(way):
    def run(loop):
        for _ in range(8):
            make = loop.input()
            with loop.tape:
                x = make()
                logits = loop.output(x)
                loss = tg.mean(tg.square(logits))
            sweep = loop.tape.backward(loss, keep=[x, logits])
            loop.note(sweep)
            loop.found[-1] = ({**loop.found[-1][0], "x": here(sweep[x]), "logits": here(sweep[logits]), "loss": here(sweep[loss])}, *loop.found[-1][1:])  # fmt: skip

    both(4, run, depth=2)


def test_a_root_that_is_the_newest_output(way):
    def run(loop):
        for _ in range(6):
            make, ct = loop.input(), loop.there(loop.rng.standard_normal((3, 8)))
            with loop.tape:
                h, loop.state[0] = loop.model.cells[0](make(), loop.state[0])
            sweep = loop.tape.backward(h, ct)
            loop.note(sweep)
            np.testing.assert_array_equal(here(sweep[h]), here(ct))

    for cell in CELLS:
        both(3, run, cell=cell)


# -- what does not fit -----------------------------------------------------------------------------------------


class Fed(Model):
    """What a step gave goes into the next one."""

    fed = None

    def step(self, loop):
        make = loop.input()
        with loop.tape:
            x = make() if self.fed is None else make() + self.fed[:, :6]
            self.fed = loop.output(x)
            loss = tg.mean(tg.square(self.fed))
        loop.note(loop.tape.backward(loss))


def fed(loop):
    for _ in range(8):
        loop.model.step(loop)


def old_states(loop):
    """A head that reads the state of the segment before."""
    before = None
    for _ in range(8):
        make = loop.input()
        with loop.tape:
            logits = loop.output(make())
            loss = tg.mean(tg.square(logits))
            if before is not None:
                loss = loss + tg.mean(tg.square(before))
            before = loop.state[0][0]
        loop.note(loop.tape.backward(loss))


def cells_read(loop):
    for _ in range(8):
        make = loop.input()
        with loop.tape:
            loop.output(make())
            loss = tg.mean(tg.square(loop.state[0][1]))
        loop.note(loop.tape.backward(loss))


def two_steps(loop):
    for _ in range(8):
        makes = loop.input(), loop.input()
        with loop.tape:
            for make in makes:
                logits = loop.output(make())
            loss = tg.mean(tg.square(logits))
        loop.note(loop.tape.backward(loss))


def inside(loop):
    for _ in range(8):
        make = loop.input()
        with loop.tape:
            loss = tg.mean(tg.square(loop.output(make())))
            sweep = loop.tape.backward(loss)
        loop.note(sweep)


def turned(loop):
    """A weight that is computed in each segment."""
    for _ in range(8):
        make = loop.input()
        with loop.tape:
            c = loop.model.cells[0]
            h, cell = tg.lstm_step(make(), *loop.state[0], c.w_x * 1.0, c.w_h, c.b)
            loop.state[0] = h, cell
            loss = tg.mean(tg.square(h))
        loop.note(loop.tape.backward(loss))


@pytest.mark.parametrize("run", [fed, old_states, cells_read, two_steps, inside, turned])
def test_what_does_not_fit_goes_by_rules(one_launch, run):
    both(3, run, model=Fed, sweeps=1 if run in (fed, old_states) else 0)


@pytest.mark.parametrize(
    "how",
    [
        {"joint": lambda pending: {slot: ct * 0.5 for slot, ct in pending.items()}},
        {"joint": 0},
        {"weights": "replay"},
        {"schedule": tg.Tolerance(1e-3, tg.Sliding(4))},
        {"schedule": tg.Randomized(3, longest=4, seed=0)},
    ],
    ids=["a callable joint", "joint 0", "replay", "Tolerance", "Randomized"],
)
def test_settings_that_kernels_do_not_know_go_by_rules(one_launch, how):
    how = {"schedule": 4, **how}
    both(steps=9, sweeps=0, **how)


def test_a_full_window_goes_by_rules(one_launch):
    def run(loop):
        for _ in range(5):
            loop.step()
        loop.note(loop.tape.sweep())

    both(tg.Full(), run, sweeps=0)


def test_a_kernel_that_is_asked_for_and_does_not_fit_is_an_error(one_launch):
    loop = Loop("cuda", 4, model=Odd)
    with pytest.raises(ValueError, match="hidden must be a multiple of 4"):
        loop.step()
    model.use("alternating")
    loop.step()
    assert loop.sweeps == 1


def test_rules_can_be_asked_for():
    before = model.use("generic")
    try:
        loop = both(4, sweeps=0)
        assert loop.tape._programs.nbytes == 0
    finally:
        model.use(before)


def test_double_precision_goes_by_rules(one_launch):
    def run(loop):
        loop.dtype = F64
        loop.model = Model("lstm", 1, F64).to(loop.device)
        loop.state = loop.model.initial_state(3)
        for _ in range(6):
            loop.step()

    both(4, run, sweeps=0)


def test_a_batch_that_changes_has_rings_of_its_own(way):
    def run(loop):
        for batch in (3, 3, 2, 2, 2, 3):
            if batch != loop.batch:
                loop.batch = batch
                loop.tape.reset()
                loop.state = loop.model.initial_state(batch)
            loop.step()

    both(3, run)


# -- rings -----------------------------------------------------------------------------------------------------


def test_a_step_that_was_not_finite_leaves_nothing_behind(way):
    loop = Loop("cuda", 3, words=False)
    for _ in range(6):
        loop.step()
    healthy, loop.input = [*loop.state], lambda: lambda: loop.there(np.full((3, 6), np.nan))
    loop.step()
    assert not np.isfinite(loop.found[-1][0]["cells.0.w_h"]).all()
    del loop.input
    loop.tape.reset()
    loop.state, loop.found = [(tg.constant(h.value), tg.constant(c.value)) for h, c in healthy], []
    for _ in range(5):
        loop.step()
    assert all(np.isfinite(g).all() for found in loop.found for g in found[0].values())
    assert loop.sweeps == 12


def test_a_loop_that_goes_on_copies_one_step_a_sweep_and_makes_no_ring(one_launch, monkeypatch):
    loop = Loop("cuda", 4)
    for _ in range(3):
        loop.step()
    rings = loop.rings
    calls = count_launches(monkeypatch)
    for _ in range(6):
        loop.step()
    assert loop.rings is rings
    assert calls == {"deposit": 6, "persistent_backward": 6, "by_age": 6}


def count_launches(monkeypatch):
    calls = {}
    for name, function in strict_kernels.OURS.items():

        def counted(*args, name=name, function=function):
            calls[name] = calls.get(name, 0) + 1
            return function(*args)

        monkeypatch.setitem(strict_kernels.OURS, name, counted)
    source.compiled.cache_clear()
    return calls


def test_a_sweep_waits_for_nothing(way):
    loop = Loop("cuda", 4, depth=2)
    loop.note = lambda sweep: None
    for _ in range(3):
        loop.step()
    with strict_cupy.watched() as waits:
        for _ in range(5):
            loop.step()
    assert waits == []


def test_a_tape_that_moves_goes_on(one_launch):
    def run(loop):
        for t in range(12):
            if loop.dtype is F32 and t in (4, 8):
                loop.device = "cpu" if t == 4 else "cuda"
                loop.model.to(loop.device)
                loop.state = loop.tape.to(loop.device, carry=loop.state)
            loop.step()

    both(3, run, sweeps=4)  # since it came back


def test_the_rings_count_as_memory_of_the_tape_and_are_named_by_its_program(one_launch):
    loop = Loop("cuda", 4)
    loop.step()
    (layer,) = loop.rings
    assert loop.tape._programs.nbytes >= 4 * 5 * 3 * (6 + 8 + 1 + 2 * 32 + 2 * 8)
    assert str(loop.tape.program()) == (
        "# lstm_step, batch 3, 8 units: swept by kernels in kernels/cuda, persistent"
    )
    assert layer.nbytes == loop.tape._programs.nbytes


# -- whatever comes ---------------------------------------------------------------------------------------------


class Mixed(Model):
    """Layers of different cells; more may read an input and an output than the next layer."""

    def __init__(self, cells, depth, dtype):
        super().__init__("rnn", 0, dtype)
        self.cells = [CELLS[c](8 if i else 6, 8, dtype=dtype, rng=5 + i) for i, c in enumerate(cells)]
        for p in self.parameters():
            p.value = p.value.astype(F32).astype(dtype)


def wander(loop, rng):
    """Steps, some without a loss; sweeps, resets, states that begin anew and steps that fail in between."""
    reads_more, losses = rng.random() < 0.5, rng.choice([1.0, 0.6])
    for _ in range(20):
        event, lost = rng.random(), rng.random() > losses
        if event < 0.05:
            loop.tape.reset()
        elif event < 0.1:
            loop.state = loop.model.initial_state(3)
        elif event < 0.15:
            loop.note(loop.tape.sweep())
        elif event < 0.2:
            before = [*loop.state]
            with pytest.raises(ZeroDivisionError), loop.tape:
                loop.output(loop.input()())
                raise ZeroDivisionError
            loop.state = before
        make, labels = loop.input(), loop.there(loop.rng.integers(0, 7, 3))
        with loop.tape:
            x = make()
            loss = tg.softmax_cross_entropy(loop.output(x), labels)
            if reads_more:
                h = loop.state[0]
                loss = loss + tg.mean(tg.square(x)) + tg.mean(tg.square(h[0] if isinstance(h, tuple) else h))
        if not lost:
            loop.note(loop.tape.backward(loss))


def test_random_loops_find_what_rules_find(way):
    sweeps = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        window = int(rng.integers(1, 7))
        how = {
            "schedule": rng.choice([tg.Sliding(window, stride=int(rng.integers(1, window + 1))), tg.Chunked(window)]),
            "joint": rng.choice([None, 0.5, -1.5]),
            "weights": str(rng.choice(["recorded", "current"])),
            "cell": [*rng.choice([*CELLS], rng.integers(1, 4))],
            "words": rng.random() < 0.5,
            "lr": float(rng.choice([0, 0.05])),
        }  # fmt: skip
        loops = [Loop(device, model=Mixed, **how) for device in ("cuda", "cpu")]
        try:
            for loop in loops:
                wander(loop, np.random.default_rng(seed))
        except tg.EvictedError:  # a loss waited too long
            continue
        if loops[1].found:
            compare(*loops)
            sweeps += loops[0].sweeps
    assert sweeps > 200


# -- captured --------------------------------------------------------------------------------------------------


class Captured(Loop):
    """The same with an optimizer, its step as a CUDA graph on the device."""

    def __init__(self, device, schedule, **how):
        super().__init__(device, schedule, words=False, **how)
        self.optimizer = tg.optim.SGD(self.model.parameters(), 0.1)
        self.run = tg.capture(self.body) if device != "cpu" else self.body

    def body(self, x, labels, state):
        self.state = list(state)
        with self.tape:
            loss = tg.softmax_cross_entropy(self.output(x), labels)
        if self.tape.backward(loss):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss, tuple(self.state)

    def step(self):
        x, labels = self.input()(), self.there(self.rng.integers(0, 7, self.batch))
        loss, self.state = self.run(x, labels, tuple(self.state))
        return loss


@pytest.fixture
def graphs(cupy, monkeypatch):
    """What a capture needs besides."""
    library = fake_cublas.Library()
    monkeypatch.setattr(blas, "loaded_library", lambda: library)
    yield
    capture.LATEST.clear()  # handles of this library
    gc.collect()
    assert not library.problems


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [(4, "current"), (tg.Sliding(5, stride=2), "recorded"), (tg.Chunked(3), "current"), (2, "recorded")],
    ids=str,
)
@pytest.mark.parametrize("cell", CELLS)
def test_a_captured_loop_repeats_the_kernels_at_every_phase(way, graphs, cell, schedule, weights):
    there, host = (Captured(d, schedule, cell=cell, depth=2, weights=weights) for d in ("cuda", "cpu"))
    losses = [[loop.step() for _ in range(40)] for loop in (there, host)]
    assert there.run.reason == "" and there.run.launches > 12
    (sizes,) = {layer.rings.slots for layer in there.rings}
    assert sizes == there.tape.schedule.window + 1 and there.sweeps >= 5
    np.testing.assert_allclose(*([float(v.value) for v in some] for some in losses), rtol=1e-5)
    for a, b in zip(there.model.parameters(), host.model.parameters(), strict=True):
        close(here(a.value), b.value, "a weight after 40 steps")


def test_a_loop_that_leaves_its_graph_fills_the_rings_again(one_launch, graphs):
    there, host = (Captured(d, 4) for d in ("cuda", "cpu"))
    for loop in (there, host):
        for t in range(50):
            loop.step()
            if t in (25, 28) and loop is there:
                loop.run.release()
    assert there.run.launches > 15
    for a, b in zip(there.model.parameters(), host.model.parameters(), strict=True):
        close(here(a.value), b.value, "a weight after 50 steps")


# -- the kernels in CUDA C++ ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_fibres(tmp_path_factory):
    """The kernels over fibres, where the arrays lie."""
    folder = tmp_path_factory.mktemp("fibres")
    structs = [plan.CELLS[cell][0] for cell in CELLS]
    names = {
        "deposit.cu": ["deposit", "by_age"],
        "backward.cu": [
            *(plan.persistent_backward(cell, 8, 3).expression for cell in CELLS),
            *(f"step_backward<{struct}>" for struct in structs),
        ],
    }
    libraries = {file: fibres.built(folder, file, kernels) for file, kernels in names.items()}
    return {
        name: functools.partial(fibres.in_place, libraries[file], name)
        for file, kernels in names.items()
        for name in kernels
    }


@pytest.fixture
def compiled(on_fibres, monkeypatch):
    for name, launch in on_fibres.items():
        monkeypatch.setitem(strict_cupy.KERNELS, name, launch)


@pytest.mark.parametrize("cell", CELLS)
def test_the_kernels_themselves_sweep_a_loop(way, compiled, cell):
    both(tg.Sliding(4, stride=2), cell=cell, depth=2, weights="current", lr=0.1)
    both(3, cell=cell, joint=0.5, steps=6)
    both(tg.Chunked(3), cell=cell, words=False, steps=7)
