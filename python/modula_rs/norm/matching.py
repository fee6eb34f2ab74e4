"""Which array of a pytree is which array of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modula_rs.arrays import Array
from modula_rs.norm.checks import check_paths, check_weights, shard, shorten
from modula_rs.norm.table import Norm


class Matching:
    """What optimizers and checkpoints ask of a norm: its arrays by path, in order, and apart where some are frozen."""

    @property
    def norm_table(self) -> Norm:
        """The norm by itself: what the maps know of the network. It has no forward pass."""
        raise TypeError(f"{type(self).__name__} has no norm")

    @property
    def leaves(self) -> Sequence[Any]:
        """One row for each array of the weights, with at least a path and a shape."""
        return list(self.norm_table.leaves)

    def match(self, paths: Sequence[str]) -> list[int]:
        """The index of the array that each path of a pytree stands for.

        Arrays are matched by name if every path is the path of a leaf, as in a dict keyed by paths, and by their order otherwise.
        """
        numbers = {path: number for number, path in enumerate(self.norm_table.paths)}
        if len(paths) != len(numbers):
            raise ValueError(f"expected {len(numbers)} arrays ({shorten(list(numbers))}), got {len(paths)} ({shorten(list(paths))})")
        named = self._named(paths)
        if named is not None:
            return named
        unknown = [path for path in paths if path not in numbers]
        if len(unknown) < len(paths):
            raise ValueError(
                f"names in a pytree must be those of the leaves ({shorten(list(numbers))}), got {shorten(unknown)} beside them"
            )
        return list(range(len(paths)))

    def paths_of(self, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
        """The path of each leaf of a pytree: keys joined by ``/``."""
        import jax

        flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]

    def check_shapes(self, numbers: Sequence[int], given: Sequence[Any], what: str) -> None:
        """ValueError, with every difference, unless the arrays have the shapes of the weights with these indices."""
        leaves = self.leaves
        pairs = [(leaves[number], np.shape(array), array) for number, array in zip(numbers, given, strict=True)]
        wrong = [
            f"of {leaf.path} must have shape {leaf.shape}, got {shape}{shard(array)}" for leaf, shape, array in pairs if leaf.shape != shape
        ]
        if wrong:
            raise ValueError(f"{what} {', '.join(wrong[:20])}{', ...' if len(wrong) > 20 else ''}")

    def opened(self, w: Any) -> tuple[list[Array], Callable[[Sequence[Array]], Any]]:
        """The arrays of weights in the order of ``leaves``, and a function that puts such arrays back into their structure.

        TypeError or ValueError if they do not fit.
        """
        check_weights(self.leaves, w, "weight")
        return list(w), lambda made: made

    def split(self, w: Any) -> tuple[Any, Any]:
        """The trained weights and the frozen weights: two copies of the structure of ``w``, with None in the place of the other arrays."""
        return w, [None] * len(w)

    def match_kept(self, paths: Sequence[str], kept: Sequence[int]) -> list[int]:
        """The index of the array that each kept path of a pytree stands for. A path that is not kept may stand for many arrays."""
        named = self._named([paths[at] for at in kept]) if len(kept) < len(paths) else None
        if named is not None:
            return named
        found = self.match(paths)
        return [found[at] for at in kept]

    def _named(self, paths: Sequence[str]) -> list[int] | None:
        """The index of the array with each path; None if a path is none of an array."""
        numbers = {path: number for number, path in enumerate(self.norm_table.paths)}
        check_paths(paths)
        return [numbers[path] for path in paths] if all(path in numbers for path in paths) else None
