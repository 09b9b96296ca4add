"""The estimators: what each keeps, sweeps and forgets, and what its gradient is in expectation."""

import math

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn, optim


def powers(tape, steps, w=1.0, lossy=lambda t: True):
    """x_t = w x_{t-1} from x_0 = 1: with w = 1 a loss's gradient counts the steps it went back through."""
    w, x, found = tg.Parameter(np.array(w)), np.array(1.0), []
    for t in range(1, steps + 1):
        with tape:
            x = w * x
        sweep = tape.backward(x) if lossy(t) else None
        found.append(None if sweep is None else float(sweep.gradients.get(w, 0.0)))
    return found, w


def scalar_rnn(tape, w, steps=30, seed=0):
    """h_t = tanh(w h_{t-1} + x_t), the loss Σ h_t² / 2 handed in step by step. Returns the sum of the sweeps' gradients."""
    rng, h, total = np.random.default_rng(seed), np.array(0.0), 0.0
    for x in rng.standard_normal(steps) * 0.5:
        with tape:
            h = tg.tanh(w * h + x)
            loss = tg.square(h) * 0.5
        if sweep := tape.backward(loss):
            total += float(sweep.gradients[w])
    if sweep := tape.sweep():
        total += float(sweep.gradients[w])
    return total


# -- burn-in -----------------------------------------------------------------------------------------


def test_burn_in_warms_the_state_and_then_learns():
    found, _ = powers(tg.CapacitorTape(tg.BurnIn(3, 4)), 14)
    assert found == [None] * 6 + [1 + 2 + 3 + 4] + [None] * 6 + [1 + 2 + 3 + 4]


def test_burn_in_keeps_nothing_of_the_steps_that_warm_the_state():
    tape = tg.CapacitorTape(tg.BurnIn(5, 2))
    for t in range(1, 29):
        with tape:
            tg.Parameter(np.ones(100)) * 2.0
        assert len(tape.segments) <= 2
        if t % 7 in (1, 2, 3, 4, 5) and t > 7:
            assert [s.index for s in tape.segments] == [i for i in (t - t % 7 - 1, t - t % 7) if i > t - 7]
    w, tape = tg.Parameter(np.ones(100)), tg.CapacitorTape(tg.BurnIn(1, 1))
    with tape:
        y = w * w
    sweep = tape.backward(y, np.ones(100))
    assert sweep is None
    with tape:
        z = tg.sum(w * y)
    assert tape.backward(z).left_edge[y].tolist() == [1.0] * 100  # the state's adjoint is told
    assert w.grad.tolist() == [1.0] * 100  # and not 3: y is a constant


def test_burn_in_of_no_steps_is_chunks():
    assert powers(tg.CapacitorTape(tg.BurnIn(0, 4)), 12)[0] == powers(tg.CapacitorTape(tg.Chunked(4)), 12)[0]


def test_a_chunk_whose_last_step_has_no_loss_is_swept_while_the_next_one_warms_up():
    found, _ = powers(tg.CapacitorTape(tg.BurnIn(2, 3)), 10, lossy=lambda t: t != 5)
    assert found == [None] * 5 + [1 + 2.0, None, None, None, 1 + 2 + 3.0]


# -- randomised --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "alpha"), [(2.0, 3.5), (16, 6.0), (5.5, 40.0)])
def test_the_law_has_the_mean_it_says(mean, alpha):
    law = tg.Randomized(mean, alpha)
    survival = [law.survival(d) for d in range(3)]
    assert survival[0] == 1.0
    assert survival[2] == pytest.approx((1 - law.cut_probability(1)) * (1 - law.cut_probability(2)))
    assert np.sum(law._survival(2_000_000)) == pytest.approx(mean, rel=1e-3)
    assert law.factor(3) == 1 / (1 - law.cut_probability(3))


def test_chunks_have_the_lengths_of_the_law():
    tape, n = tg.CapacitorTape(tg.Randomized(4, alpha=6, seed=5)), 6000
    found, _ = powers(tape, n)
    ends = np.flatnonzero([f is not None for f in found]) + 1
    lengths = np.diff([0, *ends])
    for d in (1, 2, 4, 8, 12):
        share, expected = np.mean(lengths > d), tape.schedule.survival(d)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(lengths))


def test_a_chunk_is_weighted_by_the_factors_at_its_joints_and_forgotten():
    tape = tg.CapacitorTape(tg.Randomized(4, seed=5))
    law, since = tape.schedule, 0
    found, _ = powers(tape, 200)
    for f in found:
        since += 1
        if f is not None:
            # the loss of step d: 1 for its own step, times the factors of every joint further back
            expected = sum(
                sum(math.prod(law.factor(k) for k in range(j, d)) for j in range(1, d + 1))
                for d in range(1, since + 1)
            )
            assert f == pytest.approx(expected, rel=1e-12)
            since = 0
    assert len(tape.segments) == since


def test_randomised_truncation_is_unbiased_and_a_chunk_is_not():
    w = tg.Parameter(np.array(1.3))
    full = scalar_rnn(tg.CapacitorTape(tg.Full()), w)
    samples = [scalar_rnn(tg.CapacitorTape(tg.Randomized(5, seed=s)), w) for s in range(800)]
    error = np.std(samples) / math.sqrt(len(samples))
    assert error < 0.1 * abs(full)
    assert abs(np.mean(samples) - full) < 3 * error
    assert abs(scalar_rnn(tg.CapacitorTape(tg.Chunked(4)), w) - full) > 3 * error


def test_randomised_truncation_is_unbiased_where_some_steps_have_no_loss_and_sweeps_come_early():
    def gradient(tape):
        w, x, total = tg.Parameter(np.array(0.9)), np.array(1.0), 0.0
        for t in range(1, 13):
            with tape:
                x = w * x
            sweep = tape.backward(x) if t % 3 == 0 else tape.sweep() if t == 7 else None
            total += float(sweep.gradients[w]) if sweep else 0.0
        sweep = tape.sweep()
        return total + (float(sweep.gradients[w]) if sweep else 0.0)

    full = gradient(tg.CapacitorTape(tg.Full()))
    samples = [gradient(tg.CapacitorTape(tg.Randomized(3, seed=s))) for s in range(1500)]
    assert abs(np.mean(samples) - full) < 3 * np.std(samples) / math.sqrt(len(samples))


def test_longest_bounds_the_memory_and_its_bias_is_stated():
    tape = tg.CapacitorTape(tg.Randomized(4, alpha=3, seed=1, longest=6))
    found, _ = powers(tape, 400)
    assert max(len(tape.segments), 0) <= 6
    assert tape.schedule.cut_probability(6) == 1.0
    assert 0 < tape.schedule.lost(3) < tape.schedule.lost(5) < tape.schedule.lost(6) == 1.0
    assert tg.Randomized(4, alpha=3).lost(6) == 0.0
    ends = np.flatnonzero([f is not None for f in found]) + 1
    assert max(np.diff([0, *ends])) == 6


def test_lost_and_weight_variance_are_those_of_the_weights():
    law = tg.Randomized(3, alpha=5, longest=9, seed=2).fresh()
    n, lag = 60_000, 2
    scales = np.array([law.scale(i) for i in range(1, n + 1)])
    weights = np.array([np.prod(scales[i : i + lag]) for i in range(n - lag)])
    assert np.mean(weights) == pytest.approx(1 - law.lost(lag), abs=5 * np.std(weights) / math.sqrt(n / lag))
    assert np.var(weights) == pytest.approx(law.weight_variance(lag), rel=0.1)


def test_the_measured_variance_is_that_of_the_gradient_per_step():
    """On a stationary loop: h_t = w x_t, whose loss at t reads h_{t-1} too."""

    def gradients(seed, n=200):
        w, h, total = tg.Parameter(np.array(1.0)), np.array(0.0), 0.0
        tape, rng = tg.CapacitorTape(tg.Randomized(3, seed=seed)), np.random.default_rng(seed)
        for x in rng.standard_normal(n):
            with tape:
                before, h = h, w * x
                loss = h + 3.0 * before
            if sweep := tape.backward(loss):
                total += float(sweep.gradients[w])
        return total, tape.schedule.variance * n

    totals, variances = zip(*(gradients(seed) for seed in range(200)), strict=True)
    assert np.mean(variances) == pytest.approx(np.var(totals), rel=0.25)
    assert math.isnan(tg.Randomized(3).variance)


# -- joints ------------------------------------------------------------------------------------------


def test_xi_is_unbiased_and_terminates_the_expansion():
    w = tg.Parameter(np.array(1.3))
    full = scalar_rnn(tg.CapacitorTape(tg.Full()), w)
    samples = [
        scalar_rnn(tg.CapacitorTape(tg.Full(), joint=tg.RandomJoint(0.8, seed=s)), w) for s in range(800)
    ]
    assert abs(np.mean(samples) - full) < 3 * np.std(samples) / math.sqrt(len(samples))
    found, _ = powers(tg.CapacitorTape(10, joint=tg.RandomJoint(0.5, seed=0)), 300)
    assert set(found[20:]) <= {sum(2.0**k for k in range(n + 1)) for n in range(10)}
    assert min(found) == 1.0


def test_clipping_per_joint_stops_an_explosion_where_it_happens():
    free, _ = powers(tg.CapacitorTape(30), 30, w=2.0)
    clipped, _ = powers(tg.CapacitorTape(30, joint=tg.ClipJoint(2.0**20)), 30, w=2.0)
    assert clipped[:20] == free[:20]  # adjoints below the limit are untouched
    # dx_30/dw is 30 equal shares of 2^29; clipped at 2^20, 21 of them stay and the others halve step by step
    assert free[-1] == 30 * 2.0**29
    assert clipped[-1] == 21 * 2.0**29 + sum(2.0**29 / 2**k for k in range(1, 10))
    w, tape = tg.Parameter(np.array([3.0, 4.0])), tg.CapacitorTape(2, joint=tg.ClipJoint(1.0))
    with tape:
        h = w * 1.0
    with tape:
        y = tg.sum(h * np.array([3.0, 4.0]))
    np.testing.assert_allclose(tape.backward(y).gradients[w], [0.6, 0.8], rtol=1e-15)


# -- tolerance ---------------------------------------------------------------------------------------


def test_a_sweep_ends_where_the_rest_cannot_matter():
    w, x, tape = tg.Parameter(np.array(0.5)), np.array(1.0), tg.CapacitorTape(tg.Tolerance(1e-3, 40))
    for _ in range(40):
        with tape:
            x = w * x
        sweep = tape.backward(x)
    # at the joints the adjoint is 0.5, 0.25 ..., and the rest twice that: after the thirteenth it is the first
    # time below half of a thousandth of the largest
    assert sweep.joint_norms == [0.5**k for k in range(1, 14)]
    assert (sweep.segments, sweep.saved) == (13, 27)
    assert sweep.left_out == 27 * 0.5**12
    assert sweep.gradients[w] == 13 * 0.5**39  # of 40 equal shares


def tolerance_run(eps, decay):
    """A linear RNN of random contraction; the gradients and sweeps with and without a tolerance."""
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    found = []
    for schedule in (30, tg.Tolerance(eps, 30)):
        w, tape, h = tg.Parameter(decay * q), tg.CapacitorTape(schedule), np.zeros(4)
        inputs = np.random.default_rng(1).standard_normal((60, 4))
        sweeps = []
        for x in inputs:
            with tape:
                h = tg.tanh(h @ w + x)
                loss = tg.sum(h * x)
            sweeps.append(tape.backward(loss))
        found.append([(s.gradients[w], s) for s in sweeps])
    return found


def test_what_a_tolerance_left_out_is_within_the_bound_that_it_reports():
    full, ended = tolerance_run(1e-2, 0.7)
    saved = 0
    for (exact, _), (gradient, sweep) in zip(full, ended, strict=True):
        saved += sweep.saved
        # the largest share of one segment is at least the mean share of those that were swept
        largest = np.linalg.norm(gradient)
        assert np.linalg.norm(exact - gradient) <= sweep.left_out * largest
    assert saved > 30 * 60 / 3


def test_a_tolerance_never_leaves_out_a_loss():
    tape = tg.CapacitorTape(tg.Tolerance(0.9, tg.Sliding(8, stride=8)))
    found, _ = powers(tape, 8, w=0.25)
    exact, _ = powers(tg.CapacitorTape(tg.Sliding(8, stride=8)), 8, w=0.25)
    assert found == exact


def test_tolerance_passes_on_what_its_schedule_says():
    for schedule in (tg.Chunked(4), tg.BurnIn(2, 3), tg.Randomized(3, seed=4), tg.Sliding(5, 2)):
        plain = powers(tg.CapacitorTape(schedule), 40, w=1.0)[0]
        assert powers(tg.CapacitorTape(tg.Tolerance(1e-9, schedule)), 40, w=1.0)[0] == plain


# -- adaptive ----------------------------------------------------------------------------------------


def decaying(tape, rate, steps=400):
    """h_t = rate · h_{t-1} + w x_t, the loss h_t times a sign that changes: φ_k = rate^(k+1)."""
    w, h = tg.Parameter(np.ones((1, 3))), np.zeros((2, 3))
    rng = np.random.default_rng(0)
    for _ in range(steps):
        with tape:
            h = rate * h + w * rng.standard_normal((2, 3))
            loss = tg.sum(h)
        tape.backward(loss)
    return tape.schedule


def test_adaptive_takes_the_smallest_window_whose_relative_bias_is_below_delta():
    rate = 0.8
    schedule = decaying(tg.CapacitorTape(tg.Adaptive(0.5, longest=50, start=10, every=100)), rate)
    phi = np.array(schedule.profile)
    np.testing.assert_allclose(phi[1:] / phi[:-1], rate, rtol=1e-12)
    K = schedule.K
    # of a geometric decay everything is known: bias(K) = Σ_{k ≥ K} φ_k and g_K = Σ_{k < K} φ_k, up to the tail's two terms
    tail = [phi[k:41].sum() + phi[40] / (1 - rate) for k in range(1, 50)]
    heads = [np.cumsum(phi)[k - 1] for k in range(1, 51)]
    floor = max(h - t for h, t in zip(heads, tail, strict=False))
    assert tail[K - 1] / floor < 0.5 <= tail[K - 2] / floor
    assert schedule.history[-1][1] == K


def test_adaptive_grows_where_memory_is_long_and_shrinks_where_it_is_short():
    short = decaying(tg.CapacitorTape(tg.Adaptive(0.5, longest=50, start=20, every=100)), 0.3)
    long = decaying(tg.CapacitorTape(tg.Adaptive(0.5, longest=50, start=20, every=100)), 0.93)
    never = decaying(tg.CapacitorTape(tg.Adaptive(0.5, longest=50, start=20, every=100)), 1.02)
    assert short.K < 5 < 10 < long.K
    assert never.K == 50
    bounded = decaying(tg.CapacitorTape(tg.Adaptive(0.5, shortest=7, longest=50, start=20, every=100)), 0.3)
    assert bounded.K == 7


def test_adaptive_runs_bptt_2k_minus_1_k():
    tape = tg.CapacitorTape(tg.Adaptive(0.5, longest=10, start=4, every=10**9))
    found, _ = powers(tape, 20)
    exact, _ = powers(tg.CapacitorTape(tg.Sliding(7, stride=4)), 20)
    assert found == exact
    strided = tg.CapacitorTape(tg.Adaptive(0.5, longest=10, start=4, every=10**9, stride=2))
    assert powers(strided, 20)[0] == powers(tg.CapacitorTape(tg.Sliding(5, stride=2)), 20)[0]


def test_a_probe_touches_no_gradient_and_two_tapes_share_no_window():
    schedule = tg.Adaptive(0.5, longest=10, start=4, every=5)
    one, two = tg.CapacitorTape(schedule), tg.CapacitorTape(schedule)
    assert one.schedule is not two.schedule
    decaying(one, 0.3, 100)
    assert one.schedule.K != 4 and two.schedule.K == schedule.K == 4


# -- real time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_real_time_learning_is_full_backpropagation_with_the_recorded_weights(cell):
    def gradients(schedule, inside):
        rng = np.random.default_rng(0)
        model, readout = cell(3, 4, dtype=np.float64, rng=rng), nn.Linear(4, 2, dtype=np.float64, rng=rng)
        params = [*model.parameters(), *readout.parameters()]
        optimizer, tape, state = optim.SGD(params, 0.1), tg.CapacitorTape(schedule), model.initial_state(2)
        found, rng = [], np.random.default_rng(1)
        for _ in range(25):
            tape.begin()
            out, state = model(rng.standard_normal((2, 3)), state)
            loss = tg.softmax_cross_entropy(readout(out), rng.integers(0, 2, 2))
            if not inside:
                tape.stop()
            sweep = tape.backward(loss)
            if inside:
                tape.stop()
            found.append(np.concatenate([sweep.gradients[p].ravel() for p in params]))
            optimizer.step()
            optimizer.zero_grad()
        return found, len(tape.segments)

    exact, _ = gradients(tg.Sliding(1000), False)
    for inside in (False, True):
        found, kept = gradients(tg.RealTime(), inside)
        assert kept == 1
        for a, b in zip(found, exact, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def test_real_time_learning_needs_the_state_passed_on():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.RealTime())
    with tape:
        a = w * w
    with tape:
        w * 1.0
    with tape:
        y = w * a
    assert tape.backward(y).gradients[w] == 4.0  # a's history is not known any more


# -- nonsense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tg.BurnIn(-1, 2), "BurnIn: `k1` must be a whole number of at least 0, and -1 came."),
        (lambda: tg.BurnIn(2, 0), "BurnIn: `k2` must be a whole number of at least 1, and 0 came."),
        (lambda: tg.Randomized(1), "Randomized: `mean` must be a number above 1, and 1 came."),
        (lambda: tg.Randomized(5, alpha=2), "Randomized: `alpha` must be a number above 2, and 2 came."),
        (
            lambda: tg.Randomized(5, longest=0),
            "Randomized: `longest` must be a whole number of at least 1, and 0 came.",
        ),
        (
            lambda: tg.RandomJoint(0),
            "RandomJoint: `alpha` must be a probability above 0 and up to 1, and 0 came.",
        ),
        (lambda: tg.ClipJoint(-1), "ClipJoint: `norm` must be a number above 0, and -1 came."),
        (lambda: tg.Tolerance(2, 5), "Tolerance: `eps` must be a number between 0 and 1, and 2 came."),
        (lambda: tg.Adaptive(0), "Adaptive: `delta` must be a relative bias above 0, and 0 came."),
        (
            lambda: tg.Adaptive(0.5, longest=5),
            "Adaptive: `shortest` must not exceed `longest`, nor `longest` be below 10 (the fit needs lags), "
            "and shortest=2, longest=5 came.",
        ),
        (
            lambda: tg.Tolerance(0.1, tg.RealTime()),
            "Tolerance: `schedule` is RealTime(), whose sweeps it cannot end. Wrap a schedule with a window.",
        ),
    ],
)
def test_an_estimator_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(tg.ArgumentError) as caught:
        make()
    assert str(caught.value) == message


# -- warnings ----------------------------------------------------------------------------------------


def window_warnings(rate, window, steps, stride=1):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tape, w, h = tg.CapacitorTape(tg.Sliding(window, stride)), tg.Parameter(np.ones(3)), np.zeros(3)
        for t in range(steps):
            with tape:
                h = rate * h + w * math.sin(t)
                loss = tg.sum(h)
            tape.backward(loss)
    return [str(c.message) for c in caught]


def test_a_window_that_is_far_too_long_or_too_short_is_told_once():
    long = window_warnings(0.005, 40, 400)
    assert len(long) == 1
    assert "the window of 40 segments is far too long: the adjoints are dead after a tenth of it" in long[0]
    short = window_warnings(1.1, 20, 400)
    assert len(short) == 1
    assert "the window of 20 segments is too short: the adjoints still grow at its left edge" in short[0]
    assert len(window_warnings(1.1, 20, 1600, stride=4)) == 1
    assert not window_warnings(0.9, 20, 400)
    assert not window_warnings(0.5, 40, 400)
    assert not window_warnings(1.0, 20, 400)
    assert not window_warnings(0.95, 20, 1600, stride=10)


# -- what went wrong once ----------------------------------------------------------------------------


def test_adaptive_adapts_where_losses_come_a_segment_late():
    tape, w, h, late = (
        tg.CapacitorTape(tg.Adaptive(0.5, longest=20, start=15, every=30)),
        tg.Parameter(1.0),
        np.array(0.0),
        None,
    )
    for t in range(200):
        with tape:
            h = 0.3 * h + w * math.sin(t)
            loss = tg.square(h)
        if late is not None:
            tape.backward(late)
        late = loss
    assert tape.schedule.history and tape.schedule.K < 8


def test_a_tolerance_does_not_end_a_sweep_that_overflows():
    assert not tg.Tolerance(0.1, 20).ends([1.0, math.inf])
    assert not tg.Tolerance(0.1, 20).ends([math.inf, 1.0])
    assert not tg.Tolerance(0.1, 20).ends([1.0, math.nan])
    assert not tg.Tolerance(0.1, 20).ends([1.0])
    assert not tg.Tolerance(0.1, 20).ends([1.0, 0.1])
    assert tg.Tolerance(0.1, 20).ends([1.0, 0.1, 0.01])
    assert tg.Tolerance(0.1, 20).ends([1.0, 0.0])
    assert not tg.Tolerance(0.1, 20).ends([0.001, 1.0, 0.002])  # declined, but not over the joints looked at


def test_the_measured_variance_knows_that_a_new_sequence_begins():
    tape, w, segments = tg.CapacitorTape(tg.Randomized(4, seed=0)), tg.Parameter(np.array(1.0)), 0
    for n in (3, 30, 5, 17):
        x = np.array(1.0)
        for _ in range(n):
            with tape:
                x = w * x
            tape.backward(x)
        tape.sweep()
        tape.reset()
        segments += n
    assert tape.schedule._moments.length == segments


@pytest.mark.parametrize("schedule", [tg.BurnIn(1, 2), tg.Randomized(3, seed=2)])
def test_a_segment_that_is_swept_while_open_and_aborted_is_done_again_as_if_nothing_had_happened(schedule):
    def run(abort):
        tape, w, x, total = tg.CapacitorTape(schedule), tg.Parameter(np.array(1.0)), np.array(1.0), 0.0
        for t in range(1, 20):
            if abort and t % 2:
                with pytest.raises(ZeroDivisionError), tape:
                    w * x
                    tape.sweep()
                    1 / 0
            tape.begin()
            x = w * x
            tape.stop()
            if sweep := tape.backward(x):
                total += float(sweep.gradients[w])
        return total, [s.index for s in tape.segments]

    plain, aborted = run(False), run(True)
    assert plain[1] == aborted[1]


def test_real_time_learning_forgets_leaves_that_nobody_holds():
    w, h, tape = tg.Parameter(np.array(0.5)), np.array(0.0), tg.CapacitorTape(tg.RealTime())
    for _ in range(20):
        x = tg.Variable(1.0)
        with tape:
            h = tg.tanh(w * h + x)
        sweep = tape.backward(h)
        assert len(sweep.gradients) <= 3


def test_real_time_learning_is_for_recorded_weights_and_tapes_without_parts():
    for make in (
        lambda: tg.CapacitorTape(tg.RealTime(), weights="replay"),
        lambda: tg.CapacitorTape(tg.RealTime(), joint=0.5),
        lambda: tg.CapacitorTape(tg.RealTime()).capacitor(3),
    ):
        with pytest.raises(tg.ArgumentError, match=r"RealTime\(\) looks beyond its window, and needs"):
            make()


def test_burn_in_swept_late_does_not_warn_of_the_state_that_it_does_not_record():
    w, tape = tg.Parameter(np.array(2.0)), tg.CapacitorTape(tg.BurnIn(1, 2))
    for _ in range(4):
        with tape:
            h = w * 1.0
    tape.begin()
    loss = h * w
    assert h in tape.backward(loss).left_edge
    tape.stop()


def test_adaptive_probes_a_window_that_is_replayed():
    tape = tg.CapacitorTape(tg.Adaptive(0.5, longest=20, start=4, every=40), weights="replay")
    assert decaying(tape, 0.5, 200).history


def test_the_measured_variance_goes_on_after_a_snapshot():
    w, x, tape = (
        tg.Parameter(np.array(0.9), name="of the variance"),
        np.array(1.0),
        tg.CapacitorTape(tg.Randomized(3, seed=1)),
    )
    for _ in range(40):
        with tape:
            x = w * x + 1.0
        tape.backward(x)
    copy = tg.CapacitorTape(tg.Randomized(3, seed=1))
    y = copy.load_state_dict(tape.state_dict(carry=x))
    for _ in range(20):
        with tape:
            x = w * x + 1.0
        tape.backward(x)
        with copy:
            y = w * y + 1.0
        copy.backward(y)
    assert tape.schedule.variance == copy.schedule.variance > 0
