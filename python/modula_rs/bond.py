"""Bonds: modules without weights."""

from modula_rs.network.activation import GELU, Abs, ReLU, ScaledGELU, ScaledReLU, Tanh
from modula_rs.network.attention import CausalMask, Enumerate, FunctionalAttention, MergeHeads, Rope, Softmax, SplitIntoHeads
from modula_rs.network.bond import Add, Bond, Flatten, Identity, Mul
from modula_rs.network.statistics import AvgPool, LayerNorm, Mean, MeanSubtract, RMSDivide

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
