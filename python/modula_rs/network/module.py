"""Modules: values that compose with ``@``, ``+``, ``*``, ``**`` and tuples."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Self

from modula_rs import _core
from modula_rs.arrays import Array, Pullback, Weights
from modula_rs.checks import is_number, number
from modula_rs.forward import run, vjp
from modula_rs.forward.program import Program
from modula_rs.network.certificate import Certificate, Sharpness, certificate
from modula_rs.network.construction import Made
from modula_rs.network.fingerprint import description, fingerprint
from modula_rs.network.operators import Composable
from modula_rs.norm import maps
from modula_rs.norm.checks import check_target
from modula_rs.norm.methods import Normed
from modula_rs.norm.table import Leaf, Norm, Target
from modula_rs.terminal import drawn


class Module(Composable, Normed[Weights]):
    """A map from an input and weights to an output, with a mass, a sensitivity and a norm on its weights.

    Modules are values. Composing copies its parts: a part used twice has weights twice (unless ``share=`` is given), and taring a part
    after it was composed does not change the whole. Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 3.

    >>> import modula_rs as mr
    >>> m = mr.Linear(10, 64) @ mr.ReLU() @ mr.Linear(64, 784)
    >>> m.mass, m.sensitivity, m.in_features, m.out_features
    (2.0, 1.0, 784, 10)
    >>> [(t.path, t.target) for t in m.targets()]
    [('linear', 0.5), ('linear_1', 0.5)]
    """

    _cached_made: Made | None = None
    _cached_parts: tuple[Norm, Program] | None = None

    def _build(self) -> _core.Tree:
        raise TypeError(f"{type(self).__name__} cannot be built: derive from Atom or Bond, or compose modules")

    @property
    def _made(self) -> Made:
        if self._cached_made is None:
            self._cached_made = Made.primitive(self._behaviour())
        return self._cached_made

    @_made.setter
    def _made(self, made: Made) -> None:
        self._cached_made, self._cached_parts, self._jitted = made, None, None

    @property
    def _tree(self) -> _core.Tree:
        return self._made.tree

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

    @classmethod
    def _of(cls, made: Made) -> Module:
        module = Module()
        module._made = made
        return module

    def _behaviour(self) -> Self:
        """A copy of the object for the tree to carry. It does not hold the tree: that would be a cycle."""
        carried = copy.copy(self)
        for name in _CACHES:
            carried.__dict__.pop(name, None)
        return carried

    # ---- what is inferred --------------------------------------------------------------------------------------------

    @property
    def mass(self) -> float:
        """The module's share of feature learning in any module that contains it, in proportion to the masses of the other parts."""
        return self._tree.mass

    @mass.setter
    def mass(self, value: float) -> None:
        self._declare("mass", value)

    @property
    def sensitivity(self) -> float:
        """How far the output can move per unit of movement of the input, in their norms."""
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
        """Bounds on second derivatives. A bond whose bound grows with an unknown number of features counts as infinitely sharp.

        >>> import modula_rs as mr
        >>> (mr.Linear(3, 4) @ mr.Linear(4, 5)).sharpness
        Sharpness(alpha=0.5, beta=1.0, gamma=0.0)
        """
        return Sharpness(*self._tree.sharpness)

    @sharpness.setter
    def sharpness(self, value: Any) -> None:
        self._declare("sharpness", value)

    @property
    def well_normed(self) -> bool:
        """Whether it is proved that a weight change of norm 1 moves the output by at most 1, and an input change by the sensitivity.

        The proof is for inputs of RMS at most 1, and weights of norm at most 1 in every atom. It ends where a bond declares an estimate
        (RMSDivide, ScaledReLU, ScaledGELU), and where more than RMS 1 can arrive at an atom (after a Bias, a sum, a scalar above 1). The
        last line of ``print(m)`` and :meth:`certificate` say where. Large et al. (2024), section 3.

        >>> import modula_rs as mr
        >>> mr.MLP(10, 784, width=64, depth=3).well_normed
        True
        >>> (mr.Linear(4, 4) @ mr.Bias(4) @ mr.Linear(4, 4)).well_normed
        False
        """
        return self._tree.well_normed

    @property
    def reach(self) -> float:
        """The largest RMS that can arrive at an atom that is trained, for inputs of RMS at most 1 and weights of norm at most 1.

        The column ``reach`` of ``print(m)``, and ``m.certificate().arrivals``, give it for each atom.

        >>> import modula_rs as mr
        >>> (mr.Linear(4, 4) @ (mr.Identity() + mr.Linear(4, 4))).reach
        2.0
        """
        return self.certificate().reach

    def certificate(self, weight_norms: float | Sequence[float] = 1.0) -> Certificate:
        """What is proved of the derivatives of the module, for inputs of RMS at most 1.

        Unlike ``sensitivity`` and ``sharpness``, which are what the parts declare, these bounds count how large values become inside the
        network, and they never take an estimate for a bound. In a module that is well-normed both are the same.

        Args:
            weight_norms: the largest norm of the weights, in the norm of their atom: one number for all atoms, or one for each leaf, such
                as :meth:`atom_norms` measures.

        Raises:
            TypeError: norms that are no numbers.
            ValueError: norms that are negative or not finite, or not one for each leaf.

        >>> import modula_rs as mr
        >>> certificate = (mr.Linear(4, 4) @ mr.Bias(4) @ mr.Linear(4, 4)).certificate()
        >>> certificate.ends, round(certificate.gain, 2), certificate.output
        (['linear_1 gets inputs of RMS up to 2'], 1.33, 2.0)
        """
        if is_number(weight_norms):
            return certificate(self._tree, [number("weight_norms", weight_norms)])
        if not isinstance(weight_norms, Sequence) or isinstance(weight_norms, str):
            raise TypeError(f"weight_norms must be a number, or one for each of m.leaves, got {type(weight_norms).__name__}")
        norms = [number(f"the norm of {leaf.path}", norm) for leaf, norm in zip(self.leaves, weight_norms, strict=False)]
        if len(weight_norms) != len(self.leaves):
            raise ValueError(f"weight_norms must be a number, or one for each of {len(self.leaves)} leaves, got {len(weight_norms)}")
        return certificate(self._tree, norms or [1.0])

    def lipschitz(self, w: Sequence[Array]) -> float:
        """A proved Lipschitz constant of ``x -> m(x, w)`` from RMS to RMS: composed of the norms of the weights, measured exactly.

        Infinite if a bond has no bounded derivative, as RMSDivide near zero. A tuple's norm is the sum of its members' norms, an array's
        norm the largest RMS of a position. Where it matters (attention), inputs are taken to have RMS at most 1.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 8) @ mr.ReLU() @ mr.Linear(8, 5)
        >>> w = m.initialize(0, "float64")
        >>> round(m.lipschitz(w), 6), round(m.lipschitz([3 * w[0], w[1]]), 6)
        (1.0, 3.0)
        """
        return self.certificate(self.atom_norms(w)).sensitivity

    @property
    def in_features(self) -> int | None:
        """Size of the input's last axis; None if the module takes any size."""
        return self._tree.in_features

    @in_features.setter
    def in_features(self, value: int | None) -> None:
        self._declare("in_features", value)

    @property
    def out_features(self) -> int | None:
        """Size of the output's last axis; None if the module does not fix it."""
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
        """One row for each atom: path, kind, shape and mass of one copy, target norm, and the copy's index in the powers around the atom.

        Rows stand in Modula's order: input first, the copies of a power one after the other.
        """
        return self.norm_table.atoms(float(check_target(target_norm)))

    def __str__(self) -> str:
        return drawn(self._tree.table())

    def __repr__(self) -> str:
        tree = self._tree
        return f"<{tree}: mass {tree.mass:g}, sensitivity {tree.sensitivity:g}, {tree.atoms} atoms>"

    @property
    def fingerprint(self) -> str:
        """A hash of everything besides the weights that the norm and the output depend on. It is the same in every process.

        It covers the atoms and bonds in order with all their arguments, the masses, and the paths and shapes of the weights. Checkpoints
        and sweeps recognise a network by it. A user's own class counts by its name and the attributes of its object; a function among the
        attributes counts by its name or, if it is a lambda, by its code.

        >>> import modula_rs as mr
        >>> mr.Conv2D(4, 3).fingerprint == mr.Conv2D(4, 3, stride=1).fingerprint != mr.Conv2D(4, 3, stride=2).fingerprint
        True
        """
        return fingerprint(*self._parts)

    def drawing(self) -> str:
        """The tree as a table."""
        return self._tree.table()

    def description(self) -> Iterator[str]:
        """The lines of which the fingerprint is a hash."""
        return description(*self._parts)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        _fill(copied, object.__getstate__(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)  # trees are immutable

    def __getstate__(self) -> Any:
        """The attributes and the calls that make the tree again, for pickle."""
        bare = object.__getstate__(self._behaviour())
        calls = None if self._cached_made is None else self._cached_made.calls()
        return bare, calls, self._jitted is not None

    def __setstate__(self, state: Any) -> None:
        bare, calls, jitted = state
        _fill(self, bare)
        if calls is not None:
            self._made = Made.again(calls)
        if jitted:
            self._jitted = {}

    # ---- maps --------------------------------------------------------------------------------------------------------

    def initialize(self, key: Any = 0, dtype: Any = None) -> Weights:
        """Fresh weights, one array for each leaf, in which every atom has norm 1 (a Bias has norm 0).

        Args:
            key: an int or ``numpy.random.Generator`` gives NumPy arrays, a JAX key JAX arrays, a ``cupy.random.Generator`` CuPy arrays.
            dtype: float64, float32, float16 or bfloat16; None for float32.

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
        """The output, and a function from the output's cotangent to (cotangent of ``x``, gradients of ``w``): training without a framework.

        NumPy and CuPy arrays are differentiated here, JAX arrays by ``jax.vjp``. A cotangent has the shape of its array; the output's
        cotangent may have any real dtype, and integers, such as tokens, have None for a cotangent. Gradients have the shapes and dtypes of
        the weights. Half precision is summed in float32, and the gradients of all uses of a shared array are added. The function may be
        called any number of times; as long as it exists, it holds the activations.

        Raises:
            TypeError: on arrays of NumPy or CuPy, a user's own atom or bond defines no ``vjp``.

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


#: Attributes that are computed from the others, and so are not pickled.
_CACHES = ("_cached_made", "_cached_parts", "_jitted")


def _fill(module: Module, state: Any) -> None:
    """Sets the attributes that ``object.__getstate__`` gave: a dict, with a dict of slots beside it if the class has slots."""
    attributes, slots = state if isinstance(state, tuple) else (state, None)
    module.__dict__.update(attributes or {})
    for name, value in (slots or {}).items():
        setattr(module, name, value)
