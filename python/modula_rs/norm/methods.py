"""The maps as methods, for everything that has a norm: modules, and traced networks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import accumulate
from typing import Any, overload

from modula_rs import arrays
from modula_rs.arrays import Array, Weights
from modula_rs.norm import maps
from modula_rs.norm.checks import check_accuracy, check_chosen, check_target
from modula_rs.norm.constraints import Constrained
from modula_rs.norm.maps import Vectors
from modula_rs.norm.running import COLD, W, placed_arrays, placements
from modula_rs.norm.table import Norm
from modula_rs.norm.views import Shifted


class Normed(Constrained[W]):
    """Something with a norm on its weights. A subclass defines the norm by :attr:`norm_table`."""

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
        given, _ = self._open(w, "weight")
        return maps.atom_norms(self.norm_table, given if self._views is None else self._leaves([arrays.to_numpy(array) for array in given]))

    @overload
    def normalize(self, w: Any, target_norm: Any = 1.0, *, nonfinite: str = "raise", shardings: Any = None) -> W: ...

    @overload
    def normalize(
        self, w: Any, target_norm: Any = 1.0, *, vectors: Sequence[Array | None] | None, nonfinite: str = "raise", shardings: Any = None
    ) -> tuple[W, Vectors]: ...

    def normalize(self, w: Any, target_norm: Any = 1.0, *, vectors: Any = COLD, nonfinite: str = "raise", shardings: Any = None) -> Any:
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
        if vectors is COLD:
            return self._map("normalize", w, check_target(target_norm), what="update", nonfinite=nonfinite, shardings=shardings)
        given = self.cold_vectors(w, shardings=shardings) if vectors is None else vectors
        target = check_target(target_norm)
        return self._map_warm("normalize", w, target, given, what="update", nonfinite=nonfinite, shardings=shardings)

    def zero_count(self, w: Any, *, shardings: Any = None) -> Any:
        """The integer 0 as an array of JAX, on the devices of the weights: the number of steps at the start."""
        given, _ = self._open(w, "weight")
        layout = self._layout(given, self._in_order(shardings, w), "weight")
        if layout is not None:
            return placed_arrays().zero(self.norm_table, layout, given)
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
        held = self._held(method)
        known = self._in_order(shardings, w) if w is not None or shardings is None else placements().listed(shardings)
        return distribution.plan(self.norm_table, held, given, placements().flat(known, len(given)), method, level)

    def _examples(self) -> Sequence[Any]:
        """Shapes and dtypes of weights in float32."""
        held = self._held()
        leaves = self.norm_table.leaves
        return [placements().example(each.lay.shape if each.lay else leaves[each.leaves[0]].shape if each.leaves else ()) for each in held]

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
        #: The leaves of the whole norm that the leaves of this norm are.
        self.rows = rows
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
