"""A loop on a GPU: gradients, captured steps, what they allocate, when they fall back. And what only a GPU can tell.

    pytest -m gpu                 all that computes on a device: this file, and what `conftest.py` lists

The loops run on the stand-in for CuPy where there is no GPU, and on CuPy where `-m gpu` finds one.
"""

import importlib.util
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tapegrad.kernels.cuda import model, source

import fake_cublas
import strict_cupy
import tapegrad as tg
from tapegrad.backend import capture

F32, F64 = np.float32, np.float64
REAL = os.environ.get("TAPEGRAD_TEST_CUPY") == "real"
ROOT = pathlib.Path(__file__).parent.parent
BATCH, N_IN, HIDDEN, CLASSES = (16, 32, 64, 10) if REAL else (2, 3, 4, 5)
REPLAYS = 10_000 if REAL else 60
CELLS = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}
HERE = CELLS if REAL else ["lstm"]  # on the stand-in `test_capture.py` has the others
OPTIMIZERS = {
    "sgd": lambda parameters: tg.optim.SGD(parameters, 0.05),
    "momentum": lambda parameters: tg.optim.SGD(parameters, 0.05, momentum=0.9),
    "adam": lambda parameters: tg.optim.Adam(parameters, 1e-3),
}
on_a_gpu = pytest.mark.gpu


@pytest.fixture
def cupy(request):
    """CuPy, or its stand-in."""
    if REAL:
        yield request.getfixturevalue("gpu")
        return
    source.compiled.cache_clear()
    with strict_cupy.installed() as module, fake_cublas.installed():
        yield module
        capture.LATEST.clear()  # handles of the library that is installed here
    source.compiled.cache_clear()


class Loop:
    """A cell, a readout and a loss, a window over them, on the host or on the device."""

    def __init__(
        self, device, captured=False, cell="lstm", optimizer="sgd", schedule=5, weights="current", dtype=F32
    ):
        self.device = device
        self.cell = CELLS[cell](N_IN, HIDDEN, rng=0, dtype=dtype).to(device)
        self.readout = tg.nn.Linear(HIDDEN, CLASSES, rng=1, dtype=dtype).to(device)
        self.parameters = [*self.cell.parameters(), *self.readout.parameters()]
        self.optimizer = OPTIMIZERS[optimizer](self.parameters)
        self.tape = tg.CapacitorTape(schedule, weights=weights)
        self.state = self.cell.initial_state(BATCH)
        self.gradients = []  # of each parameter, in the last sweep that ran eagerly
        self.step = tg.capture(self.body) if captured else self.body

    def body(self, x, labels, state):
        with self.tape:
            out, state = self.cell(x, state)
            loss = tg.softmax_cross_entropy(self.readout(out), labels)
        if sweep := self.tape.backward(loss):
            if not hasattr(self.step, "graphs"):
                self.gradients = [sweep.gradients[p] for p in self.parameters]
            self.optimizer.step()
            self.optimizer.zero_grad()
        return state

    def run(self, batches):
        for x, labels in batches:
            x, labels = (tg.asarray(v, device=self.device) for v in (x, labels))
            self.state = self.step(x, labels, self.state)
        return self

    def values(self):
        return [here(p) for p in self.parameters]


def here(v):
    array = getattr(v, "_array", v)
    return np.array(tg.asarray(array, device="cpu"))


def batches(steps, dtype=F32, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (rng.standard_normal((BATCH, N_IN)).astype(dtype), rng.integers(0, CLASSES, BATCH))
        for _ in range(steps)
    ]


def near(found, expected, limit, what=""):
    """Within `limit` of the norm, array by array."""
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = np.linalg.norm(here(a).astype(F64) - here(b)) / np.linalg.norm(here(b))
        assert error <= limit, f"{what} array {i}: {error:.2g} of its norm"


def captured_loop(steps=30, **how):
    """A loop in its stride."""
    loop = Loop("cuda", captured=True, **how).run(batches(steps))
    assert loop.step.graphs and not loop.step.reason, loop.step.reason
    return loop


# -- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["current", "recorded"])
@pytest.mark.parametrize("cell", HERE)
def test_gradients_equal_the_hosts(cupy, cell, weights):
    found, truth = (Loop(d, cell=cell, weights=weights).run(batches(8)) for d in ("cuda", "cpu"))
    assert len(found.gradients) == len(truth.gradients) > 0
    near(found.gradients, truth.gradients, 1e-5, "gradient of")


@pytest.mark.parametrize("way", ["persistent", "alternating", "generic"])
@pytest.mark.parametrize(
    ("cell", "optimizer"), [(cell, "sgd") for cell in HERE] + [("lstm", "momentum"), ("lstm", "adam")]
)
def test_replays_equal_eager_steps_and_the_hosts(cupy, monkeypatch, cell, optimizer, way):
    monkeypatch.setattr(model, "WAY", way)
    data = batches(36)
    captured = Loop("cuda", captured=True, cell=cell, optimizer=optimizer).run(data)
    assert captured.step.graphs == 1 and captured.step.launches > 10, captured.step.reason
    assert way == "generic" or captured.tape.program().endswith(way)
    near(captured.values(), Loop("cuda", cell=cell, optimizer=optimizer).run(data).values(), 1e-6, "eager:")
    near(captured.values(), Loop("cpu", cell=cell, optimizer=optimizer).run(data).values(), 1e-5, "host:")


@pytest.mark.parametrize(
    ("schedule", "period"), [(tg.Sliding(1), 1), (tg.Sliding(6, stride=3), 3), (tg.Chunked(4), 4)], ids=str
)
@pytest.mark.parametrize("weights", ["current", "recorded"])
def test_every_phase_of_a_schedule_is_replayed(cupy, schedule, period, weights):
    data = batches(50)
    captured = Loop("cuda", captured=True, schedule=schedule, weights=weights).run(data)
    assert captured.step.graphs == period, captured.step.reason
    near(captured.values(), Loop("cpu", schedule=schedule, weights=weights).run(data).values(), 1e-5)


def test_a_gradient_that_a_replay_uses_is_the_hosts(cupy):
    found = []
    for loop in (Loop("cuda", captured=True), Loop("cpu")):
        loop.optimizer.lr = 0.0
        loop.run(batches(30))
        before, loop.optimizer.lr = (
            loop.values(),
            16.0,
        )  # large: what is left of a difference is mostly gradient
        loop.run(batches(1, seed=1))
        found.append([(a.astype(F64) - b) / 16.0 for a, b in zip(before, loop.values(), strict=True)])
    near(*found, 1e-5, "gradient of")


@pytest.mark.parametrize("way", ["persistent", "alternating"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_window_that_kernels_sweep_is_the_window_that_rules_sweep(cupy, monkeypatch, cell, way):
    found = []
    for chosen in (way, "generic"):
        monkeypatch.setattr(model, "WAY", chosen)
        found.append(Loop("cuda", cell=cell, schedule=12).run(batches(16)))
    assert found[0].tape.program().endswith(way)
    near(found[0].gradients, found[1].gradients, 1e-5, "gradient of")


# -- what captured loops promise ---------------------------------------------------------------------------


def test_replays_allocate_nothing(cupy):
    loop, (x, labels) = captured_loop(), (tg.asarray(v, device="cuda") for v in batches(1)[0])
    pool = cupy.get_default_memory_pool()

    alone = (
        REAL and "PYTEST_XDIST_WORKER" not in os.environ
    )  # else others take memory of the device meanwhile

    def held():
        free = cupy.cuda.runtime.memGetInfo()[0] if alone else 0
        return pool.used_bytes(), pool.total_bytes(), free

    for _ in range(20):
        loop.state = loop.step(x, labels, loop.state)
    before = held()
    for _ in range(REPLAYS):
        loop.state = loop.step(x, labels, loop.state)
    cupy.cuda.get_current_stream().synchronize()
    assert held() == before
    assert loop.step.launches >= REPLAYS


def test_a_learning_rate_reaches_the_next_replay(cupy):
    loop = captured_loop()
    loop.optimizer.lr = 0.0
    before = loop.values()
    loop.run(batches(3))
    for a, b in zip(before, loop.values(), strict=True):
        np.testing.assert_array_equal(a, b)
    loop.optimizer.lr = 0.5
    loop.run(batches(1))
    assert all((a != b).any() for a, b in zip(before, loop.values(), strict=True))
    assert loop.step.graphs == 1


def test_why_a_loop_is_not_captured_is_logged_and_it_goes_on(cupy, caplog):
    found = []
    for captured in (True, False):
        loop = Loop("cuda", captured=captured)
        plain = loop.body

        def reads(x, labels, state, loop=loop, plain=plain):
            state = plain(x, labels, state)
            loop.seen = float(tg.sum(state[0]))
            return state

        loop.step = tg.capture(reads) if captured else reads
        with caplog.at_level(logging.WARNING, "tapegrad.capture"):
            loop.run(batches(20))
        found.append(loop)
    assert found[0].step.reason and not found[0].step.graphs
    assert found[0].step.reason in caplog.text
    near(found[0].values(), found[1].values(), 1e-6)


def test_a_gradient_that_is_not_finite_is_reported_some_replays_later(cupy):
    loop = captured_loop()
    before = loop.values()
    x, labels = batches(1)[0]
    with pytest.raises(tg.NonFiniteError):
        for _ in range(64):
            loop.run([(np.full_like(x, np.nan), labels)])
    for a, b in zip(before, loop.values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("schedule", [5, tg.Sliding(6, stride=3)], ids=str)
@pytest.mark.parametrize("steps", [37, 38])
def test_a_released_loop_goes_on_where_the_graph_left_it(cupy, schedule, steps):
    data = batches(50)
    loop = Loop("cuda", captured=True, schedule=schedule).run(data[:steps])
    assert loop.step.launches
    loop.step.release()
    assert not loop.step.graphs
    loop.run(data[steps:])
    near(loop.values(), Loop("cpu", schedule=schedule).run(data).values(), 1e-5)


def test_a_loop_on_a_stream_of_its_own_gives_the_same(cupy):
    data, found = batches(30), []
    for stream in (None, cupy.cuda.Stream(non_blocking=True)):
        if stream is None:
            found.append(captured_loop().values())
            continue
        with stream:
            loop = Loop("cuda", captured=True).run(data)
            found.append(loop.values())
    near(*found, 1e-6)


# -- what only a GPU can tell ------------------------------------------------------------------------------


@on_a_gpu
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    "shapes",
    [
        ((64, 256), (256, 1024)),
        ((1, 1024), (1024, 4096)),
        ((7, 5, 3), (3, 4)),
        ((6,), (6, 9)),
        ((2, 3, 4), (2, 4, 5)),
    ],
)
def test_our_own_handle_multiplies_also_in_a_graph(gpu, shapes, dtype):
    from tapegrad.kernels.cuda.blas import Handle

    rng, stream = np.random.default_rng(0), gpu.cuda.Stream(non_blocking=True)
    host = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    with stream:
        handle = Handle(stream.ptr)
        a, b = (gpu.asarray(x) for x in host)
        out = handle.matmul(a, b)
        near([out.get()], [host[0].astype(F64) @ host[1]], {4: 2e-6, 8: 1e-14}[out.itemsize])
        stream.begin_capture()
        handle.matmul(a, b, out)
        graph = stream.end_capture()
        a *= 2
        out.fill(0)
        graph.launch(stream)
        near([out.get()], [2 * host[0].astype(F64) @ host[1]], {4: 2e-6, 8: 1e-14}[out.itemsize])
    handle.close()


@on_a_gpu
def test_products_have_the_precision_that_was_asked_for(gpu):
    from tapegrad.kernels.cuda.blas import Handle

    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((512, 512)).astype(F32) for _ in range(2))
    errors = {}
    for tf32 in (False, True):
        handle = Handle(gpu.cuda.get_current_stream().ptr, tf32=tf32)
        found = handle.matmul(gpu.asarray(a), gpu.asarray(b)).get()
        errors[tf32] = np.linalg.norm(found - a.astype(F64) @ b) / np.linalg.norm(a.astype(F64) @ b)
        handle.close()
    assert errors[False] < 2e-6
    assert errors[True] > 20 * errors[False]


@on_a_gpu
@pytest.mark.parametrize(
    ("hidden", "batch", "window"), [(256, 1, 50), (1024, 1, 20), (512, 64, 20), (1024, 64, 5)]
)
def test_sizes_of_the_benchmark_are_captured_and_right(gpu, hidden, batch, window):
    found, rng = [], np.random.default_rng(0)
    xs = rng.standard_normal((window + 16, batch, hidden)).astype(F32)
    for device, captured in (("cuda", True), ("cpu", False)):
        cell = tg.nn.LSTMCell(hidden, hidden, rng=0).to(device)
        tape, optimizer = tg.CapacitorTape(window, weights="current"), tg.optim.SGD(cell.parameters(), 0.1)

        def body(x, state, cell=cell, tape=tape, optimizer=optimizer):
            with tape:
                out, state = cell(x, state)
                loss = tg.mean(out * out)
            if tape.backward(loss):
                optimizer.step()
                optimizer.zero_grad()
            return state

        step, state = tg.capture(body) if captured else body, cell.initial_state(batch)
        for x in xs:
            state = step(tg.asarray(x, device=device), state)
        if captured:
            assert step.graphs == 1 and step.launches, step.reason
        found.append([here(p) for p in cell.parameters()])
    near(*found, 1e-5)


@on_a_gpu
def test_the_model_can_be_calibrated(gpu):
    from tapegrad.kernels.cuda import calibrate

    costs = calibrate.measure(calibrate.CupyStopwatch(), 0.5)
    assert 0.2 < costs.gap < 20 and 0.2 < costs.barrier < 50, costs
    assert all(rate > 0 for _, rate in costs.gemm_rates)


@on_a_gpu
def test_the_doctor_finds_nothing_wrong(gpu):
    done = subprocess.run(
        [sys.executable, "-m", "tapegrad", "doctor"], capture_output=True, text=True, cwd=ROOT.anchor
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- compute-sanitizer -------------------------------------------------------------------------------------

# Every kernel of a captured loop, and the persistent backward with several blocks; small, since each access is checked.
# Without CuPy's pool, arrays have ends that memcheck knows.
CHECKED = """
import json
import cupy, numpy as np
cupy.cuda.set_allocator(None)
import tapegrad as tg
from tapegrad.kernels.cuda import plan
from tapegrad.kernels.cuda.rings import Launches, Rings

reasons = []
for kind in (tg.nn.LSTMCell, tg.nn.GRUCell, tg.nn.RNNCell):
    cell, readout = kind(8, 64, rng=0).to("cuda"), tg.nn.Linear(64, 5, rng=1).to("cuda")
    optimizer = tg.optim.Adam([*cell.parameters(), *readout.parameters()], 1e-3)
    tape = tg.CapacitorTape(3, weights="current")

    @tg.capture
    def step(x, labels, state):
        with tape:
            out, state = cell(x, state)
            loss = tg.softmax_cross_entropy(readout(out), labels)
        if tape.backward(loss):
            optimizer.step()
            optimizer.zero_grad()
        return state

    state = cell.initial_state(3)
    for t in range(14):
        state = step(cupy.full((3, 8), 0.1 * t, np.float32), cupy.arange(3) + t % 2, state)
    reasons.append(step.reason)
for cell in ("lstm", "gru", "rnn"):
    rings = Rings(cupy, cell, 3, 5, 8, 64)
    rings.head[...] = cupy.array([1, 3], np.int32)
    w_h, seeds = cupy.ones((64, rings.gates_count * 64), np.float32), cupy.ones((1, 5, 64), np.float32)
    passed = cupy.empty((3, 5, 64), np.float32), cupy.empty((3, 5, 64), np.float32)
    Launches(rings, plan.persistent_backward(cell, 64, 5)).backward(w_h, seeds, passed)
cupy.cuda.Device().synchronize()
print(json.dumps(reasons))
"""


def sanitizer():
    """compute-sanitizer, or None: on the path, with the toolkit, or among the wheels of NVIDIA's."""
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    for path in (None, *(f"{folder}/bin" for folder in folders if folder)):
        if found := shutil.which("compute-sanitizer", path=path):
            return found
    wheels = importlib.util.find_spec("nvidia")
    for folder in wheels.submodule_search_locations if wheels else []:
        for found in pathlib.Path(folder).rglob("compute-sanitizer"):
            return str(found)
    return None


@on_a_gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(gpu, tool, tmp_path):
    found = sanitizer()
    if found is None:
        pytest.skip(
            "compute-sanitizer is neither on the path nor in CUDA_HOME: it comes with the CUDA toolkit"
        )
    script = tmp_path / "checked.py"
    script.write_text(CHECKED)
    command = [
        found,
        "--tool",
        tool,
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "99",
        sys.executable,
        str(script),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    printed = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert json.loads(printed[-1]) == [""] * 3, (
        "a loop was not captured, and its kernels were not checked in a graph"
    )
