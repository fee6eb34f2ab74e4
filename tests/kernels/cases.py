"""Matrices with known singular values, and the distance of a direction from U V^T, for all tests of GPU kernels."""

from __future__ import annotations

import numpy as np

#: The dtypes of arrays for which there are kernels.
DTYPES = ("float32", "float16", "bfloat16")


def as_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def matrix(rng: np.random.Generator, rows: int, cols: int, spectrum: str = "gaussian") -> np.ndarray:
    """A float64 matrix: Gaussian, or random singular vectors with a named spectrum."""
    if spectrum == "gaussian":
        return rng.standard_normal((rows, cols))
    n = min(rows, cols)
    values = {
        "log": np.geomspace(1, 1e-2, n),
        "flat but one": np.r_[np.ones(n - 1), 1e-2],
        "low rank": np.r_[np.ones(max(1, n // 8)), np.full(n - max(1, n // 8), 1e-2)],
        "rank one": np.r_[1.0, np.zeros(n - 1)],
        "linear": np.linspace(1, 0, n),
        "orthogonal": np.ones(n),
    }[spectrum]
    left = np.linalg.qr(rng.standard_normal((rows, n)))[0]
    right = np.linalg.qr(rng.standard_normal((cols, n)))[0]
    return (left * values) @ right.T


SPECTRA = ("gaussian", "log", "flat but one", "low rank", "rank one", "linear", "orthogonal")


def worst(direction: np.ndarray, given: np.ndarray, above: float) -> float:
    """Largest deviation from 1 of the singular values of the direction, on singular vectors of ``given`` above a share of the largest.

    The direction's singular values on the other singular vectors may be anything from 0 to 1.
    """
    true = np.linalg.svd(given.astype(np.float64), compute_uv=False)
    kept = np.linalg.svd(direction.astype(np.float64), compute_uv=False)
    count = int((true >= above * true[0] * 0.999).sum())
    return max(np.abs(1 - kept[:count]).max(), kept[0] - 1)


def alignment(direction: np.ndarray, given: np.ndarray) -> float:
    """<given, direction> over the nuclear norm of ``given``: 1 for U V^T."""
    given = given.astype(np.float64)
    return float((given * direction.astype(np.float64)).sum() / np.linalg.svd(given, compute_uv=False).sum())
