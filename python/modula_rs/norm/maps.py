"""The maps on weights: checks the arguments, takes the recipe of the map, and runs it in the library of the arrays."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modula_rs import arrays
from modula_rs.arrays import Array, Weights, to_numpy
from modula_rs.backend import VECTORS, Backend
from modula_rs.backend import numpy as in_rust
from modula_rs.norm import recipe
from modula_rs.norm.checks import check_finite, check_overflow, check_vectors, check_weights
from modula_rs.norm.custom import Custom
from modula_rs.norm.table import Norm
from modula_rs.random import Source

#: The largest float16, which every other dtype of weights can hold.
LARGEST_HALF = 65504.0

#: Singular vector estimates: an array (blocks, VECTORS, columns) for each leaf of matrices, None for every other leaf.
Vectors = list[Array | None]


def apply(
    norm: Norm,
    name: str,
    w: Sequence[Array],
    amount: Any = 1.0,
    vectors: Sequence[Array | None] | None = None,
    *,
    what: str = "weight",
    accuracy: str = "standard",
    nonfinite: str = "propagate",
) -> tuple[Weights, Vectors]:
    """The map called ``name`` on every leaf, and the singular vector estimates for the next call.

    ``amount`` is the target norm or the strength; ``what`` is the word for the arrays in error messages.
    """
    library = check_weights(norm.leaves, w, what)
    if vectors is not None:
        check_vectors(norm, w, vectors)
    if nonfinite == "raise":  # Rust checks NumPy arrays for NaN and infinity itself
        check_finite(norm.paths, w, what, norm.custom if library == "numpy" else None)
    if library == "numpy":
        made, found = in_rust.execute(norm.core, norm.recipe(name).core, w, vectors, float(amount), accuracy, nonfinite)
    else:
        given = zero_nonfinite(norm, w) if nonfinite == "zero" else w
        with np.errstate(over="ignore"):  # an amount beyond the dtype is refused below
            made, found = recipe.execute(_backend(library), norm.recipe(name), given, vectors, amount, accuracy)
    if may_overflow(norm, name, amount):
        check_overflow(norm.paths, w, made, amount)
    for leaf in norm.custom:
        array = recipe.zero_nonfinite(w[leaf], len(norm.stacks[leaf])) if nonfinite == "zero" else w[leaf]
        made[leaf] = Custom(norm, leaf).apply(name, array, amount)
    return made, found


def may_overflow(norm: Norm, name: str, amount: Any) -> bool:
    """Whether updates of a target norm of ``amount``, if it is known, could exceed the dtype of weights."""
    return not arrays.is_traced(amount) and float(amount) * norm.recipe(name).largest > LARGEST_HALF


def initialize(norm: Norm, key: Any, dtype: Any = None) -> Weights:
    """Fresh weights, one array for each leaf."""
    wanted = arrays.weight_dtype(dtype)
    source = Source(key, wanted)
    drawn = []
    for leaf, obj, stacked in zip(norm.leaves, norm.objects, norm.stacks, strict=True):
        weight = obj.draw(source, stacked).astype(wanted)
        if tuple(weight.shape) != leaf.shape:
            raise ValueError(f"{leaf.path}: initialize gave shape {tuple(weight.shape)}, expected {leaf.shape}")
        drawn.append(weight)
    return drawn


def measure(norm: Norm, w: Sequence[Array]) -> Any:
    """The norm: the largest of scale times norm over all atoms."""
    library = check_weights(norm.leaves, w, "weight")
    if library == "numpy":
        values = in_rust.measure(norm.core, norm.measures.core, w, dual=False)
    else:
        values = recipe.norms(_backend(library), norm.measures.rows, w)
    for leaf in norm.custom:
        values[leaf] = Custom(norm, leaf).norm(w[leaf])
    if library == "numpy":
        return float(np.max([0.0, *values]))
    xp = arrays.namespace(library)
    return xp.max(xp.stack([value.astype(values[0].dtype) for value in values]))


def measure_dual(norm: Norm, g: Sequence[Array]) -> Any:
    """The dual norm: the sum over leaves of target times the leaf's dual norm."""
    library = check_weights(norm.leaves, g, "gradient")
    if library == "numpy":
        values = in_rust.measure(norm.core, norm.dual_measures.core, g, dual=True)
    else:
        values = recipe.dual_norms(_backend(library), norm.dual_measures.rows, g)
    for leaf in norm.custom:
        values[leaf] = Custom(norm, leaf).dual_norm(g[leaf])
    return float(sum(values)) if library == "numpy" else sum(values)


def atom_norms(norm: Norm, w: Sequence[Array]) -> list[float]:
    """For every leaf, the largest norm of a copy in the norm of its atom; all uses of a shared array count. By NumPy, in float64."""
    check_weights(norm.leaves, w, "weight")
    check_finite(norm.paths, w, "weight")
    wide = [to_numpy(array).astype(np.float64) for array in w]
    values = [0.0] * len(w)
    # The hard cap measures the uses of each array in the norms of their atoms.
    caps = norm.recipe("hard_cap")
    measured = [(row.leaf, row.batch, row.scales) for row in caps.rows] + [(each.leaf, each.batch, each.scales) for each in caps.bounds]
    for leaf, batch, units in measured:
        if batch.count:
            found = _block_norms(wide[leaf].reshape(batch.count, batch.rows, batch.cols), batch.geometry) / units
            values[leaf] = max(values[leaf], float(found.max()))
    for leaf in norm.custom:
        values[leaf] = max(values[leaf], Custom(norm, leaf).largest(w[leaf]))
    return values


def _block_norms(blocks: NDArray[np.float64], geometry: str) -> Any:
    match geometry:
        case "spectral":
            return np.linalg.svd(blocks, compute_uv=False)[:, 0]
        case "max_abs":
            return np.abs(blocks).max(axis=(1, 2))
    return np.sqrt((blocks * blocks).mean(axis=2)).max(axis=1)


def cold_vectors(norm: Norm, w: Sequence[Array]) -> Vectors:
    """Estimates of zero, which stand for no estimates, in the library and the working precision of each leaf's array."""
    check_weights(norm.leaves, w, "weight")
    xp = arrays.namespace_of(list(w))
    return [
        xp.zeros((batch.count, VECTORS, batch.cols), arrays.working_dtype(array.dtype)) if batch.geometry == "spectral" else None
        for array, batch in zip(w, norm.batches, strict=True)
    ]


def zero_nonfinite(norm: Norm, w: Sequence[Array]) -> Weights:
    """The arrays with zeros in place of each copy that holds NaN or infinity."""
    return [recipe.zero_nonfinite(array, len(stack)) for array, stack in zip(w, norm.stacks, strict=True)]


def _backend(library: str) -> Backend:
    found: Any = import_module(f"modula_rs.backend.{library}")
    return found  # type: ignore[no-any-return]  # tests/norm/test_recipes.py checks that each module is a Backend
