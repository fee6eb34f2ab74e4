"""Scale-free arithmetic on batches of blocks (count, rows, cols), with matrix products and elementwise operations only.

Functions take the array module ``xp``: CuPy on any GPU it runs on (products go to cuBLAS or rocBLAS), or NumPy, with which they are tested.
Methods and constants are the same as in `modula_rs.backend.jax` and modula-core, except that matrices are orthogonalised by Newton-Schulz
steps, which need no factorisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modula_rs.constants import (
    DROP_SHARE,
    LANCZOS_LEAST,
    LANCZOS_MOST,
    LANCZOS_TOLERANCE,
    REFINEMENTS,
    RISES,
    SQUARINGS,
    STALE_SHARE,
    VECTORS,
)
from modula_rs.kernels.schedule import Schedule

# ---- blocks ------------------------------------------------------------------------------------------------------------------


def arithmetic(block: Any) -> Any:
    """The block in the precision of the arithmetic: float64 for float64, float32 for all other dtypes."""
    return block if block.dtype == np.float64 else block.astype(np.float32)


def unit_range(xp: Any, x: Any, axes: tuple[int, ...] = (1, 2)) -> tuple[Any, Any]:
    """``(x / p, p)``, where p is a power of two and the largest entry of each block (row) of ``x / p`` is within [1, 2). Zeros have p = 1.

    Non-finite entries give p = infinity, so that they are still non-finite after the division.
    """
    largest = xp.max(xp.abs(x), axis=axes, keepdims=True)
    _, exponent = xp.frexp(xp.where(xp.isfinite(largest), largest, 1))
    power = xp.ldexp(xp.ones_like(largest), exponent - 1)
    power = xp.where(largest == 0, 1, xp.where(xp.isfinite(largest), power, np.inf)).astype(x.dtype)
    return x / power, power


def divide(xp: Any, x: Any, norm: Any) -> Any:
    """``x / norm``, and zero where the norm is zero."""
    zero = norm == 0
    return xp.where(zero, 0, x / xp.where(zero, 1, norm))


def euclidean(xp: Any, x: Any, axes: tuple[int, ...] = (-1,)) -> Any:
    """Square root of the sum of squares over ``axes`` (kept), for entries whose squares neither over- nor underflow."""
    return xp.sqrt(xp.sum(x * x, axis=axes, keepdims=True))


def row_norms(xp: Any, x: Any) -> Any:
    """RMS of every row (last axis kept), for rows of any scale."""
    scaled, power = unit_range(xp, x, (2,))
    return euclidean(xp, scaled) / x.shape[2] ** 0.5 * power


def unit_rows(xp: Any, x: Any) -> Any:
    """Every row divided by its RMS; zero rows stay zero."""
    scaled, _ = unit_range(xp, x, (2,))
    return divide(xp, scaled, euclidean(xp, scaled)) * x.shape[2] ** 0.5


def max_abs(xp: Any, x: Any) -> Any:
    """Largest absolute entry of each block, axes kept; NaN if an entry is not finite."""
    largest = xp.max(xp.abs(x), axis=(1, 2), keepdims=True)
    return xp.where(xp.isfinite(largest), largest, np.nan)


def hashed_start(xp: Any, length: int, dtype: Any) -> Any:
    """Numbers (length,) within [-1/2, 1/2], each a hash of its index: unrelated to any matrix, and equal in all implementations."""
    h = xp.arange(1, length + 1, dtype=np.uint32)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)  # the finaliser of MurmurHash3
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    return (h.astype(np.float64) / 2.0**32 - 0.5).astype(dtype)


def _transposed(xp: Any, x: Any) -> Any:
    return xp.swapaxes(x, 1, 2)


# ---- orthogonalisation -------------------------------------------------------------------------------------------------------


def orthogonalise(xp: Any, x: Any, schedule: Schedule) -> Any:
    """``U V^T`` of each matrix ``U S V^T``, as accurate as the schedule promises; zeros give zeros.

    Entries come within [-2, 2]. The Newton-Schulz steps act on the matrix itself, x <- (a + b R + c R^2) x with R = x x^T. Unlike the
    iteration in Gram space, they carry no rounding from step to step, so float32 products serve singular values down to a thousandth of the
    largest.
    """
    if x.shape[1] > x.shape[2]:
        return _transposed(xp, orthogonalise(xp, _transposed(xp, x), schedule))
    x = divide(xp, x, euclidean(xp, x, (1, 2)))
    for step, (a, b, c) in enumerate(schedule.steps):
        gram = xp.matmul(x, _transposed(xp, x))
        square = xp.matmul(gram, gram)
        if step == 0:  # divided by the Schatten-8 norm of X, which is the fourth root of the Frobenius norm of R^2
            norm = xp.sqrt(euclidean(xp, square, (1, 2)))
            x, gram = divide(xp, x, xp.sqrt(norm)), divide(xp, gram, norm)
            square = divide(xp, square, norm * norm)
        x = a * x + xp.matmul(b * gram + c * square, x)
    return x


def capped(xp: Any, x: Any) -> Any:
    """Each matrix with its singular values above 1 cut down to 1: the Gram matrix has their squares, the large ones to full accuracy."""
    if x.shape[1] > x.shape[2]:
        return _transposed(xp, capped(xp, _transposed(xp, x)))
    finite = xp.all(xp.isfinite(x), axis=(1, 2))[:, None, None]
    known = xp.where(finite, x, 0)
    squares, vectors = xp.linalg.eigh(xp.matmul(known, _transposed(xp, known)))
    excess = 1 - 1 / xp.sqrt(xp.maximum(squares, 1))
    cut = x - xp.matmul(vectors * excess[:, None, :], xp.matmul(_transposed(xp, vectors), known))
    return xp.where(finite, cut, np.nan)


def bent(xp: Any, x: Any, scale: Any) -> Any:
    """Each matrix with its singular values bent: s times ``p + p^3`` with ``p = y - y^3``, where ``y = x / s``.

    A matrix whose largest y is above `RISES`, where p no longer rises, is scaled down to it.
    """
    if x.shape[1] > x.shape[2]:
        return _transposed(xp, bent(xp, _transposed(xp, x), scale))
    x, power = unit_range(xp, x)
    norm, _ = cold_norm(xp, x)
    x = x * xp.minimum(power / scale, divide(xp, xp.full_like(norm, RISES), norm))
    x = x - xp.matmul(xp.matmul(x, _transposed(xp, x)), x)
    return (x + xp.matmul(xp.matmul(x, _transposed(xp, x)), x)) * scale


def top_part(xp: Any, x: Any) -> tuple[Any, Any]:
    """``(s u v^T, s (count, 1, 1))`` of the largest singular value s of each matrix and its vectors."""
    v = _lanczos(xp, x)[:, :, None]
    for _ in range(REFINEMENTS):
        image = xp.matmul(_transposed(xp, x), xp.matmul(x, v))
        v = divide(xp, image, euclidean(xp, image, (1,)))
    image = xp.matmul(x, v)
    return image * _transposed(xp, v), euclidean(xp, image, (1,))


# ---- spectral norms ----------------------------------------------------------------------------------------------------------


def cold_norm(xp: Any, x: Any) -> tuple[Any, Any]:
    """``(norms (count, 1, 1), right singular vector estimates (count, VECTORS, cols))``, the norms within 1 % of the true ones.

    Entries come scaled to a largest one within [1, 2). The first estimate belongs to the largest singular value; the others fill the block
    for later steps of block power iteration. A matrix that is zero or not finite gets zeros.
    """
    vectors = _lanczos(xp, x)
    norm = euclidean(xp, xp.matmul(x, vectors[:, :, None])[:, :, 0])[:, :, None]
    usable = xp.all(xp.isfinite(vectors), axis=1)[:, None, None] & (norm > 0)
    estimates = xp.broadcast_to(_restarts(xp, x), (len(x), VECTORS, x.shape[2])).copy()
    estimates[:, 0] = vectors
    return norm, xp.where(usable, estimates, 0)


def warm_norm(xp: Any, x: Any, vectors: Any) -> tuple[Any, Any]:
    """Norms and estimates after one step of block power iteration. Matrices with zero or stale estimates are searched as in `cold_norm`.

    The host waits for the device once a call, to read whether there are such matrices.
    """
    left = xp.matmul(vectors, _transposed(xp, x))
    before = xp.max(divide(xp, xp.sum(left * left, axis=2), xp.sum(vectors * vectors, axis=2)), axis=1)
    left = xp.matmul(_orthonormalizer(xp, xp.matmul(left, _transposed(xp, left))), left)
    image = xp.matmul(left, x)
    reached = xp.matmul(image, _transposed(xp, image))
    weights, square = _top_eigenpair(xp, reached)
    norm = euclidean(xp, xp.matmul(xp.matmul(weights[:, None, :], left), x))
    right = _orthonormalizer(xp, reached)
    kept = xp.any(right != 0, axis=2)[:, :, None]
    estimates = xp.where(kept, xp.matmul(right, image), _restarts(xp, x))
    estimates = xp.where(square[:, None, None] > 0, estimates, 0)
    stale = ~((before > 0) & (before > STALE_SHARE * square)) & xp.any(x != 0, axis=(1, 2))
    if bool(xp.any(stale)):
        norm[stale], estimates[stale] = cold_norm(xp, x[stale])
    return norm, estimates


def _restarts(xp: Any, x: Any) -> Any:
    """Unit vectors (VECTORS, cols) unrelated to any matrix, which replace dropped directions."""
    vectors = hashed_start(xp, VECTORS * x.shape[2], x.dtype).reshape(VECTORS, x.shape[2])
    return vectors / euclidean(xp, vectors)


def _orthonormalizer(xp: Any, gram: Any) -> Any:
    """Rows c_i (count, i, n) that combine the first i + 1 directions, with ``c_i^T G c_j = 1`` for i = j, else 0; zeros for one dropped."""
    rows: list[Any] = []
    for j in range(gram.shape[1]):
        row = xp.zeros_like(gram[:, 0])
        row[:, j] = 1
        for known in rows:
            row = row - _form(xp, known, gram, row)[:, None] * known
        square = _form(xp, row, gram, row)
        lost = ~(square > DROP_SHARE * gram[:, j, j])
        rows.append(xp.where(lost[:, None], 0, row / xp.sqrt(xp.where(lost, 1, square))[:, None]))
    return xp.stack(rows, axis=1)


def _form(xp: Any, a: Any, m: Any, b: Any) -> Any:
    """``a^T M b`` of each matrix."""
    return xp.sum(a * xp.matmul(m, b[:, :, None])[:, :, 0], axis=1)


def _lanczos(xp: Any, x: Any) -> Any:
    """Unit vectors (count, cols): leading Ritz vectors of ``x^T x``, with full reorthogonalisation (Golub and Van Loan, section 10.1)."""
    count, _, cols = x.shape
    most = min(LANCZOS_MOST, cols)
    eps = np.finfo(x.dtype).eps
    start = hashed_start(xp, cols, x.dtype)
    basis, projected = xp.zeros((count, most + 1, cols), x.dtype), xp.zeros((count, most + 1, most + 1), x.dtype)
    basis[:, 0] = start / euclidean(xp, start)
    weights, done = xp.zeros((count, most), x.dtype), xp.zeros(count, bool)
    for step in range(most):
        newest = basis[:, step, :, None]
        image = xp.matmul(_transposed(xp, x), xp.matmul(x, newest))
        projected[:, step, step] = xp.sum(image * newest, axis=(1, 2))
        known = basis[:, : step + 1]
        for _ in range(2):
            image = image - xp.matmul(_transposed(xp, known), xp.matmul(known, image))
        length = euclidean(xp, image[:, :, 0])[:, 0]
        ritz, value = _top_eigenpair(xp, projected[:, : step + 1, : step + 1])
        converged = (length * xp.abs(ritz[:, step]) <= LANCZOS_TOLERANCE * value) & (step + 1 >= LANCZOS_LEAST)
        # A matrix that is done keeps its weights. Its further basis vectors are zeros, and get no weight.
        weights[:, : step + 1] = xp.where(done[:, None], weights[:, : step + 1], ritz)
        done = done | converged | (length <= 4 * eps * value) | ~xp.isfinite(value)
        if step + 1 >= LANCZOS_LEAST and bool(xp.all(done)):
            break
        beside = xp.where(done, 0, length)
        basis[:, step + 1] = divide(xp, xp.where(done[:, None], 0, image[:, :, 0]), beside[:, None])
        projected[:, step, step + 1] = projected[:, step + 1, step] = beside
    vectors = xp.matmul(weights[:, None, :], basis[:, :most])[:, 0]
    return divide(xp, vectors, euclidean(xp, vectors))


def _top_eigenpair(xp: Any, symmetric: Any) -> tuple[Any, Any]:
    """Unit eigenvector (count, n) and value (count,) of the largest eigenvalue of positive semidefinite matrices, by repeated squaring."""
    power = symmetric
    for _ in range(SQUARINGS):
        # The largest entry of a positive semidefinite matrix is on its diagonal.
        power = divide(xp, power, xp.max(xp.diagonal(power, axis1=1, axis2=2), axis=1)[:, None, None])
        power = xp.matmul(power, power)
    column = xp.argmax(xp.diagonal(power, axis1=1, axis2=2), axis=1)
    vector = xp.take_along_axis(power, column[:, None, None], axis=1)[:, 0, :]
    vector = divide(xp, vector, euclidean(xp, vector))
    return vector, _form(xp, vector, symmetric, vector)
