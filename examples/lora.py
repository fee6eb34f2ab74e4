"""A frozen base and low-rank adapters: a network learns one function, then its adapters learn the change to another, in JAX.

    python examples/lora.py [--rank 4] [--scale 1.0] [--steps 300]

Only the adapters are trained: frozen weights have an update of zero. The adapters start at nothing, and the rate that suits them does not
depend on their scale. The training loop is the one of loop_jax.py, beside this file.
"""

import argparse

import jax
import jax.numpy as jnp
import modula_rs as mr
from loop_jax import train


def network(width, rank=None, scale=1.0):
    """A perceptron; with a rank, each Linear is frozen and has an adapter of that rank beside it."""

    def linear(fanout, fanin):
        if rank is None:
            return mr.Linear(fanout, fanin).named("base")
        return mr.Linear(fanout, fanin, mass=0).named("base") + mr.LoRA(fanout, fanin, rank, scale=scale, zero=True)

    return linear(1, width) @ mr.GELU() @ linear(width, width) @ mr.GELU() @ linear(width, 8)


def main(arguments=None):
    """Prints the losses of both stages, and returns (frozen weights before, after, losses of the adapters)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(arguments)
    x = jax.random.normal(jax.random.key(1), (256, 8))
    first, second = jnp.sin(x.sum(axis=1, keepdims=True)), jnp.sin(x.sum(axis=1, keepdims=True) + 0.5)

    base = network(options.width)
    trained, losses = train(base, base.initialize(jax.random.key(0)), x, first, options.steps, 0.5)
    print(f"base: loss {losses[0]:.4f} -> {losses[-1]:.4f}")

    m = network(options.width, options.rank, options.scale)
    w, frozen = m.initialize(jax.random.key(2)), [i for i, leaf in enumerate(m.leaves) if leaf.mass == 0]
    for i, weight in zip(frozen, trained, strict=True):
        w[i] = weight
    assert jnp.allclose(m(x, w), base(x, trained), atol=1e-5)
    w, losses = train(m, w, x, second, options.steps, 0.2)
    print(f"adapters of rank {options.rank}: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return trained, [w[i] for i in frozen], losses


if __name__ == "__main__":
    main()
