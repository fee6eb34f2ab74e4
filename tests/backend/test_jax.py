"""The maps on batches of blocks in JAX, against float64 NumPy."""

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from modula_rs.backend import VECTORS, Batch
from modula_rs.backend import jax as jax_backend
from operations import Operations
from spectra import SHAPES, battery, direction_error, matrix, norm, spectra

GEOMETRIES = ["spectral", "row_rms", "rms", "max_abs"]
DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16, jnp.float64]


pytestmark = pytest.mark.usefixtures("double_precision", "in_jnp")
backend = Operations(jax_backend)


def spectral(*stacks: np.ndarray, dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[list[Batch], list[jax.Array]]:
    """One leaf for each stack of matrices (count, rows, cols)."""
    return [Batch("spectral", *stack.shape) for stack in stacks], [jnp.asarray(stack, dtype) for stack in stacks]


def ones(batches: list[Batch]) -> list[jax.Array]:
    return [jnp.ones(batch.count) for batch in batches]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def cases(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return battery(*request.param)


@pytest.mark.slow
def test_norms_within_a_per_cent_on_any_spectrum(cases: dict[str, np.ndarray]) -> None:
    batches, arrays = spectral(np.stack(list(cases.values())))
    (found,) = backend.norms(batches, arrays)
    assert found.dtype == jnp.float32
    for name, entries, value in zip(cases, cases.values(), np.asarray(found), strict=True):
        assert value == pytest.approx(norm(entries), rel=0.01), name


@pytest.mark.slow
def test_cold_normalize_brings_the_true_norm_within_a_per_cent(cases: dict[str, np.ndarray]) -> None:
    batches, arrays = spectral(np.stack(list(cases.values())))
    (made,), (vectors,) = backend.normalize(batches, arrays, [jnp.full(len(cases), 3.0)])
    for name, entries, result, vector in zip(cases, cases.values(), np.asarray(made), np.asarray(vectors), strict=True):
        assert norm(result) == pytest.approx(3.0, rel=0.01), name
        np.testing.assert_allclose(result, entries * 3 / norm(entries), rtol=0.01, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1, rtol=1e-5, err_msg=name)


def test_dualize_keeps_the_promise_on_any_spectrum(cases: dict[str, np.ndarray]) -> None:
    batches, arrays = spectral(np.stack(list(cases.values())))
    (made,) = backend.dualize(batches, arrays, ones(batches))
    for name, entries, result in zip(cases, cases.values(), np.asarray(made), strict=True):
        assert direction_error(entries, result) < 0.01, name
        assert norm(result) < 1.01, name


@pytest.mark.slow
def test_project_is_semi_orthogonal_to_rounding(cases: dict[str, np.ndarray]) -> None:
    batches, arrays = spectral(np.stack(list(cases.values())), dtype=jnp.float64)
    (made,) = backend.project(batches, arrays, [jnp.full(len(cases), 2.0)])
    for name, entries, result in zip(cases, cases.values(), np.asarray(made), strict=True):
        u, s, vt = np.linalg.svd(entries, full_matrices=False)
        kept = s > 1e-9 * s[0]
        np.testing.assert_allclose(result, 2 * (u[:, kept] @ vt[kept]), atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_dual_norm_is_the_nuclear_norm(cases: dict[str, np.ndarray]) -> None:
    batches, arrays = spectral(np.stack(list(cases.values())))
    (found,) = backend.dual_norms(batches, arrays)
    for name, entries, value in zip(cases, cases.values(), np.asarray(found), strict=True):
        assert value == pytest.approx(np.linalg.norm(entries, "nuc"), rel=1e-4), name


@pytest.mark.parametrize(("steps", "accuracy"), [(1, "coarse"), (5, "fast"), (6, "standard")])
def test_a_level_is_at_least_as_accurate_as_the_plain_newton_schulz_steps_it_stands_for(steps: int, accuracy: str) -> None:
    # The bound is loose: it is what steps of Jordan's quintic reach after division by the Frobenius norm, which the option promises.
    singular = np.logspace(0, -2, 50)
    plain = singular / np.linalg.norm(singular)
    for _ in range(steps):
        plain = 3.4445 * plain - 4.7750 * plain**3 + 2.0315 * plain**5
    batches, arrays = spectral(matrix(50, 80, singular)[None])
    (made,) = backend.dualize(batches, arrays, ones(batches), accuracy)
    reached = np.linalg.svd(np.asarray(made[0], np.float64), compute_uv=False)
    assert np.abs(reached - 1).max() <= np.abs(plain - 1).max() + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("scale", [1e-30, 1e30, 2.0**-100, 2.0**100])
def test_answers_do_not_depend_on_the_scale_of_the_input(geometry: str, scale: float) -> None:
    rows = 1 if geometry in ("rms", "max_abs") else 70
    entries = np.random.default_rng(0).standard_normal((3, rows, 90))
    batch = [Batch(geometry, *entries.shape)]
    for function in (backend.normalize, backend.dualize, backend.project):
        plain = jax.tree.leaves(function(batch, [jnp.asarray(entries, jnp.float32)], ones(batch)))[0]
        scaled = jax.tree.leaves(function(batch, [jnp.asarray(entries * scale, jnp.float32)], ones(batch)))[0]
        if function is backend.project and rows == 1:
            continue
        if np.log2(scale).is_integer():
            np.testing.assert_array_equal(plain, scaled)
        else:
            np.testing.assert_allclose(plain, scaled, rtol=1e-3, atol=1e-5)
    for measure in (backend.norms, backend.dual_norms):
        plain, scaled = (measure(batch, [jnp.asarray(entries * s, jnp.float32)])[0] for s in (1, scale))
        np.testing.assert_allclose(np.asarray(scaled, np.float64) / scale, plain, rtol=1e-5)


def test_rows_and_copies_of_very_different_scales() -> None:
    entries = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    entries *= np.float32(10.0) ** np.array([-30, 0, 30], np.float32)[:, None, None]
    rows = entries * np.float32(10.0) ** np.array([-5, -3, 0, 3, 5], np.float32)[:, None]
    for array, batch in ((entries, Batch("spectral", 3, 5, 8)), (rows, Batch("row_rms", 3, 5, 8))):
        (made,), _ = backend.normalize([batch], [jnp.asarray(array)], [jnp.ones(3)])
        wide = array.astype(np.float64)
        true = np.linalg.norm(wide, 2, axis=(1, 2), keepdims=True)
        if batch.geometry == "row_rms":
            true = np.sqrt(np.mean(wide**2, axis=2, keepdims=True))
        np.testing.assert_allclose(made, wide / true, rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_each_geometry_against_its_definition(geometry: str, dtype: jax.typing.DTypeLike) -> None:
    rows = 1 if geometry in ("rms", "max_abs") else 6
    entries = jnp.asarray(np.random.default_rng(2).standard_normal((4, rows, 10)), dtype)
    batch, scale = [Batch(geometry, 4, rows, 10)], np.array([1.0, 0.0, 2.5, 7.0])
    wide = np.asarray(entries, np.float64)
    row_rms = np.sqrt(np.mean(wide**2, axis=2, keepdims=True))
    u, s, vt = np.linalg.svd(wide, full_matrices=False)
    expected = {
        "spectral": (s[:, 0], s.sum(axis=1), wide / s[:, :1, None], u @ vt),
        "row_rms": (row_rms.max(axis=(1, 2)), 10 * row_rms.sum(axis=(1, 2)), wide / row_rms, wide / row_rms),
        "rms": (row_rms[:, 0, 0], 10 * row_rms[:, 0, 0], wide / row_rms, wide / row_rms),
        "max_abs": (abs(wide).max(axis=(1, 2)), abs(wide).sum(axis=(1, 2)), wide / abs(wide).max(axis=2, keepdims=True), np.sign(wide)),
    }[geometry]
    loose = 3 * float(jnp.finfo(dtype).eps)
    (found,) = backend.norms(batch, [entries])
    (dual,) = backend.dual_norms(batch, [entries])
    (made,), (vectors,) = backend.normalize(batch, [entries], [jnp.asarray(scale)])
    (direction,) = backend.dualize(batch, [entries], [jnp.asarray(scale)])
    np.testing.assert_allclose(found, expected[0], rtol=5e-4)
    np.testing.assert_allclose(dual, expected[1], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(made, np.float64), expected[2] * scale[:, None, None], rtol=5e-4 + loose, atol=1e-6)
    off = np.linalg.norm(np.asarray(direction, np.float64) - expected[3] * scale[:, None, None], 2, axis=(1, 2))
    # Singular values come within 0.005 of 1; the rest is the rounding of every entry, relative to the entry.
    assert (off <= scale * (0.0055 * (geometry == "spectral") + (loose + 1e-6) * np.linalg.norm(expected[3], axis=(1, 2)))).all()
    assert made.dtype == direction.dtype == dtype
    assert found.dtype == dual.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert (vectors is None) == (geometry != "spectral")


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_blocks(geometry: str, shape: tuple[int, int, int]) -> None:
    batch, array, scale = [Batch(geometry, *shape)], [jnp.zeros(shape)], [jnp.ones(shape[0])]
    for function in (backend.norms, backend.dual_norms):
        np.testing.assert_array_equal(function(batch, array)[0], np.zeros(shape[0]))
    for result in (backend.normalize(batch, array, scale)[0], backend.dualize(batch, array, scale), backend.project(batch, array, scale)):
        assert result[0].shape == shape


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_zeros_give_zeros_and_gradients_that_are_numbers(geometry: str) -> None:
    rows = 1 if geometry in ("rms", "max_abs") else 3
    batch, zeros, scale = [Batch(geometry, 2, rows, 4)], [jnp.zeros((2, rows, 4))], [jnp.ones(2)]
    for function in (backend.normalize, backend.dualize, backend.project):
        np.testing.assert_array_equal(jax.tree.leaves(function(batch, zeros, scale))[0], zeros[0])
        slope = jax.grad(lambda x, function=function: jnp.sum(jax.tree.leaves(function(batch, [x], scale))[0]))(zeros[0])
        assert jnp.isfinite(slope).all()
    for measure in (backend.norms, backend.dual_norms):
        np.testing.assert_array_equal(measure(batch, zeros)[0], np.zeros(2))
        assert jnp.isfinite(jax.grad(lambda x, measure=measure: jnp.sum(measure(batch, [x])[0]))(zeros[0])).all()


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_is_not_finite_spoils_its_own_block_only(geometry: str, bad: float) -> None:
    rows = 1 if geometry in ("rms", "max_abs") else 3
    entries = np.random.default_rng(0).standard_normal((3, rows, 4)).astype(np.float32)
    fine = [Batch(geometry, 3, rows, 4)]
    clean, _ = backend.normalize(fine, [jnp.asarray(entries)], [jnp.ones(3)])
    entries[1, 0, 2] = bad
    made, vectors = backend.normalize(fine, [jnp.asarray(entries)], [jnp.ones(3)])
    np.testing.assert_allclose(made[0][np.array([0, 2])], clean[0][np.array([0, 2])], rtol=1e-6)
    assert np.isnan(made[0][1, 0, 2])
    if vectors[0] is not None:
        assert jnp.isfinite(vectors[0]).all()
    assert not np.isfinite(backend.norms(fine, [jnp.asarray(entries)])[0][1])


@pytest.mark.slow
def test_leaves_of_any_order_and_shape_share_calls_without_mixing() -> None:
    rng = np.random.default_rng(0)
    shapes = [
        ("spectral", 2, 6, 9),
        ("rms", 1, 1, 6),
        ("spectral", 3, 6, 9),
        ("spectral", 1, 9, 6),
        ("row_rms", 2, 6, 9),
        ("spectral", 2, 6, 9),
    ]
    batches = [Batch(*shape) for shape in shapes]
    arrays = [jnp.asarray(rng.standard_normal(shape[1:]), jnp.float16 if i == 2 else jnp.float32) for i, shape in enumerate(shapes)]
    scales = [jnp.asarray(rng.uniform(1, 2, batch.count)) for batch in batches]
    together, vectors = backend.normalize(batches, arrays, scales)
    warm, _ = backend.normalize(batches, arrays, scales, vectors)
    directions = backend.dualize(batches, arrays, scales)
    for i, batch in enumerate(batches):
        (alone,), (vector,) = backend.normalize([batch], [arrays[i]], [scales[i]])
        np.testing.assert_allclose(together[i], alone, rtol=1e-3)
        np.testing.assert_allclose(warm[i], alone, rtol=2e-3)
        np.testing.assert_allclose(directions[i], backend.dualize([batch], [arrays[i]], [scales[i]])[0], rtol=1e-3, atol=1e-3)
        assert together[i].dtype == arrays[i].dtype
        assert (vectors[i] is None) == (vector is None)


@pytest.mark.slow
def test_one_warm_step_follows_a_slowly_changing_matrix() -> None:
    rng = np.random.default_rng(0)
    for name, singular in spectra(48).items():
        entries = matrix(48, 70, singular)
        batches, arrays = spectral(entries[None])
        _, vectors = backend.normalize(batches, arrays, ones(batches))
        for _ in range(20):
            noise = rng.standard_normal(entries.shape)
            entries = entries + 0.02 * noise / norm(noise)
            made, vectors = backend.normalize(batches, [jnp.asarray(entries[None], jnp.float32)], ones(batches), vectors)
            # If all singular values are alike, twenty independent steps of 0.02 spread them by 0.02 sqrt(20) = 0.09, and the estimate
            # may be below the largest by as much.
            assert norm(np.asarray(made[0][0])) == pytest.approx(1, rel=0.09), name


@pytest.mark.slow
def test_warm_vectors_that_are_none_start_a_search() -> None:
    entries = matrix(30, 40, np.logspace(0, -2, 30))
    batches, arrays = spectral(np.stack([entries, entries, entries, entries]))
    cold, found = backend.normalize(batches, arrays, ones(batches))
    null = np.linalg.svd(np.asarray(arrays[0][0], np.float64))[2][-1]
    null = null - np.linalg.pinv(entries) @ (entries @ null)
    lost = np.zeros((4, VECTORS, 40), np.float32)
    lost[1], lost[2], lost[3, 0] = np.nan, found[0][2], null
    warm, vectors = backend.normalize(batches, arrays, ones(batches), [jnp.asarray(lost)])
    np.testing.assert_allclose(warm[0], cold[0], rtol=1e-3)
    assert jnp.isfinite(vectors[0]).all()
    np.testing.assert_allclose(jnp.linalg.norm(vectors[0], axis=2), 1, rtol=1e-3)


@pytest.mark.slow
def test_gradients_of_norms_are_the_dual_directions() -> None:
    entries = matrix(20, 30, np.linspace(1, 0.1, 20))
    u, _, vt = np.linalg.svd(entries, full_matrices=False)
    batches, arrays = spectral(entries[None], dtype=jnp.float64)
    slope = jax.grad(lambda x: backend.norms(batches, [x])[0].sum())(arrays[0])
    np.testing.assert_allclose(slope[0], np.outer(u[:, 0], vt[0]), atol=0.03)
    slope = jax.grad(lambda x: backend.dual_norms(batches, [x])[0].sum())(arrays[0])
    np.testing.assert_allclose(slope[0], u @ vt, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_derivatives_against_finite_differences(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    entries, move = jnp.asarray(matrix(*shape, np.linspace(1, 0.3, min(shape)))[None]), jnp.asarray(rng.standard_normal((1, *shape)))
    batch = [Batch("spectral", 1, *shape)]
    flat = jnp.ones_like(entries).at[0, 0].set(1.0)  # equal singular values would ruin the derivative of an SVD
    for function in (backend.normalize, backend.dualize, backend.project):
        for start in (entries, flat @ jnp.eye(shape[1]) + entries):
            along = lambda t, function=function, start=start: jax.tree.leaves(function(batch, [start + t * move], [jnp.ones(1)]))[0]  # noqa: E731
            _, slope = jax.jvp(along, (0.0,), (1.0,))
            tolerance = 0.1 if function is backend.normalize else 1e-5  # normalize treats estimates of singular vectors as constants
            np.testing.assert_allclose(slope, (along(1e-6) - along(-1e-6)) / 2e-6, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_jit_vmap_and_scan_agree_with_eager(geometry: str) -> None:
    rows = 1 if geometry in ("rms", "max_abs") else 70
    stack = jnp.asarray(np.random.default_rng(0).standard_normal((3, 2, rows, 80)), jnp.float32)
    batch = [Batch(geometry, 2, rows, 80)]
    functions = [
        lambda x, t: backend.normalize(batch, [x], [jnp.full(2, t)])[0][0],
        lambda x, t: backend.dualize(batch, [x], [jnp.full(2, t)])[0],
        lambda x, t: backend.norms(batch, [x])[0] * t,
    ]
    for function in functions:
        eager = jnp.stack([function(x, 2.0) for x in stack])
        for other in (
            jnp.stack([jax.jit(function)(x, 2.0) for x in stack]),
            jax.vmap(function, in_axes=(0, None))(stack, 2.0),
            jax.lax.scan(lambda t, x, function=function: (t, function(x, t)), 2.0, stack)[1],
        ):
            np.testing.assert_allclose(other, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_warm_start_under_vmap() -> None:
    entries = np.stack([matrix(20, 30, np.linspace(1, 0.1, 20), seed) for seed in range(4)])[:, None]
    batch = [Batch("spectral", 1, 20, 30)]
    step = lambda x, v: backend.normalize(batch, [x], [jnp.ones(1)], [v])  # noqa: E731
    vectors = jnp.zeros((4, 1, VECTORS, 30), jnp.float32).at[:2].set(1.0)
    (made,), (found,) = jax.vmap(step)(jnp.asarray(entries, jnp.float32), vectors)
    for i in range(4):
        (alone,), (vector,) = step(jnp.asarray(entries[i], jnp.float32), vectors[i])
        np.testing.assert_allclose(made[i], alone, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found[i], vector, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "cols"), [(9, 12), (12, 9), (20, 20), (32, 10)])
def test_a_cold_norm_is_that_of_the_largest_singular_value(rows: int, cols: int) -> None:
    """Even if the start vector has almost no share of its singular vector, as in one of a thousand small matrices.

    There the residual is small at another singular value.
    """
    entries = np.random.default_rng(5).standard_normal((4000, rows, cols))
    (found,) = backend.norms([Batch("spectral", *entries.shape)], [jnp.asarray(entries, jnp.float32)])
    np.testing.assert_allclose(found, np.linalg.norm(entries, 2, axis=(1, 2)), rtol=0.01)


@pytest.mark.slow
def test_subnormal_numbers_are_zero_to_xla_and_numbers_to_numpy():
    """The threads of XLA flush subnormal numbers, so an update of nothing else is an update of zeros there."""
    m = mr.Linear(4, 4)
    g = [np.full((4, 4), 1e-40, np.float32)]
    assert abs(m.norm(m.normalize(g)) - 1) < 0.02
    for call in (m.normalize, jax.jit(lambda g: m.normalize(g, nonfinite="propagate")), m.dualize):
        made = np.asarray(call([jnp.asarray(g[0])])[0])
        assert abs(np.linalg.norm(made, 2)) < 1e-30 or abs(np.linalg.norm(made, 2) - 1) < 0.02
    assert float(jnp.asarray(g[0]).sum() * 2) == 0.0
