"""Block power iteration, run on the host over the shim: against the method in NumPy, against modula-core and jax.numpy, and over time."""

from __future__ import annotations

import cases
import host
import numpy as np
import pytest
from cards import A100
from modula_rs.constants import DROP_SHARE, SQUARINGS, STALE_SHARE, VECTORS
from modula_rs.kernels import maps
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand
from modula_rs.kernels.power import tiling
from operations import Operations

pytestmark = [pytest.mark.slow, pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)]

# Room for 1024 columns of float32 in a block, so that wider matrices take several tiles.
NARROW = A100._replace(shared=0)
# y and the sums are added up in the arithmetic of the array: up to a thousand terms, each rounded by a part in 2^24, and errors that mostly
# cancel: 30 parts in 2^24 make 2e-6.
TOLERANCE = {"float32": 3e-6, "float16": 3e-6, "bfloat16": 3e-6}


def step(arrays, vectors, device=H200, order=0):
    """Normalized arrays and new estimates, with guards around both."""
    operands = [Operand("spectral", len(a), *a.shape[1:], a.dtype.name, warm=True) for a in arrays]
    results, guards = zip(*(host.guarded(a.shape, a.dtype) for a in arrays), strict=True)
    moved, more = zip(*(host.guarded(v.shape, v.dtype) for v in vectors), strict=True)
    plan = maps.normalize(operands, device)
    host.run(plan, arrays, results, [np.ones(operand.count) for operand in operands], None, vectors, moved, order=order)
    assert all((g[: host.GUARD] == 0xAB).all() and (g[-host.GUARD :] == 0xAB).all() for g in guards + more), "stray write"
    return results, moved


def norms_of(given, result):
    """What the kernels divided by, from the largest entry of each matrix."""
    given, result = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (given, result))
    place = np.abs(given).argmax(1)[:, None]
    with np.errstate(invalid="ignore"):
        return (np.take_along_axis(given, place, 1) / np.take_along_axis(result, place, 1))[:, 0]


def orthonormalizer(gram):
    rows = np.zeros_like(gram)
    for j in range(len(gram)):
        row = np.eye(len(gram))[j]
        for known in rows[:j]:
            row = row - known @ gram @ row * known
        square = row @ gram @ row
        if square > DROP_SHARE * gram[j, j]:
            rows[j] = row / np.sqrt(square)
    return rows


def largest_eigenvalue(matrix):
    power = matrix
    for _ in range(SQUARINGS):
        power = power / power.max()
        power = power @ power
    row = power[np.diag(power).argmax()]
    return row @ matrix @ row / (row @ row)


def reference(matrix, vectors):
    """Norm and estimates after one step, in float64: rust/modula-core/src/linalg/subspace.rs, line by line."""
    matrix, vectors = np.asarray(matrix, np.float64), np.asarray(vectors, np.float64)
    y = matrix @ vectors.T
    image = orthonormalizer(y.T @ y) @ (y.T @ matrix)
    reached = image @ image.T
    before = ((y**2).sum(0) / (vectors**2).sum(1)).max()
    square = largest_eigenvalue(reached)
    assert before > STALE_SHARE * square, "the test's vectors are stale"
    basis = orthonormalizer(reached)
    return np.sqrt(square), basis @ image, (basis != 0).any(1)


def near(rng, given, noise=0.05):
    """Estimates that are not stale: a matrix's leading singular vectors, and noise."""
    count, _, cols = given.shape
    right = np.linalg.svd(np.asarray(given, np.float64), full_matrices=False)[2][:, :VECTORS]
    vectors = np.zeros((count, VECTORS, cols))
    vectors[:, : right.shape[1]] = right
    vectors += noise * rng.standard_normal(vectors.shape) / np.sqrt(cols)
    return vectors.astype(np.float32)


def stack(rng, count, rows, cols, dtype="float32", size=1.0):
    return (rng.standard_normal((count, rows, cols)) * size).astype(cases.as_dtype(dtype))


SHAPES = [(9, 1), (1, 9), (1, 1), (13, 40), (200, 35), (40, 1100), (37, 131)]


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("device", [H200, NARROW], ids=["one tile", "tiles"])
@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_one_step_is_that_of_the_method(rng, rows, cols, dtype, device):
    given = stack(rng, 2, rows, cols, dtype)
    vectors = near(rng, given)
    (result,), (moved,) = step([given], [vectors], device)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}.get(dtype, TOLERANCE[dtype])
    for matrix, v, made, u in zip(given, vectors, result, moved, strict=True):
        norm, expected, kept = reference(matrix, v)
        np.testing.assert_allclose(made.astype(np.float64), matrix.astype(np.float64) / norm, rtol=2 * rounding, atol=rounding)
        # What is nearly lost is known less well: the square root of LOST is a thirtieth.
        np.testing.assert_allclose(u[kept], expected[kept], atol=100 * TOLERANCE[dtype])
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e-44, 1e38])
@pytest.mark.parametrize("device", [H200, NARROW], ids=["one tile", "tiles"])
def test_size_does_not_matter(rng, size, device):
    given = np.clip(stack(rng, 1, 30, 1100), -3, 3)
    given = (given * size).astype(np.float32)
    vectors = near(rng, given)
    (result,), (moved,) = step([given], [vectors], device)
    exact = given[0].astype(np.float64) / size
    norm, expected, _ = reference(exact, vectors[0])
    np.testing.assert_allclose(result[0], exact / norm, rtol=3e-6, atol=1e-9)
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)


def test_rows_of_very_different_sizes(rng):
    """The shift follows the largest entry so far, up and never down."""
    given = stack(rng, 1, 60, 50) * np.geomspace(1e-42, 1e30, 60)[None, :, None].astype(np.float32)
    for matrix in (given, given[:, ::-1].copy(), rng.permuted(given, axis=1)):
        vectors = near(rng, matrix)
        (result,), _ = step([matrix], [vectors])
        norm, _, _ = reference(matrix[0].astype(np.float64) * 2.0**-100, vectors[0])
        np.testing.assert_allclose(norms_of(matrix, result), norm * 2.0**100, rtol=3e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_threads_changes_no_bit(rng, order):
    given = [stack(rng, 2, 30, 33), stack(rng, 1, 20, 1100), stack(rng, 1, 9, 3000), stack(rng, 1, 50, 130, "float16")]
    for vectors in ([near(rng, g) for g in given], [np.zeros_like(near(rng, g)) for g in given]):
        first, again = (step(given, vectors, NARROW, order=o) for o in (0, order))
        for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(1, 9), (9, 1), (64, 48), (40, 1100), (200, 35)])
def test_cold_start_finds_the_norm(rng, rows, cols, dtype):
    given = stack(rng, 2, rows, cols, dtype)
    nothing = np.zeros((2, VECTORS, cols), np.float32)
    for device in (H200, NARROW):
        (result,), (moved,) = step([given], [nothing], device)
        true = np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
        np.testing.assert_allclose(norms_of(given, result), true, rtol=0.01)
        np.testing.assert_allclose(np.linalg.norm(np.einsum("brc,bc->br", given.astype(np.float64), moved[:, 0]), axis=1), true, rtol=0.01)
        np.testing.assert_allclose(np.linalg.norm(moved, axis=2), 1, atol=1e-5)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
def test_cold_then_warm_stays_at_the_norm(rng, spectrum):
    """Ten calls, the first with estimates of zero: the norms of the cold start and of the warm steps agree."""
    given = np.stack([cases.matrix(rng, *shape, spectrum) for shape in [(60, 80)] * 2]).astype(np.float32)
    true = np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
    vectors = np.zeros((2, VECTORS, 80), np.float32)
    found = []
    for _ in range(10):
        (result,), (vectors,) = step([given], [vectors.copy()])
        found.append(norms_of(given, result))
    np.testing.assert_allclose(found, np.broadcast_to(true, (10, 2)), rtol=0.01)
    np.testing.assert_allclose(found[-1], true, rtol=2e-3)


def test_only_stale_estimates_start_cold(rng):
    """Of three matrices one has good estimates, one has none, and one has stale ones, because the matrix has changed."""
    given = stack(rng, 3, 50, 64)
    vectors = near(rng, given)
    vectors[1] = 0
    given[2] = np.outer(rng.standard_normal(50), rng.standard_normal(64))
    (result,), (moved,) = step([given], [vectors])
    found, true = norms_of(given, result), np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
    np.testing.assert_allclose(found, true, rtol=0.01)
    norm, expected, _ = reference(given[0], vectors[0])
    assert found[0] == pytest.approx(norm, rel=3e-6)
    np.testing.assert_allclose(moved[0], expected, atol=1e-5)


def test_zeros_and_what_is_not_finite(rng):
    given = stack(rng, 4, 20, 30)
    given[0] = 0
    given[1, 3, 4] = np.nan
    given[2, 3, 4] = np.inf
    vectors = near(rng, np.nan_to_num(given, posinf=0.0))
    for start in (vectors, np.zeros_like(vectors)):
        (result,), (moved,) = step([given], [start])
        assert not result[0].any()
        assert not moved[:3].any()
        assert np.isnan(result[1, 3, 4])
        assert np.isnan(result[2, 3, 4])
        assert np.linalg.norm(result[3], 2) == pytest.approx(1, rel=0.01)


def test_values_are_those_of_the_cpu(rng):
    """From one state, through five small changes of the matrix, beside modula-core inside jax.jit and beside jax.numpy."""
    jax = pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
    from modula_rs.backend import Batch
    from modula_rs.backend import jax as backend
    from modula_rs.backend.jax.matrices import Matrices
    from modula_rs.backend.jax.norms import warm_norm as in_jnp

    rows, cols = 40, 60
    given = stack(rng, 1, rows, cols)
    state = near(rng, given)
    group = [Batch("spectral", 1, rows, cols)]
    core = pure = state

    @jax.jit
    def warm_norm(x, vectors):
        matrices = Matrices([x])
        norm, following = in_jnp(matrices, vectors)
        return norm * matrices.powers, following

    for _ in range(5):
        given = (given + 0.03 * stack(rng, 1, rows, cols)).astype(np.float32)
        (result,), (state,) = step([given], [np.array(state)])
        with backend.cpu_backend("rust"):
            (expected,), (core,) = Operations(backend).normalize(group, [given], [np.ones(1)], [np.asarray(core)])
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(state, core, atol=1e-4)
        norm, pure = warm_norm(given, np.asarray(pure))
        np.testing.assert_allclose(norms_of(given, result), norm[:, 0, 0], rtol=1e-5)
        np.testing.assert_allclose(state, pure, atol=1e-4)


def test_cold_values_are_those_of_modula_core(rng):
    from modula_rs.backend import Batch

    pytest.importorskip("jax", reason="JAX is not installed: nothing to compare with")
    from modula_rs.backend import jax as backend

    given = stack(rng, 2, 50, 70)
    nothing = np.zeros((2, VECTORS, 70), np.float32)
    (result,), (moved,) = step([given], [nothing])
    with backend.cpu_backend("rust"):
        (expected,), (estimates,) = Operations(backend).normalize([Batch("spectral", 2, 50, 70)], [given], [np.ones(2)], [nothing])
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(moved[:, 1:], estimates[:, 1:], atol=1e-6)
    np.testing.assert_allclose(np.abs((moved[:, 0] * np.asarray(estimates)[:, 0]).sum(-1)), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(130, 64), (7, 11)])
def test_rescale_by_factors_beyond_floats(rng, rows, cols, dtype):
    """Entries, norms and scales from the smallest to the largest: within a rounding or two of the product in doubles."""
    given = rng.standard_normal((rows, cols))
    given *= np.geomspace(1e-6, 1, rows)[:, None] / np.abs(given).max()
    rounding = {"bfloat16": 2**-8, "float32": 2**-23}[dtype]
    sizes = {"float32": [3e-44, 1e-39, 1e-30, 1.0, 1e30, 3e38], "bfloat16": [1e-30, 1.0, 1e30]}[dtype]
    for size in sizes:
        array = (given * size).astype(cases.as_dtype(dtype))[None]
        exact = array.astype(np.float64)
        vectors = near(rng, array)
        for scale in (1.0, -1e-3, 1e20):
            operand = Operand("spectral", 1, rows, cols, dtype, warm=True)
            plan = maps.normalize([operand], H200)
            result, moved = np.empty_like(array), np.empty_like(vectors)
            host.run(plan, [array], [result], [np.array([scale])], None, [vectors], [moved])
            norm = np.sqrt(np.linalg.eigvalsh((exact[0] / size).T @ (exact[0] / size))[-1])
            expected = exact / size / norm * scale
            np.testing.assert_allclose(result.astype(np.float64), expected, rtol=rounding + 1e-3, atol=abs(scale) * 1e-12)
            ratio = result.astype(np.float64)[exact != 0] / (exact[exact != 0] / size)
            kept = np.abs(expected[exact != 0]) > 1e-36
            assert np.ptp(ratio[kept]) <= 2 * rounding * np.abs(ratio[kept]).max()


def test_tilings_fill_the_processors():
    for rows, cols, count in ((768, 768, 48), (3072, 768, 12), (1024, 4096, 64), (50257, 768, 1), (8192, 8192, 1)):
        cut = tiling(Operand("spectral", count, rows, cols), count, H200)
        resident = H200.processors * min(512 // cut.threads, 232_448 // cut.shared)
        blocks = cut.stripes * cut.tiles * count
        assert blocks / (-(-blocks // resident) * resident) > 0.9
        assert cut.stripes * cut.rows_per_stripe >= rows
        assert cut.tiles * cut.tile_cols >= cols


@pytest.fixture
def rng():
    return np.random.default_rng(23)
