"""``modula-rs doctor``: what this installation is and will use."""

from __future__ import annotations

import argparse

from modula_rs.cli.output import as_json

HELP = "say what this installation is and will use, and prove its GPU kernels"
EXAMPLES = """
    modula-rs doctor
    modula-rs doctor --json
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("--quick", action="store_true", help="start nothing: do not check the kernels of a GPU")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts; starts nothing, as --quick")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from modula_rs import doctor

    if not options.json:
        return doctor.run(quick=options.quick)
    found = list(doctor.lines())
    print(as_json([line._asdict() for line in found], indent=2))
    return int(any(line.state == doctor.BROKEN for line in found))
