"""Correlation against loops, its gradients against JAX and against differences, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
import references
from modula_rs.convolution import correlate, correlate_vjp

SIZES = [  # image, kernel, stride, padding
    ((6, 5), (3, 3), (1, 1), (1, 1)),
    ((6, 5), (3, 3), (2, 2), (1, 1)),
    ((7, 4), (1, 1), (1, 1), (0, 0)),
    ((7, 6), (2, 3), (3, 2), (0, 2)),
    ((3, 3), (3, 3), (1, 1), (0, 0)),
    ((2, 2), (5, 4), (2, 1), (2, 2)),
]


def case(image, kernel, batch, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((*batch, *image, 3)), rng.standard_normal((*kernel, 4, 3))


@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), SIZES)
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_against_loops(image, kernel, stride, padding, batch):
    x, w = case(image, kernel, batch)
    flat = [references.correlate(each, w, stride, padding) for each in x.reshape(-1, *image, 3)]
    expected = np.array(flat).reshape(*batch, *flat[0].shape)
    np.testing.assert_allclose(correlate(x, w, stride, padding), expected, atol=1e-12)
    found = correlate(jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32), stride, padding)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), SIZES)
def test_gradients(image, kernel, stride, padding):
    """The correlation is linear in both arguments, so <dy, y(x', w)> = <dx, x'> exactly, and likewise for the taps."""
    x, w = case(image, kernel, (2,))
    other_x, other_w = case(image, kernel, (2,), seed=1)
    y, pullback = correlate_vjp(x, w, stride, padding)
    dy = np.random.default_rng(2).standard_normal(y.shape)
    dx, dw = pullback(dy)
    assert (dx * other_x).sum() == pytest.approx((dy * correlate(other_x, w, stride, padding)).sum(), rel=1e-10)
    assert (dw * other_w).sum() == pytest.approx((dy * correlate(x, other_w, stride, padding)).sum(), rel=1e-10)
    single = [jnp.asarray(a, jnp.float32) for a in (x, w, dy)]
    _, by_jax = jax.vjp(lambda x, w: correlate(x, w, stride, padding), *single[:2])
    for ours, theirs in zip((dx, dw), by_jax(single[2]), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes_are_kept(xp, dtype):
    m = mr.Conv2D(4, 3, kernel_size=(3, 2), stride=2, padding=(1, 0))
    w = [xp.asarray(a) for a in m.initialize(0, dtype)]
    x = xp.ones((2, 5, 6, 3), dtype)
    y, pullback = m.vjp(x, w)
    dx, (dw,) = pullback(xp.ones_like(y))
    assert (y.shape, dx.shape, dw.shape) == ((2, 3, 3, 4), x.shape, w[0].shape)
    assert y.dtype == dx.dtype == dw.dtype == dtype


def test_an_image_smaller_than_the_kernel_is_refused():
    for xp in (np, jnp):
        with pytest.raises(ValueError, match="3 x 3 needs images at least as large, got 2 x 5"):
            mr.Conv2D(1, 1, padding=0)(xp.ones((1, 2, 5, 1)), [xp.ones((3, 3, 1, 1))])
    with pytest.raises(ValueError, match="height, width"):
        mr.AvgPool()(np.ones((3, 2)), [])
