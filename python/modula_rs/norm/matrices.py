"""Functions of single matrices, or of stacks of them, in any array library."""

from __future__ import annotations

import math
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
    norm = _norm(1, count, rows, cols)
    name = "project" if accuracy == "exact" else "dualize"
    level = "standard" if accuracy == "exact" else accuracy
    made, _ = maps.apply(norm, name, [W.reshape(count, rows, cols)], what="matrix", accuracy=level, nonfinite=nonfinite)
    return made[0].reshape(W.shape)


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
    library = arrays.library(W)
    if library == "numpy":
        norm = _norm(count, 1, rows, cols)
        values = in_rust.measure(norm.core, norm.measures.core, list(W.reshape(count, 1, rows, cols)), dual=False)
        return (np.array(values) / max(count, 1)).astype(arrays.working_dtype(W.dtype)).reshape(stack)[()]
    (values,) = maps._backend(str(library)).norms([Batch("spectral", count, rows, cols)], [W.reshape(count, rows, cols)])
    return values.reshape(stack)


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


@lru_cache(maxsize=256)
def _norm(leaves: int, count: int, rows: int, cols: int) -> Norm:
    """The norm of ``leaves`` arrays of ``count`` matrices: the largest singular value of any matrix, times ``leaves``."""
    row = ("matrix", "Linear", [count, rows, cols], 1, ("spectral", count, rows, cols), 1.0, 1.0, 1.0, None)
    return Norm(_core.Norm.of_rows([row] * leaves))
