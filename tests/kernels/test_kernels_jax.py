"""The JAX route to the kernels, run on the host: XLA's CPU buffers, the shim's launches."""

from __future__ import annotations

from functools import partial

import cases
import host
import numpy as np
import pytest
from modula_rs.backend import VECTORS, Batch, gpu
from modula_rs.kernels import verdicts
from modula_rs.kernels.device import H200

jax = pytest.importorskip("jax", reason="JAX is not installed: its route to the kernels cannot be tried")

import jax.numpy as jnp  # noqa: E402  # where it is installed
from modula_rs.backend import jax as backend  # noqa: E402
from modula_rs.backend.jax import cuda, pure  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)]
#: A device under "auto" on which all families are proved, except those that run on request only.
DEVICE = H200._replace(allowed=verdicts.allowed(verdicts.FAMILIES))
BATCHES = (Batch("spectral", 2, 20, 31), Batch("row_rms", 1, 5, 9), Batch("spectral", 1, 31, 20))


def dualize(arrays, scales, device=DEVICE):
    return cuda.apply("direction", "standard", BATCHES, arrays, scales, [None] * 3, device=device)[0]


def normalize(arrays, scales, vectors):
    return cuda.apply("unit", "standard", BATCHES, arrays, scales, vectors, device=DEVICE)


@pytest.fixture
def on_the_host(monkeypatch):
    """The maps' kernels, launched on the shim; what was prepared, and on which device."""
    prepared = []
    monkeypatch.setattr(cuda, "_ordinals", lambda: [0, 1])
    monkeypatch.setattr(cuda, "_prepare", lambda plan, ordinal: prepared.append(ordinal))
    monkeypatch.setattr(cuda, "_enqueue", lambda item, context: host.launch(item))
    monkeypatch.setattr(cuda, "_address", lambda buffer: np.asarray(buffer).ctypes.data)
    return prepared


def arrays_of(rng, batches=BATCHES):
    return [jnp.asarray(rng.standard_normal((g.count, g.rows, g.cols)), jnp.float32) for g in batches]


def test_maps_inside_jit(on_the_host):
    arrays = arrays_of(np.random.default_rng(3))
    scales = [jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]), jnp.asarray([1.0])]
    direction = jax.jit(partial(dualize, device=DEVICE))(arrays, scales)
    assert on_the_host == [0, 1]  # loaded on every GPU of the process, when JAX traces
    assert cases.worst(np.asarray(direction[0][1]) / 2, np.asarray(arrays[0][1]), 1e-3) < 0.01
    assert cases.worst(np.asarray(direction[2][0]), np.asarray(arrays[2][0]), 1e-3) < 0.01
    rows = np.asarray(arrays[1])
    np.testing.assert_allclose(direction[1], 3 * rows / np.sqrt((rows**2).mean(-1, keepdims=True)), rtol=1e-5)
    normalized, _ = jax.jit(partial(normalize, vectors=[None] * 3))(arrays, scales)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(normalized[0]), 2, axis=(1, 2)), [1, 2], rtol=0.01)
    for name in ("norms", "dual_norms"):
        made = jax.jit(partial(getattr(cuda, name), BATCHES, device=DEVICE))(arrays)
        for ours, theirs in zip(made, getattr(pure, name)(BATCHES, arrays), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0.01)


def test_estimates_move_from_call_to_call_inside_jit(on_the_host):
    rng = np.random.default_rng(4)
    arrays, scales = arrays_of(rng), [jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]), jnp.asarray([1.0])]
    step = jax.jit(lambda a, s, v: normalize(a, s, v))
    reference = jax.jit(lambda a, s, v: pure.apply("unit", "standard", BATCHES, a, s, v))
    vectors = [jnp.zeros((g.count, VECTORS, g.cols)) if g.geometry == "spectral" else None for g in BATCHES]
    for call in range(4):
        expected = reference(arrays, scales, vectors)
        made, vectors = step(arrays, scales, vectors)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (made, vectors)) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
        for ours, theirs in zip(made, expected[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4 if call else 5e-3, atol=1e-6)
    # None stays None; if no leaf has estimates, zeros are returned, which stand for none.
    _, none = step(arrays, scales, [None] * 3)
    assert [None if v is None else v.any().item() for v in none] == [False, None, False]


def test_estimates_under_vmap(on_the_host):
    rng = np.random.default_rng(5)
    batch = (Batch("spectral", 1, 12, 15),)
    arrays, zeros = jnp.asarray(rng.standard_normal((3, 1, 12, 15)), jnp.float32), jnp.zeros((3, 1, VECTORS, 15))
    step = jax.vmap(lambda a, v: cuda.apply("unit", "standard", batch, [a], [jnp.ones(1)], [v], device=DEVICE))
    made, vectors = jax.jit(step)(arrays, zeros)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(made[0]), 2, axis=(2, 3)), 1, rtol=0.01)
    assert vectors[0].shape == zeros.shape


def test_only_leaves_that_kernels_serve_go_to_them(on_the_host, monkeypatch):
    rows = DEVICE._replace(allowed=verdicts.allowed(["rows", "jax"]))
    launched = []
    monkeypatch.setattr(cuda, "_enqueue", lambda item, context: (launched.append(item.module), host.launch(item)))
    arrays, scales = arrays_of(np.random.default_rng(6)), [jnp.ones(g.count) for g in BATCHES]
    made = jax.block_until_ready(jax.jit(partial(dualize, device=rows))(arrays, scales))
    assert set(launched) == {"upload", "rows"}
    for ours, theirs in zip(made, pure.apply("direction", "standard", BATCHES, arrays, scales, [None] * 3)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_kernels_that_cannot_be_loaded_give_way(on_the_host, monkeypatch):
    """An error of NVRTC or of the driver is known when JAX traces, not in the middle of a training run."""

    def broken(plan, ordinal):
        raise RuntimeError("CUDA_ERROR_NO_BINARY_FOR_GPU")

    monkeypatch.setattr(cuda, "_prepare", broken)
    arrays, scales = arrays_of(np.random.default_rng(7)), [jnp.ones(g.count) for g in BATCHES]
    with pytest.warns(RuntimeWarning, match=r"cannot be loaded \(CUDA_ERROR_NO_BINARY_FOR_GPU\); using jax.numpy"):
        made = jax.jit(partial(dualize, device=DEVICE))(arrays, scales)
    for ours, theirs in zip(made, pure.apply("direction", "standard", BATCHES, arrays, scales, [None] * 3)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_launches_are_made_once_for_each_workspace(on_the_host, monkeypatch):
    """The callback runs in every step: it must not prepare the same launches anew."""
    from modula_rs.kernels import runtime

    made = []
    real = runtime.standing
    monkeypatch.setattr(runtime, "standing", lambda plan, base: (made.append(base), real(plan, base))[1])
    arrays, scales = arrays_of(np.random.default_rng(8)), [jnp.ones(g.count) for g in BATCHES]
    compiled = jax.jit(partial(dualize, device=DEVICE))
    for _ in range(6):
        jax.block_until_ready(compiled(arrays, scales))
    assert len(made) == len(set(made))


@pytest.mark.parametrize(
    ("devices", "choice", "allowed"),
    [
        ([DEVICE], "auto", True),
        ([DEVICE, DEVICE], "auto", True),
        ([DEVICE], "portable", False),
        ([None], "auto", False),
        ([DEVICE._replace(allowed=DEVICE.allowed - {"jax"})], "auto", False),
        ([DEVICE, DEVICE._replace(processors=66)], "auto", False),  # one program for both, but not one plan
    ],
)
def test_what_the_kernels_may_do_is_decided_for_the_gpus_of_jax(monkeypatch, devices, choice, allowed):
    pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(cuda, "_ordinals", lambda: list(range(len(devices))))
    monkeypatch.setattr(cuda.runtime, "require_gpu", lambda: None)
    monkeypatch.setattr(gpu, "device", lambda ordinal: devices[ordinal])
    with gpu.gpu_backend(choice):
        assert cuda.device() == (devices[0] if allowed else None)


def test_the_choice_is_part_of_what_is_compiled(on_the_host, monkeypatch):
    """A changed choice compiles anew; without a GPU no kernel can be chosen."""
    traced = []
    real = cuda.apply
    monkeypatch.setattr(cuda, "apply", lambda *args, **options: (traced.append(options["device"]), real(*args, **options))[1])
    arrays, scales = arrays_of(np.random.default_rng(9)), [jnp.ones(g.count) for g in BATCHES]
    for found in (None, DEVICE, None, DEVICE):
        monkeypatch.setattr(cuda, "device", lambda found=found: found)
        backend.apply("direction", BATCHES, arrays, scales)
    assert traced == [DEVICE]


def test_without_a_gpu_the_reference_is_used():
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert cuda.device() is None
