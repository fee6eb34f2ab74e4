"""Step sizes, decay, fixed norms and row moments on eight devices, all in one chain: values, placements, a checkpoint on fewer devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import optax
import pytest
from eight import P, arrays, assert_like, mesh, put
from jax.sharding import NamedSharding

M = mr.Linear(16, 32) @ (0.5 * mr.Identity() + 0.5 * mr.Linear(32, 32)) ** 2 @ mr.Embed(32, 8)


def chain(shardings: Any) -> optax.GradientTransformation:
    where = {"shardings": shardings}
    moments = optax.chain(mr.optax.scale_by_modular_norm(M, "dualize", **where), mr.optax.scale_by_row_moments(M, **where))
    sized = mr.optax.scale_by_prodigy(M, mr.optax.scale_by_dog(M, moments, **where), **where)
    base = optax.chain(sized, mr.optax.add_modular_decay(M, 0.1), optax.scale(-1.0), mr.optax.keep_radius(M, **where))
    return mr.optax.schedule_free(base, 1.0)


def weights(on: Any, seed: Any = 0) -> tuple[list[jax.Array], list[NamedSharding]]:
    """Stacks split by rows and columns, other arrays by their last axis."""
    w = [jnp.asarray(x) for x in M.initialize(jax.random.key(seed))]
    where = [NamedSharding(on, P(None, "b", "a") if x.ndim == 3 else P(None, "a")) for x in w]
    return put(w, where), where


def steps(optimizer: Any, w: Any, state: Any, seeds: Any, like: Any = None) -> Any:
    """A step for each seed, with gradients that lie like the weights."""
    update = jax.jit(lambda g, state, w: optimizer.update(g, state, w))
    for seed in seeds:
        g = arrays(M, seed)
        made, state = update(g if like is None else put(g, like), state, w)
        w = optax.apply_updates(w, made)
    return w, state


@pytest.fixture(scope="module")
def alone() -> Any:
    """The weights of one device after two and after three steps."""
    w = [jnp.asarray(x) for x in M.initialize(jax.random.key(0))]
    optimizer = chain(None)
    w, state = steps(optimizer, w, optimizer.init(w), (1, 2))
    return w, steps(optimizer, w, state, (3,))[0]


def test_steps_on_an_auto_mesh_and_on_with_fewer_devices_on_an_explicit_one(alone: Any, tmp_path: Path) -> None:
    w, where = weights(mesh("auto"))
    optimizer = chain(where)
    first = mr.optax.init(optimizer, w)
    w, state = steps(optimizer, w, first, (1, 2), where)
    assert_like(w, alone[0], where, tolerance=1e-4)
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(state), strict=True):
        assert before.sharding.is_equivalent_to(after.sharding, after.ndim), f"{path}: {before.sharding} is not {after.sharding}"
    mr.checkpoint.save(tmp_path / "run", M, w, state, step=2)
    on = jax.make_mesh((2, 2), ("a", "b"), axis_types=mesh("explicit").axis_types, devices=jax.devices()[:4])
    other, there = weights(on, seed=5)
    fewer = chain(None)
    saved = mr.checkpoint.load(tmp_path / "run", M, other, fewer.init(other))
    made, _ = steps(fewer, saved.weights, saved.state, (3,), there)
    assert_like(made, alone[1], there, tolerance=1e-4)
