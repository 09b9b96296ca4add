"""A plan as NumPy source: straight lines with `out=` buffers, which a person can read.

Three functions for a program:

    hoist(k, e)                         once for a segment with entries `e`: its factors into place `k` of the rings
    sweep(ks, p, leaves, ins, joints)   back over the segments in places `ks`, newest first; `p` joints were crossed
    stack(k)                            what a segment contributes to the settling products, into place `k`

Names: r a residual, F a ring of factors, R residuals by place, W a parameter, c a cotangent that enters,
n one that leaves, D a ring of cotangents for settling, L the ring of what they are multiplied with,
A a sum over the sweep, w a work buffer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.entry import Bundle
from ..core.variable import LEAVES
from ..kernels.cpu import CACHE, FEW_ROWS
from .plan import Group, Plan, Ref, Step, Value
from .rings import Rings, aligned
from .trace import VIEWS, Node

# Rows up to which W @ dzᵀ, copied back, is faster than dz @ Wᵀ.
NARROW = 64
TRANSPOSED = (("transpose", ((1, 0),)),)

FUNCTIONS: dict[str, Any] = {
    "dot": np.dot, "matmul": np.matmul, "copyto": np.copyto, "broadcast_to": np.broadcast_to, "where": np.where,
    "concatenate": np.concatenate, "Bundle": Bundle, "add_at": np.add.at, "add_reduce": np.add.reduce,
    "maximum_reduce": np.maximum.reduce, "minimum_reduce": np.minimum.reduce, "Ellipsis": Ellipsis,
    "inf": np.inf, "nan": np.nan,
}  # fmt: skip
REDUCTIONS = {"sum": "add_reduce", "max": "maximum_reduce", "min": "minimum_reduce"}


class Turned:
    """C-ordered copies of transposed parameters: one for all the segments that read the same array."""

    def __init__(self) -> None:
        self.latest: Any = None

    def __call__(self, w: Any) -> Any:
        if self.latest is None or self.latest[0] is not w:
            self.latest = w, np.ascontiguousarray(w.T)
        return self.latest[1]


class NumpyProgram:
    """The source of a plan, and how to bind it to the rings of a tape.

    `where`: by residual node, the entry and field that hold it. `recorded`: whether leaves are read from the
    segments. `feeds`: by entering position, the number of the leaving value that is it at the next segment;
    without feeds a sweep is of one segment.
    """

    def __init__(
        self, plan: Plan, where: dict[Node, tuple[int, ...]], recorded: bool, feeds: dict[int, int] | None
    ) -> None:
        self.plan, self.where, self.recorded, self.feeds = plan, where, recorded, feeds
        self.names: dict[Any, str] = {}
        self.space: dict[str, Any] = dict(FUNCTIONS)
        self.ring_views: dict[str, tuple[Value, Any]] = {}  # lists by place of views of rings
        self.work_views: dict[str, tuple[str, Any]] = {}
        self.buffers: dict[str, tuple[Any, Any]] = {}  # work buffers by name: shape, dtype
        self.by_place: dict[str, str] = {}  # lists that hoist fills: name, expression
        self.prologue: list[str] = []
        self.turning: list[str] = []
        self.leaf_order: list[int] = []
        self.used: set[str] = set()
        sweep = self._sweep()
        stack = self._stack()
        hoist = self._hoist()
        self.source = "\n\n".join([hoist, sweep, stack])
        self.code = compile(self.source, "<tapegrad program>", "exec")

    # -- names ---------------------------------------------------------------------------------------

    def name(self, value: Any, letter: str) -> str:
        if value not in self.names:
            self.names[value] = f"{letter}{sum(n.startswith(letter) for n in self.names.values())}"
        return self.names[value]

    def ref(self, ref: Ref) -> str:
        """The expression that reads (or is written to as) `ref` inside the loop."""
        value, views = ref
        if value.place == "literal":
            return self.literal(value, views)
        if value.place in ("entering", "leaving"):
            return inline(f"{'c' if value.place == 'entering' else 'n'}{value.key}", views)
        if value.place == "returned":
            made, position = value.key
            return inline(f"{self.name(made, 'p')}[{position}][1]", views)
        if value.place == "leaf" and not self.recorded:
            return self.of_leaf(value, views)
        if value.place in ("raw", "leaf"):
            base = self.name(value, "R")
            name = self.view_name(base, views)
            self.by_place[name] = inline(self.residual(value.key), views)
            return f"{name}[k]"
        if value.place in ("factor", "delta"):
            base = self.name(value, "F" if value.place == "factor" else "D")
            lasting = views if lasts(value.shape, views) else ()
            name = self.view_name(base, lasting)
            self.ring_views[name] = (value, lasting)
            return inline(f"{name}[k]", views[len(lasting) :])
        return self.of_work(value, views)

    def of_work(self, value: Value, views: Any) -> str:
        base = self.name(value, "A" if value.place == "total" else "w")
        buffer = self.assigned.get(value, base)
        self.buffers.setdefault(buffer, (value.shape, value.dtype))
        if not views or not lasts(value.shape, views):
            return inline(buffer, views)
        name = self.view_name(buffer, views)
        self.work_views[name] = (buffer, views)
        return name

    def of_leaf(self, value: Value, views: Any) -> str:
        slot = value.key.detail
        if slot not in self.leaf_order:
            self.leaf_order.append(slot)
        base = f"W{self.leaf_order.index(slot)}"
        if not views:
            return base
        name = self.view_name(base, views)
        line = f"{name} = {inline(base, views)}"
        if line not in self.prologue:
            self.prologue.append(line)
        return name

    def literal(self, value: Value, views: Any) -> str:
        node = value.key
        if node.kind == "number":
            return repr(node.detail[1])
        name = self.view_name(self.name(value, "K"), views)
        array = np.zeros(node.shape, node.dtype) if node.kind == "zeros" else node.detail.array
        for method, arguments in views:
            array = VIEWS[method](array, *arguments)
        self.space[name] = array
        return name

    def view_name(self, base: str, views: Any) -> str:
        if not views:
            return base
        key = (base, repr(views))
        if key not in self.names:
            count = sum(isinstance(k, tuple) and k[0] == base for k in self.names)
            self.names[key] = f"{base}_{'abcdefghijklmnopqrstuvwxyz'[count] if count < 26 else count}"
        return self.names[key]

    def residual(self, node: Node) -> str:
        """A residual as it stands in the entries."""
        return "e" + "".join(f"[{i}]" for i in self.where[node])

    def function(self, name: str) -> str:
        self.space[name] = getattr(np, name)
        return name

    # -- the sweep -----------------------------------------------------------------------------------

    def _sweep(self) -> str:
        self.assigned = assign_buffers(self.plan.steps)
        body: list[str] = []
        last = ""
        for step in self.plan.steps:
            lines = getattr(self, f"_{step.kind}")(step)
            mark = f"  # {step.label}" if step.label and step.label != last else ""
            last = step.label
            body += [lines[0] + mark, *lines[1:]]
        entering, leaving = sorted(self.plan.entering), sorted(self.plan.leaving)
        self.entering, self.leaving = entering, leaving
        lines = ["def sweep(ks, p, leaves, ins, joints, entries):"]
        if self.leaf_order:
            lines.append(f"    {', '.join(f'W{i}' for i in range(len(self.leaf_order)))}, = leaves")
        lines += ["    " + line for line in self.prologue]
        if entering:
            lines.append(f"    {', '.join(f'c{e}' for e in entering)}, = ins")
        if leaving:
            lines.append(f"    {', '.join(f'J{n}' for n in leaving)}, = joints")
            outs = "".join(f", n{n}" for n in leaving)
            lines.append(f"    for k{outs} in zip(ks{''.join(f', J{n}[p:]' for n in leaving)}):")
        else:
            lines.append("    for k in ks:")
        lines += ["        " + line for line in body]
        if self.feeds:
            fed = [e for e in entering if e in self.feeds]
            lines.append(
                f"        {', '.join(f'c{e}' for e in fed)} = {', '.join(f'n{self.feeds[e]}' for e in fed)}"
            )
        if len(lines) and not body and not self.feeds:
            lines.append("        pass")
        return "\n".join(lines)

    def _combine(self, step: Step) -> list[str]:
        dest = self.ref(step.dest)
        terms = sorted(step.operands, key=lambda term: term[2] is None)  # those with factors first
        shape, dtype = step.dest.shape, step.dest.value.dtype
        temporary = None

        def product(term: Any, out: str) -> str:
            ref, coefficient, factor = term
            if factor is not None:
                return f"{self.function('multiply')}({self.ref(ref)}, {self.ref(factor)}, out={out})"
            if coefficient == 1.0:
                return f"copyto({out}, {self.ref(ref)})"
            if coefficient == -1.0:
                return f"{self.function('negative')}({self.ref(ref)}, out={out})"
            return f"{self.function('multiply')}({self.ref(ref)}, {coefficient!r}, out={out})"

        first, *rest = terms
        lines = []
        if rest and first[2] is None and first[1] == 1.0 and abs(rest[0][1]) == 1.0:
            second, *rest = rest
            name = self.function("add" if second[1] == 1.0 else "subtract")
            lines.append(f"{name}({self.ref(first[0])}, {self.ref(second[0])}, out={dest})")
        else:
            lines.append(product(first, dest))
        for term in rest:
            ref, coefficient, factor = term
            if factor is None and abs(coefficient) == 1.0:
                name = self.function("add" if coefficient == 1.0 else "subtract")
                lines.append(f"{name}({dest}, {self.ref(ref)}, out={dest})")
            else:
                temporary = temporary or self.temporary(shape, dtype)
                lines.append(product(term, temporary))
                lines.append(f"{self.function('add')}({dest}, {temporary}, out={dest})")
        return lines

    def temporary(self, shape: Any, dtype: Any) -> str:
        """A buffer for one step alone."""
        name = self.name(("temporary", tuple(shape), np.dtype(dtype)), "t")
        self.buffers[name] = (shape, dtype)
        return name

    def _matmul(self, step: Step) -> list[str]:
        a, b = step.operands
        dest = self.ref(step.dest)
        dtypes = {a.value.dtype, b.value.dtype, step.dest.value.dtype}
        rows, columns = a.shape[0], b.shape[1]
        if len(dtypes) > 1 or 0 in (*a.shape, *b.shape):
            return [f"matmul({self.ref(a)}, {self.ref(b)}, out={dest})"]
        turned = bool(b.views) and b.views[-1] == ("transpose", ((1, 0),))
        fits = math.prod(b.shape) * b.value.dtype.itemsize <= CACHE
        if b.views == TRANSPOSED and b.value.place == "leaf" and rows > FEW_ROWS and fits:
            return [f"dot({self.ref(a)}, {self.turned(b)}, out={dest})"]
        if turned and 1 < rows <= NARROW:
            # W dzᵀ, copied back: BLAS is twice as fast on it for few rows.
            temporary = self.temporary((columns, rows), step.dest.value.dtype)
            back = self.view_name(temporary, (("transpose", ((1, 0),)),))
            self.work_views[back] = (temporary, (("transpose", ((1, 0),)),))
            w, dz = Ref(b.value, b.views[:-1]), a.seen("transpose", (1, 0))
            return [f"dot({self.ref(w)}, {self.ref(dz)}, out={temporary})", f"copyto({dest}, {back})"]
        return [f"dot({self.ref(a)}, {self.ref(b)}, out={dest})"]

    def turned(self, ref: Ref) -> str:
        """A C-ordered copy of a parameter that is read transposed: see `cpu.transposed_products`."""
        if self.recorded:
            name = self.view_name(self.name(ref.value, "R"), (*ref.views, "copy"))
            self.turning.append(f"turned{name[1:]}")
            self.by_place[name] = f"turned{name[1:]}({self.residual(ref.value.key)})"
            return f"{name}[k]"
        plain = self.of_leaf(ref.value, ref.views)
        name = f"{plain}_copy"
        self.buffers[name] = (ref.shape, ref.value.dtype)
        if (line := f"copyto({name}, {plain})") not in self.prologue:
            self.prologue.append(line)
        return name

    def _reduce(self, step: Step) -> list[str]:
        name, axes, keepdims = step.detail
        (ref,) = step.operands
        return [
            f"{REDUCTIONS[name]}({self.ref(ref)}, axis={axes}, keepdims={keepdims}, out={self.ref(step.dest)})"
        ]

    def _ufunc(self, step: Step) -> list[str]:
        operands = ", ".join(self.ref(r) for r in step.operands)
        if step.detail == "where":
            return [f"copyto({self.ref(step.dest)}, where({operands}))"]
        return [f"{self.function(step.detail)}({operands}, out={self.ref(step.dest)})"]

    def _zero(self, step: Step) -> list[str]:
        return [f"{self.ref(step.dest)}.fill(0)"]

    def _add(self, step: Step) -> list[str]:
        dest = self.ref(step.dest)
        return [f"{self.function('add')}({dest}, {self.ref(step.operands[0])}, out={dest})"]

    def _scatter(self, step: Step) -> list[str]:
        value, *arrays = step.operands
        index = index_source(step.detail, [self.ref(a) for a in arrays])
        return [f"add_at({self.ref(step.dest)}, {index}, {self.ref(value)})"]

    def _node(self, step: Step) -> list[str]:
        return self.generic(step.detail, [self.ref(r) for r in step.operands], self.ref(step.dest))

    def _pull(self, step: Step) -> list[str]:
        at, parts = step.detail.detail
        cts = [self.ref(r) for r in step.operands]
        ct = cts[0]
        if parts is not None:
            ct = f"Bundle({{{', '.join(f'{i}: {c}' for i, c in zip(parts, cts, strict=True))}}})"
        entry = f"entries(k)[{at}]"
        return [f"{self.name(step.dest, 'p')} = [*{entry}[0].pull({entry}, {ct})]"]

    def generic(self, node: Node, operands: list[str], dest: str) -> list[str]:
        """Lines that compute a node from expressions for its inputs, into `dest`."""
        kind, detail = node.kind, node.detail
        if kind == "ufunc" and detail != "where":
            return [f"{self.function(detail)}({', '.join(operands)}, out={dest})"]
        if kind == "ufunc":
            return [f"copyto({dest}, where({', '.join(operands)}))"]
        if kind == "matmul":
            return [f"copyto({dest}, matmul({', '.join(operands)}))"]
        if kind == "reduce":
            name, axes, keepdims = detail
            return [f"{REDUCTIONS[name]}({operands[0]}, axis={axes}, keepdims={keepdims}, out={dest})"]
        if kind == "astype":
            return [f"copyto({dest}, {operands[0]}, casting='unsafe')"]
        if kind == "put":
            base, value = operands
            return [f"copyto({dest}, {base})", f"{dest}[{index_source(detail, [])}] = {value}"]
        if kind == "scatter":
            base, value, *arrays = operands
            return [f"copyto({dest}, {base})", f"add_at({dest}, {index_source(detail, arrays)}, {value})"]
        if kind == "gather":
            array, *arrays = operands
            return [f"copyto({dest}, {array}[{index_source(detail, arrays)}])"]
        if kind == "join":
            return [f"concatenate(({', '.join(operands)},), axis={detail}, out={dest})"]
        if kind == "view":
            return [f"copyto({dest}, {inline(operands[0], (detail,))})"]
        raise AssertionError(f"no line for {node}")

    # -- hoisting ------------------------------------------------------------------------------------

    def _hoist(self) -> str:
        """Factors in the order in which they need each other; then the residuals that are kept by place."""
        roots = {
            value.key: f"{self.name(value, 'F')}_p[k]"
            for value in self.plan.values.values()
            if value.place == "factor"
        }
        for value in list(self.plan.values.values()):
            if value.place == "factor":
                self.ring_views[f"{self.name(value, 'F')}_p"] = (value, ())
        self.held: dict[Node, str] = {}
        self.numbers = itertools.count()
        lines: list[str] = []
        for value in list(self.plan.values.values()):
            if value.place == "factor":
                self.hoisted(value.key, roots, lines)
        lines += [f"{name}[k] = {expression}" for name, expression in self.by_place.items()]
        return "\n".join(["def hoist(k, e):", *("    " + line for line in lines or ["pass"])])

    def hoisted(self, node: Node, roots: dict[Node, str], lines: list[str], dest: str = "") -> str:
        """The expression for a node that depends on no cotangent; lines that compute it are added before."""
        held = self.held.get(node)
        if held is not None:
            return held
        if node.kind in ("residual", "leaf"):
            name = self.held[node] = f"r{len(self.held)}"
            lines.append(f"{name} = {self.residual(node)}")
            return name
        if node.kind in ("number", "array", "zeros"):
            return self.literal(Value("literal", node.shape, node.dtype, node), ())
        if node.kind == "view":
            base = self.hoisted(node.inputs[0], roots, lines)
            name = self.held[node] = f"v{len(self.held)}"
            lines.append(f"{name} = {inline(base, (node.detail,))}")
            return name
        dest = roots.get(node) or dest
        if not dest:
            dest = f"h{next(self.numbers)}"
            self.buffers[dest] = (node.shape, node.dtype)
        if node.kind == "assemble":
            self.assembled(node, roots, lines, dest)
        else:
            operands = [self.hoisted(n, roots, lines) for n in node.inputs]
            lines.extend(self.generic(node, operands, dest))
        self.held[node] = dest
        return dest

    def assembled(self, node: Node, roots: dict[Node, str], lines: list[str], dest: str) -> None:
        """Factors side by side, each computed in place unless something else needs it too."""
        for number, (index, factor) in enumerate(zip(node.detail, node.inputs, strict=True)):
            piece = f"{dest[: -len('_p[k]')]}_q{number}[k]"
            value = self.plan.values[node]
            self.ring_views[piece[:-3]] = (value, (("getitem", (index,)),))
            fits = factor.shape == np.empty(node.shape, np.int8)[index].shape and factor.dtype == node.dtype
            if fits and factor.kind == "ufunc" and factor not in roots and factor not in self.held:
                self.hoisted(factor, roots, lines, piece)
            else:
                lines.append(f"copyto({piece}, {self.hoisted(factor, roots, lines)})")

    # -- settling ------------------------------------------------------------------------------------

    def _stack(self) -> str:
        lines = []
        for group in self.plan.groups:
            name = self.name(id(group), "L")
            for number, (left, _) in enumerate(group.lefts):
                if left is not None:
                    piece = f"{name}_{number}"
                    self.ring_views[piece] = (group, number)  # type: ignore[assignment]
                    lines.append(f"    copyto({piece}[k], {self.ref(operand_ref(self.plan, left))})")
        return "\n".join(["def stack(k):", *(lines or ["    pass"])])

    # -- binding -------------------------------------------------------------------------------------

    def bind(self, rings: Rings) -> Bound:
        """The program over the arrays of `rings`."""
        space = dict(self.space)
        for name, (shape, dtype) in self.buffers.items():
            space[name] = aligned(shape, dtype)
        for name, (buffer, views) in self.work_views.items():
            space[name] = viewed(space[buffer], views)
        space.update((name, Turned()) for name in self.turning)
        for name in self.by_place:
            space[name] = rings.lists.setdefault((self.names_key(name)), [None] * rings.capacity)
        for name, (owner, *views) in self.ring_views.items():
            if isinstance(owner, Group):
                ring = rings.group(owner).lefts[views[0]]
                space[name] = list(ring)
            else:
                ring = rings.of(owner, self.plan)
                space[name] = [viewed(ring[k, ...], views[0]) for k in range(rings.capacity)]
        exec(self.code, space)
        return Bound(self, space, rings)

    def names_key(self, name: str) -> Any:
        """What a list by place is called across programs: by the expression that fills it."""
        return self.by_place[name]


class Bound:
    """A program over the rings of one tape."""

    def __init__(self, program: NumpyProgram, space: dict[str, Any], rings: Rings) -> None:
        self.program, self.rings = program, rings
        plan = program.plan
        self.hoist: Callable[[int, Any], None] = space["hoist"]
        self.sweep: Callable[..., None] = space["sweep"]
        self.stack: Callable[[int], None] = space["stack"]
        self.entering, self.leaving = program.entering, program.leaving
        self.totals = {slot: space[program.name(value, "A")] for slot, value in plan.totals.items()}
        self.groups = [(rings.group(group), group) for group in plan.groups]
        self.leaf_slots = program.leaf_order
        self.bare = plan.bare
        # Where the cotangents that leave a segment go: each joint of the window has its own array.
        stacked = [rings.joint(n, plan.leaving[n].shape, plan.leaving[n].dtype) for n in self.leaving]
        self.joints: tuple[Any, ...] = tuple([array[p, ...] for p in range(len(array))] for array in stacked)
        self.stacked = stacked
        self._back: dict[tuple[int, int], Any] = {}

    def back(self, place: int, count: int) -> Any:
        """`count` places from `place` backwards, as `sweep` takes them."""
        places = self._back.get((place, count))
        if places is None:
            capacity = self.rings.capacity
            places = self._back[place, count] = [(place - i) % capacity for i in range(count)]
        return places

    def leaves(self) -> list[Any]:
        """Today's arrays of the parameters that the sweep reads."""
        return [LEAVES[slot]._array for slot in self.leaf_slots]


def operand_ref(plan: Plan, node: Node) -> Ref:
    """A node that depends on no cotangent, as the plan holds it."""
    views: list[Any] = []
    while node.kind == "view":
        views.append(node.detail)
        (node,) = node.inputs
    return Ref(plan.values[node], tuple((m, a) for m, a in reversed(views)))


def assign_buffers(steps: Sequence[Step]) -> dict[Value, str]:
    """Work values to buffers: one whose last reader has run is used again."""
    last: dict[Value, int] = {}
    for i, step in enumerate(steps):
        for value in values_of(step):
            last[value] = i
    free: dict[Any, list[str]] = {}
    assigned: dict[Value, str] = {}
    numbers = itertools.count()
    for i, step in enumerate(steps):
        dest = step.dest.value if isinstance(step.dest, Ref) else None
        if dest is not None and dest.place == "work" and dest not in assigned:
            pool = free.setdefault((dest.shape, np.dtype(dest.dtype)), [])
            assigned[dest] = pool.pop() if pool else f"w{next(numbers)}"
        for value in set(values_of(step)):
            if value in assigned and last[value] == i:
                free.setdefault((value.shape, np.dtype(value.dtype)), []).append(assigned[value])
    return assigned


def values_of(step: Step) -> list[Value]:
    """Every value that a step reads or writes."""
    refs = [step.dest, *step.operands]
    flat = itertools.chain(
        *((r[0], r[2]) if isinstance(r, tuple) and not isinstance(r, Ref) else (r,) for r in refs)
    )
    found = [r.value if isinstance(r, Ref) else r for r in flat if r is not None]
    made = [v.key[0] for v in found if v.place == "returned"]
    return [*found, *made, *(borrowed for v in made for borrowed in v.borrowed)]


def viewed(array: Any, views: Any) -> Any:
    for method, arguments in views:
        array = VIEWS[method](array, *arguments)
    return array


def lasts(shape: Any, views: Any) -> bool:
    """Whether views of an array are made once: a reshape behind a transpose copies, and is made where it is read."""
    array = np.empty(shape, np.int8)
    return not array.size or np.may_share_memory(array, viewed(array, views))


def inline(expression: str, views: Any) -> str:
    """The expression of a view."""
    for method, arguments in views:
        if method == "getitem":
            index = arguments[0] if isinstance(arguments[0], tuple) else (arguments[0],)
            index = index if any(part is Ellipsis for part in index) else (*index, Ellipsis)
            expression = f"{expression}[{index_source(index, [])}]"
        elif method == "broadcast_to":
            expression = f"broadcast_to({expression}, {arguments[0]})"
        else:
            expression = f"{expression}.{method}({arguments[0]})"
    return expression


def index_source(index: Any, arrays: Sequence[str]) -> str:
    """A basic index as source, with `arrays` where the index is marked."""
    if isinstance(index, tuple) and len(index) == 2 and index[0] == "array":
        return arrays[index[1]]
    if isinstance(index, tuple):
        return "(" + "".join(f"{index_source(part, arrays)}, " for part in index) + ")"
    if isinstance(index, slice):
        return "slice(None)" if index == slice(None) else f"slice({index.start}, {index.stop}, {index.step})"
    return "Ellipsis" if index is Ellipsis else repr(index)
