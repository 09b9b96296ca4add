"""docs/ops.md: every op with its pullbacks, and what each of NumPy's functions does with a Variable.

    python docs/ops.py            writes the page
    python docs/ops.py --check    exits with 1 if the page is not what the declarations say

All of it is read from the registry of primitives and from the tables of `tapegrad/ops/names.py`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.fft  # its functions are counted once it is imported
import numpy.testing.overrides as overrides

from tapegrad.core.generate import residual_names
from tapegrad.core.primitive import REGISTRY, Primitive
from tapegrad.ops import names

PAGE = pathlib.Path(__file__).resolve().parent / "ops.md"
NUMPYS = "## NumPy's functions"
LATER = (
    "char.",
    "polynomial.",
    "strings.",
)  # modules whose functions are counted only once somebody imports them

HEAD = """\
# Ops

Written by `python docs/ops.py` from the declarations in `tapegrad/ops`.

A *primitive* has a *pullback* for each argument that it differentiates: from the cotangent `ct` of its output it makes what the
output contributes to the cotangent of that argument. What pullbacks name besides `ct` is kept on the tape if that argument is
differentiated: arguments, the output `y`, statics (parameters like `axis`), and shapes (`a_shape`). Pullbacks consist of
operators and other ops, so a recorded sweep records them, and gradients of gradients need no other rules. For elementwise ops
broadcasting is undone by the engine, after the pullback. *Functions of ops* have no pullback of their own.

Rules are those of `tg.NAME`, `tg.linalg.NAME` and `tg.special.NAME`; `NumPy` says which functions of NumPy and SciPy come to
the same op when they meet a Variable. The [last table](#numpys-functions) has all of NumPy's.

"""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(columns)]
    lines += [["---"] * len(lines[0]), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def code(text: str) -> str:
    """As code within a line or a cell of a table."""
    return "`" + " ".join(text.split()).replace("|", "\\|") + "`"


# -- one op ----------------------------------------------------------------------------------------------


def declared_rules(p: Primitive) -> dict[str, ast.expr]:
    """The keywords of an op's declaration, as syntax."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(p.body)))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    calls = [d for d in function.decorator_list if isinstance(d, ast.Call)]
    return {k.arg: k.value for call in calls for k in call.keywords if k.arg}


def rule_text(p: Primitive, argument: str, rule: Callable[..., Any]) -> str:
    """A pullback as one expression: what a lambda returns, or the call of a function."""
    written = declared_rules(p).get(argument)
    if isinstance(written, ast.Lambda):
        return ast.unparse(written.body)
    parameters = rule.__code__.co_varnames[: rule.__code__.co_argcount]
    return f"{rule.__name__}({', '.join(parameters)})"


def signature(p: Primitive) -> str:
    statics = [f"{n}={p.defaults[n]!r}" if n in p.defaults else n for n in p.statics]
    return f"{p.name}({', '.join([*p.arguments, *statics])})"


def kept(rule: Callable[..., Any]) -> str:
    return ", ".join(code(n) for n in residual_names(rule)) or "nothing"


def op_row(p: Primitive, reached_by: list[str]) -> list[str]:
    """signature, what it computes, cotangents, what they keep, NumPy's names"""
    rules = {", ".join(p.differentiable): p.joint} if p.joint else p.rules
    cotangents = [f"{code(a)} ← {code(rule_text(p, 'joint' if p.joint else a, r))}" for a, r in rules.items()]
    named = {n for rule in rules.values() for n in residual_names(rule)}
    shapes = [f"{a}_shape" for a in p.arguments]
    keeps = [n for n in (*p.arguments, *p.statics, "y", *p.outputs, *p.hidden, *shapes) if n in named]
    said = " ".join(paragraphs(p.doc)[0].split()).replace("|", "\\|")
    return [
        code(signature(p)), said, "<br>".join(cotangents), listed(keeps) or "nothing", listed(reached_by)
    ]  # fmt: skip


def paragraphs(doc: str | None) -> list[str]:
    return inspect.cleandoc(doc or "").split("\n\n")


def named_rules(p: Primitive) -> list[Callable[..., Any]]:
    """The pullbacks that are functions with a name, each once."""
    rules = [p.joint] if p.joint else list(p.rules.values())
    return list(dict.fromkeys(r for r in rules if r.__name__ != "<lambda>"))


def helpers_of(ops: Iterable[Primitive]) -> dict[str, Callable[..., Any]]:
    """The functions with a docstring that pullbacks call and that are no ops, by name."""
    public = {
        names.function_at(where) for where in {**names.PUBLIC, **names.SPECIAL, **names.LINALG}.values()
    }
    found: dict[str, Callable[..., Any]] = {}
    for rule in (r for p in ops for r in ([p.joint] if p.joint else p.rules.values())):
        for name in rule.__code__.co_names:
            called = rule.__globals__.get(name)
            is_op = called in public or hasattr(called, "primitive")
            if inspect.isfunction(called) and called.__doc__ and not is_op:
                found.setdefault(name, called)
    return found


def body_of(function: Callable[..., Any]) -> str:
    """The source of a function without its docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    source = textwrap.dedent(inspect.getsource(function)).rstrip().split("\n")
    assert isinstance(tree, ast.FunctionDef)
    if ast.get_docstring(tree) is not None:
        first = tree.body[0]
        source[first.lineno - 1 : first.end_lineno] = []
    return "\n".join(source)


# -- all of them -------------------------------------------------------------------------------------------


def reaching() -> dict[Any, list[str]]:
    """The functions of NumPy and SciPy that each op or function of ops records."""
    found: dict[Any, list[str]] = {}

    def note(where: tuple[str, str], name: str) -> None:
        found.setdefault(names.function_at(where), []).append(name)

    for name, where in names.NUMPY.items():
        note(where, f"np.{name}")
    for alias, name in names.ALIASES.items():
        if hasattr(np, alias):
            note(names.PUBLIC[name], f"np.{alias}")
    for name, where in [*names.ELSEWHERE.items(), *((f"linalg.{n}", w) for n, w in names.LINALG.items())]:
        note(where, f"np.{name}")
    for name, where in names.SPECIAL.items():
        if name not in names.NO_UFUNCS:
            note(where, f"scipy.special.{name}")
    for name, where in names.REDUCE.items():
        note(names.PUBLIC.get(where[1], where), f"np.{name}.reduce")
    for name, where in names.ACCUMULATE.items():
        note(where, f"np.{name}.accumulate")
    return found


def modules() -> list[str]:
    """The modules of ops, in the order of the tables."""
    names.import_all()
    tables = (names.NUMPY, names.LINALG, names.SPECIAL, names.OWN)
    of_tables = [names.function_at(w).__module__ for t in tables for w in t.values()]
    of_registry = [p.body.__module__ for p in REGISTRY.values()]
    return [m for m in dict.fromkeys([*of_tables, *of_registry]) if m.startswith("tapegrad.ops.")]


def functions_of(module: str) -> list[tuple[str, Any]]:
    """The functions of a module that have a public name and no rule of their own, by that name."""
    public = {**names.SPECIAL, **names.ELSEWHERE, **names.LINALG, **names.PUBLIC}
    found: dict[Any, str] = {}
    for name, where in public.items():
        function = names.function_at(where)
        if function.__module__ == module and not hasattr(function, "primitive") and name not in names.ALIASES:
            found.setdefault(function, name.split(".")[-1])
    return [(name, function) for function, name in found.items()]


def module_text(module: str, reached: dict[Any, list[str]]) -> str:
    """The ops of one module, what their docstrings add, their longer pullbacks, and the functions made of ops."""
    ops = [p for p in REGISTRY.values() if p.body.__module__ == module]
    parts = [f"## {module.removeprefix('tapegrad.')}\n"]
    parts.append(paragraphs(importlib.import_module(module).__doc__)[0] + "\n")
    if ops:
        rows = [op_row(p, reached.get(p.function, [])) for p in ops]
        parts.append(table(["primitive", "", "cotangents", "keeps", "NumPy"], rows))
    more = [
        f"- {code(p.name)}: {' '.join(' '.join(paragraphs(p.doc)[1:]).split())}"
        for p in ops
        if paragraphs(p.doc)[1:]
    ]
    if more:
        parts.append("\n".join(more) + "\n")
    pullbacks = dict.fromkeys(rule for p in ops for rule in named_rules(p))
    if pullbacks:
        source = "\n\n".join(body_of(rule) for rule in pullbacks)
        parts.append(f"Pullbacks that are more than an expression:\n\n```py\n{source}\n```\n")
    helpers = helpers_of(ops)
    if helpers:
        said = [f"- {code(n + parameters(f))}: {first_line(f)}" for n, f in helpers.items()]
        parts.append("\n".join(["Called in these pullbacks:\n", *said]) + "\n")
    functions = functions_of(module)
    if functions:
        rows = [[code(n + parameters(f)), first_line(f), listed(reached.get(f, []))] for n, f in functions]
        parts.append(table(["function of ops", "", "NumPy"], rows))
    return "\n".join(parts)


def ops_text() -> str:
    reached = reaching()
    return "\n".join(module_text(module, reached) for module in modules())


def first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0].replace("|", "\\|")


def parameters(function: Any) -> str:
    """A signature without annotations."""
    shown = str(inspect.signature(function)).split(" ->")[0]
    tree = ast.parse(f"def f{shown}: pass").body[0]
    assert isinstance(tree, ast.FunctionDef)
    for argument in ast.walk(tree.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    return f"({ast.unparse(tree.args)})"


def numpy_text() -> str:
    """What each of NumPy's overridable functions does with a Variable."""
    from tapegrad.ops.protocols import name_of, origin

    kinds: dict[str, str] = {}
    for ufunc in overrides.get_overridable_numpy_ufuncs():
        if not ufunc.__name__.startswith("_"):
            kinds[ufunc.__name__] = origin(ufunc)[1]
    for function in overrides.get_overridable_numpy_array_functions():
        name = name_of(function)
        if not name.startswith(LATER):
            kinds[name] = names.kind_of(name)
    recorded, constant, refused = (
        sorted(n for n, kind in kinds.items() if kind == wanted)
        for wanted in ("recorded", "constant", "refused")
    )
    by_op: dict[str, list[str]] = {}
    for name in recorded:
        module, called = names.RECORDED[name]
        by_op.setdefault(f"{module.removeprefix('tapegrad.').removeprefix('ops.')}", []).append(
            code(name) if called == name.split(".")[-1] else f"{code(name)} ({code(called)})"
        )
    reasons = {why: [code(n) for n in refused if names.reason(n) == why] for why in names.REASONS}
    instead = [f"{code(n)} ({code(names.IN_PLACE[n])})" for n in refused if n in names.IN_PLACE]
    reasons["It writes into its argument, and a Variable is never written into (what to do instead)"] = (
        instead
    )
    created = [n for n in constant if n in names.CREATED]
    others = [n for n in constant if n not in names.CREATED]
    version = ".".join(np.__version__.split(".")[:2])
    return f"""\
{NUMPYS}

NumPy {version} asks the class of its arguments what {len(kinds)} of its functions mean (`numpy.testing.overrides` lists them). With a
Variable among the arguments each is recorded, or is a constant by nature (a plain array that nothing is differentiated
through), or raises an error that names it. No other array comes back.

### Recorded

By the function of the same name in a module of `tapegrad/ops` (or of the name in parentheses).

{table(["module", "functions"], [[m, ", ".join(found)] for m, found in by_op.items()])}
Of the methods of ufuncs {listed(f"{n}.reduce" for n in names.REDUCE)}, {listed(f"{n}.accumulate" for n in names.ACCUMULATE)} and
`outer` of any recorded binary ufunc are recorded; `at` and `reduceat` are refused.

Parameters have NumPy's names and defaults. One that an op does not have (`dtype`, `out`, …) may be given as NumPy's default; otherwise it is
refused by its name.

### Constants by nature

{listed(others)}.

Made of numbers alone, and constants also with `like=v`: {listed(created)}.

### Refused

{table(["why", "functions"], [[why, ", ".join(found)] for why, found in reasons.items() if found])}
All of `numpy.fft` is refused but for `fftshift` and `ifftshift`, and all of `numpy.char`, `numpy.strings` and `numpy.polynomial`.
"""


def listed(found: Iterable[str]) -> str:
    return ", ".join(code(n) for n in found)


def page() -> str:
    return f"{HEAD}{ops_text()}\n{numpy_text()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; say whether the page is out of date"
    )
    options = parser.parse_args()
    new = page()
    stale = not PAGE.exists() or PAGE.read_text(encoding="utf-8") != new
    if stale:
        print(f"docs/{PAGE.name} {'is out of date' if options.check else 'written'}")
        if not options.check:
            PAGE.write_text(new, encoding="utf-8")
    return int(options.check and stale)


if __name__ == "__main__":
    sys.exit(main())
