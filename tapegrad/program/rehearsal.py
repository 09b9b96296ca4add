"""A loop on its way to its graphs: measured, rehearsed in memory by age, captured.

Everything here runs Python's side of the step; a launch (`launches.py`) runs none of it.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..backend import capture as seam
from ..backend.capture import NotSteady
from ..backend.device import cupy_with_a_device, on_device
from ..core.adjoints import AdjointMap
from ..core.capacitor import CapacitorTape
from ..core.variable import LEAVES, Variable
from ..core.window import WindowSegment
from ..errors import CaptureError
from ..nest import flat, rebuilt
from .arenas import Arenas, Step, alive
from .arguments import Arguments, array_in
from .fitting import (
    LONGEST_PERIOD,
    copies_of,
    held_by,
    is_made_by,
    left_over,
    lies_in,
    newest_residuals,
    period_of,
    reads_only,
    stand,
)
from .launches import Graphs
from .position import Leaves, Position


class Unfit(Exception):
    """A step that cannot be captured, found out when it had run."""

    def __init__(self, reason: str, returned: Any) -> None:
        super().__init__(reason)
        self.returned = returned


class Home:
    """The fixed place of a leaf's value, which steps give new arrays."""

    def __init__(self, leaf: Variable, array: Any) -> None:
        self.leaf, self.array = leaf, array


class Loop:
    """A loop on its way to its capture: measured, then rehearsed in memory by age."""

    def __init__(
        self, step: Callable[..., Any], args: Any, kwargs: Any, returned: list[Any], writes: list[Any]
    ) -> None:
        self.step = step
        self.cupy = cupy_with_a_device("cuda")
        self.stream = self.cupy.cuda.Stream(non_blocking=True)
        self.ordinary = self.cupy.cuda.get_allocator()
        self.arguments = Arguments(args, kwargs, self.cupy)
        self.memory = Arenas(self.cupy)
        self.measured: list[Step] = []
        self.steps: list[Step] = []  # rehearsed in their places
        self.tapes: list[CapacitorTape] = []
        self.outlasting: list[int] = []  # sizes of what the last step made outside its tapes, and returned
        self.held: list[Any] = []  # arrays that Python's side of the step may read
        self.homes: dict[int, Home] = {}  # by the leaf's slot
        self.written = {id(array): array for array in writes}  # what steps write in place, by id
        self.pushes: dict[Any, Callable[[], None]] = {}  # what brings numbers of the host's to `numbers`
        self.numbers: dict[int, Any] = {}
        self.window, self.period = 1, 1
        self.versions = False  # whether a window keeps the weights of each of its steps
        self.last = returned  # by the last step, flat; and what the caller got for it
        self.given = returned
        self.leaves: Leaves | None = None  # as the last step left them, and the tapes
        self.stood: list[tuple[Any, Any]] = []
        self.before: Any = None  # what the memory held before the steps that graphs will be compared with
        # Of those: the inputs, the numbers of the host's, and what they returned.
        self.compared: list[tuple[list[Any], list[Any], list[Any]]] = []

    @property
    def rehearsals(self) -> int:
        """Steps until every segment lies in its place, and a whole period more to compare with."""
        return self.window + self.period

    @property
    def rehearsed(self) -> bool:
        return len(self.steps) == self.rehearsals

    def accept(self, args: Any, kwargs: Any, returned: list[Any]) -> list[Any]:
        """The arrays of a call's inputs. Raises NotSteady if something is not as the last step left it."""
        if any(tape.recording or stand(tape) != stood for tape, stood in self.stood):
            raise NotSteady("a tape was used between two steps")
        inputs = self.arguments.accept(args, kwargs, returned)
        if self.leaves is not None:
            self.bring_in(self.leaves)
        self.push()
        self.given = returned
        return inputs

    def bring_in(self, leaves: Leaves) -> bool:
        """Take over the values that were assigned since `leaves` were noted; whether there were any.

        Raises NotSteady for a leaf that steps do not write to, and for another gradient.
        """
        changed = leaves.changed()
        if not changed:  # as before nearly every launch
            return False
        own = {id(home.leaf) for home in self.homes.values()}
        moved = [home for home in self.homes.values() if home.leaf._array is not home.array]
        for leaf, has_gradient in changed:
            piece = bool(moved) and leaf._array.base is not None  # of a vector that was assigned
            if has_gradient or not (id(leaf) in own or piece):
                what = "gradient" if has_gradient else "value"
                raise NotSteady(f"{leaf.name or 'a leaf'} has another {what} than the last step left")
        for home in moved:
            self.cupy.copyto(home.array, home.leaf._array)
            home.leaf.rebind(home.array)
        return bool(moved)

    # -- eager steps ---------------------------------------------------------------------------------------

    def rehearse(self, inputs: list[Any]) -> Any:
        """The step, eagerly. Raises Unfit behind it, if it cannot be captured."""
        # A period and one step more: the first finds out where leaves are at home.
        measuring = len(self.measured) <= self.period
        compares = not measuring and len(self.steps) >= self.window
        place = -1 if measuring else self.period - 1 + self.rehearsals - len(self.steps)
        self.load(inputs)
        if compares and self.before is None:
            self.before = self.snapshot()
        states = {self.last[state.at]._slot for state in self.arguments.states}
        with self.running(place, rehearsing=True) as now:
            returned = self.one_step()
        done = self.memory.step
        reason = "" if self.measured else self.take_tapes(list(done.tapes.values()))
        reason = reason or self.misfit(done, now, flat(returned))
        if reason:
            raise Unfit(reason, returned)
        if not all(reads_only(tape, states) for tape in self.tapes):
            raise Unfit(
                "it carries on a state that is not an argument: return it, and take it as one", returned
            )
        if self.before is not None and now.written.keys() - self.written.keys():
            raise Unfit("it writes to arrays that earlier steps have not written to", returned)
        self.written |= now.written
        self.pushes |= now.before
        self.numbers |= now.numbers
        if measuring:
            self.measured.append(done)
            if len(self.measured) > self.period:
                nbytes = max(step.nbytes for step in self.measured)
                self.memory = Arenas(self.cupy, self.rehearsals + self.period, nbytes)
        else:
            self.steps.append(done)
        if compares:
            arrays = [input_.array.copy() for input_ in self.arguments.inputs]
            outputs = [v.copy() if on_device(v) else v for v in map(array_in, flat(returned))]
            self.compared.append((arrays, [array.copy() for array in self.numbers.values()], outputs))
        self.outlasting = [block.nbytes for block in alive(done.rest)]
        self.leaves = Leaves()
        self.stood = [(tape, stand(tape)) for tape in self.tapes]
        return rebuilt(returned, copies_of(flat(returned)))

    def one_step(self) -> Any:
        """The step on the inputs' own memory, and what is done around it, be it captured or not."""
        noted = {leaf._slot: leaf._array for leaf in list(LEAVES.values()) if on_device(leaf._array)}
        if self.versions:  # a window reads each step's own
            for home in self.homes.values():
                with self.recording_memory():
                    home.leaf.rebind(home.array.copy())
                noted[home.leaf._slot] = home.leaf._array
        gradients = {id(leaf._grad): leaf._grad for leaf in list(LEAVES.values()) if on_device(leaf._grad)}
        args, kwargs = self.arguments.rebuilt(self.last)
        returned = self.step(*args, **kwargs)
        self.last = flat(returned)
        # A view of a weight that an op keeps (w.T) is that of its step under any policy.
        self.versions |= any(
            lies_in(array, noted.values())
            for tape in self.memory.step.tapes.values()
            for array in newest_residuals(tape)
        )
        for leaf in list(LEAVES.values()):
            if id(leaf._grad) in gradients:  # they are added up over many steps
                seam.writes(leaf._grad)
            before, array = noted.get(leaf._slot), leaf._array
            if on_device(array) and array.base is None and before is not None and array is not before:
                self.bring_home(leaf)
        if self.versions:
            for home in self.homes.values():
                home.leaf.rebind(home.array)
        for tape in self.memory.step.tapes.values():
            self.keep_losses(tape)
        return returned

    def keep_losses(self, tape: CapacitorTape) -> None:
        """What a sweep of a later step reads is recorded, too; what entered the segments in the last one is not kept."""
        step = self.memory.step
        newest = [tape._segment] if isinstance(tape._segment, WindowSegment) else []
        for segment in (*tape._closed, *newest):
            segment.adjoints = AdjointMap({})
            for loss in segment.losses:
                if is_made_by(step, loss.seed):
                    with self.recording_memory():
                        loss.seed = loss.seed.copy()

    def bring_home(self, leaf: Variable) -> None:
        """Put a leaf's new value where its values always are."""
        home = self.homes.get(leaf._slot)
        if home is None:
            with self.cupy.cuda.using_allocator(self.ordinary):
                home = self.homes[leaf._slot] = Home(leaf, leaf._array.copy())
        else:
            self.cupy.copyto(home.array, leaf._array)
        leaf.rebind(home.array)

    @contextlib.contextmanager
    def recording_memory(self) -> Iterator[None]:
        """A scope in which memory lives as long as what is recorded."""
        self.memory.records = True
        try:
            yield
        finally:
            self.memory.records = False

    @contextlib.contextmanager
    def running(self, place: int, rehearsing: bool) -> Iterator[Any]:
        """A scope for one step: on the loop's stream, in the loop's memory, with what a capture allows."""
        outer = self.cupy.cuda.get_current_stream()
        if rehearsing:
            self.stream.wait_event(outer.record())
        self.memory.begin(place)
        allocating = self.cupy.cuda.using_allocator(self.memory.malloc)
        with self.stream, allocating, seam.capturing(self.stream, rehearsing) as now:
            yield now
        if rehearsing:
            outer.wait_event(self.stream.record())

    def push(self) -> None:
        """Bring what the host has changed since the last step, such as a learning rate."""
        for push in self.pushes.values():
            push()

    def load(self, inputs: list[Any]) -> None:
        for input_, array in zip(self.arguments.inputs, inputs, strict=True):
            self.cupy.copyto(input_.array, array)

    # -- what does not fit -----------------------------------------------------------------------------------

    def take_tapes(self, tapes: list[Any]) -> str:
        """The windows that the step's tapes keep; or why they cannot be captured."""
        self.tapes = tapes
        for tape in tapes:
            if hasattr(tape.joint, "state_dict"):
                return "its joint draws or counts on the host"
            if tape.weights == "replay":
                return 'weights="replay" runs the window again; use "current" or "recorded"'
            self.versions |= tape.weights == "recorded"
            for schedule in (clock.schedule for clock in tape._clocks):
                period = period_of(schedule)
                if period is None or schedule.window is None:
                    return f"{schedule} does not repeat itself every {LONGEST_PERIOD} steps or fewer"
                self.window = max(self.window, schedule.window)
                self.period = math.lcm(self.period, period)
        if self.period > LONGEST_PERIOD:
            return f"its schedules repeat themselves together every {self.period} steps, and {LONGEST_PERIOD} are the most"
        return ""

    def misfit(self, step: Step, now: Any, returned: list[Any]) -> str:
        """Why a step that has run cannot be captured, or ""."""
        if now.refused:
            return str(now.refused[0])
        if self.memory.overflowed:
            return "a step records more than the steps before it"
        held = [
            leaf.name or "a leaf"
            for leaf in list(LEAVES.values())
            if is_made_by(step, leaf._grad) or self.memory.holds(leaf._grad)
        ]
        if held:
            return (
                f"the gradient of {held[0]} is left at the step's end: call optimizer.zero_grad() in the step"
            )
        arrays = [array for v in returned if on_device(array := array_in(v))]
        if any(not isinstance(v, (Variable, int, float, str, bool)) and not on_device(v) for v in returned):
            return "it returns something that is neither a Variable, an array on the device nor a number"
        left = left_over(step.rest, arrays)
        if left:
            return (
                f"an array of {left[0].nbytes} bytes that is made in the step outlives it. Return it, or make it before "
                f"the loop and write it in place"
            )
        earlier = [*self.measured, *self.steps]
        old = earlier[: max(0, len(earlier) - self.window)]
        if now.rehearsing and any(left_over(step.recorded, []) for step in old):
            return "an array that was recorded is held longer than its window"
        alike = self.steps[len(self.steps) % self.period :: self.period]
        if now.rehearsing and step.place >= 0 and any(other.sizes != step.sizes for other in alike):
            return "steps record arrays of different sizes"
        return ""

    # -- the capture -----------------------------------------------------------------------------------------

    def snapshot(self) -> tuple[Any, list[Any], list[Any]]:
        """What all steps write: the places, the leaves' values, and what is written in place."""
        homes = [home.array.copy() for home in self.homes.values()]
        return self.memory.saved(), homes, [array.copy() for array in self.written.values()]

    def put_back(self, noted: tuple[Any, list[Any], list[Any]], younger: int) -> None:
        places, homes, written = noted
        self.memory.restore(places, younger)
        for home, array in zip(self.homes.values(), homes, strict=True):
            self.cupy.copyto(home.array, array)
        for into, array in zip(self.written.values(), written, strict=True):
            self.cupy.copyto(into, array)

    def put_numbers(self, numbers: list[Any]) -> None:
        for into, array in zip(self.numbers.values(), numbers, strict=True):
            self.cupy.copyto(into, array)

    def captured(self, inputs: list[Any]) -> Graphs:
        """The graphs, compared with the last steps; the next launch is of the call that comes with `inputs`.

        Raises CaptureError, and all is as before, if the step cannot be captured or does something else then.
        """
        numbers = [array.copy() for array in self.numbers.values()]
        positions = [Position(tape) for tape in self.tapes]
        leaves, last, after = Leaves(), self.last, self.snapshot()
        graphs = Graphs(self)
        collecting = gc.isenabled()
        gc.collect()
        self.held = held_by(self.step)
        with self.stream:  # what the steps of a period return outlives their captures
            self.memory.provide(self.outlasting * self.period)
        gc.disable()
        try:
            for phase in range(self.period):
                graphs.add(*self.capture_one(phase))
            graphs.compare(self.before, self.compared, after)
        except BaseException as error:
            for position in positions:
                position.restore()
            leaves.restore()
            self.last = last
            self.put_back(after, 0)
            if isinstance(error, CaptureError) or not isinstance(error, Exception):
                raise
            said = str(error) or repr(error)
            raise CaptureError(f"capture: {said}") from error
        finally:
            self.put_numbers(numbers)
            if collecting:
                gc.enable()
        self.put_back(after, self.period)
        self.before, self.compared = None, []
        graphs.begin()
        return graphs

    def capture_one(self, phase: int) -> tuple[Any, Any, Any]:
        """The graph of one step of the period, what the step returned, and what it noted for launches."""
        with self.running(self.period - 1 - phase, rehearsing=False) as now:
            self.stream.begin_capture()
            try:
                if phase == 0:
                    self.memory.age(self.window, self.period)
                returned = self.one_step()
            except BaseException:
                with contextlib.suppress(Exception):  # it says again that the capture is void
                    self.stream.end_capture()
                raise
            graph = self.stream.end_capture()
        reason = self.misfit(self.memory.step, now, flat(returned))
        if not reason and self.memory.step.sizes != self.steps[phase - self.period].sizes:
            reason = "steps record arrays of different sizes"
        if not reason and now.written.keys() - self.written.keys():
            reason = "it writes to arrays that earlier steps have not written to"
        if reason:
            raise CaptureError(f"capture: {reason}")
        return graph, returned, now
