"""Maps of weights: back to a manifold or a norm, under a cap, or along a manifold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from modula_rs import arrays
from modula_rs.arrays import Array
from modula_rs.norm import manifold
from modula_rs.norm.checks import check_at_least_zero, check_finite, check_nonfinite, check_positive, check_strength, check_target
from modula_rs.norm.maps import Vectors
from modula_rs.norm.running import COLD, Running, W, placed_arrays


class Constrained(Running[W]):
    """The maps that keep weights where they should be."""

    def project(self, w: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights brought back to their natural set: matrices become semi-orthogonal at their scale, rows of an Embed get RMS 1."""
        return self._map("project", w, nonfinite=nonfinite, shardings=shardings)

    @overload
    def radius(self, w: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W: ...

    @overload
    def radius(
        self, w: Any, *, vectors: Sequence[Array | None] | None, nonfinite: str = "raise", shardings: Any = None
    ) -> tuple[W, Vectors]: ...

    def radius(self, w: Any, *, vectors: Any = COLD, nonfinite: str = "raise", shardings: Any = None) -> Any:
        """Weights brought back to the norm that their atoms have at initialisation, with directions kept.

        A matrix gets its initial spectral norm, each row of an Embed RMS 1. Vectors (Bias, Scale) and zeros stay as they are. With
        ``vectors`` the result is a pair of the weights and the next estimates, as of :meth:`normalize`.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(3, 12)
        >>> grown = [7 * a for a in m.initialize(0)]
        >>> bool(abs(np.linalg.norm(m.radius(grown)[0], 2) - (3 / 12) ** 0.5) < 0.01)
        True
        """
        if vectors is COLD:
            return self._map("radius", w, nonfinite=nonfinite, shardings=shardings)
        given = self.cold_vectors(w, shardings=shardings) if vectors is None else vectors
        return self._map_warm("radius", w, 1.0, given, nonfinite=nonfinite, shardings=shardings)

    def regularize(self, w: Any, strength: Any, *, shardings: Any = None) -> W:
        """Decoupled decay: each atom's array times ``1 - strength * target``; rows of an Embed are brought back to RMS 1."""
        return self._map("regularize", w, check_strength(strength), nonfinite="propagate", shardings=shardings)

    def hard_cap(self, w: Any, cap: Any = 1.0, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights with norms above ``cap``, in the norms of their atoms, cut down to it; all others stay as they are.

        In a matrix each singular value is cut on its own, and in a Scale each entry; a row of an Embed, and a Bias, keeps its direction.
        After the cap every atom has norm at most ``cap``, as certificates assume. A shared array is shrunk to the caps of its further uses.

        Args:
            w: weights.
            cap: the largest norm: a number above 0, or an array of JAX. With 1, the norm that matrices and rows start at.
            nonfinite, shardings: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> m.hard_cap([np.diag([3.0, 0.5])])
        [array([[1. , 0. ],
               [0. , 0.5]])]
        """
        return self._map("hard_cap", w, check_positive("cap", cap), nonfinite=nonfinite, shardings=shardings)

    def soft_cap(self, w: Any, strength: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights whose norms are bent by an odd polynomial: nearly unchanged if small, held down if large.

        A singular value x (in the norm of its atom) becomes ``p + strength * p**3`` with ``p = x - strength * x**3``: about
        ``x - 3 * strength**2 * x**5``. That takes two products of the matrix, against many more for the hard cap. In a Scale each entry is
        bent, in an Embed the RMS of each row, in a Bias its RMS. An array with a norm beyond ``(3 * strength)**-0.5``, where p no longer
        rises, is first scaled down to it, by an estimate of the norm of a matrix that may be a fifth too small; its largest singular
        values then end up to an eighth lower.

        Args:
            w: weights.
            strength: a number of at least 0, or an array of JAX; 0 changes nothing.
            nonfinite, shardings: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> m.soft_cap([np.diag([1.0, 0.1])], 0.1)[0].round(4)
        array([[0.9729, 0.    ],
               [0.    , 0.1   ]])
        """
        return self._map("soft_cap", w, check_at_least_zero("strength", strength), nonfinite=nonfinite, shardings=shardings)

    def hammer(self, w: Any, cap: Any = 1.0, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights with the largest singular value of each matrix set to ``cap`` times its initial value; all others stay.

        Where several singular values are at the top, one of them is set. At every step of training it reaches all of them.
        Each row of an Embed gets RMS ``cap``. Vectors (Bias, Scale) and zeros stay as they are.

        Args:
            w: weights.
            cap: the norm, in the norm of the atom: a number above 0, or an array of JAX.
            nonfinite, shardings: see :meth:`normalize`.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> np.diag(m.hammer([np.diag([3.0, 0.5])])[0]).round(6)
        array([1. , 0.5])
        """
        return self._map("hammer", w, check_positive("cap", cap), nonfinite=nonfinite, shardings=shardings)

    def spectral_decay(self, w: Any, strength: Any, *, shardings: Any = None) -> W:
        """Decoupled decay of the largest singular value of each matrix alone, which is multiplied by ``1 - strength * target``.

        Vectors decay as in :meth:`regularize`, and rows of an Embed are brought back to RMS 1, as there.

        Source: Newhouse et al., "Training Transformers with Enforced Lipschitz Constants" (2025).

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(2, 2)
        >>> np.diag(m.spectral_decay([np.diag([3.0, 0.5])], 0.1)[0]).round(6)
        array([2.7, 0.5])
        """
        return self._map("spectral_decay", w, check_strength(strength), nonfinite="propagate", shardings=shardings)

    def tangent(self, g: Any, w: Any, target_norm: Any = 1.0, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """The update of norm ``target_norm`` with the largest inner product with ``g``, among those tangent to the manifold of ``w``.

        Matrices move on the Stiefel manifold of semi-orthogonal matrices at their scale, rows of an Embed on spheres: to first order their
        norms stay, so that neither decay nor caps are needed. Vectors (Bias, Scale) move freely, as by :meth:`dualize`. The steepest
        direction of a matrix is exact, also where it is not square: see the source for the closed form.

        Args:
            g: gradients, or averages of them.
            w: weights on their manifold, as :meth:`Module.initialize` and :meth:`project` give them.
            target_norm: the modular norm of the result: a number of at least 0, or an array of JAX.
            nonfinite, shardings: see :meth:`normalize`.

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
        self._check_together(("gradient", given), ("weight", weights), ("target_norm", target))
        if nonfinite == "raise":
            check_finite(self._held_paths(), given, "gradient", self._trained())
            nonfinite = "propagate"
        order = self._in_order(shardings, g)
        layout = self._layout(given, order, "gradient") or self._layout(weights, order, "weight")
        if layout is not None:
            return structured(placed_arrays().tangent(self.norm_table, layout, given, weights, target, nonfinite))  # type: ignore[no-any-return]

        def run(given: Sequence[Array], weights: Sequence[Array], target: Any) -> Sequence[Array]:
            made = manifold.tangent(self.norm_table, self._leaves(given), self._leaves(weights), target, nonfinite)
            return self._arrays(made, given, "normalize")

        return structured(self._run(f"tangent {nonfinite}", run, given, weights, target))  # type: ignore[no-any-return]

    def manifold_step(self, w: Any, g: Any, rate: Any, *, nonfinite: str = "raise", shardings: Any = None) -> W:
        """Weights after a steepest step down ``g`` on their manifold: ``m.project(w - m.tangent(g, w, rate))``.

        The retraction :meth:`project` brings matrices back to semi-orthogonal ones, and rows of an Embed back to their spheres.

        Args:
            w: weights on their manifold.
            g: gradients, or averages of them.
            rate: the modular norm of the step: a number of at least 0, or an array of JAX.
            nonfinite, shardings: see :meth:`normalize`.

        >>> import numpy as np, modula_rs as mr
        >>> m = mr.Linear(6, 3)
        >>> w, g = m.initialize(0, "float64"), m.initialize(1, "float64")
        >>> after = m.manifold_step(w, g, 0.1)[0]
        >>> bool(np.allclose(after.T @ after, 2 * np.eye(3)))
        True
        """
        update = self.tangent(g, w, rate, nonfinite=nonfinite, shardings=shardings)
        given, structured = self._open(w, "weight")
        moved, _ = self._open(update, "update")
        after = [(a.astype(arrays.working_dtype(a.dtype)) - b).astype(a.dtype) for a, b in zip(given, moved, strict=True)]
        return self.project(structured(after), nonfinite="propagate", shardings=shardings)
