"""Twins in Flax of the networks of ``modula_rs``: the same functions of the same numbers, in Flax's layouts.

A kernel of Flax is (in, out) or (in, heads, size), a kernel of images (height, width, in, out), and the blocks of a transformer are modules
of their own, or one stack under a scan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import modula_rs as mr
from modula_rs.tracing.network import Network


class Twin(NamedTuple):
    """A module of ours and its twin. ``to_twin``: the twin's parameters from our weights, or its update from our update."""

    ours: mr.Module
    apply: Callable[[Any, Any], Any]
    to_twin: Callable[[list[Any]], Any]
    x: Any

    def network(self, w: Any) -> Network:
        """The traced twin. Its masses are such that its targets are ours, up to a factor, which is its ``scale``."""
        return weighed(mr.trace(self.apply, jax.eval_shape(self.to_twin, w), self.x), self.targets())

    def targets(self) -> dict[str, float]:
        """The target of every array of the twin, by its path. All copies of a stack have the same."""
        given = {target.path: target.target for target in self.ours.targets()}
        filled = [jnp.full(leaf.shape, given[leaf.path]) for leaf in self.ours.leaves]
        flat, _ = jax.tree_util.tree_flatten_with_path(self.to_twin(filled))
        return {jax.tree_util.keystr(path, simple=True, separator="/"): float(value.max()) for path, value in flat}


def weighed(net: Network, targets: dict[str, float]) -> Network:
    """The network with the masses of its leading uses such that its targets are in proportion to those given."""
    leaves = []
    for leaf in net.reading.leaves:
        roles = (replace(role, mass=targets[leaf.path] * role.number, gain=1.0) for role in leaf.roles)  # the targets hold the gains
        leaves.append(replace(leaf, roles=tuple(roles)))
    return Network(replace(net.reading, leaves=tuple(leaves)), net._source)


def standardise(x: Any, axis: Any = -1) -> Any:
    """Mean 0 and mean square 1, without gain or bias."""
    x = x - x.mean(axis, keepdims=True)
    return x / jnp.sqrt((x**2).mean(axis, keepdims=True))


def _dense(features: Any, name: str, axis: Any = -1) -> Any:
    return nn.DenseGeneral(features, axis, use_bias=False, name=name)


class Attention(nn.Module):
    """Causal attention with kernels for each head (in, heads, size)."""

    heads: int
    size: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        q, k, v = (_dense((self.heads, self.size), name)(x) / 3 for name in "qkv")
        logits = jnp.einsum("...thd,...shd->...hts", q, k) / self.size
        weights = nn.softmax(jnp.where(jnp.tri(x.shape[-2], dtype=bool), logits, -jnp.inf))
        return _dense(x.shape[-1], "output", (-2, -1))(jnp.einsum("...hts,...shd->...thd", weights, v))


class Block(nn.Module):
    """A block of a transformer; both branches have a share of 1 / 2L of the stream."""

    heads: int
    depth: int

    @nn.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        share, width = 0.5 / self.depth, x.shape[-1]
        x = (1 - share) * x + share * Attention(self.heads, width // self.heads, name="attention")(standardise(x))
        y = 2**0.5 * nn.gelu(_dense(4 * width, "hidden")(standardise(x)), approximate=False)
        return (1 - share) * x + share * _dense(width, "mlp")(y), None


class Language(nn.Module):
    """The twin of ``GPT``; ``stacked``: its blocks are one stack under a scan; ``tied``: the head is the table of tokens."""

    vocabulary: int
    context: int
    heads: int
    width: int
    depth: int
    stacked: bool = False
    tied: bool = False

    @nn.compact
    def __call__(self, ids: Any) -> Any:
        tokens = nn.Embed(self.vocabulary, self.width, name="tokens")
        x = tokens(ids) / 2 + nn.Embed(self.context, self.width, name="positions")(jnp.arange(ids.shape[-1])) / 2
        if self.stacked:
            scan = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth)
            x, _ = scan(self.heads, self.depth, name="blocks")(x, None)
        else:
            for i in range(self.depth):
                x, _ = Block(self.heads, self.depth, name=f"block_{i}")(x)
        x = standardise(x)
        return tokens.attend(x) if self.tied else _dense(self.vocabulary, "head")(x)


class Perceptron(nn.Module):
    """The twin of ``MLP``."""

    out: int
    width: int
    depth: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for i in range(self.depth - 1):
            x = nn.relu(_dense(self.width, f"layer_{i}")(x))
        return _dense(self.out, f"layer_{self.depth - 1}")(x)


class Images(nn.Module):
    """The twin of ``ResCNN``."""

    width: int
    blocks: int
    block_depth: int
    out: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        axes = (-3, -2, -1)
        x = nn.Conv(self.width, (3, 3), use_bias=False, name="stem")(x)
        for i in range(self.blocks):
            y = x
            for j in range(self.block_depth):
                y = y / jnp.sqrt((y**2).mean(axes, keepdims=True))
                y = jnp.abs(nn.Conv(self.width, (3, 3), use_bias=False, name=f"conv_{i}_{j}")(y))
                y = y - y.mean(axes, keepdims=True)
            x = (1 - 1 / self.blocks) * x + y / self.blocks
        return _dense(self.out, "head")(x.mean((-3, -2)))


def _kernel(w: Any) -> Any:
    return {"kernel": w.swapaxes(-1, -2)}


def _of_heads(w: Any, heads: int) -> Any:
    """A kernel (..., in, heads, size) from a matrix (..., heads * size, in)."""
    return {"kernel": w.swapaxes(-1, -2).reshape(*w.shape[:-2], w.shape[-1], heads, w.shape[-2] // heads)}


def _from_heads(w: Any, heads: int) -> Any:
    return {"kernel": w.swapaxes(-1, -2).reshape(*w.shape[:-2], heads, w.shape[-1] // heads, w.shape[-2])}


def attention(heads: int, width: int) -> Twin:
    """The twin of ``Attention``."""
    module = Attention(heads, width // heads)

    def to_twin(w: list[Any]) -> Any:
        made = {name: _of_heads(array, heads) for name, array in zip("qkv", w[:3], strict=True)}
        return {**made, "output": _from_heads(w[3], heads)}

    ours = mr.Attention(heads, width, width // heads, width // heads, causal=True)
    return Twin(ours, lambda p, x: module.apply({"params": p}, x), to_twin, jax.ShapeDtypeStruct((2, 7, width), "float32"))


def gpt(vocabulary: int, context: int, heads: int, width: int, depth: int, *, stacked: bool = False, tied: bool = False) -> Twin:
    """The twin of ``GPT``."""
    module = Language(vocabulary, context, heads, width, depth, stacked, tied)
    ours = mr.GPT(vocabulary, context, heads, width, width // heads, width // heads, depth, tie_embeddings=tied)

    def block(w: list[Any]) -> Any:
        made = {name: _of_heads(array, heads) for name, array in zip("qkv", w[:3], strict=True)}
        return {"attention": {**made, "output": _from_heads(w[3], heads)}, "hidden": _kernel(w[4]), "mlp": _kernel(w[5])}

    def to_twin(w: list[Any]) -> Any:
        tokens, positions, *blocks = w
        made: dict[str, Any] = {"tokens": {"embedding": tokens}, "positions": {"embedding": positions}}
        if not tied:
            made["head"] = _kernel(blocks.pop())
        if stacked:
            return {**made, "blocks": block(blocks)}
        return {**made, **{f"block_{i}": block([array[i] for array in blocks]) for i in range(depth)}}

    return Twin(ours, lambda p, x: module.apply({"params": p}, x), to_twin, jax.ShapeDtypeStruct((2, context), "int32"))


def mlp(out: int, into: int, width: int, depth: int) -> Twin:
    """The twin of ``MLP``."""
    module = Perceptron(out, width, depth)

    def to_twin(w: list[Any]) -> Any:
        layers = [w[0], *(w[1] if depth > 2 else []), w[-1]]
        return {f"layer_{i}": _kernel(array) for i, array in enumerate(layers)}

    return Twin(
        mr.MLP(out, into, width, depth), lambda p, x: module.apply({"params": p}, x), to_twin, jax.ShapeDtypeStruct((4, into), "float32")
    )


def rescnn(width: int, blocks: int, block_depth: int, into: int, out: int, side: int = 8) -> Twin:
    """The twin of ``ResCNN``."""
    module = Images(width, blocks, block_depth, out)

    def to_twin(w: list[Any]) -> Any:
        convs = {f"conv_{i}_{j}": _kernel(w[1][i, j]) for i in range(blocks) for j in range(block_depth)}
        return {"stem": _kernel(w[0]), **convs, "head": _kernel(w[2])}

    ours = mr.ResCNN(width, blocks, block_depth, into, out)
    return Twin(ours, lambda p, x: module.apply({"params": p}, x), to_twin, jax.ShapeDtypeStruct((2, side, side, into), "float32"))
