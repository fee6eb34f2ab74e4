"""Mistakes in the arguments, and packages that a command needs."""

from __future__ import annotations

import argparse
import importlib.util
import textwrap
from typing import Any, NoReturn

#: Modules whose packages have another name.
_PACKAGES = {"sklearn": "scikit-learn"}


class Usage(Exception):
    """A mistake in the arguments; the message is one line that says what was expected."""


def require(extra: str, *modules: str) -> None:
    """Raises Usage, with the name of the extra to install, unless all these modules are installed.

    >>> from modula_rs.cli.usage import require
    >>> require("demo", "numpy")
    """
    missing = [_PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise Usage(f'{" and ".join(missing)} missing: pip install "modula-rs[{extra}]"')


class Parser(argparse.ArgumentParser):
    """A parser that reports mistakes in one line, without the usage text, and shows examples as they are written."""

    def __init__(self, *, examples: str = "", **options: Any) -> None:
        epilog = f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}" if examples else None
        super().__init__(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises Usage."""
        raise Usage(f"{message} (see {self.prog} --help)")
