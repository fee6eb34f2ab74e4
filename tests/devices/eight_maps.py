"""Every map on eight devices gives the values of one device, and its results lie where its arrays lie."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from eight import PLACEMENTS, P, arrays, assert_like, mesh, module, put, shardings
from modula_rs.backend import jax as backend


def every_map(m: Any, g: list[Any], h: list[Any], where: Any, compiled: Any = lambda function: function) -> dict[str, Any]:
    """The results of all maps and measures; ``h`` is near ``g``, and takes a warm step from the estimates of ``g``."""
    options: dict[str, Any] = {"shardings": where, "nonfinite": "propagate"}
    normalize = compiled(lambda g, vectors: m.normalize(g, 0.5, vectors=vectors, **options))  # one program, cold and warm
    normalized, vectors = normalize(g, compiled(lambda g: m.cold_vectors(g, shardings=where))(g))

    def others(g: list[Any]) -> dict[str, Any]:
        return {
            "dualize": m.dualize(g, 2.0, **options),
            "project": m.project(g, **options),
            "regularize": m.regularize(g, 0.1, shardings=where),
            "norm": m.norm(g, shardings=where),
            "dual norm": m.dual_norm(g, shardings=where),
        }

    return {"normalize": normalized, "warm": normalize(h, vectors)[0], **compiled(others)(g)}


def near(g: list[jax.Array], seed: int = 1) -> list[jax.Array]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(x + 0.02 * rng.standard_normal(x.shape), x.dtype) for x in g]


@pytest.fixture(scope="module")
def reference() -> tuple[mr.Module, list[jax.Array], list[jax.Array], dict[str, Any]]:
    m = module()
    g = arrays(m)
    h = near(g)
    return m, g, h, every_map(m, g, h, None)


def check(made: dict[str, Any], expected: dict[str, Any], where: Any) -> None:
    for name, result in made.items():
        if isinstance(result, list):
            assert_like(result, expected[name], where)
        else:
            np.testing.assert_allclose(np.asarray(result), np.asarray(expected[name]), rtol=1e-5, err_msg=name)


#: Both kinds of mesh for one placement; the others alternate, because an arrangement takes several seconds to compile.
ARRANGEMENTS = [("explicit", "columns"), *zip(cycle(["auto", "explicit"]), PLACEMENTS, strict=False)]


@pytest.mark.parametrize(("kind", "name"), ARRANGEMENTS)
def test_compiled(reference: Any, kind: str, name: str) -> None:
    m, g, h, expected = reference
    where = shardings(mesh(kind), PLACEMENTS[name], g)
    given = where if kind == "auto" else None
    made = every_map(m, put(g, where), put(h, where), given, jax.jit)
    check(made, expected, where)


@pytest.mark.parametrize(("kind", "name"), [("auto", "rows and columns"), ("explicit", "stack and rows"), ("explicit", "replicated")])
def test_eager(reference: Any, kind: str, name: str) -> None:
    m, g, h, expected = reference
    where = shardings(mesh(kind), PLACEMENTS[name], g)
    made = every_map(m, put(g, where), put(h, where), None)
    check(made, expected, where)


def test_the_mesh_of_set_mesh(reference: Any) -> None:
    if not hasattr(jax, "set_mesh"):
        pytest.skip("jax.set_mesh is newer")
    m, g, _, expected = reference
    on = mesh("explicit")
    where = shardings(on, PLACEMENTS["rows"], g)
    with jax.set_mesh(on):
        assert_like(m.dualize(put(g, where), 2.0), expected["dualize"], where)
        assert_like(jax.jit(lambda g: m.dualize(g, 2.0))(put(g, where)), expected["dualize"], where)


@pytest.mark.parametrize("name", ["columns", "rows and columns", "stack and columns"])
def test_an_auto_mesh_that_is_not_named(reference: Any, name: str) -> None:
    """Compiled code on an Auto mesh sees no placements, but the results still lie where the arrays lie."""
    m, g, _, expected = reference
    where = shardings(mesh("auto"), PLACEMENTS[name], g)
    assert_like(jax.jit(lambda g: m.dualize(g, 2.0))(put(g, where)), expected["dualize"], where)


def test_in_jnp(reference: Any) -> None:
    m, g, _, expected = reference
    where = shardings(mesh("auto"), PLACEMENTS["rows"], g)
    with backend.cpu_backend("jnp"):
        made = m.dualize(put(g, where), 2.0)
    assert_like(made, expected["dualize"], where, tolerance=1e-4)


def test_functions_of_rows_and_entries_that_are_split() -> None:
    """A row is capped by its own length, of which each device holds a part; so are vectors, and entries by the largest."""
    m = mr.Scale(16) @ mr.Bias(16) @ mr.Embed(16, 24)
    rng = np.random.default_rng(0)
    w = [jnp.asarray(rng.standard_normal(leaf.shape) * rng.uniform(0.1, 3, (*leaf.shape[:-1], 1)), jnp.float32) for leaf in m.leaves]
    on = mesh("auto")
    where = [jax.sharding.NamedSharding(on, P(*[None] * (x.ndim - 1), "a")) for x in w]
    given = put(w, where)
    assert_like(m.hard_cap(given, 0.9), m.hard_cap(w, 0.9), where)
    assert_like(m.soft_cap(given, 0.1), m.soft_cap(w, 0.1), where)
    assert_like(m.hammer(given, 0.9), m.hammer(w, 0.9), where)
    assert_like(m.spectral_decay(given, 0.1), m.spectral_decay(w, 0.1), where)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_what_takes_two_trees_and_single_matrices(kind: str) -> None:
    """Tangent steps, decay and row moments of a network whose matrices are split by rows and columns, and functions of one array."""
    shapes = {"table": (24, 16), "square": (4, 16, 16), "out": (16, 8)}
    rng = np.random.default_rng(0)
    net = mr.trace(lambda w, x: jax.lax.scan(lambda y, a: (y @ a, None), w["table"][x], w["square"])[0] @ w["out"],
                   {name: jnp.ones(shape) for name, shape in shapes.items()}, jnp.arange(4))  # fmt: skip
    g, w = ({name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()} for _ in range(2))
    w = net.project(w)
    where = {name: jax.sharding.NamedSharding(mesh(kind), P(*[None] * (len(shape) - 2), "b", "a")) for name, shape in shapes.items()}

    def everything(g: Any, w: Any, given: Any = None) -> Any:
        state = mr.optim.row_moments_init(net, w, shardings=given)
        trees = (
            net.tangent(g, w, 0.5, nonfinite="propagate", shardings=given), mr.optim.add_modular_decay(net, g, w, 0.1),
            mr.optim.row_moments(net, g, state, nonfinite="propagate", shardings=given)[0], net.hard_cap(w, 0.9, shardings=given),
        )  # fmt: skip
        return trees, mr.orthogonalize(g["square"], nonfinite="propagate"), mr.spectral_norm(g["square"])

    made, polar, norms = jax.jit(lambda g, w: everything(g, w, where if kind == "auto" else None))(*jax.device_put((g, w), (where, where)))
    expected, polar_alone, norms_alone = everything(g, w)
    for tree, alone in zip(made, expected, strict=True):
        assert_like(jax.tree.leaves(tree), jax.tree.leaves(alone), jax.tree.leaves(where), 2e-4)
    assert_like([polar, norms], [polar_alone, norms_alone], None, 1e-4)
    if kind == "explicit":
        assert polar.sharding.is_equivalent_to(where["square"], 3)
    np.testing.assert_allclose(net.atom_norms(jax.device_put(w, where)), net.atom_norms(w), rtol=1e-5)


def test_zeros_nan_and_stale_estimates() -> None:
    """A zero matrix stays zero, a matrix with NaN is zeroed alone, and estimates of another matrix are noticed and replaced."""
    m = mr.Conv2D(16, 32) @ (mr.Linear(32, 32) ** 4)
    g = arrays(m)
    g[0] = g[0].at[1, 3, 5].set(jnp.nan)
    g[1] = g[1].at[0, 0].set(0.0)
    on = mesh("auto")
    where = shardings(on, PLACEMENTS["rows and columns"], g)
    for method in (m.dualize, m.normalize):
        expected = method(g, nonfinite="zero")
        assert_like(method(put(g, where), nonfinite="zero"), expected, where)
        assert [np.asarray(x).any() for x in (*expected[0], expected[1][0, 0])] == [True, False, True, True, False]
    h = arrays(m, seed=7)
    _, vectors = m.normalize(put(h, where), vectors=None)
    away = [vectors[0] * 0, jnp.zeros_like(vectors[1]).at[..., 0].set(1.0)]
    made, _ = m.normalize(put(h, where), vectors=away)
    expected, _ = m.normalize(h, vectors=[jnp.asarray(np.asarray(v)) for v in away])
    assert_like(made, expected, where, tolerance=1e-4)


def test_half_precision_moves_half_the_bytes(reference: Any) -> None:
    m, g, *_ = reference
    half = [x.astype(jnp.bfloat16) for x in g]
    where = shardings(mesh("auto"), PLACEMENTS["rows"], g)
    made = m.dualize(put(half, where))
    assert all(x.dtype == jnp.bfloat16 for x in made)
    assert_like(made, m.dualize(half), where, tolerance=0.01)
    assert m.plan(put(half, where)).bytes == pytest.approx(m.plan(put(g, where)).bytes / 2, rel=0.01)


def test_a_users_atom_and_shared_weights() -> None:
    class Gains(mr.Atom):
        shape = (8,)

        def forward(self, x: Any, w: Any) -> Any:
            return x * w[0]

        def initialize(self, key: Any) -> Any:
            return [np.ones(8, np.float32)]

        def norm(self, w: Any) -> Any:
            return abs(w[0]).max()

        def normalize(self, w: Any, target_norm: Any = 1.0) -> Any:
            return [w[0] / abs(w[0]).max() * target_norm]

        dualize = normalize

    m = mr.Linear(24, 8, share="tied") @ (0.5 * mr.Identity() + 0.5 * Gains()) ** 4 @ mr.Embed(8, 24, share="tied")
    g = arrays(m)
    where = shardings(mesh("explicit"), PLACEMENTS["rows and columns"], g)
    for method in (m.dualize, m.normalize):
        assert_like(method(put(g, where)), method(g), where)
    np.testing.assert_allclose(float(m.norm(put(g, where))), float(m.norm(g)), rtol=1e-5)


def layouts() -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """Arrays of networks whose axes count several things: fused parts, even and uneven, heads, and transposed kernels."""
    yield "linear io/3", (16, 96), (None, "a")
    yield "linear io/3", (16, 96), ("a", "b")
    yield "linear i (o8 /3 o)", (16, 96), ("b", "a")
    yield "linear i (o8 /3 o)", (16, 96), (None, ("a", "b"))
    yield "linear i o/64+16+16", (16, 96), (None, "a")
    yield "linear i o/64+16+16", (16, 96), ("a", None)
    yield "linear .io", (8, 16, 24), ("a", None, "b")
    yield "linear o.i", (16, 8, 24), ("b", "a", None)


@pytest.mark.parametrize(("rule", "shape", "spec"), list(layouts()), ids=str)
def test_traced_layouts(rule: str, shape: tuple[int, ...], spec: tuple[Any, ...]) -> None:
    def apply(params: Any, x: Any) -> Any:
        return (x[:, None] * params["a"].reshape(-1)[None, :4]).sum() + params["b"].sum()

    net = mr.trace(apply, {"a": jnp.ones(shape), "b": jnp.ones(16)}, jnp.ones(4), rules={"a": rule + "!", "b": "bias"})
    rng = np.random.default_rng(0)
    g = {"a": jnp.asarray(rng.standard_normal(shape), jnp.float32), "b": jnp.asarray(rng.standard_normal(16), jnp.float32)}
    on = mesh("explicit")
    where = {"a": jax.sharding.NamedSharding(on, P(*spec)), "b": jax.sharding.NamedSharding(on, P("a"))}
    placed = jax.device_put(g, where)
    made, expected = net.dualize(placed), net.dualize(g)
    # Each is within 0.01 of its polar factor, times its target; the way there depends on how many matrices share a device.
    accuracy = 0.02 * float(jnp.linalg.norm(expected["a"].reshape(len(expected["a"]), -1), 2))
    assert_like(jax.tree.leaves(made), jax.tree.leaves(expected), jax.tree.leaves(where), accuracy)
    vectors = net.cold_vectors(placed)
    warm, found = net.normalize(placed, vectors=vectors)
    assert_like(jax.tree.leaves(warm), jax.tree.leaves(net.normalize(g)), jax.tree.leaves(where), 1e-4)
    _, alone = net.normalize(g, vectors=None)
    for x, y in zip(found, alone, strict=True):  # estimates do not depend on the mesh, so they can go on to another
        if x is not None:
            np.testing.assert_allclose(np.abs(np.asarray(x)[:, 0]), np.abs(np.asarray(y)[:, 0]), atol=1e-3)
