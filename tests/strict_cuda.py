"""CUDA of the stand-in for CuPy: memory at real addresses, pools, streams that capture, graphs. See `strict_cupy`.

What a capture does with memory is what CUDA does: nothing. The work is noted, `Graph.launch` does it, in the memory
that was named, whatever lies there by then. A graph holds no memory: a block that went back to its pool is handed out
again, and a graph that still writes there is seen to.

    stream = Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        ...                        # noted, not done
        graph = stream.end_capture()
        graph.launch()             # done now

Stricter than CUDA: CuPy's default pool and `cudaMalloc` refuse to serve a stream that captures. A pool of one's own
serves what it has free. Less strict: a refused call does not spoil the capture, one stream captures by itself, and
a pool neither splits a block nor puts two together.
"""

import bisect
import contextlib
import ctypes
import itertools
import threading
import time
import types
import warnings
import weakref

import numpy as np

UNIT = 512  # bytes: blocks are aligned to it, and pools round up to it
FRESH = 0xFF  # each byte of memory that nobody has written to: NaN, or -1
UNSUPPORTED = "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where CUDA refuses."""


# -- watching ------------------------------------------------------------------------------------------------


class State:
    """What is going on: who watches, and which captures are under way."""

    watchers: list = []
    captures: list = []


def waits(what):
    """Note that the host waits for the device, which a capture forbids."""
    if LOCAL.stream.nodes is not None:
        raise CUDARuntimeError(f"{what}: {UNSUPPORTED}")
    for events in State.watchers:
        events.append(what)


def library(what):
    if LOCAL.stream.nodes is not None:
        raise NotImplementedError(
            f"{what}: calling this library's API during stream capture is currently unsupported"
        )


@contextlib.contextmanager
def watched():
    """A list that grows by the name of every wait for the device, implicit or asked for."""
    events = []
    State.watchers.append(events)
    try:
        yield events
    finally:
        State.watchers[:] = [other for other in State.watchers if other is not events]


@contextlib.contextmanager
def quiet():
    """A scope without NumPy's warnings of elements: a device gives none."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


# -- devices, streams, events, graphs --------------------------------------------------------------------------


class Device:
    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)
        if self.id != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def use(self):
        pass

    def synchronize(self):
        if State.captures:  # of any stream
            raise CUDARuntimeError(f"synchronize: {UNSUPPORTED}")
        waits("synchronize")

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


class Graph:
    """Work that was captured."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError("a graph is made by capturing a stream")

    @classmethod
    def _of(cls, nodes):
        made = object.__new__(cls)
        made._nodes = tuple(nodes)
        return made

    def launch(self, stream=None):
        (LOCAL.stream if stream is None else stream).put(self._run)

    def upload(self, stream=None):
        pass

    def _run(self):
        with quiet():
            for node in self._nodes:
                node()


class Stream:
    null = None  # the default stream
    handles = itertools.count(0x5EA0, 16)
    living = weakref.WeakValueDictionary()  # by handle

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(self.handles)
        self.device_id = -1 if null else 0
        self.nodes = None  # what has been captured so far, while it captures
        if self.ptr:
            self.living[self.ptr] = self

    def __eq__(self, other):
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self):
        return self.ptr

    def __enter__(self):
        LOCAL.outer.append(LOCAL.stream)
        LOCAL.stream = self
        return self

    def __exit__(self, *error):
        LOCAL.stream = LOCAL.outer.pop()

    def use(self):
        LOCAL.stream = self
        return self

    def put(self, work):
        """Do `work` on this stream: now, or at every launch of what is being captured."""
        if self.nodes is None:
            work()
        else:
            self.nodes.append(work)

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self.nodes is not None:
            raise CUDARuntimeError("cudaErrorIllegalState: this stream captures already")
        self.nodes = []
        State.captures.append(self)

    def end_capture(self):
        if self.nodes is None:
            raise CUDARuntimeError("cudaErrorIllegalState: this stream does not capture")
        graph, self.nodes = Graph._of(self.nodes), None
        State.captures.remove(self)
        return graph

    def is_capturing(self):
        return self.nodes is not None

    @property
    def done(self):
        if self.nodes is not None:
            raise CUDARuntimeError(f"done: {UNSUPPORTED}")
        return True

    def synchronize(self):
        if self.nodes is not None:
            raise CUDARuntimeError(f"synchronize: {UNSUPPORTED}")
        waits("synchronize")

    def record(self, event=None):
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event):
        if event.captured_by is not self.nodes:
            raise NotImplementedError(
                "a wait that joins a stream to the capture of another, or leaves its own"
            )


class Event:
    """A mark in a stream; what was before it is done at once here."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.timed, self.at, self.captured_by = not disable_timing, None, None

    @property
    def done(self):
        if self.captured_by is not None or LOCAL.stream.nodes is not None:
            raise CUDARuntimeError(
                "done: cudaErrorCapturedEvent: operation not permitted on an event of a capture"
            )
        return True

    def record(self, stream=None):
        stream = LOCAL.stream if stream is None else stream
        self.at, self.captured_by = time.perf_counter(), stream.nodes

    def synchronize(self):
        if self.captured_by is not None:
            raise CUDARuntimeError("synchronize: cudaErrorCapturedEvent: the event was recorded in a capture")
        waits("synchronize")


def get_elapsed_time(start_event, end_event):
    if not (start_event.timed and end_event.timed) or start_event.at is None or end_event.at is None:
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: an event without a time")
    return 1e3 * (end_event.at - start_event.at)


Stream.null = Stream(null=True)


class Local(threading.local):
    """What a thread has chosen: a stream, and an allocator."""

    def __init__(self):
        self.stream, self.outer, self.allocator = Stream.null, [], None


LOCAL = Local()


def get_current_stream(device_id=-1):
    return LOCAL.stream


def enqueue(work):
    """Do `work` on the current stream, as a library does that honours streams: now, or at every launch."""
    LOCAL.stream.put(work)


def reset():
    """No capture under way, the default stream, the default pool, nothing free in it."""
    for stream in State.captures:
        stream.nodes = None
    State.captures.clear()
    LOCAL.__init__()
    State.allocator = POOL.malloc
    POOL.free_all_blocks()


# -- memory ----------------------------------------------------------------------------------------------------


HELD = {}  # what `cudaMalloc` gave: bytes, by address
STARTS = []  # the addresses, ascending


class BaseMemory:
    """Memory of the device. As in CuPy no weak reference is to be had, but to instances of a subclass of one's own."""

    __slots__ = ("_bytes", "device_id", "ptr", "size")
    device = property(lambda self: Device(self.device_id))

    def __int__(self):
        return self.ptr


class Memory(BaseMemory):
    """Memory of the driver's, until this dies."""

    __slots__ = ()

    def __init__(self, size):
        self.ptr, self.size, self.device_id, self._bytes = 0, size, 0, None
        if size:
            refuse_in_capture()
            room = np.full(size + UNIT, FRESH, np.uint8)
            self.ptr = -(-room.ctypes.data // UNIT) * UNIT
            begin = self.ptr - room.ctypes.data
            self._bytes = HELD[self.ptr] = room[begin : begin + size]
            bisect.insort(STARTS, self.ptr)

    def __del__(self):
        if self.ptr and HELD is not None and HELD.pop(self.ptr, None) is not None:
            del STARTS[bisect.bisect_left(STARTS, self.ptr)]


class PooledMemory(BaseMemory):
    """A block of a pool, which has it back when this dies."""

    __slots__ = ("_free", "_mem", "_pool")

    def __init__(self, pool, mem, free):
        self.ptr, self.size, self.device_id, self._bytes = mem.ptr, mem.size, mem.device_id, mem._bytes
        self._pool, self._mem, self._free = pool, mem, free

    def __del__(self):
        self._pool._used -= self.size
        self._free.append(self._mem)


class UnownedMemory(BaseMemory):
    """Memory that somebody else holds. `owner` lives as long as this."""

    __slots__ = ("_owner",)

    def __init__(self, ptr, size, owner, device_id=-1):
        if device_id < 0 and memory_at(ptr, 0) is None:
            raise RuntimeError("UnownedMemory requires explicit device ID for a null pointer.")
        self.ptr, self.size, self.device_id, self._owner = ptr, size, max(device_id, 0), owner
        self._bytes = None  # looked up when it is used


class MemoryPointer:
    """A place in memory."""

    __slots__ = ("device_id", "mem", "ptr")
    device = property(lambda self: Device(self.device_id))

    def __init__(self, mem, offset):
        if not isinstance(mem, BaseMemory):
            raise TypeError(
                f"Argument 'mem' has incorrect type (expected BaseMemory, got {type(mem).__name__})"
            )
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    def __int__(self):
        return self.ptr

    def __add__(self, offset):
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def __sub__(self, offset):
        return self + -offset

    def copy_from_device_async(self, src, size, stream=None):
        memcpyAsync(self.ptr, src.ptr, size, 4, handle(stream))

    def copy_from_host_async(self, mem, size, stream=None):
        memcpyAsync(self.ptr, mem if isinstance(mem, int) else mem.value, size, 1, handle(stream))

    def copy_to_host_async(self, mem, size, stream=None):
        memcpyAsync(mem if isinstance(mem, int) else mem.value, self.ptr, size, 2, handle(stream))

    def memset_async(self, value, size, stream=None):
        memsetAsync(self.ptr, value, size, handle(stream))


class MemoryPool:
    """Blocks that are handed out again, by size and by the stream that was current.

    `shared`: everybody draws from it, so what it gives to a graph it would give to others as well.
    """

    def __init__(self, allocator=None):
        self._shared = False
        self._allocator = malloc if allocator is None else allocator
        self._free = {}  # lists of memory, by stream and size
        self._used = self._total = 0

    def malloc(self, size):
        if not size:
            return MemoryPointer(Memory(0), 0)
        stream = LOCAL.stream
        if self._shared and stream.nodes is not None:
            refuse_in_capture()
        size = -(-size // UNIT) * UNIT
        free = self._free.get((stream.ptr, size))
        if free is None:
            free = self._free[stream.ptr, size] = []
        while free and HELD.get(free[-1].ptr) is not free[-1]._bytes:
            self._total -= free.pop().size  # the collector found it together with its block
        if free:
            mem = free.pop()
        else:
            mem = self._allocator(size).mem
            self._total += size
        self._used += size
        return MemoryPointer(PooledMemory(self, mem, free), 0)

    def used_bytes(self):
        return self._used

    def total_bytes(self):
        return self._total

    def free_bytes(self):
        return self._total - self._used

    def n_free_blocks(self):
        return sum(map(len, self._free.values()))

    def free_all_blocks(self, stream=None):
        for key, free in self._free.items():
            if stream is None or key[0] == stream.ptr:
                self._total -= key[1] * len(free)
                free.clear()


def refuse_in_capture():
    if LOCAL.stream.nodes is not None:
        raise MemoryError(
            "cudaErrorStreamCaptureUnsupported: memory is not allocated while a stream captures"
        )


def malloc(size):
    return MemoryPointer(Memory(size), 0)


POOL = MemoryPool()
POOL._shared = True
State.allocator = POOL.malloc


def get_allocator():
    return State.allocator if LOCAL.allocator is None else LOCAL.allocator


def set_allocator(allocator=None):
    if LOCAL.allocator is not None:
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    State.allocator = malloc if allocator is None else allocator


@contextlib.contextmanager
def using_allocator(allocator=None):
    before, LOCAL.allocator = LOCAL.allocator, malloc if allocator is None else allocator
    try:
        yield
    finally:
        LOCAL.allocator = before


def alloc(size):
    """Memory from the current thread's allocator, of which 0 bytes are asked too."""
    given = get_allocator()(size)
    if not isinstance(given, MemoryPointer):
        raise TypeError(f"Cannot convert {type(given).__name__} to cupy.cuda.memory.MemoryPointer")
    return given


def memory_at(address, size):
    """The device's memory at an address, as bytes that may be written to; None for address 0."""
    if not address:
        return None
    i = bisect.bisect_right(STARTS, address) - 1
    room = HELD[STARTS[i]] if i >= 0 else ()
    begin = address - STARTS[i] if i >= 0 else 0
    if i < 0 or begin >= len(room) or begin + size > len(room):
        raise CUDARuntimeError(f"cudaErrorIllegalAddress: {size} bytes at {address:#x} are not the device's")
    return room[begin : begin + size]


def array_at(pointer, shape, dtype, strides=None):
    """NumPy's array in the memory at a `MemoryPointer`."""
    mem = pointer.mem
    if mem._bytes is None:
        if not mem.size:
            assert 0 in shape, "elements in no memory"
            return np.ndarray(shape, dtype, strides=strides)
        mem._bytes = memory_at(mem.ptr, mem.size)
    if pointer.ptr % dtype.alignment:
        raise CUDARuntimeError(f"cudaErrorMisalignedAddress: {dtype} at {pointer.ptr:#x}")
    try:
        return np.ndarray(shape, dtype, mem._bytes, pointer.ptr - mem.ptr, strides)
    except (TypeError, ValueError):
        what = f"{dtype} {shape} at {pointer.ptr:#x} of {mem.size} bytes at {mem.ptr:#x}"
        raise CUDARuntimeError(f"cudaErrorIllegalAddress: {what}") from None


# -- the runtime -------------------------------------------------------------------------------------------------


def handle(stream):
    return (LOCAL.stream if stream is None else stream).ptr


def stream_of(ptr):
    found = Stream.living.get(ptr) if ptr else Stream.null
    if found is None:
        raise CUDARuntimeError(f"cudaErrorInvalidResourceHandle: {ptr:#x} is no stream")
    return found


def copy_bytes(dst, src, size, kind):
    """`size` bytes from address to address, each on the side that `kind` names."""
    for address, device in ((dst, kind in (1, 3)), (src, kind in (2, 3))):
        i = bisect.bisect_right(STARTS, address) - 1
        inside = i >= 0 and address < STARTS[i] + len(HELD[STARTS[i]])
        if device or inside:
            memory_at(address, size)
        if kind != 4 and inside and not device:
            raise CUDARuntimeError(f"cudaErrorInvalidValue: {address:#x} is the device's, and kind is {kind}")
    if abs(dst - src) < size:
        raise CUDARuntimeError("cudaErrorInvalidValue: a copy between places that overlap")
    ctypes.memmove(dst, src, size)


def memcpyAsync(dst, src, size, kind, stream):
    stream_of(stream).put(lambda: copy_bytes(dst, src, size, kind))


def memcpy(dst, src, size, kind):
    waits("memcpy")
    copy_bytes(dst, src, size, kind)


def memsetAsync(ptr, value, size, stream):
    stream_of(stream).put(lambda: memory_at(ptr, size).fill(value))


def getDeviceProperties(device):
    return {
        "name": b"a stand-in", "major": 9, "minor": 0, "multiProcessorCount": 132, "sharedMemPerBlockOptin": 232448,
        "sharedMemPerBlock": 49152, "totalGlobalMem": 80 << 30, "warpSize": 32, "maxThreadsPerBlock": 1024,
    }  # fmt: skip


runtime = types.ModuleType("cupy.cuda.runtime")
vars(runtime).update(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: 1,
    getDevice=lambda: 0,
    getDeviceProperties=getDeviceProperties,
    driverGetVersion=lambda: 13000,
    runtimeGetVersion=lambda: 13000,
    memcpy=memcpy,
    memcpyAsync=memcpyAsync,
    memsetAsync=memsetAsync,
    memcpyHostToHost=0,
    memcpyHostToDevice=1,
    memcpyDeviceToHost=2,
    memcpyDeviceToDevice=3,
    memcpyDefault=4,
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
)

cuda = types.ModuleType("cupy.cuda")
vars(cuda).update(
    {kind.__name__: kind for kind in (Device, Event, Stream)},
    Graph=Graph,
    BaseMemory=BaseMemory,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    UnownedMemory=UnownedMemory,
    alloc=alloc,
    get_allocator=get_allocator,
    get_current_stream=get_current_stream,
    get_device_id=lambda: 0,
    get_elapsed_time=get_elapsed_time,
    is_available=lambda: True,
    runtime=runtime,
    set_allocator=set_allocator,
    using_allocator=using_allocator,
)
