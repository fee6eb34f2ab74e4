"""Checks of arguments and inputs. Errors are raised early and show the value."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from modula_rs import arrays


class Misfit(Exception):
    """An input that an atom cannot take; :func:`naming` adds the path of the atom's leaf."""


class FeatureMismatch(Misfit, ValueError):
    """An input whose last axis has the wrong size."""


class TokenMismatch(Misfit, IndexError, ValueError):
    """Tokens outside the table."""


class KindMismatch(Misfit, TypeError):
    """A value of the wrong type."""


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Puts the path of a leaf before the message of a :class:`Misfit`."""
    try:
        yield
    except Misfit as error:
        raise type(error)(f"{path}: {error}") from None


def shown(value: Any) -> str:
    """A short text of any value, for error messages."""
    try:
        return reprlib.repr(value)
    except (ValueError, RecursionError):  # Python refuses to write out very long integers
        return f"{type(value).__name__} too large to be shown"


def is_number(value: Any) -> bool:
    """Whether a value is a real number, of Python or of an array library, and no bool.

    >>> [is_number(value) for value in (2, np.float32(0.5), np.array(3), True, "4", np.ones(1), 1j)]
    [True, True, True, False, False, False, False]
    """
    if isinstance(value, bool | str | bytes | bytearray) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        return False
    if not hasattr(value, "dtype"):
        return not hasattr(value, "shape")
    return getattr(value, "ndim", 0) == 0 and np.dtype(value.dtype).kind in "iufV"


def number(what: str, value: Any) -> float:
    """A number as a float; TypeError if the value is no number, ValueError if it is beyond the range of floats."""
    if not is_number(value):
        raise TypeError(f"{what} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{what} must be a number in the range of a float, got {shown(value)}") from None


def size(what: str, value: Any, least: int = 0) -> int:
    """A size as an int; TypeError if the value is no integer, ValueError if it is below ``least``, or 2^63 or more."""
    try:
        whole = operator.index(value)
    except TypeError:
        whole = None
    if whole is None or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, got {shown(value)}")
    if whole < least:
        raise ValueError(f"{what} must be at least {least}, got {shown(whole)}")
    if whole >= 2**63:
        raise ValueError(f"{what} must be below 2^63, got {shown(whole)}")
    return whole


def flag(what: str, value: Any) -> bool:
    """A truth value as a bool; TypeError for anything else.

    >>> flag("causal", np.bool_(True))
    True
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{what} must be True or False, got {shown(value)}")
    return bool(value)


def pair(what: str, value: Any, least: int) -> tuple[int, int]:
    """A pair of sizes, from a pair or from one size for both."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{what} must be one size or two, got {shown(value)}")
    return size(what, both[0], least), size(what, both[1], least)


def axes(what: str, value: Any) -> int | tuple[int, ...]:
    """An axis, or a tuple of different axes, as integers from -64 to 63: arrays have at most 64 axes."""
    if isinstance(value, tuple | list):
        several = tuple(_axis(what, each) for each in value)
        if not several or len(set(several)) < len(several):
            raise ValueError(f"{what} must be an axis, or several different ones, got {shown(value)}")
        return several
    return _axis(what, value)


def _axis(what: str, value: Any) -> int:
    axis = size(what, value, -64)
    if axis > 63:
        raise ValueError(f"{what} must be at most 63, got {axis}")
    return axis


def single(value: Any, name: str) -> Any:
    """The array in a list of one, or the array itself."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"{name} must return a list of one array, got {len(value)}")
        value = value[0]
    return value if arrays.library(value) else np.asarray(value)


def expect_features(x: Any, features: int) -> None:
    """Raises a :class:`Misfit` unless the last axis of ``x`` has size ``features``."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if x.ndim == 0 or x.shape[-1] != features:
        raise FeatureMismatch(f"expected an input of shape (..., {features}), got {tuple(x.shape)}")


def expect_tokens(x: Any, rows: int) -> None:
    """Raises a :class:`Misfit` unless ``x`` holds row numbers. Their range is checked for NumPy arrays only: JAX clips such indices."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if not np.issubdtype(x.dtype, np.integer):
        raise KindMismatch(f"an Embed takes integer tokens, got {x.dtype}")
    if arrays.library(x) == "numpy" and x.size and not (-rows <= x.min() and x.max() < rows):
        raise TokenMismatch(f"tokens must be at least 0 and below {rows}, got {x.min()} to {x.max()}")
