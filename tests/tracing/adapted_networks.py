"""Adapters, prompts, generated weights, joined tables and other unusual uses of weights, in plain JAX."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import Case, attend, case, params, shape, tokens
from trace_rows import linear

D = 32


X = shape(4, 7, D)


def adapted_stack(p: Any, x: Any) -> Any:
    """Low-rank terms for queries and values of a frozen stack under scan, with grouped queries from one weight."""

    def block(x: Any, w: Any) -> Any:
        q, k, v = jnp.split(x @ w["qkv"], [D, D + 16], -1)
        q = q + 2.0 * (x @ w["qa"]) @ w["qb"]
        v = v + 2.0 * (x @ w["va"]) @ w["vb"]
        q, k, v = q.reshape(4, 7, 4, 8), k.reshape(4, 7, 2, 8), v.reshape(4, 7, 2, 8)
        return x + jax.nn.dot_product_attention(q, k, v).reshape(4, 7, D) @ w["o"], None

    return lax.scan(block, x, p)[0]


def prefixes(p: Any, ids: Any) -> Any:
    """Soft prompts before the tokens, learned keys and values before the others, learned gains of keys and values."""
    x = p["table"][ids]
    x = jnp.concatenate([jnp.tile(p["prompt"][None], (3, 1, 1)), x], 1)
    q, k, v = ((x @ p[name]).reshape(3, 12, 4, 8) for name in "qkv")
    k = jnp.concatenate([jnp.broadcast_to(p["prefix"][0], (3, 6, 4, 8)), k * p["k_gain"].reshape(4, 8)], 1)
    v = jnp.concatenate([jnp.broadcast_to(p["prefix"][1], (3, 6, 4, 8)), v * p["v_gain"].reshape(4, 8)], 1)
    return attend(q, k, v).reshape(3, 12, D)[:, 5:] @ p["o"]


def quantised(p: Any, x: Any) -> Any:
    """Weights of four bits in groups of eight with their scales and offsets, which are not trained, and a low-rank term."""
    codes = jnp.stack([p["codes"] & 15, p["codes"] >> 4], -1).reshape(4, 8, D).astype(jnp.float32)
    w = ((codes - p["zero"][:, None]) * p["step"][:, None]).reshape(D, D)
    y = x @ lax.stop_gradient(w) + x @ p["a"] @ p["b"]
    return jax.nn.relu(y) @ p["out"]


def generated(p: Any, x: Any, task: Any) -> Any:
    """A hypernetwork: the weights of a layer are made from data."""
    w = (jax.nn.relu(task @ p["a"]) @ p["b"] + p["c"]).reshape(D, 10)
    return x @ w


def bilinear_scores(p: Any, x: Any, y: Any) -> Any:
    """A biaffine scorer: for each label, a matrix between two words."""
    a, b = jax.nn.relu(x @ p["head"]), jax.nn.relu(y @ p["tail"])
    return jnp.einsum("bti,lij,bsj->blts", a, p["w"], b)


def joined_tables(p: Any, ids: Any, category: Any) -> Any:
    """Old and new tokens from two tables joined; columns with tables of their own sizes."""
    x = jnp.take(jnp.concatenate([p["old"], p["new"]]), ids, axis=0)
    y = jnp.concatenate([p["a"][category[:, 0]], p["b"][category[:, 1]]], -1)
    return jnp.concatenate([x.mean(1), y], -1) @ p["out"]


def memory(p: Any, x: Any) -> Any:
    """Product keys: two sets of keys score halves of the query; the best values are looked up and weighed."""
    a, b = jnp.split(x @ p["query"], 2, -1)
    (sa, ia), (sb, ib) = lax.top_k(a @ p["keys"][0].T, 2), lax.top_k(b @ p["keys"][1].T, 2)
    score = (sa[..., :, None] + sb[..., None, :]).reshape(4, 7, 4)
    place = (ia[..., :, None] * 6 + ib[..., None, :]).reshape(4, 7, 4)
    return jnp.einsum("btk,btkd->btd", jax.nn.softmax(score), p["values"][place]) @ p["out"]


def chosen_layers(p: Any, x: Any, which: Any) -> Any:
    """A switch over a list of layers, and a branch that leaves the data as it is."""
    x = lax.switch(which, [partial(lambda w, x: jnp.tanh(x @ w["w"] + w["b"]), w) for w in p["layers"]], x)
    x = lax.cond(x.sum() > 0, lambda x: x + jax.nn.relu(x @ p["extra"]), lambda x: x, x)
    return x @ p["out"]


def scaled_precision(p: Any, x: Any) -> Any:
    """Products in eight bits: operands are divided by scales, rounded, multiplied and multiplied back."""

    def product(x: Any, w: Any) -> Any:
        a = lax.stop_gradient(jnp.abs(x).max() / 448.0)
        low = (x / a).astype(jnp.float8_e4m3fn)
        return lax.dot_general(low, w.astype(jnp.float8_e4m3fn), (((2,), (0,)), ((), ())), preferred_element_type=jnp.float32) * a

    return product(jax.nn.relu(product(x, p["a"]) + p["b"]), p["c"])


def product_of_conditions(p: Any, x: Any, label: Any) -> Any:
    """Gain and shift of a norm looked up by a label, as in conditional batch norm."""
    y = lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = (y - y.mean((0, 1, 2))) * lax.rsqrt(y.var((0, 1, 2)) + 1e-5)
    y = y * (1 + p["gains"][label][:, None, None]) + p["shifts"][label][:, None, None]
    return jax.nn.relu(y).mean((1, 2)) @ p["out"]


def transformer_xl(p: Any, x: Any) -> Any:
    """Relative positions: waves times a weight, and two learned vectors added to the queries."""
    q, k, v = ((x @ p[name]).reshape(4, 7, 4, 8) for name in "qkv")
    angle = jnp.arange(7.0)[:, None] / 100.0 ** jnp.linspace(0, 1, 16)
    r = (jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1) @ p["r"]).reshape(7, 4, 8)
    logits = jnp.einsum("bthd,bshd->bhts", q + p["u"], k) + jnp.einsum("bthd,shd->bhts", q + p["w"], r)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v).reshape(4, 7, D) @ p["o"]


CASES = [
    case(
        "adapters in a scan",
        adapted_stack,
        params(qkv=(3, D, 64), qa=(3, D, 2), qb=(3, 2, D), va=(3, D, 2), vb=(3, 2, 16), o=(3, D, D)),
        X,
        rows={
            "qkv": ("frozen",),
            "qa": ("Linear", (3, 2, D), 3),
            "qb": ("Linear", (3, D, 2), 3),
            "va": ("Linear", (3, 2, D), 3),
            "vb": ("Linear", (3, 16, 2), 3),
            "o": ("frozen",),
        },
        rules={"{qkv,o}": "frozen"},
    ),
    case(
        "grouped queries in a scan",
        adapted_stack,
        params(qkv=(3, D, 64), qa=(3, D, 2), qb=(3, 2, D), va=(3, D, 2), vb=(3, 2, 16), o=(3, D, D)),
        X,
        rows={
            "qkv": ("Linear", ((3, D, D), (3, 16, D), (3, 16, D)), 3),
            "qa": ("Linear", (3, 2, D), 3),
            "qb": ("Linear", (3, D, 2), 3),
            "va": ("Linear", (3, 2, D), 3),
            "vb": ("Linear", (3, 16, 2), 3),
            "o": ("Linear", (3, D, D), 3),
        },
    ),
    case(
        "prompts and prefixes",
        prefixes,
        params(table=(50, D), prompt=(5, D), q=(D, D), k=(D, D), v=(D, D), prefix=(2, 6, 4, 8), k_gain=(D,), v_gain=(D,), o=(D, 10)),
        tokens(3, 7),
        rows={
            "table": ("Embed", (1, 50, D)),
            "prompt": ("Embed", (1, 5, D)),
            **dict.fromkeys("qkv", linear(D, D)),
            "prefix": ("Embed", (2, 6, D)),
            "k_gain": ("Scale", (1, 1, D)),
            "v_gain": ("Scale", (1, 1, D)),
            "o": linear(10, D),
        },
    ),
    Case(
        "four bits",
        lambda: (
            quantised,
            {**params(zero=(4, D), step=(4, D), a=(D, 2), b=(2, D), out=(D, 10)), "codes": shape(4, 4, D, dtype="uint8")},
            X,
        ),
        {
            "codes": ("frozen",),
            "zero": ("frozen",),
            "step": ("frozen",),
            "a": linear(2, D),
            "b": linear(D, 2),
            "out": linear(10, D),
        },
        rules={"{zero,step}": "frozen"},
    ),
    case(
        "generated weights",
        generated,
        params(a=(6, 16), b=(16, 320), c=(320,)),
        shape(4, 7, D),
        shape(6),
        rows={"a": linear(16, 6), "b": linear(320, 16), "c": ("Bias", (1, 1, 320))},
    ),
    case(
        "biaffine",
        bilinear_scores,
        params(head=(D, 16), tail=(D, 12), w=(5, 16, 12)),
        X,
        shape(4, 9, D),
        rows={"head": linear(16, D), "tail": linear(12, D), "w": linear(60, 16)},
    ),
    case(
        "joined tables",
        joined_tables,
        params(old=(50, D), new=(4, D), a=(9, 6), b=(11, 5), out=(43, 10)),
        tokens(3, 7),
        tokens(3, 2),
        rows={
            "old": ("Embed", (1, 50, D)),
            "new": ("Embed", (1, 4, D)),
            "a": ("Embed", (1, 9, 6)),
            "b": ("Embed", (1, 11, 5)),
            "out": linear(10, 43),
        },
    ),
    case(
        "product keys",
        memory,
        params(query=(D, 16), keys=(2, 6, 8), values=(36, D), out=(D, 10)),
        X,
        rows={"query": linear(8, D, 2), "keys": linear(6, 8, 2), "values": ("Embed", (1, 36, D)), "out": linear(10, D)},
    ),
    case(
        "chosen layers",
        chosen_layers,
        {"layers": [params(w=(D, D), b=(D,)) for _ in range(3)], **params(extra=(D, D), out=(D, 10))},
        X,
        tokens(),
        rows={
            **{f"layers/{i}/w": linear(D, D) for i in range(3)},
            **{f"layers/{i}/b": ("Bias", (1, 1, D)) for i in range(3)},
            "extra": linear(D, D),
            "out": linear(10, D),
        },
    ),
    case(
        "eight bits",
        scaled_precision,
        params(a=(D, 48), b=(48,), c=(48, 10)),
        X,
        rows={"a": linear(48, D), "b": ("Bias", (1, 1, 48)), "c": linear(10, 48)},
    ),
    case(
        "norm by label",
        product_of_conditions,
        params(k=(3, 3, 3, 8), gains=(10, 8), shifts=(10, 8), out=(8, 10)),
        shape(2, 8, 8, 3),
        tokens(2),
        rows={
            "k": ("Conv2D", (9, 8, 3)),
            "gains": ("Embed", (1, 10, 8)),
            "shifts": ("Embed", (1, 10, 8)),
            "out": linear(10, 8),
        },
    ),
    Case(
        "transformer xl",
        lambda: (transformer_xl, params(q=(D, D), k=(D, D), v=(D, D), r=(D, D), u=(4, 8), w=(4, 8), o=(D, 10)), X),
        {
            **dict.fromkeys("qkvr", linear(D, D)),
            "u": ("Bias", (1, 1, D)),
            "w": ("Bias", (1, 1, D)),
            "o": linear(10, D),
        },
        rules={"r": "linear io"},
        refused={"r": "it is multiplied with a matrix of constants"},
    ),
]
