"""Mistakes on a mesh: the message names the leaf, what came, and what to do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import pytest
from eight import P, arrays, mesh, put
from jax.sharding import NamedSharding

M = mr.Linear(16, 32).named("head") @ mr.Linear(32, 10).named("stem")
MAPS: list[Any] = [M.dualize, M.normalize, M.project, M.norm, M.dual_norm, M.cold_vectors, lambda w: M.tangent(w, w)]


@pytest.mark.parametrize("call", MAPS)
def test_two_meshes(call: Any) -> None:
    one, other = mesh("auto"), mesh("auto", (8,), ("x",))
    w = put(arrays(M), [NamedSharding(one, P("a")) if x.shape[0] == 32 else NamedSharding(other, P()) for x in arrays(M)])
    with pytest.raises(ValueError, match=r"stem lies on a mesh of 8 devices \(a 4, b 2\), head on a mesh of 8 devices \(x 8\).*device_put"):
        call(w)


@pytest.mark.parametrize("call", MAPS)
def test_a_mesh_and_one_device(call: Any) -> None:
    w = arrays(M)
    w = [jax.device_put(w[0], NamedSharding(mesh("explicit"), P("a"))), jax.device_put(w[1], jax.devices()[3])]
    with pytest.raises(ValueError, match=r"head lies on .*3.*, but stem on a mesh of 8 devices"):
        call(w)


@pytest.mark.parametrize("call", MAPS)
def test_two_devices(call: Any) -> None:
    w = [jax.device_put(x, device) for x, device in zip(arrays(M), jax.devices()[1:3], strict=True)]
    with pytest.raises(ValueError, match=r"stem lies on .*1.*, head on .*2.*: put all arrays on one device, or on one mesh"):
        call(w)


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


@pytest.mark.parametrize("method", ["dualize", "normalize"])
def test_a_map_of_shards_inside_shard_map(method: str) -> None:
    from modula_rs.backend.jax.sharded.meshes import shard_map

    on = mesh("auto", (8,), ("x",))
    w = arrays(M)
    inside = shard_map(lambda g: getattr(M, method)(g), on, ([P("x"), P()],), [P("x"), P()])
    message = r"of stem must have shape \(32, 10\), got \(4, 10\): it is a shard, inside shard_map. Call modula_rs outside of shard_map"
    with pytest.raises(ValueError, match=message):
        jax.jit(inside)(w)


def test_copies_inside_shard_map_are_whole() -> None:
    from modula_rs.backend.jax.sharded.meshes import shard_map

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
