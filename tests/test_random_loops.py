"""Random loops twice: swept by compiled programs, and swept by rules; both find the same.

The sweep by rules (`compile=False`) is the oracle: `test_programs.py` compares it with a history that forgets
nothing. A loop here has bodies made of arrays: products, slices, sums over axes, cells, losses. A body runs many
times, and now and then another one, so that most sweeps are replays.

A loop is data, and every part of a loop is a loop: `shortened` leaves out steps and ops while it still fails.
"""

import copy
import random
import warnings
from collections import deque
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim
from tapegrad.program import exact as exact_module
from tapegrad.program import replay as replay_module

LOOPS_PER_TEST, TESTS = 40, 12
DOUBLE, SINGLE = 1e-12, 2e-5  # of the largest element


# -- what the bodies are made of ------------------------------------------------------------------------


class Step:
    """One step of a loop: the values so far, newest last, and arrays that are the same in every run."""

    def __init__(self, run, t):
        self.run, self.t, self.values, self.at = run, t, list(run.states), 0

    def rng(self, *key):
        return np.random.default_rng([self.run.loop.seed, *key])

    def leaf(self, *shape, which=0):
        return self.run.leaf(shape, which)

    def noise(self, *shape):
        """An array of this op at this step."""
        return self.rng(7, self.t, self.at).standard_normal(shape)

    def whole(self, high, *shape):
        return self.rng(8, self.t, self.at).integers(0, high, shape)


def fit(a, shape):
    """`a`, or its mean where it does not broadcast to `shape`."""
    try:
        return a if np.broadcast_shapes(a.shape, shape) == shape else tg.mean(a)
    except ValueError:
        return tg.mean(a)


def small(a):
    return tg.tanh(a)


def rows(a):
    """`a` as a matrix."""
    if a.ndim == 2:
        return a
    return a.reshape(1, -1) if a.ndim < 2 else a.reshape(a.shape[0], -1)


def pair(f):
    """An op of two values, the second fitted to the first."""
    return lambda step, a, b, k: f(a, fit(b, a.shape))


def swapped(f):
    return lambda step, a, b, k: f(fit(b, a.shape), a)


def unary(f):
    return lambda step, a, b, k: f(a)


def left_product(step, a, b, k):
    m = rows(a)
    y = step.leaf(3, m.shape[1], which=k % 2) @ m.T
    return y.T if k % 3 else y


def joined(step, a, b, k):
    a, b = rows(a), rows(b)
    b = b if b.shape[0] == a.shape[0] else tg.broadcast_to(tg.mean(b), a.shape)
    return tg.concat([a, b, a][: 2 + k % 2], axis=1)


def gates(step, a, b, k):
    """Four slices of one product, as in an LSTM."""
    m = rows(a)
    z = m @ step.leaf(m.shape[1], 8) + step.leaf(8, which=k % 2)
    i, f, g, o = (z[:, 2 * n : 2 * n + 2] for n in range(4)) if k % 2 else tg.split(z, 4, axis=1)
    c = tg.sigmoid(f) * fit(b, f.shape) + tg.sigmoid(i) * tg.tanh(g)
    return tg.sigmoid(o) * tg.tanh(c)


def cut(step, a, b, k):
    if a.ndim == 0:
        return -a
    return (
        [a[..., :1], a[..., ::2], a[0], a[-1:], a[..., None, 0], a[..., ::-1], a[..., 1:]][k % 7]
        if a.shape[-1] > 1
        else a[0]
    )


def overlapping(step, a, b, k):
    """Two slices that share elements."""
    if a.ndim == 0 or a.shape[-1] < 3:
        return a * 2.0
    return a[..., :-1] * a[..., 1:] - a[..., :-1]


def reduced(step, a, b, k):
    f = [tg.sum, tg.mean, tg.max, tg.logsumexp, tg.min][k % 5]
    axis = [None, 0, -1, (0, -1) if a.ndim > 1 else None][k % 4] if a.ndim else None
    return f(a, axis=axis, keepdims=bool(k % 3))


def biased(step, a, b, k):
    n = a.shape[-1] if a.ndim else 1
    shapes = [(), (1,), a.shape]
    if a.ndim:
        shapes.append((n,))
    if a.ndim == 2:
        shapes += [(1, n), (a.shape[0], 1)]
    shape = shapes[k % len(shapes)]
    return a + step.leaf(*shape, which=k % 2) if k % 3 else step.leaf(*shape) * a


def embedded(step, a, b, k):
    count = a.shape[0] if a.ndim else 2
    code = step.whole(5, count)
    y = tg.take(step.leaf(5, 3), code if k % 3 else code.tolist())
    return y + fit(a, y.shape)


def taken(step, a, b, k):
    if a.ndim == 0:
        return tg.exp(small(a))
    index = step.whole(a.shape[-1], 3)
    return tg.take(a, index, axis=-1) if k % 2 else a[..., index]


def chosen(step, a, b, k):
    b = fit(b, a.shape)
    if k % 3 == 0:
        return tg.where(a.value > 0.1, a, b)
    if k % 3 == 1:
        return tg.where(step.noise(*a.shape) > 0, a, 0.0)
    return tg.where(step.noise(*a.shape) > 0, b, a)


def stacked(step, a, b, k):
    y = tg.stack([a, tg.broadcast_to(fit(b, a.shape), a.shape)], axis=k % 2 if a.ndim else 0)
    return [tg.sum(y, axis=0), y, tg.unstack(y)[0]][k % 3] if y.ndim < 3 or k % 3 != 1 else tg.mean(y, axis=1)


def fed(step, a, b, k):
    """An input, in one of the forms in which arrays come."""
    shape = a.shape or (2,)
    x = step.noise(*shape[::-1]).T if k % 5 == 0 else step.noise(*shape)
    if k % 5 == 1:
        x = step.noise(2 * shape[0], *shape[1:])[::2]
    if k % 5 == 2:
        x = step.whole(3, *shape)
    if k % 5 == 3:
        x = x.astype(np.float32) if step.run.loop.single else np.broadcast_to(x[:1], x.shape)
    return a * x if k % 2 else x + a


def number(step, a, b, k):
    """A Python number: the same in each step, or a changing one."""
    changing = 0.5 + 0.25 * (step.t % 3)
    return [
        a * 0.5,
        1.5 - a,
        a / 3,
        changing * a,
        a + changing,
        tg.square(small(a)),
        small(a) ** 3,
        -a * 0.0,
    ][k % 8]


def by_cell(step, a, b, k):
    x = rows(a)
    h = tg.broadcast_to(fit(b, (x.shape[0], 2)), (x.shape[0], 2))
    cell = step.run.cell([nn.RNNCell, nn.GRUCell, nn.LSTMCell][k % 3], x.shape[1])
    if k % 3 == 2:
        out, (_, c) = cell(x, (h, tg.tanh(h)))
        return out if k % 2 else c
    return cell(x, h)[0]


def cross_entropy(step, a, b, k):
    logits = rows(a)
    return tg.softmax_cross_entropy(logits, step.whole(logits.shape[1], logits.shape[0]))


def fresh(step, a, b, k):
    """A leaf of this step alone."""
    leaf = tg.Variable(step.noise(*a.shape))
    step.run.held.append(leaf)
    return a * leaf if k % 2 else leaf


def assigned(step, a, b, k):
    """A leaf that gets another value between two reads."""
    leaf = step.leaf(*a.shape[-1:])
    y = a * leaf
    leaf.value = leaf.value * 0.875
    return y + leaf * a if k % 2 else y


def shared(step, a, b, k):
    """One weight twice."""
    m = rows(a)
    n = m.shape[1]
    w = step.leaf(n, n)
    return tg.tanh(m @ w) @ (w.T if k % 2 else w)


def remembered(step, a, b, k):
    """A value of an older segment."""
    old = step.run.memory
    return a + fit(old[-1 - k % len(old)], a.shape) if old else a


def scattered(step, a, b, k):
    if a.ndim == 0:
        return a
    return tg.put_at(a, index=(..., slice(1, 1 + a.shape[-1])), shape=(*a.shape[:-1], a.shape[-1] + 2))


OPS = {
    "matmul": lambda s, a, b, k: rows(a) @ s.leaf(rows(a).shape[1], 2 + k % 3, which=k % 2),
    "left product": left_product,
    "product": lambda s, a, b, k: rows(a) @ tg.broadcast_to(fit(rows(b), rows(a).shape), rows(a).shape).T,
    "vector product": lambda s, a, b, k: a.reshape(-1) @ s.leaf(a.size, 3, which=k % 2),
    "inner": lambda s, a, b, k: a.reshape(-1) @ tg.broadcast_to(fit(b, a.shape), a.shape).reshape(-1),
    "gates": gates, "cell": by_cell, "shared": shared, "joined": joined, "cut": cut, "overlapping": overlapping,
    "add": pair(lambda a, b: a + b), "subtract": pair(lambda a, b: a - b), "minus": swapped(lambda a, b: a - b),
    "multiply": pair(lambda a, b: small(a) * small(b)), "divide": pair(lambda a, b: a / (1.0 + small(b) ** 2)),
    "maximum": pair(tg.maximum), "minimum": swapped(tg.minimum), "where": chosen, "stacked": stacked,
    "square": unary(lambda a: small(a) * small(a)), "tanh": unary(tg.tanh), "sigmoid": unary(tg.sigmoid), "relu": unary(tg.relu),
    "softplus": unary(tg.softplus), "exp": unary(lambda a: tg.exp(small(a))), "sin": unary(tg.sin), "absolute": unary(tg.absolute),
    "sqrt": unary(lambda a: tg.sqrt(1.0 + small(a) ** 2)), "clip": unary(lambda a: tg.clip(a, -0.5, 0.5)),
    "softmax": unary(lambda a: tg.softmax(a) if a.ndim else a), "log softmax": unary(lambda a: tg.log_softmax(a) if a.ndim else a),
    "transposed": unary(lambda a: a.T), "column": unary(lambda a: a.reshape(-1, 1)), "flat": unary(lambda a: a.reshape(-1)),
    "stopped": unary(tg.stop_gradient), "power": pair(lambda a, b: (1.5 + small(a)) ** small(b)),
    "reduced": reduced, "biased": biased, "embedded": embedded, "taken": taken, "fed": fed, "number": number,
    "cross entropy": cross_entropy, "fresh": fresh, "assigned": assigned, "remembered": remembered, "scattered": scattered,
    "single": unary(lambda a: a.astype(np.float32) * 1.5), "double": unary(lambda a: a.astype(np.float64)),
}  # fmt: skip
COMMON = ["matmul", "gates", "add", "multiply", "tanh", "cell", "biased", "fed", "sigmoid", "cut"]
RARE = {"fresh", "assigned", "remembered"}


# -- loops ----------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """Bodies as lists of (op, age of a, age of b, k), and steps: which body, and what happens around it."""

    seed: int
    schedule: tuple
    weights: str = "recorded"
    joint: str = "pass"
    states: list = field(default_factory=list)  # shapes
    bodies: list = field(default_factory=list)
    ends: list = field(
        default_factory=list
    )  # by body, by state: the age of its next value, or None: it stays
    steps: list = field(default_factory=list)
    optimizer: str = "none"
    read: str = "now"
    single: bool = False
    sightings: int = 1

    def __str__(self):
        return "Loop(\n" + "".join(f"    {name}={value!r},\n" for name, value in vars(self).items()) + ")"


SCHEDULES = {
    "sliding": lambda *a: tg.Sliding(*a),
    "chunked": lambda *a: tg.Chunked(*a),
    "full": lambda *a: tg.Full(),
    "burn-in": lambda *a: tg.BurnIn(*a),
    "randomized": lambda *a: tg.Randomized(*a, seed=3),
    "tolerance": lambda *a: tg.Tolerance(*a),
}


def clip_to_one(pending):
    return {slot: np.clip(ct, -0.5, 0.5) for slot, ct in pending.items()}


def only_the_largest(pending):
    return (
        dict([max(sorted(pending.items()), key=lambda item: np.abs(item[1]).max())]) if pending else pending
    )


JOINTS = {"pass": None, "half": 0.5, "drop": 0, "clip": clip_to_one, "largest": only_the_largest}


TWO = (("end", 1, None), ("sum", 2, 0.5))


def write(seed):
    """The loop of this seed."""
    r = random.Random(seed)
    window = r.choice([1, 2, 3, 4, 6, 9])
    kind = r.choice(["sliding"] * 8 + ["chunked", "full", "burn-in", "randomized", "tolerance"])
    schedule = {
        "sliding": (window, 1 if r.random() < 0.7 else r.randint(1, window)), "chunked": (window,), "full": (),
        "burn-in": (r.randint(0, 2), r.randint(1, 3)), "randomized": (3.0, 4.0), "tolerance": (r.choice([0.3, 1e-3]), window),
    }[kind]  # fmt: skip
    states = [
        r.choice([(2, 3), (2, 3), (1, 4), (3,), (), (3, 2), (1, 3)])
        for _ in range(r.choice([1, 1, 1, 2, 2, 3]))
    ]
    if r.random() < 0.3:
        states = states[:1] * len(states)
    single = r.random() < 0.15
    bodies, ends = [], []
    for _ in range(r.choice([1, 1, 1, 2, 2, 3])):
        if bodies and r.random() < 0.5:  # nearly the same
            body = [op if r.random() < 0.8 else an_op(r, single) for op in bodies[0]]
        else:
            body = [an_op(r, single) for _ in range(r.choice([1, 2, 3, 4, 5, 7]))]
        bodies.append(body)
        ends.append([None if r.random() < 0.12 else int(r.expovariate(0.5)) for _ in states])
    plan = {
        "weights": r.choice(["recorded"] * 5 + ["current"] * 2 + ["replay"]),
        "joint": r.choice(["pass"] * 8 + ["half", "drop", "clip", "largest"]),
        "optimizer": r.choice(["none", "none", "sgd", "assign", "assign"]),
        "read": r.choice(["now", "now", "next", "end", "norms", "grad"]),
        "sightings": r.choice([1, 1, 2]),
    }
    steps = [a_step(r, len(bodies), kind) for _ in range(r.choice([6, 10, 16, 24]))]
    swaps = r.random() < 0.2
    loss = r.choice(
        [(("end", 1, None),), (("sum", 0, None),), TWO, (("square", 1, None),), (("value", 0, 1.0),)]
    )
    for i in range(len(steps)):  # most steps are alike
        if r.random() < 0.9:
            event = ("swap",) if swaps and r.random() < 0.3 else ()
            steps[i] = (r.choice([0, 0, 0, 0, 1]) % len(bodies), loss if r.random() < 0.95 else (), event)
    loop = Loop(
        seed, (kind, *schedule), states=states, bodies=bodies, ends=ends, steps=steps, single=single, **plan
    )
    return steady(r, loop) if r.random() < 0.3 else loop


def steady(r, loop):
    """The loop with one body and one loss at each step; what happens beside it is rare."""
    loss = r.choice([("end", 1, None), ("sum", r.randrange(3), None), ("square", r.randrange(3), None)])
    weights = loop.weights if loop.weights != "replay" else "recorded"
    events = [
        ("swap",),
        ("abort",),
        ("read grad",),
        ("half grad",),
        ("sweep",),
        ("gap",),
        ("keep",),
        ("reset",),
    ]
    rare = r.choice([0.0, 0.0, 0.1])
    steps = [
        (0, (loss,), r.choice(events) if r.random() < rare else ()) for _ in range(r.choice([12, 20, 30]))
    ]
    ends = [[int(r.expovariate(0.5)) for _ in loop.states]]
    schedule = ("sliding", r.choice([2, 3, 4, 5, 7]), 1)
    bodies = [[op if op[0] != "fresh" else ("fed", *op[1:]) for op in loop.bodies[0]]]
    joint = "pass" if r.random() < 0.9 else loop.joint
    return replace(
        loop, schedule=schedule, weights=weights, joint=joint, steps=steps, bodies=bodies, ends=ends
    )


def an_op(r, single):
    while True:
        name = r.choice(COMMON) if r.random() < 0.35 else r.choice(list(OPS))
        if name in ("single", "double") and not single:
            continue
        if name not in RARE or r.random() < 0.4:
            return (name, int(r.expovariate(0.9)), int(r.expovariate(0.5)), r.randrange(60))


LOSSES = ["sum", "end", "square", "leaf", "value", "state"]
EVENTS = [
    "abort",
    "raise",
    "reset",
    "update",
    "sweep",
    "keep",
    "inside",
    "zero",
    "half grad",
    "read grad",
    "pickle",
    "deepcopy",
    "gap",
    "twice",
    "swap",
]


def a_step(r, bodies, kind):
    losses = tuple(
        (r.choice(LOSSES), r.randrange(4), r.choice([None, None, 0.5, -2.0]))
        for _ in range(r.choice([0, 1, 1, 1, 2, 3]))
    )
    events = tuple(r.choice(EVENTS) for _ in range(r.choice([0, 1, 1, 2])))
    return (r.randrange(bodies), losses, events)


# -- running --------------------------------------------------------------------------------------------


class Stop(Exception):
    """Leaves a segment in the middle."""


class Run:
    """One run of a loop with one way of sweeping. `seen`: what there was to see, in order."""

    def __init__(self, loop, mode):
        self.loop, self.mode = loop, mode
        kind, *numbers = loop.schedule
        self.tape = tg.CapacitorTape(
            SCHEDULES[kind](*numbers), weights=loop.weights, joint=JOINTS[loop.joint], compile=mode
        )
        self.leaves, self.cells, self.held = {}, {}, []
        self.memory, self.states = deque(maxlen=3), self.initial()
        self.seen, self.late, self.kept = [], [], []
        self.optimizer = None

    def initial(self):
        rng = np.random.default_rng([self.loop.seed, 1])
        return [tg.constant(rng.standard_normal(shape)) for shape in self.loop.states]

    def leaf(self, shape, which):
        if (shape, which) not in self.leaves:
            rng = np.random.default_rng([self.loop.seed, 2, which, *shape])
            value = rng.standard_normal(shape) * 0.6
            if self.loop.single and which:
                value = value.astype(np.float32)
            self.leaves[shape, which] = tg.Parameter(value, name=f"{shape}, {which}")
        return self.leaves[shape, which]

    def cell(self, kind, width):
        if (kind, width) not in self.cells:
            self.cells[kind, width] = cell = kind(
                width, 2, dtype=np.float64, rng=np.random.default_rng(self.loop.seed)
            )
            for name, p in cell.named_parameters():
                self.leaves[f"{kind.__name__}.{name}", width] = p
        return self.cells[kind, width]

    def see(self, what, value):
        self.seen.append((f"step {self.t}: {what}", copy.deepcopy(value)))

    def keep(self, array):
        """An array that was given away: nobody may write to it any more."""
        if isinstance(array, np.ndarray):
            self.kept.append((array, array.copy()))
        return array

    # one step

    def go(self):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with np.errstate(all="ignore"):
                for t, step in enumerate(self.loop.steps):
                    self.t = t
                    self.step(t, *step)
                self.look(self.tape.sweep())
                self.finish()
        self.seen.append(("warnings", sorted(w.category.__name__ for w in caught)))
        return self.seen

    def step(self, t, which, losses, events):
        which = which % len(self.loop.bodies) if self.loop.bodies else 0
        roots, seeds, sweep = [], [], None
        try:
            with self.tape:
                step = Step(self, t)
                values = self.body(step, which, events)
                roots, seeds = self.losses(step, values, losses)
                if "inside" in events and roots:
                    sweep = self.hand_in(roots[:1], seeds[:1], ())
                    roots, seeds = roots[1:], seeds[1:]
                if "abort" in events:
                    raise Stop
        except Stop:
            self.see("aborted", len(self.tape.segments))
            return
        except tg.EvictedError as error:
            self.see("evicted", str(error).split(":")[0])
            return
        self.look(sweep)
        self.states = self.following(values, which)
        self.memory.append(values[-1])
        for v in values:
            self.keep(v.value)
        if roots:
            kept = values[-3:-1] if "keep" in events else ()
            self.look(self.hand_in(roots, seeds, kept))
        self.after(events)
        if self.loop.read == "next":
            self.read_late()

    def body(self, step, which, events):
        body = self.loop.bodies[which]
        for at, (name, a, b, k) in enumerate(body):
            step.at = at
            n = len(step.values)
            made = OPS[name](step, step.values[n - 1 - a % n], step.values[n - 1 - b % n], k)
            if not isinstance(made, tg.Variable):
                made = tg.constant(made)
            step.values.append(made)
            if "raise" in events and at == len(body) // 2:
                raise Stop
        step.values += self.ended(step.values, which)
        return step.values

    def ended(self, values, which):
        """The states' next values, bounded and of their shapes; for one that stays, nothing."""
        made = []
        for shape, age in zip(self.loop.states, self.loop.ends[which], strict=True):
            if age is not None:
                v = values[len(values) - 1 - age % len(values)]
                made.append(tg.broadcast_to(tg.tanh(fit(v, shape)), shape).astype(np.float64))
        return made

    def following(self, values, which):
        ends = self.loop.ends[which]
        new = iter(values[len(values) - sum(age is not None for age in ends) :])
        return [old if age is None else next(new) for old, age in zip(self.states, ends, strict=True)]

    def losses(self, step, values, losses):
        roots, seeds = [], []
        for kind, age, seed in losses:
            v = values[len(values) - 1 - age % len(values)]
            if kind == "leaf":
                v = step.leaf(2, which=9)
                kind = "value"
            if kind == "state":
                v = step.run.states[age % len(step.run.states)]
            if kind in ("sum", "end", "square"):
                v = tg.sum(tg.square(v)) if kind == "square" else tg.sum(v)
                given = seed
            else:
                given = step.noise(*v.shape) if seed is None else np.full(v.shape, seed)
            if v._slot and not any(v is r for r in roots):
                roots.append(v)
                seeds.append(given)
        return roots, seeds

    def hand_in(self, roots, seeds, keep):
        if len(roots) == 1:
            roots, seeds = roots[0], seeds[0]
        elif all(s is None for s in seeds):
            seeds = None
        try:
            sweep = self.tape.backward(roots, seeds, keep=keep)
        except (tg.EvictedError, tg.ArgumentError, tg.RecordingError) as error:
            self.see("refused", type(error).__name__)
            return None
        if sweep is not None:
            sweep.asked = (roots if isinstance(roots, list) else [roots], list(keep))
        return sweep

    # what happens between the steps

    def after(self, events):
        for event in events:
            if event == "reset":
                self.tape.reset()
                self.states = self.initial()
                self.memory.clear()
            elif event == "update":
                self.assign(0.9)
            elif event == "sweep":
                self.look(self.tape.sweep())
            elif event == "zero":
                for p in self.leaves.values():
                    p.grad = None
            elif event == "half grad":
                for p in self.leaves.values():
                    if p.grad is not None:
                        p.grad[...] *= 0.5
            elif event in ("read grad", "pickle", "deepcopy"):
                for name, p in self.leaves.items():
                    p = copy.deepcopy(p) if event == "deepcopy" else p
                    self.see(f"{event} {name}", p.grad)
            elif event == "swap" and len(set(self.loop.states)) == 1:
                self.states = self.states[::-1]
            elif event == "gap":
                self.gap()
            elif event == "twice" and self.memory:
                self.look(self.hand_in([self.memory[-1]], [np.ones(self.memory[-1].shape)], ()))

    def gap(self):
        """A segment without anything in it."""
        self.tape.begin()
        try:
            self.tape.stop()
        except tg.EvictedError as error:
            self.see("evicted", str(error).split(":")[0])

    def assign(self, factor):
        for p in self.leaves.values():
            p.value = p.value * factor + 0.01

    def learn(self):
        kind = self.loop.optimizer
        if kind == "assign":
            self.assign(0.99)
        elif kind == "sgd" and self.leaves:
            params = list(self.leaves.values())
            if self.optimizer is None or len(self.optimizer.params) != len(params):
                self.optimizer = optim.SGD(params, 1e-4)
            if all(p.grad is None or np.isfinite(p.grad).all() for p in params):
                self.optimizer.step()
            self.optimizer.zero_grad()

    # looking

    def look(self, sweep):
        if sweep is None:
            return
        self.see("swept", (sweep.segments, sweep.losses, sweep.saved))
        if self.loop.read == "norms":
            self.see("joint norms", np.array(sweep.joint_norms))
        if self.loop.read == "now":
            self.read(sweep)
        elif self.loop.read in ("next", "end"):
            self.late.append((self.t, sweep, list(self.states), list(self.leaves.items())))
        if self.loop.read == "grad":
            for name, p in self.leaves.items():
                self.see(f".grad of {name}", p.grad)
        self.learn()

    def read(self, sweep, states=None, leaves=None, late=False):
        self.see("swept", (sweep.segments, sweep.losses, sweep.saved))
        for name, p in leaves or self.leaves.items():
            self.see(f"gradient of {name}", (p in sweep.gradients, self.keep(sweep.gradients[p])))
        edge = sweep.left_edge
        self.see("left edge", np.sort([float(np.abs(ct).sum()) for ct in edge.values()]))
        self.see("joint norms", np.array(sweep.joint_norms))
        for i, v in enumerate([*states, *self.held] if states else [*self.states, *self.held]):
            if v in edge:
                self.see(f"left edge {i}", self.keep(edge[v]))
        roots, kept = getattr(sweep, "asked", ((), ()))
        for i, v in enumerate([*roots, *kept]):
            self.see(f"root {i}", sweep[v] if v._slot else None)
        for leaf in self.held[-5:]:
            self.see("fresh leaf", (sweep.gradients[leaf], leaf.grad))
        if not late:
            for segment in self.tape.segments:
                cts = {slot - segment.first: ct for slot, ct in segment.adjoints.by_slot.items()}
                self.see(
                    f"adjoints of segment {segment.index}",
                    np.sort([float(np.abs(ct).sum()) for ct in cts.values()]),
                )
                for i, v in enumerate([*self.states, *self.memory, *roots]):
                    if v in segment.adjoints:
                        self.see(f"adjoint {i} in segment {segment.index}", self.keep(segment.adjoints[v]))

    def read_late(self):
        late, self.late = self.late[:-1], self.late[-1:]
        for t, sweep, states, leaves in late:
            self.see(f"late, of step {t}", 0)
            self.read(sweep, states, leaves, late=True)

    def finish(self):
        for t, sweep, states, leaves in self.late:
            self.see(f"late, of step {t}", 0)
            self.read(sweep, states, leaves, late=True)
        for name, p in self.leaves.items():
            self.see(f".grad of {name}", p.grad)
            self.see(f"value of {name}", p.value)
        for array, then in self.kept:
            if not np.array_equal(array, then, equal_nan=True):
                raise AssertionError(f"an array that was given away was written to: {array} was {then}")


# -- comparing ------------------------------------------------------------------------------------------


def difference(loop, mode="numpy"):
    """What a run by programs finds that a run by rules does not, or None."""
    replay_module.SIGHTINGS = exact_module.SIGHTINGS = loop.sightings
    right = Run(loop, False).go()
    try:
        came = Run(loop, mode).go()
    except Exception as error:
        if isinstance(error, AssertionError):
            return f"AssertionError: {error}"
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})"
    finally:
        replay_module.SIGHTINGS = exact_module.SIGHTINGS = 2
    for (what, a), (other, b) in zip(came, right, strict=False):
        if what != other:
            return f"compiled: {what}, {a}\n  by rules: {other}, {b}"
        if not same(a, b, mode == "exact", loop.single):
            return f"{what}\n  compiled: {a}\n  by rules: {b}"
    if len(came) != len(right):
        return f"{len(came)} things came, and {len(right)} were expected"
    return None


def same(a, b, exactly, single):
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(same(p, q, exactly, single) for p, q in zip(a, b, strict=True))
    if not isinstance(b, (np.ndarray, np.floating)):
        return a == b and type(a) is type(b)
    if np.shape(a) != np.shape(b) or a.dtype != b.dtype:
        return False
    if exactly:
        return np.array_equal(a, b, equal_nan=True)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite):
        return False
    scale = np.abs(b[finite]).max(initial=0.0)
    slack = SINGLE if single or b.dtype == np.float32 else DOUBLE
    return bool(np.all(np.abs(a[finite] - b[finite]) <= slack * scale + slack))


# -- shortening ---------------------------------------------------------------------------------------------


def shortened(loop, mode):
    """A smaller loop that fails too: without steps, ops, losses, events, and with plainer settings."""

    def fails(smaller):
        return difference(smaller, mode) is not None

    run = max(1, len(loop.steps) // 2)
    while run:
        at = 0
        while at < len(loop.steps):
            fewer = replace(loop, steps=loop.steps[:at] + loop.steps[at + run :])
            loop, at = (fewer, at) if fails(fewer) else (loop, at + run)
        run //= 2
    for which in range(len(loop.bodies)):
        at = 0
        while at < len(loop.bodies[which]):
            bodies = list(loop.bodies)
            bodies[which] = bodies[which][:at] + bodies[which][at + 1 :]
            fewer = replace(loop, bodies=bodies)
            loop, at = (fewer, at) if fails(fewer) else (loop, at + 1)
    for i in range(len(loop.steps)):
        for part in (1, 2):  # losses, events
            for j in reversed(range(len(loop.steps[i][part]))):
                step = list(loop.steps[i])
                step[part] = step[part][:j] + step[part][j + 1 :]
                fewer = replace(loop, steps=[*loop.steps[:i], tuple(step), *loop.steps[i + 1 :]])
                loop = fewer if fails(fewer) else loop
    for name in ("weights", "joint", "optimizer", "read", "single", "sightings"):
        plainer = replace(loop, **{name: getattr(PLAIN, name)})
        loop = plainer if fails(plainer) else loop
    return loop


PLAIN = Loop(0, ("sliding", 3, 1))


def check(seeds, mode):
    """Run the loops of `seeds` both ways."""
    for seed in seeds:
        loop = write(seed)
        if difference(loop, mode):
            short = shortened(loop, mode)
            pytest.fail(
                f"seed {seed}, {difference(short, mode)}\nthe shortest loop that shows it: difference(loop, {mode!r})\n{short}",
                pytrace=False,
            )


def counted(monkeypatch):
    """How often which way was taken, from here on."""
    tally = {}

    def count(cls, method):
        original = getattr(cls, method)

        def call(self, *arguments):
            result = original(self, *arguments)
            key = method, bool(result)
            tally[key] = tally.get(key, 0) + 1
            return result

        monkeypatch.setattr(cls, method, call)

    count(replay_module.Replays, "run")
    count(replay_module.Replays, "again")
    count(replay_module.Pass, "loop")
    count(exact_module.Exact, "pull")
    return tally


# -- tests --------------------------------------------------------------------------------------------------


def test_a_root_from_before_the_window_has_the_adjoint_that_arrives_there():
    """The state of a step that burn-in passed over is handed in beside a loss that depends on it."""
    loop = Loop(
        seed=0,
        schedule=("burn-in", 2, 1),
        states=[(1, 3)],
        bodies=[[("biased", 0, 0, 2)]],
        ends=[[0]],
        steps=[(0, (), ()), (0, (), ()), (0, (("state", 0, None), ("sum", 0, None)), ())],
        sightings=1,
    )
    assert difference(loop) is None, difference(loop)


@pytest.mark.parametrize("chunk", range(TESTS))
def test_random_loops_swept_by_programs_find_what_the_rules_find(chunk):
    check(range(chunk * LOOPS_PER_TEST, (chunk + 1) * LOOPS_PER_TEST), "numpy")


@pytest.mark.parametrize("chunk", range(2))
def test_random_loops_swept_by_straight_code_find_it_bit_for_bit(chunk):
    check(range(1000 + chunk * LOOPS_PER_TEST, 1000 + (chunk + 1) * LOOPS_PER_TEST), "exact")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_random_loops_swept_by_numba_find_what_the_rules_find(chunk):
    """Slow where Numba's cache is empty: about a second for each program."""
    pytest.importorskip("numba")
    check(range(2000 + chunk * 10, 2000 + (chunk + 1) * 10), "numba")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(40))
def test_many_more_random_loops(chunk):
    check(range(10_000 + chunk * 500, 10_000 + (chunk + 1) * 500), "numpy")
    check(range(50_000 + chunk * 100, 50_000 + (chunk + 1) * 100), "exact")


def test_the_random_loops_go_every_way(monkeypatch):
    tally = counted(monkeypatch)
    seeds = range(2000, 2100)
    check(seeds, "numpy")
    assert tally["run", True] > 120 and tally["run", False] > 20, tally
    assert tally["loop", True] > 25, tally
    assert tally["again", True] > 40, tally
    check(seeds, "exact")
    assert tally["pull", True] > 300, tally
    loops = [write(seed) for seed in range(600)]
    ops = [name for loop in loops for body in loop.bodies for name, *_ in body]
    assert set(ops) == set(OPS) and min(ops.count(name) for name in OPS) >= 2
    events = [event for loop in loops for _, _, events in loop.steps for event in events]
    assert set(events) == set(EVENTS)
    for name, values in (("weights", {"recorded", "current", "replay"}), ("joint", set(JOINTS))):
        assert {getattr(loop, name) for loop in loops} == values
    assert {loop.schedule[0] for loop in loops} == set(SCHEDULES)
