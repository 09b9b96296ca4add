"""Random programs on a CapacitorTape against a history that forgets nothing.

`History` is the oracle: a list of all that ever ran, in Python floats, and the rules of the guide written
out over that list. It shares no code and no idea of storage with the tape: nothing leaves the list, and every
question ("is it still kept?", "which joints lie between?") is answered by comparing segment numbers.

A program is a list of steps that says what to do, never to which object: values are named by their age.
So every part of a program is a program, which is how a failing one is made short.
"""

import contextlib
import math
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.core.schedule import Schedule
from tapegrad.program import exact as exact_module
from tapegrad.program import replay as replay_module

PROGRAMS_PER_TEST, TESTS = 120, 20
GRID, LARGEST = 64.0, 64.0  # values are multiples of 1 / GRID, and not beyond LARGEST: float64 is exact there
FINEST, COARSEST = 2.0**-26, 2.0**24  # and so it is for adjoints that are multiples of FINEST below COARSEST
TOLERANCE = 1e-12


# -- arithmetic on lists of floats: one element is a scalar, two are a vector --------------------------


def wide(a, n):
    return a * n if len(a) == 1 else a


def pairs(a, b):
    n = max(len(a), len(b))
    return zip(wide(a, n), wide(b, n), strict=True)


COMPUTE = {
    "add": lambda a, b: [[p + q for p, q in pairs(a, b)]],
    "subtract": lambda a, b: [[p - q for p, q in pairs(a, b)]],
    "multiply": lambda a, b: [[p * q for p, q in pairs(a, b)]],
    "maximum": lambda a, b: [[max(p, q) for p, q in pairs(a, b)]],
    "negative": lambda a: [[-p for p in a]],
    "square": lambda a: [[p * p for p in a]],
    "relu": lambda a: [[max(p, 0.0) for p in a]],
    "tanh": lambda a: [[float(t) for t in np.tanh(a)]],
    "stack": lambda a, b: [[a[0], b[0]]],
    "sum": lambda a: [[a[0] + a[1]]],
    "second": lambda a: [[a[1]]],
    "unstack": lambda a: [[a[0]], [a[1]]],
}

# Per op: the cotangents of its inputs, of the output's width, from the outputs' cotangents and the values.
PULL = {
    "add": lambda ct, ins, y: (ct[0], ct[0]),
    "subtract": lambda ct, ins, y: (ct[0], [-c for c in ct[0]]),
    "multiply": lambda ct, ins, y: (
        [c * q for c, q in pairs(ct[0], ins[1])],
        [c * p for c, p in pairs(ct[0], ins[0])],
    ),
    "maximum": lambda ct, ins, y: (
        [c if p >= q else 0.0 for c, (p, q) in zip(ct[0], pairs(*ins), strict=True)],
        [0.0 if p >= q else c for c, (p, q) in zip(ct[0], pairs(*ins), strict=True)],
    ),
    "negative": lambda ct, ins, y: ([-c for c in ct[0]],),
    "square": lambda ct, ins, y: ([2 * c * p for c, p in pairs(ct[0], ins[0])],),
    "relu": lambda ct, ins, y: ([c if p > 0 else 0.0 for c, p in pairs(ct[0], ins[0])],),
    "tanh": lambda ct, ins, y: ([c * (1 - t * t) for c, t in pairs(ct[0], y[0])],),
    "stack": lambda ct, ins, y: ([ct[0][0]], [ct[0][1]]),
    "sum": lambda ct, ins, y: (ct[0] * 2,),
    "second": lambda ct, ins, y: ([0.0, ct[0][0]],),
    "unstack": lambda ct, ins, y: ([ct[0][0], ct[1][0]],),
}

# The same for magnitudes, where the terms of a derivative have signs of their own.
SIZE = {
    **PULL,
    "tanh": lambda size, ins, y: ([c * (1 + t * t) for c, t in pairs(size[0], y[0])],),
}

RUN = {
    **{name: getattr(tg, name) for name in COMPUTE if name != "second"},
    "stack": lambda a, b: tg.stack([a, b]),
    "second": lambda a: tg.getitem(a, index=1),
}
VECTORS_ONLY, SCALARS_ONLY = {"sum", "second", "unstack"}, {"stack"}


# -- joints: what the tape is given, and the factor for each adjoint that goes on ------------------------


def keep_scalars(pending):
    return {slot: ct for slot, ct in pending.items() if ct.ndim == 0}


def halve_vectors_in_place(pending):
    for ct in pending.values():
        if ct.ndim:
            ct *= 0.5
    return pending


def clip_to_4(pending):
    largest = max((float(np.max(np.abs(ct))) for ct in pending.values()), default=0.0)
    return {slot: ct * shrink(largest) for slot, ct in pending.items()}


def shrink(largest):
    """The power of two that takes `largest` to 4 or below."""
    factor = 1.0
    while largest * factor > 4 and factor > 1e-30:
        factor /= 2
    return factor


JOINTS = {
    "pass": (None, lambda pending: dict.fromkeys(pending, 1.0)),
    "half": (0.5, lambda pending: dict.fromkeys(pending, 0.5)),
    "minus two": (-2, lambda pending: dict.fromkeys(pending, -2.0)),
    "drop": (0, lambda pending: {}),
    "keep scalars": (keep_scalars, lambda pending: {v: 1.0 for v, ct in pending.items() if len(ct) == 1}),
    "halve vectors": (
        halve_vectors_in_place,
        lambda pending: {v: 1.0 if len(ct) == 1 else 0.5 for v, ct in pending.items()},
    ),
    "clip": (
        clip_to_4,
        lambda pending: dict.fromkeys(
            pending, shrink(max((abs(c) for ct in pending.values() for c in ct), default=0.0))
        ),
    ),
}


# -- schedules, as the guide's table says them -----------------------------------------------------------


class Timing:
    """When a part sweeps, how far back, and what it forgets."""

    def __init__(self, kind, *numbers):
        self.kind, self.numbers = kind, numbers
        self.swept = self.forgotten = self.before = 0
        if kind == "randomized":
            self.random = np.random.default_rng(numbers[2])
            self.cuts, self.since = [], 0  # the factor at each joint, 0 where it is cut
        self.window = {
            "sliding": lambda h, stride: h,
            "chunked": lambda h: h,
            "full": lambda: None,
            "burn-in": lambda k1, k2: k1 + k2,
            "randomized": lambda mean, alpha, seed, longest: longest,
        }[kind](*numbers)

    def build(self):
        kinds = {
            "sliding": lambda h, stride: tg.Sliding(h, stride=stride),
            "chunked": tg.Chunked,
            "full": tg.Full,
            "burn-in": tg.BurnIn,
            "randomized": tg.Randomized,
        }
        return kinds[self.kind](*self.numbers)

    def records(self, index):
        if self.kind != "burn-in":
            return True
        k1, k2 = self.numbers
        return (index - 1) % (k1 + k2) >= k1

    def due(self, index):
        if self.kind == "sliding":
            return index - self.swept >= self.numbers[1]
        if self.kind == "chunked":
            return index - self.swept >= self.numbers[0]
        if self.kind == "burn-in":  # a cycle has ended since
            return any(i % sum(self.numbers) == 0 for i in range(self.swept + 1, index + 1))
        if self.kind == "randomized":  # a joint was cut since
            self.draw(index)
            return any(self.cuts[i - 1] == 0 for i in range(self.swept + 1, index + 1))
        return False

    def forgets(self, index):
        if self.kind in ("chunked", "burn-in"):
            return index
        if self.kind == "randomized":
            self.draw(index)
            return max((i for i, factor in enumerate(self.cuts[:index], 1) if factor == 0), default=0)
        return 0

    def scale(self, index):
        if self.kind != "randomized":
            return 1.0
        self.draw(index)
        return self.cuts[index - 1]

    def draw(self, index):
        """The law of Tallec and Ollivier: a chunk of d segments ends with probability c_d."""
        mean, alpha, _, longest = self.numbers
        while len(self.cuts) < index:
            self.since += 1
            c = min(1.0, (alpha - 1) / ((alpha - 2) * mean + self.since))
            if longest is not None and self.since >= longest:
                c = 1.0
            cut = self.random.random() < c
            self.cuts.append(0.0 if cut else 1 / (1 - c))
            self.since = 0 if cut else self.since

    def closed(self, count, waits):
        """A random chunk without a loss is over when the segment behind it has closed, too."""
        if self.kind == "randomized" and self.forgets(count - 1) > self.swept and not waits:
            self.swept = self.forgotten = self.forgets(count - 1)

    def oldest(self, newest):
        """The oldest segment that is kept when `newest` is the newest."""
        in_window = 1 if self.window is None else newest - self.window + 1
        return max(1, in_window, self.forgotten + 1)

    def reset(self):
        self.swept = self.forgotten = self.before = 0
        if self.kind == "randomized":
            self.cuts, self.since = [], 0

    def roll_back(self, count):
        self.swept, self.forgotten = min(self.swept, count), self.before


# -- the oracle ------------------------------------------------------------------------------------------


class Refused(Exception):
    """The tape must raise exactly this, and be as it was."""

    def __init__(self, error):
        super().__init__(error.__name__)
        self.error = error


@dataclass
class Value:
    """Anything that the program computed. `born`: the newest segment that had been opened by then.

    `kind`: "constant"; "recorded"; "skipped" by a schedule that does not record; "outside" of any segment.
    """

    array: list
    kind: str
    born: tuple  # (sequence, segment): tape.reset() begins a new sequence
    part: int = 0
    region: int = 0
    op: object = None


@dataclass(eq=False)
class Op:
    name: str
    inputs: list  # ("leaf", i), ("value", v) or ("constant", array)
    then: list  # what the inputs were
    outputs: list
    born: tuple
    part: int
    region: int
    kept: bool = True


@dataclass(eq=False)
class Loss:
    value: int
    seed: list
    waiting: set  # the parts that have not counted it yet


@dataclass
class Adjoint:
    """A sum of contributions, and of their magnitudes, of which rounding is a share."""

    sum: list
    size: list

    def plus(self, other):
        return Adjoint(
            [p + q for p, q in zip(self.sum, other.sum, strict=True)],
            [p + q for p, q in zip(self.size, other.size, strict=True)],
        )

    def times(self, factor):
        return Adjoint([p * factor for p in self.sum], [p * abs(factor) for p in self.size])


@dataclass
class Found:
    """What a sweep must find."""

    gradients: dict = field(default_factory=dict)
    left_edge: dict = field(default_factory=dict)
    norms: list = field(default_factory=list)
    entering: dict = field(default_factory=dict)  # by segment, its values' adjoints when the sweep gets there
    adjoints: dict = field(default_factory=dict)  # of every value that the sweep went through
    kept: list = field(default_factory=list)
    state: dict = field(default_factory=dict)
    losses: set = field(default_factory=set)
    segments: int = 0
    passes: int = 0
    stops: bool = False
    exact: bool = True

    def add(self, where, key, adjoint):
        where[key] = where[key].plus(adjoint) if key in where else adjoint
        for s in adjoint.sum:
            self.exact = self.exact and abs(s) <= COARSEST and (s / FINEST).is_integer()


class History:
    """All that ever ran, and what the guide says of it."""

    def __init__(self, schedules, leaves, weights, joint):
        self.timings = [Timing(*s) for s in schedules]
        self.leaves, self.weights, self.factors = leaves, weights, JOINTS[joint][1]
        self.values, self.ops, self.losses, self.wanted = [], [], [], []
        self.sequence = self.count = 0
        self.recording, self.inside, self.warned = False, [], False
        self.region = 0  # counts the runs of ops that one part recorded
        self.segments = []  # kept by the tape's own schedule, where there are no parts

    @property
    def index(self):
        """The newest segment, an open one included."""
        return self.count + self.recording

    @property
    def now(self):
        return (self.sequence, self.index)

    @property
    def part(self):
        return self.inside[-1] if self.inside else 0

    # what a program does

    def begin(self):
        self.recording, self.inside = True, []
        self.region += 1
        for timing in self.timings:
            timing.before = timing.forgotten

    def enter(self, part):
        self.inside.append(part)
        self.region += 1

    def leave(self):
        self.inside.pop()
        self.region += 1

    def stop(self):
        self.recording, self.inside = False, []
        self.count += 1
        if self.timings[0].records(self.count):
            self.segments.append(self.count)
        for part, timing in enumerate(self.timings):
            timing.closed(self.count, waits=any(part in loss.waiting for loss in self.losses))
        self.evict(strict=True)

    def abort(self):
        aborted = self.now
        self.recording, self.inside = False, []
        for timing in self.timings:
            timing.roll_back(self.count)
        for v in self.values:
            if v.born == aborted and v.kind != "constant":
                v.kind, v.born = "outside", self.now
        gone = {o for op in self.ops if op.born == aborted for o in op.outputs}
        self.ops = [op for op in self.ops if op.born != aborted]
        self.losses = [loss for loss in self.losses if loss.value not in gone]

    def reset(self):
        if self.recording:
            raise Refused(tg.RecordingError)
        for timing in self.timings:
            timing.reset()
        for op in self.ops:
            op.kept = False
        self.losses, self.wanted, self.segments = [], [], []
        self.sequence, self.count, self.warned = self.sequence + 1, 0, False

    def run(self, name, inputs, paused=False):
        """The numbers of the op's outputs; None if it is not to be run, for its result would not be exact."""
        then = [self.array(i) for i in inputs]
        outs = COMPUTE[name](*then)
        if any(abs(x) > LARGEST or (name != "tanh" and not self.on_grid(x)) for out in outs for x in out):
            return None
        kinds = {
            "leaf" if kind == "leaf" else self.values[v].kind for kind, v in inputs if kind != "constant"
        }
        kinds.discard("constant")
        op, kind = None, "constant"
        if kinds and not paused:
            if self.recording and self.timings[self.part].records(self.index):
                kind = "recorded"
                op = Op(name, inputs, then, [], self.now, self.part, self.region)
                self.ops.append(op)
            elif self.recording:
                kind = "skipped"
            elif kinds != {"leaf"}:
                kind = "outside"
        made = [self.new(out, kind, op) for out in outs]
        if op:
            op.outputs = made
        return made

    inexact = False

    def on_grid(self, x):
        return self.inexact or (x * GRID).is_integer()

    def new(self, array, kind="constant", op=None):
        self.values.append(Value(array, kind, self.now, self.part, self.region, op))
        return len(self.values) - 1

    def array(self, name):
        kind, which = name
        if kind == "constant":
            return which
        return self.leaves[which] if kind == "leaf" else self.values[which].array

    # what is kept

    def needed(self, op):
        """Whether a loss of the op's segment waits for the op's part, or for another and was computed beside the op."""
        values = [(self.values[loss.value], loss.waiting) for loss in self.losses]
        return any(
            v.born == op.born and (op.part in waiting or v.op.region == op.region) for v, waiting in values
        )

    def evict(self, strict):
        """Forget what is older than its part's window, but for what a loss needs: an error if `strict`."""
        leaving = [
            op
            for op in self.ops
            if op.kept and op.born[1] <= self.count and op.born[1] < self.timings[op.part].oldest(self.count)
        ]
        needed = [op for op in leaving if self.needed(op)]
        if strict and any(op.born[1] > self.timings[op.part].forgotten for op in needed):
            raise Refused(tg.EvictedError)
        for op in leaving:
            op.kept = op in needed
        oldest, needed = self.timings[0].oldest(self.count), {op.born[1] for op in needed}
        while self.segments and self.segments[0] < oldest and self.segments[0] not in needed:
            self.segments.pop(0)

    def reach(self, part):
        """The oldest segment that a sweep goes back to: an older one than the window's while a loss waits there.

        That is a loss which waits for this part, or which it has computed.
        The newest is always among them: one that is swept while it is open is forgotten when it closes.
        """
        values = [(self.values[loss.value], loss.waiting) for loss in self.losses]
        waiting = [v.born[1] for v, parts in values if part in parts or v.part == part]
        return min([self.timings[part].oldest(self.index), self.index, *waiting])

    # handing in and sweeping

    def backward(self, roots, seeds, keep, held):
        if roots is None:
            if not self.timings[0].records(self.index):
                roots = []
            else:
                newest = [op for op in self.ops if op.kept and op.born == self.now]
                if not newest:
                    raise Refused(tg.RecordingError)
                roots = [newest[-1].outputs[-1]]
                if len(self.values[roots[0]].array) > 1:
                    raise Refused(tg.ArgumentError)
            seeds = [None] * len(roots)
        for root in roots:
            v = self.values[root]
            if v.kind in ("constant", "outside") or v.born[0] != self.sequence:
                raise Refused(tg.RecordingError)
            if v.kind == "recorded" and not v.op.kept:
                raise Refused(tg.EvictedError)
            reach = min(map(self.reach, range(len(self.timings))))
            if v.kind == "recorded" and self.recording and v.born[1] < reach:
                raise Refused(tg.EvictedError)
        for root, seed in zip(roots, seeds, strict=True):
            n = len(self.values[root].array)
            if seed is None and n > 1:
                raise Refused(tg.ArgumentError)
            if seed is not None and len(seed) != n:
                raise Refused(tg.ShapeError)
        handed_in = [
            Loss(root, seed or [1.0], set(range(len(self.timings))))
            for root, seed in zip(roots, seeds, strict=True)
            if self.values[root].kind == "recorded"
        ]
        if {loss.value for loss in handed_in} & {loss.value for loss in self.losses}:
            raise Refused(tg.ArgumentError)
        self.losses += handed_in
        self.wanted += [*roots, *keep]
        due = [part for part, timing in enumerate(self.timings) if timing.due(self.index)]
        return self.sweep_for(due, [], held)

    def sweep(self, keep, held):
        return self.sweep_for(list(range(len(self.timings))), keep, held)

    def sweep_for(self, due, keep, held):
        """Sweep for every part that is due; None if no loss waits for any.

        `held`: the closed segments of which anything is kept; None where that follows from the one schedule.
        """
        if not any(loss.waiting & set(due) for loss in self.losses):
            return None
        found = Found(kept=[*self.wanted, *keep])
        reach = [self.reach(part) for part in range(len(self.timings))]
        window = self.segments if held is None else held
        if self.recording:
            window = [*(s for s in window if s >= min(reach)), self.index]
        inputs, outputs = self.as_swept(reach)
        together = {}  # the parts for which the same losses wait; one that scales at joints, by itself
        for part in due:
            losses = tuple(loss for loss in self.losses if part in loss.waiting)
            alone = part if self.timings[part].kind == "randomized" else None
            together.setdefault((losses, alone), []).append(part)
        groups = sorted(together.items(), key=lambda group: min(reach[part] for part in group[1]))
        for (losses, _), parts in groups:
            if losses:
                found.passes += 1
                oldest = min(reach[part] for part in parts)
                swept = [segment for segment in reversed(window) if segment >= oldest]
                self.chain_rule(found, parts, losses, swept, inputs, outputs)
        if self.weights == "replay":
            newest = [op for op in inputs if op.born == self.now]
            found.state = {o: y for op in newest for o, y in zip(op.outputs, outputs[op], strict=True)}
        for loss in self.losses:
            loss.waiting -= set(due)
        self.losses, self.wanted = [loss for loss in self.losses if loss.waiting], []
        for part in due:
            timing = self.timings[part]
            timing.swept = self.index
            timing.forgotten = max(timing.forgotten, timing.forgets(self.index))
        if not self.recording:  # an open segment may be aborted: until it closes nothing is dropped
            self.evict(strict=False)
        found.stops, self.warned = found.stops and not self.warned, self.warned or found.stops
        return found

    def as_swept(self, reach):
        """The inputs and outputs of every op that a sweep goes through, as its derivative is to see them."""
        inputs, outputs, today = {}, {}, {}
        for op in self.ops:
            if not op.kept or op.born[1] < reach[op.part]:
                continue
            inputs[op], outputs[op] = op.then, [self.values[o].array for o in op.outputs]
            read_today = self.weights == "replay" or (
                self.weights == "current" and not (self.recording and op.born == self.now)
            )
            if read_today:
                inputs[op] = [
                    self.leaves[which] if kind == "leaf" else then
                    for (kind, which), then in zip(op.inputs, op.then, strict=True)
                ]
            if self.weights == "replay":
                inputs[op] = [
                    today.get(which, y) if kind == "value" else y
                    for (kind, which), y in zip(op.inputs, inputs[op], strict=True)
                ]
                outputs[op] = COMPUTE[op.name](*inputs[op])
                today.update(zip(op.outputs, outputs[op], strict=True))
        return inputs, outputs

    def chain_rule(self, found, parts, losses, window, inputs, outputs):
        """The gradient of `losses` for the leaves that `parts` read, segment by segment, newest first."""
        adjoints = {}
        found.segments = max(found.segments, len(window))
        for segment, older in zip(window, [*window[1:], None], strict=True):
            here = (self.sequence, segment)
            for loss in losses:
                if self.values[loss.value].born == here:
                    found.add(adjoints, loss.value, Adjoint(loss.seed, [abs(s) for s in loss.seed]))
                    found.losses.add(loss.value)
            found.entering[segment] = {v: a for v, a in adjoints.items() if self.values[v].born >= here}
            for op in reversed([op for op in inputs if op.born == here]):
                self.pull(found, op, adjoints, inputs[op], outputs[op], collect=op.part in parts)
            pending = {v: a for v, a in adjoints.items() if self.values[v].born < here}
            if len(found.norms) < len(window) and found.passes == 1:
                found.norms.append(math.sqrt(sum(x * x for a in pending.values() for x in a.sum)))
            for v, adjoint in adjoints.items():
                value = self.values[v]
                if v in pending:
                    if older is None:
                        found.add(found.left_edge, v, adjoint)
                elif value.op in inputs:
                    found.adjoints.setdefault(v, adjoint)  # of the pass with the longest window
                elif value.kind == "outside":
                    found.stops = True
                else:
                    found.add(found.left_edge, v, adjoint)
            adjoints = self.across_joint(self.timings[parts[0]], older, segment, pending)

    def pull(self, found, op, adjoints, inputs, outputs, collect):
        if not any(o in adjoints for o in op.outputs):
            return
        none = [Adjoint([0.0] * len(y), [0.0] * len(y)) for y in outputs]
        ct = [adjoints.get(o, zero) for o, zero in zip(op.outputs, none, strict=True)]
        sums = PULL[op.name]([c.sum for c in ct], inputs, outputs)
        sizes = SIZE[op.name]([c.size for c in ct], inputs, outputs)
        for (kind, which), given, s, size in zip(op.inputs, inputs, sums, sizes, strict=True):
            if len(given) < len(s):  # it was repeated
                s, size = [sum(s)], [sum(map(abs, size))]
            adjoint = Adjoint(s, [abs(x) for x in size])
            if kind == "leaf" and collect:
                found.add(found.gradients, which, adjoint)
            elif kind == "value" and self.values[which].kind != "constant":
                found.add(adjoints, which, adjoint)

    def across_joint(self, timing, older, segment, pending):
        """What goes on to segment `older`: first the schedule's factors, then the joint's."""
        if older:
            for crossed in range(older, segment):
                factor = timing.scale(crossed)
                pending = {v: a.times(factor) for v, a in pending.items() if factor}
        factors = self.factors({v: a.sum for v, a in pending.items()})
        return {v: pending[v].times(factor) for v, factor in factors.items()}


# -- both at once ------------------------------------------------------------------------------------------


class Difference(AssertionError):
    """The tape did not do what the history says."""


@dataclass
class Program:
    """Everything that `failure` needs; printed, it can be pasted."""

    seed: int
    schedules: list
    weights: str
    joint: str
    guard: bool
    leaves: list
    inexact: bool
    steps: list
    compile: object = "numpy"
    sightings: int = 2  # how often a segment's signature is met before it is compiled

    def __str__(self):
        steps = "\n".join(f"        {step!r}," for step in self.steps)
        return (
            f"Program(\n    seed={self.seed!r},\n    schedules={self.schedules!r},\n    weights={self.weights!r}, "
            f"joint={self.joint!r}, guard={self.guard!r},\n    leaves={self.leaves!r},\n"
            f"    inexact={self.inexact!r}, compile={self.compile!r}, sightings={self.sightings!r},\n    steps=[\n{steps}\n    ],\n)"
        )


class Player:
    """Takes each step on the tape and in the history, and compares."""

    def __init__(self, program, tally):
        self.program, self.tally = program, tally
        self.history = History(
            program.schedules, [list(a) for a in program.leaves], program.weights, program.joint
        )
        self.history.inexact = program.inexact
        self.leaves = [tg.Parameter(number(a), name=f"leaf {i}") for i, a in enumerate(program.leaves)]
        self.grads = [None] * len(self.leaves)
        self.values = []  # the Variables, by the history's numbers
        self.tape, self.parts = self.build()
        self.open, self.entered = None, []  # the scopes to leave

    def build(self):
        p = self.program
        timings = [Timing(*s) for s in p.schedules]
        tape = tg.CapacitorTape(
            timings[0].build(),
            weights=p.weights,
            joint=JOINTS[p.joint][0],
            guard=p.guard,
            compile=p.compile,
        )
        return tape, [tape.capacitor(t.build()) for t in timings[1:]]

    def play(self):
        for i, step in enumerate(self.program.steps):
            self.step = f"step {i}: {step!r}"
            with warnings.catch_warnings(record=True) as self.caught:
                warnings.simplefilter("always")
                getattr(self, "do_" + step[0].replace(" ", "_"))(*step[1:])
            if self.caught:
                self.differ("warnings", [str(w.message) for w in self.caught], [])
            self.compare_what_is_kept()

    def differ(self, what, tape, history):
        raise Difference(f"{self.step}\n  {what}\n    the tape:    {tape}\n    the history: {history}")

    def same(self, what, tape, history):
        if tape != history:
            self.differ(what, tape, history)

    def count(self, what):
        self.tally[what] = self.tally.get(what, 0) + 1

    def both(self, on_tape, in_history):
        """The results of the two, which raise the same error or none; (None, None) for an error."""
        try:
            expected, refused = in_history(), None
        except Refused as r:
            expected, refused = None, r.error
        try:
            came, error = on_tape(), None
        except tg.TapegradError as e:
            came, error = None, e
        if type(error) is not (refused or type(None)):
            self.differ("error", repr(error), refused and refused.__name__)
        if refused:
            self.count(refused.__name__)
        return came, expected

    # steps: recording

    def do_begin(self, style):
        if self.history.recording:
            self.refused(self.tape.begin, tg.RecordingError)
            return
        self.history.begin()
        if style == "with":
            self.open = contextlib.ExitStack()
            self.open.enter_context(self.tape)
        else:
            self.open = None
            self.tape.begin()

    def do_stop(self):
        if not self.history.recording:
            self.refused(self.tape.stop, tg.RecordingError)
            return
        while self.entered:
            self.do_leave()
        self.both(self.open.close if self.open else self.tape.stop, self.history.stop)

    def do_raise(self):
        """An exception leaves the segment, and the parts that were entered; or the user aborts it."""
        if not self.history.recording:
            self.refused(self.tape.abort, tg.RecordingError)
            return
        error = ZeroDivisionError("an exception inside the segment")
        for part in reversed(self.entered):
            part.__exit__(type(error), error, None)
        self.entered = []
        if self.open:
            self.same("an exception passes", self.open.__exit__(type(error), error, None), False)
        else:
            self.tape.abort()
        self.history.abort()
        self.count("abort")

    def do_part(self, i):
        if not self.parts:
            return
        part = self.parts[i % len(self.parts)]
        if not self.history.recording:
            self.refused(part.__enter__, tg.RecordingError)
            return
        part.__enter__()
        self.entered.append(part)
        self.history.enter(1 + i % len(self.parts))

    def do_leave(self):
        if self.entered:
            self.entered.pop().__exit__(None, None, None)
            self.history.leave()

    def refused(self, call, error):
        def refuse():
            raise Refused(error)

        self.both(call, refuse)

    # steps: ops

    def resolve(self, name):
        """The k-th newest value, a leaf or a constant, as the history names it."""
        kind, which = name
        if kind == "value":
            return (kind, len(self.values) - 1 - which % len(self.values)) if self.values else ("leaf", 0)
        return (kind, which % len(self.leaves)) if kind == "leaf" else (kind, list(which))

    def variable(self, name):
        """What an op is given; a constant array is written to afterwards."""
        kind, which = name
        if kind == "constant":
            return np.array(number(which))
        return self.leaves[which] if kind == "leaf" else self.values[which]

    def do_op(self, name, *inputs, paused=False, call=lambda f, *args: f(*args)):
        inputs = [self.resolve(i) for i in inputs]
        widths = [len(self.history.array(i)) for i in inputs]
        if (name in VECTORS_ONLY and widths[0] == 1) or (name in SCALARS_ONLY and max(widths) > 1):
            name = "negative" if len(inputs) == 1 else "add"
        made = self.history.run(name, inputs, paused)
        if made is None:
            return False
        given = [self.variable(i) for i in inputs]
        out = call(RUN[name], *given)
        for (kind, _), array in zip(inputs, given, strict=True):
            if kind == "constant":
                array[...] = 99.0  # a recording has one of its own
        for v, came in zip(made, out if isinstance(out, tuple) else (out,), strict=True):
            came = came if isinstance(came, tg.Variable) else tg.constant(came)
            self.close("value", came.value, Adjoint(self.history.values[v].array, [1.0, 1.0]), False)
            self.values.append(came)
        return True

    def do_paused(self, name, *inputs):
        with self.tape.pause():
            self.do_op(name, *inputs, paused=True)

    def do_stop_gradient(self, value):
        value = self.resolve(value)
        self.history.new(self.history.array(value))
        stopped = tg.stop_gradient(self.variable(value))
        self.values.append(stopped if isinstance(stopped, tg.Variable) else tg.constant(stopped))

    def do_branch(self, value, above, below):
        if self.values:
            value = self.values[self.resolve(value)[1]]
            self.do_op(*(above if np.ravel(value.value)[0] > 0 else below))

    def do_record(self, i, name, *inputs):
        """tape.record(f, ...) or part.record(f, ...): a segment of its own if none is open."""
        recorder, part = self.tape, 0
        if self.parts and i:
            part = 1 + i % len(self.parts)
            recorder = self.parts[part - 1]
        if not self.history.recording:
            self.as_a_segment(recorder, part, name, *inputs)
        elif part:
            region = self.history.region
            self.history.enter(part)
            ran = self.do_op(name, *inputs, call=recorder.record)
            self.history.leave()
            if not ran:
                self.history.region = region
        else:
            self.refused(lambda: recorder.record(tg.negative, 1.0), tg.RecordingError)

    def as_a_segment(self, recorder, part, name, *inputs):
        history, made = self.history, []

        def close():
            if part:
                history.leave()
            history.stop()

        def f(op, *given):
            made.append(op(*given))

        def call(op, *given):
            self.both(lambda: recorder.record(f, op, *given), close)
            return made[0]

        history.begin()
        if part:
            history.enter(part)
        if not self.do_op(name, *inputs, call=call):
            self.both(lambda: recorder.record(lambda: None), close)

    # steps: sweeps

    def do_backward(self, roots, seeds, keep):
        if roots is not None:
            roots = list(dict.fromkeys(self.root(r) for r in roots if self.values))
            if not roots:
                return
            seeds = [self.seed(seed, root) for seed, root in zip(seeds * len(roots), roots, strict=False)]
            given = [s and number(s) for s in seeds]
            if len(roots) > 1 and all(s is None for s in seeds):
                given = None
            if len(roots) == 1:
                arguments = self.values[roots[0]], given[0]
            else:
                arguments = [self.values[r] for r in roots], given
        elif self.parts:  # which value is the last may depend on what a part still keeps
            return
        else:
            arguments = ()
        keep = [self.resolve(("value", k))[1] for k in keep if self.values]
        held = self.held()
        sweep, found = self.both(
            lambda: self.tape.backward(*arguments, keep=[self.values[k] for k in keep]),
            lambda: self.history.backward(roots, seeds, keep, held),
        )
        self.compare(sweep, found)

    def root(self, age):
        """The value of this age among those that are differentiated; among all, for a negative age."""
        live = [i for i, v in enumerate(self.history.values) if v.kind != "constant"]
        if live and age >= 0:
            return live[-1 - age % len(live)]
        return len(self.values) - 1 - age % len(self.values)

    def seed(self, seed, root):
        """Of a seed for a scalar and one for a vector, the one that fits; another is taken as it is."""
        if seed is None or len(seed) < 3:
            return seed
        if len(self.history.values[root].array) > 1:
            return seed[1:]
        return None if seed[0] is None else seed[:1]

    def do_sweep(self, keep):
        keep = [self.resolve(("value", k))[1] for k in keep if self.values]
        held = self.held()
        sweep, found = self.both(
            lambda: self.tape.sweep(keep=[self.values[k] for k in keep]),
            lambda: self.history.sweep(keep, held),
        )
        self.compare(sweep, found)

    def held(self):
        """With parts, a segment is there as long as any part keeps anything of an older one."""
        return [s.index for s in self.tape.segments] if self.parts else None

    def do_reset(self):
        self.both(self.tape.reset, self.history.reset)

    def do_update(self, i, array):
        """What an optimizer does: the leaf gets another array."""
        i = i % len(self.leaves)
        array = list(array[: len(self.history.leaves[i])])
        self.history.leaves[i] = array
        self.leaves[i].value = number(array)

    def do_look(self):
        """A gradient that waits to be read is read, and written to."""
        for i, leaf in enumerate(self.leaves):
            if leaf.grad is not None:
                leaf.grad[...] += 1.0
                self.grads[i] = self.grads[i].plus(Adjoint([1.0] * leaf.size, [1.0] * leaf.size))

    def do_zero_grad(self):
        for leaf in self.leaves:
            leaf.grad = None
        self.grads = [None] * len(self.leaves)

    def do_snapshot(self):
        """The rest of the program runs on a new tape, with new leaves."""
        names = {leaf.name: leaf for leaf in self.leaves}
        if self.history.recording:
            self.refused(lambda: self.tape.state_dict(parameters=names), tg.RecordingError)
            return
        saved = self.tape.state_dict(carry={"values": self.values}, parameters=names)
        leaves = [tg.Parameter(leaf.value, name=leaf.name) for leaf in self.leaves]
        for leaf, old in zip(leaves, self.leaves, strict=True):
            leaf.grad = old.grad
        self.leaves = leaves
        self.tape, self.parts = self.build()
        self.values = self.tape.load_state_dict(saved, parameters={leaf.name: leaf for leaf in leaves})[
            "values"
        ]
        self.history.wanted = []
        self.count("snapshot")

    # comparing

    def close(self, what, came, adjoint, exact):
        came = np.ravel(came).tolist()
        if exact and came == adjoint.sum:
            return
        rounding = [0.0 if exact else TOLERANCE * max(size, 1e-300) for size in adjoint.size]
        if len(came) != len(adjoint.sum) or any(
            abs(c - s) > r for c, s, r in zip(came, adjoint.sum, rounding, strict=False)
        ):
            self.differ(what, came, adjoint.sum)

    def compare(self, sweep, found):
        if sweep is None or found is None:
            self.same("a sweep", sweep is not None, found is not None)
            return
        exact = found.exact and not self.program.inexact and self.program.compile in (False, "exact")
        self.count("sweep")
        self.count("exact sweep" if exact else "sweep to 1e-12")
        for what, so in {
            "warning": found.stops,
            "several passes": found.passes > 1,
            "re-run": found.state,
            "state at the edge": found.left_edge,
        }.items():
            if so:
                self.count(what)
        kinds = [w.category for w in self.caught]
        self.same("warnings", kinds, [tg.GradientStopsWarning] if found.stops else [])
        self.caught.clear()
        self.same("sweep.losses", sweep.losses, len(found.losses))
        self.same("sweep.segments", sweep.segments, found.segments)
        self.compare_gradients(sweep, found, exact)
        for v in found.kept:
            if v in found.adjoints:
                self.close(f"sweep[value {v}]", sweep[self.values[v]], found.adjoints[v], exact)
        if found.state:
            for v, array in found.state.items():
                state = Adjoint(array, [1.0, 1.0])
                self.close(f"sweep.state[value {v}]", sweep.state[self.values[v]].value, state, exact)
        if found.passes == 1:
            self.compare_adjoints("left_edge", sweep.left_edge, found.left_edge, exact)
            self.same("joints", len(sweep.joint_norms), len(found.norms))
            for lag, (came, norm) in enumerate(zip(sweep.joint_norms, found.norms, strict=True)):
                if abs(came - norm) > 1e-9 * max(1.0, norm):
                    self.differ(f"joint_norms[{lag}]", came, norm)
            for segment in self.tape.segments:
                if segment.index in found.entering:
                    self.compare_adjoints(
                        f"segment {segment.index}.adjoints",
                        segment.adjoints,
                        found.entering[segment.index],
                        exact,
                    )

    def compare_gradients(self, sweep, found, exact):
        for i, leaf in enumerate(self.leaves):
            self.same(f"leaf {i} in sweep.gradients", leaf in sweep.gradients, i in found.gradients)
            if i in found.gradients:
                self.close(f"gradient of leaf {i}", sweep.gradients[leaf], found.gradients[i], exact)
                added = found.gradients[i]
                self.grads[i] = added if self.grads[i] is None else self.grads[i].plus(added)
            self.same(f"leaf {i} has .grad", leaf.grad is not None, self.grads[i] is not None)
            if leaf.grad is not None:
                self.close(f".grad of leaf {i}", leaf.grad, self.grads[i], False)
                self.grads[i].sum = np.ravel(leaf.grad).tolist()

    def compare_adjoints(self, what, came, expected, exact):
        self.same(f"len({what})", len(came), len(expected))
        for v, adjoint in expected.items():
            self.same(f"value {v} in {what}", self.values[v] in came, True)
            self.close(f"{what}[value {v}]", came[self.values[v]], adjoint, exact)

    def compare_what_is_kept(self):
        history = self.history
        self.same("tape.recording", self.tape.recording, history.recording)
        if not history.recording:
            entries = sum(1 + (len(op.outputs) > 1) * len(op.outputs) for op in history.ops if op.kept)
            self.same("len(tape)", len(self.tape), entries)
        if not self.parts:
            self.same("tape.segments", [s.index for s in self.tape.segments], history.segments)


def number(array):
    """A list of one is a scalar."""
    return np.array(array[0]) if len(array) == 1 else np.array(array)


# -- programs ------------------------------------------------------------------------------------------------

UNARY = ["negative", "square", "relu", "sum", "second", "unstack"]
BINARY = ["add", "add", "subtract", "multiply", "multiply", "multiply", "maximum", "stack"]


def write(seed):
    """The program of this seed."""
    r = random.Random(seed)
    loop = r.random() < 0.25  # most of it is one loop
    inexact = r.random() < (0.6 if loop else 0.12)
    schedules = [schedule(r), *(schedule(r, part=True) for _ in range(r.choice([0, 0, 0, 1, 1, 2])))]
    schedules = [long_window(r)] if loop else schedules
    inexact = inexact or any(kind == "randomized" for kind, *_ in schedules)
    joints = [*["pass"] * 5, "half", "half", "minus two", "drop", "keep scalars", "halve vectors"]
    joint = r.choice(joints if len(schedules) > 1 else [*joints, "clip", "clip"])
    joint = "pass" if loop and r.random() < 0.7 else joint
    leaves = [halves(r, 1), halves(r, 1), halves(r, 2)]
    steps = alike(r, inexact, r.randint(6, 20)) if loop else []
    for _ in range(r.randint(0, 2) if loop else r.randint(3, 9)):
        steps += between(r)
        steps += segment(r, inexact, len(schedules) - 1)
        if loop or r.random() < 0.2:
            steps += alike(r, inexact, r.randint(3, 12))
    steps += between(r)
    steps.append(("sweep", ages(r)))
    weights = r.choice(["recorded", "recorded", "recorded", "current", "current", "replay"])
    compile, sightings = r.choice([False, "exact", "exact", True, "numpy", "numpy"]), r.choice([1, 1, 2])
    compile = "numpy" if loop and r.random() < 0.6 else compile
    guard = r.random() < (0.03 if loop else 0.15)
    return Program(seed, schedules, weights, joint, guard, leaves, inexact, steps, compile, sightings)


def long_window(r):
    window = r.randint(2, 7)
    return r.choice(
        [("sliding", window, 1)] * 3
        + [("sliding", window, r.randint(1, window)), ("chunked", window), ("full",)]
    )


def alike(r, inexact, count):
    """Segments of one loop: the same ops, a loss at the end, and now and then something else."""
    body = loop_body(r, inexact)
    losses = r.choice([[0], [0], [0], [0, 2], [1], []])
    seeds = [[None, 1.0, 1.0]] * 2 if r.random() < 0.7 else [seed(r) for _ in range(2)]
    steps = []
    for _ in range(count):
        steps.append(("begin", "with"))
        steps += [("op", *op(r, inexact))] if r.random() < 0.05 else []
        steps += body
        steps.append(("raise",) if r.random() < 0.03 else ("stop",))
        if r.random() < 0.93:
            for root in losses:
                steps.append(("backward", [root], seeds, []))
        else:
            steps += between(r)
        if r.random() < 0.2:
            steps.append(r.choice([("zero grad",), ("update", r.randrange(3), halves(r, 2)), ("look",)]))
    return steps


def loop_body(r, inexact):
    """x = f(x, leaf), with a scalar at the end; a squashed state stays small."""
    width = r.choice(["scalar", "vector"])
    before = ("value", r.choice([1, 1, 1, 0] if width == "vector" else [0, 0, 0, 1]))
    first = ("op", r.choice(["multiply", "multiply", "subtract"]), before, ("leaf", r.randrange(3)))
    body = [first, *(another(r) for _ in range(r.choice([0, 0, 1, 2])))]
    body.append(("op", r.choice(["negative", "relu", "negative"]), ("value", 0)))
    if inexact:
        body.append(("op", "tanh", ("value", 0)))
    if width == "vector":
        body.append(("op", "sum", ("value", 0)))
    return body


def another(r):
    """An op on the newest value and on something else."""
    other = r.choice([("leaf", r.randrange(3)), ("value", 2), ("constant", halves(r, 1))])
    return ("op", r.choice(["add", "subtract", "maximum"]), ("value", 0), other)


def schedule(r, part=False):
    kind = r.choice(["sliding"] * 6 + ["chunked"] * 3 + ["full", "burn-in", "randomized"])
    window = r.randint(1, 4)
    if kind == "sliding":
        stride = 1 if r.random() < (0.7 if part else 0.4) else r.randint(1, window)
        return (kind, window, stride)
    if kind == "chunked":
        return (kind, window)
    if kind == "burn-in":
        return (kind, r.randint(0, 2), r.randint(1, 3))
    if kind == "randomized":
        return (kind, r.choice([1.5, 2.5]), r.choice([3.0, 6.0]), r.randint(0, 99), r.choice([None, 3]))
    return (kind,)


def halves(r, n):
    return [r.choice([-2.0, -1.0, -0.5, 0.5, 1.0, 1.0, 1.5, 2.0]) for _ in range(n)]


def ages(r):
    return [r.randrange(5)] if r.random() < 0.15 else []


def name(r):
    kind = r.random()
    if kind < 0.62:
        return ("value", int(r.expovariate(0.7)) if r.random() < 0.8 else r.randrange(20))
    if kind < 0.92:
        return ("leaf", r.randrange(3))
    return ("constant", halves(r, r.choice([1, 1, 2])))


def op(r, inexact):
    if inexact and r.random() < 0.3:
        return ("tanh", name(r))
    if r.random() < 0.3:
        return (r.choice(UNARY), name(r))
    return (r.choice(BINARY), name(r), name(r))


def anything(r, inexact, parts):
    """A step that may stand in a segment or between two."""
    kind = r.random()
    if kind < 0.72:
        return ("op", *op(r, inexact))
    if kind < 0.80:
        return ("branch", ("value", r.randrange(4)), op(r, inexact), op(r, inexact))
    if kind < 0.86:
        return ("paused", *op(r, inexact))
    if kind < 0.92:
        return ("stop gradient", name(r))
    if parts:
        return ("record", r.randint(1, parts), *op(r, inexact))
    return ("op", *op(r, inexact))


def backward(r):
    kind = r.random()
    roots = (
        None
        if kind < 0.08
        else [0]
        if kind < 0.65
        else [r.randrange(4) if kind < 0.9 else r.randrange(-3, 12)]
    )
    if roots and r.random() < 0.2:
        roots.append(r.randrange(5))
    return ("backward", roots, [seed(r) for _ in range(2)], ages(r))


def seed(r):
    """For a scalar, and for a vector; now and then one that fits only one of them."""
    if r.random() < 0.06:
        return r.choice([None, [0.5], [1.0, -1.0]])
    return [r.choice([None, None, 0.5, -1.0]), r.choice([1.0, 0.5]), r.choice([1.0, -2.0])]


def segment(r, inexact, parts):
    steps, inside = [("begin", r.choice(["with", "begin"]))], 0
    for _ in range(r.choice([0, 1, 2, 2, 3, 3, 4, 5])):
        if parts and r.random() < 0.4:
            if inside and r.random() < 0.6:
                steps.append(("leave",))
                inside -= 1
            else:
                steps.append(("part", r.randint(1, parts)))
                inside += 1
        steps.append(anything(r, inexact, parts))
        if r.random() < 0.06:
            steps.append(backward(r))
        if r.random() < 0.02:
            steps.append(("sweep", ages(r)))
        if r.random() < 0.02:
            steps.append(
                r.choice([("reset",), ("snapshot",), ("begin", "with"), ("update", 0, halves(r, 2))])
            )
    if r.random() < 0.35:
        steps.append(("op", "sum", ("value", 0)))  # a scalar to hand in
    if r.random() < 0.15:
        steps.append(backward(r))
        if r.random() < 0.3:
            steps.append(anything(r, inexact, parts))
    return [*steps, ("raise",) if r.random() < 0.09 else ("stop",)]


def between(r):
    steps = []
    if r.random() < 0.7:
        steps.append(backward(r))
        if r.random() < 0.2:
            steps.append(backward(r))
    if r.random() < 0.5:
        steps += [("update", r.randrange(3), halves(r, 2)), ("zero grad",)][: r.randint(1, 2)]
    for chance, step in [
        (0.07, ("sweep", ages(r))),
        (0.03, ("reset",)),
        (0.10, ("snapshot",)),
        (0.01, ("stop",)),
        (0.01, ("raise",)),
        (0.01, ("part", 1)),
    ]:
        if r.random() < chance:
            steps.append(step)
    if r.random() < 0.1:
        steps += [("record", r.randrange(3), *op(r, False)), backward(r)]
    if r.random() < 0.1:
        steps.append(anything(r, False, 0))  # between the segments
    return steps


# -- finding, shortening, showing ----------------------------------------------------------------------------


def failure(program, tally=None):
    """What is wrong with the tape in this program, or None."""
    player = Player(program, {} if tally is None else tally)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(replay_module, "SIGHTINGS", program.sightings)
            patch.setattr(exact_module, "SIGHTINGS", program.sightings)
            count_ways(patch, player.count)
            player.play()
    except Difference as difference:
        return str(difference)
    except Exception as error:
        return f"{player.step}\n  {error!r}"
    finally:
        with contextlib.suppress(tg.RecordingError):
            player.tape.abort()
    return None


def count_ways(patch, count):
    """Count which way a sweep takes: by rules, by programs one segment at a time or in loops, as the one before."""

    def counted(cls, method, what):
        original = getattr(cls, method)

        def call(self, *arguments):
            result = original(self, *arguments)
            if result:
                count(what)
            return result

        patch.setattr(cls, method, call)

    counted(replay_module.Replays, "run", "sweep by programs")
    counted(replay_module.Replays, "again", "sweep as before")
    counted(replay_module.Pass, "loop", "loop")
    counted(exact_module.Exact, "pull", "straight")


def shortened(program):
    """A shorter program that fails too: steps are left out one run at a time."""
    steps, run = list(program.steps), max(1, len(program.steps) // 2)
    while run:
        at = 0
        while at < len(steps):
            fewer = steps[:at] + steps[at + run :]
            if failure(with_steps(program, fewer)):
                steps = fewer
            else:
                at += run
        run //= 2
    return with_steps(program, steps)


def with_steps(program, steps):
    return Program(**{**vars(program), "steps": steps})


def check(seeds):
    """Play the programs of `seeds`. Returns how often what happened."""
    tally = {}
    for seed in seeds:
        program = write(seed)
        if failure(program, tally):
            short = shortened(program)
            pytest.fail(
                f"seed {seed}, {failure(short)}\nthe shortest program that shows it: play with failure(program)\n{short}",
                pytrace=False,
            )
    return tally


def test_the_history_gives_the_numbers_of_the_sliding_window_that_everybody_knows():
    """x_t = w x_{t-1}, loss x_t, w = 0.2, x_0 = 0.9, window 3: 0.9, 0.36, 0.108, and then as 0.108 w."""
    history, x, found = History([("sliding", 3, 1)], [[0.2]], "recorded", "pass"), ("constant", [0.9]), []
    history.inexact = True
    for _ in range(4):
        history.begin()
        x = ("value", history.run("multiply", [x, ("leaf", 0)])[0])
        history.stop()
        found.append(history.backward([x[1]], [None], [], None).gradients[0].sum[0])
    np.testing.assert_allclose(found, [0.9, 0.36, 0.108, 0.0216], rtol=1e-14)


def test_the_programs_go_everywhere():
    tally = check(range(300))
    for what, least in {
        "sweep": 700,
        "exact sweep": 500,
        "sweep to 1e-12": 150,
        "EvictedError": 150,
        "RecordingError": 150,
        "ArgumentError": 100,
        "ShapeError": 10,
        "abort": 80,
        "snapshot": 100,
        "warning": 10,
        "several passes": 10,
        "re-run": 100,
        "state at the edge": 100,
        "straight": 300,
        "sweep by programs": 250,
        "loop": 50,
        "sweep as before": 15,
    }.items():
        assert tally.get(what, 0) >= least, (what, tally)
    programs = [write(seed) for seed in range(300)]
    for kind in ("sliding", "chunked", "full", "burn-in", "randomized"):
        assert sum(any(s[0] == kind for s in p.schedules) for p in programs) >= 15
    for joint in JOINTS:
        assert sum(p.joint == joint for p in programs) >= 8


def test_a_loss_that_waits_for_another_part_has_the_adjoint_that_this_sweep_gives_it():
    """Value 0 was swept as a loss of its own by the first part, and still waits for the second."""
    program = Program(
        seed=None,
        schedules=[("sliding", 3, 1), ("burn-in", 2, 2)],
        weights="recorded",
        joint="half",
        guard=False,
        leaves=[[0.5], [0.5], [1.5, 2.0]],
        inexact=True,
        steps=[
            ("begin", "with"),
            ("op", "negative", ("leaf", 0)),
            ("backward", [0], [None], []),
            ("op", "negative", ("value", 0)),
            ("stop",),
            ("record", 1, "subtract", ("value", 2), ("value", 3)),
            ("backward", [0], [None], [2]),
            ("begin", "with"),
            ("op", "tanh", ("leaf", 2)),
            ("op", "sum", ("leaf", 1)),
            ("stop",),
            ("backward", [3], [None], []),
        ],
        compile="numpy",
        sightings=1,
    )
    assert failure(program) is None, failure(program)


def scalars(compile, schedules, steps):
    """A program on two scalars, compiled at first sight."""
    return Program(
        seed=None,
        schedules=schedules,
        weights="recorded",
        joint="pass",
        guard=False,
        leaves=[[0.5], [2.0], [1.5, 1.0]],
        inexact=False,
        steps=steps,
        compile=compile,
        sightings=1,
    )


def test_segments_that_were_swept_while_open_and_went_on_with_other_ops_share_no_straight_code():
    steps = []
    for op in [("square", ("value", 0)), ("multiply", ("value", 0), ("leaf", 1)), ("multiply", ("leaf", 1), ("value", 0))]:  # fmt: skip
        steps += [
            ("begin", "with"),
            ("op", "square", ("leaf", 0)),
            ("backward", [0], [None], []),
            ("op", *op),
        ]
        steps += [("stop",), ("backward", [0], [None], []), ("sweep", [])]
    program = scalars("exact", [("sliding", 3, 1)], steps)
    assert failure(program) is None, failure(program)


def test_what_a_part_leaves_of_a_segment_is_not_swept_by_the_code_of_the_whole():
    """At the second sweep value 1 stands where value 0 was at the first."""
    steps = [
        ("begin", "with"),
        ("op", "multiply", ("leaf", 0), ("leaf", 1)),
        ("part", 1),
        ("op", "square", ("leaf", 0)),
        ("stop",),
        ("backward", [1], [None], []),
        ("begin", "with"),
        ("op", "square", ("leaf", 1)),
        ("stop",),
        ("backward", [1], [None], []),
    ]
    program = scalars("exact", [("sliding", 1, 1), ("sliding", 3, 1)], steps)
    assert failure(program) is None, failure(program)


def test_what_entered_a_segment_is_its_own_where_the_window_sits_in_scattered_places():
    """A loss that waits keeps five segments, for which rings of three places are made longer while they are seated."""
    step = [("begin", "with"), ("op", "multiply", ("value", 0), ("leaf", 1)), ("op", "negative", ("value", 0)), ("stop",)]  # fmt: skip
    hand_in = [("backward", [0], [None], [])]
    steps = [*step, *hand_in, ("backward", [1], [None], []), *step * 5, *hand_in, *step, *hand_in]
    program = scalars("numpy", [("sliding", 3, 1)], steps)
    assert failure(program) is None, failure(program)


def test_what_follows_a_segment_that_was_dropped_is_linked_to_nothing():
    """A loss of segment 2 that waits for the part keeps segment 3 in its place, without entries."""
    step = [("begin", "with"), ("op", "multiply", ("value", 0), ("leaf", 1)), ("stop",)]
    steps = [*step * 3, ("backward", [1], [None], []), *step * 3, ("backward", [0], [None], [])]
    program = scalars("numpy", [("chunked", 3), ("chunked", 9)], steps)
    assert failure(program) is None, failure(program)


class ForgetsAllButThree(Schedule):
    """Sweeps at every step."""

    def due(self, index, swept):
        return True

    def forgets(self, index):
        return index - 3


def test_a_loop_of_segments_ends_where_one_was_dropped(monkeypatch):
    """Segment 2 is dropped when 3 has been linked to it; the loss of segment 1 waits for the part."""
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)
    found = []
    for mode in (False, "numpy"):
        w, x = tg.Parameter(np.full(3, 0.9)), tg.constant(np.ones(3))
        tape = tg.CapacitorTape(ForgetsAllButThree(), compile=mode)
        tape.capacitor(tg.Full())
        for t in range(8):
            with tape:
                x = tg.tanh(x * w)
                loss = tg.sum(x)
            sweep = tape.backward(loss) if t in (0, 7) else tape.backward(w, np.zeros(3))
        assert [bool(segment.entries) for segment in tape.segments] == [True, *[False] * 4, *[True] * 3]
        found.append((sweep.segments, sweep.gradients[w], np.array(sweep.joint_norms)))
    for came, expected in zip(*found, strict=True):
        np.testing.assert_allclose(came, expected, rtol=1e-12)


@pytest.mark.parametrize("chunk", range(TESTS))
def test_random_programs_do_what_a_history_that_forgets_nothing_says(chunk):
    check(range(chunk * PROGRAMS_PER_TEST, (chunk + 1) * PROGRAMS_PER_TEST))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(20))
def test_many_more_random_programs_do_what_a_history_that_forgets_nothing_says(chunk):
    check(range(10_000 + chunk * 1_000, 10_000 + (chunk + 1) * 1_000))
