"""The maps on JAX arrays: whole-model functions, one array (count, rows, cols) per leaf, under jit, grad, vmap and scan alike."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import Group
from modula_rs.backend.jax_blocks import arithmetic, divide, max_abs, row_norms, unit_range, unit_rows
from modula_rs.backend.jax_norm import cold_norm, warm_norm
from modula_rs.backend.jax_polar import orthogonalise
from modula_rs.backend.jax_svd import nuclear_norm, polar_factor

_jit = functools.partial(jax.jit, static_argnames="groups")


def norms(groups: Sequence[Group], arrays: Sequence[Array]) -> list[Array]:
    """The norm of every block, shape (count,) per leaf, in float32 or float64; spectral norms within 1 %."""
    return _norms(tuple(groups), list(arrays))


def normalize(
    groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None] | None = None
) -> tuple[list[Array], list[Array | None]]:
    """Every block (for `row_rms` every row) divided by its norm, times its scale; zeros stay zero.

    Args:
        groups: one per leaf.
        arrays: (count, rows, cols) each.
        scales: (count,) each.
        vectors: right singular vector estimates (count, cols) per spectral leaf and None elsewhere, as this function returned them
            for similar arrays: one power step from them replaces the search from cold. Vectors of zeros are no estimates.

    Returns:
        The arrays, in the dtypes given, and the estimates for the next call.
    """
    pairs = _normalize(tuple(groups), list(arrays), list(scales), list(vectors or [None] * len(groups)))
    return [array for array, _ in pairs], [vector for _, vector in pairs]


def dualize(groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array], steps: int | None = None) -> list[Array]:
    """The steepest direction of every block, times its scale. `steps`: that many Newton-Schulz steps instead of the promised accuracy."""
    return _dualize(tuple(groups), list(arrays), list(scales), steps)


def dual_norms(groups: Sequence[Group], arrays: Sequence[Array]) -> list[Array]:
    """The dual norm of every block, shape (count,) per leaf: its inner product with its steepest direction."""
    return _dual_norms(tuple(groups), list(arrays))


def project(groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """`U V^T` to rounding accuracy, or rows of RMS 1, times the scale; vectors (`rms`, `max_abs`) stay as they are."""
    return _project(tuple(groups), list(arrays), list(scales))


@_jit
def _norms(groups: tuple[Group, ...], arrays: list[Array]) -> list[Array]:
    def spectral(x: Array) -> Array:
        x, power = unit_range(x)
        norm, _ = cold_norm(x)
        return (norm * power)[:, 0, 0]

    return _map(
        groups,
        [(arithmetic(array),) for array in arrays],
        lambda x: jnp.zeros(x.shape[0], x.dtype),
        spectral=spectral,
        row_rms=lambda x: jnp.max(row_norms(x), axis=(1, 2)),
        rms=lambda x: row_norms(x)[:, 0, 0],
        max_abs=lambda x: max_abs(x)[:, 0, 0],
    )


@_jit
def _dual_norms(groups: tuple[Group, ...], arrays: list[Array]) -> list[Array]:
    def spectral(x: Array) -> Array:
        x, power = unit_range(x)
        return nuclear_norm(x) * power[:, 0, 0]

    return _map(
        groups,
        [(arithmetic(array),) for array in arrays],
        lambda x: jnp.zeros(x.shape[0], x.dtype),
        spectral=spectral,
        row_rms=lambda x: jnp.sum(row_norms(x), axis=(1, 2)) * x.shape[2],
        rms=lambda x: row_norms(x)[:, 0, 0] * x.shape[2],
        max_abs=lambda x: jnp.sum(jnp.abs(x), axis=(1, 2)),
    )


@_jit
def _normalize(
    groups: tuple[Group, ...], arrays: list[Array], scales: list[Array], vectors: list[Array | None]
) -> list[tuple[Array, Array | None]]:
    def spectral(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        x, _ = unit_range(x)
        norm, vector = cold_norm(x) if vector is None else warm_norm(x, vector)
        return divide(x, norm) * scale, vector

    def rows(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return unit_rows(x) * scale, vector

    def entries(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return divide(x, max_abs(x)) * scale, vector

    def empty(x: Array, scale: Array, vector: Array | None) -> tuple[Array, Array | None]:
        return x, vector

    scaled = _scaled(arrays, scales)
    operands = [(x, scale, None if v is None else arithmetic(v)) for (x, scale), v in zip(scaled, vectors, strict=True)]
    results = _map(groups, operands, empty, spectral=spectral, row_rms=rows, rms=rows, max_abs=entries)
    return [(result.astype(array.dtype), vector) for array, (result, vector) in zip(arrays, results, strict=True)]


@functools.partial(jax.jit, static_argnames=("groups", "steps"))
def _dualize(groups: tuple[Group, ...], arrays: list[Array], scales: list[Array], steps: int | None) -> list[Array]:
    def spectral(x: Array, scale: Array) -> Array:
        return orthogonalise(unit_range(x)[0], steps) * scale

    def rows(x: Array, scale: Array) -> Array:
        return unit_rows(x) * scale

    def entries(x: Array, scale: Array) -> Array:
        return jnp.sign(x) * scale

    results = _map(groups, _scaled(arrays, scales), _unchanged, spectral=spectral, row_rms=rows, rms=rows, max_abs=entries)
    return [result.astype(array.dtype) for array, result in zip(arrays, results, strict=True)]


@_jit
def _project(groups: tuple[Group, ...], arrays: list[Array], scales: list[Array]) -> list[Array]:
    def spectral(x: Array, scale: Array) -> Array:
        return polar_factor(unit_range(x)[0]) * scale

    def rows(x: Array, scale: Array) -> Array:
        return unit_rows(x) * scale

    results = _map(groups, _scaled(arrays, scales), _unchanged, spectral=spectral, row_rms=rows, rms=_unchanged, max_abs=_unchanged)
    return [result.astype(array.dtype) for array, result in zip(arrays, results, strict=True)]


def _scaled(arrays: Sequence[Array], scales: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Blocks in the precision of the arithmetic, each with its scale in the shape that multiplies it."""
    blocks = [arithmetic(array) for array in arrays]
    return [(x, jnp.asarray(scale).astype(x.dtype).reshape(-1, 1, 1)) for x, scale in zip(blocks, scales, strict=True)]


def _unchanged(x: Array, scale: Array) -> Array:
    return x


def _map(
    groups: Sequence[Group], operands: Sequence[tuple[Any, ...]], empty: Callable[..., Any], **kernels: Callable[..., Any]
) -> list[Any]:
    """Applies to every leaf's operands the kernel of its geometry, to equal matrices of several leaves in one call.

    `operands[i]` is what the kernel takes for leaf i, the block first; every array in it and in the kernel's result has the leading
    axis `count`. Leaves without entries go to `empty` instead.
    """
    results: list[Any] = [None] * len(groups)
    batches: dict[Any, list[int]] = {}
    for index, (group, (block, *_)) in enumerate(zip(groups, operands, strict=True)):
        if 0 in block.shape:
            results[index] = empty(*operands[index])
        else:
            alone = None if group.geometry == "spectral" else index
            batches.setdefault((group.geometry, alone, block.shape[1:], block.dtype), []).append(index)
    for (geometry, *_), members in batches.items():
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts) if len(parts) > 1 else parts[0], *(operands[i] for i in members))
        result = kernels[geometry](*joined)
        start = 0
        for index in members:
            stop = start + groups[index].count
            results[index] = jax.tree.map(lambda part, start=start, stop=stop: part[start:stop], result)
            start = stop
    return results
