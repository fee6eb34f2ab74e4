"""Networks on meshes with Auto and Explicit axes: outputs, gradients and training steps, of modules and of a traced Flax network."""

from __future__ import annotations

import contextlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from eight import P, assert_like, fitting, mesh, put
from jax.sharding import NamedSharding

KINDS = ["auto", "explicit"]
#: Data parallel, fully sharded, tensor parallel, stacked layers, and two axes for weights.
WEIGHTS = {
    "data": fitting([None]),
    "fully sharded": fitting([None, None, "a"]),
    "tensor": fitting([None, "b", None]),
    "stack": fitting(["b", None, None]),
    "two axes": fitting([None, "a", "b"]),
}


def tokens() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 24, (8, 8)), jnp.int32)


def loss(m: Any, w: Any, x: jax.Array) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(m(x, w), x).mean()


@pytest.fixture(scope="module")
def gpt() -> Any:
    m = mr.GPT(24, 8, 2, 16, 8, 8, 2)
    w = m.initialize(jax.random.key(0))
    return m, w, jax.value_and_grad(loss, argnums=1)(m, w, tokens())


@pytest.mark.parametrize(("kind", "name"), [("auto", "two axes"), *(("explicit", name) for name in WEIGHTS)])
def test_gradients_of_a_transformer(gpt: Any, kind: str, name: str) -> None:
    m, w, (value, gradient) = gpt
    on = mesh(kind)
    where = [NamedSharding(on, WEIGHTS[name](x.shape)) for x in w]
    x = jax.device_put(tokens(), NamedSharding(on, P("a")))
    step = jax.jit(jax.value_and_grad(lambda w, x: loss(m, w, x)), out_shardings=(None, where) if kind == "auto" else None)
    found, made = step(put(w, where), x)
    np.testing.assert_allclose(float(found), float(value), rtol=1e-5)
    assert_like(made, gradient, where)


@pytest.mark.parametrize("inside", [False, True])
def test_outputs_lie_like_inputs_with_and_without_set_mesh(gpt: Any, inside: bool) -> None:
    if not hasattr(jax, "set_mesh"):
        pytest.skip("jax.set_mesh is newer")
    m, w, _ = gpt
    on = mesh("explicit")
    where = [NamedSharding(on, WEIGHTS["tensor"](x.shape)) for x in w]
    x = jax.device_put(tokens(), NamedSharding(on, P("a")))
    with jax.set_mesh(on) if inside else contextlib.nullcontext():
        for output in (m(x, put(w, where)), jax.jit(m.forward)(x, put(w, where))):
            np.testing.assert_allclose(output, m(tokens(), w), atol=1e-5)
            assert output.sharding.is_equivalent_to(NamedSharding(on, P("a")), 3)


@pytest.mark.parametrize("m", [mr.ResMLP(16, 2, 2, 8, 4), mr.ResCNN(8, 2, 1, 3, 4)], ids=["ResMLP", "ResCNN"])
def test_other_networks(m: mr.Module) -> None:
    shape = (8, 8) if len(m.leaves[0].shape) == 2 else (8, 6, 6, 3)
    x = jax.random.normal(jax.random.key(1), shape)
    w = m.initialize(jax.random.key(0))
    on = mesh("explicit")
    where = [NamedSharding(on, WEIGHTS["two axes"](a.shape)) for a in w]
    square = lambda w, x: (m(x, w) ** 2).mean()  # noqa: E731
    made = jax.jit(jax.grad(square))(put(w, where), jax.device_put(x, NamedSharding(on, P("a"))))
    assert_like(made, jax.grad(square)(w, x), where)


@pytest.mark.parametrize("kind", KINDS)
def test_a_traced_network(kind: str) -> None:
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(16)(nn.relu(nn.LayerNorm()(nn.Dense(32)(x))))

    model, x = Network(), jax.random.normal(jax.random.key(1), (8, 64))
    params = model.init(jax.random.key(0), x)
    net = mr.trace((model.apply, params), x)
    on = mesh(kind)
    where = jax.tree.map(lambda a: NamedSharding(on, P("a", "b") if a.ndim == 2 else P("b")), params)
    placed = jax.device_put(params, where)
    batch = jax.device_put(x, NamedSharding(on, P("a")))
    np.testing.assert_allclose(net(batch, placed), model.apply(params, x), atol=1e-5)
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(net, shardings=where), optax.scale(-0.1))

    def step(params: Any, state: Any, x: jax.Array) -> Any:
        gradient = jax.grad(lambda params: (net(x, params) ** 2).mean())(params)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state

    made, state = jax.jit(step)(placed, mr.optax.init(optimizer, placed), batch)
    made, state = jax.jit(step)(made, state, batch)
    alone = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(net), optax.scale(-0.1))
    optimizer, before = alone, alone.init(params)
    expected, before = step(params, before, x)
    expected, before = step(expected, before, x)
    assert_like(jax.tree.leaves(made), jax.tree.leaves(expected), jax.tree.leaves(where), tolerance=2e-4)
