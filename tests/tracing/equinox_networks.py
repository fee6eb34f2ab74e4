"""Networks of Equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from trace_cases import Case, shape, tokens

KEYS = jax.random.split(jax.random.key(0), 8)


def abstract(make: Any, *arguments: Any, **keywords: Any) -> Any:
    """A module with shapes in place of arrays."""
    return eqx.filter_eval_shape(make, *arguments, **keywords)


class Reader(eqx.Module):
    table: eqx.nn.Embedding
    cls: jax.Array
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self) -> None:
        self.table, self.cls = eqx.nn.Embedding(20, 16, key=KEYS[0]), jnp.zeros((1, 16))
        self.norm = eqx.nn.LayerNorm(16)
        self.attention = eqx.nn.MultiheadAttention(4, 16, use_query_bias=True, key=KEYS[1])
        self.up, self.down = eqx.nn.Linear(16, 64, key=KEYS[2]), eqx.nn.Linear(64, 20, key=KEYS[3])

    def __call__(self, ids: Any) -> Any:
        x = jnp.concatenate([self.cls, jax.vmap(self.table)(ids)])
        y = jax.vmap(self.norm)(x)
        x = x + self.attention(y, y, y)
        return jax.vmap(lambda token: self.down(jax.nn.silu(self.up(token))))(x)


class Recurrent(eqx.Module):
    cell: Any
    head: eqx.nn.Linear

    def __call__(self, x: Any) -> Any:
        lstm = isinstance(self.cell, eqx.nn.LSTMCell)
        start = (jnp.zeros(8), jnp.zeros(8)) if lstm else jnp.zeros(8)
        state, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), start, x)
        return self.head(state[0] if lstm else state)


def recurrent(cell: Any) -> Recurrent:
    return Recurrent(cell(5, 8, key=KEYS[0]), eqx.nn.Linear(8, 3, key=KEYS[1]))


class Token(eqx.Module):
    """A network without a batch axis: one token is looked up alone."""

    table: eqx.nn.Embedding
    head: eqx.nn.Linear

    def __call__(self, token: Any) -> Any:
        return self.head(self.table(token))


def batched(module: Any, *inputs: Any) -> Any:
    params, static = eqx.partition(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    return lambda params, *inputs: jax.vmap(eqx.combine(params, static))(*inputs), params, *inputs


def stack() -> Any:
    layers = [
        eqx.nn.Conv2d(1, 8, 3, padding=1, key=KEYS[0]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(8, 8, 3, padding=1, groups=8, key=KEYS[1]),
        eqx.nn.ConvTranspose2d(8, 6, 2, stride=2, key=KEYS[2]),
        eqx.nn.GroupNorm(2, 6),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(6 * 256, 10, key=KEYS[3]),
    ]
    return eqx.nn.Sequential(layers)


def ensemble() -> Any:
    members = abstract(eqx.filter_vmap(lambda key: eqx.nn.MLP(7, 3, 16, 1, key=key)), jax.random.split(KEYS[0], 6))
    params, static = eqx.partition(members, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def apply(params: Any, x: Any) -> Any:
        def one(member: Any) -> Any:
            return jax.vmap(eqx.combine(member, static))(x)

        return eqx.filter_vmap(one)(params)

    return apply, params, shape(5, 7)


MLP = {
    "layers/0/weight": ("Linear", (1, 32, 64)),
    "layers/0/bias": ("Bias", (1, 1, 32)),
    "layers/1/weight": ("Linear", (1, 32, 32)),
    "layers/1/bias": ("Bias", (1, 1, 32)),
    "layers/2/weight": ("Linear", (1, 10, 32)),
    "layers/2/bias": ("Bias", (1, 1, 10)),
}
HEAD = {"head/weight": ("Linear", (1, 3, 8)), "head/bias": ("Bias", (1, 1, 3))}

CASES = [
    Case("equinox: mlp", lambda: (abstract(eqx.nn.MLP, 64, 10, 32, 2, key=KEYS[0]), shape(64)), MLP),
    Case("equinox: mlp in a batch", lambda: batched(abstract(eqx.nn.MLP, 64, 10, 32, 2, key=KEYS[0]), shape(4, 64)), MLP),
    Case(
        "equinox: attention",
        lambda: batched(abstract(Reader), tokens(3, 7)),
        {
            "table/weight": ("Embed", (1, 20, 16)),
            "cls": ("Embed", (1, 1, 16)),
            "norm/weight": ("Scale", (1, 1, 16)),
            "norm/bias": ("Bias", (1, 1, 16)),
            **{f"attention/{name}_proj/weight": ("Linear", (1, 16, 16)) for name in ("query", "key", "value", "output")},
            "attention/query_proj/bias": ("Bias", (1, 1, 16)),
            "up/weight": ("Linear", (1, 64, 16)),
            "up/bias": ("Bias", (1, 1, 64)),
            "down/weight": ("Linear", (1, 20, 64)),
            "down/bias": ("Bias", (1, 1, 20)),
        },
    ),
    Case(
        "equinox: convolutions",
        lambda: batched(abstract(stack), shape(4, 1, 8, 8)),
        {
            "layers/0/weight": ("Conv2D", (9, 8, 1)),
            "layers/0/bias": ("Bias", (1, 1, 8)),
            "layers/2/weight": ("Scale", (9, 1, 8)),
            "layers/2/bias": ("Bias", (1, 1, 8)),
            "layers/3/weight": ("Conv2D", (4, 6, 8)),
            "layers/3/bias": ("Bias", (1, 1, 6)),
            "layers/4/weight": ("Scale", (1, 1, 6)),
            "layers/4/bias": ("Bias", (1, 1, 6)),
            "layers/6/weight": ("Linear", (1, 10, 6 * 256)),
            "layers/6/bias": ("Bias", (1, 1, 10)),
        },
    ),
    Case(
        "equinox: gru",
        lambda: batched(abstract(recurrent, eqx.nn.GRUCell), shape(4, 6, 5)),
        {
            "cell/weight_ih": ("Linear", (3, 8, 5)),
            "cell/weight_hh": ("Linear", (3, 8, 8)),
            "cell/bias": ("Bias", (3, 1, 8)),
            "cell/bias_n": ("Bias", (1, 1, 8)),
            **HEAD,
        },
    ),
    Case(
        "equinox: lstm",
        lambda: (abstract(recurrent, eqx.nn.LSTMCell), shape(6, 5)),
        {"cell/weight_ih": ("Linear", (4, 8, 5)), "cell/weight_hh": ("Linear", (4, 8, 8)), "cell/bias": ("Bias", (4, 1, 8)), **HEAD},
    ),
    Case(
        "equinox: ensemble",
        ensemble,
        {
            "layers/0/weight": ("Linear", (6, 16, 7)),
            "layers/0/bias": ("Bias", (6, 1, 16)),
            "layers/1/weight": ("Linear", (6, 3, 16)),
            "layers/1/bias": ("Bias", (6, 1, 3)),
        },
    ),
    Case(
        "equinox: one token",
        lambda: (abstract(lambda: Token(eqx.nn.Embedding(20, 8, key=KEYS[0]), eqx.nn.Linear(8, 3, key=KEYS[1]))), tokens()),
        {"table/weight": ("Embed", (1, 20, 8)), **HEAD},
    ),
]
