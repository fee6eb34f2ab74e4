"""Architectures built from atoms and bonds."""

from modula_rs.network.compound import GPT, MLP, Attention, LoRA, ResCNN, ResMLP, residual

__all__ = ["GPT", "MLP", "Attention", "LoRA", "ResCNN", "ResMLP", "residual"]
