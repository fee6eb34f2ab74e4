"""The CuPy kernels inside ``jax.jit``, on XLA's own stream: no data leaves the device, and no step waits for the host.

Each map becomes one ``jax.experimental.buffer_callback``. XLA passes the addresses of the arrays and its stream, and also a workspace,
declared as an output that nothing reads. The callback allocates nothing, so XLA may record the launches in a command buffer and replay them
without Python. :mod:`modula_rs.backend.jax.pure` is the reference, and runs everything that no kernel serves or `device` does not allow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.backend.cupy.cuda import operand_of, serves
from modula_rs.backend.jax.pure import apply as apply_in_jnp
from modula_rs.backend.jax.pure import dual_norms as dual_norms_in_jnp
from modula_rs.backend.jax.pure import norms as norms_in_jnp
from modula_rs.kernels import maps, runtime
from modula_rs.kernels.device import Device
from modula_rs.kernels.launches import Launch, Operand, Plan, uploads

#: The first version of CuPy with bfloat16 arrays and CUDA 13.
OLDEST_CUPY = (14, 0)


class Unready(RuntimeError):
    """A kernel that cannot be compiled or loaded."""


def device() -> Device | None:
    """The NVIDIA GPUs of this process, with the kernels that may run on them; None if no kernel may, or if the GPUs differ."""
    if gpu.choice() == "portable" or jax.default_backend() != "gpu":
        return None
    try:
        runtime.require_gpu()
        import cupy
        from jax.experimental.buffer_callback import buffer_callback  # noqa: F401
    except (ImportError, RuntimeError):
        return None
    if tuple(int(part) for part in cupy.__version__.split(".")[:2]) < OLDEST_CUPY:
        return None
    found = {gpu.device(ordinal) for ordinal in _ordinals()}
    alike = found.pop() if len(found) == 1 else None
    return alike if alike is not None and "jax" in alike.allowed else None


def _ordinals() -> list[int]:
    """The numbers that CUDA gives to the GPUs of this process."""
    return [int(device.local_hardware_id) for device in jax.local_devices() if device.platform == "gpu"]


def norms(batches: Sequence[Batch], arrays: Sequence[Array], *, device: Device) -> list[Array]:
    """See `modula_rs.backend.cupy.norms`."""

    def ours(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        return call(maps.norms, _operands(batches, arrays), arrays, results=_numbers(batches), device=device)[0]

    return _each_way("norms", "", device, [False] * len(batches), ours, norms_in_jnp, batches, arrays)


def dual_norms(batches: Sequence[Batch], arrays: Sequence[Array], *, device: Device) -> list[Array]:
    """See `modula_rs.backend.cupy.dual_norms`."""

    def ours(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        # The precision is named because `dualize` would by default take half-precision products for 16-bit arrays.
        directions, _ = call(maps.dualize, _operands(batches, arrays), arrays, device=device, precision="float32")
        return call(maps.dual_norms, _operands(batches, arrays), arrays, others=directions, results=_numbers(batches), device=device)[0]

    return _each_way("dual_norms", "", device, [False] * len(batches), ours, dual_norms_in_jnp, batches, arrays)


def apply(
    op: str, accuracy: str, batches: Sequence[Batch], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None],
    *, device: Device,
) -> tuple[list[Array], list[Array | None]]:  # fmt: skip
    """See `modula_rs.backend.cupy.apply`. "exact" runs in `modula_rs.backend.jax.pure`, because no kernel computes it."""

    def ours(
        batches: Sequence[Batch], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
    ) -> list[tuple[Array, Array | None]]:
        if op == "unit":
            return _unit(batches, arrays, scales, vectors, device)
        made, _ = call(maps.dualize, _operands(batches, arrays), arrays, scales, device=device, accuracy=accuracy)
        return list(zip(made, vectors, strict=True))

    def theirs(batches: tuple[Batch, ...], *columns: Sequence[Any]) -> list[tuple[Array, Array | None]]:
        return list(zip(*apply_in_jnp(op, accuracy, batches, *columns), strict=True))

    warm = [op == "unit" and vector is not None for vector in vectors]
    pairs = _each_way(op, accuracy, device, warm, ours, theirs, batches, arrays, scales, vectors)
    return [made for made, _ in pairs], [found for _, found in pairs]


def _unit(
    batches: Sequence[Batch], arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None], device: Device
) -> list[tuple[Array, Array | None]]:
    """One step of block power iteration from the estimates given; the device detects zero or stale ones and searches anew.

    A leaf without estimates takes the faster search that finds none, and gets zeros, which stand for no estimates.
    """
    given = [None if v is None else v.astype(jnp.float32) for v in vectors]
    made, found = call(maps.normalize, _operands(batches, arrays, vectors), arrays, scales, vectors=given, device=device)
    # The estimates that are returned have the dtypes of the other platforms.
    estimates = [
        jnp.zeros((batch.count, VECTORS, batch.cols), jnp.float32)
        if old is None and batch.geometry == "spectral"
        else new
        if old is None or new is None
        else new.astype(jnp.promote_types(old.dtype, jnp.float32))
        for batch, old, new in zip(batches, vectors, found, strict=True)
    ]
    return list(zip(made, estimates, strict=True))


def _each_way(
    name: str, accuracy: str, device: Device, warm: Sequence[bool], by_kernels: Callable[..., list[Any]], in_jnp: Callable[..., list[Any]],
    batches: Sequence[Batch], *columns: Sequence[Any],
) -> list[Any]:  # fmt: skip
    """The results of every leaf: one call for the leaves that kernels serve, `jax.numpy` for the rest."""
    ours = [
        i for i, (batch, array) in enumerate(zip(batches, columns[0], strict=True))
        if serves(name, accuracy, operand_of(batch, array.dtype, warm=warm[i]), device)
    ]  # fmt: skip
    made: list[Any] = []
    try:
        if ours:
            made = by_kernels([batches[i] for i in ours], *([column[i] for i in ours] for column in columns))
    except Unready as error:
        warnings.warn(f"modula_rs: {error}; using jax.numpy, which is slower", RuntimeWarning, stacklevel=2)
        ours = []
    results = dict(zip(ours, made, strict=True))
    theirs = [i for i in range(len(batches)) if i not in results]
    if theirs:
        found = in_jnp(tuple(batches[i] for i in theirs), *([column[i] for i in theirs] for column in columns))
        results |= zip(theirs, found, strict=True)
    return [results[i] for i in range(len(batches))]


def call(
    build: Callable[..., Plan],
    operands: Sequence[Operand],
    arrays: Sequence[Array],
    scales: Sequence[Array] | None = None,
    others: Sequence[Array] | None = None,
    results: Sequence[jax.ShapeDtypeStruct] | None = None,
    vectors: Sequence[Array | None] | None = None,
    *,
    device: Device,
    **options: Any,
) -> tuple[list[Array], list[Array | None]]:
    """One map as one callback: its results, and the estimates after it if ``vectors`` are given.

    Every kernel is compiled and loaded here, when JAX traces, on every GPU of the process: the first run may be XLA's capture of a command
    buffer, in which nothing may be loaded. Raises `Unready` if a kernel cannot be compiled or loaded.
    """
    from jax.experimental.buffer_callback import buffer_callback

    plan = build(operands, device, **options)
    for ordinal in _ordinals():
        try:
            _prepare(plan, ordinal)
        except Exception as error:  # NVRTC, the driver and the cubin raise many kinds, and jax.numpy can run instead
            raise Unready(f"the GPU kernels cannot be loaded ({error})") from error
    if results is None:
        results = [_shape(array.shape, array.dtype) for array in arrays]
    workspace = _shape((plan.bytes,), jnp.uint8)
    given = [1.0] * len(operands) if scales is None else scales
    wanted = [jnp.broadcast_to(jnp.asarray(s, jnp.float32), (operand.count,)) for s, operand in zip(given, operands, strict=True)]
    warm = {i: v for i, v in enumerate(vectors or ()) if v is not None}
    # XLA's workspaces lie at few addresses, so the launches for each address are made once and kept.
    standing = lru_cache(maxsize=16)(partial(runtime.standing, plan))

    def launch_all(context: Any, out: Any, sources: Any, scales: Any, others: Any, estimates: Any) -> None:
        made, moved, scratch = out
        base = _address(scratch)
        roles = [list(role) for role in (sources, made, scales, others)]
        for role in (estimates, moved):
            known = dict(zip(warm, role, strict=True))
            roles.append([known.get(i) for i in range(len(operands))])
        addresses = [[0 if buffer is None else _address(buffer) for buffer in role] for role in roles]
        words = runtime.message(plan, base, addresses, [None] * len(operands))
        constants, launches = standing(base)
        for item in (*constants, *uploads(words, base + plan.table), *launches):
            _enqueue(item, context)

    shapes = (list(results), [_shape(v.shape, v.dtype) for v in warm.values()], workspace)
    operation = buffer_callback(launch_all, shapes, vmap_method="sequential", command_buffer_compatible=True)
    made, moved, _ = operation(list(arrays), wanted, list(others or []), list(warm.values()))
    found = dict(zip(warm, moved, strict=True))
    return list(made), [found.get(i) for i in range(len(operands))]


def _prepare(plan: Plan, ordinal: int) -> None:
    runtime.prepare(plan, ordinal)


def _enqueue(item: Launch, context: Any) -> None:
    import cupy

    runtime.enqueue(item, context.stream, cupy.cuda.Device().id)


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _address(buffer: Any) -> int:
    return int(buffer.__cuda_array_interface__["data"][0])


def _operands(batches: Sequence[Batch], arrays: Sequence[Array], vectors: Sequence[Array | None] | None = None) -> list[Operand]:
    warm = [False] * len(batches) if vectors is None else [v is not None for v in vectors]
    return [operand_of(batch, array.dtype, scales_on_device=True, warm=w) for batch, array, w in zip(batches, arrays, warm, strict=True)]


def _numbers(batches: Sequence[Batch]) -> list[jax.ShapeDtypeStruct]:
    return [_shape((batch.count,), jnp.float32) for batch in batches]
