"""The command line, ``modula-rs``: parses arguments, and reports each mistake in one line.

Each command is a module here. It imports what it needs when it runs, so that ``--help`` does not wait for JAX.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence

from modula_rs import __version__
from modula_rs.cli import completion, demo, doctor, inspect, sweep, train
from modula_rs.cli.usage import Parser, Usage

#: Exit codes: a mistake of the user; a defect, or a closed output; an interruption by Ctrl-C (the code that shells use).
_USAGE, _FAILED, _INTERRUPTED = 2, 1, 130
#: The most characters of a message.
_LONGEST = 2000
#: The exceptions that bad values and sizes raise. JAX reports a lack of memory by a RuntimeError.
_EXPECTED = (Usage, ImportError, ValueError, OSError, MemoryError, ArithmeticError, RuntimeError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    >>> from modula_rs.cli import main
    >>> main(["inspect", "resmlp", "--width", "8", "--depth", "2", "--input-dim", "4", "--output-dim", "3"])  # doctest: +ELLIPSIS
    mass 3...
    0
    """
    options = argparse.Namespace()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # print escapes for characters that the terminal cannot show
    try:
        options = parser().parse_args(arguments)
        code: int | None = options.command(options)
    except BrokenPipeError:  # the reader of the output has ended, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except _EXPECTED as error:  # the library's messages are one line too
        return _say(error, _USAGE)
    except KeyboardInterrupt:
        if arguments is None:  # the process is about to end, and a second Ctrl-C should not interrupt its last steps
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        kept = "; what was finished is kept" if getattr(options, "keeps", False) else ""
        print(f"\nmodula-rs: stopped{kept}", file=sys.stderr)
        return _INTERRUPTED
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)
    except Exception as error:
        if os.environ.get("MODULA_RS_TRACEBACK"):
            raise
        return _say(f"{type(error).__name__}: {error} (a defect; MODULA_RS_TRACEBACK=1 shows where)", _FAILED)
    return code or 0


def _say(error: Exception | str, code: int) -> int:
    """Prints one line to standard error, and returns the exit code."""
    text = " ".join(str(error).split()) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
    print(f"modula-rs: {text if len(text) <= _LONGEST else text[:_LONGEST] + ' ...'}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    """The parser of all commands.

    >>> from modula_rs.cli import parser
    >>> parser().parse_args(["inspect", "gpt", "--width", "32"]).width
    32
    """
    made = Parser(
        prog="modula-rs",
        description="The modular norm: one learning rate for every width and depth.",
        examples="""
            modula-rs demo
            modula-rs sweep --arch gpt --data stdlib --widths 32 64 128 --depths 2 --out gpt
            modula-rs inspect --network model.py:build
            modula-rs doctor
        """,
    )
    made.add_argument("--version", action="version", version=f"modula-rs {__version__}")
    codes = "0 done, 1 a defect or something broken, 2 a mistake in the arguments or the data, 130 Ctrl-C"
    made.epilog = f"{made.epilog}\n\nexit codes: {codes}"
    commands = made.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for module in (demo, sweep, train, inspect, doctor, completion):
        name = module.__name__.rpartition(".")[2]
        own = commands.add_parser(name, help=module.HELP, description=module.HELP, examples=module.EXAMPLES)
        own.set_defaults(root=made)
        module.add(own)
    return made
