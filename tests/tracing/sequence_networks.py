"""Recurrent cells, state spaces, linear attention, differential equations and graphs, in the four libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract, batched
from flax import nnx
from jax import lax
from language_networks import dense, linear, linens
from trace_cases import Case, case, layer_norm, params, shape, tokens
from vision_networks import weight

D = 32


class Cells(nn.Module):
    """Two directions of LSTMs, then minimal and simple cells, then a convolutional LSTM."""

    @nn.compact
    def __call__(self, x: Any, video: Any) -> Any:
        x = nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(6, name="there")), nn.RNN(nn.LSTMCell(6, name="back")))(x)
        x = nn.RNN(nn.MGUCell(8, name="minimal"))(x)
        x = nn.RNN(nn.SimpleCell(5, name="simple"))(x)
        y = nn.RNN(nn.ConvLSTMCell(4, (3, 3), name="conv"))(video)
        return nn.Dense(3, name="a")(x[:, -1]) + nn.Dense(3, name="b")(y[:, -1].mean((1, 2)))


class NnxCells(nnx.Module):
    """Cells of nnx: an LSTM with two kernels of four gates each, and a GRU."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(5, 8, rngs=rngs), rngs=rngs)
        self.gru = nnx.RNN(nnx.GRUCell(8, 6, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.gru(self.lstm(x))[:, -1])


def haiku_cells(x: Any) -> Any:
    core = hk.DeepRNN([hk.GRU(8), jax.nn.relu, hk.VanillaRNN(6)])
    y, _ = hk.dynamic_unroll(core, x, core.initial_state(4))
    return hk.Linear(3)(y[-1])


def haiku_video(x: Any) -> Any:
    core = hk.Conv2DLSTM((6, 6), 4, 3)
    y, _ = hk.dynamic_unroll(core, x, core.initial_state(2))
    return hk.Linear(3)(y[-1].mean((1, 2)))


class Both(eqx.Module):
    """An LSTM forward, an LSTM backward, both ends joined."""

    there: eqx.nn.LSTMCell
    back: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self) -> None:
        self.there, self.back = eqx.nn.LSTMCell(5, 8, key=KEYS[0]), eqx.nn.LSTMCell(5, 8, use_bias=False, key=KEYS[1])
        self.head = eqx.nn.Linear(16, 3, key=KEYS[2])

    def __call__(self, x: Any) -> Any:
        start = jnp.zeros(8), jnp.zeros(8)
        (a, _), _ = lax.scan(lambda state, x: (self.there(x, state), None), start, x)
        (b, _), _ = lax.scan(lambda state, x: (self.back(x, state), None), start, x, reverse=True)
        return self.head(jnp.concatenate([a, b]))


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


class Layers(eqx.Module):
    """Blocks made by ``filter_vmap`` and run by ``scan`` over their arrays."""

    blocks: Any
    head: eqx.nn.Linear

    def __init__(self) -> None:
        def block(key: Any) -> Any:
            a, b = jax.random.split(key)
            layers = eqx.nn.RMSNorm(8), eqx.nn.Linear(8, 24, key=a), eqx.nn.Lambda(jax.nn.gelu), eqx.nn.Linear(24, 8, key=b)
            return eqx.nn.Sequential(layers)

        self.blocks, self.head = eqx.filter_vmap(block)(jax.random.split(KEYS[0], 4)), eqx.nn.Linear(8, 3, key=KEYS[1])

    def __call__(self, x: Any) -> Any:
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        @jax.checkpoint
        def step(x: Any, arrays: Any) -> Any:
            return x + eqx.combine(arrays, static)(x), None

        return self.head(lax.scan(step, x, arrays)[0])


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


def messages(p: Any, nodes: Any, edges: Any, sender: Any, receiver: Any) -> Any:
    """A graph network: edges see both ends, nodes see the sum of their edges, a global value sees all."""
    h, e = nodes @ p["node_in"], edges @ p["edge_in"]
    for i in range(2):
        e = e + jax.nn.relu(jnp.concatenate([e, h[sender], h[receiver]], -1) @ p["edge"][i] + p["edge_bias"][i])
        total = jax.ops.segment_sum(e, receiver, num_segments=9)
        h = h + jax.nn.relu(jnp.concatenate([h, total], -1) @ p["node"][i])
    mean = jax.ops.segment_sum(h, jnp.zeros(9, int), 1) / 9
    return jnp.concatenate([mean, e.mean(0, keepdims=True)], -1) @ p["head"]


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


CELL = ("ii", "if", "ig", "io")
CASES = [
    Case(
        "linen: cells",
        linens(Cells(), shape(4, 6, 5), shape(4, 3, 6, 6, 2)),
        {
            **{f"there/i{g}/kernel": linear(6, 5) for g in "ifgo"},
            **{f"there/h{g}/kernel": linear(6, 6) for g in "ifgo"},
            **{f"there/h{g}/bias": ("Bias", (1, 1, 6)) for g in "ifgo"},
            **{f"back/i{g}/kernel": linear(6, 5) for g in "ifgo"},
            **{f"back/h{g}/kernel": linear(6, 6) for g in "ifgo"},
            **{f"back/h{g}/bias": ("Bias", (1, 1, 6)) for g in "ifgo"},
            **dense("minimal/if", 8, 12),
            "minimal/hf/kernel": linear(8, 8),
            **dense("minimal/in", 8, 12),
            **dense("minimal/hn", 8, 8),
            **dense("simple/i", 5, 8),
            "simple/h/kernel": linear(5, 5),
            "conv/ih/kernel": ("Conv2D", (36, 4, 2)),
            "conv/ih/bias": ("Bias", (4, 1, 4)),
            "conv/hh/kernel": ("Conv2D", (36, 4, 4)),
            "conv/hh/bias": ("Bias", (4, 1, 4)),
            **dense("a", 3, 5),
            **dense("b", 3, 4),
        },
    ),
    Case(
        "nnx: cells",
        lambda: (nnx.eval_shape(NnxCells), shape(4, 6, 5)),
        {
            "lstm/cell/dense_i/kernel": linear(8, 5, 4),
            "lstm/cell/dense_h/kernel": linear(8, 8, 4),
            "lstm/cell/dense_h/bias": ("Bias", (4, 1, 8)),
            "gru/cell/dense_i/kernel": linear(6, 8, 3),
            "gru/cell/dense_i/bias": ("Bias", (3, 1, 6)),
            "gru/cell/dense_h/kernel": linear(6, 6, 3),
            **dense("head", 3, 6),
        },
    ),
    Case(
        "haiku: cells",
        lambda: (hk.transform(haiku_cells), shape(6, 4, 5)),
        {
            "gru/w_i": linear(8, 5, 3),
            "gru/w_h": linear(8, 8, 3),
            "gru/b": ("Bias", (3, 1, 8)),
            "vanilla_rnn/linear/w": linear(6, 8),
            "vanilla_rnn/linear/b": ("Bias", (1, 1, 6)),
            "vanilla_rnn/linear_1/w": linear(6, 6),
            "vanilla_rnn/linear_1/b": ("Bias", (1, 1, 6)),
            "linear/w": linear(3, 6),
            "linear/b": ("Bias", (1, 1, 3)),
        },
    ),
    Case(
        "haiku: video",
        lambda: (hk.transform(haiku_video), shape(5, 2, 6, 6, 3)),
        {
            "conv2_dlstm/input_to_hidden/w": ("Conv2D", (36, 4, 3)),
            "conv2_dlstm/input_to_hidden/b": ("Bias", (4, 1, 4)),
            "conv2_dlstm/hidden_to_hidden/w": ("Conv2D", (36, 4, 4)),
            "conv2_dlstm/hidden_to_hidden/b": ("Bias", (4, 1, 4)),
            "linear/w": linear(3, 4),
            "linear/b": ("Bias", (1, 1, 3)),
        },
    ),
    Case(
        "equinox: both directions",
        lambda: batched(abstract(Both), shape(4, 6, 5)),
        {
            "there/weight_ih": linear(8, 5, 4),
            "there/weight_hh": linear(8, 8, 4),
            "there/bias": ("Bias", (4, 1, 8)),
            "back/weight_ih": linear(8, 5, 4),
            "back/weight_hh": linear(8, 8, 4),
            **weight("head", 3, 16),
        },
    ),
    Case(
        "equinox: flow",
        lambda: (abstract(Flow), shape(4)),
        {**weight("inner", 8, 4), **weight("field/layers/0", 16, 9), **weight("field/layers/1", 8, 16), **weight("outer", 2, 8)},
    ),
    Case(
        "equinox: scanned blocks",
        lambda: (abstract(Layers), shape(8)),
        {
            "blocks/layers/0/weight": ("Scale", (4, 1, 8), 4),
            "blocks/layers/0/bias": ("Bias", (4, 1, 8), 4),
            "blocks/layers/1/weight": ("Linear", (4, 24, 8), 4),
            "blocks/layers/1/bias": ("Bias", (4, 1, 24), 4),
            "blocks/layers/3/weight": ("Linear", (4, 8, 24), 4),
            "blocks/layers/3/bias": ("Bias", (4, 1, 8), 4),
            **weight("head", 3, 8),
        },
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
        "messages on a graph",
        messages,
        params(node_in=(6, D), edge_in=(3, D), edge=(2, 96, D), edge_bias=(2, D), node=(2, 64, D), head=(64, 2)),
        shape(9, 6),
        shape(20, 3),
        tokens(20),
        tokens(20),
        rows={
            "node_in": linear(D, 6),
            "edge_in": linear(D, 3),
            "edge": ("Linear", (2, D, 96), 2),
            "edge_bias": ("Bias", (2, 1, D), 2),
            "node": ("Linear", (2, D, 64), 2),
            "head": linear(2, 64),
        },
    ),
    case(
        "equilibrium",
        equilibrium,
        params(w=(D, D), b=(D,), **{"in": (6, D)}, out=(D, 10)),
        shape(4, 7, 6),
        rows={"w": linear(D, D), "b": ("Bias", (1, 1, D)), "in": linear(D, 6), "out": linear(10, D)},
    ),
]
