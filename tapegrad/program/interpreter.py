"""Programs of numbers: a trace of scalars and tiny arrays as instructions over one register file.

An op on one number costs NumPy a thousand times what the number costs the processor. Here every element of
every array of a trace is a *register*, and an *instruction* is `(opcode, out, a, b, c)`: one compiled loop
runs them all. The backward pass is more instructions for the same loop. Views cost nothing: a transposed
array is the same registers in another order.

Nearly everything is one instruction, `out = a * b + c`: a sum is a product with 1, a product adds -0.0 (which
changes no number, not even -0.0), a difference is a product with -1. All are exact, so a program computes what
NumPy computes, and the processor guesses the loop's one branch right. Instructions that do not wait for each
other are sorted by opcode for the same reason. What it costs: bench/scalar.py.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..types import Array
from .live import check
from .record import Recorded
from .trace import VIEWS, Node

# -- opcodes -----------------------------------------------------------------------------------------

OPCODES = (
    "multiply_add", "divide", "sqrt", "exp", "log", "sin", "cos", "tanh", "expm1", "log1p", "power", "logaddexp",
    "where", "maximum", "minimum", "absolute", "sign", "floor", "equal", "not_equal", "less", "less_equal",
    "isnan", "isfinite",
)  # fmt: skip
(
    MULTIPLY_ADD, DIVIDE, SQRT, EXP, LOG, SIN, COS, TANH, EXPM1, LOG1P, POWER, LOGADDEXP,
    WHERE, MAXIMUM, MINIMUM, ABSOLUTE, SIGN, FLOOR, EQUAL, NOT_EQUAL, LESS, LESS_EQUAL,
    ISNAN, ISFINITE,
) = range(len(OPCODES))  # fmt: skip
CONSTANT, INPUT = -1, -2

UNARY = {
    "sqrt": SQRT, "exp": EXP, "log": LOG, "sin": SIN, "cos": COS, "tanh": TANH, "expm1": EXPM1, "log1p": LOG1P,
    "absolute": ABSOLUTE, "fabs": ABSOLUTE, "sign": SIGN, "floor": FLOOR, "isnan": ISNAN, "isfinite": ISFINITE,
}  # fmt: skip
BINARY = {
    "divide": DIVIDE, "logaddexp": LOGADDEXP, "maximum": MAXIMUM, "minimum": MINIMUM,
    "equal": EQUAL, "not_equal": NOT_EQUAL, "less": LESS, "less_equal": LESS_EQUAL,
}  # fmt: skip
SWAPPED = {"greater": LESS, "greater_equal": LESS_EQUAL}
# On booleans, which are 0 and 1 here.
LOGIC = {
    "logical_or": MAXIMUM, "bitwise_or": MAXIMUM, "logical_and": MINIMUM, "bitwise_and": MINIMUM,
    "logical_xor": NOT_EQUAL, "bitwise_xor": NOT_EQUAL,
}  # fmt: skip
NEGATION = frozenset({"logical_not", "invert"})
# On booleans these are logic, not arithmetic.
ARITHMETIC = frozenset({"add", "subtract", "multiply", "negative", "square", "maximum", "minimum"})

LARGEST = 2_000_000  # instructions; beyond, translating takes minutes
NARROW = 1 << 16  # registers that 16 bits can name
LARGEST_ARRAY = 64  # elements
# Elements that an op computes on average, and ops: within these limits instructions are faster than a NumPy call
# for each op (bench/scalar.py, "arrays").
ELEMENTS_PER_OP, FEWEST_OPS = 48, 8
ELEMENTS_PER_OP_SLOWLY = 4  # the same without Numba


class NotNumbers(Exception):
    """The trace holds something that is not arithmetic on a few numbers of one dtype."""


class Assembler:
    """Values, each computed once: `(opcode, a, b, c)` by the number of the value. Equal ones are one."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.values: list[tuple[int, int, int, int]] = []
        self.numbers: list[Any] = []  # what the constants are
        self._known: dict[Any, int] = {}
        self.one, self.minus_one, self.minus_zero = (self.constant(x) for x in (1.0, -1.0, -0.0))
        self._arrays: dict[Node, Array] = {}

    def constant(self, number: Any) -> int:
        """The value that is always `number`."""
        number = self.dtype.type(number)
        key = ("constant", number.tobytes())
        if key not in self._known:
            self.numbers.append(number)
            self._known[key] = self._new(CONSTANT, len(self.numbers) - 1)
        return self._known[key]

    def place(self, node: Node) -> None:
        """Let `node` be an input: a register for each element."""
        if node.size > LARGEST_ARRAY or node.dtype != self.dtype:
            raise NotNumbers
        self._arrays[node] = np.array([self._new(INPUT) for _ in range(node.size)], np.intp).reshape(
            node.shape
        )

    def value(self, opcode: int, a: int, b: int | None = None, c: int | None = None) -> int:
        """The value of one instruction; operands that it does not have are the first."""
        key = (opcode, a, a if b is None else b, a if c is None else c)
        if key not in self._known:
            if len(self.values) >= LARGEST:
                raise NotNumbers
            self._known[key] = self._new(*key)
        return self._known[key]

    def _new(self, *value: int) -> int:
        self.values.append((*value, *(0,) * (4 - len(value))))  # type: ignore[arg-type]
        return len(self.values) - 1

    # -- arithmetic --------------------------------------------------------------------------------

    def multiply(self, a: int, b: int) -> int:
        a, b = min(a, b), max(a, b)
        if a == self.one or b == self.one:
            return b if a == self.one else a
        return self.value(MULTIPLY_ADD, a, b, self.minus_zero)

    def add(self, a: int, b: int) -> int:
        return self.value(MULTIPLY_ADD, min(a, b), self.one, max(a, b))

    def subtract(self, a: int, b: int) -> int:
        return self.value(MULTIPLY_ADD, b, self.minus_one, a)

    def negative(self, a: int) -> int:
        return self.value(MULTIPLY_ADD, a, self.minus_one, self.minus_zero)

    def power(self, a: int, b: int) -> int:
        exponent = self.numbers[self.values[b][1]] if self.values[b][0] == CONSTANT else None
        if exponent is not None and exponent in (1, 2, 3):
            square = self.multiply(a, a)
            return {1: a, 2: square, 3: self.multiply(square, a)}[int(exponent)]
        return self.value(DIVIDE, self.one, a) if exponent == -1 else self.value(POWER, a, b)

    def ufunc(self, name: str, operands: Sequence[int]) -> int:
        """The value of NumPy's function `name`. Raises NotNumbers for one that has no instruction."""
        if name in UNARY:
            return self.value(UNARY[name], operands[0])
        if name in BINARY:
            return self.value(BINARY[name], *operands)
        if name in SWAPPED:
            return self.value(SWAPPED[name], operands[1], operands[0])
        if name in ("add", "subtract", "multiply", "negative", "power"):
            return getattr(self, name)(*operands)  # type: ignore[no-any-return]
        if name in LOGIC:
            return self.value(LOGIC[name], *operands)
        if name in NEGATION:
            return self.value(EQUAL, operands[0], self.constant(0.0))
        if name == "square":
            return self.multiply(operands[0], operands[0])
        if name == "where":
            condition, a, b = operands
            return self.value(WHERE, a, b, condition)
        if name == "positive":
            return operands[0]
        raise NotNumbers

    # -- arrays --------------------------------------------------------------------------------------

    def array(self, node: Node) -> Array:
        """The values of the elements of `node`: an array of their numbers, of the node's shape."""
        return self._arrays[node]

    def assemble(self, nodes: Iterable[Node]) -> None:
        """Translate `nodes`, which come after what they read. Raises NotNumbers."""
        for node in nodes:
            if node not in self._arrays:
                self._arrays[node] = self._translated(node)

    def _translated(self, node: Node) -> Array:
        if node.size > LARGEST_ARRAY or not (
            node.dtype == self.dtype or node.dtype == bool or node.kind == "number"
        ):
            raise NotNumbers
        translate = getattr(self, f"_{node.kind}", None)
        if translate is None:
            raise NotNumbers
        return np.asarray(translate(node, *(self._arrays[n] for n in node.inputs)), np.intp).reshape(
            node.shape
        )

    def _number(self, node: Node) -> Any:
        return self.constant(node.detail[1])

    def _array(self, node: Node) -> Any:
        return [self.constant(x) for x in node.detail.array.ravel().tolist()]

    def _zeros(self, node: Node) -> Any:
        return np.full(node.shape, self.constant(0.0))

    def _ufunc(self, node: Node, *operands: Array) -> Any:
        name = node.detail
        logic = name in LOGIC or name in NEGATION
        if (name in ARITHMETIC and node.dtype == bool) or (
            logic and any(n.dtype != bool for n in node.inputs)
        ):
            raise NotNumbers
        if all(x.ndim == 0 for x in operands):
            return self.ufunc(name, [int(x) for x in operands])
        elements = zip(*(x.ravel().tolist() for x in np.broadcast_arrays(*operands)), strict=True)
        return [self.ufunc(name, each) for each in elements]

    def _matmul(self, node: Node, a: Array, b: Array) -> Any:
        a_rows = a[None, :] if a.ndim == 1 else a
        b_columns = b[:, None] if b.ndim == 1 else b
        if a_rows.ndim > 2 or b_columns.ndim > 2:
            raise NotNumbers
        return [self._dot(row, column) for row in a_rows.tolist() for column in b_columns.T.tolist()]

    def _dot(self, a: Sequence[int], b: Sequence[int]) -> int:
        return self._sum([self.multiply(x, y) for x, y in zip(a, b, strict=True)])

    def _sum(self, terms: Sequence[int]) -> int:
        if not terms:
            return self.constant(0.0)
        total = terms[0]
        for term in terms[1:]:
            total = self.add(total, term)
        return total

    def _reduce(self, node: Node, a: Array) -> Any:
        name, axes, _ = node.detail
        rest = [i for i in range(a.ndim) if i not in axes]
        counts = [math.prod([a.shape[i] for i in part]) for part in (rest, axes)]
        groups = a.transpose(*rest, *axes).reshape(counts).tolist()
        if name == "sum" and node.dtype == self.dtype:
            return [self._sum(group) for group in groups]
        if name not in ("max", "min") or not all(groups):
            raise NotNumbers
        opcode, found = MAXIMUM if name == "max" else MINIMUM, []
        for first, *others in groups:
            for other in others:
                first = self.value(opcode, first, other)
            found.append(first)
        return found

    def _view(self, node: Node, a: Array) -> Any:
        method, arguments = node.detail
        return VIEWS[method](a, *arguments)

    def _astype(self, node: Node, a: Array) -> Any:
        if node.dtype != self.dtype:
            raise NotNumbers
        return a  # from booleans, which are 0 and 1 here

    def _join(self, node: Node, *parts: Array) -> Any:
        return np.concatenate(parts, node.detail)

    def _put(self, node: Node, base: Array, value: Array) -> Any:
        changed = base.copy()
        changed[node.detail] = value
        return changed

    # -- the finished program --------------------------------------------------------------------------

    def fuse(self, pinned: Iterable[int]) -> None:
        """Make `a * b` and a sum that alone reads it one instruction: the roundings stay the same two."""
        readers = Counter(pinned)
        for opcode, *operands in self.values:
            readers.update(operands[: arity(opcode)])
        for i, (opcode, a, b, c) in enumerate(self.values):
            if opcode != MULTIPLY_ADD or b != self.one:
                continue
            for product, other in ((a, c), (c, a)):
                of, x, y, z = self.values[product]
                if of == MULTIPLY_ADD and z == self.minus_zero and readers[product] == 1:
                    self.values[i] = (MULTIPLY_ADD, x, y, other)
                    break


def arity(opcode: int) -> int:
    """How many operands an instruction reads."""
    if opcode < 0:
        return 0
    if opcode in (MULTIPLY_ADD, WHERE):
        return 3
    return (
        2 if opcode in (DIVIDE, POWER, LOGADDEXP, MAXIMUM, MINIMUM, EQUAL, NOT_EQUAL, LESS, LESS_EQUAL) else 1
    )


def needed(values: Sequence[tuple[int, int, int, int]], wanted: Iterable[int]) -> set[int]:
    """`wanted`, and all that they are computed from."""
    found, waiting = set(), list(wanted)
    while waiting:
        i = waiting.pop()
        if i not in found:
            found.add(i)
            opcode, *operands = values[i]
            waiting += operands[: arity(opcode)]
    return found


def in_runs(values: Sequence[tuple[int, int, int, int]], chosen: Sequence[int]) -> list[int]:
    """`chosen` (each after what it reads) in an order with long runs of one opcode."""
    inside = set(chosen)
    readers: dict[int, list[int]] = {}
    missing: dict[int, int] = {}
    ready: dict[int, deque[int]] = {}
    for i in chosen:
        opcode, *operands = values[i]
        before = {o for o in operands[: arity(opcode)] if o in inside}
        missing[i] = len(before)
        for o in before:
            readers.setdefault(o, []).append(i)
        if not before:
            ready.setdefault(opcode, deque()).append(i)
    order: list[int] = []
    while ready:
        opcode = max(ready, key=lambda o: len(ready[o]))
        queue = ready[opcode]
        while queue:
            i = queue.popleft()
            order.append(i)
            for reader in readers.get(i, ()):
                missing[reader] -= 1
                if not missing[reader]:
                    ready.setdefault(values[reader][0], deque()).append(reader)
        del ready[opcode]
    return order


class Registers:
    """Which register holds which value; one that nobody reads any more is given away again."""

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        self.count = 0
        self._free: list[int] = []

    def take(self, value: int) -> int:
        if self._free:
            self.of[value] = self._free.pop()
        else:
            self.of[value] = self.count
            self.count += 1
        return self.of[value]

    def give_back(self, value: int) -> None:
        self._free.append(self.of[value])


def code_for(
    values: Sequence[tuple[int, int, int, int]], order: Sequence[int], registers: Registers, pinned: set[int]
) -> Array:
    """Instructions in `order`, shape (n, 5). Values not in `pinned` leave their registers after their last use."""
    last: dict[int, int] = {}
    for at, i in enumerate(order):
        opcode, *operands = values[i]
        for o in operands[: arity(opcode)]:
            last[o] = at
    rows = np.zeros((len(order), 5), np.int64)
    for at, i in enumerate(order):
        opcode, *operands = values[i]
        count = arity(opcode)
        read = [registers.of[o] for o in operands[:count]]
        for o in set(operands[:count]):
            if last[o] == at and o not in pinned:
                registers.give_back(o)
        read += [read[0]] * (3 - count)
        rows[at] = (opcode, registers.take(i), *read)
        if i not in last and i not in pinned:
            registers.give_back(i)
    return rows


def only_dtype(nodes: Sequence[Node]) -> np.dtype[Any]:
    """The one dtype of `nodes`, float32 or float64. Raises NotNumbers."""
    dtypes: set[np.dtype[Any]] = {n.dtype for n in nodes}
    if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise NotNumbers
    return next(iter(dtypes))


class ScalarProgram:
    """Forward and backward of a function of a few numbers, as instructions.

    Raises NotNumbers for anything but arithmetic on tiny arrays of one dtype.
    """

    kind = "instructions"

    def __init__(self, trace: Recorded) -> None:
        self.dtype = only_dtype([*trace.inputs, *trace.cotangents])
        assembler = Assembler(self.dtype)
        for node in (*trace.inputs, *trace.cotangents):
            assembler.place(node)
        assembler.assemble(trace.forward)
        assembler.assemble(trace.backward)
        self._inputs, self._cotangents = Pieces(trace.inputs), Pieces(trace.cotangents)
        self._results, self._adjoints = Pieces(trace.results), Pieces(trace.adjoints)
        self.fresh = [False] * len(trace.adjoints)
        self.guards = trace.graph.guards
        self.booleans = all(guard.test is bool for guard in self.guards)
        self.expected = [guard.outcome for guard in self.guards]
        self._translate(assembler, trace)

    def _translate(self, assembler: Assembler, trace: Recorded) -> None:
        def flat(nodes: Iterable[Node | None]) -> list[int]:
            return [int(i) for node in nodes if node is not None for i in assembler.array(node).ravel()]

        out, tested = flat(trace.results), flat([guard.node for guard in self.guards])
        entering, given, found = flat(trace.cotangents), flat(trace.inputs), flat(trace.adjoints)
        assembler.fuse([*out, *tested, *found])
        values = assembler.values
        # A value that both passes compute belongs to the forward pass, and stays in its register.
        forward = sorted(i for i in needed(values, [*out, *tested]) if values[i][0] >= 0)
        ran = set(forward)
        backward = [i for i in sorted(needed(values, found)) if values[i][0] >= 0 and i not in ran]
        kept = {o for i in backward for o in values[i][1:]} | set(found)
        fixed = [i for i, value in enumerate(values) if value[0] == CONSTANT]
        registers = Registers()
        for i in (*fixed, *given, *entering):
            registers.take(i)
        standing = {*fixed, *given, *entering}
        self.constants = np.array([assembler.numbers[values[i][1]] for i in fixed], self.dtype)
        self.given = slice(len(fixed), len(fixed) + len(given))
        self.entering = slice(self.given.stop, self.given.stop + len(entering))
        forward_code = code_for(
            values, in_runs(values, forward), registers, standing | kept | set(out) | set(tested)
        )
        self.outputs, self.tested = (
            np.array([registers.of[i] for i in ids], np.intp) for ids in (out, tested)
        )
        backward_code = code_for(values, in_runs(values, backward), registers, standing | set(found))
        self.adjoints = np.array([registers.of[i] for i in found], np.intp)
        self.registers = registers.count
        width = np.uint16 if registers.count <= NARROW else np.uint32
        self.forward_code, self.backward_code = forward_code.astype(width), backward_code.astype(width)

    def forward(self, inputs: Sequence[Any], guarded: bool = True) -> tuple[Sequence[Any], Array]:
        """The results for `inputs`, and the register file. Raises PathChanged if `guarded`."""
        file = np.empty(self.registers, self.dtype)
        file[: self.given.start] = self.constants
        self._inputs.put(file[self.given], inputs)
        interpreter()(self.forward_code, file)
        if guarded and self.guards:
            self._check(file[self.tested])
        return self._results.cut(file[self.outputs]), file

    def _check(self, conditions: Array) -> None:
        if self.booleans and (conditions != 0).tolist() == self.expected:
            return
        for i, (guard, condition) in enumerate(zip(self.guards, conditions, strict=True)):
            check(i, guard.found(condition), guard.outcome)

    def backward(self, file: Array, cts: Sequence[Any], once: bool = False) -> list[Any]:
        """The adjoints of the inputs for the cotangents of the outputs. `once`: `file` may be written to."""
        if not once:
            file = file.copy()
        self._cotangents.put(file[self.entering], cts)
        interpreter()(self.backward_code, file)
        return self._adjoints.cut(file[self.adjoints])

    def __len__(self) -> int:
        return len(self.forward_code) + len(self.backward_code)

    def __str__(self) -> str:
        """The instructions, one a line: the forward pass, a rule, the backward pass."""
        lines = [f"{i} registers of {self.dtype}" for i in (self.registers,)]
        lines += [f"r{i} = {x!r}" for i, x in enumerate(self.constants.tolist())]
        lines += [f"r{i} = input" for i in range(self.given.start, self.given.stop)]
        lines += map(written, self.forward_code.tolist())
        lines += [
            "-- backward",
            *(f"r{i} = cotangent" for i in range(self.entering.start, self.entering.stop)),
        ]
        return "\n".join([*lines, *map(written, self.backward_code.tolist())])


class Pieces:
    """Arrays as pieces of a vector: where each lies, and its shape. None is no piece."""

    def __init__(self, nodes: Sequence[Node | None]) -> None:
        self.all_numbers = all(n is not None and n.shape == () and n.dtype != bool for n in nodes)
        self.places: list[tuple[slice, Any, Any] | None] = []
        start = 0
        for n in nodes:
            if n is None:
                self.places.append(None)
                continue
            self.places.append((slice(start, start + n.size), n.shape, bool if n.dtype == bool else None))
            start += n.size

    def put(self, vector: Array, arrays: Sequence[Any]) -> None:
        """Write `arrays` to their places in `vector`."""
        if self.all_numbers:
            vector[:] = arrays
            return
        for place, array in zip(self.places, arrays, strict=True):
            if place is not None:
                vector[place[0]] = array.ravel()

    def cut(self, vector: Array) -> list[Any]:
        """The arrays in `vector`: views of it, and NumPy's scalars for single numbers."""
        if self.all_numbers:
            return list(vector)
        made: list[Any] = []
        for place in self.places:
            if place is None:
                made.append(None)
                continue
            where, shape, dtype = place
            array = vector[where.start] if shape == () else vector[where].reshape(shape)
            made.append(array if dtype is None else array.astype(dtype))
        return made


def written(instruction: Sequence[int]) -> str:
    """An instruction as text."""
    opcode, out, a, b, c = instruction
    if opcode == MULTIPLY_ADD:
        return f"r{out} = r{a} * r{b} + r{c}"
    if opcode == WHERE:
        return f"r{out} = r{a} if r{c} else r{b}"
    return f"r{out} = {OPCODES[opcode]}({', '.join(f'r{r}' for r in (a, b)[: arity(opcode)])})"


# -- the loop ------------------------------------------------------------------------------------------


def interpret(code: Array, r: Array) -> None:
    """Run the instructions `code` (n, 5) over the registers `r`. Compiled by Numba."""
    for i in range(code.shape[0]):
        o, out = code[i, 0], code[i, 1]
        a, b, c = r[code[i, 2]], r[code[i, 3]], r[code[i, 4]]
        if o == MULTIPLY_ADD:
            r[out] = a * b + c
        elif o == DIVIDE:
            r[out] = a / b
        elif o == SQRT:
            r[out] = np.sqrt(a)
        elif o == EXP:
            r[out] = np.exp(a)
        elif o == LOG:
            r[out] = np.log(a)
        elif o == SIN:
            r[out] = np.sin(a)
        elif o == COS:
            r[out] = np.cos(a)
        elif o == TANH:
            r[out] = np.tanh(a)
        elif o == EXPM1:
            r[out] = np.expm1(a)
        elif o == LOG1P:
            r[out] = np.log1p(a)
        elif o == POWER:
            r[out] = a**b
        elif o == LOGADDEXP:
            r[out] = (
                a + np.log1p(np.exp(b - a)) if a > b else b + np.log1p(np.exp(a - b)) if a != b else a + LN_2
            )
        elif o == WHERE:
            r[out] = a if c != 0 else b
        elif o == MAXIMUM:  # NaN if one is
            r[out] = a if a >= b or a != a else b
        elif o == MINIMUM:
            r[out] = a if a <= b or a != a else b
        elif o == ABSOLUTE:
            r[out] = abs(a)
        elif o == SIGN:
            r[out] = 1.0 if a > 0 else -1.0 if a < 0 else a * 0.0
        elif o == FLOOR:
            r[out] = np.floor(a)
        elif o == EQUAL:
            r[out] = 1.0 if a == b else 0.0
        elif o == NOT_EQUAL:
            r[out] = 1.0 if a != b else 0.0
        elif o == LESS:
            r[out] = 1.0 if a < b else 0.0
        elif o == LESS_EQUAL:
            r[out] = 1.0 if a <= b else 0.0
        elif o == ISNAN:
            r[out] = 1.0 if a != a else 0.0
        else:  # ISFINITE
            r[out] = 1.0 if a - a == 0.0 else 0.0


LN_2 = math.log(2.0)
FUNCTIONS = [operator.truediv if name == "divide" else getattr(np, name, None) for name in OPCODES]


def interpret_slowly(code: Array, r: Array) -> None:
    """`interpret` without Numba: the same instructions, one NumPy call each."""
    file = list(r)
    with np.errstate(all="ignore"):
        for o, out, a, b, c in code.tolist():
            if o == MULTIPLY_ADD:
                file[out] = file[a] * file[b] + file[c]
            elif o == WHERE:
                file[out] = file[a] if file[c] else file[b]
            else:
                file[out] = FUNCTIONS[o](*(file[a], file[b])[: arity(o)])
    r[:] = file


@lru_cache(maxsize=1)
def interpreter() -> Callable[[Array, Array], None]:
    """The loop: compiled where Numba is installed, and kept on disk."""
    try:
        import numba
    except ImportError:
        return interpret_slowly
    compiled = partial(numba.njit, error_model="numpy", nogil=True)
    try:
        return compiled(cache=True)(interpret)
    except RuntimeError:  # no place to keep it
        return compiled()(interpret)


def worthwhile(nodes: Sequence[Node]) -> bool:
    """Whether ops are many and arrays tiny, so that instructions are much faster than NumPy calls."""
    elements = sum(map(work, nodes))
    if len(nodes) < FEWEST_OPS or elements > ELEMENTS_PER_OP * len(nodes):
        return False
    return elements <= ELEMENTS_PER_OP_SLOWLY * len(nodes) or interpreter() is not interpret_slowly


def work(node: Node) -> int:
    """How many elements a node computes; for a product of matrices, how many it multiplies."""
    return node.size * (node.inputs[0].shape[-1] if node.kind == "matmul" else 1)
