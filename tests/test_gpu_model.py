"""The model that says how a window is swept on a GPU: its parts, its choice, and how its constants are measured."""

import itertools
import json
import os
import re
import subprocess
import sys
import types

import numpy as np
import pytest
from tapegrad.kernels.cuda import calibrate, costs, model, plan, source
from tapegrad.kernels.cuda.costs import ESTIMATES, Costs, Origin
from tapegrad.kernels.cuda.model import choose, parts, window_cost

import fibres
import nvcc

CELLS = ("lstm", "gru", "rnn")
HERE = Origin("NVIDIA H100 80GB HBM3", 13000, 132)
# Costs of nobody's GPU, all unlike the estimates.
OTHERS = Costs(
    launch=7.0, gap=2.1, barrier=1.4, barrier_of_block=0.011, latency=0.21, l2_of_block=55.0, l2=4100.0,
    l2_bytes=40 * 2.0**20, dram=1900.0, fp32_of_block=390.0, clock=1700.0, gemm=5.5,
    gemm_rates=((1, 1.1), (8, 5.0), (32, 14.0), (128, 27.0), (512, 41.0)),
)  # fmt: skip


def fits(way, cell, hidden, batch, gpu=plan.H100):
    return way != "persistent" or not model.why_not(cell, hidden, batch, gpu)


# -- parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("window", [1, 7])
def test_each_way_launches_as_many_kernels_as_it_has(cell, window):
    """Counted by hand: the deposit of a step; the sweep; a product for the weights, three for a GRU's."""
    products, biases = (3, 2) if cell == "gru" else (1, 1)
    kernels = {
        "persistent": 1 + 1 + products,
        "alternating": 1 + 2 * window + products + (cell == "gru"),
        "generic": window * (1 + 3 + 2 + 2 * biases),
    }
    for way, count in kernels.items():
        assert sum(work.kernels for work in parts(way, cell, 64, 2, window).values()) == count


def test_time_is_gaps_where_all_else_is_free():
    free = Costs(
        launch=100.0, gap=1.0, barrier=0.5, barrier_of_block=0.125, latency=0.0, l2_of_block=1e30, l2=1e30, dram=1e30,
        fp32_of_block=1e30, clock=1e30, gemm=0.0, gemm_rates=((1, 1e30),),
    )  # fmt: skip
    blocks = plan.persistent_backward("lstm", 64, 1, costs=free).grid[0]
    assert window_cost("persistent", "lstm", 64, 1, 10, free, True) == pytest.approx(
        3 + 10 * (0.5 + 0.125 * blocks)
    )
    assert window_cost("alternating", "lstm", 64, 1, 10, free, True) == pytest.approx(1 + 20 + 1)
    assert window_cost("alternating", "lstm", 64, 1, 10, free, False) == pytest.approx(22 * 100.0)
    assert window_cost("generic", "lstm", 64, 1, 10, free, True) == pytest.approx(80)


def test_a_product_takes_its_latency_and_the_slower_of_arithmetic_and_memory():
    bare = ESTIMATES.gap + ESTIMATES.gemm
    assert model.product(128, 1024, 4096, ESTIMATES).time - bare == pytest.approx(
        2 * 128 * 1024 * 4096 / 38e6
    )
    # Sixteen rows are filled up to 32, which is quicker than two times eight.
    assert model.product(1024, 16, 4096, ESTIMATES).time - bare == pytest.approx(2 * 32 * 1024 * 4096 / 22e6)
    # 36 MB written: more than stays in L2.
    bytes = 4 * (2049 * 1 + 1 * 4096 + 2049 * 4096)
    assert model.product(2049, 4096, 1, ESTIMATES).time - bare == pytest.approx(bytes / 3000e3)


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("way", model.WAYS)
def test_more_work_never_costs_less(way, cell, captured):
    sizes = {"hidden": (64, 128, 256, 512, 1024), "batch": (1, 2, 3, 8, 16, 33, 64), "window": (1, 5, 20, 50)}
    for (name, values), constants in itertools.product(sizes.items(), (ESTIMATES, OTHERS)):
        others = [itertools.product([key], sizes[key]) for key in sizes if key != name]
        for rest in itertools.product(*others):
            given = [{**dict(rest), name: value} for value in values]
            found = [
                window_cost(way, cell, **sizes_, costs=constants, captured=captured)
                for sizes_ in given
                if fits(way, cell, sizes_["hidden"], sizes_["batch"])
            ]
            # A window is divided as is best for 20 steps, and may have done better for fewer.
            exact = way != "persistent" or name == "window" or dict(rest)["window"] == plan.USUAL_STEPS
            slack = 1e-12 if exact else 0.05
            assert all(b >= a * (1 - slack) for a, b in itertools.pairwise(found)), (name, rest, found)


@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_is_never_slower_than_launches(cell):
    for way, hidden, batch, window in itertools.product(model.WAYS, (64, 512), (1, 64), (1, 50)):
        graph, eager = (window_cost(way, cell, hidden, batch, window, OTHERS, c) for c in (True, False))
        assert 0 < graph <= eager


# -- the choice ----------------------------------------------------------------------------------------


def drawn(rng):
    """Costs up to four times as small or large as the estimates."""
    factors = iter(4 ** rng.uniform(-1, 1, 20))
    rates = tuple((rows, rate * next(factors)) for rows, rate in ESTIMATES.gemm_rates)
    return Costs(*(value * next(factors) for value in ESTIMATES[:-1]), rates)


def test_the_choice_is_the_least_of_the_sums_of_parts():
    rng, chosen = np.random.default_rng(0), set()
    for _ in range(300):
        given, captured = drawn(rng), bool(rng.integers(2))
        sizes = (str(rng.choice(CELLS)), *(int(4 ** rng.uniform(0, k)) for k in (5, 4, 3)))
        sizes = (sizes[0], 4 * sizes[1], *sizes[2:])
        totals = {}
        for way in model.WAYS:
            if fits(way, *sizes[:3]):
                works = parts(way, *sizes, given).values()
                host = given.launch * sum(w.kernels for w in works)
                device = sum(w.time for w in works)
                totals[way] = device if captured else max(host, device)
        found = choose(*sizes, plan.H100, captured=captured, costs=given)
        assert totals[found] == min(totals.values()), (sizes, totals)
        chosen.add(found)
    assert chosen == set(model.WAYS)  # or the test shows nothing


def test_dear_barriers_and_dear_gaps_change_the_choice():
    dear_barriers, dear_gaps = ESTIMATES._replace(barrier=60.0), ESTIMATES._replace(barrier=60.0, gap=80.0)
    assert choose("lstm", 256, 16, 20, plan.H100, captured=True, costs=ESTIMATES) == "persistent"
    assert choose("lstm", 256, 16, 20, plan.H100, captured=True, costs=dear_barriers) == "alternating"
    assert choose("lstm", 256, 16, 20, plan.H100, captured=True, costs=dear_gaps) == "persistent"


def test_what_does_not_fit_is_not_chosen():
    narrow = plan.Gpu("a small GPU", 16, 100 * 1024)
    for hidden, batch, gpu in ((1024, 1, narrow), (4096, 1, plan.H100), (30, 1, plan.H100)):
        with pytest.raises(ValueError, match="^persistent_backward: ") as reason:
            plan.persistent_backward("lstm", hidden, batch, gpu)
        assert choose("lstm", hidden, batch, 20, gpu, captured=True, costs=ESTIMATES) != "persistent"
        with pytest.raises(ValueError, match=re.escape(str(reason.value))):
            choose("lstm", hidden, batch, 20, gpu, way="persistent")
        with pytest.raises(ValueError, match=re.escape(str(reason.value))):
            parts("persistent", "lstm", hidden, batch, 20, ESTIMATES, gpu)


def test_the_users_word_goes_first_and_an_arguments_before_that():
    for way in model.WAYS:
        assert choose("lstm", 256, 1, 20, way=way) == way
        before = model.use(way)
        try:
            assert before == "auto" and choose("lstm", 256, 1, 20) == way
            assert choose("lstm", 256, 1, 20, way="generic") == "generic"
        finally:
            assert model.use(before) == way
    with pytest.raises(ValueError, match="auto, persistent, alternating, generic; 'quick' came"):
        choose("lstm", 256, 1, 20, way="quick")
    with pytest.raises(ValueError, match="TAPEGRAD_GPU_SWEEP"):
        model.use("quick")
    assert model.WAY == "auto"


@pytest.mark.parametrize(
    ("variable", "said", "printed"),
    [
        ("SWEEP", "alternating", "alternating auto"),
        ("STEP", "products", "auto products"),
        ("STEP", "", "auto auto"),
        ("SWEEP", "fast", "ValueError: a window"),
        ("STEP", "fast", "ValueError: a step"),
    ],
)
def test_the_environment_says_how(variable, said, printed):
    code = "from tapegrad.kernels.cuda import model; print(model.WAY, model.STEP)"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TAPEGRAD_GPU_")}
    environment |= {f"TAPEGRAD_GPU_{variable}": said} if said else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert printed in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (("cnn", 256, 1, 20), "no cell is called 'cnn'; there are lstm, gru, rnn"),
        (("lstm", 0, 1, 20), "hidden must be at least 1.\n  hidden: 0"),
        (("lstm", 256, 1, 0), "window must be at least 1.\n  window: 0"),
    ],
)
def test_sizes_that_make_no_sense_are_named(sizes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        choose(*sizes)


def test_without_a_gpu_estimates_for_an_h100_decide(monkeypatch):
    monkeypatch.setattr(source, "available", lambda: False)
    assert model.this_gpu() == plan.H100 and model.these_costs() == ESTIMATES
    assert choose("lstm", 512, 16, 20) == choose("lstm", 512, 16, 20, plan.H100, costs=ESTIMATES)


def test_a_plan_is_made_by_the_costs_at_hand():
    few_blocks = plan.persistent_backward("lstm", 256, 1, costs=ESTIMATES._replace(barrier_of_block=1.0))
    assert few_blocks.grid[0] < plan.persistent_backward("lstm", 256, 1).grid[0]


# -- steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_a_fused_step_is_one_kernel_and_the_other_three(cell):
    for way, count in {"fused": 1, "products": 3}.items():
        assert sum(work.kernels for work in model.parts_of_step(way, cell, 64, 64, 2).values()) == count
        eager = model.step_cost(way, cell, 64, 64, 2, OTHERS._replace(launch=1e3), captured=False)
        assert eager == count * 1e3
        graph = model.step_cost(way, cell, 64, 64, 2, OTHERS._replace(launch=1e3), captured=True)
        assert graph == model.step_cost(way, cell, 64, 64, 2, OTHERS, captured=True) < 1e2


def test_a_fused_step_reads_the_weights_once_for_eight_rows():
    gaps = ESTIMATES.gap + 3 * ESTIMATES.latency
    # 32 MiB of weights, more than stays in L2; then 2 MiB, whose blocks read 64 KiB each, in sectors of eight floats.
    large, small = (model.step_cost("fused", "lstm", n, n, 1, captured=True) for n in (1024, 256))
    assert large == pytest.approx(gaps + 4 * 2048 * 4096 / 3000e3)
    added = 4 * 16 * 1 * 4 / ESTIMATES.clock
    assert small == pytest.approx(gaps + 4 * 512 * 4 * 8 / 79e3 + added)
    free = ESTIMATES._replace(fp32_of_block=1e30, clock=1e30, latency=0.0, l2_of_block=1e30)
    costs = [
        model.step_cost("fused", "lstm", 256, 256, rows, free, True) - free.gap for rows in (8, 9, 16, 17)
    ]
    assert costs == pytest.approx([costs[0], 2 * costs[0], 2 * costs[0], 3 * costs[0]])


@pytest.mark.parametrize("captured", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_estimates_fuse_steps_of_up_to_eight_rows(cell, captured):
    for hidden, batch in itertools.product((64, 256, 512, 1024), (1, 2, 3, 8, 9, 64)):
        found = model.choose_step(cell, hidden, hidden, batch, plan.H100, captured=captured, costs=ESTIMATES)
        assert found == ("fused" if batch <= 8 else "products"), (hidden, batch)


def test_a_step_is_made_the_way_that_costs_less():
    rng, chosen = np.random.default_rng(0), set()
    for _ in range(300):
        given, captured = (
            drawn(rng)._replace(l2_of_block=79.0 / 4 ** rng.uniform(0, 4)),
            bool(rng.integers(2)),
        )
        sizes = (
            str(rng.choice(CELLS)),
            *(4 * int(4 ** rng.uniform(0, 4)) for _ in range(2)),
            int(rng.integers(1, 9)),
        )
        found = model.choose_step(*sizes, plan.H100, captured=captured, costs=given)
        costs = {way: model.step_cost(way, *sizes, given, captured) for way in model.STEPS}
        assert costs[found] == min(costs.values()), (sizes, costs)
        chosen.add(found)
    assert chosen == set(model.STEPS)  # or the test shows nothing


def test_the_user_says_how_to_step_where_it_fits():
    assert model.choose_step("lstm", 64, 64, 100, way="fused") == "fused"
    assert model.choose_step("lstm", 64, 64, 1, way="products") == "products"
    before = model.use_step("products")
    try:
        assert before == "auto" and model.choose_step("lstm", 64, 64, 1) == "products"
        assert model.choose_step("lstm", 64, 64, 1, way="fused") == "fused"
        for sizes in ((63, 64, 1), (64, 66, 1), (0, 64, 1)):
            assert model.choose_step("lstm", *sizes, way="fused") == "products"
    finally:
        assert model.use_step(before) == "products"
    assert model.choose_step("lstm", 63, 64, 1) == "products"
    with pytest.raises(ValueError, match="a step is made by one of auto, fused, products; 'quick' came"):
        model.choose_step("lstm", 64, 64, 1, way="quick")
    with pytest.raises(ValueError, match="TAPEGRAD_GPU_STEP"):
        model.use_step("quick")
    assert model.STEP == "auto"


# -- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TAPEGRAD_CACHE", str(tmp_path / "cache"))
    costs.measured.cache_clear()
    yield tmp_path / "cache"
    costs.measured.cache_clear()


def test_costs_come_back_from_their_file(folder):
    assert costs.measured(HERE) is None
    path = costs.keep(OTHERS, HERE, {"cupy": "14.2.0"})
    assert path.parent == folder and "h100" in path.name and "13000" in path.name
    assert costs.measured(HERE) == OTHERS
    assert costs.measured(HERE._replace(driver=12080)) is None  # another driver has a file of its own
    content = json.loads(path.read_text())
    assert content["versions"] == {"cupy": "14.2.0"} and content["origin"]["device"] == HERE.device
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", content["date"])


def test_measured_costs_decide_on_their_gpu(folder, monkeypatch):
    monkeypatch.setattr(source, "available", lambda: True)
    monkeypatch.setattr(source, "this_gpu", lambda: plan.H100)
    monkeypatch.setattr(costs, "this_origin", lambda: HERE)
    assert model.these_costs() == ESTIMATES and choose("lstm", 256, 16, 20, captured=True) == "persistent"
    costs.keep(ESTIMATES._replace(barrier=60.0), HERE, {})
    assert choose("lstm", 256, 16, 20, captured=True) == "alternating"


def spoilt(change):
    def write(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("{"), "JSONDecodeError"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "UnicodeDecodeError"),
        (lambda path: path.write_text("[]"), "TypeError"),
        (spoilt(lambda c: c["origin"].update(device="NVIDIA L4")), "it is of {'device': 'NVIDIA L4'"),
        (spoilt(lambda c: c["origin"].update(multiprocessors=66)), "'multiprocessors': 66"),
        (spoilt(lambda c: c.update(format=0)), "its format is 0, and 1 is read here"),
        (spoilt(lambda c: c["costs"].pop("gap")), "['gap'] are missing or unknown"),
        (spoilt(lambda c: c["costs"].update(speed=1.0)), "['speed'] are missing or unknown"),
        (spoilt(lambda c: c["costs"].update(gap=-1.0)), "not a positive number"),
        (spoilt(lambda c: c["costs"].update(l2=float("nan"))), "not a positive number"),
        (spoilt(lambda c: c["costs"].update(l2=None)), "TypeError"),
        (spoilt(lambda c: c["costs"].update(gemm_rates=[])), "not a positive number"),
        (spoilt(lambda c: c["costs"].update(gemm_rates=[[1, 0.0]])), "not a positive number"),
        (spoilt(lambda c: c.pop("costs")), "KeyError: 'costs'"),
    ],
)  # fmt: skip
def test_a_file_that_is_spoilt_or_foreign_is_ignored_with_a_warning(folder, spoil, said):
    spoil(costs.keep(OTHERS, HERE, {}))
    with pytest.warns(UserWarning, match=re.escape(said)) as caught:
        assert costs.measured(HERE) is None
    assert str(costs.file_of(HERE)) in str(caught[0].message)
    assert costs.measured(HERE) is None  # and is said once


# -- measuring, on a clock of known costs --------------------------------------------------------------


class Known:
    """A stopwatch of a GPU that costs what `true` says; its pace wanders, and every time is a little off."""

    multiprocessors, clock, l2_bytes = 132, OTHERS.clock, OTHERS.l2_bytes

    def __init__(self, true, noise=0.0, seed=0):
        self.true, self.noise, self.rng, self.calls = true, noise, np.random.default_rng(seed), 0

    def took(self, time):
        self.calls += 1
        pace = 1 + 0.2 * np.sin(self.calls / 60)
        outlier = 5.0 if self.noise and self.rng.random() < 0.02 else 1.0
        return time * pace * outlier * (1 + self.noise * self.rng.standard_normal())

    def launches(self, kernels):
        return self.took(30 + kernels * self.true.launch)

    def graph(self, kernels):
        return self.took(9 + kernels * self.true.gap)

    def barriers(self, blocks, turns):
        return self.took(6 + turns * (self.true.barrier + blocks * self.true.barrier_of_block))

    def follow(self, steps):
        return self.took(4 + steps * self.true.latency)

    def read_l2(self, blocks, turns):
        bytes = 16 * calibrate.QUADS * turns
        return self.took(5 + max(bytes / self.true.l2_of_block, blocks * bytes / self.true.l2) / 1e3)

    def multiply_add(self, blocks, turns):
        return self.took(5 + 2e-3 * calibrate.CHAINS * calibrate.THREADS * turns / self.true.fp32_of_block)

    def copy(self, bytes):
        return self.took(7 + 2e-3 * bytes / self.true.dram)

    def product(self, m, n, k):
        return self.took(model.product(m, n, k, self.true).time)


def close(found, true, tolerance):
    for name in Costs._fields[:-1]:
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=tolerance), name
    assert dict(found.gemm_rates) == pytest.approx(dict(true.gemm_rates), rel=tolerance)


def steady(self, time):
    return time


@pytest.mark.parametrize("true", [ESTIMATES, OTHERS], ids=["estimates", "others"])
def test_known_costs_are_found_again(true, monkeypatch):
    monkeypatch.setattr(Known, "took", steady)
    known = Known(true)
    known.clock, known.l2_bytes = true.clock, true.l2_bytes
    found = calibrate.measure(known, 0.0)
    # A product of no size has some: 0.005 µs of arithmetic.
    close(found._replace(gemm=true.gemm), true, 1e-3)
    assert found.gemm == pytest.approx(true.gemm, rel=0.01)


def test_neither_noise_nor_the_pace_of_the_moment_spoils_them():
    ticks = itertools.count()
    found = calibrate.measure(Known(OTHERS, noise=0.003), 80.0, lambda: next(ticks))
    # The line through the barriers has a slope of 1.4 µs over 131 blocks.
    close(found._replace(barrier_of_block=OTHERS.barrier_of_block), OTHERS, 0.06)
    assert found.barrier_of_block == pytest.approx(OTHERS.barrier_of_block, rel=0.25)


def test_rounds_go_on_for_the_seconds_they_are_given_and_no_fewer_than_five():
    known = Known(OTHERS)
    calibrate.measure(known, 0.0, lambda: 0)
    each, left = divmod(known.calls, 1 + calibrate.LEAST_ROUNDS)  # and one that does not count
    assert left == 0
    for rounds in (2, 20):
        known = Known(OTHERS)
        calibrate.measure(known, rounds * each, lambda known=known: known.calls)
        assert known.calls == each * (1 + max(rounds, calibrate.LEAST_ROUNDS))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("gap", 0.0, "gap came out as 0"),
        ("latency", -1.0, "latency came out as -1"),
        ("dram", np.inf, "byte came out as 0"),
        ("barrier", -1.0, "barrier 1 came out as -0.989"),
        ("gemm", -3.0, "tiny product came out as -0.89"),
        ("gemm", -1.0, "gemm came out as -0.99"),
        ("launch", np.nan, "launch came out as nan"),
    ],
)
def test_a_time_that_cannot_be_is_an_error(name, value, said, monkeypatch):
    monkeypatch.setattr(Known, "took", steady)
    with pytest.raises(RuntimeError, match=f"calibrate: {re.escape(said)}"):
        calibrate.measure(Known(OTHERS._replace(**{name: value})), 0.0)


def test_barriers_that_do_not_grow_with_blocks_are_no_error(monkeypatch):
    monkeypatch.setattr(Known, "took", steady)
    found = calibrate.measure(Known(OTHERS._replace(barrier_of_block=-1e-4)), 0.0)
    assert 0 < found.barrier_of_block < 1e-5


def test_a_gpu_of_few_multiprocessors_can_be_measured(monkeypatch):
    monkeypatch.setattr(Known, "took", steady)
    for multiprocessors in (1, 2, 16):
        known = Known(OTHERS._replace(l2=OTHERS.l2_of_block * multiprocessors))
        known.multiprocessors = multiprocessors
        found = calibrate.measure(known, 0.0)
        together = OTHERS.barrier + multiprocessors * OTHERS.barrier_of_block
        assert found.barrier + multiprocessors * found.barrier_of_block == pytest.approx(together, rel=1e-3)


def test_without_a_gpu_nothing_is_measured(monkeypatch, folder):
    monkeypatch.setattr(source, "available", lambda: False)
    with pytest.raises(RuntimeError, match="no GPU that CuPy can use") as error:
        calibrate.calibrate()
    assert "python -m tapegrad doctor" in str(error.value) and not folder.exists()


def test_what_is_measured_is_kept(monkeypatch, folder):
    runtime = types.SimpleNamespace(runtimeGetVersion=lambda: 13000)
    cupy = types.SimpleNamespace(__version__="14.2.0", cuda=types.SimpleNamespace(runtime=runtime))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(source, "available", lambda: True)
    monkeypatch.setattr(costs, "this_origin", lambda: HERE)
    monkeypatch.setattr(Known, "took", steady)
    monkeypatch.setattr(calibrate, "CupyStopwatch", lambda: Known(OTHERS))
    found, path = calibrate.calibrate(seconds=0.0)
    assert costs.measured(HERE) == found and path == costs.file_of(HERE)
    assert json.loads(path.read_text())["versions"]["cuda"] == "13000"


# -- the kernels that are timed ------------------------------------------------------------------------


KERNELS = ("nothing", "only_barriers", "read_l2", "follow", "multiply_add")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return {"calibrate.cu": fibres.built(tmp_path_factory.mktemp("fibres"), "calibrate.cu", KERNELS)}


def barriers_seen(machine, blocks=3, turns=4, threads=64):
    words, seen, counter = (
        np.zeros((blocks, 4), np.float32),
        np.zeros(blocks, np.float32),
        np.zeros(32, np.uint32),
    )
    for _ in range(2):  # on the same counter
        seen[...] = words[...] = 0
        kernel = machine.compiled("calibrate.cu", "only_barriers", 0, True)
        kernel((blocks,), (threads,), (np.int32(turns), counter, words, seen))
        yield from seen


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_blocks_wait_for_each_other(libraries, order):
    assert list(barriers_seen(fibres.Fibres(libraries, order))) == [4.0] * 6
    assert list(barriers_seen(fibres.Fibres(libraries, order), blocks=1)) == [4.0] * 2


def test_every_barrier_that_is_left_out_is_seen(libraries):
    found = fibres.barriers("calibrate.cu")
    assert len(found) == 4
    for left_out in range(4):
        outcomes = []
        for order in range(6):
            try:
                outcomes.append(
                    list(barriers_seen(fibres.Fibres(libraries, order, (left_out,)))) == [4.0] * 6
                )
            except RuntimeError:  # they wait for ever
                outcomes.append(False)
        assert not all(outcomes), f"without barrier {left_out}, {found[left_out]}, nothing is wrong"


class Event:
    def __init__(self):
        self.at = None

    def record(self, stream):
        stream.log.append(self)

    def synchronize(self):
        pass


class Stream:
    """Runs at once what it is given, and logs it; a graph has what was logged while it was captured."""

    current = None

    def __init__(self, non_blocking=False):
        assert non_blocking
        self.log, self.capture = [], None

    def __enter__(self):
        Stream.current = self

    def __exit__(self, *_):
        Stream.current = None

    def queue(self, what, run):
        assert self is Stream.current
        if self.capture is not None:
            self.capture.append((what, run))
        else:
            self.log.append(what)
            run()

    def begin_capture(self):
        self.capture = []

    def end_capture(self):
        captured, self.capture = self.capture, None

        def launch(stream):
            for what, run in captured:
                stream.queue(what, run)

        return types.SimpleNamespace(launch=launch)

    def synchronize(self):
        assert self.capture is None


@pytest.fixture
def stopwatch(libraries, monkeypatch):
    """The real stopwatch over NumPy, with kernels on fibres, few threads, and little to do."""
    machine, before = fibres.Fibres(libraries), set()

    def compiled(name, expression, shared_bytes=0, cooperative=False):
        assert cooperative == (expression == "only_barriers")
        captures = Stream.current and Stream.current.capture is not None
        assert expression in before or not captures, "nothing is compiled during a capture"
        before.add(expression)
        kernel = machine.compiled(name, expression, shared_bytes, cooperative)

        def launch(grid, block, args, shared_mem=0):
            numbers = [int(a) for a in args if isinstance(a, np.int32)]
            if expression == "only_barriers" and numbers[0] > 1000:  # that only passes time
                args = (np.int32(2), *args[1:])
            Stream.current.queue((expression, grid, *numbers), lambda: kernel(grid, block, args))

        return launch

    attributes = {16: 3, 13: 1980000, 38: 50 * 2**20}
    runtime = types.SimpleNamespace(
        getDevice=lambda: 0, deviceGetAttribute=lambda attribute, device: attributes[attribute]
    )
    cupy = types.SimpleNamespace(
        **{name: getattr(np, name) for name in ("zeros", "ones", "arange", "float32", "uint32", "uint8")},
        dot=lambda a, b, out: Stream.current.queue(("dot",), lambda: np.dot(a, b, out=out)),
        copyto=lambda new, old: Stream.current.queue(("copyto",), lambda: np.copyto(new, old)),
        cuda=types.SimpleNamespace(
            runtime=runtime, Stream=Stream, Event=Event, get_elapsed_time=lambda start, end: 3.0
        ),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(source, "compiled", compiled)
    for name, value in {"THREADS": 32, "READERS": 32, "QUADS": 512, "MOST_COPIED": 4096}.items():
        monkeypatch.setattr(calibrate, name, value)
    made = calibrate.CupyStopwatch()
    yield made
    assert (made.multiprocessors, made.clock, made.l2_bytes) == (3, 1980.0, 50 * 2**20)


def timed(stopwatch, launches=1):
    """What ran between the events; before them time was passed, in proportion to the launches."""
    log = stopwatch.stream.log
    events = [i for i, what in enumerate(log) if isinstance(what, Event)]
    first, last = events[-2:]
    assert (log[first], log[last]) == (stopwatch.start, stopwatch.end)
    assert log[first - 1] == ("only_barriers", (1,), 2000 + 200 * launches) and len(log) == last + 1
    return log[first + 1 : last]


def test_the_stopwatch_times_what_it_says(stopwatch):
    """A launch is 3 ms here; what ran is in the log."""
    assert stopwatch.graph(4) == 3000.0
    assert timed(stopwatch) == [("nothing", (1,))] * 4
    stopwatch.graph(4)
    assert timed(stopwatch) == [("nothing", (1,))] * 4

    assert stopwatch.barriers(3, 5) == 3000.0
    assert timed(stopwatch) == [("only_barriers", (3,), 5)]
    assert list(stopwatch.sums.ravel()[:3]) == [5.0] * 3

    assert stopwatch.launches(5) > 0
    assert stopwatch.stream.log[-6:] == [("only_barriers", (1,), 3000), *[("nothing", (1,))] * 5]

    stopwatch.follow(3)
    assert timed(stopwatch) == [("follow", (1,), 3)]
    place = 0
    for _ in range(3):
        place = (place + 4001) % 512
    assert stopwatch.sums[0, 0] == place

    stopwatch.read[:, 0] = 1.0
    stopwatch.read_l2(3, 2)
    assert timed(stopwatch) == [("read_l2", (3,), 512, 2)]
    assert (stopwatch.sums == 2 * 512 / 32).all()  # the threads of a block read all of it, each its part

    stopwatch.multiply_add(3, 2)
    assert timed(stopwatch) == [("multiply_add", (3,), 2)]
    chains = (np.arange(8.0) * 0.999 + 1) * 0.999 + 1
    np.testing.assert_allclose(stopwatch.sums, chains.sum(), rtol=1e-6)

    stopwatch.bytes[0] = 7
    stopwatch.copy(1024)
    assert timed(stopwatch) == [("copyto",)]
    assert (stopwatch.bytes[1] == 7).sum() == 1024

    assert stopwatch.product(2, 48, 64) == 3000.0 / 20
    assert timed(stopwatch, 20) == [("dot",)] * 20
    a, b, out = stopwatch.matrices[2, 48, 64]
    assert (
        out.shape == (2, 48)
        and (out == 64.0).all()
        and not np.shares_memory(a, out)
        and (a == 1.0).all()
        and (b == 1.0).all()
    )


def test_every_load_of_the_walk_comes_to_a_place_that_it_has_not_seen(stopwatch):
    place, seen = 0, set()
    for _ in range(512):
        place = int(stopwatch.ring[place, 0])
        seen.add(place)
    assert len(seen) == 512


@nvcc.needed
def test_they_compile_for_an_h100_without_spills(tmp_path):
    found = nvcc.registers(tmp_path, source.text("calibrate.cu"))
    assert found.keys() == set(KERNELS)
    for kernel, registers in found.items():
        assert registers * calibrate.READERS <= 65536, kernel


def test_the_kernels_know_the_same_sizes_as_the_clock():
    assert int(re.search(r"CHAINS = (\d+)", source.text("calibrate.cu"))[1]) == calibrate.CHAINS
    assert calibrate.QUADS % (calibrate.CHAINS * calibrate.READERS) == 0
