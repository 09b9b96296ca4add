"""From tape to program: a backward pass that repeats itself is traced once, planned, and replayed.

The compiler is imported when a tape sweeps for the first time: `import tapegrad` does not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend.device import in_use, on_device
from ..core.capacitor import CapacitorTape
from ..core.sweep import Sweep
from ..core.window import Clock, WindowSegment
from ..errors import ArgumentError

MODES = (True, False, "exact", "numpy", "numba")


class Programs:
    """The programs of one tape, none until they are needed."""

    def __init__(self, tape: Any, mode: Any) -> None:
        if not any(mode is known or mode == known for known in MODES if type(mode) is type(known)):
            raise ArgumentError(
                f"CapacitorTape: `compile` must be one of {', '.join(map(repr, MODES))}, and {mode!r} came."
            )
        self.tape, self.mode = tape, mode
        self._replays: Any = None
        self._on_device: Any = None
        self.straight: Any = None

    def run(self, sweep: Sweep, window: Sequence[WindowSegment], clocks: Sequence[Clock]) -> bool:
        """Sweep by programs. False, and nothing has changed, if it has to be done by rules."""
        if self.mode is False:
            return False
        if in_use() and any(on_device(loss.seed) for s in window for loss in s.losses):
            return self.mode is True and self.on_device.run(sweep, window, clocks)
        if self.mode == "exact":
            sweep.straight = self._exact()
            return False
        return self.replays.run(sweep, window, clocks)  # type: ignore[no-any-return]

    @property
    def replays(self) -> Any:
        """The compiler's side of it, imported now."""
        if self._replays is None:
            from .replay import Replays

            self._replays = Replays(self.tape, self.mode)
        return self._replays

    @property
    def on_device(self) -> Any:
        """The kernels' side of it, for arrays on a device; imported now."""
        if self._on_device is None:
            from .device_window import DeviceWindow

            self._on_device = DeviceWindow(self.tape)
        return self._on_device

    def _exact(self) -> Any:
        # An open segment may go on as none did that began like it.
        if self.tape.recording or self.tape.weights == "replay":
            return None
        if self.straight is None:
            from .exact import Exact

            self.straight = Exact()
        return self.straight.pull

    def again(self, root: Any) -> Sweep | None:
        """The sweep for the loss `root` if everything goes on as in the sweep before; None, and nothing changed, if not."""
        found: Sweep | None = None if self._replays is None else self._replays.again(root)
        return found

    def source(self) -> str:
        """The programs as text."""
        if self.mode is False:
            return "# compile=False: swept by rules"
        if self.straight is not None:
            return str(self.straight.source())
        made = [side.source() for side in (self._replays, self._on_device) if side is not None]
        return (
            "\n\n\n".join(text for text in made if text)
            or "# no program yet: a segment is compiled when one like it has been recorded twice"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the rings and buffers of the programs."""
        return sum(side.nbytes for side in (self._replays, self._on_device) if side is not None)

    def state_dict(self, note: Any) -> Any:
        """What a snapshot holds of it: text, numbers and lists, or None. `note` is told the leaves' slots."""
        return None if self._replays is None else self._replays.state_dict(note)

    def load_state_dict(self, state: Any, slots: Any) -> None:
        """Go on from where `state_dict` was taken; the tape holds its segments again, in other slots."""
        if state is not None and self.mode not in (False, "exact"):
            self.replays.load_state_dict(state, slots)

    def reset(self) -> None:
        """Forget the segments; the programs stay, for the next sequence is likely to be like the last."""
        if self._replays is not None:
            self._replays.reset()
        if self._on_device is not None:
            self._on_device.forget()


class ProgramText(str):
    """The source of a tape's programs: `print(tape.program())`."""

    def __repr__(self) -> str:
        return str(self)


def program(tape: CapacitorTape) -> ProgramText:
    """The adjoint programs by which `tape` sweeps now, as source with the op that each line came from.

    One for each signature and each set of outputs that carry cotangents; a comment if there is none yet.
    """
    return ProgramText(tape._programs.source())


CapacitorTape.programs = Programs
CapacitorTape.program = program  # type: ignore[attr-defined]
