"""Bonds: modules without weights. A new bond is one class here and one row in the core's ``bond.rs``.

Elementwise functions are in ``activation.py``, the bonds of transformers in ``attention.py`` and ``positions.py``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from modula_rs import _core, arrays
from modula_rs.arrays import Pullback, narrow, widen
from modula_rs.checks import number
from modula_rs.forward.arithmetic import of_rank
from modula_rs.network.module import Module
from modula_rs.network.primitive import Primitive

#: Declared bounds (alpha, beta, gamma).
Sharp = tuple[float, float, float]


class Bond(Primitive):
    """A module without weights, of mass 0. Derive from it to write your own.

    A user's bond is a class with ``forward(x)``; or ``forward(x, w)`` with an empty ``w``, as type checkers expect of a module. Attributes
    of the class or the instance declare the rest: ``sensitivity`` (1 unless declared), ``sharpness`` (unbounded), ``in_features`` and
    ``out_features`` (open), ``at_zero`` (0: the norm of the output at an input of zero, which certificates add to the size of outputs).
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
    """The same method, except that it refuses tuples."""

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
