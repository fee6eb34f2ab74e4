"""Correlation against loops, its gradients against JAX and against differences, and what is refused."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
import references
from modula_rs.forward.convolution import correlate, correlate_vjp

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


# ---- JAX on a CPU, where each product is laid out for XLA ---------------------------------------------------------------------


def single(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def by_lax(x, w, stride, padding):
    pads = [(pad, pad) for pad in padding]
    return jax.lax.conv_general_dilated(x, w, stride, pads, dimension_numbers=("NHWC", "HWOI", "NHWC"))


def close(found, expected):
    """float32 against better: sums of at most 5 x 5 x 4 x 60 products, whose roundings add up as their root."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.slow
@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), SIZES)
def test_gradients_inside_a_scan_and_a_vmap(image, kernel, stride, padding):
    x, w = case(image, kernel, (4, 2))
    w = np.stack([w, 2 * w, -w, w + 1])
    y = np.stack([correlate(*each, stride, padding) for each in zip(x, w, strict=True)])
    dy = np.random.default_rng(2).standard_normal(y.shape)
    expected = [correlate_vjp(*each, stride, padding)[1](d) for *each, d in zip(x, w, dy, strict=True)]
    expected = [np.stack(each) for each in zip(*expected, strict=True)]

    def gradients(x, w, dy):
        return jax.vjp(lambda x, w: correlate(x, w, stride, padding), x, w)[1](dy)

    close(jax.lax.scan(lambda carry, each: (carry, gradients(*each)), 0, single(x, w, dy))[1], expected)
    close(jax.jit(jax.vmap(gradients))(*single(x, w, dy)), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("image", "kernel", "stride", "padding"), SIZES)
def test_derivatives_of_every_kind(image, kernel, stride, padding):
    """Forward mode, and reverse mode over reverse mode over it, as plain ``lax.conv_general_dilated`` has them."""
    x, w, dx, dw = single(*case(image, kernel, (2,)), *case(image, kernel, (2,), seed=1))

    def derivatives(function):
        def along(x, w):
            y, dy = jax.jvp(lambda x, w: function(x, w, stride, padding), (x, w), (dx, dw))
            return (y**3).mean() + (y * dy).mean()

        def steepness(x, w):
            return sum((each**2).mean() for each in jax.grad(along, (0, 1))(x, w))

        return jax.jit(lambda x, w: (along(x, w), jax.grad(along, (0, 1))(x, w), jax.grad(steepness, (0, 1))(x, w)))(x, w)

    close(derivatives(correlate), derivatives(by_lax))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms bring operands into their own layout")
def test_every_product_has_the_layout_that_is_fast_in_a_scan():
    def layouts(function):
        gradient = jax.jit(jax.value_and_grad(lambda x, w: function(x, w, (1, 1), (1, 1)).sum(), (0, 1)))
        return re.findall(r"dim_numbers = (\S+, .*?\]->\[.*?\])", gradient.lower(*single(*case((6, 5), (3, 3), (2,)))).as_text())

    fast = "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"
    assert layouts(correlate) == [fast] * 3
    plain = layouts(by_lax)
    assert len(plain) == 3
    assert set(plain) != {fast}


def test_other_platforms_have_the_plain_convolution(monkeypatch):
    x, w = single(*case((6, 5), (3, 3), (2,)))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = str(jax.make_jaxpr(lambda x, w: correlate(x, w))(x, w))
    assert program.count("conv_general_dilated") == 1
    assert "custom_jvp" not in program
    close(correlate(x, w), by_lax(x, w, (1, 1), (1, 1)))


def test_an_image_smaller_than_the_kernel_is_refused():
    for xp in (np, jnp):
        with pytest.raises(ValueError, match="3 x 3 needs images at least as large, got 2 x 5"):
            mr.Conv2D(1, 1, padding=0)(xp.ones((1, 2, 5, 1)), [xp.ones((3, 3, 1, 1))])
    with pytest.raises(ValueError, match="height, width"):
        mr.AvgPool()(np.ones((3, 2)), [])
