"""The maps on CuPy arrays, one array (count, rows, cols) for each leaf; inputs are never written to.

Each leaf goes to our kernels (:mod:`modula_rs.backend.cupy.cuda`) where those that may run on its GPU serve it, see
:mod:`modula_rs.backend.gpu`, and to CuPy's own products (:mod:`modula_rs.backend.cupy.plain`) elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.backend.cupy import cuda, plain
from modula_rs.kernels import runtime

__all__ = ["dual_norms", "dualize", "normalize", "norms", "project"]

Arrays = Sequence[Any]
Batches = Sequence[Batch]


def norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """Norm of every block, (count,) for each leaf, float32 (float64 for float64 leaves); 0 for empty blocks."""
    return _each_way("norms", batches, arrays)


def dual_norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """Dual norm of every block, (count,) for each leaf: its inner product with its steepest direction."""
    return _each_way("dual_norms", batches, arrays)


def dualize(batches: Batches, arrays: Arrays, scales: Arrays, steps: int | None = None) -> list[Any]:
    """Steepest direction of every block times its scale.

    ``steps``: the accuracy, in the levels of `modula_rs.kernels.schedule.schedule`; singular values above 1/1000 of the largest within
    0.01 of 1 unless less is asked for (16-bit arrays: above 1/100 within 0.02).
    """
    return _each_way("dualize", batches, arrays, scales, steps=steps)


def project(batches: Batches, arrays: Arrays, scales: Arrays) -> list[Any]:
    """U V^T times the scale for spectral blocks, rows of RMS 1 times the scale for ``row_rms``; other leaves as they are."""
    with _on_their_device(batches, arrays):
        return plain.project(batches, arrays, scales)


def normalize(batches: Batches, arrays: Arrays, scales: Arrays, vectors: Arrays | None = None) -> tuple[list[Any], list[Any | None]]:
    """Every block over its norm (``row_rms``: every row), times its scale; zeros stay zeros.

    ``vectors``: for each spectral leaf right singular vector estimates (count, VECTORS, cols), float32 (float64 for float64 leaves), as
    this function returned them for similar arrays, or None; None elsewhere. One step of block power iteration from them replaces the
    search from cold, except for matrices whose estimates are stale or missing. New estimates are returned.
    """
    for i, (batch, vector) in enumerate(zip(batches, vectors or (), strict=vectors is not None)):
        shape = (batch.count, VECTORS, batch.cols)
        if vector is not None and batch.geometry == "spectral" and vector.shape != shape:
            raise ValueError(f"vectors[{i}]: expected shape {shape}, got {vector.shape}")
    pairs = _each_way("normalize", batches, arrays, scales, vectors)
    return [made for made, _ in pairs], [found for _, found in pairs]


def _on_their_device(batches: Batches, arrays: Arrays) -> AbstractContextManager[Any]:
    """Makes the device that all arrays are on the current one; ValueError for arrays of two devices, or of another shape than said."""
    runtime.require_gpu()
    import cupy

    for batch, array in zip(batches, arrays, strict=True):
        expected = (batch.count, batch.rows, batch.cols)
        if array.shape != expected:
            raise ValueError(f"{batch.geometry}: expected shape {expected}, got {array.shape}")
        if array.device.id != arrays[0].device.id:
            first, other = arrays[0].device.id, array.device.id
            raise ValueError(f"all arrays of a call must be on one GPU, got {first} for the first and {other} for a {batch.geometry} leaf")
    device: AbstractContextManager[Any] = cupy.cuda.Device(arrays[0].device.id if len(arrays) else None)
    return device


def _each_way(name: str, batches: Batches, arrays: Arrays, *others: Arrays | None, **options: Any) -> list[Any]:
    """The map, leaf by leaf by the kernels or the portable way, each in one call."""
    with _on_their_device(batches, arrays):
        import cupy

        device = gpu.device(cupy.cuda.Device().id)
        ways: tuple[list[int], list[int]] = ([], [])
        for i, (batch, array) in enumerate(zip(batches, arrays, strict=True)):
            warm = name == "normalize" and len(others) > 1 and others[1] is not None and batch.geometry == "spectral"
            served = device is not None and cuda.serves(name, cuda.operand_of(batch, array.dtype, warm=warm), device)
            ways[served].append(i)
        results: list[Any] = [None] * len(batches)
        for module, members in zip((plain, cuda), ways, strict=True):
            if not members:
                continue
            given = [[part[i] for i in members] if part is not None else None for part in (batches, arrays, *others)]
            if module is cuda:
                given[1] = [cupy.ascontiguousarray(array) for array in given[1] or ()]
            map_of: Callable[..., Any] = getattr(module, name)
            made = map_of(*given, **options)
            for i, result in zip(members, zip(*made, strict=True) if name == "normalize" else made, strict=True):
                results[i] = result
        return results
