"""Sweeps of stock Flax networks: optimizers normed through ``mr.trace`` against AdamW and Muon, each tuned at every size.

    python benches/existing_networks.py text-width --data shakespeare.txt --out docs/evidence/flax-text-width
    python benches/existing_networks.py image-width --data cifar8.npz --out docs/evidence/flax-image-width

Nothing in the networks is ours (``stock_networks.py``). Rates decay linearly to zero, for all optimizers alike. An optimizer may be given
options after a colon, the start (``start=output`` or ``start=all``, see ``Network.rescale``) and masses:
``normed-adam:start=all,blocks=2,vectors=1``.

Every finished optimizer and size is on disk at once. The same command continues a sweep that was stopped, and its last lines draw the
pictures. ``--seconds`` measures the time of a step of each optimizer instead, and ``--equal-time seconds.csv`` gives every optimizer as
many steps as fit into the time of AdamW's.
"""

import argparse
import csv
import functools
import itertools
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
from modula_rs import data, tracing, transfer
from modula_rs.transfer.store import FORMAT, Store
from modula_rs.transfer.sweeps import show_rate
from modula_rs.transfer.table import Row, Size, Table
from stock_networks import CONTEXT, Averaged, Images, Language

#: Network, widths, depths, batch size.
STUDIES = {
    "text-width": (Language, (16, 32, 64, 128), (2,), 8),
    "text-depth": (Language, (16,), (2, 4, 8, 16), 8),
    "text-depth-averaged": (Averaged, (16,), (2, 4, 8, 16), 8),
    "image-width": (Images, (8, 16, 32, 64), (2,), 16),
    "image-depth": (Images, (8,), (2, 4, 8), 16),
}
RIVALS = ("normed-adam", "dualized-sgd", "adamw", "muon")
#: Exponents of two of the rates.
RATES = {"normed-adam": (-2, 3), "dualized-sgd": (-3, 2), "adamw": (-10, -4), "muon": (-9, -3)}


class Trial:
    """A network at one size, and its data."""

    def __init__(self, study, size, dataset):
        network, *_, self.batch_size = STUDIES[study]
        #: XLA's convolutions on a CPU are thirty times as fast outside of a compiled loop (Images of width 16).
        self.loops = network is not Images
        self.model = network(size.width, size.depth, dataset.classes)
        self.dataset = dataset
        inputs, _ = dataset.batch(dataset.arrays, np.arange(self.batch_size))
        self.sample = jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)
        self.init = lambda key: self.model.init(key, jnp.zeros(inputs.shape, inputs.dtype))
        self.params = functools.cache(lambda seed: jax.jit(self.init)(jax.random.key(seed)))

    def trace(self, masses=None):
        return mr.trace((self.model.apply, self.init), self.sample, masses=masses)

    def loss(self, params, inputs, targets):
        return transfer.cross_entropy(self.model.apply(params, inputs), targets)


def options(name):
    """The optimizer's kind, its start, and its masses."""
    kind, _, text = name.partition(":")
    given = dict(item.split("=") for item in text.split(",") if item)
    start = given.pop("start", "stock")
    return kind, start, {key: float(value) for key, value in given.items()}


def muon_axes(net, params):
    """Muon's dimension numbers, read off the table: tables, last matrices and vectors are for Adam."""

    def axes(leaf):
        if leaf.kind not in ("Linear", "Conv2D") or leaf.place == "output":
            return None
        letters = [{letter for letter, _ in leaf.layout.axis(axis)} for axis in range(len(leaf.shape))]
        into, out = (tuple(axis for axis, own in enumerate(letters) if letter in own) for letter in "io")
        # A kernel is orthogonalised whole, as in Jordan's images: its taps are contracted too.
        return optax.contrib.MuonDimensionNumbers(into + tuple(a for a, own in enumerate(letters) if "k" in own), out)

    return jax.tree.unflatten(jax.tree.structure(params), [axes(leaf) for leaf in net.leaves])


def optimizer(name, trial):
    """A transformation at learning rate 1."""
    kind, _, masses = options(name)
    net = trial.trace(masses)
    match kind:
        case "normed-adam":
            chain = optax.scale_by_adam(0.9, 0.95), mr.optax.scale_by_modular_norm(net)
        case "dualized-sgd":
            chain = optax.trace(0.95, nesterov=True), mr.optax.scale_by_modular_norm(net, "dualize")
        case "adamw":
            return optax.adamw(1.0, 0.9, 0.95)
        case "muon" | "muon-rms":
            axes = muon_axes(net, trial.params(0))
            rms = 0.2 if kind == "muon-rms" else None
            return optax.contrib.muon(1.0, adam_b2=0.95, muon_weight_dimension_numbers=axes, consistent_rms=rms)
    return optax.chain(*chain, optax.scale(-1.0))


def start(name, trial, seed):
    _, which, _ = options(name)
    params = trial.params(seed)
    return params if which == "stock" else trial.trace().rescale(params, which)


def cut(tree, mine):
    """The lanes of a slice."""
    return jax.tree.map(lambda a: a[mine], tree)


def training(trial, transforms, count):
    """A function of (params, states, arrays, order, rates) that takes ``count`` steps of all lanes, and returns params and states.

    ``transforms``: each optimizer with the number of its lanes, which lie side by side. ``order``: indices of shape (lanes, count, batch).
    ``rates``: of shape (count, lanes). Gradients are taken lane by lane: on a CPU that is 1.3 times as fast as ``vmap`` (transformer of
    width 64).
    """

    def gradient(params, index, arrays):
        return jax.grad(trial.loss)(params, *trial.dataset.batch(arrays, index))

    def update(gradients, params, states, rates):
        made, following, begin = [], [], 0
        for (transform, lanes), before in zip(transforms, states, strict=True):
            mine = slice(begin, begin := begin + lanes)
            updates, after = jax.vmap(transform.update)(cut(gradients, mine), before, cut(params, mine))
            made.append(updates)
            following.append(after)
        updates = jax.tree.map(lambda *own: jnp.concatenate(own), *made)
        return jax.tree.map(lambda w, u: w + rates.reshape(-1, *[1] * (w.ndim - 1)) * u, params, updates), following

    @jax.jit
    def in_one_program(params, states, arrays, order, rates):
        def body(at, state):
            gradients = jax.lax.map(lambda own: gradient(*own, arrays), (state[0], order[:, at]))
            return update(gradients, *state, rates[at])

        return jax.lax.fori_loop(0, count, body, (params, states))

    one, all_lanes = jax.jit(gradient), jax.jit(update)

    def step_by_step(params, states, arrays, order, rates):
        for at in range(count):
            own = [one(cut(params, lane), order[lane, at], arrays) for lane in range(len(order))]
            params, states = all_lanes(jax.tree.map(lambda *lanes: jnp.stack(lanes), *own), params, states, rates[at])
        return params, states

    return in_one_program if trial.loops else step_by_step


def measure(trial, params, arrays, batches):
    """The mean loss of each lane over batches of indices (count, batch)."""

    def loss(own, index, arrays):
        return trial.loss(own, *trial.dataset.batch(arrays, index))

    @jax.jit
    def in_one_program(params, arrays):
        return jax.lax.map(lambda own: jax.lax.map(lambda index: loss(own, index, arrays), batches).mean(), params)

    if trial.loops:
        return in_one_program(params, arrays)
    one, lanes = jax.jit(loss), range(len(jax.tree.leaves(params)[0]))
    return [np.mean([one(cut(params, lane), index, arrays) for index in batches]) for lane in lanes]


def begin(transforms, params):
    """The state of each optimizer for its lanes."""
    states, at = [], 0
    for transform, count in transforms:
        states.append(jax.vmap(transform.init)(cut(params, slice(at, at := at + count))))
    return states


def train(trial, lanes, recipe):
    """The losses (train, test) of lanes (optimizer, rate, seed), sorted by optimizer, all trained in one program."""
    transforms = [(optimizer(name, trial), len(list(own))) for name, own in itertools.groupby(lanes, lambda lane: lane[0])]
    arrays = jax.device_put(trial.dataset.arrays)
    params = jax.tree.map(lambda *own: np.stack(own), *(start(name, trial, seed) for name, _, seed in lanes))
    seeds = sorted({seed for *_, seed in lanes})
    orders = {seed: data.order(trial.dataset.train, seed, range(recipe.steps), recipe.batch_size) for seed in seeds}
    order, rates = np.stack([orders[seed] for *_, seed in lanes]), np.array([rate for _, rate, _ in lanes], np.float32)
    rates = np.asarray(recipe.schedule())[:, None] * rates
    params, _ = training(trial, transforms, recipe.steps)(params, begin(transforms, params), arrays, order, rates)
    parts = recipe.samples(trial.dataset.train, trial.dataset.test)
    losses = [np.asarray(measure(trial, params, arrays, part), np.float64) for part in parts]
    return [tuple(float(loss) if np.isfinite(loss) else float("inf") for loss in own) for own in zip(*losses, strict=True)]


def seconds(trial, names, rounds):
    """The seconds of a step of each optimizer, one lane, in interleaved rounds of ten steps."""
    arrays, programs = jax.device_put(trial.dataset.arrays), {}
    index = jnp.asarray(data.order(trial.dataset.train, 0, range(10), trial.batch_size))[None]
    for name in names:
        transforms = [(optimizer(name, trial), 1)]
        params = jax.tree.map(lambda own: own[None], trial.params(0))
        own = params, begin(transforms, params), arrays, index, np.full((10, 1), 1e-3, np.float32)
        programs[name] = training(trial, transforms, 10), own
    times = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, (program, own) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*own))
            times[name].append((time.perf_counter() - start) / 10)
    return {name: own[1:] for name, own in times.items()}


def load(path):
    dataset = data.load(path, CONTEXT)
    return dataset.with_context(CONTEXT) if isinstance(dataset, data.Text) else dataset


def write_seconds(args, sizes, dataset):
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "seconds.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["optimizer", "width", "depth", "seconds", "over_adamw", "low", "high"])
        for size in sizes:
            times = seconds(Trial(args.study, size, dataset), args.optimizers, args.rounds)
            for name, own in times.items():
                ratios = [a / b for a, b in zip(own, times["adamw"], strict=True)]
                low, middle, high = statistics.quantiles(ratios, n=4)
                writer.writerow([name, size.width, size.depth, f"{statistics.median(own):.5f}", *(f"{r:.3f}" for r in (middle, low, high))])
                print(
                    f"{size}: {name} {1e3 * statistics.median(own):.2f} ms, {middle:.2f} ({low:.2f} to {high:.2f}) of AdamW's", flush=True
                )
            file.flush()


def steps_of(args, name, size):
    """The number of steps: the same for all, or as many as fit into the time of AdamW's."""
    if args.equal_time is None:
        return args.steps
    with open(args.equal_time, newline="") as file:
        ratios = {(row["optimizer"], int(row["width"]), int(row["depth"])): float(row["over_adamw"]) for row in csv.DictReader(file)}
    return round(args.steps / ratios[name, size.width, size.depth])


def sweep(args, sizes, dataset):
    grid = {name: [2.0**e for e in range(low, high + 1)] for name, (low, high) in args.rates.items()}
    settings = {
        "format": FORMAT, "data": dataset.name, "content": data.fingerprint(dataset), "steps": args.steps,
        "time": "equal" if args.equal_time else "free", "batch size": STUDIES[args.study][-1],
        "networks": {str(size): STUDIES[args.study][0].__name__ for size in sizes},
        "optimizers": {name: name for name in grid}, "masses": str(tracing.Masses()),
    }  # fmt: skip
    store = Store(args.out, settings)
    for size in sizes:
        lanes = [(name, rate, seed) for name, own in grid.items() for rate in own for seed in range(args.seeds)]
        lanes = [(name, rate, seed) for name, rate, seed in lanes if (name, size, rate, seed) not in store.keys]
        if not lanes:
            continue
        started = time.perf_counter()
        # Optimizers with equal numbers of steps are trained together.
        for steps in sorted({steps_of(args, name, size) for name, *_ in lanes}):
            own = [lane for lane in lanes if steps_of(args, lane[0], size) == steps]
            losses = train(Trial(args.study, size, dataset), own, transfer.Recipe(steps, STUDIES[args.study][-1]))
            store.add(Row(name, *size, rate, seed, *loss) for (name, rate, seed), loss in zip(own, losses, strict=True))
        for found in transfer.best(Table(store.rows).where(size=size)):
            print(f"{size}: {found.optimizer} {found.loss:.3f} at {show_rate(found.rate)}{'*' * found.at_edge}")
        print(f"{size}: {time.perf_counter() - started:.0f} s", flush=True)
        jax.clear_caches()
    Table(sorted(store.rows)).to_csv(args.out / "table.csv")
    order = list(grid)
    table = Table(sorted((row for row in store.rows if row.optimizer in grid), key=lambda row: (order.index(row.optimizer), row)))
    (args.out / "report.txt").write_text(transfer.report(table) + "\n")
    transfer.plot_curves(table, args.out / "curves.png")
    transfer.plot_sizes(table, args.out / "sizes.png")
    print(transfer.report(table))


def rates_of(text):
    name, _, span = text.rpartition("@")
    low, _, high = span.partition("..")
    return name, (int(low), int(high))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", required=True, help="a .txt for the text studies, an .npz of images for the image studies")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--depths", type=int, nargs="+")
    parser.add_argument("--optimizers", nargs="+", default=list(RIVALS))
    parser.add_argument("--rates", nargs="+", type=rates_of, default=[], metavar="NAME@LOW..HIGH", help="exponents of two: adamw@-9..-4")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", action="store_true", help="measure times instead of losses")
    parser.add_argument("--rounds", type=int, default=15, help="the rounds of --seconds")
    parser.add_argument("--equal-time", type=Path, metavar="CSV", help="what --seconds wrote")
    args = parser.parse_args()
    args.rates = {name: dict(args.rates).get(name, RATES.get(name.partition(":")[0], RATES["muon"])) for name in args.optimizers}
    _, widths, depths, _ = STUDIES[args.study]
    sizes = [Size(*size) for size in itertools.product(args.widths or widths, args.depths or depths)]
    dataset = load(args.data)
    write_seconds(args, sizes, dataset) if args.seconds else sweep(args, sizes, dataset)


if __name__ == "__main__":
    main()
