"""Atoms: modules that hold weights."""

from modula_rs.network.atom import Atom
from modula_rs.network.builtin_atoms import Bias, Conv2D, Embed, Linear, Scale
from modula_rs.network.unembed import Unembed

__all__ = ["Atom", "Bias", "Conv2D", "Embed", "Linear", "Scale", "Unembed"]
