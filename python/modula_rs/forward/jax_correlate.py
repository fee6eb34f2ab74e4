"""Correlation on JAX, by ``lax.conv_general_dilated`` in the layout that is fast on XLA's CPU backend.

In this layout images (batch, height, width, channels) meet taps (height, width, in, out). Outside of loops XLA converts the operands of a
convolution to it, but in the body of a ``scan`` XLA multiplies operands of any other layout by plain loops (jax-ml/jax issue 12868), and a
network's powers are scans. So on a CPU all three products (the output, the cotangents of images and taps) are written in this layout. The
gradient of a ResCNN takes 0.02 to 0.12 of the time without it, on one core: see benches/README.md.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

Pair = tuple[int, int]


def correlate(x: Array, w: Array, stride: Pair, padding: Pair) -> Array:
    """The correlation of images (..., height, width, in) with taps (kh, kw, out, in)."""
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
    """Reverse mode runs the transposes of these two convolutions; they are laid out so that the transposes are fast."""
    (images, taps), (dimages, dtaps) = primals, tangents
    by_images = _convolve(dimages, taps, stride, padding, ("NHWC", "HWOI", "NHWC"))
    # In reverse mode the images, as (channels, height, width, batch), are convolved with the output's cotangent, as taps (height, width,
    # batch, out).
    turned = lax.optimization_barrier(images.transpose(3, 1, 2, 0))
    by_taps = _convolve(turned, dtaps.transpose(3, 0, 1, 2), stride, padding, ("CHWN", "IHWO", "HWNC"))
    return _correlate(images, taps, stride, padding), by_images + lax.optimization_barrier(by_taps).transpose(2, 0, 1, 3)
