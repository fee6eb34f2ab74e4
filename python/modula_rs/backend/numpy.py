"""NumPy arrays, through Rust: one call for the whole list of arrays, without the interpreter lock, on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import Any

import numpy as np

from modula_rs import _core
from modula_rs.arrays import dtype_name, working_dtype

#: Results are allocated together in blocks just under 32 MiB, glibc's limit for reusing freed memory.
_BLOCK = 2**25 - 2**16


def _native(w: Sequence[Any]) -> list[tuple[Any, str]]:
    """Arrays as Rust reads them: contiguous, aligned, in native byte order, and half precision as 16-bit integers."""
    arrays = []
    for array in w:
        name, native = dtype_name(array.dtype), array
        flags = array.flags
        if not (type(array) is np.ndarray and array.dtype.isnative and flags.c_contiguous and flags.aligned):
            native = np.require(array, array.dtype.newbyteorder("="), ["C", "A", "E"])
        arrays.append((native.view(np.uint16) if native.itemsize == 2 else native, name))
    return arrays


def _room(arrays: list[tuple[Any, str]]) -> tuple[list[Any], list[Any]]:
    """Output buffers, side by side in few blocks of memory, and these blocks.

    The C library keeps one such block for the next call, but returns the same memory in many pieces to the system after each call. Touching
    fresh pages took up to a tenth of the time of `dualize`.
    """
    together: list[list[Any]] = []
    used = 0
    for array, _ in arrays:
        if not together or together[-1][0].dtype != array.dtype or used + array.nbytes > _BLOCK:
            together.append([])
            used = 0
        together[-1].append(array)
        used += array.nbytes
    buffers: list[Any] = []
    blocks: list[Any] = []
    for neighbours in together:
        block, end = np.empty(sum(array.size for array in neighbours), neighbours[0].dtype), 0
        blocks.append(block)
        for shape, alike in groupby(neighbours, attrgetter("shape")):
            count = len(list(alike))
            begin, end = end, end + count * prod(shape)
            # A loop over a stack makes its views faster than a slice and a reshape for each.
            stack = block[begin:end].reshape(count, *shape)
            buffers.extend(stack if shape else (stack[i : i + 1].reshape(()) for i in range(count)))
    return buffers, [block for block in blocks if block.size]


def execute(
    norm: _core.Norm,
    recipe: _core.Recipe,
    w: Sequence[Any],
    vectors: Sequence[Any | None] | None,
    amount: float,
    accuracy: str,
    nonfinite: str,
) -> tuple[list[Any], list[Any | None]]:
    """The results of a map, in the dtypes of the arrays, and the singular vector estimates for the next call."""
    arrays = _native(w)
    buffers, blocks = _room(arrays)
    refined = None if vectors is None else [_copied(v, a) for v, a in zip(vectors, w, strict=True)]
    _core.execute(norm, recipe, arrays, blocks, refined, amount, accuracy, nonfinite)
    results = []
    for buffer, array in zip(buffers, w, strict=True):
        result = buffer.view(array.dtype.newbyteorder("=")) if array.itemsize == 2 else buffer
        results.append(result if result.dtype == array.dtype else result.astype(array.dtype))
    return results, [None] * len(results) if refined is None else refined


def measure(norm: _core.Norm, measures: _core.Measures, w: Sequence[Any], *, dual: bool) -> list[Any]:
    """For every leaf, the largest of norm over target, or, if ``dual``, the sum of target times dual norm."""
    return list(_core.measure(norm, measures, _native(w), dual))


def _copied(vector: Any | None, array: Any) -> Any | None:
    """A copy of the estimates, which Rust may overwrite."""
    return None if vector is None else np.array(vector, working_dtype(array.dtype), order="C")
