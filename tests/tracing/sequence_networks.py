"""Recurrent cells, scanned blocks and graphs, in the four libraries."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract, batched
from flax import nnx
from flax_networks import linens
from jax import lax
from trace_cases import Case, case, params, shape, tokens
from trace_rows import dense, linear
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


def messages(p: Any, nodes: Any, edges: Any, sender: Any, receiver: Any) -> Any:
    """A graph network: edges see both ends, nodes see the sum of their edges, a global value sees all."""
    h, e = nodes @ p["node_in"], edges @ p["edge_in"]
    for i in range(2):
        e = e + jax.nn.relu(jnp.concatenate([e, h[sender], h[receiver]], -1) @ p["edge"][i] + p["edge_bias"][i])
        total = jax.ops.segment_sum(e, receiver, num_segments=9)
        h = h + jax.nn.relu(jnp.concatenate([h, total], -1) @ p["node"][i])
    mean = jax.ops.segment_sum(h, jnp.zeros(9, int), 1) / 9
    return jnp.concatenate([mean, e.mean(0, keepdims=True)], -1) @ p["head"]


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
]
