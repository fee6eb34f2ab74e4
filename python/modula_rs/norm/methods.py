"""The maps as methods, for everything that has a norm: modules, and traced networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from itertools import accumulate
from typing import Any, Generic, Protocol, Self, TypeVar, overload

import numpy as np

from modula_rs import arrays
from modula_rs.arrays import Array, Weights
from modula_rs.norm import manifold, maps
from modula_rs.norm.checks import (
    check_accuracy,
    check_at_least_zero,
    check_chosen,
    check_finite,
    check_nonfinite,
    check_overflow,
    check_paths,
    check_positive,
    check_strength,
    check_target,
    check_vectors,
    check_weights,
    shard,
    shorten,
)
from modula_rs.norm.maps import Vectors
from modula_rs.norm.table import Norm

#: Default of ``vectors``: no estimates are given, and none are returned.
_COLD: Any = object()


#: Maps whose results are updates of weights.
UPDATES = ("normalize", "dualize")
#: The structure of the weights: a list of arrays, or the pytree of a network of another library.
W = TypeVar("W")


class View(Protocol):
    """How one array of weights is made of leaves of the norm. It has several leaves if it holds several matrices side by side."""

    rows: range
    #: The axis of the outputs in the leaves' blocks (count, rows, columns): 1, or 2 where the rows are inputs.
    output_axis: int

    def lay(self, name: str = "") -> Any:
        """How the array's axes count blocks, rows and columns, for the map called ``name``; None if the array is frozen.

        A :class:`modula_rs.backend.jax.sharded.lay.Lay`.
        """
        ...

    def open(self, array: Array, name: str = "") -> Sequence[Array]:
        """The arrays of the leaves whose numbers in the norm are ``rows``, for the map called ``name``."""
        ...

    def close(self, leaves: Sequence[Array], array: Array, name: str = "") -> Array:
        """The array that these leaves make, in the shape and dtype of ``array``, after the map called ``name``."""
        ...


class Normed(Generic[W]):
    """Something with a norm on its weights. A subclass defines the norm by :attr:`norm_table`.

    The weights of a module are a list of arrays, one for each leaf of the norm. A subclass whose weights have another structure overrides
    ``_open``; a subclass whose arrays are not the leaves of its norm sets ``_views``.
    """

    _views: Sequence[View] | None = None
    _jitted: dict[str, Callable[..., Any]] | None = None

    @property
    def norm_table(self) -> Norm:
        """The norm by itself: what the maps know of the network. It has no forward pass."""
        raise TypeError(f"{type(self).__name__} has no norm")

    @property
    def leaves(self) -> Sequence[Any]:
        """One row for each array of the weights, with at least a path and a shape."""
        return list(self.norm_table.leaves)

    @property
    def fingerprint(self) -> str:
        """A hash of the norm: equal for equal norms, in every process."""
        return hashlib.sha256("\n".join(self.description()).encode()).hexdigest()[:32]

    def drawing(self) -> str:
        """The network as a text, by which a person sees what differs between two networks."""
        return ""

    def description(self) -> Iterator[str]:
        """The lines of which the fingerprint is a hash."""
        for leaf, targets in zip(self.norm_table.leaves, self.norm_table.targets, strict=True):
            yield f"{leaf} {targets.tolist()}"

    def norm(self, w: Any, *, shardings: Any = None) -> Any:
        """The modular norm of weights (or of an update): the largest of scale times norm over all atoms."""
        return self._measure("norm", maps.measure, w, "weight", shardings)

    def dual_norm(self, g: Any, *, shardings: Any = None) -> Any:
        """The largest inner product of ``g`` with an update of norm 1: the sum of target times dual norm over all leaves.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Linear(4, 5)
        >>> g = m.initialize(0)
        >>> inner = sum(float(np.vdot(a, b)) for a, b in zip(g, m.dualize(g)))
        >>> abs(inner / m.dual_norm(g) - 1) < 0.01
        True
        """
        return self._measure("dual_norm", maps.measure_dual, g, "gradient", shardings)

    def atom_norms(self, w: Any) -> list[float]:
        """For each leaf of the norm, the largest norm of a copy's weights in the norm of its atom: 1 for fresh weights, 0 for a Bias.

        Exact, by singular value decompositions in float64, so not for compiled code. All uses of a shared array count.

        Raises:
            FloatingPointError: weights that are not finite.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 8) @ mr.Bias(8) @ mr.Linear(8, 5) ** 1
        >>> w = m.initialize(0, "float64")
        >>> [round(norm, 6) for norm in m.atom_norms([2 * a for a in w])]
        [2.0, 0.0, 2.0]
        """
        return maps.atom_norms(self.norm_table, self._leaves(self._open(w, "weight")[0]))

    @overload
    def normalize(self, w: Any, target_norm: Any = 1.0, *, nonfinite: str = "raise", shardings: Any = None) -> W: ...

    @overload
    def normalize(
        self, w: Any, target_norm: Any = 1.0, *, vectors: Sequence[Array | None] | None, nonfinite: str = "raise", shardings: Any = None
    ) -> tuple[W, Vectors]: ...

    def normalize(self, w: Any, target_norm: Any = 1.0, *, vectors: Any = _COLD, nonfinite: str = "raise", shardings: Any = None) -> Any:
        """Every atom's array scaled to its target norm, with its direction kept; zeros stay zeros.

        Args:
            w: arrays like the weights: an optimizer's update, or weights.
            target_norm: the modular norm of the result: a number of at least 0, or an array of JAX.
            vectors: estimates of singular vectors, for loops. Pass None (or :meth:`cold_vectors`) in the first call, then the estimates
                that the last call returned; the result is then a pair of the arrays and the next estimates. From estimates, one step of
                block power iteration reads each matrix once. Matrices whose estimates are zero or stale are searched anew, as they are
                without ``vectors``.
            nonfinite: ``"raise"`` refuses NaN and infinity, ``"zero"`` zeroes the matrices that hold one, ``"propagate"`` does not check.
            shardings: where arrays of JAX lie on a mesh (``jax.sharding.NamedSharding``, in the structure of ``w``, or one for all), where
                that cannot be seen: inside ``jax.jit`` on a mesh with Auto axes. See docs/many-devices.md.

        Returns:
            Arrays with the shapes, dtypes and devices of ``w``, spectral norms within 1 % of their targets. With ``vectors`` also a list of
            estimates: an array (matrices, 4, columns) in float32 or float64 for each leaf of matrices, None for every other leaf.

        Raises:
            FloatingPointError: ``w`` holds NaN or infinity, with ``nonfinite="raise"``.
            TypeError: ``w`` is no list of arrays of one library, or the target is no number.
            ValueError: shapes or dtypes that do not fit the norm; a target that is negative or not finite.

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
            return self._map("normalize", w, check_target(target_norm), what="update", nonfinite=nonfinite, shardings=shardings)
        given = self.cold_vectors(w, shardings=shardings) if vectors is None else vectors
        target = check_target(target_norm)
        return self._map_warm("normalize", w, target, given, what="update", nonfinite=nonfinite, shardings=shardings)

    def cold_vectors(self, w: Any, *, shardings: Any = None) -> Vectors:
        """Estimates of zero, which stand for no estimates: the first ``vectors`` of :meth:`normalize` in the carry of ``lax.scan``.

        ``w``: arrays like the weights. The estimates have their library and precision.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Bias(4)
        >>> [None if v is None else v.shape for v in m.cold_vectors(m.initialize(0))]
        [None, (1, 4, 4)]
        """
        given, _ = self._open(w, "weight")
        layout = self._layout(given, self._in_order(shardings, w), "weight")
        if layout is not None:
            cold: Vectors = _placed().cold_vectors(self.norm_table, layout, given)
            return cold
        return maps.cold_vectors(self.norm_table, self._leaves(given))

    def zero(self, w: Any, *, shardings: Any = None) -> Any:
        """The integer 0 as an array of JAX, on the devices of the weights: the number of steps at the start."""
        given, _ = self._open(w, "weight")
        layout = self._layout(given, self._in_order(shardings, w), "weight")
        if layout is not None:
            return _placed().zero(self.norm_table, layout, given)
        return arrays.namespace("jax").zeros((), "int32")

    def plan(self, w: Any, method: str = "dualize", *, accuracy: str = "standard", steps: int | None = None, shardings: Any = None) -> Any:
        """How ``"dualize"`` or ``"normalize"`` is distributed over devices: which leaves go together and by which scheme, the padding, and
        the bytes and operations of a device. Nothing runs, and no device is needed.

        Args:
            w: arrays like the weights, or None for float32 arrays of their shapes.
            method: the map.
            accuracy, steps: see :meth:`dualize`.
            shardings: see :meth:`normalize`. The mesh may be a ``jax.sharding.AbstractMesh``, of devices that are not there.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Linear(4, 5)
        >>> m.plan(m.initialize(0)).devices
        1
        """
        distribution = import_module("modula_rs.norm.distribution")
        level = check_accuracy(accuracy, steps)
        given = self._examples() if w is None else self._open(w, "weight")[0]
        held = self._held(_placed(), method)
        known = self._in_order(shardings, w) if w is not None or shardings is None else _placed().listed(shardings)
        return distribution.plan(self.norm_table, held, given, _placed().flat(known, len(given)), method, level)

    def _examples(self) -> Sequence[Any]:
        """Shapes and dtypes of weights in float32."""
        held = self._held(_placed())
        leaves = self.norm_table.leaves
        return [_placed().example(each.lay.shape if each.lay else leaves[each.leaves[0]].shape if each.leaves else ()) for each in held]

    def dualize(
        self,
        g: Any,
        target_norm: Any = 1.0,
        *,
        accuracy: str = "standard",
        steps: int | None = None,
        nonfinite: str = "raise",
        shardings: Any = None,
    ) -> W:
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

                So the norm of a result may exceed its target by the same share: by 22 % at "fast", by 59 % at "coarse".
            steps: the level as a number of Newton-Schulz steps, as in other libraries: 1 to 3: "coarse"; 4 and 5: "fast"; more: "standard".
            nonfinite, shardings: see :meth:`normalize`.

        Source: Bernstein and Newhouse, "Modular Duality in Deep Learning" (2024).
        """
        level = check_accuracy(accuracy, steps)
        return self._map("dualize", g, check_target(target_norm), what="gradient", accuracy=level, nonfinite=nonfinite, shardings=shardings)

    def project(self, w: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights brought back to their natural set: matrices become semi-orthogonal at their scale, rows of an Embed get RMS 1."""
        return self._map("project", w, nonfinite=nonfinite, shardings=shardings)

    def radius(self, w: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights brought back to the norm that their atoms have at initialisation, with directions kept.

        A matrix gets its initial spectral norm, each row of an Embed RMS 1. Vectors (Bias, Scale) and zeros stay as they are.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(3, 12)
        >>> grown = [7 * a for a in m.initialize(0)]
        >>> bool(abs(np.linalg.norm(m.radius(grown)[0], 2) - (3 / 12) ** 0.5) < 0.01)
        True
        """
        return self._map("radius", w, nonfinite=nonfinite, shardings=shardings)

    def regularize(self, w: Any, strength: Any, *, shardings: Any = None) -> W:
        """Decoupled decay: each atom's array times ``1 - strength * target``; rows of an Embed are brought back to RMS 1."""
        return self._map("regularize", w, check_strength(strength), nonfinite="propagate", shardings=shardings)

    def hard_cap(self, w: Any, cap: Any = 1.0, *, nonfinite: str = "raise") -> W:
        """Weights with norms above ``cap``, in the norms of their atoms, cut down to it; all others stay as they are.

        In a matrix each singular value is cut on its own, and in a Scale each entry; a row of an Embed, and a Bias, keeps its direction.
        After the cap every atom has norm at most ``cap``, as certificates assume. A shared array is shrunk to the caps of its further uses.

        Args:
            w: weights.
            cap: the largest norm: a number above 0, or an array of JAX. With 1, the norm that matrices and rows start at.
            nonfinite: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> m.hard_cap([np.diag([3.0, 0.5])])
        [array([[1. , 0. ],
               [0. , 0.5]])]
        """
        return self._map("hard_cap", w, check_positive("cap", cap), nonfinite=nonfinite)

    def soft_cap(self, w: Any, strength: Any, *, nonfinite: str = "raise") -> W:
        """Weights whose norms are bent by an odd polynomial: nearly unchanged if small, held down if large.

        A singular value x (in the norm of its atom) becomes ``p + strength * p**3`` with ``p = x - strength * x**3``: about
        ``x - 3 * strength**2 * x**5``. That takes two products of the matrix, against many more for the hard cap. In a Scale each entry is
        bent, in an Embed the RMS of each row, in a Bias its RMS. An array with a norm beyond ``(3 * strength)**-0.5``, where p no longer
        rises, is first scaled down to it.

        Args:
            w: weights.
            strength: a number of at least 0, or an array of JAX; 0 changes nothing.
            nonfinite: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> m.soft_cap([np.diag([1.0, 0.1])], 0.1)[0].round(4)
        array([[0.9729, 0.    ],
               [0.    , 0.1   ]])
        """
        return self._map("soft_cap", w, check_at_least_zero("strength", strength), nonfinite=nonfinite)

    def hammer(self, w: Any, cap: Any = 1.0, *, nonfinite: str = "raise") -> W:
        """Weights with the largest singular value of each matrix set to ``cap`` times its initial value; all others stay.

        Where several singular values are at the top, one of them is set. At every step of training it reaches all of them.
        Each row of an Embed gets RMS ``cap``. Vectors (Bias, Scale) and zeros stay as they are.

        Args:
            w: weights.
            cap: the norm, in the norm of the atom: a number above 0, or an array of JAX.
            nonfinite: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> np.diag(m.hammer([np.diag([3.0, 0.5])])[0]).round(6)
        array([1. , 0.5])
        """
        return self._map("hammer", w, check_positive("cap", cap), nonfinite=nonfinite)

    def spectral_decay(self, w: Any, strength: Any) -> W:
        """Decoupled decay of the largest singular value of each matrix alone, which is multiplied by ``1 - strength * target``.

        Vectors decay as in :meth:`regularize`, and rows of an Embed are brought back to RMS 1, as there.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> np.diag(m.spectral_decay([np.diag([3.0, 0.5])], 0.1)[0]).round(6)
        array([2.7, 0.5])
        """
        return self._map("spectral_decay", w, check_strength(strength), nonfinite="propagate")

    def tangent(self, g: Any, w: Any, target_norm: Any = 1.0, *, nonfinite: str = "raise") -> W:
        """The update of norm ``target_norm`` with the largest inner product with ``g``, among those tangent to the manifold of ``w``.

        Matrices move on the Stiefel manifold of semi-orthogonal matrices at their scale, rows of an Embed on spheres: to first order their
        norms stay, so that neither decay nor caps are needed. Vectors (Bias, Scale) move freely, as by :meth:`dualize`. The steepest
        direction of a matrix is exact, also where it is not square: see the source for the closed form.

        Args:
            g: gradients, or averages of them.
            w: weights on their manifold, as :meth:`Module.initialize` and :meth:`project` give them.
            target_norm: the modular norm of the result: a number of at least 0, or an array of JAX.
            nonfinite: see :meth:`normalize`.

        Source: Bernstein, "Modular Manifolds" (2025), for the problem and its solution for square matrices.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(6, 3)
        >>> w, g = m.initialize(0, "float64"), m.initialize(1, "float64")
        >>> turn = w[0].T @ m.tangent(g, w)[0]
        >>> bool(abs(turn + turn.T).max() < 1e-12)
        True
        """
        target = check_target(target_norm)
        check_nonfinite(nonfinite)
        given, structured = self._open(g, "gradient")
        weights, _ = self._open(w, "weight")
        if nonfinite == "raise":
            check_finite(self.norm_table.paths, self._leaves(given), "gradient")
            nonfinite = "propagate"

        def run(given: Sequence[Array], weights: Sequence[Array], target: Any) -> Sequence[Array]:
            made = manifold.tangent(self.norm_table, self._leaves(given), self._leaves(weights), target, nonfinite)
            return self._arrays(made, given, "dualize")

        return structured(self._run(f"tangent {nonfinite}", run, given, weights, target))  # type: ignore[no-any-return]

    def manifold_step(self, w: Any, g: Any, rate: Any, *, nonfinite: str = "raise") -> W:
        """Weights after a steepest step down ``g`` on their manifold: ``m.project(w - m.tangent(g, w, rate))``.

        The retraction :meth:`project` brings matrices back to semi-orthogonal ones, and rows of an Embed back to their spheres.

        Args:
            w: weights on their manifold.
            g: gradients, or averages of them.
            rate: the modular norm of the step: a number of at least 0, or an array of JAX.
            nonfinite: see :meth:`normalize`.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(6, 3)
        >>> w, g = m.initialize(0, "float64"), m.initialize(1, "float64")
        >>> after = m.manifold_step(w, g, 0.1)[0]
        >>> bool(np.allclose(after.T @ after, 2 * np.eye(3)))
        True
        """
        update = self.tangent(g, w, rate, nonfinite=nonfinite)
        given, structured = self._open(w, "weight")
        moved, _ = self._open(update, "update")
        after = [(a.astype(arrays.working_dtype(a.dtype)) - b).astype(a.dtype) for a, b in zip(given, moved, strict=True)]
        return self.project(structured(after), nonfinite="propagate")

    def jit(self) -> Self:
        """Compiles the forward pass and the maps for JAX arrays, in place; arrays of other libraries are not affected."""
        self._jitted = {}
        return self

    def part(self, chosen: Sequence[int]) -> Part:
        """The norm of some of the weights, for a network whose other weights are frozen. Targets are the same as in the whole.

        Args:
            chosen: indices of arrays in the weights, each at most once. Weights of the part are a list of these arrays, in this order.

        >>> import modula_rs as mr
        >>> m = mr.Linear(3, 4) @ mr.Linear(4, 5)
        >>> update = m.initialize(0)
        >>> [abs(a - b).max() == 0 for a, b in zip(m.part([1]).dualize(update[1:]), m.dualize(update)[1:])]
        [np.True_]
        """
        return Part(self, chosen)

    @property
    def output_axes(self) -> list[int]:
        """For each leaf of the norm the axis of the outputs in its blocks (count, rows, columns): 1, or 2 where the rows are inputs."""
        if self._views is None:
            return [1] * len(self.norm_table.leaves)
        return [view.output_axis for view in self._views for _ in view.rows]

    def match(self, paths: Sequence[str]) -> list[int]:
        """The index of the array that each path of a pytree stands for.

        Arrays are matched by name if every path is the path of a leaf, as in a dict keyed by paths, and by their order otherwise.
        """
        numbers = {path: number for number, path in enumerate(self.norm_table.paths)}
        if len(paths) != len(numbers):
            raise ValueError(f"expected {len(numbers)} arrays ({shorten(list(numbers))}), got {len(paths)} ({shorten(list(paths))})")
        named = self._named(paths)
        if named is not None:
            return named
        unknown = [path for path in paths if path not in numbers]
        if len(unknown) < len(paths):
            raise ValueError(
                f"names in a pytree must be those of the leaves ({shorten(list(numbers))}), got {shorten(unknown)} beside them"
            )
        return list(range(len(paths)))

    def paths_of(self, tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
        """The path of each leaf of a pytree: keys joined by ``/``."""
        import jax

        flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]

    def check_shapes(self, numbers: Sequence[int], given: Sequence[Any], what: str) -> None:
        """ValueError, with every difference, unless the arrays have the shapes of the weights with these indices."""
        leaves = self.leaves
        pairs = [(leaves[number], np.shape(array), array) for number, array in zip(numbers, given, strict=True)]
        wrong = [
            f"of {leaf.path} must have shape {leaf.shape}, got {shape}{shard(array)}" for leaf, shape, array in pairs if leaf.shape != shape
        ]
        if wrong:
            raise ValueError(f"{what} {', '.join(wrong[:20])}{', ...' if len(wrong) > 20 else ''}")

    def opened(self, w: Any) -> tuple[list[Array], Callable[[Sequence[Array]], Any]]:
        """The arrays of weights in the order of ``leaves``, and a function that puts such arrays back into their structure.

        TypeError or ValueError if they do not fit.
        """
        check_weights(self.leaves, w, "weight")
        return list(w), lambda made: made

    def split(self, w: Any) -> tuple[Any, Any]:
        """The weights that are trained and those that are frozen, as two of their structure with None in the place of the others."""
        return w, [None] * len(w)

    def match_kept(self, paths: Sequence[str], kept: Sequence[int]) -> list[int]:
        """The index of the array that each kept path of a pytree stands for. A path that is not kept may stand for many arrays."""
        named = self._named([paths[at] for at in kept]) if len(kept) < len(paths) else None
        if named is not None:
            return named
        found = self.match(paths)
        return [found[at] for at in kept]

    def _named(self, paths: Sequence[str]) -> list[int] | None:
        """The index of the array with each path; None if a path is none of an array."""
        numbers = {path: number for number, path in enumerate(self.norm_table.paths)}
        check_paths(paths)
        return [numbers[path] for path in paths] if all(path in numbers for path in paths) else None

    # ---- how a map runs --------------------------------------------------------------------------------------------------

    def _open(self, w: Any, what: str) -> tuple[Sequence[Array], Callable[[Sequence[Array]], Any]]:
        """The arrays of weights, and a function that puts such arrays back into the structure of the weights."""
        return w, lambda made: made

    def _leaves(self, given: Sequence[Array], name: str = "") -> Sequence[Array]:
        """One array for each leaf of the norm, for the map called ``name``."""
        if self._views is None:
            return given
        return [leaf for view, array in zip(self._views, given, strict=True) for leaf in view.open(array, name)]

    def _arrays(self, leaves: Sequence[Array], given: Sequence[Array], name: str) -> Sequence[Array]:
        """The arrays that the leaves make, in the shapes of those given. Updates of frozen arrays are zero; other maps keep the array."""
        if self._views is None:
            return leaves
        made = []
        for view, array in zip(self._views, given, strict=True):
            if view.rows:
                made.append(view.close([leaves[row] for row in view.rows], array, name))
            else:
                made.append(arrays.namespace_of(array).zeros_like(array) if name in UPDATES else array)
        return made

    def _map(self, name: str, w: Any, amount: Any = 1.0, **options: Any) -> W:
        made: W = self._map_warm(name, w, amount, None, **options)[0]
        return made

    def _map_warm(
        self, name: str, w: Any, amount: Any, vectors: Any, *, what: str = "weight", shardings: Any = None, **options: Any
    ) -> tuple[Any, Vectors]:
        check_nonfinite(options["nonfinite"])
        given, structured = self._open(w, what)
        layout = self._layout(given, self._in_order(shardings, w), what, name)
        if layout is not None:
            if options["nonfinite"] == "raise":  # compiled code cannot raise
                trained = [at for at, held in enumerate(layout.held) if held.leaves]
                check_finite([held.path for held in layout.held], given, what, trained)
                options["nonfinite"] = "propagate"
            if vectors is not None:
                check_vectors(self.norm_table, [a for held, a in zip(layout.held, given, strict=True) for _ in held.leaves], vectors)
            options.setdefault("accuracy", "standard")
            made, found = _placed().apply(self.norm_table, layout, name, given, amount, vectors, **options)
            if not arrays.is_traced(amount) and float(amount) * self.norm_table.recipe(name).largest > maps.LARGEST_HALF:
                check_overflow([held.path for held in layout.held], given, made, amount)
        elif self._compiles(given):
            if options["nonfinite"] == "raise":  # checked here, because compiled code cannot raise
                check_finite(self.norm_table.paths, self._leaves(given), what)
                options["nonfinite"] = "propagate"
            compiled = self._compiled(f"{name}{sorted(options.items())}", partial(self._apply, name, what=what, **options))
            made, found = compiled(given, amount, vectors)
        else:
            made, found = self._apply(name, given, amount, vectors, what=what, **options)
        if layout is None and any(arrays.is_traced(array) for array in given):
            made = _placed().alike(given, made)
        return structured(made), found

    def _layout(self, given: Sequence[Array], shardings: Any, what: str, name: str = "") -> Any:
        """How the given arrays hold the leaves, and where they lie on a mesh; None if they lie on one device, or are not of JAX."""
        in_jax = isinstance(given, list | tuple) and any(arrays.library(array) == "jax" for array in given)
        if not in_jax:
            if shardings is not None:
                raise TypeError("shardings say where arrays of JAX lie, and there is none")
            return None
        placed = _placed()
        if not placed.on_mesh(given, shardings, lambda: [held.path for held in self._held(placed)]):
            return None
        if self._views is None:
            check_weights(self.norm_table.leaves, given, what)
        held = self._held(placed, name)
        where = placed.find(held, given, placed.flat(shardings, len(given)))
        return None if where is None else placed.Layout(held, where)

    def _in_order(self, shardings: Any, w: Any) -> Any:
        """Shardings as a list in the order of the arrays of the weights ``w``; None, or one sharding for all, as it is."""
        return shardings if shardings is None else _placed().listed(shardings)

    def _held(self, placed: Any, name: str = "") -> Any:
        """How each given array holds leaves of the norm."""
        norm = self.norm_table
        if self._views is not None:
            paths = [norm.paths[view.rows.start].split("[")[0] if view.rows else "a frozen array" for view in self._views]
            return tuple(placed.Held(path, tuple(view.rows), view.lay(name)) for path, view in zip(paths, self._views, strict=True))
        return placed.plainly(norm)

    def _apply(
        self, name: str, given: Sequence[Array], amount: Any, vectors: Any, *, what: str, **options: Any
    ) -> tuple[Sequence[Array], Vectors]:
        made, found = maps.apply(self.norm_table, name, self._leaves(given, name), amount, vectors, what=what, **options)
        return self._arrays(made, given, name), found

    def _measure(self, key: str, measure: Callable[..., Any], w: Any, what: str, shardings: Any) -> Any:
        given, _ = self._open(w, what)
        layout = self._layout(given, self._in_order(shardings, w), what)
        if layout is not None:
            return _placed().measure(self.norm_table, layout, given, dual=key == "dual_norm")
        return self._run(key, lambda given: measure(self.norm_table, self._leaves(given)), given)

    def _run(self, key: str, function: Callable[..., Any], *args: Any) -> Any:
        return self._compiled(key, function)(*args) if self._compiles(*args) else function(*args)

    def _compiles(self, *args: Any) -> bool:
        if self._jitted is None:
            return False
        return any(arrays.library(a) == "jax" for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg]))

    def _compiled(self, key: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function compiled by JAX; each key is compiled once."""
        assert self._jitted is not None
        if key not in self._jitted:
            import jax

            self._jitted[key] = jax.jit(function)
        return self._jitted[key]


def _placed() -> Any:
    """The module for arrays on a mesh. It needs JAX, which is optional."""
    return import_module("modula_rs.norm.placed")


class Shifted:
    """A view whose leaves have other numbers in the norm."""

    def __init__(self, view: View, start: int) -> None:
        self.rows = range(start, start + len(view.rows))
        self.open, self.close, self.output_axis = view.open, view.close, view.output_axis
        self.lay = view.lay


class Part(Normed[Weights]):
    """Some of the weights of a :class:`Normed`; see :meth:`Normed.part`."""

    def __init__(self, whole: Normed[Any], chosen: Sequence[int]) -> None:
        views, rows_of = whole._views, whole.leaves
        chosen = check_chosen(chosen, len(rows_of))
        self._chosen = [rows_of[number] for number in chosen]
        if views is None:
            rows = chosen
        else:
            rows = [row for number in chosen for row in views[number].rows]
            starts = accumulate((len(views[number].rows) for number in chosen), initial=0)
            self._views = [Shifted(views[number], start) for number, start in zip(chosen, starts, strict=False)]
        self._table = whole.norm_table.part(rows)
        self._made_of = whole, chosen

    def __reduce__(self) -> Any:
        return Part, self._made_of

    @property
    def norm_table(self) -> Norm:
        """The norm by itself."""
        return self._table

    @property
    def leaves(self) -> Sequence[Any]:
        """One row for each array of the part."""
        return self._chosen
