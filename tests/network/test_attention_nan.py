"""Never NaN: fully masked rows, zero gradients, untouched embedding rows, and the first steps of a GPT, in every precision."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_without_a_key_give_zeros_and_zero_gradients(xp, dtype):
    m = mr.Softmax(2.0) @ mr.CausalMask()
    scores = xp.asarray(np.full((2, 3, 3), -np.inf), dtype)
    y, pullback = m.vjp(scores, [])
    assert (np.asarray(y, np.float32) == 0).all()
    dx, _ = pullback(xp.ones_like(y))
    assert (np.asarray(dx, np.float32) == 0).all()


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_huge_scores_are_finite(xp):
    x = xp.asarray(np.array([[1e30, -1e30, 0.0], [3e38, 3e38, 1.0], [-3e38, -1e30, 0.0]], np.float32))
    y, pullback = mr.Softmax(1.0).vjp(x, [])
    assert np.isfinite(pullback(xp.ones_like(y))[0]).all()
    np.testing.assert_allclose(y, [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-7)


@pytest.mark.parametrize("causal", [False, True])
def test_no_keys_at_all(causal):
    attention = mr.FunctionalAttention(causal)
    q, k, v = np.ones((2, 3, 4)), np.ones((2, 0, 4)), np.ones((2, 0, 5))
    assert (attention((q, k, v), []) == np.zeros((2, 3, 5))).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_first_steps_of_a_gpt_are_finite(dtype):
    """Most tokens never occur, so the last layers start with zero gradients for them, and the first Adam step divides 0 by 0."""
    m = mr.GPT(65, 16, 2, 16, 8, 8, 2)
    norm = mr.optax.scale_by_modular_norm(m)

    def loss(w, batch):
        logits = m(batch[:, :-1], w).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()

    @jax.jit
    def step(w, state, batch):
        value, gradient = jax.value_and_grad(loss)(w, batch)
        update, adam = mr.optim.adam(gradient, state[0])
        update, vectors = norm.update(update, state[1])
        return m.regularize([(a - 0.5 * u).astype(a.dtype) for a, u in zip(w, update, strict=True)], 0.005), (adam, vectors), value

    for seed in range(3):
        w = m.initialize(jax.random.key(seed), dtype)
        state = mr.optim.adam_init(w), norm.init(w)
        for t in range(4):
            w, state, value = step(w, state, np.random.default_rng((seed, t)).integers(0, 5, (2, 17)).astype(np.int32))
            assert np.isfinite(value)
        assert all(a.dtype == dtype and bool(jnp.isfinite(a).all()) for a in w)


@pytest.mark.slow
def test_zero_gradients_give_zero_updates():
    m = mr.GPT(7, 4, 2, 8, 4, 4, 2)
    for zeros in ([np.zeros(leaf.shape, np.float32) for leaf in m.leaves], [jnp.zeros(leaf.shape) for leaf in m.leaves]):
        for update in (m.normalize(zeros), m.dualize(zeros)):
            assert all((np.asarray(a) == 0).all() for a in update)
