"""The JAX route to the kernels, run on the host: XLA's CPU buffers, the shim's launches."""

from __future__ import annotations

import cases
import host
import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: its route to the kernels cannot be tried")
pytestmark = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)


def run(build, batches, arrays, scales=None, **options):
    from modula_rs.backend.jax import cuda as jax_cuda
    from modula_rs.kernels.device import H200

    def launch(item, context):
        host.launch(item)

    leaves = jax_cuda._leaves(batches, arrays)
    compiled = jax.jit(
        lambda a, s: jax_cuda.call(build, leaves, a, s, device=H200, enqueue=launch, address=lambda b: np.asarray(b).ctypes.data, **options)
    )
    return compiled(arrays, scales)[0]


def test_maps_inside_jit():
    import jax.numpy as jnp
    from modula_rs.backend import Batch
    from modula_rs.kernels import maps

    rng = np.random.default_rng(3)
    batches = [Batch("spectral", 2, 20, 31), Batch("row_rms", 1, 5, 9), Batch("spectral", 1, 31, 20)]
    arrays = [jnp.asarray(rng.standard_normal((g.count, g.rows, g.cols)), jnp.float32) for g in batches]
    scales = [jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]), jnp.asarray([1.0])]
    direction = run(maps.dualize, batches, arrays, scales)
    assert cases.worst(np.asarray(direction[0][1]) / 2, np.asarray(arrays[0][1]), 1e-3) < 0.01
    assert cases.worst(np.asarray(direction[2][0]), np.asarray(arrays[2][0]), 1e-3) < 0.01
    rows = np.asarray(arrays[1])
    np.testing.assert_allclose(direction[1], 3 * rows / np.sqrt((rows**2).mean(-1, keepdims=True)), rtol=1e-5)
    normalized = run(maps.normalize, batches, arrays, scales)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(normalized[0]), 2, axis=(1, 2)), [1, 2], rtol=0.01)


@pytest.fixture
def on_the_host(monkeypatch):
    """The maps themselves, launched on the shim."""
    from modula_rs.backend.jax import cuda as jax_cuda
    from modula_rs.kernels.device import H200

    monkeypatch.setattr(jax_cuda, "current", lambda: H200)
    monkeypatch.setattr(jax_cuda, "_enqueue", lambda item, context: host.launch(item))
    monkeypatch.setattr(jax_cuda, "_address", lambda buffer: np.asarray(buffer).ctypes.data)
    return jax_cuda


def test_estimates_move_from_call_to_call_inside_jit(on_the_host):
    import jax.numpy as jnp
    from modula_rs.backend import VECTORS, Batch
    from modula_rs.backend.jax import pure as jax_pure

    rng = np.random.default_rng(4)
    batches = (Batch("spectral", 2, 20, 31), Batch("row_rms", 1, 5, 9), Batch("spectral", 1, 31, 20))
    arrays = [jnp.asarray(rng.standard_normal((g.count, g.rows, g.cols)), jnp.float32) for g in batches]
    scales = [jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]), jnp.asarray([1.0])]
    step = jax.jit(lambda a, s, v: on_the_host.apply("unit", "standard", batches, a, s, v))
    pure = jax.jit(lambda a, s, v: jax_pure.apply("unit", "standard", batches, a, s, v))
    vectors = [jnp.zeros((g.count, VECTORS, g.cols)) if g.geometry == "spectral" else None for g in batches]
    for turn in range(4):
        expected = pure(arrays, scales, vectors)
        made, vectors = step(arrays, scales, vectors)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), (made, vectors)) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
        for ours, theirs in zip(made, expected[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4 if turn else 5e-3, atol=1e-6)
    # None stays None; where no leaf has estimates, zeros stand for none.
    _, none = step(arrays, scales, [None] * 3)
    assert [None if v is None else v.any().item() for v in none] == [False, None, False]


def test_estimates_under_vmap(on_the_host):
    import jax.numpy as jnp
    from modula_rs.backend import VECTORS, Batch

    rng = np.random.default_rng(5)
    group = (Batch("spectral", 1, 12, 15),)
    arrays, zeros = jnp.asarray(rng.standard_normal((3, 1, 12, 15)), jnp.float32), jnp.zeros((3, 1, VECTORS, 15))
    made, vectors = jax.jit(jax.vmap(lambda a, v: on_the_host.apply("unit", "standard", group, [a], [jnp.ones(1)], [v])))(arrays, zeros)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(made[0]), 2, axis=(2, 3)), 1, rtol=0.01)
    assert vectors[0].shape == zeros.shape


def test_without_a_gpu_the_reference_is_used():
    from modula_rs.backend.jax import cuda as jax_cuda

    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert not jax_cuda.available()
