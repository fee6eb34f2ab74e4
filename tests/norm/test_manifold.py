"""Steps on manifolds: tangency, norms, and optimality against the dual problem, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("double_precision")

SHAPES = [(6, 6), (5, 5), (9, 4), (4, 9), (7, 6), (20, 3), (5, 1), (1, 5)]


def gradient(kind: str, shape: tuple[int, int], seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "rank one":
        return rng.standard_normal((shape[0], 1)) * rng.standard_normal((1, shape[1]))
    g = rng.standard_normal(shape)
    if kind == "steep":
        u, s, vt = np.linalg.svd(g, full_matrices=False)
        return (u * np.logspace(0, -4, s.size)) @ vt
    return g


def least_upper_bound(w: np.ndarray, g: np.ndarray) -> float:
    """An upper bound of <g, a> over tangent a of norm 1, by duality: <g, a> = <g - w L, a> <= |g - w L|_* for every symmetric L.

    The nuclear norm is minimised over L by reweighted least squares, with columns of w orthonormal.
    """
    along = w.T @ g
    rest = g.T @ g - along.T @ along
    skew, free, best = (along - along.T) / 2, np.zeros_like(along), np.inf
    scale, smoothing = np.linalg.norm(g, 2), 1e-3
    for _ in range(300):
        value = np.linalg.svd(g - w @ ((along + along.T) / 2 - free), compute_uv=False).sum()
        best = min(best, value)
        inner = skew + free
        eigenvalues, v = np.linalg.eigh(inner.T @ inner + rest)
        z = 1 / np.sqrt(np.maximum(eigenvalues, 0) + (smoothing * scale) ** 2)
        turned = v.T @ skew @ v
        free = v @ ((z[:, None] * turned - turned * z) / (z[:, None] + z)) @ v.T
        free = (free + free.T) / 2
        smoothing = max(smoothing * 0.8, 1e-7)
    return best


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ordinary", "rank one", "steep"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_steepest_tangent_direction(shape: tuple[int, int], kind: str) -> None:
    m = mr.Linear(*shape)
    unit = (shape[0] / shape[1]) ** 0.5
    w, g = m.initialize(0, "float64"), [gradient(kind, shape)]
    a = m.tangent(g, w, 0.5)[0]
    tall, step, g_tall = (x.T if shape[0] < shape[1] else x for x in (w[0] / unit, a / unit / 0.5, g[0]))
    inner = tall.T @ step
    np.testing.assert_allclose(inner + inner.T, 0, atol=1e-10)
    gain, bound = float((g_tall * step).sum()), least_upper_bound(tall, g_tall)
    assert np.linalg.norm(step, 2) <= 1 + 1e-10
    assert gain <= bound * (1 + 1e-9)
    # Reweighting is slow where the best L makes singular values zero.
    assert gain >= bound * (1 - 1e-3)
    np.testing.assert_allclose(m.tangent([jnp.asarray(g[0])], [jnp.asarray(w[0])], 0.5)[0], a, atol=1e-9)


def test_square_matrices_have_the_known_solution() -> None:
    m = mr.Linear(6, 6)
    w, g = m.initialize(0, "float64"), [gradient("ordinary", (6, 6))]
    inner = w[0].T @ g[0]
    u, _, vt = np.linalg.svd(inner - inner.T)
    np.testing.assert_allclose(m.tangent(g, w)[0], w[0] @ u @ vt, atol=1e-9)


def test_rows_move_on_spheres_and_vectors_freely() -> None:
    m = mr.Scale(5) @ mr.Bias(5) @ mr.Embed(5, 7)
    rng = np.random.default_rng(7)
    w = m.initialize(0, "float64")
    g = [rng.standard_normal(a.shape) for a in w]
    g[0][3] = 0
    made = m.tangent(g, w)
    target = m.targets()[0].target
    np.testing.assert_allclose((made[0] * w[0]).sum(-1), 0, atol=1e-12)
    rows = g[0] - (g[0] * w[0]).mean(-1, keepdims=True) * w[0]
    rms = np.sqrt((rows**2).mean(-1, keepdims=True))
    np.testing.assert_allclose(made[0], target * rows / np.where(rms, rms, 1), atol=1e-12)
    for a, b in zip(made[1:], m.dualize(g)[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    after = m.manifold_step(w, g, 0.3)
    np.testing.assert_allclose(np.sqrt((after[0] ** 2).mean(-1)), 1, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_step_stays_on_the_manifold(dtype: str) -> None:
    m = mr.Linear(4, 6) @ mr.Tanh() @ (mr.Linear(6, 6) ** 3) @ mr.Conv2D(6, 3)
    w = [jnp.asarray(a) for a in m.initialize(0, dtype)]
    for seed in range(3):
        g = [jnp.asarray(np.random.default_rng(seed).standard_normal(a.shape), dtype) for a in w]
        w = jax.jit(m.manifold_step)(w, g, 0.2)
    start = m.initialize(1, "float64")
    rounding = 32 * float(jnp.finfo(dtype).eps)
    for a, b in zip(w, start, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(
            np.linalg.svd(np.asarray(a, np.float64), compute_uv=False), np.linalg.svd(b, compute_uv=False), rtol=rounding
        )


@pytest.mark.slow
def test_training_on_the_manifold_descends() -> None:
    m = mr.Linear(3, 16) @ mr.Tanh() @ mr.Linear(16, 16) @ mr.Tanh() @ mr.Linear(16, 5)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5))
    y = np.eye(3)[(x @ rng.standard_normal((5, 3))).argmax(-1)]
    w, losses = m.initialize(0, "float64"), []
    for step in range(60):
        out, pullback = m.vjp(x, w)
        p = np.exp(out - out.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        losses.append(-np.log((p * y).sum(-1)).mean())
        w = m.manifold_step(w, pullback((p - y) / len(x))[1], 0.3 * (1 - step / 60))
    assert losses[-1] < 0.8 * losses[0], (losses[0], losses[-1])
    assert max(abs(norm - 1) for norm in m.atom_norms(w)) < 1e-9


@pytest.mark.slow
def test_structures_and_errors() -> None:
    net = mr.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], {"a": jnp.ones((6, 6)), "b": jnp.ones((6, 3))}, jnp.ones((2, 6)))
    w = net.project({"a": jnp.asarray(gradient("ordinary", (6, 6))), "b": jnp.asarray(gradient("ordinary", (6, 3)))})
    g = {"a": jnp.asarray(gradient("ordinary", (6, 6), 1)), "b": jnp.asarray(gradient("ordinary", (6, 3), 1))}
    update = net.tangent(g, w, 0.1)
    assert float(net.norm(update)) == pytest.approx(0.1, rel=0.01)
    for name in net.initialize(0):
        inner = w[name].T @ update[name]
        np.testing.assert_allclose(inner + inner.T, 0, atol=1e-9)
        assert (g[name] * update[name]).sum() > 0
    assert set(net.manifold_step(w, g, 0.1)) == {"a", "b"}
    m = mr.Linear(4, 5)
    with pytest.raises(ValueError, match=r"weight of linear must have shape \(4, 5\), got \(5, 4\)"):
        m.tangent([np.ones((4, 5))], [np.ones((5, 4))])
    with pytest.raises(FloatingPointError, match="linear"):
        m.tangent([np.full((4, 5), np.inf)], m.initialize(0))
    assert not m.tangent([np.full((4, 5), np.inf)], m.initialize(0), nonfinite="zero")[0].any()
    with pytest.raises(ValueError, match="target_norm must be finite"):
        m.tangent([np.ones((4, 5))], m.initialize(0), -1.0)
    # A shared array stays within the targets of all its uses.
    tied = mr.Linear(9, 4, share="t") @ mr.Embed(4, 9, share="t")
    w = tied.initialize(0, "float64")
    assert tied.norm(tied.tangent([gradient("ordinary", (9, 4))], w)) <= 1.02
