"""The forward pass on a mesh with Explicit axes, which today's ``jax.make_mesh`` makes by default: XLA places the values in between.

On such a mesh JAX refuses every operation whose placement is ambiguous, such as a lookup in a table, a product that contracts a split axis,
or a scan over a split axis. The forward pass declares the axes Auto inside, and its output lies like its input, along the leading axes that
both have. Features that the input does not have are whole, because a loss on split features would be refused in turn.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from modula_rs.backend.jax.sharded import meshes


def mesh_of(x: Any, w: Any) -> Any:
    """The mesh with Explicit axes on which an input or weights lie, else None."""
    return meshes.explicit_mesh(jax.tree.leaves((x, w)))


def run(function: Callable[[Any, Any], Any], x: Any, w: Any) -> Any:
    """``function(x, w)`` on a mesh with Explicit axes."""
    mesh = mesh_of(x, w)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype) if isinstance(a, jax.Array) else a, (x, w))
    output = jax.eval_shape(function, *shapes)
    given = jax.tree.leaves(x)
    placements = jax.tree.map(lambda out: NamedSharding(mesh, _placement(given, out.shape)), output)
    return _placed(function, placements)(x, w)


def like(function: Callable[..., Any], outputs: Any, *operands: Any) -> Any:
    """``function(*operands)``. On a mesh with Explicit axes these are Auto inside, and results lie like ``outputs``.

    outputs: a tree like the results, of arrays, or of PartitionSpecs.
    """
    mesh = meshes.explicit_mesh(jax.tree.leaves(operands))
    if mesh is None:
        return function(*operands)

    def placement(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, leaf if isinstance(leaf, PartitionSpec) else PartitionSpec(*_spec(leaf)))

    return _placed(function, jax.tree.map(placement, outputs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)))(*operands)


def _placed(function: Callable[..., Any], placements: Any) -> Callable[..., Any]:
    """The function with Auto axes inside, whose results lie so."""
    option = "out_sharding" if "out_sharding" in inspect.signature(_auto_axes).parameters else "out_shardings"
    made: Callable[..., Any] = _auto_axes(function, **{option: placements})
    return made


def _placement(given: Sequence[Any], shape: tuple[int, ...]) -> PartitionSpec:
    """How an output of this shape lies."""
    entries: list[Any] = [None] * len(shape)
    for x in given:
        spec = _spec(x)
        for axis, (size, own) in enumerate(zip(shape, x.shape, strict=False)):
            if size != own:
                break
            entries[axis] = spec[axis]
        if any(spec):
            break
    return PartitionSpec(*entries)


def _spec(array: Any) -> list[Any]:
    spec = list(jax.typeof(array).sharding.spec) if isinstance(array, jax.Array) else []
    return [*spec, *[None] * (len(array.shape) - len(spec))]


def _find_auto_axes() -> Callable[..., Any]:
    if hasattr(jax.sharding, "auto_axes"):
        return jax.sharding.auto_axes
    found: Callable[..., Any] = import_module("jax.experimental.shard").auto_axes  # JAX 0.6
    return found


_auto_axes = _find_auto_axes()
