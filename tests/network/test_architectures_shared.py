"""Shared weights: gradients add, updates keep the whole well-normed, and a tied GPT learns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest

D, TOKENS = 6, 10


def rms(x):
    return np.sqrt((x**2).mean(axis=-1)).max()


def in_a_tuple():
    return (mr.Linear(D, D, share="a"), mr.Linear(D, D, share="a", mass=3) @ mr.Tanh()) @ mr.Linear(D, D)


SHARED = {
    "tuple": lambda: mr.Add() @ in_a_tuple(),
    "power": lambda: (0.5 * mr.Identity() + 0.5 * mr.Linear(D, D, share="a") @ mr.Tanh()) ** 4,
    "contracting power": lambda: (0.7 * mr.Linear(D, D, share="a")) ** 3,
    "expanding power": lambda: (1.5 * mr.Linear(D, D, share="a")) ** 3,
    "unequal masses": lambda: mr.Linear(D, D, share="a", mass=5) @ mr.Tanh() @ (2 * mr.Linear(D, D, share="a")),
    "tied": lambda: mr.Linear(TOKENS, D, share="t") @ mr.Tanh() @ mr.Linear(D, D) @ mr.Embed(D, TOKENS, share="t"),
}


def unit_weights(m, rng):
    """Weights of which no use has a norm above 1: Gaussian, each shrunk by the largest norm of any atom that reads it."""
    w = []
    for leaf in m.leaves:
        a = rng.standard_normal(leaf.shape)
        flat = a.reshape(-1, *leaf.shape[-2:])
        spectral = max(np.sqrt(b.shape[1] / b.shape[0]) * np.linalg.norm(b, 2) for b in flat)
        w.append(a / max(spectral, rms(flat)))
    return w


@pytest.mark.parametrize("name", SHARED)
def test_a_step_of_norm_one_moves_the_output_by_at_most_one(name):
    """||dM/dw . dw|| <= ||dw||_M at inputs and weights of norm 1, for the directions that ``normalize`` and ``dualize`` give."""
    m, rng = SHARED[name](), np.random.default_rng(0)
    assert len({leaf.path for leaf in m.leaves}) == len(m.leaves) < m.atoms
    largest = 0.0
    for trial in range(30):
        w = unit_weights(m, rng)
        if name == "tied":
            x = np.arange(TOKENS)
        else:
            x = rng.standard_normal((4, D))
            x /= np.sqrt((x**2).mean(axis=-1, keepdims=True))
        direction = [rng.standard_normal(a.shape) for a in w]
        if trial % 3 == 0:  # the gradient itself is the worst direction
            y, pullback = m.vjp(x, w)
            direction = pullback(rng.standard_normal(y.shape))[1]
        step = m.dualize(direction) if trial % 2 else m.normalize(direction)
        assert m.norm(step) <= 1.01
        h = 1e-6  # central differences: h^2 times third derivatives and 1e-16 / h of rounding are both far below the margin
        forward, backward = (m(x, [a + sign * h * s for a, s in zip(w, step, strict=True)]) for sign in (1, -1))
        largest = max(largest, rms((forward - backward) / (2 * h)))
    assert 0.02 < largest <= 1.01


@pytest.mark.parametrize("name", SHARED)
def test_gradients_of_the_uses_add(name):
    m, rng = SHARED[name](), np.random.default_rng(0)
    w = unit_weights(m, rng)
    x = np.arange(TOKENS) if name == "tied" else rng.standard_normal((3, D))
    y, pullback = m.vjp(x, w)
    dy, h = rng.standard_normal(y.shape), 1e-6
    for gradient, index in zip(pullback(dy)[1], range(len(w)), strict=True):
        direction = rng.standard_normal(w[index].shape)
        moved = [[*w[:index], w[index] + sign * h * direction, *w[index + 1 :]] for sign in (1, -1)]
        slope = ((m(x, moved[0]) - m(x, moved[1])) * dy).sum() / (2 * h)
        assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_a_tied_transformer_has_one_table():
    tied, apart = (mr.GPT(TOKENS, 8, 2, 12, 4, 4, 2, tie_embeddings=tie) for tie in (True, False))
    assert len(tied.leaves) == len(apart.leaves) - 1
    assert [row.target for row in tied.targets()] == pytest.approx([row.target for row in apart.targets()])
    assert [row.path for row in tied.targets() if row.kind in ("Embed", "Linear") and row.shape == (TOKENS, 12)] == ["tokens", "tokens"]
    update = tied.normalize(tied.initialize(0))
    unit = np.sqrt(12 / TOKENS) * np.linalg.norm(update[0], 2)
    targets = {row.kind: row.target for row in tied.targets() if row.path == "tokens"}
    assert unit <= targets["Linear"] * 1.01
    assert rms(update[0]) <= targets["Embed"] * 1.01


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_tied_transformer_learns(position):
    m = mr.GPT(4, 8, 2, 16, 8, 8, 2, tie_embeddings=True, position=position)
    tokens = jnp.asarray(np.tile([0, 1, 2, 3, 1], 10)[np.arange(8)[:, None] + np.arange(9)])

    def loss(w):
        return optax.softmax_cross_entropy_with_integer_labels(m(tokens[:, :-1], w), tokens[:, 1:]).mean()

    @jax.jit
    def step(w, state, rate):
        value, gradient = jax.value_and_grad(loss)(w)
        update, state = mr.optim.adam(gradient, state)
        return [a - rate * u for a, u in zip(w, m.normalize(update), strict=True)], state, value

    w = m.initialize(jax.random.key(0))
    state = mr.optim.adam_init(w)
    for t in range(60):
        w, state, value = step(w, state, 0.5 * (1 - t / 60))
    # After 1 comes 2 or 0 by what came before: the unigram answer leaves 0.4 ln 2 = 0.28, and the first token is a guess.
    assert value < 0.2
