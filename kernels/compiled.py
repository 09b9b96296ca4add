"""Kernels in Numba: one pass over memory where NumPy needs several. Imported only where Numba is wanted.

Every function here fills arrays that the caller made, and returns whether it did: False says that the shapes
do not fit, so that the caller's hot path checks nothing twice. Arrays must be C-contiguous, all of one dtype,
float32 or float64; inputs may be read-only. Compiled per dtype when first asked for (`compiled`), and kept on
disk. `error_model="numpy"` because a check for zero divisors keeps a loop from vectorising (47 µs became 6.5
for a rational function of 16,000 floats). Products and sums may be contracted (one rounding instead of two),
and sums of products reordered; nothing else is relaxed: NaN and infinity behave as in NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

Array = Any

CONTRACTED = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
# Only kernels call it: what Python or C would need to call it is not compiled.
INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
SUMMED = {"error_model": "numpy", "nogil": True, "fastmath": {"contract", "reassoc"}}
REORDERED = {"error_model": "numpy", "nogil": True, "fastmath": {"contract", "reassoc", "nsz"}}

# -- kernels by name ---------------------------------------------------------------------------------

SIGNATURES: dict[str, tuple[Any, list[str]]] = {}


def kernel(*types: str, **options: Any) -> Callable[[Any], Any]:
    """Declare a kernel and the types of arguments that it takes: a letter per argument, in order.

    v m t    a vector, matrix or three-dimensional array that is only read        i j   indices, one or two axes
    V M T    the same, written                                                    s     a number of the dtype
    """

    def declare(function: Any) -> Any:
        options_here = {"no_cfunc_wrapper": True, **(options or CONTRACTED)}
        try:
            dispatcher = numba.njit(cache=True, **options_here)(function)
        except RuntimeError:  # no folder where a cache could be written
            dispatcher = numba.njit(**options_here)(function)
        SIGNATURES[function.__name__] = (dispatcher, list(types))
        return dispatcher

    return declare


def signature(types: str, dtype: Any) -> tuple[Any, ...]:
    """The types of a kernel's arguments at `dtype`."""
    real = numba.from_dtype(np.dtype(dtype))
    made = []
    for letter in types.replace(" ", ""):
        if letter == "s":
            made.append(real)
        elif letter in "ij":
            made.append(numba.types.Array(numba.int64, "ij".index(letter) + 1, "C", readonly=True))
        else:
            readonly = letter.islower()
            made.append(numba.types.Array(real, "vmt".index(letter.lower()) + 1, "C", readonly=readonly))
    return tuple(made)


def compiled(name: str, dtype: Any) -> Any:
    """The kernel `name`, compiled for `dtype` (or fetched from the disk). It raises TypeError for other arguments."""
    dispatcher, choices = SIGNATURES[name]
    dispatcher.disable_compile(False)
    for types in choices:
        dispatcher.compile(signature(types, dtype))
    dispatcher.disable_compile()
    return dispatcher


def is_from_cache(name: str, dtype: Any) -> bool:
    """Whether a compiled kernel came from the disk."""
    dispatcher, choices = SIGNATURES[name]
    return all(dispatcher.stats.cache_hits[signature(types, dtype)] for types in choices)


# -- tanh and sigmoid that vectorise -----------------------------------------------------------------
#
# Both come from e^y for y <= 0: y = k ln 2 + r, |r| <= ln 2 / 2, e^y = 2^k (1 + p) with p = r + r² q(r).
# q interpolates (e^r - 1 - r) / r² at the Chebyshev points of that interval, computed with 60 digits (mpmath):
# degree 5 misses e^r - 1 by 5e-10 of its value, degree 10 by 5e-19, both far below a rounding.
# tanh has e^y - 1 = 2^k p + (2^k - 1), which cancels nothing for y <= 0. Measured against long doubles: at most
# 2.5 units in the last place (tests/test_kernels.py).

SINGLE = [
    0.50000000134658092, 0.166666666816232314, 0.0416664649252859054, 0.00833331092548090083,
    0.00139336499963092504, 0.000198909908246736538,
]  # fmt: skip
DOUBLE = [
    0.5, 0.16666666666666671, 0.0416666666666666698, 0.00833333333332613513, 0.00138888888888837483,
    0.000198412698748206253, 0.0000248015873255477412, 2.75572554002064244e-6, 2.75572736431102953e-7,
    2.51052170047207452e-8, 2.09146869680868772e-9,
]  # fmt: skip


@intrinsic
def two_to(typingctx, shifted):  # type: ignore[no-untyped-def]
    """2^k from k + 1.5 · 2^(mantissa bits), whose last bits are k: they become the exponent. 0 for the least k."""
    bits, bias, mantissa = {32: (ir.IntType(32), 127, 23), 64: (ir.IntType(64), 1023, 52)}[shifted.bitwidth]

    def build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        exponent = builder.add(builder.bitcast(arguments[0], bits), bits(bias))
        return builder.bitcast(builder.shl(exponent, bits(mantissa)), arguments[0].type)

    return shifted(shifted), build


def activations(real: Any, coefficients: list[float], mantissa: int, lowest: float, high: float) -> Any:
    """Sigmoid, tanh and the exponential of a number not above 0, for one precision. Below `lowest` e^y is 0; `high` is ln 2 rounded to few digits."""
    one, two, zero = real(1), real(2), real(0)
    round_off, per_ln2 = real(1.5 * 2.0**mantissa), real(1 / math.log(2))
    # ln 2 as a sum: k · high is exact, and low is the rest.
    low = real(float(np.longdouble("0.693147180559945309417232121458176568") - np.longdouble(high)))
    high, lowest, half_lowest = real(high), real(lowest), real(lowest / 2)
    c = [real(v) for v in coefficients]
    if len(c) == 6:
        c0, c1, c2, c3, c4, c5 = c

        @numba.njit(**INNER, **CONTRACTED)
        def q(r: float) -> float:
            return c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * c5))))
    else:
        c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10 = c

        @numba.njit(**INNER, **CONTRACTED)
        def q(r: float) -> float:
            upper = c5 + r * (c6 + r * (c7 + r * (c8 + r * (c9 + r * c10))))
            return c0 + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * upper))))

    @numba.njit(**INNER, **CONTRACTED)
    def decomposed(y: float) -> tuple[float, float]:
        shifted = y * per_ln2 + round_off
        k = shifted - round_off
        r = (y - k * high) - k * low
        return two_to(shifted), r + r * r * q(r)

    @numba.njit(**INNER, **CONTRACTED)
    def sigmoid(z: float) -> float:
        size = abs(z)
        scale, p = decomposed(lowest if -size < lowest else -size)  # in this form NaN stays NaN
        e = scale + scale * p
        return (one if z >= zero else e) / (one + e)

    @numba.njit(**INNER, **CONTRACTED)
    def tanh(z: float) -> float:
        size = abs(z)
        half = half_lowest if -size < half_lowest else -size
        scale, p = decomposed(half + half)
        e = scale * p + (scale - one)
        return math.copysign(e / (two + e), z)

    @numba.njit(**INNER, **CONTRACTED)
    def exp_of_negative(z: float) -> float:
        scale, p = decomposed(lowest if z < lowest else z)
        return scale + scale * p

    return sigmoid, tanh, exp_of_negative


def sigmoid(z: Any) -> Any:
    """In a kernel: 1 / (1 + e^-z)."""


def tanh(z: Any) -> Any:
    """In a kernel: the hyperbolic tangent."""


def exp_of_negative(z: Any) -> Any:
    """In a kernel: e^z for z <= 0 (or NaN)."""


ACTIVATIONS = {
    numba.float32: activations(np.float32, SINGLE, 23, -88.0, 0.693359375),
    numba.float64: activations(np.float64, DOUBLE, 52, -709.0, 0.693147180369123816490),
}


@overload(sigmoid, jit_options=CONTRACTED)
def choose_sigmoid(z):  # type: ignore[no-untyped-def]
    chosen = ACTIVATIONS[z][0]
    return lambda z: chosen(z)


@overload(tanh, jit_options=CONTRACTED)
def choose_tanh(z):  # type: ignore[no-untyped-def]
    chosen = ACTIVATIONS[z][1]
    return lambda z: chosen(z)


@overload(exp_of_negative, jit_options=CONTRACTED)
def choose_exp_of_negative(z):  # type: ignore[no-untyped-def]
    chosen = ACTIVATIONS[z][2]
    return lambda z: chosen(z)


# -- products with one row -----------------------------------------------------------------------------


@numba.njit(**INNER, **CONTRACTED)
def add_product(x: Array, w: Array, z: Array) -> None:
    """z += x w, for one row x. Eight rows of w at a time: z is loaded and stored an eighth as often."""
    blocked = x.size // 8 * 8
    for i in range(0, blocked, 8):
        x0, x1, x2, x3, x4, x5, x6, x7 = (
            x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7],
        )  # fmt: skip
        for j in range(z.size):
            z[j] += (
                x0 * w[i, j] + x1 * w[i + 1, j] + x2 * w[i + 2, j] + x3 * w[i + 3, j]
                + x4 * w[i + 4, j] + x5 * w[i + 5, j] + x6 * w[i + 6, j] + x7 * w[i + 7, j]
            )  # fmt: skip
    for i in range(blocked, x.size):
        for j in range(z.size):
            z[j] += x[i] * w[i, j]


@numba.njit(**INNER, **REORDERED)
def transposed_product(z: Array, w: Array, y: Array) -> None:
    """y = z wᵀ, for one row z. Four rows of w at a time: four sums that do not wait for each other."""
    zero = z.dtype.type(0)
    blocked = y.size // 4 * 4
    for i in range(0, blocked, 4):
        s0, s1, s2, s3 = zero, zero, zero, zero
        for j in range(z.size):
            s0 += z[j] * w[i, j]
            s1 += z[j] * w[i + 1, j]
            s2 += z[j] * w[i + 2, j]
            s3 += z[j] * w[i + 3, j]
        y[i], y[i + 1], y[i + 2], y[i + 3] = s0, s1, s2, s3
    for i in range(blocked, y.size):
        s0 = zero
        for j in range(z.size):
            s0 += z[j] * w[i, j]
        y[i] = s0


# -- the LSTM ------------------------------------------------------------------------------------------


@numba.njit(**INNER, **CONTRACTED)
def lstm_row(z: Array, c: Array, h_next: Array, c_next: Array, tanh_c: Array) -> None:
    """One row's step from the gates' inputs z, which become the gates. Loops of few arrays each: they vectorise."""
    n = c.size
    sigmoid_part, tanh_part, o = z[: 2 * n], z[2 * n : 3 * n], z[3 * n :]
    i, f = z[:n], z[n : 2 * n]
    for j in range(2 * n):
        sigmoid_part[j] = sigmoid(sigmoid_part[j])
    for j in range(n):
        tanh_part[j] = tanh(tanh_part[j])
    for j in range(n):
        o[j] = sigmoid(o[j])
    for j in range(n):
        c_next[j] = f[j] * c[j] + i[j] * tanh_part[j]
    for j in range(n):
        tanh_c[j] = tanh(c_next[j])
    for j in range(n):
        h_next[j] = o[j] * tanh_c[j]


@kernel("mmm mmv MMMM")
def lstm_step(
    x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array,
    h_next: Array, c_next: Array, gates: Array, tanh_c: Array,
) -> bool:  # fmt: skip
    """`cpu.lstm_step` row by row, products included: for batches of few rows."""
    batch, n = c.shape
    n_in = x.shape[1]
    if (
        x.shape[0] != batch or h.shape != c.shape or b.size != 4 * n
        or w_x.shape != (n_in, 4 * n) or w_h.shape != (n, 4 * n)
    ):  # fmt: skip
        return False
    for row in range(batch):
        z = gates[row]
        for j in range(4 * n):
            z[j] = b[j]
        add_product(x[row], w_x, z)
        add_product(h[row], w_h, z)
        lstm_row(z, c[row], h_next[row], c_next[row], tanh_c[row])
    return True


@kernel("mvm MMMM")
def lstm_gates(
    from_h: Array, b: Array, c: Array, gates: Array, h_next: Array, c_next: Array, tanh_c: Array
) -> bool:
    """The rest of a step after its products: `gates` holds x w_x and becomes the gates, `from_h` is h w_h."""
    for row in range(c.shape[0]):
        z, added = gates[row], from_h[row]
        for j in range(z.size):
            z[j] = z[j] + added[j] + b[j]
        lstm_row(z, c[row], h_next[row], c_next[row], tanh_c[row])
    return True


@numba.njit(**INNER, **CONTRACTED)
def lstm_row_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array, ct_z: Array, ct_c_in: Array
) -> None:
    """One row of `lstm_step_pullback`. d sigmoid = s - s², d tanh = 1 - t²; ct_c_in first holds the cotangent of c'."""
    n = c.size
    i, f, g, o = gates[:n], gates[n : 2 * n], gates[2 * n : 3 * n], gates[3 * n :]
    z_i, z_f, z_g, z_o = ct_z[:n], ct_z[n : 2 * n], ct_z[2 * n : 3 * n], ct_z[3 * n :]
    for j in range(n):
        through = ct_h[j] * o[j]
        ct_c_in[j] = ct_c[j] + (through - through * tanh_c[j] * tanh_c[j])
    for j in range(n):
        z_o[j] = ct_h[j] * tanh_c[j] * (o[j] - o[j] * o[j])
    for j in range(n):
        z_i[j] = ct_c_in[j] * g[j] * (i[j] - i[j] * i[j])
    for j in range(n):
        z_g[j] = ct_c_in[j] * (i[j] - i[j] * g[j] * g[j])
    for j in range(n):
        z_f[j] = ct_c_in[j] * c[j] * (f[j] - f[j] * f[j])
    for j in range(n):
        ct_c_in[j] *= f[j]


@kernel("mmmmm MM")
def lstm_step_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array, ct_z: Array, ct_c_in: Array
) -> bool:
    """`cpu.lstm_step_pullback`."""
    for row in range(c.shape[0]):
        lstm_row_pullback(ct_h[row], ct_c[row], c[row], gates[row], tanh_c[row], ct_z[row], ct_c_in[row])
    return True


@kernel("mv TTTT")
def lstm_sequence(w_h: Array, b: Array, gates: Array, hs: Array, cs: Array, tanh_cs: Array) -> bool:
    """Steps of one row each: `gates` (steps, 1, 4n) holds x w_x; `hs` and `cs` (steps + 1, 1, n) begin with h and c."""
    for step in range(len(gates)):
        z = gates[step, 0]
        for j in range(z.size):
            z[j] += b[j]
        add_product(hs[step, 0], w_h, z)
        lstm_row(z, cs[step, 0], hs[step + 1, 0], cs[step + 1, 0], tanh_cs[step, 0])
    return True


@kernel("tt tt m TMM")
def lstm_sequence_pullback(
    ct_hs: Array, cs: Array, gates: Array, tanh_cs: Array, w_h: Array, ct_z: Array, ct_h: Array, ct_c: Array
) -> bool:
    """Back through `lstm_sequence`; `ct_h` and `ct_c` hold the cotangents of the last state, then of the first."""
    for step in range(len(gates) - 1, -1, -1):
        for j in range(ct_h.size):
            ct_h[0, j] += ct_hs[step, 0, j]
        lstm_row_pullback(
            ct_h[0], ct_c[0], cs[step, 0], gates[step, 0], tanh_cs[step, 0], ct_z[step, 0], ct_c[0]
        )
        transposed_product(ct_z[step, 0], w_h, ct_h[0])
    return True


# -- the GRU -------------------------------------------------------------------------------------------


@numba.njit(**INNER, **CONTRACTED)
def gru_row(
    from_x: Array, from_h: Array, b: Array, b_h: Array, h: Array, inner: Array, h_next: Array
) -> None:
    """One row's step from the products with x, which become the gates r, z, n, and with h."""
    n = h.size
    for j in range(2 * n):
        from_x[j] = sigmoid(from_x[j] + b[j] + from_h[j] + b_h[j])
    r, z, candidate = from_x[:n], from_x[n : 2 * n], from_x[2 * n :]
    b_n, from_h_n, b_h_n = b[2 * n :], from_h[2 * n :], b_h[2 * n :]
    for j in range(n):
        inner[j] = from_h_n[j] + b_h_n[j]
    for j in range(n):
        candidate[j] = candidate[j] + b_n[j] + r[j] * inner[j]
    for j in range(n):
        candidate[j] = tanh(candidate[j])
    for j in range(n):
        h_next[j] = candidate[j] + z[j] * (h[j] - candidate[j])


@kernel("mm mm vv MMMM")
def gru_step(
    x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array,
    h_next: Array, gates: Array, inner: Array, from_h: Array,
) -> bool:  # fmt: skip
    """`cpu.gru_step` row by row, products included; `from_h` is work space."""
    batch, n = h.shape
    n_in = x.shape[1]
    if (
        x.shape[0] != batch or w_x.shape != (n_in, 3 * n) or w_h.shape != (n, 3 * n)
        or b.size != 3 * n or b_h.size != 3 * n
    ):  # fmt: skip
        return False
    for row in range(batch):
        gates[row, :] = 0
        from_h[row, :] = 0
        add_product(x[row], w_x, gates[row])
        add_product(h[row], w_h, from_h[row])
        gru_row(gates[row], from_h[row], b, b_h, h[row], inner[row], h_next[row])
    return True


@kernel("m vv m MMM")
def gru_gates(
    from_h: Array, b: Array, b_h: Array, h: Array, gates: Array, inner: Array, h_next: Array
) -> bool:
    """The rest of a step after its products: `gates` holds x w_x and becomes the gates, `from_h` is h w_h."""
    for row in range(h.shape[0]):
        gru_row(gates[row], from_h[row], b, b_h, h[row], inner[row], h_next[row])
    return True


@numba.njit(**INNER, **CONTRACTED)
def gru_row_pullback(
    ct: Array, h: Array, gates: Array, inner: Array, ct_x: Array, ct_h: Array, ct_in: Array
) -> None:
    """One row of `gru_step_pullback`."""
    n = h.size
    r, z, candidate = gates[:n], gates[n : 2 * n], gates[2 * n :]
    x_r, x_z, x_n = ct_x[:n], ct_x[n : 2 * n], ct_x[2 * n :]
    h_r, h_z, h_n = ct_h[:n], ct_h[n : 2 * n], ct_h[2 * n :]
    for j in range(n):
        through = ct[j] - ct[j] * z[j]
        x_n[j] = through - through * candidate[j] * candidate[j]
    for j in range(n):
        h_n[j] = x_n[j] * r[j]
    for j in range(n):
        x_r[j] = x_n[j] * inner[j] * (r[j] - r[j] * r[j])
    for j in range(n):
        x_z[j] = ct[j] * (h[j] - candidate[j]) * (z[j] - z[j] * z[j])
    for j in range(n):
        h_r[j] = x_r[j]
    for j in range(n):
        h_z[j] = x_z[j]
    for j in range(n):
        ct_in[j] = ct[j] * z[j]


@kernel("mmmm MMM")
def gru_step_pullback(
    ct: Array, h: Array, gates: Array, inner: Array, ct_x: Array, ct_h: Array, ct_in: Array
) -> bool:
    """`cpu.gru_step_pullback`."""
    for row in range(h.shape[0]):
        gru_row_pullback(ct[row], h[row], gates[row], inner[row], ct_x[row], ct_h[row], ct_in[row])
    return True


@kernel("m vv TTT V")
def gru_sequence(
    w_h: Array, b: Array, b_h: Array, gates: Array, hs: Array, inner: Array, from_h: Array
) -> bool:
    """Steps of one row each: `gates` (steps, 1, 3n) holds x w_x; `hs` (steps + 1, 1, n) begins with h."""
    for step in range(len(gates)):
        from_h[:] = 0
        add_product(hs[step, 0], w_h, from_h)
        gru_row(gates[step, 0], from_h, b, b_h, hs[step, 0], inner[step, 0], hs[step + 1, 0])
    return True


@kernel("tt tt m TTM")
def gru_sequence_pullback(
    ct_hs: Array, hs: Array, gates: Array, inner: Array, w_h: Array, ct_x: Array, ct_h: Array, ct: Array
) -> bool:
    """Back through `gru_sequence`; `ct` holds the cotangent of the last state, then of the first."""
    through = np.empty_like(ct[0])
    for step in range(len(gates) - 1, -1, -1):
        for j in range(ct.size):
            ct[0, j] += ct_hs[step, 0, j]
        gru_row_pullback(
            ct[0], hs[step, 0], gates[step, 0], inner[step, 0], ct_x[step, 0], ct_h[step, 0], through
        )
        transposed_product(ct_h[step, 0], w_h, ct[0])
        for j in range(ct.size):
            ct[0, j] += through[j]
    return True


# -- Elman's network -----------------------------------------------------------------------------------


@kernel("mm mm v M")
def rnn_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array, h_next: Array) -> bool:
    """`cpu.rnn_step` row by row, products included."""
    batch, n = h.shape
    n_in = x.shape[1]
    if x.shape[0] != batch or w_x.shape != (n_in, n) or w_h.shape != (n, n) or b.size != n:
        return False
    for row in range(batch):
        y = h_next[row]
        for j in range(n):
            y[j] = b[j]
        add_product(x[row], w_x, y)
        add_product(h[row], w_h, y)
        for j in range(n):
            y[j] = tanh(y[j])
    return True


@kernel("m v M")
def rnn_gates(from_h: Array, b: Array, h_next: Array) -> bool:
    """The rest of a step after its products: `h_next` holds x w_x and becomes h', `from_h` is h w_h."""
    for row in range(h_next.shape[0]):
        y, added = h_next[row], from_h[row]
        for j in range(b.size):
            y[j] = tanh(y[j] + added[j] + b[j])
    return True


@kernel("m v T")
def rnn_sequence(w_h: Array, b: Array, hs: Array) -> bool:
    """Steps of one row each: `hs` (steps + 1, 1, n) holds h and then x w_x, which become the states."""
    for step in range(1, len(hs)):
        y = hs[step, 0]
        for j in range(y.size):
            y[j] += b[j]
        add_product(hs[step - 1, 0], w_h, y)
        for j in range(y.size):
            y[j] = tanh(y[j])
    return True


@kernel("tt m TM")
def rnn_sequence_pullback(ct_hs: Array, hs: Array, w_h: Array, ct_z: Array, ct: Array) -> bool:
    """Back through `rnn_sequence` (`hs` without the first); `ct` as in `gru_sequence_pullback`."""
    for step in range(len(hs) - 1, -1, -1):
        y, z = hs[step, 0], ct_z[step, 0]
        for j in range(y.size):
            through = ct[0, j] + ct_hs[step, 0, j]
            z[j] = through - through * y[j] * y[j]
        transposed_product(z, w_h, ct[0])
    return True


@kernel("vvV")
def rnn_step_pullback(ct: Array, y: Array, ct_z: Array) -> bool:
    """`cpu.rnn_step_pullback`, of any shape as one axis."""
    for j in range(ct.size):
        ct_z[j] = ct[j] - ct[j] * y[j] * y[j]
    return True


# -- losses and tables ---------------------------------------------------------------------------------


@numba.njit(**INNER, **CONTRACTED)
def largest(a: Array) -> float:
    """The largest element, by four searches that do not wait for each other. NaN may be passed over."""
    blocked = a.size // 4 * 4
    t0 = t1 = t2 = t3 = a[0]
    for j in range(0, blocked, 4):
        t0, t1, t2, t3 = max(t0, a[j]), max(t1, a[j + 1]), max(t2, a[j + 2]), max(t3, a[j + 3])
    for j in range(blocked, a.size):
        t0 = max(t0, a[j])
    return max(max(t0, t1), max(t2, t3))


@kernel("m i M", **REORDERED)
def softmax_cross_entropy(logits: Array, labels: Array, probabilities: Array) -> float:
    """The mean loss, and the probabilities; -1 if there are no rows or a label is out of range."""
    rows, classes = logits.shape
    if rows == 0 or rows != labels.size:
        return -1.0
    loss = 0.0
    for row in range(rows):
        label = labels[row]
        if label < 0 or label >= classes:
            return -1.0
        a, p = logits[row], probabilities[row]
        top = largest(a)
        total = a.dtype.type(0)
        for j in range(classes):
            p[j] = exp_of_negative(a[j] - top)
        for j in range(classes):
            total += p[j]
        share = a.dtype.type(1) / total
        for j in range(classes):
            p[j] *= share
        loss += math.log(total) - (a[label] - top)
    return loss / rows


@kernel("m i s M")
def softmax_cross_entropy_pullback(
    probabilities: Array, labels: Array, scale: float, ct_logits: Array
) -> bool:
    """(probabilities - one-hot) scale."""
    rows, classes = probabilities.shape
    for row in range(rows):
        p, ct = probabilities[row], ct_logits[row]
        for j in range(classes):
            ct[j] = p[j] * scale
        ct[labels[row]] -= scale
    return True


@kernel("m i M")
def embedding_gradient(ct: Array, indices: Array, gradient: Array) -> bool:
    """Adds each row of `ct` to the row of `gradient` that its index names, counted from the end if negative."""
    for k in range(indices.size):
        if not -len(gradient) <= indices[k] < len(gradient):
            return False
    for k in range(indices.size):
        y, added = gradient[indices[k]], ct[k]
        for j in range(y.size):
            y[j] += added[j]
    return True


# -- optimizers, on one flat buffer --------------------------------------------------------------------
#
# Vectors and matrices as they are: making them flat outside would take as long as a small update.
# `check` stays 0 as long as every g · 0 is, which it is not for NaN and infinity. Its sum may be reordered, but
# zeros keep their signs ("nsz" is off): else g · 0 + g' · 0 could become (g + g') · 0, which overflows.


@kernel("vvVs", "mmMs", **SUMMED)
def sgd(value: Array, grad: Array, new: Array, lr: float) -> bool:
    """new = value - lr grad; whether all of `grad` is finite."""
    w, g, y = value.reshape(value.size), grad.reshape(value.size), new.reshape(value.size)
    zero = grad.dtype.type(0)
    check = zero
    for j in range(w.size):
        check += g[j] * zero
        y[j] = w[j] - lr * g[j]
    return check == zero


@kernel("vvVVss")
def momentum(value: Array, grad: Array, velocity: Array, new: Array, lr: float, mu: float) -> bool:
    """velocity = mu velocity + grad; new = value - lr velocity."""
    for j in range(value.size):
        velocity[j] = mu * velocity[j] + grad[j]
    for j in range(value.size):
        new[j] = value[j] - lr * velocity[j]
    return True


@kernel("vvVVVsssss")
def adam(
    value: Array, grad: Array, mean: Array, square: Array, new: Array,
    rate: float, beta1: float, beta2: float, eps: float, unbias: float,
) -> bool:  # fmt: skip
    """`cpu.adam`."""
    one = grad.dtype.type(1)
    rest1, rest2 = one - beta1, one - beta2
    for j in range(value.size):
        mean[j] = beta1 * mean[j] + rest1 * grad[j]
    for j in range(value.size):
        square[j] = beta2 * square[j] + rest2 * (grad[j] * grad[j])
    for j in range(value.size):
        new[j] = value[j] - rate * (mean[j] / (math.sqrt(square[j]) * unbias + eps))
    return True


@kernel("v", "m", **SUMMED)
def finite(grad: Array) -> bool:
    """Whether no element is NaN or infinite."""
    g = grad.reshape(grad.size)
    zero = grad.dtype.type(0)
    check = zero
    for j in range(g.size):
        check += g[j] * zero
    return check == zero


@kernel("v", "m", **REORDERED)
def squared_norm(grad: Array) -> float:
    """The sum of squares in float64, where those of float32 do not overflow."""
    g = grad.reshape(grad.size)
    total = 0.0
    for j in range(g.size):
        total += np.float64(g[j]) * np.float64(g[j])
    return total
