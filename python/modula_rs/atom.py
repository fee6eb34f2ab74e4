"""Atoms: modules that hold weights. A new atom is one class here and one entry in the core's ``atom.rs``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import _core, arrays
from modula_rs.arrays import widen
from modula_rs.forward import FeatureMismatch, KindMismatch, TokenMismatch
from modula_rs.module import Array, Module, Pullback
from modula_rs.primitive import Primitive
from modula_rs.random import Source


def size(what: str, value: Any, least: int = 0) -> int:
    """A size as an int; TypeError if it is none, ValueError if it is too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{what} must be at least {least}, got {number}")
    return number


def expect_features(x: Any, features: int) -> None:
    """Raises if the last axis of ``x`` does not hold so many features."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if x.ndim == 0 or x.shape[-1] != features:
        raise FeatureMismatch(f"expected an input of shape (..., {features}), got {tuple(x.shape)}")


def expect_tokens(x: Any, rows: int) -> None:
    """Raises unless ``x`` holds integers that are rows of a table; JAX clips those that are not, as it does everywhere."""
    if isinstance(x, tuple):
        raise KindMismatch(f"expected one array, got a tuple of {len(x)}")
    if not np.issubdtype(x.dtype, np.integer):
        raise KindMismatch(f"an Embed takes integer tokens, got {x.dtype}")
    if arrays.library(x) == "numpy" and x.size and not (-rows <= x.min() and x.max() < rows):
        raise TokenMismatch(f"tokens must be at least 0 and below {rows}, got {x.min()} to {x.max()}")


def as_floating(x: Array, w: Array) -> Array:
    """Integers in the dtype of the weights; all else as it is."""
    return x.astype(w.dtype) if x.dtype.kind in "biu" else x


def matmul(x: Array, w: Array) -> Array:
    """``x @ w.T`` over the last axes; half precision is accumulated in float32."""
    if arrays.library(w) == "jax" or arrays.library(x) == "jax":
        import jax.numpy as jnp
        from jax import lax

        dtype = jnp.result_type(x, w)
        wide = jnp.promote_types(dtype, jnp.float32)
        # As one plain product of matrices: with more axes, or w transposed, the backward pass on a CPU copies what it multiplies.
        rows = jnp.asarray(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y = lax.dot_general(rows, w, (((1,), (1,)), ((), ())), preferred_element_type=wide).astype(dtype)
        return y.reshape(*x.shape[:-1], w.shape[0])
    return product(x, w.T).astype(np.result_type(x.dtype, w.dtype), copy=False)


def product(a: Array, b: Array) -> Array:
    """``a @ b``, accumulated in float32 or better (by CuPy too, which gives half precision as it takes it)."""
    if arrays.library(a) == "cupy":
        return a @ b
    return widen(a) @ widen(b)


def sum_of_rows(x: Array, d: int) -> Array:
    """The sum over all axes but the last, of size ``d``."""
    return widen(x).reshape(x.size // max(d, 1), d).sum(axis=0)


class Atom(Primitive):
    """A module with one weight array. Derive from it to write your own.

    A user's atom is a class with ``forward(x, w)``, ``initialize(key)``, ``norm(w)``, ``normalize(w, target_norm)`` and
    ``dualize(g, target_norm)``, the signatures of any :class:`Module`: ``w`` is a list of one array, that of one copy, and ``initialize``,
    ``normalize`` and ``dualize`` return such a list. ``initialize`` gets a ``numpy.random.Generator``, a JAX key or a
    ``cupy.random.Generator``. JAX differentiates ``forward``; for gradients of NumPy and CuPy arrays the class also has ``vjp(x, w)``, with
    the signature of :meth:`Module.vjp`. Class or instance attributes ``mass``, ``sensitivity``, ``sharpness``, ``shape`` (of the weight)
    and ``in_features``, ``out_features`` declare the rest; ``project``, ``regularize`` and ``dual_norm`` may be overridden too.

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
        missing = [name for name in self._required if getattr(type(self), name) is getattr(Module, name)]
        if missing:
            raise TypeError(f"{type(self).__name__} must define {', '.join(missing)} to be an atom")
        shape: Sequence[int] = self.shape if hasattr(self, "shape") else self._probe_shape()
        return _core.Tree.custom_atom(
            type(self).__name__,
            [size("an axis of the weight", n) for n in shape],
            float(self._declared.get("mass", 1.0)),
            getattr(self, "share", None),
            self._declaration(),
            self._behaviour(),
        )

    def _probe_shape(self) -> Sequence[int]:
        """The shape of the weight, from drawing one."""
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

    def apply(self, x: Any, w: Array) -> Any:
        """The forward pass on one copy's array."""
        return self.forward(x, [w])

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        """The forward pass on one copy's array, and a function from the cotangent of its output to those of ``x`` and ``w``."""
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


def single(value: Any, name: str) -> Array:
    """The array of a list of one, or the array itself."""
    if isinstance(value, list | tuple):
        if len(value) != 1:
            raise ValueError(f"{name} must return a list of one array, got {len(value)}")
        value = value[0]
    return value if arrays.library(value) else np.asarray(value)


# ---- the library's own ----------------------------------------------------------------------------------------------------


class _BuiltIn(Atom):
    """An atom whose maps the core knows."""

    shape: tuple[int, ...]

    def __init__(self, shape: tuple[int, ...], mass: float, share: str | None) -> None:
        if share is not None and not isinstance(share, str):
            raise TypeError(f"share must be a string, got {share!r}")
        super().__init__(mass=mass, share=share)
        self.shape = shape

    def _build(self) -> _core.Tree:
        return _core.Tree.atom(self._kind(), list(self.shape), float(self._declared["mass"]), self.share, self._behaviour())


class Linear(_BuiltIn):
    """``x -> W x`` over the last axis, W of shape (fanout, fanin), measured by ``sqrt(fanin/fanout)`` times the spectral norm.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Linear(4, 8)
    >>> w = m.initialize(0)
    >>> m(np.ones((2, 8), np.float32), w).shape
    (2, 4)
    """

    def __init__(self, fanout: int, fanin: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("fanout", fanout), size("fanin", fanin)), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return matmul(as_floating(x, w), w)

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)

        def pullback(dy: Any) -> tuple[Any, Array]:
            rows = math.prod(x.shape[:-1])
            along = as_floating(x, w).reshape(rows, w.shape[1])
            return product(dy, w), product(dy.reshape(rows, w.shape[0]).T, along)

        return y, pullback

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        fanout, fanin = self.shape
        return source.semi_orthogonal(copies, fanout, fanin) * (fanout / max(fanin, 1)) ** 0.5


class Embed(_BuiltIn):
    """Token ``i`` to row ``i`` of a table of shape (num_embed, d_embed), measured by the largest row RMS.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Embed(16, 100)
    >>> m(np.array([[3, 1, 4]]), m.initialize(0)).shape
    (1, 3, 16)
    """

    def __init__(self, d_embed: int, num_embed: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("num_embed", num_embed), size("d_embed", d_embed)), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_tokens(x, w.shape[0])
        if arrays.library(w) == "jax" or arrays.library(x) == "jax":
            return arrays.namespace("jax").asarray(w)[x]
        return w[x]

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)

        def pullback(dy: Any) -> tuple[None, Array]:
            xp = arrays.namespace_of(w)
            gradient = xp.zeros(w.shape, arrays.working_dtype(w.dtype))
            xp.add.at(gradient, x, widen(dy))
            return None, gradient

        return y, pullback

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        table = source.normal((*copies, *self.shape))
        rms = source.xp.sqrt((table * table).mean(axis=-1, keepdims=True)) if self.shape[1] else 1.0
        return table / rms


class Conv2D(_BuiltIn):
    """Correlation of channels-last images with taps of shape (kh, kw, out_channels, in_channels).

    Measured by ``kh * kw`` times the largest RMS-to-RMS norm of a tap.
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
    ) -> None:
        kernel = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        super().__init__((*kernel, size("out_channels", out_channels), size("in_channels", in_channels)), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        from modula_rs.convolution import correlate

        return correlate(self._images(x, w), w, self.stride, self.padding)

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        from modula_rs.convolution import correlate_vjp

        return correlate_vjp(self._images(x, w), w, self.stride, self.padding)

    def _images(self, x: Any, w: Array) -> Array:
        expect_features(x, w.shape[-1])
        if x.ndim < 3:
            raise FeatureMismatch(f"expected images of shape (..., height, width, {w.shape[-1]}), got {tuple(x.shape)}")
        return as_floating(x, w)

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        kh, kw, out, into = self.shape
        return source.semi_orthogonal((*copies, kh, kw), out, into) * ((out / max(into, 1)) ** 0.5 / (kh * kw))


class Bias(_BuiltIn):
    """``x -> x + b`` with b of shape (d,), measured by its RMS; starts at zero."""

    def __init__(self, d: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("d", d),), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return as_floating(x, w) + w

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        return self.apply(x, w), lambda dy: (dy, sum_of_rows(dy, len(w)))

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        return source.xp.zeros((*copies, *self.shape), source.dtype)


class Scale(_BuiltIn):
    """``x -> x * g`` with g of shape (d,), measured by its largest entry; starts at one."""

    def __init__(self, d: int, mass: float = 1.0, share: str | None = None) -> None:
        super().__init__((size("d", d),), mass, share)

    def apply(self, x: Any, w: Array) -> Any:
        expect_features(x, w.shape[-1])
        return as_floating(x, w) * w

    def apply_vjp(self, x: Any, w: Array) -> tuple[Any, Pullback]:
        y = self.apply(x, w)
        return y, lambda dy: (dy * w, sum_of_rows(widen(dy) * x, len(w)))

    def draw(self, source: Source, copies: tuple[int, ...]) -> Array:
        return source.xp.ones((*copies, *self.shape), source.dtype)


def pair(what: str, value: Any, least: int) -> tuple[int, int]:
    """One size for both axes, or one for each."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2:
        raise ValueError(f"{what} must be one size or two, got {value!r}")
    return size(what, both[0], least), size(what, both[1], least)
