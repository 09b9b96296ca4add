"""The Wengert list: every op that ran, in the order it ran, and the sweep that runs it backwards.

A Tape records; it does not compute. Forward values come from the ops themselves, and `backward` visits
the entries last to first, handing each pullback the cotangent of its output.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

from ..errors import RecordingError
from .active import ACTIVE, Paused, activate, active_tapes, current_context, end, ignore, start
from .adjoints import Adjoints, variables
from .entry import OUT, Entry
from .guard import Guarded
from .printout import kept_nbytes, wengert_table
from .seeds import Roots, seeded
from .variable import Variable, next_slot

T = TypeVar("T")


class Segment:
    """What was recorded between one `begin` and its `stop`.

    `first` lies below every slot issued for its entries and above every slot issued before.
    """

    guarded: list[Guarded] | tuple[()] = ()  # one per entry on a guarded tape

    def __init__(self, index: int = 0) -> None:
        self.index = index
        self.first = next_slot()
        self.entries: list[Entry] = []

    def check(self, tape: str) -> None:
        """Raise if an array that a guarded entry keeps has been changed."""
        for entry, guarded in zip(self.entries, self.guarded, strict=False):
            guarded.check(entry, tape)

    def __len__(self) -> int:
        return len(self.entries)

    def holds(self, slot: int) -> bool:
        """Whether one of the entries computed the value in `slot`."""
        at = bisect_left(self.entries, slot, key=itemgetter(OUT))
        return at < len(self.entries) and self.entries[at][OUT] == slot


class Tape:
    """Records the ops that run between `begin` and `stop`, and sweeps them in reverse.

        tape = tg.Tape()
        tape.begin()
        loss = tg.mean((x @ w - target) ** 2)
        tape.stop()
        tape.backward(loss)              # w.grad

    `begin` forgets the last recording. `with tape:` is begin … stop, and an exception inside rolls the
    recording back. Tapes nest, and every active tape records. `guard=True` also remembers the contents
    of everything kept, so that `backward` can name an array that was changed behind NumPy's back.
    """

    pushforward: Callable[..., Any]  # forward mode over the recording; see pushforward.py
    walk: Callable[..., Any]  # the sweep one entry at a time; see walk.py
    to: Callable[..., Any]  # to another device; see move.py
    revive: Callable[[Entry], Entry]  # an entry for a sweep that is recorded; see revive.py
    append: Callable[[Entry], None]

    def __init__(self, *, guard: bool = False) -> None:
        self._guard = guard
        self._owner: Any = None  # the thread and task that record now
        self._open(Segment())

    # -- recording -------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start recording. Raises RecordingError if this tape records already, here or elsewhere."""
        if self._owner is not None:
            where = "" if self._owner == current_context() else " in another thread or task"
            raise RecordingError(
                f"{self._name}.begin: this tape is already recording{where}.\n"
                f"  Call stop() first, or abort() after an exception; `with tape:` does both for you."
            )
        self._open(self._new_segment())
        self._owner = current_context()
        start(self)

    def stop(self) -> None:
        """End the recording and keep it. Raises RecordingError without a `begin` in this thread and task."""
        self._leave("stop")
        self._close()

    def abort(self) -> None:
        """End the recording and forget it."""
        self._leave("abort")
        self._roll_back()

    def record(self, f: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """`f(*args, **kwargs)`, recorded from begin to stop."""
        with self:
            return f(*args, **kwargs)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """A context in which this tape records nothing: what is computed there is a constant to it."""
        active = active_tapes()
        activate(Paused(tape for tape in active if tape is not self))
        try:
            yield
        finally:  # others may have begun or stopped meanwhile
            now = active_tapes()
            activate(type(active)((*now, self) if self in active else now))

    def __enter__(self: T) -> T:
        self.begin()  # type: ignore[attr-defined]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.stop()
        else:
            self.abort()

    @property
    def recording(self) -> bool:
        """Whether a `begin` waits for its `stop`."""
        return self._owner is not None

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _new_segment(self) -> Segment:
        return Segment()

    def _open(self, segment: Segment) -> None:
        self._segment = segment
        self.append = self._appender()

    def _appender(self) -> Callable[[Entry], None]:
        """Where entries go while this tape records."""
        return self._append_guarded if self._guard else self._segment.entries.append

    def _close(self) -> None:
        """A plain tape keeps its one segment as it is."""

    def _roll_back(self) -> None:
        self._open(Segment())

    def _leave(self, method: str) -> None:
        active = active_tapes()
        if self._owner is None:
            raise RecordingError(
                f"{self._name}.{method}: this tape is not recording. Call begin() first, or use `with tape:`."
            )
        if self._owner != current_context() or self not in active:
            raise RecordingError(
                f"{self._name}.{method}: recording was begun in another thread or task, or is paused here.\n"
                f"  Call {method}() where begin() was called, outside pause()."
            )
        end(self, active)
        self._owner = None
        self.append = ignore  # for a task or thread that inherited this recording and outlives it

    # -- sweeping --------------------------------------------------------------------------------

    def backward(
        self, root: Roots = None, seed: Any = None, *, keep: Iterable[Variable] = (), record: bool = False
    ) -> Adjoints:
        """Sweep from `root` to the leaves, and add their adjoints to their `.grad`.

        `root` is a recorded Variable or a list of them, the last value recorded if None. A root that is
        not scalar needs a `seed`, its cotangent, of the same shape; for a list of roots, a list of seeds.
        `keep` names values whose adjoints are to be readable in the result. `record=True` runs the
        pullbacks as recorded ops, on this tape and on every active one, so that they can be
        differentiated in turn. Each call starts from fresh adjoints.

        Raises RecordingError if nothing was recorded or the root is not on this tape, ArgumentError for
        a root that is not scalar and has no seed, ShapeError for a seed of another shape.
        """
        roots, seeds = seeded(self, root, seed, record)
        adjoints = self._sweep(roots, seeds, variables(keep, "keep"), record)
        adjoints.deliver()
        return adjoints

    def _sweep(
        self, roots: Sequence[Variable], seeds: Sequence[Any], keep: Iterable[Variable], record: bool
    ) -> Adjoints:
        adjoints = Adjoints([*roots, *keep], record=record)
        for root, seed in zip(roots, seeds, strict=True):
            adjoints.add(root._slot, seed)
        self._segment.check(self._name)
        entries = reversed(self._entries())
        if not record:
            adjoints.sweep(entries)
        else:
            with self._appending():
                adjoints.sweep(map(self.revive, entries))
        return adjoints

    # -- roots -----------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        """What a sweep covers, in the order in which it ran."""
        return self._segment.entries

    def _last(self) -> Entry | None:
        entries = self._entries()
        return entries[-1] if entries else None

    def _holds(self, slot: int) -> bool:
        return self._segment.holds(slot)

    def _refuse_root(self, root: Variable) -> None:
        if not self._entries():
            what = "nothing was recorded"
        elif root._slot == 0:
            what = "the root is a constant: no Variable that is differentiated went into it"
        else:
            what = "the root was not recorded on this tape (another tape, an earlier recording, or none)"
        raise RecordingError(
            f"{self._name}.backward: {what}.\n  Compute the root from Variables between this tape's begin() and stop()."
        )

    @contextlib.contextmanager
    def _appending(self) -> Iterator[None]:
        """A scope in which this tape is active, whether or not it is between begin and stop."""
        active, append = active_tapes(), self.append
        token = ACTIVE.set(active if self in active else (*active, self))
        self.append = self._appender()
        try:
            yield
        finally:
            ACTIVE.reset(token)
            self.append = append

    # -- looking ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._entries())

    def __bool__(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays that this tape keeps alive for its pullbacks."""
        return kept_nbytes(self._entries())

    def __str__(self) -> str:
        """The Wengert table: value, op, inputs, what is kept, shape."""
        return wengert_table(self._name, self._entries())

    # -- guarding --------------------------------------------------------------------------------

    def _append_guarded(self, entry: Entry) -> None:
        segment = self._segment
        if isinstance(segment.guarded, tuple):
            segment.guarded = []
        segment.guarded.append(Guarded.now(entry))
        segment.entries.append(entry)
