"""Launches for the geometries that treat rows or vectors one by one: Embed, Bias, Scale; and the Frobenius norm of matrices."""

from __future__ import annotations

from typing import Any

from . import params
from .plan import NOTHING, Builder, Leaf, grouped

#: Rows up to this long are left to one warp, eight rows a block.
WARP_COLUMNS = 1024
GEOMETRIES = ("row_rms", "rms", "max_abs")


def row_launch(builder: Builder, kernel: str, leaf: Leaf, count: int, **fields: Any) -> None:
    """One of the kernels of rows.cu on ``count`` matrices."""
    team = 32 if leaf.cols <= WARP_COLUMNS else 256
    grid = (-(-leaf.rows * team // 256), count)
    fields |= {"rows": leaf.rows, "cols": leaf.cols, "team": team}
    builder.launch("rows", f"{kernel}_{leaf.dtype}", grid, **fields)


def row_values(builder: Builder, leaf: Leaf, entries: int, count: int, mode: int) -> int:
    """Offset of one double for each row of ``count`` matrices: its RMS, largest entry, sum of magnitudes or inner product."""
    partial = builder.room(8 * count * leaf.rows)
    row_launch(builder, "row_norms", leaf, count, entries=entries, partial=partial, mode=mode)
    return partial


def frobenius(builder: Builder, leaf: Leaf, entries: int, count: int) -> int:
    """Offset of the Frobenius norms of ``count`` matrices, as doubles."""
    total = builder.room(8 * count)
    partial = row_values(builder, leaf, entries, count, params.SQUARES)
    builder.launch(
        "fold", "fold_rows", (count, 1), partial=partial, total=total, count=leaf.rows,
        fold=params.FOLD_ROOT, weight=leaf.cols, dtype=-1,
    )  # fmt: skip
    return total


def store_folded(builder: Builder, leaf: Leaf, entries: int, count: int, partial: int, fold: int, weight: float) -> None:
    """One number for each matrix out of one for each row, into the caller's array."""
    builder.launch(
        "fold", "fold_rows", (count, 1), partial=partial, entries=entries, count=leaf.rows, fold=fold, weight=weight,
        dtype=params.DTYPES["float64" if leaf.dtype == "float64" else "float32"],
    )  # fmt: skip


def norms(builder: Builder, dual: bool) -> None:
    """Norms or dual norms of every leaf with one of these geometries."""
    groups = [
        (leaf, members, builder.entries(members, other=NOTHING))
        for geometry in GEOMETRIES
        for leaf, members in grouped(builder.leaves, geometry).items()
    ]
    for leaf, members, entries in groups:
        largest = leaf.geometry == "max_abs"
        mode = params.SQUARES if not largest else params.ABSOLUTE if dual else params.LARGEST
        partial = row_values(builder, leaf, entries, len(members), mode)
        # sqrt(cols) ||row||_2 = cols * RMS of the row.
        weight = 1 if largest else leaf.cols
        fold = params.FOLD_SUM if dual else params.FOLD_MAX
        store_folded(builder, leaf, entries, len(members), partial, fold, weight)


def rescale(builder: Builder, geometries: tuple[str, ...], sign: bool) -> None:
    """Each row over its RMS; of a ``max_abs`` vector the signs, or the vector over its largest entry; times the scale."""
    for geometry in geometries:
        mode = params.SQUARES if geometry != "max_abs" else params.SIGN if sign else params.LARGEST
        for leaf, members in grouped(builder.leaves, geometry).items():
            entries = builder.entries(members)
            row_launch(builder, "row_normalize", leaf, len(members), entries=entries, mode=mode, keep=builder.keep)
