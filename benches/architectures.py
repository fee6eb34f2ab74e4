"""Times of whole gradients on JAX on a CPU, as we write the forward pass, over the times as it is usually written.

    taskset -c 1 python benches/architectures.py projections [--widths 32 64 128 256]   # Q, K and V in one product, over three
    taskset -c 1 python benches/architectures.py convolution [--widths 16 64] [--sizes 8 32] [--copies 6]

The two ways alternate in one process. The program prints the median and the quartiles of the ratios of neighbouring times. With
``--copies`` the gradient is vmapped over this number of sets of weights.
"""

import argparse
import itertools
import statistics
import time
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
from modula_rs.forward import jax_correlate, one_product


def gradient(m, loss, copies, x):
    """The compiled gradient and its arguments."""
    if copies:
        w = jax.vmap(m.initialize)(jax.random.split(jax.random.key(0), copies))
        return jax.jit(jax.vmap(jax.grad(loss), (0, None))).lower(w, x).compile(), w
    w = m.initialize(jax.random.key(0))
    return jax.jit(jax.grad(loss)).lower(w, x).compile(), w


def compare(label, new, old, w, x, seconds):
    times = {new: [], old: []}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times[new]) < 3:
        for which in times:
            start = time.perf_counter()
            jax.block_until_ready(which(w, x))
            times[which].append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times[new], times[old], strict=True)], n=4)
    medians = " over ".join(f"{1e3 * statistics.median(each):.1f}" for each in times.values())
    print(f"{label}: {medians} ms, ratio {middle:.3f} ({low:.3f} to {high:.3f}), {len(times[new])} rounds", flush=True)


def projections(args):
    def loss(w, batch, m):
        return optax.softmax_cross_entropy_with_integer_labels(m(batch[:, :-1], w), batch[:, 1:]).mean()

    for width in args.widths or (32, 64, 128, 256):
        m = mr.GPT(65, 64, 4, width, width // 4, width // 4, 4)
        batch = jnp.asarray(np.random.default_rng(0).integers(0, 65, (args.batch, args.length + 1)))
        compiled = []
        for below in (10**9, 0):
            with mock.patch.object(one_product, "FEATURES_BELOW", below), mock.patch.object(one_product, "VECTORS_FROM", 0):
                compiled.append(gradient(m, partial(loss, m=m), args.copies, batch))
        compare(f"width {width}", compiled[0][0], compiled[1][0], compiled[0][1], batch, args.seconds)


def convolution(args):
    def loss(w, images, m):
        return (m(images, w) ** 2).sum()

    for width, size in itertools.product(args.widths or (16, 64), args.sizes):
        m = mr.ResCNN(width=width, num_blocks=4, block_depth=2, input_dim=3, output_dim=10)
        images = jnp.asarray(np.random.default_rng(0).standard_normal((args.batch, size, size, 3)), jnp.float32)
        compiled = []
        for correlate in (jax_correlate._correlate, plain):
            with mock.patch.object(jax_correlate, "_correlate", correlate):
                compiled.append(gradient(m, partial(loss, m=m), args.copies, images))
        compare(f"width {width}, {size} x {size}", compiled[0][0], compiled[1][0], compiled[0][1], images, args.seconds)


def plain(images, taps, stride, padding):
    return jax_correlate._convolve(images, taps, stride, padding, ("NHWC", "HWOI", "NHWC"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["projections", "convolution"])
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--batch", type=int)
    parser.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    parser.add_argument("--copies", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    args.batch = args.batch or {"projections": 12, "convolution": 32}[args.what]
    {"projections": projections, "convolution": convolution}[args.what](args)


if __name__ == "__main__":
    main()
