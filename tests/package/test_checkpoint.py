"""Checkpoints: the same bits after a stop, a whole file after a crash, and refusal of what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from safetensors import safe_open

DTYPES = ["float32", "float64", "float16", "bfloat16"]


def same(a, b):
    """Equal bits, dtypes and libraries all the way down."""
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.random.Generator):
        return a.bit_generator.state == b.bit_generator.state
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if isinstance(a, np.ndarray | jax.Array):
        return type(a) is type(b) and a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return a == b


def model():
    return mr.ResMLP(width=6, num_blocks=3, block_depth=1, input_dim=4, output_dim=2)


def numpy_steps(m, w, state, rng, steps):
    for _ in range(steps):
        x = rng.standard_normal((5, 4)).astype(np.float32)
        y, pullback = m.vjp(x, w)
        update, state = mr.optim.adam(pullback(y - x[:, :2])[1], state)
        w = [a - 0.1 * u for a, u in zip(w, m.normalize(update), strict=True)]
    return w, state, rng


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_numpy_run_goes_on_to_the_same_bits(tmp_path, stop):
    m = model()
    start = lambda: (m.initialize(0), mr.optim.adam_init(m.initialize(0)), np.random.default_rng(3))  # noqa: E731
    straight = numpy_steps(m, *start(), 9)
    w, state, rng = numpy_steps(m, *start(), stop)
    mr.checkpoint.save(tmp_path / "run", m, w, (state, rng), step=stop)
    fresh_w, *fresh_state = start()
    saved = mr.checkpoint.load(tmp_path / "run", m, fresh_w, tuple(fresh_state))
    assert saved.step == stop
    assert same(numpy_steps(m, saved.weights, *saved.state, 9 - stop), straight)


@pytest.mark.slow
def test_a_jax_run_goes_on_to_the_same_bits(tmp_path):
    m = model()
    optimizer = optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(m), optax.scale_by_schedule(lambda t: -0.1 / (1 + t)))

    @jax.jit
    def step(w, state, key):
        key, draw = jax.random.split(key)
        x = jax.random.normal(draw, (5, 4))
        gradient = jax.grad(lambda w: jnp.mean((m(x, w) - x[:, :2]) ** 2))(w)
        update, state = optimizer.update(gradient, state)
        return optax.apply_updates(w, update), state, key

    def run(steps, w, state, key):
        for _ in range(steps):
            w, state, key = step(w, state, key)
        return w, state, key

    w = m.initialize(jax.random.key(0))
    start = (w, optimizer.init(w), jax.random.key(1))
    straight = run(7, *start)
    w, state, key = run(3, *start)
    mr.checkpoint.save(tmp_path / "run", m, w, (state, key), step=3)
    saved = mr.checkpoint.load(tmp_path / "run", m, start[0], start[1:])
    assert same(run(4, saved.weights, *saved.state), straight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(tmp_path, dtype):
    m = mr.MLP(2, 3, width=4, depth=3)
    w = m.initialize(0, dtype)
    mr.checkpoint.save(tmp_path / "run", m, w, {"a": 1, "b": (True, None, "x", 0.1), "c": np.arange(3)})
    saved = mr.checkpoint.load(tmp_path / "run", m, m.initialize(1, dtype), {"a": 0, "b": (False, None, "", 0.0), "c": np.zeros(3, int)})
    assert same(saved.weights, w)
    assert saved.state["b"] == (True, None, "x", 0.1)
    assert same(saved.state["c"], np.arange(3))


def test_names_are_those_of_the_leaves(tmp_path):
    m = mr.GPT(5, 4, 2, 8, 4, 4, 2)
    w = m.initialize(0)
    mr.checkpoint.save(tmp_path / "run.safetensors", m, w, mr.optim.adam_init(w))
    with safe_open(tmp_path / "run.safetensors", framework="np") as file:
        names = set(file.keys())
    paths = [leaf.path for leaf in m.leaves]
    assert names == {f"{part}/{path}" for part in ("weights", "state/mean", "state/root_mean_square") for path in paths}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 3), r"-.*\*\* 2(.|\n)*\+.*\*\* 3"),
        (lambda: mr.GPT(6, 4, 2, 8, 4, 4, 2), r"Embed\(5, 8\)(.|\n)*Embed\(6, 8\)"),
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 2, norm="rms"), "MeanSubtract"),
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 2, blocks_mass=5 + 1e-9), r"blocks/attention/q"),
    ],
)
def test_another_tree_is_refused_by_its_difference(tmp_path, other, message):
    m = mr.GPT(5, 4, 2, 8, 4, 4, 2)
    mr.checkpoint.save(tmp_path / "run", m, m.initialize(0))
    with pytest.raises(ValueError, match=message):
        mr.checkpoint.load(tmp_path / "run", other(), other().initialize(0))


@pytest.mark.parametrize(
    ("weights", "state", "message"),
    [
        ("float16", "adam", r"weights/input: the file has float32 of shape \(6, 4\), expected float16 of shape \(6, 4\)"),
        ("float32", "sgd", r"state/momentum/input: the file has nothing, expected float32"),
        ("float32", None, r"state/step: the file has int, expected nothing"),
    ],
)
def test_other_dtypes_and_states_are_refused(tmp_path, weights, state, message):
    m = model()
    w = m.initialize(0)
    mr.checkpoint.save(tmp_path / "run", m, w, mr.optim.adam_init(w))
    example = m.initialize(0, weights)
    init = {"adam": mr.optim.adam_init, "sgd": mr.optim.sgd_init, None: lambda w: None}[state]
    with pytest.raises(ValueError, match=message):
        mr.checkpoint.load(tmp_path / "run", m, example, init(example))


def test_broken_files_and_strange_states_are_refused(tmp_path):
    m = model()
    w = m.initialize(0)
    with pytest.raises(TypeError, match=r"state/f: .*function"):
        mr.checkpoint.save(tmp_path / "run", m, w, {"f": len})
    assert list(tmp_path.iterdir()) == []
    mr.checkpoint.save(tmp_path / "run", m, w)
    (tmp_path / "half").write_bytes((tmp_path / "run").read_bytes()[:-10])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        mr.checkpoint.load(tmp_path / "half", m, w)
    with pytest.raises(FileNotFoundError):
        mr.checkpoint.load(tmp_path / "absent", m, w)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    m = model()
    old, new = m.initialize(0), m.initialize(1)
    mr.checkpoint.save(tmp_path / "run", m, old)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mr.checkpoint.save(tmp_path / "run", m, new)
    monkeypatch.undo()
    assert same(mr.checkpoint.load(tmp_path / "run", m, old).weights, old)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


WRITER = """
import sys, modula_rs as mr
m = mr.Linear(512, 512)
w, step = m.initialize(0), 0
while True:
    step += 1
    w[0][:] = step
    mr.checkpoint.save(sys.argv[1], m, w, step=step)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    m = mr.Linear(512, 512)
    for delay in (0.0, 0.003, 0.007):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "run")], stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(delay)
        writer.kill()
        writer.communicate()
        saved = mr.checkpoint.load(tmp_path / "run", m, m.initialize(0))
        assert (saved.weights[0] == saved.step).all()
