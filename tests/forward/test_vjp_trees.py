"""Random trees: gradients against JAX in float64, against differences, and through powers, shared weights and broadcast sums."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import modula_rs as mr
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from trees import Case, cases

EXAMPLES = functools.partial(settings, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def weights(m, rng, dtype=np.float64):
    """Random weights, also for biases and scales, which are constant at initialisation."""
    return [(a + 0.3 * rng.standard_normal(a.shape)).astype(dtype) for a in m.initialize(0, np.float64)]


def gradients(m, x, w, seed=1):
    y, pullback = m.vjp(x, w)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    return y, dy, *pullback(dy)


def flat(y, dx, gs):
    return np.concatenate([np.ravel(a) for a in (y, *([] if dx is None else [dx]), *gs)])


def jax_gradients(m, x, w, dy):
    """The gradients by jax.vjp in float64, with powers unrolled (scans have a test of their own)."""
    with jax.enable_x64(True), jax.disable_jit():
        y, pullback = jax.vjp(m.forward, jnp.asarray(x), [jnp.asarray(a) for a in w])
        dx, gs = pullback(jnp.asarray(dy))
        dx = None if dx.dtype == jax.dtypes.float0 else np.asarray(dx)
        return np.asarray(y), dx, [np.asarray(g) for g in gs]


def agree(ours, theirs, moved):
    """Equal up to rounding as the case magnifies it; ``moved`` are our gradients after everything moved by a share of 1e-10.

    If the gradients of a tree then move by more than 1e-4 of their size, the tree is close to a jump (a kink of ReLU, a division of a
    number that should be zero by its own size), where two correct answers may differ. Elsewhere rounding, less than 1e-13 a step, is
    magnified by the same factor.
    """
    size = np.abs(theirs).max(initial=1e-30)
    assume(np.abs(moved - ours).max(initial=0) <= 1e-4 * size)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * size)
    # Most trees are far from every jump; their gradients agree to ten digits.
    if np.abs(moved - ours).max(initial=0) <= 1e-8 * size:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * size)


def nudged(rng, a):
    return a if a.dtype.kind == "i" else a * (1 + 1e-10 * rng.standard_normal(a.shape))


@pytest.mark.slow
@EXAMPLES(max_examples=60)
@given(cases())
def test_random_trees_agree_with_jax(case: Case):
    m, rng = case.expr.build(), np.random.default_rng(0)
    w, x = weights(m, rng), case.input(rng)
    y, dy, dx, gs = gradients(m, x, w)
    moved = gradients(m, nudged(rng, x), [nudged(rng, a) for a in w])
    agree(flat(y, dx, gs), flat(*jax_gradients(m, x, w, dy)), flat(moved[0], *moved[2:]))
    assert [g.shape for g in gs] == [leaf.shape for leaf in m.leaves]
    assert all(g.dtype == np.float64 for g in gs)
    assert (dx is None) == (case.tokens is not None)


@pytest.mark.slow
@EXAMPLES(max_examples=300)
@given(cases(depth=4))
def test_random_trees_agree_with_differences(case: Case):
    m, rng = case.expr.build(), np.random.default_rng(0)
    w, x = weights(m, rng), case.input(rng)
    _, dy, dx, gs = gradients(m, x, w)
    direction = [rng.standard_normal(a.shape) for a in w]
    along = np.zeros(x.shape) if dx is None else rng.standard_normal(x.shape)

    def slope(h):
        def at(t):
            moved = x if dx is None else x + t * along
            return float((m(moved, [a + t * d for a, d in zip(w, direction, strict=True)]) * dy).sum())

        return (at(h) - at(-h)) / (2 * h)

    ours = (0.0 if dx is None else float((dx * along).sum())) + sum(float((g * d).sum()) for g, d in zip(gs, direction, strict=True))
    wide, narrow = slope(2e-5), slope(1e-5)
    size = abs(narrow) + np.abs(dy).sum()
    # If halving the step changes the slope, the function bends too much (or jumps) for a test by differences.
    assume(abs(wide - narrow) <= 1e-6 * size)
    # The error of the finer difference is a third of that change, plus the output's rounding, 1e-15 of its size, divided by the step.
    assert abs(ours - narrow) <= 1e-5 * size


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
@EXAMPLES(max_examples=60)
@given(cases())
def test_dtypes_are_kept(dtype, case: Case):
    m, rng = case.expr.build(), np.random.default_rng(0)
    w, x = weights(m, rng, dtype), case.input(rng, dtype)
    with np.errstate(all="ignore"):
        y, pullback = m.vjp(x, w)
        dx, gs = pullback(np.ones(y.shape))
    assert [g.dtype for g in gs] == [dtype] * len(w)
    assert [g.shape for g in gs] == [a.shape for a in w]
    assert dx is None if case.tokens else dx.dtype == dtype


@EXAMPLES(max_examples=60)
@given(cases())
def test_nothing_given_is_written_to(case: Case):
    m, rng = case.expr.build(), np.random.default_rng(0)
    w, x = weights(m, rng), case.input(rng)
    y, pullback = m.vjp(x, w)
    dy = np.ones_like(y)
    for array in (x, dy, *w):
        array.flags.writeable = False
    first, second = pullback(dy), pullback(dy)  # the pullback may be called more than once
    np.testing.assert_array_equal(flat(y, *first), flat(y, *second))


def linear():
    return mr.Linear(3, 3)


def shared():
    return mr.Linear(3, 3, share="s")


NETWORKS = {
    "shared in a sum": lambda: shared() @ (mr.Tanh() @ shared()) + shared(),
    "shared in a power": lambda: (mr.Tanh() @ shared() + mr.Bias(3)) ** 3,
    "shared across powers": lambda: (shared() @ mr.Tanh()) ** 2 @ (shared() @ mr.Scale(3)) ** 3,
    "nested powers": lambda: ((linear() @ mr.Tanh()) ** 2 @ mr.Bias(3)) ** 3,
    "a power of a sum": lambda: (0.5 * mr.Identity() + 0.5 * (mr.Scale(3) @ mr.Abs())) ** 4,
    "tuples in tuples": lambda: mr.Add() @ (mr.Add() @ (linear(), mr.Scale(3)), mr.Bias(3), mr.Identity()),
    "sums of tuples": lambda: mr.Add() @ (2 * (mr.Identity() @ (linear(), mr.Scale(3))) + mr.Identity() @ (mr.Bias(3), mr.Tanh())),
    "a power of tuples": lambda: mr.Add() @ mr.Mul(0.5) ** 3 @ (linear(), mr.Bias(3)),
    "broadcast": lambda: (mr.Mean(0) @ linear() - mr.Bias(3)) @ mr.Tanh(),
    "MLP": lambda: mr.MLP(2, 3, 8, 4),
    "ResMLP": lambda: mr.ResMLP(8, 3, 2, 3, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_jax_and_its_scan(name):
    m, rng = NETWORKS[name](), np.random.default_rng(0)
    w, x = weights(m, rng), rng.standard_normal((4, 3))
    y, dy, dx, gs = gradients(m, x, w)
    with jax.enable_x64(True):
        for module in (m, m.named("compiled").jit()):
            y_jax, pullback = module.vjp(jnp.asarray(x), [jnp.asarray(a) for a in w])
            theirs = flat(y_jax, *pullback(jnp.asarray(dy)))
            np.testing.assert_allclose(flat(y, dx, gs), theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def test_gradients_of_shared_weights_add():
    rng = np.random.default_rng(0)
    apart = (linear() @ mr.Tanh()) ** 3
    together = (shared() @ mr.Tanh()) ** 3
    (w,), x = together.initialize(1, np.float64), rng.standard_normal((5, 3))
    (one,) = together.vjp(x, [w])[1](np.ones((5, 3)))[1]
    (each,) = apart.vjp(x, [np.stack([w] * 3)])[1](np.ones((5, 3)))[1]
    np.testing.assert_allclose(one, each.sum(axis=0), rtol=1e-13)


def test_shared_half_precision_gradients_add_in_single():
    # 300 uses have gradient 1 each: a sum in bfloat16 would stop at 256.
    m = mr.Bias(1, share="b") ** 300
    y, pullback = m.vjp(np.zeros(1, ml_dtypes.bfloat16), [np.zeros(1, ml_dtypes.bfloat16)])
    assert float(pullback(np.ones_like(y))[1][0][0]) == 300


@pytest.mark.slow
def test_a_long_chain_and_a_high_power():
    chain = mr.Bias(2)
    for _ in range(20_000):
        chain = mr.Identity() @ chain
    _, pullback = (chain @ mr.Bias(2) ** 5_000).vjp(np.zeros(2), [np.zeros((5_000, 2)), np.zeros(2)])
    dx, (copies, last) = pullback(np.array([1.0, 2.0]))
    assert (copies == [1, 2]).all()
    assert (last == dx).all()
    assert (dx == [1, 2]).all()
