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
import pathlib
import types
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from tapegrad.kernels import choice

import tapegrad as tg
from tapegrad.core.primitive import REGISTRY, Primitive

SWEEP = pathlib.Path(__file__).with_name("test_primitives.py")
spec = importlib.util.spec_from_file_location("sweep_of_primitives", SWEEP)
sweep = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sweep)

FEWEST_MUTANTS, SMALLEST_SHARE = 200, 0.95

# Equivalent mutants: where the change is, what it is, and why no input tells it apart.
EQUIVALENT: dict[tuple[str, str], str] = {}

# Ops that are easily taken for each other.
TWINS = {
    "sin": "cos", "cos": "sin", "sinh": "cosh", "cosh": "sinh", "exp": "expm1", "log": "log1p",
    "greater": "less", "less": "greater", "greater_equal": "less_equal", "less_equal": "greater_equal",
    "maximum": "minimum", "minimum": "maximum", "tril": "triu", "triu": "tril", "cumsum": "sum",
}  # fmt: skip
COMMUTE = {
    "multiply", "add", "equal", "not_equal", "maximum", "minimum", "max", "min", "logical_and", "logical_or", "hypot", "betaln",
    "swapaxes", "convolve_full",
}  # fmt: skip
# Calls and keywords that change the form of a value and not the value.
FORMAL, FORMALITIES = {"tuple", "list", "float", "bool", "int", "type", "bare", "value_of"}, {"strict"}


# -- where faults are planted ------------------------------------------------------------------------


@dataclass
class Site:
    """A function that is mutated: a rule, or a function that rules of its file call. `users` are (op, rule)."""

    label: str
    function: types.FunctionType
    users: list = field(default_factory=list)
    is_helper: bool = False


def rules_of(p):
    yield from p.rules.items()
    if p.joint is not None:
        yield "joint", p.joint
    if p.formula is not None:
        yield "formula", p.formula


def sites():
    """Every rule of every op of the package, and the functions of its own file that it calls."""
    found = {}
    for p in REGISTRY.values():
        for slot, rule in rules_of(p):
            label = f"{p.name}.{slot}"
            found[label] = Site(label, rule, [(p, slot)])
            for name in globals_of(rule):
                helper = rule.__globals__.get(name)
                if not isinstance(helper, types.FunctionType) or hasattr(helper, "primitive"):
                    continue
                if helper.__module__ == rule.__module__ and getattr(tg, name, None) is not helper:
                    site = found.setdefault(name, Site(name, helper, is_helper=True))
                    site.users.append((p, slot))
    return list(found.values())


def globals_of(function):
    """The global names that the code of a function reads."""
    return {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}


def with_globals(function, **names):
    """The same code, for which `names` mean something else."""
    changed = types.FunctionType(
        function.__code__,
        function.__globals__ | names,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    changed.__kwdefaults__ = function.__kwdefaults__
    return changed


def planted(site, mutant):
    """The ops that use `site`, each a copy with the mutant in its place, not in the registry."""
    for p, slot in site.users:
        rule = (
            with_globals(dict(rules_of(p))[slot], **{site.function.__name__: mutant})
            if site.is_helper
            else mutant
        )
        body = with_globals(p.body)
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
    """The lambda or def that `function` was made from. Two lambdas of a line are told apart by their code."""
    code = function.__code__
    for node in ast.walk(tree_of(code.co_filename)):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            return node
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            made = eval(compile(ast.Expression(node), code.co_filename, "eval"), {}).__code__
            if function.__closure__ or all(getattr(made, a) == getattr(code, a) for a in ALIKE):
                return node
    raise LookupError(f"{function} in {code.co_filename}")


def places(node):
    """The expressions that can be mutated: not those for messages, types, and which arguments are live."""
    if isinstance(node, (ast.Raise, ast.Assert)):
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
            name = f.id if isinstance(f, ast.Name) else ""
            for i, keyword in enumerate(keywords):
                if keyword.arg not in FORMALITIES:
                    yield ast.Call(f, args, keywords[:i] + keywords[i + 1 :])
            if len(args) > 1:
                yield ast.Call(f, args[:-1], keywords)
                if name not in COMMUTE:
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
    node = syntax_of(site.function)
    for i, place in enumerate(places(node)):
        for new in replacements(place, residuals, known):
            tree = copy.deepcopy(node)
            tree = Replace(list(places(tree))[i], copy.deepcopy(new)).visit(tree)
            yield f"{ast.unparse(place)} -> {ast.unparse(new)}", made_of(tree, known)


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
    unexplained = [at for at in survivors if at not in EQUIVALENT]
    assert not unexplained, (
        "no check tells these from the rule: add a case to the op that does, or say in EQUIVALENT why none can\n"
        + table(unexplained)
    )
    stale = [at for at in EQUIVALENT if at not in survivors]
    assert not stale, "these are caught, or are no mutants any more: take them out\n" + table(stale)


@pytest.mark.parametrize("p", list(REGISTRY.values()), ids=lambda p: p.name)
def test_the_copy_of_an_op_passes_as_it_is(p):
    """What catches mutants is the mutation, not the planting."""
    for site in (s for s in sites_once() if any(q is p for q, _ in s.users)):
        assert (
            verdict(site, made_of(copy.deepcopy(syntax_of(site.function)), site.function.__globals__)) is None
        )


@functools.cache
def sites_once():
    return sites()
