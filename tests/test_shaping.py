"""Joining, splitting, moving and repeating: each call on every shape, against what NumPy does with it.

All of these are affine, so NumPy itself gives the derivative: column i of the Jacobian is f(e_i) - f(0).
"""

import types

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import arrange, join, piecewise, shape

OPS = types.SimpleNamespace(
    **{
        name: function
        for module in (shape, join, arrange, piecewise)
        for name, function in vars(module).items()
        if callable(function)
    }
)
NUMPY = types.SimpleNamespace(
    **{name: getattr(np, name) for name in vars(OPS) if hasattr(np, name)},
    fftshift=np.fft.fftshift,
    ifftshift=np.fft.ifftshift,
    sliding_window_view=np.lib.stride_tricks.sliding_window_view,
)

SHAPES = [(), (1,), (5,), (0,), (2, 3), (3, 3), (3, 1), (0, 3), (2, 3, 4), (2, 0, 3), (1, 2, 1, 3)]

# Constants that some calls join to the array, of the array's own shape or rank.
FILL = 0.5


def like(a):
    return np.full(a.shape, FILL)


CALLS = {
    "swapaxes": lambda xp, a: xp.swapaxes(a, 0, -1),
    "swapaxes of two named": lambda xp, a: xp.swapaxes(a, 1, 2),
    "moveaxis": lambda xp, a: xp.moveaxis(a, 0, -1),
    "moveaxis of two": lambda xp, a: xp.moveaxis(a, [0, -1], [1, 0]),
    "rollaxis": lambda xp, a: xp.rollaxis(a, -1),
    "rollaxis behind": lambda xp, a: xp.rollaxis(a, 0, 2),
    "rollaxis negative": lambda xp, a: xp.rollaxis(a, 1, -1),
    "transpose": lambda xp, a: xp.transpose(a),
    "transpose by a list": lambda xp, a: xp.transpose(a, [1, 0]),
    "expand_dims": lambda xp, a: xp.expand_dims(a, (0, -1)),
    "squeeze": lambda xp, a: xp.squeeze(a),
    "squeeze of some": lambda xp, a: xp.squeeze(a, (0, -2)),
    "reshape": lambda xp, a: xp.reshape(a, (3, -1)),
    "reshape in F order": lambda xp, a: xp.reshape(a, (2, -1), order="F"),
    "reshape to a number": lambda xp, a: xp.reshape(a, ()),
    "ravel": lambda xp, a: xp.ravel(a),
    "ravel in F order": lambda xp, a: xp.ravel(a, "F"),
    "copy": lambda xp, a: xp.copy(a),
    "atleast_1d": lambda xp, a: xp.atleast_1d(a),
    "atleast_2d": lambda xp, a: xp.atleast_2d(a),
    "atleast_3d": lambda xp, a: xp.atleast_3d(a),
    "atleast_2d of several": lambda xp, a: xp.atleast_2d(a, [1.0, 2.0], a),
    "broadcast_to": lambda xp, a: xp.broadcast_to(a, (4, 3, 3)),
    "broadcast_arrays": lambda xp, a: xp.broadcast_arrays(a, np.ones((3, 1, 1, 1)), 2.0),
    "meshgrid": lambda xp, a: xp.meshgrid(a, [1.0, 2.0], a),
    "meshgrid of one": lambda xp, a: xp.meshgrid(a),
    "meshgrid, ij": lambda xp, a: xp.meshgrid(a, [1.0, 2.0], 3.0, indexing="ij"),
    "meshgrid, sparse": lambda xp, a: xp.meshgrid(a, [1.0, 2.0], sparse=True),
    "concatenate": lambda xp, a: xp.concatenate([a, like(a), a]),
    "concatenate, last axis": lambda xp, a: xp.concatenate((a, like(a)), axis=-1),
    "concatenate, flat": lambda xp, a: xp.concatenate([a, [[FILL]], a], axis=None),
    "stack": lambda xp, a: xp.stack([a, like(a), a], axis=-1),
    "vstack": lambda xp, a: xp.vstack([a, like(a), a]),
    "hstack": lambda xp, a: xp.hstack([a, like(a), a]),
    "dstack": lambda xp, a: xp.dstack([a, like(a), a]),
    "column_stack": lambda xp, a: xp.column_stack([a, like(a), a]),
    "vstack with a list": lambda xp, a: xp.vstack([a, [1.0, 2.0, 3.0]]),
    "block": lambda xp, a: xp.block([[a, like(a)], [like(a), a]]),
    "block of one": lambda xp, a: xp.block(a),
    "block of a row": lambda xp, a: xp.block([a, a, like(a)]),
    "block three deep": lambda xp, a: xp.block([[[a, a]], [[a, like(a)]]]),
    "block of unequal ranks": lambda xp, a: xp.block([[1.0, a], [a, np.ones((1, 1))]]),
    "block with a tuple": lambda xp, a: xp.block([(a, a)]),
    "block of nothing": lambda xp, a: xp.block([a, []]),
    "split": lambda xp, a: xp.split(a, 3, -1),
    "split at positions": lambda xp, a: xp.split(a, [1, 2]),
    "split beyond the end": lambda xp, a: xp.split(a, (1, 7), axis=-1),
    "split from the end": lambda xp, a: xp.split(a, np.array([-1]), axis=-1),
    "array_split": lambda xp, a: xp.array_split(a, 2),
    "array_split into more than there is": lambda xp, a: xp.array_split(a, 4, axis=-1),
    "array_split at positions": lambda xp, a: xp.array_split(a, [2], axis=1),
    "array_split into none": lambda xp, a: xp.array_split(a, 0),
    "hsplit": lambda xp, a: xp.hsplit(a, [1]),
    "vsplit": lambda xp, a: xp.vsplit(a, [1]),
    "dsplit": lambda xp, a: xp.dsplit(a, 2),
    "roll": lambda xp, a: xp.roll(a, 2),
    "roll back": lambda xp, a: xp.roll(a, -7, axis=-1),
    "roll of two axes": lambda xp, a: xp.roll(a, (1, -2), (0, 1)),
    "roll of two axes alike": lambda xp, a: xp.roll(a, 1, (0, -1)),
    "roll of one axis twice": lambda xp, a: xp.roll(a, [1, 1], 0),
    "fftshift": lambda xp, a: xp.fftshift(a),
    "ifftshift": lambda xp, a: xp.ifftshift(a),
    "fftshift of one axis": lambda xp, a: xp.fftshift(a, -1),
    "ifftshift of two axes": lambda xp, a: xp.ifftshift(a, (0, 1)),
    "flip": lambda xp, a: xp.flip(a),
    "flip of an axis": lambda xp, a: xp.flip(a, -1),
    "flip of two axes": lambda xp, a: xp.flip(a, (0, 1)),
    "flipud": lambda xp, a: xp.flipud(a),
    "fliplr": lambda xp, a: xp.fliplr(a),
    "rot90": lambda xp, a: xp.rot90(a),
    "rot90 twice": lambda xp, a: xp.rot90(a, 2),
    "rot90 thrice": lambda xp, a: xp.rot90(a, 3, (0, -1)),
    "rot90 back": lambda xp, a: xp.rot90(a, -1, (1, 0)),
    "rot90 not at all": lambda xp, a: xp.rot90(a, 4),
    "rot90 of one axis": lambda xp, a: xp.rot90(a, 1, (0, 0)),
    "repeat": lambda xp, a: xp.repeat(a, 3),
    "repeat along": lambda xp, a: xp.repeat(a, 2, axis=-1),
    "repeat never": lambda xp, a: xp.repeat(a, 0, axis=0),
    "repeat by a list of one": lambda xp, a: xp.repeat(a, [2], axis=0),
    "repeat each": lambda xp, a: xp.repeat(a, [2, 0, 3], axis=-1),
    "repeat each of two": lambda xp, a: xp.repeat(a, np.array([0, 4]), axis=0),
    "tile": lambda xp, a: xp.tile(a, 2),
    "tile of two axes": lambda xp, a: xp.tile(a, (2, 3)),
    "tile of many axes": lambda xp, a: xp.tile(a, [2, 1, 1, 3, 1]),
    "tile never": lambda xp, a: xp.tile(a, (0, 2)),
    "tile of no axes": lambda xp, a: xp.tile(a, ()),
    "resize": lambda xp, a: xp.resize(a, (3, 5)),
    "resize, smaller": lambda xp, a: xp.resize(a, 2),
    "resize to nothing": lambda xp, a: xp.resize(a, (0, 2)),
    "resize to a negative length": lambda xp, a: xp.resize(a, (-1, 2)),
    "pad": lambda xp, a: xp.pad(a, 2),
    "pad with a number": lambda xp, a: xp.pad(a, (1, 2), constant_values=3.5),
    "pad with pairs": lambda xp, a: xp.pad(a, ((0, 1), (2, 0)), "constant", constant_values=((1, 2), (3, 4))),
    "pad by axis": lambda xp, a: xp.pad(a, {-1: (1, 2), 0: 1}),
    "pad, edge": lambda xp, a: xp.pad(a, (2, 1), mode="edge"),
    "pad, reflect": lambda xp, a: xp.pad(a, (1, 2), mode="reflect"),
    "pad, reflect far": lambda xp, a: xp.pad(a, (7, 5), mode="reflect"),
    "pad, symmetric": lambda xp, a: xp.pad(a, 8, mode="symmetric"),
    "pad, wrap": lambda xp, a: xp.pad(a, (4, 9), mode="wrap"),
    "pad some axes": lambda xp, a: xp.pad(a, ((1, 0), (0, 2)), mode="wrap"),
    "pad by less than nothing": lambda xp, a: xp.pad(a, -1),
    "tril": lambda xp, a: xp.tril(a),
    "tril below": lambda xp, a: xp.tril(a, -1),
    "triu": lambda xp, a: xp.triu(a),
    "triu above": lambda xp, a: xp.triu(a, k=2),
    "diag": lambda xp, a: xp.diag(a),
    "diag above": lambda xp, a: xp.diag(a, 2),
    "diag below": lambda xp, a: xp.diag(a, k=-1),
    "diagflat": lambda xp, a: xp.diagflat(a, 1),
    "diagonal": lambda xp, a: xp.diagonal(a),
    "diagonal below": lambda xp, a: xp.diagonal(a, -1),
    "diagonal of other axes": lambda xp, a: xp.diagonal(a, 1, axis1=-1, axis2=0),
    "diagonal of one axis": lambda xp, a: xp.diagonal(a, 0, 1, 1),
    "sliding_window_view": lambda xp, a: xp.sliding_window_view(a, 2, axis=-1),
    "sliding_window_view of all axes": lambda xp, a: xp.sliding_window_view(a, (2, 2)),
    "apply_along_axis": lambda xp, a: xp.apply_along_axis(lambda row: row * 2.0 - row[0], -1, a),
    "apply_along_axis to numbers": lambda xp, a: xp.apply_along_axis(lambda row: row[0] + row[-1], 0, a),
    "apply_along_axis to matrices": lambda xp, a: xp.apply_along_axis(xp.diag, 0, a),
    "apply_over_axes": lambda xp, a: xp.apply_over_axes(lambda b, i: b.sum(i), a, (0, -1)),
    "piecewise": lambda xp, a: xp.piecewise(a, [like(a) > 0.2, np.arange(a.size).reshape(a.shape) > 2], [lambda x: x * 3.0, 7.0]),
    "piecewise with another": lambda xp, a: xp.piecewise(a, [np.arange(a.size).reshape(a.shape) > 2], [lambda x: x * 3.0, lambda x: -x]),
    "piecewise of too few functions": lambda xp, a: xp.piecewise(a, [like(a) > 0.2, like(a) > 1], [1.0]),
}  # fmt: skip

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
every_shape = pytest.mark.parametrize("of", SHAPES, ids=str)


def listed(y):
    return list(y) if isinstance(y, tuple | list) else [y]


def flat(ys):
    return np.concatenate([np.ravel(y.value if isinstance(y, tg.Variable) else y) for y in ys])


def jacobian(call, of):
    """Of NumPy's function, a column for each element."""
    size = int(np.prod(of))
    at = [flat(listed(call(NUMPY, e.reshape(of)))) for e in [np.zeros(size), *np.eye(size)]]
    return np.stack([column - at[0] for column in at[1:]], 1) if size else np.zeros((at[0].size, 0))


def numpy_refuses(call, a):
    try:
        call(NUMPY, a)
    except (ValueError, TypeError, IndexError):
        return True
    return False


@every_call
@every_shape
def test_values_and_derivatives_are_those_of_numpy_or_both_refuse(call, of):
    rng = np.random.default_rng(3)
    a = rng.standard_normal(of)
    v = tg.Variable(a)
    if numpy_refuses(call, a):
        with pytest.raises(tg.TapegradError), tg.Tape():
            call(OPS, v)
        return
    expected = listed(call(NUMPY, a))
    with tg.Tape() as outer:
        with tg.Tape() as inner:
            ys = listed(call(OPS, v))
            weights = [tg.Variable(rng.standard_normal(np.shape(y))) for y in ys]
            total = sum(tg.sum(y * w) for y, w in zip(ys, weights, strict=True))
        grad = inner.backward(total, record=True)[v]
        u = rng.standard_normal(of)
        product = tg.sum(grad * u)
    assert [np.shape(y) for y in ys] == [np.shape(e) for e in expected]
    np.testing.assert_array_equal(flat(ys), flat(expected))

    seen, ct = jacobian(call, of), flat(weights)
    np.testing.assert_allclose(grad.value, (ct @ seen).reshape(of), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        inner.pushforward({v: u}, total), ct @ seen @ u.ravel(), rtol=1e-12, atol=1e-12
    )
    again = outer.backward(product)
    np.testing.assert_allclose(flat([again[w] for w in weights]), seen @ u.ravel(), rtol=1e-12, atol=1e-12)


@every_call
@every_shape
def test_plain_arrays_give_plain_arrays(call, of):
    a = np.random.default_rng(4).standard_normal(of)
    if not numpy_refuses(call, a):
        ys, expected = listed(call(OPS, a)), listed(call(NUMPY, a))
        assert not any(isinstance(y, tg.Variable) for y in ys)
        np.testing.assert_array_equal(flat(ys), flat(expected))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@every_call
def test_a_narrow_dtype_stays_narrow(call, dtype):
    v = tg.Variable(np.ones((2, 3), dtype))
    if numpy_refuses(call, v.value):
        return
    with tg.Tape() as tape:
        ys = listed(call(OPS, v))
        total = sum(tg.sum(tg.astype(y, np.float64)) for y in ys if isinstance(y, tg.Variable))
    for y, e in zip(ys, listed(call(NUMPY, v.value)), strict=True):
        assert y.dtype == e.dtype
    tape.backward(total)
    assert v.grad.dtype == dtype


def test_a_sum_of_float16_copies_keeps_its_dtype():
    v = tg.Variable(np.ones(2, np.float16))
    with tg.Tape() as tape:
        y = arrange.repeat(v, 3)
    assert tape.backward(y, np.ones(6, np.float16), keep=[v])[v].dtype == np.float16


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda v: shape.split(v, 2, 1), "split: 3 elements do not make 2 equal parts"),
        (lambda v: shape.split(v, [2, 1], 1), "split: `indices_or_sections` must ascend"),
        (lambda v: shape.split(v, v), "split: `indices_or_sections` must be an integer"),
        (lambda v: shape.reshape(v, (3, 2), order="A"), "reshape: `order` must be 'C' or 'F', and 'A' came"),
        (lambda v: shape.rollaxis(v, 0, 7), "rollaxis: `start` must be in -2 … 2, and 7 came"),
        (lambda v: shape.rollaxis(v, 3), "rollaxis: `a` has no axis 3"),
        (lambda v: shape.broadcast_arrays(v, np.ones(2)), "broadcast_arrays: the shapes do not broadcast"),
        (lambda v: join.block([v, (v, v)]), "block: blocks are nested in lists"),
        (lambda v: join.block([v, [v]]), "block: every block must be nested equally deep"),
        (lambda v: join.meshgrid(v, indexing="yx"), "meshgrid: `indexing` must be"),
        (lambda v: arrange.resize(v, 2.5), "resize: `new_shape` must be integers, and float 2.5 came"),
        (lambda v: join.dsplit(v, 1), "dsplit: `ary` must have at least 3 axes"),
        (lambda v: arrange.roll(v, 1.5), "roll: 'float' object"),
        (lambda v: arrange.repeat(v, 2.5), "repeat: `repeats` must be integers"),
        (lambda v: arrange.tile(v, v), "tile: 'Result' object"),
        (lambda v: arrange.pad(v, 1, "mean"), "pad: `mode` must be one of constant, edge"),
        (lambda v: arrange.pad(v, 1, constant_values=v), "pad: `constant_values` must be numbers"),
        (lambda v: arrange.pad(v, ((1,), (2, 3))), "pad: `pad_width` must be a number"),
        (lambda v: arrange.pad(v[:0], 1, "edge"), "pad: an axis of length 0 has no element"),
        (lambda v: arrange.trim_zeros(v, "x"), "trim_zeros: `trim` must be"),
        (lambda v: arrange.tril(v[0, 0]), "tril: `m` must have at least one axis"),
        (lambda v: arrange.diag(v[None]), "diag: `v` must be a vector or a matrix"),
        (lambda v: piecewise.piecewise(v, [v > 0], [1.0, 2.0, 3.0]), "piecewise: each of `condlist`"),
        (lambda v: piecewise.apply_along_axis(np.sum, 0, v[:, :0]), "apply_along_axis: there is no vector"),
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_words(call, said):
    with pytest.raises(tg.TapegradError) as caught, tg.Tape():
        call(tg.Variable(np.ones((2, 3))))
    assert str(caught.value).startswith(said)


# -- what NumPy does not say -------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[0, 0, 1, 0, 2, 0], [0, 0], [], [3], [0, 1]])
@pytest.mark.parametrize("trim", ["f", "b", "fb", "BF"])
def test_trim_zeros_passes_gradients_to_what_is_left(values, trim):
    v = tg.Variable(np.array(values, float))
    with tg.Tape() as tape:
        y = arrange.trim_zeros(v, trim)
        tape.backward(tg.sum(y * 2.0))
    left = np.trim_zeros(np.array(values, float), trim)
    np.testing.assert_array_equal(y.value, left)
    assert v.grad.sum() == 2 * left.size
    np.testing.assert_array_equal(arrange.trim_zeros(2.0 * v.value, trim), 2 * left)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.2.0", reason="trims vectors only")
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 1)])
def test_trim_zeros_of_a_matrix(axis):
    a = np.pad(np.ones((2, 1)), ((1, 2), (0, 3)))
    np.testing.assert_array_equal(
        arrange.trim_zeros(tg.Variable(a), axis=axis).value, np.trim_zeros(a, axis=axis)
    )


def test_a_variable_is_joined_as_its_rows():
    v = tg.Variable(np.arange(6.0).reshape(2, 3))
    with tg.Tape() as tape:
        y = join.hstack(v)
        tape.backward(tg.sum(y * np.arange(6.0)))
    np.testing.assert_array_equal(y.value, np.arange(6.0))
    np.testing.assert_array_equal(v.grad, np.arange(6.0).reshape(2, 3))


def test_numbers_are_stacked_with_variables():
    v = tg.Variable(2.0)
    with tg.Tape() as tape:
        y = shape.stack([v, 3.0, np.float64(4), True])
        tape.backward(tg.sum(y * [1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(y.value, [2.0, 3.0, 4.0, 1.0])
    assert v.grad == 1.0


def test_piecewise_evaluates_no_function_where_it_is_not_picked():
    v = tg.Variable(np.array([-1.0, 0.0, 4.0]))
    with tg.Tape() as tape, np.errstate(all="raise"):
        y = piecewise.piecewise(v, [v.value > 0, v.value < 0], [tg.sqrt, lambda x: -x, 5.0])
        tape.backward(tg.sum(y))
    np.testing.assert_array_equal(y.value, [1.0, 5.0, 2.0])
    np.testing.assert_array_equal(v.grad, [-1.0, 0.0, 0.25])


def test_in_piecewise_the_last_condition_that_holds_decides():
    v = tg.Variable(np.array([1.0, 2.0, 3.0]))
    with tg.Tape() as tape:
        y = piecewise.piecewise(v, [v.value > 0, v.value > 1], [tg.square, lambda x: x - x.max()])
        tape.backward(y, np.ones(3))
    np.testing.assert_array_equal(y.value, [1.0, -1.0, 0.0])
    np.testing.assert_array_equal(v.grad, [2.0, 1.0, -1.0])


# -- in a compiled window ----------------------------------------------------------------------------

MIXERS = {
    "roll": lambda a: arrange.roll(a, 1, 0) + arrange.flip(a, 1) + arrange.rot90(a),
    "repeat": lambda a: arrange.repeat(a, 2, 0)[::2] + arrange.repeat(a, [2, 0, 1], 1),
    "tile": lambda a: arrange.tile(a, 2)[:, 2:5] + arrange.resize(a, (4, 3))[1:],
    "pad": lambda a: arrange.pad(a, 1)[:-2, 1:-1] + arrange.pad(a, 2, "reflect")[:3, 1:4],
    "tril": lambda a: arrange.tril(a) + arrange.triu(a, 1) * 0.5,
    "diagonal": lambda a: a + shape.diagonal(a) + arrange.diag(a[0]),
    "moves": lambda a: (
        shape.swapaxes(a, 0, 1) + shape.moveaxis(a, 0, 1) + shape.reshape(a, (3, 3), order="F")
    ),
    "joins": lambda a: join.block([[a[:1], a[1:2]], [a[1:], a[:2]]])[:, 1:4] + join.vstack(shape.unstack(a)),
    "windows": lambda a: arrange.sliding_window_view(a, 2, 1).sum(-1) @ np.ones((2, 3)),
}


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
def test_a_compiled_window_gives_the_gradients_of_the_rules(mix):
    def gradient(compile):
        w = tg.Parameter(np.linspace(-0.4, 0.5, 9).reshape(3, 3))
        tape, state = tg.CapacitorTape(4, compile=compile), np.full((3, 3), 0.1)
        for _ in range(8):
            with tape:
                state = tg.tanh(mix(state @ w) * 0.3 + w)
                loss = tg.mean(tg.square(state - 0.2))
            tape.backward(loss)
        return w.grad

    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(gradient("exact"), gradient(False))


@pytest.mark.parametrize("mix", MIXERS.values(), ids=MIXERS)
def test_a_compiled_function_gives_the_values_and_gradients_of_the_rules(mix):
    def f(v):
        return tg.sum(tg.tanh(mix(tg.sin(v))) * np.arange(9.0).reshape(3, 3))

    v, g, tape = tg.Variable(np.linspace(-0.4, 0.5, 9).reshape(3, 3)), tg.compile(f), tg.Tape()
    with tape:
        y = f(v)
    tape.backward(y)
    expected, v.grad = v.grad, None
    np.testing.assert_allclose(g.backward(v).value, y.value, rtol=1e-12)
    np.testing.assert_allclose(v.grad, expected, rtol=1e-12, atol=1e-14)
