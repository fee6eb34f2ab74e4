"""Fresh parameters of a traced network: norm 1 for every array, frozen arrays kept or asked for, and the network's own start."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from flax import nnx
from test_trace_network import matrices
from test_trace_networks import CASES, named
from trace_cases import Case, layer_norm, params, shape


@named(CASES[::4])
def test_every_array_starts_at_norm_one(network: Case) -> None:
    """Each block, found from the letters of the table alone, has the norm of its unit; gains are one and biases zero."""
    net = mr.trace(*network.build(), rules=network.rules)
    given = jax.tree.map(lambda leaf: np.full(leaf.shape, 3, leaf.dtype), net._source.params)
    made = jax.tree.leaves(net.initialize(0, given))
    for leaf, array in zip(net.leaves, made, strict=True):
        assert array.shape == leaf.shape
        assert str(array.dtype) == leaf.dtype
        if not leaf.roles:
            assert (array == 3).all(), leaf.path
            continue
        flat = np.asarray(array, np.float64).ravel()
        for at, unit in matrices(leaf):
            block = flat[at]
            match leaf.kind:
                case "Linear" | "Conv2D":
                    np.testing.assert_allclose(np.linalg.svd(block, compute_uv=False), unit, rtol=1e-4, err_msg=leaf.path)
                case "Embed":
                    assert np.sqrt((block**2).mean()) == pytest.approx(1, rel=1e-4), leaf.path
                case "Scale":
                    np.testing.assert_allclose(np.abs(block), 0 if leaf.roles[0].based else unit, rtol=1e-6, err_msg=leaf.path)
                case "Bias":
                    assert not block.any()


def uneven(p: Any, x: Any) -> Any:
    q, k = jnp.split(x @ p["fused"], [6], axis=-1)
    return layer_norm(q) @ p["q"] + layer_norm(k) @ p["k"]


def test_uneven_parts_start_at_their_own_norms() -> None:
    net = mr.trace(uneven, params(fused=(8, 8), q=(6, 3), k=(2, 3)), shape(4, 8))
    assert net.reading["fused"].blocks == ((1, 6, 8), (1, 2, 8))
    fused = net.initialize(0)["fused"]
    for part, out in ((fused[:, :6], 6), (fused[:, 6:], 2)):
        np.testing.assert_allclose(np.linalg.svd(part, compute_uv=False), (out / 8) ** 0.5, rtol=1e-5)


def test_a_gain_of_one_plus_g_starts_at_zero() -> None:
    def apply(p: Any, x: Any) -> Any:
        return layer_norm(x @ p["w"]) * (1 + p["g"]) * p["h"]

    made = mr.trace(apply, params(w=(8, 6), g=(6,), h=(6,)), shape(4, 8)).initialize(0)
    assert not made["g"].any()
    assert (made["h"] == 1).all()


GIVEN = {"weight": jnp.full((6, 5), 2.0), "codes": jnp.arange(3, dtype=jnp.int8), "table": jnp.full((4,), 5.0)}
RULES = {"{codes,table}": "frozen"}


def product(p: Any, x: Any) -> Any:
    return x @ p["weight"]


@pytest.mark.parametrize("key", [0, np.random.default_rng(0), jax.random.key(0)], ids=["seed", "generator", "jax"])
def test_frozen_arrays_keep_the_values_that_are_known(key: Any) -> None:
    made = mr.trace(product, GIVEN, shape(4, 6), rules=RULES).initialize(key)
    np.testing.assert_allclose(np.linalg.norm(made["weight"], 2), (5 / 6) ** 0.5, rtol=1e-5)
    np.testing.assert_array_equal(made["codes"], GIVEN["codes"])
    np.testing.assert_array_equal(made["table"], GIVEN["table"])
    assert made["codes"].dtype == jnp.int8
    assert len({type(array) for array in made.values()}) == 1


def test_frozen_arrays_are_asked_for_where_only_shapes_are_known(tmp_path: Any) -> None:
    shapes = jax.eval_shape(lambda: GIVEN)
    net = mr.trace(product, shapes, shape(4, 6), rules=RULES)
    with pytest.raises(ValueError, match=r"the values of frozen arrays are needed \(codes, table\): initialize\(key, params=...\)"):
        net.initialize(0)
    assert (net.initialize(0, GIVEN)["table"] == 5).all()
    net.save(tmp_path / "net.json")
    loaded = mr.load(tmp_path / "net.json")
    with pytest.raises(ValueError, match="no structure to put arrays into: give params"):
        loaded.initialize(0)
    np.testing.assert_array_equal(loaded.initialize(0, GIVEN)["weight"], net.initialize(0, GIVEN)["weight"])
    with pytest.raises(ValueError, match=r"params of weight must have shape \(6, 5\), got \(5, 6\)"):
        loaded.initialize(0, GIVEN | {"weight": jnp.ones((5, 6))})


def test_an_init_in_the_place_of_params_draws_the_frozen_arrays_too() -> None:
    def init(key: Any) -> Any:
        return GIVEN | {"table": jax.random.normal(key, (4,))}

    net = mr.trace(product, init, shape(4, 6), rules=RULES)
    one, two = net.initialize(jax.random.key(1)), net.initialize(jax.random.key(2))
    np.testing.assert_array_equal(one["table"], init(jax.random.key(1))["table"])
    assert (one["table"] != two["table"]).any()
    np.testing.assert_array_equal(net.initialize(7)["table"], init(jax.random.key(7))["table"])
    np.testing.assert_array_equal(net.own_parameters(3)["table"], init(jax.random.key(3))["table"])


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(6)(x))))


@pytest.mark.slow
def test_the_networks_own_parameters() -> None:
    x = jnp.ones((4, 5))
    model = Plain()
    variables = model.init(jax.random.key(9), x)
    assert mr.trace((model.apply, variables), x).own_parameters(1) is variables
    fresh = mr.trace(model, shape(4, 5)).own_parameters(4)  # linen makes its variables itself
    for one, other in zip(jax.tree.leaves(fresh), jax.tree.leaves(model.init(jax.random.key(4), x)), strict=True):
        np.testing.assert_array_equal(one, other)
    transform = hk.transform(lambda x: hk.Linear(3)(x))
    found = mr.trace(transform, x).own_parameters(2)
    np.testing.assert_array_equal(found["linear"]["w"], transform.init(jax.random.key(2), x)["linear"]["w"])
    with pytest.raises(ValueError, match="only the shapes of the parameters are known"):
        mr.trace(product, jax.eval_shape(lambda: GIVEN), shape(4, 6), rules=RULES).own_parameters()


class Counted(nnx.Module):
    """Statistics and a random stream beside the parameters."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.last = nnx.Linear(5, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, scale: float = 1.0) -> Any:
        return self.last(self.drop(nnx.relu(self.norm(self.first(x))))) * scale


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [False, True])
def test_calls_with_what_the_model_holds(jitted: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 5)), jnp.float32)
    model = Counted(nnx.Rngs(0))
    model.eval()
    net = mr.trace(model, shape(4, 5))
    net = net.jit() if jitted else net
    _, given, _ = nnx.split(model, nnx.Param, ...)
    np.testing.assert_allclose(net(x, given), model(x), rtol=1e-5)
    made = net.initialize(jax.random.key(0))
    assert jax.tree.structure(made) == jax.tree.structure(given)
    assert net(x, made).shape == (4, 3)
    stateful = hk.transform_with_state(lambda x: hk.Linear(3)(hk.BatchNorm(True, True, 0.9)(x, is_training=True)))
    weights, state = stateful.init(jax.random.key(0), x)
    net = mr.trace(stateful, weights, state, x)
    net = net.jit() if jitted else net
    np.testing.assert_allclose(net(x, weights), stateful.apply(weights, state, None, x)[0], rtol=1e-5)


def test_flags_and_further_arguments() -> None:
    def apply(p: Any, x: Any, mode: str, double: bool = False, mask: Any = None) -> Any:
        y = x @ p["w"]
        y = jnp.tanh(y) if mode == "tanh" else y
        return (2 * y if double else y) * (1 if mask is None else mask)

    x, w = jnp.ones((4, 6)), {"w": jnp.full((6, 5), 0.1)}
    net = mr.trace(apply, w, x, "tanh", double=True, mask=shape(4, 1)).jit()
    with pytest.raises(ValueError, match=r"traced with an input of which only the shape \(4, 1\) was given: give its values"):
        net(x, w)
    net = mr.trace(apply, w, x, "tanh", double=True, mask=jnp.full((4, 1), 3.0)).jit()
    np.testing.assert_allclose(net(x, w), 6 * jnp.tanh(x @ w["w"]), rtol=1e-6)
    np.testing.assert_allclose(net((x, "plain"), w), 6 * (x @ w["w"]), rtol=1e-6)
    np.testing.assert_allclose(net((2 * x,), w), 6 * jnp.tanh(2 * x @ w["w"]), rtol=1e-6)
