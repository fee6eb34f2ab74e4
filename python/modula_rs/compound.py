"""Compounds: networks built from atoms and bonds."""

from __future__ import annotations

from modula_rs.atom import Linear, size
from modula_rs.bond import Abs, Flatten, Identity, MeanSubtract, ReLU, RMSDivide
from modula_rs.module import Module


def residual(block: Module, num_blocks: int, name: str = "blocks") -> Module:
    """``((1 - 1/L) * Identity() + (1/L) * block) ** L``: a residual chain that keeps sensitivity 1 at every depth L.

    >>> import modula_rs as mr
    >>> from modula_rs.compound import residual
    >>> round(residual(mr.Linear(8, 8), 1000).sensitivity, 12)
    1.0
    """
    depth = size("num_blocks", num_blocks)
    if depth == 0:
        return block**0
    share = 1.0 / depth
    step = share * block if depth == 1 else (1.0 - share) * Identity() + share * block
    return (step**depth).named(name)


def MLP(output_dim: int, input_dim: int, width: int, depth: int) -> Module:
    """A multi-layer perceptron of ``depth`` Linears with ReLU in between, on flattened input.

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


def ResMLP(width: int, num_blocks: int, block_depth: int, input_dim: int, output_dim: int) -> Module:
    """A residual perceptron: Linear, ``num_blocks`` residual blocks of mass 1 together, Linear, on flattened input.

    Source: Large et al. (2024), appendix on architectures.

    >>> import modula_rs as mr
    >>> m = mr.ResMLP(width=64, num_blocks=5, block_depth=2, input_dim=784, output_dim=10)
    >>> m.mass, m.atoms, [leaf.shape for leaf in m.leaves]
    (3.0, 12, [(64, 784), (5, 2, 64, 64), (10, 64)])
    """
    layer = MeanSubtract() @ Abs() @ Linear(width, width) @ RMSDivide()
    blocks = residual(layer ** size("block_depth", block_depth, 1), num_blocks)
    stem = Linear(width, input_dim).named("input") @ Flatten()
    head = Linear(output_dim, width).named("output")
    return head @ (blocks.tare() if blocks.mass > 0 else blocks) @ stem
