"""Networks for images, sound and volumes: ResNet, EfficientNet, ConvNeXt, U-Net, DiT, VAE, detection by queries, in the four libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from flax import nnx
from flax_networks import linen
from jax import lax
from language_networks import dense, linear, linens, norm
from trace_cases import Case, attend, case, layer_norm, params, shape, tokens

D = 32


def conv(out: int, into: int, taps: int = 9) -> Any:
    """The row of a kernel."""
    return ("Conv2D", (taps, out, into))


class Residual(nnx.Module):
    def __init__(self, into: int, out: int, rngs: nnx.Rngs) -> None:
        self.conv1 = nnx.Conv(into, out, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.conv2 = nnx.Conv(out, out, (3, 3), use_bias=False, rngs=rngs)
        self.bn1, self.bn2 = nnx.BatchNorm(out, rngs=rngs), nnx.BatchNorm(out, rngs=rngs)
        self.short, self.short_bn = nnx.Conv(into, out, (1, 1), strides=2, use_bias=False, rngs=rngs), nnx.BatchNorm(out, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        return nnx.relu(y + self.short_bn(self.short(x)))


class ResNet(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.stem, self.bn = nnx.Conv(3, 8, (7, 7), strides=2, use_bias=False, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.block1, self.block2 = Residual(8, 12, rngs), Residual(12, 16, rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.max_pool(nnx.relu(self.bn(self.stem(x))), (3, 3), strides=(2, 2), padding="SAME")
        return self.head(self.block2(self.block1(x)).mean((1, 2)))


class Inverted(nn.Module):
    """EfficientNet's block: widen, filter each feature, squeeze and excite with 1x1 convolutions, narrow."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.swish(nn.BatchNorm(False, name="bn1")(nn.Conv(24, (1, 1), use_bias=False, name="widen")(x)))
        y = nn.Conv(24, (5, 5), feature_group_count=24, use_bias=False, name="depthwise")(y)
        y = nn.swish(nn.BatchNorm(False, name="bn2")(y))
        gate = nn.swish(nn.Conv(6, (1, 1), name="squeeze")(y.mean((1, 2), keepdims=True)))
        y = y * nn.sigmoid(nn.Conv(24, (1, 1), name="excite")(gate))
        return x + nn.BatchNorm(False, name="bn3")(nn.Conv(8, (1, 1), use_bias=False, name="narrow")(y))


class ConvNext(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0, dropout=1)
        self.stem, self.stem_norm = nnx.Conv(3, 16, (4, 4), strides=4, padding="VALID", rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (7, 7), feature_group_count=16, rngs=rngs)
        self.norm, self.up, self.down = nnx.LayerNorm(16, rngs=rngs), nnx.Linear(16, 64, rngs=rngs), nnx.Linear(64, 16, rngs=rngs)
        self.gamma, self.drop = nnx.Param(jnp.full((16,), 1e-6)), nnx.Dropout(0.1, broadcast_dims=(1, 2, 3), rngs=rngs)
        self.reduce = nnx.Conv(16, 20, (2, 2), strides=2, padding="VALID", rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.stem_norm(self.stem(x))
        y = self.down(nnx.gelu(self.up(self.norm(self.depthwise(x)))))
        return self.reduce(x + self.drop(y * self.gamma[...])).mean((1, 2))


class Vae(nn.Module):
    """Mean and log variance from two layers; the decoder turns a vector into feature maps and widens these."""

    @nn.compact
    def __call__(self, x: Any, key: Any) -> Any:
        y = nn.relu(nn.Conv(8, (4, 4), strides=2, name="down")(x)).reshape(2, -1)
        mean, log_variance = nn.Dense(6, name="mean")(y), nn.Dense(6, name="log_variance")(y)
        z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)
        y = nn.relu(nn.Dense(4 * 4 * 12, name="from")(z)).reshape(2, 4, 4, 12)
        return nn.ConvTranspose(3, (4, 4), strides=(2, 2), transpose_kernel=True, name="up")(y), mean, log_variance


class Diffusion(eqx.Module):
    """A U-Net: time by waves and two layers, added to feature maps; group norms; skips joined with what comes up from below."""

    time1: eqx.nn.Linear
    time2: eqx.nn.Linear
    inner: eqx.nn.Conv2d
    clock: eqx.nn.Linear
    group: eqx.nn.GroupNorm
    down: eqx.nn.Conv2d
    middle: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    join: eqx.nn.Conv2d
    last: eqx.nn.Conv2d

    def __init__(self) -> None:
        k = iter(jax.random.split(KEYS[0], 9))
        self.time1, self.time2 = eqx.nn.Linear(8, 20, key=next(k)), eqx.nn.Linear(20, 20, key=next(k))
        self.inner, self.clock = eqx.nn.Conv2d(3, 12, 3, padding=1, key=next(k)), eqx.nn.Linear(20, 12, key=next(k))
        self.group, self.down = eqx.nn.GroupNorm(3, 12), eqx.nn.Conv2d(12, 16, 3, 2, 1, key=next(k))
        self.middle, self.up = (
            eqx.nn.Conv2d(16, 16, 3, padding=1, key=next(k)),
            eqx.nn.ConvTranspose2d(16, 10, 4, 2, padding=1, key=next(k)),
        )
        self.join, self.last = eqx.nn.Conv2d(22, 12, 3, padding=1, key=next(k)), eqx.nn.Conv2d(12, 3, 1, use_bias=False, key=next(k))

    def __call__(self, x: Any, time: Any) -> Any:
        waves = time * jnp.exp(jnp.linspace(0, -5, 4))
        t = self.time2(jax.nn.silu(self.time1(jnp.concatenate([jnp.sin(waves), jnp.cos(waves)]))))
        a = jax.nn.silu(self.group(self.inner(x) + self.clock(jax.nn.silu(t))[:, None, None]))
        b = self.up(jax.nn.silu(self.middle(jax.nn.silu(self.down(a)))))
        return self.last(jax.nn.silu(self.join(jnp.concatenate([a, b], axis=0))))


def dit(p: Any, x: Any, time: Any, label: Any) -> Any:
    """A transformer whose norms have shift, scale and gate from the condition, six parts of one layer."""
    y = x.reshape(2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 48) @ p["patch"] + p["places"]
    c = jax.nn.silu(jnp.stack([jnp.sin(time), jnp.cos(time)], -1) @ p["time"]) + p["labels"][label]
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split((jax.nn.silu(c) @ p["ada"] + p["ada_bias"])[:, None], 6, axis=-1)
    z = layer_norm(y) * (1 + scale1) + shift1
    q, k, v = jnp.moveaxis((z @ p["qkv"]).reshape(2, 4, 3, 4, 8), 2, 0)
    y = y + gate1 * (attend(q, k, v).reshape(2, 4, D) @ p["o"])
    y = y + gate2 * (jax.nn.gelu((layer_norm(y) * (1 + scale2) + shift2) @ p["up"]) @ p["down"])
    return (y @ p["out"]).reshape(2, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 3)


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


def vae() -> Any:
    """The arguments of the trace of ``Vae``, whose input is a key besides the image."""
    made = jax.eval_shape(lambda key: Vae().init(key, jnp.zeros((2, 8, 8, 3)), key), jax.random.key(0))
    return lambda p, x, key: Vae().apply({"params": p}, x, key), made["params"], shape(2, 8, 8, 3), jax.random.key(0)


def haiku_norm(path: str, size: int) -> dict[str, Any]:
    """The rows of one of Haiku's norms."""
    return {f"{path}/scale": ("Scale", (1, 1, size)), f"{path}/offset": ("Bias", (1, 1, size))}


VAE = {
    "down/kernel": conv(8, 3, 16),
    "down/bias": ("Bias", (1, 1, 8)),
    **dense("mean", 6, 128),
    **dense("log_variance", 6, 128),
    **dense("from", 192, 6),
    "up/kernel": conv(3, 12, 16),
    "up/bias": ("Bias", (1, 1, 3)),
}


def batch_norms(*paths: str, size: int) -> dict[str, Any]:
    """The rows of batch norms of one size."""
    return {key: row for path in paths for key, row in norm(path, size).items()}


def weight(path: str, out: int, into: int) -> dict[str, Any]:
    """The rows of one of Equinox's linear layers."""
    return {f"{path}/weight": linear(out, into), f"{path}/bias": ("Bias", (1, 1, out))}


def filters(path: str, out: int, into: int, taps: int = 9, groups: int = 1) -> dict[str, Any]:
    """The rows of one of Equinox's convolutions."""
    return {f"{path}/weight": ("Conv2D", (taps * groups, out // groups, into // groups)), f"{path}/bias": ("Bias", (1, 1, out))}


MOBILE = "mobile_net_v1/mobile_net_v1_block"
SEPARABLE = "separable_depthwise_conv2_d/~/depthwise_conv2_d"
CASES = [
    Case(
        "nnx: resnet",
        lambda: (nnx.eval_shape(ResNet), shape(2, 32, 32, 3)),
        {
            "stem/kernel": conv(8, 3, 49),
            **batch_norms("bn", size=8),
            **{f"block1/{path}/kernel": row for path, row in (("conv1", conv(12, 8)), ("conv2", conv(12, 12)), ("short", conv(12, 8, 1)))},
            **{
                f"block2/{path}/kernel": row for path, row in (("conv1", conv(16, 12)), ("conv2", conv(16, 16)), ("short", conv(16, 12, 1)))
            },
            **batch_norms("block1/bn1", "block1/bn2", "block1/short_bn", size=12),
            **batch_norms("block2/bn1", "block2/bn2", "block2/short_bn", size=16),
            **dense("head", 10, 16),
        },
    ),
    Case(
        "linen: inverted residual",
        linen(Inverted(), shape(2, 8, 8, 8), direct=True),
        {
            "params/widen/kernel": conv(24, 8, 1),
            "params/depthwise/kernel": ("Scale", (25, 1, 24)),
            **batch_norms("params/bn1", "params/bn2", size=24),
            **batch_norms("params/bn3", size=8),
            "params/squeeze/kernel": conv(6, 24, 1),
            "params/squeeze/bias": ("Bias", (1, 1, 6)),
            "params/excite/kernel": conv(24, 6, 1),
            "params/excite/bias": ("Bias", (1, 1, 24)),
            "params/narrow/kernel": conv(8, 24, 1),
            **{f"batch_stats/bn{i}/{name}": ("frozen",) for i in (1, 2, 3) for name in ("mean", "var")},
        },
    ),
    Case(
        "nnx: convnext",
        lambda: (nnx.eval_shape(ConvNext), shape(2, 16, 16, 3)),
        {
            **dense("stem", 16, 48),
            **norm("stem_norm", 16),
            "depthwise/kernel": ("Scale", (49, 1, 16)),
            "depthwise/bias": ("Bias", (1, 1, 16)),
            **norm("norm", 16),
            **dense("up", 64, 16),
            **dense("down", 16, 64),
            "gamma": ("Scale", (1, 1, 16)),
            **dense("reduce", 20, 64),
        },
    ),
    Case("linen: vae", vae, VAE),
    Case(
        "equinox: diffusion",
        lambda: (abstract(Diffusion), shape(3, 8, 8), shape()),
        {
            **weight("time1", 20, 8),
            **weight("time2", 20, 20),
            **filters("inner", 12, 3),
            **weight("clock", 12, 20),
            "group/weight": ("Scale", (1, 1, 12)),
            "group/bias": ("Bias", (1, 1, 12)),
            **filters("down", 16, 12),
            **filters("middle", 16, 16),
            **filters("up", 10, 16, 16),
            **filters("join", 12, 22),
            "last/weight": conv(3, 12, 1),
        },
    ),
    case(
        "dit",
        dit,
        params(
            patch=(48, D),
            places=(4, D),
            time=(2, D),
            labels=(10, D),
            ada=(D, 6 * D),
            ada_bias=(6 * D,),
            qkv=(D, 3 * D),
            o=(D, D),
            up=(D, 64),
            down=(64, D),
            out=(D, 48),
        ),
        shape(2, 8, 8, 3),
        shape(2),
        tokens(2),
        rows={
            "patch": linear(D, 48),
            "places": ("Embed", (1, 4, D)),
            "time": linear(D, 2),
            "labels": ("Embed", (1, 10, D)),
            "ada": linear(D, D, 6),
            "ada_bias": ("Bias", (6, 1, D)),
            "qkv": linear(D, D, 3),
            "o": linear(D, D),
            "up": linear(64, D),
            "down": linear(D, 64),
            "out": linear(48, D),
        },
    ),
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
