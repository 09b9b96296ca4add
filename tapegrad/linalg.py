"""`tg.linalg`: linear algebra under the names of `numpy.linalg`, for arrays and Variables, and stacks of matrices.

The functions are those of `ops`. Four are written here, whose parameters in `numpy.linalg` are others than in `numpy`.
"""

from __future__ import annotations

from typing import Any

from .errors import MatrixError, ShapeError, describe
from .ops import linalg as _products
from .ops import operands as _operands
from .ops import shape as _shape
from .ops.determinant import SlogdetResult as SlogdetResult
from .ops.determinant import det as det
from .ops.determinant import slogdet as slogdet
from .ops.factor import EighResult as EighResult
from .ops.factor import QRResult as QRResult
from .ops.factor import SVDResult as SVDResult
from .ops.factor import cholesky as cholesky
from .ops.factor import eig as eig
from .ops.factor import eigh as eigh
from .ops.factor import eigvals as eigvals
from .ops.factor import eigvalsh as eigvalsh
from .ops.factor import lstsq as lstsq
from .ops.factor import qr as qr
from .ops.factor import svd as svd
from .ops.factor import svdvals as svdvals
from .ops.linalg import matmul as matmul
from .ops.linalg import multi_dot as multi_dot
from .ops.linalg import tensordot as tensordot
from .ops.linalg import vecdot as vecdot
from .ops.matrix import inv as inv
from .ops.matrix import matrix_power as matrix_power
from .ops.matrix import pinv as pinv
from .ops.matrix import solve as solve
from .ops.matrix import tensorinv as tensorinv
from .ops.matrix import tensorsolve as tensorsolve
from .ops.norm import cond as cond
from .ops.norm import matrix_norm as matrix_norm
from .ops.norm import matrix_rank as matrix_rank
from .ops.norm import norm as norm
from .ops.norm import vector_norm as vector_norm
from .ops.shape import matrix_transpose as matrix_transpose

LinAlgError = MatrixError


def cross(x1: Any, x2: Any, *, axis: int = -1) -> Any:
    """Cross products of the vectors on `axis`. Shapes: (..., 3), (..., 3) -> (..., 3). Raises ShapeError for other lengths."""
    return _products.cross(x1, x2, axis=axis)


def diagonal(x: Any, *, offset: int = 0) -> Any:
    """The diagonals of the matrices on the last two axes. Shapes: (..., m, n) -> (..., min(m, n)) for offset 0."""
    return _shape.diagonal(x, offset, -2, -1)


def outer(x1: Any, x2: Any) -> Any:
    """All products of an element of one vector with one of the other. Shapes: (m,), (n,) -> (m, n). Raises ShapeError for others."""
    x1, x2 = _operands.arrayed(x1), _operands.arrayed(x2)
    if x1.ndim != 1 or x2.ndim != 1:
        raise ShapeError(
            f"outer: expected two vectors. tg.outer flattens its arguments.\n  x1: {describe(x1)}      x2: {describe(x2)}"
        )
    return _products.outer(x1, x2)


def trace(x: Any, *, offset: int = 0) -> Any:
    """The sums of the diagonals of the matrices on the last two axes. Shapes: (..., m, n) -> (...)."""
    return _products.trace(x, offset, -2, -1)
