"""The ways to pass a model and its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from modula_rs import tracing
from trace_cases import params, rows, shape

X = shape(4, 8)


class Parameters(NamedTuple):
    a: Any
    b: Any


def _apply(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p.a) @ p.b


EXPECTED = {"a": ("Linear", (1, 6, 8)), "b": ("Linear", (1, 3, 6))}


def test_any_pytree_and_any_array() -> None:
    for a, b in [(np.ones((8, 6)), np.ones((6, 3))), (jnp.ones((8, 6)), jnp.ones((6, 3))), (shape(8, 6), shape(6, 3))]:
        assert rows(tracing.read(_apply, Parameters(a, b), X)) == EXPECTED


def test_nothing_is_computed() -> None:
    huge = Parameters(shape(10**6, 10**6), shape(10**6, 3))
    assert tracing.read(_apply, huge, shape(4, 10**6))["a"].blocks == (1, 10**6, 10**6)


def test_none_is_no_array() -> None:
    assert rows(tracing.read(_apply, Parameters(shape(8, 6), shape(6, 3)), X)) == EXPECTED
    reading = tracing.read(lambda p, x: x @ p["a"], {"a": shape(8, 6), "b": None}, X)
    assert [leaf.path for leaf in reading.leaves] == ["a"]


def test_a_function_that_makes_the_parameters_takes_their_place() -> None:
    def init(key: Any) -> Any:
        return Parameters(jax.random.normal(key, (8, 6)), jnp.zeros((6, 3)))

    assert rows(tracing.read(_apply, init, X)) == EXPECTED


def test_numbers_are_scalars() -> None:
    assert rows(tracing.read(lambda p, x: p["a"] * x, {"a": 2.0}, X)) == {"a": ("Scale", (1, 1, 1))}


@pytest.mark.parametrize("make", [dict, freeze], ids=["dict", "FrozenDict"])
def test_linen_in_every_form(make: Any) -> None:
    module = nn.Dense(3)
    variables = make(jax.eval_shape(lambda key: module.init(key, jnp.zeros((4, 8))), jax.random.key(0)))
    expected = {"bias": ("Bias", (1, 1, 3)), "kernel": ("Linear", (1, 3, 8))}
    full = {f"params/{path}": row for path, row in expected.items()}
    assert rows(tracing.read((module.apply, variables), X)) == full
    assert rows(tracing.read(module.apply, variables, X)) == full
    assert rows(tracing.read(module, variables, X)) == full
    assert rows(tracing.read(module, lambda key: module.init(key, jnp.zeros((4, 8))), X)) == full
    assert rows(tracing.read(module, variables["params"], X)) == expected
    assert rows(tracing.read(lambda p, x: module.apply({"params": p}, x), variables["params"], X)) == expected
    with pytest.raises(TypeError, match="needs its variables"):
        tracing.read(module)


def test_equinox_in_every_form() -> None:
    module = eqx.nn.Linear(8, 3, key=jax.random.key(0))
    expected = {"weight": ("Linear", (1, 3, 8)), "bias": ("Bias", (1, 1, 3))}
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    assert rows(tracing.read(module, shape(8))) == expected
    assert rows(tracing.read(eqx.filter_eval_shape(lambda: module), shape(8))) == expected
    assert rows(tracing.read(lambda p, x: jax.vmap(eqx.combine(p, static))(x), arrays, X)) == expected
    assert rows(tracing.read(eqx.filter_jit(lambda p, x: x @ p["w"]), params(w=(8, 3)), X)) == {"w": ("Linear", (1, 3, 8))}


def test_nnx_in_every_form() -> None:
    module = nnx.Linear(8, 3, rngs=nnx.Rngs(0))
    graph, given, rest = nnx.split(module, nnx.Param, ...)
    expected = {"bias": ("Bias", (1, 1, 3)), "kernel": ("Linear", (1, 3, 8))}
    assert rows(tracing.read(module, X)) == expected
    assert rows(tracing.read(lambda p, x: nnx.merge(graph, p, rest)(x), given, X)) == expected


def test_only_the_last_value_of_nnx_is_left_out() -> None:
    class Holder(nnx.Module):
        def __init__(self) -> None:
            self.value = nnx.Linear(8, 3, use_bias=False, rngs=nnx.Rngs(0))

        def __call__(self, x: Any) -> Any:
            return self.value(x)

    assert [leaf.path for leaf in tracing.read(Holder(), X).leaves] == ["value/kernel"]
    assert [leaf.path for leaf in tracing.read(lambda p, x: x @ p["value"], {"value": shape(8, 3)}, X).leaves] == ["value"]


def test_haiku_in_every_form() -> None:
    transform = hk.transform(lambda x: hk.Linear(3)(x))
    plain = hk.without_apply_rng(transform)
    given = jax.eval_shape(transform.init, jax.random.key(0), X)
    expected = {"linear/b": ("Bias", (1, 1, 3)), "linear/w": ("Linear", (1, 3, 8))}
    for model in (transform, plain):
        assert rows(tracing.read(model, X)) == expected
        assert rows(tracing.read(model, given, X)) == expected
    assert rows(tracing.read(plain.apply, given, X)) == expected
    assert rows(tracing.read(transform.apply, given, None, X)) == expected


def test_haiku_with_state() -> None:
    model = hk.transform_with_state(lambda x: hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(x, is_training=True)))
    given, state = jax.eval_shape(model.init, jax.random.key(0), X)
    assert tracing.read(model, X) == tracing.read(model, given, state, X)
    with pytest.raises(TypeError, match="needs it after the parameters"):
        tracing.read(model, given, X)
