"""Programs that are easy to misread, in plain JAX: positions in every layer, weights rearranged before use, rotations in all spellings."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import Case, attend, case, layer_norm, params, shape, tokens
from trace_rows import linear

D = 32
X = shape(4, 7, D)
NHWC = ("NHWC", "HWIO", "NHWC")
ANGLE = jnp.arange(7.0)[:, None, None] / 100.0 ** jnp.linspace(0, 1, 4)


def positions_in_every_layer(p: Any, x: Any) -> Any:
    x = x @ p["in"]
    for i in range(2):
        x = jnp.tanh((x + p["pos"][i]) @ p["w"][i] + p["b"][i])
    return (x + p["last"]) @ p["out"]


def gains_of_tokens(p: Any, x: Any) -> Any:
    y = (x @ p["w"]) * p["tokens"][:, None] + p["pos"]
    return (y + p["shift"][:, None]) @ p["out"]


def experts_in_a_loop(p: Any, x: Any) -> Any:
    gates = jnp.moveaxis(jax.nn.softmax(x @ p["router"]), -1, 0)

    def expert(total: Any, now: Any) -> Any:
        w, gate = now
        return total + gate[..., None] * (jax.nn.relu(x @ w["up"] + w["b"]) @ w["down"]), None

    return lax.scan(expert, jnp.zeros_like(x), (p["experts"], gates))[0] @ p["out"]


def members_in_a_map(p: Any, x: Any) -> Any:
    return lax.map(lambda w: jax.nn.relu(x @ w["a"] + w["b"]) @ w["c"], p)


def scaled_weight(p: Any, x: Any) -> Any:
    return jax.nn.relu(x @ (p["w"] * jnp.exp(p["g"]))) @ (p["v"] / p["s"])


def half_rotated(p: Any, x: Any) -> Any:
    """``x * cos + rotate_half(x) * sin``, as in Hugging Face's models."""

    def rotate(y: Any) -> Any:
        a, b = y[..., :4], y[..., 4:]
        cos, sin = (jnp.concatenate([f(ANGLE), f(ANGLE)], -1) for f in (jnp.cos, jnp.sin))
        return y * cos + jnp.concatenate([-b, a], -1) * sin

    q, k, v = ((x @ p[name]).reshape(4, 7, 4, 8) for name in "qkv")
    return attend(rotate(q), rotate(k), v).reshape(4, 7, D) @ p["o"]


def complex_rotated(p: Any, x: Any) -> Any:
    """Pairs of features as complex numbers, as in Meta's Llama."""

    def rotate(y: Any) -> Any:
        pairs = y.reshape(4, 7, 4, 4, 2)
        z = lax.complex(pairs[..., 0], pairs[..., 1]) * jnp.exp(1j * ANGLE)
        return jnp.stack([jnp.real(z), jnp.imag(z)], -1).reshape(4, 7, 4, 8)

    q, k, v = ((x @ p[name]).reshape(4, 7, 4, 8) for name in "qkv")
    return attend(rotate(q), rotate(k), v).reshape(4, 7, D) @ p["o"]


def rotated_by_matrices(p: Any, x: Any) -> Any:
    """Pairs of features are multiplied by constant rotations."""
    c, s = jnp.cos(ANGLE), jnp.sin(ANGLE)
    turn = jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)
    q, k = (jnp.einsum("bthfj,thfij->bthfi", (x @ p[name]).reshape(4, 7, 4, 4, 2), turn).reshape(4, 7, 4, 8) for name in "qk")
    return attend(q, k, (x @ p["v"]).reshape(4, 7, 4, 8)).reshape(4, 7, D) @ p["o"]


def shuffled_channels(p: Any, x: Any) -> Any:
    """ShuffleNet: grouped products, channels of the groups interleaved between them."""
    y = lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2)
    y = jax.nn.relu(y * p["gain"] + p["bias"])
    y = y.reshape(2, 8, 8, 2, 6).swapaxes(3, 4).reshape(2, 8, 8, 12)
    y = lax.conv_general_dilated(y, p["depth"], (2, 2), "SAME", dimension_numbers=NHWC, feature_group_count=12)
    return lax.conv_general_dilated(y, p["b"], (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2).mean((1, 2)) @ p["out"]


def rearranged_kernels(p: Any, x: Any) -> Any:
    """A matrix used as a kernel of patches, a kernel stored channels first, and a kernel used as a matrix."""
    y = lax.conv_general_dilated(x, p["patch"].reshape(2, 2, 3, 12), (2, 2), "VALID", dimension_numbers=NHWC)
    y = lax.conv_general_dilated(y, p["kernel"].transpose(2, 3, 1, 0)[::-1], (1, 1), "SAME", dimension_numbers=NHWC)
    return jax.nn.relu(y).mean((1, 2)) @ p["point"].reshape(16, 5)


def broadcast_weights(p: Any, x: Any) -> Any:
    """``matmul`` with a weight for each head, and with one weight repeated over the batch."""
    q, k, v = (jnp.matmul(x[:, None], p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.matmul(q, jnp.swapaxes(k, -1, -2)))
    y = jnp.matmul(weights, v).swapaxes(1, 2).reshape(4, 7, D)
    return jnp.matmul(y, jnp.broadcast_to(p["o"], (4, D, 10)))


def joined_and_cut(p: Any, x: Any, y: Any) -> Any:
    """Two streams are joined, normed together, and cut again at the seam."""
    both = layer_norm(jnp.concatenate([x @ p["a"], y @ p["b"]], -1), p["gain"], p["bias"])
    return jnp.tanh(both[..., :20]) @ p["c"] + jnp.tanh(both[..., 20:]) @ p["d"]


def flattened(p: Any, x: Any) -> Any:
    y = jax.nn.relu(x @ p["a"] + p["pos"])
    return jax.nn.relu(y.reshape(4, -1) @ p["b"] + p["bias"]) @ p["c"]


def seen_from_inside(p: Any, x: Any) -> Any:
    """Norm, scale and shift of the raw input come first, and the feature axis of images is the second one."""
    y = layer_norm(x, p["gain"], p["bias"])
    return jnp.tanh(y @ p["w"])


def channels_first(p: Any, x: Any) -> Any:
    y = lax.conv(x, p["k"], (1, 1), "SAME")
    y = (y - y.mean((0, 2, 3), keepdims=True)) * lax.rsqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
    y = y * p["gain"].reshape(1, -1, 1, 1) + p["bias"].reshape(1, -1, 1, 1)
    return jax.nn.relu(y + p["pos"]).mean((2, 3)) @ p["out"].T


def gates_of_layers(p: Any, x: Any) -> Any:
    """A number for each layer multiplies its branch, in a stack that is read by an index, with fused weights (layers, 3, d, d)."""

    def layer(i: Any, x: Any) -> Any:
        q, k, v = (jnp.einsum("btd,de->bte", x, w).reshape(4, 7, 4, 8) for w in p["qkv"][i])
        return x + p["alpha"][i] * (attend(q, k, v).reshape(4, 7, D) @ p["o"][i])

    return lax.fori_loop(0, 3, layer, x) @ p["out"]


def unrolled_cell(p: Any, x: Any) -> Any:
    h = jnp.zeros((4, 16))
    for t in range(7):
        z, r, n = jnp.split(x[:, t] @ p["w"] + h @ p["u"] + p["b"], [16, 32], -1)
        h = jax.nn.sigmoid(z) * h + (1 - jax.nn.sigmoid(z)) * jnp.tanh(jax.nn.sigmoid(r) * n)
    return h @ p["out"]


def three_ways_to_halve(p: Any, x: Any) -> Any:
    a, b = jnp.moveaxis((x @ p["a"]).reshape(4, 7, 2, D), 2, 0)
    y = a * jax.nn.sigmoid(b)
    c, d = jnp.array_split(y @ p["b"], 2, axis=-1)
    y = jax.nn.silu(c) * d
    z = jnp.einsum("btd,gdf->gbtf", y, p["c"])
    return (jax.nn.gelu(z[0]) * z[1]) @ p["out"]


def decayed(p: Any, x: Any, y: Any) -> Any:
    """A loss with a penalty on the weights."""
    logits = jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]
    penalty = sum(jnp.sum(w**2) for w in jax.tree.leaves(p))
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1).mean() + 1e-4 * penalty


def summed_experts(p: Any, x: Any) -> Any:
    """The gates multiply hidden features, and one product sums over experts and features."""
    gates = jax.nn.softmax(x @ p["router"])
    h = jax.nn.relu(jnp.einsum("btd,edf->btef", x, p["up"]))
    return jnp.einsum("btef,efd->btd", h * gates[..., None], p["down"])


def straight_through(p: Any, x: Any) -> Any:
    """Weights are rounded for the product, and the gradient passes as if they were not."""
    w = p["w"] + lax.stop_gradient(jnp.round(p["w"] * 8) / 8 - p["w"])
    return jax.nn.relu(x @ w + p["b"]) @ p["out"]


ATTENTION = params(**dict.fromkeys("qkv", (D, D)), o=(D, 10))
GROUPS = ("Conv2D", (2, 6, 3))
CASES = [
    case(
        "positions in every layer",
        positions_in_every_layer,
        params(**{"in": (6, D)}, pos=(2, 7, D), w=(2, D, D), b=(2, D), last=(7, D), out=(D, 3)),
        shape(4, 7, 6),
        rows={
            "in": linear(D, 6),
            "pos": ("Embed", (2, 7, D), 2),
            "w": ("Linear", (2, D, D), 2),
            "b": ("Bias", (2, 1, D), 2),
            "last": ("Embed", (1, 7, D)),
            "out": linear(3, D),
        },
    ),
    case(
        "gains of tokens",
        gains_of_tokens,
        params(w=(D, D), tokens=(7,), pos=(7, D), shift=(7,), out=(D, 3)),
        X,
        rows={
            "w": linear(D, D),
            "tokens": ("Scale", (1, 1, 7)),
            "pos": ("Embed", (1, 7, D)),
            "shift": ("Embed", (1, 7, 1)),
            "out": linear(3, D),
        },
    ),
    case(
        "experts in a loop",
        experts_in_a_loop,
        {**params(router=(D, 5), out=(D, 3)), "experts": params(up=(5, D, 48), b=(5, 48), down=(5, 48, D))},
        X,
        rows={
            "router": linear(5, D),
            "experts/up": linear(48, D, 5),
            "experts/b": ("Bias", (5, 1, 48)),
            "experts/down": linear(D, 48, 5),
            "out": linear(3, D),
        },
    ),
    case(
        "members in a map",
        members_in_a_map,
        params(a=(5, D, 16), b=(5, 16), c=(5, 16, 3)),
        X,
        rows={"a": linear(16, D, 5), "b": ("Bias", (5, 1, 16)), "c": linear(3, 16, 5)},
    ),
    Case(
        "scaled weight",
        lambda: (scaled_weight, params(w=(D, 16), g=(16,), v=(16, 3), s=(3,)), X),
        {"w": linear(16, D), "g": ("Scale", (1, 1, 16)), "v": linear(3, 16), "s": ("Scale", (1, 1, 3))},
        rules={"{g,s}": "scale"},
        refused={"w": "", "g": "exp of the parameter itself", "v": "another parameter", "s": "another parameter"},
    ),
    *[
        case(
            name,
            apply,
            params(**dict.fromkeys("qkv", (D, D)), o=(D, 10)),
            X,
            rows={**dict.fromkeys("qkv", linear(D, D)), "o": linear(10, D)},
        )
        for name, apply in (
            ("rotary by halves", half_rotated),
            ("rotary by complex numbers", complex_rotated),
            ("rotary by matrices", rotated_by_matrices),
        )
    ],
    case(
        "shuffled channels",
        shuffled_channels,
        params(a=(1, 1, 3, 12), gain=(12,), bias=(12,), depth=(3, 3, 1, 12), b=(1, 1, 6, 8), out=(8, 5)),
        shape(2, 8, 8, 6),
        rows={
            "a": GROUPS,
            "gain": ("Scale", (1, 1, 12)),
            "bias": ("Bias", (1, 1, 12)),
            "depth": ("Scale", (9, 1, 12)),
            "b": ("Conv2D", (2, 4, 6)),
            "out": linear(5, 8),
        },
    ),
    case(
        "rearranged kernels",
        rearranged_kernels,
        params(patch=(12, 12), kernel=(16, 12, 3, 3), point=(1, 1, 16, 5)),
        shape(2, 8, 8, 3),
        rows={"patch": linear(12, 12), "kernel": ("Conv2D", (9, 16, 12)), "point": linear(5, 16)},
    ),
    case(
        "weights repeated by matmul",
        broadcast_weights,
        params(q=(4, D, 8), k=(4, D, 8), v=(4, D, 8), o=(D, 10)),
        X,
        rows={**dict.fromkeys("qkv", linear(D, D)), "o": linear(10, D)},
    ),
    case(
        "joined and cut",
        joined_and_cut,
        params(a=(D, 20), b=(6, 12), gain=(D,), bias=(D,), c=(20, 3), d=(12, 3)),
        X,
        shape(4, 7, 6),
        rows={
            "a": linear(20, D),
            "b": linear(12, 6),
            "gain": ("Scale", (1, 1, D)),
            "bias": ("Bias", ((1, 1, 20), (1, 1, 12))),
            "c": linear(3, 20),
            "d": linear(3, 12),
        },
    ),
    case(
        "flattened",
        flattened,
        params(a=(D, 6), pos=(7, 6), b=(42, 16), bias=(16,), c=(16, 3)),
        X,
        rows={
            "a": linear(6, D),
            "pos": ("Embed", (1, 7, 6)),
            "b": linear(16, 42),
            "bias": ("Bias", (1, 1, 16)),
            "c": linear(3, 16),
        },
    ),
    case(
        "norm of the input",
        seen_from_inside,
        params(gain=(D,), bias=(D,), w=(D, 3)),
        X,
        rows={"gain": ("Scale", (1, 1, D)), "bias": ("Bias", (1, 1, D)), "w": linear(3, D)},
    ),
    case(
        "channels first",
        channels_first,
        params(k=(12, 3, 3, 3), gain=(12,), bias=(12,), pos=(12, 8, 8), out=(5, 12)),
        shape(2, 3, 8, 8),
        rows={
            "k": ("Conv2D", (9, 12, 3)),
            "gain": ("Scale", (1, 1, 12)),
            "bias": ("Bias", (1, 1, 12)),
            "pos": ("Embed", (1, 64, 12)),
            "out": linear(5, 12),
        },
    ),
    case(
        "gates of layers",
        gates_of_layers,
        params(qkv=(3, 3, D, D), alpha=(3,), o=(3, D, D), out=(D, 10)),
        X,
        rows={
            "qkv": ("Linear", (9, D, D), 3),
            "alpha": ("Scale", (3, 1, 1), 3),
            "o": ("Linear", (3, D, D), 3),
            "out": linear(10, D),
        },
    ),
    case(
        "unrolled cell",
        unrolled_cell,
        params(w=(D, 48), u=(16, 48), b=(48,), out=(16, 3)),
        X,
        rows={"w": linear(16, D, 3), "u": linear(16, 16, 3), "b": ("Bias", (3, 1, 16)), "out": linear(3, 16)},
    ),
    case(
        "three ways to halve",
        three_ways_to_halve,
        params(a=(D, 64), b=(D, 64), c=(2, D, 48), out=(48, 3)),
        X,
        rows={"a": linear(D, D, 2), "b": linear(D, D, 2), "c": linear(48, D, 2), "out": linear(3, 48)},
    ),
    case(
        "loss with a penalty",
        decayed,
        params(a=(D, 16), b=(16,), c=(16, 3)),
        X,
        tokens(4, 7),
        rows={"a": linear(16, D), "b": ("Bias", (1, 1, 16)), "c": linear(3, 16)},
    ),
    case(
        "experts in one sum",
        summed_experts,
        params(router=(D, 3), up=(3, D, 48), down=(3, 48, D)),
        X,
        rows={"router": linear(3, D), "up": linear(48, D, 3), "down": linear(D, 48, 3)},
    ),
    Case(
        "straight through",
        lambda: (straight_through, params(w=(D, 16), b=(16,), out=(16, 3)), X),
        {"w": linear(16, D), "b": ("Bias", (1, 1, 16)), "out": linear(3, 16)},
        rules={"w": "linear io"},
        refused={"w": "round of the parameter itself"},
    ),
]
