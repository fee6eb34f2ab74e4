"""``modula-rs completion``: a script that completes arguments in a shell."""

from __future__ import annotations

import argparse

from modula_rs.cli.usage import require

HELP = "print a script that completes arguments in your shell"
EXAMPLES = """
    modula-rs completion bash > ~/.local/share/bash-completion/completions/modula-rs
    modula-rs completion zsh > ~/.zfunc/_modula-rs
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    require("demo", "shtab")
    import shtab

    print(shtab.complete(options.root, options.shell))
