"""Where JAX arrays lie on a mesh, and how they hold the leaves of a norm there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from modula_rs.backend import Batch
from modula_rs.backend.jax.sharded import meshes
from modula_rs.backend.jax.sharded.lay import Axes, Lay, Spec, Split, plain, share, split
from modula_rs.norm.table import Norm


class Held(NamedTuple):
    """Which leaves of the norm a given array holds, and how. lay: None for the array of a user's own atom, and for a frozen array."""

    path: str
    leaves: tuple[int, ...]
    lay: Lay | None


class Placed(NamedTuple):
    """Where the given arrays lie: the mesh, and the PartitionSpec of each array."""

    mesh: Any
    specs: tuple[PartitionSpec, ...]


class Layout(NamedTuple):
    """Everything that a program on a mesh depends on besides the values of arrays; compiled programs are kept by it."""

    held: tuple[Held, ...]
    placed: Placed

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh's axes of more than one device."""
        return {name: size for name, size in meshes.sizes(self.placed.mesh).items() if size > 1}

    def spec(self, number: int) -> Spec:
        """The mesh axes, of more than one device, over which each axis of a given array is split."""
        known = self.sizes
        return tuple(tuple(name for name in meshes.names(entry) if name in known) for entry in self.placed.specs[number])

    def split(self, number: int) -> Split:
        """Where a given array lies."""
        lay = self.held[number].lay
        assert lay is not None
        return split(lay, self.spec(number), self.sizes)

    def batch(self, leaf: int, batch: Batch) -> Batch:
        """What one device holds of the batch of a leaf."""
        for number, each in enumerate(self.held):
            if leaf in each.leaves and each.lay is not None:
                return share(batch, each.lay, self.split(number), self.sizes, each.leaves.index(leaf))
        return batch

    def vectors(self, leaf: int, batch: Batch) -> tuple[PartitionSpec, Axes, Axes]:
        """How estimates (count, VECTORS, cols) of a leaf lie, and the mesh axes that split their first and last axis."""
        held = self.batch(leaf, batch).share
        blocks, columns = held.blocks.spec(self.sizes), held.columns.spec(self.sizes)
        return meshes.partition((blocks, (), columns)), blocks, columns

    def rows(self, leaf: int, batch: Batch, axis: int) -> PartitionSpec:
        """How numbers (count, rows), or (count, columns) for ``axis`` 2, of the blocks of a leaf lie."""
        held = self.batch(leaf, batch).share
        return meshes.partition((held.blocks.spec(self.sizes), held.rows if axis == 1 else held.columns.spec(self.sizes)))


def plainly(norm: Norm) -> tuple[Held, ...]:
    """How the weights of a module hold its leaves: one array for each leaf."""
    return tuple(
        Held(leaf.path, (number,), None if batch.geometry == "custom" else plain(leaf.shape, batch))
        for number, (leaf, batch) in enumerate(zip(norm.leaves, norm.batches, strict=True))
    )


#: Arrays of one kind, and a function that names the array with a number: ``lambda at: f"weight of {paths[at]}"``.
Named = tuple[Callable[[int], str], Sequence[Any]]


def check_together(*groups: Named) -> Any:
    """ValueError, naming two arrays, unless all arrays lie on one device, or on one mesh, as far as that is known.

    A placement (``NamedSharding``) may stand for its array. Returns the mesh, or the devices of the only device, or None if nothing is
    bound to a device.
    """
    first: tuple[Callable[[int], str], int, Any] | None = None
    for name, given in groups:
        for at, array in enumerate(given):
            where = array.mesh if isinstance(array, NamedSharding) else meshes.place(array)
            if where is None:
                continue
            if first is not None and not meshes.same(where, first[2]):
                raise ValueError(
                    f"{first[0](first[1])} lies on {meshes.described(first[2])}, {name(at)} on {meshes.described(where)}: "
                    f"put all arrays on one device, or on one mesh, with jax.device_put"
                )
            if first is None or (isinstance(where, jax.sharding.Mesh) and not isinstance(first[2], jax.sharding.Mesh)):
                first = name, at, where  # a mesh of devices says more than its shape
    return None if first is None else first[2]


def on_mesh(given: Sequence[Any], shardings: Any) -> bool:
    """Whether arrays lie on a mesh of several devices, as far as that is known."""
    return shardings is not None or any(isinstance(array, jax.Array) and meshes.placement(array) is not None for array in given)


def listed(shardings: Any) -> Any:
    """A tree of shardings as a list; arrays may stand for their shardings. A single sharding for all arrays is returned as it is."""
    return shardings if isinstance(shardings, jax.sharding.Sharding) else jax.tree.leaves(shardings, is_leaf=lambda leaf: leaf is None)


def flat(shardings: Any, number: int) -> list[Any] | None:
    """One sharding for each array, from a list of shardings or from one sharding for all; arrays may stand for their shardings."""
    if shardings is None:
        return None
    found: list[Any] = [shardings] * number if isinstance(shardings, jax.sharding.Sharding) else listed(shardings)
    if len(found) != number:
        raise ValueError(f"shardings: expected one for each of the {number} arrays, or one for all, got {len(found)}")
    return found


def find(held: Sequence[Held], given: Sequence[Any], shardings: Sequence[Any] | None) -> Placed | None:
    """Where arrays lie: as their types or the arrays themselves say, else as ``shardings`` says. None if all lie on one device.

    Raises ValueError, naming the array, for arrays on two meshes, and for axes that the mesh does not divide.
    """
    found: list[NamedSharding | None] = []
    for at, (each, array) in enumerate(zip(held, given, strict=True)):
        where = meshes.placement(array) if isinstance(array, jax.Array) else None
        if where is None and shardings is not None and not meshes.is_shard(array):
            where = _sharding(each.path, shardings[at])
        found.append(where)
    if not any(found):
        return None
    mesh = check_together((lambda at: held[at].path, [where or array for where, array in zip(found, given, strict=True)]))
    for each, array, where in zip(held, given, found, strict=True):
        if where is not None:
            _check(each.path, array, where)
    return Placed(mesh, tuple(PartitionSpec(*_entries(where, array.ndim)) for where, array in zip(found, given, strict=True)))


def example(shape: Sequence[int]) -> Any:
    """The shape and dtype of an array that is not there."""
    return jax.ShapeDtypeStruct(tuple(shape), "float32")


def _entries(where: NamedSharding | None, ndim: int) -> list[Any]:
    spec = [] if where is None else list(where.spec)
    return [*spec, *[None] * (ndim - len(spec))]


def _sharding(path: str, wanted: Any) -> NamedSharding | None:
    """The placement that a user gave for an array."""
    wanted = wanted.sharding if isinstance(wanted, jax.Array) else wanted
    if wanted is None or isinstance(wanted, jax.sharding.SingleDeviceSharding):
        return None
    if not isinstance(wanted, NamedSharding):
        raise TypeError(f"shardings: expected a jax.sharding.NamedSharding for {path}, got {type(wanted).__name__}")
    return wanted if meshes.several(wanted.mesh) else None


def _check(path: str, array: Any, where: NamedSharding) -> None:
    if len(where.spec) > array.ndim:
        raise ValueError(f"{path}: its sharding {where.spec} has more axes than its shape {tuple(array.shape)}")
    known = meshes.sizes(where.mesh)
    for axis, names in enumerate(meshes.spec_of(where, array.ndim)):
        ways = prod(known[name] for name in names)
        if array.shape[axis] % ways:
            over = " and ".join(f"'{name}' ({known[name]})" for name in names)
            raise ValueError(
                f"{path}: axis {axis} of its shape {tuple(array.shape)} is split over {over}, which does not divide it: "
                f"split another axis, or none"
            )
