"""Spectral norms of batches of matrices (count, rows, cols): the Lanczos method from cold, one power step when warm.

Entries come scaled to a largest one within [1, 2) (or are zero), so nothing over- or underflows. The method and its constants are those of
modula-core (linalg/spectral.rs), so that both give the same values to rounding. Norms are lower bounds. Their derivative takes the
singular vectors as constants, which is exact where they have converged.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax_blocks import divide, euclidean, hashed_start, product

# The residual certifies some singular value. It is believed to be the largest after the first number of steps; none follows the second.
_FEWEST_STEPS, _MOST_STEPS = 8, 40
# Relative residual, in the square of the norm, at which the Lanczos method stops.
_TOLERANCE = 1e-3
# An eigenvalue of the projected matrix 1 % below the largest falls to 3e-5 of it after so many squarings; Rayleigh's quotient squares that.
_SQUARINGS = 10


def cold_norm(x: Array) -> tuple[Array, Array]:
    """`(norms (count, 1, 1), right singular vector estimates (count, cols))`, the norms within 1 % of the true ones on any spectrum.

    The estimate is zero for a matrix of zeros, or one that is not finite.
    """
    vectors = _lanczos(lax.stop_gradient(x))
    image = product("krc,kc->kr", x, vectors)
    finite = jnp.all(jnp.isfinite(vectors), axis=1, keepdims=True)
    return euclidean(image)[:, :, None], jnp.where(finite, vectors, 0)


def warm_norm(x: Array, vectors: Array) -> tuple[Array, Array]:
    """The same after one power step from the estimates given; from cold for a batch with one that is zero, undefined or mapped to zero."""
    fixed = lax.stop_gradient(x)
    left = product("krc,kc->kr", fixed, vectors)
    left = divide(left, euclidean(left))
    image = product("krc,kr->kc", x, left)
    norm = euclidean(image)
    estimates = lax.stop_gradient(divide(image, norm))
    lost = ~(lax.stop_gradient(norm) > 0) & jnp.any(fixed != 0, axis=(1, 2))[:, None]

    def search() -> tuple[Array, Array]:
        cold, found = cold_norm(x)
        return jnp.where(lost[:, :, None], cold, norm[:, :, None]), jnp.where(lost, found, estimates)

    return lax.cond(jnp.any(lost), search, lambda: (norm[:, :, None], estimates))


def _lanczos(x: Array) -> Array:
    """Unit vectors (count, cols): the leading Ritz vectors of `x^T x`, with full reorthogonalisation (Golub and Van Loan, section 10.1)."""
    count, _, cols = x.shape
    most = min(_MOST_STEPS, cols)
    eps = jnp.finfo(x.dtype).eps
    start = hashed_start(cols, x.dtype)

    def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
        # Of a kind with x: inside shard_map a loop must carry what varies between devices as it begins.
        return jnp.full_like(x, 0, dtype, shape)

    basis = zeros((count, most, cols), x.dtype).at[:, 0].set(start / jnp.linalg.norm(start))
    projected = zeros((count, most, most), x.dtype)
    State = tuple[Array, Array, Array, Array, Array]

    def unfinished(state: State) -> Array:
        step, *_, done = state
        return (step < most) & ~jnp.all(done)

    def advance(state: State) -> State:
        step, basis, projected, weights, done = state
        newest = lax.dynamic_index_in_dim(basis, step, axis=1, keepdims=False)
        image = product("krc,kr->kc", x, product("krc,kc->kr", x, newest))
        diagonal = jnp.sum(image * newest, axis=1)
        for _ in range(2):
            image = image - product("ks,ksc->kc", product("ksc,kc->ks", basis, image), basis)
        length = euclidean(image)
        grown = projected.at[:, step, step].set(diagonal)
        ritz, value = _top_eigenpair(grown)
        residual = length[:, 0] * jnp.abs(lax.dynamic_index_in_dim(ritz, step, axis=1, keepdims=False))
        converged = (step + 1 >= _FEWEST_STEPS) & (residual <= _TOLERANCE * value)
        exhausted = length[:, 0] <= 4 * eps * value
        weights = jnp.where(done[:, None], weights, ritz)
        # A matrix that is done keeps what it has: its basis, padded with zeros, and its weights. (An index past the end writes nothing.)
        done = done | converged | exhausted | ~jnp.isfinite(value)
        basis = basis.at[:, step + 1].set(jnp.where(done[:, None], 0, divide(image, length)), mode="drop")
        beside = jnp.where(done, 0, length[:, 0])
        grown = grown.at[:, step, step + 1].set(beside, mode="drop").at[:, step + 1, step].set(beside, mode="drop")
        return step + 1, basis, grown, weights, done

    state = (jnp.array(0), basis, projected, zeros((count, most), x.dtype), zeros((count,), bool))
    _, basis, _, weights, _ = lax.while_loop(unfinished, advance, state)
    vectors = product("ks,ksc->kc", weights, basis)
    return divide(vectors, euclidean(vectors))


def _top_eigenpair(symmetric: Array) -> tuple[Array, Array]:
    """The largest eigenvalue of positive semidefinite matrices, by repeated squaring: unit eigenvector (count, n), eigenvalue (count,)."""

    def square(_: int, power: Array) -> Array:
        # Of a positive semidefinite matrix the largest entry is on the diagonal.
        power = divide(power, jnp.max(jnp.diagonal(power, axis1=1, axis2=2), axis=1)[:, None, None])
        return product("krs,kst->krt", power, power)

    power = lax.fori_loop(0, _SQUARINGS, square, symmetric)
    column = jnp.argmax(jnp.diagonal(power, axis1=1, axis2=2), axis=1)
    vector = jnp.take_along_axis(power, column[:, None, None], axis=1)[:, 0, :]
    vector = divide(vector, euclidean(vector))
    return vector, product("kr,krs,ks->k", vector, symmetric, vector)
