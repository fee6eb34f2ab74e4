"""The maps on CuPy arrays: a few kernel launches for a whole model, recorded in a CUDA graph.

Every function takes one array of shape (count, rows, cols) for each leaf and returns new arrays; inputs are never written to.
Importing this module imports neither CuPy nor a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from modula_rs.backend import VECTORS, Batch
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device, current
from modula_rs.kernels.plan import Leaf, Plan

if TYPE_CHECKING:
    import cupy

Arrays = Sequence[Any]
Batches = Sequence[Batch]


@cache
def _device(ordinal: int) -> Device:
    return current()


def _leaves(batches: Batches, arrays: Arrays, **flags: list[bool]) -> tuple[Leaf, ...]:
    columns = tuple((name, tuple(column)) for name, column in flags.items())
    return _cached_leaves(tuple(batches), tuple(array.dtype for array in arrays), columns)


@lru_cache(maxsize=256)
def _cached_leaves(
    batches: tuple[Batch, ...], dtypes: tuple[Any, ...], flags: tuple[tuple[str, tuple[bool, ...]], ...]
) -> tuple[Leaf, ...]:
    """Kept, since the name of a dtype alone takes a microsecond to find, and a call has fifty."""
    return tuple(
        Leaf(batch.geometry, batch.count, batch.rows, batch.cols, dtype.name, **{name: column[i] for name, column in flags})
        for i, (batch, dtype) in enumerate(zip(batches, dtypes, strict=True))
    )


def _scales(scales: Arrays, batches: Batches, given: Arrays) -> tuple[list[Any], list[Any]]:
    """Host scales as float64 arrays; device scales in float32, for float64 arrays in float64; None in the other list."""
    import cupy

    host: list[Any] = []
    device: list[Any] = []
    for scale, batch, array in zip(scales, batches, given, strict=True):
        shape = (batch.count,)
        if isinstance(scale, np.ndarray) and scale.shape == shape and scale.dtype == np.float64:
            host.append(scale)  # what the maps pass: this loop is on the way of every training step
            device.append(None)
            continue
        on_device = isinstance(scale, cupy.ndarray)
        device.append(cupy.ascontiguousarray(cupy.broadcast_to(scale, shape), _number_dtype(array)) if on_device else None)
        host.append(None if on_device else np.broadcast_to(np.asarray(scale, np.float64), shape))
    return host, device


def _run(
    build: Callable[..., Plan], leaves: tuple[Leaf, ...],
    sources: Arrays, results: Arrays, scales: tuple[list[Any], list[Any]] | None = None,
    others: Arrays | None = None, vectors: Arrays | None = None, moved: Arrays | None = None, **options: Any,
) -> None:  # fmt: skip
    import cupy

    host, on_device = scales if scales is not None else ([np.ones(leaf.count) for leaf in leaves], [None] * len(leaves))
    ordinal, stream = cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr
    call = runtime.executable(build, leaves, _device(ordinal), ordinal, stream, tuple(options.items()))
    roles = (sources, results, on_device, others, vectors, moved)
    call([[0 if array is None else array.data.ptr for array in role or ()] for role in roles], host)


def _inputs(batches: Batches, arrays: Arrays) -> list[cupy.ndarray]:
    runtime.require_gpu()
    import cupy

    given = []
    for batch, array in zip(batches, arrays, strict=True):
        expected = (batch.count, batch.rows, batch.cols)
        if array.shape != expected:
            raise ValueError(f"{batch.geometry}: expected shape {expected}, got {array.shape}")
        given.append(cupy.ascontiguousarray(array))
    return given


def _number_dtype(array: Any) -> str:
    return "float64" if array.dtype.name == "float64" else "float32"


def norms(batches: Batches, arrays: Arrays) -> list[cupy.ndarray]:
    """Norm of every block, (count,) for each leaf, float32 (float64 for float64 leaves); 0 for empty blocks."""
    given = _inputs(batches, arrays)
    import cupy

    results = [cupy.zeros(batch.count, _number_dtype(array)) for batch, array in zip(batches, given, strict=True)]
    _run(maps.norms, _leaves(batches, given), given, results)
    return results


def dual_norms(batches: Batches, arrays: Arrays) -> list[cupy.ndarray]:
    """Dual norm of every block, (count,) for each leaf. Spectral: <g, U V^T>, with U V^T from `direction`."""
    given = _inputs(batches, arrays)
    import cupy

    results = [cupy.zeros(batch.count, _number_dtype(array)) for batch, array in zip(batches, given, strict=True)]
    spectral = [i for i, batch in enumerate(batches) if batch.geometry == "spectral"]
    others: list[Any] = [None] * len(batches)
    if spectral:
        chosen = [batches[i] for i in spectral]
        found = direction(chosen, [given[i] for i in spectral], [1.0] * len(spectral), precision="float32")
        for i, each in zip(spectral, found, strict=True):
            others[i] = each
    _run(maps.dual_norms, _leaves(batches, given), given, results, others=others)
    return results


def apply(
    op: str,
    batches: Batches,
    arrays: Arrays,
    scales: Arrays,
    *,
    vectors: Arrays | None = None,
    accuracy: str = "standard",
) -> tuple[list[cupy.ndarray], list[cupy.ndarray | None]]:
    """See :class:`modula_rs.backend.Backend`."""
    match op:
        case "unit":
            return _unit(batches, arrays, scales, vectors)
        case "direction":
            return direction(batches, arrays, scales, accuracy), [None] * len(arrays)
        case _:
            return _exact(batches, arrays, scales), [None] * len(arrays)


def direction(
    batches: Batches, arrays: Arrays, scales: Arrays, accuracy: str = "standard", precision: str | None = None
) -> list[cupy.ndarray]:
    """The steepest direction of every block times its scale; ``precision`` as for :func:`modula_rs.kernels.maps.dualize`."""
    given = _inputs(batches, arrays)
    host, device = _scales(scales, batches, given)
    results = [_empty_like(array) for array in given]
    leaves = _leaves(batches, given, scales_on_device=[s is not None for s in device])
    _run(maps.dualize, leaves, given, results, (host, device), accuracy=accuracy, precision=precision)
    return results


def _exact(batches: Batches, arrays: Arrays, scales: Arrays) -> list[cupy.ndarray]:
    """Spectral blocks to U V^T times the scale (singular values below rounding stay zero), rows of tables to RMS 1 times the scale."""
    given = _inputs(batches, arrays)
    host, device = _scales(scales, batches, given)
    results = [_empty_like(a) for a in given]
    leaves = _leaves(batches, given, scales_on_device=[s is not None for s in device])
    _run(maps.project, leaves, given, results, (host, device))
    return results


def _unit(batches: Batches, arrays: Arrays, scales: Arrays, vectors: Arrays | None) -> tuple[list[cupy.ndarray], list[cupy.ndarray | None]]:
    """Every block over its norm (``row_rms``: every row), times its scale.

    Without ``vectors``: the true norms to within 1 %, from any spectrum, and no estimates, which is the faster cold start. With them, one
    step; the device searches from cold for the matrices whose estimates are stale or missing.
    """
    given = _inputs(batches, arrays)
    host, device = _scales(scales, batches, given)
    estimates = _estimates(batches, given, vectors)
    moved = [v if v is None or not array.size else _empty_like(v) for v, array in zip(estimates, given, strict=True)]
    results = [_empty_like(array) for array in given]
    leaves = _leaves(batches, given, scales_on_device=[s is not None for s in device], warm=[v is not None for v in estimates])
    _run(maps.normalize, leaves, given, results, (host, device), None, estimates, moved)
    return results, moved


def _estimates(batches: Batches, given: Arrays, vectors: Arrays | None) -> list[Any]:
    """The estimates of every spectral leaf, zeros where it has none; None for the others, or for all if nobody wants them."""
    if vectors is None:
        return [None] * len(given)
    import cupy

    estimates: list[Any] = [None] * len(given)
    for i, (batch, array, vector) in enumerate(zip(batches, given, vectors, strict=True)):
        if batch.geometry != "spectral":
            continue
        shape, dtype = (batch.count, VECTORS, batch.cols), _number_dtype(array)
        estimates[i] = cupy.zeros(shape, dtype) if vector is None else cupy.ascontiguousarray(vector, dtype)
        if estimates[i].shape != shape:
            raise ValueError(f"vectors[{i}]: expected shape {shape}, got {estimates[i].shape}")
    return estimates


def _empty_like(array: Any) -> cupy.ndarray:
    import cupy

    return cupy.empty(array.shape, array.dtype)
