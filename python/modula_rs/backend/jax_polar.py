"""Fast orthogonalisation of batches of matrices (count, rows, cols), in the Gram space of the shorter edge.

Both methods apply an odd function near 1 to every singular value. Entries come scaled to a largest one within [1, 2).
"""

import jax.numpy as jnp
from jax import Array, lax

from modula_rs.backend.jax_blocks import divide, euclidean, hashed_start, product, root

# Zolotarev's best approximations of 1 (Nakatsukasa and Freund 2016), each `x (constant + sum of residue / (x^2 + pole))`: the first for
# x in [1e-3, 1.25], the second for the range of the first, [0.375, 1.626], widened by 2 %. Together within 8e-4 of 1.
# The same numbers as in modula-core, linalg/schedule.rs.
_STAGES = (
    (1.282407542941364, ((7.26030006e-5, 1.282407542941364 * 0.02144855),)),
    (0.2240083851063105, ((0.05177153, 0.2240083851063105 * 1.44669282), (1.25416884, 0.2240083851063105 * 4.71567845))),
)
# Power steps that estimate the largest eigenvalue of the Gram matrix, from below, hardly ever by more than a factor 1.25^2.
_POWER_STEPS = 12

# Polar Express (Amsel et al. 2025, arXiv 2505.16932), the minimax quintics for singular values from 1e-3; then Newton-Schulz's own.
_COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# The Gram matrix squares the condition number. It is formed anew before this step, when the smallest singular values have grown
# thirtyfold; formed only once, float32 leaves 0.3 at a thousandth of the largest.
_RESTART = 2


def orthogonalise(x: Array, steps: int | None) -> Array:
    """`U V^T` of each matrix `U S V^T`: every singular value above a thousandth of the largest within 0.002 of 1, or what `steps`
    Newton-Schulz steps reach. Zeros give zeros.
    """
    if x.shape[1] > x.shape[2]:
        return jnp.swapaxes(orthogonalise(jnp.swapaxes(x, 1, 2), steps), 1, 2)
    return _zolotarev(x) if steps is None else _polar_express(x, steps)


def _zolotarev(x: Array) -> Array:
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    gram = _gram(x)
    square = _largest_eigenvalue(gram)
    x, gram = divide(x, root(square)), divide(gram, square)
    for index, (constant, terms) in enumerate(_STAGES):
        if index > 0:  # formed anew, for the first factor amplified its rounding
            gram = _gram(x)
        factor = constant * identity + sum(residue * _inverse(gram + pole * identity) for pole, residue in terms)
        x = product("krs,ksc->krc", factor, x)
    return x


def _gram(x: Array) -> Array:
    return product("krc,ksc->krs", x, x)


def _inverse(x: Array) -> Array:
    """Of positive definite matrices."""
    lower = lax.linalg.cholesky(x)
    half = lax.linalg.triangular_solve(lower, jnp.broadcast_to(jnp.eye(x.shape[1], dtype=x.dtype), x.shape), left_side=True, lower=True)
    return product("ktr,kts->krs", half, half)


def _largest_eigenvalue(gram: Array) -> Array:
    """A lower bound (count, 1, 1) for the largest eigenvalue, from power steps."""
    vector = jnp.broadcast_to(hashed_start(gram.shape[1], gram.dtype), gram.shape[:2])
    for _ in range(_POWER_STEPS + 1):
        vector = divide(vector, euclidean(vector))
        vector = product("krs,ks->kr", gram, vector)
    return euclidean(vector)[:, :, None]


def _polar_express(x: Array, steps: int) -> Array:
    schedule = (_COEFFICIENTS + (_COEFFICIENTS[-1],) * steps)[:steps]
    identity = jnp.eye(x.shape[1], dtype=x.dtype)
    gram = _gram(x)
    # sigma_max <= ||gram^2||_F^(1/4) <= n^(1/8) sigma_max, and the first step needs the square anyway.
    square = product("krs,kst->krt", gram, gram)
    fourth = euclidean(square, (1, 2))
    x, gram, square = divide(x, root(root(fourth))), divide(gram, root(fourth)), divide(square, fourth)
    factor = None
    for index, (a, b, c) in enumerate(schedule):
        if index == _RESTART:
            x, factor = product("krs,ksc->krc", factor, x), None
            gram = _gram(x)
        if index > 0:
            square = product("krs,kst->krt", gram, gram)
        step = a * identity + b * gram + c * square
        factor = step if factor is None else product("krs,kst->krt", factor, step)
        if index + 1 not in (_RESTART, len(schedule)):
            gram = product("krs,kst->krt", product("krs,kst->krt", step, gram), step)
    return product("krs,ksc->krc", factor, x)
