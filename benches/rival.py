"""A rational step and two polynomial steps in Gram space: two products with the whole matrix, whatever its accuracy.

    python benches/rival.py

With R = X X^T of the shorter side, Q is a product of three functions of R, and the result is Q X. So X is read in two products, ours reads
it in four: R is formed anew between our two stages. The rational step is Zolotarev's of type (3, 2) on [1e-3, 1], which brings singular
values into [0.248, 1]. The polynomials of degree 5 are the best on that range, as Polar Express chooses them (arXiv 2505.16932), each range
widened by 2 % for rounding. In exact arithmetic all three are within 0.003 of 1 on [1e-3, 1], ours within 0.005 on [1e-3, 2].

We found no published program: this one is written from that description. The program prints the worst error, for the singular values
above a thousandth of the largest, on spectra of a 128 x 512 matrix. `peers.py` has the times.
"""

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

#: x -> CONSTANT x (1 + RESIDUE / (x^2 + POLE))
POLE, RESIDUE, CONSTANT = 6.249901835663926e-05, 0.015937752285833554, 0.9843132398192077
#: x -> a x + b x^3 + c x^5
POLYNOMIALS = [(3.84285327, -7.16979974, 4.4441652), (1.90559934, -1.28359483, 0.37837509)]


def rational_then_polynomials(x):
    """The polar factor of one matrix, to the accuracy that the Gram matrix leaves."""
    wide = x if x.shape[0] <= x.shape[1] else x.T
    gram = wide @ wide.T
    one = jnp.eye(len(gram), dtype=x.dtype)
    # The Schatten norm of order 8: an upper bound of the largest singular value, and a close one.
    square = jnp.sqrt(jnp.linalg.norm(gram @ gram))
    gram = gram / square
    factor = CONSTANT * (one + RESIDUE * cho_solve(cho_factor(gram + POLE * one), one))
    gram = factor @ (factor @ gram)
    for a, b, c in POLYNOMIALS:
        step = a * one + b * gram + c * (gram @ gram)
        factor, gram = factor @ step, step @ (step @ gram)  # the compiler leaves out the last Gram matrix, which nobody reads
    y = factor @ wide / jnp.sqrt(square)
    return y if wide is x else y.T


def spectra(n):
    t = np.linspace(0, 1, n)
    return {
        "log-spaced, 1 to 1e-3": 10.0 ** (-3 * t),
        "linear, 1 to 1e-3": 1 - 0.999 * t,
        "one at 1, the rest at 1e-3": np.where(t == 0, 1, 1e-3),
        "all at 1 but one at 1e-3": np.where(t == 1, 1e-3, 1),
        "flat": np.ones(n),
    }


def errors(rows=128, cols=512):
    """For each spectrum the worst `|sigma - 1|` of this method and of ours, of singular values above a thousandth of the largest."""
    rng = np.random.default_rng(0)
    m, run, found = mr.Linear(rows, cols), jax.jit(rational_then_polynomials), {}
    left = np.linalg.qr(rng.standard_normal((rows, rows)))[0]
    right = np.linalg.qr(rng.standard_normal((cols, rows)))[0].T
    for name, sigma in spectra(rows).items():
        x = ((left * sigma) @ right).astype(np.float32)
        results = run(x), m.dualize([x])[0] / np.sqrt(rows / cols)
        reached = [np.einsum("rk,rc,kc->k", left, np.asarray(y, np.float64), right) for y in results]
        found[name] = [float(np.max(np.abs(values[sigma > 0.999e-3] - 1))) for values in reached]
    return found


if __name__ == "__main__":
    print(f"{'worst error':34s}{'this':>9s}{'ours':>9s}")
    for name, (this, ours) in errors().items():
        print(f"{name:34s}{this:9.2g}{ours:9.2g}")
