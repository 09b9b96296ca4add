"""Array statements as loops over elements, fused: what NumPy does in twenty passes is one.

A `Loops` collects statements (`dest = a * b + c` on arrays of static shapes, sums, matrix products), and
writes them down as Python for Numba. Elementwise statements over one shape become one loop if no element of
one needs another element of the other; what lives only inside such a loop is a scalar. An array is a `View`:
elements of a block of memory (`blocks.py`), at strides that are known when the source is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ..types import Shape
from .trace import VIEWS

VARIABLES = ("j", "r", "q", "u", "v", "x", "y")  # of loops, the innermost first
SUPPORTED = frozenset("?bhilqBHILQfd")  # type characters
# Rows up to which products are loops of this program's own: BLAS is faster from two on (bench/products.py).
FEW_ROWS = 1
# Rows up to which W @ dzᵀ, copied back, is faster in BLAS than dz @ Wᵀ (bench/products.py).
NARROW = 64

SYMBOLS = {
    "add": "{} + {}", "subtract": "{} - {}", "multiply": "{} * {}", "divide": "{} / {}", "negative": "-{}",
    "positive": "{}", "greater": "{} > {}", "greater_equal": "{} >= {}", "less": "{} < {}",
    "less_equal": "{} <= {}", "equal": "{} == {}", "not_equal": "{} != {}",
}  # fmt: skip
# Functions that Numba has for numbers as NumPy has them, NaN and infinity included; the slow ones a call each.
EXACT = frozenset({
    "absolute", "fabs", "sign", "sqrt", "square", "reciprocal", "maximum", "minimum", "fmax", "fmin", "floor", "ceil",
    "trunc", "rint", "logical_and", "logical_or", "logical_not", "logical_xor", "isnan", "isfinite", "isinf", "copysign",
})  # fmt: skip
SLOW = frozenset({
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2",
    "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "power", "hypot", "logaddexp",
})  # fmt: skip
FUNCTIONS = EXACT | SLOW


class Refused(Exception):
    """The program has something that is not made into loops: NumPy serves."""


@dataclass(eq=False)
class Memory:
    """A block: what it is called, how many elements it has at each `place` (an expression), and where it comes from.

    `scratch`: nobody outside of this function reads it.
    """

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    place: str = ""
    scratch: bool = False
    source: tuple[Any, ...] = ("work",)
    elements: Any = None  # one byte for each element, never touched: addresses to compute with

    def __post_init__(self) -> None:
        self.dtype = np.dtype(self.dtype)
        if self.dtype.char not in SUPPORTED or not self.dtype.isnative:
            raise Refused(f"arrays of {self.dtype}")
        self.elements = np.empty(self.shape, np.int8)
        if not self.elements.size:
            raise Refused("an array without elements")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def whole(self) -> View:
        return View(self, self.elements)


class View:
    """Some elements of a memory, in an order: an array. `at`: the same elements of `memory.elements`."""

    def __init__(self, memory: Memory, at: Any) -> None:
        assert isinstance(at, np.ndarray)
        self.memory, self.at = memory, at
        self.shape: Shape = at.shape
        self.dtype = memory.dtype

    @property
    def offset(self) -> int:
        return self.at.__array_interface__["data"][0] - self.memory.elements.__array_interface__["data"][0]  # type: ignore[no-any-return]

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(0 if n == 1 else s for n, s in zip(self.at.shape, self.at.strides, strict=True))

    def seen(self, method: str, arguments: Any) -> View | None:
        """This through a view; None if that takes a copy."""
        if method == "getitem":
            return self.part(*arguments)
        made = VIEWS[method](self.at, *arguments)
        return View(self.memory, made) if np.may_share_memory(made, self.memory.elements) else None

    def part(self, index: Any) -> View:
        """This at a basic index."""
        parts = index if isinstance(index, tuple) else (index,)
        # With an ellipsis one element, too, is an array.
        whole = parts if any(part is Ellipsis for part in parts) else (*parts, Ellipsis)
        return View(self.memory, self.at[whole])

    def spread(self, shape: Shape) -> View:
        return self if self.shape == shape else View(self.memory, np.broadcast_to(self.at, shape))

    def same(self, other: View) -> bool:
        """Whether both are the same elements in the same order (axes of length 1 apart)."""
        return (
            self.memory is other.memory
            and self.offset == other.offset
            and [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n > 1]
            == [(n, s) for n, s in zip(other.shape, other.strides, strict=True) if n > 1]
        )

    def overlaps(self, other: View) -> bool:
        return self.memory is other.memory and bool(np.shares_memory(self.at, other.at))

    def element(self, *variables: str) -> str:
        """The expression of one element, by an index for each axis."""
        return f"{self.memory.name}[{self.index(zip(variables, self.strides, strict=True))}]"

    def index(self, steps: Iterable[tuple[str, int]]) -> str:
        parts = [self.memory.place] if self.memory.place else []
        parts += [v if s == 1 else f"{v} * {s}" for v, s in steps if s and v != "0"]
        if self.offset or not parts:
            parts.append(str(self.offset))
        return " + ".join(parts)


@dataclass
class Number:
    """An operand that is a number."""

    value: Any
    shape: Shape = ()
    dtype: Any = None


Operand = View | Number


@dataclass(eq=False)
class Assign:
    """`dest[...] = formula` for each element of `shape`; `formula` has a pair of braces for each operand."""

    dest: View
    formula: str
    operands: list[View]

    @property
    def shape(self) -> Shape:
        return tuple(n for n in self.dest.shape if n > 1)

    @property
    def writes(self) -> list[View]:
        return [self.dest]

    @property
    def reads(self) -> list[View]:
        return self.operands


@dataclass(eq=False)
class Block:
    """Lines that stand for themselves: a product, a sum."""

    lines: list[str]
    reads: list[View]
    writes: list[View]


@dataclass(eq=False)
class Loop:
    """Assignments that share a loop."""

    shape: Shape
    statements: list[Assign] = field(default_factory=list)

    @property
    def reads(self) -> list[View]:
        return [v for s in self.statements for v in s.reads]

    @property
    def writes(self) -> list[View]:
        return [s.dest for s in self.statements]

    def admits(self, statement: Assign) -> bool:
        """Whether `statement` may stand last in the loop: elements that it shares with others are at the same index."""
        if statement.shape != self.shape:
            return False
        touched = [(v, False) for v in self.reads] + [(v, True) for v in self.writes]
        for mine, i_write in [(v, False) for v in statement.reads] + [(statement.dest, True)]:
            for theirs, they_write in touched:
                if (i_write or they_write) and mine.overlaps(theirs) and not mine.same(theirs):
                    return False
        return True


def independent(a: Any, b: Any) -> bool:
    """Whether two statements may change places."""
    return not any(
        x.overlaps(y)
        for one, other in ((a.writes, [*b.reads, *b.writes]), (b.writes, a.reads))
        for x in one
        for y in other
    )


class Loops:
    """Statements in the order in which they are to take effect, and the memories that they use."""

    def __init__(self) -> None:
        self.statements: list[Assign | Block] = []
        self.memories: dict[str, Memory] = {}
        self.calls_blas = False
        self.functions = 0  # elements of which a function such as `exp` is computed
        self._scratch = 0

    # -- memory --------------------------------------------------------------------------------------

    def memory(self, name: str, shape: Shape, dtype: Any, **more: Any) -> Memory:
        """The memory called `name`."""
        if name not in self.memories:
            self.memories[name] = Memory(name, tuple(shape), dtype, **more)
        return self.memories[name]

    def scratch(self, shape: Shape, dtype: Any) -> View:
        self._scratch += 1
        return self.memory(f"h{self._scratch - 1}", shape, dtype, scratch=True).whole

    def seen(self, view: Operand, method: str, arguments: Any) -> Operand:
        """An operand through a view, copied where its elements do not lie at strides."""
        if isinstance(view, Number):
            return view
        made = view.seen(method, arguments)
        if made is None:
            copy = self.scratch(view.shape, view.dtype)
            self.copy(copy, view)
            made = copy.seen(method, arguments)
        assert made is not None
        return made

    # -- statements -----------------------------------------------------------------------------------

    def assign(self, dest: View, formula: str, operands: Sequence[View]) -> None:
        if len(dest.shape) > len(VARIABLES):
            raise Refused(f"{len(dest.shape)} axes")
        # A view of its own for each read: they are told apart by identity.
        reads = [View(v.memory, np.broadcast_to(v.at, dest.shape)) for v in operands]
        self.statements.append(Assign(dest, formula, reads))

    def copy(self, dest: View, value: Operand) -> None:
        formula, operands = cast("{}", [value], [dest.dtype])
        self.assign(dest, formula, operands)

    def ufunc(self, dest: View, name: str, operands: Sequence[Operand]) -> None:
        """A ufunc, or `where`, with NumPy's rules for dtypes."""
        if name == "where":
            formula, views = cast("({1} if {0} else {2})", operands, [np.dtype(bool), dest.dtype, dest.dtype])
            self.assign(dest, formula, views)
            return
        if name not in SYMBOLS and name not in FUNCTIONS:
            raise Refused(f"numpy.{name}")
        kinds = [type(o.value) if isinstance(o, Number) else o.dtype for o in operands]
        *dtypes, result = getattr(np, name).resolve_dtypes((*kinds, None))
        if name == "subtract" and dtypes[0].kind == "b":
            raise Refused("numpy.subtract of booleans")
        if name in SLOW:
            self.functions += dest.at.size
        symbol = SYMBOLS.get(name) or f"np.{name}({', '.join(['{}'] * len(operands))})"
        for i in range(len(operands)):
            symbol = symbol.replace("{}", f"{{{i}}}", 1)
        if result.kind == "b" and name in ("add", "multiply", "maximum", "minimum"):
            symbol = "({0} or {1})" if name in ("add", "maximum") else "({0} and {1})"
        formula, views = cast(symbol, operands, dtypes)
        self.assign(dest, formula, views)

    def combine(self, dest: View, terms: Sequence[tuple[Operand, float, Operand | None]]) -> None:
        """A sum of operands times numbers and factors."""
        pieces: list[str] = []
        operands: list[Operand] = []
        for ref, coefficient, factor in terms:
            piece = f"{{{len(operands)}}}"
            operands.append(ref)
            if factor is not None:
                piece += f" * {{{len(operands)}}}"
                operands.append(factor)
            if abs(coefficient) != 1.0:
                piece += f" * {{{len(operands)}}}"
                operands.append(Number(abs(coefficient)))
            sign = "-" if coefficient < 0 else "+"
            pieces.append(f" {sign} {piece}" if pieces else (f"-{piece}" if sign == "-" else piece))
        formula, views = cast("".join(pieces), operands, [dest.dtype] * len(operands))
        self.assign(dest, formula, views)

    def reduce(self, dest: View, name: str, axes: tuple[int, ...], value: View) -> None:
        """Sum, maximum or minimum over axes."""
        kept = [i for i in range(len(value.shape)) if i not in axes]
        target = dest.at.reshape([value.shape[i] for i in kept])
        if not np.may_share_memory(target, dest.memory.elements):
            raise Refused("a sum into a transposed array")
        total = View(dest.memory, target)
        first: Any = f"{number_type(dest.dtype)}(0)"
        if name != "sum":
            index = [slice(None) if i in kept else 0 for i in range(len(value.shape))]
            self.copy(total, value.part(tuple(index)))
        step = {"sum": "plus({0}, {1})", "max": "np.maximum({0}, {1})", "min": "np.minimum({0}, {1})"}[name]
        names = dict(zip(range(len(value.shape)), VARIABLES[::-1], strict=False))
        read = cast_one(value.element(*(names[i] for i in range(len(value.shape)))), value.dtype, dest.dtype)
        place = total.element(*(names[i] for i in kept))
        if len(value.shape) - 1 in axes:  # a scalar that sums up
            start = first if name == "sum" else place
            lines = [f"s = {start}"]
            lines += loops([(names[i], value.shape[i]) for i in axes], ["s = " + step.format("s", read)])
            lines = loops([(names[i], value.shape[i]) for i in kept], [*lines, f"{place} = s"])
        else:  # rows that are added up
            if name == "sum":
                self.assign(total, first, [])
            order = [*axes, *kept]
            lines = loops(
                [(names[i], value.shape[i]) for i in order], [f"{place} = " + step.format(place, read)]
            )
        self.statements.append(Block(lines, [value, total], [total]))

    def gather(self, dest: View, array: View, index: Any, arrays: Sequence[View]) -> None:
        """`dest = array[index]`."""
        variables, place, reads = self.places(array, index, arrays, dest.shape)
        lines = [*place, f"{dest.element(*variables)} = {self._element}"]
        self.statements.append(
            Block(loops(list(zip(variables, dest.shape, strict=True)), lines), [array, *reads], [dest])
        )

    def scatter(self, dest: View, value: Operand, index: Any, arrays: Sequence[View]) -> None:
        """`dest.at[index] += value`."""
        shape = indexed_shape(dest, index, arrays)
        variables, place, reads = self.places(dest, index, arrays, shape)
        if isinstance(value, Number):
            added = f"{number_type(dest.dtype)}({literal(value.value)})"
        else:
            value = value.spread(shape)
            added = cast_one(value.element(*variables), value.dtype, dest.dtype)
            reads = [*reads, value]
        lines = [*place, f"{self._element} += {added}"]
        self.statements.append(
            Block(loops(list(zip(variables, shape, strict=True)), lines), [dest, *reads], [dest])
        )

    def places(
        self, array: View, index: Any, arrays: Sequence[View], shape: Shape
    ) -> tuple[list[str], list[str], list[View]]:
        """Loop variables, the lines that look up positions, and what they read; `_element` is `array`'s element."""
        index = as_tuple(index)
        basic = tuple(slice(None) if is_mark(part) else part for part in index)
        if any(part is None or isinstance(part, int) for part in basic):
            raise Refused("an index of arrays and numbers")
        if Ellipsis in basic:
            at = basic.index(Ellipsis)
            missing = len(array.shape) - len(basic) + 1
            basic = (*basic[:at], *(slice(None),) * missing, *basic[at + 1 :])
            index = (*index[:at], *(slice(None),) * missing, *index[at + 1 :])
        marked = [axis for axis, part in enumerate(index) if is_mark(part)]
        if marked != list(range(marked[0], marked[0] + len(marked))):
            raise Refused("index arrays with slices between them")
        if any(a.dtype.kind not in "iu" for a in arrays):
            raise Refused("an index that is not of integers")
        base = array.part(basic)
        common = np.broadcast_shapes(*(a.shape for a in arrays))
        variables = list(VARIABLES[: len(shape)][::-1])
        inner = variables[marked[0] : marked[0] + len(common)]
        lines, names = [], []
        for number, axis in enumerate(marked):
            position = arrays[index[axis][1]].spread(common)
            name = f"at{number}"
            lines.append(f"{name} = int64({position.element(*inner)})")
            lines.append(f"if {name} < 0:")
            lines.append(f"    {name} += {array.shape[axis]}")
            names.append(name)
        outer = [*variables[: marked[0]], *names, *variables[marked[0] + len(common) :]]
        self._element = base.element(*outer)
        return variables, lines, list(arrays)

    # -- products -------------------------------------------------------------------------------------

    def matmul(self, dest: View, a: View, b: View) -> None:
        """`dest = a @ b`: by loops if `a` has few rows, else by BLAS."""
        if len({a.dtype, b.dtype, dest.dtype}) > 1 or a.dtype.kind != "f":
            raise Refused(f"a product of {a.dtype} and {b.dtype}")
        rows, k = a.shape
        columns = b.shape[1]
        if rows <= FEW_ROWS or min(*a.shape, *b.shape) == 1:
            lines = few_rows(dest, a, b)
            self.statements.append(Block(lines, [a, b], [dest]))
            return
        self.calls_blas = True
        a, b = self.strided(a), self.strided(b)
        target = dest
        turned = b.strides[0] == 1 and rows <= NARROW and a.strides[1] == 1
        if 1 not in dest.strides or (turned and not small(rows, k, columns)):
            across = self.scratch((dest.shape[1], dest.shape[0]), dest.dtype)
            target = View(across.memory, across.at.T)
        self.statements.append(Block(gemm_lines(target, a, b), [a, b], [target]))
        if target is not dest:
            self.copy(dest, target)

    def strided(self, view: View) -> View:
        """A matrix of which one axis is contiguous."""
        if 1 in view.strides and min(view.strides) > 0:
            return view
        copy = self.scratch(view.shape, view.dtype)
        self.copy(copy, view)
        return copy

    # -- source ---------------------------------------------------------------------------------------

    def fused(self) -> list[Loop | Block]:
        """The statements as loops. Each goes as far up as it may, to a loop that takes it."""
        made: list[Loop | Block] = []
        for statement in self.statements:
            home: Loop | None = None
            if isinstance(statement, Assign):
                for held in reversed(made):
                    if isinstance(held, Loop) and held.admits(statement):
                        home = held
                        break
                    if not independent(held, statement):
                        break
                if home is None:
                    home = Loop(statement.shape)
                    made.append(home)
                home.statements.append(statement)
            else:
                made.append(statement)
        return made

    def lines(self) -> list[str]:
        """The source of all statements."""
        groups = self.fused()
        self.kept: set[Memory] = {m for m in self.memories.values() if not m.scratch}
        forwarded: set[int] = set()
        for group in groups:
            if isinstance(group, Loop):
                forwarded |= group_forwards(group)
        for group in groups:
            self.kept.update(v.memory for v in group.reads if id(v) not in forwarded)
            if isinstance(group, Block):
                self.kept.update(v.memory for v in group.writes)
        lines: list[str] = []
        for group in groups:
            lines += group.lines if isinstance(group, Block) else self.loop_lines(group)
        return lines

    def loop_lines(self, loop: Loop) -> list[str]:
        sizes, indices = collapsed(loop)
        values: list[tuple[View, str]] = []
        body: list[str] = []
        names = VARIABLES[: len(sizes)][::-1]

        def element(view: View) -> str:
            return f"{view.memory.name}[{view.index(zip(names, indices[id(view)], strict=True))}]"

        def value(view: View) -> str:
            held = [name for written, name in values if written.same(view)]
            return held[-1] if held else element(view)

        for number, statement in enumerate(loop.statements):
            formula = statement.formula.format(*(value(v) for v in statement.operands))
            dest = statement.dest
            again = any(v.same(dest) for s in loop.statements[number + 1 :] for v in s.operands)
            if again or dest.memory not in self.kept:
                name = f"v{number}"
                body.append(f"{name} = {number_type(dest.dtype)}({formula})")
                values.append((dest, name))
                formula = name
            if dest.memory in self.kept:
                body.append(f"{element(dest)} = {formula}")
        return loops(list(zip(names, sizes, strict=True)), body)

    def used(self) -> list[Memory]:
        """The memories that the source names, after `lines`."""
        named = {v.memory for s in self.statements for v in (*s.reads, *s.writes)}
        return [m for m in self.memories.values() if m in named and m in self.kept]


def group_forwards(loop: Loop) -> set[int]:
    """Reads, by identity, of what an earlier statement of the same loop wrote."""
    found = set()
    written: list[View] = []
    for statement in loop.statements:
        found |= {id(v) for v in statement.operands if any(w.same(v) for w in written)}
        written.append(statement.dest)
    return found


def collapsed(loop: Loop) -> tuple[list[int], dict[int, list[int]]]:
    """The loop's lengths and each view's strides, axes that are one run of elements for all of them joined."""
    views = {id(v): v for s in loop.statements for v in (s.dest, *s.operands)}
    keep = [i for i, n in enumerate(loop.statements[0].dest.shape) if n > 1]
    strides: dict[int, list[int]] = {}
    for statement in loop.statements:
        keep = [i for i, n in enumerate(statement.dest.shape) if n > 1]
        for view in (statement.dest, *statement.operands):
            strides[id(view)] = [view.strides[i] for i in keep]
    sizes = list(loop.shape)
    at = len(sizes) - 2
    while at >= 0:
        if all(s[at] == s[at + 1] * sizes[at + 1] for s in strides.values()):
            sizes[at] *= sizes.pop(at + 1)
            for s in strides.values():
                s[at] = s.pop(at + 1)
        at -= 1
    assert set(views) == set(strides)
    return sizes, strides


def loops(axes: Sequence[tuple[str, int]], body: Sequence[str]) -> list[str]:
    """`body` inside a loop for each (variable, length)."""
    lines = []
    for depth, (variable, length) in enumerate(axes):
        lines.append("    " * depth + f"for {variable} in range({length}):")
    return lines + ["    " * len(axes) + line for line in body]


def few_rows(dest: View, a: View, b: View) -> list[str]:
    """A product as loops, for `a` of few rows: along the axis in which `b` is contiguous."""
    rows, k = a.shape
    columns = b.shape[1]
    if b.strides[0] != 1 and b.strides[1] == 1:
        return few_rows_across(dest, a, b)
    kind = number_type(dest.dtype)
    lines: list[str] = []
    at_once = 4

    def block(start: str, count: int) -> list[str]:
        position = [start if not u else f"({start} + {u})" for u in range(count)]
        made = [f"s{u} = {kind}(0)" for u in range(count)]
        made.append(f"for u in range({k}):")
        made.append(f"    z = {a.element('r', 'u')}")
        made += [f"    s{u} = plus(s{u}, z * {b.element('u', position[u])})" for u in range(count)]
        return made + [f"{dest.element('r', position[u])} = s{u}" for u in range(count)]

    blocked = columns // at_once * at_once
    if blocked:
        lines += [f"for j in range(0, {blocked}, {at_once}):", *("    " + x for x in block("j", at_once))]
    if blocked < columns:
        lines += [f"for j in range({blocked}, {columns}):", *("    " + x for x in block("j", 1))]
    return loops([("r", rows)], lines)


def few_rows_across(dest: View, a: View, b: View) -> list[str]:
    """The same where `b`'s rows are contiguous: dest's row is loaded and stored once for eight of them."""
    rows, k = a.shape
    columns = b.shape[1]
    at_once = 8
    kind = number_type(dest.dtype)
    place = dest.element("r", "j")
    lines = [f"for j in range({columns}):", f"    {place} = {kind}(0)"]

    def block(start: str, count: int) -> list[str]:
        position = [start if not u else f"({start} + {u})" for u in range(count)]
        made = [f"z{u} = {a.element('r', position[u])}" for u in range(count)]
        sums = " + ".join(f"z{u} * {b.element(position[u], 'j')}" for u in range(count))
        return [*made, f"for j in range({columns}):", f"    {place} += {sums}"]

    blocked = k // at_once * at_once
    if blocked:
        lines += [f"for u in range(0, {blocked}, {at_once}):", *("    " + x for x in block("u", at_once))]
    if blocked < k:
        lines += [f"for u in range({blocked}, {k}):", *("    " + x for x in block("u", 1))]
    return loops([("r", rows)], lines)


def gemm_lines(dest: View, a: View, b: View) -> list[str]:
    """Calls of BLAS, which counts its matrices column by column: c = op(first) op(second), in pieces of c's rows."""
    k = a.shape[1]
    if dest.strides[1] == 1:  # destᵀ = bᵀ aᵀ
        first, second, plain = b, a, 1
        m, n, leading, step = dest.shape[1], dest.shape[0], dest.strides[0], b.strides[1]
    else:
        first, second, plain = a, b, 0
        m, n, leading, step = dest.shape[0], dest.shape[1], dest.strides[1], a.strides[0]
    letters = ["N" if view.strides[plain] == 1 else "T" for view in (first, second)]

    def call(size: int, start: str) -> str:
        at = first.index([(start, step)])
        arguments = [f"blas_{number_type(dest.dtype)}", *letters, size, n, k]
        arguments += [first.memory.name, at, max(first.strides)]
        arguments += [second.memory.name, second.index(()), max(second.strides)]
        arguments += [dest.memory.name, dest.index([(start, 1)]), leading]
        return f"gemm({', '.join(map(str, arguments))})"

    size = piece(m, n, k, letters) or m
    whole = m // size * size
    if size == m:
        return [call(m, "0")]
    lines = [f"for j in range(0, {whole}, {size}):", f"    {call(size, 'j')}"]
    return [*lines, call(m - whole, str(whole))] if whole < m else lines


def piece(m: int, n: int, k: int, letters: list[str]) -> int:
    """How many of BLAS's m rows to compute at a time; 0 for no advantage in pieces.

    OpenBLAS has kernels for small matrices, which copy nothing, up to m n k = 10⁶ and, for a transposed first
    matrix, m n = 1200. Just above, a product takes several times as long: 87 µs for 4 rows of 1024 times
    1024 x 256, and 13 for 3 rows. In pieces below that 4 rows take 14 µs, and 16 rows 60 instead of 98
    (bench/products.py).
    """
    if letters[1] != "N" or not small_kernels():
        return 0
    turned = letters[0] == "T"
    most = min(1200 if turned else m * n, 1_000_000 // k) // n
    if most >= m:
        return 0
    unit = 8 if turned else 32
    return most // unit * unit


def small(rows: int, k: int, columns: int) -> bool:
    """Whether a @ wᵀ is for BLAS's kernels for small matrices, whole or in pieces."""
    if not small_kernels():
        return False
    return (columns * rows <= 1200 and columns * rows * k <= 1_000_000) or piece(
        columns, rows, k, ["T", "N"]
    ) > 0


@lru_cache(maxsize=1)
def small_kernels() -> bool:
    """Whether OpenBLAS has its kernels for small matrices on this machine: where there is AVX-512."""
    from llvmlite.binding import get_host_cpu_features  # type: ignore[import-untyped]

    return bool(get_host_cpu_features().get("avx512f"))


# -- numbers and dtypes ----------------------------------------------------------------------------------


def number_type(dtype: Any) -> str:
    """What Numba calls numbers of a dtype."""
    return "boolean" if dtype.kind == "b" else f"{dtype.name}"


def literal(number: Any) -> str:
    """A Python number as source."""
    if isinstance(number, float) and not math.isfinite(number):
        return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
    return repr(number)


def cast_one(expression: str, came: Any, wanted: Any) -> str:
    return expression if came == wanted else f"{number_type(wanted)}({expression})"


def cast(formula: str, operands: Sequence[Operand], dtypes: Sequence[Any]) -> tuple[str, list[View]]:
    """The formula with its numbers written in, and its operands converted; and the views among them."""
    views: list[View] = []
    written: list[str] = []
    for operand, dtype in zip(operands, dtypes, strict=True):
        if isinstance(operand, Number):
            written.append(f"{number_type(dtype)}({literal(operand.value)})")
        else:
            written.append(cast_one(f"{{{len(views)}}}", operand.dtype, dtype))
            views.append(operand)
    return formula.format(*written), views


def is_mark(part: Any) -> bool:
    """Whether a part of an index stands for an array."""
    return isinstance(part, tuple) and len(part) == 2 and part[0] == "array"


def as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) and not is_mark(index) else (index,)


def indexed_shape(array: View, index: Any, arrays: Sequence[View]) -> Shape:
    """The shape of `array[index]`."""
    parts = [np.zeros(arrays[p[1]].shape, np.intp) if is_mark(p) else p for p in as_tuple(index)]
    return array.at[tuple(parts)].shape  # type: ignore[no-any-return]
