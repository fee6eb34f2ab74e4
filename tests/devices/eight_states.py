"""States of the optax transformation on eight devices: where they lie, wrappers, compilations, checkpoints on other meshes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import optax
import pytest
from eight import P, arrays, assert_like, mesh, put
from jax.sharding import NamedSharding

M = mr.Linear(16, 32) @ mr.Bias(32) @ (0.5 * mr.Identity() + 0.5 * mr.Linear(32, 32)) ** 4 @ mr.Linear(32, 16)


def placed(on: Any, seed: int = 0) -> tuple[list[jax.Array], list[NamedSharding]]:
    """Fully sharded: the last axis over ``a``, the stack over ``b``."""
    w = arrays(M, seed)
    where = [NamedSharding(on, P("b", None, "a") if x.ndim == 3 else P(*[None] * (x.ndim - 1), "a")) for x in w]
    return put(w, where), where


def chain(shardings: Any = None) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(), mr.optax.scale_by_modular_norm(M, shardings=shardings), optax.scale(-0.1))


def stepped(optimizer: Any, w: Any, state: Any, steps: int = 3, step: Any = None) -> Any:
    """Some steps with gradients that depend on the weights."""
    step = step or jax.jit(lambda w, state: advance(optimizer, w, state))
    for _ in range(steps):
        w, state = step(w, state)
    return w, state


def advance(optimizer: Any, w: Any, state: Any) -> Any:
    gradient = jax.grad(lambda w: sum(jnp.sum(jnp.sin(x)) for x in w))(w)
    update, state = optimizer.update(gradient, state, w)
    return optax.apply_updates(w, update), state


@pytest.fixture(scope="module")
def alone() -> Any:
    """Three steps on one device."""
    w = arrays(M)
    optimizer = chain()
    return stepped(optimizer, w, optimizer.init(w))[0]


@pytest.fixture(scope="module")
def run() -> Any:
    """Weights and state after three steps on eight devices, and the weights after one more."""
    w, where = placed(mesh("auto"))
    step = jax.jit(lambda w, state: advance(chain(where), w, state))
    w, state = stepped(chain(where), w, mr.optax.init(chain(where), w), step=step)
    return w, state, stepped(chain(where), w, state, 1, step)[0]


@pytest.mark.parametrize("kind", ["auto", "explicit"])
@pytest.mark.parametrize("compiled", [False, True])
def test_init_places_the_state_like_the_weights(kind: str, compiled: bool) -> None:
    on = mesh(kind)
    w, where = placed(on)
    scaling = mr.optax.scale_by_modular_norm(M, shardings=where if kind == "auto" else None)
    state = (jax.jit(scaling.init) if compiled else scaling.init)(w)
    expected = [NamedSharding(on, P("b", None, "a") if x.ndim == 3 else P(None, None, "a")) for x in w]
    for vectors, x, wanted in zip(state.vectors, w, expected, strict=True):
        if x.ndim > 1:
            assert vectors.sharding.is_equivalent_to(wanted, 3)
    assert state.count.sharding.is_equivalent_to(NamedSharding(on, P()), 0)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_a_run_compiles_once_and_agrees_with_one_device(kind: str, alone: Any) -> None:
    w, where = placed(mesh(kind))
    optimizer = chain(where)
    step = jax.jit(lambda w, state: advance(optimizer, w, state), donate_argnums=(0, 1))
    w, state = stepped(optimizer, w, mr.optax.init(optimizer, w), step=step)
    assert_like(w, alone, where, tolerance=1e-4)
    assert step._cache_size() == 1
    for vectors, array in zip(state[1].vectors, w, strict=True):
        if array.ndim == 3:
            assert vectors.sharding.is_equivalent_to(NamedSharding(where[0].mesh, P("b", None, "a")), 3)


def test_a_compiled_init_of_a_chain_on_an_explicit_mesh(alone: Any) -> None:
    w, where = placed(mesh("explicit"))
    optimizer = chain()
    state = jax.jit(optimizer.init)(w)
    assert_like(state[0].mu, [0 * x for x in w], where)
    assert_like(stepped(optimizer, w, state)[0], alone, where, tolerance=1e-4)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_a_scan_over_steps(kind: str, alone: Any) -> None:
    w, where = placed(mesh(kind))
    optimizer = chain(where)

    def run(carry: Any) -> Any:
        return jax.lax.scan(lambda carry, _: (advance(optimizer, *carry), None), carry, None, length=3)[0]

    made, _ = jax.jit(run)((w, mr.optax.init(optimizer, w)))
    assert_like(made, alone, where, tolerance=1e-4)


def test_masked_partitioned_and_accumulated() -> None:
    w, where = placed(mesh("explicit"))
    g, _ = placed(mesh("explicit"), seed=1)
    plain = [jnp.asarray(np.asarray(x)) for x in g]
    mask = [x.ndim > 1 for x in w]
    masked = optax.masked(mr.optax.scale_by_modular_norm(M, shardings=where), mask)
    made, _ = jax.jit(masked.update)(g, masked.init(w))
    expected, _ = masked.update(plain, optax.masked(mr.optax.scale_by_modular_norm(M), mask).init(plain))
    assert_like(made, expected, where)
    labels = ["matrix" if x.ndim > 1 else "vector" for x in w]
    parted = optax.multi_transform({"matrix": mr.optax.scale_by_modular_norm(M, "dualize"), "vector": optax.scale(0.5)}, labels)
    made, _ = jax.jit(parted.update)(g, parted.init(w))
    expected, _ = parted.update(plain, parted.init(plain))
    assert_like(made, expected, where)
    several = optax.MultiSteps(mr.optax.scale_by_modular_norm(M), every_k_schedule=2)
    state = several.init(w)
    update = jax.jit(several.update)
    for _ in range(2):
        made, state = update(g, state)
    assert_like(made, M.normalize(plain), where, tolerance=1e-4)


@pytest.mark.parametrize(
    ("kind", "shape", "fresh"), [("auto", (2, 2), True), ("explicit", (4, 1), False), ("one", (), True), ("one", (), False)]
)
def test_own_checkpoints_go_on_elsewhere(run: Any, tmp_path: Path, kind: str, shape: tuple[int, ...], fresh: bool) -> None:
    """A run of eight devices goes on with four and with one, from a fresh example or one of a run, with no device_put by hand."""
    w, state, expected = run
    mr.checkpoint.save(tmp_path / "run", M, w, state, step=3)
    if kind == "one":
        other, there = arrays(M, 5), None
    else:
        devices = jax.devices()[: shape[0] * shape[1]]
        on = jax.make_mesh(shape, ("a", "b"), axis_types=mesh(kind).axis_types, devices=devices)
        other, there = placed(on, 5)
    optimizer = chain(there if kind == "auto" else None)
    example = optimizer.init(other)
    if not fresh:
        _, example = stepped(optimizer, other, example, 1)
    saved = mr.checkpoint.load(tmp_path / "run", M, other, example)
    made, _ = stepped(optimizer, saved.weights, saved.state, 1)
    assert_like(made, expected, there, tolerance=1e-5)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_orbax_goes_on_elsewhere(run: Any, tmp_path: Path, kind: str) -> None:
    orbax = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed: nothing to restore with")
    w, state, expected = run
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run", (w, state))
    on = jax.make_mesh((2, 2), ("a", "b"), axis_types=mesh(kind).axis_types, devices=jax.devices()[:4])
    other, there = placed(on, 5)
    optimizer = chain(there)
    example = jax.tree.map(orbax.utils.to_shape_dtype_struct, (other, mr.optax.init(optimizer, other)))
    with orbax.StandardCheckpointer() as checkpointer:
        w_there, state_there = checkpointer.restore(tmp_path / "run", example)
    made, _ = stepped(optimizer, w_there, state_there, 1)
    assert_like(made, expected, there, tolerance=1e-5)


def test_the_plan_is_printed_before_anything_runs() -> None:
    w, where = placed(mesh("auto"))
    scaling = mr.optax.scale_by_modular_norm(M, "dualize", shardings=where)
    text = str(scaling.plan)
    assert "deal" in text
    assert "bytes in" in text
    assert "a mesh of 8 devices (a 4, b 2)" in text
    late = mr.optax.scale_by_modular_norm(M, "dualize")
    assert late.plan.devices == 1
    late.init(w)
    assert str(late.plan) == text
