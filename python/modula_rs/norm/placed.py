"""Maps and measures of JAX arrays that lie on a mesh: one ``shard_map`` around them, from which the results come back where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from modula_rs import arrays
from modula_rs.arrays import Array
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend import jax as provider
from modula_rs.backend.jax.sharded import meshes
from modula_rs.backend.jax.sharded import run as sharded
from modula_rs.backend.jax.sharded.exchange import own, own_part, whole
from modula_rs.backend.jax.sharded.lay import Axes, Lay, Spec, Split, plain, share, split
from modula_rs.norm import recipe
from modula_rs.norm.custom import Custom
from modula_rs.norm.table import Norm


class Held(NamedTuple):
    """How a given array holds leaves of the norm. lay: None for an array that is no batch: of a user's own atom, or frozen."""

    path: str
    leaves: tuple[int, ...]
    lay: Lay | None


class Placed(NamedTuple):
    """Where the given arrays lie: the mesh, and the PartitionSpec of each array."""

    mesh: Any
    specs: tuple[PartitionSpec, ...]


def plainly(norm: Norm) -> tuple[Held, ...]:
    """How the weights of a module hold its leaves: one array for each leaf."""
    return tuple(
        Held(leaf.path, (number,), None if batch.geometry == "custom" else plain(leaf.shape, batch))
        for number, (leaf, batch) in enumerate(zip(norm.leaves, norm.batches, strict=True))
    )


def on_mesh(given: Sequence[Any], shardings: Any, paths: Callable[[], Sequence[str]]) -> bool:
    """Whether arrays lie on a mesh of several devices, as far as that is known.

    ValueError, naming two arrays, if they lie on different single devices.
    """
    if shardings is not None or any(isinstance(array, jax.Array) and meshes.placement(array) is not None for array in given):
        return True
    first: tuple[int, Any] | None = None
    for at, array in enumerate(given):
        if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and _is_committed(array):
            devices = array.devices()
            if first is not None and devices != first[1]:
                one, other = paths()[first[0]], paths()[at]
                raise ValueError(
                    f"{one} lies on {_named(first[1])}, {other} on {_named(devices)}: put all arrays on one device, or on one mesh"
                )
            first = first or (at, devices)
    return False


def alike(given: Sequence[Any], made: Sequence[Any]) -> list[Any]:
    """Traced results that lie like the arrays they were made of, wherever that is: inside ``jax.jit`` on a mesh with Auto axes.

    Since 0.12 JAX has no way to ask for this; there the compiler decides where results lie, unless ``shardings=`` is given.
    """
    if jax.device_count() == 1 or any(meshes.is_shard(array) for array in given):
        return list(made)
    try:
        from jax.experimental.shard_alike import shard_alike
    except ImportError:
        return list(made)
    return [shard_alike(x, y)[1] if arrays.is_traced(y) and x.shape == y.shape else y for x, y in zip(given, made, strict=True)]


def _named(devices: Any) -> str:
    return " and ".join(sorted(map(str, devices)))


def listed(shardings: Any) -> Any:
    """The leaves of a tree of shardings (or of arrays that lie so); one sharding for all as it is."""
    return shardings if isinstance(shardings, jax.sharding.Sharding) else jax.tree.leaves(shardings, is_leaf=lambda leaf: leaf is None)


def flat(shardings: Any, number: int) -> list[Any] | None:
    """One sharding for each of the arrays: from a list of shardings (or of arrays that lie so), or from one sharding for all."""
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
    first: tuple[str, Any] | None = None
    found: list[NamedSharding | None] = []
    for at, (each, array) in enumerate(zip(held, given, strict=True)):
        where = meshes.placement(array) if isinstance(array, jax.Array) else None
        if where is None and shardings is not None and not meshes.is_shard(array):
            where = _sharding(each.path, shardings[at])
        if where is not None and first is not None and not meshes.same(where.mesh, first[1]):
            raise ValueError(
                f"{first[0]} lies on {meshes.described(first[1])}, {each.path} on {meshes.described(where.mesh)}: "
                f"put all arrays on one mesh with jax.device_put"
            )
        if where is not None and (first is None or not isinstance(first[1], jax.sharding.Mesh)):
            first = each.path, where.mesh  # a mesh of devices says more than its shape
        found.append(where)
    if first is None:
        return None
    for each, array, where in zip(held, given, found, strict=True):
        _check(each.path, array, where, first)
    return Placed(first[1], tuple(PartitionSpec(*_entries(where, array.ndim)) for where, array in zip(found, given, strict=True)))


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


def _check(path: str, array: Any, where: NamedSharding | None, first: tuple[str, Any]) -> None:
    if where is None:
        if isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer) and _is_committed(array):
            raise ValueError(
                f"{path} lies on {_named(array.devices())}, but {first[0]} on {meshes.described(first[1])}: "
                f"put all arrays on one mesh with jax.device_put"
            )
        return
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


def _is_committed(array: Any) -> bool:
    return bool(getattr(array, "committed", getattr(array, "_committed", True)))


class Layout(NamedTuple):
    """Everything that a program on a mesh depends on besides the values: it is hashable, and programs are kept under it."""

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
        """What one device holds of a batch that a leaf is."""
        for number, each in enumerate(self.held):
            if leaf in each.leaves and each.lay is not None:
                return share(batch, each.lay, self.split(number), self.sizes, each.leaves.index(leaf))
        return batch

    def vectors(self, leaf: int, batch: Batch) -> tuple[PartitionSpec, Axes, Axes]:
        """How estimates (count, VECTORS, cols) of a leaf lie, and the mesh axes that split their first and last axis."""
        held = self.batch(leaf, batch).share
        blocks, columns = held.blocks.spec(self.sizes), held.columns.spec(self.sizes)
        return meshes.partition((blocks, (), columns)), blocks, columns


def apply(norm: Norm, layout: Layout, name: str, given: Sequence[Array], amount: Any, vectors: Any, **options: Any) -> Any:
    """A map on given arrays, and the estimates for the next call: see :func:`modula_rs.norm.maps.apply`."""
    warm = vectors is not None

    def body(given: list[Array], amount: Any, vectors: Any) -> Any:
        leaves = _opened(layout, norm, given)
        local = _LocalNorm(norm, layout, name)
        if options["nonfinite"] == "zero":
            leaves = [_zeroed(norm, layout, leaf, array) for leaf, array in enumerate(leaves)]
        own_vectors = [local.opened(leaf, vector) for leaf, vector in enumerate(vectors)] if warm else None
        made, found = recipe.execute(sharded, local, leaves, own_vectors, amount, options["accuracy"])
        for leaf in norm.custom:
            made[leaf] = Custom(norm, leaf).apply(name, leaves[leaf], amount)
        closed = _closed(layout, made, given, name)
        return closed, [local.closed(leaf, vector) for leaf, vector in enumerate(found)] if name == "normalize" else []

    specs = _vector_specs(norm, layout)
    kept = specs if name == "normalize" else []
    inside = (list(layout.placed.specs), PartitionSpec(), specs if warm else [])
    program = _program(norm, layout, (name, warm, *sorted(options.items())), body, inside, (list(layout.placed.specs), kept))
    made, found = program(list(given), amount, list(vectors) if warm else [])
    return made, found or [None] * len(norm.leaves)


def measure(norm: Norm, layout: Layout, given: Sequence[Array], dual: bool) -> Any:
    """The norm of given arrays, or their dual norm."""

    def body(given: list[Array]) -> Any:
        leaves = _opened(layout, norm, given)
        local = _LocalNorm(norm, layout, None)
        rows = [local.measured(each) for each in (norm.dual_measures if dual else norm.measures).rows]
        values = (recipe.dual_norms if dual else recipe.norms)(sharded, rows, leaves)
        for leaf in norm.custom:
            custom = Custom(norm, leaf)
            values[leaf] = (custom.dual_norm if dual else custom.norm)(leaves[leaf])
        together = jnp.stack([jnp.asarray(value, values[0].dtype) for value in values])
        return jnp.sum(together) if dual else jnp.max(together)

    inside = (list(layout.placed.specs),)
    return _program(norm, layout, ("measure", dual), body, inside, PartitionSpec())(list(given))


def cold_vectors(norm: Norm, layout: Layout, given: Sequence[Array]) -> list[Any]:
    """Estimates of zero, which stand for no estimates, and which lie like the arrays they serve."""

    def body(given: list[Array]) -> Any:
        leaves = _opened(layout, norm, given)
        local = _LocalNorm(norm, layout, None)
        made: list[Any] = []
        for leaf, (batch, x) in enumerate(zip(norm.batches, leaves, strict=True)):
            if batch.geometry != "spectral":
                made.append(None)
                continue
            wide = arrays.working_dtype(x.dtype)
            shape = (x.shape[0], VECTORS, x.shape[2])
            # The zeros are computed from the weights, so that a compiled `init` runs where the weights are.
            zeros = jnp.zeros(shape, wide) + (jnp.isnan(x[:1, :1, :1]) & False if x.size else 0)
            made.append(local.closed(leaf, zeros.astype(wide)))
        return made

    inside = (list(layout.placed.specs),)
    return list(_program(norm, layout, ("cold",), body, inside, _vector_specs(norm, layout))(list(given)))


def zero(norm: Norm, layout: Layout, given: Sequence[Array]) -> Any:
    """The integer 0 on every device of the mesh. It is computed from the weights, so that a compiled `init` runs where they are."""

    def body(given: list[Array]) -> Any:
        made = jnp.zeros((), jnp.int32)
        for x in given[:1]:
            made = made + (jnp.isnan(x.reshape(-1)[0]) & False if x.size else 0)
        return made

    return _program(norm, layout, ("zero",), body, (list(layout.placed.specs),), PartitionSpec())(list(given))


def example(shape: Sequence[int]) -> Any:
    """The shape and dtype of an array that is not there."""
    return jax.ShapeDtypeStruct(tuple(shape), jnp.float32)


class _LocalNorm:
    """A recipe for what one device holds. It has the rows and bounds of a :class:`modula_rs.norm.recipe.Recipe`."""

    def __init__(self, norm: Norm, layout: Layout, name: str | None) -> None:
        self._norm, self._layout, self._ways = norm, layout, layout.sizes
        whole_recipe = None if name is None else norm.recipe(name)
        self.rows = [] if whole_recipe is None else [self._row(row) for row in whole_recipe.rows]
        self.bounds = [] if whole_recipe is None else [self.measured(each) for each in whole_recipe.bounds]

    def _row(self, row: recipe.Row) -> recipe.Row:
        batch = self._layout.batch(row.leaf, row.batch)
        if batch.share is None or not batch.share.over:
            return row._replace(batch=batch)
        return row._replace(batch=batch, scales=own(jnp.asarray(row.scales), 0, batch.share.blocks, self._ways))

    def measured(self, each: recipe.Measure) -> recipe.Measure:
        """A measure of the blocks that this device holds; its scales are those of all blocks, as the norms are."""
        return each._replace(batch=self._layout.batch(each.leaf, each.batch))

    def opened(self, leaf: int, vectors: Any) -> Any:
        """The estimates of the blocks and columns that this device holds."""
        if vectors is None:
            return None
        batch = self._norm.batches[leaf]
        held = self._layout.batch(leaf, batch).share
        _, blocks, columns = self._layout.vectors(leaf, batch)
        return own(own(vectors, 0, held.blocks, self._ways, blocks), -1, held.columns, self._ways, columns)

    def closed(self, leaf: int, vectors: Any) -> Any:
        """The inverse of :meth:`opened`."""
        if vectors is None:
            return None
        batch = self._norm.batches[leaf]
        held = self._layout.batch(leaf, batch).share
        _, blocks, columns = self._layout.vectors(leaf, batch)
        return whole(whole(vectors, 0, held.blocks, self._ways, blocks), -1, held.columns, self._ways, columns)


def _vector_specs(norm: Norm, layout: Layout) -> list[Any]:
    return [layout.vectors(leaf, batch)[0] if batch.geometry == "spectral" else None for leaf, batch in enumerate(norm.batches)]


def _program(norm: Norm, layout: Layout, key: tuple[Any, ...], body: Any, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """The body on every device of the mesh, compiled once for each layout and choice of backends."""
    choices = provider.choices(), sharded.gram_allowed(), meshes.context()
    key = (*key, layout, choices)
    if key not in norm.programs:
        inside = meshes.shard_map(body, layout.placed.mesh, in_specs, out_specs)
        norm.programs[key] = jax.jit(lambda *operands: inside(*meshes.put(operands, layout.placed.mesh, in_specs)))
    return norm.programs[key]


def _opened(layout: Layout, norm: Norm, given: Sequence[Array]) -> list[Array]:
    """One array for each leaf: blocks (count, rows, cols) of which this device holds a share, or the whole array of a user's atom."""
    leaves: list[Any] = [None] * len(norm.leaves)
    for number, (each, array) in enumerate(zip(layout.held, given, strict=True)):
        if each.lay is None:
            for leaf in each.leaves:
                leaves[leaf] = _gathered(array, layout.spec(number))
            continue
        where = layout.split(number)
        x = _gathered(array, where.gathered).reshape(_digits(layout, number))
        for part, leaf in enumerate(each.leaves):
            piece = lax.slice_in_dim(x, *_section(each.lay, part), axis=each.lay.cut) if each.lay.sections else x
            batch = layout.batch(leaf, norm.batches[leaf])
            leaves[leaf] = piece.transpose(each.lay.order).reshape(batch.count, batch.rows, batch.cols)
    return leaves


def _closed(layout: Layout, leaves: Sequence[Array], given: Sequence[Array], name: str) -> list[Array]:
    """What this device holds of the arrays that the leaves make. Updates of frozen arrays are zero; other maps keep the array."""
    made = []
    for number, (each, array) in enumerate(zip(layout.held, given, strict=True)):
        if not each.leaves:
            made.append(jnp.zeros_like(array) if name in ("normalize", "dualize") else array)
            continue
        if each.lay is None:
            made.append(_cut(leaves[each.leaves[0]], layout.spec(number), layout.sizes))
            continue
        order = each.lay.order
        inverse = tuple(sorted(range(len(order)), key=lambda at: order[at]))
        pieces = []
        for part, leaf in enumerate(each.leaves):
            digits = list(_digits(layout, number))
            if each.lay.sections:
                digits[each.lay.cut] = each.lay.sections[part]
            pieces.append(leaves[leaf].reshape([digits[at] for at in order]).transpose(inverse))
        x = jnp.concatenate(pieces, axis=each.lay.cut) if len(pieces) > 1 else pieces[0]
        where = layout.split(number)
        ways = [prod(layout.sizes[name] for name in names) for names in where.gathered]
        x = x.reshape([size * own_ways for size, own_ways in zip(array.shape, ways, strict=True)])
        made.append(_cut(x, where.gathered, layout.sizes))
    return made


def _digits(layout: Layout, number: int) -> tuple[int, ...]:
    """The digits of what one device holds of an array, after it was gathered along the axes that split no digit."""
    lay = layout.held[number].lay
    assert lay is not None
    pairs = zip(lay.digits, layout.split(number).digits, strict=True)
    return tuple(size // prod(layout.sizes[name] for name in names) for size, names in pairs)


def _section(lay: Lay, part: int) -> tuple[int, int]:
    start = sum(lay.sections[:part])
    return start, start + lay.sections[part]


def _gathered(array: Array, spec: Spec) -> Array:
    for axis, names in enumerate(spec):
        if names:
            array = lax.all_gather(array, names, axis=axis, tiled=True)
    return array


def _cut(array: Array, spec: Spec, ways: dict[str, int]) -> Array:
    for axis, names in enumerate(spec):
        if names:
            array = jnp.moveaxis(own_part(jnp.moveaxis(array, axis, 0), names, ways), 0, axis)
    return array


def _zeroed(norm: Norm, layout: Layout, leaf: int, x: Array) -> Array:
    """The leaf with zeros in place of each copy that holds NaN or infinity, on this device or another."""
    copies = prod(norm.stacks[leaf])
    batch = layout.batch(leaf, norm.batches[leaf])
    if batch.share is None:
        return recipe.zero_nonfinite(x, len(norm.stacks[leaf]))
    if not x.size:
        return x
    bad = jnp.any(~jnp.isfinite(x), axis=(1, 2)).astype(jnp.int32)
    axes = batch.share.rows + batch.share.cols
    bad = lax.psum(bad, axes) if axes else bad
    if batch.share.whole.count != copies:  # a copy is several blocks, such as the taps of a kernel
        everywhere = whole(bad, 0, batch.share.blocks, layout.sizes).reshape(copies, -1)
        bad = jnp.repeat(everywhere.sum(axis=1), everywhere.shape[1])
        bad = own(bad, 0, batch.share.blocks, layout.sizes)
    return jnp.where(bad[:, None, None] > 0, jnp.zeros((), x.dtype), x)
