"""NumPy's own functions on Variables: recorded, constant by nature, or refused by name. Never a bare array.

All ufuncs and all array functions are called, with valid arguments (`numpy_calls.py`) and a Variable in every
place where one may stand.
"""

import inspect
import io
import itertools

import numpy as np
import numpy.fft  # its functions are asked once it is imported, as those of the next
import numpy.polynomial
import numpy.strings
import numpy.testing.overrides as overrides
import pytest

import numpy_calls
import tapegrad as tg
from tapegrad.ops import dispatch, names, protocols

IS_OLD = np.lib.NumpyVersion(np.__version__) < "2.4.0"  # has fewer parameters, and does not tell all of them
UFUNCS = {f.__name__: f for f in overrides.get_overridable_numpy_ufuncs()}
# Those that make arrays are there twice: NumPy has another function for when `like` is given.
FUNCTIONS = {protocols.name_of(f): f for f in overrides.get_overridable_numpy_array_functions()}
FUNCTIONS.pop("in1d", None)  # deprecated
FUNCTIONS |= {name: getattr(np, name) for name in names.CREATED}


# -- the calls -----------------------------------------------------------------------------------------


def is_operand(x):
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def operands_of(value):
    """Where a Variable may stand in the arguments of a call, in order."""
    if isinstance(value, (list, tuple)):
        return [x for part in value for x in operands_of(part)]
    if isinstance(value, dict):
        return [x for part in value.values() for x in operands_of(part)]
    return [value] if is_operand(value) else []


def filled(value, operands):
    """The arguments with `operands` (an iterator) in their places; each file opened anew."""
    if isinstance(value, (list, tuple)):
        return type(value)(filled(part, operands) for part in value)
    if isinstance(value, dict):
        return {k: filled(part, operands) for k, part in value.items()}
    if isinstance(value, numpy_calls.fixed):
        return value.value
    if value is io.BytesIO:
        return io.BytesIO(b"12345678")
    return next(operands) if is_operand(value) else value


def run(function, call, operands):
    args, kwargs = filled((call.args, call.kwargs), iter(operands))
    return function(*args, **kwargs)


def flat(result):
    """The arrays and Variables of a result, however it is nested."""
    return [x for part in result for x in flat(part)] if isinstance(result, (list, tuple)) else [result]


def bare(x):
    return x.value if isinstance(x, tg.Variable) else x


def choices(count):
    """Which operands are Variables, in every way; for many operands each alone, and all."""
    if count > 3:
        return [tuple(i == j for j in range(count)) for i in range(count)] + [(True,) * count]
    return [mask for mask in itertools.product([False, True], repeat=count) if any(mask)]


def with_variables(operands, mask):
    return [tg.Variable(x) if chosen else x for x, chosen in zip(operands, mask, strict=True)]


# NumPy asks only the first argument; a Variable elsewhere meets `Variable.__array__`, which raises.
UNASKED = {"fill_diagonal", "full_like", "polyint"}


def check_recorded(name, function, call):
    """Every choice of Variables records NumPy's values, and the gradient of all of them is what differences say."""
    operands = operands_of((call.args, call.kwargs))
    expected = flat(run(function, call, operands))
    rng = np.random.default_rng(0)
    directions = [rng.standard_normal(x.shape) * (x != 0) for x in operands]
    if name in ("linalg.eigh", "linalg.eigvalsh"):
        directions = [d + d.T for d in directions]

    def at(step, chosen):
        moved = [x + step * d if c else x for x, d, c in zip(operands, directions, chosen, strict=True)]
        return flat(run(function, call, moved))

    for mask in choices(len(operands)):
        if name in UNASKED and not mask[0]:
            check_refused(name, function, call, [mask])
            continue
        with tg.Tape():
            result = flat(run(function, call, with_variables(operands, mask)))
        assert len(result) == len(expected)
        for y, wanted, elsewhere in zip(result, expected, at(1e-3, mask), strict=True):
            recorded = isinstance(y, tg.Variable) and y._slot != 0
            assert recorded or np.array_equal(wanted, elsewhere), (
                f"{name} lost the gradient of Variables at {mask}"
            )
            np.testing.assert_allclose(bare(y), wanted, rtol=1e-10, atol=1e-12)
            assert np.shape(bare(y)) == np.shape(wanted)
    everywhere = [True] * len(operands)
    variables = with_variables(operands, everywhere)
    with tg.Tape() as tape:
        ys = [y * 1.0 if isinstance(y, tg.Variable) else y for y in flat(run(function, call, variables))]
    outputs = [i for i, y in enumerate(ys) if isinstance(y, tg.Variable) and y._slot != 0]
    cts = [rng.standard_normal(ys[i].shape) for i in outputs]
    gradients = tape.backward([ys[i] for i in outputs], cts)
    slope = sum(np.sum(gradients[v] * d) for v, d in zip(variables, directions, strict=True))
    h = 1e-6
    ahead, behind = (
        sum(np.sum(ct * at(s, everywhere)[i]) for i, ct in zip(outputs, cts, strict=True)) for s in (h, -h)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / (2 * h), rtol=2e-6, atol=1e-7)


def check_constant(name, function, call):
    operands = operands_of((call.args, call.kwargs))
    expected = run(function, call, operands)
    for mask in choices(len(operands)):
        with tg.Tape() as tape:
            result = run(function, call, with_variables(operands, mask))
        assert len(tape) == 0
        assert not any(isinstance(y, tg.Variable) for y in flat(result))
        if name not in ("empty_like", "empty"):
            np.testing.assert_equal(flat(result), flat(expected))


def check_refused(name, function, call, masks=None):
    operands = operands_of((call.args, call.kwargs))
    for mask in masks or choices(len(operands)):
        before = [x.copy() for x in operands]
        with tg.Tape(), pytest.raises(tg.UnsupportedError) as caught:
            run(function, call, with_variables(operands, mask))
        message = str(caught.value)
        assert name in message or (name in UNASKED and not mask[0])
        assert any(way in message for way in ("Use", "Apply", "Leave it out"))
        np.testing.assert_equal(operands, before)


def lacks_parameters(function, call):
    try:
        dispatch.signature_of(function).bind(*call.args, **call.kwargs)
    except TypeError:
        return True
    except KeyError:  # a signature that it does not tell
        return False
    return False


CHECKS = {"recorded": check_recorded, "constant": check_constant, "refused": check_refused}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_array_function_is_recorded_constant_or_refused_whatever_is_a_variable(name):
    function = FUNCTIONS[name]
    if name == "i0":
        pytest.importorskip("scipy", reason="its derivative is SciPy's i1")
    if name.startswith(("char.", "polynomial.", "strings.")):  # there if something has imported those modules
        with pytest.raises(tg.UnsupportedError, match=f"numpy.{name} is not recorded"):
            tg.Variable(A).__array_function__(function, (tg.Variable,), (), {})
        return
    for call in numpy_calls.FUNCTIONS[name]:
        if not (IS_OLD and lacks_parameters(function, call)):
            CHECKS[names.kind_of(name)](name, function, call)


@pytest.mark.parametrize("name", sorted(UFUNCS))
def test_every_ufunc_is_recorded_constant_or_refused_whatever_is_a_variable(name):
    ufunc = UFUNCS[name]
    kind = protocols.origin(ufunc)[1]
    CHECKS[kind](name, ufunc, numpy_calls.of_ufunc(ufunc))


@pytest.mark.parametrize("name", sorted(UFUNCS))
@pytest.mark.parametrize("method", ["reduce", "accumulate", "outer", "at", "reduceat"])
def test_methods_of_ufuncs_never_return_an_array_that_has_lost_its_gradient(name, method):
    ufunc = UFUNCS[name]
    more = {"outer": ("operand",), "at": ([0], "operand"), "reduceat": ([0, 1],)}.get(method, ())
    args = [numpy_calls.A, *(numpy_calls.B if a == "operand" else a for a in more)]
    kind = protocols.origin(ufunc)[1]
    for mask in choices(len(operands_of(args))):
        call = numpy_calls.call(*args)
        operands = [x.copy() for x in operands_of(args)]
        try:
            with tg.Tape():
                result = run(getattr(ufunc, method), call, with_variables(operands, mask))
        except tg.UnsupportedError as error:
            refused = str(error)
        except (ValueError, TypeError, RuntimeError):  # NumPy has no such method of it, or not for floats
            assert (
                ufunc.nin != 2 or ufunc.nout != 1 or ufunc.signature or kind == "constant" or name == "ldexp"
            )
            continue
        else:
            refused = None
        if refused:
            assert name in refused and method in refused
            np.testing.assert_array_equal(operands[0], numpy_calls.A)
            continue
        assert kind == "constant" or (isinstance(result, tg.Variable) and result._slot > 0)
        np.testing.assert_allclose(bare(result), run(getattr(ufunc, method), call, operands))


@pytest.mark.parametrize(("table", "method"), [(names.REDUCE, "reduce"), (names.ACCUMULATE, "accumulate")])
def test_reductions_and_accumulations_of_ufuncs_are_recorded(table, method):
    calls = [
        numpy_calls.call(numpy_calls.A),
        numpy_calls.call(numpy_calls.A, 1),
        numpy_calls.call(numpy_calls.A, axis=-1),
    ]
    if method == "reduce":
        calls += [
            numpy_calls.call(numpy_calls.A, None),
            numpy_calls.call(numpy_calls.A, axis=0, keepdims=True),
        ]
    for name in table:
        for call in calls:
            check_recorded(f"{name}.{method}", getattr(getattr(np, name), method), call)


def test_every_ufunc_of_scipy_is_recorded_or_refused():
    special = pytest.importorskip("scipy.special")
    ufuncs = {n: f for n, f in vars(special).items() if isinstance(f, np.ufunc) and f.__name__ == n}
    assert {n for n in names.SPECIAL if not hasattr(special, n)} <= {"softplus"}  # which is new in SciPy 1.17
    recorded = set()
    for name, ufunc in ufuncs.items():
        v = tg.Variable(numpy_calls.A / 3)
        with tg.Tape():
            try:
                result = ufunc(*[1] * (ufunc.nin - 1), v)
            except tg.UnsupportedError as error:
                assert name in str(error)  # noqa: PT017
            else:
                assert isinstance(result, tg.Variable) and result._slot > 0
                recorded.add(name)
    assert recorded == names.SPECIAL.keys() & ufuncs.keys() | {n for n in recorded if n in names.NUMPY}


def test_scipy_and_tapegrad_agree_on_its_functions():
    special = pytest.importorskip("scipy.special")
    v = tg.Variable(numpy_calls.A / 3)
    for name in ("erf", "gammaln", "expit", "ndtr", "xlogy", "j0"):
        args = (0.7, v) if name == "xlogy" else (v,)
        with tg.Tape():
            y = getattr(special, name)(*args)
        wanted = getattr(special, name)(*(bare(a) for a in args))
        np.testing.assert_allclose(y.value, wanted, rtol=1e-13)
        np.testing.assert_array_equal(y.value, getattr(tg.special, name)(*(bare(a) for a in args)))


def test_scipys_functions_that_are_no_ufuncs_are_refused_by_name_or_recorded():
    special = pytest.importorskip("scipy.special")
    v = tg.Variable(numpy_calls.A + 1.0)
    for name in sorted(names.NO_UFUNCS):
        args = {"polygamma": (1, v), "multigammaln": (v, 2)}.get(name, (v,))
        assert not isinstance(getattr(special, name), np.ufunc)
        with (
            tg.Tape(),
            pytest.raises(tg.UnsupportedError, match=rf"scipy.special.{name}: .*\n  Use tg.special.{name}\("),
        ):
            getattr(special, name)(*args)
    with tg.Tape():
        y = special.zeta(2.5, v)
    assert y._slot > 0
    np.testing.assert_array_equal(y.value, special.zeta(2.5, v.value))
    with pytest.raises(tg.UnsupportedError, match="Riemann"):
        special.zeta(v)


def test_numpys_function_is_named_that_makes_an_array_of_variables():
    v = tg.Variable(A)
    with pytest.raises(tg.UnsupportedError, match=r"^numpy.sum: a differentiated .*\n.*tg.stack"):
        np.sum([v, v])
    with pytest.raises(tg.UnsupportedError, match="^numpy.vectorize: a differentiated"):
        np.vectorize(lambda a: a)(v)
    with pytest.raises(tg.UnsupportedError, match="^a differentiated"):
        np.asarray(v)


def test_a_ufunc_of_the_users_is_refused_by_its_own_name():
    with pytest.raises(tg.UnsupportedError, match=r"^twice \(vectorized\) is not recorded"):
        np.frompyfunc(twice, 1, 1)(tg.Variable(A))


def twice(a):
    return 2 * a


# -- the table of names ------------------------------------------------------------------------------------


def test_every_name_in_the_tables_leads_to_a_function():
    for table in (names.PUBLIC, names.RECORDED, names.SPECIAL, names.REDUCE, names.ACCUMULATE):
        for where in table.values():
            assert callable(names.function_at(where))
    for name in names.NUMPY:
        assert callable(getattr(tg, name))
        assert callable(getattr(np, name, None)) or IS_OLD
    for name in names.LINALG:
        assert callable(getattr(np.linalg, name)) and callable(getattr(tg.linalg, name))
    for name in names.SPECIAL:
        assert callable(getattr(tg.special, name))


def test_an_alias_is_an_alias_in_numpy_too():
    apart = {"amax", "amin"}  # functions of their own in NumPy, that do the same
    for alias, name in names.ALIASES.items():
        assert getattr(np, alias) is getattr(np, name) or alias in apart
        assert getattr(tg, alias) is getattr(tg, name)


def test_nothing_is_recorded_and_constant_at_once():
    constant = names.CONSTANT | names.CREATED
    assert not constant & names.RECORDED.keys()
    assert not (constant | names.RECORDED.keys()) & names.IN_PLACE.keys()


def test_what_is_refused_has_a_reason():
    refused = [n for n in FUNCTIONS if names.kind_of(n) == "refused"]
    refused += [n for n, f in UFUNCS.items() if protocols.origin(f)[1] == "refused"]
    assert not [n for n in refused if not names.reason(n) and n not in names.IN_PLACE]


@pytest.mark.skipif(IS_OLD, reason="its signatures differ")
def test_an_op_has_all_parameters_of_numpys_but_for_those_that_make_no_difference_to_it():
    """A parameter that an op calls otherwise would be refused: here is the list of those that are."""
    missing = {}
    for name, where in names.RECORDED.items():
        if name in FUNCTIONS:
            theirs = inspect.signature(FUNCTIONS[name]).parameters
            ours = inspect.signature(names.function_at(where)).parameters
            if any(p.kind is p.VAR_KEYWORD for p in ours.values()):
                continue
            lacks = [
                n for n, p in theirs.items()
                if p.default is not p.empty and n not in ours and n not in dispatch.NEUTRAL
            ]  # fmt: skip
            missing |= {name: lacks} if lacks else {}
    assert missing == LACKS


LACKS = {
    "linalg.pinv": ["hermitian"],
    "linalg.svd": ["hermitian"],
    "nanmax": ["initial"],
    "nanmin": ["initial"],
    "nanpercentile": ["weights"],
    "nanquantile": ["weights"],
    "percentile": ["weights"],
    "quantile": ["weights"],
    "real_if_close": ["tol"],
    "unique": ["axis", "sorted"],
}


# -- refusals --------------------------------------------------------------------------------------------

A = numpy_calls.A


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: np.hypot.at(v, 0, v), r"numpy.hypot.at is not recorded .*\n  Use tg.index_add"),
        (lambda v: np.put(v, 0, 1), r"numpy.put writes into its argument.*\n  Use tg.index_put\("),
        (
            lambda v: np.fft.fft(v),
            r"numpy.fft.fft is not recorded .*\n  Complex numbers are not differentiated\. Apply",
        ),
        (lambda v: np.gcd(v, v), r"numpy.gcd is not recorded .*\n  It takes integers\."),
        (
            lambda v: np.sum(v, dtype=int),
            r"numpy.sum: dtype cannot be recorded on a Variable\.\n  Leave it out",
        ),
        (lambda v: v.sort(), r"sort: a Variable is never written into.*\n  Use np.sort\(v\)"),
    ],
)
def test_a_refusal_says_why_and_what_to_do(call, message):
    with pytest.raises(tg.UnsupportedError, match=message):
        call(tg.Variable(A))


def test_a_refusal_names_what_is_near():
    assert protocols.near("numpy.arctanx") == "Near it: np.arctan, np.arctanh, np.arctan2. "


def test_what_changes_nothing_may_be_given():
    v = tg.Variable(A)
    for y in (
        np.sum(v, axis=0, dtype=None, out=None, keepdims=np._NoValue, initial=np._NoValue, where=True),
        np.add.reduce(v, out=None, where=True, dtype=None),
        np.add(v, 0.0, where=True, order="K", subok=True, casting="same_kind").sum(0),
        np.concatenate([v[:1], v[1:]], out=None, dtype=None, casting="same_kind").sum(0),
        np.copy(v, order="C", subok=True).sum(0, dtype=None, out=None),
        np.reshape(v, (2, 3), order="C").sum(0),
        np.nan_to_num(v, copy=False).sum(0),
    ):
        assert isinstance(y, tg.Variable)
        np.testing.assert_array_equal(y.value, A.sum(0))


def test_methods_of_ufuncs_take_their_arguments_by_position_too():
    v = tg.Variable(A)
    np.testing.assert_array_equal(np.add.reduce(v, 1, None, None, True).value, A.sum(1, keepdims=True))
    np.testing.assert_array_equal(np.add.accumulate(v, 1, None).value, A.cumsum(1))


def test_a_wrong_call_gets_the_error_that_numpy_gives():
    v = tg.Variable(A)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        np.swapaxes(v, 0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'axes'"):
        np.sum(v, axes=0)
    with pytest.raises(tg.ArgumentError, match="numpy.clip: give `a_min` and `a_max`, or `min` and `max`"):
        np.clip(v, 0.1, None, max=1.0)
    with pytest.raises(
        tg.ArgumentError, match="numpy.where: either both or neither of x and y should be given"
    ):
        np.where(A > 1, v)


def test_the_handler_of_a_function_can_be_read():
    source, _ = dispatch.handler_source(
        "take", inspect.signature(np.take), names.function_at(names.RECORDED["take"])
    )
    assert source.splitlines()[0].startswith("def handler(a, indices, axis=default_axis, out=default_out")
    assert source.splitlines()[-1].startswith("    return op(a, indices, axis=axis")


@pytest.mark.skipif(IS_OLD, reason="it does not tell them")
def test_signatures_that_older_numpys_do_not_tell_are_those_of_this_one():
    for name, text in dispatch.SIGNATURES.items():
        assert str(inspect.signature(getattr(np, name))) == f"({text})"
