"""Recipes, which the core makes, and the executor that runs them with the backend of any library but NumPy.

No decision is made here: a recipe gives, for every weight array, the operation on its blocks and the scales.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import sqrt
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from modula_rs import _core, arrays
from modula_rs.arrays import Array
from modula_rs.backend import Backend, Batch


class Row(NamedTuple):
    """The part of a recipe for one weight array: an operation on each of its blocks, and a scale for each block, at amount 1."""

    leaf: int
    batch: Batch
    op: str
    size: str
    scales: Any  # NumPy float64, or an array of JAX inside a program for many devices

    def scales_at(self, amount: Any) -> Any:
        """The scales for ``amount``, which is the target norm or the strength of one call."""
        match self.size:
            case "unit":
                return self.scales
            case "target":
                return self.scales * amount
            case "decay":
                return 1 - self.scales * amount
            case "cap":
                return self.scales * amount
            case "stretch":
                with np.errstate(divide="ignore"):  # a strength of 0 stretches without bound
                    return self.scales / (amount if arrays.is_traced(amount) else np.asarray(amount)) ** 0.5
        raise ValueError(f"a recipe has no size {self.size!r}")


class Measure(NamedTuple):
    """A weight array as one atom measures it: block norms are divided by (dual norms multiplied by) one scale for each block."""

    leaf: int
    batch: Batch
    scales: NDArray[np.float64]


class Measures:
    """How the norm, or the dual norm, of every weight array is computed from the norms of its blocks."""

    def __init__(self, core: _core.Measures) -> None:
        self.core = core
        self.rows = [Measure(leaf, Batch(*batch), scales) for leaf, batch, scales in core.rows]


class Recipe:
    """A map for one norm."""

    def __init__(self, core: _core.Recipe) -> None:
        self.core = core
        self.rows = [Row(leaf, Batch(*batch), op, size, scales) for leaf, batch, op, size, scales in core.rows]
        self.bounds = [Measure(leaf, Batch(*batch), scales) for leaf, batch, scales in core.bounds]

    @cached_property
    def largest(self) -> float:
        """A bound on the entries of updates of norm 1; 0 for maps whose results do not grow with the amount."""
        updates = [row for row in self.rows if row.size == "target" and row.scales.size]
        return max((float(row.scales.max()) * sqrt(row.batch.rows * row.batch.cols) for row in updates), default=0.0)


class Rows(Protocol):
    """What :func:`execute` takes: a :class:`Recipe`, or the part of it for what one device holds."""

    rows: list[Row]
    bounds: list[Measure]


def execute(
    backend: Backend, recipe: Rows, w: Sequence[Array], vectors: Sequence[Array | None] | None, amount: Any, accuracy: str
) -> tuple[list[Array], list[Array | None]]:
    """The results of a map, and the singular vector estimates for the next call. Leaves without a row are returned as they are."""
    made, estimates = list(w), [None] * len(w) if vectors is None else list(vectors)
    for op in dict.fromkeys(row.op for row in recipe.rows):
        rows = [row for row in recipe.rows if row.op == op]
        if op == "keep":
            continue
        if op == "multiply":
            results = [_multiply(w[row.leaf], row.scales_at(amount)) for row in rows]
        else:
            blocks = [_blocks(w[row.leaf], row.batch) for row in rows]
            scales = [row.scales_at(amount) for row in rows]
            given = None if vectors is None else [vectors[row.leaf] for row in rows]
            results, found = backend.apply(op, [row.batch for row in rows], blocks, scales, vectors=given, accuracy=accuracy)
            for row, estimate in zip(rows, found, strict=True):
                estimates[row.leaf] = estimate
        for row, result in zip(rows, results, strict=True):
            made[row.leaf] = result.reshape(w[row.leaf].shape)
    return _shrink(backend, recipe.bounds, made, amount), estimates


def norms(backend: Backend, measures: Sequence[Measure], w: Sequence[Array]) -> list[Array]:
    """For every leaf, the largest of block norm over scale; 0 for a leaf without a measure."""
    xp = arrays.namespace_of(list(w))
    return [xp.max(xp.stack(values)) if values else xp.zeros(()) for values in _measured(measures, w, backend.norms, _largest_ratio)]


def dual_norms(backend: Backend, measures: Sequence[Measure], g: Sequence[Array]) -> list[Array]:
    """For every leaf, the sum of scale times dual norm of a block; 0 for a leaf without a measure."""
    xp = arrays.namespace_of(list(g))
    return [sum(values) if values else xp.zeros(()) for values in _measured(measures, g, backend.dual_norms, _weighted_sum)]


def zero_nonfinite(array: Array, stacked: int) -> Array:
    """The array with zeros in place of each copy that holds NaN or infinity; its first ``stacked`` axes count copies."""
    xp = arrays.namespace_of(array)
    axes = tuple(range(stacked, array.ndim))
    return xp.where(xp.isfinite(array).all(axis=axes, keepdims=True), array, xp.zeros((), array.dtype))


def _blocks(array: Array, batch: Batch) -> Array:
    return array.reshape(batch.count, batch.rows, batch.cols)


def _multiply(array: Array, scales: Any) -> Array:
    """Blocks times their scales, in float32 or better."""
    if not array.size:
        return array
    wide = arrays.working_dtype(array.dtype)
    factors = arrays.namespace_of(array).asarray(scales, dtype=wide)
    return (array.reshape(len(factors), -1).astype(wide) * factors[:, None]).astype(array.dtype)


def _measured(measures: Sequence[Measure], w: Sequence[Array], measure: Any, combine: Callable[[Array, Any], Array]) -> list[list[Array]]:
    """The results of ``combine`` on the block norms and scales of every measure, one list for each leaf."""
    values: list[list[Array]] = [[] for _ in w]
    if measures:
        found = measure([each.batch for each in measures], [_blocks(w[each.leaf], each.batch) for each in measures])
        for each, norms in zip(measures, found, strict=True):
            values[each.leaf].append(combine(norms, each.scales))
    return values


def _shrink(backend: Backend, bounds: Sequence[Measure], made: list[Array], amount: Any) -> list[Array]:
    """Shared leaves shrunk to the bounds of their further uses; the scales of the first use are applied already."""
    for leaf, values in enumerate(_measured(bounds, made, backend.norms, _largest_ratio)):
        if values:
            xp = arrays.namespace_of(made[leaf])
            excess = xp.max(xp.stack(values)) / xp.where(xp.asarray(amount) > 0, amount, 1)
            wide = made[leaf].astype(arrays.working_dtype(made[leaf].dtype))
            made[leaf] = (wide / xp.maximum(excess, 1).astype(wide.dtype)).astype(made[leaf].dtype)
    return made


def _largest_ratio(norms: Array, scales: Any) -> Array:
    xp = arrays.namespace_of(norms)
    used = np.flatnonzero(np.asarray(scales) > 0)
    if used.size == 0:
        return xp.zeros((), norms.dtype)
    # Scales may lie beyond the dtype of the norms. Divided by a power of two first, ratios within the dtype are found nevertheless.
    powers = 2.0 ** (np.frexp(scales[used])[1] // 2)
    # A norm of 0 is 0 over any scale, which in the dtype may be 0 too.
    first, second = (xp.where(norms[used] == 0, 1, xp.asarray(part, dtype=norms.dtype)) for part in (powers, scales[used] / powers))
    return (norms[used] / first / second).max()


def _weighted_sum(norms: Array, scales: Any) -> Array:
    used = np.flatnonzero(np.asarray(scales) > 0)  # a block with target 0 is not trained and does not count, even if its norm overflows
    return (norms[used] * arrays.namespace_of(norms).asarray(scales[used], dtype=norms.dtype)).sum()
