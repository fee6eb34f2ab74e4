"""Backends: a file or folder for each array library, with the three functions of :class:`Backend` on batches of equal blocks.

To add a library, write a module with these functions here, and enter the library's name in :mod:`modula_rs.arrays`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from modula_rs.arrays import Array
from modula_rs.constants import VECTORS as VECTORS


class Batch(NamedTuple):
    """``count`` equal blocks of ``rows`` x ``cols`` numbers, and the norm that measures a block.

    geometry is ``"spectral"`` (largest singular value), ``"row_rms"`` (RMS of each row), ``"rms"`` (RMS of the vector), ``"max_abs"``
    (largest absolute entry) or ``"custom"`` (a user's own atom, which no backend receives). share: None, or where the whole batch lies of
    which this is one device's share (:mod:`modula_rs.backend.jax.sharded.lay`).
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count: the field's word for it
    rows: int
    cols: int
    share: Any = None


class Backend(Protocol):
    """The functions of a backend. Each serves a whole model in one call: lists in, lists out, with one entry for each weight array.

    ``arrays`` have shape (count, rows, cols) and dtype float64, float32, float16 or bfloat16; half precision is computed in float32 or
    better. ``scales`` have shape (count,): NumPy float64, or arrays of the library. The arguments are never written to.
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
        """The blocks after an operation, in the shapes and dtypes of ``arrays``, and the singular vector estimates for the next call.

        ``op``: ``"unit"`` (the block divided by its norm; in a table each row by its RMS), ``"direction"`` (the steepest direction of norm
        1) or ``"exact"`` (the steepest direction to rounding accuracy), of which the result is multiplied by the scale s. Others act on
        singular values, and on the RMS of rows and vectors, or the entries of ``"max_abs"``: ``"hard_cap"`` (at most s), ``"soft_cap"`` (x
        becomes ``s * (p + p**3)`` with ``p = x / s - (x / s)**3``; a block with x / s above 1 / sqrt 3 is first scaled down to that),
        ``"set_top"`` (the largest singular value becomes s; rows and vectors get this norm) and ``"scale_top"`` (it is multiplied by s, as
        are rows and vectors). Zeros stay zeros; a block that is not finite becomes NaN.

        ``vectors``, for ``"unit"``: right singular vector estimates (count, VECTORS, cols) in the working
        precision for each spectral leaf, as an earlier call returned them; None for other leaves. From estimates, one step of block power
        iteration finds the norm; without them, or where they are zero, the search starts from a fixed vector. ``accuracy``, for
        ``"direction"``: see :meth:`modula_rs.Module.dualize`.
        """
        ...

    def norms(self, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        """The norm of every block, (count,) in the working precision; spectral norms within 1 %. Blocks without entries have norm 0."""
        ...

    def dual_norms(self, batches: Sequence[Batch], arrays: Sequence[Array]) -> list[Array]:
        """The dual norm of every block, (count,): the inner product of the block with its steepest direction."""
        ...
