"""The maps on weights: each walks the plan and hands batches of equal blocks to the backend of the arrays' library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.backend.blockwise import screen
from modula_rs.backend.custom import Custom
from modula_rs.plan import Plan
from modula_rs.random import Source

Weights = list[Any]

#: What to do about NaN or infinity in an update: raise, skip that matrix, or let it through (compiled code cannot raise).
NONFINITE = ("raise", "zero", "propagate")


def initialize(plan: Plan, key: Any, dtype: Any = None) -> Weights:
    """Fresh weights, one array for each leaf."""
    wanted = arrays.weight_dtype(dtype)
    source = Source(key, wanted)
    drawn = []
    for leaf, obj, stacked in zip(plan.leaves, plan.objects, plan.stacks, strict=True):
        weight = obj.draw(source, stacked).astype(wanted)
        if tuple(weight.shape) != leaf.shape:
            raise ValueError(f"{leaf.path}: initialize gave shape {tuple(weight.shape)}, expected {leaf.shape}")
        drawn.append(weight)
    return drawn


def norm(plan: Plan, w: Sequence[Any]) -> Any:
    """The largest of scale times norm over all atoms."""
    library = check_weights(plan, w, "weight")
    values = _backend(library).norms(plan, w)
    for leaf in plan.custom:
        values[leaf] = Custom(plan, leaf).norm(w[leaf])
    if library == "numpy":
        return float(np.max([0.0, *values]))
    xp = arrays.namespace(library)
    return xp.max(xp.stack([value.astype(values[0].dtype) for value in values]))


def dual_norm(plan: Plan, g: Sequence[Any]) -> Any:
    """The sum over leaves of target times that leaf's dual norm."""
    library = check_weights(plan, g, "gradient")
    values = _backend(library).dual_norms(plan, g)
    for leaf in plan.custom:
        values[leaf] = Custom(plan, leaf).dual_norm(g[leaf])
    return float(sum(values)) if library == "numpy" else sum(values)


def normalize(plan: Plan, w: Sequence[Any], target_norm: Any = 1.0, *, nonfinite: str = "raise") -> Weights:
    """Every atom's array brought to its target norm, its direction kept."""
    library = _ready(plan, w, "update", nonfinite)
    target = check_target(target_norm)
    return with_custom(
        plan,
        w,
        _backend(library).normalize(plan, w, target, nonfinite),
        nonfinite,
        lambda custom, array: custom.update("normalize", array, target),
    )


def dualize(plan: Plan, g: Sequence[Any], target_norm: Any = 1.0, *, steps: int | None = None, nonfinite: str = "raise") -> Weights:
    """The update of norm ``target_norm`` with the largest inner product with ``g``."""
    library = _ready(plan, g, "gradient", nonfinite)
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(f"steps must be a positive int or None, got {steps!r}")
    target = check_target(target_norm)
    return with_custom(
        plan,
        g,
        _backend(library).dualize(plan, g, target, steps, nonfinite),
        nonfinite,
        lambda custom, array: custom.update("dualize", array, target),
    )


def project(plan: Plan, w: Sequence[Any], *, nonfinite: str = "raise") -> Weights:
    """Weights brought back to their natural set."""
    library = _ready(plan, w, "weight", nonfinite)
    return with_custom(plan, w, _backend(library).project(plan, w, nonfinite), nonfinite, lambda custom, array: custom.project(array))


def regularize(plan: Plan, w: Sequence[Any], strength: Any) -> Weights:
    """Decoupled decay with the module's own step sizes."""
    library = check_weights(plan, w, "weight")
    return with_custom(
        plan,
        w,
        _backend(library).regularize(plan, w, strength),
        "propagate",
        lambda custom, array: custom.regularize(array, strength),
    )


def with_custom(plan: Plan, w: Sequence[Any], made: Weights, nonfinite: str, update: Callable[[Custom, Any], Any]) -> Weights:
    """The results with those of users' own atoms put in."""
    for leaf in plan.custom:
        array = w[leaf]
        if nonfinite == "zero":
            array = screen(array, len(plan.stacks[leaf]))
        made[leaf] = update(Custom(plan, leaf), array)
    return made


@cache
def _backend(library: str) -> Any:
    if library == "numpy":
        from modula_rs.backend import numpy as backend

        return backend
    from modula_rs.backend.blockwise import Blockwise

    return Blockwise(import_module(f"modula_rs.backend.{library}"))


# ---- checks ----------------------------------------------------------------------------------------------------------------


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


def _ready(plan: Plan, w: Sequence[Any], what: str, nonfinite: str) -> str:
    """The library of arrays that a map may have; Rust looks at NumPy arrays for NaN and infinity itself."""
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
