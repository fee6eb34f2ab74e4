"""JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def as_json(value: Any, indent: int | None = None) -> str:
    """The value in JSON, which has no infinity and no NaN: null stands for both.

    >>> from modula_rs.cli.output import as_json
    >>> as_json({"loss": float("inf"), "rates": (0.5, 1.0)})
    '{"loss": null, "rates": [0.5, 1.0]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _plain(member) for name, member in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(member) for member in value]
    return value
