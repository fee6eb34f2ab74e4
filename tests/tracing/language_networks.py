"""Language models as they are written in Flax: Llama, Mixtral, GPT-OSS, BERT, T5, Whisper, CLIP, ALBERT."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax_networks import linen
from jax import lax
from trace_cases import Case, attend, shape, tokens

D, F, V = 32, 48, 50


def rotate(x: Any) -> Any:
    """Rotary positions, on even and odd features."""
    angle = jnp.arange(x.shape[1])[:, None, None] / 100.0 ** (jnp.arange(0, x.shape[-1], 2) / x.shape[-1])
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1).reshape(x.shape)


class LlamaBlock(nnx.Module):
    """Grouped queries with per-head kernels; keys and values come from one kernel (d, 2, heads, size)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.before, self.after = nnx.RMSNorm(D, rngs=rngs), nnx.RMSNorm(D, rngs=rngs)
        self.q = nnx.LinearGeneral(D, (4, 8), use_bias=False, rngs=rngs)
        self.kv = nnx.LinearGeneral(D, (2, 2, 8), use_bias=False, rngs=rngs)
        self.o = nnx.LinearGeneral((4, 8), D, axis=(-2, -1), use_bias=False, rngs=rngs)
        self.gate_up = nnx.Linear(D, 2 * F, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(F, D, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.before(x)
        kv = self.kv(y)
        x = x + self.o(jax.nn.dot_product_attention(rotate(self.q(y)), rotate(kv[:, :, 0]), kv[:, :, 1], is_causal=True))
        gate, up = jnp.split(self.gate_up(self.after(x)), 2, axis=-1)
        return x + self.down(nnx.silu(gate) * up)


class Llama(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.norm = nnx.Embed(V, D, rngs=rngs), nnx.RMSNorm(D, rngs=rngs)
        self.block_0, self.block_1 = LlamaBlock(rngs), LlamaBlock(rngs)
        self.head = nnx.Linear(D, V, use_bias=False, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        return self.head(self.norm(self.block_1(self.block_0(self.embed(ids)))))


class Mixtral(nnx.Module):
    """Two of four experts for each token; all experts run and the rest have weight zero."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed, self.router = nnx.Embed(V, D, rngs=rngs), nnx.Linear(D, 4, use_bias=False, rngs=rngs)
        self.gate, self.up = nnx.Param(jnp.zeros((4, D, F))), nnx.Param(jnp.zeros((4, D, F)))
        self.down = nnx.Param(jnp.zeros((4, F, D)))
        self.head = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, ids: Any) -> Any:
        x = self.embed(ids)
        weights, chosen = lax.top_k(self.router(x), 2)
        combine = jnp.einsum("btk,btke->bte", jax.nn.softmax(weights), jax.nn.one_hot(chosen, 4))
        h = nnx.silu(jnp.einsum("btd,edf->btef", x, self.gate[...])) * jnp.einsum("btd,edf->btef", x, self.up[...])
        y = jnp.einsum("btef,efd->bted", h, self.down[...])
        return self.head(x + jnp.einsum("bted,bte->btd", y, combine))


def gpt_oss(p: Any, ids: Any) -> Any:
    """Gate and up interleaved in the experts' weights and biases; tokens are sorted by expert; the outputs are added back."""
    x = p["embed"][ids].reshape(21, D)
    weights, chosen = lax.top_k(x @ p["router"] + p["router_bias"], 2)
    order = jnp.argsort(chosen.reshape(-1))
    expert, token = chosen.reshape(-1)[order], order // 2
    sizes = jnp.bincount(expert, length=4)
    h = lax.ragged_dot(x[token], p["gate_up"], sizes) + p["gate_up_bias"][expert]
    h = jax.nn.silu(jnp.minimum(h[:, ::2], 7.0)) * (jnp.clip(h[:, 1::2], -7.0, 7.0) + 1)
    y = (lax.ragged_dot(h, p["down"], sizes) + p["down_bias"][expert]) * jax.nn.softmax(weights).reshape(-1)[order][:, None]
    return (x + jnp.zeros_like(x).at[token].add(y)) @ p["head"]


class BertLayer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        y = nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=True, name="attention")(x, x, mask=mask)
        x = nn.LayerNorm(name="attention_norm")(x + y)
        y = nn.Dense(D, name="output")(nn.gelu(nn.Dense(F, name="intermediate")(x)))
        return nn.LayerNorm(name="output_norm")(x + nn.Dropout(0.1)(y, deterministic=True))


class Bert(nn.Module):
    """Three tables are added; the head transforms, then multiplies by the table of tokens and adds a bias; a pooler beside it."""

    @nn.compact
    def __call__(self, ids: Any, kinds: Any) -> Any:
        words = nn.Embed(V, D, name="words")
        x = words(ids) + nn.Embed(2, D, name="kinds")(kinds) + nn.Embed(20, D, name="places")(jnp.arange(ids.shape[1])[None])
        x = nn.LayerNorm(name="norm")(x)
        mask = nn.make_attention_mask(ids > 0, ids > 0)
        for i in range(2):
            x = BertLayer(name=f"layer_{i}")(x, mask)
        y = nn.LayerNorm(name="transform_norm")(nn.gelu(nn.Dense(D, name="transform")(x)))
        logits = words.attend(y) + self.param("bias", nn.initializers.zeros, (V,))
        return logits, nn.Dense(2, name="next")(jnp.tanh(nn.Dense(D, name="pooler")(x[:, 0])))


class T5Attention(nn.Module):
    @nn.compact
    def __call__(self, x: Any, source: Any, bias: Any) -> Any:
        q, k, v = (nn.DenseGeneral((4, 8), use_bias=False, name=name)(y) for name, y in (("q", x), ("k", source), ("v", source)))
        weights = nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) + bias)
        return nn.DenseGeneral(D, axis=(-2, -1), use_bias=False, name="o")(jnp.einsum("bhts,bshd->bthd", weights, v))


class T5Layer(nn.Module):
    @nn.compact
    def __call__(self, x: Any, source: Any, bias: Any) -> Any:
        y = nn.RMSNorm(name="attention_norm")(x)
        x = x + T5Attention(name="attention")(y, y, bias)
        if source is not None:
            x = x + T5Attention(name="cross")(nn.RMSNorm(name="cross_norm")(x), source, 0.0)
        y = nn.RMSNorm(name="ff_norm")(x)
        y = nn.gelu(nn.Dense(F, use_bias=False, name="wi_0")(y)) * nn.Dense(F, use_bias=False, name="wi_1")(y)
        return x + nn.Dense(D, use_bias=False, name="wo")(y)


class T5(nn.Module):
    """One table of biases by relative position for all layers of the encoder, one for the decoder; the head is the table of tokens."""

    @nn.compact
    def __call__(self, ids: Any, target: Any) -> Any:
        embed = nn.Embed(V, D, name="shared")
        distance = jnp.arange(7)[None] - jnp.arange(7)[:, None]
        bucket = jnp.where(distance > 0, 4, 0) + jnp.minimum(jnp.abs(distance), 3)
        here, there = (jnp.transpose(nn.Embed(8, 4, name=f"{name}_bias")(bucket), (2, 0, 1))[None] for name in ("encoder", "decoder"))
        x, y = embed(ids), embed(target)
        for i in range(2):
            x = T5Layer(name=f"encoder_{i}")(x, None, here)
        x = nn.RMSNorm(name="encoder_norm")(x)
        for i in range(2):
            y = T5Layer(name=f"decoder_{i}")(y, x, there)
        return embed.attend(nn.RMSNorm(name="decoder_norm")(y) * D**-0.5)


class WhisperLayer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, cross: bool) -> None:
        self.norm, self.attention = nnx.LayerNorm(D, rngs=rngs), nnx.MultiHeadAttention(4, D, decode=False, rngs=rngs)
        self.cross_norm = nnx.LayerNorm(D, rngs=rngs) if cross else None
        self.cross = nnx.MultiHeadAttention(4, D, decode=False, rngs=rngs) if cross else None
        self.up, self.down = nnx.Linear(D, F, rngs=rngs), nnx.Linear(F, D, rngs=rngs)

    def __call__(self, x: Any, source: Any = None) -> Any:
        x = x + self.attention(self.norm(x))
        if source is not None:
            x = x + self.cross(self.cross_norm(x), source)
        return x + self.down(nnx.gelu(self.up(x)))


class Whisper(nnx.Module):
    """Two convolutions over sound, the second with stride 2; constant waves as positions; a decoder that attends to the encoder."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv1 = nnx.Conv(10, D, kernel_size=(3,), padding=1, rngs=rngs)
        self.conv2 = nnx.Conv(D, D, kernel_size=(3,), strides=2, padding=1, rngs=rngs)
        self.encoder, self.decoder = WhisperLayer(rngs, False), WhisperLayer(rngs, True)
        self.tokens, self.places = nnx.Embed(V, D, rngs=rngs), nnx.Param(jnp.zeros((20, D)))

    def __call__(self, sound: Any, ids: Any) -> Any:
        x = nnx.gelu(self.conv2(nnx.gelu(self.conv1(sound))))
        x = self.encoder(x + jnp.sin(jnp.arange(x.shape[1])[:, None] * jnp.exp(-jnp.linspace(0.0, 5.0, D))))
        y = self.tokens(ids) + self.places[: ids.shape[1]]
        return self.tokens.attend(self.decoder(y, x))


class Clip(nn.Module):
    """A tower for images, a tower for texts, and a learned temperature."""

    @nn.compact
    def __call__(self, image: Any, ids: Any) -> Any:
        x = nn.Conv(D, (4, 4), strides=4, use_bias=False, name="patch")(image).reshape(3, 4, D)
        cls = jnp.broadcast_to(self.param("cls", nn.initializers.normal(), (D,)), (3, 1, D))
        x = jnp.concatenate([cls, x], 1) + self.param("image_places", nn.initializers.normal(), (5, D))
        x = nn.LayerNorm(name="pre")(x)
        y = nn.Embed(V, D, name="tokens")(ids) + self.param("text_places", nn.initializers.normal(), (7, D))
        x = x + nn.MultiHeadDotProductAttention(4, name="image_attention")(x, x)
        y = y + nn.MultiHeadDotProductAttention(4, name="text_attention")(y, y)
        x = x[:, 0] @ self.param("image_map", nn.initializers.normal(), (D, 16))
        y = y[jnp.arange(3), ids.argmax(-1)] @ self.param("text_map", nn.initializers.normal(), (D, 16))
        x, y = (z / jnp.linalg.norm(z, axis=-1, keepdims=True) for z in (x, y))
        return jnp.exp(self.param("scale", nn.initializers.zeros, ())) * x @ y.T


class Albert(nn.Module):
    """Factorised tables, and one block that runs four times under a scan that broadcasts its weights."""

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Dense(D, name="widen")(nn.Embed(V, 8, name="tokens")(ids))
        block = nn.scan(nn.remat(AlbertBlock), variable_broadcast="params", split_rngs={"params": False}, length=4)
        return nn.Dense(V, name="head")(block(name="block")(x, None)[0])


class AlbertBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        y = nn.Dense(3 * D, name="qkv")(nn.LayerNorm(name="norm")(x))
        q, k, v = (z.reshape(*z.shape[:2], 4, 8) for z in jnp.split(y, [D, 2 * D], -1))
        x = x + nn.Dense(D, name="o")(attend(q, k, v).reshape(x.shape))
        return x + nn.Dense(D, name="down")(nn.gelu(nn.Dense(F, name="up")(x))), None


def linear(out: int, into: int, count: int = 1) -> Any:
    """The row of a matrix."""
    return ("Linear", (count, out, into))


def norm(path: str, size: int = D) -> dict[str, Any]:
    """The rows of a layer norm."""
    return {f"{path}/scale": ("Scale", (1, 1, size)), f"{path}/bias": ("Bias", (1, 1, size))}


def dense(path: str, out: int, into: int) -> dict[str, Any]:
    """The rows of a dense layer with a bias."""
    return {f"{path}/kernel": linear(out, into), f"{path}/bias": ("Bias", (1, 1, out))}


def attention(path: str, size: int = D) -> dict[str, Any]:
    """The rows of an attention with biases."""
    return {key: row for name in ("query", "key", "value", "out") for key, row in dense(f"{path}/{name}", size, size).items()}


LLAMA_BLOCK = {
    "before/scale": ("Scale", (1, 1, D)),
    "after/scale": ("Scale", (1, 1, D)),
    "q/kernel": linear(D, D),
    "kv/kernel": linear(16, D, 2),
    "o/kernel": linear(D, D),
    "gate_up/kernel": linear(F, D, 2),
    "down/kernel": linear(D, F),
}
T5_ATTENTION = {f"{name}/kernel": linear(D, D) for name in "qkvo"}
T5_LAYER = {
    "attention_norm/scale": ("Scale", (1, 1, D)),
    **{f"attention/{path}": row for path, row in T5_ATTENTION.items()},
    "ff_norm/scale": ("Scale", (1, 1, D)),
    "wi_0/kernel": linear(F, D),
    "wi_1/kernel": linear(F, D),
    "wo/kernel": linear(D, F),
}
T5_CROSS = {"cross_norm/scale": ("Scale", (1, 1, D)), **{f"cross/{path}": row for path, row in T5_ATTENTION.items()}}
WHISPER_LAYER = {**norm("norm"), **attention("attention"), **dense("up", F, D), **dense("down", D, F)}
GPT_OSS = {
    "embed": ("Embed", (1, V, D)),
    "router": linear(4, D),
    "router_bias": ("Bias", (1, 1, 4)),
    "gate_up": linear(F, D, 8),
    "gate_up_bias": ("Embed", (2, 4, F)),
    "down": linear(D, F, 4),
    "down_bias": ("Embed", (1, 4, D)),
    "head": linear(V, D),
}


def _gpt_oss_params() -> dict[str, Any]:
    sizes = {
        "embed": (V, D),
        "router": (D, 4),
        "router_bias": (4,),
        "gate_up": (4, D, 2 * F),
        "gate_up_bias": (4, 2 * F),
        "down": (4, F, D),
        "down_bias": (4, D),
        "head": (D, V),
    }
    return {name: shape(*size) for name, size in sizes.items()}


def linens(module: Any, *inputs: Any) -> Any:
    """A linen module of several inputs, with the shapes of its parameters."""

    def build() -> tuple[Any, ...]:
        made = jax.eval_shape(lambda key: module.init(key, *(jnp.zeros(x.shape, x.dtype) for x in inputs)), jax.random.key(0))
        return lambda p, *x: module.apply({"params": p}, *x), made["params"], *inputs

    return build


CASES = [
    Case(
        "nnx: llama",
        lambda: (nnx.eval_shape(Llama), tokens(3, 7)),
        {
            "embed/embedding": ("Embed", (1, V, D)),
            **{f"block_{i}/{path}": row for i in range(2) for path, row in LLAMA_BLOCK.items()},
            "norm/scale": ("Scale", (1, 1, D)),
            "head/kernel": linear(V, D),
        },
    ),
    Case(
        "nnx: mixtral",
        lambda: (nnx.eval_shape(Mixtral), tokens(3, 7)),
        {
            "embed/embedding": ("Embed", (1, V, D)),
            "router/kernel": linear(4, D),
            "gate": linear(F, D, 4),
            "up": linear(F, D, 4),
            "down": linear(D, F, 4),
            **dense("head", V, D),
        },
    ),
    Case("gpt-oss", lambda: (gpt_oss, _gpt_oss_params(), tokens(3, 7)), GPT_OSS),
    Case(
        "linen: bert",
        linens(Bert(), tokens(3, 7), tokens(3, 7)),
        {
            "words/embedding": ("Embed+Linear", (1, V, D)),
            "kinds/embedding": ("Embed", (1, 2, D)),
            "places/embedding": ("Embed", (1, 20, D)),
            **norm("norm"),
            **{key: row for i in range(2) for key, row in attention(f"layer_{i}/attention").items()},
            **{key: row for i in range(2) for name in ("attention", "output") for key, row in norm(f"layer_{i}/{name}_norm").items()},
            **{key: row for i in range(2) for key, row in dense(f"layer_{i}/intermediate", F, D).items()},
            **{key: row for i in range(2) for key, row in dense(f"layer_{i}/output", D, F).items()},
            **dense("transform", D, D),
            **norm("transform_norm"),
            "bias": ("Bias", (1, 1, V)),
            **dense("pooler", D, D),
            **dense("next", 2, D),
        },
    ),
    Case(
        "linen: t5",
        linens(T5(), tokens(3, 7), tokens(3, 7)),
        {
            "shared/embedding": ("Embed+Linear", (1, V, D)),
            "encoder_bias/embedding": ("Embed", (1, 8, 4)),
            "decoder_bias/embedding": ("Embed", (1, 8, 4)),
            **{f"{side}_{i}/{path}": row for side in ("encoder", "decoder") for i in range(2) for path, row in T5_LAYER.items()},
            **{f"decoder_{i}/{path}": row for i in range(2) for path, row in T5_CROSS.items()},
            "encoder_norm/scale": ("Scale", (1, 1, D)),
            "decoder_norm/scale": ("Scale", (1, 1, D)),
        },
    ),
    Case(
        "nnx: whisper",
        lambda: (nnx.eval_shape(Whisper), shape(3, 16, 10), tokens(3, 7)),
        {
            "conv1/kernel": ("Conv2D", (3, D, 10)),
            "conv1/bias": ("Bias", (1, 1, D)),
            "conv2/kernel": ("Conv2D", (3, D, D)),
            "conv2/bias": ("Bias", (1, 1, D)),
            **{f"{side}/{path}": row for side in ("encoder", "decoder") for path, row in WHISPER_LAYER.items()},
            **norm("decoder/cross_norm"),
            **attention("decoder/cross"),
            "tokens/embedding": ("Embed+Linear", (1, V, D)),
            "places": ("Embed", (1, 20, D)),
        },
    ),
    Case(
        "linen: clip",
        linens(Clip(), shape(3, 8, 8, 3), tokens(3, 7)),
        {
            "patch/kernel": linear(D, 48),
            "cls": ("Embed", (1, 1, D)),
            "image_places": ("Embed", (1, 5, D)),
            **norm("pre"),
            "tokens/embedding": ("Embed", (1, V, D)),
            "text_places": ("Embed", (1, 7, D)),
            **attention("image_attention"),
            **attention("text_attention"),
            "image_map": linear(16, D),
            "text_map": linear(16, D),
            "scale": ("Scale", (1, 1, 1)),
        },
        rules={"scale": "scale"},
        refused={"scale": "the program takes exp of the parameter itself"},
    ),
    Case(
        "linen: albert",
        linen(Albert(), tokens(3, 7)),
        {
            "tokens/embedding": ("Embed", (1, V, 8)),
            **dense("widen", D, 8),
            **norm("block/norm"),
            "block/qkv/kernel": linear(D, D, 3),
            "block/qkv/bias": ("Bias", (3, 1, D)),
            **dense("block/o", D, D),
            **dense("block/up", F, D),
            **dense("block/down", D, F),
            **dense("head", V, D),
        },
    ),
]
