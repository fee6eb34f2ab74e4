"""Users' own atoms: their methods, run on every copy of a power."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.norm.table import Plan


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


class Custom:
    """The maps of one leaf whose atom is a user's own."""

    def __init__(self, plan: Plan, leaf: int) -> None:
        self.obj = plan.objects[leaf]
        self.targets = plan.targets[leaf]
        self.shape = plan.leaves[leaf].shape[len(plan.stacks[leaf]) :]

    def update(self, method: str, array: Any, target_norm: Any) -> Any:
        """``normalize`` or ``dualize`` of every copy, each to its own target."""
        function = getattr(self.obj, method)
        return self._map(array, self.targets * target_norm, lambda copy, target: _first(function([copy], target)))

    def norm(self, array: Any) -> Any:
        """The largest of norm over target, copies without a target left out."""
        norms = _each_copy(array, self.shape, self.targets, lambda copy, _: self.obj.norm([copy]))
        kept = self.targets > 0
        return (norms[kept] / self.targets[kept]).max() if kept.any() else norms.sum() * 0

    def dual_norm(self, array: Any) -> Any:
        """The sum of target times dual norm: the atom's own, or what its ``dualize`` gains."""

        def gain(copy: Any, target: Any) -> Any:
            if "dual_norm" in vars(type(self.obj)):
                return self.obj.dual_norm([copy]) * target
            return (copy * _first(self.obj.dualize([copy], target))).sum()

        return _each_copy(array, self.shape, self.targets, gain).sum()

    def project(self, array: Any) -> Any:
        """The atom's own ``project``, or the array as it is."""
        if "project" not in vars(type(self.obj)):
            return array
        return self._map(array, self.targets, lambda copy, _: _first(self.obj.project([copy])))

    def regularize(self, array: Any, strength: Any) -> Any:
        """The atom's own ``regularize``, or decay by strength times target."""
        strengths = self.targets * strength
        if "regularize" in vars(type(self.obj)):
            return self._map(array, strengths, lambda copy, s: _first(self.obj.regularize([copy], s)))
        return self._map(array, strengths, lambda copy, s: copy * (1 - s))

    def _map(self, array: Any, numbers: Any, function: Callable[[Any, Any], Any]) -> Any:
        if array.size == 0 and array.shape and 0 in array.shape[: array.ndim - len(self.shape)]:
            return array
        result = _each_copy(array, self.shape, np.asarray(numbers) if arrays.library(numbers) != "jax" else numbers, function)
        return result.reshape(array.shape).astype(array.dtype)
