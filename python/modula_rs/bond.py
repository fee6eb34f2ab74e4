"""Bonds: modules without weights."""

from modula_rs.network.activation import GELU, Abs, ReLU, ScaledGELU, ScaledReLU, Tanh
from modula_rs.network.attention import CausalMask, Enumerate, FunctionalAttention, MergeHeads, Rope, Softmax, SplitIntoHeads
from modula_rs.network.bond import Add, AvgPool, Bond, Flatten, Identity, LayerNorm, Mean, MeanSubtract, Mul, RMSDivide

__all__ = [
    "GELU",
    "Abs",
    "Add",
    "AvgPool",
    "Bond",
    "CausalMask",
    "Enumerate",
    "Flatten",
    "FunctionalAttention",
    "Identity",
    "LayerNorm",
    "Mean",
    "MeanSubtract",
    "MergeHeads",
    "Mul",
    "RMSDivide",
    "ReLU",
    "Rope",
    "ScaledGELU",
    "ScaledReLU",
    "Softmax",
    "SplitIntoHeads",
    "Tanh",
]
