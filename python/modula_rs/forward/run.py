"""The forward pass: a small stack machine that runs a plan's steps on arrays of any library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import arrays
from modula_rs.checks import naming
from modula_rs.forward import one_product
from modula_rs.norm.checks import check_weights
from modula_rs.norm.table import Plan, Repeat

#: Turns of powers without weights of their own, like ``bond ** 10**18``: more are refused, for nothing else would end them.
MOST_TURNS = 100_000


def forward(plan: Plan, x: Any, w: Sequence[Any]) -> Any:
    """The output of the module for input ``x`` and weights ``w``."""
    x, _ = check(plan, x, w)
    return _run(plan, plan.steps, x, dict(enumerate(w)))


def check(plan: Plan, x: Any, w: Sequence[Any]) -> tuple[Any, str]:
    """The input as an array (or a tuple of them), and the library the output will be of; an error if it does not go with the weights."""
    x = _as_arrays(x)
    found = {str(arrays.library(member)) for member in _flat(x)}
    library = check_weights(plan, w, "weight")
    if plan.leaves:
        found.add(library)
    if "cupy" in found and len(found) > 1:
        others = ", ".join(sorted(found - {"cupy"}))
        raise TypeError(f"input and weights must come from one library, got cupy and {others}")
    if (turns := _turns(plan, plan.steps)) > MOST_TURNS:
        raise ValueError(f"powers without weights of their own would run {turns} times, more than {MOST_TURNS}")
    return x, "jax" if "jax" in found else (found or {library}).pop()


def _turns(plan: Plan, steps: Sequence[Any]) -> int:
    """How often powers run something that has no weights of their own; the others are as long as their arrays, and so have an end."""
    total = 0
    for step in steps:
        if isinstance(step, Repeat):
            inner = _turns(plan, step.steps)
            weighted = any(0 not in plan.leaves[leaf].shape for leaf in step.stacked)
            total += step.times * (inner if weighted else max(inner, 1))
    return total


def _as_arrays(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(map(_as_arrays, x))
    x = x if arrays.library(x) else np.asarray(x)
    if x.dtype.kind not in "biuf" and x.dtype.name not in arrays.DTYPES:
        raise TypeError(f"an input holds real numbers, got {x.dtype.name}")
    return x


def _run(plan: Plan, steps: list[Any], x: Any, weights: dict[int, Any]) -> Any:
    remembered: list[Any] = []  # the inputs of the tuples we are in
    outputs: list[Any] = []  # what their members have given so far
    ready: dict[int, Any] = {}  # what the Linears that members begin with give, computed together
    for step in steps:
        match step:
            case ("atom", _, leaf) if leaf in ready:
                x = ready.pop(leaf)
            case ("atom", obj, leaf):
                with naming(plan.paths[leaf]):
                    x = obj.apply(x, weights[leaf])
            case ("bond", None):
                pass
            case ("bond", obj):
                x = obj.apply(x)
            case ("fork", leaves):
                remembered.append(x)
                if len(leaves) > 1:
                    ready |= one_product.outputs(leaves, x, weights)
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
