"""Mistakes on a mesh: the message names the leaf, what came, and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import pytest
from eight import P, arrays, mesh, put
from jax.sharding import NamedSharding
from modula_rs.backend.jax.sharded.meshes import shard_map

M = mr.Linear(16, 32).named("head") @ mr.Linear(32, 10).named("stem")
NET = mr.trace(lambda w, x: x @ w["stem"] @ w["head"], {"stem": jnp.ones((10, 32)), "head": jnp.ones((32, 16))}, jnp.ones((4, 10)))

#: Everything that takes arrays like the weights.
ONE_TREE: dict[str, Any] = {
    **{name: lambda m, w, name=name: getattr(m, name)(w) for name in ("normalize", "dualize", "project", "radius", "hard_cap", "hammer")},
    **{name: lambda m, w, name=name: getattr(m, name)(w, 0.1) for name in ("regularize", "soft_cap", "spectral_decay")},
    **{name: lambda m, w, name=name: getattr(m, name)(w) for name in ("norm", "dual_norm", "atom_norms", "cold_vectors")},
    "tangent": lambda m, w: m.tangent(w, w),
    "manifold step": lambda m, w: m.manifold_step(w, w, 0.1),
    "part": lambda m, w: m.part([0, 1]).dualize(jax.tree.leaves(w)),
    "decay": lambda m, w: mr.optim.add_modular_decay(m, w, w, 0.1),
    "dog": lambda m, w: mr.optim.dog_init(m, w),
    "prodigy": lambda m, w: mr.optim.prodigy_init(m, w),
    "row moments": lambda m, w: mr.optim.row_moments_init(m, w),
    "adam": lambda m, w: mr.optim.adam_init(jax.tree.leaves(w)),
    "forward": lambda m, w: m(jnp.ones((4, 10)), w),
    "init": lambda m, w: mr.optax.scale_by_modular_norm(m).init(w),
    "init of radius": lambda m, w: mr.optax.keep_radius(m).init(w),
}

#: Everything that takes two trees of arrays like the weights.
TWO_TREES: dict[str, Any] = {
    "tangent": lambda m, g, w: m.tangent(g, w),
    "manifold step": lambda m, g, w: m.manifold_step(w, g, 0.1),
    "decay": lambda m, g, w: mr.optim.add_modular_decay(m, g, w, 0.1),
    "dog": lambda m, g, w: mr.optim.dog(m, g, w, mr.optim.dog_init(m, w)),
    "prodigy": lambda m, g, w: mr.optim.prodigy(m, w, w, mr.optim.prodigy_init(m, g)),
    "row moments": lambda m, g, w: mr.optim.row_moments(m, g, mr.optim.row_moments_init(m, w)),
    "schedule-free": lambda m, g, w: mr.optim.schedule_free(jax.tree.leaves(g), mr.optim.schedule_free_init(jax.tree.leaves(w)), 0.1),
    "update of decay": lambda m, g, w: mr.optax.add_modular_decay(m, 0.1).update(g, None, w),
    "update of radius": lambda m, g, w: updated(mr.optax.keep_radius(m), g, w),
    "update of schedule-free": lambda m, g, w: updated(mr.optax.schedule_free(mr.optax.scale_by_modular_norm(m), 0.1), g, w),
}


def updated(optimizer: Any, g: Any, w: Any) -> Any:
    return optimizer.update(g, optimizer.init(w), w)


def places() -> dict[str, tuple[Any, Any, str]]:
    """Pairs of places that do not go together, and a pattern of how each is named."""
    one, whole = NamedSharding(mesh("auto"), P("a")), r"a mesh of 8 devices \(a 4, b 2\)"
    first, second = (jax.sharding.SingleDeviceSharding(device) for device in jax.devices()[1:3])
    return {
        "two meshes": (one, NamedSharding(mesh("auto", (8,), ("x",)), P()), r"a mesh of 8 devices \(x 8\)"),
        "two explicit meshes": (
            NamedSharding(mesh("explicit"), P("a")), NamedSharding(mesh("explicit", (8,), ("x",)), P()), r"a mesh of 8 devices \(x 8\)",
        ),
        "a mesh and one device": (NamedSharding(mesh("explicit"), P("a")), first, whole),
        "two devices": (first, second, r"[A-Za-z_]*1\b"),
    }  # fmt: skip


def made_at(m: Any, stem: Any, head: Any) -> Any:
    """Weights that lie at two places."""
    shapes = {leaf.path: leaf.shape for leaf in m.leaves}
    w = {path: jax.device_put(jnp.ones(shapes[path]), where if where.is_fully_replicated or shapes[path][0] % 4 == 0 else
         NamedSharding(where.mesh, P())) for path, where in (("stem", stem), ("head", head))}  # fmt: skip
    return w if m is NET else [w[leaf.path] for leaf in m.leaves]


@pytest.mark.parametrize("pair", ["two meshes", "two explicit meshes", "a mesh and one device", "two devices"])
@pytest.mark.parametrize("m", [M, NET], ids=["module", "network"])
def test_arrays_at_different_places(m: Any, pair: str) -> None:
    one, other, described = places()[pair]
    apart = made_at(m, one, other)
    for name, call in ONE_TREE.items():
        with pytest.raises(
            ValueError, match=rf"(stem|head|weight \d).* lies on .*{described}.*: put all arrays on one device, or on one mesh"
        ):
            pytest.fail(f"{name} gave {call(m, apart)}")
    for name, call in TWO_TREES.items():
        with pytest.raises(ValueError, match=r"lies on .*: put all arrays on one device, or on one mesh"):
            pytest.fail(f"{name} gave {call(m, made_at(m, one, one), made_at(m, other, other))}")
    with pytest.raises(ValueError, match=r"weight of .*lies on .*, the input on .*: put all arrays"):
        m(jax.device_put(jnp.ones((4, 10)), other), made_at(m, one, one))


def test_meshes_that_meet_inside_jit() -> None:
    """One array is a constant of the compiled function, so JAX cannot compare them at the function's boundary."""
    one, other, _ = places()["two explicit meshes"]
    held = made_at(M, one, one)
    with pytest.raises(ValueError, match=r"stem lies on a mesh .*head on a mesh .*: put all arrays"):
        jax.jit(lambda w: M.dualize([held[0], w[1]]))(made_at(M, other, other))


def test_shapes_that_do_not_divide() -> None:
    where = [NamedSharding(mesh("auto"), P(None, ("a", "b")))] * 2
    with pytest.raises(ValueError, match=r"stem: axis 1 of its shape \(32, 10\) is split over 'a' \(4\) and 'b' \(2\), which does not"):
        M.dualize(arrays(M), shardings=where)
    with pytest.raises(ValueError, match="which does not divide it"):
        mr.optax.scale_by_modular_norm(M, shardings=where).plan  # noqa: B018
    with pytest.raises(ValueError, match="more axes than its shape"):
        M.dualize(arrays(M), shardings=NamedSharding(mesh("auto"), P(None, None, "a")))


def test_what_shardings_takes() -> None:
    on = mesh("auto")
    with pytest.raises(ValueError, match="one for each of the 2 arrays, or one for all, got 1"):
        M.dualize(arrays(M), shardings=[NamedSharding(on, P())])
    with pytest.raises(TypeError, match=r"expected a jax.sharding.NamedSharding for stem, got P"):
        M.dualize(arrays(M), shardings=[P("a"), P("a")])
    with pytest.raises(TypeError, match="shardings say where arrays of JAX lie"):
        M.dualize(M.initialize(0), shardings=NamedSharding(on, P()))
    with pytest.raises(ValueError, match="shardings: expected one for each of the 2 parameters, got 3"):
        mr.optax.scale_by_modular_norm(M, shardings=[NamedSharding(on, P())] * 3).init(arrays(M))


@pytest.mark.parametrize("m", [M, NET], ids=["module", "network"])
def test_shards_inside_shard_map(m: Any) -> None:
    on = mesh("auto", (8,), ("x",))
    w = made_at(m, NamedSharding(on, P()), NamedSharding(on, P()))
    message = (
        r"of (stem|head) must have shape \(..?, ..?\), got \(., ..\): it is a shard, inside shard_map. Call modula_rs outside of shard_map"
    )
    split = jax.tree.map(lambda x: P("x") if x.shape[0] % 8 == 0 else P(), w)
    for name, call in ONE_TREE.items():
        if name not in ("atom_norms", "part", "adam", "dog", "prodigy", "forward"):  # these look at values, or work on shards as well

            def inside(w: Any, call: Any = call) -> Any:
                call(m, w)
                return w

            with pytest.raises(ValueError, match=message):
                pytest.fail(f"{name} gave {jax.jit(shard_map(inside, on, (split,), split))(w)}")


def test_copies_inside_shard_map_are_whole() -> None:
    on = mesh("auto", (8,), ("x",))
    w = arrays(M)
    made = jax.jit(shard_map(lambda g: M.dualize(g), on, ([P(), P()],), [P(), P()]))(w)
    for x, y in zip(made, M.dualize(w), strict=True):
        assert jnp.allclose(x, y, atol=1e-6)


def test_nan_is_reported_with_the_leaf() -> None:
    w = arrays(M)
    where = [NamedSharding(mesh("explicit"), P("a"))] * 2
    w[1] = w[1].at[3, 4].set(jnp.nan)
    with pytest.raises(FloatingPointError, match="gradient of head: 1 of 512 numbers are not finite"):
        M.dualize(put(w, where))
