"""Random loops twice: captured on the stand-in for CuPy, and as they are on the host; both find the same.

A loop is drawn from a seed: ops, states, schedules, optimizers, what a step returns, and what happens between steps. Everything
that it computes is compared, step by step: a captured loop may be refused, but it may not give another number.
"""

import contextlib
import random
import warnings

import numpy as np
import pytest

import tapegrad as tg
import test_capture

cupy, on_host = test_capture.cupy, test_capture.on_host
LOOPS_PER_TEST, TESTS = 10, 6
F32 = np.float32
CLOSE = 1e-10  # of numbers around 1
SIZE = 4  # of a value's last axis


# -- what the bodies are made of: functions of the run, two values (batch, SIZE), a number that picks, and the step's inputs ------


def by_cell(run, a, b, k, given):
    cell = run.cell(("lstm", "gru", "rnn")[k % 3])
    if k % 3:
        return cell(a, b)[0]
    out, (_, c) = cell(a, (b, tg.tanh(b)))
    return out if k % 2 else c


def gates(run, a, b, k, given):
    z = tg.concat([a, b], axis=1) @ run.leaf(2 * SIZE, 4 * SIZE)
    i, f, g, o = tg.split(z, 4, axis=1) if k % 2 else (z[:, n * SIZE : (n + 1) * SIZE] for n in range(4))
    return tg.sigmoid(o) * tg.tanh(tg.sigmoid(f) * b + tg.sigmoid(i) * tg.tanh(g))


def taken(run, a, b, k, given):
    """Rows of a table by the step's integers, or elements by integers of the host."""
    if k % 3 == 0:
        return a + tg.take(run.leaf(5, SIZE), given["codes"], axis=0)
    order = [[2, 0, 1, 3], [1, 1, 0, 2], [3, 2, 1, 0]][k % 3]
    return a[:, order] if k % 2 else a[..., ::-1]


def chosen(run, a, b, k, given):
    mask = given["mask"] if k % 2 else (a.value > 0.1 if k % 3 else b.value < a.value)
    return tg.where(mask, a, 0.0 if k % 5 == 0 else b)


def viewed(run, a, b, k, given):
    batch = a.shape[0]
    return [
        tg.transpose(tg.reshape(a, (SIZE, batch))), tg.concat([a, b], axis=0)[batch:], tg.stack([a, b])[k % 2], a.T.T,
        tg.concat([a[:, 1:], b[:, :1]], axis=1), tg.broadcast_to(a[:, :1], a.shape) * b, tg.reshape(a.T, (-1,))[::-1].reshape(a.shape),
    ][k % 7]  # fmt: skip


def reduced(run, a, b, k, given):
    f = [tg.sum, tg.mean, tg.max, tg.logsumexp][k % 4]
    axis = [None, 0, 1, -1][k % 4 if k % 3 else 1]
    return b * tg.tanh(f(a, axis=axis, keepdims=True) if axis is not None else f(a))


def fed(run, a, b, k, given):
    x = given["x"]
    y = [
        x @ run.leaf(3, SIZE),
        x[:, :1] * a,
        tg.tanh(x.sum() * b) if k % 2 else x[:, ::-1] @ run.leaf(3, SIZE),
    ][k % 3]
    return a + y if k % 2 else tg.tanh(y + 0.5 * b)


def by_leaf(run, a, b, k, given):
    shape = [(SIZE,), (), (1, SIZE), (SIZE, 1)][k % 4]
    leaf = run.leaf(*shape) if k % 4 < 3 else run.leaf(*shape).T
    return a * leaf if k % 3 else a + leaf


def constants(run, a, b, k, given):
    """What is made in the step: ranges, zeros, numbers, an array from before the loop."""
    xp = given["x"] if k % 2 else a.value
    made = [np.ones_like(xp[:, :1]), np.zeros_like(a.value), run.table, np.linspace(0.0, 1.0, SIZE)][k % 3]
    return a * 0.5 + made if k % 5 else (a + made) * 1.5 - made


def penalised(run, a, b, k, given):
    """The gradient of something inside, which is differentiated in turn."""
    with tg.Tape() as inner:
        inside = a + 0.0 * run.leaf(SIZE)  # recorded, whatever `a` is
        y = tg.sum(tg.square(tg.tanh(inside * run.leaf(SIZE))))
    return b + 0.1 * inner.backward(y, keep=[inside], record=True)[inside]


def shared(run, a, b, k, given):
    w = run.leaf(SIZE, SIZE)
    return tg.tanh(tg.tanh(a @ w) @ (w.T if k % 2 else w))


def simple(f):
    return lambda run, a, b, k, given: f(a, b)


OPS = {
    "cell": by_cell, "gates": gates, "taken": taken, "chosen": chosen, "viewed": viewed, "reduced": reduced, "fed": fed, "leaf": by_leaf,
    "constants": constants, "penalised": penalised, "shared": shared,
    "product": lambda run, a, b, k, given: a @ run.leaf(SIZE, SIZE, which=k % 2), "sum": simple(lambda a, b: a + b),
    "times": simple(lambda a, b: tg.tanh(a) * b), "tanh": simple(lambda a, b: tg.tanh(a)), "sigmoid": simple(lambda a, b: tg.sigmoid(a - b)),
    "softmax": simple(lambda a, b: tg.softmax(a)), "maximum": simple(tg.maximum), "square": simple(lambda a, b: tg.square(tg.tanh(a))),
    "stopped": simple(lambda a, b: tg.stop_gradient(a) * b), "outer": simple(lambda a, b: tg.tanh(a @ b.T) @ b), "relu": simple(lambda a, b: tg.relu(a) - b),
}  # fmt: skip
LOSSES = {
    "square": lambda run, y, given: tg.mean(tg.square(y - 0.3)),
    "cross entropy": lambda run, y, given: tg.softmax_cross_entropy(y @ run.leaf(SIZE, 5), given["codes"]),
    "sum": lambda run, y, given: tg.sum(tg.tanh(y)) * 0.1,
    "of one": lambda run, y, given: tg.logsumexp(y[0]),
}
JOINTS = {
    "pass": None, "half": 0.5, "drop": 0, "clip": tg.truncation.ClipJoint(0.05),
    "scaled": lambda pending: {slot: ct * 0.7 for slot, ct in pending.items()},
}  # fmt: skip
STATES = ["new", "new", "new", "untouched", "view", "stopped", "same", "swapped"]
EVENTS = [
    "lr", "new states", "reset", "reset alone", "release", "batch", "optimizer saved", "assigned", "grad", "sweep", "tape saved",
    "fails", "outside", "rewound", "emptied", "frozen",
]  # fmt: skip


# -- loops -------------------------------------------------------------------------------------------------------------------------


class Loop:
    """A loop as data, drawn from a seed."""

    def __init__(self, seed, without=()):
        self.seed = seed
        r = random.Random(seed)
        self.batch, self.steps = r.choice([1, 2, 3]), r.choice([30, 40])
        window = r.choice([1, 2, 3, 4, 6])
        sliding = ("sliding", window, 1 if r.random() < 0.6 else r.randint(1, window))
        self.schedule = r.choice(
            [sliding] * 6 + [("chunked", window), ("burn-in", r.randint(0, 2), r.randint(1, 3))]
        )
        self.weights = r.choice(["current", "recorded"])
        self.joint = r.choice(["pass"] * 6 + list(JOINTS))
        if self.joint not in ("pass",) and self.schedule[0] == "burn-in":
            self.joint = "pass"
        self.optimizer = r.choice(["sgd", "sgd", "momentum", "adam", "adam", "two", "none"])
        self.limit = r.choice(["none", "none", "norm", "value"])
        self.flat = self.optimizer in ("sgd", "momentum", "adam") and r.random() < 0.2
        self.part = r.choice([None, None, None, 1, 2, window])
        self.second = r.random() < 0.25  # another tape
        self.ops = [
            (r.choice(list(OPS)), int(r.expovariate(0.9)), int(r.expovariate(0.5)), r.randrange(60))
            for _ in range(r.randint(1, 7))
        ]
        self.parted = [self.part is not None and r.random() < 0.4 for _ in self.ops]
        states = [state for state in STATES if state not in without]
        self.states = ["new"] + [r.choice(states) for _ in range(r.choice([0, 0, 1, 1, 2]))]
        self.loss = r.choice(list(LOSSES))
        self.losses = r.choice([1, 1, 1, 2])
        self.returns = r.choice(["tuple", "tuple", "dict", "views", "leaves", "no loss"])
        self.layout = r.choice(["rows", "columns", "strided", "one array", "a Variable"])
        events = [event for event in EVENTS if event not in without]
        often = r.choice([0.0, 0.0, 0.03, 0.06])
        self.events = {t: r.choice(events) for t in range(2, self.steps) if r.random() < often}

    def __str__(self):
        return "Loop(\n" + "".join(f"    {name}={value!r},\n" for name, value in vars(self).items()) + ")"


class Interruption(Exception):
    """What a step that fails raises."""


class Run:
    """A loop on the host, or captured on a device."""

    def __init__(self, loop, device, failing=()):
        self.loop, self.device, self.batch = loop, device, loop.batch
        self.failing = set(failing)  # steps
        self.leaves, self.cells, self.fails, self.seen = {}, {}, False, []
        self.table = self.there(np.random.default_rng(5).standard_normal(SIZE))
        name, *numbers = loop.schedule
        schedule = {"sliding": tg.Sliding, "chunked": tg.Chunked, "burn-in": tg.truncation.BurnIn}[name](
            *numbers
        )
        self.tape = tg.CapacitorTape(schedule, weights=loop.weights, joint=JOINTS[loop.joint])
        self.part = None if loop.part is None else self.tape.capacitor(loop.part)
        self.second = tg.CapacitorTape(2, weights=loop.weights) if loop.second else None
        self.state = self.initial()
        self.dry()
        self.optimizers = self.made_optimizers()
        self.step = tg.capture(self.body) if device != "cpu" else self.body

    def there(self, array):
        return tg.asarray(array, device=self.device)

    def initial(self):
        count = len(self.loop.states) + (self.second is not None)
        return [tg.constant(self.there(np.full((self.batch, SIZE), 0.1 * (i + 1)))) for i in range(count)]

    def leaf(self, *shape, which=0):
        if (shape, which) not in self.leaves:
            values = np.random.default_rng([*shape, which]).standard_normal(shape) * 0.4
            self.leaves[shape, which] = self.moved(tg.Parameter(values))
        return self.leaves[shape, which]

    def moved(self, parameter):
        parameter._array = self.there(parameter._array)
        return parameter

    def cell(self, kind):
        if kind not in self.cells:
            made = {"lstm": tg.nn.LSTMCell, "gru": tg.nn.GRUCell, "rnn": tg.nn.RNNCell}[kind]
            self.cells[kind] = made(SIZE, SIZE, rng=0, dtype=np.float64).to(self.device)
        return self.cells[kind]

    def dry(self):
        """Make the leaves: the body once, on the side."""
        self.leaf(SIZE, SIZE)
        given = self.given(0)
        values = self.values(given, self.state)
        LOSSES[self.loop.loss](self, values[-1], given)
        self.frozen = self.moved(tg.Parameter(np.full(SIZE, 0.05)))

    def parameters(self):
        module = tg.nn.Module()
        module.leaves = {str(key): leaf for key, leaf in self.leaves.items()}
        module.cells = dict(self.cells)
        return module

    def made_optimizers(self):
        parameters, loop = self.parameters(), self.loop
        listed = parameters.parameters()
        if loop.flat:
            self.vector = parameters.parameters(flat=True)[0]
            listed = [self.vector]
        sgd, adam = tg.optim.SGD, tg.optim.Adam
        half = (len(listed) + 1) // 2
        return {
            "sgd": lambda: [sgd(listed, 0.05)],
            "momentum": lambda: [sgd(listed, 0.02, 0.8)],
            "adam": lambda: [adam(listed, 0.02, eps=1e-2)],
            "two": lambda: [
                sgd(listed[:half], 0.05),
                adam(listed[half:] or [self.moved(tg.Parameter(np.ones(1)))], 0.02, eps=1e-2),
            ],
            "none": list,
        }[loop.optimizer]()

    # -- the step --------------------------------------------------------------------------------------------------------------

    def given(self, t):
        """The inputs of a step."""
        rng = np.random.default_rng([self.loop.seed, t])
        batch, layout = self.batch, self.loop.layout
        x = rng.standard_normal((batch, 3))
        codes = rng.integers(0, 5, batch)
        mask = rng.random((batch, SIZE)) > 0.4
        if layout == "columns":
            x = self.there(np.ascontiguousarray(x.T)).T
        elif layout == "strided":
            x = self.there(np.repeat(x, 2, axis=1))[:, ::2]
        else:
            x = self.there(x)
        if layout == "a Variable":
            x = tg.constant(x)
        return {"x": x, "codes": self.there(codes), "mask": self.there(mask), "again": x}

    def values(self, given, state):
        if self.loop.layout == "one array":
            given = {**given, "x": given["again"]}
        if isinstance(given["x"], tg.Variable):
            given = {**given, "x": tg.constant(given["x"])._array}
        values = [*state[: len(self.loop.states)]]
        for (name, i, j, k), parted in zip(self.loop.ops, self.loop.parted, strict=True):
            inside = self.part if parted and self.tape.recording else contextlib.nullcontext()
            with inside:
                y = OPS[name](self, values[-1 - i % len(values)], values[-1 - j % len(values)], k, given)
            values.append(y)
        last = tg.tanh(values[-1] + given["x"] @ self.leaf(3, SIZE) + values[0] @ self.leaf(SIZE, SIZE))
        if hasattr(self, "frozen"):
            last = last + self.frozen * 0.3
        return [*values, last]

    def body(self, given, state):
        loop = self.loop
        with self.tape:
            values = self.values(given, state)
            losses = [LOSSES[loop.loss](self, values[-1], given)]
            if loop.losses == 2:
                losses.append(tg.sum(tg.square(values[-1])) * 0.05)
        new = self.next_states(values, state)
        if self.fails:
            raise Interruption
        swept = self.tape.backward(losses if loop.losses == 2 else losses[0]) is not None
        if self.second is not None:
            swept |= self.beside(values, state, new)
        self.frozen.grad = None
        if swept and self.optimizers:
            parameters = [p for optimizer in self.optimizers for p in optimizer.params]
            if loop.limit == "norm":
                tg.optim.clip_by_norm(parameters, 0.3)
            elif loop.limit == "value":
                tg.optim.clip_by_value(parameters, 0.05)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return self.returned(losses[0], values, new, given)

    def beside(self, values, state, new):
        """A second tape with a state of its own, which reads what the first computed as a constant."""
        with self.second:
            own = tg.tanh(state[-1] @ self.leaf(SIZE, SIZE) + tg.stop_gradient(values[-1]))
            loss = tg.mean(tg.square(own))
        new.append(own)
        return self.second.backward(loss) is not None

    def next_states(self, values, state):
        made, last = [], values[-1]
        for i, kind in enumerate(self.loop.states):
            one = values[-1 - i % len(values)]
            made.append(
                {
                    "new": last if i == 0 else one, "untouched": state[i], "view": one, "stopped": tg.stop_gradient(last),
                    "same": last, "swapped": state[0],
                }[kind]
            )  # fmt: skip
        return made

    def returned(self, loss, values, state, given):
        kind = self.loop.returns
        some = {"loss": loss._array * 1.0}
        if kind == "views":
            some |= {
                "rows": state[0]._array[::-1],
                "turned": state[0].T,
                "whole": given["x"],
                "one": values[-1],
            }
        elif kind == "leaves":
            some |= {"leaf": self.leaf(SIZE, SIZE), "number": 3, "none": None, "name": "step"}
        elif kind == "no loss":
            some = {}
        return (some, state) if kind != "tuple" else (loss, tuple(state))

    # -- the loop --------------------------------------------------------------------------------------------------------------

    def run(self):
        """All that can be seen of the loop: what each step returned, and in the end the weights and gradients."""
        for t in range(self.loop.steps):
            event = self.loop.events.get(t)
            if event:
                self.happens(event, t)
            before = self.state
            try:
                some, state = self.step(self.given(t), self.state)
            except Interruption:
                self.state, self.fails = before, False
                continue
            self.state, self.fails = list(state), False
            self.saw(t, "returned", some, self.state)
        self.saw("the end", "leaves", self.everything())
        self.saw("the end", "gradients", [leaf.grad for leaf in self.everything()])
        return self.seen

    def everything(self):
        return [
            *self.leaves.values(),
            *(p for cell in self.cells.values() for p in cell.parameters()),
            self.frozen,
        ]

    def saw(self, t, what, *nests):
        arrays = [on_host(v) for v in tg.nest.flat(nests) if not isinstance(v, str)]
        self.seen.append((t, what, [np.array(array) for array in arrays]))

    def happens(self, event, t):
        tape, optimizers = self.tape, self.optimizers
        if event == "lr":
            for optimizer in optimizers:
                optimizer.lr *= 0.8
        elif event == "new states":
            self.state = self.initial()
        elif event in ("reset", "reset alone", "batch"):
            tape.reset()
            if self.second is not None:
                self.second.reset()
            if event == "batch":
                self.batch = 3 - self.batch % 3
            if event != "reset alone":
                self.state = self.initial()
        elif event == "release" and self.device != "cpu":
            self.step.release()
        elif event == "optimizer saved":
            for optimizer in optimizers:
                optimizer.load_state_dict(optimizer.state_dict())
        elif event == "assigned":
            leaf = self.leaf(SIZE, SIZE)
            leaf.value = leaf.value * 0.5
        elif event == "frozen":
            self.frozen.value = self.frozen.value + 0.25
        elif event == "grad":
            self.saw(t, "grad", [leaf.grad for leaf in self.everything()])
        elif event == "emptied":
            for leaf in self.everything():
                leaf.grad = None
        elif event == "sweep":
            self.saw(t, "sweep", [int(tape.sweep() is None)])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        elif (
            event == "tape saved" and tape.segments
        ):  # without a leaf in it a snapshot comes back on the host
            names = self.parameters()
            names.frozen = self.frozen
            saved = tape.state_dict(carry=self.state, parameters=names)
            self.state = tape.load_state_dict(saved, parameters=names)
        elif event == "fails":
            # A graph runs no Python, and so does not fail.
            self.fails = t in self.failing if self.device == "cpu" else not self.step.graphs
            if self.fails:
                self.failing.add(t)
        elif event == "outside":
            with tape:
                y = tg.tanh(self.state[0] @ self.leaf(SIZE, SIZE))
                loss = tg.mean(tg.square(y))
            if tape.backward(loss):
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
        elif event == "rewound":
            self.state, self.old = getattr(self, "old", self.state), self.state


def ended(run):
    """What can be seen of a run, and the kind of error that it ended with."""
    try:
        run.run()
    except (tg.EvictedError, tg.NonFiniteError) as error:
        return run.seen, type(error)
    return run.seen, None


def both(loop):
    """The captured function, after both runs; AssertionError if they differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", tg.GradientStopsWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        there = Run(loop, "cuda")
        found, error = ended(there)
        expected, same = ended(Run(loop, "cpu", there.failing))
    assert error is same, f"{error} and {same}\n{loop}"
    # A device refuses a step that is not finite at once, and says so later.
    for (t, what, arrays), (_, _, others) in zip(found, expected, strict=error is None):
        assert len(arrays) == len(others), f"{what} of {t}\n{loop}"
        for array, other in zip(arrays, others, strict=True):
            message = f"{what} of step {t}: {there.step.graphs} graphs\n{loop}"
            np.testing.assert_allclose(array, other, rtol=CLOSE, atol=CLOSE, err_msg=message)
    return there.step


@pytest.mark.parametrize("first", range(0, LOOPS_PER_TEST * TESTS, LOOPS_PER_TEST))
def test_random_loops_give_what_the_host_gives(first):
    assert (
        sum(both(Loop(seed)).launches > 0 for seed in range(first, first + LOOPS_PER_TEST))
        >= LOOPS_PER_TEST // 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 1600, 20))
def test_many_random_loops_give_what_the_host_gives(first):
    for seed in range(first, first + 20):
        both(Loop(seed))


# -- found by them, or on the way ----------------------------------------------------------------------------------------------------


class Small:
    """A loop with one state that is easily changed, and what it gives on the host and on the device."""

    def __init__(self, device, forward, schedule=4, weights="current"):
        self.device, self.forward = device, forward
        rng = np.random.default_rng(0)
        self.w, self.u = (tg.Parameter(rng.standard_normal((4, 4)) * 0.4) for _ in range(2))
        for p in (self.w, self.u):
            p._array = tg.asarray(p._array, device=device)
        self.tape = tg.CapacitorTape(schedule, weights=weights)
        self.optimizer = tg.optim.SGD([self.w, self.u], 0.05)
        self.state = tg.constant(tg.asarray(np.zeros((2, 4)), device=device))
        self.step = tg.capture(self.body) if device != "cpu" else self.body

    def body(self, x, state):
        with self.tape:
            state = self.forward(self, x, state)
            loss = tg.mean(tg.square(state - 0.3))
        if self.tape.backward(loss):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (*self.more(self), loss, state)

    def more(self, _):
        """What else is returned."""
        return ()

    def run(self, steps, first=0):
        losses = []
        for t in range(first, first + steps):
            x = np.random.default_rng(t).standard_normal((2, 4))
            *others, loss, self.state = self.step(tg.asarray(x, device=self.device), self.state)
            losses += [float(on_host(v).sum()) for v in (loss, *others)]
        return losses


def test_a_view_of_a_weight_is_that_of_its_step():
    def forward(loop, x, state):
        return tg.tanh(x @ loop.w + state @ loop.u.T)

    np.testing.assert_allclose(Small("cuda", forward).run(30), Small("cpu", forward).run(30), rtol=1e-11)


def test_gradients_that_wait_for_the_next_sweep_are_there_when_a_loop_leaves_its_graphs():
    found = {}
    for device in ("cuda", "cpu"):
        every = tg.CapacitorTape(1, weights="current")

        def forward(loop, x, state, every=every):
            with every:
                decay = tg.sum(tg.square(loop.w)) * 0.01
            every.backward(decay)  # in each step, while the optimizer steps in every second
            return tg.tanh(x @ loop.w + state @ loop.u)

        loop = Small(device, forward, schedule=tg.Sliding(4, stride=2))
        losses = loop.run(25)
        if device == "cuda":
            loop.step.release()
        found[device] = losses + loop.run(6, 25)
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=1e-11)


def test_results_of_several_dtypes_are_aligned():
    found = {}
    for device in ("cuda", "cpu"):

        def forward(loop, x, state):
            loop.odd = x.astype(F32).reshape(-1)[1:]
            loop.whole = x.argmax(axis=1)
            return tg.tanh(x @ loop.w + state @ loop.u)

        loop = Small(device, forward)
        loop.more = lambda loop: (loop.odd, loop.whole)
        found[device] = loop.run(30)
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=1e-11)


def test_a_graph_holds_what_it_reads():
    found = {}
    for device in ("cuda", "cpu"):

        def forward(loop, x, state):
            given = tg.constant(loop.shift * 1.0)
            return tg.tanh(x @ loop.w + state @ loop.u) + given

        loop = Small(device, forward)
        loop.shift = tg.asarray(np.ones(4), device=device)
        losses = loop.run(20)
        loop.shift = tg.asarray(np.ones(4), device=device)
        others = [tg.asarray(np.full(4, 7.0), device=device) for _ in range(20)]
        found[device] = losses + loop.run(6, 20)
        assert len(others) == 20
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=1e-11)
