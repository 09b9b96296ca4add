"""The benchmarks compare gradients before they compare times; here the comparison is made to fail."""

import os
import pathlib

import pytest

BENCH = pathlib.Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch):
    """(contest, by_hand, Work) of bench/, which pins threads by environment variables when it is imported."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = dict(os.environ)
    import contest
    from peers import by_hand, work

    os.environ.clear()
    os.environ.update(before)
    monkeypatch.setattr(contest, "AT_LEAST", 1e-4)
    return contest, by_hand, work.Work("lstm", batch=2, hidden=8, window=4)


def held(bench, other):
    contest, by_hand, work = bench
    return contest.held(
        {"ours": lambda: by_hand.ByHand(work)}, {"peer": {"": lambda: other(work)}}, rounds=1, steps=12
    )


def test_who_computes_the_same_is_timed(bench):
    rows = held(bench, bench[1].ByHand)["rows"]
    assert rows["ours"]["faster_than"]["peer"]["median"] > 0
    assert rows["ours"]["weights"] == "current"


def test_tapegrad_by_hand_and_by_tape_take_part(bench):
    from peers import tapegrad_loops

    found = held(
        bench, lambda work: tapegrad_loops.Window(work, tapegrad_loops.built_in_cell(work), weights="current")
    )
    assert found["gradients"]["largest_difference_at_learning_rate_0"] < 1e-5
    assert found["gradients"]["largest_difference_within_a_policy"] < 1e-5


def test_a_learning_rate_that_is_one_percent_off_ends_the_contest(bench):
    class Faster(bench[1].ByHand):
        def step(self, k):
            self.lr *= 1.01
            super().step(k)
            self.lr /= 1.01

    with pytest.raises(AssertionError, match="at learning rate 0, peer"):
        held(bench, Faster)


def test_a_window_that_is_one_step_short_ends_the_contest(bench):
    class Short(bench[1].ByHand):
        def sweep(self, target):
            super().sweep(target)
            self.deltas[self.at] = 0  # the oldest step's

    with pytest.raises(AssertionError, match="at learning rate 0, peer"):
        held(bench, Short)


def test_sweeping_with_other_weights_than_named_ends_the_contest(bench):
    class Behind(bench[1].ByHand):
        """Sweeps with the weights of one step ago, though it says `current`."""

        def step(self, k):
            at_first = self.w.copy() if not hasattr(self, "last") else self.last
            now = self.w.copy()
            self.forward(self.xs[k])
            self.w[:] = at_first
            self.sweep(self.targets[k])
            self.w[:] = self.last = now
            rows = self.work.window * self.work.batch
            self.w -= self.lr * (self.inputs.reshape(rows, -1).T @ self.deltas.reshape(rows, -1))

    def eager(work):
        contender = Behind(work)
        contender.lr = 4.0  # far enough from the last step for it to show
        return contender

    contest, by_hand, work = bench

    def ours(work):
        contender = by_hand.ByHand(work)
        contender.lr = 4.0
        return contender

    with pytest.raises(AssertionError, match="moved elsewhere"):
        contest.held({"ours": lambda: ours(work)}, {"peer": {"": lambda: eager(work)}}, rounds=1, steps=12)
