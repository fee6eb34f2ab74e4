"""Fresh values for arrays of a traced network, each at norm 1 of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from modula_rs import arrays
from modula_rs.arrays import Array
from modula_rs.random import Source
from modula_rs.tracing.check import start_scale
from modula_rs.tracing.reading import Leaf


def drawn(source: Source, leaf: Leaf, shapes: Sequence[tuple[int, int, int]], rows_first: bool) -> Array:
    """Values for an array with roles.

    Args:
        source: of random numbers.
        leaf: the row of the table.
        shapes: (count, rows, columns) of the blocks of each part.
        rows_first: whether the blocks of the layout have the digits ``i`` as rows.
    """
    role = leaf.roles[0]
    units = role.unit if isinstance(role.unit, tuple) else (role.unit,)
    blocks = [_block(source, leaf, shape, unit) / start_scale(leaf) for shape, unit in zip(shapes, units, strict=True)]
    return role.layout.from_blocks(blocks, rows_first).astype(arrays.weight_dtype(leaf.dtype))


def _block(source: Source, leaf: Leaf, shape: tuple[int, int, int], unit: float) -> Array:
    count, height, width = shape
    match leaf.kind:
        case "Bias":
            return source.xp.zeros(shape, source.dtype)
        case "Scale" if leaf.roles[0].based:  # a gain of 1 + g
            return source.xp.zeros(shape, source.dtype)
        case "Scale" if unit < 1:  # the taps of a depthwise convolution, which are matrices of one row and column
            return source.xp.sign(source.normal(shape)) * unit
        case "Scale":
            return source.xp.ones(shape, source.dtype)
        case "Embed":
            table = source.normal(shape)
            return table / source.xp.sqrt((table * table).mean(axis=-1, keepdims=True))
    return source.semi_orthogonal((count,), height, width) * unit if prod(shape) else source.xp.zeros(shape, source.dtype)
