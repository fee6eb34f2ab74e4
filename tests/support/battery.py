"""A module with every atom, and arrays of every kind for it, on which each contract of the maps is tested."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import modula_rs as mr
import numpy as np
from recursion import atom_norm

BACKENDS = ["numpy", "jax"]
DTYPES = ["float64", "float32", "float16", "bfloat16"]


@cache
def model() -> mr.Module:
    """Every atom, in several sizes, alone and in powers, under scalars. Flatten has open sizes, so it lets any atom follow any other."""
    parts = {
        "linear": mr.Linear(6, 4),
        "wide": mr.Linear(4, 6),
        "one": mr.Linear(1, 1),
        "nothing_out": mr.Linear(0, 3),
        "nothing_in": mr.Linear(3, 0),
        "table": mr.Embed(4, 7),
        "empty_table": mr.Embed(4, 0),
        "one_row": mr.Embed(1, 1),
        "taps": mr.Conv2D(3, 2),
        "one_tap": mr.Conv2D(3, 2, (1, 1), 1, 0),
        "bias": mr.Bias(5),
        "bias_of_one": mr.Bias(1),
        "no_bias": mr.Bias(0),
        "scale": mr.Scale(5),
        "light": mr.Linear(6, 4, mass=0.5),
        "untrained": mr.Linear(6, 4, mass=0),
    }
    whole = mr.Identity()
    for name, part in parts.items():
        whole = 1.5 * (mr.Flatten() @ part.named(name)) @ whole
    powers = (0.5 * mr.Linear(4, 4).named("block")) ** 4 @ ((mr.Bias(4).named("shift") @ mr.Scale(4).named("gain")) ** 2) ** 3
    return powers.named("powers") @ mr.Flatten() @ whole


def eps(dtype: str) -> float:
    return float(ml_dtypes.finfo(dtype).eps)


def arrays(kind: str, dtype: str, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """NumPy arrays for the model's leaves, within the range of their dtype."""
    rng, info = np.random.default_rng(seed), ml_dtypes.finfo(dtype)
    narrow = dtype == "float16"

    def make(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        values, matrix = rng.standard_normal(shape), len(shape) > 1
        match kind:
            case "zero":
                return np.zeros(shape)
            case "huge":
                return values * (1e4 if narrow else 1e30)
            case "tiny":
                return values * (1e-5 if narrow else 1e-30)
            case "rank one" if matrix:
                return rng.standard_normal((*shape[:-1], 1)) * rng.standard_normal((*shape[:-2], 1, shape[-1]))
            case "uneven" if matrix:  # rows have very different sizes
                return values * np.where(np.arange(shape[-2]) % 2, 1e-3, 1.0)[:, None]
            case "largest":
                return np.where(values < 0, -1, 1) * float(info.max)
            case "smallest":
                return np.where(values < 0, -1, 1) * float(info.smallest_subnormal)
        return values

    return [make(leaf.shape).astype(np.dtype(dtype)) for leaf in model().leaves]


def to(backend: str, arrays: list[np.ndarray[Any, Any]]) -> list[Any]:
    return [jnp.asarray(a) for a in arrays] if backend == "jax" else arrays


def wide(array: Any) -> np.ndarray[Any, Any]:
    return np.asarray(array).astype(np.float64)


def check_like(made: list[Any], given: list[Any]) -> None:
    """Checks that results have the number, shapes, dtypes and library of the given arrays, and are finite."""
    for result, array in zip(made, given, strict=True):
        assert (result.shape, result.dtype) == (array.shape, array.dtype)
        assert isinstance(result, jax.Array) == isinstance(array, jax.Array)
        assert np.isfinite(wide(result)).all()


def copies(leaf: Any, array: Any) -> np.ndarray[Any, Any]:
    """The array as (copies, *shape of one copy), in float64."""
    shape = next(row.shape for row in model().targets() if row.path == leaf.path)
    return wide(array).reshape(leaf.copies, *shape)


@cache
def targets() -> dict[str, list[float]]:
    """The targets of each leaf's copies, in order."""
    found: dict[str, list[float]] = {}
    for row in model().targets():
        found.setdefault(row.path, []).append(row.target)
    return found


def blocks(kind: str, w: np.ndarray[Any, Any]) -> tuple[list[np.ndarray[Any, Any]], float]:
    """The blocks by which one copy's array is measured (matrices, rows or vectors), and a block's norm where the atom's norm is 1."""
    match kind:
        case "Linear":
            return [w], math.sqrt(w.shape[0] / w.shape[1]) if w.size else 0.0
        case "Conv2D":
            taps = w.reshape(-1, *w.shape[2:])
            return list(taps), math.sqrt(w.shape[2] / w.shape[3]) / len(taps)
        case "Embed":
            return list(w), 1.0
    return [w], 1.0


def measure(kind: str, block: np.ndarray[Any, Any]) -> float:
    """The geometric norm of one block, in float64 and without leaving its range."""
    top = float(np.abs(block).max(initial=0))
    if top == 0:
        return 0.0
    unit = block / top
    if kind in ("Linear", "Conv2D"):
        return top * float(np.linalg.norm(unit, 2))
    return top * (float(np.sqrt((unit**2).mean())) if kind in ("Embed", "Bias") else 1.0)


def norm(given: list[Any]) -> float:
    """The modular norm."""
    values = [0.0]
    for leaf, array in zip(model().leaves, given, strict=True):
        for w, target in zip(copies(leaf, array), targets()[leaf.path], strict=True):
            if target > 0 and w.size:
                values.append(atom_norm(leaf.kind, w) / target)
    return max(values)


def each_block(given: list[Any], *made: list[Any]) -> Any:
    """For each non-empty block: leaf, target in geometric terms, unit, given block, and the resulting blocks."""
    for index, leaf in enumerate(model().leaves):
        stacks = [copies(leaf, arrays[index]) for arrays in (given, *made)]
        for target, *parts in zip(targets()[leaf.path], *stacks, strict=True):
            split = [blocks(leaf.kind, part) for part in parts]
            unit = split[0][1]
            for block in zip(*(group for group, _ in split), strict=True):
                if block[0].size:
                    yield leaf, target * unit, unit, *block
