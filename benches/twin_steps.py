"""A training step of a traced Flax network over a step of our module of the same function, interleaved in one process.

    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" RAYON_NUM_THREADS=1 \\
        python benches/twin_steps.py [--networks mlp gpt gpt-stacked rescnn] [--rounds 9] [--out twins.json]

The twins are those of tests/support/twins.py: the same functions, weights and targets, in Flax's layouts. "step" is a compiled training
step: loss, gradient, Adam (before dualize nothing), the modular norm, and the addition to the weights, with weights and state donated.
"update" is the same on a constant gradient, without the network. Both are also measured without the norm, because Flax's forward pass, and
XLA's cost of many small arrays, are not the norm's. Each ratio is the twin's time over ours in one round, and the contenders take turns in
going first; the program prints the median, the quartiles and the range. Times are CPU times of the process, which other work on the machine
changes less than the time of day; so run it on one thread, as above.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import peers
from training_step import continued

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
import twins

NETWORKS = {
    "mlp": (lambda: twins.mlp(10, 784, width=256, depth=6), 128),
    "gpt": (lambda: twins.gpt(65, 64, 4, 128, 4), 16),
    "gpt-stacked": (lambda: twins.gpt(65, 64, 4, 128, 4, stacked=True), 16),
    "rescnn": (lambda: twins.rescnn(32, 3, 2, 3, 10, side=16), 16),
}
METHODS = {
    "no norm": (optax.scale_by_adam, None),
    "normalize": (optax.scale_by_adam, "normalize"),
    "dualize": (optax.identity, "dualize"),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    record = {"machine": peers.machine(), "networks": {name: compare(name, args.rounds) for name in args.networks}}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def compare(name, rounds):
    make, batch = NETWORKS[name]
    twin = make()
    w = twin.ours.initialize(jax.random.key(0))
    x, y = data(twin, batch)
    net = twin.network(w)
    result = {}
    for name_of, (before, method) in METHODS.items():
        for part in ("step", "update"):
            norms = [optax.identity() if method is None else mr.optax.scale_by_modular_norm(m, method) for m in (twin.ours, net)]
            ours = run(part, optax.chain(before(), norms[0]), w, lambda w, x: twin.ours(x, w), x, y)
            theirs = run(part, optax.chain(before(), norms[1]), twin.to_twin(w), twin.apply, x, y)
            result[f"{name_of}, {part}"] = ratios(f"{name}, {name_of}, {part}", ours, theirs, rounds)
    return result


def data(twin, batch):
    rng = np.random.default_rng(0)
    shape = (batch, *twin.x.shape[1:])
    if np.issubdtype(twin.x.dtype, np.integer):
        ids = jnp.asarray(rng.integers(0, 65, shape), jnp.int32)
        return ids, jnp.roll(ids, -1, -1)
    return jnp.asarray(rng.standard_normal(shape), jnp.float32), jnp.asarray(rng.integers(0, 10, batch), jnp.int32)


def run(part, transformation, w, apply, x, y):
    """A call of one compiled step, each of which continues from the last."""
    optimizer = optax.chain(transformation, optax.scale(-1e-3))
    noise = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape, a.dtype), w)

    def loss(w):
        return optax.softmax_cross_entropy_with_integer_labels(apply(w, x), y).mean()

    def step(carried, noise):
        w, state = carried
        gradient = jax.grad(loss)(w) if part == "step" else jax.tree.map(lambda a, b: a + b / 100, noise, w)
        update, state = optimizer.update(gradient, state, w)
        return optax.apply_updates(w, update), state

    return continued(step, (w, optimizer.init(w)), noise)


def timed(once, least):
    """CPU seconds of all threads of this process a call: other work on the machine changes them less than the time of day."""
    jax.block_until_ready(once())
    begin, end, calls = time.process_time(), time.perf_counter() + least, 0
    while calls < 3 or time.perf_counter() < end:
        jax.block_until_ready(once())
        calls += 1
    return (time.process_time() - begin) / calls


def ratios(title, ours, theirs, rounds, least=0.2):
    seconds = {"ours": [], "twin": []}
    for turn in range(rounds):
        order = [("ours", ours), ("twin", theirs)]
        for name, once in order[:: -1 if turn % 2 else 1]:
            seconds[name].append(timed(once, least))
    ratio = np.array(seconds["twin"]) / np.array(seconds["ours"])
    low, first, median, third, high = np.quantile(ratio, [0, 0.25, 0.5, 0.75, 1])
    ms = {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}
    print(
        f"{title:32s} ours {ms['ours']:8.2f} ms, twin {ms['twin']:8.2f} ms, ratio {median:.3f} "
        f"({first:.3f} to {third:.3f}, range {low:.3f} to {high:.3f})",
        flush=True,
    )
    return {"ms": ms, "ratio": {"median": median, "quartiles": [first, third], "range": [low, high]}}


if __name__ == "__main__":
    main()
