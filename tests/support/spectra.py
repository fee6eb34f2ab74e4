"""Matrices with given singular values, on which every test of a spectral map runs."""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

SHAPES = [(96, 96), (40, 130), (130, 40), (1, 17)]


def spectra(rank: int) -> dict[str, Matrix]:
    """Singular values of every kind that has broken an estimate of norms or an orthogonalisation."""
    place = (np.arange(rank) + 0.5) / rank
    bulk = place[1:]
    return {
        "log-spaced 1 .. 1e-3": np.logspace(0, -3, rank),
        "log-spaced 1 .. 1e-5": np.logspace(0, -5, rank),
        "flat": np.ones(rank),
        "one outlier above": np.append(1.0, np.full(rank - 1, 1e-3)),
        "one a little above": np.append(1.0, np.full(rank - 1, 0.985)),
        "one below": np.append(np.ones(rank - 1), 1e-3),
        "rank one": np.append(1.0, np.zeros(rank - 1)),
        "rank 16": np.where(np.arange(rank) < 16, 1.0, 1e-3),
        "rank 16, the rest zero": np.where(np.arange(rank) < 16, 1.0, 0.0),
        "outlier, linear bulk": np.append(1.0, 0.97 * bulk),
        "outlier, arcsine bulk": np.append(1.0, 0.98 * np.sin(np.pi / 2 * bulk)),
        "outlier, Chebyshev bulk": np.append(1.0, np.sqrt(0.98 * (1 + np.cos(np.pi * bulk)) / 2)),
        "square-root edge": np.sqrt(place),
        "quadratic edge": 1 - 0.5 * place**2,
    }


def matrix(rows: int, cols: int, singular: Matrix, seed: int = 0) -> Matrix:
    """A matrix with random singular vectors."""
    rng = np.random.default_rng(seed)
    rank = len(singular)
    left, _ = np.linalg.qr(rng.standard_normal((rows, rank)))
    right, _ = np.linalg.qr(rng.standard_normal((cols, rank)))
    return (left * singular) @ right.T


def scattered(rows: int, cols: int, singular: Matrix, seed: int = 0) -> Matrix:
    """A matrix whose singular vectors are unit vectors, so that every row and column has at most one entry."""
    rng = np.random.default_rng(seed)
    entries = np.zeros((rows, cols))
    entries[rng.permutation(rows)[: len(singular)], rng.permutation(cols)[: len(singular)]] = singular
    return entries


def battery(rows: int, cols: int) -> dict[str, Matrix]:
    """Matrices of one shape, by name; the largest singular value of each is near 1."""
    cases = {}
    for name, singular in spectra(min(rows, cols)).items():
        cases[name] = matrix(rows, cols, singular)
        cases[f"{name}, scattered"] = scattered(rows, cols, singular)
    cases["Gaussian"] = np.random.default_rng(1).standard_normal((rows, cols)) / np.sqrt(max(rows, cols))
    cases["Cauchy"] = np.random.default_rng(1).standard_cauchy((rows, cols))
    return cases


def norm(entries: Matrix) -> float:
    """The spectral norm, from the SVD."""
    return float(np.linalg.norm(np.asarray(entries, np.float64), 2))


def direction_error(entries: Matrix, direction: Matrix, cutoff: float = 1e-3) -> float:
    """The distance of `direction` from orthogonal, on the singular vectors of `entries` above `cutoff` times the largest value.

    It is the spectral norm of U_1^T D V_1 - I, which includes wrong singular values and wrong singular vectors.
    """
    u, s, vt = np.linalg.svd(np.asarray(entries, np.float64), full_matrices=False)
    kept = s > cutoff * s[0] * (1 + 1e-4)
    inside = u[:, kept].T @ np.asarray(direction, np.float64) @ vt[kept].T
    return norm(inside - np.eye(int(kept.sum())))
