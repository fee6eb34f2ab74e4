"""Meshes and placements of JAX arrays, for JAX 0.6 and later."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from modula_rs.backend.jax.sharded.lay import Axes, Spec


def shard_map(function: Callable[..., Any], mesh: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """``jax.shard_map`` over all axes, without its check of what varies: replicas of gathered values are equal by construction."""
    found: Callable[..., Any]
    if hasattr(jax, "shard_map"):
        found = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    else:
        from jax.experimental.shard_map import shard_map as before

        found = before(function, mesh, in_specs, out_specs, check_rep=False)
    return found


def sizes(mesh: Any) -> dict[str, int]:
    """The sizes of a mesh's axes, by name."""
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))


def several(mesh: Any) -> bool:
    """Whether a mesh has more than one device."""
    return bool(math.prod(mesh.axis_sizes) > 1)


def placement(array: Any) -> NamedSharding | None:
    """Where an array lies, as far as that is known: in its type on an Explicit mesh, else from the array itself. None for one device.

    Inside ``shard_map`` an array is what one device holds, so it lies on one device. Inside ``jax.jit`` on an Auto mesh nothing is known.
    """
    try:
        known = jax.typeof(array).sharding
    except (AttributeError, TypeError):
        return None
    if not known.mesh.empty and has_type(known.mesh, AxisType.Manual):
        return None
    if isinstance(array, jax.core.Tracer):
        if known.mesh.empty or not has_type(known.mesh, AxisType.Explicit):
            return None
        found = known
    else:
        found = array.sharding
    return found if isinstance(found, NamedSharding) and several(found.mesh) else None


def has_type(mesh: Any, wanted: AxisType) -> bool:
    """Whether an axis of a mesh is of this type."""
    types = mesh.axis_types
    return bool(wanted in (types if isinstance(types, tuple) else tuple(types or ())))


def is_shard(array: Any) -> bool:
    """Whether an array is what one device holds, inside ``shard_map``."""
    try:
        mesh = jax.typeof(array).sharding.mesh
    except (AttributeError, TypeError):
        return False
    return not mesh.empty and has_type(mesh, AxisType.Manual)


def explicit_mesh(values: Sequence[Any]) -> Any:
    """The mesh of the first array whose type has a mesh with Explicit axes, else None."""
    for value in values:
        if isinstance(value, jax.Array):
            mesh = jax.typeof(value).sharding.mesh
            if not mesh.empty and has_type(mesh, AxisType.Explicit):
                return mesh
    return None


def spec_of(sharding: NamedSharding, ndim: int) -> Spec:
    """The mesh axes, of more than one device, over which each axis of an array of this rank is split."""
    known = sizes(sharding.mesh)
    entries = [*sharding.spec, *[None] * (ndim - len(sharding.spec))]
    return tuple(tuple(name for name in names(entry) if known[name] > 1) for entry in entries)


def names(entry: Any) -> Axes:
    """The mesh axes of one entry of a PartitionSpec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def partition(spec: Spec) -> PartitionSpec:
    """The PartitionSpec that splits each axis over these mesh axes."""
    return PartitionSpec(*(None if not own else own[0] if len(own) == 1 else own for own in spec))


def place(array: Any) -> Any:
    """The mesh of several devices on which an array lies, or the set of its devices; None if it is not bound to a device, or not known."""
    if not isinstance(array, jax.Array):
        return None
    if (found := placement(array)) is not None:
        return found.mesh
    bound = not isinstance(array, jax.core.Tracer) and getattr(array, "committed", getattr(array, "_committed", True))
    return frozenset(array.devices()) if bound else None


def described(place: Any) -> str:
    """A mesh, or a set of devices, in words.

    >>> import jax
    >>> described(jax.sharding.AbstractMesh((4, 2), ("data", "model")))
    'a mesh of 8 devices (data 4, model 2)'
    """
    if isinstance(place, frozenset):
        return " and ".join(sorted(map(str, place)))
    axes = ", ".join(f"{name} {size}" for name, size in sizes(place).items())
    return f"a mesh of {math.prod(place.axis_sizes)} devices ({axes})"


def same(one: Any, other: Any) -> bool:
    """Whether two places are one: the same devices, in a mesh under the same names. An abstract mesh has names and sizes alone."""
    if one is other or isinstance(one, frozenset) or isinstance(other, frozenset):
        return bool(one == other)
    if isinstance(one, Mesh) and isinstance(other, Mesh):
        return sizes(one) == sizes(other) and tuple(one.devices.flat) == tuple(other.devices.flat)
    return sizes(one) == sizes(other)


def context() -> Any:
    """The mesh that ``jax.set_mesh`` set, which compiled programs depend on."""
    return jax.sharding.get_abstract_mesh()


def put(operands: Any, mesh: Any, specs: Any) -> Any:
    """Operands of ``shard_map`` with the types that an Explicit mesh asks for; on other meshes XLA places operands by itself."""
    if not has_type(mesh, AxisType.Explicit):
        return operands

    def typed(spec: PartitionSpec, operand: Any) -> Any:
        known = jax.typeof(operand).sharding
        entries = [*spec, *[None] * (operand.ndim - len(spec))]
        if not known.mesh.empty and [*known.spec] == entries:
            return operand
        if known.mesh.empty and not any(entries):
            return operand
        return jax.sharding.reshard(operand, NamedSharding(mesh, PartitionSpec(*entries)))

    return jax.tree.map(typed, tuple(specs), operands, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
