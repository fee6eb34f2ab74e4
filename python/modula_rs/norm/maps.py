"""The maps on weights: each walks the plan and hands batches of equal blocks to the backend of the arrays' library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.arrays import Weights
from modula_rs.norm.checks import check_target, check_weights, ready
from modula_rs.norm.custom import Custom
from modula_rs.norm.recipe import screen
from modula_rs.norm.table import Plan
from modula_rs.random import Source


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
    library = ready(plan, w, "update", nonfinite)
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
    library = ready(plan, g, "gradient", nonfinite)
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
    library = ready(plan, w, "weight", nonfinite)
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
    from modula_rs.norm.recipe import Blockwise

    return Blockwise(import_module(f"modula_rs.backend.{library}"))
