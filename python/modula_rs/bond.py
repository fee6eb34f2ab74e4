"""Bonds: modules without weights. A new bond is one class here and one row in the core's ``bond.rs``."""

from __future__ import annotations

import inspect
import math
from typing import Any

from modula_rs import _core, arrays
from modula_rs.module import Module
from modula_rs.primitive import Primitive

Axis = int | tuple[int, ...]


class Bond(Primitive):
    """A module without weights, of mass 0. Derive from it to write your own.

    A user's bond is a class with ``forward(x)`` (or ``forward(x, w)``, as in Modula, with an empty ``w``). Class or instance attributes
    ``sensitivity`` (1 unless declared), ``sharpness`` (unbounded unless declared), ``in_features`` and ``out_features`` declare the rest.
    Every bond of the library takes ``sensitivity=`` and ``sharpness=(alpha, beta, gamma)`` to declare other values.

    >>> import numpy as np, modula_rs as mr
    >>> class Sine(mr.Bond):
    ...     sharpness = (0, 0, 1)
    ...     def forward(self, x): return np.sin(x)
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
        self._takes_weights = len(inspect.signature(self.forward).parameters) > 1
        return _core.Tree.custom_bond(type(self).__name__, self._declaration(), self._behaviour())

    def apply(self, x: Any) -> Any:
        """The forward pass."""
        return self.forward(x, []) if self._takes_weights else self.forward(x)  # type: ignore[call-arg]


class _BuiltIn(Bond):
    """A bond of the core's catalogue; ``argument`` is what its row there takes."""

    _catalogue: str | None = None
    _argument: float | None = None

    def _build(self) -> _core.Tree:
        sensitivity = self._declared.get("sensitivity")
        return _core.Tree.bond(
            self._catalogue or self._kind(),
            self._argument,
            None if sensitivity is None else float(sensitivity),
            self._declared_sharpness(),
            self._behaviour(),
        )


class Identity(_BuiltIn):
    """``x -> x``."""

    def apply(self, x: Any) -> Any:
        return x


class Add(_BuiltIn):
    """The sum of a tuple."""

    def apply(self, x: Any) -> Any:
        if not isinstance(x, tuple):
            raise TypeError(f"Add takes a tuple of arrays, got {type(x).__name__}")
        total = x[0]
        for member in x[1:]:
            total = total + member
        return total


class Mul(_BuiltIn):
    """``x -> a x`` for a scalar ``a`` other than 0, on arrays and tuples; sensitivity ``abs(a)``."""

    def __init__(self, a: float, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.a = self._argument = float(a)

    def apply(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(self.apply(member) for member in x)
        return x * self.a


class Abs(_BuiltIn):
    """``|x|``; not smooth."""

    def apply(self, x: Any) -> Any:
        return abs(x)


class ReLU(_BuiltIn):
    """``max(x, 0)``; not smooth. ``ReLU(sensitivity=2**-0.5)`` declares the average-case estimate of the 2024 version."""

    def apply(self, x: Any) -> Any:
        return arrays.namespace_of(x).maximum(x, 0)


class Tanh(_BuiltIn):
    """``tanh x``."""

    def apply(self, x: Any) -> Any:
        return arrays.namespace_of(x).tanh(x)


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
        y = _gelu(x)
        return y if self._catalogue else y * (1.0 / self.SLOPE)


class MeanSubtract(_BuiltIn):
    """``x - mean(x)`` over ``axis``."""

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axis

    def apply(self, x: Any) -> Any:
        wide = _widen(x)
        return (wide - wide.mean(axis=self.axis, keepdims=True)).astype(x.dtype)


class RMSDivide(_BuiltIn):
    """``x / rms(x)`` over ``axis``; zero stays zero, and any other scale, however small or large, is divided out."""

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axis

    def apply(self, x: Any) -> Any:
        xp = arrays.namespace_of(x)
        wide = _widen(x)
        if wide.size == 0:
            return x
        # Dividing by the largest entry first keeps the squares in range. The result does not depend on that number, so neither
        # does the gradient, and JAX need not look.
        largest = abs(wide).max(axis=self.axis, keepdims=True)
        if arrays.library(x) == "jax":
            import jax

            largest = jax.lax.stop_gradient(largest)
        zero = largest == 0
        scaled = wide / xp.where(zero, 1, largest)
        mean_square = (scaled * scaled).mean(axis=self.axis, keepdims=True)
        return (scaled / xp.sqrt(xp.where(zero, 1, mean_square))).astype(x.dtype)


class Mean(_BuiltIn):
    """The mean over ``axis``, which goes away."""

    def __init__(self, axis: Axis, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axis
        # An axis counted from the front may be the last: then, too, the features of the output are open.
        axes = axis if isinstance(axis, tuple) else (axis,)
        self._argument = -1.0 if any(a == -1 or a >= 0 for a in axes) else 0.0

    def apply(self, x: Any) -> Any:
        return _widen(x).mean(axis=self.axis).astype(x.dtype)


class Flatten(_BuiltIn):
    """All axes but the first made one."""

    def apply(self, x: Any) -> Any:
        return x.reshape(x.shape[0], -1) if x.ndim > 2 else x


def ScaledReLU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) relu(x)``, declared to have sensitivity 1 (an average-case estimate).

    >>> import modula_rs as mr
    >>> round(mr.ScaledReLU().sensitivity, 12)
    1.0
    """
    inner = 2**-0.5 if sensitivity is None else sensitivity * 2**-0.5
    return 2**0.5 * ReLU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def ScaledGELU(*, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``sqrt(2) gelu(x)``, declared to have sensitivity 1 (an average-case estimate)."""
    inner = 2**-0.5 if sensitivity is None else sensitivity * 2**-0.5
    return 2**0.5 * GELU(sensitivity=inner, sharpness=_scaled(sharpness, 2**-0.5))


def LayerNorm(axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``RMSDivide(axis) @ MeanSubtract(axis)``: no weights; compose with Scale and Bias for those."""
    return RMSDivide(axis, sensitivity=sensitivity, sharpness=sharpness) @ MeanSubtract(axis)


def _scaled(sharpness: tuple[float, float, float] | None, factor: float) -> tuple[float, float, float] | None:
    return None if sharpness is None else (sharpness[0] * factor, sharpness[1] * factor, sharpness[2] * factor)


def _widen(x: Any) -> Any:
    """Half precision as float32; integers as they are."""
    return x.astype(arrays.working_dtype(x.dtype)) if x.dtype.itemsize == 2 else x


def _gelu(x: Any) -> Any:
    name = arrays.library(x)
    if name == "jax":
        import jax

        return jax.nn.gelu(x, approximate=False)
    wide = _widen(x)
    if name == "cupy":
        from cupyx.scipy.special import erf
    else:
        erf = _core.erf
    return (0.5 * wide * (1 + erf(wide * 0.5**0.5))).astype(x.dtype)
