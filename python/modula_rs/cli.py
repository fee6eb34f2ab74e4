"""The command line, ``modula-rs``: arguments in, one line per mistake out."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

#: Exit codes: a mistake of the user's; stopped by Ctrl-C (as shells have it).
_USAGE, _INTERRUPTED = 2, 130
#: Where names on the package index differ from those of modules.
_PACKAGES = {"sklearn": "scikit-learn"}


class Usage(Exception):
    """A mistake in the arguments, in one line that says what was expected."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    >>> from modula_rs.cli import main
    >>> main(["demo", "--help"])  # doctest: +ELLIPSIS
    usage: modula-rs demo ...
    0
    """
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        options.command(options)
    except (Usage, ImportError) as error:
        return _fail(error)
    except ValueError as error:  # what the library says of bad values is one line too
        return _fail(error)
    except KeyboardInterrupt:
        print("\nmodula-rs: stopped", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def require(extra: str, *modules: str) -> None:
    """Usage, naming the extra to install, unless all these modules are there.

    >>> from modula_rs.cli import require
    >>> require("demo", "numpy")
    """
    missing = [_PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Usage(f'{" and ".join(missing)} missing: pip install "modula-rs[{extra}]"')


def _fail(error: Exception) -> int:
    print(f"modula-rs: {' '.join(str(error).split())}", file=sys.stderr)
    return _USAGE


class _Parser(argparse.ArgumentParser):
    """Mistakes in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise Usage(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="modula-rs", description="The modular norm: one learning rate for every width and depth.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    demo = commands.add_parser("demo", help="train ResMLPs of many sizes on handwritten digits and draw their learning rate curves")
    demo.add_argument("--widths", nargs="+", type=whole, default=None, metavar="N", help="widths of the networks")
    demo.add_argument("--blocks", nargs="+", type=whole, default=None, metavar="N", help="numbers of residual blocks")
    demo.add_argument("--seeds", type=whole, default=1, metavar="N", help="how many seeds (default 1)")
    demo.add_argument("--steps", type=whole, default=None, metavar="N", help="steps of each run")
    demo.add_argument(
        "--out", type=Path, default=Path("modula-rs-demo"), metavar="DIR", help="where demo.csv and demo.png go (default %(default)s)"
    )
    demo.set_defaults(command=_demo)
    return parser


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers of at least 1, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> None:
    require("demo", "jax", "optax", "sklearn", "matplotlib", "rich")
    from modula_rs import demo

    demo.run(
        options.out,
        sorted(set(options.widths or demo.WIDTHS)),
        sorted(set(options.blocks or demo.BLOCKS)),
        options.seeds,
        options.steps or demo.STEPS,
    )
