"""The maps and the forward pass under jit, grad, vmap and scan: compiled code gives the results of eager code."""

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest

MAPS = {
    "normalize": lambda m, w: m.normalize(w, 0.5),
    "dualize": lambda m, w: m.dualize(w, 0.5),
    "norm": lambda m, w: m.norm(w),
}


def network():
    return mr.Linear(3, 4) @ (mr.Tanh() @ mr.Linear(4, 4)) ** 2 @ mr.Bias(4) @ mr.Scale(4) @ mr.Embed(4, 5)


def random(m, key=0, batch=()):
    keys = jax.random.split(jax.random.key(key), len(m.leaves))
    return [jax.random.normal(k, (*batch, *leaf.shape)) for k, leaf in zip(keys, m.leaves, strict=True)]


def same(ours, theirs, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_jit_and_vmap(name):
    m = network()
    w = random(m, batch=(3,))
    each = [MAPS[name](m, [a[i] for a in w]) for i in range(3)]
    eager = jax.tree.map(lambda *a: jnp.stack(a), *each)
    same(jax.jit(lambda w: MAPS[name](m, w))([a[0] for a in w]), each[0])
    same(jax.vmap(lambda w: MAPS[name](m, w))(w), eager)


@pytest.mark.slow
def test_jit_in_place():
    m, w = network(), random(network())
    compiled = m.named("compiled").jit()
    tokens = jnp.array([[0, 4]])
    same(compiled(tokens, w), m(tokens, w))
    for strength in (0.1, 0.2):  # one compilation for both
        same(compiled.regularize(w, strength), m.regularize(w, strength))
    numpy_weights = [np.asarray(a) for a in w]
    assert isinstance(compiled.normalize(numpy_weights)[0], np.ndarray)


def test_a_traced_target_norm():
    m = network()
    w = random(m)
    same(jax.jit(lambda t: m.normalize(w, t))(0.25), m.normalize(w, 0.25))
    same(jax.jit(lambda t: m.dualize(w, t))(0.25), m.dualize(w, 0.25))
    same(jax.jit(lambda s: m.regularize(w, s))(0.25), m.regularize(w, 0.25))


@pytest.mark.slow
def test_a_training_loop_in_one_scan():
    m, tokens = network(), jnp.array([0, 1, 2, 3, 4])
    wanted = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)

    def loss(w):
        return ((m(tokens, w) - wanted) ** 2).mean()

    def step(w, rate):
        value, gradient = jax.value_and_grad(loss)(w)
        return [a - rate * u for a, u in zip(w, m.dualize(gradient), strict=True)], value

    w = m.initialize(jax.random.key(0))
    _, losses = jax.lax.scan(step, w, 0.5 * jnp.linspace(1, 0, 60))
    assert jnp.isfinite(losses).all()
    assert losses[-1] < 0.2 * losses[0]
    one_by_one = w
    for rate in 0.5 * np.linspace(1, 0, 60)[:3]:
        one_by_one, value = step(one_by_one, float(rate))
    same(value, losses[2], 1e-4)


@pytest.mark.slow
def test_the_gradient_of_a_zero_input_or_weight_is_no_nan():
    m = mr.LayerNorm() @ mr.Linear(3, 3) @ mr.RMSDivide() @ mr.GELU() @ mr.Linear(3, 3)
    w = [jnp.zeros((3, 3)), jnp.zeros((3, 3))]
    gradient = jax.grad(lambda w: m(jnp.zeros((2, 3)), w).sum())(w)
    assert all(jnp.isfinite(g).all() for g in gradient)
    assert all(jnp.isfinite(u).all() and not u.any() for u in m.normalize(gradient))


def test_compile_size_does_not_grow_with_depth():
    def length(depth):
        m = (mr.Tanh() @ mr.Linear(4, 4)) ** depth
        w = [jnp.zeros(leaf.shape) for leaf in m.leaves]
        return len(str(jax.make_jaxpr(lambda x, w: m(x, w))(jnp.zeros((2, 4)), w)))

    assert length(2000) < 1.1 * length(2)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["rust", "jnp"])
def test_magnitudes_up_to_the_ends_of_the_range(way):
    """XLA's threads flush subnormal numbers to zero, so no step of a map may produce one."""
    m = mr.Linear(16, 8)
    g = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    g = np.sign(g) * (0.5 + 0.5 * np.abs(g) / np.abs(g).max())  # all entries are within [1/2, 1], so they become subnormal together
    with mr.cpu_backend(way):
        for exponent in (-125, -118, -100, -64, -63, -1, 0, 63, 64, 100, 120, 125, 127):
            x = [np.ldexp(g, exponent)]
            for name in ("normalize", "dualize", "project", "radius"):
                (ours,) = getattr(m, name)([jnp.asarray(x[0])])
                (theirs,) = getattr(m, name)(x)
                np.testing.assert_allclose(ours, theirs, atol=1e-2, err_msg=f"{name} at 2^{exponent}")
            if exponent < 125:  # beyond that, the norm itself overflows
                assert float(m.norm([jnp.asarray(x[0])])) == pytest.approx(m.norm(x), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strict_promotion_of_dtypes_and_ranks(dtype):
    """If JAX is told not to promote implicitly, the library raises no error."""
    m = mr.GPT(7, 4, 2, 8, 4, 4, 2, position="rope", norm="layer") @ mr.Identity()
    image = mr.Scale(3) @ mr.Bias(3) @ mr.Conv2D(3, 3)
    every_geometry = mr.Scale(3) @ mr.Bias(3) @ mr.Linear(3, 3) @ mr.Embed(3, 7)
    tokens = jnp.zeros((2, 4), jnp.int32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for way, nets in (("rust", [(m, tokens), (image, jnp.ones((2, 4, 4, 3), dtype))]), ("jnp", [(every_geometry, tokens)])):
            with mr.cpu_backend(way):
                for net, x in nets:
                    w = net.initialize(jax.random.key(0), dtype)
                    g = jax.grad(lambda w, net=net, x=x: net(x, w).astype("float32").sum())(w)
                    for name in ("normalize", "dualize", "project", "radius", "norm", "dual_norm"):
                        getattr(net, name)(g)
                    net.regularize(w, 0.1)
                    net.normalize(g, vectors=None)
