"""Bonds: modules without weights. A new bond is one class here and one row in the core's ``bond.rs``."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from modula_rs import _core, arrays
from modula_rs.arrays import Pullback, narrow, widen
from modula_rs.checks import axes, number
from modula_rs.forward.arithmetic import of_rank
from modula_rs.network.module import Module
from modula_rs.network.primitive import Primitive, bounds

Axis = int | tuple[int, ...]


class Bond(Primitive):
    """A module without weights, of mass 0. Derive from it to write your own.

    A user's bond is a class with ``forward(x)`` (or ``forward(x, w)``, as in Modula, with an empty ``w``). Class or instance attributes
    ``sensitivity`` (1 unless declared), ``sharpness`` (unbounded unless declared), ``in_features`` and ``out_features`` declare the rest.
    JAX differentiates it as it is; for gradients of NumPy and CuPy arrays it also has ``vjp(x)``, which returns the output and a function
    from its cotangent to that of ``x`` (or, as :meth:`Module.vjp`, ``vjp(x, w)``, whose function returns that and an empty list).
    Every bond of the library takes ``sensitivity=`` and ``sharpness=(alpha, beta, gamma)`` to declare other values.

    >>> import numpy as np, modula_rs as mr
    >>> class Sine(mr.Bond):
    ...     sharpness = (0, 0, 1)
    ...     def forward(self, x): return np.sin(x)
    ...     def vjp(self, x): return np.sin(x), lambda dy: dy * np.cos(x)
    >>> m = mr.Linear(2, 3) @ Sine()
    >>> m.sensitivity, m.sharpness.gamma, m.smooth
    (1.0, 1.0, True)
    """

    def __init__(self, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        if sensitivity is not None:
            self.sensitivity = sensitivity
        if sharpness is not None:
            self.sharpness = sharpness

    def _build(self) -> _core.Tree:
        if type(self).forward is Module.forward:
            raise TypeError(f"{type(self).__name__} must define forward to be a bond")
        return _core.Tree.custom_bond(type(self).__name__, self._declaration(), self._behaviour())

    def apply(self, x: Any) -> Any:
        """The forward pass."""
        return self.forward(x, []) if _takes_weights(self.forward) else self.forward(x)  # type: ignore[call-arg]

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        """The forward pass, and a function from the cotangent of its output to that of ``x``."""
        if type(self).vjp is Module.vjp:
            raise TypeError(
                f"{type(self).__name__} has no gradient for {arrays.namespace_of(x).__name__} arrays: define vjp(self, x), which returns "
                f"the output and a function from its cotangent to that of x"
            )
        if not _takes_weights(self.vjp):
            return self.vjp(x)  # type: ignore[call-arg]
        y, pullback = self.vjp(x, [])
        return y, lambda dy: pullback(dy)[0]


class _BuiltIn(Bond):
    """A bond of the core's catalogue; ``argument`` is what its row there takes."""

    _catalogue: str | None = None
    _argument: float | None = None
    _takes_tuples = False

    def __init_subclass__(cls, takes_tuples: bool | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if takes_tuples is not None:
            cls._takes_tuples = takes_tuples
        if not cls._takes_tuples:
            for name in {"apply", "apply_vjp"} & cls.__dict__.keys():
                setattr(cls, name, _of_one_array(cls.__dict__[name]))

    def _build(self) -> _core.Tree:
        sensitivity = self._declared.get("sensitivity")
        return _core.Tree.bond(
            self._catalogue or self._kind(),
            self._argument,
            None if sensitivity is None else number("sensitivity", sensitivity),
            self._declared_sharpness(),
            self._behaviour(),
        )


def _of_one_array(apply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The method, for one array alone."""

    @functools.wraps(apply)
    def checked(self: Any, x: Any) -> Any:
        if isinstance(x, tuple):
            raise TypeError(f"{type(self).__name__} takes one array, got a tuple of {len(x)}")
        return apply(self, x)

    return checked


class Identity(_BuiltIn, takes_tuples=True):
    """``x -> x``."""

    def apply(self, x: Any) -> Any:
        return x

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return x, self.apply


class Add(_BuiltIn, takes_tuples=True):
    """The sum of a tuple, arrays broadcast as NumPy does."""

    def apply(self, x: Any) -> Any:
        if not isinstance(x, tuple):
            raise TypeError(f"Add takes a tuple of arrays, got {type(x).__name__}")
        if isinstance(x[0], tuple):
            return tuple(map(self.apply, zip(*x, strict=True)))
        rank = max(member.ndim for member in x)
        total = of_rank(x[0], rank)
        for member in x[1:]:
            total = total + of_rank(member, rank)
        return total

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y = self.apply(x)
        if isinstance(x[0], tuple):
            return y, lambda dy: (dy,) * len(x)
        shapes = [member.shape for member in x]
        return y, lambda dy: tuple(_unbroadcast(dy, shape) for shape in shapes)


class Mul(_BuiltIn, takes_tuples=True):
    """``x -> a x`` for a scalar ``a`` other than 0, on arrays and tuples; sensitivity ``abs(a)``."""

    def __init__(self, a: float, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.a = self._argument = number("the factor of a Mul", a)

    def apply(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(self.apply(member) for member in x)
        # The scalar is not rounded to half precision: 1 - 1/L would become 1.
        return narrow(widen(x) * self.a, x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), self.apply


class Abs(_BuiltIn):
    """``|x|``, of slope 1 at 0 as in JAX; not smooth."""

    def apply(self, x: Any) -> Any:
        return abs(x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        where, falling = arrays.namespace_of(x).where, x < 0
        return abs(x), lambda dy: where(falling, -dy, dy)


class ReLU(_BuiltIn):
    """``max(x, 0)``, of slope 0 at 0; not smooth. ``ReLU(sensitivity=2**-0.5)`` declares the average-case estimate of the 2024 version."""

    def apply(self, x: Any) -> Any:
        if arrays.library(x) == "jax":
            import jax

            return jax.nn.relu(x)  # jnp.maximum has slope 1/2 at 0
        return arrays.namespace_of(x).maximum(x, 0)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        where, rising = arrays.namespace_of(x).where, x > 0
        return self.apply(x), lambda dy: where(rising, dy, 0)


class Tanh(_BuiltIn):
    """``tanh x``."""

    def apply(self, x: Any) -> Any:
        return arrays.namespace_of(x).tanh(x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y = self.apply(x)
        return y, lambda dy: dy * (1 - widen(y) * widen(y))


class GELU(_BuiltIn):
    """``gelu(x) / 1.1289``, so that no slope exceeds 1; ``GELU(sensitivity=s)`` leaves gelu as it is and declares ``s``.

    gelu is the exact ``x Phi(x)``; 1.1289... is its largest slope, at ``x = sqrt 2``.
    """

    SLOPE = 0.5 * (1.0 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi)

    def _build(self) -> _core.Tree:
        if "sensitivity" in self._declared:
            self._catalogue = "UnscaledGELU"
        return super()._build()

    def apply(self, x: Any) -> Any:
        return narrow(_gelu(widen(x)) * self._factor, x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), lambda dy: dy * (_gelu_slope(widen(x)) * self._factor)

    @property
    def _factor(self) -> float:
        return 1.0 if self._catalogue else 1.0 / self.SLOPE


class MeanSubtract(_BuiltIn):
    """``x - mean(x)`` over ``axis``."""

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    def apply(self, x: Any) -> Any:
        if x.size == 0:
            return x
        wide = widen(x)
        return narrow(wide - wide.mean(axis=self.axis, keepdims=True), x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), self.apply  # a projection, and an orthogonal one


class RMSDivide(_BuiltIn):
    """``x / rms(x)`` over ``axis``; zero stays zero, and any other scale, however small or large, is divided out.

    Its gradient at zero is zero too.
    """

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    def apply(self, x: Any) -> Any:
        return self._divide(x)[0]

    def _divide(self, x: Any) -> tuple[Any, Any]:
        """The result, and the RMS it was divided by, infinite in place of zero."""
        xp = arrays.namespace_of(x)
        wide = widen(x)
        if wide.size == 0:
            return x, 1
        # Dividing by the largest entry first keeps the squares in range. The result does not depend on that number, so neither
        # does the gradient, and JAX need not look.
        largest = abs(wide).max(axis=self.axis, keepdims=True)
        if arrays.library(x) == "jax":
            import jax

            largest = jax.lax.stop_gradient(largest)
        zero = largest == 0
        scaled = xp.where(zero, 0, wide) / xp.where(zero, 1, largest)
        rms = xp.sqrt(xp.where(zero, 1, (scaled * scaled).mean(axis=self.axis, keepdims=True)))
        return narrow(scaled / rms, x), xp.where(zero, xp.inf, largest * rms)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y, rms = self._divide(x)

        def pullback(dy: Any) -> Any:
            if dy.size == 0:
                return dy
            unit, wide = widen(y), widen(dy)
            return (wide - unit * (unit * wide).mean(axis=self.axis, keepdims=True)) / rms

        return y, pullback


class Mean(_BuiltIn):
    """The mean over ``axis``, which goes away."""

    def __init__(self, axis: Axis, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)
        # An axis counted from the front may be the last: then, too, the features of the output are open.
        several = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        self._argument = -1.0 if any(a == -1 or a >= 0 for a in several) else 0.0

    def apply(self, x: Any) -> Any:
        wide = widen(x)
        return narrow(wide.mean(axis=self.axis) if x.size else wide.sum(axis=self.axis), x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        y, shape, xp = self.apply(x), x.shape, arrays.namespace_of(x)
        along = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        share = y.size / max(x.size, 1)
        return y, lambda dy: xp.broadcast_to(xp.expand_dims(widen(dy) * share, along), shape).copy()


class AvgPool(_BuiltIn):
    """The mean over height and width: (..., height, width, channels) to (..., channels).

    >>> import numpy as np, modula_rs as mr
    >>> mr.AvgPool()(np.ones((2, 8, 8, 3)), []).shape
    (2, 3)
    """

    def apply(self, x: Any) -> Any:
        if x.ndim < 3 or 0 in x.shape[-3:-1]:
            raise ValueError(f"AvgPool: expected images of shape (..., height, width, channels), got {tuple(x.shape)}")
        return widen(x).mean(axis=(-3, -2)).astype(x.dtype)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        def pullback(dy: Any) -> Any:
            share = widen(dy)[..., None, None, :] / (x.shape[-3] * x.shape[-2])
            return arrays.namespace_of(x).broadcast_to(share, x.shape).astype(x.dtype)

        return self.apply(x), pullback


class Flatten(_BuiltIn):
    """All axes but the first made one."""

    def apply(self, x: Any) -> Any:
        return x.reshape(x.shape[0], math.prod(x.shape[1:])) if x.ndim > 2 else x

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        shape = x.shape
        return self.apply(x), lambda dy: dy.reshape(shape)


def ScaledReLU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) relu(x)``, declared to have sensitivity 1 (an average-case estimate).

    >>> import modula_rs as mr
    >>> round(mr.ScaledReLU().sensitivity, 12)
    1.0
    """
    inner = 2**-0.5 if sensitivity is None else number("sensitivity", sensitivity) * 2**-0.5
    return 2**0.5 * ReLU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def ScaledGELU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) gelu(x)``, declared to have sensitivity 1 (an average-case estimate)."""
    inner = 2**-0.5 if sensitivity is None else number("sensitivity", sensitivity) * 2**-0.5
    return 2**0.5 * GELU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def LayerNorm(axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``RMSDivide(axis) @ MeanSubtract(axis)``: no weights; compose with Scale and Bias for those."""
    return RMSDivide(axis, sensitivity=sensitivity, sharpness=sharpness) @ MeanSubtract(axis)


def _scaled(sharpness: tuple[float, float, float] | None, factor: float) -> tuple[float, float, float] | None:
    if sharpness is None:
        return None
    alpha, beta, gamma = bounds(sharpness)
    return alpha * factor, beta * factor, gamma * factor


def _takes_weights(method: Any) -> bool:
    """Whether a user's method is written ``(x, w)``, as Modula's are, and not ``(x)``."""
    return len(inspect.signature(method).parameters) > 1


def _unbroadcast(dy: Any, shape: tuple[int, ...]) -> Any:
    """The cotangent of an array that was broadcast from ``shape``: summed over what it was repeated along."""
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    repeated = [axis for axis in range(dy.ndim) if axis < added or shape[axis - added] != dy.shape[axis]]
    return widen(dy).sum(axis=tuple(repeated), keepdims=True).reshape(shape)


def _gelu(x: Any) -> Any:
    if arrays.library(x) == "jax":
        from modula_rs.forward.jax_gelu import gelu  # needs JAX, which is optional

        return gelu(x)
    return x * _gaussian_share(x)


def _gaussian_share(x: Any) -> Any:
    """``Phi(x)``: the share of a Gaussian below ``x``."""
    if arrays.library(x) == "cupy":
        from cupyx.scipy.special import erf
    else:
        erf = _core.erf
    return 0.5 + 0.5 * erf(arrays.namespace_of(x).asarray(x * 0.5**0.5))


def _gelu_slope(x: Any) -> Any:
    """``gelu'(x) = Phi(x) + x phi(x)``."""
    xp = arrays.namespace_of(x)
    near = xp.clip(x, -40, 40)  # beyond, phi is 0 in every dtype, and squares could leave the range
    return _gaussian_share(x) + near * xp.exp(-0.5 * near * near) / math.sqrt(2 * math.pi)
