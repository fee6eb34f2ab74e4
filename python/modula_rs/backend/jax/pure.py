"""The operations in `jax.numpy`, for any platform; the reference for Rust on the CPU.

The batches are static. Every list has one entry for each leaf: blocks (count, rows, cols) with entries, scales (count,), and singular
vector estimates (count, VECTORS, cols) in the working precision, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import Batch
from modula_rs.backend.jax.blocks import arithmetic, divide, max_abs, row_norms, unit_range, unit_rows
from modula_rs.backend.jax.matrices import Matrices
from modula_rs.backend.jax.norms import cold_norm, top_part, warm_norm
from modula_rs.backend.jax.polar import bent, orthogonalise
from modula_rs.backend.jax.svd import capped, nuclear_norm, polar_factor
from modula_rs.constants import RISES

Batches = tuple[Batch, ...]
Kernel = Callable[..., Any]


def norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
    """The norm of every block, (count,) for each leaf."""

    def spectral(x: Array) -> Array:
        matrices = Matrices([x])
        norm, _ = cold_norm(matrices)
        return (norm * matrices.powers)[:, 0, 0]

    return _map(
        batches,
        [(arithmetic(array),) for array in arrays],
        spectral=spectral,
        row_rms=lambda x: jnp.max(row_norms(x), axis=(1, 2)),
        rms=lambda x: row_norms(x)[:, 0, 0],
        max_abs=lambda x: max_abs(x)[:, 0, 0],
    )


def dual_norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
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


def apply(
    op: str, accuracy: str, batches: Batches, arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """The blocks after an operation, times the scales, and the estimates for the next call. Without ``vectors`` the search starts anew."""
    operands = [(*operand, vector) for operand, vector in zip(_scaled(arrays, scales), vectors, strict=True)]
    pairs = _map(batches, operands, **_KERNELS[op](accuracy))
    return [made.astype(x.dtype) for (made, _), x in zip(pairs, arrays, strict=True)], [vector for _, vector in pairs]


def _unit(accuracy: str) -> dict[str, Kernel]:
    """Each block divided by its norm (in a table each row by its RMS)."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array]:
        matrices = Matrices([x])
        norm, vector = cold_norm(matrices) if vector is None else warm_norm(matrices, vector)
        return divide(x / matrices.powers, norm) * scale, vector

    def entries(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return divide(x, max_abs(x)) * scale, vector

    return {"spectral": spectral, "row_rms": _rows, "rms": _rows, "max_abs": entries}


def _direction(accuracy: str) -> dict[str, Kernel]:
    """The steepest direction of norm 1."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return orthogonalise(unit_range(x)[0], accuracy) * scale, vector

    return {"spectral": spectral, "row_rms": _rows, "rms": _rows, "max_abs": _signs}


def _exact(accuracy: str) -> dict[str, Kernel]:
    """The steepest direction to rounding accuracy."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return polar_factor(unit_range(x)[0]) * scale, vector

    return {"spectral": spectral, "row_rms": _rows, "rms": _rows, "max_abs": _signs}


def _hard_cap(accuracy: str) -> dict[str, Kernel]:
    """Singular values, norms of rows and vectors, and entries of at most the scale."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return _unless_infinite(scale, x, lambda cap: capped(x / cap) * cap), vector

    def rows(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        norm = row_norms(x)
        return jnp.where(norm <= scale, x, unit_rows(x) * scale), vector

    def entries(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return jnp.where(jnp.isnan(max_abs(x)), jnp.nan, jnp.clip(x, -scale, scale)), vector

    return {"spectral": spectral, "row_rms": rows, "rms": rows, "max_abs": entries}


def _soft_cap(accuracy: str) -> dict[str, Kernel]:
    """Singular values, norms of rows and vectors, and entries bent by a polynomial that the scale stretches."""

    def size(y: Array) -> Array:
        p = y - y**3
        return p + p**3

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return _unless_infinite(scale, x, lambda cap: bent(x, cap)), vector

    def rows(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return _unless_infinite(scale, x, lambda cap: unit_rows(x) * cap * size(jnp.minimum(row_norms(x) / cap, RISES))), vector

    def entries(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        def bend(cap: Array) -> Array:
            return cap * size(x / cap * jnp.minimum(1, divide(RISES * cap, max_abs(x))))

        return _unless_infinite(scale, x, bend), vector

    return {"spectral": spectral, "row_rms": rows, "rms": rows, "max_abs": entries}


def _unless_infinite(scale: Array, x: Array, function: Callable[[Array], Array]) -> Array:
    """A function of the scale, or `x` as it is where the scale is infinite."""
    finite = jnp.isfinite(scale)
    return jnp.where(finite, function(jnp.where(finite, scale, 1)), x)


def _set_top(accuracy: str) -> dict[str, Kernel]:
    """The largest singular value set to the scale; rows and vectors of this norm."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        x, power = unit_range(x)
        top, norm = top_part(x)
        return (x + (divide(scale / power, norm) - 1) * top) * power, vector

    return {"spectral": spectral} | {name: kernel for name, kernel in _unit(accuracy).items() if name != "spectral"}


def _scale_top(accuracy: str) -> dict[str, Kernel]:
    """The largest singular value, rows and vectors times the scale."""

    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        x, power = unit_range(x)
        return (x + (scale - 1) * top_part(x)[0]) * power, vector

    def times(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
        return x * scale, vector

    return {"spectral": spectral, "row_rms": times, "rms": times, "max_abs": times}


def _rows(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
    return unit_rows(x) * scale, vector


def _signs(x: Array, scale: Array, vector: None) -> tuple[Array, None]:
    return jnp.where(jnp.isnan(max_abs(x)), jnp.nan, jnp.sign(x)) * scale, vector


#: For each operation, a function from the level of accuracy to the kernel of each geometry.
_KERNELS: dict[str, Callable[[str], dict[str, Kernel]]] = {
    "unit": _unit,
    "direction": _direction,
    "exact": _exact,
    "hard_cap": _hard_cap,
    "soft_cap": _soft_cap,
    "set_top": _set_top,
    "scale_top": _scale_top,
}


def _scaled(arrays: Sequence[Array], scales: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Blocks in the precision of the arithmetic, each with its scale in a shape that broadcasts against it."""
    blocks = [arithmetic(array) for array in arrays]
    return [(x, scale.astype(x.dtype)[:, None, None]) for x, scale in zip(blocks, scales, strict=True)]


def _map(batches: Batches, operands: Sequence[tuple[Any, ...]], **kernels: Callable[..., Any]) -> list[Any]:
    """Applies to each leaf's operands the kernel of the leaf's geometry; equal matrices of several leaves go in one call.

    `operands[i]` are the arguments of the kernel for leaf i, the block first. Every array among them and in the kernel's result has the
    leading axis `count`.
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
