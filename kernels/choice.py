"""Which kernel runs: NumPy's (`cpu.py`), or Numba's (`compiled.py`) where it is installed and faster.

The choice depends on nothing but dtypes, strides and sizes, by limits that were measured (`bench/kernels.py`),
so that a program computes the same bits each time it runs. Arrays of CuPy go to Numba's kernels for a GPU
(`gpu_choice.py`) where they can be launched, else to `cpu.py`, which computes with CuPy's functions then. The
environment variable TAPEGRAD_KERNELS, or `use`, says "numpy" to have NumPy's and CuPy's throughout, "numba" to
insist that Numba is there; "auto" is the default.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from . import cpu

Array = Any
empty, ndarray = np.empty, np.ndarray

MODES = ("auto", "numpy", "numba")
ALL: dict[str, Kernel] = {}
LOADING = threading.Lock()


class Kernel:
    """Numba's function of this name by dtype; None where NumPy's serves."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.of_dtype: dict[Any, Any] = {}
        ALL[name] = self

    def __getitem__(self, dtype: Any) -> Any:
        """The function for `dtype`, imported and compiled when it is first asked for."""
        try:
            return self.of_dtype[dtype]
        except KeyError:
            return self.load(dtype)

    def load(self, dtype: Any) -> Any:
        with LOADING:
            made = None
            if dtype.type in (np.float32, np.float64) and dtype.isnative and numba_serves():
                try:
                    from . import compiled
                except ImportError:  # Numba is there, and refuses the NumPy that is there
                    if MODE == "numba":
                        raise
                else:
                    made = compiled.compiled(self.name, dtype)
            self.of_dtype[dtype] = made
            return made


LSTM_STEP, LSTM_GATES, LSTM_PULLBACK = map(Kernel, ("lstm_step", "lstm_gates", "lstm_step_pullback"))
LSTM_SEQUENCE, LSTM_SEQUENCE_PULLBACK = map(Kernel, ("lstm_sequence", "lstm_sequence_pullback"))
GRU_STEP, GRU_GATES, GRU_PULLBACK = map(Kernel, ("gru_step", "gru_gates", "gru_step_pullback"))
GRU_SEQUENCE, GRU_SEQUENCE_PULLBACK = map(Kernel, ("gru_sequence", "gru_sequence_pullback"))
RNN_STEP, RNN_GATES, RNN_PULLBACK = map(Kernel, ("rnn_step", "rnn_gates", "rnn_step_pullback"))
RNN_SEQUENCE, RNN_SEQUENCE_PULLBACK = map(Kernel, ("rnn_sequence", "rnn_sequence_pullback"))
CROSS_ENTROPY, CROSS_ENTROPY_PULLBACK = map(
    Kernel, ("softmax_cross_entropy", "softmax_cross_entropy_pullback")
)
EMBEDDING_GRADIENT, SQUARED_NORM, FINITE = map(Kernel, ("embedding_gradient", "squared_norm", "finite"))
SGD, MOMENTUM, ADAM = map(Kernel, ("sgd", "momentum", "adam"))

# One row is multiplied in Numba, in the same call as the rest. From two rows on BLAS is as fast or faster.
ONE_ROW = (1,)
# Three passes of NumPy over fewer elements than this take less time than calling Numba.
MANY = 2048


def in_order(array: Array, dtype: Any) -> Array:
    """`array` as kernels take it: of this dtype, C-ordered; itself if it is so already."""
    if array.dtype is dtype and array.flags.c_contiguous:
        return array
    return cpu.module_of(array).ascontiguousarray(array, dtype)


def beside(array: Array, *others: Array) -> Any:
    """What computes with an array that is not NumPy's: `gpu_choice` if its kernels take it and `others`, else `cpu`."""
    cupy = sys.modules.get("cupy")
    if MODE == "numpy" or cupy is None or not isinstance(array, cupy.ndarray):
        return cpu
    from . import gpu_choice  # here: it imports Numba's compiler for GPUs

    return gpu_choice if gpu_choice.serves(array, *others) else cpu


# -- the LSTM ------------------------------------------------------------------------------------------


def lstm_step_in_one_call(
    x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array
) -> tuple[Array, ...] | None:
    """`cpu.lstm_step` by one compiled call, or None: no such kernel here, several rows, shapes that do not fit."""
    dtype, shape = c.dtype, c.shape
    # A call that Numba refuses takes 160 µs; of the reasons, mixed dtypes are the likeliest.
    if shape[:1] != ONE_ROW or not x.dtype is dtype is w_x.dtype or type(x) is not ndarray:
        return None
    kernel = LSTM_STEP[dtype]
    if kernel is None:
        return None
    h_next, c_next, tanh_c = empty(shape, dtype), empty(shape, dtype), empty(shape, dtype)
    gates = empty((1, b.size), dtype)
    try:
        fits = kernel(x, h, c, w_x, w_h, b, h_next, c_next, gates, tanh_c)
    except TypeError:  # other numbers of axes, or strides
        return None
    return (h_next, c_next, gates, tanh_c) if fits else None


def lstm_step(x: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """`cpu.lstm_step`, for shapes that fit."""
    if type(c) is not ndarray:
        return beside(c, x, h, w_x, w_h, b).lstm_step(x, h, c, w_x, w_h, b)
    gates, from_h = x @ w_x, h @ w_h
    dtype = c.dtype
    alike = gates.dtype is from_h.dtype is dtype is b.dtype
    finish = LSTM_GATES[dtype] if alike else None
    if finish is None:
        return cpu.lstm_step(x, h, c, w_x, w_h, b)
    h_next, c_next, tanh_c = empty(c.shape, dtype), empty(c.shape, dtype), empty(c.shape, dtype)
    finish(from_h, in_order(b, dtype), in_order(c, dtype), gates, h_next, c_next, tanh_c)
    return h_next, c_next, gates, tanh_c


def lstm_step_pullback(
    ct_h: Array, ct_c: Array, c: Array, gates: Array, tanh_c: Array
) -> tuple[Array, Array]:
    """`cpu.lstm_step_pullback`."""
    if type(gates) is not ndarray:
        return beside(gates).lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)
    dtype = gates.dtype
    kernel = LSTM_PULLBACK[dtype]
    if kernel is None:
        return cpu.lstm_step_pullback(ct_h, ct_c, c, gates, tanh_c)
    ct_z, ct_c_in = empty(gates.shape, dtype), empty(c.shape, dtype)
    kernel(in_order(ct_h, dtype), in_order(ct_c, dtype), in_order(c, dtype), gates, tanh_c, ct_z, ct_c_in)
    return ct_z, ct_c_in


def lstm_sequence(xs: Array, h: Array, c: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """Every step's h (steps, batch, n), the last h and c, and what the pullback needs: the h and c that each
    step began with, the gates (steps, batch, 4n), and tanh of each step's c."""
    dtype, xs, h, c, w_x, w_h, b = of_one_dtype(xs, h, c, w_x, w_h, b)
    steps, shape = len(xs), h.shape
    hs, cs = begun_with(h, steps), begun_with(c, steps)
    gates, tanh_cs = all_products(xs, w_x), room((steps, *shape), h)
    whole = LSTM_SEQUENCE[dtype] if len(h) == 1 and type(h) is ndarray else None
    if whole is not None:
        whole(w_h, b, gates, hs, cs, tanh_cs)
    else:
        finish = (LSTM_GATES[dtype] or cpu.lstm_gates) if type(h) is ndarray else beside(h).lstm_gates
        from_h = room((len(h), b.size), h)
        for t in range(steps):
            cpu.product(hs[t], w_h, from_h)
            finish(from_h, b, cs[t], gates[t], hs[t + 1], cs[t + 1], tanh_cs[t])
    return hs[1:], hs[-1].copy(), cs[-1].copy(), hs[:-1], cs[:-1], gates, tanh_cs


def lstm_sequence_pullback(
    ct_hs: Array, ct_h: Array, ct_c: Array, c_before: Array, gates: Array, tanh_cs: Array, w_h: Array
) -> tuple[Array, Array, Array]:
    """From the cotangents of a sequence's outputs to those of the gates' inputs at every step, and of h and c."""
    dtype = gates.dtype
    ct_z, ct_h, ct_c = np.empty_like(gates), ct_h.copy(), ct_c.copy()
    whole = LSTM_SEQUENCE_PULLBACK[dtype] if len(ct_h) == 1 and type(gates) is ndarray else None
    if whole is not None:
        whole(in_order(ct_hs, dtype), c_before, gates, tanh_cs, in_order(w_h, dtype), ct_z, ct_h, ct_c)
        return ct_z, ct_h, ct_c
    # Kernels write where they are told, NumPy's and CuPy's functions into arrays of their own.
    there = None if type(gates) is ndarray else getattr(beside(gates), "lstm_pullback_into", None)
    kernel = LSTM_PULLBACK[dtype] if type(gates) is ndarray else there
    back = cpu.transposed_products(w_h, len(ct_h))
    for t in range(len(gates) - 1, -1, -1):
        ct_h += ct_hs[t]
        if kernel is None:
            ct_z[t], ct_c = cpu.lstm_step_pullback(ct_h, ct_c, c_before[t], gates[t], tanh_cs[t])
        else:
            kernel(ct_h, ct_c, c_before[t], gates[t], tanh_cs[t], ct_z[t], ct_c)
        np.copyto(ct_h, back(ct_z[t]))
    return ct_z, ct_h, ct_c


# -- the GRU -------------------------------------------------------------------------------------------


def gru_step_in_one_call(
    x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array
) -> tuple[Array, ...] | None:
    """`cpu.gru_step` as `lstm_step_in_one_call`."""
    dtype, shape = h.dtype, h.shape
    if shape[:1] != ONE_ROW or not x.dtype is dtype is w_x.dtype or type(x) is not ndarray:
        return None
    kernel = GRU_STEP[dtype]
    if kernel is None:
        return None
    h_next, inner, gates, from_h = (empty(s, dtype) for s in (shape, shape, (1, b.size), (1, b.size)))
    try:
        fits = kernel(x, h, w_x, w_h, b, b_h, h_next, gates, inner, from_h)
    except TypeError:
        return None
    return (h_next, gates, inner) if fits else None


def gru_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> tuple[Array, ...]:
    """`cpu.gru_step`, for shapes that fit."""
    if type(h) is not ndarray:
        return beside(h, x, w_x, w_h, b, b_h).gru_step(x, h, w_x, w_h, b, b_h)
    gates, from_h = x @ w_x, h @ w_h
    dtype = h.dtype
    alike = gates.dtype is from_h.dtype is dtype is b.dtype is b_h.dtype
    finish = GRU_GATES[dtype] if alike else None
    if finish is None:
        return cpu.gru_step(x, h, w_x, w_h, b, b_h)
    h_next, inner = empty(h.shape, dtype), empty(h.shape, dtype)
    finish(from_h, in_order(b, dtype), in_order(b_h, dtype), in_order(h, dtype), gates, inner, h_next)
    return h_next, gates, inner


def gru_step_pullback(ct: Array, h: Array, gates: Array, inner: Array) -> tuple[Array, Array, Array]:
    """`cpu.gru_step_pullback`."""
    if type(gates) is not ndarray:
        return beside(gates).gru_step_pullback(ct, h, gates, inner)
    dtype = gates.dtype
    kernel = GRU_PULLBACK[dtype]
    if kernel is None:
        return cpu.gru_step_pullback(ct, h, gates, inner)
    ct_x, ct_h, through_z = empty(gates.shape, dtype), empty(gates.shape, dtype), empty(h.shape, dtype)
    kernel(in_order(ct, dtype), in_order(h, dtype), gates, inner, ct_x, ct_h, through_z)
    return ct_x, ct_h, through_z


def gru_sequence(xs: Array, h: Array, w_x: Array, w_h: Array, b: Array, b_h: Array) -> tuple[Array, ...]:
    """Every step's h, the last h, and what the pullback needs: the h that each step began with, the gates
    (steps, batch, 3n), and each step's `inner`."""
    dtype, xs, h, w_x, w_h, b, b_h = of_one_dtype(xs, h, w_x, w_h, b, b_h)
    steps, shape = len(xs), h.shape
    hs, gates, inner = begun_with(h, steps), all_products(xs, w_x), room((steps, *shape), h)
    from_h = room((len(h), b.size), h)
    whole = GRU_SEQUENCE[dtype] if len(h) == 1 and type(h) is ndarray else None
    if whole is not None:
        whole(w_h, b, b_h, gates, hs, inner, from_h[0])
    else:
        finish = (GRU_GATES[dtype] or cpu.gru_gates) if type(h) is ndarray else beside(h).gru_gates
        for t in range(steps):
            cpu.product(hs[t], w_h, from_h)
            finish(from_h, b, b_h, hs[t], gates[t], inner[t], hs[t + 1])
    return hs[1:], hs[-1].copy(), hs[:-1], gates, inner


def gru_sequence_pullback(
    ct_hs: Array, ct: Array, h_before: Array, gates: Array, inner: Array, w_h: Array
) -> tuple[Array, Array, Array]:
    """From the cotangents of a sequence's outputs to those of x w_x and of h w_h at every step, and of h."""
    dtype = gates.dtype
    ct_x, ct_h, ct = np.empty_like(gates), np.empty_like(gates), ct.copy()
    whole = GRU_SEQUENCE_PULLBACK[dtype] if len(ct) == 1 and type(gates) is ndarray else None
    if whole is not None:
        whole(in_order(ct_hs, dtype), h_before, gates, inner, in_order(w_h, dtype), ct_x, ct_h, ct)
        return ct_x, ct_h, ct
    back = cpu.transposed_products(w_h, len(ct))
    for t in range(len(gates) - 1, -1, -1):
        ct += ct_hs[t]
        ct_x[t], ct_h[t], ct = gru_step_pullback(ct, h_before[t], gates[t], inner[t])
        ct += back(ct_h[t])
    return ct_x, ct_h, ct


# -- Elman's network -----------------------------------------------------------------------------------


def rnn_step_in_one_call(x: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> Array | None:
    """`cpu.rnn_step` as `lstm_step_in_one_call`."""
    dtype, shape = h.dtype, h.shape
    if shape[:1] != ONE_ROW or not x.dtype is dtype is w_x.dtype or type(x) is not ndarray:
        return None
    kernel = RNN_STEP[dtype]
    if kernel is None:
        return None
    h_next = empty(shape, dtype)
    try:
        fits = kernel(x, h, w_x, w_h, b, h_next)
    except TypeError:
        return None
    return h_next if fits else None


def rnn_step(x: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> Array:
    """`cpu.rnn_step`, for shapes that fit."""
    if type(h) is not ndarray:
        return beside(h, x, w_x, w_h, b).rnn_step(x, h, w_x, w_h, b)
    h_next, from_h = x @ w_x, h @ w_h
    dtype = h_next.dtype
    finish = RNN_GATES[dtype] if from_h.dtype is dtype is b.dtype else None
    if finish is None:
        return cpu.rnn_step(x, h, w_x, w_h, b)
    finish(from_h, in_order(b, dtype), h_next)
    return h_next


def rnn_step_pullback(ct: Array, y: Array) -> Array:
    """`cpu.rnn_step_pullback`."""
    if type(y) is not ndarray:
        return beside(y).rnn_step_pullback(ct, y)
    dtype = y.dtype
    kernel = RNN_PULLBACK[dtype] if y.size >= MANY else None
    if kernel is None:
        return cpu.rnn_step_pullback(ct, y)
    ct_z = empty(y.shape, dtype)
    kernel(in_order(ct, dtype).reshape(-1), in_order(y, dtype).reshape(-1), ct_z.reshape(-1))
    return ct_z


def rnn_sequence(xs: Array, h: Array, w_x: Array, w_h: Array, b: Array) -> tuple[Array, ...]:
    """Every step's h, the last h, and the h that each step began with."""
    dtype, xs, h, w_x, w_h, b = of_one_dtype(xs, h, w_x, w_h, b)
    steps = len(xs)
    hs = begun_with(h, steps)
    all_products(xs, w_x, out=hs[1:])
    whole = RNN_SEQUENCE[dtype] if len(h) == 1 and type(h) is ndarray else None
    if whole is not None:
        whole(w_h, b, hs)
    else:
        finish = (RNN_GATES[dtype] or cpu.rnn_gates) if type(h) is ndarray else beside(h).rnn_gates
        from_h = room(h.shape, h)
        for t in range(steps):
            cpu.product(hs[t], w_h, from_h)
            finish(from_h, b, hs[t + 1])
    return hs[1:], hs[-1].copy(), hs[:-1]


def rnn_sequence_pullback(ct_hs: Array, ct: Array, hs: Array, w_h: Array) -> tuple[Array, Array]:
    """From the cotangents of a sequence's outputs to those of what tanh was applied to, and of h."""
    dtype = hs.dtype
    ct_z, ct = np.empty_like(hs), ct.copy()
    whole = RNN_SEQUENCE_PULLBACK[dtype] if len(ct) == 1 and type(hs) is ndarray else None
    if whole is not None:
        whole(in_order(ct_hs, dtype), hs, in_order(w_h, dtype), ct_z, ct)
        return ct_z, ct
    back = cpu.transposed_products(w_h, len(ct))
    for t in range(len(hs) - 1, -1, -1):
        ct += ct_hs[t]
        ct_z[t] = rnn_step_pullback(ct, hs[t])
        ct = back(ct_z[t])
    return ct_z, ct


# -- what sequences share ------------------------------------------------------------------------------


def of_one_dtype(*arrays: Array) -> tuple[Any, ...]:
    """The dtype that the arrays together have, and the arrays as kernels take them."""
    dtype = arrays[0].dtype
    if any(a.dtype is not dtype for a in arrays):
        dtype = np.result_type(*(a.dtype for a in arrays))
    return dtype, *(in_order(a, dtype) for a in arrays)


def room(shape: tuple[int, ...], beside: Array) -> Array:
    """An empty array of the dtype of another one, and of its library."""
    return cpu.module_of(beside).empty(shape, beside.dtype)


def begun_with(state: Array, steps: int) -> Array:
    """Room for `steps` more states behind the first. Shape: (steps + 1, batch, n)."""
    states = room((steps + 1, *state.shape), state)
    states[0] = state
    return states


def all_products(xs: Array, w: Array, out: Array = None) -> Array:
    """x w of every step in one product. Shapes: (steps, batch, n_in), (n_in, m) -> (steps, batch, m)."""
    out = room((*xs.shape[:2], w.shape[1]), xs) if out is None else out
    cpu.product(xs.reshape(-1, xs.shape[2]), w, out.reshape(-1, w.shape[1]))
    return out


# -- losses and tables ---------------------------------------------------------------------------------


def softmax_cross_entropy_in_one_call(logits: Array, labels: Array) -> tuple[Array, Array] | None:
    """`cpu.softmax_cross_entropy`; None without a kernel, and for shapes or labels that do not fit."""
    dtype, shape = logits.dtype, logits.shape
    if labels.shape != shape[:-1] or labels.dtype.kind not in "iu" or not logits.size:
        return None
    if type(logits) is not ndarray:
        where = beside(logits)
        return None if where is cpu else where.softmax_cross_entropy(logits, labels)
    kernel = CROSS_ENTROPY[dtype]
    if kernel is None:
        return None
    probabilities = empty(shape, dtype)
    if len(shape) == 2 and labels.dtype is INT64 and labels.flags.c_contiguous and logits.flags.c_contiguous:
        loss = kernel(logits, labels, probabilities)
    else:
        rows = probabilities.reshape(labels.size, -1)
        loss = kernel(in_order(logits, dtype).reshape(rows.shape), in_order(labels, INT64).reshape(-1), rows)
    return None if loss < 0 else (dtype.type(loss), probabilities)


def softmax_cross_entropy_pullback(ct: Array, labels: Array, probabilities: Array) -> Array:
    """`cpu.softmax_cross_entropy_pullback`."""
    if type(probabilities) is not ndarray:
        return beside(probabilities).softmax_cross_entropy_pullback(ct, labels, probabilities)
    dtype = probabilities.dtype
    kernel = CROSS_ENTROPY_PULLBACK[dtype]
    if kernel is None:
        return cpu.softmax_cross_entropy_pullback(ct, labels, probabilities)
    ct_logits, classes = empty(probabilities.shape, dtype), probabilities.shape[-1]
    rows = in_order(probabilities, dtype).reshape(-1, classes)
    kernel(rows, in_order(labels, INT64).reshape(-1), ct / labels.size, ct_logits.reshape(-1, classes))
    return ct_logits


def embedding_gradient(ct: Array, indices: Array, count: int) -> Array:
    """`cpu.embedding_gradient`."""
    if type(ct) is not ndarray:
        return beside(ct).embedding_gradient(ct, indices, count)
    dtype = ct.dtype
    kernel = EMBEDDING_GRADIENT[dtype]
    if kernel is not None:
        gradient = np.zeros((count, ct.shape[1]), dtype)
        if kernel(in_order(ct, dtype), in_order(indices, INT64), gradient):
            return gradient
    return cpu.embedding_gradient(ct, indices, count)


# -- optimizers ----------------------------------------------------------------------------------------


def sgd(value: Array, grad: Array, new: Array, lr: float) -> bool:
    """`cpu.sgd`; `new` is C-ordered, and of one shape and dtype with `value` and `grad`."""
    kernel = SGD[value.dtype] if type(grad) is ndarray else None
    if kernel is None:
        return cpu.sgd(value, grad, new, lr)
    try:
        return kernel(value, grad, new, lr)
    except TypeError:  # no axis or more than two, or strides
        return kernel(*flat(value, grad), new.reshape(-1), lr)


def momentum(value: Array, grad: Array, velocity: Array, new: Array, lr: float, mu: float) -> None:
    """`cpu.momentum`; `velocity` and `new` are C-ordered."""
    kernel = MOMENTUM[value.dtype] if type(grad) is ndarray else None
    if kernel is None:
        cpu.momentum(value, grad, velocity, new, lr, mu)
    else:
        kernel(*flat(value, grad), velocity.reshape(-1), new.reshape(-1), lr, mu)


def adam(
    value: Array, grad: Array, mean: Array, square: Array, new: Array,
    rate: float, beta1: float, beta2: float, eps: float, unbias: float,
) -> None:  # fmt: skip
    """`cpu.adam`; `mean`, `square` and `new` are C-ordered."""
    kernel = ADAM[value.dtype] if type(grad) is ndarray else None
    rates = (rate, beta1, beta2, eps, unbias)
    if kernel is None:
        cpu.adam(value, grad, mean, square, new, *rates)
    else:
        kernel(*flat(value, grad), mean.reshape(-1), square.reshape(-1), new.reshape(-1), *rates)


def finite(grad: Array) -> bool:
    """`cpu.finite`."""
    kernel = FINITE[grad.dtype] if type(grad) is ndarray else None
    return cpu.finite(grad) if kernel is None else kernel(*flat(grad))


def squared_norm(grad: Array) -> float:
    """`cpu.squared_norm`."""
    kernel = SQUARED_NORM[grad.dtype] if type(grad) is ndarray else None
    return cpu.squared_norm(grad) if kernel is None else kernel(*flat(grad))


def flat(*arrays: Array) -> list[Array]:
    """The arrays on one axis each, C-ordered: views, unless strides forbid it."""
    return [a.reshape(-1) for a in arrays]


INT64 = np.dtype(np.int64)


# -- choosing and reporting ----------------------------------------------------------------------------


def use(mode: str) -> str:
    """From now on "numpy" throughout, or Numba where it is faster ("auto"; "numba" insists that it is there).

    Returns the mode before. Raises ValueError for another word, ImportError where Numba is not installed.
    """
    global MODE
    if mode not in MODES:
        raise ValueError(f"kernels.use: `mode` must be one of {', '.join(MODES)}, and {mode!r} came.")
    if mode == "numba" and not installed("numba"):
        raise ImportError("kernels.use: Numba is not installed. Run pip install 'tapegrad[jit]'.")
    before, MODE = MODE, mode
    for kernel in ALL.values():
        kernel.of_dtype.clear()
    return before


def numba_serves() -> bool:
    """Whether Numba's kernels are wanted and can be imported."""
    return MODE != "numpy" and installed("numba")


def installed(package: str) -> bool:
    from importlib.util import find_spec  # here: importing tapegrad need not wait for it

    return find_spec(package) is not None


def warmup(dtypes: Iterable[Any] = (np.float32,)) -> dict[str, dict[str, Any]]:
    """Compile every kernel for `dtypes` now, or fetch it from the disk, rather than at its first use.

    Returns for each "name dtype" its `seconds`, and whether it came `from_cache`; nothing where NumPy serves.
    """
    report: dict[str, dict[str, Any]] = {}
    for dtype in map(np.dtype, dtypes):
        for name, kernel in ALL.items():
            started = time.perf_counter()
            if kernel.load(dtype) is not None:
                from . import compiled

                seconds = time.perf_counter() - started
                cached = compiled.is_from_cache(name, dtype)
                report[f"{name} {dtype}"] = {"seconds": seconds, "from_cache": cached}
    return report


MODE = "auto"
use(os.environ.get("TAPEGRAD_KERNELS", "auto"))
