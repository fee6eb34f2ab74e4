"""Networks in plain JAX with tables, positions and learned queries that are looked up or added in an unusual way."""

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


def _windows(p: Any, x: Any) -> Any:
    """Shifted windows, with a table of biases by relative position."""
    y = jnp.roll(x @ p["in"], (-2, -2), (1, 2)).reshape(2, 2, 4, 2, 4, D).swapaxes(2, 3).reshape(8, 16, D)
    q, k, v = jnp.moveaxis((y @ p["qkv"]).reshape(8, 16, 3, 4, 8), 2, 0)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) + p["bias"][jnp.arange(256).reshape(16, 16) % 49].transpose(2, 0, 1)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v).reshape(8, 16, D) @ p["out"]


def _logit_bias(p: Any, x: Any) -> Any:
    q, k, v = ((x @ p[name]).reshape(4, 7, 4, 8) for name in "qkv")
    return jax.nn.dot_product_attention(q, k, v, bias=p["bias"][None]).reshape(4, 7, D) @ p["out"]


def _codebook(p: Any, x: Any) -> Any:
    """Vector quantisation: the nearest row, with the gradient passed straight through."""
    y = x @ p["in"]
    distance = (y**2).sum(-1, keepdims=True) - 2 * y @ lax.stop_gradient(p["codes"]).T
    code = jax.nn.one_hot(jnp.argmin(distance, -1), 11) @ p["codes"]
    return (y + lax.stop_gradient(code - y)) @ p["out"] + (code - y) @ p["out"]


def _retrieval(p: Any, ids: Any, image: Any) -> Any:
    """Two towers with a learned temperature."""
    text = p["table"][ids].mean(1) @ p["text"]
    picture = image @ p["image"]
    text, picture = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (text, picture))
    return jnp.exp(p["log_scale"]) * text @ picture.T


def _sum_over_rows(p: Any, ids: Any) -> Any:
    """A bag of words, written as a weighted sum of rows."""
    return (p["table"][ids] * jnp.exp(-jnp.arange(7.0))[:, None]).sum(1) @ p["out"]


def _scaled_embedding(p: Any, ids: Any) -> Any:
    x = p["table"].astype(jnp.bfloat16)[ids] * jnp.sqrt(32.0).astype(jnp.bfloat16)
    x = x.astype(jnp.float32) + jnp.take(p["pos"], jnp.arange(7), axis=0) + jnp.take(p["kind"], ids % 2, axis=0)
    return layer_norm(x) @ p["out"]


def _padded(p: Any, ids: Any) -> Any:
    """Rows looked up outside the table are zero."""
    return jnp.take(p["table"], ids, axis=0, fill_value=0) @ p["out"]


def _transposed_table(p: Any, ids: Any) -> Any:
    return jnp.moveaxis(p["table"][:, ids], 0, -1) @ p["out"]


def _learned_query(p: Any, x: Any) -> Any:
    weights = jax.nn.softmax(jnp.einsum("hk,bthk->bht", p["query"], (x @ p["k"]).reshape(4, 7, 4, 8)))
    return jnp.einsum("bht,bthk->bhk", weights, (x @ p["v"]).reshape(4, 7, 4, 8)).reshape(4, D) @ p["out"]


def _two_axes(p: Any, x: Any) -> Any:
    """Axial positions on feature maps."""
    y = x @ p["in"]
    return (y + p["rows"][:, None] + p["columns"][None]) @ p["out"]


CASES = [
    case(
        "shifted windows",
        _windows,
        params(**{"in": (6, D)}, qkv=(D, 96), bias=(49, 4), out=(D, 10)),
        shape(2, 8, 8, 6),
        rows={"in": ("Linear", (1, D, 6)), "qkv": ("Linear", (3, D, D)), "bias": ("Embed", (1, 49, 4)), "out": OUT},
    ),
    case(
        "bias on logits",
        _logit_bias,
        params(q=(D, D), k=(D, D), v=(D, D), bias=(4, 7, 7), out=(D, 10)),
        X,
        rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "bias": ("Embed", (1, 49, 4)), "out": OUT},
    ),
    case(
        "codebook",
        _codebook,
        params(**{"in": (D, D)}, codes=(11, D), out=(D, 10)),
        X,
        rows={"in": LINEAR, "codes": ("Embed+Linear", (1, 11, D)), "out": OUT},
    ),
    case(
        "two towers",
        _retrieval,
        params(table=(50, D), text=(D, 16), image=(9, 16), log_scale=()),
        tokens(3, 7),
        shape(3, 9),
        rows={
            "table": ("Embed", (1, 50, D)),
            "text": ("Linear", (1, 16, D)),
            "image": ("Linear", (1, 16, 9)),
            "log_scale": ("Scale", (1, 1, 1)),
        },
        rules={"log_scale": "scale"},
    ),
    case(
        "bag of words", _sum_over_rows, params(table=(50, D), out=(D, 10)), tokens(3, 7), rows={"table": ("Embed", (1, 50, D)), "out": OUT}
    ),
    case(
        "scaled rows",
        _scaled_embedding,
        params(table=(50, D), pos=(9, D), kind=(2, D), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "pos": ("Embed", (1, 9, D)), "kind": ("Embed", (1, 2, D)), "out": OUT},
    ),
    case(
        "rows outside of the table",
        _padded,
        params(table=(50, D), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "out": OUT},
    ),
    case(
        "table with features first",
        _transposed_table,
        params(table=(D, 50), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "out": OUT},
    ),
    case(
        "learned query",
        _learned_query,
        params(query=(4, 8), k=(D, D), v=(D, D), out=(D, 10)),
        X,
        rows={"query": ("Linear", (4, 1, 8)), "k": LINEAR, "v": LINEAR, "out": OUT},
    ),
    case(
        "axial positions",
        _two_axes,
        params(**{"in": (6, D)}, rows=(8, D), columns=(9, D), out=(D, 10)),
        shape(2, 8, 9, 6),
        rows={"in": ("Linear", (1, D, 6)), "rows": ("Embed", (1, 8, D)), "columns": ("Embed", (1, 9, D)), "out": OUT},
    ),
]
