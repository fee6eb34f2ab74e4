"""Steps without a learning rate against tuned rates: three networks, three sizes.

    python benches/steps/automatic.py --text shakespeare.txt --images cifar8.npz --out docs/evidence/automatic/table.csv

The tuned optimizers are normed Adam and dualized SGD with linear decay, at every rate of a factor-2 grid. Prodigy gives the size of the
same updates with the same decay. DoG gives the size of dualized gradients without momentum, with the same decay. Schedule-free training
has no decay, and takes its sizes from Prodigy or DoG. Nothing but the first two is tuned: the first step has size 0.1 everywhere.
"""

import argparse

import loops
import modula_rs as mr
import numpy as np

GRIDS = {
    ("normed adam", "resmlp"): range(-4, 2),
    ("normed adam", "gpt"): range(-3, 2),
    ("normed adam", "rescnn"): range(-4, 3),
    ("dualized sgd", "resmlp"): range(-5, 1),
    ("dualized sgd", "gpt"): range(-4, 1),
    ("dualized sgd", "rescnn"): range(-7, 2),
}
SEEDS = {"resmlp": 4, "gpt": 2, "rescnn": 2}


def normed_adam(module, beta1=0.9):
    """A function from a gradient to an update of norm 1."""
    memory = {"state": None, "vectors": None}

    def update(g):
        memory["state"] = memory["state"] or mr.optim.adam_init(g)
        made, memory["state"] = mr.optim.adam(g, memory["state"], beta1=beta1)
        made, memory["vectors"] = module.normalize(made, vectors=memory["vectors"])
        return made

    return update


def dualized_sgd(module, momentum=0.95):
    """A function from a gradient to a dualized update, of the average of gradients if there is momentum."""
    memory = {"state": None}

    def update(g):
        if momentum:
            memory["state"] = memory["state"] or mr.optim.sgd_init(g)
            g, memory["state"] = mr.optim.sgd(g, memory["state"], momentum, nesterov=True)
        return module.dualize(g)

    return update


def moved(w, size, update):
    return [a - np.float32(size) * u for a, u in zip(w, update, strict=True)]


def tuned(base):
    def method(module, w, rate, steps):
        update = base(module)
        return lambda t, g, w: moved(w, rate * (1 - t / steps), update(g)), lambda w: w

    return method


def automatic(base, init, sizes):
    """The method whose step size comes from these two functions; `rate` is the size of the first step."""

    def method(module, w, rate, steps):
        update, memory = base(module), [init(module, w, rate)]

        def step(t, g, w):
            size, memory[0] = sizes(module, g, w, memory[0])
            return moved(w, size * (1 - t / steps), update(g))

        return step, lambda w: w

    return method


def schedule_free(base, init, sizes):
    """The same without a schedule. Sizes come from the distance of the fast weights."""

    def method(module, w, rate, steps):
        update, memory = base(module), [init(module, w, rate), mr.optim.schedule_free_init(w)]

        def step(t, g, w):
            size, memory[0] = sizes(module, g, memory[1].fast, memory[0])
            at, memory[1] = mr.optim.schedule_free([np.float32(size) * u for u in update(g)], memory[1], 1.0)
            return at

        return step, lambda w: memory[1].average

    return method


def plain(module):
    return dualized_sgd(module, 0.0)


def without_momentum(module):
    return normed_adam(module, beta1=0.0)


DOG, PRODIGY = (mr.optim.dog_init, mr.optim.dog), (mr.optim.prodigy_init, mr.optim.prodigy)
METHODS = {
    "normed adam": tuned(normed_adam),
    "dualized sgd": tuned(dualized_sgd),
    "prodigy, normed adam": automatic(normed_adam, *PRODIGY),
    "prodigy, dualized sgd": automatic(dualized_sgd, *PRODIGY),
    "dog, dualized": automatic(plain, *DOG),
    "schedule-free prodigy, normed": schedule_free(without_momentum, *PRODIGY),
    "schedule-free dog, normed": schedule_free(without_momentum, *DOG),
    "schedule-free dog, dualized": schedule_free(plain, *DOG),
}


def wanted(nets):
    """Every run, seeds in the outer loop, so that a part of the runs is a smaller table."""
    for seed in range(max(SEEDS.values())):
        for name, net in nets.items():
            if seed >= SEEDS.get(name, 0):
                continue
            for width in net.widths:
                for method in METHODS:
                    rates = [2.0**e for e in GRIDS[method, name]] if (method, name) in GRIDS else [0.1]
                    yield from ((name, width, net.blocks, method, rate, seed, net.steps) for rate in rates)


def table(rows, nets):
    """Losses by network and width; for a method without a rate, in brackets, the loss over the loss of the better tuned optimizer."""
    cells = [(name, width) for name, net in nets.items() if name in SEEDS for width in net.widths]
    lines = ["| method | " + " | ".join(f"{name} {width}" for name, width in cells) + " |", "|---" * (len(cells) + 1) + "|"]
    for method in METHODS:
        line = []
        for name, width in cells:
            found = loops.best(rows, network=name, width=width, method=method)
            if found is None:
                line.append("")
                continue
            rate, loss, edge = found
            tuned_to = [loops.best(rows, network=name, width=width, method=each) for each in ("normed adam", "dualized sgd")]
            own = tuned_to["dualized" in method and "normed" not in method]
            note = f"{loops.show(rate)}{'*' if edge else ''}" if (method, name) in GRIDS else f"{loss / own[1] - 1:+.1%}" if own else ""
            line.append(f"{loss:.3f} ({note})")
        lines.append(f"| {method} | " + " | ".join(line) + " |")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="a text file for the GPT")
    parser.add_argument("--images", help="an .npz of images for the ResCNN")
    parser.add_argument("--out", required=True, help="the CSV file of finished runs, which is continued")
    parser.add_argument("--only-print", action="store_true", help="print the table of the runs that are there")
    args = parser.parse_args(argv)
    nets = loops.networks(args.text, args.images)
    rows = loops.read(args.out) if args.only_print else loops.compare(args.out, wanted(nets), METHODS, nets)
    print(table(rows, nets))


if __name__ == "__main__":
    main()
