"""Schedule-free training for NumPy loops: averaged weights in place of a schedule. JAX loops have :func:`modula_rs.optax.schedule_free`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from modula_rs.arrays import Weights
from modula_rs.checks import number, shown
from modula_rs.optim.averages import _listed, _share, together


class ScheduleFreeState(NamedTuple):
    """The fast weights z, which the updates move, their average x, which is the result, and the sum of the squared rates."""

    fast: Weights
    average: Weights
    weight: float


def schedule_free_init(w: Sequence[Any]) -> ScheduleFreeState:
    """The first state for :func:`schedule_free`."""
    return ScheduleFreeState(_listed("weight", w), _listed("weight", w), 0.0)


def schedule_free(update: Sequence[Any], state: ScheduleFreeState, rate: Any, b1: float = 0.9) -> tuple[Weights, ScheduleFreeState]:
    """The weights at which to take the next gradient, and the state: ``z -= rate * update; x += c (z - x); y = (1 - b1) z + b1 x``.

    ``c`` is the share of ``rate^2`` in the sum of all squared rates so far. Decay and maps of weights belong to ``state.fast``: they are
    part of the update, or change ``state.fast`` before the call. ``state.average`` is what to evaluate and keep.

    Args:
        update: an update of norm 1, of a gradient at the weights that the last call returned. It needs no momentum, which ``b1`` replaces.
        state: from :func:`schedule_free_init` or the step before.
        rate: the learning rate, at least 0; constant, or rising at first.
        b1: the share of the average in the weights at which gradients are taken, from 0 to 1.

    Raises:
        TypeError, ValueError: arrays that do not fit the state, a rate or ``b1`` out of range.

    Source: Defazio et al., "The Road Less Scheduled" (2024).

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Linear(2, 3)
    >>> state = mr.optim.schedule_free_init(m.initialize(0))
    >>> w, state = mr.optim.schedule_free(m.normalize(m.initialize(1)), state, 0.1)
    >>> all(np.array_equal(a, b) for a, b in zip(state.fast, state.average))  # the average of one
    True
    """
    moves, b1, rate = _listed("update", update), _share("b1", b1), number("rate", rate)
    if not isinstance(state, ScheduleFreeState):
        raise TypeError(f"the state must be the ScheduleFreeState of the step before, got {shown(state)}")
    if not 0 <= rate < float("inf"):
        raise ValueError(f"rate must be at least 0 and finite, got {rate}")
    if [u.shape for u in moves] != [z.shape for z in state.fast]:
        raise ValueError(f"updates must have the shapes {[tuple(z.shape) for z in state.fast]}, got {[tuple(u.shape) for u in moves]}")
    together(("update", moves), ("weight of the state", state.fast))
    weight = state.weight + rate * rate
    share = rate * rate / weight if weight > 0 else 0.0
    fast = [(z - rate * u).astype(z.dtype) for z, u in zip(state.fast, moves, strict=True)]
    average = [(x + share * (z - x)).astype(x.dtype) for x, z in zip(state.average, fast, strict=True)]
    at = [((1 - b1) * z + b1 * x).astype(z.dtype) for z, x in zip(fast, average, strict=True)]
    return at, ScheduleFreeState(fast, average, weight)
