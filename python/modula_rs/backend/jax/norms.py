"""Spectral norms of batches of matrices (count, rows, cols): the Lanczos method, or a step of block power iteration from estimates.

Entries come scaled to a largest one within [1, 2), or are zero, so nothing over- or underflows. Methods and constants are the same as in
modula-core (linalg/lanczos.rs and subspace.rs), so both give the same values to rounding. The norms are lower bounds. Derivatives treat the
singular vectors as constants, which is exact where they have converged.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax.blocks import divide, euclidean, hashed_start, product
from modula_rs.constants import DROP_SHARE, LANCZOS_LEAST, LANCZOS_MOST, LANCZOS_TOLERANCE, REFINEMENTS, SQUARINGS, STALE_SHARE, VECTORS


def cold_norm(x: Array, sought: Array | None = None) -> tuple[Array, Array]:
    """`(norms (count, 1, 1), right singular vector estimates (count, VECTORS, cols))`, the norms within 1 % of the true ones.

    The first estimate belongs to the largest singular value; the others fill the block for later steps of block power iteration. A matrix
    that is zero or not finite gets zeros, and so does a matrix for which `sought` (count,) is False.
    """
    vectors = _lanczos(lax.stop_gradient(x), sought)
    norm = euclidean(product("krc,kc->kr", x, vectors))[:, :, None]
    usable = jnp.all(jnp.isfinite(vectors), axis=1)[:, None, None] & (lax.stop_gradient(norm) > 0)
    companions = jnp.broadcast_to(_restarts(x), (len(x), VECTORS, x.shape[2]))
    return norm, jnp.where(usable, companions.at[:, 0].set(vectors), 0)


def warm_norm(x: Array, vectors: Array) -> tuple[Array, Array]:
    """Norms and estimates after one step of block power iteration. Matrices with zero or stale estimates are searched by `cold_norm`."""
    fixed = lax.stop_gradient(x)
    left = product("krc,kvc->kvr", fixed, vectors)
    before = jnp.max(divide(jnp.sum(left * left, axis=2), jnp.sum(vectors * vectors, axis=2)), axis=1)
    left = product("kuv,kvr->kur", _orthonormalizer(product("kur,kvr->kuv", left, left)), left)
    image = product("krc,kvr->kvc", fixed, left)
    reached = product("kuc,kvc->kuv", image, image)
    weights, square = _top_eigenpair(reached)
    norm = euclidean(product("krc,kr->kc", x, product("kv,kvr->kr", weights, left)))[:, :, None]
    right = _orthonormalizer(reached)
    kept = jnp.any(right != 0, axis=2)[:, :, None]
    estimates = jnp.where(kept, product("kuv,kvc->kuc", right, image), _restarts(x))
    lost = ~((before > 0) & (before > STALE_SHARE * square)) & jnp.any(fixed != 0, axis=(1, 2))

    def search() -> tuple[Array, Array]:
        # Under vmap both branches run, so the search is told which matrices need it; with none it takes no step.
        cold, found = cold_norm(x, lost)
        return jnp.where(lost[:, None, None], cold, norm), jnp.where(lost[:, None, None], found, estimates)

    return lax.cond(jnp.any(lost), search, lambda: (norm, jnp.where(square[:, None, None] > 0, estimates, 0)))


def top_part(x: Array) -> tuple[Array, Array]:
    """`(s u v^T, s (count, 1, 1))` of the largest singular value s of each matrix and its vectors. Derivatives take v as a constant."""
    fixed = lax.stop_gradient(x)
    v = _lanczos(fixed, None)
    for _ in range(REFINEMENTS):
        image = product("krc,kr->kc", fixed, product("krc,kc->kr", fixed, v))
        v = divide(image, euclidean(image))
    image = product("krc,kc->kr", x, v)
    return image[:, :, None] * v[:, None, :], euclidean(image)[:, :, None]


def _restarts(x: Array) -> Array:
    """Unit vectors (VECTORS, cols) unrelated to any matrix, which replace dropped directions."""
    vectors = hashed_start(VECTORS * x.shape[2], x.dtype).reshape(VECTORS, x.shape[2])
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def _orthonormalizer(gram: Array) -> Array:
    """Rows c_i (count, i, n) that combine the first i + 1 directions, with `c_i^T G c_j = 1` for i = j, else 0; zeros for one dropped."""
    size = gram.shape[1]
    rows: list[Array] = []
    for j in range(size):
        row = jnp.zeros_like(gram[:, 0]).at[:, j].set(1)
        for known in rows:
            row = row - product("ka,kab,kb->k", known, gram, row)[:, None] * known
        square = product("ka,kab,kb->k", row, gram, row)
        lost = ~(square > DROP_SHARE * gram[:, j, j])
        rows.append(jnp.where(lost[:, None], 0, row / jnp.sqrt(jnp.where(lost, 1, square))[:, None]))
    return jnp.stack(rows, axis=1)


def _lanczos(x: Array, sought: Array | None) -> Array:
    """Unit vectors (count, cols): leading Ritz vectors of `x^T x`, with full reorthogonalisation (Golub and Van Loan, section 10.1).

    A matrix for which `sought` (count,) is False gets zeros.
    """
    count, _, cols = x.shape
    most = min(LANCZOS_MOST, cols)
    eps = jnp.finfo(x.dtype).eps
    start = hashed_start(cols, x.dtype)

    def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
        # Made from x, because inside shard_map a loop's first carry must vary over the same mesh axes as the later ones.
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
        converged = (step + 1 >= LANCZOS_LEAST) & (residual <= LANCZOS_TOLERANCE * value)
        exhausted = length[:, 0] <= 4 * eps * value
        weights = jnp.where(done[:, None], weights, ritz)
        # A matrix that is done keeps its weights and its basis, which is padded with zeros. (Writing past the end has no effect.)
        done = done | converged | exhausted | ~jnp.isfinite(value)
        basis = basis.at[:, step + 1].set(jnp.where(done[:, None], 0, divide(image, length)), mode="drop")
        beside = jnp.where(done, 0, length[:, 0])
        grown = grown.at[:, step, step + 1].set(beside, mode="drop").at[:, step + 1, step].set(beside, mode="drop")
        return step + 1, basis, grown, weights, done

    done = zeros((count,), bool) if sought is None else ~sought
    state = (jnp.array(0), basis, projected, zeros((count, most), x.dtype), done)
    _, basis, _, weights, _ = lax.while_loop(unfinished, advance, state)
    vectors = product("ks,ksc->kc", weights, basis)
    return divide(vectors, euclidean(vectors))


def _top_eigenpair(symmetric: Array) -> tuple[Array, Array]:
    """Unit eigenvector (count, n) and value (count,) of the largest eigenvalue of positive semidefinite matrices, by repeated squaring."""

    def square(_: int, power: Array) -> Array:
        # The largest entry of a positive semidefinite matrix is on its diagonal.
        power = divide(power, jnp.max(jnp.diagonal(power, axis1=1, axis2=2), axis=1)[:, None, None])
        return product("krs,kst->krt", power, power)

    power = lax.fori_loop(0, SQUARINGS, square, symmetric)
    column = jnp.argmax(jnp.diagonal(power, axis1=1, axis2=2), axis=1)
    vector = jnp.take_along_axis(power, column[:, None, None], axis=1)[:, 0, :]
    vector = divide(vector, euclidean(vector))
    return vector, product("kr,krs,ks->k", vector, symmetric, vector)
