"""Functions of single matrices, or of stacks of them, in any array library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from modula_rs import _core, arrays
from modula_rs.arrays import Array
from modula_rs.backend import Batch
from modula_rs.backend import numpy as in_rust
from modula_rs.checks import shown
from modula_rs.norm import maps
from modula_rs.norm.checks import ACCURACIES, check_nonfinite
from modula_rs.norm.running import Running, placed_arrays, placements
from modula_rs.norm.table import Norm


def orthogonalize(W: Array, *, accuracy: str = "exact", nonfinite: str = "raise") -> Array:
    """``U V^T`` of every matrix ``U S V^T``: the nearest matrix with orthonormal rows, or columns if it is tall. Zeros stay zeros.

    Args:
        W: a matrix (rows, columns), or a stack (..., rows, columns), of NumPy, JAX or CuPy, in float64, float32, float16 or bfloat16.
        accuracy: ``"exact"`` to rounding, where singular values that are zero to rounding stay zero; or a level of
            :meth:`Module.dualize`, which is faster: ``"standard"`` brings singular values within 0.01 of 1.
        nonfinite: see :meth:`Module.normalize`.

    Returns:
        An array of the shape, dtype and library of ``W``.

    Raises:
        TypeError: ``W`` is no array.
        ValueError: fewer than two axes, another dtype, or an accuracy of another name.
        FloatingPointError: NaN or infinity in ``W``, with ``nonfinite="raise"``.

    Source: the orthogonal polar factor; Higham, "Functions of Matrices" (2008), chapter 8.

    >>> import numpy as np, modula_rs as mr
    >>> Q = mr.orthogonalize(np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]]))
    >>> bool(np.allclose(Q @ Q.T, np.eye(2)))
    True
    """
    if accuracy != "exact" and accuracy not in ACCURACIES:
        raise ValueError(f"accuracy must be one of 'exact', {', '.join(map(repr, ACCURACIES))}, got {accuracy!r}")
    check_nonfinite(nonfinite)
    count, rows, cols = _stack(W)
    if not W.size:
        return W
    name = "project" if accuracy == "exact" else "dualize"
    level = "standard" if accuracy == "exact" else accuracy
    stack = _Stack(W.shape[:-2], rows, cols)
    # The matrices share the target norm of an update.
    return stack._map(name, [W], count, what="matrix", accuracy=level, nonfinite=nonfinite)[0]


def spectral_norm(W: Array) -> Any:
    """The largest singular value of every matrix, within 1 %; NaN for a matrix that is not finite.

    Args:
        W: a matrix (rows, columns), or a stack (..., rows, columns), of NumPy, JAX or CuPy, in float64, float32, float16 or bfloat16.

    Returns:
        A scalar, or an array of shape (...) for a stack, in the library of ``W``: in float64 for float64, else in float32.

    Raises:
        TypeError: ``W`` is no array.
        ValueError: fewer than two axes, or another dtype.

    Source: the Lanczos method; Golub and Van Loan, "Matrix Computations", section 10.1.

    >>> import numpy as np, modula_rs as mr
    >>> mr.spectral_norm(np.array([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]]])).round(6)
    array([4., 2.])
    """
    count, rows, cols = _stack(W)
    stack = tuple(W.shape[:-2])
    if arrays.library(W) == "numpy":
        norm = _norm(count, 1, rows, cols)
        values = in_rust.measure(norm.core, norm.measures.core, list(W.reshape(count, 1, rows, cols)), dual=False)
        return (np.array(values) / max(count, 1)).astype(arrays.working_dtype(W.dtype)).reshape(stack)[()]
    return _Stack(stack, rows, cols).norms(W).reshape(stack)


def _stack(W: Any) -> tuple[int, int, int]:
    """(number of matrices, rows, columns) of an array, checked."""
    if arrays.library(W) is None:
        raise TypeError(f"matrices must be an array of NumPy, JAX or CuPy, got {shown(W)}")
    if W.ndim < 2:
        raise ValueError(f"matrices must have shape (..., rows, columns), got {tuple(W.shape)}")
    if arrays.dtype_name(W.dtype) not in arrays.DTYPES:
        raise ValueError(f"matrices must be {', '.join(arrays.DTYPES)}, got {arrays.dtype_name(W.dtype)}")
    *stack, rows, cols = W.shape
    return math.prod(stack), rows, cols


class _Stack(Running[list[Array]]):
    """Matrices of one array (..., rows, cols) as the only leaf of a norm, whose copies they are."""

    output_axis, rows = 1, range(1)

    def __init__(self, stack: tuple[int, ...], rows: int, cols: int) -> None:
        self._batch = Batch("spectral", math.prod(stack), rows, cols)
        self._shape = (*stack, rows, cols)
        self._views = [self]

    @property
    def norm_table(self) -> Norm:
        return _norm_of_copies(*self._batch[1:4])

    def lay(self, name: str = "") -> Any:
        """See :class:`modula_rs.norm.views.View`."""
        return placements().plain(self._shape, self._batch)

    def open(self, array: Array, name: str = "") -> Sequence[Array]:
        """See :class:`modula_rs.norm.views.View`."""
        return [array.reshape(self.norm_table.leaves[0].shape)]

    def close(self, leaves: Sequence[Array], array: Array, name: str = "") -> Array:
        """See :class:`modula_rs.norm.views.View`."""
        return leaves[0].reshape(array.shape)

    def norms(self, W: Array) -> Any:
        """The norm of every matrix, (count,)."""
        if W.size and (layout := self._layout([W], None, "matrix")) is not None:
            return placed_arrays().block_norms(self.norm_table, layout, [W])
        library, batch = str(arrays.library(W)), self._batch
        return maps._backend(library).norms([batch], [W.reshape(batch.count, batch.rows, batch.cols)])[0]


@lru_cache(maxsize=256)
def _norm_of_copies(count: int, rows: int, cols: int) -> Norm:
    return Norm(_core.Norm.of_rows([("matrix", "Linear", [rows, cols], count, ("spectral", 1, rows, cols), 1.0, 1.0, 1.0, None)]))


@lru_cache(maxsize=256)
def _norm(leaves: int, count: int, rows: int, cols: int) -> Norm:
    """The norm of ``leaves`` arrays of ``count`` matrices: the largest singular value of any matrix, times ``leaves``."""
    row = ("matrix", "Linear", [count, rows, cols], 1, ("spectral", count, rows, cols), 1.0, 1.0, 1.0, None)
    return Norm(_core.Norm.of_rows([row] * leaves))
