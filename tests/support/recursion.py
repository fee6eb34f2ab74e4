"""A tree's mass, sensitivity, targets, norm and sharpness from the definitions, each by one recursion over the expression.

No code is shared with the library: there is no flattened table, no stacked arithmetic, no repeated squaring, and norms come from float64
SVD.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from trees import Expr

INF = math.inf
Sharp = tuple[float, float, float]

GELU_SLOPE = 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi)  # the slope at sqrt 2
GELU_BEND = 2 / math.sqrt(2 * math.pi)  # the curvature at 0
TANH_BEND = 4 / (3 * math.sqrt(3))  # the curvature where tanh^2 = 1/3
RMS_BEND = 2 / math.sqrt(3)  # the curvature of x / rms(x) where rms(x) >= 1


def bond(name: str, arguments: tuple[Any, ...], width: float) -> tuple[float, float]:
    """Sensitivity and gamma of a bond on ``width`` features."""
    declared = arguments[0] if arguments else None
    match name:
        case "Abs":
            return 1, INF
        case "ReLU":
            return 1 if declared is None else declared, INF
        case "ScaledReLU":
            return 1, INF
        case "Tanh":
            return 1, TANH_BEND * math.sqrt(width)
        case "GELU" if declared is None:
            return 1, GELU_BEND / GELU_SLOPE * math.sqrt(width)
        case "GELU":
            return declared, GELU_BEND * math.sqrt(width)
        case "ScaledGELU":
            return 1, math.sqrt(2) * GELU_BEND * math.sqrt(width)
        case "RMSDivide" | "LayerNorm":
            return 1, RMS_BEND
        case "Softmax":
            return declared, 2 * declared**2
        case "FunctionalAttention":
            return 1, 3
    return 1, 0  # linear, of norm 1


def sensitivity(expr: Expr) -> float:
    parts = [sensitivity(part) for part in expr.parts]
    match expr.op, expr.args:
        case "atom", _:
            return 1
        case "bond", (name, *arguments):
            return bond(name, tuple(arguments), 1)[0]
        case "compose", _:
            return parts[0] * parts[1]
        case (("tuple" | "add" | "sub"), _):
            return sum(parts)
        case (("left" | "right"), (a,)):
            return abs(a) * parts[0]
        case "divide", (a,):
            return parts[0] / abs(a)
        case "power", (times,):
            return parts[0] ** times
    return parts[0]


def targets(expr: Expr) -> list[tuple[str, tuple[int, ...], float, float]]:
    """(kind, shape of one copy, mass, target at norm 1) of every atom, input first, the copies of a power one after the other."""
    total = expr.mass
    return [(kind, shape, mass, mass / total / after if mass else 0.0) for kind, shape, mass, after in _atoms(expr, 1.0, 1.0)]


def _atoms(expr: Expr, factor: float, after: float) -> Iterator[tuple[str, tuple[int, ...], float, float]]:
    """Every atom with its mass after all tares and the product of all sensitivities after it."""
    parts = expr.parts
    match expr.op, expr.args:
        case "atom", (kind, sizes, mass, _):
            yield kind, shape(kind, sizes), mass * factor, after
        case "compose", _:
            yield from _atoms(parts[1], factor, after * sensitivity(parts[0]))
            yield from _atoms(parts[0], factor, after)
        case (("tuple" | "add" | "sub"), _):
            for part in parts:
                yield from _atoms(part, factor, after)
        case "left", (a,):
            yield from _atoms(parts[0], factor, after * abs(a))
        case "power", (times,):
            for copy in range(times):
                yield from _atoms(parts[0], factor, after * sensitivity(parts[0]) ** (times - 1 - copy))
        case "tare", _:
            yield from _atoms(parts[0], factor * expr.mass / parts[0].mass, after)
        case _:
            for part in parts:
                yield from _atoms(part, factor, after)


def shape(kind: str, sizes: tuple[Any, ...]) -> tuple[int, ...]:
    match kind:
        case "Embed":
            return sizes[1], sizes[0]
        case "Conv2D":
            kernel = sizes[2] if isinstance(sizes[2], tuple) else (sizes[2], sizes[2])
            return *kernel, sizes[0], sizes[1]
    return sizes


# ---- norms -------------------------------------------------------------------------------------------------------------------


def atom_norm(kind: str, w: Any) -> float:
    w = np.asarray(w, np.float64)
    match kind:
        case "Linear":
            return math.sqrt(w.shape[1] / w.shape[0]) * float(np.linalg.norm(w, 2))
        case "Conv2D":
            taps = w.reshape(-1, *w.shape[2:])
            return len(taps) * max(atom_norm("Linear", tap) for tap in taps)
        case "Embed":
            return float(np.sqrt((w**2).mean(axis=1)).max())
        case "Bias":
            return float(np.sqrt((w**2).mean()))
    return float(np.abs(w).max())


def norm(expr: Expr, w: list[Any]) -> float:
    """The norm by the rules of composition, two modules at a time; ``w`` is stacked as in the library."""
    return _norm(_labelled(expr, count(), {}), w, ())


def _labelled(expr: Expr, fresh: Iterator[int], shared: dict[str, int]) -> tuple[Expr, list[Any], tuple[int, bool] | None]:
    """The expression with the index of each atom's array in the list of weights, and whether the copies of a power share it."""
    if expr.op == "power" and expr.args == (0,):
        return expr, [], None
    order = expr.parts[::-1] if expr.op == "compose" else expr.parts
    parts = [_labelled(part, fresh, shared) for part in order]
    place = None
    if expr.op == "atom":
        share = expr.args[3]
        if share is None:
            place = (next(fresh), False)
        else:
            if share not in shared:
                shared[share] = next(fresh)
            place = (shared[share], True)
    return expr, parts[::-1] if expr.op == "compose" else parts, place


def _norm(node: Any, w: list[Any], copy: tuple[int, ...]) -> float:
    expr, parts, place = node
    match expr.op, expr.args:
        case "atom", (kind, *_):
            index, shared = place
            return atom_norm(kind, w[index] if shared else w[index][copy])
        case "bond", _:
            return 0.0
        case "compose", _:
            outer, inner = parts
            return _joined([(inner[0].mass, _norm(inner, w, copy) * sensitivity(outer[0])), (outer[0].mass, _norm(outer, w, copy))])
        case (("tuple" | "add" | "sub"), _):
            return _joined([(part[0].mass, _norm(part, w, copy)) for part in parts])
        case "left", (a,):
            return abs(a) * _norm(parts[0], w, copy)
        case "power", (times,):
            chain = 0.0
            for index in range(times):
                block = parts[0][0]
                members = [(index * block.mass, chain * sensitivity(block)), (block.mass, _norm(parts[0], w, (*copy, index)))]
                chain = _joined(members)
            return chain
    return _norm(parts[0], w, copy)


def _joined(members: list[tuple[float, float]]) -> float:
    total = sum(mass for mass, _ in members)
    return max([0.0, *(value * total / mass for mass, value in members if mass > 0)])


# ---- sharpness ---------------------------------------------------------------------------------------------------------------


def sharpness(expr: Expr, width: int) -> tuple[Sharp, int]:
    """(alpha, beta, gamma) by the rules of composition, with powers by repeated composition; and the width of the output."""
    parts = expr.parts
    match expr.op, expr.args:
        case "atom", (kind, sizes, *_):
            return (0, 0 if kind == "Bias" else 1, 0), sizes[0]
        case "bond", (name, *arguments):
            return (0, 0, bond(name, tuple(arguments), width)[1]), width
        case "compose", _:
            inner, middle = sharpness(parts[1], width)
            outer, out = sharpness(parts[0], middle)
            m1, m2 = parts[1].mass, parts[0].mass
            return _composed((outer, sensitivity(parts[0]), m2), (inner, sensitivity(parts[1]), m1)), out
        case (("tuple" | "add" | "sub"), _):
            members = [sharpness(part, width) for part in parts]
            if expr.op == "sub":
                members[1] = sharpness(Expr("neg", (), (parts[1],)), width)
            return _side_by_side([(m, part.mass) for (m, _), part in zip(members, parts, strict=True)]), members[0][1]
        case (("left" | "neg"), arguments):
            a = abs(arguments[0]) if arguments else 1.0
            inner, out = sharpness(parts[0], width)
            return _composed(((0, 0, 0), a, 0), (inner, sensitivity(parts[0]), parts[0].mass)), out
        case (("right" | "divide"), (a,)):
            a = abs(a) if expr.op == "right" else 1 / abs(a)
            outer, out = sharpness(parts[0], width)
            return _composed((outer, sensitivity(parts[0]), parts[0].mass), ((0, 0, 0), a, 0)), out
        case "power", (times,):
            block, s, mass = sharpness(parts[0], width)[0], sensitivity(parts[0]), parts[0].mass
            chain: Sharp = (0, 0, 0)
            for copies in range(times):
                chain = _composed((block, s, mass), (chain, s**copies, copies * mass)) if copies else block
            return chain, width
    return sharpness(parts[0], width)


def _times(*factors: float) -> float:
    return 0.0 if 0 in factors else math.prod(factors)


def _composed(outer: tuple[Sharp, float, float], inner: tuple[Sharp, float, float]) -> Sharp:
    (a2, b2, c2), s2, m2 = outer
    (a1, b1, c1), s1, m1 = inner
    total = m1 + m2
    p1, p2 = (m1 / total, m2 / total) if total else (0.0, 0.0)
    alpha = _times(p1**2, a1, 1 / s2) + _times(p2**2, a2) + _times(2 * p1 * p2, b2, 1 / s2) + _times(p1**2, c2, 1 / s2**2)
    beta = _times(p1, b1) + _times(p2, s1, b2) + _times(p1, s1 / s2, c2)
    return alpha, beta, _times(s2, c1) + _times(s1**2, c2)


def _side_by_side(members: list[tuple[Sharp, float]]) -> Sharp:
    total = sum(mass for _, mass in members)
    shares = [mass / total if total else 0.0 for _, mass in members]
    bounds = [bounds for bounds, _ in members]
    return (
        sum(_times(p * p, a) for p, (a, _, _) in zip(shares, bounds, strict=True)),
        sum(_times(p, b) for p, (_, b, _) in zip(shares, bounds, strict=True)),
        sum(c for _, _, c in bounds),
    )
