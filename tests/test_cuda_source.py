"""The CUDA C++ kernels without a GPU: run by g++ over fibres, each barrier left out once, and compiled by nvcc."""

import functools
import itertools
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tapegrad.kernels import cpu
from tapegrad.kernels.cuda import available, plan, source
from tapegrad.kernels.cuda.plan import Backward, Forward
from tapegrad.kernels.cuda.rings import Launches, Rings
from tapegrad.kernels.cuda.steps import Step

import fibres
import nvcc
from fibres import Fibres, Machine, barriers, built

F32, F64 = np.float32, np.float64
RELATIVE_ERROR = 1e-6
SOURCES = ("backward.cu", "forward.cu", "deposit.cu")
CELLS = ("lstm", "gru", "rnn")

# Divisions of `persistent_backward` that the tests run: one block and many, rows and units that do not divide
# evenly, several tiles a warp, several warps a tile, several adjoints a thread; and what the planner chooses.
DIVISIONS = [
    *(Backward(cell, 64, 3, 16, 2, 2) for cell in CELLS),
    *(Backward(cell, 20, 5, 8, 4, 2) for cell in CELLS),
    *(Backward(cell, 64, 16, 32, 16, 1) for cell in CELLS),
    Backward("lstm", 128, 1, 8, 1, 4),
    Backward("gru", 96, 2, 4, 2, 2),
    Backward("lstm", 12, 1, 16, 1, 1),
    Backward("rnn", 256, 9, 32, 4, 2),
    plan.persistent_backward("lstm", 64, 1),
    plan.persistent_backward("lstm", 256, 1),
    plan.persistent_backward("gru", 64, 6),
]
PHASES = {cell: Backward(cell, 16, 3, 4, 2, 2) for cell in CELLS}
LONG = {cell: Backward(cell, 32, 2, 16, 2, 2) for cell in CELLS}
STEPS = [
    *(Forward(cell, 12, 20, 5, 8, 4, 2) for cell in CELLS),
    *(Forward(cell, 8, 12, 3, 4, 1, 1) for cell in CELLS),
    *(plan.forward_step(cell, 32, 64, 11) for cell in CELLS),
    *(plan.forward_step(cell, 20, 36, batch) for cell, batch in zip(CELLS, (1, 2, 3), strict=True)),
    plan.forward_step("lstm", 24, 512, 1),
    plan.forward_step("gru", 8, 516, 9),
]


# -- where the kernels run ------------------------------------------------------------------------------


class OnGpu(Machine):
    def compiled(self, name, expression, shared_bytes=0, cooperative=False):
        kernel = source.compiled(name, expression, shared_bytes, cooperative)
        return functools.partial(self.launch, kernel)

    def call(self, kernel, grid, block, args, shared_mem):
        kernel(grid, block, tuple(args), shared_mem=shared_mem)

    def copy(self, array):
        import cupy

        return cupy.asarray(array)

    def address(self, there):
        return there.data.ptr

    def back(self, there):
        return there.get()


def expressions(name):
    structs = [plan.CELLS[cell][0] for cell in CELLS]
    if name == "deposit.cu":
        return ["deposit", "by_age"]
    if name == "backward.cu":
        return [
            *(p.expression for p in (*DIVISIONS, *PHASES.values(), *LONG.values())),
            *(f"step_backward<{s}>" for s in structs),
        ]
    return [p.expression for p in STEPS]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fibres")
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda name: built(folder, name, expressions(name)), SOURCES)
        return dict(zip(SOURCES, made, strict=True))


@pytest.fixture(params=["fibres", *([pytest.param("gpu", marks=pytest.mark.gpu)] if available() else [])])
def machine(request):
    return OnGpu() if request.param == "gpu" else Fibres(request.getfixturevalue("libraries"))


def is_close(found, truth, what):
    """Fails with the numbers unless the error is small, relative to the norm of the array."""
    found, size = np.asarray(found, F64), np.linalg.norm(truth)
    error = np.linalg.norm(found - truth)
    assert error <= RELATIVE_ERROR * size, f"{what}: relative error {error / size if size else error:.2g}"


# -- windows -------------------------------------------------------------------------------------------


def filled(cell, slots, batch, n_in, n, head):
    """Rings as a window leaves them: random residuals, and deltas that nobody has written yet."""
    rng = np.random.default_rng(0)
    rings = Rings(np, cell, slots - 1, batch, n_in, n)
    rings.head[:] = head
    rings.inputs[..., : n_in + n] = rng.uniform(-1, 1, (slots, batch, n_in + n))
    for ring in (rings.deltas, rings.deltas_x):
        if ring is not None:
            ring[...] = np.nan
    if cell != "rnn":
        rings.gates[...] = rng.uniform(0, 1, rings.gates.shape)
        rings.extra[...] = rng.uniform(-1, 1, rings.extra.shape)
        candidates = rings.gates[..., 2 * n : 3 * n]
        candidates[...] = 2 * candidates - 1
    if cell == "lstm":
        rings.cs[...] = rng.uniform(-1, 1, rings.cs.shape)
    return rings


def doubles(array):
    return array.astype(F64)


def pulled(rings, slot, ct_h, ct_c):
    """One step's pullback in float64, from what its slot keeps: deltas of x w_x, of h w_h, and what is carried."""
    if rings.cell == "lstm":
        ct_z, ct_c = cpu.lstm_step_pullback(
            ct_h, ct_c, *map(doubles, (rings.cs[slot], rings.gates[slot], rings.extra[slot]))
        )
        return ct_z, ct_z, 0.0, ct_c
    if rings.cell == "gru":
        of_x, of_h, through = cpu.gru_step_pullback(
            ct_h, *map(doubles, (rings.hs[slot], rings.gates[slot], rings.extra[slot]))
        )
        return of_x, of_h, through, ct_c
    ct_z = cpu.rnn_step_pullback(ct_h, doubles(rings.hs[(slot + 1) % rings.slots]))
    return ct_z, ct_z, 0.0, ct_c


def swept(rings, w_h, seeds, joints):
    """The window's sweep in float64: deltas by slot, zeros in free slots, and the first state's cotangents."""
    newest, steps = map(int, rings.head)
    of_x, of_h = np.zeros(rings.deltas.shape), np.zeros(rings.deltas.shape)
    ct_h = ct_c = np.zeros((rings.batch, rings.hidden))
    factor = 1.0
    for age in range(steps):
        slot = (newest - age) % rings.slots
        ct_h, ct_c = ct_h * factor, ct_c * factor
        if age < len(seeds):
            ct_h = ct_h + seeds[age]
        of_x[slot], of_h[slot], through, ct_c = pulled(rings, slot, ct_h, ct_c)
        ct_h = through + of_h[slot] @ doubles(w_h).T
        factor = 1.0 if joints is None else F64(joints[slot])
    return of_x, of_h, ct_h, ct_c


def task(cell, batch, n, slots, head, ages, *, with_joints=True, gain=1.0):
    """A window and what a sweep of it takes: losses at the newest `ages` steps."""
    rings, rng = filled(cell, slots, batch, 4, n, head), np.random.default_rng(1)
    w_h = (gain / n**0.5 * rng.uniform(-1, 1, (n, rings.gates_count * n))).astype(F32)
    seeds = rng.standard_normal((ages, batch, n)).astype(F32)
    joints = rng.uniform(0.5, 1.5, slots).astype(F32) if with_joints else None
    return rings, w_h, seeds, joints


def room(rings, *shape):
    """Memory for cotangents of h, and of c where the cell has one."""
    shape = (*shape, rings.batch, rings.hidden)
    return np.full(shape, np.nan, F32), None if rings.cs is None else np.full(shape, np.nan, F32)


def passed_in_one_launch(machine, division, rings, w_h, seeds, joints):
    """What each step passes on: the cotangents of h, and of c, newest first."""
    passed = room(rings, int(rings.head[1]))
    Launches(rings, division, machine.compiled).backward(w_h, seeds, passed, joints=joints)
    return passed


def backward_in_one_launch(*given):
    """The cotangents of the first state."""
    return [None if ct is None else ct[-1] for ct in passed_in_one_launch(*given)]


def compare(rings, found, truth):
    of_x, of_h, ct_h, ct_c = truth
    for slot in range(rings.slots):  # one by one: the older are the smaller
        is_close(rings.deltas[slot], of_h[slot], f"deltas in slot {slot}")
        if rings.deltas_x is not None:
            is_close(rings.deltas_x[slot], of_x[slot], f"deltas of x in slot {slot}")
    is_close(found[0], ct_h, "the first h")
    if rings.cell == "lstm":
        is_close(found[1], ct_c, "the first c")


@pytest.mark.parametrize("division", DIVISIONS, ids=lambda p: p.expression[20:-1] + f", batch {p.batch}")
def test_a_window_is_swept_in_one_launch(machine, division):
    for slots, head, ages in ((6, (2, 5), 1), (4, (0, 2), 2)):
        rings, *given = task(division.cell, division.batch, division.hidden, slots, head, ages)
        first = backward_in_one_launch(machine, division, rings, *given)
        compare(rings, first, swept(rings, *given))
        assert not any(rings.counters * 2)  # but for the top bits


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_every_phase_of_the_ring_gives_the_same_sweep_in_any_order_of_threads(libraries, cell, order):
    division, slots = PHASES[cell], 4
    for newest, steps in itertools.product(range(slots), range(1, slots)):
        rings, *given = task(cell, 3, 16, slots, (newest, steps), 1 + newest % steps, with_joints=newest % 2)
        found = backward_in_one_launch(Fibres(libraries, order), division, rings, *given)
        compare(rings, found, swept(rings, *given))


@pytest.mark.parametrize("cell", CELLS)
def test_launches_follow_each_other_on_the_same_counters(machine, cell):
    rings, *given = task(cell, 3, 16, 4, (1, 3), 2)
    for _ in range(3):
        rings.deltas[...] = np.nan
        found = backward_in_one_launch(machine, PHASES[cell], rings, *given)
        compare(rings, found, swept(rings, *given))


@pytest.mark.parametrize("cell", CELLS)
def test_a_long_window_does_not_lose_precision(machine, cell):
    # With this gain adjoints neither vanish, which makes any error a large part of them, nor explode.
    gain = {"lstm": 5.0, "gru": 4.0, "rnn": 2.4}[cell]
    rings, *given = task(cell, 2, 32, 41, (17, 40), 3, with_joints=False, gain=gain)
    found = backward_in_one_launch(machine, LONG[cell], rings, *given)
    compare(rings, found, swept(rings, *given))


@pytest.mark.gpu
@pytest.mark.skipif(not available(), reason="needs CuPy and a GPU")
@pytest.mark.parametrize("cell", CELLS)
def test_a_window_of_the_sizes_that_it_is_for(cell):
    for hidden, batch in itertools.product((256, 512, 1024), (1, 16, 64)):
        rings, *given = task(cell, batch, hidden, 6, (2, 5), 1)
        found = backward_in_one_launch(OnGpu(), plan.persistent_backward(cell, hidden, batch), rings, *given)
        compare(rings, found, swept(rings, *given))


@pytest.mark.gpu
@pytest.mark.skipif(not available(), reason="needs CuPy and a GPU")
@pytest.mark.parametrize("cell", CELLS)
def test_one_captured_graph_serves_every_phase(cell):
    import cupy

    rng, n, batch = np.random.default_rng(3), 64, 3
    host = Rings(np, cell, 3, batch, n, n)
    weights, stream = weights_for(cell, n, n, rng), cupy.cuda.Stream(non_blocking=True)
    with stream:
        rings = Rings(cupy, cell, 3, batch, n, n)
        w_x, w_h, b, *b_h = (cupy.asarray(w) for w in weights)
        x, seeds = cupy.zeros((batch, n), np.float32), cupy.zeros((1, batch, n), np.float32)
        launches = Launches(rings, plan.persistent_backward(cell, n, batch))
        forward, passed = Step(plan.forward_step(cell, n, n, batch)), cupy.empty((2, 3, batch, n), np.float32)
        given, made = on(cupy, cell, batch, x, (w_x, w_h, b, *b_h))

        def step():
            forward(given, made)
            launches.deposit(**kept(given, made))
            for state, following in zip(given[1:3], made, strict=False):
                if state is not None:
                    state[...] = following
            launches.backward(w_h, seeds, passed)

        step()  # compiles, which a capture does not allow
        stream.synchronize()
        stream.begin_capture()
        step()
        graph = stream.end_capture()
        for _ in range(10):
            x[...] = cupy.asarray(rng.standard_normal(x.shape, dtype=F32))
            seeds[...] = cupy.asarray(rng.standard_normal(seeds.shape, dtype=F32))
            graph.launch(stream)
            stream.synchronize()
            for name, there in vars(rings).items():
                if isinstance(there, cupy.ndarray):
                    setattr(host, name, there.get())
            of_x, of_h, *_ = swept(host, weights[1], seeds.get(), None)
            is_close(host.deltas, of_h, "deltas")
            if cell == "gru":
                is_close(host.deltas_x, of_x, "deltas of x")


def stepwise(machine, rings, w_h, seeds, joints):
    """The whole window by `step_backward` and a product for each age."""
    launches, (ct_h, ct_c) = Launches(rings, compiled=machine.compiled), room(rings)
    now, arriving = np.full(rings.deltas.shape[1:], np.nan, F32), (None, None, None)
    if rings.cell != "gru":
        ct_h = None
    for age in range(int(rings.head[1])):
        launches.step_backward(age, seeds, arriving, (ct_h, ct_c), now, joints=joints)
        arriving = ct_h, now @ w_h.T, ct_c
    return arriving[1] if ct_h is None else ct_h + arriving[1], ct_c


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_window_is_swept_step_by_step(machine, cell, batch):
    for newest, steps in itertools.product(range(5), range(1, 5)):
        rings, *given = task(cell, batch, 20, 5, (newest, steps), 1 + newest % steps, with_joints=newest % 2)
        found = stepwise(machine, rings, *given)
        compare(rings, found, swept(rings, *given))


# -- steps ---------------------------------------------------------------------------------------------


def weights_for(cell, n_in, n, rng):
    width = plan.CELLS[cell][1] * n
    shapes = [(n_in, width), (n, width), (width,), *([(width,)] if cell == "gru" else [])]
    return [(rng.uniform(-1, 1, shape) / (n_in + n) ** 0.5).astype(F32) for shape in shapes]


def on(xp, cell, batch, x, weights):
    """What a step is given, its state zeros; and room for what it makes. None is what the cell has none of."""
    w_x, w_h, b, *b_h = weights
    n = len(w_h)
    given = [x, xp.zeros((batch, n), F32), None, w_x, w_h, b, *(b_h or [None])]
    made = [xp.full((batch, n), np.nan, F32), None, None, None]
    if cell == "lstm":
        given[2], made[1] = xp.zeros((batch, n), F32), xp.full((batch, n), np.nan, F32)
    if cell != "rnn":
        made[2:] = xp.full((batch, b.size), np.nan, F32), xp.full((batch, n), np.nan, F32)
    return given, made


def kept(given, made):
    """What an op keeps of the step, by the names of `deposit`."""
    x, h, c, *_ = given
    h_next, _, gates, extra = made
    return {
        "x": x,
        "h": h,
        "c": c,
        "gates": gates,
        "extra": extra,
        "h_next": h_next if gates is None else None,
    }


def drawn(division, seed=5):
    """Random arrays for a step, and room for what it makes."""
    cell, rng, shape = division.cell, np.random.default_rng(seed), (division.batch, division.n_in)
    weights = weights_for(cell, division.n_in, division.hidden, rng)
    given, made = on(np, cell, division.batch, rng.uniform(-1, 1, shape).astype(F32), weights)
    for state in given[1:3]:
        if state is not None:
            state[...] = rng.uniform(-1, 1, state.shape)
    return given, made


def stepped(cell, given):
    """A step in float64: what `cpu` returns."""
    found = getattr(cpu, f"{cell}_step")(*(doubles(a) for a in given if a is not None))
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("division", STEPS, ids=lambda p: p.expression[13:-1] + f", batch {p.batch}")
def test_a_step_is_its_definition(machine, division):
    given, made = drawn(division)
    before = [None if a is None else a.copy() for a in given]
    Step(division, machine.compiled)(given, made)
    found = [a for a in made if a is not None]
    for i, (y, truth) in enumerate(zip(found, stepped(division.cell, before), strict=True)):
        is_close(y, truth, f"output {i}")
        for row, exact in zip(y, truth, strict=True):  # one by one: each is somebody's state
            is_close(row, exact, f"a row of output {i}")
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_a_step_is_the_same_in_any_order_of_threads(libraries, cell, order):
    division = next(p for p in STEPS if p.cell == cell)
    found = []
    for o in (order, 4):
        given, made = drawn(division)
        Step(division, Fibres(libraries, o).compiled)(given, made)
        found.append(made)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not available(), reason="needs CuPy and a GPU")
@pytest.mark.parametrize("cell", CELLS)
def test_a_step_of_the_sizes_that_it_is_for(cell):
    for hidden, batch in itertools.product((256, 512, 1024), (1, 2, 3, 8, 64)):
        division = plan.forward_step(cell, hidden, hidden, batch)
        given, made = drawn(division)
        Step(division, OnGpu().compiled)(given, made)
        for y, truth in zip((a for a in made if a is not None), stepped(cell, given), strict=True):
            is_close(y, truth, f"{hidden} units, batch {batch}")


@pytest.mark.parametrize("cell", CELLS)
def test_one_product_over_the_ring_is_the_weights_gradient_at_every_phase(machine, cell):
    rng = np.random.default_rng(7)
    n_in, n, batch, window = 12, 16, 3, 3
    rings, weights = Rings(np, cell, window, batch, n_in, n), weights_for(cell, n_in, n, rng)
    launches, steps = Launches(rings, PHASES[cell], machine.compiled), []
    forward = Step(Forward(cell, n_in, n, batch, 8, 4, 2), machine.compiled)
    given, made = on(np, cell, batch, np.zeros((batch, n_in), F32), weights)
    for t in range(9):
        x, seeds = (
            rng.standard_normal((batch, n_in)).astype(F32),
            rng.standard_normal((1, batch, n)).astype(F32),
        )
        given[0] = x
        forward(given, made)
        launches.deposit(**kept(given, made))
        launches.backward(weights[1], seeds, room(rings, window))
        slot = int(rings.head[0])
        assert slot == t % 4
        steps = [*steps, (slot, x, given[1])][-window:]
        given[1:3] = [a if a is None else a.copy() for a in made[:2]]
        of_x, of_h, *_ = swept(rings, weights[1], seeds, None)
        truth = (
            sum(doubles(x).T @ of_x[s] for s, x, _ in steps),
            sum(doubles(h).T @ of_h[s] for s, _, h in steps),
            sum(of_x[s].sum(0) for s, *_ in steps),
            sum(of_h[s].sum(0) for s, *_ in steps),
        )
        inputs = rings.inputs.reshape(-1, rings.inputs.shape[-1]).T
        through_h = inputs @ rings.deltas.reshape(-1, rings.deltas.shape[-1])
        through_x = through_h
        if rings.deltas_x is not None:
            through_x = inputs @ rings.deltas_x.reshape(-1, rings.deltas.shape[-1])
        found = through_x[:n_in], through_h[n_in : n_in + n], through_x[n_in + n], through_h[n_in + n]
        for what, gradient, expected in zip(("w_x", "w_h", "b", "b_h"), found, truth, strict=True):
            is_close(gradient, expected, what)


# -- steps that ops have run ---------------------------------------------------------------------------


def kept_by_a_step(rings, rng):
    """What an op keeps of a step, by the names of `deposit`."""
    n, rows = rings.hidden, rings.batch
    kept = {"x": (rows, rings.n_in), "h": (rows, n)}
    kept |= {
        "lstm": {"c": (rows, n), "gates": (rows, 4 * n), "extra": (rows, n)},
        "gru": {"gates": (rows, 3 * n), "extra": (rows, n)},
        "rnn": {"h_next": (rows, n)},
    }[rings.cell]
    return {name: rng.standard_normal(shape).astype(F32) for name, shape in kept.items()}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("batch", "n_in", "n"), [(1, 3, 4), (5, 7, 12), (3, 700, 20)])
def test_what_an_op_kept_goes_into_the_next_slot(machine, cell, batch, n_in, n):
    rings, rng, given = Rings(np, cell, 3, batch, n_in, n), np.random.default_rng(0), []
    launches = Launches(rings, compiled=machine.compiled)
    for t in range(6):
        given.append(kept_by_a_step(rings, rng))
        launches.deposit(**given[-1])
        assert list(rings.head) == [t % 4, min(t + 1, 3)] and not rings.ticket.any()
        for age, step in enumerate(given[: -min(t + 1, 3) - 1 : -1]):
            slot = (t - age) % 4
            found = {"x": rings.inputs[slot, :, :n_in], "h": rings.hs[slot]}
            found["h_next"] = rings.hs[(slot + 1) % 4] if age == 0 else step.get("h_next")
            for name, ring in (("c", rings.cs), ("gates", rings.gates), ("extra", rings.extra)):
                found[name] = None if ring is None else ring[slot]
            for name, array in step.items():
                np.testing.assert_array_equal(found[name], array, f"{name} of age {age} at step {t}")
        assert (rings.inputs[..., n_in + n] == 1).all() and not rings.inputs[..., n_in + n + 1 :].any()


@pytest.mark.parametrize(("newest", "steps"), [(0, 1), (0, 3), (2, 3), (3, 2)])
def test_a_ring_is_read_by_age(machine, newest, steps):
    rings = Rings(np, "gru", 3, 5, 4, 12)
    rings.head[:] = newest, steps
    ring = np.random.default_rng(0).standard_normal((4, 5, 300)).astype(F32)
    ages = np.full((steps, 5, 300), np.nan, F32)
    Launches(rings, compiled=machine.compiled).by_age(ring, ages)
    np.testing.assert_array_equal(ages, [ring[(newest - age) % 4] for age in range(steps)])


@pytest.mark.parametrize("cell", CELLS)
def test_what_each_step_passes_on_is_what_a_shorter_window_ends_with(machine, cell):
    rings, *given = task(cell, 3, 16, 5, (1, 4), 1)
    of_h, of_c = passed_in_one_launch(machine, PHASES[cell], rings, *given)
    for steps in range(1, 5):
        rings.head[1] = steps
        *_, ct_h, ct_c = swept(rings, *given)
        is_close(of_h[steps - 1], ct_h, f"h after {steps} steps")
        if cell == "lstm":
            is_close(of_c[steps - 1], ct_c, f"c after {steps} steps")


# -- barriers ------------------------------------------------------------------------------------------

ORDERS = range(8)


def error_of_a_sweep(libraries, order, left_out):
    """The largest error of a window's sweep, infinite if the threads never come to its end."""
    rings, *given = task("lstm", 3, 16, 4, (0, 3), 2)
    try:
        first = backward_in_one_launch(Fibres(libraries, order, left_out), PHASES["lstm"], rings, *given)
    except RuntimeError:
        return np.inf
    _, deltas, ct_h, _ = swept(rings, *given)
    return max(np.abs(rings.deltas - deltas).max(), np.abs(first[0] - ct_h).max())


def error_of_a_step(libraries, order, left_out):
    given, made = drawn(STEPS[0])
    Step(STEPS[0], Fibres(libraries, order, left_out).compiled)(given, made)
    return max(np.abs(y - truth).max() for y, truth in zip(made, stepped("lstm", given), strict=True))


def error_of_a_deposit(libraries, order, left_out):
    rings = Rings(np, "lstm", 3, 8, 90, 80)
    launches, given = Launches(rings, compiled=Fibres(libraries, order, left_out).compiled), []
    for _ in range(2):
        given.append(kept_by_a_step(rings, np.random.default_rng(len(given))))
        launches.deposit(**given[-1])
    return max(np.abs(rings.gates[t] - step["gates"]).max() for t, step in enumerate(given))


ERRORS = {"backward.cu": error_of_a_sweep, "forward.cu": error_of_a_step, "deposit.cu": error_of_a_deposit}


@pytest.mark.parametrize("name", SOURCES)
def test_all_orders_of_threads_are_right_with_all_barriers(libraries, name):
    assert max(ERRORS[name](libraries, order, ()) for order in ORDERS) < 1e-5


# Every barrier of the sources, as they are numbered; the two halves of one together as well.
BARRIERS = [
    ("backward.cu", (0,), "__syncthreads();"),  # in BlocksBarrier::come
    ("backward.cu", (1,), "__syncthreads();"),  # in BlocksBarrier::wait
    ("backward.cu", (2,), "barrier.come();"),
    ("backward.cu", (3,), "barrier.wait();"),
    ("backward.cu", (2, 3), "barrier.come(); barrier.wait();"),
    ("backward.cu", (4,), "__syncthreads();"),
    ("forward.cu", (0,), "__syncthreads();"),
    ("deposit.cu", (0,), "__syncthreads();"),
]


@pytest.mark.parametrize(("name", "left_out", "text"), BARRIERS)
def test_a_barrier_that_is_left_out_shows(libraries, name, left_out, text):
    assert " ".join(barriers(name)[i] for i in left_out) == text
    errors = [ERRORS[name](libraries, order, left_out) for order in ORDERS]
    assert any(not error < 1e-2 for error in errors), errors


def test_no_barrier_is_forgotten_above():
    for name in SOURCES:
        assert {i for source_, left_out, _ in BARRIERS if source_ == name for i in left_out} == set(
            range(len(barriers(name)))
        )
        written = source.text(name, {"device.h": fibres.FOLDER / "launch.h"})
        waits = re.findall(r"\w*sync\w*\(\)|\.come\(\)|\.wait\(\)", written)
        assert len(waits) == len(barriers(name))


def test_a_step_that_reads_beyond_an_array_is_ended(libraries):
    given, made = drawn(STEPS[0])
    given[3] = given[3][:-1].copy()
    with pytest.raises(RuntimeError, match="beyond the end of an array"):
        Step(STEPS[0], Fibres(libraries).compiled)(given, made)


def test_a_launch_that_reads_beyond_an_array_is_ended(libraries):
    rings, w_h, *others = task("lstm", 3, 16, 4, (1, 3), 2)
    with pytest.raises(RuntimeError, match="beyond the end of an array"):
        backward_in_one_launch(Fibres(libraries), PHASES["lstm"], rings, w_h[:-1].copy(), *others)


# -- plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [64, 100, 128, 256, 384, 512, 768, 1000, 1024])
def test_every_size_up_to_1024_units_and_64_rows_has_a_plan_that_fits(cell, hidden):
    for batch in (1, 2, 3, 7, 16, 33, 64):
        chosen = plan.persistent_backward(cell, hidden, batch)
        assert chosen.grid[0] * chosen.grid[1] <= plan.H100.multiprocessors
        assert chosen.shared_bytes <= 227 * 1024
        assert chosen.grid[0] * chosen.units >= hidden
        assert chosen.grid[1] * chosen.rows >= batch
        assert chosen.tiles * chosen.height == chosen.rows
        assert chosen.grid[1] <= batch  # each group of rows has its counter in `Rings`


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (
            ("lstm", 2048, 1),
            "132 blocks of 16 units each hold 512 KiB of weights; a block has 227 KiB of shared memory.",
        ),
        (("lstm", 1024, 200), "128 of 132 blocks hold the weights, and each can finish 128 rows at a time."),
        (
            ("lstm", 130, 1),
            "hidden must be a multiple of 4, rows are read 16 bytes at a time.\n  hidden: 130",
        ),
        (("lstm", 128, 0), "batch must be at least 1.\n  batch: 0"),
        (("peephole", 128, 1), "no cell is called 'peephole'; there are lstm, gru, rnn."),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(arguments, why):
    with pytest.raises(ValueError, match=re.escape(why)):
        plan.persistent_backward(*arguments)


def test_a_smaller_gpu_holds_less():
    small = plan.Gpu("half an H100", 66)
    assert plan.persistent_backward("lstm", 512, 1, small).grid[0] <= 66
    with pytest.raises(
        ValueError, match=re.escape("lstm of 1024 units, batch 1, does not fit half an H100.")
    ):
        plan.persistent_backward("lstm", 1024, 1, small)


@pytest.mark.parametrize(("sizes", "why"), [((30, 64, 1), "n_in must be"), ((0, 64, 1), "n_in must be"), ((32, 66, 1), "hidden must be"), ((32, 64, 0), "batch must be")])  # fmt: skip
def test_a_step_of_sizes_that_the_kernel_does_not_read_is_refused(sizes, why):
    with pytest.raises(ValueError, match=f"^forward_step: {why}"):
        plan.forward_step("lstm", *sizes)


@pytest.mark.parametrize("cell", CELLS)
def test_every_step_has_blocks_for_all_its_units_and_rows(cell):
    for hidden, batch in itertools.product((4, 20, 512, 1024, 1028), (1, 2, 3, 7, 8, 9, 500)):
        chosen = plan.forward_step(cell, 64, hidden, batch)
        rows, units = chosen.grid
        assert 0 <= rows * chosen.rows - batch < chosen.rows <= plan.MOST_FORWARD_ROWS
        assert 0 <= units * chosen.units - hidden < chosen.units
        assert chosen.shared_bytes <= 48 * 1024  # what a launch may have unasked
        assert (rows == 1) == (batch <= plan.MOST_FORWARD_ROWS)


# -- source --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_the_text_has_every_header_once(name):
    text = source.text(name)
    assert "#include" not in text
    assert text.count("struct Ring {") == text.count("float* on_chip()") == 1


def test_without_cupy_nothing_is_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert not available()


# -- what nvcc says ------------------------------------------------------------------------------------

# By what a launch on an H100 is made of; the largest of each.
COMPILED = {
    "backward.cu": [
        *(
            plan.persistent_backward(cell, hidden, batch)
            for cell in CELLS
            for hidden, batch in ((256, 1), (1024, 64))
        ),
        plan.persistent_backward("lstm", 256, 64),
        plan.persistent_backward("lstm", 1024, 1),
    ],
    # All that there are.
    "forward.cu": [
        plan.forward_step(cell, 256, hidden, batch)
        for cell in CELLS
        for hidden in (256, 512)
        for batch in (1, 2, 4, 8)
    ],
}
ELEMENTWISE = {"backward.cu": "step_backward"}
PLAIN = {"backward.cu": 0, "forward.cu": 0, "deposit.cu": 2}  # kernels that are no templates


@pytest.mark.parametrize("name", SOURCES)
@nvcc.needed
def test_kernels_compile_for_an_h100_within_its_registers_and_shared_memory(tmp_path, name):
    kernels = [p.expression for p in COMPILED.get(name, ())]
    kernels += [f"{ELEMENTWISE[name]}<{plan.CELLS[cell][0]}>" for cell in CELLS if name in ELEMENTWISE]
    kept = ", ".join(f"(void*)&{k}" for k in kernels or ["by_age"])
    found = nvcc.registers(tmp_path, f"{source.text(name)}\nvoid* kept[] = {{{kept}}};\n")
    assert len(found) == len(kernels) + PLAIN[name], found
    for kernel, registers in found.items():
        warps = re.search(r"Li(\d+)EEv", kernel)  # the last argument of a template, if it is one
        assert registers * 32 * int(warps[1] if warps else plan.WARPS) <= 65536, kernel
    for chosen in COMPILED.get(name, ()):
        assert chosen.shared_bytes <= 227 * 1024
