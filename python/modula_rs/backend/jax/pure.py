"""The maps in `jax.numpy`: for any platform, and the reference for Rust on the CPU.

Each function takes the batches (static), the number of steps (static; for `dualize`) and one array or None for each leaf in every further
list: blocks (count, rows, cols) without empty ones, scales (count,), singular vector estimates (count, cols) in the working precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import Batch
from modula_rs.backend.jax.blocks import arithmetic, divide, max_abs, row_norms, unit_range, unit_rows
from modula_rs.backend.jax.norms import cold_norm, warm_norm
from modula_rs.backend.jax.polar import orthogonalise
from modula_rs.backend.jax.svd import nuclear_norm, polar_factor

Batches = tuple[Batch, ...]


def norms(batches: Batches, steps: None, arrays: Sequence[Array]) -> list[Array]:
    """The norm of every block, (count,) for each leaf."""

    def spectral(x: Array) -> Array:
        x, power = unit_range(x)
        norm, _ = cold_norm(x)
        return (norm * power)[:, 0, 0]

    return _map(
        batches,
        [(arithmetic(array),) for array in arrays],
        spectral=spectral,
        row_rms=lambda x: jnp.max(row_norms(x), axis=(1, 2)),
        rms=lambda x: row_norms(x)[:, 0, 0],
        max_abs=lambda x: max_abs(x)[:, 0, 0],
    )


def dual_norms(batches: Batches, steps: None, arrays: Sequence[Array]) -> list[Array]:
    """The dual norm of every block, (count,) for each leaf."""

    def spectral(x: Array) -> Array:
        x, power = unit_range(x)
        return nuclear_norm(x) * power[:, 0, 0]

    return _map(
        batches,
        [(arithmetic(array),) for array in arrays],
        spectral=spectral,
        row_rms=lambda x: jnp.sum(row_norms(x), axis=(1, 2)) * x.shape[2],
        rms=lambda x: row_norms(x)[:, 0, 0] * x.shape[2],
        max_abs=lambda x: jnp.sum(jnp.abs(x), axis=(1, 2)),
    )


def normalize(
    batches: Batches, steps: None, arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """Blocks (rows) over their norms, times the scales, and the estimates for the next call. No vectors: from cold."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array]:
        x, _ = unit_range(x)
        norm, vector = cold_norm(x) if vector is None else warm_norm(x, vector)
        return divide(x, norm) * scale, vector

    def rows(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return unit_rows(x) * scale, vector

    def entries(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return divide(x, max_abs(x)) * scale, vector

    operands = [(*operand, vector) for operand, vector in zip(_scaled(arrays, scales), vectors, strict=True)]
    pairs = _map(batches, operands, spectral=spectral, row_rms=rows, rms=rows, max_abs=entries)
    return _as_given(arrays, [made for made, _ in pairs]), [vector for _, vector in pairs]


def dualize(batches: Batches, steps: int | None, arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """Steepest directions, times the scales."""

    def spectral(x: Array, scale: Array) -> Array:
        return orthogonalise(unit_range(x)[0], steps) * scale

    def rows(x: Array, scale: Array) -> Array:
        return unit_rows(x) * scale

    def entries(x: Array, scale: Array) -> Array:
        return jnp.where(jnp.isnan(max_abs(x)), jnp.nan, jnp.sign(x)) * scale

    return _as_given(arrays, _map(batches, _scaled(arrays, scales), spectral=spectral, row_rms=rows, rms=rows, max_abs=entries))


def project(batches: Batches, steps: None, arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """Matrices to the nearest with orthonormal rows or columns, rows of tables to RMS 1, times the scales."""

    def spectral(x: Array, scale: Array) -> Array:
        return polar_factor(unit_range(x)[0]) * scale

    def rows(x: Array, scale: Array) -> Array:
        return unit_rows(x) * scale

    return _as_given(arrays, _map(batches, _scaled(arrays, scales), spectral=spectral, row_rms=rows))


def _scaled(arrays: Sequence[Array], scales: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Blocks in the precision of the arithmetic, each with its scale in the shape that multiplies it."""
    blocks = [arithmetic(array) for array in arrays]
    return [(x, scale.astype(x.dtype)[:, None, None]) for x, scale in zip(blocks, scales, strict=True)]


def _as_given(arrays: Sequence[Array], results: list[Array]) -> list[Array]:
    return [result.astype(array.dtype) for array, result in zip(arrays, results, strict=True)]


def _map(batches: Batches, operands: Sequence[tuple[Any, ...]], **kernels: Callable[..., Any]) -> list[Any]:
    """Applies to every leaf's operands the kernel of its geometry, to equal matrices of several leaves in one call.

    `operands[i]` is what the kernel takes for leaf i, the block first; every array in it and in the kernel's result has the leading
    axis `count`.
    """
    results: list[Any] = [None] * len(batches)
    equal: dict[Any, list[int]] = {}
    for index, (batch, (block, *_)) in enumerate(zip(batches, operands, strict=True)):
        alone = None if batch.geometry == "spectral" else index
        equal.setdefault((batch.geometry, alone, block.shape[1:], block.dtype), []).append(index)
    for (geometry, *_), members in equal.items():
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts) if len(parts) > 1 else parts[0], *(operands[i] for i in members))
        result = kernels[geometry](*joined)
        start = 0
        for index in members:
            stop = start + batches[index].count
            results[index] = jax.tree.map(lambda part, start=start, stop=stop: part[start:stop], result)
            start = stop
    return results
