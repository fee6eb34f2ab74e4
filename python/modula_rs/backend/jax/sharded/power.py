"""Norms of matrices that are split over devices, by sums of vectors alone. Inside ``shard_map``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend import Batch
from modula_rs.backend.jax.blocks import arithmetic, divide
from modula_rs.backend.jax.matrices import Axes, Matrices
from modula_rs.backend.jax.norms import cold_norm, searched, warm_steps
from modula_rs.backend.jax.sharded.exchange import own
from modula_rs.backend.jax.sharded.lay import Share


def spectral_norms(batches: Sequence[Batch], arrays: Sequence[Array]) -> Array:
    """The norms of the matrices of leaves that are split alike, one leaf after the other."""
    x = _matrices(batches, arrays)
    norm, _ = cold_norm(x)
    return (norm * x.powers)[:, 0, 0]


def normalised(
    groups: Sequence[Sequence[int]],
    batches: Sequence[Batch],
    arrays: Sequence[Array],
    scales: Sequence[Array],
    vectors: Sequence[Array | None],
) -> Iterator[tuple[int, Array, Array]]:
    """For each leaf: its number, the matrices divided by their norms times the scales, and the estimates for the next call.

    A group is leaves that are split alike. All groups have estimates, or none has.
    """
    stacks = [_matrices([batches[leaf] for leaf in group], [arrays[leaf] for leaf in group]) for group in groups]
    known = [[vectors[leaf] for leaf in group] for group in groups]
    if any(vector is None for own_vectors in known for vector in own_vectors):
        found = [cold_norm(x) for x in stacks]
    else:
        found = warm(stacks, [jnp.concatenate([v for v in own_vectors if v is not None]) for own_vectors in known])
    for group, x, (norm, estimates) in zip(groups, stacks, found, strict=True):
        at = 0
        for leaf in group:
            here = slice(at, at + len(arrays[leaf]))
            at = here.stop
            wide = arithmetic(arrays[leaf])
            factor = divide(scales[leaf].astype(wide.dtype)[:, None, None], norm[here])
            yield leaf, (wide / x.powers[here] * factor).astype(arrays[leaf].dtype), estimates[here]


def warm(stacks: Sequence[Matrices], vectors: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Norms and estimates after one step of block power iteration of every stack, with the sums of all stacks in common."""
    if not stacks:
        return []
    steps = [warm_steps(x, own_vectors) for x, own_vectors in zip(stacks, vectors, strict=True)]
    asked = [next(step) for step in steps]
    ended: list[tuple[Array, Array, Array]] = []
    while not ended:
        sums = iter(summed([pair for own_sums in asked for pair in own_sums]))
        given, asked = [[next(sums) for _ in own_sums] for own_sums in asked], []
        for step, own_given in zip(steps, given, strict=True):
            try:
                asked.append(step.send(own_given))
            except StopIteration as end:
                ended.append(end.value)
    axes = tuple(dict.fromkeys(name for x in stacks for name in x.together))
    lost = lax.psum(sum(jnp.sum(lost.astype(jnp.int32)) for *_, lost in ended), axes)

    def search() -> list[tuple[Array, Array]]:
        return [searched(x, *own_found) for x, own_found in zip(stacks, ended, strict=True)]

    found: list[tuple[Array, Array]] = lax.cond(lost > 0, search, lambda: [(norm, estimates) for norm, estimates, _ in ended])
    return found


def summed(pairs: Sequence[tuple[Array, Axes]]) -> list[Array]:
    """The sums of arrays over devices: one all-reduce for all arrays that are summed over the same mesh axes."""
    results: list[Any] = [array for array, _ in pairs]
    alike: dict[Any, list[int]] = {}
    for at, (array, axes) in enumerate(pairs):
        if axes:
            alike.setdefault((axes, array.dtype), []).append(at)
    for (axes, _), members in alike.items():
        flat = lax.psum(jnp.concatenate([pairs[at][0].reshape(-1) for at in members]), axes)
        start = 0
        for at in members:
            array = pairs[at][0]
            results[at] = flat[start : start + array.size].reshape(array.shape)
            start += array.size
    return results


def _matrices(batches: Sequence[Batch], arrays: Sequence[Array]) -> Matrices:
    share: Share = batches[0].share
    columns = partial(own, axis=-1, merged=share.columns, ways=dict(share.sizes))
    return Matrices(arrays, share.rows, share.cols, share.whole.cols, columns, share.over, share.ways(share.rows))
