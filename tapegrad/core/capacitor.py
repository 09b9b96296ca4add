"""A tape with a bounded memory: backpropagation through time over a window, in a loop that knows nothing of it.

Truncation is forgetting. A CapacitorTape keeps the newest segments (one `begin` … `stop` each) in a deque.
A sweep walks from the newest back to the oldest; a value from before that is a constant, because the
entry that computed it is gone. Nothing is recomputed, and nothing is detached.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ArgumentError, EvictedError, GradientStopsWarning, RecordingError, describe
from .adjoints import variables
from .entry import Entry
from .schedule import Schedule, as_schedule
from .sweep import Joint, Sweep, WindowSegment
from .tape import Roots, Segment, Tape
from .variable import Variable

EVICTIONS_REMEMBERED = 1024  # how many dropped segments an error message can still name


class CapacitorTape(Tape):
    """Keeps the newest segments of a loop, and sweeps back over them when the schedule says so.

        tape = tg.CapacitorTape(20)
        for x, target in stream:
            with tape:
                out, state = cell(x, state)
                loss = tg.softmax_cross_entropy(readout(out), target)
            if tape.backward(loss):
                optimizer.step()
                optimizer.zero_grad()
        tape.sweep()

    `schedule`: Full(), Sliding(window, stride), Chunked(window); an int is Sliding(int).
    `weights`: a window may span optimizer steps. "recorded" differentiates what ran, with the weights it
    ran with. "current" keeps one copy of the weights and sweeps old activations with today's: an
    approximation, exact when the learning rate is 0. That is about arrays of leaves which an op
    reads directly: what was computed from a weight (`w.T`, `w * mask`) is an activation like any other.
    `joint`: what happens to adjoints at the border between two segments: None passes them, a number
    scales them (0 drops), a callable maps the pending adjoints `{slot: array}` to those that go on.
    """

    def __init__(
        self,
        schedule: Schedule | int,
        *,
        weights: str = "recorded",
        joint: Joint = None,
        guard: bool = False,
    ) -> None:
        if weights not in ("recorded", "current"):
            raise ArgumentError(
                f"CapacitorTape: `weights` must be 'recorded' or 'current', and {describe(weights)} came."
            )
        self.schedule = as_schedule(schedule)
        self.weights = weights
        self.joint = require_joint(joint)
        self._wanted: list[Variable] = []  # whose adjoints the next sweep is to keep
        self._warned = False
        self._closed: deque[WindowSegment] = deque()
        self._evicted: deque[tuple[int, int, int]] = deque(maxlen=EVICTIONS_REMEMBERED)
        self._count = 0  # segments closed so far
        self._swept_at = 0  # the count at the last sweep
        self._forget_on_close = False
        super().__init__(guard=guard)

    @property
    def segments(self) -> Sequence[WindowSegment]:
        """The closed segments in the window, oldest first."""
        return tuple(self._closed)

    # -- recording -------------------------------------------------------------------------------

    def _new_segment(self) -> WindowSegment:
        return WindowSegment(self._count + 1)

    def _close(self) -> None:
        segment = self._segment
        assert isinstance(segment, WindowSegment)
        segment.close()
        if self.weights == "current":
            segment.drop_leaves()
        self._count += 1
        self._closed.append(segment)
        if self._forget_on_close:
            self._forget_on_close = False
            self._forget_swept()
        self._evict()

    def _roll_back(self) -> None:
        self._swept_at = min(self._swept_at, self._count)
        self._forget_on_close = False
        self._open(Segment())

    def _evict(self) -> None:
        """Drop what is beyond the window; raise, and drop nothing, if a loss would go unswept."""
        window = self.schedule.window
        while window is not None and len(self._closed) > window:
            oldest = self._closed[0]
            if oldest.losses:
                raise EvictedError(
                    f"{self._name}.stop: segment {oldest.index} holds a loss that was handed in and never swept, "
                    f"and would leave the window of {window} now.\n"
                    f"  Nothing was dropped. Call tape.sweep(), or call backward(loss) in every segment."
                )
            self._remember(self._closed.popleft())

    def _forget_swept(self) -> None:
        """Drop every segment but those with a loss that came in after the sweep."""
        for segment in self._closed:
            if not segment.losses:
                self._remember(segment)
        self._closed = deque(segment for segment in self._closed if segment.losses)

    def _remember(self, dropped: WindowSegment) -> None:
        """Keep of a dropped segment what an error message needs."""
        self._evicted.append((dropped.index, dropped.first, dropped.end))

    def reset(self) -> None:
        """Forget every segment, pending loss and count. Raises RecordingError while recording."""
        if self.recording:
            raise RecordingError(f"{self._name}.reset: a segment is open. Call stop() or abort() first.")
        self._closed.clear()
        self._evicted.clear()
        self._wanted.clear()
        self._count = self._swept_at = 0
        self._warned = False
        self._open(Segment())

    # -- sweeping --------------------------------------------------------------------------------

    def backward(  # type: ignore[override]
        self, root: Roots = None, seed: Any = None, *, keep: Iterable[Variable] = (), record: bool = False
    ) -> Sweep | None:
        """Hand in a loss; sweep the window if the schedule says that it is time.

        Returns the Sweep when there was one, else None. All losses handed in since the last sweep are
        seeded, each exactly once. While a segment is open it counts as the newest.

        Raises EvictedError for a loss whose segment has left the window; otherwise as Tape.backward.
        """
        if record:
            raise ArgumentError(
                f"{self._name}.backward: `record=True` needs a plain Tape: a recorded sweep would be part of no segment.\n"
                f"  Nest a tg.Tape inside the segment for higher-order gradients there."
            )
        roots, seeds = self._seeded(root, seed)
        wanted = [*roots, *variables(keep, "keep")]
        handed_in = [(self._segment_of(r._slot), (r._slot, s)) for r, s in zip(roots, seeds, strict=True)]
        for segment, loss in handed_in:
            if any(slot == loss[0] for slot, _ in segment.losses):
                raise ArgumentError(
                    f"{self._name}.backward: this loss was handed in before, and waits for the next sweep.\n"
                    f"  Each loss counts once: call tape.sweep() to sweep now."
                )
        for segment, loss in handed_in:
            segment.losses.append(loss)
        if not self.schedule.due(self._count + self.recording - self._swept_at):
            self._wanted += wanted
            return None
        try:
            return self._sweep_window(wanted)
        except BaseException:  # as if it had not been handed in: the call may be repeated
            for segment, _ in handed_in:
                segment.losses.pop()
            raise

    def sweep(self, *, keep: Iterable[Variable] = ()) -> Sweep | None:
        """Sweep now whatever is pending; None if nothing is. Call it at a stream's end."""
        if not any(segment.losses for segment in self._window()):
            return None
        return self._sweep_window(variables(keep, "keep"))

    def _sweep_window(self, keep: Sequence[Variable]) -> Sweep:
        sweep, window = Sweep([*self._wanted, *keep]), self._window()
        stopped: list[int] = []
        for segment in window:
            segment.check(self._name)
        for segment in reversed(window):
            sweep.enter(segment)
            sweep.sweep(reversed(segment.entries_today()))
            stopped += sweep.leave(segment, self.joint)
        sweep.finish()
        sweep.deliver()
        for segment in window:
            segment.losses.clear()
        self._wanted = []
        self._swept_at = self._count + self.recording
        if self.schedule.forgets:
            self._forget_swept()
            self._forget_on_close = self.recording
        self._warn_of(stopped)
        return sweep

    def _warn_of(self, stopped: list[int]) -> None:
        if stopped and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._name}: a segment read a value that was computed outside this tape's segments, and the "
                f"gradient stops there. Compute it inside `with tape:`, or say so with tg.stop_gradient.",
                GradientStopsWarning,
                stacklevel=4,
            )

    # -- what a sweep covers -----------------------------------------------------------------------

    def _window(self) -> list[WindowSegment]:
        """The newest segments, an open one included; older ones too while they hold a loss to be swept."""
        segments = [*self._closed]
        if self.recording and isinstance(self._segment, WindowSegment):
            segments.append(self._segment)
        beyond = 0 if self.schedule.window is None else max(len(segments) - self.schedule.window, 0)
        while beyond and any(segment.losses for segment in segments[:beyond]):
            beyond -= 1
        return segments[beyond:]

    def _entries(self) -> list[Entry]:
        return [entry for segment in self._window() for entry in segment.entries_today()]

    def _last(self) -> Entry | None:
        newest = self._window()[-1:]
        return newest[0].entries[-1] if newest and newest[0].entries else None

    def _segment_of(self, slot: int) -> WindowSegment:
        """The segment that computed `slot`; for a leaf, the newest."""
        window = self._window()
        if slot < 0 and window:
            return window[-1]
        for segment in reversed(window):
            if slot >= segment.first:
                if segment.holds(slot):
                    return segment
                break
        raise KeyError(slot)

    def _holds(self, slot: int) -> bool:
        try:
            self._segment_of(slot)
        except KeyError:
            return False
        return True

    def _refuse_root(self, root: Variable) -> None:
        dropped = [index for index, first, end in self._evicted if first < root._slot <= end]
        if dropped:
            window = self.schedule.window
            oldest = self._closed[0].index if self._closed else self._count + 1
            raise EvictedError(
                f"{self._name}.backward: the loss was recorded in segment {dropped[0]}, and the oldest segment kept is {oldest}.\n"
                f"  window is {window}. Call backward within {window} segments of the loss, or raise the window."
            )
        super()._refuse_root(root)


def require_joint(joint: Joint) -> Joint:
    """`joint` if it is None, a finite number or callable."""
    number = isinstance(joint, (int, float)) and not isinstance(joint, bool) and math.isfinite(joint)
    if joint is None or number or callable(joint):
        return joint
    raise ArgumentError(
        f"CapacitorTape: `joint` must be None, a finite number, or a function of the pending adjoints, "
        f"and {describe(joint)} came."
    )
