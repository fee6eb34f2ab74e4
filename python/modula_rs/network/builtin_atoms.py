"""The built-in atoms. A new atom is one class here, or in a file beside, and one entry in the core's ``atom.rs``."""

from __future__ import annotations

import math
from typing import Any

from modula_rs import arrays
from modula_rs.arrays import Array, Pullback, widen
from modula_rs.checks import FeatureMismatch, expect_features, expect_tokens, flag, pair, size
from modula_rs.forward.arithmetic import as_floating, matmul, of_rank, product, sum_of_rows
from modula_rs.forward.convolution import correlate, correlate_vjp
from modula_rs.network.atom import _BuiltIn
from modula_rs.random import Source


class Linear(_BuiltIn):
    """``x -> W x`` over the last axis. ``Linear(fanout, fanin)``: the output comes first, opposite to Flax, Equinox and torch.

    The weight W has shape (fanout, fanin). Its norm is the operator norm from RMS to RMS, ``sqrt(fanin / fanout)`` times the largest
    singular value. It starts as a random semi-orthogonal matrix times ``sqrt(fanout / fanin)``, which has norm 1. The sensitivity is 1, the
    sharpness (0, 1, 0). Source: Large et al., "Scalable Optimization in the Modular Norm" (2024).

    Args:
        fanout: number of features of the output.
        fanin: number of features of the input.
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.
        scale: s for ``x -> s W x``. The weights are smaller by s, and so are the targets of their updates, so that the network stays the
            same function with the same training. ``"unit"`` is the scale at which entries start at RMS 1. Not 0.
        zero: whether W starts at zero.
        gaussian: whether W starts with independent Gaussian entries, divided by their norm, in place of a semi-orthogonal matrix. The
            norm is 1 as well, but a square matrix then passes on a random input at half of its RMS.

    Input of shape (..., fanin), output of shape (..., fanout).

    Raises:
        TypeError: a size that is no integer, a mass or scale that is no number, a share that is no string; at a call, a tuple.
        ValueError: a negative size; a mass that is negative or not finite; a scale that is 0 or not finite, or another word than
            ``"unit"``; both ``zero`` and ``gaussian``; at a call, an input whose last axis is not ``fanin``.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Linear(4, 8)
    >>> w = m.initialize(0)
    >>> w[0].shape, m(np.ones((2, 8), np.float32), w).shape
    ((4, 8), (2, 4))
    """

    zero: bool = False
    gaussian: bool = False

    def __init__(
        self,
        fanout: int,
        fanin: int,
        mass: float = 1.0,
        share: str | None = None,
        *,
        scale: float | str = 1.0,
        zero: bool = False,
        gaussian: bool = False,
    ) -> None:
        super().__init__((size("fanout", fanout), size("fanin", fanin)), mass, share, scale)
        zero, gaussian = flag("zero", zero), flag("gaussian", gaussian)
        if zero and gaussian:
            raise ValueError("a Linear starts at zero or with Gaussian entries, not both")
        if zero:
            self.zero = True
        if gaussian:
            self.gaussian = True

    @property
    def may_join(self) -> bool:
        return type(self) is Linear and self.share is None and self.scale == 1.0  # a derived class may compute something else

    def _unit_scale(self) -> float:
        fanout, fanin = self.shape
        return (fanout / max(fanin, 1) / max(fanout, fanin, 1)) ** 0.5 or 1.0

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return self._scaled(matmul(as_floating(x, w), w))

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)

        def pullback(dy: Any) -> tuple[Any, Array]:
            rows = math.prod(x.shape[:-1])
            along = as_floating(x, w).reshape(rows, w.shape[1])
            dy = self._scaled(dy)
            return product(dy, w), product(dy.reshape(rows, w.shape[0]).T, along)

        return y, pullback

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        fanout, fanin = self.shape
        if self.zero:
            return source.xp.zeros((*copies, fanout, fanin), source.dtype)
        drawn = source.gaussian(copies, fanout, fanin) if self.gaussian else source.semi_orthogonal(copies, fanout, fanin)
        return drawn * ((fanout / max(fanin, 1)) ** 0.5 / abs(self.scale))


class Embed(_BuiltIn):
    """Token ``i`` to row ``i`` of a table. ``Embed(d_embed, num_embed)``: the output comes first, opposite to Flax, Equinox and torch.

    The weight has shape (num_embed, d_embed). Its norm is the largest RMS of a row. Rows start as Gaussian vectors scaled to RMS 1. The
    sensitivity is 1, the sharpness (0, 1, 0). Source: Large et al., "Scalable Optimization in the Modular Norm" (2024).

    Args:
        d_embed: number of features of the output.
        num_embed: number of tokens, which are integers from 0 to ``num_embed - 1``.
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array: ``Embed(d, n, share="tokens")`` and
            ``Linear(n, d, share="tokens")`` tie both ends of a language model. None for an array of its own.
        scale: s for outputs s times the rows, which are smaller by s, as are the targets of their updates. Entries start at RMS 1 without
            it, so ``"unit"`` is 1. Not 0.

    Input of integers of any shape (...), output of shape (..., d_embed).

    Raises:
        TypeError: a size that is no integer, a mass or scale that is no number, a share that is no string; at a call, tokens that are no
            integers.
        ValueError: a negative size; a mass that is negative or not finite; a scale that is 0 or not finite, or another word than
            ``"unit"``.
        IndexError: at a call on NumPy arrays, a token outside the table. JAX clips such a token, as everywhere.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Embed(16, 100)
    >>> w = m.initialize(0)
    >>> w[0].shape, m(np.array([[3, 1, 4]]), w).shape
    ((100, 16), (1, 3, 16))
    """

    def __init__(self, d_embed: int, num_embed: int, mass: float = 1.0, share: str | None = None, *, scale: float | str = 1.0) -> None:
        super().__init__((size("num_embed", num_embed), size("d_embed", d_embed)), mass, share, scale)

    def apply(self, x: Any, w: Array) -> Any:
        expect_tokens(x, w.shape[0])
        if arrays.library(w) == "jax" or arrays.library(x) == "jax":
            return self._scaled(arrays.namespace("jax").asarray(w)[x])
        return self._scaled(w[x])

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)

        def pullback(dy: Any) -> tuple[None, Array]:
            xp = arrays.namespace_of(w)
            gradient = xp.zeros(w.shape, arrays.working_dtype(w.dtype))
            xp.add.at(gradient, x, widen(self._scaled(dy)))
            return None, gradient

        return y, pullback

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        table = source.normal((*copies, *self.shape))
        rms = source.xp.sqrt((table * table).mean(axis=-1, keepdims=True)) if self.shape[1] else 1.0
        return table / (rms * abs(self.scale))


class Conv2D(_BuiltIn):
    """Correlation of images. ``Conv2D(out_channels, in_channels)``: the output comes first, opposite to Flax, Equinox and torch.

    Images have their channels on the last axis. The weight has shape (kh, kw, out_channels, in_channels): a matrix for each of the kh kw
    taps. Its norm is ``kh * kw`` times the largest operator norm from RMS to RMS of a tap. Each tap starts as a random semi-orthogonal
    matrix times ``sqrt(out_channels / in_channels) / (kh * kw)``, so the whole has norm 1. The sensitivity is 1, the sharpness (0, 1, 0).
    Source: Large et al., "Scalable Optimization in the Modular Norm" (2024).

    Args:
        out_channels: number of channels of the output.
        in_channels: number of channels of the input.
        kernel_size: height and width of the kernel in pixels, at least 1: one number for both, or a pair.
        stride: pixels between neighbouring output positions, at least 1: one number, or a pair (down, across).
        padding: rows and columns of zeros added on each side: one number, or a pair (rows, columns).
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.
        scale: s for outputs s times the correlation. The weights are smaller by s, and so are the targets of their updates. ``"unit"`` is
            the scale at which entries start at RMS 1. Not 0.

    Input of shape (..., height, width, in_channels). Output of shape (..., ``(height + 2 * padding - kh) // stride + 1``,
    ``(width + 2 * padding - kw) // stride + 1``, out_channels).

    Raises:
        TypeError: a size that is no integer, a mass or scale that is no number, a share that is no string; at a call, a tuple.
        ValueError: a size below its minimum; a mass that is negative or not finite; a scale that is 0 or not finite, or another word than
            ``"unit"``; at a call, an input of another shape than above, or an image that is smaller than the kernel after padding.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Conv2D(16, 3, stride=2)
    >>> w = m.initialize(0)
    >>> w[0].shape, m(np.ones((2, 32, 32, 3), np.float32), w).shape
    ((3, 3, 16, 3), (2, 16, 16, 16))
    """

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 1,
        mass: float = 1.0,
        share: str | None = None,
        *,
        scale: float | str = 1.0,
    ) -> None:
        kernel = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        super().__init__((*kernel, size("out_channels", out_channels), size("in_channels", in_channels)), mass, share, scale)

    def _unit_scale(self) -> float:
        kh, kw, out, into = self.shape
        return (out / max(into, 1) / max(out, into, 1)) ** 0.5 / (kh * kw) or 1.0

    def apply(self, x: Any, w: Array) -> Any:
        return self._scaled(correlate(self._images(x, w), w, self.stride, self.padding))

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y, pullback = correlate_vjp(self._images(x, w), w, self.stride, self.padding)
        return self._scaled(y), lambda dy: pullback(self._scaled(dy))

    def _images(self, x: Any, w: Array) -> Array:
        expect_features(x, w.shape[-1])
        if x.ndim < 3:
            raise FeatureMismatch(f"expected images of shape (..., height, width, {w.shape[-1]}), got {tuple(x.shape)}")
        return as_floating(x, w)

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        kh, kw, out, into = self.shape
        return source.semi_orthogonal((*copies, kh, kw), out, into) * ((out / max(into, 1)) ** 0.5 / (kh * kw * abs(self.scale)))


class Bias(_BuiltIn):
    """``x -> x + b`` over the last axis.

    The weight b has shape (d,). Its norm is its RMS. It starts at zero. The sensitivity is 1, the sharpness (0, 0, 0).

    Args:
        d: number of features.
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.

    Input and output of shape (..., d).

    Raises:
        TypeError: a size that is no integer, a mass that is no number, a share that is no string; at a call, a tuple.
        ValueError: a negative size; a mass that is negative or not finite; at a call, an input whose last axis is not ``d``.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Bias(3)(np.ones((2, 3)), [np.array([0.0, 1.0, 2.0])])
    array([[1., 2., 3.],
           [1., 2., 3.]])
    >>> mr.Bias(3).initialize(0)
    [array([0., 0., 0.], dtype=float32)]
    """

    def __init__(self, d: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("d", d),), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return as_floating(x, w) + of_rank(w, x.ndim)

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        return self.apply(x, w), lambda dy: (dy, sum_of_rows(dy, len(w)))

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        return source.xp.zeros((*copies, *self.shape), source.dtype)


class Scale(_BuiltIn):
    """``x -> x * g`` over the last axis.

    The weight g has shape (d,). Its norm is its largest absolute entry. It starts at one. The sensitivity is 1, the sharpness (0, 1, 0).

    Args:
        d: number of features.
        mass: share of feature learning, in proportion to the masses of the other atoms; 0 keeps the weights as they are.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.

    Input and output of shape (..., d).

    Raises:
        TypeError: a size that is no integer, a mass that is no number, a share that is no string; at a call, a tuple.
        ValueError: a negative size; a mass that is negative or not finite; at a call, an input whose last axis is not ``d``.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Scale(3)(np.ones((2, 3)), [np.array([0.0, 1.0, 2.0])])
    array([[0., 1., 2.],
           [0., 1., 2.]])
    >>> mr.Scale(3).initialize(0)
    [array([1., 1., 1.], dtype=float32)]
    """

    def __init__(self, d: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("d", d),), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return as_floating(x, w) * of_rank(w, x.ndim)

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)
        return y, lambda dy: (dy * w, sum_of_rows(widen(dy) * x, len(w)))

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        return source.xp.ones((*copies, *self.shape), source.dtype)
