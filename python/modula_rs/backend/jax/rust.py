"""The maps in Rust inside compiled JAX programs on the CPU, through XLA's foreign function interface: all leaves in one call, no copies.

The functions are those of :mod:`modula_rs.backend.jax.pure`, and give the same values to rounding.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from modula_rs import _core
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend.jax.blocks import arithmetic

Batches = tuple[Batch, ...]

# The versions of XLA's interface whose call frames are known to begin with the fields in rust/modula-ffi/src/abi.rs.
_OLDEST, _NEWEST = (0, 1), (0, 5)
_PREFIX = "modula_rs_"
#: Maps of more multiplications than one product of matrices of this many take a tenth of a second, or more.
_LONG = 512**3
#: Edge of a square matrix whose product with itself takes 8192 operations.
_EDGE = 16


@cache
def available() -> bool:
    """Whether XLA has our handlers. The first call registers them; it warns, once, if this JAX is too new or too old for them."""
    try:
        register()
    except Exception as error:  # a future JAX may raise anything, and the code in jax.numpy works without the handlers
        warnings.warn(f"modula_rs runs its jax.numpy code on the CPU, which is slower than Rust: {error}", RuntimeWarning, stacklevel=2)
        return False
    return True


@cache
def register() -> None:
    """Registers the handlers with XLA; RuntimeError if the handlers do not know this JAX's interface."""
    version = _interface_version()
    if not _OLDEST <= version <= _NEWEST:
        raise RuntimeError(
            f"jax {jax.__version__} has version {version[0]}.{version[1]} of the foreign function interface, "
            f"known are {_OLDEST[0]}.{_OLDEST[1]} to {_NEWEST[0]}.{_NEWEST[1]}"
        )
    for name, address in _core.ffi_handlers():
        jax.ffi.register_ffi_target(_PREFIX + name, jax.ffi.pycapsule(address), platform="cpu", api_version=1)


def _interface_version() -> tuple[int, int]:
    """The version of XLA's interface in this jaxlib, from the header that it ships."""
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    major, minor = (re.search(rf"#define XLA_FFI_API_{part} (\d+)", header) for part in ("MAJOR", "MINOR"))
    if major is None or minor is None:
        raise RuntimeError("jaxlib's xla/ffi/api/c_api.h does not say its version")
    return int(major[1]), int(minor[1])


def norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
    """The norm of every block."""
    return _elsewhere(batches, _call("norms", batches, jax.eval_shape(_one_per_block, list(arrays)), arrays))


def dual_norms(batches: Batches, arrays: Sequence[Array]) -> list[Array]:
    """The dual norm of every block."""
    return _elsewhere(batches, _call("dual_norms", batches, jax.eval_shape(_one_per_block, list(arrays)), arrays))


def apply(
    op: str, accuracy: str, batches: Batches, arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """The blocks after an operation, times the scales, and the estimates for the next call."""
    if op == "unit":
        return _unit(batches, arrays, scales, vectors)
    _, operations, accuracies = _core.ffi_tables()
    chosen = {"operation": np.array([operations.index(op)], np.int32), "accuracy": np.array([accuracies.index(accuracy)], np.int32)}
    operands = [*arrays, *_elsewhere(batches, scales)]
    return _call("apply", batches, jax.eval_shape(_products, arrays, scales), operands, **chosen), list(vectors)


def _unit(
    batches: Batches, arrays: Sequence[Array], scales: Sequence[Array], vectors: Sequence[Array | None]
) -> tuple[list[Array], list[Array | None]]:
    """Blocks divided by their norms (in a table each row by its RMS)."""
    spectral = [index for index, batch in enumerate(batches) if batch.geometry == "spectral"]
    results = jax.eval_shape(partial(_factors, batches), arrays, scales) + jax.eval_shape(
        lambda xs, vs: [_estimates(arithmetic(x)) if v is None else arithmetic(x)[:, :1] + v for x, v in zip(xs, vs, strict=True)],
        [arrays[index] for index in spectral],
        [vectors[index] for index in spectral],
    )
    found = _call("factors", batches, results, [*arrays, *scales, *(v for v in vectors if v is not None)])
    estimates: list[Array | None] = [None] * len(batches)
    for index, vector in zip(spectral, found[len(batches) :], strict=True):
        estimates[index] = vector
    # XLA fuses this multiplication with the operations after it, which reads and writes the blocks once less than in Rust.
    pairs = zip(arrays, found[: len(batches)], strict=True)
    return [(arithmetic(x) * factor[..., :1] * factor[..., 1:]).astype(x.dtype) for x, factor in pairs], estimates


# Result types come from `eval_shape` on an expression of the operands, because inside `shard_map` they also carry the mesh axes that a
# value varies over.
def _one_per_block(arrays: Sequence[Array]) -> list[Array]:
    return [arithmetic(x)[:, 0, 0] for x in arrays]


def _factors(batches: Batches, arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    """Two numbers for each matrix, or for each row of a table or vector."""
    each = [arithmetic(x) * scale[:, None, None] for x, scale in zip(arrays, scales, strict=True)]
    ends = [x[:, :1, :1] if batch.geometry == "spectral" else x[:, :, :1] for batch, x in zip(batches, each, strict=True)]
    return [jnp.repeat(x, 2, axis=2) for x in ends]


def _estimates(x: Array) -> Array:
    return jnp.repeat(x[:, :1], VECTORS, axis=1)


def _products(arrays: Sequence[Array], scales: Sequence[Array]) -> list[Array]:
    return [(arithmetic(x) * scale[:, None, None]).astype(x.dtype) for x, scale in zip(arrays, scales, strict=True)]


def _elsewhere(batches: Batches, numbers: Sequence[Array]) -> list[Array]:
    """Returns the same numbers. If the maps take long, adds a product of small matrices, for which XLA runs the program on another thread.

    XLA runs programs of fewer than 1000 operations on the thread that calls them, and calls into Rust count as none. JAX hears Ctrl-C only
    while it waits for another thread.
    """
    if sum(batch.count * batch.rows * batch.cols * min(batch.rows, batch.cols) for batch in batches) < _LONG:
        return list(numbers)
    first = numbers[0]
    # This matrix is finite whatever the numbers are, and XLA cannot compute it while it compiles the program.
    square = (first[:1] > 0).astype(first.dtype) * jnp.arange(_EDGE * _EDGE, dtype=first.dtype).reshape(_EDGE, _EDGE)
    return [first + 0 * jnp.dot(square, square)[0, 0], *numbers[1:]]


def _call(name: str, batches: Batches, results: Sequence[Any], operands: Sequence[Array], **attributes: Any) -> list[Array]:
    geometries, _, _ = _core.ffi_tables()
    indices = np.array([geometries.index(batch.geometry) for batch in batches], np.int32)
    # Under vmap every operand has one more leading axis, which the handlers count as more blocks.
    call = jax.ffi.ffi_call(_PREFIX + name, results, vmap_method="broadcast_all")
    return list(call(*operands, geometry=indices, **attributes))
