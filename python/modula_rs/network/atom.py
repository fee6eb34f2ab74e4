"""Atoms: modules that hold weights. A new atom is one class here and one entry in the core's ``atom.rs``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import _core, arrays
from modula_rs.arrays import Array, Pullback, narrow, widen
from modula_rs.checks import FeatureMismatch, KindMismatch, expect_features, expect_tokens, flag, number, pair, shown, single, size
from modula_rs.forward.arithmetic import as_floating, matmul, of_rank, product, sum_of_rows
from modula_rs.forward.convolution import correlate, correlate_vjp
from modula_rs.network.module import Module
from modula_rs.network.primitive import Primitive
from modula_rs.random import Source


class Atom(Primitive):
    """A module with one weight array. Derive from it to write your own.

    A user's atom is a class with ``forward(x, w)``, ``initialize(key)``, ``norm(w)``, ``normalize(w, target_norm)`` and
    ``dualize(g, target_norm)``. They have the signatures of any :class:`Module`: ``w`` is a list that holds the array of one copy, and
    ``initialize``, ``normalize`` and ``dualize`` return such a list. ``initialize`` gets a ``numpy.random.Generator``, a JAX key or a
    ``cupy.random.Generator``. JAX differentiates ``forward``; for gradients of NumPy and CuPy arrays the class also has ``vjp(x, w)``, with
    the signature of :meth:`Module.vjp`. Attributes of the class or the instance declare the rest: ``mass`` (1 unless declared),
    ``sensitivity`` (1), ``sharpness`` (0, 1, 0), ``shape`` (of the weight; without it, a weight is drawn to find the shape),
    ``in_features`` and ``out_features`` (open), ``at_zero`` (0: the norm of the output at an input of zero). ``project``, ``regularize``,
    ``dual_norm`` and every other map may be overridden too.

    Args:
        mass: share of feature learning, in proportion to the masses of the other atoms; None for the mass that the class declares.
        share: atoms with the same name here, and weights of the same shape, use one array; None for an array of its own.

    Raises:
        TypeError: a required method is missing, or the shape of the weight can be found in no way.
        ValueError: a mass or sensitivity that is negative or not finite.

    >>> import numpy as np, modula_rs as mr
    >>> class Gain(mr.Atom):  # one number, measured by its absolute value
    ...     shape = ()
    ...     def forward(self, x, w): return x * w[0]
    ...     def vjp(self, x, w): return x * w[0], lambda dy: (dy * w[0], [(dy * x).sum()])
    ...     def initialize(self, key): return [np.ones((), np.float32)]
    ...     def norm(self, w): return abs(w[0])
    ...     def normalize(self, w, target_norm=1.0): return [np.sign(w[0]) * target_norm]
    ...     dualize = normalize
    >>> m = mr.Linear(3, 3) @ Gain()
    >>> [leaf.kind for leaf in m.leaves], m.mass
    (['Gain', 'Linear'], 2.0)
    """

    _required: tuple[str, ...] = ("forward", "initialize", "norm", "normalize", "dualize")

    def __init__(self, mass: float | None = None, share: str | None = None) -> None:
        if mass is not None:
            self.mass = mass
        self.share = share

    def _build(self) -> _core.Tree:
        missing = [name for name in self._required if not self.overrides(name)]
        if missing:
            raise TypeError(f"{type(self).__name__} must define {', '.join(missing)} to be an atom")
        shape: Sequence[int] = self.shape if hasattr(self, "shape") else self._probe_shape()
        return _core.Tree.custom_atom(
            type(self).__name__,
            [size("an axis of the weight", n) for n in shape],
            number("mass", self._declared.get("mass", 1.0)),
            getattr(self, "share", None),
            self._declaration(),
            self._behaviour(),
        )

    def overrides(self, name: str) -> bool:
        """Whether the class, or a base class below :class:`Module`, defines the method ``name``."""
        return getattr(type(self), name) is not getattr(Module, name)

    def _probe_shape(self) -> Sequence[int]:
        """The shape of the weight, found by drawing one."""
        try:
            drawn = self.initialize(np.random.default_rng(0))
        except Exception as first:
            try:
                import jax

                drawn = self.initialize(jax.random.key(0))
            except Exception:
                raise TypeError(
                    f"{type(self).__name__}.initialize takes neither a NumPy generator nor a JAX key; "
                    f"declare the weight's shape as an attribute: shape = (...)"
                ) from first
        return tuple(single(drawn, type(self).__name__).shape)

    @property
    def may_join(self) -> bool:
        """Whether this is a plain Linear with weights of its own, so that one product may serve it and its neighbours in a tuple."""
        return False

    def apply(self, x: Any, w: Array) -> Any:
        """The forward pass on one copy's array."""
        return self.forward(x, [w])

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        """The forward pass on one copy's array, and a function from the output's cotangent to the cotangents of ``x`` and ``w``."""
        if type(self).vjp is Module.vjp:
            raise KindMismatch(
                f"{type(self).__name__} has no gradient for {arrays.namespace_of(w).__name__} arrays: define vjp(self, x, w), which "
                f"returns the output and a function from its cotangent to (cotangent of x, [gradient of w])"
            )
        y, pullback = self.vjp(x, [w])

        def first(dy: Any) -> tuple[Any, Array]:
            dx, gradients = pullback(dy)
            return dx, single(gradients, type(self).__name__)

        return y, first

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        """Fresh weights of all copies, shape (\\*copies, \\*shape), in float32 or better."""
        drawn = [single(self.initialize(source.key()), type(self).__name__) for _ in range(int(np.prod(copies)))]
        if not copies:
            return drawn[0]
        return source.xp.stack(drawn).reshape(*copies, *drawn[0].shape)


# ---- built-in atoms -------------------------------------------------------------------------------------------------------


class _BuiltIn(Atom):
    """An atom whose norm and maps the core knows."""

    shape: tuple[int, ...]
    #: What the forward pass multiplies by. An attribute of the object only if it is not 1.
    scale: float = 1.0

    def __init__(self, shape: tuple[int, ...], mass: float, share: str | None, scale: float | str = 1.0) -> None:
        if share is not None and not isinstance(share, str):
            raise TypeError(f"share must be a string, got {shown(share)}")
        super().__init__(mass=number("mass", mass), share=share)
        self.shape = shape
        if isinstance(scale, str):
            if scale != "unit":
                raise ValueError(f'scale must be a number or "unit", got {shown(scale)}')
            scale = self._unit_scale()
        if number("scale", scale) != 1.0:
            self.scale = number("scale", scale)

    def _unit_scale(self) -> float:
        """The scale at which initial weights have entries of RMS 1."""
        return 1.0

    def _build(self) -> _core.Tree:
        return _core.Tree.atom(self._kind(), list(self.shape), self._declared["mass"], self.share, self._behaviour(), self.scale)

    def _scaled(self, y: Any) -> Any:
        """An array times the scale, which is not rounded to half precision."""
        return y if self.scale == 1.0 else narrow(widen(y) * self.scale, y)


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
