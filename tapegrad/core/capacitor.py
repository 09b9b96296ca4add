"""A tape with a bounded memory: backpropagation through time over a window, in a loop that knows nothing of it.

Truncation is forgetting. A CapacitorTape keeps the newest segments (one `begin` … `stop` each) in a deque.
A sweep walks from the newest back to the oldest; a value from before that is a constant, because the
entry that computed it is gone. Nothing is recomputed, and nothing is detached.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import ArgumentError, EvictedError, RecordingError, describe
from .active import ignore
from .adjoints import variables
from .entry import Entry
from .lag import LagWatch
from .memory import Memory
from .part import Part
from .replay import Rerun, State, inputs_now, strip
from .schedule import Schedule, as_schedule
from .seeds import Roots, seeded
from .sweep import Joint, Sweep, in_step, oldest_swept, require_joint
from .tape import Segment, Tape
from .variable import Variable
from .window import Clock, Loss, WindowSegment, evicted, require_a_window, unswept

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

    `schedule`: Full(), Sliding(window, stride), Chunked(window), and those of `tapegrad.truncation`; an
    int is Sliding(int). `tape.schedule` is the tape's own: what one learns is not shared with another tape.
    `weights`: a window may span optimizer steps. "recorded" differentiates what ran, with the weights it
    ran with. "current" keeps one copy of the weights and sweeps old activations with today's: an
    approximation, exact when the learning rate is 0. That is about arrays of leaves which an op
    reads directly: what was computed from a weight (`w.T`, `w * mask`) is an activation like any other.
    "replay" keeps what entered the segments, and runs their ops again with today's weights before a
    sweep: the exact gradient of the re-run window, whose state is `sweep.state[v]`.
    `joint`: what happens to adjoints at the border between two segments: None passes them, a number
    scales them (0 drops), a callable maps the pending adjoints `{slot: array}` to those that go on.
    `compile`: True sweeps by programs that are compiled for what repeats, "exact" by ones that round as the
    rules do, "numpy" or "numba" by those alone, False by rules (docs/programs.md).
    """

    state_dict: Callable[..., dict[str, Any]]  # a snapshot, and the way back; see snapshot.py
    load_state_dict: Callable[..., Any]
    programs: Callable[..., Any]  # what sweeps by compiled programs; see tapegrad.program

    def __init__(
        self,
        schedule: Schedule | int,
        *,
        weights: str = "recorded",
        joint: Joint = None,
        guard: bool = False,
        compile: bool | str = True,
    ) -> None:
        if weights not in ("recorded", "current", "replay"):
            raise ArgumentError(
                f"CapacitorTape: `weights` must be 'recorded', 'current' or 'replay', and {describe(weights)} came."
            )
        self.weights = weights
        self.joint = require_joint(joint)
        self._keeps_inputs = weights == "replay"
        self._clocks = [Clock(as_schedule(schedule))]  # the tape's own, then one for each part
        if weights != "recorded" or joint is not None:
            require_a_window("CapacitorTape", self.schedule)
        self._inside: list[Clock] = []  # the parts that are entered now, the innermost last
        self._wanted: list[Variable] = []  # whose adjoints the next sweep is to keep
        self._warned = False
        self._memory = Memory()
        self._watch = LagWatch()
        self._programs = self.programs(self, compile)
        self._closed: deque[WindowSegment] = deque()
        # index, first and last slot of what was dropped, and whether it had been recorded
        self._evicted: deque[tuple[int, int, int, bool]] = deque(maxlen=EVICTIONS_REMEMBERED)
        self._count = 0  # segments closed so far
        super().__init__(guard=guard)

    @property
    def schedule(self) -> Schedule:
        """The schedule for what is recorded outside the parts."""
        return self._clocks[0].schedule

    @property
    def segments(self) -> Sequence[WindowSegment]:
        """The closed segments in the window, oldest first."""
        return tuple(self._closed)

    @property
    def nbytes(self) -> int:
        """Bytes that this tape keeps alive: arrays for its pullbacks, and the memory of compiled programs."""
        return self._memory.now(self)

    @property
    def peak_nbytes(self) -> int:
        """The largest `nbytes` that a sweep has found, before it forgot anything, or that was asked for."""
        return max(self._memory.now(self), self._memory.peak)

    def capacitor(self, schedule: Schedule | int) -> Part:
        """A part of the model with a window of its own: what runs under `with part:` is kept by `schedule`."""
        if self.recording:
            raise RecordingError(
                f"{self._name}.capacitor: a segment is open. Make the parts before the loop."
            )
        clock = Clock(as_schedule(schedule, f"{self._name}.capacitor"), self._count)
        require_a_window(f"{self._name}.capacitor", self.schedule, clock.schedule)
        self._clocks.append(clock)
        return Part(self, clock)

    # -- recording -------------------------------------------------------------------------------

    def _new_segment(self) -> WindowSegment:
        return WindowSegment(self._count + 1)

    def _open(self, segment: Segment) -> None:
        self._inside.clear()
        for clock in self._clocks:
            clock.now, clock.before = segment.index or self._count, clock.forgotten
        self._segment = segment
        if isinstance(segment, WindowSegment):
            self._enter(self._clocks[0])

    def _enter(self, clock: Clock) -> None:
        """From here on the open segment belongs to the part of `clock`."""
        segment = self._segment
        assert isinstance(segment, WindowSegment)
        records = clock.schedule.records(segment.index)
        segment.enter(clock, records)
        self.append = self._appender() if records else ignore

    def _appender(self) -> Callable[[Entry], None]:
        return self._append_inputs if self._keeps_inputs else super()._appender()

    def _append_inputs(self, entry: Entry) -> None:
        segment = self._segment
        assert isinstance(segment, WindowSegment)
        segment.inputs.append(inputs_now(entry, segment, self.weights == "recorded"))
        super()._appender()(entry)

    def _close(self) -> None:
        segment = self._segment
        assert isinstance(segment, WindowSegment)
        segment.close()
        if self.weights == "replay":
            strip(segment)
        elif self.weights == "current":
            segment.drop_leaves()
        self._count += 1
        if segment.held:
            self._closed.append(segment)
        for span in segment.spans:
            if not span.recorded:
                self._evicted.append((segment.index, span.first, span.end, False))
        for clock in self._clocks:
            clock.schedule.closed(self, clock)
        self._evict(strict=True)

    def _roll_back(self) -> None:
        for clock in self._clocks:
            clock.swept, clock.forgotten = min(clock.swept, self._count), clock.before
        self._open(Segment())

    def _evict(self, strict: bool) -> None:
        """Drop what is beyond its window or forgotten, but for what a loss still needs: that is an error if `strict`."""
        leaving = self._clocks[0].leaving()
        for clock in self._clocks[1:]:
            leaving += clock.leaving()
        if not leaving:
            return
        for segment, span in leaving:
            if strict and segment.index > span.clock.forgotten and segment.waits(span):
                raise EvictedError(unswept(self._name, segment, span, len(self._clocks) > 1))
        for pair in leaving:
            segment, span = pair
            if not segment.waits(span):
                segment.drop(span)
                span.clock.spans.remove(pair)
                self._evicted.append((segment.index, span.first, span.end, True))
        while self._closed and not self._closed[0].held:
            self._closed.popleft()

    def reset(self) -> None:
        """Forget every segment, pending loss and count. Raises RecordingError while recording."""
        if self.recording:
            raise RecordingError(f"{self._name}.reset: a segment is open. Call stop() or abort() first.")
        for clock in self._clocks:
            clock.reset()
        self._programs.reset()
        self._closed.clear()
        self._evicted.clear()
        self._wanted.clear()
        self._count = 0
        self._warned = False
        self._open(Segment())

    # -- sweeping --------------------------------------------------------------------------------

    def backward(  # type: ignore[override]
        self, root: Roots = None, seed: Any = None, *, keep: Iterable[Variable] = (), record: bool = False
    ) -> Sweep | None:
        """Hand in a loss; sweep the window if a schedule says that it is time.

        Returns the Sweep when there was one, else None. All losses handed in since the last sweep are
        seeded, each exactly once. While a segment is open it counts as the newest. A loss of a segment
        that the schedule does not record (burn-in) is passed over.

        Raises EvictedError for a loss whose segment has left the window; otherwise as Tape.backward.
        """
        if record:
            raise ArgumentError(
                f"{self._name}.backward: `record=True` needs a plain Tape: a recorded sweep would be part of no segment.\n"
                f"  Nest a tg.Tape inside the segment for higher-order gradients there."
            )
        again: Sweep | None = self._programs.again(root) if seed is None and not keep else None
        if again is not None:
            again.deliver()
            self._watch.look(self, again)
            return again
        roots, seeds = ([], []) if root is None and self._idle else seeded(self, root, seed)
        wanted = [*roots, *variables(keep, "keep")]
        handed_in = [
            (segment, Loss(r._slot, s, set(self._clocks if r._slot > 0 else self._clocks[:1])))
            for r, s in zip(roots, seeds, strict=True)
            if (segment := self._segment_of(r._slot)) is not None
        ]
        for i, (segment, loss) in enumerate(handed_in):
            if any(other.slot == loss.slot for other in [*segment.losses, *(o for _, o in handed_in[:i])]):
                raise ArgumentError(
                    f"{self._name}.backward: this loss was handed in before, and waits for the next sweep.\n"
                    f"  Each loss counts once: call tape.sweep() to sweep now."
                )
        for segment, loss in handed_in:
            segment.losses = [*segment.losses, loss]
        due = [clock for clock in self._clocks if clock.schedule.due(clock.now, clock.swept)]
        if not due or not self._waiting(due):
            self._wanted += wanted
            return None
        try:
            sweep = self._sweep_window(wanted, due)
        except BaseException:  # as if it had not been handed in: the call may be repeated
            for segment, loss in handed_in:
                segment.losses = [other for other in segment.losses if other is not loss]
            raise
        self._watch.look(self, sweep)
        return sweep

    def sweep(self, *, keep: Iterable[Variable] = ()) -> Sweep | None:
        """Sweep now whatever is pending; None if nothing is. Call it at a stream's end."""
        if not self._waiting(self._clocks):
            return None
        sweep = self._sweep_window(variables(keep, "keep"), self._clocks)
        self._watch.look(self, sweep)
        return sweep

    def _sweep_window(self, keep: Sequence[Variable], due: Sequence[Clock]) -> Sweep:
        sweep, window = Sweep([*self._wanted, *keep]), self._window()
        for segment in window:
            segment.check(self._name)
        entries, sweep.state = self._today(window)
        for clocks in (passes := in_step(due, window)):
            if len(passes) > 1 or not self._programs.run(sweep, window, clocks):
                sweep.run(window, clocks, self.joint, entries)
        for slot in [slot for slot in sweep.stopped if self._passed_over(slot)]:
            sweep.end_at_edge(slot, sweep.stopped.pop(slot))
        for slot, ct in self.schedule.beyond(self, sweep.left_edge).items():
            sweep.add(slot, ct)
        sweep.deliver()
        self._memory.look(self, window)
        self._wanted = []
        try:
            for clock in due:
                clock.schedule.swept(self, clock, sweep)
        finally:  # each loss counts once
            for segment in window:
                segment.mark_swept(due)
        for clock in due:
            clock.swept = clock.now
            clock.forgotten = max(clock.forgotten, clock.schedule.forgets(clock.now))
        if not self.recording:  # an open segment may be aborted, and needs the others when it is done again
            self._evict(strict=False)
        return sweep

    # -- what a sweep covers -----------------------------------------------------------------------

    def _window(self) -> list[WindowSegment]:
        """The newest segments, an open one included; older ones too while they hold a loss to be swept."""
        segments = [*self._closed]
        if self.recording and isinstance(self._segment, WindowSegment):
            self._segment.settle()
            segments.append(self._segment)
            oldest = min(oldest_swept(clock, segments) for clock in self._clocks)
            segments = [segment for segment in segments if segment.index >= oldest]
        return segments

    def _today(
        self, window: Sequence[WindowSegment], whole: bool = False
    ) -> tuple[Callable[[WindowSegment], list[Entry]], Any]:
        """How to get the entries of a segment to sweep; under "replay" also the newest state, re-run."""
        if self.weights != "replay":
            return WindowSegment.entries_today, None
        rerun = Rerun(window, whole)
        return rerun.entries, State(rerun)

    def _entries(self) -> list[Entry]:
        window = self._window()
        entries, _ = self._today(window)
        return [entry for segment in window for entry in entries(segment)]

    def _waiting(self, clocks: Iterable[Clock]) -> bool:
        return any(loss.seeds(clocks) for s in reversed(self._window()) for loss in s.losses)

    @property
    def _idle(self) -> bool:
        """Whether the newest segment is one that the schedule does not record."""
        return not self.schedule.records(self._clocks[0].now)

    def _last(self) -> Entry | None:
        newest = self._window()[-1:]
        return newest[0].entries[-1] if newest and newest[0].entries else None

    def _segment_of(self, slot: int) -> WindowSegment | None:
        """The segment that computed `slot`; for a leaf, the newest. None if it is none of this window."""
        open_one = [self._segment] if self.recording else []
        segment: Any
        for segment in itertools.chain(open_one, reversed(self._closed)):
            if slot < 0 or slot >= segment.first:
                held = slot < 0 or segment.holds(slot)
                return segment if held and (not open_one or segment in self._window()) else None
        return None

    def _holds(self, slot: int) -> bool:
        return self._segment_of(slot) is not None or self._passed_over(slot)

    def _passed_over(self, slot: int) -> bool:
        """Whether `slot` was computed where a schedule did not record."""
        now = self._segment
        span = now.span_of(slot) if self._window() and isinstance(now, WindowSegment) else None
        if span is not None:
            return not span.recorded
        return any(
            first < slot <= end and not recorded for _, first, end, recorded in reversed(self._evicted)
        )

    def _refuse_root(self, root: Variable) -> None:
        slot = root._slot
        dropped = [index for index, first, end, _ in self._evicted if first < slot <= end]
        # Still there, but beyond the window of the segment that is open.
        dropped += [segment.index for segment in self._closed if segment.span_of(slot)]
        if dropped:
            oldest = self._closed[0].index if self._closed else self._count + 1
            raise EvictedError(evicted(self._name, dropped[0], oldest, self._clocks[0]))
        super()._refuse_root(root)
