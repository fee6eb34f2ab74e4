"""The operations in `jax.numpy`, for any platform; the reference for Rust on the CPU.

The batches are static. Every list has one entry for each leaf: blocks (count, rows, cols) with entries, scales (count,), and singular
vector estimates (count, VECTORS, cols) in the working precision, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import Batch, entries
from modula_rs.backend.jax.blocks import arithmetic, divide, max_abs, row_norms, unit_range, unit_rows
from modula_rs.backend.jax.matrices import Matrices
from modula_rs.backend.jax.norms import cold_norm, top_part, warm_norm
from modula_rs.backend.jax.polar import bent, orthogonalise
from modula_rs.backend.jax.svd import capped, nuclear_norm, polar_factor

Batches = tuple[Batch, ...]
#: The arithmetic of table rows and vectors.
ENTRIES = entries.Entries(jnp, divide, row_norms, unit_rows, max_abs)


def norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
    """The norm of every block, (count,) for each leaf."""

    def spectral(x: Array) -> Array:
        matrices = Matrices([x])
        norm, _ = cold_norm(matrices)
        return (norm * matrices.powers)[:, 0, 0]

    return _map(batches, [(arithmetic(array),) for array in arrays], spectral=spectral, **entries.norms(ENTRIES))


def dual_norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
    """The dual norm of every block, (count,) for each leaf."""

    def spectral(x: Array) -> Array:
        x, power = unit_range(x)
        return nuclear_norm(x) * power[:, 0, 0]

    return _map(batches, [(arithmetic(array),) for array in arrays], spectral=spectral, **entries.dual_norms(ENTRIES))


def apply(
    op: str, accuracy: str, batches: Batches, arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """The blocks after an operation, times the scales, and the estimates for the next call. Without ``vectors`` the search starts anew."""
    operands = [(*operand, vector) for operand, vector in zip(_scaled(arrays, scales), vectors, strict=True)]
    kernels = {name: partial(_beside, kernel) for name, kernel in entries.kernels(ENTRIES, op).items()}
    kernel = partial(_direction, accuracy) if op == "direction" else _MATRICES.get(op)
    matrices = _unit if kernel is None else partial(_beside, kernel)
    pairs = _map(batches, operands, spectral=matrices, **kernels)
    return [made.astype(x.dtype) for (made, _), x in zip(pairs, arrays, strict=True)], [vector for _, vector in pairs]


def _beside(kernel: entries.Kernel, x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
    """An operation that neither uses nor changes estimates."""
    return kernel(x, scale), vector


def _unit(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array]:
    """Each matrix divided by its norm, and the estimates for the next call."""
    matrices = Matrices([x])
    norm, vector = cold_norm(matrices) if vector is None else warm_norm(matrices, vector)
    return divide(x / matrices.powers, norm) * scale, vector


def _direction(accuracy: str, x: Array, scale: Array) -> Array:
    """The steepest direction of norm 1."""
    return orthogonalise(unit_range(x)[0], accuracy) * scale


def _exact(x: Array, scale: Array) -> Array:
    """The steepest direction to rounding accuracy."""
    return polar_factor(unit_range(x)[0]) * scale


def _hard_cap(x: Array, scale: Array) -> Array:
    """Singular values of at most the scale."""
    made: Array = entries.unless_infinite(jnp, lambda x, cap: capped(x / cap) * cap, x, scale)
    return made


def _soft_cap(x: Array, scale: Array) -> Array:
    """Singular values bent by a polynomial that the scale stretches."""
    made: Array = entries.unless_infinite(jnp, bent, x, scale)
    return made


def _set_top(x: Array, scale: Array) -> Array:
    """The largest singular value set to the scale."""
    x, power = unit_range(x)
    top, norm = top_part(x)
    return (x + (divide(scale / power, norm) - 1) * top) * power


def _scale_top(x: Array, scale: Array) -> Array:
    """The largest singular value times the scale."""
    x, power = unit_range(x)
    return (x + (scale - 1) * top_part(x)[0]) * power


#: What each operation does to matrices, except "unit", which has estimates, and "direction", which has a level of accuracy.
_MATRICES: dict[str, entries.Kernel] = {
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
