"""Networks for images: ResNet, EfficientNet, ConvNeXt, U-Net, DiT, VAE, in the four libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from flax import nnx
from flax_networks import linen
from trace_cases import Case, attend, case, layer_norm, params, shape, tokens
from trace_rows import dense, linear, norm

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
]
