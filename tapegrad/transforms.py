"""Functions on functions: gradients, Jacobians and Hessians, in reverse and in forward mode, to any order.

Each transform records its function on a tape of its own and sweeps that tape, or pushes tangents through it. Where
other tapes record around it, the sweep is made of recorded ops, and so transforms nest. An argument is
entered under a slot of its own, through an identity that only the outer tapes record. Without that

    d/dx [ x · d/dy (x y) ]  at y = x

would be 4x and not 2x: the inner sweep, asked for y, would count the x that is meant to stand still as well
(perturbation confusion; Siskind and Pearlmutter, "Nesting forward-mode AD in a functional framework", 2008).

A transform never writes a `.grad`. It returns arrays, or Variables where a tape records around it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import nest
from .backend.device import module_beside, owned, zeros_beside
from .core.active import active_tapes
from .core.adjoints import Adjoints, owned_adjoint
from .core.floating import refuse_masked
from .core.pushforward import push_through
from .core.seeds import numbers, require_shape
from .core.tape import Tape
from .core.variable import Variable, constant, next_slot, result
from .errors import ArgumentError, DtypeError, GradientStopsWarning, describe
from .ops.elementwise import positive
from .ops.shape import reshape, stack

Function = Callable[..., Any]
ArgNums = int | tuple[int, ...]


# -- transforms ------------------------------------------------------------------------------------


def grad(f: Function, argnums: ArgNums = 0, *, has_aux: bool = False) -> Function:
    """The gradient of a scalar function, as a function of the same arguments.

    `f` returns a scalar; with `has_aux` a pair of it and of whatever else is to be handed back, and so
    does the gradient. `argnums`: for which arguments, by position: a nest of arrays each, and the
    gradient has its form (a tuple of nests for a tuple of positions). Nests: tuples, lists, dicts.

    Raises ArgumentError for a function that is not scalar, DtypeError for an argument that is not floating point.
    """
    both = value_and_grad(f, argnums, has_aux=has_aux)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, found = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return named(gradient, "grad", f)


def value_and_grad(f: Function, argnums: ArgNums = 0, *, has_aux: bool = False) -> Function:
    """What a scalar function returns and its gradient, as a pair. Arguments and errors are those of `grad`."""
    require_function("grad", f)

    def both(*args: Any, **kwargs: Any) -> Any:
        run = Run("grad", f, args, kwargs, positions("grad", argnums, args))
        if has_aux and not (isinstance(run.y, tuple) and len(run.y) == 2):
            raise ArgumentError(
                f"grad: with has_aux=True `f` must return (scalar, anything), and {nest.outline(run.y)} came."
            )
        root = run.y[0] if has_aux else run.y
        if not nest.differentiable(root) or nest.array_of(root).shape != ():
            raise ArgumentError(
                f"grad: `f` must return a scalar, and {nest.outline(root)} came.\n"
                f"  End with tg.sum or tg.mean; or use tg.jacobian, or tg.vjp with a cotangent."
            )
        if not isinstance(root, Variable) and len(run.tape):
            warnings.warn(
                f"grad: `f` returned a plain number, {describe(root)}, which has left the tape: its gradient is zero.\n"
                f"  Return the Variable itself, not float(v) or v.value; or tg.constant of it if zero is meant.",
                GradientStopsWarning,
                stacklevel=3,
            )
        array = nest.array_of(root)
        found = run.pull([(root, module_beside(array).ones((), array.dtype))])
        return run.outward(run.y), found if isinstance(argnums, tuple) else found[0]

    return named(both, "value_and_grad", f)


def vjp(f: Function, *primals: Any) -> tuple[Any, Function]:
    """`f(*primals)` and its pullback: from a cotangent (a nest like the value) to a tuple of one for each argument.

    The pullback may be called any number of times; it keeps what the rules of the ops need.
    """
    require_function("vjp", f)
    run = Run("vjp", f, primals, {}, tuple(range(len(primals))))

    def pullback(ct: Any) -> tuple[Any, ...]:
        given = nest.alike(ct, run.y, "vjp", "the cotangent")
        return run.pull(
            [(y, like(c, y, "vjp", "cotangent")) for y, c in zip(run.outputs, given, strict=True)]
        )

    return run.outward(run.y), pullback


def jvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`f(*primals)` and its derivative along `tangents`: the pushforward. Both have the form of the value."""
    y, push = linearize_as("jvp", f, primals)
    return y, push(*require_arguments("jvp", "tangents", tangents))


def linearize(f: Function, *primals: Any) -> tuple[Any, Function]:
    """`f(*primals)` and its pushforward: from a tangent for each argument to that of the value. It may be called often."""
    return linearize_as("linearize", f, primals)


def jacobian(f: Function, argnums: ArgNums = 0, *, mode: str | None = None) -> Function:
    """All partial derivatives: for each array of the value a nest like the argument, of arrays value shape + argument shape.

    `mode`: "reverse" takes a sweep for each element of the value, "forward" a push for each element of
    the arguments; None takes the fewer.
    """
    require_function("jacobian", f)
    if mode not in (None, "reverse", "forward"):
        raise ArgumentError(f'jacobian: `mode` must be "reverse", "forward" or None, and {mode!r} came.')

    def matrix(*args: Any, **kwargs: Any) -> Any:
        run = Run("jacobian", f, args, kwargs, positions("jacobian", argnums, args))
        inputs = [nest.array_of(v) for v in run.entered]
        outputs = [nest.array_of(y) for y in run.outputs]
        by_rows = mode == "reverse" or (mode is None and count(outputs) <= count(inputs))
        blocks = rows(run, inputs, outputs) if by_rows else columns(run, inputs, outputs)
        found = [run.form([run.leaving(b) for b in row]) for row in blocks]
        return nest.rebuilt(run.y, [row if isinstance(argnums, tuple) else row[0] for row in found])

    return named(matrix, "jacobian", f)


def hessian(f: Function, argnums: ArgNums = 0) -> Function:
    """The second derivatives of a scalar function: the Jacobian of its gradient."""
    require_function("hessian", f)
    return named(jacobian(grad(f, argnums), argnums), "hessian", f)


def hvp(f: Function, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, ...]:
    """The Hessian of a scalar function times `tangents`, a nest for each argument: forward over reverse.

    Costs a few times what the gradient does, whatever the number of elements (Pearlmutter 1994).
    """
    require_function("hvp", f)
    primals = require_arguments("hvp", "primals", primals)
    gradient = grad(f, tuple(range(len(primals))))
    return jvp(gradient, primals, tangents)[1]  # type: ignore[no-any-return]


# -- one run of a function -------------------------------------------------------------------------


class Run:
    """A function recorded on a tape of its own, with the arguments at `argnums` entered under slots of their own.

    `entered`: the Variables that were entered; `y`: what the function returned, `outputs` its leaves.
    """

    def __init__(
        self, name: str, f: Function, args: Sequence[Any], kwargs: dict[str, Any], argnums: tuple[int, ...]
    ) -> None:
        self.name = name
        self.arguments = [args[i] for i in argnums]
        given = [
            entered(require_floating(leaf, name, i, path))
            for i in argnums
            for path, leaf in nest.leaves(args[i])
        ]
        self.entered: list[Variable] = given
        given_args = list(args)
        for i, argument in zip(argnums, self.form(given), strict=True):
            given_args[i] = argument
        self.tape = Tape()
        with self.tape:
            self.y = f(*given_args, **kwargs)
        self.outputs = [leaf for _, leaf in nest.leaves(self.y)]

    def form(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """`values`, one for each leaf that was entered, as nests like the arguments."""
        return nest.rebuilt(tuple(self.arguments), values)  # type: ignore[no-any-return]

    def pull(self, seeds: Iterable[tuple[Any, Any]]) -> tuple[Any, ...]:
        """From pairs of an output and its cotangent to nests like the arguments."""
        return self.form([self.leaving(ct) for ct in self.pulled(seeds)])

    def pulled(self, seeds: Iterable[tuple[Any, Any]]) -> list[Any]:
        """The cotangent of every leaf that was entered."""
        record = bool(active_tapes())
        adjoints = Adjoints(record=record)
        for y, ct in seeds:
            if isinstance(y, Variable) and y._slot:
                adjoints.add(y._slot, as_computed(ct, record))
        entries = reversed(self.tape._entries())
        adjoints.sweep(map(self.tape.revive, entries) if record else entries)
        return [owned_adjoint(adjoints.sums.get(v._slot), v, record) for v in self.entered]

    def pushed(self, tangents: Sequence[Any]) -> list[Any]:
        """The tangent of every output, in its dtype and the caller's own, from one for each leaf that was entered."""
        record = bool(active_tapes())
        moving = {
            v._slot: as_computed(t, record)
            for v, t in zip(self.entered, tangents, strict=True)
            if t is not None
        }
        push_through(self.tape._entries(), moving, record=record)
        found = []
        for y in self.outputs:
            v = y if isinstance(y, Variable) else constant(nest.array_of(y))
            found.append(owned_adjoint(moving.get(v._slot), v, record))
        return found

    def outward(self, y: Any) -> Any:
        """What the function returned, for the caller: Variables where a tape records around, else arrays."""
        return nest.mapped(self.leaving, y)

    def leaving(self, value: Any) -> Any:
        if active_tapes():
            return value
        return value.value if isinstance(value, Variable) else value


def as_computed(value: Any, record: bool) -> Any:
    """A cotangent or tangent as a pass computes with it: a Variable only where the pass is recorded."""
    return value if record or not isinstance(value, Variable) else value._array


def linearize_as(name: str, f: Function, primals: Sequence[Any]) -> tuple[Any, Function]:
    """`linearize`, whose errors say `name`."""
    require_function(name, f)
    primals = require_arguments(name, "primals", primals)
    run = Run(name, f, primals, {}, tuple(range(len(primals))))

    def push(*tangents: Any) -> Any:
        given = nest.alike(tuple(tangents), primals, name, "tangents")
        ts = [like(t, v, name, "tangent") for t, v in zip(given, run.entered, strict=True)]
        return nest.rebuilt(run.y, [run.leaving(t) for t in run.pushed(ts)])

    return run.outward(run.y), push


def entered(leaf: Any) -> Variable:
    """A leaf of an argument under a new slot, which a tape that begins now differentiates."""
    if isinstance(leaf, Variable) and leaf._slot and active_tapes():
        return positive(leaf)  # type: ignore[no-any-return]
    array = leaf._array if isinstance(leaf, Variable) else owned(leaf)
    return result(array, -next_slot())


def require_floating(leaf: Any, name: str, i: int, path: nest.Path) -> Any:
    """`leaf`, which stands at `path` in argument `i`, if it can be differentiated."""
    if not nest.differentiable(leaf):
        choose = "Choose other arguments by argnums, or close" if name in ("grad", "jacobian") else "Close"
        raise DtypeError(
            f"{name}: argument {i}{path} must be real floating point, and {describe(leaf)} came.\n"
            f"  {choose} over this one: lambda x: f(x, labels)."
        )
    refuse_masked(leaf, f"{name}: argument {i}{path}")
    return leaf


def rows(run: Run, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[list[Any]]:
    """The Jacobian's block for each output and each input: a sweep for every element of an output."""
    blocks = []
    for k, y in enumerate(outputs):
        found = [run.pulled([(run.outputs[k], seed)]) for seed in unit_arrays(y)]
        blocks.append([joined([row[j] for row in found], y, x) for j, x in enumerate(inputs)])
    return blocks


def columns(run: Run, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[list[Any]]:
    """The same by a push for every element of an input."""
    by_input = []
    for j, x in enumerate(inputs):
        found = []
        for tangent in unit_arrays(x):
            ts: list[Any] = [None] * len(inputs)
            ts[j] = tangent
            found.append(run.pushed(ts))
        by_input.append(found)
    return [
        [joined([column[k] for column in by_input[j]], x, y, last=True) for j, x in enumerate(inputs)]
        for k, y in enumerate(outputs)
    ]


def joined(parts: Sequence[Any], over: Any, each: Any, last: bool = False) -> Any:
    """Arrays like `each`, one for every element of `over`, as one array whose first (or last) axes are those of `over`."""
    if last:
        shape = (*each.shape, *over.shape)
        return reshape(stack(parts, axis=-1), shape) if parts else zeros_like(each, shape)
    shape = (*over.shape, *each.shape)
    return reshape(stack(parts), shape) if parts else zeros_like(each, shape)


def zeros_like(each: Any, shape: Any) -> Any:
    """Zeros of the dtype of `each`, and beside it."""
    array = nest.array_of(each)
    return zeros_beside(array, shape, array.dtype)


def unit_arrays(like: Any) -> Any:
    """The arrays of the shape of `like` that are 1 at one element."""
    for i in range(like.size):
        array = nest.array_of(like)
        unit = zeros_beside(array, array.size, array.dtype)
        unit[i] = 1
        yield unit.reshape(like.shape)


def count(arrays: Sequence[Any]) -> int:
    return sum(a.size for a in arrays)


# -- what the caller gave --------------------------------------------------------------------------


def require_function(name: str, f: Any) -> None:
    if not callable(f):
        raise ArgumentError(f"{name}: `f` must be a function, and {describe(f)} came.")


def require_arguments(name: str, argument: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, (tuple, list)):
        raise ArgumentError(
            f"{name}: `{argument}` must be a tuple with an entry for each argument of `f`, and {describe(values)} came.\n"
            f"  For one argument write ({argument[:-1]},)."
        )
    return tuple(values)


def positions(name: str, argnums: ArgNums, args: Sequence[Any]) -> tuple[int, ...]:
    """`argnums` as a tuple of positions that exist."""
    wanted = argnums if isinstance(argnums, tuple) else (argnums,)
    for i in wanted:
        if not isinstance(i, int) or isinstance(i, bool) or not -len(args) <= i < len(args):
            raise ArgumentError(
                f"{name}: `argnums` must name positional arguments, of which {len(args)} were given, and {i!r} came."
            )
    found = tuple(i % len(args) for i in wanted)
    if len(set(found)) < len(found):
        raise ArgumentError(f"{name}: `argnums` names an argument twice: {argnums}.")
    return found


def like(value: Any, v: Any, name: str, what: str) -> Any:
    """A cotangent or tangent that was given for `v`, in its dtype. Raises for another shape."""
    target = v if isinstance(v, Variable) else constant(v)
    if isinstance(value, Variable):
        require_shape(value, target, name, what)
        return value if value.dtype == target.dtype else value.astype(target.dtype)  # type: ignore[attr-defined]
    array = numbers(value, target.dtype, name, what, target._array)
    require_shape(array, target, name, what)
    return array


def named(function: Function, transform: str, f: Function) -> Function:
    """`function` with a name that says what it is of."""
    function.__name__ = function.__qualname__ = f"{transform}({getattr(f, '__name__', repr(f))})"
    return function
