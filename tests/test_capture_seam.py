"""What ops see while a step is rehearsed or captured (`backend/capture.py`, `backend/products.py`), on the stand-in."""

import threading

import numpy as np
import pytest
from tapegrad.kernels import cpu
from tapegrad.kernels.cuda import blas

import fake_cublas
import strict_cupy
import tapegrad as tg
import test_primitives as ops
from tapegrad.backend import capture
from tapegrad.backend import device as places
from tapegrad.backend.namespace import namespace
from tapegrad.ops.linalg import matmul


@pytest.fixture(autouse=True)
def cupy():
    with strict_cupy.installed() as module, fake_cublas.installed() as library:
        yield module
        assert not library.problems
    assert capture.NOW is None and cpu.multiply is None


@pytest.fixture
def stream(cupy):
    return cupy.cuda.Stream(non_blocking=True)


def arena(cupy, nbytes=1 << 22):
    """An allocator that hands out what it has already."""
    block, used = cupy.cuda.alloc(nbytes), [0]

    def malloc(size):
        at, used[0] = used[0], used[0] + -(-size // 512) * 512
        assert used[0] <= nbytes
        return block + at

    return malloc


def captured(cupy, stream, step):
    """What `step` returned when it was captured, after a rehearsal, and the graph."""
    with capture.capturing(stream, rehearsing=True) as now:
        step()
    if now.refused:
        raise now.refused[0]
    with cupy.cuda.using_allocator(arena(cupy)), capture.capturing(stream, rehearsing=False):
        stream.begin_capture()
        try:
            made = step()
        finally:
            graph = stream.end_capture()
    return made, graph


def same(found, expected, tolerance=1e-12):
    found = getattr(found, "_array", found)
    assert isinstance(found, strict_cupy.ndarray)
    np.testing.assert_allclose(found.get(), expected, rtol=tolerance, atol=tolerance)


# -- every op ----------------------------------------------------------------------------------------------

# Ops that no case of which can be captured, or some: those of cuSOLVER, and those where the host must know elements.
NEVER = {
    "cholesky", "cofactors", "det", "eigh_packed", "eigvalsh", "inv", "pseudo_inverse", "qr_packed", "sign_and_logdet", "solve",
    "svd_packed", "svdvals",
}  # fmt: skip
AT_TIMES = {"getitem", "index_put", "put_at", "repeat"}  # masks, counts on the device


def there(cupy, value):
    if isinstance(value, np.ndarray):
        return cupy.asarray(value)
    if isinstance(value, (list, tuple)):
        return type(value)(there(cupy, part) for part in value)
    return {k: there(cupy, v) for k, v in value.items()} if isinstance(value, dict) else value


def step_of(primitive, case, move):
    """A step that records an op and sweeps it: its outputs, and the gradients."""
    rng = ops.seeded(primitive, case)
    arguments = ops.as_leaves(primitive, move(ops.sample(primitive, case, rng)))
    statics = move(case.statics)
    shapes = ops.outputs_of(primitive.function(*arguments, **statics))
    cts = move([rng.standard_normal(y.shape) for y in shapes])

    def step():
        tape = tg.Tape()
        with tape:
            ys = ops.outputs_of(primitive.function(*arguments, **statics))
        adjoints = tape.backward(ys, cts)
        return [*ys, *(adjoints[v] for v in ops.leaves_of(arguments))]

    return step


@ops.every_op_and_case
def test_every_op_is_captured_or_refused(cupy, stream, primitive, case):
    if primitive.name == "transfer":
        pytest.skip("it moves")
    try:
        made, graph = captured(cupy, stream, step_of(primitive, case, lambda x: there(cupy, x)))
    except tg.UnsupportedError:
        assert primitive.name.startswith("bessel")  # of orders that CuPy does not have
        return
    except (tg.CaptureError, strict_cupy.strict_cuda.CUDARuntimeError):
        assert primitive.name in NEVER | AT_TIMES
        return
    assert primitive.name not in NEVER
    graph.launch()
    for found, expected in zip(made, step_of(primitive, case, lambda x: x)(), strict=True):
        same(found, expected.value if isinstance(expected, tg.Variable) else expected, 1e-10)


def test_an_op_of_a_library_is_refused_by_name(cupy, stream):
    a = tg.Variable(cupy.asarray(np.eye(3)))
    with capture.capturing(stream, rehearsing=True) as step:
        y = tg.linalg.inv(a)  # a rehearsal is a step like any other
    same(y, np.eye(3))
    with capture.capturing(stream, rehearsing=False), pytest.raises(tg.CaptureError) as error:
        tg.linalg.inv(a)
    assert (
        str(error.value)
        == str(step.refused[0])
        == (
            "capture: cupy.linalg.inv cannot be part of a CUDA graph: it calls a library that CuPy does not let a stream "
            "capture.\n  Do it outside the captured function."
        )
    )


# -- products ----------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)


def uniform(*shape):
    return RNG.uniform(-1, 1, shape)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("matmul", (uniform(2, 3), uniform(3, 4))),
        ("dot", (uniform(3), uniform(3))),
        ("dot", (uniform(2, 3), uniform(3))),
        ("dot", (uniform(2, 3), uniform(4, 3, 5))),
        ("dot", (uniform(), uniform(3))),
        ("inner", (uniform(2, 3), uniform(4, 3))),
        ("inner", (uniform(2), uniform())),
        ("vdot", (uniform(2, 3), uniform(2, 3))),
        ("outer", (uniform(2, 2), uniform(3))),
        ("kron", (uniform(2, 3), uniform(2, 2, 2))),
        ("tensordot", (uniform(2, 3, 4), uniform(3, 4, 5))),
        ("tensordot", (uniform(2, 3), uniform(4, 5), 0)),
        ("tensordot", (uniform(2, 3, 4), uniform(4, 2), ([0, -1], [1, 0]))),
        ("tensordot", (uniform(2, 3, 4), uniform(4, 2), (2, 0))),
        ("convolve", (uniform(5), uniform(3))),
        ("convolve", (uniform(3), uniform(6), "same")),
        ("convolve", (uniform(6), uniform(3), "same")),
        ("convolve", (uniform(6), uniform(4), "same")),
        ("convolve", (uniform(3), uniform(5), "valid")),
        ("correlate", (uniform(5), uniform(3), "valid")),
        ("correlate", (uniform(5), uniform(3), "full")),
        *(
            ("einsum", (subscripts, *(uniform(*shape) for shape in shapes)))
            for subscripts, *shapes in [
                ("ij,jk->ik", (2, 3), (3, 4)),
                ("ij,kj->ki", (2, 3), (4, 3)),
                ("aij,ajk->aik", (2, 3, 4), (2, 4, 5)),
                ("aij,ajk->aik", (2, 1, 3), (1, 3, 4)),
                ("aij,bjk->ik", (2, 3, 4), (5, 4, 2)),
                ("iaj,ajk->iak", (2, 3, 4), (3, 4, 5)),
                ("ij,ij->", (2, 3), (2, 3)),
                ("ij,ij->ij", (2, 3), (2, 3)),
                ("ij,ij->i", (2, 3), (2, 3)),
                ("i,j->ji", (2,), (3,)),
                ("ii->", (3, 3)),
                ("iji->ij", (3, 2, 3)),
                ("iii,j->ij", (2, 2, 2), (2,)),
                ("ijk->ki", (2, 3, 4)),
                ("ij->", (2, 3)),
                (",i->i", (), (3,)),
                ("ij,j->i", (0, 3), (3,)),
                ("ij,jk,k->i", (2, 3), (3, 2), (2,)),
                ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
                ("bij,bjk,bkl,l->bi", (2, 3, 4), (2, 4, 3), (1, 3, 5), (5,)),
                ("ii,jj,ij->i", (3, 3), (2, 2), (3, 2)),
                ("ij,jk->ik", (1, 3), (3, 1)),
            ]
        ),
    ],
)
def test_products_are_those_of_numpy(cupy, stream, name, arguments):
    moved = tuple(there(cupy, x) if isinstance(x, np.ndarray) else x for x in arguments)
    y, graph = captured(
        cupy,
        stream,
        lambda: getattr(namespace(moved[-1] if name != "einsum" else moved[1], moved[0]), name)(*moved),
    )
    graph.launch()
    same(y, getattr(np, name)(*arguments))


def test_outside_of_a_step_the_namespace_is_cupy_itself(cupy, stream):
    a = cupy.ones(3)
    assert namespace(a) is cupy
    with capture.capturing(stream, rehearsing=True) as step:
        assert namespace(a) is step.namespace
        assert step.namespace.tanh is cupy.tanh and not hasattr(step.namespace, "vecdot")
        assert namespace(np.ones(3)) is np
    assert namespace(a) is cupy


@pytest.mark.parametrize("multiply", [capture.product, cpu.product, matmul])
def test_products_of_rules_and_kernels_go_the_same_way(cupy, stream, multiply):
    a, b, out = cupy.ones((2, 3)), cupy.ones((3, 2)), cupy.zeros((2, 2))
    y, graph = captured(cupy, stream, lambda: multiply(a, b))
    graph.launch()
    same(y, np.full((2, 2), 3.0))
    if multiply is not matmul:
        into, graph = captured(cupy, stream, lambda: multiply(a, b, out=out))
        out.fill(0.0)
        graph.launch()
        assert into is out
        same(out, np.full((2, 2), 3.0))


def test_integers_are_multiplied_by_cupys_own_kernels(cupy, stream):
    a = cupy.asarray(np.arange(6).reshape(2, 3))
    with capture.capturing(stream, rehearsing=True):
        same(matmul(a, a.T), np.arange(6).reshape(2, 3) @ np.arange(6).reshape(2, 3).T)


# -- what comes from the host, and goes there ------------------------------------------------------------------


def test_data_of_the_host_is_noted_in_a_rehearsal_and_refused_in_a_capture(cupy, stream):
    x = np.ones((2, 3), np.float32)
    with capture.capturing(stream, rehearsing=True) as step:
        same(tg.asarray(x, device="cuda"), x)
    assert str(step.refused[0]) == (
        "capture: bringing float32 (2, 3) from the host cannot be part of a CUDA graph: the graph would repeat the data "
        "of one step.\n  Hand it to the captured function as an argument."
    )
    with (
        capture.capturing(stream, rehearsing=False),
        pytest.raises(tg.CaptureError, match="bringing float32"),
    ):
        tg.asarray(x, device="cuda")


def test_elements_that_the_host_reads_are_refused(cupy, stream):
    v = tg.Variable(cupy.ones(3))
    with capture.capturing(stream, rehearsing=True) as step:
        assert (tg.asarray(v, device="cpu").value == 1.0).all()
    assert "capture: reading float64 (3,) on the host" in str(step.refused[0])
    with capture.capturing(stream, rehearsing=False), pytest.raises(tg.CaptureError, match="reading float64"):
        tg.asarray(v, device="cpu")


def test_a_number_is_an_argument_of_a_kernel(cupy, stream):
    with strict_cupy.watched() as waits:
        y, graph = captured(cupy, stream, lambda: places.put_beside(2.5, cupy.empty(0)))
    graph.launch()
    same(y, 2.5)
    assert not waits and y.dtype == np.float64 and places.put_beside(1, y).dtype == np.int64


def test_constants_of_an_op_are_those_of_the_rehearsal(cupy, stream):
    v = tg.Variable(cupy.asarray(np.arange(4.0)))
    y, graph = captured(cupy, stream, lambda: v[[2, 0]])
    graph.launch()
    same(y, [2.0, 0.0])
    index = iter([[0, 1], [1, 2]])
    with pytest.raises(tg.CaptureError, match=r"int64 \(2,\) of the host that no rehearsal of the step had"):
        captured(cupy, stream, lambda: v[next(index)])


def test_what_outlives_a_step_is_not_in_its_memory(cupy, stream):
    asked = []

    def malloc(size):
        asked.append(size)
        return cupy.get_default_memory_pool().malloc(size)

    with capture.capturing(stream, rehearsing=True), cupy.cuda.using_allocator(malloc):
        with capture.lasting():
            cupy.ones(3)
        places.put_beside([1, 2], v := cupy.empty(0))
        verdict = places.Verdict(v)
        assert asked == [] or asked == [0]
        cupy.ones(3)
        assert asked[-1] > 0
    with capture.lasting():
        cupy.ones(3)
    with capture.capturing(stream, rehearsing=False), pytest.raises(tg.CaptureError, match="outlives"):
        places.Verdict(v)
    assert not verdict.failed()


def test_a_verdict_is_noted_by_every_launch(cupy, stream):
    held = cupy.ones((), bool)
    verdict = places.Verdict(held)

    def step():
        verdict.note(held)
        verdict.note(held)
        assert not verdict.failed()  # touches no event
        assert capture.NOW.verdicts == [verdict]

    _, graph = captured(cupy, stream, step)
    graph.launch()
    verdict.wait()
    assert not verdict.failed()
    held.fill(False)
    graph.launch()
    verdict.wait()
    assert verdict.failed()


def test_what_a_step_writes_in_place_is_noted(cupy, stream):
    a = cupy.ones(3)
    capture.writes(a)
    with capture.capturing(stream, rehearsing=True) as step:
        capture.writes(a, a)
    assert step.written == {id(a): a}


# -- one step at a time ----------------------------------------------------------------------------------------


def test_other_threads_see_nothing_of_a_step(cupy, stream):
    a, b = cupy.ones((2, 2)), cupy.ones((2, 2))
    seen = []

    def elsewhere():
        seen.append((capture.now(), namespace(a), (capture.product(a, b).get() == 2.0).all()))
        try:
            with capture.capturing(stream, rehearsing=True):
                pass
        except tg.CaptureError as error:
            seen.append(str(error))

    with capture.capturing(stream, rehearsing=True):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [
        (None, cupy, True),
        "capture: another step is rehearsed or captured now, and there can be one at a time.",
    ]


def test_a_step_that_fails_leaves_nothing_behind(cupy, stream):
    with pytest.raises(ZeroDivisionError), capture.capturing(stream, rehearsing=True):
        _ = 1 / 0
    assert capture.NOW is None and cpu.multiply is None
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null


def test_a_stream_keeps_its_handle_and_gives_it_back(cupy, stream):
    with (
        pytest.raises(tg.CaptureError, match="Rehearse a step first"),
        capture.capturing(stream, rehearsing=False),
    ):
        pass
    with capture.capturing(stream, rehearsing=True) as first:
        pass
    with capture.capturing(stream, rehearsing=False) as second:
        assert second.supplies is first.supplies
    for _ in range(4):
        with capture.capturing(cupy.cuda.Stream(non_blocking=True), rehearsing=True):
            pass
    assert (0, stream.ptr) in capture.SUPPLIES  # a graph would hold `second`
    handles = blas.loaded_library().handles
    assert len(handles) == 5
    del first, second
    assert (0, stream.ptr) not in capture.SUPPLIES
    assert len(handles) == 4


def test_tf32_is_as_cupy_has_it(cupy, stream, monkeypatch):
    a, one = cupy.asarray(np.float32([[1 + 2**-12]])), cupy.ones((1, 1), np.float32)
    for setting, expected in ((None, 1 + 2**-12), ("1", 1.0), ("0", 1 + 2**-12)):
        if setting is not None:
            monkeypatch.setenv("CUPY_TF32", setting)
        with capture.capturing(stream, rehearsing=True):
            assert capture.product(a, one).get() == np.float32(expected)
    with capture.capturing(stream, rehearsing=True, tf32=True):
        assert capture.product(a, one).get() == 1.0
