"""Kernels of all kinds, learned queries and coordinates, in the four libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from flax_networks import linens
from jax import lax
from trace_cases import Case, attend, case, layer_norm, params, shape
from trace_rows import dense, linear
from vision_networks import conv, filters, haiku_norm, weight

D = 32


def detection(p: Any, x: Any) -> Any:
    """Learned queries attend to an image. They meet weights before data, so a rule has to say that they are rows."""
    h = jnp.broadcast_to(p["queries"], (2, 5, D))
    q, k, v = ((y @ p[name]).reshape(2, -1, 4, 8) for name, y in (("q", h), ("k", x), ("v", x)))
    h = layer_norm(h + attend(q, k, v).reshape(2, 5, D) @ p["o"], p["gain"])
    return h @ p["classes"], jax.nn.sigmoid(h @ p["boxes"])


def nerf(p: Any, x: Any, direction: Any) -> Any:
    """Waves of coordinates; the input joined again in the middle; one output for the density, features and direction for the color."""
    wave = (x[:, None] * 2.0 ** jnp.arange(3)[:, None]).reshape(9, 9)
    wave = jnp.concatenate([x, jnp.sin(wave), jnp.cos(wave)], -1)
    h = jax.nn.relu(jax.nn.relu(wave @ p["a"] + p["a_bias"]) @ p["b"] + p["b_bias"])
    h = jax.nn.relu(jnp.concatenate([h, wave], -1) @ p["c"] + p["c_bias"])
    h = h @ p["d"] + p["d_bias"]
    color = jax.nn.relu(jnp.concatenate([h[:, 1:], direction], -1) @ p["e"]) @ p["f"]
    return jax.nn.softplus(h[:, 0]), jax.nn.sigmoid(color)


def unfolded(p: Any, x: Any) -> Any:
    """A convolution by patches that overlap, and a product."""
    y = lax.conv_general_dilated_patches(x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y @ p["w"] + p["b"]).mean((1, 2)) @ p["head"]


class Kernels(nn.Module):
    """One to three dimensions, dilation, groups, a multiplier of depthwise filters, kernels that are not shared between places."""

    @nn.compact
    def __call__(self, x: Any, volume: Any) -> Any:
        y = nn.Conv(12, (3,), kernel_dilation=2, padding="CAUSAL", name="dilated")(x)
        y = nn.Conv(24, (3,), feature_group_count=12, name="multiplied")(nn.relu(y))
        y = nn.ConvLocal(6, (3,), padding="VALID", name="local")(y)
        z = nn.Conv(8, (2, 3, 3), feature_group_count=2, strides=(1, 2, 2), name="volume")(volume)
        z = nn.ConvTranspose(6, (2, 2, 2), strides=(2, 2, 2), name="volume_up")(z)
        return nn.Dense(3, name="a")(y.mean(1)) + nn.Dense(3, name="b")(z.mean((1, 2, 3)))


class Channels(eqx.Module):
    """Channels first: one and three dimensions, groups, PReLU, and batch norm with its state."""

    series: eqx.nn.Conv1d
    grouped: eqx.nn.Conv1d
    wide: eqx.nn.ConvTranspose1d
    slope: eqx.nn.PReLU
    volume: eqx.nn.Conv3d
    head: eqx.nn.Linear

    def __init__(self) -> None:
        self.series = eqx.nn.Conv1d(4, 8, 3, dilation=2, key=KEYS[0])
        self.grouped = eqx.nn.Conv1d(8, 12, 3, groups=4, padding=1, key=KEYS[1])
        self.wide = eqx.nn.ConvTranspose1d(12, 6, 2, stride=2, key=KEYS[2])
        self.slope = eqx.nn.PReLU()
        self.volume = eqx.nn.Conv3d(2, 5, 3, use_bias=False, key=KEYS[3])
        self.head = eqx.nn.Linear(11, 3, key=KEYS[4])

    def __call__(self, x: Any, volume: Any) -> Any:
        y = self.slope(self.wide(self.grouped(self.series(x))))
        return self.head(jnp.concatenate([y.mean(1), self.volume(volume).mean((1, 2, 3))]))


def mobile(x: Any) -> Any:
    """Haiku's own MobileNet."""
    return hk.nets.MobileNetV1(strides=(1, 2), channels=(8, 12), num_classes=10)(x, is_training=True)


def haiku_norms(x: Any) -> Any:
    x = hk.InstanceNorm(True, True)(hk.Conv2D(8, 3, with_bias=False)(x))
    x = hk.GroupNorm(2)(hk.SeparableDepthwiseConv2D(2, 3)(x))
    return hk.Linear(4)(jax.nn.relu(x).mean((1, 2)))


def conformer(p: Any, x: Any) -> Any:
    """Half-step layers, a gated pointwise convolution, a depthwise convolution as a sum of shifted sequences."""
    y = layer_norm(x @ p["in"], p["gain"])
    y = y + 0.5 * jax.nn.silu(y @ p["up"]) @ p["down"]
    a, b = jnp.split(jnp.einsum("btd,odk->bto", y, p["point"]), 2, -1)
    z = jnp.pad(a * jax.nn.sigmoid(b), ((0, 0), (2, 2), (0, 0)))
    z = sum(z[:, i : i + 7] * p["filter"][i] for i in range(5))
    return y + jax.nn.silu(z) @ p["out"]


MOBILE = "mobile_net_v1/mobile_net_v1_block"


SEPARABLE = "separable_depthwise_conv2_d/~/depthwise_conv2_d"


CASES = [
    Case(
        "learned queries",
        lambda: (
            detection,
            params(queries=(5, D), q=(D, D), k=(D, D), v=(D, D), o=(D, D), gain=(D,), classes=(D, 9), boxes=(D, 4)),
            shape(2, 7, D),
        ),
        {
            "queries": ("Embed", (1, 5, D)),
            **dict.fromkeys("qkvo", linear(D, D)),
            "gain": ("Scale", (1, 1, D)),
            "classes": linear(9, D),
            "boxes": linear(4, D),
        },
        rules={"queries": "embed"},
        refused={"queries": "multiplied with another parameter", "q": "multiplied with another parameter"},
    ),
    case(
        "radiance field",
        nerf,
        params(a=(21, D), a_bias=(D,), b=(D, D), b_bias=(D,), c=(53, D), c_bias=(D,), d=(D, 17), d_bias=(17,), e=(19, D), f=(D, 3)),
        shape(9, 3),
        shape(9, 3),
        rows={
            "a": linear(D, 21),
            "b": linear(D, D),
            "c": linear(D, 53),
            **{f"{name}_bias": ("Bias", (1, 1, D)) for name in "abc"},
            "d": ("Linear", ((1, 1, D), (1, 16, D))),
            "d_bias": ("Bias", ((1, 1, 1), (1, 1, 16))),
            "e": linear(D, 19),
            "f": linear(3, D),
        },
    ),
    case(
        "unfolded convolution",
        unfolded,
        params(w=(27, D), b=(D,), head=(D, 10)),
        shape(2, 8, 8, 3),
        rows={"w": linear(D, 27), "b": ("Bias", (1, 1, D)), "head": linear(10, D)},
    ),
    Case(
        "linen: kernels",
        linens(Kernels(), shape(2, 9, 4), shape(2, 4, 6, 6, 4)),
        {
            "dilated/kernel": conv(12, 4, 3),
            "dilated/bias": ("Bias", (1, 1, 12)),
            "multiplied/kernel": ("Scale", (3, 1, 24)),
            "multiplied/bias": ("Bias", (1, 1, 24)),
            "local/kernel": linear(6, 72, 7),
            "local/bias": ("Bias", (7, 1, 6)),
            "volume/kernel": ("Conv2D", (36, 4, 2)),
            "volume/bias": ("Bias", (1, 1, 8)),
            "volume_up/kernel": conv(6, 8, 8),
            "volume_up/bias": ("Bias", (1, 1, 6)),
            **dense("a", 3, 6),
            **dense("b", 3, 6),
        },
    ),
    Case(
        "equinox: channels first",
        lambda: (abstract(Channels), shape(4, 12), shape(2, 5, 5, 5)),
        {
            **filters("series", 8, 4, 3),
            **filters("grouped", 12, 8, 3, 4),
            **filters("wide", 6, 12, 2),
            "slope/negative_slope": ("Scale", (1, 1, 1)),
            "volume/weight": conv(5, 2, 27),
            **weight("head", 3, 11),
        },
    ),
    Case(
        "haiku: mobilenet",
        lambda: (hk.transform_with_state(mobile), shape(2, 16, 16, 3)),
        {
            "mobile_net_v1/conv2_d/w": conv(32, 3),
            **haiku_norm("mobile_net_v1/batch_norm", 32),
            f"{MOBILE}/depthwise_conv/w": ("Scale", (9, 1, 32)),
            **haiku_norm(f"{MOBILE}/batch_norm", 32),
            f"{MOBILE}/pointwise_conv/w": conv(8, 32, 1),
            **haiku_norm(f"{MOBILE}/batch_norm_1", 8),
            f"{MOBILE}_1/depthwise_conv/w": ("Scale", (9, 1, 8)),
            **haiku_norm(f"{MOBILE}_1/batch_norm", 8),
            f"{MOBILE}_1/pointwise_conv/w": conv(12, 8, 1),
            **haiku_norm(f"{MOBILE}_1/batch_norm_1", 12),
            "mobile_net_v1/logits/w": linear(10, 12),
            "mobile_net_v1/logits/b": ("Bias", (1, 1, 10)),
        },
    ),
    Case(
        "haiku: norms",
        lambda: (hk.without_apply_rng(hk.transform(haiku_norms)), shape(2, 8, 8, 3)),
        {
            "conv2_d/w": conv(8, 3),
            "instance_norm/scale": ("Scale", (1, 1, 8)),
            "instance_norm/offset": ("Bias", (1, 1, 8)),
            f"{SEPARABLE}/w": ("Scale", (3, 1, 16)),
            f"{SEPARABLE}_1/w": ("Scale", (3, 1, 16)),
            f"{SEPARABLE}_1/b": ("Bias", (1, 1, 16)),
            "group_norm/scale": ("Scale", (1, 1, 16)),
            "group_norm/offset": ("Bias", (1, 1, 16)),
            "linear/w": linear(4, 16),
            "linear/b": ("Bias", (1, 1, 4)),
        },
    ),
    case(
        "conformer",
        conformer,
        params(**{"in": (6, D)}, gain=(D,), up=(D, 64), down=(64, D), point=(64, D, 1), filter=(5, D), out=(D, D)),
        shape(2, 7, 6),
        rows={
            "in": linear(D, 6),
            "gain": ("Scale", (1, 1, D)),
            "up": linear(64, D),
            "down": linear(D, 64),
            "point": linear(D, D, 2),
            "filter": ("Scale", (5, 1, D)),
            "out": linear(D, D),
        },
    ),
]
