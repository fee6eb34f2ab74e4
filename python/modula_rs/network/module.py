"""Modules: values that compose with ``@``, ``+``, ``*``, ``**`` and tuples."""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

from modula_rs import _core
from modula_rs.arrays import Array, Pullback, Weights
from modula_rs.forward import run, vjp
from modula_rs.forward.program import Program
from modula_rs.norm import maps
from modula_rs.norm.methods import Normed
from modula_rs.norm.table import Leaf, Norm, Target


class Sharpness(NamedTuple):
    """Bounds on second derivatives in the modular norm: weight-weight, input-weight, input-input."""

    alpha: float
    beta: float
    gamma: float


class Module(Normed[Weights]):
    """A map from an input and weights to an output, with a mass, a sensitivity and a norm on its weights.

    Modules are values: composing copies, so a part used twice has weights twice (unless ``share=``), and taring a part after it was
    composed changes nothing in the whole. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 3.

    >>> import modula_rs as mr
    >>> m = mr.Linear(10, 64) @ mr.ReLU() @ mr.Linear(64, 784)
    >>> m.mass, m.sensitivity, m.in_features, m.out_features
    (2.0, 1.0, 784, 10)
    >>> [(t.path, t.target) for t in m.targets()]
    [('linear', 0.5), ('linear_1', 0.5)]
    """

    _cached_tree: _core.Tree | None = None
    _cached_parts: tuple[Norm, Program] | None = None

    def _build(self) -> _core.Tree:
        raise TypeError(f"{type(self).__name__} cannot be built: derive from Atom or Bond, or compose modules")

    @property
    def _tree(self) -> _core.Tree:
        if self._cached_tree is None:
            self._cached_tree = self._build()
        return self._cached_tree

    @_tree.setter
    def _tree(self, tree: _core.Tree) -> None:
        self._cached_tree, self._cached_parts, self._jitted = tree, None, None

    @property
    def _parts(self) -> tuple[Norm, Program]:
        if self._cached_parts is None:
            norm, program = self._tree.flatten()
            table = Norm(norm)
            self._cached_parts = table, Program(program, table)
        return self._cached_parts

    @property
    def norm_table(self) -> Norm:
        """The norm by itself: what the maps know of the module. It has no forward pass."""
        return self._parts[0]

    @property
    def program(self) -> Program:
        """The forward pass by itself, as steps."""
        return self._parts[1]

    @staticmethod
    def _of(tree: _core.Tree) -> Module:
        module = Module()
        module._tree = tree
        return module

    # ---- composition -------------------------------------------------------------------------------------------------

    def __matmul__(self, inner: Any) -> Module:
        other = as_module(inner)
        return NotImplemented if other is None else Module._of(self._tree.compose(other._tree))

    def __rmatmul__(self, outer: Any) -> Module:
        other = as_module(outer)
        return NotImplemented if other is None else Module._of(other._tree.compose(self._tree))

    def __add__(self, other: Any) -> Module:
        if isinstance(other, int) and other == 0:  # the start of the built-in sum()
            return self
        if not isinstance(other, Module):
            return NotImplemented
        from modula_rs.network.bond import Add

        return Add() @ (self, other)

    __radd__ = __add__

    def __mul__(self, scalar: Any) -> Module:
        factor = _scalar(scalar)
        return NotImplemented if factor is None else self @ _mul(factor)

    def __rmul__(self, scalar: Any) -> Module:
        factor = _scalar(scalar)
        return NotImplemented if factor is None else _mul(factor) @ self

    def __truediv__(self, scalar: Any) -> Module:
        factor = _scalar(scalar)
        if factor is None:
            return NotImplemented
        if factor == 0.0:
            raise ZeroDivisionError(f"cannot divide {self._tree} by 0")
        return self * (1.0 / factor)

    def __neg__(self) -> Module:
        return -1.0 * self

    def __sub__(self, other: Any) -> Module:
        return self + (-1.0) * other if isinstance(other, Module) else NotImplemented

    def __pow__(self, times: Any) -> Module:
        try:
            count = operator.index(times)
        except TypeError:
            return NotImplemented
        if count < 0:
            raise ValueError(f"the power of a module must be at least 0, got {count}")
        return Module._of(self._tree.power(count))

    def tare(self, absolute: float = 1.0, relative: float | None = None) -> Self:
        """Rescales the masses of this module and all below it, in place, and returns it.

        ``absolute`` is the new mass of the whole; ``relative``, if given, multiplies the masses instead. ValueError if the mass is 0.

        >>> import modula_rs as mr
        >>> (mr.Linear(4, 4) ** 10).tare(5).mass
        5.0
        """
        tree = self._tree
        self._tree = tree.tare_absolute(absolute) if relative is None else tree.tare_relative(relative)
        return self

    def named(self, name: str) -> Self:
        """The same module under a name that the paths of its leaves show; this one is left as it is.

        >>> import modula_rs as mr
        >>> [leaf.path for leaf in (mr.Linear(4, 4).named("q") ** 2).named("blocks").leaves]
        ['blocks/q']
        """
        renamed = copy.copy(self)
        renamed._tree = self._tree.named(name)
        return renamed

    # ---- what is inferred --------------------------------------------------------------------------------------------

    @property
    def mass(self) -> float:
        """The share of feature learning it contributes to what contains it."""
        return self._tree.mass

    @mass.setter
    def mass(self, value: float) -> None:
        self._declare("mass", value)

    @property
    def sensitivity(self) -> float:
        """How much the output can move per unit of input movement."""
        return self._tree.sensitivity

    @sensitivity.setter
    def sensitivity(self, value: float) -> None:
        self._declare("sensitivity", value)

    @property
    def atoms(self) -> int:
        """Number of atoms, counting every copy of a power."""
        return self._tree.atoms

    @property
    def bonds(self) -> int:
        """Number of bonds, counting every copy of a power."""
        return self._tree.bonds

    @property
    def smooth(self) -> bool:
        """Whether second derivatives are bounded; False with ReLU or Abs anywhere."""
        return self._tree.smooth

    @property
    def sharpness(self) -> Sharpness:
        """Bounds on the second derivatives. A bond whose bound grows with a width that is left open counts as infinitely sharp.

        >>> import modula_rs as mr
        >>> (mr.Linear(3, 4) @ mr.Linear(4, 5)).sharpness
        Sharpness(alpha=0.5, beta=1.0, gamma=0.0)
        """
        return Sharpness(*self._tree.sharpness)

    @sharpness.setter
    def sharpness(self, value: Sequence[float]) -> None:
        self._declare("sharpness", value)

    @property
    def in_features(self) -> int | None:
        """Size of the input's last axis, None where it is left open."""
        return self._tree.in_features

    @in_features.setter
    def in_features(self, value: int | None) -> None:
        self._declare("in_features", value)

    @property
    def out_features(self) -> int | None:
        """Size of the output's last axis, None where it is left open."""
        return self._tree.out_features

    @out_features.setter
    def out_features(self, value: int | None) -> None:
        self._declare("out_features", value)

    def _declare(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} of a composed module is inferred from its parts; tare() rescales masses")

    @property
    def leaves(self) -> list[Leaf]:
        """One row for each weight array: path, kind, shape (with the leading axes of powers), copies, mass of all copies.

        >>> import modula_rs as mr
        >>> (mr.Linear(4, 4) ** 3).leaves
        [Leaf(path='linear', kind='Linear', shape=(3, 4, 4), copies=3, mass=3.0)]
        """
        return list(self.norm_table.leaves)

    def targets(self, target_norm: float = 1.0) -> list[Target]:
        """One row for each atom: path, kind, shape and mass of one copy, target norm, and which copy of the powers around it.

        In Modula's order: input first, the copies of a power in turn.
        """
        return self.norm_table.atoms(target_norm)

    def __str__(self) -> str:
        return self._tree.table()

    def __repr__(self) -> str:
        tree = self._tree
        return f"<{tree}: mass {tree.mass:g}, sensitivity {tree.sensitivity:g}, {tree.atoms} atoms>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)  # trees are immutable

    # ---- maps --------------------------------------------------------------------------------------------------------

    def initialize(self, key: Any = 0, dtype: Any = None) -> Weights:
        """Fresh weights, one array for each leaf, each at norm 1 of its atom (biases are zero).

        Args:
            key: an int or ``numpy.random.Generator`` gives NumPy arrays, a JAX key JAX arrays, a ``cupy.random.Generator`` CuPy arrays.
            dtype: float32 unless told otherwise.

        >>> import modula_rs as mr
        >>> [w.shape for w in mr.MLP(10, 784, width=64, depth=3).initialize(0)]
        [(64, 784), (1, 64, 64), (10, 64)]
        """
        return maps.initialize(self.norm_table, key, dtype)

    def __call__(self, x: Any, w: Sequence[Array]) -> Any:
        """The output for input ``x`` and weights ``w``: see :meth:`forward`."""
        return self._run("forward", self._forward, x, w)

    def forward(self, x: Any, w: Sequence[Array]) -> Any:
        """The output for input ``x`` of shape (..., in_features) and weights ``w``, in the arrays' own library."""
        return self._run("forward", self._forward, x, w)

    def vjp(self, x: Any, w: Sequence[Array]) -> tuple[Any, Pullback]:
        """The output, and a function from its cotangent to (cotangent of ``x``, gradients of ``w``): training without a framework.

        For arrays of NumPy and CuPy; for those of JAX it is ``jax.vjp``. A cotangent has the shape of what it belongs to (any real dtype
        will do for that of the output); integers, like tokens, have none: None. Gradients have the shapes and dtypes of the weights, half
        precision is summed in float32, and where weights are shared the gradients of all uses add. The function may be called any number
        of times; until it is dropped it holds on to the activations.

        Raises TypeError for a user's own atom or bond that defines no ``vjp`` (JAX needs none).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.MLP(1, 2, width=8, depth=2)
        >>> x, w = np.array([[1.0, 2.0]], np.float32), m.initialize(0)
        >>> y, pullback = m.vjp(x, w)
        >>> dx, gradients = pullback(2 * (y - 1))  # of the loss (y - 1)^2
        >>> dx.shape, [g.shape for g in gradients]
        ((1, 2), [(8, 2), (1, 8)])
        >>> w = [a - 0.1 * u for a, u in zip(w, m.dualize(gradients))]
        """
        return vjp.vjp(self.forward, *self._parts, x, w)

    def _forward(self, x: Any, w: Sequence[Array]) -> Any:
        return run.forward(self.norm_table.leaves, self.program, x, w)


def as_module(value: Any) -> Module | None:
    """A module from a module or a tuple of them; None from anything else."""
    if isinstance(value, Module):
        return value
    if isinstance(value, tuple | list):
        members = [as_module(member) for member in value]
        if all(member is not None for member in members):
            return Module._of(_core.Tree.tuple([member._tree for member in members if member is not None]))
    return None


def _scalar(value: Any) -> float | None:
    if isinstance(value, Module | bool | str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _mul(factor: float) -> Module:
    from modula_rs.network.bond import Mul

    return Mul(factor)
