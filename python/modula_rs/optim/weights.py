"""Decay in the modular norm: each array shrinks by its own share of an update."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Array, widen
from modula_rs.checks import flag, number, shown
from modula_rs.norm.methods import Normed
from modula_rs.optim.automatic import on_explicit_mesh, opened


def add_modular_decay(module: Normed[Any], update: Any, w: Any, strength: Any, *, cautious: bool = False) -> Any:
    """``update + strength * target * w``: decoupled decay whose rate for each atom is the atom's target in an update of norm 1.

    Subtract the result times the learning rate, so that the decay falls with the rate. If the update has norm 1, no atom's weight then ever
    exceeds norm ``max(1, 1 / strength)``, whatever the atom's mass, place and size: the update adds at most ``rate * target`` to the norm,
    and the decay takes away ``rate * target * strength * norm``. (A decay with one rate for all atoms lets atoms of large targets grow
    more.) Unlike :meth:`modula_rs.Module.regularize`, rows of an Embed decay as all weights do, and nothing is brought back to norm 1.

    Args:
        module: a module or a traced network.
        update: an update that is to be subtracted, of norm 1.
        w: the weights before the update.
        strength: a number of at least 0, or an array of JAX.
        cautious: whether only entries decay whose update, too, moves them towards 0.

    Returns:
        Arrays in the structure of the update, with its dtypes. Frozen arrays do not decay.

    Raises:
        TypeError, ValueError: arrays that do not fit the network, a strength that is no number or is negative.

    Sources: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019); Chen et al., "Cautious Weight Decay" (2025).

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Linear(2, 2) @ mr.Linear(2, 2).tare(3)
    >>> w, zero = m.initialize(0), [np.zeros((2, 2), np.float32)] * 2
    >>> decay = mr.optim.add_modular_decay(m, zero, w, 0.1)
    >>> [round(float((d / a).mean()), 4) for d, a in zip(decay, w)]  # a tenth of the shares 3/4 and 1/4
    [0.075, 0.025]
    """
    given, structured = opened(module, update, "update")
    weights, _ = opened(module, w, "weight")
    strength, cautious = _strength(strength), flag("cautious", cautious)
    shapes, expected = [tuple(u.shape) for u in given], [tuple(a.shape) for a in weights]
    if shapes != expected:
        raise ValueError(f"updates must have the shapes of the weights, {shown(expected)}, got {shown(shapes)}")
    table = module.norm_table
    module._check_together(("update", given), ("weight", weights))

    def by_targets(weights: Sequence[Array]) -> list[Array]:
        leaves = [_by_copy(a, targets) for a, targets in zip(module._leaves(weights), table.targets, strict=True)]
        return list(module._arrays(leaves, weights, "normalize"))

    shares = on_explicit_mesh(by_targets, weights, weights)
    made = []
    for u, a, share in zip(given, weights, shares, strict=True):
        xp, wide = arrays.namespace_of(u), widen(u)
        decay = strength * widen(share)
        made.append((wide + (xp.where(wide * widen(a) > 0, decay, 0) if cautious else decay)).astype(u.dtype))
    return structured(made)


def _by_copy(array: Array, numbers: Any) -> Array:
    """The array with each copy of a power multiplied by its number, in float32 or better."""
    wide = widen(array)
    if not wide.size:
        return wide
    factors = arrays.namespace_of(array).asarray(numbers, dtype=wide.dtype)
    stacked = next((at for at in range(wide.ndim) if prod(wide.shape[:at]) == len(factors)), None)
    if stacked is None:  # each copy has several blocks along one axis
        return (wide.reshape(len(factors), -1) * factors[:, None]).reshape(wide.shape)
    return wide * factors.reshape(*wide.shape[:stacked], *[1] * (wide.ndim - stacked))  # an array that is split over a mesh keeps its shape


def _strength(strength: Any) -> Any:
    if arrays.library(strength) == "jax":
        return strength
    value = number("strength", strength)
    if not 0 <= value < float("inf"):
        raise ValueError(f"strength must be at least 0 and finite, got {value}")
    return value
