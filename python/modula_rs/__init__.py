"""The modular norm: one learning rate for every width and depth.

>>> import modula_rs as mr
>>> m = mr.Linear(10, 64) @ mr.ReLU() @ mr.Linear(64, 784)
>>> w = m.initialize(0)
>>> update = m.normalize(w)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from modula_rs import optim
from modula_rs._core import build_info, num_threads, set_num_threads
from modula_rs.network.activation import GELU, Abs, ReLU, ScaledGELU, ScaledReLU, Sigmoid, Tanh
from modula_rs.network.atom import Atom
from modula_rs.network.attention import CausalMask, FunctionalAttention, MergeHeads, Softmax, SplitIntoHeads
from modula_rs.network.bond import Add, Bond, Flatten, Identity, Mul
from modula_rs.network.builtin_atoms import Bias, Conv2D, Embed, Linear, Scale
from modula_rs.network.certificate import Certificate, Sharpness
from modula_rs.network.compound import MLP, LoRA, ResCNN, ResMLP
from modula_rs.network.module import Module
from modula_rs.network.positions import Enumerate, Rope
from modula_rs.network.scores import ApplyAttentionScores, AttentionQK
from modula_rs.network.statistics import AvgPool, LayerNorm, Mean, MeanSubtract, RMSDivide
from modula_rs.network.transformer import GPT, Attention
from modula_rs.network.unembed import Unembed
from modula_rs.norm.matrices import orthogonalize, spectral_norm
from modula_rs.norm.table import Leaf, Target
from modula_rs.smoothness import certified_rate, smoothness

__version__ = build_info()[0]

# Modules and functions that are imported at their first use, because most need more than NumPy.
_LAZY_MODULES = ("atom", "bond", "checkpoint", "compound", "data", "optax", "tracing", "transfer")
_LAZY = {
    "cpu_backend": "backend.jax",
    "gpu_backend": "backend.gpu",
    "gpu_status": "backend.gpu",
    "load": "tracing.network",
    "set_cpu_backend": "backend.jax",
    "set_gpu_backend": "backend.gpu",
    "trace": "tracing.network",
}

if TYPE_CHECKING:  # editors and type checkers see these names as they are
    from modula_rs import atom as atom
    from modula_rs import bond as bond
    from modula_rs import checkpoint as checkpoint
    from modula_rs import compound as compound
    from modula_rs import data as data
    from modula_rs import optax as optax
    from modula_rs import tracing as tracing
    from modula_rs import transfer as transfer
    from modula_rs.backend.gpu import gpu_backend as gpu_backend
    from modula_rs.backend.gpu import gpu_status as gpu_status
    from modula_rs.backend.gpu import set_gpu_backend as set_gpu_backend
    from modula_rs.backend.jax import cpu_backend as cpu_backend
    from modula_rs.backend.jax import set_cpu_backend as set_cpu_backend
    from modula_rs.tracing.network import load as load
    from modula_rs.tracing.network import trace as trace
else:

    def __getattr__(name):
        if name in _LAZY_MODULES:
            return import_module(f"modula_rs.{name}")
        if name in _LAZY:
            return getattr(import_module(f"modula_rs.{_LAZY[name]}"), name)
        raise AttributeError(f"module 'modula_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY_MODULES, *_LAZY])


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
