"""Compounds: networks built from atoms and bonds; transformers are in ``transformer.py``.

Source of the architectures: Large et al. (2024), appendix on experiments.
"""

from __future__ import annotations

from modula_rs.checks import flag, number, size
from modula_rs.network.activation import Abs, ReLU
from modula_rs.network.bond import Flatten, Identity
from modula_rs.network.builtin_atoms import Conv2D, Linear
from modula_rs.network.module import Module
from modula_rs.network.statistics import AvgPool, MeanSubtract, RMSDivide


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


def LoRA(fanout: int, fanin: int, rank: int, *, scale: float = 1.0, zero: bool = False) -> Module:
    """A linear map of low rank: ``Linear(fanout, rank, scale=scale) @ Linear(rank, fanin, scale=1 / scale)``. The output size comes first.

    The scale moves size from the weights of the second Linear, ``up``, to those of the first, ``down``, and changes nothing else: outputs,
    sharpness and training with normalized or dualized updates stay the same. A LoRA is usually added to a frozen map:
    ``Linear(fanout, fanin, mass=0) + LoRA(fanout, fanin, rank, zero=True)``.

    Args:
        fanout: number of features of the output.
        fanin: number of features of the input.
        rank: number of features between the two factors.
        scale: the scale of ``up``; the scale of ``down`` is its inverse. Finite and not 0.
        zero: whether ``up`` starts at zero, so that the output starts at zero. ``up`` learns from the first step on, ``down`` from the
            second.

    Input of shape (..., fanin), output of shape (..., fanout).

    Raises:
        TypeError: a size that is no integer, a scale that is no number.
        ValueError: a negative size, a scale that is 0 or not finite.

    Source: Hu et al., "LoRA" (2021).

    >>> import modula_rs as mr
    >>> [(t.path, t.target) for t in mr.LoRA(64, 32, rank=4, scale=2.0).targets()]
    [('down', 1.0), ('up', 0.25)]
    """
    scale = number("scale", scale)
    if scale == 0:
        raise ValueError("the scale of a LoRA must not be 0")
    up, down = Linear(fanout, rank, scale=scale, zero=zero), Linear(rank, fanin, scale=1.0 / scale)
    return up.named("up") @ down.named("down")
