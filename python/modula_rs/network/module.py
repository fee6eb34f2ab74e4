"""Modules: values that compose with ``@``, ``+``, ``*``, ``**`` and tuples."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self, overload

from modula_rs import _core, arrays
from modula_rs.arrays import Array, Pullback, Weights
from modula_rs.forward import run, vjp
from modula_rs.forward.program import Program
from modula_rs.norm import maps
from modula_rs.norm.checks import check_accuracy, check_finite, check_nonfinite, check_target
from modula_rs.norm.maps import Vectors
from modula_rs.norm.table import Leaf, Norm, Target

#: No estimates of singular vectors, and none wanted back.
_COLD: Any = object()


class Sharpness(NamedTuple):
    """Bounds on second derivatives in the modular norm: weight-weight, input-weight, input-input."""

    alpha: float
    beta: float
    gamma: float


class Module:
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
    _jitted: dict[str, Callable[..., Any]] | None = None

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

    def norm(self, w: Sequence[Array]) -> Any:
        """The modular norm of weights (or of an update): the largest of scale times norm over all atoms."""
        return self._run("norm", partial(maps.measure, self.norm_table), w)

    def dual_norm(self, g: Sequence[Array]) -> Any:
        """The largest inner product of ``g`` with an update of norm 1: the sum of target times dual norm over all leaves.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Linear(4, 5)
        >>> g = m.initialize(0)
        >>> inner = sum(float(np.vdot(a, b)) for a, b in zip(g, m.dualize(g)))
        >>> abs(inner / m.dual_norm(g) - 1) < 0.01
        True
        """
        return self._run("dual_norm", partial(maps.measure_dual, self.norm_table), g)

    @overload
    def normalize(self, w: Sequence[Array], target_norm: Any = 1.0, *, nonfinite: str = "raise") -> Weights: ...

    @overload
    def normalize(
        self, w: Sequence[Array], target_norm: Any = 1.0, *, vectors: Sequence[Array | None] | None, nonfinite: str = "raise"
    ) -> tuple[Weights, Vectors]: ...

    def normalize(
        self, w: Sequence[Array], target_norm: Any = 1.0, *, vectors: Any = _COLD, nonfinite: str = "raise"
    ) -> Weights | tuple[Weights, Vectors]:
        """Every atom's array brought to its target norm, its direction kept; zeros stay zeros.

        Args:
            w: arrays like the weights: an optimizer's update, or weights.
            target_norm: the modular norm of the result: a number of at least 0, or an array of JAX.
            vectors: estimates of singular vectors, for loops: with it the result is a pair of the arrays and of the estimates for the next
                call. None in the first call (or :meth:`cold_vectors`), then what the last call returned. One step of block power
                iteration from them reads each matrix once, in place of a search from cold; matrices that have no estimates, or stale ones,
                are searched from cold.
            nonfinite: ``"raise"`` refuses NaN and infinity, ``"zero"`` skips the matrices that hold one, ``"propagate"`` does not look.

        Returns:
            Arrays with the shapes, dtypes and devices of ``w``, spectral norms within 1 % of their targets. With ``vectors`` also an array
            (matrices, 4, columns) in float32 or float64 for each leaf of matrices, None for every other leaf.

        Source: Large et al. (2024), section 2.

        >>> import modula_rs as mr
        >>> m = mr.MLP(10, 784, width=64, depth=3)
        >>> round(m.norm(m.normalize(m.initialize(0))), 2)
        1.0
        >>> vectors = None
        >>> for step in range(3):
        ...     update, vectors = m.normalize(m.initialize(step), vectors=vectors)
        >>> [None if v is None else v.shape for v in vectors]
        [(1, 4, 784), (1, 4, 64), (1, 4, 64)]
        """
        if vectors is _COLD:
            return self._map("normalize", w, check_target(target_norm), what="update", nonfinite=nonfinite)
        given = self.cold_vectors(w) if vectors is None else vectors
        target = check_target(target_norm)
        pair: tuple[Weights, Vectors] = self._map_warm("normalize", w, target, given, what="update", nonfinite=nonfinite)
        return pair

    def cold_vectors(self, w: Sequence[Array]) -> Vectors:
        """Estimates of zero, which stand for none: what :meth:`normalize` takes as ``vectors`` where the structure must not change,
        as in the carry of ``lax.scan``. ``w``: arrays like the weights, whose library and precision the estimates get.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Bias(4)
        >>> [None if v is None else v.shape for v in m.cold_vectors(m.initialize(0))]
        [None, (1, 4, 4)]
        """
        return maps.cold_vectors(self.norm_table, w)

    def dualize(
        self,
        g: Sequence[Array],
        target_norm: Any = 1.0,
        *,
        accuracy: str = "standard",
        steps: int | None = None,
        nonfinite: str = "raise",
    ) -> Weights:
        """The update of norm ``target_norm`` with the largest inner product with ``g``.

        Args:
            g: gradients, or averages of them.
            target_norm: the modular norm of the result: a number of at least 0, or an array of JAX.
            accuracy: how near 1 the singular values of a direction are, for those above a share of the largest singular value of ``g``.
                The promise holds on every device; a device may do better.

                ============ ===================== ===================== =======================
                level        float32, float64      float16, bfloat16     share of the largest
                ============ ===================== ===================== =======================
                "standard"   within 0.01           within 0.02           1/1000; 16 bits: 1/100
                "fast"       within 0.22           within 0.23           1/100
                "coarse"     within 0.59           within 0.6            1/100
                ============ ===================== ===================== =======================

                So the norm of a result may be above its target by as much: by 22 % at "fast", by 59 % at "coarse".
            steps: the level in the words of plain Newton-Schulz iterations: up to 3 steps are "coarse", 4 and 5 "fast", more "standard".
            nonfinite: see :meth:`normalize`.

        Source: Bernstein and Newhouse, "Modular Duality in Deep Learning" (2024).
        """
        level = check_accuracy(accuracy, steps)
        return self._map("dualize", g, check_target(target_norm), what="gradient", accuracy=level, nonfinite=nonfinite)

    def project(self, w: Sequence[Array], *, nonfinite: str = "raise") -> Weights:
        """Weights brought back to their natural set: matrices to semi-orthogonal at their scale, rows of an Embed to RMS 1."""
        return self._map("project", w, nonfinite=nonfinite)

    def radius(self, w: Sequence[Array], *, nonfinite: str = "raise") -> Weights:
        """Weights brought back to the norm that their atoms have at initialisation, directions kept.

        A matrix goes back to its spectral norm, each row of an Embed to RMS 1; vectors (Bias, Scale) stay as they are, and so do zeros.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(3, 12)
        >>> grown = [7 * a for a in m.initialize(0)]
        >>> bool(abs(np.linalg.norm(m.radius(grown)[0], 2) - (3 / 12) ** 0.5) < 0.01)
        True
        """
        return self._map("radius", w, nonfinite=nonfinite)

    def regularize(self, w: Sequence[Array], strength: Any) -> Weights:
        """Decoupled decay: each atom's array times ``1 - strength * target``; rows of an Embed go back to RMS 1."""
        return self._map("regularize", w, strength, nonfinite="propagate")

    def jit(self) -> Self:
        """Compiles the forward pass and the maps for JAX arrays, in place; arrays of other libraries are served as before."""
        self._jitted = {}
        return self

    def _forward(self, x: Any, w: Sequence[Array]) -> Any:
        return run.forward(self.norm_table.leaves, self.program, x, w)

    def _map(self, name: str, w: Sequence[Array], amount: Any = 1.0, **options: Any) -> Weights:
        weights: Weights = self._map_warm(name, w, amount, None, **options)[0]
        return weights

    def _map_warm(self, name: str, w: Sequence[Array], amount: Any, vectors: Any, *, what: str = "weight", **options: Any) -> Any:
        check_nonfinite(options["nonfinite"])
        if options["nonfinite"] == "raise" and self._compiles(w):  # compiled code cannot raise: check here
            check_finite(self.norm_table.paths, w, what)
            options["nonfinite"] = "propagate"
        key = f"{name}{sorted(options.items())}"
        return self._run(key, partial(maps.apply, self.norm_table, name, what=what, **options), w, amount, vectors)

    def _compiles(self, *args: Any) -> bool:
        arguments = (a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg]))
        return self._jitted is not None and any(arrays.library(a) == "jax" for a in arguments)

    def _run(self, key: str, function: Callable[..., Any], *args: Any) -> Any:
        if self._jitted is None or not self._compiles(*args):
            return function(*args)
        if key not in self._jitted:
            import jax

            self._jitted[key] = jax.jit(function)
        return self._jitted[key](*args)


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
