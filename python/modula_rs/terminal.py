"""Drawn trees for terminals that can show ASCII only."""

from __future__ import annotations

import sys
from typing import TextIO

#: The branches of a drawn tree, in ASCII.
_BRANCHES = str.maketrans({"└": "`", "├": "|", "│": "|", "─": "-"})


def drawn(text: str, stream: TextIO | None = None) -> str:
    """A drawn tree, converted to ASCII if the stream (by default standard output) cannot show more.

    >>> import io
    >>> drawn("└─ leaf", io.TextIOWrapper(io.BytesIO(), "ascii"))
    '`- leaf'
    """
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        "└├│─".encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_BRANCHES)
    return text


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines: the first column is flush left, the others flush right."""
    sizes = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True))]) for row in rows
    ]
    return [line.rstrip() for line in lines]
