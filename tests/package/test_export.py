"""Programs that ``jax.export`` saves: docs/export.md, each step in a process of its own, and the values of every map."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from jax import export

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
#: What calls of Rust are in a program.
CALLS = "custom_call @modula_rs"


def run(code, folder):
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_an_exported_program_runs_in_another_process(tmp_path):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed: JAX cannot write a saved program")
    exporting, running = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = run(exporting + "\nassert update(gradient)[0].shape == (32, 20)", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(
        running
        + "\nassert [u.shape for u in update] == [(32, 20), (1, 32, 32), (10, 32)]\nassert float(abs(update[0]).max()) > 0"
        + "\nimport sys\nassert 'modula_rs' not in sys.modules",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]


MAPS = {
    "normalize": lambda m, w: m.normalize(w, nonfinite="propagate"),
    "dualize": lambda m, w: m.dualize(w, nonfinite="propagate"),
    "project": lambda m, w: m.project(w),
    "norm": lambda m, w: [m.norm(w)],
    "dual_norm": lambda m, w: [m.dual_norm(w)],
}


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "under vmap"])
@pytest.mark.parametrize("name", MAPS)
def test_a_saved_program_calls_no_rust_and_has_the_same_values(name, mapped):
    m = mr.Linear(4, 8) @ mr.ReLU() @ mr.Bias(8) @ (mr.Linear(8, 8) ** 2) @ mr.Embed(8, 5)
    with mr.cpu_backend("rust"):
        w = m.initialize(jax.random.key(0))

        def call(w):
            return MAPS[name](m, w)

        if mapped:
            call, w = jax.vmap(call, in_axes=1), [jnp.stack([x, -2 * x, x**2], 1) for x in w]
        call = jax.jit(call)
        here = call(w)
        assert CALLS in call.lower(w).as_text()
        for platforms in (["cpu"], ["cpu", "tpu"]):
            saved = export.export(call, platforms=platforms)(w)
            assert CALLS not in saved.mlir_module()
            # Both are within 2e-6 of the exact directions of matrices that are this small and well conditioned.
            for x, y in zip(here, saved.call(w), strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=4e-6 * max(1.0, float(abs(x).max())))
        assert CALLS in call.lower(w).as_text(), "another program of the same function calls Rust still"


def test_a_step_of_optax_is_exported_and_so_are_gradients():
    m = mr.Linear(4, 4)
    w = m.initialize(jax.random.key(0))
    optimizer = mr.optax.scale_by_modular_norm(m)
    state = optimizer.init(w)
    step = jax.jit(optimizer.update)
    saved = export.export(step)(w, state)
    # The estimates of singular vectors in the state are the same only up to their signs.
    (update, _), (saved_update, _) = step(w, state), saved.call(w, state)
    np.testing.assert_allclose(update[0], saved_update[0], rtol=1e-5, atol=1e-6)
    slope = jax.jit(jax.grad(m.norm))
    np.testing.assert_allclose(export.export(slope)(w).call(w)[0], slope(w)[0], rtol=1e-5, atol=1e-6)
