"""Parts that both Modulas have: every name of theirs is in the porting guide, every name of ours exists, the parts compute the same."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
import references

GUIDE = (Path(__file__).parents[2] / "docs" / "porting.md").read_text()

#: The public names of `modula` for JAX (2025) and for PyTorch (2024), module by module.
JAX = [
    "Module", "Atom", "Bond", "CompositeModule", "TupleModule", "Identity", "Add", "Mul", "children", "atoms", "bonds", "smooth",
    "sensitivity", "mass", "tare", "jit", "forward", "initialize", "project", "dualize", "orthogonalize", "Linear", "Embed", "ReLU",
    "GeLU", "SplitIntoHeads", "MergeHeads", "AttentionQK", "CausalMask", "Softmax", "ApplyAttentionScores", "Rope", "MLP",
    "Attention", "GPT", "softmax_scale", "attention_scale", "final_scale",
]  # fmt: skip
TORCH = [
    "Module", "Bond", "CompositeModule", "TupleModule", "Mul", "Add", "mass", "sensitivity", "length", "children", "forward",
    "initialize", "normalize", "regularize", "tare", "print_submodules", "Vector", "grad", "zero_grad", "zero_nans", "all_reduce",
    "broadcast", "Linear", "Conv2D", "Embedding", "scale", "Identity", "Flatten", "AddHeads", "RemoveHeads", "Enumerate", "Abs",
    "ReLU", "ScaledReLU", "GELU", "ScaledGELU", "MeanSubtract", "RMSDivide", "LayerNorm", "Mean", "AvgPool", "FunctionalAttention",
    "ResMLP", "ResCNN", "Attention", "GPT",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted({*JAX, *TORCH}))
def test_every_name_of_theirs_is_in_the_guide(name):
    assert any(re.search(rf"\b{name}\b", code) for code in re.findall(r"`([^`]*)`", GUIDE))


def test_every_name_of_ours_exists():
    names = sorted(set(re.findall(r"\bmr((?:\.\w+)+)", GUIDE)))
    assert len(names) > 50
    for name in names:
        found = mr
        for part in name.split(".")[1:]:
            found = getattr(found, part)


def test_every_option_in_the_guide_exists():
    built = [
        mr.GPT(5, 4, 2, 4, 2, 2, 1, position="rope", norm=None, attention_scale=1.0, final_scale=1.0, residual_scale=1.0, zero=True),
        mr.GPT(5, 4, 2, 4, 2, 2, 1, unembed=True),
        mr.Attention(2, 4, 2, 2, True, rope=True, softmax_scale=1.0, zero=True),
        mr.Linear(4, 2, scale=(4 / 2) ** 0.5),
        mr.Embed(4, 7, scale=4**0.5),
        mr.FunctionalAttention(True, scale=2.0),
    ]
    assert all(isinstance(m, mr.Module) for m in built)


def test_weights_of_the_torch_package_have_spectral_norm_and_length_one():
    w = mr.Linear(12, 3, scale=(12 / 3) ** 0.5).initialize(0, np.float64)[0]
    np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), 1, rtol=1e-12)
    rows = mr.Embed(9, 5, scale=9**0.5).initialize(0, np.float64)[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)


# ---- attention in parts ----------------------------------------------------------------------------------------------------------


def attention_of_the_guide(*sizes):
    scope = {}
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    exec(code, scope)
    return scope["attention"](*sizes)


def published(x, v, q, k, w, heads, scale, turn):
    """The JAX package's attention on one sequence, in loops. `turn` gives a query or key at its position."""
    length, dq, dv = len(x), len(q) // heads, len(v) // heads
    merged = np.zeros((length, heads * dv))
    for h in range(heads):
        queries = [turn(q[h * dq : (h + 1) * dq] @ x[i], i) for i in range(length)]
        keys = [turn(k[h * dq : (h + 1) * dq] @ x[i], i) for i in range(length)]
        values = [v[h * dv : (h + 1) * dv] @ x[i] for i in range(length)]
        for i in range(length):
            weights = [math.exp(scale * queries[i] @ keys[j] / dq) for j in range(i + 1)]
            merged[i, h * dv : (h + 1) * dv] = sum(a * values[j] for j, a in enumerate(weights)) / sum(weights) / 3
    return merged @ w.T


def reflected(x, position, base=10000.0):
    """What Modula's Rope does: it unpacks its tables as (cos, sin) where they are (sin, cos)."""
    half = len(x) // 2
    angles = position * base ** (-np.arange(half) / half)
    sin, cos = np.sin(angles), np.cos(angles)
    first, second = x[half:], x[:half]
    return np.concatenate([sin * first + cos * second, -cos * first + sin * second])


def test_the_attention_of_the_guide_is_the_published_one_but_for_its_rope():
    m = attention_of_the_guide(2, 10, 4, 6, 1.7)
    assert [leaf.path for leaf in m.leaves] == ["v", "q", "k", "w"]
    assert (m.mass, m.atoms, m.bonds) == (4.0, 4, 10)
    w, x = m.initialize(0, np.float64), np.random.default_rng(0).standard_normal((5, 10)) * 2
    ours = m(x, w)
    np.testing.assert_allclose(ours, published(x, *w, 2, 1.7, references.turn), rtol=0, atol=1e-12)
    theirs = published(x, *w, 2, 1.7, reflected)
    assert np.abs(ours - theirs).max() > 0.01 * np.abs(ours).max()
    # Their rotation runs the other way: theirs at positions counted backwards is ours.
    for i in range(4):
        for j in range(4):
            a, b = x[0, :4], x[1, :4]
            assert reflected(a, i) @ reflected(b, j) == pytest.approx(references.turn(a, j) @ references.turn(b, i), abs=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_parts_make_the_attention_that_is_in_one(causal):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 3, 5, d)) for d in (4, 4, 6))
    scores = mr.Softmax(2.5) @ (mr.CausalMask() @ mr.AttentionQK() if causal else mr.AttentionQK())
    parts = mr.ApplyAttentionScores()((v, scores((q, k), [])), [])
    np.testing.assert_allclose(parts, mr.FunctionalAttention(causal, 2.5)((q, k, v), []), rtol=1e-12)


PARTS = {
    "AttentionQK": (mr.AttentionQK, [(2, 5, 4), (2, 3, 4)]),
    "ApplyAttentionScores": (mr.ApplyAttentionScores, [(2, 5, 4), (2, 3, 5)]),
    "FunctionalAttention of scale 3": (lambda: mr.FunctionalAttention(True, 3.0), [(2, 5, 4), (2, 5, 4), (2, 5, 6)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_gradients_of_the_parts_are_those_of_jax(name, dtype):
    build, shapes = PARTS[name]
    m, rng = build(), np.random.default_rng(0)
    x = tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)
    y, pullback = m.vjp(x, [])
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, _ = pullback(dy)
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(a, np.float64)) for a in x)
        expected, transposed = jax.vjp(m.apply, wide)
        (truth,) = transposed(jnp.asarray(np.asarray(dy, np.float64)))
    tolerance = 100 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * float(np.abs(expected).max()))
    for ours, theirs, member in zip(dx, truth, x, strict=True):
        assert (ours.dtype, ours.shape) == (member.dtype, member.shape)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * float(np.abs(theirs).max()))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 8.0])
def test_no_movement_of_attention_exceeds_its_sensitivity(scale):
    """Random and worst directions, with |q| + |k| + |v| = 1: the size of the movement over the sum of the three sizes."""
    m, rng = mr.FunctionalAttention(False, scale), np.random.default_rng(0)
    size = lambda a: float(np.sqrt((a**2).mean(-1)).max())  # noqa: E731
    worst = 0.0
    for _ in range(300):
        x = [rng.choice([-1.0, 1.0], (1, n, d)) for n, d in ((1, 2), (2, 2), (2, 2))]
        shares = rng.dirichlet([1, 1, 1])
        x = [share * a for share, a in zip(shares, x, strict=True)]
        dx = [rng.choice([-1.0, 1.0], a.shape) * s for a, s in zip(x, rng.dirichlet([0.2, 0.2, 0.2]), strict=True)]
        ahead, back = (m(tuple(a + h * d for a, d in zip(x, dx, strict=True)), []) for h in (1e-6, -1e-6))
        worst = max(worst, size((ahead - back) / 2e-6) / sum(map(size, dx)))
    assert 0.4 * m.sensitivity < worst <= m.sensitivity * (1 + 1e-6)


def test_bad_inputs_of_the_parts():
    ones = np.ones((2, 3, 4))
    for call, error, message in [
        (lambda: mr.AttentionQK()(ones, []), TypeError, "takes a tuple of queries and keys"),
        (lambda: mr.AttentionQK()((ones, np.ones((2, 3, 5))), []), ValueError, r"expected q \(..., queries, d\)"),
        (lambda: mr.ApplyAttentionScores()((ones,), []), TypeError, "takes a tuple of values and scores"),
        (lambda: mr.ApplyAttentionScores()((ones, ones), []), ValueError, r"expected v \(..., keys, d\)"),
        (lambda: mr.FunctionalAttention(True, 0), ValueError, "must be positive and finite, got 0.0"),
        (lambda: mr.Softmax() @ mr.AttentionQK() @ (mr.Linear(4, 3), mr.Linear(5, 3)), ValueError, "features"),
    ]:
        with pytest.raises(error, match=message):
            call()


# ---- other parts -----------------------------------------------------------------------------------------------------------------


def test_sigmoid_its_slope_and_its_bend():
    m = mr.Sigmoid()
    x = np.linspace(-30, 30, 100001)
    y, pullback = m.vjp(x, [])
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)), rtol=0, atol=1e-15)
    slope = pullback(np.ones_like(x))[0]
    np.testing.assert_allclose(slope, np.gradient(y, x), atol=1e-7)
    assert m.sensitivity == pytest.approx(slope.max(), rel=1e-6)
    bend = np.abs(np.gradient(slope, x)).max()
    assert (mr.Sigmoid() @ mr.Linear(16, 4)).sharpness.gamma == pytest.approx(bend * 16**0.5, rel=1e-4)
    half = m(np.array([-400.0, 400.0], np.float16), [])
    assert half.dtype == np.float16
    assert half.tolist() == [0.0, 1.0]
    np.testing.assert_allclose(jax.jit(lambda x: m(x, []))(jnp.asarray(x, jnp.float32)), y, atol=1e-6)


def test_no_logit_of_an_unembed_moves_further_than_its_norm():
    m, rng = mr.Unembed(7, 5), np.random.default_rng(0)
    w, g = m.initialize(0, np.float64), [rng.standard_normal((7, 5))]
    assert m.norm(w) == pytest.approx(1, rel=1e-6)
    for update in (m.normalize(g), m.dualize(g)):
        assert m.norm(update) == pytest.approx(1, rel=1e-6)
        largest = max(float(np.abs(update[0] @ x).max() / np.sqrt((x**2).mean())) for x in update[0])  # a row is its own worst input
        assert largest == pytest.approx(1, rel=1e-6)
    steepest = m.dualize(g)[0]
    np.testing.assert_allclose(np.sqrt((steepest**2).mean(axis=1)), 1 / 5, rtol=1e-6)  # every row moves as far
    assert m.dual_norm(g) == pytest.approx(float((steepest * g[0]).sum()), rel=1e-6)
    x = rng.standard_normal((3, 5))
    y, pullback = m.vjp(x, w)
    np.testing.assert_allclose(y, x @ w[0].T, rtol=1e-12)
    dx, (dw,) = pullback(np.ones_like(y))
    np.testing.assert_allclose(dx, np.ones_like(y) @ w[0], rtol=1e-12)
    np.testing.assert_allclose(dw, np.ones_like(y).T @ x, rtol=1e-12)
    on_jax = [jnp.asarray(a, jnp.float32) for a in g]
    np.testing.assert_allclose(m.dualize(on_jax)[0], steepest, rtol=1e-5)
    assert (m.in_features, m.out_features, m.sensitivity) == (5, 7, 1.0)
    with pytest.raises(ValueError, match="features"):
        m @ mr.Linear(4, 3)


@pytest.mark.parametrize("shape", [(6, 6), (3, 9), (9, 3), (0, 4), (1, 1)])
def test_a_gaussian_start_has_norm_one(shape):
    m = mr.Linear(*shape, gaussian=True)
    for w in (m.initialize(0, np.float64)[0], np.asarray(m.initialize(jax.random.key(0))[0], np.float64)):
        assert w.shape == shape
        if w.size:
            assert np.linalg.norm(w, 2) == pytest.approx((shape[0] / shape[1]) ** 0.5, rel=1e-5)
    square = mr.Linear(200, 200, gaussian=True)
    outputs = square(np.random.default_rng(0).standard_normal((50, 200)), square.initialize(1))
    assert float(np.sqrt((outputs**2).mean())) == pytest.approx(0.5, rel=0.05)
    assert (square**3).initialize(0)[0].shape == (3, 200, 200)
    with pytest.raises(ValueError, match="not both"):
        mr.Linear(2, 2, gaussian=True, zero=True)


# ---- scales of a GPT ---------------------------------------------------------------------------------------------------------------


def plain(**options):
    return mr.GPT(11, 9, 2, 12, 4, 5, 3, **options)


def test_zero_start_makes_the_blocks_the_identity():
    m, tokens = plain(zero=True, norm=None), np.arange(7)[None]
    w = m.initialize(0, np.float64)
    stream = (1 - 1 / 6) ** 6 * (0.5 * w[0][tokens] + 0.5 * w[1][:7])
    np.testing.assert_allclose(m(tokens, w), stream @ w[-1].T, rtol=1e-10)
    assert [leaf.path for leaf, a in zip(m.leaves, w, strict=True) if not a.any()] == ["blocks/attention/output", "blocks/mlp/output"]


def test_final_scale_multiplies_the_logits_and_divides_the_targets_before_the_head():
    m, scaled, tokens = plain(), plain(final_scale=4.0), np.arange(7)[None]
    w = m.initialize(0, np.float64)
    np.testing.assert_allclose(scaled(tokens, w), 4 * m(tokens, w), rtol=1e-12)
    assert scaled.sensitivity == pytest.approx(4)
    for a, b in zip(m.targets(), scaled.targets(), strict=True):
        assert b.target == pytest.approx(a.target / 4, rel=1e-12)


@pytest.mark.parametrize("residual_scale", [0.25, 1.0, 2.0, 6.0])
def test_residual_scale_weighs_the_blocks(residual_scale):
    m, tokens = plain(residual_scale=residual_scale, zero=True, norm=None), np.arange(7)[None]
    w = m.initialize(0, np.float64)
    stream = (1 - residual_scale / 6) ** 6 * (0.5 * w[0][tokens] + 0.5 * w[1][:7])
    np.testing.assert_allclose(m(tokens, w), stream @ w[-1].T, rtol=1e-10, atol=1e-12)
    assert m.sensitivity == pytest.approx(1)


def test_attention_scale_is_the_softmax_scale_of_every_attention():
    x = np.random.default_rng(0).standard_normal((1, 5, 10)) * 3
    m, scaled = mr.Attention(3, 10, 4, 6, True), mr.Attention(3, 10, 4, 6, True, softmax_scale=9.0)
    w = m.initialize(0, np.float64)
    tripled = [3 * w[0], 3 * w[1], *w[2:]]  # queries and keys three times as large give scores nine times as large
    np.testing.assert_allclose(scaled(x, w), m(x, tripled), rtol=1e-10)
    assert scaled.sensitivity == pytest.approx(9 / 4)
    assert plain(attention_scale=9.0).fingerprint != plain().fingerprint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"residual_scale": 0}, ValueError, "residual_scale must be above 0 and at most 2 num_blocks, got 0"),
        ({"residual_scale": 6.5}, ValueError, "residual_scale"),
        ({"final_scale": 0}, ValueError, "not 0"),
        ({"attention_scale": -1}, ValueError, "positive and finite"),
        ({"unembed": True, "tie_embeddings": True}, ValueError, "a weight of its own"),
        ({"unembed": 1}, TypeError, "unembed must be True or False"),
        ({"zero": "yes"}, TypeError, "zero must be True or False"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        plain(**options)


def test_defaults_are_the_network_that_they_were():
    same = plain(attention_scale=1.0, residual_scale=1.0, final_scale=1.0, zero=False, unembed=False)
    assert same.fingerprint == plain().fingerprint
