"""The user's rules: patterns, layouts, and refused rules."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from modula_rs import tracing
from modula_rs.tracing.rules import parse_rules
from trace_cases import layer_norm, params, rows, shape

X = shape(4, 7, 8)


def _experts(p: Any, x: Any) -> Any:
    """Experts whose sum is one product, so that the program alone shows one wide matrix."""
    return jnp.einsum("btef,efd->btd", jax.nn.relu(jnp.einsum("btd,edf->btef", x, p["up"])), p["down"])


def _multiply(p: Any, x: Any) -> Any:
    return x @ p["w"]


def _standardised(p: Any, x: Any) -> Any:
    y = jnp.tanh(x @ (p["w"] - p["w"].mean(0)) + p["b"])
    return (y * jnp.exp(p["log"])) @ p["out"]


def _queries(p: Any, x: Any) -> Any:
    keys = x @ p["k"]
    weights = jax.nn.softmax(jnp.einsum("nk,btk->bnt", layer_norm(p["latents"]) @ p["q"], keys))
    return jnp.einsum("bnt,btk->bnk", weights, keys) @ p["out"]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/A_log", "A_log", True),
        ("**/A_log", "blocks/0/A_log", True),
        ("**/A_log", "blocks/0/xA_log", False),
        ("*/kernel", "a/kernel", True),
        ("*/kernel", "a/b/kernel", False),
        ("**/experts/*/kernel", "m/experts/3/kernel", True),
        ("**/{A_log,D,dt_bias}", "layers/2/D", True),
        ("**/{A_log,D,dt_bias}", "layers/2/E", False),
        ("blocks/**", "blocks/0/up/kernel", True),
        ("block?/up", "block1/up", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    (rule,) = parse_rules({pattern: "scale"})
    assert rule.matches(path) is matches


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("linear io", ("Linear", (1, 6, 8))),
        ("linear", ("Linear", (1, 6, 8))),
        ("linear io/3", ("Linear", (3, 2, 8))),
        ("linear i/2o", ("Linear", (2, 6, 4))),
        ("linear i (o2 /3)", ("Linear", (3, 2, 8))),
        ("linear i o/3+2+1", ("Linear", ((1, 3, 8), (1, 2, 8), (1, 1, 8)))),
        ("linear .o", ("Linear", (8, 6, 1))),
        ("linear oi !", ("Linear", (1, 8, 6))),
        ("linear oi!", ("Linear", (1, 8, 6))),
        ("scale !", ("Scale", (1, 1, 48))),
        ("bias .o !", ("Bias", (8, 1, 6))),
        ("embed !", ("Embed", (1, 8, 6))),
        ("frozen", ("frozen",)),
    ],
)
def test_a_rule_says_how_an_array_lies(text: str, row: Any) -> None:
    reading = tracing.read(_multiply, params(w=(8, 6)), X, rules={"w": text})
    assert rows(reading) == {"w": row}
    assert reading["w"].why.startswith("rule 'w'")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"w": "linear oi"}, "the program has the layout io, since it is multiplied with data; end the rule with !"),
        ({"w": "scale"}, "the program uses it as Linear"),
        ({"w": "conv ki"}, "the program uses it as Linear"),
        ({"w": "linear .io"}, "has 3 axes, but the array has shape"),
        ({"w": "linear io/4"}, "an axis of length 6 cannot be cut so"),
        ({"w": "linear i o/3+4"}, "an axis of length 6 cannot be cut so"),
        ({"w": "linear i (o4 o)"}, "does not fit an axis of length 6"),
        ({"w": "linear xo"}, "cannot read"),
        ({"v": "scale"}, "rule 'v': 'scale': it matches no array"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(rules: dict[str, str], message: str) -> None:
    with pytest.raises(tracing.TraceError) as caught:
        tracing.read(_multiply, params(w=(8, 6)), X, rules=rules)
    assert message in str(caught.value)


@pytest.mark.parametrize(("rules", "error"), [({"w": "matrix"}, ValueError), ({"w": 3}, TypeError)])
def test_a_rule_that_cannot_be_read_is_refused(rules: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=r"rules\['w'\]"):
        tracing.read(_multiply, params(w=(8, 6)), X, rules=rules)


@pytest.mark.parametrize("rules", [[("w", "scale")], "w: scale", {("w",): "scale"}, {3: "scale"}])
def test_rules_of_another_type_are_refused(rules: Any) -> None:
    with pytest.raises(TypeError, match=r"rules must be a dict|the patterns of rules must be strings"):
        tracing.read(_multiply, params(w=(8, 6)), X, rules=rules)


def test_a_rule_that_matches_nothing_names_what_is_near_and_may_be_forced() -> None:
    given = {"first": {"kernel": shape(8, 6)}}

    def apply(p: Any, x: Any) -> Any:
        return x @ p["first"]["kernel"]

    with pytest.raises(tracing.TraceError, match=r"rule '\*\*/kernal': 'linear io': it matches no array; there is first/kernel"):
        tracing.read(apply, given, X, rules={"**/kernal": "linear io"})
    reading = tracing.read(apply, given, X, rules={"**/kernal": "linear io !"})
    assert reading.notes == ("rule '**/kernal': 'linear io !' decides nothing: it matches no array",)


def test_a_rule_behind_another_is_noted() -> None:
    reading = tracing.read(_multiply, params(w=(8, 6)), X, rules={"*": "linear io/3", "w": "frozen"})
    assert reading.notes == ("rule 'w': 'frozen' decides nothing: '*': 'linear io/3' comes before it",)


def test_a_path_with_signs_of_patterns_matches_itself() -> None:
    for name in ("w{0}", "w[1]", "w*", "w?", "a/{b,c}"):
        (rule,) = parse_rules({name: "scale"})
        assert rule.matches(name)


def test_an_array_of_whole_numbers_is_frozen_whatever_a_rule_says() -> None:
    given = {"w": shape(8, 6, dtype="int8")}
    assert rows(tracing.read(_multiply, given, X)) == {"w": ("frozen",)}
    with pytest.raises(tracing.TraceError, match="it has no gradient, being int8, but rule"):
        tracing.read(_multiply, given, X, rules={"w": "linear"})


def test_the_first_rule_that_matches_wins() -> None:
    given = params(w=(8, 6))
    assert rows(tracing.read(_multiply, given, X, rules={"*": "linear io/3", "**": "frozen"}))["w"] == ("Linear", (3, 2, 8))


def test_rules_for_experts() -> None:
    given = params(up=(3, 8, 5), down=(3, 5, 8))
    assert rows(tracing.read(_experts, given, X)) == {"up": ("Linear", (1, 15, 8)), "down": ("Linear", (1, 8, 15))}
    ruled = tracing.read(_experts, given, X, rules={"*": "linear .io"})
    assert rows(ruled) == {"up": ("Linear", (3, 5, 8)), "down": ("Linear", (3, 8, 5))}


def test_a_rule_speaks_where_the_program_does_not_and_the_rest_is_read() -> None:
    given = params(w=(8, 5), b=(5,), log=(5,), out=(5, 2))
    reading = tracing.read(_standardised, given, X, rules={"w": "linear io", "log": "scale"})
    assert rows(reading) == {
        "w": ("Linear", (1, 5, 8)),
        "b": ("Bias", (1, 1, 5)),
        "log": ("Scale", (1, 1, 5)),
        "out": ("Linear", (1, 2, 5)),
    }


def test_learned_queries_are_a_table_once_a_rule_says_so() -> None:
    given = params(latents=(3, 8), q=(8, 6), k=(8, 6), out=(6, 2))
    reading = tracing.read(_queries, given, X, rules={"latents": "embed"})
    assert rows(reading) == {
        "latents": ("Embed", (1, 3, 8)),
        "q": ("Linear", (1, 6, 8)),
        "k": ("Linear", (1, 6, 8)),
        "out": ("Linear", (1, 2, 6)),
    }


def test_a_rule_leaves_the_layers_of_a_stack() -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, p["w"])[0]

    reading = tracing.read(apply, params(w=(5, 8, 8)), X, rules={"w": "linear .io/2"})
    assert rows(reading) == {"w": ("Linear", (10, 4, 8), 5)}


def test_a_kernel_of_a_primitive_is_taught_in_one_line() -> None:
    @jax.jit
    def fused_norm(x: Any) -> Any:
        return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    @jax.jit
    def fused_dense(x: Any, w: Any) -> Any:
        return jax.pure_callback(lambda x, w: x, jax.ShapeDtypeStruct((*x.shape[:-1], w.shape[0]), x.dtype), x, w)

    def apply(p: Any, x: Any) -> Any:
        return fused_dense(fused_norm(x @ p["w"]) + p["pos"], p["out"])

    given = params(w=(8, 6), pos=(7, 6), out=(3, 6))
    with pytest.raises(tracing.TraceError, match="pure_callback"):
        tracing.read(apply, given, X)
    tracing.functions["fused_norm"] = tracing.like(0)
    tracing.functions["fused_dense"] = tracing.linear(weight=1, data=0, contract=([2], [1]))
    try:
        reading = tracing.read(apply, given, X)
    finally:
        del tracing.functions["fused_norm"], tracing.functions["fused_dense"]
    assert rows(reading) == {"w": ("Linear", (1, 6, 8)), "pos": ("Embed", (1, 7, 6)), "out": ("Linear", (1, 3, 6))}


def _doubled(x_ref: Any, y_ref: Any) -> None:
    y_ref[...] = 2 * x_ref[...]


def test_a_primitive_of_ones_own_and_a_pallas_kernel_are_taught_by_their_names() -> None:
    from jax.experimental import pallas
    from jax.extend.core import Primitive

    dense = Primitive("my_dense")  # of another library, in C++ perhaps: JAX knows nothing but its name and its shapes
    dense.def_abstract_eval(lambda x, w: jax.core.ShapedArray((*x.shape[:-1], w.shape[0]), x.dtype))

    def apply(p: Any, x: Any) -> Any:
        y = dense.bind(x, p["w"])
        y = pallas.pallas_call(_doubled, out_shape=jax.ShapeDtypeStruct(y.shape, y.dtype), name="my_double")(y)
        return (y + p["b"]) @ p["out"]

    given = params(w=(6, 8), b=(6,), out=(6, 2))
    with pytest.raises(tracing.TraceError, match=r"w .6, 8.: it is used by the primitive my_dense, of which nothing is known"):
        tracing.read(apply, given, X)
    tracing.primitives["my_dense"] = tracing.linear(weight=1, data=0, contract=([2], [1]))
    try:
        unknown = tracing.read(apply, given, X)["b"]  # a kernel that keeps the shape is taken for a function of single elements
        tracing.functions["my_double"] = tracing.like(0)
        reading = tracing.read(apply, given, X)
    finally:
        del tracing.primitives["my_dense"]
        tracing.functions.pop("my_double", None)
    assert unknown.kind == "Bias"
    assert rows(reading) == {"w": ("Linear", (1, 6, 8)), "b": ("Bias", (1, 1, 6)), "out": ("Linear", (1, 2, 6))}
    with pytest.raises(tracing.TraceError):
        tracing.read(apply, given, X)


def test_a_taught_rule_that_does_not_fit_says_so() -> None:
    @jax.jit
    def shrink(x: Any) -> Any:
        return jax.pure_callback(lambda x: x[..., :3], jax.ShapeDtypeStruct((*x.shape[:-1], 3), x.dtype), x)

    tracing.functions["shrink"] = tracing.like(0)
    try:
        with pytest.raises(ValueError, match=r"the rule of \S+: result of shape \(4, 7, 3\) is said to be like operand 0 of \(4, 7, 8\)"):
            tracing.read(lambda p, x: shrink(x @ p["w"]), params(w=(8, 8)), X)
    finally:
        del tracing.functions["shrink"]
