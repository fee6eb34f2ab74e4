"""ResCNN, Attention, GPT and LoRA: masses, sensitivities, targets, and forward values."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
import references

PUBLISHED = Path(__file__).parents[3] / "shared" / "reference" / "targets.json"
CASES = json.loads(PUBLISHED.read_text())["cases"] if PUBLISHED.exists() else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_targets_are_those_of_the_published_package(case):
    m = eval(case["expr"], {name: getattr(mr, name) for name in mr.__all__})
    rows = m.targets()
    assert (m.mass, m.sensitivity, m.atoms) == pytest.approx((case["mass"], case["sensitivity"], case["atoms"]), rel=1e-12)
    assert [(row.kind, list(row.shape)) for row in rows] == [(leaf["kind"], leaf["shape"]) for leaf in case["leaves"]]
    assert [row.mass for row in rows] == pytest.approx([leaf["mass"] for leaf in case["leaves"]], rel=1e-12)
    assert [row.target for row in rows] == pytest.approx([leaf["target"] for leaf in case["leaves"]], rel=1e-12)


@pytest.mark.parametrize(("position", "tokens_share"), [("learned", 1 / 2), ("rope", 1.0)])
@pytest.mark.parametrize("norm", ["layer", "rms", None])
def test_targets_of_other_transformers(position, tokens_share, norm):
    blocks, mass = 3, 8.0
    m = mr.GPT(50, 16, 2, 24, 6, 10, blocks, blocks_mass=mass, position=position, norm=norm)
    total, each = 1 + mass + 1, mass / (6 * blocks)
    # An atom's target is its share of the mass over the sensitivity of everything after it. Residual branches are divided by 2 x 3 blocks.
    expected = {
        "tokens": tokens_share / total / tokens_share,
        "positions": 1 / 2 / total / (1 / 2),
        "blocks/attention/q": each / total * 2 * blocks * 3,
        "blocks/attention/k": each / total * 2 * blocks * 3,
        "blocks/attention/v": each / total * 2 * blocks * 3,
        "blocks/attention/output": each / total * 2 * blocks,
        "blocks/mlp/hidden": each / total * 2 * blocks,
        "blocks/mlp/output": each / total * 2 * blocks,
        "output": 1 / total,
    }
    rows = m.targets()
    assert m.atoms == len(rows) == 6 * blocks + 2 + (position == "learned")
    assert m.sensitivity == pytest.approx(1, rel=1e-12)
    for row in rows:
        assert row.target == pytest.approx(expected[row.path], rel=1e-12), row.path
    assert {row.path for row in rows} == set(expected) - (set() if position == "learned" else {"positions"})


def test_targets_of_other_convolutional_networks():
    m = mr.ResCNN(8, 5, 3, 1, 4, blocks_mass=7)
    rows = {row.path: row.target for row in m.targets()}
    assert rows == pytest.approx({"input": 1 / 9, "blocks/conv2d": 7 / 15 / 9 * 5, "output": 1 / 9}, rel=1e-12)
    assert (m.mass, m.atoms, m.in_features, m.out_features) == (9, 17, 1, 4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_lora_moves_size_between_its_factors(scale):
    m, plain = mr.LoRA(6, 4, 2, scale=scale), mr.LoRA(6, 4, 2)
    w, x = m.initialize(0, np.float64), np.random.default_rng(0).standard_normal((3, 4))
    assert m.sensitivity == pytest.approx(1)
    np.testing.assert_allclose(m(x, w), x @ w[0].T @ w[1].T, rtol=1e-12)
    np.testing.assert_allclose(m(x, [w[0] * scale, w[1] / scale]), plain(x, w), rtol=1e-12)
    assert [row.target for row in m.targets()] == pytest.approx([scale / 2, 1 / 2 / scale])


# ---- forward values ----------------------------------------------------------------------------------------------------------


def named(m, w):
    return {leaf.path: np.asarray(array, np.float64) for leaf, array in zip(m.leaves, w, strict=True)}


def close(found, expected, tolerance):
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance * np.abs(expected).max())


# float64 differs by rounding only: a few hundred additions in each of a dozen layers. The spacing of float32 is 5e8 times larger.
DOUBLE, SINGLE = 1e-13, 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("norm", ["layer", "rms", None])
@pytest.mark.parametrize("tied", [False, True])
def test_gpt_against_loops(position, norm, tied):
    m = mr.GPT(11, 9, 2, 12, 4, 5, 3, position=position, norm=norm, tie_embeddings=tied)
    tokens = np.random.default_rng(0).integers(0, 11, (2, 7))
    w = m.initialize(1, np.float64)
    expected = references.gpt(tokens, named(m, w), 2, 3, position, norm)
    close(m(tokens, w), expected, DOUBLE)
    single = [jnp.asarray(a, jnp.float32) for a in w]
    close(jax.jit(m)(jnp.asarray(tokens), single), expected, SINGLE)


@pytest.mark.parametrize("final_norm", [False, True])
def test_resmlp_against_loops(final_norm):
    m = mr.ResMLP(5, 3, 2, 7, 4, final_norm=final_norm)
    rows = np.random.default_rng(0).standard_normal((2, 7))
    w = m.initialize(1, np.float64)
    expected = references.resmlp(rows, named(m, w), 3, 2, final_norm)
    close(m(rows, w), expected, DOUBLE)
    close(jax.jit(m)(jnp.asarray(rows, jnp.float32), [jnp.asarray(a, jnp.float32) for a in w]), expected, SINGLE)


@pytest.mark.parametrize("build", [mr.ResMLP, mr.ResCNN])
def test_a_final_norm_changes_neither_masses_nor_targets(build):
    plain, normed = (build(8, 5, 2, 3, 4, final_norm=final_norm) for final_norm in (False, True))
    assert (normed.mass, normed.atoms, normed.bonds) == (plain.mass, plain.atoms, plain.bonds + 1)
    assert normed.sensitivity == pytest.approx(plain.sensitivity, rel=1e-12)
    assert normed.targets() == plain.targets()


@pytest.mark.parametrize("blocks", [2, 16])
def test_the_stream_of_fresh_weights_shrinks_and_a_final_norm_mends_it(blocks):
    x = np.random.default_rng(0).standard_normal((64, 64))
    w = mr.ResMLP(64, blocks, 1, 64, 64).initialize(0, np.float64)
    w[-1] = np.eye(64)  # the output is what the head gets
    rms = [float(np.sqrt(np.mean(mr.ResMLP(64, blocks, 1, 64, 64, final_norm=norm)(x, w) ** 2))) for norm in (False, True)]
    assert rms[0] < 0.55
    assert rms[1] == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("final_norm", [False, True])
def test_rescnn_against_loops(final_norm):
    m = mr.ResCNN(5, 2, 2, 3, 4, final_norm=final_norm)
    images = np.random.default_rng(0).standard_normal((2, 6, 5, 3))
    w = m.initialize(1, np.float64)
    expected = references.rescnn(images, named(m, w), 2, 2, final_norm)
    close(m(images, w), expected, DOUBLE)
    close(jax.jit(m)(jnp.asarray(images, jnp.float32), [jnp.asarray(a, jnp.float32) for a in w]), expected, SINGLE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rope", [False, True])
def test_attention_against_loops(causal, rope):
    m = mr.Attention(3, 10, 4, 6, causal, rope=rope)
    x = np.random.default_rng(0).standard_normal((2, 5, 10)) * 3
    w = m.initialize(1, np.float64)
    expected = np.array([references.attention(each, *w, 3, causal, rope) for each in x])
    close(m(x, w), expected, DOUBLE)
    close(m(x[0], w), expected[0], DOUBLE)
    close(m(jnp.asarray(x, jnp.float32), [jnp.asarray(a, jnp.float32) for a in w]), expected, SINGLE)


def test_the_future_is_not_seen():
    m = mr.GPT(11, 9, 2, 12, 4, 5, 3)
    w, tokens = m.initialize(0), np.arange(8)[None]
    changed = tokens.copy()
    changed[0, 5:] = 0
    np.testing.assert_array_equal(m(tokens, w)[:, :5], m(changed, w)[:, :5])
    assert not np.array_equal(m(tokens, w)[:, 5:], m(changed, w)[:, 5:])


def test_rope_depends_on_distance_alone():
    rope, rng = mr.Rope(8), np.random.default_rng(0)
    q, k = (np.tile(rng.standard_normal(8), (12, 1)) for _ in range(2))
    scores = rope(q, []) @ rope(k, []).T
    for distance in range(-11, 12):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-13)
    assert len(np.unique(scores.round(6))) > 12  # the scores do depend on the position


@pytest.mark.slow
def test_jitting_twice_leaks_no_tracer():
    m = mr.GPT(11, 9, 2, 12, 4, 4, 2, position="rope")
    w, tokens = m.initialize(jax.random.key(0)), jnp.arange(8)[None]
    first = jax.jit(lambda w: m(tokens, w))(w)
    second = jax.jit(lambda w: m(tokens[:, :6], w) * 2)(w)
    third = m(tokens, w)
    np.testing.assert_allclose(first, third, atol=1e-5)
    np.testing.assert_allclose(second, 2 * third[:, :6], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 1, position="absolute"), "position"),
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 1, norm="batch"), "norm"),
        (lambda: mr.GPT(5, 4, 2, 8, 3, 4, 1, position="rope"), "even"),
        (lambda: mr.Attention(0, 8, 4, 4, True), "num_heads"),
        (lambda: mr.GPT(5, 4, 2, 8, 4, 4, 1)(np.zeros((1, 5), int), mr.GPT(5, 4, 2, 8, 4, 4, 1).initialize(0)), "at most 4 tokens, got 5"),
    ],
)
def test_bad_architectures_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("build", [mr.ResMLP, mr.ResCNN])
def test_a_final_norm_is_true_or_false(build):
    with pytest.raises(TypeError, match="final_norm must be True or False, got 1"):
        build(4, 2, 1, 3, 2, final_norm=1)


def test_sweeps_have_a_final_norm_unless_told_otherwise():
    from modula_rs import cli, data, transfer

    digits = data.digits()
    for given, expected in (((), True), ((True,), True), ((False,), False)):
        built = transfer.architecture("resmlp", digits, 1, *given)(transfer.Size(8, 2))
        assert built.fingerprint == mr.ResMLP(8, 2, 1, 64, 10, final_norm=expected).fingerprint
    options = ["sweep", "--arch", "resmlp", "--data", "digits", "--widths", "8", "--depths", "2", "--out", "x"]
    assert cli.parser().parse_args(options).final_norm is True
    assert cli.parser().parse_args([*options, "--no-final-norm"]).final_norm is False
