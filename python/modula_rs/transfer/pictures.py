"""Pictures of a sweep: the loss of every size against the learning rate, and the loss against size at a fixed rate."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from modula_rs.files import make_folder, write_whole
from modula_rs.transfer.statistics import at_rate, best, curve, drift
from modula_rs.transfer.table import Size, Table

#: Labels in pictures.
LABELS = {
    "normed-adam": "Normed Adam",
    "normed-sgd": "Normed SGD",
    "dualized-sgd": "Dualized SGD",
    "adam": "Adam",
    "sgd": "SGD",
    "adamw": "AdamW",
    "muon": "Muon",
}
_METRICS = {"train_loss": "training loss", "test_loss": "test loss"}
_AXES = {"width": "width", "depth": "blocks", "mass": "mass", "context": "context"}
#: Okabe and Ito's palette, whose colours can be distinguished with any kind of colour vision.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
#: Losses above this multiple of the worst loss at a small rate are cut off: they show only that the rate is too large.
_CEILING = 1.5
#: If all losses lie close together, the picture reaches up to this multiple of the worst loss at a small rate.
_LOW_CEILING = 1.1
#: Space below the lowest loss, as a share of the height.
_MARGIN = 0.05


def label(optimizer: str) -> str:
    """The label of an optimizer."""
    return LABELS.get(optimizer, optimizer)


def plain(text: str) -> str:
    """The text escaped for Matplotlib, so that a dollar sign begins no formula and an underscore hides no entry of the legend.

    Halves of characters, which file names may have, are written as escapes.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def plot_curves(table: Table, path: str | Path, *, metric: str = "train_loss", at: Size | None = None, title: str | None = None) -> None:
    """Draws loss against learning rate: a column for each optimizer, a row for each axis of the size that varies, a curve for each size.

    The best rate of each curve is marked, and a band spans the seeds. In each row the other axes of the size stay at ``at``, by default the
    middle of the sweep. The format follows the path: ``.png``, ``.svg``, ``.pdf``.
    """
    axes = varied(table)
    middle = at or middle_size(table)
    optimizers = table.optimizers
    figure = new_figure(3.0 * len(optimizers) + 1.3, 2.7 * len(axes) + (0.5 if title else 0.2))
    panels = figure.subplots(len(axes), len(optimizers), squeeze=False, sharey=True, sharex="col")
    top = _ceiling(table, metric)
    drifts = {found.optimizer: found for found in drift(table, metric)}
    for row, axis in zip(panels, axes, strict=True):
        line = along(table, axis, middle)
        colours = sequence(len(line.sizes))
        for panel, optimizer in zip(row, optimizers, strict=True):
            own = line.where(optimizer=optimizer)
            for colour, size in zip(colours, line.sizes, strict=True):
                if size in own.sizes:
                    _draw_curve(panel, own, optimizer, size, metric, colour, f"{getattr(size, axis):g}", top)
            tidy(panel)
            panel.set_xscale("log", base=2)
            log_losses(panel)
        fixed = ", ".join(part for part in str(middle).split(", ") if not _names(part, axis))
        row[0].set_ylabel(_METRICS[metric])
        row[-1].legend(
            title=f"{_AXES[axis]}\n({fixed})", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8, title_fontsize=8
        )
    for panel, optimizer in zip(panels[0], optimizers, strict=True):
        panel.set_title(f"{plain(label(optimizer))}: {_drift_text(drifts[optimizer].steps, drifts[optimizer].at_edge)}", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("learning rate")
    lowest = min((entry.loss for entry in best(table, metric)), default=top)
    lowest = min(lowest, top / _LOW_CEILING)
    panels[0, 0].set_ylim(lowest * (lowest / top) ** _MARGIN, top)
    save(figure, path, title)


def plot_sizes(table: Table, path: str | Path, *, metric: str = "train_loss", at: Size | None = None, title: str | None = None) -> None:
    """Draws loss against size: a solid line at the rate tuned on the smallest size, a dotted line at the best rate of each size."""
    axes = varied(table)
    middle = at or middle_size(table)
    figure = new_figure(4.0 * len(axes) + 1.2, 3.4 + (0.3 if title else 0.0))
    panels = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
    for panel, axis in zip(panels, axes, strict=True):
        line = along(table, axis, middle)
        top = _ceiling(line, metric)
        for place, optimizer in enumerate(table.optimizers):
            own = line.where(optimizer=optimizer)
            found = best(own, metric)
            if not found or math.isnan(found[0].rate):
                continue
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            fixed = at_rate(own, optimizer, found[0].rate, metric)
            sizes = [getattr(size, axis) for size in fixed]
            panel.plot(
                sizes, np.minimum(list(fixed.values()), top), marker=marker, color=colour, label=plain(label(optimizer)), lw=1.8, ms=5
            )
            panel.plot([getattr(b.size, axis) for b in found], [b.loss for b in found], ":", color=colour, lw=1.2)
        tidy(panel)
        panel.set_xscale("log", base=2)
        log_losses(panel)
        panel.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
        panel.set_xlabel(_AXES[axis])
    panels[0].set_ylabel(_METRICS[metric])
    panels[-1].legend(
        title="rate tuned on the smallest\n(dotted: on each size)", loc="center left", bbox_to_anchor=(1.02, 0.5),
        frameon=False, fontsize=8, title_fontsize=8,
    )  # fmt: skip
    save(figure, path, title)


def varied(table: Table) -> list[str]:
    """The axes of the size that take more than one value; the width if none does."""
    return [axis for axis in Size._fields if len({getattr(size, axis) for size in table.sizes}) > 1] or ["width"]


def middle_size(table: Table) -> Size:
    """The size in the middle of the sweep."""
    values = [sorted({getattr(size, axis) for size in table.sizes}, key=lambda value: value or 0) for axis in Size._fields]
    return Size(*(axis[(len(axis) - 1) // 2] for axis in values))


def along(table: Table, axis: str, fixed: Size) -> Table:
    """The rows at sizes that equal ``fixed`` in all axes but one."""
    return Table(row for row in table if row.size._replace(**{axis: getattr(fixed, axis)}) == fixed)


def sequence(count: int) -> list[Any]:
    """Colours from small to large, ordered in lightness so that they can be distinguished in grey too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](value) for value in np.linspace(0.88, 0.05, count)] if count > 1 else [PALETTE[0]]


def new_figure(width: float, height: float) -> Any:
    """A figure without a window; ImportError in one line if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('pictures need matplotlib: pip install "modula-rs[demo]"') from None
    return Figure(figsize=(width, height), layout="constrained")


def tidy(panel: Any) -> None:
    """Draws a light grid behind the curves, and no box."""
    panel.grid(True, which="major", color="#dddddd", lw=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def log_losses(panel: Any) -> None:
    """Sets a logarithmic scale of losses with labels 0.1, 0.2, 0.5, 1."""
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(lambda value, position: f"{value:g}")
    panel.yaxis.set_minor_formatter(NullFormatter())


def save(figure: Any, path: str | Path, title: str | None) -> None:
    """Writes the figure in the format that the ending of its name asks for."""
    if title:
        figure.suptitle(plain(title), fontsize=11)
    make_folder(Path(path).parent)
    content = io.BytesIO()
    figure.savefig(content, dpi=160, format=Path(path).suffix[1:] or None)
    write_whole(Path(path), content.getvalue())


def _draw_curve(panel: Any, table: Table, optimizer: str, size: Size, metric: str, colour: Any, name: str, top: float) -> None:
    found = curve(table, optimizer, size, metric)
    shown = np.minimum(found.mean, 2 * top)
    panel.plot(found.rates, shown, "-", color=colour, lw=1.6, label=name)
    if found.losses.shape[1] > 1:
        panel.fill_between(
            found.rates,
            np.minimum(found.losses.min(axis=1), 2 * top),
            np.minimum(found.losses.max(axis=1), 2 * top),
            color=colour,
            alpha=0.15,
            lw=0,
        )
    at = int(np.argmin(found.mean))
    if math.isfinite(found.mean[at]):
        panel.plot(found.rates[at], found.mean[at], "o", color=colour, ms=8, mec="white", mew=1.2, zorder=5)


def _ceiling(table: Table, metric: str) -> float:
    """The loss at which curves are cut off: above the worst loss at a small rate by half its distance to the best, in logarithms."""
    finite = [getattr(row, metric) for row in table if math.isfinite(getattr(row, metric))]
    lowest = {(row.optimizer, row.size): row for row in sorted(table, key=lambda row: -row.rate)}
    gentle = [getattr(row, metric) for row in lowest.values() if math.isfinite(getattr(row, metric))]
    worst = float(max(gentle or finite or [1.0]))
    least = min((loss for loss in finite if loss > 0), default=worst)
    return worst * min(_CEILING, max(_LOW_CEILING, math.sqrt(worst / least)))


def _drift_text(steps: float, at_edge: bool) -> str:
    if math.isnan(steps):
        return "does not train everywhere"
    return f"best rate moves {'at least ' if at_edge and steps > 0 else ''}{steps:g} step{'' if steps == 1 else 's'}"


def _names(part: str, axis: str) -> bool:
    return part.startswith(axis) or (axis == "depth" and part.endswith(("block", "blocks")))
