"""The maps for a backend that knows only batches of blocks: what the plan says, said in its terms."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.backend import Batch
from modula_rs.norm.table import Plan


class Blockwise:
    """The maps on a whole plan, built from a backend's functions on batches of blocks (see :mod:`modula_rs.backend`)."""

    def __init__(self, blocks: ModuleType) -> None:
        self.blocks = blocks

    def norms(self, plan: Plan, w: Sequence[Any]) -> list[Any]:
        """For every leaf, the largest of norm over target; 0 for custom leaves."""
        views = [(index, plan.batches[index], s) for index, s in enumerate(plan.block_scales)]
        for index, uses in plan.other_uses.items():
            views += [(index, batch, np.full(batch.count, unit * target)) for batch, unit, target in uses]
        values = self._values(plan, w, views, self.blocks.norms, _largest_ratio)
        xp = arrays.namespace_of(list(w))
        return [xp.max(xp.stack(parts)) if len(parts) > 1 else parts[0] for parts in values]

    def dual_norms(self, plan: Plan, g: Sequence[Any]) -> list[Any]:
        """For every leaf, the sum of target times dual norm; 0 for custom leaves."""
        views = [(index, plan.batches[index], s) for index, s in enumerate(plan.block_scales)]
        return [parts[0] for parts in self._values(plan, g, views, self.blocks.dual_norms, _weighted_sum)]

    def normalize(self, plan: Plan, w: Sequence[Any], target_norm: Any, nonfinite: str) -> list[Any]:
        """Every leaf brought to its target norm, from a cold start."""
        return self.normalize_warm(plan, w, target_norm, nonfinite, None)[0]

    def normalize_warm(
        self, plan: Plan, w: Sequence[Any], target_norm: Any, nonfinite: str, vectors: list[Any] | None
    ) -> tuple[list[Any], list[Any]]:
        """Every leaf brought to its target norm, and the estimates of the singular vectors after one more power step."""
        w = _screen(plan, w, nonfinite)
        scales = [s * target_norm for s in plan.block_scales]
        native = _native(plan)
        given = None if vectors is None else [vectors[i] for i in native]
        made, given = self.blocks.normalize(
            [plan.batches[i] for i in native], _batches(plan, w, native), [scales[i] for i in native], given
        )
        estimates: list[Any] = [None] * len(w)
        for index, vector in zip(native, given, strict=True):
            estimates[index] = vector
        return self._shrink(plan, _unbatch(w, native, made), target_norm), estimates

    def dualize(self, plan: Plan, g: Sequence[Any], target_norm: Any, steps: int | None, nonfinite: str) -> list[Any]:
        """The steepest direction."""
        g = _screen(plan, g, nonfinite)
        native = _native(plan)
        scales = [plan.block_scales[i] * target_norm for i in native]
        made = self.blocks.dualize([plan.batches[i] for i in native], _batches(plan, g, native), scales, steps)
        return self._shrink(plan, _unbatch(g, native, made), target_norm)

    def project(self, plan: Plan, w: Sequence[Any], nonfinite: str) -> list[Any]:
        """Matrices to semi-orthogonal at their scale, rows of tables to RMS 1; vectors as they are."""
        w = _screen(plan, w, nonfinite)
        chosen = [i for i in _native(plan) if plan.batches[i].geometry in ("spectral", "row_rms")]
        scales = [np.full(plan.batches[i].count, plan.units[i]) for i in chosen]
        made = self.blocks.project([plan.batches[i] for i in chosen], _batches(plan, w, chosen), scales)
        return _unbatch(w, chosen, made)

    def regularize(self, plan: Plan, w: Sequence[Any], strength: Any) -> list[Any]:
        """Decay by strength times target; rows of tables to RMS 1."""
        xp = arrays.namespace_of(list(w))
        tables = [i for i, batch in enumerate(plan.batches) if batch.geometry == "row_rms"]
        unit = [np.ones(plan.batches[i].count) for i in tables]
        made, _ = self.blocks.normalize([plan.batches[i] for i in tables], _batches(plan, w, tables), unit, None)
        result = _unbatch(w, tables, made)
        for index, (array, targets) in enumerate(zip(w, plan.targets, strict=True)):
            if index not in tables:
                wide = arrays.working_dtype(array.dtype)
                factors = xp.asarray(1 - strength * targets, dtype=wide)
                parts = array.reshape(len(targets), -1).astype(wide) if array.size else array
                result[index] = (parts * factors[:, None]).astype(array.dtype).reshape(array.shape) if array.size else array
        return result

    def _values(self, plan: Plan, w: Sequence[Any], views: list[tuple[int, Batch, Any]], measure: Any, combine: Any) -> list[list[Any]]:
        """What ``combine`` makes of the blocks' measures and scales, one list for each leaf."""
        views = [view for view in views if view[1].geometry != "custom"]
        batches = [w[index].reshape(batch.count, batch.rows, batch.cols) for index, batch, _ in views]
        measured = measure([batch for _, batch, _ in views], batches)
        values: list[list[Any]] = [[] for _ in w]
        for (index, _, scales), found in zip(views, measured, strict=True):
            values[index].append(combine(found, scales))
        zero = arrays.namespace_of(list(w)).zeros(()) if len(w) else 0.0
        return [parts or [zero] for parts in values]

    def _shrink(self, plan: Plan, w: list[Any], target_norm: Any) -> list[Any]:
        """Shared leaves brought within the target of every further use; their first use's norm is filled already."""
        if not plan.other_uses:
            return w
        xp = arrays.namespace_of(w)
        views = [
            (index, batch, np.full(batch.count, unit * target)) for index, uses in plan.other_uses.items() for batch, unit, target in uses
        ]
        excess = self._values(plan, w, views, self.blocks.norms, _largest_ratio)
        for index in plan.other_uses:
            over = xp.max(xp.stack(excess[index])) / xp.where(xp.asarray(target_norm) > 0, target_norm, 1)
            wide = w[index].astype(arrays.working_dtype(w[index].dtype))
            w[index] = (wide / xp.maximum(over, 1).astype(wide.dtype)).astype(w[index].dtype)
        return w


def _native(plan: Plan) -> list[int]:
    return [index for index, batch in enumerate(plan.batches) if batch.geometry != "custom"]


def _batches(plan: Plan, w: Sequence[Any], chosen: list[int]) -> list[Any]:
    return [w[i].reshape(plan.batches[i].count, plan.batches[i].rows, plan.batches[i].cols) for i in chosen]


def _unbatch(w: Sequence[Any], chosen: list[int], made: list[Any]) -> list[Any]:
    result = list(w)
    for index, array in zip(chosen, made, strict=True):
        result[index] = array.reshape(w[index].shape)
    return result


def _screen(plan: Plan, w: Sequence[Any], nonfinite: str) -> Sequence[Any]:
    """The arrays with every copy that is not finite zeroed, if that was asked for."""
    if nonfinite != "zero":
        return w
    return [screen(array, len(stack)) for array, stack in zip(w, plan.stacks, strict=True)]


def screen(array: Any, stacked: int) -> Any:
    """The array with every copy that holds NaN or infinity zeroed; its first ``stacked`` axes count copies."""
    xp = arrays.namespace_of(array)
    axes = tuple(range(stacked, array.ndim))
    return xp.where(xp.isfinite(array).all(axis=axes, keepdims=True), array, xp.zeros((), array.dtype))


def _largest_ratio(norms: Any, scales: Any) -> Any:
    xp = arrays.namespace_of(norms)
    used = np.flatnonzero(np.asarray(scales) > 0)
    if used.size == 0:
        return xp.zeros((), norms.dtype)
    return (norms[used] / xp.asarray(scales[used], dtype=norms.dtype)).max()


def _weighted_sum(norms: Any, scales: Any) -> Any:
    used = np.flatnonzero(np.asarray(scales) > 0)  # what is not trained drops out, even where its norm overflows
    return (norms[used] * arrays.namespace_of(norms).asarray(scales[used], dtype=norms.dtype)).sum()
