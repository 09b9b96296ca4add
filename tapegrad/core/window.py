"""The segments that a capacitor keeps, and the spans of them that belong to the parts of a model.

A segment's entries are one list. A *span* is a run of that list which one part recorded, and is dropped
when that part's schedule forgets it, whatever happens to the spans beside it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import ArgumentError
from .adjoints import AdjointMap
from .entry import Entry
from .schedule import Schedule, require_count
from .tape import Segment
from .variable import LEAVES, Variable, next_slot


class Clock:
    """A schedule on a tape, and what it has come to; the spans of its part, oldest first."""

    def __init__(self, schedule: Schedule, index: int = 0) -> None:
        if type(schedule).due is Schedule.due:
            raise ArgumentError(f"{type(schedule).__name__}: a schedule must define due(index, swept).")
        if schedule.window is not None:
            require_count(type(schedule).__name__, "window", schedule.window)
        self.schedule = schedule
        self.now = index  # the newest segment
        self.swept = index  # the segment of the last sweep
        self.forgotten = 0  # the segment up to which everything is forgotten
        self.before = 0  # that, when the segment that is open began
        self.spans: deque[tuple[WindowSegment, Span]] = deque()

    def oldest(self, length: int | None) -> int:
        """The oldest of the newest `length` segments that is not forgotten."""
        first = 1 if length is None else self.now - length + 1
        return first if first > self.forgotten else self.forgotten + 1

    def leaving(self) -> list[tuple[WindowSegment, Span]]:
        """The spans that are not kept any longer."""
        oldest = self.oldest(self.schedule.window)
        if not self.spans or self.spans[0][0].index >= oldest:
            return []
        found = []
        for pair in self.spans:
            if pair[0].index >= oldest:
                break
            found.append(pair)
        return found

    def reset(self) -> None:
        self.schedule.reset()
        self.now = self.swept = self.forgotten = self.before = 0
        self.spans.clear()


class Span:
    """Entries `start` … `stop` of a segment, whose slots lie above `first` and up to `end`; one part's."""

    __slots__ = ("clock", "end", "first", "held", "recorded", "start", "stop")

    def __init__(self, clock: Clock, first: int, start: int, recorded: bool) -> None:
        self.clock, self.first, self.start = clock, first, start
        self.end, self.stop = first, start
        self.recorded = self.held = recorded


class Loss:
    """A cotangent handed in for the value in `slot`, and the clocks whose parts have not swept it yet."""

    __slots__ = ("seed", "slot", "waiting")

    def __init__(self, slot: int, seed: Any, waiting: set[Clock]) -> None:
        self.slot, self.seed, self.waiting = slot, seed, waiting

    def seeds(self, clocks: Iterable[Clock]) -> bool:
        """Whether a sweep for the parts of `clocks` starts here."""
        return not self.waiting.isdisjoint(clocks)


class WindowSegment(Segment):
    """A segment on the deque: what was recorded, the losses handed in and not yet swept, its last adjoints."""

    # Of these most segments have none, and a list that stays empty costs a step 0.2 µs.
    losses: Sequence[Loss] = ()
    _leaf_reads: Sequence[
        tuple[int, int, int, Variable]
    ] = ()  # entry, field, part of it (of a sequence), leaf
    _adjoints: AdjointMap = AdjointMap({})
    swept_by: Any = None  # knows the adjoints of the last sweep, where a program made it
    seat: Any = None  # its place in a compiled program's memory, and what makes it like others
    signature: Any = None
    buffers: dict[int, int] | None = None  # bytes of what is kept, by owner; and what tells sizes apart
    kind: int | None = None  # (both once somebody asked; see memory.py)

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.spans: list[Span] = []
        self.inputs: list[Any] = []  # one per entry where the window is to be re-run; see replay.py

    @property
    def adjoints(self) -> AdjointMap:
        """The adjoints with which the last sweep entered the segment."""
        found = None if self.swept_by is None else self.swept_by.adjoints_of(self)
        return self._adjoints if found is None else found

    @adjoints.setter
    def adjoints(self, adjoints: AdjointMap) -> None:
        self._adjoints = adjoints

    # -- spans -----------------------------------------------------------------------------------

    def enter(self, clock: Clock, recorded: bool) -> None:
        """What comes now belongs to the part of `clock`; its values are held if it is `recorded`."""
        first = self.first
        if self.spans:
            self.settle()
            first = next_slot()
        self.spans.append(Span(clock, first, len(self.entries), recorded))

    def settle(self) -> None:
        """Note where the span that is open has come to."""
        if self.spans:
            self.spans[-1].stop, self.spans[-1].end = len(self.entries), next_slot()

    def close(self) -> None:
        """No entry follows: each span that holds any is on its clock's list from now on."""
        self.settle()
        if len(self.spans) > 1:
            self.spans = [span for span in self.spans if span.stop > span.start or not span.recorded]
        for span in self.spans:
            if span.recorded:
                span.clock.spans.append((self, span))

    def mark_swept(self, due: Iterable[Clock]) -> None:
        """The losses count as swept for the parts of `due`; those for which nobody waits are done with."""
        if self.losses:
            for loss in self.losses:
                loss.waiting.difference_update(due)
            self.losses = [loss for loss in self.losses if loss.waiting]

    def waits(self, span: Span) -> bool:
        """Whether `span` is still needed: it computed a loss that is to be swept, or its part is to sweep one."""
        return bool(self.losses) and any(
            span.clock in loss.waiting or span.first < loss.slot <= span.end for loss in self.losses
        )

    def awaits(self, clock: Clock) -> bool:
        """Whether one of the segment's losses is to be swept for the part of `clock`, or was computed there."""
        return any(
            clock in loss.waiting or ((span := self.span_of(loss.slot)) is not None and span.clock is clock)
            for loss in self.losses
        )

    def span_of(self, slot: int) -> Span | None:
        """The span in which the value in `slot` was computed, even if it is not held any more."""
        at = bisect_left(self.spans, slot, key=lambda span: span.first) - 1
        return self.spans[at] if at >= 0 and slot <= self.spans[at].end else None

    def drop(self, span: Span) -> None:
        """Forget the entries of `span`."""
        self.buffers = self.kind = None
        if len(self.spans) == 1:  # as nearly always
            self.entries.clear()
            self.inputs.clear()
            self.guarded = self._leaf_reads = ()
            span.stop, span.held = span.start, False
            return
        count = span.stop - span.start
        del self.entries[span.start : span.stop]
        self.guarded = [*self.guarded[: span.start], *self.guarded[span.stop :]]
        del self.inputs[span.start : span.stop]
        reads = [read for read in self._leaf_reads if not span.start <= read[0] < span.stop]
        self._leaf_reads = [
            (at - count if at >= span.stop else at, i, part, leaf) for at, i, part, leaf in reads
        ]
        for later in self.spans[self.spans.index(span) + 1 :]:
            later.start, later.stop = later.start - count, later.stop - count
        span.stop, span.held = span.start, False

    @property
    def held(self) -> bool:
        """Whether any of it is left."""
        for span in self.spans:  # noqa: SIM110 (`any` of a generator takes 0.3 µs, every segment twice)
            if span.held:
                return True
        return False

    # -- leaves ----------------------------------------------------------------------------------

    def drop_leaves(self) -> None:
        """Forget the arrays of leaves (weights="current"), remembering where a sweep has to put today's."""
        reads = []
        for at, entry in enumerate(self.entries):
            fields: list[Any] | None = None
            for position, slot_position in entry[0].values:
                slot = entry[slot_position]
                if type(slot) is int:
                    if slot < 0 and (leaf := LEAVES.get(slot)) is not None:
                        fields = fields or list(entry)
                        fields[position] = None
                        reads.append((at, position, 0, leaf))
                    continue
                for part, one in enumerate(slot):  # of an argument that is a sequence
                    if one < 0 and (leaf := LEAVES.get(one)) is not None:
                        fields = fields or list(entry)
                        fields[position] = replaced(fields[position], part, None)
                        reads.append((at, position, part, leaf))
            if fields is not None:
                self.entries[at] = tuple(fields)
        self._leaf_reads = reads

    def entries_today(self) -> list[Entry]:
        """The entries, with today's arrays for the leaves that were dropped."""
        if not self._leaf_reads:
            return self.entries
        entries: list[Any] = list(self.entries)
        changed: dict[int, list[Any]] = {}
        for at, position, part, leaf in self._leaf_reads:
            if at not in changed:
                changed[at] = list(entries[at])
            fields, array = changed[at], leaf._array
            held = fields[position]
            fields[position] = replaced(held, part, array) if type(held) is tuple else array
        for at, fields in changed.items():
            entries[at] = tuple(fields)
        return entries


def replaced(parts: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    """`parts` with `value` at one position."""
    return (*parts[:at], value, *parts[at + 1 :])


def require_a_window(where: str, *schedules: Schedule) -> None:
    """Raise if one of `schedules` looks beyond its window (RealTime)."""
    for schedule in schedules:
        if type(schedule).beyond is not Schedule.beyond:
            raise ArgumentError(
                f"{where}: {schedule} looks beyond its window, and needs recorded weights, no joint and no parts."
            )


def unswept(tape: str, segment: WindowSegment, span: Span, parts: bool) -> str:
    """The message for a loss that would leave its window without having been swept."""
    fix = "Call tape.sweep(), or call backward(loss) in every segment."
    if parts:
        late = {clock.schedule for loss in segment.losses for clock in loss.waiting}
        fix = (
            f"It waits for {', '.join(map(str, late))} of this tape or a part of it. Keep what computes the loss for "
            f"as long as the longest stride: a longer window there, or a shorter stride (for Randomized: longest=)."
        )
    return (
        f"{tape}.stop: segment {segment.index} holds a loss that was handed in and never swept, "
        f"and would leave the window of {span.clock.schedule.window} now.\n  Nothing was dropped. {fix}"
    )


def evicted(tape: str, index: int, oldest: int, clock: Clock) -> str:
    """The message for a loss that is handed in when its segment is gone."""
    window = clock.schedule.window
    if window is None or index <= clock.forgotten:
        return (
            f"{tape}.backward: the loss was recorded in segment {index}, which a sweep has forgotten.\n"
            f"  Hand in all losses of a segment at once, as a list, or before that sweep."
        )
    return (
        f"{tape}.backward: the loss was recorded in segment {index}, and the oldest segment kept is {oldest}.\n"
        f"  window is {window}. Call backward within {window} segments of the loss, or raise the window."
    )
