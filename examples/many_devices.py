"""A GPT on many devices: data parallel, fully sharded, tensor parallel, or on a mesh of two axes. The training step is the same in all.

python examples/many_devices.py                          # all devices of the machine, data parallel
python examples/many_devices.py --weights sharded        # weights, gradients and states split over the devices
python examples/many_devices.py --weights tensor --plan  # matrices split by rows; print what each device receives and computes
XLA_FLAGS=--xla_force_host_platform_device_count=8 NPROC=32 python examples/many_devices.py --weights both  # eight virtual devices
"""

import argparse

import jax
import modula_rs as mr
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

VOCABULARY, CONTEXT = 64, 32


def placement(weights, shape):
    """How an array of weights is split: over "data", over "model", or over both."""
    lead = [None] * (len(shape) - 2)
    match weights:
        case "copies":
            return PartitionSpec()
        case "sharded":
            return PartitionSpec(*lead, None, "data")
        case "tensor":
            return PartitionSpec(*lead, "model", None)
        case "both":
            return PartitionSpec(*lead, "model", "data")


def main(argv=None):
    args = parse(argv)
    devices = jax.device_count()
    model = {"copies": 1, "sharded": 1, "tensor": devices, "both": min(2, devices)}[args.weights]
    mesh = jax.make_mesh((devices // model, model), ("data", "model"))

    m = mr.GPT(VOCABULARY, CONTEXT, 4, args.width, args.width // 4, args.width // 4, args.blocks)
    where = [NamedSharding(mesh, placement(args.weights, leaf.shape)) for leaf in m.leaves]
    w = jax.device_put(m.initialize(jax.random.key(0)), where)
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m, args.method, shardings=where), optax.scale(-args.rate))
    state = mr.optax.init(optimizer, w)
    if args.plan:
        print(m.plan(w, args.method))

    def loss(w, tokens):
        return optax.softmax_cross_entropy_with_integer_labels(m(tokens[:, :-1], w), tokens[:, 1:]).mean()

    @jax.jit
    def step(w, state, tokens):
        value, gradient = jax.value_and_grad(loss)(w, tokens)
        update, state = optimizer.update(gradient, state, w)
        return optax.apply_updates(w, update), state, value

    rng, losses = np.random.default_rng(0), []
    for t in range(args.steps):
        begin = rng.integers(0, VOCABULARY, (args.batch, 1))
        tokens = (begin + 3 * np.arange(CONTEXT + 1)) % VOCABULARY  # sequences that can be learned
        tokens = jax.device_put(tokens.astype(np.int32), NamedSharding(mesh, PartitionSpec("data")))
        w, state, value = step(w, state, tokens)
        losses.append(float(value))
        if t % 10 == 0:
            print(f"step {t:4d}  loss {losses[-1]:.3f}")
    return losses


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", choices=["copies", "sharded", "tensor", "both"], default="copies")
    parser.add_argument("--method", choices=["normalize", "dualize"], default="normalize")
    parser.add_argument("--plan", action="store_true", help="print the plan of the updates")
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=51)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
