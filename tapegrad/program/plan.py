"""From a trace to a plan: which arrays a sweep computes at each segment, in which order, and which not at all.

A segment's backward is linear in its cotangents, and the plan makes use of it:

    hoisting    Factors made of residuals alone are computed once, when a segment is first swept, and kept
                in rings. Chains of elementwise rules become `cotangent * factor`.
    settling    What a parameter gets is a product of residuals and of a cotangent, summed over the window.
                Both are kept in rings, and the sum is one matrix product after the sweep.
    assembling  The cotangents of slices are written in place, into the one array that was sliced.
    dead code   What no parameter and no older segment asks for is never computed.

A `Form` is a cotangent that was not computed yet: a sum of arrays times factors.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..types import Shape
from .trace import Graph, Namespace, Node, Trace, Traced, apply, view_shape

SMALL_TABLE = (
    256  # rows of an embedding up to which a product with one-hot rows is faster than adding row by row
)

Views = tuple[tuple[str, tuple[Any, ...]], ...]


class Value:
    """An array of the program. `place`: where it lives.

    work        a buffer of the sweep          delta    a ring: kept until the parameters are settled
    entering    a cotangent that came in       leaving  one that goes on to older segments
    factor      a ring of what was hoisted     raw      what the segments keep, by reference
    leaf        a parameter's array            total    an accumulator for the whole sweep
    literal     a number or an array of the program's own
    """

    def __init__(self, place: str, shape: Shape, dtype: Any, key: Any = None) -> None:
        self.place, self.shape, self.dtype, self.key = place, shape, dtype, key
        self.borrowed: list[Value] = []  # what it may be a view of

    def __repr__(self) -> str:
        return f"<{self.place} {self.key if self.key is not None else ''}{self.shape}>"


class Ref(NamedTuple):
    """A value as it is seen through views."""

    value: Value
    views: Views = ()

    @property
    def shape(self) -> Shape:
        shape = self.value.shape
        for method, arguments in self.views:
            shape = view_shape(shape, method, arguments)
        return shape

    def seen(self, method: str, *arguments: Any) -> Ref:
        """The same through one more view."""
        return Ref(self.value, (*self.views, (method, arguments)))


class Term(NamedTuple):
    """`coefficient * ref * factor`; the factor is a node made of residuals."""

    ref: Ref
    coefficient: float = 1.0
    factor: Node | None = None

    @property
    def plain(self) -> bool:
        return self.coefficient == 1.0 and self.factor is None


class Form(NamedTuple):
    """A cotangent as a sum of terms; without terms it is zero."""

    shape: Shape
    dtype: Any
    terms: tuple[Term, ...]


class Assembly(NamedTuple):
    """A cotangent by pieces: forms at basic indices that do not overlap, zero elsewhere."""

    shape: Shape
    dtype: Any
    pieces: tuple[tuple[Any, Form], ...]


@dataclass
class Step:
    """One line of a sweep: `kind` and its operands; `dest` is written.

    combine     operands: (ref, coefficient, factor ref or None) …, added up
    matmul      two refs
    reduce      one ref; detail: (name, axes, keepdims)
    ufunc       refs; detail: the name
    zero
    add         one ref, added to dest
    scatter     value, index refs; detail: the index. Added to dest at those positions
    node        refs; detail: the node, which says what to call
    pull        refs of cotangents; detail: the node. Several dests
    """

    kind: str
    dest: Any
    operands: list[Any]
    detail: Any = None
    label: str = ""


@dataclass
class Group:
    """Parameter gradients that are settled together: [left, …, 1]ᵀ @ delta, over the window's rows.

    `lefts`: nodes (or None for the ones) side by side, each with its columns. `targets`: (leaf's slot, which
    left, views and factors to apply to its rows of the product).
    """

    delta: Value
    rows: int
    lefts: list[tuple[Node | None, int]] = field(default_factory=list)
    targets: list[tuple[int, int, tuple[Any, ...]]] = field(default_factory=list)
    twin: int = 0  # how many groups before it in the plan are like it in all but the cotangent

    @property
    def key(self) -> Any:
        """Groups of one signature with the same residuals are one, whichever program they come from."""
        return (tuple(id(left) for left, _ in self.lefts), self.delta.shape, repr(self.targets), self.twin)

    @property
    def width(self) -> int:
        return sum([n for _, n in self.lefts])


class Plan:
    """What `Planner` makes of a trace.

    entering    values by the position of the entry whose cotangent they are
    leaving     values by slot number of what was read from before
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.entering: dict[int, Value] = {}
        self.leaving: dict[int, Value] = {}
        self.groups: list[Group] = []
        self.totals: dict[int, Value] = {}  # by leaf slot
        self.values: dict[Any, Value] = {}  # factors, raw residuals, leaves, literals: by node
        # Entering positions whose adjoint is what enters, and nothing that the segment itself adds.
        self.bare: frozenset[int] = frozenset()


class Planner:
    """Plans one trace. `hoists_leaves`: whether a segment keeps the arrays that its leaves had."""

    def __init__(self, trace: Trace, before: dict[int, int], hoists_leaves: bool) -> None:
        self.graph = trace.graph
        self.before, self.hoists_leaves = before, hoists_leaves
        self.plan = Plan()
        self.forms: dict[int, Form | Assembly] = {}
        self.kept: dict[int, Value] = {}  # the value that holds a node's cotangent
        self.groups: dict[int, Group] = {}
        self._hoistable: dict[int, bool] = {}
        cores = {
            i: core
            for i, (slot, node) in enumerate(trace.contributions)
            if slot < 0 and (core := self.core_of(node))
        }
        roots = [cores[i].ct if i in cores else node for i, (_, node) in enumerate(trace.contributions)]
        live = reached(roots)
        self.uses = Counter(id(i) for node in live for i in node.inputs) + Counter(map(id, roots))
        gathered = {node for i, (slot, node) in enumerate(trace.contributions) if slot < 0 and i not in cores}
        for node in list(self.graph.nodes):  # more are made on the way: factors
            # A pull is called by its parts, and what is scattered goes straight to where it is added up.
            direct = node.kind == "pull" or (
                node.kind == "scatter" and self.uses[id(node)] == 1 and node in gathered
            )
            if node in live and node.dependent and not direct:
                self.visit(node)
        for i, (slot, node) in enumerate(trace.contributions):
            if i in cores:
                self.settle(slot, cores[i])
            elif slot < 0:
                self.accumulate(slot, node)
        for i, group in enumerate(self.plan.groups):
            group.twin = sum(other.key == (*group.key[:-1], other.twin) for other in self.plan.groups[:i])
        self.plan.bare = frozenset(at for at, node in trace.adjoints.items() if node.kind == "cotangent")
        self.leave([(slot, node) for slot, node in trace.contributions if slot > 0])

    # -- forms ---------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        """Find the form of a node, and compute it if several others ask for it."""
        self.label = node.label
        form = self.forms[id(node)] = self.form_of(node)
        # An array times a factor is not computed yet even if several ask for it: each has a factor of its own.
        if self.uses[id(node)] > 1 and (isinstance(form, Assembly) or len(form.terms) > 1 or spreads(form)):
            self.value_of(node)

    def form_of(self, node: Node) -> Form | Assembly:
        shape, dtype = node.shape, node.dtype
        if node.kind == "cotangent":
            value = Value("entering", shape, dtype, node.detail)
            self.plan.entering[node.detail] = value
            return Form(shape, dtype, (Term(Ref(value)),))
        if node.kind == "ufunc":
            made = self.elementwise(node)
            if made is not None:
                return made
        if node.kind == "view":
            return self.viewed(node)
        if node.kind == "join":
            return self.joined(node)
        if node.kind == "put" and node.inputs[0].kind == "zeros":
            piece = self.form(node.inputs[1])
            return Assembly(shape, dtype, ((node.detail, piece),)) if piece.terms else Form(shape, dtype, ())
        return self.computed(node)

    def form(self, node: Node) -> Form:
        """The form of a node; an assembly is computed first."""
        if not node.dependent:
            if node.kind == "zeros":
                return Form(node.shape, node.dtype, ())
            return Form(node.shape, node.dtype, (Term(self.operand(node)),))
        form = self.forms[id(node)]
        return self.plain_form(self.value_of(node)) if isinstance(form, Assembly) else form

    @staticmethod
    def plain_form(value: Value) -> Form:
        return Form(value.shape, value.dtype, (Term(Ref(value)),))

    def elementwise(self, node: Node) -> Form | Assembly | None:
        """Sums, and products with what does not depend on a cotangent."""
        name, operands = node.detail, node.inputs
        if name in ("add", "subtract"):
            a, b = operands
            return self.added(node, a, b, -1.0 if name == "subtract" else 1.0)
        if name in ("negative", "positive"):
            return self.scaled(node, self.form(operands[0]), -1.0 if name == "negative" else 1.0)
        if name == "multiply":
            ct, other = operands if operands[0].dependent else operands[::-1]
            return None if other.dependent else self.multiplied(node, ct, other)
        if name == "divide" and operands[0].dependent and not operands[1].dependent:
            ct, other = operands
            if other.kind == "number":
                return self.scaled(node, self.form(ct), 1.0 / other.detail[1]) if other.detail[1] else None
            if not self.hoistable(other):
                return None
            return self.times(node, self.form(ct), other, "divide")
        if name == "where" and self.hoistable(operands[0]):
            return self.masked(node)
        return None

    def masked(self, node: Node) -> Form | None:
        """A cotangent where a condition holds, else 0: times a mask."""
        condition, a, b = node.inputs
        zero = [n.kind == "zeros" or (n.kind == "number" and n.detail[1] == 0) for n in (a, b)]
        if zero.count(True) != 1:
            return None
        ct, (yes, no) = (a, (1, 0)) if zero[1] else (b, (0, 1))
        if not ct.dependent:
            return None
        mask = Namespace(self.graph).where(
            Traced(self.graph, condition), node.dtype.type(yes), node.dtype.type(no)
        )
        return self.times(node, self.form(ct), mask.node, "multiply")

    def added(self, node: Node, a: Node, b: Node, sign: float) -> Form | Assembly | None:
        if not (a.dependent or a.kind == "zeros") or not (b.dependent or b.kind == "zeros"):
            return None
        pieces = [self.forms.get(id(n)) for n in (a, b)]
        if all(
            isinstance(p, Assembly) and self.kept.get(id(n)) is None
            for p, n in zip(pieces, (a, b), strict=True)
        ):
            joint = (*pieces[0].pieces, *self.negated(pieces[1].pieces, sign))  # type: ignore[union-attr]
            if disjoint([index for index, _ in joint], node.shape):
                return Assembly(node.shape, node.dtype, joint)
        one, other = self.form(a), self.scaled(node, self.form(b), sign)
        if any(f.terms and f.shape != node.shape and math.prod(f.shape) != 1 for f in (one, other)):
            return None
        return Form(node.shape, node.dtype, merged((*one.terms, *other.terms), self.graph))

    def negated(self, pieces: Any, sign: float) -> Any:
        return [
            (index, Form(f.shape, f.dtype, tuple(self.scale(t, sign) for t in f.terms)))
            for index, f in pieces
        ]

    def scaled(self, node: Node, form: Form, number: float) -> Form:
        return Form(node.shape, node.dtype, tuple(self.scale(term, number) for term in form.terms))

    @staticmethod
    def scale(term: Term, number: float) -> Term:
        return Term(term.ref, term.coefficient * number, term.factor)

    def multiplied(self, node: Node, ct: Node, other: Node) -> Form | None:
        if other.kind == "zeros":
            return Form(node.shape, node.dtype, ())
        if other.kind == "number":
            return self.scaled(node, self.form(ct), float(other.detail[1]))
        return self.times(node, self.form(ct), other, "multiply") if self.hoistable(other) else None

    def times(self, node: Node, form: Form, factor: Node, name: str) -> Form | None:
        """The form times (or divided by) a factor. A sum is computed first: one product is cheaper than two."""
        if form.shape != node.shape and math.prod(form.shape) != 1:
            return None
        if not form.terms:
            return Form(node.shape, node.dtype, ())
        if len(form.terms) > 1:
            form = self.plain_form(self.computed_form(form))
        (term,) = form.terms
        if term.factor is not None:
            factor = self.of_nodes(name, term.factor, factor)
        elif name == "divide":
            factor = self.of_nodes("divide", 1.0, factor)
        return Form(node.shape, node.dtype, (Term(term.ref, term.coefficient, factor),))

    def of_nodes(self, name: str, *operands: Any) -> Node:
        return apply(
            self.graph, name, [Traced(self.graph, o) if isinstance(o, Node) else o for o in operands]
        ).node

    def viewed(self, node: Node) -> Form:
        method, arguments = node.detail
        form = self.form(node.inputs[0])
        if not form.terms:
            return Form(node.shape, node.dtype, ())
        if math.prod(form.shape) == 1 and method in ("reshape", "broadcast_to"):
            return Form(node.shape, node.dtype, tuple(self.as_number(term) for term in form.terms))
        if len(form.terms) == 1:
            (term,) = form.terms
            if term.ref.shape == form.shape and (term.factor is None or term.factor.shape == form.shape):
                factor = term.factor and self.graph.node(
                    "view", node.detail, (term.factor,), node.shape, term.factor.dtype
                )
                return Form(
                    node.shape,
                    node.dtype,
                    (Term(term.ref.seen(method, *arguments), term.coefficient, factor),),
                )
        value = self.computed_form(form)
        return Form(node.shape, node.dtype, (Term(Ref(value).seen(method, *arguments)),))

    def as_number(self, term: Term) -> Term:
        """A term of one element, as a scalar: it then broadcasts to any shape."""
        ref = term.ref if term.ref.shape == () else term.ref.seen("reshape", ())
        factor = term.factor
        if factor is not None and factor.shape != ():
            factor = self.graph.node("view", ("reshape", ((),)), (factor,), (), factor.dtype)
        return Term(ref, term.coefficient, factor)

    def joined(self, node: Node) -> Form | Assembly:
        axis, start, pieces = node.detail, 0, []
        for part in node.inputs:
            index = (*(slice(None),) * axis, slice(start, start + part.shape[axis]))
            start += part.shape[axis]
            form = self.form(part)
            if form.terms and part.size:
                pieces.append((index, form))
        return Assembly(node.shape, node.dtype, tuple(pieces))

    # -- computing -----------------------------------------------------------------------------------

    def computed(self, node: Node) -> Form:
        """A step that computes the node from its inputs."""
        if node.kind == "part":
            return self.part(node)
        refs = [self.ref_of(n) for n in node.inputs]
        value = Value("work", node.shape, node.dtype)
        if node.kind == "matmul" and len(node.inputs[0].shape) == len(node.inputs[1].shape) == 2:
            self.step("matmul", Ref(value), refs, None, node)
        elif node.kind == "reduce":
            self.step("reduce", Ref(value), refs, node.detail, node)
        elif node.kind == "ufunc":
            self.step("ufunc", Ref(value), refs, node.detail, node)
        elif node.kind == "scatter" and node.inputs[0].kind == "zeros":
            self.step("zero", Ref(value), [], None, node)
            self.step("scatter", Ref(value), refs[1:], node.detail, node)
        else:
            self.step("node", Ref(value), refs, node, node)
        self.kept[id(node)] = value
        return self.plain_form(value)

    def part(self, node: Node) -> Form:
        """One of what an entry's own pull returns."""
        (pull,) = node.inputs
        made = self.kept.get(id(pull))
        if made is None:
            refs = [self.ref_of(n) for n in pull.inputs]
            made = self.kept[id(pull)] = Value("work", (), None)
            made.borrowed = [ref.value for ref in refs]
            self.step("pull", made, refs, pull, node)
        value = Value("returned", node.shape, node.dtype, (made, node.detail))
        return self.plain_form(value)

    def step(self, kind: str, dest: Any, operands: list[Any], detail: Any, node: Node | None = None) -> None:
        self.plan.steps.append(Step(kind, dest, operands, detail, node.label if node else self.label))

    def ref_of(self, node: Node) -> Ref:
        """An operand: a residual, or a cotangent that has been computed."""
        if not node.dependent:
            return self.operand(node)
        form = self.forms[id(node)]
        if isinstance(form, Form) and len(form.terms) == 1 and form.terms[0].plain:
            (term,) = form.terms
            if term.ref.shape == node.shape:
                return term.ref
        return Ref(self.value_of(node))

    def value_of(self, node: Node) -> Value:
        """The value that holds the cotangent of a node, computed now if it was not before."""
        value = self.kept.get(id(node))
        if value is None:
            self.label = node.label
            value = self.kept[id(node)] = self.computed_form(self.forms[id(node)])
            self.forms[id(node)] = self.plain_form(value)
        return value

    def computed_form(self, form: Form | Assembly, dest: Value | None = None) -> Value:
        """A step that adds up the terms of a form."""
        value = dest or Value("work", form.shape, form.dtype)
        if isinstance(form, Assembly):
            self.assemble(form, value)
        elif not form.terms:
            self.step("zero", Ref(value), [], None)
        else:
            self.step("combine", Ref(value), [self.finished(term) for term in form.terms], None)
        return value

    def finished(self, term: Term) -> tuple[Ref, float, Ref | None]:
        """A term with its factor hoisted, and the coefficient in it."""
        if term.factor is None:
            return term.ref, term.coefficient, None
        factor = term.factor
        if term.coefficient != 1.0:
            factor = self.of_nodes("multiply", factor, term.coefficient)
        return term.ref, 1.0, self.operand(factor)

    def assemble(self, assembly: Assembly, value: Value) -> None:
        """Write the pieces into place; neighbours that are the same cotangent times different factors at once."""
        filled = sum(math.prod(form.shape) for _, form in assembly.pieces)
        # One of no elements, too, needs a step that makes it.
        if filled < math.prod(assembly.shape) or not filled:
            self.step("zero", Ref(value), [], None)
        pieces = sorted(assembly.pieces, key=lambda piece: start_of(piece[0], assembly.shape))
        factors = self.joint_factor(assembly, pieces)
        for run in runs_of(pieces, assembly.shape):
            index, form = run[0]
            if len(run) == 1 or factors is None:
                for at, piece in run:
                    if factors is not None and len(piece.terms) == 1 and piece.terms[0].factor is not None:
                        terms: Any = [(piece.terms[0].ref, 1.0, factors.seen("getitem", at))]
                    else:
                        terms = [self.finished(term) for term in piece.terms]
                    self.step("combine", Ref(value).seen("getitem", at), terms, None)
                continue
            *lead, width = form.shape
            grouped = (*lead, assembly.shape[-1] // width, width)
            first = start_of(index, assembly.shape) // width
            at = (*(slice(None),) * len(lead), slice(first, first + len(run)))
            ref = form.terms[0].ref
            if ref.shape != ():
                ref = ref.seen("reshape", (*lead, 1, width))
            dest, factor = (r.seen("reshape", grouped).seen("getitem", at) for r in (Ref(value), factors))
            self.step("combine", dest, [(ref, 1.0, factor)], None)

    def joint_factor(self, assembly: Assembly, pieces: Any) -> Ref | None:
        """The factors of all pieces side by side, hoisted as one array; None if there are fewer than two."""
        factored = [(i, f) for i, f in pieces if len(f.terms) == 1 and f.terms[0].factor is not None]
        if len(factored) < 2:
            return None
        nodes = []
        for _, form in factored:
            (term,) = form.terms
            node = term.factor
            assert node is not None
            nodes.append(
                self.of_nodes("multiply", node, term.coefficient) if term.coefficient != 1.0 else node
            )
        indices = tuple(index for index, _ in factored)
        dtype = assembly.dtype
        return self.operand(self.graph.node("assemble", indices, nodes, assembly.shape, dtype))

    # -- operands that depend on no cotangent -------------------------------------------------------------

    def hoistable(self, node: Node) -> bool:
        """Whether a node is known once its segment is recorded."""
        known = self._hoistable.get(id(node))
        if known is None:
            own = not node.dependent and (node.kind != "leaf" or self.hoists_leaves)
            known = self._hoistable[id(node)] = own and all(self.hoistable(i) for i in node.inputs)
        return known

    def operand(self, node: Node) -> Ref:
        """A residual, a leaf, a number, or what is computed of those."""
        views: list[Any] = []
        while node.kind == "view":
            views.append(node.detail)
            (node,) = node.inputs
        value = self.plan.values.get(node)
        if value is None:
            value = self.plan.values[node] = self.made_of_residuals(node)
        ref = Ref(value)
        for method, arguments in reversed(views):
            ref = ref.seen(method, *arguments)
        return ref

    def made_of_residuals(self, node: Node) -> Value:
        if node.kind in ("residual", "leaf", "number", "array", "zeros"):
            place = {"residual": "raw", "leaf": "leaf"}.get(node.kind, "literal")
            return Value(place, node.shape, node.dtype, node)
        if self.hoistable(node):
            return Value("factor", node.shape, node.dtype, node)
        refs = [self.operand(n) for n in node.inputs]  # it takes today's weights: computed in the sweep
        value = Value("work", node.shape, node.dtype)
        kind = "ufunc" if node.kind == "ufunc" else "node"
        self.step(kind, Ref(value), refs, node.detail if kind == "ufunc" else node, node)
        return value

    # -- parameters ----------------------------------------------------------------------------------

    def core_of(self, node: Node) -> Core | None:
        """The product under a leaf's contribution whose sum over the window is one matrix product."""
        chain: list[Any] = []
        while True:
            if node.kind == "view" and node.detail[0] in ("reshape", "transpose"):
                chain.append(node.detail)
                (node,) = node.inputs
            elif node.kind == "ufunc" and node.detail == "negative":
                chain.append(-1.0)
                (node,) = node.inputs
            elif (
                node.kind == "ufunc"
                and node.detail in ("multiply", "divide")
                and node.inputs[1].kind == "number"
            ):
                number = float(node.inputs[1].detail[1])
                if not number:
                    return None
                chain.append(number if node.detail == "multiply" else 1.0 / number)
                node = node.inputs[0]
            else:
                break
        core = product_of(node, self.graph)
        if core is None or (core.left is not None and not self.can_wait(core.left, core.ct)):
            return None
        return core._replace(chain=(*core.chain, *reversed(chain)))

    def can_wait(self, left: Node, ct: Node) -> bool:
        """Whether a ring of `left` is worth its memory: not for weights, which are large and rarely change."""
        from_leaf = any(node.kind == "leaf" for node in reached([left]))
        return not from_leaf and left.dtype == ct.dtype

    def settle(self, slot: int, core: Core) -> None:
        delta = self.delta_of(core)
        group = self.groups.get(id(delta))
        if group is None:
            group = self.groups[id(delta)] = Group(delta, core.rows)
            self.plan.groups.append(group)
        known = [left for left, _ in group.lefts]
        number = next((i for i, left in enumerate(known) if left is core.left), len(known))
        if number == len(known):
            group.lefts.append((core.left, 1 if core.left is None else core.left.shape[-1]))
            if core.left is not None:
                self.operand(core.left)
        group.targets.append((slot, number, core.chain))

    def delta_of(self, core: Core) -> Value:
        """The ring of the cotangent that a product takes, as rows."""
        shape = (core.rows, core.ct.size // core.rows)
        key = ("delta", id(core.ct), core.transposed)
        delta = self.kept.get(key)  # type: ignore[call-overload]
        if delta is not None:
            return delta  # type: ignore[no-any-return]
        ref = self.ref_of(core.ct)
        if not ref.views and ref.value.place == "work" and ref.value.shape == shape and not core.transposed:
            delta = ref.value
            delta.place = "delta"
        else:
            delta = Value("delta", shape, core.ct.dtype)
            ref = ref.seen("transpose", (1, 0)) if core.transposed else ref
            ref = ref if ref.shape == shape else ref.seen("reshape", shape)
            self.label = core.ct.label
            self.step("combine", Ref(delta), [(ref, 1.0, None)], None)
        self.kept[key] = delta  # type: ignore[index]
        return delta

    def accumulate(self, slot: int, node: Node) -> None:
        """A contribution that is added at every segment."""
        self.label = node.label
        total = self.plan.totals.get(slot)
        if total is None:
            total = self.plan.totals[slot] = Value("total", node.shape, node.dtype, slot)
        scattered = node.kind == "scatter" and node.inputs[0].kind == "zeros" and self.uses[id(node)] <= 1
        if scattered and id(node) not in self.kept:
            self.step("scatter", Ref(total), [self.ref_of(n) for n in node.inputs[1:]], node.detail, node)
        else:
            self.step("add", Ref(total), [self.ref_of(node)], None, node)

    def leave(self, contributions: Sequence[tuple[int, Node]]) -> None:
        """Add up what goes to each value from before."""
        by_slot: dict[int, list[Node]] = {}
        for slot, node in contributions:
            by_slot.setdefault(slot, []).append(node)
        for slot, nodes in by_slot.items():
            forms = [self.form(node) for node in nodes]
            terms = merged(tuple(t for form in forms for t in form.terms), self.graph)
            shape, dtype = nodes[0].shape, forms[0].dtype
            value = None
            if len(terms) == 1 and terms[0].plain and not terms[0].ref.views:
                held = terms[0].ref.value
                taken = held in self.plan.leaving.values()
                value = held if held.place == "work" and held.shape == shape and not taken else None
            if value is None:
                self.label = nodes[0].label
                value = self.computed_form(Form(shape, dtype, terms))
            value.place = "leaving"
            value.key = self.before[slot]
            self.plan.leaving[self.before[slot]] = value


class Core(NamedTuple):
    """`leftᵀ @ ct` (the sum of ct's rows without a left) under a chain of linear maps that no segment changes."""

    node: Node
    left: Node | None
    ct: Node
    rows: int
    transposed: bool
    chain: tuple[Any, ...]


def product_of(node: Node, graph: Graph) -> Core | None:
    """The node as a product of residuals and a cotangent which may wait until the window is swept."""
    if not node.size or not all(n.size for n in node.inputs):
        return None
    if node.kind == "matmul" and all(len(n.shape) == 2 for n in node.inputs):
        a, b = node.inputs
        if not a.dependent and b.dependent:
            return Core(node, transposed(a, graph), b, b.shape[0], False, ())
        if a.dependent and not b.dependent:  # a b = (bᵀ aᵀ)ᵀ
            return Core(node, b, a, a.shape[1], True, (("transpose", ((1, 0),)),))
    if node.kind == "scatter" and node.inputs[0].kind == "zeros" and node.label == "take":
        return picked(node, graph)
    if node.kind == "reduce" and node.detail[0] == "sum" and node.inputs[0].shape:
        (ct,) = node.inputs
        _, axes, _ = node.detail
        last = len(ct.shape) - 1
        if axes == tuple(range(last)) and last and ct.size:
            return Core(node, None, ct, ct.size // ct.shape[-1], False, (("reshape", (node.shape,)),))
    if node.kind == "ufunc" and node.detail == "multiply" and len(node.shape) == 2:
        for residual, ct in (node.inputs, node.inputs[::-1]):  # an outer product
            if (
                not residual.dependent
                and ct.dependent
                and residual.shape[1:] == (1,)
                and ct.shape[:1] == (1,)
            ):
                row = graph.node(
                    "view",
                    ("reshape", ((1, residual.size),)),
                    (residual,),
                    (1, residual.size),
                    residual.dtype,
                )
                return Core(node, row, ct, 1, False, ())
    return None


def picked(node: Node, graph: Graph) -> Core | None:
    """Rows that are added to a small table at positions: one-hot rows of the positions times what is added.

    `take` has made sure of the positions; an index may count from the end.
    """
    if node.detail != (("array", 0),):
        return None
    _, ct, positions = node.inputs
    table, rows = node.shape, positions.size
    if len(table) != 2 or table[0] > SMALL_TABLE or ct.shape != (rows, table[1]) or not ct.dependent:
        return None
    column = Traced(graph, positions).reshape(rows, 1)
    one_hot = apply(graph, "equal", (column, np.arange(table[0]))).astype(ct.dtype)
    return Core(node, one_hot.node, ct, rows, False, ())


def transposed(node: Node, graph: Graph) -> Node:
    """The transpose of a matrix."""
    if node.kind == "view" and node.detail == ("transpose", ((1, 0),)):
        return node.inputs[0]
    return graph.node("view", ("transpose", ((1, 0),)), (node,), node.shape[::-1], node.dtype)


def spreads(form: Form) -> bool:
    """Whether the form is a smaller array, a loss's cotangent, spread by its factor."""
    return any(term.factor is not None and term.ref.shape != form.shape for term in form.terms)


def reached(roots: Iterable[Node]) -> dict[Node, None]:
    """Every node that goes into one of `roots`."""
    found: dict[Node, None] = {}
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found[node] = None
            waiting.extend(node.inputs)
    return found


def merged(terms: Sequence[Term], graph: Any) -> tuple[Term, ...]:
    """The same sum, with terms of one array added up."""
    made: dict[Any, Term] = {}
    for term in terms:
        key = (id(term.ref.value), repr(term.ref.views))
        held = made.get(key)
        made[key] = term if held is None else joint_term(held, term, graph)
    return tuple(made.values())


def factors_of(term: Term, graph: Graph) -> Any:
    """The factor of a term as an operand: 1 where it has none."""
    return 1.0 if term.factor is None else Traced(graph, term.factor)


def joint_term(a: Term, b: Term, graph: Graph) -> Term:
    """The sum of two terms of one array."""
    if a.factor is b.factor:
        return Term(a.ref, a.coefficient + b.coefficient, a.factor)
    if a.coefficient < 0 < b.coefficient:
        a, b = b, a
    one, other = factors_of(a, graph), factors_of(b, graph)
    scaled = one if a.coefficient == 1.0 else one * a.coefficient
    size = abs(b.coefficient)
    other = other if size == 1.0 else other * size
    return Term(a.ref, 1.0, (scaled - other if b.coefficient < 0 else scaled + other).node)


def start_of(index: Any, shape: Shape) -> int:
    """Where along the last axis of `shape` a basic index starts."""
    span = last_slice(index, shape)
    return 0 if span is None else span[0]


def last_slice(index: Any, shape: Shape) -> tuple[int, int] | None:
    """(start, stop) of an index that takes a slice of the last axis, and all of the others."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(p is None or not (p is Ellipsis or isinstance(p, slice)) for p in parts):
        return None
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts = (*parts[:at], *(slice(None),) * (len(shape) - len(parts) + 1), *parts[at + 1 :])
    if not shape or len(parts) != len(shape) or any(p != slice(None) for p in parts[:-1]):
        return None
    start, stop, stride = parts[-1].indices(shape[-1])
    return (start, stop) if stride == 1 else None


def disjoint(indices: Sequence[Any], shape: Shape) -> bool:
    """Whether basic indices can be seen to select different elements."""
    spans = [last_slice(index, shape) for index in indices]
    if any(span is None for span in spans):
        return False
    ordered = sorted(spans)  # type: ignore[type-var]
    return all(a[1] <= b[0] for a, b in itertools.pairwise(ordered))  # type: ignore[index]


def runs_of(pieces: Sequence[tuple[Any, Form]], shape: Shape) -> list[list[tuple[Any, Form]]]:
    """Neighbouring pieces of equal width that are one cotangent times factors, together."""
    runs: list[list[tuple[Any, Form]]] = []
    end = -1
    for index, form in pieces:
        span = last_slice(index, shape)
        single = len(form.terms) == 1 and form.terms[0].factor is not None and span is not None
        follows = runs and single and span is not None and span[0] == end and form.shape[-1]
        if follows and span is not None and span[0] % form.shape[-1] == 0:
            before = runs[-1][-1][1]
            same = (
                len(before.terms) == 1
                and before.terms[0].factor is not None
                and before.terms[0].ref == form.terms[0].ref
                and before.shape == form.shape
                and shape[-1] % form.shape[-1] == 0
                and form.terms[0].ref.shape in ((), form.shape)
            )
            if same:
                runs[-1].append((index, form))
                end = span[1]
                continue
        runs.append([(index, form)])
        end = span[1] if single and span is not None else -1
    return runs
