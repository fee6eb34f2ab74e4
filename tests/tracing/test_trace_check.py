"""What stands in the way of transfer, and the start at norm 1."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from flax import nnx
from modula_rs.tracing.check import Finding
from test_trace_networks import CASES, named
from trace_cases import Case, layer_norm, params, shape, tokens


def mlp(p: Any, x: Any) -> Any:
    return jax.nn.relu(jax.nn.relu(x @ p["in"] + p["bias"]) @ p["mid"]) @ p["out"]


def standard(width: int, inputs: int = 64, outputs: int = 10, seed: int = 0) -> dict[str, Any]:
    """Entries of variance 1 / fan-in."""
    rng = np.random.default_rng(seed)
    draw = lambda rows, columns: rng.normal(0, rows**-0.5, (rows, columns))  # noqa: E731
    return {"bias": np.zeros(width), "in": draw(inputs, width), "mid": draw(width, width), "out": draw(width, outputs)}


def norm(w: Any) -> float:
    """The norm of a kernel (in, out) by singular values in float64."""
    w = np.asarray(w, np.float64)
    return float(np.linalg.norm(w, 2) * (w.shape[0] / w.shape[1]) ** 0.5)


def found(report: Any, what: str) -> dict[str, float]:
    return {finding.path: finding.measured for finding in report if finding.what == what}


@pytest.mark.parametrize("width", [16, 64, 256])
def test_a_head_of_the_standard_parametrisation_grows_with_the_width(width: int) -> None:
    """Its norm is 1 + sqrt(width / outputs), by Bai and Yin; square matrices have 2 at every width, which is no obstacle."""
    given = standard(width)
    net = mr.trace(mlp, given, shape(3, 64))
    starts = found(net.check(), "start")
    expected = 1 + (width / 10) ** 0.5
    assert norm(given["out"]) == pytest.approx(expected, rel=0.15)
    assert starts == {"out": pytest.approx(norm(given["out"]), rel=0.01)}


@pytest.mark.slow
@pytest.mark.parametrize("library", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("which", ["output", "all"])
def test_rescale_brings_arrays_to_norm_1(which: str, library: Any) -> None:
    given = {name: library(np.asarray(array, np.float32)) for name, array in standard(256).items()}
    net = mr.trace(mlp, given, shape(3, 64))
    made = net.rescale(given, which)
    assert list(made) == list(given)
    for name in ("in", "mid", "out"):
        changed = which == "all" or name == "out"
        assert norm(made[name]) == pytest.approx(1 if changed else norm(given[name]), rel=0.01)
        assert type(made[name]) is type(given[name])
        assert made[name].dtype == given[name].dtype
        cosine = np.vdot(made[name], given[name]) / (np.linalg.norm(made[name]) * np.linalg.norm(given[name]))
        assert cosine == pytest.approx(1, abs=1e-6)
    assert made["bias"] is given["bias"]
    assert not found(net.check(made), "start")


def test_rescale_refuses_another_word_and_other_parameters() -> None:
    given = standard(16)
    net = mr.trace(mlp, given, shape(3, 64))
    with pytest.raises(ValueError, match="which must be one of 'output', 'all', got 'head'"):
        net.rescale(given, "head")
    with pytest.raises(ValueError, match="out must have shape"):
        net.rescale({**given, "out": np.ones((16, 11))})


def test_tables_are_measured_with_the_literal_that_multiplies_them() -> None:
    """Rows of RMS 1 / sqrt(d) that are multiplied by sqrt(d) have norm 1; without, they are small."""
    rng = np.random.default_rng(0)
    given = {"head": rng.normal(0, 1 / 16, (64, 4)), "table": rng.normal(0, 1 / 8, (50, 64))}
    plain = mr.trace(lambda p, i: jnp.tanh(p["table"][i]) @ p["head"], given, tokens(3, 7))
    scaled = mr.trace(lambda p, i: jnp.tanh(p["table"][i] * 8) @ p["head"], given, tokens(3, 7))
    rows = np.sqrt((given["table"] ** 2).mean(1))
    assert found(plain.check(), "start")["table"] == pytest.approx(rows.max(), rel=1e-5)
    assert "table" not in found(scaled.check(), "start")
    for net, size in ((plain, 1), (scaled, 1 / 8)):
        made = net.rescale(given)
        assert np.sqrt((made["table"] ** 2).mean(1)) == pytest.approx(np.full(50, size), rel=1e-5)
        assert not found(net.check(made), "start")


def test_a_start_is_measured_in_the_geometry_of_each_array() -> None:
    """By singular values of every copy, part and tap, in float64."""
    rng = np.random.default_rng(0)
    draw = lambda *sizes: rng.normal(0, 9, sizes)  # noqa: E731
    given = {"gain": draw(8), "head": draw(8, 3), "kernel": draw(3, 3, 6, 8), "stack": draw(5, 8, 24), "bias": draw(8)}

    def apply(p: Any, x: Any) -> Any:
        x = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = x.mean((1, 2)) * p["gain"] + p["bias"]

        def block(x: Any, w: Any) -> Any:
            q, k, v = jnp.split(x @ w, 3, -1)
            return jnp.tanh(q) * jnp.tanh(k) + v, None

        return jax.lax.scan(block, x, p["stack"])[0] @ p["head"]

    got = found(mr.trace(apply, given, shape(2, 5, 5, 6)).check(), "start")
    parts = given["stack"].reshape(5, 8, 3, 8).transpose(0, 2, 1, 3)
    assert got == {
        "bias": pytest.approx(np.sqrt((given["bias"] ** 2).mean())),
        "gain": pytest.approx(np.abs(given["gain"]).max()),
        "head": pytest.approx(norm(given["head"]), rel=0.01),
        "kernel": pytest.approx(9 * np.linalg.norm(given["kernel"], 2, (2, 3)).max() * (6 / 8) ** 0.5, rel=0.01),
        "stack": pytest.approx(np.linalg.norm(parts, 2, (2, 3)).max(), rel=0.01),
    }


def block(p: Any, x: Any, factor: float, size: int) -> Any:
    y = layer_norm(x)
    q, k, v = ((y @ p[name]).reshape(*x.shape[:2], 4, -1) for name in "qkv")
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / size
    y = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v).reshape(x.shape)
    x = x + factor * (y @ p["o"])
    return x + factor * (jax.nn.gelu(layer_norm(x) @ p["up"]) @ p["down"])


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize(("factor", "size", "expected"), [(1, 4, {"branch", "logits"}), (1 / 6, 16, set()), (1 / 6, 4, {"logits"})])
def test_logits_and_branches_of_a_transformer(factor: float, size: int, expected: set[str], looped: bool) -> None:
    one = params(**dict.fromkeys("qkvo", (64, 64)), up=(64, 256), down=(256, 64))
    if looped:
        given = {name: shape(3, *array.shape) for name, array in one.items()}

        def apply(p: Any, x: Any) -> Any:
            return jax.lax.scan(lambda x, p: (block(p, x, factor, size), None), x, p)[0]

    else:
        given = {"layers": [one] * 3}

        def apply(p: Any, x: Any) -> Any:
            for own in p["layers"]:
                x = block(own, x, factor, size)
            return x

    report = mr.trace(apply, given, shape(2, 5, 64)).check()
    assert {finding.what for finding in report} == expected
    places = 1 if looped else 3
    assert len([finding for finding in report if finding.what == "branch"]) == 2 * places * ("branch" in expected)
    for finding in report:
        if finding.what == "branch":
            assert finding.measured == 1
            assert finding.suggestion == "x + f(x) / 6, since 6 branches follow one another"
        else:
            assert finding.measured == pytest.approx(1 / 4)
            assert finding.suggestion == "divide by 16, the number of features that are summed, not by its square root"
            assert finding.path in ({"{k,q}"} if looped else {f"layers/{at}/{{k,q}}" for at in range(3)})


def test_branches_over_the_root_of_their_number_are_reported() -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w) / 4, None), x, p)[0]

    assert found(mr.trace(apply, shape(16, 8, 8), shape(3, 8)).check(), "branch") == {"": 0.25}
    assert not mr.trace(apply, shape(4, 8, 8), shape(3, 8)).check().findings


def test_inputs_far_from_rms_1() -> None:
    rng = np.random.default_rng(0)
    given = standard(16)
    net = mr.trace(mlp, given, rng.uniform(0, 255, (30, 64)))
    assert found(net.check(), "input") == {"input 0": pytest.approx(255 / 3**0.5, rel=0.05)}
    assert not found(net.check(None, rng.normal(size=(30, 64))), "input")
    assert not found(net.check(None, np.zeros((30, 64))), "input")  # zeros stand for a shape
    assert found(net.check(None, {"image": np.full((3, 64), 0.1)}), "input") == {"input 0/image": pytest.approx(0.1)}


def test_inputs_that_a_model_holds_itself_are_none_of_the_user() -> None:
    class Network(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.first, self.norm = nnx.Linear(8, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.norm(self.first(x))

    model = Network(nnx.Rngs(0))
    model.norm.mean[...] = jnp.full(16, 1000.0)
    assert found(mr.trace(model, 9 * jnp.ones((3, 8))).check(), "input") == {"input 0": 9}


def test_shapes_say_what_they_can() -> None:
    report = mr.trace(mlp, jax.eval_shape(lambda: standard(16)), shape(3, 64)).check()
    assert len(report) == 0
    assert str(report).splitlines() == [
        "nothing was found that stands in the way of transfer",
        "the start was not checked, because only shapes are known: net.check(params)",
    ]


def test_a_loaded_table_has_a_start_but_no_program(tmp_path: Any) -> None:
    given = standard(256)
    net = mr.trace(mlp, given, shape(3, 64))
    net.save(tmp_path / "net.json")
    report = mr.load(tmp_path / "net.json").check(given)
    assert found(report, "start") == found(net.check(), "start")
    assert report.notes == ("logits and branches were not checked, because a table that was loaded has no program",)


def test_zeros_and_small_biases_are_no_finding_and_infinity_is() -> None:
    given = standard(16)
    given["mid"] *= 0
    net = mr.trace(mlp, given, shape(3, 64))
    assert "mid" not in found(net.check(), "start")
    given["mid"][3, 4] = np.inf
    (finding,) = [own for own in net.check(given) if own.path == "mid"]
    assert finding.suggestion == "it has entries that are not finite"


def test_the_report_prints_alike_findings_on_one_line() -> None:
    def apply(p: Any, x: Any) -> Any:
        for w in p["blocks"]:
            x = x + jax.nn.relu(x @ w)
        return x

    net = mr.trace(apply, {"blocks": [jnp.eye(8)] * 12}, 100 * jnp.ones((2, 8)))
    report = net.check()
    assert report.findings[0] == Finding("blocks/0", "branch", 1.0, "x + f(x) / 12, since 12 branches follow one another")
    assert str(report).splitlines() == [
        "branch: factor of a residual branch",
        "  blocks/0 and 11 more        1  x + f(x) / 12, since 12 branches follow one another",
        "input: RMS of an input, which should be about 1",
        "  input 0      100  divide it by 100",
    ]


@pytest.mark.slow
@named(CASES)
def test_every_network_can_be_checked(network: Case) -> None:
    """On shapes, on random parameters, and after ``rescale``, which leaves no matrix or table far from norm 1."""
    net = mr.trace(*network.build(), rules=network.rules)
    assert str(net.check())
    structure = net._source.params
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            return leaf if isinstance(leaf, int | float) else np.zeros(leaf.shape, leaf.dtype)
        return np.asarray(rng.standard_normal(np.shape(leaf)) * 9, jnp.result_type(leaf))

    given = jax.tree.map(draw, structure)
    assert str(net.check(given))
    far = found(net.check(net.rescale(given, "all")), "start")
    tied = {leaf.path for leaf in net.leaves if len(leaf.roles) > 1}  # their further uses bound them
    matrices = {leaf.path for leaf in net.leaves if leaf.kind in ("Linear", "Conv2D", "Embed")}
    assert not far.keys() & (matrices - tied)


@pytest.mark.slow
def test_stock_networks_of_two_libraries() -> None:
    """The start and the logits of a transformer block in the standard parametrisation, read from real modules."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, ids: Any) -> Any:
            x = nn.Embed(50, 256)(ids)
            for _ in range(2):
                x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
            return nn.Dense(50)(nn.LayerNorm()(x))

    ids = jnp.ones((2, 5), int)
    variables = Network().init(jax.random.key(0), ids)
    net = mr.trace((Network().apply, variables), ids)
    report = net.check()
    assert set(found(report, "start")) == {"params/Embed_0/embedding", "params/Dense_0/kernel"}
    assert list(found(report, "logits").values()) == pytest.approx([1 / 8] * 2)
    assert set(found(report, "branch").values()) == {1.0}
    assert not found(net.check(net.rescale(variables)), "start")

    model = eqx.nn.MLP(64, 10, 512, 2, key=jax.random.key(0))
    net = mr.trace(model, shape(64))
    params = eqx.filter(model, eqx.is_inexact_array)
    made = net.rescale(params, "all")
    assert jax.tree.structure(made) == jax.tree.structure(params)
    for layer in made.layers:
        assert norm(layer.weight.T) == pytest.approx(1, rel=0.01)
