"""Correlation of channels-last images (..., height, width, channels), with any number of leading batch axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import widen

Pair = tuple[int, int]


def correlate(x: Any, w: Any, stride: Pair = (1, 1), padding: Pair = (1, 1)) -> Any:
    """The correlation of images with taps.

    Args:
        x: images, shape (..., height, width, in_channels).
        w: taps, shape (kh, kw, out_channels, in_channels).
        stride: step between output positions, down and across.
        padding: rows and columns of zeros added on each side.

    Returns:
        Images of shape (..., ``(height + 2 * padding - kh) // stride + 1``, ``(width + 2 * padding - kw) // stride + 1``, out_channels).

    Raises:
        ValueError: if the padded image is smaller than the kernel.

    >>> import numpy as np
    >>> from modula_rs.forward.convolution import correlate
    >>> x = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> correlate(x, np.ones((2, 2, 1, 1)), stride=(2, 2), padding=(0, 0))[0, :, :, 0]
    array([[10., 18.],
           [42., 50.]])
    """
    height, width = output_size(x.shape, w.shape, stride, padding)
    if arrays.library(x) == "jax" or arrays.library(w) == "jax":
        from modula_rs.forward import jax_correlate  # needs JAX, which is optional

        return jax_correlate.correlate(x, w, stride, padding)
    xp = arrays.namespace_of(x)
    images, taps = widen(_batched(x, padding)), widen(w)
    dtype = xp.result_type(images.dtype, taps.dtype)
    y = xp.zeros((images.shape[0], height, width, w.shape[2]), dtype)
    for tap, window in _windows(w.shape, stride, height, width):
        # One plain product for each tap needs no copy that is larger than the images.
        y += images[window] @ taps[tap].T
    return y.reshape(*x.shape[:-3], height, width, w.shape[2]).astype(xp.result_type(x.dtype, w.dtype))


def correlate_vjp(x: Any, w: Any, stride: Pair = (1, 1), padding: Pair = (1, 1)) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
    """:func:`correlate`, and a function from the output's cotangent to the cotangents of the images and the taps."""
    if arrays.library(x) == "jax" or arrays.library(w) == "jax":
        import jax

        return jax.vjp(lambda x, w: correlate(x, w, stride, padding), x, w)
    y = correlate(x, w, stride, padding)

    def pullback(dy: Any) -> tuple[Any, Any]:
        xp = arrays.namespace_of(x)
        images, taps, dy = widen(_batched(x, padding)), widen(w), widen(dy).reshape(-1, *dy.shape[-3:])
        dimages, dtaps = xp.zeros_like(images), xp.zeros_like(taps)
        flat = dy.reshape(-1, dy.shape[-1])
        for tap, window in _windows(w.shape, stride, *dy.shape[1:3]):
            dimages[window] += dy @ taps[tap]
            dtaps[tap] = flat.T @ images[window].reshape(len(flat), images.shape[-1])
        down, across = padding
        inner = dimages[:, down : dimages.shape[1] - down, across : dimages.shape[2] - across]
        return inner.reshape(x.shape).astype(x.dtype), dtaps.astype(w.dtype)

    return y, pullback


def output_size(image: tuple[int, ...], taps: tuple[int, ...], stride: Pair, padding: Pair) -> Pair:
    """Height and width of a correlation's output; ValueError if the padded image is smaller than the kernel."""
    padded = [size + 2 * pad for size, pad in zip(image[-3:-1], padding, strict=True)]
    if padded[0] < taps[0] or padded[1] < taps[1]:
        raise ValueError(f"a kernel of {taps[0]} x {taps[1]} needs images at least as large, got {padded[0]} x {padded[1]} with padding")
    return (padded[0] - taps[0]) // stride[0] + 1, (padded[1] - taps[1]) // stride[1] + 1


def _batched(x: Any, padding: Pair) -> Any:
    """Images as (batch, height, width, channels), padded with zeros."""
    images = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])
    if padding == (0, 0):
        return images
    return arrays.namespace_of(x).pad(images, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))


def _windows(taps: tuple[int, ...], stride: Pair, height: int, width: int) -> Iterator[tuple[Pair, Any]]:
    """Every tap (i, j), with the slices of the padded images that it multiplies."""
    for i in range(taps[0]):
        for j in range(taps[1]):
            rows = slice(i, i + stride[0] * height, stride[0])
            columns = slice(j, j + stride[1] * width, stride[1])
            yield (i, j), (slice(None), rows, columns)
