"""If the program does not decide what arrays are, the error lists every such array, with the finding and a rule to paste."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from modula_rs import tracing
from trace_cases import layer_norm, params, shape, tokens

X = shape(4, 7, 8)


def _learned_start(p: Any, x: Any) -> Any:
    start = jnp.broadcast_to(p["a"], (4, 8))
    return lax.scan(lambda h, x: (jnp.tanh(h @ p["w"] + x), None), start, jnp.swapaxes(x, 0, 1))[0]


CASES = {
    "exp": (lambda p, x: x * jnp.exp(p["a"]), {"a": (8,)}, X, "a (8,): the program takes exp of the parameter itself"),
    "sort": (lambda p, x: x + jnp.sort(p["a"]), {"a": (8,)}, X, "the program takes sort of the parameter itself"),
    "fourier": (lambda p, x: x * jnp.real(jnp.fft.fft(p["a"])), {"a": (8,)}, X, "the program takes fft of the parameter itself"),
    "divided": (lambda p, x: x / p["a"], {"a": ()}, X, "data is divided by it"),
    "power": (lambda p, x: x ** p["a"], {"a": ()}, X, "it meets data in pow"),
    "unused": (lambda p, x: x, {"a": (3,)}, X, 'the program does not use it. Say what it is: rules={"a": "frozen"}'),
    "weight norm": (lambda p, x: x @ (p["a"] * p["b"] / jnp.linalg.norm(p["b"])), {"a": (5,), "b": (8, 5)}, X, "another parameter: a, b"),
    "weight standard": (
        lambda p, x: x @ (p["a"] - p["a"].mean(0)),
        {"a": (8, 5)},
        X,
        "the program takes reduce_sum of the parameter itself",
    ),
    "latents": (
        lambda p, x: (p["a"] @ p["b"]) @ jnp.swapaxes(x, 1, 2),
        {"a": (5, 8), "b": (8, 8)},
        X,
        "multiplied with another parameter: a, b",
    ),
    "learned start": (_learned_start, {"a": (8,), "w": (8, 8)}, X, "it is the initial carry of a loop"),
    "raw positions": (lambda p, x: x + p["a"], {"a": (7, 8)}, X, "it is not known along which axes features run"),
    "dropped connections": (
        lambda p, x, m: x @ (p["a"] * m),
        {"a": (8, 5)},
        (X, shape(8, 5)),
        "it is not known along which axes features run",
    ),
    "part of a stack": (lambda p, x: jnp.tanh(x @ p["a"][0]) @ p["a"][1], {"a": (3, 8, 8)}, X, "only the parts [(0, 1), (1, 2)] of axis 0"),
    "part of a matrix": (lambda p, x: x @ p["a"][:, :3], {"a": (8, 5)}, X, "only the parts [(0, 3)] of axis 1, of length 5"),
    "moving window": (lambda p, x, i: x @ lax.dynamic_slice(p["a"], (0, i), (8, 2)), {"a": (8, 5)}, (X, tokens()), "cuts across its axes"),
    "constants": (
        lambda p, x: x @ (jnp.arange(24.0).reshape(8, 3) @ p["a"]),
        {"a": (3, 5)},
        X,
        "it is multiplied with a matrix of constants",
    ),
    "slopes": (
        lambda p, x: x[..., None, None] + p["a"] * jnp.arange(5.0)[:, None],
        {"a": (3,)},
        X,
        "multiplied with constants along an axis",
    ),
    "outer product": (lambda p, x: jnp.tanh(x[..., None] * p["a"]), {"a": (5,)}, X, "data is not known to vary"),
    "given back": (lambda p, x: (x, p["a"]), {"a": (8,)}, X, "the program gives it back as it is"),
    "gain and bias": (lambda p, x: x * p["a"] + p["a"], {"a": (8,)}, X, "its uses contradict each other: it multiplies data"),
    "an index": (lambda p, x: (x @ p["w"])[:, :, p["a"].astype("int32")], {"a": (8,), "w": (8, 8)}, X, "it is used as an index"),
    "an image": (lambda p, x: lax.conv(p["a"], x, (1, 1), "SAME"), {"a": (1, 2, 8, 8)}, shape(4, 2, 3, 3), "it is convolved as an image"),
    "scattered": (lambda p, x: x.at[:, 0].set(p["a"]), {"a": (8,)}, X, "it is written into an array, or written over"),
    "solved": (lambda p, x: x @ jnp.linalg.inv(p["a"]), {"a": (8, 8)}, X, "it is used by the primitive lu, of which nothing is known"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_program_does_not_say_is_refused(name: str) -> None:
    apply, sizes, inputs, message = CASES[name]
    with pytest.raises(tracing.TraceError, match="cannot tell what") as caught:
        tracing.read(apply, params(**sizes), *(inputs if isinstance(inputs, tuple) else (inputs,)))
    assert message in str(caught.value)
    assert any(f"\n  a {shape(*sizes['a']).shape}" in str(caught.value) and f'rules={{"{path}": ' in str(caught.value) for path in sizes)


@pytest.mark.parametrize("name", CASES)
def test_the_rules_to_paste_are_accepted(name: str) -> None:
    apply, sizes, inputs, _ = CASES[name]
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    with pytest.raises(tracing.TraceError) as caught:
        tracing.read(apply, params(**sizes), *given)
    rules = dict(re.findall(r'rules=\{"([^"]*)": "([^"]*)"\}', str(caught.value)))
    reading = tracing.read(apply, params(**sizes), *given, rules=rules)
    assert all(reading[path].why == f"rule {path!r}: {text!r}" for path, text in rules.items())


def test_all_arrays_are_listed_at_once_and_the_rest_is_not() -> None:
    def apply(p: Any, x: Any) -> Any:
        return jnp.exp(p["a"]) * (x @ p["w"]) / p["b"]

    with pytest.raises(tracing.TraceError, match="cannot tell what 2 of 3 arrays are") as caught:
        tracing.read(apply, params(a=(5,), b=(5,), w=(8, 5)), X)
    lines = str(caught.value).split("\n  ")
    assert [line.split(":")[0] for line in lines[1:]] == ["a (5,)", "b (5,)"]


def test_an_opaque_primitive_is_named() -> None:
    def apply(p: Any, x: Any) -> Any:
        return jax.pure_callback(lambda x, w: x, shape(4, 7, 8), x, p["w"])

    with pytest.raises(tracing.TraceError, match="used by the primitive pure_callback, of which nothing is known"):
        tracing.read(apply, params(w=(8, 8)), X)


def test_features_cut_beyond_recognition_are_shown() -> None:
    """Half of the heads' features are used a second time. They are no part of their own, and the table says so."""

    def apply(p: Any, x: Any) -> Any:
        y = layer_norm(x @ p["w"])
        return y @ p["out"] + y[..., :2].sum()

    why = tracing.read(apply, params(w=(8, 6), out=(6, 3)), X)["w"].why
    assert why == "it is multiplied with data; of 6 features 0:2 are also used by themselves"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, {}), TypeError, "apply must be a function"),
        ((lambda p: p,), TypeError, "params are missing"),
        ((lambda p: p, {}), ValueError, "params have no arrays"),
        ((lambda p: 0, {"a": "text"}), TypeError, "params: a must be an array, got str"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tracing.read(*arguments)
