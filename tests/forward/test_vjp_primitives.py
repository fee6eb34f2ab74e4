"""Every atom and bond: the gradients in each dtype against JAX in float64, at jumps of the slope, and at every scale."""

import jax
import jax.numpy as jnp
import ml_dtypes
import modula_rs as mr
import numpy as np
import pytest

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16]

VECTORS = [(5,), (3, 5), (2, 3, 5), (0, 5)]
SCORES = [(3, 3), (2, 4, 3), (2, 3, 4), (2, 0, 3)]
IMAGES = [(2, 6, 6, 4), (6, 6, 4), (2, 3, 6, 6, 4), (0, 6, 6, 4)]

PRIMITIVES = {
    "Linear": (lambda: mr.Linear(4, 5), VECTORS),
    "Linear of nothing": (lambda: mr.Linear(4, 0), [(2, 0)]),
    "Linear to nothing": (lambda: mr.Linear(0, 5), VECTORS),
    "Bias": (lambda: mr.Bias(5), VECTORS),
    "Scale": (lambda: mr.Scale(5), VECTORS),
    "Identity": (mr.Identity, VECTORS),
    "Mul": (lambda: mr.Mul(0.3), VECTORS),
    "Abs": (mr.Abs, VECTORS),
    "ReLU": (mr.ReLU, VECTORS),
    "ScaledReLU": (mr.ScaledReLU, VECTORS),
    "Tanh": (mr.Tanh, VECTORS),
    "GELU": (mr.GELU, VECTORS),
    "GELU declared": (lambda: mr.GELU(sensitivity=1.2), VECTORS),
    "ScaledGELU": (mr.ScaledGELU, VECTORS),
    "MeanSubtract": (mr.MeanSubtract, VECTORS),
    "MeanSubtract of images": (lambda: mr.MeanSubtract((-3, -2, -1)), IMAGES),
    "RMSDivide": (mr.RMSDivide, VECTORS),
    "RMSDivide of images": (lambda: mr.RMSDivide((-3, -2, -1)), IMAGES),
    "LayerNorm": (mr.LayerNorm, VECTORS),
    "Mean": (lambda: mr.Mean(-1), VECTORS),
    "Mean of images": (lambda: mr.Mean((-3, -2)), IMAGES),
    "Mean from the front": (lambda: mr.Mean(1), IMAGES[:3]),
    "Conv2D": (lambda: mr.Conv2D(3, 4), IMAGES),
    "Conv2D with strides": (lambda: mr.Conv2D(3, 4, (3, 2), (2, 3), (0, 1)), IMAGES),
    "Conv2D of nothing": (lambda: mr.Conv2D(3, 0), [(2, 6, 6, 0)]),
    "AvgPool": (mr.AvgPool, IMAGES),
    "SplitIntoHeads": (lambda: mr.SplitIntoHeads(3), [(5, 6), (2, 5, 6), (0, 5, 6)]),
    "MergeHeads": (mr.MergeHeads, IMAGES),
    "Rope": (lambda: mr.Rope(4), IMAGES),
    "CausalMask": (mr.CausalMask, SCORES),
    "Softmax": (lambda: mr.Softmax(0.7), SCORES),
    "Flatten": (mr.Flatten, [*VECTORS, *IMAGES]),
}


def close(ours, truth, dtype, scale):
    """Equal to rounding: the longest chain (LayerNorm and its pullback) rounds numbers of at most ``scale`` fewer than 48 times."""
    np.testing.assert_allclose(np.asarray(ours, np.float64), truth, rtol=0, atol=48 * float(ml_dtypes.finfo(dtype).eps) / 2 * scale)


def magnitude(*arrays):
    return max([1e-30, *(float(np.abs(a).max()) for a in arrays if np.size(a))])


def truth(m, x, w, dy):
    """Output and gradients by JAX in float64."""
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in w]
        y, pullback = jax.vjp(m.forward, jnp.asarray(np.asarray(x, np.float64)), wide)
        dx, gradients = pullback(jnp.asarray(np.asarray(dy, np.float64)))
        return np.asarray(y), np.asarray(dx), [np.asarray(g) for g in gradients]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", PRIMITIVES)
def test_gradients_are_those_of_jax(name, dtype):
    build, shapes = PRIMITIVES[name]
    m, rng = build(), np.random.default_rng(1)
    for shape in shapes:
        x = rng.standard_normal(shape).astype(dtype)
        w = [(a + rng.standard_normal(a.shape)).astype(dtype) for a in m.initialize(0)]
        y, pullback = m.vjp(x, w)
        dy = rng.standard_normal(y.shape).astype(dtype)
        dx, gradients = pullback(dy)
        expected, dx_expected, gradients_expected = truth(m, x, w, dy)
        largest = magnitude(dy, *w) * magnitude(x, np.ones(())) * max(1.0, x.size**0.5)
        close(y, expected, dtype, largest)
        close(dx, dx_expected, dtype, largest)
        assert (y.dtype, dx.dtype, dx.shape) == (dtype, dtype, shape)
        for g, g_expected, a in zip(gradients, gradients_expected, w, strict=True):
            close(g, g_expected, dtype, largest)
            assert (g.dtype, g.shape) == (a.dtype, a.shape)
        np.testing.assert_array_equal(np.asarray(y, np.float64), np.asarray(m(x, w), np.float64))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal, dtype):
    m, rng = mr.FunctionalAttention(causal), np.random.default_rng(0)
    x = tuple(rng.standard_normal(shape).astype(dtype) for shape in [(2, 3, 5, 4), (2, 3, 5, 4), (2, 3, 5, 6)])
    y, pullback = m.vjp(x, [])
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, _ = pullback(dy)
    with jax.enable_x64(True):
        wide = tuple(jnp.asarray(np.asarray(a, np.float64)) for a in x)
        expected, pullback_jax = jax.vjp(m.apply, wide)
        (dx_expected,) = pullback_jax(jnp.asarray(np.asarray(dy, np.float64)))
    close(y, expected, dtype, magnitude(*x))
    for ours, theirs, member in zip(dx, dx_expected, x, strict=True):
        close(ours, np.asarray(theirs), dtype, magnitude(dy) * magnitude(*x) ** 2)
        assert (ours.shape, ours.dtype) == (member.shape, member.dtype)


def test_a_fully_masked_row_has_no_gradient_and_no_nan():
    x = np.array([[0.0, 1.0], [-np.inf, -np.inf]], np.float32)
    _, pullback = mr.Softmax(1.0).vjp(x, [])
    dx, _ = pullback(np.array([[1.0, 0.0], [1.0, 2.0]]))
    np.testing.assert_array_equal(dx[1], 0)
    assert dx[0].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_gradients_of_tables_add_over_repeated_tokens(dtype):
    m, rng = mr.Embed(4, 6), np.random.default_rng(0)
    w, tokens = m.initialize(0, dtype), np.array([[5, 0, 5], [5, -1, 2]])
    y, pullback = m.vjp(tokens, w)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx, (gradient,) = pullback(dy)
    expected = np.zeros((6, 4))
    for token, row in zip(tokens.ravel() % 6, dy.reshape(-1, 4).astype(np.float64), strict=True):
        expected[token] += row
    assert dx is None
    assert gradient.dtype == dtype
    close(gradient, expected, dtype, 1)


def test_a_table_of_half_precision_sums_in_single():
    # One thousand cotangents of 1/256 at one row: a sum in bfloat16 would stop at 1, where adding another rounds to no change.
    m = mr.Embed(1, 1)
    y, pullback = m.vjp(np.zeros(1000, int), m.initialize(0, ml_dtypes.bfloat16))
    _, (gradient,) = pullback(np.full(y.shape, 2**-8, ml_dtypes.bfloat16))
    assert abs(float(gradient[0, 0]) - 1000 / 256) <= 2**-8 * 4


@pytest.mark.parametrize("atom", [mr.Bias(1), mr.Scale(1), mr.Linear(1, 1)], ids=["Bias", "Scale", "Linear"])
@pytest.mark.parametrize("dtype", DTYPES[2:], ids=lambda d: np.dtype(d).name)
def test_half_precision_sums_over_the_batch_in_single(atom, dtype):
    w = [np.ones(leaf.shape, dtype) for leaf in atom.leaves]
    x = np.ones((4000, 1), dtype)
    y, pullback = atom.vjp(x, w)
    _, (gradient,) = pullback(np.full(y.shape, 2**-8, dtype))
    assert abs(float(gradient.item()) - 4000 / 256) <= float(ml_dtypes.finfo(dtype).eps) * 16


@pytest.mark.slow
@pytest.mark.parametrize("bond", [mr.ReLU(), mr.Abs(), mr.RMSDivide(), mr.LayerNorm(), mr.GELU(), mr.Tanh()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_at_zero_as_in_jax_and_never_nan(bond, dtype):
    x = np.zeros((2, 3), dtype)
    x[1] = [-0.0, 1, 0]
    y, pullback = bond.vjp(x, [])
    dx, _ = pullback(np.ones_like(x))
    expected, dx_expected, _ = truth(bond, x, [], np.ones_like(x))
    close(y, expected, dtype, 2)
    close(dx, dx_expected, dtype, 2)


@pytest.mark.slow
def test_the_gradient_of_a_division_by_a_zero_rms_is_zero():
    for convert in (np.asarray, jnp.asarray):
        y, pullback = mr.RMSDivide().vjp(convert(np.zeros((2, 3), np.float32)), [])
        dx, _ = pullback(convert(np.ones((2, 3), np.float32)))
        np.testing.assert_array_equal(y, 0)
        np.testing.assert_array_equal(dx, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("bond", [mr.RMSDivide(), mr.LayerNorm(), mr.ReLU(), mr.Abs(), mr.Tanh(), mr.GELU()], ids=str)
def test_huge_and_tiny_inputs_have_finite_gradients(bond, scale):
    x = (np.random.default_rng(0).standard_normal((4, 8)) * scale).astype(np.float32)
    y, pullback = bond.vjp(x, [])
    dy = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    dx, _ = pullback(dy)
    expected, dx_expected, _ = truth(bond, x, [], dy)
    close(y, expected, np.float32, magnitude(expected))
    close(dx, dx_expected, np.float32, magnitude(dx_expected) * 4)


def test_integers_have_no_cotangent():
    m = mr.Linear(2, 3) @ mr.MeanSubtract() @ mr.Abs()
    w = m.initialize(0)
    for x in (np.arange(6).reshape(2, 3), np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((2, 3), bool)):
        y, pullback = m.vjp(x, w)
        dx, (gradient,) = pullback(np.ones_like(y))
        _, (expected,) = m.vjp(x.astype(np.float64), w)[1](np.ones_like(y))
        assert dx is None
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
