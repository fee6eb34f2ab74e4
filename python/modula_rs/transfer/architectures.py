"""The networks that the command line knows by name, as functions from a size to a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modula_rs.data import Dataset, Examples, Text
from modula_rs.network.compound import ResCNN, ResMLP
from modula_rs.network.module import Module
from modula_rs.network.transformer import GPT
from modula_rs.transfer.table import Size

ARCHITECTURES = ("resmlp", "rescnn", "gpt")

#: Number of heads of a GPT, if it divides the width.
_HEADS = 4


def architecture(name: str, dataset: Dataset, block_depth: int = 2, final_norm: bool = True) -> Callable[[Size], Module]:
    """The function from a size to a module for the network ``name`` on this data.

    ``resmlp`` takes labelled examples, ``rescnn`` labelled images of shape (height, width, channels). Both have an RMSDivide before the
    head unless ``final_norm`` is False, which is the paper's network. ``gpt`` takes text and has four heads, each a quarter as wide as the
    network. ValueError if data and network do not go together.

    >>> from modula_rs import data, transfer
    >>> transfer.architecture("resmlp", data.digits())(transfer.Size(32, 4)).atoms
    10
    """
    match name, dataset:
        case "resmlp", Examples():
            return lambda size: ResMLP(
                size.width, size.depth, block_depth, dataset.features, dataset.classes, **_mass(size), final_norm=final_norm
            )
        case "rescnn", Examples() if dataset.inputs.ndim == 4:
            channels = dataset.inputs.shape[-1]
            return lambda size: ResCNN(size.width, size.depth, block_depth, channels, dataset.classes, **_mass(size), final_norm=final_norm)
        case "gpt", Text():
            return lambda size: _gpt(size, dataset)
    expected = {"resmlp": "labelled examples", "rescnn": "images of shape (height, width, channels)", "gpt": "text"}
    if name not in expected:
        raise ValueError(f"architectures are {', '.join(ARCHITECTURES)}, got {name!r}")
    raise ValueError(f"{name} takes {expected[name]}, and {dataset.name} is {_kind(dataset)}")


def _gpt(size: Size, text: Text) -> Module:
    if size.width % _HEADS:
        raise ValueError(f"the width of a gpt must be a multiple of its {_HEADS} heads, got {size.width}")
    head = size.width // _HEADS
    return GPT(text.classes, size.context or text.context, _HEADS, size.width, head, head, size.depth, **_mass(size))


def _mass(size: Size) -> dict[str, Any]:
    return {} if size.mass is None else {"blocks_mass": size.mass}


def _kind(dataset: Dataset) -> str:
    if isinstance(dataset, Examples):
        return f"examples of shape {dataset.inputs.shape[1:]}"
    return "text" if isinstance(dataset, Text) else type(dataset).__name__
