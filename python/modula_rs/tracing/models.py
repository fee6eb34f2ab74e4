"""Finds the function and the parameters of a model of any library, recognised by its attributes, without importing a library."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

#: The key for everything random in a forward pass that is only read, such as dropout in Haiku.
_KEY = 0


def _whole(result: Any) -> Any:
    return result


def _all(path: Any) -> bool:
    return True


@dataclass(frozen=True)
class Model:
    """A program with its parameters: ``apply(params, *inputs, **keywords)``.

    ``held``: how many of the inputs the model holds itself, as the statistics of nnx. ``trained(path)`` distinguishes parameters from other
    collections in the same tree. ``init(key)`` makes the network's own fresh parameters, if that is known. ``made(inputs)`` are the shapes
    of the parameters that the model makes for other inputs. ``output(result)`` is the output in a result of ``apply``.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    trained: Callable[[Any], bool] = _all
    keywords: Mapping[str, Any] = field(default_factory=dict)
    held: int = 0
    init: Callable[[Any], Any] | None = None
    made: Callable[[Sequence[Any]], Any] | None = None
    output: Callable[[Any], Any] = _whole

    def opened(self, inputs: Sequence[Any]) -> tuple[Callable[..., Any], list[Any]]:
        """A function of (params, arrays), and the arrays among the inputs. Flags, texts and functions among them become part of it."""
        leaves, structure = jax.tree.flatten((tuple(inputs), dict(self.keywords)))
        places = [at for at, leaf in enumerate(leaves) if is_array(leaf)]

        def program(params: Any, arrays: Sequence[Any]) -> Any:
            filled = list(leaves)
            for at, array in zip(places, arrays, strict=True):
                filled[at] = array
            given, keywords = jax.tree.unflatten(structure, filled)
            return self.apply(params, *given, **keywords)

        return program, [leaves[at] for at in places]

    def shapes(self, given: Sequence[Any]) -> Any:
        """The shapes and dtypes of the output if ``given`` are the first inputs of the user, and the others are those of the trace."""
        program, arrays = self.opened(self._filled(given))
        return jax.eval_shape(lambda *given: self.output(program(*given)), self.params, arrays)

    def complete(self, given: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs of the program, of which ``given`` come from the user and the others from the trace.

        Raises:
            ValueError: others are needed that were traced as shapes.
        """
        inputs = self._filled(given)
        missing = [leaf for leaf in jax.tree.leaves((inputs, dict(self.keywords))) if isinstance(leaf, jax.ShapeDtypeStruct)]
        if missing:
            raise ValueError(f"the network was traced with an input of which only the shape {missing[0].shape} was given: give its values")
        return inputs

    def _filled(self, given: Sequence[Any]) -> tuple[Any, ...]:
        return (*self.inputs[: self.held], *given, *self.inputs[self.held + len(given) :])


def model(apply: Any, arguments: Sequence[Any], keywords: Mapping[str, Any] | None = None) -> Model:
    """The function and the parameters to be traced.

    Args:
        apply: a function of (params, *inputs), a module of Flax or Equinox, a pair (linen's ``module.apply``, variables) or a Haiku
            transform.
        arguments: params or a function ``init(key)`` that makes them, then the inputs. Modules of nnx and Equinox hold their params; a
            module of linen and a Haiku transform make them if they are left out.
        keywords: further arguments of the program.

    Raises:
        TypeError: ``apply`` is none of these, or the parameters are missing.
    """
    return replace(_recognised(apply, list(arguments), dict(keywords or {})), keywords=dict(keywords or {}))


def is_array(leaf: Any) -> bool:
    """Whether an input is an array, the shape of one, or a number; a flag is none, because programs branch on it."""
    return hasattr(leaf, "shape") or (isinstance(leaf, int | float | complex) and not isinstance(leaf, bool))


def _recognised(apply: Any, arguments: list[Any], keywords: dict[str, Any]) -> Model:
    nnx, linen, equinox = (sys.modules.get(name) for name in ("flax.nnx", "flax.linen", "equinox"))
    if _has_fields(apply, "init", "apply"):
        return _haiku(apply, arguments, keywords)
    if isinstance(apply, tuple) and len(apply) == 2 and callable(apply[0]):
        return _recognised(apply[0], [apply[1], *arguments], keywords)
    if nnx is not None and isinstance(apply, nnx.Module):
        return _nnx(nnx, apply, arguments)
    if equinox is not None and isinstance(apply, equinox.Module) and not _takes_parameters(apply, arguments):
        params, static = equinox.partition(apply, _is_inexact)
        return Model(lambda params, *inputs, **others: equinox.combine(params, static)(*inputs, **others), params, tuple(arguments))
    bound = getattr(apply, "__self__", None)
    for module in (apply, bound if getattr(apply, "__name__", "") == "apply" else None):
        if linen is not None and isinstance(module, linen.Module):
            return _linen(module, arguments, keywords)
    if not callable(apply):
        raise TypeError(f"apply must be a function of (params, *inputs) or a model, got {type(apply).__name__}")
    if not arguments:
        raise TypeError("params are missing: trace(apply, params, *inputs)")
    init = _maker(arguments[0])
    return Model(apply, _made(arguments[0]), tuple(arguments[1:]), init=init)


def _maker(params: Any) -> Callable[[Any], Any] | None:
    """The function that makes parameters from a key, if ``params`` is one."""
    holds_arrays = any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(params))
    return params if callable(params) and not holds_arrays else None


def _made(params: Any) -> Any:
    """The parameters, or their shapes if ``params`` is a function that makes them from a key."""
    init = _maker(params)
    return params if init is None else jax.eval_shape(init, jax.random.key(0))


def _has_fields(value: Any, *names: str) -> bool:
    return isinstance(value, tuple) and getattr(value, "_fields", None) == names


def _takes_parameters(module: Any, arguments: Sequence[Any]) -> bool:
    """Whether a callable module without arrays, such as a filtered function, takes the parameters as its first argument."""
    return bool(arguments) and not any(map(_is_inexact, jax.tree.leaves(module)))


def _is_inexact(leaf: Any) -> bool:
    """Whether a leaf is an array of numbers that have gradients, or the shape of one."""
    return hasattr(leaf, "shape") and jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def _nnx(nnx: Any, module: Any, inputs: Sequence[Any]) -> Model:
    graph, params, rest = nnx.split(module, nnx.Param, ...)  # the rest holds statistics, counters, keys

    def apply(params: Any, rest: Any, *inputs: Any, **others: Any) -> Any:
        return nnx.merge(graph, params, rest)(*inputs, **others)

    return Model(apply, params, (rest, *inputs), held=1)


def _linen(module: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Model:
    given = list(arguments)

    def fresh(key: Any, inputs: Sequence[Any]) -> Any:
        keys = {"params": key, "dropout": key}
        return module.init(keys, *_values(inputs), **{name: value for name, value in keywords.items() if name not in ("rngs", "mutable")})

    if given and isinstance(given[0], Mapping):
        variables, init = given.pop(0), None
    elif given and (init := _maker(given[0])) is not None:
        variables = _made(given.pop(0))
    elif given:
        inputs = tuple(given)
        variables, init = jax.eval_shape(lambda key: fresh(key, inputs), jax.random.key(0)), lambda key: fresh(key, inputs)
    else:
        raise TypeError("a linen module needs its variables or an input: trace((module.apply, variables), *inputs)")
    if not isinstance(variables, Mapping) or "params" not in variables:
        return Model(
            lambda params, *inputs, **others: module.apply({"params": params}, *inputs, **others), variables, tuple(given), init=init
        )
    others = [name for name in variables if name != "params"]
    mutable = {"mutable": others} if others and "mutable" not in keywords else {}

    def apply(variables: Any, *inputs: Any, **given: Any) -> Any:
        return module.apply(variables, *inputs, **mutable, **given)

    def output(result: Any) -> Any:
        return result[0] if mutable or keywords.get("mutable") else result

    def made(inputs: Sequence[Any]) -> Any:
        return jax.eval_shape(lambda key: fresh(key, inputs), jax.random.key(0))

    return Model(apply, variables, tuple(given), _in_params, init=init, made=made, output=output)


def _in_params(path: Any) -> bool:
    """Whether an array of linen's variables is in the collection that is trained."""
    return bool(jax.tree_util.keystr(path[:1], simple=True) == "params")


def _haiku(transform: Any, arguments: Sequence[Any], keywords: dict[str, Any]) -> Model:
    names = list(inspect.signature(transform.apply).parameters)
    stateful, key = "state" in names, jax.random.key(_KEY)
    given = list(arguments)
    params = states = init = None
    if given and _is_haiku_tree(given[0]):
        params = given.pop(0)
        if stateful and given and _is_haiku_tree(given[0]):
            states = given.pop(0)

    def fresh(key: Any, inputs: Sequence[Any]) -> Any:
        made = transform.init(key, *_values(inputs), **keywords)
        return made if stateful else (made, None)

    if params is None:
        inputs = tuple(given)
        params, states = jax.eval_shape(lambda key: fresh(key, inputs), key)
        init = lambda key: fresh(key, inputs)[0]  # noqa: E731  the inputs are those of the trace
    if stateful and states is None:
        raise TypeError("a Haiku transform with state needs it after the parameters: trace(transform, params, state, *inputs)")
    keys = (key,) if "rng" in names else ()

    def made(inputs: Sequence[Any]) -> Any:
        return jax.eval_shape(lambda key: fresh(key, inputs)[0], key)

    if not stateful:
        plain = lambda params, *inputs, **others: transform.apply(params, *keys, *inputs, **others)  # noqa: E731  one expression
        return Model(plain, params, tuple(given), init=init, made=made)

    def apply(params: Any, state: Any, *inputs: Any, **others: Any) -> Any:
        return transform.apply(params, state, *keys, *inputs, **others)

    return Model(apply, params, (states, *given), held=1, init=init, made=made, output=lambda result: result[0])


def _is_haiku_tree(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(inner, Mapping) for inner in value.values())


def _values(inputs: Sequence[Any]) -> Any:
    """Inputs with zeros in the place of shapes."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, tuple(inputs))
