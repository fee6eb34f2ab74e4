"""Flax twins of MLP, GPT, ResCNN and Attention: their updates are those of our modules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
import twins

pytestmark = pytest.mark.slow

TWINS = {
    "mlp": lambda: twins.mlp(10, 64, width=48, depth=4),
    "attention": lambda: twins.attention(4, 32),
    "gpt": lambda: twins.gpt(65, 9, 4, 32, 3),
    "gpt, stacked": lambda: twins.gpt(65, 9, 4, 32, 3, stacked=True),
    "gpt, tied": lambda: twins.gpt(65, 9, 4, 32, 2, tied=True),
    "rescnn": lambda: twins.rescnn(16, 2, 2, 3, 10),
}


@pytest.fixture(params=TWINS)
def twin(request: pytest.FixtureRequest) -> twins.Twin:
    return TWINS[request.param]()


def noise(module: mr.Module, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in module.leaves]


def data(twin: twins.Twin) -> Any:
    rng = np.random.default_rng(5)
    if np.issubdtype(twin.x.dtype, np.integer):
        return jnp.asarray(rng.integers(0, 65, twin.x.shape), jnp.int32)
    return jnp.asarray(rng.standard_normal(twin.x.shape), jnp.float32)


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Arrays that agree to a share of the largest entry of each."""
    for path, a in jax.tree_util.tree_flatten_with_path(ours)[0]:
        b = theirs
        for key in path:
            b = b[key.key]
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))


def test_the_function_is_the_same(twin: twins.Twin) -> None:
    w = [jnp.asarray(array) for array in twin.ours.initialize(0)]
    x = data(twin)
    np.testing.assert_allclose(twin.apply(twin.to_twin(w), x), twin.ours(x, w), rtol=0, atol=2e-5)


@pytest.mark.parametrize("library", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_updates_are_ours_to_rounding(twin: twins.Twin, library: Any) -> None:
    w = [library(array) for array in noise(twin.ours, 1)]
    net, total = twin.network(w), sum(target.target for target in twin.ours.targets())
    for name in ("normalize", "dualize"):
        close(twin.to_twin(getattr(twin.ours, name)(w)), getattr(net, name)(twin.to_twin(w), total), 3e-6)


@pytest.mark.usefixtures("double_precision")
def test_training_goes_the_same_way() -> None:
    """Adam and the norm, on the gradients of each network's own forward pass. Warm estimates of norms agree to their accuracy, 1 %."""
    twin = TWINS["gpt"]()
    w = [jnp.asarray(array, jnp.float64) for array in twin.ours.initialize(0)]
    net, total, x = twin.network(w), sum(target.target for target in twin.ours.targets()), data(twin)

    def trained(norm: Any, target_norm: float, w: Any, apply: Any) -> Any:
        norm = mr.optax.scale_by_modular_norm(norm, target_norm=target_norm)
        optimizer = optax.chain(optax.scale_by_adam(), norm, optax.scale(-0.1))

        @jax.jit
        def step(w: Any, state: Any) -> Any:
            update, state = optimizer.update(jax.grad(lambda w: jnp.mean(apply(w, x) ** 2))(w), state, w)
            return optax.apply_updates(w, update), state

        state = optimizer.init(w)
        for _ in range(3):
            w, state = step(w, state)
        return w

    ours = trained(twin.ours, 1.0, w, lambda w, x: twin.ours(x, w))
    close(twin.to_twin(ours), trained(net, total, twin.to_twin(w), twin.apply), 0.01)
