"""``modula-rs train``: one network, with checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from modula_rs.arguments import fraction, rate, seed, whole
from modula_rs.cli.networks import add_network, builder
from modula_rs.cli.output import as_json
from modula_rs.cli.usage import Usage, require

HELP = "train one network, with checkpoints"
EXAMPLES = """
    modula-rs train --arch resmlp --data digits --width 64 --depth 4 --rate 2^-1 --out run
    modula-rs train --arch resmlp --data digits --width 64 --depth 4 --rate 2^-1 --out run --resume
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    add_network(parser)
    parser.add_argument("--width", type=whole, required=True, metavar="N")
    parser.add_argument("--depth", type=whole, required=True, metavar="N", help="number of blocks")
    parser.add_argument("--mass", type=fraction, metavar="M", help="mass of all blocks together")
    parser.add_argument(
        "--optimizer", default="normed-adam", metavar="NAME", help="normed-adam, normed-sgd, dualized-sgd, adam or sgd (%(default)s)"
    )
    parser.add_argument("--rate", type=rate, default=[0.25], metavar="R", help="learning rate, like 0.25 or 2^-3 (0.25)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights and data order (%(default)s)")
    parser.add_argument("--every", type=whole, default=100, metavar="N", help="steps between checkpoints (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for checkpoint.safetensors and log.csv")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each measurement, for scripts")
    parser.set_defaults(command=_run, keeps=True)


def _run(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", *(["sklearn"] if options.data == "digits" else []))
    require("test", "safetensors")
    from modula_rs import data, transfer
    from modula_rs.transfer import single

    if options.optimizer not in transfer.OPTIMIZERS:
        raise Usage(f"--optimizer is one of {', '.join(transfer.OPTIMIZERS)}, got {options.optimizer!r}")
    if len(options.rate) != 1:
        raise Usage("--rate is one learning rate, like 0.25 or 2^-3; a range is for sweep")
    dataset = data.load(options.data, options.context)
    size = transfer.Size(options.width, options.depth, options.mass)
    module = transfer.network(builder(options, dataset)(size), dataset, options.batch_size, options.mass)

    def report(entry: single.Entry) -> None:
        if options.json:
            print(as_json(entry), flush=True)
            return
        losses = f"train loss {entry.train_loss:.4f}, test loss {entry.test_loss:.4f}"
        print(f"step {entry.step}/{options.steps}: {losses}, {transfer.duration(entry.seconds)}", flush=True)

    single.train(
        module,
        dataset,
        (options.optimizer, transfer.OPTIMIZERS[options.optimizer]),
        options.rate[0],
        options.out,
        recipe=transfer.Recipe(steps=options.steps, batch_size=options.batch_size),
        seed=options.seed,
        every=options.every,
        resume=options.resume,
        report=report,
        start=options.start,
    )
