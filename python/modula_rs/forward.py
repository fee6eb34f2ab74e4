"""The forward pass: a small stack machine that runs a plan's steps on arrays of any library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import arrays, maps
from modula_rs.plan import Plan, Repeat


class FeatureMismatch(ValueError):
    """An input whose last axis does not fit; the machine adds the path of the leaf."""


def forward(plan: Plan, x: Any, w: Sequence[Any]) -> Any:
    """The output of the module for input ``x`` and weights ``w``."""
    library = maps.check_weights(plan, w, "weight")
    given = arrays.library(x)
    if given is None and not isinstance(x, tuple):
        x = np.asarray(x)
        given = "numpy"
    if {given, library if plan.leaves else given} == {"numpy", "cupy"}:
        raise TypeError(f"input and weights must come from one library, got {given} and {library}")
    return _run(plan, plan.steps, x, dict(enumerate(w)))


def _run(plan: Plan, steps: list[Any], x: Any, weights: dict[int, Any]) -> Any:
    remembered: list[Any] = []  # the inputs of the tuples we are in
    outputs: list[Any] = []  # what their members have given so far
    for step in steps:
        match step:
            case ("atom", obj, leaf):
                try:
                    x = obj.apply(x, weights[leaf])
                except FeatureMismatch as error:
                    raise ValueError(f"{plan.paths[leaf]}: {error}") from None
            case ("bond", None):
                pass
            case ("bond", obj):
                x = obj.apply(x)
            case ("fork",):
                remembered.append(x)
            case ("next",):
                outputs.append(x)
                x = remembered[-1]
            case ("join", count):
                remembered.pop()
                outputs.append(x)
                x = tuple(outputs[-count:])
                del outputs[-count:]
            case Repeat():
                x = _repeat(plan, step, x, weights)
    return x


def _repeat(plan: Plan, power: Repeat, x: Any, weights: dict[int, Any]) -> Any:
    stacked = {leaf: weights[leaf] for leaf in power.stacked}
    if power.times > 1 and any(arrays.library(value) == "jax" for value in (*_flat(x), *weights.values())):
        return _scan(plan, power, x, weights, stacked)
    for copy in range(power.times):
        x = _run(plan, power.steps, x, weights | {leaf: array[copy] for leaf, array in stacked.items()})
    return x


def _scan(plan: Plan, power: Repeat, x: Any, weights: dict[int, Any], stacked: dict[int, Any]) -> Any:
    """The copies as a ``lax.scan``: compile time does not grow with depth."""
    import jax
    import jax.numpy as jnp

    def body(carry: Any, copy: dict[int, Any]) -> tuple[Any, None]:
        return _run(plan, power.steps, carry, weights | copy), None

    x = jax.tree.map(jnp.asarray, x)
    dtypes = {value.dtype for value in (*_flat(x), *stacked.values())}
    if len(dtypes) > 1:
        # The carry of a scan has one dtype throughout: the one a copy's output has.
        first = {leaf: array[0] for leaf, array in stacked.items()}
        result, _ = jax.eval_shape(body, x, first)
        x = jax.tree.map(lambda value, like: value.astype(like.dtype), x, result)
    return jax.lax.scan(body, x, stacked, length=power.times)[0]


def _flat(x: Any) -> list[Any]:
    return [leaf for member in x for leaf in _flat(member)] if isinstance(x, tuple) else [x]
