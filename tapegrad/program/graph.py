"""`capture`: the steady state of a loop on a GPU as one launch of a CUDA graph.

A step is run eagerly until its windows are full. Then it is *rehearsed*: still eagerly, in memory by age
(`arenas.py`), with the products that a capture allows. Once every segment lies there it is captured, the graph
is compared with the last steps that were rehearsed, and from then on launched. A schedule that sweeps every n-th
step has n graphs, one for each step of its period; the phase of a window's ring makes no difference to any.

A graph repeats what the device did and nothing of Python. So whatever Python could do otherwise is looked at before
each launch (the arguments, the learning rate), and what does not fit is run eagerly, with a reason in the log.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

from ..backend import capture as seam
from ..backend.capture import NotSteady
from ..backend.device import current_device, in_use, on_device
from ..errors import ArgumentError, CaptureError, describe
from ..nest import flat
from .arguments import array_in
from .launches import Graphs
from .rehearsal import Loop, Unfit

LOG = logging.getLogger("tapegrad.capture")
ATTEMPTS = 100  # looks at a loop that is not steady, in a row, before its step is left eager
WARM = 3  # steps before anything is measured: kernels are compiled, averages made


def capture(step: Any = None, *, writes: Iterable[Any] = ()) -> Any:
    """`step`, a function that is the body of a loop, as one that becomes a CUDA graph once the loop is steady.

        @tg.capture
        def step(x, target, state):
            with tape:
                out, state = model(x, state)
                loss = tg.softmax_cross_entropy(out, target)
            if tape.backward(loss):
                optimizer.step()
                optimizer.zero_grad()
            return loss, state

        for x, target in stream:
            loss, state = step(x, target, state)

    Arguments: arrays on the device (copied in at each call), the Variables that the last call returned (a state, which stays
    connected to the window), and things that stay the same. Returns: the same as `step`, arrays as copies. What Python does
    in a step is done while it runs eagerly and not again: print and count outside. A learning rate may be changed, and a parameter be
    assigned, at any time; whoever uses the tape finds it where the loop is, and ends the graph. `writes`: arrays of CuPy's that
    are yours and that the step writes in place (`total += loss.value`); it must write to no other.

    Without a GPU, or where something cannot be captured, the step runs as it is: `step.reason` says why, and so
    does the log (`logging.getLogger("tapegrad.capture")`).

    Raises ArgumentError if `step` cannot be called.
    """
    if step is None:
        return functools.partial(capture, writes=writes)
    if not callable(step):
        raise ArgumentError(f"capture: `step` must be a function, and {describe(step)} came.")
    return Captured(step, list(writes))


class Captured:
    """What `capture` returns: call it as the function itself.

    `graphs`: how many graphs repeat the step, 0 while it runs eagerly. `reason`: why it never will be repeated, "" if
    it only waits for the loop to be steady. `launches`: how often a graph was launched.
    """

    def __init__(self, step: Callable[..., Any], writes: list[Any]) -> None:
        functools.update_wrapper(self, step)
        self.name = getattr(step, "__name__", "step")
        self.step, self.writes = step, writes
        self.reason, self.launches = "", 0
        self._graphs: Graphs | None = None
        self._loop: Loop | None = None
        self._calls, self._looks = 0, 0
        self._returned: list[Any] = []  # by the last call, flat

    @property
    def graphs(self) -> int:
        return 0 if self._graphs is None else len(self._graphs.phases)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if seam.now() is not None:  # part of another step that is captured
            return self.step(*args, **kwargs)
        graphs = self._graphs
        if graphs is None:
            return self._eagerly(args, kwargs)
        try:
            inputs = graphs.accept(args, kwargs)
        except NotSteady as change:
            self._leave(str(change))
            return self._eagerly(args, kwargs)
        self.launches += 1
        return graphs.launch(inputs)

    def release(self) -> None:
        """Go on eagerly, with the window as it is. When the loop is steady again it is captured again."""
        if self._graphs is not None:
            self._leave("it was released")

    def _leave(self, why: str) -> None:
        assert self._graphs is not None
        LOG.info("%s runs eagerly: %s", self.name, why)
        self._graphs.leave()

    def _left(self) -> None:
        """The graphs are not used any more."""
        self._graphs, self._loop, self._calls, self._returned = None, None, 0, []

    def _eagerly(self, args: Any, kwargs: Any) -> Any:
        """One step as it is, on the way to its capture if there is one."""
        there = (
            [] if self.reason or not in_use() else [*filter(on_device, map(array_in, flat((args, kwargs))))]
        )
        if not there:
            return self.step(*args, **kwargs)
        if any(array.device.id != current_device() for array in there):
            self._give_up("its arrays lie on another device than the current one: with cupy.cuda.Device(...)")
            return self.step(*args, **kwargs)
        self._calls += 1
        if self._calls <= WARM:
            return self._noted(self.step(*args, **kwargs))
        try:
            if self._loop is None:
                self._loop = Loop(self.step, args, kwargs, self._returned, self.writes)
            inputs = self._loop.accept(args, kwargs, self._returned)
        except NotSteady as change:
            LOG.info("%s is looked at again: %s", self.name, change)
            self._loop, self._calls, self._looks = None, WARM - 1, self._looks + 1
            if self._looks >= ATTEMPTS:
                self._give_up(f"{ATTEMPTS} times something was not as in the call before, at last: {change}")
            return self._noted(self.step(*args, **kwargs))
        try:
            if not self._loop.rehearsed:
                return self._noted(self._loop.rehearse(inputs))
            self._graphs = self._loop.captured(inputs)
        except Unfit as unfit:  # it has run
            self._give_up(str(unfit))
            return self._noted(unfit.returned)
        except CaptureError as error:  # it has not
            self._give_up(str(error))
            return self._noted(self.step(*args, **kwargs))
        except BaseException:  # it broke off, and what it has recorded stays where it is
            self._loop, self._calls = None, 0
            raise
        self._graphs.leaving, self._looks = self._left, 0
        self.launches += 1
        return self._graphs.launch(inputs)

    def _give_up(self, reason: str) -> None:
        self.reason, self._loop = reason, None
        LOG.warning("%s runs eagerly, without a graph: %s", self.name, reason)

    def _noted(self, returned: Any) -> Any:
        self._returned = flat(returned)
        return returned
