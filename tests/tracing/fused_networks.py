"""Weights that are fused, stacked or mapped as in libraries and papers, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import attend, case, layer_norm, params, shape, tokens

X = shape(4, 7, 32)
D = 32
OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
NHWC = ("NHWC", "HWIO", "NHWC")


def _heads(x: Any, size: int = 8) -> Any:
    return x.reshape(4, 7, 4, size)


def _parallel(p: Any, x: Any) -> Any:
    """One product makes queries, keys, values, gate and up; another makes both outputs."""
    qkv, gate, up = jnp.split(x @ p["in"], [96, 160], -1)
    y = attend(*map(_heads, jnp.split(qkv, 3, -1))).reshape(4, 7, D)
    return jnp.concatenate([y, jax.nn.silu(gate) * up], -1) @ p["out"]


def _latent_attention(p: Any, x: Any) -> Any:
    """Keys and values are made from a narrow latent, with a separate part for positions."""
    y = x @ p["down"]
    latent, place = layer_norm(y[..., :6], p["gain"]), jnp.sin(y[..., 6:])
    k = jnp.concatenate([_heads(latent @ p["k"], 6), jnp.broadcast_to(place[:, :, None], (4, 7, 4, 2))], -1)
    return attend(_heads(x @ p["q"]), k, _heads(latent @ p["v"])).reshape(4, 7, D) @ p["out"]


def _sinks(p: Any, x: Any) -> Any:
    """A learned logit for each head stands beside the scores of the keys."""
    q, k, v = (_heads(x @ p[name]) for name in "qkv")
    logits = jnp.einsum("bthd,bshd->bhts", q, k)
    weights = jax.nn.softmax(jnp.concatenate([logits, jnp.broadcast_to(p["sink"][:, None, None], (4, 4, 7, 1))], -1))[..., :-1]
    return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(4, 7, D) @ p["out"]


def _talking_heads(p: Any, x: Any) -> Any:
    logits = jnp.einsum("bthd,bshd->bhts", _heads(x @ p["q"]), _heads(x @ p["k"]))
    return jax.nn.softmax(jnp.einsum("bhts,hg->bgts", logits, p["mix"]))


def _mixture(p: Any, x: Any) -> Any:
    y = x @ p["w"] + p["b"]
    return jax.nn.softmax(y[..., :3]), y[..., 3:6], jnp.exp(y[..., 6:])


def _policy(p: Any, x: Any) -> Any:
    y = x @ p["w"] + p["b"]
    return y[..., :4], jnp.tanh(y[..., 4])


def _gated_convolution(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")) + p["b"]
    return y[..., :6] * jax.nn.sigmoid(y[..., 6:])


def _kernels_of_an_ensemble(p: Any, x: Any) -> Any:
    def member(k: Any, b: Any, l: Any) -> Any:  # noqa: E741
        y = lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC) + b
        return lax.conv_general_dilated(jax.nn.relu(y), l, (1, 1), "SAME", dimension_numbers=NHWC)

    return jax.vmap(member)(p["k"], p["b"], p["l"])


def _tables_of_columns(p: Any, ids: Any) -> Any:
    """A table for each column of the data."""
    return jax.vmap(lambda table, ids: table[ids], (0, 1), 1)(p["tables"], ids).sum(1) @ p["out"]


def _first_layer_apart(p: Any, x: Any) -> Any:
    x = jnp.tanh(x @ p["w"][0])
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"][1:])[0]


def _periods(p: Any, x: Any) -> Any:
    """Layers alternate between two kinds, taken from one stack that is reshaped."""
    return lax.scan(lambda x, w: (jnp.tanh(jax.nn.relu(x @ w[0]) @ w[1]), None), x, p["w"].reshape(2, 2, D, D))[0]


def _merged_patches(p: Any, x: Any) -> Any:
    return jnp.concatenate([x[:, 0::2], x[:, 1::2]], -1) @ p["w"]


def _pixel_shuffle(p: Any, x: Any) -> Any:
    y = (x @ p["w"] + p["b"]).reshape(2, 4, 4, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 5)
    return y @ p["out"] + p["c"]


def _gain_by_einsum(p: Any, x: Any) -> Any:
    return jnp.einsum("btd,d->btd", x @ p["w"], p["gain"]) @ p["out"]


def _gain_with_statistics(p: Any, x: Any) -> Any:
    """The gain multiplies the statistics before the features, and the features are raw inputs."""
    return (x - x.mean(-1, keepdims=True)) * (lax.rsqrt(x.var(-1, keepdims=True)) * p["gain"]) @ p["w"]


def _heads_mixed(p: Any, x: Any) -> Any:
    return jnp.einsum("bthd,hde->bthe", jnp.tanh(_heads(x @ p["w"])), p["mix"]).reshape(4, 7, D) @ p["out"]


CASES = [
    case(
        "parallel layers in one product",
        _parallel,
        params(**{"in": (D, 224)}, out=(96, 10)),
        X,
        rows={
            "in": ("Linear", ((1, 32, D), (1, 32, D), (1, 32, D), (1, 64, D), (1, 64, D))),
            "out": ("Linear", (1, 10, 96)),
        },
    ),
    case(
        "latent attention",
        _latent_attention,
        params(down=(D, 8), gain=(6,), q=(D, D), k=(6, 24), v=(6, D), out=(D, 10)),
        X,
        rows={
            "down": ("Linear", ((1, 6, D), (1, 2, D))),
            "gain": ("Scale", (1, 1, 6)),
            "q": LINEAR,
            "k": ("Linear", (1, 24, 6)),
            "v": ("Linear", (1, D, 6)),
            "out": OUT,
        },
    ),
    case(
        "sinks",
        _sinks,
        params(q=(D, D), k=(D, D), v=(D, D), sink=(4,), out=(D, 10)),
        X,
        rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "sink": ("Embed", (1, 1, 4)), "out": OUT},
    ),
    case(
        "talking heads",
        _talking_heads,
        params(q=(D, D), k=(D, D), mix=(4, 4)),
        X,
        rows={"q": LINEAR, "k": LINEAR, "mix": ("Linear", (1, 4, 4))},
    ),
    case("mixture", _mixture, params(w=(D, 9), b=(9,)), X, rows={"w": ("Linear", (3, 3, D)), "b": ("Bias", (3, 1, 3))}),
    case(
        "policy and value",
        _policy,
        params(w=(D, 5), b=(5,)),
        X,
        rows={"w": ("Linear", ((1, 4, D), (1, 1, D))), "b": ("Bias", ((1, 1, 4), (1, 1, 1)))},
    ),
    case(
        "gated convolution",
        _gated_convolution,
        params(k=(3, D, 12), b=(12,)),
        X,
        rows={"k": ("Conv2D", (6, 6, D)), "b": ("Bias", (2, 1, 6))},
    ),
    case(
        "kernels of an ensemble",
        _kernels_of_an_ensemble,
        params(k=(5, 3, 3, 2, 6), b=(5, 6), l=(5, 3, 3, 6, 4)),
        shape(2, 8, 8, 2),
        rows={"k": ("Conv2D", (45, 6, 2)), "b": ("Bias", (5, 1, 6)), "l": ("Conv2D", (45, 4, 6))},
    ),
    case(
        "tables of columns",
        _tables_of_columns,
        params(tables=(3, 50, D), out=(D, 10)),
        tokens(4, 3),
        rows={"tables": ("Embed", (3, 50, D)), "out": OUT},
    ),
    case("first layer apart", _first_layer_apart, params(w=(4, D, D)), X, rows={"w": ("Linear", (4, D, D), 4)}),
    case("periods", _periods, params(w=(4, D, D)), X, rows={"w": ("Linear", (4, D, D), 4)}),
    case("merged patches", _merged_patches, params(w=(64, 10)), shape(4, 8, D), rows={"w": ("Linear", (1, 10, 64))}),
    case(
        "pixel shuffle",
        _pixel_shuffle,
        params(w=(3, 20), b=(20,), out=(5, 2), c=(2,)),
        shape(2, 4, 4, 3),
        rows={"w": ("Linear", (1, 20, 3)), "b": ("Bias", (1, 1, 20)), "out": ("Linear", (1, 2, 5)), "c": ("Bias", (1, 1, 2))},
    ),
    case(
        "gain by einsum",
        _gain_by_einsum,
        params(w=(D, D), gain=(D,), out=(D, 10)),
        X,
        rows={"w": LINEAR, "gain": ("Scale", (1, 1, D)), "out": OUT},
    ),
    case("gain with statistics", _gain_with_statistics, params(gain=(D,), w=(D, D)), X, rows={"gain": ("Scale", (1, 1, D)), "w": LINEAR}),
    case(
        "a map for each head",
        _heads_mixed,
        params(w=(D, D), mix=(4, 8, 8), out=(D, 10)),
        X,
        rows={"w": ("Linear", (4, 8, D)), "mix": ("Linear", (4, 8, 8)), "out": OUT},
    ),
]
