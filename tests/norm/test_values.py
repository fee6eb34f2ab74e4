"""Every atom in every dtype on every backend: arrays of every kind through every map, against float64."""

import jax
import ml_dtypes
import numpy as np
import pytest
from battery import BACKENDS, DTYPES, arrays, check_like, each_block, eps, measure, model, norm, targets, to, wide
from spectra import direction_error

KINDS = ["ordinary", "zero", "huge", "tiny", "rank one", "uneven"]
EXTREMES = ["largest", "smallest"]
SPECTRAL = ("Linear", "Conv2D")

pytestmark = [
    pytest.mark.usefixtures("double_precision"),
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.parametrize("dtype", DTYPES),
]


def unchanged(given, before):
    for array, old in zip(given, before, strict=True):
        np.testing.assert_array_equal(wide(array), wide(old))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_normalize(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    before = [np.array(a) for a in given]
    for target_norm in (1.0, 0.3):
        made = model().normalize(given, target_norm)
        check_like(made, given)
        for leaf, target, _, block, result in each_block(given, made):
            size = measure(leaf.kind, block)
            expected = block / size * (target * target_norm) if size else np.zeros_like(block)
            # 1 % for a spectral norm; all else to rounding (a mean of 70 squares, a root, a quotient, the result).
            factor = 0.01 if leaf.kind in SPECTRAL and block.size > 1 else 0
            largest = np.abs(expected).max()
            np.testing.assert_allclose(result, expected, rtol=factor + 4 * eps(dtype), atol=eps(dtype) * largest, err_msg=leaf.path)
        reached = target_norm if kind != "zero" else 0
        assert norm(made) == pytest.approx(reached, rel=0.01 + 4 * eps(dtype))
        assert float(model().norm(made)) == pytest.approx(norm(made), rel=0.01)
    unchanged(given, before)


@pytest.mark.parametrize("kind", KINDS)
def test_dualize(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    before = [np.array(a) for a in given]
    made = model().dualize(given, 2.0)
    check_like(made, given)
    for leaf, target, _, block, result in each_block(given, made):
        where = f"{leaf.path}: {block}"
        if target == 0 or not block.any():
            assert not result.any(), where
        elif leaf.kind in SPECTRAL:
            direction, scaled = result / (2 * target), block / np.abs(block).max()
            # Rounding the result moves its singular values by no more than eps/2 of its Frobenius norm.
            rounding = eps(dtype) * min(block.shape) ** 0.5
            assert direction_error(scaled, direction) < 0.01 + rounding, where
            assert np.linalg.norm(direction, 2) < 1.01 + rounding, where
        else:
            expected = np.sign(block) if leaf.kind == "Scale" else block / measure(leaf.kind, block)
            np.testing.assert_allclose(result, 2 * target * expected, rtol=4 * eps(dtype), atol=1e-7 * target, err_msg=where)
    unchanged(given, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dual_norm_is_what_dualize_gains(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    made = model().dualize(given)
    gain = sum(float((wide(g) * wide(d)).sum()) for g, d in zip(given, made, strict=True))
    dual = 0.0
    for leaf, target, _, block in each_block(given):
        top = np.abs(block).max()
        if top == 0:
            continue
        unit = block / top
        match leaf.kind:
            case "Linear" | "Conv2D":
                value = np.linalg.norm(unit, "nuc")
            case "Scale":
                value = np.abs(unit).sum()
            case _:
                value = np.sqrt(unit.size) * np.linalg.norm(unit)
        dual += target * value * top
    assert gain >= 0
    assert float(model().dual_norm(given)) == pytest.approx(dual, rel=1e-3)
    # Each singular value of the direction is within 0.01 of 1, but for those that make up less than a thousandth of the sum.
    assert gain == pytest.approx(dual, rel=0.011 + eps(dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_norm(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    value = model().norm(given)
    assert float(value) == pytest.approx(norm(given), rel=0.01)
    assert isinstance(value, jax.Array if backend == "jax" else float)


@pytest.mark.parametrize("kind", KINDS)
def test_project(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    before = [np.array(a) for a in given]
    made = model().project(given)
    check_like(made, given)
    for leaf, _, unit, block, result in each_block(given, made):
        where = f"{leaf.path}: {block}"
        if leaf.kind in ("Bias", "Scale"):
            np.testing.assert_array_equal(result, block, err_msg=where)
        elif not block.any():
            assert not result.any(), where
        elif leaf.kind == "Embed":
            np.testing.assert_allclose(np.sqrt((result**2).mean()), 1, rtol=4 * eps(dtype), err_msg=where)
        else:
            rank = 1 if kind == "rank one" else min(block.shape)
            singular = np.linalg.svd(result / unit, compute_uv=False)
            rounding = 8 * eps(dtype) * max(block.shape) ** 0.5
            np.testing.assert_allclose(singular[:rank], 1, atol=max(rounding, 1e-5), err_msg=where)
            assert singular[0] <= 1 + max(rounding, 1e-5), where
    unchanged(given, before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_regularize(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    before = [np.array(a) for a in given]
    made = model().regularize(given, 0.5)
    check_like(made, given)
    for leaf, target, unit, block, result in each_block(given, made):
        if leaf.kind == "Embed":
            size = measure(leaf.kind, block)
            expected = block / size if size else block
        else:
            expected = block * (1 - 0.5 * target / unit)
        largest = np.abs(expected).max()
        step = float(ml_dtypes.finfo(dtype).smallest_subnormal)
        np.testing.assert_allclose(result, expected, rtol=4 * eps(dtype), atol=max(1e-7 * largest, step), err_msg=leaf.path)
    unchanged(given, before)


@pytest.mark.parametrize("kind", EXTREMES)
def test_the_ends_of_the_range(kind, dtype, backend):
    given = to(backend, arrays(kind, dtype))
    for name in ("normalize", "dualize", "project"):
        made = getattr(model(), name)(given)
        check_like(made, given)
        if name != "project":
            # XLA may flush to zero what is smaller than a normal number.
            flushed = backend == "jax" and kind == "smallest" and norm(made) < 0.5
            assert flushed or norm(made) == pytest.approx(1, rel=0.02 + eps(dtype))
    assert float(model().norm(given)) >= 0
    assert not np.isnan(float(model().dual_norm(given)))


def test_a_target_norm_of_zero_gives_zeros(dtype, backend):
    given = to(backend, arrays("ordinary", dtype))
    for name in ("normalize", "dualize"):
        for result in getattr(model(), name)(given, 0.0):
            assert not wide(result).any()


def test_what_has_no_mass_is_not_moved(dtype, backend):
    given = to(backend, arrays("ordinary", dtype))
    (index,) = [i for i, leaf in enumerate(model().leaves) if leaf.path.endswith("untrained")]
    assert targets()[model().leaves[index].path] == [0.0]
    for name in ("normalize", "dualize"):
        assert not wide(getattr(model(), name)(given)[index]).any()
    assert wide(model().regularize(given, 0.5)[index]).any()
