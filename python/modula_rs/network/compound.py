"""Compounds: networks built from atoms and bonds. Source of the architectures: Large et al. (2024), appendix on experiments."""

from __future__ import annotations

from collections.abc import Callable

from modula_rs.checks import flag, number, shown, size
from modula_rs.network.activation import Abs, ReLU, ScaledGELU
from modula_rs.network.atom import Conv2D, Embed, Linear
from modula_rs.network.attention import Enumerate, FunctionalAttention, MergeHeads, Rope, SplitIntoHeads
from modula_rs.network.bond import Flatten, Identity, Mul
from modula_rs.network.module import Module
from modula_rs.network.statistics import AvgPool, LayerNorm, MeanSubtract, RMSDivide

NORMS: dict[str | None, Callable[[], Module]] = {"layer": LayerNorm, "rms": RMSDivide, None: Identity}


def branch(block: Module, share: float) -> Module:
    """``(1 - share) * Identity() + share * block``: a residual step, whose sensitivity is 1 if the block's is.

    Args:
        block: a module with outputs shaped like its inputs.
        share: weight of the block, above 0 and at most 1.

    >>> import modula_rs as mr
    >>> from modula_rs.network.compound import branch
    >>> branch(mr.Linear(8, 8), 0.25).sensitivity
    1.0
    """
    return share * block if share == 1.0 else (1.0 - share) * Identity() + share * block


def residual(block: Module, num_blocks: int, name: str = "blocks") -> Module:
    """``((1 - 1/L) * Identity() + (1/L) * block) ** L``: a residual chain, whose sensitivity is 1 at every depth L if the block's is.

    Args:
        block: a module with outputs shaped like its inputs; each of its L copies has weights of its own.
        num_blocks: the depth L, at least 0.
        name: the name of the chain in the paths of its leaves.

    Raises:
        TypeError: a depth that is no integer.
        ValueError: a negative depth, or a block whose output cannot be its input.

    >>> import modula_rs as mr
    >>> from modula_rs.compound import residual
    >>> round(residual(mr.Linear(8, 8), 1000).sensitivity, 12)
    1.0
    """
    depth = size("num_blocks", num_blocks)
    return (branch(block, 1.0 / max(depth, 1)) ** depth).named(name)


def MLP(output_dim: int, input_dim: int, width: int, depth: int) -> Module:
    """A multi-layer perceptron: ``depth`` Linears with ReLU in between. The output size comes first, as in :class:`Linear`.

    Args:
        output_dim: number of features of the output.
        input_dim: number of features of the input after flattening.
        width: number of features of each hidden layer.
        depth: number of Linears, at least 1.

    Input of shape (batch, ...) with ``input_dim`` numbers in each example, output of shape (batch, output_dim).

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below its minimum.

    >>> import modula_rs as mr
    >>> [leaf.shape for leaf in mr.MLP(10, 784, width=64, depth=3).leaves]
    [(64, 784), (1, 64, 64), (10, 64)]
    """
    depth = size("depth", depth, 1)
    if depth == 1:
        return Linear(output_dim, input_dim) @ Flatten()
    hidden = ReLU() @ Linear(width, input_dim) @ Flatten()
    if depth > 2:
        hidden = (ReLU() @ Linear(width, width)) ** (depth - 2) @ hidden
    return Linear(output_dim, width) @ hidden


def ResMLP(
    width: int, num_blocks: int, block_depth: int, input_dim: int, output_dim: int, blocks_mass: float = 1, *, final_norm: bool = False
) -> Module:
    """A residual perceptron: Linear, ``num_blocks`` residual blocks, Linear.

    The blocks of fresh weights add up incoherently: at depth L their share of the stream has an RMS of about ``1 / sqrt(2 L)`` beside the
    linear image of the input. So a deeper network starts more nearly linear, with less than RMS 1 for the last Linear, whose share of an
    update then moves the output less than the norm allows for, and the loss at the best rate rises with depth wherever a few blocks fit the
    data. With ``final_norm`` the last Linear gets RMS 1, and the loss falls with depth instead. The network of the paper has none.

    Args:
        width: number of features of the residual stream.
        num_blocks: number of residual blocks; depth scales with it at a fixed learning rate.
        block_depth: layers (RMSDivide, Linear, Abs, MeanSubtract) in each block, at least 1.
        input_dim: number of features of the input after flattening.
        output_dim: number of features of the output.
        blocks_mass: mass of all blocks together; the first and the last Linear have mass 1 each.
        final_norm: whether an RMSDivide comes before the last Linear. Its sensitivity of 1 is an estimate, see :class:`RMSDivide`.

    Input of shape (batch, ...) with ``input_dim`` numbers in each example, output of shape (batch, output_dim).

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below its minimum, a mass that is negative or not finite.

    Source: Large et al. (2024), appendix on architectures.

    >>> import modula_rs as mr
    >>> m = mr.ResMLP(width=64, num_blocks=5, block_depth=2, input_dim=784, output_dim=10)
    >>> m.mass, m.atoms, [leaf.shape for leaf in m.leaves]
    (3.0, 12, [(64, 784), (5, 2, 64, 64), (10, 64)])
    """
    layer = MeanSubtract() @ Abs() @ Linear(width, width) @ RMSDivide()
    blocks = residual(layer ** size("block_depth", block_depth, 1), num_blocks)
    stem = Linear(width, input_dim).named("input") @ Flatten()
    head = _head(output_dim, width, flag("final_norm", final_norm))
    return head @ weigh(blocks, blocks_mass) @ stem


def _head(output_dim: int, width: int, final_norm: bool) -> Module:
    """The last Linear, of an input that is divided by its RMS if ``final_norm``."""
    linear = Linear(output_dim, width).named("output")
    return linear @ RMSDivide() if final_norm else linear


def weigh(blocks: Module, mass: float) -> Module:
    """Blocks tared to a mass. Blocks without mass, such as a chain of depth 0, are returned as they are.

    Args:
        blocks: a module; its masses change in place.
        mass: the new mass, finite and at least 0.

    >>> import modula_rs as mr
    >>> from modula_rs.network.compound import weigh
    >>> weigh(mr.Linear(8, 8) ** 3, 5.0).mass, weigh(mr.Linear(8, 8) ** 0, 5.0).mass
    (5.0, 0.0)
    """
    return blocks.tare(absolute=mass) if blocks.mass > 0 else blocks


def ResCNN(
    width: int, num_blocks: int, block_depth: int, input_dim: int, output_dim: int, blocks_mass: float = 20, *, final_norm: bool = False
) -> Module:
    """A residual convolutional network on images of any size, channels last.

    Mean and mean square are taken over height, width and channels; the head averages over all positions.

    Args:
        width: number of channels of the residual stream.
        num_blocks: number of residual blocks.
        block_depth: layers (RMSDivide, Conv2D, Abs, MeanSubtract) in each block, at least 1.
        input_dim: number of channels of the images.
        output_dim: number of features of the output.
        blocks_mass: mass of all blocks together; the first Conv2D and the last Linear have mass 1 each.
        final_norm: whether an RMSDivide over channels comes before the last Linear, after the average over positions; see :func:`ResMLP`.

    Input of shape (batch, height, width, input_dim), output of shape (batch, output_dim).

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below its minimum, a mass that is negative or not finite.

    Source: Large et al. (2024), appendix on architectures.

    >>> import modula_rs as mr
    >>> m = mr.ResCNN(width=16, num_blocks=4, block_depth=2, input_dim=3, output_dim=10)
    >>> m.mass, m.atoms, [leaf.shape for leaf in m.leaves]
    (22.0, 10, [(3, 3, 16, 3), (4, 2, 3, 3, 16, 16), (10, 16)])
    """
    image = (-3, -2, -1)
    layer = MeanSubtract(image) @ Abs() @ Conv2D(width, width) @ RMSDivide(image)
    blocks = residual(layer ** size("block_depth", block_depth, 1), num_blocks)
    head = _head(output_dim, width, flag("final_norm", final_norm)) @ Flatten() @ AvgPool()
    return head @ weigh(blocks, blocks_mass) @ Conv2D(width, input_dim).named("input")


def Attention(num_heads: int, d_embed: int, d_query: int, d_value: int, causal: bool, *, rope: bool = False) -> Module:
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

    Input and output of shape (..., length, d_embed).

    Raises:
        TypeError: a size that is no integer, ``causal`` is no bool.
        ValueError: a size below its minimum, an odd ``d_query`` with ``rope``.

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
    output = Linear(d_embed, heads * value).named("output") @ MergeHeads()
    return output @ FunctionalAttention(causal) @ Mul(1 / 3) @ (q, k, v)


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

    Raises:
        TypeError: a size that is no integer.
        ValueError: a size below its minimum, a mass that is negative or not finite, a ``position`` or ``norm`` of another name.

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
    share = "tokens" if tie_embeddings else None
    tokens: Module = Embed(d_embed, vocab_size, share=share).named("tokens")
    if position == "learned":
        positions = Embed(d_embed, context).named("positions") @ Enumerate(limit=context)
        tokens = 1 / 2 * tokens + 1 / 2 * positions

    attention = Attention(num_heads, d_embed, d_query, d_value, causal=True, rope=position == "rope")
    hidden, output = Linear(4 * d_embed, d_embed).named("hidden"), Linear(d_embed, 4 * d_embed).named("output")
    mlp = output @ ScaledGELU() @ hidden
    depth = size("num_blocks", num_blocks)
    steps = [branch(block.named(name) @ prepared(), 0.5 / max(depth, 1)) for name, block in (("attention", attention), ("mlp", mlp))]
    blocks = ((steps[1] @ steps[0]) ** depth).named("blocks")

    head = Linear(vocab_size, d_embed, share=share).named("output") @ prepared()
    return head @ weigh(blocks, blocks_mass) @ tokens.tare()


def LoRA(fanout: int, fanin: int, rank: int, *, scale: float = 1.0) -> Module:
    """A linear map of low rank: ``scale * Linear(fanout, rank) @ (1 / scale) * Linear(rank, fanin)``. The output size comes first.

    The scale cancels in the output; it divides the target norm of updates of the second Linear, ``up``. A LoRA is usually added to a frozen
    map: ``Linear(fanout, fanin, mass=0) + LoRA(fanout, fanin, rank)``.

    Args:
        fanout: number of features of the output.
        fanin: number of features of the input.
        rank: number of features between the two factors.
        scale: factor of the second Linear's output; the first Linear's output is divided by it. Not 0.

    Input of shape (..., fanin), output of shape (..., fanout).

    Raises:
        TypeError: a size that is no integer, a scale that is no number.
        ValueError: a negative size, a scale of 0.

    Source: Hu et al., "LoRA" (2021).

    >>> import modula_rs as mr
    >>> [(t.path, t.target) for t in mr.LoRA(64, 32, rank=4, scale=2.0).targets()]
    [('down', 0.5), ('up', 0.25)]
    """
    scale = number("scale", scale)
    if scale == 0:
        raise ValueError("the scale of a LoRA must not be 0")
    up, down = Linear(fanout, rank).named("up"), Linear(rank, fanin).named("down")
    return up @ down if scale == 1.0 else scale * up @ ((1.0 / scale) * down)
