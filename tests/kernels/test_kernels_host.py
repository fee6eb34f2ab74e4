"""The arithmetic of every kernel, run on the host over the shim, against float64 SVD at odd sizes."""

from __future__ import annotations

import cases
import host
import numpy as np
import pytest
from modula_rs.kernels import maps
from modula_rs.kernels.device import A100, H200
from modula_rs.kernels.plan import Leaf

pytestmark = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)

# No room for the fused kernel, so that matrices small enough for a quick test take the path of large ones.
PORTABLE = A100._replace(shared=0)
HOPPER = H200._replace(shared=0)


def call(build, leaves, arrays, device=H200, order=0, scales=None, others=None, **options):
    """Runs a map on the host: results (guarded against stray writes) of the shape and type of ``arrays``."""
    plan = build(leaves, device, **options)
    results, guards = zip(*(host.guarded(array.shape, array.dtype) for array in arrays), strict=True)
    scales = scales or [np.ones(leaf.count) for leaf in leaves]
    host.run(plan, arrays, results, scales, others, order=order)
    assert all((g[: host.GUARD] == 0xAB).all() and (g[-host.GUARD :] == 0xAB).all() for g in guards), "stray write"
    return list(results)


def numbers(build, leaves, arrays, device=H200, others=None):
    """Runs a map that gives one number for each block."""
    plan = build(leaves, device)
    results = [np.full(leaf.count, np.nan, np.float64 if leaf.dtype == "float64" else np.float32) for leaf in leaves]
    host.run(plan, arrays, results, [np.ones(leaf.count) for leaf in leaves], others)
    return results


def stack(rng, count, rows, cols, dtype="float32", spectrum="gaussian", size=1.0):
    blocks = [cases.matrix(rng, rows, cols, spectrum) * size for _ in range(count)]
    return np.stack(blocks).astype(cases.as_dtype(dtype))


SMALL = [(1, 1), (17, 29), (29, 17), (32, 100), (64, 65), (100, 70), (128, 33)]


@pytest.mark.parametrize(("precision", "above", "promise"), [("float16", 0.01, 0.02), ("float32", 1e-3, 0.01)])
@pytest.mark.parametrize(("rows", "cols"), SMALL)
def test_fused_kernel_orthogonalises(rng, rows, cols, precision, above, promise):
    given = stack(rng, 2, rows, cols)
    scales = [np.array([1.0, 2.5])]
    (direction,) = call(maps.dualize, [Leaf("spectral", 2, rows, cols)], [given], scales=scales, precision=precision)
    for block, matrix, scale in zip(direction, given, scales[0], strict=True):
        assert cases.worst(block / scale, matrix, above) < promise
        assert cases.alignment(block / scale, matrix) == pytest.approx(1, abs=promise)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
def test_fused_kernel_on_every_spectrum(rng, spectrum):
    given = stack(rng, 1, 50, 61, spectrum=spectrum)
    for precision, above, promise in (("float16", 0.01, 0.02), ("float32", 1e-3, 0.01)):
        (direction,) = call(maps.dualize, [Leaf("spectral", 1, 50, 61)], [given], precision=precision)
        assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize("edge", [150, 200])
def test_fused_kernel_at_its_largest(rng, edge):
    given = stack(rng, 1, edge, edge + 7)
    one = H200._replace(processors=1)  # where tiles gain nothing
    (direction,) = call(maps.dualize, [Leaf("spectral", 1, edge, edge + 7)], [given], one, precision="float16")
    assert cases.worst(direction[0], given[0], 0.01) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(24, 200), (200, 24), (64, 136), (136, 40)])
def test_fused_kernel_reads_whole_words_and_parts_of_them_alike(rng, rows, cols, dtype):
    """Rows of a multiple of eight go by sixteen bytes, unless they lie askew in memory."""
    given, weights = stack(rng, 1, rows, cols, dtype), stack(rng, 1, rows, cols, dtype)
    leaf, askew = Leaf("spectral", 1, rows, cols, dtype), np.empty(given.size + 1, given.dtype)[1:].reshape(given.shape)
    askew[:] = given
    for build in (maps.dualize, maps.normalize):
        options = {"precision": "float16"} if build is maps.dualize else {}
        (direction,) = call(build, [leaf], [given], **options)
        (again,) = call(build, [leaf], [askew], **options)
        np.testing.assert_array_equal(direction, again)
        (added,) = call(build, [leaf._replace(added_to=True)], [given], others=[weights], keep=0.5, **options)
        rounding = {"bfloat16": 2**-7, "float16": 2**-10}.get(dtype, 1e-6)
        expected = 0.5 * weights.astype(np.float64) + direction.astype(np.float64)
        np.testing.assert_allclose(added.astype(np.float64), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(("rows", "cols"), [(20, 200), (200, 20), (40, 300)])
@pytest.mark.parametrize("start", [-40, -25, 25])
def test_fused_kernel_follows_entries_that_grow(rng, rows, cols, start):
    """The largest entry comes last, and with it the scale of all that was packed before: from nothing, from subnormal, and downwards."""
    growth = 10.0 ** np.linspace(start, -start / 2, max(rows, cols))
    exact = cases.matrix(rng, rows, cols) * (growth if cols > rows else growth[:, None])
    exact[(slice(None), slice(70)) if cols > rows else slice(70)] *= start != -40
    given = exact.astype(np.float32)[None]
    leaf = Leaf("spectral", 1, rows, cols)
    for precision in ("float16", "float32"):
        (direction,) = call(maps.dualize, [leaf], [given], precision=precision)
        relative = given[0].astype(np.float64) / np.abs(given).max()
        assert cases.worst(direction[0], relative, 0.02) < 0.02
    (norms,) = numbers(maps.norms, [leaf], [given])
    np.testing.assert_allclose(norms, np.linalg.norm(given[0].astype(np.float64), 2), rtol=0.01)


@pytest.mark.parametrize("spectrum", ["gaussian", "log"])
@pytest.mark.parametrize(
    ("rows", "cols", "dtype"), [(40, 300, "float32"), (700, 64, "bfloat16"), (100, 600, "float16"), (512, 70, "float32")]
)
def test_matrices_that_stay_on_chip(rng, rows, cols, dtype, spectrum):
    leaf, given = Leaf("spectral", 2, rows, cols, dtype), stack(rng, 2, rows, cols, dtype, spectrum)
    assert {item.module for item in maps.dualize([leaf], H200, precision="float16").launches} == {"resident"}
    given[:, : rows // 2, : cols // 2] *= np.float32(2**-9)  # the blocks of the cluster do not agree on the size of the entries
    scales = [np.array([1.0, 2.5])]
    (direction,) = call(maps.dualize, [leaf], [given], scales=scales, precision="float16")
    (again,) = call(maps.dualize, [leaf], [given], scales=scales, precision="float16", order=2)
    np.testing.assert_array_equal(direction, again)
    for block, matrix, scale in zip(direction, given, scales[0], strict=True):
        assert cases.worst(block / scale, matrix, 0.01) < 0.02
    weights = stack(rng, 2, rows, cols, dtype)
    (added,) = call(maps.dualize, [leaf._replace(added_to=True)], [given], scales=scales, others=[weights], keep=0.5, precision="float16")
    rounding = {"bfloat16": 2**-7, "float16": 2**-9}.get(dtype, 1e-6)
    expected = 0.5 * weights.astype(np.float64) + direction.astype(np.float64)
    np.testing.assert_allclose(added.astype(np.float64), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("device", [PORTABLE, HOPPER], ids=["mma", "wgmma"])
@pytest.mark.parametrize(
    ("rows", "cols", "precision", "above", "promise"),
    [(131, 150, "float16", 0.01, 0.02), (150, 131, "float16", 0.01, 0.02), (70, 131, "float32", 1e-3, 0.01)],
)
def test_tensor_core_products_orthogonalise(rng, device, rows, cols, precision, above, promise):
    given = stack(rng, 1, rows, cols, spectrum="log")
    (direction,) = call(maps.dualize, [Leaf("spectral", 1, rows, cols)], [given], device, precision=precision)
    assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize("spectrum", ["gaussian", "linear"])
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_tensor_cores_that_cut_off(rng, device, spectrum, monkeypatch):
    """Real ones do not round to nearest; here they do it as badly as any generation is known to."""
    monkeypatch.setattr(host, "OPTIONS", ("-DTRUNCATE", "-O1"))
    given = stack(rng, 1, 60, 110, spectrum=spectrum)
    for precision, above, promise in (("float16", 0.01, 0.02), ("float32", 1e-3, 0.01)):
        (direction,) = call(maps.dualize, [Leaf("spectral", 1, 60, 110)], [given], device, precision=precision)
        assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize(("rows", "cols"), [(33, 130), (130, 40)])
def test_doubles_orthogonalise_to_rounding(rng, rows, cols):
    given = stack(rng, 2, rows, cols, "float64", "log")
    (direction,) = call(maps.dualize, [Leaf("spectral", 2, rows, cols, "float64")], [given])
    u, _, vt = np.linalg.svd(given, full_matrices=False)
    np.testing.assert_allclose(direction, u @ vt, atol=1e-11)


def test_project_leaves_nothing_between_zero_and_one(rng):
    u, _, vt = np.linalg.svd(cases.matrix(rng, 40, 50), full_matrices=False)
    values = np.r_[np.geomspace(1, 1e-5, 30), np.zeros(10)]
    given = ((u * values) @ vt)[None].astype(np.float32)
    (result,) = call(maps.project, [Leaf("spectral", 1, 40, 50)], [given])
    kept = np.linalg.svd(result[0].astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(kept[:30], 1, atol=1e-5)
    assert kept[30:].max() < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_threads_changes_no_bit(rng, order):
    """Another order of threads between barriers gives other bits where a barrier is missing."""
    given = [stack(rng, 1, 40, 33), stack(rng, 1, 20, 131), stack(rng, 1, 9, 40)]
    leaves = [Leaf("spectral", 1, 40, 33), Leaf("spectral", 1, 20, 131), Leaf("row_rms", 1, 9, 40)]
    for device, precision in ((H200, "float32"), (PORTABLE, "float16"), (HOPPER, "float16")):
        first = call(maps.dualize, leaves, given, device, precision=precision)
        again = call(maps.dualize, leaves, given, device, order=order, precision=precision)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e-44])
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_scale_does_not_matter(rng, size, device):
    given = stack(rng, 1, 33, 40, size=size)
    leaf = Leaf("spectral", 1, 33, 40)
    for precision in ("float16", "float32"):
        (direction,) = call(maps.dualize, [leaf], [given], device, precision=precision)
        assert cases.worst(direction[0], given[0].astype(np.float64) / size, 0.05) < 0.02
    (normalized,) = call(maps.normalize, [leaf], [given], device)
    assert np.linalg.norm(normalized[0].astype(np.float64), 2) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("device", [H200, PORTABLE, HOPPER], ids=["fused", "mma", "wgmma"])
def test_zeros_give_zeros(device):
    leaves = [
        Leaf("spectral", 2, 20, 30),
        Leaf("spectral", 1, 20, 30, "float64"),
        Leaf("spectral", 1, 40, 300, "float16"),
        Leaf("row_rms", 1, 3, 5),
        Leaf("rms", 1, 1, 7),
        Leaf("max_abs", 1, 1, 7),
    ]
    given = [np.zeros((leaf.count, leaf.rows, leaf.cols), leaf.dtype) for leaf in leaves]
    for build in (maps.dualize, maps.normalize):
        for result in call(build, leaves, given, device):
            assert (result == 0).all()
    for result in numbers(maps.norms, leaves, given, device):
        assert (result == 0).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_every_type(rng, dtype, device):
    leaf = Leaf("spectral", 1, 24, 41, dtype)
    given = stack(rng, 1, 24, 41, dtype, "log")
    (direction,) = call(maps.dualize, [leaf], [given], device)
    assert direction.dtype == given.dtype
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 0)
    assert cases.worst(direction[0], given[0], 0.02) < 0.02 + 2 * rounding
    (normalized,) = call(maps.normalize, [leaf], [given], device)
    assert np.linalg.norm(normalized[0].astype(np.float64), 2) == pytest.approx(1, rel=0.01 + rounding)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
@pytest.mark.parametrize(("rows", "cols", "device"), [(50, 61, H200), (61, 50, PORTABLE), (20, 131, HOPPER)], ids=["fused", "mma", "wgmma"])
def test_norm_from_a_cold_start(rng, spectrum, rows, cols, device):
    leaf = Leaf("spectral", 2, rows, cols)
    given = stack(rng, 2, rows, cols, spectrum=spectrum)
    expected = np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
    (norms,) = numbers(maps.norms, [leaf], [given], device)
    np.testing.assert_allclose(norms, expected, rtol=0.01)
    (normalized,) = call(maps.normalize, [leaf], [given], device, scales=[np.array([1.0, 3.0])])
    np.testing.assert_allclose(np.linalg.norm(normalized.astype(np.float64), 2, axis=(1, 2)), [1, 3], rtol=0.01)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (3, 1100), (1, 64), (9, 128)])
def test_rows_and_vectors(rng, dtype, rows, cols):
    exact = stack(rng, 2, rows, cols, dtype)
    exact[0, 0] = 0
    given = exact.astype(np.float64)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 1e-6, "float64": 1e-14}[dtype]
    rms = np.sqrt((given**2).mean(-1))
    largest = np.abs(given).max((1, 2))
    leaves = [Leaf("row_rms", 2, rows, cols, dtype), Leaf("max_abs", 2, 1, rows * cols, dtype)]
    arrays = [exact, exact.reshape(2, 1, -1)]
    norms = numbers(maps.norms, leaves, arrays)
    np.testing.assert_allclose(norms[0], rms.max(1), rtol=1e-6)
    np.testing.assert_allclose(norms[1], largest, rtol=1e-6)
    duals = numbers(maps.dual_norms, leaves, arrays)
    np.testing.assert_allclose(duals[0], (cols * rms).sum(1), rtol=1e-6)
    np.testing.assert_allclose(duals[1], np.abs(given).sum((1, 2)), rtol=1e-6)
    by_row = np.divide(given, rms[..., None], out=np.zeros_like(given), where=rms[..., None] > 0)
    for build in (maps.dualize, maps.normalize, maps.project):
        result = call(build, leaves, arrays, scales=[np.full(2, 2.0), np.full(2, 3.0)])
        np.testing.assert_allclose(result[0].astype(np.float64), 2 * by_row, rtol=rounding, atol=rounding)
        if build is maps.dualize:
            np.testing.assert_array_equal(result[1].astype(np.float64), 3 * np.sign(arrays[1].astype(np.float64)))
        elif build is maps.normalize:
            np.testing.assert_allclose(np.abs(result[1].astype(np.float64)).max((1, 2)), 3 * (largest > 0), rtol=rounding)


def test_doubles_of_any_size(rng):
    for size in (1e-300, 1e300):
        given = [stack(rng, 1, 9, 11, "float64", size=size), stack(rng, 1, 4, 5, "float64", size=size)]
        leaves = [Leaf("spectral", 1, 9, 11, "float64"), Leaf("row_rms", 1, 4, 5, "float64")]
        direction, rows = call(maps.dualize, leaves, given)
        assert cases.worst(direction[0], given[0] / size, 1e-2) < 1e-3
        np.testing.assert_allclose((rows**2).mean(-1), 1, rtol=1e-12)


@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_update_added_in_the_last_pass(rng, device):
    leaves = [Leaf("spectral", 1, 20, 31, added_to=True), Leaf("row_rms", 1, 4, 6, added_to=True)]
    plain = [leaf._replace(added_to=False) for leaf in leaves]
    given = [stack(rng, leaf.count, leaf.rows, leaf.cols) for leaf in leaves]
    weights = [stack(rng, leaf.count, leaf.rows, leaf.cols) for leaf in leaves]
    scales = [np.array([-0.1])] * 2
    for build in (maps.dualize, maps.normalize):
        added = call(build, leaves, given, device, scales=scales, others=weights, keep=0.9)
        alone = call(build, plain, given, device, scales=scales)
        for a, b, w in zip(added, alone, weights, strict=True):
            np.testing.assert_allclose(a, 0.9 * w + b, rtol=1e-6, atol=1e-6)


def test_nuclear_norm_is_the_inner_product_with_the_direction(rng):
    leaf = Leaf("spectral", 2, 20, 31)
    given = stack(rng, 2, 20, 31, spectrum="log")
    direction = call(maps.dualize, [leaf], [given])
    (value,) = numbers(maps.dual_norms, [leaf], [given], others=direction)
    np.testing.assert_allclose(value, np.linalg.svd(given, compute_uv=False).sum(-1), rtol=1e-3)


@pytest.mark.parametrize("accuracy", ["coarse", "fast"])
def test_steps_follow_the_scalar_function(rng, accuracy):
    """The steps do to each singular value what the polynomial does, relative to the Schatten-8 norm."""
    from modula_rs.kernels.schedule import schedule

    given = stack(rng, 1, 24, 40, spectrum="log")
    (direction,) = call(maps.dualize, [Leaf("spectral", 1, 24, 40)], [given], accuracy=accuracy, precision="float32")
    values = np.linalg.svd(given[0].astype(np.float64), compute_uv=False)
    expected = schedule("float32", accuracy).value(values / (values**8).sum() ** (1 / 8))
    u, _, vt = np.linalg.svd(given[0].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.diag(u.T @ direction[0] @ vt.T), expected, atol=2e-3)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
