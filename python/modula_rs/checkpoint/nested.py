"""Takes a nested state apart into named values, and rebuilds it from others: containers of Python, and classes that JAX knows as trees."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections import ChainMap, UserList, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from modula_rs import arrays

#: A state of more values than this is refused: it is taken for containers that hold each other.
_MOST = 200_000


class _Opened(NamedTuple):
    """The parts of a container by name, and a function that makes such a container from other parts."""

    parts: list[tuple[str, Any]]
    closed: Callable[[list[Any]], Any]


def named(name: str, node: Any, leaves: Sequence[str]) -> dict[str, Any]:
    """All values in a nested state, each under the names of the containers around it, joined by "/".

    A list as long as the weights gets the names of the ``leaves``. ValueError if two values have one name, or if the state does not end.

    >>> named("state", {"step": 3, "mean": [0.5, 0.25]}, ["in", "out"])
    {'state/step': 3, 'state/mean/in': 0.5, 'state/mean/out': 0.25}
    """
    found: dict[str, Any] = {}
    try:
        for place, value in _walk(name, node, leaves):
            if place in found:
                raise ValueError(f"two values would be kept as {place}: give one of them another key")
            if len(found) == _MOST:
                raise ValueError(f"{name} holds more than {_MOST} values")
            found[place] = value
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply, or holds itself") from None
    return found


def filled(name: str, node: Any, leaves: Sequence[str], values: Mapping[str, Any]) -> Any:
    """A state of the same containers that holds the values given by name."""
    opened = _open(node, leaves)
    if opened is None:
        return values[name]
    return opened.closed([filled(f"{name}/{key}", part, leaves, values) for key, part in opened.parts])


def _walk(name: str, node: Any, leaves: Sequence[str]) -> Iterator[tuple[str, Any]]:
    opened = _open(node, leaves)
    if opened is None:
        yield name, node
        return
    for key, part in opened.parts:
        yield from _walk(f"{name}/{key}", part, leaves)


def _open(node: Any, leaves: Sequence[str]) -> _Opened | None:
    """The parts of a container; None for anything else, which is a single value."""
    if node is None or arrays.library(node) is not None:
        return None
    if isinstance(node, ChainMap):
        return _Opened([(str(place), part) for place, part in enumerate(node.maps)], lambda parts: type(node)(*parts))
    if isinstance(node, Mapping):
        keys = list(node)
        return _Opened([(str(key), node[key]) for key in keys], lambda parts: _mapping(node, keys, parts))
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return _Opened(list(zip(node._fields, node, strict=True)), type(node)._make)  # type: ignore[attr-defined]
    if isinstance(node, tuple | list | deque | UserList):
        names = leaves if len(node) == len(leaves) else list(map(str, range(len(node))))
        return _Opened(list(zip(names, node, strict=True)), lambda parts: _sequence(node, parts))
    registered = _open_pytree(node)
    if registered is not None:
        return registered
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return _with_attributes(node, [field.name for field in dataclasses.fields(node)])
    return _with_attributes(node, list(vars(node))) if isinstance(node, SimpleNamespace) else None


def _mapping(node: Mapping[Any, Any], keys: list[Any], parts: list[Any]) -> Any:
    pairs = dict(zip(keys, parts, strict=True))
    if not isinstance(node, MutableMapping):
        return type(node)(pairs)  # type: ignore[call-arg]
    made = copy.copy(node)  # the copy keeps a defaultdict's default and an OrderedDict's order
    for key, part in pairs.items():
        made[key] = part
    return made


def _sequence(node: Any, parts: list[Any]) -> Any:
    if isinstance(node, tuple):
        return tuple.__new__(type(node), parts)
    made = copy.copy(node)  # the copy keeps a deque's maximal length
    made.clear()
    made.extend(parts)
    return made


def _with_attributes(node: Any, names: list[str]) -> _Opened:
    def closed(parts: list[Any]) -> Any:
        made = copy.copy(node)
        for name, part in zip(names, parts, strict=True):
            object.__setattr__(made, name, part)  # works for a frozen dataclass too
        return made

    return _Opened([(name, getattr(node, name)) for name in names], closed)


def _open_pytree(node: Any) -> _Opened | None:
    """The parts of an object whose class is registered with JAX as a tree."""
    jax = sys.modules.get("jax")
    if jax is None:
        return None
    parts, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda part: part is not node)
    if len(parts) == 1 and parts[0][1] is node:
        return None
    return _Opened([("/".join(map(_step, path)), part) for path, part in parts], structure.unflatten)


def _step(key: Any) -> str:
    """The name of one step of JAX's path to a part."""
    return str(next(getattr(key, name) for name in ("name", "key", "idx") if hasattr(key, name)))
