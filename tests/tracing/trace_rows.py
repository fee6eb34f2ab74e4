"""Rows that are expected of a table: a kind, and blocks (count, fan-out, fan-in)."""

from __future__ import annotations

from typing import Any

#: The width of most networks of the tests.
D = 32


def linear(out: int, into: int, count: int = 1) -> Any:
    """The row of a matrix."""
    return ("Linear", (count, out, into))


def norm(path: str, size: int = D) -> dict[str, Any]:
    """The rows of a layer norm."""
    return {f"{path}/scale": ("Scale", (1, 1, size)), f"{path}/bias": ("Bias", (1, 1, size))}


def dense(path: str, out: int, into: int) -> dict[str, Any]:
    """The rows of a dense layer with a bias."""
    return {f"{path}/kernel": linear(out, into), f"{path}/bias": ("Bias", (1, 1, out))}


def attention(path: str, size: int = D) -> dict[str, Any]:
    """The rows of an attention with biases."""
    return {key: row for name in ("query", "key", "value", "out") for key, row in dense(f"{path}/{name}", size, size).items()}
