"""Functions that need a singular value decomposition, on batches of matrices (count, rows, cols)."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend.jax.blocks import divide, product

#: A function of singular values s (count, n) and of the inverses of those that are not zero to rounding: its values, and its slopes.
Function = Callable[[Array, Array], tuple[Array, Array]]


def polar_factor(x: Array) -> Array:
    """`U V^T` of each matrix `U S V^T` to rounding accuracy; singular values that are zero to rounding stay zero."""
    return _with_values(_ones, x)


def capped(x: Array) -> Array:
    """Each matrix with its singular values above 1 cut down to 1."""
    return _with_values(_at_most_one, x)


def _ones(s: Array, inverse: Array) -> tuple[Array, Array]:
    return jnp.sign(inverse), jnp.zeros_like(s)


def _at_most_one(s: Array, inverse: Array) -> tuple[Array, Array]:
    return jnp.minimum(s, 1), (s < 1).astype(s.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_values(function: Function, x: Array) -> Array:
    """`U f(S) V^T` of each matrix `U S V^T`."""
    u, s, inverse, vt = _decomposed(x)
    return product("krs,ks,ksc->krc", u, function(s, inverse)[0], vt)


@_with_values.defjvp
def _with_values_jvp(function: Function, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With M = U^T dX V the derivative inside the ranges is U (D * (M + M^T) / 2 + Q * (M - M^T) / 2) V^T, where D has the divided
    # differences (f_i - f_j) / (s_i - s_j), or slopes where singular values are equal, and Q has (f_i + f_j) / (s_i + s_j). Outside the
    # ranges of U and V it is dX f / s.
    (x,), (dx,) = primals, tangents
    u, s, inverse, vt = _decomposed(x)
    f, slope = function(s, inverse)
    kept = jnp.sign(inverse)
    both = kept[:, :, None] * kept[:, None, :]
    inner = product("krs,krc,ktc->kst", u, dx, vt)
    mirrored = jnp.swapaxes(inner, 1, 2)
    apart = s[:, :, None] - s[:, None, :]
    close = jnp.abs(apart) <= jnp.finfo(s.dtype).eps ** 0.5 * jnp.max(s, axis=1)[:, None, None]
    difference = divide(f[:, :, None] - f[:, None, :], jnp.where(close, 0, apart))
    difference = jnp.where(close, (slope[:, :, None] + slope[:, None, :]) / 2, difference)
    turn = divide(f[:, :, None] + f[:, None, :], (s[:, :, None] + s[:, None, :]) * both)
    middle = (difference * (inner + mirrored) + turn * (inner - mirrored)) / 2
    left = product("krc,ksc,ks->krs", dx, vt, f * inverse)
    right = product("ks,krs,krc->ksc", f * inverse, u, dx)
    left = left - product("krs,kts,ktq->krq", u, u, left)
    right = right - product("ksc,ktc,ktd->ksd", right, vt, vt)
    tangent = product("krs,kst,ktc->krc", u, middle, vt) + product("krs,ksc->krc", left, vt) + product("krs,ksc->krc", u, right)
    return product("krs,ks,ksc->krc", u, f, vt), tangent


def nuclear_norm(x: Array) -> Array:
    """The sum of the singular values, shape (count,)."""
    return jnp.sum(jnp.linalg.svd(x, compute_uv=False), axis=1)


def _decomposed(x: Array) -> tuple[Array, Array, Array, Array]:
    """`(U, s, 1 / s, V^T)`, with 0 for the inverse of a singular value that is zero to rounding."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    rounding = max(x.shape[1:]) * jnp.finfo(x.dtype).eps * s[:, :1]
    return u, s, divide(jnp.ones_like(s), jnp.where(s <= rounding, 0, s)), vt
