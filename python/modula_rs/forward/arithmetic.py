"""Products and sums from which atoms and bonds are built, for arrays of any library."""

from __future__ import annotations

import math

import numpy as np

from modula_rs import arrays
from modula_rs.arrays import Array, widen


def as_floating(x: Array, w: Array) -> Array:
    """Integers converted to the dtype of the weights; other arrays unchanged."""
    return x.astype(w.dtype) if x.dtype.kind in "biu" else x


def of_rank(a: Array, rank: int) -> Array:
    """The array with leading axes of size 1 added, as broadcasting does; JAX can be configured to refuse adding them implicitly."""
    return a.reshape((1,) * (rank - a.ndim) + tuple(a.shape)) if a.ndim < rank else a


def matmul(x: Array, w: Array) -> Array:
    """``x @ w.T`` over the last axes; half precision is accumulated in float32."""
    if arrays.library(w) == "jax" or arrays.library(x) == "jax":
        import jax.numpy as jnp
        from jax import lax

        dtype = jnp.result_type(x, w)
        wide = arrays.working_dtype(dtype)
        # One plain product of two matrices: with more axes, or with w transposed, the backward pass on a CPU copies its operands.
        rows = jnp.asarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = lax.dot_general(rows, w, (((1,), (1,)), ((), ())), preferred_element_type=wide).astype(dtype)
        return y.reshape(*x.shape[:-1], w.shape[0])
    return product(x, w.T).astype(np.result_type(x.dtype, w.dtype), copy=False)


def product(a: Array, b: Array) -> Array:
    """``a @ b``, accumulated in float32 or better. CuPy accumulates half precision in float32 by itself."""
    if arrays.library(a) == "cupy":
        return a @ b
    return widen(a) @ widen(b)


def sum_of_rows(x: Array, d: int) -> Array:
    """The sum over all axes but the last, which has size ``d``."""
    return widen(x).reshape(x.size // max(d, 1), d).sum(axis=0)
