"""The stand-in for CuPy: its memory, its captures, its kernels. What it refuses and counts is in `test_cupy`."""

import threading
import weakref

import numpy as np
import pytest

import strict_cupy


@pytest.fixture
def cupy():
    with strict_cupy.installed() as module:
        yield module


class Bump:
    """An allocator that hands out one block of memory, piece by piece, and notes what it was asked for."""

    def __init__(self, cupy, size=1 << 16):
        self.cupy, self.used, self.asked = cupy, 0, []
        self.block = cupy.full(size, 0x7F, np.uint8)  # far out of range, as an index

    def __call__(self, size):
        self.asked.append(size)
        at, self.used = self.block.data.ptr + self.used, self.used + -(-size // 512) * 512
        return self.cupy.cuda.MemoryPointer(self.cupy.cuda.UnownedMemory(at, size, self.block), 0)


def captured(cupy, work):
    """The graph of `work()`, and what it returned. Its arrays lie in a block of their own."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, cupy.cuda.using_allocator(Bump(cupy)):
        stream.begin_capture()
        try:
            made = work()
        finally:
            graph = stream.end_capture()
    return graph, made


# -- captures --------------------------------------------------------------------------------------------------


def test_a_capture_computes_nothing_and_a_launch_follows_its_inputs(cupy):
    a, b = cupy.asarray(np.arange(3.0)), cupy.zeros(3)

    def work():
        c = cupy.exp(a) + 1.0
        b[...] = c[::-1] * 2
        return c, c.sum()

    graph, (c, total) = captured(cupy, work)
    assert not b.get().any()
    for made in (c, total):
        assert set(made.get().tobytes()) == {0x7F}
    for values in (np.arange(3.0), np.array([5.0, -1.0, 2.0])):
        a.set(values)
        graph.launch()
        np.testing.assert_allclose(c.get(), np.exp(values) + 1)
        np.testing.assert_allclose(b.get(), 2 * (np.exp(values) + 1)[::-1])
        np.testing.assert_allclose(total.get(), np.sum(np.exp(values) + 1))


def of_every_kind(cupy, a, i, out, counts):
    """Calls of all the ways in which an array is made or written to."""
    b = a.reshape(3, 2).T
    b = b.copy() + b.astype(np.float32, copy=False).astype(np.float64)
    b += a.reshape(2, 3)
    b[:, 1] = 7.0
    b[0] *= a[3]
    b[:, i] -= 1.0
    cupy.multiply(b, 2.0, out=out)
    cupy.add(out, b, out)
    b.scatter_add((slice(None), i), out[:, :2])
    cupy.add.at(counts, i, 1)
    j = cupy.argsort(a)[:3] % 3
    taken = cupy.take(b, j, axis=1) + b[:, j] + b[:, [0, 2, 1]]
    high, low = cupy.divmod(taken, 3.0)
    big = cupy.where(taken > 3, cupy.full((), 2.0), cupy.zeros_like(taken))
    cupy.copyto(big, low, where=big > 1)
    big[0].fill(2.5)
    out.sort(axis=0)
    both = cupy.concatenate([high, big]) + cupy.stack([a[:3], a[3:]]).sum(axis=0)
    return [
        b,
        out,
        counts,
        j,
        taken,
        high,
        low,
        big,
        both,
        -b,
        abs(b[0, 0]),
        a.imag,
        b.max(axis=0),
        b.ravel()[1::2],
    ]


def test_every_kind_of_call_is_replayed_as_it_is_made_eagerly(cupy):
    values = [np.random.default_rng(seed).standard_normal(6) for seed in (0, 1)]

    def inputs():
        return cupy.zeros(6), cupy.asarray([2, 0]), cupy.zeros((2, 3)), cupy.zeros(3, np.int64)

    given = inputs()
    graph, made = captured(cupy, lambda: of_every_kind(cupy, *given))
    counts = np.zeros(3)
    for value in values:
        given[0].set(value)
        given[2].fill(0.0)
        graph.launch()
        afresh = inputs()
        afresh[0].set(value)
        expected = of_every_kind(cupy, *afresh)
        counts += expected[2].get()
        np.testing.assert_array_equal(made[2].get(), counts)
        for found, truth in zip(made[:2] + made[3:], expected[:2] + expected[3:], strict=True):
            assert found.dtype == truth.dtype and found.strides == truth.strides
            np.testing.assert_array_equal(found.get(), truth.get())


def test_a_graph_repeats_what_was_sent_from_the_host(cupy):
    host, w = np.ones(2), cupy.zeros(2)
    graph, made = captured(cupy, lambda: cupy.asarray(host) + w)
    host[:] = 9
    w.fill(1.0)
    graph.launch()
    assert made.get().tolist() == [2.0, 2.0]


def test_only_what_is_queued_on_the_stream_is_captured(cupy):
    a, b, stream = cupy.zeros(2), cupy.zeros(2), cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    assert stream.is_capturing() and not cupy.cuda.Stream.null.is_capturing()
    a += 1.0
    with stream:
        assert cupy.cuda.get_current_stream() == stream
        b += 1.0
        there = []
        other = threading.Thread(target=lambda: there.append(cupy.cuda.get_current_stream().ptr))
        other.start()
        other.join()
    assert cupy.cuda.get_current_stream().ptr == 0 and there == [0]
    with pytest.raises(RuntimeError, match="Unsupported"):
        cupy.cuda.Device(0).synchronize()
    graph = stream.end_capture()
    assert (float(a[0]), float(b[0])) == (1.0, 0.0)
    graph.launch()
    graph.launch(stream)
    assert (float(a[0]), float(b[0])) == (1.0, 2.0)


def test_a_graph_is_part_of_another(cupy):
    a = cupy.zeros(2)
    inner, _ = captured(cupy, lambda: a.__iadd__(1.0))
    outer, _ = captured(cupy, lambda: [inner.launch(), a.__imul__(2.0)])
    assert not a.get().any()
    outer.launch()
    assert a.get().tolist() == [2.0, 2.0]


def test_what_a_capture_refuses(cupy):
    a, b, event, pinned = cupy.ones((2, 2)), cupy.zeros((2, 2)), cupy.cuda.Event(), np.empty((2, 2))
    with pytest.raises(RuntimeError, match="default"):
        cupy.cuda.Stream.null.begin_capture()
    with pytest.raises(NotImplementedError):
        strict_cupy.Graph()
    stream = cupy.cuda.Stream(non_blocking=True)
    with pytest.raises(RuntimeError, match="IllegalState"):
        stream.end_capture()
    with stream, cupy.cuda.using_allocator(Bump(cupy)):
        cupy.get_default_memory_pool().malloc(4)  # which has a block free then
        stream.begin_capture()
        for kind, forbidden in [
            (RuntimeError, stream.begin_capture), (RuntimeError, stream.synchronize), (RuntimeError, lambda: stream.done),
            (RuntimeError, lambda: event.done), (RuntimeError, lambda: a.get(out=pinned)), (RuntimeError, lambda: bool(a[0, 0])),
            (RuntimeError, lambda: a[a > 0]), (NotImplementedError, lambda: a @ b), (NotImplementedError, lambda: cupy.dot(a, b)),
            (MemoryError, lambda: cupy.get_default_memory_pool().malloc(4)), (MemoryError, lambda: cupy.cuda.Memory(4)),
            (MemoryError, lambda: cupy.cuda.MemoryPool().malloc(4)), (ValueError, lambda: cupy.add(a, cupy.zeros(3))),
            (TypeError, lambda: cupy.cuda.Event() + a),
        ]:  # fmt: skip
            with pytest.raises(kind):
                forbidden()
        stream.record(event)
        a.get(out=pinned, blocking=False)
        b += a
        graph = stream.end_capture()
    for asked in (event.synchronize, lambda: event.done):
        with pytest.raises(RuntimeError, match="Captured"):
            asked()
    graph.launch()
    assert event.record() is None and event.done and pinned.all() and b.get().all()
    later = stream.record()
    assert cupy.cuda.get_elapsed_time(event, later) >= 0


# -- memory ------------------------------------------------------------------------------------------------------


def test_arrays_lie_at_addresses_and_views_in_their_base(cupy):
    a = cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert a.data.ptr % 512 == 0 and a.data.mem.ptr == a.data.ptr and a.flags.owndata
    for view, offset in ((a[1], 12), (a[1, 2], 20), (a.T[1:], 4), (a[::-1], 12), (a.ravel()[2:], 8)):
        assert view.base is a and view.data.ptr == a.data.ptr + offset and view.data.mem is a.data.mem
        assert not view.flags.owndata
    a[1, 2][...] = 9
    across = cupy.ndarray((3, 2), np.float32, memptr=a.data, strides=(4, 12))
    assert across.get().tolist() == [[0, 3], [1, 4], [2, 9]] and across.base is None
    assert (a.T + 1).strides == (4, 12) and a.T[:2].astype(np.float64).strides == (8, 16)
    last = cupy.ndarray((2,), np.float32, a.data + 16)
    assert last.get().tolist() == [4, 9]
    assert strict_cupy.memory_at(last.data.ptr, 8).view(np.float32).tolist() == [4, 9]
    with pytest.raises(RuntimeError, match="IllegalAddress"):
        cupy.ndarray((1 << 20,), np.float32, a.data)
    with pytest.raises(RuntimeError, match="Misaligned"):
        cupy.ndarray((2,), np.float32, a.data + 1)


def test_every_new_array_asks_the_allocator(cupy):
    a, i = cupy.zeros((2, 3)), cupy.asarray([1, 0])
    for make in (
        lambda: cupy.ndarray((2, 3)), lambda: cupy.empty((2, 3)), lambda: cupy.ones((2, 3)), lambda: cupy.asarray(np.ones((2, 3))),
        lambda: a + 1, lambda: -a, lambda: a > np.float64(0), lambda: cupy.exp(a), lambda: cupy.sum(a, axis=0), lambda: a.copy(),
        lambda: a.astype(np.float32), lambda: a.T.ravel(), lambda: a[i], lambda: a.sum(), lambda: cupy.add.reduce(a),
        lambda: cupy.stack([a, a]), lambda: a @ a.T, lambda: cupy.array(a), lambda: cupy.empty_like(a), lambda: cupy.zeros(0),
    ):  # fmt: skip
        allocator = Bump(cupy)
        with cupy.cuda.using_allocator(allocator):
            made = make()
            assert cupy.cuda.get_allocator() is allocator
        assert allocator.asked == [made.nbytes]
        assert made.data.ptr == allocator.block.data.ptr
    with cupy.cuda.using_allocator(allocator):
        del allocator.asked[:]
        assert [
            a[0],
            a.T,
            a.reshape(6),
            cupy.asarray(a),
            a[1, 2],
            a[None],
            a.ravel(),
        ] and allocator.asked == []
        with pytest.raises(ValueError, match="using_allocator"):
            cupy.cuda.set_allocator(allocator)
    with cupy.cuda.using_allocator(lambda size: size), pytest.raises(TypeError, match="MemoryPointer"):
        cupy.zeros(3)


def test_a_pool_counts_and_hands_blocks_out_again(cupy):
    pool = cupy.get_default_memory_pool()
    used, total = pool.used_bytes(), pool.total_bytes()
    a = cupy.zeros(100)
    view, at = a[50:], a.data.ptr
    assert (pool.used_bytes() - used, pool.total_bytes() - total) == (1024, 1024)
    del a
    assert pool.used_bytes() - used == 1024
    del view
    assert (pool.used_bytes() - used, pool.total_bytes() - total) == (0, 1024)
    assert cupy.ones(128).data.ptr == at
    with cupy.cuda.Stream():  # which has blocks of its own
        assert cupy.ones(128).data.ptr != at
    assert pool.total_bytes() - total == 2048
    pool.free_all_blocks()
    assert pool.used_bytes() == pool.total_bytes() == used


def test_a_pool_of_ones_own_serves_a_capture_with_what_it_has_free(cupy):
    pool, stream, a = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True), cupy.ones(3)
    with stream, cupy.cuda.using_allocator(pool.malloc):
        at = (a + 1.0).data.ptr
        stream.begin_capture()
        b = a + 1.0
        with pytest.raises(MemoryError):
            a + 2.0
        graph = stream.end_capture()
        assert b.data.ptr == at
        del b
        other = cupy.zeros(3)
        graph.launch()  # holds no memory, and writes where it wrote
    assert other.data.ptr == at and other.get().tolist() == [2.0, 2.0, 2.0]


def test_memory_is_weakly_referenced_only_through_a_class_of_ones_own(cupy):
    class Mine(cupy.cuda.UnownedMemory):
        pass

    a = cupy.zeros(3)
    for theirs in (a.data, a.data.mem):
        with pytest.raises(TypeError):
            weakref.ref(theirs)
    with cupy.cuda.using_allocator(lambda size: cupy.cuda.MemoryPointer(Mine(a.data.ptr, 24, a), 0)):
        b = cupy.ones(3)
    found = weakref.ref(b.data.mem)
    view = b[1:]
    del b
    assert found() is view.data.mem
    del view
    assert found() is None


def test_memory_that_nobody_wrote_to_is_not_a_number(cupy):
    memory = cupy.cuda.MemoryPointer(cupy.cuda.Memory(24), 0)
    assert np.isnan(cupy.ndarray(3, np.float64, memory).get()).all()
    assert cupy.ndarray(3, np.int64, memory).get().tolist() == [-1, -1, -1]


def test_an_empty_array_holds_what_lay_there(cupy):
    allocator = Bump(cupy)
    with cupy.cuda.using_allocator(allocator):
        for make in (
            lambda: cupy.empty(3, np.uint8),
            lambda: cupy.ndarray(3, np.uint8),
            lambda: cupy.empty_like(allocator.block[:3]),
        ):
            assert make().get().tolist() == [0x7F, 0x7F, 0x7F]


def test_bytes_are_copied_between_addresses_on_a_stream(cupy):
    runtime, stream = cupy.cuda.runtime, cupy.cuda.Stream(non_blocking=True)
    a, b, host = cupy.asarray(np.arange(4.0)), cupy.zeros(4), np.full(4, 7.0)
    runtime.memcpyAsync(b.data.ptr, a.data.ptr + 8, 16, runtime.memcpyDeviceToDevice, 0)
    assert b.get().tolist() == [1, 2, 0, 0]
    stream.begin_capture()
    runtime.memcpyAsync(b.data.ptr, host.ctypes.data, 8, runtime.memcpyHostToDevice, stream.ptr)
    runtime.memcpyAsync(host.ctypes.data + 8, b.data.ptr, 16, runtime.memcpyDeviceToHost, stream.ptr)
    runtime.memsetAsync(b.data.ptr + 8, 0, 8, stream.ptr)
    with stream:
        (a.data + 8).copy_from_device_async(b.data, 24)
    graph = stream.end_capture()
    assert b.get().tolist() == [1, 2, 0, 0]
    graph.launch()
    assert (
        host.tolist() == [7, 7, 2, 7]
        and b.get().tolist() == [7, 0, 0, 0]
        and a.get().tolist() == [0, 7, 0, 0]
    )
    for dst, src, size, kind in (
        (b.data.ptr, b.data.ptr + 8, 16, 3),
        (b.data.ptr, host.ctypes.data, 8, 3),
        (b.data.ptr, a.data.ptr, 8, 1),
        (b.data.ptr, a.data.ptr, 1024, 3),
    ):
        with pytest.raises(RuntimeError, match="cudaError"):
            runtime.memcpyAsync(dst, src, size, kind, 0)
    with pytest.raises(RuntimeError, match="no stream"):
        runtime.memsetAsync(b.data.ptr, 0, 8, 3)


# -- kernels -------------------------------------------------------------------------------------------------------


def test_a_kernel_runs_or_is_captured(cupy, monkeypatch):
    seen = []

    def scale(grid, block, args, shared_mem):
        y, x, n, factor, flag = args
        seen.append((grid, block, shared_mem, [type(a) for a in (n, factor, flag)]))
        y[:n] = factor * x[:n]

    monkeypatch.setitem(strict_cupy.KERNELS, "scale<3>", scale)
    module = cupy.RawModule(code="", options=("-std=c++17",), name_expressions=("scale<3>",))
    kernel, x, y = module.get_function("scale<3>"), cupy.ones(3), cupy.zeros(3)
    launch = (2,), (32, 2), (y, x, 2, np.float32(5), True)
    graph, _ = captured(cupy, lambda: kernel(*launch, shared_mem=8))
    assert not seen
    graph.launch()
    x.fill(2.0)
    graph.launch()
    assert seen == 2 * [((2, 1, 1), (32, 2, 1), 8, [np.int64, np.float32, np.int64])]
    assert y.get().tolist() == [10.0, 10.0, 0.0]
    with pytest.raises(RuntimeError, match="shared memory"):
        kernel(*launch, shared_mem=1 << 16)
    kernel.max_dynamic_shared_size_bytes = 1 << 16
    kernel(*launch, shared_mem=1 << 16)
    for kind, wrong in [
        (TypeError, lambda: kernel((1,), (32,), (np.ones(3),))), (TypeError, lambda: kernel(1, (32,), ())),
        (RuntimeError, lambda: kernel((1,), (2048,), ())), (RuntimeError, lambda: module.get_function("scale<4>")),
        (TypeError, lambda: cupy.RawModule(code="", options=["-O3"])), (TypeError, lambda: cupy.RawKernel("", "f", ["-O3"])),
    ]:  # fmt: skip
        with pytest.raises(kind):
            wrong()
    with pytest.raises(KeyError, match="'f'"):
        cupy.RawKernel("", "f")((1,), (1,), ())


def test_a_library_is_captured_where_it_honours_streams(cupy):
    a, b = cupy.ones((2, 2)), cupy.zeros((2, 2))
    graph, _ = captured(cupy, lambda: strict_cupy.enqueue(lambda: np.matmul(a._host, a._host, out=b._host)))
    assert not b.get().any()
    graph.launch()
    assert b.get().tolist() == [[2.0, 2.0], [2.0, 2.0]]
    strict_cupy.enqueue(lambda: np.add(b._host, 1, out=b._host))
    assert b.get().tolist() == [[3.0, 3.0], [3.0, 3.0]]
