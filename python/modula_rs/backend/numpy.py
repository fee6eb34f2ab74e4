"""NumPy arrays, through Rust: one crossing for the whole list, the interpreter lock released, all cores at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import _core
from modula_rs.arrays import dtype_name
from modula_rs.norm.table import Plan

#: Bytes of results that lie side by side: glibc keeps blocks of less than 32 MiB for the next call. It always keeps small ones.
_BLOCK, _SMALL = 2**25 - 2**16, 2**17


def _native(w: Sequence[Any]) -> list[tuple[Any, str]]:
    """Arrays as Rust reads them: contiguous, aligned, in native byte order, half precision as its bits."""
    arrays = []
    for array in w:
        name, native = dtype_name(array.dtype), array
        if not (type(array) is np.ndarray and array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned):
            native = np.require(array, array.dtype.newbyteorder("="), ["C", "A", "E"])
        arrays.append((native.view(np.uint16) if native.itemsize == 2 else native, name))
    return arrays


def _rooms(arrays: list[tuple[Any, str]]) -> list[Any]:
    """Room for as many results, side by side in few blocks.

    The C library keeps a block for the next call, where it hands as much memory in many pieces back to the system, call after call; and
    pages fresh from the system took up to a tenth of the time of `dualize`.
    """
    if sum(array.nbytes for array, _ in arrays) < _SMALL:
        return [np.empty(array.shape, array.dtype) for array, _ in arrays]
    together: list[list[Any]] = []
    used = 0
    for array, _ in arrays:
        if not together or together[-1][0].dtype != array.dtype or used + array.nbytes > _BLOCK:
            together.append([])
            used = 0
        together[-1].append(array)
        used += array.nbytes
    rooms = []
    for neighbours in together:
        block, end = np.empty(sum(array.size for array in neighbours), neighbours[0].dtype), 0
        for array in neighbours:
            begin, end = end, end + array.size
            # Two empty arrays at one place would pass for one that is written to twice.
            rooms.append(block[begin:end].reshape(array.shape) if array.size else np.empty(array.shape, array.dtype))
    return rooms


def _mapped(function: Any, plan: Plan, w: Sequence[Any], *options: Any) -> list[Any]:
    """The results of one of the maps, in the dtypes of the arrays given."""
    arrays = _native(w)
    rooms = _rooms(arrays)
    function(plan.core, [(array, room, name) for (array, name), room in zip(arrays, rooms, strict=True)], *options)
    given = []
    for room, array in zip(rooms, w, strict=True):
        result = room.view(array.dtype.newbyteorder("=")) if array.itemsize == 2 else room
        given.append(result if result.dtype == array.dtype else result.astype(array.dtype))
    return given


def norms(plan: Plan, w: Sequence[Any]) -> list[Any]:
    """For every leaf, the largest of norm over target."""
    return _core.norms(plan.core, _native(w))


def dual_norms(plan: Plan, g: Sequence[Any]) -> list[Any]:
    """For every leaf, the sum of target times dual norm."""
    return _core.dual_norms(plan.core, _native(g))


def normalize(plan: Plan, w: Sequence[Any], target_norm: Any, nonfinite: str) -> list[Any]:
    """Every leaf brought to its target norm."""
    return _mapped(_core.normalize, plan, w, float(target_norm), nonfinite)


def dualize(plan: Plan, g: Sequence[Any], target_norm: Any, steps: int | None, nonfinite: str) -> list[Any]:
    """The steepest direction."""
    return _mapped(_core.dualize, plan, g, float(target_norm), steps, nonfinite)


def project(plan: Plan, w: Sequence[Any], nonfinite: str) -> list[Any]:
    """Back to the natural set."""
    return _mapped(_core.project, plan, w, nonfinite)


def regularize(plan: Plan, w: Sequence[Any], strength: Any) -> list[Any]:
    """Decay by strength times target."""
    return _mapped(_core.regularize, plan, w, float(strength))
