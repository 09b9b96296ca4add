"""A plan as two compiled functions: a whole run of segments is one call, and no elementwise pass stands alone.

    hoist(k, e)                                     once for a segment with entries `e`: its factors, what the
                                                    settling products need of it, and its residuals, into place
                                                    `k` of the rings
    sweep(ks, p, leaves, ins, joints, entries)      back over the segments in places `ks`, newest first; what
                                                    leaves the i-th of them goes to row p + i of `joints`

Both are Python for Numba, made of the same plan as `emit_numpy.py`: a person can read `source`, and Numba
compiles it once and keeps it on disk. Names as there: F a ring of factors, R residuals by place, W a
parameter, c a cotangent that enters, n one that leaves, D a ring of cotangents for settling, L the ring of
what they are multiplied with, A a sum over the sweep, r a residual, w and h what is worked with.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..core.variable import LEAVES
from ..errors import ShapeError, describe
from ..kernels.cache import cache_folder, write
from ..types import Array, Shape
from .loops import Loops, Memory, Number, Operand, Refused, View, literal, loops, number_type
from .plan import Plan, Ref, Step, Value
from .rings import Rings, aligned
from .trace import Node, view_shape

# Residuals of at most so many bytes are copied when a segment is hoisted; larger ones are read where they are.
COPIED = 4096


class NumbaProgram:
    """The source of a plan for Numba. Arguments as `NumpyProgram`. Each function is compiled when it is first called.

    `compiled_in`: seconds that compiling has taken, or loading if `from_cache` (None before). Raises Refused if something in the
    plan is not made into loops.
    """

    def __init__(
        self, plan: Plan, where: dict[Node, tuple[int, ...]], recorded: bool, feeds: dict[int, int] | None
    ) -> None:
        self.plan, self.where, self.recorded, self.feeds = plan, where, recorded, feeds
        self.entering, self.leaving = sorted(plan.entering), sorted(plan.leaving)
        self.leaf_order: list[int] = []
        self.names: dict[Any, str] = {}
        self.copied: dict[str, tuple[Node, Any]] = {}  # rings of residuals seen through views, by name
        self.held: dict[str, Node] = {}  # residuals that are read where they are, by name
        self.residuals: list[Node] = []  # what hoist reads of the entries
        self.sweep_loops, self.hoist_loops = Loops(), Loops()
        self.done: dict[Node, Operand] = {}
        self.compiled_in = 0.0
        self.from_cache: bool | None = None
        self.sweep_source = self._sweep()
        self.hoist_source = self._hoist()
        self.source = "\n\n".join([self.hoist_source, self.sweep_source])

    def name(self, value: Any, letter: str) -> str:
        if value not in self.names:
            self.names[value] = f"{letter}{sum(n.startswith(letter) for n in self.names.values())}"
        return self.names[value]

    # -- the sweep -----------------------------------------------------------------------------------

    def _sweep(self) -> str:
        for step in self.plan.steps:
            getattr(self, f"_{step.kind}", self._refuse)(step)
        body = self.sweep_loops.lines()
        memories = self.sweep_loops.used()
        entry = [line for e in self.entering if self.feeds and e in self.feeds for line in self.fed(e)]
        lines = ["def sweep(t, arrays, p, count):", *header(self.sweep_loops, memories)]
        inside = ["k = word(ks, i)", *by_place(memories), *entry, *body]
        lines += ["    ks = word(given, 0)", "    for i in range(count):", *("        " + x for x in inside)]
        return "\n".join([*lines, "    return 0"])

    def fed(self, entering: int) -> list[str]:
        """Lines that fetch what enters: at the first segment from outside, then from the joint before."""
        name = f"c{entering}"
        memory = self.sweep_loops.memories.get(name)
        if memory is None:
            return []
        feed = self.leaving.index(self.feeds[entering])  # type: ignore[index]
        left = self.plan.leaving[self.feeds[entering]]  # type: ignore[index]
        if (left.shape, np.dtype(left.dtype)) != (memory.shape, memory.dtype):
            raise Refused("a cotangent that leaves with another dtype than it enters the next segment with")
        start = f"word(joints, {feed}) + (p + i - 1) * {memory.size * memory.dtype.itemsize}"
        outside = f"word(given, {1 + self.entering.index(entering)})"
        return [
            f"before = block({outside} if i == 0 else {start}, {number_type(memory.dtype)!r}, -1, 0)",
            *loops([("j", memory.size)], [f"{name}[j] = before[j]"]),
        ]

    def ref(self, ref: Ref) -> Operand:
        """What a step reads or writes."""
        value, views = ref
        if value.place in ("raw", "leaf") and (value.place == "raw" or self.recorded):
            return self.residual(value, views)
        if value.place == "literal":
            return viewed(self.sweep_loops, self.literal(self.sweep_loops, value.key), views)
        return viewed(self.sweep_loops, self.memory(value).whole, views)

    def memory(self, value: Value) -> Memory:
        """Where a value of the sweep lies."""
        memory, shape, dtype, size = self.sweep_loops.memory, value.shape, value.dtype, size_of(value.shape)
        if value.place == "entering":
            fed = self.feeds and value.key in self.feeds
            source = ("work",) if fed else ("given", 1 + self.entering.index(value.key))
            return memory(f"c{value.key}", shape, dtype, source=source)
        if value.place == "leaving":
            source = ("joint", self.leaving.index(value.key))
            return memory(f"n{value.key}", shape, dtype, place=times("(p + i)", size), source=source)
        if value.place == "leaf":
            slot = value.key.detail
            if slot not in self.leaf_order:
                self.leaf_order.append(slot)
            number = self.leaf_order.index(slot)
            source = ("given", 1 + len(self.entering) + number)
            return memory(f"W{number}", shape, dtype, source=source)
        if value.place in ("factor", "delta"):
            name = self.name(value, "F" if value.place == "factor" else "D")
            return memory(name, shape, dtype, place=times("k", size), source=("ring", value))
        if value.place == "total":
            return memory(self.name(value, "A"), shape, dtype, source=("total", value))
        if value.place == "work":
            return memory(self.name(value, "w"), shape, dtype, scratch=True, source=("work",))
        raise Refused(f"a value in place {value.place!r}")

    def residual(self, value: Value, views: Any) -> Operand:
        """A residual: a copy by place if it is small, else the array itself."""
        node, shape = value.key, value.shape
        for method, arguments in views:
            shape = view_shape(shape, method, arguments)
        if value.place == "raw" and size_of(shape) * np.dtype(value.dtype).itemsize <= COPIED:
            name = self.name((node, repr(views)), "R")
            self.copied[name] = (node, views)
            source = ("copied", (node, repr(views)), shape)
            place = times("k", size_of(shape))
            return self.sweep_loops.memory(name, shape, value.dtype, place=place, source=source).whole
        name = self.name(node, "R")
        number = [*self.held, name].index(name)
        self.held[name] = node
        memory = self.sweep_loops.memory(name, value.shape, value.dtype, source=("held", number))
        return viewed(self.sweep_loops, memory.whole, views)

    def literal(self, made: Loops, node: Node) -> Operand:
        """A number or an array of the program's own."""
        if node.kind == "number":
            return Number(node.detail[1])
        array = np.zeros(node.shape, node.dtype) if node.kind == "zeros" else node.detail.array
        name = self.name(node, "K")
        return made.memory(name, node.shape, node.dtype, source=("literal", array)).whole

    def dest(self, ref: Ref) -> View:
        view = self.ref(ref)
        assert isinstance(view, View)
        return view

    def _refuse(self, step: Step) -> None:
        raise Refused(f"a step of kind {step.kind!r}")

    def _combine(self, step: Step) -> None:
        dest = self.dest(step.dest)
        terms = [(self.ref(r), c, None if f is None else self.ref(f)) for r, c, f in step.operands]
        views = step.dest.views
        pieces = 1
        if views and views[0][0] == "reshape" and len(views[0][1][0]) > len(step.dest.value.shape):
            pieces = dest.shape[
                -2
            ]  # side by side, and the terms the same for each: written out, to share loops
        for piece in range(pieces):
            at = (Ellipsis, piece, slice(None))
            part, parts = dest, terms
            if pieces > 1:
                part = dest.part(at)
                parts = [(slab(r, dest.shape, at), c, f and slab(f, dest.shape, at)) for r, c, f in terms]
            self.sweep_loops.combine(part, parts)

    def _zero(self, step: Step) -> None:
        self.sweep_loops.copy(self.dest(step.dest), Number(0))

    def _add(self, step: Step) -> None:
        dest = self.dest(step.dest)
        self.sweep_loops.combine(dest, [(dest, 1.0, None), (self.ref(step.operands[0]), 1.0, None)])

    def _matmul(self, step: Step) -> None:
        a, b = (as_view(self.sweep_loops, self.ref(r)) for r in step.operands)
        self.sweep_loops.matmul(self.dest(step.dest), a, b)

    def _reduce(self, step: Step) -> None:
        name, axes, _ = step.detail
        value = as_view(self.sweep_loops, self.ref(step.operands[0]))
        self.sweep_loops.reduce(self.dest(step.dest), name, axes, value)

    def _ufunc(self, step: Step) -> None:
        self.sweep_loops.ufunc(self.dest(step.dest), step.detail, [self.ref(r) for r in step.operands])

    def _scatter(self, step: Step) -> None:
        value, *arrays = (self.ref(r) for r in step.operands)
        self.sweep_loops.scatter(
            self.dest(step.dest), value, step.detail, [as_view(self.sweep_loops, a) for a in arrays]
        )

    def _node(self, step: Step) -> None:
        operands = [self.ref(r) for r in step.operands]
        compute(self.sweep_loops, step.detail, operands, self.dest(step.dest))

    # -- hoisting ------------------------------------------------------------------------------------

    def _hoist(self) -> str:
        """Factors in the order in which they need each other; then copies of residuals."""
        made = self.hoist_loops
        factors = [v for v in self.plan.values.values() if v.place == "factor"]
        self.roots = {v.key: v for v in factors}
        for factor in factors:
            self.hoisted(factor.key)
        for number, group in enumerate(self.plan.groups):
            for i, (left, width) in enumerate(group.lefts):
                if left is not None:
                    shape, place = (group.rows, width), times("k", group.rows * width)
                    name, source = f"L{number}_{i}", ("left", number, i)
                    ring = made.memory(name, shape, group.delta.dtype, place=place, source=source)
                    made.copy(ring.whole, self.hoisted(left))
        for copied, (node, views) in self.copied.items():
            value = viewed(made, self.hoisted(node), views)
            place = times("k", size_of(value.shape))
            origin = ("copied", (node, repr(views)), value.shape)
            held = made.memory(copied, value.shape, node.dtype, place=place, source=origin)
            made.copy(held.whole, value)
        for node in self.held.values():
            self.hoisted(node)
        body = made.lines()
        memories = made.used()
        lines = ["def hoist(t, arrays, k):", *header(made, memories)]
        lines += [
            f"    set_word(word(places, {number}), k, word(given, {self.residuals.index(node)}))"
            for number, node in enumerate(self.held.values())
        ]
        return "\n".join([*lines, *("    " + line for line in body), "    return 0"])

    def hoisted(self, node: Node) -> Operand:
        """A node that depends on no cotangent; statements that compute it are added before."""
        held = self.done.get(node)
        if held is None:
            held = self.done[node] = self.hoist_node(node)
        return held

    def hoist_node(self, node: Node) -> Operand:
        made = self.hoist_loops
        if node.kind in ("residual", "leaf"):
            number = len(self.residuals)
            self.residuals.append(node)
            return made.memory(f"r{number}", node.shape, node.dtype, source=("given", number)).whole
        if node.kind in ("number", "array", "zeros"):
            return self.literal(made, node)
        if node.kind == "view":
            method, arguments = node.detail
            return made.seen(as_view(made, self.hoisted(node.inputs[0])), method, arguments)
        root = self.roots.get(node)
        if root is None:
            dest = made.scratch(node.shape, node.dtype)
        else:
            place = times("k", node.size)
            dest = made.memory(
                self.name(root, "F"), node.shape, node.dtype, place=place, source=("ring", root)
            ).whole
        operands = [self.hoisted(n) for n in node.inputs]
        if node.kind == "assemble":
            for index, piece in zip(node.detail, operands, strict=True):
                made.copy(dest.part(index), piece)
        else:
            compute(made, node, operands, dest)
        return dest

    # -- compiling -----------------------------------------------------------------------------------

    def function(self, name: str) -> Callable[..., int]:
        """The compiled `hoist` or `sweep`."""
        with COMPILING:
            start = time.perf_counter()
            made, hit = compiled(name, self.hoist_source if name == "hoist" else self.sweep_source)
            self.compiled_in += time.perf_counter() - start
            self.from_cache = hit if self.from_cache is None else self.from_cache and hit
        return made

    def bind(self, rings: Rings) -> NumbaBound:
        """The program over the arrays of `rings`."""
        return NumbaBound(self, rings)


# -- nodes ---------------------------------------------------------------------------------------------------


def compute(made: Loops, node: Node, operands: Sequence[Operand], dest: View) -> None:
    """Statements that compute a node from its inputs, into `dest`."""
    kind, detail = node.kind, node.detail
    if kind == "ufunc":
        return made.ufunc(dest, detail, operands)
    if kind == "astype":
        return made.copy(dest, operands[0])
    if kind == "view":
        method, arguments = detail
        return made.copy(dest, made.seen(operands[0], method, arguments))
    if kind == "put":
        made.copy(dest, operands[0])
        return made.copy(dest.part(detail), operands[1])
    if kind == "join":
        start = 0
        for part in operands:
            index = (*(slice(None),) * detail, slice(start, start + part.shape[detail]))
            made.copy(dest.part(index), part)
            start += part.shape[detail]
        return None
    views = [as_view(made, operand) for operand in operands]
    if kind == "reduce":
        return made.reduce(dest, detail[0], detail[1], views[0])
    if kind == "gather":
        return made.gather(dest, views[0], detail, views[1:])
    if kind == "scatter":
        made.copy(dest, views[0])
        return made.scatter(dest, views[1], detail, views[2:])
    if kind == "matmul" and all(len(v.shape) == 2 for v in views):
        return made.matmul(dest, *views)
    raise Refused(f"a node of kind {kind!r}")


def as_view(made: Loops, operand: Operand) -> View:
    """An operand as an array."""
    if isinstance(operand, View):
        return operand
    array = np.asarray(operand.value)
    made_here = made.memory(f"K_{array.dtype.name}_{literal(operand.value)}".replace("-", "m").replace(".", "_"),
                            (), array.dtype, source=("literal", array))  # fmt: skip
    return made_here.whole


def viewed(made: Loops, operand: Operand, views: Any) -> Operand:
    for method, arguments in views:
        operand = made.seen(operand, method, arguments)
    return operand


def slab(operand: Operand, shape: Shape, index: Any) -> Operand:
    """The part of an operand, spread to `shape`, at an index."""
    return operand if isinstance(operand, Number) else operand.spread(shape).part(index)


def size_of(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def times(variable: str, size: int) -> str:
    return f"{variable} * {size}" if size != 1 else variable


# -- tables of addresses -----------------------------------------------------------------------------------------

# A compiled function takes the address of a table: of what it was given, of where that is found, of its
# joints, of its rings by place, of BLAS's products, and then of each memory that stays where it is.
GIVEN, PATHS, JOINTS, PLACES, SINGLE, DOUBLE, FIRST = range(7)


def header(made: Loops, memories: Sequence[Memory]) -> list[str]:
    """The first lines of a function: its blocks, from the table at `t`."""
    lines = [
        f"given, joints, places = word(t, {GIVEN}), word(t, {JOINTS}), word(t, {PLACES})",
        f"if arrays and collect(arrays, word(t, {PATHS}), given):",
        "    return 1",
    ]
    if made.calls_blas:
        lines.append(f"blas_float32, blas_float64 = word(t, {SINGLE}), word(t, {DOUBLE})")
    number = FIRST
    for scope, memory in enumerate(memories):
        if memory.source[0] == "held":
            continue
        if memory.source[0] == "given":
            address = f"word(given, {memory.source[1]})"
        elif memory.source[0] == "joint":
            address = f"word(joints, {memory.source[1]})"
        else:
            address = f"word(t, {number})"
            number += 1
        lines.append(block_line(memory, address, scope, len(memories)))
    return ["    " + line for line in lines]


def by_place(memories: Sequence[Memory]) -> list[str]:
    """The lines that look up the blocks which differ from place to place."""
    lines = []
    for scope, memory in enumerate(memories):
        if memory.source[0] == "held":
            lines.append(
                block_line(memory, f"word(word(places, {memory.source[1]}), k)", scope, len(memories))
            )
    return lines


def block_line(memory: Memory, address: str, scope: int, scopes: int) -> str:
    return f"{memory.name} = block({address}, {number_type(memory.dtype)!r}, {scope}, {scopes})"


def at_table(memories: Sequence[Memory]) -> list[Memory]:
    """The memories whose addresses stand in the table, in order."""
    return [m for m in memories if m.source[0] not in ("held", "given", "joint")]


@lru_cache(maxsize=1)
def reads_objects() -> bool:
    """Whether objects lie in memory as `collect` expects; where not, addresses are asked for one by one."""
    usual = (object.__basicsize__, list.__basicsize__, np.dtype(np.intp).itemsize) == (16, 40, 8)
    if sys.implementation.name != "cpython" or sys.byteorder != "little" or not usual:
        return False

    def words(thing: Any, *numbers: int, at: int | None = None) -> list[int]:
        start = id(thing) if at is None else at
        return [ctypes.c_int64.from_address(start + 8 * number).value for number in numbers]

    array, number = np.zeros((2, 3), np.float32), np.float64(1.5)
    inside = [array, (number, array)]
    kind, data, axes, lengths, dtype, flags = words(array, 1, 2, 3, 4, 7, 8)
    wanted = [id(np.ndarray), array.ctypes.data, 2, id(array.dtype), array.flags.num & 0xFFFF]
    found = [kind, data, axes & 0xFFFFFFFF, dtype, flags & 0xFFFF]
    return (
        found == wanted
        and words(None, 0, 1, at=lengths) == [2, 3]
        and words(None, 0, 1, at=words(inside, 3)[0]) == [id(array), id(inside[1])]
        and words(inside[1], tuple.__basicsize__ // 8) == [id(number)]
        and ctypes.c_double.from_address(id(number) + 16).value == 1.5
    )


def paths_table(arrays: Sequence[tuple[tuple[int, ...], Any, Shape | None]]) -> Array:
    """What `collect` is told of arrays: the path to each, its dtype and its shape (None for any of one axis)."""
    table = [len(arrays), id(np.ndarray), id(list), id(tuple), tuple.__basicsize__ // 8]
    for path, dtype, shape in arrays:
        dtype = np.dtype(dtype)
        axes = [-1] if shape is None else [len(shape), *shape]
        table += [len(path), *path, id(dtype), id(dtype.type), *axes]
    return np.array(table, np.int64)


class Table:
    """The addresses that a compiled function works with, and what keeps them valid."""

    def __init__(self, arrays: Sequence[tuple[tuple[int, ...], Any, Shape | None]]) -> None:
        self.arrays = arrays
        self.given = np.zeros(max(1, len(arrays)), np.int64)
        self.paths = paths_table(arrays)
        self.joints = np.zeros(1, np.int64)
        self.places = np.zeros(1, np.int64)
        self.held: list[Array] = []

    def fill(self, memories: Sequence[Array], blas: tuple[int, int]) -> None:
        self.held = list(memories)
        tables = [self.given, self.paths, self.joints, self.places]
        self.words = np.array([*map(address, tables), *blas, *map(address, memories)], np.int64)
        self.address = address(self.words)

    def give(self, root: Any) -> list[Array]:
        """What `collect` does, through Python; arrays that are not as expected are copied. Returns the arrays."""
        found = []
        for number, (path, dtype, shape) in enumerate(self.arrays):
            item = root
            for position in path:
                item = item[position]
            array = np.ascontiguousarray(item, dtype).reshape(np.shape(item))
            if shape is not None and array.shape != shape:
                raise ShapeError(
                    f"CapacitorTape: an array has another shape than when its program was made.\n"
                    f"  expected: {np.dtype(dtype)} {shape}      came: {describe(array)}"
                )
            found.append(array)
            self.given[number] = address(array)
        return found


def address(array: Array) -> int:
    return array.ctypes.data


# -- a program over the rings of one tape --------------------------------------------------------------------


class NumbaBound:
    """A program over the rings of one tape; the counterpart of `emit_numpy.Bound`.

    `hoist(k, e)`, `sweep(ks, p, leaves, ins, joints, entries=None)`: `ks` an int64 array of places, `ins` arrays in
    the order of `entering`, `joints` this object's, or arrays (rows, *shape) in the order of `leaving`.
    """

    def __init__(self, program: NumbaProgram, rings: Rings) -> None:
        self.program, self.rings = program, rings
        plan = self.plan = program.plan
        self.entering, self.leaving = program.entering, program.leaving
        self.bare = plan.bare
        self.leaf_slots = program.leaf_order
        self.leaving_kinds = [(plan.leaving[n].shape, plan.leaving[n].dtype) for n in self.leaving]
        self.groups = [(rings.group(group), group) for group in plan.groups]
        self.stacked = [joint_of(rings, n, plan.leaving[n]) for n in self.leaving]
        # By joint, as `emit_numpy.Bound` has them: rows of the same memory.
        self.joints: tuple[Any, ...] = tuple(
            [array[p, ...] for p in range(len(array))] for array in self.stacked
        )
        self._back: dict[tuple[int, int], Array] = {}
        self.totals = {slot: aligned(v.shape, v.dtype) for slot, v in plan.totals.items()}
        self.by_place = [np.zeros(rings.capacity, np.int64) for _ in program.held]
        # The arrays behind those addresses, which may be copies of this program's own.
        self.lists: list[list[Any]] = [[None] * rings.capacity for _ in program.held]
        self.hoist: Callable[[int, Any], None] = self._first_hoist
        self.sweep: Callable[..., None] = self._first_sweep

    def _first_hoist(self, k: int, e: Any) -> None:
        self.hoist = self.hoister()
        self.hoist(k, e)

    def _first_sweep(self, *arguments: Any) -> None:
        self.sweep = self.sweeper()
        self.sweep(*arguments)

    def stack(self, k: int) -> None:
        """Nothing is left to do: `hoist` fills the settling products' rings."""

    def back(self, place: int, count: int) -> Array:
        """`count` places from `place` backwards, as `sweep` takes them."""
        places = self._back.get((place, count))
        if places is None:
            capacity = self.rings.capacity
            places = np.mod(place - np.arange(count), capacity)
            self._back[place, count] = places
        return places

    def leaves(self) -> list[Any]:
        """Today's arrays of the parameters that the sweep reads."""
        return [LEAVES[slot]._array for slot in self.leaf_slots]

    def array(self, memory: Memory) -> Array:
        """The array that a block is."""
        kind, *detail = memory.source
        if kind == "ring":
            return self.rings.of(detail[0], self.plan)
        if kind == "copied":
            return self.rings.array(("copied", detail[0]), detail[1], memory.dtype)
        if kind == "left":
            ring: Array | None = self.rings.group(self.plan.groups[detail[0]]).lefts[detail[1]]
            assert ring is not None
            return ring
        if kind == "total":
            return self.totals[detail[0].key]
        made = aligned(memory.shape, memory.dtype)
        if kind == "literal":
            made[...] = detail[0]
        return made

    def table(self, made: Loops, arrays: Sequence[tuple[tuple[int, ...], Any, Shape | None]]) -> Table:
        table = Table(arrays)
        table.places = np.array([0, *map(address, self.by_place)], np.int64)[1:]
        table.joints = np.zeros(len(self.leaving) + 1, np.int64)
        table.fill([self.array(m) for m in at_table(made.used())], blas() if made.calls_blas else (0, 0))
        return table

    # -- calls ---------------------------------------------------------------------------------------

    def hoister(self) -> Callable[[int, Any], None]:
        program = self.program
        nodes = program.residuals
        table = self.table(program.hoist_loops, [(program.where[n], n.dtype, n.shape) for n in nodes])
        run, at = program.function("hoist"), table.address
        kept = [nodes.index(node) for node in program.held.values()]

        def slowly(k: int, e: Any) -> None:
            found = table.give(e)
            for held, number in zip(self.lists, kept, strict=True):
                held[k] = found[number]
            run(at, 0, k)

        lines = [
            f"    R{i}[k] = e{''.join(f'[{x}]' for x in program.where[n])}"
            for i, n in enumerate(program.held.values())
        ]
        call = "if run(at, id(e), k):" if reads_objects() else "if True:"
        source = "\n".join(["def hoist(k, e):", *lines, f"    {call}", "        slowly(k, e)"])
        space: dict[str, Any] = {f"R{i}": held for i, held in enumerate(self.lists)}
        space |= {"run": run, "at": at, "slowly": slowly}
        exec(compile(source, "<tapegrad hoist>", "exec"), space)
        self._hoist_table = table
        return space["hoist"]  # type: ignore[no-any-return]

    def sweeper(self) -> Callable[..., None]:
        plan, program = self.plan, self.program
        entering = [plan.entering[e] for e in self.entering]
        leaves = [
            next(v for v in plan.values.values() if v.place == "leaf" and v.key.detail == s)
            for s in self.leaf_slots
        ]
        arrays: list[tuple[tuple[int, ...], Any, Shape | None]] = [((0,), np.int64, None)]
        arrays += [((1, i), v.dtype, v.shape) for i, v in enumerate(entering)]
        arrays += [((2, i), v.dtype, v.shape) for i, v in enumerate(leaves)]
        table = self._sweep_table = self.table(program.sweep_loops, arrays)
        run, at, kinds = program.function("sweep"), table.address, self.leaving_kinds
        reads = reads_objects()
        known: Any = None
        rows = 0

        def point(joints: Any) -> None:
            """Note where the joints are."""
            nonlocal known, rows
            known = joints
            joints = self.stacked if joints is self.joints else joints
            for number, (joint, (shape, dtype)) in enumerate(zip(joints, kinds, strict=True)):
                assert joint.shape[1:] == shape and joint.dtype == dtype and joint.flags.c_contiguous
                table.joints[number] = address(joint)
            rows = min((len(joint) for joint in joints), default=sys.maxsize)

        def sweep(ks: Any, p: int, leaves: Any, ins: Any, joints: Any, entries: Any = None) -> None:
            if joints is not known:
                point(joints)
            count = len(ks)
            assert p + count <= rows
            arrays = (ks, ins, leaves)
            if not reads or run(at, id(arrays), p, count):
                kept = table.give(arrays)
                run(at, 0, p, count)
                del kept

        return sweep


def joint_of(rings: Rings, number: int, value: Value) -> Array:
    """Where the cotangents of value `number` from before a segment go, in the dtype in which they are computed."""
    held = rings.joint(number, value.shape, value.dtype)
    if held.dtype == value.dtype:
        return held
    return rings.array(("joint", number, np.dtype(value.dtype)), value.shape, value.dtype)


# -- compiling -----------------------------------------------------------------------------------------------

COMPILING = threading.Lock()
COMPILED: dict[str, tuple[Any, Callable[..., int]]] = {}  # by the digest of a function's source


def compiled(name: str, source: str) -> tuple[Callable[..., int], bool]:
    """The function `name` of a program's source, and whether it was there already, in this process or on the disk."""
    import numba

    from . import blocks

    base = f"{numba.__version__}\n{Path(blocks.__file__).read_text()}\n{source}"
    digest = hashlib.sha256(base.encode()).hexdigest()[:32]
    if digest in COMPILED:
        return COMPILED[digest][1], True
    unique = f"{name}_{digest}"  # in one process, where compiled functions are told apart by their names
    text = source.replace(f"def {name}(", f"def {unique}(", 1) + "\n"
    names = ("block", "word", "set_word", "plus", "gemm", "collect", "N", "T")
    space = {name: getattr(blocks, name) for name in names} | {name: getattr(numba, name) for name in NUMBERS}
    # What is kept on the disk names the module of its function, which has to be there when it is loaded.
    space |= {"np": np, "inf": np.inf, "nan": np.nan, "__name__": blocks.__name__}
    path = kept_source(f"{unique}.py", text)
    exec(compile(text, str(path or "<tapegrad program>"), "exec"), space)
    function = space[unique]
    signature = numba.int64(*[numba.int64] * function.__code__.co_argcount)
    options: dict[str, Any] = {**blocks.OPTIONS, "cache": path is not None}
    dispatcher = numba.njit(**options)(function)
    dispatcher.compile(signature)
    # The function itself: choosing by the types of arguments, which are whole numbers, costs 0.1 µs.
    made = dispatcher.overloads[signature.args].entry_point
    COMPILED[digest] = dispatcher, made
    return made, sum(dispatcher.stats.cache_hits.values()) > 0


NUMBERS = (
    "boolean", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64",
)  # fmt: skip


def kept_source(name: str, text: str) -> Path | None:
    """The file that holds a program's source, beside which Numba keeps what it compiled; None if there is no place."""
    try:
        path = cache_folder() / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write(path, text)
        beside = path.parent / "__pycache__"
        beside.mkdir(exist_ok=True)
        return path if os.access(beside, os.W_OK) else None
    except (OSError, RuntimeError):
        return None


def blas() -> tuple[int, int]:
    """The addresses of SciPy's single and double matrix product."""
    from numba.extending import get_cython_function_address

    return tuple(get_cython_function_address("scipy.linalg.cython_blas", f"{x}gemm") for x in "sd")  # type: ignore[return-value]


# -- the choice ----------------------------------------------------------------------------------------------

# A function such as `exp` of one element takes 4 ns longer than in NumPy, which has them for eight at a time;
# a call of NumPy takes 0.5 µs.
FUNCTIONS_FOR_A_CALL = 125


def supports(plan: Plan, recorded: bool = True, feeds: dict[int, int] | None = None) -> bool:
    """Whether a plan can be a Numba program here."""
    return numba_program(plan, {}, recorded, feeds, insist=True) is not None


def pays(plan: Plan, recorded: bool = True, feeds: dict[int, int] | None = None) -> bool:
    """Whether a plan is faster as a Numba program than through NumPy, by its sizes alone."""
    return numba_program(plan, {}, recorded, feeds) is not None


def numba_program(
    plan: Plan,
    where: dict[Node, tuple[int, ...]],
    recorded: bool,
    feeds: dict[int, int] | None,
    insist: bool = False,
) -> NumbaProgram | None:
    """The Numba program of a plan; None where there can be none, or (unless one insists on it) where NumPy is faster."""
    if not find_spec("numba"):
        return None
    try:
        made = NumbaProgram(plan, where, recorded, feeds)
    except Refused:
        return None
    both = (made.hoist_loops, made.sweep_loops)
    if any(part.calls_blas for part in both) and not find_spec("scipy"):
        return None
    calls = sum(len(part.statements) for part in both)
    if not insist and sum(part.functions for part in both) > FUNCTIONS_FOR_A_CALL * calls:
        return None
    return made


__all__ = ["NumbaBound", "NumbaProgram", "numba_program", "pays", "supports"]
