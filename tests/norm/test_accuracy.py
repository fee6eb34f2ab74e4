"""The accuracy of dualize and normalize on every spectrum that has broken an implementation, against float64 SVD."""

import functools

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from battery import BACKENDS, eps
from spectra import battery, direction_error, norm

SHAPES = {"numpy": [(64, 64), (32, 200), (200, 32), (1, 40), (40, 1), (17, 23)], "jax": [(48, 48), (24, 100)]}
CASES = [(backend, shape, dtype) for backend in BACKENDS for shape in SHAPES[backend] for dtype in ("float64", "float32")]
CASES += [("numpy", (64, 64), "float16"), ("numpy", (64, 64), "bfloat16"), ("jax", (48, 48), "bfloat16")]


named_spectra = functools.cache(battery)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1][0]}x{case[1][1]}-{case[2]}")
def stacked(request):
    """A module with one Linear for each spectrum, its weights, and the names of the spectra."""
    backend, (rows, cols), dtype = request.param
    named = named_spectra(rows, cols)
    m = mr.Add() @ tuple(mr.Linear(rows, cols) for _ in named)
    with jax.enable_x64(dtype == "float64"):
        given = [entries.astype(np.dtype(dtype)) for entries in named.values()]
        yield m, [jnp.asarray(a) for a in given] if backend == "jax" else given, list(named), dtype


@pytest.mark.slow
def test_dualize(stacked):
    m, given, names, dtype = stacked
    for name, entries, made, leaf in zip(names, given, m.dualize(given), m.targets(), strict=True):
        direction = np.asarray(made, np.float64) / (leaf.target * np.sqrt(entries.shape[0] / entries.shape[1]))
        # Rounding moves every entry of the result by eps/2 of its size, so a singular value by at most eps/2 of the Frobenius norm.
        rounding = 0.5 * eps(dtype) * min(entries.shape) ** 0.5
        assert direction_error(entries, direction) < 0.01 + rounding, name
        assert norm(direction) < 1.01 + rounding, name


def test_normalize(stacked):
    m, given, names, dtype = stacked
    for name, entries, made, leaf in zip(names, given, m.normalize(given, 3.0), m.targets(3.0), strict=True):
        wanted = leaf.target * np.sqrt(entries.shape[0] / entries.shape[1])
        assert norm(made) == pytest.approx(wanted, rel=0.01 + eps(dtype)), name
        exact = np.asarray(entries, np.float64)
        factor = norm(made) / norm(exact)
        np.testing.assert_allclose(
            np.asarray(made, np.float64), exact * factor, rtol=2 * eps(dtype), atol=eps(dtype) * wanted, err_msg=name
        )


@pytest.mark.slow
def test_norm_and_dual_norm(stacked):
    m, given, _, _ = stacked
    exact = [np.asarray(a, np.float64) for a in given]
    units = [np.sqrt(a.shape[0] / a.shape[1]) for a in exact]
    targets = [leaf.target for leaf in m.targets()]
    largest = max(norm(a) / unit / t for a, unit, t in zip(exact, units, targets, strict=True))
    assert float(m.norm(given)) == pytest.approx(largest, rel=0.01)
    dual = sum(np.linalg.norm(a, "nuc") * unit * t for a, unit, t in zip(exact, units, targets, strict=True))
    assert float(m.dual_norm(given)) == pytest.approx(dual, rel=1e-3)
    gain = sum(float((a * np.asarray(d, np.float64)).sum()) for a, d in zip(exact, m.dualize(given), strict=True))
    assert gain == pytest.approx(float(m.dual_norm(given)), rel=0.011)


def test_project(stacked):
    m, given, names, dtype = stacked
    for name, entries, made in zip(names, given, m.project(given), strict=True):
        exact = np.asarray(entries, np.float64)
        singular = np.linalg.svd(exact, compute_uv=False)
        unit = np.sqrt(exact.shape[0] / exact.shape[1])
        # Singular values below the rounding of the entries are noise.
        kept = singular > 1e-9 * singular[0] if dtype == "float64" else singular > 2e-4 * singular[0]
        found = np.linalg.svd(np.asarray(made, np.float64) / unit, compute_uv=False)
        np.testing.assert_allclose(found[: kept.sum()], 1, atol=1e-6 + eps(dtype) * min(exact.shape) ** 0.5, err_msg=name)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_the_direction_does_not_depend_on_the_scale(scale):
    entries = named_spectra(64, 64)["log-spaced 1 .. 1e-3"]
    m = mr.Linear(64, 64)
    (plain,), (scaled,) = m.dualize([entries.astype(np.float32)]), m.dualize([(entries * scale).astype(np.float32)])
    # The scale is no power of two, so entries are rounded again. The first stage multiplies the rounding by its slope at zero, 427; the
    # tolerance is eight such roundings.
    np.testing.assert_allclose(plain, scaled, rtol=0, atol=8 * 427 * 2**-24)


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_steps_asked_for(steps):
    named = named_spectra(48, 64)
    m = mr.Linear(48, 64)
    for name, entries in named.items():
        (made,) = m.dualize([entries.astype(np.float32)], steps=steps)
        assert np.isfinite(made).all(), name
        assert norm(made / np.sqrt(48 / 64)) < 2, name  # every step of the minimax schedule stays within 1 +- 1
        assert float((entries * made).sum()) > 0, name


@pytest.mark.slow
def test_a_cold_norm_is_that_of_the_largest_singular_value():
    """Even if the start vector has almost no share of its singular vector, as in one of a thousand small matrices.

    There the residual is small at another singular value.
    """
    rng = np.random.default_rng(5)
    for _ in range(4000):
        rows, cols = (int(n) for n in rng.integers(2, 40, 2))
        (update,) = mr.Linear(rows, cols).normalize([rng.standard_normal((rows, cols))])
        assert np.linalg.norm(update, 2) == pytest.approx((rows / cols) ** 0.5, rel=0.01)
