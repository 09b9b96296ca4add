"""Functions that a tape records as one op: run again when a sweep comes by, or with a pullback of their own.

`checkpoint` trades time for memory (rematerialisation; Griewank and Walther, "Revolve", 2000): of a whole
function the tape keeps the arguments alone, and a sweep runs it again. `custom_vjp` replaces what would be recorded.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import nest
from .backend.device import asarray, freeze, zeros_beside
from .core.active import active_tapes, alone
from .core.entry import Entry
from .core.generate import keep
from .core.primitive import Case, primitive
from .core.tape import Tape
from .core.variable import LEAVES, Variable, constant, next_slot, result
from .errors import ArgumentError, DtypeError, RecordingError, ShapeError, describe
from .transforms import entered, named, require_function

Function = Callable[..., Any]


class Hole:
    """Where in a call's arguments an array goes."""


class Call:
    """The arguments of one call without their floating-point arrays, and the function that they were for."""

    def __init__(self, name: str, f: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.name, self.f = name, f
        given = nest.mapped(kept, (tuple(args), kwargs))
        self.arrays = [leaf for _, leaf in nest.leaves(given) if nest.differentiable(leaf)]
        self.form = with_holes(given)
        self.shapes: list[Any] | None = None
        self.first: Sequence[Any] | None = (
            None  # what it returned when it was recorded, until the op takes it
        )

    def __repr__(self) -> str:
        return f"{self.name}({getattr(self.f, '__name__', 'f')})"

    def run(self, arrays: Iterable[Any]) -> Any:
        """What the function returns for these arrays."""
        args, kwargs = filled(self.form, arrays)
        return self.f(*args, **kwargs)

    def outputs(self, y: Any) -> list[Variable]:
        """The Variables among what was returned. Raises ShapeError if they are not those of the first time."""
        found = [leaf for _, leaf in nest.leaves(y) if isinstance(leaf, Variable)]
        shapes = [v.shape for v in found]
        if self.shapes is not None and shapes != self.shapes:
            raise ShapeError(
                f"{self.name}: run again, the function returned other shapes than before.\n"
                f"  before: {self.shapes}      now: {shapes}\n"
                f"  It must do the same each time: pass what changes as an argument."
            )
        self.shapes = shapes
        return found

    def forward(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs. The first call has just been made; weights="replay" makes others."""
        if self.first is None:
            return self.again(arrays)
        first, self.first = self.first, None
        return tuple(first)

    def again(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of another call."""
        raise NotImplementedError


def kept(leaf: Any) -> Any:
    """An argument as a call may hold it until it is run again: the caller may write to the array meanwhile."""
    array = keep(leaf)
    return array if array is leaf else freeze(array)


def with_holes(values: Any) -> Any:
    """A nest without its floating-point arrays."""
    return nest.mapped(lambda leaf: Hole if nest.differentiable(leaf) else leaf, values)


def filled(form: Any, arrays: Iterable[Any]) -> Any:
    """A nest with `arrays` in the places that `with_holes` left."""
    at = iter(arrays)
    return nest.mapped(lambda leaf: next(at) if leaf is Hole else leaf, form)


# -- running again ---------------------------------------------------------------------------------


def checkpoint(f: Function) -> Function:
    """`f`, of which tapes keep the arguments and not what is computed inside; a sweep computes that again.

        h = tg.checkpoint(block)(x)          # inside a recording; also in the segments of a CapacitorTape

    `f` takes and returns nests of arrays, and may read Variables and parameters from outside: it is run
    again with the values that they had. It must do the same when it is run again, and change nothing: draw random
    masks outside, and pass them; pass a loop's variables, too, for a lambda would see the newest. Keeps its
    arguments. Costs one more forward run for each sweep, and memory for one run while it lasts. Outside any
    recording it is `f`.

    In a CapacitorTape it is run again with the weights that its policy says, today's for "current".
    """
    require_function("checkpoint", f)

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not active_tapes():
            return f(*args, **kwargs)
        call, reads = Recomputed("checkpoint", f, args, kwargs), Reads()
        with alone(reads):
            y = call.run(map(unseen, call.arrays))
        call.first = [v._array for v in call.outputs(y)]
        if not call.first:
            return y
        free = reads.outside(call.outputs(y))
        call.free = [(v._slot, weakref.ref(v)) for v in free]
        made = iter(recompute([*call.arrays, *free], call))
        return nest.mapped(lambda leaf: next(made) if isinstance(leaf, Variable) else leaf, y)

    return named(checkpointed, "checkpoint", f)


def unseen(leaf: Any) -> Variable:
    """An argument under a new slot, as a tape would see it, which none will."""
    return result(nest.array_of(leaf), -next_slot())


class Reads:
    """Stands in for a tape, and keeps no entry: only which values were read that were there before."""

    def __init__(self) -> None:
        self.read: dict[int, Variable] = {}
        self.first = next_slot()  # lies below every slot that is issued inside
        self.append: Callable[[Entry], None] = self.note

    def note(self, entry: Entry) -> None:
        """What an op read."""
        given = sys._getframe(1).f_locals  # of the op's generated code: an entry need not hold what was read
        for argument, slots in entry[0].input_slots(entry).items():
            if f"{argument}_value" not in given:  # so for the items of an op with several outputs
                continue
            arrays, values = given[f"{argument}_value"], given[argument]
            if not isinstance(slots, tuple):
                slots, arrays, values = (slots,), (arrays,), (values,)
            elif not isinstance(values, (tuple, list)):  # an iterator, which is spent
                values = arrays
            for slot, array, value in zip(slots, arrays, values, strict=True):
                if slot < self.first and slot:
                    self.read.setdefault(slot, value if isinstance(value, Variable) else result(array, slot))

    def outside(self, outputs: Iterable[Variable]) -> list[Variable]:
        """What was read, or handed back, and was there before; also a leaf made here that somebody holds on to."""
        found = {**{v._slot: v for v in outputs}, **self.read}
        return [v for slot, v in found.items() if slot and (abs(slot) < self.first or slot in LEAVES)]


class Recomputed(Call):
    """A call of a checkpointed function. `free`: what it read from outside, as slots and Variables."""

    free: Sequence[tuple[int, weakref.ref[Variable]]] = ()

    def again(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of another call, watched as the first was: there a transform returns Variables."""
        count = len(arrays) - len(self.free)
        with alone(Reads()), rebound(self.free, arrays[count:]):
            return tuple(v._array for v in self.outputs(self.run(map(unseen, arrays[:count]))))

    def pull(self, cts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """The cotangents of the arguments and of what was read from outside."""
        count, tape = len(arrays) - len(self.free), Tape()
        record = any(isinstance(v, Variable) for v in (*cts, *arrays))
        around = active_tapes() if record else ()
        with alone(*around), rebound(self.free, arrays[count:]):
            inside = [entered(a) for a in arrays[:count]]
            reads = Reads()
            with alone(reads, *around), tape:
                outputs = self.outputs(self.run(inside))
            self.require_same(reads, inside, outputs)
            seeds = [(y, ct) for y, ct in zip(outputs, cts, strict=True) if y._slot]
            sums = tape._sweep([y for y, _ in seeds], [ct for _, ct in seeds], (), record).sums
        slots = [*(v._slot for v in inside), *(slot for slot, _ in self.free)]
        return [
            sums[s] if s in sums else zeros_beside(a, a.shape, a.dtype)
            for s, a in zip(slots, arrays, strict=True)
        ]

    def require_same(self, reads: Reads, inside: Sequence[Variable], outputs: Sequence[Variable]) -> None:
        """Raise if the function read or returned another Variable from outside than at first: it has bound it late."""
        known = {0, *(slot for slot, _ in self.free), *(v._slot for v in inside)}
        for v in (*reads.read.values(), *outputs):
            if abs(v._slot) < reads.first and v._slot not in known:
                raise RecordingError(
                    f"checkpoint: run again, the function read a Variable that it did not read before: {describe(v._array)}.\n"
                    f"  A function that is made in a loop sees the newest value of the loop's variables: pass them as arguments."
                )


@contextlib.contextmanager
def rebound(free: Sequence[tuple[int, weakref.ref[Variable]]], arrays: Sequence[Any]) -> Iterator[None]:
    """A scope in which the Variables of `free` have these arrays for their values, as when they were read."""
    found = [
        (ref(), a._array if isinstance(a, Variable) else a) for (_, ref), a in zip(free, arrays, strict=True)
    ]
    # One that stands as it was read is not touched: other threads may read and assign it meanwhile.
    before = [(v, v._array, array) for v, array in found if v is not None and v._array is not array]
    for v, _, array in before:
        v._array = array
    try:
        yield
    finally:
        for v, array, _ in before:
            v._array = array


def product_and_tanh(a: Any, b: Any) -> Any:
    return a * b, np.tanh(a)


EXAMPLE = Recomputed("checkpoint", product_and_tanh, (0.0, 0.0), {})


@primitive(
    outputs="parts",
    variadic="arrays",
    arrays=lambda ct, arrays, call: call.pull(ct, arrays),
    cases=[Case([(2, 3), (3,)], call=EXAMPLE)],
)
def recompute(xp: Any, arrays: Any, *, call: Any) -> Any:
    r"""One call of a function under `checkpoint`: $y = f(\text{arrays})$, and what $f$ reads from outside. Keeps the arrays."""
    return call.forward(arrays)


# -- a pullback of one's own -----------------------------------------------------------------------


class custom_vjp:
    """`f` with a pullback of its own: what tapes record of it, and what a sweep calls.

        @tg.custom_vjp
        def log1p_exp(x):
            return tg.log(1 + tg.exp(x))

        def forward(x):
            y = tg.exp(x)
            return tg.log(1 + y), y              # the value, and what the pullback needs

        def backward(y, ct):
            return (ct * (1 - 1 / (1 + y)),)     # a cotangent for each argument; None is zero

        log1p_exp.defvjp(forward, backward)

    Arguments and the value may be nests; so is the cotangent. All that is differentiated must be an argument: a
    Variable that is read from outside is an ArgumentError. Where a sweep is itself recorded, `forward` and
    `backward` are recorded, and must be made of ops.
    """

    def __init__(self, f: Function) -> None:
        require_function("custom_vjp", f)
        self.f = f
        self.__name__ = self.__qualname__ = getattr(f, "__name__", repr(f))
        self.__doc__ = getattr(f, "__doc__", None)
        self._rules: tuple[Function, Function] | None = None

    def defvjp(self, forward: Function, backward: Function) -> None:
        """`forward(*args)` returns (value, residuals); `backward(residuals, ct)` a tuple of cotangents."""
        require_function("custom_vjp.defvjp", forward)
        require_function("custom_vjp.defvjp", backward)
        self._rules = forward, backward

    def __call__(self, *args: Any) -> Any:
        if self._rules is None:
            raise ArgumentError(
                f"custom_vjp: {self.__name__} has no pullback yet. Call {self.__name__}.defvjp(forward, backward)."
            )
        if not active_tapes():
            return self.f(*args)
        call, reads = WithPullback(self.__name__, *self._rules, args), Reads()
        with alone(reads):
            y = call.value_of(map(constant, call.arrays))
        if free := reads.outside(()):
            raise ArgumentError(
                f"custom_vjp: {self.__name__} reads a Variable that is no argument of it: {describe(free[0])}.\n"
                f"  Its gradient would be lost: pass it as an argument, or as a constant by tg.stop_gradient."
            )
        call.first = [nest.array_of(leaf) for _, leaf in nest.leaves(y) if nest.differentiable(leaf)]
        call.y = with_holes(y)
        made = call_with_pullback(call.arrays, call)
        return filled(call.y, made)


class WithPullback(Call):
    """A call of a function with a pullback of its own; `residuals` are what its forward function left for it."""

    residuals: Any = None
    y: Any = Hole  # the form of the value

    def __init__(self, name: str, forward: Function, backward: Function, args: Sequence[Any]) -> None:
        super().__init__(name, forward, args, {})
        self.backward = backward

    def value_of(self, arrays: Iterable[Any]) -> Any:
        """What the function returns, noting the residuals."""
        pair = self.run(arrays)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ArgumentError(
                f"custom_vjp: the forward function of {self.name} must return (value, residuals), and {nest.outline(pair)} came."
            )
        y, self.residuals = pair
        return y

    def again(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of another call."""
        with alone():
            y = self.value_of(map(constant, arrays))
        return tuple(nest.array_of(leaf) for _, leaf in nest.leaves(y) if nest.differentiable(leaf))

    def pull(self, cts: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
        """The cotangents of the arguments, by the user's function. To be recorded, it needs residuals that are."""
        record = any(isinstance(v, Variable) for v in (*cts, *arrays))
        residuals = self.run(arrays)[1] if record else self.residuals
        ct = filled(self.y, cts if record else map(constant, cts))
        with alone(*(active_tapes() if record else ())):
            found = self.backward(residuals, ct)
        by_argument, args = self.by_argument(found), self.form[0]
        at, cotangents = iter(arrays), []
        for i, (c, argument) in enumerate(zip(by_argument, args, strict=True)):
            holes = [leaf for _, leaf in nest.leaves(argument)]
            given = (
                [None] * len(holes) if c is None else nest.alike(c, argument, self.where, f"cotangent {i}")
            )
            for one, hole in zip(given, holes, strict=True):
                if hole is Hole:
                    cotangents.append(self.cotangent(i, one, next(at), record))
        return cotangents

    def __repr__(self) -> str:
        return f"custom_vjp({self.name})"

    @property
    def where(self) -> str:
        return f"custom_vjp: the backward function of {self.name}"

    def by_argument(self, found: Any) -> tuple[Any, ...]:
        """What the user's function returned, if it is a tuple with one cotangent for each argument."""
        if not isinstance(found, tuple) or len(found) != len(self.form[0]):
            raise ArgumentError(
                f"{self.where} must return a tuple of {len(self.form[0])} cotangents, one for each argument "
                f"(None is zero), and {nest.outline(found)} came."
            )
        return found

    def cotangent(self, i: int, ct: Any, array: Any, record: bool) -> Any:
        """One cotangent, in the dtype and of the shape of its array."""
        if ct is None:
            return zeros_beside(array, array.shape, array.dtype)
        if nest.array_of(ct).shape != array.shape:
            raise ShapeError(
                f"{self.where} returned a cotangent of another shape than argument {i}.\n"
                f"  cotangent: {describe(ct)}      argument: {describe(array)}"
            )
        if nest.array_of(ct).dtype.kind not in "fiub":
            raise DtypeError(
                f"{self.where} returned a cotangent of argument {i} that is not real: {describe(ct)}."
            )
        if record and isinstance(ct, Variable):
            return ct if ct.dtype == array.dtype else ct.astype(array.dtype)  # type: ignore[attr-defined]
        return asarray(nest.array_of(ct), array.dtype)


def halved(x: Any) -> Any:
    return np.tanh(x) * 0.5, x


def halved_pullback(x: Any, ct: Any) -> Any:
    return (ct * (1.0 - np.tanh(x) ** 2) * 0.5,)


HALVED = WithPullback("halved", halved, halved_pullback, (0.0,))


@primitive(
    outputs="parts",
    variadic="arrays",
    arrays=lambda ct, arrays, call: call.pull(ct, arrays),
    cases=[Case([(2, 3)], call=HALVED)],
)
def call_with_pullback(xp: Any, arrays: Any, *, call: Any) -> Any:
    r"""One call of a function under `custom_vjp`: $y = f(\text{arrays})$. Keeps the arrays, and what the function keeps."""
    return call.forward(arrays)
