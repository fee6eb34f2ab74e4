"""The paper's base optimizers: averages of gradients and of their squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modula_rs import arrays
from modula_rs.checks import number, shown, size
from modula_rs.norm.checks import check_together


class SGDState(NamedTuple):
    """Momentum of each array, and the number of steps taken."""

    momentum: list[Any]
    step: int


class AdamState(NamedTuple):
    """The averages of each gradient, the root mean square of each gradient, and the number of steps taken."""

    mean: list[Any]
    root_mean_square: list[Any]
    step: int


def _listed(what: str, given: Any) -> list[Any]:
    """The list, if it holds arrays of floating point numbers; TypeError for anything else."""
    if not isinstance(given, list | tuple):
        raise TypeError(f"{what}s come as a list of arrays, got {shown(given)}")
    for index, array in enumerate(given):
        if arrays.library(array) is None or not arrays.is_floating(array.dtype):
            raise TypeError(f"{what} {index} must be an array of floating point numbers, got {shown(getattr(array, 'dtype', array))}")
    together((what, list(given)))
    return list(given)


def together(*groups: tuple[str, Sequence[Any]]) -> None:
    """ValueError, naming two arrays by their numbers, if arrays of JAX lie on different devices or meshes."""
    check_together(*((lambda at, what=what: f"{what} {at}", given) for what, given in groups))


def _zeros(w: Sequence[Any]) -> list[Any]:
    listed = _listed("weight", w)
    xp = arrays.namespace_of(listed)
    return [xp.zeros(a.shape, arrays.working_dtype(a.dtype)) for a in listed]


def _check(gradient: Sequence[Any], state: Any, kind: type[SGDState] | type[AdamState]) -> list[Any]:
    """The gradients, if they fit a state of this kind; else TypeError or ValueError."""
    listed = _listed("gradient", gradient)
    if not isinstance(state, kind):
        raise TypeError(f"the state must be the {kind.__name__} of the step before, got {shown(state)}")
    averages = _listed("average of the state", state[0])
    if len(listed) != len(averages):
        raise ValueError(f"expected {len(averages)} gradients, as many as the state has, got {len(listed)}")
    for index, (g, s) in enumerate(zip(listed, averages, strict=True)):
        if g.shape != s.shape:
            raise ValueError(f"gradient {index} must have shape {tuple(s.shape)}, got {tuple(g.shape)}")
    together(("gradient", listed), ("average of the state", averages))
    return listed


def _share(what: str, value: Any) -> Any:
    """A number from 0 to 1, or an array of JAX, whose value may not be known yet."""
    if arrays.is_traced(value):
        return value
    share = number(what, value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{what} must be from 0 to 1, got {share}")
    return share


def _rate(step: Any, beta: float) -> float:
    """The weight of the new value in the paper's averaging: (1 - beta)^(n / (n + 1)) at step n = 0, 1, ..."""
    count = step if arrays.is_traced(step) else size("the step of the state", step)
    return (1.0 - beta) ** (count / (count + 1))  # type: ignore[no-any-return]


def sgd_init(w: Sequence[Any]) -> SGDState:
    """The first state for :func:`sgd`; TypeError unless ``w`` is a list of arrays."""
    return SGDState(_zeros(w), 0)


def sgd(gradient: Sequence[Any], state: SGDState, momentum: float = 0.95, nesterov: bool = False) -> tuple[list[Any], SGDState]:
    """Gradients averaged over time: ``m += (1 - momentum)^(n / (n + 1)) (g - m)`` at step n.

    ``nesterov`` looks one average ahead: the update is ``momentum * m + (1 - momentum) * g``. The update has the gradient's dtypes, the
    state float32 or better. Normalise or dualize the update, then subtract it times the learning rate.

    TypeError or ValueError for gradients that do not fit the state, and for a ``momentum`` that is not from 0 to 1.
    """
    gradient, momentum = _check(gradient, state, SGDState), _share("momentum", momentum)
    rate = _rate(state.step, momentum)
    average = [m + rate * (g - m) for g, m in zip(gradient, state.momentum, strict=True)]
    update = [(momentum * m + (1 - momentum) * g) for g, m in zip(gradient, average, strict=True)] if nesterov else average
    return [u.astype(g.dtype) for u, g in zip(update, gradient, strict=True)], SGDState(average, state.step + 1)


def adam_init(w: Sequence[Any]) -> AdamState:
    """The first state for :func:`adam`; TypeError unless ``w`` is a list of arrays."""
    return AdamState(_zeros(w), _zeros(w), 0)


def adam(gradient: Sequence[Any], state: AdamState, beta1: float = 0.9, beta2: float = 0.99) -> tuple[list[Any], AdamState]:
    """The paper's Adam: averages as in :func:`sgd`, update ``m / sqrt(v)`` with 0/0 = 0, no epsilon and no bias correction.

    TypeError or ValueError for gradients that do not fit the state, and for betas that are not from 0 to 1.
    Source: Large et al. (2024), experiments.
    """
    gradient, beta1, beta2 = _check(gradient, state, AdamState), _share("beta1", beta1), _share("beta2", beta2)
    mean_rate, square_rate = _rate(state.step, beta1), _rate(state.step, beta2)
    xp = arrays.namespace_of(gradient)
    mean = [m + mean_rate * (g - m) for g, m in zip(gradient, state.mean, strict=True)]
    # The state keeps the root of the mean square, because the square of a gradient of 1e-30 is 0 in float32.
    root = [
        xp.hypot((1 - square_rate) ** 0.5 * v, square_rate**0.5 * abs(g).astype(v.dtype))
        for g, v in zip(gradient, state.root_mean_square, strict=True)
    ]
    update = [xp.where(v > 0, m / xp.where(v > 0, v, 1), 0) for m, v in zip(mean, root, strict=True)]
    return [u.astype(g.dtype) for u, g in zip(update, gradient, strict=True)], AdamState(mean, root, state.step + 1)
