"""Values that the tape can tell apart: an array, and the slot that names it on the Wengert list.

A *slot* is issued once per process and never reused. Its sign says what a value is:

    slot < 0   a leaf: made by the user, differentiated, holds a `.grad`
    slot > 0   a result, recorded by the tapes that were active when it was computed
    slot == 0  a constant

A Variable does not know its tape. Whether a slot is on a tape is the tape's to say, so a value
whose entry was dropped is a constant without anyone having to cut anything.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import numpy as np

from ..backend.device import device_of, frozen_view, on_device, on_host, owned, placed_beside, zeros_for
from ..errors import ArgumentError, ShapeError, UnsupportedError, describe
from ..types import Array, ArrayLike, Shape
from .floating import floating
from .refusals import refuse_moved_leaf, refuse_plain_array, refuse_plain_number

next_slot = itertools.count(1).__next__

# The living leaves by slot. A sweep finds here whose `.grad` it has computed; a leaf that
# nobody holds any more has nobody to read it.
LEAVES: weakref.WeakValueDictionary[int, Variable] = weakref.WeakValueDictionary()


class Variable:
    """An array that is differentiated.

    `value` is copied and stays where it lies, on the host or on a device; it must be floating point. Assign to
    `.value` to change it (recordings keep the array they used). `.grad` is `None` until a `backward` reaches this
    leaf, and then an array of the same shape and dtype that later sweeps add to; set it to `None` to start again.

    Raises DtypeError for integers, booleans, complex numbers and objects.
    """

    __slots__ = ("__weakref__", "_array", "_grad", "_slot", "name")
    __array_priority__ = 1000

    _array: Any
    _slot: int
    _grad: Array | None
    name: str | None

    def __init__(self, value: ArrayLike, *, name: str | None = None) -> None:
        self._array = floating(value, type(self).__name__)
        self._slot = -next_slot()
        self._grad = None
        self.name = name
        LEAVES[self._slot] = self

    @property
    def value(self) -> Array:
        """The array, read-only. To change a leaf assign: `p.value = p.value - lr * p.grad`.

        On a device it is CuPy's array, which has no flag that forbids to write: do not.
        """
        array = self._array
        if type(array) is not np.ndarray:
            if on_device(array):
                return array  # type: ignore[no-any-return]
            array = self._array = np.asarray(array)
        array.flags.writeable = False
        return array  # type: ignore[no-any-return]

    @value.setter
    def value(self, value: ArrayLike) -> None:
        value = placed_beside(getattr(value, "_array", value), self._array, "value", "value")
        array = floating(value, "value", dtype=self._array.dtype)
        if array.shape != self._array.shape:
            raise ShapeError(
                f"value: a {type(self).__name__} keeps its shape.\n"
                f"  it is {describe(self._array)}, and the new value is {describe(array)}.\n"
                f"  Make a new {type(self).__name__} for a new shape."
            )
        self.rebind(array)

    def rebind(self, array: Array) -> None:
        """Take `array` as the value without copying it. The caller gives it away: it is not checked."""
        self._array = array

    @property
    def grad(self) -> Array | None:
        """The gradient summed over all sweeps since it was `None`; owned, free to be changed in place."""
        grad = self._grad
        return grad if grad is None or type(grad) is np.ndarray else formed(grad)

    @grad.setter
    def grad(self, grad: ArrayLike | None) -> None:
        if grad is not None:
            grad = owned(placed_beside(grad, self._array, "grad", "gradient"), self.dtype)
            if grad.shape != self.shape:
                raise ShapeError(
                    f"grad: expected the shape of the value.\n"
                    f"  value: {describe(self._array)}      grad: {describe(grad)}"
                )
        self._grad = grad

    def accumulate_grad(self, ct: Array) -> None:
        """Add `ct` to `.grad`, in the dtype of the value. Raises ShapeError for another shape: a rule is wrong."""
        if ct.shape != self._array.shape:
            raise ShapeError(
                f"backward: the gradient of {self.name or 'a leaf'} came out as {describe(ct)}, "
                f"and its value is {describe(self._array)}.\n"
                f"  A rule of an op, or the hook of a joint, returned another shape than it was given."
            )
        if type(ct) is not type(self._array):
            refuse_moved_leaf(self.name, self._array, ct)
        if self.grad is None:
            self._grad = owned(ct, self.dtype)
        else:
            self._grad += ct

    # -- what an array also has ------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        return self._array.shape  # type: ignore[no-any-return]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype  # type: ignore[no-any-return]

    @property
    def ndim(self) -> int:
        return self._array.ndim  # type: ignore[no-any-return]

    @property
    def size(self) -> int:
        return self._array.size  # type: ignore[no-any-return]

    @property
    def device(self) -> str:
        """Where the value lies: "cpu", or "cuda:0"."""
        return device_of(self._array)

    def item(self, *index: Any) -> float:
        """The only element, or the one at `index`, as a Python number."""
        return self._array.item(*index)  # type: ignore[no-any-return]

    def __float__(self) -> float:
        if self._slot:
            refuse_plain_number()  # y[i] = v on an array asks for float(v), and so does y.sum(initial=v)
        return float(self._array)

    def __int__(self) -> int:
        return int(self._array)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __len__(self) -> int:
        return len(self._array)

    __hash__ = object.__hash__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        refuse_plain_array(self._array, self._slot != 0)
        return np.array(self.value, dtype=dtype, copy=copy)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise UnsupportedError(
            "a Variable is never written into: recordings share its array.\n"
            "  Use v = tg.index_put(v, index, value) for a copy that is changed there, or assign a leaf's whole .value."
        )

    def __repr__(self) -> str:
        array = np.asarray(on_host(self._array))
        body = np.array2string(array, separator=", ", prefix=f"{type(self).__name__}(")
        device = f", device={self.device!r}" if on_device(self._array) else ""
        return f"{type(self).__name__}({body}, dtype={self.dtype}{device})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and not self.ndim else object.__format__(self, spec)

    def __reduce__(self) -> Any:
        return _restore, (type(self), owned(self._array), self.grad, self.name)


class Parameter(Variable):
    """A Variable that a module owns and an optimizer updates."""

    __slots__ = ("flat",)

    def __init__(self, value: ArrayLike, *, name: str | None = None) -> None:
        super().__init__(value, name=name)
        # The vector that this parameter is a piece of, if there is one; its gradient is a piece, too.
        self.flat: weakref.ref[Any] | None = None

    @Variable.grad.setter  # type: ignore[attr-defined,untyped-decorator]
    def grad(self, grad: ArrayLike | None) -> None:
        if self.flat is None or self._grad is None:
            Variable.grad.fset(self, grad)  # type: ignore[attr-defined]
        else:  # shared with the vector: None empties it
            piece = self._grad
            Variable.grad.fset(self, zeros_for(self) if grad is None else grad)  # type: ignore[attr-defined]
            piece[...] = self._grad
            self._grad = piece

    def rebind(self, array: Array) -> None:
        super().rebind(array)
        vector = self.flat() if self.flat is not None else None
        if vector is not None and vector is not self:
            vector.gather()


class Result(Variable):
    """What an op returns. Made without a Python `__init__`, which is 0.1 µs of every op."""

    __slots__ = ()
    __init__ = object.__init__
    name = None

    @property
    def grad(self) -> Array | None:
        return None

    @grad.setter
    def grad(self, grad: ArrayLike | None) -> None:
        raise ArgumentError(
            "grad: only leaves hold one. Ask the sweep for this value: tape.backward(root, keep=[v])[v]."
        )

    @property
    def value(self) -> Array:
        return Variable.value.fget(self)  # type: ignore[attr-defined,no-any-return]

    @value.setter
    def value(self, value: ArrayLike) -> None:
        raise ArgumentError(
            "value: this Variable was computed by an op, so its value cannot be assigned.\n"
            "  Make a leaf of it with tg.Variable(v.value), and assign to that."
        )

    def __repr__(self) -> str:
        return "Variable" + Variable.__repr__(self).removeprefix("Result")

    def __reduce__(self) -> Any:
        return constant, (owned(self._array),)


def result(array: Any, slot: int) -> Result:
    """The Variable with value `array` that is called `slot` on the tapes."""
    made: Result = object.__new__(Result)
    made._array = array
    made._slot = slot
    return made


def constant(array: ArrayLike) -> Variable:
    """`array` as a Variable that is not differentiated, kept by reference: do not write to it later."""
    return result(frozen_view(array._array if isinstance(array, Variable) else array), 0)


def formed(grad: Any) -> Array:
    """A gradient as an array: a compiled sweep leaves one as a product until it is read."""
    is_one = isinstance(grad, np.ndarray) or on_device(grad)
    return grad if is_one else grad.form()  # type: ignore[no-any-return]


def _restore(kind: type[Variable], array: Array, grad: Array | None, name: str | None) -> Variable:
    restored = kind(array, name=name)
    restored._grad = None if grad is None else grad.copy()
    return restored
