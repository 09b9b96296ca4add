"""Convolutions and pooling against loops over every element, against NumPy, and to second order against PyTorch."""

import itertools

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import convolve as ops
from tapegrad.ops import pool
from tapegrad.program import replay as replay_module

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape)


def first_and_second(f, arrays, ct, us):
    """The value of f, its gradients for `ct`, and the gradients of their product with `us` in the arrays and in `ct`."""
    leaves, seed = [tg.Variable(a) for a in arrays], tg.Variable(ct)
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = f(*leaves)
        sweep = inner.backward(y, seed, record=True)
        first = [sweep[v] for v in leaves]
        total = sum([tg.sum(g * u) for g, u in zip(first, us, strict=True)], tg.constant(0.0))
    second = outer.backward(total)
    return y.value, [g.value for g in first], [second[v] for v in [*leaves, seed]]


def theirs_of(torch, f, arrays, ct, us):
    """The same by PyTorch."""
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    seed, us = torch.tensor(ct, requires_grad=True), [torch.tensor(u) for u in us]
    y = f(*leaves)
    first = torch.autograd.grad(y, leaves, seed, create_graph=True)
    total = sum((g * u).sum() for g, u in zip(first, us, strict=True))
    second = torch.autograd.grad(total, [*leaves, seed], allow_unused=True)
    second = [torch.zeros_like(v) if g is None else g for v, g in zip([*leaves, seed], second, strict=True)]
    return y.detach().numpy(), [g.detach().numpy() for g in first], [g.numpy() for g in second]


def assert_same_to_second_order(ours, theirs, *arrays):
    torch = pytest.importorskip("torch")
    shape = np.shape(ours(*arrays))
    rng = np.random.default_rng(1)
    ct, us = rng.standard_normal(shape), [rng.standard_normal(a.shape) for a in arrays]
    found = first_and_second(ours, arrays, ct, us)
    right = theirs_of(torch, lambda *a: theirs(torch.nn.functional, *a), arrays, ct, us)
    for a, b in zip([found[0], *found[1], *found[2]], [right[0], *right[1], *right[2]], strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max(initial=1.0))


def assert_slope(f, *arrays):
    """Gradients against a difference quotient."""
    leaves, rng, h = [tg.Variable(a) for a in arrays], np.random.default_rng(2), 1e-6
    with tg.Tape() as tape:
        y = f(*leaves)
    ct, directions = rng.standard_normal(y.shape), [rng.standard_normal(a.shape) for a in arrays]
    sweep = tape.backward(y, ct)
    ahead, behind = (f(*[a + s * d for a, d in zip(arrays, directions, strict=True)]) for s in (h, -h))
    slope = sum(np.sum(sweep[v] * d) for v, d in zip(leaves, directions, strict=True))
    np.testing.assert_allclose(slope, np.sum(ct * (ahead - behind)) / (2 * h), rtol=1e-6, atol=1e-8)


# -- convolutions --------------------------------------------------------------------------------------


def convolved_by_loops(x, w, stride, padding, dilation, groups):
    """Every element of every window of every channel, one after another."""
    x = np.pad(x, ((0, 0), (0, 0), *padding))
    lengths = [
        (n - (k - 1) * d - 1) // s + 1
        for n, k, d, s in zip(x.shape[2:], w.shape[2:], dilation, stride, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *lengths))
    rows = w.shape[0] // groups
    for b, o, *at in np.ndindex(*y.shape):
        for c, *k in np.ndindex(*w.shape[1:]):
            place = [i * s + j * d for i, s, j, d in zip(at, stride, k, dilation, strict=True)]
            y[(b, o, *at)] += w[(o, c, *k)] * x[(b, o // rows * w.shape[1] + c, *place)]
    return y


def test_convolutions_are_those_of_loops():
    for stride, padding, dilation, groups in itertools.product((1, 2, 3), (0, 2, (2, 1)), (1, 2), (1, 2)):
        x, w = normal(2, 4, 7), normal(4, 4 // groups, 3)
        pair = padding if isinstance(padding, tuple) else (padding, padding)
        found = ops.conv1d(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
        right = convolved_by_loops(x, w, (stride,), (pair,), (dilation,), groups)
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-14)
    x, w = normal(2, 2, 6, 5), normal(4, 1, 2, 3)
    for stride, dilation in itertools.product([(1, 1), (2, 1), (1, 3)], [(1, 1), (3, 1), (2, 2)]):
        found = ops.conv2d(x, w, stride=stride, padding=((0, 1), 2), dilation=dilation, groups=2)
        right = convolved_by_loops(x, w, stride, ((0, 1), (2, 2)), dilation, 2)
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-14)


ONE = [
    ((2, 3, 8), (4, 3, 3), {}),
    ((2, 3, 8), (4, 3, 3), {"stride": 2, "padding": 1}),
    ((2, 4, 9), (6, 2, 2), {"groups": 2, "dilation": 3, "padding": 2}),
    ((3, 4, 5), (4, 1, 5), {"groups": 4}),
    ((1, 1, 1), (1, 1, 1), {}),
    ((2, 2, 4), (3, 2, 1), {"stride": 3}),
    ((2, 2, 5), (3, 2, 4), {"padding": "same"}),
    ((2, 2, 7), (3, 2, 3), {"padding": "valid", "stride": 3}),
    ((0, 2, 5), (3, 2, 3), {}),
]
TWO = [
    ((2, 3, 6, 5), (4, 3, 3, 3), {}),
    ((2, 3, 6, 5), (4, 3, 3, 2), {"stride": (2, 1), "padding": (0, 2)}),
    ((2, 4, 7, 6), (6, 2, 2, 3), {"groups": 2, "dilation": (2, 1), "padding": 1, "stride": 2}),
    ((2, 4, 5, 5), (8, 1, 3, 3), {"groups": 4, "padding": "same"}),
    ((2, 2, 4, 5), (3, 2, 4, 5), {}),
    ((1, 2, 6, 4), (3, 2, 2, 4), {"padding": "same", "dilation": (2, 1)}),
    ((2, 3, 4, 4), (5, 3, 1, 1), {}),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("x", "w", "options"), ONE, ids=str)
def test_conv1d_is_pytorch_s_to_second_order(x, w, options):
    assert_same_to_second_order(
        lambda x, w: ops.conv1d(x, w, **options),
        lambda F, x, w: F.conv1d(x, w, **options),
        normal(*x),
        normal(*w),
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("x", "w", "options"), TWO, ids=str)
def test_conv2d_is_pytorch_s_to_second_order(x, w, options):
    assert_same_to_second_order(
        lambda x, w: ops.conv2d(x, w, **options),
        lambda F, x, w: F.conv2d(x, w, **options),
        normal(*x),
        normal(*w),
    )


@pytest.mark.parametrize(
    ("x", "w", "options"),
    [
        ((2, 3, 4), (3, 2, 3), {}),
        ((2, 4, 4), (4, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}),
        ((2, 3, 4, 3), (3, 2, 2, 3), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
        ((2, 4, 3, 3), (4, 1, 3, 3), {"stride": 3, "output_padding": (2, 0), "groups": 4}),
    ],
    ids=str,
)
def test_transposed_convolutions_are_pytorch_s_to_second_order(x, w, options):
    name = f"conv_transpose{len(x) - 2}d"
    assert_same_to_second_order(
        lambda x, w: getattr(ops, name)(x, w, **options),
        lambda F, x, w: getattr(F, name)(x, w, **options),
        normal(*x),
        normal(*w),
    )


@pytest.mark.parametrize("at_once", [1, 500, 1 << 40])
def test_it_makes_no_difference_how_many_columns_are_written_out_at_once(at_once, monkeypatch):
    x, w = normal(5, 4, 6, 5), normal(6, 2, 3, 2)
    whole = ops.conv2d(x, w, groups=2, padding=1, stride=(2, 1))
    monkeypatch.setattr(ops, "AT_ONCE", at_once)
    np.testing.assert_allclose(
        ops.conv2d(x, w, groups=2, padding=1, stride=(2, 1)), whole, rtol=1e-13, atol=1e-14
    )
    assert_slope(lambda x, w: ops.conv2d(x, w, groups=2, padding=1, stride=(2, 1)), x, w)


def test_a_transposed_convolution_is_the_transpose():
    x, w = normal(2, 4, 9), normal(6, 2, 3)
    options = {"stride": 2, "padding": (1, 0), "dilation": 2, "groups": 2}
    y = ops.conv1d(x, w, **options)
    u = normal(*y.shape)
    back = ops.conv_transpose1d(u, w, output_padding=1, **options)
    assert back.shape == x.shape
    np.testing.assert_allclose(np.sum(y * u), np.sum(x * back), rtol=1e-13)


def test_same_gives_as_many_places_as_strides_fit():
    x, w = normal(1, 1, 10), normal(1, 1, 4)
    for stride, pair in [(1, (1, 2)), (2, (1, 1)), (3, (1, 2)), (5, (0, 0)), (7, (0, 1))]:
        y = ops.conv1d(x, w, padding="same", stride=stride)
        assert y.shape[2] == -(-10 // stride)
        np.testing.assert_array_equal(y, ops.conv1d(x, w, padding=pair, stride=stride))
        np.testing.assert_array_equal(y, ops.conv1d(x, w, padding=[pair], stride=[stride]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_convolutions_and_pools_keep_the_dtype(dtype):
    x, w, b = normal(2, 3, 6, 6).astype(dtype), normal(4, 3, 3, 3).astype(dtype), normal(4).astype(dtype)
    leaves = [tg.Variable(v) for v in (x, w, b)]

    def net(x, w, b):
        y = ops.conv2d(x, w, padding=1) + b[:, None, None]
        return pool.max_pool2d(pool.avg_pool2d(y, 2, 1), 3, 2, padding=1)

    with tg.Tape() as tape:
        y = net(*leaves)
    assert y.dtype == net(x, w, b).dtype == dtype
    for ct in tape._sweep([y], [np.ones(y.shape, dtype)], (), record=False).sums.values():
        assert ct.dtype == dtype
    y32 = net(*(a.astype(np.float64) for a in (x, w, b)))
    np.testing.assert_allclose(y.value, y32, atol=50 * np.finfo(dtype).eps)


def test_convolutions_take_any_strides_and_write_to_none():
    x, w = normal(2, 12, 5).transpose(0, 2, 1)[:, 1:4, ::-2], normal(3, 3, 4)[::-1, ::-1]
    before = x.copy(), w.copy()
    plain = ops.conv1d(x.copy(), w.copy())
    u, v = tg.Variable(x), w
    with tg.Tape() as tape:
        y = ops.conv1d(u, v)
    tape.backward(y, np.broadcast_to(1.0, y.shape))
    np.testing.assert_array_equal(y.value, plain)
    np.testing.assert_allclose(u.grad, ops.conv_transpose1d(np.ones(y.shape), w), rtol=1e-13)
    np.testing.assert_array_equal(before[0], x)
    np.testing.assert_array_equal(before[1], w)
    assert type(ops.conv1d(x, w)) is np.ndarray
    assert y.value.flags.c_contiguous


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w: ops.conv1d(x[0], w), tg.ShapeError, r"conv1d: `x` must have 3 axes, and float64 \(3, 5\) came"),
        (lambda x, w: ops.conv2d(x, w), tg.ShapeError, "conv2d: `x` must have 4 axes"),
        (lambda x, w: ops.conv1d(x, w[:, :2]), tg.ShapeError, "conv1d: `x` must have `groups` times as many channels"),
        (lambda x, w: ops.conv1d(x, w[:, :1], groups=3), tg.ShapeError, "whose first must be a multiple of `groups`"),
        (lambda x, w: ops.conv1d(x, w, groups=0), tg.ShapeError, "groups: 0"),
        (lambda x, w: ops.conv1d(x, w, dilation=3), tg.ShapeError, "conv1d: a window of 7 does not fit into 5 elements and 0 of padding"),
        (lambda x, w: ops.conv1d(x[:, :, :0], w), tg.ShapeError, "a window of 3 does not fit into 0 elements"),
        (lambda x, w: ops.conv1d(x, w[:, :, :0]), tg.ShapeError, "a window of 0 does not fit|a window of -"),
        (lambda x, w: ops.conv1d(x, w, stride=0), tg.ArgumentError, "conv1d: `stride` must be an integer from 1 on, or 1 of them, and 0 came"),
        (lambda x, w: ops.conv1d(x, w, dilation=1.5), tg.ArgumentError, "conv1d: `dilation` must be an integer"),
        (lambda x, w: ops.conv1d(x, w, stride=(1, 1)), tg.ArgumentError, "conv1d: `stride`"),
        (lambda x, w: ops.conv1d(x, w, padding=-1), tg.ArgumentError, "conv1d: `padding` must be an integer from 0 on"),
        (lambda x, w: ops.conv1d(x, w, padding="full"), tg.ArgumentError, "conv1d: `padding` .* and 'full' came"),
        (lambda x, w: ops.conv1d(x, w, padding=(1, 2, 3)), tg.ArgumentError, "conv1d: `padding`"),
        (lambda x, w: ops.conv1d(x, w, padding=None), tg.ArgumentError, "conv1d: `padding`"),
        (lambda x, w: ops.conv1d(x, w * 1j), tg.DtypeError, "Complex"),
        (lambda x, w: ops.conv_transpose1d(x, w), tg.ShapeError, "conv_transpose1d: `x` must have a channel for each"),
        (lambda x, w: ops.conv_transpose1d(x, w[:3], output_padding=1), tg.ArgumentError, "`output_padding` must be below `stride`"),
        (lambda x, w: ops.conv_transpose1d(x, w[:3], padding=4), tg.ArgumentError, "`padding` must leave something"),
        (lambda x, w: ops.conv_transpose1d(x, w[:3], padding="same"), tg.ArgumentError, "conv_transpose1d: `padding` must be numbers"),
        (lambda x, w: pool.max_pool1d(x, 2, padding=2), tg.ArgumentError, "max_pool1d: `padding` must be below `size`"),
        (lambda x, w: pool.max_pool1d(x, 6), tg.ShapeError, "max_pool1d: a window of 6 does not fit"),
        (lambda x, w: pool.avg_pool2d(x, 2), tg.ShapeError, "avg_pool2d: `x` must have 4 axes"),
        (lambda x, w: pool.avg_pool1d(x, 0), tg.ArgumentError, "avg_pool1d: `size` must be an integer from 1 on"),
        (lambda x, w: ops.convolve(x, w), tg.ShapeError, "convolve: `a` must have one axis and an element"),
        (lambda x, w: ops.convolve(x[0, 0], np.ones(0)), tg.ShapeError, "convolve: `v` must have one axis and an element"),
        (lambda x, w: ops.correlate(x[0, 0], w[0, 0], mode="all"), tg.ArgumentError, "correlate: `mode` must be"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(call, error, message):
    with tg.Tape(), pytest.raises(error, match=message):
        call(tg.Variable(np.ones((2, 3, 5))), np.ones((4, 3, 3)))


# -- of sequences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("name", ["convolve", "correlate"])
def test_sequences_are_convolved_as_numpy_does(name, mode):
    op, numpy_s = getattr(ops, name), getattr(np, name)
    for n, k in itertools.product(range(1, 7), repeat=2):
        a, v = normal(n), normal(k)
        np.testing.assert_allclose(op(a, v, mode), numpy_s(a, v, mode), rtol=1e-12, atol=1e-14)
        assert_slope(lambda a, v: op(a, v, mode), a, v)
    assert op(np.ones(3, np.float32), np.ones(2, np.float32), mode).dtype == np.float32
    np.testing.assert_array_equal(op(2.0, [3.0], mode), [6.0])


@pytest.mark.parametrize(("n", "k"), [(5, 3), (3, 5), (4, 4), (6, 1)])
def test_sequences_are_convolved_as_pytorch_does_to_second_order(n, k):
    """Its conv1d is a correlation; with one sequence turned around and wide zeros it gives every overlap."""

    def theirs(F, a, v):
        return F.conv1d(a[None, None], v.flip(0)[None, None], padding=v.shape[0] - 1)[0, 0]

    assert_same_to_second_order(lambda a, v: ops.convolve(a, v), theirs, normal(n), normal(k))
    assert_same_to_second_order(
        lambda a, v: ops.correlate(a, v, "full"),
        lambda F, a, v: theirs(F, a, v.flip(0)),
        normal(n),
        normal(k),
    )
    if n >= k:
        assert_same_to_second_order(
            lambda a, v: ops.correlate(a, v),
            lambda F, a, v: F.conv1d(a[None, None], v[None, None])[0, 0],
            normal(n),
            normal(k),
        )


# -- pooling -------------------------------------------------------------------------------------------

POOLS = [
    ((2, 3, 8), {"size": 2}),
    ((2, 3, 8), {"size": 3, "stride": 1}),
    ((2, 3, 7), {"size": 4, "stride": 3, "padding": 2}),
    ((2, 1, 5), {"size": 1, "stride": 2}),
    ((0, 3, 5), {"size": 2}),
    ((2, 3, 6, 4), {"size": 2}),
    ((2, 3, 7, 5), {"size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
    ((2, 3, 7, 5), {"size": 3, "stride": 2, "padding": 1}),
    ((1, 2, 4, 4), {"size": 4}),
]


def by_their_names(options):
    return {("kernel_size" if k == "size" else k): v for k, v in options.items()}


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize(("x", "options"), POOLS, ids=str)
def test_pools_are_pytorch_s_to_second_order(kind, x, options):
    name = f"{kind}{len(x) - 2}d"
    assert_same_to_second_order(
        lambda x: getattr(pool, name)(x, **options),
        lambda F, x: getattr(F, name)(x, **by_their_names(options)),
        normal(*x),
    )


def pooled_by_loops(x, size, stride, padding, fold):
    """Every window with what of it is not padding, one after another."""
    lengths = [
        (n + sum(p) - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, size, stride, strict=True)
    ]
    y = np.zeros((*x.shape[:2], *lengths))
    for b, c, *at in np.ndindex(*y.shape):
        window = tuple(
            slice(max(i * s - before, 0), i * s - before + k)
            for i, s, (before, _), k in zip(at, stride, padding, size, strict=True)
        )
        y[(b, c, *at)] = fold(x[(b, c, *window)])
    return y


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 0), (0, 2)), ((2, 2), (1, 1))])
def test_pools_are_those_of_loops(padding):
    x, size = normal(2, 2, 6, 7), (3, 3)
    for stride in [(1, 1), (3, 3), (2, 4), (4, 1)]:
        found = pool.max_pool2d(x, size, stride, padding)
        np.testing.assert_array_equal(found, pooled_by_loops(x, size, stride, padding, np.max))
        found = pool.avg_pool2d(x, size, stride, padding)
        right = pooled_by_loops(x, size, stride, padding, lambda window: np.sum(window) / 9)
        np.testing.assert_allclose(found, right, rtol=1e-13, atol=1e-15)
        assert_slope(lambda x, s=stride: pool.max_pool2d(x, size, s, padding), x)
        assert_slope(lambda x, s=stride: pool.avg_pool2d(x, size, s, padding), x)


def test_a_tie_goes_to_the_first_and_padding_never_wins():
    for x, size, stride, padding, right in [
        (np.ones((1, 1, 4)), 2, 2, 0, [1, 0, 1, 0]),
        (np.ones((1, 1, 4)), 3, 1, 1, [2, 1, 1, 0]),
        (np.full((1, 1, 4), -np.inf), 3, 1, 1, [2, 1, 1, 0]),
        (np.array([[[-np.inf, -1.0, -np.inf]]]), 2, 1, (1, 1), [1, 2, 1]),
        (np.zeros((1, 1, 3, 3)), 2, 1, 1, [[4, 2, 2, ], [2, 1, 1], [2, 1, 1]]),
    ]:  # fmt: skip
        v = tg.Variable(x)
        with tg.Tape() as tape:
            y = getattr(pool, f"max_pool{x.ndim - 2}d")(v, size, stride, padding)
        tape.backward(y, np.ones(y.shape))
        np.testing.assert_array_equal(v.grad[0, 0], right)


def test_nan_is_the_largest():
    x = np.array([[[1.0, np.nan, 2.0, 3.0, np.nan, np.nan]]])
    v = tg.Variable(x)
    with tg.Tape() as tape:
        y = pool.max_pool1d(v, 3)
    tape.backward(y, np.ones(y.shape))
    assert np.isnan(y.value).all()
    assert v.grad[0, 0].sum() == 2
    assert np.isnan(x[v.grad > 0]).all()
    np.testing.assert_array_equal(pool.max_pool1d(np.arange(6).reshape(1, 1, 6), 2), [[[1, 3, 5]]])


# -- in a window -----------------------------------------------------------------------------------------


def test_a_compiled_window_sweeps_a_network_of_convolutions_as_the_rules_do(monkeypatch):
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)
    found, frames = [], normal(4, 1, 1, 8, 8)
    for compile in (False, True):
        rng = np.random.default_rng(3)
        w_x, w_h = (tg.Variable(rng.standard_normal(s) / 3) for s in ((2, 1, 3, 3), (2, 2, 3, 3)))
        taps, tape = tg.Variable(rng.standard_normal(3)), tg.CapacitorTape(3, compile=compile)
        h = tg.constant(np.zeros((1, 2, 4, 4)))
        for frame in frames:
            with tape:
                seen = pool.max_pool2d(ops.conv2d(frame, w_x, padding="same"), 2)
                h = tg.tanh(seen + ops.conv2d(h, w_h, padding=1))
                row = ops.convolve(pool.avg_pool2d(h, 2).reshape(-1), taps, "same")
                loss = tg.sum(tg.square(row))
            sweep = tape.backward(loss)
        found.append([sweep.gradients[v] for v in (w_x, w_h, taps)])
    for rules, program in zip(*found, strict=True):
        np.testing.assert_allclose(program, rules, rtol=0, atol=1e-13 * np.abs(rules).max())
