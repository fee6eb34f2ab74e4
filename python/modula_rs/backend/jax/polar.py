"""Fast orthogonalisation of batches of matrices (count, rows, cols), in the Gram space of the shorter edge.

Two rational steps apply an odd function near 1 to every singular value. Entries come scaled to a largest one within [1, 2).
"""

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax.blocks import divide, euclidean, hashed_start, product, root, total, unit_range
from modula_rs.constants import FIRST, POWER_STEPS, RISES, SECOND, SINGLE, Stage

#: The rational steps of each level of accuracy; the core's constants say how near 1 they bring singular values.
_STAGES: dict[str, tuple[Stage, ...]] = {"standard": (FIRST, SECOND), "fast": (SINGLE,), "coarse": (FIRST,)}


def orthogonalise(x: Array, accuracy: str, over: tuple[str, ...] = ()) -> Array:
    """`U V^T` of each matrix `U S V^T`, as accurate as the level promises; zeros give zeros.

    ``over``: mesh axes over which the columns are split, inside ``shard_map``. Gram matrices are then summed over devices.
    """
    if not over and x.shape[1] > x.shape[2]:
        return jnp.swapaxes(orthogonalise(jnp.swapaxes(x, 1, 2), accuracy), 1, 2)
    identity = jnp.eye(x.shape[1], dtype=x.dtype)[None]
    gram = _gram(x, over)
    square = _largest_eigenvalue(gram)
    x, gram = divide(x, root(square)), divide(gram, square)
    for index, (constant, cubic, terms) in enumerate(_STAGES[accuracy]):
        if index > 0:  # the Gram matrix is formed anew, because the first step amplified its rounding
            gram = _gram(x, over)
        factor = constant * identity + cubic * gram + sum(residue * _inverse(gram + pole * identity) for pole, residue in terms)
        x = product("krs,ksc->krc", factor, x)
    return x


def bent(x: Array, scale: Array) -> Array:
    """Each matrix with its singular values bent: s times `p + p^3` with `p = y - y^3`, where `y = x / s`.

    A matrix whose largest y is above `RISES`, where p no longer rises, is scaled down to it.
    """
    if x.shape[1] > x.shape[2]:
        return jnp.swapaxes(bent(jnp.swapaxes(x, 1, 2), scale), 1, 2)
    x, power = unit_range(x)
    norm = root(_largest_eigenvalue(_gram(x)))
    x = x * jnp.minimum(power / jnp.where(jnp.isfinite(scale), scale, 1), divide(jnp.full_like(norm, RISES), norm))
    x = x - product("krs,ksc->krc", _gram(x), x)
    return (x + product("krs,ksc->krc", _gram(x), x)) * scale


def _gram(x: Array, over: tuple[str, ...] = ()) -> Array:
    return total(product("krc,ksc->krs", x, x), over)


def _inverse(x: Array) -> Array:
    """The inverses of positive definite matrices."""
    lower = lax.linalg.cholesky(x)
    half = lax.linalg.triangular_solve(
        lower, jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype)[None], x.shape), left_side=True, lower=True
    )
    return product("ktr,kts->krs", half, half)


def _largest_eigenvalue(gram: Array) -> Array:
    """A lower bound (count, 1, 1) for the largest eigenvalue, by power iteration."""

    def step(_: int, vector: Array) -> Array:
        return product("krs,ks->kr", gram, divide(vector, euclidean(vector)))

    # The first product is made outside the loop, so that the carry depends on `gram` from the start, as shard_map requires.
    start = step(0, jnp.broadcast_to(hashed_start(gram.shape[1], gram.dtype)[None], gram.shape[:2]))
    return euclidean(lax.fori_loop(0, POWER_STEPS, step, start))[:, :, None]
