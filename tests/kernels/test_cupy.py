"""backend/cupy.py from end to end without a GPU: NumPy arrays in the part of CuPy's, the shim in the part of the driver."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cases
import host
import numpy as np
import pytest
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend import cupy as cupy_backend
from modula_rs.backend.cupy import cuda
from modula_rs.kernels import device, runtime
from modula_rs.kernels.plan import relocate, uploads
from operations import Operations

pytestmark = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)


class Array(np.ndarray):
    """A NumPy array that tells its address as CuPy's do."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def wrapped(function):
    return lambda *args, **kwargs: function(*args, **kwargs).view(Array)


class Executable:
    """runtime.Executable with a host workspace and the shim's launches."""

    def __init__(self, plan):
        self.plan = plan
        self.workspace = host.aligned(plan.bytes)
        self.base = self.workspace.ctypes.data
        for item in runtime.constant_uploads(plan, self.base):
            host.launch(item)

    def __call__(self, addresses, scales):
        words = runtime.message(self.plan, self.base, addresses, scales)
        for item in uploads(words, self.base + self.plan.table):
            host.launch(item)
        for item in self.plan.launches:
            host.launch(relocate(item, self.base))


@pytest.fixture(autouse=True)
def fake_cupy(monkeypatch):
    names = ("ascontiguousarray", "broadcast_to", "zeros", "empty", "empty_like")
    fake = SimpleNamespace(ndarray=Array, float32=np.float32, **{name: wrapped(getattr(np, name)) for name in names})
    fake.cuda = SimpleNamespace(
        Device=lambda: SimpleNamespace(id=0),
        get_current_stream=lambda: SimpleNamespace(ptr=0),
        runtime=SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=RuntimeError),
    )
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(runtime, "Executable", Executable)
    monkeypatch.setattr(cuda, "_device", lambda ordinal: device.H200)
    for cached in (runtime.require_gpu, runtime.executable):
        cached.cache_clear()
    yield
    for cached in (runtime.require_gpu, runtime.executable):
        cached.cache_clear()


def drawn(rng, batch, dtype="float32"):
    return rng.standard_normal((batch.count, batch.rows, batch.cols)).astype(cases.as_dtype(dtype)).view(Array)


backend = Operations(cupy_backend)
BATCHES = [Batch("spectral", 2, 20, 31), Batch("row_rms", 1, 5, 9), Batch("max_abs", 2, 1, 6), Batch("spectral", 0, 3, 4)]


def test_dualize_replays_with_other_arrays_and_scales():
    rng = np.random.default_rng(5)
    for turn in range(3):
        arrays = [drawn(rng, batch) for batch in BATCHES]
        scales = [np.arange(batch.count) + 1.0 + turn for batch in BATCHES]
        spectral, rows, signs, empty = backend.dualize(BATCHES, arrays, scales)
        for block, given, scale in zip(spectral, arrays[0], scales[0], strict=True):
            assert cases.worst(block / scale, given, 1e-3) < 0.01
        np.testing.assert_allclose(rows, scales[1][0] * arrays[1] / np.sqrt((arrays[1] ** 2).mean(-1, keepdims=True)), rtol=1e-5)
        np.testing.assert_array_equal(signs, np.sign(arrays[2]) * scales[2][:, None, None])
        assert empty.shape == (0, 3, 4)
    assert runtime.executable.cache_info().currsize == 1


def test_scales_on_the_device():
    rng = np.random.default_rng(6)
    arrays = [drawn(rng, batch) for batch in BATCHES]
    scales = [np.full(batch.count, 2.0, np.float32).view(Array) for batch in BATCHES]
    for a, b in zip(backend.dualize(BATCHES, arrays, scales), backend.dualize(BATCHES, arrays, [2.0] * 4), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_norms_and_dual_norms(dtype):
    rng = np.random.default_rng(7)
    arrays = [drawn(rng, batch, dtype) for batch in BATCHES]
    wide = [np.asarray(array, np.float64) for array in arrays]
    spectral, rows, largest, empty = backend.norms(BATCHES, arrays)
    np.testing.assert_allclose(spectral, np.linalg.norm(wide[0], 2, axis=(1, 2)), rtol=0.01)
    np.testing.assert_allclose(rows, np.sqrt((wide[1] ** 2).mean(-1)).max(-1), rtol=1e-6)
    np.testing.assert_allclose(largest, np.abs(wide[2]).max((1, 2)), rtol=1e-6)
    assert empty.size == 0
    nuclear, *_ = backend.dual_norms(BATCHES, arrays)
    # The direction is rounded to the array's own type.
    np.testing.assert_allclose(nuclear, np.linalg.svd(wide[0], compute_uv=False).sum(-1), rtol=2e-3)
    assert spectral.dtype == (np.float64 if dtype == "float64" else np.float32)


def test_normalize_cold_then_warm():
    rng = np.random.default_rng(8)
    arrays = [drawn(rng, batch) for batch in BATCHES]
    cold, estimates = backend.normalize(BATCHES, arrays, [1.0] * 4)
    assert estimates == [None] * 4
    np.testing.assert_allclose(np.linalg.norm(cold[0], 2, axis=(1, 2)), 1, rtol=0.01)
    # None among estimates, like zeros, is no estimate: the norm from cold, and estimates of the true singular vectors.
    exact, right = np.linalg.norm(arrays[0], 2, axis=(1, 2)), np.linalg.svd(arrays[0])[2][:, 0]
    for vectors in ([None] * 4, [np.zeros((2, VECTORS, 31), np.float32).view(Array), None, None, None]):
        for _ in range(3):
            made, vectors = backend.normalize(BATCHES, arrays, [1.0] * 4, vectors)
            np.testing.assert_allclose(np.linalg.norm(made[0], 2, axis=(1, 2)), 1, rtol=0.01)
            assert [None if v is None else (v.shape, v.dtype) for v in vectors] == [
                ((2, VECTORS, 31), np.float32), None, None, ((0, VECTORS, 4), np.float32),
            ]  # fmt: skip
        np.testing.assert_allclose(np.linalg.norm(np.einsum("brc,bc->br", arrays[0], vectors[0][:, 0]), axis=1), exact, rtol=0.01)
        assert (np.abs((vectors[0][:, 0] * right).sum(-1)) > 0.9).all()


def test_estimates_of_doubles_are_doubles():
    rng = np.random.default_rng(8)
    batch = [Batch("spectral", 1, 12, 9)]
    _, vectors = backend.normalize(batch, [drawn(rng, batch[0], "float64")], [1.0], [None])
    assert vectors[0].dtype == np.float64
    with pytest.raises(ValueError, match=r"vectors\[0\]: expected shape \(1, 4, 9\), got \(1, 9\)"):
        backend.normalize(batch, [drawn(rng, batch[0])], [1.0], [np.zeros((1, 9), np.float32).view(Array)])


def test_exact_directions():
    rng = np.random.default_rng(9)
    arrays = [drawn(rng, batch) for batch in BATCHES]
    projected = backend.project(BATCHES, arrays, [1.0] * 4)
    u, _, vt = np.linalg.svd(np.asarray(arrays[0], np.float64), full_matrices=False)
    np.testing.assert_allclose(projected[0], u @ vt, atol=1e-5)
    np.testing.assert_array_equal(projected[2], np.sign(arrays[2]))


def test_wrong_shapes_are_refused():
    batch = Batch("spectral", 2, 20, 31)
    with pytest.raises(ValueError, match=r"expected shape \(2, 20, 31\), got \(2, 31, 20\)"):
        backend.norms([batch], [np.zeros((2, 31, 20), np.float32).view(Array)])
