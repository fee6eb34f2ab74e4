"""Matrices as linear maps: of one array or several, on one device or split over a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax.blocks import arithmetic, halves, hashed_start, largest, power_below, product, total

Axes = tuple[str, ...]


class Matrices:
    """A batch of ``count`` equal matrices X, from arrays (count, rows, cols), divided by powers of two so that no product overflows.

    ``rows``, ``cols``: mesh axes over which rows and columns are split, inside ``shard_map``; vectors are then split like them.
    ``columns``: the number of columns of a whole matrix. ``own``: takes the columns of this device from an array (..., columns).
    ``blocks``: mesh axes over which the matrices are dealt. ``row_ways``: the number of devices along ``rows``.
    """

    def __init__(
        self,
        arrays: Sequence[Array],
        rows: Axes = (),
        cols: Axes = (),
        columns: int | None = None,
        own: Callable[[Array], Array] = lambda array: array,
        blocks: Axes = (),
        row_ways: int = 1,
    ) -> None:
        self.rows, self.cols, self.own, self.row_ways = rows, cols, own, row_ways
        self.together = rows + cols + blocks
        self.counts = [len(array) for array in arrays]
        self.columns = arrays[0].shape[2] if columns is None else columns
        self.arrays = [arithmetic(array) for array in arrays]
        entries = _joined([jnp.max(jnp.abs(lax.stop_gradient(x)), axis=(1, 2), keepdims=True, initial=0) for x in self.arrays])
        #: The powers of two, (count, 1, 1). The products below are with the matrices divided by them.
        self.powers = power_below(largest(entries, rows + cols))
        self._before, self._after = halves(self.powers)

    @property
    def count(self) -> int:
        """The number of matrices."""
        return sum(self.counts)

    @property
    def dtype(self) -> Any:
        """The precision of the arithmetic."""
        return self.arrays[0].dtype

    def constant(self) -> Matrices:
        """The same matrices, constant under differentiation."""
        made = object.__new__(Matrices)
        made.__dict__ = {**self.__dict__, "arrays": [lax.stop_gradient(array) for array in self.arrays]}
        return made

    def images(self, vectors: Array) -> Array:
        """X v of each of the vectors (count, n, cols): (count, n, rows), before the sum over devices."""
        return self._each("krc,kvc->kvr", vectors)

    def preimages(self, vectors: Array) -> Array:
        """X^T u of each of the vectors (count, n, rows): (count, n, cols), before the sum over devices."""
        return self._each("krc,kvr->kvc", vectors)

    def over_rows(self, array: Array) -> Array:
        """The sum over the devices that hold other rows."""
        return total(array, self.rows)

    def over_cols(self, array: Array) -> Array:
        """The sum over the devices that hold other columns."""
        return total(array, self.cols)

    @property
    def spread(self) -> Axes:
        """The mesh axes over which the Lanczos method splits its vectors, besides the mesh axes of the columns.

        These are the mesh axes of the rows, if they divide the vectors. Without this split, all devices along them would keep the same
        basis, which for small matrices is as large as a device's share of the matrices.
        """
        return self.rows if self.arrays[0].shape[2] % self.row_ways == 0 else ()

    def part(self, vectors: Array) -> Array:
        """The part (..., cols) of vectors that this device keeps in the Lanczos method."""
        if not self.spread:
            return vectors
        length = vectors.shape[-1] // self.row_ways
        return lax.dynamic_slice_in_dim(vectors, lax.axis_index(self.spread) * length, length, vectors.ndim - 1)

    def joined(self, vectors: Array) -> Array:
        """The inverse of :meth:`part`."""
        return lax.all_gather(vectors, self.spread, axis=vectors.ndim - 1, tiled=True) if self.spread else vectors

    def step(self, vectors: Array) -> Array:
        """X^T X v of the parts of vectors (count, n, cols)."""
        images = self.preimages(self.over_cols(self.images(self.joined(vectors))))
        if self.spread:
            return lax.psum_scatter(images, self.spread, scatter_dimension=2, tiled=True)
        return self.over_rows(images)

    def over_parts(self, array: Array) -> Array:
        """The sum over the devices that hold other parts of vectors."""
        return total(array, self.cols + self.spread)

    def full(self, value: Any, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """A constant array, made from a matrix: inside shard_map the first carry of a loop must vary over the mesh axes of later ones."""
        return jnp.full_like(self.arrays[0], value, dtype, shape)

    @property
    def split(self) -> bool:
        """Whether a matrix is split over devices."""
        return bool(self.rows or self.cols)

    def nonzero_here(self) -> Array:
        """For each matrix, (count,): 1 if an entry that this device holds is not zero (NaN is not zero), else 0."""
        return _joined([jnp.any(array != 0, axis=(1, 2)) for array in self.arrays]).astype(self.dtype)

    def any_anywhere(self, flags: Array) -> Array:
        """Whether a flag is set on any device. All devices ask this, because they must leave a loop with collectives at the same turn."""
        if not self.split:
            return jnp.any(flags)
        return lax.psum(jnp.any(flags).astype(jnp.int32), self.together) > 0

    def start(self, number: int) -> Array:
        """Vectors (number, cols) of length 1 that are unrelated to any matrix: the same ones on any mesh."""
        vectors = hashed_start(number * self.columns, self.dtype).reshape(number, self.columns)
        return self.own(vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True))

    def _each(self, equation: str, vectors: Array) -> Array:
        made, at, vectors = [], 0, vectors / self._before
        for array, count in zip(self.arrays, self.counts, strict=True):
            made.append(product(equation, array, vectors[at : at + count]))
            at += count
        return _joined(made) / self._after


def _joined(parts: Sequence[Array]) -> Array:
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]
