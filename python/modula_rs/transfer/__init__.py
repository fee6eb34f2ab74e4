"""The transfer lab: experiments that test whether one learning rate serves every size of a network.

>>> import modula_rs as mr
>>> from modula_rs import transfer
>>> table = transfer.sweep(
...     lambda size: mr.ResMLP(size.width, size.depth, 1, 64, 10), mr.data.digits(), widths=[8, 32], depths=[2],
...     optimizers=["normed-adam"], rates=transfer.powers_of_two(-4, 1), recipe=transfer.Recipe(steps=30, batch_size=32))
>>> transfer.drift(table)[0].steps <= 1
True
"""

from modula_rs.transfer.architectures import ARCHITECTURES, architecture
from modula_rs.transfer.coordinates import Movement, coordinate_check, coordinate_report, plot_coordinates
from modula_rs.transfer.networks import network
from modula_rs.transfer.optimizers import OPTIMIZERS, RATES, Optimizer, adam, average, powers_of_two
from modula_rs.transfer.pictures import plot_curves, plot_sizes
from modula_rs.transfer.progress import duration
from modula_rs.transfer.report import report
from modula_rs.transfer.statistics import Best, Curve, Drift, at_rate, best, curve, drift
from modula_rs.transfer.store import StoreError
from modula_rs.transfer.sweeps import show_rate, sweep
from modula_rs.transfer.table import Row, Size, Table, TableError
from modula_rs.transfer.training import Recipe, cross_entropy

__all__ = [
    "ARCHITECTURES",
    "OPTIMIZERS",
    "RATES",
    "Best",
    "Curve",
    "Drift",
    "Movement",
    "Optimizer",
    "Recipe",
    "Row",
    "Size",
    "StoreError",
    "Table",
    "TableError",
    "adam",
    "architecture",
    "at_rate",
    "average",
    "best",
    "coordinate_check",
    "coordinate_report",
    "cross_entropy",
    "curve",
    "drift",
    "duration",
    "network",
    "plot_coordinates",
    "plot_curves",
    "plot_sizes",
    "powers_of_two",
    "report",
    "show_rate",
    "sweep",
]
