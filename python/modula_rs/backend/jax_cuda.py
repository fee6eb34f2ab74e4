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

from modula_rs.backend import Group
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device, current
from modula_rs.kernels.plan import Launch, Leaf, Plan, relocate

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


def norms(groups: Sequence[Group], arrays: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.norms`."""
    return call(maps.norms, _leaves(groups, arrays), arrays, results=_numbers(groups, arrays))


def normalize(groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.normalize`; from a cold start."""
    return call(maps.normalize, _leaves(groups, arrays), arrays, scales)


def dualize(groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array], steps: int | None = None) -> list[Array]:
    """See `modula_rs.backend.cupy.dualize`."""
    return call(maps.dualize, _leaves(groups, arrays), arrays, scales, steps=steps)


def project(groups: Sequence[Group], arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.project`."""
    made = call(maps.project, _leaves(groups, arrays), arrays, scales)
    changed = ("spectral", "row_rms")
    return [new if group.geometry in changed else old for group, new, old in zip(groups, made, arrays, strict=True)]


def dual_norms(groups: Sequence[Group], arrays: Sequence[Array]) -> list[Array]:
    """See `modula_rs.backend.cupy.dual_norms`."""
    ones = [jnp.ones(group.count, jnp.float32) for group in groups]
    # Not by `dualize`'s default: 16-bit arrays would take the half-precision path.
    directions = call(maps.dualize, _leaves(groups, arrays), arrays, ones, precision="float32")
    return call(maps.dual_norms, _leaves(groups, arrays), arrays, others=directions, results=_numbers(groups, arrays))


def call(
    build: Callable[..., Plan],
    leaves: Sequence[Leaf],
    arrays: Sequence[Array],
    scales: Sequence[Array] | None = None,
    others: Sequence[Array] | None = None,
    results: Sequence[jax.ShapeDtypeStruct] | None = None,
    *,
    device: Device | None = None,
    enqueue: Callable[[Launch, Any], None] | None = None,
    address: Callable[[Any], int] | None = None,
    **options: Any,
) -> list[Array]:
    """One map as one callback. ``device``, ``enqueue`` and ``address`` are the GPU at hand, a launch on it and where a buffer of it lies;
    a test without one brings others."""
    from jax.experimental.buffer_callback import buffer_callback

    plan = build(list(leaves), device or current(), **options)
    if results is None:
        results = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    workspace = jax.ShapeDtypeStruct((plan.bytes,), jnp.uint8)
    wanted = [jnp.asarray(s, jnp.float32).reshape(-1) for s in scales] if scales is not None else [jnp.ones(leaf.count) for leaf in leaves]
    launcher, place = enqueue or _enqueue, address or _address

    def launch_all(context: Any, out: Any, sources: Any, scales: Any, others: Any) -> None:
        made, scratch = out
        base = place(scratch)
        roles = (sources, made, scales, others, (), ())
        addresses = [[place(buffer) for buffer in role] for role in roles]
        words = runtime.message(plan, base, addresses, [None] * len(leaves))
        for item in runtime.constant_uploads(plan, base):
            launcher(item, context)
        for item in runtime.uploads(words, base + plan.table):
            launcher(item, context)
        for item in plan.launches:
            launcher(relocate(item, base), context)

    operation = buffer_callback(launch_all, (list(results), workspace), vmap_method="sequential", command_buffer_compatible=True)
    made, _ = operation(list(arrays), wanted, list(others or []))
    return list(made)


def _enqueue(item: Launch, context: Any) -> None:
    import cupy

    runtime.enqueue(item, context.stream, cupy.cuda.Device().id)


def _address(buffer: Any) -> int:
    return int(buffer.__cuda_array_interface__["data"][0])


def _leaves(groups: Sequence[Group], arrays: Sequence[Array]) -> list[Leaf]:
    return [
        Leaf(group.geometry, group.count, group.rows, group.cols, array.dtype.name, scales_on_device=True)
        for group, array in zip(groups, arrays, strict=True)
    ]


def _numbers(groups: Sequence[Group], arrays: Sequence[Array]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct((group.count,), jnp.float64 if array.dtype == jnp.float64 else jnp.float32)
        for group, array in zip(groups, arrays, strict=True)
    ]
