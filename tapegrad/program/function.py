"""`compile(f)`: record a function once, and replay its forward and backward with new inputs.

The promise is the caller's: f computes with its arguments and with the leaves it closes over, and takes the
same path through its Python whenever its comparisons come out the same. What is checked is checked at every
call: shapes, dtypes and Python values of the arguments choose the recording, and each `if` on elements is a
guard. A path that was not met before is recorded; a wrong answer is not among the possibilities.
"""

from __future__ import annotations

import keyword
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..backend.device import on_device
from ..core.active import ACTIVE
from ..core.entry import Entry, record_outputs
from ..core.generate import RESERVED, keep
from ..core.primitive import Primitive, Variant
from ..core.seeds import numbers, require_shape
from ..core.tape import Tape
from ..core.variable import Variable, next_slot, result
from ..errors import ArgumentError, UnsupportedError, describe
from ..types import Array
from .chance import watched_for_random_numbers
from .interpreter import NotNumbers, ScalarProgram, worthwhile
from .live import PathChanged
from .record import LOCK, STORED, Output, Recorded, leaves_as, mapped, record, recording_now
from .statements import ArrayProgram
from .trace import Traced, Untraceable

KEYS, PATHS = 64, 16  # how many kinds of arguments, and paths for each, are remembered
MANY = 32  # recordings after which a function that is hardly ever replayed is worth a warning

Program = ScalarProgram | ArrayProgram


class Path:
    """One recording of a function: what to run for arguments of one kind when its guards come out so."""

    def __init__(self, name: str, trace: Recorded, template: Arguments, f: Callable[..., Any]) -> None:
        self.program = program_of(trace)
        self.outcomes = tuple(guard.outcome for guard in trace.graph.guards)
        self.leaves = trace.leaves
        self.count = len(trace.outputs)
        self.returned = trace.returned
        self.shapes = [(node.shape, node.dtype) for node in trace.outputs]
        self.active = [node is not None for node in trace.adjoints]
        one_scalar = self.count == 1 and self.shapes[0][0] == ()
        self.unit_seed = [np.ones((), self.shapes[0][1])[()]] if one_scalar else []
        self.template, self.f = template, f
        self.variant = self._declared(name)

    def _declared(self, name: str) -> Variant:
        """The program as an op of `inputs`, for tapes."""
        program, count = self.program, self.count

        def body(xp: Any, inputs: Any) -> Any:
            results, saved = program.forward(inputs, False)
            return (*results[:count], saved)

        def pullback(ct: Any, saved: Any) -> Any:
            return (program.backward(saved, ct if count > 1 else [ct]),)

        body.__name__ = name
        several = tuple(f"output_{i}" for i in range(count)) if count > 1 else ()
        made = Primitive(
            body, {}, outputs=several, hidden=("saved",), variadic="inputs", joint=pullback,
            differentiable=("inputs",), reference=self.reference,
        )  # fmt: skip
        variant = made.variant(("inputs",))
        made.reference = None  # `pull` sees to recorded passes
        variant.pull = self.pull
        return variant

    def pull(self, entry: Entry, ct: Any) -> Any:
        """The contributions of one call: the program's, or those of a recording of f in a recorded pass."""
        *_, slots, inputs, saved = entry
        if any(isinstance(v, Traced) for v in (*inputs, saved, *(saved if isinstance(saved, tuple) else ()))):
            raise Untraceable("a compiled function is one call in the programs of others")
        if not any(isinstance(v, Variable) for v in inputs):
            cts = ct.filled(self.shapes) if self.count > 1 else [ct]
            return [
                (slot, c) for slot, c in zip(slots, self.program.backward(saved, cts), strict=True) if slot
            ]
        tape = Tape()
        with tape:
            y = self.reference(inputs)
        ys, cts = ([y[i] for i in ct.parts], ct.parts.values()) if self.count > 1 else ([y], [ct])
        sums = tape._sweep(ys, list(cts), (), record=True).sums
        return [(slot, sums[slot]) for slot in dict.fromkeys(slots) if slot and slot in sums]

    def reference(self, inputs: Sequence[Any]) -> Any:
        """The differentiated results by f itself, for recorded passes: with the leaves' arrays of that time."""
        arguments, arrays = inputs[: self.template.count], inputs[self.template.count :]
        then = {
            leaf._slot: array._array if isinstance(array, Variable) else array
            for leaf, array in zip(self.leaves, arrays, strict=True)
        }
        with leaves_as(lambda leaf: then[leaf._slot] if leaf._slot in then else STORED.__get__(leaf)):
            returned = self.template.call(self.f, arguments)
        found: list[Any] = [None] * self.count

        def collect(output: Output, value: Any) -> None:
            if output.live:
                found[output.position] = value

        pairwise(collect, self.returned, returned)
        return found if self.count > 1 else found[0]

    def rebuilt(self, live: Sequence[Any], plain: Sequence[Any]) -> Any:
        """What f returned, with these results."""

        def place(output: Output) -> Any:
            if output.live:
                return live[output.position]
            array = plain[output.position]
            return result(array, 0) if output.variable else array

        return mapped(place, self.returned, Output)

    # -- running -------------------------------------------------------------------------------------

    def compute(self, given: Given) -> tuple[Sequence[Any], Any]:
        """The results, and what the backward pass needs."""
        return self.program.forward([*given.arrays, *[leaf._array for leaf in self.leaves]])

    def deliver(self, given: Given, adjoints: Sequence[Any]) -> None:
        """Add the adjoints of leaves to their `.grad`. An array that nobody else holds becomes it."""
        for v, ct, fresh in zip([*given.variables, *self.leaves], adjoints, self.program.fresh, strict=True):
            if ct is None or v is None or v._slot > 0:
                continue
            if fresh and v._grad is None:
                v._grad = ct
            else:
                v.accumulate_grad(ct)

    def call(self, given: Given) -> Any:
        """What f returns: an entry on every active tape, or a constant where none records."""
        tapes = ACTIVE.get()
        slots = [*given.slots, *[leaf._slot for leaf in self.leaves]]
        slots = [slot if active else 0 for slot, active in zip(slots, self.active, strict=True)]
        if not tapes or not self.count or not any(slots):
            results, _ = self.compute(given)
            foreign = tapes is None and any(s > 0 for s in slots)
            live = [result(y, next_slot() if foreign else 0) for y in results[: self.count]]
            return self.rebuilt(live, results[self.count :])
        return self.rebuilt(*self._recorded(given, tuple(slots), tapes))

    def _recorded(
        self, given: Given, inputs_slot: tuple[int, ...], tapes: Any
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        """Compute, and append one entry (and an item for each of several outputs) to `tapes`."""
        # A tape that re-runs its window looks for `inputs_value` in this frame.
        inputs_value = (*map(kept_array, given.arrays), *[leaf.value for leaf in self.leaves])
        results, saved = self.program.forward(inputs_value)
        y = results[: self.count]
        out = next_slot()
        shape: Any = tuple([(a.shape, a.dtype) for a in y]) if self.count > 1 else y[0].shape
        dtype = None if self.count > 1 else y[0].dtype
        entry = (self.variant, out, shape, dtype, inputs_slot, inputs_value, saved)
        for tape in tapes:
            tape.append(entry)
        live = record_outputs(y, out, tapes) if self.count > 1 else [result(y[0], out)]
        return live, results[self.count :]


def kept_array(array: Any) -> Any:
    """`array` so that an entry may hold it."""
    kept = keep(array)
    if kept is not array:
        kept.flags.writeable = False
    return kept


def program_of(trace: Recorded) -> Program:
    """Instructions where ops are many and arrays tiny, else statements."""
    if worthwhile([*trace.forward, *trace.backward]):
        try:
            return ScalarProgram(trace)
        except NotNumbers:
            pass
    return ArrayProgram(trace)


# -- arguments -----------------------------------------------------------------------------------------


class Given:
    """The arguments of one call: arrays, their slots (0: not differentiated), and the Variables among them."""

    __slots__ = ("arrays", "slots", "variables")

    def __init__(self) -> None:
        self.arrays: list[Any] = []
        self.slots: list[int] = []
        self.variables: list[Variable | None] = []


class Arguments:
    """Arguments with numbered places for their arrays."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self.count = 0

        def number(value: Any) -> Any:
            self.count += 1
            return Numbered(self.count - 1)

        self.args, self.kwargs = mapped(number, (args, kwargs), (Variable, np.ndarray, np.generic))

    def call(self, f: Callable[..., Any], arrays: Sequence[Any]) -> Any:
        """`f` of the arguments, with `arrays` in the places."""
        args, kwargs = mapped(lambda place: arrays[place.number], (self.args, self.kwargs), Numbered)
        return f(*args, **kwargs)


class Numbered:
    """The place of an array."""

    def __init__(self, number: int) -> None:
        self.number = number


def key_of(value: Any, given: Given) -> Any:
    """What chooses a recording: structure, shapes, dtypes, Python values. Arrays are put into `given`."""
    kind = type(value)
    if kind is np.ndarray:
        given.arrays.append(value)
        given.slots.append(0)
        given.variables.append(None)
        return value.shape, value.dtype
    if isinstance(value, Variable):
        array = value._array
        given.arrays.append(array)
        given.slots.append(value._slot)
        given.variables.append(value)
        return "differentiated" if value._slot else "constant", array.shape, array.dtype
    if kind is tuple or kind is list:
        return kind, *[key_of(v, given) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        given.arrays.append(value)
        given.slots.append(0)
        given.variables.append(None)
        return kind, value.shape, value.dtype
    if kind is dict:
        return kind, *[(k, key_of(v, given)) for k, v in value.items()]
    if isinstance(value, (tuple, list)):
        return kind, *[key_of(v, given) for v in value]
    if kind is float:
        return kind, value.hex()
    if kind in (int, bool, str, bytes, type(None), complex, slice):
        return kind, repr(value) if kind in (complex, slice) else value
    if on_device(value):
        given.arrays.append(value)  # to be refused
    return Same(value)


class Same:
    """An object as part of a key: the very same, which stays alive as long as the key."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def pairwise(function: Callable[[Any, Any], None], outputs: Any, values: Any) -> None:
    """`function` of each Output in a nest and of what is there in another nest of the same form."""
    if isinstance(outputs, Output):
        function(outputs, values)
    elif isinstance(outputs, (tuple, list)):
        for output, value in zip(outputs, values, strict=True):
            pairwise(function, output, value)
    elif isinstance(outputs, dict):
        for k, output in outputs.items():
            pairwise(function, output, values[k])


# -- the function --------------------------------------------------------------------------------------


class Compiled:
    """What `compile` returns: call it as f, or let `backward` compute the gradients in the same go."""

    def __init__(self, f: Callable[..., Any]) -> None:
        if not callable(f):
            raise ArgumentError(f"compile: `f` must be a function, and {describe(f)} came.")
        self.f = f
        self.name = getattr(f, "__name__", type(f).__name__)
        self.__name__, self.__doc__ = self.name, getattr(f, "__doc__", None)
        self.recordings = 0
        self._calls = 0
        self._paths: OrderedDict[Any, list[Path]] = OrderedDict()
        self._last: Path | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`f(*args, **kwargs)`: one entry on every tape that records."""
        if recording_now():
            return self.f(*args, **kwargs)
        given = Given()
        key = key_of((args, kwargs) if kwargs else args, given)
        found = self._run(key, given, args, kwargs, Path.call)
        return self.f(*args, **kwargs) if found is None else found[1]

    def backward(self, *args: Any, seed: Any = None, **kwargs: Any) -> Any:
        """`f(*args, **kwargs)`, whose gradient is added to the `.grad` of leaves: no tape is needed.

        Leaves are those that f closes over, and Variables among the arguments. What f returns must be one
        scalar, unless `seed` gives its cotangent, of its shape (a list for several differentiated results).
        Raises ArgumentError, ShapeError or DtypeError for a seed that does not fit.
        """
        if recording_now():
            raise UnsupportedError(
                f"{self.name}.backward: it was called inside of another compiled function.\n"
                f"  Compile the function that calls it without tg.compile around it, or call {self.name}() there."
            )
        given = Given()
        key = key_of((args, kwargs) if kwargs else args, given)
        found = self._run(key, given, args, kwargs, Path.compute)
        if found is None:
            raise UnsupportedError(
                f"{self.name}.backward: a comparison came out differently when it was replayed, for the same arguments.\n"
                f"  It depends on the last digit, or on something that changes. Use a Tape."
            )
        path, (results, saved) = found
        cts = path.unit_seed if seed is None and path.unit_seed else self._cotangents(path, results, seed)
        path.deliver(given, path.program.backward(saved, cts, True))
        live = [result(y, 0) for y in results[: path.count]]
        return path.rebuilt(live, results[path.count :])

    def _cotangents(self, path: Path, results: Sequence[Any], seed: Any) -> list[Array]:
        """The cotangents of the differentiated results."""
        where = f"{self.name}.backward"
        if not path.count:
            raise ArgumentError(
                f"{where}: nothing that {self.name} returns depends on a Variable. Return the loss as a Variable."
            )
        if seed is None:
            came = ", ".join(f"{dtype} {shape}" for shape, dtype in path.shapes)
            raise ArgumentError(
                f"{where}: {self.name} must return one scalar, and {came} came.\n"
                f"  Reduce it (tg.sum, tg.mean), or give seed= with an array of each shape."
            )
        seeds = list(seed) if path.count > 1 and isinstance(seed, (list, tuple)) else [seed]
        if len(seeds) != path.count:
            raise ArgumentError(
                f"{where}: {path.count} results need a list of as many seeds, and {len(seeds)} came."
            )
        cts = [
            numbers(s._array if isinstance(s, Variable) else s, dtype, where, "seed")
            for s, (_, dtype) in zip(seeds, path.shapes, strict=True)
        ]
        for ct, y in zip(cts, results, strict=False):
            require_shape(ct, result(y, 0), where, "seed")
        return cts

    # -- paths ---------------------------------------------------------------------------------------

    def _run(
        self, key: Any, given: Given, args: Any, kwargs: Any, execute: Callable[[Path, Given], Any]
    ) -> tuple[Path, Any] | None:
        """The path that the guards confirm, and what `execute` makes of it. None: not even a new one is confirmed."""
        self._calls += 1
        paths = self._paths.get(key)
        path = paths[0] if paths else None
        while path is not None:
            try:
                done = execute(path, given)
            except PathChanged as changed:
                seen = (*path.outcomes[: changed.index], changed.outcome)
                path = next((p for p in self._paths[key] if p.outcomes[: len(seen)] == seen), None)
            else:
                self._last = path
                return path, done
        path = self._recorded(key, given, args, kwargs)
        try:
            return path, execute(path, given)
        except PathChanged:
            return None

    def _refuse_a_device(self, arrays: Sequence[Any]) -> None:
        if any(map(on_device, arrays)):
            raise UnsupportedError(
                f"compile: {self.name} computes with arrays of a device, and compiled code computes on the host.\n"
                f"  Leave {self.name} uncompiled there."
            )

    def _recorded(self, key: Any, given: Given, args: Any, kwargs: Any) -> Path:
        self._refuse_a_device(given.arrays)
        template = Arguments(args, kwargs)
        with LOCK, watched_for_random_numbers(self.f, self.name):
            trace = record(
                self.name,
                lambda arrays: template.call(self.f, arrays),
                given.arrays,
                [bool(slot) for slot in given.slots],
            )
            self._refuse_a_device([leaf._array for leaf in trace.leaves])
            path = Path(op_name(self.name), trace, template, self.f)
            paths = self._paths.pop(key, [])
            self._paths[key] = [path, *(p for p in paths if p.outcomes != path.outcomes)][:PATHS]
            while len(self._paths) > KEYS:
                self._paths.popitem(last=False)
            self.recordings += 1
            self._last = path
        if self.recordings == MANY and self._calls < 2 * MANY:
            warnings.warn(
                f"compile: {self.name} was recorded {MANY} times in {self._calls} calls, which is slower than not compiling it.\n"
                f"  Python numbers among the arguments are part of what is compiled: pass np.asarray(x) for one that changes.",
                stacklevel=4,  # the caller of the function
            )
        return path

    def program(self) -> Program:
        """The program that ran last: print it to read the function and its derivative as NumPy or instructions."""
        if self._last is None:
            raise ArgumentError(f"{self.name}.program: nothing was recorded yet. Call {self.name} first.")
        return self._last.program

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A compiled method: the instance is the first argument."""
        import types

        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"compile({self.name})"


def op_name(name: str) -> str:
    """What the function is called on tapes."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
    made = f"compiled_{plain.strip('_') or 'function'}"
    assert not keyword.iskeyword(made) and made not in RESERVED
    return made


def compile(f: Callable[..., Any]) -> Compiled:
    """`f` recorded once for each kind of arguments, and replayed: for functions with fixed control flow.

        @tg.compile
        def loss(x, target):
            return tg.mean((x @ w + b - target) ** 2)

        loss.backward(x, target)             # w.grad, b.grad; no tape
        with tape:
            y = loss(x, target)              # or one entry on a tape

    Arguments are arrays, numbers and Variables, in tuples, lists and dicts as well. What f computes from arrays,
    from Variables and from leaves that it closes over is computed anew at each call. Everything else is as it was
    when recorded: Python numbers of the arguments choose a recording, plain arrays that f closes over and random
    numbers drawn in f are frozen, and nothing that f does besides (printing, appending) is done again. `if v > 0`
    is checked at each call, and another path is recorded when it comes; so is the result of `int(v)`. Other ways
    to take elements out (`float(v)`, `v.value`) raise UnsupportedError. Inside f, arrays are no `np.ndarray`s.

    Higher-order gradients are recorded from f itself. Results agree with f to rounding. On a CapacitorTape a call
    is one op of its segment; a tape that holds one cannot be saved with `state_dict`.
    """
    return Compiled(f)


__all__ = ["Compiled", "compile"]
