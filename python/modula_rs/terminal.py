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
