"""Shards, ensembles, experts and stacks, and weights with unusual axes, in the four libraries."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from equinox_networks import KEYS, abstract
from flax import nnx
from flax_networks import linen
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from trace_cases import Case, attend, case, layer_norm, params, shape, tokens
from trace_rows import dense, linear, norm

D = 32


X = shape(4, 7, D)


MESH = Mesh(jax.devices()[:1], ("model",))
if hasattr(jax, "shard_map"):
    shard_map: Any = jax.shard_map
else:  # JAX 0.6.0
    from jax.experimental.shard_map import shard_map


def sharded(p: Any, x: Any) -> Any:
    """A layer cut over devices: columns of the first weight, rows of the second, and a sum over devices."""
    specs = {"up": PartitionSpec(None, "model"), "bias": PartitionSpec("model"), "down": PartitionSpec("model", None)}

    @partial(shard_map, mesh=MESH, in_specs=(specs, PartitionSpec()), out_specs=PartitionSpec())
    def layer(w: Any, x: Any) -> Any:
        return lax.psum(jax.nn.gelu(x @ w["up"] + w["bias"]) @ w["down"], "model")

    y = layer({name: p[name] for name in specs}, x)
    return layer_norm(x + y, p["gain"]) @ p["out"]


def constrained(p: Any, x: Any) -> Any:
    """Arrays are told where to lie; weights as well as data."""
    here = NamedSharding(MESH, PartitionSpec(None, "model"))
    up = lax.with_sharding_constraint(p["up"], here)
    y = lax.with_sharding_constraint(jax.nn.gelu(x @ up), NamedSharding(MESH, PartitionSpec()))
    return jax.checkpoint(jax.named_call(lambda y: y @ p["down"]), policy=jax.checkpoint_policies.nothing_saveable)(y)


def mixture_of_depths(p: Any, x: Any) -> Any:
    """Half of the tokens are chosen by a router, pass a layer, and are written back."""
    score = x @ p["router"]
    best, places = lax.top_k(score[..., 0], 3)
    chosen = jnp.take_along_axis(x, places[..., None], 1)
    y = jax.nn.gelu(chosen @ p["up"]) @ p["down"] * jax.nn.sigmoid(best)[..., None]
    return x.at[jnp.arange(4)[:, None], places].add(y) @ p["out"]


def ensembles(p: Any, x: Any) -> Any:
    """Three seeds by two tasks, one map in the other; the first layer is shared by the tasks."""

    def seed(w: Any) -> Any:
        h = jax.nn.relu(x @ w["shared"] + w["b"])
        return jax.vmap(lambda head: h @ head["w"] + head["b"])(w["heads"])

    return jax.vmap(seed)(p)


def last_layer_of_each_task(p: Any, x: Any, task: Any) -> Any:
    """The head of a task is chosen by an index for each example."""
    y = jnp.tanh(x @ p["in"])
    return jnp.einsum("bd,bdo->bo", y, p["heads"][task])


class Gemma(nnx.Module):
    """Weights of einsums: queries, keys and values (3, heads, d, size), an output (heads, size, d), gates (2, d, f)."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.qkv = nnx.Einsum("btd,sndh->sbtnh", (3, 4, D, 8), rngs=rngs)
        self.out = nnx.Einsum("btnh,nhd->btd", (4, 8, D), rngs=rngs)
        self.gates = nnx.Param(jnp.zeros((2, D, 48)))
        self.down = nnx.Param(jnp.zeros((48, D)))
        self.scale = nnx.Param(jnp.zeros(D))

    def __call__(self, x: Any) -> Any:
        y = x * lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (1 + self.scale[...])
        q, k, v = self.qkv(y)
        x = x + self.out(attend(q, k, v))
        return x + jnp.dot(nnx.gelu(jnp.dot(x, self.gates[0])) * jnp.dot(x, self.gates[1]), self.down[...])


class General(nn.Module):
    """DenseGeneral with axes in the middle, with batch axes, and an attention over two axes."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.DenseGeneral((3, 5), axis=(1, -1), name="middle")(x)
        y = nn.DenseGeneral(6, axis=-1, batch_dims=(0,), name="each")(nn.relu(y))
        return nn.DenseGeneral(4, axis=(1, 2, 3), name="all")(y)


class Partitioned(nn.Module):
    """Parameters boxed with the names of their axes, under a scan that adds one."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        block = nn.scan(
            PartitionedBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return nn.Dense(10, name="head")(block(name="blocks")(x, None)[0])


class PartitionedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        made = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "mlp"))
        y = nn.Dense(48, kernel_init=made, name="up")(x)
        return x + nn.Dense(D, kernel_init=made, name="down")(nn.relu(y)), None


class Expert(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(D, name="down")(nn.gelu(nn.Dense(48, name="up")(x)))


class SoftExperts(nn.Module):
    """Soft experts: slots are mixtures of tokens; the experts are a module under ``vmap``; a residual scan around it."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        scores = jnp.einsum("btd,des->btes", x, self.param("slots", nn.initializers.normal(), (D, 3, 2)))
        inputs = jnp.einsum("btd,btes->ebsd", x, nn.softmax(scores, axis=1))
        experts = nn.vmap(Expert, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=0, out_axes=0)(name="experts")
        combined = jnp.einsum("ebsd,btes->btd", experts(inputs), nn.softmax(scores.reshape(*x.shape[:2], 6)).reshape(scores.shape))
        return nn.Dense(5, name="head")(x + combined)


class Dropped(nnx.Module):
    """Dropout in two places with streams of keys, under remat, in a stack made by vmap."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0, dropout=1)

        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make(rngs: nnx.Rngs) -> Any:
            return DroppedBlock(rngs)

        self.blocks, self.head = make(rngs), nnx.Linear(D, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        @nnx.remat
        def run(block: Any, x: Any) -> Any:
            return block(x)

        return self.head(run(self.blocks, x))


class DroppedBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm, self.drop = nnx.LayerNorm(D, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)
        self.up, self.down = nnx.Linear(D, 48, rngs=rngs), nnx.Linear(48, D, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return x + self.drop(self.down(self.drop(nnx.gelu(self.up(self.norm(x))))))


class Tied(eqx.Module):
    """Equinox's own way to share an array between an embedding and a linear layer."""

    shared: eqx.nn.Shared

    def __init__(self) -> None:
        modules = eqx.nn.Embedding(20, 8, key=KEYS[0]), eqx.nn.Linear(8, 20, use_bias=False, key=KEYS[1])
        self.shared = eqx.nn.Shared(modules, lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, ids: Any) -> Any:
        embed, head = self.shared()
        return jax.vmap(head)(jnp.tanh(jax.vmap(embed)(ids)))


def haiku_transformer(ids: Any) -> Any:
    x = hk.Embed(50, 16, lookup_style="ONE_HOT")(ids)

    def block(x: Any) -> Any:
        y = hk.LayerNorm(-1, True, True)(x)
        x = x + hk.MultiHeadAttention(4, 4, w_init=hk.initializers.VarianceScaling(), model_size=16)(y, y, y)
        return x + hk.nets.MLP([64, 16], activation=jax.nn.gelu)(hk.LayerNorm(-1, True, True)(x))

    return hk.Linear(50, with_bias=False)(hk.experimental.layer_stack(3)(block)(x))


STACK = "__layer_stack_no_per_layer/"


def stacked(rows: dict[str, Any], depth: int) -> dict[str, Any]:
    """The rows of one block as those of a stack."""
    return {path: (kind, (depth * blocks[0], *blocks[1:]), depth) for path, (kind, blocks) in rows.items()}


CASES = [
    case(
        "shards",
        sharded,
        params(up=(D, 48), bias=(48,), down=(48, D), gain=(D,), out=(D, 10)),
        X,
        rows={
            "up": linear(48, D),
            "bias": ("Bias", (1, 1, 48)),
            "down": linear(D, 48),
            "gain": ("Scale", (1, 1, D)),
            "out": linear(10, D),
        },
    ),
    case("placed", constrained, params(up=(D, 48), down=(48, D)), X, rows={"up": linear(48, D), "down": linear(D, 48)}),
    case(
        "mixture of depths",
        mixture_of_depths,
        params(router=(D, 1), up=(D, 48), down=(48, D), out=(D, 10)),
        X,
        rows={"router": linear(1, D), "up": linear(48, D), "down": linear(D, 48), "out": linear(10, D)},
    ),
    case(
        "seeds by tasks",
        ensembles,
        {**params(shared=(3, D, 16), b=(3, 16)), "heads": params(w=(3, 2, 16, 5), b=(3, 2, 5))},
        X,
        rows={
            "shared": linear(16, D, 3),
            "b": ("Bias", (3, 1, 16)),
            "heads/w": linear(10, 16, 3),  # nothing after the heads of one seed tells them from one wide head
            "heads/b": ("Bias", (3, 1, 10)),
        },
    ),
    case(
        "a head for each task",
        last_layer_of_each_task,
        params(**{"in": (6, D)}, heads=(5, D, 3)),
        shape(4, 6),
        tokens(4),
        rows={"in": linear(D, 6), "heads": linear(3, D, 5)},
    ),
    Case(
        "nnx: gemma",
        lambda: (nnx.eval_shape(Gemma), X),
        {
            "qkv/kernel": linear(D, D, 3),
            "out/kernel": linear(D, D),
            "gates": linear(48, D, 2),
            "down": linear(D, 48),
            "scale": ("Scale", (1, 1, D)),
        },
    ),
    Case(
        "linen: any axes",
        linen(General(), shape(4, 6, 7, 8)),
        {
            "middle/kernel": linear(15, 48),
            "middle/bias": ("Bias", (1, 1, 15)),
            "each/kernel": linear(6, 5, 4),
            "each/bias": ("Bias", (4, 1, 6)),
            "all/kernel": linear(4, 7 * 3 * 6),
            "all/bias": ("Bias", (1, 1, 4)),
        },
    ),
    Case(
        "linen: boxed with names of axes",
        linen(Partitioned(), X),
        {
            "blocks/up/kernel/value": ("Linear", (3, 48, D), 3),
            "blocks/up/bias": ("Bias", (3, 1, 48), 3),
            "blocks/down/kernel/value": ("Linear", (3, D, 48), 3),
            "blocks/down/bias": ("Bias", (3, 1, D), 3),
            **dense("head", 10, D),
        },
    ),
    Case(
        "linen: soft experts",
        linen(SoftExperts(), X),
        {
            "slots": linear(6, D),
            "experts/up/kernel": linear(48, D, 3),
            "experts/up/bias": ("Bias", (3, 1, 48)),
            "experts/down/kernel": linear(D, 48, 3),
            "experts/down/bias": ("Bias", (3, 1, D)),
            **dense("head", 5, D),
        },
    ),
    Case(
        "nnx: dropout in a stack",
        lambda: (nnx.eval_shape(Dropped), X),
        {
            **stacked({f"blocks/{path}": row for path, row in {**norm("norm"), **dense("up", 48, D), **dense("down", D, 48)}.items()}, 3),
            **dense("head", 5, D),
        },
    ),
    Case("equinox: shared", lambda: (abstract(Tied), tokens(7)), {"shared/pytree/0/weight": ("Embed+Linear", (1, 20, 8))}),
    Case(
        "haiku: transformer in a stack",
        lambda: (hk.transform(haiku_transformer), tokens(3, 7)),
        {
            "embed/embeddings": ("Embed", (1, 50, 16)),
            **{f"{STACK}{name}/scale": ("Scale", (3, 1, 16), 3) for name in ("layer_norm", "layer_norm_1")},
            **{f"{STACK}{name}/offset": ("Bias", (3, 1, 16), 3) for name in ("layer_norm", "layer_norm_1")},
            **{f"{STACK}multi_head_attention/{name}/w": ("Linear", (3, 16, 16), 3) for name in ("query", "key", "value", "linear")},
            **{f"{STACK}multi_head_attention/{name}/b": ("Bias", (3, 1, 16), 3) for name in ("query", "key", "value", "linear")},
            f"{STACK}mlp/~/linear_0/w": ("Linear", (3, 64, 16), 3),
            f"{STACK}mlp/~/linear_0/b": ("Bias", (3, 1, 64), 3),
            f"{STACK}mlp/~/linear_1/w": ("Linear", (3, 16, 64), 3),
            f"{STACK}mlp/~/linear_1/b": ("Bias", (3, 1, 16), 3),
            "linear/w": linear(50, 16),
        },
    ),
]
