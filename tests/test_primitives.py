"""One sweep over every op in the registry: an op that is declared is tested.

Each check is a function of a primitive and of one case of inputs, so that the last tests can plant a
fault in a rule or in the engine and see that a check fails.
"""

import importlib.util
import itertools
import pkgutil

import numpy as np
import pytest

import tapegrad as tg
from tapegrad import ops
from tapegrad.core import tape as tape_module
from tapegrad.core.entry import ITEM, OUT, SLOTS
from tapegrad.core.primitive import REGISTRY, Case, Primitive, Variant

for module in pkgutil.iter_modules(ops.__path__):  # ops are declared when their module is imported
    importlib.import_module(f"tapegrad.ops.{module.name}")
importlib.import_module("tapegrad.opaque")

ELEMENTWISE = {
    1: [Case((3, 4)), Case(()), Case((0, 3)), Case((1,))],
    2: [
        Case((3, 4), (3, 4)), Case((3, 4), (4,)), Case((3, 1), (4,)), Case((), (3, 4)), Case((3, 4), ()),
        Case((0, 4), (4,)), Case((), ()), Case((2, 1, 3), (4, 1)),
    ],
    3: [Case((3, 4), (3, 4), (3, 4)), Case((3, 1), (4,), ()), Case((), (3, 4), (4,)), Case((4,), (3, 4), (3, 1))],
}  # fmt: skip


def cases_of(primitive):
    own = (
        [Case((3, 4), dtype=np.float64), Case((), dtype=np.float64)]
        if primitive.name == "astype"
        else primitive.cases
    )
    return list(own) or ELEMENTWISE[len(primitive.arguments)]


def seeded(primitive, case):
    return np.random.default_rng(sum(map(ord, f"{primitive.name}{case}")))


def sample(primitive, case, rng, dtype=np.float64):
    """An array for each argument: drawn from the op's domain, away from its kinks, or given by the case."""

    def draw(name, shape):
        if isinstance(shape, list):
            return [draw(name, s) for s in shape]
        if isinstance(shape, np.ndarray):
            return shape.astype(dtype) if shape.dtype.kind == "f" else shape.copy()
        domain = (
            primitive.domain.get(name, (-2.0, 2.0))
            if isinstance(primitive.domain, dict)
            else primitive.domain
        )
        x = rng.uniform(*domain, shape)
        for kink in primitive.kinks:
            x = np.where(np.abs(x - kink) < 0.05, kink + 0.1, x)
        x = np.asarray(x, dtype)
        return x > 0 if name == "condition" else x

    return [draw(name, shape) for name, shape in zip(primitive.arguments, case.inputs, strict=True)]


def runs_here(primitive):
    """Whether what the op needs is installed: the special functions need SciPy."""
    if importlib.util.find_spec("scipy"):
        return True
    case = cases_of(primitive)[0]
    try:
        primitive.function(*sample(primitive, case, np.random.default_rng(0)), **case.statics)
    except tg.UnsupportedError as error:
        return "pip install scipy" not in str(error)
    return True


DECLARED = [p for p in REGISTRY.values() if runs_here(p)]
OPS = [pytest.param(p, c, id=f"{p.name}{c}") for p in DECLARED for c in cases_of(p)]
every_op_and_case = pytest.mark.parametrize(("primitive", "case"), OPS)
every_op = pytest.mark.parametrize("primitive", DECLARED, ids=lambda p: p.name)


def as_leaves(primitive, inputs, live=None):
    """The inputs, with those of the live differentiable arguments (all by default) as Variables."""
    live = primitive.differentiable if live is None else live
    return [
        x
        if name not in live
        else [tg.Variable(part) for part in x]
        if isinstance(x, list)
        else tg.Variable(x)
        for name, x in zip(primitive.arguments, inputs, strict=True)
    ]


def leaves_of(arguments):
    return [
        leaf
        for a in arguments
        for leaf in (a if isinstance(a, list) else [a])
        if isinstance(leaf, tg.Variable)
    ]


def outputs_of(y):
    return list(y) if isinstance(y, tuple) else [y]


def recorded(primitive, case, arguments):
    tape = tg.Tape()
    with tape:
        ys = outputs_of(primitive.function(*arguments, **case.statics))
    return tape, ys


def value_at(primitive, case, inputs, cts):
    """The inner product of the outputs with `cts`, computed without Variables."""
    arrays = [list(x) if isinstance(x, list) else x for x in inputs]
    ys = outputs_of(primitive.function(*arrays, **case.statics))
    return sum(np.sum(ct * y) for ct, y in zip(cts, ys, strict=True))


def random_like(rng, arrays):
    return [rng.standard_normal(np.shape(a)) for a in arrays]


def moved(arguments, inputs, directions, step):
    """The inputs with every leaf displaced by step · direction."""
    at = iter(directions)
    return [
        [part + step * next(at) for part in x] if isinstance(a, list) else x + step * next(at) if isinstance(a, tg.Variable) else x
        for a, x in zip(arguments, inputs, strict=True)
    ]  # fmt: skip


# -- the checks ------------------------------------------------------------------------------------


def check_first_order(primitive, case):
    rng = seeded(primitive, case)
    inputs = sample(primitive, case, rng)
    arguments = as_leaves(primitive, inputs)
    tape, ys = recorded(primitive, case, arguments)
    cts, directions = random_like(rng, ys), random_like(rng, leaves_of(arguments))
    adjoints = tape.backward(ys, cts)
    slope = sum(np.sum(adjoints[v] * d) for v, d in zip(leaves_of(arguments), directions, strict=True))
    h = 1e-6
    ahead, behind = (value_at(primitive, case, moved(arguments, inputs, directions, s), cts) for s in (h, -h))
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=2e-7, atol=2e-8)
    for v in leaves_of(arguments):
        assert v.grad.shape == v.shape


def check_jvp_is_the_transpose_of_the_vjp(primitive, case):
    rng = seeded(primitive, case)
    arguments = as_leaves(primitive, sample(primitive, case, rng))
    tape, ys = recorded(primitive, case, arguments)
    leaves = leaves_of(arguments)
    cts, tangents = random_like(rng, ys), random_like(rng, leaves)
    adjoints = tape.backward(ys, cts)
    pushed = tape.pushforward(dict(zip(leaves, tangents, strict=True)), ys)
    back = [np.sum(adjoints[v] * t) for v, t in zip(leaves, tangents, strict=True)]
    forth = [np.sum(ct * t) for ct, t in zip(cts, pushed, strict=True)]
    scale = max([1.0, *np.abs(back), *np.abs(forth)])
    np.testing.assert_allclose(sum(back), sum(forth), rtol=0, atol=1e-12 * scale)


def gradient_product(primitive, case, inputs, cts, us, record):
    """sum_i <u_i, Jᵀ ct> and, recorded, its gradient in every leaf and every ct."""
    arguments = as_leaves(primitive, inputs)
    leaves, seeds = leaves_of(arguments), [tg.Variable(ct) for ct in cts]
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            ys = outputs_of(primitive.function(*arguments, **case.statics))
        adjoints = inner.backward(ys, seeds if record else cts, record=record)
        products = [
            tg.sum(adjoints[v] * u) if record else np.sum(adjoints[v] * u)
            for v, u in zip(leaves, us, strict=True)
        ]
        total = products[0]
        for product in products[1:]:
            total = total + product
    if not record:
        return total
    second = outer.backward(total) if isinstance(total, tg.Variable) and total._slot else None
    return [np.zeros(v.shape) if second is None else second[v] for v in [*leaves, *seeds]], arguments


def check_second_order(primitive, case):
    rng = seeded(primitive, case)
    inputs = sample(primitive, case, rng)
    leaves = leaves_of(as_leaves(primitive, inputs))
    cts = random_like(
        rng,
        outputs_of(
            primitive.function(*[list(x) if isinstance(x, list) else x for x in inputs], **case.statics)
        ),
    )
    us = random_like(rng, leaves)
    gradients, arguments = gradient_product(primitive, case, inputs, cts, us, record=True)
    directions, ct_directions = random_like(rng, leaves), random_like(rng, cts)
    slope = sum(np.sum(g * d) for g, d in zip(gradients, [*directions, *ct_directions], strict=True))
    h = 1e-5

    def at(step):
        moved_cts = [ct + step * d for ct, d in zip(cts, ct_directions, strict=True)]
        return gradient_product(
            primitive, case, moved(arguments, inputs, directions, step), moved_cts, us, record=False
        )

    np.testing.assert_allclose(slope, (at(h) - at(-h)) / (2 * h), rtol=1e-6, atol=1e-7)


def check_raw_equals_recorded(primitive, case):
    rng = seeded(primitive, case)
    arguments = as_leaves(primitive, sample(primitive, case, rng))
    tape, ys = recorded(primitive, case, arguments)
    cts = random_like(rng, ys)
    raw, rec = tape.backward(ys, cts), tape.backward(ys, cts, record=True)
    for v in leaves_of(arguments):
        again = rec[v].value if isinstance(rec[v], tg.Variable) else rec[v]
        if primitive.reference is None:
            np.testing.assert_array_equal(raw[v], again)
        else:  # a kernel and its reference round differently
            np.testing.assert_allclose(raw[v], again, rtol=1e-12, atol=1e-14)


def check_nothing_else_is_kept(primitive, case):
    """Poison with NaN every input and output array that no rule of a live argument named."""
    for count in range(1, len(primitive.differentiable) + 1):
        for live in itertools.combinations(primitive.differentiable, count):
            rng = seeded(primitive, case)
            arguments = as_leaves(primitive, sample(primitive, case, rng), live)
            tape, ys = recorded(primitive, case, arguments)
            cts = random_like(rng, ys)
            before = [tape.backward(ys, cts)[v] for v in leaves_of(arguments)]
            entry = tape._segment.entries[0]
            variant = entry[0]
            named = Variant(primitive, live, False).kept
            held = [
                array
                for name, value in variant.residuals(entry).items()
                if name in named
                for array in (value if isinstance(value, (tuple, list)) else [value])
                if isinstance(array, np.ndarray)
            ]
            arrays = [v._array for v in [*leaves_of(arguments), *ys]]
            for array in (a for a in arrays if isinstance(a, np.ndarray)):
                if not any(np.shares_memory(array, h) for h in held):
                    array[...] = np.nan
            after = [tape.backward(ys, cts)[v] for v in leaves_of(arguments)]
            for b, a in zip(before, after, strict=True):
                np.testing.assert_array_equal(b, a)
            for name, value in zip(
                variant.layout, entry[SLOTS + len(primitive.differentiable) :], strict=True
            ):
                assert name in variant.kept or value is None, (
                    f"{primitive.name} holds {name}, which nothing named"
                )


def check_a_number_is_a_0d_array(primitive, case):
    """A Python number, which an elementwise op takes as it is, does what an array without axes does."""
    if primitive.kind != "elementwise" or primitive.variadic:
        return
    rng = seeded(primitive, case)
    inputs = sample(primitive, case, rng)
    for at, name in enumerate(primitive.differentiable):
        others = [n for n in primitive.differentiable if n != name]
        place = primitive.arguments.index(name)
        if np.ndim(inputs[place]) or not others:
            continue
        found = []
        for number in (inputs[place], float(inputs[place])):
            given = [number if i == place else x for i, x in enumerate(inputs)]
            arguments = as_leaves(primitive, given, others)
            tape, ys = recorded(primitive, case, arguments)
            cts = [np.cos(np.arange(y.value.size) + at).reshape(y.shape) for y in ys]
            adjoints = tape.backward(ys, cts)
            found.append([*(y.value for y in ys), *(adjoints[v] for v in leaves_of(arguments))])
        for by_array, by_number in zip(*found, strict=True):
            np.testing.assert_allclose(by_number, by_array, rtol=1e-14, atol=1e-15)


def check_special_values(primitive, case):
    """At values that are declared to be special, values and gradients are finite."""
    assert all(np.isfinite(primitive.special))
    for x in primitive.special:
        inputs = sample(primitive, case, seeded(primitive, case))
        for i, name in enumerate(primitive.arguments):
            if name in primitive.differentiable:
                several = isinstance(inputs[i], list)
                inputs[i] = (
                    [np.full_like(part, x) for part in inputs[i]] if several else np.full_like(inputs[i], x)
                )
        arguments = as_leaves(primitive, inputs)
        with np.errstate(divide="ignore"):  # an infinity on the way, as in a norm of negative order
            tape, ys = recorded(primitive, case, arguments)
            tape.backward(ys, [np.ones(y.shape) for y in ys])
        for v in [*ys, *leaves_of(arguments)]:
            assert np.isfinite(v.value).all()
        for v in leaves_of(arguments):
            assert np.isfinite(v.grad).all(), f"{primitive.name} at {x}: gradient {v.grad}"


def check_dtype(primitive, case, dtype=np.float32):
    """Values, gradients, all cotangents on the way, and gradients of gradients have the dtype of the inputs."""
    if "dtype" in case.statics:  # it changes the dtype by design
        return
    arguments = as_leaves(primitive, sample(primitive, case, seeded(primitive, case), dtype))
    leaves, outer, tape = leaves_of(arguments), tg.Tape(), tg.Tape()
    with outer:
        with tape:
            ys = outputs_of(primitive.function(*arguments, **case.statics))
        cts = [np.ones(y.shape, dtype) for y in ys]
        adjoints = tape.backward(ys, cts, record=True)
    tape.backward(ys, cts)
    assert {y.dtype for y in ys} == {np.dtype(dtype)}
    assert {v.grad.dtype for v in leaves} == {np.dtype(dtype)}
    for ct in tape._sweep(ys, cts, (), record=False).sums.values():
        assert ct.dtype == dtype, "a rule widened the cotangent"
    seconds = [g for g in (adjoints[v] for v in leaves) if isinstance(g, tg.Variable) and g._slot]
    if seconds:
        with np.errstate(over="ignore"):  # 65504 is the largest float16
            sums = outer._sweep(seconds, [np.ones(g.shape, dtype) for g in seconds], (), record=False).sums
        assert {ct.dtype for ct in sums.values()} <= {np.dtype(dtype)}, "a rule widened the second cotangent"


CHECKS = [
    check_first_order,
    check_jvp_is_the_transpose_of_the_vjp,
    check_second_order,
    check_raw_equals_recorded,
    check_nothing_else_is_kept,
    check_a_number_is_a_0d_array,
]


READ_ONLY = ("broadcast_to", "sliding_window_view", "recompute", "call_with_pullback")


@every_op_and_case
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_every_op(check, primitive, case):
    if check is check_nothing_else_is_kept and primitive.name in READ_ONLY:
        pytest.skip("its output is read-only, and cannot be poisoned")
    check(primitive, case)


@every_op_and_case
def test_special_values_have_finite_values_and_gradients(primitive, case):
    check_special_values(primitive, case)


@every_op_and_case
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_and_gradients_keep_the_dtype(primitive, case, dtype):
    check_dtype(primitive, case, dtype)


def in_other_memory(x):
    """The same numbers, every second element of a larger array, backwards along each axis, and read-only."""
    if isinstance(x, list):
        return [in_other_memory(part) for part in x]
    wide = np.zeros((*(2 * n for n in x.shape),), x.dtype)
    view = wide[tuple(slice(None, None, -2) for _ in x.shape)] if x.ndim else wide
    view[...] = x
    view.flags.writeable = False
    return view


@every_op_and_case
def test_inputs_may_be_read_only_and_have_any_strides(primitive, case):
    """Of any combination of live arguments: values and gradients are what they are for arrays in order."""
    for count in range(1, len(primitive.differentiable) + 1):
        for live in itertools.combinations(primitive.differentiable, count):
            rng = seeded(primitive, case)
            inputs = sample(primitive, case, rng)
            found = []
            for given in (inputs, in_other_memory(inputs)):
                arguments = as_leaves(primitive, given, live)
                tape, ys = recorded(primitive, case, arguments)
                if not found:
                    cts = random_like(rng, ys)
                adjoints = tape.backward(ys, in_other_memory(cts) if found else cts)
                found.append([*(y.value for y in ys), *(adjoints[v] for v in leaves_of(arguments))])
            for plain, other in zip(*found, strict=True):
                scale = np.abs(plain).max(initial=1.0)
                np.testing.assert_allclose(other, plain, rtol=1e-13, atol=1e-14 * scale)


@every_op_and_case
def test_inputs_and_cotangents_are_not_changed(primitive, case):
    rng = seeded(primitive, case)
    inputs = sample(primitive, case, rng)
    arguments = as_leaves(primitive, inputs)
    tape, ys = recorded(primitive, case, arguments)
    cts = random_like(rng, ys)
    arrays = [
        *itertools.chain(*(x if isinstance(x, list) else [x] for x in inputs)),
        *cts,
        *(y.value for y in ys),
    ]
    copies = [array.copy() for array in arrays]
    tape.backward(ys, cts)
    for array, copied in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copied)


TWINS = [
    pytest.param(p, c, one, other, id=f"{p.name}{c} {one}={other}")
    for p, c in (o.values for o in OPS)
    for one, other in itertools.combinations(p.differentiable, 2)
    if isinstance(c.inputs[p.arguments.index(one)], tuple)
    and c.inputs[p.arguments.index(one)] == c.inputs[p.arguments.index(other)]
]


@pytest.mark.parametrize(("primitive", "case", "one", "other"), TWINS)
def test_a_variable_given_twice_gets_both_gradients(primitive, case, one, other):
    rng = seeded(primitive, case)
    inputs = sample(primitive, case, rng)
    places = [primitive.arguments.index(name) for name in (one, other)]
    if isinstance(primitive.domain, dict):
        pytest.skip("the arguments have domains of their own")
    inputs[places[1]] = inputs[places[0]].copy()
    apart = as_leaves(primitive, inputs)
    tape, ys = recorded(primitive, case, apart)
    cts = random_like(rng, ys)
    adjoints = tape.backward(ys, cts)
    together = list(apart)
    together[places[1]] = together[places[0]]
    tape, zs = recorded(primitive, case, together)
    both = tape.backward(zs, cts)[together[places[0]]]
    expected = adjoints[apart[places[0]]] + adjoints[apart[places[1]]]
    for y, z in zip(ys, zs, strict=True):
        np.testing.assert_array_equal(y.value, z.value)
    np.testing.assert_allclose(both, expected, rtol=1e-14, atol=1e-14)


@every_op
def test_a_sequence_may_hold_a_variable_twice(primitive):
    if primitive.variadic is None:
        pytest.skip("takes no sequence")
    for case in cases_of(primitive):
        shapes = case.inputs[primitive.arguments.index(primitive.variadic)]
        if len(set(map(str, shapes))) > 1 or len(shapes) < 2:
            continue
        rng = seeded(primitive, case)
        inputs = sample(primitive, case, rng)
        at = primitive.arguments.index(primitive.variadic)
        inputs[at] = [inputs[at][0]] * len(shapes)
        apart = as_leaves(primitive, inputs)
        tape, ys = recorded(primitive, case, apart)
        cts = random_like(rng, ys)
        adjoints = tape.backward(ys, cts)
        expected = sum(adjoints[v] for v in apart[at])
        together = [*apart[:at], [apart[at][0]] * len(shapes), *apart[at + 1 :]]
        tape, zs = recorded(primitive, case, together)
        np.testing.assert_allclose(tape.backward(zs, cts)[apart[at][0]], expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("primitive", "case"), [p for p in OPS if len(p.values[0].arguments) > 1])
def test_a_constant_that_is_overwritten_later_changes_nothing(primitive, case):
    for live in primitive.differentiable:
        rng = seeded(primitive, case)
        inputs = sample(primitive, case, rng)
        arguments = as_leaves(primitive, inputs, [live])
        tape, ys = recorded(primitive, case, arguments)
        cts = random_like(rng, ys)
        before = [tape.backward(ys, cts)[v] for v in leaves_of(arguments)]
        for x in inputs:
            if isinstance(x, np.ndarray) and x.flags.writeable:
                x[...] = 0
        after = [tape.backward(ys, cts)[v] for v in leaves_of(arguments)]
        for b, a in zip(before, after, strict=True):
            np.testing.assert_array_equal(b, a)


@every_op
def test_every_op_documents_itself(primitive):
    assert primitive.doc.strip(), f"{primitive.name} has no docstring"
    assert primitive.function.__doc__ == primitive.doc
    assert primitive.function.__name__ == primitive.name


# -- planted faults ----------------------------------------------------------------------------------


def fails(check, primitive, case):
    try:
        check(primitive, case)
    except (AssertionError, tg.TapegradError, TypeError, AttributeError):
        return True
    return False


def declared(body, **rules):
    """A primitive that is in the registry only while a test runs."""
    return Primitive(body, rules, kind="elementwise")


CASE = Case((3, 4))


def test_a_wrong_factor_in_a_rule_is_caught():
    def square_with_a_wrong_factor(xp, a):
        return xp.square(a)

    good = declared(square_with_a_wrong_factor, a=lambda ct, a: ct * (a + a))
    bad = declared(square_with_a_wrong_factor, a=lambda ct, a: ct * a)
    assert not fails(check_first_order, good, CASE)
    assert fails(check_first_order, bad, CASE)


def test_a_wrong_sign_in_a_rule_is_caught():
    def subtract_with_a_wrong_sign(xp, a, b):
        return xp.subtract(a, b)

    good = declared(subtract_with_a_wrong_sign, a=lambda ct: ct, b=lambda ct: -ct)
    bad = declared(subtract_with_a_wrong_sign, a=lambda ct: ct, b=lambda ct: ct)
    assert not fails(check_first_order, good, Case((3, 4), (4,)))
    assert fails(check_first_order, bad, Case((3, 4), (4,)))


def test_a_residual_that_a_rule_unwraps_is_caught_in_second_order():
    def sin_with_an_unwrapped_residual(xp, a):
        return xp.sin(a)

    bare = lambda a: a.value if isinstance(a, tg.Variable) else a
    good = declared(sin_with_an_unwrapped_residual, a=lambda ct, a: ct * tg.cos(a))
    bad = declared(sin_with_an_unwrapped_residual, a=lambda ct, a: ct * np.cos(bare(a)))
    assert not fails(check_second_order, good, CASE)
    assert not fails(check_first_order, bad, CASE)
    assert fails(check_second_order, bad, CASE)


def test_a_variable_kept_instead_of_its_array_is_caught(monkeypatch):
    def append_variables(self, entry):
        fields = list(entry)
        for position, slot_position in () if entry[0] is ITEM else entry[0].values:
            fields[position] = tape_module.result(fields[position], fields[slot_position])
        self._segment.entries.append(tuple(fields))

    assert not fails(check_raw_equals_recorded, REGISTRY["tanh"], CASE)
    monkeypatch.setattr(
        tg.Tape,
        "_open",
        lambda self, segment: self.__dict__.update(
            _segment=segment, append=lambda e: append_variables(self, e)
        ),
    )
    assert fails(check_first_order, REGISTRY["tanh"], CASE) or fails(
        check_raw_equals_recorded, REGISTRY["tanh"], CASE
    )


def test_a_dropped_record_is_caught(monkeypatch):
    def append_all_but_cosines(self, segment):
        entries = segment.entries
        self.__dict__.update(
            _segment=segment, append=lambda e: None if e[0].name == "cos" else entries.append(e)
        )

    assert not fails(check_second_order, REGISTRY["sin"], CASE)
    monkeypatch.setattr(tg.Tape, "_open", append_all_but_cosines)
    assert fails(check_second_order, REGISTRY["sin"], CASE)


def test_a_rule_that_names_nothing_known_fails_when_it_is_declared():
    def double(xp, a):
        return a + a

    with pytest.raises(TypeError, match="names `b`"):
        declared(double, a=lambda ct, b: ct + ct)
    with pytest.raises(TypeError, match="a rule for `b`"):
        declared(double, b=lambda ct: ct + ct)


def test_a_name_is_declared_once():
    def tanh(xp, a):
        return xp.tanh(a)

    with pytest.raises(TypeError, match="already declared"):
        declared(tanh, a=lambda ct: ct)


def test_astype_brings_the_gradient_back_in_the_dtype_of_its_input():
    v = tg.Variable(np.ones(3, np.float32))
    tape = tg.Tape()
    with tape:
        y = tg.astype(v, np.float64)
    tape.backward(y, np.ones(3))
    assert y.dtype == np.float64
    assert v.grad.dtype == np.float32


def test_the_entry_of_a_whole_names_its_items():
    v = tg.Variable(np.arange(4.0))
    tape = tg.Tape()
    with tape:
        tg.split(v, 2)
    whole, first, second = tape._segment.entries
    assert [e[SLOTS] for e in (first, second)] == [whole[OUT]] * 2
