"""The part of the arithmetic that each launch of a plan does: flops and least bytes, from an operand's shape and its products.

Grids and tiles only decide how the launches of one purpose share the total of that purpose, so a new kernel needs nothing here but a name
that tells its purpose. A launch without a known purpose has no cost.
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
#: By the beginning of a kernel's name: passes over the caller's array in its own dtype, and operations for each element.
PASSES = {"row_norms": (1, 2), "pack": (1, 1), "rescale": (2, 1), "power_step": (1, 4 * VECTORS)}


class Cost(NamedTuple):
    """Operations, and bytes if each operand is read once and each result is written once."""

    flops: float
    bytes: float


def purpose(item: Launch, longest: int = 0) -> str | None:
    """The purpose of a launch; ``longest`` is the largest number of chunks of the inner dimension of a symmetric product of this plan.

    A product of the Gram space is "inner"; a product of X with itself, longer where X is not square, is "gram".
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
    """The purpose of each launch of one operand's plan. All symmetric products of a square operand are "inner": they cost the same."""
    square = operand.rows == operand.cols
    lengths = [int(item.params["chunks"]) for item in launches if purpose(item) == "inner"]
    longest = max(lengths, default=0) if not square and len(set(lengths)) > 1 else 0
    return [purpose(item, longest) for item in launches]


def matrices_in(item: Launch) -> int:
    """The number of matrices of a launch; two products in one launch both count."""
    names = item.params.dtype.names or ()
    return int(item.params["matrices"]) if "pair" in names else item.grid[1]


def costs(launches: Sequence[Launch], operand: Operand, products: Sequence[Product]) -> list[Cost | None]:
    """The cost of each launch of one operand's plan; ``products`` are the products of one of its matrices."""
    kinds = purposes(launches, operand)
    elements, size = operand.count * operand.rows * operand.cols, SIZES[operand.dtype]
    total: dict[str, Cost] = {}
    for product in products:
        kind = product.purpose if product.purpose in kinds else "inner"
        before = total.get(kind, Cost(0, 0))
        total[kind] = Cost(before.flops + operand.count * product.flops, before.bytes + operand.count * product.bytes)
    total["small"] = Cost(operand.count * sum(product.flops for product in products), 2 * size * elements)
    for kind, (passes, operations) in PASSES.items():
        halves = 2 if kind == "pack" else 0  # bytes written to the workspace
        total[kind] = Cost(operations * elements, (passes * size + halves) * elements)
    # Launches of one purpose share its cost in proportion to their numbers of matrices.
    weights = [matrices_in(item) for item in launches]
    sums: Counter[str] = Counter()
    for kind, weight in zip(kinds, weights, strict=True):
        if kind is not None:
            sums[kind] += weight
    return [
        None if kind is None or kind not in total else Cost(*(np.array(total[kind]) * weight / sums[kind]).tolist())
        for kind, weight in zip(kinds, weights, strict=True)
    ]
