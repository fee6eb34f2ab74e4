"""Networks of Flax: linen and nnx."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from trace_cases import Case, shape, tokens

KEY = jax.random.key(0)


class Encoder(nn.Module):
    """A vision transformer with rare parts: patches in bfloat16, a class token, layer scale, DenseGeneral."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(24, (4, 4), strides=4, padding="VALID", dtype=jnp.bfloat16, name="patch")(x).reshape(2, 9, 24)
        token = self.param("cls", nn.initializers.normal(), (1, 1, 24))
        x = jnp.concatenate([jnp.tile(token, (2, 1, 1)), x.astype(jnp.float32)], 1)
        x = x + self.param("pos", nn.initializers.normal(), (1, 10, 24))
        for i in range(2):
            y = nn.LayerNorm(name=f"norm_{i}")(x)
            y = nn.MultiHeadDotProductAttention(3, name=f"attention_{i}")(y, y)
            x = x + y * self.param(f"gamma_{i}", nn.initializers.ones, (24,))
        x = nn.DenseGeneral((3, 5), axis=-1, name="wide")(x)
        return nn.DenseGeneral(10, axis=(-2, -1), name="head")(x[:, 0])


class Images(nn.Module):
    @nn.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = nn.Conv(8, (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(not train, name="bn")(x))
        x = nn.Conv(16, (3, 3), strides=2, feature_group_count=4, name="grouped")(x)
        x = nn.relu(nn.GroupNorm(4, name="gn")(x))
        x = nn.Conv(16, (3, 3), feature_group_count=16, name="depthwise")(x)
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(nn.relu(x))
        x = nn.Conv(5, (1, 1), name="point")(x)
        return nn.Dense(10, name="head")(nn.avg_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))


class ScanBlock(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        y = nn.Dense(4 * self.width, name="up")(nn.LayerNorm(name="ln")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(y)), None


class Scanned(nn.Module):
    axis: int = 0

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(16, name="in")(x)
        block = nn.scan(nn.remat(ScanBlock), variable_axes={"params": self.axis}, split_rngs={"params": True}, length=5)
        x, _ = block(16, name="layers")(x, None)
        return nn.Dense(10, name="out")(nn.RMSNorm(name="norm")(x))


class Cells(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.RNN(nn.GRUCell(12))(x)
        x = nn.RNN(nn.OptimizedLSTMCell(8))(x)
        return nn.Dense(3, name="head")(x[:, -1])


class Lora(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Embed(50, 16, name="tokens")(x)
        x = nn.Dropout(0.1, deterministic=True)(x)
        low = nn.Dense(2, use_bias=False, name="a")(x)
        return nn.relu(nn.Dense(20, name="base")(x) + nn.Dense(20, use_bias=False, name="b")(low))


def linen(module: Any, x: Any, direct: bool = False) -> Any:
    """A linen module with the shapes of its variables; with ``direct`` the pair is passed unchanged."""

    def build() -> tuple[Any, ...]:
        variables = jax.eval_shape(lambda key: module.init(key, jnp.zeros(x.shape, x.dtype)), KEY)
        if direct:
            return (module.apply, variables), x
        return lambda p, x: module.apply({"params": p}, x), variables["params"], x

    return build


def linens(module: Any, *inputs: Any) -> Any:
    """A linen module of several inputs, with the shapes of its parameters."""

    def build() -> tuple[Any, ...]:
        made = jax.eval_shape(lambda key: module.init(key, *(jnp.zeros(x.shape, x.dtype) for x in inputs)), KEY)
        return lambda p, *x: module.apply({"params": p}, *x), made["params"], *inputs

    return build


class Attention(nnx.Module):
    def __init__(self, d: int, rngs: nnx.Rngs) -> None:
        self.ln1, self.ln2 = nnx.LayerNorm(d, rngs=rngs), nnx.RMSNorm(d, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(4, d, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(d, 4 * d, rngs=rngs), nnx.Linear(4 * d, d, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.ln1(x)
        x = x + self.attn(y, mask=nnx.make_causal_mask(y[..., 0]))
        return x + self.down(nnx.gelu(self.up(self.ln2(x))))


class Language(nnx.Module):
    def __init__(self, tied: bool) -> None:
        rngs = nnx.Rngs(0)
        self.tok, self.pos = nnx.Embed(65, 32, rngs=rngs), nnx.Param(jnp.zeros((20, 32)))
        self.first, self.second = Attention(32, rngs), Attention(32, rngs)
        self.head = None if tied else nnx.Linear(32, 65, use_bias=False, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.second(self.first(self.tok(ids) + self.pos[: ids.shape[1]]))
        return self.tok.attend(x) if self.head is None else self.head(x)


class Stacked(nnx.Module):
    """A stack made by ``vmap`` and run by ``scan``, with batch statistics and adapters."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.bn = nnx.BatchNorm(16, rngs=rngs)
        make = nnx.vmap(lambda rngs: nnx.Linear(16, 16, rngs=rngs), in_axes=(0,), out_axes=0)
        self.layers = nnx.split_rngs(splits=3)(make)(rngs)
        self.head = nnx.LoRALinear(16, 10, lora_rank=2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer: Any, x: Any) -> Any:
            return x + jax.nn.relu(layer(x))

        return self.head(run(self.layers, self.bn(x)))


ATTENTION = {
    **{f"attn/{name}/kernel": ("Linear", (1, 32, 32)) for name in ("query", "key", "value", "out")},
    **{f"attn/{name}/bias": ("Bias", (1, 1, 32)) for name in ("query", "key", "value", "out")},
    "ln1/scale": ("Scale", (1, 1, 32)),
    "ln1/bias": ("Bias", (1, 1, 32)),
    "ln2/scale": ("Scale", (1, 1, 32)),
    "up/kernel": ("Linear", (1, 128, 32)),
    "up/bias": ("Bias", (1, 1, 128)),
    "down/kernel": ("Linear", (1, 32, 128)),
    "down/bias": ("Bias", (1, 1, 32)),
}
LANGUAGE = {f"{block}/{path}": row for block in ("first", "second") for path, row in ATTENTION.items()} | {"pos": ("Embed", (1, 20, 32))}
SCANNED = {
    "in/kernel": ("Linear", (1, 16, 64)),
    "in/bias": ("Bias", (1, 1, 16)),
    "layers/ln/scale": ("Scale", (5, 1, 16), 5),
    "layers/ln/bias": ("Bias", (5, 1, 16), 5),
    "layers/up/kernel": ("Linear", (5, 64, 16), 5),
    "layers/up/bias": ("Bias", (5, 1, 64), 5),
    "layers/down/kernel": ("Linear", (5, 16, 64), 5),
    "layers/down/bias": ("Bias", (5, 1, 16), 5),
    "norm/scale": ("Scale", (1, 1, 16)),
    "out/kernel": ("Linear", (1, 10, 16)),
    "out/bias": ("Bias", (1, 1, 10)),
}
IMAGES = {
    "params/stem/kernel": ("Conv2D", (9, 8, 1)),
    "params/bn/scale": ("Scale", (1, 1, 8)),
    "params/bn/bias": ("Bias", (1, 1, 8)),
    "params/grouped/kernel": ("Conv2D", (36, 4, 2)),
    "params/grouped/bias": ("Bias", (1, 1, 16)),
    "params/gn/scale": ("Scale", (1, 1, 16)),
    "params/gn/bias": ("Bias", (1, 1, 16)),
    "params/depthwise/kernel": ("Scale", (9, 1, 16)),
    "params/depthwise/bias": ("Bias", (1, 1, 16)),
    "params/up/kernel": ("Conv2D", (4, 6, 16)),
    "params/up/bias": ("Bias", (1, 1, 6)),
    "params/point/kernel": ("Conv2D", (1, 5, 6)),
    "params/point/bias": ("Bias", (1, 1, 5)),
    "params/head/kernel": ("Linear", (1, 10, 80)),
    "params/head/bias": ("Bias", (1, 1, 10)),
    "batch_stats/bn/mean": ("frozen",),
    "batch_stats/bn/var": ("frozen",),
}

CASES = [
    Case(
        "linen: vision transformer",
        linen(Encoder(), shape(2, 12, 12, 3)),
        {
            "patch/kernel": ("Linear", (1, 24, 48)),
            "patch/bias": ("Bias", (1, 1, 24)),
            "cls": ("Embed", (1, 1, 24)),
            "pos": ("Embed", (1, 10, 24)),
            **{f"norm_{i}/scale": ("Scale", (1, 1, 24)) for i in range(2)},
            **{f"norm_{i}/bias": ("Bias", (1, 1, 24)) for i in range(2)},
            **{f"gamma_{i}": ("Scale", (1, 1, 24)) for i in range(2)},
            **{f"attention_{i}/{name}/kernel": ("Linear", (1, 24, 24)) for i in range(2) for name in ("query", "key", "value", "out")},
            **{f"attention_{i}/{name}/bias": ("Bias", (1, 1, 24)) for i in range(2) for name in ("query", "key", "value", "out")},
            "wide/kernel": ("Linear", (1, 15, 24)),
            "wide/bias": ("Bias", (1, 1, 15)),
            "head/kernel": ("Linear", (1, 10, 15)),
            "head/bias": ("Bias", (1, 1, 10)),
        },
    ),
    Case("linen: images, with batch statistics", linen(Images(), shape(4, 8, 8, 1), direct=True), IMAGES),
    Case("linen: scan", linen(Scanned(), shape(4, 64)), SCANNED),
    Case("linen: scan over axis 1", linen(Scanned(1), shape(4, 64)), SCANNED),
    Case(
        "linen: recurrent cells",
        linen(Cells(), shape(4, 6, 5)),
        {
            **{f"GRUCell_0/i{g}/kernel": ("Linear", (1, 12, 5)) for g in "rzn"},
            **{f"GRUCell_0/i{g}/bias": ("Bias", (1, 1, 12)) for g in "rzn"},
            **{f"GRUCell_0/h{g}/kernel": ("Linear", (1, 12, 12)) for g in "rzn"},
            "GRUCell_0/hn/bias": ("Bias", (1, 1, 12)),
            **{f"OptimizedLSTMCell_0/i{g}/kernel": ("Linear", (1, 8, 12)) for g in "ifgo"},
            **{f"OptimizedLSTMCell_0/h{g}/kernel": ("Linear", (1, 8, 8)) for g in "ifgo"},
            **{f"OptimizedLSTMCell_0/h{g}/bias": ("Bias", (1, 1, 8)) for g in "ifgo"},
            "head/kernel": ("Linear", (1, 3, 8)),
            "head/bias": ("Bias", (1, 1, 3)),
        },
    ),
    Case(
        "linen: adapter",
        linen(Lora(), tokens(3, 7)),
        {
            "tokens/embedding": ("Embed", (1, 50, 16)),
            "a/kernel": ("Linear", (1, 2, 16)),
            "b/kernel": ("Linear", (1, 20, 2)),
            "base/kernel": ("Linear", (1, 20, 16)),
            "base/bias": ("Bias", (1, 1, 20)),
        },
    ),
    Case(
        "nnx: language model",
        lambda: (nnx.eval_shape(lambda: Language(tied=False)), tokens(3, 16)),
        {**LANGUAGE, "tok/embedding": ("Embed", (1, 65, 32)), "head/kernel": ("Linear", (1, 65, 32))},
    ),
    Case(
        "nnx: tied language model",
        lambda: (nnx.eval_shape(lambda: Language(tied=True)), tokens(3, 16)),
        {**LANGUAGE, "tok/embedding": ("Embed+Linear", (1, 65, 32))},
    ),
    Case(
        "nnx: stack, batch statistics, adapter",
        lambda: (nnx.eval_shape(Stacked), shape(4, 16)),
        {
            "bn/scale": ("Scale", (1, 1, 16)),
            "bn/bias": ("Bias", (1, 1, 16)),
            "layers/kernel": ("Linear", (3, 16, 16), 3),
            "layers/bias": ("Bias", (3, 1, 16), 3),
            "head/kernel": ("Linear", (1, 10, 16)),
            "head/bias": ("Bias", (1, 1, 10)),
            "head/lora/lora_a": ("Linear", (1, 2, 16)),
            "head/lora/lora_b": ("Linear", (1, 10, 2)),
        },
    ),
]
