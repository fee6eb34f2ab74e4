"""The maps on a real GPU, by whatever is chosen there, at odd sizes, against float64 SVD; the CUDA graph; the JAX route.

``MODULA_RS_GPU_BACKEND`` chooses: "auto" (proved kernels, and the portable way for the rest), "kernels", or "portable".
"""

from __future__ import annotations

import cases
import numpy as np
import pytest
from modula_rs.backend import VECTORS, Batch
from operations import Operations

pytestmark = pytest.mark.gpu

PROMISES = {"float16": (0.01, 0.02), "bfloat16": (0.01, 0.02), "float32": (1e-3, 0.01), "float64": (1e-3, 0.01)}
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11}
SHAPES = [
    (1, 1, 1), (3, 17, 29), (5, 29, 17), (4, 64, 500), (3, 100, 64), (2, 129, 257), (2, 193, 800), (2, 256, 256), (3, 255, 1001),
    (2, 257, 300), (2, 300, 270), (1, 513, 1025), (5, 768, 768), (1, 3072, 768), (1, 1025, 1500), (1, 2000, 2040), (1, 700, 20000),
    (6, 60, 3000), (3, 1000, 128), (2, 120, 1800), (1, 1500, 2000),
]  # fmt: skip


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def on_gpu(array: np.ndarray):
    import cupy

    return cupy.asarray(array)


def host(array) -> np.ndarray:
    return array.get().astype(np.float64)


@pytest.mark.parametrize("dtype", PROMISES)
@pytest.mark.parametrize(("count", "rows", "cols"), SHAPES)
def test_dualize_at_odd_sizes(rng, count, rows, cols, dtype):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    above, promise = PROMISES[dtype]
    given = np.stack([cases.matrix(rng, rows, cols, cases.SPECTRA[i % len(cases.SPECTRA)]) for i in range(count)])
    given = given.astype(cases.as_dtype(dtype))
    scales = np.arange(1.0, count + 1)
    array = on_gpu(given)
    (direction,) = backend.dualize([Batch("spectral", count, rows, cols)], [array], [scales])
    assert direction.dtype == array.dtype
    for block, matrix, scale in zip(host(direction), given, scales, strict=True):
        assert cases.worst(block / scale, matrix, above) < promise + 2 * ROUNDING.get(dtype, 0)
    np.testing.assert_array_equal(array.get(), given)


@pytest.mark.parametrize(("accuracy", "promise"), [("fast", 0.22), ("coarse", 0.59)])
@pytest.mark.parametrize(("count", "rows", "cols"), [(2, 40, 70), (1, 400, 333)])
def test_levels_of_accuracy(rng, count, rows, cols, accuracy, promise):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    given = np.stack([cases.matrix(rng, rows, cols, "log") for _ in range(count)]).astype(np.float32)
    (direction,) = backend.dualize([Batch("spectral", count, rows, cols)], [on_gpu(given)], [1.0], accuracy)
    assert all(cases.worst(a, b, 0.01) < promise for a, b in zip(host(direction), given, strict=True))


@pytest.mark.parametrize(("count", "rows", "cols"), SHAPES)
def test_norms_and_normalize(rng, count, rows, cols):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    given = np.stack([cases.matrix(rng, rows, cols, cases.SPECTRA[i % len(cases.SPECTRA)]) for i in range(count)]).astype(np.float32)
    batches = [Batch("spectral", count, rows, cols)]
    expected = np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
    (norms,) = backend.norms(batches, [on_gpu(given)])
    np.testing.assert_allclose(host(norms), expected, rtol=0.01)
    (cold,), _ = backend.normalize(batches, [on_gpu(given)], [1.0])
    np.testing.assert_allclose(np.linalg.norm(host(cold), 2, axis=(1, 2)), 1, rtol=0.01)
    # The first call starts without estimates, later calls from estimates. Each finds the norm, the last with converged vectors.
    vectors = [None]
    for _ in range(6):
        (warm,), vectors = backend.normalize(batches, [on_gpu(given)], [1.0], vectors)
        np.testing.assert_allclose(np.linalg.norm(host(warm), 2, axis=(1, 2)), 1, rtol=0.01)
    assert vectors[0].shape == (count, VECTORS, cols)
    norm = np.linalg.norm(np.einsum("brc,bc->br", given.astype(np.float64), host(vectors[0])[:, 0]), axis=1)
    np.testing.assert_allclose(norm, expected, rtol=0.01)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("count", "rows", "cols"), [(2, 40, 70), (3, 77, 1030), (1, 700, 4096), (1, 333, 9001), (1, 5000, 33)])
def test_one_warm_step_is_that_of_the_method(rng, count, rows, cols, dtype):
    from modula_rs.backend import cupy

    backend = Operations(cupy)
    from test_power_host import TOLERANCE, near, reference

    given = rng.standard_normal((count, rows, cols)).astype(cases.as_dtype(dtype))
    vectors = near(rng, given)
    (made,), (moved,) = backend.normalize([Batch("spectral", count, rows, cols)], [on_gpu(given)], [1.0], [on_gpu(vectors)])
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}.get(dtype, TOLERANCE[dtype])
    for matrix, v, ours, u in zip(given, vectors, host(made), host(moved), strict=True):
        norm, expected, kept = reference(matrix, v)
        np.testing.assert_allclose(ours, matrix.astype(np.float64) / norm, rtol=3 * rounding, atol=rounding)
        np.testing.assert_allclose(u[kept], expected[kept], atol=100 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (1000, 1025), (3, 4096), (1, 100_003)])
def test_rows_and_vectors(rng, rows, cols, dtype):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    given = rng.standard_normal((1, rows, cols)).astype(cases.as_dtype(dtype))
    given[0, 0, 0] = 0
    exact = given.astype(np.float64)
    batches = [Batch("row_rms", 1, rows, cols), Batch("max_abs", 1, 1, rows * cols)]
    arrays = [on_gpu(given), on_gpu(given.reshape(1, 1, -1))]
    rms = np.sqrt((exact**2).mean(-1, keepdims=True))
    rounding = {"bfloat16": 2**-8, "float16": 2**-10}.get(dtype, 1e-6)
    table, signs = backend.dualize(batches, arrays, [2.0, 3.0])
    np.testing.assert_allclose(host(table), 2 * exact / rms, rtol=rounding, atol=rounding)
    np.testing.assert_array_equal(host(signs).ravel(), 3 * np.sign(exact).ravel())
    norms, duals = backend.norms(batches, arrays), backend.dual_norms(batches, arrays)
    np.testing.assert_allclose([host(n)[0] for n in norms], [rms.max(), np.abs(exact).max()], rtol=1e-6)
    np.testing.assert_allclose([host(n)[0] for n in duals], [cols * rms.sum(), np.abs(exact).sum()], rtol=1e-6)


def test_project_and_nuclear_norm(rng):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    given = np.stack([cases.matrix(rng, 90, 130, "log")] * 2).astype(np.float32)
    batches = [Batch("spectral", 2, 90, 130)]
    u, s, vt = np.linalg.svd(given.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(host(backend.project(batches, [on_gpu(given)], [1.0])[0]), u @ vt, atol=1e-5)
    np.testing.assert_allclose(host(backend.dual_norms(batches, [on_gpu(given)])[0]), s.sum(-1), rtol=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("edge", [50, 300])
def test_scale_does_not_matter(rng, size, edge):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    given = (cases.matrix(rng, edge, edge + 9, "log")[None] * size).astype(np.float32)
    (direction,) = backend.dualize([Batch("spectral", 1, edge, edge + 9)], [on_gpu(given)], [1.0])
    assert cases.worst(host(direction)[0], given[0] / np.float32(size), 0.02) < 0.02


@pytest.mark.parametrize("edge", [50, 300])
def test_zeros_give_zeros(edge):
    from modula_rs.backend import cupy

    backend = Operations(cupy)

    batches, zeros = [Batch("spectral", 2, edge, edge)], on_gpu(np.zeros((2, edge, edge), np.float32))
    assert not backend.dualize(batches, [zeros], [1.0])[0].any()
    assert not backend.normalize(batches, [zeros], [1.0])[0][0].any()
    assert not backend.norms(batches, [zeros])[0].any()


def test_graph_serves_arrays_that_move(rng):
    """Each replay reads the addresses and scales of its own call."""
    import cupy
    from modula_rs.backend import cupy as cupy_backend

    backend = Operations(cupy_backend)

    batches = [Batch("spectral", 2, 60, 90), Batch("spectral", 1, 300, 290), Batch("rms", 1, 1, 33)]
    kept = []
    for call in range(5):
        arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in batches]
        kept.append(arrays)
        results = backend.dualize(batches, arrays, [call + 1.0] * 3)
        for result, array in zip(results[:2], arrays, strict=False):
            for block, given in zip(host(result), array.get(), strict=True):
                assert cases.worst(block / (call + 1), given, 1e-3) < 0.01


def test_steady_state_allocates_nothing(rng):
    import cupy
    from modula_rs.backend import cupy as cupy_backend

    backend = Operations(cupy_backend)

    batches = [Batch("spectral", 4, 64, 256), Batch("spectral", 2, 400, 300)]
    arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in batches]
    for _ in range(3):
        backend.dualize(batches, arrays, [1.0, 1.0])
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    for _ in range(5):
        backend.dualize(batches, arrays, [1.0, 1.0])
    assert pool.total_bytes() == before


def test_results_are_the_same_bits_every_time(rng):
    import cupy
    from modula_rs.backend import cupy as cupy_backend

    backend = Operations(cupy_backend)

    batches = [Batch("spectral", 3, 200, 700), Batch("spectral", 2, 600, 500), Batch("spectral", 1, 2000, 2040)]
    arrays = [cupy.asarray(rng.standard_normal((g.count, g.rows, g.cols)), cupy.float32) for g in batches]
    first, again = (backend.dualize(batches, arrays, [1.0] * 3) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        cupy.testing.assert_array_equal(a, b)


def test_another_stream(rng):
    import cupy
    from modula_rs.backend import cupy as cupy_backend

    backend = Operations(cupy_backend)

    array = cupy.asarray(rng.standard_normal((1, 80, 90)), cupy.float32)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    for _ in range(3):
        with stream:
            (direction,) = backend.dualize([Batch("spectral", 1, 80, 90)], [array], [1.0])
        stream.synchronize()
        assert cases.worst(host(direction)[0], array.get()[0], 1e-3) < 0.01


def test_jax_under_jit(rng):
    jax = pytest.importorskip("jax", reason="a GPU machine may have no JAX")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    import jax.numpy as jnp
    from modula_rs.backend import jax as backend

    batches = [Batch("spectral", 2, 64, 200), Batch("spectral", 1, 300, 280), Batch("row_rms", 1, 9, 20)]
    arrays = [jnp.asarray(rng.standard_normal((g.count, g.rows, g.cols)), jnp.float32) for g in batches]
    scales = [jnp.ones(g.count) for g in batches]
    compiled = jax.jit(lambda a, s: Operations(backend).dualize(batches, a, s))
    for _ in range(3):
        made = compiled(arrays, scales)
        for new, old in zip(made[:2], arrays, strict=False):
            for block, given in zip(np.asarray(new), np.asarray(old), strict=True):
                assert cases.worst(block, given, 1e-3) < 0.01
    norms = jax.jit(lambda a: backend.norms(batches, a))(arrays)
    np.testing.assert_allclose(norms[0], np.linalg.norm(np.asarray(arrays[0]), 2, axis=(1, 2)), rtol=0.01)
