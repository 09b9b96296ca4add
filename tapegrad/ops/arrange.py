"""Ops that move elements within their axes, repeat them, or surround them with others: roll, flip, repeat, pad.

All are linear. The transpose of a move is the move back, that of a repetition is a sum over the copies.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..backend.device import on_device, on_host, put_beside
from ..core.primitive import Case, linear, primitive, unbroadcast
from ..core.variable import Variable
from ..errors import ArgumentError, DtypeError, ShapeError, UnsupportedError, describe
from .index import getitem, put_at
from .operands import arrayed, axis_of, value_of
from .reduce import sum
from .shape import broadcast_to, concat, diagonal, put_diagonal, ravel, reshape, split, swapaxes

# -- moves -----------------------------------------------------------------------------------------


@linear(
    a=lambda ct, shift, axis: roll(ct, opposite(shift), axis),
    cases=[
        Case((2, 3), shift=1),
        Case((2, 5), shift=-7, axis=-1),
        Case((3, 4), shift=(1, -2), axis=(0, 1)),
        Case((3, 4), shift=2, axis=(0, 1)),
        Case((), shift=3),
        Case((0, 3), shift=1, axis=1),
    ],
)
def roll(xp, a, *, shift, axis=None):
    r"""`a` shifted along `axis`, $y_{i + \mathrm{shift}} = a_i$; what leaves at one end enters at the other.

    `shift` and `axis` may be tuples. For None the flattened elements are shifted.
    """
    return xp.roll(a, integers(shift), axis)


def opposite(shift: Any) -> tuple[int, ...]:
    """A shift, or several, backwards."""
    return tuple(-s for s in integers(shift))


def integers(given: Any) -> tuple[int, ...]:
    """One integer or several, as a tuple. Raises TypeError for anything else, a Variable included."""
    return tuple(map(operator.index, given)) if np.ndim(given) else (operator.index(given),)


def given_integers(given: Any, op: str, argument: str) -> tuple[int, ...]:
    """`integers` of what a user gave. Raises DtypeError, which names the argument, for anything else."""
    try:
        return integers(given)
    except TypeError as error:
        raise DtypeError(f"{op}: `{argument}` must be integers, and {describe(given)} came.") from error


def fftshift(x: Any, axes: Any = None) -> Any:
    """`x` with its element 0 moved to the middle of `axes` (an int, a tuple, or all for None)."""
    x, axes = shifted_axes(x, axes, "fftshift")
    return roll(x, tuple(x.shape[i] // 2 for i in axes), axes)


def ifftshift(x: Any, axes: Any = None) -> Any:
    """The inverse of `fftshift`; they differ where a length is odd."""
    x, axes = shifted_axes(x, axes, "ifftshift")
    return roll(x, tuple(-(x.shape[i] // 2) for i in axes), axes)


def shifted_axes(x: Any, axes: Any, op: str) -> tuple[Any, tuple[int, ...]]:
    """`x` as an array, and `axes` (all for None) counted from 0."""
    x = arrayed(x)
    axes = range(x.ndim) if axes is None else given_integers(axes, op, "axes")
    return x, tuple(axis_of(x, i, op, "x") for i in axes)


@linear(
    m=lambda ct, axis: flip(ct, axis),
    cases=[Case((2, 3)), Case((2, 3), axis=-1), Case((2, 3, 4), axis=(0, 2)), Case(()), Case((0, 2), axis=0)],
)
def flip(xp, m, *, axis=None):
    r"""`m` with the elements along `axis` (an int, a tuple, or all for None) in reverse order."""
    return xp.flip(m, axis)


def flipud(m: Any) -> Any:
    """`m` with the elements of its first axis in reverse order."""
    return flip(m, 0)


def fliplr(m: Any) -> Any:
    """`m` with the elements of its second axis in reverse order."""
    return flip(m, 1)


def rot90(m: Any, k: int = 1, axes: tuple[int, int] = (0, 1)) -> Any:
    """`m` turned by `k` times 90° in the plane of two axes, from the first towards the second."""
    m = arrayed(m)
    places = tuple(axis_of(m, i, "rot90", "m") for i in axes)
    if len(set(places)) != 2 or len(places) != 2:
        raise ArgumentError(f"rot90: `axes` must be two different axes, and {axes} came.")
    if k % 4 == 0:
        return m
    if k % 4 == 2:
        return flip(m, places)
    return swapaxes(flip(m, places[1]), *places) if k % 4 == 1 else flip(swapaxes(m, *places), places[1])


# -- repetitions -----------------------------------------------------------------------------------


@linear(
    a=lambda ct, a_shape, repeats, axis: sum_repeats(ct, a_shape, repeats, axis),
    cases=[
        Case((2, 3), repeats=2),
        Case((2, 3), repeats=3, axis=0),
        Case((3, 2), repeats=np.array([2, 0, 3]), axis=0),
        Case((2, 3), repeats=(1, 2, 0), axis=-1),
        Case((2, 3), repeats=(1, 2), axis=0),
        Case((2, 2), repeats=(3, 0, 1, 2)),
        Case((2, 3), repeats=0, axis=1),
        Case((), repeats=3),
        Case((0, 3), repeats=2, axis=1),
    ],
)
def repeat(xp, a, *, repeats, axis=None):
    r"""Each element along `axis` `repeats` times in a row; for None each of the flattened elements.

    `repeats` is an integer, or one for each element. Shapes: (..., n, ...) -> (..., sum of repeats, ...).
    """
    counts = on_host(repeats)  # they say how long the result is
    if type(repeats) is not int and np.asarray(counts).dtype.kind not in "iub":
        raise DtypeError(f"repeat: `repeats` must be integers, and {describe(repeats)} came.")
    return xp.repeat(a, counts.tolist() if on_device(a) and hasattr(counts, "tolist") else counts, axis)


def sum_repeats(ct: Any, shape: tuple[int, ...], repeats: Any, axis: int | None) -> Any:
    """The transpose of `repeat`: the copies of each element summed."""
    if axis is None or not shape:
        return reshape(sum_repeats(ct, (math.prod(shape),), repeats, 0), shape)
    axis %= len(shape)
    n, repeats = shape[axis], on_host(repeats)
    if np.size(repeats) == 1:
        copies = np.ravel(repeats).item()
        return sum(reshape(ct, (*shape[:axis], n, copies, *shape[axis + 1 :])), axis + 1)
    return put_at(ct, (slice(None),) * axis + (put_beside(np.repeat(np.arange(n), repeats), ct),), shape)


@linear(
    A=lambda ct, A_shape, reps: sum_tiles(ct, A_shape, integers(reps)),
    cases=[
        Case((2, 3), reps=2),
        Case((2, 3), reps=(2, 1)),
        Case((3,), reps=(2, 2)),
        Case((2, 1, 3), reps=(2, 3)),
        Case((2, 3), reps=(0, 2)),
        Case((), reps=(2, 3)),
        Case((0, 3), reps=2),
    ],
)
def tile(xp, A, *, reps):
    r"""`A` as a whole `reps` times along each axis; an integer counts for the last one.

    Shapes: (n0, n1), reps (r0, r1) -> (r0 n0, r1 n1). The shorter of the two is filled with ones in front.
    """
    return xp.tile(A, integers(reps))


def sum_tiles(ct: Any, shape: tuple[int, ...], reps: tuple[int, ...]) -> Any:
    """The transpose of `tile`: the copies of the whole summed."""
    count = max(len(shape), len(reps))
    reps = (1,) * (count - len(reps)) + reps
    lengths = (1,) * (count - len(shape)) + shape
    apart = reshape(ct, [n for pair in zip(reps, lengths, strict=True) for n in pair])
    return reshape(sum(apart, tuple(2 * i for i, r in enumerate(reps) if r != 1)), shape)


def resize(a: Any, new_shape: Any) -> Any:
    """The elements of `a`, in C order and as often over as needed, in another shape; of an empty array, zeros."""
    a, shape = arrayed(a), given_integers(new_shape, "resize", "new_shape")
    size = math.prod(shape)
    if min(shape, default=0) < 0:
        raise ShapeError(f"resize: the lengths of `new_shape` must be at least 0, and {new_shape} came.")
    if not a.size:
        return broadcast_to(sum(a), shape)
    flat = tile(ravel(a), -(-size // a.size))
    return reshape(getitem(flat, slice(0, size)), shape)


# -- margins ---------------------------------------------------------------------------------------

PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def wrong_margins(array: Any, pad_width: Any, mode: str, constant_values: Any) -> str:
    """What is wrong with the margins."""
    if mode != "constant" and 0 in array.shape:
        return f"an axis of length 0 has no element to pad it with in mode {mode!r}. Use mode 'constant'."
    count = array.ndim
    return (
        f"`pad_width` must be a number, (before, after), or such a pair for each of {count} axes, none negative.\n"
        f"`constant_values` has the same form."
    )


@primitive(
    array=lambda ct, array_shape, pad_width, mode: unpad(ct, array_shape, pad_width, mode),
    diagnose=wrong_margins,
    cases=[
        Case((2, 3), pad_width=1),
        Case((2, 3), pad_width=((0, 2), (1, 0)), constant_values=3.0),
        Case((3,), pad_width=(1, 2), constant_values=(1.0, -1.0)),
        Case((2, 3), pad_width=2, mode="edge"),
        Case((2, 3), pad_width=((3, 4), (0, 0)), mode="reflect"),
        Case((2, 3), pad_width=((1, 2), (4, 0)), mode="symmetric"),
        Case((2, 3), pad_width=(2, 7), mode="wrap"),
        Case((), pad_width=1),
        Case((0, 3), pad_width=2),
        Case((0, 3), pad_width=((0, 0), (1, 1)), mode="edge"),
    ],
)
def pad(xp, array, *, pad_width, mode="constant", constant_values=0):
    r"""`array` with margins: `constant_values` (numbers), or by `mode` elements of its own.

    `pad_width` is a number, (before, after), a pair for each axis, or a dictionary of pairs by axis. Modes:
    "constant"; "edge" repeats the outermost element; "reflect" mirrors about it, "symmetric" about the edge;
    "wrap" goes on at the other end. Raises UnsupportedError for NumPy's other modes.
    """
    if mode not in PAD_MODES:
        raise UnsupportedError(
            f"pad: `mode` must be one of {', '.join(PAD_MODES)}, and {mode!r} came.\n"
            f"  Use tg.concat([before, v, after], axis) for margins of another kind."
        )
    if mode != "constant":
        return xp.pad(array, pad_width, mode)
    if isinstance(constant_values, Variable):
        raise DtypeError(
            "pad: `constant_values` must be numbers, and a Variable came.\n"
            "  They are not differentiated. Join the margins with concat, or write them with where."
        )
    return xp.pad(array, pad_width, mode, constant_values=constant_values)


def numpy_pad(array: Any, pad_width: Any, mode: str = "constant", **others: Any) -> Any:
    """`np.pad`, whose other keywords depend on the mode."""
    if others.get("reflect_type") == "even":  # as it is without
        del others["reflect_type"]
    refused = [name for name in others if mode != "constant" or name != "constant_values"]
    if refused and mode in PAD_MODES:
        raise UnsupportedError(
            f"numpy.pad: {', '.join(refused)} cannot be recorded on a Variable with the mode {mode!r}.\n"
            f"  Leave it out, or apply the function to v.value if no gradient is wanted."
        )
    return pad(array, pad_width, mode, **({} if refused else others))


def unpad(ct: Any, shape: tuple[int, ...], pad_width: Any, mode: str) -> Any:
    """The transpose of `pad`: what lies in the margins is dropped, or goes to the elements that it came from."""
    margins = margins_of(pad_width, len(shape))
    if mode == "constant":
        return getitem(ct, tuple(slice(b, b + n) for (b, _), n in zip(margins, shape, strict=True)))
    for axis, (n, (before, after)) in enumerate(zip(shape, margins, strict=True)):
        if before or after:
            sources = np.pad(np.arange(n), (before, after), mode)  # type: ignore[call-overload]
            first, middle, last = split(ct, (before, before + n), axis)
            sources = put_beside(np.delete(sources, slice(before, before + n)), ct)
            sources = (slice(None),) * axis + (sources,)
            ct = middle + put_at(concat([first, last], axis), sources, middle.shape)
    return ct


def margins_of(pad_width: Any, count: int) -> list[tuple[int, int]]:
    """The margins before and after along each axis."""
    if isinstance(pad_width, dict):
        pairs = {axis % count: np.broadcast_to(pair, 2).tolist() for axis, pair in pad_width.items()}
        return [pairs.get(i, (0, 0)) for i in range(count)]
    margins: list[tuple[int, int]] = np.broadcast_to(np.asarray(pad_width), (count, 2)).tolist()
    return margins


def trim_zeros(filt: Any, trim: str = "fb", axis: Any = None) -> Any:
    """`filt` without its margins of zeros along `axis`; `trim`: "f" in front, "b" behind. All of zeros it is empty.

    Gradients pass to the elements that are left; where the margins end is a constant.
    """
    filt = arrayed(filt)
    ends = trim.lower()
    if ends not in ("f", "b", "fb", "bf"):
        raise ArgumentError(f"trim_zeros: `trim` must be 'f', 'b' or 'fb', and {trim!r} came.")
    named = range(filt.ndim) if axis is None else given_integers(axis, "trim_zeros", "axis")
    axes = [axis_of(filt, i, "trim_zeros", "filt") for i in named]
    values = value_of(filt)
    index = [slice(None)] * filt.ndim
    for i in axes:
        filled = values.nonzero()[i]
        front, behind = (int(filled.min()), int(filled.max()) + 1) if filled.size else (0, 0)
        drop_all = not filled.size
        index[i] = slice(
            front if "f" in ends or drop_all else None, behind if "b" in ends or drop_all else None
        )
    return getitem(filt, tuple(index))


# -- triangles and diagonals -----------------------------------------------------------------------

TRIANGLES = [
    Case((3, 3)),
    Case((2, 4), k=1),
    Case((2, 4, 3), k=-1),
    Case((3,)),
    Case((0, 2)),
    Case((2, 3), k=9),
]


def needs_axes(m: Any, k: int) -> str:
    return "`m` must have at least one axis, and `k` must be an integer."


@linear(
    m=lambda ct, m_shape, k: unbroadcast(tril(ct, k), m_shape),
    diagnose=needs_axes,
    cases=TRIANGLES,
)
def tril(xp, m, *, k=0):
    r"""The lower triangle of each matrix, $y_{ij} = m_{ij}$ for $j \le i + k$, else 0."""
    return xp.tril(m, k)


@linear(
    m=lambda ct, m_shape, k: unbroadcast(triu(ct, k), m_shape),
    diagnose=needs_axes,
    cases=TRIANGLES,
)
def triu(xp, m, *, k=0):
    r"""The upper triangle of each matrix, $y_{ij} = m_{ij}$ for $j \ge i + k$, else 0."""
    return xp.triu(m, k)


def diag(v: Any, k: int = 0) -> Any:
    """The diagonal `k` of a matrix, or the matrix that has the vector `v` on its diagonal `k` and else zeros."""
    v = arrayed(v)
    if v.ndim not in (1, 2):
        raise ShapeError(
            f"diag: `v` must be a vector or a matrix. For stacks see diagonal.\n  v: {describe(v)}"
        )
    n = v.size + abs(k)
    return diagonal(v, k) if v.ndim == 2 else put_diagonal(v, (n, n), k)


def diagflat(v: Any, k: int = 0) -> Any:
    """The matrix that has the elements of `v` on its diagonal `k` and else zeros."""
    return diag(ravel(v), k)


# -- windows ---------------------------------------------------------------------------------------


@linear(
    x=lambda ct, x_shape, window_shape, axis: overlap_add(ct, x_shape, window_shape, axis),
    cases=[
        Case((5,), window_shape=3),
        Case((4, 5), window_shape=(2, 3)),
        Case((2, 5), window_shape=2, axis=-1),
        Case((2, 6), window_shape=(2, 3), axis=(1, 1)),
    ],
)
def sliding_window_view(xp, x, *, window_shape, axis=None):
    r"""Every window of `window_shape` in `x`, $y_{i j} = x_{i + j}$, as new last axes.

    Shapes: (..., n, ...), window w -> (..., n - w + 1, ..., w).
    """
    lib = getattr(xp, "lib", np.lib)  # what only records calls has no modules inside
    return lib.stride_tricks.sliding_window_view(x, window_shape, axis)


@linear(
    a=lambda ct, window_shape, axis: sliding_window_view(ct, window_shape, axis),
    cases=[
        Case((3, 3), shape=(5,), window_shape=3),
        Case((2, 4, 2), shape=(2, 5), window_shape=2, axis=-1),
    ],
)
def overlap_add(xp, a, *, shape, window_shape, axis=None):
    r"""Windows summed where they overlap, $y_k = \sum_{i + j = k} a_{ij}$: the transpose of `sliding_window_view`."""
    y = xp.zeros(shape, a.dtype)
    window = integers(window_shape)
    axes = range(len(shape)) if axis is None else [i % len(shape) for i in integers(axis)]
    for offset in np.ndindex(window):
        place = [slice(0, n) for n in a.shape[: len(shape)]]
        for i, shift in zip(axes, offset, strict=True):
            place[i] = slice(place[i].start + shift, place[i].stop + shift)
        here = (..., *offset)
        y[tuple(place)] += a[here]
    return y
