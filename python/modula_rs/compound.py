"""Architectures built from atoms and bonds."""

from modula_rs.network.compound import MLP, LoRA, ResCNN, ResMLP, residual
from modula_rs.network.transformer import GPT, Attention

__all__ = ["GPT", "MLP", "Attention", "LoRA", "ResCNN", "ResMLP", "residual"]
