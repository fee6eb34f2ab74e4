"""Atoms with a scale: another place for the size of weights, the same network and the same training."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("double_precision")


def images(a: float = 1.0, b: float = 1.0, c: float = 1.0) -> mr.Module:
    head = mr.Linear(3, 6, scale=a) @ mr.Flatten() @ mr.AvgPool()
    return head @ (mr.Tanh() @ mr.Conv2D(6, 6, scale=b)) ** 2 @ mr.Conv2D(6, 2, scale=c)


def tokens(a: float = 1.0, b: float = 1.0, c: float = 1.0) -> mr.Module:
    return mr.Linear(7, 4, share="t", scale=b) @ mr.Tanh() @ mr.Linear(4, 4, scale=a) @ mr.Embed(4, 7, share="t", scale=b)


def adapter(a: float = 1.0, b: float = 1.0, c: float = 1.0) -> mr.Module:
    return mr.Linear(5, 4, scale=c) @ (mr.Linear(4, 4, mass=0, scale=b) + mr.LoRA(4, 4, 2, scale=a))


INPUTS = {
    images: np.random.default_rng(0).standard_normal((2, 4, 4, 2)),
    tokens: np.array([[1, 2, 6], [0, 0, 3]]),
    adapter: np.random.default_rng(0).standard_normal((3, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("build", INPUTS)
def test_a_scale_changes_nothing_but_the_size_of_weights(build, library: str) -> None:
    plain, scaled = build(), build(0.25, -3.0, 20.0)
    assert plain.sharpness == scaled.sharpness
    assert plain.certificate()[:4] == scaled.certificate()[:4]
    x = INPUTS[build]
    w, v = plain.initialize(1, "float64"), scaled.initialize(1, "float64")
    sizes = [np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(w, v, strict=True)]
    # The sign of a scale is one of the function, so weights of negative scale change theirs.
    signs = [np.sign(m.scale) for m in scaled.norm_table.objects]
    sizes = [size * sign for size, sign in zip(sizes, signs, strict=True)]
    assert min(abs(np.log(np.abs(sizes)))) >= 0
    assert max(abs(np.log(np.abs(sizes)))) > 1
    if library == "jax":
        w, x = [jnp.asarray(a) for a in w], jnp.asarray(x)
    v = [a / size for a, size in zip(w, sizes, strict=True)]

    def grown(v):
        return [np.asarray(a) * size for a, size in zip(v, sizes, strict=True)]

    def agree(v, w, tolerance=1e-9):
        for a, b in zip(grown(v), w, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance)

    for step in range(3):
        y, pull = plain.vjp(x, w)
        z, pull_scaled = scaled.vjp(x, v)
        np.testing.assert_allclose(z, y, atol=1e-10)
        g, h = pull(y)[1], pull_scaled(z)[1]
        for a, b, size in zip(h, g, sizes, strict=True):
            np.testing.assert_allclose(np.asarray(a), np.asarray(b) * size, atol=1e-9 * abs(size))
        assert float(scaled.dual_norm(h)) == pytest.approx(float(plain.dual_norm(g)), rel=1e-6)
        method = ("dualize", "normalize", "dualize")[step]
        update, change = getattr(plain, method)(g), getattr(scaled, method)(h)
        agree(change, update, 1e-7)
        assert float(scaled.norm(change)) == pytest.approx(float(plain.norm(update)), rel=1e-6)
        w = plain.regularize([a - 0.1 * u for a, u in zip(w, update, strict=True)], 0.01)
        v = scaled.regularize([a - 0.1 * u for a, u in zip(v, change, strict=True)], 0.01)
        agree(v, w, 1e-7)
    for name, amount in [
        ("project", ()),
        ("radius", ()),
        ("hard_cap", (0.5,)),
        ("soft_cap", (0.1,)),
        ("hammer", ()),
        ("spectral_decay", (0.1,)),
    ]:
        agree(getattr(scaled, name)(v, *amount), getattr(plain, name)(w, *amount), 1e-6)


def test_weights_and_targets_are_divided_by_the_scale() -> None:
    plain = mr.Linear(4, 6).named("a") @ mr.Conv2D(6, 3).named("b") @ mr.Embed(3, 9).named("c")
    scaled = mr.Linear(4, 6, scale=4).named("a") @ mr.Conv2D(6, 3, scale=0.5).named("b") @ mr.Embed(3, 9, scale=-2).named("c")
    sizes = {"a": 4, "b": 0.5, "c": 2}
    for one, other in zip(plain.targets(), scaled.targets(), strict=True):
        assert other.target == pytest.approx(one.target / sizes[other.path])
    for leaf, a, b in zip(plain.leaves, plain.initialize(0), scaled.initialize(0), strict=True):
        np.testing.assert_allclose(b * sizes[leaf.path], a, rtol=1e-6)
    assert scaled.atom_norms(scaled.initialize(0, "float64")) == pytest.approx([1, 1, 1])
    assert "Linear(4, 6, scale=4)" in str(scaled)


def test_the_unit_scale_puts_entries_near_1() -> None:
    for atom in (
        mr.Linear(64, 256, scale="unit"),
        mr.Linear(256, 64, scale="unit"),
        mr.Conv2D(32, 16, scale="unit"),
        mr.Embed(8, 50, scale="unit"),
    ):
        (w,) = atom.initialize(0, "float64")
        assert np.sqrt((w * w).mean()) == pytest.approx(1, rel=1e-6)
        assert atom.atom_norms([w]) == pytest.approx([1])
    assert mr.Linear(64, 256, scale="unit").scale == pytest.approx((64 / 256) ** 0.5 / 16)
    for empty in (mr.Linear(0, 3, scale="unit"), mr.Linear(3, 0, scale="unit"), mr.Linear(0, 0, scale="unit")):
        assert empty.initialize(0)[0].size == 0


def test_lora() -> None:
    for scale in (0.25, 1.0, -4.0):
        m = mr.LoRA(8, 6, 2, scale=scale)
        assert m.sharpness == mr.LoRA(8, 6, 2).sharpness == (0.5, 1, 0)
        w = m.initialize(0, "float64")
        np.testing.assert_allclose(np.linalg.norm(w[0], 2) / abs(scale), (2 / 6) ** 0.5, rtol=1e-9)
        change = m.normalize(w)
        moved = w[1] @ change[0] + change[1] @ w[0]  # of up @ down
        assert np.linalg.norm(moved, 2) * (6 / 8) ** 0.5 <= 1.01
    m = mr.Linear(8, 6, mass=0) + mr.LoRA(8, 6, 2, scale=0.5, zero=True)
    x = np.random.default_rng(0).standard_normal((3, 6))
    w = m.initialize(0, "float64")
    np.testing.assert_array_equal(m(x, w), x @ w[0].T)
    for step in range(2):
        y, pullback = m.vjp(x, w)
        update = m.dualize(pullback(y - 1)[1])
        moved = {leaf.path for leaf, u in zip(m.leaves, update, strict=True) if np.abs(u).max() > 1e-12}
        assert moved == ({"up"} if step == 0 else {"up", "down"})
        w = [a - 0.1 * u for a, u in zip(w, update, strict=True)]
    assert not mr.Linear(3, 4, zero=True).initialize(0)[0].any()


def test_low_precision_and_joined_products() -> None:
    m = (mr.Linear(8, 8, scale=0.1), mr.Linear(8, 8), mr.Linear(8, 8, scale=3))
    m = mr.Add() @ m
    w = m.initialize(0)
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(m(x, w), x @ (0.1 * w[0] + w[1] + 3 * w[2]).T, rtol=1e-5, atol=1e-5)
    half = [jnp.asarray(a, "bfloat16") for a in w]
    assert m(jnp.asarray(x, "bfloat16"), half).dtype == jnp.bfloat16
    assert jax.jit(m)(jnp.asarray(x), [jnp.asarray(a) for a in w]).shape == (4, 8)


def test_identity_and_errors() -> None:
    assert mr.Linear(3, 4).fingerprint == mr.Linear(3, 4, scale=1).fingerprint == mr.Linear(3, 4, zero=False).fingerprint
    assert len({mr.Linear(3, 4, scale=s).fingerprint for s in (1, 2, "unit")}) == 3
    copied = pickle.loads(pickle.dumps(mr.Linear(3, 4, scale=2.0) @ mr.Tanh()))
    assert copied.targets()[0].target == 0.5
    for scale in (0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="scale of Linear must be a finite number other than 0"):
            mr.Linear(3, 4, scale=scale)
    with pytest.raises(ValueError, match="scale must be a number or \"unit\", got 'one'"):
        mr.Embed(3, 4, scale="one")
    with pytest.raises(TypeError, match="scale must be a number, got None"):
        mr.Conv2D(3, 4, scale=None)
    with pytest.raises(TypeError, match="zero must be True or False, got 1"):
        mr.Linear(3, 4, zero=1)
    with pytest.raises(ValueError, match="the scale of a LoRA must not be 0"):
        mr.LoRA(3, 4, 2, scale=0)
