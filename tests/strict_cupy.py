"""A stand-in for CuPy that holds NumPy arrays and is as strict as CuPy is, for machines without a GPU.

Its arrays are not NumPy's: nothing turns one into the other but `asarray` and `get`, and an op that is given
both is refused. What waits for the device is counted; during a capture it is refused, like products, random
numbers and new memory. Names and keywords that CuPy 14 does not have are not here either.

    with strict_cupy.installed() as cupy:
        x = cupy.asarray(numpy.ones(3))
        with strict_cupy.watched() as waits:
            float(x[0])
        assert waits == ["float"]

Every new array lies in memory of the current allocator (`strict_cuda`). While the current stream captures nothing is
written: what would have been done is noted, and `graph.launch()` does it with what lies in the same memory then.
Kernels in CUDA C++ are functions in `KERNELS`, and a library's calls go through `enqueue`.

What it cannot tell: anything of speed, of streams that run at once, of memory that CuPy takes for its own use within
a call (sums, sorts, sorted indices), or of how CuPy's kernels round.
"""

import contextlib
import functools
import operator
import sys
import types
import warnings

import numpy as np

import strict_cuda
import strict_kernels

cuda, Event, Graph, State, Stream = (
    getattr(strict_cuda, name) for name in ("cuda", "Event", "Graph", "State", "Stream")
)
enqueue, library, memory_at, quiet, waits, watched = (
    getattr(strict_cuda, name) for name in ("enqueue", "library", "memory_at", "quiet", "waits", "watched")
)

# -- what CuPy 14.2 does not have --------------------------------------------------------------------------

# Functions of `numpy`, and of `numpy.linalg`.
LACKS = frozenset(["False_", "ScalarType", "True_", "asmatrix", "block", "bmat", "busday_count", "busday_offset", "busdaycalendar", "bytes_", "char", "character", "clongdouble", "complex256", "core", "ctypeslib", "datetime64", "datetime_as_string", "datetime_data", "dtypes", "einsum_path", "emath", "errstate", "flexible", "float128", "frompyfunc", "fromregex", "geomspace", "getbufsize", "geterr", "geterrcall", "histogram_bin_edges", "info", "insert", "is_busday", "isnat", "longdouble", "ma", "matrix", "matvec", "memmap", "nanpercentile", "nanquantile", "ndenumerate", "nditer", "nested_iters", "object_", "polyder", "polydiv", "polyint", "rec", "recarray", "record", "setbufsize", "seterr", "seterrcall", "spacing", "str_", "strings", "timedelta64", "typecodes", "unstack", "vecdot", "vecmat", "void"])  # fmt: skip
LINALG_LACKS = frozenset(
    [
        "diagonal",
        "matrix_norm",
        "multi_dot",
        "outer",
        "svdvals",
        "tensordot",
        "trace",
        "vecdot",
        "vector_norm",
    ]
)
# Keywords that a function does not have here, by the function; an argument that is called otherwise counts.
LACKS_KEYWORDS = {
    name: frozenset(keywords.split())
    for names, keywords in {
        "amax amin max min nanmax nanmin prod sum nanprod nansum": "initial where",
        "all any mean nanmean": "where",
        "var std nanvar nanstd": "where mean correction",
        "argsort sort": "order stable",
        "argpartition partition": "kind order",
        "arange asarray asanyarray empty eye full ones zeros linspace empty_like full_like ones_like zeros_like": "device like",
        "broadcast_to broadcast_arrays copy": "subok",
        "clip": "min max",
        "corrcoef": "x",
        "count_nonzero": "keepdims",
        "cov": "m",
        "delete": "obj",
        "einsum": "out",
        "percentile quantile": "weights",
        "reshape": "shape",
        "take": "mode",
        "trim_zeros": "axis",
        "tri identity": "like",
        "unique": "sorted",
        "cholesky": "upper",
        "matrix_rank": "hermitian rtol",
        "pinv": "hermitian rtol",
        "svd": "hermitian",
    }.items()
    for name in names.split()
}
SPECIAL = frozenset(["beta", "betainc", "betaln", "cbrt", "digamma", "entr", "erf", "erfc", "erfcinv", "erfcx", "erfinv", "exp2", "expit", "expm1", "gamma", "gammainc", "gammaincc", "gammaln", "i0", "i0e", "i1", "i1e", "j0", "j1", "k0", "k0e", "k1", "k1e", "kl_div", "log1p", "log_expit", "log_ndtr", "log_softmax", "logit", "logsumexp", "multigammaln", "ndtr", "ndtri", "polygamma", "psi", "rel_entr", "rgamma", "sinc", "softmax", "xlog1py", "xlogy", "y0", "y1", "yn", "zeta"])  # fmt: skip
# Methods of ufuncs: all others raise.
METHODS = {
    "reduce": {"add", "multiply"},
    "accumulate": {"add", "multiply"},
    "at": {"add", "maximum", "minimum"},
    "outer": None,  # every one has it
}

# What NumPy says of shapes and dtypes without looking at elements: numbers of Python's here too.
ABOUT = frozenset(["ndim", "shape", "size", "result_type", "can_cast", "min_scalar_type", "common_type", "promote_types", "iscomplexobj", "isrealobj", "isscalar", "isdtype", "finfo", "iinfo", "may_share_memory", "shares_memory", "issubdtype", "broadcast_shapes", "dtype", "iterable"])  # fmt: skip
# What makes arrays of numbers, lists or NumPy's arrays; every other function needs an array of this module.
CREATES = frozenset(["arange", "array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray", "empty", "eye", "full", "identity", "indices", "linspace", "logspace", "mgrid", "ogrid", "ones", "tri", "zeros", "diag_indices", "tril_indices", "triu_indices", "mask_indices"])  # fmt: skip
FROM_HOST = frozenset(["array", "asarray", "asanyarray", "ascontiguousarray", "asfortranarray"])
# What reads elements on the host: its result's shape, or whether to raise, depends on them.
WAITS = frozenset(["argwhere", "array2string", "array_repr", "array_str", "average", "bincount", "choose", "compress", "delete", "extract", "flatnonzero", "histogram", "histogram2d", "histogramdd", "intersect1d", "nonzero", "percentile", "quantile", "save", "savetxt", "savez", "setdiff1d", "setxor1d", "trim_zeros", "union1d", "unique", "unique_all", "unique_counts", "unique_inverse", "unique_values"])  # fmt: skip
# What writes to its first argument.
WRITES = frozenset(["copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"])
# What calls a library that CuPy does not let a stream capture.
LIBRARIES = frozenset(["dot", "einsum", "inner", "kron", "matmul", "outer", "tensordot", "vdot"])


# -- arrays --------------------------------------------------------------------------------------------------


class Flags:
    """The layout; nothing says whether an array may be written to."""

    def __init__(self, array):
        flags = array._host.flags
        self.c_contiguous, self.f_contiguous = flags.c_contiguous, flags.f_contiguous
        self.owndata = array.base is None

    def __setattr__(self, name, value):
        if name not in ("c_contiguous", "f_contiguous", "owndata") or name in self.__dict__:
            raise AttributeError(f"'Flags' object has no attribute {name!r} to be set")
        super().__setattr__(name, value)


class ndarray:
    """An array on the device."""

    __slots__ = ("__weakref__", "_host", "_mem", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape=(), dtype=float, memptr=None, strides=None, order="C"):
        like = np.empty(shape, dtype, order)
        if memptr is None:
            memptr = strict_cuda.alloc(like.nbytes)
        self._host = strict_cuda.array_at(memptr, like.shape, like.dtype, strides or like.strides)
        self._mem, self.base = memptr.mem, None

    # what does not look at elements

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(Flags)
    device = property(lambda self: cuda.Device(0))
    T = property(lambda self: view(self._host.T, self))
    mT = property(lambda self: view(self._host.mT, self))
    real = property(lambda self: view(self._host.real, self))
    imag = property(lambda self: performed(np.imag, (self._host,), given=(self,)))

    @property
    def data(self):
        begin = self._host.__array_interface__["data"][0] if self.size else self._mem.ptr
        return cuda.MemoryPointer(self._mem, begin - self._mem.ptr)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # what waits

    def get(self, stream=None, order="C", out=None, blocking=True):
        if blocking or out is None:
            waits("get")
        if out is None:
            return self._host.copy(order=order)
        host = self._host
        (stream or cuda.get_current_stream()).put(lambda: np.copyto(out, host))
        return out

    def item(self):
        waits("item")
        return self._host.item()

    def tolist(self):
        waits("tolist")
        return self._host.tolist()

    def tobytes(self, order="C"):
        waits("tobytes")
        return self._host.tobytes(order)

    def __float__(self):
        waits("float")
        return float(self._host)

    def __int__(self):
        waits("int")
        return int(self._host)

    def __bool__(self):
        waits("bool")
        return bool(self._host)

    def __repr__(self):
        waits("repr")
        return repr(self._host)

    def __format__(self, spec):
        waits("format")
        return format(self._host, spec)

    def __reduce__(self):
        waits("reduce")
        return restored, (self._host.copy(),)

    def set(self, array, stream=None):
        if not isinstance(array, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if (array.dtype, array.shape) != (self.dtype, self.shape):
            raise ValueError("Shape or dtype mismatch.")
        host, sent = self._host, array.copy()
        (stream or cuda.get_current_stream()).put(lambda: np.copyto(host, sent))

    # NumPy's protocols

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Use `.get()` to construct a NumPy array."
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        here = vars(cupy).get(ufunc.__name__)
        out = kwargs.get("out", ())
        if method != "__call__" or here is None or len(out) > 1:
            return NotImplemented
        if any(not known(x) for x in (*inputs, *out)):
            return NotImplemented
        if out:
            kwargs["out"] = out[0]
        return here(*inputs, **kwargs)

    def __array_function__(self, function, kinds, args, kwargs):
        at = cupy
        for part in function.__module__.split(".")[1:]:
            at = getattr(at, part, None)
        here = getattr(at, function.__name__, None)
        if here is None or any(kind not in (ndarray, np.ndarray) for kind in kinds):
            return NotImplemented
        return here(*args, **kwargs)

    # reading and writing parts

    def __getitem__(self, index):
        return performed(part, (self._host, index_of(index)), given=(self,))

    def __setitem__(self, index, value):
        change(operator.setitem, self, index_of(index), bare(value))

    def scatter_add(self, slices, value):
        change(np.add.at, self, index_of(slices), bare(value))

    # methods that allocate

    def copy(self, order="C"):
        return performed(self._host.copy, (order,))

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        as_asked = functools.partial(self._host.astype, dtype, order=order, casting=casting or "unsafe")
        if not copy and as_asked(copy=False) is self._host:
            return self
        return performed(as_asked)

    def view(self, dtype=None):
        return view(self._host.view() if dtype is None else self._host.view(dtype), self)

    def fill(self, value):
        change(np.ndarray.fill, self, bare(value))

    def sort(self, axis=-1, kind=None):
        change(np.ndarray.sort, self, axis, kind)


def restored(host):
    return cupy.asarray(host)


# Methods that are the functions of NumPy's arrays; their arrays are checked.
FORWARDED = [
    "all",
    "any",
    "argmax",
    "argmin",
    "argpartition",
    "argsort",
    "clip",
    "conj",
    "conjugate",
    "cumprod",
    "cumsum",
    "diagonal",
    "dot",
    "flatten",
    "max",
    "mean",
    "min",
    "prod",
    "ravel",
    "repeat",
    "reshape",
    "round",
    "searchsorted",
    "squeeze",
    "std",
    "sum",
    "swapaxes",
    "take",
    "trace",
    "transpose",
    "var",
]
MAY_WAIT = ["choose", "compress", "nonzero", "put"]
OPERATORS = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "divmod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
]
COMPARISONS = ["lt", "le", "eq", "ne", "gt", "ge"]
UNARY = ["neg", "pos", "abs", "invert"]
IN_PLACE = [
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "ilshift",
    "irshift",
]


def forwarded(name):
    def method(self, *args, **kwargs):
        if name in MAY_WAIT:
            waits(name)
        if name == "dot":
            library(name)
        refuse_keywords(name, kwargs)
        method = getattr(self._host, name)
        return performed(method, bare(args), bare(kwargs), (self,), kwargs.get("out"))

    return method


def binary(name):
    def method(self, other):
        if isinstance(other, (list, tuple)) or not known(other):
            if name == "__matmul__" or hasattr(type(other), "__array_ufunc__"):
                return NotImplemented
            raise TypeError(f"Unsupported type {type(other)}")
        if name.strip("_") in ("matmul", "rmatmul"):
            library("matmul")
            if not isinstance(other, ndarray):
                raise TypeError(f"Unsupported type {type(other)}")
        # A ufunc with an array and a number widens no dtype, and neither does the method.
        return performed(getattr(self._host, name), (bare(other),))

    return method


def unary(name):
    return lambda self: performed(getattr(self._host, name))


def in_place(name):
    def method(self, other):
        if not known(other):
            raise TypeError(f"Unsupported type {type(other)}")
        ufunc = {"iadd": np.add, "isub": np.subtract, "imul": np.multiply, "itruediv": np.true_divide,
                 "ifloordiv": np.floor_divide, "imod": np.remainder, "ipow": np.power, "iand": np.bitwise_and,
                 "ior": np.bitwise_or, "ixor": np.bitwise_xor, "ilshift": np.left_shift,
                 "irshift": np.right_shift}[name]  # fmt: skip
        return performed(ufunc, (self._host, bare(other)), {"out": self._host}, out=self)

    return method


for _name in (*FORWARDED, *MAY_WAIT):
    setattr(ndarray, _name, forwarded(_name))
for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", binary(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", binary(f"__r{_name}__"))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", binary(f"__{_name}__"))
for _name in UNARY:
    setattr(ndarray, f"__{_name}__", unary(f"__{_name}__"))
for _name in IN_PLACE:
    setattr(ndarray, f"__{_name}__", in_place(_name))


# -- in and out ------------------------------------------------------------------------------------------------


def known(x):
    """Whether an elementwise function takes `x`, or says by itself that it does not."""
    return isinstance(x, (ndarray, np.ndarray, np.generic, bool, int, float, complex, type(None)))


def bare(x):
    """What is behind the arrays in `x`. NumPy's own arrays are refused, wherever they are."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, (list, tuple)):
        return type(x)(map(bare, x)) if type(x) in (list, tuple) else type(x)(*map(bare, x))
    if isinstance(x, dict):
        return {k: bare(v) for k, v in x.items()}
    return x


def index_of(index):
    """An index as NumPy takes it; where a mask picks, the host has to know how many. A list is sent there."""
    if isinstance(index, tuple):
        return tuple(map(index_of, index))
    if isinstance(index, list) and not any(True for _ in arrays_in(index)):
        index = cupy.asarray(index, dtype=None if index else int)
    if isinstance(index, ndarray) and index.dtype.kind == "b":
        waits("mask")
    return bare(index)


def part(host, index):
    """What lies at an index: never NumPy's number, which would be no view."""
    found = host[index]
    if isinstance(found, np.ndarray):
        return found
    return host[(*index, ...) if isinstance(index, tuple) else (index, ...)]


def arrays_in(x):
    """The arrays in nested sequences and dicts."""
    if isinstance(x, ndarray):
        yield x
    elif isinstance(x, (list, tuple, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from arrays_in(part)


def view(host, of):
    """An array whose memory is that of `of`."""
    made = object.__new__(ndarray)
    made._host, made._mem, made.base = host, of._mem, of if of.base is None else of.base
    return made


def unwritten(like):
    """An array in new memory, as long and wide as `like`, with what lies there already."""
    made, pointer = object.__new__(ndarray), strict_cuda.alloc(like.nbytes)
    if not like.flags.c_contiguous:
        like = np.empty_like(like)  # its strides leave no gaps
    made._host = strict_cuda.array_at(pointer, like.shape, like.dtype, like.strides)
    made._mem, made.base = pointer.mem, None
    return made


def performed(f, args=(), kwargs={}, given=(), out=None):  # noqa: B006, read alone
    """What a function of NumPy returns for the memory of arrays, with arrays of this module for its arrays.

    `given`: the arrays of which it may return views. `out`: the array that it writes to. While a stream captures it
    is called for the shapes alone, and noted.
    """
    nodes = strict_cuda.LOCAL.stream.nodes
    if nodes is None:
        y = f(*args, **kwargs)
        return answered(y, given) if out is None else out
    if out is not None:
        tried(f, args, {**kwargs, "out": np.empty_like(out._host)})
        nodes.append(lambda: f(*args, **kwargs))
        return out
    places = []
    made = answered(tried(f, args, kwargs), given, places)
    if any(place is not None for place in places):

        def node():
            for place, y in zip(places, leaves(f(*args, **kwargs)), strict=True):
                if place is not None:
                    np.copyto(place, y)

        nodes.append(node)
    return made


def change(f, target, *args, **kwargs):
    """Let a function of NumPy write to an array, its first argument."""
    host, nodes = target._host, strict_cuda.LOCAL.stream.nodes
    if nodes is None:
        f(host, *args, **kwargs)
    else:
        tried(f, (host.copy(), *args), kwargs)
        nodes.append(lambda: f(host, *args, **kwargs))


def tried(f, args, kwargs):
    """What `f` returns, for its shapes: elements that are yet to be computed must not matter, indices least of all."""
    with quiet():
        try:
            return f(*args, **kwargs)
        except (IndexError, ValueError):
            return f(*zeroed(args), **zeroed(kwargs))


def zeroed(x):
    """`x` with zeros for the whole numbers of its arrays."""
    if isinstance(x, np.ndarray):
        return np.zeros_like(x) if x.dtype.kind in "iu" else x
    if isinstance(x, (list, tuple)):
        return type(x)(map(zeroed, x))
    return {k: zeroed(v) for k, v in x.items()} if isinstance(x, dict) else x


NUMBERS = (np.ndarray, np.generic, bool, int, float)


def leaves(y):
    """The arrays and numbers that a function of NumPy returned."""
    if isinstance(y, NUMBERS):
        yield y
    elif isinstance(y, (tuple, list)):
        for part in y:
            yield from leaves(part)


def answered(y, given, places=None):
    """What a function of NumPy returned, with arrays on the device for its arrays and numbers.

    `places`, during a capture: a list to be filled with the memory of new arrays, which stays as it is.
    """
    if isinstance(y, NUMBERS):
        y = np.asarray(y)
        if y.base is not None:
            for a in given:
                if np.may_share_memory(y, a._host):
                    if places is not None:
                        places.append(None)
                    return view(y, a)
        made = unwritten(y)
        if places is None:
            np.copyto(made._host, y)
        else:
            places.append(made._host)
        return made
    if isinstance(y, (tuple, list)):
        parts = [answered(part, given, places) for part in y]
        return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)
    return y


def refuse_keywords(name, kwargs):
    refused = LACKS_KEYWORDS.get(name, frozenset()) & kwargs.keys()
    if refused:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(refused)!r}")


def quietly(f):
    def call(*args, **kwargs):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return f(*args, **kwargs)

    return call


def function(name, of_numpy):
    """NumPy's function for arrays of this module."""
    quiet_call = quietly(of_numpy)

    def call(*args, **kwargs):
        refuse_keywords(name, kwargs)
        if name in ABOUT:
            return of_numpy(*about(args), **about(kwargs))
        given = list(arrays_in((args, kwargs)))
        if name in FROM_HOST:
            return made_of(of_numpy, args, kwargs)
        if name not in CREATES and not given:
            raise TypeError(f"{name}: no array of CuPy among the arguments, {[type(a) for a in args]}")
        if name in WAITS or (name == "where" and len(args) + len(kwargs) == 1):
            waits(name)
        if name in LIBRARIES:
            library(name)
        if name == "repeat" and isinstance((*args, kwargs.get("repeats"))[1], ndarray):
            waits(name)
        if name in WRITES:
            return change(of_numpy, args[0], *bare(args[1:]), **bare(kwargs))
        if name in ("empty", "empty_like"):
            return unwritten(of_numpy(*bare(args), **bare(kwargs)))
        if name == "meshgrid":
            kwargs.setdefault("copy", True)
        if name in ("stack", "concatenate", "concat", "hstack", "vstack", "column_stack", "dstack"):
            for part in args[0]:
                if not isinstance(part, ndarray):
                    raise TypeError("Only cupy arrays can be concatenated")
        return performed(quiet_call, bare(args), bare(kwargs), given, kwargs.get("out"))

    call.__name__ = call.__qualname__ = name
    return call


def about(x):
    """Arguments for what looks at shapes and dtypes alone: NumPy's arrays are let pass."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, (list, tuple)):
        return tuple(map(about, x))
    return {k: about(v) for k, v in x.items()} if isinstance(x, dict) else x


def made_of(of_numpy, args, kwargs):
    """`array`, `asarray`: from the host's numbers, or from arrays of this module alone."""
    value, *rest = args
    kwargs.pop("blocking", None)
    if isinstance(value, ndarray):
        if of_numpy(value._host, *rest, **kwargs) is value._host:
            return value
        return performed(of_numpy, (value._host, *rest), kwargs, (value,))
    if any(True for _ in arrays_in(value)):
        return performed(of_numpy, (bare(value), *rest), kwargs)
    host = of_numpy(np.asarray(value), *rest, **kwargs)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    if strict_cuda.LOCAL.stream.nodes is not None:
        host = host.copy(order="K")  # a graph repeats what was sent
    return performed(lambda: host)


class ufunc:
    """One of NumPy's for arrays of this module."""

    def __init__(self, of_numpy):
        self._of_numpy, self.__name__ = of_numpy, of_numpy.__name__
        self.nin, self.nout, self.nargs = of_numpy.nin, of_numpy.nout, of_numpy.nargs

    def __call__(self, *args, **kwargs):
        for x in (*args, *kwargs.values()):
            if isinstance(x, (np.ndarray, list, tuple)):
                raise TypeError(f"Unsupported type {type(x)}")
        unknown = kwargs.keys() - {"out", "dtype", "casting", "where"}
        if unknown:
            raise TypeError(f"Wrong arguments {unknown}")
        if len(args) > self.nin:
            kwargs, args = {**kwargs, "out": args[self.nin]}, args[: self.nin]
        with np.errstate(all="ignore"):
            return performed(self._of_numpy, bare(args), bare(kwargs), out=kwargs.get("out"))

    def __getattr__(self, method):
        if method not in METHODS:
            raise AttributeError(method)

        def call(*args, **kwargs):
            has = METHODS[method]
            if has is not None and self.__name__ not in has:
                raise NotImplementedError(f"`{self.__name__}.{method}` is not supported yet")
            if method != "at" and not isinstance(args[0], ndarray):
                raise TypeError(f"Unsupported type {type(args[0])}")
            if kwargs.keys() - {"axis", "dtype", "out", "keepdims"}:
                raise TypeError(f"{method}() got an unexpected keyword argument")
            f = getattr(self._of_numpy, method)
            if method == "at":
                return change(f, args[0], *bare(args[1:]))
            return performed(f, bare(args), bare(kwargs), out=kwargs.get("out"))

        return call


# -- the modules -------------------------------------------------------------------------------------------------


def module(name, of_numpy, lacks):
    """A module of functions like those of `of_numpy`."""
    made = types.ModuleType(name)
    for key in dir(of_numpy):
        value = getattr(of_numpy, key)
        if key.startswith("_") or key in lacks or isinstance(value, types.ModuleType):
            continue
        if isinstance(value, np.ufunc) and value is not np.matmul:
            setattr(made, key, ufunc(value))
        elif isinstance(value, type) or not callable(value):
            setattr(made, key, value)
        else:
            setattr(made, key, function(key, value))
    return made


def for_linalg(call):
    def guarded(*args, **kwargs):
        library("linalg")
        return call(*args, **kwargs)

    guarded.__name__ = call.__name__
    return guarded


# -- kernels -----------------------------------------------------------------------------------------------------

# What runs for a kernel of CUDA C++, by its name or the expression that names it: f(grid, block, args, shared_mem),
# with NumPy's arrays in the memory of the arrays of `args`, and numbers as CuPy hands them over.
KERNELS = strict_kernels.Kernels()


def argument(x):
    """An argument of a kernel, as CuPy hands it over."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, cuda.MemoryPointer):
        return np.uintp(x.ptr)
    if x is None or (isinstance(x, np.generic) and x.dtype.char in "?bhilqBHILQefdFD"):
        return x
    if isinstance(x, int):  # True is 1 there: 8 bytes, not one
        return np.int64(x)
    if isinstance(x, (float, complex)):
        return np.asarray(x)[()]
    raise TypeError(f"Unsupported type {type(x)}")


class RawKernel:
    """A kernel of CUDA C++. Its text is not read: a function of `KERNELS` runs."""

    def __init__(self, code, name, options=(), backend="nvrtc", *, enable_cooperative_groups=False):
        if type(options) is not tuple:
            raise TypeError(
                f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})"
            )
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.enable_cooperative_groups, self._most = enable_cooperative_groups, 48 * 1024

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._most

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, count):
        if not 0 <= count <= cuda.runtime.getDeviceProperties(0)["sharedMemPerBlockOptin"]:
            raise cuda.runtime.CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE: more shared memory than a block may have"
            )
        self._most = count

    def __call__(self, grid, block, args, *, shared_mem=0):
        try:
            run = KERNELS[self.name]
        except KeyError:
            raise KeyError(f"nothing runs for the kernel {self.name!r}: add a function to KERNELS") from None
        for size in (grid, block):
            if type(size) is not tuple or not 1 <= len(size) <= 3:
                raise TypeError(f"the sizes of a launch are tuples of one to three numbers, not {size!r}")
        grid, block = ((*(int(n) for n in size), 1, 1)[:3] for size in (grid, block))
        if not 1 <= block[0] * block[1] * block[2] <= 1024 or min(grid) < 1 or shared_mem > self._most:
            raise cuda.runtime.CUDARuntimeError(
                f"CUDA_ERROR_INVALID_VALUE: {self.name}, grid {grid}, block {block}, shared memory {shared_mem}"
            )
        given = tuple(map(argument, args))
        enqueue(lambda: run(grid, block, given, shared_mem))


class RawModule:
    """A text of CUDA C++ with kernels."""

    def __init__(
        self, *, code, options=(), backend="nvrtc", enable_cooperative_groups=False, name_expressions=None
    ):
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)
        self._kernel = functools.partial(
            RawKernel,
            code,
            options=options,
            backend=backend,
            enable_cooperative_groups=enable_cooperative_groups,
        )
        self._kernel("")  # refuses options that are no tuple

    def get_function(self, name):
        if "<" in name and name not in (self.name_expressions or ()):
            raise cuda.runtime.CUDARuntimeError(f"CUDA_ERROR_NOT_FOUND: {name} is not in name_expressions")
        return self._kernel(name)


# -- cupy --------------------------------------------------------------------------------------------------------

cupy = module("cupy", np, LACKS)
cupy.ndarray, cupy.ufunc, cupy.cuda = ndarray, ufunc, cuda
ndarray.__module__ = "cupy"  # the package that knows an array's functions
cupy.__version__ = "14.2.0"
cupy.asnumpy = lambda a, *args, **kwargs: a.get() if isinstance(a, ndarray) else np.asarray(a)
cupy.get_default_memory_pool = lambda: strict_cuda.POOL
cupy.RawKernel, cupy.RawModule = RawKernel, RawModule
cupy.get_array_module = lambda *arrays: cupy if any(isinstance(a, ndarray) for a in arrays) else np
cupy.linalg = module("cupy.linalg", np.linalg, LINALG_LACKS)
for _key, _value in [*vars(cupy.linalg).items()]:
    if isinstance(_value, types.FunctionType):
        setattr(cupy.linalg, _key, for_linalg(_value))
cupy.fft = module("cupy.fft", np.fft, frozenset())
cupy.lib = types.ModuleType("cupy.lib")
cupy.lib.stride_tricks = module(
    "cupy.lib.stride_tricks", np.lib.stride_tricks, frozenset(["broadcast_arrays"])
)
cupy.random = types.ModuleType("cupy.random")


def _random(name):
    raise AttributeError(f"{name}: numbers drawn on the device differ from the host's; draw there, then move")


cupy.random.__getattr__ = _random
cupyx = types.ModuleType("cupyx")
cupyx.scipy = types.ModuleType("cupyx.scipy")
cupyx.scatter_add = lambda a, slices, value: a.scatter_add(slices, value)
cupyx.empty_pinned = lambda shape, dtype=float, order="C": np.empty(shape, dtype, order)
cupyx.zeros_pinned = lambda shape, dtype=float, order="C": np.zeros(shape, dtype, order)


def special():
    """The copy of SciPy's special functions."""
    import scipy.special

    made = types.ModuleType("cupyx.scipy.special")
    for key in SPECIAL:
        of_scipy = getattr(scipy.special, key)
        setattr(made, key, ufunc(of_scipy) if isinstance(of_scipy, np.ufunc) else function(key, of_scipy))
    return made


@contextlib.contextmanager
def installed():
    """A scope in which `import cupy` finds this."""
    modules = {
        "cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.runtime": cuda.runtime, "cupy.linalg": cupy.linalg, "cupyx": cupyx, "cupyx.scipy": cupyx.scipy,
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        modules["cupyx.scipy.special"] = cupyx.scipy.special = special()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield cupy
    finally:
        strict_cuda.reset()
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
