"""Networks in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from trace_cases import attend, case, layer_norm, params, shape, tokens

X = shape(4, 7, 32)  # batch, time, features: no two sizes are equal
D, H, HD, F = 32, 4, 8, 128


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


def _gru(p: Any, x: Any) -> Any:
    def cell(h: Any, x: Any) -> Any:
        a, b = jnp.split(x @ p["w"] + p["b"], 3, -1), jnp.split(h @ p["u"], 3, -1)
        reset, update = jax.nn.sigmoid(a[0] + b[0]), jax.nn.sigmoid(a[1] + b[1])
        new = jnp.tanh(a[2] + reset * b[2])
        h = (1 - update) * new + update * h
        return h, h

    return _out(p, lax.scan(cell, jnp.zeros((4, 16)), jnp.swapaxes(x, 0, 1))[1])


def _lstm(p: Any, x: Any) -> Any:
    def cell(state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(x @ p["w"] + h @ p["u"] + p["b"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((4, 16))
    return _out(p, lax.scan(cell, (start, start), jnp.swapaxes(x, 0, 1))[1])


def _lstm_joined(p: Any, x: Any) -> Any:
    """One weight for input and state; four kernels and biases joined before they are used."""

    def cell(state: Any, x: Any) -> Any:
        h, c = state
        kernel = jnp.concatenate([p["i"], p["f"], p["g"], p["o"]], -1)
        y = jnp.concatenate([x, h], -1) @ kernel + jnp.concatenate([p["bi"], p["bf"], p["bg"], p["bo"]])
        i, f, g, o = jnp.split(y, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((4, 16))
    return _out(p, lax.scan(cell, (start, start), jnp.swapaxes(x, 0, 1))[1])


def _gates(p: Any, x: Any) -> Any:
    return jax.nn.softmax(x @ p["router"])


def _experts(p: Any, x: Any) -> Any:
    h = jax.nn.gelu(jnp.einsum("btd,edf->ebtf", x, p["up"]) + p["up_bias"][:, None, None])
    y = jnp.einsum("ebtf,efd->ebtd", h, p["down"]) + p["down_bias"][:, None, None]
    return _out(p, jnp.einsum("ebtd,bte->btd", y, _gates(p, x)))


def _dispatched(p: Any, x: Any) -> Any:
    gates = _gates(p, x)
    chosen = jax.nn.one_hot(jnp.argmax(gates, -1), 3) * gates
    place = jax.nn.one_hot(jnp.cumsum(chosen > 0, 1), 5) * chosen[..., None]
    h = jax.nn.relu(jnp.einsum("becd,edf->becf", jnp.einsum("btec,btd->becd", place, x), p["up"]))
    return _out(p, jnp.einsum("btec,becd->btd", place, jnp.einsum("becf,efd->becd", h, p["down"])))


def _picked_experts(p: Any, x: Any) -> Any:
    best = jnp.argmax(_gates(p, x), -1)
    h = jax.nn.relu(jnp.einsum("btd,btdf->btf", x, p["up"][best]) + p["up_bias"][best])
    return _out(p, jnp.einsum("btf,btfd->btd", h, p["down"][best]))


def _ragged(p: Any, x: Any) -> Any:
    flat = x.reshape(28, D)
    best = jnp.argmax(_gates(p, flat), -1)
    order, sizes = jnp.argsort(best), jnp.bincount(best, length=3)
    h = jax.nn.relu(lax.ragged_dot(flat[order], p["up"], sizes))
    return _out(p, lax.ragged_dot(h, p["down"], sizes))


def _scanned(p: Any, x: Any) -> Any:
    @jax.checkpoint
    def block(x: Any, w: Any) -> Any:
        return x + jax.nn.gelu(layer_norm(x, w["gain"]) @ w["up"] + w["bias"]) @ w["down"], None

    return _out(p, lax.scan(block, x @ p["in"], p["layers"])[0])


def _scanned_second_axis(p: Any, x: Any) -> Any:
    def block(x: Any, w: Any) -> Any:
        return x + jax.nn.gelu(x @ w), None

    return _out(p, lax.scan(block, x, jnp.moveaxis(p["w"], 1, 0))[0])


def _nested_scan(p: Any, x: Any) -> Any:
    def layer(x: Any, w: Any) -> Any:
        return x + jnp.tanh(x @ w), None

    def group(x: Any, w: Any) -> Any:
        return lax.scan(layer, x, w)[0], None

    return _out(p, lax.scan(group, x, p["w"])[0])


def _fori(p: Any, x: Any) -> Any:
    return _out(p, lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x @ p["w"][i] + p["b"][i]), x))


def _unrolled(p: Any, x: Any) -> Any:
    for i in range(3):
        x = x + jnp.tanh(x @ p["w"][i] + p["b"][i])
    return _out(p, x)


def _while(p: Any, x: Any) -> Any:
    def body(state: Any) -> Any:
        i, x = state
        return i + 1, jnp.tanh(x @ p["w"])

    return _out(p, lax.while_loop(lambda state: (state[0] < 9) & (state[1].sum() < 1e3), body, (0, x))[1])


def _cond(p: Any, x: Any) -> Any:
    y = lax.cond(x.sum() > 0, lambda: jax.nn.relu(x @ p["a"]), lambda: jnp.tanh(x @ p["b"]))
    return _out(p, y)


def _shared_layers(p: Any, x: Any) -> Any:
    """ALBERT: one block used again and again."""

    def block(x: Any, _: Any) -> Any:
        return x + jax.nn.gelu(layer_norm(x, p["gain"]) @ p["up"]) @ p["down"], None

    return _out(p, lax.scan(block, x, length=6)[0])


def _ensemble(p: Any, x: Any) -> Any:
    def member(w: Any) -> Any:
        return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]

    return jax.vmap(member)(p)


def _lora(p: Any, x: Any) -> Any:
    return _out(p, jax.nn.relu(x @ (p["w"] + 0.5 * p["a"] @ p["b"])))


def _lora_apart(p: Any, x: Any) -> Any:
    return _out(p, jax.nn.relu(x @ p["w"] + x @ p["a"] @ p["b"]))


def _mamba(p: Any, x: Any) -> Any:
    z, u, b, c, dt = jnp.split(x @ p["in_proj"], [64, 128, 136, 144], -1)
    kernel = p["conv"]
    u = jax.nn.silu(lax.conv_general_dilated(u, kernel, (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=64) + p["conv_bias"])
    dt = jax.nn.softplus(dt + p["dt_bias"])
    decay = jnp.exp(-jnp.exp(p["A_log"]) * dt)

    def step(state: Any, now: Any) -> Any:
        decay, u, b, c = now
        state = decay[:, :, None, None] * state + u.reshape(4, 2, 32)[..., None] * b[:, None, None]
        return state, jnp.einsum("bhpn,bn->bhp", state, c).reshape(4, 64)

    y = lax.scan(step, jnp.zeros((4, 2, 32, 8)), tuple(jnp.swapaxes(v, 0, 1) for v in (decay, u, b, c)))[1]
    y = jnp.swapaxes(y, 0, 1) + u * jnp.repeat(p["D"], 32)
    return _out(p, y * jax.nn.silu(z))


def _flash(p: Any, x: Any) -> Any:
    """Attention in chunks over the keys, with running maxima, as flash attention does it."""
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


@jax.custom_vjp
def _custom(x: Any, w: Any) -> Any:
    return jnp.tanh(x @ w)


_custom.defvjp(lambda x, w: (_custom(x, w), (x, w)), lambda saved, g: (g @ saved[1].T, saved[0].reshape(-1, D).T @ g.reshape(-1, D)))


def _mixed(p: Any, x: Any) -> Any:
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), p)
    y = jax.nn.relu(x.astype(jnp.bfloat16) @ low["w"] + low["b"]) @ low["out"]
    return y.astype(jnp.float32)


def _dropout(p: Any, x: Any, key: Any) -> Any:
    y = jax.nn.relu(x @ p["w"])
    keep = jax.random.bernoulli(key, 0.9, y.shape)
    return _out(p, jnp.where(keep, y / 0.9, 0))


def _quantised(p: Any, x: Any) -> Any:
    weight = p["w"].astype(jnp.float32) * p["scale"]
    return _out(p, jax.nn.relu(x @ weight + p["b"]))


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
    """Shaw et al. 2018: rows looked up by distance meet the queries."""
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


def _images(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["stem"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = jax.nn.relu(y * p["gain"] + p["bias"])
    y = lax.conv_general_dilated(y, p["depth"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=8)
    y = lax.conv_general_dilated(y, p["point"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = lax.conv_general_dilated(y, p["grouped"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4)
    y = lax.conv_transpose(y, p["up"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.mean((1, 2)) @ p["head"]


def _nchw(p: Any, x: Any) -> Any:
    y = lax.conv(x, p["a"], (1, 1), "SAME") + p["bias"][:, None, None]
    return lax.conv(jax.nn.relu(y), p["b"], (2, 2), "VALID").reshape(2, -1) @ p["head"]


def _patches(p: Any, x: Any) -> Any:
    y = lax.conv_general_dilated(x, p["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")).reshape(2, 4, D)
    return _out(p, y + p["pos"])


def _volumes(p: Any, x: Any, series: Any) -> Any:
    y = lax.conv_general_dilated(x, p["volume"], (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))
    z = lax.conv_general_dilated(series, p["series"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return y.mean((1, 2, 3)) @ p["a"] + z.mean(1) @ p["b"]


def _layer_scale(p: Any, x: Any) -> Any:
    y = x @ p["in"]
    return _out(p, y + p["gamma"] * jnp.tanh(y @ p["w"]))


def _scalars(p: Any, x: Any) -> Any:
    return _out(p, p["scale"] * jnp.tanh(x @ p["w"]) + p["shift"])


def _mixer(p: Any, x: Any) -> Any:
    y = x @ p["in"]
    mixed = jnp.swapaxes(jax.nn.gelu(jnp.swapaxes(layer_norm(y, p["gain"]), 1, 2) @ p["tokens"] + p["token_bias"]), 1, 2)
    y = y + mixed
    return _out(p, y + jax.nn.gelu(y @ p["up"] + p["up_bias"]) @ p["down"])


def _summed(p: Any, x: Any) -> Any:
    weights = jax.nn.softmax((jnp.tanh(x @ p["w"]) * p["score"]).sum(-1))
    return _out(p, jnp.einsum("bt,btd->bd", weights, x))


def _moments(p: Any, x: Any, noise: Any) -> Any:
    mean, deviation = jnp.split(jnp.tanh(x @ p["w"]) @ p["moments"] + p["bias"], 2, -1)
    return _out(p, mean + jnp.exp(deviation) * noise)


def _lengths_of_one(p: Any, x: Any) -> Any:
    return jnp.tanh(x @ p["in"]) @ p["head"] + p["bias"]


def _square(p: Any, ids: Any) -> Any:
    """Every size is 16: no size tells one axis from another."""
    x = p["table"][ids] + p["pos"][:16]
    q, k, v = (y.reshape(16, 16, 4, 4) for y in jnp.split(layer_norm(x, p["gain"], p["shift"]) @ p["qkv"], 3, -1))
    x = x + attend(q, k, v).reshape(16, 16, 16) @ p["o"]
    return (x + jax.nn.relu(x @ p["up"] + p["b"]) @ p["down"]) @ p["head"]


OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
GAIN = ("Scale", (1, 1, D))
VECTOR = ("Bias", (1, 1, D))

CASES = [
    case("qkv in thirds", _thirds, params(qkv=(D, 96), bias=(96,), out=(D, 10)), X, rows={"qkv": ("Linear", (3, D, D)), "bias": ("Bias", (3, 1, D)), "out": OUT}),
    case("qkv per head", _per_head, params(qkv=(D, 96), bias=(96,), out=(D, 10)), X, rows={"qkv": ("Linear", (3, D, D)), "bias": ("Bias", (3, 1, D)), "out": OUT}),
    case("gate and up interleaved", _interleaved, params(gate_up=(D, 64), out=(D, 10)), X, rows={"gate_up": ("Linear", (2, D, D)), "out": OUT}),
    case("qkv as (3, d, h, k)", _stacked_qkv, params(qkv=(3, D, H, HD), out=(H, HD, 10)), X, rows={"qkv": ("Linear", (3, D, D)), "out": OUT}),
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
    case("rotary on half of a head", _half_rotary, params(q=(D, D), k=(D, D), v=(D, D), out=(D, 10)), X, rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "out": OUT}),
    case(
        "gru",
        _gru,
        params(w=(D, 48), u=(16, 48), b=(48,), out=(16, 10)),
        X,
        rows={"w": ("Linear", (3, 16, D)), "u": ("Linear", (3, 16, 16)), "b": ("Bias", (3, 1, 16)), "out": ("Linear", (1, 10, 16))},
    ),
    case(
        "lstm",
        _lstm,
        params(w=(D, 64), u=(16, 64), b=(64,), out=(16, 10)),
        X,
        rows={"w": ("Linear", (4, 16, D)), "u": ("Linear", (4, 16, 16)), "b": ("Bias", (4, 1, 16)), "out": ("Linear", (1, 10, 16))},
    ),
    case(
        "lstm of joined kernels",
        _lstm_joined,
        params(**{g: (D + 16, 16) for g in "ifgo"}, **{"b" + g: (16,) for g in "ifgo"}, out=(16, 10)),
        X,
        rows={**{g: ("Linear", (1, 16, D + 16)) for g in "ifgo"}, **{"b" + g: ("Bias", (1, 1, 16)) for g in "ifgo"}, "out": ("Linear", (1, 10, 16))},
    ),
    case(
        "experts",
        _experts,
        params(router=(D, 3), up=(3, D, F), up_bias=(3, F), down=(3, F, D), down_bias=(3, D), out=(D, 10)),
        X,
        rows={
            "router": ("Linear", (1, 3, D)),
            "up": ("Linear", (3, F, D)),
            "up_bias": ("Bias", (3, 1, F)),
            "down": ("Linear", (3, D, F)),
            "down_bias": ("Bias", (3, 1, D)),
            "out": OUT,
        },
    ),
    case(
        "experts with capacity",
        _dispatched,
        params(router=(D, 3), up=(3, D, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={"router": ("Linear", (1, 3, D)), "up": ("Linear", (3, F, D)), "down": ("Linear", (3, D, F)), "out": OUT},
    ),
    case(
        "experts by index",
        _picked_experts,
        params(router=(D, 3), up=(3, D, F), up_bias=(3, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={"router": ("Linear", (1, 3, D)), "up": ("Linear", (3, F, D)), "up_bias": ("Embed", (1, 3, F)), "down": ("Linear", (3, D, F)), "out": OUT},
        rules={"router": "linear io"},  # argmax alone has no gradient, and the program does use it
    ),
    case(
        "experts by ragged products",
        _ragged,
        params(router=(D, 3), up=(3, D, F), down=(3, F, D), out=(D, 10)),
        X,
        rows={"router": ("Linear", (1, 3, D)), "up": ("Linear", (3, F, D)), "down": ("Linear", (3, D, F)), "out": OUT},
    ),
    case(
        "scan over layers, recomputed",
        _scanned,
        {**params(**{"in": (D, 16)}, out=(16, 10)), "layers": params(gain=(5, 16), up=(5, 16, 64), bias=(5, 64), down=(5, 64, 16))},
        X,
        rows={
            "in": ("Linear", (1, 16, D)),
            "layers/gain": ("Scale", (5, 1, 16), 5),
            "layers/up": ("Linear", (5, 64, 16), 5),
            "layers/bias": ("Bias", (5, 1, 64), 5),
            "layers/down": ("Linear", (5, 16, 64), 5),
            "out": ("Linear", (1, 10, 16)),
        },
    ),
    case("scan over axis 1", _scanned_second_axis, params(w=(D, 5, D), out=(D, 10)), X, rows={"w": ("Linear", (5, D, D), 5), "out": OUT}),
    case("scan in a scan", _nested_scan, params(w=(2, 3, D, D), out=(D, 10)), X, rows={"w": ("Linear", (6, D, D), 6), "out": OUT}),
    case("loop over an index", _fori, params(w=(3, D, D), b=(3, D), out=(D, 10)), X, rows={"w": ("Linear", (3, D, D), 3), "b": ("Bias", (3, 1, D), 3), "out": OUT}),
    case("layers by index", _unrolled, params(w=(3, D, D), b=(3, D), out=(D, 10)), X, rows={"w": ("Linear", (3, D, D), 3), "b": ("Bias", (3, 1, D), 3), "out": OUT}),
    case("while", _while, params(w=(D, D), out=(D, 10)), X, rows={"w": LINEAR, "out": OUT}),
    case("cond", _cond, params(a=(D, D), b=(D, D), out=(D, 10)), X, rows={"a": LINEAR, "b": LINEAR, "out": OUT}),
    case("one block again and again", _shared_layers, params(gain=(D,), up=(D, F), down=(F, D), out=(D, 10)), X, rows={"gain": GAIN, "up": ("Linear", (1, F, D)), "down": ("Linear", (1, D, F)), "out": OUT}),
    case(
        "ensemble",
        _ensemble,
        params(**{"in": (6, D, 16)}, b=(6, 16), out=(6, 16, 10), c=(6, 10)),
        X,
        rows={"in": ("Linear", (6, 16, D)), "b": ("Bias", (6, 1, 16)), "out": ("Linear", (6, 10, 16)), "c": ("Bias", (6, 1, 10))},
    ),
    case("low rank in a sum", _lora, params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)), X, rows={"w": LINEAR, "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT}),
    case("low rank beside", _lora_apart, params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)), X, rows={"w": LINEAR, "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT}),
    case(
        "selective state space",
        _mamba,
        params(in_proj=(D, 146), conv=(4, 1, 64), conv_bias=(64,), dt_bias=(2,), A_log=(2,), D=(2,), out=(64, 10)),
        X,
        rows={
            "in_proj": ("Linear", ((1, 64, D), (1, 64, D), (1, 8, D), (1, 8, D), (1, 2, D))),
            "conv": ("Scale", (4, 1, 64)),
            "conv_bias": ("Bias", (1, 1, 64)),
            "dt_bias": ("Bias", (1, 1, 2)),
            "A_log": ("Scale", (1, 1, 2)),
            "D": ("Scale", (1, 1, 2)),
            "out": ("Linear", (1, 10, 64)),
        },
        rules={"A_log": "scale"},
    ),
    case("attention in chunks", _flash, params(q=(D, H, HD), k=(D, H, HD), v=(D, H, HD), out=(H, HD, 10)), shape(4, 8, D), rows={"q": LINEAR, "k": LINEAR, "v": LINEAR, "out": OUT}),
    case("custom_vjp", lambda p, x: _out(p, _custom(x, p["w"])), params(w=(D, D), out=(D, 10)), X, rows={"w": LINEAR, "out": OUT}),
    case("mixed precision", _mixed, params(w=(D, D), b=(D,), out=(D, 10)), X, rows={"w": LINEAR, "b": VECTOR, "out": OUT}),
    case("dropout", _dropout, params(w=(D, D), out=(D, 10)), X, jax.random.key(0), rows={"w": LINEAR, "out": OUT}),
    case(
        "quantised",
        _quantised,
        {**params(scale=(D,), b=(D,), out=(D, 10)), "w": shape(D, D, dtype="int8")},
        X,
        rows={"w": ("frozen",), "scale": GAIN, "b": VECTOR, "out": OUT},
    ),
    case("frozen by a rule", _lora, params(w=(D, D), a=(D, 2), b=(2, D), out=(D, 10)), X, rows={"w": ("frozen",), "a": ("Linear", (1, 2, D)), "b": ("Linear", (1, D, 2)), "out": OUT}, rules={"w": "frozen"}),
    case("tied", _tied, params(table=(50, D), pos=(9, D), w=(D, D)), tokens(3, 7), rows={"table": ("Embed+Linear", (1, 50, D)), "pos": ("Embed", (1, 9, D)), "w": LINEAR}),
    case("one-hot", _one_hot, params(table=(50, D), pos=(7, D), out=(D, 10)), tokens(3, 7), rows={"table": ("Embed", (1, 50, D)), "pos": ("Embed", (1, 7, D)), "out": OUT}),
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
    case("mask token", _mask_token, params(mask=(D,), **{"in": (D, D)}, out=(D, 10)), X, shape(4, 7, dtype="bool"), rows={"mask": ("Embed", (1, 1, D)), "in": LINEAR, "out": OUT}),
    case(
        "convolutions",
        _images,
        params(stem=(3, 3, 3, 8), gain=(8,), bias=(8,), depth=(5, 5, 1, 8), point=(1, 1, 8, 16), grouped=(3, 3, 4, 24), up=(2, 2, 24, 12), head=(12, 10)),
        shape(2, 8, 8, 3),
        rows={
            "stem": ("Conv2D", (9, 8, 3)),
            "gain": ("Scale", (1, 1, 8)),
            "bias": ("Bias", (1, 1, 8)),
            "depth": ("Scale", (25, 1, 8)),
            "point": ("Conv2D", (1, 16, 8)),
            "grouped": ("Conv2D", (36, 6, 4)),
            "up": ("Conv2D", (4, 12, 24)),
            "head": ("Linear", (1, 10, 12)),
        },
    ),
    case(
        "convolutions, channels first",
        _nchw,
        params(a=(6, 3, 3, 3), bias=(6,), b=(8, 6, 3, 3), head=(72, 10)),
        shape(2, 3, 8, 8),
        rows={"a": ("Conv2D", (9, 6, 3)), "bias": ("Bias", (1, 1, 6)), "b": ("Conv2D", (9, 8, 6)), "head": ("Linear", (1, 10, 72))},
    ),
    case("patches", _patches, params(patch=(4, 4, 3, D), pos=(1, 4, D), out=(D, 10)), shape(2, 8, 8, 3), rows={"patch": ("Linear", (1, D, 48)), "pos": ("Embed", (1, 4, D)), "out": OUT}),
    case(
        "convolutions in one and three dimensions",
        _volumes,
        params(volume=(3, 3, 3, 2, 6), series=(5, 4, 7), a=(6, 10), b=(7, 10)),
        shape(2, 4, 5, 6, 2),
        shape(2, 9, 4),
        rows={"volume": ("Conv2D", (27, 6, 2)), "series": ("Conv2D", (5, 7, 4)), "a": ("Linear", (1, 10, 6)), "b": ("Linear", (1, 10, 7))},
    ),
    case("layer scale", _layer_scale, params(gamma=(D,), w=(D, D), **{"in": (D, D)}, out=(D, 10)), X, rows={"gamma": GAIN, "w": LINEAR, "in": LINEAR, "out": OUT}),
    case("scalars", _scalars, params(scale=(), shift=(), w=(D, D), out=(D, 10)), X, rows={"scale": ("Scale", (1, 1, 1)), "shift": ("Bias", (1, 1, 1)), "w": LINEAR, "out": OUT}),
    case(
        "mixer",
        _mixer,
        params(**{"in": (D, D)}, gain=(D,), tokens=(7, 7), token_bias=(7,), up=(D, F), up_bias=(F,), down=(F, D), out=(D, 10)),
        X,
        rows={
            "in": LINEAR,
            "gain": GAIN,
            "tokens": ("Linear", (1, 7, 7)),
            "token_bias": ("Bias", (1, 1, 7)),
            "up": ("Linear", (1, F, D)),
            "up_bias": ("Bias", (1, 1, F)),
            "down": ("Linear", (1, D, F)),
            "out": OUT,
        },
    ),
    case("product and sum", _summed, params(w=(D, D), score=(D,), out=(D, 10)), X, rows={"w": LINEAR, "score": ("Linear", (1, 1, D)), "out": OUT}),
    case("mean and deviation", _moments, params(w=(D, D), moments=(D, 64), bias=(64,), out=(D, 10)), X, X, rows={"w": LINEAR, "moments": ("Linear", (2, D, D)), "bias": ("Bias", (2, 1, D)), "out": OUT}),
    case("one input, one output", _lengths_of_one, params(**{"in": (1, D)}, head=(D, 1), bias=(1,)), shape(4, 1), rows={"in": ("Linear", (1, D, 1)), "head": ("Linear", (1, 1, D)), "bias": ("Bias", (1, 1, 1))}),
    case(
        "all sizes equal",
        _square,
        params(table=(16, 16), pos=(16, 16), gain=(16,), shift=(16,), qkv=(16, 48), o=(16, 16), up=(16, 16), b=(16,), down=(16, 16), head=(16, 16)),
        tokens(16, 16),
        rows={
            "table": ("Embed", (1, 16, 16)),
            "pos": ("Embed", (1, 16, 16)),
            "gain": ("Scale", (1, 1, 16)),
            "shift": ("Bias", (1, 1, 16)),
            "qkv": ("Linear", (3, 16, 16)),
            **{name: ("Linear", (1, 16, 16)) for name in ("o", "up", "down", "head")},
            "b": ("Bias", (1, 1, 16)),
        },
    ),
]
