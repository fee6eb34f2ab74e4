"""Functions that need a singular value decomposition, on batches of matrices (count, rows, cols)."""

import jax
import jax.numpy as jnp
from jax import Array

from modula_rs.backend.jax.blocks import divide, product


@jax.custom_jvp
def polar_factor(x: Array) -> Array:
    """`U V^T` of each matrix `U S V^T` to rounding accuracy; singular values that are zero to rounding stay zero."""
    u, _, inverse, vt = _decomposed(x)
    return product("krs,ks,ksc->krc", u, jnp.sign(inverse), vt)


@polar_factor.defjvp
def _polar_factor_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # With M = U^T dX V: dP = U ((M - M^T) / (s_i + s_j)) V^T and, outside the ranges of U and V, dX / s.
    (x,), (dx,) = primals, tangents
    u, s, inverse, vt = _decomposed(x)
    kept = jnp.sign(inverse)
    inner = product("krs,krc,ktc->kst", u, dx, vt)
    turn = divide(inner - jnp.swapaxes(inner, 1, 2), (s[:, :, None] + s[:, None, :]) * kept[:, :, None] * kept[:, None, :])
    left = product("krc,ksc,ks->krs", dx, vt, inverse)
    right = product("ks,krs,krc->ksc", inverse, u, dx)
    left = left - product("krs,kts,ktq->krq", u, u, left)
    right = right - product("ksc,ktc,ktd->ksd", right, vt, vt)
    tangent = product("krs,kst,ktc->krc", u, turn, vt) + product("krs,ksc->krc", left, vt) + product("krs,ksc->krc", u, right)
    return product("krs,ks,ksc->krc", u, kept, vt), tangent


def nuclear_norm(x: Array) -> Array:
    """The sum of the singular values, shape (count,)."""
    return jnp.sum(jnp.linalg.svd(x, compute_uv=False), axis=1)


def _decomposed(x: Array) -> tuple[Array, Array, Array, Array]:
    """`(U, s, 1 / s, V^T)`, with 0 for the inverse of a singular value that is zero to rounding."""
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    rounding = max(x.shape[1:]) * jnp.finfo(x.dtype).eps * s[:, :1]
    return u, s, divide(jnp.ones_like(s), jnp.where(s <= rounding, 0, s)), vt
