"""Every kernel against its definition, one element at a time, and against differences of it."""

import numpy as np
import pytest
from tapegrad.kernels import cpu, reference

RNG = np.random.default_rng(0)


def lstm_inputs(batch=3, n_in=2, n=4):
    shapes = [(batch, n_in), (batch, n), (batch, n), (n_in, 4 * n), (n, 4 * n), (4 * n,)]
    return [RNG.standard_normal(shape) for shape in shapes]


def test_the_lstm_step_is_its_definition():
    inputs = lstm_inputs()
    h, c, gates, tanh_c = cpu.lstm_step(*inputs)
    for found, expected in zip((h, c), reference.lstm_step(*inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(tanh_c, np.tanh(c), rtol=1e-15)
    assert gates.shape == (3, 16)


def test_the_lstm_steps_pullback_is_the_gradient_of_its_definition():
    x, h, c, w_x, w_h, b = lstm_inputs()
    ct_h, ct_c = RNG.standard_normal((2, 3, 4))
    _, _, gates, tanh_c = cpu.lstm_step(x, h, c, w_x, w_h, b)
    ct_z, ct_c_in = cpu.lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)

    def value(c, z):  # with the gates' inputs z given as the bias of a cell that reads nothing
        outs = [
            reference.lstm_step(x[i : i + 1] * 0, h[i : i + 1] * 0, c[i : i + 1], w_x, w_h, z[i])
            for i in range(3)
        ]
        return sum(np.sum(ct_h[i] * outs[i][0]) + np.sum(ct_c[i] * outs[i][1]) for i in range(3))

    z, step = x @ w_x + h @ w_h + b, 1e-6
    d_c, d_z = RNG.standard_normal(c.shape), RNG.standard_normal(z.shape)
    difference = (value(c + step * d_c, z + step * d_z) - value(c - step * d_c, z - step * d_z)) / (2 * step)
    np.testing.assert_allclose(np.sum(ct_z * d_z) + np.sum(ct_c_in * d_c), difference, rtol=1e-8)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_weight_gradient_is_a_sum_of_outer_products(rows):
    x, ct = RNG.standard_normal((rows, 3)), RNG.standard_normal((rows, 4))
    np.testing.assert_allclose(cpu.weight_gradient(x, ct), sum(map(np.outer, x, ct)), rtol=1e-13)


def test_cross_entropy_is_its_definition():
    logits, labels = RNG.standard_normal((5, 7)) * 3, RNG.integers(0, 7, 5)
    loss, probabilities = cpu.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(loss, reference.softmax_cross_entropy(logits, labels), rtol=1e-14)
    np.testing.assert_allclose(probabilities.sum(-1), np.ones(5), rtol=1e-14)
    ct_logits = cpu.softmax_cross_entropy_pullback(np.float64(2.0), labels, probabilities)
    direction, step = RNG.standard_normal(logits.shape), 1e-6
    ahead, behind = (reference.softmax_cross_entropy(logits + s * direction, labels) for s in (step, -step))
    np.testing.assert_allclose(np.sum(ct_logits * direction), 2 * (ahead - behind) / (2 * step), rtol=1e-7)


def test_kernels_change_none_of_their_inputs():
    inputs = lstm_inputs()
    copies = [x.copy() for x in inputs]
    h, c, gates, tanh_c = cpu.lstm_step(*inputs)
    kept = [h.copy(), c.copy(), gates.copy(), tanh_c.copy()]
    cpu.lstm_step_pullback(h, c, inputs[2], gates, tanh_c)
    for x, copy in zip([*inputs, h, c, gates, tanh_c], [*copies, *kept], strict=True):
        np.testing.assert_array_equal(x, copy)
