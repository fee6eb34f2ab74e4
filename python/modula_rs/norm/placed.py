"""Maps and measures of JAX arrays that lie on a mesh: one ``shard_map`` around them, from which the results come back where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from modula_rs import arrays
from modula_rs.arrays import Array
from modula_rs.backend import VECTORS
from modula_rs.backend import jax as provider
from modula_rs.backend.jax.blocks import largest, total
from modula_rs.backend.jax.sharded import meshes
from modula_rs.backend.jax.sharded import run as sharded
from modula_rs.backend.jax.sharded.exchange import own, whole
from modula_rs.norm import manifold, opening, recipe
from modula_rs.norm.custom import Custom
from modula_rs.norm.placement import Layout
from modula_rs.norm.table import Norm


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


def apply(norm: Norm, layout: Layout, name: str, given: Sequence[Array], amount: Any, vectors: Any, **options: Any) -> Any:
    """A map on given arrays, and from estimates those for the next call: see :func:`modula_rs.norm.maps.apply`."""
    warm = vectors is not None

    def body(given: list[Array], amount: Any, vectors: Any) -> Any:
        leaves = opening.opened(layout, norm, given)
        local = _LocalNorm(norm, layout, name)
        if options["nonfinite"] == "zero":
            leaves = [opening.zeroed(norm, layout, leaf, array) for leaf, array in enumerate(leaves)]
        own_vectors = [local.opened(leaf, vector) for leaf, vector in enumerate(vectors)] if warm else None
        made, found = recipe.execute(sharded, local, leaves, own_vectors, amount, options["accuracy"])
        for leaf in norm.custom:
            made[leaf] = Custom(norm, leaf).apply(name, leaves[leaf], amount)
        closed = opening.closed(layout, made, given, name)
        return closed, [local.closed(leaf, vector) for leaf, vector in enumerate(found)] if warm else []

    kept = _vector_specs(norm, layout) if warm else []
    inside = (list(layout.placed.specs), PartitionSpec(), kept)
    program = _program(norm, layout, (name, warm, *sorted(options.items())), body, inside, (list(layout.placed.specs), kept))
    made, found = program(list(given), amount, list(vectors) if warm else [])
    return made, found or [None] * len(norm.leaves)


def tangent(norm: Norm, layout: Layout, g: Sequence[Array], w: Sequence[Array], target: Any, nonfinite: str) -> list[Array]:
    """The steepest tangent directions: see :func:`modula_rs.norm.manifold.tangent`. Pairs of matrices are dealt out over the devices."""

    def body(g: list[Array], w: list[Array], target: Any) -> list[Array]:
        made, weights = opened(g), opened(w)
        if nonfinite == "zero":
            made = [opening.zeroed(norm, layout, leaf, array) for leaf, array in enumerate(made)]
        local = _LocalNorm(norm, layout, "dualize")
        curved = [leaf for leaf, batch in enumerate(norm.batches) if batch.geometry in manifold.CURVED and made[leaf].size]
        matrices = [leaf for leaf in curved if norm.batches[leaf].geometry == "spectral"]
        local.rows, local.bounds = [row for row in local.rows if row.leaf not in curved], []
        directions, _ = recipe.execute(sharded, local, made, None, 1.0, "standard")
        for leaf in norm.custom:
            directions[leaf] = Custom(norm, leaf).apply("dualize", made[leaf], 1.0)
        batches = [layout.batch(leaf, norm.batches[leaf]) for leaf in matrices]
        pairs = [(made[leaf], weights[leaf].astype(made[leaf].dtype)) for leaf in matrices]
        for leaf, found in zip(matrices, sharded.on_pairs(batches, pairs, partial(manifold.on_stiefel, jnp, basis=_basis)), strict=True):
            directions[leaf] = found
        for leaf in set(curved) - set(matrices):
            over = layout.batch(leaf, norm.batches[leaf]).share.cols
            over_devices = partial(largest, over=over), partial(total, over=over)
            directions[leaf] = manifold.on_spheres(jnp, made[leaf], weights[leaf], *over_devices)
        made, _ = recipe.execute(sharded, _LocalNorm(norm, layout, "normalize"), directions, None, target, "standard")
        for leaf in norm.custom:
            made[leaf] = Custom(norm, leaf).apply("normalize", directions[leaf], target)
        return opening.closed(layout, made, g, "normalize")

    opened = partial(opening.opened, layout, norm)
    specs = list(layout.placed.specs)
    return list(_program(norm, layout, ("tangent", nonfinite), body, (specs, specs, PartitionSpec()), specs)(list(g), list(w), target))


def _basis(x: Array) -> Array:
    """Orthonormal columns of each matrix. One after the other, because a batch of LAPACK waits for threads that wait in collectives."""
    return jax.lax.map(lambda matrix: jnp.linalg.qr(matrix)[0], x)


def measure(norm: Norm, layout: Layout, given: Sequence[Array], dual: bool) -> Any:
    """The norm of given arrays, or their dual norm."""

    def body(given: list[Array]) -> Any:
        leaves = opening.opened(layout, norm, given)
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


def block_norms(norm: Norm, layout: Layout, given: Sequence[Array]) -> Array:
    """The norm of every block of the only leaf, on every device."""

    def body(given: list[Array]) -> Array:
        return sharded.norms([layout.batch(0, norm.batches[0])], opening.opened(layout, norm, given))[0]

    made: Array = _program(norm, layout, ("block norms",), body, (list(layout.placed.specs),), PartitionSpec())(list(given))
    return made


def cold_vectors(norm: Norm, layout: Layout, given: Sequence[Array]) -> list[Any]:
    """Estimates of zero, which stand for no estimates, and which lie like the arrays they serve."""

    def body(given: list[Array]) -> Any:
        leaves = opening.opened(layout, norm, given)
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
        return self._moved(own, leaf, vectors)

    def closed(self, leaf: int, vectors: Any) -> Any:
        """The inverse of :meth:`opened`."""
        return self._moved(whole, leaf, vectors)

    def _moved(self, move: Callable[..., Array], leaf: int, vectors: Any) -> Any:
        if vectors is None:
            return None
        batch = self._norm.batches[leaf]
        held = self._layout.batch(leaf, batch).share
        _, blocks, columns = self._layout.vectors(leaf, batch)
        return move(move(vectors, 0, held.blocks, self._ways, blocks), -1, held.columns, self._ways, columns)


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
