"""Arguments and inputs, refused early, with the value that came."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modula_rs import arrays


class Misfit(Exception):
    """An input that an atom cannot work with; :func:`naming` adds the path of its leaf."""


class FeatureMismatch(Misfit, ValueError):
    """An input whose last axis does not fit."""


class TokenMismatch(Misfit, IndexError, ValueError):
    """Tokens that are no rows of the table."""


class KindMismatch(Misfit, TypeError):
    """The wrong kind of thing."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Puts the path of a leaf before the message of a :class:`Misfit`."""
    try:
        yield
    except Misfit as error:
        raise type(error)(f"{path}: {error}") from None


def size(what: str, value: Any, least: int = 0) -> int:
    """A size as an int; TypeError if it is none, ValueError if it is too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{what} must be at least {least}, got {number}")
    return number


def pair(what: str, value: Any, least: int) -> tuple[int, int]:
    """One size for both axes, or one for each."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{what} must be one size or two, got {value!r}")
    return size(what, both[0], least), size(what, both[1], least)


def single(value: Any, name: str) -> Any:
    """The array of a list of one, or the array itself."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"{name} must return a list of one array, got {len(value)}")
        value = value[0]
    return value if arrays.library(value) else np.asarray(value)


def expect_features(x: Any, features: int) -> None:
    """Raises unless the last axis of ``x`` has size ``features``."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if x.ndim == 0 or x.shape[-1] != features:
        raise FeatureMismatch(f"expected an input of shape (..., {features}), got {tuple(x.shape)}")


def expect_tokens(x: Any, rows: int) -> None:
    """Raises unless ``x`` holds integers that are rows of a table. JAX clips an index out of range, here as everywhere."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if not np.issubdtype(x.dtype, np.integer):
        raise KindMismatch(f"an Embed takes integer tokens, got {x.dtype}")
    if arrays.library(x) == "numpy" and x.size and not (-rows <= x.min() and x.max() < rows):
        raise TokenMismatch(f"tokens must be at least 0 and below {rows}, got {x.min()} to {x.max()}")
