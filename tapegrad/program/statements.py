"""Programs of arrays: a trace as two Python functions, straight-line NumPy that writes into what it may.

One line for each node, in the order of the trace. An elementwise line writes into an operand that nobody
reads afterwards; arrays that the backward pass needs are handed over, and the rest is dropped on the way.
`print(compiled.program())` shows the text.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .live import Guard, check, computed
from .record import Recorded
from .trace import Node

REDUCTIONS = {"sum": np.add.reduce, "max": np.maximum.reduce, "min": np.minimum.reduce}
# Dropped as soon as nobody reads it: smaller arrays are dropped when the function returns.
LARGE = 4096
CONSTANTS = ("number", "array", "zeros")


class Text:
    """The statements of one pass, and the names that they use."""

    def __init__(self, names: dict[Node, str], space: dict[str, Any]) -> None:
        self.names, self.space = names, space
        self.bound = {id(value): name for name, value in space.items()}
        self.lines: list[str] = []
        self.owned: set[Node] = set()  # arrays that this pass may write to

    def bind(self, value: Any, stem: str) -> str:
        """A global name for `value`."""
        name = self.bound.get(id(value))
        if name is None:
            name = stem if stem not in self.space else f"{stem}_{len(self.space)}"
            self.space[name], self.bound[id(value)] = value, name
        return name

    def write(self, nodes: Sequence[Node], kept: Iterable[Node], guards: Sequence[Guard] = ()) -> None:
        """A line for each of `nodes`; arrays of `kept` are read after the last of them."""
        last = last_uses(nodes, kept)
        ending: dict[int, list[Node]] = {}
        for node, at in last.items():
            ending.setdefault(at, []).append(node)
        waiting = deque(enumerate(guards))
        self.check(waiting)
        for at, node in enumerate(nodes):
            source = self.expression(node, {n for n in node.inputs if last.get(root(n)) == at})
            if node.kind in CONSTANTS:
                self.names[node] = source
            else:
                self.names[node] = f"v{len(self.names)}"
                self.lines.append(f"{self.names[node]} = {source}")
            self.check(waiting)
            large = [n for n in ending.get(at, ()) if n in self.owned and n.size * n.dtype.itemsize >= LARGE]
            if large:
                self.lines.append(f"del {', '.join(self.names[n] for n in large)}")

    def check(self, waiting: deque[tuple[int, Guard]]) -> None:
        """Lines for the guards whose arrays are there, in the order in which they were met."""
        while waiting and waiting[0][1].node in self.names:
            i, guard = waiting.popleft()
            found = self.bind(guard.found, f"found_{i}")
            self.lines.append(f"check({i}, {found}({self.names[guard.node]}), {guard.outcome!r})")

    # -- one node -----------------------------------------------------------------------------------

    def expression(self, node: Node, ending: set[Node]) -> str:
        kind, detail = node.kind, node.detail
        names = [self.names[n] for n in node.inputs]
        if kind == "ufunc":
            return self.ufunc(node, ending)
        if kind == "number":
            return repr(detail[1]) if math.isfinite(detail[1]) else self.bind(detail[1], "number")
        if kind == "array":
            return self.bind(detail.array, "array")
        if kind == "zeros":
            zeros = np.zeros(node.shape, node.dtype)
            zeros.flags.writeable = False
            return self.bind(zeros, "zero")
        if kind == "view":
            return self.view(node)
        if kind == "matmul":
            self.own(node)
            # For matrices np.dot calls the same BLAS, with less around it.
            product = "dot" if all(len(n.shape) == 2 for n in node.inputs) else "matmul"
            return f"{product}({names[0]}, {names[1]})"
        if kind == "reduce" and detail[0] in REDUCTIONS:
            self.own(node)
            name, axes, keepdims = detail
            axis = axes[0] if len(axes) == 1 else axes
            reduce = self.bind(REDUCTIONS[name], f"{name}_over")
            return f"{reduce}({names[0]}, {axis}{', None, None, True' if keepdims else ''})"
        if kind == "astype":
            self.own(node)
            return f"{names[0]}.astype({self.bind(node.dtype, str(node.dtype))})"
        if kind == "part":
            return f"{names[0]}[{detail}]"
        if kind == "call":
            return f"tupled({self.bind(detail, 'call')}({', '.join(names)}))"
        if kind == "join":
            self.own(node)
            return f"concatenate(({''.join(n + ', ' for n in names)}), {detail})"
        self.own(node)
        compute = self.bind(Computation(node), kind)
        return f"{compute}({', '.join(names)})"

    def own(self, node: Node) -> None:
        if node.shape:
            self.owned.add(node)

    def view(self, node: Node) -> str:
        method, arguments = node.detail
        (name,) = [self.names[n] for n in node.inputs]
        if method == "getitem":
            return f"{name}[{self.bind(arguments[0], 'index')}]"
        if method == "broadcast_to":
            return f"broadcast_to({name}, {arguments[0]})"
        if not node.inputs[0].shape:  # NumPy's scalars have no such methods
            return f"{method}({name}, {', '.join(map(repr, arguments))})"
        return f"{name}.{method}({', '.join(map(repr, arguments))})"

    def ufunc(self, node: Node, ending: set[Node]) -> str:
        names = [self.names[n] for n in read_by(node)]
        function = self.bind(getattr(np, node.detail), node.detail)
        self.own(node)
        if node.shape and node.detail != "where":
            for n in dict.fromkeys(node.inputs):
                if n in ending and n in self.owned and n.shape == node.shape and n.dtype == node.dtype:
                    return f"{function}({', '.join(names)}, out={self.names[n]})"
        return f"{function}({', '.join(names)})"


class Computation:
    """A node's own function of its inputs."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __call__(self, *arrays: Any) -> Any:
        return computed(self.node, arrays)


def read_by(node: Node) -> list[Node]:
    """The inputs of `node`; a ufunc reads them as they were before they were broadcast, where that does as well."""
    operands = list(node.inputs)
    if node.kind == "ufunc":
        for i in range(len(operands)):
            while (before := smaller(operands[i])) is not None:
                shapes = [n.shape for n in (*operands[:i], before, *operands[i + 1 :])]
                if np.broadcast_shapes(*shapes) != node.shape:
                    break
                operands[i] = before
    return operands


def smaller(node: Node) -> Node | None:
    """What `node` repeats, if it is a broadcast array or a number with axes."""
    if node.kind != "view" or node.detail[0] not in ("broadcast_to", "reshape"):
        return None
    (before,) = node.inputs
    return before if node.detail[0] == "broadcast_to" or before.shape == () else None


def root(node: Node) -> Node:
    """The array of which `node` is a view, as far as is known."""
    while node.kind in ("view", "part"):
        (node,) = node.inputs
    return node


def last_uses(nodes: Sequence[Node], kept: Iterable[Node]) -> dict[Node, int]:
    """Where each array is read for the last time, also through views; not those of `kept`."""
    last: dict[Node, int] = {}
    for at, node in enumerate(nodes):
        for n in node.inputs:
            last[root(n)] = at
    for n in kept:
        last.pop(root(n), None)
    return last


class ArrayProgram:
    """Forward and backward of a function of arrays as NumPy statements. `print` it to read them."""

    kind = "statements"

    def __init__(self, trace: Recorded) -> None:
        self.count = len(trace.forward) + len(trace.backward)
        space: dict[str, Any] = {
            "matmul": np.matmul, "dot": np.dot, "concatenate": np.concatenate, "broadcast_to": np.broadcast_to,
            "reshape": np.reshape, "transpose": np.transpose, "array": np.array, "tupled": tupled,
        }  # fmt: skip
        names: dict[Node, str] = {n: f"x{i}" for i, n in enumerate(trace.inputs)}
        names |= {n: f"ct{i}" for i, n in enumerate(trace.cotangents)}
        found = [n for n in trace.adjoints if n is not None]
        before = {*trace.inputs, *trace.forward}
        kept = dict.fromkeys(n for b in trace.backward for n in read_by(b) if n in before)
        kept |= dict.fromkeys(n for n in found if n in before)
        saved = [n for n in kept if n.kind not in CONSTANTS]
        first = Text(names, space)
        first.write(trace.forward, [*trace.results, *saved], trace.graph.guards)
        # Nobody else may hold what is handed out.
        shared = {root(n) for n in saved} | {*trace.inputs}
        results = [
            f"array({names[n]})" if root(n) in shared or root(n).kind in CONSTANTS else names[n]
            for n in trace.results
        ]
        self.forward_source = source(
            f"forward(check, {', '.join(names[n] for n in trace.inputs)})", first.lines,
            f"({listed(results)}), ({listed(names[n] for n in saved)})",
        )  # fmt: skip
        second = Text(names, space)
        second.write(trace.backward, found)
        unpack = [f"{listed(names[n] for n in saved)} = saved"] if saved else []
        unpack += [f"{listed(names[n] for n in trace.cotangents)} = cts"] if trace.cotangents else []
        adjoints = listed("None" if n is None else names[n] for n in trace.adjoints)
        # Adjoints that are arrays of their own: they may be handed over.
        self.fresh = [
            n is not None and n in second.owned and trace.adjoints.count(n) == 1 for n in trace.adjoints
        ]
        for i, n in enumerate(trace.adjoints):
            alias = [m for m in trace.adjoints if m is not None and m is not n and root(m) is n]
            self.fresh[i] = self.fresh[i] and not alias
        self.backward_source = source("backward(saved, cts)", [*unpack, *second.lines], f"({adjoints})")
        exec(compile(self.forward_source, "<tapegrad program, forward>", "exec"), space)
        exec(compile(self.backward_source, "<tapegrad program, backward>", "exec"), space)
        self._forward, self._backward = space["forward"], space["backward"]

    def forward(self, inputs: Sequence[Any], guarded: bool = True) -> tuple[Sequence[Any], Any]:
        """The results for `inputs`, and what the backward pass needs. Raises PathChanged if `guarded`."""
        return self._forward(check if guarded else pass_by, *inputs)  # type: ignore[no-any-return]

    def backward(self, saved: Any, cts: Sequence[Any], once: bool = False) -> Sequence[Any]:
        """The adjoints of the inputs for the cotangents of the outputs."""
        return self._backward(saved, cts)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        return f"{self.forward_source}\n\n{self.backward_source}"


def source(head: str, lines: Sequence[str], returned: str) -> str:
    return "\n".join([f"def {head}:", *(f"    {line}" for line in lines), f"    return {returned}"])


def listed(names: Iterable[str]) -> str:
    return "".join(f"{name}, " for name in names)


def pass_by(index: int, outcome: Any, expected: Any) -> None:
    """A guard that lets everything pass: the path stays as it was recorded."""


def tupled(y: Any) -> tuple[Any, ...]:
    return y if isinstance(y, tuple) else tuple(y) if isinstance(y, list) else (y,)
