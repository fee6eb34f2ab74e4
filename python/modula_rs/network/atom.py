"""What an atom is: the class to derive from, and what the built-in atoms have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modula_rs import _core, arrays
from modula_rs.arrays import Array, Pullback, narrow, widen
from modula_rs.checks import KindMismatch, number, shown, single, size
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
