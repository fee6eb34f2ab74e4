"""The arguments that name a network and its data, for the commands that train one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from modula_rs.arguments import whole
from modula_rs.cli.usage import Usage

NETWORK = "your function, from a size (with width, depth, mass, context) to a network: a traced network, or a model to trace"
_START = "the weights that a traced network starts from: its own initialisation, or norm 1 for every array (%(default)s)"


def builder(options: argparse.Namespace, dataset: Any) -> Callable[[Any], Any]:
    """The function from a size to a network that the arguments name."""
    from modula_rs import transfer

    if options.network is None:
        return transfer.architecture(options.arch, dataset, options.block_depth, options.final_norm)
    return from_file(options.network)


def from_file(name: str) -> Callable[[Any], Any]:
    """The function from a size to a network that ``FILE.py:FUNCTION`` names. It raises Usage if the user's function returns no network."""
    from modula_rs import userfiles
    from modula_rs.checks import shown
    from modula_rs.norm.methods import Normed

    function = userfiles.load_function(name)

    def build(size: Any) -> Any:
        made = userfiles.call(function, size)
        if not (isinstance(made, Normed | tuple) or callable(made) or hasattr(made, "apply")):
            raise Usage(f"{name} must return a Module, a traced network or a model that can be traced, got {shown(made)}")
        return made

    return build


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--arch", metavar="ARCH", help="resmlp, rescnn or gpt")
    which.add_argument("--network", metavar="FILE.py:FUNCTION", help=NETWORK)
    parser.add_argument("--start", choices=("own", "norm"), default="own", help=_START)
    parser.add_argument("--data", required=True, metavar="DATA", help="digits, stdlib (Python's own source), or a file: .txt or .npz")
    parser.add_argument("--block-depth", type=whole, default=2, metavar="N", help="layers in a block of resmlp and rescnn (%(default)s)")
    parser.add_argument(
        "--final-norm", action=argparse.BooleanOptionalAction, default=True,
        help="whether the head of resmlp and rescnn divides its input by the RMS; the paper's do not",
    )  # fmt: skip
    parser.add_argument("--context", type=whole, default=64, metavar="N", help="characters in a window of text (%(default)s)")
    parser.add_argument("--steps", type=whole, default=200, metavar="N", help="steps of each run (%(default)s)")
    parser.add_argument("--batch-size", type=whole, default=32, metavar="N", help="examples or windows in a batch (%(default)s)")
