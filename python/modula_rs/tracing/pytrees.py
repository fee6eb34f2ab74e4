"""Weights as a pytree: how its arrays, in the structure that a user gives, are those of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import jax
import numpy as np

from modula_rs import _core, arrays
from modula_rs.arrays import Array
from modula_rs.norm.checks import check_paths, check_target, check_together, shorten
from modula_rs.norm.methods import Normed
from modula_rs.norm.table import Norm, Target
from modula_rs.tracing.paths import collection_of, numbers_of, paths_of
from modula_rs.tracing.reading import Leaf, Reading
from modula_rs.tracing.views import ArrayView

#: Stands in lists of arrays for a frozen array that a pytree leaves out.
_ABSENT = np.zeros(())


class Pytrees(Normed[Any]):
    """The norm of a table. Maps take and return pytrees whose arrays have the table's paths."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._paths = [leaf.path for leaf in reading.leaves]
        self._frozen = frozenset(number for number, leaf in enumerate(reading.leaves) if not leaf.roles)
        trained = [leaf.path for leaf in reading.leaves if leaf.roles]
        self._collection = collection_of(trained, [self._paths[number] for number in self._frozen])
        self._structures: dict[Any, list[int]] = {}  # for each structure of a pytree the numbers of its arrays in the table
        rows: list[Any] = []
        self._views: list[ArrayView] = [ArrayView(leaf, rows) for leaf in reading.leaves]
        self._table = Norm(_core.Norm.of_rows(rows))

    @property
    def norm_table(self) -> Norm:
        """The norm by itself, one row for each matrix that the arrays hold."""
        return self._table

    @property
    def leaves(self) -> list[Leaf]:
        """One row for each array: path, kind, shape, blocks, copies, mass, target, and the reason for the kind."""
        return list(self.reading.leaves)

    @property
    def mass(self) -> float:
        """The sum of all masses."""
        return sum(role.mass for leaf in self.reading.leaves for role in leaf.roles)

    @property
    def fingerprint(self) -> str:
        """A hash of the table without its explanations."""
        return self.reading.fingerprint

    def targets(self, target_norm: float = 1.0) -> list[Target]:
        """One row for each matrix or vector, copies one after the other, with the target norm of its updates."""
        return self._table.atoms(float(check_target(target_norm)))

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON, to be read by :func:`load`."""
        self.reading.save(path)

    def paths_of(self, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
        """The path of each leaf of a pytree, as it stands in the table."""
        return paths_of(tree, is_leaf)

    def match(self, paths: Sequence[str]) -> list[int]:
        """The number of the array that each path stands for; ValueError, with the difference, if the paths are not the table's.

        Frozen arrays may be left out. The collection that holds all trained arrays, such as linen's ``params``, may stand for the whole.
        """
        return numbers_of(paths, self._paths, self._frozen, self._collection)

    def _named(self, paths: Sequence[str]) -> list[int] | None:
        check_paths(paths)
        numbers = {path: number for number, path in enumerate(self._paths)}
        for prefix in ("", self._collection):
            if all(prefix + path in numbers for path in paths):
                return [numbers[prefix + path] for path in paths]
        return None

    def opened(self, w: Any) -> tuple[list[Array], Callable[[Sequence[Array]], Any]]:
        """The arrays of a pytree in the order of ``leaves``, and a function that puts such arrays back into its structure."""
        given, structured = self._open(w, "weight")
        absent = [path for path, array in zip(self._paths, given, strict=True) if array is _ABSENT]
        if absent:
            raise ValueError(f"weights must hold the frozen arrays too, got a pytree without {shorten(absent)}")
        return list(given), structured

    def split(self, w: Any) -> tuple[Any, Any]:
        """The arrays that are trained and those that are frozen, as two pytrees with None in the place of the other arrays."""
        leaves, structure = jax.tree.flatten(w)
        frozen = [number in self._frozen for number in self.match(paths_of(w))]
        made = ([leaf if is_frozen is wanted else None for leaf, is_frozen in zip(leaves, frozen, strict=True)] for wanted in (False, True))
        trained, rest = (jax.tree.unflatten(structure, part) for part in made)
        return trained, rest

    def _in_order(self, shardings: Any, w: Any) -> Any:
        found = super()._in_order(shardings, w)
        if not isinstance(found, list):
            return found
        numbers = self._structures.get(jax.tree.structure(w))  # known once w is opened
        if numbers is None or len(numbers) != len(found):
            raise ValueError(f"shardings: expected a tree like the parameters, got one of {len(found)} leaves")
        ordered: list[Any] = [None] * len(self._paths)
        for number, sharding in zip(numbers, found, strict=True):
            ordered[number] = sharding
        return ordered

    def drawing(self) -> str:
        """One line for each array: path, shape, kind, layout, place and mass of each of its uses."""
        return "\n".join(self.description())

    def description(self) -> Iterator[str]:
        """One line for each array."""
        for leaf in self.reading.leaves:
            uses = [f"{role.kind} {role.layout} at {role.place}, mass {role.mass!r}" for role in leaf.roles]
            yield f"{leaf.path}: {leaf.dtype} {leaf.shape}, {'; also '.join(uses) or 'frozen'}"

    def _open(self, w: Any, what: str, shapes: bool = False) -> tuple[Sequence[Array], Callable[[Sequence[Array]], Any]]:
        try:
            leaves, structure = jax.tree.flatten(w)
        except (RecursionError, SystemError):  # JAX ends so in a list that holds itself
            raise ValueError(f"{what}s are nested too deeply to be a pytree") from None
        numbers = self._structures.get(structure)
        if numbers is None:
            numbers = self._structures[structure] = self.match(paths_of(w))
        given: list[Any] = [_ABSENT] * len(self._paths)
        for number, array in zip(numbers, leaves, strict=True):
            given[number] = array
            if not shapes and arrays.library(array) is None:
                raise TypeError(f"{what} of {self._paths[number]} must be a NumPy, JAX or CuPy array, got {type(array).__name__}")
        self.check_shapes(numbers, leaves, what)
        check_together((lambda at: f"{what} of {self._paths[at]}", given))
        return given, lambda made: jax.tree.unflatten(structure, [made[number] for number in numbers])

    def __str__(self) -> str:
        return str(self.reading)
