"""Dense layers, convolutions, experts and adapters, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import case, layer_norm, params, shape

X = shape(4, 7, 32)  # batch, time, features: no two sizes are equal
D, H, HD, F = 32, 4, 8, 128
OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
GAIN = ("Scale", (1, 1, D))
VECTOR = ("Bias", (1, 1, D))


def _out(p: Any, y: Any) -> Any:
    return y @ p["out"]


def _gates(p: Any, x: Any) -> Any:
    return jax.nn.softmax(x @ p["router"])


def _experts(p: Any, x: Any) -> Any:
    h = jax.nn.gelu(jnp.einsum("btd,edf->ebtf", x, p["up"]) + p["up_bias"][:, None, None])
    y = jnp.einsum("ebtf,efd->ebtd", h, p["down"]) + p["down_bias"][:, None, None]
    return _out(p, jnp.einsum("ebtd,bte->btd", y, _gates(p, x)))


def _dispatched(p: Any, x: Any) -> Any:
    gates = _gates(p, x)
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), 3) * gates
    place = jax.nn.one_hot(jnp.cumsum(chosen > 0, 1), 5) * chosen[..., None]
    h = jax.nn.relu(jnp.einsum("becd,edf->becf", jnp.einsum("btec,btd->becd", place, x), p["up"]))
    return _out(p, jnp.einsum("btec,becd->btd", place, jnp.einsum("becf,efd->becd", h, p["down"])))


def _picked_experts(p: Any, x: Any) -> Any:
    best = jnp.argmax(_gates(p, x), -1)
    h = jax.nn.relu(jnp.einsum("btd,btdf->btf", x, p["up"][best]) + p["up_bias"][best])
    return _out(p, jnp.einsum("btf,btfd->btd", h, p["down"][best]))


def _ragged(p: Any, x: Any) -> Any:
    flat = x.reshape(28, D)
    best = jnp.argmax(_gates(p, flat), -1)
    order, sizes = jnp.argsort(best), jnp.bincount(best, length=3)
    h = jax.nn.relu(lax.ragged_dot(flat[order], p["up"], sizes))
    return _out(p, lax.ragged_dot(h, p["down"], sizes))


def _lora(p: Any, x: Any) -> Any:
    return _out(p, jax.nn.relu(x @ (p["w"] + 0.5 * p["a"] @ p["b"])))


def _lora_apart(p: Any, x: Any) -> Any:
    return _out(p, jax.nn.relu(x @ p["w"] + x @ p["a"] @ p["b"]))


@jax.custom_vjp
def _custom(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w)


_custom.defvjp(lambda x, w: (_custom(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].reshape(-1, D).T @ g.reshape(-1, D)))


def _mixed(p: Any, x: Any) -> Any:
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
    y = jax.nn.relu(x.astype(jnp.bfloat16) @ low["w"] + low["b"]) @ low["out"]
    return y.astype(jnp.float32)


def _dropout(p: Any, x: Any, key: Any) -> Any:
    y = jax.nn.relu(x @ p["w"])
    keep = jax.random.bernoulli(key, 0.9, y.shape)
    return _out(p, jnp.where(keep, y / 0.9, 0))


def _quantised(p: Any, x: Any) -> Any:
    weight = p["w"].astype(jnp.float32) * p["scale"]
    return _out(p, jax.nn.relu(x @ weight + p["b"]))


def _images(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["stem"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.relu(y * p["gain"] + p["bias"])
    y = lax.conv_general_dilated(y, p["depth"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8)
    y = lax.conv_general_dilated(y, p["point"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.conv_general_dilated(y, p["grouped"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4)
    y = lax.conv_transpose(y, p["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.mean((1, 2)) @ p["head"]


def _nchw(p: Any, x: Any) -> Any:
    y = lax.conv(x, p["a"], (1, 1), "SAME") + p["bias"][:, None, None]
    return lax.conv(jax.nn.relu(y), p["b"], (2, 2), "VALID").reshape(2, -1) @ p["head"]


def _patches(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).reshape(2, 4, D)
    return _out(p, y + p["pos"])


def _volumes(p: Any, x: Any, series: Any) -> Any:
    y = lax.conv_general_dilated(x, p["volume"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    z = lax.conv_general_dilated(series, p["series"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return y.mean((1, 2, 3)) @ p["a"] + z.mean(1) @ p["b"]


def _layer_scale(p: Any, x: Any) -> Any:
    y = x @ p["in"]
    return _out(p, y + p["gamma"] * jnp.tanh(y @ p["w"]))


def _scalars(p: Any, x: Any) -> Any:
    return _out(p, p["scale"] * jnp.tanh(x @ p["w"]) + p["shift"])


def _mixer(p: Any, x: Any) -> Any:
    y = x @ p["in"]
    mixed = jnp.swapaxes(jax.nn.gelu(jnp.swapaxes(layer_norm(y, p["gain"]), 1, 2) @ p["tokens"] + p["token_bias"]), 1, 2)
    y = y + mixed
    return _out(p, y + jax.nn.gelu(y @ p["up"] + p["up_bias"]) @ p["down"])


def _summed(p: Any, x: Any) -> Any:
    weights = jax.nn.softmax((jnp.tanh(x @ p["w"]) * p["score"]).sum(-1))
    return _out(p, jnp.einsum("bt,btd->bd", weights, x))


def _moments(p: Any, x: Any, noise: Any) -> Any:
    mean, deviation = jnp.split(jnp.tanh(x @ p["w"]) @ p["moments"] + p["bias"], 2, -1)
    return _out(p, mean + jnp.exp(deviation) * noise)


def _lengths_of_one(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["in"]) @ p["head"] + p["bias"]


CASES = [
    case(
        "experts",
        _experts,
        params(router=(D, 3), up=(3, D, F), up_bias=(3, F), down=(3, F, D), down_bias=(3, D), out=(D, 10)),
        X,
        rows={
            "router": ("Linear", (1, 3, D)),
            "up": ("Linear", (3, F, D)),
            "up_bias": ("Bias", (3, 1, F)),
            "down": ("Linear", (3, D, F)),
            "down_bias": ("Bias", (3, 1, D)),
            "out": OUT,
        },
    ),
    case(
        "experts with capacity",
        _dispatched,
        params(router=(D, 3), up=(3, D, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={"router": ("Linear", (1, 3, D)), "up": ("Linear", (3, F, D)), "down": ("Linear", (3, D, F)), "out": OUT},
    ),
    case(
        "experts by index",
        _picked_experts,
        params(router=(D, 3), up=(3, D, F), up_bias=(3, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={
            "router": ("Linear", (1, 3, D)),
            "up": ("Linear", (3, F, D)),
            "up_bias": ("Embed", (1, 3, F)),
            "down": ("Linear", (3, D, F)),
            "out": OUT,
        },
        rules={"router": "linear io"},  # the program uses the router through argmax only, which has no gradient
    ),
    case(
        "experts by ragged products",
        _ragged,
        params(router=(D, 3), up=(3, D, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={"router": ("Linear", (1, 3, D)), "up": ("Linear", (3, F, D)), "down": ("Linear", (3, D, F)), "out": OUT},
    ),
    case(
        "low rank in a sum",
        _lora,
        params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)),
        X,
        rows={"w": LINEAR, "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT},
    ),
    case(
        "low rank beside",
        _lora_apart,
        params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)),
        X,
        rows={"w": LINEAR, "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT},
    ),
    case("custom_vjp", lambda p, x: _out(p, _custom(x, p["w"])), params(w=(D, D), out=(D, 10)), X, rows={"w": LINEAR, "out": OUT}),
    case("mixed precision", _mixed, params(w=(D, D), b=(D,), out=(D, 10)), X, rows={"w": LINEAR, "b": VECTOR, "out": OUT}),
    case("dropout", _dropout, params(w=(D, D), out=(D, 10)), X, jax.random.key(0), rows={"w": LINEAR, "out": OUT}),
    case(
        "quantised",
        _quantised,
        {**params(scale=(D,), b=(D,), out=(D, 10)), "w": shape(D, D, dtype="int8")},
        X,
        rows={"w": ("frozen",), "scale": GAIN, "b": VECTOR, "out": OUT},
    ),
    case(
        "frozen by a rule",
        _lora,
        params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)),
        X,
        rows={"w": ("frozen",), "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT},
        rules={"w": "frozen"},
    ),
    case(
        "convolutions",
        _images,
        params(
            stem=(3, 3, 3, 8),
            gain=(8,),
            bias=(8,),
            depth=(5, 5, 1, 8),
            point=(1, 1, 8, 16),
            grouped=(3, 3, 4, 24),
            up=(2, 2, 24, 12),
            head=(12, 10),
        ),
        shape(2, 8, 8, 3),
        rows={
            "stem": ("Conv2D", (9, 8, 3)),
            "gain": ("Scale", (1, 1, 8)),
            "bias": ("Bias", (1, 1, 8)),
            "depth": ("Scale", (25, 1, 8)),
            "point": ("Conv2D", (1, 16, 8)),
            "grouped": ("Conv2D", (36, 6, 4)),
            "up": ("Conv2D", (4, 12, 24)),
            "head": ("Linear", (1, 10, 12)),
        },
    ),
    case(
        "convolutions, channels first",
        _nchw,
        params(a=(6, 3, 3, 3), bias=(6,), b=(8, 6, 3, 3), head=(72, 10)),
        shape(2, 3, 8, 8),
        rows={"a": ("Conv2D", (9, 6, 3)), "bias": ("Bias", (1, 1, 6)), "b": ("Conv2D", (9, 8, 6)), "head": ("Linear", (1, 10, 72))},
    ),
    case(
        "patches",
        _patches,
        params(patch=(4, 4, 3, D), pos=(1, 4, D), out=(D, 10)),
        shape(2, 8, 8, 3),
        rows={"patch": ("Linear", (1, D, 48)), "pos": ("Embed", (1, 4, D)), "out": OUT},
    ),
    case(
        "convolutions in one and three dimensions",
        _volumes,
        params(volume=(3, 3, 3, 2, 6), series=(5, 4, 7), a=(6, 10), b=(7, 10)),
        shape(2, 4, 5, 6, 2),
        shape(2, 9, 4),
        rows={"volume": ("Conv2D", (27, 6, 2)), "series": ("Conv2D", (5, 7, 4)), "a": ("Linear", (1, 10, 6)), "b": ("Linear", (1, 10, 7))},
    ),
    case(
        "layer scale",
        _layer_scale,
        params(gamma=(D,), w=(D, D), **{"in": (D, D)}, out=(D, 10)),
        X,
        rows={"gamma": GAIN, "w": LINEAR, "in": LINEAR, "out": OUT},
    ),
    case(
        "scalars",
        _scalars,
        params(scale=(), shift=(), w=(D, D), out=(D, 10)),
        X,
        rows={"scale": ("Scale", (1, 1, 1)), "shift": ("Bias", (1, 1, 1)), "w": LINEAR, "out": OUT},
    ),
    case(
        "mixer",
        _mixer,
        params(**{"in": (D, D)}, gain=(D,), tokens=(7, 7), token_bias=(7,), up=(D, F), up_bias=(F,), down=(F, D), out=(D, 10)),
        X,
        rows={
            "in": LINEAR,
            "gain": GAIN,
            "tokens": ("Linear", (1, 7, 7)),
            "token_bias": ("Bias", (1, 1, 7)),
            "up": ("Linear", (1, F, D)),
            "up_bias": ("Bias", (1, 1, F)),
            "down": ("Linear", (1, D, F)),
            "out": OUT,
        },
    ),
    case(
        "product and sum",
        _summed,
        params(w=(D, D), score=(D,), out=(D, 10)),
        X,
        rows={"w": LINEAR, "score": ("Linear", (1, 1, D)), "out": OUT},
    ),
    case(
        "mean and deviation",
        _moments,
        params(w=(D, D), moments=(D, 64), bias=(64,), out=(D, 10)),
        X,
        X,
        rows={"w": LINEAR, "moments": ("Linear", (2, D, D)), "bias": ("Bias", (2, 1, D)), "out": OUT},
    ),
    case(
        "one input, one output",
        _lengths_of_one,
        params(**{"in": (1, D)}, head=(D, 1), bias=(1,)),
        shape(4, 1),
        rows={"in": ("Linear", (1, D, 1)), "head": ("Linear", (1, 1, D)), "bias": ("Bias", (1, 1, 1))},
    ),
]
