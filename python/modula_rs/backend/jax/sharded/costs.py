"""Bytes and floating-point operations of the schemes: what one device receives and computes. Plain arithmetic, without devices.

Collectives are counted in their ring algorithms: among g devices an all-gather and an all-to-all receive (g-1)/g of their result, an
all-reduce twice that.
"""

from __future__ import annotations

from modula_rs.constants import FIRST, LANCZOS_LEAST, SECOND, SINGLE, VECTORS, Stage

#: The rational steps of each level of accuracy.
_STAGES: dict[str, tuple[Stage, ...]] = {"standard": (FIRST, SECOND), "fast": (SINGLE,), "coarse": (FIRST,)}


def received(ways: int, result: float) -> float:
    """The bytes that a device receives in an all-gather or an all-to-all whose result has ``result`` bytes."""
    return (ways - 1) / ways * result


def reduced(ways: int, result: float) -> float:
    """The bytes that a device receives in an all-reduce whose result has ``result`` bytes."""
    return 2 * received(ways, result)


def direction(short: int, long: int, op: str, accuracy: str, ways: int = 1) -> float:
    """Operations that orthogonalise one matrix, whose long edge is split over ``ways`` devices.

    A rational step forms the Gram matrix (half of it, since it is symmetric), inverts a matrix for each pole, and multiplies. "exact" takes
    a singular value decomposition (Golub and Van Loan, figure 8.6.1).
    """
    if op != "direction":
        return (6.0 * short**2 * long + 20.0 * short**3) / ways
    return sum(3.0 * short**2 * long / ways + len(terms) * 1.0 * short**3 for _, _, terms in _STAGES[accuracy])


def stages(accuracy: str) -> int:
    """The number of rational steps, each of which needs a Gram matrix."""
    return len(_STAGES[accuracy])


def norm(rows: float, cols: float, warm: bool) -> float:
    """Operations that find the norm of one matrix: a step of block power iteration, or the least number of Lanczos steps."""
    vectors = VECTORS if warm else LANCZOS_LEAST
    return 4.0 * vectors * rows * cols


def power_step(rows: int, cols: int, row_ways: int, col_ways: int, itemsize: int) -> float:
    """Bytes of a step of block power iteration of one matrix: its images where columns are split, its preimages where rows are."""
    images = VECTORS * rows / row_ways + VECTORS * VECTORS + VECTORS + 1
    preimages = VECTORS * cols / col_ways + VECTORS * VECTORS
    both = row_ways * col_ways
    return (
        reduced(col_ways, images * itemsize)
        + reduced(row_ways, preimages * itemsize)
        + reduced(both, 2 * itemsize)  # the largest entry, and whether there is one
    )
