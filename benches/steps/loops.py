"""Training loops in NumPy on three small networks, to compare optimizers: what `automatic.py` and `fixed_norm.py` share.

A run trains one network from one seed by one method at one rate. Its row goes to a CSV file as soon as it ends, and runs that the file
holds are skipped, so a comparison may be stopped and continued. `seconds` is the processor time of the steps, without measuring.
"""

import csv
import time
from collections import namedtuple
from functools import cache, partial
from pathlib import Path

import modula_rs as mr
import numpy as np
from modula_rs import data, transfer

FIELDS = ("network", "width", "blocks", "method", "rate", "seed", "steps", "train_loss", "test_loss", "seconds")
Row = namedtuple("Row", FIELDS)
Network = namedtuple("Network", "build data widths blocks batch steps")


def networks(text=None, images=None):
    """The networks by name: a residual perceptron on digits, a GPT on characters, a residual convolutional network on small images."""
    digits = cache(data.digits)
    found = {
        "resmlp": Network(partial(resmlp, True), digits, (16, 32, 64), 4, 32, 100),
        "resmlp of the paper": Network(partial(resmlp, False), digits, (16, 32, 64), 4, 32, 100),
    }
    if text:
        found["gpt"] = Network(gpt, cache(lambda: data.load(text, 32)), (16, 32, 64), 2, 4, 200)
    if images:
        pictures = cache(lambda: data.load(images))
        found["rescnn"] = Network(partial(rescnn, True), pictures, (8, 16, 32), 2, 16, 100)
        found["rescnn of the paper"] = Network(partial(rescnn, False), pictures, (8, 16, 32), 2, 16, 100)
    return found


def resmlp(final_norm, width, blocks, dataset):
    return mr.ResMLP(width, blocks, 1, dataset.features, dataset.classes, final_norm=final_norm)


def gpt(width, blocks, dataset):
    return mr.GPT(dataset.classes, dataset.context, 4, width, width // 4, width // 4, blocks)


def rescnn(final_norm, width, blocks, dataset):
    return mr.ResCNN(width, blocks, 1, dataset.inputs.shape[-1], dataset.classes, final_norm=final_norm)


def loss_of(logits, labels):
    """The mean cross-entropy in nats, and its gradient."""
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    log = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    share = np.exp(log)
    picked = np.take_along_axis(log, labels[..., None], -1)
    np.put_along_axis(share, labels[..., None], np.take_along_axis(share, labels[..., None], -1) - 1, -1)
    return -float(picked.mean()), (share / picked.size).astype(np.float32)


def run(network, width, blocks, method, rate, seed, steps):
    """(train loss, test loss, seconds) of one run. `method(module, w, rate, steps)` returns a step and a function that gives the result.

    `step(t, g, w)` gets the step's number, the gradient and the weights at which it was taken, and returns the next weights.
    """
    dataset = network.data()
    module = network.build(width, blocks, dataset)
    w = module.initialize(seed)
    step, result = method(module, w, rate, steps)
    seconds = 0.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for t, index in enumerate(data.order(dataset.train, seed, range(steps), network.batch)):
            x, y = dataset.batch(dataset.arrays, index)
            begun = time.process_time()
            logits, pullback = module.vjp(x, w)
            gradient = pullback(loss_of(logits, y)[1])[1]
            if not all(np.isfinite(g).all() for g in gradient):
                return float("inf"), float("inf"), seconds
            w = step(t, gradient, w)
            seconds += time.process_time() - begun
        final = result(w)
        recipe = transfer.Recipe(steps=steps, batch_size=network.batch)
        losses = []
        for batches in recipe.samples(dataset.train, dataset.test):
            pairs = [dataset.batch(dataset.arrays, index) for index in batches]
            losses.append(float(np.mean([loss_of(module(x, final), y)[0] for x, y in pairs])))
    return (*(loss if np.isfinite(loss) else float("inf") for loss in losses), seconds)


def compare(out, wanted, methods, nets):
    """Makes every run of `wanted` that the file lacks, and returns all rows of the file. A run is the first seven fields of a row."""
    rows = read(out)
    known = {row[:7] for row in rows}
    for key in wanted:
        if key in known:
            continue
        name, width, blocks, method, rate, seed, steps = key
        rows.append(Row(*key, *run(nets[name], width, blocks, methods[method], rate, seed, steps)))
        known.add(key)
        fresh = not Path(out).exists()
        with Path(out).open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if fresh:
                writer.writerow(FIELDS)
            writer.writerow([*key, *(f"{value:.6g}" for value in rows[-1][7:])])
    return rows


def read(out):
    """The rows of a file, or none if there is no file."""
    if not Path(out).exists():
        return []
    with Path(out).open(newline="") as file:
        kinds = (str, int, int, str, float, int, int, float, float, float)
        return [Row(*(kind(row[field]) for kind, field in zip(kinds, FIELDS, strict=True))) for row in csv.DictReader(file)]


def best(rows, metric="train_loss", **chosen):
    """(rate, mean loss over seeds, whether the rate is at an edge) at the rate of the lowest mean, for rows with these fields, or None."""
    means = at_rates(rows, metric, **chosen)
    if not means:
        return None
    rate = min(means, key=means.get)
    return rate, means[rate], len(means) > 1 and rate in (min(means), max(means))


def at_rates(rows, metric="train_loss", **chosen):
    """The mean loss over seeds at every rate, for rows with these fields."""
    found = {}
    for row in rows:
        if all(getattr(row, field) == value for field, value in chosen.items()):
            found.setdefault(row.rate, []).append(getattr(row, metric))
    return {rate: float(np.mean(losses)) for rate, losses in sorted(found.items())}


def cell(found):
    """A best rate and its loss, for a table; a star marks an edge of the grid."""
    return "" if found is None else f"{show(found[0])}{'*' if found[2] else ''} {found[1]:.3f}"


def show(rate):
    return transfer.show_rate(rate)
