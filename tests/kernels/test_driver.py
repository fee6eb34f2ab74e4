"""The package down to the driver's calls, over a fake NVRTC and a fake driver that refuse what the real ones would refuse."""

from __future__ import annotations

import sys

import fake_driver
import host
import ml_dtypes
import numpy as np
import pytest
from fake_cupy import state
from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.backend import cupy as backend
from modula_rs.kernels import choose, runtime, verdicts
from modula_rs.kernels import compile as compiling
from modula_rs.kernels import device as devices

pytestmark = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)
CACHED = (
    gpu.forget, runtime.require_gpu.cache_clear, runtime.executable.cache_clear, runtime.function.cache_clear, runtime.loaded.cache_clear,
    compiling.cubin.cache_clear, compiling.cubin_path.cache_clear, devices.device_of.cache_clear, verdicts.machine_of.cache_clear,
)  # fmt: skip


@pytest.fixture
def cupy(monkeypatch, tmp_path):
    """The fake CuPy, with an empty cache of kernels."""
    for name in ("cupy", "cupy_backends", "cupy_backends.cuda", "cupy_backends.cuda.api", "cupy_backends.cuda.libs"):
        monkeypatch.setitem(sys.modules, name, None)  # put back afterwards
    monkeypatch.setattr(choose, "WIDE_TILES", choose.WIDE_TILES)  # put back, because the fake changes it
    fake_driver.install()
    monkeypatch.setenv("MODULA_RS_CACHE", str(tmp_path))
    monkeypatch.setattr(gpu, "_default", "kernels")
    monkeypatch.setattr(runtime, "_shared", {})
    fake_driver.allowed.clear()
    state.enqueued, state.replays = [], 0
    for clear in CACHED:
        clear()
    yield sys.modules["cupy"]
    for clear in CACHED:
        clear()


def rows_over_rms(rows):
    return rows / np.sqrt((np.asarray(rows, np.float64) ** 2).mean(-1, keepdims=True))


def test_kernels_are_compiled_loaded_launched_and_replayed(cupy, capsys):
    batches = [Batch("row_rms", 1, 5, 9)]
    rng = np.random.default_rng(0)
    for call in range(4):
        rows = cupy.asarray(rng.standard_normal((1, 5, 9)).astype(np.float32))
        (made,), _ = backend.apply("direction", batches, [rows], [np.full(1, call + 1.0)])
        np.testing.assert_allclose(made, (call + 1) * rows_over_rms(rows), rtol=1e-5)
    assert state.replays == 3
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "modula_rs: compiling 2 GPU kernels for sm_90a, once for this machine"
    assert len(said) == 3
    # A second process finds whole cubins on the disk, and compiles nothing.
    for clear in CACHED:
        clear()
    backend.apply("direction", batches, [rows], [np.ones(1)])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rows", "cols"), [(28, 64), (3, 1600)])
def test_launches_between_the_usual_limit_of_shared_memory_and_48_kilobytes(cupy, monkeypatch, rows, cols):
    """The driver counts a kernel's static shared memory too, and refuses a launch that needs more than it was allowed."""
    monkeypatch.setenv("FAKE_SKIPS", "power lanczos spectral")
    x = cupy.asarray(np.ones((1, rows, cols), np.float16))
    backend.apply("unit", [Batch("spectral", 1, rows, cols)], [x], [np.ones(1)], vectors=[cupy.zeros((1, VECTORS, cols), "float32")])
    assert "lanczos_float16" in {kernel for kernel, *_ in state.enqueued}


def test_constants_are_uploaded_by_launches(cupy, monkeypatch):
    """A copy from pageable memory may be read after this returns, where the GPU reads that memory itself."""
    x = cupy.asarray(np.ones((1, 2, 3), np.float32))
    monkeypatch.setattr(fake_driver.WholeArray, "set", lambda *given: pytest.fail("a copy from the host"))
    backend.apply("direction", [Batch("row_rms", 1, 2, 3)], [x], [np.ones(1)])
    assert [kernel for kernel, *_ in state.enqueued] == ["upload", "upload", "row_normalize_float32"]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("geometry", ["spectral", "row_rms"])
@pytest.mark.parametrize("choice", ["kernels", "portable"])
def test_empty_arrays(cupy, shape, geometry, choice):
    batch, x = Batch(geometry, *shape), cupy.zeros(shape, "float32")
    with gpu.gpu_backend(choice):
        (made,), (found,) = backend.apply("unit", [batch], [x], [np.ones(shape[0])], vectors=[None])
        (direction,), _ = backend.apply("direction", [batch], [x], [np.ones(shape[0])])
        norms, duals = backend.norms([batch], [x]), backend.dual_norms([batch], [x])
    assert made.shape == direction.shape == shape
    assert found is None or found.shape == (shape[0], VECTORS, shape[2])
    for (numbers,) in (norms, duals):
        assert numbers.shape == (shape[0],)
        assert not np.asarray(numbers).any()


@pytest.mark.parametrize("choice", ["kernels", "portable"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_views_that_are_not_contiguous_are_read_and_not_written(cupy, choice, dtype):
    whole = cupy.asarray(np.random.default_rng(1).standard_normal((2, 18, 10)).astype(dtype))
    kept = np.array(whole)
    for view in (whole[:, ::2], whole.swapaxes(1, 2), whole[:, ::-1, ::-1], cupy.broadcast_to(whole[:1], (2, 18, 10))):
        batch = Batch("row_rms", *view.shape)
        with gpu.gpu_backend(choice):
            (made,), _ = backend.apply("direction", [batch], [view], [np.ones(2)])
            (norms,) = backend.norms([batch], [view])
        np.testing.assert_allclose(np.asarray(made, np.float64), rows_over_rms(view), rtol=2e-3 if dtype == "float16" else 1e-5)
        np.testing.assert_allclose(norms, np.sqrt((np.asarray(view, np.float64) ** 2).mean(-1)).max(-1), rtol=1e-5)
        np.testing.assert_array_equal(whole, kept)


@pytest.mark.parametrize("name", ["apply", "norms", "dual_norms"])
@pytest.mark.parametrize("dtype", ["complex64", "int32", "float8_e4m3fn", "longdouble"])
def test_other_dtypes_are_refused(cupy, name, dtype):
    wanted = getattr(ml_dtypes, dtype) if dtype.startswith("float8") else dtype
    x = np.ones((1, 2, 3)).astype(wanted).view(fake_driver.WholeArray)
    given = [Batch("spectral", 1, 2, 3)], [x]
    with pytest.raises(ValueError, match=rf"spectral: expected float64, float32, float16, bfloat16, got {np.dtype(wanted).name}"):
        backend.apply("direction", *given, [np.ones(1)]) if name == "apply" else getattr(backend, name)(*given)
    assert not state.enqueued


def test_no_leaves(cupy):
    assert backend.apply("direction", [], [], []) == ([], [])
    assert backend.norms([], []) == backend.dual_norms([], []) == []
