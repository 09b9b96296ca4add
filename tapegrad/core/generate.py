"""From the declaration of an op to the two functions on its hot path, as Python source.

The *call* computes and appends one flat tuple to every active tape; the *pull* unpacks that tuple and
applies the rules. Source and not closures, for two reasons: a frame saved is 0.06 µs, an object saved
0.5 µs; and it can be read: `print(tg.divide.primitive.source())`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..backend import capture
from ..backend.device import freeze, is_frozen, on_device, put_beside, refuse_to_mix
from ..backend.namespace import namespace
from ..errors import DtypeError, OutOfRangeError, ShapeError, TapegradError, describe
from ..types import Shape
from .entry import ITEM, record_outputs
from .refusals import refuse_other_operators
from .variable import Result, Variable, constant, next_slot, result

PYTHON_NUMBERS = frozenset({float, int, bool})
WIDE = 16384  # elements from which a pull writes over its own temporaries
# Parts of axes, shapes and indices that nobody can change.
ATOMS = frozenset({int, float, bool, str, slice, type(None), type(Ellipsis)})
# What NumPy raises for operands that do not fit.
FAILURES = (ValueError, TypeError, IndexError, ZeroDivisionError)


def residual_names(rule: Callable[..., Any] | None) -> tuple[str, ...]:
    """The parameters of a pullback behind `ct`, but for `active`, which the engine fills in."""
    if rule is None:
        return ()
    code = rule.__code__
    return tuple(n for n in code.co_varnames[1 : code.co_argcount] if n != "active")


def nests(p: Any) -> bool:
    """Whether the call tells its variants apart by nested ifs (few arguments) or by a table (many)."""
    return p.kind == "elementwise" or (len(p.differentiable) <= 2 and not p.variadic and not p.outputs)


def ufunc_of(p: Any) -> str | None:
    """The NumPy function that the body is, when it does nothing but call it: then no frame is spent on it."""
    called: list[tuple[str, tuple[Any, ...]]] = []

    class Probe:
        def __getattr__(self, name: str) -> Any:
            def call(*args: Any) -> Any:
                called.append((name, args))
                return called

            return call

    marks = tuple(object() for _ in p.arguments)
    asks = "hasattr" in p.body.__code__.co_names  # what a library has: then it is not the same call for each
    try:
        returned = None if p.statics or asks else p.body(Probe(), *marks)
    except Exception:  # whatever a body does with marks, it is not a bare call
        return None
    is_bare = returned is called and len(called) == 1 and called[0][1] == marks
    return called[0][0] if is_bare and isinstance(getattr(np, called[0][0], None), np.ufunc) else None


def call_signature(p: Any) -> tuple[str, str]:
    """The op's parameters, and the arguments that forward them. Statics may be given by position, as in NumPy."""
    parameters = [*p.arguments, *(f"{n}=default_{n}" if n in p.defaults else n for n in p.statics)]
    return ", ".join(parameters), ", ".join([*p.arguments, *p.statics])


def call_source(p: Any) -> tuple[str, dict[str, Any]]:
    """The op as Python source, and the variants that the source names."""
    variants: dict[str, Any] = {}
    lines = [f"def {p.name}({call_signature(p)[0]}):"]
    for a in p.arguments:
        if a == p.variadic:
            lines.append(f"    {a}_slot, {a}_value = lift_sequence({a}, {p.name!r}, {a!r})")
        elif a in p.differentiable:
            lines += [
                f"    if isinstance({a}, Variable):",
                f"        {a}_slot = {a}._slot",
                f"        {a}_value = {a}._array",
                "    else:",
                f"        {a}_slot = 0",
                f"        {a}_value = {lifted(p, a)}",
            ]
        else:
            lines.append(f"    {a}_value = lift_constant({a}, ({others(p, a)}))")
    values = ", ".join(f"{a}_value" for a in p.arguments)
    every = ", ".join(f"{'*' if a == p.variadic else ''}{a}_value" for a in p.arguments)
    ufunc = ufunc_of(p)
    if ufunc == "matmul":
        # CuPy's cannot be captured: then the body calls the one that can.
        run = (
            f"ufunc({values}) if capture.NOW is None else body(namespace({every}), {values})  # numpy.matmul"
        )
    elif ufunc:
        run = f"ufunc({values})  # numpy.{ufunc}"
    else:
        xp = f"numpy if type({p.arguments[0]}_value) is ndarray else namespace({every})"
        run = f"body({', '.join([xp, values, *(f'{n}={n}' for n in p.statics)])})"
    bound = ", ".join([*(f"{a}={a}_value" for a in p.arguments), *(f"{n}={n}" for n in p.statics)])
    lines += [
        "    try:",
        f"        y = {run}",
        "    except failures as error:",
        f"        explain(primitive, error, dict({bound}))",
        "        raise",
    ]
    slots = [f"any({a}_slot)" if a == p.variadic else f"{a}_slot" for a in p.differentiable]
    lines += [
        f"    if {' or '.join(slots)}:",
        "        tapes = active()",
        "        if tapes:",
        "            out = next_slot()",
        *("            " + line for line in record_source(p, variants)),
        f"        return unrecorded(y, tapes, ({', '.join(f'{a}_slot' for a in p.differentiable)},), primitive)",
        *plain_source(p),
    ]
    return "\n".join(lines), variants


def plain_source(p: Any) -> list[str]:
    """The lines that return the result when no argument is differentiated: rules come here with raw arrays."""
    if p.outputs or p.hidden or p.variadic:
        return [f"    return plain(y, ({', '.join(p.arguments)},), primitive)"]
    constants = " or ".join(f"isinstance({a}, Variable)" for a in p.arguments)
    return [f"    if {constants}:", "        return constant(y)", "    return y"]


def lifted(p: Any, argument: str) -> str:
    """The expression for a plain argument. Elementwise ops take Python numbers as they are: those widen no dtype."""
    if p.kind != "elementwise":
        array = f"{number(p, argument)} if type({argument}) in numbers else {argument}"
        return f"lift({array}, {p.name!r}, {argument!r})"
    return f"{argument} if type({argument}) in numbers else lift({argument}, {p.name!r}, {argument!r})"


def number(p: Any, argument: str) -> str:
    """The expression for an argument that is a number as an array: it lies where the others lie."""
    beside = others(p, argument)
    return f"put_beside({argument}, {beside[:-2]})" if beside else f"numpy.asarray({argument})"


def others(p: Any, argument: str) -> str:
    """The other arguments, as the inside of a tuple."""
    return "".join(f"{a}, " for a in p.arguments if a != argument)


def record_source(p: Any, variants: dict[str, Any]) -> list[str]:
    """The lines that build the entry, append it to the active tapes and return the result."""
    if nests(p):
        lines = [] if p.outputs else [*unpacked(p), "y_dtype = y.dtype"]
        lines += nested_entries(p, variants, p.differentiable, ())
    else:
        lines = [*unpacked(p), "y_dtype = None" if p.outputs else "y_dtype = y.dtype"]
        lines.append(f"y_shape = {outputs_shape(p)}" if p.outputs else "y_shape = y.shape")
        lines += chosen_entry(p, variants)
    if isinstance(p.outputs, str):
        return [*lines, *APPEND, "return record_outputs(y, out, tapes)"]
    if p.outputs:
        return [*lines, *items_source(p)]
    return [*lines, *APPEND, "made = new(Result)", "made._array = y", "made._slot = out", "return made"]


APPEND = ["for tape in tapes:", "    tape.append(entry)"]


def unpacked(p: Any) -> list[str]:
    """The lines that give each output a name, and its shape and dtype, where their number is known."""
    names = [] if isinstance(p.outputs, str) else [*(p.outputs or ["y"]), *p.hidden]
    lines = [f"{', '.join(names)} = y"] if p.hidden or (p.outputs and names) else []
    if p.outputs and names:
        lines += [f"{o}_shape, {o}_dtype = {o}.shape, {o}.dtype" for o in p.outputs]
    return lines


def outputs_shape(p: Any) -> str:
    """The expression for what an entry holds for a shape where there are several outputs."""
    if isinstance(p.outputs, str):
        return "tuple([(v.shape, v.dtype) for v in y])"
    return f"({''.join(f'({o}_shape, {o}_dtype), ' for o in p.outputs)})"


def items_source(p: Any) -> list[str]:
    """What `record_outputs` does, written out for outputs that are known by name: 1 µs of an LSTM's step."""
    lines = [f"{o}_out = next_slot()" for o in p.outputs]
    lines += ["for tape in tapes:", "    append = tape.append", "    append(entry)"]
    lines += [f"    append((ITEM, {o}_out, {o}_shape, {o}_dtype, out, {i}))" for i, o in enumerate(p.outputs)]
    for o in p.outputs:
        lines += [f"{o}_made = new(Result)", f"{o}_made._array = {o}", f"{o}_made._slot = {o}_out"]
    return [*lines, f"return {', '.join(f'{o}_made' for o in p.outputs)},"]


def chosen_entry(p: Any, variants: dict[str, Any]) -> list[str]:
    """The tuple of an op whose variants are too many for ifs: a table has them by which arguments are live."""
    variants["variants"] = Variants(p)
    live = ", ".join(f"any({a}_slot)" if a == p.variadic else f"{a}_slot != 0" for a in p.differentiable)
    always = frozenset.intersection(*(p.wanted((a,)) for a in p.differentiable))
    fields = [
        f"({field(p, n, None)})" + ("" if n in always else f" if {n!r} in kept else None")
        for n in p.variant(p.differentiable).layout
    ]
    needs_kept = [] if p.wanted(p.differentiable) <= always else ["kept = variant.kept"]
    return [f"variant = variants[{live},]", *needs_kept, entry_source("variant", p, fields)]


class Variants(dict[tuple[bool, ...], Any]):
    """The variants of a primitive by which of its differentiable arguments are live."""

    def __init__(self, primitive: Any) -> None:
        super().__init__()
        self.primitive = primitive

    def __missing__(self, key: tuple[bool, ...]) -> Any:
        p = self.primitive
        made = self[key] = p.variant(tuple(a for a, live in zip(p.differentiable, key, strict=True) if live))
        return made


def nested_entries(
    p: Any, variants: dict[str, Any], undecided: tuple[str, ...], live: tuple[str, ...]
) -> list[str]:
    """Ifs over which arguments are live, down to the tuple that each combination appends."""
    if undecided:
        a, rest = undecided[0], undecided[1:]
        if not rest and not live:  # the last chance to be live, and one of them is
            return nested_entries(p, variants, (), (a,))
        yes, no = (nested_entries(p, variants, rest, way) for way in ((*live, a), live))
        return [f"if {a}_slot:", *("    " + s for s in yes), "else:", *("    " + s for s in no)]

    def entry(broadcast: bool) -> str:
        variant = p.variant(live, broadcast)
        name = "_".join(["variant", *live, *(["broadcast"] if broadcast else [])])
        variants[name] = variant
        return entry_source(name, p, [field(p, n, live) for n in variant.layout], live)

    if p.kind != "elementwise" or len(p.arguments) == 1:
        return ["y_shape = y.shape", entry(False)]
    one, *others = live
    if others and live == p.arguments:  # equal shapes of all inputs are the output's: one comparison does
        shape, same = f"{one}_value.shape", " and ".join(f"{a}_value.shape == y_shape" for a in others)
    else:
        shape, same = "y.shape", " and ".join(f"{a}_value.shape == y_shape" for a in live)
    otherwise = ["    y_shape = y.shape"] if shape != "y.shape" else []
    return [
        f"y_shape = {shape}",
        f"if {same}:",
        "    " + entry(False),
        "else:",
        *otherwise,
        "    " + entry(True),
    ]


def entry_source(variant: str, p: Any, fields: list[str], live: tuple[str, ...] | None = None) -> str:
    slots = [f"{a}_slot" if live is None or a in live else "0" for a in p.differentiable]
    return f"entry = ({', '.join([variant, 'out', 'y_shape', 'y_dtype', *slots, *fields])})"


def field(p: Any, name: str, live: tuple[str, ...] | None) -> str:
    """The expression for residual `name`. Constants may be arrays that the caller writes to later: keep() them."""
    if name in p.arguments:
        value = f"{name}_value"
        if name == p.variadic:
            return f"tuple([v if slot else keep(v) for v, slot in zip({value}, {name}_slot)])"
        if name in p.differentiable:
            if live is None:
                return f"{value} if {name}_slot else keep({value})"
            if name in live:
                return value
        return f"keep({value})"
    if name in p.statics:
        return f"keep({name})"
    if name.endswith("_shape") and name.removesuffix("_shape") in p.arguments:
        argument = name.removesuffix("_shape")
        if argument == p.variadic:
            return f"[numpy.shape(v) for v in {argument}_value]"
        return f"{argument}_value.shape" if live and argument in live else f"numpy.shape({argument}_value)"
    return name  # y, an output, a hidden output: locals of the call


def pull_source(v: Any) -> str:
    """The pull as Python source: unpack the entry, apply the rules, name each contribution's slot."""
    p = v.primitive
    fields = [f"{a}_slot" if a in v.live else "_" for a in p.differentiable] + list(v.layout)
    shape, dtype = ("outputs", "_") if p.outputs else ("y_shape", "y_dtype")
    lines = ["def pull(entry, ct):", f"    _, _, {shape}, {dtype}, {', '.join(fields)} = entry"]
    if p.outputs:
        lines.append("    ct = ct.filled(outputs)")
    if p.joint is not None:
        code = p.joint.__code__
        wanted = code.co_varnames[1 : code.co_argcount]
        active = (
            f"map(bool, {p.variadic}_slot)" if p.variadic else tuple(a in v.live for a in p.differentiable)
        )
        arguments = ["ct", *(str(active) if n == "active" else n for n in wanted)]
        cts = [f"{a}_ct" if a in v.live else "_" for a in p.differentiable]
        lines.append(f"    {', '.join(cts)}, = joint({', '.join(arguments)})")
        contributions = {a: f"{a}_ct" for a in v.live}
    else:
        contributions = {a: inlined(p.rules[a], f"{a}_rule") for a in v.live}
        lines += ["    " + line for line in in_place_source(v)]
    return "\n".join([*lines, f"    return {returned(v, contributions)}"])


def returned(v: Any, contributions: dict[str, str]) -> str:
    """The expression for what a pull returns: each contribution with the slot that it goes to."""
    if v.broadcast:
        contributions = {a: f"unbroadcast({c}, {a}_shape)" for a, c in contributions.items()}
    variadic = v.primitive.variadic
    if variadic:
        return f"live_ones({variadic}_slot, {contributions[variadic]})"
    return "".join(f"({a}_slot, {c}), " for a, c in contributions.items())


def inlined(rule: Callable[..., Any], name: str) -> str:
    """The expression that a rule made of operators alone computes, else a call of it; saves 0.06 µs a rule."""
    y = expression(rule)
    return y.source if y is not None else f"{name}({', '.join(['ct', *residual_names(rule)])})"


def expression(rule: Callable[..., Any]) -> Symbol | None:
    """What a rule made of operators alone writes down when it is given names."""
    if not straight(rule):
        return None
    try:
        y = rule(*(Symbol(n) for n in ["ct", *residual_names(rule)]))
    except Exception:  # it calls ops, indexes, or asks for a shape
        return None
    return y if isinstance(y, Symbol) else None


def in_place_source(v: Any) -> list[str]:
    """The lines of a pull for wide arrays: the same operations in the same order, each into memory at hand.

    A rule's temporaries are arrays of their own. As long as they fit into a cache that costs nothing; of
    65,536 floats each costs a tenth of the sweep (`bench/per_op.py`).
    """
    lines: list[str] = []
    contributions: dict[str, str] = {}
    residuals: dict[str, None] = {}
    for a in v.live:
        y = expression(v.primitive.rules[a])
        if y is None:
            return []
        contributions[a] = y.write(lines)
        residuals |= dict.fromkeys(residual_names(v.primitive.rules[a]))
    if not any(line.endswith(" in place") for line in lines):
        return []
    alike = ", ".join(["ct", "y_shape", "y_dtype", *residuals])
    return [
        f"if ct.size >= {WIDE} and alike({alike}):",
        *("    " + line for line in lines),
        f"    return {returned(v, contributions)}",
    ]


def straight(rule: Callable[..., Any]) -> bool:
    """Whether a rule only applies operators to its parameters and to numbers: no branch, no global, no closure."""
    from dis import get_instructions  # here: most of a millisecond that importing need not pay

    plain = (
        "LOAD_FAST",
        "LOAD_CONST",
        "LOAD_SMALL",
        "BINARY",
        "UNARY_NEG",
        "RETURN",
        "RESUME",
        "NOP",
        "CACHE",
    )
    numbers = all(
        c is None or (type(c) in (int, float) and math.isfinite(c)) for c in rule.__code__.co_consts
    )
    return numbers and all(i.opname.startswith(plain) for i in get_instructions(rule))


class Symbol:
    """A name that writes down the operators applied to it, each in parentheses: the order stays the rule's."""

    __array_ufunc__ = None

    def __init__(self, source: str, ufunc: str = "", operands: Sequence[Any] = ()) -> None:
        self.source, self.ufunc, self.operands = source, ufunc, operands

    def write(self, lines: list[str]) -> str:
        """The name of the result, after `lines` that compute it; operands that nobody else needs are written over."""
        if not self.ufunc:
            return self.source
        names = [o.write(lines) if isinstance(o, Symbol) else repr(o) for o in self.operands]
        own = [n for n, o in zip(names, self.operands, strict=True) if isinstance(o, Symbol) and o.ufunc]
        if own:
            lines.append(f"{self.ufunc}({', '.join(names)}, {own[0]})  # in place")
            return own[0]
        lines.append(f"made_{len(lines)} = {self.ufunc}({', '.join(names)})")
        return lines[-1].partition(" ")[0]

    def __neg__(self) -> Symbol:
        return Symbol(f"(-{self.source})", "negative", (self,))

    def _with(self, operator: str, ufunc: str, left: Any, right: Any) -> Any:
        sides = [s.source if isinstance(s, Symbol) else repr(s) for s in (left, right)]
        return Symbol(f"({sides[0]} {operator} {sides[1]})", ufunc, (left, right))

    def __add__(self, other: Any) -> Any:
        return self._with("+", "add", self, other)

    def __sub__(self, other: Any) -> Any:
        return self._with("-", "subtract", self, other)

    def __mul__(self, other: Any) -> Any:
        return self._with("*", "multiply", self, other)

    def __truediv__(self, other: Any) -> Any:
        return self._with("/", "divide", self, other)


# -- what generated code calls ---------------------------------------------------------------------


def lift(value: Any, op: str, argument: str) -> Any:
    """A plain argument as what the body can take: a real array, or a number."""
    if type(value) is np.ndarray and value.dtype.kind in "fiub":
        return value
    if isinstance(value, np.ndarray):
        refuse_other_operators(value, op, argument)
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "?" if not isinstance(value, complex) else "c")
    if kind in "fiub":
        return value
    raise DtypeError(
        f"{op}: `{argument}` must be a Variable, a real array or a number.\n  {argument}: {describe(value)}"
        + (
            "\n  Complex numbers are not differentiated here: pass real and imaginary parts."
            if kind == "c"
            else ""
        )
    )


def lift_constant(value: Any, others: tuple[Any, ...]) -> Any:
    """An argument that is never differentiated (labels, a condition): its array, a number's beside `others`."""
    if isinstance(value, Variable):
        return value._array
    if type(value) is np.ndarray or hasattr(value, "namespace") or on_device(value):
        return value
    return put_beside(value, *others) if np.isscalar(value) else np.asarray(value)


def lift_sequence(values: Iterable[Any], op: str, argument: str) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Slots and arrays of a sequence of arguments."""
    if isinstance(values, Variable):
        values = list(values)
    values = tuple(values)
    lifted = [
        (v._slot, v._array)
        if isinstance(v, Variable)
        else (0, lift(put_beside(v, *values) if type(v) in PYTHON_NUMBERS else v, op, argument))
        for v in values
    ]
    return tuple(s for s, _ in lifted), tuple(a for _, a in lifted)


def keep(value: Any) -> Any:
    """`value` so that a recording may hold it: a writeable array is copied, for its owner may change it."""
    kind = type(value)
    if kind is np.ndarray:
        return value.copy() if value.flags.writeable else value
    if kind is tuple:
        return value if ATOMS.issuperset(map(type, value)) else tuple(keep(v) for v in value)
    if kind is list:
        return np.asarray(value)
    if kind is dict:
        return {name: keep(v) for name, v in value.items()}
    return value.copy() if on_device(value) and not is_frozen(value) else value


def plain(y: Any, arguments: tuple[Any, ...], p: Any) -> Any:
    """The result when no argument is differentiated: an array for arrays, a constant for constant Variables."""
    given = itertools.chain(
        *(a if n == p.variadic else (a,) for n, a in zip(p.arguments, arguments, strict=True))
    )
    wrap = constant if any(isinstance(a, Variable) for a in given) else lambda array: array
    if not p.outputs:
        return wrap(y[0] if p.hidden else y)
    return tuple(wrap(array) for array in (y if isinstance(p.outputs, str) else y[: len(p.outputs)]))


def unrecorded(y: Any, tapes: Any, slots: tuple[Any, ...], p: Any) -> Any:
    """The result when no tape records: a constant.

    If it was computed from a recorded value outside any recording it gets a slot of its own, on no
    tape, so that a sweep which meets it can say that a gradient stops there.
    """
    flat = itertools.chain(*(s if isinstance(s, tuple) else (s,) for s in slots))
    for array in y if isinstance(y, tuple) else (y,):
        freeze(array)  # a recording that keeps it need not copy it
    foreign = tapes is None and any(s > 0 for s in flat)
    if not p.outputs:
        return result(y[0] if p.hidden else y, next_slot() if foreign else 0)
    outputs = y if isinstance(p.outputs, str) else y[: len(p.outputs)]
    return tuple(result(array, next_slot() if foreign else 0) for array in outputs)


def explain(p: Any, error: Exception, bound: dict[str, Any]) -> None:
    """Raise `error` from the body of `p` in words that name the op, its arguments and what came."""
    if isinstance(error, TapegradError):
        return
    refuse_to_mix(p.name, bound)
    shown = "      ".join(
        f"{a}: [{', '.join(describe(v) for v in bound[a])}]"
        if a == p.variadic
        else f"{a}: {describe(bound[a])}"
        for a in bound
    )
    headline, *advice = (p.diagnose(**bound) if p.diagnose else str(error)).splitlines() or [repr(error)]
    kinds = {TypeError: DtypeError, IndexError: OutOfRangeError}
    kind = next((ours for theirs, ours in kinds.items() if isinstance(error, theirs)), ShapeError)
    raise kind("\n  ".join([f"{p.name}: {headline}", shown, *advice])) from error


def alike(ct: Any, shape: Shape, dtype: Any, *residuals: Any) -> bool:
    """Whether every operation on these gives an array of this shape and dtype: then any may be written over."""
    return all(
        type(r) in PYTHON_NUMBERS or (type(r) is np.ndarray and r.shape == shape and r.dtype is dtype)
        for r in (ct, *residuals)
    )


def live_ones(slots: tuple[int, ...], contributions: Iterable[Any]) -> list[tuple[int, Any]]:
    return [(slot, c) for slot, c in zip(slots, contributions, strict=True) if slot]


RUNTIME = {
    "Result": Result, "Variable": Variable, "new": object.__new__, "next_slot": next_slot, "result": result,
    "numpy": np, "ndarray": np.ndarray, "namespace": namespace, "numbers": PYTHON_NUMBERS, "failures": FAILURES,
    "lift": lift, "lift_constant": lift_constant, "put_beside": put_beside, "lift_sequence": lift_sequence, "keep": keep,
    "plain": plain, "constant": constant, "unrecorded": unrecorded, "explain": explain,
    "ITEM": ITEM, "record_outputs": record_outputs, "capture": capture,
}  # fmt: skip

# What pulls call besides rules.
PULL_RUNTIME = {
    "ndarray": np.ndarray, "alike": alike, "live_ones": live_ones,
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "negative": np.negative,
}  # fmt: skip

# What an argument or a static may not be called: it would hide what generated code means by it.
RESERVED = frozenset(RUNTIME) | frozenset(PULL_RUNTIME) | {
    "ct", "y", "out", "y_shape", "y_dtype", "entry", "variant", "kept", "made", "tape", "tapes", "append", "error",
    "active", "primitive", "body", "ufunc", "variants", "joint", "outputs", "unbroadcast", "generate",
}  # fmt: skip
