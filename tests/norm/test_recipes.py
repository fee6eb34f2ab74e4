"""Recipes: both executors carry them out, on random trees, against a backend of singular value decompositions."""

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
import reference_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from modula_rs.backend import VECTORS
from modula_rs.backend import jax as jax_backend
from modula_rs.norm import maps, recipe
from trees import Case, cases

#: Every map of the core, with the amount for the tests; a new map is tested once it is entered here.
MAPS = {
    "normalize": 0.7,
    "dualize": 0.7,
    "project": 1.0,
    "radius": 1.0,
    "regularize": 0.3,
    "hard_cap": 0.8,
    "soft_cap": 0.2,
    "hammer": 1.5,
    "spectral_decay": 0.3,
}


def drawn(m: mr.Module, rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.standard_normal(leaf.shape) * rng.choice([1e-3, 1.0, 30.0]) for leaf in m.leaves]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_the_executors_agree_on_every_map(case: Case, seed: int) -> None:
    m = case.expr.build()
    w = drawn(m, np.random.default_rng(seed))
    for name, amount in MAPS.items():
        in_rust, _ = maps.apply(m.norm_table, name, w, amount)
        by_svd, _ = recipe.execute(reference_backend, m.norm_table.recipe(name), w, None, amount, "standard")
        for row in m.norm_table.recipe(name).rows:
            ours, theirs = in_rust[row.leaf], by_svd[row.leaf]
            # A direction is within 0.01 of orthogonal for singular values above a thousandth of the largest. A small random matrix may have
            # a smaller one, for which the direction may have any value from 0 to 1: there only the norm bounds the difference.
            scale = float(np.max(row.scales_at(amount), initial=0.0))
            if row.op == "direction" and row.batch.geometry == "spectral":
                blocks = w[row.leaf].reshape(row.batch.count, row.batch.rows, row.batch.cols)
                values = np.linalg.svd(blocks, compute_uv=False) if blocks.size else np.ones((1, 1))
                if (values < 2e-3 * values.max(-1, keepdims=True)).any():
                    assert np.abs(ours).max(initial=0) <= 1.01 * scale
                    continue
                tolerance = 0.02 * scale
            elif row.op == "soft_cap" and row.batch.geometry == "spectral":
                # A matrix beyond the rise of p is scaled by an estimate of its norm that may be a fifth too small. There p + p^3 with
                # p = y - y^3 is at most an eighth below its largest value.
                tolerance = 0.125 * float(np.abs(theirs).max(initial=0))
            elif row.batch.geometry == "spectral" or m.norm_table.recipe(name).bounds:
                tolerance = 0.02 * float(np.abs(theirs).max(initial=0))  # norms are within 1 %, and a further use measures a second time
            else:
                tolerance = 1e-12 * float(np.abs(theirs).max(initial=0))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(case=cases(), seed=st.integers(0, 1000))
def test_the_norms_agree(case: Case, seed: int) -> None:
    m = case.expr.build()
    w = drawn(m, np.random.default_rng(seed))
    theirs = max((float(value) for value in recipe.norms(reference_backend, m.norm_table.measures.rows, w)), default=0.0)
    assert m.norm(w) == pytest.approx(theirs, rel=0.01)
    theirs = sum(float(value) for value in recipe.dual_norms(reference_backend, m.norm_table.dual_measures.rows, w))
    assert m.dual_norm(w) == pytest.approx(theirs, rel=1e-9)


def test_each_module_of_a_backend_keeps_the_contract() -> None:
    """Recipes call the modules of all libraries with the names and arguments of the protocol."""
    import inspect

    from modula_rs.backend import Backend
    from modula_rs.backend import cupy as cupy_backend

    for module in (jax_backend, cupy_backend, reference_backend):
        for name in ("apply", "norms", "dual_norms"):
            wanted = list(inspect.signature(getattr(Backend, name)).parameters)[1:]
            assert list(inspect.signature(getattr(module, name)).parameters) == wanted


def test_a_recipe_names_what_there_is_to_do() -> None:
    m = mr.Linear(9, 4, share="table") @ mr.Bias(4) @ mr.Embed(4, 9, share="table")
    rows = {name: [(row.batch.geometry, row.op, row.size) for row in m.norm_table.recipe(name).rows] for name in MAPS}
    assert rows == {
        "normalize": [("row_rms", "unit", "target"), ("rms", "unit", "target")],
        "dualize": [("row_rms", "direction", "target"), ("rms", "direction", "target")],
        "project": [("row_rms", "unit", "unit"), ("rms", "keep", "unit")],
        "radius": [("row_rms", "unit", "unit"), ("rms", "keep", "unit")],
        "regularize": [("row_rms", "unit", "unit"), ("rms", "multiply", "decay")],
        "hard_cap": [("row_rms", "hard_cap", "cap"), ("rms", "hard_cap", "cap")],
        "soft_cap": [("row_rms", "soft_cap", "stretch"), ("rms", "soft_cap", "stretch")],
        "hammer": [("row_rms", "set_top", "cap"), ("rms", "keep", "unit")],
        "spectral_decay": [("row_rms", "unit", "unit"), ("rms", "multiply", "decay")],
    }
    assert [len(m.norm_table.recipe(name).bounds) for name in MAPS] == [1, 1, 0, 0, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match='there is no map called "anvil"'):
        m.norm_table.recipe("anvil")


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_radius(library: str, dtype: str) -> None:
    m = (
        mr.Linear(5, 12)
        @ mr.Flatten()
        @ (mr.Scale(3) @ mr.Bias(3) @ mr.Conv2D(3, 3)) ** 2
        @ mr.Conv2D(3, 6)
        @ mr.Linear(6, 6) ** 3
        @ mr.Embed(6, 7)
    )
    start = m.initialize(0, dtype)
    w = [(3 * a + 1).astype(a.dtype) for a in start]
    made = m.radius([jnp.asarray(a) for a in w] if library == "jax" else w)
    assert all(type(a) is type(jnp.zeros(1)) for a in made) or library == "numpy"
    eps = 2 * float(jnp.finfo(dtype).eps)
    for leaf, before, first, after in zip(m.leaves, w, start, made, strict=True):
        after = np.asarray(after)
        assert after.dtype == before.dtype
        before, first, after = (np.asarray(a, np.float64) for a in (before, first, after))
        if leaf.kind in ("Bias", "Scale"):
            np.testing.assert_array_equal(after, before)
        elif leaf.kind == "Embed":
            np.testing.assert_allclose(np.sqrt((after**2).mean(-1)), 1, rtol=eps)
        else:
            wanted = np.linalg.norm(first, 2, axis=(-2, -1))
            found = np.linalg.norm(after, 2, axis=(-2, -1))
            np.testing.assert_allclose(found, wanted, rtol=0.01 + 3 * eps)
            along = (after * before).sum((-2, -1)) / np.linalg.norm(after, axis=(-2, -1)) / np.linalg.norm(before, axis=(-2, -1))
            np.testing.assert_allclose(along, 1, atol=eps)
    zeros = [0 * a for a in made]
    assert all((np.asarray(a) == 0).all() for a in m.radius(zeros))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_estimates_have_a_door(library: str, dtype: str) -> None:
    m = mr.Linear(9, 20) @ mr.Bias(20) @ mr.Linear(20, 20) ** 3
    rng, to = np.random.default_rng(0), jnp.asarray if library == "jax" else np.asarray
    with jax.enable_x64(dtype == "float64"):
        given = [to(rng.standard_normal(leaf.shape).astype(np.dtype(jnp.dtype(dtype)))) for leaf in m.leaves]
        vectors = None
        for _ in range(4):
            before = [None if v is None else np.array(v) for v in vectors] if vectors is not None else None
            made, found = m.normalize(given, 0.5, vectors=vectors)
            if vectors is not None:  # no argument is written to
                assert all((np.asarray(v) == b).all() for v, b in zip(vectors, before, strict=True) if v is not None)
            assert [None if v is None else v.shape for v in found] == [(3, VECTORS, 20), None, (1, VECTORS, 20)]
            wide = "float64" if dtype == "float64" else "float32"
            assert all(v is None or str(v.dtype) == wide for v in found)
            assert float(m.norm(made)) == pytest.approx(0.5, rel=0.03)
            for leaf, update in zip(m.leaves, made, strict=True):
                if leaf.kind == "Linear":
                    targets = [row.target for row in m.targets(0.5) if row.path == leaf.path]
                    sizes = np.linalg.norm(np.asarray(update, np.float64).reshape(-1, *leaf.shape[-2:]), 2, axis=(1, 2))
                    units = (leaf.shape[-2] / leaf.shape[-1]) ** 0.5
                    # 1 % is for the norm; the rest is bfloat16's rounding, half of 2^-8 an entry with random signs.
                    np.testing.assert_allclose(sizes, np.array(targets) * units, rtol=0.015)
            vectors = found
            given = [to((np.asarray(a, np.float64) + 0.05 * rng.standard_normal(a.shape)).astype(a.dtype)) for a in given]
        cold = m.cold_vectors(given)
        assert [None if v is None else (v.shape, float(abs(v).max())) for v in cold] == [((3, VECTORS, 20), 0), None, ((1, VECTORS, 20), 0)]
        first, _ = m.normalize(given, vectors=cold)
        again, _ = m.normalize(given, vectors=None)
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float64), np.asarray(b, np.float64))


def test_estimates_that_do_not_fit_are_refused() -> None:
    m = mr.Linear(3, 4) @ mr.Bias(4)
    w = m.initialize(0)
    right = m.cold_vectors(w)
    for bad, error, message in [
        (right[:1], ValueError, "expected 2 entries in vectors, got 1"),
        ("cold", TypeError, "vectors come as a list"),
        ([None, None], ValueError, r"vectors of linear must have shape \(1, 4, 4\), in numpy, got NoneType"),
        ([right[1], right[1]], ValueError, "vectors of bias must be None"),
        ([None, np.zeros((1, 4, 5))], ValueError, r"vectors of linear must have shape \(1, 4, 4\), in numpy, got \(1, 4, 5\) of numpy"),
        ([None, jnp.zeros((1, 4, 4))], ValueError, r"got \(1, 4, 4\) of jax"),
    ]:
        with pytest.raises(error, match=message):
            m.normalize(w, vectors=bad)


class Gain(mr.Atom):
    """A user's atom that overrides everything that may be overridden."""

    shape = (2,)

    def forward(self, x, w):
        return x * w[0].sum()

    def initialize(self, key):
        return [np.ones(2, np.float32)]

    def norm(self, w):
        return abs(w[0]).max()

    def normalize(self, w, target_norm=1.0):
        return [w[0] / abs(w[0]).max() * target_norm]

    dualize = normalize

    def project(self, w):
        return [w[0] * 0 + 5]

    def radius(self, w):
        return [w[0] * 0 + 6]

    def regularize(self, w, strength):
        return [w[0] * 0 + strength]

    def dual_norm(self, g):
        return g[0].sum() * 0 + 7.0


class Derived(Gain):
    """An atom derived from a user's atom, which overrides nothing else."""


class Plain(mr.Atom):
    """A user's atom with the required methods only."""

    shape, forward, initialize, norm, normalize, dualize = (2,), Gain.forward, Gain.initialize, Gain.norm, Gain.normalize, Gain.dualize


@pytest.mark.parametrize("atom", [Gain, Derived])
@pytest.mark.parametrize("library", ["numpy", "jax"])
def test_a_users_atom_keeps_what_it_overrides_also_when_derived(atom: type[mr.Atom], library: str) -> None:
    m = atom() ** 2
    w = [np.full((2, 2), 3.0, np.float32)]
    w = [jnp.asarray(a) for a in w] if library == "jax" else w
    np.testing.assert_array_equal(m.project(w)[0], np.full((2, 2), 5))
    np.testing.assert_array_equal(m.radius(w)[0], np.full((2, 2), 6))
    np.testing.assert_array_equal(m.regularize(w, 0.5)[0], np.full((2, 2), 0.25))  # each copy decays by strength times its target
    assert float(m.dual_norm(w)) == pytest.approx(7.0)


def test_a_users_atom_without_them_is_left_alone() -> None:
    m = Plain() ** 2
    w = [np.full((2, 2), 3.0, np.float32)]
    for name in ("project", "radius"):
        np.testing.assert_array_equal(getattr(m, name)(w)[0], w[0])
    np.testing.assert_array_equal(m.regularize(w, 0.5)[0], np.full((2, 2), 3 * 0.75))


def test_a_compiled_module_refuses_what_an_eager_one_does() -> None:
    m = mr.Linear(3, 4).jit()
    w = [jnp.ones((3, 4))]
    for bad in (-1.0, np.nan):
        for method in (m.normalize, m.dualize):
            with pytest.raises(ValueError, match="target_norm must be finite and at least 0"):
                method(w, bad)
    with pytest.raises(FloatingPointError, match="gradient of linear: 1 of 12"):
        m.dualize([w[0].at[0, 0].set(jnp.nan)])
    np.testing.assert_allclose(m.radius(w)[0], mr.Linear(3, 4).radius(w)[0], rtol=1e-6)


@pytest.mark.slow
def test_levels_of_accuracy() -> None:
    """Every level keeps its promise on both CPU backends, for singular values above a hundredth (a thousandth) of the largest."""
    m = mr.Linear(60, 80)
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.standard_normal((60, 60)))[0], np.linalg.qr(rng.standard_normal((80, 60)))[0]
    for accuracy, promise, above in [("standard", 0.01, 1e-3), ("fast", 0.22, 1e-2), ("coarse", 0.59, 1e-2)]:
        g = [((u * np.geomspace(1, above, 60)) @ v.T).astype(np.float32)]
        for way in ("rust", "jnp"):
            with mr.cpu_backend(way):
                made = np.asarray(m.dualize([jnp.asarray(g[0])], accuracy=accuracy)[0], np.float64)
                values = np.linalg.svd(made, compute_uv=False) / (60 / 80) ** 0.5
            assert np.abs(values - 1).max() <= promise
    for steps, accuracy in [(1, "coarse"), (3, "coarse"), (4, "fast"), (np.int64(5), "fast"), (6, "standard"), (100, "standard")]:
        np.testing.assert_array_equal(m.dualize(g, steps=steps)[0], m.dualize(g, accuracy=accuracy)[0])
    with pytest.raises(ValueError, match="accuracy must be one of 'standard', 'fast', 'coarse', got 'best'"):
        m.dualize(g, accuracy="best")


def test_a_norm_of_rows_is_the_norm_of_the_tree_with_those_rows() -> None:
    """A table written by hand, with masses, shared uses, copies and a bias, gives the same bits as the tree in every map."""
    from modula_rs import _core
    from modula_rs.norm.table import Norm

    m = 2.0 * mr.Linear(9, 4, share="table", mass=2.0) @ mr.Bias(4) @ mr.Linear(4, 4) ** 3 @ mr.Embed(4, 9, share="table")
    rows = [
        ("embed", "Embed", [9, 4], 1, ("row_rms", 1, 9, 4), 1.0, 1.0, 2.0, None),
        ("linear", "Linear", [4, 4], 3, ("spectral", 1, 4, 4), 1.0, 1.0, 2.0, None),
        ("bias", "Bias", [4], 1, ("rms", 1, 1, 4), 1.0, 1.0, 2.0, None),
        ("head", "Linear", [9, 4], 1, ("spectral", 1, 9, 4), 1.5, 2.0, 2.0, 0),
    ]
    table = Norm(_core.Norm.of_rows(rows))
    assert [leaf[1:] for leaf in table.leaves] == [leaf[1:] for leaf in m.leaves]
    w = drawn(m, np.random.default_rng(0))
    assert maps.measure(table, w) == m.norm(w)
    for name, amount in MAPS.items():
        for ours, theirs in zip(maps.apply(table, name, w, amount)[0], maps.apply(m.norm_table, name, w, amount)[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="shared row of head must be an earlier row, got 7"):
        _core.Norm.of_rows([*rows[:3], (*rows[3][:-1], 7)])
    with pytest.raises(ValueError, match="mass of embed must be a finite number >= 0, got -1"):
        _core.Norm.of_rows([(*rows[0][:6], -1.0, 2.0, None)])
    with pytest.raises(ValueError, match='head: there is no geometry called "round"'):
        _core.Norm.of_rows([("head", "Linear", [2], 1, ("round", 1, 1, 2), 1.0, 1.0, 1.0, None)])
