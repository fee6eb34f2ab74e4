"""The arithmetic of every kernel, run on the host over the shim, against float64 SVD at odd sizes."""

from __future__ import annotations

import cases
import host
import numpy as np
import pytest
from cards import A100
from modula_rs.kernels import maps
from modula_rs.kernels.device import H200
from modula_rs.kernels.launches import Operand

pytestmark = [pytest.mark.slow, pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)]

# Without shared memory for the fused kernel, matrices small enough for a quick test take the path of large ones.
PORTABLE = A100._replace(shared=0)
HOPPER = H200._replace(shared=0)


def call(build, operands, arrays, device=H200, order=0, scales=None, **options):
    """Runs a map on the host; returns results (guarded against stray writes) with the shapes and dtypes of ``arrays``."""
    plan = build(operands, device, **options)
    results, guards = zip(*(host.guarded(array.shape, array.dtype) for array in arrays), strict=True)
    scales = scales or [np.ones(operand.count) for operand in operands]
    host.run(plan, arrays, results, scales, order=order)
    assert all((g[: host.GUARD] == 0xAB).all() and (g[-host.GUARD :] == 0xAB).all() for g in guards), "stray write"
    return list(results)


def numbers(build, operands, arrays, device=H200, others=None):
    """Runs a map that returns one number for each block."""
    plan = build(operands, device)
    results = [np.full(operand.count, np.nan, np.float32) for operand in operands]
    host.run(plan, arrays, results, [np.ones(operand.count) for operand in operands], others)
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
    (direction,) = call(maps.dualize, [Operand("spectral", 2, rows, cols)], [given], scales=scales, precision=precision)
    for block, matrix, scale in zip(direction, given, scales[0], strict=True):
        assert cases.worst(block / scale, matrix, above) < promise
        assert cases.alignment(block / scale, matrix) == pytest.approx(1, abs=promise)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
def test_fused_kernel_on_every_spectrum(rng, spectrum):
    given = stack(rng, 1, 50, 61, spectrum=spectrum)
    for precision, above, promise in (("float16", 0.01, 0.02), ("float32", 1e-3, 0.01)):
        (direction,) = call(maps.dualize, [Operand("spectral", 1, 50, 61)], [given], precision=precision)
        assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize("edge", [150, 200])
def test_fused_kernel_at_its_largest(rng, edge):
    given = stack(rng, 1, edge, edge + 7)
    one = H200._replace(processors=1)  # a device on which tiles have no advantage
    (direction,) = call(maps.dualize, [Operand("spectral", 1, edge, edge + 7)], [given], one, precision="float16")
    assert cases.worst(direction[0], given[0], 0.01) < 0.02


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("rows", "cols"), [(24, 200), (200, 24), (64, 136), (136, 40)])
def test_fused_kernel_reads_whole_words_and_parts_of_them_alike(rng, rows, cols, dtype):
    """Rows whose length is a multiple of eight are read by sixteen bytes, unless they are misaligned in memory."""
    given = stack(rng, 1, rows, cols, dtype)
    operand, askew = Operand("spectral", 1, rows, cols, dtype), np.empty(given.size + 1, given.dtype)[1:].reshape(given.shape)
    askew[:] = given
    for build in (maps.dualize, maps.normalize):
        options = {"precision": "float16"} if build is maps.dualize else {}
        (direction,) = call(build, [operand], [given], **options)
        (again,) = call(build, [operand], [askew], **options)
        np.testing.assert_array_equal(direction, again)


@pytest.mark.parametrize(("rows", "cols"), [(20, 200), (200, 20), (40, 300)])
@pytest.mark.parametrize("start", [-40, -25, 25])
def test_fused_kernel_follows_entries_that_grow(rng, rows, cols, start):
    """The largest entry comes last, and changes the scale of everything packed before: from zero, from subnormal numbers, and downwards."""
    growth = 10.0 ** np.linspace(start, -start / 2, max(rows, cols))
    exact = cases.matrix(rng, rows, cols) * (growth if cols > rows else growth[:, None])
    exact[(slice(None), slice(70)) if cols > rows else slice(70)] *= start != -40
    given = exact.astype(np.float32)[None]
    operand = Operand("spectral", 1, rows, cols)
    for precision in ("float16", "float32"):
        (direction,) = call(maps.dualize, [operand], [given], precision=precision)
        relative = given[0].astype(np.float64) / np.abs(given).max()
        assert cases.worst(direction[0], relative, 0.02) < 0.02
    (norms,) = numbers(maps.norms, [operand], [given])
    np.testing.assert_allclose(norms, np.linalg.norm(given[0].astype(np.float64), 2), rtol=0.01)


@pytest.mark.parametrize("spectrum", ["gaussian", "log"])
@pytest.mark.parametrize(
    ("rows", "cols", "dtype"), [(40, 300, "float32"), (700, 64, "bfloat16"), (100, 600, "float16"), (512, 70, "float32")]
)
def test_matrices_that_stay_on_chip(rng, rows, cols, dtype, spectrum):
    operand, given = Operand("spectral", 2, rows, cols, dtype), stack(rng, 2, rows, cols, dtype, spectrum)
    assert {item.module for item in maps.dualize([operand], H200, precision="float16").launches} == {"resident"}
    given[:, : rows // 2, : cols // 2] *= np.float32(2**-9)  # the blocks of the cluster see entries of different sizes
    scales = [np.array([1.0, 2.5])]
    (direction,) = call(maps.dualize, [operand], [given], scales=scales, precision="float16")
    (again,) = call(maps.dualize, [operand], [given], scales=scales, precision="float16", order=2)
    np.testing.assert_array_equal(direction, again)
    for block, matrix, scale in zip(direction, given, scales[0], strict=True):
        assert cases.worst(block / scale, matrix, 0.01) < 0.02


@pytest.mark.parametrize("device", [PORTABLE, HOPPER], ids=["mma", "wgmma"])
@pytest.mark.parametrize(
    ("rows", "cols", "precision", "above", "promise"),
    [(131, 150, "float16", 0.01, 0.02), (150, 131, "float16", 0.01, 0.02), (70, 131, "float32", 1e-3, 0.01)],
)
def test_tensor_core_products_orthogonalise(rng, device, rows, cols, precision, above, promise):
    given = stack(rng, 1, rows, cols, spectrum="log")
    (direction,) = call(maps.dualize, [Operand("spectral", 1, rows, cols)], [given], device, precision=precision)
    assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize("spectrum", ["gaussian", "linear"])
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_tensor_cores_that_cut_off(rng, device, spectrum, monkeypatch):
    """Real tensor cores do not round to nearest; here they truncate as badly as any known generation."""
    monkeypatch.setattr(host, "OPTIONS", ("-DTRUNCATE", "-O1"))
    given = stack(rng, 1, 60, 110, spectrum=spectrum)
    for precision, above, promise in (("float16", 0.01, 0.02), ("float32", 1e-3, 0.01)):
        (direction,) = call(maps.dualize, [Operand("spectral", 1, 60, 110)], [given], device, precision=precision)
        assert cases.worst(direction[0], given[0], above) < promise


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_threads_changes_no_bit(rng, order):
    """If a barrier were missing, another order of threads between barriers would change bits."""
    given = [stack(rng, 1, 40, 33), stack(rng, 1, 20, 131), stack(rng, 1, 9, 40)]
    operands = [Operand("spectral", 1, 40, 33), Operand("spectral", 1, 20, 131), Operand("row_rms", 1, 9, 40)]
    for device, precision in ((H200, "float32"), (PORTABLE, "float16"), (HOPPER, "float16")):
        first = call(maps.dualize, operands, given, device, precision=precision)
        again = call(maps.dualize, operands, given, device, order=order, precision=precision)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e-44])
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_scale_does_not_matter(rng, size, device):
    given = stack(rng, 1, 33, 40, size=size)
    operand = Operand("spectral", 1, 33, 40)
    for precision in ("float16", "float32"):
        (direction,) = call(maps.dualize, [operand], [given], device, precision=precision)
        assert cases.worst(direction[0], given[0].astype(np.float64) / size, 0.05) < 0.02
    (normalized,) = call(maps.normalize, [operand], [given], device)
    assert np.linalg.norm(normalized[0].astype(np.float64), 2) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("device", [H200, PORTABLE, HOPPER], ids=["fused", "mma", "wgmma"])
def test_zeros_give_zeros(device):
    operands = [
        Operand("spectral", 2, 20, 30),
        Operand("spectral", 1, 40, 300, "float16"),
        Operand("row_rms", 1, 3, 5),
        Operand("rms", 1, 1, 7),
        Operand("max_abs", 1, 1, 7),
    ]
    given = [np.zeros((operand.count, operand.rows, operand.cols), operand.dtype) for operand in operands]
    for build in (maps.dualize, maps.normalize):
        for result in call(build, operands, given, device):
            assert (result == 0).all()
    for result in numbers(maps.norms, operands, given, device):
        assert (result == 0).all()


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("device", [H200, PORTABLE], ids=["fused", "mma"])
def test_every_type(rng, dtype, device):
    operand = Operand("spectral", 1, 24, 41, dtype)
    given = stack(rng, 1, 24, 41, dtype, "log")
    (direction,) = call(maps.dualize, [operand], [given], device)
    assert direction.dtype == given.dtype
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}.get(dtype, 0)
    assert cases.worst(direction[0], given[0], 0.02) < 0.02 + 2 * rounding
    (normalized,) = call(maps.normalize, [operand], [given], device)
    assert np.linalg.norm(normalized[0].astype(np.float64), 2) == pytest.approx(1, rel=0.01 + rounding)


@pytest.mark.parametrize("spectrum", cases.SPECTRA)
@pytest.mark.parametrize(("rows", "cols", "device"), [(50, 61, H200), (61, 50, PORTABLE), (20, 131, HOPPER)], ids=["fused", "mma", "wgmma"])
def test_norm_from_a_cold_start(rng, spectrum, rows, cols, device):
    operand = Operand("spectral", 2, rows, cols)
    given = stack(rng, 2, rows, cols, spectrum=spectrum)
    expected = np.linalg.norm(given.astype(np.float64), 2, axis=(1, 2))
    (norms,) = numbers(maps.norms, [operand], [given], device)
    np.testing.assert_allclose(norms, expected, rtol=0.01)
    (normalized,) = call(maps.normalize, [operand], [given], device, scales=[np.array([1.0, 3.0])])
    np.testing.assert_allclose(np.linalg.norm(normalized.astype(np.float64), 2, axis=(1, 2)), [1, 3], rtol=0.01)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("rows", "cols"), [(5, 7), (3, 1100), (1, 64), (9, 128)])
def test_rows_and_vectors(rng, dtype, rows, cols):
    exact = stack(rng, 2, rows, cols, dtype)
    exact[0, 0] = 0
    given = exact.astype(np.float64)
    rounding = {"bfloat16": 2**-8, "float16": 2**-10, "float32": 1e-6}[dtype]
    rms = np.sqrt((given**2).mean(-1))
    largest = np.abs(given).max((1, 2))
    operands = [Operand("row_rms", 2, rows, cols, dtype), Operand("max_abs", 2, 1, rows * cols, dtype)]
    arrays = [exact, exact.reshape(2, 1, -1)]
    norms = numbers(maps.norms, operands, arrays)
    np.testing.assert_allclose(norms[0], rms.max(1), rtol=1e-6)
    np.testing.assert_allclose(norms[1], largest, rtol=1e-6)
    duals = numbers(maps.dual_norms, operands, arrays)
    np.testing.assert_allclose(duals[0], (cols * rms).sum(1), rtol=1e-6)
    np.testing.assert_allclose(duals[1], np.abs(given).sum((1, 2)), rtol=1e-6)
    by_row = np.divide(given, rms[..., None], out=np.zeros_like(given), where=rms[..., None] > 0)
    for build in (maps.dualize, maps.normalize):
        result = call(build, operands, arrays, scales=[np.full(2, 2.0), np.full(2, 3.0)])
        np.testing.assert_allclose(result[0].astype(np.float64), 2 * by_row, rtol=rounding, atol=rounding)
        if build is maps.dualize:
            np.testing.assert_array_equal(result[1].astype(np.float64), 3 * np.sign(arrays[1].astype(np.float64)))
        else:
            np.testing.assert_allclose(np.abs(result[1].astype(np.float64)).max((1, 2)), 3 * (largest > 0), rtol=rounding)


def test_nuclear_norm_is_the_inner_product_with_the_direction(rng):
    operand = Operand("spectral", 2, 20, 31)
    given = stack(rng, 2, 20, 31, spectrum="log")
    direction = call(maps.dualize, [operand], [given])
    (value,) = numbers(maps.dual_norms, [operand], [given], others=direction)
    np.testing.assert_allclose(value, np.linalg.svd(given, compute_uv=False).sum(-1), rtol=1e-3)


@pytest.mark.parametrize("accuracy", ["fast", "coarse"])
def test_levels_follow_the_scalar_function(rng, accuracy):
    """A lower level applies its polynomial to each singular value, relative to the Schatten-8 norm."""
    from modula_rs.kernels.schedule import schedule

    given = stack(rng, 1, 24, 40, spectrum="log")
    (direction,) = call(maps.dualize, [Operand("spectral", 1, 24, 40)], [given], accuracy=accuracy, precision="float32")
    values = np.linalg.svd(given[0].astype(np.float64), compute_uv=False)
    expected = schedule("float32", accuracy).value(values / (values**8).sum() ** (1 / 8))
    u, _, vt = np.linalg.svd(given[0].astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.diag(u.T @ direction[0] @ vt.T), expected, atol=2e-3)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
