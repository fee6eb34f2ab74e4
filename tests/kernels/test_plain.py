"""The portable maps on NumPy arrays: the same functions as on CuPy arrays, against float64 SVD."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import cases
import modula_rs as mr
import numpy as np
import pytest
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend.cupy import arithmetic, cuda, plain
from operations import Operations

way = Operations(plain)

DTYPES = (*cases.DTYPES, "float64")
SHAPES = [(1, 1), (1, 9), (9, 1), (17, 29), (29, 17), (100, 70), (131, 150)]


@pytest.fixture
def rng():
    return np.random.default_rng(12)


def stack(rng, count, rows, cols, dtype="float32", spectrum="gaussian", size=1.0):
    return np.stack([cases.matrix(rng, rows, cols, spectrum) * size for _ in range(count)]).astype(cases.as_dtype(dtype))


def norm(blocks):
    return np.linalg.norm(blocks.astype(np.float64), 2, axis=(1, 2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_dualize_keeps_the_promise(rng, rows, cols, dtype):
    given, scales = stack(rng, 2, rows, cols, dtype), np.array([1.0, 2.5])
    (made,) = way.dualize([Batch("spectral", 2, rows, cols)], [given], [scales])
    assert made.dtype == given.dtype
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 0)
    for block, matrix, scale in zip(made.astype(np.float64), given, scales, strict=True):
        assert cases.worst(block / scale, matrix, 1e-3) < 0.01 + 2 * rounding


LEVELS = [("standard", 1e-3, 0.01), ("fast", 0.01, 0.22), ("coarse", 0.01, 0.59)]


@pytest.mark.parametrize("spectrum", [*cases.SPECTRA, "steep"])
@pytest.mark.parametrize(("accuracy", "above", "promise"), LEVELS)
def test_every_level_on_every_spectrum(rng, spectrum, accuracy, above, promise):
    """The promises are those in `Module.dualize`."""
    if spectrum == "steep":
        u, _, vt = np.linalg.svd(rng.standard_normal((50, 61)), full_matrices=False)
        given = ((u * np.geomspace(1, 1e-3, 50)) @ vt)[None].astype(np.float32)
    else:
        given = stack(rng, 1, 50, 61, spectrum=spectrum)
    (made,) = way.dualize([Batch("spectral", 1, 50, 61)], [given], [1.0], accuracy)
    assert cases.worst(made[0], given[0], above) < promise


@pytest.mark.parametrize(("accuracy", "above", "promise"), LEVELS)
def test_a_flat_spectrum_with_one_small_value_is_the_hardest(rng, accuracy, above, promise):
    """For such a spectrum the Schatten-8 norm is largest relative to the largest singular value."""
    n = 300
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    given = ((u * np.r_[np.ones(n - 1), above]) @ v)[None].astype(np.float32)
    (made,) = way.dualize([Batch("spectral", 1, n, n)], [given], [1.0], accuracy)
    assert cases.worst(made[0], given[0], 0.999 * above) < promise


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e30, 1e38])
def test_size_does_not_matter(rng, size):
    exact = np.clip(stack(rng, 1, 33, 40, "float64"), -3, 3)
    given = (exact * size).astype(np.float32)
    batches = [Batch("spectral", 1, 33, 40)]
    (made,) = way.dualize(batches, [given], [1.0])
    assert cases.worst(made[0], given[0].astype(np.float64) / size, 0.05) < 0.01
    (normalized,), _ = way.normalize(batches, [given], [1.0])
    np.testing.assert_allclose(norm(normalized), 1, rtol=0.01)
    if size < 1e37:  # beyond that, the norm itself overflows float32
        np.testing.assert_allclose(plain.norms(batches, [given])[0], norm(given), rtol=0.01)
    (warm,), _ = way.normalize(batches, [given], [1.0], [None])
    np.testing.assert_allclose(norm(warm), 1, rtol=0.01)


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_doubles_of_any_size(rng, size):
    given = [stack(rng, 1, 9, 11, "float64", size=size), stack(rng, 1, 4, 5, "float64", size=size)]
    direction, rows = way.dualize([Batch("spectral", 1, 9, 11), Batch("row_rms", 1, 4, 5)], given, [1.0, 1.0])
    assert cases.worst(direction[0], given[0][0] / size, 1e-2) < 1e-3
    np.testing.assert_allclose((rows**2).mean(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_give_zeros(dtype):
    batches = [Batch("spectral", 2, 20, 30), Batch("row_rms", 1, 3, 5), Batch("rms", 1, 1, 7), Batch("max_abs", 1, 1, 7)]
    given = [np.zeros((b.count, b.rows, b.cols), cases.as_dtype(dtype)) for b in batches]
    scales = [1.0] * 4
    results = [*way.dualize(batches, given, scales), *way.normalize(batches, given, scales)[0], *way.project(batches, given, scales)]
    results += [*plain.norms(batches, given), *plain.dual_norms(batches, given)]
    made, (vectors, *_) = way.normalize(batches, given, scales, [None] * 4)
    assert not any(array.any() for array in (*results, *made, vectors))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(rng, bad):
    given = stack(rng, 2, 12, 15)
    given[0, 3, 4] = bad
    batches = [Batch("spectral", 2, 12, 15)]
    with np.errstate(invalid="ignore"):
        (made,) = way.dualize(batches, [given], [1.0])
        (normalized,), _ = way.normalize(batches, [given], [1.0])
        _, (estimates,) = way.normalize(batches, [given], [1.0], [None])
        (signs,) = way.dualize([Batch("max_abs", 1, 1, 15)], [given[:1, 3:4]], [1.0])
    assert np.isnan(made[0]).any()
    assert np.isnan(normalized[0]).any() or not normalized[0].any()
    assert np.isnan(signs).all()
    assert not estimates[0].any()  # no estimates, so that the next call searches anew
    assert np.isfinite(estimates[1]).all()
    assert cases.worst(made[1], given[1], 1e-3) < 0.01


@pytest.mark.parametrize(("rows", "cols"), [(40, 9), (9, 40)])
def test_gram_matrices_have_the_short_edge(rng, rows, cols, monkeypatch):
    squares = set()
    real = np.matmul
    monkeypatch.setattr(np, "matmul", lambda a, b: (squares.add((a.shape[1], b.shape[2])), real(a, b))[1])
    way.dualize([Batch("spectral", 1, rows, cols)], [stack(rng, 1, rows, cols)], [1.0])
    assert squares == {(9, 9), (9, 40)}


def test_equal_matrices_of_several_leaves_go_together(rng, monkeypatch):
    calls = []
    real = arithmetic.orthogonalise
    monkeypatch.setattr(plain, "orthogonalise", lambda xp, x, schedule: (calls.append(x.shape), real(xp, x, schedule))[1])
    batches = [Batch("spectral", 2, 9, 12), Batch("spectral", 1, 12, 9), Batch("spectral", 3, 9, 12), Batch("spectral", 0, 9, 12)]
    given = [stack(rng, b.count, b.rows, b.cols) if b.count else np.zeros((0, 9, 12), np.float32) for b in batches]
    made = way.dualize(batches, given, [np.arange(b.count) + 1.0 for b in batches])
    assert [shape for shape in calls if shape[1] == 9 and shape[0] == 5] == [(5, 9, 12)]
    for block, matrix, scale in zip(made[2], given[2], (1.0, 2.0, 3.0), strict=True):
        assert cases.worst(block / scale, matrix, 1e-3) < 0.01
    assert made[3].shape == (0, 9, 12)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(rng, spectrum, dtype):
    given = stack(rng, 2, 60, 45, dtype, spectrum)
    batches = [Batch("spectral", 2, 60, 45)]
    (found,) = plain.norms(batches, [given])
    np.testing.assert_allclose(found, norm(given), rtol=0.01)
    assert found.dtype == (np.float64 if dtype == "float64" else np.float32)
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 0)
    vectors = [None]
    for _ in range(4):
        (made,), vectors = way.normalize(batches, [given], [2.0], vectors)
        np.testing.assert_allclose(norm(made), 2, rtol=0.01 + rounding)
    assert vectors[0].shape == (2, VECTORS, 45)
    (nuclear,) = plain.dual_norms(batches, [given])
    np.testing.assert_allclose(nuclear, np.linalg.svd(given.astype(np.float64), compute_uv=False).sum(1), rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spectrum", ["gaussian", "linear", "rank one"])
@pytest.mark.parametrize(("rows", "cols"), [(60, 40), (40, 60), (280, 300), (5, 3), (3, 5), (1, 1), (7, 1), (1, 9)])
def test_estimates_are_those_of_modula_core(rng, rows, cols, spectrum, dtype):
    """From a cold start, then from estimates of a matrix that changes a little, then completely."""
    module, batches = mr.Linear(rows, cols), [Batch("spectral", 1, rows, cols)]
    assert module.leaves[0].shape == (rows, cols)
    given = stack(rng, 1, rows, cols, dtype, spectrum)
    ours = theirs = [np.zeros((1, VECTORS, cols), dtype)]
    for change in (0.0, 0.01, 0.01, 10.0, 0.01):
        given = (given + change * stack(rng, 1, rows, cols, dtype)).astype(dtype)
        (mine,), ours = way.normalize(batches, [given], [1.0], ours)
        (other,), theirs = module.normalize([given[0]], vectors=theirs)
        # The norm of modula-core's result is the unit of a Linear, not 1.
        np.testing.assert_allclose(mine[0] * np.linalg.norm(other) / np.linalg.norm(mine), other, rtol=1e-5, atol=1e-6)
        same = np.sign((ours[0] * theirs[0]).sum(-1, keepdims=True))  # the sign of a singular vector is arbitrary
        # Close singular values leave vectors that differ by what 1024-th powers of their ratio leave.
        np.testing.assert_allclose(ours[0], same * theirs[0], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axes", [(1, 2), (2,)])
def test_blocks_are_scaled_by_powers_of_two(rng, axes, dtype):
    given = np.array(
        [[[1.0, -1.0]], [[0.75, 0.1]], [[-1.999, 1e-30]], [[2.0, -3.5]], [[0.0, 0.0]], [[1e-40, 1e-41]], [[np.inf, 1.0]]], dtype
    )
    given = np.concatenate([given, np.array([[[np.nan, 2.0]]], dtype)])
    with np.errstate(invalid="ignore"):
        scaled, power = arithmetic.unit_range(np, given, axes)
    assert power.shape == (8, 1, 1)
    assert power.dtype == scaled.dtype == dtype
    np.testing.assert_array_equal(power[:5, 0, 0], [1, 0.5, 1, 2, 1])
    largest = np.abs(scaled).max((1, 2))
    assert ((largest[[0, 1, 2, 3, 5]] >= 1) & (largest[[0, 1, 2, 3, 5]] < 2)).all()
    assert not scaled[4].any()
    for i in (0, 1, 2, 3, 5):
        np.testing.assert_array_equal(scaled[i] * power[i], given[i])
    assert np.isinf(power[6:]).all()
    assert np.isnan(scaled[6:]).any((1, 2)).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_estimates_are_those_of_the_other_backends(rng, dtype):
    """From a cold start and over six steps of a changing matrix, beside modula-core and `jax.numpy`."""
    jax = pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
    from modula_rs.backend import jax as jax_backend

    backend = Operations(jax_backend)

    batches, atol = [Batch("spectral", 2, 40, 60)], 1e-4 if dtype == "float32" else 1e-9
    given = stack(rng, 2, 40, 60, dtype)
    with jax.enable_x64(dtype == "float64"):
        for name in ("rust", "jnp"):
            ours = theirs = [np.zeros((2, VECTORS, 60), dtype)]
            for _ in range(6):
                (mine,), ours = way.normalize(batches, [given], [1.0], ours)
                with jax_backend.cpu_backend(name):
                    (other,), theirs = backend.normalize(batches, [given], [np.ones(2)], [np.asarray(theirs[0])])
                np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)
                same = np.sign((ours[0] * np.asarray(theirs[0])).sum(-1, keepdims=True))  # the sign of a singular vector is arbitrary
                np.testing.assert_allclose(ours[0], same * theirs[0], atol=atol)
                given = (given + 0.03 * stack(rng, 2, 40, 60)).astype(dtype)


def test_only_stale_matrices_are_searched_anew(rng, monkeypatch):
    searched = []
    real = arithmetic.cold_norm
    monkeypatch.setattr(arithmetic, "cold_norm", lambda xp, x: (searched.append(len(x)), real(xp, x))[1])
    given, batches = stack(rng, 3, 50, 64), [Batch("spectral", 3, 50, 64)]
    _, vectors = way.normalize(batches, [given], [1.0], [None])
    given[2] = np.outer(rng.standard_normal(50), rng.standard_normal(64))
    (made,), _ = way.normalize(batches, [given], [1.0], vectors)
    assert searched == [3, 1]
    np.testing.assert_allclose(norm(made), 1, rtol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (3, 1100), (1, 64)])
def test_rows_and_vectors(rng, dtype, rows, cols):
    exact = stack(rng, 2, rows, cols, dtype)
    exact[0, 0] = 0
    given = exact.astype(np.float64)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 1e-6, "float64": 1e-14}[dtype]
    rms, largest = np.sqrt((given**2).mean(-1)), np.abs(given).max((1, 2))
    batches = [Batch("row_rms", 2, rows, cols), Batch("max_abs", 2, 1, rows * cols)]
    arrays, scales = [exact, exact.reshape(2, 1, -1)], [np.full(2, 2.0), np.full(2, 3.0)]
    found, duals = plain.norms(batches, arrays), plain.dual_norms(batches, arrays)
    np.testing.assert_allclose(found[0], rms.max(1), rtol=1e-6)
    np.testing.assert_allclose(found[1], largest, rtol=1e-6)
    np.testing.assert_allclose(duals[0], (cols * rms).sum(1), rtol=1e-6)
    np.testing.assert_allclose(duals[1], np.abs(given).sum((1, 2)), rtol=1e-6)
    by_row = np.divide(given, rms[..., None], out=np.zeros_like(given), where=rms[..., None] > 0)
    normalized, _ = way.normalize(batches, arrays, scales)
    directions, exact_ones = way.dualize(batches, arrays, scales), way.project(batches, arrays, scales)
    for made in (directions, normalized, exact_ones):
        np.testing.assert_allclose(made[0].astype(np.float64), 2 * by_row, rtol=rounding, atol=rounding)
    for made in (directions, exact_ones):
        np.testing.assert_array_equal(made[1].astype(np.float64), 3 * np.sign(arrays[1].astype(np.float64)))
    np.testing.assert_allclose(np.abs(normalized[1].astype(np.float64)).max((1, 2)), 3 * (largest > 0), rtol=rounding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_by_their_rms(rng, dtype):
    given = stack(rng, 3, 1, 50, dtype) * np.array([1, 0, 30]).reshape(3, 1, 1).astype(cases.as_dtype(dtype))
    exact, batches = given.astype(np.float64), [Batch("rms", 3, 1, 50)]
    rms = np.sqrt((exact**2).mean((1, 2)))
    np.testing.assert_allclose(plain.norms(batches, [given])[0], rms, rtol=1e-6)
    np.testing.assert_allclose(plain.dual_norms(batches, [given])[0], 50 * rms, rtol=1e-6)
    expected = np.divide(exact, rms[:, None, None], out=np.zeros_like(exact), where=rms[:, None, None] > 0)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 1e-6, "float64": 1e-14}[dtype]
    scales = [np.full(3, 2.0)]
    for (made,) in (
        way.normalize(batches, [given], scales)[0],
        way.dualize(batches, [given], scales),
        way.project(batches, [given], scales),
    ):
        np.testing.assert_allclose(made.astype(np.float64), 2 * expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(("dtype", "least", "atol"), [("float32", 1e-5, 1e-6), ("float64", 1e-10, 1e-13)])
@pytest.mark.parametrize(("rows", "cols"), [(40, 50), (90, 60)])
def test_project_leaves_nothing_between_zero_and_one(rng, rows, cols, dtype, least, atol):
    n = min(rows, cols)
    u, _, vt = np.linalg.svd(cases.matrix(rng, rows, cols), full_matrices=False)
    values = np.r_[np.geomspace(1, least, n - 10), np.zeros(10)]
    given = ((u * values) @ vt)[None].astype(dtype)
    (made,) = way.project([Batch("spectral", 1, rows, cols)], [given], [3.0])
    kept = np.linalg.svd(made[0].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(kept[: n - 10], 3, rtol=atol)
    assert kept[n - 10 :].max() < atol
    np.testing.assert_allclose(made[0] @ made[0].T @ made[0], 9 * made[0], atol=100 * atol)


def test_both_ways_take_the_same_arguments():
    for name in ("norms", "dual_norms", "apply"):
        ours, theirs = (list(inspect.signature(getattr(module, name)).parameters) for module in (plain, cuda))
        assert theirs[: len(ours)] == ours


def test_every_function_used_is_one_of_cupys():
    """NumPy stands in for CuPy in these tests, so functions that CuPy lacks must not be used."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: its functions are not known", exc_type=ImportError)
    used = set()

    class Noted:
        def __getattr__(self, name):
            used.add(name)
            return getattr(np, name)

    x = np.random.default_rng(0).standard_normal((2, 9, 12)).astype(np.float32)
    noted = Noted()
    x, _ = arithmetic.unit_range(noted, x)
    arithmetic.orthogonalise(noted, x, SimpleNamespace(steps=((1.5, -0.5, 0.0),)))
    arithmetic.warm_norm(noted, x, np.zeros((2, VECTORS, 12), np.float32))
    arithmetic.unit_rows(noted, x), arithmetic.row_norms(noted, x), arithmetic.max_abs(noted, x)
    assert used
    assert all(hasattr(cupy, name) for name in used), {name for name in used if not hasattr(cupy, name)}
