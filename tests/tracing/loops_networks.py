"""Recurrent cells, stacks, loops and branches, in plain JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from trace_cases import case, layer_norm, params, shape

X = shape(4, 7, 32)  # batch, time, features: no two sizes are equal
D, H, HD, F = 32, 4, 8, 128
OUT = ("Linear", (1, 10, D))
LINEAR = ("Linear", (1, D, D))
GAIN = ("Scale", (1, 1, D))
VECTOR = ("Bias", (1, 1, D))


def _out(p: Any, y: Any) -> Any:
    return y @ p["out"]


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
    """One weight for input and state; four kernels and biases are joined before use."""

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
    """ALBERT: one block is used repeatedly."""

    def block(x: Any, _: Any) -> Any:
        return x + jax.nn.gelu(layer_norm(x, p["gain"]) @ p["up"]) @ p["down"], None

    return _out(p, lax.scan(block, x, length=6)[0])


def _ensemble(p: Any, x: Any) -> Any:
    def member(w: Any) -> Any:
        return jax.nn.relu(x @ w["in"] + w["b"]) @ w["out"] + w["c"]

    return jax.vmap(member)(p)


def _mamba(p: Any, x: Any) -> Any:
    z, u, b, c, dt = jnp.split(x @ p["in_proj"], [64, 128, 136, 144], -1)
    kernel = p["conv"]
    u = jax.nn.silu(
        lax.conv_general_dilated(u, kernel, (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=64)
        + p["conv_bias"]
    )
    dt = jax.nn.softplus(dt + p["dt_bias"])
    decay = jnp.exp(-jnp.exp(p["A_log"]) * dt)

    def step(state: Any, now: Any) -> Any:
        decay, u, b, c = now
        state = decay[:, :, None, None] * state + u.reshape(4, 2, 32)[..., None] * b[:, None, None]
        return state, jnp.einsum("bhpn,bn->bhp", state, c).reshape(4, 64)

    y = lax.scan(step, jnp.zeros((4, 2, 32, 8)), tuple(jnp.swapaxes(v, 0, 1) for v in (decay, u, b, c)))[1]
    y = jnp.swapaxes(y, 0, 1) + u * jnp.repeat(p["D"], 32)
    return _out(p, y * jax.nn.silu(z))


CASES = [
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
        params(**dict.fromkeys("ifgo", (D + 16, 16)), **{"b" + g: (16,) for g in "ifgo"}, out=(16, 10)),
        X,
        rows={
            **dict.fromkeys("ifgo", ("Linear", (1, 16, D + 16))),
            **{"b" + g: ("Bias", (1, 1, 16)) for g in "ifgo"},
            "out": ("Linear", (1, 10, 16)),
        },
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
    case(
        "loop over an index",
        _fori,
        params(w=(3, D, D), b=(3, D), out=(D, 10)),
        X,
        rows={"w": ("Linear", (3, D, D), 3), "b": ("Bias", (3, 1, D), 3), "out": OUT},
    ),
    case(
        "layers by index",
        _unrolled,
        params(w=(3, D, D), b=(3, D), out=(D, 10)),
        X,
        rows={"w": ("Linear", (3, D, D), 3), "b": ("Bias", (3, 1, D), 3), "out": OUT},
    ),
    case("while", _while, params(w=(D, D), out=(D, 10)), X, rows={"w": LINEAR, "out": OUT}),
    case("cond", _cond, params(a=(D, D), b=(D, D), out=(D, 10)), X, rows={"a": LINEAR, "b": LINEAR, "out": OUT}),
    case(
        "one block again and again",
        _shared_layers,
        params(gain=(D,), up=(D, F), down=(F, D), out=(D, 10)),
        X,
        rows={"gain": GAIN, "up": ("Linear", (1, F, D)), "down": ("Linear", (1, D, F)), "out": OUT},
    ),
    case(
        "ensemble",
        _ensemble,
        params(**{"in": (6, D, 16)}, b=(6, 16), out=(6, 16, 10), c=(6, 10)),
        X,
        rows={"in": ("Linear", (6, 16, D)), "b": ("Bias", (6, 1, 16)), "out": ("Linear", (6, 10, 16)), "c": ("Bias", (6, 1, 10))},
    ),
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
]
