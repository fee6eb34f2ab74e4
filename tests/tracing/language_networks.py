"""Language models as they are written in Flax: Llama, Mixtral, GPT-OSS, BERT, ALBERT."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax_networks import linen, linens
from jax import lax
from trace_cases import Case, attend, shape, tokens
from trace_rows import D, attention, dense, linear, norm

F, V = 48, 50


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


LLAMA_BLOCK = {
    "before/scale": ("Scale", (1, 1, D)),
    "after/scale": ("Scale", (1, 1, D)),
    "q/kernel": linear(D, D),
    "kv/kernel": linear(16, D, 2),
    "o/kernel": linear(D, D),
    "gate_up/kernel": linear(F, D, 2),
    "down/kernel": linear(D, F),
}
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
