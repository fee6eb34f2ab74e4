"""Networks in plain JAX that are rare, or written in an unusual way."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import case, layer_norm, params, shape, tokens

X = shape(4, 7, 32)
D = 32
OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
NHWC = ("NHWC", "HWIO", "NHWC")


def _squeeze_excite(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=NHWC)
    gate = jax.nn.sigmoid(jax.nn.relu(y.mean((1, 2)) @ p["down"] + p["b"]) @ p["up"])
    return (y * gate[:, None, None]).mean((1, 2)) @ p["head"]


def _film(p: Any, x: Any, condition: Any) -> Any:
    gain, shift = jnp.split((condition @ p["film"] + p["b"])[:, None], 2, -1)
    return jnp.tanh((x @ p["in"]) * (1 + gain) + shift) @ p["out"]


def _unet(p: Any, x: Any, time: Any) -> Any:
    waves = jnp.exp(jnp.linspace(0, -5, 8)) * time[:, None]
    clock = jax.nn.silu(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)], -1) @ p["time"])
    a = jax.nn.silu(lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=NHWC) + clock[:, None, None])
    low = lax.reduce_window(a, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    b = jax.nn.silu(lax.conv_general_dilated(low, p["b"], (1, 1), "SAME", dimension_numbers=NHWC) + p["b_bias"])
    up = jax.image.resize(b, (*a.shape[:3], b.shape[-1]), "nearest")
    return lax.conv_general_dilated(jnp.concatenate([a, up], -1), p["c"], (1, 1), "SAME", dimension_numbers=NHWC)


def _one_key_head(p: Any, x: Any) -> Any:
    q, k, v = (x @ p["q"]).reshape(4, 7, 4, 8), (x @ p["k"])[:, :, None], (x @ p["v"])[:, :, None]
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(4, 7, D) @ p["out"]


def _time_mix(p: Any, x: Any) -> Any:
    """RWKV: each token is mixed with the token before it."""
    y = x @ p["in"]
    before = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    keys = (y * p["mix"] + before * (1 - p["mix"])) @ p["k"]

    def step(state: Any, now: Any) -> Any:
        state = state * jnp.exp(-jnp.exp(p["decay"])) + now
        return state, state + p["bonus"] * now

    return jnp.swapaxes(lax.scan(step, jnp.zeros((4, D)), jnp.swapaxes(keys, 0, 1))[1], 0, 1) @ p["out"]


def _graph(p: Any, x: Any, edges: Any) -> Any:
    """Graph attention and convolution, with sums over segments."""
    h = jnp.einsum("nd,dhf->nhf", x, p["w"])
    score = jnp.exp(jax.nn.leaky_relu(jnp.einsum("nhf,hf->nh", h, p["to"])[edges[:, 0]]))
    y = jax.ops.segment_sum(h[edges[:, 0]] * score[..., None], edges[:, 1], 9)
    return jax.nn.relu(y.reshape(9, -1) + p["b"]) @ p["out"]


def _coordinates(p: Any, x: Any) -> Any:
    y = jnp.sin(30 * (x @ p["a"] + p["b"]))
    return jnp.sin(30 * (y @ p["c"])) @ p["head"] + p["shift"]


def _stacked_list(p: Any, x: Any) -> Any:
    stack = jax.tree.map(lambda *w: jnp.stack(w), *p["layers"])
    x, _ = lax.scan(lambda x, w: (x + jnp.tanh(x @ w["w"] + w["b"]), None), x, stack)
    return x @ p["out"]


def _expert_list(p: Any, x: Any) -> Any:
    up, down = (jnp.stack([expert[name] for expert in p["experts"]]) for name in ("up", "down"))
    gates = jax.nn.softmax(x @ p["router"])
    y = jnp.einsum("ebtf,efd->ebtd", jax.nn.gelu(jnp.einsum("btd,edf->ebtf", x, up)), down)
    return jnp.einsum("ebtd,bte->btd", y, gates) @ p["out"]


def _autoencoder(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["w"] + p["a"]) @ p["w"].T + p["b"]


def _masked(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ (p["w"] * jnp.tril(jnp.ones((D, D))))) @ p["out"]


def _gated_unit(p: Any, x: Any) -> Any:
    """gMLP: half of the features gates the other half, mixed over tokens."""
    u, v = jnp.split(jax.nn.gelu(x @ p["in"]), 2, -1)
    v = jnp.einsum("btd,ts->bsd", layer_norm(v, p["gain"], p["bias"]), p["tokens"]) + p["token_bias"][:, None]
    return (u * v) @ p["out"]


def _inverted(p: Any, x: Any) -> Any:
    """The features are on the middle axis (batch, features, time), and weights (out, in) multiply from the left."""
    y = jnp.einsum("of,bft->bot", p["a"], x) + p["bias"][:, None]
    mean, scale = y.mean(1, keepdims=True), y.std(1, keepdims=True)
    y = (y - mean) / scale * p["gain"][:, None] + p["shift"][:, None]
    return jnp.einsum("of,bft->bot", p["b"], jax.nn.relu(y))


def _parallel_scan(p: Any, x: Any) -> Any:
    """A linear recurrence by ``associative_scan``."""
    u, gate = jnp.split(x @ p["in"], 2, -1)
    decay = jax.nn.sigmoid(gate + p["gate_bias"])
    _, y = lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (decay, u), axis=1)
    return (y + p["bias"]) @ p["out"]


def _switch(p: Any, x: Any, index: Any) -> Any:
    return lax.switch(index, [lambda x: x @ p["a"], lambda x: jnp.tanh(x) @ p["b"], lambda x: x @ p["a"] + p["bias"]], x) @ p["out"]


def _map(p: Any, x: Any) -> Any:
    return lax.map(lambda row: jax.nn.relu(row @ p["w"] + p["b"]), x) @ p["out"]


def _hidden_scale(p: Any, x: Any) -> Any:
    """A residual stack in which every branch is scaled by a literal."""
    for i in range(3):
        x = (1 - 1 / 3) * x + (1 / 3) * jnp.abs(x @ p[f"w{i}"])
    return x @ p["out"]


def _halves_in_a_stream(p: Any, x: Any) -> Any:
    """A reversible network: both halves continue to the end."""
    a, b = jnp.split(x @ p["in"], 2, -1)
    for i in range(2):
        a = a + jnp.tanh(b @ p[f"f{i}"])
        b = b + jnp.tanh(a @ p[f"g{i}"])
    return jnp.concatenate([a, b], -1) @ p["out"]


CASES = [
    case(
        "squeeze and excite",
        _squeeze_excite,
        params(conv=(3, 3, 3, 16), down=(16, 4), b=(4,), up=(4, 16), head=(16, 10)),
        shape(2, 8, 8, 3),
        rows={
            "conv": ("Conv2D", (9, 16, 3)),
            "down": ("Linear", (1, 4, 16)),
            "b": ("Bias", (1, 1, 4)),
            "up": ("Linear", (1, 16, 4)),
            "head": ("Linear", (1, 10, 16)),
        },
    ),
    case(
        "film",
        _film,
        params(film=(6, 64), b=(64,), **{"in": (D, D)}, out=(D, 10)),
        X,
        shape(4, 6),
        rows={"film": ("Linear", (2, D, 6)), "b": ("Bias", (2, 1, D)), "in": LINEAR, "out": OUT},
    ),
    case(
        "u-net",
        _unet,
        params(time=(16, 12), a=(3, 3, 3, 12), b=(3, 3, 12, 20), b_bias=(20,), c=(3, 3, 32, 3)),
        shape(2, 8, 8, 3),
        shape(2),
        rows={
            "time": ("Linear", (1, 12, 16)),
            "a": ("Conv2D", (9, 12, 3)),
            "b": ("Conv2D", (9, 20, 12)),
            "b_bias": ("Bias", (1, 1, 20)),
            "c": ("Conv2D", (9, 3, 32)),
        },
    ),
    case(
        "one head of keys",
        _one_key_head,
        params(q=(D, D), k=(D, 8), v=(D, 8), out=(D, 10)),
        X,
        rows={"q": LINEAR, "k": ("Linear", (1, 8, D)), "v": ("Linear", (1, 8, D)), "out": OUT},
    ),
    case(
        "time mix",
        _time_mix,
        params(**{"in": (D, D)}, mix=(D,), k=(D, D), decay=(D,), bonus=(D,), out=(D, 10)),
        X,
        rows={
            "in": LINEAR,
            "mix": ("Scale", (1, 1, D)),
            "k": LINEAR,
            "decay": ("Scale", (1, 1, D)),
            "bonus": ("Scale", (1, 1, D)),
            "out": OUT,
        },
        rules={"decay": "scale"},
    ),
    case(
        "graph attention",
        _graph,
        params(w=(6, 4, 8), to=(4, 8), b=(32,), out=(32, 10)),
        shape(9, 6),
        tokens(20, 2),
        rows={"w": ("Linear", (1, 32, 6)), "to": ("Linear", (4, 1, 8)), "b": ("Bias", (1, 1, 32)), "out": OUT},
    ),
    case(
        "coordinates",
        _coordinates,
        params(a=(2, D), b=(D,), c=(D, D), head=(D, 1), shift=(1,)),
        shape(9, 2),
        rows={
            "a": ("Linear", (1, D, 2)),
            "b": ("Bias", (1, 1, D)),
            "c": LINEAR,
            "head": ("Linear", (1, 1, D)),
            "shift": ("Bias", (1, 1, 1)),
        },
    ),
    case(
        "layers stacked when they run",
        _stacked_list,
        {"layers": [params(w=(D, D), b=(D,)) for _ in range(3)], **params(out=(D, 10))},
        X,
        rows={**{f"layers/{i}/w": LINEAR for i in range(3)}, **{f"layers/{i}/b": ("Bias", (1, 1, D)) for i in range(3)}, "out": OUT},
    ),
    case(
        "experts stacked when they run",
        _expert_list,
        {"experts": [params(up=(D, 64), down=(64, D)) for _ in range(3)], **params(router=(D, 3), out=(D, 10))},
        X,
        rows={
            **{f"experts/{i}/up": ("Linear", (1, 64, D)) for i in range(3)},
            **{f"experts/{i}/down": ("Linear", (1, D, 64)) for i in range(3)},
            "router": ("Linear", (1, 3, D)),
            "out": OUT,
        },
    ),
    case(
        "tied autoencoder",
        _autoencoder,
        params(w=(D, 6), a=(6,), b=(D,)),
        X,
        rows={"w": ("Linear+Linear", (1, 6, D)), "a": ("Bias", (1, 1, 6)), "b": ("Bias", (1, 1, D))},
    ),
    case("masked weight", _masked, params(w=(D, D), out=(D, 10)), X, rows={"w": LINEAR, "out": OUT}),
    case(
        "spatial gate",
        _gated_unit,
        params(**{"in": (D, 64)}, gain=(D,), bias=(D,), tokens=(7, 7), token_bias=(7,), out=(D, 10)),
        X,
        rows={
            "in": ("Linear", (2, D, D)),
            "gain": ("Scale", (1, 1, D)),
            "bias": ("Bias", (1, 1, D)),
            "tokens": ("Linear", (1, 7, 7)),
            "token_bias": ("Bias", (1, 1, 7)),
            "out": OUT,
        },
    ),
    case(
        "features before time",
        _inverted,
        params(a=(16, 6), bias=(16,), gain=(16,), shift=(16,), b=(10, 16)),
        shape(4, 6, 7),
        rows={
            "a": ("Linear", (1, 16, 6)),
            "bias": ("Bias", (1, 1, 16)),
            "gain": ("Scale", (1, 1, 16)),
            "shift": ("Bias", (1, 1, 16)),
            "b": ("Linear", (1, 10, 16)),
        },
    ),
    case(
        "parallel scan",
        _parallel_scan,
        params(**{"in": (D, 64)}, gate_bias=(D,), bias=(D,), out=(D, 10)),
        X,
        rows={"in": ("Linear", (2, D, D)), "gate_bias": ("Bias", (1, 1, D)), "bias": ("Bias", (1, 1, D)), "out": OUT},
    ),
    case(
        "switch",
        _switch,
        params(a=(D, D), b=(D, D), bias=(D,), out=(D, 10)),
        X,
        tokens(),
        rows={"a": LINEAR, "b": LINEAR, "bias": ("Bias", (1, 1, D)), "out": OUT},
    ),
    case("map", _map, params(w=(D, D), b=(D,), out=(D, 10)), X, rows={"w": LINEAR, "b": ("Bias", (1, 1, D)), "out": OUT}),
    case(
        "branches with literals",
        _hidden_scale,
        params(w0=(D, D), w1=(D, D), w2=(D, D), out=(D, 10)),
        X,
        rows={"w0": LINEAR, "w1": LINEAR, "w2": LINEAR, "out": OUT},
    ),
    case(
        "reversible",
        _halves_in_a_stream,
        params(**{"in": (D, D)}, f0=(16, 16), g0=(16, 16), f1=(16, 16), g1=(16, 16), out=(D, 10)),
        X,
        rows={"in": LINEAR, **dict.fromkeys(("f0", "f1", "g0", "g1"), ("Linear", (1, 16, 16))), "out": OUT},
    ),
]
