"""The maps on JAX arrays: functions on whole models, with one array (count, rows, cols) for each leaf, under jit, grad, vmap and scan.

On the CPU they run in Rust (:mod:`modula_rs.backend.jax.rust`), except in programs that ``jax.export`` saves. On an NVIDIA GPU they run as
CUDA kernels, if CuPy is installed and the kernels are proved on the machine (:mod:`modula_rs.backend.jax.cuda`). Elsewhere they run in
`jax.numpy` (:mod:`modula_rs.backend.jax.pure`). Each of these providers has ``apply(op, accuracy, batches, arrays, scales, vectors)``,
``norms(batches, arrays)`` and ``dual_norms(batches, arrays)``, for arrays that have entries.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from modula_rs.arrays import working_dtype
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend.jax import cuda, pure, rust
from modula_rs.backend.jax.blocks import arithmetic
from modula_rs.backend.jax.exported import unless_exported
from modula_rs.kernels.device import Device

__all__ = ["CPU_BACKENDS", "apply", "cpu_backend", "dual_norms", "norms", "set_cpu_backend"]

CPU_BACKENDS = ("auto", "rust", "jnp")
_chosen: ContextVar[str | None] = ContextVar("_chosen", default=None)
_default = os.environ.get("MODULA_RS_CPU_BACKEND") or "auto"


def set_cpu_backend(name: str) -> None:
    """Chooses what runs the maps on JAX arrays on the CPU, for this process. Compiled functions keep what they were compiled with.

    Args:
        name: "rust"; "jnp", the `jax.numpy` code of the other platforms; or "auto", Rust wherever this JAX can call it. The environment
            variable MODULA_RS_CPU_BACKEND sets the choice before the start.
    """
    global _default
    _default = _checked(name)


@contextmanager
def cpu_backend(name: str) -> Iterator[None]:
    """The same choice for everything traced inside a `with` block, in this thread."""
    token = _chosen.set(_checked(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def _checked(name: str, named: str = "the CPU backend") -> str:
    if name not in CPU_BACKENDS:
        raise ValueError(f"{named} must be one of {', '.join(CPU_BACKENDS)}, got {name!r}")
    return name


def choice() -> str:
    """The choice in force here: "auto", "rust" or "jnp"; ValueError if the environment variable has another name."""
    return _chosen.get() or _checked(_default, "MODULA_RS_CPU_BACKEND")


def _in_rust() -> bool:
    name = choice()
    if name == "rust":
        rust.register()
    return name == "rust" or (name == "auto" and rust.available())


def choices() -> tuple[Any, ...]:
    """What compiled programs depend on besides their arguments: whether maps run in Rust, and the GPUs that may run kernels."""
    return _in_rust(), cuda.device()


def apply(
    op: str,
    batches: Sequence[Batch],
    arrays: Sequence[Array],
    scales: Sequence[Any],
    *,
    vectors: Sequence[Array | None] | None = None,
    accuracy: str = "standard",
) -> tuple[list[Array], list[Array | None]]:
    """See :class:`modula_rs.backend.Backend`."""
    kept = _with_entries(arrays)
    given = [None] * len(batches) if vectors is None else [None if v is None else arithmetic(v) for v in vectors]
    working = [jnp.asarray(s, arithmetic(x).dtype) for x, s in zip(arrays, scales, strict=True)]
    made, found = _run("apply", batches, kept, arrays, working, given, options=(op, accuracy))
    missing = [
        _zeros((b.count, VECTORS, b.cols), x) if op == "unit" and v is None and b.geometry == "spectral" else v
        for v, b, x in zip(given, batches, arrays, strict=True)
    ]
    return _placed(arrays, kept, made), _placed(missing, kept, found)


def norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See :class:`modula_rs.backend.Backend`."""
    return _measure("norms", batches, arrays)


def dual_norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    """See :class:`modula_rs.backend.Backend`."""
    return _measure("dual_norms", batches, arrays)


def _measure(name: str, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
    kept = _with_entries(arrays)
    return _placed([_zeros((b.count,), x) for b, x in zip(batches, arrays, strict=True)], kept, _run(name, batches, kept, arrays))


def _with_entries(arrays: Sequence[Array]) -> list[int]:
    return [index for index, array in enumerate(arrays) if array.size > 0]


def _zeros(shape: tuple[int, ...], x: Array) -> Array:
    return jnp.zeros(shape, working_dtype(x.dtype))


def _placed(originals: Sequence[Any], kept: Sequence[int], results: Sequence[Any]) -> list[Any]:
    """The originals, with the results in the places of the leaves that were kept."""
    placed = list(originals)
    for index, result in zip(kept, results, strict=True):
        placed[index] = result
    return placed


def _run(name: str, batches: Sequence[Batch], kept: Sequence[int], *operands: Sequence[Any], options: tuple[str, ...] = ()) -> Any:
    """One of the three functions on the leaves that are kept, in one call."""
    if not kept:
        return ([], []) if name == "apply" else []
    static = tuple(Batch(*batches[index]) for index in kept)
    return _compiled(name, _in_rust(), cuda.device(), (*options, static), *([operand[index] for index in kept] for operand in operands))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _compiled(name: str, in_rust: bool, device: Device | None, static: tuple[Any, ...], *operands: list[Any]) -> Any:
    in_jnp: Callable[..., Any] = partial(getattr(pure, name), *static)
    special: dict[str, Callable[..., Any]] = {}
    if in_rust:
        special["cpu"] = unless_exported(partial(getattr(rust, name), *static), in_jnp)
    if device is not None:
        special["cuda"] = partial(getattr(cuda, name), *static, device=device)
    if not special:
        return in_jnp(*operands)

    @jax.custom_jvp
    def either(*operands: list[Any]) -> Any:
        return lax.platform_dependent(*operands, **special, default=in_jnp)

    # Derivatives are taken of the jax.numpy code.
    either.defjvp(lambda primals, tangents: jax.jvp(in_jnp, primals, tangents))
    return either(*operands)
