"""Which part of the arithmetic each launch of a plan does: its flops and least bytes, from an operand's shape and its products alone.

Grids and tiles only say how the launches of one purpose share that purpose's total, so that new kernels need nothing here but a name
that says what they are for. A launch without a known purpose has no cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from costs import Product
from modula_rs.backend import VECTORS
from modula_rs.kernels.launches import Launch, Operand

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4}
#: Passes over the caller's array in its own type, and operations an element: the beginnings of kernels' names.
PASSES = {"row_norms": (1, 2), "pack": (1, 1), "rescale": (2, 1), "power_step": (1, 4 * VECTORS)}


class Cost(NamedTuple):
    """Operations, and bytes if each operand is read once and each result written once."""

    flops: float
    bytes: float


def purpose(item: Launch, longest: int = 0) -> str | None:
    """What a launch is for; ``longest``: the most chunks that the inner dimension of a symmetric product of this plan has.

    A product of the Gram space is "inner"; one of X with itself, longer where X is not square, "gram".
    """
    name = item.kernel
    if name.startswith("product"):
        if "apply" in name or "result" in name:
            return "apply"
        return "gram" if longest and int(item.params["chunks"]) == longest else "inner"
    if name.startswith(("small", "resident")):
        return "small"
    return next((start for start in PASSES if name.startswith(start)), None)


def purposes(launches: Sequence[Launch], operand: Operand) -> list[str | None]:
    """What each launch of one operand's plan is for; of a square operand every symmetric product is "inner", since all cost the same."""
    square = operand.rows == operand.cols
    lengths = [int(item.params["chunks"]) for item in launches if purpose(item) == "inner"]
    longest = max(lengths, default=0) if not square and len(set(lengths)) > 1 else 0
    return [purpose(item, longest) for item in launches]


def matrices_in(item: Launch) -> int:
    """Matrices of a launch; of two products in one, both are counted."""
    names = item.params.dtype.names or ()
    return int(item.params["matrices"]) if "pair" in names else item.grid[1]


def costs(launches: Sequence[Launch], operand: Operand, products: Sequence[Product]) -> list[Cost | None]:
    """One for each launch of the plan of one operand; ``products``: those of one of its matrices."""
    kinds = purposes(launches, operand)
    elements, size = operand.count * operand.rows * operand.cols, SIZES[operand.dtype]
    total: dict[str, Cost] = {}
    for product in products:
        kind = product.purpose if product.purpose in kinds else "inner"
        before = total.get(kind, Cost(0, 0))
        total[kind] = Cost(before.flops + operand.count * product.flops, before.bytes + operand.count * product.bytes)
    total["small"] = Cost(operand.count * sum(product.flops for product in products), 2 * size * elements)
    for kind, (passes, operations) in PASSES.items():
        halves = 2 if kind == "pack" else 0  # written to the workspace
        total[kind] = Cost(operations * elements, (passes * size + halves) * elements)
    # Of the same purpose, a launch's part is that of its matrices.
    weights = [matrices_in(item) for item in launches]
    sums: Counter[str] = Counter()
    for kind, weight in zip(kinds, weights, strict=True):
        if kind is not None:
            sums[kind] += weight
    return [
        None if kind is None or kind not in total else Cost(*(np.array(total[kind]) * weight / sums[kind]).tolist())
        for kind, weight in zip(kinds, weights, strict=True)
    ]
