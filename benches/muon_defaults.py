"""What the program of a stock Flax transformer says of each array, beside what ``optax.contrib.muon`` does with it by default.

python benches/muon_defaults.py    # prints the table in docs/your-network.md
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import modula_rs as mr
import optax
from optax import contrib

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 65, 32, 48, 4, 6


class Block(nn.Module):
    """A pre-norm block as in Flax's examples."""

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attention")(nn.LayerNorm(name="norm_1")(x), mask=mask)
        y = nn.Dense(4 * WIDTH, name="up")(nn.LayerNorm(name="norm_2")(x))
        return x + nn.Dense(WIDTH, name="down")(nn.gelu(y)), None


class Transformer(nn.Module):
    """Tokens, learned positions, a scanned stack of blocks, a head."""

    @nn.compact
    def __call__(self, tokens: Any) -> Any:
        x = nn.Embed(VOCABULARY, WIDTH, name="tokens")(tokens)
        x = x + self.param("positions", nn.initializers.normal(0.02), (CONTEXT, WIDTH))[: tokens.shape[1]]
        blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS, in_axes=nn.broadcast)
        x, _ = blocks(name="blocks")(x, nn.make_causal_mask(tokens))
        return nn.Dense(VOCABULARY, name="head")(nn.LayerNorm(name="norm")(x))


def by_muon(params: Any) -> list[bool]:
    """For each array whether ``optax.contrib.muon`` orthogonalises it by default, from the state that it makes."""
    state = contrib.muon(0.1).init(params)
    is_masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731  used twice
    like = jax.tree.structure(params)
    (momentum,) = (
        node
        for node in jax.tree.leaves(state.inner_states["muon"], is_leaf=lambda node: jax.tree.structure(node, is_leaf=is_masked) == like)
        if jax.tree.structure(node, is_leaf=is_masked) == like
    )
    return [not is_masked(leaf) for leaf in jax.tree.leaves(momentum, is_leaf=is_masked)]


def rows() -> list[tuple[str, ...]]:
    """Path, shape, kind and blocks by the trace, and the treatment by Muon."""
    tokens = jnp.zeros((2, CONTEXT), jnp.int32)
    params = Transformer().init(jax.random.key(0), tokens)["params"]
    net = mr.trace(lambda params, tokens: Transformer().apply({"params": params}, tokens), params, tokens)
    made = []
    for leaf, taken in zip(net.leaves, by_muon(params), strict=True):
        count, out, inner = leaf.blocks
        matrix = leaf.kind == "Linear"
        blocks = f"{count} matrices {out} x {inner}" if matrix and count > 1 else f"matrix {out} x {inner}" if matrix else ""
        if leaf.kind == "Embed":
            blocks = f"table of {out} rows"
        elif not matrix:
            blocks = f"{count} vectors of {inner}" if count > 1 else f"vector of {inner}"
        muon = f"Muon, as one matrix {' x '.join(map(str, leaf.shape))}" if taken else "AdamW"
        made.append((f"`{leaf.path}`", " x ".join(map(str, leaf.shape)), f"{leaf.kind}: {blocks}", muon))
    return made


def table() -> str:
    """The rows in Markdown."""
    head = ("array", "shape", "the program says", "`optax.contrib.muon` by default")
    lines = [head, tuple("---" for _ in head), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
