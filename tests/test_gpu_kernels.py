"""Kernels on a GPU against their definitions in float64: on a GPU where there is one, else in Numba's simulator.

Without a GPU most tests here are skipped, and one runs them all in a second Python, with the simulator. Since it
infers no types, another compiles every kernel for a GPU that need not be there.
"""

import functools
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
from tapegrad.kernels import cpu, gpu, gpu_launch, gpu_optimizers, gpu_recurrent, reference

RNG = np.random.default_rng(0)
F32, F64 = np.float32, np.float64
REAL = pytest.mark.parametrize("dtype", [F32, F64])
# Rounding of a few operations, in units of the dtype; GPUs' functions have an error of one or two units more.
TOLERANCE = {F64: {"rtol": 1e-12, "atol": 1e-14}, F32: {"rtol": 5e-6, "atol": 1e-6}}
SIMULATED = gpu_launch.SIMULATED
GPU_LIMITS = {"WARP": 32, "THREADS": 128, "MOST_THREADS": 512, "MOST_BLOCKS": 2048}
# In the simulator a thousand threads take a second. On a GPU there is also a shape with more than one block.
SHAPES = [(1, 1), (3, 5), (2, 11)] + ([] if SIMULATED else [(64, 1021), (1, 4096)])
SIZES = [0, 1, 7, 53] + ([] if SIMULATED else [100_003])


@pytest.fixture(autouse=True)
def device(request):
    if "host" not in request.fixturenames:
        pytest.importorskip("numba")
        if not gpu_launch.cuda.is_available():
            pytest.skip("there is no GPU here; the simulator runs this in a test of its own")


@pytest.fixture
def host():
    """A test that needs no device."""


ON_HOST = pytest.mark.usefixtures("host")


def put(*arrays):
    return [gpu_launch.cuda.to_device(np.array(a)) for a in arrays]


def got(*arrays):
    found = [a.copy_to_host() for a in arrays]
    return found[0] if len(found) == 1 else found


def near(found, truth, dtype, times=1):
    assert found.dtype == dtype
    limits = {name: times * limit for name, limit in TOLERANCE[dtype].items()}
    np.testing.assert_allclose(found, truth, **limits)


def lists(*arrays):
    """Each array as a list of one."""
    return [[a] for a in arrays]


def normal(*shape, dtype=F64):
    return RNG.standard_normal(shape).astype(dtype)


# -- recurrent steps -----------------------------------------------------------------------------------
#
# Complex steps differentiate without hand-made rules: Im f(z + ih) / h is f'(z) to the last bit, as nothing cancels.

H = 1e-30


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(from_x, from_h, c):
    i, f, g, o = np.split(from_x + from_h, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(from_x, from_h, h):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = np.split(from_x, 3, axis=-1), np.split(from_h, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    return ((1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * h,)


def pulled_back(step, cts, arguments, which):
    """The cotangent of one argument: unit by unit, since no unit of a step's pointwise part reads another's."""
    n, at = cts[0].shape[-1], arguments[which].astype(complex)
    found = np.zeros(at.shape)
    for k in range(0, at.shape[-1], n):
        shifted = at.copy()
        shifted[..., k : k + n] += H * 1j
        ys = step(*arguments[:which], shifted, *arguments[which + 1 :])
        found[..., k : k + n] = sum(ct * y.imag for ct, y in zip(cts, ys, strict=True)) / H
    return found


NONE = np.zeros((1, 1))


def unit_by_unit(batch, n, step):
    """A step of the reference for each unit alone: what it reads are its biases, and all products are 0."""
    found = [step(row, unit) for row in range(batch) for unit in range(n)]
    return [np.reshape(ys, (batch, n)) for ys in zip(*found, strict=True)]


def check_lstm_gates(gpu, dtype, batch, n):
    from_x, from_h, b, c = 2 * normal(batch, 4 * n), normal(batch, 4 * n), normal(4 * n), normal(batch, n)
    from_x, from_h, b, c = (a.astype(dtype) for a in (from_x, from_h, b, c))
    gates, h_next, c_next, tanh_c = outs = put(from_x, *[np.full((batch, n), np.nan, dtype)] * 3)
    gpu.lstm_gates(*put(from_h, b, c), *outs)
    z = from_x.astype(F64) + from_h + b
    w = np.zeros((1, 4))

    def alone(row, unit):
        return reference.lstm_step(NONE, NONE, c[row, unit].reshape(1, 1), w, w, z[row, unit::n])

    h_truth, c_truth = unit_by_unit(batch, n, alone)
    near(got(h_next), h_truth, dtype)
    near(got(c_next), c_truth, dtype)
    near(got(tanh_c), np.tanh(c_truth), dtype)
    activated = np.vectorize(reference.sigmoid)(z)
    activated[:, 2 * n : 3 * n] = np.tanh(z[:, 2 * n : 3 * n])
    near(got(gates), activated, dtype)
    in_place = put(from_x, c)
    gpu.lstm_gates(*put(from_h, b), in_place[1], in_place[0], h_next, in_place[1], tanh_c)
    np.testing.assert_array_equal(got(in_place[1]), got(c_next))


def check_lstm_pullback(gpu, dtype, batch, n):
    from_x, from_h, c = 2 * normal(batch, 4 * n), np.zeros((1, 4 * n)), normal(batch, n, dtype=dtype)
    ct_h, ct_c = normal(2, batch, n, dtype=dtype)
    i, f, g, o = np.split(from_x, 4, axis=-1)
    gates = np.concatenate([sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)], axis=-1).astype(dtype)
    tanh_c = np.tanh(lstm(from_x, from_h, c)[1]).astype(dtype)
    ct_z, ct_c_in = put(np.full((batch, 4 * n), np.nan, dtype), np.full((batch, n), np.nan, dtype))
    gpu.lstm_step_pullback(*put(ct_h, ct_c, c, gates, tanh_c), ct_z, ct_c_in)
    near(got(ct_z), pulled_back(lstm, (ct_h, ct_c), (from_x, from_h, c), 0), dtype, 4)
    near(got(ct_c_in), pulled_back(lstm, (ct_h, ct_c), (from_x, from_h, c), 2), dtype, 4)
    on_c, on_gates = put(ct_c, gates)
    gpu.lstm_step_pullback(*put(ct_h), on_c, *put(c), on_gates, *put(tanh_c), on_gates, on_c)
    np.testing.assert_array_equal(got(on_c), got(ct_c_in))
    np.testing.assert_array_equal(got(on_gates), got(ct_z))


def check_gru_gates(gpu, dtype, batch, n):
    from_x, from_h, h = 2 * normal(batch, 3 * n), normal(batch, 3 * n), normal(batch, n)
    b, b_h = normal(2, 3 * n, dtype=dtype)
    from_x, from_h, h = (a.astype(dtype) for a in (from_x, from_h, h))
    gates, inner, h_next = outs = put(from_x, *[np.full((batch, n), np.nan, dtype)] * 2)
    gpu.gru_gates(*put(from_h, b, b_h, h), *outs)
    w = np.zeros((1, 3))
    sums, sums_h = from_x.astype(F64) + b, from_h.astype(F64) + b_h

    def alone(row, unit):
        of_x, of_h = sums[row, unit::n], sums_h[row, unit::n]
        return (reference.gru_step(NONE, h[row, unit].reshape(1, 1), w, w, of_x, of_h),)

    (truth,) = unit_by_unit(batch, n, alone)
    near(got(h_next), truth, dtype)
    near(got(inner), sums_h[:, 2 * n :], dtype)
    r, z = np.split(np.vectorize(reference.sigmoid)((sums + sums_h)[:, : 2 * n]), 2, axis=-1)
    candidate = np.tanh(sums[:, 2 * n :] + r * sums_h[:, 2 * n :])
    near(got(gates), np.concatenate([r, z, candidate], axis=-1), dtype)
    on_h, again = put(h, from_x)
    gpu.gru_gates(*put(from_h, b, b_h), on_h, again, inner, on_h)
    np.testing.assert_array_equal(got(on_h), got(h_next))


def check_gru_pullback(gpu, dtype, batch, n):
    from_x, from_h = 2 * normal(batch, 3 * n), normal(batch, 3 * n)
    ct, h = normal(2, batch, n, dtype=dtype)
    r, z = np.split(sigmoid((from_x + from_h)[:, : 2 * n]), 2, axis=-1)
    inner = from_h[:, 2 * n :]
    gates = np.concatenate([r, z, np.tanh(from_x[:, 2 * n :] + r * inner)], axis=-1).astype(dtype)
    inner = inner.astype(dtype)
    ct_x, ct_h, ct_in = put(*[np.full((batch, 3 * n), np.nan, dtype)] * 2, np.full((batch, n), np.nan, dtype))
    gpu.gru_step_pullback(*put(ct, h, gates, inner), ct_x, ct_h, ct_in)
    for which, found in enumerate((ct_x, ct_h, ct_in)):
        near(got(found), pulled_back(gru, (ct,), (from_x, from_h, h), which), dtype, 4)
    on_ct, on_gates = put(ct, gates)
    gpu.gru_step_pullback(on_ct, *put(h), on_gates, *put(inner), on_gates, *put(got(ct_h)), on_ct)
    np.testing.assert_array_equal(got(on_ct), got(ct_in))
    np.testing.assert_array_equal(got(on_gates), got(ct_x))


def check_rnn(gpu, dtype, batch, n):
    from_x, from_h = normal(2, batch, n, dtype=dtype)
    b = normal(n, dtype=dtype)
    (h_next,) = put(from_x)
    gpu.rnn_gates(*put(from_h, b), h_next)
    z = from_x.astype(F64) + from_h + b

    def alone(row, unit):
        return (reference.rnn_step(NONE, NONE, NONE, NONE, z[row, unit : unit + 1]),)

    (truth,) = unit_by_unit(batch, n, alone)
    near(got(h_next), truth, dtype)
    ct, y = normal(batch * n, dtype=dtype), got(h_next).ravel()
    (ct_z,) = put(np.full_like(ct, np.nan))
    gpu.rnn_step_pullback(*put(ct, y), ct_z)
    near(got(ct_z), ct * np.tanh(z.ravel() + H * 1j).imag / H, dtype, 4)


STEPS = [check_lstm_gates, check_lstm_pullback, check_gru_gates, check_gru_pullback, check_rnn]


@REAL
@pytest.mark.parametrize(("batch", "n"), SHAPES)
@pytest.mark.parametrize("check", STEPS, ids=lambda check: check.__name__)
def test_a_recurrent_kernel_is_its_definition(check, dtype, batch, n):
    check(gpu, dtype, batch, n)


@pytest.mark.parametrize(("batch", "n"), [(0, 3), (2, 0)])
def test_a_batch_of_none_launches_nothing(batch, n):
    z, b, c = np.zeros((batch, 4 * n)), np.zeros(4 * n), np.zeros((batch, n))
    assert gpu.lstm_gates.bind(*put(z, b, c, z, c, c, c)).ready == []
    gpu.lstm_gates(*put(z, b, c, z, c, c, c))


@REAL
def test_rows_may_be_apart(dtype):
    """As in [x, h, 1], where a step writes h between the others."""
    from_x, from_h, c, b = *normal(2, 3, 20, dtype=dtype), normal(3, 5, dtype=dtype), normal(20, dtype=dtype)
    h, c_next, tanh_c = put(*[np.zeros((3, 5), dtype)] * 3)
    gpu.lstm_gates(*put(from_h, b, c, from_x), h, c_next, tanh_c)
    (stacked,) = put(np.ones((3, 9), dtype))
    gpu.lstm_gates(*put(from_h, b, c, from_x), stacked[:, 3:8], c_next, tanh_c)
    np.testing.assert_array_equal(got(stacked), np.hstack([np.ones((3, 3)), got(h), np.ones((3, 1))]))


@REAL
def test_gates_far_from_zero_saturate(dtype):
    """A sigmoid that computed e^1000 would overflow, or raise."""
    ends = np.array([[-1e4, 1e4, -80.0, 80.0, 0.0]], dtype)
    n = ends.size
    gates, zeros = np.concatenate([ends] * 4, axis=1), np.zeros((1, n), dtype)
    made, *_ = outs = put(gates, zeros, zeros, zeros)
    gpu.lstm_gates(*put(np.zeros_like(gates), np.zeros(4 * n, dtype), zeros), *outs)
    tiny = np.exp(-80.0)
    near(got(made)[:, :n], [[0, 1, tiny, 1, 0.5]], dtype)
    near(got(made)[:, 2 * n : 3 * n], [[-1, 1, -1, 1, 0]], dtype)
    assert abs(got(made)[0, 2] - tiny) <= 4e-6 * tiny


# -- losses and tables ---------------------------------------------------------------------------------


def cross_entropy(gpu, logits, labels):
    rows, dtype = len(logits), logits.dtype
    logits, labels, probabilities, losses, loss = put(
        logits, labels, np.full_like(logits, np.nan), np.full(rows, np.nan, dtype), np.full(1, np.nan, dtype)
    )
    gpu.softmax_cross_entropy(logits, labels, probabilities, losses, loss)
    return got(probabilities, losses, loss)


def softmax(logits):
    exact = np.exp(logits.astype(F64) - logits.max(-1, keepdims=True))
    return exact / exact.sum(-1, keepdims=True)


def check_cross_entropy(gpu, dtype, rows, classes):
    logits, labels = (3 * normal(rows, classes)).astype(dtype), RNG.integers(0, classes, rows)
    logits[-1] += 500  # e^500 would overflow
    probabilities, losses, loss = cross_entropy(gpu, logits, labels)
    near(probabilities, softmax(logits), dtype, 2)
    # A float32 of 500 is rounded by 3e-5; both are given the rounded one, and their differences are exact.
    near(loss[0], reference.softmax_cross_entropy(logits, labels), dtype, 2)
    near(
        losses,
        [reference.softmax_cross_entropy(logits[k : k + 1], labels[k : k + 1]) for k in range(rows)],
        dtype,
        2,
    )
    ct, probabilities = normal(1, dtype=dtype), softmax(logits).astype(dtype)
    (ct_logits,) = put(np.full_like(logits, np.nan))
    gpu.softmax_cross_entropy_pullback(*put(ct, labels, probabilities), ct_logits)
    truth = softmax(logits)
    truth[np.arange(rows), labels] -= 1
    near(got(ct_logits), truth * ct / rows, dtype, 2)
    (in_place,) = put(probabilities)
    gpu.softmax_cross_entropy_pullback(*put(ct, labels), in_place, in_place)
    np.testing.assert_array_equal(got(in_place), got(ct_logits))


@REAL
@pytest.mark.parametrize(
    ("rows", "classes"), [(1, 1), (1, 7), (5, 3), (4, 41)] + ([] if SIMULATED else [(300, 5000)])
)
def test_cross_entropy_and_its_pullback_are_their_definitions(dtype, rows, classes):
    check_cross_entropy(gpu, dtype, rows, classes)


def test_a_block_may_have_more_threads_than_a_row_has_classes(monkeypatch):
    monkeypatch.setattr(gpu_launch, "WARP", 32)
    check_cross_entropy(gpu, F32, 2, 5)
    check_squared_norm(gpu, F32, 7, 2)


def check_labels_out_of_range(gpu):
    logits, labels = normal(4, 3), np.array([2, -1, 3, 0])
    _, losses, loss = cross_entropy(gpu, logits, labels)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False])
    assert np.isnan(loss[0])
    (ct_logits,) = put(np.zeros((4, 3)))
    gpu.softmax_cross_entropy_pullback(*put(np.ones(1), labels, softmax(logits)), ct_logits)
    np.testing.assert_array_equal(np.isnan(got(ct_logits)).all(axis=1), [False, True, True, False])


def test_a_label_out_of_range_is_nan_and_reads_nothing_outside():
    check_labels_out_of_range(gpu)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_nan_and_infinity_in_the_logits_reach_the_loss():
    for bad in (np.nan, np.inf):
        for position in (0, 3, 4):
            logits = np.zeros((1, 5))
            logits[0, position] = bad
            assert np.isnan(cross_entropy(gpu, logits, np.array([3]))[2][0])
    assert np.isnan(cross_entropy(gpu, np.full((1, 2), -np.inf), np.array([1]))[2][0])
    loss = cross_entropy(gpu, np.array([[0.0, -np.inf, 0.0]]), np.array([0]))[2]
    np.testing.assert_allclose(loss, np.log(2))


def test_the_mean_loss_of_none_is_nan():
    assert np.isnan(cross_entropy(gpu, np.zeros((0, 3)), np.zeros(0, np.int64))[2][0])


def check_embedding(gpu, dtype, count, size, k, ordered):
    ct, indices = normal(k, size, dtype=dtype), RNG.integers(-count, count, k)
    before = normal(count, size, dtype=dtype)
    gradient, faults, order = put(before, np.zeros(1, np.int64), np.full(k, 10**9))
    if ordered:
        gpu.embedding_gradient_in_order(*put(ct, indices), order, gradient, faults)
        one_by_one = before.copy()
        for row, index in zip(ct, indices, strict=True):
            one_by_one[index] += row
        np.testing.assert_array_equal(got(gradient), one_by_one)
        np.testing.assert_array_equal(got(order), np.argsort(indices % count, kind="stable"))
    else:
        gpu.embedding_gradient(*put(ct, indices), gradient, faults)
    near(got(gradient) - before, reference.embedding_gradient(ct, indices, count), dtype, k + 1)
    assert got(faults)[0] == 0


@REAL
@pytest.mark.parametrize("ordered", [False, True], ids=["atomics", "ordered"])
@pytest.mark.parametrize(
    ("count", "size", "k"),
    [(4, 3, 9), (1, 1, 1), (5, 8, 0), (2, 11, 13)] + ([] if SIMULATED else [(50, 200, 2000)]),
)
def test_the_embedding_gradient_is_its_definition(dtype, count, size, k, ordered):
    check_embedding(gpu, dtype, count, size, k, ordered)


@pytest.mark.parametrize("ordered", [False, True], ids=["atomics", "ordered"])
def test_an_index_out_of_range_is_counted_and_adds_nothing(ordered):
    indices, ct = np.array([3, 0, -4, -3, 10**12, 2, -(10**12)]), np.ones((7, 2))
    gradient, faults, order = put(np.zeros((3, 2)), np.full(1, 5), np.zeros(7, np.int64))
    if ordered:
        gpu.embedding_gradient_in_order(*put(ct, indices), order, gradient, faults)
    else:
        gpu.embedding_gradient(*put(ct, indices), gradient, faults)
    np.testing.assert_array_equal(got(gradient), [[2, 2], [0, 0], [1, 1]])
    assert got(faults)[0] == 5 + 4


# -- norms and optimizers ------------------------------------------------------------------------------


def squared_norm(gpu, grad, parts):
    partial, squared = put(np.full(parts, np.nan), np.full(1, np.nan))
    gpu.squared_norm(put(grad), partial, squared)
    return got(squared)[0]


def check_squared_norm(gpu, dtype, size, parts):
    grad = normal(size, dtype=dtype)
    truth = sum(float(g) ** 2 for g in grad)
    np.testing.assert_allclose(squared_norm(gpu, grad, parts), truth, rtol=1e-12)


@REAL
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_the_squared_norm_is_a_sum_of_squares(dtype, size, parts):
    check_squared_norm(gpu, dtype, size, parts)


def test_the_squared_norm_does_not_depend_on_how_many_blocks_share_it(monkeypatch):
    grad, found = normal(101, dtype=F32), []
    for blocks in (1, 2, 5):
        monkeypatch.setattr(gpu_launch, "MOST_BLOCKS", blocks)
        found.append(squared_norm(gpu, grad, 5))
    assert found[0] == found[1] == found[2]


def test_the_squares_of_large_gradients_do_not_overflow():
    grad = np.full(9, 1e30, F32)
    np.testing.assert_allclose(squared_norm(gpu, grad, 1), 9e60, rtol=1e-6)


@ON_HOST
def test_a_few_thousand_squares_are_a_part():
    assert [gpu.parts(n) for n in (0, 1, 4096, 4097, 10**9)] == [1, 1, 1, 2, 1024]


def check_clipping(gpu, dtype):
    grad = np.array([3.0, 0.0, 4.0, 0.0, 0.0], dtype)
    for limit, scale in ((10.0, 1.0), (5.0, 1.0), (1.0, 0.2)):
        given, partial, squared, factor = put(grad, np.zeros(2), np.zeros(1), np.zeros(1, dtype))
        gpu.clip_by_norm([given], partial, squared, *put(np.full(1, limit)), factor)
        near(got(given), grad * scale, dtype)
        near(got(factor), [scale], dtype)
        assert got(squared)[0] == 25
    for bad in (np.nan, np.inf):
        broken = np.array([1.0, bad], dtype)
        given, partial, squared, factor = put(broken, np.zeros(2), np.zeros(1), np.zeros(1, dtype))
        gpu.clip_by_norm([given], partial, squared, *put(np.ones(1)), factor)
        np.testing.assert_array_equal(got(given), broken)


@REAL
def test_a_norm_above_the_limit_is_brought_down_to_it_and_one_that_is_not_finite_changes_nothing(dtype):
    check_clipping(gpu, dtype)


@REAL
def test_one_element_that_is_not_finite_is_found_wherever_it_is(dtype):
    verdict, steps = put(np.array([1]), np.array([7]))
    largest = np.full(19, np.finfo(dtype).max, dtype)
    gpu.finite(put(largest), verdict, steps)
    assert got(verdict)[0] == 1
    for bad in (np.nan, np.inf, -np.inf):
        for position in (0, 8, 18):
            grad = largest.copy()
            grad[position] = bad
            gpu.finite(put(np.zeros(2, dtype), grad), verdict, steps)
            assert got(verdict)[0] == 0
    gpu.finite(put(np.zeros(0, dtype)), verdict, steps)
    assert got(verdict)[0] == 1
    assert got(steps)[0] == 7 + 1 + 1  # those allowed before: what came with `verdict`, and the largest


LR, MU, BETAS, EPS = 0.1, 0.9, (0.8, 0.999), 1e-6


def check_sgd(gpu, dtype, size):
    value, grad = normal(2, size, dtype=dtype)
    rates, yes, new = put(np.full(1, LR, dtype), np.ones(1, np.int64), np.full(size, np.nan, dtype))
    gpu.sgd(*lists(*put(value, grad), new), rates, yes)
    near(got(new), reference.sgd(value, grad, LR), dtype)


def check_momentum(gpu, dtype, size):
    value, grad, velocity = normal(3, size, dtype=dtype)
    rates, yes, new = put(np.array([LR, MU], dtype), np.ones(1, np.int64), np.full(size, np.nan, dtype))
    (moved,) = put(velocity)
    gpu.momentum(*lists(*put(value, grad), moved, new), rates, yes)
    for found, truth in zip((new, moved), reference.momentum(value, grad, velocity, LR, MU), strict=True):
        near(got(found), truth, dtype)


def check_adam(gpu, dtype, size):
    value, zeros = normal(size, dtype=dtype), np.zeros(size, dtype)
    truth = (value.astype(F64), zeros.astype(F64), zeros.astype(F64))
    settings, yes, steps = put(np.array([LR, *BETAS, EPS]), np.ones(1, np.int64), np.zeros(1, np.int64))
    w, mean, square, rates = put(value, zeros, zeros, np.full(7, np.nan, dtype))
    for t in (1, 2, 3):
        grad = normal(size, dtype=dtype)
        truth = reference.adam(truth[0], grad, truth[1], truth[2], LR, BETAS, EPS, t)
        gpu.adam_rates(settings, yes, steps, rates)
        gpu.adam(*lists(w, *put(grad), mean, square, w), rates, yes)  # in place
        for found, exact in zip((w, mean, square), truth, strict=True):
            near(got(found), exact, dtype, 3)
    assert got(steps)[0] == 3


OPTIMIZERS = [check_sgd, check_momentum, check_adam]


@REAL
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("check", OPTIMIZERS, ids=lambda check: check.__name__)
def test_an_optimizers_kernel_is_its_definition(check, dtype, size):
    check(gpu, dtype, size)


def test_a_verdict_against_a_step_leaves_everything_as_it_was():
    value, grad, velocity, square = normal(4, 5)
    (no,) = put(np.zeros(1, np.int64))
    for kernel, state, rates in (
        (gpu.sgd, [], [LR]),
        (gpu.momentum, [velocity], [LR, MU]),
        (gpu.adam, [velocity, square], [0.1] * 7),
    ):
        given, (new,) = put(*state), put(np.full(5, np.nan))
        kernel(*lists(*put(value, grad), *given, new), *put(np.array(rates)), no)
        np.testing.assert_array_equal(got(new), value)
        for found, before in zip(given, state, strict=True):
            np.testing.assert_array_equal(got(found), before)
    steps, rates = put(np.full(1, 4), np.zeros(7))
    gpu.adam_rates(*put(np.array([LR, *BETAS, EPS])), no, steps, rates)
    assert got(steps)[0] == 4
    assert not got(rates).any()


def test_a_launch_bound_once_reads_what_its_arrays_hold_then():
    value, grad, new, lr, yes = put(
        np.ones(3), np.ones(3), np.zeros(3), np.array([0.5]), np.ones(1, np.int64)
    )
    step = gpu.sgd.bind(*lists(value, grad, new), lr, yes)
    other = gpu.sgd.bind(*lists(*put(np.zeros(40), np.zeros(40), np.zeros(40))), lr, yes)
    step()
    np.testing.assert_array_equal(got(new), [0.5] * 3)
    lr.copy_to_device(np.array([2.0]))
    other()
    step()
    np.testing.assert_array_equal(got(new), [-1.0] * 3)


class Numbas:
    """What a launch on a GPU needs of Numba, written down in order."""

    def __init__(self):
        self.calls = []

    def as_cuda_array(self, array, sync=True):
        self.calls.append(f"wrap, sync={sync}")
        return types.SimpleNamespace(shape=array.shape, dtype=array.dtype, _numba_type_=array.ndim)

    def external_stream(self, address):
        return f"stream {address}"

    def compile(self, signature):
        self.calls.append(f"compile {signature}")

    def __getitem__(self, configuration):
        warnings.warn("Grid size 9 will likely result in GPU under-utilization", stacklevel=2)
        return lambda *arrays: self.calls.append(f"launch {configuration}")


@ON_HOST
def test_a_launch_wraps_and_compiles_when_it_is_bound_and_only_launches_after(monkeypatch):
    numbas = Numbas()
    monkeypatch.setattr(gpu_launch, "cuda", numbas)
    monkeypatch.setattr(gpu_launch, "SIMULATED", False)
    for name, limit in GPU_LIMITS.items():
        monkeypatch.setattr(gpu_launch, name, limit)
    monkeypatch.setitem(gpu.rnn_gates.__dict__, "dispatcher", numbas)
    step = gpu.rnn_gates.bind(np.zeros((3, 300)), np.zeros(300), np.zeros((3, 300)), stream=64)
    assert numbas.calls == ["wrap, sync=False"] * 3 + ["compile (2, 1, 2)"]
    numbas.calls.clear()
    step()
    step()
    assert numbas.calls == ["launch ((3, 3), 128, 'stream 64', 0)"] * 2


# -- what does not fit ---------------------------------------------------------------------------------


def refused(error, message, kernel, *arrays):
    with pytest.raises(error, match=re.escape(message)):
        kernel(*arrays)


def test_arrays_that_do_not_fit_are_refused_by_name():
    z, b, c = np.zeros((2, 12), F32), np.zeros(12, F32), np.zeros((2, 3), F32)
    good = [z, b, c, z, c, c, c]
    gpu.lstm_gates.bind(*put(*good))
    for k, wrong, error, message in (
        (0, np.zeros((2, 13), F32), ValueError, "`from_h` must be (batch, 4n), and float32 (2, 13) came."),
        (1, np.zeros(11, F32), ValueError, "`b` must be (4n), and float32 (11,) came. batch = 2, n = 3"),
        (1, np.zeros((1, 12), F32), ValueError, "`b` must be (4n), and float32 (1, 12) came."),
        (2, np.zeros((3, 3), F32), ValueError, "`c` must be (batch, n), and float32 (3, 3) came."),
        (5, np.zeros((2, 3)), TypeError, "`c_next` must be float32, and float64 (2, 3) came."),
        (
            0,
            np.zeros((2, 12), np.float16),
            TypeError,
            "`from_h` must be float32 or float64, and float16 (2, 12) came.",
        ),
    ):
        given = [*good[:k], wrong, *good[k + 1 :]]
        refused(error, f"lstm_gates: {message}", gpu.lstm_gates, *put(*given))
    labels = np.zeros(2, np.int32)
    refused(
        TypeError, "`labels` must be int64", gpu.cross_entropy_of_rows, *put(c, labels, c, np.zeros(2, F32))
    )
    refused(TypeError, "sgd: takes values, grads, news, rates, verdict; 1 arrays came.", gpu.sgd, *put(b))
    refused(TypeError, "finite: takes grads, verdict, steps; 1 arrays came.", gpu.finite, *put(b))


@ON_HOST
@pytest.mark.parametrize("limits", [{}, GPU_LIMITS], ids=["these", "a GPU's"])
def test_a_grid_is_within_cudas_limits_and_its_blocks_can_be_halved(limits, monkeypatch):
    for name, limit in limits.items():
        monkeypatch.setattr(gpu_launch, name, limit)
    for rows in (1, 2, 64, 100_000):
        for columns in (1, 31, 32, 33, 1000, 10**9):
            for together in (False, True):
                (x, y), threads = gpu_launch.grid(rows, columns, together)
                assert 1 <= x <= gpu_launch.MOST_BLOCKS
                assert 1 <= y <= min(rows, 65535)
                assert threads <= 512
                assert threads & (threads - 1) == 0
                if not together and columns <= gpu_launch.THREADS * gpu_launch.MOST_BLOCKS:
                    assert (x - 1) * threads < columns <= x * threads
    assert gpu_launch.grid(0, 0, True)[0] == (1, 1)


@ON_HOST
def test_a_docstrings_kernels_exist_on_the_host_too():
    """By name and arguments: what `cpu.py` takes comes first, in its order; then what the caller makes room for."""
    for name in (
        "lstm_gates", "lstm_step_pullback", "gru_gates", "gru_step_pullback", "rnn_gates", "rnn_step_pullback",
        "softmax_cross_entropy", "softmax_cross_entropy_pullback",
    ):  # fmt: skip
        taken = list(inspect.signature(getattr(cpu, name)).parameters)
        assert getattr(gpu, name).arguments[: len(taken)] == taken


# -- faults planted ------------------------------------------------------------------------------------


def planted(module, old, new):
    """`gpu`, with one line of it or of `gpu_recurrent` changed."""
    source = inspect.getsource(module)
    assert source.count(old) >= 1, old
    made = types.ModuleType(module.__name__, module.__doc__)
    made.__dict__.update(__package__=module.__package__, __file__=module.__file__)
    exec(compile(source.replace(old, new, 1), module.__file__, "exec"), made.__dict__)
    return made


FAULTS = [
    (gpu_recurrent, "from_h[row, 3 * n + j] + b[3 * n + j]", "from_h[row, n + j] + b[3 * n + j]", check_lstm_gates),
    (gpu_recurrent, "n = c.shape\n    for row in range(cuda.blockIdx.y", "n = c.shape\n    for row in range(1 + cuda.blockIdx.y", check_lstm_gates),
    (gpu_recurrent, "new = f * c[row, j] + i * g", "new = f * c[row, j] + i * o", check_lstm_gates),
    (gpu_recurrent, "(through - through * bounded * bounded)", "through", check_lstm_pullback),
    (gpu_recurrent, "ct_new * c[row, j] * (f - f * f)", "ct_new * c[row, 0] * (f - f * f)", check_lstm_pullback),
    (gpu_recurrent, "candidate + z * (h[row, j] - candidate)", "h[row, j] + z * (candidate - h[row, j])", check_gru_gates),
    (gpu_recurrent, "x_r, x_z, x_n * r", "x_r, x_z, x_n", check_gru_pullback),
    (gpu_recurrent, "math.tanh(h_next[row, j] + from_h[row, j] + b[j])", "math.tanh(h_next[row, j] + from_h[row, j])", check_rnn),
    (gpu, "    space[t] = value\n    cuda.syncthreads()\n", "    space[t] = value\n", check_cross_entropy),
    (gpu, "            space[t] += space[t + half]\n        cuda.syncthreads()\n", "            space[t] += space[t + half]\n", check_cross_entropy),
    (gpu, "    cuda.syncthreads()  # until now a slower thread may be reading the last result\n", "", check_cross_entropy),
    (gpu, "            space[t] = space[t + half]\n        cuda.syncthreads()\n", "            space[t] = space[t + half]\n", check_cross_entropy),
    (gpu, "top = block_largest(top, space)\n", "", check_cross_entropy),
    (gpu, "math.exp(logits[row, j] - top)", "math.exp(logits[row, j] - logits[0, 0])", check_cross_entropy),
    (gpu, "if j == label", "if j == row", check_cross_entropy),
    (gpu, "if 0 <= label < classes", "if label < classes", check_labels_out_of_range),
    (gpu, "(other == row and m < k)", "(other == row and m > k)", check_embedding),
    (gpu, "elif first == 0 or row_of(indices[order[first - 1]], count) != row", "else", check_embedding),
    (gpu, "(part * threads + t, grad.size, count * threads)", "(part * threads + t, grad.size, threads)", check_squared_norm),
    (gpu, "    half = cuda.blockDim.x // 2\n", "    half = cuda.blockDim.x // 4\n", check_squared_norm),
    (gpu, "limit[0] / norm", "limit[0] / squared[0]", check_clipping),
    (gpu_optimizers, "value[j] - lr * grad[j]", "value[j] - lr * grad[0]", check_sgd),
    (gpu_optimizers, "value[j] - lr * v", "value[j] - lr * grad[j]", check_momentum),
    (gpu_optimizers, "rest2 * (g * g)", "rest1 * (g * g)", check_adam),
    (gpu_optimizers, "one - math.pow(beta2, t)", "one - math.pow(beta1, t)", check_adam),
]  # fmt: skip

SHAPE_OF = {check_cross_entropy: (4, 41), check_squared_norm: (53, 4), check_embedding: (4, 3, 9, True)}
SHAPE_OF |= dict.fromkeys(STEPS, (3, 5)) | dict.fromkeys(OPTIMIZERS, (53,)) | {check_clipping: ()}


@pytest.mark.parametrize("fault", range(len(FAULTS)))
@pytest.mark.skipif(
    not SIMULATED, reason="on a GPU a missing barrier may go well, and an index wreck the rest"
)
def test_a_planted_fault_is_seen(fault):
    module, old, new, check = FAULTS[fault]
    shape = SHAPE_OF.get(check)
    run = check if shape is None else functools.partial(check, dtype=F64)
    arguments = () if shape is None else shape
    names = list(inspect.signature(check).parameters)[2:]
    with pytest.raises((AssertionError, IndexError)):
        run(planted(module, old, new), **dict(zip(names, arguments, strict=True)))


# -- without a GPU -------------------------------------------------------------------------------------


@ON_HOST
@pytest.mark.skipif(SIMULATED, reason="this is the simulator")
def test_every_kernel_in_numbas_simulator():
    pytest.importorskip("numba")
    # Not `-m pytest`: that would put the working folder on the path, and test what is not installed.
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    found = subprocess.run(
        [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-ra", __file__],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTEST_ADDOPTS": ""},
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert int(re.search(r"(\d+) passed", found.stdout)[1]) > 90, found.stdout


@ON_HOST
def test_without_numba_the_kernels_can_be_imported_and_say_what_is_missing():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from tapegrad.kernels import gpu\n"
        "try: gpu.finite([1], 2, 3)\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(gpu.__file__).anchor,
    )
    assert found.stdout.strip() == "approve: Numba is not installed. Run pip install 'tapegrad[cuda13]'.", (
        found.stderr
    )


COMPILE = """
import json, sys, types
import numpy as np
import numba.cuda.dispatcher
from numba import cuda
from tapegrad.kernels import gpu

# The functions that kernels call are compiled for the GPU at hand, which need not be there.
numba.cuda.dispatcher.get_current_device = lambda: types.SimpleNamespace(compute_capability=(9, 0))
try:
    cuda.compile_ptx(lambda x: None, (numba.float32,), cc=(9, 0), device=False)
except Exception as error:
    print(json.dumps({"missing": str(error)}))
    sys.exit()
def ptx(kernel, *types):
    return cuda.compile_ptx(kernel.function, kernel.signature(*types), cc=(9, 0), device=False, lineinfo=True)[0]

made = {f"{n} {dtype}": ptx(k, dtype) for n, k in gpu.KERNELS.items() for dtype in ("float32", "float64")}
made["lstm_gates float32 strides"] = ptx(gpu.lstm_gates, "float32", "A")
listed = {n: k for n, k in gpu.KERNELS.items() if any(k.listed)}
made |= {f"{n} float32 of many": ptx(k, "float32", "C", 12) for n, k in listed.items()}
print(json.dumps(made))
"""

# What sums in float64, or computes a few numbers once.
DOUBLE = {"mean_loss", "squares", "added", "clip_factor", "adam_rates"}
REGISTERS = 128  # a block of 512 threads, the largest launched, has 128 for each of an H100's 65,536


@ON_HOST
@pytest.mark.skipif(SIMULATED, reason="the simulator does not compile")
def test_every_kernel_compiles_for_an_h100_without_spills_and_float32_stays_float32(tmp_path):
    pytest.importorskip("numba")
    folder = pathlib.Path(gpu.__file__).anchor
    found = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, cwd=folder)
    assert found.returncode == 0, found.stderr
    made = json.loads(found.stdout)
    if "missing" in made:
        pytest.skip(f"no NVVM: pip install 'numba-cuda[cu13]'. {made['missing'][:200]}")
    assert len(made) == 2 * len(gpu.KERNELS) + 1 + sum(any(k.listed) for k in gpu.KERNELS.values())
    for name, ptx in made.items():
        kernel, dtype = name.split()[:2]
        (arguments,) = re.findall(r"\.entry [\w$]+\(([^)]*)\)", ptx)
        # What `gpu_cupy` lays out: for an array five words, its shape and its strides, of eight bytes each.
        declared, many = gpu.KERNELS[kernel], 12 if name.endswith("of many") else 1
        words = sum(
            (5 + 2 * len(axes)) * (many if listed else 1)
            for (axes, _), listed in zip(declared.shapes, declared.listed, strict=True)
        )
        assert re.findall(r"\.param (\S+)", arguments) == [".u64"] * words, name
        assert 8 * words <= 4096, "more than a launch takes on every GPU"
        if dtype == "float32" and kernel not in DOUBLE:
            assert not [line for line in ptx.splitlines() if ".f64" in line and ".reg" not in line], name
    ptxas = shutil.which("ptxas") or shutil.which("ptxas", path="/usr/local/cuda/bin")
    if ptxas:
        for name, ptx in made.items():
            file = tmp_path / "kernel.ptx"
            file.write_text(ptx)
            said = subprocess.run(
                [ptxas, "-arch=sm_90", "-v", file, "-o", os.devnull], capture_output=True, text=True
            )
            assert said.returncode == 0, f"{name}: {said.stderr}"
            # adam_rates' power is a function of its own, with a report of its own.
            assert set(re.findall(r"(\d+) bytes spill", said.stderr)) == {"0"}, f"{name}: {said.stderr}"
            assert max(map(int, re.findall(r"Used (\d+) registers", said.stderr))) <= REGISTERS, name
