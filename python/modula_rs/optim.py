"""Base optimizers for NumPy loops: pure functions with explicit state (JAX loops have optax).

>>> import numpy as np, modula_rs as mr
>>> m = mr.MLP(1, 2, width=8, depth=2)
>>> w = m.initialize(0)
>>> state = mr.optim.adam_init(w)
>>> gradient = [np.ones_like(a) for a in w]
>>> update, state = mr.optim.adam(gradient, state)
>>> w = [a - 0.1 * u for a, u in zip(w, m.normalize(update))]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modula_rs import arrays


class SGDState(NamedTuple):
    """Momentum of each array, and the number of steps taken."""

    momentum: list[Any]
    step: int


class AdamState(NamedTuple):
    """Averages of each gradient, the root of that of its square, and the number of steps taken."""

    mean: list[Any]
    root_mean_square: list[Any]
    step: int


def _zeros(w: Sequence[Any]) -> list[Any]:
    xp = arrays.namespace_of(list(w))
    return [xp.zeros(a.shape, arrays.working_dtype(a.dtype)) for a in w]


def _check(gradient: Sequence[Any], state: Sequence[Any]) -> None:
    if len(gradient) != len(state):
        raise ValueError(f"expected {len(state)} gradients, as many as the state has, got {len(gradient)}")
    for index, (g, s) in enumerate(zip(gradient, state, strict=True)):
        if g.shape != s.shape:
            raise ValueError(f"gradient {index} must have shape {tuple(s.shape)}, got {tuple(g.shape)}")


def _rate(step: int, beta: float) -> float:
    """The paper's averaging: at step n = 0, 1, ... a share (1 - beta)^(n / (n + 1)) of the new value."""
    return (1.0 - beta) ** (step / (step + 1))  # type: ignore[no-any-return]


def sgd_init(w: Sequence[Any]) -> SGDState:
    """State for :func:`sgd`."""
    return SGDState(_zeros(w), 0)


def sgd(gradient: Sequence[Any], state: SGDState, momentum: float = 0.95, nesterov: bool = False) -> tuple[list[Any], SGDState]:
    """Gradients averaged over time: ``m += (1 - momentum)^(n / (n + 1)) (g - m)`` at step n.

    ``nesterov`` looks one average ahead: the update is ``momentum * m + (1 - momentum) * g``. The update has the gradient's dtypes, the
    state float32 or better. Normalise or dualize the update, then subtract it times the learning rate.
    """
    _check(gradient, state.momentum)
    rate = _rate(state.step, momentum)
    average = [m + rate * (g - m) for g, m in zip(gradient, state.momentum, strict=True)]
    update = [(momentum * m + (1 - momentum) * g) for g, m in zip(gradient, average, strict=True)] if nesterov else average
    return [u.astype(g.dtype) for u, g in zip(update, gradient, strict=True)], SGDState(average, state.step + 1)


def adam_init(w: Sequence[Any]) -> AdamState:
    """State for :func:`adam`."""
    return AdamState(_zeros(w), _zeros(w), 0)


def adam(gradient: Sequence[Any], state: AdamState, beta1: float = 0.9, beta2: float = 0.99) -> tuple[list[Any], AdamState]:
    """The paper's Adam: averages as in :func:`sgd`, update ``m / sqrt(v)`` with 0/0 = 0, no epsilon and no bias correction.

    Source: Large et al. (2024), experiments.
    """
    _check(gradient, state.mean)
    mean_rate, square_rate = _rate(state.step, beta1), _rate(state.step, beta2)
    xp = arrays.namespace_of(list(gradient))
    mean = [m + mean_rate * (g - m) for g, m in zip(gradient, state.mean, strict=True)]
    # The root of the mean square is what is kept, so that gradients of 1e-30 have one in float32.
    root = [
        xp.hypot((1 - square_rate) ** 0.5 * v, square_rate**0.5 * abs(g).astype(v.dtype))
        for g, v in zip(gradient, state.root_mean_square, strict=True)
    ]
    update = [xp.where(v > 0, m / xp.where(v > 0, v, 1), 0) for m, v in zip(mean, root, strict=True)]
    return [u.astype(g.dtype) for u, g in zip(update, gradient, strict=True)], AdamState(mean, root, state.step + 1)
