"""Backends: one file for each array library, each with the same few functions on batches of equal blocks.

Every function is a whole-model call: lists in, lists out, one entry for each leaf, arrays of shape (count, rows, cols).
"""

from __future__ import annotations

from typing import NamedTuple

# Singular vector estimates carried for each matrix, as in modula-core (linalg/subspace.rs, which says why).
VECTORS = 4


class Batch(NamedTuple):
    """A batch of equal blocks, and how a block is measured.

    geometry is ``"spectral"`` (largest singular value), ``"row_rms"`` (RMS of each row), ``"rms"`` (RMS of the vector),
    ``"max_abs"`` (largest entry) or ``"custom"`` (a user's own atom).
    """

    geometry: str
    count: int  # type: ignore[assignment]  # blocks, not tuple.count: the field's word for it
    rows: int
    cols: int
