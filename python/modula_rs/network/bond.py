"""Bonds: modules without weights. A new bond is one class here and one row in the core's ``bond.rs``.

Elementwise functions are in ``activation.py``, the bonds of transformers in ``attention.py``.
"""

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
from modula_rs.network.primitive import Primitive

Axis = int | tuple[int, ...]


class Bond(Primitive):
    """A module without weights, of mass 0. Derive from it to write your own.

    A user's bond is a class with ``forward(x)`` (or ``forward(x, w)``, as in Modula, with an empty ``w``). Attributes of the class or the
    instance declare the rest: ``sensitivity`` (1 unless declared), ``sharpness`` (unbounded), ``in_features`` and ``out_features`` (open).
    JAX differentiates ``forward``. For gradients of NumPy and CuPy arrays the class also has ``vjp(x)``, which returns the output and a
    function from the output's cotangent to the cotangent of ``x``; or ``vjp(x, w)`` with the signature of :meth:`Module.vjp`.

    Args:
        sensitivity: an upper bound (or an estimate) of the output's change per unit of the input's change, in their norms; None for the
            value of the class.
        sharpness: bounds (alpha, beta, gamma) on second derivatives, see :class:`Sharpness`; None for the bounds of the class.

    Raises:
        TypeError: the class defines no ``forward``, or a value is no number.
        ValueError: a sensitivity or a bound that is negative.

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
        """The forward pass, and a function from the output's cotangent to the cotangent of ``x``."""
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
    """A bond that the core knows; ``_argument`` is the number that its row in the core's ``bond.rs`` takes."""

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
    """The method, which now refuses tuples."""

    @functools.wraps(apply)
    def checked(self: Any, x: Any) -> Any:
        if isinstance(x, tuple):
            raise TypeError(f"{type(self).__name__} takes one array, got a tuple of {len(x)}")
        return apply(self, x)

    return checked


class Identity(_BuiltIn, takes_tuples=True):
    """``x -> x``, for an array or a tuple of any shapes.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    >>> import numpy as np, modula_rs as mr
    >>> mr.Identity()(np.ones(3), [])
    array([1., 1., 1.])
    """

    def apply(self, x: Any) -> Any:
        return x

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return x, self.apply


class Add(_BuiltIn, takes_tuples=True):
    """The sum of a tuple. ``Add() @ (a, b)`` is also written ``a + b``.

    Args:
        sensitivity: declared instead of 1, where the norm of a tuple is the sum of the norms of its members.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input: a tuple of arrays, broadcast as NumPy does; or a tuple of tuples of equal length, which are added member by member.

    Raises:
        TypeError: at a call, an input that is no tuple.
        ValueError: at a call, shapes that do not broadcast, tuples of different lengths.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Add()((np.ones((2, 3)), np.array([0.0, 1.0, 2.0])), [])
    array([[1., 2., 3.],
           [1., 2., 3.]])
    """

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
    """``x -> a x``. ``Mul(a) @ m`` is also written ``a * m``.

    Args:
        a: the factor, finite and not 0.
        sensitivity: declared instead of ``abs(a)``.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input: an array or a tuple, of any shapes. The output has the shapes and dtypes of the input.

    Raises:
        TypeError: a factor that is no number.
        ValueError: a factor that is 0 or not finite.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Mul(-2.0).sensitivity, mr.Mul(-2.0)(np.ones(2), [])
    (2.0, array([-2., -2.]))
    """

    def __init__(self, a: float, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.a = self._argument = number("the factor of a Mul", a)

    def apply(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(self.apply(member) for member in x)
        # The scalar itself is not rounded to half precision, in which 1 - 1/L would become 1.
        return narrow(widen(x) * self.a, x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), self.apply


class MeanSubtract(_BuiltIn):
    """``x - mean(x)`` over ``axis``.

    Args:
        axis: the axis, or a tuple of axes, over which the mean is taken.
        sensitivity: declared instead of 1, which is exact: the map is an orthogonal projection.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of any shape that has these axes, output of the same shape.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    >>> import numpy as np, modula_rs as mr
    >>> mr.MeanSubtract()(np.array([1.0, 2.0, 6.0]), [])
    array([-2., -1.,  3.])
    """

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    def apply(self, x: Any) -> Any:
        if x.size == 0:
            return x
        wide = widen(x)
        return narrow(wide - wide.mean(axis=self.axis, keepdims=True), x)

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        return self.apply(x), self.apply  # an orthogonal projection is its own transpose


class RMSDivide(_BuiltIn):
    """``x / rms(x)`` over ``axis``, for x of any scale. Zero stays zero, and the gradient at zero is zero.

    Args:
        axis: the axis, or a tuple of axes, over which the mean square is taken.
        sensitivity: declared instead of 1, an estimate: it is a bound only for inputs of RMS 1 or more.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, ``2 / sqrt 3``), also for inputs of RMS 1 or more.

    Input of any shape that has these axes, output of the same shape.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    >>> import numpy as np, modula_rs as mr
    >>> mr.RMSDivide()(np.array([[3.0, 3.0], [0.0, 0.0]]), [])
    array([[1., 1.],
           [0., 0.]])
    """

    def __init__(self, axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)

    def apply(self, x: Any) -> Any:
        return self._divide(x)[0]

    def _divide(self, x: Any) -> tuple[Any, Any]:
        """The result, and the RMS by which x was divided: infinity in place of zero."""
        xp = arrays.namespace_of(x)
        wide = widen(x)
        if wide.size == 0:
            return x, 1
        # Dividing by the largest entry first keeps the squares in range. The result does not depend on that divisor, so the gradient
        # does not either, and JAX need not differentiate it.
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
    """The mean over ``axis``, which is removed from the shape.

    Args:
        axis: the axis, or a tuple of axes, over which the mean is taken.
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of any shape that has these axes, output without them.

    Raises:
        TypeError: an axis that is no integer; at a call, a tuple.
        ValueError: axes that repeat or that no array can have; at a call, an input without such an axis.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Mean(-2)(np.ones((2, 5, 3)), []).shape
    (2, 3)
    """

    def __init__(self, axis: Axis, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> None:
        super().__init__(sensitivity=sensitivity, sharpness=sharpness)
        self.axis = axes("axis", axis)
        # An axis counted from the front may be the last one, so the number of output features is not known for it either.
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
    """The mean over height and width of images.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Input of shape (..., height, width, channels), output of shape (..., channels).

    Raises:
        TypeError: at a call, a tuple.
        ValueError: at a call, an array of another shape, or images without pixels.

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
    """All axes but the first made one: (batch, ...) to (batch, features). Arrays of one or two axes stay as they are.

    Args:
        sensitivity: declared instead of 1.
        sharpness: declared bounds (alpha, beta, gamma) instead of (0, 0, 0).

    Raises TypeError at a call with a tuple.

    >>> import numpy as np, modula_rs as mr
    >>> mr.Flatten()(np.ones((2, 8, 8, 3)), []).shape
    (2, 192)
    """

    def apply(self, x: Any) -> Any:
        return x.reshape(x.shape[0], math.prod(x.shape[1:])) if x.ndim > 2 else x

    def apply_vjp(self, x: Any) -> tuple[Any, Pullback]:
        shape = x.shape
        return self.apply(x), lambda dy: dy.reshape(shape)


def LayerNorm(axis: Axis = -1, *, sensitivity: float | None = None, sharpness: tuple[float, float, float] | None = None) -> Module:
    """``RMSDivide(axis) @ MeanSubtract(axis)``. It has no weights; compose it with Scale and Bias for a gain and an offset.

    Args:
        axis: the axis, or a tuple of axes, over which mean and mean square are taken.
        sensitivity: declared for RMSDivide instead of 1.
        sharpness: bounds (alpha, beta, gamma) declared for RMSDivide.

    Input of any shape that has these axes, output of the same shape. Raises as :class:`RMSDivide` does.
    Source: Ba, Kiros and Hinton, "Layer Normalization" (2016).

    >>> import numpy as np, modula_rs as mr
    >>> mr.LayerNorm()(np.array([1.0, 3.0]), [])
    array([-1.,  1.])
    """
    return RMSDivide(axis, sensitivity=sensitivity, sharpness=sharpness) @ MeanSubtract(axis)


def _takes_weights(method: Any) -> bool:
    """Whether a user's method is written ``(x, w)``, as in Modula, rather than ``(x)``."""
    return len(inspect.signature(method).parameters) > 1


def _unbroadcast(dy: Any, shape: tuple[int, ...]) -> Any:
    """The cotangent of an array that was broadcast from ``shape``: the sum over the axes along which broadcasting repeated it."""
    if dy.shape == shape:
        return dy
    added = dy.ndim - len(shape)
    repeated = [axis for axis in range(dy.ndim) if axis < added or shape[axis - added] != dy.shape[axis]]
    return widen(dy).sum(axis=tuple(repeated), keepdims=True).reshape(shape)
