"""Compares the network in a file with the network that was asked for."""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from modula_rs.checkpoint.file import Run
from modula_rs.checks import shown
from modula_rs.network.fingerprint import objects
from modula_rs.network.module import Module
from modula_rs.norm.methods import Normed

#: Lines of a network's description that a file keeps, to show differences; the fingerprint covers all lines.
LINES = 1000

#: Classes whose arguments all show in the table of the tree. Version 0.1 compared nothing but that table.
_SHOWN = {"Linear", "Embed", "Bias", "Scale", "Identity", "Add", "Mul", "Abs", "ReLU", "Tanh", "GELU", "AvgPool", "Flatten", "MergeHeads"}


def rows(m: Normed[Any]) -> list[list[Any]]:
    """The rows of a network's arrays, as a file keeps them."""
    return [[leaf.path, leaf.kind, leaf.shape, leaf.copies, leaf.mass] for leaf in m.leaves]


def check(m: Any) -> None:
    """TypeError unless ``m`` is a module or a traced network."""
    if not isinstance(m, Normed):
        raise TypeError(f"m must be a Module or a traced network, got {shown(m)}")


def expect(path: Path, m: Normed[Any], run: Run) -> None:
    """ValueError with the first differences, unless the file's network equals ``m``."""
    leaves = json.loads(json.dumps(rows(m)))
    recognised = run.fingerprint == m.fingerprint if run.fingerprint else run.tree == m.drawing() and run.leaves == leaves
    if not recognised:
        compared = [
            (run.tree.splitlines(), m.drawing().splitlines()),
            (run.network, list(islice(m.description(), LINES))),
            ([" ".join(map(str, leaf)) for leaf in run.leaves], [" ".join(map(str, leaf)) for leaf in leaves]),
        ]
        changed = next((lines for pair in compared if (lines := _changes(*pair))), [f"they differ after the first {LINES} steps"])
        raise ValueError(f"{path} holds another network (- in the file, + expected):\n  {shortened(changed)}")
    if run.fingerprint is None and isinstance(m, Module):
        untold = sorted({type(made).__name__ for made in objects(m.program)} - _SHOWN)
        if untold:
            warnings.warn(
                f"{path} was written by version 0.1, which did not keep the arguments of {', '.join(untold)}: "
                f"those of the module given are taken to be the same",
                stacklevel=3,
            )


def shortened(lines: Sequence[str]) -> str:
    """The first twenty lines, as one text."""
    return "\n  ".join([*lines[:20], *["..."] * (len(lines) > 20)])


def _changes(saved: Sequence[str], here: Sequence[str]) -> list[str]:
    lines = difflib.unified_diff(saved, here, lineterm="", n=0)
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]
