"""NumPy arrays, through Rust: one crossing for the whole list, the interpreter lock released, all cores at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import _core
from modula_rs.arrays import dtype_name
from modula_rs.plan import Plan


def _native(w: Sequence[Any]) -> list[tuple[Any, str]]:
    """Arrays as Rust reads them: contiguous, aligned, in native byte order, half precision as its bits."""
    arrays = []
    for array in w:
        name, native = dtype_name(array.dtype), array
        if not (type(array) is np.ndarray and array.dtype.isnative and array.flags.c_contiguous and array.flags.aligned):
            native = np.require(array, array.dtype.newbyteorder("="), ["C", "A", "E"])
        arrays.append((native.view(np.uint16) if native.itemsize == 2 else native, name))
    return arrays


def _as_given(results: list[Any], w: Sequence[Any]) -> list[Any]:
    """Results in the dtypes of the arrays given."""
    given = []
    for result, array in zip(results, w, strict=True):
        if array.itemsize == 2:
            result = result.view(array.dtype.newbyteorder("="))
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
    return _as_given(_core.normalize(plan.core, _native(w), float(target_norm), nonfinite), w)


def dualize(plan: Plan, g: Sequence[Any], target_norm: Any, steps: int | None, nonfinite: str) -> list[Any]:
    """The steepest direction."""
    return _as_given(_core.dualize(plan.core, _native(g), float(target_norm), steps, nonfinite), g)


def project(plan: Plan, w: Sequence[Any], nonfinite: str) -> list[Any]:
    """Back to the natural set."""
    return _as_given(_core.project(plan.core, _native(w), nonfinite), w)


def regularize(plan: Plan, w: Sequence[Any], strength: Any) -> list[Any]:
    """Decay by strength times target."""
    return _as_given(_core.regularize(plan.core, _native(w), float(strength)), w)
