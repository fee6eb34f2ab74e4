"""The norm of a network: one row for each weight array, and the recipes of the maps on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs import _core
from modula_rs.backend import Batch
from modula_rs.norm.recipe import Measures, Recipe


class Leaf(NamedTuple):
    """One weight array."""

    path: str
    kind: str
    shape: tuple[int, ...]
    copies: int
    mass: float


class Target(NamedTuple):
    """One atom, and the target norm of its updates."""

    path: str
    kind: str
    shape: tuple[int, ...]
    mass: float
    target: float
    copy: tuple[int, ...]


class Norm:
    """Everything that the maps on weights need to know about a network. It does not depend on the forward pass."""

    def __init__(self, core: _core.Norm) -> None:
        self.core = core
        self.leaves = [Leaf(path, kind, tuple(shape), copies, mass) for path, kind, shape, copies, mass in core.leaves()]
        self.paths = [leaf.path for leaf in self.leaves]
        self._recipes: dict[str, Recipe] = {}
        self._parts: dict[tuple[int, ...], Norm] = {}
        #: Programs that were compiled for arrays on a mesh (:mod:`modula_rs.norm.placed`).
        self.programs: dict[Any, Callable[..., Any]] = {}

    def part(self, chosen: Sequence[int]) -> Norm:
        """The norm of some of the leaves, in this order, with their targets in the whole."""
        key = tuple(chosen)
        if key not in self._parts:
            self._parts[key] = Norm(self.core.part(key))
        return self._parts[key]

    def recipe(self, name: str) -> Recipe:
        """The recipe of a map, made at the first call."""
        if name not in self._recipes:
            self._recipes[name] = Recipe(self.core.recipe(name))
        return self._recipes[name]

    @cached_property
    def measures(self) -> Measures:
        """How the norm is measured."""
        return Measures(self.core.measures(dual=False))

    @cached_property
    def dual_measures(self) -> Measures:
        """How the dual norm is measured."""
        return Measures(self.core.measures(dual=True))

    def atoms(self, target_norm: float) -> list[Target]:
        """One row for each atom, input first, the copies of a power in turn."""
        rows = self.core.targets(target_norm)
        return [Target(path, kind, tuple(shape), mass, target, tuple(at)) for path, kind, shape, mass, target, at in rows]

    @cached_property
    def batches(self) -> list[Batch]:
        """The batch of blocks to which each leaf's array is reshaped."""
        return [Batch(*row) for row in self.core.batches()]

    @cached_property
    def targets(self) -> list[NDArray[np.float64]]:
        """The target of every copy of a leaf, at target norm 1."""
        return [self.core.lead_targets(index) for index in range(len(self.leaves))]

    @cached_property
    def objects(self) -> list[Any]:
        """The Python object of each leaf's first atom."""
        return list(self.core.objects())

    @cached_property
    def stacks(self) -> list[tuple[int, ...]]:
        """The leading axes of each leaf's array: one for each power around the leaf, none for a shared leaf."""
        return [tuple(stack) for stack in self.core.stacks()]

    @cached_property
    def custom(self) -> list[int]:
        """The leaves whose atoms users wrote."""
        return [index for index, batch in enumerate(self.batches) if batch.geometry == "custom"]
