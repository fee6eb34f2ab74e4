"""Users' own atoms: runs their methods on every copy of a power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.norm.table import Norm

#: Maps that every atom must define; they take the target norm of the copy. An atom may define the other maps.
REQUIRED = ("normalize", "dualize")
#: Maps whose amount is the strength of a decay.
DECAYS = ("regularize", "spectral_decay")
#: Maps whose amount is the same for all copies.
CAPS = ("hard_cap", "soft_cap", "hammer")


class Custom:
    """The maps of one leaf whose atom a user wrote."""

    def __init__(self, norm: Norm, leaf: int) -> None:
        self.atom = norm.objects[leaf]
        self.targets = norm.targets[leaf]
        self.shape = norm.leaves[leaf].shape[len(norm.stacks[leaf]) :]

    def apply(self, name: str, array: Any, amount: Any) -> Any:
        """A map on every copy: the atom's method, if it has one. Else decays shrink the copy, and other maps return it unchanged."""
        amounts = self.targets * 0 + amount if name in CAPS else self.targets * amount
        if name in REQUIRED or self._overrides(name):
            method = getattr(self.atom, name)
            takes_amount = name in (*REQUIRED, *DECAYS, *CAPS)
            return self._map(array, amounts, lambda copy, own: _first(method([copy], own) if takes_amount else method([copy])))
        return self._map(array, amounts, lambda copy, own: copy * (1 - own)) if name in DECAYS else array

    def norm(self, array: Any) -> Any:
        """The largest of norm over target among the copies that have a target above 0."""
        norms = _each_copy(array, self.shape, self.targets, lambda copy, _: self.atom.norm([copy]))
        kept = self.targets > 0
        return (norms[kept] / self.targets[kept]).max() if kept.any() else norms.sum() * 0

    def largest(self, array: Any) -> float:
        """The largest norm of a copy, in the norm of the atom."""
        if array.size == 0:
            return 0.0
        return float(_each_copy(array, self.shape, self.targets, lambda copy, _: self.atom.norm([copy])).max())

    def dual_norm(self, array: Any) -> Any:
        """The sum of target times dual norm: by the atom's method, or as the inner product with what its ``dualize`` returns."""

        def gain(copy: Any, target: Any) -> Any:
            if self._overrides("dual_norm"):
                return self.atom.dual_norm([copy]) * target
            return (copy * _first(self.atom.dualize([copy], target))).sum()

        return _each_copy(array, self.shape, self.targets, gain).sum()

    def _overrides(self, name: str) -> bool:
        """Whether the atom's class, or a user's class that it derives from, defines the method."""
        return bool(self.atom.overrides(name))

    def _map(self, array: Any, numbers: Any, function: Callable[[Any, Any], Any]) -> Any:
        if array.size == 0 and array.shape and 0 in array.shape[: array.ndim - len(self.shape)]:
            return array
        result = _each_copy(array, self.shape, np.asarray(numbers) if arrays.library(numbers) != "jax" else numbers, function)
        return result.reshape(array.shape).astype(array.dtype)


def _each_copy(array: Any, shape: tuple[int, ...], numbers: Any, function: Callable[[Any, Any], Any]) -> Any:
    """``function(copy, number)`` for every copy in a stacked array, the results stacked on one leading axis."""
    copies = array.reshape(-1, *shape)
    if arrays.library(array) == "jax":
        import jax

        return jax.vmap(function)(copies, arrays.namespace("jax").asarray(numbers, arrays.working_dtype(array.dtype)))
    xp = arrays.namespace_of(array)
    return xp.stack([xp.asarray(function(copy, number)) for copy, number in zip(copies, numbers, strict=True)])


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) else value
