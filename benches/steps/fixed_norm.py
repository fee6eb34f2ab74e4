"""Decay, weights at a fixed norm and a second moment after orthogonalising, at equal steps and at equal time, over three widths.

    python benches/steps/fixed_norm.py --text shakespeare.txt --out docs/evidence/fixed-norm/table.csv

Every method is tuned on a factor-2 grid of rates with linear decay. Then each runs at its best rate of the smallest width, with as many
steps as take the processor time of normed Adam's steps ("equal time").
"""

import argparse

import automatic
import loops
import modula_rs as mr
import numpy as np

STEPS = {"resmlp": 100, "gpt": 100}
SEEDS = {"resmlp": 2, "gpt": 1}
DECAY = 0.1


def with_weights(base, after=None, decay=0.0, cautious=False):
    """A tuned method whose update gets decay, and whose weights are mapped after each step."""

    def method(module, w, rate, steps):
        update = base(module)

        def step(t, g, w):
            u = update(g)
            u = mr.optim.add_modular_decay(module, u, w, decay, cautious=cautious) if decay else u
            moved = automatic.moved(w, rate * (1 - t / steps), u)
            return after(module)(moved) if after else moved

        return step, lambda w: w

    return method


def rows(module):
    """Dualized SGD with a second moment of rows."""
    update, memory = automatic.dualized_sgd(module), [None]

    def scaled(g):
        memory[0] = memory[0] or mr.optim.row_moments_init(module, g)
        made, memory[0] = mr.optim.row_moments(module, update(g), memory[0])
        return made

    return scaled


def adamw(module, w, rate, steps):
    """Adam without the modular norm, and decoupled decay of the usual strength 0.1."""
    memory = [mr.optim.adam_init(w)]

    def step(t, g, w):
        update, memory[0] = mr.optim.adam(g, memory[0])
        size = np.float32(rate * (1 - t / steps))
        return [a - size * (u + np.float32(DECAY) * a) for a, u in zip(w, update, strict=True)]

    return step, lambda w: w


def radius(module):
    return module.radius


def all_but_the_head(module):
    """The radius of every array but the last, which bounds the logits: at norm 1 a ResMLP cannot be sure of any class."""
    return lambda w: [*module.radius(w)[:-1], w[-1]]


METHODS = {
    "normed adam": with_weights(automatic.normed_adam),
    "dualized sgd": with_weights(automatic.dualized_sgd),
    "adamw": adamw,
    "normed adam, fixed norm": with_weights(automatic.normed_adam, radius),
    "dualized sgd, fixed norm": with_weights(automatic.dualized_sgd, radius),
    "normed adam, fixed norm, free head": with_weights(automatic.normed_adam, all_but_the_head),
    "dualized sgd, fixed norm, free head": with_weights(automatic.dualized_sgd, all_but_the_head),
    "normed adam, decay": with_weights(automatic.normed_adam, decay=DECAY),
    "normed adam, cautious decay": with_weights(automatic.normed_adam, decay=DECAY, cautious=True),
    "dualized sgd, row moments": with_weights(rows),
}


def grid(method):
    low, high = (-9, 1) if method == "adamw" else (-4, 0) if method.startswith("dualized") else (-5, 2)
    return [2.0**e for e in range(low, high + 1)]


def tuning(nets):
    for seed in range(max(SEEDS.values())):
        for name, steps in STEPS.items():
            if name in nets and seed < SEEDS[name]:
                for width in nets[name].widths:
                    yield from ((name, width, nets[name].blocks, method, rate, seed, steps) for method in METHODS for rate in grid(method))


def equal_time(found, nets):
    """The runs at the rate tuned on the smallest width, with as many steps as normed Adam has time for."""
    for name, steps in STEPS.items():
        for width in nets[name].widths if name in nets else ():
            seconds = {m: [r.seconds for r in found if (r.network, r.width, r.method, r.steps) == (name, width, m, steps)] for m in METHODS}
            for method in METHODS:
                best = loops.best(found, network=name, width=nets[name].widths[0], method=method, steps=steps)
                if best and seconds[method] and seconds["normed adam"]:
                    count = round(steps * float(np.median(seconds["normed adam"]) / np.median(seconds[method])))
                    if count != steps:
                        yield from ((name, width, nets[name].blocks, method, best[0], 100 + seed, count) for seed in range(SEEDS[name]))


def report(found, nets):
    lines = ["| network, method | " + " | ".join(f"{place} width" for place in ("small", "middle", "large")) + " | drift | time |"]
    lines.append("|---" * 6 + "|")
    for name, steps in STEPS.items():
        for method in METHODS:
            own = [row for row in found if (row.network, row.method) == (name, method)]
            widths = sorted({row.width for row in own if row.steps == steps})
            best = [loops.best(own, width=width, steps=steps) for width in widths]
            if not best:
                continue
            rates = [np.log2(each[0]) for each in best]
            timed = {row.width: [] for row in own}
            for row in own:
                if row.seed >= 100:
                    timed[row.width].append(row.train_loss)
            cells = [
                loops.cell(each) + (f" ({np.mean(timed[width]):.3f})" if timed[width] else "")
                for each, width in zip(best, widths, strict=True)
            ]
            ratio = [
                np.median([row.seconds for row in own if row.steps == steps and row.width == width])
                / np.median([r.seconds for r in found if (r.network, r.method, r.steps, r.width) == (name, "normed adam", steps, width)])
                for width in widths
            ]
            spread = f"{min(ratio):.2f} to {max(ratio):.2f}"
            lines.append(f"| {name}, {method} | " + " | ".join(cells) + f" | {max(rates) - min(rates):g} | {spread} |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a text file for the GPT")
    parser.add_argument("--out", required=True, help="the CSV file of finished runs, which is continued")
    parser.add_argument("--only-print", action="store_true", help="print the table of the runs that are there")
    args = parser.parse_args(argv)
    nets = loops.networks(args.text)
    found = loops.read(args.out)
    if not args.only_print:
        found = loops.compare(args.out, tuning(nets), METHODS, nets)
        found = loops.compare(args.out, equal_time(found, nets), METHODS, nets)
    print(report(found, nets))


if __name__ == "__main__":
    main()
