"""From the sharpness of a network to the curvature of its loss, and to a learning rate that provably descends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from modula_rs.arrays import Array
from modula_rs.checks import number, shown, size
from modula_rs.network.module import Module
from modula_rs.norm.checks import check_finite

#: The name of a loss, or its bounds (s, t): it is s-Lipschitz and t-smooth in the output, measured by RMS.
Loss = str | tuple[float, float]


class _Bounds(NamedTuple):
    lipschitz: float
    smooth: float


def smoothness(
    m: Module,
    loss: Loss,
    *,
    classes: int | None = None,
    error: float | None = None,
    weight_norms: float | Sequence[float] = 1.0,
) -> float:
    """A bound on the curvature of a loss in the modular norm: ``s * alpha + t`` for a loss with bounds (s, t), if ``m`` is well-normed.

    With this number S, ``|L(w + dw) - L(w) - <g, dw>| <= S / 2 * m.norm(dw)**2`` for the gradient g of the loss L at the weights w, if
    inputs have RMS at most 1, and if all atoms have norms of at most ``weight_norms`` at w and at w + dw. In a network that is not
    well-normed (see :attr:`Module.well_normed`), S is ``s * alpha + t * gain**2`` with the bounds of ``m.certificate(weight_norms)``, which
    hold all the same.

    Args:
        m: a network whose sharpness is finite. For a network of ReLU or Abs it is not.
        loss: ``"cross_entropy"`` of the softmax of the output, for which s = sqrt(2 C), t = C / 2 on C classes; ``"square"``, half of the
            mean square of output minus target, for which s is the largest RMS of that difference and t = 1; or (s, t), of a loss that is
            s-Lipschitz and t-smooth in the output, measured by RMS. Means over examples, or over positions, have the bounds of one term.
        classes: C; None for ``m.out_features``.
        error: for ``"square"``, the largest RMS of output minus target; None for targets of RMS at most 1, which makes it 1 more than the
            largest RMS of the output.
        weight_norms: the largest norm of the weights in the norm of their atom: one number for all, or one for each leaf.

    Raises:
        TypeError: ``m`` is no module, or a value is no number.
        ValueError: the sharpness is infinite (the message names the part that causes it); a loss of another name; negative bounds; the
            number of classes is open.

    Source: Large et al., "Scalable Optimization in the Modular Norm" (2024), section 3.3.

    >>> import modula_rs as mr
    >>> m = mr.Linear(10, 32) @ mr.Tanh() @ mr.Linear(32, 64)
    >>> mr.smoothness(m, loss=(1.0, 0.0)) == m.sharpness.alpha
    True
    >>> round(mr.smoothness(m, loss="cross_entropy"), 2)
    12.1
    """
    if not isinstance(m, Module):
        raise TypeError(f"the curvature of a loss follows from the parts of a Module, got {type(m).__name__}")
    certificate = m.certificate(weight_norms)
    s, t = _bounds(loss, m, classes, error, certificate.output)
    alpha, gain = certificate.sharpness.alpha, certificate.gain
    bound = (s * alpha if s else 0.0) + (t * gain * gain if t else 0.0)
    if math.isfinite(bound):
        return bound
    cause = certificate.unbounded or "; ".join(certificate.ends[:3]) or "its bounds overflow"
    raise ValueError(f"the loss has no bounded curvature in the weights of {m._tree}: {cause}")


def certified_rate(
    m: Module,
    g: Sequence[Array],
    loss: Loss,
    *,
    classes: int | None = None,
    error: float | None = None,
    w: Sequence[Array] | None = None,
) -> Any:
    """The learning rate for ``m.dualize(g)`` that provably descends: ``m.dual_norm(g) / smoothness(m, loss)``.

    The step ``w - rate * m.dualize(g)`` lowers the loss by at least ``m.dual_norm(g)**2 / (2 * smoothness(m, loss))``, up to the rounding
    and the accuracy (1 %) of ``dualize``, for inputs of RMS at most 1. No rate needs tuning; the price is that the bound holds in the worst
    case, so that larger rates usually descend faster.

    Args:
        m: a network whose sharpness is finite.
        g: the gradients of the loss.
        loss: see :func:`smoothness`, as ``classes`` and ``error``.
        w: the weights. The rate is then certified for these weights, whatever their norms before and after the step; the norms are measured
            by singular value decompositions, outside of compiled code. Without ``w``, all atoms are taken to have norms of at most 1 before
            and after the step, as :meth:`Module.hard_cap` keeps them.

    Returns:
        A number, or a scalar of JAX or CuPy for gradients of theirs.

    Raises:
        FloatingPointError: gradients that are not finite.
        TypeError, ValueError: as :func:`smoothness`, and for gradients that do not fit the network.

    >>> import numpy as np, modula_rs as mr
    >>> m = mr.Linear(3, 16) @ mr.Tanh() @ mr.Linear(16, 4)
    >>> w, x, y = m.initialize(0), np.full((1, 4), 0.5, np.float32), np.ones((1, 3), np.float32)
    >>> losses = []
    >>> for step in range(3):
    ...     out, pullback = m.vjp(x, w)
    ...     losses.append(float(((out - y) ** 2).mean() / 2))
    ...     g = pullback((out - y) / 3)[1]
    ...     rate = mr.certified_rate(m, g, "square", w=w)
    ...     w = [a - rate * u for a, u in zip(w, m.dualize(g))]
    >>> losses[0] > losses[1] > losses[2]
    True
    """
    bound = partial(smoothness, m, loss, classes=classes, error=error)
    norms: float | Sequence[float] = 1.0 if w is None else m.atom_norms(w)
    curvature, dual = bound(weight_norms=norms), m.dual_norm(g)
    check_finite(m.norm_table.paths, g, "gradient")
    if curvature == 0:
        raise ValueError(f"the loss has no curvature in the weights of {m._tree}, so that no rate is too large")
    if w is not None:
        # The curvature rises with the norms. At the norms that this rate could reach, it is a bound for every shorter step.
        curvature = bound(weight_norms=_after(m, m.atom_norms(w), float(dual) / curvature))
    return dual / curvature


def _after(m: Module, norms: Sequence[float], rate: float) -> list[float]:
    """The norms of atoms after a dualized step of this rate, at most; directions have norms of at most 1.01."""
    targets = (float(target.max(initial=0.0)) for target in m.norm_table.targets)
    return [norm + 1.01 * rate * target for norm, target in zip(norms, targets, strict=True)]


def _bounds(loss: Loss, m: Module, classes: int | None, error: float | None, output: float) -> _Bounds:
    if isinstance(loss, tuple | list):
        if len(loss) != 2:
            raise ValueError(f"a loss must be a name or bounds (s, t), got {shown(loss)}")
        s, t = (_bound(f"the bound {name} of the loss", value) for name, value in zip("st", loss, strict=True))
        return _Bounds(s, t)
    if loss == "cross_entropy":
        count = m.out_features if classes is None else size("classes", classes, 1)
        if count is None:
            raise ValueError("the output has no known number of features: give classes=")
        return _Bounds(math.sqrt(2 * count), count / 2)
    if loss == "square":
        return _Bounds(output + 1 if error is None else _bound("error", error), 1.0)
    raise ValueError(f'loss must be "cross_entropy", "square" or bounds (s, t), got {shown(loss)}')


def _bound(what: str, value: Any) -> float:
    found = number(what, value)
    if not (found >= 0 and math.isfinite(found)):
        raise ValueError(f"{what} must be finite and at least 0, got {found}")
    return found
