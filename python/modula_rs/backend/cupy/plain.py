"""The maps on CuPy arrays with CuPy's own products and elementwise operations, for every GPU that CuPy runs on.

This is the reference for every kernel. It serves machines on which no kernel is proved, float64 arrays, and exact directions. Equal
matrices of several leaves go through one batched product. Float32 and 16-bit arrays are computed in float32 (with ``CUPY_TF32=1`` no
accuracy is promised), float64 arrays and exact directions in float64. The same functions run on NumPy arrays, with which they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from modula_rs.arrays import namespace_of
from modula_rs.backend import VECTORS, Batch, entries
from modula_rs.backend.cupy.arithmetic import (
    arithmetic,
    bent,
    capped,
    cold_norm,
    divide,
    max_abs,
    orthogonalise,
    row_norms,
    top_part,
    unit_range,
    unit_rows,
    warm_norm,
)
from modula_rs.kernels.schedule import EXACT, schedule

Arrays = Sequence[Any]
Batches = Sequence[Batch]


def norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """The norm of every block, (count,) for each leaf, in float32 (float64 for float64 leaves); 0 for empty blocks."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = unit_range(xp, x)
        return (cold_norm(xp, x)[0] * power)[:, 0, 0]

    return _measured(xp, batches, arrays, spectral=spectral, **entries.norms(_entries(xp)))


def dual_norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """The dual norm of every block, (count,) for each leaf. For a matrix g it is <g, U V^T>, with U V^T from `apply`."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = unit_range(xp, x)
        return xp.sum(x * orthogonalise(xp, x, schedule("float32", "standard")), axis=(1, 2)) * power[:, 0, 0]

    return _measured(xp, batches, arrays, spectral=spectral, **entries.dual_norms(_entries(xp)))


def apply(
    op: str, batches: Batches, arrays: Arrays, scales: Arrays, *, vectors: Arrays | None = None, accuracy: str = "standard"
) -> tuple[list[Any], list[Any | None]]:
    """See :class:`modula_rs.backend.Backend`."""
    xp = namespace_of(list(arrays))
    operands = _scaled(xp, arrays, scales)
    warm = op == "unit" and vectors is not None
    for i, batch in enumerate(batches if warm else ()):
        if batch.geometry == "spectral":
            x, given = operands[i][0], vectors[i] if vectors is not None else None
            shape = (batch.count, VECTORS, batch.cols)
            operands[i] += (xp.zeros(shape, x.dtype) if given is None else given.astype(x.dtype),)
    spectral = partial(_direction, accuracy) if op == "direction" else _MATRICES[op]
    results = _map(xp, batches, operands, spectral=partial(spectral, xp), **entries.kernels(_entries(xp), op))
    made = [parts if isinstance(parts, tuple) else (parts,) for parts in results]
    estimates = [parts[1] if len(parts) > 1 else None for parts in made]
    return [parts[0].astype(array.dtype) for parts, array in zip(made, arrays, strict=True)], estimates


def _entries(xp: Any) -> entries.Entries:
    """The arithmetic of table rows and vectors."""
    return entries.Entries(xp, partial(divide, xp), partial(row_norms, xp), partial(unit_rows, xp), partial(max_abs, xp))


def _unit(xp: Any, x: Any, scale: Any, vector: Any | None = None) -> Any:
    """Each matrix divided by its norm; with estimates, also the estimates for the next call."""
    x, _ = unit_range(xp, x)
    norm, found = cold_norm(xp, x) if vector is None else warm_norm(xp, x, vector)
    made = divide(xp, x, norm) * scale
    return made if vector is None else (made, found)


def _direction(accuracy: str, xp: Any, x: Any, scale: Any) -> Any:
    """The steepest direction of norm 1."""
    return orthogonalise(xp, unit_range(xp, x)[0], schedule("float32", accuracy)) * scale


def _exact(xp: Any, x: Any, scale: Any) -> Any:
    """The steepest direction to rounding accuracy, in float64; singular values that are zero to rounding stay zero."""
    plan = EXACT["float64" if x.dtype == np.float64 else "float32"]
    return (orthogonalise(xp, unit_range(xp, x.astype(np.float64))[0], plan) * scale).astype(x.dtype)


def _hard_cap(xp: Any, x: Any, scale: Any) -> Any:
    """Singular values of at most the scale, computed in float64."""
    wide = scale.astype(np.float64)
    return entries.unless_infinite(xp, lambda x, cap: capped(xp, x / cap) * cap, x.astype(np.float64), wide).astype(x.dtype)


def _soft_cap(xp: Any, x: Any, scale: Any) -> Any:
    """Singular values bent by a polynomial that the scale stretches."""
    return entries.unless_infinite(xp, partial(bent, xp), x, scale)


def _set_top(xp: Any, x: Any, scale: Any) -> Any:
    """The largest singular value set to the scale."""
    x, power = unit_range(xp, x)
    top, norm = top_part(xp, x)
    return (x + (divide(xp, scale / power, norm) - 1) * top) * power


def _scale_top(xp: Any, x: Any, scale: Any) -> Any:
    """The largest singular value times the scale."""
    x, power = unit_range(xp, x)
    return (x + (scale - 1) * top_part(xp, x)[0]) * power


#: What each operation does to matrices: a function of the array module, blocks and scales. "direction" also takes a level of accuracy.
_MATRICES: dict[str, Callable[..., Any]] = {
    "unit": _unit,
    "exact": _exact,
    "hard_cap": _hard_cap,
    "soft_cap": _soft_cap,
    "set_top": _set_top,
    "scale_top": _scale_top,
}


def _measured(xp: Any, batches: Batches, arrays: Arrays, **kernels: Callable[..., Any]) -> list[Any]:
    """One number for each block; 0 for a block without entries."""
    operands = [(arithmetic(array),) for array in arrays]
    found = _map(xp, batches, operands, **kernels)
    return [xp.zeros(x.shape[0], x.dtype) if not x.size else number for (x,), number in zip(operands, found, strict=True)]


def _scaled(xp: Any, arrays: Arrays, scales: Arrays) -> list[tuple[Any, ...]]:
    """Blocks in the precision of the arithmetic, each with its scale in a shape that broadcasts against it."""
    given = [arithmetic(array) for array in arrays]
    return [(x, xp.broadcast_to(xp.asarray(scale, x.dtype), (x.shape[0],))[:, None, None]) for x, scale in zip(given, scales, strict=True)]


def _map(xp: Any, batches: Batches, operands: Sequence[tuple[Any, ...]], **kernels: Callable[..., Any]) -> list[Any]:
    """Applies to each leaf's operands the kernel of the leaf's geometry; equal matrices of several leaves go in one call.

    ``operands[i]`` are the arguments of the kernel for leaf i, the block first. Every array among them and in the kernel's result has the
    leading axis ``count``. Empty leaves are returned as they are.
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
