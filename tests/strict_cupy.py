"""A stand-in for CuPy that holds NumPy arrays and is as strict as CuPy is, for machines without a GPU.

Its arrays are not NumPy's: nothing turns one into the other but `asarray` and `get`, and an op that is given
both is refused. What waits for the device is counted; during a capture it is refused, like products, random
numbers and new memory. Names and keywords that CuPy 14 does not have are not here either.

    with strict_cupy.installed() as cupy:
        x = cupy.asarray(numpy.ones(3))
        with strict_cupy.watched() as waits:
            float(x[0])
        assert waits == ["float"]

What it cannot tell: anything of speed, of streams, of memory, or of how CuPy's kernels round.
"""

import contextlib
import sys
import types
import warnings

import numpy as np

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
# What calls a library that CuPy does not let a stream capture.
LIBRARIES = frozenset(["dot", "einsum", "inner", "kron", "matmul", "outer", "tensordot", "vdot"])


# -- watching ------------------------------------------------------------------------------------------------


class State:
    """What is going on: who watches, and whether a stream captures."""

    watchers: list = []
    capturing = False


def waits(what):
    """Note that the host waits for the device, which a capture forbids."""
    if State.capturing:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing")
    for events in State.watchers:
        events.append(what)


def library(what):
    if State.capturing:
        raise NotImplementedError(
            f"{what}: calling this library's API during stream capture is currently unsupported"
        )


@contextlib.contextmanager
def watched():
    """A list that grows by the name of every wait for the device, implicit or asked for."""
    events = []
    State.watchers.append(events)
    try:
        yield events
    finally:
        State.watchers[:] = [other for other in State.watchers if other is not events]


# -- arrays --------------------------------------------------------------------------------------------------


class Flags:
    """The layout; nothing says whether an array may be written to."""

    def __init__(self, flags):
        self.c_contiguous, self.f_contiguous, self.owndata = (
            flags.c_contiguous,
            flags.f_contiguous,
            flags.owndata,
        )

    def __setattr__(self, name, value):
        if name not in ("c_contiguous", "f_contiguous", "owndata") or name in self.__dict__:
            raise AttributeError(f"'Flags' object has no attribute {name!r} to be set")
        super().__setattr__(name, value)


class ndarray:
    """An array on the device."""

    __slots__ = ("__weakref__", "_host", "base")
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape=(), dtype=float, order="C"):
        allocate()
        self._host, self.base = np.empty(shape, dtype, order), None

    # what does not look at elements

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags))
    device = property(lambda self: cuda.Device(0))
    T = property(lambda self: wrapped(self._host.T, self))
    mT = property(lambda self: wrapped(self._host.mT, self))
    real = property(lambda self: wrapped(self._host.real, self))
    imag = property(lambda self: wrapped(self._host.imag, self))

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
        out[...] = self._host
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
        self._host[...] = array

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
        return wrapped(self._host[index_of(index)], self)

    def __setitem__(self, index, value):
        self._host[index_of(index)] = bare(value)

    def scatter_add(self, slices, value):
        np.add.at(self._host, index_of(slices), bare(value))

    # methods that allocate

    def copy(self, order="C"):
        return wrapped(self._host.copy(order=order))

    __copy__ = copy

    def __deepcopy__(self, memo):
        return self.copy()

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        made = self._host.astype(dtype, order=order, casting=casting or "unsafe", copy=copy)
        return self if made is self._host else wrapped(made)

    def view(self, dtype=None):
        return wrapped(self._host.view() if dtype is None else self._host.view(dtype), self)

    def fill(self, value):
        self._host.fill(bare(value))

    def sort(self, axis=-1, kind=None):
        self._host.sort(axis, kind)


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
        out = kwargs.get("out")
        refuse_keywords(name, kwargs)
        return answered(getattr(self._host, name)(*bare(args), **bare(kwargs)), (self,), out)

    return method


def operator(name):
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
        return answered(getattr(self._host, name)(bare(other)), (self,))

    return method


def unary(name):
    return lambda self: answered(getattr(self._host, name)(), (self,))


def in_place(name):
    def method(self, other):
        if not known(other):
            raise TypeError(f"Unsupported type {type(other)}")
        ufunc = {"iadd": np.add, "isub": np.subtract, "imul": np.multiply, "itruediv": np.true_divide,
                 "ifloordiv": np.floor_divide, "imod": np.remainder, "ipow": np.power, "iand": np.bitwise_and,
                 "ior": np.bitwise_or, "ixor": np.bitwise_xor, "ilshift": np.left_shift,
                 "irshift": np.right_shift}[name]  # fmt: skip
        ufunc(self._host, bare(other), out=self._host)
        return self

    return method


for _name in (*FORWARDED, *MAY_WAIT):
    setattr(ndarray, _name, forwarded(_name))
for _name in OPERATORS:
    setattr(ndarray, f"__{_name}__", operator(f"__{_name}__"))
    setattr(ndarray, f"__r{_name}__", operator(f"__r{_name}__"))
for _name in COMPARISONS:
    setattr(ndarray, f"__{_name}__", operator(f"__{_name}__"))
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
    """An index as NumPy takes it; where a mask picks, the host has to know how many."""
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, ndarray) and part.dtype.kind == "b":
            waits("mask")
    return bare(index)


def arrays_in(x):
    """The arrays in nested sequences and dicts."""
    if isinstance(x, ndarray):
        yield x
    elif isinstance(x, (list, tuple, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from arrays_in(part)


def allocate():
    if State.capturing:
        raise MemoryError(
            "cudaErrorStreamCaptureUnsupported: memory is not allocated while a stream captures"
        )


def wrapped(host, of=None):
    """`host` as an array on the device: a view of `of` if it shares its memory, else new memory."""
    made = object.__new__(ndarray)
    made._host = np.asarray(host)
    if of is not None and np.may_share_memory(made._host, of._host):
        made.base = of.base if of.base is not None else of
    else:
        allocate()
        made.base = None
        if not isinstance(host, np.ndarray) or host.base is not None:
            made._host = np.array(host, order="K")
    return made


def answered(y, given, out=None):
    """What a function of NumPy returned, with arrays on the device for its arrays and numbers."""
    if out is not None:
        return out
    if isinstance(y, (np.ndarray, np.generic, bool, int, float)):
        return wrapped(y, next((a for a in given if np.may_share_memory(np.asarray(y), a._host)), None))
    if isinstance(y, (tuple, list)):
        parts = [answered(part, given) for part in y]
        return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)
    return y


def refuse_keywords(name, kwargs):
    refused = LACKS_KEYWORDS.get(name, frozenset()) & kwargs.keys()
    if refused:
        raise TypeError(f"{name}() got an unexpected keyword argument {min(refused)!r}")


def function(name, of_numpy):
    """NumPy's function for arrays of this module."""

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
        if name == "copyto":
            of_numpy(*bare(args), **bare(kwargs))
            return None
        if name == "meshgrid":
            kwargs.setdefault("copy", True)
        if name in ("stack", "concatenate", "concat", "hstack", "vstack", "column_stack", "dstack"):
            for part in args[0]:
                if not isinstance(part, ndarray):
                    raise TypeError("Only cupy arrays can be concatenated")
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            y = of_numpy(*bare(args), **bare(kwargs))
        return answered(y, given, kwargs.get("out"))

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
        made = of_numpy(value._host, *rest, **kwargs)
        return value if made is value._host else answered(made, (value,))
    if any(True for _ in arrays_in(value)):
        return answered(of_numpy(bare(value), *rest, **kwargs), ())
    allocate()
    host = of_numpy(np.asarray(value), *rest, **kwargs)
    if host.dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    return wrapped(np.array(host))


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
        with np.errstate(all="ignore"):
            y = self._of_numpy(*bare(args), **bare(kwargs))
        out = kwargs.get("out") if len(args) <= self.nin else args[self.nin]
        return answered(y, (), out)

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
            y = getattr(self._of_numpy, method)(*bare(args), **bare(kwargs))
            return None if method == "at" else answered(y, (), kwargs.get("out"))

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


class Device:
    def __init__(self, device=None):
        self.id = 0 if device is None else int(device)
        if self.id != 0:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def use(self):
        pass

    def synchronize(self):
        waits("synchronize")

    def __eq__(self, other):
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self):
        return self.id

    def __repr__(self):
        return f"<CUDA Device {self.id}>"


class Graph:
    def launch(self, stream=None):
        pass


class Stream:
    ptr = 1

    def __init__(self, null=False, non_blocking=False):
        self.null = null

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def begin_capture(self, mode=None):
        if self.null:
            raise RuntimeError("the null stream cannot capture")
        State.capturing = True

    def end_capture(self):
        State.capturing = False
        return Graph()

    def is_capturing(self):
        return State.capturing

    def synchronize(self):
        waits("synchronize")

    def record(self, event=None):
        return event or Event()


class Event:
    """A mark in a stream; what was before it is done at once here."""

    done = True

    def __init__(self, block=False, disable_timing=False):
        pass

    def record(self, stream=None):
        pass

    def synchronize(self):
        waits("synchronize")


cuda = types.ModuleType("cupy.cuda")
vars(cuda).update(
    is_available=lambda: True,
    Device=Device,
    Stream=Stream,
    Event=Event,
    get_current_stream=lambda: Stream(null=True),
)
cuda.runtime = types.ModuleType("cupy.cuda.runtime")
cuda.runtime.getDeviceCount = lambda: 1
cuda.runtime.getDevice = lambda: 0

cupy = module("cupy", np, LACKS)
cupy.ndarray, cupy.ufunc, cupy.cuda = ndarray, ufunc, cuda
ndarray.__module__ = "cupy"  # the package that knows an array's functions
cupy.__version__ = "14.2.0"
cupy.asnumpy = lambda a, *args, **kwargs: a.get() if isinstance(a, ndarray) else np.asarray(a)
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
        "cupy": cupy, "cupy.cuda": cuda, "cupy.linalg": cupy.linalg, "cupyx": cupyx, "cupyx.scipy": cupyx.scipy,
    }  # fmt: skip
    with contextlib.suppress(ImportError):
        modules["cupyx.scipy.special"] = cupyx.scipy.special = special()
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield cupy
    finally:
        State.capturing = False
        for name, old in before.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
