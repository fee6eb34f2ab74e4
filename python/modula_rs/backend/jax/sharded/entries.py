"""Tables and vectors whose rows are split over devices: a number for each row is summed, the entries stay. Inside ``shard_map``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend import Batch, entries
from modula_rs.backend.jax.blocks import arithmetic, divide, max_abs, row_norms, total, unit_rows
from modula_rs.backend.jax.sharded.lay import Share


def apply(op: str, batch: Batch, array: Array, scales: Array) -> Array:
    """The blocks after an operation, with these scales (count,)."""
    over, ways = batch.share.cols, batch.share.ways(batch.share.cols)
    split = {"over": over, "ways": ways}
    of = entries.Entries(jnp, divide, partial(row_norms, **split), partial(unit_rows, **split), partial(max_abs, over=over))
    x = arithmetic(array)
    made: Array = entries.kernels(of, op)[batch.geometry](x, scales.astype(x.dtype)[:, None, None])
    return made.astype(array.dtype)


def norms(batch: Batch, array: Array) -> Array:
    """The norm of every block that this device holds a part of, (count,)."""
    share: Share = batch.share
    x = arithmetic(array)
    if batch.geometry == "max_abs":
        return max_abs(x, share.cols)[:, 0, 0]
    found = jnp.max(row_norms(x, share.cols, share.ways(share.cols)), axis=(1, 2), initial=0)
    return _with_gradient(found, share.rows)


def dual_norms(batch: Batch, array: Array) -> Array:
    """The dual norm of every block that this device holds a part of, (count,)."""
    share: Share = batch.share
    x = arithmetic(array)
    if batch.geometry == "max_abs":
        return total(jnp.sum(jnp.abs(x), axis=(1, 2)), share.cols)
    return total(jnp.sum(row_norms(x, share.cols, share.ways(share.cols)), axis=(1, 2)), share.rows) * share.whole.cols


def _with_gradient(found: Array, over: tuple[str, ...]) -> Array:
    """The maximum over devices; it is gathered, because ``pmax`` is not differentiable."""
    return jnp.max(lax.all_gather(found, over), axis=0) if over else found


#: Functions of one leaf, by name.
MEASURES: dict[str, Callable[[Batch, Array], Array]] = {"norms": norms, "dual_norms": dual_norms}
