"""The inferred properties of a tree, against an independent recursion and the published package's figures; modules are values."""

import copy
import json
import math
from pathlib import Path

import modula_rs as mr
import numpy as np
import pytest
import recursion
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trees import Case, Expr, atom, cases, compose, preserving

EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "targets.json"


def random_weights(m, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(leaf.shape) for leaf in m.leaves]


def shares_bind(expr):
    """Whether an array has more than one use."""
    names = [row for row in _shares(expr, 1) if row]
    return len(names) != len(set(names))


def _shares(expr, times):
    if expr.op == "atom":
        return [expr.args[3]] * times
    times = min(times * (expr.args[0] if expr.op == "power" else 1), 2)
    return [name for part in expr.parts for name in _shares(part, times)]


@pytest.mark.slow
@EXAMPLES
@given(cases(depth=4))
def test_masses_sensitivities_and_targets(case: Case):
    m = case.expr.build()
    assert m.mass == pytest.approx(case.expr.mass, rel=1e-12)
    assert m.sensitivity == pytest.approx(recursion.sensitivity(case.expr), rel=1e-12)
    ours, expected = m.targets(3.0), recursion.targets(case.expr) if case.expr.mass else []
    assert m.atoms == sum(leaf.copies for leaf in m.leaves) == len(ours)
    assert len(m.initialize(0)) == len(m.leaves)
    assert math.isclose(sum(leaf.mass for leaf in m.leaves), m.mass, rel_tol=1e-12)
    for row, (kind, shape, mass, target) in zip(ours, expected, strict=False):
        assert (row.kind, row.shape) == (kind, shape)
        assert row.mass == pytest.approx(mass, rel=1e-12)
        assert row.target == pytest.approx(3 * target, rel=1e-12)
    assert not expected or len(expected) == len(ours)


@pytest.mark.slow
@EXAMPLES
@given(cases(depth=3))
def test_norms(case: Case):
    m = case.expr.build()
    w = random_weights(m)
    expected = recursion.norm(case.expr, w)
    # A spectral norm by iteration may be wrong by one per cent.
    assert m.norm(w) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
@EXAMPLES
@given(cases(depth=3), st.sampled_from([1.0, 0.25]))
def test_maps_reach_their_norm_and_their_gain(case: Case, target_norm):
    m = case.expr.build()
    w = random_weights(m)
    reached = target_norm if any(row.target > 0 for row in m.targets()) else 0.0
    for made in (m.normalize(w, target_norm), m.dualize(w, target_norm)):
        assert recursion.norm(case.expr, made) == pytest.approx(reached, rel=0.012)
        assert m.norm(made) == pytest.approx(reached, rel=0.02)
    gain = sum(float((a * d).sum()) for a, d in zip(w, m.dualize(w), strict=True))
    assert gain >= 0
    if not shares_bind(case.expr):
        assert gain == pytest.approx(m.dual_norm(w), rel=0.011)
    for leaf, direction, made in zip(m.leaves, w, m.normalize(w, target_norm), strict=True):
        if leaf.kind in ("Bias", "Scale") or (leaf.kind == "Linear" and leaf.copies == 1):
            assert np.allclose(np.outer(direction, made), np.outer(made, direction), atol=1e-12)  # the direction is kept


@pytest.mark.slow
@EXAMPLES
@given(st.integers(1, 4).flatmap(lambda into: st.tuples(st.just(into), preserving(into, 3, 4))), st.integers(1, 5))
def test_sharpness(body: tuple[int, Expr], width):
    into, expr = body
    whole = compose(atom("Linear", 2, 3), expr, atom("Linear", into, width))  # this makes every width known
    m, (expected, _) = whole.build(), recursion.sharpness(whole, width)
    assert tuple(m.sharpness) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert m.smooth == (not whole.uses("ReLU", "Abs", "ScaledReLU"))


@pytest.mark.skipif(not REFERENCE.exists(), reason="the published package's figures are not at hand")
def test_the_published_figures():
    known = {name: getattr(mr, name) for name in dir(mr)}
    for case in json.loads(REFERENCE.read_text())["cases"]:
        m = eval(case["expr"], {}, known)
        assert m.mass == pytest.approx(case["mass"], rel=1e-6), case["name"]
        assert m.sensitivity == pytest.approx(case["sensitivity"], rel=1e-6), case["name"]
        assert m.atoms == case["atoms"], case["name"]
        for ours, theirs in zip(m.targets(), case["leaves"], strict=True):
            assert ours.kind == theirs["kind"], case["name"]
            assert math.prod(ours.shape) == math.prod(theirs["shape"]), case["name"]
            assert ours.mass == pytest.approx(theirs["mass"], rel=1e-6), case["name"]
            assert ours.target == pytest.approx(theirs["target"], rel=1e-6), case["name"]


# ---- modules are values --------------------------------------------------------------------------------------------------------


def test_taring_a_part_after_composing_changes_nothing():
    part = mr.Linear(3, 3)
    whole = part @ part
    part.tare(5)
    assert (part.mass, whole.mass) == (5, 2)
    assert len(whole.leaves) == 2
    assert part.tare(relative=2) is part
    assert part.mass == 10
    with pytest.raises(ValueError, match="mass"):
        mr.ReLU().tare()
    with pytest.raises(ValueError, match="mass"):
        part.tare(-1)


def test_copies_are_the_same_module():
    m = mr.ResMLP(8, 3, 2, 4, 2)
    for other in (copy.copy(m), copy.deepcopy(m)):
        assert str(other) == str(m)
        other.tare(7)
        assert m.mass == 3


def test_operators_refuse_what_is_no_module():
    m = mr.Linear(3, 3)
    for build in (lambda: m @ 3, lambda: m + 1, lambda: m * "a", lambda: m**1.5, lambda: m - 2, lambda: m * m):
        with pytest.raises(TypeError):
            build()
    with pytest.raises(ZeroDivisionError):
        m / 0
    for build in (lambda: 0 * m, lambda: m * math.nan, lambda: m * math.inf, lambda: m**-1):
        with pytest.raises(ValueError, match=r"scalar|power"):
            build()


def test_features_are_checked_where_they_are_composed():
    for build in (
        lambda: mr.Linear(8, 4) @ mr.Linear(8, 8),
        lambda: mr.Linear(8, 4) @ mr.Abs() @ mr.Linear(8, 8),
        lambda: mr.Linear(8, 4) + mr.Linear(7, 4),
        lambda: mr.Linear(8, 4) + mr.Linear(8, 5),
        lambda: mr.Linear(8, 4) ** 2,
        lambda: mr.Linear(4, 4) @ mr.Embed(5, 9),
        lambda: mr.Embed(4, 9) @ mr.Linear(4, 4),
        lambda: mr.Bias(4) @ (mr.Identity(), mr.Identity()),
    ):
        with pytest.raises(ValueError, match=r"feature|token|tuple"):
            build()


def test_depth_is_an_axis():
    m = mr.compound.residual(mr.Linear(64, 64) @ mr.Tanh(), 1_000_000).tare(5)
    assert (m.mass, m.atoms, m.leaves[0].shape) == (pytest.approx(5), 1_000_000, (1_000_000, 64, 64))
    assert m.sensitivity == pytest.approx(1)
    assert all(map(math.isfinite, m.sharpness))
    nested = ((mr.Linear(4, 4) ** 3) ** 5).leaves[0]
    assert (nested.shape, nested.copies) == ((5, 3, 4, 4), 15)
