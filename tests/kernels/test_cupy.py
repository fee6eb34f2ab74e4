"""backend/cupy from end to end without a GPU: NumPy arrays replace CuPy's, and the shim replaces the driver."""

from __future__ import annotations

import sys
import threading
import time

import cases
import host
import numpy as np
import pytest
from fake_cupy import Array, Stream, enqueue, fake_cupy, record, state
from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.backend import cupy as cupy_backend
from modula_rs.backend.cupy import cuda, plain
from modula_rs.kernels import runtime
from operations import Operations

backend = Operations(cupy_backend)
pytestmark = [pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER), pytest.mark.usefixtures("fake_cupy")]
__all__ = ["fake_cupy"]


def random(rng, batch, dtype="float32"):
    return rng.standard_normal((batch.count, batch.rows, batch.cols)).astype(cases.as_dtype(dtype)).view(Array)


BATCHES = [Batch("spectral", 2, 20, 31), Batch("row_rms", 1, 5, 9), Batch("max_abs", 2, 1, 6), Batch("spectral", 0, 3, 4)]


def check_directions(arrays, scales, made):
    spectral, rows, signs, empty = made
    for block, given, scale in zip(spectral, arrays[0], scales[0], strict=True):
        assert cases.worst(block / scale, given, 1e-3) < 0.01
    np.testing.assert_allclose(rows, scales[1][0] * arrays[1] / np.sqrt((arrays[1] ** 2).mean(-1, keepdims=True)), rtol=1e-5)
    np.testing.assert_array_equal(signs, np.sign(arrays[2]) * scales[2][:, None, None])
    assert empty.shape == (0, 3, 4)


def test_dualize_replays_with_other_arrays_and_scales():
    rng = np.random.default_rng(5)
    for call in range(4):
        arrays = [random(rng, batch) for batch in BATCHES]
        scales = [np.arange(batch.count) + 1.0 + call for batch in BATCHES]
        check_directions(arrays, scales, backend.dualize(BATCHES, arrays, scales))
    assert runtime.executable.cache_info().currsize == 1
    assert state.replays == 3  # the first call launches, the second captures and replays, the last two replay


def test_without_the_graph_every_call_is_launched_by_hand(monkeypatch):
    monkeypatch.setattr(gpu, "_default", "auto")
    record(rows="ok", small="ok", graph="hung")
    rng = np.random.default_rng(5)
    for _ in range(3):
        arrays, scales = [random(rng, batch) for batch in BATCHES], [np.ones(batch.count) for batch in BATCHES]
        check_directions(arrays, scales, backend.dualize(BATCHES, arrays, scales))
    assert state.replays == 0
    assert any(kernel.startswith("small") for kernel, *_ in state.enqueued)


def test_scales_on_the_device():
    rng = np.random.default_rng(6)
    arrays = [random(rng, batch) for batch in BATCHES]
    scales = [np.full(batch.count, 2.0, np.float32).view(Array) for batch in BATCHES]
    for a, b in zip(backend.dualize(BATCHES, arrays, scales), backend.dualize(BATCHES, arrays, [2.0] * 4), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("choice", ["kernels", "portable"])
def test_norms_and_dual_norms(dtype, choice):
    rng = np.random.default_rng(7)
    arrays = [random(rng, batch, dtype) for batch in BATCHES]
    wide = [np.asarray(array, np.float64) for array in arrays]
    with gpu.gpu_backend(choice):
        spectral, rows, largest, empty = backend.norms(BATCHES, arrays)
        nuclear, *_ = backend.dual_norms(BATCHES, arrays)
    np.testing.assert_allclose(spectral, np.linalg.norm(wide[0], 2, axis=(1, 2)), rtol=0.01)
    np.testing.assert_allclose(rows, np.sqrt((wide[1] ** 2).mean(-1)).max(-1), rtol=1e-6)
    np.testing.assert_allclose(largest, np.abs(wide[2]).max((1, 2)), rtol=1e-6)
    assert empty.size == 0
    # The direction is rounded to the array's own type.
    np.testing.assert_allclose(nuclear, np.linalg.svd(wide[0], compute_uv=False).sum(-1), rtol=2e-3)
    assert spectral.dtype == (np.float64 if dtype == "float64" else np.float32)


@pytest.mark.parametrize("choice", ["kernels", "portable"])
def test_normalize_cold_then_warm(choice):
    rng = np.random.default_rng(8)
    arrays = [random(rng, batch) for batch in BATCHES]
    with gpu.gpu_backend(choice):
        cold, estimates = backend.normalize(BATCHES, arrays, [1.0] * 4)
        assert estimates == [None] * 4
        np.testing.assert_allclose(np.linalg.norm(cold[0], 2, axis=(1, 2)), 1, rtol=0.01)
        # A None among estimates, like zeros, is no estimate: the norm is searched anew, and estimates of the true singular vectors return.
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
    batches = [Batch("spectral", 1, 12, 9)]
    _, vectors = backend.normalize(batches, [random(rng, batches[0], "float64")], [1.0], [None])
    assert vectors[0].dtype == np.float64
    with pytest.raises(ValueError, match=r"vectors\[0\]: expected shape \(1, 4, 9\), got \(1, 9\)"):
        backend.normalize(batches, [random(rng, batches[0])], [1.0], [np.zeros((1, 9), np.float32).view(Array)])


def test_project_takes_the_portable_way():
    rng = np.random.default_rng(9)
    arrays = [random(rng, batch) for batch in BATCHES]
    projected = backend.project(BATCHES, arrays, [1.0] * 4)
    u, _, vt = np.linalg.svd(np.asarray(arrays[0], np.float64), full_matrices=False)
    np.testing.assert_allclose(projected[0], u @ vt, atol=1e-6)
    np.testing.assert_array_equal(projected[2], np.sign(arrays[2]))
    assert not state.enqueued


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected shape \(2, 20, 31\), got \(2, 31, 20\)"):
        backend.norms([Batch("spectral", 2, 20, 31)], [np.zeros((2, 31, 20), np.float32).view(Array)])


# ---- devices -----------------------------------------------------------------------------------------------------------------


def on(array: Array, number: int) -> Array:
    array.on = number
    return array


def test_arrays_of_another_device_run_there():
    """A pointer of one device in a kernel of another is an illegal address, after which the process cannot use the GPU."""
    rng = np.random.default_rng(2)
    arrays = [on(random(rng, batch), 1) for batch in BATCHES]
    made = backend.dualize(BATCHES, arrays, [1.0] * 4)
    assert {ordinal for _, _, ordinal in state.enqueued} == {1}
    assert state.device == 0
    assert {array.on for array in made} == {1}


def test_arrays_of_two_devices_are_refused():
    rng = np.random.default_rng(2)
    arrays = [on(random(rng, batch), i % 2) for i, batch in enumerate(BATCHES)]
    with pytest.raises(ValueError, match="must be on one GPU, got 0 for the first and 1 for a row_rms leaf"):
        backend.norms(BATCHES, arrays)


# ---- threads, streams, captures ----------------------------------------------------------------------------------------------

ONE = [Batch("rms", 1, 1, 8)]


def test_threads_do_not_read_each_others_tables(monkeypatch):
    """Two threads on one stream with equal shapes: the second would run between the first one's upload and its launches, if it could."""
    arrays = [random(np.random.default_rng(i), ONE[0]) for i in range(2)]
    backend.dualize(ONE, [arrays[0]], [np.ones(1)])  # both threads then find the same executable
    meeting = threading.Event()

    def slowly(item, stream, ordinal):
        enqueue(item, stream, ordinal)
        if item.kernel == "upload" and threading.current_thread().name == "first":
            meeting.set()
            time.sleep(0.2)

    monkeypatch.setattr(runtime, "enqueue", slowly)
    made = {}

    def call(name, array, scale):
        if name == "second":
            assert meeting.wait(5)
        made[name] = backend.dualize(ONE, [array], [np.full(1, scale)])[0]

    threads = [threading.Thread(target=call, args=args, name=args[0]) for args in (("first", arrays[0], 2.0), ("second", arrays[1], 3.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for name, array, scale in (("first", arrays[0], 2.0), ("second", arrays[1], 3.0)):
        np.testing.assert_allclose(made[name], scale * array / np.sqrt((array**2).mean()), rtol=1e-5)


def test_default_streams_of_threads_are_not_one_stream(monkeypatch):
    """CUPY_CUDA_PER_THREAD_DEFAULT_STREAM=1 gives these streams one number, but they do not wait for each other."""
    stream = Stream(runtime.PER_THREAD_STREAM)
    keys = [runtime.StreamKey(stream), runtime.StreamKey(stream)]
    thread = threading.Thread(target=lambda: keys.append(runtime.StreamKey(stream)))
    thread.start()
    thread.join(5)
    assert keys[0] == keys[1]
    assert keys[0] != keys[2]
    assert runtime.StreamKey(Stream(7)) == runtime.StreamKey(Stream(7))


def test_a_callers_capture_holds_all_it_needs():
    """Replays give the captured result, whatever was called before and between: neither table nor workspace is shared."""
    rng = np.random.default_rng(3)
    first, second = (random(rng, ONE[0]) for _ in range(2))
    stream = Stream()
    with stream:
        for _ in range(3):
            backend.dualize(ONE, [first], [np.full(1, 2.0)])  # a warm-up, with the content that is captured next
        stream.begin_capture()
        (captured,) = backend.dualize(ONE, [first], [np.full(1, 2.0)])
        graph = stream.end_capture()
        (eager,) = backend.dualize(ONE, [first], [np.full(1, 2.0)])  # its table must not count as uploaded
        backend.dualize(ONE, [second], [np.full(1, 5.0)])
    expected = 2 * first / np.sqrt((first**2).mean())
    np.testing.assert_allclose(eager, expected, rtol=1e-5)
    for _ in range(2):
        captured[:] = 0
        graph.launch()
        np.testing.assert_allclose(captured, expected, rtol=1e-5)


# ---- which way ---------------------------------------------------------------------------------------------------------------


def ways(monkeypatch, dtype="float32"):
    """The geometries with which each module was called."""
    taken = {}
    for module in (cuda, plain):
        real = module.apply

        def noted(op, given, *rest, _module=module, _real=real, **options):
            taken[_module] = [batch.geometry for batch in given]
            return _real(op, given, *rest, **options)

        monkeypatch.setattr(module, "apply", noted)
    rng = np.random.default_rng(1)
    backend.dualize(BATCHES, [random(rng, batch, dtype) for batch in BATCHES], [1.0] * len(BATCHES))
    return taken.get(cuda, []), taken.get(plain, [])


def test_auto_takes_only_what_is_proved(monkeypatch):
    monkeypatch.setattr(gpu, "_default", "auto")
    with pytest.warns(RuntimeWarning, match=r"have not been checked on this NVIDIA Shim.*Check once: python -m modula_rs.kernels.check"):
        assert ways(monkeypatch) == ([], [batch.geometry for batch in BATCHES])
    record(rows="ok")
    assert ways(monkeypatch) == (["row_rms", "max_abs", "spectral"], ["spectral"])  # the last has no blocks
    record(small="ok")
    assert ways(monkeypatch) == ([batch.geometry for batch in BATCHES], [])
    record(rows="wrong: 0.3")
    assert ways(monkeypatch) == ([], [batch.geometry for batch in BATCHES])


def test_doubles_and_other_makes_take_the_portable_way(monkeypatch, fake_cupy):
    everything = [batch.geometry for batch in BATCHES]
    assert ways(monkeypatch, dtype="float64") == ([], everything)
    fake_cupy.cuda.runtime.is_hip = True
    gpu.forget()
    with pytest.raises(RuntimeError, match="they are for NVIDIA GPUs, and this CuPy is for ROCm"):
        ways(monkeypatch)
    with gpu.gpu_backend("auto"):
        assert ways(monkeypatch) == ([], everything)


def test_without_nvrtc_the_portable_way_is_taken(monkeypatch):
    """CuPy finds its compiled kernels in its cache; ours cannot be compiled."""

    def missing():
        raise RuntimeError("libnvrtc.so.13: cannot open shared object file")

    monkeypatch.setattr(sys.modules["cupy_backends.cuda.libs"].nvrtc, "getVersion", missing)
    with gpu.gpu_backend("auto"):
        assert ways(monkeypatch) == ([], [batch.geometry for batch in BATCHES])
        assert "libnvrtc.so.13" in gpu.gpu_status()["reason"]
    with pytest.raises(RuntimeError, match="NVRTC, which cannot be loaded"):
        ways(monkeypatch)


@pytest.mark.parametrize(("accuracy", "above", "promise"), [("standard", 1e-3, 0.01), ("fast", 0.01, 0.22), ("coarse", 0.01, 0.59)])
@pytest.mark.parametrize("choice", ["kernels", "portable"])
def test_a_level_of_accuracy_means_the_same_everywhere(choice, accuracy, above, promise):
    given = cases.matrix(np.random.default_rng(4), 24, 40, "log")[None].astype(np.float32).view(Array)
    with gpu.gpu_backend(choice):
        (made,) = backend.dualize([Batch("spectral", 1, 24, 40)], [given], [1.0], accuracy)
    assert cases.worst(made[0], given[0], above) < promise
    if choice == "kernels":  # only the standard accuracy needs the kernel of split float16
        assert any(kernel == "small_32_2" for kernel, *_ in state.enqueued) == (accuracy == "standard")


def test_the_maps_of_a_traced_network(monkeypatch):
    """Kernels (in, out), parts of different sizes, tables and vectors in a tree of CuPy arrays."""
    import jax
    import modula_rs as mr
    from modula_rs import arrays

    own = arrays.library
    monkeypatch.setattr(arrays, "library", lambda value: "cupy" if isinstance(value, Array) else own(value))

    def apply(p, tokens):
        x = p["table"][tokens]
        q, k = x @ p["fused"][:, :12], x @ p["fused"][:, 12:]
        return jax.numpy.tanh(q) @ p["q"] + jax.numpy.tanh(k) @ p["k"] + p["bias"]

    sizes = {"table": (30, 16), "fused": (16, 20), "q": (12, 5), "k": (8, 5), "bias": (5,), "step": (2,)}
    rng = np.random.default_rng(0)
    w = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    net = mr.trace(apply, w, jax.ShapeDtypeStruct((3, 7), "int32"), rules={"step": "frozen"})
    assert len(net.reading["fused"].blocks) == 2
    on_gpu = {name: array.view(Array) for name, array in w.items()}
    for name in ("normalize", "dualize"):
        made, expected = getattr(net, name)(on_gpu, nonfinite="propagate"), getattr(net, name)(w)
        assert list(made) == list(expected)
        for path, array in made.items():
            assert isinstance(array, Array)
            # Norms are within 1 % of their targets, directions within 0.01 of orthogonal.
            np.testing.assert_allclose(array, expected[path], rtol=0, atol=0.03 * np.abs(expected[path]).max() + 1e-7)
