"""Checks of the arguments of maps: weights that do not fit the norm, impossible targets, numbers that are not finite."""

from __future__ import annotations

import operator
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.backend import VECTORS
from modula_rs.norm.table import Leaf, Norm

#: Choices for NaN or infinity in an update: raise, zero that matrix, or let it through (compiled code cannot raise).
NONFINITE = ("raise", "zero", "propagate")

#: Levels of accuracy of ``dualize``, each with the least number of Newton-Schulz steps (``steps=``) that stands for it.
ACCURACIES = {"standard": 6, "fast": 4, "coarse": 1}


def check_together(*groups: tuple[Callable[[int], str], Sequence[Any]]) -> None:
    """ValueError, naming two arrays, if arrays of JAX lie on different devices or meshes. A group has a function from numbers to names."""
    if "jax" in sys.modules and any(arrays.library(array) == "jax" for _, given in groups for array in given):
        import_module("modula_rs.norm.placement").check_together(*groups)


def check_weights(leaves: Sequence[Leaf], w: Sequence[Any], what: str) -> str:
    """The library of a list of arrays that fit the leaves; else an error that names the leaf, what was expected and what came."""
    if not isinstance(w, list | tuple):
        raise TypeError(f"{what}s come as a list of arrays, one for each of m.leaves, got {type(w).__name__}")
    if len(w) != len(leaves):
        raise ValueError(f"expected {len(leaves)} {what}s ({shorten([leaf.path for leaf in leaves])}), got {len(w)}")
    library = arrays.common_library(list(w), what, [leaf.path for leaf in leaves])
    for array, leaf in zip(w, leaves, strict=True):
        if tuple(array.shape) != leaf.shape:
            raise ValueError(f"{what} of {leaf.path} must have shape {leaf.shape}, got {tuple(array.shape)}{shard(array)}")
        if arrays.dtype_name(array.dtype) not in arrays.DTYPES:
            raise ValueError(f"{what} of {leaf.path} must be {', '.join(arrays.DTYPES)}, got {arrays.dtype_name(array.dtype)}")
    if library == "jax":
        check_together((lambda at: f"{what} of {leaves[at].path}", w))
    return library


def check_target(target_norm: Any) -> Any:
    """A target norm: a finite number of at least 0, or an array of JAX, whose value may not be known yet."""
    return _number("target_norm", target_norm, 0.0, " and at least 0")


def check_at_least_zero(what: str, value: Any) -> Any:
    """A finite number of at least 0, or an array of JAX, whose value may not be known yet."""
    return _number(what, value, 0.0, " and at least 0")


def check_positive(what: str, value: Any) -> Any:
    """A finite number above 0, or an array of JAX, whose value may not be known yet."""
    if not arrays.is_traced(check_at_least_zero(what, value)) and float(value) == 0.0:
        raise ValueError(f"{what} must be above 0, got {float(value)}")
    return value


def check_strength(strength: Any) -> Any:
    """The strength of a decay: a finite number, or an array of JAX, whose value may not be known yet."""
    return _number("strength", strength, -np.inf, "")


def _number(what: str, value: Any, least: float, condition: str) -> Any:
    if arrays.is_traced(value):
        return value
    try:
        number = float(value + 0)  # adding 0 refuses strings, some of which float() accepts
    except ArithmeticError:  # an int beyond the range of a float, or a decimal that signals
        raise ValueError(f"{what} must be finite{condition}, got a {type(value).__name__} that is no float") from None
    except (TypeError, ValueError):
        raise TypeError(f"{what} must be a number, got {type(value).__name__}") from None
    if not (number >= least and np.isfinite(number)):
        raise ValueError(f"{what} must be finite{condition}, got {number}")
    return value


def check_paths(paths: Sequence[str]) -> None:
    """ValueError if two arrays have one path, as in ``{"a/b": x, "a": {"b": y}}`` or ``{1: x, "1": y}``."""
    if not all(isinstance(path, str) for path in paths):
        raise TypeError("paths of arrays are strings")
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise ValueError(f"two arrays of a pytree have one path: {shorten(twice)}")


def check_chosen(chosen: Any, count: int) -> list[int]:
    """Indices of some of ``count`` arrays, each at most once; else an error that names the index."""
    try:
        indices = [operator.index(index) for index in chosen]
    except TypeError:
        raise TypeError("a part is chosen by a list of indices of arrays, which are ints") from None
    seen: set[int] = set()
    for index in indices:
        if not 0 <= index < count:
            raise ValueError(f"a part of {count} arrays is chosen by indices from 0 to {count - 1}, got {_short(index)}")
        if index in seen:
            raise ValueError(f"a part holds each array once, but index {index} is chosen twice")
        seen.add(index)
    return indices


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**30 else f"{'-' if number < 0 else ''}a number of {number.bit_length()} bits"


def check_finite(paths: Sequence[str], w: Sequence[Any], what: str, chosen: Sequence[int] | None = None) -> None:
    """FloatingPointError if an array holds NaN or infinity. Traced arrays pass, because their values are not known yet."""
    if any(arrays.is_traced(array) for array in w):
        return
    for index in range(len(w)) if chosen is None else chosen:
        array = w[index]
        bad = _count_nonfinite(array)
        if bad:
            raise FloatingPointError(
                f'{what} of {paths[index]}: {bad} of {array.size} numbers are not finite; nonfinite="zero" skips such matrices instead'
            )


def check_overflow(paths: Sequence[str], w: Sequence[Any], made: Sequence[Any], amount: Any) -> None:
    """ValueError if an update is not finite although the array is. Traced arrays pass, because their values are not known yet."""
    if any(arrays.is_traced(array) for array in made):
        return
    for path, array, update in zip(paths, w, made, strict=True):
        if _count_nonfinite(update) and not _count_nonfinite(array):
            dtype = arrays.dtype_name(update.dtype)
            raise ValueError(f"{path}: a target norm of {float(amount):g} is too large, its update would not be finite in {dtype}")


def check_nonfinite(nonfinite: Any, allowed: Sequence[str] = NONFINITE) -> None:
    """ValueError unless ``nonfinite`` is one of the allowed choices."""
    if not isinstance(nonfinite, str) or nonfinite not in allowed:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, allowed))}, got {nonfinite!r}")


def check_accuracy(accuracy: Any, steps: Any) -> str:
    """The level of accuracy: by name, or the level that ``steps`` Newton-Schulz steps stand for."""
    if not isinstance(accuracy, str) or accuracy not in ACCURACIES:
        raise ValueError(f"accuracy must be one of {', '.join(map(repr, ACCURACIES))}, got {accuracy!r}")
    if steps is None:
        return str(accuracy)
    try:
        number = 0 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"steps must be a positive int or None, got {steps!r}")
    return next(name for name, least in ACCURACIES.items() if number >= least)


def check_vectors(norm: Norm, w: Sequence[Any], vectors: Any) -> None:
    """Raises an error that names the leaf, unless leaves of matrices have estimates of the right shape and library, and others None."""
    if not isinstance(vectors, list | tuple):
        raise TypeError(f"vectors come as a list, one entry for each of m.leaves, got {type(vectors).__name__}")
    if len(vectors) != len(norm.leaves):
        raise ValueError(f"expected {len(norm.leaves)} entries in vectors, got {len(vectors)}")
    for leaf, batch, array, vector in zip(norm.leaves, norm.batches, w, vectors, strict=True):
        if batch.geometry != "spectral":
            if vector is not None:
                raise ValueError(f"vectors of {leaf.path} must be None, since it holds no matrices")
            continue
        shape = (batch.count, VECTORS, batch.cols)
        if arrays.library(vector) != arrays.library(array) or tuple(vector.shape) != shape:
            came = type(vector).__name__ if arrays.library(vector) is None else f"{tuple(vector.shape)} of {arrays.library(vector)}"
            raise ValueError(f"vectors of {leaf.path} must have shape {shape}, in {arrays.library(array)}, got {came}")


def _count_nonfinite(array: Any) -> int:
    xp = arrays.namespace_of(array)
    finite = xp.isfinite(array).sum()
    if arrays.is_traced(finite):  # a known array inside a trace: JAX records every operation there instead of running it
        finite = np.isfinite(np.asarray(array)).sum()
    return int(array.size - finite)


def shard(array: Any) -> str:
    """For the message about a shape: what to do about an array that is a shard, inside ``shard_map``; empty for other arrays."""
    if not (arrays.library(array) == "jax" and arrays.is_traced(array)):
        return ""
    from modula_rs.backend.jax.sharded.meshes import is_shard  # needs JAX, which is optional

    if not is_shard(array):
        return ""
    return ": it is a shard, inside shard_map. Call modula_rs outside of shard_map, which it uses itself; shardings= says where arrays lie"


def shorten(paths: Sequence[str]) -> str:
    """Paths for a message: all of them if they are few, else the first and the last ones."""
    return ", ".join(paths if len(paths) <= 8 else [*paths[:4], "...", *paths[-2:]])
