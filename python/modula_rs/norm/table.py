"""A tree flattened once: leaves, their batches and targets, and the steps of the forward pass."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modula_rs import _core
from modula_rs.backend import Batch


class Leaf(NamedTuple):
    """One weight array."""

    path: str
    kind: str
    shape: tuple[int, ...]
    copies: int
    mass: float


class Target(NamedTuple):
    """One atom, and the norm that an update of it is brought to."""

    path: str
    kind: str
    shape: tuple[int, ...]
    mass: float
    target: float
    copy: tuple[int, ...]


class Repeat(NamedTuple):
    """A power in the forward pass: its steps, run so many times on the next copy of the stacked leaves.

    ``target``: the norm of an update of the power, in the power's own norm, if that of the whole tree is 1.
    """

    times: int
    steps: list[Any]
    stacked: tuple[int, ...]
    target: float


class Plan:
    """Everything the maps and the forward pass need to know of a tree."""

    def __init__(self, tree: _core.Tree) -> None:
        self.core = tree.plan()
        rows = self.core.leaves()
        self.leaves = [Leaf(path, kind, tuple(shape), copies, mass) for path, kind, shape, copies, mass in rows]
        self.paths = [leaf.path for leaf in self.leaves]

    @cached_property
    def batches(self) -> list[Batch]:
        """How each leaf's array reshapes to a batch of blocks."""
        return [Batch(geometry, *shape) for geometry, shape, _ in self.core.groups()]

    @cached_property
    def units(self) -> list[float]:
        """The geometric norm of a block at which the norm of its atom is 1."""
        return [unit for _, _, unit in self.core.groups()]

    @cached_property
    def targets(self) -> list[NDArray[np.float64]]:
        """The target of every copy of a leaf, at target norm 1."""
        return [self.core.lead_targets(index) for index in range(len(self.leaves))]

    @cached_property
    def block_scales(self) -> list[NDArray[np.float64]]:
        """The geometric norm that a block of each leaf is brought to, at target norm 1: its target times its unit."""
        scales = zip(self.targets, self.units, self.batches, strict=True)
        return [np.repeat(t * unit, batch.count // max(len(t), 1)) for t, unit, batch in scales]

    @cached_property
    def other_uses(self) -> dict[int, list[tuple[Batch, float, float]]]:
        """For each shared leaf, the further uses that bind it: (batch, unit, target)."""
        found = {}
        for index in range(len(self.leaves)):
            uses = [(Batch(g, *shape), unit, target) for (g, shape, unit), target in self.core.other_uses(index)]
            if uses:
                found[index] = uses
        return found

    @cached_property
    def objects(self) -> list[Any]:
        """The Python object of the atom that leads each leaf."""
        return [objects[0] for objects in self.core.objects()]

    @cached_property
    def stacks(self) -> list[tuple[int, ...]]:
        """The leading axes of each leaf's array: one for each power around it, none if it is shared."""
        return [tuple(stack) for stack in self.core.stacks()]

    @cached_property
    def custom(self) -> list[int]:
        """The leaves whose maps are a user's own."""
        return [index for index, batch in enumerate(self.batches) if batch.geometry == "custom"]

    @cached_property
    def steps(self) -> list[Any]:
        """The forward pass, powers nested as :class:`Repeat`; a fork knows the leaves of the plain Linears that its members begin with."""
        return self._nest(self.core.program())

    def _nest(self, program: list[Any]) -> list[Any]:
        steps: list[Any] = []
        forks: list[list[int]] = []  # for every tuple we are in, the leaves of the Linears that members begin with
        starts = False  # whether the step is the first of a member
        at = 0
        while at < len(program):
            step = program[at]
            at += 1
            if step[0] == "repeat":
                _, times, length, target = step
                body = program[at : at + length]
                steps.append(Repeat(times, self._nest(body), self._stacked(body), target))
                at += length
            elif step[0] == "fork":
                forks.append([])
                steps.append(("fork", forks[-1]))
            else:
                steps.append(step)
                if step[0] == "join":
                    forks.pop()
                elif step[0] == "atom" and starts and step[1].may_join:
                    forks[-1].append(step[2])
            starts = step[0] in ("fork", "next")
        return steps

    def _stacked(self, body: list[Any]) -> tuple[int, ...]:
        leaves = dict.fromkeys(step[2] for step in body if step[0] == "atom")
        return tuple(leaf for leaf in leaves if self.core.is_stacked(leaf))
