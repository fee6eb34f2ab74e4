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


def apply(op, batches, arrays, scales, *, vectors=None, accuracy="standard"):
    results = []
    for batch, given, scale in zip(batches, arrays, scales, strict=True):
        x = np.asarray(given, np.float64)
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
