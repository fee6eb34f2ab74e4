"""``modula-rs sweep``: learning rates and sizes of a network on one's own data."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from modula_rs.arguments import Items, fraction, named_rates, whole
from modula_rs.cli.networks import add_network, builder
from modula_rs.cli.output import as_json
from modula_rs.cli.usage import Usage, require

HELP = "sweep learning rates and sizes of a network on your data"
EXAMPLES = """
    modula-rs sweep --arch resmlp --data digits --widths 16 32 64 --depths 2 4 --seeds 3 --steps 100 --out sweep
    modula-rs sweep --arch gpt --data text.txt --widths 32 64 --depths 2 --rates 2^-2..2^1 adam=2^-9..2^-4 --out gpt
    modula-rs sweep --network model.py:build --data digits --widths 32 128 --out mine --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_network(parser)
    parser.add_argument("--widths", nargs="+", action=Items, each=whole, required=True, metavar="N")
    parser.add_argument("--depths", nargs="+", action=Items, each=whole, metavar="N", help="numbers of blocks")
    parser.add_argument("--masses", nargs="+", action=Items, each=fraction, metavar="M", help="masses of all blocks together")
    parser.add_argument("--contexts", nargs="+", action=Items, each=whole, metavar="N", help="lengths of the windows of text")
    parser.add_argument(
        "--optimizers", nargs="+", action=Items, each=str, default=["normed-adam", "normed-sgd", "adam"], metavar="NAME",
        help="of normed-adam, normed-sgd, dualized-sgd, adam, sgd",
    )  # fmt: skip
    parser.add_argument(
        "--rates", nargs="+", action=Items, each=named_rates, metavar="R",
        help="learning rates, like 0.25, 2^-3, or 2^-5..2^2 (by factors of 2); adam=2^-9..2^-4 for one optimizer alone; "
        "each has a range of its own otherwise",
    )  # fmt: skip
    parser.add_argument("--seeds", type=whole, default=1, metavar="N", help="how many seeds (%(default)s)")
    parser.add_argument("--metric", choices=("train", "test"), default="train", help="the loss to report and draw (%(default)s)")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for points, tables and pictures; finished points are skipped"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(command=_run, keeps=True)


def _run(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", "matplotlib", *(["sklearn"] if options.data == "digits" else []))
    from modula_rs import data, transfer
    from modula_rs.files import write_whole

    if options.depths is None and options.arch is not None:
        raise Usage("the following arguments are required: --depths (see modula-rs sweep --help)")
    dataset = data.load(options.data, options.context)
    table = transfer.sweep(
        builder(options, dataset),
        dataset,
        widths=options.widths,
        depths=options.depths or [1],
        masses=options.masses or (None,),
        contexts=options.contexts or (None,),
        optimizers=options.optimizers,
        rates=_rates(options.rates or [], options.optimizers),
        seeds=options.seeds,
        start=options.start,
        recipe=transfer.Recipe(steps=options.steps, batch_size=options.batch_size),
        out=options.out,
        progress=True,
    )
    metric = f"{options.metric}_loss"
    table.to_csv(options.out / "table.csv")
    if importlib.util.find_spec("pyarrow"):
        table.to_parquet(options.out / "table.parquet")
    title = f"{options.arch or options.network.rpartition(':')[2]} on {dataset.name}, {options.steps} steps"
    transfer.plot_curves(table, options.out / "curves.png", metric=metric, title=title)
    transfer.plot_sizes(table, options.out / "sizes.png", metric=metric, title=title)
    text = transfer.report(table, metric)
    write_whole(options.out / "report.txt", (text + "\n").encode("utf-8", "surrogatepass"))
    if options.json:
        found = {"metric": metric, "runs": len(table), "best": transfer.best(table, metric), "drift": transfer.drift(table, metric)}
        print(as_json(found, indent=2))
        return
    print(text)
    print(f"\nWrote table.csv, report.txt, curves.png and sizes.png to {options.out}.")


def _rates(given: Sequence[tuple[str, list[float]]], optimizers: Sequence[str]) -> dict[str, list[float]]:
    """The learning rates of each optimizer: those given under its name, or else those given without a name."""
    found: dict[str, list[float]] = {}
    for name, values in given:
        if name not in ("", *optimizers):
            raise Usage(f"--rates names {name!r}, which is none of the optimizers ({', '.join(optimizers)})")
        found.setdefault(name, []).extend(values)
    return {name: found[key] for name in optimizers if (key := name if name in found else "") in found}
