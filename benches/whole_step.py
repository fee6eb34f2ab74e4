"""The share of a whole training step that the maps take: forward and backward pass, optimizer and new weights in one compiled call.

    python benches/whole_step.py [--networks gpt flax] [--widths 128 256 512] [--rounds 21] [--cpu-time] [--out step.json]

"gpt" is our GPT, "flax" the stock Flax transformer of `stock_networks.py`, read by `mr.trace`; both have 4 blocks. A step takes 8
sequences of 128 characters of this project's documentation, in float32. Weights and state are donated, as training loops should. Of each
optimizer there are two steps, one with the map and one with the identity in its place. They take turns within a round, and in going first.
The share of a map is the difference of the two over the step with the map: the median and the quartiles over rounds, and from the least
times of both. Last come the worst errors of the singular values of an orthogonalised gradient of our GPT.

A map costs the same for any batch, so its share falls as the batch grows: 1,024 tokens are few, and what two cores can take. On a machine
that others use too, `taskset -c 0` and `--cpu-time` compare the processor's time on one core.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import peers
from existing_networks import muon_axes
from optax.contrib import MuonDimensionNumbers
from optax.contrib import _muon as muon_of_optax
from stock_networks import Language
from training_step import continued

BATCH, CONTEXT, BLOCKS, HEADS, CHARACTERS = 8, 128, 4, 4, 128
#: Learning rates at which the losses fall.
RATES = {"Adam": 1e-3, "normalize": 0.3, "dualize": 0.1, "muon": 0.01}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--cpu-time", action="store_true", help="measure the time that the process has had on all cores together")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    clock = time.process_time if args.cpu_time else time.perf_counter
    record = {"machine": peers.machine() | {"date": time.strftime("%Y-%m-%d"), "clock": clock.__name__}, "steps": {}}
    print(json.dumps(record["machine"]))
    for network in args.networks:
        for width in args.widths:
            record["steps"][f"{network} {width}"] = compare(network, width, args.rounds, clock)
            if args.out:
                args.out.write_text(json.dumps(record, indent=1) + "\n")


def gpt(width):
    """Our GPT: what `scale_by_modular_norm` takes, weights, a function of (weights, tokens) to logits, and Muon's axes."""
    m = mr.GPT(CHARACTERS, CONTEXT, HEADS, width, width // HEADS, width // HEADS, BLOCKS)
    axes = [MuonDimensionNumbers((2,), (1,)) if len(leaf.shape) == 3 else None for leaf in m.leaves]
    return m, m.initialize(jax.random.key(0)), lambda w, ids: m(ids, w), axes


def flax(width):
    """The stock transformer, likewise."""
    model = Language(width, BLOCKS, CHARACTERS, CONTEXT)
    ids = jnp.zeros((BATCH, CONTEXT), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids)
    net = mr.trace(model.apply, params, ids)
    return net, params, model.apply, muon_axes(net, params)


NETWORKS = {"gpt": gpt, "flax": flax}


def optimizers(norm, axes):
    """Pairs of optimizers, with a map and with the identity in its place."""
    momentum = partial(optax.trace, 0.95, nesterov=True)
    muon = optax.contrib.muon(RATES["muon"], muon_weight_dimension_numbers=axes)
    adam = optax.adam(RATES["Adam"])
    normed = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(norm), optax.scale(-RATES["normalize"]))
    dualized = optax.chain(momentum(), mr.optax.scale_by_modular_norm(norm, "dualize"), optax.scale(-RATES["dualize"]))
    return {
        "normalize": (normed, adam),
        "dualize": (dualized, optax.chain(momentum(), optax.scale(-RATES["Adam"]))),
        "muon": (muon, without_orthogonalisation(muon)),
    }


def without_orthogonalisation(muon):
    """Muon with the identity in place of its Newton-Schulz steps."""

    def update(updates, state, params):
        with mock.patch.object(muon_of_optax, "orthogonalize_via_newton_schulz", lambda x, *_: x):
            return muon.update(updates, state, params)

    return optax.GradientTransformation(muon.init, update)


def compare(network, width, rounds, clock):
    norm, weights, apply, axes = NETWORKS[network](width)
    batches = text()
    pairs = {name: [run(optimizer, weights, apply, batches) for optimizer in pair] for name, pair in optimizers(norm, axes).items()}
    times = {name: ([], []) for name in pairs}
    for turn in range(rounds):
        names = list(pairs)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            for which in (0, 1) if turn % 2 else (1, 0):
                times[name][which].append(timed(pairs[name][which], clock))
    rows = {name: shares(*map(np.array, found)) for name, found in times.items()}
    show(f"{network}, width {width}", rows)
    if network == "gpt":
        rows["worst error"] = errors(norm, weights, apply, batches)
    return rows


def text():
    """Batches of characters, and the next characters: (batches, sequences, characters)."""
    pages = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
    tokens = np.frombuffer("".join(page.read_text() for page in pages).encode("ascii", "ignore"), np.uint8)
    starts = np.random.default_rng(0).integers(0, len(tokens) - CONTEXT - 1, (32, BATCH, 1))
    return jnp.asarray(tokens[starts + np.arange(CONTEXT + 1)], jnp.int32)


def loss(weights, apply, batch):
    return optax.softmax_cross_entropy_with_integer_labels(apply(weights, batch[:, :-1]), batch[:, 1:]).mean()


def run(optimizer, weights, apply, batches):
    """A call of one compiled step, each of which continues from the last and takes the next batch."""

    def step(carried, batches):
        weights, state, count = carried
        gradient = jax.grad(loss)(weights, apply, batches[count % len(batches)])
        update, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, update), state, count + 1

    return continued(step, (weights, optimizer.init(weights), jnp.zeros((), jnp.int32)), batches)


def timed(call, clock, least=0.1):
    """Mean seconds a call, over at least one call and `least` seconds."""
    calls, begin = 0, clock()
    while calls == 0 or clock() - begin < least:
        jax.block_until_ready(call())
        calls += 1
    return (clock() - begin) / calls


def shares(mapped, plain):
    """Of seconds with and without the map: medians in milliseconds, quartiles of the map's time and share, and its share of least times."""
    return {
        "ms": 1e3 * float(np.median(mapped)),
        "ms without": 1e3 * float(np.median(plain)),
        "map ms": quartiles(1e3 * (mapped - plain)),
        "share": quartiles(1 - plain / mapped),
        "share of least times": 1 - float(plain.min() / mapped.min()),
        "least ms": [1e3 * float(mapped.min()), 1e3 * float(plain.min())],
    }


def quartiles(values):
    return [float(np.quantile(values, share)) for share in (0.25, 0.5, 0.75)]


def show(title, rows):
    print(f"\n{title}\n{'ms':12s}{'step':>10s}{'without':>10s}{'map (quartiles)':>26s}{'share (quartiles)':>26s}{'of least times':>16s}")
    for name, row in rows.items():
        (low, middle, high), (first, share, third) = row["map ms"], (100 * share for share in row["share"])
        spread = f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>26s}{f'{share:.1f} % ({first:.1f} to {third:.1f})':>26s}"
        print(f"{name:12s}{row['ms']:10.1f}{row['ms without']:10.1f}{spread}{100 * row['share of least times']:14.1f} %", flush=True)


def errors(m, weights, apply, batches):
    """The worst error of singular values above a thousandth of the largest, of the first gradient dualized and by Muon's steps."""
    gradient = [np.asarray(g) for g in jax.grad(loss)(weights, apply, batches[0])]
    coefficients = jnp.asarray(muon_of_optax._DEFAULT_NS_COEFFS)
    steps = jax.jit(lambda x: muon_of_optax.orthogonalize_via_newton_schulz(x, coefficients))
    made = {
        "dualize": peers.unscaled(m, m.dualize(gradient)),
        "muon": [steps(x) if spectral else x for x, spectral in zip(peers.unstacked(m, gradient), peers.is_matrix(m), strict=True)],
    }
    judges = list(peers.checks(m, gradient, "dualize"))
    worst = {name: max(float(judge(np.asarray(x))) for judge, x in zip(judges, out, strict=True)) for name, out in made.items()}
    print("worst error of singular values: " + ", ".join(f"{name} {error:.2g}" for name, error in worst.items()), flush=True)
    return worst


if __name__ == "__main__":
    main()
