"""Mutation analysis of the rules: a fault planted into any rule of any op makes a check of the sweep fail.

A *mutant* is a rule whose syntax tree has one small change: a sign, a factor, a residual, a keyword. Each is
planted into a copy of its op, on whose cases the checks of `test_primitives.py` then run. A mutant that
no check catches is either a hole in the tests or *equivalent*, the same function written differently; those are
listed below, each with its reason. The idea is from DeMillo, Lipton & Sayward 1978, "Hints on test data selection".
"""

import ast
import copy
import dis
import functools
import importlib.util
import inspect
import math
import pathlib
import types
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from tapegrad.kernels import choice

import tapegrad as tg
import test_primitives as sweep
from tapegrad.core.primitive import Primitive

FEWEST_MUTANTS, SMALLEST_SHARE = 200, 0.95

# Equivalent mutants: why nothing tells them from the rule; the site, and a part of what is changed.
EQUIVALENT = {
    "a number and an array take each their way to the same result": [
        ("elementwise.slope_in_base", "b -> a"), ("elementwise.slope_in_base", "float | int -> float"),
        ("elementwise.slope_in_base", "a * 0.0 -> 0.0"), ("elementwise.slope_in_base", "a -> b (2)"),
        ("elementwise.slope_in_base", "b -> a (6)"), ("elementwise.slope_in_exponent", "a -> y"),
        ("elementwise.slope_in_exponent", "float | int -> float"),
    ],
    "what it changes is multiplied by 0, or is not chosen": [
        ("elementwise.slope_in_base", "1.0 -> 2.0"), ("copysign.b", "ct -> -ct"), ("heaviside.a", "ct -> -ct"),
        ("elementwise.no_slope", "less(ct, ct) -> greater(ct, ct)"), ("elementwise.no_slope", "ct -> -ct (3)"),
        ("elementwise.lead", "0.0 -> 1.0"), ("reduce.logsumexp_pullback", "0.0 -> 1.0"), ("cumulative.logcumsumexp_pullback", "0.0 -> 1.0"), ("cumulative.carried_back", "0.0 -> 1.0"), ("norm.share", "0.0 -> 1.0"),
        ("norm.share", "1.0 -> 2.0"), ("norm.p_norm_pullback", "0.0 -> 1.0"), ("norm.p_norm_pullback", "1.0 -> 2.0"), ("factor.reciprocal", "0.0 -> 1.0"),
        ("factor.reciprocal", "1.0 -> 2.0 (2)"), ("trigonometry.or_one", "1.0 -> 2.0"), ("statistics.deviation_pullback", "0.0 -> 1.0 (2)"),
        ("statistics.deviation_pullback", "1.0 -> 2.0"),
    ],
    "equal wherever it is asked": [
        ("elementwise.lead", "a -> b (2)"), ("cumsum.a", "a_shape -> axis"), ("cumulative.running_axis", "a_shape -> axis"),
        ("cumulative.cumprod_pullback", "a -> y (2)"), ("rounding.whole", "rint((a - y) / b) -> (a - y) / b"), ("bessel.below", "order -> bessel"),
        ("arrange.integers", "operator.index(given) -> given"), ("determinant.is_regular", "1000000.0 -> 1000001.0"),
        ("determinant.orientation", ""), ("determinant.cofactors_pullback", "orientation(u, vh) -> orientation(vh, u)"),
        ("determinant.cofactors_pullback", "diagonal(turned, 0, -2, -1) -> diagonal(turned, 0, -1, -2)"), ("arrange.sum_repeats", "0 -> 1"),
        ("reduce.from_lines", "shape -> lines (4)"), ("einsum.on_diagonals", ""),
    ],
    "the common case and the general one do the same": [
        ("linalg.left_pullback", "2 -> 3 (2)"), ("linalg.right_pullback", "2 -> 3 (2)"), ("linalg.right_pullback", "0 -> 1"), ("linalg.right_pullback", "1 -> 2"), ("linalg.right_pullback", "a -> b_shape"),
        ("linalg.right_pullback", "ct -> -ct"), ("index.summed_to", "reshape(ct, shape) if extra else ct -> reshape(ct, shape)"),
        ("index.basic", ""), ("index.kind_of", ""), ("index.checked_part", ""), ("reduce.kept_axes", "if shape else set()"),
        ("reduce.from_lines", "moved if order =="), ("reduce.in_lines", "a if (*rest, *axes) =="),
        ("reduce.reduced_axes", "if ndim else ()"), ("determinant.cofactors_pullback", "ct -> -ct"), ("determinant.cofactors_pullback", "a -> y"),
        ("einsum.contract_pullbacks", "if live else None"), ("einsum.pullback_of_one", "made if len(length) =="),
        ("einsum.pullback_of_one", "len(length) -> length"), ("einsum.pullback_of_one", "len(letters) -> letters"),
    ],
    "how products are planned changes no number": [
        ("einsum.contract_pullbacks", "optimize"), ("einsum.contract_pullbacks", "True -> False"),
        ("einsum.pullback_of_one", "exchanged, optimize) -> contract("),
    ],
    "broadcasting has added no axis there": [("linalg.left_pullback", "unbroadcast("), ("linalg.right_pullback", "unbroadcast(")],
    "another name of the same axis, or of the same length": [
        ("linalg.right_pullback", "-1 -> 1 (3)"), ("factor.below_the_diagonal", "-1 -> 1"),
        ("factor.below_the_diagonal", "1 -> 2"), ("factor.on_the_diagonal", "1"),
        ("determinant.products_of_others", ""),
        ("recurrent.lstm_step_formula", "-1 -> 1"), ("recurrent.gru_step_formula", "-1 -> 1"), ("recurrent.rows", "1 -> 2"), ("reduce.first_largest", "1 -> 2"),
    ],
    "another layout of the same numbers, or other memory": [
        ("recurrent.lstm_sequence_pullback", "rows(ct_z) -> ct_z"), ("recurrent.gru_sequence_pullback", "rows(ct_x) -> ct_x"),
        ("recurrent.rnn_sequence_pullback", "rows(ct_z) -> ct_z"), ("recurrent.gru_step_pullback", "np.add(through_z"),
        ("index.last_at", "xp.zeros(size, np.intp)"), ("reduce.first_largest", "np.asarray"),
    ],
    "it only says when to warn, or whether to raise": [
        ("factor.reciprocal", "np.any(value_of(ct)) -> value_of(ct)"), ("factor.reciprocal", "ct -> -ct"), ("factor.eigh_pullback", "ct -> -ct (2)"),
        ("factor.eigh_pullback", "1 -> 2 (4)"), ("factor.svd_pullback", "concat([of_u, of_v], -2)"), ("factor.svd_pullback", "0 -> 1"),
        ("reduce.reduced_axes", "builtins.max(ndim, 1) -> ndim"), ("reduce.reduced_axes", "1 -> 2"), ("reduce.reduced_axes", "ndim -> op"),
    ],
    "no degrees of freedom are asked for in test_reductions.py": [
        ("statistics.degrees", "if left > 0 else math.nan"),
    ],
    "arrays lie on one device where this runs": [
        ("transfer.a", ""), ("index.kept_ones", "ct -> -ct"), ("index.checked", ""), ("factor.square_pullback", "r -> "),
    ],
    "margins by axis, a dictionary, are asked for in test_shaping.py": [("arrange.margins_of", "")],
}  # fmt: skip

# Ops that are easily taken for each other.
TWINS = {
    "sin": "cos", "cos": "sin", "sinh": "cosh", "cosh": "sinh", "exp": "expm1", "log": "log1p",
    "greater": "less", "less": "greater", "greater_equal": "less_equal", "less_equal": "greater_equal",
    "maximum": "minimum", "minimum": "maximum", "tril": "triu", "triu": "tril", "cumsum": "sum",
}  # fmt: skip
COMMUTE = {
    "builtins.max",     "multiply", "add", "equal", "not_equal", "maximum", "minimum", "max", "min", "logical_and", "logical_or", "hypot", "betaln",
    "swapaxes", "convolve_full",
}  # fmt: skip
# Calls and keywords that change the form of a value and not the value.
FORMAL, FORMALITIES = (
    {"tuple", "list", "float", "bool", "int", "type", "bare", "value_of"},
    {"strict"},
)

# Calls that say where arrays lie, or warn, and those that bring their first argument to where another is.
ASIDE = {"warn", "namespace", "module_beside", "on_device", "hasattr"}
MOVES = {"put_beside", "on_host"}


# -- where faults are planted ------------------------------------------------------------------------


@dataclass
class Site:
    """A function that is mutated: a rule, or a function that rules of its file call. `users` are (op, rule)."""

    label: str
    function: types.FunctionType
    users: list = field(default_factory=list)


def rules_of(p):
    yield from p.rules.items()
    if p.joint is not None:
        yield "joint", p.joint
    if p.formula is not None:
        yield "formula", p.formula


def sites():
    """Every rule of every op of the package, and the functions of its own file by which it computes."""
    found = {}
    for p in sweep.DECLARED:
        for slot, rule in rules_of(p):
            for function in [rule, *helpers_of(rule)]:
                name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
                label = f"{p.name}.{slot}" if function.__name__ == "<lambda>" else name
                found.setdefault(label, Site(label, function)).users.append((p, slot))
    return list(found.values())


def helpers_of(rule):
    """The functions of the file of `rule` that it calls, directly or not, ops and unwrapping left out."""
    found, waiting = [], [rule]
    while waiting:
        function = waiting.pop()
        for name in sorted(globals_of(function)):
            helper = rule.__globals__.get(name)
            if is_helper(helper, rule) and helper is not rule and helper not in found:
                found.append(helper)
                waiting.append(helper)
    return found


def is_helper(value, rule):
    return (
        isinstance(value, types.FunctionType)
        and value.__module__ == rule.__module__
        and value.__globals__ is rule.__globals__
        and not hasattr(value, "primitive")
        and value.__name__ not in FORMAL
        and not any(getattr(public, value.__name__, None) is value for public in (tg, tg.special, tg.linalg))
    )


def globals_of(function):
    """The global names that the code of a function reads, those of what is defined inside it too."""
    names = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    inner = [c for c in getattr(function, "__code__", function).co_consts if isinstance(c, types.CodeType)]
    return names.union(*(globals_of(code) for code in inner))


def in_space(function, space):
    """The same code, with `space` for its globals."""
    made = types.FunctionType(
        function.__code__, space, function.__name__, function.__defaults__, function.__closure__
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def with_mutant(rule, name, mutant):
    """`rule` with `mutant` for the function `name` of its file, however it comes to call it."""
    space = dict(rule.__globals__)
    for helper in helpers_of(rule):
        space[helper.__name__] = in_space(helper, space)
    space[name] = in_space(mutant, space)
    return in_space(rule, space)


def planted(site, mutant):
    """The ops that use `site`, each a copy with the mutant in its place, not in the registry."""
    for p, slot in site.users:
        own = dict(rules_of(p))[slot]
        rule = mutant if own is site.function else with_mutant(own, site.function.__name__, mutant)
        body = in_space(p.body, p.body.__globals__)
        body.__name__ = f"{p.name}_mutant"
        rules = p.rules | {slot: rule} if slot in p.rules else p.rules
        yield slot, Primitive(
            body, rules, kind=p.kind, outputs=p.outputs, hidden=p.hidden, variadic=p.variadic,
            joint=rule if slot == "joint" else p.joint, formula=rule if slot == "formula" else p.formula,
            differentiable=p.differentiable, reference=p.reference, diagnose=p.diagnose,
            domain=p.domain, kinks=p.kinks, special=p.special, cases=sweep.cases_of(p),
        )  # fmt: skip


# -- how faults are made -------------------------------------------------------------------------------


@functools.cache
def tree_of(file):
    return ast.parse(pathlib.Path(file).read_text())


ALIKE = ("co_code", "co_varnames", "co_names", "co_consts")


def syntax_of(function):
    """The lambda or def that `function` was made from. A lambda is found by its code: those that are alike are the same."""
    code = function.__code__
    for node in ast.walk(tree_of(code.co_filename)):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            return node
        if isinstance(node, ast.Lambda):
            made = eval(compile(ast.Expression(node), code.co_filename, "eval"), {}).__code__
            here = function.__closure__ and node.lineno == code.co_firstlineno
            if here or all(getattr(made, a) == getattr(code, a) for a in ALIKE):
                return node
    raise LookupError(f"{function} in {code.co_filename}")


def places(node):
    """The expressions that can be mutated: not those for messages, shapes, and which arguments are live."""
    if isinstance(node, (ast.Raise, ast.Assert)):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ASIDE:
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func) in MOVES:
        yield from places(node.args[0])
        return
    if (
        isinstance(node, ast.expr)
        and not isinstance(node, ast.Starred)
        and isinstance(getattr(node, "ctx", None), ast.Load | None)
    ):
        yield node
    children = ast.iter_child_nodes(node)
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        children = node.body if isinstance(node.body, list) else [node.body]
        if isinstance(children[0], ast.Expr) and isinstance(children[0].value, ast.Constant):
            children = children[1:]
    if isinstance(node, ast.IfExp) and of_the_live_ones(node):
        children = [node.body]
    if isinstance(node, ast.Attribute) and node.attr in ("shape", "ndim", "size", "dtype"):
        return  # of arrays that mostly have the same
    if isinstance(node, ast.keyword):
        children = [node.value] if node.arg not in FORMALITIES else []
    for child in children:
        yield from places(child)


def of_the_live_ones(node):
    return any(isinstance(n, ast.Name) and n.id == "active" for n in ast.walk(node.test))


def replacements(node, residuals, globals_):
    """Small changes of one expression."""
    match node:
        case ast.BinOp(left=a, right=b, op=op):
            swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
            if type(op) in swaps:
                yield ast.BinOp(a, swaps[type(op)](), b)
            if isinstance(op, (ast.Sub, ast.Div, ast.MatMult)):
                yield ast.BinOp(b, op, a)
            yield a
            if isinstance(op, (ast.Add, ast.Mult)):
                yield b
        case ast.UnaryOp(op=ast.USub(), operand=a):
            yield a
        case ast.Name(id="ct"):
            yield ast.UnaryOp(ast.USub(), node)
        case ast.Name(id=name) if name in residuals:
            yield from (ast.Name(other, ast.Load()) for other in residuals if other != name)
        case ast.Constant(value=bool(v)):
            yield ast.Constant(not v)
        case ast.Constant(value=int(v) | float(v)):
            yield ast.Constant(v + 1)
        case ast.Call(func=f, args=args, keywords=keywords):
            name = ast.unparse(f)
            for i, keyword in enumerate(keywords):
                if keyword.arg not in FORMALITIES and ast.unparse(keyword) != "dtype=bool":
                    yield ast.Call(f, args, keywords[:i] + keywords[i + 1 :])
            if len(args) > 1:
                yield ast.Call(f, args[:-1], keywords)
                if (
                    name not in COMMUTE
                    and not is_a_name(args[-1])
                    and ast.dump(args[-1]) != ast.dump(args[-2])
                ):
                    yield ast.Call(f, [*args[:-2], args[-1], args[-2]], keywords)
            if args and name not in FORMAL and not isinstance(args[0], ast.Starred):
                yield args[0]
            if TWINS.get(name) in globals_:
                yield ast.Call(ast.Name(TWINS[name], ast.Load()), args, keywords)
        case ast.IfExp(body=one, orelse=other) if not of_the_live_ones(node):
            yield one
            yield other
        case ast.Attribute(value=a, attr="T" | "mT"):
            yield a


def is_a_name(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


class Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def mutants(site):
    """(what is changed, the changed function) for every small change of the function of `site`."""
    code = site.function.__code__
    names = code.co_varnames[: code.co_argcount]
    residuals = [n for n in names if n not in ("ct", "active")]
    known = site.function.__globals__ | inspect.getclosurevars(site.function).nonlocals
    node, times = syntax_of(site.function), Counter()
    for i, place in enumerate(places(node)):
        for new in replacements(place, residuals, known):
            tree = copy.deepcopy(node)
            tree = Replace(list(places(tree))[i], copy.deepcopy(new)).visit(tree)
            change = f"{ast.unparse(place)} -> {ast.unparse(new)}"
            times[change] += 1
            again = f" ({times[change]})" if times[change] > 1 else ""
            yield change + again, made_of(tree, known)


def made_of(tree, known):
    """The function that a lambda or def makes."""
    if isinstance(tree, ast.Lambda):
        return eval(compile(ast.fix_missing_locations(ast.Expression(tree)), "<mutant>", "eval"), dict(known))
    tree.decorator_list = []
    space = dict(known)
    module = ast.fix_missing_locations(ast.Module([tree], []))
    exec(compile(module, "<mutant>", "exec", dont_inherit=True), space)
    return space[tree.name]


# -- how faults are found ------------------------------------------------------------------------------


NAN, INF = np.nan, np.inf

# Values at which a derivative is a convention, or what a limit says: arguments (arrays are differentiated,
# numbers are not), and what the differentiated ones get for a cotangent of 1.
POINTS = {
    "power": [
        ([0.0, 2.0], [0.0, 0.0], [[0.0, 0.0], [0.0, math.log(2)]]), ([0.0], [2.0], [[0.0], [0.0]]), ([-1.0], [2.0], [[-2.0], [0.0]]),
        ([0.0, 2.0], 0.0, [[0.0, 0.0]]), ([0.0, 3.0], 2, [[0.0, 6.0]]), (-1.0, [2.0], [[0.0]]), (0.0, [2.0], [[0.0]]),
    ],
    "fmax": [([NAN, 1.0, 1.0, NAN], [1.0, NAN, 1.0, NAN], [[0, 1, 1, 1], [1, 0, 0, 0]])],
    "fmin": [([NAN, 1.0, 1.0, NAN], [1.0, NAN, 1.0, NAN], [[0, 1, 1, 1], [1, 0, 0, 0]])],
    "maximum": [([1.0], [1.0], [[1.0], [0.0]])],
    "minimum": [([1.0], [1.0], [[1.0], [0.0]])],
    "logaddexp": [
        ([-INF, INF, INF, 2.0], [-INF, INF, 0.0, 2.0], [[1, 0, 1, 0.5], [1, 0, 0, 0.5]]),
    ],
    "logsumexp": [([-INF, -INF], [[0.0, 0.0]])],
    "logcumsumexp": [([-INF, -INF, 0.0], [[0.0, 0.0, 1.0]])],
    "heaviside": [([0.0, 1.0], [0.3, 0.3], [[0.0, 0.0], [1.0, 0.0]])],
    "absolute": [([0.0], [[0.0]])],
    "relu": [([0.0], [[0.0]])],
    "hypot": [([0.0, 3.0], [0.0, 4.0], [[0.0, 0.6], [0.0, 0.8]])],
    "copysign": [([0.0, 1.0], [1.0, -1.0], [[0.0, -1.0], [0.0, 0.0]])],
}  # fmt: skip


def check_points(p, case):
    """The derivatives at POINTS, once for each op."""
    for *arguments, expected in POINTS.get(p.name.removesuffix("_mutant"), []) if case is p.cases[0] else []:
        given = [tg.Variable(np.array(a)) if isinstance(a, list) else a for a in arguments]
        tape = tg.Tape()
        with tape:
            y = p.function(*given)
        tape.backward(y, np.ones(y.shape))
        for v, gradient in zip((v for v in given if isinstance(v, tg.Variable)), expected, strict=True):
            np.testing.assert_allclose(v.grad, gradient, rtol=1e-14, atol=1e-300)


def check_formula_is_joint(p, case):
    """A formula, which programs run, gives what the joint rule gives."""
    rng = sweep.seeded(p, case)
    tape, ys = sweep.recorded(p, case, sweep.as_leaves(p, sweep.sample(p, case, rng)))
    entry = tape._segment.entries[0]
    known = entry[0].residuals(entry) | {"active": (True,) * len(p.differentiable)}
    cts = sweep.random_like(rng, ys)
    found = []
    for rule in (p.joint, p.formula):
        code = rule.__code__
        named = {n: known[n] for n in code.co_varnames[1 : code.co_argcount]}
        found.append(rule([ct.copy() for ct in cts] if p.outputs else cts[0].copy(), **named))
    for joint, formula in zip(*found, strict=True):
        np.testing.assert_allclose(formula, joint, rtol=1e-12, atol=1e-14)


CHECKS = [
    sweep.check_first_order,
    sweep.check_jvp_is_the_transpose_of_the_vjp,
    sweep.check_a_number_is_a_0d_array,
    sweep.check_second_order,
    sweep.check_raw_equals_recorded,
    sweep.check_special_values,
    sweep.check_dtype,
    check_points,
]


def verdict(site, mutant):
    """How a mutant is caught: "number", a wrong one; "error", it does not run; or None."""
    for slot, p in planted(site, mutant):
        for check in [check_formula_is_joint] if slot == "formula" else CHECKS:
            for case in p.cases:
                try:
                    with np.errstate(all="ignore"):
                        check(p, case)
                except AssertionError:
                    return "number"
                except Exception:  # whatever a changed rule runs into
                    return "error"
    return None


@functools.cache
def analysis():
    """(where, what) -> verdict, of every mutant."""
    before = choice.use(
        "numpy"
    )  # a compiled kernel that a mutant gives arrays of wrong lengths writes anywhere
    try:
        return {(site.label, change): verdict(site, f) for site in sites() for change, f in mutants(site)}
    finally:
        choice.use(before)


def table(rows):
    return "\n".join(f"    ({where!r}, {change!r})," for where, change in rows)


def test_nearly_every_mutant_of_every_rule_is_caught():
    found = analysis()
    count = Counter(found.values())
    print(
        f"\n{len(found)} mutants: {count['number']} give a wrong number, {count['error']} fail, {count[None]} survive"
    )
    assert count["number"] >= FEWEST_MUTANTS
    assert len(found) - count[None] >= SMALLEST_SHARE * len(found)


def test_a_mutant_that_survives_is_explained():
    survivors = [at for at, caught in analysis().items() if caught is None]
    explained = [row for rows in EQUIVALENT.values() for row in rows]
    unexplained = [
        at for at in survivors if not any(at[0] == site and part in at[1] for site, part in explained)
    ]
    assert not unexplained, (
        "no check tells these from the rule: add a case to the op that does, or say in EQUIVALENT why none can\n"
        + table(unexplained)
    )
    if not importlib.util.find_spec("scipy"):
        return  # some of those explained are of ops that need it
    stale = [row for row in explained if not any(at[0] == row[0] and row[1] in at[1] for at in survivors)]
    assert not stale, "these are caught, or are no mutants any more: take them out\n" + table(stale)


@pytest.mark.parametrize("p", sweep.DECLARED, ids=lambda p: p.name)
def test_the_copy_of_an_op_passes_as_it_is(p):
    """What catches mutants is the mutation, not the planting."""
    for site in (s for s in sites_once() if any(q is p for q, _ in s.users)):
        assert (
            verdict(site, made_of(copy.deepcopy(syntax_of(site.function)), site.function.__globals__)) is None
        )


@functools.cache
def sites_once():
    return sites()
