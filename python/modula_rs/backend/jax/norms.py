"""Spectral norms of batches of matrices: the Lanczos method, or a step of block power iteration from estimates.

The matrices are divided by powers of two, so nothing over- or underflows, and norms are those of the divided matrices. Methods and
constants are the same as in modula-core (linalg/lanczos.rs and subspace.rs), so both give the same values to rounding. The norms are lower
bounds. Derivatives treat the singular vectors as constants, which is exact where they have converged.
"""

from collections.abc import Generator

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax.blocks import divide, euclidean, product, root, total
from modula_rs.backend.jax.matrices import Axes, Matrices
from modula_rs.constants import DROP_SHARE, LANCZOS_LEAST, LANCZOS_MOST, LANCZOS_TOLERANCE, REFINEMENTS, SQUARINGS, STALE_SHARE, VECTORS


def cold_norm(x: Matrices, sought: Array | None = None) -> tuple[Array, Array]:
    """`(norms (count, 1, 1), right singular vector estimates (count, VECTORS, cols))`, the norms within 1 % of the true ones.

    The norms are those of the matrices divided by their powers of two. The first estimate belongs to the largest singular value; the others
    fill the block for later steps of block power iteration. A matrix that is zero or not finite gets zeros, and so does a matrix for which
    `sought` (count,) is False.
    """
    vectors = _lanczos(x.constant(), sought)
    image = x.over_cols(x.images(vectors[:, None]))
    norm = euclidean(image, (-1,), x.rows)
    finite = x.over_cols(jnp.sum(~jnp.isfinite(vectors), axis=1).astype(x.dtype)) == 0
    usable = finite[:, None, None] & (lax.stop_gradient(norm) > 0)
    companions = jnp.broadcast_to(x.start(VECTORS), (x.count, *x.start(VECTORS).shape))
    return norm, jnp.where(usable, companions.at[:, 0].set(vectors), 0)


def warm_norm(x: Matrices, vectors: Array) -> tuple[Array, Array]:
    """Norms and estimates after one step of block power iteration. Matrices with zero or stale estimates are searched by `cold_norm`."""
    step = warm_steps(x, vectors)
    asked = next(step)
    while True:
        try:
            asked = step.send([total(array, over) for array, over in asked])
        except StopIteration as end:
            norm, estimates, lost = end.value
            break

    def search() -> tuple[Array, Array]:
        # Under vmap both branches run, so the search is told which matrices need it; with none it takes no step.
        return searched(x, norm, estimates, lost)

    return lax.cond(jnp.any(lost), search, lambda: (norm, estimates))


def top_part(x: Array) -> tuple[Array, Array]:
    """`(s u v^T, s (count, 1, 1))` of the largest singular value s of each matrix and its vectors. Derivatives take v as a constant."""
    fixed = lax.stop_gradient(x)
    v = _lanczos(Matrices([fixed]), None)
    for _ in range(REFINEMENTS):
        image = product("krc,kr->kc", fixed, product("krc,kc->kr", fixed, v))
        v = divide(image, euclidean(image))
    image = product("krc,kc->kr", x, v)
    return image[:, :, None] * v[:, None, :], euclidean(image)[:, :, None]


def searched(x: Matrices, norm: Array, estimates: Array, lost: Array) -> tuple[Array, Array]:
    """The norms and estimates, replaced by the results of `cold_norm` for the matrices that are lost."""
    cold, found = cold_norm(x, lost)
    return jnp.where(lost[:, None, None], cold, norm), jnp.where(lost[:, None, None], found, estimates)


#: Arrays that are to be summed over devices, each with its mesh axes; a step is sent the sums.
Sums = Generator[list[tuple[Array, Axes]], list[Array], tuple[Array, Array, Array]]


def warm_steps(x: Matrices, vectors: Array) -> Sums:
    """One step of block power iteration: norms, estimates, and which matrices (count,) are lost, because their estimates are zero or stale.

    It yields the sums over devices that it needs, so that several steps can be taken with their sums in common.
    """
    fixed = x.constant()
    left, lengths = yield [(fixed.images(vectors), x.cols), (jnp.sum(vectors * vectors, axis=2), x.cols)]
    (gram,) = yield [(product("kur,kvr->kuv", left, left), x.rows)]
    before = jnp.max(divide(jnp.diagonal(gram, axis1=1, axis2=2), lengths), axis=1)
    left = product("kuv,kvr->kur", _orthonormalizer(gram), left)
    (image,) = yield [(fixed.preimages(left), x.rows)]
    reached, nonzero = yield [(product("kuc,kvc->kuv", image, image), x.cols), (x.nonzero_here(), x.rows + x.cols)]
    weights, square = _top_eigenpair(reached)
    turned = product("kv,kvr->kr", weights, left)[:, None]
    (toward,) = yield [
        (x.preimages(turned) if not x.split else product("kv,kvc->kc", weights, image)[:, None], x.rows if not x.split else ())
    ]
    (squares,) = yield [(jnp.sum(toward * toward, axis=2, keepdims=True), x.cols)]
    right = _orthonormalizer(reached)
    kept = jnp.any(right != 0, axis=2)[:, :, None]
    estimates = jnp.where(kept, product("kuv,kvc->kuc", right, image), x.start(VECTORS))
    lost = ~((before > 0) & (before > STALE_SHARE * square)) & (nonzero > 0)
    return root(squares), jnp.where(square[:, None, None] > 0, estimates, 0), lost


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


def _lanczos(x: Matrices, sought: Array | None) -> Array:
    """Unit vectors (count, cols): leading Ritz vectors of `x^T x`, with full reorthogonalisation (Golub and Van Loan, section 10.1).

    A matrix for which `sought` (count,) is False gets zeros.
    """
    most = min(LANCZOS_MOST, x.columns)
    eps = jnp.finfo(x.dtype).eps
    start = x.part(x.start(1))
    basis = x.full(0, (x.count, most, start.shape[1])).at[:, 0].set(start[0])
    projected = x.full(0, (x.count, most, most))
    State = tuple[Array, Array, Array, Array, Array, Array]

    def advance(state: State) -> State:
        step, basis, projected, weights, done, _ = state
        newest = lax.dynamic_slice_in_dim(basis, step, 1, axis=1)
        image = x.step(newest)[:, 0]
        diagonal = x.over_parts(jnp.sum(image * newest[:, 0], axis=1))
        for _ in range(2):
            image = image - product("ks,ksc->kc", x.over_parts(product("ksc,kc->ks", basis, image)), basis)
        length = euclidean(image, (-1,), x.cols + x.spread)
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
        return step + 1, basis, grown, weights, done, x.any_anywhere(~done)

    done = x.full(False, (x.count,), bool) if sought is None else ~sought
    state = (jnp.array(0), basis, projected, x.full(0, (x.count, most)), done, x.any_anywhere(~done))
    _, basis, _, weights, *_ = lax.while_loop(lambda state: (state[0] < most) & state[5], advance, state)
    vectors = x.joined(product("ks,ksc->kc", weights, basis))
    return divide(vectors, euclidean(vectors, (-1,), x.cols))


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
