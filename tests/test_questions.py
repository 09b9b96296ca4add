"""The questions that the guide pages answer: their claims, their tables, their printouts.

The loops of the forum's question are in bench/forum_loops.py and run in PyTorch, which may be absent.
"""

import contextlib
import importlib.util
import io
import json
import pathlib
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.core.primitive import REGISTRY

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = ["sliding-window", "capacitor", "truncation-strategies", "autobw"]
N, K = 40, 7


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def results(name):
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())["results"]


# -- N steps, N evaluations ------------------------------------------------------------------------


class Counted(tg.nn.Module):
    """A recurrent cell that counts its calls, and how often its nonlinearity is computed, by whomever."""

    def __init__(self, tanh):
        rng = np.random.default_rng(0)
        self.w_x = tg.Parameter(rng.normal(size=(3, 5)) / 2)
        self.w_h = tg.Parameter(rng.normal(size=(5, 5)) / 2)
        self.tanh, self.calls = tanh, 0

    def forward(self, x, h):
        self.calls += 1
        return self.tanh(x @ self.w_x + h @ self.w_h)


@pytest.fixture
def counted():
    """(cell, evaluations): the list gets an item at every evaluation of the cell's nonlinearity."""
    evaluations = []

    @tg.elementwise(a=lambda ct, y: ct - ct * y * y)
    def counted_tanh(xp, a):
        y = xp.tanh(a + 0.0)  # a body that is nothing but a ufunc would be replaced by it, uncounted
        evaluations.append(1)
        return y

    yield Counted(counted_tanh), evaluations
    del REGISTRY["counted_tanh"]


def train(cell, weights, losses_after=-1, lr=0.1, compile=True):
    """N steps with a step of the optimizer after every sweep; the sweeps, and what a window can be rebuilt from."""
    rng = np.random.default_rng(1)
    optimizer = tg.optim.SGD(cell.parameters(), lr)
    tape = tg.CapacitorTape(K, weights=weights, compile=compile)
    h, sweeps, history = tg.constant(np.zeros((1, 5))), [], []
    for i in range(N):
        x = rng.normal(size=(1, 3))
        history.append(SimpleNamespace(x=x, h=h.value, weights=cell.state_dict()))
        with tape:
            h = cell(x, h)
            loss = tg.sum(h * h)
        if i > losses_after:
            sweep = tape.backward(loss)
            gradients = [sweep.gradients[p] for p in cell.parameters()]
            sweeps.append(SimpleNamespace(step=i, segments=sweep.segments, gradients=gradients))
            optimizer.step()
            optimizer.zero_grad()
    return sweeps, history


@pytest.mark.parametrize("weights", ["recorded", "current"])
@pytest.mark.parametrize("losses_after", [-1, K])
def test_n_steps_evaluate_the_cell_exactly_n_times(counted, weights, losses_after):
    cell, evaluations = counted
    sweeps, _ = train(cell, weights, losses_after)
    assert sum(sweep.segments for sweep in sweeps) > 4 * N  # they did go back
    assert cell.calls == len(evaluations) == N


def test_a_replayed_window_is_evaluated_again_and_counted(counted):
    cell, evaluations = counted
    sweeps, _ = train(cell, "replay")
    assert cell.calls == N
    assert len(evaluations) == N + sum(sweep.segments for sweep in sweeps)


@pytest.mark.parametrize("compile", [False, "exact", True])
def test_losses_that_start_after_step_k_go_back_exactly_k_steps_each(counted, compile):
    cell, _ = counted
    sweeps, history = train(cell, "recorded", losses_after=K, compile=compile)
    assert [(sweep.step, sweep.segments) for sweep in sweeps] == [(i, K) for i in range(K + 1, N)]
    for sweep in sweeps:
        tape, h = tg.Tape(), tg.constant(history[sweep.step - K + 1].h)
        with tape:
            for then in history[sweep.step - K + 1 : sweep.step + 1]:
                cell.load_state_dict(then.weights)
                h = cell(then.x, h)
            loss = tg.sum(h * h)
        exact = tape.backward(loss)
        for found, p in zip(sweep.gradients, cell.parameters(), strict=True):
            if compile is True:  # the order in which products are added up is its own
                np.testing.assert_allclose(found, exact.gradients[p], rtol=1e-11, atol=1e-15)
            else:
                np.testing.assert_array_equal(found, exact.gradients[p])


# -- the five loops --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forum():
    """bench/forum_loops.py as a module."""
    pytest.importorskip("torch")
    bench = str(ROOT / "bench")
    sys.path.insert(0, bench)
    try:
        spec = importlib.util.spec_from_file_location("forum_loops", ROOT / "bench" / "forum_loops.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(bench)
    return module


@pytest.fixture(scope="module")
def computed(forum):
    """What each loop computes: a gradient vector by name."""
    return {name: run()[0] for name, (run, _) in forum.LOOPS.items()}


@pytest.fixture(scope="module")
def truth(forum):
    return forum.Truth()


def assert_close(a, b):
    difference = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert difference < 1e-12, f"they differ by {difference:.3g} of the second's norm"


@pytest.mark.parametrize(
    "name", ["tapegrad: Sliding(K)", "PyTorch: evaluated again", "PyTorch: swept by hand"]
)
def test_these_are_the_exact_gradient_of_a_window_of_k_steps(forum, computed, truth, name):
    assert_close(computed[name], truth.gradient(range(forum.K + 1, forum.N), forum.K))


@pytest.mark.parametrize("name", ["loop 1", "loop 3", "tapegrad: Full()"])
def test_one_backward_and_a_deque_of_states_give_the_full_gradient(forum, computed, truth, name):
    assert_close(computed[name], truth.gradient(range(forum.K + 1, forum.N), forum.N))


def test_detaching_at_every_step_leaves_a_window_of_one(forum, computed, truth):
    assert_close(computed["loop 2"], truth.gradient(range(forum.N), 1))


def test_chunks_have_exact_windows_for_the_last_loss_of_each(forum, computed, truth):
    assert_close(computed["loop 4"], truth.gradient(range(forum.K - 1, forum.N, forum.K), forum.K))


def test_detaching_every_k_steps_has_exact_windows_but_for_the_first_which_is_one_longer(
    forum, computed, truth
):
    first = truth.gradient([forum.K], forum.K + 1)
    others = truth.gradient(range(2 * forum.K, forum.N, forum.K), forum.K)
    assert_close(computed["loop 5"], first + others)


def test_with_every_loss_it_goes_back_to_the_last_border_as_chunked_does(forum, computed, truth):
    exact = sum(truth.gradient([t], t % forum.K + 1) for t in range(forum.N))
    assert_close(computed["loop 5, every loss"], exact)
    assert_close(computed["tapegrad: Chunked(K)"], exact)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("answer: fresh windows, O = 1", "tapegrad: data.windows, O = 1"),
        ("answer: fresh windows, O = K", "tapegrad: data.windows, O = K"),
        ("answer: burn-in", "tapegrad: BurnIn(K, K)"),
    ],
)
def test_the_suggestions_of_the_answer_are_the_same_in_both(computed, theirs, ours):
    assert_close(computed[ours], computed[theirs])


# What each loop raises as it was written, and after how many evaluations of the cell.
RAISED = {
    "1": "runs, 60 evaluations",
    "2": "RuntimeError after 2 evaluations: .* modified by an inplace operation",
    "3": "RuntimeError after 13 evaluations: .* modified by an inplace operation",
    "3, with loss =": "RuntimeError after 13 evaluations: .* modified by an inplace operation",
    "4": "RuntimeError after 20 evaluations: Trying to backward through the graph a second time",
    "5": "NameError after 0 evaluations: name 'j' is not defined",
    "5, with data[i]": "RuntimeError after 3 evaluations: Trying to backward through the graph a second time",
    "swept by hand": "RuntimeError after 13 evaluations: .* modified by an inplace operation",
}


@pytest.mark.parametrize("name", RAISED)
def test_a_loop_as_it_was_written_raises_what_the_page_says(name):
    assert re.match(RAISED[name], results("forum_loops")["as_written"][name])


def test_the_committed_results_are_what_the_loops_compute(forum):
    committed = results("forum_loops")
    assert (committed["N"], committed["K"]) == (forum.N, forum.K)
    assert {n: forum.as_written(code).split(":")[0] for n, code in forum.AS_WRITTEN.items()} == {
        n: committed["as_written"][n].split(":")[0] for n in forum.AS_WRITTEN
    }
    fresh = forum.measured()
    assert fresh.keys() == committed["loops"].keys()
    for name, row in fresh.items():
        assert row == pytest.approx(committed["loops"][name], rel=1e-3), name


def test_the_table_of_the_page_is_that_of_the_results():
    shown = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in page("sliding-window").splitlines()
        if line.startswith("| ")
    ]
    assert shown[0] == ["", "losses", "evaluated", "swept", "norm", "error"]
    assert [row for row in shown[2:] if len(row) == 6] == [
        [
            name,
            str(row["losses"]),
            str(row["cell_evaluations"]),
            str(row["steps_swept"]),
            f"{row['norm']:.2f}",
            f"{100 * row['error_against_window']:.1f} %" if row["error_against_window"] else "0",
        ]
        for name, row in results("forum_loops")["loops"].items()
    ]


def test_the_strategies_side_by_side_on_the_page_are_those_of_the_results():
    found = results("randomised_text")
    shown = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in page("truncation-strategies").splitlines()
        if line.startswith("| ")
    ]
    assert [row for row in shown if len(row) == 4][2:] == [
        [
            row["contender"],
            f"{np.mean(row['bits']):.3f}",
            f"{min(row['bits']):.3f} … {max(row['bits']):.3f}",
            "–"
            if i == 0
            else f"{row['against_regular']['difference']:+.3f} ± {row['against_regular']['standard_error']:.3f}",
        ]
        for i, row in enumerate(found["rows"])
    ]
    against_double = found["xi_against_double"]
    words = " ".join(page("truncation-strategies").split())
    assert (
        f"({against_double['difference']:+.3f} ± {against_double['standard_error']:.3f})".replace("-", "−")
        in words
    )
    assert found["claim_holds"]


def test_the_cost_of_a_thousand_steps_on_the_page_is_that_of_the_results():
    row = results("full_cost")["full"][-1]
    assert (row["T"], row["products"]) == (1000, 1000)
    words = " ".join(page("truncation-strategies").split())
    assert (
        f"the sweep over 1,000 steps takes {row['sweep_ms']:.1f} ms, the forward pass {row['forward_ms']:.1f} ms, "
        f"and {row['mebibytes']:.2f} MiB are kept" in words
    )


# -- the pages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_shows_as_printed_is_what_its_program_prints(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, printed = {}, ""
    for kind, code in re.findall(r"^```(\w+)\n(.*?)^```$", page(name), re.MULTILINE | re.DOTALL):
        if kind == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(code, f"{name}.md", "exec"), names)
            assert not printed, f"{name}.md does not show:\n{printed}"
            printed = output.getvalue()
        elif kind == "text":
            assert code == printed
            printed = ""
    assert not printed
