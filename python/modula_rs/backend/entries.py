"""The operations on table rows and on vectors, written once for the array libraries that compute in Python.

A library gives the arithmetic (:class:`Entries`); matrices need more of it, so each library has its own functions of singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from modula_rs.constants import RISES

#: An operation on the blocks of one geometry: from blocks (count, rows, cols) and scales (count, 1, 1) to blocks.
Kernel = Callable[[Any, Any], Any]


class Entries(NamedTuple):
    """Arithmetic on blocks (count, rows, cols) of which no entry needs a neighbour in another row.

    xp: the array module. divide: ``x / norm``, and zero where the norm is zero. row_norms: RMS of every row, (count, rows, 1). unit_rows:
    every row divided by its RMS. max_abs: the largest absolute entry of each block, (count, 1, 1); NaN if an entry is not finite.
    """

    xp: Any
    divide: Callable[[Any, Any], Any]
    row_norms: Callable[[Any], Any]
    unit_rows: Callable[[Any], Any]
    max_abs: Callable[[Any], Any]


def kernels(of: Entries, op: str) -> dict[str, Kernel]:
    """The operation for each geometry but matrices; see :meth:`modula_rs.backend.Backend.apply`."""
    rows, entries = _OPERATIONS[op]
    return {"row_rms": partial(rows, of), "rms": partial(rows, of), "max_abs": partial(entries, of)}


def unless_infinite(xp: Any, function: Callable[[Any, Any], Any], x: Any, scale: Any) -> Any:
    """A function of blocks and scales, or the blocks as they are where the scale is infinite."""
    finite = xp.isfinite(scale)
    return xp.where(finite, function(x, xp.where(finite, scale, 1)), x)


def _unit_rows(of: Entries, x: Any, scale: Any) -> Any:
    return of.unit_rows(x) * scale


def _unit_entries(of: Entries, x: Any, scale: Any) -> Any:
    return of.divide(x, of.max_abs(x)) * scale


def _signs(of: Entries, x: Any, scale: Any) -> Any:
    return of.xp.where(of.xp.isnan(of.max_abs(x)), np.nan, of.xp.sign(x)) * scale


def _capped_rows(of: Entries, x: Any, cap: Any) -> Any:
    return of.xp.where(of.row_norms(x) <= cap, x, of.unit_rows(x) * cap)


def _capped_entries(of: Entries, x: Any, cap: Any) -> Any:
    return of.xp.where(of.xp.isnan(of.max_abs(x)), np.nan, of.xp.clip(x, -cap, cap))


def _bent(y: Any) -> Any:
    p = y - y**3
    return p + p**3


def _bent_rows(of: Entries, x: Any, cap: Any) -> Any:
    def bend(x: Any, cap: Any) -> Any:
        return of.unit_rows(x) * cap * _bent(of.xp.minimum(of.row_norms(x) / cap, RISES))

    return unless_infinite(of.xp, bend, x, cap)


def _bent_entries(of: Entries, x: Any, cap: Any) -> Any:
    def bend(x: Any, cap: Any) -> Any:
        return cap * _bent(x / cap * of.xp.minimum(1, of.divide(RISES * cap, of.max_abs(x))))

    return unless_infinite(of.xp, bend, x, cap)


def _times(of: Entries, x: Any, factor: Any) -> Any:
    return x * factor


#: For each operation what it does to rows, whether of a table or a vector, and to vectors that are measured by their largest entry.
_OPERATIONS: dict[str, tuple[Callable[[Entries, Any, Any], Any], Callable[[Entries, Any, Any], Any]]] = {
    "unit": (_unit_rows, _unit_entries),
    "direction": (_unit_rows, _signs),
    "exact": (_unit_rows, _signs),
    "hard_cap": (_capped_rows, _capped_entries),
    "soft_cap": (_bent_rows, _bent_entries),
    "set_top": (_unit_rows, _unit_entries),
    "scale_top": (_times, _times),
}


def norms(of: Entries) -> dict[str, Callable[[Any], Any]]:
    """The norm of every block, (count,), for each geometry but matrices."""

    def rows(x: Any) -> Any:
        return of.xp.max(of.row_norms(x), axis=(1, 2))

    return {"row_rms": rows, "rms": rows, "max_abs": lambda x: of.max_abs(x)[:, 0, 0]}


def dual_norms(of: Entries) -> dict[str, Callable[[Any], Any]]:
    """The inner product of every block with its steepest direction, (count,), for each geometry but matrices."""

    def rows(x: Any) -> Any:
        return of.xp.sum(of.row_norms(x), axis=(1, 2)) * x.shape[2]

    return {"row_rms": rows, "rms": rows, "max_abs": lambda x: of.xp.sum(of.xp.abs(x), axis=(1, 2))}
