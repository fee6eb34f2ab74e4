"""The whole training loop in JAX. loop_numpy.py and loop_cupy.py are the same loop without JAX."""

import jax
import jax.numpy as jnp
import modula_rs as mr


def train(m, w, x, y, steps, rate):
    """Normed Adam with a rate that falls to zero. Returns the weights and the losses."""

    def loss(w):
        return 0.5 * jnp.mean((m(x, w) - y) ** 2)

    @jax.jit
    def step(w, state, rate):
        value, gradient = jax.value_and_grad(loss)(w)
        update, state = mr.optim.adam(gradient, state)
        return [a - rate * u for a, u in zip(w, m.normalize(update), strict=True)], state, value

    state, losses = mr.optim.adam_init(w), []
    for t in range(steps):
        w, state, value = step(w, state, rate * (1 - t / steps))
        losses.append(float(value))
    return w, losses


def main(steps=200):
    m = mr.ResMLP(width=32, num_blocks=4, block_depth=1, input_dim=8, output_dim=1)
    x = jax.random.normal(jax.random.key(1), (256, 8))
    y = jnp.sin(x.sum(axis=1, keepdims=True))
    _, losses = train(m, m.initialize(jax.random.key(0)), x, y, steps, rate=0.5)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
