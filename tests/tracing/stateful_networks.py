"""State spaces, linear attention, attention by blocks, differential equations and fixed points."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from jax import lax
from trace_cases import Case, case, layer_norm, params, shape, tokens
from trace_rows import linear
from vision_networks import weight

D = 32


class Flow(eqx.Module):
    """A differential equation by Runge and Kutta in a while loop; time is joined with the state."""

    inner: eqx.nn.Linear
    field: eqx.nn.MLP
    outer: eqx.nn.Linear

    def __init__(self) -> None:
        self.inner, self.outer = eqx.nn.Linear(4, 8, key=KEYS[0]), eqx.nn.Linear(8, 2, key=KEYS[1])
        self.field = eqx.nn.MLP(9, 8, 16, 1, activation=jax.nn.softplus, key=KEYS[2])

    def __call__(self, x: Any) -> Any:
        def slope(t: Any, y: Any) -> Any:
            return self.field(jnp.concatenate([y, t[None]]))

        def step(state: Any) -> Any:
            t, y = state
            a = slope(t, y)
            b = slope(t + 0.05, y + 0.05 * a)
            return t + 0.1, y + 0.1 * b

        return self.outer(lax.while_loop(lambda state: state[0] < 1, step, (jnp.zeros(()), self.inner(x)))[1])


def diagonal_space(p: Any, x: Any) -> Any:
    """S4D: a diagonal recurrence by its convolution kernel, through Fourier transforms of the data; all its parameters by rules."""
    u = layer_norm(x @ p["in"], p["gain"])
    step = jnp.exp(p["log_step"])
    pole = -jnp.exp(p["log_real"]) + 1j * p["imaginary"]
    c = p["c"][..., 0] + 1j * p["c"][..., 1]
    kernel = (
        2
        * jnp.einsum(
            "hn,hnl->hl", c * (jnp.exp(pole * step[:, None]) - 1) / pole, jnp.exp((pole * step[:, None])[..., None] * jnp.arange(7))
        ).real
    )
    y = jnp.fft.irfft(jnp.fft.rfft(jnp.swapaxes(u, 1, 2), 14) * jnp.fft.rfft(kernel, 14), 14)[..., :7]
    y = jnp.swapaxes(y, 1, 2) + u * p["d"]
    a, b = jnp.split(jax.nn.gelu(y) @ p["out"] + p["out_bias"], 2, -1)
    return a * jax.nn.sigmoid(b) @ p["head"]


def mamba_one(p: Any, x: Any) -> Any:
    """The first Mamba: a matrix of decays, a low-rank step size, a causal filter, in a block that is scanned."""

    def block(x: Any, w: Any) -> Any:
        u, z = jnp.split(layer_norm(x, w["norm"]) @ w["in_proj"], 2, -1)
        u = jax.nn.silu(
            lax.conv_general_dilated(u, w["conv"], (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=48)
            + w["conv_bias"]
        )
        dt, b, c = jnp.split(u @ w["x_proj"], [4, 12], -1)
        dt = jax.nn.softplus(dt @ w["dt_proj"] + w["dt_bias"])
        decay = jnp.exp(dt[..., None] * -jnp.exp(w["A_log"]))
        drive = (dt * u)[..., None] * b[:, :, None]
        _, state = lax.associative_scan(lambda m, n: (m[0] * n[0], n[0] * m[1] + n[1]), (decay, drive), axis=1)
        y = jnp.einsum("btdn,btn->btd", state, c) + u * w["D"]
        return x + y * jax.nn.silu(z) @ w["out_proj"], None

    return lax.scan(block, p["embed"][x], p["layers"])[0] @ p["embed"].T


def linear_attention(p: Any, x: Any) -> Any:
    """Retention: a state for each head decays by a constant and is read by the queries; group norm over heads; a gate."""
    q, k, v = (jnp.einsum("btd,dhk->tbhk", x, p[name]) for name in "qkv")
    decay = 1 - 2.0 ** (-5 - jnp.arange(4.0))

    def step(state: Any, now: Any) -> Any:
        q, k, v = now
        state = decay[:, None, None] * state + k[..., None] * v[..., None, :]
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    y = jnp.swapaxes(lax.scan(step, jnp.zeros((4, 4, 8, 8)), (q, k, v))[1], 0, 1)
    y = layer_norm(y).reshape(4, 7, D) * p["gain"]
    return (jax.nn.silu(x @ p["g"]) * y) @ p["o"]


def gated_delta(p: Any, x: Any) -> Any:
    """Gated delta rule: write strengths and decays for each head from two small layers, one with a bias and a rule for its scale."""
    q, k, v = jnp.split(x @ p["qkv"], [16, 32], -1)
    q, k, v = (jnp.moveaxis(y.reshape(4, 7, 4, -1), 1, 0) for y in (q, k, v))
    beta = jnp.moveaxis(jax.nn.sigmoid(x @ p["beta"]), 1, 0)
    alpha = jnp.moveaxis(jnp.exp(-jnp.exp(p["A_log"]) * jax.nn.softplus(x @ p["alpha"] + p["dt_bias"])), 1, 0)

    def step(state: Any, now: Any) -> Any:
        q, k, v, a, b = now
        state = state * a[..., None, None]
        wrong = v - jnp.einsum("bhk,bhkv->bhv", k, state)
        state = state + jnp.einsum("bhk,bhv->bhkv", k, b[..., None] * wrong)
        return state, jnp.einsum("bhk,bhkv->bhv", q, state)

    y = lax.scan(step, jnp.zeros((4, 4, 4, 8)), (q, k, v, alpha, beta))[1]
    return jnp.moveaxis(y, 0, 1).reshape(4, 7, D) @ p["o"]


def flash(p: Any, x: Any) -> Any:
    """Attention by blocks of queries and keys, two nested loops with places that the program computes."""
    q, k, v = (jnp.einsum("btd,dhk->bhtk", x, p[name]) for name in "qkv")

    def rows(i: Any, out: Any) -> Any:
        now = lax.dynamic_slice_in_dim(q, i * 4, 4, 2)

        def columns(state: Any) -> Any:
            j, top, total, sums = state
            keys, values = (lax.dynamic_slice_in_dim(y, j * 4, 4, 2) for y in (k, v))
            logits = jnp.einsum("bhtk,bhsk->bhts", now, keys)
            new = jnp.maximum(top, logits.max(-1))
            weights, scale = jnp.exp(logits - new[..., None]), jnp.exp(top - new)
            sums = sums * scale[..., None] + jnp.einsum("bhts,bhsk->bhtk", weights, values)
            return j + 1, new, total * scale + weights.sum(-1), sums

        start = 0, jnp.full((4, 4, 4), -jnp.inf), jnp.zeros((4, 4, 4)), jnp.zeros((4, 4, 4, 8))
        _, _, total, sums = lax.while_loop(lambda state: state[0] < 2, columns, start)
        return lax.dynamic_update_slice_in_dim(out, sums / total[..., None], i * 4, 2)

    y = lax.fori_loop(0, 2, rows, jnp.zeros((4, 4, 8, 8)))
    return jnp.einsum("bhtk,hkd->btd", y, p["o"])


def equilibrium(p: Any, x: Any) -> Any:
    """A fixed point of one layer by iteration; the gradient is taken at the fixed point, with a custom rule."""

    @jax.custom_vjp
    def solve(w: Any, drive: Any) -> Any:
        def more(state: Any) -> Any:
            return (jnp.abs(state[0] - state[1]).max() > 1e-4) & (state[2] < 50)

        def step(state: Any) -> Any:
            return jnp.tanh(state[0] @ w + drive), state[0], state[2] + 1

        return lax.while_loop(more, step, (jnp.tanh(drive), jnp.zeros_like(drive), 0))[0]

    def forward(w: Any, drive: Any) -> Any:
        made = solve(w, drive)
        return made, (w, made)

    def backward(saved: Any, g: Any) -> Any:
        _, made = saved
        inner = g * (1 - made**2)
        return jnp.einsum("btd,bte->de", made, inner), inner

    solve.defvjp(forward, backward)
    return solve(p["w"], x @ p["in"] + p["b"]) @ p["out"]


CASES = [
    Case(
        "equinox: flow",
        lambda: (abstract(Flow), shape(4)),
        {**weight("inner", 8, 4), **weight("field/layers/0", 16, 9), **weight("field/layers/1", 8, 16), **weight("outer", 2, 8)},
    ),
    Case(
        "diagonal state space",
        lambda: (
            diagonal_space,
            params(
                **{"in": (6, D)},
                gain=(D,),
                log_step=(D,),
                log_real=(D, 4),
                imaginary=(D, 4),
                c=(D, 4, 2),
                d=(D,),
                out=(D, 64),
                out_bias=(64,),
                head=(D, 10),
            ),
            shape(4, 7, 6),
        ),
        {
            "in": linear(D, 6),
            "gain": ("Scale", (1, 1, D)),
            "log_step": ("Scale", (1, 1, D)),
            "log_real": ("Scale", (1, 1, 128)),
            "imaginary": ("Scale", (1, 1, 128)),
            "c": ("Scale", (1, 1, 256)),
            "d": ("Scale", (1, 1, D)),
            "out": linear(D, D, 2),
            "out_bias": ("Bias", (2, 1, D)),
            "head": linear(10, D),
        },
        rules={"{log_step,log_real,imaginary,c}": "scale"},
        refused={
            "log_step": "the program takes exp of the parameter itself",
            "log_real": "the program takes exp of the parameter itself",
        },
    ),
    Case(
        "first mamba, scanned",
        lambda: (
            mamba_one,
            {
                **params(embed=(50, 24)),
                "layers": params(
                    norm=(3, 24),
                    in_proj=(3, 24, 96),
                    conv=(3, 4, 1, 48),
                    conv_bias=(3, 48),
                    x_proj=(3, 48, 20),
                    dt_proj=(3, 4, 48),
                    dt_bias=(3, 48),
                    A_log=(3, 48, 8),
                    D=(3, 48),
                    out_proj=(3, 48, 24),
                ),
            },
            tokens(4, 7),
        ),
        {
            "embed": ("Embed+Linear", (1, 50, 24)),
            "layers/norm": ("Scale", (3, 1, 24), 3),
            "layers/in_proj": ("Linear", (6, 48, 24), 3),
            "layers/conv": ("Scale", (12, 1, 48), 3),
            "layers/conv_bias": ("Bias", (3, 1, 48), 3),
            "layers/x_proj": ("Linear", ((3, 4, 48), (3, 8, 48), (3, 8, 48)), 3),
            "layers/dt_proj": ("Linear", (3, 48, 4), 3),
            "layers/dt_bias": ("Bias", (3, 1, 48), 3),
            "layers/A_log": ("Scale", (3, 1, 384), 3),
            "layers/D": ("Scale", (3, 1, 48), 3),
            "layers/out_proj": ("Linear", (3, 24, 48), 3),
        },
        rules={"**/A_log": "scale"},
        refused={"layers/A_log": "the program takes exp of the parameter itself"},
    ),
    case(
        "retention",
        linear_attention,
        params(q=(D, 4, 8), k=(D, 4, 8), v=(D, 4, 8), gain=(D,), g=(D, D), o=(D, 10)),
        shape(4, 7, D),
        rows={**dict.fromkeys("qkvg", linear(D, D)), "gain": ("Scale", (1, 1, D)), "o": linear(10, D)},
    ),
    Case(
        "gated delta rule",
        lambda: (
            gated_delta,
            params(qkv=(D, 64), beta=(D, 4), alpha=(D, 4), dt_bias=(4,), A_log=(4,), o=(D, 10)),
            shape(4, 7, D),
        ),
        {
            "qkv": ("Linear", ((1, 16, D), (1, 16, D), (1, 32, D))),
            "beta": linear(4, D),
            "alpha": linear(4, D),
            "dt_bias": ("Bias", (1, 1, 4)),
            "A_log": ("Scale", (1, 1, 4)),
            "o": linear(10, D),
        },
        rules={"A_log": "scale"},
        refused={"A_log": "the program takes exp of the parameter itself"},
    ),
    case(
        "attention by blocks in while loops",
        flash,
        params(q=(D, 4, 8), k=(D, 4, 8), v=(D, 4, 8), o=(4, 8, 10)),
        shape(4, 8, D),
        rows={**dict.fromkeys("qkv", linear(D, D)), "o": linear(10, D)},
    ),
    case(
        "equilibrium",
        equilibrium,
        params(w=(D, D), b=(D,), **{"in": (6, D)}, out=(D, 10)),
        shape(4, 7, 6),
        rows={"w": linear(D, D), "b": ("Bias", (1, 1, D)), "in": linear(D, 6), "out": linear(10, D)},
    ),
]
