"""Steepest directions that stay, to first order, on the manifold of the weights: semi-orthogonal matrices, and rows on spheres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Array, Weights
from modula_rs.norm import maps
from modula_rs.norm.checks import check_weights
from modula_rs.norm.matrices import orthogonalize
from modula_rs.norm.table import Norm


def tangent(norm: Norm, g: Sequence[Array], w: Sequence[Array], target_norm: Any, nonfinite: str) -> Weights:
    """For each leaf, the direction of the largest inner product with ``g`` among those of its target norm that are tangent at ``w``."""
    check_weights(norm.leaves, w, "weight")
    free, _ = maps.apply(norm, "dualize", g, what="gradient", nonfinite=nonfinite)
    made = list(free)
    for index, batch in enumerate(norm.batches):
        if batch.geometry not in ("spectral", "row_rms") or not batch.count:
            continue
        wide = arrays.working_dtype(g[index].dtype)
        gradient, weight = (array.astype(wide).reshape(batch.count, batch.rows, batch.cols) for array in (g[index], w[index]))
        find = _on_stiefel if batch.geometry == "spectral" else _on_spheres
        xp = arrays.namespace_of(gradient)
        # Where nothing is finite, or all is zero, the free direction says what the caller asked for.
        kept = xp.all(xp.isfinite(gradient), axis=(1, 2), keepdims=True)
        found = find(xp, xp.where(kept, gradient, 0), weight)
        unconstrained = free[index].astype(wide).reshape(found.shape)
        made[index] = xp.where(kept, found, unconstrained).reshape(g[index].shape).astype(g[index].dtype)
    return maps.apply(norm, "normalize", made, target_norm, what="update")[0]


def _on_spheres(xp: Any, g: Array, w: Array) -> Array:
    """The part of each row of ``g`` that is orthogonal to the row of ``w``; :func:`tangent` brings it to its norm."""
    g, w = _scaled(xp, g, -1), _scaled(xp, w, -1)
    square = (w * w).sum(-1, keepdims=True)
    return g - w * ((g * w).sum(-1, keepdims=True) / xp.where(square > 0, square, 1))


def _on_stiefel(xp: Any, g: Array, w: Array) -> Array:
    """The steepest tangent directions at semi-orthogonal matrices, of spectral norm 1.

    Let W have orthonormal columns, and Q the columns that complete them where G needs it. A tangent vector is ``A = W K + Q B`` with K
    skew, so [K; B] are the first columns of a skew matrix, and every skew [K; B] of norm 1 can be completed to a skew matrix of norm 1
    (Krein's theorem on extensions of symmetric contractions). With ``<G, A> = <K0, K> + <R, B>``, K0 the skew part of ``W^T G`` and
    ``R = Q^T G``, the steepest A thus comes from the steepest skew matrix for ``F = [[K0, -R^T / 2], [R / 2, 0]]``: its polar factor.
    """
    if w.shape[1] < w.shape[2]:
        return xp.swapaxes(_on_stiefel(xp, xp.swapaxes(g, 1, 2), xp.swapaxes(w, 1, 2)), 1, 2)
    n = w.shape[2]
    g, w = _scaled(xp, g, (1, 2)), _unit_columns(xp, w)
    transposed = xp.swapaxes(w, 1, 2)
    along = xp.matmul(transposed, g)
    outside = g - xp.matmul(w, along)
    basis = xp.linalg.qr(xp.concatenate([w, outside], axis=2))[0][:, :, n:]
    rest = xp.matmul(xp.swapaxes(basis, 1, 2), outside) / 2
    skew = (along - xp.swapaxes(along, 1, 2)) / 2
    empty = xp.zeros((len(w), rest.shape[1], rest.shape[1]), rest.dtype)
    upper = xp.concatenate([skew, -xp.swapaxes(rest, 1, 2)], axis=2)
    whole = xp.concatenate([upper, xp.concatenate([rest, empty], axis=2)], axis=1)
    turned = orthogonalize(whole, nonfinite="propagate")[:, :, :n]
    return xp.matmul(xp.concatenate([w, basis], axis=2), turned)


def _unit_columns(xp: Any, w: Array) -> Array:
    """Semi-orthogonal matrices of any scale at scale 1: divided by the RMS of their singular values."""
    w = _scaled(xp, w, (1, 2))
    size = xp.sqrt((w * w).sum((1, 2), keepdims=True) / w.shape[2])
    return w / xp.where(size > 0, size, 1)


def _scaled(xp: Any, x: Array, axes: Any) -> Array:
    """Divided by the largest entry, so that squares stay in range."""
    largest = xp.abs(x).max(axis=axes, keepdims=True)
    return x / xp.where(largest > 0, largest, 1)
