"""Drawings of a truncation: the numbers and texts behind them, and that they can be drawn at all."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

import tapegrad as tg

WORDS = ["the", "time", "machine", "by", "h", "g", "wells"]


@pytest.fixture
def matplotlib():
    module = pytest.importorskip("matplotlib")
    module.use("agg")
    yield module
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def sweeps_of(schedule, steps, weight=0.5):
    """Sweeps over h = w h with a loss at every step, from a constant h."""
    tape, w, h, sweeps = tg.CapacitorTape(schedule), tg.Parameter(np.array(weight)), np.array(1.0), []
    for _ in range(steps):
        with tape:
            h = w * h
        sweeps.append(tape.backward(h))
    return [*sweeps, tape.sweep()]


class Growing(tg.Schedule):
    """A user's own: chunks of 1, 2, 3, … segments."""

    window = None

    def due(self, index, swept):
        return index in (1, 3, 6, 10)

    def forgets(self, index):
        return index


# -- partition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (tg.Chunked(3), "the time machine | by h g | wells"),
        (tg.Chunked(1), "the | time | machine | by | h | g | wells"),
        (1, "the | time | machine | by | h | g | wells"),
        (tg.Full(), "the time machine by h g wells"),
        (tg.Sliding(50), "the time machine by h g wells"),
        (
            tg.Sliding(3),
            "the time machine\n"
            "    time machine by\n"
            "         machine by h\n"
            "                 by h g\n"
            "                    h g wells",
        ),
        (
            tg.Sliding(4, stride=2),
            "the time machine by\n"
            "         machine by h g\n"
            "                 by h g wells",
        ),
    ],
)  # fmt: skip
def test_each_schedule_splits_the_words_where_its_gradients_end(schedule, text):
    assert tg.render.partition_text(schedule, WORDS) == text


def test_a_joint_that_drops_splits_the_words_too():
    crossings = []

    def drop_the_third(pending):
        crossings.append(len(pending))
        return {} if len(crossings) == 3 else pending

    tape = tg.CapacitorTape(tg.Full(), joint=drop_the_third)
    assert tg.render.partition_text(tape, WORDS) == "the time machine by | h g wells"


def test_a_schedule_of_ones_own_can_be_drawn():
    assert tg.render.partition_text(Growing(), WORDS) == "the | time machine | by h g | wells"
    assert tg.render.partition_text([Growing()], WORDS[:2]) == "Growing()  the | time"


def test_words_that_no_gradient_reaches_stand_in_parentheses():
    assert tg.render.partition_text(tg.BurnIn(2, 3), WORDS) == "(the time) | machine by h | (g wells)"
    assert tg.render.partition_text(tg.BurnIn(1, 2), WORDS) == "(the) | time machine | (by) | h g | (wells)"


@pytest.mark.parametrize("seed", range(5))
def test_randomised_blocks_end_where_the_tape_sweeps(seed):
    tape, w, h, blocks = tg.CapacitorTape(tg.Randomized(3, seed=seed)), tg.Parameter(1.0), np.array(1.0), [[]]
    for word in [*WORDS, *WORDS]:
        blocks[-1].append(word)
        with tape:
            h = w * h
        if tape.backward(h):
            blocks.append([])
    text = " | ".join(" ".join(block) for block in blocks if block)
    assert len(blocks) > 1
    assert tg.render.partition_text(tg.Randomized(3, seed=seed), [*WORDS, *WORDS]) == text


def test_reach_shows_how_randomised_truncation_weighs_what_is_rare():
    schedule, found = tg.Randomized(3, seed=1), np.zeros((7, 7))
    assert tg.render.partition_text(schedule, WORDS) == "the time machine | by h | g wells"
    for start, end in [(0, 3), (3, 5), (5, 7)]:
        for s in range(start, end):
            for t in range(start, s + 1):
                found[s, t] = np.prod([schedule.factor(d) for d in range(t - start + 1, s - start + 1)])
    np.testing.assert_allclose(tg.render.reach(schedule, 7), found, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "schedule", "text"),
    [
        ("Randomized(mean=3, seed=5)", tg.Randomized(3, seed=5), "the time machine by | h | g | wells"),
        ("RealTime()", tg.RealTime(), "the time machine by h g wells"),
        ("Tolerance(eps=0.01, schedule=Full())", tg.Tolerance(0.01, tg.Full()), "the time machine by h g wells"),
        ("Full(), joint=0.5", tg.CapacitorTape(tg.Full(), joint=0.5), "the time machine by h g wells"),
        ("Full(), joint=0.0", tg.CapacitorTape(tg.Full(), joint=0.0), "the | time | machine | by | h | g | wells"),
        ("Full(), joint=RandomJoint", tg.CapacitorTape(tg.Full(), joint=tg.RandomJoint(0.7, seed=1)), "the time machine | by h | g wells"),
        ("Chunked(window=3), joint=ClipJoint", tg.CapacitorTape(tg.Chunked(3), joint=tg.ClipJoint(0.1)), "the time machine | by h g | wells"),
    ],
)  # fmt: skip
def test_estimators_and_joint_policies_are_named_and_drawn_like_any_schedule(name, schedule, text):
    assert tg.render.partition_text([schedule], WORDS) == f"{name}  {text}"


def test_reach_holds_the_factors_of_the_joints():
    found = tg.render.reach(tg.CapacitorTape(tg.Sliding(3), joint=0.5), 4)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0], [0.5, 1, 0, 0], [0.25, 0.5, 1, 0], [0, 0.25, 0.5, 1]])


def test_a_list_and_a_dict_of_schedules_come_with_their_names():
    assert tg.render.partition_text({"regular": tg.Chunked(4), "full": tg.Full()}, WORDS[:5]) == (
        "regular  the time machine by | h\n"
        "full     the time machine by h"
    )  # fmt: skip
    assert tg.render.partition_text([tg.Sliding(2, stride=2), tg.Chunked(2), tg.Chunked(2)], WORDS[:3]) == (
        "Sliding(window=2, stride=2)  the time\n"
        "                                 time machine\n"
        "Chunked(window=2) 2          the time | machine\n"
        "Chunked(window=2) 3          the time | machine"
    )


def test_drawing_a_schedule_leaves_it_as_it_was():
    tape = tg.CapacitorTape(tg.Full())
    tg.render.partition_text(tape, WORDS)
    assert len(tape.segments) == 0

    class Once(Growing):
        asked = 0

        def due(self, index, swept):
            self.asked += 1
            return super().due(index, swept)

    schedule = Once()
    assert tg.render.partition_text(schedule, WORDS) == "the | time machine | by h g | wells"
    assert schedule.asked == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("the time machine", r"render.partition_text: `words` must be a list of words, and one string came: 'the time machine'.\n  Write 'the time machine'.split()."),
        (["the", 3], r"render.partition_text: `words` must be a list of strings, and int 3 came.\n  Write [str(word) for word in words]."),
        (7, r"render.partition_text: `words` must be a list of strings, and int 7 came.\n  Write [str(word) for word in words]."),
        ([], r"render.partition_text: `words` is empty.\n  Give at least one word."),
    ],
)  # fmt: skip
def test_words_of_the_wrong_kind_name_the_fix(words, message):
    with pytest.raises(tg.ArgumentError) as raised:
        tg.render.partition_text(tg.Full(), words)
    assert str(raised.value) == message.replace(r"\n", "\n")


def test_schedules_that_cannot_be_run_are_refused():
    with pytest.raises(
        tg.ArgumentError, match="render.partition: `schedule` is empty.\n  Give a schedule such"
    ):
        tg.render.partition_text([], WORDS)
    with pytest.raises(
        tg.ArgumentError, match="`schedule` must be a number of segments or a schedule, and str"
    ):
        tg.render.partition_text("full", WORDS)
    tape = tg.CapacitorTape(3)
    with tape:
        tg.Variable(1.0) * 2.0
    with pytest.raises(tg.ArgumentError, match="the CapacitorTape has recorded 1 segments already"):
        tg.render.partition_text(tape, WORDS)


@pytest.mark.parametrize("words", [WORDS, ["one"], ["a"] * 40])
def test_partitions_are_drawn_with_every_word_inside(matplotlib, tmp_path, words):
    schedules = [tg.Randomized(3, seed=1, longest=20), tg.Sliding(3), tg.Full()]
    figure = tg.render.partition(schedules, words, tmp_path / "partition.png")
    assert (tmp_path / "partition.png").stat().st_size > 1000
    figure.canvas.draw()
    (ax,) = figure.axes
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) == 3 * len(words) + 3
    width, height = figure.get_size_inches() * figure.dpi
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_windows_that_overlap_lie_in_lanes_of_their_own(matplotlib):
    figure = tg.render.partition(tg.Sliding(4, stride=2), WORDS * 3)
    spans = [(a.xyann[1], a.xy[0], a.xyann[0]) for a in figure.axes[0].texts if not a.get_text()]
    assert len(spans) == 10 and len({height for height, _, _ in spans}) == 3
    spans.sort()
    for (height, _, right), (height_after, left, _) in itertools.pairwise(spans):
        assert height != height_after or right < left


# -- lag profile -------------------------------------------------------------------------------------


def test_the_lag_summary_of_a_geometric_loop_is_geometric():
    sweeps = [sweep for sweep in sweeps_of(tg.Sliding(30), 60) if sweep and sweep.segments == 30]
    summary = tg.render.lag_summary(sweeps)
    # The loss of the newest segment alone: its adjoint w^k at lag k.
    np.testing.assert_allclose(summary.median, 0.5**summary.lags, rtol=1e-12)
    assert (summary.largest, summary.negligible, summary.sweeps) == (1, 21, len(sweeps))  # 2^-20 < 1e-6


def test_spread_is_taken_over_the_sweeps_that_reach_a_lag():
    summary = tg.render.lag_summary([[4.0, 2.0, 1.0], [2.0], [6.0, 4.0]])
    np.testing.assert_array_equal(summary.lags, [1, 2, 3])
    np.testing.assert_array_equal(summary.median, [4, 3, 1])
    np.testing.assert_array_equal(summary.lowest, [2, 2, 1])
    np.testing.assert_array_equal(summary.lower, [3, 2.5, 1])
    np.testing.assert_array_equal(summary.upper, [5, 3.5, 1])
    np.testing.assert_array_equal(summary.highest, [6, 4, 1])


def test_norms_that_are_not_finite_are_counted_and_left_out():
    summary = tg.render.lag_summary([[1.0, np.inf, 3.0, np.nan], [2.0, 5.0, 0.0]])
    np.testing.assert_array_equal(summary.median, [1.5, 5.0, 1.5, np.nan])
    np.testing.assert_array_equal(summary.not_finite, [0, 1, 0, 1])
    assert (summary.largest, summary.negligible) == (2, None)


def test_the_first_negligible_lag_lies_beyond_the_largest():
    summary = tg.render.lag_summary([1e-9, 1.0, 0.5, 1e-6, 0.99e-6, 0.5])
    assert (summary.largest, summary.negligible) == (2, 5)
    assert tg.render.lag_summary([0.0, 0.0]).largest is None
    assert tg.render.lag_summary([np.nan]).negligible is None


def test_a_stream_that_began_inside_the_window_has_no_joint_below_its_first_segment():
    sweeps = sweeps_of(tg.Sliding(10), 4)
    assert sweeps[3].joint_norms == [0.5, 0.25, 0.125, 0.0]
    np.testing.assert_array_equal(tg.render.lag_summary(sweeps[3]).median, [0.5, 0.25, 0.125])
    assert tg.render.lag_summary(sweeps).sweeps == 3  # the first sweep crosses none, the last is None


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        ([], "render.lag_profile: `sweeps` holds 0 sweeps, and none that crosses a joint.\n  Collect what tape.backward(loss) returns"),
        ([[]], "render.lag_profile: `sweeps` must be Sweeps or lists of norms, and list [] came."),
        ([None], "`sweeps` holds 0 sweeps"),
        ("abc", "render.lag_profile: `sweeps` must be Sweeps or lists of norms, and str 'abc' came.\n  Collect what tape.backward(loss)"),
        (3.0, "and float 3.0 came"),
        ([["a"]], "and list ['a'] came"),
        ([1.0, -2.0], "render.lag_profile: a norm is at least 0, and -2.0 came.\n  Give norms as in sweep.joint_norms, not their logarithms."),
    ],
)  # fmt: skip
def test_what_is_no_lag_profile_is_refused(sweeps, message):
    with pytest.raises(tg.ArgumentError) as raised:
        tg.render.lag_summary(sweeps)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "norms",
    [
        [1.0, 0.1, 0.0, np.inf, 1e-9, np.nan],
        [[1.0, 0.1, 0.0, np.inf], [3.0], [2.0, np.nan]],
        [0.0, 0.0],
        [np.nan, np.inf],
        [1.0],
        [5e-324, 1.7e308],
        np.float32([[1, 0.5], [2, 0.25]]),
    ],
)
def test_lag_profiles_are_drawn_whatever_the_norms(matplotlib, tmp_path, norms):
    figure = tg.render.lag_profile(norms, tmp_path / "lags.png")
    assert (tmp_path / "lags.png").stat().st_size > 1000
    (ax,) = figure.axes
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "lag (segments back from the newest)"
    assert ax.get_ylabel() == "norm of the adjoint at the joint"
    assert ax.get_ylim()[0] > 0
    shown = ax.lines[0].get_ydata()  # the median: a 0 would be drawn as a fall to the bottom edge
    np.testing.assert_array_equal(np.isfinite(shown), tg.render.lag_summary(norms).median > 0)


def test_a_lag_profile_marks_the_largest_norm_and_where_it_is_gone(matplotlib):
    figure = tg.render.lag_profile(sweeps_of(tg.Sliding(30), 60))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "largest at lag 1" in labels
    assert "first below $10^{-6}$ of it at lag 21" in labels


def test_a_lag_profile_is_drawn_into_given_axes(matplotlib):
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    assert tg.render.lag_profile([1.0, 0.5], ax=right) is figure
    assert not left.lines
    assert right.lines
    part = figure.subfigures()
    assert tg.render.lag_profile([1.0, 0.5], ax=part.add_subplot()) is figure
    with pytest.raises(tg.ArgumentError, match="`ax` must be Axes of matplotlib, and int 3 came"):
        tg.render.lag_profile([1.0, 0.5], ax=3)


# -- spectral radius ---------------------------------------------------------------------------------


def normal_matrix(radius, size=8, seed=0):
    """Orthogonal eigenvectors, the largest eigenvalue `radius`, the next at most 0.8 of it."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return axes * np.concatenate([[-radius], radius * rng.uniform(-0.8, 0.8, size - 1)]) @ axes.T


@pytest.mark.parametrize("radius", [0.8, 0.95, 1.0, 1.05, 1.2])
def test_the_rate_of_decay_of_a_normal_matrix_is_its_spectral_radius(radius):
    found = tg.render.decay(normal_matrix(radius))
    assert abs(found.radius - radius) < 1e-12
    assert abs(found.rate - radius) < 1e-6


def test_a_rotation_decays_by_its_radius_at_every_lag():
    turn = 0.9 * np.array([[np.cos(1), -np.sin(1)], [np.sin(1), np.cos(1)]])
    found = tg.render.decay(turn, lags=20)
    assert len(found.norms) == 21
    np.testing.assert_allclose(found.norms[1:] / found.norms[:-1], 0.9, rtol=1e-12)


def test_the_norms_are_those_of_the_powers_of_the_transposed_matrix():
    W_hh = np.random.default_rng(3).standard_normal((5, 5)) / 3  # not normal: W and its transpose differ
    rng = np.random.default_rng(0)
    _, W_qh, direction = (rng.standard_normal(shape) for shape in ((5, 2), (2, 5), 2))
    expected = [np.linalg.norm(np.linalg.matrix_power(W_hh.T, k) @ W_qh.T @ direction) for k in range(31)]
    np.testing.assert_allclose(tg.render.decay(W_hh, lags=30).norms, expected, rtol=1e-12)


def test_a_nilpotent_matrix_has_the_rate_0():
    assert tg.render.decay(np.eye(3, k=1), lags=20).rate == 0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), "render.decay: `W_hh` must be a square matrix (n, n), and float64 (2, 3) came.\n  It takes a state"),
        (np.zeros((0, 0)), "`W_hh` must be a square matrix (n, n), and float64 (0, 0) came"),
        (1.0, "`W_hh` must be a square matrix (n, n), and float64 () came"),
        ("rho", "render.decay: `W_hh` must be a real matrix (n, n), and str 'rho' came.\n  Write np.array("),
        (np.array([[np.nan]]), "render.decay: `W_hh` holds an infinity or a NaN.\n  Check how it was computed"),
        (np.eye(2) * 100, "render.decay: a spectral radius of 100 overflows within 200 lags.\n  Use lags <= 130."),
    ],
)  # fmt: skip
def test_what_is_no_recurrent_matrix_is_refused(matrix, message):
    with pytest.raises(tg.ArgumentError) as raised:
        tg.render.decay(matrix, lags=200)
    assert message in str(raised.value)


def test_no_matrices_are_refused(matplotlib):
    for nothing in ([], {}):
        with pytest.raises(tg.ArgumentError, match="`matrices` is empty.\n  Give one matrix W_hh"):
            tg.render.spectral_radius(nothing)


def test_one_matrix_a_list_and_a_dict_of_them_are_drawn(matplotlib, tmp_path):
    below, above = normal_matrix(0.9), normal_matrix(1.1, size=3)
    for at, (matrices, count) in enumerate(
        [
            (below, 1),
            (below.tolist(), 1),
            ([below, above], 2),
            (np.stack([below, below]), 2),
            ({"mine": above}, 1),
        ]
    ):
        figure = tg.render.spectral_radius(matrices, tmp_path / f"{at}.png", lags=20)
        assert (tmp_path / f"{at}.png").stat().st_size > 1000
        left, right = figure.axes
        labels = [text.get_text() for text in left.get_legend().get_texts()]
        assert len(labels) == count + 1
        assert left.get_xlabel() and left.get_ylabel() and right.get_xlabel() and right.get_ylabel()
    assert labels[0].startswith("mine, $\\rho$ = 1.1, measured 1.1")


# -- matplotlib itself -------------------------------------------------------------------------------


def test_drawing_opens_nothing_in_pyplot(matplotlib):
    code = (
        "import sys, tapegrad as tg; tg.render.lag_profile([1.0, 0.5]); tg.render.spectral_radius([[0.5]], lags=4); "
        "tg.render.partition(tg.Full(), ['a']); print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["True", "False"], found.stderr


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for name, draw in {
        "lag_profile": lambda: tg.render.lag_profile([1.0, 0.5]),
        "partition": lambda: tg.render.partition(tg.Full(), ["a"]),
        "spectral_radius": lambda: tg.render.spectral_radius([[0.5]], lags=4),
    }.items():
        with pytest.raises(tg.render.MissingExtraError) as raised:
            draw()
        assert str(raised.value) == (
            f"render.{name}: drawing needs matplotlib, and it is not installed.\n"
            "  pip install 'tapegrad[viz]' (or pip install matplotlib)."
        )
        assert isinstance(raised.value, ImportError)
    assert tg.render.partition_text(tg.Full(), ["a", "b"]) == "a b"
