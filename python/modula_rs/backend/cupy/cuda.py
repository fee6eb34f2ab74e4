"""The maps on CuPy arrays by our own kernels: a few launches for a whole model, recorded in a CUDA graph.

Every function takes one float32 or 16-bit array of shape (count, rows, cols) for each leaf, contiguous and on the current device, and
returns new arrays. `serves` says which leaves the kernels can take. Importing this module imports neither CuPy nor a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device
from modula_rs.kernels.launches import Operand, Plan, Unavailable

if TYPE_CHECKING:
    import cupy

Arrays = Sequence[Any]
Batches = Sequence[Batch]
#: The planners that each operation and measure calls; kernels serve it only if all of them succeed. No kernel computes "exact".
PLANS: dict[str, tuple[Callable[..., Plan], ...]] = {
    "norms": (maps.norms,),
    "dual_norms": (partial(maps.dualize, precision="float32"), maps.dual_norms),
    "unit": (maps.normalize,),
    "direction": (maps.dualize,),
}


@lru_cache(maxsize=1024)
def serves(name: str, accuracy: str, operand: Operand, device: Device) -> bool:
    """Whether the kernels that may run on the device can compute ``name`` (an operation, "norms" or "dual_norms") for an operand."""
    options = {"accuracy": accuracy} if name == "direction" else {}
    try:
        for build in PLANS.get(name, ()):
            build((operand,), device, **options)
    except Unavailable:
        return False
    return name in PLANS


def operand_of(batch: Batch, dtype: Any, **flags: bool) -> Operand:
    """A leaf in the planner's terms."""
    return Operand(batch.geometry, batch.count, batch.rows, batch.cols, dtype.name, **flags)


def _operands(batches: Batches, arrays: Arrays, **flags: list[bool]) -> tuple[Operand, ...]:
    columns = tuple((name, tuple(column)) for name, column in flags.items())
    return _cached_operands(tuple(batches), tuple(array.dtype for array in arrays), columns)


@lru_cache(maxsize=256)
def _cached_operands(
    batches: tuple[Batch, ...], dtypes: tuple[Any, ...], flags: tuple[tuple[str, tuple[bool, ...]], ...]
) -> tuple[Operand, ...]:
    """The operands, cached: composing the name of a dtype takes a microsecond, and a call has about fifty."""
    return tuple(
        operand_of(batch, dtype, **{name: column[i] for name, column in flags})
        for i, (batch, dtype) in enumerate(zip(batches, dtypes, strict=True))
    )


def _scales(scales: Arrays, batches: Batches) -> tuple[list[Any], list[Any]]:
    """Scales on the host as float64 arrays, and scales on the device in float32; each list has None for the scales of the other."""
    import cupy

    host: list[Any] = []
    device: list[Any] = []
    for scale, batch in zip(scales, batches, strict=True):
        shape = (batch.count,)
        if isinstance(scale, np.ndarray) and scale.shape == shape and scale.dtype == np.float64:
            host.append(scale)  # the usual case, checked first because this loop runs in every training step
            device.append(None)
            continue
        on_device = isinstance(scale, cupy.ndarray)
        device.append(cupy.ascontiguousarray(cupy.broadcast_to(scale, shape), "float32") if on_device else None)
        host.append(None if on_device else np.broadcast_to(np.asarray(scale, np.float64), shape))
    return host, device


def _run(
    build: Callable[..., Plan], operands: tuple[Operand, ...],
    sources: Arrays, results: Arrays, scales: tuple[list[Any], list[Any]] | None = None,
    others: Arrays | None = None, vectors: Arrays | None = None, moved: Arrays | None = None, **options: Any,
) -> None:  # fmt: skip
    import cupy

    host, on_device = scales if scales is not None else ([np.ones(operand.count) for operand in operands], [None] * len(operands))
    device = gpu.device(cupy.cuda.Device().id)
    if device is None:
        raise Unavailable("no kernel may run on this device")
    roles = (sources, results, on_device, others, vectors, moved)
    addresses = [[0 if array is None else array.data.ptr for array in role or ()] for role in roles]
    runtime.run(build, operands, device, addresses, host, **options)


def norms(batches: Batches, arrays: Arrays) -> list[cupy.ndarray]:
    """The norm of every block, float32 (count,) for each leaf; 0 for empty blocks."""
    import cupy

    results = [cupy.zeros(batch.count, "float32") for batch in batches]
    _run(maps.norms, _operands(batches, arrays), arrays, results)
    return results


def dual_norms(batches: Batches, arrays: Arrays) -> list[cupy.ndarray]:
    """The dual norm of every block, float32 (count,) for each leaf. For a matrix g it is <g, U V^T>, with U V^T from `direction`."""
    import cupy

    results = [cupy.zeros(batch.count, "float32") for batch in batches]
    spectral = [i for i, batch in enumerate(batches) if batch.geometry == "spectral"]
    directions: list[Any] = [None] * len(batches)
    if spectral:
        chosen = [batches[i] for i in spectral]
        found = direction(chosen, [arrays[i] for i in spectral], [1.0] * len(spectral), precision="float32")
        for i, each in zip(spectral, found, strict=True):
            directions[i] = each
    _run(maps.dual_norms, _operands(batches, arrays), arrays, results, others=directions)
    return results


def apply(
    op: str, batches: Batches, arrays: Arrays, scales: Arrays, *, vectors: Arrays | None = None, accuracy: str = "standard"
) -> tuple[list[cupy.ndarray], list[cupy.ndarray | None]]:
    """See :class:`modula_rs.backend.Backend`; only ``"unit"`` and ``"direction"`` are served."""
    if op == "unit":
        return _unit(batches, arrays, scales, vectors)
    return direction(batches, arrays, scales, accuracy), [None] * len(arrays)


def direction(
    batches: Batches, arrays: Arrays, scales: Arrays, accuracy: str = "standard", precision: str | None = None
) -> list[cupy.ndarray]:
    """The steepest direction of every block times its scale; for ``precision`` see :func:`modula_rs.kernels.maps.dualize`."""
    host, device = _scales(scales, batches)
    results = [_empty_like(array) for array in arrays]
    operands = _operands(batches, arrays, scales_on_device=[s is not None for s in device])
    _run(maps.dualize, operands, arrays, results, (host, device), accuracy=accuracy, precision=precision)
    return results


def _unit(batches: Batches, arrays: Arrays, scales: Arrays, vectors: Arrays | None) -> tuple[list[cupy.ndarray], list[cupy.ndarray | None]]:
    """Every block divided by its norm (in a table every row by its RMS), times its scale.

    Without ``vectors`` the norms are within 1 % of the true ones for any spectrum, and no estimates are returned; this is the faster start.
    With ``vectors`` it takes one step of block power iteration, and the device searches anew for matrices whose estimates are stale or
    zero.
    """
    host, device = _scales(scales, batches)
    estimates = _estimates(batches, vectors)
    moved = [v if v is None or not array.size else _empty_like(v) for v, array in zip(estimates, arrays, strict=True)]
    results = [_empty_like(array) for array in arrays]
    flags = {"scales_on_device": [s is not None for s in device], "warm": [v is not None for v in estimates]}
    _run(maps.normalize, _operands(batches, arrays, **flags), arrays, results, (host, device), vectors=estimates, moved=moved)
    return results, moved


def _estimates(batches: Batches, vectors: Arrays | None) -> list[Any]:
    """The estimates of each spectral leaf, zeros for a leaf that has none; None for other leaves, and for all if none are asked for."""
    if vectors is None:
        return [None] * len(batches)
    import cupy

    estimates: list[Any] = [None] * len(batches)
    for i, (batch, vector) in enumerate(zip(batches, vectors, strict=True)):
        if batch.geometry == "spectral":
            shape = (batch.count, VECTORS, batch.cols)
            estimates[i] = cupy.zeros(shape, "float32") if vector is None else cupy.ascontiguousarray(vector, "float32")
    return estimates


def _empty_like(array: Any) -> cupy.ndarray:
    import cupy

    return cupy.empty(array.shape, array.dtype)
