"""Arrays of one device become the leaves of a norm, and leaves become arrays again. All of it runs inside ``shard_map``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import lax

from modula_rs.arrays import Array
from modula_rs.backend.jax.sharded.exchange import own, own_part, whole
from modula_rs.backend.jax.sharded.lay import Lay, Spec
from modula_rs.norm import recipe
from modula_rs.norm.placement import Layout
from modula_rs.norm.table import Norm


def opened(layout: Layout, norm: Norm, given: Sequence[Array]) -> list[Array]:
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


def closed(layout: Layout, leaves: Sequence[Array], given: Sequence[Array], name: str) -> list[Array]:
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
    """The digits of the part of an array that one device holds, after the array was gathered along the mesh axes that split no digit."""
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


def zeroed(norm: Norm, layout: Layout, leaf: int, x: Array) -> Array:
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
