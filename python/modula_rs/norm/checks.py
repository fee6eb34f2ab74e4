"""What the maps refuse: weights that are not those of the norm, targets that no update can have, numbers that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.norm.table import Plan

#: What to do about NaN or infinity in an update: raise, skip that matrix, or let it through (compiled code cannot raise).
NONFINITE = ("raise", "zero", "propagate")


def check_weights(plan: Plan, w: Sequence[Any], what: str) -> str:
    """The library of a list of arrays that fits the plan; else an error that names the leaf, what was expected and what came."""
    if not isinstance(w, list | tuple):
        raise TypeError(f"{what}s come as a list of arrays, one for each of m.leaves, got {type(w).__name__}")
    if len(w) != len(plan.leaves):
        raise ValueError(f"expected {len(plan.leaves)} {what}s ({_shorten(plan.paths)}), got {len(w)}")
    library = arrays.common_library(list(w), what, plan.paths)
    for array, leaf in zip(w, plan.leaves, strict=True):
        if tuple(array.shape) != leaf.shape:
            raise ValueError(f"{what} of {leaf.path} must have shape {leaf.shape}, got {tuple(array.shape)}")
        if arrays.dtype_name(array.dtype) not in arrays.DTYPES:
            raise ValueError(f"{what} of {leaf.path} must be {', '.join(arrays.DTYPES)}, got {arrays.dtype_name(array.dtype)}")
    return library


def check_target(target_norm: Any) -> Any:
    """A target norm: a finite number of at least 0, or an array of JAX that will hold one."""
    if arrays.is_traced(target_norm):
        return target_norm
    try:
        number = float(target_norm + 0)  # a string is no number, though float() takes some
    except (TypeError, ValueError):
        raise TypeError(f"target_norm must be a number, got {type(target_norm).__name__}") from None
    if not (number >= 0.0 and np.isfinite(number)):
        raise ValueError(f"target_norm must be finite and at least 0, got {number}")
    return target_norm


def check_finite(plan: Plan, w: Sequence[Any], what: str, chosen: Sequence[int] | None = None) -> None:
    """FloatingPointError if an array holds NaN or infinity; traced arrays pass, for their values are not known yet."""
    if any(arrays.is_traced(array) for array in w):
        return
    for index in range(len(w)) if chosen is None else chosen:
        array = w[index]
        bad = _count_nonfinite(array)
        if bad:
            raise FloatingPointError(
                f'{what} of {plan.paths[index]}: {bad} of {array.size} numbers are not finite; nonfinite="zero" skips such matrices instead'
            )


def ready(plan: Plan, w: Sequence[Any], what: str, nonfinite: str) -> str:
    """The library of arrays that a map accepts; Rust looks for NaN and infinity in NumPy arrays itself."""
    library = check_weights(plan, w, what)
    if nonfinite not in NONFINITE:
        raise ValueError(f"nonfinite must be one of {', '.join(map(repr, NONFINITE))}, got {nonfinite!r}")
    if nonfinite == "raise":
        checked = list(range(len(w))) if library != "numpy" else plan.custom
        check_finite(plan, w, what, checked)
    return library


def _count_nonfinite(array: Any) -> int:
    xp = arrays.namespace_of(array)
    finite = xp.isfinite(array).sum()
    if arrays.is_traced(finite):  # a known array, but inside a trace: every operation of JAX is recorded there, not run
        finite = np.isfinite(np.asarray(array)).sum()
    return int(array.size - finite)


def _shorten(paths: list[str]) -> str:
    return ", ".join(paths if len(paths) <= 8 else [*paths[:4], "...", *paths[-2:]])
