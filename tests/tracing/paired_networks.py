"""Networks of two inputs as they are written in Flax: an encoder and a decoder, T5 and Whisper; a tower for each, CLIP."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from flax_networks import linens
from trace_cases import Case, shape, tokens
from trace_rows import D, attention, dense, linear, norm

F, V = 48, 50


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


CASES = [
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
]
