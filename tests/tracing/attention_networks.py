"""Attention and tables, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import attend, case, layer_norm, params, shape, tokens

X = shape(4, 7, 32)  # batch, time, features: no two sizes are equal
D, H, HD, F = 32, 4, 8, 128
OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
GAIN = ("Scale", (1, 1, D))
VECTOR = ("Bias", (1, 1, D))


def _out(p: Any, y: Any) -> Any:
    return y @ p["out"]


def _thirds(p: Any, x: Any) -> Any:
    q, k, v = (y.reshape(4, 7, H, HD) for y in jnp.split(x @ p["qkv"] + p["bias"], 3, -1))
    return _out(p, attend(q, k, v).reshape(4, 7, D))


def _per_head(p: Any, x: Any) -> Any:
    y = (x @ p["qkv"] + p["bias"]).reshape(4, 7, H, 3, HD)
    return _out(p, attend(y[..., 0, :], y[..., 1, :], y[..., 2, :]).reshape(4, 7, D))


def _interleaved(p: Any, x: Any) -> Any:
    y = x @ p["gate_up"]
    return _out(p, jax.nn.silu(y[..., ::2]) * y[..., 1::2])


def _stacked_qkv(p: Any, x: Any) -> Any:
    q, k, v = jnp.einsum("btd,cdhk->cbthk", x, p["qkv"])
    return jnp.einsum("bthk,hkd->btd", attend(q, k, v), p["out"])


def _indexed_qkv(p: Any, x: Any) -> Any:
    q, k, v = (jnp.einsum("btd,dhk->bthk", x, p["qkv"][i]) for i in range(3))
    return jnp.einsum("bthk,hkd->btd", attend(q, k, v), p["out"])


def _uneven(p: Any, x: Any) -> Any:
    y = x @ p["qkv"] + p["bias"]
    q, k, v = y[..., :32].reshape(4, 7, 4, 8), y[..., 32:48].reshape(4, 7, 2, 8), y[..., 48:].reshape(4, 7, 2, 8)
    return _out(p, jax.nn.dot_product_attention(q, k, v).reshape(4, 7, D))


def _uneven_groups(p: Any, x: Any) -> Any:
    y = (x @ p["qkv"]).reshape(4, 7, 2, 4, 8)
    q, k, v = y[..., :2, :].reshape(4, 7, 4, 8), y[..., 2, :], y[..., 3, :]
    return _out(p, jax.nn.dot_product_attention(q, k, v).reshape(4, 7, D))


def _rotate(x: Any) -> Any:
    angle = jnp.arange(x.shape[1])[:, None, None] / 100.0 ** jnp.linspace(0, 1, x.shape[-1] // 2)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)], -1)


def _rms(x: Any, gain: Any) -> Any:
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + gain)


def _rotary(p: Any, x: Any) -> Any:
    h = _rms(x @ p["embed"], p["norm"])
    q, k, v = (y.reshape(4, 7, H, HD) for y in jnp.split(h @ p["qkv"], 3, -1))
    return _out(p, attend(_rotate(_rms(q, p["q_norm"])), _rotate(_rms(k, p["k_norm"])), v).reshape(4, 7, D))


def _half_rotary(p: Any, x: Any) -> Any:
    q, k, v = ((x @ p[name]).reshape(4, 7, H, HD) for name in ("q", "k", "v"))
    q, k = (jnp.concatenate([_rotate(y[..., :4]), y[..., 4:]], -1) for y in (q, k))
    return _out(p, attend(q, k, v).reshape(4, 7, D))


def _flash(p: Any, x: Any) -> Any:
    """Attention in chunks over the keys, with running maxima, as in flash attention."""
    q, k, v = (jnp.einsum("btd,dhk->bhtk", x, p[name]) for name in ("q", "k", "v"))
    keys, values = (jnp.moveaxis(y.reshape(4, H, 2, 4, HD), 2, 0) for y in (k, v))

    def chunk(state: Any, now: Any) -> Any:
        top, total, out = state
        logits = jnp.einsum("bhtk,bhsk->bhts", q, now[0])
        new = jnp.maximum(top, logits.max(-1))
        weights, scale = jnp.exp(logits - new[..., None]), jnp.exp(top - new)
        out = out * scale[..., None] + jnp.einsum("bhts,bhsk->bhtk", weights, now[1])
        return (new, total * scale + weights.sum(-1), out), None

    start = jnp.full((4, H, 8), -jnp.inf), jnp.zeros((4, H, 8)), jnp.zeros((4, H, 8, HD))
    _, total, out = lax.scan(chunk, start, (keys, values))[0]
    return jnp.einsum("bhtk,hkd->btd", out / total[..., None], p["out"])


def _tied(p: Any, ids: Any) -> Any:
    x = p["table"][ids] + p["pos"][: ids.shape[1]]
    x = x + jnp.tanh(x @ p["w"])
    return x @ p["table"].T


def _one_hot(p: Any, ids: Any) -> Any:
    return _out(p, jax.nn.one_hot(ids, 50) @ p["table"] + p["pos"])


def _relative(p: Any, ids: Any) -> Any:
    x = p["table"][ids]
    q, k, v = ((x @ p[name]).reshape(3, 7, H, HD) for name in ("q", "k", "v"))
    distance = jnp.clip(jnp.arange(7)[:, None] - jnp.arange(7) + 6, 0, 12)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) + jnp.transpose(p["bias"][distance], (2, 0, 1))
    return _out(p, jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v).reshape(3, 7, D))


def _relative_keys(p: Any, ids: Any) -> Any:
    """Shaw et al. 2018: rows looked up by distance are multiplied by the queries."""
    x = p["table"][ids]
    q, k, v = ((x @ p[name]).reshape(3, 7, H, HD) for name in ("q", "k", "v"))
    distance = jnp.arange(7)[:, None] - jnp.arange(7) + 6
    logits = jnp.einsum("bthd,bshd->bhts", q, k) + jnp.einsum("bthd,tsd->bhts", q, p["keys"][distance])
    return _out(p, jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v).reshape(3, 7, D))


def _class_token(p: Any, x: Any) -> Any:
    y = x @ p["in"]
    y = jnp.concatenate([jnp.broadcast_to(p["cls"], (4, 1, D)), y], 1) + p["pos"]
    return _out(p, layer_norm(y, p["gain"], p["bias"])[:, 0])


def _mask_token(p: Any, x: Any, mask: Any) -> Any:
    return _out(p, jnp.where(mask[..., None], p["mask"], x @ p["in"]))


def _square(p: Any, ids: Any) -> Any:
    """Every size is 16, so no size distinguishes one axis from another."""
    x = p["table"][ids] + p["pos"][:16]
    q, k, v = (y.reshape(16, 16, 4, 4) for y in jnp.split(layer_norm(x, p["gain"], p["shift"]) @ p["qkv"], 3, -1))
    x = x + attend(q, k, v).reshape(16, 16, 16) @ p["o"]
    return (x + jax.nn.relu(x @ p["up"] + p["b"]) @ p["down"]) @ p["head"]


CASES = [
    case(
        "qkv in thirds",
        _thirds,
        params(qkv=(D, 96), bias=(96,), out=(D, 10)),
        X,
        rows={"qkv": ("Linear", (3, D, D)), "bias": ("Bias", (3, 1, D)), "out": OUT},
    ),
    case(
        "qkv per head",
        _per_head,
        params(qkv=(D, 96), bias=(96,), out=(D, 10)),
        X,
        rows={"qkv": ("Linear", (3, D, D)), "bias": ("Bias", (3, 1, D)), "out": OUT},
    ),
    case(
        "gate and up interleaved",
        _interleaved,
        params(gate_up=(D, 64), out=(D, 10)),
        X,
        rows={"gate_up": ("Linear", (2, D, D)), "out": OUT},
    ),
    case(
        "qkv as (3, d, h, k)", _stacked_qkv, params(qkv=(3, D, H, HD), out=(H, HD, 10)), X, rows={"qkv": ("Linear", (3, D, D)), "out": OUT}
    ),
    case("qkv by index", _indexed_qkv, params(qkv=(3, D, H, HD), out=(H, HD, 10)), X, rows={"qkv": ("Linear", (3, D, D)), "out": OUT}),
    case(
        "qkv uneven",
        _uneven,
        params(qkv=(D, 64), bias=(64,), out=(D, 10)),
        X,
        rows={
            "qkv": ("Linear", ((1, 32, D), (1, 16, D), (1, 16, D))),
            "bias": ("Bias", ((1, 1, 32), (1, 1, 16), (1, 1, 16))),
            "out": OUT,
        },
    ),
    case(
        "qkv uneven by groups",
        _uneven_groups,
        params(qkv=(D, 64), out=(D, 10)),
        X,
        rows={"qkv": ("Linear", ((1, 32, D), (1, 16, D), (1, 16, D))), "out": OUT},
    ),
    case(
        "rotary, normed queries",
        _rotary,
        params(embed=(D, D), norm=(D,), qkv=(D, 96), q_norm=(HD,), k_norm=(HD,), out=(D, 10)),
        X,
        rows={
            "embed": LINEAR,
            "norm": GAIN,
            "qkv": ("Linear", (3, D, D)),
            "q_norm": ("Scale", (1, 1, HD)),
            "k_norm": ("Scale", (1, 1, HD)),
            "out": OUT,
        },
    ),
    case(
        "rotary on half of a head",
        _half_rotary,
        params(q=(D, D), k=(D, D), v=(D, D), out=(D, 10)),
        X,
        rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "out": OUT},
    ),
    case(
        "attention in chunks",
        _flash,
        params(q=(D, H, HD), k=(D, H, HD), v=(D, H, HD), out=(H, HD, 10)),
        shape(4, 8, D),
        rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "out": OUT},
    ),
    case(
        "tied",
        _tied,
        params(table=(50, D), pos=(9, D), w=(D, D)),
        tokens(3, 7),
        rows={"table": ("Embed+Linear", (1, 50, D)), "pos": ("Embed", (1, 9, D)), "w": LINEAR},
    ),
    case(
        "one-hot",
        _one_hot,
        params(table=(50, D), pos=(7, D), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "pos": ("Embed", (1, 7, D)), "out": OUT},
    ),
    case(
        "relative positions",
        _relative,
        params(table=(50, D), q=(D, D), k=(D, D), v=(D, D), bias=(13, H), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "q": LINEAR, "k": LINEAR, "v": LINEAR, "bias": ("Embed", (1, 13, H)), "out": OUT},
    ),
    case(
        "relative keys",
        _relative_keys,
        params(table=(50, D), q=(D, D), k=(D, D), v=(D, D), keys=(13, HD), out=(D, 10)),
        tokens(3, 7),
        rows={"table": ("Embed", (1, 50, D)), "q": LINEAR, "k": LINEAR, "v": LINEAR, "keys": ("Embed", (1, 13, HD)), "out": OUT},
    ),
    case(
        "class token",
        _class_token,
        params(**{"in": (D, D)}, cls=(1, 1, D), pos=(8, D), gain=(D,), bias=(D,), out=(D, 10)),
        X,
        rows={"in": LINEAR, "cls": ("Embed", (1, 1, D)), "pos": ("Embed", (1, 8, D)), "gain": GAIN, "bias": VECTOR, "out": OUT},
    ),
    case(
        "mask token",
        _mask_token,
        params(mask=(D,), **{"in": (D, D)}, out=(D, 10)),
        X,
        shape(4, 7, dtype="bool"),
        rows={"mask": ("Embed", (1, 1, D)), "in": LINEAR, "out": OUT},
    ),
    case(
        "all sizes equal",
        _square,
        params(
            table=(16, 16),
            pos=(16, 16),
            gain=(16,),
            shift=(16,),
            qkv=(16, 48),
            o=(16, 16),
            up=(16, 16),
            b=(16,),
            down=(16, 16),
            head=(16, 16),
        ),
        tokens(16, 16),
        rows={
            "table": ("Embed", (1, 16, 16)),
            "pos": ("Embed", (1, 16, 16)),
            "gain": ("Scale", (1, 1, 16)),
            "shift": ("Bias", (1, 1, 16)),
            "qkv": ("Linear", (3, 16, 16)),
            **dict.fromkeys(("o", "up", "down", "head"), ("Linear", (1, 16, 16))),
            "b": ("Bias", (1, 1, 16)),
        },
    ),
]
