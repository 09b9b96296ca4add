"""`bench/gpu.py` where there is no GPU: the dry run, the arithmetic of the goals, and who is named and not timed."""

import argparse
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from tapegrad.kernels.cuda import source

import fake_cublas
import strict_cupy
from tapegrad.backend import capture

BENCH = pathlib.Path(__file__).parent.parent / "bench"
DRY = "dry run: these are not GPU figures"
SIZE = {"hidden": 512, "batch": 16, "window": 20}

without_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is not None, reason="CuPy is installed here"
)


@pytest.fixture
def bench(monkeypatch):
    """(gpu, gpu_goals, peers.on_gpu, Work) of bench/, which pins threads by environment variables when it is imported."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = dict(os.environ)
    import gpu
    import gpu_goals
    from peers import on_gpu
    from peers.work import Work

    os.environ.clear()
    os.environ.update(before)
    monkeypatch.setattr(gpu, "AT_LEAST", 1e-4)
    return gpu, gpu_goals, on_gpu, Work("lstm", 2, 8, 4)


def run(*arguments):
    command = [sys.executable, str(BENCH / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=BENCH.anchor, timeout=120)


# -- the file as a whole -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs PyTorch, whose CPU plays the peers"
)
def test_a_dry_run_goes_through_all_and_marks_every_table(tmp_path):
    results = BENCH / "results" / "gpu.json"
    before = results.read_bytes() if results.exists() else None
    done = run("--dry", "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    tables = [line for line in done.stdout.splitlines() if line.startswith("IEEE")]
    assert len(tables) == 5 and all(DRY in line for line in tables), done.stdout
    for name in ("tapegrad, captured", "tapegrad, eager", "LSTMCell, eager", "LSTMCell, CUDA graph",
                 "cuDNN nn.LSTM, eager", "cuDNN nn.LSTM, CUDA graph", "JAX, jitted scan"):  # fmt: skip
        assert name in done.stdout
    assert "WRONG" not in done.stdout and "written" not in done.stdout.replace("nothing is written", "")
    assert (results.read_bytes() if results.exists() else None) == before


@without_cupy
@pytest.mark.parametrize("arguments", [[], ["--quick"], ["--probe"]])
def test_without_a_gpu_it_says_so_in_a_line(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout.splitlines() == [
        "gpu: CuPy is not installed or finds no GPU: nothing was measured. --dry tests this file without one."
    ]


@without_cupy
def test_a_gpu_that_is_missing_is_no_failure_of_all_benchmarks():
    command = [sys.executable, str(BENCH / "all.py"), "gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.anchor, timeout=120)
    assert done.returncode == 0
    assert "left out, there is no GPU: gpu" in done.stdout, done.stdout


# -- goals -------------------------------------------------------------------------------------------------


def test_budgets_and_ratios_are_those_of_the_table(bench):
    _, goals, *_ = bench
    assert [goals.budget(256, 1, k) for k in (5, 20, 50)] == [40, 75, 140]
    assert [goals.budget(512, 16, k) for k in (5, 20, 50)] == [60, 140, 300]
    assert [goals.budget(1024, 64, k) for k in (5, 20, 50)] == [320, 1050, 2500]
    assert goals.budget(256, 1, 21) is goals.budget(8, 1, 5) is None
    assert goals.ratios(1024, 1) == goals.ratios(256, 1) == (10, 4)
    assert goals.ratios(512, 16) == (6, 3) and goals.ratios(512, 64) == (3, 1.5)
    assert goals.ratios(1024, 64) == (1.2, 1.0) and goals.ratios(8, 1) == (None, None)


def found(goals, us, eager, cudnn, host=20.0):
    """What is measured of SIZE: our microseconds, and how many times faster than each peer."""
    return {
        **SIZE,
        "swept": "persistent",
        "rows": {
            goals.OURS: {"us": us, "host_us": host, "weights": "current"},
            goals.CELLS: {"weights": "replay"},
        },
        "faster_than": {goals.CELLS: {"median": eager}, goals.CUDNN: {"median": cudnn}},
    }


def test_a_goal_is_reached_at_its_bound_and_not_beyond(bench):
    _, goals, *_ = bench
    at = goals.row(found(goals, 140.0, 6.0, 3.0))
    assert at[:7] == ["512", "16", "20", "current, replay", "persistent", "140", "140"]
    assert at[7:] == ["yes", "6", "6", "yes", "3", "3", "yes"]
    beyond = goals.row(found(goals, 140.1, 5.99, 2.99))
    assert beyond[7::3] == ["NO"] * 3
    assert goals.reached([found(goals, 140.0, 6.0, 2.0), found(goals, 150.0, 6.0, 3.0, host=25.1)]) == (5, 8)
    assert goals.host_row(found(goals, 1.0, 1.0, 1.0, host=25.0))[1] == "yes"


def test_what_was_not_measured_is_neither_reached_nor_missed(bench):
    _, goals, *_ = bench
    nothing = {**SIZE, "rows": {}, "faster_than": {}}
    assert goals.row(nothing)[7::3] == ["–"] * 3
    assert goals.reached([nothing]) == (0, 0)


# -- what is run -------------------------------------------------------------------------------------------


def options(**given):
    return argparse.Namespace(**{"dry": False, "quick": False, "ways": False, "only": "", **given})


def test_sizes_are_chosen_by_what_is_named_of_them(bench):
    gpu, *_ = bench
    assert len(set(gpu.chosen(options()))) == 27
    assert {size[:2] for size in gpu.chosen(options())[:8]} == {(h, b) for h in (256, 1024) for b in (1, 64)}
    assert gpu.chosen(options(only="256,1,20")) == [(256, 1, 20)]
    assert gpu.chosen(options(only="384,4,7")) == [(384, 4, 7)]
    assert sorted(gpu.chosen(options(only=",16,5"))) == [(256, 16, 5), (512, 16, 5), (1024, 16, 5)]
    assert len(gpu.chosen(options(only="1024"))) == 9
    assert len(gpu.chosen(options(quick=True))) == 4


def test_a_peer_that_is_not_installed_is_named(bench, monkeypatch):
    gpu, goals, *_ = bench
    monkeypatch.setattr(gpu.paired, "installed", lambda package: False)
    makers, jax, missing = gpu.contenders("ieee", dry=True)
    assert jax is None and list(makers(bench[3])) == [goals.OURS, goals.EAGER]
    assert missing == dict.fromkeys(
        (goals.CELLS, goals.CELLS_IN_GRAPH, goals.CUDNN, goals.CUDNN_IN_GRAPH, goals.JAX), "not installed"
    )


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs PyTorch")
def test_a_peer_without_cuda_is_named_with_the_reason(bench, monkeypatch):
    gpu, goals, *_ = bench
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.contenders("ieee", dry=False)[2][goals.CUDNN] == f"PyTorch {torch.__version__} sees no GPU"


def test_who_computes_something_else_is_named_and_not_timed(bench):
    gpu, goals, on_gpu, work = bench

    class Short(on_gpu.Taped):
        """Forgets the oldest step."""

        def __init__(self, work):
            super().__init__(work, "cpu", captured=False)
            import tapegrad as tg

            self.tape = tg.CapacitorTape(work.window - 1, weights="current")

    of_size = gpu.held(
        work,
        {goals.OURS: lambda: on_gpu.Taped(work, "cpu", True), goals.CELLS: lambda: on_gpu.Taped(work, "cpu", False),
         goals.EAGER: lambda: Short(work)},
        "ieee", rounds=1,
    )  # fmt: skip
    assert set(of_size["rows"]) == {goals.OURS, goals.CELLS}
    (said,) = of_size["wrong"]
    assert said.startswith(f"hidden 8, batch 2, window 4: {goals.EAGER} is ") and said.endswith(goals.CELLS)


def test_who_breaks_off_ends_nothing_for_the_others(bench):
    gpu, goals, on_gpu, work = bench

    def broken():
        raise MemoryError("no room\nat all")

    of_size = gpu.held(
        work, {goals.OURS: lambda: on_gpu.Taped(work, "cpu", True), goals.CUDNN: broken}, "ieee", rounds=1
    )
    assert list(of_size["rows"]) == [goals.OURS] and of_size["faster_than"] == {}
    assert of_size["wrong"] == [f"hidden 8, batch 2, window 4: {goals.CUDNN}: MemoryError: no room"]


def test_times_are_of_a_step_and_ratios_within_a_round(bench, monkeypatch):
    gpu, goals, on_gpu, work = bench

    class Clocked(on_gpu.Timed):
        """Computes nothing; its steps take as long as they say, and three times that in the first run of a turn."""

        weights = "replay"

        def __init__(self, seconds):
            super().__init__(work)
            self.seconds = seconds

        def step(self, k):
            pass

        def run(self, steps):
            self.taken += steps
            took = self.seconds * steps * (1 if len(self.turns) % 2 else 3)
            self.turns.append(2 * took)
            now[0] += took

        def parameters(self):
            return {"w": np.ones(3)}

        def gradient(self):
            return np.ones(3)

        def calls(self, steps):
            return [1e-6] * steps

    now = [0.0]
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: now[0])
    of_size = gpu.held(
        work, {goals.OURS: lambda: Taped(Clocked, 2e-5), goals.CUDNN: lambda: Clocked(1e-4)}, "ieee", rounds=3
    )

    assert of_size["rows"][goals.OURS] | {"weights": ""} == {
        "weights": "", "us": 20.0, "low": 20.0, "high": 20.0, "device_us": 40.0, "host_us": 1.0,
    }  # fmt: skip
    assert of_size["faster_than"][goals.CUDNN]["median"] == 5.0


# -- on the stand-in for CuPy ------------------------------------------------------------------------------


@pytest.fixture
def cupy(monkeypatch):
    if importlib.util.find_spec("cupy") is not None:
        pytest.skip("CuPy itself is installed, and the stand-in shares no process with it")
    source.compiled.cache_clear()
    with strict_cupy.installed() as module, fake_cublas.installed():
        monkeypatch.setattr(module.cuda.runtime, "memGetInfo", lambda: (60 << 30, 80 << 30), raising=False)
        yield module
        capture.LATEST.clear()  # handles of the library that is installed here
    source.compiled.cache_clear()


def test_a_captured_loop_is_timed_by_events_and_holds_its_memory(bench, cupy):
    gpu, goals, on_gpu, work = bench
    makers = {
        goals.OURS: lambda: on_gpu.Taped(work, "cuda", captured=True),
        goals.EAGER: lambda: on_gpu.Taped(work, "cuda", captured=False),
        goals.CELLS: lambda: on_gpu.Taped(work, "cpu", captured=False),
    }
    of_size = gpu.held(work, makers, "ieee", rounds=1)
    assert not of_size["wrong"], of_size["wrong"]
    assert max(of_size["gradients"]["differences"].values()) < 1e-5
    assert of_size["swept"] == "persistent"
    assert of_size["rows"][goals.OURS]["device_us"] > 0 and of_size["rows"][goals.CELLS]["device_us"] is None
    assert gpu.replays(makers[goals.OURS](), 50)["bytes_grown"] == {"used": 0, "got": 0, "taken": 0}


def test_each_way_to_sweep_is_a_row_of_its_own(bench, cupy):
    gpu, goals, on_gpu, work = bench
    for name, way in goals.WAYS.items():
        contender = on_gpu.Taped(work, "cuda", captured=True, way=way)
        contender.run(20)
        assert (contender.fell_back(), contender.swept()) == ("", way), name
    makers, *_ = gpu.contenders("ieee", dry=True, ways=True)
    assert list(makers(work))[: 2 + len(goals.WAYS)] == [goals.OURS, goals.EAGER, *goals.WAYS]


def test_a_loop_that_is_not_captured_is_named(bench, cupy, monkeypatch):
    gpu, goals, on_gpu, work = bench
    from tapegrad.program import graph

    monkeypatch.setattr(graph, "WARM", 10**6)
    of_size = gpu.held(work, {goals.OURS: lambda: on_gpu.Taped(work, "cuda", True)}, "ieee", rounds=1)
    assert of_size["wrong"] == [
        f"hidden 8, batch 2, window 4: {goals.OURS} ran eagerly: the loop never became steady"
    ]


@pytest.fixture
def probe(bench, monkeypatch):
    import gpu_probe

    monkeypatch.setattr(gpu_probe, "ROUNDS", 1)
    monkeypatch.setattr(gpu_probe, "TIMES", 1)
    monkeypatch.setattr(gpu_probe, "SIZES", [(64, 3)])
    return gpu_probe


@pytest.mark.parametrize(
    ("question", "figures"),
    [("a captured product of our own handle", 2), ("a captured cooperative launch", 1)],
)
def test_questions_are_asked_as_a_capture_allows(probe, cupy, question, figures):
    said = probe.answered(question)
    assert set(said) == {"figures"}, said
    assert len(said["figures"]) == figures


def test_a_question_that_fails_says_why(probe, cupy, monkeypatch):
    monkeypatch.setattr(probe.blas.Handle, "matmul", lambda self, a, b, out: out)
    assert probe.answered("a captured product of our own handle")["error"].startswith(
        "AssertionError: a graph's product"
    )


def test_what_the_other_questions_ask_for_is_there(probe):
    """They need a GPU; here their arguments are looked at."""
    assert probe.kernels.sgd.configuration(list(probe.of_sgd(np)))
    asked = probe.calibrate.samples(
        types.SimpleNamespace(multiprocessors=132, launches=None, graph=None, follow=None, copy=None)
    )
    assert {"gap", "launch", "barrier 1", "barrier 132"} <= set(asked)


def Taped(kind, seconds):
    """A contender that is asked whether it was captured."""
    made = kind(seconds)
    made.fell_back, made.swept = (lambda: ""), lambda: "persistent"
    return made
