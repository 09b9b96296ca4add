"""A learner that is stopped, stored and resumed in a new process goes on as if nothing had happened."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim

N_IN, N_HIDDEN, N_OUT, BATCH, STEPS, STOP = 3, 4, 5, 2, 24, 11

TAPES = {
    "sliding": lambda: tg.CapacitorTape(tg.Sliding(6, stride=4)),
    "current": lambda: tg.CapacitorTape(tg.Sliding(6, stride=4), weights="current"),
    "replay": lambda: tg.CapacitorTape(tg.Sliding(6, stride=4), weights="replay"),
    "guard": lambda: tg.CapacitorTape(tg.Sliding(6, stride=4), guard=True),
    "chunked": lambda: tg.CapacitorTape(tg.Chunked(4)),
    "full": lambda: tg.CapacitorTape(tg.Full()),
    "burn-in": lambda: tg.CapacitorTape(tg.BurnIn(2, 5)),
    "randomized": lambda: tg.CapacitorTape(tg.Randomized(4, seed=3)),
    "adaptive": lambda: tg.CapacitorTape(tg.Adaptive(0.5, longest=10, start=3, every=6)),
    "tolerance": lambda: tg.CapacitorTape(tg.Tolerance(0.2, tg.Randomized(4, seed=3))),
    "real time": lambda: tg.CapacitorTape(tg.RealTime()),
    "random joint": lambda: tg.CapacitorTape(5, joint=tg.RandomJoint(0.6, seed=2)),
}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell}


class Model(nn.Module):
    def __init__(self, cell):
        rng = np.random.default_rng(0)
        self.cell = CELLS[cell](N_IN, N_HIDDEN, rng=rng)
        self.readout = nn.Linear(N_HIDDEN, N_OUT, rng=rng)


class Learner:
    """A loop that can be stopped between any two steps."""

    def __init__(self, kind, cell="lstm"):
        self.model, self.tape = Model(cell), TAPES[kind]()
        self.optimizer = optim.Adam(self.model.parameters(), 0.05)
        self.state = self.model.cell.initial_state(BATCH)

    def run(self, first, last):
        for t in range(first, last):
            rng = np.random.default_rng(t)
            x, target = rng.standard_normal((BATCH, N_IN)).astype(np.float32), rng.integers(0, N_OUT, BATCH)
            with self.tape:
                out, self.state = self.model.cell(x, self.state)
                loss = tg.softmax_cross_entropy(self.model.readout(out), target)
            if self.tape.backward(loss):
                self.optimizer.step()
                self.optimizer.zero_grad()
        return self

    def finish(self):
        """Every bit that the rest of the stream leaves behind."""
        self.run(STOP, STEPS)
        if self.tape.sweep():
            self.optimizer.step()
        return {name: p.value.tobytes().hex() for name, p in self.model.named_parameters()}

    def save(self, folder):
        tg.save(folder / "model.npz", self.model.state_dict())
        tg.save(folder / "optimizer.npz", self.optimizer.state_dict())
        tg.save(folder / "tape.npz", self.tape.state_dict(carry=self.state, parameters=self.model))

    def load(self, folder):
        self.model.load_state_dict(tg.load(folder / "model.npz"))
        self.optimizer.load_state_dict(tg.load(folder / "optimizer.npz"))
        self.state = self.tape.load_state_dict(tg.load(folder / "tape.npz"), parameters=self.model)
        return self


IN_A_NEW_PROCESS = """
import importlib.util, json, pathlib, sys
spec = importlib.util.spec_from_file_location("test_snapshot", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
found = {}
for folder in pathlib.Path(sys.argv[2]).iterdir():
    kind, _, cell = folder.name.partition("-with-")
    found[folder.name] = tests.Learner(kind, cell).load(folder).finish()
print(json.dumps(found))
"""


def test_a_learner_resumed_in_a_new_process_goes_on_bit_for_bit(tmp_path):
    expected = {}
    for kind in TAPES:
        for cell in CELLS:
            learner = Learner(kind, cell).run(0, STOP)
            folder = tmp_path / f"{kind}-with-{cell}"
            folder.mkdir()
            learner.save(folder)
            expected[folder.name] = learner.finish()
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_NEW_PROCESS, str(pathlib.Path(__file__)), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    resumed = json.loads(found.stdout)
    wrong = [name for name in expected if resumed[name] != expected[name]]
    assert not wrong
    assert len(set(map(str, expected.values()))) > len(TAPES)  # and not all the same, for want of learning


@pytest.mark.parametrize("kind", TAPES)
def test_a_snapshot_changes_nothing_for_the_one_who_takes_it(kind):
    plain, watched = Learner(kind).run(0, STOP), Learner(kind)
    for t in range(STOP):
        watched.run(t, t + 1)
        watched.tape.state_dict(carry=watched.state, parameters=watched.model)
    assert watched.finish() == plain.finish()


def test_without_its_window_a_learner_goes_another_way(tmp_path):
    learner = Learner("sliding").run(0, STOP)
    learner.save(tmp_path)
    resumed = Learner("sliding").load(tmp_path)
    resumed.tape.reset()
    assert resumed.finish() != learner.finish()


def test_the_carried_state_is_still_connected():
    w, tape = tg.Parameter(np.array(2.0), name="w"), tg.CapacitorTape(3)
    with tape:
        h = w * 3.0
    saved = tape.state_dict(carry={"h": h, "w": w, "list": [h, None, 1.5]})
    other = tg.CapacitorTape(3)
    carried = other.load_state_dict(saved, parameters={"w": w})
    assert carried["w"] is w
    assert carried["list"][1:] == [None, 1.5]
    with other:
        y = carried["h"] * w + carried["list"][0]
    assert other.backward(y).gradients[w] == 3 * 2 + 6 + 3


def test_pending_losses_and_parts_are_in_the_snapshot():
    def make():
        tape = tg.CapacitorTape(tg.Sliding(4, stride=4))
        return tape, tape.capacitor(tg.Sliding(3, stride=3))

    w, (tape, part) = tg.Parameter(np.array(1.0), name="of the parts"), make()

    def step(tape, part, h):
        with tape:
            h = w * h
            with part:
                h = w * h
            loss = 1.0 * h
        return h, tape.backward(loss)

    h = tg.constant(np.array(1.0))
    for _ in range(2):
        h, _ = step(tape, part, h)
    copy = make()
    carried = copy[0].load_state_dict(tape.state_dict(carry=h))
    for _ in range(4):
        h, sweep = step(tape, part, h)
        carried, copied = step(*copy, carried)
        assert (sweep is None) == (copied is None)
        if sweep:
            assert sweep.gradients[w] == copied.gradients[w] > 0
            assert sweep.losses == copied.losses


def test_arrays_that_shared_memory_share_it_again():
    w, tape = tg.Parameter(np.zeros((200, 300)), name="large"), tg.CapacitorTape(5)
    for _ in range(3):
        with tape:
            tg.sum(tg.square(w.T[:7]) * tg.stack([w[:, i] for i in range(7)]))
    saved = tape.state_dict()
    arrays = sum(a.nbytes for name, a in saved.items() if name.startswith("array."))
    other = tg.CapacitorTape(5)
    other.load_state_dict(saved)
    assert arrays < 2 * w.value.nbytes  # one version of the weights, not twenty-four
    assert other.nbytes == tape.nbytes


def test_a_small_view_of_a_large_array_does_not_take_all_of_it_along():
    data = np.zeros((1000, 1000))
    data.flags.writeable = False
    w, tape = tg.Parameter(np.ones(1000), name="w"), tg.CapacitorTape(5)
    with tape:
        tg.sum(w * data[3])
    assert sum(a.nbytes for name, a in tape.state_dict().items() if name.startswith("array.")) < 100_000


def test_an_op_without_a_registered_name_is_refused():
    from tapegrad.core.primitive import REGISTRY

    @tg.elementwise(a=lambda ct: ct + ct)
    def twice_in_secret(xp, a):
        return a + a

    w, tape = tg.Parameter(1.0, name="of the secret"), tg.CapacitorTape(2)
    with tape:
        twice_in_secret(w)
    saved = tape.state_dict()
    del REGISTRY["twice_in_secret"]
    with pytest.raises(
        tg.UnsupportedError, match="the op `twice_in_secret` is not registered under its name"
    ):
        tape.state_dict()
    fresh = tg.CapacitorTape(2)
    with pytest.raises(tg.ArgumentError, match="no op `twice_in_secret` is declared here"):
        fresh.load_state_dict(saved)
    assert fresh.segments == ()


def test_what_does_not_fit_is_refused_and_nothing_is_changed():
    w, tape = tg.Parameter(np.ones(3), name="misfit"), tg.CapacitorTape(4)
    with tape:
        y = tg.sum(w * w)
    saved = tape.state_dict(carry=y)
    other = tg.CapacitorTape(4)
    with other:
        z = tg.sum(w)
    cases = [
        (tg.CapacitorTape(5), saved, {}, "the snapshot is of another kind of tape"),
        (tg.CapacitorTape(4, weights="current"), saved, {}, "the snapshot is of another kind of tape"),
        (other, {"tape": "[]"}, {}, "this is not what CapacitorTape.state_dict returned"),
        (other, {}, {}, "this is not what CapacitorTape.state_dict returned"),
        (tg.CapacitorTape(4, joint=0.5), saved, {}, "the snapshot is of another kind of tape"),
        (
            tg.CapacitorTape(4, joint=tg.RandomJoint(0.5)),
            saved,
            {},
            "the snapshot is of another kind of tape",
        ),
        (other, saved, {"parameters": {"misfit": tg.Parameter(np.ones(2))}}, "leaf 'misfit' is"),
    ]
    for target, snapshot, options, message in cases:
        with pytest.raises(tg.TapegradError) as caught:
            target.load_state_dict(snapshot, **options)
        assert message in str(caught.value)
    w.name = "fit"
    with pytest.raises(tg.ArgumentError, match="no leaf is called 'misfit'"):
        other.load_state_dict(saved)
    assert len(other.segments) == 1
    assert other.backward(z).gradients[w].tolist() == [1.0, 1.0, 1.0]


def test_leaves_are_told_apart_by_name():
    a, b, tape = tg.Parameter(1.0, name="same"), tg.Parameter(2.0, name="same"), tg.CapacitorTape(2)
    with tape:
        y = a * b
    with pytest.raises(tg.ArgumentError, match="a leaf that the window has read shares its name 'same'"):
        tape.state_dict(carry=y)
    saved = tape.state_dict(carry=y, parameters={"a": a, "b": b})
    other = tg.CapacitorTape(2)
    carried = other.load_state_dict(saved, parameters={"a": b, "b": a})
    assert other.backward(carried).gradients[b] == 2.0
    nameless, tape = tg.Variable(1.0), tg.CapacitorTape(2)
    with tape:
        nameless * 2.0
    with pytest.raises(tg.ArgumentError, match="a leaf that the window has read has no name"):
        tape.state_dict()


def test_a_snapshot_of_an_open_segment_is_refused():
    tape = tg.CapacitorTape(2)
    with tape:
        with pytest.raises(tg.RecordingError, match="a segment is open"):
            tape.state_dict()
        with pytest.raises(tg.RecordingError, match="a segment is open"):
            tape.load_state_dict({})


def test_a_tuple_with_names_is_refused_as_it_would_come_back_without_them():
    import collections

    State = collections.namedtuple("State", "h")
    tape = tg.CapacitorTape(2)
    with pytest.raises(tg.UnsupportedError, match="is held, which is no array, number or text"):
        tape.state_dict(carry=State(1.0))
