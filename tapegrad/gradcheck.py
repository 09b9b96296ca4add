"""Is a gradient right? Differences say, also of a truncated one, with its left edge frozen.

A truncated gradient is the exact derivative of something: of the window's losses, when the values that
entered the window stay as they are, and when what crosses a joint moves by as much as the joint's
policy lets through. The window's recorded ops are run again with a leaf moved a little, in double
precision; nothing of the pullbacks is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .core.capacitor import CapacitorTape
from .core.entry import DTYPE, ITEM, OUT, SHAPE, Bundle, Entry
from .core.replay import Inputs, Leaf, Rerun
from .core.schedule import Full, Schedule, require_count
from .core.sweep import Joints, in_step
from .core.tape import Tape
from .core.variable import Variable
from .core.window import Clock, Span, WindowSegment
from .errors import ArgumentError, DtypeError, GradientError, describe
from .places import of_ones_own, op_name, place_name, places, put_at, scale_of, value_at, wide
from .second_order import SecondOrder
from .types import Array


class GradientReport(NamedTuple):
    """What was checked, and how far gradients and differences were apart (relative, at worst)."""

    sweeps: int
    leaves: int
    worst: float

    def __str__(self) -> str:
        return (
            f"check_gradients: {self.sweeps} sweeps, {self.leaves} leaves, "
            f"worst relative difference {self.worst:.1e}"
        )


def check_gradients(
    f: Callable[..., Any],
    *args: Any,
    eps: float = 1e-5,
    tolerance: float | None = None,
    directions: int = 2,
    seed: int = 0,
    order: int = 1,
) -> GradientReport:
    """Compare gradients with central differences, along random directions for each leaf.

        tg.check_gradients(lambda a, b: tg.sum(np.tanh(a @ b)), a, b)      # arrays or Variables
        tg.check_gradients(loop, tg.CapacitorTape(20))                     # every sweep of loop(tape)

    `f` of arrays returns a scalar, and is checked for its arguments and for all leaves that it reads.
    A loop is a function of a CapacitorTape that records segments and calls `tape.backward`: the window
    of each sweep is run again, its left edge frozen, with the schedule's factors, the same joint policy,
    the same weights ("recorded" or "replay") and parts. For a callable joint each segment is checked by
    itself, given what the joint let through. Steps of an optimizer in the loop are allowed.

    `eps`: the step, relative to each element of a leaf (to 1 for an element that is 0). `tolerance`: largest
    relative difference, by default 1e-6, or 2e-3 if anything in the window is float32 or narrower; what the
    rounding of a large objective explains is allowed for. `.grad` is left as it was, but for what a
    loop does with it. `order=2`: also of a function's gradient, along a random direction. Memory: twice the window.

    Raises GradientError that names the sweep, the leaf, its worst element and the likely cause: the rule of an op
    for an argument, a kink there, or the dtype; ArgumentError for what is no derivative (weights="current") or looks beyond the window.
    """
    require_settings(f, eps, tolerance, directions, order)
    if len(args) == 1 and isinstance(args[0], CapacitorTape):
        if order == 2:
            raise ArgumentError("check_gradients: `order=2` is for a function of arrays, and a loop came.")
        loop, tape = f, args[0]
    else:
        if order == 2 and not args:
            raise ArgumentError("check_gradients: `order=2` is for a function of arrays, and none was given.")
        leaves = [argument(i, a) for i, a in enumerate(args)]
        tape = CapacitorTape(Full())

        def loop(tape: CapacitorTape) -> None:
            with tape:
                y = f(*leaves)
            if not isinstance(y, Variable):
                raise ArgumentError(
                    f"check_gradients: `f` must return a scalar Variable, and {describe(y)} came."
                )
            tape.backward(y)
            tape.sweep()

    require_checkable(tape)
    check = Check(tape, eps, tolerance, directions, np.random.default_rng(seed))
    if loop is not f:
        check.restores = True
        check.names = {v._slot: f"argument {i}" for i, v in enumerate(leaves)}
    kept_inputs, joint = tape._keeps_inputs, tape.joint
    tape._keeps_inputs = True
    tape._sweep_window = check.sweep_window  # type: ignore[method-assign]
    try:
        loop(tape)
    finally:
        del tape._sweep_window  # the method is the class's again
        tape._keeps_inputs, tape.joint = kept_inputs, joint
    if not check.sweeps:
        raise ArgumentError("check_gradients: nothing was swept. End the loop with tape.sweep().")
    report = GradientReport(check.sweeps, len(check.leaves), check.worst)
    if order == 2:
        worst = SecondOrder(
            f, [wide(v._array) for v in leaves], eps, tolerance or 1e-6, directions, seed
        ).check(check.window, check.given)
        return GradientReport(report.sweeps, report.leaves, max(report.worst, worst))
    return report


def require_settings(f: Any, eps: float, tolerance: float | None, directions: int, order: int) -> None:
    if not callable(f):
        raise ArgumentError(f"check_gradients: `f` must be a function, and {describe(f)} came.")
    require_count("check_gradients", "directions", directions)
    for name, value in (("eps", eps), ("tolerance", eps if tolerance is None else tolerance)):
        if not isinstance(value, Real) or not value > 0:
            raise ArgumentError(f"check_gradients: `{name}` must be a number above 0, and {value!r} came.")
    if order not in (1, 2):
        raise ArgumentError(f"check_gradients: `order` must be 1 or 2, and {order!r} came.")


def argument(i: int, a: Any) -> Variable:
    """An argument of the function as a leaf."""
    if isinstance(a, Tape):
        raise ArgumentError(
            "check_gradients: a loop is checked over a CapacitorTape, and a Tape came for it."
        )
    try:
        return a if isinstance(a, Variable) else Variable(a)
    except DtypeError as error:
        raise ArgumentError(
            f"check_gradients: argument {i} of `f` is not differentiable: {describe(a)}.\n"
            f"  Close over it: check_gradients(lambda x: f(x, labels), x)."
        ) from error


def require_checkable(tape: CapacitorTape) -> None:
    if tape.weights == "current":
        raise ArgumentError(
            'check_gradients: under weights="current" a sweep is not the derivative of anything.\n'
            '  Check the loop with weights="recorded" or "replay".'
        )
    schedules = [clock.schedule for clock in tape._clocks]
    if any(type(s).beyond is not Schedule.beyond for s in schedules):
        raise ArgumentError(
            f"check_gradients: {schedules[0]} looks beyond its window, where nothing is frozen.\n"
            f"  Compare it with Full() instead."
        )
    if len(schedules) > 1 and any(type(s).ends is not Schedule.ends for s in schedules):
        raise ArgumentError(
            "check_gradients: a sweep that ends early can be checked on a tape without parts only."
        )
    if len(tape):
        raise ArgumentError(
            "check_gradients: the tape holds segments from before. Pass a fresh one, or reset() it."
        )


class Moved(Rerun):
    """The window again in float64, with leaves moved by `moves`, and what crosses a joint by its factor."""

    def __init__(self, check: Check, window: Sequence[WindowSegment], moves: dict[int, Array]) -> None:
        self.check, self.moves = check, moves
        super().__init__(window)

    def runs(self, segment: WindowSegment, span: Span) -> bool:
        return self.check.joints.reach(segment, span)

    def leaf(self, leaf: Leaf, segment: WindowSegment, span: Span) -> Any:
        array = (
            leaf.variable._array if leaf.array is None or self.check.tape.weights == "replay" else leaf.array
        )
        return wide(array) + (
            self.moves.get(leaf.variable._slot, 0.0) if span.clock in self.check.clocks else 0.0
        )

    def constant(self, value: Any) -> Any:
        return wide(value)

    def crossing(self, slot: int, value: Any, segment: WindowSegment) -> Any:
        if not self.check.held:
            return value
        held = self.check.held[slot]
        return held + self.check.factor(slot, segment) * (value - held) + self.moves.get(slot, 0.0)

    def compute(self, p: Any, given: dict[str, Any], statics: dict[str, Any]) -> Any:
        if p.name == "astype":
            return given["a"]  # stay in float64
        return super().compute(p, given, of_ones_own(statics))

    def objective(self) -> float:
        return sum(
            float(np.sum(seed * self.values[slot])) for slot, seed in self.check.targets.items() if slot > 0
        )


class Check:
    """The sweeps of one tape, each compared with differences."""

    def __init__(
        self, tape: CapacitorTape, eps: float, tolerance: float | None, directions: int, rng: Any
    ) -> None:
        self.tape, self.eps, self.tolerance, self.directions, self.rng = tape, eps, tolerance, directions, rng
        self.joint, self.restores = tape.joint, False
        self.limit = self.noise = 0.0
        self.sweeps, self.worst = 0, 0.0
        self.leaves: set[int] = set()
        self.names: dict[int, str] = {}
        self.crossed: list[tuple[dict[int, Any], dict[int, Any]]] = []

    def sweep_window(self, keep: Sequence[Variable], due: Sequence[Clock]) -> Any:
        """What replaces the tape's own sweep: that sweep, and then the comparison."""
        window = [frozen(segment) for segment in self.tape._window()]
        passes = [
            (
                Joints(window, clocks, None),
                clocks,
                {loss.slot: wide(loss.seed) for s in window for loss in s.losses if loss.seeds(clocks)},
            )
            for clocks in in_step(due, window)
        ]
        self.scales = {
            clock: {i: clock.schedule.scale(i) for i in range(window[0].index, window[-1].index)}
            for clock in self.tape._clocks
        }
        leaves = leaves_read(window)
        self.limit = self.tolerance if self.tolerance is not None else (1e-6 if all_double(window) else 2e-3)
        sweep = self.swept(keep, due, leaves.values())
        if sweep.saved:
            window = window[-sweep.segments :]
        gradients = {slot: wide(sweep.gradients.by_slot.get(slot, 0.0)) for slot in leaves}
        self.compare(gradients, leaves, window, passes)
        self.leaves |= leaves.keys()
        return sweep

    def swept(self, keep: Sequence[Variable], due: Sequence[Clock], leaves: Iterable[Variable]) -> Any:
        """The tape's own sweep; what it does at joints is noted, and each `.grad` is left as a check has to leave it."""
        before = {leaf: None if leaf.grad is None else leaf.grad.copy() for leaf in leaves}
        self.crossed = []
        self.tape.joint = self.note if callable(self.joint) else self.joint
        try:
            sweep = CapacitorTape._sweep_window(self.tape, keep, due)
        finally:
            self.tape.joint = self.joint
        self.sweeps += 1
        for leaf, held in before.items() if self.restores else ():
            leaf.grad = held
        return sweep

    def compare(
        self,
        gradients: dict[int, Array],
        leaves: dict[int, Variable],
        window: Sequence[WindowSegment],
        passes: Sequence[Any],
    ) -> None:
        """Raise GradientError if a gradient is not what differences say, along several directions for each leaf."""
        expected = {slot: Differences() for slot in leaves}
        directions = {
            slot: [self.direction(leaf, even=i % 2 == 1) for i in range(self.directions)]
            for slot, leaf in leaves.items()
        }
        for one in passes:
            self.begin_pass(window, *one)
            for slot in leaves:
                expected[slot].add(
                    [self.difference(slot, d, careful=i % 2 == 1) for i, d in enumerate(directions[slot])]
                )
        for slot, leaf in leaves.items():
            found = [float(np.sum(gradients[slot] * d)) for d in directions[slot]]
            error = self.apart(found, expected[slot].total)
            if error is not None:
                raise GradientError(self.explained(slot, leaf, gradients[slot], error, window, passes))

    def note(self, pending: dict[int, Any]) -> dict[int, Any]:
        """The joint, with what it was given and what it let through noted."""
        before = {slot: np.array(ct) for slot, ct in pending.items()}
        assert callable(self.joint)
        passed = self.joint(pending)
        self.crossed.append(
            (before, {s: np.array(ct) for s, ct in passed.items()} if isinstance(passed, dict) else {})
        )
        return passed

    def begin_pass(
        self,
        window: Sequence[WindowSegment],
        joints: Joints,
        clocks: Sequence[Clock],
        seeds: dict[int, Array],
    ) -> None:
        """What the next differences are of: these losses, collected for the parts of `clocks`."""
        self.window, self.clocks, self.noise = window, clocks, 0.0
        self.at = {segment.index: i for i, segment in enumerate(window)}
        self.joints = joints
        self.targets = dict(seeds)
        self.held: dict[int, Any] = {}
        self.still = Moved(self, window, {})
        self.held = self.still.values
        if callable(self.joint):
            self.targets = self.with_what_crossed(seeds)

    def with_what_crossed(self, seeds: dict[int, Array]) -> dict[int, Array]:
        """The losses, and for every value what the joint above its segment let through; checks what came to each joint."""
        reached = sum(segment.index >= self.joints.last for segment in self.window)
        crossed, self.crossed = self.crossed[:reached], self.crossed[reached:]
        targets = {slot: seed for slot, seed in seeds.items() if slot < 0}
        above: dict[int, Any] = {}
        for segment, (before, passed) in zip(reversed(self.window), crossed, strict=False):
            here: dict[int, Any] = {}
            for source in (seeds, above):
                for slot, ct in source.items():
                    if segment.holds(slot):
                        here[slot] = here.get(slot, 0.0) + wide(ct)
            self.check_arrivals(segment, here, before, above)
            targets.update(here)
            above = passed
        return targets

    def check_arrivals(self, segment: WindowSegment, here: Any, before: Any, above: Any) -> None:
        """Raise unless the adjoints that `segment` hands to older values are what differences say."""
        self.targets = here
        for slot, ct in before.items():
            if slot not in self.held:
                continue  # from before the window: frozen
            factor = self.scale(segment)
            d = self.rng.standard_normal(np.shape(ct))
            moved = factor * (self.difference(slot, d) + float(np.sum(wide(above.get(slot, 0.0)) * d)))
            found = float(np.sum(wide(ct) * d))
            if self.apart([found], [moved]) is not None:
                raise GradientError(
                    f"check_gradients: sweep {self.sweeps}: what arrived at the joint below segment {segment.index} is not "
                    f"what differences say: {found:.8g} along a direction, and the difference is {moved:.8g}."
                )

    def scale(self, segment: WindowSegment) -> float:
        """The schedule's factor at the joint below `segment`."""
        position = self.at[segment.index]
        if not self.joints.scaled or position == 0:
            return 1.0
        crossed = range(self.window[position - 1].index, segment.index)
        return float(np.prod([self.scales[self.clocks[0]][i] for i in crossed]))

    def factor(self, slot: int, reader: WindowSegment) -> float:
        """How much of a movement of the value in `slot` arrives in segment `reader`."""
        if callable(self.joint):
            return 0.0
        owner = next(i for i in range(len(self.window) - 1, -1, -1) if slot >= self.window[i].first)
        joint = 1.0 if self.joint is None else float(self.joint)
        crossed = [self.window[i] for i in range(owner + 1, self.at[reader.index] + 1)]
        return float(np.prod([joint * self.scale(segment) for segment in crossed]))

    def direction(self, leaf: Variable, even: bool) -> Array:
        """A random direction: steps in proportion to each element, or of `even` size, which small elements need."""
        scale = scale_of(leaf._array)
        return np.asarray(
            self.rng.standard_normal(leaf.shape) * (np.max(scale, initial=0.0) if even else scale)
        )

    def difference(self, slot: int, d: Array, careful: bool = False) -> float:
        """The central difference of the objective when the value in `slot` moves along `d`.

        If `careful`, NaN where half the step says something else: the step is too long for some element.
        """
        if careful:
            try:
                one, two = self.difference(slot, d), 2 * self.difference(slot, d / 2)
            except GradientError:
                return float("nan")
            agree = abs(one - two) <= 0.1 * self.limit * max(abs(one), abs(two)) + self.noise
            return one if agree else float("nan")
        with np.errstate(all="ignore"):
            ends = [Moved(self, self.window, {slot: s * self.eps * d}).objective() for s in (1.0, -1.0)]
        if not np.isfinite(ends).all():
            raise GradientError(
                f"check_gradients: sweep {self.sweeps}: a difference is not finite ({ends[0]:g} - {ends[1]:g}).\n"
                f"  A step of eps = {self.eps:g} leaves the domain of an op, or values overflow. Try a smaller eps."
            )
        self.noise = max(self.noise, 50 * np.finfo(np.float64).eps * max(map(abs, ends)) / self.eps)
        direct = float(np.sum(self.targets[slot] * d)) if slot < 0 and slot in self.targets else 0.0
        return (ends[0] - ends[1]) / (2 * self.eps) + direct

    def apart(self, found: Sequence[float], expected: Sequence[float]) -> float | None:
        """How far apart, relative to their size, if it is too far; notes the worst."""
        told = np.isfinite(expected)
        ours, theirs = np.asarray(found)[told], np.asarray(expected)[told]
        if not len(ours):
            return None
        error = float(np.max(np.abs(ours - theirs)))
        size = max(float(np.max(np.abs(theirs))), float(np.max(np.abs(ours))), 1e-4)
        if not error <= self.limit * size + self.noise:
            return error / size
        self.worst = max(self.worst, error / size)
        return None

    def explained(
        self, slot: int, leaf: Variable, gradient: Array, error: float, window: Any, passes: Any
    ) -> str:
        """The message: which leaf, which element, and which op's rule, if one op alone is wrong too."""
        lines = [
            f"check_gradients: sweep {self.sweeps}: the gradient of {leaf.name or self.names.get(slot, 'a leaf')} "
            f"is not what differences say: "
            f"relative difference {error:.1e}."
        ]
        if leaf.size <= 2000 and not callable(self.joint):
            by_element = np.zeros(leaf.shape)
            for one in passes:
                self.begin_pass(window, *one)
                for index in np.ndindex(leaf.shape):
                    unit = np.zeros(leaf.shape)
                    unit[index] = 1.0
                    by_element[index] += (
                        self.difference(slot, unit * scale_of(leaf._array)) / scale_of(leaf._array)[index]
                    )
            worst = np.unravel_index(np.argmax(np.abs(by_element - gradient)), leaf.shape)
            where = tuple(int(i) for i in worst)
            lines.append(
                f"worst element {where}: gradient {gradient[worst]:.8g}, difference {by_element[worst]:.8g}."
            )
        lines.append(self.blame(window))
        return "\n  ".join(lines)

    def blame(self, window: Sequence[WindowSegment]) -> str:
        """The likely cause: an op whose pullback differs from differences by itself, a kink, or the dtype."""
        for segment in window:
            entries = {entry[OUT]: entry for entry in self.still.entries(segment)}
            run = [at for s in segment.spans if self.still.runs(segment, s) for at in range(s.start, s.stop)]
            for entry, inputs in ((segment.entries[at], segment.inputs[at]) for at in run):
                found = None if entry[0] is ITEM else self.wrong_rule(segment, entries[entry[OUT]], inputs)
                if found is None:
                    continue
                argument, kink = found
                op = op_name(entry, inputs)
                if kink:
                    return (
                        f"likely cause: `{op}` has a kink at its `{argument}`, in segment {segment.index}: other slopes "
                        f"to the left and to the right, and differences say nothing there. Check at other values."
                    )
                return f"likely cause: the rule of `{op}` for `{argument}` is wrong by itself, in segment {segment.index}."
        said = "every op's rule is right by itself: the graph was changed, or an input lies near a kink, or eps does not fit."
        if all_double(window):
            return said
        return f"likely cause: not all is float64, and so much may be rounding. Check in float64, or raise `tolerance`.\n  Else {said}"

    def wrong_rule(self, segment: WindowSegment, entry: Any, inputs: Any) -> tuple[str, bool] | None:
        """The argument for which the pullback of `entry` is wrong, and whether it is at a kink; or None."""
        p, given = entry[0].primitive, self.given(entry, inputs)
        shapes = entry[SHAPE] if entry[DTYPE] is None else [(entry[SHAPE], entry[DTYPE])]
        cts = [self.rng.standard_normal(shape) for shape, _ in shapes]
        ct = cts[0] if entry[DTYPE] is not None else Bundle(dict(enumerate(cts)))
        pulled = [contribution for _, contribution in entry[0].pull(entry, ct)]

        def value(moved: dict[str, Any]) -> float:
            y = self.still.compute(p, moved, inputs.statics)
            ys = y[: len(cts)] if entry[DTYPE] is None or p.hidden else [y]
            return float(sum(np.sum(c * v) for c, v in zip(cts, ys, strict=True)))

        for place, contribution in zip(places(entry), pulled, strict=True):
            here = value_at(given, place)
            d = self.rng.standard_normal(np.shape(here))
            step = self.eps
            ahead, still, behind = (
                value(put_at(given, place, here + s * step * d)) for s in (1.0, 0.0, -1.0)
            )
            expected = (ahead - behind) / (2 * step)
            found = float(np.sum(wide(contribution) * d))
            size = max(abs(found), abs(expected), 1e-3)
            if abs(found - expected) > 1e-3 * size:
                return place_name(place), abs(ahead - 2 * still + behind) / step > 1e-2 * size
        return None

    def given(self, entry: Entry, inputs: Inputs) -> dict[str, Any]:
        """What an op was given, by argument, in float64."""
        slots = entry[0].input_slots(entry)

        def read(slot: Any, noted: Any) -> Any:
            if isinstance(slot, tuple):
                return tuple(map(read, slot, noted))
            if isinstance(noted, Leaf):
                return wide(noted.variable._array if noted.array is None else noted.array)
            return wide(self.held.get(slot, noted))

        return {a: read(slots.get(a, 0), noted) for a, noted in inputs.arguments.items()}


class Differences:
    """Directional differences, added over passes."""

    def __init__(self) -> None:
        self.total: list[float] = []

    def add(self, found: Sequence[float]) -> None:
        self.total = [a + b for a, b in zip(self.total, found, strict=True)] if self.total else list(found)


def frozen(segment: WindowSegment) -> WindowSegment:
    """A copy that stays as it is when the tape forgets."""
    same = copy.copy(segment)
    same.entries, same.inputs = list(segment.entries), list(segment.inputs)
    same.spans = [copy.copy(span) for span in segment.spans]
    same.losses = [copy.copy(loss) for loss in segment.losses]
    for loss in same.losses:
        loss.waiting = set(loss.waiting)
    return same


def leaves_read(window: Sequence[WindowSegment]) -> dict[int, Variable]:
    """The leaves that the window's ops have read, by slot."""
    found: dict[int, Variable] = {}

    def look(noted: Any) -> None:
        if isinstance(noted, Leaf):
            found[noted.variable._slot] = noted.variable
        elif isinstance(noted, tuple):
            for one in noted:
                look(one)

    for segment in window:
        for inputs in segment.inputs:
            for noted in inputs.arguments.values() if inputs is not None else ():
                look(noted)
    return found


def all_double(window: Sequence[WindowSegment]) -> bool:
    """Whether every op of the window returned float64."""
    entries = [entry for segment in window for entry in segment.entries]
    dtypes = {entry[DTYPE] for entry in entries if entry[DTYPE] is not None}
    dtypes |= {dtype for entry in entries if entry[DTYPE] is None for _, dtype in entry[SHAPE]}
    return dtypes <= {np.dtype(np.float64)}
