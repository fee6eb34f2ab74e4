"""The maps on CuPy arrays with nothing but CuPy's own products and elementwise operations: for every GPU that CuPy runs on.

The reference for every kernel, and what runs where no kernel is proved, for float64 arrays, and for `project`. Equal matrices of several
leaves go through one batched product. Float32 and 16-bit arrays are computed in float32 (``CUPY_TF32=1`` would loosen every promise),
float64 arrays in float64, and `project` always in float64. The same functions run on NumPy arrays, by which they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modula_rs.arrays import namespace_of
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend.cupy import arithmetic as blocks
from modula_rs.kernels.schedule import EXACT, schedule

Arrays = Sequence[Any]
Batches = Sequence[Batch]


def norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """Norm of every block, (count,) for each leaf, float32 (float64 for float64 leaves); 0 for empty blocks."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = blocks.unit_range(xp, x)
        return (blocks.cold_norm(xp, x)[0] * power)[:, 0, 0]

    return _measured(
        xp, batches, arrays, spectral=spectral, row_rms=lambda x: xp.max(blocks.row_norms(xp, x), axis=(1, 2)),
        rms=lambda x: blocks.row_norms(xp, x)[:, 0, 0], max_abs=lambda x: blocks.max_abs(xp, x)[:, 0, 0],
    )  # fmt: skip


def dual_norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """Dual norm of every block, (count,) for each leaf. Spectral: <g, U V^T>, with U V^T as `dualize` finds it."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = blocks.unit_range(xp, x)
        return xp.sum(x * blocks.orthogonalise(xp, x, schedule("float32", None)), axis=(1, 2)) * power[:, 0, 0]

    return _measured(
        xp, batches, arrays, spectral=spectral, row_rms=lambda x: xp.sum(blocks.row_norms(xp, x), axis=(1, 2)) * x.shape[2],
        rms=lambda x: blocks.row_norms(xp, x)[:, 0, 0] * x.shape[2], max_abs=lambda x: xp.sum(xp.abs(x), axis=(1, 2)),
    )  # fmt: skip


def dualize(batches: Batches, arrays: Arrays, scales: Arrays, steps: int | None = None) -> list[Any]:
    """Steepest direction of every block times its scale. ``steps``: the accuracy, see `modula_rs.kernels.schedule.schedule`."""
    xp = namespace_of(list(arrays))
    plan = schedule("float32", steps)

    def spectral(x: Any, scale: Any) -> Any:
        return blocks.orthogonalise(xp, blocks.unit_range(xp, x)[0], plan) * scale

    def entries(x: Any, scale: Any) -> Any:
        return xp.where(xp.isnan(blocks.max_abs(xp, x)), np.nan, xp.sign(x)) * scale

    def rows(x: Any, scale: Any) -> Any:
        return blocks.unit_rows(xp, x) * scale

    operands = _scaled(xp, arrays, scales)
    return _as_given(arrays, _map(xp, batches, operands, spectral=spectral, row_rms=rows, rms=rows, max_abs=entries))


def project(batches: Batches, arrays: Arrays, scales: Arrays) -> list[Any]:
    """U V^T times the scale for spectral blocks (singular values below rounding stay zero), rows of RMS 1 times the
    scale for ``row_rms``; other leaves come back as they are."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any, scale: Any) -> Any:
        steps = EXACT["float64" if x.dtype == np.float64 else "float32"]
        return (blocks.orthogonalise(xp, blocks.unit_range(xp, x.astype(np.float64))[0], steps) * scale).astype(x.dtype)

    def rows(x: Any, scale: Any) -> Any:
        return blocks.unit_rows(xp, x) * scale

    def same(x: Any, scale: Any) -> Any:
        return x

    return _as_given(arrays, _map(xp, batches, _scaled(xp, arrays, scales), spectral=spectral, row_rms=rows, rms=same, max_abs=same))


def normalize(batches: Batches, arrays: Arrays, scales: Arrays, vectors: Arrays | None = None) -> tuple[list[Any], list[Any | None]]:
    """Every block over its norm (``row_rms``: every row), times its scale; zeros stay zeros.

    ``vectors``: as in `modula_rs.backend.cupy.cuda.normalize`, and the same estimates are returned.
    """
    xp = namespace_of(list(arrays))

    def spectral(x: Any, scale: Any, vector: Any | None = None) -> tuple[Any, ...]:
        x, _ = blocks.unit_range(xp, x)
        norm, found = blocks.cold_norm(xp, x) if vector is None else blocks.warm_norm(xp, x, vector)
        made = blocks.divide(xp, x, norm) * scale
        return (made,) if vector is None else (made, found)

    def rows(x: Any, scale: Any) -> tuple[Any]:
        return (blocks.unit_rows(xp, x) * scale,)

    def entries(x: Any, scale: Any) -> tuple[Any]:
        return (blocks.divide(xp, x, blocks.max_abs(xp, x)) * scale,)

    operands = _scaled(xp, arrays, scales)
    for i, batch in enumerate(batches if vectors is not None else ()):
        if batch.geometry == "spectral":
            x, given = operands[i][0], None if vectors is None else vectors[i]
            shape = (batch.count, VECTORS, batch.cols)
            operands[i] += (xp.zeros(shape, x.dtype) if given is None else given.astype(x.dtype),)
    results = _map(xp, batches, operands, spectral=spectral, row_rms=rows, rms=rows, max_abs=entries)
    made = [parts if isinstance(parts, tuple) else (parts,) for parts in results]  # an empty leaf comes back as it is
    found = [parts[1] if len(parts) > 1 else None for parts in made]
    return _as_given(arrays, [parts[0] for parts in made]), found


def _measured(xp: Any, batches: Batches, arrays: Arrays, **kernels: Callable[..., Any]) -> list[Any]:
    """One number for each block; 0 for a block without entries."""
    operands = [(blocks.arithmetic(array),) for array in arrays]
    found = _map(xp, batches, operands, **kernels)
    return [xp.zeros(x.shape[0], x.dtype) if not x.size else number for (x,), number in zip(operands, found, strict=True)]


def _scaled(xp: Any, arrays: Arrays, scales: Arrays) -> list[tuple[Any, ...]]:
    """Blocks in the precision of the arithmetic, each with its scale in the shape that multiplies it."""
    given = [blocks.arithmetic(array) for array in arrays]
    return [(x, xp.broadcast_to(xp.asarray(scale, x.dtype), (x.shape[0],))[:, None, None]) for x, scale in zip(given, scales, strict=True)]


def _as_given(arrays: Arrays, results: Arrays) -> list[Any]:
    return [result.astype(array.dtype) for array, result in zip(arrays, results, strict=True)]


def _map(xp: Any, batches: Batches, operands: Sequence[tuple[Any, ...]], **kernels: Callable[..., Any]) -> list[Any]:
    """Applies to every leaf's operands the kernel of its geometry, to equal matrices of several leaves in one call.

    ``operands[i]`` is what the kernel takes for leaf i, the block first; every array in it and in the kernel's result has the leading
    axis ``count``. Empty leaves come back as they are.
    """
    results: list[Any] = [operand[0] if len(operand) < 3 else (operand[0], operand[2]) for operand in operands]
    equal: dict[Any, list[int]] = {}
    for i, (batch, (block, *others)) in enumerate(zip(batches, operands, strict=True)):
        if block.size:
            alone = None if batch.geometry == "spectral" else i
            equal.setdefault((batch.geometry, alone, block.shape[1:], block.dtype.name, len(others)), []).append(i)
    for (geometry, *_), members in equal.items():
        joined = [xp.concatenate(parts) if len(parts) > 1 else parts[0] for parts in zip(*(operands[i] for i in members), strict=True)]
        made = kernels[geometry](*joined)
        start = 0
        for i in members:
            part = slice(start, start := start + batches[i].count)
            results[i] = tuple(each[part] for each in made) if isinstance(made, tuple) else made[part]
    return results
