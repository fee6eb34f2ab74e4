"""The JAX route to the kernels, run on the host: XLA's CPU buffers, the shim's launches."""

from __future__ import annotations

import cases
import host
import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytestmark = pytest.mark.skipif(host.COMPILER is None, reason=host.NO_COMPILER)


def run(build, groups, arrays, scales=None, **options):
    from modula_rs.backend import jax_cuda
    from modula_rs.kernels.device import H200

    def launch(item, context):
        host.launch(item)

    leaves = jax_cuda._leaves(groups, arrays)
    compiled = jax.jit(
        lambda a, s: jax_cuda.call(build, leaves, a, s, device=H200, enqueue=launch, address=lambda b: np.asarray(b).ctypes.data, **options)
    )
    return compiled(arrays, scales)


def test_maps_inside_jit():
    import jax.numpy as jnp
    from modula_rs.backend import Group
    from modula_rs.kernels import maps

    rng = np.random.default_rng(3)
    groups = [Group("spectral", 2, 20, 31), Group("row_rms", 1, 5, 9), Group("spectral", 1, 31, 20)]
    arrays = [jnp.asarray(rng.standard_normal((g.count, g.rows, g.cols)), jnp.float32) for g in groups]
    scales = [jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]), jnp.asarray([1.0])]
    direction = run(maps.dualize, groups, arrays, scales)
    assert cases.worst(np.asarray(direction[0][1]) / 2, np.asarray(arrays[0][1]), 1e-3) < 0.01
    assert cases.worst(np.asarray(direction[2][0]), np.asarray(arrays[2][0]), 1e-3) < 0.01
    rows = np.asarray(arrays[1])
    np.testing.assert_allclose(direction[1], 3 * rows / np.sqrt((rows**2).mean(-1, keepdims=True)), rtol=1e-5)
    normalized = run(maps.normalize, groups, arrays, scales)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(normalized[0]), 2, axis=(1, 2)), [1, 2], rtol=0.01)


def test_without_a_gpu_the_reference_is_used():
    from modula_rs.backend import jax_cuda

    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    assert not jax_cuda.available()
