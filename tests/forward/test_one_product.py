"""Linears on one input become one product where that is faster, with the same results."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from modula_rs.forward import one_product

VECTORS = (8, 8)  # enough vectors for one product to be faster

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="one product is for CPUs")


class Doubled(mr.Linear):
    """A user's class derived from Linear that computes something else."""

    def apply(self, x, w):
        return 2 * super().apply(x, w)


def apart(monkeypatch):
    monkeypatch.setattr(one_product, "FEATURES_BELOW", 0)


def draw(m, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(leaf.shape), dtype) for leaf in m.leaves]


def vectors(features, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal((*VECTORS, features)), dtype)


def products(function, *arguments):
    """The number of matrix products in the program, each scan counted once. The function is traced anew, because JAX caches traces."""
    return str(jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments)).count("dot_general")


def summed(y):
    return sum(summed(each) for each in y) if isinstance(y, tuple) else (y.astype(jnp.float32) ** 2).sum()


def value_and_gradients(m, x, w):
    return jax.jit(lambda x, w: (m(x, w), jax.grad(lambda x, w: summed(m(x, w)), (0, 1))(x, w)))(x, w)


def close(ours, theirs, tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0))


def attention():
    return mr.Attention(2, 12, 4, 6, causal=True)


#: Modules, the number of features they take, and the number of products saved.
TREES = {
    "attention": (attention, 12, 2),
    "rope": (lambda: mr.Attention(2, 12, 4, 6, causal=False, rope=True), 12, 2),
    "in a power": (lambda: (0.5 * mr.Identity() + 0.5 * attention()) ** 3, 12, 2),
    "in a power of powers": (lambda: ((mr.Add() @ (mr.Linear(5, 5), mr.Linear(5, 5))) ** 2 @ mr.Tanh()) ** 2, 5, 1),
    "power of one": (lambda: (mr.Add() @ (mr.Linear(5, 5), mr.Linear(5, 5))) ** 1, 5, 1),
    "unequal sizes": (lambda: mr.Identity() @ (mr.Linear(1, 7), mr.Linear(9, 7), mr.Linear(4, 7)), 7, 2),
    "no outputs": (lambda: mr.Identity() @ (mr.Linear(0, 7), mr.Linear(9, 7)), 7, 1),
    "scaled after": (lambda: 2 * mr.Linear(3, 5) - mr.Linear(3, 5), 5, 1),
    "scaled before": (lambda: mr.Linear(3, 5) * 2 - mr.Linear(3, 5), 5, 0),
    "some begin otherwise": (
        lambda: mr.Identity() @ (mr.Linear(2, 4), mr.Bias(4), mr.Identity(), mr.Linear(3, 4) @ mr.Tanh(), mr.Linear(4, 4)),
        4,
        1,
    ),
    "nested": (lambda: mr.Identity() @ ((mr.Linear(2, 4), mr.Linear(3, 4)), mr.Linear(4, 4), mr.Linear(5, 4)), 4, 2),
    "alone": (lambda: 0.5 * mr.Identity() + 0.5 * mr.Linear(4, 4), 4, 0),
    "derived": (lambda: mr.Identity() @ (Doubled(2, 4), mr.Linear(3, 4)), 4, 0),
    "derived among others": (lambda: mr.Identity() @ (mr.Linear(3, 4), Doubled(2, 4), mr.Linear(3, 4)), 4, 1),
    "shared": (lambda: mr.Add() @ (mr.Linear(4, 4, share="a"), mr.Tanh() @ mr.Linear(4, 4, share="a")), 4, 0),
    "power begins a member": (lambda: mr.Add() @ (mr.Linear(4, 4) ** 2, mr.Linear(4, 4)), 4, 0),
    "LoRA": (lambda: mr.Linear(6, 4, mass=0) + mr.LoRA(6, 4, 2), 4, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_values_and_gradients_are_those_of_several_products(name, monkeypatch):
    make, features, fewer = TREES[name]
    m, x = make(), vectors(features)
    w = draw(m)
    together, count = value_and_gradients(m, x, w), products(m, x, w)
    apart(monkeypatch)
    # Sums of at most a dozen products in another order, through at most a dozen layers, make 144 roundings of 1.2e-7.
    close(together, value_and_gradients(m, x, w), 2e-5)
    assert count == products(m, x, w) - fewer


def test_queries_keys_and_values_of_a_gpt():
    """Of the 8 products of a block (scores and averages included) 6 are left; the head adds one. The backward pass has two for each."""
    m = mr.GPT(11, 16, 2, 12, 6, 6, 4)
    tokens, w = jnp.zeros((4, 16), jnp.int32), draw(m)
    assert products(m, tokens, w) == 6 + 1
    assert products(jax.grad(lambda w: m(tokens, w).sum()), w) == 3 * (6 + 1)


def test_wide_or_few_or_mixed_is_left_alone():
    def count(features, shape, *dtypes):
        m = mr.Identity() @ (mr.Linear(3, features), mr.Linear(4, features))
        return products(m, jnp.zeros((*shape, features)), [a.astype(dtype) for a, dtype in zip(draw(m), dtypes, strict=True)])

    below, enough = one_product.FEATURES_BELOW - 1, (one_product.VECTORS_FROM,)
    assert count(below, enough, "float32", "float32") == 1
    assert count(below, (2, one_product.VECTORS_FROM // 2), "float32", "float32") == 1
    assert count(below + 1, enough, "float32", "float32") == 2
    assert count(below, (one_product.VECTORS_FROM - 1,), "float32", "float32") == 2
    assert count(below, (), "float32", "float32") == 2
    assert count(below, enough, "float32", "bfloat16") == 2


def test_other_platforms_are_left_alone(monkeypatch):
    m, x = attention(), vectors(12)
    assert products(m, x, draw(m)) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert products(m, x, draw(m)) == 6


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("of_input", ["float32", "bfloat16"])
def test_dtypes(dtype, of_input, monkeypatch):
    m, x = mr.Identity() @ (mr.Linear(3, 5), mr.Linear(4, 5)), vectors(5, of_input)
    w = draw(m, dtype)
    together = value_and_gradients(m, x, w)
    apart(monkeypatch)
    # Either way every output is rounded once; in the input's cotangent one rounding replaces two.
    coarsest = max(float(jnp.finfo(each).eps) for each in (dtype, of_input))
    close(together, value_and_gradients(m, x, w), 4 * coarsest)


@pytest.mark.slow
def test_vmap_over_weights():
    m, x = attention(), vectors(12)
    w = [jnp.stack([a, -2 * a, a + 1]) for a in draw(m)]
    each = [m(x, [a[i] for a in w]) for i in range(3)]
    close(jax.jit(jax.vmap(m, (None, 0)))(x, w), jnp.stack(each), 1e-5)


def test_one_input_in_numpy_the_weights_in_jax():
    m, x = attention(), vectors(12)
    close(m(np.asarray(x), draw(m)), m(x, draw(m)), 1e-6)
    close(m(np.asarray(x), [np.asarray(a) for a in draw(m)]), np.asarray(m(x, draw(m))), 1e-4)


def test_errors_name_the_leaf():
    m = attention()
    for x, error in ((jnp.zeros((*VECTORS, 11)), ValueError), ((jnp.zeros((*VECTORS, 12)),) * 2, TypeError), (jnp.zeros(()), ValueError)):
        with pytest.raises(error, match=r"^q: expected"):
            m(x, draw(m))
