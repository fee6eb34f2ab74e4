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
from modula_rs.atom import Atom, Bias, Conv2D, Embed, Linear, Scale
from modula_rs.bond import (
    GELU,
    Abs,
    Add,
    Bond,
    Flatten,
    Identity,
    LayerNorm,
    Mean,
    MeanSubtract,
    Mul,
    ReLU,
    RMSDivide,
    ScaledGELU,
    ScaledReLU,
    Tanh,
)
from modula_rs.compound import MLP, ResMLP
from modula_rs.module import Module, Sharpness
from modula_rs.plan import Leaf, Target

__version__ = "0.1.0"

# Modules that need more than NumPy, imported when they are asked for.
_LAZY = ("optax",)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return import_module(f"modula_rs.{name}")
    raise AttributeError(f"module 'modula_rs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_LAZY])


__all__ = [
    "GELU",
    "MLP",
    "Abs",
    "Add",
    "Atom",
    "Bias",
    "Bond",
    "Conv2D",
    "Embed",
    "Flatten",
    "Identity",
    "LayerNorm",
    "Leaf",
    "Linear",
    "Mean",
    "MeanSubtract",
    "Module",
    "Mul",
    "RMSDivide",
    "ReLU",
    "ResMLP",
    "Scale",
    "ScaledGELU",
    "ScaledReLU",
    "Sharpness",
    "Tanh",
    "Target",
    "num_threads",
    "optim",
    "set_num_threads",
]
