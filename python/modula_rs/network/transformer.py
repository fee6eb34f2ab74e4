"""Transformers, built from atoms and bonds. Source of the architecture: Large et al. (2024), appendix on experiments."""

from __future__ import annotations

from collections.abc import Callable

from modula_rs.checks import flag, number, shown, size
from modula_rs.network.activation import ScaledGELU
from modula_rs.network.attention import FunctionalAttention, MergeHeads, SplitIntoHeads
from modula_rs.network.bond import Identity, Mul
from modula_rs.network.builtin_atoms import Embed, Linear
from modula_rs.network.compound import branch, weigh
from modula_rs.network.module import Module
from modula_rs.network.positions import Enumerate, Rope
from modula_rs.network.statistics import LayerNorm, RMSDivide
from modula_rs.network.unembed import Unembed

NORMS: dict[str | None, Callable[[], Module]] = {"layer": LayerNorm, "rms": RMSDivide, None: Identity}


def Attention(
    num_heads: int,
    d_embed: int,
    d_query: int,
    d_value: int,
    causal: bool,
    *,
    rope: bool = False,
    softmax_scale: float = 1.0,
    zero: bool = False,
) -> Module:
    """Self-attention with four Linears: queries, keys, values and the output.

    Queries, keys and values are divided by 3 before they meet. The division makes up for the sum of their three norms, so the sensitivity
    is 1.

    Args:
        num_heads: number of heads, at least 1.
        d_embed: number of features of input and output.
        d_query: number of features of a head's queries and keys; even if ``rope``.
        d_value: number of features of a head's values.
        causal: whether each token sees only itself and the tokens before it.
        rope: whether queries and keys are turned by their positions, see :class:`Rope`.
        softmax_scale: factor of the scores in the softmax, positive. Queries and keys are divided by 3 each, so 9 gives the scores of
            undivided ones. Above 4 the sensitivity rises, to a quarter of the scale.
        zero: whether the output's Linear starts at zero.

    Input and output of shape (..., length, d_embed).

    Raises:
        TypeError: a size that is no integer, ``causal`` or ``zero`` is no bool, a scale that is no number.
        ValueError: a size below its minimum, an odd ``d_query`` with ``rope``, a scale that is not positive and finite.

    Source: Large et al. (2024), appendix on attention.

    >>> import modula_rs as mr
    >>> m = mr.Attention(num_heads=4, d_embed=128, d_query=32, d_value=32, causal=True)
    >>> [(leaf.path, leaf.shape) for leaf in m.leaves]
    [('q', (128, 128)), ('k', (128, 128)), ('v', (128, 128)), ('output', (128, 128))]
    >>> round(m.sensitivity, 12)
    1.0
    """
    heads, query, value = size("num_heads", num_heads, 1), size("d_query", d_query), size("d_value", d_value)

    def project(name: str, features: int) -> Module:
        return SplitIntoHeads(heads) @ Linear(heads * features, d_embed).named(name)

    q, k, v = project("q", query), project("k", query), project("v", value)
    if rope:
        q, k = Rope(query) @ q, Rope(query) @ k
    output = Linear(d_embed, heads * value, zero=flag("zero", zero)).named("output") @ MergeHeads()
    return output @ FunctionalAttention(causal, softmax_scale) @ Mul(1 / 3) @ (q, k, v)


def GPT(
    vocab_size: int,
    context: int,
    num_heads: int,
    d_embed: int,
    d_query: int,
    d_value: int,
    num_blocks: int,
    blocks_mass: float = 5,
    *,
    position: str = "learned",
    norm: str | None = "layer",
    tie_embeddings: bool = False,
    attention_scale: float = 1.0,
    residual_scale: float = 1.0,
    final_scale: float = 1.0,
    zero: bool = False,
    unembed: bool = False,
) -> Module:
    """A transformer that predicts tokens: integers (..., length) to logits (..., length, ``vocab_size``).

    Args:
        vocab_size: number of different tokens.
        context: length of the longest sequence that learned positions can serve.
        num_heads: number of heads of each attention.
        d_embed: width of the residual stream; the hidden layers of the perceptrons are four times as wide.
        d_query: number of features of a head's queries and keys.
        d_value: number of features of a head's values.
        num_blocks: number of blocks, each an attention and a perceptron.
        blocks_mass: mass of all blocks together; the embeddings together and the head have mass 1 each.
        position: ``"learned"`` adds an embedding of the position, ``"rope"`` turns queries and keys by their positions.
        norm: the normalisation that each attention, each perceptron and the head apply to their input: ``"layer"``, ``"rms"``, or None.
        tie_embeddings: whether the table of tokens is also the weight of the head (``share="tokens"``).
        attention_scale: factor of the scores in each softmax, see ``softmax_scale`` of :func:`Attention`.
        residual_scale: a, for residual steps ``(1 - a / 2N) * Identity() + a / 2N * block`` at N blocks; above 0 and at most 2 N.
        final_scale: factor of the logits, not 0. The sensitivity of the whole is this factor, and targets of all but the head are divided
            by it.
        zero: whether the last Linear of each attention and each perceptron starts at zero, so that the blocks start as the identity.
        unembed: whether the head is an :class:`Unembed`, whose rows are measured one by one, in place of a Linear.

    Raises:
        TypeError: a size that is no integer, a scale that is no number, a choice that is no bool.
        ValueError: a size below its minimum, a mass that is negative or not finite, a ``position`` or ``norm`` of another name, a scale
            out of its range, ``unembed`` with tied embeddings.

    Source: Large et al. (2024), appendix on architectures.

    >>> import modula_rs as mr
    >>> m = mr.GPT(65, 64, num_heads=4, d_embed=128, d_query=32, d_value=32, num_blocks=12)
    >>> m.mass, round(m.sensitivity, 12), m.atoms
    (7.0, 1.0, 75)
    >>> for leaf in m.leaves: print(leaf.path, leaf.shape)
    tokens (65, 128)
    positions (64, 128)
    blocks/attention/q (12, 128, 128)
    blocks/attention/k (12, 128, 128)
    blocks/attention/v (12, 128, 128)
    blocks/attention/output (12, 128, 128)
    blocks/mlp/hidden (12, 512, 128)
    blocks/mlp/output (12, 128, 512)
    output (65, 128)
    """
    if position not in ("learned", "rope"):
        raise ValueError(f'position must be "learned" or "rope", got {shown(position)}')
    if not isinstance(norm, str | None) or norm not in NORMS:
        raise ValueError(f'norm must be "layer", "rms" or None, got {shown(norm)}')
    prepared = NORMS[norm]
    share = "tokens" if flag("tie_embeddings", tie_embeddings) else None
    unembed, step = flag("unembed", unembed), number("residual_scale", residual_scale) / 2
    if unembed and share:
        raise ValueError("tied embeddings are the weight of a Linear; unembed=True takes a weight of its own")
    depth = size("num_blocks", num_blocks)
    if not 0 < step <= max(depth, 1):
        raise ValueError(f"residual_scale must be above 0 and at most 2 num_blocks, got {residual_scale}")
    tokens: Module = Embed(d_embed, vocab_size, share=share).named("tokens")
    if position == "learned":
        positions = Embed(d_embed, context).named("positions") @ Enumerate(limit=context)
        tokens = 1 / 2 * tokens + 1 / 2 * positions

    rope = position == "rope"
    attention = Attention(num_heads, d_embed, d_query, d_value, causal=True, rope=rope, softmax_scale=attention_scale, zero=zero)
    hidden, output = Linear(4 * d_embed, d_embed).named("hidden"), Linear(d_embed, 4 * d_embed, zero=zero).named("output")
    mlp = output @ ScaledGELU() @ hidden
    steps = [branch(block.named(name) @ prepared(), step / max(depth, 1)) for name, block in (("attention", attention), ("mlp", mlp))]
    blocks = ((steps[1] @ steps[0]) ** depth).named("blocks")

    head: Module = Unembed(vocab_size, d_embed) if unembed else Linear(vocab_size, d_embed, share=share)
    head = head.named("output") @ prepared()
    if number("final_scale", final_scale) != 1.0:
        head = final_scale * head
    return head @ weigh(blocks, blocks_mass) @ tokens.tare()
