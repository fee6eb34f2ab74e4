"""Paths of arrays in a pytree, as they stand in the table, and how a pytree differs from the table."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from modula_rs.norm.checks import shorten


def paths_of(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of each leaf: keys joined by ``/``. The array of an nnx variable has the path of the variable.

    >>> paths_of({"a": [1.0, {"value": 2.0}]})
    ['a/0', 'a/1/value']
    """
    nnx = sys.modules.get("flax.nnx")
    variable = getattr(nnx, "Variable", ())

    def stops(node: Any) -> bool:
        return isinstance(node, variable) or (is_leaf is not None and is_leaf(node))

    made = []
    for path, node in jax.tree_util.tree_flatten_with_path(tree, is_leaf=stops)[0]:
        inner = jax.tree_util.tree_flatten_with_path(node, is_leaf=is_leaf)[0] if isinstance(node, variable) else [((), node)]
        made += [jax.tree_util.keystr(path if len(inner) == 1 else (*path, *rest), simple=True, separator="/") for rest, _ in inner]
    return made


def numbers_of(paths: Sequence[str], table: Sequence[str], optional: frozenset[int], collection: str) -> list[int]:
    """The number in the table of the array at each path.

    Args:
        paths: the paths in a pytree.
        table: the paths in the table.
        optional: the numbers of arrays that may be left out, because they are frozen.
        collection: the path, with a slash, of a part of the tree that may stand for the whole; "" if there is none.

    Raises:
        ValueError: the paths are others than those of the table, with the difference.
    """
    numbers = {path: number for number, path in enumerate(table)}
    if collection and not any(path in numbers for path in paths) and any(collection + path in numbers for path in paths):
        paths = [collection + path for path in paths]
    unknown = [path for path in paths if path not in numbers]
    missing = [path for path in sorted(numbers.keys() - set(paths)) if numbers[path] not in optional]
    if missing or unknown:
        told = [f"{what} {shorten(names)}" for what, names in (("without", missing), ("with", unknown)) if names]
        raise ValueError(f"expected a pytree of the {len(numbers)} arrays that were traced, got one {' and '.join(told)}")
    return [numbers[path] for path in paths]


def collection_of(trained: Sequence[str], others: Sequence[str]) -> str:
    """The first key, with a slash, that all trained arrays and no other arrays have in their paths; "" if there is none.

    >>> collection_of(["params/a", "params/b"], ["batch_stats/a"])
    'params/'
    """
    first = {path.partition("/")[0] for path in trained if "/" in path}
    if len(first) != 1 or not all("/" in path for path in trained) or any(path.partition("/")[0] in first for path in others):
        return ""
    return first.pop() + "/"
