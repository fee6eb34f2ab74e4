"""Finds the function and the parameters of a model of any library, recognised by its attributes, without importing a library."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax


class Model(NamedTuple):
    """``apply(params, *inputs)``; ``trained(path)`` distinguishes parameters from other collections in the same tree.

    ``held``: how many of the inputs the model holds itself, as the statistics of nnx.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    trained: Callable[[Any], bool] = lambda path: True
    held: int = 0


def model(apply: Any, arguments: Sequence[Any]) -> Model:
    """The function and the parameters to be traced.

    Args:
        apply: a function of (params, *inputs), a module of Flax or Equinox, a pair (linen's ``module.apply``, variables) or a Haiku
            transform.
        arguments: params or a function ``init(key)`` that makes them, then the inputs. Modules of nnx and Equinox hold their params.

    Raises:
        TypeError: ``apply`` is none of these, or the parameters are missing.
    """
    nnx, linen, equinox = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "equinox"))
    if _has_fields(apply, "init", "apply"):
        return _haiku(apply, arguments)
    if isinstance(apply, tuple) and len(apply) == 2 and callable(apply[0]):
        return model(apply[0], [apply[1], *arguments])
    if nnx is not None and isinstance(apply, nnx.Module):
        return _nnx(nnx, apply, arguments)
    if equinox is not None and isinstance(apply, equinox.Module) and not _takes_parameters(apply, arguments):
        params, static = equinox.partition(apply, _is_inexact)
        return Model(lambda params, *inputs: equinox.combine(params, static)(*inputs), params, tuple(arguments))
    bound = getattr(apply, "__self__", None)
    for module in (apply, bound if getattr(apply, "__name__", "") == "apply" else None):
        if linen is not None and isinstance(module, linen.Module):
            return _linen(module, arguments)
    if not callable(apply):
        raise TypeError(f"apply must be a function of (params, *inputs) or a model, got {type(apply).__name__}")
    if not arguments:
        raise TypeError("params are missing: trace(apply, params, *inputs)")
    return Model(apply, _made(arguments[0]), tuple(arguments[1:]))


def _made(params: Any) -> Any:
    """The parameters, or their shapes if ``params`` is a function that makes them from a key."""
    holds_arrays = any(hasattr(leaf, "shape") for leaf in jax.tree_util.tree_leaves(params))
    return jax.eval_shape(params, jax.random.key(0)) if callable(params) and not holds_arrays else params


def _has_fields(value: Any, *names: str) -> bool:
    return isinstance(value, tuple) and getattr(value, "_fields", None) == names


def _takes_parameters(module: Any, arguments: Sequence[Any]) -> bool:
    """Whether a callable module without arrays, such as a filtered function, takes the parameters as its first argument."""
    return bool(arguments) and not any(map(_is_inexact, jax.tree_util.tree_leaves(module)))


def _is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers that have gradients, or the shape of one."""
    return hasattr(leaf, "shape") and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def _nnx(nnx: Any, module: Any, inputs: Sequence[Any]) -> Model:
    graph, params, rest = nnx.split(module, nnx.Param, ...)  # the rest holds statistics, counters, keys
    return Model(lambda params, rest, *inputs: nnx.merge(graph, params, rest)(*inputs), params, (rest, *inputs), held=1)


def _linen(module: Any, arguments: Sequence[Any]) -> Model:
    if not arguments:
        raise TypeError("a linen module needs its variables: trace((module.apply, variables), *inputs)")
    variables, inputs = _made(arguments[0]), tuple(arguments[1:])
    if not isinstance(variables, Mapping) or "params" not in variables:
        return Model(lambda params, *inputs: module.apply({"params": params}, *inputs), variables, inputs)
    others = [name for name in variables if name != "params"]
    keywords = {"mutable": others} if others else {}

    def trained(path: Any) -> bool:
        return bool(jax.tree_util.keystr(path[:1], simple=True) == "params")

    return Model(lambda variables, *inputs: module.apply(variables, *inputs, **keywords), variables, inputs, trained)


def _haiku(transform: Any, arguments: Sequence[Any]) -> Model:
    names = list(inspect.signature(transform.apply).parameters)
    stateful, key = "state" in names, jax.random.key(0)
    given = list(arguments)
    states = None
    if given and _is_haiku_tree(given[0]):
        params = given.pop(0)
        if stateful and given and _is_haiku_tree(given[0]):
            states = given.pop(0)
    else:
        made = jax.eval_shape(transform.init, key, *given)
        params, states = made if stateful else (made, None)
    if stateful and states is None:
        raise TypeError("a Haiku transform with state needs it after the parameters: trace(transform, params, state, *inputs)")
    keys = (key,) if "rng" in names else ()
    if not stateful:
        return Model(lambda params, *inputs: transform.apply(params, *keys, *inputs), params, tuple(given))
    return Model(lambda params, state, *inputs: transform.apply(params, state, *keys, *inputs), params, (states, *given), held=1)


def _is_haiku_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(inner, Mapping) for inner in value.values())
