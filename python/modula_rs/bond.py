"""Bonds: modules without weights."""

from modula_rs.network.activation import GELU, Abs, ReLU, ScaledGELU, ScaledReLU, Sigmoid, Tanh
from modula_rs.network.attention import CausalMask, FunctionalAttention, MergeHeads, Softmax, SplitIntoHeads
from modula_rs.network.bond import Add, Bond, Flatten, Identity, Mul
from modula_rs.network.positions import Enumerate, Rope
from modula_rs.network.scores import ApplyAttentionScores, AttentionQK
from modula_rs.network.statistics import AvgPool, LayerNorm, Mean, MeanSubtract, RMSDivide

__all__ = [
    "GELU",
    "Abs",
    "Add",
    "ApplyAttentionScores",
    "AttentionQK",
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
    "Sigmoid",
    "Softmax",
    "SplitIntoHeads",
    "Tanh",
]
