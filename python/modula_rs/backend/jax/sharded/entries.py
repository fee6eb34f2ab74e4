"""Tables and vectors whose rows are split over devices: a number for each row is summed, the entries stay. Inside ``shard_map``.

The operations are those of :mod:`modula_rs.backend.jax.pure`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend import Batch
from modula_rs.backend.jax.blocks import arithmetic, divide, max_abs, row_norms, total, unit_rows
from modula_rs.backend.jax.sharded.lay import Share


def apply(op: str, batch: Batch, array: Array, scales: Array) -> Array:
    """The blocks after an operation, times the scales."""
    share: Share = batch.share
    x, over = arithmetic(array), share.cols
    if batch.geometry == "max_abs":
        entry = max_abs(x, over)
        made = divide(x, entry) if op == "unit" else jnp.where(jnp.isnan(entry), jnp.nan, jnp.sign(x))
    else:
        made = unit_rows(x, over, share.ways(over))
    return (made * scales.astype(x.dtype)[:, None, None]).astype(array.dtype)


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
