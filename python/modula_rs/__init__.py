"""The modular norm: one learning rate for every width and depth.

>>> import modula_rs as mr
>>> m = mr.Linear(10, 64) @ mr.ReLU() @ mr.Linear(64, 784)
>>> w = m.initialize(0)
>>> update = m.normalize(w)
"""

from importlib import import_module
from typing import Any

from modula_rs import optim
from modula_rs._core import num_threads, set_num_threads
from modula_rs.matrices import orthogonalize, spectral_norm
from modula_rs.network.activation import GELU, Abs, ReLU, ScaledGELU, ScaledReLU, Sigmoid, Tanh
from modula_rs.network.atom import Atom, Bias, Conv2D, Embed, Linear, Scale
from modula_rs.network.attention import CausalMask, Enumerate, FunctionalAttention, MergeHeads, Rope, Softmax, SplitIntoHeads
from modula_rs.network.bond import Add, Bond, Flatten, Identity, Mul
from modula_rs.network.certificate import Certificate, Sharpness
from modula_rs.network.compound import MLP, LoRA, ResCNN, ResMLP
from modula_rs.network.module import Module
from modula_rs.network.scores import ApplyAttentionScores, AttentionQK
from modula_rs.network.statistics import AvgPool, LayerNorm, Mean, MeanSubtract, RMSDivide
from modula_rs.network.transformer import GPT, Attention
from modula_rs.network.unembed import Unembed
from modula_rs.norm.table import Leaf, Target
from modula_rs.smoothness import certified_rate, smoothness

__version__ = "0.1.0"

# Submodules that are imported at their first use, because most need more than NumPy.
_LAZY = ("atom", "bond", "checkpoint", "compound", "data", "optax", "transfer")
_LAZY_JAX = ("cpu_backend", "export_checks", "register_calls", "set_cpu_backend")
_LAZY_TRACE = ("load", "trace")
_LAZY_GPU = ("gpu_backend", "gpu_status", "set_gpu_backend")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"modula_rs.{name}")
    if name in _LAZY_JAX:
        return getattr(import_module("modula_rs.backend.jax"), name)
    if name in _LAZY_TRACE:
        return getattr(import_module("modula_rs.tracing.network"), name)
    if name in _LAZY_GPU:
        return getattr(import_module("modula_rs.backend.gpu"), name)
    raise AttributeError(f"module 'modula_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY, *_LAZY_JAX, *_LAZY_TRACE, *_LAZY_GPU])


__all__ = [
    "GELU",
    "GPT",
    "MLP",
    "Abs",
    "Add",
    "ApplyAttentionScores",
    "Atom",
    "Attention",
    "AttentionQK",
    "AvgPool",
    "Bias",
    "Bond",
    "CausalMask",
    "Certificate",
    "Conv2D",
    "Embed",
    "Enumerate",
    "Flatten",
    "FunctionalAttention",
    "Identity",
    "LayerNorm",
    "Leaf",
    "Linear",
    "LoRA",
    "Mean",
    "MeanSubtract",
    "MergeHeads",
    "Module",
    "Mul",
    "RMSDivide",
    "ReLU",
    "ResCNN",
    "ResMLP",
    "Rope",
    "Scale",
    "ScaledGELU",
    "ScaledReLU",
    "Sharpness",
    "Sigmoid",
    "Softmax",
    "SplitIntoHeads",
    "Tanh",
    "Target",
    "Unembed",
    "certified_rate",
    "num_threads",
    "optim",
    "orthogonalize",
    "set_num_threads",
    "smoothness",
    "spectral_norm",
]
