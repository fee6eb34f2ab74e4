"""Correlation on JAX, by ``lax.conv_general_dilated`` in the layout that XLA's CPU backend is fast at.

That is images (batch, height, width, channels) by taps (height, width, in, out). Outside of loops XLA brings the operands of a convolution
into it, but in the body of a ``scan`` it multiplies them as they come, by plain loops (jax-ml/jax issue 12868), and a network's powers are
scans. So on a CPU all three products (the output, the cotangents of images and taps) are written in it. The gradient of a ResCNN takes 0.02
to 0.12 of the time that it took without, on one core: see benches/README.md.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]


def correlate(x: Array, w: Array, stride: Pair, padding: Pair) -> Array:
    """Images (..., height, width, in) by taps (kh, kw, out, in)."""
    dtype = jnp.result_type(x, w)
    images, taps = jnp.asarray(x, dtype).reshape(math.prod(x.shape[:-3]), *x.shape[-3:]), jnp.asarray(w, dtype)
    if jax.default_backend() == "cpu":
        y = _correlate(images, taps, stride, padding)
    else:
        y = _convolve(images, taps, stride, padding, ("NHWC", "HWOI", "NHWC"))
    return y.reshape(*x.shape[:-3], *y.shape[1:])


def _convolve(images: Array, taps: Array, stride: Pair, padding: Pair, layout: tuple[str, str, str]) -> Array:
    return lax.conv_general_dilated(images, taps, stride, [(pad, pad) for pad in padding], dimension_numbers=layout)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _correlate(images: Array, taps: Array, stride: Pair, padding: Pair) -> Array:
    # The barriers keep XLA from folding a transposition into the convolution, which would undo it.
    return _convolve(images, lax.optimization_barrier(taps.swapaxes(2, 3)), stride, padding, ("NHWC", "HWIO", "NHWC"))


@_correlate.defjvp
def _correlate_jvp(stride: Pair, padding: Pair, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Both products are written for the way back: it is their transposes, which reverse mode runs, that have the fast layout."""
    (images, taps), (dimages, dtaps) = primals, tangents
    by_images = _convolve(dimages, taps, stride, padding, ("NHWC", "HWOI", "NHWC"))
    # On the way back the images, as (channels, height, width, batch), meet the output's cotangent, as taps (height, width, batch, out).
    turned = lax.optimization_barrier(images.transpose(3, 1, 2, 0))
    by_taps = _convolve(turned, dtaps.transpose(3, 0, 1, 2), stride, padding, ("CHWN", "IHWO", "HWNC"))
    return _correlate(images, taps, stride, padding), by_images + lax.optimization_barrier(by_taps).transpose(2, 0, 1, 3)
