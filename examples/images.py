"""Train ResMLP or ResCNN on images from an .npz: the code that resmlp.py and rescnn.py share.

The file holds x_train (count, height, width, channels) or (count, height, width), y_train (count,), x_test and y_test.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax


def train(m_for, description, argv=None, **defaults):
    """Trains the network that ``m_for(args, channels, height * width * channels, classes)`` returns."""
    args = parse(description, argv, defaults)
    x, y, x_test, y_test = load(args.data)
    m = m_for(args, x.shape[-1], x[0].size, int(y.max()) + 1)
    optimizer = optax.chain(
        optax.scale_by_adam(0.9, 0.99),
        mr.optax.scale_by_modular_norm(m),
        optax.scale_by_learning_rate(optax.linear_schedule(args.rate, 0.0, args.steps)),
    )

    def loss(w, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(m(images, w), labels).mean()

    @jax.jit
    def step(w, state, images, labels):
        value, gradient = jax.value_and_grad(loss)(w, images, labels)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(w, update), state, value

    @jax.jit
    def correct(w, images, labels):
        return (m(images, w).argmax(-1) == labels).sum()

    def accuracy(w, x, y):
        parts = range(0, len(x), 500)
        return sum(int(correct(w, x[i : i + 500], y[i : i + 500])) for i in parts) / len(x)

    w = m.initialize(jax.random.key(args.seed))
    state, rng, begin = optimizer.init(w), np.random.default_rng(args.seed), time.perf_counter()
    for t in range(args.steps):
        chosen = rng.integers(0, len(x), args.batch)
        w, state, value = step(w, state, x[chosen], y[chosen])
        if t % 100 == 0 or t == args.steps - 1:
            print(f"step {t:5d}  loss {value:.3f}  {time.perf_counter() - begin:5.0f} s", flush=True)
    test = accuracy(w, x_test, y_test)
    print(f"test accuracy {test:.3f}")
    return test


def load(path):
    """Images as float32 of mean 0 and RMS 1, channels last; labels as integers."""
    with np.load(path) as file:
        x, y, x_test, y_test = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    x, x_test = (a.astype(np.float32).reshape(*a.shape[:3], -1) for a in (x, x_test))
    mean, deviation = x.mean(), x.std()
    x, x_test = ((a - mean) / deviation for a in (x, x_test))
    return x, y.ravel().astype(np.int32), jnp.asarray(x_test), jnp.asarray(y_test.ravel().astype(np.int32))


def parse(description, argv, defaults):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="an .npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.5, help="learning rate at the start; it falls linearly to 0")
    parser.add_argument("--width", type=int, default=defaults["width"])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--block-depth", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)
