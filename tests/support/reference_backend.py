"""A backend for NumPy arrays by singular value decompositions in float64: a short reference for all other backends."""

from __future__ import annotations

import numpy as np


def _matrix_direction(x):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * (s > 1e-12 * s.max(initial=0))) @ vt


def _rows_over(x, norm):
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def _rms(x):
    return np.sqrt((x * x).mean(-1, keepdims=True)) if x.shape[-1] else np.zeros((*x.shape[:-1], 1))


def _bent(y):
    p = y - y**3
    return p + p**3


def _of_sizes(op, sizes, scale):
    """What an operation makes of singular values (largest first), RMS of rows, or entries."""
    match op:
        case "hard_cap":
            return np.minimum(sizes, scale)
        case "soft_cap" if np.isfinite(scale):
            return scale * _bent(sizes / scale * min(1.0, 3**-0.5 * scale / max(sizes.max(initial=0), 1e-300)))
        case "set_top":
            return np.where(np.arange(sizes.size) == 0, scale, sizes) if sizes.any() else sizes
        case "scale_top":
            return np.where(np.arange(sizes.size) == 0, sizes * scale, sizes)
    return sizes


def _resized(op, geometry, block, scale):
    if not block.size:
        return block
    if geometry == "spectral":
        u, s, vt = np.linalg.svd(block, full_matrices=False)
        return (u * _of_sizes(op, s, scale)) @ vt
    if geometry == "max_abs" and op in ("hard_cap", "soft_cap"):
        return np.sign(block) * _of_sizes(op, np.abs(block), scale)
    return np.stack([_rows_over(row, _rms(row)) * _of_sizes(op, _rms(row), scale) for row in block])


def apply(op, batches, arrays, scales, *, vectors=None, accuracy="standard"):
    results = []
    for batch, given, scale in zip(batches, arrays, scales, strict=True):
        x = np.asarray(given, np.float64)
        if op in ("hard_cap", "soft_cap", "set_top", "scale_top"):
            parts = zip(x, np.broadcast_to(scale, len(x)), strict=True)
            made = [_resized(op, batch.geometry, block, size) for block, size in parts]
            results.append(np.reshape(made, given.shape).astype(given.dtype))
            continue
        match batch.geometry, op:
            case "spectral", "unit":
                norm = np.linalg.norm(x, 2, axis=(-2, -1), keepdims=True) if x.size else np.zeros((len(x), 1, 1))
                x = _rows_over(x, norm)
            case "spectral", _:
                x = np.stack([_matrix_direction(block) for block in x]) if x.size else x
            case "max_abs", "unit":
                x = _rows_over(x, np.abs(x).max((-2, -1), keepdims=True, initial=0))
            case "max_abs", _:
                x = np.sign(x)
            case _:
                x = _rows_over(x, _rms(x))
        results.append((x * np.asarray(scale, np.float64)[:, None, None]).astype(given.dtype))
    return results, list(vectors) if vectors is not None else [None] * len(results)


def norms(batches, arrays):
    found = []
    for batch, given in zip(batches, arrays, strict=True):
        x = np.asarray(given, np.float64)
        match batch.geometry:
            case "spectral":
                found.append(np.linalg.norm(x, 2, axis=(-2, -1)) if x.size else np.zeros(len(x)))
            case "max_abs":
                found.append(np.abs(x).max((-2, -1), initial=0))
            case _:
                found.append(_rms(x).max((-2, -1), initial=0))
    return found


def dual_norms(batches, arrays):
    directions, _ = apply("exact", batches, arrays, [np.ones(batch.count) for batch in batches])
    return [(np.asarray(x, np.float64) * d).sum((-2, -1)) for x, d in zip(arrays, directions, strict=True)]
