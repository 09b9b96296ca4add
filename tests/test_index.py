"""Indexing of every kind against NumPy, its gradients against a loop over elements; functional writes, and choices."""

import itertools

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.ops import index as ops
from tapegrad.program import replay as replay_module

RNG = np.random.default_rng(0)
A = RNG.standard_normal((4, 3, 5))


def gradients(f, *arrays):
    """The value of f, and its gradients for a cotangent that is returned too."""
    leaves = [tg.Variable(a) for a in arrays]
    with tg.Tape() as tape:
        y = f(*leaves)
    ct = np.random.default_rng(1).standard_normal(y.shape)
    sweep = tape.backward(y, ct)
    return y.value, ct, [sweep[v] for v in leaves]


def assert_gradients_are_right(f, *arrays):
    """Against a difference quotient, and the gradients of the gradients against that of the gradients."""
    value, ct, found = gradients(f, *arrays)
    plain = f(*arrays)
    assert isinstance(plain, np.ndarray | np.generic)
    np.testing.assert_array_equal(value, plain)
    rng, h = np.random.default_rng(2), 1e-6
    directions = [rng.standard_normal(a.shape) for a in arrays]
    ahead, behind = (f(*[a + s * d for a, d in zip(arrays, directions, strict=True)]) for s in (h, -h))
    slope = sum(np.sum(g * d) for g, d in zip(found, directions, strict=True))
    np.testing.assert_allclose(slope, np.sum(ct * (ahead - behind)) / (2 * h), rtol=1e-6, atol=1e-8)
    for g, a in zip(found, arrays, strict=True):
        assert g.shape == a.shape


# -- reading ---------------------------------------------------------------------------------------

MASK = RNG.random((4, 3)) > 0.5
INDICES = {
    "integer": 1,
    "negative": -1,
    "numpy integer": np.int32(2),
    "0-d array": np.array(3),
    "slice": slice(1, 3),
    "negative step": slice(None, None, -1),
    "step beyond": slice(10, 0, -2),
    "empty slice": slice(2, 2),
    "Ellipsis": ...,
    "None": None,
    "nothing": (),
    "all three": (..., None, slice(None, None, -2), 0),
    "integers": (1, -1, 2),
    "list": [0, 2, 2, -1],
    "nested lists": [[0, 1], [3, -1]],
    "empty list": [],
    "empty list in a tuple": (slice(None), []),
    "list of booleans": [True, False, True, True],
    "small integers": np.array([0, 1, 1], np.uint8),
    "mask of one axis": np.array([True, False, True, True]),
    "mask of two axes": MASK,
    "mask of all axes": A > 0,
    "mask of nothing": np.zeros(4, bool),
    "True": True,
    "False": False,
    "0-d mask": (np.array(True), 1),
    "mask and slice": (slice(None), np.array([True, False, True]), slice(None, None, 2)),
    "mask and integer": (1, np.array([True, False, True])),
    "mask and list": (np.array([True, False, True, False]), [0, 0]),
    "two masks": (np.array([True, False, True, False]), np.array([False, True, True])),
    "mask of two axes and integers": (MASK, np.full(MASK.sum(), 1)),
    "two lists": ([0, 1, 0], [2, 0, 2]),
    "broadcast": (np.array([[0], [3]]), np.array([0, 2, 2])),
    "broadcast with integer": (np.array([[0], [3]]), 1, np.array([0, 2, 4, 4])),
    "slice between": ([0, 1, 0], slice(None), [4, 4, 4]),
    "slice before": (slice(None), [0, 2], [1, 1]),
    "None between": ([0, 0], None, [1, 1]),
    "Ellipsis between": ([[0], [0]], ..., [1, 2, 1]),
    "tuples within": ((0, 0), (1, 1)),
    "open mesh": np.ix_([0, 3, 0], [2, 1], [0, 4, 4, 0]),
    "Fortran order": np.asfortranarray(np.array([[0, 1, 1], [2, 0, 0]])),
}


def gradient_by_a_loop(shape, index, ct):
    """Each cotangent goes to the element that was read, one after another."""
    gradient = np.zeros(shape)
    places = np.arange(gradient.size).reshape(shape)[index]
    for place, c in zip(np.ravel(places), np.ravel(ct), strict=True):
        gradient.flat[place] += c
    return gradient


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_every_kind_of_index_reads_as_numpy_does(index):
    value, ct, (gradient,) = gradients(lambda a: a[index], A)
    np.testing.assert_array_equal(value, A[index])
    np.testing.assert_allclose(gradient, gradient_by_a_loop(A.shape, index, ct), rtol=1e-14, atol=1e-15)
    np.testing.assert_array_equal(tg.getitem(A, index), A[index])


def random_index(rng, shape):
    """An index that fits `shape`, of as many kinds of parts as there are."""
    lead = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 3)))
    parts, axis = [], 0
    while axis < len(shape):
        n, kind = shape[axis], rng.integers(0, 9)
        if kind < 2 or not n:
            step = int(rng.choice([-3, -2, -1, 1, 2, 3]))
            ends = [None if rng.random() < 0.4 else int(rng.integers(-n - 1, n + 2)) for _ in range(2)]
            parts.append(slice(*ends, step))
        elif kind == 2:
            parts.append(int(rng.integers(-n, n)))
        elif kind == 3:
            parts.append(np.int64(rng.integers(-n, n)))
        elif kind < 7:
            shaped = tuple(m if rng.random() < 0.7 else 1 for m in lead[rng.integers(0, len(lead) + 1) :])
            positions = rng.integers(-n, n, shaped)
            parts.append(positions.tolist() if rng.random() < 0.3 else positions)
        elif kind == 7 and lead[-1:]:  # a mask with as many True as the others are long
            mask = np.zeros(n, bool)
            mask[rng.permutation(n)[: lead[-1]]] = True
            parts.append(mask if mask.sum() in (1, lead[-1]) else slice(None))
        else:
            parts.append(slice(None))
        axis += 1
    if rng.random() < 0.3:
        parts = parts[: rng.integers(0, len(parts) + 1)]
    if rng.random() < 0.3:
        at = rng.integers(0, len(parts) + 1)
        parts[at : at + rng.integers(0, 3)] = [...]
    if rng.random() < 0.3:
        parts.insert(rng.integers(0, len(parts) + 1), None)
    return tuple(parts)


SHAPES = [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 2), (0, 3), (2, 0), ()]


def random_indices(count, seed):
    rng = np.random.default_rng(seed)
    while count:
        shape = SHAPES[rng.integers(len(SHAPES))]
        index = random_index(rng, shape)
        try:
            np.empty(shape)[index]
        except IndexError:  # parts that do not broadcast
            continue
        count -= 1
        yield shape, index


def test_random_indices_read_as_numpy_does():
    for shape, index in random_indices(500, 3):
        a = RNG.standard_normal(shape)
        value, ct, (gradient,) = gradients(lambda v, index=index: v[index], a)
        np.testing.assert_array_equal(value, a[index], err_msg=f"{shape}[{index}]")
        right = gradient_by_a_loop(shape, index, ct)
        np.testing.assert_allclose(gradient, right, rtol=1e-14, atol=1e-15, err_msg=f"{shape}[{index}]")


def test_a_recorded_index_is_that_of_the_time_of_reading():
    index, v = np.array([0, 1, 1]), tg.Variable(np.arange(3.0))
    with tg.Tape() as tape:
        y = v[index]
    index[:] = 2
    tape.backward(y, np.ones(3))
    np.testing.assert_array_equal(v.grad, [1.0, 2.0, 0.0])


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_a_table_that_are_read_often_get_the_sum(rows, dtype):
    """From many elements on another loop adds them, in the same order."""
    table, index = RNG.standard_normal((50, 4)).astype(dtype), RNG.integers(-50, 50, (rows, 2))
    for read in (lambda v: v[index], lambda v: v[index,], lambda v: v[index.tolist()]):
        v = tg.Variable(table)
        with tg.Tape() as tape:
            y = read(v)
        ct = RNG.standard_normal(y.shape).astype(dtype)
        tape.backward(y, ct)
        right = np.zeros_like(table)
        np.add.at(right, index, ct)
        assert v.grad.dtype == dtype
        np.testing.assert_array_equal(v.grad, right)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (lambda v: v, tg.DtypeError, "a Variable came"),
        (lambda v: (0, v), tg.DtypeError, "a Variable came"),
        (lambda v: slice(v, None), tg.DtypeError, "getitem: slice indices must be integers"),
        (lambda v: [v], tg.UnsupportedError, "cannot become a plain array"),
        (lambda v: 1.0, tg.OutOfRangeError, "getitem: only integers, slices"),
        (lambda v: np.array([0.5]), tg.OutOfRangeError, "getitem: arrays used as indices must be of integer"),
        (lambda v: 9, tg.OutOfRangeError, "getitem: index 9 is out of bounds for axis 0 with size 4"),
        (lambda v: [0, 9], tg.OutOfRangeError, "getitem: index 9 is out of bounds"),
        (lambda v: (0, 0, 0, 0), tg.OutOfRangeError, "getitem: too many indices"),
        (lambda v: ([0, 1], [0, 1, 2]), tg.OutOfRangeError, "getitem: shape mismatch"),
        (lambda v: np.ones(3, bool), tg.OutOfRangeError, "getitem: boolean index did not match"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused_by_name(index, error, message):
    v = tg.Variable(A)
    with tg.Tape(), pytest.raises(error, match=message):
        v[index(tg.Variable(np.ones(2)))]


# -- writing ---------------------------------------------------------------------------------------


def assigned(a, index, value):
    a = a.copy()
    if (
        isinstance(index, tuple)
        or not isinstance(index, list | np.ndarray)
        or np.asarray(index).dtype == bool
    ):
        a[index] = value
    else:
        a[np.asarray(index, int)] = value
    return a


def value_for(rng, shape, index):
    """A value that broadcasts to what the index selects."""
    whole = np.empty(shape)[index].shape
    return rng.standard_normal(
        [n if rng.random() < 0.7 else 1 for n in whole[rng.integers(0, len(whole) + 1) :]]
    )


def written_by_a_loop(a, index, value, add):
    """The array, and for each element of the broadcast value the place at which it stayed, or -1."""
    places = np.arange(a.size).reshape(a.shape)[index]
    y, values = a.copy(), np.broadcast_to(value, places.shape)
    last = {}
    for k, (place, x) in enumerate(zip(np.ravel(places), np.ravel(values), strict=True)):
        y.flat[place] = y.flat[place] + x if add else x
        last[place] = k
    stayed = [place if add or last[place] == k else -1 for k, place in enumerate(np.ravel(places).tolist())]
    return y, np.reshape(stayed, places.shape).astype(int)


def summed_to(ct, shape):
    extra = ct.ndim - len(shape)
    ct = ct.sum(axis=tuple(range(extra)))
    return ct.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def check_write(a, index, value, add):
    op = ops.index_add if add else ops.index_put
    found, ct, (of_a, of_value) = gradients(lambda a, v: op(a, index, v), a, value)
    right, stayed = written_by_a_loop(a, index, value, add)
    np.testing.assert_allclose(found, right, rtol=1e-14, atol=1e-15)
    ct_a = ct.copy()
    if not add:
        ct_a.flat[stayed[stayed >= 0]] = 0
    np.testing.assert_array_equal(of_a, ct_a)
    ct_value = np.where(stayed >= 0, ct.ravel()[stayed] if ct.size else 0.0, 0.0)
    np.testing.assert_allclose(of_value, summed_to(ct_value, value.shape), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("add", [False, True], ids=["put", "add"])
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_a_write_at_every_kind_of_index_is_that_of_a_loop(index, add):
    check_write(A, index, RNG.standard_normal(A[index].shape), add)
    check_write(A, index, np.array(0.5), add)
    np.testing.assert_array_equal(ops.index_put(A, index, 0.5), assigned(A, index, 0.5))


@pytest.mark.parametrize("add", [False, True], ids=["put", "add"])
def test_a_write_at_random_indices_is_that_of_a_loop(add):
    rng = np.random.default_rng(5)
    for shape, index in random_indices(300, 4):
        check_write(rng.standard_normal(shape), index, value_for(rng, shape, index), add)


def test_of_values_for_one_place_the_last_stays_whatever_the_order_in_memory():
    index = np.asfortranarray(np.array([[0, 1], [1, 0]]))
    value = np.asfortranarray(np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(ops.index_put(np.zeros(3), index, value), [4.0, 3.0, 0.0])
    _, ct, (_, of_value) = gradients(lambda a, v: ops.index_put(a, index, v), np.zeros(3), value)
    np.testing.assert_array_equal(of_value, [[0.0, 0.0], [ct[1], ct[0]]])


@pytest.mark.parametrize("op", [ops.index_put, ops.index_add])
def test_writes_keep_the_dtype_of_what_is_written_into(op):
    for dtype in (np.float16, np.float32, np.float64):
        for value in (0.5, [1, 2], np.ones(2), np.arange(2), tg.Variable(np.ones(2))):
            v = tg.Variable(np.zeros((3, 2), dtype))
            with tg.Tape() as tape:
                y = op(v, 1, value)
            assert y.dtype == dtype
            tape.backward(y, np.ones((3, 2), dtype))
            assert v.grad.dtype == dtype
            if isinstance(value, tg.Variable):
                np.testing.assert_array_equal(value.grad, np.ones(2))


@pytest.mark.parametrize("op", [ops.index_put, ops.index_add])
def test_what_is_written_into_integers_makes_them_floats(op):
    v, counts = tg.Variable([0.5]), np.arange(3)
    with tg.Tape() as tape:
        y = op(counts, [1], v)
    tape.backward(y, np.arange(3.0))
    np.testing.assert_array_equal(y.value, [0.0, 0.5 + (op is ops.index_add), 2.0])
    np.testing.assert_array_equal(v.grad, [1.0])
    np.testing.assert_array_equal(counts, np.arange(3))
    assert op(counts, 0, 7).dtype == counts.dtype


def test_a_write_is_differentiated_twice():
    index = np.array([[0, 2], [2, 1]])

    def loss(a, value):
        return tg.sum(tg.sin(ops.index_put(a * a, index, value * value)) * ops.index_add(a, index, value))

    arrays = [RNG.standard_normal(4), RNG.standard_normal((2, 2))]

    def first(*arrays):
        leaves = [tg.Variable(x) for x in arrays]
        with tg.Tape() as tape:
            y = loss(*leaves)
        sweep = tape.backward(y)
        return [sweep[v] for v in leaves]

    leaves, us = [tg.Variable(x) for x in arrays], [RNG.standard_normal(x.shape) for x in arrays]
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = loss(*leaves)
        sweep = inner.backward(y, record=True)
        total = tg.sum(sweep[leaves[0]] * us[0]) + tg.sum(sweep[leaves[1]] * us[1])
    second = outer.backward(total)
    h = 1e-6
    ahead, behind = (first(*[x + s * u for x, u in zip(arrays, us, strict=True)]) for s in (h, -h))
    for v, a, b in zip(leaves, ahead, behind, strict=True):
        np.testing.assert_allclose(second[v], (a - b) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "index", [1, slice(None, None, -2), (..., 0), [2, 0, 2], np.array([True, False, True, False]), []]
)
def test_a_compiled_window_sweeps_writes_as_the_rules_do(index, monkeypatch):
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)
    found, value = [], RNG.standard_normal((4, 3))[index]
    for compile in (False, True):
        a, v, tape = tg.Variable(A[:, :, 0]), tg.Variable(value), tg.CapacitorTape(3, compile=compile)
        state = tg.constant(np.zeros((4, 3)))
        for _ in range(4):
            with tape:
                state = tg.tanh(ops.index_add(ops.index_put(state + a, index, v * v), index, v) + state[::-1])
                loss = tg.sum(state[index]) + tg.sum(state)
            sweep = tape.backward(loss)
        found.append([sweep.gradients[a], sweep.gradients[v]])
    for rules, program in zip(*found, strict=True):
        np.testing.assert_allclose(program, rules, rtol=0, atol=1e-13)


@pytest.mark.parametrize("op", [ops.index_put, ops.index_add])
def test_a_value_that_does_not_fit_is_refused_by_name(op):
    v = tg.Variable(np.zeros((4, 3)))
    for index in (0, [0, 1], slice(0, 2)):
        with tg.Tape(), pytest.raises(tg.ShapeError, match=r"(index_put|put_at): .*broadcast"):
            op(v, index, np.ones(2))
    with tg.Tape(), pytest.raises(tg.OutOfRangeError, match="index 4 is out of bounds"):
        op(v, 4, 1.0)


def test_an_assignment_is_refused_and_names_index_put():
    v, y = tg.Variable(np.ones((2, 2))), np.zeros(2)
    with pytest.raises(
        tg.UnsupportedError, match=r"never written into.*\n.*v = tg.index_put\(v, index, value\)"
    ):
        v[0] = 1.0
    with tg.Tape(), pytest.raises(ValueError, match="setting an array element") as caught:
        y[0] = v[0, 0]
    assert "y = tg.index_put(y, index, v)" in str(caught.value.__cause__)
    with tg.Tape(), pytest.raises(tg.UnsupportedError, match=r"tg.index_put\(y, mask, v\)"):
        y[y == 0] = v[0]


# -- along one axis ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["raise", "wrap", "clip"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_take_is_numpy_s_take(axis, mode):
    a = A[:, :, 0]
    for indices in (0, -1, [0, 2, 2], np.array([[1, -2], [0, 1]]), np.zeros((0, 2), int)):
        if mode != "raise":
            indices = np.asarray(indices) * 7
        assert_gradients_are_right(lambda a, i=indices: ops.numpy_take(a, i, axis, mode=mode), a)
        np.testing.assert_array_equal(
            ops.numpy_take(a, indices, axis, mode=mode), np.take(a, indices, axis, mode=mode)
        )


POSITIONS = [
    0,
    -1,
    2,
    [0, 2],
    [2, 2, -1],
    [],
    slice(0, 2),
    slice(None, None, -2),
    np.array([1]),
    np.array([True, False, True]),
]


@pytest.mark.parametrize("obj", POSITIONS, ids=str)
@pytest.mark.parametrize("axis", [None, 1, -2])
def test_delete_is_numpy_s_delete(obj, axis):
    a = RNG.standard_normal((4, 3, 2))
    if axis == -2 or axis == 1 or not isinstance(obj, np.ndarray) or obj.dtype != bool:
        assert_gradients_are_right(lambda a: ops.delete(a, obj, axis), a)
        np.testing.assert_array_equal(ops.delete(a, obj, axis), np.delete(a, obj, axis))


@pytest.mark.parametrize("obj", POSITIONS, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3,), (4,), (2, 4), (4, 2), (1, 2), (2, 1)])
def test_insert_is_numpy_s_insert(obj, axis, shape):
    a, values = RNG.standard_normal((3, 4)), RNG.standard_normal(shape)
    try:
        right = np.insert(a, obj, values, axis)
    except (ValueError, IndexError):
        with pytest.raises(tg.ArgumentError):
            ops.insert(a, obj, values, axis)
        return
    np.testing.assert_array_equal(ops.insert(a, obj, values, axis), right)
    assert_gradients_are_right(lambda a, v: ops.insert(a, obj, v, axis), a, values)


def test_append_is_numpy_s_append():
    for a, b, axis in [((2, 3), (4,), None), ((), (2, 2), None), ((2, 3), (1, 3), 0), ((2, 3), (2, 0), -1)]:
        a, b = RNG.standard_normal(a), RNG.standard_normal(b)
        np.testing.assert_array_equal(ops.append(a, b, axis), np.append(a, b, axis))
        assert_gradients_are_right(lambda a, b, axis=axis: ops.append(a, b, axis), a, b)
    with tg.Tape():
        assert ops.append(tg.Variable(np.ones(2, np.float32)), [1.0, 2.0]).dtype == np.float32
    with pytest.raises(tg.ShapeError):
        ops.append(np.ones((2, 3)), np.ones(3), 0)


def test_compress_and_extract_are_numpy_s():
    for condition, axis in [
        ([True, False, True], 1),
        ([0, 1], 0),
        (np.ones(4, bool), -1),
        ([False], None),
        (np.arange(60) % 7 > 3, None),
    ]:
        np.testing.assert_array_equal(ops.compress(condition, A, axis), np.compress(condition, A, axis))
        assert_gradients_are_right(lambda a, c=condition, axis=axis: ops.compress(c, a, axis), A)
    np.testing.assert_array_equal(ops.extract(A > 0, A), np.extract(A > 0, A))
    assert_gradients_are_right(lambda a: ops.extract(A > 0, a), A)
    v = tg.Variable(A)
    with tg.Tape():
        np.testing.assert_array_equal(ops.extract(v > 0, v).value, A[A > 0])


# -- one of several ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["raise", "wrap", "clip"])
def test_choose_is_numpy_s_choose(mode):
    shapes = [(2, 3), (), (3,), (2, 1)]
    for count in (1, 2, 4):
        arrays = [RNG.standard_normal(s) for s in shapes[:count]]
        for which in (RNG.integers(0, count, (2, 3)), RNG.integers(0, count, (4, 1, 3)), 0):
            which = np.asarray(which) - (3 if mode != "raise" else 0)
            assert_gradients_are_right(lambda *c, w=which: ops.choose(w, c, mode=mode), *arrays)
            np.testing.assert_array_equal(
                ops.choose(which, arrays, mode=mode), np.choose(which, arrays, mode=mode)
            )
    v = tg.Variable(np.arange(6.0).reshape(2, 3))
    with tg.Tape() as tape:
        y = ops.choose([1, 0, 1], v)
    tape.backward(y, np.ones(3))
    np.testing.assert_array_equal(v.grad, [[0, 1, 0], [1, 0, 1]])


def test_select_is_numpy_s_select():
    x, y = RNG.standard_normal((2, 3)), RNG.standard_normal(3)
    conditions = [x > 0.5, (y < 0)[None], np.array(False)]
    for default in (0, 2.5, np.ones((4, 1, 1))):
        np.testing.assert_array_equal(
            ops.select(conditions, [x, y, x], default), np.select(conditions, [x, y, x], default)
        )
        assert_gradients_are_right(
            lambda a, b, default=default: ops.select(conditions, [a, b * b, a], default), x, y
        )
    assert_gradients_are_right(lambda a, d: ops.select([x > 0], [a], d), x, y)
    v = tg.Variable(np.array([-1.0, 0.0, 4.0], np.float32))
    with tg.Tape() as tape:
        root = ops.select([v > 0], [tg.sqrt(tg.where(v > 0, v, 1.0))], 0.0)
    tape.backward(root, np.ones(3))
    assert root.dtype == np.float32
    np.testing.assert_array_equal(v.grad, [0.0, 0.0, 0.25])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda v: ops.numpy_take(v, [0, 9]),
            tg.ArgumentError,
            "take: `indices` must be in 0 … 2, and 9 came",
        ),
        (
            lambda v: ops.numpy_take(v, v),
            tg.DtypeError,
            "take: `indices` must be integers, and a Variable came",
        ),
        (
            lambda v: tg.index_put(v, v, 1.0),
            tg.DtypeError,
            "index_put: `index` must be integers, slices or booleans",
        ),
        (
            lambda v: tg.index_add(v, v, 1.0),
            tg.DtypeError,
            "index_add: `index` must be integers, slices or booleans",
        ),
        (lambda v: tg.take(v, [0], 3), tg.OutOfRangeError, "take: `a` has no axis 3"),
        (lambda v: tg.take(v, [0], None), tg.ShapeError, "take: `axis` must be a number"),
        (lambda v: ops.numpy_take(v, [0.5]), tg.DtypeError, "take: `indices` must be integers"),
        (lambda v: ops.numpy_take(v, 0, 3), tg.OutOfRangeError, "take: `a` has no axis 3"),
        (lambda v: ops.numpy_take(v, 0, mode="bounce"), tg.ArgumentError, "take: `mode` must be 'raise'"),
        (lambda v: ops.choose([0, 2], [v, v]), tg.ArgumentError, "choose: `a` must be in 0 … 1, and 2 came"),
        (lambda v: ops.choose(v, [v, v]), tg.DtypeError, "choose: `a` must be integers, and a Variable came"),
        (lambda v: ops.choose([0.0], [v]), tg.DtypeError, "choose: `a` must be integers"),
        (lambda v: ops.select([v > 0], [v, v]), tg.ArgumentError, "one length above 0, and 1 and 2 came"),
        (lambda v: ops.select([], []), tg.ArgumentError, "one length above 0"),
        (lambda v: ops.select([[1, 0, 1]], [v]), tg.DtypeError, "select: `condlist` must be boolean"),
        (lambda v: ops.compress([[True]], v), tg.ShapeError, "compress: `condition` must have one axis"),
        (lambda v: ops.compress([0, 0, 0, 1], v), tg.ArgumentError, "must be in 0 … 2, and 3 came"),
        (lambda v: ops.delete(v, 9), tg.OutOfRangeError, "delete: index 9 is out of bounds"),
        (lambda v: ops.delete(v, v), tg.DtypeError, "delete: `obj` must be integers, and a Variable came"),
        (lambda v: ops.insert(v, 9, 1.0), tg.OutOfRangeError, "insert: index 9 is out of bounds"),
        (lambda v: ops.insert(v, [0, 1], np.ones(3)), tg.ShapeError, "broadcast"),
        (
            lambda v: ops.delete(v, 0, axis=1),
            tg.OutOfRangeError,
            "delete: `arr` has no axis 1",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, error, message):
    with tg.Tape(), pytest.raises(error, match=message):
        call(tg.Variable(np.ones(3)))


def test_plain_arrays_give_plain_arrays():
    a = np.arange(6.0).reshape(2, 3)
    calls = [
        ops.index_put(a, 0, 1.0), ops.index_add(a, 0, 1.0), ops.numpy_take(a, [0]), ops.delete(a, 0), ops.insert(a, 0, 1.0),
        ops.append(a, 1.0), ops.compress([True], a), ops.extract(a > 1, a), ops.choose([0], [a]), ops.select([a > 1], [a]),
        ops.index_put([1.0, 2.0], 0, 3.0), ops.append([1.0], [2.0]), ops.delete([1, 2], 0),
    ]  # fmt: skip
    assert {type(y) for y in calls} == {np.ndarray}
    assert all(not np.shares_memory(a, y) for y in calls)


def test_all_operand_orders_record():
    a, v = np.arange(3.0), np.array([5.0])
    for live in itertools.product([False, True], repeat=2):
        x, y = (tg.Variable(value) if is_live else value for value, is_live in zip((a, v), live, strict=True))
        with tg.Tape():
            found = [
                ops.index_put(x, [1], y),
                ops.index_add(x, [1], y),
                ops.insert(x, 1, y),
                ops.append(x, y),
            ]
        assert all(isinstance(f, tg.Variable) == any(live) for f in found)


@pytest.mark.parametrize("make", [lambda v: v, lambda v: v * 2.0])
@pytest.mark.parametrize("call", [lambda y, v: y.sum(initial=v), lambda y, v: np.sum(y, initial=v)])
def test_a_number_that_numpys_own_code_asks_for_is_refused(make, call):
    with tg.Tape():
        v = make(tg.Variable(2.0))
        with pytest.raises(ValueError, match="setting an array element") as caught:
            call(np.zeros(3), v)
    assert "cannot become a plain number: its gradient would be lost in silence" in str(
        caught.value.__cause__
    )


def test_a_leaf_assigned_to_an_element_is_refused_as_a_result_is():
    y = np.zeros(3)
    with pytest.raises(ValueError, match="setting an array element") as caught:
        y[0] = tg.Variable(2.0)
    assert "y = tg.index_put(y, index, v)" in str(caught.value.__cause__)
