"""Steps without a learning rate, from two numbers of the whole network: ``norm(w - w0)`` and ``dual_norm(g)``.

An update of norm 1 says in which direction the weights move; these functions say how far. Both replace Euclidean distance and length by
the modular norm and its dual, in which the inequality that they rest on, ``<g, w> <= dual_norm(g) * norm(w)``, holds for the whole network.
The functions take arrays of any library, and run inside ``jax.jit``.

>>> import numpy as np, modula_rs as mr
>>> m = mr.MLP(1, 4, width=16, depth=2)
>>> w, x = m.initialize(0), np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
>>> state = mr.optim.dog_init(m, w)
>>> for step in range(60):
...     y, pullback = m.vjp(x, w)
...     gradient = pullback((y - x[:, :1]) / len(x))[1]
...     size, state = mr.optim.dog(m, gradient, w, state)
...     w = [a - size * (1 - step / 60) * u for a, u in zip(w, m.dualize(gradient))]
>>> float(np.mean((m(x, w) - x[:, :1]) ** 2)) < 0.05
True
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from modula_rs import arrays
from modula_rs.arrays import Array, Weights, widen
from modula_rs.checks import number, shown
from modula_rs.norm.checks import check_weights
from modula_rs.norm.methods import Normed

#: The size of the first step, in the modular norm. A step of size 1 moves the output by at most RMS 1, so one value suits every network.
FIRST = 0.1


class DoGState(NamedTuple):
    """The first weights; the largest distance from them, at first the size of the first step; the root of the sum of squared dual norms."""

    start: Weights
    distance: Any
    root: Any


class ProdigyState(NamedTuple):
    """The first weights, the estimate of the distance to the solution, and the sums of ``d^2 g`` and ``d^2 <g, start - w>`` behind it."""

    start: Weights
    distance: Any
    total: Weights
    gain: Any


def dog_init(module: Normed[Any], w: Any, first: float = FIRST) -> DoGState:
    """The first state for :func:`dog`. ``first``: the size of the first step, positive and finite."""
    given = opened(module, w, "weight")[0]
    return DoGState(list(given), _like(given, checked_first(first)), _like(given, 0.0))


def dog(module: Normed[Any], gradient: Any, w: Any, state: DoGState, *, shardings: Any = None) -> tuple[Any, DoGState]:
    """The size of this step by *distance over gradients*, and the state for the next.

    ``size = distance * dual_norm(g) / root(sum of dual_norm(g)^2)``, with the largest ``norm(w - w0)`` so far for the distance and this
    gradient in the sum. Multiply it by an update of norm 1 *without momentum*, such as ``m.dualize(g)``, and by a schedule that falls to
    0, or average the weights (:func:`modula_rs.optim.schedule_free`). Momentum makes successive steps alike, so that the distance grows
    faster than the formula allows for: with momentum 0.95 the steps of a GPT grew without bound.

    Args:
        module: a module or a traced network.
        gradient: the gradient itself, not an average: of arrays like the weights.
        w: the weights at which the gradient was taken.
        state: from :func:`dog_init` or the step before.
        shardings: see :meth:`modula_rs.Module.normalize`.

    Returns:
        A float, or a scalar of JAX or CuPy, and the next state. If the gradient is zero or not finite, the size is 0, and the gradient does
        not count.

    Raises:
        TypeError, ValueError: arrays that do not fit the network, a state of another function.

    Source: Ivgi, Hinder and Carmon, "DoG is SGD's Best Friend" (2023), here in the modular norm.
    """
    g, _ = opened(module, gradient, "gradient")
    given, structured = opened(module, w, "weight")
    _check_state(state, DoGState, given)
    module._check_together(("gradient", g), ("weight", given), ("the start", state.start))
    dual = _finite(module.dual_norm(gradient, shardings=shardings), g)
    moved = module.norm(structured([widen(a) - widen(b) for a, b in zip(given, state.start, strict=True)]), shardings=shardings)
    xp = arrays.namespace_of(list(given))
    distance = xp.maximum(state.distance, moved)
    root = xp.hypot(state.root, dual)
    size = distance * _ratio(xp, dual, root)
    return _plain(size, given), DoGState(state.start, _plain(distance, given), _plain(root, given))


def prodigy_init(module: Normed[Any], w: Any, first: float = FIRST) -> ProdigyState:
    """The first state for :func:`prodigy`. ``first``: the size of the first step, positive and finite; the estimates only grow from it."""
    given = opened(module, w, "weight")[0]
    xp = arrays.namespace_of(list(given))
    total = [xp.zeros_like(a, dtype=arrays.working_dtype(a.dtype)) for a in given]
    return ProdigyState(list(given), _like(given, checked_first(first)), total, _like(given, 0.0))


def prodigy(module: Normed[Any], gradient: Any, w: Any, state: ProdigyState, *, shardings: Any = None) -> tuple[Any, ProdigyState]:
    """The size of this step, an estimate of the distance to the solution as in Prodigy, and the state for the next.

    For a convex loss the norm of (solution - first weights) is at least ``sum of c <g, w0 - w> / dual_norm(sum of c g)`` for any weights
    c >= 0, because ``<g, w - solution> >= 0`` at every step. The size is the largest such bound so far, with ``c = size^2``, and never
    falls. Multiply it by an update of norm 1, of any optimizer, and by a schedule that falls to 0.

    Args:
        module: a module or a traced network.
        gradient: the gradient itself, not an average: arrays like the weights.
        w: the weights at which the gradient was taken.
        state: from :func:`prodigy_init` or the step before.
        shardings: see :meth:`modula_rs.Module.normalize`.

    Returns:
        A float, or a scalar of JAX or CuPy, and the next state. A gradient that is not finite does not count.

    Raises:
        TypeError, ValueError: arrays that do not fit the network, a state of another function.

    Source: Mishchenko and Defazio, "Prodigy" (2023), in the form for Adam without its running averages, here in the modular norm.
    """
    g, structured = opened(module, gradient, "gradient")
    given, _ = opened(module, w, "weight")
    _check_state(state, ProdigyState, given)
    module._check_together(("gradient", g), ("weight", given), ("the start", state.start), ("the total", state.total))
    xp = arrays.namespace_of(list(given))
    counts = xp.isfinite(module.dual_norm(gradient, shardings=shardings))
    weight = xp.where(counts, state.distance * state.distance, 0.0)
    known = [xp.where(counts, widen(a), 0) for a in g]  # 0 times infinity is not 0
    total = [t + (weight * a).astype(t.dtype) for t, a in zip(state.total, known, strict=True)]
    inner = sum(((widen(a) - widen(b)) * c).sum() for a, b, c in zip(state.start, given, known, strict=True))
    gain = state.gain + weight * inner
    bound = _ratio(xp, gain, module.dual_norm(structured(total), shardings=shardings))
    size = _plain(xp.maximum(state.distance, _finite(bound, g)), given)
    return size, ProdigyState(state.start, size, total, _plain(gain, given))


def opened(module: Any, tree: Any, what: str) -> tuple[list[Array], Callable[[Any], Any]]:
    """The arrays of weights, and a function that gives such arrays the structure of the weights; TypeError for anything else."""
    if not isinstance(module, Normed):
        raise TypeError(f"module must be a Module or a traced network, got {shown(module)}")
    given, structured = module._open(tree, what)
    if not isinstance(given, list | tuple):
        raise TypeError(f"{what}s come as a list of arrays, got {shown(given)}")
    if not given:
        raise ValueError("the network has no weights to take steps with")
    for index, array in enumerate(given):
        if arrays.library(array) is None:
            raise TypeError(f"{what} {index} must be an array, got {shown(array)}")
    if module._views is None:
        check_weights(module.norm_table.leaves, given, what)
    return list(given), structured


def on_explicit_mesh(function: Callable[..., Any], outputs: Any, *operands: Any) -> Any:
    """``function(*operands)``, for JAX arrays with results that lie like ``outputs``: see :func:`modula_rs.forward.explicit.like`."""
    if arrays.library(operands[0][0]) != "jax":
        return function(*operands)
    return import_module("modula_rs.forward.explicit").like(function, outputs, *operands)


def checked_first(first: Any) -> float:
    """The size of a first step, positive and finite."""
    size = number("first", first)
    if not 0 < size < math.inf:
        raise ValueError(f"first must be positive and finite, got {size}")
    return size


def _check_state(state: Any, kind: type, given: list[Array]) -> None:
    if not isinstance(state, kind):
        raise TypeError(f"the state must be the {kind.__name__} of the step before, got {shown(state)}")
    shapes, expected = [tuple(a.shape) for a in given], [tuple(a.shape) for a in state.start]  # type: ignore[attr-defined]
    if shapes != expected:
        raise ValueError(f"the state is for weights of shapes {shown(expected)}, got weights of shapes {shown(shapes)}")


def _finite(value: Any, like: list[Array]) -> Any:
    """The value, or 0 in place of NaN and infinity."""
    xp = arrays.namespace_of(like)
    return xp.where(xp.isfinite(value), value, 0)


def _ratio(xp: Any, a: Any, b: Any) -> Any:
    """``a / b`` with 0/0 = 0."""
    return xp.where(b > 0, a / xp.where(b > 0, b, 1), 0)


def _like(given: list[Array], value: float) -> Any:
    """A number in the library of the arrays; a float for NumPy."""
    return value if arrays.library(given[0]) == "numpy" else arrays.namespace_of(given).asarray(value, "float32")


def _plain(value: Any, given: list[Array]) -> Any:
    return float(value) if arrays.library(given[0]) == "numpy" else value
