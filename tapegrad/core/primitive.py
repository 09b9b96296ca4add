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

The op's code is generated from the declaration, see `generate.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from ..types import Shape
from . import generate
from .active import ACTIVE
from .entry import OUT, SLOTS, Entry
from .generate import residual_names

REGISTRY: dict[str, Primitive] = {}


class Case:
    """Inputs on which the tests sample a primitive: a shape (or a concrete array) per argument, and statics."""

    def __init__(self, *inputs: Any, **statics: Any) -> None:
        self.inputs = inputs
        self.statics = statics

    def __repr__(self) -> str:
        shown = [str(x) for x in self.inputs] + [f"{k}={v!r}" for k, v in self.statics.items()]
        return f"({', '.join(shown)})"


class Primitive:
    """An op with declared pullbacks. Attributes are the declaration's parts; `function` is the op.

    kind            "elementwise" (a diagonal Jacobian), "linear" (in one argument) or "general"
    outputs         names of the outputs if there are several ("parts": as many as the body returns)
    hidden          outputs that only a pullback sees (activations of a fused kernel)
    variadic        the argument that is a sequence of arrays
    joint           one rule for all of `differentiable`: takes `ct` (a list for several outputs), `active`
                    if it wants to know which arguments are live, and residuals; returns their cotangents
    reference       the same function made of ops, which a recorded pass tapes instead of the kernel
    formula         the joint rule in operators and ops, which a compiler can trace
    diagnose        given the arguments of a call that failed, what was wrong and what to do
    domain, kinks, special, cases     where the tests sample it; see `tests/test_primitives.py`
    """

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
        differentiable: Sequence[str] = (),
        reference: Callable[..., Any] | None = None,
        formula: Callable[..., Any] | None = None,
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
        self.differentiable = tuple(a for a in self.arguments if a in differentiable or a in rules)
        self.outputs = outputs
        self.hidden = tuple(hidden)
        self.variadic = variadic
        self.reference, self.formula = reference, formula
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
        for name in (*self.arguments, *self.statics):
            if name in generate.RESERVED or name.startswith("_"):
                raise TypeError(
                    f"{self.name}: `{name}` is a name that the generated code uses. Choose another."
                )
        if self.body.__defaults__:
            raise TypeError(f"{self.name}: an argument has no default. Statics, which may, come after a `*`.")
        for name in self.rules:
            if name not in self.arguments:
                raise TypeError(
                    f"{self.name}: a rule for `{name}`, which is not an argument {self.arguments}"
                )
        for rule in [*self.rules.values(), *([self.joint] if self.joint else [])]:
            for name in residual_names(rule):
                if name not in known:
                    raise TypeError(f"{self.name}: a pullback names `{name}`; there is {sorted(known)}")
        if self.hidden and self.reference is None:
            raise TypeError(
                f"{self.name}: hidden outputs need a `reference` made of ops, for recorded passes"
            )
        if self.name in REGISTRY:
            raise TypeError(f"{self.name}: a primitive of this name is already declared")

    def variant(self, live: tuple[str, ...], broadcast: bool = False) -> Variant:
        """The way this op is recorded when exactly the arguments `live` are differentiated."""
        key = (live, broadcast)
        if key not in self._variants:
            self._variants[key] = Variant(self, live, broadcast)
        return self._variants[key]

    def wanted(self, live: tuple[str, ...]) -> frozenset[str]:
        """The residuals that are kept when `live` are the arguments that are differentiated."""
        rules = [self.joint, *(self.rules.get(a) for a in live)]
        wanted = {name for rule in rules for name in residual_names(rule)}
        if self.kind == "linear":  # its JVP is the op itself, which needs its statics
            wanted |= set(self.statics)
        if self.reference is not None:  # a recorded pass runs the reference, which needs every argument
            wanted |= {*self.arguments, *self.statics}
        return frozenset(wanted)

    def source(self) -> str:
        """The generated call, and the pull of every variant met so far, as Python source."""
        pulls = [generate.pull_source(v) for v in self._variants.values()]
        return "\n\n".join([generate.call_source(self)[0], *pulls])

    def _stub(self) -> Callable[..., Any]:
        """The op, whose real code is generated at its first call so that importing stays cheap.

        The function object stays the same (operators and modules hold on to it); its code is swapped.
        """
        parameters, forwarded = generate.call_signature(self)
        space: dict[str, Any] = {
            "generate": self._generate,
            **{f"default_{n}": v for n, v in self.defaults.items()},
        }
        exec(f"def {self.name}({parameters}): return generate()({forwarded})", space)
        function: Callable[..., Any] = space[self.name]
        function.__doc__ = self.doc
        function.__module__ = self.body.__module__
        return function

    def _generate(self) -> Callable[..., Any]:
        source, variants = generate.call_source(self)
        space = self.function.__globals__
        space.update(generate.RUNTIME, **variants)
        space.update(active=ACTIVE.get, primitive=self, body=self.body)
        space.update(ufunc=getattr(np, generate.ufunc_of(self) or "", None))
        generated: dict[str, Any] = {}
        exec(compile(source, f"<tapegrad call of {self.name}>", "exec"), space, generated)
        self.function.__code__ = generated[self.name].__code__
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
        self.kept = primitive.wanted(live)
        if broadcast:
            self.kept |= {f"{a}_shape" for a in live}
        order = [
            *primitive.arguments, *primitive.statics, "y", *primitive.outputs, *primitive.hidden,
            *(f"{a}_shape" for a in primitive.arguments),
        ]  # fmt: skip
        # Where a table tells variants apart they share a layout, that of the variant in which all are live.
        alone = generate.nests(primitive) or live == primitive.differentiable
        shared = self.kept if alone else primitive.variant(primitive.differentiable).kept
        self.layout = tuple(n for n in order if n in shared)
        first = SLOTS + len(primitive.differentiable)
        # Where an entry holds a value that has a slot, and where it holds that slot.
        self.values = tuple(
            (first + i, OUT if n == "y" else SLOTS + primitive.differentiable.index(n))
            for i, n in enumerate(self.layout)
            if n in self.kept and (n == "y" or n in primitive.differentiable)
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
        space.update(generate.PULL_RUNTIME, joint=p.joint, unbroadcast=unbroadcast)
        exec(compile(generate.pull_source(self), f"<tapegrad pull of {p.name}>", "exec"), space)
        self.pull = space["pull"]
        return self.pull(entry, ct)


# -- declaring -----------------------------------------------------------------------------------


def primitive(
    *, kind: str = "general", **declaration: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op: keywords are pullbacks by argument name, or options of `Primitive`."""
    options = {k: declaration.pop(k) for k in _OPTIONS & declaration.keys()}

    def declare(body: Callable[..., Any]) -> Callable[..., Any]:
        made = Primitive(body, declaration, kind=kind, **options)
        REGISTRY[made.name] = made
        return made.function

    return declare


_OPTIONS = {
    "outputs", "hidden", "variadic", "joint", "differentiable", "reference", "formula", "diagnose",
    "domain", "kinks", "special", "cases",
}  # fmt: skip


def elementwise(**declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op whose Jacobian is diagonal: broadcasting is undone for its rules, and its JVP is they."""
    return primitive(kind="elementwise", **declaration)


def linear(**declaration: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare an op that is linear in its one differentiable argument: its JVP is the op itself."""
    return primitive(kind="linear", **declaration)


def unbroadcast(contribution: Any, shape: Shape) -> Any:
    """`contribution` with the axes that broadcasting added summed away."""
    return contribution if contribution.shape == shape else REGISTRY["sum_to"].function(contribution, shape)
