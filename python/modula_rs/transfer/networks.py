"""What a function from a size returns, as something to train: a module, or a traced network; and the weights from which it starts."""

from __future__ import annotations

import hashlib
import re
import sys
from typing import Any

import jax
import numpy as np

from modula_rs import arrays
from modula_rs.checks import shown
from modula_rs.data import Dataset
from modula_rs.describe import digest
from modula_rs.network.fingerprint import objects
from modula_rs.network.module import Module
from modula_rs.norm.methods import Normed

#: Where the weights of a traced network come from: its own initialisation, or the one at which every array has norm 1.
OWN, NORM = STARTS = ("own", "norm")


def network(made: Any, dataset: Dataset | None, batch_size: int, mass: float | None = None) -> Any:
    """A module or a traced network: ``made`` itself, or the trace of a model with a batch of the data.

    Args:
        made: a module, a traced network, or a model.
        dataset: what the network must take; None where only its norm is asked for.
        batch_size: the size of a batch.
        mass: the mass of the blocks of a model that is traced.

    Raises:
        ValueError: it is none of these, or does not take the data.
    """
    if isinstance(made, Module):
        return made
    from modula_rs.tracing import Masses, TraceError  # tracing needs JAX, which modules do not
    from modula_rs.tracing.network import Network, trace  # likewise

    if made is None or (isinstance(made, Normed) and not isinstance(made, Network)):
        raise ValueError(f"a network is a Module, a traced network or a model that can be traced, got {shown(made)}")
    if dataset is None:
        if not isinstance(made, Network):
            raise ValueError("a model is traced with an input: return mr.trace(model, ...) of it, or name the data")
        return made
    x = example(dataset, batch_size)
    try:
        if not isinstance(made, Network):
            made = trace(_on_batches(made), x, masses=None if mass is None else Masses(blocks=mass))
        y = made.output_shape(x)
    except TraceError:
        raise
    except Exception as error:  # whatever the user's program raises
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"the network does not take a batch of {dataset.name}, {x.dtype} of shape {x.shape}: {text}") from error
    outputs = getattr(y, "shape", ())[-1:]
    if outputs and outputs[0] < dataset.classes:
        raise ValueError(f"the network has {outputs[0]} outputs for the {dataset.classes} classes of {dataset.name}")
    return made


def example(dataset: Dataset, batch_size: int) -> jax.ShapeDtypeStruct:
    """The shape and the dtype of a batch of inputs."""
    inputs, _ = jax.eval_shape(dataset.batch, dataset.arrays, jax.ShapeDtypeStruct((batch_size,), np.int32))
    return jax.ShapeDtypeStruct(inputs.shape, inputs.dtype)


def _on_batches(model: Any) -> Any:
    """A model that takes batches: modules of Equinox take single examples."""
    equinox = sys.modules.get("equinox")
    if equinox is None or not isinstance(model, equinox.Module):
        return model
    params, static = equinox.partition(model, equinox.is_inexact_array)
    return (lambda params, x: jax.vmap(equinox.combine(params, static))(x)), params


def check_start(start: Any) -> None:
    """ValueError unless ``start`` is one of the choices."""
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(map(repr, STARTS))}, got {start!r}")


def starting_weights(module: Any, start: str, seed: int) -> Any:
    """The weights at the start of a run, as NumPy arrays."""
    check_start(start)
    if isinstance(module, Module) or start == NORM or not module.has_own_parameters:
        return module.initialize(seed)
    return jax.tree.map(lambda array: array if arrays.is_key(array) else np.asarray(array), module.own_parameters(seed))


def network_identity(module: Any, start: str) -> str:
    """A text that distinguishes the network from others: of a module the code of the user's own atoms and bonds is part of it."""
    if isinstance(module, Module):
        return digest([module.fingerprint, list(dict.fromkeys(map(type, objects(module.program))))], code=True)
    program = hashlib.sha256()
    closed = module.jaxpr()
    program.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())  # addresses differ from process to process
    return digest([module.fingerprint, program.hexdigest(), list(closed.consts), jax.tree.leaves(starting_weights(module, start, 0))])


def joined(trained: Any, frozen: Any) -> Any:
    """The weights whose parts :meth:`modula_rs.norm.methods.Normed.split` returns."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=lambda node: node is None)
