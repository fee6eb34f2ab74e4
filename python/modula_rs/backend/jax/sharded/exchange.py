"""Moves matrices between the placement of the weights and whole matrices, inside ``shard_map``. Stacks are (count, short, long)."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax.sharded.lay import Axes, Merged
from modula_rs.backend.jax.sharded.plan import Part, Stack

#: The operation on whole matrices (count, short, long) and their scales (count,).
Work = Callable[[Array, Array], Any]


def dealt(x: Array, scales: Array, part: Part, stack: Stack, ways: dict[str, int], work: Work) -> Any:
    """The operation on an equal number of whole matrices on each device, before the results go back."""
    pad = part.slots - part.number
    x, scales = jnp.pad(x, ((0, pad), (0, 0), (0, 0))), jnp.pad(scales, (0, pad))
    x, scales = own_part(x, part.over, ways), own_part(scales, part.over, ways)
    split = stack.short_axes + stack.long_axes
    if split:
        # Whichever layout x has, XLA must give all parts of the exchange the same one: on the CPU it did not without the barrier.
        x = lax.all_to_all(lax.optimization_barrier(x), split, 0, 0, tiled=True)
        x = joined(x.reshape(size(split, ways), -1, *x.shape[1:]), stack, ways)
        scales = own_part(scales, split, ways)
    return work(x, scales)


def back(y: Array, part: Part, stack: Stack, ways: dict[str, int]) -> Array:
    """Brings the results of :func:`dealt` back to the devices from which the matrices came."""
    split = stack.short_axes + stack.long_axes
    if split:
        parts = cut(y, stack, ways)
        y = lax.all_to_all(lax.optimization_barrier(parts.reshape(-1, *parts.shape[2:])), split, 0, 0, tiled=True)
    if part.over:
        y = lax.all_gather(y, part.over, axis=0, tiled=True)
    return y[: part.number]


def numbers_back(y: Array, part: Part, stack: Stack) -> Array:
    """A number for each dealt matrix, on every device: (count,)."""
    for axes in (stack.short_axes + stack.long_axes, part.over):
        if axes:
            y = lax.all_gather(y, axes, axis=0, tiled=True)
    return y[: part.number]


def gathered(x: Array, stack: Stack, ways: dict[str, int]) -> Array:
    """Whole matrices on every device."""
    return joined(lax.all_gather(x, stack.short_axes + stack.long_axes), stack, ways)


def kept(y: Array, stack: Stack, ways: dict[str, int]) -> Array:
    """What this device holds of whole matrices."""
    split = stack.short_axes + stack.long_axes
    own_cut: Array = lax.dynamic_index_in_dim(cut(y, stack, ways), lax.axis_index(split), keepdims=False)
    return own_cut


def turned(x: Array, axes: Axes, cut: int, joined: int) -> Array:
    """The stack split over mesh axes along one edge instead of the other; as it is if there are no axes."""
    return lax.all_to_all(lax.optimization_barrier(x), axes, cut, joined, tiled=True) if axes else x


def joined(x: Array, stack: Stack, ways: dict[str, int]) -> Array:
    """Whole matrices (count, short, long) from their parts (devices, count, .., ..)."""
    down, across = size(stack.short_axes, ways), size(stack.long_axes, ways)
    _, count, short, long = x.shape
    x = x.reshape(down, across, count, short, long).transpose(2, 0, 3, 1, 4)
    return x.reshape(count, down * short, across * long)


def cut(y: Array, stack: Stack, ways: dict[str, int]) -> Array:
    """The parts (devices, count, .., ..) of whole matrices."""
    down, across = size(stack.short_axes, ways), size(stack.long_axes, ways)
    short, long = _local(y, stack, ways)
    y = y.reshape(len(y), down, short, across, long).transpose(1, 3, 0, 2, 4)
    return y.reshape(down * across, -1, short, long)


def own_part(x: Array, axes: Axes, ways: dict[str, int]) -> Array:
    """The part of the leading axis that belongs to this device, of as many equal parts as there are devices along the mesh axes."""
    if not axes:
        return x
    length = len(x) // size(axes, ways)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * length, length)


def own(x: Array, axis: int, merged: Merged, ways: dict[str, int], done: Axes = ()) -> Array:
    """What belongs to this device along an axis that merges digits. Along the mesh axes ``done`` the array is split already."""
    if not any(name not in done for name in merged.together):
        return x
    axis %= x.ndim
    digits = [n // size([name for name in axes if name in done], ways) for n, axes in zip(merged.digits, merged.axes, strict=True)]
    x = x.reshape(*x.shape[:axis], *digits, *x.shape[axis + 1 :])
    for at, axes in enumerate(merged.axes):
        if left := tuple(name for name in axes if name not in done):
            length = digits[at] // size(left, ways)
            x = lax.dynamic_slice_in_dim(x, lax.axis_index(left) * length, length, axis + at)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + len(digits) :])


def whole(x: Array, axis: int, merged: Merged, ways: dict[str, int], done: Axes = ()) -> Array:
    """The inverse of :func:`own`: all along an axis that merges digits, but still split along the mesh axes ``done``."""
    if not any(name not in done for name in merged.together):
        return x
    axis %= x.ndim
    digits = [n // size(axes, ways) for n, axes in zip(merged.digits, merged.axes, strict=True)]
    x = x.reshape(*x.shape[:axis], *digits, *x.shape[axis + 1 :])
    for at, axes in enumerate(merged.axes):
        if left := tuple(name for name in axes if name not in done):
            x = lax.all_gather(x, left, axis=axis + at, tiled=True)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + len(digits) :])


def _local(y: Array, stack: Stack, ways: dict[str, int]) -> tuple[int, int]:
    return y.shape[1] // size(stack.short_axes, ways), y.shape[2] // size(stack.long_axes, ways)


def size(axes: Any, ways: dict[str, int]) -> int:
    """The number of devices along mesh axes."""
    return prod(ways[name] for name in axes)
