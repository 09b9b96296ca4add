"""The contract of a Tape: recording, sweeping, misuse, and the quirks of autobw that are errors here."""

import asyncio
import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import nn
from tapegrad.core.primitive import Primitive


def scalar(value=2.0):
    return tg.Variable(np.array(value))


# -- what autobw and its peers pass over in silence ----------------------------------------------------


def test_backward_with_nothing_recorded_is_an_error():
    tape = tg.Tape()
    message = (
        "Tape.backward: nothing was recorded.\n"
        "  Compute with Variables between begin() and stop(): plain arrays leave no entry."
    )
    with pytest.raises(tg.RecordingError) as caught:
        tape.backward()
    assert str(caught.value) == message
    tape.begin()
    np.tanh(np.ones(3))
    tape.stop()
    with pytest.raises(tg.RecordingError) as caught:
        tape.backward()
    assert str(caught.value) == message


def test_a_second_backward_starts_from_fresh_adjoints_and_gradients_add_up():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        y = v * v
    assert tape.backward(y)[v] == 6
    assert tape.backward(y)[v] == 6
    assert v.grad == 12


def test_begin_twice_is_an_error_that_names_stop_and_abort():
    tape = tg.Tape()
    tape.begin()
    with pytest.raises(tg.RecordingError) as caught:
        tape.begin()
    assert str(caught.value) == (
        "Tape.begin: this tape is already recording.\n"
        "  Call stop() first, or abort() after an exception; `with tape:` does both for you."
    )
    tape.stop()


def test_stop_without_begin_is_an_error():
    for method in ("stop", "abort"):
        with pytest.raises(tg.RecordingError) as caught:
            getattr(tg.Tape(), method)()
        assert str(caught.value) == (
            f"Tape.{method}: this tape is not recording. Call begin() first, or use `with tape:`."
        )


def test_an_exception_inside_rolls_the_recording_back():
    v, tape = scalar(), tg.Tape()
    with pytest.raises(ZeroDivisionError), tape:
        v * v
        1 / 0
    assert len(tape) == 0
    assert not tape.recording
    with pytest.raises(ZeroDivisionError):
        tape.record(lambda: v * (1 / 0))
    y = tape.record(lambda: v * v)  # and the tape works on
    tape.backward(y)
    assert v.grad == 4


def test_a_y_graph_swept_twice_keeps_both_branches():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        shared = v * 2.0
        left, right = shared * 5.0, shared * 7.0
        y = left + right
    for sweep in (1, 2):
        assert tape.backward(y)[v] == 24
        assert v.grad == 24 * sweep


def test_outputs_that_nothing_uses_contribute_nothing():
    v, tape = tg.Variable(np.arange(6.0)), tg.Tape()
    with tape:
        a, b, c = tg.split(v, 3)
        tg.exp(c) * a
        y = tg.sum(b * b)
    tape.backward(y)
    np.testing.assert_array_equal(v.grad, [0, 0, 4, 6, 0, 0])


def test_a_last_value_that_is_not_a_scalar_needs_a_seed():
    v, tape = tg.Variable(np.ones((2, 3), np.float32)), tg.Tape()
    with tape:
        y = v * 2.0
    with pytest.raises(tg.ArgumentError) as caught:
        tape.backward()
    assert str(caught.value) == (
        "Tape.backward: the last value recorded is multiply of shape (2, 3), not a scalar.\n"
        "  Name the root, backward(loss); or end with tg.sum or tg.mean; or give a seed of its shape."
    )
    with pytest.raises(tg.ArgumentError) as caught:
        tape.backward(y)
    assert str(caught.value) == (
        "Tape.backward: the root is not a scalar: float32 (2, 3).\n"
        "  Reduce it (tg.mean, tg.sum), or give its cotangent: backward(root, seed=array of shape (2, 3))."
    )
    with pytest.raises(tg.ShapeError, match=r"seed: \(3,\)      Variable: \(2, 3\)"):
        tape.backward(y, seed=np.ones(3))
    assert v.grad is None
    tape.backward(y, seed=np.ones((2, 3)))
    np.testing.assert_array_equal(v.grad, np.full((2, 3), 2))


def test_a_root_that_is_not_on_the_tape_is_refused():
    v, tape, other = scalar(), tg.Tape(), tg.Tape()
    with tape:
        old = v * v
    with tape:
        y = v * v
    with other:
        foreign = v * v
    outside = v * v
    for root, said in [
        (old, "was not recorded on this tape"),
        (foreign, "was not recorded on this tape"),
        (outside, "the root is a constant"),
        (tg.constant(1.0), "the root is a constant"),
    ]:
        with pytest.raises(tg.RecordingError, match=said):
            tape.backward(root)
    with pytest.raises(tg.ArgumentError, match="must be a Variable that was recorded, and float 4.0 came"):
        tape.backward(float(y))
    assert v.grad is None


# -- recording -----------------------------------------------------------------------------------------


def test_loops_and_branches_are_recorded_as_they_ran():
    for coin in (0.2, 0.8):
        v, tape = scalar(0.5), tg.Tape()
        with tape:
            y = v
            for _ in range(3):
                y = tg.sigmoid(y) if coin > 0.5 else y * y
        tape.backward(y)
        x, slope = 0.5, 1.0
        for _ in range(3):
            if coin > 0.5:
                x = 1 / (1 + np.exp(-x))
                slope *= x * (1 - x)
            else:
                slope, x = slope * 2 * x, x * x
        np.testing.assert_allclose(v.grad, slope, rtol=1e-14)


def test_begin_forgets_the_last_recording():
    v, tape = tg.Variable(np.ones(1000)), tg.Tape()
    with tape:
        tg.exp(v)
    kept = weakref.ref(tape._segment.entries[0][-1])
    tape.begin()
    assert len(tape) == 0
    assert kept() is None
    tape.stop()


def test_what_is_computed_outside_a_recording_is_a_constant_later():
    v, tape = scalar(3.0), tg.Tape()
    outside = v * v
    assert isinstance(outside, tg.Variable)
    with tape:
        y = outside * v
    tape.backward(y)
    assert v.grad == 9


def test_paused_ops_are_constants():
    v, tape, outer = scalar(3.0), tg.Tape(), tg.Tape()
    with outer, tape:
        with tape.pause():
            c = v * v
        y = c * v
    assert (len(tape), len(outer)) == (1, 2)
    assert tape.backward(y)[v] == 9
    assert outer.backward(y)[v] == 27


def test_stop_gradient_is_the_value_without_its_past():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        y = tg.stop_gradient(v * v) * v
    tape.backward(y)
    assert v.grad == 9


def test_ops_on_plain_arrays_return_plain_arrays_and_record_nothing():
    tape = tg.Tape()
    with tape:
        y = tg.tanh(np.ones(3))
        assert tg.sum(np.ones(3)) == 3
        parts = tg.split(np.ones(4), 2)
    assert type(y) is np.ndarray
    assert type(parts[0]) is np.ndarray
    assert len(tape) == 0


def test_record_returns_what_the_function_returns():
    v, tape = scalar(3.0), tg.Tape()
    y = tape.record(lambda a, *, power: a**power, v, power=3)
    tape.backward(y)
    assert v.grad == 27


def test_backward_while_the_tape_still_records_sweeps_what_is_there():
    v, tape = scalar(3.0), tg.Tape()
    tape.begin()
    y = v * v
    assert tape.backward(y)[v] == 6
    z = y * v
    assert tape.backward(z)[v] == 27
    tape.stop()


def test_an_inner_tape_ends_without_disturbing_the_outer():
    v, outer, inner = scalar(3.0), tg.Tape(), tg.Tape()
    outer.begin()
    a = v * v
    inner.begin()
    b = a * v
    outer.stop()  # in any order
    c = b * v
    inner.stop()
    assert (len(outer), len(inner)) == (2, 2)
    outer.backward(b)
    assert v.grad == 27
    v.grad = None
    inner.backward(c)  # to the inner tape, a is a constant: d(a v²)/dv
    assert v.grad == 2 * 9 * 3


def test_rebinding_a_parameter_does_not_rewrite_history():
    p, tape = tg.Parameter(np.array(2.0)), tg.Tape()
    with tape:
        y = p * p
        p.value = np.array(5.0)
        z = y * p
    tape.backward(z)
    assert p.grad == 4 + 5 * 4  # z = p1² p2: dz/dp2 + dz/dp1, at the values that were used


# -- sweeping ------------------------------------------------------------------------------------------


def test_several_roots_and_seeds():
    v, tape = tg.Variable(np.array([1.0, 2.0])), tg.Tape()
    with tape:
        a, b = v * v, tg.sum(v)
    tape.backward([a, b], [np.array([1.0, 10.0]), 100.0])
    np.testing.assert_array_equal(v.grad, [102, 140])
    with pytest.raises(tg.ArgumentError, match="2 roots need a list of as many seeds, and 1 came"):
        tape.backward([a, b], [1.0])


def test_the_same_root_twice_counts_twice():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        y = v * v
    assert tape.backward([y, y])[v] == 12


def test_a_leaf_may_be_the_root():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        v * v
    tape.backward(v)
    assert v.grad == 1


def test_adjoints_of_values_are_kept_when_asked_for():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        a = v * v
        b = tg.exp(a)
        unused = tg.exp(v)
        y = b * a
    adjoints = tape.backward(y, keep=[a, unused])
    np.testing.assert_allclose(adjoints[a], np.exp(9) * 10)
    assert adjoints[unused] == 0
    assert adjoints[y] == 1
    with pytest.raises(tg.ArgumentError) as caught:
        adjoints[b]
    assert str(caught.value) == (
        "Adjoints: only roots, leaves and values named in `keep` have their adjoint kept.\n"
        "  Ask for it before the sweep: tape.backward(root, keep=[v])[v]."
    )


def test_gradients_of_a_sum_are_two_arrays_and_owned():
    a, b, tape = tg.Variable(np.zeros(3)), tg.Variable(np.zeros(3)), tg.Tape()
    with tape:
        y = tg.sum(a + b)
    adjoints = tape.backward(y)
    a.grad += 5
    adjoints[a][...] = 9
    assert adjoints.gradients[b].strides == (8,)
    np.testing.assert_array_equal(b.grad, np.ones(3))
    np.testing.assert_array_equal(a.grad, np.full(3, 6))
    np.testing.assert_array_equal(adjoints[a], np.ones(3))


def test_gradient_dtype_is_the_values_dtype():
    v, tape = tg.Variable(np.ones(3, np.float32)), tg.Tape()
    with tape:
        y = tg.sum(v * np.ones(3))
    assert y.dtype == np.float64
    adjoints = tape.backward(y)
    assert v.grad.dtype == adjoints[v].dtype == np.float32


@pytest.mark.parametrize("op", ["add", "subtract", "multiply", "divide", "power", "maximum", "minimum"])
@pytest.mark.parametrize("number", [2, 2.0, 0, 0.0, 3])
def test_python_numbers_widen_neither_values_nor_cotangents(op, number):
    function = getattr(tg, op)
    for arguments in (lambda v: (v, number), lambda v: (number, v)):
        v, tape = tg.Variable(np.full(3, 1.5, np.float32)), tg.Tape()
        with np.errstate(all="ignore"), tape:
            y = function(*arguments(v))
        assert y.dtype == np.float32
        with np.errstate(all="ignore"):
            sums = tape._sweep([y], [np.ones(3, np.float32)], (), record=False).sums
        assert sums[v._slot].dtype == np.float32


def test_a_power_of_zero_has_derivative_zero_everywhere():
    for exponent in (0, 0.0, np.zeros(2)):
        v, tape = tg.Variable(np.array([0.0, 2.0])), tg.Tape()
        with tape:
            y = tg.sum(v**exponent)
        tape.backward(y)
        np.testing.assert_array_equal(v.grad, [0, 0])


def test_ties_go_to_the_first():
    v, tape = tg.Variable(np.array([3.0, 3.0, 1.0])), tg.Tape()
    with tape:
        y = tg.max(v)
    tape.backward(y)
    np.testing.assert_array_equal(v.grad, [1, 0, 0])
    a, b = scalar(3.0), scalar(3.0)
    with tape:
        y = tg.maximum(a, b) + tg.minimum(a, b) * 10.0
    tape.backward(y)
    assert (a.grad, b.grad) == (11, 0)


def test_walk_shows_the_sweep_one_entry_at_a_time():
    v, tape = tg.Variable(np.array(3.0), name="v"), tg.Tape()
    with tape:
        y = tg.exp(v * v)
    steps = list(tape.walk(y))
    assert [s.name for s in steps] == ["exp", "multiply"]
    assert steps[1].inputs == ("v", "v")
    assert set(steps[1].residuals) == {"a", "b"}
    np.testing.assert_allclose(steps[1].ct, np.exp(9))
    np.testing.assert_allclose(sum(ct for name, ct in steps[1].contributions if name == "v"), 6 * np.exp(9))
    assert v.grad is None


def test_the_wengert_table():
    w, b = tg.Variable(np.ones((3, 4)), name="w"), tg.Variable(np.ones(4), name="b")
    tape = tg.Tape()
    with tape:
        y = tg.tanh(np.ones((2, 3)) @ w + b)
        left, _ = tg.split(y * 2.0, 2, axis=1)
        tg.concat([left, w[:, :2]])
    assert str(tape).splitlines() == [
        "Tape: 9 entries, 112 bytes kept",
        "v0 = matmul(const, w)   keeps a         (2, 4)",
        "v1 = add(v0, b)         keeps nothing   (2, 4)",
        "v2 = tanh(v1)           keeps y         (2, 4)",
        "v3 = multiply(v2, 2)    keeps nothing   (2, 4)",
        "v4 = split(v3)          keeps nothing   [(2, 2), (2, 2)]",
        "v5 = item(v4)           keeps nothing   (2, 2)",
        "v6 = item(v4)           keeps nothing   (2, 2)",
        "v7 = getitem(w)         keeps nothing   (3, 2)",
        "v8 = concat([v5, v7])   keeps nothing   (5, 2)",
    ]


def test_a_long_table_is_cut_in_the_middle():
    v, tape = scalar(1.0), tg.Tape()
    with tape:
        for _ in range(100):
            v = v * 1.0
    lines = str(tape).splitlines()
    assert len(lines) == 52
    assert lines[41] == "... 50 more"


# -- higher order, forward mode --------------------------------------------------------------------------


def test_a_recorded_sweep_can_be_swept_again_to_any_order():
    v, tape = scalar(0.7), tg.Tape()
    with tape:
        y = tg.sin(v)
    order1 = tape.backward(y, record=True)[v]
    order2 = tape.backward(order1, record=True)[v]
    order3 = tape.backward(order2)[v]
    np.testing.assert_allclose(
        [order1.item(), order2.item(), order3], [np.cos(0.7), -np.sin(0.7), -np.cos(0.7)]
    )


def test_a_recorded_sweep_is_recorded_by_every_active_tape():
    v, outer, inner = scalar(2.0), tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = v * v * v
        slope = inner.backward(y, record=True)[v]
        z = slope * slope
    assert outer.backward(z)[v] == 2 * 12 * 12


def test_forward_mode_over_a_recording():
    a, b, tape = tg.Variable(np.array([1.0, 2.0])), scalar(3.0), tg.Tape()
    with tape:
        y = tg.exp(a) * b
        z = tg.sum(y)
    pushed = tape.pushforward({a: [1.0, 0.0], b: 2.0}, [y, z])
    np.testing.assert_allclose(pushed[0], [np.e * 3 + np.e * 2, np.e**2 * 2])
    np.testing.assert_allclose(pushed[1], pushed[0].sum())
    assert tape.pushforward({scalar(): 1.0}, z) == 0
    with pytest.raises(tg.ShapeError, match="tangent"):
        tape.pushforward({a: 1.0}, z)


# -- values ----------------------------------------------------------------------------------------------


def test_a_variable_copies_its_input_and_hands_out_a_read_only_array():
    array = np.ones(3)
    v = tg.Variable(array)
    array[0] = 7
    assert v.value[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        v.value[0] = 7
    with pytest.raises(ValueError, match="read-only"):
        v.value -= 1.0
    v.value = v.value - 1.0
    np.testing.assert_array_equal(v.value, np.zeros(3))


def test_a_value_keeps_its_shape_and_dtype():
    v = tg.Variable(np.ones(3, np.float32))
    v.value = np.arange(3)
    assert v.dtype == np.float32
    with pytest.raises(tg.ShapeError, match="keeps its shape"):
        v.value = np.ones(4)
    with pytest.raises(tg.ShapeError, match="grad"):
        v.grad = np.ones(4)


@pytest.mark.parametrize("bad", [[1, 2], np.arange(3), True, 1j, "text", [None], np.array([1 + 1j])])
def test_only_real_floating_point_is_differentiated(bad):
    for kind in (tg.Variable, tg.Parameter):
        with pytest.raises(
            tg.DtypeError, match=f"{kind.__name__}: a differentiated value must be real floating point"
        ):
            kind(bad)


def test_a_variable_behaves_as_an_array_does():
    v = tg.Variable(np.array([[1.0, -2.0], [3.0, 4.0]], np.float32))
    assert (v.shape, v.dtype, v.ndim, v.size, len(v)) == ((2, 2), np.float32, 2, 4, 2)
    np.testing.assert_array_equal(v.T.value, v.value.T)
    np.testing.assert_array_equal((v > 0), v.value > 0)
    np.testing.assert_array_equal([row.value for row in v], v.value)
    assert float(v[0, 0]) == v[0, 0].item() == int(v[0, 0]) == 1
    assert bool(v[0, 0])
    assert (v == None) is False  # noqa: E711
    with pytest.raises(ValueError, match="ambiguous"):
        bool(v)
    assert repr(v) == "Variable([[ 1., -2.],\n          [ 3.,  4.]], dtype=float32)"
    assert repr(tg.Parameter(1.0)) == "Parameter(1., dtype=float64)"
    assert repr(v[0, 0] + 1.0) == "Variable(2., dtype=float32)"
    with pytest.raises(TypeError):
        len(v[0, 0])
    with pytest.raises(tg.UnsupportedError, match="never written into"):
        v[0] = 1.0


def test_loss_plus_equals_rebinds():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        loss = v * 1.0
        first = loss
        loss += v * v
    assert first.item() == 3
    tape.backward(loss)
    assert v.grad == 7


def test_copies_and_pickles_are_leaves_of_their_own():
    p = tg.Parameter(np.ones(2), name="p")
    p.grad = np.full(2, 5.0)
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert type(other) is tg.Parameter
        assert other.name == "p"
        other.value = np.zeros(2)
        other.grad[0] = 1
        np.testing.assert_array_equal(p.value, np.ones(2))
        np.testing.assert_array_equal(p.grad, [5, 5])
    tape = tg.Tape()
    with tape:
        y = p * p
        z = tg.sum(copy.deepcopy(y) * p)
    tape.backward(z)
    np.testing.assert_array_equal(p.grad, [6, 6])  # the copy of a result is a constant


def test_only_leaves_hold_gradients_and_take_values():
    y = scalar() * 2.0
    assert y.grad is None
    for attribute in ("grad", "value"):
        with pytest.raises(tg.ArgumentError, match=f"{attribute}: "):
            setattr(y, attribute, np.ones(()))


def test_constants_are_kept_by_reference_and_writeable_arrays_are_copied():
    for make, copied in [
        (lambda a: a, True),
        (tg.constant, False),
        (lambda a: a.setflags(write=False) or a, False),
    ]:
        array, v, tape = np.ones(3), tg.Variable(np.ones(3)), tg.Tape()
        with tape:
            v * make(array)
        kept = tape._segment.entries[0][-1]
        assert np.shares_memory(kept, array) is not copied


def test_a_guarded_tape_names_what_was_changed_behind_numpys_back():
    array, v, tape = np.ones(3), tg.Variable(np.ones(3)), tg.Tape(guard=True)
    with tape:
        y = tg.sum(v * tg.constant(array))
    tape.backward(y)
    array[1] = 5
    with pytest.raises(
        tg.RecordingError, match=r"`b`, kept by multiply at .*test_tape.py:\d+, has been changed since"
    ):
        tape.backward(y)


def test_guarded_capacitors_forget_what_they_evict():
    v = tg.Parameter(np.ones(3))
    for weights in ("recorded", "current"):
        tape = tg.CapacitorTape(3, guard=True, weights=weights)
        for _ in range(10):
            with tape:
                y = tg.sum(v * v)
            tape.backward(y)
            v.value = v.value * 0.5
        assert sum(len(segment.guarded) for segment in tape.segments) == len(tape) == 6


# -- threads, tasks, memory, length ----------------------------------------------------------------------


def test_a_new_thread_starts_without_a_tape():
    v, tape, seen = scalar(), tg.Tape(), []
    with tape:
        thread = threading.Thread(target=lambda: seen.append(v * v))
        thread.start()
        thread.join()
        assert len(tape) == 0
    assert len(seen) == 1


def test_another_thread_can_neither_stop_nor_begin_a_recording():
    tape, errors = tg.Tape(), []

    def try_both():
        for method in (tape.stop, tape.abort, tape.begin):
            try:
                method()
            except tg.RecordingError as error:
                errors.append(str(error))

    with tape:
        thread = threading.Thread(target=try_both)
        thread.start()
        thread.join()
        assert tape.recording
    assert len(errors) == 3
    assert "another thread or task" in errors[0]
    assert "another thread or task" in errors[2]


def test_a_task_cannot_stop_what_its_parent_began():
    async def main():
        tape = tg.Tape()
        tape.begin()

        async def child():
            with pytest.raises(tg.RecordingError, match="another thread or task"):
                tape.stop()

        await asyncio.create_task(child())
        tape.stop()

    asyncio.run(main())


def test_tapes_in_two_tasks_do_not_see_each_other():
    async def train(x, found):
        v, tape = scalar(x), tg.Tape()
        tape.begin()
        y = v * v
        await asyncio.sleep(0)
        y = y * v
        tape.stop()
        tape.backward(y)
        found[x] = (float(v.grad), len(tape))

    async def main():
        found = {}
        await asyncio.gather(*(train(x, found) for x in (1.0, 2.0, 3.0)))
        return found

    assert asyncio.run(main()) == {x: (3 * x * x, 2) for x in (1.0, 2.0, 3.0)}


def test_stop_inside_pause_is_refused():
    tape = tg.Tape()
    with tape:
        with tape.pause(), pytest.raises(tg.RecordingError, match="paused"):
            tape.stop()
        assert tape.recording


def test_nothing_is_left_to_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        tape, lin = tg.Tape(), nn.Linear(3, 3)
        with tape:
            y = tg.mean(lin(np.ones((2, 3))) ** 2)
        tape.backward(y)
        gone = [weakref.ref(tape), weakref.ref(lin.weight), weakref.ref(y)]
        del tape, lin, y
        assert [r() for r in gone] == [None] * 3
    finally:
        gc.enable()


def test_a_diamond_chain_is_swept_in_linear_time():
    v, tape = scalar(1.0), tg.Tape()
    with tape:
        y = v
        for _ in range(60):  # 2^60 paths
            y = y * 0.5 + y * 0.5
    tape.backward(y)
    assert v.grad == 1


def test_a_chain_of_a_million_entries():
    v, tape = scalar(1.0), tg.Tape()
    with tape:
        y = v
        for _ in range(1_000_000):
            y = y * 1.000001
    tape.backward(y)
    np.testing.assert_allclose(v.grad, 1.000001**1_000_000, rtol=1e-9)


def test_100_000_steps_of_a_capacitor_loop_in_flat_memory():
    resource = pytest.importorskip("resource")
    w, tape, h = tg.Parameter(np.full((8, 8), 0.1)), tg.CapacitorTape(20), tg.constant(np.ones((1, 8)))
    optimizer = tg.optim.SGD([w], 1e-3)
    after = []
    for t in range(100_000):
        with tape:
            h = tg.tanh(h @ w + 0.1)
            loss = tg.mean(h)
        if t % 20 == 0:
            tape.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if t in (10_000, 99_999):
            gc.collect()
            after.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(tape) == 20 * len(tape.segments[0])
    assert after[1] - after[0] < 1024, "kB grown between step 10,000 and step 100,000"


# -- bad input -------------------------------------------------------------------------------------------


def test_matmul_names_its_operands_and_the_way_out():
    with pytest.raises(tg.ShapeError) as caught:
        tg.matmul(tg.Variable(np.zeros((32, 128), np.float32)), np.zeros((64, 128), np.float32))
    assert str(caught.value) == (
        "matmul: the last axis of `a` and the next-to-last of `b` must agree.\n"
        "  a: float32 (32, 128)      b: float32 (64, 128)\n"
        "  128 != 64. If `b` holds weights as (out, in), write matmul(a, b.T)."
    )


def test_shapes_that_do_not_broadcast_name_the_op_and_both_arguments():
    with pytest.raises(
        tg.ShapeError, match=r"add: .*broadcast.*\n  a: float64 \(3,\)      b: float64 \(4,\)"
    ):
        tg.Variable(np.ones(3)) + np.ones(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda v: v @ 3.0, tg.ShapeError, "matmul: the operands must have at least one axis"),
        (lambda v: v * "text", tg.DtypeError, "multiply: `b` must be a Variable, a real array or a number"),
        (lambda v: v * 1j, tg.DtypeError, "Complex numbers are not differentiated here"),
        (lambda v: v * None, tg.DtypeError, "b: NoneType None"),
        (lambda v: v + [v, v], tg.UnsupportedError, "tg.stack"),
        (lambda v: v[10], tg.ShapeError, "getitem: index 10 is out of bounds"),
        (lambda v: v[v], tg.DtypeError, "getitem: `index` must be integers, slices or booleans, and a Variable came"),
        (lambda v: v.reshape(5, 5), tg.ShapeError, "reshape: cannot reshape"),
        (lambda v: tg.sum(v, axis=7), tg.ShapeError, "sum: axis 7 is out of bounds"),
        (lambda v: tg.take(v, np.array([5])), tg.ArgumentError, "take: `indices` must be in 0 … 1, and 5 came"),
        (lambda v: tg.take(v, np.array([0.5])), tg.DtypeError, "take: `indices` must be integers, and float64"),
        (lambda v: tg.softmax_cross_entropy(v, [0, 3]), tg.ArgumentError, "`labels` must be in 0 … 2, and 3 came"),
        (lambda v: tg.softmax_cross_entropy(v, [0, -1]), tg.ArgumentError, "`labels` must be in 0 … 2, and -1 came"),
        (lambda v: tg.softmax_cross_entropy(v, [0.0, 1.0]), tg.DtypeError, "`labels` must be integers"),
        (lambda v: tg.softmax_cross_entropy(v, [0]), tg.ShapeError, "`labels` must have the shape of `logits`"),
        (lambda v: tg.lstm_step(v, v, v, v, v, v), tg.ShapeError, "lstm_step: shapes must be x (batch, n_in)"),
        (lambda v: tg.concat([v, np.ones((3, 4))]), tg.ShapeError, "concat: "),
        (lambda v: tg.split(v, 4), tg.ShapeError, "split: "),
    ],
)  # fmt: skip
def test_nonsense_is_refused_in_words(call, error, message):
    with pytest.raises(error) as caught:
        call(tg.Variable(np.ones((2, 3))))
    assert message in str(caught.value)
    assert isinstance(caught.value, tg.TapegradError)


# -- traps -----------------------------------------------------------------------------------------------


def test_one_value_given_twice_to_a_fused_op_counts_twice_and_not_four_times():
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, 3)), np.zeros(12)
    h, w = tg.Variable(rng.standard_normal((2, 3))), tg.Variable(rng.standard_normal((3, 12)))
    tape = tg.Tape()
    with tape:
        out, _ = tg.lstm_step(x, h, h, w, w, b)
        y = tg.sum(out * out)
    raw, recorded = tape.backward(y), tape.backward(y, record=True)
    for v in (h, w):
        np.testing.assert_allclose(recorded[v].value, raw[v], rtol=1e-12)
        t = rng.standard_normal(v.shape)
        np.testing.assert_allclose(tape.pushforward({v: t}, y), np.sum(raw[v] * t), rtol=1e-12)


FACTOR = {"k": 2.0}


def rules_that_are_more_than_operators():
    factor = 5.0

    def flipped(xp, a, *, flip):
        return xp.negative(a) if flip else xp.positive(a)

    yield flipped, lambda ct, flip: -ct if flip else ct, {"flip": False}, 1.0
    yield flipped, lambda ct, flip: -ct if flip else ct, {"flip": True}, -1.0

    def tripled(xp, a):
        return a * 3.0

    yield tripled, lambda ct: ct * np.float64(3), {}, 3.0
    yield tripled, lambda ct: ct * FACTOR["k"], {}, 2.0
    yield tripled, lambda ct: ct * factor, {}, 5.0
    yield tripled, lambda ct: ct * 3, {}, 3.0


@pytest.mark.parametrize(("body", "rule", "statics", "expected"), list(rules_that_are_more_than_operators()))
def test_a_rule_with_a_branch_a_global_or_a_closure_is_called_and_not_written_out(
    body, rule, statics, expected
):
    op = Primitive(body, {"a": rule}, kind="elementwise").function
    v, tape = tg.Variable(np.ones(2)), tg.Tape()
    with tape:
        y = op(v, **statics)
    tape.backward(y, np.ones(2))
    np.testing.assert_array_equal(v.grad, np.full(2, expected))
    if body.__name__ == "flipped":  # the other way, through the same pull
        with tape:
            y = op(v, flip=not statics["flip"])
        np.testing.assert_array_equal(tape.backward(y, np.ones(2))[v], np.full(2, -expected))


@pytest.mark.parametrize("name", ["out", "y", "keep", "body", "active", "tapes", "_x"])
def test_names_that_generated_code_uses_are_refused(name):
    space = {}
    exec(f"def op(xp, a, *, {name}): return a", space)
    with pytest.raises(TypeError, match=f"`{name}` is a name that the generated code uses"):
        Primitive(space["op"], {"a": lambda ct: ct})


def test_a_rule_that_returns_another_shape_is_named_and_no_grad_is_spoilt():
    def twice(xp, a):
        return a + a

    op = Primitive(twice, {"a": lambda ct: tg.sum(ct)}).function
    v, tape = tg.Variable(np.ones(3), name="v"), tg.Tape()
    with tape:
        y = op(v)
    with pytest.raises(
        tg.ShapeError, match=r"the gradient of v came out as float64 \(\), and its value is float64 \(3,\)"
    ):
        tape.backward(y, np.ones(3))
    assert v.grad is None


def test_a_recorded_sweep_adds_plain_and_recorded_contributions():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        y = v * v + (v * 2.0 + v * 3.0)
    slope = tape.backward(y, record=True)[v]
    assert slope.item() == 11
    assert tape.backward(slope)[v] == 2


def test_a_constant_gradient_of_a_recorded_sweep_is_a_variable_too():
    v, tape = scalar(3.0), tg.Tape()
    with tape:
        y = v * 2.0
    assert isinstance(tape.backward(y, record=True)[v], tg.Variable)


def test_tapes_begun_and_stopped_inside_a_pause_are_left_as_they_are():
    a, b, v = tg.Tape(), tg.Tape(), scalar()
    a.begin()
    with a.pause():
        b.begin()
    v * v
    b.stop()
    a.stop()
    assert (len(a), len(b)) == (1, 1)
    a.begin()
    b.begin()
    with a.pause():
        b.stop()
        v * v
    v * v
    a.stop()
    assert (len(a), len(b)) == (1, 0)
    v * v
    assert (len(a), len(b)) == (1, 0)


def test_pauses_nest():
    a, b, v = tg.Tape(), tg.CapacitorTape(3), scalar()
    with a, b:
        x = v * 3.0
        with a.pause():
            with b.pause():
                c = x * v
            b.stop()
            d = x * v  # nothing records: a constant that was meant
            b.begin()
        y = (c + d) * v
    assert (len(a), len(b)) == (2, 2)  # x and y
    b.backward(y)  # and no warning of a gradient that stops
    assert v.grad == 24


def test_a_task_that_outlives_the_recording_adds_nothing_to_it():
    async def main():
        v, tape, go = scalar(), tg.Tape(), asyncio.Event()

        async def child():
            await go.wait()
            return v * v

        with tape:
            task = asyncio.create_task(child())
            y = v * 2.0
        go.set()
        await task
        assert len(tape) == 1
        tape.backward(y)

    asyncio.run(main())


def test_a_seed_that_is_a_variable_is_taken_as_an_array_unless_the_sweep_is_recorded():
    v, outer, inner = scalar(3.0), tg.Tape(), tg.Tape()
    with outer:
        with inner:
            y = v * v + v
        inner.backward(y, tg.Variable(2.0))
    assert v.grad == 14


def test_a_guarded_tape_forgets_with_its_recording():
    v, tape = scalar(), tg.Tape(guard=True)
    for _ in range(3):
        with tape:
            v * v
    assert len(tape._segment.guarded) == 1


def test_iterating_over_a_variable_records_one_op_and_its_items():
    v, tape = tg.Variable(np.arange(6.0).reshape(3, 2)), tg.Tape()
    with tape:
        y = sum(tg.sum(row * row) for row in v)
    assert [e[0].name for e in tape._segment.entries[:4]] == ["unstack", "item", "item", "item"]
    tape.backward(y)
    np.testing.assert_array_equal(v.grad, 2 * v.value)
    assert list(tg.Variable(np.zeros((0, 2)))) == []


@pytest.mark.parametrize("reduce", [tg.max, tg.min])
def test_extremes_of_scalars_and_of_empty_batches(reduce):
    v, empty, tape = scalar(3.0), tg.Variable(np.zeros((0, 3))), tg.Tape()
    with tape:
        y = reduce(v)
        none = reduce(empty, axis=1)
    tape.backward([y, none], [np.float64(2.0), np.zeros(0)])
    assert v.grad == 2
    assert empty.grad.shape == (0, 3)


def test_two_leaves_of_one_name_are_told_apart():
    a, b, tape = tg.Variable(1.0, name="w"), tg.Variable(2.0, name="w"), tg.Tape()
    with tape:
        a * b
    assert "multiply(w, w')" in str(tape)


def test_scalars_that_are_kept_are_shown():
    v, tape = scalar(), tg.Tape()
    with tape:
        np.tanh(v)
    assert "keeps y" in str(tape)
    assert tape.nbytes == 8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda t, v, y: t.backward(y, keep=np.ones(2)),
            tg.ArgumentError,
            "`keep` must be a list of Variables",
        ),
        (lambda t, v, y: t.backward(y, keep=None), tg.ArgumentError, "`keep` must be a list of Variables"),
        (lambda t, v, y: t.backward([]), tg.ArgumentError, "the list of roots is empty"),
        (lambda t, v, y: t.backward([y], seed=1.0), None, ""),
        (
            lambda t, v, y: t.backward(y, seed="abc"),
            tg.DtypeError,
            "the seed must be an array of real numbers",
        ),
        (lambda t, v, y: t.backward(y, seed=[[1.0], [1.0, 2.0]]), tg.DtypeError, "the seed must be an array"),
        (
            lambda t, v, y: t.pushforward({tg.constant(1.0): 1.0}, y),
            tg.ArgumentError,
            "must map leaves to arrays",
        ),
        (lambda t, v, y: t.pushforward({"v": 1.0}, y), tg.ArgumentError, "must map leaves to arrays"),
        (lambda t, v, y: v.astype(int), tg.DtypeError, "`dtype` must be floating point"),
        (lambda t, v, y: tg.concat([v[None], v[None]], axis=None), tg.ShapeError, "`axis` must be a number"),
        (lambda t, v, y: tg.unstack(v), tg.ShapeError, "unstack: `a` has nothing to take apart"),
        (lambda t, v, y: tg.split(v[None], 0), tg.ShapeError, "split: "),
        (lambda t, v, y: tg.Variable([[1.0], [1.0, 2.0]]), tg.DtypeError, "must be real floating point"),
        (
            lambda t, v, y: setattr(v, "value", None),
            tg.DtypeError,
            "value: a differentiated value must be real",
        ),
        (
            lambda t, v, y: setattr(v, "value", "1.5"),
            tg.DtypeError,
            "value: a differentiated value must be real",
        ),
        (
            lambda t, v, y: setattr(v, "value", 1j),
            tg.DtypeError,
            "value: a differentiated value must be real",
        ),
        (lambda t, v, y: v[None][5], IndexError, "getitem: index 5 is out of bounds"),
    ],
)
def test_more_nonsense_is_refused_in_words(call, error, message):
    v, tape = scalar(), tg.Tape()
    with tape:
        y = v * v
        if error is None:
            call(tape, v, y)
            return
        with pytest.raises(error) as caught:
            call(tape, v, y)
    assert message in str(caught.value)
    assert isinstance(caught.value, tg.TapegradError)
    assert v.grad is None
    assert v.item() == 2
