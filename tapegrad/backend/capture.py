"""What ops and arrays do differently while a step is rehearsed for a CUDA graph, or captured in one.

A graph repeats what was queued during its capture: the kernels, with the addresses and the numbers they were given.
So nothing can be captured that CuPy's libraries refuse, that waits for the device, or that brings data of one step
from the host. In a capture that raises a CaptureError; in a rehearsal, which is a step like any other, it is noted,
and happens. `NOW` is None at all other times, and costs nothing then:

    with capturing(stream, rehearsing=True) as step:
        step.namespace.matmul(a, b)  # CuPy's functions; products by an own cuBLAS handle
    assert not step.refused
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..errors import CaptureError, describe

# The step that is rehearsed or captured now, in whatever thread. `now()` is that of this thread.
NOW: Capturing | None = None


class NotSteady(Exception):
    """Something is not as it was when a step was captured: it runs eagerly, and is looked at again from the beginning."""


class Supplies:
    """What graphs of one stream read that no step owns: the workspace of a cuBLAS handle, and constants."""

    def __init__(self, stream: Any) -> None:
        from ..kernels.cuda.blas import Handle  # here: most programs capture nothing

        self.handle = Handle(stream.ptr)
        self.constants: dict[Any, Any] = {}

    def __del__(self) -> None:
        # cuBLAS waits for the device when a handle goes, which a capture forbids; and may itself be gone at the end.
        if NOW is None and not sys.is_finalizing() and hasattr(self, "handle"):
            self.handle.close()


# By device and stream, as long as a step or a graph has them; and the last ones, from one rehearsal to the next.
SUPPLIES: weakref.WeakValueDictionary[tuple[int, int], Supplies] = weakref.WeakValueDictionary()
LATEST: collections.deque[Supplies] = collections.deque(maxlen=4)


class Capturing:
    """A step that is rehearsed or captured on `stream`, and what was found out about it. Its graph reads what it holds."""

    def __init__(self, cupy: Any, stream: Any, rehearsing: bool, supplies: Supplies) -> None:
        from .products import Namespace

        self.cupy, self.stream, self.rehearsing = cupy, stream, rehearsing
        self.supplies, self.constants = supplies, supplies.constants
        self.thread = threading.get_ident()
        self.namespace = Namespace(cupy, product, refuse_function)
        self.refused: list[CaptureError] = []  # what a rehearsal did that a capture could not
        self.verdicts: list[Any] = []  # those that the step notes in; the host asks them between launches
        self.written: dict[int, Any] = {}  # arrays from before the step that it writes in place, by id
        self.before: dict[Any, Callable[[], None]] = {}  # what brings numbers of the host before each launch
        self.numbers: dict[int, Any] = {}  # the arrays that it brings them to, by id

    def product(self, a: Any, b: Any, out: Any = None) -> Any:
        """`a @ b` for arrays of CuPy. Integers it multiplies by kernels of its own, which can be captured."""
        if np.result_type(a.dtype, b.dtype).kind == "f":
            return self.supplies.handle.matmul(a, b, out)
        return self.cupy.matmul(a, b, out=out)

    def number(self, array: Any) -> Any:
        """An array of the host on the device: a number as the argument of a kernel, others are refused."""
        if not array.ndim:
            return self.cupy.full((), array[()], array.dtype)
        refuse(
            f"bringing {describe(array)} from the host",
            "the graph would repeat the data of one step",
            "Hand it to the captured function as an argument.",
        )
        return self.cupy.asarray(array)

    def constant(self, value: Any) -> Any:
        """Numbers of the host that an op has made or was given, such as a list of indices, on the device.

        They are brought there in a rehearsal, and the capture finds them again: a copy in a graph would read memory
        of the host that CuPy has long used for something else. What no rehearsal had is refused.
        """
        array = np.asarray(value)
        if not array.ndim:
            return self.number(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            if not self.rehearsing:
                refuse(
                    f"{describe(array)} of the host that no rehearsal of the step had",
                    "the graph would repeat the numbers of one step",
                    'What differs from step to step must be an array of the device: tg.asarray(x, device="cuda").',
                )
            with lasting():
                self.constants[key] = self.cupy.asarray(array)
        return self.constants[key]


def now() -> Capturing | None:
    """The step that this thread rehearses or captures."""
    return NOW if NOW is not None and NOW.thread == threading.get_ident() else None


@contextlib.contextmanager
def capturing(stream: Any, rehearsing: bool, *, tf32: bool | None = None) -> Iterator[Capturing]:
    """A scope in which a step is rehearsed or captured on `stream`, which is CuPy's current one in it.

    The first for a stream makes a cuBLAS handle with a workspace, and so must not be a capture. `tf32` is as CuPy has it, by
    CUPY_TF32, unless it is given. Raises CaptureError inside another, of any thread.
    """
    global NOW
    from ..kernels import cpu

    if NOW is not None:
        raise CaptureError(
            "capture: another step is rehearsed or captured now, and there can be one at a time."
        )
    cupy = sys.modules["cupy"]
    where = cupy.cuda.runtime.getDevice(), stream.ptr
    supplies = SUPPLIES.get(where)
    if supplies is None:
        if not rehearsing:
            raise CaptureError("capture: cuBLAS takes memory for its first product. Rehearse a step first.")
        supplies = SUPPLIES[where] = Supplies(stream)
    if supplies not in LATEST:
        LATEST.append(supplies)
    supplies.handle.tf32 = int(os.environ.get("CUPY_TF32", "0")) > 0 if tf32 is None else tf32
    NOW = Capturing(cupy, stream, rehearsing, supplies)
    cpu.multiply = product
    try:
        with stream:
            yield NOW
    finally:
        NOW = cpu.multiply = None


# -- what ops and arrays ask -------------------------------------------------------------------------------


def module(cupy: Any) -> Any:
    """What ops compute with instead of `cupy` itself."""
    step = now()
    return cupy if step is None else step.namespace


def product(a: Any, b: Any, out: Any = None) -> Any:
    """`a @ b`, in `out` if it is given. CuPy refuses `@` in a capture, and so rules of ops call this."""
    if NOW is not None:
        step = now()
        if step is not None and isinstance(a, step.cupy.ndarray) and isinstance(b, step.cupy.ndarray):
            return step.product(a, b, out)
    return a @ b if out is None else np.matmul(a, b, out=out)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """A scope for arrays that outlive the step: in a rehearsal all others lie in memory of the step."""
    step = now()
    if step is None:
        yield
        return
    if not step.rehearsing:
        refuse("an array that outlives the step", "a graph allocates nothing", "Let a rehearsal make it.")
    with step.cupy.cuda.using_allocator(step.cupy.get_default_memory_pool().malloc):
        yield


def writes(*arrays: Any) -> None:
    """Note that the step writes in place to arrays that were there before it."""
    step = now()
    if step is not None:
        step.written |= {id(array): array for array in arrays}


def refuse(what: str, why: str, fix: str) -> None:
    """`what` cannot be captured, why, and what to do: raises CaptureError in a capture, noted in a rehearsal.

    Nothing happens outside both, so a caller asks, and then does what it would have done.
    """
    step = now()
    if step is None:
        return
    error = CaptureError(f"capture: {what} cannot be part of a CUDA graph: {why}.\n  {fix}")
    if not step.rehearsing:
        raise error
    step.refused.append(error)


def refuse_function(name: str) -> None:
    refuse(
        f"cupy.{name}",
        "it calls a library that CuPy does not let a stream capture",
        "Do it outside the captured function.",
    )
