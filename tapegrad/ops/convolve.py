r"""Convolutions: of images with kernels (`conv1d`, `conv2d`), and of sequences (`convolve`, `correlate`).

A convolution is trilinear. With x, a kernel w and a number u for each place it is the slope in u of

    $\sum_{b,o,i} \sum_{c,k} u_{b,o,i}\, w_{o,c,k}\, x_{b,c,si+dk-p}$

(stride s, dilation d, padding p). The slopes in u, x and w are the ops `convolution`, `convolution_input` and
`convolution_kernel`, and the pullbacks of each are the other two: the family is closed, to any order. Each is
one matrix product with the windows of x as columns (*im2col*: Chellapilla, Puri & Simard 2006).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

from ..core.primitive import Case, primitive
from ..errors import ArgumentError, ShapeError, describe
from .index import getitem
from .operands import arrayed
from .shape import reshape
from .windows import (
    Lengths,
    Numbers,
    Padding,
    elements,
    inside,
    lengths,
    padded,
    paddings,
    places,
    require_windows,
    span,
    views,
    with_axes,
)

# -- of images -------------------------------------------------------------------------------------


def conv1d(
    x: Any, w: Any, *, stride: Lengths = 1, padding: Padding = 0, dilation: Lengths = 1, groups: int = 1
) -> Any:
    r"""$y_{b,o,i} = \sum_{c,k} w_{o,c,k}\, x_{b,c,si+dk-p}$ with zeros around x. A bias is added: `+ b[:, None]`.

    Shapes: (batch, channels_in, n), (channels_out, channels_in / groups, k) -> (batch, channels_out, m).
    `padding`: zeros at each end; (before, after); "valid" for none; "same" for m = n / stride, rounded up, an odd
    zero behind. `groups`: into how many parts the channels are cut, each convolved with its own part of `w`.

    Raises ShapeError where channels do not match, or the kernel is longer than what it slides over.
    """
    return convolved("conv1d", 1, x, w, stride, padding, dilation, groups)


def conv2d(
    x: Any, w: Any, *, stride: Lengths = 1, padding: Padding = 0, dilation: Lengths = 1, groups: int = 1
) -> Any:
    r"""$y_{b,o,i,j} = \sum_{c,k,l} w_{o,c,k,l}\, x_{b,c,si+dk-p,sj+dl-p}$. A bias is added: `+ b[:, None, None]`.

    Shapes: (batch, channels_in, n, m), (channels_out, channels_in / groups, k, l) -> (batch, channels_out, …).
    As `conv1d`. `stride`, `padding` and `dilation` may be pairs, for rows and columns; a padding in such a pair
    may be one itself, (before, after).
    """
    return convolved("conv2d", 2, x, w, stride, padding, dilation, groups)


def conv_transpose1d(
    x: Any,
    w: Any,
    *,
    stride: Lengths = 1,
    padding: Padding = 0,
    output_padding: Lengths = 0,
    dilation: Lengths = 1,
    groups: int = 1,
) -> Any:
    r"""The transpose of `conv1d` with the same `w`: $y_{b,c,j} = \sum_{si+dk-p=j} \sum_o w_{o,c,k}\, x_{b,o,i}$.

    Shapes: (batch, channels_in, n), (channels_in, channels_out / groups, k) -> (batch, channels_out, m), where
    m = (n - 1) stride + (k - 1) dilation + 1 - padding of both ends + output_padding (below stride).
    """
    return transposed("conv_transpose1d", 1, x, w, stride, padding, output_padding, dilation, groups)


def conv_transpose2d(
    x: Any,
    w: Any,
    *,
    stride: Lengths = 1,
    padding: Padding = 0,
    output_padding: Lengths = 0,
    dilation: Lengths = 1,
    groups: int = 1,
) -> Any:
    r"""The transpose of `conv2d` with the same `w`. As `conv_transpose1d`."""
    return transposed("conv_transpose2d", 2, x, w, stride, padding, output_padding, dilation, groups)


def convolved(
    op: str, axes: int, x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    """`convolution` of what a user gave, checked and filled in."""
    x, w = with_axes(op, "x", x, axes), with_axes(op, "w", w, axes)
    stride, dilation = lengths(op, "stride", stride, axes), lengths(op, "dilation", dilation, axes)
    spans = span(w.shape[2:], dilation)
    padding = paddings(op, padding, x.shape[2:], spans, stride)
    require_groups(op, x, w, groups, x.shape[1] == w.shape[1] * groups)
    require_windows(op, x, spans, padding)
    return convolution(x, w, stride, padding, dilation, groups)


def transposed(
    op: str, axes: int, x: Any, w: Any, stride: Any, padding: Any, extra: Any, dilation: Any, groups: int
) -> Any:
    """`convolution_input` of what a user gave, checked and filled in."""
    x, w = with_axes(op, "x", x, axes), with_axes(op, "w", w, axes)
    stride, dilation = lengths(op, "stride", stride, axes), lengths(op, "dilation", dilation, axes)
    extra, spans = lengths(op, "output_padding", extra, axes, least=0), span(w.shape[2:], dilation)
    if padding == "same":
        raise ArgumentError(
            f'{op}: `padding` must be numbers: inputs of several lengths have this output as "same".'
        )
    padding = paddings(op, padding, x.shape[2:], spans, stride)
    require_groups(op, x, w, groups, x.shape[1] == w.shape[0])
    size = tuple(
        (n - 1) * s + length + more - sum(p)
        for n, s, length, more, p in zip(x.shape[2:], stride, spans, extra, padding, strict=True)
    )
    if min(size) < 1 or any(more >= s for more, s in zip(extra, stride, strict=True)):
        raise ArgumentError(
            f"{op}: `padding` must leave something, and `output_padding` must be below `stride`.\n"
            f"  padding: {padding} leaves {size}      output_padding: {extra}      stride: {stride}"
        )
    return convolution_input(x, w, size, stride, padding, dilation, groups)


def require_groups(op: str, x: Any, w: Any, groups: int, match: bool) -> None:
    """Raise unless channels `match`, and can be cut into `groups`."""
    if groups < 1 or not match or w.shape[0] % groups:
        said = (
            "`x` must have a channel for each of the first axis of `w`"
            if "transpose" in op
            else "`x` must have `groups` times as many channels as the second axis of `w`"
        )
        raise ShapeError(
            f"{op}: {said}, whose first must be a multiple of `groups`.\n"
            f"  x: {describe(x)}      w: {describe(w)}      groups: {groups}"
        )


CASES = [
    Case((2, 4, 5), (6, 2, 3), stride=(2,), padding=((1, 0),), dilation=(1,), groups=2),
    Case((2, 2, 7), (3, 2, 2), stride=(1,), padding=((0, 2),), dilation=(3,), groups=1),
    Case((2, 3, 5, 4), (2, 3, 3, 2), stride=(1, 2), padding=((1, 1), (0, 1)), dilation=(2, 1), groups=1),
    Case((1, 2, 5, 3), (2, 1, 1, 3), stride=(3, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=2),
    Case((0, 2, 4), (3, 2, 2), stride=(1,), padding=((0, 0),), dilation=(1,), groups=1),
]


def result_shape(x: Numbers, w: Numbers, stride: Any, padding: Any, dilation: Any) -> Numbers:
    """The shape of `convolution` of arrays of these shapes."""
    return (x[0], w[0], *places(x[2:], span(w[2:], dilation), stride, padding))


def swapped_for(argument: str, case: Case) -> Case:
    """`case` for the slope in `argument`, in the place of which u is given."""
    (x, w), s = case.inputs, case.statics
    u = result_shape(x, w, s["stride"], s["padding"], s["dilation"])
    return Case(u, w, size=x[2:], **s) if argument == "x" else Case(x, u, kernel=w[2:], **s)


@primitive(
    x=lambda ct, w, x_shape, stride, padding, dilation, groups: convolution_input(
        ct, w, x_shape[2:], stride, padding, dilation, groups
    ),
    w=lambda ct, x, w_shape, stride, padding, dilation, groups: convolution_kernel(
        x, ct, w_shape[2:], stride, padding, dilation, groups
    ),
    cases=CASES,
)
def convolution(xp, x, w, *, stride, padding, dilation, groups):
    r"""$u_{b,o,i} = \sum_{c,k} w_{o,c,k}\, x_{b,c,si+dk-p}$ over any number of axes: `conv1d`, `conv2d`.

    Shapes: (batch, groups · c, …), (o, c, kernel…) -> (batch, o, …). Statics are tuples with an item for each axis.
    """
    u = xp.empty(result_shape(x.shape, w.shape, stride, padding, dilation), xp.result_type(x, w))
    rows = w.reshape(groups, w.shape[0] // groups, math.prod(w.shape[1:]))
    for part, columns in columns_of(xp, x, w.shape[2:], stride, padding, dilation, groups):
        batch, channels, *count = u[part].shape
        xp.swapaxes(u[part], 0, 1)[...] = product(xp, rows, columns).reshape(channels, batch, *count)
    return u


@primitive(
    u=lambda ct, w, stride, padding, dilation, groups: convolution(ct, w, stride, padding, dilation, groups),
    w=lambda ct, u, w_shape, stride, padding, dilation, groups: convolution_kernel(
        ct, u, w_shape[2:], stride, padding, dilation, groups
    ),
    cases=[swapped_for("x", case) for case in CASES],
)
def convolution_input(xp, u, w, *, size, stride, padding, dilation, groups):
    r"""$x_{b,c,j} = \sum_{si+dk-p=j} \sum_o w_{o,c,k}\, u_{b,o,i}$, with axes of lengths `size`: `convolution` transposed.

    Shapes: (batch, o, …), (o, c, kernel…) -> (batch, groups · c, size…).
    """
    (channels, *kernel), (batch, _, *count) = w.shape[1:], u.shape
    w = xp.swapaxes(w.reshape(groups, w.shape[0] // groups, math.prod(w.shape[1:])), 1, 2)
    whole = (n + sum(p) for n, p in zip(size, padding, strict=True))
    x = xp.zeros((batch, groups * channels, *whole), xp.result_type(u, w))
    for part in parts(batch, groups * w.shape[1] * math.prod(count)):
        columns = product(xp, w, channels_first(xp, u[part], groups))
        columns = columns.reshape(groups * channels, *kernel, len(u[part]), *count)
        for offset in itertools.product(*map(range, kernel)):
            start, column = (k * d for k, d in zip(offset, dilation, strict=True)), (slice(None), *offset)
            xp.swapaxes(x[part], 0, 1)[elements(start, count, stride)] += columns[column]
    return xp.ascontiguousarray(x[inside(padding, size)])


@primitive(
    x=lambda ct, u, x_shape, stride, padding, dilation, groups: convolution_input(
        u, ct, x_shape[2:], stride, padding, dilation, groups
    ),
    u=lambda ct, x, stride, padding, dilation, groups: convolution(x, ct, stride, padding, dilation, groups),
    cases=[swapped_for("w", case) for case in CASES],
)
def convolution_kernel(xp, x, u, *, kernel, stride, padding, dilation, groups):
    r"""$w_{o,c,k} = \sum_{b,i} u_{b,o,i}\, x_{b,c,si+dk-p}$, with axes of lengths `kernel`.

    Shapes: (batch, groups · c, …), (batch, o, …) -> (o, c, kernel…).
    """
    shape = (u.shape[1], x.shape[1] // groups, *kernel)
    w = xp.zeros((groups, shape[0] // groups, math.prod(shape[1:])), xp.result_type(x, u))
    for part, columns in columns_of(xp, x, kernel, stride, padding, dilation, groups):
        w += xp.matmul(channels_first(xp, u[part], groups), xp.swapaxes(columns, 1, 2))
    return w.reshape(shape)


# About how many elements are written out as columns at a time. All at once, a forward and a backward pass takes up
# to 1.3 times as long (`bench/convolve.py`), and memory of the size of `x` times that of the kernel.
AT_ONCE = 1 << 18


def columns_of(
    xp: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Iterator[tuple[slice, Any]]:
    """Parts of the batch, each with its windows as columns. Shape: (groups, channels · kernel, part · places)."""
    windows = views(padded(xp, x, padding), span(kernel, dilation), stride, dilation)
    axes = len(kernel)
    count = windows.shape[2 : 2 + axes]
    length = x.shape[1] // groups * math.prod(kernel)
    for part in parts(x.shape[0], groups * length * math.prod(count)):
        some = windows[part].transpose(1, *range(2 + axes, 2 + 2 * axes), 0, *range(2, 2 + axes))
        yield part, some.reshape(groups, length, windows[part].shape[0] * math.prod(count))


def parts(batch: int, columns: int) -> list[slice]:
    """The batch in parts of about `AT_ONCE` elements, if each of it has as many as `columns`."""
    step = max(AT_ONCE // max(columns, 1), 1)
    return [slice(start, start + step) for start in range(0, batch, step)]


def product(xp: Any, a: Any, b: Any) -> Any:
    """The product of stacks of matrices. Columns times rows are no work for BLAS, and matmul is slow without."""
    return a * b if a.shape[-1] == 1 else xp.matmul(a, b)


def channels_first(xp: Any, u: Any, groups: int) -> Any:
    """Shapes: (batch, groups · o, …) -> (groups, o, batch · …)."""
    batch, channels, *count = u.shape
    return xp.swapaxes(u, 0, 1).reshape(groups, channels // groups, batch * math.prod(count))


# -- of sequences ----------------------------------------------------------------------------------


def convolve(a: Any, v: Any, mode: str = "full") -> Any:
    r"""$y_i = \sum_j a_j v_{i-j}$: "full" at every overlap, "same" for the longer's length, "valid" where all overlap.

    Shapes: (n,), (k,) -> (n + k - 1,), (max(n, k),) or (max(n, k) - min(n, k) + 1,). Differentiated in both.
    """
    a, v = sequence("convolve", "a", a), sequence("convolve", "v", v)
    longer, shorter = (a, v) if a.size >= v.size else (v, a)
    return overlapping("convolve", longer, shorter, mode, (shorter.size - 1) // 2)


def correlate(a: Any, v: Any, mode: str = "valid") -> Any:
    r"""$y_i = \sum_j a_{i+j} v_j$, at the overlaps that `mode` names, see `convolve`. Differentiated in both."""
    a, v = sequence("correlate", "a", a), sequence("correlate", "v", v)
    backwards = getitem(v, slice(None, None, -1))
    if a.size >= v.size:
        return overlapping("correlate", a, backwards, mode, (v.size - 1) // 2)
    return overlapping("correlate", backwards, a, mode, a.size // 2)


def overlapping(op: str, longer: Any, shorter: Any, mode: str, start: int) -> Any:
    """The convolution of two sequences at the overlaps that `mode` names; "same" begins at `start` of "full"."""
    if mode == "valid":
        return correlate_valid(longer, getitem(shorter, slice(None, None, -1)))
    if mode not in ("full", "same"):
        raise ArgumentError(f"{op}: `mode` must be 'full', 'same' or 'valid', and {mode!r} came.")
    y = convolve_full(longer, shorter)
    return y if mode == "full" else getitem(y, slice(start, start + longer.size))


def sequence(op: str, argument: str, value: Any) -> Any:
    """`value` with its one axis, of which a number is given one."""
    value = arrayed(value)
    if value.ndim > 1 or not value.size:
        raise ShapeError(
            f"{op}: `{argument}` must have one axis and an element, and {describe(value)} came.\n"
            f"  For stacks of sequences or images use tg.conv1d or tg.conv2d."
        )
    return value if value.ndim else reshape(value, (1,))


@primitive(
    a=lambda ct, v: correlate_valid(ct, v),
    v=lambda ct, a: correlate_valid(ct, a),
    cases=[Case((5,), (3,)), Case((2,), (4,)), Case((1,), (1,))],
)
def convolve_full(xp, a, v):
    r"""$y_i = \sum_j a_j v_{i-j}$ at every overlap. Shapes: (n,), (k,) -> (n + k - 1,)."""
    return xp.convolve(a, v)


@primitive(
    a=lambda ct, v: convolve_full(ct, v),
    v=lambda ct, a: correlate_valid(a, ct),
    cases=[Case((5,), (3,)), Case((4,), (4,)), Case((3,), (1,))],
)
def correlate_valid(xp, a, v):
    r"""$y_i = \sum_j a_{i+j} v_j$ where all of `v` overlaps. Shapes: (n,), (k,) -> (n - k + 1,) for n >= k."""
    return xp.correlate(a, v, "valid")
