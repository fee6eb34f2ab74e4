"""The literal numbers of a program: factors of residual branches, scales of logits, scales of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import modula_rs as mr
import numpy as np
import pytest
from flax import nnx
from modula_rs import tracing
from modula_rs.tracing.literals import Literals, find_literals
from trace_cases import attend, layer_norm, params, shape, tokens


def literals(apply: Any, given: Any, *inputs: Any) -> Literals:
    return find_literals(jax.make_jaxpr(apply)(given, *inputs), len(jax.tree.leaves(given)))


def stack(depth: int, width: int = 8) -> dict[str, Any]:
    return {"w": [shape(width, width)] * depth, "v": [shape(width, width)] * depth}


def residual(step: Callable[[Any, Any, int], Any]) -> Any:
    """A network of blocks ``step(x, f(x), depth)``, where f has two matrices."""

    def apply(p: Any, x: Any) -> Any:
        for w, v in zip(p["w"], p["v"], strict=True):
            x = step(x, jax.nn.gelu(layer_norm(x) @ w) @ v, len(p["w"]))
        return x

    return apply


KEY = jax.random.key(0)
STEPS = {
    "plain": (lambda x, y, n: x + y, 1, 1),
    "branch first": (lambda x, y, n: y + x, 1, 1),
    "over the depth": (lambda x, y, n: x + y / n, 1 / 4, 1),
    "times a number": (lambda x, y, n: x + (1 / n) * y, 1 / 4, 1),
    "convex": (lambda x, y, n: (1 - 1 / n) * x + y / n, 1 / 4, 3 / 4),
    "over a root": (lambda x, y, n: x + y / jnp.sqrt(n), 1 / 2, 1),
    "an array": (lambda x, y, n: x + y * jnp.asarray(0.25), 1 / 4, 1),
    "as an array of the shape": (lambda x, y, n: x + y * jnp.full(x.shape, 0.25), 1 / 4, 1),
    "reversed": (lambda x, y, n: x - 0.25 * y, 1 / 4, 1),
    "in two factors": (lambda x, y, n: x + (y / 2).astype("float32") / 2, 1 / 4, 1),
    "compiled": (lambda x, y, n: jax.jit(lambda x, y: x + y / 4)(x, y), 1 / 4, 1),
    "dropped": (lambda x, y, n: x + jnp.where(jnp.arange(8) > 2, y / 4, 0.0), 1 / 4, 1),
    "in half precision": (lambda x, y, n: (x.astype("bfloat16") + y.astype("bfloat16") / n).astype("float32"), 1 / 4, 1),
    "through dropout of flax": (lambda x, y, n: x + nn.Dropout(0.1).apply({}, y / n, False, rngs={"dropout": KEY}), 1 / 4, 1),
    "through dropout of equinox": (lambda x, y, n: x + eqx.nn.Dropout(0.1)(y / n, key=KEY), 1 / 4, 1),
    "through dropout of haiku": (lambda x, y, n: x + hk.dropout(KEY, 0.1, y / n), 1 / 4, 1),
    "through a ReLU": (lambda x, y, n: jax.nn.relu(x + y / n), 1 / 4, 1),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_factor_of_a_branch(name: str) -> None:
    step, factor, skip = STEPS[name]
    found = literals(residual(step), stack(4), shape(3, 5, 8))
    assert [(own.factor, own.skip) for own in found.branches] == [(pytest.approx(factor), pytest.approx(skip))] * 4
    assert [own.number for own in found.branches] == [4] * 4
    order = [8 // 2 + at for at in range(4)]  # in the tree "v" comes before "w"
    assert [own.arrays for own in found.branches] == [1 << at | 1 << other for at, other in zip(range(4), order, strict=True)]
    assert [own.last for own in found.branches] == [1 << at for at in range(4)]
    assert found.gains(8) == pytest.approx([factor] * 8)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint, jax.jit], ids=["as it is", "recomputed", "compiled"])
def test_the_factor_of_a_branch_in_a_loop(wrap: Any) -> None:
    """A loop over layers counts them; in a nested loop the numbers multiply. What was added before the loop counts too."""

    def apply(p: Any, x: Any) -> Any:
        x = x + jnp.tanh(x @ p["first"]) @ p["second"]
        block = wrap(lambda x, w: (x + jnp.tanh(x @ w) / 6, None))
        outer = lambda x, layers: jax.lax.scan(block, x, layers)  # noqa: E731
        return jax.lax.scan(outer, x, p["layers"])[0]

    found = literals(apply, params(first=(8, 8), layers=(2, 3, 8, 8), second=(8, 8)), shape(5, 8))
    assert sorted((own.factor, own.number, own.arrays) for own in found.branches) == [(pytest.approx(1 / 6), 7, 0b010), (1, 7, 0b101)]
    assert found.gains(3) == pytest.approx([1, 1 / 6, 1])


def test_two_branches_on_one_array_and_a_branch_in_a_branch() -> None:
    def parallel(p: Any, x: Any) -> Any:
        y = layer_norm(x)
        return x + (y @ p["a"]) / 2 + (y @ p["b"]) / 4

    found = literals(parallel, params(a=(8, 8), b=(8, 8)), shape(5, 8))
    assert [(own.factor, own.number) for own in found.branches] == [(1 / 2, 2), (1 / 4, 2)]

    def nested(p: Any, x: Any) -> Any:
        y = jnp.tanh(x @ p["a"])
        return x + (y + jnp.tanh(y @ p["b"]) / 2) @ p["c"] / 4

    assert literals(nested, params(a=(8, 8), b=(8, 8), c=(8, 8)), shape(5, 8)).gains(3) == pytest.approx([1 / 4, 1 / 8, 1 / 4])


def test_random_keys_among_the_constants() -> None:
    key = jax.random.key(0)
    apply = lambda p, x: x + (x @ p["w"]) * jax.random.bernoulli(key, 0.5, x.shape) / 4  # noqa: E731
    assert [own.factor for own in literals(apply, params(w=(8, 8)), shape(5, 8)).branches] == [1 / 4]


def test_a_learned_gain_is_no_literal() -> None:
    found = literals(lambda p, x: x + p["g"] * (x @ p["w"]), params(g=(8,), w=(8, 8)), shape(5, 8))
    assert [own.learned for own in found.branches] == [True]


def test_a_gate_is_no_literal() -> None:
    """As in networks that are modulated by a condition."""
    found = literals(lambda p, x: x + jnp.tanh(x @ p["g"]) * (x @ p["w"]), params(g=(8, 8), w=(8, 8)), shape(5, 8))
    assert [own.learned for own in found.branches] == [True]


def _gru(p: Any, x: Any) -> Any:
    def turn(h: Any, x: Any) -> Any:
        z = jax.nn.sigmoid(x @ p["z"] + h @ p["y"])
        return (1 - z) * h + z * jnp.tanh(x @ p["w"] + h @ p["u"]), None

    return jax.lax.scan(turn, jnp.zeros((4, 8)), x)[0]


SQUARE = dict.fromkeys("abuwyz", (8, 8))
NONE = {
    "gru": (_gru, shape(7, 4, 8)),
    "normalisation": (lambda p, x: layer_norm(x + (x @ p["a"]) @ p["b"] - x)[..., :4], None),
    "two towers": (lambda p, x: x @ p["a"] + jnp.tanh(x @ p["b"]), shape(5, 8)),
    "gate": (lambda p, x: (x @ p["a"]) * jax.nn.sigmoid(x @ p["b"]), shape(5, 8)),
    "gelu": (lambda p, x: jax.nn.gelu(x @ p["a"]), shape(5, 8)),
    "centred": (lambda p, x: (x @ p["a"]) - (x @ p["a"]).mean(-1, keepdims=True), shape(5, 8)),
    "rotation": (lambda p, x: x * 0.5 + jnp.flip(x, -1) * 0.5, shape(5, 8)),
    "concatenation": (lambda p, x: jnp.concatenate([x, x @ p["a"]], -1), shape(5, 8)),
}


@pytest.mark.parametrize("name", [name for name in NONE if NONE[name][1] is not None])
def test_what_is_no_branch(name: str) -> None:
    apply, given = NONE[name]
    assert literals(apply, params(**SQUARE), given).branches == []


def test_the_mean_of_a_sum_is_no_branch_of_it() -> None:
    """A layer norm subtracts the mean of ``x + f(x)``, which has been multiplied by the weights of f, but not since."""
    found = literals(lambda p, x: layer_norm(x + jnp.tanh(x @ p["a"])) @ p["b"], params(a=(8, 8), b=(8, 8)), shape(5, 8))
    assert [own.last for own in found.branches] == [1]


def heads(p: Any, x: Any) -> list[Any]:
    return [(x @ p[name]).reshape(2, 5, 2, 16) for name in "qkv"]


def softmax_of(logits: Any) -> Callable[..., Any]:
    def apply(p: Any, x: Any) -> Any:
        q, k, v = heads(p, x)
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits(q, k)), v)

    return apply


def product(q: Any, k: Any) -> Any:
    return jnp.einsum("bthd,bshd->bhts", q, k)


CAUSAL = jnp.tril(jnp.ones((5, 5), bool))
LOGITS = {
    "over the root": (lambda q, k: product(q, k) / jnp.sqrt(q.shape[-1]), 1 / 4),
    "queries over the root": (lambda q, k: product(q / jnp.sqrt(16).astype(q.dtype), k), 1 / 4),
    "keys times a number": (lambda q, k: product(q, k * 16**-0.5), 1 / 4),
    "both": (lambda q, k: product(q / 2, k / 2), 1 / 4),
    "over the number": (lambda q, k: product(q, k) / 16, 1 / 16),
    "a third each": (lambda q, k: product(q / 3, k / 3) / 16, 1 / 144),
    "as they are": (product, 1),
    "masked": (lambda q, k: jnp.where(CAUSAL, product(q, k) / 4, -jnp.inf), 1 / 4),
    "masked by a sum": (lambda q, k: product(q, k) / 4 + jnp.where(CAUSAL, 0.0, -1e9), 1 / 4),
    "capped": (lambda q, k: 50 * jnp.tanh(product(q, k) / 4 / 50), 1 / 4),
    "rotated": (lambda q, k: product(q / 4 * jnp.cos(jnp.arange(16.0)) + jnp.flip(q / 4, -1) * jnp.sin(jnp.arange(16.0)), k), 1 / 4),
    "with a sink": (lambda q, k: jnp.concatenate([product(q, k) / 4, jnp.zeros((2, 2, 5, 1))], -1)[..., :5], 1 / 4),
    "in double precision": (lambda q, k: (product(q, k) / 4).astype("float32"), 1 / 4),
}


@pytest.mark.parametrize("name", LOGITS)
def test_the_scale_of_logits(name: str) -> None:
    logits, scale = LOGITS[name]
    found = literals(softmax_of(logits), params(k=(32, 32), q=(32, 32), v=(32, 32)), shape(2, 5, 32)).logits
    assert [(own.scale, own.size, own.arrays) for own in found] == [(pytest.approx(scale), 16, 0b011)]


def test_the_scale_of_logits_in_libraries() -> None:
    def of_jax(p: Any, x: Any) -> Any:
        return jax.nn.dot_product_attention(*heads(p, x), is_causal=True)

    given = params(k=(32, 32), q=(32, 32), v=(32, 32))
    assert [own.scale for own in literals(of_jax, given, shape(2, 5, 32)).logits] == pytest.approx([1 / 4])
    assert [own.scale for own in literals(lambda p, x: attend(*heads(p, x)), given, shape(2, 5, 32)).logits] == pytest.approx([1 / 4])

    linen = nn.MultiHeadDotProductAttention(2)
    variables = jax.eval_shape(linen.init, jax.random.key(0), jnp.ones((2, 5, 32)))
    assert [own.scale for own in literals(linen.apply, variables, shape(2, 5, 32)).logits] == pytest.approx([1 / 4])

    graph, state = nnx.split(nnx.MultiHeadAttention(2, 32, decode=False, rngs=nnx.Rngs(0)))
    attention = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
    assert [own.scale for own in literals(attention, state, shape(2, 5, 32)).logits] == pytest.approx([1 / 4])

    module = eqx.nn.MultiheadAttention(2, 32, key=jax.random.key(0))
    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    equinox = lambda arrays, x: eqx.combine(arrays, static)(x, x, x)  # noqa: E731
    assert [own.scale for own in literals(equinox, arrays, shape(5, 32)).logits] == pytest.approx([1 / 4])


def test_a_product_of_data_outside_of_a_softmax_has_no_logits() -> None:
    found = literals(lambda p, x: jnp.exp(x @ p["a"]) @ jnp.tanh(x @ p["b"]).T, params(a=(8, 8), b=(8, 8)), shape(5, 8))
    assert found.logits == []


def test_a_literal_that_multiplies_an_array_is_in_its_target() -> None:
    """As ``8 * Embed`` and ``Linear / 2`` have it: the target is divided by the factor, the unit is not."""

    def apply(p: Any, ids: Any) -> Any:
        return jnp.tanh(p["table"][ids] * 8) @ (p["w"] / 2)

    reading = tracing.read(apply, params(table=(50, 64), w=(64, 10)), tokens(3, 7))
    assert [(leaf.roles[0].scale, leaf.roles[0].gain) for leaf in reading.leaves] == [(8, 8), (1 / 2, 1 / 2)]
    assert [leaf.target for leaf in reading.leaves] == pytest.approx([0.5 / 8, 0.5 * 2])
    assert reading["table"].unit == 1


def test_the_target_of_a_branch_is_divided_by_its_factor() -> None:
    """As in a module: the sensitivity after a block of ``(1 - 1/L) * Identity() + (1/L) * block`` is 1 / L."""
    step, factor, _ = STEPS["convex"]
    plain = tracing.read(residual(STEPS["plain"][0]), stack(4), shape(3, 5, 8))
    scaled = tracing.read(residual(step), stack(4), shape(3, 5, 8))
    ignored = tracing.read(residual(step), stack(4), shape(3, 5, 8), masses={"branches": 0})
    for a, b, c in zip(plain.leaves, scaled.leaves, ignored.leaves, strict=True):
        assert (a.mass, b.mass) == (c.mass, c.mass)
        assert b.target == pytest.approx(a.target / factor, rel=1e-5)
        assert c.target == a.target
    assert "the program multiplies what it makes by 0.25" in str(scaled)
    assert "multiplies what it makes" not in str(plain)


@pytest.mark.parametrize("depth", [2, 5])
@pytest.mark.parametrize("looped", [False, True])
def test_targets_are_those_of_the_module(depth: int, looped: bool) -> None:
    """A residual network of 1/L branches gets the targets, and so the updates, of the module that it is a twin of."""
    block = mr.Linear(8, 8) @ mr.Abs() @ mr.Linear(8, 8)
    blocks = ((1 - 1 / depth) * mr.Identity() + 1 / depth * block) ** depth
    blocks.tare(absolute=5)
    twin = mr.Linear(3, 8) @ blocks @ mr.Linear(8, 6)
    first, w, v, last = twin.initialize(0)

    def turn(x: Any, p: Any) -> Any:
        return (1 - 1 / depth) * x + jnp.abs(x @ p["w"].T) @ p["v"].T / depth

    def apply(p: Any, x: Any) -> Any:
        x = x @ p["first"].T
        if looped:
            x = jax.lax.scan(lambda x, own: (turn(x, own), None), x, p["blocks"])[0]
        else:
            for own in p["blocks"]:
                x = turn(x, own)
        return x @ p["last"].T

    given = {"first": first, "last": last, "blocks": {"w": w, "v": v} if looped else [{"w": w[i], "v": v[i]} for i in range(depth)]}
    net = mr.trace(apply, given, shape(4, 6))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6)))
    np.testing.assert_allclose(net(x, given), twin(x, [first, w, v, last]), rtol=1e-4)
    ours, theirs = net.normalize(given), twin.normalize([first, w, v, last])
    got = ours["blocks"] if looped else {name: np.stack([own[name] for own in ours["blocks"]]) for name in "wv"}
    for one, other in zip([ours["first"], got["w"], got["v"], ours["last"]], theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
