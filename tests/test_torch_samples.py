"""tapegrad on PyTorch's own test inputs: the samples that PyTorch draws for its operators to test itself with.

A row of the table says how an operator is written here. Then values, the gradients of every input, and their
gradients in turn agree, on every sample that PyTorch has in float64, empty and 0-d ones among them. What a sample
asks for that is not to be had here is left out for a reason, which is written down and counted.
"""

import random
import warnings
from collections import Counter
from functools import cache

import numpy as np
import pytest

import tapegrad as tg
from tapegrad.program import replay as replay_module

torch = pytest.importorskip("torch")
pytest.importorskip("expecttest", reason="PyTorch's samples need it")
pytest.importorskip("scipy", reason="the special functions need it")

with warnings.catch_warnings():  # what importing PyTorch's tests warns of is not about tapegrad
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

from torch_table import NOT_HERE, OPS, Op  # noqa: E402 (it needs PyTorch)

torch.set_num_threads(1)

FEWEST_OPERATORS, FEWEST_SAMPLES = 350, 5000
SECOND_ORDER = 1e-8  # of the largest element


def name_of(info):
    return info.name + ("/" + info.variant_test_name if info.variant_test_name else "")


INFOS = {name_of(info): info for info in op_db}


@cache
def samples(name):
    """PyTorch's samples of an operator, the same ones every time."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (what PyTorch draws from)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(INFOS[name].sample_inputs("cpu", torch.float64, requires_grad=True))


def reason_against(name, sample):
    """Why a sample is left out, or None."""
    return next((why for why, applies in OPS[name].without.items() if applies(sample)), None)


def tensors_of(x):
    """The tensors in a nest of sequences, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else []
    return [t for part in parts for t in tensors_of(part)]


def differentiable(t):
    return t.requires_grad and t.dtype == torch.float64


def as_ours(x, leaves):
    """`x` with Variables for the tensors that are differentiated, arrays for the others."""
    if isinstance(x, torch.Tensor):
        if not differentiable(x):
            return x.detach().numpy().copy()
        return leaves.setdefault(id(x), tg.Variable(x.detach().numpy().copy()))
    if isinstance(x, dict):
        return {k: as_ours(v, leaves) for k, v in x.items()}
    if isinstance(x, torch.Size):
        return tuple(x)
    return type(x)(as_ours(v, leaves) for v in x) if isinstance(x, (list, tuple)) else x


def outputs_of(y):
    return list(y) if isinstance(y, (tuple, list)) else [y]


def assert_same(what, ours, theirs, tolerance, nan=""):
    """The largest difference is at most `tolerance` of their largest element (of 1, if that is larger)."""
    ours = np.asarray(ours.value if isinstance(ours, tg.Variable) else ours)
    theirs = theirs.numpy(force=True) if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, and PyTorch's is {theirs.shape}"
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1.0)
    with np.errstate(invalid="ignore"):
        same = (np.abs(ours - theirs) <= tolerance * scale) | (ours == theirs)
        same |= np.isnan(theirs) & (np.isfinite(ours) if nan else np.isnan(ours))
    assert same.all(), (
        f"{what}: differs by {np.max(np.abs(ours - theirs)):.3g} of {scale:.3g}\n{ours}\nPyTorch: {theirs}"
    )


def compare(name, sample, rng):
    """Assert that values, gradients and gradients of gradients agree."""
    op, info = OPS[name], INFOS[name]
    theirs = [t for t in tensors_of((sample.input, sample.args, sample.kwargs)) if differentiable(t)]
    theirs = list({id(t): t for t in theirs}.values())
    with warnings.catch_warnings():  # of what PyTorch will do otherwise one day
        warnings.simplefilter("ignore")
        their_ys = outputs_of(op.compared(info(op.before(sample.input), *sample.args, **sample.kwargs)))

    found = {}
    given, args, kwargs = (as_ours(x, found) for x in (sample.input, sample.args, sample.kwargs))
    leaves = [found[id(t)] for t in theirs]
    outer, inner = tg.Tape(), tg.Tape()
    with outer:
        with inner:
            ys = outputs_of(op.ours(op.before(given), *args, **kwargs))
            # A leaf that comes back as it is was not recorded: nothing happened to it.
            ys = [tg.positive(y) if any(y is v for v in leaves) else y for y in ys]
        assert len(ys) == len(their_ys)
        for y, their_y in zip(ys, their_ys, strict=True):
            assert_same("value", y, their_y, op.tolerance)
        live = [i for i, y in enumerate(their_ys) if y.requires_grad]
        for i, y in enumerate(ys):
            assert i in live or not (isinstance(y, tg.Variable) and y._slot)
        cts = [rng.standard_normal(y.shape) for y in their_ys]
        seeds = [tg.Variable(ct) for ct in cts]
        moving = [i for i in live if isinstance(ys[i], tg.Variable) and ys[i]._slot]
        first_ones = (
            inner.backward([ys[i] for i in moving], [seeds[i] for i in moving], record=True) if moving else {}
        )
        us = [rng.standard_normal(t.shape) for t in theirs]
        gradients = [first_ones[v] if moving else np.zeros(v.shape) for v in leaves]
        products = [tg.sum(g * u) for g, u in zip(gradients, us, strict=True)]
        product = sum(products[1:], products[0])
    their_seeds = [torch.tensor(ct, requires_grad=True) for ct in cts]
    their_gradients = zeros_for_none(torch.autograd.grad(
        [their_ys[i] for i in live], theirs, [their_seeds[i] for i in live], create_graph=True, allow_unused=True, materialize_grads=False
    ), theirs)  # fmt: skip
    for which, (g, t) in enumerate(zip(gradients, their_gradients, strict=True)):
        assert_same(f"gradient {which}", g, t, op.tolerance, op.nan)

    their_product = sum(torch.sum(g * torch.tensor(u)) for g, u in zip(their_gradients, us, strict=True))
    if not info.supports_gradgrad or not their_product.requires_grad:
        return
    wanted = [*theirs, *(their_seeds[i] for i in live)]
    try:
        their_second = zeros_for_none(torch.autograd.grad(their_product, wanted, allow_unused=True), wanted)
    except RuntimeError as error:
        if "is not implemented" not in str(error):  # by PyTorch, for a fused kernel
            raise
        return
    recorded = isinstance(product, tg.Variable) and product._slot
    second = outer.backward(product) if recorded else None
    for which, (v, t) in enumerate(zip([*leaves, *(seeds[i] for i in live)], their_second, strict=True)):
        assert_same(
            f"second gradient {which}",
            np.zeros(v.shape) if second is None else second[v],
            t,
            max(SECOND_ORDER, op.tolerance),
            op.nan,
        )


def zeros_for_none(gradients, inputs):
    return [torch.zeros_like(t) if g is None else g for g, t in zip(gradients, inputs, strict=True)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy's, for means of nothing and the like
@pytest.mark.filterwarnings("ignore::tapegrad.GradientStopsWarning")  # of ours, for norms at 0
@pytest.mark.parametrize("name", [name for name in OPS if name in INFOS])
def test_an_operator_agrees_with_pytorch_on_its_samples(name):
    rng = np.random.default_rng(sum(map(ord, name)))
    for number, sample in enumerate(samples(name)):
        if reason_against(name, sample) is None:
            try:
                compare(name, sample, rng)
            except Exception as error:
                error.add_note(f"{name}, sample {number}: {sample.summary()}")
                raise


# -- in a compiled loop ----------------------------------------------------------------------------------


def amid(x, carried):
    """The arguments as results that depend on the segment before, of nearly the same values."""
    if isinstance(x, tg.Variable):
        return x * 0.999 + (carried - carried) * 0.5 + x * 0.001
    if isinstance(x, dict):
        return {k: amid(v, carried) for k, v in x.items()}
    return type(x)(amid(v, carried) for v in x) if isinstance(x, (list, tuple)) else x


def swept(name, sample, compile):
    """Gradients of a loop of five segments around an operator, four of them kept."""
    op, found, weight, carried = OPS[name], {}, tg.Variable(1.5), tg.constant(0.5)
    arguments = as_ours((sample.input, sample.args, sample.kwargs), found)
    tape = tg.CapacitorTape(4, compile=compile)
    for _ in range(5):
        with tape:
            given, args, kwargs = amid(arguments, carried)
            ys = outputs_of(op.ours(op.before(given), *args, **kwargs))
            total = sum(tg.sum(y * (0.5 + i)) + tg.sum(tg.tanh(y)) for i, y in enumerate(ys))
            carried = tg.tanh(total * 0.01 * weight + carried)
        sweep = tape.backward(carried)
    return [sweep.gradients.get(v, np.zeros(v.shape)) for v in (*found.values(), weight)]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::tapegrad.GradientStopsWarning")
@pytest.mark.parametrize("name", [name for name in OPS if name in INFOS])
def test_a_compiled_loop_around_an_operator_is_swept_as_by_rules(name, monkeypatch):
    monkeypatch.setattr(replay_module, "SIGHTINGS", 1)  # a segment is compiled when it is first met
    compared = [s for s in samples(name) if reason_against(name, s) is None]
    for sample in compared[:: max(1, len(compared) // 2)][:2]:
        for by_rules, by_program in zip(
            *(swept(name, sample, compile) for compile in (False, True)), strict=True
        ):
            assert_same("gradient", by_program, by_rules, 1e-11)


def variables_of(x):
    """The Variables in a nest of sequences, in order, one that is there twice twice."""
    if isinstance(x, tg.Variable):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple)) else []
    return [v for part in parts for v in variables_of(part)]


def filled(x, values):
    """`x` with the Variables that it holds replaced, in order."""
    if isinstance(x, tg.Variable):
        return next(values)
    if isinstance(x, dict):
        return {k: filled(v, values) for k, v in x.items()}
    return type(x)([filled(v, values) for v in x]) if isinstance(x, (list, tuple)) else x


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.filterwarnings("ignore::tapegrad.GradientStopsWarning")
@pytest.mark.parametrize("name", [name for name in OPS if name in INFOS])
def test_a_compiled_function_of_an_operator_gives_its_gradient_or_is_refused(name):
    op = OPS[name]
    compared = [s for s in samples(name) if reason_against(name, s) is None]
    for sample in compared[:: max(1, len(compared) // 3)][:3]:
        found = {}
        arguments = as_ours((sample.input, sample.args, sample.kwargs), found)
        order = variables_of(arguments)

        def total(*leaves, arguments=arguments):
            given, args, kwargs = filled(arguments, iter([v * 1.0 for v in leaves]))
            ys = outputs_of(op.ours(op.before(given), *args, **kwargs))
            return sum(tg.sum(tg.tanh(y * 0.3)) for y in ys)

        tape = tg.Tape()
        with tape:
            y = total(*order)
        if not (isinstance(y, tg.Variable) and y._slot):
            continue  # piecewise constant
        expected = tape.backward(y)
        by_tape = [np.array(expected[v]) for v in found.values()]
        try:
            compiled = tg.compile(total)
            for _ in range(2):
                for v in found.values():
                    v.grad = None
                compiled.backward(*order)
        except tg.UnsupportedError as error:
            if "cannot be compiled" not in str(error):
                raise
            continue
        for v, gradient in zip(found.values(), by_tape, strict=True):
            assert_same("gradient", np.zeros(v.shape) if v.grad is None else v.grad, gradient, 1e-11)


# -- how much is compared --------------------------------------------------------------------------------


@cache
def coverage():
    """(operators, samples compared, reason -> samples left out)"""
    left_out, count, operators = Counter(), 0, set()
    for name in OPS.keys() & INFOS.keys():
        for sample in samples(name):
            why = reason_against(name, sample)
            if why is None:
                count += 1
                operators.add(name)
            else:
                left_out[f"{name}: {why}"] += 1
    return operators, count, left_out


def test_enough_operators_and_samples_are_compared():
    operators, count, left_out = coverage()
    print(f"\n{len(operators)} operators of PyTorch's, {count} samples; left out:")
    for why, times in sorted(left_out.items()):
        print(f"    {times:4}  {why}")
    assert len(operators) >= FEWEST_OPERATORS
    assert count >= FEWEST_SAMPLES


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="the list is that of PyTorch 2.13")
def test_an_operator_that_pytorch_differentiates_is_compared_or_left_out_for_a_reason():
    theirs = {n for n, i in INFOS.items() if i.supports_autograd and i.supports_dtype(torch.float64, "cpu")}
    left_out = [name for names in NOT_HERE.values() for name in names.split()]
    assert sorted([*OPS, *left_out]) == sorted(theirs)


def agrees(name):
    rng = np.random.default_rng(0)
    try:
        for sample in samples(name):
            compare(name, sample, rng)
    except AssertionError as error:
        return str(error)
    return "agrees"


@pytest.mark.parametrize(("wrong", "noticed"), {
    "value": (lambda a: tg.exp(a) * 1.000000001, "value"),
    "gradient": (lambda a: tg.exp(tg.stop_gradient(a)) + tg.exp(a) - tg.exp(tg.stop_gradient(a)) + 1e-9 * (a - tg.stop_gradient(a)), "gradient"),
    "second": (lambda a: tg.exp(tg.stop_gradient(a)) * (1.0 + a - tg.stop_gradient(a)), "second gradient"),
}.values(), ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_a_wrong_number_of_each_order_is_noticed(wrong, noticed, monkeypatch):
    assert agrees("exp") == "agrees"
    monkeypatch.setitem(OPS, "exp", Op(wrong))
    assert agrees("exp").startswith(noticed)
