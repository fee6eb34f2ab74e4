"""The grid of a sweep: checks the arguments, and returns plain Python numbers without repetitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from modula_rs.checks import is_number, number, shown, size
from modula_rs.transfer.optimizers import OPTIMIZERS, RATES, Optimizer

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

#: More seeds than this are taken for a typing error.
_MOST_SEEDS = 100_000


def chosen_optimizers(given: Sequence[str] | Mapping[str, Optimizer]) -> dict[str, Optimizer]:
    """The optimizers by name; TypeError or ValueError for anything that is no optimizer."""
    if isinstance(given, str) or not isinstance(given, Mapping | Sequence):
        raise TypeError(f"optimizers must be a list of names, or a mapping from names to functions, got {shown(given)}")
    if not isinstance(given, Mapping):
        unknown = [name for name in given if not isinstance(name, str) or name not in OPTIMIZERS]
        if unknown:
            raise ValueError(f"optimizers are {', '.join(OPTIMIZERS)}, got {shown(unknown[0])}")
        return {name: OPTIMIZERS[name] for name in given}
    for name, make in given.items():
        if not isinstance(name, str) or not name.isprintable() or not name:
            raise ValueError(f"an optimizer's name must be a string in one line, got {shown(name)}")
        if not callable(make):
            raise TypeError(f"optimizer {name} must be a function from a module to an optax transformation, got {shown(make)}")
    return dict(given)


def chosen_rates(name: str, given: Sequence[float] | Mapping[str, Sequence[float]] | None) -> list[float]:
    """The learning rates of one optimizer, sorted."""
    own = RATES.get(name) if given is None else given.get(name, RATES.get(name)) if isinstance(given, Mapping) else given
    if own is None:
        raise ValueError(f"rates are needed for {name}")
    several = _several("rates", own)
    if not several:
        raise ValueError(f"rates must be positive numbers, got {shown(own)}")
    return sorted({learning_rate(rate) for rate in several})


def learning_rate(given: Any) -> float:
    """A learning rate: a positive number that float32, in which networks are trained, can hold."""
    rate = number("each of the rates", given)
    if not _SMALLEST <= rate <= _LARGEST:
        raise ValueError(f"rates must be positive numbers in the range of float32, got {rate:g}")
    return rate


def chosen_seeds(given: int | Sequence[int]) -> list[int]:
    """The seeds, sorted; for a number, the seeds below it."""
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        chosen = sorted({size("each of the seeds", seed) for seed in given})
    else:
        count = size("seeds", given, -(2**62))
        chosen = list(range(count)) if count <= _MOST_SEEDS else []
    if not chosen:
        raise ValueError(f"seeds must be a number from 1 to {_MOST_SEEDS}, or numbers of at least 0, got {shown(given)}")
    return chosen


def chosen_sizes(widths: Any, depths: Any, masses: Any, contexts: Any) -> list[list[Any]]:
    """The values on each of the four axes; masses and contexts may be None."""
    axes = [("widths", widths, size), ("depths", depths, size), ("masses", masses, number), ("contexts", contexts, size)]
    return [_axis(*axis) for axis in axes]


def _axis(name: str, given: Any, plain: Any) -> list[Any]:
    values = [plain(name, value) if is_number(value) else value for value in _several(name, given)]
    if not values or any(value is not None and not (is_number(value) and 0 < value < math.inf) for value in values):
        raise ValueError(f"{name} must be positive numbers, got {shown(given)}")
    return list(dict.fromkeys(values))


def _several(name: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of numbers, got {shown(values)}")
    return list(values)
