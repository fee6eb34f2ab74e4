"""The maps on CuPy arrays with CuPy's own products and elementwise operations, for every GPU that CuPy runs on.

This is the reference for every kernel. It serves machines on which no kernel is proved, float64 arrays, and exact directions. Equal
matrices of several leaves go through one batched product. Float32 and 16-bit arrays are computed in float32 (with ``CUPY_TF32=1`` no
accuracy is promised), float64 arrays and exact directions in float64. The same functions run on NumPy arrays, with which they are tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modula_rs.arrays import namespace_of
from modula_rs.backend import VECTORS, Batch
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
from modula_rs.constants import RISES
from modula_rs.kernels.schedule import EXACT, schedule

Arrays = Sequence[Any]
Batches = Sequence[Batch]
Kernel = Callable[..., Any]


def norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """The norm of every block, (count,) for each leaf, in float32 (float64 for float64 leaves); 0 for empty blocks."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = unit_range(xp, x)
        return (cold_norm(xp, x)[0] * power)[:, 0, 0]

    return _measured(
        xp, batches, arrays, spectral=spectral, row_rms=lambda x: xp.max(row_norms(xp, x), axis=(1, 2)),
        rms=lambda x: row_norms(xp, x)[:, 0, 0], max_abs=lambda x: max_abs(xp, x)[:, 0, 0],
    )  # fmt: skip


def dual_norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """The dual norm of every block, (count,) for each leaf. For a matrix g it is <g, U V^T>, with U V^T from `apply`."""
    xp = namespace_of(list(arrays))

    def spectral(x: Any) -> Any:
        x, power = unit_range(xp, x)
        return xp.sum(x * orthogonalise(xp, x, schedule("float32", "standard")), axis=(1, 2)) * power[:, 0, 0]

    return _measured(
        xp, batches, arrays, spectral=spectral, row_rms=lambda x: xp.sum(row_norms(xp, x), axis=(1, 2)) * x.shape[2],
        rms=lambda x: row_norms(xp, x)[:, 0, 0] * x.shape[2], max_abs=lambda x: xp.sum(xp.abs(x), axis=(1, 2)),
    )  # fmt: skip


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
    kernels = _KERNELS[op](xp, accuracy)
    results = _map(xp, batches, operands, **kernels)
    made = [parts if isinstance(parts, tuple) else (parts,) for parts in results]
    estimates = [parts[1] if len(parts) > 1 else None for parts in made]
    return [parts[0].astype(array.dtype) for parts, array in zip(made, arrays, strict=True)], estimates


def _unit(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """Each block divided by its norm (in a table each row by its RMS); with estimates, also the estimates for the next call."""

    def spectral(x: Any, scale: Any, vector: Any | None = None) -> Any:
        x, _ = unit_range(xp, x)
        norm, found = cold_norm(xp, x) if vector is None else warm_norm(xp, x, vector)
        made = divide(xp, x, norm) * scale
        return made if vector is None else (made, found)

    def entries(x: Any, scale: Any) -> Any:
        return divide(xp, x, max_abs(xp, x)) * scale

    return _vectors(xp) | {"spectral": spectral, "max_abs": entries}


def _direction(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """The steepest direction of norm 1."""
    plan = schedule("float32", accuracy)

    def spectral(x: Any, scale: Any) -> Any:
        return orthogonalise(xp, unit_range(xp, x)[0], plan) * scale

    return _vectors(xp) | {"spectral": spectral}


def _exact(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """The steepest direction to rounding accuracy, in float64; singular values that are zero to rounding stay zero."""

    def spectral(x: Any, scale: Any) -> Any:
        plan = EXACT["float64" if x.dtype == np.float64 else "float32"]
        return (orthogonalise(xp, unit_range(xp, x.astype(np.float64))[0], plan) * scale).astype(x.dtype)

    return _vectors(xp) | {"spectral": spectral}


def _hard_cap(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """Singular values, norms of rows and vectors, and entries of at most the scale."""

    def spectral(x: Any, scale: Any) -> Any:
        finite = xp.isfinite(scale)
        cap = xp.where(finite, scale, 1).astype(np.float64)
        return xp.where(finite, capped(xp, x.astype(np.float64) / cap) * cap, x).astype(x.dtype)

    def rows(x: Any, scale: Any) -> Any:
        return xp.where(row_norms(xp, x) <= scale, x, unit_rows(xp, x) * scale)

    def entries(x: Any, scale: Any) -> Any:
        return xp.where(xp.isnan(max_abs(xp, x)), np.nan, xp.clip(x, -scale, scale))

    return {"spectral": spectral, "row_rms": rows, "rms": rows, "max_abs": entries}


def _soft_cap(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """Singular values, norms of rows and vectors, and entries bent by a polynomial that the scale stretches."""

    def size(y: Any) -> Any:
        p = y - y**3
        return p + p**3

    def unless_infinite(function: Callable[[Any, Any], Any]) -> Kernel:
        def kernel(x: Any, scale: Any) -> Any:
            finite = xp.isfinite(scale)
            return xp.where(finite, function(x, xp.where(finite, scale, 1)), x)

        return kernel

    def rows(x: Any, cap: Any) -> Any:
        return unit_rows(xp, x) * cap * size(xp.minimum(row_norms(xp, x) / cap, RISES))

    def entries(x: Any, cap: Any) -> Any:
        return cap * size(x / cap * xp.minimum(1, divide(xp, RISES * cap, max_abs(xp, x))))

    def spectral(x: Any, cap: Any) -> Any:
        return bent(xp, x, cap)

    return {
        name: unless_infinite(kernel) for name, kernel in [("spectral", spectral), ("row_rms", rows), ("rms", rows), ("max_abs", entries)]
    }


def _set_top(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """The largest singular value set to the scale; rows and vectors of this norm."""

    def spectral(x: Any, scale: Any) -> Any:
        x, power = unit_range(xp, x)
        top, norm = top_part(xp, x)
        return (x + (divide(xp, scale / power, norm) - 1) * top) * power

    return _unit(xp, accuracy) | {"spectral": spectral}


def _scale_top(xp: Any, accuracy: str) -> dict[str, Kernel]:
    """The largest singular value, rows and vectors times the scale."""

    def spectral(x: Any, scale: Any) -> Any:
        x, power = unit_range(xp, x)
        return (x + (scale - 1) * top_part(xp, x)[0]) * power

    def times(x: Any, scale: Any) -> Any:
        return x * scale

    return {"spectral": spectral, "row_rms": times, "rms": times, "max_abs": times}


def _vectors(xp: Any) -> dict[str, Kernel]:
    """Table rows over their RMS, vectors over their RMS, and signs."""

    def rows(x: Any, scale: Any) -> Any:
        return unit_rows(xp, x) * scale

    def signs(x: Any, scale: Any) -> Any:
        return xp.where(xp.isnan(max_abs(xp, x)), np.nan, xp.sign(x)) * scale

    return {"row_rms": rows, "rms": rows, "max_abs": signs}


#: For each operation, a function from the array module and the level of accuracy to the kernel of each geometry.
_KERNELS: dict[str, Callable[[Any, str], dict[str, Kernel]]] = {
    "unit": _unit,
    "direction": _direction,
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
