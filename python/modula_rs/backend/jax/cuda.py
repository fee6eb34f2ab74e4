"""The CuPy kernels inside ``jax.jit``, on XLA's own stream: nothing leaves the device, nothing waits for the host.

Each map becomes one ``jax.experimental.buffer_callback``. XLA hands over addresses and its stream, and also the workspace, as an output
nobody reads: the callback allocates nothing, so that XLA may record the launches in a command buffer and replay them without Python.
``backend/jax.py`` is the reference and the fallback wherever `available` says no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import VECTORS, Batch
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device, current
from modula_rs.kernels.plan import Launch, Leaf, Plan, relocate, uploads

#: First CuPy with bfloat16 arrays and CUDA 13.
OLDEST_CUPY = (14, 0)


@cache
def available() -> bool:
    """Whether JAX computes on an NVIDIA GPU, new enough, and CuPy (14 or later) is there to launch on it."""
    if jax.default_backend() != "gpu":
        return False
    try:
        runtime.require_gpu()
        import cupy
        from jax.experimental.buffer_callback import buffer_callback  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    version = tuple(int(part) for part in cupy.__version__.split(".")[:2])
    return version >= OLDEST_CUPY and current().capability >= (8, 0)


def norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.norms`."""
    return call(maps.norms, _leaves(batches, arrays), arrays, results=_numbers(batches, arrays))[0]


def apply(
    op: str, accuracy: str, batches: Sequence[Batch], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """See `modula_rs.backend.cupy.apply`."""
    if op == "unit":
        return _unit(batches, arrays, scales, vectors)
    if op == "exact":
        made, _ = call(maps.project, _leaves(batches, arrays), arrays, scales)
    else:
        made, _ = call(maps.dualize, _leaves(batches, arrays), arrays, scales, accuracy=accuracy)
    return made, list(vectors)


def _unit(
    batches: Sequence[Batch], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """One step from the estimates given, which may be zeros or stale, as the device finds out. Where there are none, the cold start that is
    fast, and zeros, which stand for none."""
    leaves = _leaves(batches, arrays, vectors)
    given = [None if v is None else v.astype(_number(x)) for v, x in zip(vectors, arrays, strict=True)]
    made, found = call(maps.normalize, leaves, arrays, scales, vectors=given)
    # As the other platforms have them.
    estimates = [
        jnp.zeros((batch.count, VECTORS, batch.cols), _number(x))
        if old is None and batch.geometry == "spectral"
        else new
        if old is None or new is None
        else new.astype(jnp.promote_types(old.dtype, _number(x)))
        for batch, x, old, new in zip(batches, arrays, vectors, found, strict=True)
    ]
    return made, estimates


def dual_norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.dual_norms`."""
    # Not by `dualize`'s default: 16-bit arrays would take the half-precision path.
    directions, _ = call(maps.dualize, _leaves(batches, arrays), arrays, precision="float32")
    return call(maps.dual_norms, _leaves(batches, arrays), arrays, others=directions, results=_numbers(batches, arrays))[0]


def call(
    build: Callable[..., Plan],
    leaves: Sequence[Leaf],
    arrays: Sequence[Array],
    scales: Sequence[Array] | None = None,
    others: Sequence[Array] | None = None,
    results: Sequence[jax.ShapeDtypeStruct] | None = None,
    vectors: Sequence[Array | None] | None = None,
    *,
    device: Device | None = None,
    enqueue: Callable[[Launch, Any], None] | None = None,
    address: Callable[[Any], int] | None = None,
    **options: Any,
) -> tuple[list[Array], list[Array | None]]:
    """One map as one callback: its results, and the estimates that follow ``vectors``.

    ``device``, ``enqueue`` and ``address`` are the GPU at hand, a launch on it and where a buffer of it lies; a test without one brings
    others.
    """
    from jax.experimental.buffer_callback import buffer_callback

    plan = build(list(leaves), device or current(), **options)
    if results is None:
        results = [_shape(array.shape, array.dtype) for array in arrays]
    workspace = _shape((plan.bytes,), jnp.uint8)
    given = [1.0] * len(leaves) if scales is None else scales
    wanted = [jnp.broadcast_to(jnp.asarray(s, _number(x)), (leaf.count,)) for s, x, leaf in zip(given, arrays, leaves, strict=True)]
    warm = {i: v for i, v in enumerate(vectors or ()) if v is not None}
    launcher, place = enqueue or _enqueue, address or _address

    def launch_all(context: Any, out: Any, sources: Any, scales: Any, others: Any, estimates: Any) -> None:
        made, moved, scratch = out
        base = place(scratch)
        roles = [list(role) for role in (sources, made, scales, others)]
        for role in (estimates, moved):
            known = dict(zip(warm, role, strict=True))
            roles.append([known.get(i) for i in range(len(leaves))])
        addresses = [[0 if buffer is None else place(buffer) for buffer in role] for role in roles]
        words = runtime.message(plan, base, addresses, [None] * len(leaves))
        for item in runtime.constant_uploads(plan, base):
            launcher(item, context)
        for item in uploads(words, base + plan.table):
            launcher(item, context)
        for item in plan.launches:
            launcher(relocate(item, base), context)

    shapes = (list(results), [_shape(v.shape, v.dtype) for v in warm.values()], workspace)
    operation = buffer_callback(launch_all, shapes, vmap_method="sequential", command_buffer_compatible=True)
    made, moved, _ = operation(list(arrays), wanted, list(others or []), list(warm.values()))
    found = dict(zip(warm, moved, strict=True))
    return list(made), [found.get(i) for i in range(len(leaves))]


def _enqueue(item: Launch, context: Any) -> None:
    import cupy

    runtime.enqueue(item, context.stream, cupy.cuda.Device().id)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _address(buffer: Any) -> int:
    return int(buffer.__cuda_array_interface__["data"][0])


def _leaves(batches: Sequence[Batch], arrays: Sequence[Array], vectors: Sequence[Array | None] | None = None) -> list[Leaf]:
    warm = [False] * len(batches) if vectors is None else [v is not None for v in vectors]
    return [
        Leaf(batch.geometry, batch.count, batch.rows, batch.cols, array.dtype.name, scales_on_device=True, warm=w)
        for batch, array, w in zip(batches, arrays, warm, strict=True)
    ]


def _number(array: Array) -> Any:
    """What norms, scales and estimates are made of."""
    return jnp.float64 if array.dtype == jnp.float64 else jnp.float32


def _numbers(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
    return [_shape((batch.count,), _number(array)) for batch, array in zip(batches, arrays, strict=True)]
