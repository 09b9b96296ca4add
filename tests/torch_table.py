"""PyTorch's operators and how each is computed here: the rows that `test_torch_samples.py` compares."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import tapegrad as tg
from tapegrad.ops import arrange
from torch_functions import (
    axes,
    blended,
    block_diagonal,
    bounded,
    broadcast_pair,
    cartesian_product,
    cdist,
    chosen,
    chunks,
    column_solve,
    convolution,
    cov,
    cumulative_trapezoid,
    diagonal_scatter,
    diagonals,
    divided,
    expanded,
    first,
    flattened,
    fold,
    gauge_free_eigh,
    gradient,
    index_put,
    indexed,
    length,
    linalg_norm,
    logdet,
    logit,
    lower_solve,
    masked_scatter,
    masked_select,
    matrix_norm,
    norm,
    padded,
    picked_along,
    pooled,
    powers,
    put,
    quantile,
    reduced,
    renorm,
    repeated,
    rolled,
    rows_of,
    same_shape,
    scan,
    scatter_slice,
    scattered,
    singular_part,
    sort,
    split_torch,
    spread_of,
    symmetric,
    tensor_split,
    thin,
    topk,
    transposed_convolution,
    trapezoid,
    unflattened,
    unfolded,
    values_first,
    vector_norm,
    with_alpha,
    with_mean,
)  # fmt: skip
from torch_layers import (
    attention,
    batch_norm,
    bilinear,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    channel_shuffle,
    cosine_embedding_loss,
    cosine_similarity,
    cross_entropy,
    elu,
    gaussian_nll_loss,
    gelu,
    glu,
    group_norm,
    huber_loss,
    instance_norm,
    kl_div,
    layer_norm,
    linear,
    nll_loss,
    normalize,
    pairwise_distance,
    pdist,
    pixel_shuffle,
    pixel_unshuffle,
    poisson_nll_loss,
    prelu,
    rms_norm,
    smooth_l1_loss,
    softplus,
    triplet_margin_loss,
)  # fmt: skip

FIRST_ORDER, DECOMPOSED = (
    1e-12,
    1e-9,
)  # of the largest element: what is told from rounding, after a decomposition


@dataclass(frozen=True)
class Op:
    """How an operator of PyTorch's is computed here.

    ours        takes what PyTorch's takes, with Variables and arrays for tensors
    tolerance   of values and gradients
    compared    what of PyTorch's result is compared, and what of it is meant where it is not unique
    before      what both sides do to the first argument
    without     reason -> which samples are left out for it
    nan         why a derivative is finite here where PyTorch's is NaN
    """

    ours: Callable[..., Any]
    tolerance: float = FIRST_ORDER
    compared: Callable[[Any], Any] = lambda y: y
    before: Callable[[Any], Any] = lambda a: a
    without: dict[str, Callable[[Any], bool]] = field(default_factory=dict)
    nan: str = ""


def even_count(s):
    dim = option(s, "dim", 0, None)
    return (s.input.numel() if dim is None or not s.input.ndim else s.input.shape[dim]) % 2 == 0


def option(sample, name, position, default):
    """An argument of a sample, behind the first, given by name or position."""
    if name in sample.kwargs:
        return sample.kwargs[name]
    return sample.args[position] if len(sample.args) > position else default


def given(name, position=99, default=None):
    return lambda s: option(s, name, position, default) is not default


POOLING = {
    "torch's `ceil_mode`": lambda s: option(s, "ceil_mode", 3, False),
    "torch's `count_include_pad=False` or `divisor_override`": lambda s: (
        not option(s, "count_include_pad", 4, True) or option(s, "divisor_override", 5, None) is not None
    ),
}
MAX_POOLING = {
    "torch's `ceil_mode`": lambda s: option(s, "ceil_mode", 4, False),
    "torch's `dilation` of a pool": lambda s: option(s, "dilation", 3, 1) not in (1, (1,), (1, 1)),
}


SAME = """
    sin cos tan sinh cosh tanh exp exp2 expm1 log log1p log2 log10 sqrt square sinc positive reciprocal deg2rad rad2deg
    acos=arccos acosh=arccosh asin=arcsin asinh=arcsinh atan=arctan atanh=arctanh abs=absolute neg=negative
    conj=conjugate conj_physical=conjugate resolve_conj=positive resolve_neg=positive real sigmoid
    ceil floor trunc sign sgn=sign frac=modf angle
    mul=multiply true_divide=divide atan2=arctan2 pow=power float_power copysign fmax fmin maximum minimum
    max/binary=maximum min/binary=minimum clamp_max=minimum clamp_min=maximum fmod remainder hypot logaddexp logaddexp2
    __radd__=add __rmul__=multiply
    erf=special.erf erfc=special.erfc erfinv=special.erfinv digamma=special.digamma lgamma=special.gammaln i0=special.i0
    special.i0e=special.i0e special.i1=special.i1 special.i1e=special.i1e special.entr=special.entr special.ndtr=special.ndtr
    special.ndtri=special.ndtri special.log_ndtr=special.log_ndtr special.erfcx=special.erfcx
    xlogy=special.xlogy special.xlog1py=special.xlog1py
    matmul dot=inner vdot mv=matmul mm=matmul bmm=matmul inner outer kron __rmatmul__=matmul
    fliplr flipud ravel T=transpose H=transpose mT=matrix_transpose mH=matrix_transpose
    t_copy=transpose t=transpose clone=positive contiguous=positive alias_copy=positive
    linalg.det=linalg.det linalg.inv=linalg.inv linalg.matrix_power=linalg.matrix_power
    linalg.svdvals=linalg.svdvals
    nn.functional.logsigmoid=special.log_expit nn.functional.relu=relu
    view=reshape reshape view_copy=reshape hsplit vsplit dsplit
"""  # fmt: skip


def named(path):
    """The function of tapegrad that a dotted name means, found when it is called."""

    def call(*args, **kwargs):
        f = tg
        for part in path.split("."):
            f = getattr(f, part)
        return f(*args, **kwargs)

    return call


OPS: dict[str, Op] = {}
for word in SAME.split():
    theirs, _, ours = word.partition("=")
    OPS[theirs] = Op(named(ours or theirs))


def rows(**ops):
    """Rows of the table; two underscores stand for the point, three for the stroke before a variant."""
    for name, op in ops.items():
        key = (
            name.replace("___", "/")
            .replace("nn__functional__", "nn.functional.")
            .replace("special__", "special.")
        )
        key = key.replace("linalg__", "linalg.").replace("fft__", "fft.").replace("masked__", "masked.")
        OPS[key] = op if isinstance(op, Op) else Op(op)


rows(  # -- elementwise
    **{f"fft__{f}": lambda a, dim=None, f=f: getattr(arrange, f)(a, axes=dim) for f in ("fftshift", "ifftshift")},
    add=with_alpha(lambda a, b: tg.add(a, b)),
    sub=with_alpha(lambda a, b: tg.subtract(a, b)),
    rsub=lambda a, b, alpha=1: tg.subtract(b, tg.multiply(a, alpha)),
    div___no_rounding_mode=divided, div___trunc_rounding=divided, div___floor_rounding=divided,
    rsqrt=lambda a: 1.0 / tg.sqrt(a),
    logit=logit,
    clamp=bounded,
    nan_to_num=lambda a, nan=0.0, posinf=None, neginf=None: tg.nan_to_num(a, nan=nan, posinf=posinf, neginf=neginf),
    frac=lambda a: tg.modf(a)[0],
    frexp=Op(lambda a: tg.frexp(a)[0], compared=lambda y: y[0]),
    round=lambda a, decimals=0: tg.round(a, decimals),
    lerp=lambda a, b, weight: a + weight * (b - a),
    where=lambda a, condition, b: tg.where(condition, a, b),
    masked_fill=lambda a, mask, value: tg.where(mask, value, a),
    fill=lambda a, value: a * 0.0 + value,
    zero_=lambda a: a * 0.0,
    addcmul=lambda a, b, c, value=1: a + tg.multiply(tg.multiply(b, c), value),
    addcdiv=lambda a, b, c, value=1: a + tg.multiply(tg.divide(b, c), value),
    polar=Op(lambda r, angle: (r * tg.cos(angle), r * tg.sin(angle)), compared=lambda y: (y.real, y.imag)),
    ldexp=lambda a, b: a * tg.exp2(b),  # PyTorch's exponents need not be integers
    complex=Op(lambda a, b: tg.broadcast_arrays(a, b), compared=lambda y: (y.real, y.imag)),
    view_as_complex=Op(lambda a: (a[..., 0], a[..., 1]), compared=lambda y: (y.real, y.imag)),
    mvlgamma___mvlgamma_p_1=lambda a, p: tg.special.multigammaln(a, p),
    mvlgamma___mvlgamma_p_3=lambda a, p: tg.special.multigammaln(a, p),
    mvlgamma___mvlgamma_p_5=lambda a, p: tg.special.multigammaln(a, p),
    double=lambda a, **kwargs: tg.positive(a),
    **{f"polygamma___polygamma_n_{n}": lambda a, n: tg.special.polygamma(n, a) for n in range(5)},
    special__polygamma___special_polygamma_n_0=lambda a, n: tg.special.polygamma(n, a),
    **{f"round___decimals_{n}": lambda a, decimals: tg.round(a, decimals) for n in ("0", "3", "neg_3")},
    __rdiv__=lambda a, b: tg.divide(b, a), __rsub__=lambda a, b: tg.subtract(b, a),
    __rpow__=lambda a, b: tg.power(b, a), __rmod__=lambda a, b: tg.remainder(b, a),
)  # fmt: skip
OPS["__rmatmul__"] = Op(lambda a, b: tg.matmul(b, a))

rows(  # -- reductions, running sums, order
    sum=fold(lambda *a, **k: tg.sum(*a, **k)), mean=fold(lambda *a, **k: tg.mean(*a, **k)),
    amax=fold(lambda *a, **k: tg.max(*a, **k)), amin=fold(lambda *a, **k: tg.min(*a, **k)),
    prod=fold(lambda *a, **k: tg.prod(*a, **k)),
    nansum=fold(lambda *a, **k: tg.nansum(*a, **k)), nanmean=fold(lambda *a, **k: tg.nanmean(*a, **k)),
    logsumexp=lambda a, dim, keepdim=False: tg.logsumexp(a, axis=axes(dim) if a.ndim else None, keepdims=keepdim),
    max___reduction_no_dim=tg.max, min___reduction_no_dim=tg.min,
    max___reduction_with_dim=Op(values_first(tg.max), compared=first),
    min___reduction_with_dim=Op(values_first(tg.min), compared=first),
    aminmax=lambda a, dim=None, keepdim=False: (
        tg.min(a, axis=dim if a.ndim else None, keepdims=keepdim), tg.max(a, axis=dim if a.ndim else None, keepdims=keepdim)),
    var=spread_of(lambda *a, **k: tg.var(*a, **k)), std=spread_of(lambda *a, **k: tg.std(*a, **k)),
    var___unbiased=spread_of(lambda *a, **k: tg.var(*a, **k)), std___unbiased=spread_of(lambda *a, **k: tg.std(*a, **k)),
    var_mean=with_mean(lambda *a, **k: tg.var(*a, **k)), std_mean=with_mean(lambda *a, **k: tg.std(*a, **k)),
    var_mean___unbiased=with_mean(lambda *a, **k: tg.var(*a, **k)), std_mean___unbiased=with_mean(lambda *a, **k: tg.std(*a, **k)),
    norm=norm, norm___nuc=norm, norm___fro=norm, norm___inf=norm,
    dist=lambda a, b, p=2: length(tg.ravel(a - b), p, None),
    cumsum=scan(lambda *a, **k: tg.cumsum(*a, **k)), cumprod=scan(lambda *a, **k: tg.cumprod(*a, **k)),
    logcumsumexp=Op(scan(lambda *a, **k: tg.logcumsumexp(*a, **k)), 1e-11),  # of terms up to 2000
    cummax=Op(scan(lambda *a, **k: tg.cummax(*a, **k)), compared=first),
    cummin=Op(scan(lambda *a, **k: tg.cummin(*a, **k)), compared=first),
    diff=lambda a, n=1, dim=-1, prepend=None, append=None: tg.diff(a, n, dim, **{
        k: v for k, v in {"prepend": prepend, "append": append}.items() if v is not None}),
    gradient=gradient, trapezoid=trapezoid, trapz=trapezoid, cumulative_trapezoid=cumulative_trapezoid,
    cov=Op(cov, without={"PyTorch's `aweights` are float32": given("aweights")}), corrcoef=lambda a: tg.corrcoef(a),
    median=Op(values_first(lambda *a, **k: tg.median(*a, **k)), compared=first, without={"an even count: PyTorch's median is the lower of the two in the middle, NumPy's their mean": even_count}),
    nanmedian=Op(values_first(lambda *a, **k: tg.nanmedian(*a, **k)), compared=first, without={"an even count: PyTorch's median is the lower of the two in the middle, NumPy's their mean": even_count}),
    quantile=quantile(lambda *a, **k: tg.quantile(*a, **k)), nanquantile=quantile(lambda *a, **k: tg.nanquantile(*a, **k)),
    sort=Op(sort, compared=first), msort=lambda a: sort(a, 0), topk=Op(topk, compared=first),
    kthvalue=Op(lambda a, k, dim=-1, keepdim=False: a if a.ndim == 0 else sort(a, dim)[
        rows_of(dim, slice(k - 1, k) if keepdim else k - 1, a.ndim)], compared=first),
    renorm=renorm,
)  # fmt: skip

rows(  # -- shapes
    broadcast_to=lambda a, shape: tg.broadcast_to(a, tuple(shape)),
    **{f"atleast_{n}d": lambda a, f=f"atleast_{n}d": tuple(getattr(tg, f)(v) for v in a) if isinstance(a, list) else getattr(tg, f)(a) for n in (1, 2, 3)},
    broadcast_tensors=lambda *a: tg.broadcast_arrays(*a),
    expand=expanded, expand_copy=expanded, expand_as=lambda a, b: tg.broadcast_to(a, np.shape(b)),
    sum_to_size=lambda a, *shape: tg.sum_to(a, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape),
    reshape_as=same_shape, view_as=same_shape, flatten=flattened, unflatten=unflattened,
    permute=lambda a, dims: tg.transpose(a, dims), permute_copy=lambda a, dims: tg.transpose(a, dims),
    transpose=lambda a, i, j: tg.swapaxes(a, i, j) if a.ndim else a,
    transpose_copy=lambda a, i, j: tg.swapaxes(a, i, j) if a.ndim else a,
    movedim=lambda a, i, j: tg.moveaxis(a, i, j),
    squeeze=lambda a, dim=None: a if dim is not None and (not a.ndim or a.shape[dim] != 1) else tg.squeeze(a, dim),
    squeeze_copy=lambda a, dim=None: a if dim is not None and (not a.ndim or a.shape[dim] != 1) else tg.squeeze(a, dim),
    squeeze___multiple=lambda a, dim: tg.squeeze(a, tuple(i for i in dim if a.shape[i] == 1)) if a.ndim else a,
    unsqueeze=lambda a, dim: tg.expand_dims(a, dim), unsqueeze_copy=lambda a, dim: tg.expand_dims(a, dim),
    roll=rolled, rot90=lambda a, k=1, dims=(0, 1): tg.rot90(a, k, dims), flip=lambda a, dims: tg.flip(a, axis=tuple(dims)),
    tril=lambda a, k=0: tg.tril(a, k), triu=lambda a, k=0: tg.triu(a, k),
    diag=lambda a, k=0: tg.diag(a, k), diagflat=lambda a, offset=0: tg.diagflat(a, offset), diag_embed=diagonals,
    diagonal=lambda a, offset=0, dim1=0, dim2=1: tg.diagonal(a, offset, dim1, dim2),
    diagonal_copy=lambda a, offset=0, dim1=0, dim2=1: tg.diagonal(a, offset, dim1, dim2),
    linalg__diagonal=lambda a, offset=0, dim1=-2, dim2=-1: tg.diagonal(a, offset, dim1, dim2),
    diagonal_scatter=diagonal_scatter,
    tile=lambda a, dims: tg.tile(a, dims), repeat=repeated,
    repeat_interleave=lambda a, repeats, dim=None, output_size=None: tg.repeat(a, repeats, axis=dim),
    cat=lambda a, dim=0: tg.concat([v for v in a if v.shape != (0,) or all(w.ndim == 1 for w in a)], dim),
    stack=lambda a, dim=0: tg.stack(a, dim), hstack=lambda a: tg.hstack(a), vstack=lambda a: tg.vstack(a),
    dstack=lambda a: tg.dstack(a), column_stack=lambda a: tg.column_stack(a),
    chunk=chunks, unsafe_chunk=chunks, split=split_torch, split___list_args=split_torch, unsafe_split=split_torch,
    split_with_sizes=split_torch, split_with_sizes_copy=split_torch, tensor_split=tensor_split,
    unbind=lambda a, dim=0: tg.unstack(a, dim), unbind_copy=lambda a, dim=0: tg.unstack(a, dim),
    meshgrid___variadic_tensors=lambda *a, indexing: tg.meshgrid(*a, indexing=indexing),
    meshgrid___list_of_tensors=lambda a, indexing: tg.meshgrid(*a, indexing=indexing),
    block_diag=block_diagonal, cartesian_prod=cartesian_product, combinations=chosen,
    narrow=lambda a, dim, start, n: a[rows_of(dim, slice(int(start) % max(a.shape[dim], 1) if start < 0 else int(start), None), a.ndim)][rows_of(dim, slice(0, n), a.ndim)],
    narrow_copy=lambda a, dim, start, n: a[rows_of(dim, slice(start, start + n), a.ndim)],
    select=lambda a, dim, i: a[rows_of(dim, i, a.ndim)],
    select_scatter=lambda a, b, dim, i: tg.index_put(a, rows_of(dim, i, a.ndim), b),
    slice=lambda a, dim=0, start=None, end=None, step=1: a[rows_of(dim, slice(start, end, step), a.ndim)],
    slice_scatter=scatter_slice,
    unfold=unfolded, unfold_copy=unfolded,
    constant_pad_nd=lambda a, pad, value=0.0: padded("constant")(a, pad, "constant", value), nn__functional__pad___constant=padded("constant"),
    nn__functional__pad___reflect=padded("reflect"), nn__functional__pad___replicate=padded("edge"),
    nn__functional__pad___replicate_negative=Op(padded("edge"), without={
        "PyTorch repeats an element that a negative margin cut off": lambda s: any(p <= -s.input.shape[-1 - i // 2] for i, p in enumerate(s.args[0]))}), nn__functional__pad___circular=padded("wrap"),
    nn__functional__pixel_shuffle=pixel_shuffle, nn__functional__pixel_unshuffle=pixel_unshuffle,
)  # fmt: skip

rows(  # -- indexing
    gather=picked_along, take=lambda a, index: tg.take(tg.ravel(a), index % max(a.size, 1), 0),
    take_along_dim=lambda a, index, dim=None: tg.take_along_axis(a, np.ravel(index) if dim is None else index, axis=dim),
    index_select=lambda a, dim, index: tg.take(tg.atleast_1d(a), index, dim) if a.ndim else tg.take(tg.ravel(a), index, 0).reshape(()),
    index_add=indexed(lambda *a: tg.index_add(*a)), index_copy=indexed(lambda *a: tg.index_put(*a)),
    index_fill=lambda a, dim, index, value: indexed(lambda *b: tg.index_put(*b))(a, dim, index, tg.broadcast_to(value, ()) if a.ndim else value),
    index_put=index_put, __getitem__=lambda a, index: a[index],
    masked_select=masked_select, masked_scatter=masked_scatter, put=put,
    scatter=scattered(lambda *a: tg.index_put(*a)), scatter_add=scattered(lambda *a: tg.index_add(*a)),
    nn__functional__embedding=lambda w, index: tg.take(w, index, 0),
)  # fmt: skip

rows(  # -- products and linear algebra
    addmm=blended(lambda a, b: a @ b), addmm___decomposed=blended(lambda a, b: a @ b), addmv=blended(lambda a, b: a @ b),
    baddbmm=blended(lambda a, b: a @ b), addbmm=blended(lambda a, b: tg.sum(a @ b, axis=0)), addr=blended(lambda a, b: tg.outer(a, b)),
    cross=lambda a, b, dim=None: tg.cross(a, b, axis=next(i for i, n in enumerate(a.shape) if n == 3) if dim is None else dim),
    linalg__cross=lambda a, b, dim=-1: tg.linalg.cross(*broadcast_pair(a, b), axis=dim),
    einsum=Op(lambda operands, subscripts: tg.einsum(subscripts, *operands), without={
        "PyTorch sums over an ellipsis that the output lacks, NumPy refuses": lambda s: "." in s.args[0] and "." not in s.args[0].partition("->")[2]}),
    tensordot=Op(lambda a, b, dims: tg.tensordot(a, b, dims), without={
        "PyTorch broadcasts the axes that are summed": lambda s: s.input.shape == (1, 1, 1)}), trace=lambda a: tg.trace(a),
    linalg__vecdot=lambda a, b, dim=-1: tg.sum(a * b, axis=dim), linalg__multi_dot=lambda a: tg.linalg.multi_dot(a),
    linalg__cholesky=Op(lambda a, upper=False: tg.linalg.cholesky(a, upper=upper), DECOMPOSED, before=symmetric),
    linalg__cholesky_ex=Op(lambda a, upper=False, check_errors=False: tg.linalg.cholesky(a, upper=upper), DECOMPOSED, first, symmetric),
    cholesky=Op(lambda a, upper=False: tg.linalg.cholesky(a, upper=upper), DECOMPOSED, before=symmetric),
    linalg__eigvalsh=Op(lambda a, UPLO="L": tg.linalg.eigvalsh(a, UPLO), DECOMPOSED, before=symmetric),
    cholesky_inverse=Op(lambda a, upper=False: tg.linalg.inv(a.mT @ a if upper else a @ a.mT), DECOMPOSED),
    cholesky_solve=Op(lambda b, a, upper=False: tg.linalg.solve(a.mT @ a if upper else a @ a.mT, b), DECOMPOSED),
    triangular_solve=Op(lambda b, a, upper=True, transpose=False, unitriangular=False: lower_solve(
        a, b, upper, transpose, unitriangular), DECOMPOSED, first),
    linalg__solve_triangular=Op(lambda a, b, upper, left=True, unitriangular=False: lower_solve(
        a, b, upper, False, unitriangular, left), DECOMPOSED),
    linalg__inv_ex=Op(lambda a, check_errors=False: tg.linalg.inv(a), DECOMPOSED, first),
    linalg__solve=Op(column_solve, DECOMPOSED), linalg__solve_ex=Op(lambda a, b, left=True, check_errors=False: column_solve(a, b, left), DECOMPOSED, first),
    linalg__slogdet=Op(lambda a: tuple(tg.linalg.slogdet(a)), DECOMPOSED), logdet=Op(logdet, DECOMPOSED),
    linalg__eigh=Op(lambda a, UPLO="L": gauge_free_eigh(*tg.linalg.eigh(a, UPLO)), DECOMPOSED, lambda y: (y[0], abs(y[1])), symmetric),
    linalg__svd=Op(singular_part, DECOMPOSED, lambda y: thin(y[0], y[1], y[2])), svd=Op(singular_part, DECOMPOSED, lambda y: thin(y[0], y[1], y[2].mT)),
    linalg__qr=Op(lambda a, mode="reduced": tuple(tg.linalg.qr(a, mode)), DECOMPOSED), qr=Op(lambda a, some=True: tuple(tg.linalg.qr(a)), DECOMPOSED),
    linalg__pinv=Op(lambda a, rtol=None: tg.linalg.pinv(a) if rtol is None else tg.linalg.pinv(a, rtol=float(rtol)), DECOMPOSED), pinverse=Op(lambda a, rcond=None: tg.linalg.pinv(a), DECOMPOSED),
    linalg__pinv___hermitian=Op(lambda a, hermitian: tg.linalg.pinv(a), DECOMPOSED, before=symmetric),
    linalg__pinv___singular=Op(lambda a, b: tg.linalg.pinv(a @ b.mT), DECOMPOSED),
    linalg__lstsq___grad_oriented=Op(lambda a, b, driver=None: tg.linalg.lstsq(a, b)[0], DECOMPOSED, first, without={"NumPy's lstsq takes no stacks": lambda s: s.input.ndim > 2}),
    linalg__lstsq=Op(lambda a, b, driver=None: tg.linalg.lstsq(a, b)[0], DECOMPOSED, first, without={"NumPy's lstsq takes no stacks": lambda s: s.input.ndim > 2}),
    linalg__tensorinv=Op(lambda a, ind=2: tg.linalg.tensorinv(a, ind), DECOMPOSED),
    linalg__tensorsolve=Op(lambda a, b, dims=None: tg.linalg.tensorsolve(a, b, dims), DECOMPOSED),
    linalg__norm=Op(linalg_norm, DECOMPOSED, nan="a norm at 0 has subgradients: 0 here, also in second order"), linalg__norm___subgradients_at_zero=Op(linalg_norm, DECOMPOSED, without={
        "singular values that tie: the first has the gradient here, in PyTorch they share it": lambda s: s.input.ndim == 2 and s.args[0] in (2, -2) and not s.kwargs.get("dim")}, nan="a norm at 0 has subgradients: 0 here, also in second order"),
    linalg__matrix_norm=Op(matrix_norm, DECOMPOSED), linalg__vector_norm=vector_norm,
    linalg__cond=Op(lambda a, p=None: tg.linalg.cond(a, p), DECOMPOSED),
    linalg__vander=powers,
    cdist=cdist,
)  # fmt: skip

rows(  # -- networks
    softmax=Op(lambda a, dim, dtype=None: tg.softmax(a, axis=dim) if a.ndim else a * 0.0 + 1.0),
    softmax___with_dtype=Op(lambda a, dim, dtype=None: tg.softmax(a, axis=dim) if a.ndim else a * 0.0 + 1.0),
    log_softmax=Op(lambda a, dim, dtype=None: tg.log_softmax(a, axis=dim) if a.ndim else a * 0.0),
    log_softmax___with_dtype=Op(lambda a, dim, dtype=None: tg.log_softmax(a, axis=dim) if a.ndim else a * 0.0),
    nn__functional__softmin=Op(lambda a, dim, dtype=None: tg.softmax(-a, axis=dim) if a.ndim else a * 0.0 + 1.0),
    nn__functional__softmin___with_dtype=Op(lambda a, dim, dtype=None: tg.softmax(-a, axis=dim) if a.ndim else a * 0.0 + 1.0),
    nn__functional__softplus=softplus, nn__functional__gelu=gelu, nn__functional__elu=elu, nn__functional__prelu=prelu,
    nn__functional__celu=lambda a, alpha=1.0: tg.where(a > 0, a, tg.expm1(tg.minimum(a, 0.0) / alpha) * alpha),
    nn__functional__selu=lambda a: elu(a, 1.6732632423543772, 1.0507009873554805),
    nn__functional__silu=lambda a: a * tg.sigmoid(a), nn__functional__mish=lambda a: a * tg.tanh(tg.softplus(a)),
    nn__functional__relu6=lambda a: tg.clip(a, 0.0, 6.0), nn__functional__hardtanh=lambda a, min_val=-1.0, max_val=1.0: tg.clip(a, min_val, max_val),
    nn__functional__hardsigmoid=Op(lambda a: tg.clip(a / 6.0 + 0.5, 0.0, 1.0), 1e-7),  # PyTorch's slope is 1/6 in float32
    nn__functional__hardswish=lambda a: a * tg.clip(a / 6.0 + 0.5, 0.0, 1.0),
    nn__functional__leaky_relu=lambda a, negative_slope=0.01: tg.where(a > 0, a, a * negative_slope),
    nn__functional__softsign=lambda a: a / (abs(a) + 1.0), nn__functional__tanhshrink=lambda a: a - tg.tanh(a),
    nn__functional__softshrink=lambda a, lambd=0.5: tg.where(a > lambd, a - lambd, tg.where(a < -lambd, a + lambd, 0.0)),
    nn__functional__hardshrink=lambda a, lambd=0.5: tg.where(abs(a) > lambd, a, 0.0),
    nn__functional__threshold=lambda a, threshold, value: tg.where(a > threshold, a, value),
    nn__functional__glu=glu, nn__functional__linear=linear, nn__functional__bilinear=bilinear,
    nn__functional__layer_norm=layer_norm, nn__functional__rms_norm=rms_norm, nn__functional__group_norm=group_norm,
    nn__functional__normalize=normalize, nn__functional__batch_norm=batch_norm, nn__functional__instance_norm=instance_norm,
    nn__functional__channel_shuffle=channel_shuffle, nn__functional__pdist=pdist,
    nn__functional__scaled_dot_product_attention=Op(attention, without={"dropout draws at random": lambda s: s.kwargs.get("dropout_p", 0.0) > 0}),
    nn__functional__cosine_similarity=cosine_similarity, nn__functional__pairwise_distance=pairwise_distance,
    nn__functional__conv1d=convolution(lambda *a, **k: tg.conv1d(*a, **k), 1), nn__functional__conv2d=convolution(lambda *a, **k: tg.conv2d(*a, **k), 2),
    nn__functional__conv_transpose1d=transposed_convolution(lambda *a, **k: tg.conv_transpose1d(*a, **k), 1),
    nn__functional__conv_transpose2d=Op(transposed_convolution(lambda *a, **k: tg.conv_transpose2d(*a, **k), 2), without={
        "an `output_padding` that is not below `stride`": lambda s: s.kwargs.get("output_padding") == (2, 3)}),
    nn__functional__avg_pool1d=Op(pooled(lambda *a, **k: tg.avg_pool1d(*a, **k), 1), without={
        "torch's `ceil_mode`": given("ceil_mode", 3, False), "torch's `count_include_pad=False`": given("count_include_pad", 4, True)}),
    nn__functional__avg_pool2d=Op(lambda x, size, stride=None, padding=0, *rest: pooled(lambda *a, **k: tg.avg_pool2d(*a, **k), 2)(x, size, stride, padding), without=POOLING),
    nn__functional__max_pool1d=Op(pooled(lambda *a, **k: tg.max_pool1d(*a, **k), 1), compared=first, without=MAX_POOLING),
    nn__functional__max_pool2d=Op(pooled(lambda *a, **k: tg.max_pool2d(*a, **k), 2), compared=first, without=MAX_POOLING),
)  # fmt: skip

rows(  # -- losses
    nn__functional__mse_loss=lambda a, b, reduction="mean": reduced(reduction, tg.square(a - b)),
    nn__functional__l1_loss=lambda a, b, reduction="mean": reduced(reduction, abs(a - b)),
    nn__functional__smooth_l1_loss=smooth_l1_loss, nn__functional__huber_loss=huber_loss,
    nn__functional__soft_margin_loss=lambda a, b, reduction="mean": reduced(reduction, tg.softplus(-(b * a))),
    nn__functional__margin_ranking_loss=lambda a, b, y, margin=0.0, reduction="mean": reduced(reduction, tg.relu(-y * (a - b) + margin)),
    nn__functional__hinge_embedding_loss=lambda a, y, margin=1.0, reduction="mean": reduced(
        reduction, tg.where(y != -1, a, 0.0) + tg.where(y != 1, tg.relu(margin - a), 0.0)),
    nn__functional__cosine_embedding_loss=cosine_embedding_loss,
    nn__functional__triplet_margin_loss=triplet_margin_loss, nn__functional__triplet_margin_with_distance_loss=triplet_margin_loss,
    nn__functional__binary_cross_entropy=binary_cross_entropy,
    nn__functional__binary_cross_entropy_with_logits=binary_cross_entropy_with_logits,
    nn__functional__cross_entropy=cross_entropy, nn__functional__nll_loss=nll_loss, nn__functional__kl_div=kl_div,
    nn__functional__poisson_nll_loss=poisson_nll_loss, nn__functional__gaussian_nll_loss=gaussian_nll_loss,
    nn__functional__multilabel_soft_margin_loss=lambda a, y, weight=None, reduction="mean": reduced(
        reduction, tg.mean((y * tg.softplus(-a) + (1.0 - y) * tg.softplus(a)) * (1.0 if weight is None else weight), axis=-1)),
)  # fmt: skip

# Operators of PyTorch 2.13 that have a derivative and no row, by the reason.
NOT_HERE = {
    "complex results": """
        stft fft.fft fft.fft2 fft.fftn fft.hfft fft.hfft2 fft.hfftn fft.rfft fft.rfft2 fft.rfftn fft.ifft fft.ifft2 fft.ifftn
        fft.ihfft fft.ihfft2 fft.ihfftn fft.irfft fft.irfft2 fft.irfftn linalg.eig linalg.eigvals cdouble cfloat chalf
    """,
    "draws at random": """
        nn.functional.rrelu normal normal/number_mean bernoulli nn.functional.dropout native_dropout_backward
        nn.functional.dropout2d nn.functional.dropout3d nn.functional.alpha_dropout
        nn.functional.feature_alpha_dropout/with_train nn.functional.feature_alpha_dropout/without_train
        nn.functional.fractional_max_pool2d nn.functional.fractional_max_pool3d svd_lowrank pca_lowrank
    """,
    "tensors that are sparse, masked or strided by hand": """
        sparse.sampled_addmm sparse.mm/reduce to_sparse as_strided as_strided/partial_views as_strided_copy as_strided_scatter
        masked.sum masked.prod masked.cumsum masked.cumprod masked.amax masked.amin masked.mean masked.median masked.norm
        masked.var masked.std masked.softmax masked.log_softmax masked.softmin masked.normalize masked.logaddexp
        masked.logsumexp
    """,
    "parts of PyTorch's own rules, and forms that a row above has": """
        _softmax_backward_data native_group_norm native_layer_norm native_batch_norm _native_batch_norm_legit
        _batch_norm_with_update max_pool2d_with_indices_backward torch.ops.aten._safe_softmax.default
        _unsafe_masked_index _unsafe_masked_index_put_accumulate grid_sampler_2d grid_sampler_3d _upsample_bilinear2d_aa
        nn.functional.linear_cross_entropy nn.functional.linear_cross_entropy/chunked
        nn.functional.linear_cross_entropy/chunked_none nn.functional.multi_head_attention_forward
    """,
    "casts and moves, with PyTorch's rules of dtypes": "to bfloat16 float half",
    "a step of one rounding, which has no derivative": "nextafter",
    "not in NumPy, and not here": """
        lu lu_unpack lu_solve linalg.lu linalg.lu_factor linalg.lu_factor_ex linalg.lu_solve linalg.householder_product ormqr
        matrix_exp mode index_reduce/mean index_reduce/prod index_reduce/amin index_reduce/amax scatter_reduce/sum
        scatter_reduce/prod scatter_reduce/mean scatter_reduce/amin scatter_reduce/amax _segment_reduce/lengths
        _segment_reduce/offsets nn.functional.unfold nn.functional.interpolate/nearest nn.functional.interpolate/nearest-exact
        nn.functional.interpolate/linear nn.functional.interpolate/bilinear nn.functional.interpolate/bicubic
        nn.functional.interpolate/trilinear nn.functional.interpolate/area nn.functional.upsample_bilinear
        nn.functional.upsample_nearest nn.functional.grid_sample nn.functional.adaptive_avg_pool1d
        nn.functional.adaptive_avg_pool2d nn.functional.adaptive_avg_pool3d nn.functional.adaptive_max_pool1d
        nn.functional.adaptive_max_pool2d nn.functional.adaptive_max_pool3d nn.functional.avg_pool3d nn.functional.max_pool3d
        nn.functional.conv3d nn.functional.conv_transpose3d nn.functional.max_unpool1d nn.functional.max_unpool1d/grad
        nn.functional.max_unpool2d nn.functional.max_unpool2d/grad nn.functional.max_unpool3d nn.functional.max_unpool3d/grad
        nn.functional.local_response_norm nn.functional.embedding_bag nn.functional.multi_margin_loss
        nn.functional.multilabel_margin_loss nn.functional.ctc_loss
    """,
}
