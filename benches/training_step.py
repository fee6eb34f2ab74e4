"""The cost of normalising an update in a compiled step of Adam: ours against a plain power step in `jax.numpy`.

    python benches/training_step.py [--models 128x4 256x8 768x2] [--rounds 12] [--out step.json]

The weights have the shapes of those in `peers.py`. There is no network: a gradient is Gaussian noise plus a hundredth of the weights.
Weights and state are donated, so that XLA works in place, as training loops should. Steps run one by one ("single"), and ten in one
`lax.scan`. "Added" is a step's time minus the time of Adam alone in the same round. The program prints medians over rounds, and the median
and range of "added" over ours. The plain power step follows one singular vector of each matrix, ours follows four: benches/README.md shows
what the other three gain.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import peers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(peers.MODELS), default=["128x4", "256x8", "768x2"])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = parser.parse_args(argv)
    record = {"machine": peers.machine(), "models": {name: compare(name, args.rounds) for name in args.models}}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def compare(name, rounds):
    width, blocks, heads = peers.MODELS[name]
    m = mr.GPT(65, 64, heads, width, width // heads, width // heads, blocks)
    weights = m.initialize(jax.random.key(0))
    matrices = [jnp.asarray(x) for x in peers.unstacked(m, weights)]
    contenders = {
        "Adam alone": (optax.identity(), weights),
        "modula_rs": (mr.optax.scale_by_modular_norm(m), weights),
        "power step, stacked": (power_steps([leaf.kind != "Embed" for leaf in m.leaves]), weights),
        "power step, one by one": (power_steps(peers.is_matrix(m)), matrices),
    }
    runs = {(mode, key): run(*contender, mode) for mode in ("single", "scan of ten") for key, contender in contenders.items()}
    seconds = {key: [] for key in runs}
    for turn in range(rounds):
        order = list(runs)
        for key in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[key].append(peers.timed(runs[key], 0.1) / (1 if key[0] == "single" else 10))
    return {
        mode: show(f"{name}, {mode}", {key: np.array(s) for (m, key), s in seconds.items() if m == mode})
        for mode in ("single", "scan of ten")
    }


def power_steps(which):
    """The normalisation as an optax transformation: a power step for matrices, RMS 1 for the rows of all other arrays."""

    def init(arrays):
        return [jnp.ones((*x.shape[:-2], x.shape[-1]), x.dtype) if matrix else None for x, matrix in zip(arrays, which, strict=True)]

    def update(arrays, vectors, _=None):
        pairs = [(peers.rows(x), None) if u is None else peers.power_step(x, u) for x, u in zip(arrays, vectors, strict=True)]
        return [x for x, _ in pairs], [u for _, u in pairs]

    return optax.GradientTransformation(init, update)


def run(normalization, weights, mode):
    """One compiled call after the other, each continuing from the last."""
    optimizer = optax.chain(optax.scale_by_adam(), normalization, optax.scale(-0.1))
    noise = [jax.random.normal(jax.random.key(i), x.shape, x.dtype) for i, x in enumerate(weights)]

    def step(carried, noise):
        weights, state = carried
        gradient = jax.tree.map(lambda a, b: a + b / 100, noise, weights)
        update, state = optimizer.update(gradient, state, weights)
        return optax.apply_updates(weights, update), state

    def ten(carried, noise):
        return jax.lax.scan(lambda carried, _: (step(carried, noise), None), carried, length=10)[0]

    return continued(step if mode == "single" else ten, (weights, optimizer.init(weights)), noise)


def continued(step, carried, noise):
    """A call of a compiled step (carried, noise) -> carried, each of which continues from the last in the memory of the last."""
    compiled = jax.jit(step, donate_argnums=0)
    carried = jax.tree.map(jnp.copy, carried)

    def call():
        nonlocal carried
        carried = compiled(carried, noise)
        return carried

    for _ in range(3):  # compile, warm up
        jax.block_until_ready(call())
    return call


def show(title, seconds):
    alone, ours = seconds["Adam alone"], seconds["modula_rs"] - seconds["Adam alone"]
    rows = {}
    print(f"\n{title}\n{'':26s}{'ms a step':>11s}{'added':>9s}{'added over ours (range)':>28s}")
    for key, found in seconds.items():
        added = found - alone
        rows[key] = {"ms": 1e3 * np.median(found), "added ms": 1e3 * np.median(added), "added over ours": peers.spread(added / ours)}
        least, middle, most = rows[key]["added over ours"]
        print(f"{key:26s}{rows[key]['ms']:11.2f}{rows[key]['added ms']:9.2f}{f'{middle:.2f} ({least:.2f} to {most:.2f})':>28s}", flush=True)
    return rows


if __name__ == "__main__":
    main()
