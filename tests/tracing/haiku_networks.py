"""Networks of Haiku."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from trace_cases import Case, shape, tokens


def _perceptron(x: Any) -> Any:
    return hk.nets.MLP([32, 32, 10])(hk.LayerNorm(-1, True, True)(hk.Linear(24)(x)))


def _language(ids: Any) -> Any:
    x = hk.Embed(50, 16)(ids) + hk.get_parameter("pos", [7, 16], init=jnp.zeros)
    for _ in range(2):
        y = hk.RMSNorm(-1)(x)
        x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.Constant(0.0), model_size=16)(y, y, y)
    return hk.Linear(50)(x)


def _stack(x: Any) -> Any:
    def layer(x: Any) -> Any:
        return x + jax.nn.relu(hk.Linear(16)(x))

    return hk.Linear(10)(hk.experimental.layer_stack(5)(layer)(x))


def _images(x: Any) -> Any:
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(8, 3)(x), is_training=True))
    x = hk.DepthwiseConv2D(1, 3)(x)
    return hk.Linear(10)(hk.Conv2DTranspose(6, 2, stride=2)(x).mean((1, 2)))


def _recurrent(x: Any) -> Any:
    core = hk.LSTM(8)
    out, _ = hk.dynamic_unroll(core, x, core.initial_state(4))
    return hk.Linear(3)(out[-1])


MLP = {
    "linear/w": ("Linear", (1, 24, 64)),
    "linear/b": ("Bias", (1, 1, 24)),
    "layer_norm/scale": ("Scale", (1, 1, 24)),
    "layer_norm/offset": ("Bias", (1, 1, 24)),
    "mlp/~/linear_0/w": ("Linear", (1, 32, 24)),
    "mlp/~/linear_0/b": ("Bias", (1, 1, 32)),
    "mlp/~/linear_1/w": ("Linear", (1, 32, 32)),
    "mlp/~/linear_1/b": ("Bias", (1, 1, 32)),
    "mlp/~/linear_2/w": ("Linear", (1, 10, 32)),
    "mlp/~/linear_2/b": ("Bias", (1, 1, 10)),
}


def with_params() -> Any:
    transform = hk.without_apply_rng(hk.transform(_perceptron))
    return transform.apply, jax.eval_shape(transform.init, jax.random.key(0), jnp.zeros((4, 64))), shape(4, 64)


CASES = [
    Case("haiku: mlp", with_params, MLP),
    Case("haiku: mlp as a transform", lambda: (hk.transform(_perceptron), shape(4, 64)), MLP),
    Case(
        "haiku: language model",
        lambda: (hk.transform(_language), tokens(3, 7)),
        {
            "embed/embeddings": ("Embed", (1, 50, 16)),
            "~/pos": ("Embed", (1, 7, 16)),
            **{f"{norm}/scale": ("Scale", (1, 1, 16)) for norm in ("rms_norm", "rms_norm_1")},
            **{
                f"{block}/{name}/{leaf}": row
                for block in ("multi_head_attention", "multi_head_attention_1")
                for name in ("query", "key", "value", "linear")
                for leaf, row in (("w", ("Linear", (1, 16, 16))), ("b", ("Bias", (1, 1, 16))))
            },
            "linear/w": ("Linear", (1, 50, 16)),
            "linear/b": ("Bias", (1, 1, 50)),
        },
    ),
    Case(
        "haiku: layer stack",
        lambda: (hk.without_apply_rng(hk.transform(_stack)), shape(4, 16)),
        {
            "__layer_stack_no_per_layer/linear/w": ("Linear", (5, 16, 16), 5),
            "__layer_stack_no_per_layer/linear/b": ("Bias", (5, 1, 16), 5),
            "linear/w": ("Linear", (1, 10, 16)),
            "linear/b": ("Bias", (1, 1, 10)),
        },
    ),
    Case(
        "haiku: images with state",
        lambda: (hk.transform_with_state(_images), shape(2, 8, 8, 3)),
        {
            "conv2_d/w": ("Conv2D", (9, 8, 3)),
            "conv2_d/b": ("Bias", (1, 1, 8)),
            "batch_norm/scale": ("Scale", (1, 1, 8)),
            "batch_norm/offset": ("Bias", (1, 1, 8)),
            "depthwise_conv2_d/w": ("Scale", (9, 1, 8)),
            "depthwise_conv2_d/b": ("Bias", (1, 1, 8)),
            "conv2_d_transpose/w": ("Conv2D", (4, 6, 8)),
            "conv2_d_transpose/b": ("Bias", (1, 1, 6)),
            "linear/w": ("Linear", (1, 10, 6)),
            "linear/b": ("Bias", (1, 1, 10)),
        },
    ),
    Case(
        "haiku: lstm",
        lambda: (hk.transform(_recurrent), shape(6, 4, 5)),
        {
            "lstm/linear/w": ("Linear", (4, 8, 13)),
            "lstm/linear/b": ("Bias", (4, 1, 8)),
            "linear/w": ("Linear", (1, 3, 8)),
            "linear/b": ("Bias", (1, 1, 3)),
        },
    ),
]
