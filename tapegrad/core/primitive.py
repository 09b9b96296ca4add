"""Primitives: the atoms of differentiation, each declared in one place.

    @elementwise(a=lambda ct, b: ct / b,
                 b=lambda ct, y, b: -ct * (y / b), domain=(0.5, 2.0))
    def divide(xp, a, b):
        return xp.divide(a, b)

The body computes. Each keyword is an argument's name and its value that argument's *pullback*: the
linear map from the cotangent `ct` of the output to a cotangent of the argument. A pullback's other
parameters are its *residuals*, what it needs to remember of the forward pass:

    <argument>          the value of an argument
    y                   the output (one that has several: `<output>`, also `<hidden>` of a fused op)
    <static>            a keyword-only parameter of the body (an axis, a shape)
    <argument>_shape    the shape of an argument

What no rule of a live argument names is not kept. Rule bodies use operators and other ops only, so
the same text runs on raw arrays (fast) and on Variables (which records it: higher order).

From a declaration the two functions on the hot path are generated as source: the *call*, which
computes and appends one flat tuple to every active tape, and the *pull*, which unpacks that tuple.
`print(tg.divide.primitive.source())` shows them.
"""

from __future__ import annotations

import itertools

from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from ..backend.namespace import namespace
from ..errors import DtypeError, ShapeError, TapegradError, describe
from ..types import Array, Shape
from .variable import Result, Variable, constant, next_slot, result

# An entry is a flat tuple: an object per entry would cost 0.5 µs more.
#   (variant, out slot, output shape, output dtype, one slot per differentiable argument ..., residuals ...)
# An op with several outputs has their (shape, dtype) pairs for a shape, and None for a dtype.
Entry = tuple[Any, ...]
OUT, SHAPE, DTYPE, SLOTS = 1, 2, 3, 4


class Recorder(Protocol):
    """What a primitive needs of a tape."""

    append: Callable[[Entry], None]


# The tapes that record now. An immutable tuple: a thread or task that inherits it cannot change it
# for others. None: no tape was begun. Empty: recording is paused.
ACTIVE: ContextVar[tuple[Recorder, ...] | None] = ContextVar("active tapes", default=None)

REGISTRY: dict[str, Primitive] = {}

_PYTHON_NUMBERS = frozenset({float, int, bool})
_FAILURES = (ValueError, TypeError, IndexError)


class Case:
    """Inputs on which the tests sample a primitive: a shape (or a concrete array) per argument, and statics."""

    def __init__(self, *inputs: Any, **statics: Any) -> None:
        self.inputs = inputs
        self.statics = statics

    def __repr__(self) -> str:
        shown = [str(x) for x in self.inputs] + [f"{k}={v!r}" for k, v in self.statics.items()]
        return f"({', '.join(shown)})"


class Primitive:
    """An op with declared pullbacks. Attributes are the declaration's parts; `function` is the op."""

    def __init__(
        self,
        body: Callable[..., Any],
        rules: dict[str, Callable[..., Any]],
        *,
        kind: str = "general",
        outputs: Sequence[str] | str = (),
        hidden: Sequence[str] = (),
        variadic: str | None = None,
        joint: Callable[..., Any] | None = None,
        reference: Callable[..., Any] | None = None,
        diagnose: Callable[..., str] | None = None,
        domain: Any = (-2.0, 2.0),
        kinks: Sequence[float] = (),
        special: Sequence[float] = (),
        cases: Sequence[Case] = (),
    ) -> None:
        code = body.__code__
        self.name = body.__name__
        self.doc = body.__doc__ or ""
        self.body = body
        self.kind = kind
        self.arguments = code.co_varnames[1 : code.co_argcount]
        self.statics = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        self.defaults: dict[str, Any] = body.__kwdefaults__ or {}
        self.rules = rules
        self.joint = joint
        self.differentiable = tuple(a for a in self.arguments if joint_names(joint, a) or a in rules)
        self.outputs = outputs
        self.hidden = tuple(hidden)
        self.variadic = variadic
        self.reference = reference
        self.diagnose = diagnose
        self.domain, self.kinks, self.special, self.cases = domain, kinks, special, cases
        self._variants: dict[tuple[tuple[str, ...], bool], Variant] = {}
        self._check_declaration()
        self.function = self._stub()
        self.function.primitive = self  # type: ignore[attr-defined]

    def _check_declaration(self) -> None:
        known = {*self.arguments, *self.statics, *self.hidden, *(f"{a}_shape" for a in self.arguments)}
        if self.reference is not None or not self.outputs:
            known |= set(self.outputs or ["y"])
        for name in self.rules:
            if name not in self.arguments:
                raise TypeError(f"{self.name}: a rule for `{name}`, which is not an argument {self.arguments}")
        for rule in [*self.rules.values(), *([self.joint] if self.joint else [])]:
            for name in residual_names(rule):
                if name not in known:
                    raise TypeError(f"{self.name}: a pullback names `{name}`; there is {sorted(known)}")
        if self.hidden and self.reference is None:
            raise TypeError(f"{self.name}: hidden outputs need a `reference` made of ops, for recorded passes")
        if self.name in REGISTRY:
            raise TypeError(f"{self.name}: a primitive of this name is already declared")

    def variant(self, live: tuple[str, ...], broadcast: bool = False) -> Variant:
        """The way this op is recorded when exactly the arguments `live` are differentiated."""
        key = (live, broadcast)
        if key not in self._variants:
            self._variants[key] = Variant(self, live, broadcast)
        return self._variants[key]

    def source(self) -> str:
        """The generated call, and the pull of every variant met so far, as Python source."""
        return "\n\n".join([call_source(self)[0], *(pull_source(v) for v in self._variants.values())])

    def _stub(self) -> Callable[..., Any]:
        """The op, whose real code is generated at its first call so that importing stays cheap.

        The function object stays the same (operators and modules hold on to it); its code is swapped.
        """
        parameters, forwarded = call_signature(self)
        space: dict[str, Any] = {"generate": self._generate, **{f"default_{n}": v for n, v in self.defaults.items()}}
        exec(f"def {self.name}({parameters}): return generate()({forwarded})", space)
        function: Callable[..., Any] = space[self.name]
        function.__doc__ = self.doc
        function.__module__ = self.body.__module__
        return function

    def _generate(self) -> Callable[..., Any]:
        source, variants = call_source(self)
        ufunc = ufunc_of(self)
        space = self.function.__globals__  # type: ignore[attr-defined]
        space.update(
            Variable=Variable,
            Result=Result,
            new=object.__new__,
            active=ACTIVE.get,
            next_slot=next_slot,
            numbers=_PYTHON_NUMBERS,
            ndarray=np.ndarray,
            numpy=np,
            namespace=namespace,
            body=self.body,
            ufunc=getattr(np, ufunc) if ufunc else None,
            failures=_FAILURES,
            primitive=self,
            explain=explain,
            lift=lift,
            lift_sequence=lift_sequence,
            lift_constant=lift_constant,
            keep=keep,
            unrecorded=unrecorded,
            record_outputs=record_outputs,
            plain=plain,
            result=result,
            **variants,
        )
        generated: dict[str, Any] = {}
        exec(compile(source, f"<tapegrad call of {self.name}>", "exec"), space, generated)
        self.function.__code__ = generated[self.name].__code__  # type: ignore[attr-defined]
        return self.function

    def __repr__(self) -> str:
        return f"Primitive({self.name})"


class Variant:
    """How one primitive is recorded for one set of live arguments: the layout of its entries, and the pull.

    `layout` names the residuals in the order in which an entry holds them; `kept` are those that a rule of
    a live argument names (the others hold None). `broadcast`: some live argument is smaller than the output.
    """

    __slots__ = ("broadcast", "kept", "layout", "live", "name", "primitive", "pull", "values")

    def __init__(self, primitive: Primitive, live: tuple[str, ...], broadcast: bool) -> None:
        self.primitive, self.live, self.broadcast = primitive, live, broadcast
        self.name = primitive.name
        wanted = set(residual_names(primitive.joint)) if primitive.joint else set()
        for argument in live:
            if argument in primitive.rules:
                wanted |= set(residual_names(primitive.rules[argument]))
        if primitive.kind == "linear":  # its JVP is the op itself, which needs its statics
            wanted |= set(primitive.statics)
        if primitive.reference is not None:  # a recorded pass runs the reference, which needs every argument
            wanted |= {*primitive.arguments, *primitive.statics}
        if broadcast:
            wanted |= {f"{a}_shape" for a in live}
        order = [
            *primitive.arguments, *primitive.statics, "y", *primitive.outputs, *primitive.hidden,
            *(f"{a}_shape" for a in primitive.arguments),
        ]  # fmt: skip
        self.kept = frozenset(wanted)
        # Where a table tells variants apart they share a layout, that of the variant in which all are live.
        shared = wanted if nests(primitive) or live == primitive.differentiable else (
            primitive.variant(primitive.differentiable).kept)
        self.layout = tuple(n for n in order if n in shared)
        first = SLOTS + len(primitive.differentiable)
        # Where an entry holds a value that has a slot, and where it holds that slot.
        self.values = tuple(
            (first + i, OUT if n == "y" else SLOTS + primitive.differentiable.index(n))
            for i, n in enumerate(self.layout)
            if n in wanted and (n == "y" or n in primitive.differentiable)
        )
        self.pull: Callable[[Entry, Any], Iterable[tuple[int, Any]]] = self._generate_and_pull

    def residuals(self, entry: Entry) -> dict[str, Any]:
        """What `entry` keeps, by name."""
        first = SLOTS + len(self.primitive.differentiable)
        named = zip(self.layout, entry[first:], strict=True)
        return {name: value for name, value in named if name in self.kept}

    def input_slots(self, entry: Entry) -> dict[str, Any]:
        """The slot (a tuple of slots for a sequence) of each differentiable argument; 0 is a constant."""
        return dict(zip(self.primitive.differentiable, entry[SLOTS:], strict=False))

    def _generate_and_pull(self, entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
        p = self.primitive
        space: dict[str, Any] = {f"{a}_rule": rule for a, rule in p.rules.items()}
        space.update(joint=p.joint, unbroadcast=unbroadcast, live_ones=live_ones)
        exec(compile(pull_source(self), f"<tapegrad pull of {p.name}>", "exec"), space)
        self.pull = space["pull"]
        return self.pull(entry, ct)


# -- declaring -----------------------------------------------------------------------------------


def primitive(*, kind: str = "general", **declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op: keywords are pullbacks by argument name, or options of `Primitive`."""
    options = {k: declaration.pop(k) for k in _OPTIONS & declaration.keys()}

    def declare(body: Callable[..., Any]) -> Callable[..., Any]:
        made = Primitive(body, declaration, kind=kind, **options)
        REGISTRY[made.name] = made
        return made.function

    return declare


_OPTIONS = {
    "outputs", "hidden", "variadic", "joint", "reference", "diagnose", "domain", "kinks", "special", "cases",
}  # fmt: skip


def elementwise(**declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op whose Jacobian is diagonal: broadcasting is undone for its rules, and its JVP is they."""
    return primitive(kind="elementwise", **declaration)


def linear(**declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op that is linear in its one differentiable argument: its JVP is the op itself."""
    return primitive(kind="linear", **declaration)


def residual_names(rule: Callable[..., Any] | None) -> tuple[str, ...]:
    """The parameters of a pullback behind `ct`, but for `active`, which the engine fills in."""
    if rule is None:
        return ()
    code = rule.__code__
    return tuple(n for n in code.co_varnames[1 : code.co_argcount] if n != "active")


def joint_names(joint: Callable[..., Any] | None, argument: str) -> bool:
    """Whether a joint rule returns a cotangent for `argument`: its `gives` lists them."""
    return joint is not None and argument in joint.gives  # type: ignore[attr-defined]


def gives(*arguments: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a joint rule with the arguments whose cotangents it returns, in order."""

    def mark(rule: Callable[..., Any]) -> Callable[..., Any]:
        rule.gives = arguments  # type: ignore[attr-defined]
        return rule

    return mark


# -- generating ----------------------------------------------------------------------------------


def nests(p: Primitive) -> bool:
    """Whether the call tells its variants apart by nested ifs (few arguments) or by a table (many)."""
    return p.kind == "elementwise" or (len(p.differentiable) <= 2 and not p.variadic and not p.outputs)


def ufunc_of(p: Primitive) -> str | None:
    """The NumPy function that the body is, when it does nothing but call it: then no frame is spent on it."""
    called: list[tuple[str, tuple[Any, ...]]] = []

    class Probe:
        def __getattr__(self, name: str) -> Any:
            return lambda *args: called.append((name, args)) or called

    marks = tuple(object() for _ in p.arguments)
    try:
        returned = None if p.statics else p.body(Probe(), *marks)
    except Exception:  # whatever a body does with marks, it is not a bare call
        return None
    is_bare = returned is called and len(called) == 1 and called[0][1] == marks
    return called[0][0] if is_bare and isinstance(getattr(np, called[0][0], None), np.ufunc) else None


def call_signature(p: Primitive) -> tuple[str, str]:
    """The op's parameters, and the arguments that forward them. Statics may be given by position, as in NumPy."""
    parameters = [*p.arguments, *(f"{n}=default_{n}" if n in p.defaults else n for n in p.statics)]
    return ", ".join(parameters), ", ".join([*p.arguments, *p.statics])


def call_source(p: Primitive) -> tuple[str, dict[str, Variant]]:
    """The op as Python source, and the variants that the source names."""
    variants: dict[str, Variant] = {}
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
                f"        {a}_value = {a} if type({a}) in numbers else lift({a}, {p.name!r}, {a!r})",
            ]
        else:
            lines.append(f"    {a}_value = lift_constant({a})")
    values = ", ".join(f"{a}_value" for a in p.arguments)
    ufunc = ufunc_of(p)
    if ufunc:
        run = f"ufunc({values})  # numpy.{ufunc}"
    else:
        first = f"{p.arguments[0]}_value"
        xp = f"numpy if type({first}) is ndarray else namespace({'*' if p.variadic else ''}{first})"
        run = f"body({', '.join([xp, values, *(f'{n}={n}' for n in p.statics)])})"
    bound = ", ".join([*(f"{a}={a}_value" for a in p.arguments), *(f"{n}={n}" for n in p.statics)])
    lines += [
        "    try:",
        f"        y = {run}",
        "    except failures as error:",
        f"        raise explain(primitive, error, dict({bound})) from error",
    ]
    slots = [f"any({a}_slot)" if a == p.variadic else f"{a}_slot" for a in p.differentiable]
    lines += [
        f"    if {' or '.join(slots)}:",
        "        tapes = active()",
        "        if tapes:",
        "            out = next_slot()",
        *("            " + line for line in record_source(p, variants)),
        f"        return unrecorded(y, tapes, ({', '.join(f'{a}_slot' for a in p.differentiable)},), primitive)",
        f"    return plain(y, ({', '.join(p.arguments)},), primitive)",
    ]
    return "\n".join(lines), variants


def record_source(p: Primitive, variants: dict[str, Variant]) -> list[str]:
    """The lines that build the entry, append it to the active tapes and return the result."""
    if p.outputs or p.hidden:
        names = [] if isinstance(p.outputs, str) else [*(p.outputs or ["y"]), *p.hidden]
        lines = ["values = y"] + ([f"{', '.join(names)} = y"] if names else [])
    else:
        lines, names = [], []
    if p.outputs:
        count = "" if isinstance(p.outputs, str) else f"[:{len(p.outputs)}]"
        lines += [f"shape = tuple([(v.shape, v.dtype) for v in values{count}])", "dtype = None"]
    else:
        lines.append("dtype = y.dtype")
    if nests(p):
        lines += nested_entries(p, variants, p.differentiable, ())
    else:
        live = ", ".join(
            f"*([{a!r}] if {f'any({a}_slot)' if a == p.variadic else f'{a}_slot'} else [])" for a in p.differentiable
        )
        lines += [] if p.outputs else ["shape = y.shape"]
        lines.append(f"variant = primitive.variant(({live},))")
        lines.append("kept = variant.kept")
        order = p.variant(p.differentiable).layout
        fields = [f"({field(p, n, None)}) if {n!r} in kept else None" for n in order]
        lines.append(entry_source("variant", p, fields))
    lines += ["for tape in tapes:", "    tape.append(entry)"]
    if p.outputs:
        return [*lines, f"return record_outputs(values{count}, out, tapes)"]
    return [*lines, "made = new(Result)", "made._array = y", "made._slot = out", "return made"]


def nested_entries(
    p: Primitive, variants: dict[str, Variant], undecided: tuple[str, ...], live: tuple[str, ...]
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
        return ["shape = y.shape", entry(False)]
    one, *others = live
    if others and live == p.arguments:  # equal shapes of all inputs are the output's: one comparison does
        shape, same = f"{one}_value.shape", " and ".join(f"{a}_value.shape == shape" for a in others)
    else:
        shape, same = "y.shape", " and ".join(f"{a}_value.shape == shape" for a in live)
    otherwise = ["    shape = y.shape"] if shape != "y.shape" else []
    return [f"shape = {shape}", f"if {same}:", "    " + entry(False), "else:", *otherwise, "    " + entry(True)]


def entry_source(variant: str, p: Primitive, fields: list[str], live: tuple[str, ...] | None = None) -> str:
    slots = [f"{a}_slot" if live is None or a in live else "0" for a in p.differentiable]
    return f"entry = ({', '.join([variant, 'out', 'shape', 'dtype', *slots, *fields])})"


def field(p: Primitive, name: str, live: tuple[str, ...] | None) -> str:
    """The expression for residual `name`. Constants may be arrays that the caller writes to later: keep() them."""
    if name in p.arguments:
        value = f"{name}_value"
        if name in p.differentiable and name != p.variadic:
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


def pull_source(v: Variant) -> str:
    """The pull as Python source: unpack the entry, apply the rules, name each contribution's slot."""
    p = v.primitive
    fields = [f"{a}_slot" if a in v.live else "_" for a in p.differentiable] + list(v.layout)
    lines = ["def pull(entry, ct):", f"    _, _, {'outputs' if p.outputs else '_'}, _, {', '.join(fields)} = entry"]
    if p.outputs:
        lines.append("    ct = ct.filled(outputs)")
    if p.joint is not None:
        code = p.joint.__code__
        wanted = code.co_varnames[1 : code.co_argcount]
        active = tuple(a in v.live for a in p.differentiable)
        arguments = ["ct", *(str(active) if n == "active" else n for n in wanted)]
        cts = [f"{a}_ct" if a in v.live else "_" for a in p.differentiable]
        lines.append(f"    {', '.join(cts)}, = joint({', '.join(arguments)})")
        contributions = {a: f"{a}_ct" for a in v.live}
    else:
        contributions = {a: inlined(p.rules[a], f"{a}_rule") for a in v.live}
    if v.broadcast:
        contributions = {a: f"unbroadcast({c}, {a}_shape)" for a, c in contributions.items()}
    if p.variadic:
        lines.append(f"    return live_ones({p.variadic}_slot, {contributions[p.variadic]})")
    else:
        lines.append(f"    return {''.join(f'({a}_slot, {c}), ' for a, c in contributions.items())}")
    return "\n".join(lines)


def inlined(rule: Callable[..., Any], name: str) -> str:
    """The expression that a rule made of operators alone computes, else a call of it; saves 0.06 µs a rule."""
    names = ["ct", *residual_names(rule)]
    try:
        y = rule(*(Symbol(n) for n in names))
    except Exception:  # it calls ops, indexes, or asks for a shape
        y = None
    return y.source if isinstance(y, Symbol) else f"{name}({', '.join(names)})"


class Symbol:
    """A name that writes down the operators applied to it, each in parentheses: the order stays the rule's."""

    __array_ufunc__ = None

    def __init__(self, source: str) -> None:
        self.source = source

    def __neg__(self) -> Symbol:
        return Symbol(f"(-{self.source})")

    def _with(self, operator: str, left: Any, right: Any) -> Any:
        sides = [s.source if isinstance(s, Symbol) else repr(s) for s in (left, right)]
        return Symbol(f"({sides[0]} {operator} {sides[1]})")

    def __add__(self, other: Any) -> Any:
        return self._with("+", self, other)

    def __sub__(self, other: Any) -> Any:
        return self._with("-", self, other)

    def __mul__(self, other: Any) -> Any:
        return self._with("*", self, other)

    def __truediv__(self, other: Any) -> Any:
        return self._with("/", self, other)


# -- what generated code calls ---------------------------------------------------------------------


def lift(value: Any, op: str, argument: str) -> Any:
    """A plain argument as what the body can take: a real array, or a number."""
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "?" if not isinstance(value, complex) else "c")
    if kind in "fiub":
        return value
    raise DtypeError(
        f"{op}: `{argument}` must be a Variable, a real array or a number.\n  {argument}: {describe(value)}"
        + ("\n  Complex numbers are not differentiated here: pass real and imaginary parts." if kind == "c" else "")
    )


def lift_constant(value: Any) -> Any:
    """An argument that is never differentiated (labels, a condition): its array."""
    return value._array if isinstance(value, Variable) else np.asarray(value)


def lift_sequence(values: Iterable[Any], op: str, argument: str) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Slots and arrays of a sequence of arguments."""
    if isinstance(values, Variable):
        values = list(values)
    lifted = [(v._slot, v._array) if isinstance(v, Variable) else (0, lift(v, op, argument)) for v in values]
    return tuple(s for s, _ in lifted), tuple(a for _, a in lifted)


def keep(value: Any) -> Any:
    """`value` so that a recording may hold it: a writeable array is copied, for its owner may change it."""
    kind = type(value)
    if kind is np.ndarray:
        return value.copy() if value.flags.writeable else value
    if kind is tuple:
        return tuple(keep(v) for v in value)
    return np.asarray(value) if kind is list else value


def plain(y: Any, arguments: tuple[Any, ...], p: Primitive) -> Any:
    """The result when no argument is differentiated: an array for arrays, a constant for constant Variables."""
    given = itertools.chain(*(a if n == p.variadic else (a,) for n, a in zip(p.arguments, arguments, strict=True)))
    wrap = constant if any(isinstance(a, Variable) for a in given) else lambda array: array
    if not p.outputs:
        return wrap(y[0] if p.hidden else y)
    return tuple(wrap(array) for array in (y if isinstance(p.outputs, str) else y[: len(p.outputs)]))


def unrecorded(y: Any, tapes: Any, slots: tuple[Any, ...], p: Primitive) -> Any:
    """The result when no tape records: a constant.

    If it was computed from a recorded value outside any recording it gets a slot of its own, on no
    tape, so that a sweep which meets it can say that a gradient stops there.
    """
    flat = itertools.chain(*(s if isinstance(s, tuple) else (s,) for s in slots))
    slot = next_slot() if tapes is None and any(s > 0 for s in flat) else 0
    if not p.outputs:
        return result(y[0] if p.hidden else y, slot)
    return tuple(result(array, slot) for array in (y if isinstance(p.outputs, str) else y[: len(p.outputs)]))


def explain(p: Primitive, error: Exception, bound: dict[str, Any]) -> Exception:
    """`error` from the body of `p` in words that name the op, its arguments and what came."""
    if isinstance(error, TapegradError):
        return error
    shown = "      ".join(
        f"{a}: [{', '.join(describe(v) for v in bound[a])}]" if a == p.variadic else f"{a}: {describe(bound[a])}"
        for a in bound
    )
    said = p.diagnose(**bound) if p.diagnose else ""
    kind = DtypeError if isinstance(error, TypeError) else ShapeError
    return kind(f"{p.name}: {said.splitlines()[0] if said else error}\n  {shown}" + "".join(
        f"\n  {line}" for line in said.splitlines()[1:]))  # fmt: skip


def unbroadcast(contribution: Any, shape: Shape) -> Any:
    """`contribution` with the axes that broadcasting added summed away."""
    return contribution if contribution.shape == shape else REGISTRY["sum_to"].function(contribution, shape)


def live_ones(slots: tuple[int, ...], contributions: Iterable[Any]) -> list[tuple[int, Any]]:
    return [(slot, c) for slot, c in zip(slots, contributions, strict=True) if slot]


# -- several outputs -------------------------------------------------------------------------------


class Bundle:
    """The cotangent (or tangent) of an op with several outputs: some of its parts, by position."""

    __slots__ = ("parts",)

    def __init__(self, parts: dict[int, Any]) -> None:
        self.parts = parts

    def __add__(self, other: Bundle) -> Bundle:
        parts = dict(self.parts)
        for i, part in other.parts.items():
            parts[i] = parts[i] + part if i in parts else part
        return Bundle(parts)

    def filled(self, outputs: Sequence[tuple[Shape, Any]]) -> list[Any]:
        """Every part, zeros where nothing came."""
        return [self.parts.get(i, None) if i in self.parts else np.zeros(*o) for i, o in enumerate(outputs)]


class Item:
    """The entry of one output of an op that has several: (ITEM, out, shape, dtype, slot of the whole, position)."""

    name = "item"
    values = ()
    kept = frozenset(["position"])

    @staticmethod
    def pull(entry: Entry, ct: Any) -> Iterable[tuple[int, Any]]:
        return ((entry[SLOTS], Bundle({entry[SLOTS + 1]: ct})),)

    @staticmethod
    def residuals(entry: Entry) -> dict[str, Any]:
        return {"position": entry[SLOTS + 1]}

    @staticmethod
    def input_slots(entry: Entry) -> dict[str, Any]:
        return {"of": entry[SLOTS]}


ITEM = Item()


def record_outputs(arrays: Sequence[Array], whole: int, tapes: tuple[Recorder, ...]) -> tuple[Result, ...]:
    """One Variable per output, each an item of the entry `whole`."""
    made = []
    for position, array in enumerate(arrays):
        slot = next_slot()
        for tape in tapes:
            tape.append((ITEM, slot, array.shape, array.dtype, whole, position))
        made.append(result(array, slot))
    return tuple(made)


