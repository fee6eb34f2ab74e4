"""``modula-rs demo``: the main job, on data that comes with scikit-learn."""

from __future__ import annotations

import argparse
from pathlib import Path

from modula_rs.arguments import Items, whole
from modula_rs.cli.usage import require

HELP = "train ResMLPs of many sizes on handwritten digits and draw their learning rate curves"
EXAMPLES = """
    modula-rs demo
    modula-rs demo --widths 16 64 256 --blocks 2 8 --seeds 1 --out quick
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--widths", nargs="+", action=Items, each=whole, metavar="N", help="widths of the networks")
    parser.add_argument("--blocks", nargs="+", action=Items, each=whole, metavar="N", help="numbers of residual blocks")
    parser.add_argument("--seeds", type=whole, metavar="N", help="how many seeds")
    parser.add_argument("--steps", type=whole, metavar="N", help="steps of each run")
    parser.add_argument(
        "--out", type=Path, default=Path("modula-rs-demo"), metavar="DIR", help="folder for demo.csv and demo.png (%(default)s)"
    )
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", "sklearn", "matplotlib", "rich")
    from modula_rs import demo

    given = {name: value for name in ("widths", "blocks", "seeds", "steps") if (value := getattr(options, name)) is not None}
    demo.run(options.out, **given)
