"""Random numbers for fresh weights, from the caller's generator."""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from modula_rs import arrays


class Source:
    """Draws arrays in the library of its key.

    An int or ``numpy.random.Generator`` gives NumPy arrays, a JAX key JAX arrays, a ``cupy.random.Generator`` CuPy arrays.
    """

    def __init__(self, key: Any, dtype: Any) -> None:
        self.library = _library_of_key(key)
        self.xp = arrays.namespace(self.library)
        self.dtype = arrays.working_dtype(np.float32 if dtype is None else dtype)
        if self.library == "numpy" and not isinstance(key, np.random.Generator):
            key = np.random.default_rng(operator.index(key))
        self._key = key

    def key(self) -> Any:
        """A key for one more draw: the generator itself, or a fresh JAX key."""
        if self.library != "jax":
            return self._key
        import jax

        self._key, key = jax.random.split(self._key)
        return key

    def normal(self, shape: tuple[int, ...]) -> Any:
        """Independent Gaussians of variance 1."""
        if self.library == "jax":
            import jax

            return jax.random.normal(self.key(), shape, self.dtype)
        return self._key.standard_normal(shape, dtype=self.dtype)

    def semi_orthogonal(self, batch: tuple[int, ...], rows: int, cols: int) -> Any:
        """Matrices of shape (\\*batch, rows, cols), uniform among the matrices whose singular values are all 1."""
        xp, tall = self.xp, rows >= cols
        gaussian = self.normal((*batch, max(rows, cols), min(rows, cols)))
        if gaussian.size == 0:
            return gaussian.reshape(*batch, rows, cols)
        q, r = xp.linalg.qr(gaussian)
        # QR is unique, and Q uniform, once the diagonal of R is positive (Mezzadri 2007).
        sign = xp.where(xp.diagonal(r, axis1=-2, axis2=-1) < 0, -1, 1).astype(q.dtype)
        q = q * sign[..., None, :]
        return q if tall else xp.swapaxes(q, -1, -2)

    def gaussian(self, batch: tuple[int, ...], rows: int, cols: int) -> Any:
        """Matrices of shape (\\*batch, rows, cols) with independent Gaussian entries, each divided by its largest singular value."""
        xp, drawn = self.xp, self.normal((*batch, rows, cols))
        if drawn.size == 0:
            return drawn
        turned = xp.swapaxes(drawn, -1, -2)
        gram = drawn @ turned if rows <= cols else turned @ drawn
        return drawn / xp.sqrt(xp.linalg.eigvalsh(gram)[..., -1])[..., None, None]


def _library_of_key(key: Any) -> str:
    if isinstance(key, np.random.Generator):
        return "numpy"
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if key < 0:
            raise ValueError(f"a seed must be at least 0, got {key}")
        return "numpy"
    name = arrays.library(key)
    if name == "jax":
        return name
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(key, cupy.random.Generator):
        return "cupy"
    raise TypeError(f"a key is an int, a numpy.random.Generator, a JAX key or a cupy.random.Generator, got {type(key).__name__}")
