"""The operations on CuPy arrays, one array (count, rows, cols) for each leaf; see :class:`modula_rs.backend.Backend`.

A leaf goes to our kernels (:mod:`modula_rs.backend.cupy.cuda`) if one of the kernels that may run on its GPU serves the leaf, see
:mod:`modula_rs.backend.gpu`. Every other leaf goes to CuPy's own products (:mod:`modula_rs.backend.cupy.plain`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from modula_rs.arrays import DTYPES, dtype_name
from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.backend.cupy import cuda, plain
from modula_rs.kernels import runtime

__all__ = ["apply", "dual_norms", "norms"]

Arrays = Sequence[Any]
Batches = Sequence[Batch]


def apply(
    op: str, batches: Batches, arrays: Arrays, scales: Arrays, *, vectors: Arrays | None = None, accuracy: str = "standard"
) -> tuple[list[Any], list[Any | None]]:
    """See :class:`modula_rs.backend.Backend`."""
    for i, (batch, vector) in enumerate(zip(batches, vectors or (), strict=vectors is not None)):
        shape = (batch.count, VECTORS, batch.cols)
        if vector is not None and batch.geometry == "spectral" and vector.shape != shape:
            raise ValueError(f"vectors[{i}]: expected shape {shape}, got {vector.shape}")

    def run(module: Any, members: list[int], given: list[Any]) -> list[Any]:
        chosen = None if vectors is None else [vectors[i] for i in members]
        made, found = module.apply(
            op, [batches[i] for i in members], given, [scales[i] for i in members], vectors=chosen, accuracy=accuracy
        )
        return list(zip(made, found, strict=True))

    warm = op == "unit" and vectors is not None
    pairs = _each_way(op, accuracy, batches, arrays, warm, run)
    return [made for made, _ in pairs], [found for _, found in pairs]


def norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """See :class:`modula_rs.backend.Backend`."""
    return _each_way("norms", "", batches, arrays, False, lambda module, members, given: module.norms([batches[i] for i in members], given))


def dual_norms(batches: Batches, arrays: Arrays) -> list[Any]:
    """See :class:`modula_rs.backend.Backend`."""
    return _each_way(
        "dual_norms", "", batches, arrays, False, lambda module, members, given: module.dual_norms([batches[i] for i in members], given)
    )


def _each_way(
    name: str, accuracy: str, batches: Batches, arrays: Arrays, warm: bool, run: Callable[[Any, list[int], list[Any]], list[Any]]
) -> list[Any]:
    """The results of every leaf: one call for the leaves that kernels serve, another for the rest, on the device that holds the arrays."""
    with _on_their_device(batches, arrays):
        import cupy

        device = gpu.device(cupy.cuda.Device().id)
        ways: dict[Any, list[int]] = {cuda: [], plain: []}
        for i, (batch, array) in enumerate(zip(batches, arrays, strict=True)):
            operand = cuda.operand_of(batch, array.dtype, warm=warm and batch.geometry == "spectral")
            ways[cuda if device is not None and cuda.serves(name, accuracy, operand, device) else plain].append(i)
        results: list[Any] = [None] * len(batches)
        for module, members in ways.items():
            if members:
                given = [cupy.ascontiguousarray(arrays[i]) if module is cuda else arrays[i] for i in members]
                for i, result in zip(members, run(module, members, given), strict=True):
                    results[i] = result
        return results


def _on_their_device(batches: Batches, arrays: Arrays) -> AbstractContextManager[Any]:
    """Makes the arrays' device the current one; ValueError for arrays on two devices, or of other shapes or types than weights."""
    runtime.require_gpu()
    import cupy

    for batch, array in zip(batches, arrays, strict=True):
        expected = (batch.count, batch.rows, batch.cols)
        if array.shape != expected:
            raise ValueError(f"{batch.geometry}: expected shape {expected}, got {array.shape}")
        if dtype_name(array.dtype) not in DTYPES:
            raise ValueError(f"{batch.geometry}: expected {', '.join(DTYPES)}, got {dtype_name(array.dtype)}")
        if array.device.id != arrays[0].device.id:
            first, other = arrays[0].device.id, array.device.id
            raise ValueError(f"all arrays of a call must be on one GPU, got {first} for the first and {other} for a {batch.geometry} leaf")
    device: AbstractContextManager[Any] = cupy.cuda.Device(arrays[0].device.id if len(arrays) else None)
    return device
