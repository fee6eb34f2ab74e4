"""Launches for the geometries of rows and vectors (Embed, Bias, Scale), and for the Frobenius norms of matrices."""

from __future__ import annotations

from typing import Any

from . import params
from .launches import Builder, Operand, grouped

#: A row with at most this many columns is computed by one warp, and eight such rows by one block.
WARP_COLUMNS = 1024
GEOMETRIES = ("row_rms", "rms", "max_abs")


def row_launch(builder: Builder, kernel: str, operand: Operand, count: int, **fields: Any) -> None:
    """Launches a kernel of rows.cu on ``count`` matrices."""
    team = 32 if operand.cols <= WARP_COLUMNS else 256
    grid = (-(-operand.rows * team // 256), count)
    fields |= {"rows": operand.rows, "cols": operand.cols, "team": team}
    builder.launch("rows", f"{kernel}_{operand.dtype}", grid, **fields)


def row_values(builder: Builder, operand: Operand, entries: int, count: int, mode: int) -> int:
    """The offset of one double for each row of ``count`` matrices: the RMS, largest entry, sum of magnitudes or inner product."""
    partial = builder.allocate(8 * count * operand.rows)
    row_launch(builder, "row_norms", operand, count, entries=entries, partial=partial, mode=mode)
    return partial


def frobenius(builder: Builder, operand: Operand, entries: int, count: int) -> int:
    """The offset of the Frobenius norms of ``count`` matrices, as doubles."""
    total = builder.allocate(8 * count)
    partial = row_values(builder, operand, entries, count, params.SQUARES)
    fold(builder, operand, count, partial, params.FOLD_ROOT, operand.cols, total=total)
    return total


def fold(builder: Builder, operand: Operand, count: int, partial: int, fold: int, weight: float, **to: int) -> None:
    """Reduces one number for each row to one number for each matrix, stored at ``total`` or in the results of ``entries``."""
    builder.launch("fold", "fold_rows", (count, 1), partial=partial, count=operand.rows, fold=fold, weight=weight, **to)


def norms(builder: Builder, dual: bool) -> None:
    """Norms or dual norms of every operand whose geometry is in `GEOMETRIES`."""
    groups = [
        (operand, members, builder.entries(members))
        for geometry in GEOMETRIES
        for operand, members in grouped(builder.operands, geometry).items()
    ]
    for operand, members, entries in groups:
        largest = operand.geometry == "max_abs"
        mode = params.SQUARES if not largest else params.ABSOLUTE if dual else params.LARGEST
        partial = row_values(builder, operand, entries, len(members), mode)
        # The dual norm of a row is sqrt(cols) ||row||_2, which is cols times its RMS.
        weight = 1 if largest else operand.cols
        fold(builder, operand, len(members), partial, params.FOLD_SUM if dual else params.FOLD_MAX, weight, entries=entries)


def rescale(builder: Builder, sign: bool) -> None:
    """Divides each row by its RMS, and each ``max_abs`` vector by its largest entry (with ``sign``: takes its signs); times the scale."""
    for geometry in GEOMETRIES:
        mode = params.SQUARES if geometry != "max_abs" else params.SIGN if sign else params.LARGEST
        for operand, members in grouped(builder.operands, geometry).items():
            row_launch(builder, "row_normalize", operand, len(members), entries=builder.entries(members), mode=mode)
