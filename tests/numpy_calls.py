"""A call, or some, of every NumPy function that asks an array's class what it means.

Floating-point arrays among the arguments are where a Variable may stand, also inside a list; what stands in
`fixed(...)` stays an array. A function that takes integers, text, dates or records has a call with those and a
`like` operand for the Variable, so that it is asked at all.
"""

import io

import numpy as np


class Call:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs

    def __repr__(self):
        return f"Call{self.args, self.kwargs}"


class fixed:
    """An argument that is never a Variable."""

    def __init__(self, value):
        self.value = value


def call(*args, **kwargs):
    return Call(*args, **kwargs)


A = np.array([[0.5, 1.5, 1.05], [2.0, 0.25, 0.75]])
B = np.array([[1.25, 0.6, 0.9], [0.3, 1.7, 2.2]])
V = np.array([0.7, 1.9, 1.2])
W = np.array([1.1, 0.4, 2.3])
U = np.array([0.2, 0.9])
X = np.array(0.8)
S = np.array([[2.0, 0.3, -0.4], [0.5, 1.6, 0.2], [-0.1, 0.7, 2.5]])
R = np.array([[1.5, 0.2, 0.1], [-0.3, 2.1, 0.4], [0.6, 0.5, 1.7]])
SYMMETRIC = S + S.T  # stays symmetric only if it is moved symmetrically: eigh reads one triangle
NAN = np.array([[0.5, np.nan, 1.05], [2.0, 0.25, np.nan]])
I = np.array([2, 0, 1])  # noqa: E741
MASK = np.array([True, False, True])

# name -> calls
FUNCTIONS = {}


def sample(names, *calls):
    for name in names.split():
        FUNCTIONS.setdefault(name, []).extend(calls)


# -- axes, joins and arrangement
sample("broadcast_to", call(V, (2, 3)))
sample("broadcast_arrays", call(V, A))
sample("reshape", call(A, (3, 2)), call(A, shape=-1, order="F"))
sample("ravel copy", call(A))
sample("transpose", call(A), call(np.ones((2, 1, 3)) * A[:, None], (2, 0, 1)))
sample("matrix_transpose linalg.matrix_transpose", call(A))
sample("expand_dims", call(A, 1), call(A, axis=(0, -1)))
sample("squeeze", call(A[None]), call(A[:, None], axis=1))
sample("swapaxes", call(A, 0, -1))
sample("moveaxis", call(A, 0, 1))
sample("rollaxis", call(A, 1))
sample("atleast_1d atleast_2d atleast_3d", call(V), call(X, A))
sample("concatenate", call([A, B]), call((A, B), axis=None), call([V, W], -1))
sample("stack", call([A, B]), call([A, B], axis=-1))
sample("vstack hstack dstack column_stack", call([A, B]), call((V, W)))
sample("block", call([[A, B], [B, A]]))
sample("split array_split", call(A, [1], 1), call(V, 3))
sample("vsplit", call(A, 2))
sample("hsplit", call(A, 3), call(V, [1]))
sample("dsplit", call(np.ones((2, 1, 2)) * X, 2))
sample("unstack", call(A), call(A, axis=1))
sample("diagonal", call(S), call(A, 1), call(A, offset=-1))
sample("linalg.diagonal", call(S), call(A, offset=1))
sample("meshgrid", call(V, U), call(V, U, indexing="ij"), call(V, U, sparse=True))
sample("roll", call(A, 1), call(A, (1, -1), (0, 1)))
sample("flip", call(A), call(A, axis=1))
sample("flipud fliplr", call(A))
sample("rot90", call(A), call(A, k=2), call(A, 3, (1, 0)))
sample("repeat", call(A, 2), call(A, [1, 2, 0], axis=1))
sample("tile", call(A, 2), call(V, (2, 1)))
sample("resize", call(A, (2, 2)), call(A, (3, 3)))
sample(
    "pad",
    call(A, 1),
    call(A, ((1, 0), (0, 2)), "edge"),
    call(V, 2, mode="reflect"),
    call(V, 1, constant_values=2.0),
)
sample("tril triu", call(S), call(S, -1))
sample("diag", call(V), call(S, k=1), call(U, -1))
sample("diagflat", call(A))
sample("trim_zeros", call(np.array([0.0, 0.7, 0.0, 1.2, 0.0])))
sample("lib.stride_tricks.sliding_window_view", call(V, 2), call(A, (1, 2), axis=(0, 1)))
sample("apply_along_axis", call(fixed(np.sum), 1, A))
sample("apply_over_axes", call(fixed(np.sum), A, [0, 1]))
sample("piecewise", call(V, [fixed(V > 1)], [fixed(np.sin), fixed(np.cos)]))
sample("linspace", call(X, V, 4), call(V, 2.0, num=3, endpoint=False), call(0.0, V, 3, axis=1))
sample("logspace", call(X, V, 3), call(V, 1.5, 4, base=2.0))
sample("geomspace", call(X, V, 4))
sample("full_like", call(A, X), call(A, V, shape=(2, 3)))

# -- sums and statistics
sample("""
    sum mean prod max min amax amin nansum nanmean nanprod nanmax nanmin std var nanstd nanvar
""", call(A), call(A, 0), call(A, axis=(0, 1), keepdims=True))  # fmt: skip
sample("sum prod mean std var nansum nanprod nanmean nanstd nanvar", call(A, axis=-1, where=fixed(A > 0.3)))
sample("max min amax amin", call(A, axis=-1, where=fixed(A > 0.3), initial=1.0))
sample("sum prod", call(A, initial=2.0))
sample("max min amax amin", call(A, 1, initial=1.0))
sample("nansum nanmean nanprod nanmax nanmin nanstd nanvar", call(NAN, axis=1), call(NAN))
sample("std var nanstd nanvar", call(A, axis=0, ddof=1), call(A, correction=1))
sample("ptp", call(A), call(A, axis=1, keepdims=True))
sample("average", call(A), call(A, axis=1, weights=W), call(A, weights=B), call(A, 0, U, returned=True))
sample("cov", call(A), call(A, B, rowvar=False), call(V, W, ddof=0))
sample("corrcoef", call(S), call(V, W))
sample("cumsum cumprod nancumsum nancumprod", call(A), call(A, axis=1), call(A, 0))
sample("nancumsum nancumprod", call(NAN, axis=1))
sample("cumulative_sum cumulative_prod", call(V), call(A, axis=1, include_initial=True))
sample("sort", call(A), call(A, axis=None), call(A, 0), call(A, stable=True))
sample("partition", call(V, 1), call(A, 1, axis=-1))
sample("median nanmedian", call(A), call(A, axis=1, keepdims=True), call(A, 0))
sample("quantile nanquantile", call(A, 0.3), call(A, [0.2, 0.9], axis=1))
sample("percentile nanpercentile", call(A, 30.0), call(A, [20, 90], axis=1))
sample("nanmedian", call(NAN, axis=1))
sample("nanquantile", call(NAN, 0.4, axis=1))
sample("nanpercentile", call(NAN, 40, axis=1))
sample("take_along_axis", call(A, np.array([[2, 0], [1, 1]]), 1))
sample("unique unique_values unique_all unique_counts unique_inverse", call(V))
sample("unique", call(V, return_inverse=True, return_counts=True))
sample("diff", call(A), call(A, 2), call(A, axis=0, prepend=B[:1]), call(V, append=1.5))
sample("ediff1d", call(V), call(A, to_begin=1.0, to_end=2.0))
sample("gradient", call(S), call(V), call(V, 0.5), call(S, axis=1), call(S, edge_order=2))
sample("trapezoid", call(A), call(A, dx=0.5, axis=0), call(A, W))
sample("interp", call(U, fixed(np.array([0.0, 0.5, 1.5])), W))
sample("polyval", call(V, X), call(V, A))
sample("polyadd polysub polymul", call(V, U), call(U, V), call(X, V), call(V, [0.0, 2.0]))
sample("polyder polyint", call(V), call(V, 2), call(V, m=0))
sample("polyder", call(V, 3))
sample("polyint", call(V, 2, k=U), call(V, 2, 1.5), call(V, 1, fixed([2.0])))
sample("vander", call(V), call(V, 2, increasing=True))
sample("bincount", call(I, V), call(I, weights=W, minlength=5))

# -- choices and indices
sample("where", call(fixed(A > 1), A, B), call(fixed(A > 1), 0.0, B))
sample("clip", call(A, 0.4, 1.2), call(A, X, None), call(A, min=0.4, max=V), call(A, None, 1.0))
sample("take", call(A, [5, 0, 5]), call(A, I, axis=1), call(A, [0, -1], 0))
sample("choose", call(I[:2] - I[1], [U, 2 * U, 3 * U]))
sample("select", call([fixed(A > 1), fixed(A > 0.6)], [A, B], 0.5))
sample("compress", call(MASK, A, axis=1), call(MASK, V))
sample("extract", call(fixed(A > 1), A))
sample("delete", call(A, 1, axis=1), call(A, [0, 2]))
sample("insert", call(A, 1, U, axis=1), call(V, [0, 2], 5.0))
sample("append", call(A, B), call(A, B, axis=1))
sample("convolve correlate", call(V, W), call(V, U, "same"), call(V, U, mode="valid"))

# -- products and matrices
sample("dot", call(A, B.T), call(V, W), call(S, V), call(X, A), call(np.ones((2, 1, 3)) * V, S))
sample("inner", call(A, B), call(V, W))
sample("outer linalg.outer", call(V, U))
sample("vdot", call(A, B))
sample("kron", call(V, U), call(A, S))
sample("cross", call(V, W), call(A, B), call(A.T, B.T, axisa=0, axisb=0, axisc=0))
sample("linalg.cross", call(V, W), call(A, B))
sample("trace", call(S), call(A, 1), call(A, offset=-1))
sample("linalg.trace", call(S), call(S, offset=1))
sample("tensordot linalg.tensordot", call(A, B.T, axes=1), call(A, B), call(A, B, axes=[[1], [1]]))
sample("einsum", call("ij,kj->ik", A, B), call("ii", S), call("ij,j", A, V), call("ij->j", A, optimize=True))
sample("linalg.matmul", call(A, B.T), call(S, R))
sample("linalg.vecdot", call(A, B), call(A, B, axis=0))
sample("linalg.multi_dot", call([A, S, B.T]))
sample("linalg.matrix_power", call(S, 3), call(S, -2), call(S, 0))
sample("linalg.inv linalg.det linalg.slogdet linalg.pinv", call(S), call(np.stack([S, R])))
sample("linalg.pinv", call(A))
sample("linalg.solve", call(S, V), call(S, B.T))
sample("linalg.lstsq", call(A.T, V, None), call(A.T, V))
sample("linalg.cholesky", call(S @ S.T), call(S @ S.T, upper=True))
sample("linalg.eigh linalg.eigvalsh", call(SYMMETRIC), call(SYMMETRIC, "U"))
sample("linalg.svdvals", call(A), call(S))
sample("linalg.svd", call(A, full_matrices=False), call(S, compute_uv=False))
sample("linalg.qr", call(S), call(A.T), call(A.T, mode="r"))
sample(
    "linalg.norm",
    call(A),
    call(V, 3),
    call(A, axis=1),
    call(S, 2),
    call(S, "nuc"),
    call(A, np.inf, keepdims=True),
)
sample("linalg.vector_norm", call(A), call(A, axis=1, ord=3), call(V, keepdims=True))
sample("linalg.matrix_norm", call(A), call(S, ord=2), call(S, ord=1))
sample("linalg.cond", call(S), call(S, 1))
sample("linalg.tensorinv", call(S.reshape(3, 3), ind=1))
sample("linalg.tensorsolve", call(S.reshape(3, 3), V))

# -- element by element
sample("real real_if_close sinc i0 nan_to_num", call(A))
sample("unwrap", call(V), call(3.0 * V, period=2.5))
sample("astype", call(A, np.float64))
sample("fft.fftshift fft.ifftshift", call(V), call(A, axes=1))

# -- constants
sample("""
    all any argmax argmin argsort argwhere array2string array_repr array_str common_type count_nonzero fix
    flatnonzero around iscomplex iscomplexobj isneginf isposinf isreal isrealobj min_scalar_type nanargmax nanargmin ndim
    nonzero round shape size angle imag result_type zeros_like ones_like empty_like
""", call(A))  # fmt: skip
sample("argpartition", call(A, 1))
sample("allclose array_equal array_equiv isclose isin may_share_memory shares_memory", call(A, B))
sample("can_cast", call(A.dtype, np.float64))
sample("diag_indices_from tril_indices_from triu_indices_from linalg.matrix_rank", call(S))
sample("digitize", call(A, fixed(np.array([0.5, 1.0]))), call(fixed(A), V[[0, 2, 1]]))
sample("searchsorted", call(V[[0, 2, 1]], A))
sample("lexsort", call((V, W)))
sample("einsum_path", call("ij,j", A, V))
sample("save savetxt savez savez_compressed", call(io.BytesIO, A))

# -- ufuncs with arguments of their own
UFUNCS = {
    "arccosh": call(A + 1.0), "arcsin": call(A / 3), "arccos": call(A / 3), "arctanh": call(A / 3), "ldexp": call(A, I),
    "matmul": call(S, R), "matvec": call(S, V), "vecmat": call(V, S), "vecdot": call(A, B), "clip": call(A, 0.4, B),
    "frexp": call(A + 0.1), "modf": call(A + 0.1),  # off the points at which they jump
}  # fmt: skip


def of_ufunc(ufunc):
    return UFUNCS.get(ufunc.__name__) or call(*[A, B, A, B][: ufunc.nin])


# -- made of numbers: only `like` is asked
for name, args in {
    "arange": (3,), "array": ([1.0],), "asanyarray": ([1.0],), "asarray": ([1.0],), "ascontiguousarray": ([1.0],),
    "asfortranarray": ([1.0],), "empty": (2,), "eye": (2,), "frombuffer": (b"12345678",), "fromfile": (__file__, np.uint8, 3),
    "fromfunction": (fixed(np.add), (2, 2)), "fromiter": ([1.0], float), "fromstring": ("1 2",), "full": (2, 1.0),
    "genfromtxt": (["1 2"],), "identity": (2,), "loadtxt": (["1 2"],), "ones": (2,), "require": ([1.0],), "tri": (2,),
    "zeros": (2,),
}.items():  # fmt: skip
    sample(name, call(*args, like=A))
FUNCTIONS["fromstring"] = [call("1 2", sep=" ", like=A)]

# -- refused
sample("copyto", call(A, B))
sample("fill_diagonal", call(S, X))
sample("place putmask", call(A, fixed(A > 1), V))
sample("put", call(A, I, V))
sample("put_along_axis", call(A, np.array([[0], [1]]), np.array([[0.5], [1.5]]), 1))
sample("histogram histogram_bin_edges", call(A), call(fixed(A), 3, weights=B))
sample("histogram2d", call(V, W))
sample("histogramdd", call(A))
sample("intersect1d setdiff1d setxor1d union1d", call(V, W))
sample("poly roots", call(V))
sample("polyfit", call(V, W, 1))
sample("polydiv", call(V, W))
sample("linalg.eig linalg.eigvals sort_complex", call(S))
sample("ravel_multi_index", call([V, W], (3, 3)))
sample("ix_ packbits unpackbits is_busday datetime_as_string", call(V))
sample("unravel_index", call(V, (3, 3)))
sample("busday_count busday_offset", call(V, W))
sample(
    "lib.scimath.arccos lib.scimath.arcsin lib.scimath.arctanh lib.scimath.log lib.scimath.log10 lib.scimath.log2 lib.scimath.sqrt",
    call(A),
)
sample("lib.scimath.logn lib.scimath.power", call(2.0, A))
for name, args in {
    "append_fields": (V, "b", W), "apply_along_fields": (fixed(np.sum), V), "assign_fields_by_name": (V, W),
    "drop_fields": (V, "b"), "find_duplicates": (V,), "join_by": ("b", V, W), "merge_arrays": ([V, W],),
    "rec_append_fields": (V, "b", W), "rec_drop_fields": (V, "b"), "rec_join": ("b", V, W),
    "recursive_fill_fields": (V, W), "rename_fields": (V, {}), "repack_fields": (V,), "require_fields": (V, float),
    "stack_arrays": ([V, W],), "structured_to_unstructured": (V,), "unstructured_to_structured": (A,),
}.items():  # fmt: skip
    sample(f"lib.recfunctions.{name}", call(*args))
for name in (
    "fft", "ifft", "rfft", "irfft", "hfft", "ihfft", "fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn",
):  # fmt: skip
    sample(f"fft.{name}", call(A))
