"""Whether the best rate stays over depth, with and without a norm before the head, and over the number of steps, and by which rule.

    python benches/steps/axes.py depth --images cifar8.npz --out docs/evidence/final-norm/depth.csv
    python benches/steps/axes.py steps --text shakespeare.txt --out docs/evidence/steps/table.csv

Every run decays its rate linearly to 0. The rule for the number of steps is `rate = a * steps^-p` with the power p that fits the best rates
(each refined by a parabola through its neighbours in the grid) by least squares in logarithms.
"""

import argparse

import automatic
import loops
import numpy as np

METHODS = {name: automatic.METHODS[name] for name in ("normed adam", "dualized sgd")}
STUDIES = {
    "depth": [
        (name, 128, blocks, method, 2.0**e, seed, 50)
        for seed in range(3)
        for blocks in (2, 4, 16)
        for name in ("resmlp", "resmlp of the paper")
        for method, low in (("normed adam", -3), ("dualized sgd", -4))
        for e in range(low, low + 5)
    ]
    + [
        (name, 16, blocks, "normed adam", 2.0**e, 0, 100)
        for blocks in (2, 4, 8)
        for name in ("rescnn", "rescnn of the paper")
        for e in range(-5, 2)
    ],
    "steps": [
        (name, 32, 4 if name == "resmlp" else 2, method, 2.0**e, seed, steps)
        for seed in range(3)
        for name, counts in (("resmlp", (25, 50, 100, 200, 400)), ("gpt", (50, 100, 200, 400)))
        for steps in counts
        for method, low in (("normed adam", -4), ("dualized sgd", -5))
        for e in range(low, 2)
    ],
}


def refined(means):
    """The minimum of a parabola through the lowest loss and its neighbours, in log2 of the rate."""
    rates = sorted(means)
    at = min(range(len(rates)), key=lambda place: means[rates[place]])
    if not 0 < at < len(rates) - 1:
        return np.log2(rates[at])
    below, here, above = (means[rates[place]] for place in (at - 1, at, at + 1))
    bend = below - 2 * here + above
    return np.log2(rates[at]) + (0.5 * (below - above) / bend if np.isfinite(bend) and bend > 0 else 0.0)


def report(rows, axis):
    """A table of best rates and losses along an axis for every network and method, and for steps the fitted rule."""
    lines = []
    for name in dict.fromkeys(row.network for row in rows):
        for method in METHODS:
            own = [row for row in rows if (row.network, row.method) == (name, method)]
            if not own:
                continue
            values = sorted({getattr(row, axis) for row in own})
            cells = [f"{axis} {value}: {loops.cell(loops.best(own, **{axis: value}))}" for value in values]
            lines.append(f"{name}, {method}: " + "; ".join(cells))
            if axis == "steps" and len(values) > 2:
                best = [refined(loops.at_rates(own, steps=value)) for value in values]
                power, _ = np.polyfit(np.log2(values), best, 1)
                lines.append(f"  best rate falls as steps^{power:.2f} (refined: {', '.join(f'2^{b:.2f}' for b in best)})")
                first = loops.best(own, steps=values[0])[0]
                kept = [losses for value in values if (losses := loops.at_rates(own, steps=value).get(first)) is not None]
                lines.append(f"  at {loops.show(first)}, the best rate of {values[0]} steps: {', '.join(f'{loss:.3f}' for loss in kept)}")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--text", help="a text file for the GPT")
    parser.add_argument("--images", help="an .npz of images for the ResCNN")
    parser.add_argument("--out", required=True, help="the CSV file of finished runs, which is continued")
    parser.add_argument("--only-print", action="store_true", help="print the report of the runs that are there")
    args = parser.parse_args(argv)
    nets = loops.networks(args.text, args.images)
    wanted = [key for key in STUDIES[args.study] if key[0] in nets]
    rows = loops.read(args.out) if args.only_print else loops.compare(args.out, wanted, METHODS, nets)
    print(report(rows, {"depth": "blocks", "steps": "steps"}[args.study]))


if __name__ == "__main__":
    main()
