"""Statistics of a table of runs: the best rate of each size, its drift over the sizes, and the uncertainty of both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs.transfer.table import Size, Table

#: Number of resamples of the seeds for an interval, and the share of them that the interval covers.
_RESAMPLES = 1000
_COVERAGE = 0.9


class Best(NamedTuple):
    """The best rate of one optimizer at one size, with 90 % bootstrap intervals over seeds.

    The loss is the mean over seeds. ``at_edge``: the best rate is the first or last one tried, so the true best may lie beyond it. A size
    at which every run diverged has rate NaN and infinite loss.
    """

    optimizer: str
    size: Size
    rate: float
    loss: float
    rate_low: float
    rate_high: float
    loss_low: float
    loss_high: float
    at_edge: bool


class Drift(NamedTuple):
    """Number of steps of the rate grid between the lowest and the highest best rate over all sizes, with a 90 % bootstrap interval.

    ``at_edge``: a best rate lies at an edge of the grid, so the drift may be larger. NaN if every run diverged at some size.
    """

    optimizer: str
    steps: float
    low: float
    high: float
    at_edge: bool


class Curve(NamedTuple):
    """Losses of one optimizer at one size: rates (sorted), and losses of shape (rates, seeds)."""

    rates: NDArray[np.float64]
    losses: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean loss of each rate over seeds; infinite if a run diverged."""
        return np.asarray(self.losses.mean(axis=1))


def curve(table: Table, optimizer: str, size: Size, metric: str = "train_loss") -> Curve:
    """The losses of one optimizer at one size, for the seeds that every rate has; ValueError if there are none."""
    rows = table.where(optimizer=optimizer, size=size).rows
    found = {(row.rate, row.seed): float(getattr(row, metric)) for row in rows}
    rates = sorted({row.rate for row in rows})
    seeds = sorted(seed for seed in {row.seed for row in rows} if all((rate, seed) in found for rate in rates))
    if not rates or not seeds:
        raise ValueError(f"the table has no complete seed of {optimizer} at {size}")
    return Curve(np.array(rates), np.array([[found[rate, seed] for seed in seeds] for rate in rates]))


def best(table: Table, metric: str = "train_loss") -> list[Best]:
    """The best rate of every optimizer at every size. With one seed the interval is a point.

    >>> from modula_rs.transfer import Row, Table, best
    >>> losses = {0.25: 0.3, 0.5: 0.1, 1.0: 0.2}
    >>> table = Table(Row("sgd", 64, 4, None, None, rate, 0, loss, loss) for rate, loss in losses.items())
    >>> best(table)[0].rate, best(table)[0].loss
    (0.5, 0.1)
    """
    rng = np.random.default_rng(0)
    found = []
    for optimizer in table.optimizers:
        own = table.where(optimizer=optimizer)
        for size in own.sizes:
            rates, losses = curve(own, optimizer, size, metric)
            mean = losses.mean(axis=1)
            at = int(np.argmin(mean))
            if not math.isfinite(mean[at]):
                found.append(Best(optimizer, size, math.nan, math.inf, math.nan, math.nan, math.inf, math.inf, True))
                continue
            resampled = _resample(losses, rng)
            chosen = resampled.argmin(axis=0)
            low, high = _interval(chosen)
            loss_low, loss_high = _interval(resampled[at])
            found.append(
                Best(optimizer, size, float(rates[at]), float(mean[at]), float(rates[round(low)]), float(rates[round(high)]),
                     loss_low, loss_high, at in (0, len(rates) - 1))
            )  # fmt: skip
    return found


def drift(table: Table, metric: str = "train_loss") -> list[Drift]:
    """The drift of the best rate of every optimizer over the sizes of the table, in steps of its grid of rates.

    >>> from modula_rs.transfer import Row, Table, drift
    >>> rows = [Row("adam", width, 4, None, None, rate, 0, abs(rate * width - 16), 0.0) for width in (16, 64) for rate in (0.25, 0.5, 1.0)]
    >>> drift(Table(rows))[0].steps
    2.0
    """
    rng = np.random.default_rng(0)
    found = []
    for optimizer in table.optimizers:
        own = table.where(optimizer=optimizer)
        grid = np.array(sorted({row.rate for row in own}))
        chosen: list[NDArray[np.float64]] = []
        resampled: list[NDArray[np.float64]] = []
        edge = False
        for size in own.sizes:
            rates, losses = curve(own, optimizer, size, metric)
            place = np.searchsorted(grid, rates).astype(float)
            for values, mean in ((chosen, losses.mean(axis=1)[:, None]), (resampled, _resample(losses, rng))):
                values.append(np.where(np.isfinite(mean).any(axis=0), place[mean.argmin(axis=0)], math.nan))
            edge = edge or chosen[-1].item() in (place[0], place[-1])
        low, high = _interval(np.ptp(resampled, axis=0))
        found.append(Drift(optimizer, float(np.ptp(chosen)), low, high, edge))
    return found


def at_rate(table: Table, optimizer: str, rate: float, metric: str = "train_loss") -> dict[Size, float]:
    """The mean loss at one rate of every size that was trained at this rate."""
    own = table.where(optimizer=optimizer, rate=rate)
    return {size: float(np.mean([getattr(row, metric) for row in own.where(size=size)])) for size in own.sizes}


def _resample(losses: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Mean losses (rates, resamples), where each resample draws the seeds again with replacement, the same seeds for every rate."""
    seeds = losses.shape[1]
    if seeds == 1:
        return losses
    drawn = rng.integers(0, seeds, (_RESAMPLES, seeds))
    return np.asarray(losses[:, drawn].mean(axis=2))


def _interval(values: NDArray[np.float64] | NDArray[np.int64]) -> tuple[float, float]:
    if np.isnan(values).any():
        return math.nan, math.nan
    tail = (1 - _COVERAGE) / 2
    low, high = np.quantile(values, (tail, 1 - tail), method="inverted_cdf")
    return float(low), float(high)
