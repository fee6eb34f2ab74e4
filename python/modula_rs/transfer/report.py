"""A sweep in words: the best rate and loss of every size, and the drift of the best rate."""

from __future__ import annotations

import math

from modula_rs.terminal import aligned
from modula_rs.transfer.pictures import label
from modula_rs.transfer.statistics import Best, best, drift
from modula_rs.transfer.sweeps import show_rate
from modula_rs.transfer.table import Size, Table


def report(table: Table, metric: str = "train_loss") -> str:
    """For every optimizer a grid of best rates and their losses, widths across, and the drift in steps of the grid of rates.

    >>> from modula_rs.transfer import Row, Table, report
    >>> rows = [Row("sgd", width, 4, None, None, rate, 0, abs(rate - 0.5), 0.0) for width in (16, 64) for rate in (0.25, 0.5, 1.0)]
    >>> print(report(Table(rows)))
    SGD            width 16      width 64
      4 blocks  2^-1  0.000   2^-1  0.000
      The best rate is the same at all 2 sizes.
    """
    found = best(table, metric)
    parts = []
    for movement in drift(table, metric):
        own = {entry.size: entry for entry in found if entry.optimizer == movement.optimizer}
        lines = _grid(label(movement.optimizer), own)
        lines.append("  " + _sentence(movement.steps, movement.low, movement.high, movement.at_edge, own))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _grid(title: str, found: dict[Size, Best]) -> list[str]:
    widths = sorted({size.width for size in found})
    kinds = sorted({size._replace(width=0) for size in found}, key=lambda size: tuple(value or 0 for value in size))
    rows = [[title, *(f"width {width}" for width in widths)]]
    for kind in kinds:
        cells = [found.get(kind._replace(width=width)) for width in widths]
        rows.append(["  " + str(kind).split(", ", 1)[1], *("" if cell is None else _cell(cell) for cell in cells)])
    return aligned(rows)


def _cell(entry: Best) -> str:
    if not math.isfinite(entry.loss):
        return "diverged"
    return f"{show_rate(entry.rate)}{'*' if entry.at_edge else ' '} {entry.loss:.3f}"


def _sentence(steps: float, low: float, high: float, at_edge: bool, found: dict[Size, Best]) -> str:
    if math.isnan(steps):
        return "At some size no rate trained."
    edge = " (*: the edge of the rates tried)" if at_edge else ""
    if len(found) == 1:
        return f"One size: nothing to compare.{edge}"
    if steps == 0:
        return f"The best rate is the same at all {len(found)} sizes.{edge}"
    interval = "" if low == high == steps else f" (90 % interval over seeds: {low:g} to {high:g})"
    least = "at least " if at_edge else ""
    return f"The best rate moves {least}{steps:g} grid step{'' if steps == 1 else 's'} over {len(found)} sizes{interval}.{edge}"
