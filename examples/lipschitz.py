"""A classifier whose output moves by at most as much as its input, with the certificate and an attack on it, in JAX.

    python examples/lipschitz.py [--steps 300]

After each step the hard cap cuts the singular values of all weights down to norm 1, so that the network has Lipschitz constant 1 from RMS
to RMS. The certificate is composed of the norms that singular value decompositions find. The attack looks for the input, and the change
of it, that move the output the most, by gradient ascent.
"""

import argparse

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
from sklearn.datasets import load_digits


def rms(x):
    """Root mean square over the last axis."""
    return jnp.sqrt((x * x).mean(-1))


def attack(m, w, x, steps):
    """The largest RMS of the output's change over that of the input's change, found by gradient ascent on both ends from every ``x``."""

    def ratio(ends):
        start, end = ends
        moved = rms(m(end, w) - m(start, w)) / jnp.maximum(rms(end - start), 1e-6)
        return moved.sum(), moved

    climb = jax.jit(jax.grad(ratio, has_aux=True))
    ends = (x, x + 0.1 * jax.random.normal(jax.random.key(7), x.shape))
    best = 0.0
    for _ in range(steps):
        slopes, found = climb(ends)
        best = max(best, float(found.max()))
        ends = tuple(end + 0.03 * slope / jnp.maximum(rms(slope), 1e-9)[:, None] for end, slope in zip(ends, slopes, strict=True))
    return best


def main(arguments=None):
    """Prints and returns accuracy, certificate, and the largest ratio that the attack finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--attack-steps", type=int, default=300)
    options = parser.parse_args(arguments)
    x, y = load_digits(return_X_y=True)
    x = jnp.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True)), jnp.float32)
    order = np.random.default_rng(0).permutation(len(x))
    held, used = order[:300], order[300:]

    width = options.width
    m = mr.Linear(10, width) @ mr.Abs() @ mr.Linear(width, width) @ mr.Abs() @ mr.Linear(width, 64)

    def loss(w, x, y):
        # Logits of a network that may hardly move are small: a temperature makes differences of them count.
        return -jnp.take_along_axis(jax.nn.log_softmax(10 * m(x, w)), y[:, None], axis=1).mean()

    @jax.jit
    def step(w, x, y, rate):
        value, gradient = jax.value_and_grad(loss)(w, x, y)
        update = m.dualize(gradient)
        return m.hard_cap([a - rate * u for a, u in zip(w, update, strict=True)], nonfinite="propagate"), value

    w = m.initialize(jax.random.key(0))
    for t in range(options.steps):
        chosen = np.random.default_rng(t).choice(used, 128)
        w, value = step(w, x[chosen], y[chosen], 0.5 * (1 - t / options.steps))
    accuracy = float((np.asarray(m(x[held], w)).argmax(-1) == y[held]).mean())
    certificate = m.lipschitz(w)
    found = attack(m, w, x[held], options.attack_steps)
    print(f"loss {float(value):.4f}, accuracy {accuracy:.3f} on digits that were held back")
    print(f"Lipschitz constant: at most {certificate:.6f} by certificate, at least {found:.4f} by attack")
    return accuracy, certificate, found


if __name__ == "__main__":
    main()
