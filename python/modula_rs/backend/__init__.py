"""Backends: one file or folder for each array library, each with the three functions of :class:`Backend` on batches of equal blocks.

To add a library: a module here with these functions, and the library's name in :mod:`modula_rs.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from modula_rs.arrays import Array
from modula_rs.constants import VECTORS as VECTORS


class Batch(NamedTuple):
    """``count`` equal blocks of ``rows`` x ``cols`` numbers, and how a block is measured.

    geometry is ``"spectral"`` (largest singular value), ``"row_rms"`` (RMS of each row), ``"rms"`` (RMS of the vector),
    ``"max_abs"`` (largest entry) or ``"custom"`` (a user's own atom, which no backend sees).
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count: the field's word for it
    rows: int
    cols: int


class Backend(Protocol):
    """What a library offers: whole-model calls, lists in and lists out, one entry for each weight array.

    ``arrays`` have shape (count, rows, cols) and dtype float64, float32, float16 or bfloat16; half precision is computed in float32 or
    better. ``scales`` have shape (count,): NumPy float64, or arrays of the library. Nothing that comes in is written to.
    """

    def apply(
        self,
        op: str,
        batches: Sequence[Batch],
        arrays: Sequence[Array],
        scales: Sequence[Any],
        *,
        vectors: Sequence[Array | None] | None = None,
        accuracy: str = "standard",
    ) -> tuple[list[Array], list[Array | None]]:
        """Blocks after an operation, in the shapes and dtypes given, and the singular vector estimates for the next call.

        ``op``: ``"unit"`` (the block over its norm; in a table each row), ``"direction"`` (the steepest direction of norm 1) or ``"exact"``
        (the same to rounding), times the scale. Zeros stay zeros; a block that is not finite becomes NaN.
        ``vectors``, for ``"unit"``: (count, VECTORS, cols) right singular vector estimates in the working precision for each spectral leaf,
        as an earlier call returned them, and None elsewhere: one step of block power iteration replaces the search from cold. Zeros are no
        estimates. ``accuracy``, for ``"direction"``: see :meth:`modula_rs.Module.dualize`.
        """
        ...

    def norms(self, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        """The norm of every block, (count,) in the working precision; spectral norms within 1 %; 0 for blocks without entries."""
        ...

    def dual_norms(self, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        """The dual norm of every block, (count,): its inner product with its steepest direction."""
        ...
