"""Steepest directions that stay, to first order, on the manifold of the weights: semi-orthogonal matrices, and rows on spheres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Array, Weights
from modula_rs.norm import maps
from modula_rs.norm.checks import check_weights
from modula_rs.norm.matrices import orthogonalize
from modula_rs.norm.table import Norm

#: A number of the whole of each row, from the numbers of the parts that this device holds.
Whole = Callable[[Array], Array]
#: Geometries of arrays whose directions must be tangent; all others move freely.
CURVED = ("spectral", "row_rms")


def tangent(norm: Norm, g: Sequence[Array], w: Sequence[Array], target_norm: Any, nonfinite: str) -> Weights:
    """For each leaf, the direction of the largest inner product with ``g`` among those of its target norm that are tangent at ``w``."""
    check_weights(norm.leaves, g, "gradient")
    check_weights(norm.leaves, w, "weight")
    made = maps.zero_nonfinite(norm, g) if nonfinite == "zero" else list(g)
    free = [leaf for leaf, batch in enumerate(norm.batches) if batch.geometry not in CURVED]
    directions, _ = maps.apply(norm.part(free), "dualize", [made[leaf] for leaf in free], what="gradient")
    for leaf, direction in zip(free, directions, strict=True):
        made[leaf] = direction
    for leaf, batch in enumerate(norm.batches):
        if leaf not in free and batch.count:
            find = on_stiefel if batch.geometry == "spectral" else on_spheres
            gradient, weight = (array.reshape(batch.count, batch.rows, batch.cols) for array in (made[leaf], w[leaf]))
            made[leaf] = find(arrays.namespace_of(gradient), gradient, weight).reshape(g[leaf].shape)
    return maps.apply(norm, "normalize", made, target_norm, what="update")[0]


def on_spheres(xp: Any, g: Array, w: Array, largest: Whole = lambda x: x, total: Whole = lambda x: x) -> Array:
    """The part of each row of ``g`` that is orthogonal to the row of ``w``; :func:`tangent` brings it to its norm.

    largest, total: the largest of numbers, and their sum, over the devices that hold parts of the rows.
    """
    wide = arrays.working_dtype(g.dtype)
    x, y = (_scaled(xp, array.astype(wide), -1, largest) for array in (g, w))
    square = total((y * y).sum(-1, keepdims=True))
    return (x - y * (total((x * y).sum(-1, keepdims=True)) / xp.where(square > 0, square, 1))).astype(g.dtype)


def on_stiefel(xp: Any, g: Array, w: Array, basis: Callable[[Array], Array] | None = None) -> Array:
    """The steepest tangent directions at semi-orthogonal matrices, of spectral norm 1; NaN where ``g`` is not finite.

    basis: orthonormal columns for each matrix of a stack, by default of `numpy.linalg.qr`.
    """
    wide = arrays.working_dtype(g.dtype)
    known = xp.all(xp.isfinite(g), axis=(1, 2), keepdims=True)
    found = _steepest(xp, xp.where(known, g, 0).astype(wide), w.astype(wide), basis or (lambda x: xp.linalg.qr(x)[0]))
    return xp.where(known, found, xp.nan).astype(g.dtype)


def _steepest(xp: Any, g: Array, w: Array, basis: Callable[[Array], Array]) -> Array:
    """The directions of :func:`on_stiefel`.

    Let W have orthonormal columns, and Q the columns that complete them where G needs it. A tangent vector is ``A = W K + Q B`` with K
    skew, so [K; B] are the first columns of a skew matrix, and every skew [K; B] of norm 1 can be completed to a skew matrix of norm 1
    (Krein's theorem on extensions of symmetric contractions). With ``<G, A> = <K0, K> + <R, B>``, K0 the skew part of ``W^T G`` and
    ``R = Q^T G``, the steepest A thus comes from the steepest skew matrix for ``F = [[K0, -R^T / 2], [R / 2, 0]]``: its polar factor.
    """
    if w.shape[1] < w.shape[2]:
        return xp.swapaxes(_steepest(xp, xp.swapaxes(g, 1, 2), xp.swapaxes(w, 1, 2), basis), 1, 2)
    n = w.shape[2]
    g, w = _scaled(xp, g, (1, 2)), _unit_columns(xp, w)
    transposed = xp.swapaxes(w, 1, 2)
    along = xp.matmul(transposed, g)
    outside = g - xp.matmul(w, along)
    beside = basis(xp.concatenate([w, outside], axis=2))[:, :, n:]
    rest = xp.matmul(xp.swapaxes(beside, 1, 2), outside) / 2
    skew = (along - xp.swapaxes(along, 1, 2)) / 2
    empty = xp.zeros((len(w), rest.shape[1], rest.shape[1]), rest.dtype)
    upper = xp.concatenate([skew, -xp.swapaxes(rest, 1, 2)], axis=2)
    whole = xp.concatenate([upper, xp.concatenate([rest, empty], axis=2)], axis=1)
    turned = orthogonalize(whole, nonfinite="propagate")[:, :, :n]
    return xp.matmul(xp.concatenate([w, beside], axis=2), turned)


def _unit_columns(xp: Any, w: Array) -> Array:
    """Semi-orthogonal matrices of any scale at scale 1: divided by the RMS of their singular values."""
    w = _scaled(xp, w, (1, 2))
    size = xp.sqrt((w * w).sum((1, 2), keepdims=True) / w.shape[2])
    return w / xp.where(size > 0, size, 1)


def _scaled(xp: Any, x: Array, axes: Any, largest: Whole = lambda x: x) -> Array:
    """Divided by the largest entry, so that squares stay in range."""
    entry = largest(xp.abs(x).max(axis=axes, keepdims=True))
    return x / xp.where(entry > 0, entry, 1)
