"""PyTorch's functions, written in tapegrad's: what they are called there, on Variables and arrays. See `torch_table.py`."""

import itertools
import math

import numpy as np

import tapegrad as tg


def axes(dim):
    """A `dim` of PyTorch's as an axis of NumPy's: no axis named is all of them."""
    if isinstance(dim, (list, tuple)):
        return tuple(dim) or None
    return dim


def reduced(by, loss):
    """The reduction of a loss."""
    return {"mean": tg.mean, "sum": tg.sum, "none": lambda a: a}[by](loss)


def fold(f):
    """A reduction that takes `dim` and `keepdim`."""
    return lambda a, dim=None, keepdim=False, dtype=None: f(a, axis=axes(dim), keepdims=keepdim)


def scan(f):
    return lambda a, dim, dtype=None: f(a, axis=dim) if np.ndim(a) else f(a, axis=None).reshape(())


def spread_of(f):
    def of(a, dim=None, unbiased=None, keepdim=False, correction=None):
        if isinstance(dim, bool):  # torch.var(a, unbiased)
            dim, unbiased = None, dim
        n = 1 if correction is None else correction
        return f(a, axis=axes(dim), ddof=n if unbiased is None else int(unbiased), keepdims=keepdim)

    return of


def with_mean(f):
    def both(a, dim=None, unbiased=None, keepdim=False, correction=None):
        mean_axis = None if isinstance(dim, bool) else axes(dim)
        y = spread_of(f)(a, dim, unbiased, keepdim, correction)
        return y, tg.mean(a, axis=mean_axis, keepdims=keepdim)

    return both


def norm(a, p="fro", dim=None, keepdim=False, dtype=None):
    """torch.norm: of all elements as one vector, unless axes are named."""
    p = 2 if p in ("fro", None) else p
    if p == "nuc":
        return tg.linalg.norm(a, "nuc", axes(dim), keepdim)
    if dim is None:
        y = tg.linalg.norm(tg.ravel(a), p)
        return y.reshape((1,) * a.ndim) if keepdim else y
    return tg.linalg.vector_norm(a, axis=axes(dim), ord=p, keepdims=keepdim)


def vector_norm(a, ord=2, dim=None, keepdim=False, dtype=None):
    return tg.linalg.vector_norm(a, axis=axes(dim), ord=ord, keepdims=keepdim)


def linalg_norm(a, ord=None, dim=None, keepdim=False, dtype=None):
    if ord is None and dim is None:
        return vector_norm(a, 2, None, keepdim)
    return tg.linalg.norm(a, ord, axes(dim), keepdim)


def matrix_norm(a, ord="fro", dim=(-2, -1), keepdim=False, dtype=None):
    return tg.linalg.norm(a, ord, axes(dim), keepdim)


def length(a, p, axis, keepdims=False):
    return tg.linalg.vector_norm(a, axis=axis, ord=p, keepdims=keepdims)


def picked_along(a, dim, index):
    """torch.gather: `index` may be shorter than `a` along the other axes."""
    if a.ndim == 0:
        return tg.take(tg.ravel(a), np.reshape(index, -1).astype(int), 0).reshape(index.shape)
    return a[grid(index, dim, a.ndim)]


def grid(index, dim, ndim):
    """The index by which `index` picks along `dim` and goes through the other axes in step."""
    places = list(np.indices(index.shape)) if index.ndim == ndim else [np.zeros(index.shape, int)] * ndim
    places[dim] = index.astype(np.int64)
    return tuple(places)


def scattered(write):
    def along(a, dim, index, source):
        if a.ndim == 0:
            return write(
                tg.ravel(a), np.zeros(1, int), tg.reshape(source, (1,)) if np.ndim(source) == 0 else source
            ).reshape(())
        at = grid(index, dim, a.ndim)
        part = source[tuple(slice(n) for n in index.shape)] if np.ndim(source) else source
        return write(a, at, part)

    return along


def rows_of(dim, index, ndim):
    return (slice(None),) * (dim % ndim) + (index,)


def indexed(write, of=lambda value: value):
    """torch.index_add and its kin: whole slices, at `index` along `dim`."""

    def along(a, dim, index, source, alpha=1):
        source = tg.multiply(source, alpha) if alpha != 1 else source
        index = np.atleast_1d(index)
        if a.ndim == 0:
            return write(tg.ravel(a), index, tg.ravel(source)).reshape(())
        return write(a, rows_of(dim, index, a.ndim), source)

    return along


def put(a, index, source, accumulate=False):
    write = tg.index_add if accumulate else tg.index_put
    return write(tg.ravel(a), np.ravel(index), tg.ravel(source)).reshape(a.shape)


def index_put(a, indices, values, accumulate=False):
    return (tg.index_add if accumulate else tg.index_put)(a, tuple(indices), values)


def scatter_slice(a, source, dim=0, start=None, end=None, step=1):
    return tg.index_put(a, rows_of(dim, slice(start, end, step), a.ndim), source)


def masked_scatter(a, mask, source):
    a, mask = (
        tg.broadcast_to(a, np.broadcast_shapes(a.shape, mask.shape)),
        np.broadcast_to(mask, np.broadcast_shapes(a.shape, mask.shape)),
    )
    return tg.index_put(a, mask, tg.ravel(source)[: int(mask.sum())])


def masked_select(a, mask):
    shape = np.broadcast_shapes(a.shape, mask.shape)
    return tg.broadcast_to(a, shape)[np.broadcast_to(mask, shape)]


def padded(mode):
    def pad(a, pad, ignored="constant", value=0.0):
        """`pad` names the last axis first; a negative margin cuts."""
        pairs = [(pad[2 * i], pad[2 * i + 1]) for i in range(len(pad) // 2)][::-1]
        pairs = [(0, 0)] * (a.ndim - len(pairs)) + pairs
        a = a[tuple(slice(max(-p, 0), n - max(-q, 0)) for n, (p, q) in zip(a.shape, pairs, strict=True))]
        width = [(max(p, 0), max(q, 0)) for p, q in pairs]
        return (
            tg.pad(a, width, mode, constant_values=value or 0.0)
            if mode == "constant"
            else tg.pad(a, width, mode)
        )

    return pad


def batched(count, f):
    """A function of batches, of one example too."""

    def either(x, *args, **kwargs):
        return f(x, *args, **kwargs) if x.ndim == count + 2 else f(x[None], *args, **kwargs)[0]

    return either


def convolution(f, count):
    def with_bias(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1):
        y = f(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return y if bias is None else y + bias.reshape((-1,) + (1,) * count)

    return batched(count, with_bias)


def transposed_convolution(f, count):
    def with_bias(x, w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        y = f(
            x,
            w,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            dilation=dilation,
            groups=groups,
        )
        return y if bias is None else y + bias.reshape((-1,) + (1,) * count)

    return batched(count, with_bias)


def pooled(f, count):
    def pool(x, kernel_size, stride=None, padding=0, **ignored):
        return f(x, kernel_size, stride=None if stride in (None, ()) else stride, padding=padding)

    return batched(count, pool)


def bare(v):
    return v.value if isinstance(v, tg.Variable) else v


# -- linear algebra ------------------------------------------------------------------------------------


def gauge_free_eigh(values, vectors):
    """What does not depend on the signs of the vectors."""
    return values, abs(vectors)


def lower_solve(a, b, upper, transpose=False, unitriangular=False, left=True):
    a = tg.triu(a) if upper else tg.tril(a)
    if unitriangular:
        eye = np.eye(a.shape[-1])
        a = a * (1.0 - eye) + eye
    a = a.mT if transpose else a
    return tg.linalg.solve(a, b) if left else tg.linalg.solve(a.mT, b.mT).mT


def column_solve(a, b, left=True):
    if not left:
        return tg.linalg.solve(a.mT, b.mT).mT
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]):
        return tg.linalg.solve(a, b[..., None])[..., 0]
    return tg.linalg.solve(a, b)


def singular_part(a, some=True, compute_uv=True, full_matrices=True):
    u, s, vh = tg.linalg.svd(a, full_matrices=False)
    return abs(u), s, abs(vh)


def powers(a, N=None):
    a = tg.atleast_1d(a)
    n = a.shape[-1] if N is None else N
    factors = tg.where(np.tri(n, max(n - 1, 0), -1) > 0, a[..., None, None], 1.0)
    return tg.prod(factors, axis=-1)


def thin(u, s, vh):
    k = s.shape[-1]
    return abs(u[..., :k]), s, abs(vh[..., :k, :])


def symmetric(a):
    """PyTorch's gradient in a symmetric matrix is symmetric, NumPy's functions read one triangle: the same after this."""
    return (a + a.mT) * 0.5


def cdist(a, b, p=2.0, mode=None):
    return length(a[..., :, None, :] - b[..., None, :, :], p, -1)


def renorm(a, p, dim, maxnorm):
    others = tuple(i for i in range(a.ndim) if i != dim % a.ndim)
    n = length(a, p, others, True)
    return a * tg.where(n > maxnorm, maxnorm / (n + 1e-7), 1.0)


def logdet(a):
    sign, log = tg.linalg.slogdet(a)
    return tg.where(sign > 0, log, np.nan)


def cumulative_trapezoid(y, x=None, dx=None, dim=-1):
    late = rows_of(dim, slice(1, None), y.ndim)
    early = rows_of(dim, slice(None, -1), y.ndim)
    if x is None:
        width = 1.0 if dx is None else dx
    else:
        width = x[late] - x[early] if x.ndim == y.ndim else x[1:] - x[:-1]
    return tg.cumsum((y[late] + y[early]) * 0.5 * width, axis=dim)


def trapezoid(y, x=None, dx=1.0, dim=-1):
    if x is None:
        return tg.trapezoid(y, dx=dx, axis=dim)
    if np.ndim(x) and x.shape[dim if np.ndim(x) > 1 else 0] == 1 != y.shape[dim]:
        return tg.sum(y, axis=dim) * 0.0
    return tg.trapezoid(y, x, axis=dim)


def unfolded(a, dim, size, step):
    if a.ndim == 0:
        return a.reshape((1,))[:size]
    windows = tg.sliding_window_view(a, size, axis=dim)
    return windows[rows_of(dim, slice(None, None, step), a.ndim)]


def block_diagonal(*parts):
    parts = [p.reshape((1, -1)) if p.ndim < 2 else p for p in parts]
    total = sum(p.shape[1] for p in parts)
    rows, before = [], 0
    for p in parts:
        rows.append(tg.pad(p, ((0, 0), (before, total - before - p.shape[1]))))
        before += p.shape[1]
    return tg.concat(rows, 0)


def cartesian_product(*parts):
    if len(parts) == 1:
        return parts[0]
    return tg.stack([tg.ravel(g) for g in tg.meshgrid(*parts, indexing="ij")], axis=-1)


def chosen(a, r=2, with_replacement=False):
    choices = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    index = np.array(list(choices(range(a.shape[0]), r)), int).reshape(-1, r)
    return a[index]


def diagonals(a, offset=0, dim1=-2, dim2=-1):
    """torch.diag_embed."""
    n = a.shape[-1]
    size = n + abs(offset)
    rows, columns = np.arange(n) + max(-offset, 0), np.arange(n) + max(offset, 0)
    y = tg.put_at(a, (Ellipsis, rows, columns), (*a.shape[:-1], size, size))
    dim1, dim2 = dim1 % y.ndim, dim2 % y.ndim
    return (
        tg.moveaxis(y, (-2, -1), (dim1, dim2)) if dim1 < dim2 else tg.moveaxis(y.mT, (-2, -1), (dim2, dim1))
    )


def diagonal_scatter(a, source, offset=0, dim1=0, dim2=1):
    n = source.shape[-1]
    rows, columns = np.arange(n) + max(-offset, 0), np.arange(n) + max(offset, 0)
    front = tg.moveaxis(a, (dim1, dim2), (-2, -1))
    return tg.moveaxis(tg.index_put(front, (Ellipsis, rows, columns), source), (-2, -1), (dim1, dim2))


def chunks(a, count, dim=0):
    n = a.shape[dim]
    size = -(-n // count)
    return tg.split(a, list(range(size, n, size)), dim)


def split_torch(a, size, dim=0):
    n = a.shape[dim]
    if isinstance(size, int):
        return tg.split(a, list(range(size, n, size)), dim)
    return tg.split(a, np.cumsum(size)[:-1].tolist(), dim)


def tensor_split(a, sections, dim=0):
    sections = sections.tolist() if isinstance(sections, np.ndarray) else sections
    return tg.array_split(a, list(sections) if isinstance(sections, tuple) else sections, dim)


def flattened(a, start_dim=0, end_dim=-1):
    if a.ndim == 0:
        return a.reshape((1,))
    start, end = start_dim % a.ndim, end_dim % a.ndim
    return a.reshape((*a.shape[:start], math.prod(a.shape[start : end + 1]), *a.shape[end + 1 :]))


def unflattened(a, dim, sizes):
    dim %= a.ndim
    return a.reshape((*a.shape[:dim], *sizes, *a.shape[dim + 1 :]))


def repeated(a, *reps):
    return tg.tile(a, reps[0] if len(reps) == 1 and isinstance(reps[0], tuple) else reps)


def rolled(a, shifts, dims=None):
    return tg.roll(a, shifts, axis=dims)


def expanded(a, *shape):
    shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    lead = len(shape) - a.ndim
    return tg.broadcast_to(a, tuple(a.shape[i - lead] if n == -1 else n for i, n in enumerate(shape)))


def same_shape(a, other):
    return a.reshape(np.shape(other))


def spacing_of(spacing):
    return () if spacing is None else tuple(spacing) if isinstance(spacing, (list, tuple)) else (spacing,)


def gradient(a, dim=None, spacing=None, edge_order=1):
    return tg.gradient(a, *spacing_of(spacing), axis=dim, edge_order=edge_order)


def cov(a, correction=1, fweights=None, aweights=None):
    return tg.cov(a, ddof=correction, fweights=fweights, aweights=aweights)


def quantile(f):
    return lambda a, q, dim=None, keepdim=False, interpolation="linear": f(
        a, q, axis=dim, keepdims=keepdim, method=interpolation
    )


def values_first(f):
    """A reduction that PyTorch returns with indices."""
    return lambda a, dim=None, keepdim=False: f(a, axis=dim if np.ndim(a) else None, keepdims=keepdim)


def first(y):
    return y[0] if isinstance(y, tuple) else y


def sort(a, dim=-1, descending=False, stable=None):
    if a.ndim == 0:
        return a
    y = tg.sort(a, axis=dim)
    return tg.flip(y, axis=dim) if descending else y


def topk(a, k, dim=-1, largest=True, sorted=True):
    return a if a.ndim == 0 else sort(a, dim, largest)[rows_of(dim, slice(0, k), a.ndim)]


def with_alpha(f):
    return lambda a, b, alpha=1: f(a, b if alpha == 1 else tg.multiply(b, alpha))


def blended(product):
    """torch.addmm and its kin: beta · a + alpha · product."""
    return lambda a, b, c, beta=1, alpha=1: tg.multiply(a, beta) + tg.multiply(product(b, c), alpha)


def divided(a, b, rounding_mode=None):
    y = tg.divide(a, b)
    return {None: lambda v: v, "floor": tg.floor, "trunc": tg.trunc}[rounding_mode](y)


def bounded(a, min=None, max=None):
    return tg.clip(a, min, max)


def logit(a, eps=None):
    return tg.special.logit(a if eps is None else tg.clip(a, eps, 1 - eps))


def broadcast_pair(a, b):
    shape = np.broadcast_shapes(a.shape, b.shape)
    return tg.broadcast_to(a, shape), tg.broadcast_to(b, shape)
