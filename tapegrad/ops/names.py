"""What NumPy's functions are here: which op records each, which are constants by nature, which are refused and why.

The one table of names. `tg.NAME` finds its function here, the protocols (`protocols.py`) learn here what
`np.NAME` means on a Variable, and docs/ops.md is written from it. A module of ops is imported when one of
its functions is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# NAME -> (module, function)
Table = dict[str, tuple[str, str]]


def table(modules: dict[str, str]) -> Table:
    """What a text of names per module says; `NAME=function` where the function is called otherwise."""
    rows = [(module, *word.partition("=")) for module, text in modules.items() for word in text.split()]
    return {name: (f"tapegrad.{module}", function or name) for module, name, _, function in rows}


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# -- recorded ------------------------------------------------------------------------------------------

# The functions of `numpy` that differentiate. `tg.NAME` is what records `np.NAME`.
NUMPY = table({
    "ops.elementwise": """
        absolute add astype clip cos divide exp expm1 fabs=absolute log log1p maximum minimum multiply negative positive power
        sin sqrt square subtract tanh where
        cbrt conjugate copysign exp2 float_power fmax fmin log10 log2 logaddexp logaddexp2 real real_if_close=real
        reciprocal
    """,
    "ops.rounding": "divmod fmod frexp heaviside ldexp modf nan_to_num remainder",
    "ops.trigonometry": """
        tan arcsin arccos arctan arctan2 hypot sinh cosh arcsinh arccosh arctanh sinc degrees radians deg2rad rad2deg
        unwrap
    """,
    "ops.special": "i0",
    "ops.shape": """
        broadcast_to broadcast_arrays reshape ravel transpose matrix_transpose expand_dims squeeze swapaxes moveaxis
        rollaxis atleast_1d atleast_2d atleast_3d copy concatenate stack split unstack diagonal
    """,
    "ops.join": "vstack hstack dstack column_stack block array_split hsplit vsplit dsplit meshgrid",
    "ops.arrange": "roll flip flipud fliplr rot90 repeat tile resize pad tril triu diag diagflat trim_zeros",
    "ops.piecewise": "apply_along_axis apply_over_axes piecewise",
    "ops.ranges": "linspace logspace geomspace full_like",
    "ops.reduce": "sum mean max min ptp bincount",
    "ops.masked": "prod nansum nanmean nanprod nanmax nanmin",
    "ops.statistics": "average var std cov corrcoef nanvar nanstd",
    "ops.cumulative": "cumsum cumprod cumulative_sum cumulative_prod nancumsum nancumprod",
    "ops.order": """
        sort partition median quantile percentile nanmedian nanquantile nanpercentile take_along_axis unique
        unique_values unique_all unique_counts unique_inverse
    """,
    "ops.differences": "diff ediff1d gradient trapezoid",
    "ops.curves": "interp polyval vander",
    "ops.index": "take choose select compress extract delete insert append",
    "ops.convolve": "convolve correlate",
    "ops.polynomials": "polyadd polysub polymul polyder polyint",
    "ops.linalg": "matmul tensordot inner outer dot vdot vecdot matvec vecmat kron cross trace",
    "ops.einsum": "einsum",
})  # fmt: skip

# Functions of `numpy.linalg`; `tg.linalg.NAME` records `np.linalg.NAME`.
LINALG = table({
    "linalg": """
        cholesky cond cross det diagonal eigh eigvalsh inv lstsq matmul matrix_norm matrix_power matrix_transpose
        multi_dot norm outer pinv qr slogdet solve svd svdvals tensordot tensorinv tensorsolve trace vecdot vector_norm
    """
})  # fmt: skip

# Functions of `scipy.special`; `tg.special.NAME` records `scipy.special.NAME`.
SPECIAL = table({
    "ops.special": """
        beta betainc betaln cbrt digamma entr erf erfc erfcinv erfcx erfinv exp2 expit expm1 gamma gammainc gammaincc gammaln i0 i0e i1 i1e iv ive j0
        j1 jn jv k0 k1 kl_div kn kv log1p log_expit log_ndtr log_softmax logit logsumexp multigammaln ndtr ndtri polygamma
        psi rel_entr rgamma sinc softmax softplus xlog1py xlogy y0 y1 yn yv zeta
    """
})  # fmt: skip

# Those of them that SciPy writes in Python and that are not asked about Variables: `tg.special.NAME` alone records.
NO_UFUNCS = words("log_softmax logsumexp multigammaln polygamma softmax")

# Functions of NumPy that have no place in `tg`, by their module.
ELSEWHERE = table({
    "ops.arrange": """
        lib.stride_tricks.sliding_window_view=sliding_window_view fft.fftshift=fftshift fft.ifftshift=ifftshift
    """
})  # fmt: skip

# Where NumPy's parameters are other than those of `tg.NAME`, what records `np.NAME`.
AS_NUMPY_CALLS_IT = table({
    "ops.masked": "sum mean max min amax=max amin=min",
    "ops.arrange": "pad=numpy_pad",
    "ops.index": "take=numpy_take",
    "ops.protocols": "clip=clip_as_numpy where=where_as_numpy",
})  # fmt: skip

# Other names of the same: NumPy's, and those of the array API standard.
ALIASES = {
    "abs": "absolute", "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan",
    "atan2": "arctan2", "atanh": "arctanh", "conj": "conjugate", "mod": "remainder", "pow": "power",
    "permute_dims": "transpose", "true_divide": "divide", "amax": "max", "amin": "min",
}  # fmt: skip

# `tg.NAME` that is no function of NumPy's, or differs from it.
OWN = table({
    "ops.elementwise": """
        ceil equal floor greater greater_equal imag isfinite isinf isnan less less_equal logical_and logical_not logical_or
        logical_xor not_equal relu rint sigmoid sign signbit softplus stop_gradient trunc
    """,
    "ops.rounding": "angle around=round fix floor_divide round spacing",
    "ops.shape": "concat sum_to",
    "ops.arrange": "sliding_window_view",
    "ops.reduce": "logsumexp",
    "ops.cumulative": "logcumsumexp linear_recurrence",
    "ops.order": "cummax cummin scatter_along_axis",
    "ops.index": "getitem put_at index_put index_add",
    "ops.convolve": "conv1d conv2d conv_transpose1d conv_transpose2d",
    "ops.pool": "avg_pool1d avg_pool2d max_pool1d max_pool2d",
    "ops.recurrent": "gru_sequence gru_step lstm_sequence lstm_step rnn_sequence rnn_step",
    "ops.softmax": "log_softmax softmax softmax_cross_entropy",
})  # fmt: skip

# ufunc.reduce and ufunc.accumulate.
REDUCE = table({
    "ops.masked": "add=sum multiply=prod maximum=max minimum=min",
    "ops.reduce": "logaddexp=logsumexp",
})  # fmt: skip
ACCUMULATE = table({
    "ops.cumulative": "add=cumsum multiply=cumprod logaddexp=logcumsumexp",
    "ops.order": "maximum=cummax minimum=cummin",
})  # fmt: skip

# -- constants by nature ---------------------------------------------------------------------------------

# Booleans, integers, text, files: and functions whose derivative is 0 wherever it exists.
CONSTANT = words("""
    all allclose angle any argmax argmin argpartition argsort argwhere around array2string array_equal array_equiv array_repr
    array_str can_cast ceil common_type count_nonzero diag_indices_from digitize einsum_path empty_like equal fix
    flatnonzero floor floor_divide greater greater_equal imag isclose iscomplex iscomplexobj isfinite isin in1d isinf
    isnan isneginf isposinf isreal isrealobj less less_equal lexsort linalg.matrix_rank logical_and logical_not
    logical_or logical_xor may_share_memory min_scalar_type nanargmax nanargmin ndim nonzero not_equal ones_like
    result_type rint round save savetxt savez savez_compressed searchsorted shape shares_memory sign signbit size
    spacing tril_indices_from triu_indices_from trunc zeros_like
""")  # fmt: skip

# Constants that NumPy asks about for `like=v` alone.
CREATED = words("""
    arange array asanyarray asarray ascontiguousarray asfortranarray empty eye frombuffer fromfile fromfunction
    fromiter fromstring full genfromtxt identity loadtxt ones require tri zeros
""")  # fmt: skip

# -- refused -------------------------------------------------------------------------------------------

# What to do instead of a function that writes into its argument.
IN_PLACE = {
    "copyto": "tg.where(mask, value, v), for np.full_like tg.full_like(a, v)",
    "fill_diagonal": "tg.where(np.eye(n, dtype=bool), value, v)",
    "place": "tg.index_put(v, mask, values)",
    "put": "tg.index_put(v, index, values)",
    "put_along_axis": "tg.index_put(v, index, values)",
    "putmask": "tg.where(mask, values, v)",
}

# Why the others are refused. A name that ends in `*` stands for all that begin so.
REASONS = {
    "Riemann's zeta function is not differentiated in its only argument": "scipy.special._riemann_zeta",
    "Complex numbers are not differentiated": """
        fft.* linalg.eig linalg.eigvals roots sort_complex lib.scimath.*
    """,
    "It takes integers": """
        bitwise_and bitwise_count bitwise_or bitwise_xor gcd invert ix_ lcm left_shift packbits ravel_multi_index
        right_shift unpackbits unravel_index
    """,
    "It counts elements, or places their bins": "histogram histogram2d histogram_bin_edges histogramdd",
    "Which elements a set holds has no rule; `tg.unique` has one": "intersect1d setdiff1d setxor1d union1d",
    "Coefficients are fitted or found by a method that has no rule": "poly polydiv polyfit",
    "NumPy's older polynomials have ops (np.polyval, np.polymul, ...)": "polynomial.*",
    "A step of one rounding has no derivative": "nextafter",
    "It takes text": """
        _* count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle isupper rfind rindex
        startswith str_len char.* strings.*
    """,
    "It takes dates": "busday_count busday_offset datetime_as_string is_busday isnat",
    "It takes arrays with fields": "lib.recfunctions.*",
}  # fmt: skip


# -- finding -------------------------------------------------------------------------------------------

# Every `tg.NAME` that is an op or a function of ops.
PUBLIC: Table = {**NUMPY, **OWN}
PUBLIC |= {alias: PUBLIC[name] for alias, name in ALIASES.items()}

# What records a function of NumPy's, by its name behind `numpy.`.
RECORDED: Table = {
    **NUMPY,
    **{f"linalg.{name}": where for name, where in LINALG.items()},
    **ELSEWHERE,
    **AS_NUMPY_CALLS_IT,
}


def function_at(where: tuple[str, str]) -> Any:
    """The function, its module imported now if need be."""
    module, name = where
    return getattr(import_module(module), name)


def import_all() -> None:
    """Import every module of ops: the registry of primitives is complete afterwards."""
    for module, _ in {**PUBLIC, **RECORDED, **SPECIAL, **REDUCE, **ACCUMULATE}.values():
        import_module(module)
    import_module("tapegrad.opaque")  # whose ops are functions of the user's


def reason(name: str) -> str:
    """Why NumPy's function `name` is refused; empty if there is nothing to say."""
    for why, refused in REASONS.items():
        for pattern in refused.split():
            if name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1])):
                return why
    return ""


def kind_of(name: str) -> str:
    """What NumPy's function `name` is here: "recorded", "constant" or "refused"."""
    if name in RECORDED:
        return "recorded"
    return "constant" if name in CONSTANT or name in CREATED else "refused"
